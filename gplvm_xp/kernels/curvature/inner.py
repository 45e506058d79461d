"""Curvature of the kernels of inner products, and of those that do not look at the inputs.

Linear: gX = (G Z) diag(α) is bilinear, and so is every other gradient. Polynomial: with
s = X Zᵀ + c and H = σ² d G ∘ s^{d−1}, gX = H Z, gc = Σ H and gσ² = Σ G ∘ s^d, where

    Ḣ = d s^{d−2} ∘ (σ̇² G ∘ s + σ² (d − 1) G ∘ ṡ + σ² Ġ ∘ s),    ṡ = Ẋ Zᵀ + X Żᵀ + ċ.
"""

from __future__ import annotations

from dataclasses import dataclass

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.kernels._fields import over_points
from gplvm_xp.kernels.base import Gradients
from gplvm_xp.kernels.curvature.base import Curvature, Tangent
from gplvm_xp.kernels.linear import Linear
from gplvm_xp.kernels.polynomial import Polynomial
from gplvm_xp.kernels.static import Constant, White


@dataclass(frozen=True)
class LinearCurvature(Curvature):
    """Of :class:`~gplvm_xp.kernels.Linear`."""

    kernel: Linear

    def tangent(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Tangent:
        def values() -> tuple[Array, Array]:
            K = self.kernel._gram(theta, X, Z)
            return K, self.kernel._gram_jvp(theta, X, Z, dtheta, dX, dZ)

        def pullback(G: Array, dG: Array | None) -> Gradients:
            (GZ, dGZ), (GX, dGX) = _products(G, dG, X, Z, dX, dZ)
            gtheta = self.kernel._weights(over_points(dX * GZ + X * dGZ))
            if Z is None:
                return gtheta, (dGZ + dGX) * theta + (GZ + GX) * dtheta, None
            return gtheta, dGZ * theta + GZ * dtheta, dGX * theta + GX * dtheta

        return Tangent(values, pullback)


@dataclass(frozen=True)
class PolynomialCurvature(Curvature):
    """Of :class:`~gplvm_xp.kernels.Polynomial`."""

    kernel: Polynomial

    def tangent(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Tangent:
        xp = backend.of(X).xp
        kernel, degree = self.kernel, self.kernel.degree
        other, dother = (X, dX) if Z is None else (Z, dZ)
        s = kernel._base(theta, X, Z)
        ds = dX @ xp.matrix_transpose(other) + X @ xp.matrix_transpose(dother) + dtheta[1]
        bend = kernel._power(s, max(degree - 2, 0))
        slope = kernel._power(s, degree - 1)
        power, dpower = slope * s, degree * (slope * ds)
        dslope = (degree - 1.0) * (bend * ds)

        def values() -> tuple[Array, Array]:
            return theta[0] * power, dtheta[0] * power + theta[0] * dpower

        def pullback(G: Array, dG: Array | None) -> Gradients:
            H = (theta[0] * degree) * (G * slope)
            dH = degree * (G * (dtheta[0] * slope + theta[0] * dslope))
            gvariance = xp.sum(G * dpower)
            if dG is not None:
                dH = dH + (theta[0] * degree) * (dG * slope)
                gvariance = gvariance + xp.sum(dG * power)
            (_, dHZ), (_, dHX) = _products(H, dH, X, Z, dX, dZ)
            gtheta = xp.stack([gvariance, xp.sum(dH)])
            return (gtheta, dHZ + dHX, None) if Z is None else (gtheta, dHZ, dHX)

        return Tangent(values, pullback)


@dataclass(frozen=True)
class StaticCurvature(Curvature):
    """Of :class:`~gplvm_xp.kernels.Constant` and :class:`~gplvm_xp.kernels.White`."""

    kernel: Constant | White

    def tangent(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Tangent:
        xp = backend.of(X).xp
        pattern = self.kernel._pattern(X, Z)

        def pullback(G: Array, dG: Array | None) -> Gradients:
            gtheta = xp.zeros_like(theta)
            if dG is not None:
                gtheta = xp.reshape(xp.sum(dG * pattern), (1,))
            return gtheta, xp.zeros_like(X), None if Z is None else xp.zeros_like(Z)

        return Tangent(lambda: (theta[0] * pattern, dtheta[0] * pattern), pullback)


def _products(
    W: Array, dW: Array | None, X: Array, Z: Array | None, dX: Array, dZ: Array | None
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """W Z and Wᵀ X, each with its change as W, X and Z move; Z None is X. dW None is none."""
    b = backend.of(X)
    xp = b.xp
    q = X.shape[-1]
    rows = xp.concat([X, dX], axis=-1)
    columns = rows if Z is None or dZ is None else xp.concat([Z, dZ], axis=-1)
    WZ, WX = b.thin_products(W, rows, columns)
    dWZ, dWX = WZ[..., q:], WX[..., q:]
    if dW is not None:
        more, others = b.thin_products(dW, X, X if Z is None else Z)
        dWZ, dWX = dWZ + more, dWX + others
    return (WZ[..., :q], dWZ), (WX[..., :q], dWX)


__all__ = ["LinearCurvature", "PolynomialCurvature", "StaticCurvature"]
