"""Newton-Krylov with a trust region: exact Hessian-vector products, no Hessian.

Each step solves H d = −g by preconditioned conjugate gradients (CG) inside the region ‖d‖_P ≤ Δ,
where ‖d‖²_P = ⟨d, P d⟩ and only P⁻¹ is applied; directions of negative curvature are followed to
the border (Steihaug 1983). Many independent problems, one a row of the start, run in lock step
with scalars and masks of their own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array

NewtonStatus: TypeAlias = Literal[
    "converged", "precision", "max_steps", "stopped", "interrupted", "time_limit", "failed"
]


class Point(Protocol):
    """A smooth function at one point (or, over leading axes, many at many)."""

    @property
    def value(self) -> Array:
        """The function, (...); +inf or NaN where it can't be evaluated."""

    def gradient(self) -> Array:
        """(..., d)."""

    def hvp(self, u: Array) -> Array:
        """Hessian times u, (..., d)."""

    def precondition(self, u: Array) -> Array:
        """P⁻¹ u for a symmetric positive definite P close to the Hessian, (..., d)."""


class NewtonProgress(NamedTuple):
    """What a callback is told after each step; host numbers, arrays (...) for a batch.

    ``x`` is the point itself, on its device; where a step was rejected, the array of the step
    before.
    """

    step: int
    value: np.ndarray
    grad_norm: np.ndarray
    hvps: np.ndarray
    elapsed: float
    x: Array


@dataclass(frozen=True)
class NewtonResult:
    """The end of a Newton-Krylov minimisation.

    Attributes
    ----------
    x : array (..., d)
        Best points, where the start was.
    value, grad_norm : ndarray (...)
        Function and largest absolute gradient entry at ``x``, on the host.
    converged : bool ndarray (...)
        Whether the gradient test, or the rounding test, was met.
    steps, hvps : int ndarray (...)
        Accepted steps; Hessian-vector products used.
    rejected : int ndarray (...)
        Trial points that did not lower the function enough.
    status, message : str
        Why it ended, of the whole batch: "precision" if some gradient could not be brought below
        ``gtol`` because the predicted decrease was below rounding.
    values, grad_norms : tuple of ndarray (...)
        At the start and after every outer iteration.
    """

    x: Array
    value: np.ndarray
    grad_norm: np.ndarray
    converged: np.ndarray
    steps: np.ndarray
    hvps: np.ndarray
    rejected: np.ndarray
    status: NewtonStatus
    message: str
    values: tuple[np.ndarray, ...]
    grad_norms: tuple[np.ndarray, ...]


def newton_krylov(
    at: Callable[[Array], Point],
    x0: Array,
    *,
    gtol: float = 1e-8,
    max_steps: int = 100,
    max_cg: int | None = None,
    radius: float = 10.0,
    rounding: float = 10.0,
    order: int | None = None,
    preconditioned: bool = True,
    time_limit: float | None = None,
    callback: Callable[[NewtonProgress], bool | None] | None = None,
) -> NewtonResult:
    """Minimise a smooth function, or a batch of them, with Hessian-vector products.

    Parameters
    ----------
    at : callable
        x ↦ :class:`Point`. Must not write to x. Trial points may give +inf or NaN: such a step
        is rejected.
    x0 : array (..., d)
        Starts; leading axes are independent problems.
    gtol : float
        Converged where the largest absolute gradient entry is at most this.
    max_steps : int
        Outer iterations.
    max_cg : int, optional
        CG steps an outer iteration; default min(d, 500) + 10.
    radius : float
        First trust radius, in the norm of P.
    rounding : float
        Rounding error of the value, in units of the dtype's spacing at max(|f|, 1). A predicted
        decrease below it is judged by the gradient: a step is good where that becomes smaller.
    order : int, optional
        Order of the matrices in an evaluation, which decides about threads; default √(2 d), for
        triangles or squares of parameters.
    preconditioned : bool
        Whether P is used (else the identity: for comparison).
    time_limit : float, optional
        Seconds after which no further outer iteration begins.
    callback : callable, optional
        Told :class:`NewtonProgress` after every outer iteration; a true answer stops.

    Returns
    -------
    NewtonResult
        With the best state, whatever ended the search; Ctrl-C ends with status "interrupted".

    Raises
    ------
    ValueError
        If ``x0`` has no entries or a setting is out of range.
    TypeError
        If ``x0`` is not an array of real floating numbers.

    Notes
    -----
    Cost: one evaluation, one gradient and the CG steps' HVPs an outer iteration. A device is
    waited for once a CG step and up to twice an outer iteration. The tolerance of the inner solve,
    min(0.1, √‖g‖) relative, gives superlinear convergence.

    References
    ----------
    T. Steihaug, SIAM J. Numer. Anal. 20 (1983) 626–637; Nocedal & Wright (2006), algorithm 7.2.
    """
    b = backend.of(x0)
    if not b.xp.isdtype(x0.dtype, "real floating"):
        raise TypeError(f"x0 has dtype {x0.dtype}; expected real floating: convert it")
    if x0.ndim < 1 or x0.shape[-1] == 0 or math.prod(x0.shape) == 0:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}; expected (..., d) with d of at least 1")
    if not gtol >= 0 or not radius > 0 or max_steps < 0 or not rounding > 0:
        raise ValueError(
            f"gtol={gtol!r}, radius={radius!r}, max_steps={max_steps!r}, rounding={rounding!r} "
            "were given; expected gtol >= 0, radius > 0, max_steps >= 0, rounding > 0"
        )
    cg = max_cg or min(x0.shape[-1], 500) + 10
    search = _Search(at, x0, gtol, radius, rounding, cg, preconditioned)
    status: NewtonStatus
    try:
        with search.b.calm(order or math.isqrt(2 * x0.shape[-1])):
            status, message = search.run(max_steps, time_limit, callback)
    except KeyboardInterrupt:
        status, message = "interrupted", "interrupted by the keyboard; the best state is kept"
    return search.result(status, message)


class _Search:
    """Mutable, and alive no longer than the call."""

    def __init__(
        self,
        at: Callable[[Array], Point],
        x0: Array,
        gtol: float,
        radius: float,
        rounding: float,
        max_cg: int,
        preconditioned: bool,
    ) -> None:
        self.b = backend.of(x0)
        self.level = rounding * self.b.eps
        self.at, self.gtol, self.max_cg, self.preconditioned = at, gtol, max_cg, preconditioned
        lead = tuple(x0.shape[:-1])
        self.x = x0
        self.radius = self.b.full(lead, radius)
        self.value = np.full(lead, np.inf)
        self.norm = np.full(lead, np.inf)
        self.converged = np.zeros(lead, dtype=bool)
        self.rounding = np.zeros(lead, dtype=bool)
        self.steps = np.zeros(lead, dtype=int)
        self.hvps = np.zeros(lead, dtype=int)
        self.rejected = np.zeros(lead, dtype=int)
        self.stalled = np.zeros(lead, dtype=int)
        self.values: list[np.ndarray] = []
        self.norms: list[np.ndarray] = []
        self.began = time.perf_counter()

    # A failed trial is a value: NumPy need not warn of the infinities on the way to it.
    @np.errstate(all="ignore")
    def run(
        self,
        max_steps: int,
        time_limit: float | None,
        callback: Callable[[NewtonProgress], bool | None] | None,
    ) -> tuple[NewtonStatus, str]:
        b, xp = self.b, self.b.xp
        point = self.at(self.x)
        f, g = point.value, point.gradient()
        self._read(f, g)
        lost = ~(np.isfinite(self.value) & np.isfinite(self.norm))
        if lost.all():
            return "failed", (
                "the function can't be evaluated at the start: look for NaN in the data, a matrix "
                "that is not positive definite, or start elsewhere"
            )
        for step in range(max_steps + 1):
            self.values.append(self.value)
            self.norms.append(self.norm)
            self.converged = (self.norm <= self.gtol) | self.rounding
            if callback is not None and callback(
                NewtonProgress(step, self.value, self.norm, self.hvps, self._elapsed(), self.x)
            ):
                return "stopped", "stopped by the callback"
            if (self.converged | lost).all():
                break
            if step == max_steps:
                return "max_steps", f"max_steps={max_steps} reached"
            if time_limit is not None and self._elapsed() >= time_limit:
                return "time_limit", f"time_limit={time_limit:g} s reached"
            live = ~(self.converged | lost)
            d, at_border, predicted, moved, used = self._steihaug(point, g, live)
            self.hvps = self.hvps + used
            trial = self.at(self.x + d)
            f_new = trial.value
            slack = self.level * xp.where(xp.abs(f) > 1.0, xp.abs(f), 1.0)
            ratio = (f - f_new + slack) / (predicted + slack)
            finite = xp.isfinite(f_new)
            mask = xp.asarray(live, device=b.device)
            good = finite & (ratio > 1e-4) & mask & moved
            shrink = ~finite | ~(ratio >= 0.25)
            grow = (ratio > 0.75) & at_border & finite
            self.radius = xp.where(
                shrink, 0.25 * self.radius, xp.where(grow, 2.0 * self.radius, self.radius)
            )
            accepted, tiny, stuck = self._read_masks(
                good, predicted <= slack, (self.radius < 1e-30) | ~moved
            )
            if (accepted & tiny).any():
                # Below rounding the value decides nothing; the gradient may still fall.
                norm = b.to_host(xp.max(xp.abs(trial.gradient()), axis=-1))
                accepted = accepted & ~(tiny & ~(norm < self.norm))
                good = good & xp.asarray(accepted, device=b.device)
            self.steps = self.steps + accepted
            self.rejected = self.rejected + (live & ~accepted)
            if accepted[live].all() and live.all():
                self.x, point = self.x + d, trial
            elif accepted.any():
                self.x = xp.where(good[..., None], self.x + d, self.x)
                point = self.at(self.x)
            if accepted.any():
                before = self.norm
                f, g = point.value, point.gradient()
                self._read(f, g)
                self.stalled = np.where(tiny & ~(self.norm < 0.9 * before), self.stalled + 1, 0)
            else:
                self.stalled = np.where(live & tiny, self.stalled + 1, self.stalled)
            self.rounding = self.rounding | (live & (self.stalled >= 2))
            lost = lost | (stuck & live)
        if self.rounding.any() and not (self.norm <= self.gtol)[~lost].all():
            return "precision", (
                f"largest gradient entry {np.max(self.norm[~lost]):.3g}: the predicted decrease "
                "is below rounding"
            )
        if lost.any():
            return "failed", (
                f"{int(lost.sum())} of {lost.size} problems found no lower point; their best "
                "states are kept"
            )
        return "converged", f"largest gradient entry {np.max(self.norm):.3g} <= gtol"

    def result(self, status: NewtonStatus, message: str) -> NewtonResult:
        return NewtonResult(
            self.x, self.value, self.norm, self.converged, self.steps, self.hvps, self.rejected,
            status, message, tuple(self.values), tuple(self.norms),
        )  # fmt: skip

    # -- private ---------------------------------------------------------------------------------

    def _elapsed(self) -> float:
        return time.perf_counter() - self.began

    def _read(self, f: Array, g: Array) -> None:
        """The one wait after an evaluation."""
        xp = self.b.xp
        both = self.b.to_host(xp.stack([f, xp.max(xp.abs(g), axis=-1)]))
        self.value, self.norm = both[0, ...], both[1, ...]

    def _read_masks(self, *masks: Array) -> tuple[np.ndarray, ...]:
        host = self.b.to_host(self.b.xp.stack(masks))
        return tuple(host[i, ...] for i in range(len(masks)))

    def _steihaug(
        self, point: Point, g: Array, live: np.ndarray
    ) -> tuple[Array, Array, Array, Array, np.ndarray]:
        """CG in the trust region: step, whether it is at the border, predicted decrease, whether
        there is a step at all, HVPs."""
        b, xp = self.b, self.b.xp

        def dot(u: Array, w: Array) -> Array:
            return xp.sum(u * w, axis=-1)

        def inverse_metric(u: Array) -> Array:
            return point.precondition(u) if self.preconditioned else u

        active = xp.asarray(live, device=b.device)
        d, Hd = xp.zeros_like(g), xp.zeros_like(g)
        r, y = g, inverse_metric(g)
        p = -y
        ry = dot(r, y)
        # A metric that is not positive at this point can't lead: fall back to the identity's.
        root = xp.sqrt(xp.where(ry > 0.0, ry, 0.0))
        eta = xp.where(root < 0.01, xp.sqrt(root), 0.1)
        stop = eta * root
        dPd, dPp, pPp = xp.zeros_like(ry), xp.zeros_like(ry), ry
        border = moved = active & ~active
        used = np.zeros(live.shape, dtype=int)
        edge = self.radius * self.radius
        for _ in range(self.max_cg):
            going = self._read_masks(active)[0]
            if not going.any():
                break
            used = used + going
            q = point.hvp(p)
            curvature = dot(p, q)
            # Overflow in a product must not poison the step taken so far.
            broken = ~xp.isfinite(curvature)
            alpha = ry / xp.where(curvature == 0.0, 1.0, curvature)
            longer = dPd + 2.0 * alpha * dPp + alpha * alpha * pPp
            leaves = (curvature <= 0.0) | (longer >= edge)
            inside = dPp * dPp + pPp * (edge - dPd)
            tau = (xp.sqrt(xp.where(inside > 0.0, inside, 0.0)) - dPp) / xp.where(
                pPp > 0.0, pPp, 1.0
            )
            length = xp.where(leaves, tau, alpha)
            move = active & ~broken & xp.isfinite(length)
            d = xp.where(move[..., None], d + length[..., None] * p, d)
            Hd = xp.where(move[..., None], Hd + length[..., None] * q, Hd)
            border, moved = border | (move & leaves), moved | move
            active = move & ~leaves
            r = xp.where(active[..., None], r + alpha[..., None] * q, r)
            y = inverse_metric(r)
            ry_new = dot(r, y)
            active = active & (ry_new > 0.0) & (xp.sqrt(xp.where(ry_new > 0.0, ry_new, 0.0)) > stop)
            beta = ry_new / xp.where(ry > 0.0, ry, 1.0)
            dPp, pPp, dPd = beta * (dPp + alpha * pPp), ry_new + beta * beta * pPp, longer
            p = xp.where(active[..., None], -y + beta[..., None] * p, p)
            ry = ry_new
        return d, border, -(dot(g, d) + 0.5 * dot(d, Hd)), moved, used


__all__ = ["NewtonProgress", "NewtonResult", "NewtonStatus", "Point", "newton_krylov"]
