"""Tables of counts and of binary data: their offsets, exposures, and a scale to start from."""

from __future__ import annotations

import numpy as np

from gplvm_xp.likelihoods import (
    BernoulliLogit,
    BernoulliProbit,
    BinomialLogit,
    Likelihood,
    NegativeBinomial,
    Poisson,
)
from gplvm_xp.objectives.stochastic import link_offsets

_COUNTS = (Poisson, NegativeBinomial, BinomialLogit)
_BINARY = (BernoulliLogit, BernoulliProbit)


def offsets(likelihood: Likelihood, Y: np.ndarray, exposure: np.ndarray | None) -> np.ndarray:
    """The constant of each output's function that gives the output its mean, (D,)."""
    if not isinstance(likelihood, _COUNTS + _BINARY):
        return np.asarray(np.nanmean(Y, axis=0))
    seen = ~np.isnan(Y)
    each = np.ones(Y.shape[0]) if exposure is None else exposure
    return link_offsets(likelihood, np.nansum(Y, axis=0), each @ seen)


def linear_view(likelihood: Likelihood, Y: np.ndarray, exposure: np.ndarray | None) -> np.ndarray:
    """Rows on the scale of the latent functions, roughly: for starting values and encoders."""
    each = np.ones(Y.shape[0]) if exposure is None else exposure
    if isinstance(likelihood, Poisson | NegativeBinomial):
        return np.asarray(np.log1p(Y / each[:, None]))
    return np.asarray(Y / each[:, None] if isinstance(likelihood, BinomialLogit) else Y)


def row_totals(Y: np.ndarray, mean_total: float | None = None) -> tuple[np.ndarray, float]:
    """Each row's total over its observed entries, as a share of the mean total; and that mean.

    A total over few entries is scaled up to the whole row. A row without any count gets that of
    half a count, as a row's share must not depend on the rows beside it.
    """
    D = Y.shape[1]
    seen = np.maximum(np.sum(~np.isnan(Y), axis=1), 1)
    totals = np.nansum(Y, axis=1) * (D / seen)
    mean = float(totals.mean()) if mean_total is None else mean_total
    return np.maximum(totals, 0.5) / (mean if mean > 0.0 else 1.0), mean


__all__ = ["linear_view", "offsets", "row_totals"]
