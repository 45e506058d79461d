"""L-BFGS on the objective's own device, one host read per evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gplvm_xp._typing import Array, Namespace
from gplvm_xp.optim.base import Method, Run


class _Pair(NamedTuple):
    s: Array  # (d,) step
    y: Array  # (d,) change of the gradient
    rho: float  # 1 / s.y
    gamma: float  # s.y / y.y


class _Trial(NamedTuple):
    """A point on the search line; arrays are on the device, numbers have been read."""

    t: float
    f: float
    slope: float
    finite: bool
    norm: float = math.inf
    gg: float = 0.0
    x: Array = None
    g: Array = None
    y: Array = None
    yd: float = 0.0
    yy: float = 0.0


class _Line(NamedTuple):
    """The line x + t d with what is known at t = 0."""

    x: Array
    g: Array
    f: float
    d: Array
    gd: Array  # 0-d, on the device until the first trial is read
    dd: Array  # 0-d


class _Step(NamedTuple):
    trial: _Trial
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


def _inside(a: _Trial, b: _Trial, slack: float) -> float:
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


def _outside(a: _Trial, b: _Trial) -> float:
    """A point beyond b, where the slope, taken as linear from a to b, vanishes."""
    rise = b.slope - a.slope
    t = b.t - b.slope * (b.t - a.t) / rise if rise > 0.0 else math.inf
    return min(max(t, 1.5 * b.t), 8.0 * b.t)


@dataclass(frozen=True)
class LBFGS(Method):
    """Limited-memory BFGS with a strong-Wolfe line search, wherever the start is.

    The vectors never leave the device. What the host must know of an evaluation (value, gradient
    norm, slopes, curvature) is eight numbers in one read. An evaluation that is not finite means
    "too far" and shortens the step. Costs O(memory · d) time and ``2 memory`` vectors.

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
        b, xp = run.backend, run.backend.xp
        value, gradient = run.evaluate(x)
        norm, gg, g = _norms(xp, value, gradient)
        f, gnorm, gg = b.to_host(xp.stack([value, norm, gg])).tolist()
        if begins:
            run.start(x, f, gnorm)
        pairs, restarts, walled = list[_Pair](), 0, 0
        while True:
            d = _direction(xp, g, pairs)
            line = _Line(x, g, f, d, xp.matmul(g, d), xp.matmul(d, d))
            length = max(math.sqrt(gg), gnorm)
            step = self._line_search(run, line, 1.0 if pairs else min(1.0, 1.0 / length))
            if step is None:
                if not pairs or restarts == self.restarts:
                    return (
                        "no lower point was found along the search direction; the value may be at "
                        "its rounding level, the gradient inaccurate, or the domain's edge reached"
                    )
                pairs, restarts = [], restarts + 1
                continue
            new = step.trial
            run.accept(new.x, new.f, new.norm, ends=step.clean)
            walled = 0 if step.clean else walled + 1
            if walled > self.walled_steps:
                return (
                    f"{walled} steps in a row were shortened by evaluations that are not finite; "
                    "the lowest point may lie on the edge of the domain"
                )
            sy = new.t * new.yd
            if sy > 0.0 and new.yd > b.eps * math.sqrt(step.dd * new.yy):
                pair = _Pair(new.t * d, new.y, 1.0 / sy, sy / new.yy)
                pairs = [*pairs[max(0, len(pairs) + 1 - self.memory) :], pair]
            x, f, g, gg, gnorm = new.x, new.f, new.g, new.gg, new.norm

    def _line_search(self, run: Run, line: _Line, t: float) -> _Step | None:
        """A point that satisfies the strong Wolfe conditions, or the lowest found, or None."""
        slack = run.slack(line.f)
        low: _Trial | None = None
        high: _Trial | None = None
        clean = True
        for _ in range(self.max_line_search):
            trial, slope, dd = self._trial(run, line, t)
            if not slope < 0.0:
                return None
            origin = _Trial(0.0, line.f, slope, True)
            clean = clean and trial.finite
            base = low or origin
            sufficient = trial.f <= line.f + self.armijo * t * slope
            by_slope = (
                trial.f <= line.f + slack and trial.slope <= (2.0 * self.armijo - 1.0) * slope
            )
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
        if low is None or not low.f < line.f:
            return None
        return _Step(low, dd, clean)

    def _trial(self, run: Run, line: _Line, t: float) -> tuple[_Trial, float, float]:
        """Evaluate at x + t d; the trial, the slope at 0 and d.d, in one read."""
        b, xp = run.backend, run.backend.xp
        x = line.x + t * line.d
        value, gradient = run.evaluate(x)
        norm, gg, g = _norms(xp, value, gradient)
        y = g - line.g
        gd, yd, yy = xp.matmul(g, line.d), xp.matmul(y, line.d), xp.matmul(y, y)
        packed = xp.stack([value, norm, gg, gd, line.gd, yd, yy, line.dd])
        f, gnorm, gg, slope, slope0, yd, yy, dd = b.to_host(packed).tolist()
        finite = run.seen(x, f, gnorm) and math.isfinite(slope)
        return _Trial(t, f, slope, finite, gnorm, gg, x, g, y, yd, yy), slope0, dd


__all__ = ["LBFGS"]
