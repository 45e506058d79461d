"""Σ = X Xᵀ with an X of few columns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.operators.base import LinearMap, Precision
from gplvm_xp.posteriors._shared import (
    factor_variances,
    gram_columns,
    guard,
    log_diagonal,
    or_infinity,
    require_shape,
    times,
)
from gplvm_xp.posteriors.base import Covariance, Solve, State, Variances


@dataclass(frozen=True)
class LowRank(Covariance):
    r"""X (L × R), R ≤ L, of full column rank; any array is a direction.

    With Γ = XᵀX:

    .. math:: J = \tfrac12\{\mathrm{tr}(X^⊤ΛX) - \ln|Γ|\}, \qquad ∂J = ΛX - XΓ^{-1}, \qquad
        H[M] = ΛM - MΓ^{-1} + X(C + C^⊤), \quad C = Γ^{-1}X^⊤MΓ^{-1}

    evaluated from the thin QR factorisation X = Q T: XΓ⁻¹ = Q T⁻ᵀ, and with N = QᵀM the last two
    terms are −MΓ⁻¹ + Q (NΓ⁻¹ + T⁻ᵀNᵀT⁻ᵀ). Neither Γ nor a pseudo-inverse is formed, whose errors
    grow as the square of the condition of X. Costs: 4 L R² for the factorisation, Λ times R
    columns and 6 L R² for an HVP.

    Not convex: X O with an orthogonal O gives the same Σ, so R(R−1)/2 directions are flat at a
    stationary point, and away from one the Hessian is indefinite. **For R < L this is not a
    bound**: Σ is singular and its KL infinite. :meth:`LowRankState.kl` is the limit of the KL of
    XXᵀ + εI without its diverging term −½ (L−R) ln ε; values for different R can't be compared.
    `Subspace` keeps a bound.

    Source: Document 1, equations 6 to 12 and 22. Correction: in (11), (12) and (22) ΛMᵀ must read
    ΛM; as printed it has the wrong shape unless X is square, and is wrong unless M is symmetric.

    Parameters
    ----------
    rank : int
        R.

    Raises
    ------
    ValueError
        If R is less than 1.
    """

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LowRank: rank is {self.rank}; expected at least 1 column")

    def shape(self, L: int) -> tuple[int, ...]:
        if self.rank > L:
            raise ValueError(
                f"LowRank: rank is {self.rank}, and a latent vector of length {L} has at most {L} "
                "independent columns; choose a rank up to that"
            )
        return (L, self.rank)

    def at(self, theta: Array, prior: Precision) -> LowRankState:
        require_shape(self, theta, prior.size)
        b = backend.of(theta)
        xp = b.xp
        Q, T = xp.linalg.qr(theta)
        # A column that depends on those before it leaves only rounding on the diagonal; compared
        # with the column itself, so that the scale of the columns does not matter.
        noise = 16.0 * math.sqrt(prior.size) * b.eps
        lengths = xp.sqrt(xp.sum(T * T, axis=-2))
        ok = xp.all(xp.abs(xp.linalg.diagonal(T)) > noise * lengths, axis=-1)
        U = guard(xp.matrix_transpose(T), ok)
        plus = xp.matrix_transpose(b.solve_factor(U, xp.matrix_transpose(Q), trans=True))
        return LowRankState(theta, Q, U, plus, prior.columns(theta), prior, ok)

    def start(self, prior: Precision, B: LinearMap, curvature: Array) -> Array:
        """X with Xᵀ(Λ + Bᵀ diag(s) B)X = I in the prior's leading directions.

        Leading by four steps of subspace iteration with Λ⁻¹; given the curvature, the condition
        is stationarity within that subspace.
        """
        b = backend.of(curvature)
        xp = b.xp
        draw = np.random.default_rng(0).standard_normal(self.shape(prior.size))
        Y = b.asarray(draw)
        for _ in range(4):
            Y, _T = xp.linalg.qr(prior.covariance_columns(Y))
        P = xp.matrix_transpose(Y) @ (prior.columns(Y) + gram_columns(B, curvature, Y))
        factor, ok = b.factor(P)
        back = b.solve_factor(guard(factor, ok), xp.matrix_transpose(Y))
        return xp.matrix_transpose(back)


@dataclass(frozen=True, eq=False)
class LowRankState(State):
    """:class:`LowRank` at one point.

    Attributes
    ----------
    X, Q : arrays (..., L, R)
        The parameter and the orthonormal factor of X = Q Uᵀ.
    U : array (..., R, R)
        Lower.
    plus : array (..., L, R)
        X Γ⁻¹, the transposed pseudo-inverse of X.
    LambdaX : array (..., L, R)
    """

    X: Array
    Q: Array
    U: Array
    plus: Array
    LambdaX: Array
    prior: Precision
    ok: Array

    def part(self) -> Array:
        xp = backend.of(self.X).xp
        trace = xp.sum(self.X * self.LambdaX, axis=(-2, -1))
        return or_infinity(0.5 * (trace - log_diagonal(xp.abs(self.U))), self.ok)

    def constant(self) -> Array:
        """−½ (ln|Λ| + L). For R < L part + constant is the limit of the KL of XXᵀ + εI for
        ε → 0 with −½ (L−R) ln ε taken away: not a KL, and no bound follows from it."""
        return -0.5 * (self.prior.logdet() + self.prior.size)

    def gradient(self) -> Array:
        return self.LambdaX - self.plus

    def hvp(self, M: Array) -> Array:
        b = backend.of(M)
        xp = b.xp
        N = xp.matrix_transpose(self.Q) @ M
        left = b.solve_factor(self.U, xp.matrix_transpose(N))
        twice = xp.matrix_transpose(b.solve_factor(self.U, xp.matrix_transpose(left), trans=True))
        return self.prior.columns(M) - self._by_gamma(M) + self.Q @ (self._by_gamma(N) + twice)

    def variances(self, B: LinearMap) -> Variances:
        return factor_variances(B, self.X, lambda G: G)

    def matvec(self, z: Array) -> Array:
        return times(self.X, times(backend.of(self.X).xp.matrix_transpose(self.X), z))

    def root(self, xi: Array) -> Array:
        return times(self.X, xi)

    @property
    def rank(self) -> int:
        columns: int = self.X.shape[-1]
        return columns

    def dense(self) -> Array:
        return self.X @ backend.of(self.X).xp.matrix_transpose(self.X)

    def natural(self, G: Array, solve: Solve | None = None) -> Array:
        """(Λ + Bᵀ diag(s) B)⁻¹ G by ``solve``, which dominates the Hessian. Where R = L, Σ G takes
        its place, the same at the optimum. Without ``solve`` Λ⁻¹ G, which is slow where the data
        say much more than the prior."""
        if self.X.shape[-1] == self.X.shape[-2]:
            return self.dense() @ G
        return (self.prior.covariance_columns if solve is None else solve)(G)

    def horizontal(self, M: Array) -> Array:
        """M without its part along the gauge, M − XΩ: it changes Σ by as much as M does.

        The skew Ω solves ΓΩ + ΩΓ = XᵀM − MᵀX, so that Xᵀ(M − XΩ) is symmetric. With the singular
        values T = V diag(s) Wᵀ and E = VᵀQᵀM W it is XΩ = Q V [s_i (s_i E_ij − s_j E_ji)/(s_i² +
        s_j²)] Wᵀ, which forms no Γ.
        """
        xp = backend.of(M).xp
        T = xp.matrix_transpose(self.U)
        V, s, Wt = xp.linalg.svd(T)
        E = xp.matrix_transpose(V) @ (xp.matrix_transpose(self.Q) @ M) @ xp.matrix_transpose(Wt)
        row, column = s[..., :, None], s[..., None, :]
        skew = row * (row * E - column * xp.matrix_transpose(E)) / (row * row + column * column)
        return M - self.Q @ (V @ skew @ Wt)

    def _by_gamma(self, A: Array) -> Array:
        """A Γ⁻¹ for A (..., K, R)."""
        b = backend.of(A)
        turned = b.solve_factor(self.U, b.xp.matrix_transpose(A))
        return b.xp.matrix_transpose(b.solve_factor(self.U, turned, trans=True))


__all__ = ["LowRank", "LowRankState"]
