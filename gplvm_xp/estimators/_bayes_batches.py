"""The minibatch search behind a Bayesian GPLVM: Gaussian noise, counts, binary data."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from gplvm_xp.backend import Backend
from gplvm_xp.estimators._bayes import FoundBayes, Settings, Start
from gplvm_xp.estimators._progress import watched
from gplvm_xp.likelihoods import (
    BernoulliLogit,
    BernoulliProbit,
    BinomialLogit,
    Gaussian,
    Likelihood,
    NegativeBinomial,
    Poisson,
)
from gplvm_xp.objectives.minibatch_fit import MinibatchState, fit_minibatch
from gplvm_xp.objectives.stochastic import MinibatchObjective, link_offsets
from gplvm_xp.optim import Progress

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
    """The table on the scale of the latent functions, roughly and centred, for starting values."""
    each = np.ones(Y.shape[0]) if exposure is None else exposure
    if isinstance(likelihood, Poisson | NegativeBinomial):
        Y = np.log1p(Y / each[:, None])
    elif isinstance(likelihood, BinomialLogit):
        Y = Y / each[:, None]
    return np.asarray(Y - np.nanmean(Y, axis=0))


def row_totals(Y: np.ndarray, mean_total: float | None = None) -> tuple[np.ndarray, float]:
    """Each row's total over its observed entries, as a share of the mean total; and that mean.

    A total over few entries is scaled up to the whole row. A row without any count gets half of
    the smallest share.
    """
    D = Y.shape[1]
    seen = np.maximum(np.sum(~np.isnan(Y), axis=1), 1)
    totals = np.nansum(Y, axis=1) * (D / seen)
    mean = float(totals.mean()) if mean_total is None else mean_total
    share = totals / (mean if mean > 0.0 else 1.0)
    least = 0.5 * share[share > 0.0].min() if np.any(share > 0.0) else 1.0
    return np.where(share > 0.0, share, least), mean


def search_batches(
    b: Backend,
    Y: np.ndarray,
    start: Start,
    likelihood: Likelihood | None,
    offset: np.ndarray,
    unit: np.ndarray,
    exposure: np.ndarray | None,
    *,
    batch_size: int,
    n_epochs: int,
    seed: int,
    s: Settings,
    state: Mapping[str, np.ndarray],
) -> FoundBayes:
    """Maximise the uncollapsed bound by minibatches.

    Parameters
    ----------
    Y : ndarray (n, D)
        As it came, NaN for missing.
    likelihood : Likelihood or None
        None is Gaussian noise, starting at ``start.noise``.
    offset, unit : ndarray (D,)
        Removed from and divided out of Y for Gaussian noise; else the functions' constants, ones.
    exposure : ndarray (n,) or None
    state : mapping
        What an earlier search left in its ``state``; empty to begin.

    Raises
    ------
    ValueError
        If the data are not what the likelihood takes.
    """
    gaussian = likelihood is None
    kind = Gaussian(start.noise) if likelihood is None else likelihood
    which = None
    if gaussian and np.isnan(Y).any():
        which = np.ravel(np.unique(~np.isnan(Y), axis=1, return_inverse=True)[1])
    objective = MinibatchObjective(
        kernel=start.kernel,
        likelihood=kind,
        Y=Y,
        inducing=b.asarray(start.Z),
        which=which,
        offset=offset,
        unit=unit if gaussian else None,
        exposure=exposure,
        priors=s.priors,
        jitter=s.jitter,
    )
    begin = _restored(state) or MinibatchState.begin(objective, start.mu, start.S)
    size = min(batch_size, Y.shape[0])
    steps = -(-Y.shape[0] // size)
    began = time.perf_counter()
    with watched(s.progress, n_epochs * steps, 0, s.callback, "BayesianGPLVM") as callback:

        def tell(step: int, estimate: float) -> bool | None:
            if callback is None:
                return None
            elapsed = time.perf_counter() - began
            return callback(Progress(step, step, -estimate, math.nan, None, elapsed))

        result = fit_minibatch(
            objective,
            begin,
            batch_size=size,
            epochs=n_epochs,
            seed=seed,
            time_limit=s.time_left(),
            callback=None if callback is None else tell,
        )
    theta = b.asarray(result.kernel.theta())
    diagonal = result.kernel.diag(theta, result.Z)
    found = result.likelihood
    last = result.curve[-steps:]
    return FoundBayes(
        kernel=result.kernel,
        noise=found.variance if isinstance(found, Gaussian) else math.nan,
        likelihood=None if gaussian else found,
        mu=result.mu,
        S=result.S,
        Z=np.array(b.to_host(result.Z), dtype=np.float64),
        mean=np.array(b.to_host(result.mean), dtype=np.float64),
        factor=np.array(b.to_host(result.factor), dtype=np.float64),
        which=result.which,
        offset=offset,
        jitter=s.jitter * b.to_host(b.xp.mean(diagonal)).astype(np.float64).item(),
        bound=float(np.mean(last)) if last.size else -math.inf,
        curve=tuple(-result.curve),
        steps=result.steps,
        grad_norm=math.nan,
        status=result.status,
        message=result.message,
        state={f.name: np.asarray(getattr(result.state, f.name)) for f in fields(MinibatchState)},
    )


def _restored(state: Mapping[str, np.ndarray]) -> MinibatchState | None:
    if not state:
        return None
    numbers: dict[str, Any] = {name: a if a.ndim else a.item() for name, a in state.items()}
    return MinibatchState(**numbers)


__all__ = ["linear_view", "offsets", "row_totals", "search_batches"]
