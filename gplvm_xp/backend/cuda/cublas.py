"""Row-ordered views on cuBLAS and cuSOLVER, which know column order only.

A row-ordered buffer read in column order is the transpose, so that C = op(A) op(B) becomes
Cᵀ = op(B)ᵀ op(A)ᵀ: the operands change places and the flags stay. A lower triangle becomes an upper
one, and a triangular solve from the left one from the right. The two libraries come in as arguments
(CuPy's low-level modules on a GPU), so that tests run this file on host memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gplvm_xp.backend.cuda.blocked import Stack, View

_LETTER = {4: "s", 8: "d"}
_DTYPE = {4: np.float32, 8: np.float64}


@dataclass(frozen=True)
class Cublas:
    """The :class:`~gplvm_xp.backend.cuda.blocked.Blas` of an NVIDIA GPU.

    Attributes
    ----------
    blas, solver : module
        Objects with the names and argument orders of ``cupy_backends.cuda.libs.cublas`` and
        ``.cusolver``; both launch on the current stream.
    blas_handle, solver_handle : callable
        Give the handle of the current device and thread.
    workspace : callable
        ``workspace(n_bytes) -> (owner, address)``: device memory, alive as long as the owner.
    """

    blas: Any
    solver: Any
    blas_handle: Callable[[], int]
    solver_handle: Callable[[], int]
    workspace: Callable[[int], tuple[Any, int]]

    def gemm(
        self, alpha: float, a: View, trans_a: bool, b: View, trans_b: bool, beta: float, c: View
    ) -> None:
        """C ← α op(A) op(B) + β C."""
        inner = a.rows if trans_a else a.columns
        operations = self._operation(trans_b), self._operation(trans_a)
        self._call(
            "gemm", c.itemsize, (alpha, beta),
            lambda call, handle, one, two: call(
                handle, *operations, c.columns, c.rows, inner, one, b.pointer, b.stride,
                a.pointer, a.stride, two, c.pointer, c.stride,
            ),
        )  # fmt: skip

    def solve_left(self, lower: View, trans: bool, b: View) -> None:
        """B ← op(L)⁻¹ B."""
        self._trsm(self.blas.CUBLAS_SIDE_RIGHT, lower, trans, b)

    def solve_right(self, lower: View, trans: bool, b: View) -> None:
        """B ← B op(L)⁻¹."""
        self._trsm(self.blas.CUBLAS_SIDE_LEFT, lower, trans, b)

    def transpose(self, a: View, b: View) -> None:
        """B ← Aᵀ."""
        none, flip = self.blas.CUBLAS_OP_N, self.blas.CUBLAS_OP_T
        # β = 0 with the output as second operand is geam's in-place form; the operand is not read.
        self._call(
            "geam", b.itemsize, (1.0, 0.0),
            lambda call, handle, one, zero: call(
                handle, flip, none, b.columns, b.rows, one, a.pointer, a.stride,
                zero, b.pointer, b.stride, b.pointer, b.stride,
            ),
        )  # fmt: skip

    def factor(self, a: View, info: int) -> None:
        """Factor a leaf by cuSOLVER's potrf."""
        letter, handle = _LETTER[a.itemsize], self.solver_handle()
        uplo = self.blas.CUBLAS_FILL_MODE_UPPER
        size = getattr(self.solver, f"{letter}potrf_bufferSize")(
            handle, uplo, a.rows, a.pointer, a.stride
        )
        owner, address = self.workspace(max(size, 1) * a.itemsize)
        getattr(self.solver, f"{letter}potrf")(
            handle, uplo, a.rows, a.pointer, a.stride, address, size, info
        )
        del owner

    def factor_many(self, a: Stack, info: int) -> None:
        """Factor each matrix by cuSOLVER's potrfBatched."""
        getattr(self.solver, f"{_LETTER[a.itemsize]}potrfBatched")(
            self.solver_handle(), self.blas.CUBLAS_FILL_MODE_UPPER, a.rows, a.pointers, a.columns,
            info, a.count,
        )  # fmt: skip

    def solve_left_many(self, lower: Stack, trans: bool, b: Stack) -> None:
        """B ← op(L)⁻¹ B for each pair."""
        fixed = self._triangle(self.blas.CUBLAS_SIDE_RIGHT, trans)
        self._call(
            "trsmBatched", b.itemsize, (1.0, 0.0),
            lambda call, handle, one, _: call(
                handle, *fixed, b.columns, b.rows, one, lower.pointers, lower.columns,
                b.pointers, b.columns, b.count,
            ),
        )  # fmt: skip

    def _operation(self, trans: bool) -> int:
        return int(self.blas.CUBLAS_OP_T if trans else self.blas.CUBLAS_OP_N)

    def _triangle(self, side: int, trans: bool) -> tuple[int, int, int, int]:
        blas = self.blas
        return side, blas.CUBLAS_FILL_MODE_UPPER, self._operation(trans), blas.CUBLAS_DIAG_NON_UNIT

    def _trsm(self, side: int, lower: View, trans: bool, b: View) -> None:
        fixed = self._triangle(side, trans)
        self._call(
            "trsm", b.itemsize, (1.0, 0.0),
            lambda call, handle, one, _: call(
                handle, *fixed, b.columns, b.rows, one, lower.pointer, lower.stride,
                b.pointer, b.stride,
            ),
        )  # fmt: skip

    def _call(
        self,
        name: str,
        itemsize: int,
        scalars: tuple[float, float],
        launch: Callable[[Callable[..., Any], int, int, int], Any],
    ) -> None:
        """Launch with the two scalars read from host memory, whatever mode the handle is in."""
        handle = self.blas_handle()
        host = np.array(scalars, dtype=_DTYPE[itemsize])
        first = host.ctypes.data
        mode = self.blas.getPointerMode(handle)
        self.blas.setPointerMode(handle, self.blas.CUBLAS_POINTER_MODE_HOST)
        try:
            launch(getattr(self.blas, _LETTER[itemsize] + name), handle, first, first + itemsize)
        finally:
            self.blas.setPointerMode(handle, mode)


__all__ = ["Cublas"]
