"""Two contracts: a linear map from the latent vector to the data, and a prior precision.

Both act on vectors along the last axis, with any leading axes (batches), and on columns of
matrices over the last two. Variational inference touches a map only through :meth:`gram` and
:meth:`quad` and the map itself, so that a map with structure (a Hartley basis on a grid) needs no
N × R matrix, and every posterior covariance profits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from gplvm_xp import backend
from gplvm_xp._typing import Array


class LinearMap(ABC):
    """B: latent vectors of length L to predictors of length N.

    Attributes
    ----------
    rows, cols : int
        N and L.
    identity : bool
        Whether B is the identity, so that a map before it is the whole.
    gathers : bool
        Whether :meth:`gram` and :meth:`quad` cost less than B times a few columns, which also
        needs N numbers for each column.
    """

    rows: int
    cols: int
    identity: ClassVar[bool] = False
    gathers: ClassVar[bool] = False

    @abstractmethod
    def apply(self, z: Array) -> Array:
        """B z: (..., L) → (..., N)."""

    @abstractmethod
    def adjoint(self, r: Array) -> Array:
        """Bᵀ r: (..., N) → (..., L)."""

    @abstractmethod
    def gram(self, p: Array) -> Array:
        """Bᵀ diag(p) B: (..., N) → (..., L, L), symmetric; p may have any sign."""

    @abstractmethod
    def quad(self, C: Array) -> Array:
        """diag(B C Bᵀ): (..., L, L) → (..., N); of C's symmetric part where C is not symmetric.

        Adjoint to :meth:`gram`: ⟨p, quad(C)⟩ = ⟨gram(p), C⟩.
        """

    def columns(self, X: Array) -> Array:
        """B X: (..., L, R) → (..., N, R)."""
        xp = backend.of(X).xp
        return xp.matrix_transpose(self.apply(xp.matrix_transpose(X)))

    def columns_adjoint(self, Z: Array) -> Array:
        """Bᵀ Z: (..., N, R) → (..., L, R)."""
        xp = backend.of(Z).xp
        return xp.matrix_transpose(self.adjoint(xp.matrix_transpose(Z)))

    def matrix(self, like: Array) -> Array:
        """B as a dense (N, L) array where ``like`` is; for checks, O(N L) memory."""
        return self.columns(backend.of(like).eye(self.cols))

    def restrict(self, prior: Precision) -> Precision:
        """BᵀΛB, of order L, for a precision Λ of order N.

        The precision of the coordinates z where B z has the precision Λ and stays in B's range.
        Dense, O(N L + L²) memory, unless the map has structure in common with Λ.
        """
        # precision.py builds on this module.
        from gplvm_xp.operators.precision import DensePrecision

        if self.identity:
            return prior
        product = self.columns_adjoint(prior.columns(self.matrix(prior.logdet())))
        xp = backend.of(product).xp
        return DensePrecision(0.5 * (product + xp.matrix_transpose(product)))


class Precision(ABC):
    """Λ of a Gaussian prior N(μ₀, Λ⁻¹), symmetric positive definite, of order L.

    Attributes
    ----------
    size : int
        L.
    """

    size: int

    @abstractmethod
    def apply(self, z: Array) -> Array:
        """Λ z: (..., L) → (..., L)."""

    @abstractmethod
    def covariance(self, z: Array) -> Array:
        """Λ⁻¹ z: (..., L) → (..., L)."""

    @abstractmethod
    def logdet(self) -> Array:
        """ln |Λ|, 0-d, or (...) where the precision has leading axes."""

    def diagonal(self) -> Array:
        """diag Λ, (..., L)."""
        return backend.of(self.logdet()).xp.linalg.diagonal(self.dense())

    def dense(self) -> Array:
        """Λ as (..., L, L)."""
        return self.columns(backend.of(self.logdet()).eye(self.size))

    def columns(self, X: Array) -> Array:
        """Λ X: (..., L, R) → (..., L, R)."""
        xp = backend.of(X).xp
        return xp.matrix_transpose(self.apply(xp.matrix_transpose(X)))

    def covariance_columns(self, X: Array) -> Array:
        """Λ⁻¹ X: (..., L, R) → (..., L, R)."""
        xp = backend.of(X).xp
        return xp.matrix_transpose(self.covariance(xp.matrix_transpose(X)))

    def root_columns(self, X: Array) -> Array:
        """R X with one R for which R Rᵀ = Λ⁻¹: (..., L, K) → (..., L, K)."""
        b = backend.of(X)
        factor, _ = b.factor(self.dense())
        return b.solve_factor(factor, X, trans=True)

    def spectrum(self, shape: tuple[int, ...]) -> Array | None:
        """Eigenvalues (..., *shape) in the order of the FFT, where Λ is a symmetric circulant on
        the periodic grid of that shape; None where it is not, or is not known to be."""
        return None

    def plus(self, A: Array) -> Array:
        """Λ + A as a new dense matrix, (..., L, L)."""
        return self.dense() + A

    def trace_product(self, C: Array) -> Array:
        """tr(Λ C) for C (..., L, L), (...)."""
        xp = backend.of(C).xp
        return xp.sum(self.dense() * xp.matrix_transpose(C), axis=(-2, -1))


__all__ = ["LinearMap", "Precision"]
