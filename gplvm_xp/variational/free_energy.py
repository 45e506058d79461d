"""The free energy 𝓕 = KL(q ‖ prior) − Σ w ℓ in (μ, θ), for every parameterisation and likelihood.

Derivations with sources: derivations/inference.md. The minimum of 𝓕 is minus the evidence lower
bound (ELBO) of a Gaussian posterior, except for the degenerate and unnormalised cases that their
classes name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.operators import Circulant
from gplvm_xp.operators.base import LinearMap, Precision
from gplvm_xp.posteriors.base import Covariance, State
from gplvm_xp.variational.coordinates import Coordinates
from gplvm_xp.variational.observations import Observations

MeanMetric: TypeAlias = Literal["posterior", "hessian", "circulant", "prior"]

# Largest order of a dense matrix that is made where another way exists.
_DENSE = 2000


@dataclass(frozen=True, eq=False)
class FreeEnergy:
    """𝓕 as a function of one flat vector (μ, coordinates of θ), with exact HVPs.

    Parameters
    ----------
    prior : Precision
        Λ, of order L.
    B : LinearMap
        Latent vector to predictors, f = B z + offset.
    covariance : Covariance
        The parameterisation of Σ.
    data : Observations
    mean : array (..., L), optional
        μ₀, default 0.
    metric : {"posterior", "hessian", "circulant", "prior"}, optional
        The mean's share of the preconditioner: Σ; (Λ + Bᵀ diag(s) B)⁻¹, one dense Cholesky factor
        an outer iteration; for a Circulant prior of the cells themselves (Λ + s̄ I)⁻¹ with the mean
        of s, two transforms; or Λ⁻¹. Default "posterior"; where the family's Σ is singular or
        diagonal in another basis "hessian", above an order of 2000 "circulant" where it can be.

    Raises
    ------
    ValueError
        If orders and shapes do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from gplvm_xp.likelihoods import Poisson
    >>> from gplvm_xp.operators import DiagonalPrecision, Identity
    >>> from gplvm_xp.optim import newton_krylov
    >>> from gplvm_xp.posteriors import Cholesky
    >>> data = Observations(Poisson(), np.array([0.0, 3.0, 1.0]))
    >>> F = FreeEnergy(DiagonalPrecision(np.ones(3)), Identity(3), Cholesky(), data)
    >>> result = newton_krylov(F.at, F.start())
    >>> result.status
    'converged'
    """

    prior: Precision
    B: LinearMap
    covariance: Covariance
    data: Observations
    mean: Array | None = None
    metric: MeanMetric | None = None

    def __post_init__(self) -> None:
        L, N, y = self.prior.size, self.B.rows, tuple(self.data.y.shape)
        mean = (L,) if self.mean is None else tuple(self.mean.shape)
        if self.B.cols != L or y[-1] != N or mean[-1:] != (L,):
            raise ValueError(
                f"the prior is of order {L}, B is {N} × {self.B.cols}, y has shape {y} and the "
                f"mean {mean}; expected B of order (N, L), y (..., N), mean (..., L)"
            )
        self.covariance.shape(L)
        if self.metric == "circulant" and not (
            isinstance(self.prior, Circulant) and self.B.identity
        ):
            raise ValueError(
                "metric='circulant' was given; it needs a Circulant prior seen through the identity"
            )

    @property
    def coordinates(self) -> Coordinates:
        """How θ lies in the flat vector."""
        return Coordinates(self.covariance.form, self.covariance.shape(self.prior.size))

    def start(self, mu: Array | None = None, theta: Array | None = None) -> Array:
        """A flat start; by default the prior's mean, and the covariance that the likelihood's
        curvature there asks for."""
        b = backend.of(self.data.y)
        lead = self.data.y.shape[:-1]
        if mu is None:
            mu = b.zeros((*lead, self.prior.size))
            mu = mu if self.mean is None else mu + self.mean
        if theta is None:
            zero = b.xp.zeros_like(self.data.y)
            s = self.data.terms(self.B.apply(mu), zero).s
            theta = self.covariance.start(self.prior, self.B, b.xp.where(s > 0.0, s, 0.0))
        return b.xp.concat([mu, self.coordinates.pack(theta)], axis=-1)

    def split(self, x: Array) -> tuple[Array, Array]:
        """μ (..., L) and θ (..., *shape) of a flat vector."""
        L = self.prior.size
        if x.shape[-1] != L + self.coordinates.size:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; expected (..., {L + self.coordinates.size}): "
                "start() makes one"
            )
        return x[..., :L], self.coordinates.unpack(x[..., L:])

    def at(self, x: Array) -> FreeEnergyPoint:
        """𝓕 and everything that its derivatives share at x (..., d)."""
        return FreeEnergyPoint(self, x)


class FreeEnergyPoint:
    """𝓕 at one point; see :class:`gplvm_xp.optim.Point`.

    Attributes
    ----------
    value : array (...)
        𝓕 in nats, all constants; +inf where Σ is not positive definite or a term overflows.
    mu, theta : arrays
    state : State
        Of the covariance.
    m, v : array (..., N)
        Marginal means (without the offset) and variances of the predictors.
    """

    def __init__(self, free: FreeEnergy, x: Array) -> None:
        self._free = free
        self.mu, self.theta = free.split(x)
        self.state: State = free.covariance.at(self.theta, free.prior)
        self._variances = self.state.variances(free.B)
        self.m, self.v = free.B.apply(self.mu), self._variances.value
        self.terms = free.data.terms(self.m, self.v)
        delta = self.mu if free.mean is None else self.mu - free.mean
        self._pull = free.prior.apply(delta)
        b = backend.of(x)
        self._b = b
        xp = b.xp
        f = 0.5 * xp.sum(delta * self._pull, axis=-1) + self.state.kl() + self.terms.value
        self.value = xp.where(self.state.ok & xp.isfinite(f), f, xp.inf)
        self._g: Array | None = None
        self._factor: Array | None = None

    def gradient(self) -> Array:
        """g_μ = Λ(μ−μ₀) + Bᵀr; g_θ = ∂KL + ½ (∂v)ᵀ s, in the flat vector."""
        free = self._free
        self._g = self.state.gradient() + 0.5 * self._variances.pullback(self.terms.s)
        self._second = self._variances.second(self.terms.s)
        g_mu = self._pull + free.B.adjoint(self.terms.r)
        flat = free.coordinates.gradient(self.theta, self._g)
        return self._b.xp.concat([g_mu, flat], axis=-1)

    def hvp(self, u: Array) -> Array:
        """H_μ = Λδ + Bᵀ(h∘b + ½t∘dv), H_θ = KL's + ½ d(∂v)ᵀ[M] s + ½ (∂v)ᵀ e, with b = Bδ, dv the
        change of v along M, and e = t∘b + ½c∘dv."""
        free, t = self._free, self.terms
        L = free.prior.size
        if self._g is None:
            self.gradient()
        step, flat = u[..., :L], u[..., L:]
        M = free.coordinates.direction(self.theta, flat)
        moved, dv = free.B.apply(step), self._variances.jvp(M)
        h_mu = free.prior.apply(step) + free.B.adjoint(t.h * moved + 0.5 * t.t * dv)
        e = t.t * moved + 0.5 * t.c * dv
        h = self.state.hvp(M) + 0.5 * (self._second(M) + self._variances.pullback(e))
        out = free.coordinates.gradient(self.theta, h)
        out = out + free.coordinates.second(self.theta, self._g, flat)
        return self._b.xp.concat([h_mu, out], axis=-1)

    def precondition(self, u: Array) -> Array:
        """Natural metric: the mean's by ``metric``, θ's by the state's own."""
        free, c = self._free, self._free.coordinates
        L = free.prior.size
        step, G = u[..., :L], c.dual(self.theta, u[..., L:])
        # A diagonal Σ of another basis may be far from the best one, of which Σ is the metric.
        far = self.state.rank < L or free.covariance.form == "positive"
        metric = free.metric or (self._curved if far else "posterior")
        if metric == "posterior":
            mean = self.state.matvec(step)
        elif metric == "prior":
            mean = free.prior.covariance(step)
        else:
            mean = self._b.xp.squeeze(self._solve(step[..., None]), axis=-1)
        by_columns = self._solve if metric in ("hessian", "circulant") else None
        own = self.state.natural(G, by_columns)
        return self._b.xp.concat([mean, c.coordinates(self.theta, own)], axis=-1)

    @property
    def _curved(self) -> MeanMetric:
        free = self._free
        on_grid = isinstance(free.prior, Circulant) and free.B.identity
        return "circulant" if on_grid and free.prior.size > _DENSE else "hessian"

    def _solve(self, V: Array) -> Array:
        """(Λ + Bᵀ diag(s) B)⁻¹ V with s clipped at 0, factored once, or on a grid its circulant
        approximation, with the mean of s."""
        b, free = self._b, self._free
        if (free.metric or self._curved) == "circulant":
            assert isinstance(free.prior, Circulant)
            s = b.xp.where(self.terms.s > 0.0, self.terms.s, 0.0)
            return free.prior.shifted(b.xp.mean(s, axis=-1)).covariance_columns(V)
        if self._factor is None:
            s = b.xp.where(self.terms.s > 0.0, self.terms.s, 0.0)
            self._factor = b.factor(free.prior.plus(free.B.gram(s)))[0]
        half = b.solve_factor(self._factor, V)
        return b.solve_factor(self._factor, half, trans=True)


__all__ = ["FreeEnergy", "FreeEnergyPoint", "MeanMetric"]
