"""The minibatch search behind a Bayesian GPLVM: Gaussian noise, counts, binary data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from gplvm_xp.backend import Backend
from gplvm_xp.encoders import Encoder
from gplvm_xp.errors import NotPositiveDefiniteError
from gplvm_xp.estimators._bayes import FoundBayes, Settings, Start
from gplvm_xp.estimators._fit import JITTER_FLOOR, JITTER_GROWTH, JITTER_TRIES
from gplvm_xp.estimators._progress import watched
from gplvm_xp.estimators._reached import hopeless
from gplvm_xp.estimators._scales import linear_view
from gplvm_xp.latents import Latents, hold
from gplvm_xp.likelihoods import Gaussian, Likelihood
from gplvm_xp.objectives.minibatch import Whitened, inverse_factor
from gplvm_xp.objectives.minibatch_fit import fit_minibatch, lower_bound
from gplvm_xp.objectives.minibatch_state import MinibatchResult, MinibatchState
from gplvm_xp.objectives.stochastic import MinibatchObjective
from gplvm_xp.optim import Progress

# Least steps and passes of a search that is not told how many; with Gaussian noise, and without.
STEPS, SAMPLED_STEPS, EPOCHS = 4000, 1500, 20
# Of a search that goes on: half of Adam's usual rates, and the steps over which they and ρ rise. A
# good state may come without Adam's averages, and full steps in every direction would spoil it.
_GOING_ON: Mapping[str, Any] = {
    "learning_rate": 0.025,
    "row_learning_rate": 0.1,
    "place_learning_rate": 0.015,
    "ramp": 100,
}
# Of a search that goes on from a file: past the warm-up, and past the long steps in q(U).
_LATE = 1000
# With more outputs than this, all share the covariance of q(u): a factor each costs D M³ a step.
MOST_FACTORS = 100


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
    n_epochs: int | None,
    seed: int,
    s: Settings,
    state: Mapping[str, np.ndarray],
    posterior: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
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
    n_epochs : int or None
        None is as many as make :data:`STEPS` steps (:data:`SAMPLED_STEPS` with another likelihood
        than Gaussian noise), and :data:`EPOCHS` at least.
    state : mapping
        What an earlier search left in its ``state``; empty where there was none, or it is gone.
    posterior : tuple of ndarray, or None
        Mean, factor and groups that an earlier search ended with; None to begin. A search that goes
        on ends where it began if the bound there is higher.

    Raises
    ------
    ValueError
        If the data are not what the likelihood takes.
    NotPositiveDefiniteError
        If k(Z, Z) has no Cholesky factor at the start after the jitter schedule.
    NotEnoughMemoryError
        If q(u) and a batch do not fit.
    """
    gaussian = likelihood is None
    kind = Gaussian(start.noise) if likelihood is None else likelihood
    which = None
    if gaussian and np.isnan(Y).any():
        which = np.ravel(np.unique(~np.isnan(Y), axis=1, return_inverse=True)[1])
    elif not gaussian and Y.shape[1] > MOST_FACTORS:
        which = np.zeros(Y.shape[1], dtype=np.int64)
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
        place=None
        if start.encoder is None
        else _placing(b, start.encoder, kind, Y, offset, unit, exposure),
    )
    size = min(batch_size, Y.shape[0])
    _require_memory(b, objective, size)
    begin = _begin(objective, start, state, posterior)
    objective = _with_factor(objective, begin, size)
    steps = -(-Y.shape[0] // size)
    if n_epochs is None:
        n_epochs = max(EPOCHS, math.ceil((STEPS if gaussian else SAMPLED_STEPS) / steps))
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
            **({} if posterior is None else _GOING_ON),
        )
    value = lower_bound(objective, result, batch_size=size, seed=seed)
    if posterior is not None:
        result, value = _better(objective, begin, result, value, size, seed)
    theta = b.asarray(result.kernel.theta())
    diagonal = result.kernel.diag(theta, result.Z)
    found = result.likelihood
    bare = replace(objective, priors={})
    bound = lower_bound(bare, result, batch_size=size, seed=seed) if s.priors else value
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
        jitter=objective.jitter * b.to_host(b.xp.mean(diagonal)).astype(np.float64).item(),
        bound=bound,
        value=-value,
        curve=tuple(-result.curve),
        steps=result.steps,
        grad_norm=math.nan,
        status=result.status,
        message=result.message,
        state={f.name: np.asarray(getattr(result.state, f.name)) for f in fields(MinibatchState)},
        encoder=start.encoder and _with_weights(objective, result, start.encoder),
    )


def _placing(
    b: Backend,
    encoder: Encoder,
    likelihood: Likelihood,
    Y: np.ndarray,
    offset: np.ndarray,
    unit: np.ndarray,
    exposure: np.ndarray | None,
) -> Callable[[np.ndarray], Latents]:
    """From rows of the table to where their (μ, ln S) come from: the encoder sees a batch."""

    def place(index: np.ndarray) -> Latents:
        if isinstance(likelihood, Gaussian):
            return encoder.latents(b, (Y[index] - offset) / unit)
        own = None if exposure is None else exposure[index]
        return encoder.latents(b, linear_view(likelihood, Y[index], own))

    return place


def _with_weights(
    objective: MinibatchObjective, result: MinibatchResult, encoder: Encoder
) -> Encoder:
    values, _ = objective.layout.unpack(objective.backend.asarray(result.state.shared[0]))
    return encoder.with_values(hold(values, [block.name for block in encoder.blocks()]))


def _begin(
    objective: MinibatchObjective,
    start: Start,
    state: Mapping[str, np.ndarray],
    posterior: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
) -> MinibatchState:
    """Where a search begins or goes on; rows of ``start`` beyond those of ``state`` are new."""
    if posterior is None:
        return MinibatchState.begin(objective, start.mu, start.S)
    mean, factor, which = posterior
    # More rows may part a group of outputs, never join two.
    groups = which[np.unique(objective.totals.which, return_index=True)[1]]
    if state:
        numbers: dict[str, Any] = {name: a if a.ndim else a.item() for name, a in state.items()}
        before = MinibatchState(**numbers)
        known = before.rows.shape[0]
        if known < start.mu.shape[0]:
            before = before.extended(start.mu[known:], start.S[known:])
        return replace(before, precision=before.precision[groups])
    inverse = np.linalg.inv(factor)
    precision = (np.swapaxes(inverse, 1, 2) @ inverse)[groups]
    fresh = MinibatchState.begin(objective, start.mu, start.S)
    return replace(fresh, mean=mean.copy(), precision=precision, steps=_LATE)


def _with_factor(
    objective: MinibatchObjective, begin: MinibatchState, size: int
) -> MinibatchObjective:
    """With the first jitter of the schedule at which the bound of a batch can be evaluated."""
    b, (M, q) = objective.backend, objective.inducing.shape
    mu = S = None
    if objective.place is None:
        rows = b.asarray(begin.rows[:size, : 2 * q])
        mu, S = rows[:, :q], b.xp.exp(rows[:, q:])
    factor, _ = inverse_factor(b.asarray(begin.precision))
    posterior = Whitened(b.asarray(begin.mean), factor)
    eps = np.zeros((0 if objective.gaussian else objective.samples, size, q))
    for _ in range(1 + JITTER_TRIES):
        bound, _ = objective.evaluate(
            b.asarray(begin.shared[0]), posterior, mu, S, np.arange(size), eps
        )
        if b.to_host(bound.ok & b.xp.isfinite(bound.value)).item():
            return objective
        jitter = max(objective.jitter, JITTER_FLOOR) * JITTER_GROWTH
        objective = replace(objective, jitter=jitter)
    tried = objective.jitter / JITTER_GROWTH
    raise NotPositiveDefiniteError(hopeless(M)(tried, tried))


def _better(
    objective: MinibatchObjective,
    begin: MinibatchState,
    result: MinibatchResult,
    value: float,
    size: int,
    seed: int,
) -> tuple[MinibatchResult, float]:
    """The end of a search that went on, or its beginning where the bound (same draws) is higher."""
    before = fit_minibatch(objective, begin, batch_size=size, epochs=0)
    past = lower_bound(objective, before, batch_size=size, seed=seed)
    if math.isnan(past) or value >= past:
        return result, value
    # Later passes have an order of their own, lest the same steps be tried again.
    state = replace(before.state, epoch=result.state.epoch, place=result.state.place)
    message = f"{result.message}; the state before is kept, as its bound is higher"
    kept = replace(
        before, state=state, curve=result.curve, steps=result.steps,
        status=result.status, message=message,
    )  # fmt: skip
    return kept, past


def _require_memory(b: Backend, objective: MinibatchObjective, size: int) -> None:
    (n, D), (M, q) = objective.shape, objective.inducing.shape
    r = objective.totals.outputs.size
    chunk = 0 if objective.gaussian else size * objective.samples * (4 * D + 4 * M)
    numbers = (10 * r + 6) * M * M + 10 * M * D + size * (4 * D + 4 * M + 10 * q) + chunk
    b.require_memory(
        b.itemsize * numbers + 8 * n * (6 * q + 1),
        f"minibatches of {size} rows with {M} inducing inputs and {r} group(s) of columns",
        "use a smaller n_inducing or batch_size, dtype='float32' (half of it), or a machine with "
        "more memory",
    )


__all__ = ["search_batches"]
