"""The search behind a supervised fit: parameter checks, the jitter schedule, the posterior."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.errors import NotPositiveDefiniteError
from gplvm_xp.estimators._fit import JITTER_FLOOR, JITTER_GROWTH, JITTER_TRIES
from gplvm_xp.estimators._progress import watched
from gplvm_xp.estimators._targets import Targets, centre, signed
from gplvm_xp.kernels import Kernel
from gplvm_xp.likelihoods import Likelihood
from gplvm_xp.optim import OptResult, Progress, minimise
from gplvm_xp.variational import DenseEvidence, DensePosterior, Observations, SiteResult


@dataclass(frozen=True)
class Plan:
    """How to search; see :class:`gplvm_xp.VariationalGP` for the meaning of each."""

    kernel: Kernel
    likelihood: Likelihood
    mean: np.ndarray
    jitter: float
    scale: float
    fit_mean: bool
    optimize: bool
    max_iter: int
    tol: float
    time_limit: float | None
    callback: Callable[[Progress], bool | None] | None
    progress: bool


@dataclass(frozen=True, eq=False)
class Found:
    """The end of a search."""

    kernel: Kernel
    likelihood: Likelihood
    mean: np.ndarray
    jitter: float
    posterior: DensePosterior
    result: SiteResult
    status: str
    message: str
    steps: int
    values: tuple[float, ...]


def evidence_of(
    b: Backend,
    t: Targets,
    kernel: Kernel,
    likelihood: Likelihood,
    mean: np.ndarray,
    jitter: float,
    *,
    fit_mean: bool,
    tol: float | None = None,
) -> DenseEvidence:
    """The free energy of these data, less their :func:`centre`; ``tol`` of the inner search,
    default as tight as the dtype allows with some room."""

    def put(a: np.ndarray | None) -> Array:
        return None if a is None else b.asarray(a)

    origin = centre(likelihood, t)
    y, mean = t.y - origin[..., None], mean - origin
    unit = _unit(likelihood, t)
    data = Observations(likelihood, put(y), put(t.weights), put(t.exposure), unit=unit)
    tightest = 1e-9 if b.eps < 1e-10 else 1e-4
    return DenseEvidence(
        kernel, put(t.X), data, mean=mean, fit_mean=fit_mean, jitter=jitter,
        tol=tightest if tol is None else max(tol, tightest),
    )  # fmt: skip


def _unit(likelihood: Likelihood, t: Targets) -> float:
    """The size of the latent function."""
    return math.sqrt(t.variance) if signed(likelihood) else 1.0


def search(b: Backend, t: Targets, plan: Plan) -> Found:
    """Hyperparameters, then the posterior at the best of them.

    Where the start has no free energy, for want of a Cholesky factor, with a tenfold jitter.

    Raises
    ------
    NotPositiveDefiniteError
        If it has none after the jitter schedule.
    """
    began, jitter = time.perf_counter(), plan.jitter
    if not plan.likelihood.log_concave:
        # Here K itself is factored, not I + W^½ K W^½.
        jitter = max(jitter, b.eps * t.y.shape[-1] * plan.scale)
    for _ in range(1 + JITTER_TRIES):
        left = None
        if plan.time_limit is not None:
            left = max(plan.time_limit - (time.perf_counter() - began), 0.0)
        found = _once(b, t, plan, jitter, left)
        if found is not None:
            return found
        jitter = max(jitter, JITTER_FLOOR * plan.scale) * JITTER_GROWTH
    tried = jitter / JITTER_GROWTH
    raise NotPositiveDefiniteError(
        f"the free energy at the starting values is not finite with a jitter of up to {tried:.3g} "
        f"({tried / plan.scale:.0e} of the kernel's variance); use other starting values of the "
        "kernel or the likelihood, or leave out duplicate rows"
    )


def _once(
    b: Backend, t: Targets, plan: Plan, jitter: float, time_left: float | None
) -> Found | None:
    # The gradient is wrong by what is left of the inner search: well below the tolerance will do.
    evidence = evidence_of(
        b, t, plan.kernel, plan.likelihood, plan.mean, jitter,
        fit_mean=plan.fit_mean, tol=min(1e-6, 1e-3 * plan.tol),
    )  # fmt: skip
    kernel, likelihood, mean = plan.kernel, plan.likelihood, plan.mean
    status, message, steps, values = "converged", "nothing to learn", 0, tuple[float, ...]()
    if plan.optimize and evidence.layout.size:
        if (
            signed(likelihood)
            and t.constant
            and not all(block.fixed for block in likelihood.blocks())
        ):
            status, message = "failed", "the targets are constant: no noise fits them best"
        else:
            x, found = _minimum(b, evidence, plan, _unit(likelihood, t), time_left)
            if not math.isfinite(found.value) and found.status != "interrupted":
                return None
            named = {k: b.to_host(v).astype(np.float64) for k, v in evidence.named(x).items()}
            kernel = kernel.with_theta(_flat(kernel, named))
            likelihood = likelihood.with_theta(_flat(likelihood, named))
            mean = named["mean"] + centre(likelihood, t)
            status, message, steps = found.status, found.message, found.steps
            values = found.values
    final = evidence_of(b, t, kernel, likelihood, mean, jitter, fit_mean=plan.fit_mean)
    final.result = evidence.result
    posterior, result = final.solve(final.start())
    total = math.fsum(np.ravel(result.free_energy))
    if not math.isfinite(total):
        return None
    return Found(
        kernel, likelihood, mean, jitter, posterior, result, status, message, steps,
        values or (total,),
    )  # fmt: skip


def _minimum(
    b: Backend, evidence: DenseEvidence, plan: Plan, unit: float, time_left: float | None
) -> tuple[Array, OptResult]:
    """The best hyperparameters, as a vector of the evidence, and how they were found."""
    # The mean has y's units, the others are logarithms: one step length must suit both.
    sizes = np.ones(evidence.layout.size)
    sizes[evidence.layout.slices().get("mean", slice(0, 0))] = unit
    scale = b.asarray(sizes)
    floor = _Floor(evidence, plan.likelihood, unit)

    def scaled(z: Array) -> tuple[Array, Array]:
        x = scale * z
        if floor.share(x) < 0.1:
            return b.scalar(math.inf), b.xp.zeros_like(z)
        f, g = evidence.value_and_grad(x)
        return f, scale * g

    with watched(plan.progress, plan.max_iter, 0, plan.callback, "VariationalGP") as told:

        def step(progress: Progress) -> bool:
            if told is not None and told(progress):
                return True
            return floor.share(scale * progress.x) < 1.0

        found = minimise(
            scaled,
            evidence.start() / scale,
            max_steps=plan.max_iter,
            gtol=plan.tol,
            # A smaller decrease of a sum of this many rounded terms can't be seen.
            ftol=max(1e-5 * plan.tol, 32.0 * b.eps),
            time_limit=time_left,
            callback=step,
        )
    x = scale * found.x
    if found.status == "stopped" and floor.share(x) < 1.0:
        found = replace(found, status="failed", message=floor.message)
    return x, found


class _Floor:
    """Where a noise that a fit learns becomes too small to compute with.

    Of targets that a function fits without noise the likelihood has no maximum.
    """

    # By likelihood: the parameter, its power of y's unit, and its least value in it.
    _least: ClassVar[dict[str, tuple[str, int, float]]] = {
        "gaussian": ("variance", 2, 1e-10),
        "student_t": ("scale", 1, 1e-3),
    }

    def __init__(self, evidence: DenseEvidence, likelihood: Likelihood, unit: float) -> None:
        self.evidence, self.name, self.least = evidence, "", 0.0
        if likelihood.name in self._least:
            parameter, power, share = self._least[likelihood.name]
            share = max(share, (10.0 * evidence.backend.eps) ** (0.5 * power))
            self.name, self.least = f"{likelihood.name}.{parameter}", share * unit**power
        if self.name not in {block.name for block in evidence.layout.blocks}:
            self.least = 0.0

    def share(self, x: Array) -> float:
        """The noise at x, in units of the least."""
        if not self.least:
            return math.inf
        noise = self.evidence.named(x)[self.name]
        return float(self.evidence.backend.to_host(noise)) / self.least

    @property
    def message(self) -> str:
        """Why the search ended there."""
        return (
            f"{self.name} fell below {self.least:.3g}, and the targets are fitted best without "
            "noise; hold it at a value of your choice, see fixed= of the likelihood"
        )


def _flat(owner: Kernel | Likelihood, values: dict[str, np.ndarray]) -> np.ndarray:
    parts = [np.ravel(values[block.name]) for block in owner.blocks()]
    return np.concatenate(parts) if parts else np.zeros(0)


def check_parameters(model: Any) -> None:
    """Raise ``ValueError`` or ``TypeError`` where a parameter of the model is impossible."""
    value = model.max_iter
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ValueError(f"max_iter={value!r} was given; expected an integer of 0 or more")
    for name in ("jitter", "tol", "time_limit"):
        value = getattr(model, name)
        if value is None and name == "time_limit":
            continue
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else -1.0
        if not (number >= 0.0 and (name == "time_limit" or number < math.inf)):
            raise ValueError(f"{name}={value!r} was given; expected a number of 0 or more")
    if model.kernel is not None and not isinstance(model.kernel, Kernel):
        raise TypeError(
            f"kernel={model.kernel!r} was given; expected one of gplvm_xp.kernels, for example "
            "RBF() + White()"
        )


def say_how_it_ended(found: Found, max_iter: int) -> None:
    """Warn of a fit that ended early, but not where a callback asked for it."""
    said = []
    if found.status == "max_steps":
        said.append(
            f"the search has not converged after {found.steps} steps; raise max_iter={max_iter} to "
            "go on"
        )
    elif found.status in ("interrupted", "time_limit", "failed"):
        said.append(
            f"the fit ended early ({found.message}); the best state of {found.steps} steps is kept"
        )
    if not found.result.converged.all():
        said.append(f"the posterior was not found to the tolerance: {found.result.message}")
    for words in said:
        warnings.warn(words, ConvergenceWarning, stacklevel=3)


__all__ = ["Found", "Plan", "check_parameters", "evidence_of", "say_how_it_ended", "search"]
