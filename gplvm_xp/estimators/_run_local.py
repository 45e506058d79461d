"""A fit of a local model: its plan, its search, and what is taken over from it."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np

from gplvm_xp import backend as backends
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.errors import PrecisionWarning
from gplvm_xp.estimators._checks import check_held, latent_prior
from gplvm_xp.estimators._data import is_lazy, to_like
from gplvm_xp.estimators._endings import say_early_end
from gplvm_xp.estimators._fit import Search, best_of, gauge_blocks
from gplvm_xp.estimators._fit_local import FoundLocal, search_stochastic, search_vecchia
from gplvm_xp.estimators._local_checks import pace_of
from gplvm_xp.kernels import Kernel


def plan_of(model: Any, kernel: Kernel, noise: float, jitter: float, variance: float) -> Search:
    """What is minimised and how, from starting values; ``variance`` is that of the data.

    Raises
    ------
    ValueError
        If a parameter has a prior and is held.
    """
    held = gauge_blocks(kernel, model.n_components) if model.gauge == "fixed" else frozenset()
    priors = dict(model.priors or {})
    check_held(priors, held)
    return Search(
        kernel=kernel,
        noise=noise,
        latent_prior=latent_prior(model.latent_prior),
        priors=priors,
        held=held,
        jitter=jitter,
        variance=variance,
        optimizer=model.optimizer,
        max_iter=model.max_iter,
        tol=model.tol,
        time_limit=model.time_limit,
        progress=model.progress,
        callback=model.callback,
    )


def _backend(model: Any, X: Array) -> Backend:
    return backends.get(model.backend, None if is_lazy(X) else X, model.dtype)


def run(
    model: Any,
    X: Array,
    Y: np.ndarray,
    first: np.ndarray,
    plan: Search,
    rng: np.random.Generator,
    drawn: np.ndarray | None,
) -> FoundLocal:
    """Search from latents (n, q) with ``n_neighbors_``; ``drawn`` rows only if it goes on.

    ``X`` says where to compute, ``Y`` (n, D) is the table.
    """
    b, size = _backend(model, X), model.n_neighbors_
    centred = model._centred(Y)
    once: Any
    if model.inference == "neighbourhood":
        pace = pace_of(model, Y.shape[0], size, int(rng.integers(2**31)), drawn)
        once = partial(search_stochastic, b, centred, pace, plan)
    else:
        once = partial(search_vecchia, b, centred, size, plan)
    found: FoundLocal = best_of(once, first, model.n_restarts if drawn is None else 0, rng)
    return found


def adopt(
    model: Any, found: FoundLocal, X: Array, Y: np.ndarray, plan: Search, whole: bool, depth: int
) -> None:
    """Take over the end of a search, of all rows or of some; warn ``depth`` calls up."""
    end = found.result
    model.kernel_, model.noise_variance_, model.jitter_ = found.kernel, found.noise, found.jitter
    model.training_data_ = Y
    model.loss_curve_, model.round_starts_ = np.asarray(end.values), np.asarray(end.round_starts)
    model.n_iter_, model.status_ = end.steps, end.status
    model._host_embedding, model.embedding_ = found.latents, to_like(found.latents, X)
    model._posterior = None
    model.log_likelihood_ = found.log_likelihood - model._units(Y)
    if whole:
        # Rows that keep coming would have it built each time.
        model._post()
        if end.status == "finished":
            model.log_likelihood_ = model.log_likelihood()
    say_early_end(model, end, depth=depth + 1)
    condition = plan.variance * model.n_neighbors_ / (found.noise + found.jitter)
    eps = _backend(model, X).eps
    if eps * condition > 1e-3:
        warnings.warn(
            f"the condition number of a block's covariance is up to {condition:.1e} and dtype="
            f"{model.dtype!r} resolves {1 / eps:.0e}: gradients are inaccurate; use "
            "dtype='float64' or a larger jitter",
            PrecisionWarning,
            stacklevel=depth,
        )


__all__ = ["adopt", "plan_of", "run"]
