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
from gplvm_xp.backend.base import Backend, Special
from gplvm_xp.backend.cuda import blocked
from gplvm_xp.backend.cuda.blocked import Blas, Stack, View
from gplvm_xp.backend.cuda.launcher import Launcher
from gplvm_xp.errors import NotEnoughMemoryError

if TYPE_CHECKING:
    from gplvm_xp.backend.cuda.fused import Fused, Mirror
    from gplvm_xp.backend.cuda.pairs import CudaPair
    from gplvm_xp.backend.cuda.psi import FusedPsi
    from gplvm_xp.backend.cuda.sparse import SparseTimes


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

    def special(self, name: Special, a: Array) -> Array:
        """A special function of every entry, in the array's dtype."""

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
        Addresses, copies, memory and special functions.
    factor_leaf, inverse_leaf : int
        Blocks up to this size go to the library whole.
    """

    launcher: Launcher
    blas: Blas
    runtime: Runtime
    factor_leaf: int = blocked.FACTOR_LEAF
    inverse_leaf: int = blocked.INVERSE_LEAF

    def __hash__(self) -> int:
        # CuPy's devices have no hash, and plans are memoised by backend.
        return hash((self.name, str(self.device), np.dtype(self.dtype).name))

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

    def factor(self, P: Array) -> tuple[Array, Array]:
        xp, n, count = self.xp, P.shape[-1], prod(P.shape[:-2])
        if P.ndim == 2 or not _in_one_call(count, n):
            return super().factor(P)
        L = self._copy(P, P.dtype)
        info = xp.zeros(P.shape[:-2], dtype=xp.int32, device=self.device)
        pointers, stack = self._stack(L, P.shape[:-2])
        self.blas.factor_many(stack, self.runtime.address(info))
        pivots = xp.linalg.diagonal(L)
        ok = (info == 0) & xp.all((pivots > 0.0) & (pivots < xp.inf), axis=-1)
        del pointers
        return xp.tril(L), ok

    def solve_factor(self, L: Array, B: Array, trans: bool = False) -> Array:
        if L.ndim == 2 and B.ndim == 2:
            return self.solve_triangular(L, B, trans)
        lead = np.broadcast_shapes(L.shape[:-2], B.shape[:-2])
        if not prod(lead) or not prod(B.shape[-2:]):
            return self.empty((*lead, *B.shape[-2:]))
        xp = self.xp
        Z = self._copy(xp.broadcast_to(B, (*lead, *B.shape[-2:])), L.dtype)
        L = xp.ascontiguousarray(L)
        if _in_one_call(prod(lead), L.shape[-1]):
            (a, lower), (z, right) = self._stack(L, lead), self._stack(Z, lead)
            self.blas.solve_left_many(lower, trans, right)
            del a, z
            return Z
        lower_of = xp.broadcast_to(L, (*lead, *L.shape[-2:]))
        for index in np.ndindex(*lead):
            self.blas.solve_left(
                self._view(xp.ascontiguousarray(lower_of[index])), trans, self._view(Z[index])
            )
        return Z

    def complete(self, C: Array) -> Array:
        launcher: Any = self.launcher
        return _mirror(launcher, np.dtype(C.dtype).name)(self.xp.ascontiguousarray(C))

    def add_diagonal(self, C: Array, value: Array) -> Array:
        C = self.xp.ascontiguousarray(C)
        pivots = self._diagonal_view(C)
        pivots += value
        return C

    # -- special functions, transforms, sparse products ------------------------------------------

    def special(self, name: Special, a: Array) -> Array:
        return self.runtime.special(name, a)

    def half_spectrum(self, u: Array, ndim: int) -> Array:
        out = self.xp.ascontiguousarray(self.xp.fft.rfftn(u, axes=tuple(range(-ndim, 0))))
        # A complex number is a pair of real ones in memory.
        return self.xp.reshape(out.view(u.dtype), (*u.shape[: u.ndim - ndim], -1))

    def from_half_spectrum(self, h: Array, shape: tuple[int, ...]) -> Array:
        xp = self.xp
        half = (*h.shape[:-1], *shape[:-1], shape[-1] // 2 + 1)
        parts = xp.ascontiguousarray(h).view(np.result_type(h.dtype, np.complex64))
        axes = tuple(range(-len(shape), 0))
        return xp.fft.irfftn(xp.reshape(parts, half), s=shape, axes=axes)

    def sparse_matrix(
        self, rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, shape: tuple[int, int]
    ) -> Array:
        from gplvm_xp.backend.cuda.sparse import SparseMatrix, row_order

        order, first, lanes = row_order(rows, shape[0])
        sources = columns[order].astype(np.int64)
        put = functools.partial(self.xp.asarray, device=self.device)
        return SparseMatrix(put(first), put(sources), self.asarray(weights[order]), shape, lanes)

    def sparse_times(self, S: Array, values: Array) -> Array:
        launcher: Any = self.launcher
        return _sparse(launcher, self.xp, np.dtype(self.dtype).name, S.lanes)(S, values)

    # -- custom kernels --------------------------------------------------------------------------

    def fused(self, code: CudaPair | None, q: int) -> Fused | None:
        from gplvm_xp.backend.cuda.fused import MAX_Q

        if code is None or not 1 <= q <= MAX_Q:
            return None
        launcher: Any = self.launcher
        return _fused(launcher, self.xp, code, q, np.dtype(self.dtype).name)

    def fused_psi(self, q: int) -> FusedPsi | None:
        from gplvm_xp.backend.cuda.fused import MAX_Q

        if not 1 <= q <= MAX_Q:
            return None
        launcher: Any = self.launcher
        return _fused_psi(launcher, self.xp, q, np.dtype(self.dtype).name)

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

    def _stack(self, a: Array, lead: tuple[int, ...]) -> tuple[Array, Stack]:
        """Addresses of matrices (..., m, n) broadcast over ``lead``, to be kept for the call."""
        xp = self.xp
        rows, columns = a.shape[-2:]
        size, own = rows * columns * a.dtype.itemsize, a.shape[:-2]
        start = self.runtime.address(a)
        where = xp.arange(start, start + prod(own) * size, size, dtype=xp.uint64)
        pointers = xp.ascontiguousarray(xp.broadcast_to(xp.reshape(where, own), lead))
        address = self.runtime.address(pointers)
        return pointers, Stack(address, prod(lead), rows, columns, a.dtype.itemsize)

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


def _in_one_call(count: int, n: int) -> bool:
    """Whether a batch is faster by a batched routine than one after the other.

    The batched ones work on each matrix with few threads; the bound is that of CuPy's own
    batched factorisation.
    """
    return count * 65536 >= n * n > 0


@functools.lru_cache(maxsize=16)
def _sparse(launcher: Any, xp: Namespace, dtype: str, lanes: int) -> SparseTimes:
    from gplvm_xp.backend.cuda.sparse import SparseTimes

    return SparseTimes(launcher, xp, np.dtype(dtype), lanes)


@functools.lru_cache(maxsize=8)
def _mirror(launcher: Any, dtype: str) -> Mirror:
    from gplvm_xp.backend.cuda.fused import Mirror

    return Mirror(launcher, np.dtype(dtype))


@functools.lru_cache(maxsize=128)
def _fused(launcher: Any, xp: Namespace, code: CudaPair, q: int, dtype: str) -> Fused:
    """One object for each tree: an evaluation must not assemble the sources again."""
    from gplvm_xp.backend.cuda.fused import Fused

    return Fused(launcher, xp, code, q, np.dtype(dtype))


@functools.lru_cache(maxsize=16)
def _fused_psi(launcher: Any, xp: Namespace, q: int, dtype: str) -> FusedPsi:
    from gplvm_xp.backend.cuda.psi import FusedPsi

    return FusedPsi(launcher, xp, q, np.dtype(dtype))


__all__ = ["CudaBackend", "Runtime"]
