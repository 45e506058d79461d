"""Curvature of the radial kernels: the profile's second derivatives, everything else once.

With u = |a − b|², A = X/ℓ, B = Z/ℓ, W = σ² G ∘ κ′, and a dot for the derivative along the
direction (docs/derivations/second_order.md):

* Ȧ = Ẋ/ℓ − A ℓ̇/ℓ, u̇_ij = 2 (a_i − b_j)·(ȧ_i − ḃ_j);
* Ẇ = G ∘ (σ̇² κ′ + σ² (κ″ u̇ + Σ_e ė ∂κ′/∂e)) + Ġ ∘ σ² κ′;
* gA = 2 (A ∘ (W 1) − W B), ġA = 2 (Ȧ ∘ (W 1) − W Ḃ) + 2 (A ∘ (Ẇ 1) − Ẇ B);
* ġX = ġA/ℓ − gA ℓ̇/ℓ², and gℓ = −Σ A ∘ gA/ℓ gives ġℓ = −Σ (Ȧ ∘ gA + A ∘ ġA)/ℓ − gℓ ℓ̇/ℓ.
"""

from __future__ import annotations

from dataclasses import dataclass

from gplvm_xp import backend
from gplvm_xp._typing import Array, Namespace
from gplvm_xp.kernels._fields import over_points
from gplvm_xp.kernels.base import Gradients
from gplvm_xp.kernels.curvature.base import Curvature, Tangent
from gplvm_xp.kernels.radial import Radial, distances_jvp, scaled


@dataclass(frozen=True)
class RadialCurvature(Curvature):
    """Of a kernel whose :meth:`~gplvm_xp.kernels.Radial.profile_bend` is known."""

    kernel: Radial

    def tangent(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Tangent:
        b = backend.of(X)
        xp = b.xp
        variance, e, ell = self.kernel._split(theta)
        dvariance, de, dell = self.kernel._split(dtheta)
        rate = dell / ell
        A, B = scaled(X, Z, ell)
        dA = dX / ell - A * rate
        dB = None if B is None else dZ / ell - B * rate
        du = distances_jvp(A, B, dA, dB)
        p = self.kernel.profile_bend(b, b.squared_distances(A, B, self.kernel.factor), e)

        def values() -> tuple[Array, Array]:
            dk = p.slope * du
            for d, in_k in zip(de, p.extra, strict=True):
                dk = dk + d * in_k
            return variance * p.k, dvariance * p.k + variance * dk

        def pullback(G: Array, dG: Array | None) -> Gradients:
            # W and its change over σ²: what σ² does is linear, and left to the end.
            W = G * p.slope
            dW = (G * p.bend) * du
            for d, in_slope in zip(de, p.extra_slope, strict=True):
                dW = dW + d * (G * in_slope)
            if dG is not None:
                dW = dW + dG * p.slope
            (gA, dgA), (gB, dgB) = pull_moving(W, dW, A, B, dA, dB)
            gA, dgA = variance * gA, variance * dgA + dvariance * gA
            gB, dgB = variance * gB, variance * dgB + dvariance * gB
            along = over_points(A * gA)
            dalong = over_points(dA * gA + A * dgA)
            dgX = (dgA - gA * rate) / ell
            dgZ = None
            if B is not None and dB is not None:
                along = along + over_points(B * gB)
                dalong = dalong + over_points(dB * gB + B * dgB)
                dgZ = (dgB - gB * rate) / ell
            if ell.shape[0] == 1:
                along, dalong = (xp.sum(a, keepdims=True) for a in (along, dalong))
            head = [_sum(xp, W, du)]
            for i, in_k in enumerate(p.extra):
                total = _sum(xp, G, in_k)
                head[0] = head[0] + de[i] * total
                change = _sum(xp, G * p.extra_slope[i], du)
                for d, both in zip(de, p.extra_bend[i], strict=True):
                    change = change + d * _sum(xp, G, both)
                if dG is not None:
                    change = change + _sum(xp, dG, in_k)
                head.append(dvariance * total + variance * change)
            if dG is not None:
                head[0] = head[0] + _sum(xp, dG, p.k)
            return xp.concat([xp.stack(head), (along * rate - dalong) / ell]), dgX, dgZ

        return Tangent(values, pullback)

    def mixed(
        self, theta: Array, X: Array, Z: Array, G: Array, a: int
    ) -> tuple[list[Array], list[Array]]:
        # ∂²k/∂x_a∂x_c = σ² (4 κ″ Δ_a Δ_c + 2 κ′ δ_ac)/(ℓ_a ℓ_c), and the negative of it in z_c.
        b = backend.of(X)
        xp = b.xp
        variance, e, ell = self.kernel._split(theta)
        A, B = scaled(X, Z, ell)
        assert B is not None
        p = self.kernel.profile_bend(b, b.squared_distances(A, B, self.kernel.factor), e)
        lengths = ell + xp.zeros_like(X[0, :])
        bent = (-4.0 * variance * G) * p.bend * (A[:, a, None] - B[None, :, a])
        across, own = [], []
        for c in range(a + 1):
            part = bent if c == a else bent * (A[:, c, None] - B[None, :, c])
            if c == a:
                part *= A[:, a, None] - B[None, :, a]
                part -= (2.0 * variance * G) * p.slope
            part /= lengths[a] * lengths[c]
            across.append(part)
            own.append(-xp.sum(part, axis=1))
        return across, own


def pull_moving(
    W: Array, dW: Array, A: Array, B: Array | None, dA: Array, dB: Array | None
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Gradients in A and in B of Σ_ij W_ij |a_i − b_j|², and their change as all three move.

    Where B is None, the first pair holds both occurrences of A, and the second means nothing.
    """
    b = backend.of(A)
    xp = b.xp
    q = A.shape[-1]
    left = xp.concat([A, xp.ones_like(A[..., :1]), dA], axis=-1)
    right = left
    if B is not None and dB is not None:
        right = xp.concat([B, xp.ones_like(B[..., :1]), dB], axis=-1)
    ours, theirs = b.thin_products(W, left, right)
    ours_moved, theirs_moved = b.thin_products(dW, left[..., : q + 1], right[..., : q + 1])

    def side(own: Array, held: Array, moved: Array) -> tuple[Array, Array]:
        at, ones, velocity = own[..., :q], held[..., q : q + 1], own[..., q + 1 :]
        g = 2.0 * (at * ones - held[..., :q])
        dg = velocity * ones - held[..., q + 1 :] + at * moved[..., q:] - moved[..., :q]
        return g, 2.0 * dg

    first, second = side(left, ours, ours_moved), side(right, theirs, theirs_moved)
    if B is None:
        return (first[0] + second[0], first[1] + second[1]), second
    return first, second


def _sum(xp: Namespace, a: Array, b: Array) -> Array:
    """Σ a ∘ b, over all axes."""
    return xp.sum(xp.vecdot(a, b))


__all__ = ["RadialCurvature", "pull_moving"]
