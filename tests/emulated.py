"""The GPU path on the CPU: arrays that behave like CuPy's, libraries on host memory.

``emulated_backend()`` is the real :class:`CudaBackend` with everything that needs a GPU replaced:

* `EmuArray`: NumPy memory that refuses what would wait for a GPU (``float()``, ``bool()``,
  ``int()``, ``item()``, boolean masks) and what CuPy refuses (host arrays, NumPy functions);
* cuBLAS and cuSOLVER on host memory, from ``host_cublas``;
* the emulator's launcher, which compiles the CUDA sources for the CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import array_api_compat.numpy
import numpy as np
import scipy.special
from emulator import EmulatedLauncher
from host_cublas import host_blas

import gplvm_xp.backend as backend_module
from gplvm_xp.backend.cuda.device import CudaBackend


class HiddenWaitError(TypeError):
    """Host code asked for a number of the device outside ``to_host``."""


# -- arrays ----------------------------------------------------------------------------------------


class EmuArray(np.ndarray):
    """Host memory with a device array's manners."""

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise HiddenWaitError("a device value was read outside to_host (float, int, bool, item)")

    __float__ = __int__ = __bool__ = __index__ = __complex__ = _refuse  # type: ignore[assignment]
    item = tolist = tobytes = _refuse  # type: ignore[assignment]

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **kwargs: Any
    ) -> Any:
        if getattr(np, ufunc.__name__, None) is not ufunc:
            raise TypeError(f"{ufunc.__name__} is not a function of the device's library")
        if out is not None:
            kwargs["out"] = tuple(_unwrap(o) for o in out)
        result = getattr(ufunc, method)(*(_unwrap(x) for x in inputs), **kwargs)
        return out[0] if out is not None and len(out) == 1 else _wrap(result)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"numpy.{func.__name__} was called on a device array; use xp")

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return NAMESPACE

    def __getitem__(self, key: Any) -> Any:
        result = self.view(np.ndarray)[_index(key)]
        return _wrap(result)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.view(np.ndarray)[_index(key)] = _unwrap(value)

    def __repr__(self) -> str:
        return f"EmuArray({self.view(np.ndarray)!r})"

    __str__ = __repr__


def _index(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(_index(k) for k in key)
    key = _unwrap(key)
    if isinstance(key, np.ndarray) and key.dtype == bool:
        raise HiddenWaitError("a boolean mask waits for the device, the shape depends on it")
    return key


def _unwrap(x: Any) -> Any:
    if isinstance(x, EmuArray):
        return x.view(np.ndarray)
    if isinstance(x, np.ndarray):
        raise TypeError("a host array met a device array; bring it over with backend.asarray")
    if isinstance(x, (tuple, list)):
        return type(x)(_unwrap(y) for y in x)
    return x


def _wrap(x: Any) -> Any:
    if isinstance(x, np.ndarray | np.generic):
        return np.asarray(x).view(EmuArray)
    if isinstance(x, tuple):
        parts = [_wrap(y) for y in x]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    if isinstance(x, list):
        return [_wrap(y) for y in x]
    return x


class EmuNamespace:
    """array_api_compat.numpy on EmuArrays."""

    _waiting = ("nonzero", "unique_all", "unique_counts", "unique_inverse", "unique_values")

    def __init__(self, inner: Any, name: str) -> None:
        self._inner, self.__name__ = inner, name

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name in ("linalg", "fft"):
            return EmuNamespace(found, f"{self.__name__}.{name}")
        if isinstance(found, type) or not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            if name in self._waiting:
                raise HiddenWaitError(f"{name} waits for the device, its shape depends on the data")
            args = tuple(_unwrap(a) for a in args)
            if isinstance(kwargs.get("device"), EmuDevice):
                kwargs["device"] = "cpu"
            return _wrap(found(*args, **{k: _unwrap(v) for k, v in kwargs.items()}))

        # The library under test is asked for values only, as a GPU would silently produce them.
        return _quiet(call)

    def asarray(
        self, a: Any, /, *, dtype: Any = None, device: Any = None, copy: bool | None = None
    ) -> EmuArray:
        """From the host always a copy; from the device only where the dtype asks for one."""
        if isinstance(a, EmuArray):
            host = a.view(np.ndarray)
            return np.array(host, dtype=dtype, copy=copy).view(EmuArray)  # type: ignore[no-any-return]
        return np.array(a, dtype=dtype).view(EmuArray)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"<namespace {self.__name__}>"


def _quiet(call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):
            return call(*args, **kwargs)

    return wrapped


NAMESPACE = EmuNamespace(array_api_compat.numpy, "emulated")


class EmuDevice:
    """Equal to its like and, as CuPy's, without a hash."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EmuDevice)

    def __repr__(self) -> str:
        return "<device emulated>"


# -- the backend -----------------------------------------------------------------------------------


class EmuLauncher:
    """Hands device arrays to the emulator, and refuses host arrays, which a GPU could not read."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def raw(self, source: str, name: str, options: tuple[str, ...]) -> Any:
        """A kernel of the emulator."""
        kernel = self.inner.raw(source, name, options)

        def launch(grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
            kernel(grid, block, tuple(_unwrap(a) for a in args), shared_mem=shared_mem)

        return launch

    def elementwise(
        self, in_params: str, out_params: str, operation: str, name: str, preamble: str
    ) -> Any:
        """An elementwise kernel of the emulator."""
        kernel = self.inner.elementwise(in_params, out_params, operation, name, preamble)

        def launch(*args: Any, size: int | None = None) -> Any:
            return _wrap(kernel(*(_unwrap(a) for a in args), size=size))

        return launch


class EmuRuntime:
    """Addresses, copies and special functions, counting the waits."""

    name = "emulated"
    out_of_memory: type[Exception] = MemoryError

    def __init__(self) -> None:
        self.waits = 0

    def address(self, a: EmuArray) -> int:
        """Host address."""
        assert isinstance(a, EmuArray), f"expected a device array, got {type(a)}"
        return int(a.ctypes.data)

    def get(self, a: EmuArray) -> np.ndarray:
        """Copy out."""
        self.waits += 1
        return np.array(a.view(np.ndarray) if isinstance(a, EmuArray) else a)

    def special(self, name: str, a: EmuArray) -> EmuArray:
        """SciPy's."""
        assert isinstance(a, EmuArray), f"expected a device array, got {type(a)}"
        return _wrap(getattr(scipy.special, name)(_unwrap(a)))  # type: ignore[no-any-return]

    def free_bytes(self) -> int | None:
        """Unknown."""
        return None


def emulated_backend(
    dtype: Any = np.float64, runtime: EmuRuntime | None = None, leaf: int = 48
) -> CudaBackend:
    """The GPU backend on the CPU; small leaves, so that small problems recurse."""
    return CudaBackend(
        NAMESPACE, EmuDevice(), np.dtype(dtype), _launcher(), host_blas(),
        runtime or EmuRuntime(), leaf, leaf,
    )  # fmt: skip


class _LateEmulator:
    """Compiles nothing until a kernel is asked for, so that linear algebra needs no compiler."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = functools.cache(load)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._load(), name)


@functools.cache
def _launcher() -> EmuLauncher:
    # One for the process, so that what the package memoises by launcher is found again.
    return EmuLauncher(_LateEmulator(EmulatedLauncher))


@contextmanager
def emulated_arrays(runtime: EmuRuntime | None = None, leaf: int = 48) -> Iterator[CudaBackend]:
    """Within it, ``gplvm_xp.backend.of`` knows EmuArrays; yields a backend."""
    runtime = runtime or EmuRuntime()
    table = backend_module._FACTORIES
    before = table.get(EmuArray)
    # One backend for each dtype, as on a GPU.
    made = functools.cache(lambda dtype: emulated_backend(dtype, runtime, leaf))
    table[EmuArray] = lambda a: made(a.dtype)
    try:
        yield made(np.dtype(np.float64))
    finally:
        if before is None:
            del table[EmuArray]
        else:
            table[EmuArray] = before


__all__ = [
    "EmuArray",
    "EmuRuntime",
    "HiddenWaitError",
    "emulated_arrays",
    "emulated_backend",
]
