"""The local GPLVM, for many rows and for rows that keep coming, as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from gplvm_xp import init as starts
from gplvm_xp._typing import Array
from gplvm_xp.estimators._bayes import mean_square
from gplvm_xp.estimators._data import Scaling, table
from gplvm_xp.estimators._fit import generator
from gplvm_xp.estimators._fitted_local import FittedLocal
from gplvm_xp.estimators._local import nearest_rows
from gplvm_xp.estimators._local_checks import check_goes_on, check_local, restored_local
from gplvm_xp.estimators._run_local import adopt, plan_of, run
from gplvm_xp.estimators._saved import SavedArray, SavedValue
from gplvm_xp.kernels import RBF, Kernel
from gplvm_xp.optim import Progress
from gplvm_xp.priors import Prior


class LocalGPLVM(FittedLocal):
    """Gaussian process latent variable model by local likelihoods, with point estimates of latents.

    The Gaussian process of the exact model is looked at through blocks of R rows that are near each
    other in latent space, so that n rows cost n R³ instead of n³, and memory O(n). Two ways:

    "vecchia" maximises the nearest-neighbour likelihood: rows in max-min order, each given its R
    nearest predecessors (Vecchia 1988). It is deterministic, near the exact likelihood, and each
    step goes over all rows.

    "neighbourhood" is the stochastic GPLVM (Yao, Gall, Van Gool & Urtasun 2011): a step draws some
    rows and moves each with its R − 1 nearest by the likelihood of these R rows on their own, with
    momentum. It is fast and takes new rows as they come (:meth:`partial_fit`), but its steps do not
    follow the exact gradient, not even on average: they know nothing of what is far.

    Parameters
    ----------
    n_components : int
        q, the number of latent dimensions; smaller than the numbers of rows and of columns (both
        columns of a table of two may be kept, with a warning). With more than some three or four
        finding neighbours is what takes the time.
    n_neighbors : int, optional
        R, at most the number of rows; default 32, or as many as there are rows. Rows of a block
        ("neighbourhood", the drawn row included), rows that a row is given ("vecchia"), and those
        that a new row is placed by.
    inference : {"vecchia", "neighbourhood"}
        See above.
    kernel : Kernel, optional
        Structure and starting values; default an RBF of the data's variance and a lengthscale of
        one half: latents of unit prior width then span about eight lengthscales.
    init : {"pca", "ppca", "random", "isomap", "spectral", "kernel_pca"} or array (n, q)
        Starting latents.
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
    jitter : float
        Added to each covariance's diagonal as this multiple of the data's variance; part of the
        model. If the start has no Cholesky factor, it is raised tenfold up to six times.
    optimizer : {"scipy", "lbfgs", "adam"}
        SciPy's L-BFGS-B on the host, or L-BFGS or Adam where the data is ("vecchia").
    max_iter : int
        Accepted optimiser steps over all rounds ("vecchia").
    tol : float
        "vecchia" has settled where the latter half of its steps improved the objective by less than
        this part of its size. A round of steps at the same neighbours ends where no gradient entry
        is larger than ``tol``, or where steps gain less than ``1e-3 tol`` of the objective, or
        where latents have moved by half the radius of a neighbourhood.
    n_restarts : int
        Further starts from the initial latents with standard normal noise of half their width
        added; the end of the least objective is kept.
    n_epochs : int
        Passes in which each row is drawn once ("neighbourhood").
    batch_size : int, optional
        Rows that are drawn for a step ("neighbourhood"); default n/R, so that a step's blocks cover
        the table about once, and 1024 at most.
    learning_rate : float
        Of the latents ("neighbourhood"): with ``adaptive`` about the distance that a row moves in a
        step, as a part of the radius of a neighbourhood. It falls to zero along half a cosine over
        a fit.
    kernel_learning_rate : float
        Of the logarithms of kernel parameters and noise ("neighbourhood").
    momentum : float
        What a step keeps of the one before, from 0 to below 1 ("neighbourhood").
    adaptive : bool
        Whether each coordinate's step is divided by the running root mean square of its gradient,
        so that the rates need not be chosen anew for each table (Adam). False is the momentum of
        the paper: rates are then steps for a gradient of one nat per unit, such as 1e-5.
    time_limit : float, optional
        Seconds after which no further evaluation begins; the best state so far is kept.
    callback : callable, optional
        Called with a :class:`gplvm_xp.optim.Progress` after every accepted step ("vecchia") or
        epoch ("neighbourhood"; of more than 131072 rows after every so many); a true answer stops
        the fit, which keeps its best state.
    progress : bool
        Show a progress bar.
    backend : {"auto", "numpy", "cupy", "torch"} or None
        Where to compute; None is where the data is.
    dtype : {"float64", "float32"}
        Working precision.
    random_state : int, RandomState or None
        For draws, random starts and restarts.

    Attributes
    ----------
    embedding_ : array (n, q)
        Latents of the training rows, in the data's own library.
    n_neighbors_ : int
        R.
    kernel_ : Kernel
        With the learned values.
    noise_variance_ : float
        σ², in squared units of the (scaled) data.
    log_likelihood_ : float
        ln p(data | latents) by nearest neighbours, nats, all constants, in the data's own units:
        see :meth:`log_likelihood`. It may be above or below the exact one. NaN after
        :meth:`partial_fit` by neighbourhoods, which does not go over all rows, after Ctrl-C, and
        where neighbourhoods ended before their last epoch: ask :meth:`log_likelihood`.
    mean_, scale_ : ndarray (D,)
        Removed from and divided out of each column.
    jitter_ : float
        What was added to the diagonal beside the noise.
    loss_curve_ : ndarray
        "vecchia": the objective (negative log posterior) at the start of each round and after each
        of its steps. It jumps from one round to the next, as neighbours are found again.
        "neighbourhood": the mean of each epoch over its blocks, as if all rows were as theirs.
    round_starts_ : ndarray of int
        Where in ``loss_curve_`` neighbours were found again. The values there are those by the
        neighbours of the latents themselves, and can be compared with each other.
    n_iter_ : int
        Steps.
    status_ : str
        How the fit ended: "converged" (finding neighbours again changed nothing), "settled" (it no
        longer gained more than ``tol``), "max_steps", "stopped", "interrupted", "time_limit",
        "failed", or by neighbourhoods "finished": all epochs were made, near an optimum or not.
    training_data_ : ndarray (n, D)
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    "vecchia" keeps the end with the best objective by neighbours found there. NaN means missing: an
    output that a row lacks is left out of that row's blocks; outputs observed on the same rows
    share factorisations, so that entries missing at random cost D times as many. Ctrl-C during a
    fit keeps the best state and warns.

    References
    ----------
    A. Yao, J. Gall, L. Van Gool, R. Urtasun, Learning probabilistic non-linear latent variable
    models for tracking complex activities, NIPS 2011. A. V. Vecchia, Estimation and model
    identification for continuous spatial processes, JRSS B 50 (1988) 297–312.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from gplvm_xp import LocalGPLVM
    >>> X = load_iris().data
    >>> model = LocalGPLVM(n_neighbors=10, inference="neighbourhood", n_epochs=5, random_state=0)
    >>> model.fit(X[:100]).partial_fit(X[100:]).embedding_.shape
    (150, 2)
    """

    # What a fitted model consists of, for files.
    _saved_arrays: ClassVar[dict[str, SavedArray]] = {
        "embedding_": SavedArray("nq", attribute="_host_embedding"),
        "mean_": SavedArray("D"),
        "scale_": SavedArray("D", holds="positive"),
        "loss_curve_": SavedArray("k", holds="any"),
        "round_starts_": SavedArray("r", dtype="int64"),
        "training_data_": SavedArray("nD", holds="missing"),
    }
    _saved_values: ClassVar[dict[str, SavedValue]] = {
        "noise_variance_": SavedValue(float, nonnegative=True),
        "jitter_": SavedValue(float, nonnegative=True),
        "log_likelihood_": SavedValue(float),
        "n_neighbors_": SavedValue(int),
        "n_iter_": SavedValue(int),
        "status_": SavedValue(str),
        "n_features_in_": SavedValue(int),
    }
    _saved_objects: ClassVar[dict[str, type]] = {"kernel_": Kernel}

    def __init__(
        self,
        n_components: int = 2,
        *,
        n_neighbors: int | None = None,
        inference: str = "vecchia",
        kernel: Kernel | None = None,
        init: Any = "pca",
        latent_prior: str | Prior | None = "gaussian",
        priors: Mapping[str, Prior] | None = None,
        gauge: str = "fixed",
        scale: bool = False,
        noise_variance: float | None = None,
        jitter: float = 1e-8,
        optimizer: str = "scipy",
        max_iter: int = 1000,
        tol: float = 1e-3,
        n_restarts: int = 0,
        n_epochs: int = 50,
        batch_size: int | None = None,
        learning_rate: float = 0.25,
        kernel_learning_rate: float = 0.02,
        momentum: float = 0.9,
        adaptive: bool = True,
        time_limit: float | None = None,
        callback: Callable[[Progress], bool | None] | None = None,
        progress: bool = False,
        backend: str | None = None,
        dtype: str = "float64",
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.n_neighbors = n_neighbors
        self.inference = inference
        self.kernel = kernel
        self.init = init
        self.latent_prior = latent_prior
        self.priors = priors
        self.gauge = gauge
        self.scale = scale
        self.noise_variance = noise_variance
        self.jitter = jitter
        self.optimizer = optimizer
        self.max_iter = max_iter
        self.tol = tol
        self.n_restarts = n_restarts
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.kernel_learning_rate = kernel_learning_rate
        self.momentum = momentum
        self.adaptive = adaptive
        self.time_limit = time_limit
        self.callback = callback
        self.progress = progress
        self.backend = backend
        self.dtype = dtype
        self.random_state = random_state

    # -- fitting ---------------------------------------------------------------------------------

    def fit(self, X: Array, y: Any = None) -> Self:
        """Learn latents, kernel parameters and noise.

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
            If covariances at the start have no Cholesky factor after the jitter schedule.
        NotEnoughMemoryError
            If what an evaluation holds does not fit, before it is allocated.
        """
        Y = table(self, X, reset=True)
        size, rng = check_local(self, Y), generator(self)
        scaling = Scaling.of(Y, bool(self.scale))
        centred = scaling.forward(Y)
        variance = mean_square(centred, self.dtype)
        kernel = RBF(variance, 0.5) if self.kernel is None else self.kernel
        noise = 0.1 * variance if self.noise_variance is None else self.noise_variance
        first = starts.latents(self.init, centred, self.n_components, rng)
        plan = plan_of(self, kernel, noise, self.jitter * variance, variance)
        self.mean_, self.scale_, self.n_neighbors_ = scaling.mean, scaling.scale, size
        found = run(self, X, Y, first, plan, rng, None)
        adopt(self, found, X, Y, plan, True, depth=3)
        return self

    def partial_fit(self, X: Array, y: Any = None) -> Self:
        """Go on from the fitted state with further rows.

        By neighbourhoods this is the incremental version of Yao et al. (2011): a new row begins at
        the latents of the training row nearest to it in the data, and only new rows are drawn. Rows
        of their blocks move, old ones too; all others stay. ``n_epochs`` passes over the new rows
        cost as many blocks, and besides them what a search for neighbours does, so that a stream of
        rows can be taken in as it comes. Rates are half of a fit's, after a slow beginning.

        With ``inference="vecchia"`` new rows are embedded by :meth:`transform`, and all rows are
        searched for up to ``max_iter`` more steps.

        Rows that equal training rows keep their latents to begin with; where no row is new, those
        given are drawn. The columns' means and scales stay those of the first fit. An unfitted
        model is fitted. A model loaded from a file goes on where it was saved.

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
            If there is no row, a row has nothing observed, a parameter does not fit, or
            ``n_components`` is no longer that of the fit.
        """
        if not hasattr(self, "training_data_"):
            return self.fit(X)
        Y = table(self, X, reset=False)
        check_goes_on(self, Y)
        latents, joined, drawn = self._joined(Y)
        size, variance = check_local(self, joined), mean_square(self._centred(Y), self.dtype)
        plan = plan_of(self, self.kernel_, self.noise_variance_, self.jitter_, variance)
        self.n_neighbors_ = size
        found = run(self, X, joined, latents, plan, generator(self), drawn)
        adopt(self, found, X, joined, plan, False, depth=3)
        return self

    def fit_transform(self, X: Array, y: Any = None, **fit_params: Any) -> Array:
        """Fit, and return the latents of the rows of X, (n, q)."""
        return self.fit(X, y).embedding_

    def _joined(self, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Latents and table with the rows of Y that are new, and which rows are to be drawn."""
        place, Z, joined = self._known(Y), self._host_embedding, self.training_data_
        fresh = Y[place < 0]
        if not fresh.shape[0]:
            return Z, joined, np.unique(place)
        if self.inference == "neighbourhood":
            first = Z[nearest_rows(self._post(), self._centred(fresh), 1)[:, 0]]
        else:
            first = self._embed(fresh)
        drawn = Z.shape[0] + np.arange(fresh.shape[0])
        return np.concatenate([Z, first]), np.concatenate([joined, fresh]), drawn

    def _restored(self) -> None:
        """Refuse parts of a file that don't fit each other."""
        restored_local(self)


__all__ = ["LocalGPLVM"]
