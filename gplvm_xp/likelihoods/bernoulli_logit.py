"""Two classes with a logit link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.likelihoods import _checks, _logistic
from gplvm_xp.likelihoods.base import Likelihood


@dataclass(frozen=True)
class BernoulliLogit(Likelihood):
    """p(y = 1 | f) = σ(f) = 1/(1 + e^−f), y in {0, 1}.

    Parameters
    ----------
    nodes : int
        Order of the quadrature. 180 (80 evaluations) gives the curvature to 1e-10 for v ≤ 10, and
        20 to 1e-9 for v ≤ 1.
    """

    nodes: int = 180

    name: ClassVar[str] = "logit"

    def check(self, y: np.ndarray, exposure: np.ndarray | None = None) -> None:
        _checks.labels(y)
        _checks.no_exposure("BernoulliLogit", exposure, "use BinomialLogit for numbers of trials")

    def varying(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        return _logistic.log_shares(backend.of(f), f, y, 1.0 - y)

    def derivatives(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array, Array, Array]:
        return _logistic.derivatives(backend.of(f), f, y, 1.0 - y)

    def moments(
        self, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array]:
        mean, _, variance = _logistic.shares(backend.of(f), f)
        return mean, variance


def logit_bound(y: Array, m: Array, v: Array) -> Array:
    """A lower bound of E[ln p(y | f)] for :class:`BernoulliLogit` without quadrature.

    (y − ½) m − ln(2 cosh(ξ/2)) at its optimum ξ² = m² + v. Source: Jaakkola & Jordan, Bayesian
    parameter estimation via variational methods, Statistics and Computing 10 (2000), eq. 7.
    """
    xp = backend.of(m).xp
    xi = xp.sqrt(m * m + v)
    return (y - 0.5) * m - 0.5 * xi - xp.log1p(xp.exp(-xi))


__all__ = ["BernoulliLogit", "logit_bound"]
