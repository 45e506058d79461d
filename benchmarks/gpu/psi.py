"""Psi statistics and the Bayesian bound on a GPU, q = 10, M = 100, D = 100.

Nothing here needs CuPy itself: any backend with fused psi statistics will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu.machine import Machine, Row, guarded, row
from gplvm_xp import backend
from gplvm_xp.kernels import RBF
from gplvm_xp.kernels.psi import RBFPsi
from gplvm_xp.objectives.bayesian import BayesianObjective, Observed

Q, M, D = 10, 100, 100
PAIRS = M * (M + 1) // 2
# float64 instructions of one row and pair, and how many a second a GPU of 1.67e13 issues.
INSTRUCTIONS = {"sums": 41, "column sums": 62, "row sums": 72}
RATE = 1.67e13
# What the bound and its gradient are to take, in seconds.
GOAL = {1_000_000: 0.15}


def psi_statistics(m: Machine, max_n: int) -> Iterator[Row]:
    """The three kernels against their instruction counts, the statistics, the bound."""
    for n in (10_000, 100_000, 1_000_000):
        if n <= 10 * max_n and m.fits(int((n * M) ** 0.5), 16.0):
            yield from _kernels(m, n)
            yield from _statistics(m, n)
            yield guarded("bound and gradient", n, partial(_bound, m, n))


def latents(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """theta, means, variances and inducing inputs whose statistics are not all zero."""
    rng = np.random.default_rng(0)
    theta = RBF(1.0, tuple(2.0 + 0.1 * np.arange(Q))).theta()
    return theta, rng.normal(size=(n, Q)), rng.uniform(0.1, 0.5, (n, Q)), rng.normal(size=(M, Q))


def _kernels(m: Machine, n: int) -> Iterator[Row]:
    rng, b = np.random.default_rng(0), m.b
    code = b.fused_psi(Q)
    rows = b.asarray(rng.uniform(0.1, 0.5, (n, 2 * Q + 2)))
    columns, g = b.asarray(rng.normal(size=(PAIRS, Q + 1))), b.asarray(rng.normal(size=PAIRS))
    works: dict[str, Callable[[], Any]] = {
        "sums": lambda: code.sums(rows, columns),
        "column sums": lambda: code.column_sums(rows, columns),
        "row sums": lambda: code.row_sums(rows, columns, g),
    }
    for what, work in works.items():
        floor = INSTRUCTIONS[what] * float(n) * PAIRS / RATE
        yield guarded(what, n, partial(_timed, m, what, n, work, floor=floor))


def _timed(m: Machine, what: str, n: int, work: Callable[[], Any], **more: Any) -> Row:
    seconds = m.median(work)
    if "floor" in more:
        more["ratio"] = seconds / more["floor"]
    return row(what, n, seconds, **more)


def _statistics(m: Machine, n: int) -> Iterator[Row]:
    b, psi = m.b, RBFPsi()
    where = tuple(b.asarray(a) for a in latents(n))
    g0, G1, G2 = b.full((n,), 0.5), b.full((n, M), 0.01), b.full((1, M, M), 0.001)
    forward, contract = partial(psi.forward, *where), partial(psi.contract, *where, g0, G1, G2)
    yield guarded("forward", n, partial(_timed, m, "forward", n, forward))
    yield guarded("contract", n, partial(_timed, m, "contract", n, contract))
    if n == 10_000:
        yield guarded("contract against NumPy", 500, partial(_against_numpy, m, 500))


def _against_numpy(m: Machine, n: int) -> Row:
    """The largest relative error of a result, beside the array form on NumPy."""
    rng = np.random.default_rng(1)
    given = (*latents(n), *(rng.normal(size=s) for s in ((n,), (n, M), (1, M, M))))
    results = []
    for b in (m.b, backend.get("numpy")):
        contracted = RBFPsi().contract(*(b.asarray(a) for a in given))
        results.append([b.to_host(a) for a in contracted])
    pairs = zip(*results, strict=True)
    error = max(float(np.linalg.norm(a - c) / np.linalg.norm(c)) for a, c in pairs)
    return row("contract against NumPy", n, error_norm=error)


def _bound(m: Machine, n: int) -> Row:
    theta, mu, S, Z = latents(n)
    Y = np.random.default_rng(2).normal(size=(n, D))
    data = Observed.of(m.b, Y - Y.mean(0))
    kernel = RBF(theta[0], tuple(theta[1:]))
    objective = BayesianObjective(kernel, data, mu, S, Z, 0.5, jitter=1e-6)
    x = objective.start()
    seconds = m.median(lambda: objective.value_and_grad(x), 3)
    f = float(m.b.to_host(objective.value_and_grad(x)[0]))
    more: Row = {}
    if n in GOAL:
        more = {"floor": GOAL[n], "ratio": seconds / GOAL[n], "note": "floor: the goal"}
    return row("bound and gradient", n, seconds, value=f, **more)


def every_psi_kernel(m: Machine) -> None:
    """The three kernels on small inputs; for the sanitizer."""
    theta, mu, S, Z = (m.b.asarray(a) for a in latents(301))
    g = (m.b.full(shape, 0.1) for shape in ((301,), (301, M), (1, M, M)))
    psi2 = RBFPsi().forward(theta, mu, S, Z).psi2
    m.b.to_host(m.b.xp.sum(psi2) + m.b.xp.sum(RBFPsi().contract(theta, mu, S, Z, *g).mu))


__all__ = ["every_psi_kernel", "psi_statistics"]
