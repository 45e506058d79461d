"""The grid of a point process: equal cells of a box, and what a user says about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gplvm_xp.estimators._targets import host

MOST_AXES = 3


@dataclass(frozen=True, eq=False)
class Grid:
    """Equal cells of a box; axis a of the arrays is column a of the places.

    Attributes
    ----------
    shape : tuple of int
        Cells along each axis.
    extent : ndarray (d, 2)
        Lower and upper end of each axis.
    """

    shape: tuple[int, ...]
    extent: np.ndarray

    @property
    def ndim(self) -> int:
        """d, the number of axes."""
        return len(self.shape)

    @property
    def spacing(self) -> np.ndarray:
        """Size of a cell along each axis, (d,)."""
        return np.asarray((self.extent[:, 1] - self.extent[:, 0]) / np.array(self.shape))

    @property
    def edges(self) -> list[np.ndarray]:
        """The ends of the cells of each axis, n + 1 numbers in order."""
        return [
            np.linspace(low, high, n + 1)
            for (low, high), n in zip(self.extent, self.shape, strict=True)
        ]

    @property
    def centers(self) -> list[np.ndarray]:
        """The middles of the cells of each axis, n numbers in order."""
        return [0.5 * (e[1:] + e[:-1]) for e in self.edges]

    def places(self, points: np.ndarray) -> np.ndarray:
        """Continuous cell numbers of points (m, d), 0 at the middle of an axis' first cell."""
        return np.asarray((points - self.extent[:, 0]) / self.spacing - 0.5)

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Whether each point (m, d) is in the box, both ends included, (m,)."""
        within = (points >= self.extent[:, 0]) & (points <= self.extent[:, 1])
        return np.asarray(np.all(within, axis=1))

    def refuse_outside(self, name: str, points: np.ndarray) -> None:
        """Raise ``ValueError`` with the first row of points (m, d) that is not in the box."""
        rows = np.flatnonzero(~self.inside(points))
        if rows.size:
            box = ", ".join(f"{low:g} to {high:g}" for low, high in self.extent)
            raise ValueError(
                f"row {rows[0]} of {name}, {points[rows[0]]}, is outside the extent, {box} "
                f"({rows.size} such rows); expected places inside: widen extent, or leave them out"
            )

    def cells(self, points: np.ndarray) -> np.ndarray:
        """Flat cell number of each point (m, d) of the box; the upper end is in the last cell."""
        number = np.floor(self.places(points) + 0.5).astype(np.int64)
        number = np.clip(number, 0, np.array(self.shape) - 1)
        return np.asarray(np.ravel_multi_index(tuple(number.T), self.shape))

    def histogram(self, points: np.ndarray) -> np.ndarray:
        """How many points of the box are in each cell, float64 of the grid's shape."""
        size = np.prod(self.shape, dtype=np.int64)
        return (
            np.bincount(self.cells(points), minlength=size).astype(np.float64).reshape(self.shape)
        )


# -- what a user gives -----------------------------------------------------------------------------


def table(name: str, X: Any, columns: int | None = None) -> np.ndarray:
    """Places as (n, d) float64 on the host; a vector is n places on a line. NaN passes.

    Raises
    ------
    ValueError
        If they are no table of numbers of one to three columns (or of ``columns``).
    """
    try:
        A = np.asarray(host(X), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is no table of numbers ({error}); expected (n, d)") from error
    if A.ndim == 1:
        A = A[:, None] if A.size or columns is None else np.zeros((0, columns))
    right = A.ndim == 2 and 1 <= A.shape[1] <= MOST_AXES
    if not right or (columns is not None and A.shape[1] != columns):
        need = f"1 to {MOST_AXES}" if columns is None else columns
        raise ValueError(
            f"{name} has shape {A.shape}; expected (n, d), a place in each row and a coordinate in "
            f"each column, d = {need}"
        )
    return A


def finite(name: str, A: np.ndarray, advice: str) -> None:
    """Raise ``ValueError`` with the first row that has NaN or infinity."""
    bad = np.flatnonzero(~np.all(np.isfinite(A), axis=1))
    if bad.size:
        raise ValueError(
            f"row {bad[0]} of {name} is {A[bad[0]]} ({bad.size} rows have NaN or infinity); "
            f"expected finite coordinates: {advice}"
        )


def grid(shape: Any, extent: Any, ndim: int, *points: np.ndarray) -> Grid:
    """The grid that ``shape`` and ``extent`` describe, around the points where there is no extent.

    Raises
    ------
    ValueError
        If they don't describe one of ``ndim`` axes.
    """
    sizes = sides(shape, ndim)
    if extent is not None:
        return Grid(sizes, ends(extent, ndim))
    both = np.concatenate(points)
    if both.shape[0] == 0:
        raise ValueError(
            "there are no events and no positions to take the extent from; give extent=((low, "
            "high), ...), a pair for each coordinate"
        )
    found = np.stack([both.min(axis=0), both.max(axis=0)], axis=1)
    flat = np.flatnonzero(~(found[:, 1] > found[:, 0]))
    if flat.size:
        raise ValueError(
            f"every place has the same coordinate {flat[0]}, {found[flat[0], 0]:g}, so that the "
            "data give no extent there; give extent=((low, high), ...), or leave that column out"
        )
    return Grid(sizes, found)


def sides(shape: Any, ndim: int | None = None) -> tuple[int, ...]:
    """``shape`` as a tuple of ``ndim`` cell numbers; an integer stands for every axis.

    Raises
    ------
    ValueError
        If it is none of these, or has an axis of fewer than two cells.
    """
    given = np.asarray(shape)
    right = given.dtype.kind in "iu" and given.ndim <= 1 and given.size and np.all(given >= 2)
    if not right or given.size > MOST_AXES:
        raise ValueError(
            f"shape={shape!r} was given; expected a number of cells, 2 or more, or a tuple of one "
            f"to {MOST_AXES} of them"
        )
    if given.ndim and ndim is not None and given.size != ndim:
        raise ValueError(
            f"shape={shape!r} has {given.size} axes and the data have {ndim}; expected one number "
            "of cells for each coordinate"
        )
    numbers = given if given.ndim else np.full(1 if ndim is None else ndim, given)
    return tuple(int(n) for n in numbers)


def ends(extent: Any, ndim: int | None = None) -> np.ndarray:
    """``extent`` as (d, 2); one pair is one axis.

    Raises
    ------
    ValueError
        If it is no list of pairs of finite, increasing numbers, or not ``ndim`` of them.
    """
    try:
        out = np.atleast_2d(np.asarray(extent, dtype=np.float64))
    except (TypeError, ValueError):
        out = np.zeros(0)
    right = out.ndim == 2 and out.shape[1] == 2 and 1 <= out.shape[0] <= MOST_AXES
    if not right or not np.all(np.isfinite(out)) or not np.all(out[:, 1] > out[:, 0]):
        raise ValueError(
            f"extent={extent!r} was given; expected ((low, high), ...), one to {MOST_AXES} pairs "
            "of finite increasing numbers"
        )
    if ndim is not None and out.shape[0] != ndim:
        raise ValueError(
            f"extent={extent!r} has {out.shape[0]} pairs and the data have {ndim} coordinates; "
            "expected a pair for each"
        )
    return out


def axis_flags(name: str, flags: Any, ndim: int) -> tuple[bool, ...]:
    """One truth value for each axis.

    Raises
    ------
    ValueError
        If they are not truth values, or not ``ndim`` of them.
    """
    given = np.asarray(flags)
    if given.dtype.kind != "b" or given.shape not in ((), (ndim,)):
        raise ValueError(
            f"{name}={flags!r} was given; expected True or False, or one of them for each of the "
            f"{ndim} axes"
        )
    return tuple(bool(flag) for flag in np.broadcast_to(given, (ndim,)))


__all__ = ["Grid", "axis_flags", "ends", "finite", "grid", "sides", "table"]
