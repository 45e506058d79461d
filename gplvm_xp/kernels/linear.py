"""The linear kernel k = Σ_a α_a x_a z_a: with noise, dual probabilistic PCA."""

from __future__ import annotations

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
from gplvm_xp.params import Block


@dataclass(frozen=True)
class Linear(Kernel):
    """k(x, z) = Σ_a α_a x_a z_a.

    Gradients for any G: gX = (G Z) diag(α), gZ = (Gᵀ X) diag(α), gα_a = x_aᵀ G z_a.

    Parameters
    ----------
    variance : float or sequence of q floats
        α, in squared units of Y per squared unit of X: one, or one per dimension (ARD).
    fixed : tuple of str
        ``("variance",)`` to leave it alone in fits.
    """

    variance: float | tuple[float, ...] = 1.0
    fixed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "variance", per_dimension(self.variance))
        self.blocks()

    def blocks(self) -> tuple[Block, ...]:
        return leaf_blocks(self, "variance", many="variance")

    def with_theta(self, theta: Sequence[float] | np.ndarray) -> Self:
        values = flat_numbers(theta)
        return replace(self, variance=values if isinstance(self.variance, tuple) else values[0])

    def takes_blocks(self) -> bool:
        return True

    def check(self, q: int) -> None:
        check_dimensions("Linear", "variance", self.variance, q)

    def scale_blocks(self, q: int) -> tuple[tuple[int, frozenset[int]], ...]:
        return ((0, frozenset(range(q))),)

    def cuda(self, q: int) -> CudaPair | None:
        scales = len(self.variance) if isinstance(self.variance, tuple) else 1
        return CudaPair(f"Linear<{scales}>", (), scales)

    def _weights(self, per_dim: Array) -> Array:
        if isinstance(self.variance, tuple):
            return per_dim
        return backend.of(per_dim).xp.sum(per_dim, keepdims=True)

    def _gram(self, theta: Array, X: Array, Z: Array | None) -> Array:
        xp = backend.of(X).xp
        return (X * theta) @ xp.matrix_transpose(X if Z is None else Z)

    def _gram_pullback(self, theta: Array, X: Array, Z: Array | None) -> tuple[Array, Pullback]:
        xp = backend.of(X).xp

        def pullback(G: Array) -> Gradients:
            GZ = G @ (X if Z is None else Z)
            GX = xp.matrix_transpose(G) @ X
            gtheta = self._weights(over_points(X * GZ))
            if Z is None:
                return gtheta, (GZ + GX) * theta, None
            return gtheta, GZ * theta, GX * theta

        return self._gram(theta, X, Z), pullback

    def _gram_jvp(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Array:
        xp = backend.of(X).xp
        other, dother = (X, dX) if Z is None else (Z, dZ)
        left = dX * theta + X * dtheta
        return left @ xp.matrix_transpose(other) + (X * theta) @ xp.matrix_transpose(dother)

    def _input_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        other = X if Z is None else Z
        xp = backend.of(X).xp
        return xp.broadcast_to((other * theta)[None, :, :], (X.shape[0], *other.shape)) + 0.0

    def _theta_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        xp = backend.of(X).xp
        other = X if Z is None else Z
        products = X[:, None, :] * other[None, :, :]
        if not isinstance(self.variance, tuple):
            products = xp.sum(products, axis=2, keepdims=True)
        return xp.moveaxis(products, 2, 0)

    def diag_pullback(self, theta: Array, X: Array) -> tuple[Array, DiagPullback]:
        xp = backend.of(X).xp

        def pullback(g: Array) -> tuple[Array, Array]:
            return self._weights(xp.sum(X * X * g[:, None], axis=0)), 2.0 * g[:, None] * X * theta

        return xp.sum(X * X * theta, axis=1), pullback


__all__ = ["Linear"]
