"""The GPU under measurement: a backend, a clock, and matrices whose inverse can be checked."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = dict[str, Any]

# Dense, random and well conditioned: no unit can take a shortcut on such numbers, and rows can be
# made again for a check, so that one matrix in memory is enough.
_RANDOM = """
const long long r = i / n + row, c = i % n;
const unsigned long long lo = r < c ? r : c, hi = r < c ? c : r;
unsigned long long h = (lo + 1) * 0x9E3779B97F4A7C15ull ^ (hi + 1) * 0xC2B2AE3D27D4EB4Full;
h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9ull;
h = (h ^ (h >> 27)) * 0x94D049BB133111EBull;
h ^= h >> 31;
const double u = (double)(h >> 11) * 1.1102230246251565e-16;
k[i] = r == c ? 2.0 : (2.0 * u - 1.0) * scale;
"""


def row(
    what: str, n: int, seconds: float | None = None, flops: float | None = None, **more: Any
) -> Row:
    """One line of a table; a rate is added where flops are given."""
    out: Row = {"what": what, "n": n}
    if seconds is not None:
        out["seconds"] = seconds
        if flops is not None:
            out["tflops"] = flops / seconds / 1e12
    return out | more


def guarded(what: str, n: int, make: Callable[[], Row]) -> Row:
    """The row, or a row that says what went wrong."""
    try:
        return make()
    except Exception as error:  # a benchmark reports every kind of failure
        return row(what, n, error=f"{type(error).__name__}: {str(error)[:200]}")


@dataclass(frozen=True)
class Machine:
    """What a measurement needs.

    Attributes
    ----------
    b : Backend
        float64 backend of the GPU.
    elapsed : callable
        ``elapsed(work) -> seconds`` of the device's work, waiting for its end.
    """

    b: Any
    elapsed: Callable[[Callable[[], Any]], float]

    def fits(self, n: int, matrices: float) -> bool:
        """Whether so many n × n matrices are still free."""
        have = self.b.memory_available()
        return have is None or have > matrices * 8 * n * n

    def median(self, work: Callable[[], Any], repeats: int = 5, before: Any = None) -> float:
        """Median seconds after one warm-up; ``before`` prepares each repeat, untimed."""
        times = []
        for _ in range(repeats + 1):
            if before is not None:
                before()
            times.append(self.elapsed(work))
        return statistics.median(times[1:])

    def fill(self, K: Any, first_row: int = 0) -> None:
        """Write rows of the random symmetric positive definite matrix of order ``K.shape[1]``."""
        n = K.shape[1]
        kernel = self.b.launcher.elementwise(
            "int64 n, int64 row, float64 scale", "raw T k", _RANDOM, "random_spd", ""
        )
        step = max(1, 2**28 // n)
        for i0 in range(0, K.shape[0], step):
            rows = K[i0 : i0 + step, :]
            kernel(n, first_row + i0, 0.5 / n**0.5, rows, size=rows.shape[0] * n)

    def multiply(self, v: Any) -> Any:
        """The random matrix times v (n, r), by strips of rows."""
        n = v.shape[0]
        step = max(1, 2**26 // n)
        parts = []
        for i0 in range(0, n, step):
            strip = self.b.empty((min(step, n - i0), n))
            self.fill(strip, i0)
            parts.append(strip @ v)
        return self.b.xp.concat(parts)

    def probe(self, n: int) -> Any:
        """Random vectors (n, 4)."""
        return self.b.asarray(np.random.default_rng(0).normal(size=(n, 4)))

    def factor_error(self, L: Any, upper: bool = False) -> float:
        """‖(L Lᵀ - K) v‖ / ‖K v‖ for the row-ordered lower factor (or its transpose)."""
        xp, n = self.b.xp, L.shape[0]
        v, step = self.probe(n), max(1, 2**26 // n)
        half = 0.0 * v
        strips = [(i0, min(i0 + step, n)) for i0 in range(0, n, step)]

        def part(i0: int, i1: int) -> Any:
            rows = L[i0:i1, :]
            return xp.triu(rows, k=i0) if upper else xp.tril(rows, k=i0)

        if upper:
            half = xp.concat([part(*s) @ v for s in strips])
            out = 0.0 * v
            for i0, i1 in strips:
                out = out + xp.matrix_transpose(part(i0, i1)) @ half[i0:i1, :]
        else:
            for i0, i1 in strips:
                half = half + xp.matrix_transpose(part(i0, i1)) @ v[i0:i1, :]
            out = xp.concat([part(*s) @ half for s in strips])
        return self._relative(out, self.multiply(v))

    def inverse_error(self, S: Any, upper: bool = False, full: bool = False) -> float:
        """‖K S v - v‖ / ‖v‖ for an inverse given by one triangle, or whole."""
        xp, n = self.b.xp, S.shape[0]
        v, step = self.probe(n), max(1, 2**26 // n)
        out = 0.0 * v
        for i0 in range(0, n, step):
            i1 = min(i0 + step, n)
            rows = S[i0:i1, :]
            if full:
                spread = 0.0 * v
                spread[i0:i1, :] = rows @ v
                out = out + spread
                continue
            own = xp.triu(rows, k=i0) if upper else xp.tril(rows, k=i0)
            rest = xp.triu(rows, k=i0 + 1) if upper else xp.tril(rows, k=i0 - 1)
            out = out + xp.matrix_transpose(rest) @ v[i0:i1, :]
            out[i0:i1, :] += own @ v
        return self._relative(self.multiply(out), v)

    def _relative(self, got: Any, expected: Any) -> float:
        xp = self.b.xp
        top, bottom = xp.sum((got - expected) ** 2), xp.sum(expected**2)
        return float(self.b.to_host(xp.sqrt(top / bottom)))


def gpu_machine() -> Machine:
    """The current CUDA device."""
    import cupy

    from gplvm_xp import backend

    def elapsed(work: Callable[[], Any]) -> float:
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        work()
        stop.record()
        stop.synchronize()
        return float(cupy.cuda.get_elapsed_time(start, stop)) * 1e-3

    return Machine(backend.get("cupy"), elapsed)


__all__ = ["Machine", "Row", "gpu_machine", "guarded", "row"]
