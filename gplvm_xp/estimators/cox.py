"""Rates of events in time and space: log-Gaussian Cox processes on a grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np

from gplvm_xp import backend as backends
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.estimators._cells import Cells, binned, cells
from gplvm_xp.estimators._contrast import starting_kernel
from gplvm_xp.estimators._data import to_like
from gplvm_xp.estimators._fitted_rates import FittedRates
from gplvm_xp.estimators._grid import Grid, axis_flags, ends, sides
from gplvm_xp.estimators._padding import cropped, stationary
from gplvm_xp.estimators._rates import Found, Plan, check_parameters, say_how_it_ended, search
from gplvm_xp.estimators._saved import SavedArray, SavedValue
from gplvm_xp.estimators._targets import chosen, host
from gplvm_xp.kernels import Kernel
from gplvm_xp.likelihoods import Likelihood, NegativeBinomial, Poisson
from gplvm_xp.optim import Progress


class LogGaussianCoxProcess(FittedRates):
    """Where, or when, events happen how often: a smooth rate with its uncertainty.

    The logarithm of the rate is a constant plus a Gaussian process on a grid of one to three axes,
    and the counts of the cells are Poisson (or overdispersed) with mean exposure · rate. The
    posterior is the best Gaussian one (variational inference) in a basis of the few waves that
    carry the prior's variance; kernel and constant are learned by the evidence lower bound, with
    gradients by the envelope theorem.

    Parameters
    ----------
    shape : int or tuple of int
        Cells along each axis; an integer stands for every axis.
    extent : sequence of (low, high), optional
        Ends of each axis, in the events' units. Default: for :meth:`fit` the smallest box around
        events and positions, for :meth:`fit_counts` one unit a cell.
    periodic : bool or tuple of bool
        Whether the domain closes on itself along an axis (angles, phases). Other axes are padded
        as far as the kernel is above one hundredth of its variance, so that opposite edges do not
        see each other.
    kernel : Kernel, optional
        Stationary; structure and starting values, inputs in the events' units. Default an RBF with
        a lengthscale for each axis, started where the pair correlation of the events suggests, or
        at a tenth of the extent where they do not cluster.
    likelihood : {"poisson", "negative_binomial"} or Likelihood
        Of the counts, with mean exposure · exp(f); "negative_binomial" for counts that vary more
        than Poisson's at one rate.
    fit_mean : bool
        Whether the constant, one for each field, is learned; else it is the logarithm of the
        field's overall rate.
    optimize : bool
        Whether hyperparameters and constants are learned; else the starting values are used.
    threshold : float
        Waves whose prior variance is at least this part of the largest (that of the constant left
        out) are retained.
    max_frequencies : int
        Refuse to retain more: R waves cost R³ operations a step and about 80 R² bytes a field.
    max_iter : int
        Steps of the search for hyperparameters (L-BFGS-B), all rounds together.
    tol : float
        Converged where no gradient entry (nats per unit of a logarithm) is larger, or where the
        free energy no longer falls relative to its size by ``1e-3 tol``.
    time_limit : float, optional
        Seconds after which no further evaluation begins; the best state so far is kept.
    callback : callable, optional
        Called after every accepted step with a :class:`gplvm_xp.optim.Progress`; a true answer
        stops.
    progress : bool
        Show a progress bar.
    backend : {"auto", "numpy", "cupy", "torch"} or None
        Where to compute; None is where the data is.
    dtype : {"float64", "float32"}
        Working precision.
    random_state : int, RandomState or None
        Not used; fits have no randomness. :meth:`sample` takes its own.

    Attributes
    ----------
    rate_ : array (..., *shape)
        Posterior mean of the rate, E[exp f], events per unit of exposure; in the data's own
        library. Leading axes, here and below, are those of the fields.
    log_rate_mean_, log_rate_var_ : array (..., *shape)
        Mean and variance of f, the logarithm of the rate.
    kernel_, likelihood_ : Kernel, Likelihood
        With the learned values.
    mean_ : ndarray (...)
        The constant.
    counts_, exposure_ : ndarray (..., *shape)
        The data; masked cells have NaN, unobserved ones exposure 0.
    edges_, centers_ : list of ndarray
        Of the cells along each axis.
    extent_ : ndarray (d, 2)
    free_energy_ : ndarray (...)
        Minus the evidence lower bound of each field, nats, all constants.
    elbo_ : float
        The evidence lower bound of all fields.
    n_frequencies_ : int
        Waves retained.
    frequencies_, padded_shape_ : ndarray
        Which ones, (n_frequencies_, d), and the periodic grid that they belong to, (d,).
    coefficients_ : ndarray (..., n_frequencies_)
        Posterior means of their weights.
    sites_ : ndarray (2, ..., *shape)
        Curvature and slope of each cell's Gaussian factor: with the rest, the posterior.
    loss_curve_ : ndarray
        Free energy at the start of each round and after each accepted step. Between rounds the
        retained waves change, and the value with them.
    n_iter_ : int
    status_ : str
        How the search ended, as in :class:`gplvm_xp.GPLVM`.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    R³ + N log N operations a step of the inner search, for R waves and N cells of the padded grid;
    ten to thirty steps at first, few once warm. Waves are held while the kernel is optimised; where
    it needs many others, they are chosen anew and the search goes on from there. Where the kernel
    reaches further than the domain is long, the padding ends at twice its length, and the prior is
    that of the padded domain. A field without events has no best constant: it keeps that of half an
    event.

    References
    ----------
    J. Møller, A. R. Syversveen, R. P. Waagepetersen, Log Gaussian Cox processes, Scandinavian
    Journal of Statistics 25 (1998) 451–482. M. E. Rule et al., Variational log-Gaussian
    point-process methods for grid cells, Hippocampus 33 (2023). M. Opper, C. Archambeau, The
    variational Gaussian approximation revisited, Neural Computation 21 (2009) 786–792.

    Examples
    --------
    >>> import numpy as np
    >>> from gplvm_xp import LogGaussianCoxProcess
    >>> times = np.sort(np.random.default_rng(0).beta(2, 4, size=300)) * 10.0
    >>> model = LogGaussianCoxProcess(50, extent=(0.0, 10.0)).fit(times)
    >>> model.rate_.shape
    (50,)
    >>> rate, std = model.predict([2.5, 8.0], return_std=True)
    >>> bool(rate[0] > rate[1])
    True
    """

    _saved_arrays: ClassVar[dict[str, SavedArray]] = {
        "rate_": SavedArray("*", holds="nonnegative"),
        "log_rate_mean_": SavedArray("*"),
        "log_rate_var_": SavedArray("*", holds="nonnegative"),
        "counts_": SavedArray("*", holds="missing"),
        "exposure_": SavedArray("*", holds="nonnegative"),
        "mean_": SavedArray("*"),
        "free_energy_": SavedArray("*"),
        "sites_": SavedArray("*"),
        "coefficients_": SavedArray("*r"),
        "frequencies_": SavedArray("rd", dtype="int64"),
        "padded_shape_": SavedArray("d", dtype="int64", holds="positive"),
        "extent_": SavedArray("de"),
        "loss_curve_": SavedArray("k", holds="any"),
    }
    _saved_values: ClassVar[dict[str, SavedValue]] = {
        "elbo_": SavedValue(float),
        "n_iter_": SavedValue(int),
        "status_": SavedValue(str),
        "n_features_in_": SavedValue(int),
    }
    _saved_objects: ClassVar[dict[str, type]] = {"kernel_": Kernel, "likelihood_": Likelihood}

    def __init__(
        self,
        shape: int | tuple[int, ...] = 64,
        *,
        extent: Any = None,
        periodic: bool | tuple[bool, ...] = False,
        kernel: Kernel | None = None,
        likelihood: str | Likelihood = "poisson",
        fit_mean: bool = True,
        optimize: bool = True,
        threshold: float = 0.01,
        max_frequencies: int = 3000,
        max_iter: int = 100,
        tol: float = 1e-4,
        time_limit: float | None = None,
        callback: Callable[[Progress], bool | None] | None = None,
        progress: bool = False,
        backend: str | None = None,
        dtype: str = "float64",
        random_state: Any = None,
    ) -> None:
        self.shape = shape
        self.extent = extent
        self.periodic = periodic
        self.kernel = kernel
        self.likelihood = likelihood
        self.fit_mean = fit_mean
        self.optimize = optimize
        self.threshold = threshold
        self.max_frequencies = max_frequencies
        self.max_iter = max_iter
        self.tol = tol
        self.time_limit = time_limit
        self.callback = callback
        self.progress = progress
        self.backend = backend
        self.dtype = dtype
        self.random_state = random_state

    # -- fitting ---------------------------------------------------------------------------------

    def fit(
        self,
        X: Array,
        y: Any = None,
        *,
        exposure: Any = None,
        positions: Any = None,
        time_step: float | None = None,
    ) -> Self:
        """Learn the rate from the places of events.

        Parameters
        ----------
        X : array (n, d) or (n,)
            Events, d = 1 to 3 coordinates each; a vector is times. There may be none, if the extent
            or positions say where.
        y : ignored
        exposure : array of the grid's shape, optional
            How long, or how often, each cell was observed; 0 is unobserved. The rate is then per
            unit of it.
        positions : array (T, d), optional
            Instead of ``exposure``: samples of where the observer was, ``time_step`` seconds each.
            Rows with NaN (lost tracking) count nothing. The rate is then per second.
        time_step : float, optional
            Seconds from one position to the next.

        Returns
        -------
        self

        Notes
        -----
        With neither, every cell is observed with its volume as exposure, and the rate is per unit
        of volume (length, area).

        Raises
        ------
        ValueError, TypeError
            If something doesn't fit; the text says what was seen and what was expected.
        NotEnoughMemoryError
            If the R × R matrices do not fit, before they are allocated.
        """
        b = backends.get(self.backend, X, self.dtype)
        check_parameters(self)
        data = binned(X, self.shape, self.extent, exposure, positions, time_step)
        self._fit(b, data, X)
        names = getattr(X, "columns", None)
        if names is not None and all(isinstance(name, str) for name in names):
            self.feature_names_in_ = np.asarray(names, dtype=object)
        return self

    def fit_counts(self, counts: Array, exposure: Any = None, *, integer: bool = True) -> Self:
        """Learn the rates of one or many fields from counts on the grid.

        Parameters
        ----------
        counts : array (..., *shape)
            Events in each cell; NaN masks a cell. Leading axes are fields (cells, trials) with
            rates of their own that share kernel and likelihood and are computed as a batch.
            ``shape`` says which axes are the grid's: an integer stands for every axis of
            ``extent``, or without an extent for every axis of the counts.
        exposure : array (*shape) or (..., *shape), optional
            As in :meth:`fit`. Default: the volume of a cell everywhere.
        integer : bool
            Whether to insist on whole numbers. False takes smoothed or interpolated counts, for
            which the likelihood is an analytic continuation.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If something doesn't fit; the text says what was seen and what was expected.
        NotEnoughMemoryError
            If the R × R matrices do not fit, before they are allocated.
        """
        b = backends.get(self.backend, counts, self.dtype)
        check_parameters(self)
        box = None if self.extent is None else ends(self.extent)
        if np.ndim(self.shape):
            d = np.size(self.shape)
        else:
            d = np.ndim(host(counts)) if box is None else box.shape[0]
        shape = sides(self.shape, max(1, min(d, 3)))
        if box is None:
            box = np.array([(0.0, n) for n in shape])
        where = Grid(shape, ends(box, len(shape)))
        return self._fit(b, cells(where, counts, exposure, integer=integer), counts)

    # -- private ---------------------------------------------------------------------------------

    def _fit(self, b: Backend, data: Cells, like: Any) -> Self:
        where = data.grid
        periodic = axis_flags("periodic", self.periodic, where.ndim)
        likelihood = chosen(self.likelihood)
        if not isinstance(likelihood, Poisson | NegativeBinomial):
            raise ValueError(
                f"likelihood={self.likelihood!r} was given; expected 'poisson', "
                "'negative_binomial', or an object of these classes"
            )
        kernel = self.kernel
        if kernel is None:
            kernel = starting_kernel(data)
        if not isinstance(kernel, Kernel):
            raise TypeError(
                f"kernel is a {type(kernel).__name__}; expected one of gplvm_xp.kernels, for "
                "example Matern52(1.0, 5.0)"
            )
        stationary(kernel, where)
        events, exposure = data.totals()
        plan = Plan(
            kernel=kernel,
            likelihood=likelihood,
            mean=np.asarray(np.log(np.where(events > 0.0, events, 0.5) / exposure)),
            periodic=periodic,
            fit_mean=self.fit_mean,
            optimize=self.optimize,
            threshold=self.threshold,
            max_frequencies=self.max_frequencies,
            max_iter=self.max_iter,
            tol=self.tol,
            time_limit=self.time_limit,
            callback=self.callback,
            progress=self.progress,
        )
        found = search(b, data, plan)
        self._keep(b, data, found, like)
        say_how_it_ended(found, self.max_iter)
        return self

    def _keep(self, b: Backend, data: Cells, found: Found, like: Any) -> None:
        q, where, shape = found.posterior, data.grid, found.shape

        def host(a: Array) -> np.ndarray:
            return np.asarray(b.to_host(cropped(a, where, shape)), dtype=np.float64)

        mean, variance = host(q.m), np.maximum(host(q.v), 0.0)
        self.kernel_, self.likelihood_, self.mean_ = found.kernel, found.likelihood, found.mean
        self.counts_, self.exposure_ = data.counts, data.exposure
        self.log_rate_mean_, self.log_rate_var_ = to_like(mean, like), to_like(variance, like)
        self.rate_ = to_like(np.exp(mean + 0.5 * variance), like)
        self.sites_ = np.stack([host(found.result.p), host(found.result.y)])
        self.coefficients_ = b.to_host(q.mu).astype(np.float64)
        self.frequencies_ = np.array(q.basis.keep, dtype=np.int64)
        self.padded_shape_ = np.array(shape, dtype=np.int64)
        self.n_frequencies_ = q.basis.cols
        self.free_energy_ = np.asarray(found.result.free_energy, dtype=np.float64)
        self.elbo_ = -self.free_energy_.sum()
        self.loss_curve_ = np.asarray(found.values, dtype=np.float64)
        self.n_iter_, self.status_ = found.steps, found.status
        self.n_features_in_ = where.ndim
        self.__dict__.pop("feature_names_in_", None)
        self._place(where)
        self._posterior = q


__all__ = ["LogGaussianCoxProcess"]
