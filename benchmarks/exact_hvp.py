"""The exact objective's Hessian-vector product (HVP) beside its gradient, and its flop rate.

One process, one core; product, gradient and a plain n × n matrix product in turn, medians over
rounds of CPU time, which other programs on the machine disturb least. A product at a new point
needs its factorisation and inverse first; in a search that is one gradient for many products, and
it is not counted here.

    python -m benchmarks.exact_hvp            # the table
    python -m benchmarks.exact_hvp --quick    # small, nothing written
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.threads import child, limited, median_ratio

COMMAND = "python -m benchmarks.exact_hvp"
SIZES = ((500, 12), (1000, 12), (2000, 12), (1000, 400), (1000, 2000))


def problem(n: int, outputs: int) -> Any:
    """Noisy smooth functions of two latents, at the latents themselves."""
    import numpy as np

    from gplvm_xp import backend
    from gplvm_xp.kernels import RBF
    from gplvm_xp.objectives import ExactObjective, groups_of
    from gplvm_xp.priors import Gaussian

    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 2))
    Y = np.sin(2.0 * X @ rng.standard_normal((2, outputs)) + rng.uniform(0.0, 6.0, outputs))
    Y += 0.1 * rng.standard_normal(Y.shape)
    b = backend.get("numpy")
    return ExactObjective(RBF(1.0, 0.7), groups_of(b, Y - Y.mean(0)), X, 0.05, Gaussian())


def flops(n: int, outputs: int) -> float:
    """Of the matrix products of one HVP, as in docs/derivations/second_order.md."""
    columns = min(n, outputs)
    return 3.0 * n**3 + 5.0 * n * n * columns if 4 * columns < n else (4.0 * n + columns) * n * n


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU time of one call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def row(n: int, outputs: int, rounds: int) -> dict[str, Any]:
    """One line of the table."""
    import numpy as np

    from gplvm_xp.objectives.exact_point import ExactPoint

    fun = problem(n, outputs)
    b, x = fun.backend, fun.start()
    rng = np.random.default_rng(1)
    u, A = rng.standard_normal(x.shape), rng.standard_normal((n, n))
    point = ExactPoint(fun, x)
    works = {
        "hvp": lambda: point.hvp(u),
        "gradient": lambda: fun.value_and_grad(x),
        "dgemm": lambda: b.product(A, A),
    }
    times: dict[str, list[float]] = {name: [cpu_seconds(work)] for name, work in works.items()}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(cpu_seconds(work))
    times = {name: each[1:] for name, each in times.items()}
    one = median(times["hvp"])
    rate, plain = flops(n, outputs) / one / 1e9, 2.0 * n**3 / median(times["dgemm"]) / 1e9
    return {
        "n": n,
        "D": outputs,
        "q": 2,
        "HVP (ms)": 1e3 * one,
        "gradient (ms)": 1e3 * median(times["gradient"]),
        "HVP / gradient": median_ratio(times, "hvp", "gradient"),
        "flops of the HVP / n³": flops(n, outputs) / n**3,
        "GFLOP/s": rate,
        "GFLOP/s of dgemm": plain,
        "of dgemm's rate": rate / plain,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small, nothing written")
    parser.add_argument("--rounds", type=int, default=11, help="rounds (11)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        n, outputs = map(int, given.one.split(","))
        with limited(1):
            print(json.dumps(row(n, outputs, given.rounds)))
        return
    sizes, rounds = (((300, 12),), 3) if given.quick else (SIZES, given.rounds)
    rows = []
    for n, outputs in sizes:
        arguments = ["--one", f"{n},{outputs}", "--rounds", str(rounds)]
        rows.append(child("benchmarks.exact_hvp", arguments, 1))
        print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    if given.quick:
        return
    from benchmarks.report import write

    write(
        "exact_hvp",
        "One exact Hessian-vector product and one gradient, float64, one core",
        COMMAND,
        rows,
        "RBF kernel with latents, variance, lengthscale and noise all learned. Flops are those of "
        "the matrix products only: 3 n³ + 5 n² D, or 4 n³ + n² min(D, n) where 4 D >= n. The "
        "gradient's are n³ + O(n² D). dgemm is an n × n product by the same library in the same "
        "rounds. Times are CPU time of the one thread.",
    )


if __name__ == "__main__":
    main()
