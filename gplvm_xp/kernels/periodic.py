"""The periodic kernel, as a squared exponential on the circle.

−2 sin²(π d/p)/ℓ² = −½ |φ(x) − φ(z)|² with φ(x) = (cos(2πx/p), sin(2πx/p))/ℓ, so that the squared
distances come from one matrix product over 2q columns, and the gradients are those of the RBF in
φ followed by the chain rule: φ depends on x and p through x/p, hence gp = −Σ x gX / p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend.cuda.pairs import CudaPair
from gplvm_xp.kernels._fields import (
    check_dimensions,
    flat_numbers,
    leaf_blocks,
    over_points,
    per_dimension,
)
from gplvm_xp.kernels.base import DiagPullback, Gradients, Kernel, Pullback
from gplvm_xp.kernels.radial import distances_jvp, pull_distances
from gplvm_xp.params import Block


@dataclass(frozen=True)
class Periodic(Kernel):
    """k(x, z) = σ² exp(−2 Σ_a sin²(π (x_a − z_a)/p)/ℓ_a²).

    Source: MacKay (1998); Rasmussen & Williams (2006), eq. 4.31, one factor per dimension.

    Parameters
    ----------
    variance : float
        σ².
    lengthscale : float or sequence of q floats
        ℓ, dimensionless: relative to the circle's radius.
    period : float
        p, in units of X.
    fixed : tuple of str
        Parameters that a fit leaves alone.
    """

    variance: float = 1.0
    lengthscale: float | tuple[float, ...] = 1.0
    period: float = 1.0
    fixed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengthscale", per_dimension(self.lengthscale))
        self.blocks()

    def blocks(self) -> tuple[Block, ...]:
        return leaf_blocks(self, "variance", "lengthscale", "period", many="lengthscale")

    def with_theta(self, theta: Sequence[float] | np.ndarray) -> Self:
        variance, *ell, period = flat_numbers(theta)
        scale = tuple(ell) if isinstance(self.lengthscale, tuple) else ell[0]
        return replace(self, variance=variance, lengthscale=scale, period=period)

    def takes_blocks(self) -> bool:
        return True

    def check(self, q: int) -> None:
        check_dimensions("Periodic", "lengthscale", self.lengthscale, q)

    def scale_blocks(self, q: int) -> tuple[tuple[int, frozenset[int]], ...]:
        return ((2, frozenset(range(q))),)

    def cuda(self, q: int) -> CudaPair | None:
        scales = len(self.lengthscale) if isinstance(self.lengthscale, tuple) else 1
        return CudaPair(f"Periodic<{scales}>", (), 2 + scales)

    def _features(self, theta: Array, X: Array | None) -> Array | None:
        if X is None:
            return None
        xp = backend.of(X).xp
        angle = (2.0 * math.pi / theta[-1]) * X
        return xp.concat([xp.cos(angle) / theta[1:-1], xp.sin(angle) / theta[1:-1]], axis=-1)

    def _turned(self, F: Array) -> Array:
        """dφ/dangle: (cos, sin) → (−sin, cos)."""
        q = F.shape[-1] // 2
        return backend.of(F).xp.concat([-F[..., q:], F[..., :q]], axis=-1)

    def _fold(self, values: Array) -> Array:
        """Sum the cosine and the sine columns of each dimension."""
        q = values.shape[-1] // 2
        return values[..., :q] + values[..., q:]

    def _gram(self, theta: Array, X: Array, Z: Array | None) -> Array:
        b = backend.of(X)
        A, B = self._features(theta, X), self._features(theta, Z)
        return theta[0] * b.exp(b.squared_distances(A, B, -0.5))

    def _gram_pullback(self, theta: Array, X: Array, Z: Array | None) -> tuple[Array, Pullback]:
        b = backend.of(X)
        xp = b.xp
        A, B = self._features(theta, X), self._features(theta, Z)
        k = b.exp(b.squared_distances(A, B, -0.5))
        rate = 2.0 * math.pi / theta[-1]

        def pullback(G: Array) -> Gradients:
            gA, gB, total = pull_distances(G * k, A, B)
            gA, gB = (-0.5 * theta[0]) * gA, None if gB is None else (-0.5 * theta[0]) * gB
            gX = rate * self._fold(gA * self._turned(A))
            per_scale = -over_points(self._fold(A * gA))
            gperiod = -xp.sum(X * gX)
            gZ = None
            if B is not None and gB is not None:
                gZ = rate * self._fold(gB * self._turned(B))
                per_scale = per_scale - over_points(self._fold(B * gB))
                gperiod = gperiod - xp.sum(Z * gZ)
            if theta.shape[0] == 3:
                per_scale = xp.sum(per_scale, keepdims=True)
            head = xp.reshape(total, (1,))
            tail = xp.reshape(gperiod / theta[-1], (1,))
            return xp.concat([head, per_scale / theta[1:-1], tail]), gX, gZ

        return theta[0] * k, pullback

    def _gram_jvp(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Array:
        b = backend.of(X)

        def move(points: Array, dpoints: Array) -> tuple[Array, Array]:
            F = self._features(theta, points)
            dangle = (2.0 * math.pi / theta[-1]) * (dpoints - points * (dtheta[-1] / theta[-1]))
            ratio = dtheta[1:-1] / theta[1:-1] + b.xp.zeros_like(points)
            both = b.xp.concat([dangle, dangle], axis=-1)
            return F, self._turned(F) * both - F * b.xp.concat([ratio, ratio], axis=-1)

        A, dA = move(X, dX)
        B, dB = (None, None) if Z is None or dZ is None else move(Z, dZ)
        k = b.exp(b.squared_distances(A, B, -0.5))
        return k * (dtheta[0] - 0.5 * theta[0] * distances_jvp(A, B, dA, dB))

    def _sines(self, theta: Array, X: Array, Z: Array | None) -> tuple[Array, Array]:
        """sin²(πd/p) and sin(2πd/p) of every difference, (n, m, q) each."""
        xp = backend.of(X).xp
        other = X if Z is None else Z
        half = (math.pi / theta[-1]) * (X[:, None, :] - other[None, :, :])
        sine = xp.sin(half)
        return sine * sine, 2.0 * sine * xp.cos(half)

    def _input_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        K = self._gram(theta, X, Z)
        _, double = self._sines(theta, X, Z)
        return (-2.0 * math.pi / theta[-1]) * K[:, :, None] * double / theta[1:-1] ** 2

    def _theta_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        xp = backend.of(X).xp
        K = self._gram(theta, X, Z)
        other = X if Z is None else Z
        squares, double = self._sines(theta, X, Z)
        per_scale = 4.0 * K[:, :, None] * squares / theta[1:-1] ** 3
        if theta.shape[0] == 3:
            per_scale = xp.sum(per_scale, axis=2, keepdims=True)
        difference = X[:, None, :] - other[None, :, :]
        turn = xp.sum(double * difference / theta[1:-1] ** 2, axis=2)
        period = (2.0 * math.pi / theta[-1] ** 2) * K * turn
        return xp.concat(
            [(K / theta[0])[None, :, :], xp.moveaxis(per_scale, 2, 0), period[None, :, :]]
        )

    def diag_pullback(self, theta: Array, X: Array) -> tuple[Array, DiagPullback]:
        xp = backend.of(X).xp

        def pullback(g: Array) -> tuple[Array, Array]:
            gtheta = xp.concat([xp.reshape(xp.sum(g), (1,)), xp.zeros_like(theta[1:])])
            return gtheta, xp.zeros_like(X)

        return theta[0] * xp.ones_like(X[:, 0]), pullback


__all__ = ["Periodic"]
