"""The contract of an optimiser, and what every optimiser shares: the record of one run.

A method is a frozen dataclass of its own settings with one function, :meth:`Method.search`. It asks
the :class:`Run` for evaluations and tells it the accepted steps; the run keeps the best state, the
clock, the callback and every test that ends a minimisation, so that all methods end alike.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.optim.certificate import Certificate

Status: TypeAlias = Literal[
    "converged", "max_steps", "stopped", "interrupted", "time_limit", "failed"
]
Objective: TypeAlias = Callable[[Array], tuple[Array, Array]]


class Progress(NamedTuple):
    """What a callback is told; everything in it has been computed already.

    Attributes
    ----------
    step : int
        Accepted steps so far; 0 at the start.
    evaluations : int
        Evaluations of the objective so far.
    value, grad_norm : float
        Objective and largest absolute entry of its gradient at the accepted point.
    x : array (d,)
        Best point so far, on the device of the start.
    elapsed : float
        Seconds since the minimisation began.
    """

    step: int
    evaluations: int
    value: float
    grad_norm: float
    x: Array
    elapsed: float


Callback: TypeAlias = Callable[[Progress], bool | None]


@dataclass(frozen=True)
class OptResult:
    """The end of a minimisation.

    Attributes
    ----------
    x : array (d,)
        Best point evaluated, in the library and on the device of the start.
    value, grad_norm : float
        Objective and largest absolute entry of its gradient at ``x``.
    steps, evaluations : int
        Accepted steps; evaluations of the objective.
    status : str
        "converged" is claimed by the gradient test or the ``ftol`` test only, at a point that was
        really evaluated. "failed": the start can't be evaluated, or no lower point was found;
        ``x`` is the best point all the same.
    message : str
        The reason, in words.
    values, grad_norms : tuple of float
        At the start and after each accepted step.
    certificate : Certificate or None
        What a second-order method has shown of ``x``.
    """

    x: Array
    value: float
    grad_norm: float
    steps: int
    evaluations: int
    status: Status
    message: str
    values: tuple[float, ...]
    grad_norms: tuple[float, ...]
    certificate: Certificate | None = None


@dataclass(frozen=True)
class Limits:
    """When a minimisation ends; see :func:`gplvm_xp.optim.minimise`."""

    max_steps: int = 1000
    gtol: float = 1e-5
    ftol: float | None = 1e-9
    time_limit: float | None = None
    callback: Callback | None = None

    def __post_init__(self) -> None:
        for name in ("max_steps", "gtol", "ftol", "time_limit"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name}={value!r} was given; expected a number >= 0")


class Finished(Exception):  # noqa: N818  (not an error: the way out of a foreign loop)
    """Raised by the run where a minimisation ends."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status: Status = status
        self.message = message


class Run:
    """The record of one minimisation: mutable, and alive no longer than the call.

    Parameters
    ----------
    fun : callable
        The objective.
    x0 : array (d,)
        The start.
    limits : Limits
        When to end.

    Raises
    ------
    ValueError
        If ``x0`` is not a vector with at least one entry.
    TypeError
        If ``x0`` is not real floating.
    """

    def __init__(self, fun: Objective, x0: Array, limits: Limits) -> None:
        self.backend = backend.of(x0)
        if x0.ndim != 1 or x0.shape[0] == 0:
            raise ValueError(
                f"x0 has shape {tuple(x0.shape)}; expected a vector with at least one entry: "
                "flatten the parameters into one"
            )
        if not self.backend.xp.isdtype(x0.dtype, "real floating"):
            raise TypeError(f"x0 has dtype {x0.dtype}; expected real floating: convert it")
        self.limits = limits
        self.evaluations = 0
        self.values: list[float] = []
        self.grad_norms: list[float] = []
        self._fun = fun
        self._began = time.perf_counter()
        self._small = False
        # One tuple, replaced whole: an interrupt can't leave a point with another one's value.
        self._best: tuple[Array, float, float] = (x0, math.inf, math.inf)

    @property
    def steps(self) -> int:
        """Accepted steps."""
        return max(len(self.values) - 1, 0)

    @property
    def ftol(self) -> float | None:
        """The relative decrease to end at; changes below the dtype's spacing can't be seen."""
        return None if self.limits.ftol is None else max(self.limits.ftol, self.backend.eps)

    def slack(self, value: float) -> float:
        """How far rounding may move the objective: differences below it carry no information."""
        return 64.0 * self.backend.eps * max(1.0, abs(value))

    def evaluate(self, x: Array) -> tuple[Array, Array]:
        """The objective at x: value (0-d) and gradient (d,), on the device, nothing read.

        Raises
        ------
        Finished
            If the time is up; no evaluation begins after that.
        ValueError
            If the objective returns other shapes.
        """
        limit = self.limits.time_limit
        if limit is not None and self.evaluations and self.elapsed() >= limit:
            raise Finished("time_limit", f"time_limit={limit:g} s reached")
        f, g = self._fun(x)
        self.evaluations += 1
        shapes = (getattr(f, "shape", None), getattr(g, "shape", None))
        if shapes != ((), x.shape):
            raise ValueError(
                f"the objective returned shapes {shapes}; expected a 0-d value and a gradient of "
                f"shape {tuple(x.shape)}"
            )
        return f, g

    def seen(self, x: Array, value: float, grad_norm: float) -> bool:
        """Note an evaluated point; whether its value and gradient are finite."""
        if not (math.isfinite(value) and math.isfinite(grad_norm)):
            return False
        if (value, grad_norm) < self._best[1:]:
            self._best = (x, value, grad_norm)
        return True

    def start(self, x: Array, value: float, grad_norm: float) -> None:
        """Note the evaluated start.

        Raises
        ------
        Finished
            If it can't be evaluated, or is an end already.
        """
        if not self.seen(x, value, grad_norm):
            what = "gradient" if math.isfinite(value) else "value"
            self.values, self.grad_norms = [math.inf], [math.inf]
            raise Finished(
                "failed",
                f"the objective can't be evaluated at the start: its {what} is not finite; "
                "start from another point",
            )
        self._note(x, value, grad_norm, ends=False)

    def accept(self, x: Array, value: float, grad_norm: float, *, ends: bool = True) -> None:
        """Note an accepted step, call the callback and test for an end.

        Parameters
        ----------
        x : array (d,)
            The new point, seen before.
        value, grad_norm : float
            Objective and largest absolute gradient entry there.
        ends : bool
            Whether a small decrease may be taken for convergence. It may not after a step that a
            failed evaluation shortened, nor in a method that is not monotone.

        Raises
        ------
        Finished
            If the minimisation ends here.
        """
        self._note(x, value, grad_norm, ends=ends)

    def _note(self, x: Array, value: float, grad_norm: float, ends: bool) -> None:
        limits = self.limits
        before = self.values[-1] if self.values else math.inf
        self.values.append(value)
        self.grad_norms.append(grad_norm)
        stop = limits.callback is not None and limits.callback(
            Progress(self.steps, self.evaluations, value, grad_norm, self._best[0], self.elapsed())
        )
        # One small step may only say that it was too short; two in a row tell of the objective.
        small_before, self._small = self._small, False
        if ends and self.ftol is not None:
            scale = max(abs(before), abs(value), 1.0)
            self._small = before - value <= self.ftol * scale
        if grad_norm <= limits.gtol:
            self._best = (x, value, grad_norm)
            raise Finished("converged", f"largest gradient entry {grad_norm:.3g} <= gtol")
        if self._small and small_before:
            self._best = (x, value, grad_norm)
            raise Finished("converged", "two steps in a row decreased the value by <= ftol")
        if stop:
            raise Finished("stopped", "stopped by the callback")
        if self.steps >= limits.max_steps:
            raise Finished("max_steps", f"max_steps={limits.max_steps} reached")

    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._began

    def result(self, status: Status, message: str) -> OptResult:
        """The best state with the reason of the end."""
        x, value, grad_norm = self._best
        return OptResult(
            x=x,
            value=value,
            grad_norm=grad_norm,
            steps=self.steps,
            evaluations=self.evaluations,
            status=status,
            message=message,
            values=tuple(self.values),
            grad_norms=tuple(self.grad_norms),
        )


class Method(ABC):
    """How to minimise: a frozen dataclass of settings."""

    @abstractmethod
    def search(self, run: Run, x0: Array) -> str:
        """Search until :class:`Finished` is raised, or return the reason for giving up."""


def finish(method: Method, fun: Objective, x0: Array, limits: Limits) -> OptResult:
    """Run a method to its end, whatever the end is.

    Only the first Ctrl-C is turned into a result: no signal handler is changed, so a second one,
    while the result is made or later, is Python's own ``KeyboardInterrupt``.
    """
    run = Run(fun, x0, limits)
    status: Status
    try:
        status, message = "failed", method.search(run, x0)
    except Finished as end:
        status, message = end.status, end.message
    except KeyboardInterrupt:
        status, message = "interrupted", "interrupted by the keyboard; the best state is kept"
    return run.result(status, message)


__all__ = [
    "Callback", "Finished", "Limits", "Method", "Objective", "OptResult", "Progress", "Run",
    "Status", "finish",
]  # fmt: skip
