"""One half of a table from the other: `SharedGPLVM` beside regression.

Tables are cut into two views; a model learns from rows that have both and predicts the second view
of held-out rows from their first. Beside it ridge regression, kernel ridge and Gaussian process
regression (scikit-learn, RBF kernels, their parameters chosen on the training rows) and the mean of
the 1 and 5 nearest rows. In a second part only some rows have both views: the regressions learn
from these, the shared model from these or from all.

    python -m benchmarks.shared_views             # a quarter of an hour
    python -m benchmarks.shared_views --quick     # one split, few rows, nothing written

Oil flow is read from the folder that GPLVM_XP_DATA names, or downloaded.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsRegressor

from benchmarks.reconstruction import averaged
from gplvm_xp import SharedGPLVM, datasets
from gplvm_xp.metrics import negative_log_density, root_mean_squared_error

TRAIN, TEST, PAIRED = 300, 250, 60
DIMENSIONS = {"2": (2, 0), "2 + 1 + 1": (2, 1), "4 + 1 + 1": (4, 1), "6, None": (6, None)}
Pair = tuple[np.ndarray, np.ndarray]
# What a method answers: means, and variances where it has them.
Answer = tuple[np.ndarray, np.ndarray | None]


def halves_of_digits(seed: int) -> Pair:
    """Left and right halves of 8 × 8 images."""
    images = datasets.load_digits().Y.reshape(-1, 8, 8)
    return images[:, :, :4].reshape(-1, 32), images[:, :, 4:].reshape(-1, 32)


def halves_of_oil(seed: int) -> Pair:
    """The first and the last six of twelve measurements."""
    Y = datasets.fetch_oil_flow().Y
    return Y[:, :6], Y[:, 6:]


def made(seed: int) -> Pair:
    """Smooth functions of one latent that both views have and of one that is each view's own."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((TRAIN + TEST, 1))
    views = []
    for D in (10, 8):
        x = np.hstack([shared, rng.standard_normal(shared.shape)])
        W, phase = rng.standard_normal((2, 300)) / 1.5, rng.uniform(0.0, 2.0 * np.pi, 300)
        f = np.cos(x @ W + phase) @ rng.standard_normal((300, D)) * np.sqrt(2.0 / 300)
        views.append(f + 0.1 * rng.standard_normal(f.shape))
    return views[0], views[1]


def regressions(A: np.ndarray, B: np.ndarray) -> dict[str, Callable[[np.ndarray], Answer]]:
    """Methods fitted to pairs, by name; each takes first views and answers for the second."""
    mean, variance = B.mean(axis=0), float(B.var())
    spread = float(np.median(np.linalg.norm(A - A[::-1], axis=1)))
    gammas = (0.5 / spread**2) * np.array([1.0, 3.0, 10.0, 30.0])
    ridge = RidgeCV(np.logspace(-5, 5, 21)).fit(A, B)
    # By squared errors: the default, R² column by column, is ruled by columns that hardly vary.
    kernel = GridSearchCV(
        KernelRidge(kernel="rbf"),
        {"gamma": gammas, "alpha": np.logspace(-4, 2, 7)},
        scoring="neg_mean_squared_error",
        cv=5,
    ).fit(A, B - mean)
    process = GaussianProcessRegressor(
        ConstantKernel(variance, (1e-6, 1e9))
        * RBF(spread, (1e-3, 1e6))
        + WhiteKernel(0.1 * variance, (1e-9, 1e9))
    ).fit(A, B - mean)  # fmt: skip
    nearest = {k: KNeighborsRegressor(k).fit(A, B) for k in (1, 5)}

    def by_process(X: np.ndarray) -> Answer:
        m, s = process.predict(X, return_std=True)
        return m + mean, s**2

    return {
        "column means": lambda X: (np.broadcast_to(mean, (len(X), mean.size)), None),
        "ridge regression": lambda X: (ridge.predict(X), None),
        "kernel ridge": lambda X: (kernel.predict(X) + mean, None),
        "GP regression": by_process,
        "nearest row": lambda X: (nearest[1].predict(X), None),
        "5 nearest rows": lambda X: (nearest[5].predict(X), None),
    }


def one(
    name: str, views: Pair, paired: int, seed: int, steps: tuple[int, ...]
) -> list[dict[str, Any]]:
    """All methods on one split."""
    A, B = views
    order = np.random.default_rng((seed, 1)).permutation(len(A))
    train, test = order[:TRAIN], order[TRAIN : TRAIN + TEST]
    both, unit = train[:paired], float(np.sqrt(np.mean(B.var(axis=0))))
    rows: list[dict[str, Any]] = []

    def judge(method: str, answer: Answer, **more: Any) -> None:
        m, v = answer
        row: dict[str, Any] = {"table": name, "pairs": paired, "split": seed, "method": method}
        row["RMSE"] = root_mean_squared_error(B[test], m) / unit
        row["-ln p an entry"] = (
            None if v is None else negative_log_density(B[test] / unit, m / unit, v / unit**2)
        )
        rows.append(row | more)
        print(rows[-1], flush=True)

    begin = time.perf_counter()
    fitted = regressions(A[both], B[both])
    for method, predict in fitted.items():
        judge(method, predict(A[test]))
    print(f"regressions: {time.perf_counter() - begin:.1f} s", flush=True)
    first, second = A[train].copy(), B[train].copy()
    # Half of the rows that are no pairs have the first view only, half the second only.
    first[paired::2], second[paired + 1 :: 2] = np.nan, np.nan
    rows_of = {"": slice(paired)}
    if paired < TRAIN:
        rows_of = {"; pairs only": slice(paired), "; all rows": slice(TRAIN)}
    for which, some in rows_of.items():
        for most in steps:
            for label, dims in DIMENSIONS.items():
                model = SharedGPLVM(*dims, max_iter=most, random_state=seed)
                begin = time.perf_counter()
                model.fit([first[some], second[some]])
                middle = time.perf_counter()
                answer = model.predict_view([A[test], None], 1, return_var=True)
                judge(
                    f"shared, {label}; {most} steps{which}", answer, seconds=middle - begin,
                    **{"seconds, new rows": time.perf_counter() - middle},
                )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one split, few steps")
    parser.add_argument("--splits", type=int, default=3)
    given = parser.parse_args()
    splits = range(1 if given.quick else given.splits)
    steps = (20,) if given.quick else (60, 300)
    loaders = {"digits": halves_of_digits, "oil flow": halves_of_oil, "made": made}
    if given.quick:
        loaders.pop("oil flow")
    rows = []
    for name, load in loaders.items():
        for paired in (TRAIN, PAIRED):
            for seed in splits:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    rows += one(name, load(seed), paired, seed, steps)
    if not given.quick:
        from benchmarks.report import write

        write(
            "shared_views",
            "One half of a table from the other",
            "python -m benchmarks.shared_views",
            averaged(rows, ("table", "pairs", "method")),
            f"Means over {given.splits} splits of {TRAIN} training and {TEST} test rows, ± their "
            "standard errors. RMSE and densities in units of the second view's root mean square "
            "deviation; −ln p is the mean over entries, noise included. Pairs: how many training "
            "rows have both views; of the others, which 'all rows' uses, half have the first view "
            "and half the second. Digits: right halves of images from left ones, 32 "
            "pixels each. Oil flow: the last six measurements from the first six. Made: ten and "
            "eight smooth functions of one latent common to both views and one of each view's "
            "own. 'Shared, 4 + 1 + 1' is SharedGPLVM(4, 1), four shared dimensions and a private "
            "one for each view, with at most so many steps; 'None': each view sees six through "
            "lengthscales of its own.",
        )


if __name__ == "__main__":
    main()
