"""The searches behind a local GPLVM: rounds of L-BFGS, or steps by neighbourhoods."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from gplvm_xp.backend import Backend
from gplvm_xp.errors import NotPositiveDefiniteError
from gplvm_xp.estimators._fit import (
    HALTED,
    JITTER_FLOOR,
    JITTER_GROWTH,
    JITTER_TRIES,
    Callback,
    Search,
    descend,
    later,
)
from gplvm_xp.estimators._progress import watched
from gplvm_xp.kernels import Kernel
from gplvm_xp.neighbours import maxmin, nearest, predecessors
from gplvm_xp.objectives import Group, groups_of
from gplvm_xp.objectives.neighbourhood import NeighbourhoodObjective
from gplvm_xp.objectives.neighbourhood_fit import Pace, search_neighbourhoods
from gplvm_xp.objectives.vecchia import VecchiaObjective
from gplvm_xp.optim import OptResult, Progress

# Steps of the first round; each further one has twice as many.
_FIRST_ROUND = 10


@dataclass(frozen=True)
class LocalEnd:
    """How a search ended.

    Attributes
    ----------
    value : float
        The least objective of any round, by the neighbours at its end (nearest-neighbour
        likelihood) or on its way (neighbourhoods).
    values : tuple of float
        The loss curve.
    round_starts : tuple of int
        Where in ``values`` neighbours were found anew.
    steps : int
    grad_norm : float
    status, message : str
    """

    value: float
    values: tuple[float, ...]
    round_starts: tuple[int, ...]
    steps: int
    grad_norm: float
    status: str
    message: str


@dataclass(frozen=True)
class FoundLocal:
    """The end of a search, on the host; NaN for a likelihood that was not computed."""

    kernel: Kernel
    noise: float
    latents: np.ndarray
    jitter: float
    log_likelihood: float
    result: LocalEnd


# -- the nearest-neighbour likelihood --------------------------------------------------------------


def search_vecchia(
    b: Backend, Y: np.ndarray, size: int, s: Search, first: np.ndarray, restart: int
) -> FoundLocal:
    """Rounds of a minimisation at fixed neighbours; order and neighbours are found again between.

    A round raises the likelihood given its neighbours, and loses some of that when they are found
    again: latents were moved apart from rows that they were compared with, and towards others that
    they were not. So what counts is the objective by the neighbours of the latents themselves, and
    the best of these ends is the result. A round ends where latents have moved, root mean square,
    by half the radius of a neighbourhood, or after as many steps as all before it together. A
    search has "converged" where finding neighbours again changes nothing after a round that had
    converged. It has "settled" where the latter half of its steps gained less than ``tol`` of the
    objective.

    Parameters
    ----------
    Y : ndarray (n, D)
        Centred, NaN for missing.
    size : int
        Neighbours of each row.
    first : ndarray (n, q)
        Starting latents.
    restart : int
        Which start it is.

    Raises
    ------
    NotEnoughMemoryError
        If an evaluation does not fit.
    NotPositiveDefiniteError
        If the start has no factors after the jitter schedule.
    """
    size = min(size, Y.shape[0] - 1)
    rounds = _Rounds(groups_of(b, Y), _Point(s.kernel, s.noise, first), size, s)
    with watched(s.progress, s.max_iter, restart, s.callback, "LocalGPLVM") as callback:
        try:
            status, message = rounds.search(callback)
        except KeyboardInterrupt:
            status, message = "interrupted", "interrupted by the keyboard; the best state is kept"
    return rounds.found(status, message)


class _Point(NamedTuple):
    kernel: Kernel
    noise: float
    latents: np.ndarray


class _Best(NamedTuple):
    """A point, the objective by the neighbours there, and the log-likelihood in it."""

    point: _Point
    value: float
    log_likelihood: float


class _Rounds:
    """One search by rounds: mutable, and alive no longer than the call."""

    def __init__(self, groups: tuple[Group, ...], point: _Point, size: int, s: Search) -> None:
        self.groups, self.point, self.size, self.s = groups, point, size, s
        self.best = _Best(point, math.inf, math.nan)
        self.jitter, self.grad_norm, self.steps, self.now = s.jitter, math.nan, 0, math.inf
        self.values: list[float] = []
        self.starts: list[int] = []
        # The best objective by its own neighbours, and the steps that it took.
        self.reached: list[tuple[int, float]] = []
        # How far latents may move in a round, and whether the user has said stop.
        self.reach, self.told = math.inf, False

    def search(self, callback: Callback | None) -> tuple[str, str]:
        """Rounds until the end: status and message."""
        tol, most = self.s.tol, self.s.max_iter
        objective = self._look()
        while True:
            length = min(max(_FIRST_ROUND, self.steps), most - self.steps)
            end = self._advance(objective, length, callback)
            if end.status == "interrupted":
                return end.status, end.message
            objective = self._look()
            size = max(1.0, abs(self.now))
            halted = self.told if end.status == "stopped" else end.status in HALTED
            if halted or (end.status == "failed" and not end.steps):
                return end.status, end.message
            if end.status == "converged" and abs(self.now - end.value) <= 1e-3 * tol * size:
                return "converged", "finding neighbours again changed nothing"
            if self.steps >= 2 * _FIRST_ROUND and self._gain() <= tol * size:
                return "settled", f"the latter half of {self.steps} steps gained less than tol"
            if self.steps >= most:
                return "max_steps", f"max_iter={most} reached"

    def _gain(self) -> float:
        """What the latter half of all steps gained."""
        half = [value for steps, value in self.reached if 2 * steps <= self.steps]
        return half[-1] - self.best.value

    def _look(self) -> VecchiaObjective:
        """The objective by the neighbours at the point, which is the best if it is lower there."""
        s, (kernel, noise, latents) = self.s, self.point
        order = maxmin(latents)
        neighbours = predecessors(latents, order, self.size)
        objective = VecchiaObjective(
            kernel, self.groups, latents, noise, order, neighbours,
            latent_prior=s.latent_prior, priors=s.priors, held=s.held, jitter=self.jitter,
        )  # fmt: skip
        # With all rows as neighbours there are no others to be found.
        if self.size < latents.shape[0] - 1:
            full = np.flatnonzero(neighbours[:, -1] >= 0)
            gap = latents[full] - latents[neighbours[full, -1]]
            self.reach = 0.5 * math.sqrt(np.median(np.sum(gap * gap, axis=1)))
        b, x = objective.backend, objective.start()
        self.now = b.to_host(objective.value_and_grad(x)[0]).astype(np.float64).item()
        if self.now < self.best.value:
            fit = objective.likelihood(*objective.values(x))
            value = b.to_host(fit.value).astype(np.float64).item()
            self.best = _Best(self.point, self.now, value)
        self.reached.append((self.steps, self.best.value))
        return objective

    def _advance(
        self, objective: VecchiaObjective, steps: int, callback: Callback | None
    ) -> OptResult:
        """One round from the point."""
        kernel, b = objective.kernel, objective.backend

        def make(jitter: float) -> VecchiaObjective:
            return objective if jitter == self.jitter else replace(objective, jitter=jitter)

        start = b.asarray(self.point.latents)

        def watch(progress: Progress) -> bool:
            if after is not None and after(progress):
                self.told = True
                return True
            move = objective.values(progress.x)[2] - start
            square: float = b.to_host(b.xp.sum(move * move)).item()
            far: bool = square > move.shape[0] * self.reach**2
            return far

        after = later(callback, self.steps)
        own, result, self.jitter = descend(make, self.s, self.jitter, steps, watch, _hopeless)
        theta, noise, X = own.values(result.x)
        self.point = _Point(
            kernel.with_theta(b.to_host(theta).astype(np.float64)),
            b.to_host(noise).astype(np.float64).item(),
            np.array(b.to_host(X), dtype=np.float64),
        )
        self.starts.append(len(self.values))
        self.values += result.values
        self.steps, self.grad_norm = self.steps + result.steps, result.grad_norm
        return result

    def found(self, status: str, message: str) -> FoundLocal:
        """The best point, or the latest of a search that was interrupted."""
        best = self.best
        if status == "interrupted" and self.values:
            # Its last round began at or after the best, and was on its way down.
            best = _Best(self.point, self.values[-1], math.nan)
        end = LocalEnd(
            best.value, tuple(self.values), tuple(self.starts), self.steps, self.grad_norm,
            status, message,
        )  # fmt: skip
        return FoundLocal(*best.point, self.jitter, best.log_likelihood, end)


def _hopeless(tried: float, share: float) -> str:
    return (
        f"a block's covariance at the start has no Cholesky factor with a jitter of up to "
        f"{tried:.3g} ({share:.0e} of the data's variance); use a larger noise_variance, or check "
        "the kernel's starting values"
    )


# -- neighbourhoods --------------------------------------------------------------------------------


def search_stochastic(
    b: Backend, Y: np.ndarray, pace: Pace, s: Search, first: np.ndarray, restart: int
) -> FoundLocal:
    """Neighbourhood steps; see :mod:`gplvm_xp.objectives.neighbourhood`.

    Raises
    ------
    NotPositiveDefiniteError
        If the blocks at the start have no factors after the jitter schedule.
    """
    groups, jitter = groups_of(b, Y), s.jitter
    for _ in range(1 + JITTER_TRIES):
        objective = NeighbourhoodObjective.of(
            s.kernel, groups, first.shape, s.noise, s.latent_prior, s.priors, s.held, jitter
        )
        if _fine(objective, first, pace):
            break
        jitter = max(jitter, JITTER_FLOOR * s.variance) * JITTER_GROWTH
    else:
        tried = jitter / JITTER_GROWTH
        raise NotPositiveDefiniteError(_hopeless(tried, tried / s.variance))
    rounds = pace.rounds(first.shape[0])
    with watched(s.progress, rounds, restart, s.callback, "LocalGPLVM") as callback:

        def tell(step: int, steps: int, value: float, seconds: float) -> bool | None:
            if callback is None:
                return None
            return callback(Progress(step, steps, value, math.nan, None, seconds))

        limited = replace(pace, time_limit=s.time_left(), seed=pace.seed + restart)
        found = search_neighbourhoods(objective, first, limited, tell)
    end = LocalEnd(
        found.value, found.values, tuple(range(len(found.values))), found.steps, math.nan,
        found.status, found.message,
    )  # fmt: skip
    return FoundLocal(found.kernel, found.noise, found.latents, jitter, math.nan, end)


def _fine(objective: NeighbourhoodObjective, X: np.ndarray, pace: Pace) -> bool:
    """Whether some blocks can be evaluated at the start."""
    b = objective.backend
    centres = np.arange(X.shape[0]) if pace.centres is None else pace.centres
    rows, index = np.unique(
        nearest(X, pace.n_neighbors, rows=centres[: pace.batch_size]), return_inverse=True
    )
    index = index.reshape(-1, pace.n_neighbors)
    x = b.asarray(objective.unknowns.layout.start())
    f = objective.evaluate(x, b.asarray(X[rows]), rows, index)[0]
    return math.isfinite(b.to_host(f).item())


__all__ = ["FoundLocal", "LocalEnd", "search_stochastic", "search_vecchia"]
