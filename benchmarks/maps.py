"""Rate maps of grid cells as inference problems, for the benchmarks of the variational half."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gplvm_xp import datasets
from gplvm_xp.kernels import RBF, Hexagonal, Kernel
from gplvm_xp.likelihoods import Poisson
from gplvm_xp.operators import DiagonalPrecision, Hartley, LinearMap, eigenvalues_of, lags
from gplvm_xp.variational import Information, Observations

# The constant's prior variance: nearly free, as in the published method.
CONSTANT = 1e3


@dataclass(frozen=True, eq=False)
class Maps:
    """Counts on a grid and a stationary prior cut to some frequencies.

    Attributes
    ----------
    name : str
        Where the counts are from.
    shape : tuple of int
    counts, exposure : ndarray (..., N)
    offset : ndarray (...)
        Logarithm of the mean rate.
    keep : ndarray (R, 2)
    variance : ndarray (R,)
        The prior's, of each kept frequency.
    """

    name: str
    shape: tuple[int, ...]
    counts: np.ndarray
    exposure: np.ndarray
    offset: np.ndarray
    keep: np.ndarray
    variance: np.ndarray

    @cached_property
    def basis(self) -> Hartley:
        """The kept frequencies; its plans are made at the first use and kept."""
        return Hartley(self.shape, self.keep)

    def engine(self, b: Any, B: LinearMap | None = None) -> Information:
        """The prior on a backend, seen through the basis or another map of its numbers."""
        prior = DiagonalPrecision(b.asarray(1.0 / self.variance))
        return Information(prior, self.basis if B is None else B, b.zeros((1,)))

    def data(self, b: Any, which: Any = ...) -> Observations:
        """The counts of all maps, of one (an integer) or of some (a slice)."""
        return Observations(
            Poisson(),
            b.asarray(self.counts[which]),
            exposure=b.asarray(self.exposure[which]),
            offset=b.asarray(self.offset[which][..., None]),
        )


def recorded_cell(frequencies: int) -> Maps:
    """The recorded cell on its authors' 128 × 128 bins, or a simulated one where it is missing.

    The prior is hexagonal with the cell's period (24 bins) and orientation.
    """
    try:
        extra, name = datasets.load_grid_cell().extra, "recorded cell"
        visits, counts = extra["visits"], extra["counts"]
    except (OSError, ImportError):
        extra, name = datasets.make_grid_cells(1, (128, 128)).extra, "simulated cell"
        visits, counts = extra["visits"][0], extra["counts"][0]
    return _maps(name, visits, counts, Hexagonal(1.0, 24.0, 0.66, 20.0), frequencies)


def simulated_cells(cells: int, side: int, frequencies: int) -> Maps:
    """Cells with a square arena each, and one prior for all: a lengthscale of side/20."""
    extra = datasets.make_grid_cells(cells, (side, side)).extra
    kernel = RBF(1.0, 0.05 * side)
    return _maps("simulated cells", extra["visits"], extra["counts"], kernel, frequencies)


def retained(spectrum: np.ndarray, count: int) -> np.ndarray:
    """The constant and the pairs ±k of the largest prior variance, ``count`` in all (odd)."""
    s = spectrum.copy()
    s[(0,) * s.ndim] = np.inf
    flat = np.stack(np.unravel_index(np.argsort(-s, axis=None), s.shape), axis=1)
    # A dictionary keeps the order and takes each frequency once.
    kept: dict[tuple[int, ...], None] = {}
    for k in flat:
        if len(kept) >= count:
            break
        kept[tuple(k.tolist())] = None
        kept[tuple(np.mod(-k, s.shape).tolist())] = None
    if len(kept) != count:
        raise ValueError(f"{count} frequencies split a pair ±k; choose an odd number")
    return np.array(list(kept))


def _maps(
    name: str, visits: np.ndarray, counts: np.ndarray, kernel: Kernel, frequencies: int
) -> Maps:
    shape = visits.shape[-2:]
    where = lags(shape)
    row = kernel.gram(kernel.theta(), 0.0 * where[:1], where).reshape(shape)
    spectrum = eigenvalues_of(row, 2)
    keep = retained(spectrum, frequencies)
    spectrum[0, 0] = CONSTANT
    lead = visits.shape[:-2]
    n, k = visits.reshape(*lead, -1), counts.reshape(*lead, -1)
    offset = np.log(k.sum(axis=-1) / n.sum(axis=-1))
    return Maps(name, shape, k, n, offset, keep, spectrum[tuple(keep.T)])


__all__ = ["CONSTANT", "Maps", "recorded_cell", "retained", "simulated_cells"]
