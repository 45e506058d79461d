"""Counts and exposure on a grid, from events and positions or from arrays, checked."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from gplvm_xp.estimators._grid import Grid, ends, finite, grid, table
from gplvm_xp.estimators._targets import host


@dataclass(frozen=True, eq=False)
class Cells:
    """Counts and exposure on a grid; leading axes are fields that share hyperparameters.

    Attributes
    ----------
    grid : Grid
    counts : ndarray (..., *shape)
        NaN where masked.
    exposure : ndarray (..., *shape)
        Of the counts' shape; 0 where nothing was observed.
    """

    grid: Grid
    counts: np.ndarray
    exposure: np.ndarray

    @property
    def fields(self) -> tuple[int, ...]:
        """The leading axes."""
        return self.counts.shape[: self.counts.ndim - self.grid.ndim]

    @property
    def used(self) -> np.ndarray:
        """Which cells say something, (..., *shape)."""
        return np.asarray((self.exposure > 0.0) & ~np.isnan(self.counts))

    def totals(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts and exposure of each field's used cells, (...) each."""
        axes = tuple(range(-self.grid.ndim, 0))
        used = self.used
        return (
            np.sum(np.where(used, self.counts, 0.0), axis=axes),
            np.sum(np.where(used, self.exposure, 0.0), axis=axes),
        )


def cells(grid: Grid, counts: Any, exposure: Any, *, integer: bool = True) -> Cells:
    """Check counts and exposure against a grid and each other.

    Parameters
    ----------
    grid : Grid
    counts : array (..., *shape)
        NaN masks a cell.
    exposure : array, optional
        Of a shape that broadcasts to the counts'; default the cells' volume.
    integer : bool
        Whether counts must be whole.

    Raises
    ------
    ValueError
        If a number is impossible, a shape doesn't fit, a field has no exposure, or a count is
        positive where the exposure is 0.
    """
    y = _numbers("counts", counts, grid.ndim)
    e = np.prod(grid.spacing) if exposure is None else _numbers("exposure", exposure, grid.ndim)
    for name, a in (("counts", y), ("exposure", e)):
        if np.ndim(a) and a.shape[-grid.ndim :] != grid.shape:
            raise ValueError(
                f"{name} have shape {a.shape}; expected {_shown(grid)}, a number for each cell of "
                "the grid"
            )
    _refuse("counts", y, y < 0.0, "numbers of 0 or more, or NaN where masked", "correct them")
    if integer:
        _refuse(
            "counts", y, np.isfinite(y) & (y != np.floor(y)), "whole numbers",
            "fit_counts(..., integer=False) takes smoothed or interpolated counts as they are",
        )  # fmt: skip
    bad = np.isnan(e) | (e < 0.0)
    _refuse("exposure", np.asarray(e), np.asarray(bad), "numbers of 0 or more", "0 is unobserved")
    try:
        e = np.array(np.broadcast_to(e, y.shape))
    except ValueError as error:
        raise ValueError(
            f"exposure has shape {np.shape(e)} and counts have {y.shape}; expected one exposure "
            "for all fields, or one for each"
        ) from error
    found = Cells(grid, y, e)
    nothing = found.totals()[1] <= 0.0
    if nothing.any() or not y.size:
        first = [int(n) for n in np.argwhere(nothing)[0]] if y.size else []
        where = f" of field {first}" if first else ""
        raise ValueError(
            f"the exposure{where} is 0 in every cell whose count is not NaN; expected some cells "
            "that were observed: leave the exposure out if all were, or leave such fields out"
        )
    _refuse(
        "counts", y, (y > 0.0) & (e == 0.0), "0 where the exposure is 0",
        "correct the exposure, mask such cells with NaN, or take a coarser grid",
    )  # fmt: skip
    return found


def binned(
    X: Any, shape: Any, extent: Any, exposure: Any, positions: Any, time_step: float | None
) -> Cells:
    """Events on a grid, with their exposure; see :meth:`gplvm_xp.LogGaussianCoxProcess.fit`.

    Raises
    ------
    ValueError
        If something doesn't fit.
    """
    if exposure is not None and positions is not None:
        raise ValueError(
            "exposure and positions were both given; expected one of them: positions are counted "
            "to give the exposure"
        )
    if (positions is None) != (time_step is None):
        raise ValueError(
            "positions and time_step belong together: give the seconds from one position to the "
            "next with the positions"
        )
    known = None if extent is None else ends(extent).shape[0]
    track = None if positions is None else table("positions", positions, known)
    A = table("X", X, known if track is None else track.shape[1])
    finite("X", A, "leave such events out, X[np.isfinite(X).all(axis=1)]")
    found = np.zeros((0, A.shape[1])) if track is None else _tracked(track)
    where = grid(shape, extent, A.shape[1], A, found)
    where.refuse_outside("X", A)
    if track is not None:
        if not isinstance(time_step, Real) or not 0.0 < time_step < np.inf:
            raise ValueError(f"time_step={time_step!r} was given; expected positive seconds")
        where.refuse_outside("the positions (without those that have NaN)", found)
        exposure = time_step * where.histogram(found)
    seen = cells(where, np.zeros(where.shape), exposure)
    rows = np.flatnonzero(seen.exposure.ravel()[where.cells(A)] == 0.0)
    if rows.size:
        raise ValueError(
            f"row {rows[0]} of X, {A[rows[0]]}, is in a cell of exposure 0 ({rows.size} of "
            f"{A.shape[0]} events are); expected events only where there was observation: take a "
            "coarser grid, place each event at the position sample nearest in time, or leave such "
            "events out"
        )
    return Cells(where, where.histogram(A), seen.exposure)


def _tracked(track: np.ndarray) -> np.ndarray:
    """The positions that are known."""
    lost = np.isnan(track).any(axis=1)
    if lost.all():
        raise ValueError(
            "no position is known: every row of positions has NaN; expected samples of where the "
            "observer was"
        )
    finite("the positions", track[~lost], "NaN is lost tracking; correct the others")
    return np.asarray(track[~lost])


def _numbers(name: str, values: Any, ndim: int) -> np.ndarray:
    try:
        a = np.asarray(host(values), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} are no numbers ({error}); expected an array") from error
    if a.ndim < ndim:
        raise ValueError(f"{name} have shape {a.shape}; expected the {ndim} axes of the grid")
    _refuse(name, a, np.isinf(a), "finite numbers", "correct them")
    return a


def _refuse(name: str, values: np.ndarray, bad: np.ndarray, expected: str, advice: str) -> None:
    where = np.argwhere(bad)
    if where.size:
        place = tuple(where[0].astype(object))
        raise ValueError(
            f"{name}[{', '.join(map(str, place))}] is {values[place]:g} ({len(where)} such cells); "
            f"expected {expected}: {advice}"
        )


def _shown(grid: Grid) -> str:
    return f"(..., {', '.join(map(str, grid.shape))})"


__all__ = ["Cells", "binned", "cells"]
