"""Data under a likelihood: the expected log-likelihood's share of a free energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.likelihoods.base import Likelihood


class Terms(NamedTuple):
    """𝓔 = −Σ w ℓ and its derivatives in the marginal means m and variances v.

    d𝓔 = r·dm + ½ s·dv, dr = h dm + ½ t dv, ds = t dm + ½ c dv; with exact expectations h = s, the
    expected curvature. ``value`` is (...), the others (..., N).
    """

    value: Array
    r: Array
    s: Array
    h: Array
    t: Array
    c: Array


@dataclass(frozen=True, eq=False)
class Observations:
    """What was observed, with everything that enters beside the latent function.

    Parameters
    ----------
    likelihood : Likelihood
        p(y | f), independent over observations.
    y : array (..., N)
        Finite everywhere; masked entries hold any value of the support.
    weights : array (..., N), optional
        w ≥ 0 multiplies each term; 0 masks an entry. Default 1.
    exposure : array (..., N), optional
        See :class:`gplvm_xp.likelihoods.Likelihood`.
    offset : array (..., N) or 0-d, optional
        Added to the latent function, f = B z + o.
    theta : array (p,), optional
        Hyperparameters of the likelihood; default its starting values.
    """

    likelihood: Likelihood
    y: Array
    weights: Array | None = None
    exposure: Array | None = None
    offset: Array | None = None
    theta: Array | None = None

    def predictor(self, m: Array) -> Array:
        """The mean of f from that of B z."""
        return m if self.offset is None else m + self.offset

    def terms(self, m: Array, v: Array) -> Terms:
        """𝓔 and its derivatives at marginals of B z; all (..., N).

        Source: Bonnet and Price, as collected in derivations/likelihoods.md; r = −wℓ_m,
        h = −wℓ_mm, s = −2wℓ_v, t = −2wℓ_mv, c = −4wℓ_vv.
        """
        xp = backend.of(m).xp
        e = self.likelihood.expected(
            self.y, self.predictor(m), v, theta=self.theta, exposure=self.exposure
        )
        r, s, h, t, c = -e.m, -2.0 * e.v, -e.mm, -2.0 * e.mv, -4.0 * e.vv
        if self.weights is None:
            return Terms(-xp.sum(e.value, axis=-1), r, s, h, t, c)
        used = self.weights > 0.0

        def weigh(a: Array) -> Array:
            # A masked entry's own term may be anything, NaN included.
            return xp.where(used, self.weights * a, 0.0)

        return Terms(
            -xp.sum(weigh(e.value), axis=-1), weigh(r), weigh(s), weigh(h), weigh(t), weigh(c)
        )

    def theta_gradient(self, m: Array, v: Array) -> Array:
        """∂𝓔/∂θ of the likelihood's hyperparameters, summed over all observations, (p,)."""
        xp = backend.of(m).xp
        g = self.likelihood.expected_theta(
            self.y, self.predictor(m), v, theta=self.theta, exposure=self.exposure
        )
        if self.weights is not None:
            g = xp.where(self.weights > 0.0, self.weights * g, 0.0)
        return -xp.sum(xp.reshape(g, (g.shape[0], -1)), axis=-1)


__all__ = ["Observations", "Terms"]
