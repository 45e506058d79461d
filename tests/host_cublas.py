"""cuBLAS and cuSOLVER on host memory, with the names and argument orders of CuPy's modules.

`HostCublas` and `HostCusolver` take the same integers as ``cupy_backends.cuda.libs.cublas`` and
``.cusolver`` (addresses, column order, leading dimensions) and compute by SciPy, with 32-bit
checks, handles left in an awkward state, NaN in what is not promised, and a record of the memory
touched.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from scipy.linalg import blas, lapack

from gplvm_xp.backend.cuda.cublas import Cublas

INT32 = 2**31


class Memory:
    """Column-ordered matrices at addresses, with a record of the bytes they span."""

    def __init__(self) -> None:
        self.touched: list[tuple[int, int]] = []
        self.largest_argument = 0

    def integers(self, *values: int) -> None:
        """Every size and stride must fit the C int of the library."""
        for value in values:
            assert type(value) is int, f"{value!r} is not a Python int"
            assert 0 <= value < INT32, f"{value} does not fit the library's 32-bit int"
            self.largest_argument = max(self.largest_argument, value)

    def addresses(self, pointer: int, count: int) -> list[int]:
        """The 64-bit addresses in an array of the device."""
        self.integers(count)
        self.touched.append((pointer, pointer + 8 * count))
        return list((ctypes.c_uint64 * count).from_address(pointer)) if count else []

    def matrix(self, pointer: int, rows: int, columns: int, ld: int, dtype: Any) -> np.ndarray:
        """The rows × columns matrix at an address, column by column."""
        self.integers(rows, columns, ld)
        assert type(pointer) is int
        assert ld >= max(1, rows), f"leading dimension {ld} is less than {rows} rows"
        size = np.dtype(dtype).itemsize
        n_bytes = (ld * max(columns - 1, 0) + rows) * size if rows and columns else 0
        self.touched.append((pointer, pointer + n_bytes))
        if not n_bytes:
            return np.empty((rows, columns), dtype)
        flat = np.frombuffer((ctypes.c_char * n_bytes).from_address(pointer), dtype)
        return as_strided(flat, (rows, columns), (size, ld * size), writeable=True)


class HostCublas:
    """Stand-in for ``cupy_backends.cuda.libs.cublas``; fresh handles are in device pointer mode."""

    CUBLAS_OP_N, CUBLAS_OP_T = 0, 1
    CUBLAS_SIDE_LEFT, CUBLAS_SIDE_RIGHT = 0, 1
    CUBLAS_FILL_MODE_LOWER, CUBLAS_FILL_MODE_UPPER = 0, 1
    CUBLAS_DIAG_NON_UNIT, CUBLAS_DIAG_UNIT = 0, 1
    CUBLAS_POINTER_MODE_HOST, CUBLAS_POINTER_MODE_DEVICE = 0, 1
    HANDLE = 101

    def __init__(self, memory: Memory) -> None:
        self.memory, self.mode = memory, self.CUBLAS_POINTER_MODE_DEVICE
        self.calls: list[str] = []

    def getPointerMode(self, handle: int) -> int:
        """Whether scalars are read from the host or the device."""
        assert handle == self.HANDLE
        return self.mode

    def setPointerMode(self, handle: int, mode: int) -> None:
        """Change it."""
        assert handle == self.HANDLE
        self.mode = mode

    def __getattr__(self, name: str) -> Callable[..., None]:
        dtype = {"s": np.float32, "d": np.float64}.get(name[:1])
        routine = {
            "gemm": self._gemm, "trsm": self._trsm, "geam": self._geam,
            "trsmBatched": self._trsm_batched,
        }.get(name[1:])  # fmt: skip
        if dtype is None or routine is None:
            raise AttributeError(name)

        def call(handle: int, *args: int) -> None:
            assert handle == self.HANDLE
            assert self.mode == self.CUBLAS_POINTER_MODE_HOST, "scalars would be read on the device"
            self.calls.append(name)
            with np.errstate(all="ignore"):
                routine(dtype, *args)

        return call

    def _scalar(self, address: int, dtype: Any) -> float:
        kind = ctypes.c_float if dtype is np.float32 else ctypes.c_double
        return float(kind.from_address(address).value)

    def _operand(
        self, dtype: Any, trans: int, rows: int, columns: int, pointer: int, ld: int
    ) -> np.ndarray:
        if trans:
            return self.memory.matrix(pointer, columns, rows, ld, dtype).T
        return self.memory.matrix(pointer, rows, columns, ld, dtype)

    def _gemm(
        self, dtype: Any, transa: int, transb: int, m: int, n: int, k: int, alpha: int, a: int,
        lda: int, b: int, ldb: int, beta: int, c: int, ldc: int,
    ) -> None:  # fmt: skip
        out = self.memory.matrix(c, m, n, ldc, dtype)
        left = self._operand(dtype, transa, m, k, a, lda)
        right = self._operand(dtype, transb, k, n, b, ldb)
        gemm = blas.sgemm if dtype is np.float32 else blas.dgemm
        product = gemm(self._scalar(alpha, dtype), left, right)
        scale = self._scalar(beta, dtype)
        out[...] = product if scale == 0.0 else scale * out + product

    def _trsm(
        self, dtype: Any, side: int, uplo: int, trans: int, diag: int, m: int, n: int, alpha: int,
        a: int, lda: int, b: int, ldb: int,
    ) -> None:  # fmt: skip
        size = m if side == self.CUBLAS_SIDE_LEFT else n
        triangle = self.memory.matrix(a, size, size, lda, dtype)
        out = self.memory.matrix(b, m, n, ldb, dtype)
        trsm = blas.strsm if dtype is np.float32 else blas.dtrsm
        out[...] = trsm(
            self._scalar(alpha, dtype), triangle, out, side=side, lower=1 - uplo, trans_a=trans,
            diag=diag,
        )  # fmt: skip

    def _trsm_batched(
        self, dtype: Any, side: int, uplo: int, trans: int, diag: int, m: int, n: int, alpha: int,
        a: int, lda: int, b: int, ldb: int, count: int,
    ) -> None:  # fmt: skip
        triangles, rights = self.memory.addresses(a, count), self.memory.addresses(b, count)
        assert len(set(rights)) == count, "two of a batch write to one place"
        for one, right in zip(triangles, rights, strict=True):
            self._trsm(dtype, side, uplo, trans, diag, m, n, alpha, one, lda, right, ldb)

    def _geam(
        self, dtype: Any, transa: int, transb: int, m: int, n: int, alpha: int, a: int, lda: int,
        beta: int, b: int, ldb: int, c: int, ldc: int,
    ) -> None:  # fmt: skip
        out = self.memory.matrix(c, m, n, ldc, dtype)
        if c == b:
            assert ldb == ldc, "geam in place needs equal leading dimensions"
            assert transb == self.CUBLAS_OP_N, "geam in place needs no transposition"
        result = self._scalar(alpha, dtype) * self._operand(dtype, transa, m, n, a, lda)
        scale = self._scalar(beta, dtype)
        if scale != 0.0:
            result = result + scale * self._operand(dtype, transb, m, n, b, ldb)
        out[...] = result


class HostCusolver:
    """Stand-in for ``cupy_backends.cuda.libs.cusolver``; NaN in what potrf does not promise."""

    HANDLE = 202

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.leaves: list[int] = []

    def _size(self, handle: int, uplo: int, n: int, a: int, lda: int) -> int:
        assert handle == self.HANDLE
        self.memory.integers(n, lda)
        return 3 * n

    spotrf_bufferSize = dpotrf_bufferSize = _size  # noqa: N815

    def _potrf(
        self, dtype: Any, handle: int, uplo: int, n: int, a: int, lda: int, work: int, lwork: int,
        info: int,
    ) -> None:  # fmt: skip
        assert handle == self.HANDLE
        assert lwork == 3 * n
        self.leaves.append(n)
        self.memory.matrix(work, lwork, 1, lwork, dtype)[...] = np.nan
        matrix = self.memory.matrix(a, n, n, lda, dtype)
        potrf = lapack.spotrf if dtype is np.float32 else lapack.dpotrf
        with np.errstate(all="ignore"):
            factor, status = potrf(matrix, lower=1 - uplo, clean=0)
        unpromised = np.tril(np.ones((n, n), bool), -1)
        matrix[...] = np.where(unpromised if uplo else unpromised.T, np.nan, factor)
        self.memory.touched.append((info, info + 4))
        ctypes.c_int32.from_address(info).value = status

    def _potrf_batched(
        self, dtype: Any, handle: int, uplo: int, n: int, a: int, lda: int, info: int, count: int
    ) -> None:
        # cuSOLVER does not say what a failure leaves behind: here a positive number, which a test
        # of the pivots alone would believe.
        work = np.empty(3 * n, dtype)
        for i, one in enumerate(self.memory.addresses(a, count)):
            self._potrf(
                dtype, handle, uplo, n, one, lda, int(work.ctypes.data), 3 * n, info + 4 * i
            )
            failed = ctypes.c_int32.from_address(info + 4 * i).value
            if failed:
                matrix = self.memory.matrix(one, n, n, lda, dtype)
                at = np.arange(failed - 1, n)
                matrix[at, at] = 1.0

    def spotrfBatched(self, *args: int) -> None:
        """Factor many in float32."""
        self._potrf_batched(np.float32, *args)

    def dpotrfBatched(self, *args: int) -> None:
        """Factor many in float64."""
        self._potrf_batched(np.float64, *args)

    def spotrf(self, *args: int) -> None:
        """Factor in float32."""
        self._potrf(np.float32, *args)

    def dpotrf(self, *args: int) -> None:
        """Factor in float64."""
        self._potrf(np.float64, *args)


def _workspace(n_bytes: int) -> tuple[Any, int]:
    owner = np.full(n_bytes, 0xFF, dtype=np.uint8)
    return owner, int(owner.ctypes.data)


def host_blas() -> Cublas:
    """The package's row-ordered BLAS on the stand-ins; ``.blas.memory`` has the record."""
    memory = Memory()
    blas_stand_in, solver = HostCublas(memory), HostCusolver(memory)
    return Cublas(
        blas_stand_in, solver, lambda: HostCublas.HANDLE, lambda: HostCusolver.HANDLE, _workspace
    )


__all__ = ["HostCublas", "HostCusolver", "Memory", "host_blas"]
