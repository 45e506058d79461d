"""The core of every likelihood with a logistic link: L(ψ) = −a ln(1 + e^−ψ) − b ln(1 + e^ψ).

Bernoulli: a = y, b = 1 − y. Binomial: a = y, b = N − y. Negative binomial: a = y, b = r. Written
with a and b, no term cancels for ψ → ±∞.
"""

from __future__ import annotations

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend


def shares(b: Backend, psi: Array) -> tuple[Array, Array, Array]:
    """σ(ψ), σ(−ψ) and their product, each to full relative precision."""
    xp = b.xp
    t = xp.exp(-xp.abs(psi))
    large = 1.0 / (1.0 + t)
    least = t * large
    up = psi >= 0.0
    return xp.where(up, large, least), xp.where(up, least, large), large * least


def log_shares(b: Backend, psi: Array, a: Array, c: Array) -> Array:
    """a ln σ(ψ) + c ln σ(−ψ), that is L with b = c."""
    xp = b.xp
    size = xp.abs(psi)
    # Of the two softplus functions one is log1p(e^−|ψ|), the other that plus |ψ|.
    return -(a + c) * xp.log1p(xp.exp(-size)) - xp.where(psi >= 0.0, c, a) * size


def derivatives(b: Backend, psi: Array, a: Array, c: Array) -> tuple[Array, Array, Array, Array]:
    """With ω = σ(1 − σ): aσ(−ψ) − cσ(ψ), −(a+c)ω, −(a+c)ω(1 − 2σ), −(a+c)ω(1 − 6ω)."""
    up, down, omega = shares(b, psi)
    second = -(a + c) * omega
    return a * down - c * up, second, second * (down - up), second * (1.0 - 6.0 * omega)


__all__ = ["derivatives", "log_shares", "shares"]
