"""``GPLVM(method="auto")``: predicted seconds beside those that were taken, and what was chosen.

    python -m benchmarks.router

Each model runs a number of steps on a made table, and the prediction is for as many. Models that
would need more than ``--limit`` seconds are left out.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
import warnings
from typing import Any

from benchmarks.report import write
from gplvm_xp import GPLVM, BayesianGPLVM, LocalGPLVM, SparseGPLVM, backend, datasets
from gplvm_xp.estimators._auto import planned, rates

COMMAND = "python -m benchmarks.router"
CELLS = (
    (500, 12, 2),
    (2000, 12, 2),
    (2000, 200, 5),
    (4000, 12, 2),
    (10_000, 12, 2),
    (10_000, 50, 8),
    (50_000, 50, 2),
    (200_000, 12, 2),
)
MODELS = {
    "exact": GPLVM,
    "local": functools.partial(LocalGPLVM, inference="neighbourhood"),
    "sparse": SparseGPLVM,
    "bayesian": BayesianGPLVM,
}


def cell(n: int, D: int, q: int, steps: int, limit: float) -> list[dict[str, Any]]:
    """One row for each model that was run."""
    Y = datasets.make_latent(n, D=D, q=q, seed=0, noise=0.3).Y
    b = backend.get("numpy")
    whole = planned(b, Y, q, max_iter=500, budget=None)
    few = planned(b, Y, q, max_iter=steps, budget=None)
    rows = []
    for choice in few.choices:
        row: dict[str, Any] = {
            "rows": n,
            "columns": D,
            "q": q,
            "model": choice.method,
            "chosen": "yes" if choice.method == whole.method else "",
            "predicted (s)": choice.seconds,
            "measured (s)": None,
        }
        if choice.seconds < limit and not choice.reason:
            model = MODELS[choice.method](q, max_iter=steps, tol=0.0, random_state=0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                begin = time.perf_counter()
                model.fit(Y)
            row["measured (s)"] = time.perf_counter() - begin
            row["predicted / measured"] = choice.seconds / row["measured (s)"]
            row["steps"] = model.n_iter_
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--limit", type=float, default=60.0)
    given = parser.parse_args()
    r = rates(backend.get("numpy"))
    rows = [row for size in CELLS for row in cell(*size, given.steps, given.limit)]
    off = [abs(math.log(row["predicted / measured"])) for row in rows if row["measured (s)"]]
    write(
        "router",
        "Predicted and measured seconds of a fit, and the choice of method='auto'",
        f"{COMMAND} --steps {given.steps} --limit {given.limit:g}",
        rows,
        f"Rates: {r.product / 1e9:.3g} GFLOP/s in products, {r.element / 1e9:.3g} Gnumber/s in "
        f"exponentials. {given.steps} steps each; the choice is for 500. Predictions within 30 % "
        f"in {sum(v <= math.log(1.3) for v in off)} of {len(off)}, within a factor of two in "
        f"{sum(v <= math.log(2.0) for v in off)}.",
    )


if __name__ == "__main__":
    main()
