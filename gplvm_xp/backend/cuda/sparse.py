"""Host code of the sparse product: what is prepared once, and the launch."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import final

import numpy as np

from gplvm_xp._typing import Array, DType, Namespace
from gplvm_xp.backend.cuda.launcher import Launcher

THREADS = 128
_REAL = {"float64": "double", "float32": "float"}
_GRID_Y_LIMIT = 65535


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """A sparse matrix in row order on the device, and how many threads work on one row.

    Attributes
    ----------
    first : int64 array (rows + 1,)
        Where each row's entries begin.
    columns : int64 array (P,)
    weights : array (P,)
    shape : tuple of int
        Rows and columns.
    lanes : int
        A power of two up to 32.
    """

    first: Array
    columns: Array
    weights: Array
    shape: tuple[int, int]
    lanes: int


def row_order(rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Order of the entries by row, where each row begins (size + 1,), and threads for a row.

    A thread adds about four numbers one after the other; rows much shorter than the longest leave
    some of theirs idle.
    """
    counts = np.bincount(rows, minlength=size)
    first = np.concatenate([[0], np.cumsum(counts)])
    lanes, longest = 1, counts.max(initial=0)
    while lanes < 32 and 4 * lanes < longest:
        lanes *= 2
    return np.argsort(rows, kind="stable"), first.astype(np.int64), lanes


@final
class SparseTimes:
    """Multiplies vectors by a fixed sparse matrix.

    Parameters
    ----------
    launcher : Launcher
        Compiles and runs the kernel.
    xp : namespace
        The arrays' library.
    dtype : dtype
        float64 or float32.
    lanes : int
        Threads that share a row.

    Raises
    ------
    TypeError
        If ``dtype`` is another.
    """

    def __init__(self, launcher: Launcher, xp: Namespace, dtype: DType, lanes: int) -> None:
        name = np.dtype(dtype).name
        if name not in _REAL:
            raise TypeError(f"dtype {name}: the CUDA kernels are compiled for float64 and float32")
        self.xp, self.dtype, self.lanes = xp, np.dtype(dtype), lanes
        source = Path(__file__).with_name("sparse.cuh").read_text(encoding="utf-8")
        options = (f"-DREAL={_REAL[name]}", f"-DTHREADS={THREADS}", f"-DLANES={lanes}")
        self._kernel = launcher.raw(source, "gplvm_sparse", options)

    def __call__(self, S: SparseMatrix, values: Array) -> Array:
        """S times vectors (..., columns), as (..., rows); the same bits every time.

        Raises
        ------
        ValueError
            If the vectors have another length or dtype.
        """
        rows, length = S.shape
        if values.shape[-1] != length or values.dtype != self.dtype:
            raise ValueError(
                f"vectors of shape {tuple(values.shape)} and dtype {values.dtype} met a sparse "
                f"matrix with {length} columns and dtype {self.dtype}"
            )
        lead = tuple(values.shape[:-1])
        out = self.xp.empty((*lead, rows), dtype=self.dtype)
        if prod(out.shape):
            grid = (-(-rows * self.lanes // THREADS), min(prod(lead), _GRID_Y_LIMIT))
            sizes = (np.int64(rows), np.int64(length), np.int64(prod(lead)))
            values = self.xp.ascontiguousarray(values)
            self._kernel(grid, (THREADS,), (S.first, S.columns, S.weights, values, out, *sizes))
        return out


__all__ = ["THREADS", "SparseMatrix", "SparseTimes", "row_order"]
