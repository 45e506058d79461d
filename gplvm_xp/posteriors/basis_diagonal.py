"""Σ = Aᵀ diag(v) A with a fixed dense A."""

from __future__ import annotations

from dataclasses import dataclass

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.operators.base import LinearMap, Precision
from gplvm_xp.posteriors._shared import (
    guard,
    log_diagonal,
    or_infinity,
    positive,
    require_length,
    require_shape,
    squared_variances,
    times,
)
from gplvm_xp.posteriors.base import Covariance, Form, Solve, State, Variances


@dataclass(frozen=True, eq=False)
class BasisDiagonal(Covariance):
    r"""Positive weights v (N) on the rows of a fixed matrix A (N × L).

    With a = diag(AΛAᵀ), for N ≤ L and rows that are independent

    .. math:: J = \tfrac12\{a^⊤v - \sum_i \ln v_i\}, \qquad ∂J = \tfrac12(a - 1/v), \qquad
        H[u] = \tfrac12 u/v^2

    and for N > L, with Σ of full rank,

    .. math:: J = \tfrac12\{a^⊤v - \ln|Σ|\}, \qquad
        ∂J = \tfrac12\mathrm{diag}(A(Λ - Σ^{-1})A^⊤), \qquad
        H[u] = \tfrac12 (AΣ^{-1}A^⊤)^{∘2} u

    Strictly convex in ln v for N ≤ L. Costs: a is Λ times N columns once for each state; then
    O(N), or 4 N L² for N > L. The family does not contain the best covariance in general. For
    N < L Σ is singular, and what `LowRank` says of its KL holds here.

    Source: Document 1, equations 13, 14 and 23. Corrections: (13) and (14) are for N ≤ L only;
    (23) is elementwise, ½ u/v², not an inner product.

    Parameters
    ----------
    A : array (..., N, L)
        On the device of the parameters.
    """

    A: Array

    def __post_init__(self) -> None:
        if self.A.ndim < 2:
            raise ValueError(
                f"BasisDiagonal: A has shape {tuple(self.A.shape)}; expected (..., N, L), one row "
                "for each weight"
            )

    @property
    def form(self) -> Form:
        return "positive"

    def shape(self, L: int) -> tuple[int, ...]:
        require_length(self, "A", self.A.shape[-1], L)
        return (self.A.shape[-2],)

    def at(self, theta: Array, prior: Precision) -> State:
        require_shape(self, theta, prior.size)
        v, ok = positive(theta)
        a = self._a(prior)
        if self.A.shape[-2] <= self.A.shape[-1]:
            return RowsState(v, a, self.A, prior, ok)
        b = backend.of(v)
        transposed = b.xp.matrix_transpose(self.A)
        factor, definite = b.factor(transposed @ (v[..., None] * self.A))
        factor = guard(factor, definite)
        Z = b.xp.matrix_transpose(b.solve_factor(factor, transposed))
        return FrameState(v, a, self.A, factor, Z, prior, ok & definite)

    def start(self, prior: Precision, B: LinearMap, curvature: Array) -> Array:
        """1/(a + diag(A Bᵀdiag(s)B Aᵀ)), stationary for N ≤ L if the curvature stayed as it is;
        for N > L times L/N, which is right for N/L copies of one basis."""
        a = self._a(prior)
        N, L = self.A.shape[-2], self.A.shape[-1]
        return min(1.0, L / N) / (a + _variances(self.A, a, B).pullback(curvature))

    def _a(self, prior: Precision) -> Array:
        xp = backend.of(self.A).xp
        transposed = xp.matrix_transpose(self.A)
        return xp.sum(transposed * prior.columns(transposed), axis=-2)


def _variances(A: Array, v: Array, B: LinearMap) -> Variances:
    """diag(B Aᵀ diag(v) A Bᵀ); through gram and quad where the map gathers."""
    xp = backend.of(v).xp
    transposed = xp.matrix_transpose(A)
    if not B.gathers:
        return squared_variances(B.columns(transposed), v)

    def along(u: Array) -> Array:
        return B.quad(transposed @ (u[..., None] * A))

    return Variances(
        value=along(v),
        jvp=along,
        pullback=lambda s: xp.sum(transposed * (B.gram(s) @ transposed), axis=-2),
        second=lambda s: xp.zeros_like,
    )


@dataclass(frozen=True, eq=False)
class RowsState(State):
    """:class:`BasisDiagonal` with N ≤ L at one point.

    Attributes
    ----------
    v, a : arrays (..., N)
    """

    v: Array
    a: Array
    A: Array
    prior: Precision
    ok: Array

    def part(self) -> Array:
        xp = backend.of(self.v).xp
        terms = self.a * self.v - xp.log(self.v)
        return or_infinity(0.5 * xp.sum(terms, axis=-1), self.ok)

    def constant(self) -> Array:
        """−½ (ln|AAᵀ| + ln|Λ| + L), +∞ where the rows of A depend on each other; 4 L N²."""
        xp = backend.of(self.A).xp
        T = xp.linalg.qr(xp.matrix_transpose(self.A))[1]
        return -0.5 * (log_diagonal(xp.abs(T)) + self.prior.logdet() + self.prior.size)

    def gradient(self) -> Array:
        return 0.5 * (self.a - 1.0 / self.v)

    def hvp(self, M: Array) -> Array:
        return 0.5 * M / (self.v * self.v)

    def variances(self, B: LinearMap) -> Variances:
        return _variances(self.A, self.v, B)

    def matvec(self, z: Array) -> Array:
        return _matvec(self.A, self.v, z)

    def root(self, xi: Array) -> Array:
        return _root(self.A, self.v, xi)

    @property
    def rank(self) -> int:
        rows: int = self.A.shape[-2]
        return rows

    def dense(self) -> Array:
        return _dense(self.A, self.v)

    def natural(self, G: Array, solve: Solve | None = None) -> Array:
        """2 v² G, the inverse of the Fisher metric ½ u/v², here also of the Hessian."""
        return 2.0 * self.v * self.v * G


@dataclass(frozen=True, eq=False)
class FrameState(State):
    """:class:`BasisDiagonal` with N > L at one point.

    Attributes
    ----------
    v, a : arrays (..., N)
    factor : array (..., L, L)
        The lower Cholesky factor C of Σ.
    Z : array (..., N, L)
        A C⁻ᵀ, so that AΣ⁻¹Aᵀ = Z Zᵀ, which is never formed.
    """

    v: Array
    a: Array
    A: Array
    factor: Array
    Z: Array
    prior: Precision
    ok: Array

    def part(self) -> Array:
        trace = backend.of(self.v).xp.sum(self.a * self.v, axis=-1)
        return or_infinity(0.5 * (trace - log_diagonal(self.factor)), self.ok)

    def constant(self) -> Array:
        return -0.5 * (self.prior.logdet() + self.prior.size)

    def gradient(self) -> Array:
        return 0.5 * (self.a - self._leverage())

    def hvp(self, M: Array) -> Array:
        xp = backend.of(M).xp
        inner = xp.matrix_transpose(self.Z) @ (M[..., None] * self.Z)
        return 0.5 * xp.sum((self.Z @ inner) * self.Z, axis=-1)

    def variances(self, B: LinearMap) -> Variances:
        return _variances(self.A, self.v, B)

    def matvec(self, z: Array) -> Array:
        return _matvec(self.A, self.v, z)

    def root(self, xi: Array) -> Array:
        return times(self.factor, xi)

    @property
    def rank(self) -> int:
        return self.prior.size

    def dense(self) -> Array:
        return _dense(self.A, self.v)

    def natural(self, G: Array, solve: Solve | None = None) -> Array:
        """2 G/diag(AΣ⁻¹Aᵀ)², from the diagonal of the Fisher metric ½ (AΣ⁻¹Aᵀ)∘²."""
        leverage = self._leverage()
        return 2.0 * G / (leverage * leverage)

    def _leverage(self) -> Array:
        """diag(AΣ⁻¹Aᵀ)."""
        return backend.of(self.Z).xp.sum(self.Z * self.Z, axis=-1)


def _matvec(A: Array, v: Array, z: Array) -> Array:
    return times(backend.of(A).xp.matrix_transpose(A), v * times(A, z))


def _root(A: Array, v: Array, xi: Array) -> Array:
    xp = backend.of(A).xp
    return times(xp.matrix_transpose(A), xp.sqrt(v) * xi)


def _dense(A: Array, v: Array) -> Array:
    return backend.of(A).xp.matrix_transpose(A) @ (v[..., None] * A)


__all__ = ["BasisDiagonal", "FrameState", "RowsState"]
