"""The search behind a fit: starts, the jitter schedule, restarts."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from sklearn.utils import check_random_state

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.errors import NotPositiveDefiniteError, PrecisionWarning
from gplvm_xp.estimators._endings import say_early_end
from gplvm_xp.estimators._newton import NEWTON, second_order
from gplvm_xp.estimators._progress import watched
from gplvm_xp.kernels import Kernel
from gplvm_xp.latents import Latents, Points, RowPrior, hold
from gplvm_xp.objectives import ExactObjective, groups_of
from gplvm_xp.optim import OptResult, Progress, minimise
from gplvm_xp.priors import Prior

# Where the start has no Cholesky factor: at least this part of the data's variance, then tenfold.
# Of k(Z, Z) in single precision: below it the rounding of sums over the rows, which its inverse
# multiplies, rules the bound.
SINGLE_JITTER = 1e-2
JITTER_FLOOR, JITTER_GROWTH, JITTER_TRIES = 1e-10, 10.0, 6
# A latent dimension is on where its relevance is above this share of the largest.
ACTIVE = 0.01
# Ends that further starts would go against.
HALTED = ("interrupted", "stopped", "time_limit")
Callback = Callable[[Progress], bool | None]


class Minimisable(Protocol):
    """An objective of one flat vector, as those of :mod:`gplvm_xp.objectives`."""

    def start(self) -> Array: ...

    def value_and_grad(self, x: Array) -> tuple[Array, Array]: ...


class Ended(Protocol):
    """The end of a search, whatever else it holds."""

    @property
    def result(self) -> OptResult: ...


class Descent(Protocol):
    """How far a minimisation goes, as in :class:`Search`."""

    @property
    def optimizer(self) -> str: ...

    @property
    def tol(self) -> float: ...

    @property
    def variance(self) -> float: ...

    def time_left(self) -> float | None: ...


Goal = TypeVar("Goal", bound=Minimisable)
End = TypeVar("End", bound=Ended)


@dataclass(frozen=True)
class Search:
    """What is minimised and how; see :class:`gplvm_xp.GPLVM` for the meaning of each.

    ``place`` makes the parameters of starting latents, ``bind`` the prior that ties them together,
    if there is one in the place of ``latent_prior``.
    """

    kernel: Kernel
    noise: float
    latent_prior: Prior | None
    priors: Mapping[str, Prior]
    held: frozenset[str]
    jitter: float
    variance: float
    optimizer: str
    max_iter: int
    tol: float
    time_limit: float | None
    progress: bool
    callback: Callback | None
    place: Callable[[np.ndarray], Latents] = Points
    bind: Callable[[np.ndarray], RowPrior] | None = None
    began: float = field(default_factory=time.perf_counter)

    def time_left(self) -> float | None:
        """Seconds of the limit that are left."""
        if self.time_limit is None:
            return None
        return max(self.time_limit - (time.perf_counter() - self.began), 0.0)


@dataclass(frozen=True)
class Found:
    """The end of a search, on the host; ``values`` are those of what places and ties latents."""

    kernel: Kernel
    noise: float
    latents: np.ndarray
    jitter: float
    result: OptResult
    values: Mapping[str, np.ndarray] = field(default_factory=dict)


def search(
    b: Backend, Y: np.ndarray, first: np.ndarray, restarts: int, rng: Any, s: Search
) -> Found:
    """The best of 1 + ``restarts`` minimisations; the first starts at ``first`` (n, q).

    Raises
    ------
    NotPositiveDefiniteError
        If a start has no Cholesky factor after the jitter schedule.
    """
    groups = groups_of(b, Y)

    def once(latents: np.ndarray, restart: int) -> Found:
        where = s.place(latents)
        prior = s.latent_prior if s.bind is None else s.bind(latents)
        own = [*where.blocks(), *(prior.blocks() if isinstance(prior, RowPrior) else ())]

        def make(jitter: float) -> ExactObjective:
            return ExactObjective(s.kernel, groups, where, s.noise, prior, s.priors, s.held, jitter)

        with watched(s.progress, s.max_iter, restart, s.callback) as callback:
            objective, result, jitter = descend(
                make, s, s.jitter, s.max_iter, callback, _hopeless,
                second_order if s.optimizer in NEWTON else first_order,
            )  # fmt: skip
        theta, noise, Z = objective.values(result.x)
        return Found(
            s.kernel.with_theta(b.to_host(theta).astype(np.float64)),
            b.to_host(noise).astype(np.float64).item(),
            np.array(b.to_host(Z), dtype=np.float64),
            jitter,
            result,
            hold(objective.all_values(result.x), [block.name for block in own]),
        )

    return best_of(once, first, restarts, rng)


def best_of(
    once: Callable[[np.ndarray, int], End], first: np.ndarray, restarts: int, rng: Any
) -> End:
    """The lowest end of ``once(latents, restart)``, from ``first`` and from noisy copies of it."""
    best: End | None = None
    for k in range(1 + restarts):
        latents = first
        if k:
            latents = first + 0.5 * first.std() * rng.standard_normal(first.shape)
        found = once(latents, k)
        if best is None or found.result.value < best.result.value:
            best = found
        if found.result.status in HALTED:
            break
    assert best is not None
    return best


def first_order(
    objective: Minimisable, s: Descent, steps: int, callback: Callback | None
) -> OptResult:
    """Minimise by values and gradients."""
    return minimise(
        objective.value_and_grad,
        objective.start(),
        method=s.optimizer,
        max_steps=steps,
        gtol=s.tol,
        ftol=1e-3 * s.tol,
        time_limit=s.time_left(),
        callback=callback,
    )


def descend(
    make: Callable[[float], Goal],
    s: Descent,
    jitter: float,
    steps: int,
    callback: Callback | None,
    hopeless: Callable[[float, float], str],
    minimiser: Callable[[Goal, Descent, int, Callback | None], OptResult] = first_order,
) -> tuple[Goal, OptResult, float]:
    """Minimise ``make(jitter)``, with more jitter where its start can't be evaluated.

    Parameters
    ----------
    hopeless : callable
        From the largest jitter tried, and that jitter over ``s.variance``, to the error's text.
    minimiser : callable
        From the objective, ``s``, the steps and the callback to the end.

    Returns
    -------
    objective, result, jitter

    Raises
    ------
    NotPositiveDefiniteError
        If the jitter schedule ends without a start.
    """
    for _ in range(1 + JITTER_TRIES):
        objective = make(jitter)
        result = minimiser(objective, s, steps, callback)
        if math.isfinite(result.value) or result.status == "interrupted":
            return objective, result, jitter
        jitter = max(jitter, JITTER_FLOOR * s.variance) * JITTER_GROWTH
    tried = jitter / JITTER_GROWTH
    raise NotPositiveDefiniteError(hopeless(tried, tried / s.variance))


def _hopeless(tried: float, share: float) -> str:
    return (
        f"the covariance at the start has no Cholesky factor with a jitter of up to {tried:.3g} "
        f"({share:.0e} of the data's variance); use a larger noise_variance, check "
        "the kernel's starting values, or remove duplicate rows"
    )


def later(callback: Callback | None, done: int) -> Callback | None:
    """The callback of a second minimisation, told of the steps of the first too."""
    if callback is None or not done:
        return callback
    return lambda progress: callback(progress._replace(step=progress.step + done))


def generator(model: Any) -> np.random.Generator:
    """The random numbers of one fit."""
    return np.random.default_rng(check_random_state(model.random_state).randint(2**31))


def inducing_jitter(b: Backend, jitter: float) -> float:
    """The jitter of k(Z, Z), a multiple of its mean diagonal, that the working precision allows."""
    return max(jitter, SINGLE_JITTER) if b.itemsize < 8 else jitter


def double(b: Backend) -> Backend:
    """The same library and device in float64: what a search ended with is judged there."""
    return b if b.itemsize == 8 else dataclasses.replace(b, dtype=b.xp.float64)


def gauge_blocks(kernel: Kernel, q: int) -> frozenset[str]:
    """Names of the blocks to hold so that each latent dimension has one scale: the first found."""
    held: set[str] = set()
    covered: set[int] = set()
    blocks = kernel.blocks()
    for place, dims in kernel.scale_blocks(q):
        if not dims & covered:
            held.add(blocks[place].name)
            covered |= dims
    return frozenset(held)


def say_how_it_ended(
    model: Any, found: Found, b: Backend, Y: np.ndarray, *, depth: int = 3
) -> None:
    """Warn of a fit that ended early, and of a precision that can't carry its gradient.

    The warnings point ``depth`` calls up: where the user called ``fit``.
    """
    say_early_end(model, found.result, depth=depth + 1)
    condition = float(np.nanvar(Y)) * Y.shape[0] / (found.noise + found.jitter)
    if b.eps * condition > 1e-3:
        warnings.warn(
            f"the covariance's condition number is up to {condition:.1e} and dtype="
            f"{model.dtype!r} resolves {1 / b.eps:.0e}: gradients are inaccurate; use "
            "dtype='float64' or a larger jitter",
            PrecisionWarning,
            stacklevel=depth,
        )


__all__ = [
    "ACTIVE",
    "HALTED",
    "SINGLE_JITTER",
    "Callback",
    "Descent",
    "Found",
    "Search",
    "best_of",
    "descend",
    "double",
    "gauge_blocks",
    "generator",
    "inducing_jitter",
    "later",
    "say_how_it_ended",
    "search",
]
