"""Counts with an exponential link: everything but the predictive density in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.likelihoods import _checks
from gplvm_xp.likelihoods._special import log_exposure
from gplvm_xp.likelihoods.base import Expected, Likelihood


@dataclass(frozen=True)
class Poisson(Likelihood):
    """y ~ Poisson(n e^f) with exposure n.

    For a log-Gaussian Cox process y is the number of events in a cell and n the time or area that
    was observed there; a cell with n = 0 has y = 0 and adds nothing. With λ̄ = n exp(m + v/2),
    ℓ = y (m + ln n) − λ̄ − ln y!, and −ℓ_mm = −2ℓ_v = −2ℓ_mv = −4ℓ_vv = λ̄.
    """

    name: ClassVar[str] = "poisson"

    def check(self, y: np.ndarray, exposure: np.ndarray | None = None) -> None:
        y = _checks.counts(y, "for other numbers use another likelihood, such as Gaussian")
        if exposure is not None:
            _checks.exposures(exposure, y)

    def varying(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        return y * f - _rate(backend.of(f), f, exposure)

    def constant(
        self, y: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        b = backend.of(y)
        factorial = b.special("gammaln", y + 1.0)
        return -factorial if exposure is None else y * log_exposure(b, exposure) - factorial

    def derivatives(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array, Array, Array]:
        rate = _rate(backend.of(f), f, exposure)
        return y - rate, -rate, -rate, -rate

    def moments(
        self, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array]:
        rate = _rate(backend.of(f), f, exposure)
        return rate, rate

    def expected_varying(
        self,
        y: Array,
        m: Array,
        v: Array,
        theta: Array | None = None,
        exposure: Array | None = None,
    ) -> Expected:
        rate = _rate(backend.of(m), m + 0.5 * v, exposure)
        half = -0.5 * rate
        return Expected(y * m - rate, y - rate, half, -rate, half, 0.5 * half)

    @np.errstate(all="ignore")
    def predict(
        self, m: Array, v: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array]:
        """λ̄ and λ̄ + λ̄² (e^v − 1)."""
        b = backend.of(m)
        mean = _rate(b, m + 0.5 * v, exposure)
        return mean, mean + mean * mean * b.xp.expm1(v)


@np.errstate(all="ignore")
def _rate(b: Backend, f: Array, exposure: Array | None) -> Array:
    """n e^f; 0 where n = 0, even where e^f is infinite."""
    rate = b.xp.exp(f)
    return rate if exposure is None else b.xp.where(exposure > 0.0, exposure * rate, 0.0)


__all__ = ["Poisson"]
