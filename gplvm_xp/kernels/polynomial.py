"""The inhomogeneous polynomial kernel k = σ² (x·z + c)^d."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend.cuda.pairs import CudaPair
from gplvm_xp.kernels._fields import flat_numbers, leaf_blocks
from gplvm_xp.kernels.base import DiagPullback, Gradients, Kernel, Pullback
from gplvm_xp.params import Block


@dataclass(frozen=True)
class Polynomial(Kernel):
    """k(x, z) = σ² (x·z + c)^d.

    Gradients for any G, with s = X Zᵀ + c and H = σ² d G ∘ s^{d−1}: gX = H Z, gZ = Hᵀ X,
    gc = Σ H, gσ² = Σ G ∘ s^d. Source: Rasmussen & Williams (2006), section 4.2.2.

    Parameters
    ----------
    variance, bias : float
        σ² and c > 0.
    degree : int
        d ≥ 1; structure, not a parameter.
    fixed : tuple of str
        Parameters that a fit leaves alone.
    """

    variance: float = 1.0
    bias: float = 1.0
    degree: int = 2
    fixed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.degree, bool) or not isinstance(self.degree, int) or self.degree < 1:
            raise ValueError(f"degree={self.degree!r} was given; expected an integer of 1 or more")
        self.blocks()

    def blocks(self) -> tuple[Block, ...]:
        return leaf_blocks(self, "variance", "bias")

    def with_theta(self, theta: Sequence[float] | np.ndarray) -> Self:
        variance, bias = flat_numbers(theta)
        return replace(self, variance=variance, bias=bias)

    def takes_blocks(self) -> bool:
        return True

    def check(self, q: int) -> None:
        """Any number of dimensions will do."""

    def scale_blocks(self, q: int) -> tuple[tuple[int, frozenset[int]], ...]:
        return ((1, frozenset(range(q))),)

    def cuda(self, q: int) -> CudaPair | None:
        return CudaPair(f"Polynomial<{self.degree}>", (), 2)

    def _base(self, theta: Array, X: Array, Z: Array | None) -> Array:
        xp = backend.of(X).xp
        return X @ xp.matrix_transpose(X if Z is None else Z) + theta[1]

    def _power(self, s: Array, degree: int) -> Array:
        out = backend.of(s).xp.ones_like(s)
        for _ in range(degree):
            out = out * s
        return out

    def _gram(self, theta: Array, X: Array, Z: Array | None) -> Array:
        return theta[0] * self._power(self._base(theta, X, Z), self.degree)

    def _gram_pullback(self, theta: Array, X: Array, Z: Array | None) -> tuple[Array, Pullback]:
        xp = backend.of(X).xp
        s = self._base(theta, X, Z)
        slope = self._power(s, self.degree - 1)
        power = slope * s

        def pullback(G: Array) -> Gradients:
            H = (theta[0] * self.degree) * (G * slope)
            HZ = H @ (X if Z is None else Z)
            HX = xp.matrix_transpose(H) @ X
            gtheta = xp.stack([xp.sum(G * power), xp.sum(H)])
            return (gtheta, HZ + HX, None) if Z is None else (gtheta, HZ, HX)

        return theta[0] * power, pullback

    def _gram_jvp(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Array:
        xp = backend.of(X).xp
        other, dother = (X, dX) if Z is None else (Z, dZ)
        s = self._base(theta, X, Z)
        ds = dX @ xp.matrix_transpose(other) + X @ xp.matrix_transpose(dother) + dtheta[1]
        slope = self._power(s, self.degree - 1)
        return dtheta[0] * slope * s + (theta[0] * self.degree) * slope * ds

    def _input_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        slope = self._power(self._base(theta, X, Z), self.degree - 1)
        other = X if Z is None else Z
        return (theta[0] * self.degree) * slope[:, :, None] * other[None, :, :]

    def _theta_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        xp = backend.of(X).xp
        s = self._base(theta, X, Z)
        slope = self._power(s, self.degree - 1)
        return xp.stack([slope * s, (theta[0] * self.degree) * slope])

    def diag_pullback(self, theta: Array, X: Array) -> tuple[Array, DiagPullback]:
        xp = backend.of(X).xp
        s = xp.sum(X * X, axis=1) + theta[1]
        slope = self._power(s, self.degree - 1)

        def pullback(g: Array) -> tuple[Array, Array]:
            h = (theta[0] * self.degree) * g * slope
            return xp.stack([xp.sum(g * slope * s), xp.sum(h)]), 2.0 * h[:, None] * X

        return theta[0] * slope * s, pullback


__all__ = ["Polynomial"]
