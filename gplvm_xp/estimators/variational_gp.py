"""Gaussian process regression, classification and counts by variational inference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.utils.validation import validate_data

from gplvm_xp import backend as backends
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.estimators._data import on_host
from gplvm_xp.estimators._fit_gp import Plan, check_parameters, say_how_it_ended, search
from gplvm_xp.estimators._fitted_gp import FittedGP
from gplvm_xp.estimators._saved import SavedArray, SavedValue
from gplvm_xp.estimators._targets import (
    BINARY,
    Targets,
    chosen,
    host,
    signed,
    started,
    starting_mean,
    targets,
)
from gplvm_xp.kernels import RBF, Kernel
from gplvm_xp.likelihoods import Likelihood
from gplvm_xp.optim import Progress


class VariationalGP(FittedGP):
    """A latent Gaussian process f ~ GP(μ₀, k) seen through a likelihood, y_i ~ p(y | f(x_i)).

    The posterior of f is the Gaussian that minimises the free energy (variational inference, not
    Laplace's approximation); kernel, likelihood and mean are learned by the same criterion, with
    gradients by the envelope theorem. With a Gaussian likelihood it is the exact Gaussian process.
    Inputs are not scaled: give columns of different units to a ``StandardScaler`` first.

    Parameters
    ----------
    kernel : Kernel, optional
        Structure and starting values; default an RBF with one lengthscale, started at the typical
        distance of the inputs.
    likelihood : str or Likelihood
        "gaussian" or "student_t" (regression), "poisson", "negative_binomial" (counts),
        "binomial" (successes among ``exposure`` trials), "probit" or "logit" (two classes), or an
        object of :mod:`gplvm_xp.likelihoods` with its starting values. It decides whether this is
        a classifier or a regressor to scikit-learn.
    fit_mean : bool
        Whether there is a constant μ₀, started where the data's mean is; else it is 0.
    optimize : bool
        Whether hyperparameters are learned; else the starting values are used.
    max_iter : int
        Steps of the search for hyperparameters (L-BFGS-B).
    tol : float
        Converged where no gradient entry is larger: nats per unit of a logarithm, or for μ₀ per
        standard deviation of y (per 1 for counts and labels).
    jitter : float
        Added to the covariance's diagonal, in the model, as a multiple of its mean; at least n
        times the dtype's spacing for a likelihood that is not log-concave, and raised tenfold, up
        to six times, where the start can't be evaluated: ``jitter_`` is what was added.
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
        Working precision. With float32, and a likelihood that is not log-concave, variances below
        1e-3 of the prior's are rough.

    Attributes
    ----------
    kernel_, likelihood_ : Kernel, Likelihood
        With the learned values.
    mean_ : ndarray () or (T,)
        μ₀.
    free_energy_ : ndarray () or (T,)
        Minus the evidence lower bound, nats, at the learned values.
    classes_ : ndarray (2,) or None
        The labels in the order of ``predict_proba``; None of a regressor.
    X_train_, y_train_ : ndarray (n, q), ndarray (n,) or (T, n)
        What the posterior rests on: rows of no weight are left out, labels are 0 and 1.
    weights_, exposure_ : ndarray (n,) or None
    jitter_ : float
    sites_ : ndarray (2, n) or (2, T, n)
        Curvature and slope of each observation's Gaussian factor: with the rest, the posterior.
    loss_curve_ : ndarray
        Free energy at the start and after each accepted step.
    n_iter_ : int
    status_ : str
        How the search ended, as in :class:`gplvm_xp.GPLVM`.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    O(n³) a step of the inner search, some twenty of them for every evaluation of the free energy
    (two with a Gaussian likelihood), and some twenty evaluations; memory of 5 T + 1 n × n matrices
    for T functions.

    Targets that a function fits without noise, constant ones among them, have a likelihood without
    a maximum: the search ends, with a warning, where the learned noise is 1e-5 ("student_t": 1e-3)
    of their standard deviation. Hold it instead: ``Gaussian(1e-4, fixed=("variance",))``.

    References
    ----------
    M. Opper, C. Archambeau, The variational Gaussian approximation revisited, Neural Computation
    21 (2009) 786–792.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.preprocessing import scale
    >>> from gplvm_xp import VariationalGP
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X = scale(X)
    >>> model = VariationalGP(likelihood="probit", max_iter=5, tol=1.0).fit(X[::5], y[::5])
    >>> model.predict_proba(X[1:3]).shape
    (2, 2)
    """

    _saved_arrays: ClassVar[dict[str, SavedArray]] = {
        "X_train_": SavedArray("nq"),
        "y_train_": SavedArray("*n"),
        "weights_": SavedArray("n", holds="nonnegative", optional=True),
        "exposure_": SavedArray("n", holds="nonnegative", optional=True),
        "sites_": SavedArray("*n"),
        "mean_": SavedArray("*"),
        "free_energy_": SavedArray("*"),
        "loss_curve_": SavedArray("k", holds="any"),
        "classes_": SavedArray("c", dtype="label", optional=True),
    }
    _saved_values: ClassVar[dict[str, SavedValue]] = {
        "jitter_": SavedValue(float, nonnegative=True),
        "n_iter_": SavedValue(int),
        "status_": SavedValue(str),
        "n_features_in_": SavedValue(int),
    }
    _saved_objects: ClassVar[dict[str, type]] = {"kernel_": Kernel, "likelihood_": Likelihood}

    def __init__(
        self,
        kernel: Kernel | None = None,
        likelihood: str | Likelihood = "gaussian",
        *,
        fit_mean: bool = True,
        optimize: bool = True,
        max_iter: int = 100,
        tol: float = 1e-4,
        jitter: float = 1e-10,
        time_limit: float | None = None,
        callback: Callable[[Progress], bool | None] | None = None,
        progress: bool = False,
        backend: str | None = None,
        dtype: str = "float64",
    ) -> None:
        self.kernel = kernel
        self.likelihood = likelihood
        self.fit_mean = fit_mean
        self.optimize = optimize
        self.max_iter = max_iter
        self.tol = tol
        self.jitter = jitter
        self.time_limit = time_limit
        self.callback = callback
        self.progress = progress
        self.backend = backend
        self.dtype = dtype

    # -- fitting ---------------------------------------------------------------------------------

    def fit(self, X: Array, y: Array, sample_weight: Any = None, *, exposure: Any = None) -> Self:
        """Learn hyperparameters and the posterior of the latent function.

        Parameters
        ----------
        X : array (n, q)
            Inputs; finite.
        y : array (n,) or (n, T)
            Targets: labels of two classes, counts, or real numbers. With T columns, T independent
            functions with one kernel and one likelihood, computed as a batch (not for classifiers).
        sample_weight : array (n,), optional
            Multiplies each observation's log-likelihood: a whole number stands for so many equal
            rows, 0 leaves the row out.
        exposure : array (n,) or float, optional
            Of counts: the expected count is exposure · exp(f), so that f is the log rate per unit
            of it. Of "binomial": trials.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If something doesn't fit; the text says what was seen and what was expected.
        NotPositiveDefiniteError
            If the free energy at the starting values is not finite with any jitter.
        NotEnoughMemoryError
            If the n × n matrices do not fit, before they are allocated.
        """
        check_parameters(self)
        likelihood = chosen(self.likelihood)
        b = backends.get(self.backend, X, self.dtype)
        binary = isinstance(likelihood, BINARY)
        A, y = validate_data(
            self,
            X if on_host(X) else host(X),
            host(y),
            dtype=np.float64,
            order="C",
            multi_output=not binary,
        )
        t = targets(likelihood, A, y, sample_weight, exposure)
        likelihood = started(self.likelihood, t)
        kernel = _starting_kernel(likelihood, t) if self.kernel is None else self.kernel
        scale = _prior_variance(b, kernel, t)
        plan = Plan(
            kernel=kernel,
            likelihood=likelihood,
            mean=starting_mean(likelihood, t) if self.fit_mean else np.zeros(t.y.shape[:-1]),
            jitter=self.jitter * scale,
            scale=scale,
            fit_mean=self.fit_mean,
            optimize=self.optimize,
            max_iter=self.max_iter,
            tol=self.tol,
            time_limit=self.time_limit,
            callback=self.callback,
            progress=self.progress,
        )
        found = search(b, t, plan)
        self.X_train_, self.y_train_ = t.X, t.y
        self.weights_, self.exposure_, self.classes_ = t.weights, t.exposure, t.classes
        self.kernel_, self.likelihood_, self.mean_ = found.kernel, found.likelihood, found.mean
        self.jitter_ = found.jitter
        self.free_energy_ = np.asarray(found.result.free_energy, dtype=np.float64)
        self.sites_ = np.stack([b.to_host(a).astype(np.float64) for a in found.posterior.sites])
        self.loss_curve_ = np.asarray(found.values, dtype=np.float64)
        self.n_iter_, self.status_ = found.steps, found.status
        self._posterior = found.posterior
        say_how_it_ended(found, self.max_iter)
        return self


def _prior_variance(b: Backend, kernel: Kernel, t: Targets) -> float:
    """The kernel's mean variance at the inputs, 1 where it is 0."""
    with np.errstate(over="ignore", invalid="ignore"):
        diag = kernel.diag(b.asarray(kernel.theta()), b.asarray(t.X))
        found = float(np.mean(b.to_host(diag)))
    if not math.isfinite(found):
        raise ValueError(
            f"the kernel's variance at the inputs is {found}; expected finite numbers: give other "
            "starting values, or scale X"
        )
    return found or 1.0


def _starting_kernel(likelihood: Likelihood, t: Targets) -> Kernel:
    """An RBF whose lengthscale is the root mean square distance of two rows."""
    centre = np.average(t.X, axis=0, weights=t.weights)
    spread = np.sum(np.average((t.X - centre) ** 2, axis=0, weights=t.weights))
    return RBF(t.variance if signed(likelihood) else 1.0, math.sqrt(2.0 * spread) or 1.0)


__all__ = ["VariationalGP"]
