"""Coarse to fine against plain L-BFGS: seconds and full-size evaluations to one objective.

    python -m benchmarks.coarse_to_fine            # 4000 rows
    python -m benchmarks.coarse_to_fine --rows 2000 --max-iter 100

Both minimise the same objective from the same PCA start, with the same optimiser and settings. The
plain fit has ``--max-iter`` steps; the other one is timed until it is below the plain one's end.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np

from benchmarks.report import write
from gplvm_xp import GPLVM, datasets

COMMAND = "python -m benchmarks.coarse_to_fine"


class Trace:
    """Seconds, evaluations and objective of each step, and which size of problem it was of."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.steps: list[tuple[int, int, float, float]] = []

    def __call__(self, progress: Any) -> None:
        size = int(progress.x.shape[0])
        seconds = time.perf_counter() - self.began
        self.steps.append((size, progress.evaluations, float(progress.value), seconds))

    def full(self) -> list[tuple[int, int, float, float]]:
        """The steps of the largest problem."""
        largest = max(step[0] for step in self.steps)
        return [step for step in self.steps if step[0] == largest]


def fitted(Y: np.ndarray, max_iter: int, fine: bool, seed: int) -> tuple[GPLVM, Trace]:
    trace = Trace()
    model = GPLVM(2, max_iter=max_iter, coarse_to_fine=fine, random_state=seed, callback=trace)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(Y)
    return model, trace


def compare(name: str, Y: np.ndarray, max_iter: int, seed: int) -> list[dict[str, Any]]:
    """One row for each way."""
    plain, steps = fitted(Y, max_iter, False, seed)
    goal = float(plain.loss_curve_[-1])
    shape = f"{Y.shape[0]} × {Y.shape[1]}"
    begin = steps.full()[0]
    rows = [
        {
            "table": name,
            "rows × columns": shape,
            "way": "plain",
            "objective": goal,
            "seconds": steps.full()[-1][3],
            "full-size evaluations": steps.full()[-1][1],
            "first full-size objective": begin[2],
            "log-likelihood, nats": plain.log_likelihood_,
        }
    ]
    print(rows[-1], flush=True)
    fine, steps = fitted(Y, max_iter, True, seed)
    full = steps.full()
    there = next((step for step in full if step[2] <= goal), None)
    rows.append(
        {
            "table": name,
            "rows × columns": shape,
            "way": "coarse to fine",
            "objective": float(fine.loss_curve_[-1]),
            "seconds": full[-1][3],
            "full-size evaluations": full[-1][1],
            "first full-size objective": full[0][2],
            "log-likelihood, nats": fine.log_likelihood_,
            "seconds to the plain end": there and there[3],
            "evaluations to it": there and there[1],
            "times faster to it": there and rows[0]["seconds"] / there[3],
        }
    )
    print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--max-iter", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    tables = {"latent": datasets.make_latent(given.rows, D=12, q=2, seed=1, noise=0.3).Y}
    for name, load in (("vowels", datasets.fetch_vowels), ("digits", datasets.load_digits)):
        try:
            tables[name] = load().Y
        except (OSError, ImportError) as error:
            print(f"{name} is left out: {error}")
    rows = [
        row for name, Y in tables.items() for row in compare(name, Y, given.max_iter, given.seed)
    ]
    write(
        "coarse_to_fine",
        "Coarse to fine against plain L-BFGS-B: the exact model, q = 2, PCA start",
        f"{COMMAND} --rows {given.rows} --max-iter {given.max_iter} --seed {given.seed}",
        rows,
        "Objectives in nats, lower is better. Seconds of the coarse-to-fine way hold its smaller "
        "fits and the placing of rows; both ways stop after the same number of full-size steps, so "
        "that their ends differ: the column to compare is the time to the plain fit's end.",
    )


if __name__ == "__main__":
    main()
