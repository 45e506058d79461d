"""Overdispersed counts with an exponential link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.likelihoods import _checks, _logistic
from gplvm_xp.likelihoods._special import digamma_rising, log_exposure, log_rising
from gplvm_xp.likelihoods.base import Likelihood


@dataclass(frozen=True)
class NegativeBinomial(Likelihood):
    """Counts of mean μ = n e^f and variance μ + μ²/r, with exposure n and size r.

    With ψ = f + ln n − ln r: ln p = ln Γ(y + r) − ln Γ(r) − ln y! + y ln σ(ψ) + r ln σ(−ψ). For
    r → ∞ it becomes :class:`Poisson`; large r cost no digits.

    Parameters
    ----------
    size : float
        r; block ``negative_binomial.size``.
    nodes : int
        Order of the quadrature. 180 (80 evaluations) gives the curvature to 1e-9 of its size, or
        of 1, for v ≤ 10.
    fixed : tuple of str
        ``("size",)`` to leave it alone in fits.
    """

    size: float = 1.0
    nodes: int = 180
    fixed: tuple[str, ...] = ()

    name: ClassVar[str] = "negative_binomial"
    parameters: ClassVar[tuple[str, ...]] = ("size",)

    def check(self, y: np.ndarray, exposure: np.ndarray | None = None) -> None:
        y = _checks.counts(y, "for other numbers use another likelihood, such as Gaussian")
        if exposure is not None:
            _checks.exposures(exposure, y)

    def varying(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        b = backend.of(f)
        r = self.theta_in(b, theta)[0]
        return _logistic.log_shares(b, _psi(b, f, r, exposure), y, r)

    def constant(
        self, y: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        b = backend.of(y)
        return log_rising(b, y, self.theta_in(b, theta)[0]) - b.special("gammaln", y + 1.0)

    def derivatives(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array, Array, Array]:
        b = backend.of(f)
        r = self.theta_in(b, theta)[0]
        return _logistic.derivatives(b, _psi(b, f, r, exposure), y, r)

    def varying_theta(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        """ln σ(−ψ) + σ(ψ) − (y/r) σ(−ψ), since ∂ψ/∂r = −1/r."""
        b = backend.of(f)
        r = self.theta_in(b, theta)[0]
        psi = _psi(b, f, r, exposure)
        up, down, _ = _logistic.shares(b, psi)
        none, one = b.xp.zeros_like(r), b.xp.ones_like(r)
        slope = _logistic.log_shares(b, psi, none, one) + up - (y / r) * down
        return slope[None, ...]

    def constant_theta(
        self, y: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        b = backend.of(y)
        return digamma_rising(b, y, self.theta_in(b, theta)[0])[None, ...]

    @np.errstate(all="ignore")
    def moments(
        self, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array]:
        b = backend.of(f)
        mean = _mean(b, f, exposure)
        return mean, mean + mean * mean / self.theta_in(b, theta)[0]

    @np.errstate(all="ignore")
    def predict(
        self, m: Array, v: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array]:
        """μ̄ = n exp(m + v/2) and μ̄ + μ̄² (e^v − 1 + e^v/r)."""
        b = backend.of(m)
        r = self.theta_in(b, theta)[0]
        mean = _mean(b, m + 0.5 * v, exposure)
        return mean, mean + mean * mean * (b.xp.expm1(v) + b.xp.exp(v) / r)


def _psi(b: Backend, f: Array, r: Array, exposure: Array | None) -> Array:
    shift = -b.xp.log(r)
    return f + (shift if exposure is None else shift + log_exposure(b, exposure))


def _mean(b: Backend, f: Array, exposure: Array | None) -> Array:
    mean = b.xp.exp(f)
    return mean if exposure is None else b.xp.where(exposure > 0.0, exposure * mean, 0.0)


__all__ = ["NegativeBinomial"]
