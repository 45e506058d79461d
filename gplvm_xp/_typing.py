"""Type names shared by the whole package."""

from __future__ import annotations

from typing import Any, TypeAlias

# The array API standard has no static type that NumPy, CuPy and torch arrays all satisfy, so shapes
# and libraries are stated in docstrings and checked in the tests.
Array: TypeAlias = Any
Namespace: TypeAlias = Any
Device: TypeAlias = Any
DType: TypeAlias = Any
