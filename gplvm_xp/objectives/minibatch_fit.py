"""The minibatch search: natural-gradient steps in q(U), Adam in everything else.

A step reads one batch of rows. q(U) takes a natural-gradient step on it (Hensman, Fusi & Lawrence
2013; Salimbeni, Eleftheriadis & Hensman 2018), the shared parameters (ln θ, ln noise, Z) and the
rows' own (μ_n, ln S_n) a step of Adam; the averages of a row's gradient count its own visits.
The rows' state stays on the host, so that a device holds only a batch. Where a map of the data
gives (μ, ln S), its weights are shared parameters with a rate of their own; rows have no state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.objectives.minibatch import Whitened, inverse_factor, natural_step
from gplvm_xp.objectives.minibatch_state import MinibatchResult, MinibatchState, MinibatchStatus
from gplvm_xp.objectives.stochastic import MinibatchObjective
from gplvm_xp.optim.adam import averaged


class _Live(NamedTuple):
    """The shared state on the device; replaced whole."""

    x: Array
    m: Array
    v: Array
    q: Whitened
    precision: Array
    ok: Array
    steps: int
    moves: int


def default_rate(objective: MinibatchObjective, batch_size: int) -> Callable[[int], float]:
    """ρ of each step: 1 at first for Gaussian noise, else 0.1 and rising, then falling slowly.

    It never falls below 0.1, nor below the batch's share of the rows (half at most where latents
    are sampled): q(U) follows the other parameters, and must forget what is older than an epoch.
    """
    share = batch_size / objective.shape[0]
    if objective.gaussian:
        return lambda step: max(0.1, share, (1.0 + 0.1 * step) ** -0.7)
    least = max(0.1, min(share, 0.5))
    return lambda step: max(least, min(0.1 + 0.04 * step, (1.0 + 0.1 * step) ** -0.7))


def fit_minibatch(
    objective: MinibatchObjective,
    state: MinibatchState,
    *,
    batch_size: int,
    epochs: int = 100,
    learning_rate: float = 0.05,
    row_learning_rate: float = 0.2,
    place_learning_rate: float = 0.03,
    decay: bool = True,
    ramp: int = 0,
    rate: Callable[[int], float] | None = None,
    warmup: int | None = None,
    held: frozenset[str] = frozenset(),
    seed: int = 0,
    time_limit: float | None = None,
    callback: Callable[[int, float], bool | None] | None = None,
    max_failures: int = 30,
) -> MinibatchResult:
    """Maximise the bound over q(U), the parameters and the latents, a batch of rows at a time.

    Parameters
    ----------
    objective : MinibatchObjective
    state : MinibatchState
        :meth:`MinibatchState.begin`, or the ``state`` of an earlier result; it is not changed.
    batch_size : int
        Rows a step, 1 to n; an epoch is cut into batches of sizes that differ by one at most.
    epochs : int
        Passes over the rows, each in a new order; a pass that was left in the middle is ended
        first and counts as one. 0 gives back the state as it is.
    learning_rate, row_learning_rate : float
        Adam's, for (ln θ, ln φ, Z) and for the rows' (μ, ln S).
    place_learning_rate : float
        Adam's, for the parameters of the objective's ``place``.
    decay : bool
        Whether these rates, and ρ, fall to zero along half a cosine over this call's steps.
    ramp : int
        Steps at the beginning of this call over which they all rise from zero: for a state near
        an optimum whose averages know nothing yet, from where Adam's first steps would be full
        ones in every direction.
    rate : callable, optional
        Step number → ρ in (0, 1] of q(U)'s natural-gradient step; see :func:`default_rate`.
    warmup : int, optional
        Steps, from the state's step 0, in which only q(U) moves; default one epoch, 100 at most.
    held : frozenset of str
        Blocks of the objective's layout that stay where they are, such as "noise" or "Z"; those
        that the kernel or the likelihood holds fixed stay too.
    seed : int
        Of orders and draws, made on the host: with the same state, the same steps.
    time_limit, callback
        Seconds; ``callback(step, estimate)``, whose true answer stops.
    max_failures : int
        Undone steps after which the search gives up.

    Returns
    -------
    MinibatchResult
        Ctrl-C ends with status "interrupted" and the last good state.

    Raises
    ------
    ValueError
        If an argument is out of range, a name is unknown, or data are not what the likelihood
        takes.

    Notes
    -----
    A step costs the bound of a batch and O(r M³); one host read. Memory beside Y: (6 q + 1) n
    numbers on the host, 3 r M² + O(M D) and the batch on the device. A step after which the bound,
    or a gradient, is not finite is undone, and all further steps are half as long.
    """
    n, _ = objective.shape
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size={batch_size!r} was given; expected 1 to {n}")
    if state.rows.shape[0] != n:
        raise ValueError(f"the state has {state.rows.shape[0]} rows; expected Y's {n}")
    names = [block.name for block in objective.layout.blocks]
    if set(held) - set(names):
        raise ValueError(f"held names {sorted(set(held) - set(names))}; the parameters are {names}")
    batches = -(-n // batch_size)
    search = _Search(
        objective=objective,
        batches=batches,
        rate=rate or default_rate(objective, batch_size),
        row_rate=row_learning_rate,
        total=max(epochs * batches - state.place, 1) if decay else None,
        ramp=ramp,
        warmup=min(batches, 100) if warmup is None else warmup,
        paces=_paces(objective, held, learning_rate, place_learning_rate),
        seed=seed,
        state=state,
    )
    began = time.perf_counter()
    status: MinibatchStatus = "finished"
    message = f"{epochs} epochs of {batches} steps"
    last = state.epoch + epochs
    try:
        while search.epoch < last:
            if time_limit is not None and time.perf_counter() - began >= time_limit:
                status, message = "time_limit", f"time_limit={time_limit:g} s reached"
                break
            estimate = search.step()
            if search.failures and not search.curve:
                status = "failed"
                message = "the bound can't be evaluated at the start; start from other parameters"
                break
            if search.failures > max_failures:
                status = "failed"
                message = (
                    f"{search.failures} steps led to no finite bound; lower the rates, or raise "
                    "the jitter (in float32 to 1e-3)"
                )
                break
            if callback is None or estimate is None:
                continue
            if callback(search.live.steps, estimate):
                status, message = "stopped", "stopped by the callback"
                break
    except KeyboardInterrupt:
        status, message = "interrupted", "interrupted by the keyboard; the last state is kept"
    if search.failures and status != "failed":
        message += f"; {search.failures} steps were undone, further ones shortened"
    return search.result(status, message)


def lower_bound(
    objective: MinibatchObjective, result: MinibatchResult, *, batch_size: int, seed: int = 0
) -> float:
    """The bound over all rows at the end of a search, in nats; one pass over Y.

    Exact for Gaussian noise; for other likelihoods an unbiased estimate by ``objective.samples``
    draws for each row.

    Parameters
    ----------
    objective : MinibatchObjective
    result : MinibatchResult
        Of a search with that objective.
    batch_size : int
        Rows at a time.
    seed : int
        Of the draws.
    """
    b, n = objective.backend, objective.shape[0]
    x, posterior = b.asarray(result.state.shared[0]), Whitened(result.mean, result.factor)
    parts = []
    for start in range(0, n, batch_size):
        index = np.arange(start, min(start + batch_size, n))
        mu, S = b.asarray(result.mu[index, :]), b.asarray(result.S[index, :])
        eps = objective.draws(np.random.default_rng((seed, start)), index.size)
        bound, _ = objective.evaluate(x, posterior, mu, S, index, eps)
        parts.append((index.size / n) * bound.value)
    return float(b.to_host(b.xp.sum(b.xp.stack(parts))))


def _paces(
    objective: MinibatchObjective, held: frozenset[str], shared: float, placing: float
) -> Array:
    """The rate of each number of the flat vector: of those behind Z their own, 0 where held."""
    parts, rate = [], shared
    for block in objective.layout.blocks:
        parts.append(np.full(block.size, 0.0 if block.fixed or block.name in held else rate))
        rate = placing if block.name == "Z" else rate
    return objective.backend.asarray(np.concatenate(parts))


class _Search:
    """One search: mutable, and alive no longer than the call."""

    def __init__(
        self,
        *,
        objective: MinibatchObjective,
        batches: int,
        rate: Callable[[int], float],
        row_rate: float,
        total: int | None,
        ramp: int,
        warmup: int,
        paces: Array,
        seed: int,
        state: MinibatchState,
    ) -> None:
        b = objective.backend
        self.objective, self.batches, self.rate = objective, batches, rate
        self.row_rate, self.paces = row_rate, paces
        self.total, self.ramp, self.warmup = total, ramp, warmup
        self.seed = seed
        x, m, v = (b.asarray(a) for a in state.shared)
        precision = b.asarray(state.precision)
        factor, ok = inverse_factor(precision)
        posterior = Whitened(b.asarray(state.mean), factor)
        self.live = _Live(x, m, v, posterior, precision, ok, state.steps, state.moves)
        self.rows = state.rows.copy()
        self.epoch, self.place, self.slowdown = state.epoch, state.place, state.slowdown
        self.began = state.steps
        self.curve: list[float] = []
        self.failures = 0
        self._order: tuple[int, list[np.ndarray]] = (-1, [])
        # What the last step replaced.
        self._undo: tuple[_Live, np.ndarray, np.ndarray] | None = None

    @np.errstate(all="ignore")
    def step(self) -> float | None:
        """One batch; the estimate of the bound before it, or None where it was not finite."""
        objective = self.objective
        b, xp = objective.backend, objective.backend.xp
        index, eps = self._batch()
        live, mine = self.live, self.rows[index, :]
        q, placed = objective.inducing.shape[1], objective.place is not None
        mu: Array | None = None
        S: Array | None = None
        if not placed:
            mu, S = b.asarray(mine[:, :q]), xp.exp(b.asarray(mine[:, q : 2 * q]))
        bound, gradient = objective.evaluate(live.x, live.q, mu, S, index, eps)
        # A row's own part of the whole bound: the batch's estimate without its scale.
        share = index.size / objective.shape[0]
        own = b.zeros((0, 2 * q))
        if S is not None:
            own = share * xp.concat([bound.mu, S * bound.S], axis=1)
        fine = (
            live.ok
            & bound.ok
            & xp.isfinite(bound.value)
            & xp.all(xp.isfinite(gradient))
            & xp.all(xp.isfinite(own))
            & xp.all(xp.isfinite(bound.mean))
            & xp.all(xp.isfinite(bound.precision))
        )
        head = xp.stack([bound.value, xp.astype(fine, b.dtype)])
        read = b.to_host(xp.concat([head, xp.reshape(own, (-1,))])).astype(np.float64)
        self._advance()
        if not read[1] > 0.5:
            self._back()
            return None
        rho = self.rate(live.steps)
        if not 0.0 < rho <= 1.0:
            raise ValueError(f"rate({live.steps}) is {rho!r}; expected a step length in (0, 1]")
        factor = self.slowdown * self._schedule()
        rho *= factor
        totals = objective.totals
        posterior, precision, ok = natural_step(live.q, live.precision, bound, totals, rho)
        x, m, v, moves, changed = live.x, live.m, live.v, live.moves, mine
        if live.steps >= self.warmup:
            moves += 1
            m, v, along = averaged(m, v, xp.where(self.paces > 0.0, -gradient, 0.0), moves)
            x = x - factor * self.paces * along
            if not placed:
                changed = self._moved(mine, read[2:].reshape(index.size, 2 * q), factor)
        self._undo = (live, index, mine)
        self.live = _Live(x, m, v, posterior, precision, ok, live.steps + 1, moves)
        self.rows[index, :] = changed
        self.curve.append(float(read[0]))
        return self.curve[-1]

    def _moved(self, mine: np.ndarray, gradient: np.ndarray, factor: float) -> np.ndarray:
        """Rows after a step of Adam, each with its own age."""
        w = gradient.shape[1]
        age = mine[:, 3 * w :] + 1.0
        m, v, along = averaged(mine[:, w : 2 * w], mine[:, 2 * w : 3 * w], -gradient, age)
        values = mine[:, :w] - self.row_rate * factor * along
        return np.concatenate([values, m, v, age], axis=1)

    def _batch(self) -> tuple[np.ndarray, np.ndarray]:
        n = self.objective.shape[0]
        if self._order[0] != self.epoch:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(n)
            # Sorted, for the sake of a table on disk.
            parts = [np.sort(part) for part in np.array_split(order, self.batches)]
            self._order = (self.epoch, parts)
        index = self._order[1][self.place]
        rng = np.random.default_rng((self.seed, self.epoch, self.place))
        return index, self.objective.draws(rng, index.size)

    def _advance(self) -> None:
        self.place += 1
        if self.place == self.batches:
            self.epoch, self.place = self.epoch + 1, 0

    def _back(self) -> None:
        """The last step never happened, and those to come are shorter."""
        self.failures, self.slowdown = self.failures + 1, 0.5 * self.slowdown
        if self._undo is not None:
            self.live, index, before = self._undo
            self.rows[index, :] = before
            self._undo = None

    def _schedule(self) -> float:
        done = self.live.steps - self.began
        rise = min(1.0, (done + 1) / (self.ramp + 1))
        if self.total is None:
            return rise
        return rise * 0.5 * (1.0 + math.cos(math.pi * min(done, self.total) / self.total))

    def result(self, status: MinibatchStatus, message: str) -> MinibatchResult:
        """The last good state."""
        objective, live = self.objective, self.live
        b, q = objective.backend, objective.inducing.shape[1]
        theta, phi, Z = objective.parameters(live.x)
        state = MinibatchState(
            np.stack([b.to_host(a) for a in (live.x, live.m, live.v)]),
            self.rows,
            b.to_host(live.q.mean),
            b.to_host(live.precision),
            live.steps,
            live.moves,
            self.epoch,
            self.place,
            self.slowdown,
        )
        offset = objective.offset
        mu, S = self.rows[:, :q].copy(), np.exp(self.rows[:, q : 2 * q])
        if objective.place is not None:
            mu, S = objective.placed(live.x)
        return MinibatchResult(
            kernel=objective.kernel.with_theta(b.to_host(theta)),
            likelihood=objective.likelihood.with_theta(b.to_host(phi)),
            Z=Z,
            mu=mu,
            S=S,
            mean=live.q.mean,
            factor=live.q.factor,
            which=objective.totals.which,
            offset=np.zeros(objective.shape[1]) if offset is None else np.asarray(offset),
            curve=np.asarray(self.curve),
            steps=len(self.curve),
            undone=self.failures,
            status=status,
            message=message,
            state=state,
        )


__all__ = ["default_rate", "fit_minibatch", "lower_bound"]
