"""BFGS for many small independent problems at once, on their own device.

Every row has its own inverse Hessian, its own line search and its own end; the rows only share the
launches. All decisions about a row are masks on the device, so an iteration reads one flag
per row and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array, Namespace
from gplvm_xp.backend import Backend

BatchObjective: TypeAlias = Callable[[Array, Array], tuple[Array, Array]]

_ARMIJO, _CURVATURE = 1e-4, 0.9
# After this many trials any sufficient decrease will do, and after the second a row starts again.
_PATIENCE, _GIVE_UP = 6, 25


@dataclass(frozen=True)
class BatchResult:
    """The end of a batch of minimisations, in the order of the start.

    Attributes
    ----------
    x : array (N, q)
        Last accepted point of each row.
    value, grad_norm : array (N,)
        Objective and largest absolute gradient entry there; inf where the start of a row can't be
        evaluated.
    converged : bool array (N,)
        Whether ``grad_norm <= gtol``; never true otherwise.
    steps : int
        Iterations; each evaluates every unfinished row once.
    evaluations : int
        Rows evaluated, summed over the iterations and the start.
    """

    x: Array
    value: Array
    grad_norm: Array
    converged: Array
    steps: int
    evaluations: int


class _Rows(NamedTuple):
    """The unfinished rows; r of them."""

    index: Array  # (r,) which rows of the start
    x: Array  # (r, q)
    f: Array  # (r,)
    g: Array  # (r, q)
    norm: Array  # (r,) largest absolute gradient entry
    H: Array  # (r, q, q) inverse Hessian
    fresh: Array  # (r,) whether H is still the identity
    d: Array  # (r, q) direction
    slope: Array  # (r,) g.d
    t: Array  # (r,) next trial on x + t d
    tries: Array  # (r,) trials on this line so far
    low: Array  # (r,) longest step known to be too short, with its value and slope
    low_f: Array
    low_slope: Array
    high: Array  # (r,) shortest step known to be too long
    walled: Array  # (r,) whether a trial on this line was not finite


class _Trial(NamedTuple):
    x: Array  # (r, q)
    f: Array  # (r,); that of the rows' own point where not finite
    g: Array  # (r, q); 0 where not finite
    norm: Array
    slope: Array
    finite: Array


class _Verdict(NamedTuple):
    accept: Array  # (r,) take the step
    reset: Array  # (r,) forget H and try steepest descent
    stuck: Array  # (r,) steepest descent failed as well
    short: Array  # (r,) lower, but the slope is still steep


def minimise_batch(
    fun: BatchObjective,
    x0: Array,
    *,
    max_steps: int = 200,
    gtol: float = 1e-8,
    first_step: float = 1.0,
) -> BatchResult:
    """Minimise N independent functions of q variables at once.

    Dense BFGS with a weak-Wolfe line search in each row, in lockstep: one evaluation of all
    unfinished rows and one host read (a flag per row) per iteration. Finished rows leave the batch,
    so the result of a row depends on no other row but by rounding inside ``fun``. Near the minimum
    the decrease is judged by the slopes, since the values differ by rounding only. A value that is
    not finite means "too far".

    Parameters
    ----------
    fun : callable
        ``fun(x, index) -> (f, g)`` for x (r, q), the unfinished rows, and index (r,), integers on
        the device: which rows of ``x0`` they are. Returns f (r,) and g (r, q); a row's answer
        depends on that row only. Not finite where it can't be evaluated; nothing is raised.
    x0 : array (N, q)
        The starts.
    max_steps : int
        Iterations, each with one evaluation of every unfinished row.
    gtol : float
        A row has converged where its largest absolute gradient entry is at most this.
    first_step : float
        Greatest length of a row's first trial step, in the units of x.

    Returns
    -------
    BatchResult
        In x0's library, on its device. Memory O(N q²).

    Raises
    ------
    ValueError
        If ``x0`` is not (N, q), or ``fun`` returns other shapes, or a limit is negative.
    TypeError
        If ``x0`` is not real floating.
    """
    b = backend.of(x0)
    xp = b.xp
    _check(xp, x0, max_steps, gtol, first_step)
    n = x0.shape[0]
    if n == 0:
        return _assemble(b, [], x0)
    search = _Search(b, fun, gtol, first_step)
    rows = search.start(x0)
    stuck = ~xp.isfinite(rows.f)
    done: list[tuple[np.ndarray, _Rows]] = []
    order = np.arange(n)
    steps, evaluations = 0, n
    while True:
        ends = b.to_host((rows.norm <= gtol) | stuck)
        if steps == max_steps:
            ends = np.ones_like(ends)
        if ends.any():
            done.append((order[ends], _take(b, rows, np.flatnonzero(ends))))
            if ends.all():
                return _assemble(b, done, x0, gtol, steps, evaluations)
            order, rows = order[~ends], _take(b, rows, np.flatnonzero(~ends))
        rows, stuck = search.step(rows)
        steps, evaluations = steps + 1, evaluations + order.shape[0]


@dataclass(frozen=True)
class _Search:
    b: Backend
    fun: BatchObjective
    gtol: float
    first_step: float

    def start(self, x0: Array) -> _Rows:
        b, xp = self.b, self.b.xp
        n, q = x0.shape
        index = xp.arange(n, dtype=xp.int64, device=b.device)
        f, g = self._evaluate(x0, index)
        norm = xp.max(xp.abs(g), axis=1)
        finite = xp.isfinite(f) & xp.isfinite(norm)
        g = xp.where(finite[:, None], g, 0.0)
        norm = xp.where(finite, norm, xp.inf)
        zeros, yes = b.zeros((n,)), xp.ones((n,), dtype=xp.bool, device=b.device)
        rows = _Rows(
            index=index, x=x0, f=xp.where(finite, f, xp.inf), g=g, norm=norm,
            H=xp.broadcast_to(b.eye(q)[None, :, :], (n, q, q)), fresh=yes, d=-g, slope=zeros,
            t=zeros, tries=zeros, low=zeros, low_f=zeros, low_slope=zeros, high=zeros, walled=~yes,
        )  # fmt: skip
        return self._turn(rows, yes)

    def step(self, rows: _Rows) -> tuple[_Rows, Array]:
        """One evaluation of every row; the rows after it and which of them are stuck."""
        xp = self.b.xp
        trial = self._try(rows)
        verdict = self._judge(rows, trial)
        H, fresh = self._update(rows, trial, verdict)
        accept = verdict.accept
        t, high = self._next_trial(rows, trial, verdict.short)
        rows = rows._replace(
            x=xp.where(accept[:, None], trial.x, rows.x),
            f=xp.where(accept, trial.f, rows.f),
            g=xp.where(accept[:, None], trial.g, rows.g),
            norm=xp.where(accept, trial.norm, rows.norm),
            H=H,
            fresh=fresh,
            t=t,
            tries=rows.tries + 1.0,
            low=xp.where(verdict.short, rows.t, rows.low),
            low_f=xp.where(verdict.short, trial.f, rows.low_f),
            low_slope=xp.where(verdict.short, trial.slope, rows.low_slope),
            high=high,
            walled=rows.walled | ~trial.finite,
        )
        return self._turn(rows, accept | verdict.reset), verdict.stuck

    def _evaluate(self, x: Array, index: Array) -> tuple[Array, Array]:
        f, g = self.fun(x, index)
        shapes = (getattr(f, "shape", None), getattr(g, "shape", None))
        if shapes != (x.shape[:1], x.shape):
            raise ValueError(
                f"the objective returned shapes {shapes}; expected {(x.shape[:1], x.shape)}: one "
                "value and one gradient per row"
            )
        return f, g

    def _try(self, rows: _Rows) -> _Trial:
        xp = self.b.xp
        x = rows.x + rows.t[:, None] * rows.d
        f, g = self._evaluate(x, rows.index)
        norm = xp.max(xp.abs(g), axis=1)
        finite = xp.isfinite(f) & xp.isfinite(norm)
        g = xp.where(finite[:, None], g, 0.0)
        slope = xp.sum(g * rows.d, axis=1)
        return _Trial(x, xp.where(finite, f, rows.f), g, norm, slope, finite)

    def _judge(self, rows: _Rows, trial: _Trial) -> _Verdict:
        xp = self.b.xp
        size = xp.abs(rows.f)
        slack = 64.0 * self.b.eps * xp.where(size > 1.0, size, 1.0)
        lower = trial.finite & (trial.f <= rows.f + _ARMIJO * rows.t * rows.slope)
        by_slope = (
            trial.finite
            & (trial.f <= rows.f + slack)
            & (trial.slope <= (2.0 * _ARMIJO - 1.0) * rows.slope)
        )
        flat = trial.slope >= _CURVATURE * rows.slope
        tired = rows.walled | (rows.tries >= _PATIENCE - 1.0)
        accept = ((lower | by_slope) & flat) | (lower & tired)
        exhausted = ~accept & (rows.tries >= _GIVE_UP - 1.0)
        return _Verdict(
            accept=accept,
            reset=exhausted & ~rows.fresh,
            stuck=exhausted & rows.fresh,
            short=(lower | by_slope) & ~accept,
        )

    def _update(self, rows: _Rows, trial: _Trial, verdict: _Verdict) -> tuple[Array, Array]:
        """The BFGS update of the inverse Hessians where the curvature is positive."""
        xp = self.b.xp
        eye = self.b.eye(rows.x.shape[1])[None, :, :]
        accept = verdict.accept[:, None]
        s = xp.where(accept, trial.x - rows.x, 0.0)
        y = xp.where(accept, trial.g - rows.g, 0.0)
        sy, ss, yy = (xp.sum(p, axis=1) for p in (s * y, s * s, y * y))
        good = sy > math.sqrt(self.b.eps) * xp.sqrt(ss) * xp.sqrt(yy)
        sy, yy = xp.where(good, sy, 1.0), xp.where(good, yy, 1.0)
        # A Hessian learnt where the function was steeper makes every later step too short: it is
        # scaled down by s.y / s.B s where that is below 1 (Al-Baali, Comput. Optim. Appl. 9, 1998).
        # After a wall it is dropped, for it would only point at the wall again.
        grow = -rows.slope * rows.t * rows.t / sy
        grow = xp.where(grow > 1.0, grow, 1.0)[:, None, None]
        new = (rows.fresh | rows.walled)[:, None, None]
        H = xp.where(new, (sy / yy)[:, None, None] * eye, grow * rows.H)
        Hy = xp.sum(H * y[:, None, :], axis=2)
        a = (1.0 + xp.sum(y * Hy, axis=1) / sy) / sy
        mixed = Hy[:, :, None] * s[:, None, :]
        H = (
            H
            + a[:, None, None] * (s[:, :, None] * s[:, None, :])
            - (mixed + xp.matrix_transpose(mixed)) / sy[:, None, None]
        )
        H = xp.where(good[:, None, None], H, rows.H)
        H = xp.where(verdict.reset[:, None, None], eye, H)
        return H, (rows.fresh & ~good) | verdict.reset

    def _next_trial(self, rows: _Rows, trial: _Trial, short: Array) -> tuple[Array, Array]:
        """Where to try next on the same line, and the new upper end of the bracket."""
        xp = self.b.xp
        w = rows.t - rows.low
        bent = trial.slope - rows.low_slope
        secant = -trial.slope * w / xp.where(bent > 0.0, bent, 1.0)
        beyond = xp.where(bent > 0.0, rows.t + secant, 8.0 * rows.t)
        bounded = xp.isfinite(rows.high)
        near = xp.where(bounded, 0.9 * rows.t + 0.1 * rows.high, 1.5 * rows.t)
        far = xp.where(bounded, 0.1 * rows.t + 0.9 * rows.high, 8.0 * rows.t)
        forward = _clip(xp, beyond, near, far)
        back = rows.low + w * _fraction(xp, rows, trial, w)
        return xp.where(short, forward, back), xp.where(short, rows.high, rows.t)

    def _turn(self, rows: _Rows, turn: Array) -> _Rows:
        """Begin a new line in the rows of ``turn``."""
        xp = self.b.xp
        g = rows.g
        d = -xp.sum(rows.H * g[:, None, :], axis=2)
        slope = xp.sum(g * d, axis=1)
        gg, dd = xp.sum(g * g, axis=1), xp.sum(d * d, axis=1)
        # Rounding can make an inverse Hessian indefinite; steepest descent never is.
        bad = turn & ~(slope < -self.b.eps * xp.sqrt(gg) * xp.sqrt(dd))
        d = xp.where(bad[:, None], -g, d)
        slope = xp.where(bad, -gg, slope)
        H = xp.where(bad[:, None, None], self.b.eye(g.shape[1])[None, :, :], rows.H)
        fresh = rows.fresh | bad
        length = xp.sqrt(gg)
        tiny = xp.finfo(self.b.dtype).smallest_normal
        first = self.first_step / xp.where(length > tiny, length, 1.0)
        t = xp.where(fresh & (first < 1.0), first, 1.0)
        zero = xp.zeros_like(t)
        return rows._replace(
            H=H,
            fresh=fresh,
            d=xp.where(turn[:, None], d, rows.d),
            slope=xp.where(turn, slope, rows.slope),
            t=xp.where(turn, t, rows.t),
            tries=xp.where(turn, zero, rows.tries),
            low=xp.where(turn, zero, rows.low),
            low_f=xp.where(turn, rows.f, rows.low_f),
            low_slope=xp.where(turn, slope, rows.low_slope),
            high=xp.where(turn, xp.inf, rows.high),
            walled=rows.walled & ~turn,
        )


def _fraction(xp: Namespace, rows: _Rows, trial: _Trial, w: Array) -> Array:
    """Where between the lower end and a trial that went too far, as a part of the gap.

    The minimum of the cubic through both ends; the zero of the linear slope where the values don't
    differ; a fifth where there is no value.
    """
    a, c = rows.low_slope, trial.slope
    m = a + c - 3.0 * (trial.f - rows.low_f) / xp.where(w > 0.0, w, 1.0)
    under = m * m - a * c
    root = xp.sqrt(xp.where(under > 0.0, under, 0.0))
    below = c - a + 2.0 * root
    cubic = 1.0 - (c + root - m) / xp.where(below > 0.0, below, 1.0)
    cubic = xp.where((under >= 0.0) & (below > 0.0), cubic, 0.5)
    size = xp.abs(rows.f)
    noise = 64.0 * xp.finfo(a.dtype).eps * xp.where(size > 1.0, size, 1.0)
    linear = a / xp.where(a < c, a - c, -1.0)
    linear = xp.where(a < c, linear, 0.5)
    u = xp.where(xp.abs(trial.f - rows.low_f) <= noise, linear, cubic)
    u = _clip(xp, u, xp.full_like(u, 0.1), xp.full_like(u, 0.8))
    return xp.where(trial.finite, u, 0.2)


def _clip(xp: Namespace, a: Array, low: Array, high: Array) -> Array:
    """Clip by comparisons, so that NaN gives the lower end."""
    return xp.where(a >= low, xp.where(a <= high, a, high), low)


def _take(b: Backend, rows: _Rows, index: np.ndarray) -> _Rows:
    where = b.xp.asarray(index, device=b.device)
    return _Rows(*(b.xp.take(a, where, axis=0) for a in rows))


def _assemble(
    b: Backend,
    done: list[tuple[np.ndarray, _Rows]],
    x0: Array,
    gtol: float = 0.0,
    steps: int = 0,
    evaluations: int = 0,
) -> BatchResult:
    """The finished rows in the order of the start."""
    xp = b.xp
    if not done:
        empty = b.zeros((0,))
        return BatchResult(x0, empty, empty, empty <= 0.0, 0, 0)
    back = xp.asarray(np.argsort(np.concatenate([index for index, _ in done])), device=b.device)
    x, value, norm = (
        xp.take(xp.concat([getattr(rows, name) for _, rows in done]), back, axis=0)
        for name in ("x", "f", "norm")
    )
    return BatchResult(x, value, norm, norm <= gtol, steps, evaluations)


def _check(xp: Namespace, x0: Array, max_steps: int, gtol: float, first_step: float) -> None:
    if x0.ndim != 2 or x0.shape[1] == 0:
        raise ValueError(
            f"x0 has shape {tuple(x0.shape)}; expected (N, q) with q >= 1: one start per row"
        )
    if not xp.isdtype(x0.dtype, "real floating"):
        raise TypeError(f"x0 has dtype {x0.dtype}; expected real floating: convert it")
    for name, value in (("max_steps", max_steps), ("gtol", gtol)):
        if not value >= 0:
            raise ValueError(f"{name}={value!r} was given; expected a number >= 0")
    if not first_step > 0:
        raise ValueError(f"first_step={first_step!r} was given; expected a positive length")


__all__ = ["BatchObjective", "BatchResult", "minimise_batch"]
