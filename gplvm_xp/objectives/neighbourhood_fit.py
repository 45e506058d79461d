"""Stochastic training by neighbourhoods (Yao, Gall, Van Gool & Urtasun 2011): the search.

A step takes a batch of blocks, each a centre and its nearest rows in the current latent space, and
moves their rows only, with momentum; each row's is counted by its own visits. What is reached is an
embedding that its neighbourhoods like, not a maximum of the posterior.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.kernels import Kernel
from gplvm_xp.neighbours import nearest
from gplvm_xp.objectives.neighbourhood import NeighbourhoodObjective
from gplvm_xp.optim.adam import averaged

# Blocks after which neighbours are found again, if an epoch has more: what a search of the tree
# gives is memory, and the latents have moved by then.
REFRESH = 2**17
# Decay of the average of squared gradients. A row is visited some hundred times.
_SQUARES = 0.99


@dataclass(frozen=True)
class Pace:
    """How a search goes.

    Attributes
    ----------
    n_neighbors : int
        R, rows of a block, its centre included.
    batch_size : int
        Blocks of a step.
    epochs : int
        Passes in which every centre is drawn once, in a new order.
    learning_rate : float
        Of the latents: with ``adaptive`` about the length of a step as a part of the radius of a
        neighbourhood: the root median square distance from a centre to the farthest of its block.
    kernel_learning_rate : float
        Of the logarithms of kernel parameters and noise.
    momentum : float
        What is kept of the direction before, 0 to below 1.
    adaptive : bool
        Whether each coordinate's direction is divided by the root of the running mean of its
        squared gradient (Adam; Kingma & Ba 2015). False is the paper's rule, whose rates are the
        lengths of steps for a gradient of one nat per unit.
    ramp : int
        Steps at the beginning over which the rates rise from zero.
    centres : ndarray of int (c,) or None
        The rows that are drawn; None is all of them. Their neighbours are any rows.
    seed : int
        Of the order of the centres.
    time_limit : float or None
        Seconds.
    """

    n_neighbors: int
    batch_size: int
    epochs: int
    learning_rate: float = 0.25
    kernel_learning_rate: float = 0.02
    momentum: float = 0.9
    adaptive: bool = True
    ramp: int = 0
    centres: np.ndarray | None = None
    seed: int = 0
    time_limit: float | None = None

    def rounds(self, n: int) -> int:
        """Rounds of the whole search, for n rows."""
        centres = n if self.centres is None else self.centres.size
        return self.epochs * -(-centres // REFRESH)


class NeighbourhoodResult(NamedTuple):
    """The end of a search, on the host.

    Attributes
    ----------
    kernel : Kernel
    noise : float
    latents : ndarray (n, q)
    value : float
        The least of ``values``; its round's end is what is kept.
    values : tuple of float
        Of each round (an epoch, or a part of one between two searches for neighbours) the mean over
        its blocks of the negative log posterior, as if all rows were as theirs; nats.
    steps : int
        Batches.
    status : str
        "finished", "stopped", "interrupted", "time_limit" or "failed".
    message : str
    """

    kernel: Kernel
    noise: float
    latents: np.ndarray
    value: float
    values: tuple[float, ...]
    steps: int
    status: str
    message: str


class _State(NamedTuple):
    """Replaced whole, so that an interrupt leaves no step half done."""

    x: Array  # (p,) logarithms of kernel parameters and noise
    m: Array  # (p,) direction
    v: Array  # (p,) mean squared gradient
    rows: Array  # (n, 3 q + 1) latents, their directions and mean squares, visits
    steps: int


def search_neighbourhoods(
    objective: NeighbourhoodObjective,
    latents: np.ndarray,
    pace: Pace,
    callback: Callable[[int, int, float, float], bool | None] | None = None,
) -> NeighbourhoodResult:
    """Move latents, kernel and noise, a batch of blocks at a time.

    Rates fall to zero along half a cosine over the search. Neighbours are found again at the
    beginning of every round: an epoch, or 2¹⁷ blocks of one.

    Parameters
    ----------
    objective : NeighbourhoodObjective
    latents : ndarray (n, q)
        Where to begin.
    pace : Pace
    callback : callable, optional
        ``callback(rounds, steps, value, seconds)`` after every round; a true answer stops.

    Returns
    -------
    NeighbourhoodResult
        Ctrl-C ends with status "interrupted" and the best round so far.

    Notes
    -----
    About R³ + 6 R² D operations a block; memory beside the data is 4 q + 1 numbers a row and
    that of a batch. One host read a round.
    """
    search = _Search(objective, latents, pace)
    status, message = "finished", f"{pace.epochs} epochs"
    try:
        while search.epoch < pace.epochs:
            for part in search.rounds():
                if not search.round(part):
                    status, message = "time_limit", f"time_limit={pace.time_limit:g} s reached"
                    break
                told = len(search.values), search.state.steps, search.values[-1], search.seconds()
                if callback is not None and callback(*told):
                    status, message = "stopped", "stopped by the callback"
                    break
            if status != "finished":
                break
            search.epoch += 1
    except KeyboardInterrupt:
        status, message = "interrupted", "interrupted by the keyboard; the best state is kept"
    return search.result(status, message)


class _Search:
    """One search: mutable, and alive no longer than the call."""

    def __init__(self, objective: NeighbourhoodObjective, latents: np.ndarray, pace: Pace) -> None:
        b = objective.backend
        n, q = latents.shape
        self.objective, self.pace, self.q = objective, pace, q
        x = b.asarray(objective.unknowns.layout.start())
        rows = np.concatenate([latents, np.zeros((n, 2 * q + 1))], axis=1)
        zero = b.xp.zeros_like(x)
        self.state = _State(x, zero, zero, b.asarray(rows), 0)
        self.centres = np.arange(n) if pace.centres is None else pace.centres
        self.epoch = 0
        self.values: list[float] = []
        self._best: tuple[float, Array, Array] = (math.inf, x, b.asarray(latents))
        self._began = time.perf_counter()
        sizes = [len(self._batches(part)) for part in self.rounds()]
        self._total = max(pace.epochs * sum(sizes), 1)
        self._rate = pace.learning_rate

    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._began

    def rounds(self) -> list[np.ndarray]:
        """The centres of an epoch in its order, cut where neighbours are found again."""
        order = np.random.default_rng((self.pace.seed, self.epoch)).permutation(self.centres)
        return np.array_split(order, -(-order.size // REFRESH))

    def _batches(self, centres: np.ndarray) -> list[np.ndarray]:
        return np.array_split(centres, -(-centres.shape[0] // self.pace.batch_size))

    def round(self, centres: np.ndarray) -> bool:
        """All blocks of some centres; whether time was left for it."""
        b, pace = self.objective.backend, self.pace
        X = self.state.rows[:, : self.q]
        index = nearest(X, pace.n_neighbors, rows=centres)
        if pace.adaptive:
            self._rate = pace.learning_rate * _radius(b.to_host(X), index)
        values = []
        for blocks in self._batches(index):
            # The first step is always taken.
            over = pace.time_limit is not None and self.seconds() >= pace.time_limit
            if over and self.state.steps:
                break
            values.append(self._step(blocks))
        else:
            over = False
        if values:
            mean = b.xp.mean(b.xp.stack(values))
            self.values.append(b.to_host(mean).astype(np.float64).item())
            if self.values[-1] < self._best[0]:
                X = b.xp.asarray(self.state.rows[:, : self.q], copy=True)
                self._best = self.values[-1], self.state.x, X
        return not over

    @np.errstate(all="ignore")
    def _step(self, blocks: np.ndarray) -> Array:
        """Move the rows of some blocks (B, R); the estimate before it."""
        objective, pace, s, q = self.objective, self.pace, self.state, self.q
        b, xp = objective.backend, objective.backend.xp
        rows, index = np.unique(blocks, return_inverse=True)
        index = index.reshape(blocks.shape)
        mine = b.rows(s.rows, rows)
        X, m, v = (mine[:, a * q : (a + 1) * q] for a in range(3))
        f, gx, gX = objective.evaluate(s.x, X, rows, index)
        # A block that can't be evaluated says nothing.
        gx, gX = (xp.where(xp.isfinite(g), g, 0.0) for g in (gx, gX))
        factor, age = self._schedule(), mine[:, 3 * q :] + 1.0
        # As for the rows: what a block says on average.
        per_block = blocks.shape[1] / objective.rows
        x, mx, vx = self._moved(
            s.x, s.m, s.v, gx, s.steps + 1, pace.kernel_learning_rate * factor, per_block
        )
        X, m, v = self._moved(X, m, v, gX, age, self._rate * factor, 1.0)
        moved = b.scatter_add(
            s.rows, b.scatter_plan(rows, objective.rows), xp.concat([X, m, v, age], axis=1) - mine
        )
        self.state = _State(x, mx, vx, moved, s.steps + 1)
        return f

    def _moved(
        self, x: Array, m: Array, v: Array, g: Array, age: Array | int, rate: float, unit: float
    ) -> tuple[Array, Array, Array]:
        """Values, directions and mean squares after a step."""
        pace = self.pace
        if pace.adaptive:
            m, v, along = averaged(m, v, g, age, (pace.momentum, _SQUARES))
            return x - rate * along, m, v
        m = pace.momentum * m - (rate * unit) * g
        return x + m, m, v

    def _schedule(self) -> float:
        done = self.state.steps
        rise = min(1.0, (done + 1) / (self.pace.ramp + 1))
        return rise * 0.5 * (1.0 + math.cos(math.pi * min(done, self._total) / self._total))

    def result(self, status: str, message: str) -> NeighbourhoodResult:
        """The best round's end, or the latest state where no round has ended."""
        unknowns, b = self.objective.unknowns, self.objective.backend
        value, x, X = self._best
        if not self.values:
            x, X = self.state.x, self.state.rows[:, : self.q]
        elif not math.isfinite(value):
            status, message = "failed", "no round of steps could be evaluated"
        theta, noise, _ = unknowns.values(b, x)
        return NeighbourhoodResult(
            unknowns.kernel.with_theta(b.to_host(theta).astype(np.float64)),
            b.to_host(noise).astype(np.float64).item(),
            np.array(b.to_host(X), dtype=np.float64),
            value,
            tuple(self.values),
            self.state.steps,
            status,
            message,
        )


def _radius(X: np.ndarray, index: np.ndarray) -> float:
    """The root median (where that is 0, mean) square distance from a block's first to its last."""
    far = np.sum((X[index[:, 0]] - X[index[:, -1]]) ** 2, axis=1, dtype=np.float64)
    return math.sqrt(np.median(far)) or math.sqrt(np.mean(far))


__all__ = ["NeighbourhoodResult", "Pace", "search_neighbourhoods"]
