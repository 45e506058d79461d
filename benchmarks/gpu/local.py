"""Local likelihoods and second order on a GPU: the goal is a nearest-neighbour gradient of 10⁶ rows
(R = 32, D = 50, q = 2) in 0.25 s.

Nothing here needs CuPy itself: any backend will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from benchmarks.gpu.machine import Machine, Row, guarded, row
from gplvm_xp import backend
from gplvm_xp.backend import Backend
from gplvm_xp.kernels import RBF
from gplvm_xp.neighbours import maxmin, nearest, predecessors
from gplvm_xp.objectives import ExactObjective, groups_of
from gplvm_xp.objectives.exact_point import ExactPoint
from gplvm_xp.objectives.local import Term, conditional, joint
from gplvm_xp.objectives.local_sums import Blocks, Summed, summed
from gplvm_xp.priors import Gaussian

Q, D, R = 2, 50, 32
GOAL = {1_000_000: 0.25}


def local_likelihoods(m: Machine, max_n: int) -> Iterator[Row]:
    """A pass over all rows as terms of a nearest-neighbour likelihood, and as centres of blocks."""
    for n in (10_000, 100_000, 1_000_000):
        if n <= 10 * max_n:
            yield guarded("nearest-neighbour gradient", n, partial(_conditional, m, n))
            yield guarded("blocks of neighbours", n, partial(_joint, m, n))
            yield guarded("brute-force neighbours", n, partial(_neighbours, m, n))
    yield guarded("terms against NumPy", 500, partial(_against_numpy, m, 500))


def hessian_of_latents(m: Machine, max_n: int) -> Iterator[Row]:
    """A Hessian-vector product of the exact objective beside its gradient."""
    for n in (2000, 10_000, 20_000):
        if n <= max_n and m.fits(n, 4.0):
            yield guarded("Hessian-vector product", n, partial(_hvp, m, n))


def _rows(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, Q)), rng.normal(size=(n, D))


def _sum(
    b: Backend, X: np.ndarray, Y: np.ndarray, index: np.ndarray, term: Term
) -> Callable[[], Summed]:
    kernel = RBF(1.0, 0.5)
    blocks = Blocks.of(b, index, *Y.shape)
    given = (b.asarray(kernel.theta()), b.scalar(0.5), b.asarray(X), b.asarray(Y))
    return partial(summed, kernel, *given, blocks, term)


def _timed(m: Machine, what: str, n: int, index: np.ndarray, term: Term) -> Row:
    work = _sum(m.b, *_rows(n), index, term)
    seconds = m.median(lambda: work().X, 3)
    more: Row = {"note": f"{seconds / n * 1e6:.3g} µs a block"}
    if term is conditional and n in GOAL:
        more |= {"floor": GOAL[n], "ratio": seconds / GOAL[n]}
    return row(what, n, seconds, **more)


def _conditional(m: Machine, n: int) -> Row:
    X, _ = _rows(n)
    order = maxmin(X)
    before = predecessors(X, order, R)
    index = np.concatenate([before, np.arange(n)[:, None]], axis=1)
    return _timed(m, "nearest-neighbour gradient", n, index, conditional)


def _joint(m: Machine, n: int) -> Row:
    return _timed(m, "blocks of neighbours", n, nearest(_rows(n)[0], R)[:, ::-1], joint)


def _neighbours(m: Machine, n: int) -> Row:
    X = m.b.asarray(_rows(n)[0])
    some = X[: min(n, 20_000), :]
    seconds = m.median(lambda: m.b.asarray(nearest(X, R, some).astype(float)), 3)
    return row("brute-force neighbours", n, seconds, note=f"of {some.shape[0]} rows")


def _against_numpy(m: Machine, n: int) -> Row:
    X, Y = _rows(n)
    index = nearest(X, R)[:, ::-1]
    error = 0.0
    for term in (conditional, joint):
        results = []
        for b in (m.b, backend.get("numpy")):
            work = _sum(b, X, Y, index, term)
            results.append([b.to_host(a) for a in work()])
        pairs = zip(*results, strict=True)
        error = max(error, *(float(np.linalg.norm(a - c) / np.linalg.norm(c)) for a, c in pairs))
    return row("terms against NumPy", n, error_norm=error)


def _hvp(m: Machine, n: int) -> Row:
    X, Y = _rows(n)
    fun = ExactObjective(
        RBF(1.0, 0.5),
        groups_of(m.b, Y[:, :12] - Y[:, :12].mean(0)),
        X,
        0.5,
        Gaussian(),
        jitter=1e-6,
    )
    x = fun.start()
    gradient = m.median(lambda: fun.value_and_grad(x)[1], 3)
    point = ExactPoint(fun, x)
    u = m.b.asarray(np.random.default_rng(1).normal(size=x.shape[0]))
    seconds = m.median(lambda: point.hvp(u), 3)
    note = f"{seconds / gradient:.2f} gradients, {4e-12 * n**3 / seconds:.3g} TFLOP/s"
    return row("Hessian-vector product", n, seconds, note=note)


def every_local_kernel(m: Machine) -> None:
    """Both kernels on small inputs; for the sanitizer."""
    X, Y = _rows(200)
    index = nearest(X, 20)[:, ::-1].copy()
    index[::7, :5] = -1
    for term in (conditional, joint):
        work = _sum(m.b, X, Y, index, term)
        m.b.to_host(work().X)


__all__ = ["every_local_kernel", "hessian_of_latents", "local_likelihoods"]
