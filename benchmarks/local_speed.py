"""A million local likelihoods with their gradients: time a block, beside the arithmetic.

n rows of a made table, each a block with its R − 1 nearest earlier rows (nearest neighbours), or a
block of its R nearest rows (neighbourhoods): one pass over all blocks with every gradient, stack by
stack. The count of operations is that of the algebra of a block, R³/3 + 3 R² + 4 R D or
R³ + 6 R² D, and 2 R² (q + 2) + 4 R² (q + 1) for its kernel; beside it the time that so many take in
products of large matrices, and what R² exponentials take.

    python -m benchmarks.local_speed             # 10⁶ rows, one thread and two
    python -m benchmarks.local_speed --quick     # 10⁴ rows, nothing written
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import Any

import numpy as np

from benchmarks.threads import child, seconds

R, D, Q = 32, 50, 2


def floors() -> tuple[float, float]:
    """Operations a second of a matrix product, and exponentials a second, on one thread."""
    from benchmarks.threads import limited

    rng = np.random.default_rng(0)
    A, x = rng.standard_normal((1000, 1000)), -rng.uniform(size=2**15)
    with limited(1):
        product = min(seconds(lambda: A @ A) for _ in range(10))
        exponential = min(seconds(lambda: np.exp(x)) for _ in range(100))
    return 2e9 / product, x.size / exponential


def run(n: int, kind: str) -> dict[str, Any]:
    """One pass in this process."""
    from gplvm_xp import backend
    from gplvm_xp.datasets import make_latent
    from gplvm_xp.kernels import RBF
    from gplvm_xp.neighbours import maxmin, nearest, predecessors
    from gplvm_xp.objectives import groups_of
    from gplvm_xp.objectives.local import joint
    from gplvm_xp.objectives.local_sums import Blocks, nearby, summed
    from gplvm_xp.objectives.vecchia import VecchiaObjective

    data = make_latent(n, D, Q, noise=0.1)
    X, Y = np.asarray(data.extra["latents"]), data.Y - data.Y.mean(axis=0)
    b = backend.get("numpy")
    kernel, noise = RBF(1.0, 1.0), 0.01
    begin = time.perf_counter()
    if kind == "nearest neighbours":
        order = maxmin(X)
        index = predecessors(X, order, R - 1)
        objective = VecchiaObjective(kernel, groups_of(b, Y), X, noise, order, index)
        x = objective.start()

        def work() -> Any:
            return objective.value_and_grad(x)
    else:
        blocks = Blocks.of(b, nearest(X, R)[nearby(X)], n, D)
        theta = kernel.theta()

        def work() -> Any:
            return summed(kernel, theta, b.scalar(noise), X, Y, blocks, joint)

    structure = time.perf_counter() - begin
    cpu, begin = time.process_time(), time.perf_counter()
    work()
    wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "likelihood": kind,
        "n": n,
        "structure (s)": structure,
        "one pass (s)": wall,
        "µs a block": 1e6 * wall / n,
        "processor µs a block": 1e6 * cpu / n,
        "peak of the process (MiB)": peak / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10⁴ rows, nothing written")
    parser.add_argument("--child", nargs=2, metavar=("N", "KIND"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(run(int(given.child[0]), given.child[1])))
        return
    n = 10_000 if given.quick else 1_000_000
    rate, exponentials = floors()
    kernel = 2 * R**2 * (Q + 2) + 4 * R**2 * (Q + 1)
    counts = {
        "nearest neighbours": R**3 / 3 + 3 * R**2 + 4 * R * D + kernel,
        "neighbourhoods": R**3 + 6 * R**2 * D + kernel,
    }
    rows = []
    for kind, operations in counts.items():
        for threads in (1, 2):
            row = child("benchmarks.local_speed", ["--child", str(n), kind], threads)
            row = {"likelihood": row["likelihood"], "threads": threads} | row
            row["operations a block"] = operations
            row["µs of these as matrix products"] = 1e6 * operations / rate
            row["µs of R² exponentials"] = 1e6 * R**2 / exponentials
            rows.append(row)
            print(row, flush=True)
    if given.quick:
        return
    from benchmarks.report import write

    write(
        "local_speed",
        "A million local likelihoods with their gradients",
        "python -m benchmarks.local_speed",
        rows,
        f"R = {R}, D = {D}, q = {Q}, an RBF kernel, float64. Structure: order, neighbours and row "
        f"numbers, before the pass. Matrix products run at {rate / 1e9:.0f} · 10⁹ operations a "
        "second on one thread, float64, 1000 × 1000. The peak holds the table (8 n D bytes), the "
        "row numbers of neighbours and what it took to find them.",
    )


if __name__ == "__main__":
    main()
