"""The domain of a rate map inside the periodic grid that it is computed on."""

from __future__ import annotations

from typing import Any

import numpy as np

from gplvm_xp import backend as backends
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.estimators._cells import Cells
from gplvm_xp.estimators._grid import Grid
from gplvm_xp.kernels import Kernel
from gplvm_xp.likelihoods import Likelihood
from gplvm_xp.operators.circulant import lags, padded
from gplvm_xp.variational import Observations

# Cells at opposite edges of a domain see each other around the back with less than this part of
# the prior variance.
REACH = 0.01


def padded_shape(kernel: Kernel, grid: Grid, periodic: tuple[bool, ...]) -> tuple[int, ...]:
    """The periodic grid on which the domain is computed: longer by the kernel's reach along each
    axis that is not periodic, and never more than twice as long."""
    b = backends.get("numpy")
    twice = tuple(2 * n for n in grid.shape)
    where = lags(twice, tuple(grid.spacing))
    row = kernel.gram(b.asarray(kernel.theta()), 0.0 * where[:1], where)
    k = np.abs(np.reshape(row, twice))
    reach = np.array(grid.shape)
    for axis, n in enumerate(grid.shape):
        others = tuple(a for a in range(grid.ndim) if a != axis)
        far = np.flatnonzero(np.max(k, axis=others)[: n + 1] > REACH * np.max(k))
        reach[axis] = min(n, 1 + np.max(far, initial=-1))
    wide = padded(grid.shape, tuple(reach))
    return tuple(n if p else m for n, m, p in zip(grid.shape, wide, periodic, strict=True))


def corner(grid: Grid) -> tuple[Any, ...]:
    """The index of the domain in the padded grid, after any leading axes."""
    return (..., *(slice(n) for n in grid.shape))


def widened(a: np.ndarray, grid: Grid, shape: tuple[int, ...]) -> np.ndarray:
    """A field of the domain (..., *grid.shape) on the padded grid, (..., N), zero elsewhere."""
    lead = a.shape[: a.ndim - grid.ndim]
    out = np.zeros((*lead, *shape))
    out[corner(grid)] = a
    return out.reshape(*lead, -1)


def cropped(a: Array, grid: Grid, shape: tuple[int, ...]) -> Array:
    """A field of the padded grid (..., N) on the domain, (..., *grid.shape)."""
    wide = backends.of(a).xp.reshape(a, (*a.shape[:-1], *shape))
    return wide[corner(grid)]


def observations(
    b: Backend, data: Cells, likelihood: Likelihood, shape: tuple[int, ...]
) -> Observations:
    """The data on the padded grid; cells that say nothing have weight 0."""
    used = data.used
    parts = (np.where(used, data.counts, 0.0), used, np.where(used, data.exposure, 0.0))
    y, weights, exposure = (b.asarray(widened(a, data.grid, shape)) for a in parts)
    return Observations(likelihood, y, weights, exposure)


def stationary(kernel: Kernel, grid: Grid) -> None:
    """Refuse a kernel that has no spectrum on a grid.

    Raises
    ------
    ValueError
        If it does not fit the axes, is not a function of the lag, or has white noise.
    """
    kernel.check(grid.ndim)
    b = backends.get("numpy")
    rng = np.random.default_rng(0)
    theta, width = b.asarray(kernel.theta()), grid.spacing * np.array(grid.shape)
    X, Z, away = (width * rng.uniform(size=(m, grid.ndim)) for m in (5, 4, 1))
    here, there = kernel.gram(theta, X, Z), kernel.gram(theta, X + away, Z + away)
    diagonal = kernel.diag(theta, X)
    scale = np.max(np.abs(diagonal))
    if not np.allclose(here, there, rtol=0.0, atol=1e-6 * scale):
        raise ValueError(
            f"kernel {type(kernel).__name__} is not stationary: its value depends on more than "
            "the difference of two places; expected one such as RBF, Matern52, Periodic, or sums "
            "and products of them"
        )
    alone = np.diagonal(kernel.gram(theta, X, X.copy()))
    if not np.allclose(diagonal, alone, rtol=0.0, atol=1e-6 * scale):
        raise ValueError(
            "kernel has white noise, which no map shows; leave it out, and use "
            "likelihood='negative_binomial' if counts vary more than Poisson's"
        )


__all__ = ["cropped", "observations", "padded_shape", "stationary", "widened"]
