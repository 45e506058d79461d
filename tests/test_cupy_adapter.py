"""The thin layer over CuPy, with a stand-in for the ``cupy`` module: no GPU, no CUDA library."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from host_cublas import HostCublas, HostCusolver, Memory

from gplvm_xp import backend
from gplvm_xp.backend.cuda import blocked
from gplvm_xp.backend.cuda.blocked import Stack, View

_cupy: Any = import_module("gplvm_xp.backend._cupy")


class FakeKernel:
    """Records what ``cupy.RawKernel`` and ``cupy.ElementwiseKernel`` are given."""

    made: list[tuple[Any, ...]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.max_dynamic_shared_size_bytes = 0
        self.launches: list[Any] = []
        type(self).made.append((self, args, kwargs))

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.launches.append((args, kwargs))


class FakeOutOfMemoryError(MemoryError):
    """Stands for CuPy's."""


class FakePool:
    """100 bytes in the pool, 40 of them in use."""

    limit = 0

    def free_bytes(self) -> int:
        return 60

    def used_bytes(self) -> int:
        return 40

    def get_limit(self) -> int:
        return self.limit


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for CuPy whose device memory is the host's."""
    fake: Any = ModuleType("cupy")
    fake.RawKernel = type("RawKernel", (FakeKernel,), {"made": []})
    fake.ElementwiseKernel = type("ElementwiseKernel", (FakeKernel,), {"made": []})
    pool = FakePool()
    fake.get_default_memory_pool = lambda: pool
    fake.pool, blocks = pool, []

    def alloc(n_bytes: int) -> Any:
        blocks.append(np.empty(n_bytes, np.uint8))
        return SimpleNamespace(ptr=blocks[-1].ctypes.data)

    fake.cuda = SimpleNamespace(
        device=SimpleNamespace(
            get_cublas_handle=lambda: HostCublas.HANDLE,
            get_cusolver_handle=lambda: HostCusolver.HANDLE,
        ),
        memory=SimpleNamespace(OutOfMemoryError=FakeOutOfMemoryError),
        Device=lambda: SimpleNamespace(mem_info=(1000, 5000), id=0),
        alloc=alloc,
    )
    memory = Memory()
    libraries: Any = ModuleType("cupy_backends.cuda.libs")
    libraries.cublas, libraries.cusolver = HostCublas(memory), HostCusolver(memory)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    for name in ("cupy_backends", "cupy_backends.cuda"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs", libraries)
    for cached in (_cupy._raw, _cupy._elementwise):
        cached.cache_clear()
    yield fake
    for cached in (_cupy._raw, _cupy._elementwise):
        cached.cache_clear()


def test_a_kernel_is_made_once(cupy: Any) -> None:
    launcher = _cupy.CupyLauncher()
    first = launcher.raw("source", "name", ("-DREAL=double",))
    assert launcher.raw("source", "name", ("-DREAL=double",)) is first
    assert _cupy.CupyLauncher().raw("source", "name", ("-DREAL=double",)) is first
    assert launcher.raw("source", "name", ("-DREAL=float",)) is not first
    (kernel, args, kwargs), _ = cupy.RawKernel.made
    assert args == ("source", "name")
    assert kwargs == {"options": ("-DREAL=double",)}
    first([2, 3], [128], [1, 2], shared_mem=1024)
    assert kernel.launches == [(((2, 3), (128,), (1, 2)), {"shared_mem": 1024})]
    assert kernel.max_dynamic_shared_size_bytes == 0
    first((1,), (1,), (), shared_mem=100_000)
    assert kernel.max_dynamic_shared_size_bytes == 100_000


def test_an_elementwise_kernel_is_made_once(cupy: Any) -> None:
    launcher = _cupy.CupyLauncher()
    kernel = launcher.elementwise("T x", "T y", "y = x", "copy", "#define A")
    assert launcher.elementwise("T x", "T y", "y = x", "copy", "#define A") is kernel
    ((_, args, kwargs),) = cupy.ElementwiseKernel.made
    assert args == ("T x", "T y", "y = x", "copy")
    assert kwargs == {"preamble": "#define A"}


def test_memory_is_the_devices_and_the_pools_within_its_limit(cupy: Any) -> None:
    runtime = _cupy.CupyRuntime()
    assert runtime.free_bytes() == 1060
    cupy.pool.limit = 200
    assert runtime.free_bytes() == 160
    assert runtime.out_of_memory is FakeOutOfMemoryError


def test_addresses_and_copies() -> None:
    runtime = _cupy.CupyRuntime()
    device = SimpleNamespace(data=SimpleNamespace(ptr=2**45), get=lambda: np.arange(3))
    assert runtime.address(device) == 2**45
    np.testing.assert_array_equal(runtime.get(device), np.arange(3))
    assert type(runtime.get(np.float64(2.0))) is np.ndarray


@pytest.mark.parametrize("name", ["log_ndtr", "ndtr", "erfcx", "gammaln", "digamma"])
def test_special_functions_are_cupys(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    special: Any = ModuleType("cupyx.scipy.special")
    setattr(special, name, lambda a: (name, a))
    for parent, child in (("cupyx", "scipy"), ("cupyx.scipy", "special")):
        package: Any = ModuleType(parent)
        setattr(package, child, special if child == "special" else ModuleType("cupyx.scipy"))
        monkeypatch.setitem(sys.modules, parent, package)
    sys.modules["cupyx"].scipy = sys.modules["cupyx.scipy"]
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", special)
    assert _cupy.CupyRuntime().special(name, 3.0) == (name, 3.0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_blas_is_wired_to_cupys_modules(cupy: Any, dtype: Any) -> None:
    A = np.random.default_rng(0).normal(size=(40, 40))
    K = (A @ A.T + 40.0 * np.eye(40)).astype(dtype)
    buffer, info = np.array(K), np.zeros(3, np.int32)
    view = View(buffer.ctypes.data, 40, 40, 40, buffer.itemsize)
    blocked.factor(_cupy.cublas(), view, info.ctypes.data, 16)
    expected = np.linalg.cholesky(K.astype(float))
    tolerance = 1e-12 if dtype is np.float64 else 1e-4
    np.testing.assert_allclose(np.tril(buffer), expected, rtol=tolerance, atol=tolerance)
    assert not info.any()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_batched_routines_are_wired_to_cupys_modules(cupy: Any, dtype: Any) -> None:
    A = np.random.default_rng(0).normal(size=(3, 7, 7))
    K = (A @ A.swapaxes(1, 2) + 7.0 * np.eye(7)).astype(dtype)
    B = np.random.default_rng(1).normal(size=(3, 7, 2)).astype(dtype)
    L, Z, info = np.array(K), np.array(B), np.zeros(3, np.int32)
    places = [np.array([a.ctypes.data + i * a[0].nbytes for i in range(3)], np.uint64)
              for a in (L, Z)]  # fmt: skip
    stacks = [
        Stack(p.ctypes.data, 3, 7, m, L.itemsize) for p, m in zip(places, (7, 2), strict=True)
    ]
    made = _cupy.cublas()
    made.factor_many(stacks[0], info.ctypes.data)
    made.solve_left_many(*stacks[:1], False, stacks[1])
    factor = np.linalg.cholesky(K.astype(float))
    tolerance = 1e-12 if dtype is np.float64 else 1e-4
    np.testing.assert_allclose(np.tril(L), factor, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(factor @ Z, B, rtol=tolerance, atol=tolerance)
    assert not info.any()


class TestProbe:
    """Every way of having no GPU has words of its own."""

    @pytest.fixture(autouse=True)
    def fresh(self) -> Any:
        _cupy.why_no_gpu.cache_clear()
        yield
        _cupy.why_no_gpu.cache_clear()

    def test_no_cupy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cupy", None)
        assert "CuPy can't be imported" in str(_cupy.why_no_gpu())

    def test_no_device(self, cupy: Any) -> None:
        cupy.is_available = lambda: False
        assert _cupy.why_no_gpu() == "no CUDA device or driver was found"

    def test_no_compiler(self, cupy: Any) -> None:
        def arange(_: float) -> Any:
            raise RuntimeError("libnvrtc.so:\n not found")

        cupy.is_available, cupy.arange = lambda: True, arange
        assert _cupy.why_no_gpu() == "RuntimeError: libnvrtc.so: not found"

    def test_wrong_arithmetic(self, cupy: Any) -> None:
        cupy.is_available, cupy.arange = lambda: True, lambda n: np.arange(n) * 2
        assert "wrongly" in str(_cupy.why_no_gpu())

    def test_a_working_gpu(self, cupy: Any) -> None:
        cupy.is_available, cupy.arange = lambda: True, np.arange
        assert _cupy.why_no_gpu() is None

    def test_it_is_asked_once(self, cupy: Any) -> None:
        calls: list[int] = []
        cupy.is_available = lambda: bool(calls.append(1))
        assert _cupy.why_no_gpu() == _cupy.why_no_gpu()
        assert len(calls) == 1


def test_naming_cupy_reaches_the_cupy_module(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(_cupy, "why_no_gpu", lambda: None)
    monkeypatch.setattr(_cupy, "cupy_backend", lambda *args: made.append(args))
    for name in ("cupy", "auto"):
        backend.get(name, dtype="float32")
    assert made == [(None, np.dtype("float32"))] * 2
