"""Σ = (Λ + Bᵀ diag(p) B)⁻¹: one number for each datum."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.operators.base import LinearMap, Precision
from gplvm_xp.posteriors._shared import (
    Conditional,
    conditional,
    guard,
    or_infinity,
    require_length,
    require_shape,
    symmetric,
    times,
)
from gplvm_xp.posteriors.base import Covariance, Solve, State, Variances


@dataclass(frozen=True, eq=False)
class InverseDiagonal(Covariance):
    r"""Site precisions p (N) seen through a map B (N × L); the family of the best covariances.

    With S = BΣBᵀ and S₂ = S∘S:

    .. math:: J = \tfrac12\{\mathrm{tr}\,ΛΣ - \ln|Σ|\}, \qquad ∂J = \tfrac12 S_2 p, \qquad
        H[u] = \tfrac12 S_2 u - (S ∘ (S\,\mathrm{diag}(p)\,S))\,u

    Two ways to the same numbers. "dense" forms S and the matrix of H: 2 N³ once, 2 N² for an
    HVP. "factored" never does: with C = Σ and U = Bᵀdiag(u)B, S₂ u = quad(C U C) and

    .. math:: H[u] = \mathrm{quad}(C U K), \qquad K = \tfrac12 C - C B^⊤\mathrm{diag}(p)B\,C

    for one ``gram``, one ``quad`` and 4 L³ for an HVP; with a Hartley basis as B that is
    O(L³ + N log N).

    Not convex in p. A negative p is admissible as long as Σ is positive definite; p ≥ 0 always
    is. The stationary p is the expected curvature of the data, so a fixed point needs no solver.

    Source: Document 1, equations 15 to 19 and 24, where B = I. The HVP is not given there
    (section 0.4 calls it cumbersome). Corrections: (17) reads −σ_iσ_iᵀ, and (15) f.

    Parameters
    ----------
    B : LinearMap
    compute : {"auto", "dense", "factored"}
        "auto" is "dense" for N ≤ L and a map that does not gather.

    Raises
    ------
    ValueError
        If ``compute`` is none of these.
    """

    B: LinearMap
    compute: Literal["auto", "dense", "factored"] = "auto"

    def __post_init__(self) -> None:
        if self.compute not in ("auto", "dense", "factored"):
            raise ValueError(
                f"InverseDiagonal: compute is {self.compute!r}; expected 'auto', 'dense' or "
                "'factored'"
            )

    def shape(self, L: int) -> tuple[int, ...]:
        require_length(self, "B", self.B.cols, L)
        return (self.B.rows,)

    def at(self, theta: Array, prior: Precision) -> State:
        require_shape(self, theta, prior.size)
        found = conditional(prior, self.B.gram(theta))
        C = backend.of(theta).xp.matrix_transpose(found.Y) @ found.Y
        small = self.B.rows <= self.B.cols and not self.B.gathers
        dense = self.compute == "dense" or (self.compute == "auto" and small)
        way = (_dense if dense else _factored)(theta, self.B, C)
        return InverseDiagonalState(C, found, way, found.ok)

    def start(self, prior: Precision, B: LinearMap, curvature: Array) -> Array:
        """The curvature itself, stationary if it stayed as it is; for a map B with another number
        of rows its mean."""
        if B.rows == self.B.rows:
            return curvature
        xp = backend.of(curvature).xp
        mean = xp.mean(curvature, axis=-1, keepdims=True)
        return xp.broadcast_to(mean, (*mean.shape[:-1], self.B.rows))


@dataclass(frozen=True, eq=False)
class InverseDiagonalState(State):
    """:class:`InverseDiagonal` at one point.

    Attributes
    ----------
    C : array (..., L, L)
        Σ.
    found : Conditional
        What was factored to get it.
    way : _Way
        Derivatives in p, through S or without it.
    """

    C: Array
    found: Conditional
    way: _Way
    ok: Array

    def part(self) -> Array:
        """½{tr ΛΣ − ln|Σ| − ln|Λ|}: with ln|Λ|, which cancels before it can round."""
        return or_infinity(0.5 * (self.found.trace + self.found.logdet), self.ok)

    def constant(self) -> Array:
        return backend.of(self.C).scalar(-0.5 * self.C.shape[-1])

    def gradient(self) -> Array:
        return self.way.gradient()

    def hvp(self, M: Array) -> Array:
        return self.way.hvp(M)

    def variances(self, B: LinearMap) -> Variances:
        return self.way.variances(B)

    def matvec(self, z: Array) -> Array:
        return times(self.C, z)

    def root(self, xi: Array) -> Array:
        """Yᵀ ξ of Σ = Yᵀ Y; Y ξ would have the covariance Y Yᵀ."""
        return times(backend.of(self.C).xp.matrix_transpose(self.found.Y), xi)

    @property
    def rank(self) -> int:
        order: int = self.C.shape[-1]
        return order

    def dense(self) -> Array:
        return self.C

    def natural(self, G: Array, solve: Solve | None = None) -> Array:
        """(½ S₂)⁻¹ G, of the Fisher metric. "dense" adds the square root of the rounding unit
        times its largest diagonal entry, as S₂ may be singular; "factored" takes its diagonal."""
        return self.way.natural(G)


class _Way(ABC):
    """Derivatives in p."""

    @abstractmethod
    def gradient(self) -> Array: ...

    @abstractmethod
    def hvp(self, u: Array) -> Array: ...

    @abstractmethod
    def natural(self, G: Array) -> Array: ...

    @abstractmethod
    def variances(self, B: LinearMap) -> Variances: ...


@dataclass(frozen=True, eq=False)
class _Factored(_Way):
    """Through C = Σ and D = C Bᵀdiag(p)B C."""

    B: LinearMap
    C: Array
    D: Array

    def gradient(self) -> Array:
        return 0.5 * self.B.quad(self.D)

    def hvp(self, u: Array) -> Array:
        return self.B.quad(self.C @ self.B.gram(u) @ (0.5 * self.C - self.D))

    def natural(self, G: Array) -> Array:
        v = self.B.quad(self.C)
        metric = 0.5 * v * v
        return G / (metric + _ridge(metric)[..., None])

    def variances(self, B: LinearMap) -> Variances:
        """dv = −quad(C U C), pullback −quad_B(C Γ C), second quad_B(2 C Γ C U C): Γ is gram(s) of
        the map that v is seen through, U = gram_B(u), and the index belongs to the map of p."""
        C, own = self.C, self.B

        def second(s: Array) -> Callable[[Array], Array]:
            G = 2.0 * (C @ B.gram(s) @ C)
            return lambda u: own.quad(G @ own.gram(u) @ C)

        return Variances(
            value=B.quad(C),
            jvp=lambda u: -B.quad(C @ own.gram(u) @ C),
            pullback=lambda s: -own.quad(C @ B.gram(s) @ C),
            second=second,
        )


def _factored(p: Array, B: LinearMap, C: Array) -> _Factored:
    return _Factored(B, C, C @ B.gram(p) @ C)


@dataclass(frozen=True, eq=False)
class _Dense(_Way):
    """Through S = BΣBᵀ, S₂ = S∘S and the matrix of H."""

    p: Array
    B: LinearMap
    C: Array
    S: Array
    squares: Array
    hessian: Array
    metric: Array

    def gradient(self) -> Array:
        return 0.5 * times(self.squares, self.p)

    def hvp(self, u: Array) -> Array:
        return times(self.hessian, u)

    def natural(self, G: Array) -> Array:
        b = backend.of(G)
        half = b.solve_factor(self.metric, G[..., None])
        return b.solve_factor(self.metric, half, trans=True)[..., 0]

    def variances(self, B: LinearMap) -> Variances:
        """With T = B′ΣBᵀ: dv = −(T∘T)u, pullback −(T∘T)ᵀs, second 2((Tᵀdiag(s)T)∘S)u."""
        if B.gathers:
            return _factored(self.p, self.B, self.C).variances(B)
        xp = backend.of(self.S).xp
        T = B.columns(xp.matrix_transpose(self.B.columns(self.C)))
        back = xp.matrix_transpose(T)
        squares = T * T

        def second(s: Array) -> Callable[[Array], Array]:
            matrix = 2.0 * (back @ (s[..., None] * T)) * self.S
            return lambda u: times(matrix, u)

        return Variances(
            value=B.quad(self.C),
            jvp=lambda u: -times(squares, u),
            pullback=lambda s: -times(xp.matrix_transpose(squares), s),
            second=second,
        )


def _dense(p: Array, B: LinearMap, C: Array) -> _Dense:
    b = backend.of(C)
    xp = b.xp
    S = symmetric(B.columns(xp.matrix_transpose(B.columns(C))))
    squares = S * S
    hessian = 0.5 * squares - S * (S @ (p[..., None] * S))
    metric = 0.5 * squares
    ridge = _ridge(xp.linalg.diagonal(metric))
    factor, ok = b.factor(metric + ridge[..., None, None] * b.eye(B.rows))
    return _Dense(p, B, C, S, squares, hessian, guard(factor, ok))


def _ridge(diagonal: Array) -> Array:
    b = backend.of(diagonal)
    return math.sqrt(b.eps) * b.xp.max(diagonal, axis=-1)


__all__ = ["InverseDiagonal", "InverseDiagonalState"]
