"""Curvature of the periodic and the hexagonal kernel: distances and products of features.

A feature is a cosine and a sine of a phase, F = (cos ψ, sin ψ), so that turning F by a right angle
gives its derivative in ψ, and Ḟ = turn(F) ∘ ψ̇. A gradient gF in the features is fold(gF ∘ turn(F))
in the phases, and its change is fold(ġF ∘ turn(F) + gF ∘ turn(Ḟ)), as turn is linear
(docs/derivations/second_order.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.kernels import hexagonal
from gplvm_xp.kernels._fields import flat, over_points
from gplvm_xp.kernels.base import Gradients
from gplvm_xp.kernels.curvature.base import Curvature, Tangent
from gplvm_xp.kernels.curvature.radial import pull_moving
from gplvm_xp.kernels.hexagonal import Hexagonal
from gplvm_xp.kernels.periodic import Periodic
from gplvm_xp.kernels.radial import distances_jvp


@dataclass(frozen=True)
class PeriodicCurvature(Curvature):
    """Of :class:`~gplvm_xp.kernels.Periodic`: the squared exponential of features A = F/ℓ.

    The angle is ω x with ω = 2π/p; gX = ω fold(gA ∘ turn(A)), gp = −Σ X ∘ gX/p.
    """

    kernel: Periodic

    def tangent(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Tangent:
        b = backend.of(X)
        xp = b.xp
        variance, ell, omega = theta[0], theta[1:-1], 2.0 * math.pi / theta[-1]
        dvariance, rate, drift = dtheta[0], dtheta[1:-1] / ell, dtheta[-1] / theta[-1]
        turn, fold = self.kernel._turned, self.kernel._fold

        def move(points: Array, dpoints: Array) -> tuple[Array, Array]:
            F = self.kernel._features(theta, points)
            dangle = omega * (dpoints - points * drift)
            ratio = rate + xp.zeros_like(points)
            both = xp.concat([dangle, dangle], axis=-1)
            return F, turn(F) * both - F * xp.concat([ratio, ratio], axis=-1)

        A, dA = move(X, dX)
        B, dB = (None, None) if Z is None else move(Z, dZ)
        k = b.exp(b.squared_distances(A, B, -0.5))
        dk = -0.5 * (k * distances_jvp(A, B, dA, dB))

        def values() -> tuple[Array, Array]:
            return variance * k, dvariance * k + variance * dk

        def pullback(G: Array, dG: Array | None) -> Gradients:
            W, dW = G * k, G * dk
            if dG is not None:
                dW = dW + dG * k
            gvariance = xp.sum(dW)
            dW = -0.5 * (variance * dW + dvariance * W)
            first, second = pull_moving((-0.5 * variance) * W, dW, A, B, dA, dB)

            def points(
                P: Array, dP: Array, F: Array, dF: Array, g: Array, dg: Array
            ) -> tuple[Array, Array, Array, Array, Array]:
                gP = omega * fold(g * turn(F))
                dgP = omega * fold(dg * turn(F) + g * turn(dF)) - drift * gP
                along, dalong = over_points(fold(F * g)), over_points(fold(dF * g + F * dg))
                return dgP, along, dalong, xp.sum(P * gP), xp.sum(dP * gP + P * dgP)

            dgX, *sums = points(X, dX, A, dA, *first)
            dgZ = None
            if B is not None:
                dgZ, *more = points(Z, dZ, B, dB, *second)
                sums = [a + c for a, c in zip(sums, more, strict=True)]
            along, dalong, turned, dturned = sums
            if theta.shape[0] == 3:
                along, dalong = (xp.sum(a, keepdims=True) for a in (along, dalong))
            per_scale = (along * rate - dalong) / ell
            gperiod = (turned * drift - dturned) / theta[-1]
            ends = (xp.reshape(a, (1,)) for a in (gvariance, gperiod))
            return xp.concat([next(ends), per_scale, next(ends)]), dgX, dgZ

        return Tangent(values, pullback)


@dataclass(frozen=True)
class HexagonalCurvature(Curvature):
    """Of :class:`~gplvm_xp.kernels.Hexagonal`: a product of features times an envelope.

    With V = σ² G ∘ e^{−u/2}, phases (x − c) Uᵀ and M = Σ_i g_phase_i ⊗ (x_i − c):
    gX = gA/ℓ + g_phase U, gP = −⟨M, U⟩/P, gφ = ⟨M, ∂U/∂φ⟩, and ∂²U/∂φ² = −U.
    """

    kernel: Hexagonal

    def tangent(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Tangent:
        b = backend.of(X)
        xp = b.xp
        variance, period, ell = theta[0], theta[1], theta[3]
        dvariance, dturn = dtheta[0], dtheta[2]
        drift, rate = dtheta[1] / period, dtheta[3] / ell
        p = self.kernel._parts(theta, X, Z)
        U, turned = self.kernel._directions(theta)
        dU, dturned = dturn * turned - drift * U, -dturn * U - drift * turned
        turn, fold = hexagonal._turn, hexagonal._fold

        def move(A: Array, F: Array, dpoints: Array) -> tuple[Array, Array]:
            dphase = dpoints @ xp.matrix_transpose(U) + ell * (A @ xp.matrix_transpose(dU))
            return dpoints / ell - rate * A, turn(F) * xp.concat([dphase, dphase], axis=-1)

        dA, dF = move(p.A, p.F, dX)
        H, dH, dB = p.F, dF, None
        if p.B is not None and p.H is not None:
            H = p.H
            dB, dH = move(p.B, H, dZ)
        du = distances_jvp(p.A, p.B, dA, dB)
        denvelope = -0.5 * (p.envelope * du)
        dwaves = dF @ xp.matrix_transpose(H) + p.F @ xp.matrix_transpose(dH)
        k, dk = p.waves * p.envelope, dwaves * p.envelope + p.waves * denvelope

        def values() -> tuple[Array, Array]:
            return variance * k, dvariance * k + variance * dk

        def pullback(G: Array, dG: Array | None) -> Gradients:
            W, dW, V, dV = G * k, G * dk, G * p.envelope, G * denvelope
            if dG is not None:
                dW, dV = dW + dG * k, dV + dG * p.envelope
            gvariance = xp.sum(dW)
            dW, dV = variance * dW + dvariance * W, variance * dV + dvariance * V
            V = variance * V
            first, second = pull_moving((-0.5 * variance) * W, -0.5 * dW, p.A, p.B, dA, dB)
            right, left = b.thin_products(
                V, xp.concat([p.F, dF], axis=-1), xp.concat([H, dH], axis=-1)
            )
            more, others = b.thin_products(dV, p.F, H)

            def points(
                A: Array, dP: Array, vA: Array, F: Array, vF: Array,
                g: Array, dg: Array, gF: Array, dgF: Array,
            ) -> tuple[Array, Array, Array, Array, Array]:  # fmt: skip
                phase = fold(gF * turn(F))
                dphase = fold(dgF * turn(F) + gF * turn(vF))
                dgP = (dg - rate * g) / ell + dphase @ U + phase @ dU
                across = xp.matrix_transpose(flat(phase))
                M = ell * (across @ flat(A))
                dM = ell * (xp.matrix_transpose(flat(dphase)) @ flat(A)) + across @ flat(dP)
                return dgP, M, dM, xp.sum(A * g), xp.sum(vA * g + A * dg)

            ours = (right[..., :6], right[..., 6:] + more)
            theirs = (left[..., :6], left[..., 6:] + others)
            if p.B is None:
                ours = (ours[0] + theirs[0], ours[1] + theirs[1])
            dgX, *sums = points(p.A, dX, dA, p.F, dF, *first, *ours)
            dgZ = None
            if p.B is not None:
                dgZ, *rest = points(p.B, dZ, dB, H, dH, *second, *theirs)
                sums = [a + c for a, c in zip(sums, rest, strict=True)]
            M, dM, along, dalong = sums
            gtheta = xp.stack(
                [
                    gvariance,
                    (drift * xp.sum(M * U) - xp.sum(dM * U + M * dU)) / period,
                    xp.sum(dM * turned + M * dturned),
                    (along * rate - dalong) / ell,
                ]
            )
            return gtheta, dgX, dgZ

        return Tangent(values, pullback)


__all__ = ["HexagonalCurvature", "PeriodicCurvature"]
