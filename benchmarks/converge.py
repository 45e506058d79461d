"""Where second-order fits end: gradient, objective, time, certificate; beside L-BFGS.

    python -m benchmarks.converge              # oil flow, 300 and 1000 rows; some 20 minutes
    python -m benchmarks.converge --rows 300

The table is read from the folder that GPLVM_XP_DATA names, or downloaded.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np

from gplvm_xp import GPLVM, datasets
from gplvm_xp.init import latents

TOL = 1e-6


def fit(Y: np.ndarray, what: str, **settings: Any) -> tuple[dict[str, Any], GPLVM]:
    """One fit of the default model in two dimensions."""
    ends: list[Any] = []
    model = GPLVM(2, tol=TOL, callback=lambda p: ends.append(p) or False, **settings)
    begin, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(Y)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    value = float(model.loss_curve_[-1])
    norm = next(p.grad_norm for p in ends if p.value == value)
    c = model.certificate_
    row = {
        "rows": Y.shape[0],
        "fit": what,
        "objective, nats": f"{value:.2f}",
        "largest gradient entry": norm,
        "seconds": seconds,
        "CPU seconds": cpu,
        "steps": model.n_iter_,
        "status": model.status_,
        "Hessian products": None if c is None else c.hvps,
        "smallest eigenvalue": None if c is None else c.smallest_ritz_value,
        "certified": None if c is None else c.certified,
    }
    return row, model


def near(Y: np.ndarray) -> dict[str, Any]:
    """The best of ten fits of 500 steps from the PCA latents with a little noise."""
    start = latents("pca", Y - Y.mean(axis=0), 2, np.random.default_rng(0))
    best: dict[str, Any] = {}
    seconds = cpu = 0.0
    for seed in range(10):
        noise = np.random.default_rng(seed).standard_normal(start.shape)
        row, _ = fit(Y, "the best of 10 of 500 steps, little noise",
                     init=start + (0.05 * start.std() if seed else 0.0) * noise)  # fmt: skip
        seconds, cpu = seconds + row["seconds"], cpu + row["CPU seconds"]
        if not best or float(row["objective, nats"]) < float(best["objective, nats"]):
            best = row
    return best | {"seconds": seconds, "CPU seconds": cpu}


def rounding(model: GPLVM, Y: np.ndarray) -> float:
    """Largest error of the gradient in the latents at a fit's end, by extended precision."""
    from gplvm_xp import backend
    from gplvm_xp.objectives import ExactObjective, groups_of
    from gplvm_xp.priors import Gaussian

    Y = Y - model.mean_
    X = np.asarray(model.embedding_, dtype=np.longdouble)
    n = X.shape[0]
    variance, ell = model.kernel_.theta()
    difference = X[:, None, :] - X[None, :, :]
    K = variance * np.exp(-0.5 * np.sum((difference / ell) ** 2, axis=2))
    left = K + (np.longdouble(model.noise_variance_) + model.jitter_) * np.eye(n)
    L = np.zeros_like(left)
    for k in range(n):
        L[k:, k] = left[k:, k] / np.sqrt(left[k, k])
        left[k + 1 :, k + 1 :] -= np.outer(L[k + 1 :, k], L[k + 1 :, k])
    inverse = np.zeros_like(L)
    for k in range(n):
        inverse[k] = (np.eye(n)[k] - L[k, :k] @ inverse[:k]) / L[k, k]
    inverse = inverse.T @ inverse
    alpha = inverse @ Y
    W = 0.5 * (Y.shape[1] * inverse - alpha @ alpha.T) * K
    want = X - 2.0 * np.sum(W[:, :, None] * difference, axis=1) / ell**2
    o = ExactObjective(
        model.kernel_, groups_of(backend.get("numpy"), Y), model.embedding_,
        model.noise_variance_, Gaussian(), {}, frozenset({"rbf.lengthscale"}), model.jitter_,
    )  # fmt: skip
    got = o.value_and_grad(o.start())[1][-X.size :]
    return float(np.max(np.abs(got - want.ravel())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[300, 1000])
    given = parser.parse_args()
    from benchmarks.report import write

    table = datasets.fetch_oil_flow().Y
    rows, errors = [], []
    for n in given.rows:
        Y = table[:n]
        fits: dict[str, dict[str, Any]] = {
            "newton": {"optimizer": "newton"},
            "lbfgs+newton": {"optimizer": "lbfgs+newton"},
            "SciPy L-BFGS-B, 500 steps": {},
            "SciPy L-BFGS-B, same tol": {"max_iter": 20000},
            "the best of 10 of 500 steps": {"n_restarts": 9, "random_state": 0},
        }
        for what, settings in fits.items():
            row, model = fit(Y, what, **settings)
            rows.append(row)
            print(row, flush=True)
            if what == "newton":
                errors.append(f"{rounding(model, Y):.1e} ({n} rows)")
        rows.append(near(Y))
        print(rows[-1], flush=True)
    write(
        "converge",
        "Oil flow in two dimensions from the PCA start: second order beside L-BFGS",
        "python -m benchmarks.converge",
        rows,
        f"The default model, tol={TOL:g}, one process. The gradient's own rounding error at the "
        f"end of newton, against extended precision: {', '.join(errors)}. Restarts begin at the "
        "PCA latents with noise of half their width added (little noise: a twentieth); the first "
        "of them begins without.",
    )


if __name__ == "__main__":
    main()
