"""Newton's method for the exact GPLVM, and a certificate of where it ended.

Each step is conjugate gradients in a trust region, on the Hessian as a matrix
(:mod:`gplvm_xp.objectives.exact_hessian`), with flat directions projected out
(:mod:`gplvm_xp.estimators._gauge`). Where the gradient vanishes, the smallest eigenvalue of the
Hessian is looked at: from a saddle point the search goes on down its most negative direction.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from gplvm_xp import backend, optim
from gplvm_xp._typing import Array
from gplvm_xp.estimators._gauge import flat_directions
from gplvm_xp.latents import Points, RowPrior
from gplvm_xp.objectives import ExactObjective
from gplvm_xp.objectives.exact_hessian import HessianPoint
from gplvm_xp.optim import Certificate, NewtonProgress, OptResult, Progress, newton_krylov
from gplvm_xp.optim.base import Status

NEWTON = ("newton", "lbfgs+newton")
# Rounding of the objective in units of its spacing: hundreds were seen at condition numbers of 1e6.
ROUNDING = 1e4
# L-BFGS before Newton: until two steps in a row gain less than this, relative, or so many steps,
# but no more than half of all.
WARM_FTOL, WARM_STEPS = 1e-5, 200
ESCAPES = 10
# What is projected out as flat must be flatter than all else by this factor.
FLAT = 1e-3
Callback = Callable[[Progress], bool | None]


class Limits(Protocol):
    """How far a search goes, as in :class:`gplvm_xp.estimators._fit.Search`."""

    @property
    def optimizer(self) -> str: ...

    @property
    def tol(self) -> float: ...

    def time_left(self) -> float | None: ...


def second_order(
    objective: ExactObjective, s: Limits, steps: int, callback: Callback | None
) -> OptResult:
    """Minimise an exact objective by one of :data:`NEWTON`; the result has a certificate.

    Parameters
    ----------
    steps : int
        Outer iterations, those of L-BFGS among them.

    Raises
    ------
    ValueError
        If the working precision is single, or the latents are tied together.
    NotImplementedError
        If the kernel or a prior has no second derivatives.
    """
    _require_curvatures(objective)
    run = _Run(objective, s, steps, callback)
    status: Status
    try:
        status, message = run.search()
    except KeyboardInterrupt:
        status, message = "interrupted", "interrupted by the keyboard; the best state is kept"
    return run.result(status, message)


class _Run:
    """The record of one search over its phases; alive no longer than the call."""

    def __init__(
        self, objective: ExactObjective, s: Limits, steps: int, callback: Callback | None
    ) -> None:
        self.objective, self.s, self.callback = objective, s, callback
        self.steps = self.left = steps
        self.b = objective.backend
        self.values: list[float] = []
        self.norms: list[float] = []
        self.evaluations = self.hvps = self.escaped = 0
        # One tuple, replaced whole: an interrupt can't leave a point with another one's value.
        self.best: tuple[Array, float, float] = (objective.start(), math.inf, math.inf)
        self.certificate: Certificate | None = None
        self.began = time.perf_counter()

    def at(self, x: Array) -> HessianPoint:
        self.evaluations += 1
        return HessianPoint(self.objective, x, flat_directions)

    def watch(self, progress: NewtonProgress) -> bool | None:
        """Note an accepted step, and tell the user's callback of it."""
        if self.values and progress.x is self.best[0]:
            return None
        value, norm = (a.item() for a in (progress.value, progress.grad_norm))
        self.best = (progress.x, value, norm)
        self.values.append(value)
        self.norms.append(norm)
        if self.callback is None:
            return None
        elapsed = time.perf_counter() - self.began
        return self.callback(
            Progress(len(self.values) - 1, self.evaluations, value, norm, progress.x, elapsed)
        )

    def search(self) -> tuple[Status, str]:
        if self.s.optimizer == "lbfgs+newton":
            first = self._warm()
            if first.status not in ("converged", "max_steps"):
                return first.status, first.message
        x = self.best[0]
        while True:
            found = newton_krylov(
                self.at,
                x,
                gtol=self.s.tol,
                max_steps=self.left,
                rounding=ROUNDING,
                order=max(group.Y.shape[0] for group in self.objective.groups),
                time_limit=self.s.time_left(),
                callback=self.watch,
            )
            self.left -= len(found.values) - 1
            value = found.hvps
            self.hvps += int(value)
            match found.status:
                case "max_steps":
                    return "max_steps", f"all {self.steps} steps taken"
                case "stopped" | "interrupted" | "time_limit" as early:
                    return early, found.message
            if not np.isfinite(found.value):
                return "failed", found.message
            self.certificate, point, v = self._certify()
            lower = None if v is None or self.escaped == ESCAPES else self._below(point, v)
            if lower is None:
                status: Status = "failed" if found.status == "failed" else "converged"
                return status, f"{found.message}; {self.certificate.message}"
            self.escaped += 1
            x = lower

    def _warm(self) -> OptResult:
        found = optim.minimise(
            self.objective.value_and_grad,
            self.objective.start(),
            method="lbfgs",
            max_steps=min(WARM_STEPS, self.left // 2),
            gtol=self.s.tol,
            ftol=WARM_FTOL,
            time_limit=self.s.time_left(),
            callback=self.callback,
        )
        self.best = (found.x, found.value, found.grad_norm)
        self.values, self.norms = list(found.values), list(found.grad_norms)
        self.evaluations += found.evaluations
        self.left -= found.steps
        return found

    def _certify(self) -> tuple[Certificate, HessianPoint, Array | None]:
        """What is known of the best point, and where it is no minimum a direction down."""
        x = self.best[0]
        point = self.at(x)
        # The whole gradient, flat directions included.
        norm = self.b.to_host(self.b.xp.max(self.b.xp.abs(point.exact.gradient()))).item()
        metric = point.metric()
        ritz, residual, v = smallest(point)
        largest = self.b.xp.max(self.b.xp.abs(self.b.diagonal(metric.hessian)))
        floor = 10.0 * self.b.eps * x.shape[0] * self.b.to_host(largest).item()
        bent = self.b.to_host(metric.bent).item()
        definite = metric.definite and ritz - residual > floor
        certified = definite and norm <= self.s.tol and bent <= FLAT * ritz
        if certified:
            message = f"certified local minimum{_up_to(point)}: smallest eigenvalue {ritz:.3g}"
        elif definite:
            message = (
                f"not certified: the Hessian is positive definite, but the largest gradient entry "
                f"is {norm:.3g} and tol={self.s.tol:g}; flat directions have a curvature of "
                f"{bent:.1g}"
            )
        else:
            message = (
                f"not certified: the Hessian's smallest eigenvalue, {ritz:.3g} within "
                f"{max(residual, floor):.1g}, is not clearly above 0; a direction may be flat, or "
                "this is a saddle point"
            )
        certificate = Certificate(
            certified, norm, ritz, residual, point.directions.shape[1], self.escaped, self.hvps,
            message,
        )  # fmt: skip
        return certificate, point, None if metric.definite else v

    def _below(self, point: HessianPoint, direction: Array) -> Array | None:
        """A lower point on the line through a saddle point, both ways, or None."""
        b = self.b
        scaled = direction / b.xp.sqrt(b.xp.sum(direction * point.scale(direction)))
        bend = b.to_host(b.xp.sum(scaled * point.hessian(scaled))).item()
        slack = ROUNDING * b.eps * max(1.0, abs(self.best[1]))
        for k in range(12):
            t = 4.0 * 0.5**k
            gain = -0.5 * bend * t * t
            if not gain > 4.0 * slack:
                return None
            trials = [self.best[0] + sign * t * scaled for sign in (1.0, -1.0)]
            self.evaluations += 2
            # One after the other: the points share a buffer.
            values = [
                b.to_host(HessianPoint(self.objective, x, flat_directions).value).item()
                for x in trials
            ]
            if min(values) < self.best[1] - 0.25 * gain:
                return trials[0] if values[0] <= values[1] else trials[1]
        return None

    def result(self, status: Status, message: str) -> OptResult:
        """The best state, and what is known of it."""
        x, value, norm = self.best
        certificate = self.certificate
        if certificate is None or status not in ("converged", "failed"):
            certificate = Certificate(
                False, norm, n_escaped=self.escaped, hvps=self.hvps,
                message=f"not certified: the search ended early ({message})",
            )  # fmt: skip
        return OptResult(
            x=x,
            value=value,
            grad_norm=norm,
            steps=max(len(self.values) - 1, 0),
            evaluations=self.evaluations,
            status=status,
            message=message,
            values=tuple(self.values),
            grad_norms=tuple(self.norms),
            certificate=certificate,
        )


def smallest(point: HessianPoint) -> tuple[float, float, Array]:
    """The smallest eigenvalue of the Hessian across the flat directions.

    By Lanczos' method on the inverse where there is one: some twenty solves. A Hessian that is not
    positive definite is decomposed.

    Returns
    -------
    ritz : float
        vᵀ H v, with the exact Hessian-vector product.
    residual : float
        ‖H v − ritz v‖.
    v : array (size,)
        Unit vector.
    """
    b = backend.of(point.x)
    xp = b.xp
    v = _lanczos(point) if point.metric().definite else point.lowest()
    v = point.across(v)
    v = v / xp.sqrt(xp.sum(v * v))
    # Eigenvectors have no sign of their own.
    v = xp.where(xp.max(v) >= -xp.min(v), v, -v)
    Hv = point.across(point.exact.hvp(v))
    ritz = b.to_host(xp.sum(v * Hv)).item()
    return ritz, b.to_host(xp.sqrt(xp.sum((Hv - ritz * v) ** 2))).item(), v


def _lanczos(point: HessianPoint) -> Array:
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    b = backend.of(point.x)
    d = point.x.shape[0]

    def operator(function: Callable[[Array], Array]) -> Any:
        def times(u: np.ndarray) -> np.ndarray:
            return b.to_host(function(b.asarray(np.ravel(u)))).astype(np.float64)

        return LinearOperator((d, d), matvec=times, dtype=np.float64)

    start = np.random.default_rng(0).standard_normal(d)
    try:
        v = eigsh(
            operator(point.hessian), k=1, sigma=0.0, which="LM", OPinv=operator(point.solve),
            v0=start, tol=1e-8,
        )[1]  # fmt: skip
    except ArpackError:
        return point.lowest()
    return b.asarray(v[:, 0])


def _up_to(point: HessianPoint) -> str:
    """Words for the flat directions."""
    U = point.directions
    if not U.shape[1]:
        return ""
    b, objective = backend.of(U), point.exact.objective
    parameters = U[: U.shape[0] - math.prod(objective.positions.shape), :]
    moved = parameters.shape[0] and b.to_host(b.xp.max(b.xp.abs(parameters))).item() > 1e-9
    if objective.latent_prior is None or moved:
        return " up to motions that change nothing"
    return " up to rotations"


def _require_curvatures(objective: ExactObjective) -> None:
    if objective.backend.itemsize < 8:
        raise ValueError(
            "second-order methods were asked for in float32, which loses the gradient long before "
            "they end; expected dtype='float64': use it, or optimizer='scipy'"
        )
    if not isinstance(objective.positions, Points) or isinstance(objective.latent_prior, RowPrior):
        raise ValueError(
            "a second-order method was asked for, and the latents are tied together by a "
            "back-constraint or a prior of all rows; expected free latents: use "
            "optimizer='scipy'"
        )
    objective.kernel.curvature()
    priors = {**objective.priors, "X": objective.latent_prior}
    for prior in priors.values():
        if prior is not None:
            prior.curvatures(np.ones(1))


__all__ = ["NEWTON", "second_order", "smallest"]
