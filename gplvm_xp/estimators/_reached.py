"""Where a search with inducing inputs is, on the host; and at its end, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.estimators._fit import double
from gplvm_xp.kernels import Kernel
from gplvm_xp.objectives.bayesian import InducingObjective, Observed, Values
from gplvm_xp.optim import OptResult


class Reached(NamedTuple):
    """A point of a search, on the host; S is None where the latents are points."""

    kernel: Kernel
    noise: float
    mu: np.ndarray
    S: np.ndarray | None
    Z: np.ndarray


def hopeless(M: int) -> Callable[[float, float], str]:
    """What to say where k(Z, Z) has no factors: see :func:`gplvm_xp.estimators._fit.descend`."""

    def text(_: float, share: float) -> str:
        return (
            f"k(Z, Z) of the {M} inducing inputs has no Cholesky factor at the start with a jitter "
            f"of up to {share:.0e} of the kernel's variance; use fewer or different inducing "
            "inputs, or check the kernel's starting values"
        )

    return text


def reached(b: Backend, objective: InducingObjective, result: OptResult) -> Reached:
    """Where a minimisation ended."""
    v = objective.values(result.x)

    def host(a: Array) -> np.ndarray:
        return np.array(b.to_host(a), dtype=np.float64)

    kernel = objective.kernel.with_theta(host(v.theta))
    noise = b.to_host(v.noise).astype(np.float64).item()
    return Reached(kernel, noise, host(v.mu), None if v.S is None else host(v.S), host(v.Z))


def exactly(
    b: Backend, Y: np.ndarray, objective: InducingObjective, result: OptResult
) -> tuple[Values, Any]:
    """Where a search ended, and its objective with the whole table, in float64."""
    wide = double(b)
    parts = (None if a is None else wide.asarray(b.to_host(a)) for a in objective.values(result.x))
    whole: Any = objective
    return Values(*parts), replace(whole, data=Observed.of(wide, Y))


__all__ = ["Reached", "exactly", "hopeless", "reached"]
