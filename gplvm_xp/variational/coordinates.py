"""From a covariance parameter to a flat vector that may be any real numbers, to second order.

Chain rule: gradient = Jᵀ g, and H_flat u = Jᵀ H[J u] + (dJᵀ)[u] g. The second term is not zero for
positive parameters.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.posteriors.base import Form


@dataclass(frozen=True)
class Coordinates:
    """How θ of some shape lies in a flat vector.

    Parameters
    ----------
    form : {"free", "positive", "lower", "symmetric"}
        See :class:`gplvm_xp.posteriors.Covariance`. Positive numbers are stored as logarithms,
        triangles and symmetric matrices as their lower triangles, row by row.
    shape : tuple of int
        Of θ without leading axes.
    """

    form: Form
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        if self.form in ("lower", "symmetric"):
            n = self.shape[0]
            return n * (n + 1) // 2
        return math.prod(self.shape)

    def pack(self, theta: Array) -> Array:
        """θ (..., *shape) → (..., size)."""
        xp = backend.of(theta).xp
        if self.form == "positive":
            return xp.log(self._flat(theta))
        return self._lower(theta) if self._matrix else self._flat(theta)

    def unpack(self, x: Array) -> Array:
        """(..., size) → θ (..., *shape)."""
        if self.form == "positive":
            x = backend.of(x).xp.exp(x)
        return self._fill(x, mirrored=self.form == "symmetric") if self._matrix else self._shape(x)

    def direction(self, theta: Array, u: Array) -> Array:
        """J u: a flat direction as one in θ."""
        if self.form == "positive":
            return theta * self._shape(u)
        return self._fill(u, mirrored=self.form == "symmetric") if self._matrix else self._shape(u)

    def gradient(self, theta: Array, g: Array) -> Array:
        """Jᵀ g: a gradient (or an HVP) in θ as a flat one."""
        xp = backend.of(g).xp
        if self.form == "positive":
            return self._flat(theta * g)
        if self.form == "symmetric":
            # An off-diagonal entry stands for two of the matrix.
            g = 2.0 * g - xp.eye(g.shape[-1], dtype=g.dtype, device=backend.of(g).device) * g
        return self._lower(g) if self._matrix else self._flat(g)

    def second(self, theta: Array, g: Array, u: Array) -> Array:
        """(dJᵀ)[u] g: zero except for logarithms, where it is θ∘g∘u."""
        xp = backend.of(u).xp
        return self._flat(theta * g) * u if self.form == "positive" else xp.zeros_like(u)

    def dual(self, theta: Array, v: Array) -> Array:
        """J⁻ᵀ v: a flat gradient as one in θ, for a metric that is known there."""
        b = backend.of(v)
        if self.form == "positive":
            return self._shape(v) / theta
        if self.form == "symmetric":
            V = self._fill(v, mirrored=True)
            return 0.5 * (V + b.eye(self.shape[0]) * V)
        return self._fill(v, mirrored=False) if self._matrix else self._shape(v)

    def coordinates(self, theta: Array, M: Array) -> Array:
        """J⁻¹ M: a direction in θ as a flat one."""
        if self.form == "positive":
            return self._flat(M / theta)
        return self._lower(M) if self._matrix else self._flat(M)

    # -- private ---------------------------------------------------------------------------------

    @property
    def _matrix(self) -> bool:
        return self.form in ("lower", "symmetric")

    def _flat(self, a: Array) -> Array:
        lead = a.shape[: a.ndim - len(self.shape)]
        return backend.of(a).xp.reshape(a, (*lead, math.prod(self.shape)))

    def _shape(self, x: Array) -> Array:
        return backend.of(x).xp.reshape(x, (*x.shape[:-1], *self.shape))

    def _lower(self, A: Array) -> Array:
        b = backend.of(A)
        where, _, _ = _places(self.shape[0], b)
        return b.xp.take(self._flat(A), where, axis=-1)

    def _fill(self, x: Array, mirrored: bool) -> Array:
        b = backend.of(x)
        _, once, twice = _places(self.shape[0], b)
        zero = b.xp.zeros((*x.shape[:-1], 1), dtype=x.dtype, device=b.device)
        padded = b.xp.concat([x, zero], axis=-1)
        return self._shape(b.xp.take(padded, twice if mirrored else once, axis=-1))


@functools.lru_cache(maxsize=64)
def _places(n: int, b: Backend) -> tuple[Array, Array, Array]:
    """Index vectors on the device: lower entries of a flat matrix; the entry of the triangle at
    each place of a matrix, with the end for "zero", and mirrored."""
    i, j = np.tril_indices(n)
    number = np.full((n, n), i.size)
    number[i, j] = np.arange(i.size)
    both = number.copy()
    both[j, i] = number[i, j]
    put = b.xp.asarray
    return (
        put(i * n + j, device=b.device),
        put(number.ravel(), device=b.device),
        put(both.ravel(), device=b.device),
    )


__all__ = ["Coordinates"]
