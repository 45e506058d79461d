"""The CUDA emulator: it runs what a GPU would run, and each kind of fault is noticed."""

from __future__ import annotations

import numpy as np
import pytest
from emulator import ORDERS, EmulatedLauncher, EmulationError, why_no_emulator

pytestmark = pytest.mark.skipif(
    why_no_emulator() is not None, reason=why_no_emulator() or "the emulator works"
)

# One source, so that g++ runs once for all of these.
KERNELS = r"""
extern "C" __global__ void indices(int* out) {
  const int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[b * blockDim.x * blockDim.y * blockDim.z + t] += 1000 * b + t;
}
extern "C" __global__ void shift(const double* x, double* y, int by) {
  y[threadIdx.x] = x[(int)threadIdx.x + by];
}
extern "C" __global__ void put(double* y, int at) { y[at] = 1.0; }
extern "C" __global__ void dynamic_shared(double* y, int at) {
  extern __shared__ double buffer[];
  buffer[at] = 3.0;
  y[0] = buffer[at] + buffer[at == 0 ? 1 : 0];
}
extern "C" __global__ void static_shared(double* y, int at) {
  __shared__ double a[4];
  y[blockIdx.x] = a[at];
  a[at] = 1.0;
}
template <int N> __device__ double templated(int at) {
  __shared__ double a[N];
  const double seen = a[at];
  a[at] = 1.0;
  return seen;
}
extern "C" __global__ void template_shared(double* y) { y[blockIdx.x] = templated<3>(0); }
extern "C" __global__ void local_array(double* y, int at) {
  double a[3] = {1.0, 2.0, 3.0};
  y[0] = a[at];
}
extern "C" __global__ void product(long long* y, int a, int b) { y[0] = a * b; }
extern "C" __global__ void sum(int* y, int a, int b) { y[0] = a + b; }
extern "C" __global__ void quotient(int* y, int a, int b) { y[0] = a / b; }
extern "C" __global__ void some_return(double* y) {
  if (threadIdx.x >= 7) return;
  __syncthreads();
  y[threadIdx.x] = 1.0;
}
extern "C" __global__ void diverge(double* y) {
  if (threadIdx.x % 2)
    __syncthreads();
  else
    __syncthreads();
  y[threadIdx.x] = 1.0;
}
extern "C" __global__ void deadlock(double* y) {
  if (threadIdx.x == 0) __syncwarp(); else __syncthreads();
  y[threadIdx.x] = 1.0;
}
extern "C" __global__ void warp_sum(const double* x, double* y) {
  double v = x[threadIdx.x];
  for (int d = 16; d > 0; d /= 2) v += __shfl_down_sync(0xffffffffu, v, d);
  if (threadIdx.x % 32 == 0) y[threadIdx.x / 32] = v;
}
extern "C" __global__ void shuffles(const int* x, int* y) {
  const int t = threadIdx.x, v = x[t];
  y[4 * t] = __shfl_sync(0xffffffffu, v, 5);
  y[4 * t + 1] = __shfl_xor_sync(0xffffffffu, v, 1);
  y[4 * t + 2] = __shfl_up_sync(0xffffffffu, v, 1);
  y[4 * t + 3] = __shfl_down_sync(0xffffffffu, v, 1);
}
extern "C" __global__ void masked(double* y) {
  y[threadIdx.x] = threadIdx.x < 16 ? __shfl_sync(0x0000ffffu, 1.0, 20) : 0.0;
}
extern "C" __global__ void count(int* y) { atomicAdd(y, 1); }
extern "C" __global__ void reversed(const double* x, double* y) {
  __shared__ double a[64];
  a[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = a[63 - threadIdx.x];
}
extern "C" __global__ void far(double* x, long long columns) {
  const long long row = blockIdx.x;
  x[row * columns + columns - 1] = (double)row;
}
__device__ __noinline__ double deep(volatile double* y, int n) {
  volatile double a[1000];
  a[n % 1000] = y[0];
  return n == 0 ? a[0] : deep(y, n - 1) + a[n % 1000];
}
extern "C" __global__ void deep_stack(double* y, int n) {
  y[0] = deep(y, n);
  __syncthreads();
}
"""


def run(name, args, grid=(1,), block=(1,), shared=0, **options):
    launcher = EmulatedLauncher(**options)
    launcher.raw(KERNELS, name, ())(grid, block, args, shared_mem=shared)
    return launcher


@pytest.mark.parametrize("order", ORDERS)
def test_every_thread_runs_once_with_its_indices(order):
    out = np.zeros((24, 12), np.int32)
    launcher = run("indices", (out,), (2, 3, 4), (3, 2, 2), order=order)
    np.testing.assert_array_equal(out, 1000 * np.arange(24)[:, None] + np.arange(12))
    assert launcher.launches == {"indices": 1}


@pytest.mark.parametrize("order", ORDERS)
def test_shuffles_move_values_within_a_warp(order):
    x = np.arange(96.0) ** 2
    y = np.full(3, np.nan)
    run("warp_sum", (x, y), block=(96,), order=order)
    np.testing.assert_array_equal(y, x.reshape(3, 32).sum(1))
    x, y = np.arange(64, dtype=np.int32), np.zeros((64, 4), np.int32)
    run("shuffles", (x, y), block=(64,), order=order)
    lane, warp = x % 32, x // 32 * 32
    expected = [warp + 5, x ^ 1, warp + np.maximum(lane - 1, 0), warp + np.minimum(lane + 1, 31)]
    np.testing.assert_array_equal(y.T, expected)


def test_atomics_lose_nothing():
    y = np.zeros(1, np.int32)
    run("count", (y,), (5,), (40,))
    assert y[0] == 200


def test_shared_memory_is_poisoned_before_every_block():
    for name, args in (("static_shared", (np.int32(2),)), ("template_shared", ())):
        y = np.zeros(3)
        run(name, (y, *args), (3,))
        assert np.isnan(y).all(), name
    y = np.zeros(1)
    run("dynamic_shared", (y, np.int32(0)), shared=16)
    assert np.isnan(y[0])


@pytest.mark.parametrize(
    ("guard", "by", "text"),
    [("after", 1, "0 bytes after its end"), ("before", -1, "8 bytes before its start")],
)
def test_read_out_of_bounds(guard, by, text):
    x, y = np.arange(5.0), np.zeros(5)
    with pytest.raises(EmulationError, match=text):
        run("shift", (x, y, np.int32(by)), block=(5,), guard=guard)
    run("shift", (x, y, np.int32(-by)), block=(5,), guard=guard)
    assert np.isnan(y).sum() == 1, "a read on the side without the guard gives a NaN"


@pytest.mark.parametrize("guard", ["after", "before"])
@pytest.mark.parametrize("at", [-600, -1, 3, 600])
def test_write_out_of_bounds(guard, at):
    with pytest.raises(EmulationError, match="out of bounds"):
        run("put", (np.zeros(3), np.int32(at)), guard=guard)


def test_out_of_bounds_of_shared_and_local_arrays():
    y = np.zeros(1)
    with pytest.raises(EmulationError, match="shared memory"):
        run("dynamic_shared", (y, np.int32(4)), shared=32)
    for name, at in (("static_shared", 4), ("local_array", 3), ("local_array", -1)):
        with pytest.raises(EmulationError, match="index out of bounds of a local or shared array"):
            run(name, (y, np.int32(at)))


def test_stack_overflow_of_a_thread():
    y = np.zeros(1)
    with pytest.raises(EmulationError, match="out of bounds"):
        run("deep_stack", (y, np.int32(100)))


@pytest.mark.parametrize(
    ("name", "kind", "a", "b", "text"),
    [
        ("product", np.int64, 50_000, 50_000, r"overflow in \* at line \d+"),
        ("sum", np.int32, 2**31 - 1, 1, r"overflow in \+"),
        ("quotient", np.int32, 1, 0, "division by zero"),
    ],
)
def test_integer_faults(name, kind, a, b, text):
    with pytest.raises(EmulationError, match=text):
        run(name, (np.zeros(1, kind), np.int32(a), np.int32(b)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("some_return", "not reached by 25 thread"),
        ("diverge", "divergent __syncthreads"),
        ("deadlock", "deadlock"),
        ("masked", "which its mask leaves out"),
    ],
)
def test_barrier_faults(name, text):
    with pytest.raises(EmulationError, match=text):
        run(name, (np.zeros(32),), block=(32,))


def test_missing_barrier_shows_in_the_thread_orders():
    x = np.arange(64.0)
    y = {order: np.zeros(64) for order in ORDERS}
    for order in ORDERS:
        run("reversed", (x, y[order]), block=(64,), order=order)
        np.testing.assert_array_equal(y[order], x[::-1])
    for order in ORDERS:
        racy = "a[threadIdx.x] = x[threadIdx.x];\n"
        launcher = EmulatedLauncher(
            order, rewrite=lambda s, racy=racy: s.replace(racy + "  __syncthreads();", racy)
        )
        launcher.raw(KERNELS, "reversed", ())((1,), (64,), (x, y[order]))
    assert not np.array_equal(y["forward"], y["reverse"], equal_nan=True)
    assert any(np.isnan(y[order]).any() for order in ORDERS)


def test_wrong_arguments():
    x, y, one = np.arange(5.0), np.zeros(5), np.int32(0)
    frozen = np.zeros(5)
    frozen.flags.writeable = False
    for args, text in [
        ((x, y), "takes 3 arguments, 2 were given"),
        ((x, y, one, one), "takes 3 arguments, 4 were given"),
        ((x.astype("f4"), y, one), "argument 0 is of type float32, its parameter &f8"),
        ((x, y, np.int64(0)), "argument 2 is of type int64, its parameter i4"),
        ((x, y, 0), "argument 2 is of type int64"),
        ((x, y, 0.0), "argument 2 is of type float64"),
        ((x, one, one), "argument 1 is of type int32"),
        ((x, y, y), "argument 2 is an array"),
        ((x, y, "one"), "argument 2 is a str"),
        ((np.arange(10.0)[::2], y, one), "argument 0 is not C-contiguous"),
        ((x, frozen, one), "argument 1 is read-only"),
        ((x[1:], x[:-1], one), "argument 1 overlaps another argument"),
    ]:
        with pytest.raises(EmulationError, match=text):
            run("shift", args, block=(5,))
    run("shift", (x, x, one), block=(5,))
    run("shift", (frozen, y, one), block=(5,))


def test_wrong_launches():
    y = np.zeros(3)
    for name, grid, block, text in [
        ("put", (0,), (1,), "empty launch"),
        ("put", (1, 70_000), (1,), "too large"),
        ("put", (1,), (2048,), "too large"),
        ("no_such", (1,), (1,), "has no extern"),
    ]:
        with pytest.raises(EmulationError, match=text):
            run(name, (y, np.int32(0)), grid, block)
    with pytest.raises(RuntimeError, match="nonsense"):
        EmulatedLauncher().raw('extern "C" __global__ void k(int* x) { nonsense(x); }', "k", ())(
            (1,), (1,), (np.zeros(1, np.int32),)
        )


def test_options_define_macros_and_types_of_numbers():
    source = (
        'extern "C" __global__ void k(T* x, bool b, float f, long long n) { x[0] = f * n + b; }'
    )
    kernel = EmulatedLauncher().raw(source, "k", ("-DT=float", "-lineinfo"))
    x = np.zeros(1, np.float32)
    kernel((1,), (1,), (x, True, np.float32(0.5), 3))
    assert x[0] == 2.5


def test_far_end_of_a_huge_launch():
    launcher = EmulatedLauncher(blocks=lambda n: (n - 2, n))
    n = 50_000
    x = launcher.zeros((n, n), np.float64)  # 20 GB of addresses, two pages of memory
    launcher.raw(KERNELS, "far", ())((n,), (1,), (x, np.int64(n)))
    assert (x[-1, -1], x[-2, -1], x[-3, -1]) == (n - 1, n - 2, 0)
    with pytest.raises(EmulationError, match="an array of this launcher"):
        launcher.raw(KERNELS, "far", ())((n,), (1,), (x, np.int64(n + 1)))


def test_elementwise_broadcasts_and_allocates():
    launcher = EmulatedLauncher()
    kernel = launcher.elementwise("T a, T b", "T c", "c = a * a + b", "square_plus")
    a, b = np.arange(5.0)[:, None], np.arange(3.0)[None]
    np.testing.assert_array_equal(kernel(a, b), a * a + b)
    np.testing.assert_array_equal(kernel(a[::2], b), a[::2] ** 2 + b)
    np.testing.assert_array_equal(kernel(a.astype("f4"), np.float32(2)), (a * a + 2).astype("f4"))
    out = np.full((5, 3), np.nan)
    assert kernel(a, b, out) is out
    np.testing.assert_array_equal(out, a * a + b)
    assert launcher.launches == {"square_plus": 4}
    with pytest.raises(TypeError, match="T is float64"):
        kernel(a, b.astype("f4"))
    with pytest.raises(TypeError, match="1 arguments"):
        kernel(a)


def test_elementwise_raw_arrays_and_indices():
    launcher = EmulatedLauncher()
    roll = launcher.elementwise(
        "raw T x, int64 by", "raw T y", "y[i] = x[(i + by) % x.size()]", "roll"
    )
    x, y = np.arange(7.0), np.empty(7)
    roll(x, 2, y, size=7)
    np.testing.assert_array_equal(y, np.roll(x, -2))
    with pytest.raises(ValueError, match="size is needed"):
        roll(x, 2, y)
    grid = launcher.elementwise(
        "raw T x", "T y", "y = x[_ind.get()[1]] + 10 * _ind.get()[0]", "grid"
    )
    y = np.empty((2, 3))
    with pytest.raises(ValueError, match="size is only"):
        grid(x, y, size=6)
    np.testing.assert_array_equal(grid(x, y), np.arange(3) + 10 * np.arange(2)[:, None])


@pytest.mark.parametrize(("index", "where"), [("i + 1", 4), ("i - 1", -1)])
def test_elementwise_index_out_of_bounds(index, where):
    kernel = EmulatedLauncher().elementwise("raw T x", "T y", f"y = x[{index}]", "outside")
    with pytest.raises(EmulationError, match=f"raw index {where} out of bounds"):
        kernel(np.arange(4.0), np.empty(4))


def test_elementwise_pointer_out_of_bounds():
    kernel = EmulatedLauncher().elementwise("raw T x", "T y", "y = (&x[0])[i + 1]", "pointer")
    with pytest.raises(EmulationError, match="out of bounds"):
        kernel(np.arange(4.0), np.empty(4))


def test_a_fault_leaves_the_launcher_usable():
    launcher = EmulatedLauncher()
    y = np.zeros(32)
    for _ in range(2):
        with pytest.raises(EmulationError):
            launcher.raw(KERNELS, "diverge", ())((1,), (32,), (y,))
        launcher.raw(KERNELS, "put", ())((1,), (1,), (y, np.int32(3)))
    assert y[3] == 1
    assert launcher.launches == {"diverge": 2, "put": 2}


def test_cache_folder_is_chosen_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("GPLVM_XP_EMULATOR_CACHE", str(tmp_path))
    y = np.zeros(1, np.int32)
    source = 'extern "C" __global__ void k(int* x) { x[0] = 7; }'
    EmulatedLauncher().raw(source, "k", ())((1,), (1,), (y,))
    assert y[0] == 7
    assert len(list(tmp_path.glob("*.so"))) == 2, "the runtime and the kernel"
