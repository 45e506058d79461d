"""The Kullback-Leibler divergence between Gaussians, exact, with derivatives.

q = N(μ, Σ), p = N(μ₀, Λ⁻¹), in nats and with all constants:

    KL(q‖p) = ½{(μ−μ₀)ᵀΛ(μ−μ₀) + tr(ΛΣ) − ln|Σ| − ln|Λ| − L}

The mean and the covariance enter as a sum, so their derivatives don't mix. Source: Document 1,
equation 1, whose "constant" is −L/2 and whose prior mean is μ₀ (docs: derivations/kl.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.operators import Precision
from gplvm_xp.posteriors import Covariance


def gaussian(mu: Array, Sigma: Array, mu0: Array, Lambda: Array) -> Array:
    """KL(N(μ, Σ)‖N(μ₀, Λ⁻¹)) of dense matrices, for checks and small L.

    Parameters
    ----------
    mu, mu0 : arrays (..., L)
    Sigma, Lambda : arrays (..., L, L)
        Covariance of q and precision of p, symmetric positive definite.

    Returns
    -------
    array (...)
        NaN where one of the matrices is not positive definite. 2/3 L³ flops.
    """
    b = backend.of(Sigma)
    xp = b.xp
    logs, sound = [], []
    for matrix in (Sigma, Lambda):
        factor, ok = b.factor(matrix)
        factor = xp.where(ok[..., None, None], factor, b.eye(matrix.shape[-1]))
        logs.append(2.0 * xp.sum(xp.log(xp.linalg.diagonal(factor)), axis=-1))
        sound.append(ok)
    away = mu - mu0
    square = xp.sum(away * (Lambda @ away[..., None])[..., 0], axis=-1)
    trace = xp.sum(Lambda * xp.matrix_transpose(Sigma), axis=(-2, -1))
    value = 0.5 * (square + trace - logs[0] - logs[1] - mu.shape[-1])
    return xp.where(sound[0] & sound[1], value, xp.nan)


def mean_part(mu: Array, mu0: Array, prior: Precision) -> tuple[Array, Array]:
    """½ (μ−μ₀)ᵀΛ(μ−μ₀), (...), and its gradient Λ(μ−μ₀), (..., L)."""
    away = mu - mu0
    gradient = prior.apply(away)
    return 0.5 * backend.of(mu).xp.sum(away * gradient, axis=-1), gradient


def mean_hvp(delta: Array, prior: Precision) -> Array:
    """Λδ, the HVP in the mean: (..., L) → (..., L)."""
    return prior.apply(delta)


@dataclass(frozen=True)
class Divergence:
    """The KL at one (μ, θ) with its derivatives.

    Attributes
    ----------
    value : array (...)
        With all constants; +∞ where Σ(θ) is not positive definite. For a singular Σ see its class.
    gmu : array (..., L)
    gtheta : array of θ's shape
    hvp : callable
        (δ, M) ↦ HVPs in μ and in θ; no mixed term.
    """

    value: Array
    gmu: Array
    gtheta: Array
    hvp: Callable[[Array, Array], tuple[Array, Array]]


def divergence(
    mu: Array, theta: Array, covariance: Covariance, mu0: Array, prior: Precision
) -> Divergence:
    """KL(N(μ, Σ(θ))‖N(μ₀, Λ⁻¹)) for a parameterised covariance.

    Parameters
    ----------
    mu, mu0 : arrays (..., L)
    theta : array
        Natural parameter of ``covariance``, with the same leading axes.

    Raises
    ------
    ValueError
        If θ, the parameterisation and the prior don't fit together.
    """
    state = covariance.at(theta, prior)
    square, gmu = mean_part(mu, mu0, prior)
    return Divergence(
        value=square + state.kl(),
        gmu=gmu,
        gtheta=state.gradient(),
        hvp=lambda delta, M: (mean_hvp(delta, prior), state.hvp(M)),
    )


__all__ = ["Divergence", "divergence", "gaussian", "mean_hvp", "mean_part"]
