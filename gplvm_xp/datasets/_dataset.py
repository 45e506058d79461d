"""The value that every loader returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Table: TypeAlias = NDArray[Any]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A table with its labels and its origin.

    Attributes
    ----------
    Y : ndarray of shape (n, D), float64
        One row per observation, in the units that the loader's docstring states. Neither centred
        nor scaled. A fresh array at every call: change it freely.
    labels : ndarray of shape (n,), int64, or None
        Class of each row as an index into ``label_names``; None where there are no classes.
    label_names : tuple of str
        Names of the classes; empty where there are none.
    feature_names : tuple of str
        Names of the D columns.
    name : str
        Short name, for titles and file names.
    source : str
        What was read in this call, and the sha256 it was checked against.
    extra : mapping of str to ndarray
        Further arrays; the loader's docstring lists them.
    """

    Y: NDArray[np.float64]
    labels: NDArray[np.int64] | None
    label_names: tuple[str, ...]
    feature_names: tuple[str, ...]
    name: str
    source: str
    extra: Mapping[str, Table] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.Y.ndim != 2:
            raise ValueError(
                f"Y has shape {self.Y.shape}, expected (n, D): reshape it to one row each."
            )
        n, D = self.Y.shape
        if len(self.feature_names) != D:
            raise ValueError(
                f"{len(self.feature_names)} feature names were given for {D} columns of Y; "
                "give one for each column."
            )
        if self.labels is None:
            return
        if self.labels.shape != (n,):
            raise ValueError(
                f"labels have shape {self.labels.shape}, expected ({n},): one for each row of Y."
            )
        seen = (int(self.labels.min()), int(self.labels.max())) if n else (0, 0)
        if n and not 0 <= seen[0] <= seen[1] < len(self.label_names):
            raise ValueError(
                f"labels range over {seen[0]}..{seen[1]}, expected indices into the "
                f"{len(self.label_names)} label names; give indices from 0."
            )

    def __repr__(self) -> str:
        return (
            f"Dataset(name={self.name!r}, Y={self.Y.shape}, classes={len(self.label_names)}, "
            f"extra={sorted(self.extra)})"
        )


__all__ = ["Dataset", "Table"]
