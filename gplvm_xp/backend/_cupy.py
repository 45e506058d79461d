"""CuPy: the only module that imports it, and only when a GPU is asked for.

Everything that can be tested without a GPU lives in ``gplvm_xp/backend/cuda``; here are the probe
and the thin adapters between that code and CuPy.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gplvm_xp._typing import Array, Device, DType
from gplvm_xp.backend.base import Special
from gplvm_xp.backend.cuda.cublas import Cublas
from gplvm_xp.backend.cuda.device import CudaBackend

# Above this a kernel must opt in to its dynamic shared memory.
_PLAIN_SHARED_MEMORY = 48 * 1024


@functools.cache
def why_no_gpu() -> str | None:
    """Why no GPU can be used here, in words; None where one can.

    ``cupy.is_available`` only counts devices, so the probe also compiles and runs a kernel and asks
    cuBLAS and cuSOLVER for a handle. The first call starts CUDA; the answer is kept.
    """
    try:
        import cupy
    except Exception as error:  # absent, two wheels at once, or broken: each is a reason
        return f"CuPy can't be imported ({type(error).__name__}: {_line(error)})"
    try:
        if not cupy.is_available():
            return "no CUDA device or driver was found"
        if float((cupy.arange(2.0) + 1.0).sum()) != 3.0:
            return "the GPU computed 1 + 2 wrongly"
        cupy.cuda.device.get_cublas_handle()
        cupy.cuda.device.get_cusolver_handle()
    except Exception as error:
        return f"{type(error).__name__}: {_line(error)}"
    return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@functools.cache
def _raw(source: str, name: str, options: tuple[str, ...]) -> Any:
    import cupy

    # CuPy compiles a module once for each source, options and device, however many kernels it has.
    kernel = cupy.RawKernel(source, name, options=options)

    def launch(
        grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, shared_mem: int = 0
    ) -> None:
        if shared_mem > _PLAIN_SHARED_MEMORY:
            kernel.max_dynamic_shared_size_bytes = shared_mem
        kernel(tuple(grid), tuple(block), tuple(args), shared_mem=shared_mem)

    return launch


@functools.cache
def _elementwise(in_params: str, out_params: str, operation: str, name: str, preamble: str) -> Any:
    import cupy

    return cupy.ElementwiseKernel(in_params, out_params, operation, name, preamble=preamble)


class CupyLauncher:
    """Compiles by NVRTC through CuPy; a kernel asked for twice is compiled once."""

    def raw(self, source: str, name: str, options: tuple[str, ...]) -> Any:
        """The ``extern "C"`` kernel ``name`` of ``source``."""
        return _raw(source, name, tuple(options))

    def elementwise(
        self, in_params: str, out_params: str, operation: str, name: str, preamble: str
    ) -> Any:
        """A ``cupy.ElementwiseKernel``."""
        return _elementwise(in_params, out_params, operation, name, preamble)


class CupyRuntime:
    """Addresses, copies, memory and special functions of the current CUDA device."""

    name = "cupy"

    @property
    def out_of_memory(self) -> type[Exception]:
        """What CuPy raises when its pool can't grow."""
        import cupy

        return cupy.cuda.memory.OutOfMemoryError  # type: ignore[no-any-return]

    def address(self, a: Array) -> int:
        """Device address of the first element."""
        return int(a.data.ptr)

    def get(self, a: Array) -> np.ndarray:
        """Copy to the host; waits for the current stream."""
        return np.asarray(a.get() if hasattr(a, "get") else a)

    def special(self, name: Special, a: Array) -> Array:
        """A function of ``cupyx.scipy.special``."""
        import cupyx.scipy.special

        return getattr(cupyx.scipy.special, name)(a)

    def free_bytes(self) -> int:
        """Free memory of the device and of CuPy's pool, within the pool's limit if there is one."""
        import cupy

        pool = cupy.get_default_memory_pool()
        free = cupy.cuda.Device().mem_info[0] + pool.free_bytes()
        limit = pool.get_limit()
        return int(min(free, limit - pool.used_bytes()) if limit else free)


def _workspace(n_bytes: int) -> tuple[Any, int]:
    import cupy

    # It returns to the pool while the call still runs: the next user is later on the same stream.
    memory = cupy.cuda.alloc(n_bytes)
    return memory, int(memory.ptr)


def cublas() -> Cublas:
    """Row-ordered dense linear algebra on CuPy's handles, streams and memory pool."""
    import cupy
    from cupy_backends.cuda.libs import cublas as blas
    from cupy_backends.cuda.libs import cusolver as solver

    handles = cupy.cuda.device
    return Cublas(blas, solver, handles.get_cublas_handle, handles.get_cusolver_handle, _workspace)


def cupy_backend(device: Device | None, dtype: DType) -> CudaBackend:
    """The backend of a CUDA device (None: the current one) and a floating dtype.

    Raises
    ------
    ImportError
        If CuPy, or a CUDA library it needs, is not installed; ask :func:`why_no_gpu` first.
    """
    import cupy

    where = cupy.cuda.Device() if device is None else device
    return _backend(int(where.id), np.dtype(dtype))


@functools.cache
def _backend(device: int, dtype: np.dtype[np.generic]) -> CudaBackend:
    # One launcher for each device and dtype, so that what is memoised by launcher is found again.
    import array_api_compat.cupy as xp
    import cupy

    return CudaBackend(xp, cupy.cuda.Device(device), dtype, CupyLauncher(), cublas(), CupyRuntime())


__all__ = ["CupyLauncher", "CupyRuntime", "cublas", "cupy_backend", "why_no_gpu"]
