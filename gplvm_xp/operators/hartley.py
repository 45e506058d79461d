"""A few Hartley frequencies of a periodic grid, without the matrix.

The rows F_kx = cas(2π k·x/N)/√N of a discrete Hartley transform (cas t = cos t + sin t) are real
and orthonormal, and B = Fᵀ maps R coefficients to the N cells. Because
cas s · cas t = cos(s − t) + sin(s + t), the matrix F diag(p) Fᵀ holds entries of p's Fourier
transform, and diag(Fᵀ C F) is the transform of sums of C's entries: one transform and R² additions
instead of N R² multiplications (docs: derivations/spectral.md).

A real field's transform is kept as the half that determines it. Each of the four methods is then
one real transform and one product with a sparse matrix of structure alone.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend.base import Backend
from gplvm_xp.operators.base import LinearMap, Precision
from gplvm_xp.operators.precision import DiagonalPrecision


@dataclass(frozen=True, eq=False)
class Hartley(LinearMap):
    """B = Fᵀ for R frequencies of a periodic grid: coefficients (..., R) to cells (..., N).

    F Fᵀ = I. A symmetric circulant prior is diagonal in these coefficients, Λ = diag(1/s_k).
    :meth:`gram` and :meth:`quad` cost one real FFT and O(R²), whatever N; the sparse matrices take
    about 50 R² bytes of memory, are made at the first use on a device and shared by later calls.

    Parameters
    ----------
    shape : tuple of int
        The grid; N is their product. Cells are in row-major order.
    keep : array of int (R, ndim)
        The frequencies, distinct modulo the shape. Keep k and −k together, so that the truncated
        prior stays stationary.

    Attributes
    ----------
    places : ndarray of int (R,)
        Where the frequencies are in a flat spectrum of the grid.

    Raises
    ------
    ValueError
        If the shape is empty or not positive, if ``keep`` has another number of columns or is not
        of integers, or if a frequency occurs twice.
    """

    gathers: ClassVar[bool] = True
    shape: tuple[int, ...]
    keep: np.ndarray
    places: np.ndarray = field(init=False, repr=False)
    rows: int = field(init=False)
    cols: int = field(init=False)

    def __post_init__(self) -> None:
        shape = grid_shape("Hartley", self.shape)
        keep = np.asarray(self.keep)
        if keep.ndim != 2 or keep.shape[1] != len(shape) or keep.shape[0] == 0:
            raise ValueError(
                f"Hartley: keep has shape {keep.shape}; expected (R, {len(shape)}), one frequency "
                f"a row, for the grid {shape}"
            )
        if keep.dtype.kind not in "iu":
            raise ValueError(f"Hartley: keep is of dtype {keep.dtype}; expected integers")
        keep = np.mod(keep, shape)
        places = np.ravel_multi_index(tuple(keep.T), shape)
        if np.unique(places).size < places.size:
            raise ValueError(
                "Hartley: a frequency occurs twice in keep (frequencies are equal modulo the "
                f"grid's shape {shape}); expected each once"
            )
        for name, value in (("keep", keep), ("places", places)):
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "rows", math.prod(shape))
        object.__setattr__(self, "cols", keep.shape[0])

    @classmethod
    def of_spectrum(cls, eigenvalues: np.ndarray, threshold: float) -> Self:
        """The frequencies that carry a stationary prior's variance.

        Keeps the constant, and every pair ±k of which one has s_k ≥ threshold · max_{k≠0} s_k.

        Parameters
        ----------
        eigenvalues : ndarray of the grid's shape
            s_k of the prior covariance, on the host.
        threshold : float
            Between 0 and 1; 0.01 to 0.1 is usual.

        Raises
        ------
        ValueError
            If an eigenvalue is NaN, or the threshold is not between 0 and 1.
        """
        s = np.array(eigenvalues, dtype=np.float64)
        if np.any(np.isnan(s)):
            raise ValueError("the prior's spectrum has NaN entries; expected its eigenvalues")
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"threshold is {threshold}; expected a fraction between 0 and 1")
        axes = tuple(range(s.ndim))
        s = np.maximum(s, np.roll(np.flip(s, axes), 1, axes))
        constant = (0,) * s.ndim
        s[constant] = -np.inf
        chosen = s >= threshold * np.max(s)
        chosen[constant] = True
        return cls(s.shape, np.argwhere(chosen))

    def apply(self, z: Array) -> Array:
        b = backend.of(z)
        field = b.from_half_spectrum(b.sparse_times(_plan(self, b, "apply"), z), self.shape)
        return b.xp.reshape(field, (*z.shape[:-1], self.rows))

    def adjoint(self, r: Array) -> Array:
        b = backend.of(r)
        return b.sparse_times(_plan(self, b, "adjoint"), self._transform(b, r))

    def gram(self, p: Array) -> Array:
        """F diag(p) Fᵀ: A_kl = (Re P_{k−l} − Im P_{k+l})/N with P the transform of p."""
        b = backend.of(p)
        entries = b.sparse_times(_plan(self, b, "gram"), self._transform(b, p))
        return b.xp.reshape(entries, (*p.shape[:-1], self.cols, self.cols))

    def quad(self, C: Array) -> Array:
        """diag(Fᵀ C F): the field Σ_kl C_kl [cos 2π(k−l)·x/N + sin 2π(k+l)·x/N]/N."""
        b = backend.of(C)
        twice = b.xp.reshape(C + b.xp.matrix_transpose(C), (*C.shape[:-2], self.cols**2))
        field = b.from_half_spectrum(b.sparse_times(_plan(self, b, "quad"), twice), self.shape)
        return b.xp.reshape(field, (*C.shape[:-2], self.rows))

    def restrict(self, prior: Precision) -> Precision:
        """F Λ Fᵀ; diagonal where Λ is a symmetric circulant on the same grid."""
        s = prior.spectrum(self.shape)
        if s is None:
            return super().restrict(prior)
        b = backend.of(s)
        flat = b.xp.reshape(s, (*s.shape[: -len(self.shape)], self.rows))
        return DiagonalPrecision(b.xp.take(flat, _places_on(self, b), axis=-1))

    def basis(self) -> np.ndarray:
        """F as a dense host matrix (R, N); for checks, O(R N) memory."""
        cells = np.indices(self.shape).reshape(len(self.shape), -1)
        turns = np.zeros((self.cols, self.rows))
        for k, x, n in zip(self.keep.T, cells, self.shape, strict=True):
            # Whole turns are dropped while they are integers.
            turns += np.mod(np.outer(k, x), n) / n
        angle = (2.0 * np.pi) * turns
        return np.asarray((np.cos(angle) + np.sin(angle)) / math.sqrt(self.rows))

    def _transform(self, b: Backend, u: Array) -> Array:
        return b.half_spectrum(b.xp.reshape(u, (*u.shape[:-1], *self.shape)), len(self.shape))


def grid_shape(who: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A grid's shape as a tuple of Python integers.

    Raises
    ------
    ValueError
        If it has no axis, or one that is not a positive integer.
    """
    sizes = np.asarray(shape)
    if sizes.ndim != 1 or sizes.size == 0 or sizes.dtype.kind not in "iu" or sizes.min() < 1:
        raise ValueError(
            f"{who}: the grid's shape is {shape}; expected a tuple of positive integers"
        )
    return tuple(map(int, sizes))


# -- structure, on the host ------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _places_on(h: Hartley, b: Backend) -> Array:
    return b.xp.asarray(np.array(h.places, dtype=np.int64), device=b.device)


_Method = Literal["apply", "adjoint", "gram", "quad"]


@functools.lru_cache(maxsize=8)
def _plan(h: Hartley, b: Backend, method: _Method) -> Array:
    """The sparse matrix of a method, where ``b`` computes."""
    k, R, root = h.keep, h.cols, math.sqrt(h.rows)
    half = 2 * math.prod(h.shape[:-1]) * (h.shape[-1] // 2 + 1)
    if method == "apply":
        entries = _waves(h.shape, k, k, np.full(R, root), np.arange(R))
        return b.sparse_matrix(*entries, (half, R))
    if method == "adjoint":
        return b.sparse_matrix(*_entries(h.shape, k, k, 1.0 / root), (R, half))
    if method == "gram":
        difference = (k[:, None, :] - k[None, :, :]).reshape(R * R, -1)
        total = (k[:, None, :] + k[None, :, :]).reshape(R * R, -1)
        return b.sparse_matrix(*_entries(h.shape, difference, total, 1.0 / h.rows), (R * R, half))
    i, j = np.tril_indices(R)
    # Of C + Cᵀ, whose diagonal is doubled too, the lower triangle says everything.
    weight = np.where(i == j, 0.5, 1.0)
    entries = _waves(h.shape, k[i] - k[j], k[i] + k[j], weight, i * R + j)
    return b.sparse_matrix(*entries, (half, R * R))


def _places(shape: tuple[int, ...], k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where k and −k (P, ndim) are in the half spectrum; its size, where they are not."""
    half = (*shape[:-1], shape[-1] // 2 + 1)
    size = math.prod(half)
    plus = minus = np.zeros(k.shape[0], dtype=np.int64)
    for axis, (n, held) in enumerate(zip(shape, half, strict=True)):
        # NumPy divides by one number much faster than it takes remainders.
        residue = k[:, axis] - n * (k[:, axis] // n)
        mirror = np.where(residue == 0, 0, n - residue)
        plus, minus = plus * held + residue, minus * held + mirror
    return np.where(residue < held, plus, size), np.where(mirror < held, minus, size)


def _entries(
    shape: tuple[int, ...], even: np.ndarray, odd: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and weights that read scale · (Re U_even − Im U_odd) from a half spectrum."""
    row = np.arange(even.shape[0])
    plus, minus = _places(shape, odd)
    # Of k and −k always the same one is read, so that equal entries are equal to the last bit.
    columns = (2 * np.minimum(*_places(shape, even)), 2 * np.minimum(plus, minus) + 1)
    weights = (np.full(row.size, scale), np.where(plus <= minus, -scale, scale))
    return np.concatenate([row, row]), np.concatenate(columns), np.concatenate(weights)


def _waves(
    shape: tuple[int, ...],
    even: np.ndarray,
    odd: np.ndarray,
    weight: np.ndarray,
    source: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and weights that write the half spectrum of N times
    weight · (cos 2π even·x/N + sin 2π odd·x/N), summed over the sources."""
    size = math.prod(shape[:-1]) * (shape[-1] // 2 + 1)
    rows, columns, weights = [], [], []
    for part, k, signs in ((0, even, (0.5, 0.5)), (1, odd, (-0.5, 0.5))):
        for at, sign in zip(_places(shape, k), signs, strict=True):
            held = at < size
            rows.append(2 * at[held] + part)
            columns.append(source[held])
            weights.append(sign * weight[held])
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(weights)


__all__ = ["Hartley", "grid_shape"]
