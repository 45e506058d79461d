"""Host code of the fused kernels: grids, argument order and scratch, for a GPU or the emulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import numpy as np

from gplvm_xp._typing import Array, DType, Namespace
from gplvm_xp.backend.cuda.launcher import ElementwiseKernel, Launcher
from gplvm_xp.backend.cuda.local import FusedLocal, local_of
from gplvm_xp.backend.cuda.pairs import CudaPair, pair_source

THREADS = 128
MAX_Q = 64
_REAL = {"float64": "double", "float32": "float"}
# Numbers of partial results that no user will miss: 8 MiB in float64.
_FREE_PARTIALS = 2**20
_GRID_Y_LIMIT = 65535


def _text(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _real(dtype: DType) -> tuple[np.dtype[np.generic], str]:
    seen = np.dtype(dtype)
    if seen.name not in _REAL:
        raise TypeError(f"dtype {seen.name}: the CUDA kernels are compiled for float64 and float32")
    return seen, _REAL[seen.name]


def tile_size(q: int) -> int:
    """Points of one tile in shared memory, so that no block needs more than 48 KiB of it."""
    return 32 if q <= 24 else 16


def _same_layout(what: str, a: Array, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
    if tuple(a.shape) != shape or a.dtype != dtype:
        raise ValueError(
            f"{what} has shape {tuple(a.shape)} and dtype {a.dtype}; expected {shape} and {dtype}"
        )


@final
class Mirror:
    """Copies the lower triangle of a square matrix to its upper triangle, in place.

    Parameters
    ----------
    launcher : Launcher
        Compiles and runs the kernel.
    dtype : dtype
        float64 or float32.

    Raises
    ------
    TypeError
        If ``dtype`` is another.
    """

    _SIDE, _ROWS = 32, 8

    def __init__(self, launcher: Launcher, dtype: DType) -> None:
        self.dtype, real = _real(dtype)
        options = (f"-DREAL={real}", f"-DSIDE={self._SIDE}", f"-DROWS={self._ROWS}")
        self._kernel = launcher.raw(_text("mirror.cuh"), "gplvm_mirror", options)

    def __call__(self, K: Array) -> Array:
        """Mirror K (n, n), C-contiguous, and return it; reads and writes n²/2 numbers.

        Raises
        ------
        ValueError
            If K is not a square C-contiguous matrix of the dtype.
        """
        n = K.shape[0]
        _same_layout("K", K, (n, n), self.dtype)
        if not K.flags.c_contiguous:
            raise ValueError("K is not C-contiguous; expected a row-major matrix to work in place")
        tiles = -(-n // self._SIDE)
        if n > 0:
            self._kernel((tiles, tiles), (self._SIDE, self._ROWS), (K, np.int64(n)))
        return K


@final
class Fused:
    """Gram matrix of one kernel tree and its derivatives, each in one or two launches.

    The pair function is compiled into every kernel, so no n × m × q tensor and, in the contraction,
    no gram matrix is stored. Results are the same bits on every run: partial sums of the blocks are
    stored and summed in a fixed order.

    Parameters
    ----------
    launcher : Launcher
        Compiles and runs the kernels.
    xp : namespace
        NumPy or CuPy (or a stand-in) with ``empty``, ``zeros``, ``sum``, ``ascontiguousarray``.
    code : CudaPair
        The kernel tree.
    q : int
        Latent dimensions, 1 to 64; compiled in. Past about 20 registers spill: slower, not wrong.
    dtype : dtype
        float64 or float32.
    blocks : int
        Blocks that a launch aims for where one side of the matrix is too short to fill a GPU; the
        other side is then split, at the cost of ``ceil(blocks / (n / 128))`` partial results.

    Raises
    ------
    TypeError
        If ``dtype`` is neither float64 nor float32.
    ValueError
        If ``q`` is out of range.
    """

    def __init__(
        self,
        launcher: Launcher,
        xp: Namespace,
        code: CudaPair,
        q: int,
        dtype: DType,
        *,
        blocks: int = 4096,
    ) -> None:
        if not 1 <= q <= MAX_Q:
            raise ValueError(
                f"q = {q} latent dimensions: the fused kernels take 1 to {MAX_Q}; beyond that, use "
                "the array-API form of the kernel"
            )
        self.xp, self.code, self.q, self.blocks, self._launcher = xp, code, q, blocks, launcher
        self.dtype, real = _real(dtype)
        self._tile = tile_size(q)
        pair = pair_source(code)
        shared = pair + _text("fused.cuh")
        train, general = shared + _text("fused_train.cuh"), shared + _text("fused_general.cuh")
        options = (
            "-std=c++17",
            f"-DREAL={real}",
            f"-DQDIM={q}",
            f"-DTHREADS={THREADS}",
            f"-DTILE={self._tile}",
        )
        self._gram = launcher.raw(train, "gplvm_gram", options)
        self._pull_symmetric = launcher.raw(train, "gplvm_pull_symmetric", options)
        self._pull_self = launcher.raw(general, "gplvm_pull_self", options)
        self._pull_rows = launcher.raw(general, "gplvm_pull_rows", options)
        self._pull_columns = launcher.raw(general, "gplvm_pull_columns", options)
        self._jvp = launcher.raw(general, "gplvm_jvp", options)
        preamble = f"#define REAL {real}\n{pair}"
        inputs = "raw T X, raw T Z, raw T theta, int64 m, int32 same_points"
        self._input_jacobian = launcher.elementwise(
            inputs, "raw T J", _input_jacobian(q), "gplvm_input_jacobian", preamble
        )
        self._theta_jacobian = launcher.elementwise(
            inputs, "raw T J", _theta_jacobian(q), "gplvm_theta_jacobian", preamble
        )
        self.mirror = Mirror(launcher, self.dtype)

    # -- public ----------------------------------------------------------------------------------

    def gram(
        self, theta: Array, X: Array, Z: Array | None = None, out: Array | None = None
    ) -> Array:
        """Return K (n, m) with K_ij = k(x_i, z_j).

        Parameters
        ----------
        theta : array (p,)
            Hyperparameters in natural space.
        X : array (n, q)
            Points.
        Z : array (m, q), optional
            Other points; None means X itself, m = n.
        out : array (n, m), optional
            C-contiguous buffer to write; a new one is made without it.

        Raises
        ------
        ValueError
            If a shape or dtype does not match.
        """
        theta, X, Y = self._inputs(theta, X, Z)
        n, m = X.shape[0], Y.shape[0]
        if out is None:
            out = self._empty((n, m))
        _same_layout("out", out, (n, m), self.dtype)
        if not out.flags.c_contiguous:
            raise ValueError("out is not C-contiguous; expected a row-major buffer")
        if n > 0 and m > 0:
            grid, chunk = self._split(m, n)
            sizes = (np.int64(n), np.int64(m), np.int64(chunk), np.int32(Z is None))
            self._gram(grid, (THREADS,), (X, Y, theta, out, *sizes))
        return out

    def pullback(
        self, theta: Array, X: Array, Z: Array | None, G: Array, *, symmetric: bool = False
    ) -> tuple[Array, Array, Array | None]:
        """Contract a cotangent of K with the derivatives of K.

        Parameters
        ----------
        theta, X, Z : arrays
            As for `gram`.
        G : array (n, m)
            Cotangent of K, symmetric or not.
        symmetric : bool
            Promise that G = Gᵀ (only without Z): G is then read once, in the faster order. Its two
            triangles must both be valid.

        Returns
        -------
        gtheta : array (p,)
            ``sum_ij G_ij dk_ij/dtheta``.
        gX : array (n, q)
            Gradient in X; without Z, through both arguments of k.
        gZ : array (m, q) or None
            Gradient in Z; None without Z.

        Raises
        ------
        ValueError
            If a shape or dtype does not match, or ``symmetric`` is given with Z.
        """
        theta, X, Y = self._inputs(theta, X, Z)
        n, m = X.shape[0], Y.shape[0]
        _same_layout("G", G, (n, m), self.dtype)
        if symmetric and Z is not None:
            raise ValueError("symmetric=True was given with Z; it is only for Z = None")
        G = self.xp.ascontiguousarray(G)
        if n == 0 or m == 0:
            gZ = None if Z is None else self._zeros((m, self.q))
            return self._zeros((self.code.parameters,)), self._zeros((n, self.q)), gZ
        grid, chunk = self._split(n, m, self.q)
        gX = self._empty((grid[1], n, self.q))
        gtheta = self._empty((grid[0] * grid[1], self.code.parameters))
        step = np.int64(chunk)
        if Z is None:
            kernel = self._pull_symmetric if symmetric else self._pull_self
            kernel(grid, (THREADS,), (X, theta, G, gX, gtheta, np.int64(n), step))
            return self._total(gtheta), self._total(gX), None
        sizes = (np.int64(n), np.int64(m))
        self._pull_rows(grid, (THREADS,), (X, Y, theta, G, gX, gtheta, *sizes, step))
        grid, chunk = self._split(m, n, self.q)
        gY = self._empty((grid[1], m, self.q))
        step = np.int64(chunk)
        self._pull_columns(grid, (THREADS,), (X, Y, theta, G, gY, *sizes, step))
        return self._total(gtheta), self._total(gX), self._total(gY)

    def jvp(
        self,
        theta: Array,
        X: Array,
        Z: Array | None = None,
        dtheta: Array | None = None,
        dX: Array | None = None,
        dZ: Array | None = None,
    ) -> Array:
        """Return dK (n, m), the derivative of K along (dtheta, dX, dZ); None is a zero direction.

        Without Z both arguments of k move with dX, and dZ must be None.

        Raises
        ------
        ValueError
            If a shape or dtype does not match, or dZ is given without Z.
        """
        theta, X, Y = self._inputs(theta, X, Z)
        n, m = X.shape[0], Y.shape[0]
        if Z is None and dZ is not None:
            raise ValueError("dZ was given without Z; the second argument then moves with dX")
        dtheta = self._direction("dtheta", dtheta, (self.code.parameters,))
        dX = self._direction("dX", dX, (n, self.q))
        dY = dX if Z is None else self._direction("dZ", dZ, (m, self.q))
        dK = self._empty((n, m))
        if n > 0 and m > 0:
            grid, chunk = self._split(m, n)
            sizes = (np.int64(n), np.int64(m), np.int64(chunk), np.int32(Z is None))
            self._jvp(grid, (THREADS,), (X, Y, theta, dX, dY, dtheta, dK, *sizes))
        return dK

    def input_jacobian(self, theta: Array, X: Array, Z: Array | None = None) -> Array:
        """Return J (n, m, q), ``J[i, j, a]`` the derivative of k(x_i, z_j) in ``x_i[a]``.

        Only the first argument moves, also without Z. Stores n m q numbers: for looking at and for
        small sizes; `pullback` contracts without it.
        """
        theta, X, Y = self._inputs(theta, X, Z)
        J = self._empty((X.shape[0], Y.shape[0], self.q))
        return self._jacobian(self._input_jacobian, theta, X, Y, Z is None, J)

    def theta_jacobian(self, theta: Array, X: Array, Z: Array | None = None) -> Array:
        """Return J (p, n, m), ``J[p, i, j]`` the derivative of k(x_i, z_j) in ``theta[p]``."""
        theta, X, Y = self._inputs(theta, X, Z)
        J = self._empty((self.code.parameters, X.shape[0], Y.shape[0]))
        return self._jacobian(self._theta_jacobian, theta, X, Y, Z is None, J)

    def local(self, rows: int) -> FusedLocal | None:
        """The likelihoods of blocks of ``rows`` points, or None where a block has too many."""
        launcher: Any = self._launcher
        return local_of(launcher, self.xp, self.code, self.q, rows, self.dtype.name)

    # -- private ---------------------------------------------------------------------------------

    def _inputs(self, theta: Array, X: Array, Z: Array | None) -> tuple[Array, Array, Array]:
        _same_layout("theta", theta, (self.code.parameters,), self.dtype)
        _same_layout("X", X, (X.shape[0], self.q), self.dtype)
        theta, X = self.xp.ascontiguousarray(theta), self.xp.ascontiguousarray(X)
        if Z is None:
            return theta, X, X
        _same_layout("Z", Z, (Z.shape[0], self.q), self.dtype)
        return theta, X, self.xp.ascontiguousarray(Z)

    def _direction(self, what: str, a: Array | None, shape: tuple[int, ...]) -> Array:
        if a is None:
            return self._zeros(shape)
        _same_layout(what, a, shape, self.dtype)
        return self.xp.ascontiguousarray(a)

    def _jacobian(
        self, kernel: ElementwiseKernel, theta: Array, X: Array, Y: Array, same: bool, J: Array
    ) -> Array:
        pairs = X.shape[0] * Y.shape[0]
        if pairs > 0:
            kernel(X, Y, theta, Y.shape[0], int(same), J, size=pairs)
        return J

    def _split(self, owners: int, others: int, partial: int = 0) -> tuple[tuple[int, int], int]:
        """Grid with one thread an owner, and how many others each block of its y goes through.

        Each part of the others leaves ``partial`` numbers an owner to be summed: together they may
        take a thirtieth of the matrix, or 8 MiB where that is more.
        """
        across = -(-owners // THREADS)
        tiles = -(-others // self._tile)
        parts = min(tiles, max(1, self.blocks // across), _GRID_Y_LIMIT)
        if partial:
            room = max(owners * others // 30, _FREE_PARTIALS)
            parts = max(1, min(parts, room // (owners * partial)))
        per_part = -(-tiles // parts)
        return (across, -(-tiles // per_part)), per_part * self._tile

    def _total(self, partial: Array) -> Array:
        return partial[0, ...] if partial.shape[0] == 1 else self.xp.sum(partial, axis=0)

    def _empty(self, shape: tuple[int, ...]) -> Array:
        return self.xp.empty(shape, dtype=self.dtype)

    def _zeros(self, shape: tuple[int, ...]) -> Array:
        return self.xp.zeros(shape, dtype=self.dtype)


def _pull_one(q: int) -> str:
    """One pair a thread; ``i`` is the flat index of the pair, a ptrdiff_t."""
    return f"""
    const ptrdiff_t row = i / m, column = i % m;
    T gx[{q}] = {{}}, gth[gplvm::Pair::P] = {{}};
    gplvm::Pair::pull<{q}>(T(1), &X[row * {q}], &Z[column * {q}], &theta[0],
                           same_points && row == column, gx, gth);
    """


def _input_jacobian(q: int) -> str:
    return _pull_one(q) + f"for (int a = 0; a < {q}; ++a) J[i * {q} + a] = gx[a];"


def _theta_jacobian(q: int) -> str:
    store = "for (ptrdiff_t p = 0; p < gplvm::Pair::P; ++p) J[p * _ind.size() + i] = gth[p];"
    return _pull_one(q) + store


__all__ = ["MAX_Q", "THREADS", "Fused", "Mirror", "tile_size"]
