"""The search behind a rate map: padding, rounds of hyperparameters and frequencies."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.estimators._cells import Cells
from gplvm_xp.estimators._padding import observations, padded_shape
from gplvm_xp.estimators._progress import watched
from gplvm_xp.kernels import Kernel
from gplvm_xp.likelihoods import Likelihood
from gplvm_xp.operators import Hartley
from gplvm_xp.optim import Progress, minimise
from gplvm_xp.variational import GridEvidence, GridPosterior, SiteResult
from gplvm_xp.variational.grid import spectrum

# A round ends where the kernel needs this part more frequencies than there are; the next begins
# where it needs at most that part more.
SLACK, GROWTH = 0.1, 0.25
MOST_ROUNDS, MOST_SHRINKS = 40, 3
_NAME = "LogGaussianCoxProcess"

Told: TypeAlias = Callable[[Progress], bool | None] | None


@dataclass(frozen=True)
class Plan:
    """How to search; see :class:`gplvm_xp.LogGaussianCoxProcess` for the meaning of each."""

    kernel: Kernel
    likelihood: Likelihood
    mean: np.ndarray
    periodic: tuple[bool, ...]
    fit_mean: bool
    optimize: bool
    threshold: float
    max_frequencies: int
    max_iter: int
    tol: float
    time_limit: float | None
    callback: Callable[[Progress], bool | None] | None
    progress: bool


@dataclass(frozen=True, eq=False)
class Found:
    """The end of a search.

    ``shape`` is that of the padded grid, ``values`` and ``steps`` are those of all rounds.
    """

    kernel: Kernel
    likelihood: Likelihood
    mean: np.ndarray
    shape: tuple[int, ...]
    posterior: GridPosterior
    result: SiteResult
    status: str
    message: str
    steps: int
    values: tuple[float, ...]


def search(b: Backend, data: Cells, plan: Plan) -> Found:
    """Hyperparameters and frequencies in turn until neither changes, then the posterior.

    The frequencies are held during a minimisation, so that its objective is one smooth function.
    """
    return _Search(b, data, plan).run()


class _Search:
    """Mutable, and alive no longer than the call."""

    evidence: GridEvidence
    x: Array

    def __init__(self, b: Backend, data: Cells, plan: Plan) -> None:
        self.b, self.data, self.plan = b, data, plan
        self.kernel, self.likelihood, self.mean = plan.kernel, plan.likelihood, plan.mean
        self.values: list[float] = []
        self.steps, self.status, self.message = 0, "converged", "nothing to learn"
        self.shrunk = 0
        self.began = time.perf_counter()

    def run(self) -> Found:
        self._build(padded_shape(self.kernel, self.data.grid, self.plan.periodic))
        if self._has_parameters():
            with watched(
                self.plan.progress, self.plan.max_iter, 0, self.plan.callback, _NAME
            ) as told:
                self._rounds(told)
        posterior, found = self.evidence.solve(self.x)
        return Found(
            self.kernel, self.likelihood, self.mean, self.evidence.shape, posterior, found,
            self.status, self.message, self.steps, tuple(self.values),
        )  # fmt: skip

    def _has_parameters(self) -> bool:
        return self.plan.optimize and self.evidence.layout.size > 0

    def _rounds(self, told: Told) -> None:
        for _ in range(MOST_ROUNDS):
            if not self._round(told):
                return
            self.status, self.message = "max_steps", "its frequencies have not settled"
            if self.steps >= self.plan.max_iter:
                return

    def _build(self, shape: tuple[int, ...]) -> None:
        b, plan = self.b, self.plan
        self.evidence = GridEvidence(
            self.kernel,
            shape,
            tuple(self.data.grid.spacing),
            observations(b, self.data, self.likelihood, shape),
            mean=self.mean,
            fit_mean=plan.fit_mean,
            threshold=plan.threshold,
            max_frequencies=plan.max_frequencies,
            tol=max(1e-8, 100.0 * b.eps),
        )
        _require_memory(b, self.evidence)
        self.x = self.evidence.start()

    def _round(self, told: Told) -> bool:
        """One minimisation at fixed frequencies; whether another one has to follow."""
        evidence, plan, done, first = self.evidence, self.plan, self.steps, self.x
        left, outgrown = None, False
        if plan.time_limit is not None:
            left = max(plan.time_limit - (time.perf_counter() - self.began), 0.0)

        def tell(p: Progress) -> bool | None:
            nonlocal outgrown
            elapsed = time.perf_counter() - self.began
            if told is not None and told(p._replace(step=p.step + done, elapsed=elapsed)):
                return True
            outgrown = self._cramped(p.x) or self._missing(p.x) > SLACK * evidence.basis.cols
            return outgrown

        result = minimise(
            _without_empty(self.b, evidence, self.data),
            first,
            max_steps=plan.max_iter - done,
            gtol=plan.tol,
            ftol=1e-3 * plan.tol,
            time_limit=left,
            callback=tell,
        )
        if result.status == "failed" and not np.isfinite(result.value):
            raise ValueError(
                f"the free energy can't be evaluated at the start ({result.message}); give other "
                "starting values of the kernel, for example a smaller variance"
            )
        self.values += result.values
        self.steps += result.steps
        self.status, self.message = result.status, result.message
        self._go_to(result.x)
        if not outgrown and result.status != "converged":
            return False
        if outgrown:
            self._shorten(first)
        again = self._choose_anew(outgrown)
        if outgrown and not again:
            self.status = "failed"
            self.message = (
                f"max_frequencies={plan.max_frequencies} leaves no room for the detail that the "
                "data ask for: raise it or the threshold, or take a coarser grid"
            )
        return again

    def _shorten(self, first: Array) -> None:
        """Go back towards the start of the round until few frequencies are missing, but some.

        Little by little, because with too few of them the lengthscale runs away to short ones.
        """
        last, length, now = self.x, 1.0, self.evidence.basis.cols
        while self._missing(self.x) > GROWTH * now and length > 0.01:
            before, length = self.x, 0.7 * length
            self._go_to(first + length * (last - first))
            if not self._missing(self.x):
                self._go_to(before)
                break
        if self._missing(self.x) + now > self.plan.max_frequencies:
            self._go_to(first)

    def _go_to(self, x: Array) -> None:
        self.x, values = x, self._values(x)
        self.kernel = self.kernel.with_theta(_flat(self.kernel, values))
        self.likelihood = self.likelihood.with_theta(_flat(self.likelihood, values))
        self.mean = np.asarray(values["mean"])

    def _choose_anew(self, outgrown: bool) -> bool:
        """Padding and frequencies of the present kernel, where those in use don't suit it; whether
        they were changed."""
        if self._cramped(self.x):
            self._build(padded_shape(self.kernel, self.data.grid, self.plan.periodic))
            return True
        changed = outgrown and self.evidence.retain(self.kernel, also=True)
        if not outgrown and 2 * self._needed(self.x).cols < self.evidence.basis.cols:
            self.shrunk += 1
            changed = self.shrunk <= MOST_SHRINKS and self.evidence.retain(self.kernel)
        _require_memory(self.b, self.evidence)
        return changed

    def _cramped(self, x: Array) -> bool:
        """Whether the kernel at x reaches much further than the padding."""
        grid, now = self.data.grid, self.evidence.shape
        kernel = self.kernel.with_theta(_flat(self.kernel, self._values(x)))
        needed = padded_shape(kernel, grid, self.plan.periodic)
        return any(
            wanted - n > (1.0 + GROWTH) * (there - n)
            for n, wanted, there in zip(grid.shape, needed, now, strict=True)
        )

    def _needed(self, x: Array) -> Hartley:
        """The frequencies that the kernel at x needs."""
        b, evidence = self.b, self.evidence
        theta = b.asarray(_flat(self.kernel, self._values(x)))
        s = b.to_host(spectrum(self.kernel, theta, evidence.where, evidence.shape))
        return Hartley.of_spectrum(s.reshape(evidence.shape), evidence.threshold)

    def _missing(self, x: Array) -> int:
        """How many frequencies that the kernel at x needs are not retained."""
        return len(np.setdiff1d(self._needed(x).places, self.evidence.basis.places))

    def _values(self, x: Array) -> dict[str, np.ndarray]:
        named = self.evidence.named(x)
        return {k: np.asarray(self.b.to_host(a), dtype=np.float64) for k, a in named.items()}


def _flat(owner: Any, values: dict[str, np.ndarray]) -> np.ndarray:
    parts = [np.ravel(values[block.name]) for block in owner.blocks()]
    return np.concatenate(parts) if parts else np.zeros(0)


def _without_empty(
    b: Backend, evidence: GridEvidence, data: Cells
) -> Callable[[Array], tuple[Array, Array]]:
    """The objective, with the means of fields without events held where they are."""
    where = evidence.layout.slices()
    held = np.ones(evidence.layout.size)
    if "mean" in where:
        held[where["mean"]] = np.ravel(data.totals()[0] > 0.0)
    if held.all():
        return evidence.value_and_grad
    mask = b.asarray(held)

    def value_and_grad(x: Array) -> tuple[Array, Array]:
        f, g = evidence.value_and_grad(x)
        return f, mask * g

    return value_and_grad


def _require_memory(b: Backend, evidence: GridEvidence) -> None:
    fields = math.prod(evidence.data.y.shape[:-1])
    R = evidence.basis.cols
    b.require_memory(
        (10 * fields + 8) * R * R * b.itemsize,
        f"{fields} posterior(s) of {R} frequencies",
        "fit fewer fields at once, take a coarser grid, or raise threshold",
    )


def check_parameters(model: Any) -> None:
    """Raise ``ValueError`` where a setting of the search is impossible."""
    for name, need in (("threshold", 1.0), ("tol", np.inf), ("time_limit", np.inf)):
        value = getattr(model, name)
        if name == "time_limit" and value is None:
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, Real)
            or not 0.0 <= float(value) <= need
        ):
            limit = "of 0 or more" if need == np.inf else f"of 0 to {need:g}"
            raise ValueError(f"{name}={value!r} was given; expected a number {limit}")
    for name, least in (("max_iter", 0), ("max_frequencies", 1)):
        value = getattr(model, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name}={value!r} was given; expected an integer of {least} or more")


def say_how_it_ended(found: Found, max_iter: int) -> None:
    """Warn of a fit that ended early."""
    if found.status == "max_steps":
        warnings.warn(
            f"the search has not converged after {found.steps} steps ({found.message}); raise "
            f"max_iter={max_iter} to go on",
            ConvergenceWarning,
            stacklevel=4,
        )
    elif found.status in ("interrupted", "time_limit", "failed"):
        warnings.warn(
            f"the fit ended early ({found.message}); the best state of {found.steps} steps is kept",
            ConvergenceWarning,
            stacklevel=4,
        )
    if not found.result.converged.all():
        warnings.warn(
            f"the posterior was not found to the tolerance: {found.result.message}",
            ConvergenceWarning,
            stacklevel=4,
        )


__all__ = ["Found", "Plan", "check_parameters", "say_how_it_ended", "search"]
