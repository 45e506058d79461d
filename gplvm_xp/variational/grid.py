"""Variational inference on a grid with a stationary prior, in a truncated Hartley basis.

The prior covariance is diagonal there, s_k = Σ_x k(0, x) cos(2πk·x/N), so that a posterior costs
R³ + N log N for R retained frequencies. At the optimum

    ∂𝓕/∂s_k = ½ [1/s_k − (m_k² + C_kk)/s_k²]

by the envelope theorem, and the chain to the kernel's parameters is one transform and the
kernel's own pullback. Source: derivations/inference.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.kernels import Kernel
from gplvm_xp.operators import DiagonalPrecision, Hartley
from gplvm_xp.operators.circulant import eigenvalues_of, eigenvalues_pullback, lags
from gplvm_xp.params import Block
from gplvm_xp.variational.engines import Engine, Information
from gplvm_xp.variational.evidence import Evidence, by_name
from gplvm_xp.variational.observations import Observations
from gplvm_xp.variational.sites import SiteProgress, SiteResult


@dataclass(frozen=True, eq=False)
class GridPosterior:
    """q of the field on the grid, f = μ₀ + Fᵀ z with z ~ N(mu, Σ).

    Attributes
    ----------
    basis : Hartley
    mean : array (...)
        μ₀.
    mu : array (..., R)
    root : array (..., R, R)
        A with A Aᵀ = Σ.
    m, v : array (..., N)
        Mean and variance of f, cell by cell.
    """

    basis: Hartley
    mean: Array
    mu: Array
    root: Array
    m: Array
    v: Array

    def sample(self, xi: Array) -> Array:
        """White noise (..., R) to a draw of f on the grid, (..., N)."""
        xp = backend.of(xi).xp
        z = self.mu + xp.squeeze(self.root @ xi[..., None], axis=-1)
        return self.mean[..., None] + self.basis.apply(z)

    def covariance(self) -> Array:
        """Σ of the coefficients, (..., R, R)."""
        return self.root @ backend.of(self.root).xp.matrix_transpose(self.root)


def spectrum(kernel: Kernel, theta: Array, where: Array, shape: tuple[int, ...]) -> Array:
    """Prior variances s_k of every frequency, (N,); ``where`` are the grid's lags (N, ndim).

    Numbers below ε times the largest, negative ones included (a kernel cut off by the period), are
    replaced by it.
    """
    b = backend.of(where)
    row = kernel.gram(theta, 0.0 * where[:1, ...], where)
    s = b.xp.reshape(eigenvalues_of(b.xp.reshape(row, shape), len(shape)), (-1,))
    floor = b.eps * b.xp.max(s)
    return b.xp.where(s > floor, s, floor)


class GridEvidence(Evidence):
    """The optimal free energy of a field on a grid; see :class:`Evidence`.

    Parameters
    ----------
    kernel : Kernel
        Stationary; inputs in the units of ``spacing``.
    shape : tuple of int
        Of the periodic grid (padding included).
    spacing : tuple of float
        Of its cells.
    data : Observations
        y (..., N), cells in C order; leading axes are independent fields that share the kernel.
    mean : float or ndarray (...)
        μ₀, one number a field.
    fit_mean : bool
        Whether μ₀ is a parameter.
    threshold : float
        Frequencies with s_k ≥ threshold · max_{k≠0} s_k are retained.
    max_frequencies : int
        Refuse more: R³ operations and 8R² bytes a field are needed.
    tol, max_steps, callback
        Of the inner search.

    Raises
    ------
    ValueError
        If more frequencies would be retained than ``max_frequencies``.
    """

    basis: Hartley

    def __init__(
        self,
        kernel: Kernel,
        shape: tuple[int, ...],
        spacing: tuple[float, ...],
        data: Observations,
        *,
        mean: float | np.ndarray = 0.0,
        fit_mean: bool = True,
        threshold: float = 0.01,
        max_frequencies: int = 3000,
        tol: float = 1e-8,
        max_steps: int = 500,
        callback: Callable[[SiteProgress], bool | None] | None = None,
    ) -> None:
        kernel.check(len(shape))
        self.shape, self.spacing = shape, spacing
        self.threshold, self.max_frequencies = threshold, max_frequencies
        self.where = backend.of(data.y).asarray(lags(shape, spacing))
        self._kept: frozenset[tuple[int, ...]] = frozenset()
        block = Block("mean", mean, "identity", fixed=not fit_mean)
        super().__init__(kernel, data, block, tol, max_steps, callback)
        self.retain(kernel)

    def retain(self, kernel: Kernel, *, also: bool = False) -> bool:
        """Start from another kernel's values and choose the frequencies that these need, with
        ``also`` beside those in use; whether the choice has changed."""
        b = self.backend
        s = b.to_host(spectrum(kernel, b.asarray(kernel.theta()), self.where, self.shape))
        basis = Hartley.of_spectrum(s.reshape(self.shape), self.threshold)
        if also:
            keep = np.unique(np.concatenate([basis.keep, self.basis.keep]), axis=0)
            basis = Hartley(self.shape, keep)
        if basis.cols > self.max_frequencies:
            raise ValueError(
                f"{basis.cols} of {math.prod(self.shape)} frequencies have at least "
                f"{self.threshold:g} of the largest prior variance, and max_frequencies is "
                f"{self.max_frequencies}: take a coarser grid, a longer lengthscale, a larger "
                "threshold, or raise max_frequencies (memory grows with its square)"
            )
        kept = frozenset(tuple(k) for k in basis.keep.tolist())
        changed = kept != self._kept
        if changed:
            self._kept, self.basis = kept, basis
        self._use(kernel)
        return changed

    def solve(self, x: Array) -> tuple[GridPosterior, SiteResult]:
        """The optimal posterior at hyperparameters x, starting from the last one."""
        values = self.named(x)
        engine, data = self._problem(values)
        result = self._search(engine, data)
        mean = self._means(values)
        root = engine.covariance(result.p)[1]
        m = result.m + mean[..., None]
        return GridPosterior(self.basis, mean, result.mu, root, m, result.v), result

    # -- private ---------------------------------------------------------------------------------

    def _means(self, values: dict[str, Array]) -> Array:
        return self.backend.xp.broadcast_to(values["mean"], self.data.y.shape[:-1])

    def _spectrum(self, values: dict[str, Array]) -> Array:
        theta = self._flat(values, self.kernel.blocks())
        return spectrum(self.kernel, theta, self.where, self.shape)

    def _problem(self, values: dict[str, Array]) -> tuple[Information, Observations]:
        offset = self._means(values)[..., None]
        if self.data.offset is not None:
            offset = offset + self.data.offset
        s = self.backend.rows(self._spectrum(values), self.basis.places)
        prior = DiagonalPrecision(1.0 / s)
        engine = Information(prior, self.basis, self.where)
        return engine, replace(self._likelihood(values), offset=offset)

    def _gradients(
        self, values: dict[str, Array], engine: Engine, data: Observations, result: SiteResult
    ) -> dict[str, Array]:
        b, xp = self.backend, self.backend.xp
        assert isinstance(engine, Information)
        spectra = self._spectrum(values)
        s = b.rows(spectra, self.basis.places)
        C = engine.covariance(result.p)[0]
        gs = 0.5 * (1.0 / s - (result.mu**2 + xp.linalg.diagonal(C)) / (s * s))
        # Those that were raised to the floor do not move with the kernel.
        gs = xp.where(s > b.eps * xp.max(spectra), gs, 0.0)
        gs = xp.sum(xp.reshape(gs, (-1, s.shape[0])), axis=0)
        # Back to the whole grid: zero where a frequency is not retained.
        place = np.full(math.prod(self.shape), self.basis.places.size)
        place[self.basis.places] = np.arange(self.basis.places.size)
        whole = xp.reshape(b.rows(xp.concat([gs, b.zeros((1,))]), place), self.shape)
        g_row = xp.reshape(eigenvalues_pullback(whole, len(self.shape)), (1, -1))
        theta = self._flat(values, self.kernel.blocks())
        pull = self.kernel.gram_pullback(theta, 0.0 * self.where[:1, ...], self.where)[1]
        g_mean = xp.sum(result.terms.r, axis=-1)
        g_mean = g_mean if self.mean.value.ndim else xp.sum(g_mean)
        return by_name(self.kernel.blocks(), pull(g_row)[0]) | {"mean": g_mean}


__all__ = ["GridEvidence", "GridPosterior", "spectrum"]
