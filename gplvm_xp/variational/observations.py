"""Data under a likelihood: the expected log-likelihood's share of a free energy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.likelihoods.base import Expected, Likelihood


class Slopes(NamedTuple):
    """𝓔 = −Σ w ℓ and its first derivatives, d𝓔 = r·dm + ½ s·dv: all that sites need."""

    value: Array
    r: Array
    s: Array


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
    unit : float
        Size of the latent function against which a search measures changes: 1 where it is a
        logarithm or a log odds, the spread of y where it has y's units.

    Raises
    ------
    ValueError
        If the shapes do not fit each other.
    TypeError
        If something is not an array of real floating numbers.
    """

    likelihood: Likelihood
    y: Array
    weights: Array | None = None
    exposure: Array | None = None
    offset: Array | None = None
    theta: Array | None = None
    unit: float = 1.0
    # −Σ w (terms of ln p without f), (...): once, not at every evaluation.
    constant: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        xp = backend.of(self.y).xp
        self._check()
        fixed = self.likelihood.constant(self.y, self.theta, self.exposure)
        fixed = xp.broadcast_to(fixed, self.y.shape)
        if self.weights is not None:
            fixed = xp.where(self.weights > 0.0, self.weights * fixed, 0.0)
        object.__setattr__(self, "constant", -xp.sum(fixed, axis=-1))

    def _check(self) -> None:
        """Refuse what would broadcast to something else; values are not read."""
        xp, shape = backend.of(self.y).xp, tuple(self.y.shape)
        if not shape:
            raise ValueError("y is one number without an axis; expected (..., N)")
        arrays = {"weights": self.weights, "exposure": self.exposure, "offset": self.offset}
        for name, a in {"y": self.y, **arrays}.items():
            if a is None:
                continue
            if not xp.isdtype(a.dtype, "real floating"):
                raise TypeError(f"{name} has dtype {a.dtype}; expected real floating: convert it")
            own = tuple(a.shape)
            if len(own) > len(shape) or any(
                k not in (1, n) for k, n in zip(own[::-1], shape[::-1], strict=False)
            ):
                raise ValueError(f"{name} has shape {own}; expected {shape}, as y, or less")

    def predictor(self, m: Array) -> Array:
        """The mean of f from that of B z."""
        return m if self.offset is None else m + self.offset

    def slopes(self, m: Array, v: Array) -> Slopes:
        """𝓔 and its first derivatives at marginals of B z: r = −wℓ_m, s = −2wℓ_v; (..., N)."""
        e, value = self._expected(m, v)
        return Slopes(value, self._times(-1.0, e.m), self._times(-2.0, e.v))

    def terms(self, m: Array, v: Array) -> Terms:
        """𝓔 and its derivatives to second order at marginals of B z; all (..., N).

        Source: Bonnet and Price, as collected in derivations/likelihoods.md; r = −wℓ_m,
        h = −wℓ_mm, s = −2wℓ_v, t = −2wℓ_mv, c = −4wℓ_vv.
        """
        e, value = self._expected(m, v)
        return Terms(
            value,
            self._times(-1.0, e.m),
            self._times(-2.0, e.v),
            self._times(-1.0, e.mm),
            self._times(-2.0, e.mv),
            self._times(-4.0, e.vv),
        )

    def _expected(self, m: Array, v: Array) -> tuple[Expected, Array]:
        xp = backend.of(m).xp
        m, w = self.predictor(m), self.weights
        if w is not None:
            # At a masked entry m and v may be anything, and 0 · ∞ is not 0.
            m, v = xp.where(w > 0.0, m, 0.0), xp.where(w > 0.0, v, 0.0)
        e = self.likelihood.expected_varying(self.y, m, v, self.theta, self.exposure)
        return e, self.constant - xp.sum(e.value if w is None else w * e.value, axis=-1)

    def _times(self, factor: float, a: Array) -> Array:
        return factor * a if self.weights is None else (factor * self.weights) * a

    def theta_gradient(self, m: Array, v: Array) -> Array:
        """∂𝓔/∂θ of the likelihood's hyperparameters, summed over all observations, (p,)."""
        xp = backend.of(m).xp
        g = self.likelihood.expected_theta(
            self.y, self.predictor(m), v, theta=self.theta, exposure=self.exposure
        )
        if self.weights is not None:
            g = xp.where(self.weights > 0.0, self.weights * g, 0.0)
        return -xp.sum(xp.reshape(g, (g.shape[0], -1)), axis=-1)


__all__ = ["Observations", "Slopes", "Terms"]
