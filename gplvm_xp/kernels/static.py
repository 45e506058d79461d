"""Kernels that do not look at the inputs: a constant (bias) and white noise."""

from __future__ import annotations

from abc import abstractmethod
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
class _Static(Kernel):
    """k = σ² M with a matrix M that depends on nothing but which points are the same."""

    variance: float = 1.0
    fixed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.blocks()

    def blocks(self) -> tuple[Block, ...]:
        return leaf_blocks(self, "variance")

    def with_theta(self, theta: Sequence[float] | np.ndarray) -> Self:
        return replace(self, variance=flat_numbers(theta)[0])

    def takes_blocks(self) -> bool:
        return True

    def check(self, q: int) -> None:
        """Any number of dimensions will do."""

    def scale_blocks(self, q: int) -> tuple[tuple[int, frozenset[int]], ...]:
        return ()

    def cuda(self, q: int) -> CudaPair | None:
        return CudaPair(type(self).__name__, (), 1)

    @abstractmethod
    def _pattern(self, X: Array, Z: Array | None) -> Array:
        """M, (..., n, m)."""

    def _gram(self, theta: Array, X: Array, Z: Array | None) -> Array:
        return theta[0] * self._pattern(X, Z)

    def _gram_pullback(self, theta: Array, X: Array, Z: Array | None) -> tuple[Array, Pullback]:
        xp = backend.of(X).xp
        pattern = self._pattern(X, Z)

        def pullback(G: Array) -> Gradients:
            gtheta = xp.reshape(xp.sum(G * pattern), (1,))
            return gtheta, xp.zeros_like(X), None if Z is None else xp.zeros_like(Z)

        return theta[0] * pattern, pullback

    def _gram_jvp(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Array:
        return dtheta[0] * self._pattern(X, Z)

    def _input_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        return backend.of(X).zeros((X.shape[0], (X if Z is None else Z).shape[0], X.shape[1]))

    def _theta_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        return self._pattern(X, Z)[None, :, :]

    def diag_pullback(self, theta: Array, X: Array) -> tuple[Array, DiagPullback]:
        xp = backend.of(X).xp

        def pullback(g: Array) -> tuple[Array, Array]:
            return xp.reshape(xp.sum(g), (1,)), xp.zeros_like(X)

        return theta[0] * xp.ones_like(X[:, 0]), pullback


@dataclass(frozen=True)
class Constant(_Static):
    """k = σ² for every pair: a shared unknown offset of the outputs (the bias kernel).

    Parameters
    ----------
    variance : float
        σ², in squared units of Y.
    fixed : tuple of str
        ``("variance",)`` to leave it alone in fits.
    """

    def _pattern(self, X: Array, Z: Array | None) -> Array:
        return backend.of(X).full((*X.shape[:-1], (X if Z is None else Z).shape[-2]), 1.0)


@dataclass(frozen=True)
class White(_Static):
    """k(x_i, x_j) = σ² δ_ij among the same points; 0 between two different sets of points.

    Parameters
    ----------
    variance : float
        σ², in squared units of Y.
    fixed : tuple of str
        ``("variance",)`` to leave it alone in fits.
    """

    def _pattern(self, X: Array, Z: Array | None) -> Array:
        b = backend.of(X)
        if Z is not None:
            return b.zeros((*X.shape[:-1], Z.shape[-2]))
        eye = b.eye(X.shape[-2])
        return eye if X.ndim == 2 else b.xp.broadcast_to(eye, (*X.shape[:-2], *eye.shape))


__all__ = ["Constant", "White"]
