"""The search behind a sparse GPLVM: one objective for each approximation, warm-up, restarts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np

from gplvm_xp.backend import Backend
from gplvm_xp.estimators._bayes import inducing_inputs
from gplvm_xp.estimators._bayes_checks import whole_number
from gplvm_xp.estimators._checks import check_parameters
from gplvm_xp.estimators._fit import (
    HALTED,
    Callback,
    Found,
    Search,
    best_of,
    descend,
    inducing_jitter,
    later,
)
from gplvm_xp.estimators._progress import watched
from gplvm_xp.estimators._reached import Reached, exactly, hopeless, reached
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
        If an evaluation does not fit, before anything of it is allocated.
    NotPositiveDefiniteError
        If a start has no factors after the jitter schedule.
    """
    data = Observed.of(b, Y, reduce=True)

    def once(latents: np.ndarray, restart: int) -> FoundSparse:
        places = Z if restart == 0 else inducing_inputs(latents, Z.shape[0], rng)
        point = Reached(s.kernel, s.noise, latents, None, places)
        jitter = inducing_jitter(b, s.jitter)
        curve: list[float] = []
        with watched(s.progress, s.max_iter, restart, s.callback, "SparseGPLVM") as callback:
            go = partial(_minimised, b, data, s, approximation)
            warm = min(warm_up, s.max_iter)
            if warm:
                objective, result, jitter = go(point, {"noise"}, jitter, warm, callback)
                if result.status in HALTED:
                    return _ended(b, Y, objective, result, jitter)
                point = reached(b, objective, result)
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
    point: Reached,
    held: set[str],
    jitter: float,
    steps: int,
    callback: Callback | None,
) -> tuple[InducingObjective, OptResult, float]:
    def make(jitter: float) -> InducingObjective:
        return APPROXIMATIONS[approximation](
            point.kernel, data, point.mu, None, point.Z, point.noise,
            latent_prior=s.latent_prior, priors=s.priors, held=s.held | held, jitter=jitter,
        )  # fmt: skip

    return descend(make, s, jitter, steps, callback, hopeless(point.Z.shape[0]))


def _ended(
    b: Backend, Y: np.ndarray, objective: InducingObjective, result: OptResult, jitter: float
) -> FoundSparse:
    end = reached(b, objective, result)
    v, full = exactly(b, Y, objective, result)
    b = full.backend
    mean, factor, _ = full.optimal(v)
    scale = b.xp.mean(objective.kernel.diag(v.theta, v.Z))
    jitter *= b.to_host(scale).astype(np.float64).item()
    return FoundSparse(
        Found(end.kernel, end.noise, end.mu, jitter, result),
        end.Z,
        np.array(b.to_host(mean), dtype=np.float64),
        np.array(b.to_host(factor), dtype=np.float64),
        full.data.totals.which,
        b.to_host(full.bound(v).value).astype(np.float64).item(),
    )


__all__ = ["APPROXIMATIONS", "FoundSparse", "check_sparse", "search_sparse"]
