"""Averages over a Gaussian: nodes, weights, and sums over them with memory of O(N).

Gauss-Hermite, of a high order and cut off. Where ln p has poles at a distance d off the real axis
(logistic functions: π), the error of order n is about exp(−d √((4n + 2)/v)), so that v = 10 needs
an order of 180; but all but 80 of its nodes have weights below 1e-20 of the largest, and are left
out (table in derivations/likelihoods.md). Source: Trefethen, Exactness of quadrature formulas, SIAM
Review 64 (2022).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array

MOST_NODES = 2000
_MODE_STEPS = 40
_TILTED_NODES = 100
_TILTED_REACH = 8.0


@functools.cache
def rule(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Hermite nodes and weights for averages over N(0, 1), host float64.

    Those of the order ``nodes`` with a weight of at least 1e-20 of the largest.
    """
    from scipy.special import roots_hermitenorm

    x, w = roots_hermitenorm(nodes)
    kept = w >= 1e-20 * w.max()
    x, w = x[kept], w[kept] / w[kept].sum()
    x.flags.writeable = w.flags.writeable = False
    return x, w


def along(m: Array, v: Array, nodes: int, powers: int = 1) -> Iterator[tuple[Array, Array]]:
    """The nodes f = m + √v x of the rule, in blocks.

    Yields f (k, *m.shape) and the weights times 1, x, …, x^(powers−1), (powers, k); the k of all
    blocks sum to the number of nodes that the rule keeps. Where v < 0, f is NaN.
    """
    b = backend.of(m)
    x, w = rule(nodes)
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
    value: Callable[[Array], Array],
    slopes: Callable[[Array], tuple[Array, Array]],
    m: Array,
    v: Array,
) -> Array:
    """ln E[exp L(f)] under f ~ N(m, v), for a concave L.

    In u = (f − m)/√v the integrand is exp(L − u²/2). Its mode u* is bracketed by steps that double,
    then found by Newton and bisection in turn; s² = 1/(1 − v L″) is its width there. The integral
    is a sum over equispaced z with u = u* + s sinh z, up to |u − u*| = 8: dense at the mode,
    however narrow L is against the Gaussian, and wide enough for a one-sided tail, which falls at
    least as exp(−u²/2).

    Parameters
    ----------
    value, slopes : callables
        f → L and f → (L′, L″), of f's shape.
    m, v : arrays of one shape
        v = 0 gives L(m).
    """
    xp = backend.of(m).xp
    root = xp.sqrt(v)

    def tilted(u: Array) -> tuple[Array, Array]:
        first, second = slopes(m + root * u)
        return root * first - u, 1.0 - v * second

    u = xp.zeros_like(m)
    low, high, reach = u - xp.inf, u + xp.inf, 1.0
    slope, curve = tilted(u)
    for i in range(_MODE_STEPS):
        low = xp.where(slope >= 0.0, u, low)
        high = xp.where(slope <= 0.0, u, high)
        middle, newton = 0.5 * (low + high), u + slope / curve
        if i % 2:
            middle = xp.where((newton > low) & (newton < high), newton, middle)
        outward = xp.where(slope > 0.0, u + reach, u - reach)
        u = xp.where(xp.isfinite(middle), middle, outward)
        reach *= 2.0
        slope, curve = tilted(u)
    width = 1.0 / xp.sqrt(xp.where(curve > 0.5, curve, 0.5))
    end = xp.asinh(_TILTED_REACH / width)
    places = np.linspace(-1.0, 1.0, _TILTED_NODES)

    def parts() -> Iterator[Array]:
        for place in columns(m, places):
            z = end * place
            at = u + width * xp.sinh(z)
            yield value(m + root * at) - 0.5 * at * at + xp.log(xp.cosh(z))

    spacing = (2.0 / (_TILTED_NODES - 1)) * end * width
    return log_sum(m, parts()) + xp.log(spacing) - 0.5 * math.log(2.0 * math.pi)


def log_sum(like: Array, parts: Iterator[Array]) -> Array:
    """ln Σ exp over the first axis of all parts, (k, *like.shape) each."""
    xp = backend.of(like).xp
    total = xp.zeros_like(like)
    top = total + xp.finfo(like.dtype).min
    for part in parts:
        higher = xp.max(part, axis=0)
        higher = xp.where(higher > top, higher, top)
        total = total * xp.exp(top - higher) + xp.sum(xp.exp(part - higher), axis=0)
        top = higher
    return top + xp.log(total)


__all__ = ["MOST_NODES", "along", "columns", "log_average", "log_sum", "rule"]
