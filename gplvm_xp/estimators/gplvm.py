"""The exact GPLVM as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np

from gplvm_xp import backend as backends
from gplvm_xp._typing import Array
from gplvm_xp.encoders import Encoder, encoder_of
from gplvm_xp.estimators._auto import plan_fit
from gplvm_xp.estimators._checks import OPTIMIZERS, belief, check_held, check_parameters
from gplvm_xp.estimators._chosen import Chosen
from gplvm_xp.estimators._coarse import fine, levels
from gplvm_xp.estimators._data import Scaling, table, to_like
from gplvm_xp.estimators._facts import row_facts, starting_latents
from gplvm_xp.estimators._fit import (
    Search,
    gauge_blocks,
    generator,
    say_how_it_ended,
)
from gplvm_xp.estimators._newton import NEWTON
from gplvm_xp.estimators._saved import SavedArray, SavedValue
from gplvm_xp.kernels import RBF, Kernel
from gplvm_xp.latents import Points, StructuredPrior
from gplvm_xp.optim import Certificate, Progress
from gplvm_xp.predict import Posterior
from gplvm_xp.priors import Prior


class GPLVM(Chosen):
    """Gaussian process latent variable model, exact, with point estimates of the latents.

    Every column of the centred data is a draw of one Gaussian process over the latents Z (n, q);
    latents, kernel parameters and noise maximise the log posterior (Lawrence 2005).

    Parameters
    ----------
    n_components : int
        q, the number of latent dimensions; smaller than the numbers of rows and of columns (both
        columns of a table of two may be kept, with a warning).
    method : {"exact", "auto"}
        "auto" measures this machine, predicts the seconds and bytes of an exact, a local, a sparse
        and a Bayesian fit, prints them to the standard error stream, and fits the one that is
        nearest to the exact model within ``time_limit`` (default ten minutes) and the free memory:
        ``plan_``. If that is another model, it is kept in ``model_`` and answers for this one.
    kernel : Kernel, optional
        Structure and starting values; default an RBF of the data's variance and a lengthscale of
        one half: latents of unit prior width then span about eight lengthscales.
    init : {"pca", "ppca", "random", "isomap", "spectral", "kernel_pca"} or array (n, q)
        Starting latents. "pca" is the covariance PCA (columns centred, not rescaled).
    latent_prior : {"gaussian", None}, Prior or StructuredPrior
        Prior of each latent coordinate; "gaussian" is N(0, 1), None is maximum likelihood. One of
        :mod:`gplvm_xp.row_priors` ties the rows together: dynamics, time stamps, labels.
    back_constraint : {None, "kernel", "mlp"} or Encoder
        Latents as a smooth function of the data, whose weights are learned in their place: near
        rows stay near, and ``transform`` is one evaluation of it.
    priors : mapping of str to Prior, optional
        Priors of parameters by name, for example ``{"rbf.variance": Gamma(2, 1), "noise": ...}``;
        a parameter that ``gauge="fixed"`` holds can't have one.
    gauge : {"fixed", "free"}
        Stretching the latents and the lengthscales together changes nothing in the likelihood.
        "fixed" holds the first such parameter of the kernel (the lengthscales of an RBF) at its
        starting value, so that the widths of the latents carry the relevance of each dimension;
        "free" learns both, and the objective then has a flat direction, or with ``latent_prior``
        one along which it creeps to ever smaller latents.
    scale : bool
        Divide each column by its standard deviation (constant columns are left alone).
    noise_variance : float, optional
        Starting noise variance, in squared units of the (scaled) data; default a tenth of its
        variance.
    jitter : float
        Added to the covariance's diagonal as this multiple of the data's variance; part of the
        model. If the start has no Cholesky factor, it is raised tenfold up to six times.
    optimizer : {"scipy", "lbfgs", "adam", "newton", "lbfgs+newton"}
        SciPy's L-BFGS-B on the host, or L-BFGS or Adam where the data is. "newton" uses exact
        second derivatives: it ends at a minimum to the last digits, with a certificate, and often
        at a better one; a step costs some thirty evaluations and 24 (n q)² bytes. "lbfgs+newton"
        begins with L-BFGS.
    max_iter : int
        Accepted optimiser steps; of "newton" all steps tried.
    tol : float
        Converged where no gradient entry is larger than ``tol`` (nats per unit of the unconstrained
        vector), or where the objective no longer falls relative to its size by ``1e-3 tol``.
    n_restarts : int
        Further starts from the initial latents with standard normal noise of half their width
        added; the best end is kept.
    coarse_to_fine : bool or sequence of int
        Fit an eighth, a quarter and a half of the rows first (or so many rows), each the start of
        the next: several times faster from some thousand rows on, and more often a good optimum.
        ``loss_curve_`` and ``n_iter_`` are of all rows.
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
        For ``init="random"``, spectral starts and restarts.

    Attributes
    ----------
    embedding_ : array (n, q)
        Latents of the training rows, in the data's own library.
    kernel_ : Kernel
        With the learned values.
    noise_variance_ : float
        σ², in squared units of the (scaled) data.
    plan_ : Plan or None
        With ``method="auto"``: what was predicted and chosen.
    model_ : estimator or None
        The model that was chosen, if it is not the exact one.
    latent_prior_ : StructuredPrior or None
        With the learned values, where ``latent_prior`` ties rows together.
    sequences_, times_ : ndarray (s,), (n,) or None
        The lengths and time stamps that ``fit`` was given.
    encoder_ : Encoder or None
        With the learned weights, where there is a back-constraint.
    mean_, scale_ : ndarray (D,)
        Removed from and divided out of each column.
    jitter_ : float
        What was added to the diagonal beside the noise.
    log_likelihood_ : float
        ln p(data | latents), nats, all constants, in the data's own units; of a chosen model what
        it has in its place, which may be a lower bound.
    certificate_ : Certificate or None
        What "newton" has shown of the end: see :class:`gplvm_xp.optim.Certificate`.
    loss_curve_ : ndarray
        Objective (negative log posterior) at the start and after each accepted step.
    n_iter_ : int
    status_ : str
        How the fit ended: "converged", "max_steps", "stopped", "interrupted", "time_limit",
        "failed".
    training_data_ : ndarray (n, D)
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    Cost n³ + O(n² (q + D)) operations an evaluation, and for complete data one n × n matrix of
    memory. NaN means missing: outputs observed on the same rows share a factorisation, so entries
    missing at random cost up to D factorisations an evaluation, and predictions as many matrices.
    Ctrl-C during a fit keeps the best state and warns.

    References
    ----------
    N. D. Lawrence, Probabilistic non-linear principal component analysis with Gaussian process
    latent variable models, JMLR 6 (2005) 1783–1816.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from gplvm_xp import GPLVM
    >>> X = load_iris().data[::5]
    >>> GPLVM(n_components=2, tol=1e-2).fit_transform(X).shape
    (30, 2)
    """

    # What a fitted model consists of, for files.
    _saved_arrays: ClassVar[dict[str, SavedArray]] = {
        "embedding_": SavedArray("nq", attribute="_host_embedding"),
        "mean_": SavedArray("D"),
        "scale_": SavedArray("D", holds="positive"),
        "loss_curve_": SavedArray("k", holds="any"),
        "training_data_": SavedArray("nD", holds="missing"),
        "sequences_": SavedArray("s", dtype="int64", holds="positive", optional=True),
        "times_": SavedArray("n", optional=True),
    }
    _saved_values: ClassVar[dict[str, SavedValue]] = {
        "noise_variance_": SavedValue(float, nonnegative=True),
        "jitter_": SavedValue(float, nonnegative=True),
        "log_likelihood_": SavedValue(float),
        "n_iter_": SavedValue(int),
        "status_": SavedValue(str),
        "n_features_in_": SavedValue(int),
    }
    _saved_objects: ClassVar[dict[str, Any]] = {
        "kernel_": Kernel,
        "encoder_": Encoder | None,
        "latent_prior_": StructuredPrior | None,
        "certificate_": Certificate | None,
    }

    def __init__(
        self,
        n_components: int = 2,
        *,
        method: str = "exact",
        kernel: Kernel | None = None,
        init: Any = "pca",
        latent_prior: str | Prior | StructuredPrior | None = "gaussian",
        back_constraint: str | Encoder | None = None,
        priors: Mapping[str, Prior] | None = None,
        gauge: str = "fixed",
        scale: bool = False,
        noise_variance: float | None = None,
        jitter: float = 1e-8,
        optimizer: str = "scipy",
        max_iter: int = 500,
        tol: float = 1e-5,
        n_restarts: int = 0,
        coarse_to_fine: bool | Sequence[int] = False,
        time_limit: float | None = None,
        callback: Callable[[Progress], bool | None] | None = None,
        progress: bool = False,
        backend: str | None = None,
        dtype: str = "float64",
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.method = method
        self.kernel = kernel
        self.init = init
        self.latent_prior = latent_prior
        self.back_constraint = back_constraint
        self.priors = priors
        self.gauge = gauge
        self.scale = scale
        self.noise_variance = noise_variance
        self.jitter = jitter
        self.optimizer = optimizer
        self.max_iter = max_iter
        self.tol = tol
        self.n_restarts = n_restarts
        self.coarse_to_fine = coarse_to_fine
        self.time_limit = time_limit
        self.callback = callback
        self.progress = progress
        self.backend = backend
        self.dtype = dtype
        self.random_state = random_state

    # -- fitting ---------------------------------------------------------------------------------

    def fit(self, X: Array, y: Any = None, *, sequences: Any = None, times: Any = None) -> Self:
        """Learn latents, kernel parameters and noise.

        Parameters
        ----------
        X : array (n, D)
            Data; NaN is missing. A column with nothing observed is an error, and so is a row,
            unless the latent prior places it.
        y : array (n,), optional
            Labels, for a latent prior that uses them; ignored by others.
        sequences : sequence of int, optional
            Lengths of the sequences that the rows form, in their order, for latent priors over
            time; default one sequence.
        times : array (n,), optional
            Time stamps, increasing within each sequence, for ``OverTime``.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the table, a parameter or the kernel does not fit; the text says what and why.
        NotPositiveDefiniteError
            If the starting covariance has no Cholesky factor after the jitter schedule.
        NotEnoughMemoryError
            If the n × n matrix, or with missing entries those that predictions need, does not
            fit, before anything is allocated or searched.
        """
        b = backends.get(self.backend, X, self.dtype)
        prior = belief(self.latent_prior)
        structured = prior if isinstance(prior, StructuredPrior) else None
        Y = table(self, X, reset=True, empty_rows=structured is not None and structured.fills_rows)
        check_parameters(self, Y, (*OPTIMIZERS, *NEWTON), belief)
        rows = row_facts(structured, Y, y, sequences, times)
        scaling = Scaling.of(Y, bool(self.scale))
        centred = scaling.forward(Y)
        variance = float(np.nanmean(centred**2))
        encoder = encoder_of(self.back_constraint)
        tied = "a back-constraint or a prior of rows" if encoder or structured else ""
        parts = levels(self.coarse_to_fine, Y.shape[0], tied)
        choice = None
        if self.method == "auto":
            choice = plan_fit(self, b, centred, parts, tied)
            if choice.method != "exact":
                self._adopt(choice, X)
                return self
        encoder = encoder and encoder.settled(centred)
        kernel = RBF(variance, 0.5) if self.kernel is None else self.kernel
        rng = generator(self)
        first = starting_latents(b, self.init, centred, self.n_components, rng, structured, rows)
        held = gauge_blocks(kernel, self.n_components) if self.gauge == "fixed" else frozenset()
        check_held(self.priors or {}, held)
        if np.isnan(centred).any():
            Posterior.require_memory(b, centred)
        plan = Search(
            kernel=kernel,
            noise=0.1 * variance if self.noise_variance is None else self.noise_variance,
            latent_prior=None if isinstance(prior, StructuredPrior) else prior,
            priors=dict(self.priors or {}),
            held=held,
            jitter=self.jitter * variance,
            variance=variance,
            optimizer=self.optimizer,
            max_iter=self.max_iter,
            tol=self.tol,
            time_limit=self.time_limit,
            progress=self.progress,
            callback=self.callback,
            place=Points if encoder is None else partial(encoder.bind, b, centred),
            bind=None if structured is None else partial(structured.bind, b, rows),
        )
        found = fine(b, centred, first, self.n_restarts, rng, plan, parts)
        self.plan_, self.model_ = choice, None
        self.kernel_, self.noise_variance_, self.jitter_ = found.kernel, found.noise, found.jitter
        self.latent_prior_ = structured and structured.with_values(found.values)
        self.sequences_, self.times_ = rows.sequences, rows.times
        self.encoder_ = encoder and encoder.with_values(found.values)
        self.mean_, self.scale_ = scaling.mean, scaling.scale
        self.training_data_ = Y
        self.loss_curve_ = np.asarray(found.result.values)
        self.n_iter_ = found.result.steps
        self.status_, self.certificate_ = found.result.status, found.result.certificate
        self._host_embedding = found.latents
        self.embedding_ = to_like(found.latents, X)
        self._posterior = self._condition(b)
        likelihood = b.to_host(self._posterior.log_likelihood()).astype(np.float64).item()
        self.log_likelihood_ = likelihood - float(np.sum(~np.isnan(Y) * np.log(self.scale_)))
        say_how_it_ended(self, found, b, centred)
        return self

    def fit_transform(self, X: Array, y: Any = None, **fit_params: Any) -> Array:
        """Fit, and return the latents of the rows of X, (n, q)."""
        return self.fit(X, y, **fit_params).embedding_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.back_constraint is None
        return tags

    def _restored(self) -> None:
        """Refuse parts of a file that don't fit each other."""
        self.plan_ = self.model_ = None
        D, q = self.mean_.size, self.embedding_.shape[1]
        if self.n_features_in_ != D:
            raise ValueError(
                f"n_features_in_ is {self.n_features_in_}; expected {D}, the columns of its "
                "training_data_"
            )
        try:
            self.kernel_.check(q)
        except ValueError as error:
            raise ValueError(
                f"its kernel does not fit the {q} latent dimensions of its embedding_: {error}"
            ) from error
        if self.encoder_ is not None:
            self.encoder_.check(D, q)
        self._check_sequences()


__all__ = ["GPLVM"]
