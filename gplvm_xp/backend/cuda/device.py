"""The backend of an NVIDIA GPU, with everything that needs the GPU injected.

This module knows no CUDA library: CuPy's namespace, launcher, BLAS and runtime come from
``gplvm_xp/backend/_cupy.py``, and the tests inject the emulator's, so that this code runs on the
CPU too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gplvm_xp._typing import Array, DType, Namespace
from gplvm_xp.backend.base import Backend
from gplvm_xp.backend.cuda import blocked
from gplvm_xp.backend.cuda.blocked import Blas, View
from gplvm_xp.backend.cuda.launcher import Launcher
from gplvm_xp.errors import NotEnoughMemoryError

if TYPE_CHECKING:
    from gplvm_xp.backend.cuda.fused import Fused, Mirror
    from gplvm_xp.backend.cuda.pairs import CudaPair


class Runtime(Protocol):
    """What the backend needs of the array library beyond its namespace."""

    @property
    def name(self) -> str:
        """The backend's name."""

    @property
    def out_of_memory(self) -> type[Exception]:
        """What an allocation raises that does not fit."""

    def address(self, a: Array) -> int:
        """Device address of the first element."""

    def get(self, a: Array) -> np.ndarray:
        """Copy to the host; waits."""

    def free_bytes(self) -> int | None:
        """Bytes that an allocation can still have on the current device."""


@dataclass(frozen=True)
class CudaBackend(Backend):
    """Overrides for arrays on a GPU; see :class:`~gplvm_xp.backend.base.Backend` for the contract.

    Arrays must live on the current CUDA device (``with cupy.cuda.Device(k):`` chooses it).

    Attributes
    ----------
    launcher : Launcher
        Compiles and launches the package's own kernels.
    blas : Blas
        Dense linear algebra on addresses.
    runtime : Runtime
        Addresses, copies and memory.
    factor_leaf, inverse_leaf : int
        Blocks up to this size go to the library whole.
    """

    launcher: Launcher
    blas: Blas
    runtime: Runtime
    factor_leaf: int = blocked.FACTOR_LEAF
    inverse_leaf: int = blocked.INVERSE_LEAF

    @property
    def name(self) -> str:
        return self.runtime.name

    # -- doors and creation ----------------------------------------------------------------------

    def asarray(self, a: Array, dtype: DType | None = None) -> Array:
        with self._room(getattr(a, "shape", ())):
            return super().asarray(a, dtype)

    def to_host(self, a: Array) -> np.ndarray:
        return self.runtime.get(a)

    def empty(self, shape: tuple[int, ...]) -> Array:
        with self._room(shape):
            return super().empty(shape)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        with self._room(shape):
            return super().zeros(shape)

    def full(self, shape: tuple[int, ...], value: float) -> Array:
        with self._room(shape):
            return super().full(shape, value)

    def eye(self, n: int) -> Array:
        with self._room((n, n)):
            return super().eye(n)

    def memory_available(self) -> int | None:
        return self.runtime.free_bytes()

    # -- dense linear algebra --------------------------------------------------------------------

    def cholesky(self, K: Array) -> tuple[Array, Array]:
        xp = self.xp
        K = xp.ascontiguousarray(K)
        n = K.shape[0]
        info = xp.zeros((blocked.slots(n, self.factor_leaf),), dtype=xp.int32, device=self.device)
        blocked.factor(self.blas, self._view(K), self.runtime.address(info), self.factor_leaf)
        # A NaN or an infinity in K need not stop potrf, but it always reaches a pivot.
        pivots = self.diagonal(K)
        return K, xp.all(info == 0) & xp.all((pivots > 0.0) & (pivots < xp.inf))

    def inverse_from_cholesky(self, L: Array) -> Array:
        L = self.xp.ascontiguousarray(L)
        size = min(L.shape[0], self.inverse_leaf)
        scratch = self.xp.empty((size, size), dtype=L.dtype, device=self.device)
        whole, pivots = self._view(scratch), self._diagonal_view(scratch)

        def identity(rows: int) -> View:
            scratch[...] = 0.0
            pivots[...] = 1.0
            return whole.block(0, rows, 0, rows)

        blocked.inverse(self.blas, self._view(L), identity, self.inverse_leaf)
        return L

    def solve_triangular(self, L: Array, B: Array, trans: bool = False) -> Array:
        Z, L = self._copy(B, L.dtype), self.xp.ascontiguousarray(L)
        if prod(Z.shape):
            self.blas.solve_left(self._view(L), trans, self._view(Z))
        return Z

    def cho_solve(self, L: Array, B: Array) -> Array:
        Z, L = self._copy(B, L.dtype), self.xp.ascontiguousarray(L)
        if prod(Z.shape):
            for trans in (False, True):
                self.blas.solve_left(self._view(L), trans, self._view(Z))
        return Z

    def rank_update(self, C: Array, A: Array, alpha: float, beta: float) -> Array:
        C, A = self.xp.ascontiguousarray(C), self._copy_if_needed(A, C.dtype)
        if not prod(A.shape):
            C *= beta
            return C
        a = self._view(A)
        blocked.update_lower(self.blas, alpha, a, False, a, True, beta, self._view(C))
        return C

    def complete(self, C: Array) -> Array:
        launcher: Any = self.launcher
        return _mirror(launcher, np.dtype(C.dtype).name)(self.xp.ascontiguousarray(C))

    def add_diagonal(self, C: Array, value: Array) -> Array:
        C = self.xp.ascontiguousarray(C)
        pivots = self._diagonal_view(C)
        pivots += value
        return C

    # -- custom kernels --------------------------------------------------------------------------

    def fused(self, code: CudaPair | None, q: int) -> Fused | None:
        from gplvm_xp.backend.cuda.fused import MAX_Q

        if code is None or not 1 <= q <= MAX_Q:
            return None
        launcher: Any = self.launcher
        return _fused(launcher, self.xp, code, q, np.dtype(self.dtype).name)

    # -- private ---------------------------------------------------------------------------------

    @contextmanager
    def _room(self, shape: tuple[int, ...]) -> Iterator[None]:
        try:
            yield
        except self.runtime.out_of_memory as error:
            wanted = prod(shape) * self.itemsize
            free = self.memory_available()
            left = "" if free is None else f", and {free / 2**30:.2f} GiB ({free} bytes) are free"
            raise NotEnoughMemoryError(
                f"an array of shape {tuple(shape)} needs {wanted / 2**30:.2f} GiB ({wanted} bytes) "
                f"on the {self.name} backend{left}; use fewer points, dtype='float32', or "
                "backend='numpy'"
            ) from error

    def _view(self, a: Array) -> View:
        rows, columns = a.shape
        # A stride of at least one keeps BLAS content where a matrix has no columns.
        return View(self.runtime.address(a), max(columns, 1), rows, columns, a.dtype.itemsize)

    def _diagonal_view(self, a: Array) -> Array:
        return self.xp.reshape(a, (-1,))[:: a.shape[0] + 1]

    def _copy(self, a: Array, dtype: DType) -> Array:
        with self._room(a.shape):
            out = self.xp.empty(a.shape, dtype=dtype, device=self.device)
        out[...] = a
        return out

    def _copy_if_needed(self, a: Array, dtype: DType) -> Array:
        a = self.xp.ascontiguousarray(a)
        return a if a.dtype == dtype else self.xp.astype(a, dtype)


@functools.lru_cache(maxsize=8)
def _mirror(launcher: Any, dtype: str) -> Mirror:
    from gplvm_xp.backend.cuda.fused import Mirror

    return Mirror(launcher, np.dtype(dtype))


@functools.lru_cache(maxsize=128)
def _fused(launcher: Any, xp: Namespace, code: CudaPair, q: int, dtype: str) -> Fused:
    """One object for each tree: an evaluation must not assemble the sources again."""
    from gplvm_xp.backend.cuda.fused import Fused

    return Fused(launcher, xp, code, q, np.dtype(dtype))


__all__ = ["CudaBackend", "Runtime"]
