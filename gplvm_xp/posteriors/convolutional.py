"""Σ = A diag(v) A with a fixed symmetric convolution A on a periodic grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.operators.base import LinearMap, Precision
from gplvm_xp.operators.circulant import eigenvalues_of, even
from gplvm_xp.posteriors._shared import (
    or_infinity,
    positive,
    require_length,
    require_shape,
    squared_variances,
)
from gplvm_xp.posteriors.base import Covariance, Form, Solve, State, Variances


@dataclass(frozen=True, eq=False)
class Convolutional(Covariance):
    r"""Positive weights v, one for each cell of a periodic grid, blurred by a kernel.

    A is the symmetric circulant with eigenvalues â, so that z ↦ A z is two FFTs. With
    a = diag(AΛA):

    .. math:: J = \tfrac12\{a^⊤v - \sum_i \ln v_i\}, \qquad ∂J = \tfrac12(a - 1/v), \qquad
        H[u] = \tfrac12 u/v^2

    Marginal variances on the grid are a convolution too: diag(A diag(v) A) = (A∘A) v. For a
    prior that is a circulant on the same grid a is one number, the mean of â²λ; for any other it
    is found from L columns, O(L²) memory.

    Source: Document 1, equations 13 and 23 (with the correction of `BasisDiagonal`); the
    convolution is our use of them.

    Parameters
    ----------
    grid : tuple of int
        Cells along each axis of the grid, L in all.
    spectrum : array (..., *grid)
        â in the order of the FFT: real and nowhere 0. The mean of â_k and â_−k is used, which are
        equal for a symmetric A.

    Raises
    ------
    ValueError
        If the spectrum's last axes are not the grid's.
    """

    grid: tuple[int, ...]
    spectrum: Array

    def __post_init__(self) -> None:
        got = tuple(self.spectrum.shape)
        if not self.grid or got[max(len(got) - len(self.grid), 0) :] != tuple(self.grid):
            raise ValueError(
                f"Convolutional: the spectrum has shape {got}; expected (..., "
                f"{', '.join(map(str, self.grid))}), one eigenvalue for each cell of the grid"
            )

        b = backend.of(self.spectrum)
        if not b.xp.isdtype(self.spectrum.dtype, "real floating"):
            raise TypeError(
                f"Convolutional: the spectrum has dtype {self.spectrum.dtype}; expected real "
                "floating, the transform of a symmetric kernel"
            )
        axes = tuple(range(-len(self.grid), 0))
        object.__setattr__(self, "spectrum", even(b, self.spectrum, axes))

    @property
    def form(self) -> Form:
        return "positive"

    def shape(self, L: int) -> tuple[int, ...]:
        require_length(self, f"the grid {self.grid}", math.prod(self.grid), L)
        return (L,)

    def at(self, theta: Array, prior: Precision) -> ConvolutionalState:
        require_shape(self, theta, prior.size)
        v, ok = positive(theta)
        return ConvolutionalState(v, self._a(prior), self, prior, ok)

    def start(self, prior: Precision, B: LinearMap, curvature: Array) -> Array:
        """1/(a + diag(A Bᵀdiag(s)B A)), stationary if the curvature stayed as it is."""
        a = self._a(prior)
        anywhere = backend.of(a).xp.broadcast_to(a, (*a.shape[:-1], prior.size))
        return 1.0 / (a + self.variances(B, anywhere).pullback(curvature))

    def convolve(self, z: Array) -> Array:
        """A z, (..., L) → (..., L)."""
        return _convolve(self.grid, self.spectrum, z)

    def variances(self, B: LinearMap, v: Array) -> Variances:
        """diag(B A diag(v) A Bᵀ), linear in v; two FFTs where B is the identity."""
        xp = backend.of(v).xp
        if not B.identity:
            return squared_variances(self.convolve(B.matrix(v)), v)
        row = eigenvalues_of(self.spectrum, len(self.grid)) / math.prod(self.grid)
        squares = eigenvalues_of(row * row, len(self.grid))

        def apply(u: Array) -> Array:
            return _convolve(self.grid, squares, u)

        return Variances(apply(v), apply, apply, lambda s: xp.zeros_like)

    def _a(self, prior: Precision) -> Array:
        xp = backend.of(self.spectrum).xp
        axes = tuple(range(-len(self.grid), 0))
        eigenvalues = prior.spectrum(self.grid)
        if eigenvalues is not None:
            return xp.mean(self.spectrum * self.spectrum * eigenvalues, axis=axes)[..., None]
        columns = self.convolve(backend.of(self.spectrum).eye(prior.size))
        return xp.sum(columns * prior.columns(columns), axis=-2)


def _convolve(grid: tuple[int, ...], spectrum: Array, z: Array) -> Array:
    xp = backend.of(z).xp
    axes = tuple(range(-len(grid), 0))
    half = spectrum[..., : grid[-1] // 2 + 1]
    field = xp.reshape(z, (*z.shape[:-1], *grid))
    out = xp.fft.irfftn(half * xp.fft.rfftn(field, axes=axes), s=grid, axes=axes)
    return xp.astype(xp.reshape(out, (*out.shape[: -len(grid)], z.shape[-1])), z.dtype)


@dataclass(frozen=True, eq=False)
class ConvolutionalState(State):
    """:class:`Convolutional` at one point.

    Attributes
    ----------
    v : array (..., L)
    a : array (..., L) or (..., 1)
    """

    v: Array
    a: Array
    covariance: Convolutional
    prior: Precision
    ok: Array

    def part(self) -> Array:
        xp = backend.of(self.v).xp
        terms = self.a * self.v - xp.log(self.v)
        return or_infinity(0.5 * xp.sum(terms, axis=-1), self.ok)

    def constant(self) -> Array:
        """−Σ ln|â| − ½ (ln|Λ| + L)."""
        spectrum = self.covariance.spectrum
        xp = backend.of(spectrum).xp
        axes = tuple(range(-len(self.covariance.grid), 0))
        logs = xp.sum(xp.log(xp.abs(spectrum)), axis=axes)
        return -logs - 0.5 * (self.prior.logdet() + self.prior.size)

    def gradient(self) -> Array:
        return 0.5 * (self.a - 1.0 / self.v)

    def hvp(self, M: Array) -> Array:
        return 0.5 * M / (self.v * self.v)

    def variances(self, B: LinearMap) -> Variances:
        return self.covariance.variances(B, self.v)

    def matvec(self, z: Array) -> Array:
        return self.covariance.convolve(self.v * self.covariance.convolve(z))

    def root(self, xi: Array) -> Array:
        return self.covariance.convolve(backend.of(self.v).xp.sqrt(self.v) * xi)

    @property
    def rank(self) -> int:
        return self.prior.size

    def dense(self) -> Array:
        b = backend.of(self.v)
        columns = self.covariance.convolve(b.eye(self.prior.size))
        return b.xp.matrix_transpose(columns) @ (self.v[..., None] * columns)

    def natural(self, G: Array, solve: Solve | None = None) -> Array:
        """2 v² G, the inverse of the Fisher metric ½ u/v², here also of the Hessian."""
        return 2.0 * self.v * self.v * G


__all__ = ["Convolutional", "ConvolutionalState"]
