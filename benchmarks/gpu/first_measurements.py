"""The first things to measure on a GPU, one small function each.

A measurement takes a :class:`~benchmarks.gpu.machine.Machine` and the largest n allowed, and yields
rows of a table. What fails becomes a row too, so that a missing routine does not cost the others.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.linear_algebra import LOWER, UPPER, factors, inverses
from benchmarks.gpu.local import every_local_kernel, hessian_of_latents, local_likelihoods
from benchmarks.gpu.machine import Machine, Row, guarded, row
from benchmarks.gpu.psi import every_psi_kernel, psi_statistics
from benchmarks.gpu.variational import (
    every_sparse_product,
    gather_scatter,
    hessian_products,
    rate_maps,
)
from gplvm_xp.kernels import RBF, White
from gplvm_xp.objectives import ExactObjective, groups_of

Measurement = Callable[[Machine, int], Iterator[Row]]

# Calculated floors in seconds for q = 10 and D = 100, at 67 TFLOP/s and 4.3 TB/s.
FLOORS = {
    "build K": {10_000: 0.31e-3, 50_000: 7.8e-3, 100_000: 31e-3},
    "contract G": {10_000: 0.43e-3, 50_000: 10.8e-3, 100_000: 43e-3},
    "rank update": {10_000: 0.33e-3, 50_000: 8.3e-3, 100_000: 33e-3},
    "solve": {10_000: 0.66e-3, 50_000: 16.7e-3, 100_000: 67e-3},
}


def _python(script: str, extra: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | extra, capture_output=True, text=True,
        timeout=300, check=True,
    )  # fmt: skip
    return done.stdout.split()


def start_up(m: Machine, max_n: int) -> Iterator[Row]:
    """Import, handles and the first kernel in a fresh process, with an empty and a filled cache."""
    script = (
        "import time; t0 = time.perf_counter(); import cupy; t1 = time.perf_counter();"
        "cupy.cuda.device.get_cublas_handle(); cupy.cuda.device.get_cusolver_handle();"
        "t2 = time.perf_counter();"
        "float((cupy.arange(2.0) + 1).sum()); t3 = time.perf_counter();"
        "print(t1 - t0, t2 - t1, t3 - t2)"
    )
    with tempfile.TemporaryDirectory() as cache:
        for state in ("cold", "warm"):
            out = _python(script, {"CUPY_CACHE_DIR": cache})
            for what, seconds in zip(("import", "handles", "first kernel"), out, strict=True):
                yield row(f"{what}, {state}", 0, float(seconds))


def _syrk(m: Machine, A: Any, C: Any, uplo: int, trans: int, what: str) -> Row:
    import cupy
    from cupy_backends.cuda.libs import cublas

    n, scalars = A.shape[0], np.array([1.0, 0.0])
    one, handle = scalars.ctypes.data, cupy.cuda.device.get_cublas_handle()
    a, c = A.data.ptr, C.data.ptr
    seconds = m.median(lambda: cublas.dsyrk(handle, uplo, trans, n, n, one, a, n, one + 8, c, n))
    return row(what, n, seconds, float(n) ** 3)


def products(m: Machine, max_n: int) -> Iterator[Row]:
    """dgemm, dsyrk in both triangles, and the package's rank update, 16 384."""
    n = min(16_384, max_n)
    A, C = m.b.asarray(np.random.default_rng(0).normal(size=(n, n))), m.b.empty((n, n))
    yield row("dgemm", n, m.median(lambda: m.b.xp.matmul(A, A, out=C)), 2.0 * n**3)
    for uplo, side in ((LOWER, "lower"), (UPPER, "upper")):
        for trans, letter in enumerate("NT"):
            what = f"dsyrk {side} {letter}"
            yield guarded(what, n, partial(_syrk, m, A, C, uplo, trans, what))
    update = m.median(lambda: m.b.rank_update(C, A, 1.0, 0.0))
    yield row("rank update by strips of gemm", n, update, float(n) ** 3)


def _refusal(m: Machine, n: int, where: int, value: float, what: str) -> Row:
    xp, K = m.b.xp, m.b.empty((n, n))
    m.fill(K)
    K[where, where] = value
    L, ok = m.b.cholesky(K)
    finite = bool(m.b.to_host(xp.all(xp.isfinite(xp.tril(L)))))
    verdict = "accepted: WRONG" if bool(m.b.to_host(ok)) else "refused"
    return row(what, n, note=f"{verdict}; factor finite: {finite}")


def not_positive_definite(m: Machine, max_n: int) -> Iterator[Row]:
    """What potrf leaves, and what ``cholesky`` says, for a bad pivot, a NaN and an infinity."""
    n = min(5000, max_n)
    for value in (-1.0, float("nan"), float("inf")):
        for where in (0, n // 2, n - 1):
            what = f"pivot {where} is {value}"
            yield guarded(what, n, partial(_refusal, m, n, where, value, what))


def _problem(m: Machine, n: int, q: int, D: int) -> ExactObjective:
    rng = np.random.default_rng(1)
    X, Y = rng.normal(size=(n, q)), rng.normal(size=(n, D))
    kernel = RBF(1.0, tuple(2.0 + 0.1 * np.arange(q))) + White(0.05)
    return ExactObjective(kernel, groups_of(m.b, Y - Y.mean(0)), X, 0.5)


def _evaluation(m: Machine, n: int) -> Row:
    problem = _problem(m, n, 10, 100)
    x = problem.start()
    seconds = m.median(lambda: problem.value_and_grad(x), 5 if n < 20_000 else 1)
    f = float(m.b.to_host(problem.value_and_grad(x)[0]))
    ratio = seconds / (n**3 / 67e12)
    return row("value and gradient", n, seconds, float(n) ** 3, value=f, ratio=ratio)


def objective(m: Machine, max_n: int) -> Iterator[Row]:
    """A whole value and gradient, q = 10, D = 100; the ratio is to n³ flops at 67 TFLOP/s."""
    for n in (500, 1_000, 2_000, 4_000, 10_000, 47_000):
        if n <= max_n and m.fits(n, 1.2):
            yield guarded("value and gradient", n, partial(_evaluation, m, n))


def _against_floor(m: Machine, what: str, n: int, work: Callable[[], Any]) -> Row:
    seconds, floor = m.median(work), FLOORS.get(what, {}).get(n)
    more = {} if floor is None else {"floor": floor, "ratio": seconds / floor}
    return row(what, n, seconds, **more)


def _fused_at(m: Machine, n: int, q: int, D: int) -> Iterator[Row]:
    b, rng = m.b, np.random.default_rng(0)
    kernel = RBF(1.0, tuple(2.0 + 0.1 * np.arange(q)))
    theta, X = b.asarray(kernel.theta()), b.asarray(rng.normal(size=(n, q)))
    A, K, code = b.asarray(rng.normal(size=(n, D))), b.empty((n, n)), b.fused(kernel.cuda(q), q)
    measure = partial(_against_floor, m)

    def row_of(what: str, work: Callable[[], Any]) -> Row:
        return guarded(what, n, partial(measure, what, n, work))

    yield row_of("build K", lambda: code.gram(theta, X, None, out=K))
    b.cholesky(b.add_diagonal(K, 1.0))
    yield row_of("solve", lambda: b.cho_solve(K, A))
    code.gram(theta, X, None, out=K)
    yield row_of("rank update", lambda: b.rank_update(K, A, 0.5, -0.5))
    yield row_of("mirror", lambda: b.complete(K))
    pull = code.pullback
    yield row_of("contract G", lambda: pull(theta, X, None, K, symmetric=True))
    yield row_of("contract G, not symmetric", lambda: pull(theta, X, None, K))


def fused(m: Machine, max_n: int) -> Iterator[Row]:
    """The n² steps of an evaluation at q = 10 and D = 100, against their calculated floors."""
    for n in (10_000, 50_000):
        if n <= max_n and m.fits(n, 1.2):
            yield from _fused_at(m, n, 10, 100)


def _peak(m: Machine, n: int) -> Row:
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    # A fresh pool never gives memory back by itself, so its size is the high-water mark.
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        problem = _problem(m, n, 2, 12)
        f = float(m.b.to_host(problem.value_and_grad(problem.start())[0]))
        peak = pool.total_bytes()
        del problem
    pool.free_all_blocks()
    return row("peak pool", n, value=f, ratio=peak / (8.0 * n * n), GiB=peak / 2**30)


def peak_memory(m: Machine, max_n: int) -> Iterator[Row]:
    """High-water mark of the pool over one evaluation, as a ratio to 8 n² bytes."""
    for n in (8_000, 47_000, 100_000):
        if n <= max_n and m.fits(n, 1.2):
            yield guarded("peak pool", n, partial(_peak, m, n))


def _product_in_a_process(n: int, extra: dict[str, str], what: str) -> Row:
    script = (
        "import cupy, numpy as np, time;"
        f"h = np.random.default_rng(0).normal(size=({n}, {n})); a = cupy.asarray(h);"
        "c = a @ a; cupy.cuda.Device().synchronize(); t = time.perf_counter();"
        "[cupy.matmul(a, a, out=c) for _ in range(5)]; cupy.cuda.Device().synchronize();"
        "t = (time.perf_counter() - t) / 5; r = h[:1] @ h;"
        "print(t, float(np.linalg.norm(c[:1].get() - r) / np.linalg.norm(r)))"
    )
    seconds, error = map(float, _python(script, extra))
    return row(what, n, seconds, 2.0 * n**3, error_norm=error)


def emulated_double(m: Machine, max_n: int) -> Iterator[Row]:
    """dgemm with cuBLAS's emulated double precision switched on, in processes of their own."""
    n = min(8192, max_n)
    for strategy in ("off", "performant", "eager"):
        on = {"CUBLAS_EMULATE_DOUBLE_PRECISION": "1", "CUBLAS_EMULATION_STRATEGY": strategy}
        what, extra = f"dgemm, emulation {strategy}", {} if strategy == "off" else on
        yield guarded(what, n, partial(_product_in_a_process, n, extra, what))


def _sanitized(tool: str, check: str) -> Row:
    done = subprocess.run(
        [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu",
         "--kernels-only"], capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    return row(check, 0, note=f"exit status {done.returncode}: {' '.join(last)}")


def races(m: Machine, max_n: int) -> Iterator[Row]:
    """``compute-sanitizer`` over every kernel of the package, where the tool is installed."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        yield row("compute-sanitizer", 0, note="not installed")
        return
    for check in ("racecheck", "memcheck"):
        yield guarded(check, 0, partial(_sanitized, tool, check))


def every_kernel(m: Machine) -> None:
    """Run each kernel of the package once on small inputs; for the sanitizer."""
    rng, q = np.random.default_rng(0), 3
    kernel = RBF(1.0, (1.0, 2.0, 0.5)) + White(0.1)
    theta = m.b.asarray(kernel.theta())
    X, Z = m.b.asarray(rng.normal(size=(301, q))), m.b.asarray(rng.normal(size=(70, q)))
    code = m.b.fused(kernel.cuda(q), q)
    K, cross = code.gram(theta, X), code.gram(theta, X, Z)
    code.pullback(theta, X, None, K)
    code.pullback(theta, X, None, K, symmetric=True)
    code.pullback(theta, X, Z, cross)
    code.jvp(theta, X, Z, theta, X, Z)
    code.input_jacobian(theta, X, Z)
    code.theta_jacobian(theta, X, Z)
    m.b.to_host(m.b.complete(K))
    every_sparse_product(m)
    every_psi_kernel(m)
    every_local_kernel(m)


MEASUREMENTS: dict[str, Measurement] = {
    "start-up": start_up,
    "products": products,
    "not-positive-definite": not_positive_definite,
    "objective": objective,
    "fused": fused,
    "factors": factors,
    "inverses": inverses,
    "peak-memory": peak_memory,
    "rate-maps": rate_maps,
    "gather-scatter": gather_scatter,
    "hessian-products": hessian_products,
    "psi-statistics": psi_statistics,
    "local-likelihoods": local_likelihoods,
    "hessian-of-latents": hessian_of_latents,
    "emulated-double": emulated_double,
    "races": races,
}

__all__ = ["MEASUREMENTS", "Measurement", "every_kernel"]
