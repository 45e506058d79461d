"""The hexagonal kernel: rate maps of grid cells, and anything else that repeats on a triangle grid.

The mean of three plane waves 60° apart, times a squared exponential envelope. With u_j the
directions, κ the wave number and φ(x) = (cos κ u_j·x, sin κ u_j·x)/√3, the mean of the cosines of a
difference is φ(x)·φ(z): one matrix product over six columns. Gradients are those of that product
and of the radial envelope, each times the other factor (docs/derivations/hexagonal.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend.cuda.pairs import CudaPair
from gplvm_xp.kernels._fields import flat, flat_numbers, leaf_blocks
from gplvm_xp.kernels.base import DiagPullback, Gradients, Kernel, Pullback
from gplvm_xp.kernels.radial import distances_jvp, pull_distances, scaled
from gplvm_xp.params import Block


class _Parts(NamedTuple):
    """One evaluation: points over ℓ, features, and the two factors, of X and of Z (or None)."""

    A: Array
    B: Array | None
    F: Array
    H: Array | None
    waves: Array
    envelope: Array


@dataclass(frozen=True)
class Hexagonal(Kernel):
    """k(x, z) = σ² ⅓ Σ_j cos(κ u_j·(x − z)) e^{−|x − z|²/2ℓ²}, κ = 4π/(√3 P), two input dimensions.

    j = 0, 1, 2 and u_j = (cos(φ + jπ/3), sin(φ + jπ/3)). A map drawn from it repeats on a
    triangular grid of spacing P: the firing fields of a grid cell. The grid persists over ℓ.

    Source: three gratings at 60°, Solstad, Moser & Einevoll (2006); as a covariance, on a grid of
    bins and with other envelopes, Rule et al. (2023).

    Parameters
    ----------
    variance : float
        σ².
    period : float
        P, in units of X: the distance of neighbouring fields.
    orientation : float
        φ, radians, any real number; the kernel repeats every π/3. The neighbours of a field lie in
        the directions φ + 30°, φ + 90°, ...
    lengthscale : float
        ℓ, in units of X: how far the grid keeps its phase.
    fixed : tuple of str
        Parameters that a fit leaves alone.
    """

    variance: float = 1.0
    period: float = 1.0
    orientation: float = 0.0
    lengthscale: float = 1.0
    fixed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.blocks()

    def blocks(self) -> tuple[Block, ...]:
        names = ("variance", "period", "orientation", "lengthscale")
        return leaf_blocks(self, *names, real="orientation")

    def with_theta(self, theta: Sequence[float] | np.ndarray) -> Self:
        variance, period, orientation, ell = flat_numbers(theta)
        return replace(
            self, variance=variance, period=period, orientation=orientation, lengthscale=ell
        )

    def takes_blocks(self) -> bool:
        return True

    def check(self, q: int) -> None:
        if q != 2:
            raise ValueError(
                f"Hexagonal takes inputs of 2 dimensions and these have {q}; wrap it in ActiveDims "
                "to choose two of them"
            )

    def scale_blocks(self, q: int) -> tuple[tuple[int, frozenset[int]], ...]:
        return ((1, frozenset(range(q))), (3, frozenset(range(q))))

    def cuda(self, q: int) -> CudaPair | None:
        return CudaPair("Hexagonal", (), 4)

    def _directions(self, theta: Array) -> tuple[Array, Array]:
        """κ u_j, (3, 2), and its derivative in φ."""
        b = backend.of(theta)
        xp = b.xp
        angle = theta[2] + (math.pi / 3.0) * xp.arange(3, dtype=theta.dtype, device=b.device)
        c, s = xp.cos(angle), xp.sin(angle)
        number = (4.0 * math.pi / math.sqrt(3.0)) / theta[1]
        return number * xp.stack([c, s], axis=1), number * xp.stack([-s, c], axis=1)

    def _parts(self, theta: Array, X: Array, Z: Array | None) -> _Parts:
        b = backend.of(X)
        xp = b.xp
        # About one centre: the phase of a far point would have few digits left.
        A, B = scaled(X, Z, theta[3:])
        U = theta[3] * xp.matrix_transpose(self._directions(theta)[0])

        def features(points: Array) -> Array:
            phase = points @ U
            return xp.concat([xp.cos(phase), xp.sin(phase)], axis=-1) / math.sqrt(3.0)

        F = features(A)
        H = None if B is None else features(B)
        waves = F @ xp.matrix_transpose(F if H is None else H)
        return _Parts(A, B, F, H, waves, b.exp(b.squared_distances(A, B, -0.5)))

    def _gram(self, theta: Array, X: Array, Z: Array | None) -> Array:
        p = self._parts(theta, X, Z)
        return theta[0] * (p.waves * p.envelope)

    def _gram_pullback(self, theta: Array, X: Array, Z: Array | None) -> tuple[Array, Pullback]:
        """K and the map G → gradients; W = G ∘ k/σ², V = G ∘ σ² e^{−u/2}.

        W through the distances as in the radial kernels; V through the product of features:
        g_phase = fold(V F_Z ∘ turn(F)), gX += g_phase (κ u), and with M = Σ_i g_phase_i ⊗ x_i,
        gP = −⟨M, κ u⟩/P, gφ = ⟨M, κ ∂u/∂φ⟩.
        """
        b = backend.of(X)
        xp = b.xp
        p = self._parts(theta, X, Z)
        U, turned = self._directions(theta)
        k = p.waves * p.envelope

        def pullback(G: Array) -> Gradients:
            gA, gB, total = pull_distances(G * k, p.A, p.B)
            V = theta[0] * (G * p.envelope)
            right, left = b.thin_products(V, p.F, p.F if p.H is None else p.H)
            scale = (-0.5 * theta[0]) / theta[3]

            def points(gA: Array, A: Array, F: Array, gF: Array) -> tuple[Array, Array, Array]:
                g = _fold(gF * _turn(F))
                M = xp.matrix_transpose(flat(g)) @ flat(A)
                return scale * gA + g @ U, M, xp.sum(A * gA)

            gX, M, along = points(gA, p.A, p.F, right + left if p.H is None else right)
            gZ = None
            if p.H is not None and p.B is not None:
                gZ, MZ, alongZ = points(gB, p.B, p.H, left)
                M, along = M + MZ, along + alongZ
            gtheta = xp.stack(
                [
                    total,
                    -xp.sum(M * U) * (theta[3] / theta[1]),
                    xp.sum(M * turned) * theta[3],
                    -scale * along,
                ]
            )
            return gtheta, gX, gZ

        return theta[0] * k, pullback

    def _gram_jvp(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Array:
        xp = backend.of(X).xp
        p = self._parts(theta, X, Z)
        U, turned = self._directions(theta)
        dU = dtheta[2] * turned - (dtheta[1] / theta[1]) * U

        def move(A: Array, F: Array, dpoints: Array) -> tuple[Array, Array]:
            dphase = dpoints @ xp.matrix_transpose(U) + theta[3] * (A @ xp.matrix_transpose(dU))
            dA = (dpoints - dtheta[3] * A) / theta[3]
            return dA, _turn(F) * xp.concat([dphase, dphase], axis=-1)

        dA, dF = move(p.A, p.F, dX)
        H, dB, dH = p.F, None, dF
        if p.B is not None and p.H is not None:
            dB, dH = move(p.B, p.H, dZ)
            H = p.H
        dwaves = dF @ xp.matrix_transpose(H) + p.F @ xp.matrix_transpose(dH)
        du = distances_jvp(p.A, p.B, dA, dB)
        return p.envelope * (
            dtheta[0] * p.waves + theta[0] * dwaves - (0.5 * theta[0]) * (p.waves * du)
        )

    def _differences(self, X: Array, Z: Array | None) -> Array:
        return X[:, None, :] - (X if Z is None else Z)[None, :, :]

    def _input_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        xp = backend.of(X).xp
        p = self._parts(theta, X, Z)
        d = self._differences(X, Z)
        U, _ = self._directions(theta)
        sines = xp.sin(d @ xp.matrix_transpose(U)) @ U
        slope = -(p.waves / theta[3] ** 2)[:, :, None] * d - sines / 3.0
        return (theta[0] * p.envelope)[:, :, None] * slope

    def _theta_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        xp = backend.of(X).xp
        p = self._parts(theta, X, Z)
        d = self._differences(X, Z)
        U, turned = self._directions(theta)
        phase, across = d @ xp.matrix_transpose(U), d @ xp.matrix_transpose(turned)
        sines = xp.sin(phase)
        outer = (theta[0] / 3.0) * p.envelope
        k = p.waves * p.envelope
        return xp.stack(
            [
                k,
                outer * xp.sum(sines * phase, axis=2) / theta[1],
                -outer * xp.sum(sines * across, axis=2),
                (theta[0] / theta[3] ** 3) * k * xp.sum(d * d, axis=2),
            ]
        )

    def diag_pullback(self, theta: Array, X: Array) -> tuple[Array, DiagPullback]:
        xp = backend.of(X).xp

        def pullback(g: Array) -> tuple[Array, Array]:
            gtheta = xp.concat([xp.reshape(xp.sum(g), (1,)), xp.zeros_like(theta[1:])])
            return gtheta, xp.zeros_like(X)

        return theta[0] * xp.ones_like(X[:, 0]), pullback


def _turn(F: Array) -> Array:
    """dφ/dphase: (cos, sin) → (−sin, cos)."""
    return backend.of(F).xp.concat([-F[..., 3:], F[..., :3]], axis=-1)


def _fold(values: Array) -> Array:
    """The sum of the cosine's and the sine's column of each wave."""
    return values[..., :3] + values[..., 3:]


__all__ = ["Hexagonal"]
