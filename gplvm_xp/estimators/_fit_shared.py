"""The search behind a model of several views: warm-up, restarts, the end on the host."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from gplvm_xp.backend import Backend
from gplvm_xp.estimators._fit import (
    HALTED,
    Callback,
    Found,
    best_of,
    descend,
    later,
    say_how_it_ended,
)
from gplvm_xp.estimators._progress import watched
from gplvm_xp.kernels import Kernel
from gplvm_xp.objectives import groups_of
from gplvm_xp.objectives.shared import SharedObjective, UnitWidth, View
from gplvm_xp.optim import OptResult
from gplvm_xp.priors import Prior


@dataclass(frozen=True)
class SharedSearch:
    """What is minimised and how; see :class:`gplvm_xp.SharedGPLVM` for the meaning of each.

    Sequences have an entry for each view; ``sets`` are those of
    :class:`gplvm_xp.objectives.shared.UnitWidth`.
    """

    names: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    noises: tuple[float, ...]
    variances: tuple[float, ...]
    sets: tuple[tuple[int, ...], ...]
    latent_prior: Prior | None
    priors: Mapping[str, Prior]
    jitter: float
    warm_up: int
    optimizer: str
    max_iter: int
    tol: float
    time_limit: float | None
    progress: bool
    callback: Callback | None
    began: float = field(default_factory=time.perf_counter)

    @property
    def variance(self) -> float:
        """What the jitter is a multiple of: each view's own variance."""
        return 1.0

    def time_left(self) -> float | None:
        """Seconds of the limit that are left."""
        if self.time_limit is None:
            return None
        return max(self.time_limit - (time.perf_counter() - self.began), 0.0)


class State(NamedTuple):
    """Where a search is, on the host: kernels and noises of the views, latents (n, q), jitter as a
    share of each view's variance."""

    kernels: tuple[Kernel, ...]
    noises: tuple[float, ...]
    latents: np.ndarray
    jitter: float


@dataclass(frozen=True)
class FoundShared:
    """The end of a search."""

    state: State
    result: OptResult


def require_room(b: Backend, views: list[np.ndarray]) -> None:
    """Refuse tables (n, D_v), NaN for missing, whose factors will not fit, before any search.

    Raises
    ------
    NotEnoughMemoryError
        If the n² numbers of each view's missing-data patterns are more than there is memory for.
    """
    squares = [np.unique(~np.isnan(Y), axis=1).sum(axis=0) ** 2 for Y in views]
    b.require_memory(
        b.itemsize * np.sum(np.concatenate(squares)),
        f"the posterior of {len(views)} views of {views[0].shape[0]} rows with "
        f"{sum(s.size for s in squares)} missing-data pattern(s)",
        "use fewer rows or patterns, dtype='float32' (half of it), or a machine with more memory",
    )


def search_shared(
    b: Backend,
    views: list[np.ndarray],
    first: np.ndarray,
    restarts: int,
    rng: Any,
    s: SharedSearch,
) -> FoundShared:
    """The best of 1 + ``restarts`` minimisations; the first starts at ``first`` (n, q).

    Raises
    ------
    NotPositiveDefiniteError
        If a start has no Cholesky factors after the jitter schedule.
    """
    groups = [groups_of(b, Y) for Y in views]

    def stage(
        at: State, held: frozenset[str], steps: int, callback: Callback | None
    ) -> FoundShared:
        where = UnitWidth(at.latents, s.sets)

        def make(jitter: float) -> SharedObjective:
            parts = zip(s.names, at.kernels, groups, at.noises, s.variances, strict=True)
            tables = tuple(View(*p[:4], jitter=jitter * p[4]) for p in parts)
            priors = {name: prior for name, prior in s.priors.items() if name not in held}
            return SharedObjective(tables, where, s.latent_prior, priors, held)

        objective, result, jitter = descend(make, s, at.jitter, steps, callback, _hopeless)
        learned, X = objective.values(result.x)
        pairs = zip(at.kernels, learned, strict=True)
        return FoundShared(
            State(
                tuple(k.with_theta(b.to_host(t).astype(np.float64)) for k, (t, _) in pairs),
                tuple(b.to_host(noise).astype(np.float64).item() for _, noise in learned),
                np.array(b.to_host(X), dtype=np.float64),
                jitter,
            ),
            result,
        )

    def once(latents: np.ndarray, restart: int) -> FoundShared:
        at, done = State(s.kernels, s.noises, latents, s.jitter), 0
        values: tuple[float, ...] = ()
        with watched(s.progress, s.max_iter, restart, s.callback, "SharedGPLVM") as callback:
            if s.warm_up and s.max_iter:
                held = frozenset(f"{name}.noise" for name in s.names)
                warm = stage(at, held, min(s.warm_up, s.max_iter), callback)
                if warm.result.status in HALTED:
                    return warm
                at, done, values = warm.state, warm.result.steps, warm.result.values[:-1]
            end = stage(at, frozenset(), s.max_iter - done, later(callback, done))
        result, values = end.result, (*values, *end.result.values)
        return replace(end, result=replace(result, steps=done + result.steps, values=values))

    return best_of(once, first, restarts, rng)


def _hopeless(tried: float, share: float) -> str:
    return (
        "a covariance at the start has no Cholesky factor with a jitter of up to "
        f"{share:.0e} of its view's variance; use a larger noise_variance, check the kernels' "
        "starting values, or remove duplicate rows"
    )


def say_how_views_ended(
    model: Any, found: FoundShared, b: Backend, views: list[np.ndarray], *, depth: int = 3
) -> None:
    """Warn of a fit that ended early, and of a precision that can't carry its gradient."""
    noises = model.noise_variances_ + model.jitters_
    v = np.argmax([np.nanvar(Y) for Y in views] / noises)
    kernels, _, latents, _ = found.state
    worst = Found(kernels[v], noises[v], latents, 0.0, found.result)
    say_how_it_ended(model, worst, b, views[v], depth=depth + 1)


__all__ = [
    "FoundShared",
    "SharedSearch",
    "State",
    "require_room",
    "say_how_views_ended",
    "search_shared",
]
