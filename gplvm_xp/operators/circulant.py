"""Stationary priors on a grid: circulant on a periodic one, block-Toeplitz on any other.

A stationary covariance on a periodic grid is diagonal in the Fourier basis, so that products with
it, with its inverse, and its determinant cost one transform (docs: derivations/spectral.md). The
kernel enters by its values at the grid's :func:`lags`; a domain that is not periodic gets a
:func:`padded` grid, or the exact matrix by :class:`Toeplitz`, which has no cheap inverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend.base import Backend
from gplvm_xp.errors import NotPositiveDefiniteError
from gplvm_xp.operators.base import Precision
from gplvm_xp.operators.hartley import grid_shape


@dataclass(frozen=True, eq=False)
class Circulant(Precision):
    """Λ = K⁻¹ of a stationary prior on a periodic grid, by FFT.

    A smooth kernel's spectrum falls below what its floating numbers can tell from 0: eigenvalues
    of K smaller than eps times the largest are set to that, in every result alike.

    Parameters
    ----------
    shape : tuple of int
        The grid; L is their product, in row-major order.
    eigenvalues : array (..., *shape)
        Of the *covariance* K, from :func:`eigenvalues_of`. The mean of s_k and s_{−k} is used,
        which are equal for a real symmetric K.

    Attributes
    ----------
    eigenvalues : array (..., *shape)
        The same, none below eps times the largest.

    Raises
    ------
    ValueError
        If the eigenvalues are not on the grid.
    """

    shape: tuple[int, ...]
    eigenvalues: Array
    size: int = field(init=False)

    def __post_init__(self) -> None:
        shape = grid_shape("Circulant", self.shape)
        s = _on_grid("Circulant", "eigenvalues", self.eigenvalues, shape)
        b = backend.of(s)
        axes = _axes(shape)
        s = even(b, s, axes)
        floor = b.eps * b.xp.max(s, axis=axes, keepdims=True)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "size", math.prod(shape))
        object.__setattr__(self, "eigenvalues", b.xp.where(s < floor, floor, s))

    def shifted(self, c: Array) -> Circulant:
        """Λ + c I for c (...) ≥ 0, a circulant too."""
        s = self.eigenvalues
        c = backend.of(s).xp.reshape(c, (*c.shape, *(1,) * len(self.shape)))
        return Circulant(self.shape, s / (1.0 + c * s))

    @classmethod
    def of(cls, b: Backend, row: np.ndarray) -> Self:
        """From the covariance's first row on the host, with its values checked.

        Parameters
        ----------
        b : Backend
            Where the precision will live.
        row : ndarray of the grid's shape
            k(lag, 0) at the grid's :func:`lags`.

        Raises
        ------
        ValueError
            If an entry is NaN or infinite.
        NotPositiveDefiniteError
            If an eigenvalue is negative beyond rounding (10⁻⁶ of the largest).
        """
        host = np.asarray(row, dtype=np.float64)
        if not np.all(np.isfinite(host)):
            raise ValueError("the covariance's row has entries that are NaN or infinite")
        s = eigenvalues_of(host, host.ndim)
        least, most = np.min(s), np.max(s)
        if not least > -1e-6 * most:
            raise NotPositiveDefiniteError(
                f"the periodic covariance has eigenvalues from {least:.3g} to {most:.3g}; expected "
                "positive ones. A kernel that does not fade within half a period must be periodic "
                "itself: pad the grid, or use a shorter length scale"
            )
        return cls(host.shape, b.asarray(s))

    def apply(self, z: Array) -> Array:
        return self._filter(1.0 / self._half(), z)

    def covariance(self, z: Array) -> Array:
        return self._filter(self._half(), z)

    def logdet(self) -> Array:
        xp = backend.of(self.eigenvalues).xp
        return -xp.sum(xp.log(self.eigenvalues), axis=_axes(self.shape))

    def diagonal(self) -> Array:
        xp = backend.of(self.eigenvalues).xp
        mean = xp.mean(1.0 / self.eigenvalues, axis=_axes(self.shape))
        return xp.broadcast_to(mean[..., None], (*mean.shape, self.size))

    def columns(self, X: Array) -> Array:
        return self._filter_columns(1.0 / self._half(), X)

    def covariance_columns(self, X: Array) -> Array:
        return self._filter_columns(self._half(), X)

    def root_columns(self, X: Array) -> Array:
        """K^½ X, with the symmetric root."""
        return self._filter_columns(backend.of(X).xp.sqrt(self._half()), X)

    def spectrum(self, shape: tuple[int, ...]) -> Array | None:
        return 1.0 / self.eigenvalues if tuple(shape) == self.shape else None

    def _half(self) -> Array:
        return self.eigenvalues[..., : self.shape[-1] // 2 + 1]

    def _filter(self, factor: Array, z: Array) -> Array:
        xp, axes = backend.of(z).xp, _axes(self.shape)
        u = xp.fft.rfftn(xp.reshape(z, (*z.shape[:-1], *self.shape)), axes=axes)
        out = xp.fft.irfftn(u * factor, s=self.shape, axes=axes)
        return xp.reshape(out, (*out.shape[: -len(axes)], self.size))

    def _filter_columns(self, factor: Array, X: Array) -> Array:
        xp = backend.of(X).xp
        shared = xp.expand_dims(factor, axis=-len(self.shape) - 1)
        return xp.matrix_transpose(self._filter(shared, xp.matrix_transpose(X)))


@dataclass(frozen=True, eq=False)
class Toeplitz:
    """Products with a stationary covariance on a grid that is *not* periodic.

    The block-Toeplitz matrix is a corner of a circulant one on a grid of twice the size. Its
    inverse is not Toeplitz: use the products in an iterative method, or pad the grid.

    Parameters
    ----------
    shape : tuple of int
        The grid; L is their product, in row-major order.
    values : array (..., *(2n for n in shape))
        k(lag, 0) at the :func:`lags` of the doubled grid, k(lag) = k(−lag); the kernel need not be
        a product over the axes. Entries at a lag of ±n are never used.

    Raises
    ------
    ValueError
        If the values are not on the doubled grid.
    """

    shape: tuple[int, ...]
    values: Array
    size: int = field(init=False)
    _spectrum: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        shape = grid_shape("Toeplitz", self.shape)
        double = tuple(2 * n for n in shape)
        values = _on_grid("Toeplitz", "values", self.values, double)
        xp = backend.of(values).xp
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "size", math.prod(shape))
        object.__setattr__(self, "_spectrum", xp.fft.rfftn(values, axes=_axes(double)))

    def apply(self, z: Array) -> Array:
        """K z: (..., L) → (..., L); one transform of 2ⁿᵈⁱᵐ L numbers and back."""
        xp = backend.of(z).xp
        axes = _axes(self.shape)
        double = tuple(2 * n for n in self.shape)
        u = xp.reshape(z, (*z.shape[:-1], *self.shape))
        out = xp.fft.irfftn(
            self._spectrum * xp.fft.rfftn(u, s=double, axes=axes), s=double, axes=axes
        )
        corner = out[(..., *(slice(n) for n in self.shape))]
        return xp.reshape(corner, (*out.shape[: -len(axes)], self.size))


def eigenvalues_of(row: Array, ndim: int) -> Array:
    """Eigenvalues of a periodic stationary covariance from its first row.

    s_k = Re Σ_x row_x exp(−2πi k·x/N) = Σ_x row_x cos(2π k·x/N).

    Parameters
    ----------
    row : array (..., N_1, ..., N_ndim)
        k(lag, 0) at the grid's :func:`lags`; what is odd in the lag drops out.
    ndim : int
        How many trailing axes are the grid's.

    Returns
    -------
    array (..., N_1, ..., N_ndim)
    """
    xp = backend.of(row).xp
    kind = xp.complex128 if row.dtype == xp.float64 else xp.complex64
    return xp.real(xp.fft.fftn(xp.astype(row, kind), axes=tuple(range(-ndim, 0))))


def eigenvalues_pullback(gs: Array, ndim: int) -> Array:
    """The gradient in the row of :func:`eigenvalues_of` from the gradient in its result.

    The matrix cos(2π k·x/N) is symmetric, so that this is the same transform.
    """
    return eigenvalues_of(gs, ndim)


def lags(shape: tuple[int, ...], spacing: float | tuple[float, ...] = 1.0) -> np.ndarray:
    """Signed lags from the first cell of a periodic grid to each cell, the short way round.

    Parameters
    ----------
    shape : tuple of int
        The grid.
    spacing : float or tuple of float
        Size of a cell, in units of the kernel's input.

    Returns
    -------
    ndarray (N, ndim)
        On the host, for a kernel's ``gram(theta, lags, zero)``.

    Raises
    ------
    ValueError
        If the shape or the spacing is not positive.
    """
    shape = grid_shape("lags", shape)
    steps = np.indices(shape).reshape(len(shape), -1).T
    size = np.array(shape)
    signed = np.where(2 * steps > size, steps - size, steps)
    return np.asarray(signed * _per_axis("spacing", spacing, shape))


def padded(
    shape: tuple[int, ...],
    support: float | tuple[float, ...],
    spacing: float | tuple[float, ...] = 1.0,
) -> tuple[int, ...]:
    """A periodic grid whose corner ``[:n_1, :n_2, ...]`` is a domain that is not periodic.

    Parameters
    ----------
    shape : tuple of int
        Cells of the domain.
    support : float or tuple of float
        Lag from which on the kernel is negligible. The corner's covariance is then that of the
        kernel: cells at opposite edges of the domain see each other no more around the back.
    spacing : float or tuple of float
        Size of a cell, in the same unit.

    Returns
    -------
    tuple of int
        Each n + support/spacing or a little more, a product of small primes. The cells outside the
        domain are latent: give them no data.

    Raises
    ------
    ValueError
        If the shape or the spacing is not positive, or the support negative or not finite.
    """
    import scipy.fft

    shape = grid_shape("padded", shape)
    reach = _per_axis("support", support, shape, zero=True)
    cells = np.ceil(reach / _per_axis("spacing", spacing, shape)).astype(int)
    return tuple(
        scipy.fft.next_fast_len(n + more, real=True) for n, more in zip(shape, cells, strict=True)
    )


# -- private ---------------------------------------------------------------------------------------


def even(b: Backend, s: Array, axes: tuple[int, ...]) -> Array:
    """½ (s_k + s_{−k}) over the last axes."""
    mirrored = b.xp.roll(b.xp.flip(s, axis=axes), shift=(1,) * len(axes), axis=axes)
    return 0.5 * (s + mirrored)


def _axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(-len(shape), 0))


def _on_grid(who: str, what: str, a: Array, shape: tuple[int, ...]) -> Array:
    if tuple(a.shape[-len(shape) :]) != shape:
        raise ValueError(
            f"{who}: {what} have shape {tuple(a.shape)}; expected (..., "
            f"{', '.join(map(str, shape))}), one for each cell of the grid"
        )
    return a


def _per_axis(
    what: str, value: float | tuple[float, ...], shape: tuple[int, ...], zero: bool = False
) -> np.ndarray:
    """Positive numbers, one for each axis; ``zero`` where 0 may be one of them."""
    out = np.array(value, dtype=np.float64)
    fits = out.shape in ((), (len(shape),))
    if not fits or not np.all((out > 0.0) | (zero & (out == 0.0))) or np.any(np.isinf(out)):
        kind = "non-negative" if zero else "positive"
        raise ValueError(f"{what} is {value}; expected a {kind} number, or one for each of {shape}")
    return np.broadcast_to(out, (len(shape),))


__all__ = ["Circulant", "Toeplitz", "eigenvalues_of", "eigenvalues_pullback", "lags", "padded"]
