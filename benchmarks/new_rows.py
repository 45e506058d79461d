"""Embedding rows that were not in the fit: how fast, and how well, all at once.

python -m benchmarks.new_rows
"""

from __future__ import annotations

import time
import warnings

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from benchmarks.report import write
from gplvm_xp import GPLVM, datasets


def main() -> None:
    data = datasets.load_digits()
    n = 1200
    train, new = data.Y[:n], data.Y[n:]
    model = GPLVM(n_components=2, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begin = time.perf_counter()
        model.fit(train)
        fit = time.perf_counter() - begin
    rows = []
    rng = np.random.default_rng(0)
    for missing in (0.0, 0.3):
        table = np.where(rng.random(new.shape) < missing, np.nan, new)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            begin = time.perf_counter()
            Z = model.transform(table)
            seconds = time.perf_counter() - begin
        judge = KNeighborsClassifier(1).fit(model.embedding_, data.labels[:n])
        gap = np.isnan(table)
        error = float(np.sqrt(np.mean((model.predict(Z) - new)[gap if missing else ~gap] ** 2)))
        mean = float(np.sqrt(np.mean((model.mean_ - new)[gap if missing else ~gap] ** 2)))
        rows.append(
            {
                "training rows": n,
                "new rows": new.shape[0],
                "missing": missing,
                "fit (s)": fit,
                "transform (s)": seconds,
                "rows per minute": 60.0 * new.shape[0] / seconds,
                "1-NN label errors": int(np.sum(judge.predict(Z) != data.labels[n:])),
                "RMSE of the (missing) pixels": error,
                "RMSE of the column means": mean,
                "warnings": len(said),
            }
        )
        print(rows[-1], flush=True)
    write(
        "new_rows",
        "Digits: 597 new rows against a model of 1200, all at once",
        "python -m benchmarks.new_rows",
        rows,
        "Labels are judged by the nearest training row in the two latent dimensions. Where entries "
        "are missing, the RMSE is over those entries alone.",
    )


if __name__ == "__main__":
    main()
