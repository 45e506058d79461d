"""The search behind a sparse GPLVM: one objective for each approximation, warm-up, restarts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.estimators._bayes import inducing_inputs
from gplvm_xp.estimators._bayes_checks import whole_number
from gplvm_xp.estimators._fit import (
    HALTED,
    Callback,
    Found,
    Search,
    best_of,
    check_parameters,
    descend,
    later,
)
from gplvm_xp.estimators._progress import watched
from gplvm_xp.kernels import Kernel
from gplvm_xp.objectives.bayesian import BayesianObjective, InducingObjective, Observed
from gplvm_xp.objectives.fitc import FITCObjective
from gplvm_xp.optim import OptResult

APPROXIMATIONS: Mapping[str, Callable[..., InducingObjective]] = {
    "vfe": BayesianObjective,
    "fitc": FITCObjective,
    "dtc": partial(BayesianObjective, trace=False),
}
MOST_INDUCING = 50


@dataclass(frozen=True)
class FoundSparse:
    """The end of a search, on the host.

    Attributes
    ----------
    found : Found
        Its jitter is what stands on the diagonal of k(Z, Z); its result has the warm-up's steps.
    Z : ndarray (M, q)
    mean : ndarray (M, D)
    factor : ndarray (r, M, M)
        Of the optimal q(u), whitened.
    which : ndarray (D,)
    value : float
        The approximate log-likelihood, nats, without any prior.
    """

    found: Found
    Z: np.ndarray
    mean: np.ndarray
    factor: np.ndarray
    which: np.ndarray
    value: float

    @property
    def result(self) -> OptResult:
        """How the search ended."""
        return self.found.result


@dataclass(frozen=True)
class _Point:
    """A point of the search, on the host."""

    kernel: Kernel
    noise: float
    latents: np.ndarray
    Z: np.ndarray


def check_sparse(model: Any, Y: np.ndarray) -> int:
    """Number of inducing inputs for a table (n, D).

    Raises
    ------
    ValueError, TypeError
        Where a parameter does not fit the table.
    """
    if model.approximation not in APPROXIMATIONS:
        raise ValueError(
            f"approximation={model.approximation!r} was given; expected one of "
            f"{', '.join(map(repr, APPROXIMATIONS))}"
        )
    steps = model.warm_up
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 0:
        raise ValueError(f"warm_up={steps!r} was given; expected an integer of 0 or more")
    check_parameters(model, Y)
    return whole_number(model, "n_inducing", Y.shape[0], MOST_INDUCING, "rows")


def search_sparse(
    b: Backend,
    Y: np.ndarray,
    first: np.ndarray,
    Z: np.ndarray,
    restarts: int,
    rng: np.random.Generator,
    s: Search,
    approximation: str,
    warm_up: int,
) -> FoundSparse:
    """The best of 1 + ``restarts`` minimisations.

    Parameters
    ----------
    Y : ndarray (n, D)
        Centred, NaN for missing.
    first : ndarray (n, q)
        Starting latents.
    Z : ndarray (M, q)
        Starting inducing inputs; a restart takes new ones.
    s : Search
        Its jitter is a multiple of the kernel's variance, and so its ``variance`` is 1.
    approximation : str
        One of :data:`APPROXIMATIONS`.
    warm_up : int
        Steps with the noise held.

    Raises
    ------
    NotEnoughMemoryError
        If the factors of all groups of outputs do not fit, before any is made.
    NotPositiveDefiniteError
        If a start has no factors after the jitter schedule.
    """
    data = Observed.of(b, Y, reduce=True)
    M, r = Z.shape[0], data.totals.outputs.size
    b.require_memory(
        (6 * r + 6) * M * M * b.itemsize,
        f"{r} groups of outputs with equal gaps, each with factors of order {M},",
        "use fewer inducing inputs, or fill some of the gaps",
    )

    def once(latents: np.ndarray, restart: int) -> FoundSparse:
        places = Z if restart == 0 else inducing_inputs(latents, M, rng)
        point, jitter = _Point(s.kernel, s.noise, latents, places), s.jitter
        curve: list[float] = []
        with watched(s.progress, s.max_iter, restart, s.callback, "SparseGPLVM") as callback:
            go = partial(_minimised, b, data, s, approximation)
            warm = min(warm_up, s.max_iter)
            if warm:
                objective, result, jitter = go(point, {"noise"}, jitter, warm, callback)
                if result.status in HALTED:
                    return _ended(b, Y, objective, result, jitter)
                point = _reached(b, objective, result)
                curve += result.values[:-1]
            done = len(curve)
            objective, result, jitter = go(
                point, set(), jitter, s.max_iter - done, later(callback, done)
            )
        curve += result.values
        whole = replace(result, values=tuple(curve), steps=done + result.steps)
        return _ended(b, Y, objective, whole, jitter)

    return best_of(once, first, restarts, rng)


def _minimised(
    b: Backend,
    data: Observed,
    s: Search,
    approximation: str,
    point: _Point,
    held: set[str],
    jitter: float,
    steps: int,
    callback: Callback | None,
) -> tuple[InducingObjective, OptResult, float]:
    def make(jitter: float) -> InducingObjective:
        return APPROXIMATIONS[approximation](
            point.kernel, data, point.latents, None, point.Z, point.noise,
            latent_prior=s.latent_prior, priors=s.priors, held=s.held | held, jitter=jitter,
        )  # fmt: skip

    def hopeless(_: float, share: float) -> str:
        return (
            f"k(Z, Z) of the {point.Z.shape[0]} inducing inputs has no Cholesky factor at the "
            f"start with a jitter of up to {share:.0e} of the kernel's variance; use fewer "
            "inducing inputs, or check the kernel's starting values"
        )

    return descend(make, s, jitter, steps, callback, hopeless)


def _reached(b: Backend, objective: InducingObjective, result: OptResult) -> _Point:
    v = objective.values(result.x)

    def host(a: Array) -> np.ndarray:
        return np.array(b.to_host(a), dtype=np.float64)

    kernel = objective.kernel.with_theta(host(v.theta))
    return _Point(kernel, b.to_host(v.noise).astype(np.float64).item(), host(v.mu), host(v.Z))


def _ended(
    b: Backend, Y: np.ndarray, objective: InducingObjective, result: OptResult, jitter: float
) -> FoundSparse:
    end, v = _reached(b, objective, result), objective.values(result.x)
    full: Any = replace(objective, data=Observed.of(b, Y))
    mean, factor, _ = full.optimal(v)
    scale = b.xp.mean(objective.kernel.diag(v.theta, v.Z))
    jitter *= b.to_host(scale).astype(np.float64).item()
    return FoundSparse(
        Found(end.kernel, end.noise, end.latents, jitter, result),
        end.Z,
        np.array(b.to_host(mean), dtype=np.float64),
        np.array(b.to_host(factor), dtype=np.float64),
        full.data.totals.which,
        b.to_host(full.bound(v).value).astype(np.float64).item(),
    )


__all__ = ["APPROXIMATIONS", "FoundSparse", "check_sparse", "search_sparse"]
