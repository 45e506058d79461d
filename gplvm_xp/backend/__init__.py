"""The narrow waist: the only place that knows which array library is in use.

:func:`of` takes the array as the witness of its backend, so nobody passes a backend down;
:func:`get` is for the door, where a user names one.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable

import array_api_compat
import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.backend._numpy import numpy_backend
from gplvm_xp.backend.base import Backend
from gplvm_xp.errors import BackendUnavailableError, BackendWarning

BACKENDS = ("auto", "numpy", "cupy", "torch")

_INSTALL = "pip install 'gplvm-xp[cuda13]' (or [cuda12] for a CUDA 12 driver)"
_numpy_of = functools.cache(numpy_backend)
# Exact array types served by a backend of their own before the libraries below are asked.
_FACTORIES: dict[type, Callable[[Array], Backend]] = {}


def of(*arrays: Array) -> Backend:
    """The backend where the arrays are; the dtype is that of the first array.

    Raises
    ------
    TypeError
        If the arrays come from more than one library, or are not arrays.
    """
    first = arrays[0]
    if len(arrays) == 1 and type(first) is np.ndarray:
        return _numpy_of(first.dtype)
    if type(first) in _FACTORIES:
        return _FACTORIES[type(first)](first)
    try:
        xp = array_api_compat.array_namespace(*arrays)
    except TypeError as error:
        kinds = ", ".join(sorted({f"{type(a).__module__}.{type(a).__qualname__}" for a in arrays}))
        raise TypeError(
            f"arrays of one array-API library were expected, got {kinds}; convert them to one "
            f"library (for example with numpy.asarray) before the call"
        ) from error
    if array_api_compat.is_numpy_namespace(xp):
        return _numpy_of(first.dtype)
    device = array_api_compat.device(first)
    if array_api_compat.is_cupy_namespace(xp):
        from gplvm_xp.backend._cupy import cupy_backend

        return cupy_backend(device, first.dtype)
    if array_api_compat.is_torch_namespace(xp):
        from gplvm_xp.backend._torch import TorchBackend

        return TorchBackend(xp, device, first.dtype)
    return Backend(xp, device, first.dtype)


def is_array(a: object) -> bool:
    """Whether ``a`` is an array of some array-API library (a list or a data frame is not)."""
    return type(a) in _FACTORIES or array_api_compat.is_array_api_obj(a)


def why_no_gpu() -> str | None:
    """Why ``backend="cupy"`` can't be used here, in words; None where it can.

    The first call imports CuPy, starts CUDA and runs a kernel; the answer is remembered. It is made
    only when a GPU is first asked for, never by ``import gplvm_xp``.
    """
    from gplvm_xp.backend._cupy import why_no_gpu as probe

    return probe()


def get(name: str | None, like: Array | None = None, dtype: str = "float64") -> Backend:
    """The backend that a user named.

    Parameters
    ----------
    name : {"auto", "numpy", "cupy", "torch"} or None
        "auto" is the GPU where there is a usable one, else NumPy (said once); None is wherever
        ``like`` is (NumPy for anything that is not an array).
    like : array, optional
        The user's data.
    dtype : {"float64", "float32"}
        Working precision.

    Raises
    ------
    ValueError
        If the name or the dtype is not one of those listed.
    BackendUnavailableError
        If the library, or for "cupy" a usable GPU, is not here.
    """
    if dtype not in ("float64", "float32"):
        raise ValueError(f"dtype={dtype!r} was given; expected 'float64' or 'float32'")
    if name is None:
        if like is None or not is_array(like):
            return _numpy_of(np.dtype(dtype))
        here = of(like)
        if here.name == "numpy":
            return _numpy_of(np.dtype(dtype))
        return dataclasses.replace(here, dtype=getattr(here.xp, dtype))
    if name not in BACKENDS:
        raise ValueError(
            f"backend={name!r} was given; expected one of {', '.join(map(repr, BACKENDS))} or None "
            "(stay where the data is)"
        )
    if name == "auto":
        reason = why_no_gpu()
        if reason is None:
            return _on_gpu(dtype)
        _say_once(f"backend='auto' uses NumPy on the CPU, because no GPU is usable: {reason}")
        return _numpy_of(np.dtype(dtype))
    if name == "cupy":
        reason = why_no_gpu()
        if reason is not None:
            raise BackendUnavailableError(
                f"backend='cupy' needs a usable NVIDIA GPU and CuPy, but: {reason}. Install CuPy "
                f"with {_INSTALL}, or use backend='auto' to fall back to the CPU"
            )
        return _on_gpu(dtype)
    if name == "torch":
        try:
            import array_api_compat.torch as xp
        except ImportError as error:
            raise BackendUnavailableError(
                f"backend='torch' needs PyTorch, which can't be imported ({error}); install it "
                "with pip install torch, or use backend='numpy'"
            ) from error
        from gplvm_xp.backend._torch import TorchBackend

        device = xp.asarray(0.0).device
        return TorchBackend(xp, device, getattr(xp, dtype))
    return _numpy_of(np.dtype(dtype))


def _on_gpu(dtype: str) -> Backend:
    from gplvm_xp.backend._cupy import cupy_backend

    return cupy_backend(None, np.dtype(dtype))


@functools.cache
def _say_once(text: str) -> None:
    warnings.warn(text, BackendWarning, stacklevel=4)


__all__ = ["BACKENDS", "Backend", "get", "is_array", "of", "why_no_gpu"]
