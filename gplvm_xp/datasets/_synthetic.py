"""Events and rate maps that are made here: no file, the truth known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._dataset import Dataset

_DOMAIN = 50.0
_SAMPLES_PER_SECOND = 50.0


def make_cox_1d(seed: int = 0, *, scale: float = 1.0) -> Dataset:
    """Events on [0, 50] with the rate ``scale`` · (2 e^{−x/15} + e^{−((x−25)/10)²}).

    The first example of Adams, Murray and MacKay (2009): about 47 events for a scale of 1.

    Parameters
    ----------
    seed : int
        The same seed gives the same events.
    scale : float
        Factor of the rate: expected events are 46.65 times this.

    Returns
    -------
    Dataset
        ``Y`` (N, 1), the events in order. ``extra``: ``x`` (501,), places 0.1 apart, and ``rate``
        (501,), the true rate there, events per unit of x.

    Raises
    ------
    ValueError
        If ``scale`` is not a positive finite number.

    Notes
    -----
    By thinning: candidates of a constant rate that is nowhere below the true one are kept with
    probability true over constant.

    References
    ----------
    R. P. Adams, I. Murray and D. J. C. MacKay, Tractable nonparametric Bayesian inference in
    Poisson processes with Gaussian process intensities, ICML 2009.
    """
    if not 0.0 < scale < np.inf:
        raise ValueError(f"scale={scale!r} was given; expected a positive finite number")
    rng = np.random.default_rng(seed)
    bound = 2.3 * scale
    candidates = np.sort(rng.uniform(0.0, _DOMAIN, rng.poisson(bound * _DOMAIN)))
    kept = rng.uniform(0.0, bound, candidates.size) < scale * _cox_1d_rate(candidates)
    x = np.linspace(0.0, _DOMAIN, 501)
    return Dataset(
        Y=candidates[kept][:, None],
        labels=None,
        label_names=(),
        feature_names=("x",),
        name="cox_1d",
        source=f"made by make_cox_1d({seed}, scale={scale})",
        extra={"x": x, "rate": scale * _cox_1d_rate(x)},
    )


def make_grid_cells(
    n_cells: int = 1,
    shape: tuple[int, int] = (128, 128),
    seed: int = 0,
    *,
    minutes: float = 30.0,
) -> Dataset:
    """Simulated grid cells: hexagonal rate maps, visits of a random walk, Poisson counts.

    The logarithm of a cell's rate is a constant plus 3.2 times the mean of three plane waves 60°
    apart, whose fields are ``period`` bins from each other; period (an eighth to a quarter of the
    shorter side), orientation, phase and mean rate (0.5 to 2 spikes a second) differ from cell to
    cell. The animal runs in the inner 84 % of the arena, 50 samples a second, with a velocity that
    forgets itself in 0.4 s and walls that reflect. Every cell has a walk of its own.

    Parameters
    ----------
    n_cells : int
        How many. The first cells are the same whatever this number is.
    shape : (int, int)
        Rows (y) and columns (x) of bins, at least 8 each.
    seed : int
        The same seed gives the same cells.
    minutes : float
        Length of each recording.

    Returns
    -------
    Dataset
        ``Y`` (n_cells, rows · columns), the spikes of each bin, row by row, a cell in each row.
        ``extra``: ``visits`` and ``counts`` (n_cells, rows, columns); ``rate`` (n_cells, rows,
        columns), the expected spikes of one visit; ``period`` (n_cells,), bins; ``orientation``
        (n_cells,), radians in [0, π/3), the direction of the first wave from the x-axis.

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    O(n_cells · (samples + bins)): about 10 ms a cell of 128 × 128 bins and 30 minutes.
    """
    if n_cells < 1 or len(shape) != 2 or min(shape) < 8 or not 0.0 < minutes < np.inf:
        raise ValueError(
            f"n_cells={n_cells}, shape={shape}, minutes={minutes} were given; expected 1 or more "
            "cells, two sides of 8 or more bins, and a positive length"
        )
    cells = [_grid_cell(np.random.default_rng((seed, i)), shape, minutes) for i in range(n_cells)]
    extra = {key: np.stack([cell[key] for cell in cells]) for key in cells[0]}
    return Dataset(
        Y=extra["counts"].reshape(n_cells, -1),
        labels=None,
        label_names=(),
        feature_names=tuple(f"bin_{i}_{j}" for i in range(shape[0]) for j in range(shape[1])),
        name="grid_cells",
        source=f"made by make_grid_cells({n_cells}, {tuple(shape)}, {seed}, minutes={minutes})",
        extra={key: np.array(value) for key, value in extra.items()},
    )


def _cox_1d_rate(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(2.0 * np.exp(-x / 15.0) + np.exp(-(((x - 25.0) / 10.0) ** 2)))


def _grid_cell(
    rng: np.random.Generator, shape: tuple[int, int], minutes: float
) -> dict[str, NDArray[np.float64]]:
    """One cell: its map, its visits and its spikes."""
    period = rng.uniform(0.125, 0.25) * min(shape)
    orientation = rng.uniform(0.0, np.pi / 3.0)
    centre = rng.uniform(0.0, period, 2)
    per_second = rng.uniform(0.5, 2.0)
    y, x = np.meshgrid(*(np.arange(side) + 0.5 for side in shape), indexing="ij")
    angles = orientation + np.pi / 3.0 * np.arange(3)
    number = 4.0 * np.pi / (np.sqrt(3.0) * period)
    waves = [
        np.cos(number * ((x - centre[0]) * np.cos(a) + (y - centre[1]) * np.sin(a))) for a in angles
    ]
    rate = np.exp(3.2 * sum(waves) / 3.0)
    visits = _visits(rng, shape, int(minutes * 60.0 * _SAMPLES_PER_SECOND))
    rate = rate * (per_second / _SAMPLES_PER_SECOND * visits.sum() / np.sum(visits * rate))
    return {
        "visits": visits,
        "counts": rng.poisson(visits * rate).astype(np.float64),
        "rate": rate,
        "period": np.asarray(period),
        "orientation": np.asarray(orientation),
    }


def _visits(rng: np.random.Generator, shape: tuple[int, int], samples: int) -> NDArray[np.float64]:
    """How often a random walk is in each bin.

    A walk that is reflected by walls is an unbounded one folded back into the arena, so that no
    step waits for the one before it.
    """
    from scipy.signal import lfilter

    sides = np.asarray(shape, dtype=np.float64)
    push = rng.standard_normal((samples, 2)) * (0.12 / 128.0) * sides
    path = 0.5 * sides + np.cumsum(lfilter([1.0], [1.0, -0.95], push, axis=0), axis=0)
    low, width = 0.08 * sides, 0.84 * sides
    folded = low + np.abs(np.mod(path - low + width, 2.0 * width) - width)
    bins = np.minimum(folded.astype(np.int64), np.asarray(shape) - 1)
    flat = np.bincount(bins[:, 0] * shape[1] + bins[:, 1], minlength=shape[0] * shape[1])
    return flat.reshape(shape).astype(np.float64)


__all__ = ["make_cox_1d", "make_grid_cells"]
