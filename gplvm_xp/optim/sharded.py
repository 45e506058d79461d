"""L-BFGS on a vector in parts that never meet: only products between vectors travel.

A long vector is one short part here and a part with each worker. Of the two-loop recursion only
inner products of s_i, y_i and g are needed to know the direction's coefficients in them
(Chen, Wang & Zhou, Large-scale L-BFGS using MapReduce, NIPS 2014, algorithm 3), and those of the
last step come back with the evaluation itself. So an evaluation is one order out and one answer
back: no other journey.

Every part is a :class:`Slices` and follows the same orders. An order is three host vectors:
``head`` = (point, t, origin, taken, mode), ``coefficients`` of a new direction in (s_1 … s_k,
y_1 … y_k, g), empty where the line goes on, and ``keep``, the points that may be asked for later.
Mode 1 remembers the pair of the step t = ``taken`` that led to ``origin``, 3 empties the memory.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.optim.base import Limits, Method, OptResult, Run, finish
from gplvm_xp.optim.lbfgs import LBFGS, Trial, Walk

Order: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]
_SAME, _REMEMBER, _MOVE, _FORGET = range(4)


class SliceState(NamedTuple):
    """All of a part that a search goes on from.

    Attributes
    ----------
    x, g : array (d,)
        Point and gradient.
    s, y : array (k, d)
        Remembered pairs, the oldest first.
    """

    x: Array
    g: Array
    s: Array
    y: Array


class Slices:
    """One part of the vectors of a search: points, gradients, direction and pairs.

    Parameters
    ----------
    x : array (d,)
        The part of the start, point 0.
    memory : int
        Pairs remembered.
    """

    def __init__(self, x: Array, memory: int) -> None:
        zero = backend.of(x).xp.zeros_like(x)
        self._memory = memory
        self._points: dict[int, tuple[Array, Array]] = {0: (x, zero)}
        self._origin, self._new = 0, 0
        self._d, self._pairs = zero, list[tuple[Array, Array]]()

    def point(self, number: int) -> Array:
        """The part of a point that was kept."""
        return self._points[number][0]

    def move(self, order: Order) -> tuple[Array, Array]:
        """Follow an order.

        Returns
        -------
        x : array (d,)
            The part of the point to evaluate.
        products : array (2 + 2 k,)
            g·d, d·d, d·s_i and d·y_i of this part; g is the gradient at the line's origin.
        """
        b = backend.of(self._d)
        xp = b.xp
        head, coefficients, keep = (b.to_host(a).tolist() for a in order)
        self.settle(order)
        g = self._points[self._origin][1]
        if coefficients:
            d, k = coefficients[-1] * g, len(self._pairs)
            for i, (s, y) in enumerate(self._pairs):
                d = d + coefficients[i] * s + coefficients[k + i] * y
            self._d = d
        kept = {self._origin, *keep}
        self._points = {number: p for number, p in self._points.items() if number in kept}
        self._new = round(head[0])
        x = self._points[self._origin][0] + head[1] * self._d
        self._points[self._new] = x, xp.zeros_like(x)
        return x, self._products([(self._d, g), (self._d, self._d)], [self._d])

    def note(self, g: Array) -> Array:
        """Take the gradient at the new point.

        Returns
        -------
        array (5 + 4 k,)
            g·g, g·d, g·y, y·d, y·y with y the change of g from the line's origin; g·s_i, g·y_i,
            y·s_i and y·y_i.
        """
        y = g - self._points[self._origin][1]
        self._points[self._new] = self._points[self._new][0], g
        d = self._d
        return self._products([(g, g), (g, d), (g, y), (y, d), (y, y)], [g, y])

    def settle(self, order: Order) -> None:
        """Do only what an order says of the last step, so that the state is whole."""
        _, _, origin, taken, mode = backend.of(self._d).to_host(order[0]).tolist()
        before, self._origin = self._origin, round(origin)
        if mode == _REMEMBER:
            y = self._points[self._origin][1] - self._points[before][1]
            self._pairs = [*self._pairs, (taken * self._d, y)][-self._memory :]
        elif mode == _FORGET:
            self._pairs = []

    def state(self) -> SliceState:
        """What a search goes on from, after :meth:`settle`."""
        b = backend.of(self._d)
        x, g = self._points[self._origin]
        none = b.zeros((0, x.shape[0]))
        s, y = (
            b.xp.stack([pair[i] for pair in self._pairs]) if self._pairs else none for i in range(2)
        )
        return SliceState(x, g, s, y)

    def restore(self, state: SliceState) -> None:
        """Go on from a state; its point is number 0."""
        self._points, self._origin = {0: (state.x, state.g)}, 0
        self._pairs = [(state.s[i, ...], state.y[i, ...]) for i in range(state.s.shape[0])]

    # A length may overflow where the entries do not, and a failed point has any numbers.
    @np.errstate(all="ignore")
    def _products(self, pairs: list[tuple[Array, Array]], vectors: list[Array]) -> Array:
        xp = backend.of(self._d).xp
        out = [xp.matmul(a, c) for a, c in pairs]
        for v in vectors:
            out += [xp.matmul(v, s) for s, _ in self._pairs]
            out += [xp.matmul(v, y) for _, y in self._pairs]
        return xp.stack(out)


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


def coefficients(gram: np.ndarray) -> np.ndarray:
    """Minus the inverse Hessian times g, in (s_1 … s_k, y_1 … y_k, g), from their products.

    Parameters
    ----------
    gram : ndarray (2 k + 1, 2 k + 1)

    Returns
    -------
    ndarray (2 k + 1,)
    """
    k = gram.shape[0] // 2
    delta = np.zeros(2 * k + 1)
    delta[-1] = -1.0
    kept = np.zeros(k)
    for i in reversed(range(k)):
        kept[i] = delta @ gram[:, i] / gram[i, k + i]
        delta[k + i] -= kept[i]
    if k:
        delta *= gram[k - 1, 2 * k - 1] / gram[2 * k - 1, 2 * k - 1]
    for i in range(k):
        delta[i] += kept[i] - delta @ gram[:, k + i] / gram[i, k + i]
    return delta


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
        self._taken, self._mode = 0.0, _SAME
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
        self._origin, self._mode = start.held.number, _MOVE
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
        self._mode, self._direction = _SAME, np.zeros(0)
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
        self._gram = _grown(self._gram, trial.t, held.line, held.products, remember, self._memory)
        self._origin, self._taken = held.number, trial.t
        self._mode = _REMEMBER if remember else _MOVE
        self.values.append(trial.f)
        self.norms.append(trial.norm)
        if self._after is not None:
            self._after(self)

    def forget(self) -> None:
        self._gram = self._gram[-1:, -1:]
        self._mode = _FORGET

    def state(self) -> SearchState:
        """The search after the step that was taken last."""
        order = (self._settlement(self._number, 0.0), np.zeros(0), np.zeros(0))
        self.here.settle(order)
        parts = self._parts.settle(order)
        self._mode = _SAME
        return SearchState(
            np.asarray(self.values), np.asarray(self.norms), self._gram, self.here.state(), parts
        )

    def _settlement(self, number: int, t: float) -> np.ndarray:
        return np.asarray([number, t, self._origin, self._taken, self._mode], dtype=float)


def _grown(
    gram: np.ndarray,
    t: float,
    line: np.ndarray,
    products: np.ndarray,
    remember: bool,
    memory: int,
) -> np.ndarray:
    """The products after a step t d: the old pairs, perhaps the new one, and the new g."""
    k = gram.shape[0] // 2
    gg, gd, gy, yd, yy = products[:5]
    with_g, with_y = products[5 : 5 + 2 * k], products[5 + 2 * k :]
    if not remember:
        out = gram.copy()
        out[-1, :-1] = out[:-1, -1] = with_g
        out[-1, -1] = gg
        return out
    s, y, g = 2 * k, 2 * k + 1, 2 * k + 2
    out = np.empty((2 * k + 3, 2 * k + 3))
    out[: 2 * k, : 2 * k] = gram[:-1, :-1]
    for row, known in ((s, t * line[2:]), (y, with_y), (g, with_g)):
        out[row, : 2 * k] = out[: 2 * k, row] = known
    out[s, s], out[y, y], out[g, g] = t * t * line[1], yy, gg
    out[s, y] = out[y, s] = t * yd
    out[s, g] = out[g, s] = t * gd
    out[y, g] = out[g, y] = gy
    drop = max(0, k + 1 - memory)
    order = [*range(drop, k), s, *range(k + drop, 2 * k), y, g]
    return out[np.ix_(order, order)]


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
    within = dataclasses.replace(limits, max_steps=max(0, limits.max_steps - done))
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


__all__ = [
    "Answer", "Order", "Parts", "SearchState", "ShardedResult", "SliceState", "Slices",
    "coefficients", "minimise_sharded",
]  # fmt: skip
