"""Two classes with a probit link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.likelihoods import _checks
from gplvm_xp.likelihoods._special import log_ndtr_derivatives
from gplvm_xp.likelihoods.base import Likelihood


@dataclass(frozen=True)
class BernoulliProbit(Likelihood):
    """p(y = 1 | f) = Φ(f), y in {0, 1}.

    E[ln Φ(f)] has no closed form and is taken by quadrature; predictions have one. The closed form
    that is sometimes given for "probit" belongs to :class:`ProbitQuasi`.

    Parameters
    ----------
    nodes : int
        Order of the quadrature. 180 (80 evaluations) gives the curvature to 1e-9 for v ≤ 10, and
        20 to 1e-8 for v ≤ 1.
    """

    nodes: int = 180

    name: ClassVar[str] = "probit"

    def check(self, y: np.ndarray, exposure: np.ndarray | None = None) -> None:
        _checks.labels(y)
        _checks.no_exposure("BernoulliProbit", exposure, "use weights for repeated observations")

    def varying(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        return backend.of(f).special("log_ndtr", (2.0 * y - 1.0) * f)

    def derivatives(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array, Array, Array]:
        sign = 2.0 * y - 1.0
        one, two, three, four = log_ndtr_derivatives(backend.of(f), sign * f)
        return sign * one, two, sign * three, four

    def moments(
        self, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array]:
        b = backend.of(f)
        mean = b.special("ndtr", f)
        return mean, mean * b.special("ndtr", -f)

    def predict(
        self, m: Array, v: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array]:
        """p = Φ(m/√(1 + v)) and p (1 − p)."""
        return self.moments(m / backend.of(m).xp.sqrt(1.0 + v))

    def log_predictive(
        self,
        y: Array,
        m: Array,
        v: Array,
        theta: Array | None = None,
        exposure: Array | None = None,
    ) -> Array:
        """ln Φ(±m/√(1 + v))."""
        return self.varying(y, m / backend.of(m).xp.sqrt(1.0 + v))


__all__ = ["BernoulliProbit"]
