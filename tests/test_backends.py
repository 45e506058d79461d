"""The narrow waist: every primitive on every library, against plain NumPy and SciPy in float64."""

from __future__ import annotations

import inspect
import threading

import numpy as np
import pytest
import scipy.linalg
from conftest import CASES, demanded, open_case, selected, why_not

from gplvm_xp import backend
from gplvm_xp.backend import _numpy
from gplvm_xp.backend.base import Backend
from gplvm_xp.errors import NotEnoughMemoryError
from gplvm_xp.kernels import RBF

SIZES = [1, 2, 7, 60]


def positive(n, seed=0):
    A = np.random.default_rng(seed).standard_normal((n, n))
    return A @ A.T / n + np.eye(n)


def lower_only(A):
    """Rubbish above the diagonal, which nobody may read."""
    return np.where(np.tril(np.ones_like(A)) > 0, A, 1e30)


def fresh(case, a):
    """A new array of the library, which a primitive may consume; NumPy's would share memory."""
    return case.backend.asarray(np.array(a))


def place(b):
    return type(b), b.name, b.dtype, b.device


def close(case, got, want, double=1e-12, single=1e-5):
    tight = case.tolerance(double, single)
    scale = max(1.0, np.abs(want).max(initial=0.0))
    np.testing.assert_allclose(case.to_numpy(got), want, rtol=tight, atol=tight * scale)


# -- doors -----------------------------------------------------------------------------------------


def test_of_finds_the_library_the_device_and_the_dtype(case):
    a = case.asarray(np.arange(3.0))
    b = backend.of(a)
    assert b.dtype == a.dtype
    for made in (b.zeros((2,)), b.full((2,), 1.0), b.eye(2), b.scalar(1.0), b.asarray([1.0, 2.0])):
        assert type(made) is type(a)
        assert made.dtype == a.dtype
        assert place(backend.of(made)) == place(b)
    assert b.empty((2, 3)).shape == (2, 3)
    assert b.itemsize == (4 if case.single else 8)
    assert b.eps == np.finfo(case.dtype).eps
    assert isinstance(b.name, str)


def test_there_and_back(case):
    host = np.array([[1.5, -2.0], [0.0, 4.0]])
    b = case.backend
    np.testing.assert_array_equal(b.to_host(b.asarray(host)), host)
    assert type(b.to_host(b.asarray(host))) is np.ndarray
    assert b.to_host(b.scalar(2.5)).shape == ()
    assert case.to_numpy(b.asarray(b.asarray(host))).tolist() == host.tolist()


def test_get_by_name():
    b = backend.get("numpy")
    assert b.name == "numpy"
    assert b.dtype == np.float64
    assert backend.get("numpy", dtype="float32").dtype == np.float32
    assert backend.get(None).name == "numpy"
    assert backend.get(None, [[1.0]]).name == "numpy"
    assert backend.get(None, np.zeros(2, dtype=np.float32)).dtype == np.float64


def test_get_stays_where_the_data_is(case):
    a = case.asarray(np.zeros(2))
    b = backend.get(None, a, case.dtype)
    assert place(b) == place(backend.of(a))
    assert backend.is_array(a)
    assert not backend.is_array([1.0])


def test_one_backend_for_equal_arrays():
    """What is remembered for a backend is found again."""
    assert backend.of(np.zeros(2)) is backend.of(np.ones((3, 3)))
    assert backend.of(np.zeros(2)) != backend.of(np.zeros(2, dtype=np.float32))


# -- linear algebra --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
def test_cholesky_and_what_follows(case, n):
    b = case.backend
    K = positive(n)
    Y = np.random.default_rng(1).standard_normal((n, 3))
    L, ok = b.cholesky(fresh(case, lower_only(K)))
    assert b.to_host(ok).item() is True
    want = np.linalg.cholesky(K)
    np.testing.assert_allclose(
        np.tril(case.to_numpy(L)), want, rtol=case.tolerance(1e-12, 1e-4), atol=1e-6
    )
    close(case, b.diagonal(L), np.diag(want))
    y = b.asarray(Y)
    close(case, b.cho_solve(L, y), np.linalg.solve(K, Y), 1e-11, 1e-4)
    first = scipy.linalg.solve_triangular(want, Y, lower=True)
    second = scipy.linalg.solve_triangular(want, Y, lower=True, trans="T")
    close(case, b.solve_triangular(L, y), first, 1e-11, 1e-4)
    close(case, b.solve_triangular(L, y, trans=True), second, 1e-11, 1e-4)
    np.testing.assert_array_equal(case.to_numpy(y), case.to_numpy(case.asarray(Y)))
    inverse = case.to_numpy(b.inverse_from_cholesky(L))
    tight = case.tolerance(1e-11, 1e-4)
    np.testing.assert_allclose(np.tril(inverse), np.tril(np.linalg.inv(K)), rtol=tight, atol=tight)


@pytest.mark.parametrize("bad", ["negative", "zero", "nan", "infinite"])
def test_no_factor_is_a_value(case, bad):
    b = case.backend
    K = np.eye(5)
    K[3, 3] = {"negative": -1.0, "zero": 0.0, "nan": np.nan, "infinite": np.inf}[bad]
    with np.errstate(all="ignore"):
        L, ok = b.cholesky(fresh(case, K))
        assert b.to_host(ok).item() is False
        assert ok.shape == ()
        # What is done before anybody looks must not raise either.
        b.inverse_from_cholesky(L)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, -2.0), (1.0, 0.0), (-1.0, 1.0)])
@pytest.mark.parametrize("r", [1, 4, 9])
def test_rank_update(case, alpha, beta, r):
    rng = np.random.default_rng(0)
    A, C = rng.standard_normal((7, r)), positive(7)
    b = case.backend
    got = case.to_numpy(b.rank_update(fresh(case, C), fresh(case, A), alpha, beta))
    want = beta * C + alpha * A @ A.T
    tight = case.tolerance(1e-13, 1e-5)
    np.testing.assert_allclose(np.tril(got), np.tril(want), rtol=tight, atol=10 * tight)


@pytest.mark.parametrize("n", SIZES)
def test_complete_and_the_diagonal(case, n):
    b = case.backend
    K = positive(n)
    close(case, b.complete(fresh(case, lower_only(K))), K)
    close(case, b.diagonal(fresh(case, K)), np.diag(K))
    close(case, b.add_diagonal(fresh(case, K), b.scalar(0.5)), K + 0.5 * np.eye(n))
    each = np.arange(1.0, n + 1)
    close(case, b.add_diagonal(fresh(case, K), b.asarray(each)), K + np.diag(each))


def test_squared_distances(case):
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((6, 3)), rng.standard_normal((4, 3))
    A[5] = A[2]
    B[1] = A[0]
    b = case.backend
    a = case.asarray(A)
    want = ((A[:, None, :] - B[None, :, :]) ** 2).sum(-1)
    close(case, b.squared_distances(a, case.asarray(B)), want, 1e-13, 1e-5)
    own = b.squared_distances(a)
    close(case, own, ((A[:, None, :] - A[None, :, :]) ** 2).sum(-1), 1e-13, 1e-5)
    assert np.all(np.diag(case.to_numpy(own)) == 0.0)
    assert np.all(case.to_numpy(own) >= 0.0)
    np.testing.assert_allclose(case.to_numpy(a), A, rtol=1e-6)


def test_distances_keep_nan(case):
    """An infinite or missing latent must not pass for one that lies on another."""
    A = np.zeros((3, 2))
    A[1, 0] = np.nan
    b = case.backend
    with np.errstate(all="ignore"):
        r2 = case.to_numpy(b.squared_distances(case.asarray(A), case.asarray(np.ones((2, 2)))))
        own = case.to_numpy(b.squared_distances(case.asarray(A)))
    assert np.all(np.isnan(r2[1]))
    assert np.all(np.isnan(own[1, [0, 2]]))
    assert np.all(np.isfinite(own[0, [0, 2]]))


def test_rows(case):
    A = np.arange(12.0).reshape(4, 3)
    got = case.backend.rows(case.asarray(A), np.array([2, 0, 2]))
    np.testing.assert_array_equal(case.to_numpy(got), A[[2, 0, 2]])


# -- tiles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 300, 1000, 5000, 9000])
def test_tiles_cover_the_lower_triangle_once(case, n):
    tiles = case.backend.lower_tiles(n)
    assert all(j1 <= i0 or (j0, j1) == (i0, i1) for i0, i1, j0, j1 in tiles)
    assert all(0 <= i0 < i1 <= n and 0 <= j0 < j1 <= n for i0, i1, j0, j1 in tiles)
    squares = sum((i1 - i0) * (i1 - i0 + 1) // 2 for i0, i1, j0, j1 in tiles if i0 == j0)
    others = sum((i1 - i0) * (j1 - j0) for i0, i1, j0, j1 in tiles if i0 != j0)
    assert squares + others == n * (n + 1) // 2
    if n <= 300:
        seen = np.zeros((n, n), dtype=int)
        for i0, i1, j0, j1 in tiles:
            seen[i0:i1, j0:j1] += 1
        assert np.all(np.tril(seen) == np.tril(np.ones_like(seen)))


def test_map_tiles_keeps_the_order(case):
    tiles = [(i, i + 1, 0, 1) for i in range(40)]
    assert list(case.backend.map_tiles(lambda t: t[0], tiles)) == list(range(40))


def test_numpy_spreads_tiles_over_threads(monkeypatch):
    # A machine that is busy would be left alone.
    monkeypatch.setattr(_numpy, "_free_cores", lambda *_: 4)
    barrier = threading.Barrier(2, timeout=10)
    seen = set()

    def work(tile):
        if tile[0] < 2:
            barrier.wait()
        seen.add(threading.get_ident())
        return tile[0]

    tiles = [(i, i + 1, 0, 1) for i in range(200)]
    assert list(backend.get("numpy").map_tiles(work, tiles)) == list(range(200))
    assert len(seen) >= 2

    def fail(tile):
        raise ValueError("inside a tile")

    with pytest.raises(ValueError, match="inside a tile"):
        list(backend.get("numpy").map_tiles(fail, tiles))


def test_numpy_gives_the_same_bits_with_any_number_of_threads(monkeypatch):
    from gplvm_xp.kernels import RBF

    X = np.random.default_rng(0).standard_normal((400, 2))
    S = positive(400)
    monkeypatch.setattr(_numpy.NumpyBackend, "tile_shape", lambda self, n: (16, 32))
    results = []
    for threads in (1, 4, 7):
        monkeypatch.setattr(_numpy, "_threads", lambda threads=threads: threads)
        results.append(RBF().symmetric_pullback(np.ones(2), X, S.copy()))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_numpy_factorises_and_inverts_in_place():
    """One buffer: what comes back is the memory that went in."""
    b = backend.get("numpy")
    for dtype in (np.float64, np.float32):
        K = positive(40).astype(dtype)
        b = backend.of(K)
        L, _ = b.cholesky(K)
        assert np.shares_memory(L, K)
        assert L.flags.c_contiguous
        S = b.inverse_from_cholesky(L)
        assert np.shares_memory(S, K)
        G = b.rank_update(S, np.ones((40, 2), dtype=dtype), 0.5, -1.0)
        assert np.shares_memory(G, K)
        assert np.shares_memory(b.add_diagonal(G, b.scalar(1.0)), K)
        assert np.shares_memory(b.complete(G), K)


# -- memory ----------------------------------------------------------------------------------------


def test_memory_left_is_a_sensible_number():
    have = backend.get("numpy").memory_available()
    assert have is None or 2**20 < have < 2**50


def test_require_memory(monkeypatch):
    b = backend.get("numpy")
    b.require_memory(8, "a number", "do not")
    monkeypatch.setattr(type(b), "memory_available", lambda self: None)
    b.require_memory(2**62, "anything, where nothing is known", "do not")
    monkeypatch.setattr(type(b), "memory_available", lambda self: 2**20)
    with pytest.raises(NotEnoughMemoryError) as caught:
        b.require_memory(2**30, "the table", "use a smaller one")
    for word in ("the table", str(2**30), "1.00 GiB", "0.00 GiB left", "numpy", "a smaller one"):
        assert word in str(caught.value)


# -- the harness itself ----------------------------------------------------------------------------


def test_the_reference_serves_any_conforming_library():
    """array-api-strict has no file of its own in the package."""
    if why_not("strict-f64"):
        pytest.skip(why_not("strict-f64"))
    for name in ("strict-f64", "strict-device1-f64", "strictest"):
        with open_case(name) as case:
            assert type(case.backend) is Backend
            assert case.backend.fused(None, 2) is None


def test_selection_by_the_environment(monkeypatch):
    monkeypatch.setenv("GPLVM_XP_BACKENDS", "numpy,strict-f32")
    assert selected() == ("numpy-f64", "numpy-f32", "numpy-readonly", "strict-f32")
    monkeypatch.setenv("GPLVM_XP_BACKENDS", "all")
    assert selected() == tuple(CASES)
    assert demanded() == ()
    monkeypatch.setenv("GPLVM_XP_BACKENDS", "nonsense")
    with pytest.raises(pytest.UsageError, match=r"nonsense.*expected 'all'"):
        selected()


def test_a_backend_that_is_named_must_be_there():
    """A run that asks for the GPU can't pass by skipping everything."""
    if not why_not("cupy"):
        pytest.skip("there is a GPU")
    import os
    import subprocess
    import sys
    from pathlib import Path

    here = Path(__file__).parent
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
            f"{here / 'test_backends.py'}::test_rows",
        ],
        capture_output=True, text=True, check=False, cwd=here.parent,
        env={**os.environ, "GPLVM_XP_BACKENDS": "cupy"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "GPLVM_XP_BACKENDS names cupy, but no GPU" in done.stdout


def test_primitives_of_the_contract_are_documented():
    for name, member in vars(Backend).items():
        if not name.startswith("_") and callable(member):
            assert inspect.getdoc(member), name


def test_threads_over_tiles_change_no_bit(monkeypatch):
    """The threaded schedule needs four free cores: it is forced here, beside the serial one."""
    rng = np.random.default_rng(0)
    n, kernel = 200, RBF(1.3, (0.7, 1.1))
    X, G, theta = rng.standard_normal((n, 2)), rng.standard_normal((n, n)), kernel.theta()
    monkeypatch.setattr(_numpy.NumpyBackend, "tile_shape", lambda self, n: (8, 16))
    names, results = set(), []
    map_tiles = _numpy.NumpyBackend.map_tiles

    def watched(self, function, tiles):
        def noted(tile):
            names.add(threading.current_thread().name)
            return function(tile)

        return map_tiles(self, noted, tiles)

    monkeypatch.setattr(_numpy.NumpyBackend, "map_tiles", watched)
    for workers in (1, 3):
        monkeypatch.setattr(_numpy, "_free_cores", lambda workers=workers: workers)
        names.clear()
        K = kernel.fill_lower(theta, X, np.zeros((n, n)))
        results.append((K, *kernel.symmetric_pullback(theta, X, G.copy())))
        assert any("ThreadPool" in name for name in names) == (workers > 1)
    for serial, threaded in zip(*results, strict=True):
        np.testing.assert_array_equal(serial, threaded)


@pytest.mark.parametrize(
    ("running", "threads", "free"),
    [("1/90", 8, 8), ("8/90", 8, 8), ("12/90", 8, 4), ("99/120", 8, 1), ("1/90", 2, 1)],
)
def test_free_cores(monkeypatch, tmp_path, running, threads, free):
    load = tmp_path / "loadavg"
    load.write_text(f"0.1 0.2 0.3 {running} 4242\n")
    monkeypatch.setattr(_numpy, "Path", lambda path: load)
    monkeypatch.setattr(_numpy, "_threads", lambda: threads)
    monkeypatch.setattr(_numpy.os, "cpu_count", lambda: 8)
    assert _numpy._free_cores() == free
