"""The contract of a backend, with every primitive in its array-API reference form.

The reference is right for any library that conforms to the standard; a subclass changes speed and
memory, never a signature, a shape or a dtype. Matrices are in C order; "lower" means the
mathematical lower triangle. Methods that consume an argument say so: the caller must not read it
again, and a fast backend overwrites it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import numpy as np

from gplvm_xp._typing import Array, Device, DType, Namespace
from gplvm_xp.backend.parts import Tile, chunks, sources, triangle
from gplvm_xp.errors import NotEnoughMemoryError

if TYPE_CHECKING:
    from gplvm_xp.backend.cuda.fused import Fused
    from gplvm_xp.backend.cuda.pairs import CudaPair
    from gplvm_xp.backend.cuda.psi import FusedPsi

Result = TypeVar("Result")
Special: TypeAlias = Literal["log_ndtr", "ndtr", "erfcx", "gammaln", "digamma"]


@dataclass(frozen=True)
class Backend:
    """One array library, one device and one floating dtype.

    Attributes
    ----------
    xp : namespace
        The array-API-compatible namespace.
    device : device
        Where new arrays are made.
    dtype : dtype
        The real floating dtype of new arrays, an object of ``xp``.
    """

    xp: Namespace
    device: Device
    dtype: DType

    @property
    def name(self) -> str:
        """The library's name, for people."""
        return str(getattr(self.xp, "__name__", "array API")).removeprefix("array_api_compat.")

    # -- the two doors ---------------------------------------------------------------------------

    def asarray(self, a: Array, dtype: DType | None = None) -> Array:
        """Bring host numbers, or an array of this library, here as ``dtype`` (default: own)."""
        return self.xp.asarray(a, dtype=dtype or self.dtype, device=self.device)

    def to_host(self, a: Array) -> np.ndarray:
        """Copy to NumPy: the only door out, and the only place that waits for a device."""
        try:
            return np.array(a)
        except (RuntimeError, TypeError, ValueError):
            if not hasattr(self.xp, "Device"):
                raise
            # array-api-strict refuses NumPy on any device but its CPU: go there first.
            cpu = self.xp.Device("CPU_DEVICE")
            return np.array(self.xp.asarray(a, device=cpu, copy=True))

    # -- creation --------------------------------------------------------------------------------

    def empty(self, shape: tuple[int, ...]) -> Array:
        """An array with arbitrary content."""
        return self.xp.empty(shape, dtype=self.dtype, device=self.device)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """An array of zeros."""
        return self.xp.zeros(shape, dtype=self.dtype, device=self.device)

    def full(self, shape: tuple[int, ...], value: float) -> Array:
        """An array of one host number."""
        return self.xp.full(shape, value, dtype=self.dtype, device=self.device)

    def eye(self, n: int) -> Array:
        """The n × n identity."""
        return self.xp.eye(n, dtype=self.dtype, device=self.device)

    def scalar(self, value: float) -> Array:
        """A 0-d array on the device."""
        return self.full((), value)

    @property
    def eps(self) -> float:
        """Distance from 1 to the next number of the dtype."""
        return float(self.xp.finfo(self.dtype).eps)

    @property
    def itemsize(self) -> int:
        """Bytes of one number of the dtype."""
        return int(self.xp.finfo(self.dtype).bits) // 8

    # -- memory and the schedule of blocks -------------------------------------------------------

    def memory_available(self) -> int | None:
        """Bytes that can still be allocated, or None where that is not known."""
        return None

    def require_memory(self, n_bytes: int, what: str, instead: str) -> None:
        """Refuse before allocating.

        Raises
        ------
        NotEnoughMemoryError
            If ``n_bytes`` is more than :meth:`memory_available` gives.
        """
        have = self.memory_available()
        if have is not None and n_bytes > have:
            raise NotEnoughMemoryError(
                f"{what} needs {n_bytes / 2**30:.2f} GiB ({n_bytes} bytes) and the {self.name} "
                f"backend has {have / 2**30:.2f} GiB left; {instead}"
            )

    def tile_shape(self, n: int) -> tuple[int, int]:
        """Rows and columns of one block of a pairwise computation over n points.

        The reference takes long strips: on a device, few large launches beat a small working set.
        """
        rows = max(1, min(n, 2**25 // max(n * self.itemsize, 1)))
        return max(rows, min(n, 64)), n

    def lower_tiles(self, n: int) -> list[Tile]:
        """Cover the lower triangle: squares ``(i0, i1, i0, i1)`` on the diagonal, rectangles
        ``(i0, i1, j0, j1)`` with ``j1 <= i0`` left of them."""
        return triangle(n, *self.tile_shape(n))

    def map_tiles(
        self, function: Callable[[Tile], Result], tiles: Iterable[Tile]
    ) -> Iterator[Result]:
        """Apply ``function`` to every tile; results in their order, whoever ran them."""
        return map(function, tiles)

    def batches(self, count: int, size: int) -> list[slice]:
        """Members, of ``size`` numbers each, that are computed together: on a device all."""
        return [slice(0, count)]

    def stacks(self, count: int, size: int) -> list[slice]:
        """Matrices of ``size`` numbers each that one call works on: few calls, little memory."""
        return chunks(count, max(1, 2**27 // (self.itemsize * size)))

    def map_parts(
        self, function: Callable[[slice], Result], parts: list[slice]
    ) -> Iterator[Result]:
        """Apply ``function`` to each part; results in their order, a few of them at a time."""
        return map(function, parts)

    def calm(self, order: int) -> AbstractContextManager[object]:
        """Held while many products of small matrices of this order run, without threads."""
        return nullcontext()

    # -- dense linear algebra --------------------------------------------------------------------

    def cholesky(self, K: Array) -> tuple[Array, Array]:
        """Cholesky factor of a symmetric matrix; K is consumed.

        Parameters
        ----------
        K : array (n, n)
            Only the lower triangle is read.

        Returns
        -------
        L : array (n, n)
            The lower triangle is the factor, the rest is arbitrary.
        ok : 0-d bool array
            Whether K was positive definite to working precision. Stays on the device: nothing is
            raised and nothing waits.
        """
        xp = self.xp
        lower = xp.tril(K)
        full = lower + xp.matrix_transpose(xp.tril(K, k=-1))
        try:
            L = xp.linalg.cholesky(full)
        except np.linalg.LinAlgError:
            # array-api-strict computes with NumPy, which raises; elsewhere failure is a value.
            L = xp.full_like(full, xp.nan)
        pivots = xp.linalg.diagonal(L)
        return L, xp.all(xp.isfinite(pivots) & (pivots > 0.0))

    def solve_triangular(self, L: Array, B: Array, trans: bool = False) -> Array:
        """Solve L Z = B, or Lᵀ Z = B with ``trans``; L (n, n) lower, B (n, r)."""
        lower = self.xp.tril(L)
        return self.xp.linalg.solve(self.xp.matrix_transpose(lower) if trans else lower, B)

    def cho_solve(self, L: Array, B: Array) -> Array:
        """Solve L Lᵀ Z = B; L (n, n) lower, B (n, r)."""
        return self.solve_triangular(L, self.solve_triangular(L, B), trans=True)

    def inverse_from_cholesky(self, L: Array) -> Array:
        """(L Lᵀ)⁻¹ from the lower factor, consumed; only its lower triangle is promised."""
        inverse = self.solve_triangular(L, self.eye(L.shape[0]))
        return self.xp.matrix_transpose(inverse) @ inverse

    def rank_update(self, C: Array, A: Array, alpha: float, beta: float) -> Array:
        """β C + α A Aᵀ for a symmetric C (n, n) given by its lower triangle, which is consumed.

        Only the lower triangle of the result is promised. A is (n, r); cost n² r.
        """
        return beta * C + (alpha * A) @ self.xp.matrix_transpose(A)

    def product(self, A: Array, B: Array) -> Array:
        """A B of two large matrices, by the library that factorises them."""
        return A @ B

    def complete(self, C: Array) -> Array:
        """Fill the upper triangle from the lower; C (n, n) is consumed."""
        xp = self.xp
        return xp.tril(C) + xp.matrix_transpose(xp.tril(C, k=-1))

    def diagonal(self, C: Array) -> Array:
        """The diagonal of C, (n,)."""
        return self.xp.linalg.diagonal(C)

    def add_diagonal(self, C: Array, value: Array) -> Array:
        """C + value I, or C + diag(value); C is consumed. ``value`` is 0-d or (n,)."""
        return C + value * self.eye(C.shape[0])

    def squared_distances(self, A: Array, B: Array | None = None, factor: float = 1.0) -> Array:
        """``factor`` times |a_i − b_j|², (..., n, m) for A (..., n, r) and B (..., m, r).

        Exactly 0 on the diagonal where B is None.

        By one matrix product, so the caller must centre A and B: the absolute error is of the order
        eps · max|a|². Nothing is negative, but for a negative factor an entry may exceed 0 by that.
        """
        xp = self.xp
        other = A if B is None else B
        a = xp.sum(A * A, axis=-1)
        b = a if B is None else xp.sum(B * B, axis=-1)
        r2 = a[..., :, None] + b[..., None, :] - 2.0 * (A @ xp.matrix_transpose(other))
        # Written so that NaN stays NaN.
        r2 = xp.where(r2 < 0.0, 0.0, r2)
        if B is None:
            r2 = xp.where(xp.eye(A.shape[-2], dtype=xp.bool, device=self.device), 0.0, r2)
        return r2 if factor == 1.0 else factor * r2

    def thin_products(self, W: Array, A: Array, B: Array) -> tuple[Array, Array]:
        """W B and Wᵀ A for W (..., n, m), A (..., n, r) and B (..., m, r) with few columns."""
        return W @ B, self.xp.matrix_transpose(W) @ A

    def exp(self, a: Array) -> Array:
        """e to the power of every entry; ``a`` is consumed."""
        return self.xp.exp(a)

    # -- many small matrices at once -------------------------------------------------------------

    def factor(self, P: Array) -> tuple[Array, Array]:
        """Cholesky factors of symmetric matrices over leading axes; P is left alone.

        Parameters
        ----------
        P : array (..., n, n)
            Only the lower triangles are read.

        Returns
        -------
        L : array (..., n, n)
            Lower, zeros above. Arbitrary where ``ok`` is false, but then never silently finite:
            a caller may go on with it and mask the results.
        ok : bool array (...)
            Which of them were positive definite to working precision; nothing is raised or read.
        """
        xp = self.xp
        n = P.shape[-1]
        if P.ndim == 2:
            L, ok = self.cholesky(self.xp.asarray(P, copy=True))
            return xp.tril(L), ok
        flat = xp.reshape(P, (-1, n, n))
        parts = [self.factor(flat[i, ...]) for i in range(flat.shape[0])]
        if not parts:
            return xp.zeros_like(P), xp.ones(P.shape[:-2], dtype=xp.bool, device=self.device)
        L, ok = (xp.stack(list(results)) for results in zip(*parts, strict=True))
        return xp.reshape(L, P.shape), xp.reshape(ok, P.shape[:-2])

    def solve_factor(self, L: Array, B: Array, trans: bool = False) -> Array:
        """Solve L Z = B, or Lᵀ Z = B with ``trans``; L (..., n, n) lower, B (..., n, r)."""
        lower = self.xp.matrix_transpose(L) if trans else L
        return self.xp.linalg.solve(lower, B)

    def inverse_factor(self, L: Array) -> Array:
        """L⁻¹ of lower triangles (..., n, n), lower itself, zeros above."""
        eye = self.xp.broadcast_to(self.eye(L.shape[-1]), L.shape)
        return self.xp.tril(self.solve_factor(L, eye))

    # -- special functions, transforms, sparse products ------------------------------------------

    def special(self, name: Special, a: Array) -> Array:
        """A function of every entry, by its name in SciPy; the reference goes there and waits."""
        import scipy.special

        return self.asarray(getattr(scipy.special, name)(self.to_host(a)), a.dtype)

    def half_spectrum(self, u: Array, ndim: int) -> Array:
        """The unnormalised Fourier transform of a real field, the half that determines it.

        Parameters
        ----------
        u : array (..., N_1, ..., N_ndim)
        ndim : int
            How many trailing axes are the grid's.

        Returns
        -------
        array (..., 2 M)
            Real and imaginary part, in turn, of Σ_x u_x exp(−2πi k·x/N) for the
            M = N_1 ⋯ (N_ndim // 2 + 1) frequencies k whose last entry is at most half of its axis.
        """
        xp = self.xp
        out = xp.fft.rfftn(u, axes=tuple(range(-ndim, 0)))
        parts = xp.stack([xp.real(out), xp.imag(out)], axis=-1)
        return xp.reshape(parts, (*u.shape[: u.ndim - ndim], -1))

    def from_half_spectrum(self, h: Array, shape: tuple[int, ...]) -> Array:
        """The real field of a half spectrum, with the factor 1/N: undoes :meth:`half_spectrum`.

        Parameters
        ----------
        h : array (..., 2 M)
            Where k and −k are both in the half, they must be conjugates of each other.
        shape : tuple of int
            The grid's.
        """
        xp = self.xp
        parts = xp.reshape(h, (*h.shape[:-1], *shape[:-1], shape[-1] // 2 + 1, 2))
        return xp.fft.irfftn(
            parts[..., 0] + 1j * parts[..., 1], s=shape, axes=tuple(range(-len(shape), 0))
        )

    def sparse_matrix(
        self, rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, shape: tuple[int, int]
    ) -> Array:
        """A fixed sparse matrix, prepared once for :meth:`sparse_times`.

        Parameters
        ----------
        rows, columns : integer ndarrays (P,)
            On the host: where each entry stands. Entries that stand in one place add up.
        weights : ndarray (P,)
            The entries.
        shape : tuple of int
            Rows and columns.
        """
        taken, weights, back = sources(rows, columns, weights, shape[0])
        put = functools.partial(self.xp.asarray, device=self.device)
        return put(taken), self.asarray(weights), put(back)

    def sparse_times(self, S: Array, values: Array) -> Array:
        """A sparse matrix times vectors along the last axis, (..., columns) → (..., rows).

        The sums are in a fixed order: the same input gives the same bits.
        """
        xp = self.xp
        sources, weights, back = S
        lead = values.shape[:-1]
        taken = xp.reshape(xp.take(values, sources, axis=-1), (*lead, *weights.shape))
        sums = xp.sum(taken * weights, axis=-1)
        zero = xp.zeros((*lead, 1), dtype=values.dtype, device=self.device)
        return xp.take(xp.concat([sums, zero], axis=-1), back, axis=-1)

    # -- gather and scatter ----------------------------------------------------------------------

    def rows(self, A: Array, index: Array) -> Array:
        """Rows of A by a host list of integers, (len(index), ...)."""
        where = self.xp.asarray(np.array(index, dtype=np.int64), device=self.device)
        return self.xp.take(A, where, axis=0)

    def scatter_plan(self, index: np.ndarray, n: int) -> Array:
        """What :meth:`scatter_add` needs of row numbers (P,) below n: structure, prepared once."""
        return self.sparse_matrix(
            index, np.arange(index.size), np.ones(index.size), (n, index.size)
        )

    def scatter_add(self, total: Array, plan: Array, values: Array) -> Array:
        """``total`` (n, r), consumed, plus ``values`` (P, r) at their rows, in a fixed order."""
        transpose = self.xp.matrix_transpose
        return total + transpose(self.sparse_times(plan, transpose(values)))

    # -- custom kernels --------------------------------------------------------------------------

    def fused(self, code: CudaPair | None, q: int) -> Fused | None:
        """Compiled contractions of a kernel tree with CUDA code, or None where there are none."""
        return None

    def fused_psi(self, q: int) -> FusedPsi | None:
        """Compiled sums of the RBF kernel's psi statistics, or None where there are none."""
        return None


__all__ = ["Backend", "Special", "Tile"]
