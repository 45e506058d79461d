"""A starting kernel from how events cluster: minimum contrast on the pair correlation.

In a log-Gaussian Cox process two places a lag h apart see g(h) = exp(k(h)) times as many pairs of
events as independent ones would (Møller, Syversveen & Waagepetersen 1998, section 3). The estimate
of g − 1 over all lags takes one transform of the counts and one of what was expected.
"""

from __future__ import annotations

import math

import numpy as np

from gplvm_xp.estimators._cells import Cells
from gplvm_xp.kernels import RBF

_CANDIDATES = 24
# As many waves as a start may need, so that it is cheap; the search takes more where they pay.
_WAVES = 1000.0


def starting_kernel(data: Cells) -> RBF:
    """An RBF with a lengthscale for each axis, all the same part of the extent.

    Of a row of such parts the one is taken whose squared exponential explains most of g − 1 by
    weighted least squares, and a tenth where events do not cluster.
    """
    grid = data.grid
    widths = grid.extent[:, 1] - grid.extent[:, 0]
    lag, pairs, expected = _pairs(data)
    volume = math.pi ** (grid.ndim / 2) / math.gamma(grid.ndim / 2 + 1)
    least = max(1.5 / min(grid.shape), 0.63 * (volume / _WAVES) ** (1.0 / grid.ndim))
    best = (0.0, math.log(2.0), 0.1)
    for part in np.geomspace(min(least, 0.25), 0.25, _CANDIDATES):
        profile = np.exp(-0.5 * (lag / part) ** 2)
        along, size = np.sum(pairs * profile), np.sum(expected * profile**2)
        if along > 0.0 and along**2 / size > best[0]:
            best = (along**2 / size, np.log1p(along / size), part)
    variance = np.clip(best[1], 0.1, 4.0)
    return RBF(1.0, tuple(widths)).with_theta(np.concatenate([[variance], best[2] * widths]))


def _pairs(data: Cells) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lags as parts of the extent up to one half, pairs of events there in excess of independent
    ones, and the number of independent ones, all flat."""
    shape, axes = data.grid.shape, tuple(range(-data.grid.ndim, 0))
    twice = tuple(2 * n for n in shape)
    events, exposure = data.totals()
    rate = np.reshape(events / exposure, (*data.fields, *(1,) * data.grid.ndim))
    expected = np.where(data.used, rate * data.exposure, 0.0)
    excess = np.where(data.used, data.counts, 0.0) - expected

    def correlated(a: np.ndarray) -> np.ndarray:
        power = np.abs(np.fft.rfftn(a, s=twice, axes=axes)) ** 2
        summed = power.reshape(-1, *power.shape[-len(shape) :]).sum(axis=0)
        return np.fft.irfftn(summed, s=twice, axes=axes)

    pairs, independent = correlated(excess), correlated(expected)
    # An event is no pair with itself.
    pairs[(0,) * len(shape)] -= np.sum(events)
    steps = [np.minimum(np.arange(m), m - np.arange(m)) / (m // 2) for m in twice]
    lag = np.sqrt(sum(s**2 for s in np.meshgrid(*steps, indexing="ij", sparse=True)))
    near = lag <= 0.5
    return lag[near], pairs[near], independent[near]


__all__ = ["starting_kernel"]
