"""The arrays of a file against what their class declares: type, axes, and what they may hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gplvm_xp.errors import ModelFileError
from gplvm_xp.io._archive import Archive
from gplvm_xp.io._format import AGAIN

if TYPE_CHECKING:
    from gplvm_xp.estimators._saved import SavedArray

_HOLDS = {
    "finite": "finite numbers",
    "positive": "finite positive numbers",
    "nonnegative": "finite numbers of 0 or more",
    "missing": "finite numbers or NaN",
}
_DTYPES = {"float64": "float64", "int64": "int64", "label": "text, integers, floats or booleans"}


def checked_arrays(
    archive: Archive, declared: Mapping[str, SavedArray]
) -> dict[str, np.ndarray | None]:
    """The declared arrays of a file; None for an optional one that it lacks.

    Raises
    ------
    ModelFileError
        If one is missing, of another type or shape, or holds what it must not.
    """
    arrays: dict[str, np.ndarray | None] = {}
    lengths: dict[str, int] = {}
    for key, saved in declared.items():
        if saved.optional and key not in archive:
            arrays[key] = None
            continue
        array = arrays[key] = archive.array(key)
        _check_type(key, array, saved, archive.path)
        _check_numbers(key, array, saved, archive.path)
        letters = saved.axes.removeprefix("*")
        inner = array.shape[array.ndim - len(letters) :]
        for axis, length in zip(letters, inner, strict=True):
            if lengths.setdefault(axis, length) != length:
                star = ["*"] if saved.axes.startswith("*") else []
                expected = ", ".join(star + [str(lengths.get(a, a)) for a in letters])
                raise ModelFileError(
                    f"{key} of {archive.path} has shape {array.shape}; expected ({expected}) to go "
                    f"with the other arrays of the file. {AGAIN}"
                )
    return arrays


def _check_type(key: str, array: np.ndarray, saved: SavedArray, path: Path) -> None:
    letters = saved.axes.removeprefix("*")
    more = array.ndim - len(letters)
    right = array.dtype.kind in "biufU" if saved.dtype == "label" else array.dtype == saved.dtype
    if not right or more < 0 or (more > 0 and letters == saved.axes):
        raise ModelFileError(
            f"{key} of {path} is {array.dtype} of shape {array.shape}; expected "
            f"{_DTYPES[saved.dtype]} of shape ({', '.join(saved.axes)}). {AGAIN}"
        )


def _check_numbers(key: str, array: np.ndarray, saved: SavedArray, path: Path) -> None:
    if saved.holds == "any" or array.dtype.kind == "U":
        return
    bad = np.isinf(array) if saved.holds == "missing" else ~np.isfinite(array)
    if saved.holds == "positive":
        bad = bad | (array <= 0)
    if saved.holds == "nonnegative":
        bad = bad | (array < 0)
    if bad.any():
        raise ModelFileError(
            f"{key} of {path} holds {array[bad][0]}; expected {_HOLDS[saved.holds]}. {AGAIN}"
        )


__all__ = ["checked_arrays"]
