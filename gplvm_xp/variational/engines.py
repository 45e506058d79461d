"""From sites to a posterior: two exact ways of conditioning a Gaussian prior.

A site is a Gaussian factor exp(y̌ f − ½ p f²) of one observation. Every optimal Gaussian posterior
is prior times sites (Opper & Archambeau 2009): Σ⁻¹ = Λ + Bᵀ diag(p) B, Σ⁻¹μ = Λμ₀ + Bᵀ y̌, so that
two vectors of length N hold it. :class:`Information` works with the precision, of order L (few
coefficients, many observations); :class:`Covariance` with the prior covariance K alone and B = I,
never inverting it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.operators import Dense, DiagonalPrecision
from gplvm_xp.operators.base import LinearMap, Precision


class Marginals(NamedTuple):
    """What the solver needs of the posterior that belongs to some sites.

    ``ok`` and ``kl`` are (...): whether it exists, and the full KL divergence from the prior in
    nats. ``mu`` is (..., L); ``m`` and ``v``, (..., N), are means and variances of B z.
    """

    ok: Array
    kl: Array
    mu: Array
    m: Array
    v: Array


class Engine(ABC):
    """Conditions a prior on sites."""

    @property
    @abstractmethod
    def prior_mean(self) -> Array:
        """B μ₀, (..., N)."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """N, the number of observations."""

    @property
    @abstractmethod
    def order(self) -> int:
        """Of the matrix that is factored in a step."""

    @abstractmethod
    def condition(self, p: Array, y: Array) -> Marginals:
        """The posterior of sites p, y̌ (..., N), each."""

    @abstractmethod
    def part(self, rows: slice) -> Engine:
        """That of some members of a batch; what the batch shares stays shared."""


@dataclass(frozen=True, eq=False)
class Information(Engine):
    """In precision form: P = Λ + Bᵀ diag(p) B.

    Cost R³ (factor, inverse, one product) plus ``B.gram`` and ``B.quad``; sites may be negative as
    long as P is positive definite.

    Parameters
    ----------
    prior : Precision
        Λ, shared by a batch.
    B : LinearMap
        Latent vector to predictors.
    mean : array (..., L), optional
        μ₀, default 0.
    like : array
        Any array of the problem's device and dtype.
    """

    prior: Precision
    B: LinearMap
    like: Array
    mean: Array | None = None

    def __post_init__(self) -> None:
        if self.B.cols != self.prior.size:
            raise ValueError(
                f"B is {self.B.rows} × {self.B.cols} and the prior of order {self.prior.size}; "
                "expected as many columns"
            )

    @property
    def rows(self) -> int:
        return self.B.rows

    @property
    def order(self) -> int:
        return self.prior.size

    @property
    def prior_mean(self) -> Array:
        if self.mean is not None:
            return self.B.apply(self.mean)
        return backend.of(self.like).zeros((self.B.rows,))

    def condition(self, p: Array, y: Array) -> Marginals:
        pull = self.B.adjoint(y)
        if self.mean is not None:
            pull = pull + self.prior.apply(self.mean)
        ok, kl, mu, C = from_natural(self.prior, self.prior.plus(self.B.gram(p)), pull, self.mean)
        return Marginals(ok, kl, mu, self.B.apply(mu), self.B.quad(C))

    def part(self, rows: slice) -> Information:
        if self.mean is None or self.mean.ndim < 2:
            return self
        return replace(self, mean=self.mean[rows, ...])

    def covariance(self, p: Array) -> tuple[Array, Array]:
        """Σ and a root S with S Sᵀ = Σ, both (..., L, L), of the posterior with sites p."""
        b = backend.of(p)
        L, _ = b.factor(self.prior.plus(self.B.gram(p)))
        root = b.xp.matrix_transpose(b.inverse_factor(L))
        return root @ b.xp.matrix_transpose(root), root


def from_natural(
    prior: Precision, P: Array, pull: Array, mean: Array | None
) -> tuple[Array, Array, Array, Array]:
    """The Gaussian with Σ⁻¹ = P (..., L, L) and Σ⁻¹μ = ``pull`` (..., L) beside its prior.

    Returns
    -------
    ok : bool array (...)
        Whether P is positive definite.
    kl : array (...)
        The full divergence from N(``mean``, Λ⁻¹), nats.
    mu : array (..., L)
    C : array (..., L, L)
        Σ.
    """
    b = backend.of(P)
    xp = b.xp
    L, ok = b.factor(P)
    Ci = b.inverse_factor(L)
    # C = Ciᵀ Ci: the inverse factor is lower, so its transpose comes first.
    C = xp.matrix_transpose(Ci) @ Ci
    mu = xp.squeeze(C @ pull[..., None], axis=-1)
    delta = mu if mean is None else mu - mean
    kl = 0.5 * (
        xp.sum(delta * prior.apply(delta), axis=-1)
        + prior.trace_product(C)
        + 2.0 * xp.sum(xp.log(xp.linalg.diagonal(L)), axis=-1)
        - prior.logdet()
        - prior.size
    )
    return ok, kl, mu, C


@dataclass(frozen=True, eq=False)
class Covariance(Engine):
    """In covariance form, B = I: K is never inverted.

    With W = diag(p) and B_W = I + W^½ K W^½ (eigenvalues ≥ 1), Σ = K − VᵀV, V = L_B⁻¹W^½K; the
    error of Σ is that of K's entries, whatever K's condition. Needs p ≥ 0: negative sites count
    as 0. Cost n³/3 + n³ for the marginal variances.

    Parameters
    ----------
    K : array (n, n)
        Prior covariance, positive semi-definite, shared by a batch.
    mean : array (..., n) or (..., 1), optional
        μ₀, default 0.

    References
    ----------
    M. Opper, C. Archambeau, Neural Computation 21 (2009) 786–792; Rasmussen & Williams (2006),
    eq. 3.27.
    """

    K: Array
    mean: Array | None = None

    @property
    def rows(self) -> int:
        n: int = self.K.shape[-1]
        return n

    @property
    def order(self) -> int:
        n: int = self.K.shape[-1]
        return n

    @property
    def prior_mean(self) -> Array:
        b = backend.of(self.K)
        zero = b.zeros((self.K.shape[-1],))
        return zero if self.mean is None else zero + self.mean

    def condition(self, p: Array, y: Array) -> Marginals:
        b = backend.of(p)
        xp = b.xp
        p, root, L, ok = self.factor(p)
        nu = self.weights(p, y, root, L)
        shift = xp.squeeze(self.K @ nu[..., None], axis=-1)
        mu = self.prior_mean + shift
        V = b.solve_factor(L, root[..., :, None] * self.K)
        v = xp.linalg.diagonal(self.K) - xp.sum(V * V, axis=-2)
        # Rounding of a large K may leave more than the site alone allows, or less than nothing.
        v = xp.where(p * v > 1.0, 1.0 / xp.where(p > 0.0, p, 1.0), v)
        v = xp.where(v < 0.0, 0.0, v)
        # tr B_W⁻¹ = n − Σ p v: the trace costs nothing.
        kl = 0.5 * (
            xp.sum(nu * shift, axis=-1)
            - xp.sum(p * v, axis=-1)
            + 2.0 * xp.sum(xp.log(xp.linalg.diagonal(L)), axis=-1)
        )
        return Marginals(ok, kl, mu, mu, v)

    def part(self, rows: slice) -> Covariance:
        if self.mean is None or self.mean.ndim < 2:
            return self
        return replace(self, mean=self.mean[rows, ...])

    def whitened(self) -> Information:
        """The same prior in coordinates f = μ₀ + L_K u, u ~ N(0, I), without its mean; K must be
        positive definite."""
        b = backend.of(self.K)
        prior = DiagonalPrecision(b.full((self.order,), 1.0))
        return Information(prior, Dense(b.factor(self.K)[0]), self.K)

    def factor(self, p: Array) -> tuple[Array, Array, Array, Array]:
        """p clipped at 0, W^½, the factor of B_W, and whether it exists."""
        b = backend.of(p)
        p = b.xp.where(p > 0.0, p, 0.0)
        root = b.xp.sqrt(p)
        n = self.K.shape[-1]
        L, ok = b.factor(root[..., :, None] * self.K * root[..., None, :] + b.eye(n))
        return p, root, L, ok

    def weights(self, p: Array, y: Array, root: Array, L: Array) -> Array:
        """ν = Λ(μ − μ₀), so that μ = μ₀ + K ν and a prediction's mean is μ₀ + k*ᵀν; (..., n)."""
        b = backend.of(p)
        xp = b.xp
        pull = y - p * self.prior_mean
        # ν = W^½ B_W⁻¹ W^-½ pull = pull - W^½ B_W⁻¹ W^½ K pull. A sharp site cancels in the second
        # form, one of no precision has no first: each takes its own.
        sharp = p * xp.linalg.diagonal(self.K) > 1.0
        rest = xp.where(sharp, 0.0, pull)
        inner = xp.where(sharp, pull / xp.where(sharp, root, 1.0), 0.0)
        inner = inner[..., None] - root[..., None] * (self.K @ rest[..., None])
        inner = b.solve_factor(L, b.solve_factor(L, inner), trans=True)
        return rest + root * xp.squeeze(inner, axis=-1)


__all__ = ["Covariance", "Engine", "Information", "Marginals", "from_natural"]
