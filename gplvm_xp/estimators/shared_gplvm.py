"""A GPLVM of several tables with the same rows: shared and private latent dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from gplvm_xp import backend as backends
from gplvm_xp._typing import Array
from gplvm_xp.estimators._checks import latent_prior
from gplvm_xp.estimators._data import Scaling, to_like
from gplvm_xp.estimators._fit import generator
from gplvm_xp.estimators._fit_shared import (
    SharedSearch,
    require_room,
    say_how_views_ended,
    search_shared,
)
from gplvm_xp.estimators._fitted_views import FittedViews
from gplvm_xp.estimators._saved import SavedArray, SavedValue
from gplvm_xp.estimators._shared_checks import check_shared, kernels_of, noises_of
from gplvm_xp.estimators._shared_start import first_kernels, latent_dims, shared_latents
from gplvm_xp.estimators._views import column_names, first_array, named, tables
from gplvm_xp.kernels import Kernel
from gplvm_xp.optim import Progress
from gplvm_xp.priors import Prior

# Without private dimensions a view uses those of at least this relevance.
USED = 0.05


class SharedGPLVM(FittedViews):
    """Gaussian process latent variable model of several views, exact, with points as latents.

    Every view is a table about the same rows. One set of latents Z (n, q) lies behind them all,
    and each view has its own kernel and noise; latents, kernels and noises maximise the log
    posterior. Some dimensions are shared, others private to a view. So a view can be predicted
    from another (Shon et al. 2005), and what only one of them knows has a place of its own
    (Ek et al. 2008).

    Parameters
    ----------
    n_shared : int
        Latent dimensions that all views see.
    n_private : int, sequence of int, or None
        Further dimensions that a view has for itself: the same number for all views, or one for
        each. None: every view sees all ``n_shared`` dimensions through lengthscales of its own,
        and these say what is shared (as in Damianou et al. 2012, here with points).
    kernel : Kernel, or sequence of (Kernel or None), optional
        Structure and starting values, for all views or for each; of the dimensions that the view
        sees, the shared ones first. Default: an RBF of the view's variance with a lengthscale for
        each dimension.
    init : {"auto", "pca", "cca", "random"} or array (n, q)
        Starting latents. "pca": principal components of all views, each scaled to the same total
        variance; "cca": directions that the views have in common; private ones are the principal
        components of the rest. "auto": "cca" where there are private dimensions, else "pca".
    latent_prior : {"gaussian", None} or Prior
        Prior of each latent coordinate; "gaussian" is N(0, 1), None is maximum likelihood. As
        ``gauge="fixed"`` sets the latents' widths, it matters for new rows more than for the fit.
    priors : mapping of str to Prior, optional
        Priors of parameters by the view's name and their own: ``{"view0.noise": Gamma(2, 1),
        "view1.rbf.variance": ...}``.
    gauge : {"fixed", "free"}
        Stretching a latent dimension and its lengthscales in all views together changes nothing
        in the likelihood. "fixed" keeps each latent at unit width, so that lengthscales are learned
        and can be compared between views (latents with a common lengthscale in some view have one
        width together). "free" learns the widths too: the objective then has flat directions, or
        with ``latent_prior`` some along which latents shrink without end.
    scale : bool
        Divide each column by its standard deviation. Views need not be of one scale.
    noise_variance : float, or sequence of (float or None), optional
        Starting noise variance, for all views or for each, in squared units of the (scaled) data;
        default half of the view's variance.
    jitter : float
        Added to each covariance's diagonal as this multiple of the view's variance; part of the
        model. If the start has no Cholesky factor, it is raised tenfold up to six times.
    warm_up : int
        Steps at the beginning during which the noises stay at their starts, so that latents find
        what the views have in common before they fit any of them closely.
    optimizer : {"scipy", "lbfgs", "adam"}
        SciPy's L-BFGS-B on the host, or L-BFGS or Adam where the data is.
    max_iter : int
        Accepted optimiser steps.
    tol : float
        Converged where no gradient entry is larger than ``tol`` (nats per unit of the unconstrained
        vector), or where the objective no longer falls relative to its size by ``1e-3 tol``.
    n_restarts : int
        Further starts from the initial latents with standard normal noise of half their width
        added; the best end is kept.
    time_limit : float, optional
        Seconds after which no further evaluation begins; the best state so far is kept.
    callback : callable, optional
        Called after every accepted step with a :class:`gplvm_xp.optim.Progress`; a true answer
        stops the fit, which keeps its best state.
    progress : bool
        Show a progress bar with the objective and the gradient norm.
    backend : {"auto", "numpy", "cupy", "torch"} or None
        Where to compute; None is where the first view is.
    dtype : {"float64", "float32"}
        Working precision. In float32 the gradient is soon lost on real data: a warning says so.
    random_state : int, RandomState or None
        For ``init="random"`` and restarts.

    Attributes
    ----------
    embedding_ : array (n, q)
        Latents of the training rows: the shared dimensions, then the private ones of each view.
    view_names_ : tuple of str
    kernels_ : tuple of Kernel
        With the learned values, one for each view, of all q dimensions.
    noise_variances_, jitters_ : ndarray (V,)
        σ² of each view, and what was added beside it, in squared units of the (scaled) data.
    means_, scales_ : list of ndarray (D_v,)
        Removed from and divided out of each column.
    uses_ : ndarray (V, q) of int
        1 where a view uses a dimension. Where ``n_private`` is None: where its relevance to the
        view is 0.05 or more.
    shared_dims_ : ndarray of int
        Dimensions that two or more views use.
    private_dims_ : list of ndarray of int
        Dimensions that each view uses alone.
    log_likelihood_ : float
        ln p(all views | latents), nats, all constants, in the data's own units.
    loss_curve_ : ndarray
        Objective (negative log posterior) at the start and after each accepted step.
    n_iter_ : int
    status_ : str
        How the fit ended: "converged", "max_steps", "stopped", "interrupted", "time_limit",
        "failed".
    training_data_ : ndarray (n, D)
        The views side by side, NaN for missing.
    n_columns_ : ndarray (V,) of int
        How many columns belong to each view.
    n_features_in_, feature_names_in_
        Of all views together; names where all views have them.

    Notes
    -----
    Cost Σ_v (n³ + O(n² (q + D_v))) operations an evaluation, one n × n matrix of memory; a matrix
    for each view in the fitted model. A row that a view lacks is a row of NaN there and costs
    nothing; entries missing at random cost up to D factorisations an evaluation.

    The likelihood of point latents does not punish a private dimension that repeats a shared one:
    the start matters more than with one table. And with many dimensions points overfit: compare
    starts, numbers of dimensions and of steps by ``score`` or ``predict_view`` on held-out rows.

    References
    ----------
    A. P. Shon, K. Grochow, A. Hertzmann, R. P. N. Rao, Learning shared latent structure for image
    synthesis and robotic imitation, NIPS 2005.

    C. H. Ek, J. Rihan, P. H. S. Torr, G. Rogez, N. D. Lawrence, Ambiguity modeling in latent
    spaces, MLMI 2008.

    A. Damianou, C. H. Ek, M. Titsias, N. D. Lawrence, Manifold relevance determination, ICML 2012.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from gplvm_xp import SharedGPLVM
    >>> X = load_iris().data[::5]
    >>> model = SharedGPLVM(1, tol=1e-2).fit({"sepal": X[:, :2], "petal": X[:, 2:]})
    >>> model.predict_view({"sepal": X[:3, :2]}, "petal").shape
    (3, 2)
    """

    # What a fitted model consists of, for files.
    _saved_arrays: ClassVar[dict[str, SavedArray]] = {
        "embedding_": SavedArray("nq", attribute="_host_embedding"),
        "mean_": SavedArray("D"),
        "scale_": SavedArray("D", holds="positive"),
        "noise_variances_": SavedArray("V", holds="nonnegative"),
        "jitters_": SavedArray("V", holds="nonnegative"),
        "n_columns_": SavedArray("V", dtype="int64", holds="positive"),
        "uses_": SavedArray("Vq", dtype="int64", holds="nonnegative"),
        "loss_curve_": SavedArray("k", holds="any"),
        "training_data_": SavedArray("nD", holds="missing"),
    }
    _saved_values: ClassVar[dict[str, SavedValue]] = {
        "log_likelihood_": SavedValue(float),
        "n_iter_": SavedValue(int),
        "status_": SavedValue(str),
        "n_features_in_": SavedValue(int),
    }
    _saved_objects: ClassVar[dict[str, type]] = {"kernels_": tuple, "view_names_": tuple}

    def __init__(
        self,
        n_shared: int = 2,
        n_private: int | Sequence[int] | None = 0,
        *,
        kernel: Kernel | Sequence[Kernel | None] | None = None,
        init: Any = "auto",
        latent_prior: str | Prior | None = "gaussian",
        priors: Mapping[str, Prior] | None = None,
        gauge: str = "fixed",
        scale: bool = False,
        noise_variance: float | Sequence[float | None] | None = None,
        jitter: float = 1e-8,
        warm_up: int = 50,
        optimizer: str = "scipy",
        max_iter: int = 500,
        tol: float = 1e-5,
        n_restarts: int = 0,
        time_limit: float | None = None,
        callback: Callable[[Progress], bool | None] | None = None,
        progress: bool = False,
        backend: str | None = None,
        dtype: str = "float64",
        random_state: Any = None,
    ) -> None:
        self.n_shared = n_shared
        self.n_private = n_private
        self.kernel = kernel
        self.init = init
        self.latent_prior = latent_prior
        self.priors = priors
        self.gauge = gauge
        self.scale = scale
        self.noise_variance = noise_variance
        self.jitter = jitter
        self.warm_up = warm_up
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

    def fit(self, views: Any, y: Any = None) -> Self:
        """Learn latents, and kernel parameters and noise of every view.

        Parameters
        ----------
        views : sequence of arrays (n, D_v), or mapping of str to array
            Two or more tables with the same rows in the same order; those of a sequence are named
            view0, view1, … NaN is missing. A row may be missing in some views, not in all.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If the tables, a parameter or a kernel do not fit; the text says what and why.
        NotPositiveDefiniteError
            If a starting covariance has no Cholesky factor after the jitter schedule.
        NotEnoughMemoryError
            If the n × n matrices of the search or of predictions do not fit, before anything is
            allocated or searched.
        """
        by_name = named(views)
        like = first_array(by_name)
        b = backends.get(self.backend, like, self.dtype)
        raw = tables(by_name, reset=True)
        self.view_names_ = tuple(by_name)
        private = check_shared(self, raw)
        scalings = [Scaling.of(Y, bool(self.scale)) for Y in raw]
        centred = [scaling.forward(Y) for scaling, Y in zip(scalings, raw, strict=True)]
        variances = [float(np.nanmean(Y**2)) for Y in centred]
        kernels = kernels_of(self.kernel, len(raw))
        noises = noises_of(self.noise_variance, variances)
        dims = latent_dims(self.n_shared, private)
        rng = generator(self)
        first = shared_latents(self.init, centred, self.n_shared, private, rng)
        structure, sets = first_kernels(kernels, variances, dims, first, self.gauge)
        require_room(b, centred)
        plan = SharedSearch(
            names=self.view_names_,
            kernels=tuple(structure),
            noises=tuple(noises),
            variances=tuple(variances),
            sets=sets,
            latent_prior=latent_prior(self.latent_prior),
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
        found = search_shared(b, centred, first, self.n_restarts, rng, plan)
        self.kernels_ = found.state.kernels
        self.noise_variances_ = np.asarray(found.state.noises)
        self.jitters_ = found.state.jitter * np.asarray(variances)
        self.mean_ = np.concatenate([scaling.mean for scaling in scalings])
        self.scale_ = np.concatenate([scaling.scale for scaling in scalings])
        self.n_columns_ = np.array([Y.shape[1] for Y in raw])
        self.n_features_in_ = self.mean_.size
        self.training_data_ = np.hstack(raw)
        self._name_columns(column_names(by_name))
        self.loss_curve_ = np.asarray(found.result.values)
        self.n_iter_ = found.result.steps
        self.status_ = found.result.status
        self._host_embedding = found.state.latents
        self.embedding_ = to_like(self._host_embedding, like)
        self._posteriors = self._condition(b)
        likelihood = sum(b.to_host(p.log_likelihood()).item() for p in self._posteriors)
        Y = self.training_data_
        self.log_likelihood_ = likelihood - float(np.sum(~np.isnan(Y) * np.log(self.scale_)))
        self.uses_ = np.zeros((len(raw), first.shape[1]), dtype=np.int64)
        if self.n_private is None:
            self.uses_[self.relevance() >= USED] = 1
        else:
            for v, seen in enumerate(dims):
                self.uses_[v, list(seen)] = 1
        say_how_views_ended(self, found, b, centred)
        return self

    def fit_transform(self, views: Any, y: Any = None) -> Array:
        """Fit, and return the latents of the rows, (n, q)."""
        return self.fit(views, y).embedding_

    def _name_columns(self, names: np.ndarray | None) -> None:
        if names is not None:
            self.feature_names_in_ = names
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _restored(self) -> None:
        """Refuse parts of a file that don't fit each other."""
        D, (V, q) = self.mean_.size, self.uses_.shape
        if self.n_features_in_ != D or self.n_columns_.sum() != D:
            raise ValueError(
                f"n_features_in_ is {self.n_features_in_} and n_columns_ is "
                f"{self.n_columns_}; expected {D} columns, those of its training_data_"
            )
        for what, kind, parts in (
            ("kernels_", Kernel, self.kernels_),
            ("view_names_", str, self.view_names_),
        ):
            if len(parts) != V or not all(isinstance(part, kind) for part in parts):
                raise ValueError(f"{what} is {parts!r}; expected {V}, one for each view")
        for name, kernel in zip(self.view_names_, self.kernels_, strict=True):
            try:
                kernel.check(q)
            except ValueError as error:
                raise ValueError(
                    f"the kernel of {name!r} does not fit the {q} latent dimensions of its "
                    f"embedding_: {error}"
                ) from error


__all__ = ["SharedGPLVM"]
