"""Gaussian noise: everything in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.likelihoods import _checks
from gplvm_xp.likelihoods.base import Expected, Likelihood


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """y ~ N(f, τ²).

    ℓ = −½ ln 2πτ² − ((y − m)² + v)/2τ². An exposure is refused: give weights.

    Parameters
    ----------
    variance : float
        τ², in squared units of y; block ``gaussian.variance``.
    fixed : tuple of str
        ``("variance",)`` to leave it alone in fits.
    """

    variance: float = 1.0
    fixed: tuple[str, ...] = ()

    name: ClassVar[str] = "gaussian"
    parameters: ClassVar[tuple[str, ...]] = ("variance",)

    def check(self, y: np.ndarray, exposure: np.ndarray | None = None) -> None:
        _checks.numbers("y", y)
        _checks.no_exposure("Gaussian", exposure, "use weights for observations that count more")

    def varying(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        error = y - f
        return error * error * (-0.5 / self.theta_in(backend.of(f), theta)[0])

    def constant(
        self, y: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        b = backend.of(y)
        return -0.5 * b.xp.log(2.0 * math.pi * self.theta_in(b, theta)[0])

    def derivatives(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array, Array, Array]:
        b = backend.of(f)
        precision = 1.0 / self.theta_in(b, theta)[0]
        zero = b.xp.zeros_like(f)
        return (y - f) * precision, zero - precision, zero, zero

    def moments(
        self, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array]:
        b = backend.of(f)
        return f, b.xp.zeros_like(f) + self.theta_in(b, theta)[0]

    def expected_varying(
        self,
        y: Array,
        m: Array,
        v: Array,
        theta: Array | None = None,
        exposure: Array | None = None,
    ) -> Expected:
        b = backend.of(m)
        precision = 1.0 / self.theta_in(b, theta)[0]
        error, zero = y - m, b.xp.zeros_like(m)
        value = (error * error + v) * (-0.5 * precision)
        return Expected(
            value, error * precision, zero - 0.5 * precision, zero - precision, zero, zero
        )

    def expected_theta(
        self,
        y: Array,
        m: Array,
        v: Array,
        theta: Array | None = None,
        exposure: Array | None = None,
    ) -> Array:
        """∂ℓ/∂τ² = −1/(2τ²) + ((y − m)² + v)/(2τ⁴)."""
        precision = 1.0 / self.theta_in(backend.of(m), theta)[0]
        error = y - m
        slope = 0.5 * precision * (precision * (error * error + v) - 1.0)
        return slope[None, ...]

    def predict(
        self, m: Array, v: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array]:
        return m, v + self.theta_in(backend.of(m), theta)[0]

    def log_predictive(
        self,
        y: Array,
        m: Array,
        v: Array,
        theta: Array | None = None,
        exposure: Array | None = None,
    ) -> Array:
        """ln N(y; m, v + τ²)."""
        b = backend.of(m)
        total, error = v + self.theta_in(b, theta)[0], y - m
        return -0.5 * (b.xp.log(2.0 * math.pi * total) + error * error / total)


__all__ = ["Gaussian"]
