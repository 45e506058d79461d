"""PyTorch: the few primitives where torch's own routine is better than the reference.

torch is never imported from here: its arrays bring the module along.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.backend.base import Backend, Special


@dataclass(frozen=True)
class TorchBackend(Backend):
    """Overrides for torch tensors; see :class:`~gplvm_xp.backend.base.Backend`."""

    @property
    def name(self) -> str:
        return "torch"

    def to_host(self, a: Array) -> np.ndarray:
        return np.asarray(a.detach().cpu().numpy())

    def cholesky(self, K: Array) -> tuple[Array, Array]:
        L, info = self.xp.linalg.cholesky_ex(self.complete(K))
        pivots = L.diagonal()
        ok = (info == 0) & self.xp.all(self.xp.isfinite(pivots))
        # Failure is a value here, and cholesky_inverse would raise at a pivot of zero.
        pivots.copy_(self.xp.where(ok, pivots, 1.0))
        return L, ok

    def solve_triangular(self, L: Array, B: Array, trans: bool = False) -> Array:
        factor = L.mT if trans else L
        return self.xp.linalg.solve_triangular(factor, B, upper=trans)

    def inverse_from_cholesky(self, L: Array) -> Array:
        return self.xp.cholesky_inverse(L)

    def factor(self, P: Array) -> tuple[Array, Array]:
        L, info = self.xp.linalg.cholesky_ex(P)
        finite = self.xp.all(self.xp.isfinite(self.xp.linalg.diagonal(L)), axis=-1)
        return L, (info == 0) & finite

    def solve_factor(self, L: Array, B: Array, trans: bool = False) -> Array:
        return self.xp.linalg.solve_triangular(L.mT if trans else L, B, upper=trans)

    def special(self, name: Special, a: Array) -> Array:
        return getattr(self.xp.special, name)(a)

    def sparse_matrix(
        self, rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, shape: tuple[int, int]
    ) -> Array:
        put = functools.partial(self.xp.asarray, device=self.device)
        places = [put(np.array(a, dtype=np.int64)) for a in (rows, columns)]
        return *places, self.asarray(np.array(weights)), shape[0]

    def sparse_times(self, S: Array, values: Array) -> Array:
        rows, columns, weights, size = S
        zero = self.xp.zeros((*values.shape[:-1], size), dtype=values.dtype, device=self.device)
        return zero.index_add(-1, rows, values[..., columns] * weights)


__all__ = ["TorchBackend"]
