"""The search behind a fit: parameter checks, starts, the jitter schedule, restarts."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Protocol, TypeVar

import numpy as np
from sklearn.utils import check_random_state

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.errors import NotPositiveDefiniteError, PrecisionWarning
from gplvm_xp.estimators._endings import say_early_end
from gplvm_xp.estimators._progress import watched
from gplvm_xp.kernels import Kernel
from gplvm_xp.objectives import ExactObjective, groups_of
from gplvm_xp.optim import OptResult, Progress, minimise
from gplvm_xp.priors import Gamma, Gaussian, LogNormal, Prior

# Where the start has no Cholesky factor: at least this part of the data's variance, then tenfold.
# Of k(Z, Z) in single precision: below it the rounding of sums over the rows, which its inverse
# multiplies, rules the bound.
SINGLE_JITTER = 1e-2
JITTER_FLOOR, JITTER_GROWTH, JITTER_TRIES = 1e-10, 10.0, 6
OPTIMIZERS = ("scipy", "lbfgs", "adam")
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
    """What is minimised and how; see :class:`gplvm_xp.GPLVM` for the meaning of each."""

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
    began: float = field(default_factory=time.perf_counter)

    def time_left(self) -> float | None:
        """Seconds of the limit that are left."""
        if self.time_limit is None:
            return None
        return max(self.time_limit - (time.perf_counter() - self.began), 0.0)


@dataclass(frozen=True)
class Found:
    """The end of a search, on the host."""

    kernel: Kernel
    noise: float
    latents: np.ndarray
    jitter: float
    result: OptResult


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
        def make(jitter: float) -> ExactObjective:
            return ExactObjective(
                s.kernel, groups, latents, s.noise, s.latent_prior, s.priors, s.held, jitter
            )

        with watched(s.progress, s.max_iter, restart, s.callback) as callback:
            objective, result, jitter = descend(make, s, s.jitter, s.max_iter, callback, _hopeless)
        theta, noise, Z = objective.values(result.x)
        return Found(
            s.kernel.with_theta(b.to_host(theta).astype(np.float64)),
            b.to_host(noise).astype(np.float64).item(),
            np.array(b.to_host(Z), dtype=np.float64),
            jitter,
            result,
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


def descend(
    make: Callable[[float], Goal],
    s: Descent,
    jitter: float,
    steps: int,
    callback: Callback | None,
    hopeless: Callable[[float, float], str],
) -> tuple[Goal, OptResult, float]:
    """Minimise ``make(jitter)``, with more jitter where its start can't be evaluated.

    Parameters
    ----------
    hopeless : callable
        From the largest jitter tried, and that jitter over ``s.variance``, to the error's text.

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
        result = minimise(
            objective.value_and_grad,
            objective.start(),
            method=s.optimizer,
            max_steps=steps,
            gtol=s.tol,
            ftol=1e-3 * s.tol,
            time_limit=s.time_left(),
            callback=callback,
        )
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


def latent_prior(given: Any) -> Prior | None:
    """The prior that ``latent_prior`` names.

    Raises
    ------
    ValueError
        If it names none.
    """
    if isinstance(given, Gamma | LogNormal):
        raise ValueError(
            f"latent_prior={given!r} is a density of positive numbers and latents have any sign; "
            "use gplvm_xp.priors.Gaussian, or a Prior of your own on the whole line"
        )
    if given is None or isinstance(given, Prior):
        return given
    if given == "gaussian":
        return Gaussian()
    raise ValueError(
        f"latent_prior={given!r} was given; expected 'gaussian', None or a Prior of gplvm_xp.priors"
    )


def check_parameters(model: Any, Y: np.ndarray) -> None:
    """Raise ``ValueError`` or ``TypeError`` where the parameters don't fit the table."""
    n, D = Y.shape
    q = model.n_components
    if isinstance(q, bool) or not isinstance(q, int | np.integer) or q < 1:
        raise ValueError(f"n_components={q!r} was given; expected an integer of 1 or more")
    if n < 2:
        raise ValueError(
            f"X has {n} sample(s) (rows); a latent space needs at least 2: give more rows, or "
            "transpose the table if its rows are the variables"
        )
    if q == D == 2:
        # scikit-learn's conformance suite fits the default of two to tables of two columns.
        warnings.warn(
            "n_components=2 and X has 2 features: nothing is reduced; use n_components=1",
            UserWarning,
            stacklevel=4,
        )
    elif q >= D:
        raise ValueError(
            f"n_components={q} and X has {D} feature(s); expected fewer latent dimensions than "
            f"columns: lower n_components below {D}"
        )
    if q >= n:
        raise ValueError(
            f"n_components={q} and X has {n} sample(s); expected fewer latent dimensions than "
            f"rows: lower n_components below {n}"
        )
    if model.gauge not in ("fixed", "free"):
        raise ValueError(f"gauge={model.gauge!r} was given; expected 'fixed' or 'free'")
    if model.optimizer not in OPTIMIZERS:
        raise ValueError(
            f"optimizer={model.optimizer!r} was given; expected one of "
            f"{', '.join(map(repr, OPTIMIZERS))}"
        )
    if model.kernel is not None and not isinstance(model.kernel, Kernel):
        raise TypeError(
            f"kernel is a {type(model.kernel).__name__}; expected one of gplvm_xp.kernels, for "
            "example RBF() + White()"
        )
    _check_numbers(model)
    if not isinstance(model.priors, Mapping | None):
        raise TypeError(
            f"priors is a {type(model.priors).__name__}; expected a mapping of parameter names to "
            "priors, for example {'noise': LogNormal(0, 1)}"
        )
    for name, prior in (model.priors or {}).items():
        if not isinstance(prior, Prior):
            raise TypeError(
                f"the prior of {name!r} is a {type(prior).__name__}; expected a Prior of "
                "gplvm_xp.priors, for example LogNormal(0, 1)"
            )
    latent_prior(model.latent_prior)


def _check_numbers(model: Any) -> None:
    for name in ("n_restarts", "max_iter"):
        value = getattr(model, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
            raise ValueError(f"{name}={value!r} was given; expected an integer of 0 or more")
    for name in ("jitter", "tol", "time_limit", "noise_variance"):
        value = getattr(model, name)
        if value is None and name in ("time_limit", "noise_variance"):
            continue
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else -1.0
        right = number >= 0.0 and (name == "time_limit" or number < math.inf)
        need = "a number of 0 or more"
        if name == "noise_variance":
            need, right = "a positive finite number", right and number > 0.0
        if not right:
            raise ValueError(f"{name}={value!r} was given; expected {need}")


def check_held(priors: Mapping[str, Prior], held: frozenset[str]) -> None:
    """Raise ``ValueError`` where a prior would be ignored: its parameter is held by the gauge."""
    ignored = sorted(held & set(priors))
    if ignored:
        raise ValueError(
            f"priors names {ignored}, which gauge='fixed' holds at the starting value; expected "
            "priors of parameters that are learned: use gauge='free', or drop the prior"
        )


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
    "check_held",
    "check_parameters",
    "descend",
    "double",
    "gauge_blocks",
    "generator",
    "inducing_jitter",
    "latent_prior",
    "later",
    "say_how_it_ended",
    "search",
]
