"""The Bayesian GPLVM as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, ClassVar, Self

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.encoders import Encoder
from gplvm_xp.estimators._bayes import FoundBayes
from gplvm_xp.estimators._bayes_checks import (
    chosen_likelihood,
    restored_inducing,
)
from gplvm_xp.estimators._bayes_run import (
    exposures,
    go_on,
    over_shards,
    prepared,
    run,
    run_shards,
)
from gplvm_xp.estimators._data import is_lazy, table, to_like
from gplvm_xp.estimators._endings import say_early_end
from gplvm_xp.estimators._fit import ACTIVE, generator
from gplvm_xp.estimators._inducing import FittedInducing
from gplvm_xp.estimators._saved import SavedArray, SavedValue
from gplvm_xp.kernels import Kernel
from gplvm_xp.likelihoods import Likelihood
from gplvm_xp.optim import Progress
from gplvm_xp.priors import Prior


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
    encoder : {None, "kernel", "mlp"} or Encoder
        q(X) as a function of the data, in place of a mean and a variance for each row: its weights
        are learned, and ``transform`` is one evaluation of it. See :mod:`gplvm_xp.encoders`.
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
        start has no Cholesky factor, it is raised tenfold up to six times (five with an engine or a
        checkpoint). In float32 it is at least 1e-2, as rounding would rule the bound.
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
    batch_size : int
        Rows of a step (minibatch).
    n_epochs : int, optional
        Passes over the data (minibatch). None is as many as make 4000 steps, or 1500 where the
        noise is not Gaussian and a step costs more, and 20 at least. See Notes.
    engine : None, "serial", "dask", "mpi", a distributed.Client or Engine
        Who holds the rows: this process, or workers of which each keeps a part of them (collapsed;
        L-BFGS over the workers whatever ``optimizer`` says). See :mod:`gplvm_xp.engine`. A saved
        model has None for a client or Engine.
    checkpoint : path, optional
        A file that is written every ten steps, for ``fit(X, resume=True)`` (collapsed).
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
        latents there, largest 1: how much of the data moves with it. All 0 where the fit took all
        of the data for noise.
    n_active_ : int
        Dimensions whose relevance is above 0.01.
    inducing_inputs_ : ndarray (M, q)
    inducing_mean_, inducing_factor_, inducing_groups_ : ndarray (M, D), (r, M, M), (D,)
        The inducing outputs, whitened: u_d = L (mean_d + factor_k ε), L Lᵀ = k(Z, Z) + jitter. With
        Gaussian noise outputs observed on the same rows share a factor; with another likelihood
        each has its own, or, with more than 100 outputs, all share one.
    kernel_ : Kernel
        With the learned values.
    noise_variance_ : float
        σ², in squared units of the (scaled) data; NaN with another likelihood.
    encoder_ : Encoder or None
        With the learned weights; it gives (μ, ln S).
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
        "failed", or by minibatches "finished": all passes were made, near an optimum or not.
    training_data_ : ndarray (n, D)
        Without rows where X was a Dask array.
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

    Fewer than some thousand steps by minibatches end far below the optimum, with dimensions still
    on that the data does not need. 4000 take some 20 s on a core with 256 rows a step, 12 columns,
    10 dimensions and 50 inducing inputs. If ``partial_fit`` raises ``lower_bound_``, go on.

    References
    ----------
    M. K. Titsias, N. D. Lawrence, Bayesian Gaussian process latent variable model, AISTATS 2010.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from gplvm_xp import BayesianGPLVM
    >>> X = load_iris().data[::5]
    >>> model = BayesianGPLVM(n_components=3, n_inducing=10, tol=0.1, random_state=0)
    >>> model.fit_transform(X).shape
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
        # Not of as many rows where they stayed with workers.
        "training_data_": SavedArray("tD", holds="missing"),
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
        "encoder_": Encoder | None,
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
        encoder: str | Encoder | None = None,
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
        n_epochs: int | None = None,
        engine: Any = None,
        checkpoint: str | PathLike[str] | None = None,
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
        self.encoder = encoder
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
        self.engine = engine
        self.checkpoint = checkpoint
        self.time_limit = time_limit
        self.callback = callback
        self.progress = progress
        self.backend = backend
        self.dtype = dtype
        self.random_state = random_state

    # -- fitting ---------------------------------------------------------------------------------

    def fit(self, X: Array, y: Any = None, *, resume: bool = False) -> Self:
        """Learn the posterior of the latents, inducing inputs, kernel parameters and noise.

        Parameters
        ----------
        X : array (n, D)
            Data; NaN is missing. A row or a column with nothing observed is an error. A Dask array
            needs ``engine=client``; its rows stay with the workers.
        y : ignored
        resume : bool
            Go on from the file ``checkpoint`` of a fit of the same data with the same parameters,
            if there is one yet: the first is written ten steps after the warm-up.

        Returns
        -------
        self

        Raises
        ------
        WorkerLostError
            If a worker is lost; it names the checkpoint to resume from.
        ValueError
            If the table, a parameter, the kernel or the likelihood does not fit, or ``resume`` is
            true without a ``checkpoint``; the text says what and why.
        NotPositiveDefiniteError
            If k(Z, Z) has no Cholesky factor at the start after the jitter schedule.
        NotEnoughMemoryError
            If what an evaluation holds does not fit, before it is allocated.
        """
        if resume and self.checkpoint is None:
            raise ValueError(
                "resume=True was given and checkpoint is None; give the file of the earlier fit, "
                "checkpoint=path, or call partial_fit to go on from a fitted model"
            )
        rng = generator(self)
        if not over_shards(self, X):
            Y = table(self, X, reset=True)
            start = prepared(self, X, Y, rng)
            found = run(self, X, Y, start, chosen_likelihood(self.likelihood), rng, None)
        else:
            here = None if is_lazy(X) else table(self, X, reset=True)
            found = run_shards(self, X, here, rng, resume)
            # Rows that are elsewhere stay there.
            Y = np.empty((0, found.which.size)) if here is None else here
            self.n_features_in_ = found.which.size
        return self._adopt(found, X, Y)

    def partial_fit(self, X: Array, y: Any = None) -> Self:
        """Go on from the fitted state: more steps; rows not seen before join.

        ``max_iter`` steps, or by minibatches ``n_epochs`` passes at half of a fit's rates, after a
        slow beginning; the state before is kept where its bound is higher. The fitted kernel and
        likelihood go on, not the parameters'. Rows that equal training rows keep their latents; new
        ones are embedded by :meth:`transform` first. The columns' means and scales stay. An
        unfitted model is fitted. A model loaded from a file goes on where it was saved.

        Parameters
        ----------
        X : array (N, D)
            NaN is missing.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            As in :meth:`fit`, or if ``n_components``, ``n_inducing``, the kind of likelihood or
            ``exposure`` are no longer those of the fit.
        """
        if not hasattr(self, "training_data_"):
            return self.fit(X)
        found, joined = go_on(self, X)
        return self._adopt(found, X, joined)

    def fit_transform(self, X: Array, y: Any = None, **fit_params: Any) -> Array:
        """Fit, and return the means of the latents of the rows of X, (n, q)."""
        return self.fit(X, y).embedding_

    def _exposures(self, Y: np.ndarray) -> np.ndarray | None:
        return exposures(self, Y)

    def _adopt(self, found: FoundBayes, X: Array, Y: np.ndarray) -> Self:
        """Take over what a search found."""
        self.kernel_, self.likelihood_ = found.kernel, found.likelihood
        self.encoder_ = found.encoder
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
        say_early_end(self, found, depth=4)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.encoder is None
        return tags

    def _restored(self) -> None:
        """Refuse parts of a file that don't fit each other."""
        restored_inducing(self)
        if self.encoder_ is not None:
            self.encoder_.check(self.mean_.size, 2 * self.embedding_.shape[1])
        self._state = {}


__all__ = ["BayesianGPLVM"]
