"""cuSOLVER routines that CuPy does not bind, by ctypes on the library that CuPy has loaded.

For comparison only: the package itself does not use them.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

_R_64F = 1
_NON_UNIT = 0
_pointer, _int, _long, _size = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t


class NativeError(RuntimeError):
    """A routine is missing or returned a status other than success."""


def _loaded() -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split()[-1]
        if "libcusolver.so" in path:
            return path
    raise NativeError("libcusolver is not loaded in this process")


class Native:
    """potrf, potri, trtri and lauum on float64 device memory, in place.

    ``uplo`` is cuBLAS's: 0 lower, 1 upper, of the column-ordered matrix.
    """

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy
        # The handle must exist first: asking for it loads the library.
        self._handle = _pointer(cupy.cuda.device.get_cusolver_handle())
        self._library = ctypes.CDLL(_loaded())
        self.workspace_bytes = 0

    def _call(self, name: str, *args: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError as error:
            raise NativeError(f"libcusolver has no {name}") from error
        function.restype = _int
        status = function(self._handle, *args)
        if status != 0:
            raise NativeError(f"{name} returned status {status}")

    def _on_current_stream(self) -> None:
        stream = self._cupy.cuda.get_current_stream().ptr
        self._call("cusolverDnSetStream", _pointer(stream))

    def potrf_legacy(self, uplo: int, a: Any, info: Any) -> None:
        """``cusolverDnDpotrf``, 32-bit sizes."""
        self._legacy("potrf", uplo, a, info)

    def potri(self, uplo: int, a: Any, info: Any) -> None:
        """``cusolverDnDpotri``, 32-bit sizes."""
        self._legacy("potri", uplo, a, info)

    def lauum(self, uplo: int, a: Any, info: Any) -> None:
        """``cusolverDnDlauum``, 32-bit sizes."""
        self._legacy("lauum", uplo, a, info)

    def potrf(self, uplo: int, a: Any, info: Any) -> None:
        """``cusolverDnXpotrf``, 64-bit sizes."""
        params = _pointer()
        create = self._library.cusolverDnCreateParams
        if create(ctypes.byref(params)) != 0:
            raise NativeError("cusolverDnCreateParams failed")
        try:
            n = a.shape[0]
            matrix = (_long(n), _int(_R_64F), _pointer(a.data.ptr), _long(n), _int(_R_64F))
            self._generic("cusolverDnXpotrf", (params, _int(uplo), *matrix), info)
        finally:
            self._library.cusolverDnDestroyParams(params)

    def trtri(self, uplo: int, a: Any, info: Any) -> None:
        """``cusolverDnXtrtri``, 64-bit sizes."""
        n = a.shape[0]
        matrix = (_long(n), _int(_R_64F), _pointer(a.data.ptr), _long(n))
        self._generic("cusolverDnXtrtri", (_int(uplo), _int(_NON_UNIT), *matrix), info)

    def _legacy(self, name: str, uplo: int, a: Any, info: Any) -> None:
        self._on_current_stream()
        n, count = a.shape[0], _int(0)
        head = (_int(uplo), _int(n), _pointer(a.data.ptr), _int(n))
        self._call(f"cusolverDnD{name}_bufferSize", *head, ctypes.byref(count))
        self.workspace_bytes = 8 * count.value
        work = self._cupy.cuda.alloc(max(8 * count.value, 8))
        self._call(f"cusolverDnD{name}", *head, _pointer(work.ptr), count, _pointer(info.data.ptr))

    def _generic(self, name: str, head: tuple[Any, ...], info: Any) -> None:
        self._on_current_stream()
        device, host = _size(0), _size(0)
        self._call(f"{name}_bufferSize", *head, ctypes.byref(device), ctypes.byref(host))
        self.workspace_bytes = device.value
        work = self._cupy.cuda.alloc(max(device.value, 8))
        staging = ctypes.create_string_buffer(max(host.value, 8))
        self._call(name, *head, _pointer(work.ptr), device, staging, host, _pointer(info.data.ptr))
        # The host buffer may be in use until the routine is done.
        self._cupy.cuda.get_current_stream().synchronize()


__all__ = ["Native", "NativeError"]
