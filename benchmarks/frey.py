"""Frey faces: half of the pixels of each test face filled, beside probabilistic PCA.

1000 of the 1965 frames train, drawn at random (Titsias & Lawrence 2010); of every other frame a
random half of its 560 pixels is hidden. Settings are chosen without the test frames: each is fitted
to 850 of the training frames and fills half of the pixels of the other 150.

    python -m benchmarks.frey             # some minutes
    python -m benchmarks.frey --quick     # one setting, 30 steps, nothing written

The frames are read from the folder that GPLVM_XP_DATA names, or downloaded.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np

from benchmarks.ppca import PPCA
from gplvm_xp import BayesianGPLVM, datasets
from gplvm_xp.metrics import mean_absolute_error, negative_log_density

TRAIN, VALID, SEED = 1000, 150, 0
RANKS = (10, 30, 50, 80, 100, 150, 200, 250)
# (q, M, whether the PCA start has unit variance in every dimension)
SETTINGS = ((30, 100, False), (30, 100, True), (50, 100, True))
PUBLISHED = (("Bayesian GP-LVM, q 30, published", 7.40), ("GP-LVM, q 5, published", 9.73))


def halves(Y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows with a half of their entries, drawn at random, hidden; and which."""
    order = np.argsort(np.random.default_rng(seed).random(Y.shape), axis=1)
    gone = order < Y.shape[1] // 2
    return np.where(gone, np.nan, Y), gone


def white(Y: np.ndarray, q: int) -> np.ndarray:
    """PCA scores, each divided by its deviation: as wide as the prior in all dimensions."""
    U, _, _ = np.linalg.svd(Y - Y.mean(axis=0), full_matrices=False)
    return U[:, :q] * Y.shape[0] ** 0.5


def judged(
    train: np.ndarray, test: np.ndarray, setting: tuple[int, int, bool], steps: int
) -> dict[str, Any]:
    """One fit and what it fills."""
    q, M, whitened = setting
    shown, gone = halves(test, SEED + 1)
    model = BayesianGPLVM(
        q, n_inducing=M, max_iter=steps, init=white(train, q) if whitened else "pca",
        warm_up=30, random_state=SEED,
    )  # fmt: skip
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(train)
        fit = time.perf_counter() - begin
        begin = time.perf_counter()
        filled, variance = model.impute(shown, return_var=True)
    return {
        "method": "BayesianGPLVM",
        "q": q,
        "M": M,
        "start": "PCA, unit variances" if whitened else "PCA",
        "mean absolute error": mean_absolute_error(test, filled, mask=gone),
        "-ln p a pixel": negative_log_density(test, filled, variance, mask=gone),
        "bound": model.lower_bound_,
        "n_active_": model.n_active_,
        "noise sd": model.noise_variance_**0.5,
        "steps": model.n_iter_,
        "fit (s)": fit,
        "filling (s)": time.perf_counter() - begin,
    }


def linear(train: np.ndarray, test: np.ndarray, q: int) -> float:
    """Mean absolute error of probabilistic PCA."""
    shown, gone = halves(test, SEED + 1)
    return mean_absolute_error(test, PPCA.fit(train, q).impute(shown), mask=gone)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one setting, nothing written")
    parser.add_argument("--max-iter", type=int, default=300)
    given = parser.parse_args()
    Y = np.asarray(datasets.fetch_frey_faces().Y, dtype=np.float64)
    order = np.random.default_rng(SEED).permutation(Y.shape[0])
    train, test = Y[order[:TRAIN]], Y[order[TRAIN:]]
    fewer, valid = train[:-VALID], train[-VALID:]
    steps = 30 if given.quick else given.max_iter
    rows: list[dict[str, Any]] = []

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        print(row, flush=True)

    tried = []
    for setting in SETTINGS[:1] if given.quick else SETTINGS:
        row = judged(fewer, valid, setting, steps)
        tried.append((row["mean absolute error"], setting))
        keep({"judged on": "150 training faces"} | row)
    keep({"judged on": "965 test faces"} | judged(train, test, min(tried)[1], steps))
    for q in RANKS:
        error = linear(train, test, q)
        keep({"judged on": "965 test faces", "method": "probabilistic PCA", "q": q,
              "mean absolute error": error})  # fmt: skip
    for method, error in PUBLISHED:
        rows.append({"judged on": "965 test faces", "method": method, "mean absolute error": error})
    if given.quick:
        return
    from benchmarks.report import write

    write(
        "frey",
        "Frey faces, 1965 × 560: hidden pixels filled, 1000 training and 965 test faces",
        "python -m benchmarks.frey",
        rows,
        "Errors in grey levels (0 to 255) over the hidden half of the pixels of each face, split "
        f"by seed {SEED}, pixels by seed {SEED + 1}. Of our settings only the one with the least "
        "error on 150 training faces, unseen by its fit, was fitted to all 1000 and "
        "judged on the test faces. Probabilistic PCA is judged on them for every q: it goes on "
        "improving far beyond the q of 50 up to which it is usually shown, to nearly full rank "
        "(a Gaussian whose small eigenvalues are shrunk), which no model of tens of dimensions "
        "reaches here. The published errors are of other splits.",
    )


if __name__ == "__main__":
    main()
