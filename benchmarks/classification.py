"""Two classes on real tables: VariationalGP beside scikit-learn's Laplace classifier.

Both have the kernel variance · RBF with one lengthscale, zero mean and the same start. Ripley and
Pima come with test rows; the others are judged by five stratified folds. Inputs are standardised
by the training rows. Log loss is in nats a row, lower is better.

    python -m benchmarks.classification            # the whole table
    python -m benchmarks.classification --quick    # Ripley and Pima, nothing written
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process import kernels as theirs
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from benchmarks.threads import limited, seconds
from gplvm_xp import VariationalGP, datasets
from gplvm_xp.kernels import RBF

TABLES = ("ripley", "pima", "crabs_sex", "wisconsin", "ionosphere")
FOLDS = 5

Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def splits(name: Any) -> list[Split]:
    """Training rows and labels, test rows and labels."""
    data = datasets.load_binary(name)
    if "Y_test" in data.extra:
        return [(data.Y, data.labels, data.extra["Y_test"], data.extra["labels_test"])]
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    return [
        (data.Y[a], data.labels[a], data.Y[z], data.labels[z])
        for a, z in folds.split(data.Y, data.labels)
    ]


def models(width: float) -> dict[str, Callable[[], Any]]:
    """Each method, from the same start."""

    def laplace(restarts: int) -> Any:
        kernel = theirs.ConstantKernel(1.0) * theirs.RBF(width)
        return GaussianProcessClassifier(kernel, n_restarts_optimizer=restarts, random_state=0)

    return {
        "scikit-learn, Laplace, logit": lambda: laplace(0),
        "scikit-learn, 3 restarts": lambda: laplace(3),
        "VariationalGP, logit": lambda: VariationalGP(RBF(1.0, width), "logit", fit_mean=False),
        "VariationalGP, probit": lambda: VariationalGP(RBF(1.0, width), "probit", fit_mean=False),
        "VariationalGP, logit, mean learned": lambda: VariationalGP(RBF(1.0, width), "logit"),
    }


def measure(name: str) -> Iterator[dict[str, Any]]:
    """A row a method: over all held-out rows of the table."""
    parts = []
    for X, y, Z, held in splits(name):
        scaler = StandardScaler().fit(X)
        parts.append((scaler.transform(X), y, scaler.transform(Z), held))
    inputs = parts[0][0].shape[1]
    for method, make in models(float(np.sqrt(2.0 * inputs))).items():
        time, loss, errors, warned = 0.0, [], 0, 0
        for X, y, Z, held in parts:
            model = make()
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                time += seconds(lambda model=model, X=X, y=y: model.fit(X, y))
                p = model.predict_proba(Z)
            warned += len(said)
            loss += [log_loss(held, p, labels=model.classes_)] * held.size
            errors += int(np.sum(model.classes_[np.argmax(p, axis=1)] != held))
        yield {
            "table": name,
            "training rows": parts[0][0].shape[0],
            "inputs": inputs,
            "held-out rows": len(loss),
            "method": method,
            "log loss": float(np.mean(loss)),
            "errors": errors,
            "time a fit (s)": time / len(parts),
            "warnings": warned,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two tables, nothing written")
    parser.add_argument("--threads", type=int, default=1, help="of the matrix library (1)")
    given = parser.parse_args()
    rows = []
    with limited(given.threads):
        for name in TABLES[:2] if given.quick else TABLES:
            for row in measure(name):
                rows.append(row)
                print(json.dumps(row), flush=True)
    if given.quick:
        return
    from benchmarks.report import write

    write(
        "classification",
        f"Two classes: held-out log loss and errors, {given.threads} thread",
        "python -m benchmarks.classification",
        rows,
        "Log loss is the mean over all held-out rows, in nats; each fold's training rows are those "
        "of the first. scikit-learn's restarts start elsewhere within its default bounds; the "
        "last method learns a constant mean, which scikit-learn has not.",
    )


if __name__ == "__main__":
    main()
