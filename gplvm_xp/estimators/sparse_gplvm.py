"""The sparse GPLVM as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from gplvm_xp import backend as backends
from gplvm_xp import init as starts
from gplvm_xp._typing import Array
from gplvm_xp.estimators._bayes import inducing_inputs, mean_square, require_room
from gplvm_xp.estimators._bayes_checks import check_goes_on, restored_inducing
from gplvm_xp.estimators._checks import check_held, latent_prior
from gplvm_xp.estimators._data import Scaling, is_lazy, table, to_like
from gplvm_xp.estimators._fit import (
    ACTIVE,
    Search,
    gauge_blocks,
    generator,
    say_how_it_ended,
)
from gplvm_xp.estimators._fit_sparse import check_sparse, search_sparse
from gplvm_xp.estimators._inducing import FittedInducing
from gplvm_xp.estimators._saved import SavedArray, SavedValue
from gplvm_xp.kernels import RBF, Kernel
from gplvm_xp.optim import Progress
from gplvm_xp.priors import Prior


class SparseGPLVM(FittedInducing):
    """Gaussian process latent variable model with inducing inputs and point estimates of latents.

    The exact model's covariance is replaced by one of rank M plus a diagonal, so that n rows cost
    n M² instead of n³ (Lawrence 2007).

    Parameters
    ----------
    n_components : int
        q, the number of latent dimensions; smaller than the numbers of rows and of columns (both
        columns of a table of two may be kept, with a warning).
    n_inducing : int, optional
        M, at most the number of rows; default 50, or as many as there are rows.
    approximation : {"vfe", "fitc", "dtc"}
        "vfe" maximises a lower bound of the exact likelihood (Titsias 2009), which more inducing
        inputs can only tighten. "fitc" gives every row a noise of its own where the inducing inputs
        say little (Snelson & Ghahramani 2006), and so tends to a noise variance that is too small.
        "dtc" is the bound without its penalty for such rows: the fastest, and overconfident.
    kernel : Kernel, optional
        Structure and starting values; default an RBF of the data's variance and a lengthscale of
        one half: latents of unit prior width then span about eight lengthscales.
    init : {"pca", "ppca", "random", "isomap", "spectral", "kernel_pca"} or array (n, q)
        Starting latents. Inducing inputs start at rows of them, chosen by k-means++.
    latent_prior : {"gaussian", None} or Prior
        Prior of each latent coordinate; "gaussian" is N(0, 1), None is maximum likelihood.
    priors : mapping of str to Prior, optional
        Priors of parameters by name, for example ``{"rbf.variance": Gamma(2, 1), "noise": ...}``;
        a parameter that ``gauge="fixed"`` holds can't have one.
    gauge : {"fixed", "free"}
        "fixed" holds the first parameter of the kernel that trades against the scale of the latents
        (the lengthscales of an RBF) at its starting value; "free" learns both. See
        :class:`gplvm_xp.GPLVM`.
    scale : bool
        Divide each column by its standard deviation (constant columns are left alone).
    noise_variance : float, optional
        Starting noise variance, in squared units of the (scaled) data; default a tenth of its
        variance.
    warm_up : int
        Steps during which the noise stays at its start, so that it can't swallow the signal before
        the latents have found it. The default start, a tenth of the variance, does not need it.
    jitter : float
        Added to the diagonal of k(Z, Z) as this multiple of its mean; part of the model. If the
        start has no Cholesky factor, it is raised tenfold up to six times. In float32 it is at
        least 1e-2, as rounding would rule the bound.
    optimizer : {"scipy", "lbfgs", "adam"}
        SciPy's L-BFGS-B on the host, or L-BFGS or Adam where the data is.
    max_iter : int
        Accepted optimiser steps, the warm-up's included.
    tol : float
        Converged where no gradient entry is larger than ``tol`` (nats per unit of the unconstrained
        vector), or where the objective no longer falls relative to its size by ``1e-3 tol``.
    n_restarts : int
        Further starts from the initial latents with standard normal noise of half their width
        added, and new inducing inputs; the best end is kept.
    time_limit : float, optional
        Seconds after which no further evaluation begins; the best state so far is kept.
    callback : callable, optional
        Called after every accepted step with a :class:`gplvm_xp.optim.Progress`; a true answer
        stops the fit, which keeps its best state.
    progress : bool
        Show a progress bar with the objective and the gradient norm.
    backend : {"auto", "numpy", "cupy", "torch"} or None
        Where to compute; None is where the data is.
    dtype : {"float64", "float32"}
        Working precision. In float32 the gradient is soon lost on real data: a warning says so.
    random_state : int, RandomState or None
        For inducing inputs, random starts and restarts.

    Attributes
    ----------
    embedding_ : array (n, q)
        Latents of the training rows, in the data's own library.
    relevance_ : ndarray (q,)
        Mean squared slope of the reconstruction along each dimension times the variance of the
        latents there, largest 1: what the dimension moves.
    n_active_ : int
        Dimensions whose relevance is above 0.01.
    inducing_inputs_ : ndarray (M, q)
    inducing_mean_, inducing_factor_, inducing_groups_ : ndarray (M, D), (r, M, M), (D,)
        The inducing outputs, whitened: u_d = L (mean_d + factor_k ε), L Lᵀ = k(Z, Z) + jitter.
    kernel_ : Kernel
        With the learned values.
    noise_variance_ : float
        σ², in squared units of the (scaled) data.
    lower_bound_ : float
        The approximate ln p(data | latents), nats, all constants, in the data's own units: a lower
        bound of the exact model's with ``approximation="vfe"`` only.
    mean_, scale_ : ndarray (D,)
        Removed from and divided out of each column.
    jitter_ : float
        On the diagonal of k(Z, Z).
    loss_curve_ : ndarray
        Objective (negative log posterior) at the start and after each accepted step; in the warm-up
        without the prior of the noise.
    n_iter_ : int
    status_ : str
        How the fit ended: "converged", "max_steps", "stopped", "interrupted", "time_limit",
        "failed".
    training_data_ : ndarray (n, D)
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    Cost of an evaluation: O(n M (M + q + D)) operations, memory O(M² + M D + n q) beside the data.
    NaN means missing: outputs observed on the same rows share M × M factors, so entries missing at
    random cost D factorisations of order M and D products of O(n M²) an evaluation. Ctrl-C during a
    fit keeps the best state and warns.

    References
    ----------
    N. D. Lawrence, Learning for larger datasets with the Gaussian process latent variable model,
    AISTATS 2007. M. K. Titsias, Variational learning of inducing variables in sparse Gaussian
    processes, AISTATS 2009. E. Snelson, Z. Ghahramani, Sparse Gaussian processes using
    pseudo-inputs, NIPS 2005. J. Quiñonero-Candela, C. E. Rasmussen, A unifying view of sparse
    approximate Gaussian process regression, JMLR 6 (2005) 1939–1959.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from gplvm_xp import SparseGPLVM
    >>> X = load_iris().data[::5]
    >>> SparseGPLVM(n_inducing=10, tol=0.1, random_state=0).fit_transform(X).shape
    (30, 2)
    """

    # What a fitted model consists of, for files.
    _saved_arrays: ClassVar[dict[str, SavedArray]] = {
        "embedding_": SavedArray("nq", attribute="_host_embedding"),
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
        "noise_variance_": SavedValue(float, nonnegative=True),
        "jitter_": SavedValue(float, nonnegative=True),
        "lower_bound_": SavedValue(float),
        "n_active_": SavedValue(int),
        "n_iter_": SavedValue(int),
        "status_": SavedValue(str),
        "n_features_in_": SavedValue(int),
    }
    _saved_objects: ClassVar[dict[str, type]] = {"kernel_": Kernel}

    # Latents are points, and the noise is Gaussian.
    _host_variance: ClassVar[None] = None
    likelihood_: ClassVar[None] = None

    def __init__(
        self,
        n_components: int = 2,
        *,
        n_inducing: int | None = None,
        approximation: str = "vfe",
        kernel: Kernel | None = None,
        init: Any = "pca",
        latent_prior: str | Prior | None = "gaussian",
        priors: Mapping[str, Prior] | None = None,
        gauge: str = "fixed",
        scale: bool = False,
        noise_variance: float | None = None,
        warm_up: int = 0,
        jitter: float = 1e-6,
        optimizer: str = "scipy",
        max_iter: int = 500,
        tol: float = 1e-4,
        n_restarts: int = 0,
        time_limit: float | None = None,
        callback: Callable[[Progress], bool | None] | None = None,
        progress: bool = False,
        backend: str | None = None,
        dtype: str = "float64",
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.n_inducing = n_inducing
        self.approximation = approximation
        self.kernel = kernel
        self.init = init
        self.latent_prior = latent_prior
        self.priors = priors
        self.gauge = gauge
        self.scale = scale
        self.noise_variance = noise_variance
        self.warm_up = warm_up
        self.jitter = jitter
        self.optimizer = optimizer
        self.max_iter = max_iter
        self.tol = tol
        self.n_restarts = n_restarts
        self.time_limit = time_limit
        self.callback = callback
        self.progress = progress
        self.backend = backend
        self.dtype = dtype
        self.random_state = random_state

    # -- fitting ---------------------------------------------------------------------------------

    def fit(self, X: Array, y: Any = None) -> Self:
        """Learn latents, inducing inputs, kernel parameters and noise.

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
            If the table, a parameter or the kernel does not fit; the text says what and why.
        NotPositiveDefiniteError
            If k(Z, Z) at the start has no Cholesky factor after the jitter schedule.
        NotEnoughMemoryError
            If what an evaluation holds does not fit, before it is allocated.
        """
        Y = table(self, X, reset=True)
        M = check_sparse(self, Y)
        scaling, rng = Scaling.of(Y, bool(self.scale)), generator(self)
        self.mean_, self.scale_ = scaling.mean, scaling.scale
        centred = scaling.forward(Y)
        require_room(backends.get(self.backend, X, self.dtype), centred, self.n_components, M)
        variance = mean_square(centred, self.dtype)
        kernel = RBF(variance, 0.5) if self.kernel is None else self.kernel
        noise = 0.1 * variance if self.noise_variance is None else self.noise_variance
        first = starts.latents(self.init, centred, self.n_components, rng)
        plan = self._plan(kernel, noise, self.jitter)
        start = first, inducing_inputs(first, M, rng)
        return self._search(X, Y, start, plan, rng, self.n_restarts, self.warm_up)

    def partial_fit(self, X: Array, y: Any = None) -> Self:
        """Go on from the fitted state: up to ``max_iter`` more steps; rows not seen before join.

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

        Raises
        ------
        ValueError
            If a row has nothing observed, a parameter does not fit, or ``n_components`` or
            ``n_inducing`` are no longer those of the fit.
        """
        if not hasattr(self, "training_data_"):
            return self.fit(X)
        Y = table(self, X, reset=False)
        check_goes_on(self, Y)
        check_sparse(self, self.training_data_)
        new = self._known(Y) < 0
        latents, joined = self._host_embedding, self.training_data_
        if new.any():
            latents = np.concatenate([latents, self._embed(Y[new])[0]])
            joined = np.concatenate([joined, Y[new]])
        kernel, Z = self.kernel_, self.inducing_inputs_
        share: Any = self.jitter_ / np.mean(kernel.diag(kernel.theta(), Z))
        plan = self._plan(kernel, self.noise_variance_, share)
        return self._search(X, joined, (latents, Z), plan, generator(self), 0, 0)

    def fit_transform(self, X: Array, y: Any = None, **fit_params: Any) -> Array:
        """Fit, and return the latents of the rows of X, (n, q)."""
        return self.fit(X, y).embedding_

    def _plan(self, kernel: Kernel, noise: float, jitter: float) -> Search:
        held = gauge_blocks(kernel, self.n_components) if self.gauge == "fixed" else frozenset()
        check_held(self.priors or {}, held)
        return Search(
            kernel=kernel,
            noise=noise,
            latent_prior=latent_prior(self.latent_prior),
            priors=dict(self.priors or {}),
            held=held,
            jitter=jitter,
            variance=1.0,
            optimizer=self.optimizer,
            max_iter=self.max_iter,
            tol=self.tol,
            time_limit=self.time_limit,
            progress=self.progress,
            callback=self.callback,
        )

    def _search(
        self,
        X: Array,
        Y: np.ndarray,
        start: tuple[np.ndarray, np.ndarray],
        plan: Search,
        rng: np.random.Generator,
        restarts: int,
        warm_up: int,
    ) -> Self:
        """Search from latents and inducing inputs, and take over what is found."""
        like = None if is_lazy(X) else X
        b, centred = backends.get(self.backend, like, self.dtype), self._centred(Y)
        found = search_sparse(b, centred, *start, restarts, rng, plan, self.approximation, warm_up)
        end = found.found
        self.kernel_, self.noise_variance_, self.jitter_ = end.kernel, end.noise, end.jitter
        self.inducing_inputs_, self.inducing_mean_ = found.Z, found.mean
        self.inducing_factor_, self.inducing_groups_ = found.factor, found.which
        self.training_data_ = Y
        self.loss_curve_ = np.asarray(end.result.values)
        self.n_iter_, self.status_ = end.result.steps, end.result.status
        self._host_embedding, self.embedding_ = end.latents, to_like(end.latents, X)
        self._posterior = None
        self.lower_bound_ = found.value - float(np.sum(~np.isnan(Y) * np.log(self.scale_)))
        self.relevance_ = self.relevance() ** 2
        self.n_active_ = int(np.sum(self.relevance_ > ACTIVE))
        say_how_it_ended(self, end, b, centred, depth=4)
        return self

    def _restored(self) -> None:
        """Refuse parts of a file that don't fit each other."""
        restored_inducing(self)


__all__ = ["SparseGPLVM"]
