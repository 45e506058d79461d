"""Σ = Fᵀ Q Qᵀ F: a dense factor inside a fixed subspace."""

from __future__ import annotations

from dataclasses import dataclass

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.operators.base import LinearMap, Precision
from gplvm_xp.operators.maps import Dense
from gplvm_xp.posteriors._shared import require_length, require_shape
from gplvm_xp.posteriors.base import Covariance, Form, Solve, State, Variances
from gplvm_xp.posteriors.cholesky import Cholesky
from gplvm_xp.posteriors.lowrank import LowRank


@dataclass(frozen=True, eq=False)
class Subspace(Covariance):
    r"""A factor Q (R × R) of the covariance of R coordinates; the latent vector is Fᵀ times them.

    With Λ̃ = FΛFᵀ, which is diagonal where F diagonalises Λ (Hartley rows, circulant prior):

    .. math:: J = \tfrac12\mathrm{tr}(Q^⊤\tildeΛQ) - \ln|\det Q|, \quad
        ∂J = \tildeΛQ - Q^{-⊤}, \quad H[M] = \tildeΛM + Q^{-⊤}M^⊤Q^{-⊤}

    projected to the lower triangle where Q is one (default): `Cholesky` with the prior Λ̃, and
    `LowRank` of full rank where not. A triangle is convex and has no gauge; use the general Q
    only for a reason. Costs: R² for a gradient or an HVP where Λ̃ is diagonal, 2 R³ otherwise.

    **The KL is exact, for either of two readings.** The prior may be truncated to the subspace,
    N(0, Λ̃⁻¹) for the coordinates and nothing outside: then the marginal variances are those given
    here. Or, where the subspace belongs to eigenvectors of Λ, the posterior may equal the prior
    on the complement: the KL is the same, and the prior's variance there is to be added to the
    marginal variances.

    Source: Document 1, equations 20 and 25. Corrections: FΛFᵀMᵀ must read FΛFᵀM; a triangular Q
    needs the projection; diag Σ is the row sums of (FᵀQ)∘²; with a complex F and a real Q the
    product is not real, so the transform is the Hartley transform.

    Parameters
    ----------
    basis : LinearMap
        Fᵀ, from R coordinates to the latent vector, with orthonormal columns (not checked;
        otherwise the KL is that of the coordinates).
    triangular : bool
    """

    basis: LinearMap
    triangular: bool = True

    @property
    def form(self) -> Form:
        return self._inner.form

    def shape(self, L: int) -> tuple[int, ...]:
        require_length(self, "the basis", self.basis.rows, L)
        return self._inner.shape(self.basis.cols)

    def at(self, theta: Array, prior: Precision) -> SubspaceState:
        require_shape(self, theta, prior.size)
        inner = self._inner.at(theta, self.basis.restrict(prior))
        return SubspaceState(theta, inner, self.basis, inner.ok)

    def start(self, prior: Precision, B: LinearMap, curvature: Array) -> Array:
        return self._inner.start(
            self.basis.restrict(prior), _seen(B, self.basis, curvature), curvature
        )

    @property
    def _inner(self) -> Covariance:
        return Cholesky() if self.triangular else LowRank(self.basis.cols)


def _seen(B: LinearMap, basis: LinearMap, like: Array) -> LinearMap:
    """B Fᵀ, one dense (N, R) matrix unless B is the identity."""
    return basis if B.identity else Dense(B.columns(basis.matrix(like)))


@dataclass(frozen=True, eq=False)
class SubspaceState(State):
    """:class:`Subspace` at one point.

    Attributes
    ----------
    Q : array (..., R, R)
    inner : State
        That of the coordinates.
    """

    Q: Array
    inner: State
    basis: LinearMap
    ok: Array

    def part(self) -> Array:
        return self.inner.part()

    def constant(self) -> Array:
        """−½ (ln|Λ̃| + R): the constants of the truncated prior, with which the KL is exact."""
        return self.inner.constant()

    def gradient(self) -> Array:
        return self.inner.gradient()

    def hvp(self, M: Array) -> Array:
        return self.inner.hvp(M)

    def variances(self, B: LinearMap) -> Variances:
        return self.inner.variances(_seen(B, self.basis, self.Q))

    def matvec(self, z: Array) -> Array:
        return self.basis.apply(self.inner.matvec(self.basis.adjoint(z)))

    def root(self, xi: Array) -> Array:
        return self.basis.apply(self.inner.root(xi))

    @property
    def rank(self) -> int:
        return self.inner.rank

    def dense(self) -> Array:
        half = self.basis.columns(self.inner.dense())
        return self.basis.columns(backend.of(half).xp.matrix_transpose(half))

    def natural(self, G: Array, solve: Solve | None = None) -> Array:
        return self.inner.natural(G)


__all__ = ["Subspace", "SubspaceState"]
