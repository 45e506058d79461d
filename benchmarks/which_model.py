"""The four ways to a latent space on the same tables: exact, sparse, Bayesian, minibatch.

Each model is fitted with its defaults to nine tenths of the rows. Printed: seconds, 1-NN label
errors of those rows in the plane of the two most relevant dimensions and in all of them (scaled by
relevance), the mean log density of the held-out rows, and the error of the third of their entries
that was hidden, beside column means.

    python -m benchmarks.which_model           # oil flow, digits, PBMC
    python -m benchmarks.which_model --quick   # oil flow only, few steps, nothing written
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from gplvm_xp import GPLVM, BayesianGPLVM, SparseGPLVM, datasets
from gplvm_xp.metrics import nearest_neighbour_errors, root_mean_squared_error

SEED = 0


def models(steps: int, epochs: int | None) -> dict[str, Callable[[], Any]]:
    """The estimators with their defaults."""
    common = {"random_state": SEED}
    return {
        "exact, q = 2": lambda: GPLVM(2, max_iter=steps, **common),
        "sparse, q = 2, M = 50": lambda: SparseGPLVM(2, max_iter=steps, **common),
        "Bayesian, q <= 10, M = 50": lambda: BayesianGPLVM(max_iter=steps, **common),
        "minibatch, q <= 10, M = 50": lambda: BayesianGPLVM(
            inference="minibatch", n_epochs=epochs, **common
        ),
    }


def one(model: Any, Y: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """One fit with its figures."""
    rng = np.random.default_rng(SEED)
    order = rng.permutation(Y.shape[0])
    cut = Y.shape[0] // 10
    test, train = np.sort(order[:cut]), np.sort(order[cut:])
    hidden = rng.random((cut, Y.shape[1])) < 1.0 / 3.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begin = time.perf_counter()
        model.fit(Y[train])
        fit = time.perf_counter() - begin
        begin = time.perf_counter()
        density = model.score(Y[test])
        gaps = np.where(hidden, np.nan, Y[test])
        filled = np.where(hidden, model.predict(gaps), Y[test])
        new = time.perf_counter() - begin
    relevance = model.relevance()
    Z = model.embedding_
    scaled = Z / np.where(Z.std(axis=0) > 0, Z.std(axis=0), 1.0) * relevance
    first = np.argsort(relevance)[::-1][:2]
    means = np.broadcast_to(Y[train].mean(axis=0), Y[test].shape)
    return {
        "fit (s)": fit,
        "new rows (s)": new,
        "1-NN errors, plane": nearest_neighbour_errors(scaled[:, first], labels[train]),
        "all dimensions": nearest_neighbour_errors(scaled, labels[train]),
        "active": int(np.sum(relevance**2 > 0.01)),
        "ln p of a held-out row": density,
        "error of hidden entries": root_mean_squared_error(Y[test], filled, mask=hidden),
        "of column means": root_mean_squared_error(Y[test], means, mask=hidden),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="oil flow, few steps")
    parser.add_argument("--tables", nargs="*", default=["oil", "digits", "pbmc"])
    given = parser.parse_args()
    loaders = {
        "oil": datasets.fetch_oil_flow,
        "digits": datasets.load_digits,
        "pbmc": datasets.fetch_pbmc,
    }
    steps, epochs = (20, 5) if given.quick else (500, None)
    rows = []
    for name in given.tables[: 1 if given.quick else None]:
        data = loaders[name]()
        for title, make in models(steps, epochs).items():
            rows.append({"table": name, "model": title} | one(make(), data.Y, data.labels))
            print(rows[-1], flush=True)
    if given.quick:
        return
    from benchmarks.report import write

    write(
        "which_model",
        "Exact, sparse, Bayesian and minibatch models on the same tables",
        "python -m benchmarks.which_model",
        rows,
        "Defaults of each estimator, at most 500 steps (minibatch: 4000), nine tenths of the rows. "
        "Densities in nats, in the data's own units; hidden: a third of each held-out row.",
    )


if __name__ == "__main__":
    main()
