"""Fixed points and natural-gradient steps on the sites.

One step moves the sites towards the expected curvature and slope of the likelihood,
p ← (1−ρ)p + ρ s, y̌ ← (1−ρ)y̌ + ρ (s∘Bμ − r): a natural-gradient step of length ρ on the free
energy (Khan & Lin 2017), and with ρ = 1 the fixed point of Opper & Archambeau (2009), which is a
Newton step in the mean as well. The length is halved where the free energy would rise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array, Namespace
from gplvm_xp.backend import Backend
from gplvm_xp.variational.engines import Engine, Marginals
from gplvm_xp.variational.observations import Observations, Slopes

SiteStatus: TypeAlias = Literal[
    "converged", "max_steps", "stopped", "interrupted", "time_limit", "failed"
]


class SiteProgress(NamedTuple):
    """What a callback is told after each step; host numbers, arrays (...) for a batch."""

    step: int
    free_energy: np.ndarray
    change: np.ndarray
    elapsed: float


@dataclass(frozen=True)
class SiteResult:
    """The end of a fixed-point search.

    Attributes
    ----------
    p, y : array (..., N)
        Sites: curvature and slope.
    mu : array (..., L)
        Posterior mean of the latent vector.
    m, v : array (..., N)
        Marginal means and variances of B z (without the offset).
    terms : Slopes
        Of the likelihood there.
    free_energy : ndarray (...)
        KL + expected negative log-likelihood, nats, all constants, on the host.
    change : ndarray (...)
        Largest change of m or v in the last accepted step, as ``tol`` measures it.
    steps, rejected : int ndarray (...)
        Accepted steps and step lengths that were halved.
    converged : bool ndarray (...)
    status, message : str
    free_energies : tuple of ndarray (...)
        At the start and after each iteration.
    """

    p: Array
    y: Array
    mu: Array
    m: Array
    v: Array
    terms: Slopes
    free_energy: np.ndarray
    change: np.ndarray
    steps: np.ndarray
    rejected: np.ndarray
    converged: np.ndarray
    status: SiteStatus
    message: str
    free_energies: tuple[np.ndarray, ...]


def fixed_point(
    engine: Engine,
    data: Observations,
    *,
    sites: tuple[Array, Array] | None = None,
    tol: float = 1e-8,
    max_steps: int = 500,
    step_length: float = 1.0,
    time_limit: float | None = None,
    callback: Callable[[SiteProgress], bool | None] | None = None,
) -> SiteResult:
    """Find the optimal Gaussian posterior by fixed-point steps on the sites.

    Parameters
    ----------
    engine : Engine
        The prior, conditioned on sites.
    data : Observations
    sites : pair of arrays (..., N), optional
        Where to start: p, y̌ of an earlier result. Default: the prior mean with the curvature of
        the likelihood there.
    tol : float
        Converged where no marginal mean changes by more than this in a full step, relative to the
        largest of them or to ``data.unit``, whichever is more; and likewise the variances, with
        the unit's square.
    max_steps : int
        Iterations, rejected ones included.
    step_length : float
        ρ, the longest step, in (0, 1].
    time_limit, callback
        As in :func:`gplvm_xp.optim.newton_krylov`.

    Returns
    -------
    SiteResult
        Of the best state, whatever ended the search. "failed" where no shorter step lowers the
        free energy: go on with :class:`gplvm_xp.variational.FreeEnergy`.

    Raises
    ------
    ValueError
        If ``step_length`` is not in (0, 1], or y does not fit the engine.

    Notes
    -----
    A batch runs in lock step, every problem with its own ρ. One wait for the device an iteration.
    Convergence is linear; at the optimum p is the expected curvature s.
    """
    if not 0.0 < step_length <= 1.0:
        raise ValueError(f"step_length={step_length!r} was given; expected a number in (0, 1]")
    if data.y.shape[-1] != engine.rows:
        raise ValueError(
            f"y has shape {tuple(data.y.shape)}; expected (..., {engine.rows}), a number for each "
            "row of the prior's map"
        )
    search = _Search(engine, data, tol, step_length)
    status: SiteStatus = "interrupted"
    message = "interrupted by the keyboard; the best state is kept"
    try:
        with search.b.calm(engine.order):
            status, message = search.run(sites, max_steps, time_limit, callback)
    except KeyboardInterrupt:
        if not hasattr(search, "now"):
            raise
    return search.result(status, message)


class _Now(NamedTuple):
    """One state of the search."""

    p: Array
    y: Array
    q: Marginals
    terms: Slopes
    f: Array


class _Search:
    """Mutable, and alive no longer than the call."""

    now: _Now

    def __init__(self, engine: Engine, data: Observations, tol: float, longest: float) -> None:
        self.engine, self.data, self.tol, self.longest = engine, data, tol, longest
        self.b = backend.of(data.y)
        self.history: list[np.ndarray] = []

    # A step too far is a value: NumPy need not warn of the infinities on the way to it.
    @np.errstate(all="ignore")
    def run(
        self,
        sites: tuple[Array, Array] | None,
        max_steps: int,
        time_limit: float | None,
        callback: Callable[[SiteProgress], bool | None] | None,
    ) -> tuple[SiteStatus, str]:
        b, xp, unit = self.b, self.b.xp, self.data.unit
        began = time.perf_counter()
        self.now = self._state(*(sites or self._start()))
        f, lead = b.to_host(self.now.f), tuple(self.now.f.shape)
        self.free_energy = f
        self.change = np.full(lead, np.inf)
        self.steps, self.rejected = np.zeros(lead, dtype=int), np.zeros(lead, dtype=int)
        self.converged = np.zeros(lead, dtype=bool)
        rho = last = np.full(lead, self.longest)
        zero = xp.zeros_like(self.now.q.m)
        before = zero, zero
        given_up = np.zeros(lead, dtype=bool)
        for step in range(max_steps + 1):
            self.history.append(self.free_energy)
            elapsed = time.perf_counter() - began
            if callback is not None and callback(
                SiteProgress(step, self.free_energy, self.change, elapsed)
            ):
                return "stopped", "stopped by the callback"
            if (self.converged | given_up).all():
                break
            if step == max_steps:
                return "max_steps", f"max_steps={max_steps} reached"
            if time_limit is not None and elapsed >= time_limit:
                return "time_limit", f"time_limit={time_limit:g} s reached"
            now = self.now
            p, y = now.terms.s, now.terms.s * now.q.m - now.terms.r
            if (rho < 1.0).any():
                length = b.asarray(rho)[..., None]
                p, y = now.p + length * (p - now.p), now.y + length * (y - now.y)
            new = self._state(p, y)
            moved = new.q.m - now.q.m, new.q.v - now.q.v
            if unit != 1.0:
                moved = moved[0] / unit, moved[1] / unit**2
            # Along with the step before: how much of the residual a full step would leave.
            overlap, weight = (
                xp.vecdot(a[0], before[0]) + xp.vecdot(a[1], before[1]) for a in (moved, before)
            )
            # Sums over many observations round; a rise within it is none.
            slack = 1e3 * b.eps * (1.0 + xp.abs(now.f) + xp.abs(now.terms.value))
            live = xp.asarray(~(self.converged | given_up), device=b.device)
            better = live & xp.isfinite(new.f) & ~(new.f > now.f + slack)
            largest = xp.maximum(
                _relative(xp, moved[0], new.q.m, unit), _relative(xp, moved[1], new.q.v, unit**2)
            )
            host = b.to_host(
                xp.stack([xp.astype(better, b.dtype), new.f, largest, overlap, weight])
            )
            accepted = host[0, ...] > 0.5
            self.now = new if accepted.all() else _choose(b, better, new, now)
            self.free_energy = np.where(accepted, host[1, ...], self.free_energy)
            self.change = np.where(accepted, host[2, ...] / rho, self.change)
            running = ~(self.converged | given_up)
            self.steps = self.steps + accepted
            self.rejected = self.rejected + (running & ~accepted)
            self.converged = self.converged | (accepted & (self.change <= self.tol))
            # Barzilai and Borwein's length: where steps swing from side to side, which the free
            # energy is too flat to show near its minimum, half of one gets there.
            left = np.where(host[4, ...] > 0.0, host[3, ...] * last / (host[4, ...] * rho), 0.5)
            longer = np.minimum(last / np.maximum(1.0 - left, 0.25), self.longest)
            if accepted.all():
                before = moved
            elif accepted.any():
                before = (
                    _pick(b, better, moved[0], before[0]),
                    _pick(b, better, moved[1], before[1]),
                )
            last = np.where(accepted, rho, last)
            rho = np.where(accepted, np.maximum(longer, 0.05 * rho), 0.5 * rho)
            given_up = given_up | (running & ~accepted & (rho < 1e-8))
        if given_up.any():
            return "failed", (
                f"{int(given_up.sum())} of {given_up.size} problems found no step that lowers the "
                "free energy; their best states are kept"
            )
        return "converged", f"largest change of a marginal {np.max(self.change):.3g} <= tol"

    def result(self, status: SiteStatus, message: str) -> SiteResult:
        now = self.now
        return SiteResult(
            now.p, now.y, now.q.mu, now.q.m, now.q.v, now.terms, self.free_energy, self.change,
            self.steps, self.rejected, self.converged, status, message, tuple(self.history),
        )  # fmt: skip

    # -- private ---------------------------------------------------------------------------------

    def _start(self) -> tuple[Array, Array]:
        """The prior's mean with the curvature that the likelihood has there: a finite start even
        where the prior's own variance would overflow an exponential."""
        xp = self.b.xp
        shape = self.data.y.shape
        m = xp.broadcast_to(self.engine.prior_mean, shape)
        s = self.data.slopes(m, xp.zeros_like(self.data.y)).s
        s = xp.where(s > 0.0, s, 0.0)
        return s, s * m

    def _state(self, p: Array, y: Array) -> _Now:
        xp = self.b.xp
        q = self.engine.condition(p, y)
        terms = self.data.slopes(q.m, q.v)
        f = q.kl + terms.value
        return _Now(p, y, q, terms, xp.where(q.ok & xp.isfinite(f), f, xp.inf))


def _relative(xp: Namespace, moved: Array, now: Array, unit: float) -> Array:
    """The largest change (in units) beside the largest number, or beside 1 where that is less."""
    size = xp.max(xp.abs(now), axis=-1) / unit
    return xp.max(xp.abs(moved), axis=-1) / xp.where(size > 1.0, size, 1.0)


def chosen(b: Backend, mask: np.ndarray, new: SiteResult, old: SiteResult) -> SiteResult:
    """Of a batch, the new states where a host mask says so, the old ones elsewhere."""
    if mask.all():
        return new
    on_device = b.xp.asarray(mask, device=b.device)
    arrays = {
        k: _pick(b, on_device, getattr(new, k), getattr(old, k)) for k in ("p", "y", "mu", "m", "v")
    }
    terms = Slopes(*(_pick(b, on_device, a, c) for a, c in zip(new.terms, old.terms, strict=True)))
    host = {
        k: np.where(mask, getattr(new, k), getattr(old, k))
        for k in ("free_energy", "change", "converged")
    }
    return replace(new, **arrays, **host, terms=terms)


def _choose(b: Backend, mask: Array, new: _Now, old: _Now) -> _Now:
    """New states where the mask says so, field by field."""
    q = Marginals(*(_pick(b, mask, a, c) for a, c in zip(new.q, old.q, strict=True)))
    terms = Slopes(*(_pick(b, mask, a, c) for a, c in zip(new.terms, old.terms, strict=True)))
    p, y, f = (_pick(b, mask, getattr(new, k), getattr(old, k)) for k in ("p", "y", "f"))
    return _Now(p, y, q, terms, f)


def _pick(b: Backend, mask: Array, a: Array, c: Array) -> Array:
    return b.xp.where(mask if a.ndim == mask.ndim else mask[..., None], a, c)


__all__ = ["SiteProgress", "SiteResult", "SiteStatus", "chosen", "fixed_point"]
