"""SciPy's L-BFGS-B on the host, behind one bridge to wherever the objective lives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.optim.base import Method, Run
from gplvm_xp.optim.lbfgs import LBFGS

_NO_LIMIT = 2**31 - 1


class _Point(NamedTuple):
    z: np.ndarray  # (d,) on the host, SciPy's own numbers
    x: Array  # (d,) where the objective lives
    f: float
    g: np.ndarray  # (d,)
    norm: float


class _Bridge:
    """The objective as SciPy wants it: one copy each way per evaluation, failures as a wall."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.accepted: _Point | None = None
        self.walls = 0
        self._last: _Point | None = None

    def begin(self, x0: Array) -> None:
        z = np.array(self.run.backend.to_host(x0), dtype=np.float64)
        point = self._evaluate(z, x0)
        self.run.start(x0, point.f, point.norm)
        self.accepted = point

    def __call__(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        origin = self.accepted
        assert origin is not None
        if np.array_equal(z, origin.z):
            return origin.f, origin.g.copy()
        # A copy: SciPy reuses its buffer, and a library may share a host array's memory.
        z = np.array(z, dtype=np.float64)
        point = self._evaluate(z, self.run.backend.asarray(z))
        if not self.run.seen(point.x, point.f, point.norm):
            # An infinity would pass SciPy's test of relative reduction: a finite wall does not.
            self.walls += 1
            return origin.f + 10.0 * (1.0 + abs(origin.f)), np.zeros_like(z)
        self._last = point
        return point.f, point.g.copy()

    def callback(self, intermediate_result: Any) -> None:
        origin, z = self.accepted, intermediate_result.x
        assert origin is not None
        if np.array_equal(z, origin.z):
            return
        if self._last is None or not np.array_equal(z, self._last.z):
            self(z)
        point = self._last
        if point is None or not np.array_equal(z, point.z):
            return
        clean, self.walls, self.accepted = self.walls == 0, 0, point
        self.run.accept(point.x, point.f, point.norm, ends=clean)

    def _evaluate(self, z: np.ndarray, x: Array) -> _Point:
        b = self.run.backend
        f, g = self.run.evaluate(x)
        packed = b.to_host(b.xp.concat([b.xp.reshape(f, (1,)), g])).astype(np.float64)
        return _Point(z, x, packed.item(0), packed[1:], np.max(np.abs(packed[1:])).item())


@dataclass(frozen=True)
class ScipyLBFGSB(Method):
    """SciPy's L-BFGS-B, without bounds.

    Costs about 0.2 µs a parameter and evaluation on the host, beside the objective, and one copy of
    d numbers to the objective's device and of d + 1 back per evaluation.

    Attributes
    ----------
    memory : int
        Pairs of vectors remembered (SciPy's ``maxcor``).
    max_line_search : int
        Evaluations of one line search (``maxls``).

    Notes
    -----
    SciPy's own tests are switched off: the values and gradients of accepted points are tested in
    :class:`~gplvm_xp.optim.base.Run`, so SciPy returns by itself only where its line search gives
    up: near the minimum, where rounding hides the decrease, or where the edge of the domain keeps
    the slope from flattening. From there :class:`~gplvm_xp.optim.lbfgs.LBFGS`, whose line search
    copes with both, goes on from the best point with an empty memory, once.
    """

    memory: int = 20
    max_line_search: int = 20

    def search(self, run: Run, x0: Array) -> str:
        from scipy import optimize

        bridge = _Bridge(run)
        bridge.begin(x0)
        options = {
            "maxcor": self.memory,
            "maxls": self.max_line_search,
            "ftol": 0.0,
            "gtol": 0.0,
            "maxiter": _NO_LIMIT,
            "maxfun": _NO_LIMIT,
        }
        assert bridge.accepted is not None
        out = optimize.minimize(
            bridge, bridge.accepted.z, jac=True, method="L-BFGS-B",
            callback=bridge.callback, options=options,
        )  # fmt: skip
        reason = LBFGS(memory=self.memory).descend(run, bridge.accepted.x)
        return f"{reason} (SciPy: {out.message})"


__all__ = ["ScipyLBFGSB"]
