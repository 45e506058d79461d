"""Geometry of fitted models: a map of the magnification factor, and shortest curves.

    python -m benchmarks.geometry

The oil flow is read from the folder that GPLVM_XP_DATA names, or downloaded.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from benchmarks.report import write
from gplvm_xp import GPLVM, SparseGPLVM, datasets

SIDE, PAIRS, SEED = 200, 10, 0


def magnification_map(model: Any) -> tuple[float, float, float]:
    """Seconds for the map, and for one of the predictive deviation; decades that the former has."""
    Z = model.embedding_
    low, high = Z.min(axis=0), Z.max(axis=0)
    across = np.meshgrid(*(np.linspace(a, b, SIDE) for a, b in zip(low, high, strict=True)))
    grid = np.stack([a.ravel() for a in across], axis=1)
    model.magnification(grid[:10])
    begin = time.perf_counter()
    values = model.magnification(grid, log=True)
    middle = time.perf_counter()
    model.predict(grid, return_var=True)
    return middle - begin, time.perf_counter() - middle, float(np.ptp(values) / np.log(10.0))


def along(model: Any, path: np.ndarray) -> tuple[float, float, float]:
    """Length, mean distance of the path to the nearest latent, and of its rows to a row's mean."""
    Z = model.embedding_
    near = cKDTree(Z).query(path)[0].mean()
    rows = cKDTree(model.predict(Z)).query(model.predict(path))[0].mean()
    return model.curve_length(path), float(near), float(rows)


def curves(model: Any) -> dict[str, Any]:
    """Shortest curves between random pairs of rows, beside straight lines."""
    Z, rng = model.embedding_, np.random.default_rng(SEED)
    seconds, ratios, straight, short, converged = [], [], [], [], 0
    for _ in range(PAIRS):
        i, j = rng.choice(Z.shape[0], 2, replace=False)
        begin = time.perf_counter()
        found = model.geodesic(Z[i], Z[j])
        seconds.append(time.perf_counter() - begin)
        converged += found.converged
        straight.append(along(model, np.linspace(Z[i], Z[j], 50)))
        short.append(along(model, found.path))
        ratios.append(found.length / straight[-1][0])
    one, two = np.mean(straight, axis=0), np.mean(short, axis=0)
    return {
        "pairs": PAIRS,
        "converged": converged,
        "seconds, median": float(np.median(seconds)),
        "seconds, most": max(seconds),
        "length / straight, median": float(np.median(ratios)),
        "least": min(ratios),
        "most": max(ratios),
        "to the nearest latent, straight": float(one[1]),
        "to the nearest latent, geodesic": float(two[1]),
        "to the nearest row, straight": float(one[2]),
        "to the nearest row, geodesic": float(two[2]),
    }


def main() -> None:
    oil = datasets.fetch_oil_flow()
    digits = datasets.load_digits()
    models = {
        "oil flow, GPLVM": (oil.Y, GPLVM(2, max_iter=100)),
        "oil flow, SparseGPLVM (50)": (oil.Y, SparseGPLVM(2, n_inducing=50, random_state=SEED)),
        "digits, SparseGPLVM (100)": (
            digits.Y,
            SparseGPLVM(2, n_inducing=100, max_iter=200, random_state=SEED),
        ),
    }
    rows = []
    for name, (Y, model) in models.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(Y)
        seconds, plain, decades = magnification_map(model)
        row = {
            "model": name,
            "rows × columns": f"{Y.shape[0]} × {Y.shape[1]}",
            f"map of {SIDE} × {SIDE} (s)": seconds,
            "predictive deviation there (s)": plain,
            "decades of magnification": decades,
        }
        rows.append(row | curves(model))
        print(rows[-1], flush=True)
    write(
        "geometry",
        "Magnification of a map, and shortest curves between pairs of rows",
        "python -m benchmarks.geometry",
        rows,
        "Lengths are those of the expected metric; a ratio below 1 is what the geodesic saves. The "
        "mean distance to the nearest latent is along the path, at points of equal length for the "
        "geodesic and at equal steps for the straight line. That to the nearest row is from the "
        "mean rows along the path to those at the training latents, in the data's units.",
    )


if __name__ == "__main__":
    main()
