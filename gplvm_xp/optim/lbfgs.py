"""L-BFGS on the objective's own device, one host read per evaluation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array, Namespace
from gplvm_xp.optim.base import Method, Run


class _Pair(NamedTuple):
    s: Array  # (d,) step
    y: Array  # (d,) change of the gradient
    rho: float  # 1 / s.y
    gamma: float  # s.y / y.y


class Trial(NamedTuple):
    """An evaluated point x + t d of a search line, in numbers that have been read.

    Attributes
    ----------
    t, f, slope : float
        Step, value, and slope g.d along the line.
    finite : bool
        Whether value and gradient are.
    norm, gg : float
        Largest absolute entry and squared length of the gradient g.
    yd, yy : float
        Products of y, the change of the gradient from the line's origin.
    x : array
        The point, as the run records it.
    held : object
        What its walk keeps of it.
    """

    t: float
    f: float
    slope: float
    finite: bool
    norm: float = math.inf
    gg: float = 0.0
    yd: float = 0.0
    yy: float = 0.0
    x: Array = None
    held: Any = None


class Walk(ABC):
    """Where the vectors of a descent live: point, gradient, direction and remembered pairs.

    The search itself, :meth:`LBFGS.follow`, sees numbers only.
    """

    @property
    @abstractmethod
    def remembers(self) -> bool:
        """Whether there are pairs."""

    @abstractmethod
    def begin(self, run: Run) -> Trial:
        """The start, evaluated, at t = 0; it becomes the point."""

    @abstractmethod
    def aim(self) -> None:
        """Take the direction d = −H g at the point; H is of the pairs (1 where there are none)."""

    @abstractmethod
    def trial(self, run: Run, t: float, low: Trial | None) -> tuple[Trial, float, float]:
        """Evaluate at x + t d; the trial, the slope at 0, and d.d.

        Of the earlier trials of the line, only ``low`` may be taken yet.
        """

    @abstractmethod
    def take(self, trial: Trial, *, remember: bool) -> None:
        """Make a trial of this line the point, and remember the pair of the step or not."""

    @abstractmethod
    def forget(self) -> None:
        """Empty the memory."""


class _Step(NamedTuple):
    trial: Trial
    dd: float
    clean: bool


def _norms(xp: Namespace, f: Array, g: Array) -> tuple[Array, Array, Array]:
    """Largest entry and squared length of g, and g itself made harmless where it is not finite."""
    norm = xp.max(xp.abs(g))
    g = xp.where(xp.isfinite(norm) & xp.isfinite(f), g, 0.0)
    # A squared length may overflow where the entries do not: infinity is its value.
    with np.errstate(over="ignore"):
        return norm, xp.matmul(g, g), g


def _direction(xp: Namespace, g: Array, pairs: list[_Pair]) -> Array:
    """Minus the inverse Hessian times g by the two-loop recursion (Nocedal & Wright, alg. 7.4)."""
    r = -g
    kept = []
    for pair in reversed(pairs):
        a = pair.rho * xp.matmul(pair.s, r)
        r = r - a * pair.y
        kept.append(a)
    if pairs:
        r = pairs[-1].gamma * r
    for pair, a in zip(pairs, reversed(kept), strict=True):
        r = r + (a - pair.rho * xp.matmul(pair.y, r)) * pair.s
    return r


def _inside(a: Trial, b: Trial, slack: float) -> float:
    """A point between two trials: the cubic's minimum, kept off both ends."""
    if not b.finite or a.t == b.t:
        return a.t + 0.2 * (b.t - a.t)
    u = 0.5
    if abs(b.f - a.f) <= slack:
        # The values differ by rounding only: the slopes still know where they vanish.
        if a.slope != b.slope:
            u = a.slope / (a.slope - b.slope)
    else:
        w = b.t - a.t
        c = a.slope + b.slope - 3.0 * (b.f - a.f) / w
        root = c * c - a.slope * b.slope
        if root >= 0.0:
            root = math.copysign(math.sqrt(root), w)
            below = b.slope - a.slope + 2.0 * root
            if below != 0.0:
                u = 1.0 - (b.slope + root - c) / below
    u = u if math.isfinite(u) else 0.5
    return a.t + min(max(u, 0.1), 0.9) * (b.t - a.t)


def _outside(a: Trial, b: Trial) -> float:
    """A point beyond b, where the slope, taken as linear from a to b, vanishes."""
    rise = b.slope - a.slope
    t = b.t - b.slope * (b.t - a.t) / rise if rise > 0.0 else math.inf
    return min(max(t, 1.5 * b.t), 8.0 * b.t)


@dataclass(frozen=True)
class LBFGS(Method):
    """Limited-memory BFGS with a strong-Wolfe line search, wherever the start is.

    The vectors never leave the device (or the :class:`Walk` that :meth:`follow` is given). What the
    host must know of an evaluation (value, gradient norm, slopes, curvature) is eight numbers in
    one read. An evaluation that is not finite means "too far" and shortens the step. Costs
    O(memory · d) time and ``2 memory`` vectors.

    Attributes
    ----------
    memory : int
        Pairs of vectors remembered.
    max_line_search : int
        Evaluations of one line search.
    restarts : int
        How often the memory is emptied after a line search found no lower point.
    walled_steps : int
        Steps in a row, each shortened by a failed evaluation, after which the search gives up.
    armijo, curvature : float
        The constants of the Wolfe conditions.

    Notes
    -----
    Near the minimum the value's decrease drowns in rounding while the gradient is still accurate;
    there the decrease is judged by the slopes (the approximate Wolfe conditions of Hager & Zhang,
    SIAM J. Optim. 16, 2005).
    """

    memory: int = 10
    max_line_search: int = 25
    restarts: int = 5
    walled_steps: int = 50
    armijo: float = 1e-4
    curvature: float = 0.9

    def search(self, run: Run, x0: Array) -> str:
        return self.descend(run, x0, begins=True)

    def descend(self, run: Run, x: Array, *, begins: bool = False) -> str:
        """Search from x, which begins the run or is where another method gave up."""
        return self.follow(run, _Dense(x, self.memory), begins=begins)

    def follow(self, run: Run, walk: Walk, *, begins: bool = True) -> str:
        """Search wherever the walk's vectors live, until the run ends or nothing is lower."""
        at = walk.begin(run)
        if begins:
            run.start(at.x, at.f, at.norm)
        restarts, walled = 0, 0
        while True:
            walk.aim()
            length = max(math.sqrt(at.gg), at.norm)
            step = self._line_search(
                run, walk, at.f, 1.0 if walk.remembers else min(1.0, 1.0 / length)
            )
            if step is None:
                if not walk.remembers or restarts == self.restarts:
                    return (
                        "no lower point was found along the search direction; the value may be at "
                        "its rounding level, the gradient inaccurate, or the domain's edge reached"
                    )
                walk.forget()
                restarts += 1
                continue
            new = step.trial
            run.accept(new.x, new.f, new.norm, ends=step.clean)
            walled = 0 if step.clean else walled + 1
            if walled > self.walled_steps:
                return (
                    f"{walled} steps in a row were shortened by evaluations that are not finite; "
                    "the lowest point may lie on the edge of the domain"
                )
            curved = new.t * new.yd > 0.0 and new.yd > run.backend.eps * math.sqrt(step.dd * new.yy)
            walk.take(new, remember=curved)
            at = new

    def _line_search(self, run: Run, walk: Walk, f: float, t: float) -> _Step | None:
        """A point that satisfies the strong Wolfe conditions, or the lowest found, or None."""
        slack = run.slack(f)
        low: Trial | None = None
        high: Trial | None = None
        clean = True
        for _ in range(self.max_line_search):
            trial, slope, dd = walk.trial(run, t, low)
            if not slope < 0.0:
                return None
            origin = Trial(0.0, f, slope, True)
            clean = clean and trial.finite
            base = low or origin
            sufficient = trial.f <= f + self.armijo * t * slope
            by_slope = trial.f <= f + slack and trial.slope <= (2.0 * self.armijo - 1.0) * slope
            lower = trial.f < base.f or by_slope
            if trial.finite and (sufficient or by_slope) and lower:
                walled = high is not None and not high.finite
                # Between a lower point and a wall there is nothing worth more evaluations.
                if abs(trial.slope) <= -self.curvature * slope or (walled and sufficient):
                    return _Step(trial, dd, clean)
                turned = trial.slope >= 0.0 if high is None else trial.slope * (high.t - t) >= 0.0
                if turned:
                    high = base
                low = trial
                t = _outside(base, trial) if high is None else _inside(trial, high, slack)
            else:
                high = trial
                t = _inside(base, trial, slack)
        if low is None or not low.f < f:
            return None
        return _Step(low, dd, clean)


class _Dense(Walk):
    """Vectors in one place, of one array library; one host read per evaluation."""

    def __init__(self, x: Array, memory: int) -> None:
        self._x = x
        self._memory = memory
        self._pairs: list[_Pair] = []

    @property
    def remembers(self) -> bool:
        return bool(self._pairs)

    def begin(self, run: Run) -> Trial:
        b, xp = run.backend, run.backend.xp
        value, gradient = run.evaluate(self._x)
        norm, gg, self._g = _norms(xp, value, gradient)
        f, gnorm, gg = b.to_host(xp.stack([value, norm, gg])).tolist()
        return Trial(0.0, f, 0.0, math.isfinite(gnorm), gnorm, gg, x=self._x)

    def aim(self) -> None:
        xp = backend.of(self._x).xp
        self._d = _direction(xp, self._g, self._pairs)
        # 0-d, on the device until the first trial is read.
        self._slope, self._dd = xp.matmul(self._g, self._d), xp.matmul(self._d, self._d)

    def trial(self, run: Run, t: float, low: Trial | None) -> tuple[Trial, float, float]:
        b, xp = run.backend, run.backend.xp
        x = self._x + t * self._d
        value, gradient = run.evaluate(x)
        norm, gg, g = _norms(xp, value, gradient)
        y = g - self._g
        gd, yd, yy = xp.matmul(g, self._d), xp.matmul(y, self._d), xp.matmul(y, y)
        packed = xp.stack([value, norm, gg, gd, self._slope, yd, yy, self._dd])
        f, gnorm, gg, slope, slope0, yd, yy, dd = b.to_host(packed).tolist()
        finite = run.seen(x, f, gnorm) and math.isfinite(slope)
        return Trial(t, f, slope, finite, gnorm, gg, yd, yy, x, (g, y)), slope0, dd

    def take(self, trial: Trial, *, remember: bool) -> None:
        g, y = trial.held
        if remember:
            sy = trial.t * trial.yd
            pair = _Pair(trial.t * self._d, y, 1.0 / sy, sy / trial.yy)
            self._pairs = [*self._pairs[max(0, len(self._pairs) + 1 - self._memory) :], pair]
        self._x, self._g = trial.x, g

    def forget(self) -> None:
        self._pairs = []


__all__ = ["LBFGS", "Trial", "Walk"]
