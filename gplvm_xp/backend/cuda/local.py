"""Host code of the local likelihoods: a thread block for each block of rows, in shared memory.

What the array-API form does in some forty passes over stacks of R × R matrices is one launch: the
rows are gathered, K is built, factorised and solved with in shared memory, and its derivatives are
contracted pair by pair, so that a term reads its (q + D) R numbers and writes q R. For R = 33,
D = 50, q = 2 that is 14 kB, mostly from the cache, and about 4 · 10⁴ multiplications; 3.3 · 10⁴ of
its 6 · 10⁴ cycles wait in solves with one thread a row. Calculated: nothing of this has been
measured.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, final

import numpy as np

from gplvm_xp._typing import Array, DType, Namespace
from gplvm_xp.backend.cuda.launcher import Launcher
from gplvm_xp.backend.cuda.pairs import CudaPair, pair_source

MAX_ROWS = 64
# Static shared memory of a block, on every GPU.
_SHARED = 48 * 1024
_REAL = {"float64": "double", "float32": "float"}
# Blocks of a launch: what it leaves for the host to sum stays small.
_LAUNCH = 2**18


def _text(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def fits(rows: int, q: int, itemsize: int, *, both: bool) -> bool:
    """Whether blocks of so many rows can be kept in shared memory; ``both``: the joint form too."""
    threads = _threads(rows)
    matrix = itemsize * rows * (rows + 1)
    other = itemsize * (rows * (q + 2) + threads) + rows * 12 + 64
    return rows <= MAX_ROWS and (2 if both else 1) * matrix + other <= _SHARED


def _threads(rows: int) -> int:
    return 32 if rows <= 32 else 64


@final
class FusedLocal:
    """Terms of blocks of R rows with their gradients, each in one launch.

    Parameters
    ----------
    launcher : Launcher
        Compiles and runs the kernels.
    xp : namespace
        NumPy or CuPy (or a stand-in) with ``empty``, ``sum``, ``ascontiguousarray``, ``concat``.
    code : CudaPair
        The kernel tree.
    q : int
        Latent dimensions; compiled in.
    rows : int
        R, of a block; compiled in. See :func:`fits`.
    dtype : dtype
        float64 or float32.

    Attributes
    ----------
    has_joint : bool
        Whether a block and the inverse of its covariance fit in shared memory.

    Raises
    ------
    TypeError
        If ``dtype`` is neither float64 nor float32.
    ValueError
        If a block does not fit in shared memory.
    """

    def __init__(
        self, launcher: Launcher, xp: Namespace, code: CudaPair, q: int, rows: int, dtype: DType
    ) -> None:
        self.dtype = np.dtype(dtype)
        if self.dtype.name not in _REAL:
            raise TypeError(
                f"dtype {self.dtype.name}: the CUDA kernels are compiled for float64 and float32"
            )
        if not fits(rows, q, self.dtype.itemsize, both=False):
            raise ValueError(
                f"blocks of {rows} rows with q = {q} need more shared memory than a GPU's block "
                "has; use the array-API form"
            )
        self.xp, self.code, self.q, self.rows = xp, code, q, rows
        both = fits(rows, q, self.dtype.itemsize, both=True)
        source = pair_source(code) + _text("local.cuh")
        self._shape = (_threads(rows),)
        options = (
            "-std=c++17",
            f"-DREAL={_REAL[self.dtype.name]}",
            f"-DQDIM={q}",
            f"-DROWS={rows}",
            f"-DTHREADS={self._shape[0]}",
        )
        self._conditional = launcher.raw(source, "gplvm_conditional", options)
        self.has_joint = both
        self._joint = (
            launcher.raw(source + _text("local_joint.cuh"), "gplvm_joint", options)
            if both
            else None
        )

    def terms(
        self,
        theta: Array,
        noise: Array,
        X: Array,
        Y: Array,
        rows: Array,
        mask: Array | None,
        outputs: float,
        *,
        joint: bool,
    ) -> tuple[Array, Array, Array, Array]:
        """Log-likelihoods of blocks and the gradients of their sum.

        Parameters
        ----------
        theta : array (p,)
        noise : array, 0-d
        X : array (n, q)
        Y : array (n, D)
        rows : int64 array (B, R)
            Row numbers, all valid.
        mask : array (B, R) or None
            0 for fillers; the last row of a block is none.
        outputs : float
            D, or what it stands for where Y was reduced.
        joint : bool
            Whether ln p of all rows is wanted, not that of the last given the others.

        Returns
        -------
        values : array (B,)
            −inf where a covariance is not positive definite; such a block adds no gradient.
        gtheta : array (p,)
        gnoise : array, 0-d
        gX : array (B, R, q)

        Raises
        ------
        ValueError
            If a shape or dtype does not match, or the joint form does not fit.
        """
        kernel = self._joint if joint else self._conditional
        if kernel is None:
            raise ValueError(
                f"the joint form of {self.rows} rows needs more shared memory than a GPU's block "
                "has; use the array-API form"
            )
        count, xp = rows.shape[0], self.xp
        for what, a, shape in (
            ("theta", theta, (self.code.parameters,)),
            ("noise", noise, ()),
            ("X", X, (X.shape[0], self.q)),
            ("Y", Y, (X.shape[0], Y.shape[1])),
        ):
            self._check(what, a, shape, self.dtype)
        self._check("rows", rows, (count, self.rows), np.dtype(np.int64))
        if mask is not None:
            self._check("mask", mask, (count, self.rows), self.dtype)
        theta, X, Y, rows = (xp.ascontiguousarray(a) for a in (theta, X, Y, rows))
        noise = xp.ascontiguousarray(noise)
        there = theta if mask is None else xp.ascontiguousarray(mask)
        values, gX = self._empty((count,)), self._empty((count, self.rows, self.q))
        gtheta, gnoise = [], []
        for first in range(0, count, _LAUNCH):
            some = slice(first, min(first + _LAUNCH, count))
            size = some.stop - first
            by_block, noises = self._empty((size, self.code.parameters)), self._empty((size,))
            used = there if mask is None else there[some]
            kernel(
                (size,),
                self._shape,
                (
                    X, Y, theta, noise, rows[some], used, values[some], by_block, noises, gX[some],
                    np.int64(Y.shape[1]), self.dtype.type(outputs), np.int32(mask is not None),
                ),
            )  # fmt: skip
            gtheta.append(xp.sum(by_block, axis=0))
            gnoise.append(xp.sum(noises))
        return values, sum(gtheta[1:], gtheta[0]), sum(gnoise[1:], gnoise[0]), gX

    def _empty(self, shape: tuple[int, ...]) -> Array:
        return self.xp.empty(shape, dtype=self.dtype)

    @staticmethod
    def _check(what: str, a: Array, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
        if tuple(a.shape) != shape or a.dtype != dtype:
            raise ValueError(
                f"{what} has shape {tuple(a.shape)} and dtype {a.dtype}; expected {shape} and "
                f"{dtype}"
            )


@functools.lru_cache(maxsize=16)
def local_of(
    launcher: Any, xp: Namespace, code: CudaPair, q: int, rows: int, dtype: str
) -> FusedLocal | None:
    """The kernels for blocks of so many rows, prepared once; None where they do not fit."""
    if not fits(rows, q, np.dtype(dtype).itemsize, both=False):
        return None
    return FusedLocal(launcher, xp, code, q, rows, np.dtype(dtype))


__all__ = ["MAX_ROWS", "FusedLocal", "fits", "local_of"]
