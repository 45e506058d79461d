"""Σ itself as the parameter."""

from __future__ import annotations

from dataclasses import dataclass

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.operators.base import LinearMap, Precision
from gplvm_xp.posteriors._shared import (
    conditional,
    guard,
    log_diagonal,
    or_infinity,
    require_shape,
    symmetric,
    times,
)
from gplvm_xp.posteriors.base import Covariance, Form, Solve, State, Variances


@dataclass(frozen=True)
class Full(Covariance):
    r"""Σ, a symmetric L × L matrix: the reference for small L.

    .. math:: J = \tfrac12\{\mathrm{tr}\,ΛΣ - \ln|Σ|\}, \qquad
        ∂J = \tfrac12(Λ - Σ^{-1}), \qquad H[M] = \tfrac12 Σ^{-1} M Σ^{-1}

    Convex in Σ. θ and directions are symmetrised first, so that J is a function of (θ + θᵀ)/2.
    Costs: L³/3 for the factor, 2 L³ for the gradient, 4 L³ for an HVP.

    Source: Document 1, equations 2 to 4 and 21. Corrections: the first line of (2) lacks ½, and
    the transpose in ½ Σ⁻¹MᵀΣ⁻¹ matters only for directions that are not symmetric.
    """

    @property
    def form(self) -> Form:
        return "symmetric"

    def shape(self, L: int) -> tuple[int, ...]:
        return (L, L)

    def at(self, theta: Array, prior: Precision) -> FullState:
        require_shape(self, theta, prior.size)
        Sigma = symmetric(theta)
        factor, ok = backend.of(theta).factor(Sigma)
        return FullState(Sigma, guard(factor, ok), prior, ok)

    def start(self, prior: Precision, B: LinearMap, curvature: Array) -> Array:
        """(Λ + Bᵀ diag(s) B)⁻¹: the stationary Σ if the curvature stayed as it is."""
        Y = conditional(prior, B.gram(curvature)).Y
        return backend.of(Y).xp.matrix_transpose(Y) @ Y


@dataclass(frozen=True, eq=False)
class FullState(State):
    """:class:`Full` at one point.

    Attributes
    ----------
    Sigma, factor : arrays (..., L, L)
        Σ and its lower Cholesky factor.
    """

    Sigma: Array
    factor: Array
    prior: Precision
    ok: Array

    def part(self) -> Array:
        trace = self.prior.trace_product(self.Sigma)
        return or_infinity(0.5 * (trace - log_diagonal(self.factor)), self.ok)

    def constant(self) -> Array:
        return -0.5 * (self.prior.logdet() + self.prior.size)

    def gradient(self) -> Array:
        b = backend.of(self.Sigma)
        inverse = b.inverse_factor(self.factor)
        return 0.5 * (self.prior.dense() - b.xp.matrix_transpose(inverse) @ inverse)

    def hvp(self, M: Array) -> Array:
        b = backend.of(self.Sigma)
        half = b.xp.matrix_transpose(b.solve_factor(self.factor, symmetric(M)))
        both = b.solve_factor(self.factor, half)
        back = b.xp.matrix_transpose(b.solve_factor(self.factor, both, trans=True))
        return symmetric(0.5 * b.solve_factor(self.factor, back, trans=True))

    def variances(self, B: LinearMap) -> Variances:
        return Variances(
            value=B.quad(self.Sigma),
            jvp=B.quad,
            pullback=B.gram,
            second=lambda s: backend.of(s).xp.zeros_like,
        )

    def matvec(self, z: Array) -> Array:
        return times(self.Sigma, z)

    def root(self, xi: Array) -> Array:
        return times(self.factor, xi)

    @property
    def rank(self) -> int:
        return self.prior.size

    def dense(self) -> Array:
        return self.Sigma

    def natural(self, G: Array, solve: Solve | None = None) -> Array:
        """2 Σ G Σ: the inverse of the Fisher metric ½ ⟨M, Σ⁻¹MΣ⁻¹⟩, here also of the Hessian."""
        return symmetric(2.0 * (self.Sigma @ symmetric(G) @ self.Sigma))


__all__ = ["Full", "FullState"]
