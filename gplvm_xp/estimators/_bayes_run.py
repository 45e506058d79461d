"""From the parameters of a Bayesian GPLVM to one of its searches: here, by batches, over shards."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from gplvm_xp import backend as backends
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.encoders import encoder_of
from gplvm_xp.estimators._bayes import (
    FoundBayes,
    Settings,
    Start,
    require_room,
    search,
    starting,
)
from gplvm_xp.estimators._bayes_batches import search_batches
from gplvm_xp.estimators._bayes_checks import (
    by_batches,
    check_bayesian,
    check_goes_on,
    check_same_model,
    chosen_likelihood,
)
from gplvm_xp.estimators._bayes_sharded import search_sharded
from gplvm_xp.estimators._data import Scaling, check_lazy, is_lazy
from gplvm_xp.estimators._fit import generator, inducing_jitter
from gplvm_xp.estimators._scales import linear_view, offsets, row_totals
from gplvm_xp.likelihoods import Gaussian, Likelihood


def prepared(model: Any, X: Array, Y: np.ndarray, rng: np.random.Generator) -> Start:
    """Starting values for a table X and its checked copy (n, D); sets what its columns lose.

    Raises
    ------
    ValueError, TypeError
        If a parameter does not fit the table, or the table the likelihood.
    NotEnoughMemoryError
        If collapsed inference does not fit here.
    """
    q, M = check_bayesian(model, Y.shape)
    if not (by_batches(model) or over_shards(model, X)):
        require_room(backends.get(model.backend, X, model.dtype), Y, q, M)
    likelihood = chosen_likelihood(model.likelihood)
    exposure, model.mean_total_ = None, float("nan")
    if likelihood is None:
        scaling = Scaling.of(Y, bool(model.scale))
        model.mean_, model.scale_ = scaling.mean, scaling.scale
        view, variance = scaling.forward(Y), None
        inputs = view
    else:
        if model.exposure == "total":
            exposure, model.mean_total_ = row_totals(Y)
        likelihood.check(Y, None if exposure is None else exposure[:, None])
        model.mean_, model.scale_ = offsets(likelihood, Y, exposure), np.ones(Y.shape[1])
        inputs, variance = linear_view(likelihood, Y, exposure), 1.0
        view = inputs - np.nanmean(inputs, axis=0)
    start = starting(
        model.kernel, _noise(model), model.init, view, q, M, rng, variance, model.dtype
    )
    start.kernel.check(q)
    encoder = encoder_of(model.encoder, "encoder")
    if encoder is None:
        return start
    return replace(start, encoder=encoder.settled(inputs)).encoded(inputs)


def _noise(model: Any) -> float | None:
    if model.noise_variance is None and isinstance(model.likelihood, Gaussian):
        return model.likelihood.variance
    return model.noise_variance  # type: ignore[no-any-return]


def _settings(model: Any, b: Backend) -> Settings:
    return Settings(
        priors=dict(model.priors or {}),
        jitter=inducing_jitter(b, model.jitter),
        warm_up=model.warm_up,
        optimizer=model.optimizer,
        max_iter=model.max_iter,
        tol=model.tol,
        time_limit=model.time_limit,
        progress=model.progress,
        callback=model.callback,
    )


def run(
    model: Any,
    X: Array,
    Y: np.ndarray,
    start: Start,
    likelihood: Likelihood | None,
    rng: np.random.Generator,
    state: Mapping[str, np.ndarray] | None,
) -> FoundBayes:
    """Search from ``start``; ``state`` is that of an earlier search, None for a first one."""
    b = backends.get(model.backend, None if is_lazy(X) else X, model.dtype)
    settings = _settings(model, b)
    if not by_batches(model):
        restarts = 0 if state is not None else model.n_restarts
        centred = (Y - model.mean_) / model.scale_
        return search(b, centred, start, restarts, rng, settings, resumed=state is not None)
    fitted = None
    if state is not None:
        fitted = model.inducing_mean_, model.inducing_factor_, model.inducing_groups_
    return search_batches(
        b, Y, start, likelihood, model.mean_, model.scale_, exposures(model, Y),
        batch_size=model.batch_size, n_epochs=model.n_epochs, seed=int(rng.integers(2**31)),
        s=settings, state=state or {}, posterior=fitted,
    )  # fmt: skip


def go_on(model: Any, X: Array) -> tuple[FoundBayes, np.ndarray]:
    """Search on from a fitted model; rows of X that it has not seen join. The end, and all rows.

    Raises
    ------
    ValueError
        If the model does not keep its rows, or its parameters are no longer those of the fit.
    """
    if model.training_data_.shape[0] != model._host_embedding.shape[0]:
        raise ValueError(
            "the model was fitted to a Dask array and does not keep its rows, which going on "
            "needs; use fit with a checkpoint and resume=True"
        )
    check_same_model(model)
    Y = model._rows(X)
    check_goes_on(model, Y)
    new = model._known(Y) < 0
    joined = np.concatenate([model.training_data_, Y[new]])
    check_bayesian(model, joined.shape)
    mu, S = model._host_embedding, model._host_variance
    if new.any():
        fresh, spread = model._embed(Y[new])
        mu, S = np.concatenate([mu, fresh]), np.concatenate([S, spread])
    start = Start(
        model.kernel_, model.noise_variance_, mu, S, model.inducing_inputs_, model.encoder_
    )
    found = run(model, X, joined, start, model.likelihood_, generator(model), model._state)
    return found, joined


def exposures(model: Any, Y: np.ndarray) -> np.ndarray | None:
    """Of rows of a table, (N,), or None: all alike."""
    if model.exposure is None or model.likelihood is None:
        return None
    return row_totals(Y, model.mean_total_)[0]


def over_shards(model: Any, X: Any) -> bool:
    """Whether the rows are spread over workers, or a checkpoint is kept of them."""
    return model.engine is not None or model.checkpoint is not None or is_lazy(X)


def run_shards(
    model: Any, X: Any, Y: np.ndarray | None, rng: np.random.Generator, resume: bool
) -> FoundBayes:
    """Search over shards; ``Y`` is the checked table, or None where its rows are elsewhere.

    Raises
    ------
    ValueError
        If the model is one that only sees all rows at once.
    """
    if Y is None:
        check_lazy(X)
    if model.encoder is not None:
        raise ValueError(
            f"encoder={model.encoder!r} was given with an engine, a checkpoint or a Dask array, "
            "whose workers keep the latents of their rows as parameters; expected encoder=None, or "
            "rows in this process without checkpoint (inference='minibatch' for many)"
        )
    if Y is None and by_batches(model):
        raise ValueError(
            f"X is a Dask array of shape {X.shape}, and a fit by minibatches needs all rows in "
            f"memory (inference={model.inference!r}, likelihood={model.likelihood!r}); call "
            "X.compute() and give the result, or use engine=client with collapsed inference"
        )
    if by_batches(model) or model.n_restarts:
        raise ValueError(
            "an engine, a checkpoint or a Dask array needs collapsed inference from one start; "
            f"got inference={model.inference!r}, likelihood={model.likelihood!r} and "
            f"n_restarts={model.n_restarts!r}: leave out one or the other"
        )
    if Y is None and math.isnan(X.shape[0]):
        raise ValueError(
            f"X is a Dask array with unknown chunk sizes (shape {X.shape}); expected known ones: "
            "call X.compute_chunk_sizes() first"
        )
    q, M = check_bayesian(model, X.shape if Y is None else Y.shape)
    model.mean_total_ = float("nan")
    start = None if Y is None else prepared(model, X, Y, rng)
    if start is None and not (isinstance(model.init, str) and model.init == "pca"):
        raise ValueError(
            f"init={model.init!r} was given with a Dask array; expected 'pca', which its workers "
            "can do: load the array into memory for other starts"
        )
    backend = backends.get(model.backend, None if Y is None else X, model.dtype)
    found, model.mean_, model.scale_ = search_sharded(
        X if Y is None else Y,
        start,
        model.kernel,
        _noise(model),
        (q, M),
        rng,
        _settings(model, backend),
        engine="dask" if model.engine is None and Y is None else model.engine,
        scale=bool(model.scale),
        backend=backend.name,
        dtype=model.dtype,
        checkpoint=model.checkpoint,
        resume=resume and model.checkpoint is not None and os.path.exists(model.checkpoint),
    )
    return found


__all__ = ["exposures", "go_on", "over_shards", "prepared", "run", "run_shards"]
