"""Averages over a Gaussian: nodes, weights, and sums over them with memory of O(N).

Two rules for N(0, 1). *Gauss-Hermite* is exact for polynomials and best for functions without
nearby poles, exponentials included. *Equispaced* nodes with weights exp(−x²/2), the trapezoidal
rule, win where ln p has poles at a distance A√v off the real axis (logistic functions: π): their
error is of the order exp(−2πA/h) with the spacing h, against exp(−A√(4n + 2)) for Gauss-Hermite, so
that 64 equispaced nodes do what 200 of the others do at v = 10 (derivations/likelihoods.md).
Source: Trefethen & Weideman, The exponentially convergent trapezoidal rule (2014), section 5.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import numpy as np
from numpy.polynomial.hermite_e import hermegauss

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend

Rule: TypeAlias = Literal["gauss-hermite", "equispaced"]

# Beyond that many nodes NumPy's Gauss-Hermite weights overflow.
MOST_NODES = 256
_MODE_STEPS = 40
_TILTED_NODES = 100
_TILTED_REACH = 8.0


@functools.cache
def rule(kind: Rule, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for averages over N(0, 1), host float64, with moments 0, 1 and 2 exact.

    Gauss-Hermite nodes whose weight is below 1e-30 are left out: in single precision it would be 0,
    and 0 · ∞ is not. The equispaced ones end at ±(2πn)^⅓, which balances what is cut off against
    the error of the spacing for A = 1.
    """
    if kind == "gauss-hermite":
        x, w = hermegauss(nodes)
        x, w = x[w > 1e-30 * w.max()], w[w > 1e-30 * w.max()]
    else:
        end = (2.0 * math.pi * nodes) ** (1.0 / 3.0)
        x = np.linspace(-end, end, nodes)
        w = np.exp(-0.5 * x * x)
    w /= w.sum()
    x /= math.sqrt(w @ (x * x))
    x.flags.writeable = w.flags.writeable = False
    return x, w


def along(
    m: Array, v: Array, kind: Rule, nodes: int, powers: int = 1
) -> Iterator[tuple[Array, Array]]:
    """The nodes f = m + √v x of a rule, in blocks.

    Yields f (k, *m.shape) and the weights times 1, x, …, x^(powers−1), (powers, k); the k of all
    blocks sum to the number of nodes. Where v < 0, f is NaN.
    """
    b = backend.of(m)
    x, w = rule(kind, nodes)
    table = np.stack([w * x**p for p in range(powers)])
    root = b.xp.sqrt(v)
    start = 0
    for column in columns(m, x):
        stop = start + column.shape[0]
        yield m + root * column, b.asarray(table[:, start:stop])
        start = stop


def columns(like: Array, places: np.ndarray) -> Iterator[Array]:
    """Host numbers as arrays (k, 1, …, 1) that broadcast with ``like``.

    Few numbers at a time where that is large, so that memory is of its order; many where it is
    small, for the sake of the cost of a call.
    """
    b = backend.of(like)
    rows, cols = b.tile_shape(1024)
    # A quarter of the backend's own block, because several arrays of that size are alive at once.
    step = max(1, rows * cols // (4 * max(1, math.prod(like.shape))))
    for i in range(0, places.size, step):
        # A copy, because torch warns of memory that it must not write to.
        yield b.asarray(places[i : i + step].reshape(-1, *(1,) * like.ndim).copy())


def log_average(
    b: Backend, at: Callable[[Array], tuple[Array, Array, Array]], m: Array, v: Array
) -> Array:
    """ln E[exp L(f)] under f ~ N(m, v), for a concave L.

    In u = (f − m)/√v the integrand is exp(L − u²/2). Its mode u* comes from Newton steps, shortened
    where they do not climb; s² = 1/(1 − v L″) is its width there. The integral is then a sum over
    equispaced z with u = u* + s sinh z, up to |u − u*| = 8: dense at the mode, however narrow L is
    against the Gaussian, and wide enough for a one-sided tail, which falls at least as exp(−u²/2).

    Parameters
    ----------
    at : callable
        f → (L, L′, L″), of f's shape.
    m, v : arrays of one shape
        v = 0 gives L(m).
    """
    xp = b.xp
    root = xp.sqrt(v)

    def tilted(u: Array) -> tuple[Array, Array, Array]:
        value, first, second = at(m + root * u)
        return value - 0.5 * u * u, root * first - u, 1.0 - v * second

    u = xp.zeros_like(m)
    reach = xp.ones_like(m)
    top, slope, curve = tilted(u)
    for _ in range(_MODE_STEPS):
        step = slope / xp.where(curve > 0.5, curve, 0.5)
        step = xp.where(step > reach, reach, xp.where(step < -reach, -reach, step))
        trial = u + step
        found = tilted(trial)
        better = found[0] >= top  # not where it is NaN
        u = xp.where(better, trial, u)
        top = xp.where(better, found[0], top)
        slope = xp.where(better, found[1], slope)
        curve = xp.where(better, found[2], curve)
        reach = xp.where(better, 2.0 * reach, 0.25 * reach)
    width = 1.0 / xp.sqrt(xp.where(curve > 0.5, curve, 0.5))
    end = xp.asinh(_TILTED_REACH / width)
    total = xp.zeros_like(m)
    places = np.linspace(-1.0, 1.0, _TILTED_NODES)
    for place in columns(m, places):
        z = end * place
        value, _, _ = tilted(u + width * xp.sinh(z))
        total = total + xp.sum(xp.exp(value - top) * xp.cosh(z), axis=0)
    spacing = (2.0 / (_TILTED_NODES - 1)) * end * width
    return top + xp.log(total * spacing) - 0.5 * math.log(2.0 * math.pi)


__all__ = ["MOST_NODES", "Rule", "along", "columns", "log_average", "rule"]
