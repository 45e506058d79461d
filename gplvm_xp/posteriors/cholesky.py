"""Σ = X Xᵀ with a lower triangular X."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.operators.base import LinearMap, Precision
from gplvm_xp.posteriors._shared import (
    conditional,
    diagonal_matrix,
    factor_variances,
    or_infinity,
    positive,
    require_shape,
    times,
)
from gplvm_xp.posteriors.base import Covariance, Form, Solve, State, Variances


@dataclass(frozen=True)
class Cholesky(Covariance):
    r"""The lower Cholesky factor X (L × L) of Σ, with a positive diagonal.

    .. math:: J = \tfrac12\mathrm{tr}(X^⊤ΛX) - \sum_i \ln X_{ii}, \quad
        ∂J = \mathrm{tril}(ΛX) - \mathrm{diag}(1/X_{ii}), \quad
        H[M] = \mathrm{tril}(ΛM) + \mathrm{diag}(M_{ii}/X_{ii}^2)

    Strictly convex, no gauge; jointly convex with the mean where the likelihood is log-concave
    (Challis & Barber 2011). Nothing is factored: a gradient or an HVP costs Λ times L columns.
    What θ and directions have above the diagonal is ignored.

    Source: Document 1, section 0.2.1. Correction: the general formulas (6) and (11) hold for a
    triangle only after the projection tril, and in (12) ΛMᵀ must read ΛM.
    """

    @property
    def form(self) -> Form:
        return "lower"

    def shape(self, L: int) -> tuple[int, ...]:
        return (L, L)

    def at(self, theta: Array, prior: Precision) -> CholeskyState:
        require_shape(self, theta, prior.size)
        xp = backend.of(theta).xp
        d, ok = positive(xp.linalg.diagonal(theta))
        X = xp.tril(theta, k=-1) + diagonal_matrix(d)
        return CholeskyState(X, d, prior.columns(X), prior, ok)

    def start(self, prior: Precision, B: LinearMap, curvature: Array) -> Array:
        """The factor of (Λ + Bᵀ diag(s) B)⁻¹, stationary if the curvature stayed as it is."""
        Y = conditional(prior, B.gram(curvature)).Y
        xp = backend.of(Y).xp
        T = xp.linalg.qr(Y)[1]
        # Yᵀ Y = Tᵀ T; signs that make the diagonal positive.
        sign = xp.where(xp.linalg.diagonal(T) < 0.0, -1.0, xp.ones_like(T[..., 0]))
        return xp.tril(xp.matrix_transpose(sign[..., None] * T))


@dataclass(frozen=True, eq=False)
class CholeskyState(State):
    """:class:`Cholesky` at one point.

    Attributes
    ----------
    X, LambdaX : arrays (..., L, L)
    d : array (..., L)
        The diagonal of X.
    """

    X: Array
    d: Array
    LambdaX: Array
    prior: Precision
    ok: Array

    def part(self) -> Array:
        xp = backend.of(self.X).xp
        trace = xp.sum(self.X * self.LambdaX, axis=(-2, -1))
        return or_infinity(0.5 * trace - xp.sum(xp.log(self.d), axis=-1), self.ok)

    def constant(self) -> Array:
        return -0.5 * (self.prior.logdet() + self.prior.size)

    def gradient(self) -> Array:
        return backend.of(self.X).xp.tril(self.LambdaX) - diagonal_matrix(1.0 / self.d)

    def hvp(self, M: Array) -> Array:
        xp = backend.of(M).xp
        curvature = xp.linalg.diagonal(M) / (self.d * self.d)
        return xp.tril(self.prior.columns(xp.tril(M))) + diagonal_matrix(curvature)

    def variances(self, B: LinearMap) -> Variances:
        tril = backend.of(self.X).xp.tril
        free = factor_variances(B, self.X, tril)

        def second(s: Array) -> Callable[[Array], Array]:
            along = free.second(s)
            return lambda M: along(tril(M))

        return Variances(
            value=free.value,
            jvp=lambda M: free.jvp(tril(M)),
            pullback=free.pullback,
            second=second,
        )

    def matvec(self, z: Array) -> Array:
        return times(self.X, times(backend.of(self.X).xp.matrix_transpose(self.X), z))

    def root(self, xi: Array) -> Array:
        return times(self.X, xi)

    @property
    def rank(self) -> int:
        return self.prior.size

    def dense(self) -> Array:
        return self.X @ backend.of(self.X).xp.matrix_transpose(self.X)

    def natural(self, G: Array, solve: Solve | None = None) -> Array:
        """X Φ(Xᵀ G), where Φ takes the lower triangle with half of the diagonal.

        The Fisher metric of dX = X T is Σ 2 T_ii² + Σ_{i>j} T_ij².
        """
        xp = backend.of(G).xp
        inner = xp.matrix_transpose(self.X) @ xp.tril(G)
        return self.X @ (xp.tril(inner, k=-1) + diagonal_matrix(0.5 * xp.linalg.diagonal(inner)))


__all__ = ["Cholesky", "CholeskyState"]
