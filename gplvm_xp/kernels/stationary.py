"""The radial kernels on offer: a profile κ(u), its slope, and the same two as a line of CUDA.

κ′ is the derivative in u, the scaled squared distance, and finite at u = 0 for each. Matérn-1/2 has
no such derivative and is not offered for latent inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.kernels.radial import Bend, Radial


@dataclass(frozen=True)
class RBF(Radial):
    """Squared exponential, κ = e^{−u/2}; infinitely smooth.

    See :class:`Radial` for the parameters. Source: Rasmussen & Williams (2006), eq. 4.9.
    """

    factor = -0.5
    snippet = "k = exp(T(-0.5) * u); dk = T(-0.5) * k;"

    def profile(self, b: Backend, u: Array, e: tuple[Array, ...]) -> Array:
        return b.exp(u)

    def profile_slope(
        self, b: Backend, u: Array, e: tuple[Array, ...]
    ) -> tuple[Array, Array, float]:
        k = self.profile(b, u, e)
        return k, k, -0.5

    def profile_bend(self, b: Backend, u: Array, e: tuple[Array, ...]) -> Bend:
        k = self.profile(b, u, e)
        return Bend(k, -0.5 * k, 0.25 * k)


@dataclass(frozen=True)
class Matern32(Radial):
    """Matérn-3/2, κ = (1 + r) e^{−r}, r = √(3u); once differentiable draws.

    See :class:`Radial` for the parameters. Source: Rasmussen & Williams (2006), eq. 4.17.
    """

    factor = 3.0
    snippet = "const T r = sqrt(T(3) * u), w = exp(-r); k = (T(1) + r) * w; dk = T(-1.5) * w;"

    def profile(self, b: Backend, u: Array, e: tuple[Array, ...]) -> Array:
        r = b.xp.sqrt(u)
        return (1.0 + r) * b.exp(-r)

    def profile_slope(
        self, b: Backend, u: Array, e: tuple[Array, ...]
    ) -> tuple[Array, Array, float]:
        r = b.xp.sqrt(u)
        w = b.exp(-r)
        return (1.0 + r) * w, w, -1.5

    def profile_bend(self, b: Backend, u: Array, e: tuple[Array, ...]) -> Bend:
        r = b.xp.sqrt(u)
        w = b.exp(-r)
        apart = r > 0.0
        return Bend(
            (1.0 + r) * w, -1.5 * w, b.xp.where(apart, 2.25 * w / b.xp.where(apart, r, 1.0), 0.0)
        )


@dataclass(frozen=True)
class Matern52(Radial):
    """Matérn-5/2, κ = (1 + r + r²/3) e^{−r}, r = √(5u); twice differentiable draws.

    See :class:`Radial` for the parameters. Source: Rasmussen & Williams (2006), eq. 4.17.
    """

    factor = 5.0
    snippet = (
        "const T r = sqrt(T(5) * u), w = exp(-r); "
        "k = (T(1) + r + r * r / T(3)) * w; dk = T(-5) / T(6) * (T(1) + r) * w;"
    )

    def profile(self, b: Backend, u: Array, e: tuple[Array, ...]) -> Array:
        r = b.xp.sqrt(u)
        return (1.0 + r + r * r / 3.0) * b.exp(-r)

    def profile_slope(
        self, b: Backend, u: Array, e: tuple[Array, ...]
    ) -> tuple[Array, Array, float]:
        r = b.xp.sqrt(u)
        w = b.exp(-r)
        return (1.0 + r + r * r / 3.0) * w, (1.0 + r) * w, -5.0 / 6.0

    def profile_bend(self, b: Backend, u: Array, e: tuple[Array, ...]) -> Bend:
        r = b.xp.sqrt(u)
        w = b.exp(-r)
        return Bend((1.0 + r + r * r / 3.0) * w, (-5.0 / 6.0) * (1.0 + r) * w, (25.0 / 12.0) * w)


@dataclass(frozen=True)
class RationalQuadratic(Radial):
    """κ = (1 + u/2α)^{−α}: a scale mixture of RBF kernels; α → ∞ is the RBF.

    See :class:`Radial` for the other parameters. Source: Rasmussen & Williams (2006), eq. 4.19.

    Parameters
    ----------
    alpha : float
        Shape α > 0; small values mix many lengthscales.
    """

    alpha: float = 1.0

    extras = ("alpha",)
    snippet = (
        "const T a = e[0], s = T(1) + u / (T(2) * a); k = exp(-a * log(s)); "
        "dk = T(-0.5) * k / s; de[0] = k * ((s - T(1)) / s - log(s));"
    )

    def profile(self, b: Backend, u: Array, e: tuple[Array, ...]) -> Array:
        return b.exp(-e[0] * b.xp.log1p(u / (2.0 * e[0])))

    def profile_slope(
        self, b: Backend, u: Array, e: tuple[Array, ...]
    ) -> tuple[Array, Array, float]:
        s = u / (2.0 * e[0])
        k = b.exp(-e[0] * b.xp.log1p(s))
        return k, k / (1.0 + s), -0.5

    def extra_slopes(self, b: Backend, u: Array, e: tuple[Array, ...]) -> tuple[Array, ...]:
        s = u / (2.0 * e[0])
        log = b.xp.log1p(s)
        return (b.exp(-e[0] * log) * (s / (1.0 + s) - log),)

    def profile_bend(self, b: Backend, u: Array, e: tuple[Array, ...]) -> Bend:
        s = u / (2.0 * e[0])
        log = b.xp.log1p(s)
        k = b.exp(-e[0] * log)
        ratio = s / (1.0 + s)
        slope = -0.5 * k / (1.0 + s)
        # ∂ ln κ/∂α, and through s = u/2α its own derivative s²/(α (1 + s)²).
        rate = ratio - log
        return Bend(
            k,
            slope,
            (-0.5 * (e[0] + 1.0) / e[0]) * slope / (1.0 + s),
            (k * rate,),
            (slope * (rate + ratio / e[0]),),
            ((k * (rate * rate + ratio * ratio / e[0]),),),
        )


__all__ = ["RBF", "Matern32", "Matern52", "RationalQuadratic"]
