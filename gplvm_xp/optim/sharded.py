"""L-BFGS on a vector in parts that never meet: only products between vectors travel.

A long vector is one short part here and a part with each worker (:mod:`gplvm_xp.optim.slices`). The
products that the recursion needs of a step come back with the evaluation itself, so an evaluation
is one order out and one answer back: there is no other journey. The line search is that of
:class:`~gplvm_xp.optim.lbfgs.LBFGS`.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.optim.base import Limits, Method, OptResult, Progress, Run, finish
from gplvm_xp.optim.lbfgs import LBFGS, Trial, Walk
from gplvm_xp.optim.slices import (
    FORGET,
    MOVE,
    REMEMBER,
    SAME,
    Order,
    Slices,
    SliceState,
    coefficients,
    grown,
)


class Answer(NamedTuple):
    """What an evaluation brings back.

    Attributes
    ----------
    value : 0-d array
        The objective.
    gradient : array (d,)
        Its gradient in the part that is here.
    line, products : ndarray
        Sums over the workers of what :meth:`Slices.move` and :meth:`Slices.note` return; the second
        is not looked at where the value is not finite.
    norm : float
        Largest absolute entry of the gradient in the workers' parts.
    """

    value: Array
    gradient: Array
    line: np.ndarray
    products: np.ndarray
    norm: float


class Parts(ABC):
    """An objective of a vector whose long parts are with workers."""

    @abstractmethod
    def evaluate(self, x: Array, order: Order) -> Answer:
        """Follow the order and evaluate where it leads; x (d,) is the part that is here."""

    @abstractmethod
    def settle(self, order: Order) -> list[SliceState]:
        """The state of every worker's part after the last step."""

    @abstractmethod
    def restore(self, states: list[SliceState]) -> None:
        """Put the workers' parts into a state."""


@dataclass(frozen=True)
class SearchState:
    """A search after an accepted step, whole: what goes on from it has the same bits.

    Attributes
    ----------
    values, grad_norms : ndarray (steps + 1,)
        Objective and largest gradient entry at the start and after each accepted step.
    gram : ndarray (2 k + 1, 2 k + 1)
        Products between s_1 … s_k, y_1 … y_k and g.
    here : SliceState
        The part that is not with workers.
    parts : list of SliceState
        The workers', in order.
    """

    values: np.ndarray
    grad_norms: np.ndarray
    gram: np.ndarray
    here: SliceState
    parts: list[SliceState]

    @property
    def step(self) -> int:
        """Accepted steps."""
        return self.values.size - 1


class _Held(NamedTuple):
    number: int
    line: np.ndarray
    products: np.ndarray


class _Parted(Walk):
    """The walk of a search in parts; also the objective as the run calls it."""

    def __init__(
        self, parts: Parts, x: Array, memory: int, after: Callable[[_Parted], None] | None
    ) -> None:
        self.here = Slices(x, memory)
        self.values: list[float] = []
        self.norms: list[float] = []
        self.seen: dict[int, Array] = {0: x}
        self._parts, self._memory, self._after = parts, memory, after
        self._gram = np.zeros((1, 1))
        self._number, self._origin = 0, 0
        self._taken, self._mode = 0.0, SAME
        self._direction = np.zeros(0)
        self._best: tuple[float, float, int] = (math.inf, math.inf, 0)
        self._resumed: SearchState | None = None

    def resume(self, state: SearchState) -> None:
        self.here.restore(state.here)
        self._parts.restore(state.parts)
        self.seen = {0: state.here.x}
        self._gram, self._resumed = state.gram, state
        self.values, self.norms = state.values.tolist(), state.grad_norms.tolist()
        self._best = (self.values[-1], self.norms[-1], 0)

    def __call__(self, x: Array) -> tuple[Array, Array]:
        self._answer = self._parts.evaluate(x, self._order)
        return self._answer.value, self._answer.gradient

    @property
    def remembers(self) -> bool:
        return self._gram.shape[0] > 1

    def begin(self, run: Run) -> Trial:
        if self._resumed is not None:
            f, norm = self.values[-1], self.norms[-1]
            gg = self._gram[-1, -1].item()
            return Trial(0.0, f, 0.0, True, norm, gg, x=self.here.point(0))
        start, _, _ = self.trial(run, 0.0, None)
        self.values, self.norms = [start.f], [start.norm]
        self._gram = np.full((1, 1), start.gg)
        self._origin, self._mode = start.held.number, MOVE
        return start

    def aim(self) -> None:
        self._direction = coefficients(self._gram)

    def trial(self, run: Run, t: float, low: Trial | None) -> tuple[Trial, float, float]:
        b, xp = run.backend, run.backend.xp
        self._number += 1
        number = self._number
        keep = {self._origin, self._best[2]} | ({low.held.number} if low else set())
        order = self._settlement(number, t)
        self._order: Order = (order, self._direction, np.asarray(sorted(keep), dtype=float))
        x, line = self.here.move(self._order)
        self.seen = {n: p for n, p in self.seen.items() if n in keep} | {number: x}
        # What the order said is done once.
        self._mode, self._direction = SAME, np.zeros(0)
        value, gradient = run.evaluate(x)
        mine = self.here.note(gradient)
        packed = xp.concat([xp.stack([value, xp.max(xp.abs(gradient))]), line, mine])
        (f, norm), line, mine = np.split(b.to_host(packed).astype(float), [2, 2 + line.shape[0]])
        line = line + self._answer.line
        g0d, dd = line[:2].tolist()
        # np.maximum lets NaN through.
        f, norm = f.item(), np.maximum(norm, self._answer.norm).item()
        if not (run.seen(x, f, norm) and math.isfinite(f)):
            return Trial(t, f, 0.0, False, x=x, held=_Held(number, line, mine)), g0d, dd
        products = mine + self._answer.products
        gg, gd, _, yd, yy = products[:5].tolist()
        self._best = min(self._best, (f, norm, number))
        held = _Held(number, line, products)
        return Trial(t, f, gd, math.isfinite(gd), norm, gg, yd, yy, x, held), g0d, dd

    def take(self, trial: Trial, *, remember: bool) -> None:
        held: _Held = trial.held
        self._gram = grown(self._gram, trial.t, held.line, held.products, remember, self._memory)
        self._origin, self._taken = held.number, trial.t
        self._mode = REMEMBER if remember else MOVE
        self.values.append(trial.f)
        self.norms.append(trial.norm)
        if self._after is not None:
            self._after(self)

    def forget(self) -> None:
        self._gram = self._gram[-1:, -1:]
        self._mode = FORGET

    def state(self) -> SearchState:
        """The search after the step that was taken last."""
        order = (self._settlement(self._number, 0.0), np.zeros(0), np.zeros(0))
        self.here.settle(order)
        parts = self._parts.settle(order)
        self._mode = SAME
        return SearchState(
            np.asarray(self.values), np.asarray(self.norms), self._gram, self.here.state(), parts
        )

    def _settlement(self, number: int, t: float) -> np.ndarray:
        return np.asarray([number, t, self._origin, self._taken, self._mode], dtype=float)


@dataclass(frozen=True)
class _Follow(Method):
    settings: LBFGS
    walk: _Parted

    def search(self, run: Run, x0: Array) -> str:
        return self.settings.follow(run, self.walk)


class ShardedResult(NamedTuple):
    """The end of a search in parts.

    Attributes
    ----------
    result : OptResult
        ``x`` is the best point's part that is here; values and steps include those before a resume.
    point : int
        The number of that point, by which workers know their parts of it.
    """

    result: OptResult
    point: int


def later(limits: Limits, steps: int, seconds: float = 0.0) -> Limits:
    """What is left of limits after some steps and seconds; the callback is told of all steps."""
    callback, time_limit = limits.callback, limits.time_limit

    def told(progress: Progress) -> bool | None:
        assert callback is not None
        return callback(progress._replace(step=progress.step + steps))

    return dataclasses.replace(
        limits,
        max_steps=max(0, limits.max_steps - steps),
        time_limit=None if time_limit is None else max(0.0, time_limit - seconds),
        callback=None if callback is None else told,
    )


def minimise_sharded(
    parts: Parts,
    x0: Array,
    *,
    settings: LBFGS | None = None,
    limits: Limits | None = None,
    every: int = 10,
    save: Callable[[SearchState], None] | None = None,
    resume: SearchState | None = None,
) -> ShardedResult:
    """Minimise over a part that is here and parts that workers hold.

    Parameters
    ----------
    parts : Parts
        The objective; its workers' :class:`Slices` are at their start and have the memory of
        ``settings``.
    x0 : array (d,)
        The start of the part that is here.
    settings : LBFGS, optional
    limits : Limits, optional
        ``max_steps`` counts the steps before a resume too.
    every : int
        Accepted steps between calls of ``save``.
    save : callable, optional
        Gets the whole :class:`SearchState`.
    resume : SearchState, optional
        Where to go on; the search continues as if it had not been interrupted.

    Returns
    -------
    ShardedResult

    Raises
    ------
    ValueError
        If ``every`` or the settings' ``memory`` is not at least 1.
    """
    settings, limits = settings or LBFGS(), limits or Limits()
    for name, number in (("every", every), ("memory", settings.memory)):
        if number < 1:
            raise ValueError(f"{name}={number!r} was given; expected at least 1")

    def after(walk: _Parted) -> None:
        if save is not None and (len(walk.values) - 1) % every == 0:
            save(walk.state())

    walk = _Parted(parts, x0, settings.memory, after)
    if resume is not None:
        walk.resume(resume)
        x0 = resume.here.x
    done = resume.step if resume is not None else 0
    within = later(limits, done)
    result = finish(_Follow(settings, walk), walk, x0, within)
    number = next(n for n, x in walk.seen.items() if x is result.x)
    if resume is not None:
        result = dataclasses.replace(
            result,
            steps=done + result.steps,
            values=(*resume.values[:-1].tolist(), *result.values),
            grad_norms=(*resume.grad_norms[:-1].tolist(), *result.grad_norms),
        )
    return ShardedResult(result, number)


__all__ = ["Answer", "Parts", "SearchState", "ShardedResult", "later", "minimise_sharded"]
