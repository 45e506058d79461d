"""The probit quasi-likelihood: a mean of Φ(f) in the form of an exponential family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.likelihoods import _checks
from gplvm_xp.likelihoods._special import normal_density
from gplvm_xp.likelihoods.base import Expected, Likelihood


@dataclass(frozen=True)
class ProbitQuasi(Likelihood):
    """ln p̃ = y f − A(f), A(f) = f Φ(f) + φ(f), so that A′ = Φ; y in {0, 1}.

    .. warning:: This is not a probability: Σ_y p̃(y | f) is 1.05, 1.34, 1.05 at f = −3, 0, 3, and
       no base measure mends it. Its free energy bounds no evidence and must not be compared with
       that of another likelihood; :class:`BernoulliProbit` is the model with p(y = 1 | f) = Φ(f).
       It is here because its expectations have a closed form and published results rest on it.

    With γ = (1 + v)^(−½): ℓ = y m − m Φ(γm) − φ(γm)/γ, ℓ_m = y − Φ(γm), ℓ_mm = 2ℓ_v = −γ φ(γm),
    ℓ_mv = ½ γ³ m φ(γm), ℓ_vv = ¼ γ³ φ(γm) (1 − γ² m²). Source: M. Rule, Gradient and Hessian for
    variational inference in Poisson and probit generalized linear models (30 March 2020), where
    γ is misprinted as (1 + v)^(−1).
    """

    name: ClassVar[str] = "probit_quasi"
    normalised: ClassVar[bool] = False

    def check(self, y: np.ndarray, exposure: np.ndarray | None = None) -> None:
        _checks.labels(y)
        _checks.no_exposure("ProbitQuasi", exposure, "use weights for repeated observations")

    def varying(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        return self.expected_varying(y, f, backend.of(f).xp.zeros_like(f)).value

    def derivatives(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array, Array, Array]:
        b = backend.of(f)
        density = normal_density(b, f)
        first = y * b.special("ndtr", -f) - (1.0 - y) * b.special("ndtr", f)
        return first, -density, f * density, (1.0 - f * f) * density

    def moments(
        self, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array]:
        """Φ(f) and Φ(f) Φ(−f), those of a Bernoulli variable."""
        b = backend.of(f)
        mean = b.special("ndtr", f)
        return mean, mean * b.special("ndtr", -f)

    def expected_varying(
        self,
        y: Array,
        m: Array,
        v: Array,
        theta: Array | None = None,
        exposure: Array | None = None,
    ) -> Expected:
        b = backend.of(m)
        spread = b.xp.sqrt(1.0 + v)
        z = m / spread
        density = normal_density(b, z)
        up, down = b.special("ndtr", z), b.special("ndtr", -z)
        first = y * down - (1.0 - y) * up
        s = density / spread
        bend = 0.5 * s / (spread * spread)
        # y m − m Φ(γm) is m times the slope: nothing cancels in the tails.
        return Expected(
            m * first - spread * density,
            first,
            -0.5 * s,
            -s,
            bend * m,
            0.5 * bend * (1.0 - z * z),
        )

    def predict(
        self, m: Array, v: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array]:
        """p = Φ(m/√(1 + v)) and p (1 − p)."""
        return self.moments(m / backend.of(m).xp.sqrt(1.0 + v))


__all__ = ["ProbitQuasi"]
