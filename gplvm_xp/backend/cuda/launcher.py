"""What the CUDA host code asks of the thing that compiles and runs its kernels.

On a GPU the launcher wraps CuPy; in the tests it is an emulator that runs the same sources on the
CPU.  Host code written against this protocol therefore runs in both places.
"""

from __future__ import annotations

from typing import Any, Protocol

from gplvm_xp._typing import Array

Dimensions = tuple[int, ...]


class RawKernel(Protocol):
    """A compiled kernel with the call of ``cupy.RawKernel``."""

    def __call__(
        self, grid: Dimensions, block: Dimensions, args: tuple[Any, ...], *, shared_mem: int = 0
    ) -> None:
        """Launch on the current stream; arrays go by pointer, NumPy scalars by value."""


class ElementwiseKernel(Protocol):
    """A compiled kernel with the call of ``cupy.ElementwiseKernel``."""

    def __call__(self, *args: Any, size: int | None = None) -> Array:
        """Launch one thread an element; ``size`` is needed where every argument is raw."""


class Launcher(Protocol):
    """Compiles CUDA C++ and returns something that can be launched."""

    def raw(self, source: str, name: str, options: tuple[str, ...]) -> RawKernel:
        """Return the ``extern "C"`` kernel ``name`` of ``source``, compiled with ``options``."""

    def elementwise(
        self, in_params: str, out_params: str, operation: str, name: str, preamble: str
    ) -> ElementwiseKernel:
        """Return an elementwise kernel; the arguments are those of ``cupy.ElementwiseKernel``."""


__all__ = ["Dimensions", "ElementwiseKernel", "Launcher", "RawKernel"]
