"""The Bayesian GPLVM as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.utils import check_random_state

from gplvm_xp import backend as backends
from gplvm_xp._typing import Array
from gplvm_xp.estimators._bayes import FoundBayes, Settings, Start, search, starting
from gplvm_xp.estimators._bayes_batches import linear_view, offsets, row_totals, search_batches
from gplvm_xp.estimators._bayes_checks import (
    by_batches,
    check_bayesian,
    chosen_likelihood,
    restored_inducing,
    say_how_it_ended,
)
from gplvm_xp.estimators._data import Scaling, table, to_like
from gplvm_xp.estimators._inducing import FittedInducing
from gplvm_xp.estimators._saved import SavedArray, SavedValue
from gplvm_xp.kernels import Kernel
from gplvm_xp.likelihoods import Gaussian, Likelihood
from gplvm_xp.optim import Progress
from gplvm_xp.priors import Prior

# A dimension is on where the data moves at least this share as much with it as with the first.
ACTIVE = 0.01


class BayesianGPLVM(FittedInducing):
    """Gaussian process latent variable model with the latents integrated out variationally.

    Every latent position has a Gaussian posterior N(μ_n, diag S_n) under the prior N(0, I), and
    every output a Gaussian process through inducing inputs (Titsias & Lawrence 2010). Dimensions
    that the data does not need are switched off by the fit, so that ``n_components`` is an upper
    bound: see ``relevance_`` and ``n_active_``.

    Parameters
    ----------
    n_components : int, optional
        q, at most the numbers of rows and of columns; default 10, or as many as there may be.
    n_inducing : int, optional
        M, at most the number of rows; default 50, or as many as there are rows.
    kernel : Kernel, optional
        Structure and starting values; default an RBF with a lengthscale for each dimension. The
        RBF, Linear, Constant, White and their sums are exact; others use quadrature over q(X),
        which costs more.
    likelihood : Likelihood or str, optional
        Of the data given the latent functions, for example ``"poisson"``; None is Gaussian noise.
        Others are fitted by minibatches.
    inference : {"auto", "collapsed", "minibatch"}
        "collapsed" optimises the inducing outputs away and sees all rows at every step;
        "minibatch" keeps them and sees ``batch_size`` rows. "auto" is collapsed for Gaussian noise.
    exposure : {"total", None}
        For counts: "total" makes the expected count of an entry proportional to its row's total
        (library size), in units of the mean total; None takes all rows alike.
    init : {"pca", "ppca", "random", "isomap", "spectral", "kernel_pca"} or array (n, q)
        Starting means of the latents.
    priors : mapping of str to Prior, optional
        Priors of parameters by name, for example ``{"noise": LogNormal(-3, 1)}``.
    scale : bool
        Divide each column by its standard deviation (constant columns are left alone).
    noise_variance : float, optional
        Starting noise variance, in squared units of the (scaled) data; default that of a Gaussian
        ``likelihood``, or a hundredth of the data's variance.
    jitter : float
        Added to the diagonal of k(Z, Z) as this multiple of its mean; part of the model. If the
        start has no Cholesky factor, it is raised tenfold up to five times.
    warm_up : int
        Steps of the collapsed fit during which the noise stays at its start, so that it can't
        swallow the signal before latents and lengthscales have found it.
    optimizer : {"scipy", "lbfgs", "adam"}
        SciPy's L-BFGS-B on the host, or L-BFGS or Adam where the data is (collapsed).
    max_iter : int
        Accepted optimiser steps, the warm-up's included (collapsed).
    tol : float
        Converged where no gradient entry is larger than ``tol`` (nats per unit of the unconstrained
        vector), or where the bound no longer rises relative to its size by ``1e-3 tol``.
    n_restarts : int
        Further starts with noise added to the latents; the best end is kept (collapsed).
    batch_size, n_epochs : int
        Rows of a step, and passes over the data (minibatch).
    time_limit : float, optional
        Seconds after which no further evaluation begins; the best state so far is kept.
    callback : callable, optional
        Called after every step with a :class:`gplvm_xp.optim.Progress`; a true answer stops the
        fit, which keeps its best state.
    progress : bool
        Show a progress bar.
    backend : {"auto", "numpy", "cupy", "torch"} or None
        Where to compute; None is where the data is.
    dtype : {"float64", "float32"}
        Working precision.
    random_state : int, RandomState or None
        For inducing inputs, random starts, restarts and batches.

    Attributes
    ----------
    embedding_ : array (n, q)
        μ, the means of the latents, in the data's own library.
    embedding_variance_ : array (n, q)
        S, their variances.
    relevance_ : ndarray (q,)
        Mean squared slope of the reconstruction along each dimension times the variance of the
        latents there, largest 1: how much of the data moves with it.
    n_active_ : int
        Dimensions whose relevance is above 0.01.
    inducing_inputs_ : ndarray (M, q)
    inducing_mean_, inducing_factor_, inducing_groups_ : ndarray (M, D), (r, M, M), (D,)
        The inducing outputs, whitened: u_d = L (mean_d + factor_k ε), L Lᵀ = k(Z, Z) + jitter.
    kernel_ : Kernel
        With the learned values.
    noise_variance_ : float
        σ², in squared units of the (scaled) data; NaN with another likelihood.
    likelihood_ : Likelihood or None
        With the learned values; None is Gaussian noise.
    lower_bound_ : float
        On ln p(data), nats, in the data's own units.
    mean_, scale_ : ndarray (D,)
        Removed from and divided out of each column; with another likelihood the offset of each
        latent function, and ones.
    jitter_ : float
        On the diagonal of k(Z, Z).
    loss_curve_ : ndarray
        Negative bound at the start and after each step (minibatch: its estimates).
    n_iter_ : int
    status_ : str
        How the fit ended: "converged", "max_steps", "stopped", "interrupted", "time_limit",
        "failed", or "finished" for minibatches.
    training_data_ : ndarray (n, D)
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    The prior fixes the scale of the latents, so the lengthscales are free: they are the gauge of
    relevance. Signs and rotations among dimensions of equal lengthscale remain free.

    Cost of a collapsed evaluation: some 10 n M² q operations and n M² exponentials; memory O(M²)
    and O(n q) beside the data. NaN means missing: outputs observed on the same rows
    share M × M factors, so entries missing at random cost D factorisations of order M an
    evaluation. Ctrl-C during a fit keeps the best state and warns.

    References
    ----------
    M. K. Titsias, N. D. Lawrence, Bayesian Gaussian process latent variable model, AISTATS 2010.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from gplvm_xp import BayesianGPLVM
    >>> X = load_iris().data[::5]
    >>> BayesianGPLVM(n_components=3, n_inducing=10, tol=1e-2).fit(X).embedding_.shape
    (30, 3)
    """

    # What a fitted model consists of, for files.
    _saved_arrays: ClassVar[dict[str, SavedArray]] = {
        "embedding_": SavedArray("nq", attribute="_host_embedding"),
        "embedding_variance_": SavedArray("nq", holds="positive", attribute="_host_variance"),
        "relevance_": SavedArray("q", holds="nonnegative"),
        "inducing_inputs_": SavedArray("Mq"),
        "inducing_mean_": SavedArray("MD"),
        "inducing_factor_": SavedArray("rMM"),
        "inducing_groups_": SavedArray("D", dtype="int64"),
        "mean_": SavedArray("D"),
        "scale_": SavedArray("D", holds="positive"),
        "loss_curve_": SavedArray("k", holds="any"),
        "training_data_": SavedArray("nD", holds="missing"),
    }
    _saved_values: ClassVar[dict[str, SavedValue]] = {
        "noise_variance_": SavedValue(float),
        "mean_total_": SavedValue(float),
        "jitter_": SavedValue(float, nonnegative=True),
        "lower_bound_": SavedValue(float),
        "n_active_": SavedValue(int),
        "n_iter_": SavedValue(int),
        "status_": SavedValue(str),
        "n_features_in_": SavedValue(int),
    }
    _saved_objects: ClassVar[dict[str, Any]] = {
        "kernel_": Kernel,
        "likelihood_": Likelihood | None,
    }

    def __init__(
        self,
        n_components: int | None = None,
        *,
        n_inducing: int | None = None,
        kernel: Kernel | None = None,
        likelihood: Likelihood | str | None = None,
        inference: str = "auto",
        exposure: str | None = None,
        init: Any = "pca",
        priors: Mapping[str, Prior] | None = None,
        scale: bool = False,
        noise_variance: float | None = None,
        jitter: float = 1e-6,
        warm_up: int = 50,
        optimizer: str = "scipy",
        max_iter: int = 500,
        tol: float = 1e-4,
        n_restarts: int = 0,
        batch_size: int = 256,
        n_epochs: int = 100,
        time_limit: float | None = None,
        callback: Callable[[Progress], bool | None] | None = None,
        progress: bool = False,
        backend: str | None = None,
        dtype: str = "float64",
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.n_inducing = n_inducing
        self.kernel = kernel
        self.likelihood = likelihood
        self.inference = inference
        self.exposure = exposure
        self.init = init
        self.priors = priors
        self.scale = scale
        self.noise_variance = noise_variance
        self.jitter = jitter
        self.warm_up = warm_up
        self.optimizer = optimizer
        self.max_iter = max_iter
        self.tol = tol
        self.n_restarts = n_restarts
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.time_limit = time_limit
        self.callback = callback
        self.progress = progress
        self.backend = backend
        self.dtype = dtype
        self.random_state = random_state

    # -- fitting ---------------------------------------------------------------------------------

    def fit(self, X: Array, y: Any = None) -> Self:
        """Learn the posterior of the latents, inducing inputs, kernel parameters and noise.

        Parameters
        ----------
        X : array (n, D)
            Data; NaN is missing. A row or a column with nothing observed is an error.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the table, a parameter, the kernel or the likelihood does not fit; the text says
            what and why.
        NotPositiveDefiniteError
            If k(Z, Z) has no Cholesky factor at the start after the jitter schedule.
        NotEnoughMemoryError
            If what an evaluation holds does not fit, before it is allocated.
        """
        Y = table(self, X, reset=True)
        q, M = check_bayesian(self, Y)
        likelihood = chosen_likelihood(self.likelihood)
        rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31))
        exposure, self.mean_total_ = None, float("nan")
        if likelihood is None:
            scaling = Scaling.of(Y, bool(self.scale))
            self.mean_, self.scale_ = scaling.mean, scaling.scale
            view, variance = scaling.forward(Y), None
        else:
            if self.exposure == "total":
                exposure, self.mean_total_ = row_totals(Y)
            likelihood.check(Y, None if exposure is None else exposure[:, None])
            self.mean_, self.scale_ = offsets(likelihood, Y, exposure), np.ones(Y.shape[1])
            view, variance = linear_view(likelihood, Y, exposure), 1.0
        noise = self.noise_variance
        if noise is None and isinstance(self.likelihood, Gaussian):
            noise = self.likelihood.variance
        start = starting(self.kernel, noise, self.init, view, q, M, rng, variance)
        start.kernel.check(q)
        return self._search(X, Y, start, likelihood, rng, state=None)

    def partial_fit(self, X: Array, y: Any = None) -> Self:
        """Go on from the fitted state: ``max_iter`` more steps; rows not seen before join.

        Rows that equal training rows keep their latents; new rows are embedded by
        :meth:`transform` first. The columns' means and scales stay those of the first fit. An
        unfitted model is fitted. A model loaded from a file goes on where it was saved.

        Parameters
        ----------
        X : array (N, D)
            NaN is missing.
        y : ignored

        Returns
        -------
        self
        """
        if not hasattr(self, "training_data_"):
            return self.fit(X)
        Y = self._rows(X)
        new = self._known(Y) < 0
        mu, S = self._host_embedding, self._host_variance
        if new.any():
            fresh, spread, _ = self._placed(Y[new])
            mu, S = np.concatenate([mu, fresh]), np.concatenate([S, np.asarray(spread)])
        start = Start(self.kernel_, self.noise_variance_, mu, S, self.inducing_inputs_)
        rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31))
        joined = np.concatenate([self.training_data_, Y[new]])
        return self._search(X, joined, start, self.likelihood_, rng, state=self._state)

    def fit_transform(self, X: Array, y: Any = None, **fit_params: Any) -> Array:
        """Fit, and return the means of the latents of the rows of X, (n, q)."""
        return self.fit(X, y).embedding_

    def _search(
        self,
        X: Array,
        Y: np.ndarray,
        start: Start,
        likelihood: Likelihood | None,
        rng: np.random.Generator,
        state: Mapping[str, np.ndarray] | None,
    ) -> Self:
        """Search from ``start``; ``state`` is that of an earlier search, None for a first one."""
        b = backends.get(self.backend, X, self.dtype)
        settings = Settings(
            priors=dict(self.priors or {}),
            jitter=self.jitter,
            warm_up=self.warm_up,
            optimizer=self.optimizer,
            max_iter=self.max_iter,
            tol=self.tol,
            time_limit=self.time_limit,
            progress=self.progress,
            callback=self.callback,
        )
        if by_batches(self):
            fitted = None
            if state is not None:
                fitted = self.inducing_mean_, self.inducing_factor_, self.inducing_groups_
            found = search_batches(
                b, Y, start, likelihood, self.mean_, self.scale_, self._exposures(Y),
                batch_size=self.batch_size, n_epochs=self.n_epochs, seed=int(rng.integers(2**31)),
                s=settings, state=state or {}, posterior=fitted,
            )  # fmt: skip
        else:
            found = search(
                b, self._centred(Y), start, self.n_restarts if state is None else 0, rng, settings,
                resumed=state is not None,
            )  # fmt: skip
        self._adopt(found, X, Y)
        say_how_it_ended(self, found)
        return self

    def _exposures(self, Y: np.ndarray) -> np.ndarray | None:
        """Of rows of a table, (N,), or None: all alike."""
        if self.exposure is None or self.likelihood is None:
            return None
        return row_totals(Y, self.mean_total_)[0]

    def _adopt(self, found: FoundBayes, X: Array, Y: np.ndarray) -> None:
        """Take over what a search found."""
        self.kernel_, self.likelihood_ = found.kernel, found.likelihood
        self.noise_variance_, self.jitter_ = found.noise, found.jitter
        self.inducing_inputs_ = found.Z
        self.inducing_mean_, self.inducing_factor_ = found.mean, found.factor
        self.inducing_groups_ = found.which
        self.training_data_ = Y
        self.loss_curve_ = np.asarray(found.curve)
        self.n_iter_, self.status_ = found.steps, found.status
        self._host_embedding, self._host_variance = found.mu, found.S
        self.embedding_, self.embedding_variance_ = to_like(found.mu, X), to_like(found.S, X)
        self._posterior, self._state = None, found.state
        self.lower_bound_ = found.bound - float(np.sum(~np.isnan(Y) * np.log(self.scale_)))
        self.relevance_ = self.relevance() ** 2
        self.n_active_ = int(np.sum(self.relevance_ > ACTIVE))

    def _restored(self) -> None:
        """Refuse parts of a file that don't fit each other."""
        restored_inducing(self)
        self._state = {}


__all__ = ["BayesianGPLVM"]
