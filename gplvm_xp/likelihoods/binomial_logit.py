"""Successes among a number of trials, with a logit link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.likelihoods import _checks, _logistic
from gplvm_xp.likelihoods.base import Likelihood


@dataclass(frozen=True)
class BinomialLogit(Likelihood):
    """y ~ Binomial(N, σ(f)); the exposure is N, the number of trials, 1 where it is not given.

    Parameters
    ----------
    nodes : int
        Order of the quadrature. 180 (80 evaluations) gives the curvature to N · 1e-10 for v ≤ 10.
    """

    nodes: int = 180

    name: ClassVar[str] = "binomial"

    def check(self, y: np.ndarray, exposure: np.ndarray | None = None) -> None:
        y = _checks.counts(y, "give the number of successes")
        trials = np.ones(y.shape)
        if exposure is not None:
            trials = _checks.exposures(exposure, y)
            uneven = np.isfinite(trials) & (trials != np.floor(trials))
            _checks.refuse(
                "exposure", trials, uneven, "whole numbers of trials", "give the number of trials"
            )
        _checks.refuse(
            "y", y, y > trials, "no more successes than trials (exposure, 1 if not given)",
            "give the number of trials as the exposure",
        )  # fmt: skip

    def varying(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        return _logistic.log_shares(backend.of(f), f, y, _failures(y, exposure))

    def constant(
        self, y: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        """ln (N choose y)."""
        b = backend.of(y)
        failures = _failures(y, exposure)
        total = b.special("gammaln", y + failures + 1.0)
        return total - b.special("gammaln", y + 1.0) - b.special("gammaln", failures + 1.0)

    def derivatives(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array, Array, Array]:
        return _logistic.derivatives(backend.of(f), f, y, _failures(y, exposure))

    def moments(
        self, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array]:
        mean, _, variance = _logistic.shares(backend.of(f), f)
        return (mean, variance) if exposure is None else (exposure * mean, exposure * variance)


def _failures(y: Array, exposure: Array | None) -> Array:
    return 1.0 - y if exposure is None else exposure - y


__all__ = ["BinomialLogit"]
