"""Primitives for many small problems: batched factors, special functions, transforms, sparse sums.

Each is checked on every array library against NumPy, extended precision or a loop; then the CUDA
kernel of the sparse product on its own, in every order of threads.
"""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from emulated import emulated_arrays
from emulator import ORDERS, EmulatedLauncher, EmulationError, PoisonedNumpy, why_no_emulator

from gplvm_xp.backend.cuda.sparse import SparseMatrix, SparseTimes, row_order

T = np.swapaxes
LEADS = pytest.mark.parametrize("lead", [(), (4,), (2, 3), (0,)], ids=str)


def rng(seed=0):
    return np.random.default_rng(seed)


def spd(lead, n, seed=0):
    A = rng(seed).normal(size=(*lead, n, n))
    return A @ T(A, -1, -2) + n * np.eye(n)


def relative(got, expected):
    return np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-300)


# -- factors ---------------------------------------------------------------------------------------


@LEADS
@pytest.mark.parametrize("n", [1, 5, 60])
def test_factor(case, lead, n):
    P = spd(lead, n)
    # Only the lower triangle may be read, and the argument is left alone.
    given = np.tril(P) + np.triu(np.full((n, n), 7.0), 1)
    here = case.asarray(given)
    L, ok = case.backend.factor(here)
    assert L.dtype == here.dtype
    assert L.shape == P.shape
    assert ok.shape == lead
    assert np.all(case.backend.to_host(ok))
    host = case.to_numpy(L)
    np.testing.assert_array_equal(np.triu(host, 1), 0.0)
    assert relative(host @ T(host, -1, -2), P) < case.tolerance(1e-14, 1e-6)
    np.testing.assert_array_equal(case.to_numpy(here), case.to_numpy(case.asarray(given)))


NOT_DEFINITE = {
    "negative": lambda P: -P,
    "zero": lambda P: 0.0 * P,
    "nan": lambda P: P + np.nan,
    "infinite": lambda P: P + np.inf,
    "last pivot": lambda P: P - 2.0 * P[-1, -1] * np.diag([0.0] * (len(P) - 1) + [1.0]),
    "first pivot": lambda P: P - 2.0 * P[0, 0] * np.diag([1.0] + [0.0] * (len(P) - 1)),
    "one nan": lambda P: P + np.diag([0.0, np.nan] + [0.0] * (len(P) - 2)),
}


@pytest.mark.parametrize("bad", NOT_DEFINITE)
def test_one_bad_member_of_a_batch_is_found_alone(case, bad):
    P = spd((2, 3), 6)
    P[1, 0] = NOT_DEFINITE[bad](P[1, 0])
    L, ok = case.backend.factor(case.asarray(P))
    expected = np.ones((2, 3), dtype=bool)
    expected[1, 0] = False
    np.testing.assert_array_equal(case.backend.to_host(ok), expected)
    host = case.to_numpy(L)[expected]
    assert relative(host @ T(host, -1, -2), P[expected]) < case.tolerance(1e-14, 1e-6)
    _, alone = case.backend.factor(case.asarray(P[1, 0]))
    assert not case.backend.to_host(alone)


@pytest.mark.parametrize(
    ("left", "right"), [((), ()), ((3,), (3,)), ((), (3,)), ((3,), ()), ((2, 1), (3,)), ((0,), ())]
)
@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("columns", [1, 4])
def test_solve_factor(case, left, right, trans, columns):
    n = 6
    L = np.linalg.cholesky(spd(left, n))
    B = rng(1).normal(size=(*right, n, columns))
    L_, B_ = case.asarray(L), case.asarray(B)
    Z = case.backend.solve_factor(L_, B_, trans)
    expected = np.linalg.solve(T(L, -1, -2) if trans else L, B)
    assert Z.dtype == B_.dtype
    assert Z.shape == expected.shape
    assert relative(case.to_numpy(Z), expected) < case.tolerance(1e-13, 1e-5)
    np.testing.assert_array_equal(case.to_numpy(B_), case.to_numpy(case.asarray(B)))


@LEADS
def test_inverse_factor(case, lead):
    L = np.linalg.cholesky(spd(lead, 7))
    W = case.backend.inverse_factor(case.asarray(L))
    host = case.to_numpy(W)
    assert host.shape == L.shape
    np.testing.assert_array_equal(np.triu(host, 1), 0.0)
    assert relative(host @ L, np.broadcast_to(np.eye(7), L.shape)) < case.tolerance(1e-14, 1e-6)


@pytest.mark.parametrize("lead", [(1,), (2,)], ids=str)
def test_larger_matrices_go_one_after_the_other_on_a_gpu(lead):
    """Both ways of the GPU's backend, on stand-ins of its libraries."""
    # 65536 times the count against n² decides.
    n = 300
    P, B = spd(lead, n), rng(2).normal(size=(*lead, n, 3))
    with emulated_arrays() as b:
        calls = b.blas.blas.calls
        before = len(calls)
        L, ok = b.factor(b.asarray(P))
        Z = b.solve_factor(L, b.solve_factor(L, b.asarray(B)), trans=True)
        batched = calls[before:].count("dtrsmBatched")
        assert batched == (2 if lead == (2,) else 0)
        assert np.all(b.to_host(ok))
        assert relative(b.to_host(Z), np.linalg.solve(P, B)) < 1e-12
        small = b.factor(b.asarray(P[:, :40, :40]))[0]
        b.solve_factor(small, b.asarray(B[:, :40]))
        assert calls[-1] == "dtrsmBatched"


# -- special functions -----------------------------------------------------------------------------

SPECIAL = {
    "log_ndtr": (
        lambda x: mpmath.log(mpmath.ncdf(x)), [-38.0, -12.0, -3.0, -0.5, 0.0, 1.0, 4.0, 9.0]
    ),
    "ndtr": (mpmath.ncdf, [-30.0, -8.0, -1.0, 0.0, 0.3, 5.0]),
    "erfcx": (lambda x: mpmath.exp(x**2) * mpmath.erfc(x), [-4.0, -0.5, 0.0, 0.7, 5.0, 40.0, 1e5]),
    "gammaln": (mpmath.loggamma, [0.01, 0.5, 1.0, 1.5, 2.0, 7.25, 150.0, 1e6]),
    "digamma": (mpmath.digamma, [0.01, 0.5, 1.0, 1.4616, 2.0, 7.25, 150.0, 1e6]),
}  # fmt: skip


@pytest.mark.parametrize("name", SPECIAL)
def test_special_functions_in_extended_precision(case, name):
    function, points = SPECIAL[name]
    x = case.asarray(np.array(points).reshape(2, -1) if len(points) % 2 == 0 else np.array(points))
    # What the library is asked for is the function of the number that its dtype holds.
    with mpmath.workdps(50):
        held = case.to_numpy(x).ravel().tolist()
        expected = np.array([float(mpmath.re(function(mpmath.mpf(p)))) for p in held])
    got = case.backend.special(name, x)
    assert got.dtype == x.dtype
    assert got.shape == x.shape
    # The single-precision functions of the libraries lose a few digits near their zeros.
    error = np.abs(case.to_numpy(got).ravel() - expected)
    assert np.max(error / (np.abs(expected) + 0.1)) < case.tolerance(2e-14, 2e-6)


# -- transforms ------------------------------------------------------------------------------------

SHAPES = [(1,), (2,), (7,), (8,), (5, 6), (6, 5), (4, 4), (3, 4, 5), (4, 2, 6)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("lead", [(), (4,), (2, 3)], ids=str)
def test_half_spectrum(case, shape, lead):
    u = rng(3).normal(size=(*lead, *shape))
    axes = tuple(range(-len(shape), 0))
    half = np.fft.fftn(u, axes=axes)[..., : shape[-1] // 2 + 1]
    expected = np.stack([half.real, half.imag], axis=-1).reshape(*lead, -1)
    here = case.asarray(u)
    h = case.backend.half_spectrum(here, len(shape))
    assert h.dtype == here.dtype
    assert h.shape == expected.shape
    assert relative(case.to_numpy(h), expected) < case.tolerance(1e-14, 1e-6)
    back = case.backend.from_half_spectrum(h, shape)
    assert back.dtype == here.dtype
    assert back.shape == u.shape
    assert relative(case.to_numpy(back), u) < case.tolerance(1e-14, 1e-6)
    np.testing.assert_array_equal(case.to_numpy(here), case.to_numpy(case.asarray(u)))


# -- sparse products -------------------------------------------------------------------------------


def entries(rows, columns, count, seed=4):
    r = rng(seed)
    return r.integers(0, rows, count), r.integers(0, columns, count), r.normal(size=count)


def dense(rows, columns, weights, shape):
    out = np.zeros(shape)
    np.add.at(out, (rows, columns), weights)
    return out


SPARSE = {
    "random": ((9, 7), entries(9, 7, 30)),
    "empty rows": ((12, 5), entries(3, 5, 9)),
    "one long row": ((4, 300), (np.full(500, 2), *entries(1, 300, 500)[1:])),
    "one place twice": (
        (2, 2), (np.array([1, 1, 1]), np.array([0, 0, 1]), np.array([1.0, 2.0, 4.0]))
    ),
    "no entries": ((3, 4), (np.zeros(0, int), np.zeros(0, int), np.zeros(0))),
    "a gather": ((6, 8), (np.repeat(np.arange(6), 2), *entries(6, 8, 12)[1:])),
}  # fmt: skip


@pytest.mark.parametrize("name", SPARSE)
@LEADS
def test_sparse_times(case, name, lead):
    shape, parts = SPARSE[name]
    x = rng(5).normal(size=(*lead, shape[1]))
    b, here = case.backend, case.asarray(x)
    S = b.sparse_matrix(*parts, shape)
    got = b.sparse_times(S, here)
    assert got.dtype == here.dtype
    assert got.shape == (*lead, shape[0])
    expected = x @ dense(*parts, shape).T
    assert relative(case.to_numpy(got), expected) < case.tolerance(1e-14, 2e-6)
    np.testing.assert_array_equal(case.to_numpy(got), case.to_numpy(b.sparse_times(S, here)))


# -- the CUDA kernel -------------------------------------------------------------------------------

needs_emulator = pytest.mark.skipif(
    why_no_emulator() is not None, reason=why_no_emulator() or "the emulator works"
)


def on_emulator(launcher, name, values, dtype=np.float64):
    shape, (rows, columns, weights) = SPARSE[name]
    order, first, lanes = row_order(rows, shape[0])
    S = SparseMatrix(
        first, columns[order].astype(np.int64), weights[order].astype(dtype), shape, lanes
    )
    return SparseTimes(launcher, PoisonedNumpy, dtype, lanes)(S, values.astype(dtype)), lanes


@needs_emulator
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("guard", ["after", "before"])
@pytest.mark.parametrize("name", SPARSE)
def test_kernel(order, guard, name):
    shape, parts = SPARSE[name]
    x = rng(6).normal(size=(3, shape[1]))
    launcher = EmulatedLauncher(order, guard)
    got, lanes = on_emulator(launcher, name, x)
    np.testing.assert_allclose(got, x @ dense(*parts, shape).T, rtol=1e-13, atol=1e-13)
    assert (lanes == 32) == (name == "one long row")
    np.testing.assert_array_equal(got, on_emulator(EmulatedLauncher(), name, x)[0])
    single, _ = on_emulator(launcher, name, x, np.float32)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, got, rtol=1e-4, atol=1e-4)


@needs_emulator
def test_kernel_takes_more_vectors_than_a_grid_has_rows():
    x = rng(7).normal(size=(65_540, 2))
    got, _ = on_emulator(EmulatedLauncher(), "one place twice", x)
    np.testing.assert_allclose(
        got[[0, 65_534, 65_539]], x[[0, 65_534, 65_539]] @ [[0, 3.0], [0, 4.0]]
    )


@needs_emulator
@pytest.mark.parametrize(
    ("fault", "planted"),
    [("row < rows ? first[row + 1] : 0", "first[row + 1]"), ("d > 0", "d > 1"),
     ("e < end", "e < end - 1"), ("v * length", "v * rows")],
)  # fmt: skip
def test_planted_faults_are_seen(fault, planted):
    def rewrite(source):
        assert fault in source
        return source.replace(fault, planted)

    seen = []
    for name in ("one long row", "random"):
        shape, parts = SPARSE[name]
        x = rng(8).normal(size=(3, shape[1]))
        try:
            got, _ = on_emulator(EmulatedLauncher(rewrite=rewrite), name, x)
            seen.append(relative(got, x @ dense(*parts, shape).T) > 1e-6)
        except EmulationError:
            seen.append(True)
    assert any(seen)


def test_threads_of_a_row_follow_the_longest():
    for longest, lanes in ((0, 1), (4, 1), (5, 2), (9, 4), (128, 32), (10_000, 32)):
        rows = np.zeros(longest, int)
        assert row_order(rows, 2)[2] == lanes
    order, first, _ = row_order(np.array([2, 0, 2, 1]), 4)
    np.testing.assert_array_equal(order, [1, 3, 0, 2])
    np.testing.assert_array_equal(first, [0, 1, 2, 4, 4])


def test_the_kernel_refuses_what_does_not_fit():
    class Nothing:
        def raw(self, *args):
            return None

    S = SparseMatrix(None, None, None, (2, 3), 1)
    times = SparseTimes(Nothing(), PoisonedNumpy, np.float64, 1)
    for values in (np.ones((2, 4)), np.ones(3, np.float32)):
        with pytest.raises(ValueError, match="3 columns and dtype float64"):
            times(S, values)
    with pytest.raises(TypeError, match="float64 and float32"):
        SparseTimes(Nothing(), PoisonedNumpy, np.int64, 1)
