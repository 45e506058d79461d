"""The search behind a Bayesian GPLVM: starting values, warm-up, restarts, the end on the host."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from sklearn.cluster import kmeans_plusplus

from gplvm_xp import init as starts
from gplvm_xp.backend import Backend
from gplvm_xp.encoders import Encoder
from gplvm_xp.estimators._fit import HALTED, Callback, descend, later
from gplvm_xp.estimators._progress import watched
from gplvm_xp.estimators._reached import exactly, hopeless, reached
from gplvm_xp.kernels import RBF, Kernel
from gplvm_xp.latents import hold
from gplvm_xp.likelihoods import Likelihood
from gplvm_xp.objectives.bayesian import (
    BayesianObjective,
    Observed,
    require_memory,
)
from gplvm_xp.optim import OptResult
from gplvm_xp.priors import Prior

# Seeding takes places from no more rows than these, unless more places are wanted.
SEEDED = 20_000


@dataclass(frozen=True)
class Start:
    """Where a search begins, on the host: (n, q), (n, q), (M, q), squared units of the data.

    With an encoder, which has weights, its (μ, ln S) take the place of ``mu`` and ``S``.
    """

    kernel: Kernel
    noise: float
    mu: np.ndarray
    S: np.ndarray
    Z: np.ndarray
    encoder: Encoder | None = None

    def encoded(self, inputs: np.ndarray) -> Start:
        """With weights for which the encoder, settled on ``inputs`` (n, D), is near μ and ln S."""
        if self.encoder is None:
            return self
        both = np.concatenate([self.mu, np.log(self.S)], axis=1)
        return replace(self, encoder=self.encoder.started(inputs, both))


@dataclass(frozen=True)
class Settings:
    """What is minimised and how; see :class:`gplvm_xp.BayesianGPLVM` for the meaning of each."""

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
        """What the jitter is a multiple of: the kernel's own variance."""
        return 1.0

    def time_left(self) -> float | None:
        """Seconds of the limit that are left."""
        if self.time_limit is None:
            return None
        return max(self.time_limit - (time.perf_counter() - self.began), 0.0)


@dataclass(frozen=True)
class FoundBayes:
    """The end of a search, on the host.

    Attributes
    ----------
    kernel : Kernel
    noise : float
    likelihood : Likelihood or None
        None is Gaussian noise of variance ``noise``.
    mu, S : ndarray (n, q)
    Z : ndarray (M, q)
    mean : ndarray (M, D)
    factor : ndarray (r, M, M)
        Of the whitened q(u).
    which : ndarray (D,)
    jitter : float
        On the diagonal of k(Z, Z).
    bound : float
        Nats, of the centred and scaled data, without priors of parameters.
    value : float
        What was minimised.
    curve : tuple of float
        Objective at the start and after each step.
    steps : int
    grad_norm : float
    status, message : str
    state : mapping of str to ndarray
        What a later search goes on from beside all this; empty where there is nothing more.
    encoder : Encoder or None
        With the weights found.
    """

    kernel: Kernel
    noise: float
    likelihood: Likelihood | None
    mu: np.ndarray
    S: np.ndarray
    Z: np.ndarray
    mean: np.ndarray
    factor: np.ndarray
    which: np.ndarray
    jitter: float
    bound: float
    value: float
    curve: tuple[float, ...]
    steps: int
    grad_norm: float
    status: str
    message: str
    state: Mapping[str, np.ndarray] = field(default_factory=dict)
    encoder: Encoder | None = None


def starting(
    kernel: Kernel | None,
    noise: float | None,
    init: Any,
    Y: np.ndarray,
    q: int,
    M: int,
    rng: np.random.Generator,
    variance: float | None = None,
    dtype: str = "float64",
) -> Start:
    """Starting values from a centred table (n, D), NaN for missing; ``variance`` is the kernel's.

    The latents are ``init``'s with variances of a tenth of the prior's; inducing inputs are
    k-means++ picks among them; the lengthscale of a dimension is 1/√5 of the geometric mean of its
    range there and the widest's. With its own range alone rows lie so far from each other in many
    dimensions that the fit explains nothing; with the widest's alone narrow ones do not count.
    """
    variance = mean_square(Y, dtype) if variance is None else variance
    mu = starts.latents(init, Y, q, rng)
    if kernel is None:
        kernel = first_kernel(mu, variance)
    return Start(
        kernel,
        0.01 * variance if noise is None else noise,
        mu,
        np.full(mu.shape, 0.1),
        inducing_inputs(mu, M, rng),
    )


def mean_square(Y: np.ndarray, dtype: str) -> float:
    """Of the observed entries of a centred table, for a search in ``dtype``.

    Raises
    ------
    ValueError
        If squares of it, which the search makes, are beyond the range of numbers.
    """
    info = np.finfo(np.float32 if dtype == "float32" else np.float64)
    # The noise starts at a hundredth of it.
    least, most = 100.0 * info.tiny**0.5, info.max**0.5
    with np.errstate(all="ignore"):
        value = float(np.nanmean(Y**2))
    if not least < value < most:
        raise ValueError(
            f"the entries of X are about {np.nanmax(np.abs(Y)):.1e} in size after "
            f"centring, and the square of their variance is beyond the range of {dtype}; expected "
            f"a size between {least**0.5:.0e} and {most**0.5:.0e}: rescale the columns"
        )
    return value


def require_room(b: Backend, Y: np.ndarray, q: int, M: int) -> None:
    """Refuse M inducing inputs for a table (n, D), NaN for missing, that do not fit, before any.

    Raises
    ------
    NotEnoughMemoryError
        As the search itself would.
    """
    n, D = Y.shape
    seen = ~np.isnan(Y)
    if seen.all():
        require_memory(b, (n, q), M, 1, min(n, D))
    else:
        require_memory(b, (n, q), M, np.unique(seen, axis=1).shape[1], D)


def first_kernel(mu: np.ndarray, variance: float) -> Kernel:
    """The default kernel for starting latents (n, q): see :func:`starting`."""
    spread = np.ptp(mu, axis=0)
    widest = float(spread.max()) or 1.0
    # A dimension that the start leaves flat begins irrelevant, not infinitely sensitive.
    own = np.where(spread > 1e-3 * widest, spread, widest)
    return RBF(variance, tuple(float(v) for v in np.sqrt(own * widest / 5.0)))


def inducing_inputs(X: np.ndarray, M: int, rng: np.random.Generator) -> np.ndarray:
    """M different places among the rows of X (n, q) by k-means++ seeding.

    Where X has fewer than M different rows, further ones are jittered copies. Cost n M q for up to
    :data:`SEEDED` rows n, a random choice among more, or M where that is larger.
    """
    most = max(SEEDED, M)
    sample = X if X.shape[0] <= most else X[rng.choice(X.shape[0], most, replace=False)]
    seed = int(rng.integers(2**31))
    Z = np.array(kmeans_plusplus(sample, M, random_state=seed)[0], dtype=np.float64)
    _, first = np.unique(Z, axis=0, return_index=True)
    again = np.setdiff1d(np.arange(M), first)
    width = max(float(X.std()), 1e-3)
    Z[again] += 0.1 * width * rng.standard_normal((again.size, X.shape[1]))
    return Z


def search(
    b: Backend,
    Y: np.ndarray,
    start: Start,
    restarts: int,
    rng: np.random.Generator,
    s: Settings,
    *,
    resumed: bool = False,
) -> FoundBayes:
    """The best of 1 + ``restarts`` minimisations of the collapsed bound.

    Parameters
    ----------
    Y : ndarray (n, D)
        Centred, NaN for missing.
    resumed : bool
        Whether ``start`` is the end of an earlier search: then there is no warm-up.

    Raises
    ------
    NotPositiveDefiniteError
        If a start has no factors after the jitter schedule.
    """
    data = Observed.of(b, Y, reduce=True)
    best: FoundBayes | None = None
    for k in range(1 + restarts):
        first = start
        if k:
            mu = start.mu + 0.5 * start.mu.std() * rng.standard_normal(start.mu.shape)
            first = replace(start, mu=mu, Z=inducing_inputs(mu, start.Z.shape[0], rng)).encoded(Y)
        found = _once(b, Y, data, first, k, s, resumed)
        if best is None or found.value < best.value:
            best = found
        if found.status in HALTED:
            break
    assert best is not None
    return best


def _once(
    b: Backend,
    Y: np.ndarray,
    data: Observed,
    start: Start,
    restart: int,
    s: Settings,
    resumed: bool,
) -> FoundBayes:
    curve: list[float] = []
    with watched(s.progress, s.max_iter, restart, s.callback, "BayesianGPLVM") as callback:
        jitter, warm = s.jitter, min(s.warm_up, s.max_iter)
        if warm and not resumed:
            objective, result, jitter = _minimised(
                b, Y, data, start, {"noise"}, jitter, warm, s, callback
            )
            if result.status in HALTED:
                return _ended(b, Y, objective, result, start, [], jitter)
            curve += result.values[:-1]
            start = _as_start(b, objective, result, start)
        left = s.max_iter - len(curve)
        objective, result, jitter = _minimised(
            b, Y, data, start, set(), jitter, left, s, later(callback, len(curve))
        )
        return _ended(b, Y, objective, result, start, curve, jitter)


def _minimised(
    b: Backend,
    Y: np.ndarray,
    data: Observed,
    start: Start,
    held: set[str],
    jitter: float,
    steps: int,
    s: Settings,
    callback: Callback | None,
) -> tuple[BayesianObjective, OptResult, float]:
    latents = None if start.encoder is None else start.encoder.latents(b, Y)

    def make(jitter: float) -> BayesianObjective:
        return BayesianObjective(
            start.kernel, data, start.mu, start.S, start.Z, start.noise,
            priors={k: p for k, p in s.priors.items() if k not in held},
            held=frozenset(held), jitter=jitter, latents=latents,
        )  # fmt: skip

    return descend(make, s, jitter, steps, callback, hopeless(start.Z.shape[0]))


def _as_start(b: Backend, objective: BayesianObjective, result: OptResult, start: Start) -> Start:
    """Where a minimisation from ``start`` ended."""
    point, encoder = reached(b, objective, result), start.encoder
    assert point.S is not None
    if encoder is not None:
        names = [block.name for block in encoder.blocks()]
        encoder = encoder.with_values(hold(objective.layout.unpack(result.x)[0], names))
    return Start(point.kernel, point.noise, point.mu, point.S, point.Z, encoder)


def _ended(
    b: Backend,
    Y: np.ndarray,
    objective: BayesianObjective,
    result: OptResult,
    start: Start,
    before: list[float],
    jitter: float,
) -> FoundBayes:
    end = _as_start(b, objective, result, start)
    v, full = exactly(b, Y, objective, result)
    b = full.backend
    mean, factor, _ = full.optimal(v)
    diagonal = objective.kernel.diag(v.theta, v.Z)
    return FoundBayes(
        kernel=end.kernel,
        noise=end.noise,
        likelihood=None,
        mu=end.mu,
        S=end.S,
        Z=end.Z,
        mean=np.array(b.to_host(mean), dtype=np.float64),
        factor=np.array(b.to_host(factor), dtype=np.float64),
        which=full.data.totals.which,
        jitter=jitter * b.to_host(b.xp.mean(diagonal)).astype(np.float64).item(),
        bound=b.to_host(full.bound(v).value).astype(np.float64).item(),
        value=result.value,
        curve=(*before, *result.values),
        steps=len(before) + result.steps,
        grad_norm=result.grad_norm,
        status=result.status,
        message=result.message,
        encoder=end.encoder,
    )


__all__ = [
    "FoundBayes",
    "Settings",
    "Start",
    "first_kernel",
    "inducing_inputs",
    "mean_square",
    "require_room",
    "search",
    "starting",
]
