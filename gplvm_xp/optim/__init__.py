"""Optimisers: SciPy's L-BFGS-B on the host, L-BFGS and Adam on the device, BFGS for batches, and
Newton-Krylov where there are Hessian-vector products."""

from __future__ import annotations

import dataclasses
from typing import Any

from gplvm_xp._typing import Array
from gplvm_xp.optim.adam import Adam
from gplvm_xp.optim.base import (
    Callback,
    Limits,
    Method,
    Objective,
    OptResult,
    Progress,
    Status,
    finish,
)
from gplvm_xp.optim.batched import BatchObjective, BatchResult, minimise_batch
from gplvm_xp.optim.certificate import Certificate
from gplvm_xp.optim.lbfgs import LBFGS
from gplvm_xp.optim.newton import NewtonProgress, NewtonResult, Point, newton_krylov
from gplvm_xp.optim.scipy import ScipyLBFGSB

_NAMED: dict[str, type[Method]] = {"scipy": ScipyLBFGSB, "lbfgs": LBFGS, "adam": Adam}


def minimise(
    fun: Objective,
    x0: Array,
    *,
    method: str | Method = "scipy",
    max_steps: int = 1000,
    gtol: float = 1e-5,
    ftol: float | None = 1e-9,
    time_limit: float | None = None,
    callback: Callback | None = None,
    **options: Any,
) -> OptResult:
    """Minimise a function of one vector, wherever the vector is.

    Parameters
    ----------
    fun : callable
        ``fun(x) -> (f, g)``: the value, 0-d, and the gradient, (d,), on x's device. Where the
        objective can't be evaluated, f is +inf (or NaN) and nothing is raised; g is then ignored.
        It must not write to x.
    x0 : array (d,)
        The start; its library, device and dtype are those of the result.
    method : {"scipy", "lbfgs", "adam"} or Method
        "scipy" runs on the host, the others where ``x0`` is. An object such as
        ``LBFGS(memory=20)`` carries its own settings.
    max_steps : int
        Accepted steps.
    gtol : float
        Converged where the largest absolute gradient entry is at most this.
    ftol : float or None
        Converged where two steps in a row, neither shortened by a failed evaluation, decrease the
        value by at most this relative to ``max(|f|, 1)`` (never less than the dtype's spacing).
        None switches the test off. Adam does not use it.
    time_limit : float or None
        Seconds after which no further evaluation begins; the start is always evaluated.
    callback : callable, optional
        ``callback(progress)`` with a :class:`Progress` at the start (step 0) and after every
        accepted step; a true answer stops. It is never a reason for an evaluation.
    **options
        Settings of a method given by name, such as ``memory=20``.

    Returns
    -------
    OptResult
        The best point evaluated and why the search ended. Ctrl-C, in ``fun`` or in the callback,
        ends with status "interrupted" and the best point so far; a start that can't be evaluated
        ends with status "failed".

    Raises
    ------
    ValueError
        If the method's name, a limit, or the shape of ``x0`` or of what ``fun`` returns is wrong.
    TypeError
        If the method has no such option, or ``x0`` is not real floating.
    """
    limits = Limits(max_steps, gtol, ftol, time_limit, callback)
    return finish(_configured(method, options), fun, x0, limits)


def _configured(method: str | Method, options: dict[str, Any]) -> Method:
    if isinstance(method, Method):
        if options:
            raise TypeError(
                f"options {sorted(options)} were given beside {method!r}; expected them inside "
                "it: set them where the method object is made"
            )
        return method
    if method not in _NAMED:
        raise ValueError(
            f"method={method!r} was given; expected one of {', '.join(map(repr, _NAMED))} or a "
            "Method object"
        )
    kind: Any = _NAMED[method]
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(
            f"options {unknown} were given with method={method!r}; expected some of {known}"
        )
    configured: Method = kind(**options)
    return configured


__all__ = [
    "LBFGS",
    "Adam",
    "BatchObjective",
    "BatchResult",
    "Callback",
    "Certificate",
    "Limits",
    "Method",
    "NewtonProgress",
    "NewtonResult",
    "Objective",
    "OptResult",
    "Point",
    "Progress",
    "ScipyLBFGSB",
    "Status",
    "minimise",
    "minimise_batch",
    "newton_krylov",
]
