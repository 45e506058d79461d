"""Blocked potrf and potri in one buffer, and the GPU backend's linear algebra, on stand-ins."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from emulated import EmuArray, HiddenWaitError, emulated_arrays, emulated_backend
from emulator import why_no_emulator
from host_cublas import host_blas

from gplvm_xp import backend
from gplvm_xp.backend.cuda import blocked
from gplvm_xp.backend.cuda.blocked import View
from gplvm_xp.kernels import RBF, Matern52, White
from gplvm_xp.objectives import ExactObjective, groups_of

LEAF = 16
SIZES = [1, 2, LEAF - 1, LEAF, LEAF + 1, 2 * LEAF, 3 * LEAF + 5, 9 * LEAF + 1]
DTYPES = [np.float64, np.float32]


def covariance(n: int, dtype: Any, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    r2 = ((x[:, None] - x[None]) ** 2).sum(-1)
    return (np.exp(-0.5 * r2) + 0.1 * np.eye(n)).astype(dtype)


def lower_only(K: np.ndarray) -> np.ndarray:
    """The upper triangle must never be read."""
    out = np.array(K, order="C")
    out[np.triu_indices(K.shape[0], 1)] = np.nan
    return out


def view(a: np.ndarray, stride: int | None = None) -> View:
    return View(a.ctypes.data, stride or a.shape[1], a.shape[0], a.shape[1], a.itemsize)


class Scratch:
    """The one leaf of scratch memory."""

    def __init__(self, leaf: int, dtype: Any) -> None:
        self.memory = np.full((leaf, leaf), np.nan, dtype)

    def __call__(self, rows: int) -> View:
        self.memory[...] = np.eye(*self.memory.shape)
        return view(self.memory).block(0, rows, 0, rows)

    @property
    def span(self) -> tuple[int, int]:
        start = self.memory.ctypes.data
        return start, start + self.memory.nbytes


@dataclass
class Recorder:
    """A BLAS without memory: counts flops, and keeps every address and argument."""

    flops: float = 0.0
    last_byte: int = 0
    arguments: set[int] = field(default_factory=set)
    calls: int = 0

    def _see(self, *views: View) -> None:
        self.calls += 1
        for v in views:
            self.arguments |= {v.rows, v.columns, v.stride}
            end = v.pointer + ((v.rows - 1) * v.stride + v.columns) * v.itemsize
            self.last_byte = max(self.last_byte, end)

    def gemm(self, alpha, a, trans_a, b, trans_b, beta, c) -> None:
        inner = a.rows if trans_a else a.columns
        assert (a.columns if trans_a else a.rows) == c.rows
        assert (b.rows if trans_b else b.columns) == c.columns
        assert (b.columns if trans_b else b.rows) == inner
        self._see(a, b, c)
        self.flops += 2.0 * c.rows * c.columns * inner

    def solve_left(self, lower, trans, b) -> None:
        assert lower.rows == lower.columns == b.rows
        self._see(lower, b)
        self.flops += float(b.rows) ** 2 * b.columns

    def solve_right(self, lower, trans, b) -> None:
        assert lower.rows == lower.columns == b.columns
        self._see(lower, b)
        self.flops += float(b.columns) ** 2 * b.rows

    def transpose(self, a, b) -> None:
        assert (a.rows, a.columns) == (b.columns, b.rows)
        self._see(a, b)

    def factor(self, a, info) -> None:
        assert a.rows == a.columns
        self._see(a)
        self.arguments.add(info % 2**31)
        self.flops += a.rows**3 / 3.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_factor_and_inverse_match_lapack_in_place(n: int, dtype: Any) -> None:
    K = covariance(n, dtype)
    buffer, blas, scratch = lower_only(K), host_blas(), Scratch(min(LEAF, n), dtype)
    info = np.full(blocked.slots(n, LEAF) + 1, -7, np.int32)
    blocked.factor(blas, view(buffer), info.ctypes.data, LEAF)
    tolerance = 2e-12 if dtype is np.float64 else 5e-4
    np.testing.assert_array_equal(info, [0] * (info.size - 1) + [-7])
    expected = scipy.linalg.cholesky(K.astype(float), lower=True)
    np.testing.assert_allclose(np.tril(buffer), expected, rtol=tolerance, atol=tolerance)
    buffer[np.triu_indices(n, 1)] = np.nan
    blocked.inverse(blas, view(buffer), scratch, LEAF)
    S = np.linalg.inv(K.astype(float))
    np.testing.assert_allclose(buffer, S, rtol=20 * tolerance, atol=20 * tolerance)
    np.testing.assert_allclose(buffer, buffer.T, rtol=tolerance, atol=10 * tolerance)


def test_lower_only_inverse_leaves_the_lower_triangle_right() -> None:
    K = covariance(5 * LEAF + 3, np.float64)
    buffer = lower_only(scipy.linalg.cholesky(K, lower=True))
    scratch = Scratch(LEAF, np.float64)
    blocked.inverse(host_blas(), view(buffer), scratch, LEAF, full=False)
    np.testing.assert_allclose(np.tril(buffer), np.tril(np.linalg.inv(K)), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_of_a_wider_buffer_is_enough(dtype: Any) -> None:
    n, width = 3 * LEAF + 5, 4 * LEAF + 9
    K = covariance(n, dtype)
    wide = np.full((n + 2, width), 7.0, dtype)
    wide[1 : n + 1, 3 : n + 3] = K
    inside = np.zeros(wide.shape, bool)
    inside[1 : n + 1, 3 : n + 3] = True
    block = View(wide[1:, 3:].ctypes.data, width, n, n, wide.itemsize)
    info = np.zeros(blocked.slots(n, LEAF), np.int32)
    blocked.factor(host_blas(), block, info.ctypes.data, LEAF)
    blocked.inverse(host_blas(), block, Scratch(LEAF, dtype), LEAF)
    assert (wide[~inside] == 7.0).all()
    tolerance = 1e-10 if dtype is np.float64 else 1e-2
    expected = np.linalg.inv(K.astype(float))
    np.testing.assert_allclose(wide[1 : n + 1, 3 : n + 3], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bad", [0, LEAF - 1, LEAF, 3 * LEAF + 4])
def test_not_positive_definite_is_a_value(bad: int) -> None:
    K = covariance(3 * LEAF + 5, np.float64)
    K[bad, bad] = -1.0
    buffer = lower_only(K)
    info = np.zeros(blocked.slots(K.shape[0], LEAF), np.int32)
    blocked.factor(host_blas(), view(buffer), info.ctypes.data, LEAF)
    assert info[bad // LEAF] == bad % LEAF + 1
    assert not info[: bad // LEAF].any()


@pytest.mark.parametrize("n", SIZES)
def test_memory_is_the_buffer_and_one_leaf(n: int) -> None:
    buffer = lower_only(covariance(n, np.float64))
    blas, scratch = host_blas(), Scratch(min(LEAF, n), np.float64)
    info = np.zeros(blocked.slots(n, LEAF), np.int32)
    work: list[tuple[int, int]] = []
    inner = blas.workspace

    def workspace(n_bytes: int) -> tuple[Any, int]:
        owner, address = inner(n_bytes)
        work.append((address, address + n_bytes))
        return owner, address

    object.__setattr__(blas, "workspace", workspace)
    blocked.factor(blas, view(buffer), info.ctypes.data, LEAF)
    blocked.inverse(blas, view(buffer), scratch, LEAF)
    start, slot = buffer.ctypes.data, info.ctypes.data
    allowed = [(start, start + buffer.nbytes), scratch.span, (slot, slot + info.nbytes), *work]
    assert blas.blas.memory.touched
    for low, high in blas.blas.memory.touched:
        assert any(a <= low and high <= b for a, b in allowed), "memory outside the buffer"
    assert max(blas.solver.leaves) <= LEAF
    # The handle goes back as it came, in device pointer mode.
    assert blas.blas.mode == blas.blas.CUBLAS_POINTER_MODE_DEVICE


@pytest.mark.parametrize("n", [60_000, 125_000])
def test_addresses_beyond_32_bits(n: int) -> None:
    base, blas = 2**46, Recorder()
    whole = View(base, n, n, n, 8)
    blocked.factor(blas, whole, 2**45)
    factor_flops, blas.flops = blas.flops, 0.0
    scratch = View(0, blocked.INVERSE_LEAF, 0, 0, 8)
    blocked.inverse(blas, whole, lambda r: scratch.block(0, r, 0, r))
    assert blas.last_byte == base + 8 * n * n
    assert 8 * n * n > 2**34
    assert max(blas.arguments) < 2**31
    assert max(blas.arguments - {2**45 % 2**31}) == n
    assert factor_flops <= 1.1 * n**3 / 3.0
    assert blas.flops <= 0.75 * n**3
    assert blas.calls < 20_000


def test_flops_stay_near_lapack_at_moderate_size() -> None:
    n, blas = 8000, Recorder()
    blocked.factor(blas, View(0, n, n, n, 8), 0)
    assert blas.flops <= 1.15 * n**3 / 3.0
    blas.flops = 0.0
    blocked.inverse(blas, View(0, n, n, n, 8), lambda r: View(0, r, r, r, 8))
    assert blas.flops <= 0.8 * n**3


def test_every_leaf_has_its_own_status_slot() -> None:
    seen: list[tuple[int, int]] = []

    class Leaves(Recorder):
        def factor(self, a, info) -> None:
            seen.append((info, a.rows))

    n = 11 * LEAF + 3
    blocked.factor(Leaves(), View(0, n, n, n, 8), 1000, LEAF)
    assert [s for s, _ in seen] == [1000 + 4 * k for k in range(blocked.slots(n, LEAF))]
    assert sum(rows for _, rows in seen) == n


# -- the backend's methods on emulated device arrays -----------------------------------------------


@pytest.fixture(params=DTYPES, ids=["float64", "float32"])
def device(request: pytest.FixtureRequest) -> Any:
    return emulated_backend(request.param, leaf=LEAF)


needs_compiler = pytest.mark.skipif(why_no_emulator() is not None, reason=str(why_no_emulator()))


def close(device: Any, got: EmuArray, expected: np.ndarray, loose: float = 1.0) -> None:
    assert type(got) is EmuArray
    assert got.dtype == device.dtype
    tolerance = loose * (1e-10 if device.dtype == np.float64 else 2e-2)
    np.testing.assert_allclose(device.to_host(got), expected, rtol=tolerance, atol=tolerance)


@needs_compiler
@pytest.mark.parametrize("n", [1, LEAF, 3 * LEAF + 5])
def test_backend_linear_algebra(device: Any, n: int) -> None:
    rng = np.random.default_rng(1)
    K, B = covariance(n, float), rng.normal(size=(n, 4))
    A = device.asarray(lower_only(K))
    address = device.runtime.address(A)
    L, ok = device.cholesky(A)
    assert device.runtime.address(L) == address, "not in place"
    assert ok.shape == ()
    assert bool(device.to_host(ok))
    truth = scipy.linalg.cholesky(K, lower=True)
    b = device.asarray(B)
    for trans in (False, True):
        expected = scipy.linalg.solve_triangular(truth, B, lower=True, trans=int(trans))
        close(device, device.solve_triangular(L, b, trans), expected)
    close(device, device.cho_solve(L, b), np.linalg.solve(K, B))
    close(device, b, B)
    close(device, device.cho_solve(L, device.asarray(np.asfortranarray(B))), np.linalg.solve(K, B))
    S = device.inverse_from_cholesky(L)
    assert device.runtime.address(S) == address, "not in place"
    inverse = np.linalg.inv(K)
    close(device, S, inverse)
    updated = device.rank_update(S, b, -0.5, 2.0)
    assert device.runtime.address(updated) == address, "not in place"
    expected = 2.0 * inverse - 0.5 * B @ B.T
    close(device, device.xp.tril(updated), np.tril(expected))
    close(device, device.add_diagonal(device.complete(updated), 3.0), expected + 3.0 * np.eye(n))


@needs_compiler
def test_complete_and_diagonal(device: Any) -> None:
    n = 2 * LEAF + 3
    K = covariance(n, float)
    close(device, device.complete(device.asarray(lower_only(K))), K)
    shift = np.arange(n) + 1.0
    shifted = device.add_diagonal(device.asarray(K), device.asarray(shift))
    close(device, shifted, K + np.diag(shift))
    close(device, device.diagonal(shifted), np.diag(K) + shift)


def test_rank_update_by_nothing(device: Any) -> None:
    C = device.asarray(np.ones((3, 3)))
    close(device, device.rank_update(C, device.zeros((3, 0)), 1.0, 0.5), np.full((3, 3), 0.5))
    empty = device.solve_triangular(device.asarray(np.eye(3)), device.zeros((3, 0)))
    assert empty.shape == (3, 0)


@pytest.mark.parametrize("poison", [-1.0, 0.0, np.nan, np.inf])
@pytest.mark.parametrize("where", [(0, 0), (LEAF + 2, LEAF + 2), (2 * LEAF + 1, 3)])
def test_cholesky_says_no_without_raising(device: Any, poison: float, where: tuple) -> None:
    if where[0] != where[1] and np.isfinite(poison):
        poison = 1e6
    K = covariance(3 * LEAF, float)
    K[where] = poison
    _, ok = device.cholesky(device.asarray(lower_only(K)))
    assert type(ok) is EmuArray
    assert not bool(device.to_host(ok))


@needs_compiler
def test_no_method_waits(device: Any) -> None:
    n = 3 * LEAF + 5
    L, _ = device.cholesky(device.asarray(covariance(n, float)))
    device.cho_solve(L, device.zeros((n, 2)))
    device.rank_update(device.complete(device.inverse_from_cholesky(L)), device.zeros((n, 2)), 1, 1)
    assert device.runtime.waits == 0


@needs_compiler
@pytest.mark.parametrize("missing", [False, True])
def test_objective_on_the_device_path_agrees_and_never_waits(missing: bool) -> None:
    rng = np.random.default_rng(4)
    X, Y = rng.normal(size=(3 * LEAF + 5, 3)), rng.normal(size=(3 * LEAF + 5, 6))
    if missing:
        Y[:20, :3] = np.nan
    kernel, host = RBF(1.2, (1.0, 2.0, 0.7)) + Matern52(0.3, 1.5) + White(0.1), backend.get("numpy")
    reference = ExactObjective(kernel, groups_of(host, Y), X, 0.3)
    f0, g0 = reference.value_and_grad(reference.start())
    with emulated_arrays(leaf=LEAF) as device:
        objective = ExactObjective(kernel, groups_of(device, Y), X, 0.3)
        x = objective.start()
        f, g = objective.value_and_grad(x)
        assert type(f) is type(g) is EmuArray
        assert device.runtime.waits == 0
        np.testing.assert_allclose(device.to_host(f), f0, rtol=1e-12)
        np.testing.assert_allclose(device.to_host(g), g0, rtol=1e-10, atol=1e-10)
        bad, _ = objective.value_and_grad(device.xp.nan * x)
        assert np.isposinf(device.to_host(bad))


def test_emulated_arrays_have_a_device_arrays_manners() -> None:
    with emulated_arrays() as device:
        a = device.asarray([[1.0, 2.0], [3.0, 4.0]])
        assert backend.of(a).name == "emulated"
        for read in (float, int, bool):
            with pytest.raises(HiddenWaitError):
                read(a[0, 0])
        with pytest.raises(HiddenWaitError):
            a[a > 1.0]
        with pytest.raises(TypeError, match="host array"):
            a + np.ones((2, 2))
        with pytest.raises(TypeError, match="use xp"):
            np.linalg.norm(a)
        assert type(device.xp.sum(a)) is EmuArray
        assert type(a[0, 0] * 2.0) is EmuArray
    assert EmuArray not in backend._FACTORIES


def test_out_of_memory_is_refused_in_words() -> None:
    from gplvm_xp.errors import NotEnoughMemoryError

    device = emulated_backend()
    with pytest.raises(NotEnoughMemoryError, match=r"bytes.*emulated"):
        device.empty((2**26, 2**26))
