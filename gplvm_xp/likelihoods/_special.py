"""Functions of one variable that several likelihoods need, without cancellation.

``b`` is the backend of the arguments. Formulas and their sources: derivations/likelihoods.md.
"""

from __future__ import annotations

import math

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend

# From here on the continued fraction of the normal hazard needs few levels, and the direct formula
# has lost too many digits of the fourth derivative.
_TAIL, _LEVELS = 8.0, 12
# From here on Stirling's series has converged.
_LARGE = 30.0


def log_exposure(b: Backend, exposure: Array) -> Array:
    """ln n, and a large negative number where n = 0, so that 0 · ln 0 is 0."""
    tiny = b.xp.finfo(exposure.dtype).smallest_normal
    return b.xp.log(b.xp.where(exposure > tiny, exposure, tiny))


def normal_density(b: Backend, z: Array) -> Array:
    """φ(z)."""
    return b.xp.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)


def log_ndtr_derivatives(b: Backend, z: Array) -> tuple[Array, Array, Array, Array]:
    """First to fourth derivative of ln Φ(z).

    With h = φ/Φ, a = z + h, b = z + 2h, h₁ = −ha: h, h₁, h(ab − 1),
    h₁(ab − 1) + h[(1 + h₁)b + a(1 + 2h₁)], and h = √(2/π)/erfcx(−z/√2). For z → −∞ these cancel
    (the last as z⁸), so that for x = −z > 8 they come from the continued fraction of Mills' ratio,
    t_n = n/(x + t_{n+1}): h = x + t₁ and, since t_n′ = −t_n (t_{n+1} − t_n), every derivative is a
    polynomial in t₁ and the differences of the t_n, which do not cancel.
    """
    xp = b.xp
    far = z < -_TAIL
    # Above 40, h is 0 in double precision; there and in the tail a product could overflow.
    near = xp.where(far, -_TAIL, xp.where(z > 40.0, 40.0, z))
    h = math.sqrt(2.0 / math.pi) / b.special("erfcx", near * -math.sqrt(0.5))
    a, c = near + h, near + 2.0 * h
    h1 = -h * a
    bend = a * c - 1.0
    direct = h, h1, h * bend, h1 * bend + h * ((1.0 + h1) * c + a * (1.0 + 2.0 * h1))

    x = xp.where(far, -z, _TAIL)
    # The fixed point of one level starts the recursion better than 0.
    t = 2.0 * (_LEVELS + 1) / (xp.sqrt(x * x + 4.0 * (_LEVELS + 1)) + x)
    for n in range(_LEVELS, 4, -1):
        t = n / (x + t)
    t4 = 4.0 / (x + t)
    t3 = 3.0 / (x + t4)
    t2 = 2.0 / (x + t3)
    t1 = 1.0 / (x + t2)
    d1, d2, d3 = t2 - t1, t3 - t2, t4 - t3
    e1, e2 = t1 * d1 - t2 * d2, t2 * d2 - t3 * d3  # d1′ and d2′
    g1 = t2 * (d2 * d2 - e2) - t1 * (d1 * d1 - e1)  # d1″
    hazard = x + t1
    tail = (
        hazard,
        -hazard * t1,
        t1 * (d1 * d1 - e1),
        t1 * (d1 * d1 * d1 - 3.0 * d1 * e1 + g1),
    )
    one, two, three, four = (xp.where(far, s, r) for r, s in zip(direct, tail, strict=True))
    return one, two, three, four


def log_rising(b: Backend, k: Array, r: Array) -> Array:
    """ln Γ(k + r) − ln Γ(r) for k ≥ 0, r > 0.

    For large r the difference of Stirling's series, (k + r − ½) log1p(k/r) + k ln r − k + …, which
    keeps the digits that the difference of two large numbers would lose.
    """
    xp = b.xp
    large = r > _LARGE
    s = xp.where(large, r, _LARGE)
    total = s + k
    series = (total - 0.5) * xp.log1p(k / s) + k * (xp.log(s) - 1.0)
    series = series + (_stirling(total) - _stirling(s))
    small = xp.where(large, 1.0, r)
    return xp.where(large, series, b.special("gammaln", k + small) - b.special("gammaln", small))


def log_gamma_rest(b: Backend, x: Array) -> Array:
    """ln Γ(x) − x ln x + x for x > 0; for large x ½ ln(2π/x) + 1/(12x) − …"""
    xp = b.xp
    large = x > _LARGE
    s = xp.where(large, x, _LARGE)
    series = 0.5 * xp.log(2.0 * math.pi / s) + _stirling(s)
    small = xp.where(large, 1.0, x)
    return xp.where(large, series, b.special("gammaln", small) - small * (xp.log(small) - 1.0))


def digamma_rising(b: Backend, k: Array, r: Array) -> Array:
    """ψ(k + r) − ψ(r), the derivative of :func:`log_rising` in r; its large-r form likewise."""
    xp = b.xp
    large = r > _LARGE
    s = xp.where(large, r, _LARGE)
    total = s + k
    series = xp.log1p(k / s) + 0.5 * k / (s * total)
    series = series + (_stirling_slope(total) - _stirling_slope(s))
    small = xp.where(large, 1.0, r)
    return xp.where(large, series, b.special("digamma", k + small) - b.special("digamma", small))


def _stirling(x: Array) -> Array:
    """ln Γ(x) − (x − ½) ln x + x − ½ ln 2π, for x ≥ 30."""
    q = 1.0 / (x * x)
    return (1.0 / 12.0 - q * (1.0 / 360.0 - q * (1.0 / 1260.0 - q / 1680.0))) / x


def _stirling_slope(x: Array) -> Array:
    """The derivative of :func:`_stirling`."""
    q = 1.0 / (x * x)
    return -q * (1.0 / 12.0 - q * (1.0 / 120.0 - q * (1.0 / 252.0 - q / 240.0)))


__all__ = [
    "digamma_rising",
    "log_exposure",
    "log_gamma_rest",
    "log_ndtr_derivatives",
    "log_rising",
    "normal_density",
]
