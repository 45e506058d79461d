"""What only a GPU can show: ``pytest -m gpu``.

Without a GPU every test is skipped with the reason; with ``GPLVM_XP_BACKENDS`` naming cupy it fails
instead, so that a run on a GPU cannot pass by skipping everything.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gplvm_xp import LocalGPLVM, backend, datasets, kernels
from gplvm_xp.kernels import (
    RBF,
    ActiveDims,
    Constant,
    Hexagonal,
    Linear,
    Matern32,
    Matern52,
    Periodic,
    Polynomial,
    RationalQuadratic,
    White,
)
from gplvm_xp.kernels.psi import RBFPsi
from gplvm_xp.neighbours import nearest
from gplvm_xp.objectives import ExactObjective, groups_of
from gplvm_xp.objectives.bayesian import BayesianObjective, Observed
from gplvm_xp.objectives.exact_point import ExactPoint
from gplvm_xp.objectives.local import conditional, joint
from gplvm_xp.objectives.local_sums import Blocks, summed
from gplvm_xp.operators import Circulant, Hartley, Toeplitz, lags
from gplvm_xp.priors import Gaussian

pytestmark = pytest.mark.gpu

TREES = {
    "rbf": RBF(1.3, 0.8),
    "rbf-ard": RBF(1.3, (0.8, 1.1, 0.6)),
    "matern32": Matern32(0.7, 1.2),
    "matern52": Matern52(0.7, (1.2, 0.9, 2.0)),
    "rq": RationalQuadratic(),
    "linear": Linear(),
    "polynomial": Polynomial(),
    "periodic": Periodic(),
    "hexagonal": ActiveDims(Hexagonal(1.1, 1.7, 0.4, 1.3), (0, 2)),
    "sum": RBF(1.3, 0.8) + Linear() + Constant(0.2) + White(0.1),
    "product": RBF(1.3, 0.8) * Linear() * 0.5,
    "active": ActiveDims(RBF(1.0, 0.7), (0, 2)) + White(0.3),
}


@pytest.fixture(autouse=True)
def gpu() -> Iterator[Any]:
    """A CuPy backend in float64, or a skip, or the failure that was asked for."""
    reason = backend.why_no_gpu()
    if reason is not None:
        demanded = "cupy" in os.environ.get("GPLVM_XP_BACKENDS", "").split(",")
        (pytest.fail if demanded else pytest.skip)(f"no GPU: {reason}")
    yield backend.get("cupy")
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()


def covariance(n: int) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(n, 3))
    r2 = (x * x).sum(1)[:, None] + (x * x).sum(1)[None] - 2.0 * x @ x.T
    return np.exp(-0.5 * np.maximum(r2, 0.0)) + 0.1 * np.eye(n)


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-300))


def problem(b: Any, n: int, D: int = 12, q: int = 3, kernel: Any = None) -> ExactObjective:
    rng = np.random.default_rng(1)
    X, Y = rng.normal(size=(n, q)), rng.normal(size=(n, D))
    kernel = kernel or RBF(1.0, tuple(1.0 + 0.1 * np.arange(q))) + White(0.05)
    return ExactObjective(kernel, groups_of(b, Y - Y.mean(0)), X, 0.2)


# -- linear algebra --------------------------------------------------------------------------------


def test_the_libraries_have_the_signatures_that_are_called(gpu: Any) -> None:
    from cupy_backends.cuda.libs import cublas, cusolver

    expected = {
        cublas.dgemm: "handle transa transb m n k alpha A lda B ldb beta C ldc",
        cublas.dtrsm: "handle side uplo trans diag m n alpha Aarray lda Barray ldb",
        cublas.dgeam: "handle transa transb m n alpha A lda beta B ldb C ldc",
        cusolver.dpotrf: "handle uplo n A lda work lwork devInfo",
        cusolver.dpotrf_bufferSize: "handle uplo n A lda",
        cusolver.dpotrfBatched: "handle uplo n Aarray lda infoArray batchSize",
        cublas.dtrsmBatched: "handle side uplo trans diag m n alpha Aarray lda Barray ldb "
        "batchCount",
    }
    for function, names in expected.items():
        head = function.__doc__.splitlines()[0].split("(", 1)[1].split(")")[0]
        assert " ".join(part.split()[-1] for part in head.split(",")) == names


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("n", [1, 500, 3000])
def test_factor_inverse_and_solves(gpu: Any, n: int, dtype: str) -> None:
    b = backend.get("cupy", dtype=dtype)
    K = covariance(n)
    lower = np.tril(K) + np.triu(np.full((n, n), np.nan), 1)
    A = b.asarray(lower)
    address = A.data.ptr
    L, ok = b.cholesky(A)
    assert bool(b.to_host(ok))
    assert L.data.ptr == address
    tolerance = 1e-11 if dtype == "float64" else 1e-3
    factor = np.tril(b.to_host(L)).astype(float)
    assert relative(factor @ factor.T, K) < tolerance
    B = np.random.default_rng(2).normal(size=(n, 7))
    rhs = b.asarray(B)
    for trans in (False, True):
        Z = b.to_host(b.solve_triangular(L, rhs, trans)).astype(float)
        assert relative((factor.T if trans else factor) @ Z, B) < 10 * tolerance
    assert relative(K @ b.to_host(b.cho_solve(L, rhs)).astype(float), B) < 100 * tolerance
    S = b.inverse_from_cholesky(L)
    assert S.data.ptr == address
    inverse = np.linalg.inv(K)
    assert relative(b.to_host(S), inverse) < 100 * tolerance
    C = b.to_host(b.complete(b.rank_update(S, rhs, -0.5, 2.0)))
    assert relative(C, 2.0 * inverse - 0.5 * B @ B.T) < 100 * tolerance
    np.testing.assert_array_equal(C, C.T)


@pytest.mark.parametrize("where", [0, 1499, 2999])
@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_not_positive_definite_is_a_value(gpu: Any, where: int, value: float) -> None:
    K = covariance(3000)
    K[where, where] = value
    _, ok = gpu.cholesky(gpu.asarray(K))
    assert not bool(gpu.to_host(ok))


def _decay(b: Any, n: int, rho: float, rows: slice) -> Any:
    index = b.xp.arange(n, dtype=b.xp.float64)
    return rho ** b.xp.abs(index[rows, None] - index[None, :])


@pytest.mark.parametrize("n", [47_000, 60_000])
def test_indices_past_32_bits(gpu: Any, n: int) -> None:
    """K_ij = rho^|i-j|: its factor and its tridiagonal inverse are known, so no copy is needed."""
    need = int(1.2 * 8 * n * n)
    if gpu.memory_available() < need:
        pytest.skip(f"needs {need / 2**30:.0f} GiB, {gpu.memory_available() / 2**30:.0f} are free")
    xp, rho, step = gpu.xp, 0.7, 1000
    K = gpu.empty((n, n))
    for i0 in range(0, n, step):
        K[i0 : i0 + step] = _decay(gpu, n, rho, slice(i0, min(i0 + step, n)))
    L, ok = gpu.cholesky(K)
    assert bool(gpu.to_host(ok))
    for i0 in (0, n // 2, n - step):
        got = xp.tril(L[i0 : i0 + step], k=i0)
        expected = _decay(gpu, n, rho, slice(i0, i0 + step)) * (1.0 - rho**2) ** 0.5
        expected[:, 0] /= (1.0 - rho**2) ** 0.5
        assert float(gpu.to_host(xp.max(xp.abs(got - xp.tril(expected, k=i0))))) < 1e-12
    S = gpu.inverse_from_cholesky(L)
    scale, index = 1.0 / (1.0 - rho**2), xp.arange(n)
    for i0 in range(0, n, step):
        rows = index[i0 : i0 + step, None]
        expected = xp.where(rows == index[None, :], scale * (1.0 + rho**2), 0.0)
        expected = xp.where(xp.abs(rows - index[None, :]) == 1, -scale * rho, expected)
        corner = (rows == index[None, :]) & ((rows == 0) | (rows == n - 1))
        expected = xp.where(corner, scale, expected)
        assert float(gpu.to_host(xp.max(xp.abs(S[i0 : i0 + step] - expected)))) < 1e-10


def test_leaf_sizes_agree(gpu: Any) -> None:
    import dataclasses

    K = covariance(2500)
    results = []
    for leaf in (256, 1024, 4096):
        b = dataclasses.replace(gpu, factor_leaf=leaf, inverse_leaf=leaf)
        results.append(b.to_host(b.inverse_from_cholesky(b.cholesky(b.asarray(K))[0])))
    for other in results[1:]:
        assert relative(other, results[0]) < 1e-10


# -- many small problems ---------------------------------------------------------------------------


def stack(count: int, n: int) -> np.ndarray:
    A = np.random.default_rng(6).normal(size=(count, n, n))
    return np.asarray(A @ A.swapaxes(1, 2) + n * np.eye(n))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("count", "n"), [(1, 5), (300, 33), (64, 139), (3, 700), (2, 1)])
def test_batched_factors(gpu: Any, count: int, n: int, dtype: str) -> None:
    b, P = backend.get("cupy", dtype=dtype), stack(count, n)
    B = np.random.default_rng(7).normal(size=(count, n, 4))
    given = b.asarray(np.tril(P) + np.triu(np.full((n, n), np.nan), 1))
    L, ok = b.factor(given)
    host = b.to_host(L).astype(float)
    tolerance = 1e-12 if dtype == "float64" else 1e-4
    assert b.to_host(ok).all()
    np.testing.assert_array_equal(np.triu(host, 1), 0.0)
    assert relative(host @ host.swapaxes(1, 2), P) < tolerance
    Z = b.solve_factor(L, b.solve_factor(L, b.asarray(B)), trans=True)
    assert relative(P @ b.to_host(Z).astype(float), B) < 10 * tolerance
    shared = b.to_host(b.solve_factor(L[0], b.asarray(B))).astype(float)
    assert relative(host[0] @ shared, B) < 10 * tolerance
    W = b.to_host(b.inverse_factor(L)).astype(float)
    assert relative(W @ host, np.broadcast_to(np.eye(n), P.shape)) < 10 * tolerance


@pytest.mark.parametrize("n", [2, 40, 139])
@pytest.mark.parametrize("value", [-1.0, 0.0, np.nan, np.inf])
@pytest.mark.parametrize("where", ["first", "last"])
def test_one_bad_member_of_a_batch(gpu: Any, n: int, value: float, where: str) -> None:
    P, at = stack(30, n), 0 if where == "first" else n - 1
    P[17, at, at] = value
    L, ok = gpu.factor(gpu.asarray(P))
    expected = np.arange(30) != 17
    np.testing.assert_array_equal(gpu.to_host(ok), expected)
    host = gpu.to_host(L)[expected]
    assert relative(host @ host.swapaxes(1, 2), P[expected]) < 1e-12


@pytest.mark.parametrize("name", ["log_ndtr", "ndtr", "erfcx", "gammaln", "digamma"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_special_functions_agree_with_scipy(gpu: Any, name: str, dtype: str) -> None:
    import scipy.special

    b = backend.get("cupy", dtype=dtype)
    low = 0.02 if name in ("gammaln", "digamma") else -5.0
    x = np.linspace(low, 30.0, 2000).astype(dtype)
    got = b.special(name, b.asarray(x))
    assert got.dtype == dtype
    expected = getattr(scipy.special, name)(x.astype(float))
    error = np.abs(b.to_host(got) - expected) / (np.abs(expected) + 0.1)
    assert error.max() < (1e-13 if dtype == "float64" else 5e-6)


MAPS = {"1": (97,), "2": (32, 27), "2-even": (24, 16), "3": (8, 6, 10)}


@pytest.mark.parametrize("grid", MAPS)
@pytest.mark.parametrize("lead", [(), (5,), (2, 3)], ids=str)
def test_structured_maps_agree_with_numpy(gpu: Any, grid: str, lead: tuple[int, ...]) -> None:
    shape, rng, host = MAPS[grid], np.random.default_rng(8), backend.get("numpy")
    N = int(np.prod(shape))
    keep = np.array(np.unravel_index(rng.permutation(N)[: N // 4], shape)).T
    B, R = Hartley(shape, keep), len(keep)
    row = np.exp(-0.5 * np.sum(lags(shape) ** 2, axis=-1)).reshape(shape)
    row[(0,) * len(shape)] += 1.0
    double = tuple(2 * n for n in shape)
    values = np.exp(-np.sum(lags(double) ** 2, axis=-1)).reshape(double)
    z, r, u, C = (rng.normal(size=(*lead, *s)) for s in ((R,), (N,), (N,), (R, R)))

    def everything(b: Any) -> list[np.ndarray]:
        z_, r_, u_, C_ = (b.asarray(a) for a in (z, r, u, C))
        prior = Circulant.of(b, row)
        out = [B.apply(z_), B.adjoint(r_), B.gram(r_), B.quad(C_), prior.apply(u_)]
        out += [prior.covariance(u_), prior.logdet(), B.restrict(prior).dense()]
        out.append(Toeplitz(shape, b.asarray(values)).apply(u_))
        return [b.to_host(a) for a in out]

    for k, (got, expected) in enumerate(zip(everything(gpu), everything(host), strict=True)):
        assert got.shape == expected.shape
        assert relative(got, expected) < 1e-11, f"result {k} on {grid}"


def test_structured_maps_give_the_same_bits_and_never_wait(gpu: Any) -> None:
    import cupyx

    shape, rng = (64, 64), np.random.default_rng(9)
    k = np.stack(np.meshgrid(*(np.fft.fftfreq(n) * n for n in shape), indexing="ij"), -1)
    B = Hartley.of_spectrum(np.exp(-0.02 * np.sum(k * k, axis=-1)), 0.05)
    C, p = gpu.asarray(rng.normal(size=(7, B.cols, B.cols))), gpu.asarray(rng.random((7, B.rows)))
    P = gpu.asarray(stack(7, B.cols))
    first = [gpu.to_host(B.quad(C)), gpu.to_host(B.gram(p))]
    gpu.solve_factor(gpu.factor(P)[0], C)
    with cupyx.allow_synchronize(False):
        again = [B.quad(C), B.gram(p)]
        gpu.solve_factor(gpu.factor(P)[0], C)
    for a, c in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, gpu.to_host(c))


# -- kernels and the objective ---------------------------------------------------------------------


@pytest.mark.parametrize("tree", TREES)
def test_kernels_agree_with_numpy(gpu: Any, tree: str) -> None:
    kernel, rng, host = TREES[tree], np.random.default_rng(3), backend.get("numpy")
    X, Z, G = rng.normal(size=(301, 3)), rng.normal(size=(130, 3)), rng.normal(size=(301, 130))
    GX, dX, dZ = rng.normal(size=(301, 301)), rng.normal(size=X.shape), rng.normal(size=Z.shape)
    theta = kernel.theta()
    dtheta = rng.normal(size=theta.shape)

    def everything(b: Any) -> list[np.ndarray]:
        t, x, z = b.asarray(theta), b.asarray(X), b.asarray(Z)
        moves = {"dtheta": b.asarray(dtheta), "dX": b.asarray(dX)}
        crossed, pull = kernel.gram_pullback(t, x, z)
        own, pull_own = kernel.gram_pullback(t, x)
        out = [kernel.gram(t, x, z), crossed, own, *pull(b.asarray(G))]
        out += [*pull_own(b.asarray(GX))[:2], kernel.input_jacobian(t, x, z)]
        out += [kernel.theta_jacobian(t, x), kernel.diag(t, x), kernel.gram_jvp(t, x, **moves)]
        out.append(kernel.gram_jvp(t, x, z, dZ=b.asarray(dZ), **moves))
        return [b.to_host(a) for a in out]

    for k, (got, expected) in enumerate(zip(everything(gpu), everything(host), strict=True)):
        assert got.shape == expected.shape
        assert relative(got, expected) < 1e-10, f"result {k} of {tree}"


@pytest.mark.parametrize("tree", TREES)
def test_public_conformance_suite(gpu: Any, tree: str) -> None:
    testing = pytest.importorskip("gplvm_xp.testing")
    testing.check_kernel(TREES[tree], 3, make=gpu.asarray)


@pytest.mark.parametrize("q", [1, 2, 10, 20, 32])
@pytest.mark.parametrize("n", [7, 400, 2500])
def test_objective_agrees_with_numpy(gpu: Any, n: int, q: int) -> None:
    host = backend.get("numpy")
    on_gpu, on_host = problem(gpu, n, q=q), problem(host, n, q=q)
    f, g = on_gpu.value_and_grad(on_gpu.start())
    f0, g0 = on_host.value_and_grad(on_host.start())
    assert abs(float(gpu.to_host(f)) - float(f0)) < 1e-10 * abs(float(f0))
    assert relative(gpu.to_host(g), g0) < 1e-10


def test_a_missing_pattern_agrees_with_numpy(gpu: Any) -> None:
    rng = np.random.default_rng(5)
    X, Y = rng.normal(size=(200, 2)), rng.normal(size=(200, 6))
    Y[:40, :3] = np.nan
    results = []
    for b in (gpu, backend.get("numpy")):
        objective = ExactObjective(RBF(1.0, 1.5), groups_of(b, Y), X, 0.2)
        f, g = objective.value_and_grad(objective.start())
        results.append(np.concatenate([[float(b.to_host(f))], b.to_host(g)]))
    assert relative(*results) < 1e-10


def test_same_bits_every_time(gpu: Any) -> None:
    objective = problem(gpu, 3000)
    x = objective.start()
    first = [gpu.to_host(a).copy() for a in objective.value_and_grad(x)]
    for _ in range(3):
        again = [gpu.to_host(a) for a in objective.value_and_grad(x)]
        for a, c in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, c)


def test_peak_memory_is_one_matrix(gpu: Any) -> None:
    import cupy

    n = 8000
    problem(gpu, 500).value_and_grad(problem(gpu, 500).start())
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        objective = problem(gpu, n)
        x = objective.start()
        inputs = pool.used_bytes() - 8 * n * n
        objective.value_and_grad(x)
        gpu.to_host(x)
        # A fresh pool never gives memory back by itself, so its size is the high-water mark.
        peak = pool.total_bytes() - inputs
        del objective, x
    assert peak <= 1.15 * 8 * n * n, f"{peak / (8 * n * n):.3f} of one matrix"


def test_an_evaluation_never_waits(gpu: Any) -> None:
    import cupyx

    objective = problem(gpu, 1200)
    x = objective.start()
    objective.value_and_grad(x)
    with cupyx.allow_synchronize(False):
        f, g = objective.value_and_grad(x)
    assert np.isfinite(gpu.to_host(f))
    assert np.isfinite(gpu.to_host(g)).all()


def test_a_failed_evaluation_is_infinite(gpu: Any) -> None:
    objective = problem(gpu, 300, kernel=kernels.Linear())
    x = objective.start()
    bad = gpu.xp.where(gpu.xp.isfinite(x), gpu.xp.nan, x)
    f, _ = objective.value_and_grad(bad)
    assert np.isposinf(gpu.to_host(f))


def test_too_large_is_refused_in_words(gpu: Any) -> None:
    from gplvm_xp.errors import NotEnoughMemoryError

    side = int((gpu.memory_available() / 8) ** 0.5) * 2
    with pytest.raises(NotEnoughMemoryError, match="bytes"):
        gpu.empty((side, side))


# -- psi statistics --------------------------------------------------------------------------------


def psi_problem(n: int, M: int, q: int, lengths: int, weighted: bool = False) -> list[Any]:
    rng = np.random.default_rng(11)
    theta = np.concatenate([[1.3], rng.uniform(0.8, 1.5, lengths) * q**0.5])
    latents = rng.normal(size=(n, q)), rng.uniform(0.01, 1.0, (n, q)), rng.normal(size=(M, q))
    g = rng.normal(size=n), rng.normal(size=(n, M)), rng.normal(size=(1, M, M))
    return [theta, *latents, *g, rng.uniform(0.0, 1.0, (n, 1)) if weighted else None]


def psi_results(b: Any, problem: list[Any]) -> list[Any]:
    given = [None if a is None else b.asarray(a) for a in problem]
    return [*RBFPsi().forward(*given[:4], given[7]), *RBFPsi().contract(*given)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("q", [1, 2, 5, 10, 20, 33, 64])
@pytest.mark.parametrize(("n", "M"), [(1, 1), (7, 100), (130, 17), (3000, 50)])
def test_psi_statistics_agree_with_numpy(gpu: Any, n: int, M: int, q: int, weighted: bool) -> None:
    problem = psi_problem(n, M, q, q if M > 1 else 1, weighted)
    only_psi2 = [*problem[:5], 0.0 * problem[5], *problem[6:]]
    for given in (problem, only_psi2):
        seen = [gpu.to_host(a) for a in psi_results(gpu, given)]
        for k, a in enumerate(psi_results(backend.get("numpy"), given)):
            assert seen[k].shape == a.shape
            assert relative(seen[k], a) < 1e-10, f"result {k}"


def test_psi_statistics_in_float32(gpu: Any) -> None:
    problem = [None if a is None else a.astype("f4") for a in psi_problem(3000, 30, 6, 6, True)]
    seen = psi_results(backend.get("cupy", dtype="float32"), problem)
    exact = psi_results(backend.get("numpy"), [a.astype(float) for a in problem])
    for k, (a, c) in enumerate(zip(seen, exact, strict=True)):
        assert a.dtype == np.float32
        assert relative(gpu.to_host(a).astype(float), c) < 1e-4, f"result {k}"


def test_psi_statistics_give_the_same_bits_and_never_wait(gpu: Any) -> None:
    import cupyx

    given = [None if a is None else gpu.asarray(a) for a in psi_problem(50_000, 60, 10, 10)]
    first = [gpu.to_host(a) for a in psi_results(gpu, given)]
    with cupyx.allow_synchronize(False):
        repeats = [psi_results(gpu, given) for _ in range(4)]
    for again in repeats:
        for a, c in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, gpu.to_host(c))


def test_psi_statistics_never_hold_the_pairs_of_every_row(gpu: Any) -> None:
    import cupy

    n, M, q = 200_000, 100, 10
    need = 20 * 8 * n * M
    if gpu.memory_available() < need:
        pytest.skip(f"needs {need / 2**30:.0f} GiB, {gpu.memory_available() / 2**30:.0f} are free")
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        given = [None if a is None else gpu.asarray(a) for a in psi_problem(n, M, q, q)]
        inputs = pool.used_bytes()
        psi_results(gpu, given)
        # A fresh pool never gives memory back by itself, so its size is the high-water mark.
        peak = pool.total_bytes() - inputs
        del given
    # All pairs of all rows are 50 times n × M; Ψ1 and the scaling take a few of those.
    assert peak <= 12 * 8 * n * M, f"{peak / (8 * n * M):.1f} arrays of n × M"


@pytest.mark.parametrize("n", [40, 3000])
def test_psi_bound_agrees_with_numpy(gpu: Any, n: int) -> None:
    rng, results = np.random.default_rng(12), []
    mu, S, Z = rng.normal(size=(n, 4)), rng.uniform(0.1, 0.9, (n, 4)), rng.normal(size=(20, 4))
    Y = rng.normal(size=(n, 9))
    for b in (gpu, backend.get("numpy")):
        data = Observed.of(b, Y - Y.mean(0))
        kernel = RBF(1.2, (1.0, 1.5, 2.0, 0.8))
        objective = BayesianObjective(kernel, data, mu, S, Z, 0.3, jitter=1e-6)
        f, g = objective.value_and_grad(objective.start())
        results.append((float(b.to_host(f)), b.to_host(g)))
    (f, g), (f0, g0) = results
    assert abs(f - f0) < 1e-10 * abs(f0)
    # Through K_uu's factor: its condition number is on top.
    assert relative(g, g0) < 1e-8


# -- a whole fit -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:max_iter")
def test_digits_end_to_end(gpu: Any) -> None:
    from sklearn.datasets import load_digits

    from gplvm_xp import GPLVM

    Y = load_digits().data[:300]
    fits = {}
    for name in ("numpy", "cupy"):
        fits[name] = GPLVM(n_components=2, backend=name, random_state=0).fit(Y)
        assert type(fits[name].embedding_) is np.ndarray
        assert fits[name].embedding_.shape == (300, 2)
    a, c = (fits[name].log_likelihood_ for name in ("numpy", "cupy"))
    # Two optimisations from one start drift apart by rounding, so the bar is the end they reach.
    assert abs(a - c) < 0.02 * abs(a)


@pytest.mark.filterwarnings("ignore:max_iter")
def test_device_data_stays_on_the_device(gpu: Any) -> None:
    import cupy
    from sklearn.datasets import load_digits

    from gplvm_xp import GPLVM

    Y = cupy.asarray(load_digits().data[:150])
    assert type(GPLVM(n_components=2, random_state=0).fit(Y).embedding_) is cupy.ndarray


# -- local likelihoods, second order ---------------------------------------------------------------


@pytest.mark.parametrize("term", [conditional, joint])
@pytest.mark.parametrize("tree", TREES)
def test_local_likelihoods_agree_with_numpy(gpu: Any, tree: str, term: Any) -> None:
    rng, kernel = np.random.default_rng(5), TREES[tree]
    X, Y = rng.normal(size=(400, 3)), rng.normal(size=(400, 7))
    for R, short in ((2, False), (33, True), (40, False), (64, False), (80, False)):
        index = np.stack([rng.choice(400, R, replace=False) for _ in range(300)])
        if short:
            index[::5, :9] = -1
        results = []
        for b in (gpu, backend.get("numpy")):
            blocks = Blocks.of(b, index, *Y.shape)
            given = (b.asarray(kernel.theta()), b.scalar(0.3), b.asarray(X), b.asarray(Y))
            results.append([b.to_host(a) for a in summed(kernel, *given, blocks, term)])
        for seen, wanted in zip(*results, strict=True):
            assert relative(seen, wanted) < 1e-10


def test_local_likelihoods_have_the_same_bits(gpu: Any) -> None:
    rng, kernel = np.random.default_rng(5), RBF(1.0, 0.5)
    X, Y = gpu.asarray(rng.normal(size=(5000, 2))), gpu.asarray(rng.normal(size=(5000, 20)))
    index = nearest(rng.normal(size=(5000, 2)), 33)[:, ::-1]
    blocks = Blocks.of(gpu, index, 5000, 20)
    given = (gpu.asarray(kernel.theta()), gpu.scalar(0.3), X, Y)
    first = [gpu.to_host(a) for a in summed(kernel, *given, blocks, conditional)]
    for _ in range(20):
        again = [gpu.to_host(a) for a in summed(kernel, *given, blocks, conditional)]
        assert all(np.array_equal(a, c) for a, c in zip(first, again, strict=True))


def test_neighbours_agree_with_the_host(gpu: Any) -> None:
    X = np.random.default_rng(0).normal(size=(3000, 3))
    assert np.array_equal(nearest(gpu.asarray(X), 12), nearest(X, 12))


@pytest.mark.parametrize("tree", TREES)
def test_hessian_products_of_latents_agree_with_numpy(gpu: Any, tree: str) -> None:
    rng = np.random.default_rng(3)
    X, Y = rng.normal(size=(300, 3)), rng.normal(size=(300, 5))
    results = []
    for b in (gpu, backend.get("numpy")):
        fun = ExactObjective(TREES[tree], groups_of(b, Y - Y.mean(0)), X, 0.5, Gaussian())
        point = ExactPoint(fun, fun.start())
        u = b.asarray(np.cos(np.arange(fun.start().shape[0])))
        results.append([b.to_host(a) for a in (point.value, point.gradient(), point.hvp(u))])
    for seen, wanted in zip(*results, strict=True):
        assert relative(seen, wanted) < 1e-9


@pytest.mark.parametrize("inference", ["vecchia", "neighbourhood"])
def test_a_local_fit(gpu: Any, inference: str) -> None:
    Y = datasets.make_latent(2000, D=8, q=2, seed=0, noise=0.1).Y
    model = LocalGPLVM(
        2, inference=inference, n_neighbors=16, max_iter=20, backend="cupy", random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(Y)
    assert np.all(np.isfinite(np.asarray(gpu.to_host(gpu.asarray(model.embedding_)))))
    assert model.loss_curve_[-1] < model.loss_curve_[0]
