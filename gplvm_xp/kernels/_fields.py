"""What kernels share about their fields: numbers, names of parameters, checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.kernels.base import Kernel
from gplvm_xp.params import Block


def flat_numbers(values: Any) -> tuple[float, ...]:
    """Host numbers as a tuple of Python floats."""
    return tuple(float(v) for v in np.asarray(values, dtype=np.float64).ravel())


def per_dimension(value: float | Sequence[float] | np.ndarray) -> float | tuple[float, ...]:
    """One number stays one number (isotropic); a sequence becomes a tuple (one per dimension)."""
    array = np.asarray(value, dtype=np.float64)
    return float(array) if array.ndim == 0 else flat_numbers(array)


def leaf_blocks(kernel: Any, *fields: str, many: str = "", real: str = "") -> tuple[Block, ...]:
    """The blocks of a leaf: ``kernel.field`` as ``name.field``, held where ``fixed`` has it.

    All are positive but the field named ``real``, which may be any finite number.

    Raises
    ------
    ValueError
        If ``fixed`` has another name, or a field other than ``many`` is not one number.
    """
    name, fixed = type(kernel).__name__, kernel.fixed
    if isinstance(fixed, str):
        raise ValueError(f"fixed={fixed!r} was given; expected a tuple of names: ({fixed!r},)")
    unknown = sorted(set(fixed) - set(fields))
    if unknown:
        raise ValueError(f"fixed names {unknown}; {name} has {list(fields)}")
    blocks = tuple(
        Block(
            f"{name.lower()}.{f}",
            getattr(kernel, f),
            "identity" if f == real else "log",
            fixed=f in fixed,
        )
        for f in fields
    )
    for field, block in zip(fields, blocks, strict=True):
        if field != many and block.value.ndim:
            raise ValueError(
                f"{name} got {field}={getattr(kernel, field)!r}; expected one number for all "
                "dimensions"
            )
    return blocks


def require_kernel(node: Kernel, child: object) -> None:
    """Raise ``TypeError`` unless the child of a node is a kernel."""
    if not isinstance(child, Kernel):
        raise TypeError(
            f"{type(node).__name__} takes a kernel, got {child!r}; give an instance, such as RBF()"
        )


def check_dimensions(kernel: str, name: str, value: float | tuple[float, ...], q: int) -> None:
    """Raise ``ValueError`` unless ``value`` is one number or has q of them."""
    if isinstance(value, tuple) and len(value) != q:
        raise ValueError(
            f"{kernel} has {len(value)} values of {name} and its inputs have {q} dimensions; give "
            f"one number or {q} of them, or wrap it in ActiveDims to use fewer dimensions"
        )


def merge_blocks(*groups: tuple[Block, ...]) -> tuple[Block, ...]:
    """All blocks in order; a kernel that occurs again gets a number: rbf, rbf_2, …"""
    taken: set[str] = set()
    out: list[Block] = []
    for blocks in groups:
        names: dict[str, str] = {}
        for prefix in dict.fromkeys(block.name.partition(".")[0] for block in blocks):
            stem, _, number = prefix.rpartition("_")
            stem, k = (stem, int(number)) if stem and number.isdigit() else (prefix, 1)
            new = prefix
            while new in taken:
                k += 1
                new = f"{stem}_{k}"
            names[prefix] = new
            taken.add(new)
        for block in blocks:
            prefix, _, field = block.name.partition(".")
            out.append(replace(block, name=f"{names[prefix]}.{field}"))
    return tuple(out)


def flat(points: Array) -> Array:
    """All points of all leading axes one after the other, (..., n, r) → (N, r)."""
    return (
        points
        if points.ndim == 2
        else backend.of(points).xp.reshape(points, (-1, points.shape[-1]))
    )


def over_points(values: Array) -> Array:
    """Sums over points and leading axes, (..., n, r) → (r,)."""
    return backend.of(values).xp.sum(values, axis=tuple(range(values.ndim - 1)))


__all__ = [
    "check_dimensions",
    "flat",
    "flat_numbers",
    "leaf_blocks",
    "merge_blocks",
    "over_points",
    "per_dimension",
    "require_kernel",
]
