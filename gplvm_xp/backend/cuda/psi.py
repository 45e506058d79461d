"""Host code of the RBF kernel's psi statistics: sums over E (n, P), which is never stored.

E_np = exp(a_n + b_p − Σ_d u²), u_npd = m_nd − s_nd z_pd, for rows n and the P = M (M + 1)/2 pairs
of inducing inputs; what a, b, m, s and z are is the caller's business
(``gplvm_xp/kernels/psi/streamed.py``). A sum over rows is owned by a thread for each pair, a sum
over pairs by a thread for each row; the other side comes tile by tile through shared memory.

Counts for one row and pair in float64, from the machine code for compute capability 9.0 at q = 10
(the exponential is 17 of them):

======================= ================ ============ ================= ================
kernel                  float64 formula  float64      all instructions  shared loads
======================= ================ ============ ================= ================
``sums`` (forward)      2 q + 21         41           97                11
``column_sums``         4 q + 22         62           123               11
``row_sums``            5 q + 22         72           131               12
======================= ================ ============ ================= ================

An H200 issues 1.67 · 10¹³ float64 instructions a second and twice as many of all kinds, so at
n = 10⁶, M = 100 (P = 5050) the three take at least 15 + 19 + 22 = 56 ms. Global memory is no
limit: a block of 128 pairs reads the 8 (2 q + 2) bytes of a row once, 1.4 bytes for a row and pair,
most of them from the cache (7 GB in 40 blocks, 176 MB from memory), and the two sides together are
O((n + P) q). With about 30 GB through memory, 7 ms, for Ψ1 and the scaling, which are array
operations, a bound and its gradient at q = 10 and D = 100 should take 0.07 to 0.1 s. Calculated:
nothing of this has been measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np

from gplvm_xp._typing import Array, DType, Namespace
from gplvm_xp.backend.cuda.fused import MAX_Q, THREADS
from gplvm_xp.backend.cuda.launcher import Launcher, RawKernel

TILE = 32
_REAL = {"float64": "double", "float32": "float"}
# Numbers of partial results in memory at once: 32 MiB in float64.
_PARTIALS = 2**22
_GRID_Y_LIMIT = 65535


@final
class FusedPsi:
    """Weighted sums of E over rows and over pairs, each in one launch and in a fixed order.

    Parameters
    ----------
    launcher : Launcher
        Compiles and runs the kernels.
    xp : namespace
        NumPy or CuPy (or a stand-in) with ``empty``, ``zeros``, ``sum``, ``ascontiguousarray``.
    q : int
        Latent dimensions, 1 to 64; compiled in. Past about 20 registers spill: slower, not wrong.
    dtype : dtype
        float64 or float32.
    blocks : int
        Blocks that a launch aims for: where one side is too short for so many, the other is split,
        at the cost of partial results, 2²² numbers at most.

    Raises
    ------
    TypeError
        If ``dtype`` is neither float64 nor float32.
    ValueError
        If ``q`` is out of range.
    """

    def __init__(
        self, launcher: Launcher, xp: Namespace, q: int, dtype: DType, *, blocks: int = 8192
    ) -> None:
        name = np.dtype(dtype).name
        if name not in _REAL:
            raise TypeError(f"dtype {name}: the CUDA kernels are compiled for float64 and float32")
        if not 1 <= q <= MAX_Q:
            raise ValueError(
                f"q = {q} latent dimensions: the CUDA psi statistics take 1 to {MAX_Q}; beyond "
                "that, use the array-API form"
            )
        self.xp, self.q, self.dtype, self.blocks = xp, q, np.dtype(dtype), blocks
        source = Path(__file__).with_name("psi.cuh").read_text(encoding="utf-8")
        sizes = (f"-DQDIM={q}", f"-DTHREADS={THREADS}", f"-DTILE={TILE}")
        options = ("-std=c++17", f"-DREAL={_REAL[name]}", *sizes)
        self._sums = launcher.raw(source, "gplvm_psi_sums", options)
        self._columns = launcher.raw(source, "gplvm_psi_columns", options)
        self._rows = launcher.raw(source, "gplvm_psi_rows", options)

    def sums(self, rows: Array, columns: Array) -> Array:
        """Σ_n w_n E_np of every pair.

        Parameters
        ----------
        rows : array (n, 2 q + 2)
            Of each row a, the weight w, and s, m of each dimension in turn.
        columns : array (P, q + 1)
            Of each pair b, and z of each dimension.

        Returns
        -------
        array (P,)

        Raises
        ------
        ValueError
            If a shape or dtype does not match.
        """
        return self._over_rows(self._sums, rows, columns, 1)[:, 0]

    def column_sums(self, rows: Array, columns: Array) -> Array:
        """Σ_n w_n E_np (1, s_n u_np) of every pair, (P, q + 1); arguments as for :meth:`sums`."""
        return self._over_rows(self._columns, rows, columns, self.q + 1)

    def row_sums(self, rows: Array, columns: Array, g: Array) -> Array:
        """Σ_p g_p E_np (1, u_np, u²_np) of every row, (n, 2 q + 1), whatever its weight.

        Parameters
        ----------
        rows, columns : arrays
            As for :meth:`sums`.
        g : array (P,)
            A weight for each pair.

        Raises
        ------
        ValueError
            If a shape or dtype does not match.
        """
        rows, columns = self._sides(rows, columns)
        n, pairs, width = rows.shape[0], columns.shape[0], 2 * self.q + 1
        g = self._checked("g", g, (pairs,))
        if n == 0 or pairs == 0:
            return self.xp.zeros((n, width), dtype=self.dtype)
        grid, chunk = self._split(n, pairs, width)
        out = self.xp.empty((grid[1], n, width), dtype=self.dtype)
        sizes = (np.int64(n), np.int64(pairs), np.int64(chunk))
        self._rows(grid, (THREADS,), (rows, columns, g, out, *sizes))
        return self._total(out)

    # -- private ---------------------------------------------------------------------------------

    def _over_rows(self, kernel: RawKernel, rows: Array, columns: Array, width: int) -> Array:
        rows, columns = self._sides(rows, columns)
        n, pairs = rows.shape[0], columns.shape[0]
        if n == 0 or pairs == 0:
            return self.xp.zeros((pairs, width), dtype=self.dtype)
        grid, chunk = self._split(pairs, n, width)
        out = self.xp.empty((grid[1], pairs, width), dtype=self.dtype)
        sizes = (np.int64(n), np.int64(pairs), np.int64(chunk))
        kernel(grid, (THREADS,), (rows, columns, out, *sizes))
        return self._total(out)

    def _sides(self, rows: Array, columns: Array) -> tuple[Array, Array]:
        return (
            self._checked("rows", rows, (rows.shape[0], 2 * self.q + 2)),
            self._checked("columns", columns, (columns.shape[0], self.q + 1)),
        )

    def _checked(self, what: str, a: Array, shape: tuple[int, ...]) -> Array:
        if tuple(a.shape) != shape or a.dtype != self.dtype:
            raise ValueError(
                f"{what} has shape {tuple(a.shape)} and dtype {a.dtype}; expected {shape} and "
                f"{self.dtype}"
            )
        return self.xp.ascontiguousarray(a)

    def _split(self, owners: int, others: int, width: int) -> tuple[tuple[int, int], int]:
        """Grid with a thread an owner, and how many others each block of its y goes through."""
        across, tiles = -(-owners // THREADS), -(-others // TILE)
        parts = min(tiles, self.blocks // across, _PARTIALS // (owners * width), _GRID_Y_LIMIT)
        per_part = -(-tiles // max(1, parts))
        return (across, -(-tiles // per_part)), per_part * TILE

    def _total(self, partial: Array) -> Array:
        return partial[0, ...] if partial.shape[0] == 1 else self.xp.sum(partial, axis=0)


__all__ = ["TILE", "FusedPsi"]
