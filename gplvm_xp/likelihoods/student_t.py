"""Heavy-tailed noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.likelihoods import _checks, quadrature
from gplvm_xp.likelihoods._special import digamma_rising, log_gamma_rest, log_rising
from gplvm_xp.likelihoods.base import Likelihood

# Nodes of the scale mixture, and how far into its tails they reach (in nats of its logarithm).
_MIXTURE_NODES, _MIXTURE_NATS = 256, 30.0


@dataclass(frozen=True)
class StudentT(Likelihood):
    """y = f + τ t with t of Student's distribution with ν degrees of freedom.

    Not log-concave: outliers lose influence, expected curvatures may be negative, and a fit may
    have several optima. With a = ντ², k = ν + 1, e = y − f: ln p = ln Γ(k/2) − ln Γ(ν/2) − ½ ln πa
    − (k/2) ln(1 + e²/a). For ν → ∞ it becomes :class:`Gaussian`. An exposure is refused.

    Parameters
    ----------
    df : float
        ν; block ``student_t.df``.
    scale : float
        τ, in units of y; block ``student_t.scale``. The variance is τ² ν/(ν − 2) where ν > 2.
    nodes : int
        Order of the quadrature. 450 (128 evaluations) gives ℓ to 1e-8 and the curvature, in units
        of 1/τ², to 1e-6 for v ≤ 5 ν τ².
    fixed : tuple of str
        Of "df" and "scale" what a fit leaves alone.
    """

    df: float = 4.0
    scale: float = 1.0
    nodes: int = 450
    fixed: tuple[str, ...] = ()

    name: ClassVar[str] = "student_t"
    parameters: ClassVar[tuple[str, ...]] = ("df", "scale")
    log_concave: ClassVar[bool] = False

    def check(self, y: np.ndarray, exposure: np.ndarray | None = None) -> None:
        _checks.numbers("y", y)
        _checks.no_exposure("StudentT", exposure, "use weights for observations that count more")

    def width(self, theta: Array | None = None) -> Array | float:
        """√ν τ: the poles of ln p are at y ± i√ν τ."""
        if theta is None:
            return math.sqrt(self.df) * self.scale
        return backend.of(theta).xp.sqrt(theta[0]) * theta[1]

    def varying(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        b = backend.of(f)
        df, scale = self._values(b, theta)
        z = (y - f) / scale
        return -0.5 * (df + 1.0) * b.xp.log1p(z * z / df)

    def constant(
        self, y: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        b = backend.of(y)
        df, scale = self._values(b, theta)
        rising = log_rising(b, b.scalar(0.5), 0.5 * df)
        return rising - 0.5 * b.xp.log(math.pi * df) - b.xp.log(scale)

    def derivatives(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array, Array, Array]:
        """With c = a/(a + e²) and d = e/(a + e²): kd, −k(c − ed)/(a + e²), −2kd(3c − ed)/(a + e²),
        6k(c² − 6c·ed + (ed)²)/(a + e²)²."""
        df, scale = self._values(backend.of(f), theta)
        # In units of √a, so that far outliers do not overflow.
        unit = scale * backend.of(f).xp.sqrt(df)
        z = (y - f) / unit
        c = 1.0 / (1.0 + z * z)
        d = z * c
        k = df + 1.0
        q, w = z * d, c / (unit * unit)
        return (
            k * d / unit,
            -k * (c - q) * w,
            -2.0 * k * d * (3.0 * c - q) * w / unit,
            6.0 * k * (c * c - 6.0 * c * q + q * q) * w * w,
        )

    def varying_theta(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        """∂ν: −½ ln(1 + z²/ν) + k z²/(2ν(ν + z²)); ∂τ: k z²/(τ(ν + z²)), with z = e/τ."""
        b = backend.of(f)
        df, scale = self._values(b, theta)
        z = (y - f) / scale
        ratio = z * z / df
        share = (df + 1.0) * ratio / (1.0 + ratio)
        return b.xp.stack([0.5 * (share / df - b.xp.log1p(ratio)), share / scale])

    def constant_theta(
        self, y: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        b = backend.of(y)
        df, scale = self._values(b, theta)
        rising = digamma_rising(b, b.scalar(0.5), 0.5 * df)
        slopes = b.xp.stack([0.5 * (rising - 1.0 / df), -1.0 / scale])
        return b.xp.reshape(slopes, (2, *(1,) * y.ndim))

    def moments(
        self, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array]:
        """f and τ² ν/(ν − 2); NaN where ν ≤ 1 has no mean, ∞ where ν ≤ 2 has no variance."""
        b = backend.of(f)
        df, scale = self._values(b, theta)
        more = b.xp.where(df > 2.0, df - 2.0, 1.0)
        variance = b.xp.where(df > 2.0, scale * scale * df / more, b.xp.inf)
        lost = b.xp.where(df > 1.0, b.xp.zeros_like(f), b.xp.nan)
        return f + lost, variance + lost

    def predict(
        self, m: Array, v: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array]:
        mean, variance = self.moments(m, theta)
        return mean, v + variance

    @np.errstate(all="ignore")
    def log_predictive(
        self,
        y: Array,
        m: Array,
        v: Array,
        theta: Array | None = None,
        exposure: Array | None = None,
    ) -> Array:
        """ln ∫ Gamma(λ; ν/2, ν/2) N(y; m, v + τ²/λ) dλ, p being a mixture of Gaussians.

        By equispaced nodes in u = ln λ, in which the integrand falls as e^((ν+1)u/2) to the left of
        its modes and faster to the right: one sum finds both the mode of the prior and that of an
        outlier.
        """
        b = backend.of(m)
        xp = b.xp
        df, scale = self._values(b, theta)
        error, noise = y - m, scale * scale
        k, nats = df + 1.0, _MIXTURE_NATS
        outlier = xp.log1p((error * error / noise - 1.0) / k)
        low = -(xp.where(outlier > 0.0, outlier, 0.0) + 2.0 * nats / k + 2.0 * xp.sqrt(nats / k))
        high = xp.log1p(2.0 * xp.sqrt(nats / df) + 2.0 * nats / df)
        half = 0.5 * df

        def parts() -> Iterator[Array]:
            for place in quadrature.columns(m, np.linspace(0.0, 1.0, _MIXTURE_NODES)):
                u = low + (high - low) * place
                variance = v + noise * xp.exp(-u)
                penalty = xp.log(variance) + error * error / variance
                yield half * (u - xp.expm1(u)) - 0.5 * penalty

        spacing = (high - low) / (_MIXTURE_NODES - 1)
        # (ν/2)^(ν/2) e^(−ν/2)/Γ(ν/2), and 1/√2π of the Gaussians.
        constant = -log_gamma_rest(b, half) - 0.5 * math.log(2.0 * math.pi)
        return quadrature.log_sum(m, parts()) + xp.log(spacing) + constant

    def _values(self, b: Backend, theta: Array | None) -> tuple[Array, Array]:
        values = self.theta_in(b, theta)
        return values[0], values[1]


__all__ = ["StudentT"]
