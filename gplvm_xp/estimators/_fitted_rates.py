"""What a fitted rate map can do, whoever fitted it."""

from __future__ import annotations

import math
from numbers import Integral, Real
from os import PathLike
from statistics import NormalDist
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from gplvm_xp import backend as backends
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.estimators._cells import cells
from gplvm_xp.estimators._data import to_like
from gplvm_xp.estimators._grid import Grid, axis_flags, ends, finite, table
from gplvm_xp.estimators._padding import cropped, widened
from gplvm_xp.operators import DiagonalPrecision, Hartley
from gplvm_xp.operators.circulant import lags
from gplvm_xp.variational import GridPosterior
from gplvm_xp.variational.engines import Information
from gplvm_xp.variational.grid import spectrum

_BATCH_NUMBERS = 2**22


class FittedRates(BaseEstimator):  # type: ignore[misc]
    """Methods on the fitted state that ``fit`` leaves: see
    :class:`gplvm_xp.LogGaussianCoxProcess`."""

    # -- using it --------------------------------------------------------------------------------

    def latent(self, X: Array) -> tuple[Array, Array]:
        """Mean and variance of the logarithm of the rate at any places of the domain.

        Exact: the posterior is a sum of waves, which are evaluated there. At the middle of a cell
        it equals ``log_rate_mean_`` and ``log_rate_var_``. Cost m R² for m places.

        Parameters
        ----------
        X : array (m, d)
            Places; along a periodic axis any, along the others inside the extent.

        Returns
        -------
        mean, variance : array (..., m)
            Leading axes are those of the fields.

        Raises
        ------
        ValueError
            If X has another number of columns, is not finite, or lies outside.
        """
        check_is_fitted(self)
        mean, variance = self._moments(X)
        return to_like(mean, X), to_like(variance, X)

    def predict(self, X: Array, return_std: bool = False) -> Any:
        """Expected rate at any places of the domain, E[exp f] = exp(m + v/2).

        Parameters
        ----------
        X : array (m, d)
            As in :meth:`latent`.
        return_std : bool
            Also return the posterior standard deviation of the rate.

        Returns
        -------
        array (..., m), or a pair of them
            Events per unit of exposure.
        """
        check_is_fitted(self)
        mean, variance = self._moments(X)
        rate = np.exp(mean + 0.5 * variance)
        if not return_std:
            return to_like(rate, X)
        return to_like(rate, X), to_like(rate * np.sqrt(np.expm1(variance)), X)

    def interval(self, level: float = 0.9) -> tuple[Array, Array]:
        """Credible interval of the rate in each cell: quantiles of its log-normal posterior.

        Parameters
        ----------
        level : float
            Posterior probability between the two; each tail has half of the rest.

        Returns
        -------
        lower, upper : array (..., *shape)

        Raises
        ------
        ValueError
            If ``level`` is not between 0 and 1.
        """
        check_is_fitted(self)
        if not isinstance(level, Real) or not 0.0 < level < 1.0:
            raise ValueError(f"level={level!r} was given; expected a number between 0 and 1")
        xp = backends.of(self.log_rate_mean_).xp
        half = NormalDist().inv_cdf(0.5 + 0.5 * level) * xp.sqrt(self.log_rate_var_)
        return xp.exp(self.log_rate_mean_ - half), xp.exp(self.log_rate_mean_ + half)

    def sample(self, n_samples: int = 1, random_state: Any = None, *, log: bool = False) -> Array:
        """Draw whole maps from the posterior.

        Parameters
        ----------
        n_samples : int
        random_state : int, RandomState or None
        log : bool
            Whether to return the logarithm of the rate.

        Returns
        -------
        array (n_samples, ..., *shape)

        Raises
        ------
        ValueError
            If ``n_samples`` is not a positive integer.
        """
        check_is_fitted(self)
        if isinstance(n_samples, bool) or not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"n_samples={n_samples!r} was given; expected an integer of 1 or more")
        q, grid = self._post(), self._grid
        b = backends.of(q.mu)
        xi = check_random_state(random_state).standard_normal((n_samples, *q.mu.shape))
        f = b.to_host(cropped(q.sample(b.asarray(xi)), grid, q.basis.shape)).astype(np.float64)
        return to_like(f if log else np.exp(f), self.rate_)

    def score(self, counts: Any, exposure: Any = None, *, integer: bool = True) -> float:
        """Mean log predictive probability of new counts in a cell, nats; larger is better.

        Each cell is averaged over its own posterior, ln E[p(count | f)].

        Parameters
        ----------
        counts : array (..., *shape)
            Held-out events on the grid of the fit, for example from :meth:`bin`; NaN is left out.
        exposure : array, optional
            Default that of the fit. Cells of exposure 0 are left out.
        integer : bool
            As in ``fit_counts``.

        Raises
        ------
        ValueError
            As in ``fit_counts``, and if there are other fields than in the fit.
        """
        check_is_fitted(self)
        new = cells(
            self._grid, counts, self.exposure_ if exposure is None else exposure, integer=integer
        )
        if new.counts.shape != self.counts_.shape:
            raise ValueError(
                f"counts have shape {new.counts.shape}; expected {self.counts_.shape}, that of "
                "the fit"
            )
        b, used = self._backend, new.used
        log = self.likelihood_.log_predictive(
            b.asarray(np.where(used, new.counts, 0.0)),
            b.asarray(self.log_rate_mean_),
            b.asarray(self.log_rate_var_),
            exposure=b.asarray(np.where(used, new.exposure, 1.0)),
        )
        return float(np.mean(b.to_host(log)[used]))

    def bin(self, X: Any) -> np.ndarray:
        """How many of the places X (n, d) are in each cell of the grid, (*shape).

        Raises
        ------
        ValueError
            If one is not finite or outside.
        """
        check_is_fitted(self)
        A = table("X", X, self._grid.ndim)
        finite("X", A, "leave such rows out")
        self._grid.refuse_outside("X", A)
        return self._grid.histogram(A)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the fitted model to one ``.npz`` file; :func:`gplvm_xp.load` reads it back."""
        from gplvm_xp.io import save

        save(self, path)

    # -- private ---------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        # The R × R roots are rebuilt from the sites.
        state = dict(super().__getstate__())
        state.pop("_posterior", None)
        return state

    @property
    def _backend(self) -> Backend:
        return backends.get(self.backend, self.rate_, self.dtype)

    @property
    def _grid(self) -> Grid:
        return Grid(tuple(e.size - 1 for e in self.edges_), self.extent_)

    @property
    def _axes_periodic(self) -> tuple[bool, ...]:
        return axis_flags("periodic", self.periodic, self.n_features_in_)

    def _post(self) -> GridPosterior:
        """The posterior: kept from the fit, rebuilt from the sites after loading."""
        if getattr(self, "_posterior", None) is None:
            b, grid = self._backend, self._grid
            shape = tuple(int(n) for n in self.padded_shape_)
            where = b.asarray(lags(shape, tuple(grid.spacing)))
            basis = Hartley(shape, self.frequencies_)
            spectra = spectrum(self.kernel_, b.asarray(self.kernel_.theta()), where, shape)
            s = b.rows(spectra, basis.places)
            engine = Information(DiagonalPrecision(1.0 / s), basis, where)
            p = b.asarray(widened(self.sites_[0, ...], grid, shape))
            root = engine.covariance(p)[1]
            m, v = (
                b.asarray(widened(backends.of(a).to_host(a), grid, shape))
                for a in (self.log_rate_mean_, self.log_rate_var_)
            )
            mean, mu = b.asarray(self.mean_), b.asarray(self.coefficients_)
            self._posterior = GridPosterior(basis, mean, mu, root, m, v)
        return self._posterior

    def _moments(self, X: Array) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of the logarithm of the rate at places, (..., m) each, on the host."""
        grid, q = self._grid, self._post()
        A = table("X", X, grid.ndim)
        finite("X", A, "leave such rows out")
        closed = ~np.array(self._axes_periodic)
        middle = np.mean(self.extent_, axis=1)
        grid.refuse_outside("X", np.where(closed, A, middle))
        b = backends.of(q.mu)
        xp, size = b.xp, np.array(q.basis.shape)
        # Of a frequency and its aliases the slowest wave goes through the cells smoothly.
        keep = np.where(2 * q.basis.keep > size, q.basis.keep - size, q.basis.keep)
        turns = grid.places(A) / size
        step = max(1, _BATCH_NUMBERS // max(1, math.prod(q.root.shape[:-1])))
        means, variances = [], []
        for i in range(0, max(1, A.shape[0]), step):
            # The angle on the host: in float32 it would lose digits of many turns.
            angle = 2.0 * np.pi * (turns[i : i + step] @ keep.T)
            wave = b.asarray((np.cos(angle) + np.sin(angle)) / np.sqrt(q.basis.rows))
            half = wave @ q.root
            m = q.mean[..., None] + xp.squeeze(wave @ q.mu[..., None], axis=-1)
            means.append(b.to_host(m).astype(np.float64))
            variances.append(b.to_host(xp.sum(half * half, axis=-1)).astype(np.float64))
        return np.concatenate(means, axis=-1), np.concatenate(variances, axis=-1)

    def _restored(self) -> None:
        """Rebuild what follows from the rest, and refuse parts of a file that don't fit."""
        d = self.n_features_in_
        fields = self.mean_.ndim
        shape = self.counts_.shape[fields:]
        if self.extent_.shape != (d, 2) or len(shape) != d or self.padded_shape_.shape != (d,):
            raise ValueError(
                f"extent_, counts_ and padded_shape_ have shapes {self.extent_.shape}, "
                f"{self.counts_.shape} and {self.padded_shape_.shape}; expected those of {d} axes"
            )
        whole = (*self.mean_.shape, *shape)
        for name, need in {
            **dict.fromkeys(("exposure_", "rate_", "log_rate_mean_", "log_rate_var_"), whole),
            "sites_": (2, *whole),
            "free_energy_": self.mean_.shape,
            "coefficients_": (*self.mean_.shape, self.frequencies_.shape[0]),
        }.items():
            if getattr(self, name).shape != need:
                raise ValueError(
                    f"{name} has shape {getattr(self, name).shape}; expected {need} to go with "
                    "the other arrays"
                )
        if np.any(self.padded_shape_ < np.array(shape)):
            raise ValueError(f"padded_shape_ is {self.padded_shape_}; expected {shape} or more")
        ends(self.extent_)
        self.kernel_.check(d)
        self._place(Grid(shape, self.extent_))
        Hartley(tuple(int(n) for n in self.padded_shape_), self.frequencies_)
        self.n_frequencies_ = self.frequencies_.shape[0]

    def _place(self, grid: Grid) -> None:
        self.extent_ = grid.extent
        self.edges_, self.centers_ = grid.edges, grid.centers


__all__ = ["FittedRates"]
