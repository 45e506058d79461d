"""The exact GPLVM as a scikit-learn transformer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from gplvm_xp import backend as backends
from gplvm_xp import init as starts
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.errors import NotPositiveDefiniteError, PrecisionWarning
from gplvm_xp.estimators._data import Scaling, table, to_like
from gplvm_xp.kernels import RBF, Kernel
from gplvm_xp.objectives import ExactObjective, groups_of
from gplvm_xp.optim import OptResult, Progress, minimise
from gplvm_xp.predict import NewRows, Posterior
from gplvm_xp.priors import Gaussian, Prior

# Multiples of the data's variance tried in turn when the start has no Cholesky factor.
JITTER_GROWTH, JITTER_TRIES = 10.0, 6


class GPLVM(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Gaussian process latent variable model, exact, with point estimates of the latents.

    Every column of the centred data is a draw of one Gaussian process over the latents Z (n, q);
    latents, kernel parameters and noise maximise the log posterior (Lawrence 2005).

    Parameters
    ----------
    n_components : int
        q, the number of latent dimensions; smaller than the numbers of rows and of columns (both
        columns of a table of two may be kept, with a warning).
    kernel : Kernel, optional
        Structure and starting values; default an RBF of the data's variance and a lengthscale of
        one half: latents of unit prior width then span about eight lengthscales.
    init : {"pca", "ppca", "random", "isomap", "spectral", "kernel_pca"} or array (n, q)
        Starting latents. "pca" is the covariance PCA (columns centred, not rescaled).
    latent_prior : {"gaussian", None} or Prior
        Prior of each latent coordinate; "gaussian" is N(0, 1), None is maximum likelihood.
    priors : mapping of str to Prior, optional
        Priors of parameters by name, for example ``{"rbf.variance": Gamma(2, 1), "noise": ...}``.
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
    mean_, scale_ : ndarray (D,)
        Removed from and divided out of each column.
    jitter_ : float
        What was added to the diagonal beside the noise.
    log_likelihood_ : float
        ln p(data | latents), nats, all constants, in the data's own units.
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
    Cost n³ + O(n² (q + D)) operations an evaluation, one n × n matrix of memory. NaN means missing:
    outputs observed on the same rows share a factorisation, so entries missing at random cost up to
    D factorisations an evaluation. Ctrl-C during a fit keeps the best state and warns.

    References
    ----------
    N. D. Lawrence, Probabilistic non-linear principal component analysis with Gaussian process
    latent variable models, JMLR 6 (2005) 1783–1816.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from gplvm_xp import GPLVM
    >>> X = load_iris().data[::5]
    >>> GPLVM(n_components=2, max_iter=50).fit_transform(X).shape
    (30, 2)
    """

    # What a fitted model consists of, for files: arrays, and numbers or strings.
    _saved_arrays = ("embedding_", "mean_", "scale_", "loss_curve_", "training_data_")
    _saved_values = (
        "noise_variance_",
        "jitter_",
        "log_likelihood_",
        "n_iter_",
        "status_",
        "n_features_in_",
    )

    def __init__(
        self,
        n_components: int = 2,
        *,
        kernel: Kernel | None = None,
        init: Any = "pca",
        latent_prior: str | Prior | None = "gaussian",
        priors: Mapping[str, Prior] | None = None,
        gauge: str = "fixed",
        scale: bool = False,
        noise_variance: float | None = None,
        jitter: float = 1e-8,
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
        self.n_components = n_components
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
            If the starting covariance has no Cholesky factor after the jitter schedule.
        NotEnoughMemoryError
            If the n × n matrix does not fit, before it is allocated.
        """
        b = backends.get(self.backend, X, self.dtype)
        Y = table(self, X, reset=True)
        self._check_parameters(Y)
        scaling = Scaling.of(Y, bool(self.scale))
        centred = scaling.forward(Y)
        rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31))
        first = starts.latents(self.init, centred, self.n_components, rng)
        objective, result = self._minimise(b, centred, first, rng)
        theta, noise, Z = objective.values(result.x)
        latents = np.array(b.to_host(Z), dtype=np.float64)
        learned = objective.kernel.with_theta(b.to_host(theta).astype(np.float64))
        self.kernel_ = learned
        self.noise_variance_ = b.to_host(noise).astype(np.float64).item()
        self.jitter_ = objective.jitter
        self.mean_, self.scale_ = scaling.mean, scaling.scale
        self.training_data_ = Y
        self.loss_curve_ = np.asarray(result.values)
        self.n_iter_ = result.steps
        self.status_ = result.status
        self._host_embedding = latents
        self.embedding_ = to_like(latents, X)
        del objective
        self._posterior = self._condition(b)
        likelihood = b.to_host(self._posterior.log_likelihood()).astype(np.float64).item()
        self.log_likelihood_ = likelihood - float(np.sum(~np.isnan(Y) * np.log(self.scale_)))
        self._say_how_it_ended(result, b)
        return self

    def fit_transform(self, X: Array, y: Any = None, **fit_params: Any) -> Array:
        """Fit, and return the latents of the rows of X, (n, q)."""
        return self.fit(X, y).embedding_

    # -- using it --------------------------------------------------------------------------------

    def transform(self, X: Array, return_cov: bool = False) -> Any:
        """Latents of new rows: the mode of p(z | row, training data), all rows at once.

        Each row is solved on its own with the true predictive density (mean and variance move with
        z) and the latent prior, from the best of the nearest training rows. A row that equals a
        training row gets that row's fitted latents.

        Parameters
        ----------
        X : array (N, D)
            NaN is missing; a row with nothing observed gets the prior's mode.
        return_cov : bool
            Also return the Laplace covariance of the latents, (N, q, q).

        Returns
        -------
        Z : array (N, q), or (Z, covariance)

        Raises
        ------
        ValueError
            If X has other columns than the training data.
        """
        check_is_fitted(self)
        Y = table(self, X, reset=False)
        Z, _, rows = self._solve(Y, pin=True)
        latents = to_like(Z, X)
        if not return_cov:
            return latents
        covariance = np.empty((Z.shape[0], Z.shape[1], Z.shape[1]))
        for part, problem, b in rows:
            covariance[part] = b.to_host(problem.laplace(b.asarray(Z[part]))[0])
        return latents, to_like(covariance, X)

    def predict(self, X: Array, return_var: bool = False, noise: bool = True) -> Any:
        """Mean (and variance) of the data at latents, or the reconstruction of data rows.

        Parameters
        ----------
        X : array (N, q) or (N, D)
            Latents; or data rows, which are embedded first: missing entries come out filled.
        return_var : bool
            Also return the variance of each entry, (N, D).
        noise : bool
            Whether the variance holds the noise (that of a new observation) or not (that of the
            function).

        Returns
        -------
        mean : array (N, D), or (mean, variance)
            In the data's own units.

        Raises
        ------
        ValueError
            If X has neither q nor D columns, or latents are not finite.
        """
        check_is_fitted(self)
        latents = self._latents(X)
        p = self._post()
        b = p.backend
        mean = np.empty((latents.shape[0], self.mean_.size))
        variance = np.empty_like(mean)
        for part in p.batches(latents.shape[0]):
            m, v = p.moments(b.asarray(latents[part]))
            mean[part], variance[part] = b.to_host(m), b.to_host(v)
        mean = mean * self.scale_ + self.mean_
        if not return_var:
            return to_like(mean, X)
        variance = (variance + (self.noise_variance_ if noise else 0.0)) * self.scale_**2
        return to_like(mean, X), to_like(variance, X)

    def inverse_transform(self, X: Array, return_var: bool = False) -> Any:
        """Mean (and variance, noise included) of the data at latents X (N, q), as ``predict``."""
        return self.predict(X, return_var=return_var)

    def score_samples(self, X: Array) -> Array:
        """ln p(row | training data) of each row, nats, in the data's own units, (N,).

        The latents are integrated out by Laplace's method at their mode ẑ:
        ln p(y | ẑ) + ln p(ẑ) + ½ q ln 2π − ½ ln|H|. Without a latent prior there is no such
        integral, and ln p(y | ẑ) is returned. Rows of the training data are treated as new ones.
        """
        check_is_fitted(self)
        Y = table(self, X, reset=False)
        Z, f, rows = self._solve(Y, pin=False)
        density = -f
        if self._prior() is not None:
            for part, problem, b in rows:
                half = b.to_host(problem.laplace(b.asarray(Z[part]))[1])
                density[part] += 0.5 * (Z.shape[1] * math.log(2.0 * math.pi) - half)
        density -= np.sum(~np.isnan(Y) * np.log(self.scale_), axis=1)
        return to_like(density, X)

    def score(self, X: Array, y: Any = None) -> float:
        """Mean of :meth:`score_samples`: the held-out log-likelihood of a row, nats."""
        values = self.score_samples(X)
        return float(np.mean(backends.of(values).to_host(values)))

    def leave_one_out(self) -> np.ndarray:
        """ln p(entry | all other rows of its column) of every training entry, (n, D), nats.

        Exact at the fitted latents and parameters, from the diagonal of the inverse (Rasmussen &
        Williams 2006, section 5.4.2); NaN where missing.
        """
        check_is_fitted(self)
        mean, variance = self._post().leave_one_out()
        Y = (self.training_data_ - self.mean_) / self.scale_
        z = (Y - mean) ** 2 / variance
        return np.asarray(-0.5 * (z + np.log(2.0 * np.pi * variance)) - np.log(self.scale_))

    def sample(
        self, n_samples: int = 1, random_state: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw latents from their prior and rows from the model at them.

        Returns
        -------
        rows : ndarray (n_samples, D)
            Independent draws of each entry, noise included.
        latents : ndarray (n_samples, q)

        Raises
        ------
        ValueError
            If the model has no Gaussian latent prior to draw from.
        """
        check_is_fitted(self)
        prior = self._prior()
        if not isinstance(prior, Gaussian):
            raise ValueError(
                f"latent_prior={self.latent_prior!r} can't be drawn from; fit with "
                "latent_prior='gaussian', or draw latents yourself and call predict"
            )
        rng = check_random_state(random_state)
        shape = (n_samples, self._host_embedding.shape[1])
        latents = prior.mean + prior.sd * rng.standard_normal(shape)
        mean, variance = self.predict(latents, return_var=True)
        return mean + np.sqrt(variance) * rng.standard_normal(mean.shape), latents

    def relevance(self) -> np.ndarray:
        """How much each latent dimension matters, (q,), largest 1.

        Root mean square over the training rows of the latent's deviation times the slope of the
        reconstructed data along it: for an RBF, a dimension that is narrow beside its lengthscale
        scores near 0.
        """
        check_is_fitted(self)
        Z = self._host_embedding
        h = 1e-4 * max(float(Z.std()), 1e-300)
        out = np.empty(Z.shape[1])
        for a in range(Z.shape[1]):
            e = np.zeros(Z.shape[1])
            e[a] = h
            slope = (self.predict(Z + e) - self.predict(Z - e)) / (2.0 * h) / self.scale_
            out[a] = Z[:, a].std() * np.sqrt(np.mean(slope**2))
        return out / out.max() if out.max() > 0 else out

    def save(self, path: str | PathLike[str]) -> None:
        """Write the fitted model to one ``.npz`` file; :func:`gplvm_xp.load` reads it back."""
        from gplvm_xp.io import save

        save(self, path)

    # -- inside ----------------------------------------------------------------------------------

    @property
    def _n_features_out(self) -> int:
        return int(self._host_embedding.shape[1])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        # The factor is rebuilt from the rest, so files don't hold an n × n matrix.
        state = dict(super().__getstate__())
        state.pop("_posterior", None)
        return state

    def _check_parameters(self, Y: np.ndarray) -> None:
        n, D = Y.shape
        q = self.n_components
        if isinstance(q, bool) or not isinstance(q, int | np.integer) or q < 1:
            raise ValueError(f"n_components={q!r} was given; expected an integer of 1 or more")
        if n < 2:
            raise ValueError(f"X has {n} sample(s) (rows); a latent space needs at least 2")
        if q == D == 2:
            # scikit-learn's conformance suite fits the default of two to tables of two columns.
            warnings.warn(
                "n_components=2 and X has 2 features: nothing is reduced; use n_components=1",
                UserWarning,
                stacklevel=4,
            )
        elif q >= D:
            raise ValueError(
                f"n_components={q} and X has {D} feature(s); expected fewer latent dimensions than "
                f"columns: lower n_components below {D}"
            )
        if q >= n:
            raise ValueError(
                f"n_components={q} and X has {n} sample(s); expected fewer latent dimensions than "
                f"rows: lower n_components below {n}"
            )
        if self.gauge not in ("fixed", "free"):
            raise ValueError(f"gauge={self.gauge!r} was given; expected 'fixed' or 'free'")
        if self.optimizer not in ("scipy", "lbfgs", "adam"):
            raise ValueError(
                f"optimizer={self.optimizer!r} was given; expected 'scipy', 'lbfgs' or 'adam'"
            )
        if self.kernel is not None and not isinstance(self.kernel, Kernel):
            raise TypeError(
                f"kernel is a {type(self.kernel).__name__}; expected one of gplvm_xp.kernels, for "
                "example RBF() + White()"
            )
        if not (math.isfinite(self.jitter) and self.jitter >= 0):
            raise ValueError(f"jitter={self.jitter!r} was given; expected a number of 0 or more")
        if self.n_restarts < 0:
            raise ValueError(f"n_restarts={self.n_restarts!r} was given; expected 0 or more")
        self._prior()

    def _prior(self) -> Prior | None:
        if self.latent_prior is None or isinstance(self.latent_prior, Prior):
            return self.latent_prior
        if self.latent_prior == "gaussian":
            return Gaussian()
        raise ValueError(
            f"latent_prior={self.latent_prior!r} was given; expected 'gaussian', None or a Prior "
            "of gplvm_xp.priors"
        )

    def _minimise(
        self, b: Backend, Y: np.ndarray, first: np.ndarray, rng: np.random.Generator
    ) -> tuple[ExactObjective, OptResult]:
        variance = float(np.nanmean(Y**2))
        kernel = RBF(variance, 0.5) if self.kernel is None else self.kernel
        noise = 0.1 * variance if self.noise_variance is None else self.noise_variance
        groups = groups_of(b, Y)
        held = _gauge(kernel, self.n_components) if self.gauge == "fixed" else frozenset()
        jitter = self.jitter * variance
        best: tuple[ExactObjective, OptResult] | None = None
        for k in range(1 + self.n_restarts):
            latents = first
            if k:
                latents = first + 0.5 * first.std() * rng.standard_normal(first.shape)
            for attempt in range(1 + JITTER_TRIES):
                objective = ExactObjective(
                    kernel, groups, latents, noise, self._prior(), dict(self.priors or {}), held,
                    jitter,
                )  # fmt: skip
                result = self._run(objective, k)
                if result.evaluations > 1 or math.isfinite(result.value):
                    break
                if attempt == JITTER_TRIES:
                    raise NotPositiveDefiniteError(
                        f"the covariance at the start has no Cholesky factor with a jitter of up "
                        f"to {jitter:.3g} ({jitter / variance:.0e} of the data's variance); use a "
                        "larger noise_variance, check the kernel's starting values, or remove "
                        "duplicate rows"
                    )
                jitter = max(jitter, 1e-10 * variance) * JITTER_GROWTH
            if best is None or result.value < best[1].value:
                best = objective, result
            if result.status in ("interrupted", "stopped", "time_limit"):
                break
        assert best is not None
        return best

    def _run(self, objective: ExactObjective, restart: int) -> OptResult:
        from gplvm_xp.estimators._progress import watched

        with watched(self.progress, self.max_iter, restart, self.callback) as callback:
            return minimise(
                objective.value_and_grad,
                objective.start(),
                method=self.optimizer,
                max_steps=self.max_iter,
                gtol=self.tol,
                ftol=1e-3 * self.tol,
                time_limit=self.time_limit,
                callback=callback,
            )

    def _condition(self, b: Backend) -> Posterior:
        Y = (self.training_data_ - self.mean_) / self.scale_
        noise = self.noise_variance_ + self.jitter_
        return Posterior.of(b, self.kernel_, noise, self._host_embedding, Y)

    def _post(self) -> Posterior:
        """The posterior factor: kept from the fit, rebuilt after loading or unpickling."""
        if getattr(self, "_posterior", None) is None:
            self._posterior = self._condition(
                backends.get(self.backend, self.embedding_, self.dtype)
            )
        return self._posterior

    def _latents(self, X: Array) -> np.ndarray:
        """Latents on the host, of rows that are latents already or data to be embedded."""
        host = backends.of(X).to_host(X) if backends.is_array(X) else np.asarray(X)
        q = self._host_embedding.shape[1]
        if host.ndim != 2 or host.shape[1] != q:
            Y = table(self, X, reset=False)
            return self._solve(Y, pin=True)[0]
        latents = np.asarray(host, dtype=np.float64)
        if not np.all(np.isfinite(latents)):
            raise ValueError("latents contain NaN or infinity; give finite positions")
        return latents

    def _solve(
        self, Y: np.ndarray, pin: bool
    ) -> tuple[np.ndarray, np.ndarray, list[tuple[slice, NewRows, Backend]]]:
        """Latents and objective of new rows, and the problem of each batch."""
        p = self._post()
        b = p.backend
        centred = (Y - self.mean_) / self.scale_
        Z = np.empty((Y.shape[0], self._host_embedding.shape[1]))
        f = np.empty(Y.shape[0])
        lost = 0
        problems = []
        for part in p.batches(Y.shape[0]):
            seen = ~np.isnan(centred[part])
            values = np.where(seen, centred[part], 0.0)
            problem = NewRows(
                p, self._prior(), b.asarray(values), b.asarray(seen.astype(np.float64))
            )
            z, value, converged = problem.solve()
            Z[part], f[part] = b.to_host(z), b.to_host(value)
            lost += int(np.sum(~b.to_host(converged)))
            problems.append((part, problem, b))
        if pin:
            known = {row.tobytes(): i for i, row in reversed(list(enumerate(self.training_data_)))}
            for i, row in enumerate(Y):
                if row.tobytes() in known:
                    Z[i] = self._host_embedding[known[row.tobytes()]]
        if lost:
            warnings.warn(
                f"the latents of {lost} of {Y.shape[0]} rows stopped short of a gradient of 1e-8",
                ConvergenceWarning,
                stacklevel=3,
            )
        return Z, f, problems

    def _say_how_it_ended(self, result: OptResult, b: Backend) -> None:
        if result.status in ("interrupted", "time_limit", "failed"):
            warnings.warn(
                f"the fit ended early ({result.message}); the best state of {result.steps} steps "
                "is kept",
                ConvergenceWarning,
                stacklevel=3,
            )
        elif result.status == "max_steps":
            warnings.warn(
                f"max_iter={self.max_iter} steps were taken and the largest gradient entry is "
                f"{result.grad_norm:.3g}; raise max_iter to go on",
                ConvergenceWarning,
                stacklevel=3,
            )
        spread = float(np.nanvar((self.training_data_ - self.mean_) / self.scale_))
        condition = spread * self.training_data_.shape[0] / (self.noise_variance_ + self.jitter_)
        if b.eps * condition > 1e-3:
            warnings.warn(
                f"the covariance's condition number is up to {condition:.1e} and dtype="
                f"{self.dtype!r} resolves {1 / b.eps:.0e}: gradients are inaccurate; use "
                "dtype='float64' or a larger jitter",
                PrecisionWarning,
                stacklevel=3,
            )


def _gauge(kernel: Kernel, q: int) -> frozenset[str]:
    """Names of the blocks to hold so that each latent dimension has one scale: the first found."""
    held, covered = set(), set()
    blocks = kernel.blocks()
    for place, dims in kernel.scale_blocks(q):
        if not dims & covered:
            held.add(blocks[place].name)
            covered |= dims
    return frozenset(held)


__all__ = ["GPLVM"]
