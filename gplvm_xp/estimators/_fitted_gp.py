"""What a fitted latent function with a likelihood can do, whoever fitted it."""

from __future__ import annotations

import math
from numbers import Integral
from os import PathLike
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import ClassifierTags, RegressorTags, check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from gplvm_xp import backend as backends
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.estimators._data import on_host, to_like
from gplvm_xp.estimators._fit_gp import evidence_of
from gplvm_xp.estimators._targets import (
    BINARY,
    Targets,
    centre,
    chosen,
    host,
    per_row,
    real_numbers,
    signed,
)
from gplvm_xp.likelihoods import BernoulliProbit
from gplvm_xp.variational import DensePosterior

# Numbers in one array of a prediction.
_BATCH_NUMBERS = 2**22


def _classifies(model: Any) -> bool:
    try:
        return isinstance(chosen(model.likelihood), BINARY)
    except (TypeError, ValueError):
        # Asked before a fit: that will say what is wrong.
        return False


def _wide(exposure: Any, m: np.ndarray) -> np.ndarray | None:
    """The exposure of each row in the shape of predictions (m,) or (m, T)."""
    e = per_row(exposure, m.shape[0], "exposure")
    if e is None or m.ndim == 1:
        return e
    return np.repeat(e[:, None], m.shape[1], axis=1)


class FittedGP(BaseEstimator):  # type: ignore[misc]
    """Methods on the fitted state that ``fit`` leaves: see :class:`gplvm_xp.VariationalGP`."""

    # -- using it --------------------------------------------------------------------------------

    def latent(self, X: Array, return_var: bool = True) -> Any:
        """Mean (and variance) of the latent function at new inputs.

        Parameters
        ----------
        X : array (m, q)
        return_var : bool

        Returns
        -------
        array (m,) or (m, T), or (mean, variance)
            O(n² m) with the variance.
        """
        m, v = self._moments(X)
        return (to_like(m, X), to_like(v, X)) if return_var else to_like(m, X)

    def predict(self, X: Array, return_var: bool = False, *, exposure: Any = None) -> Any:
        """Labels of a classifier; else mean (and variance) of new observations at X.

        Parameters
        ----------
        X : array (m, q)
        return_var : bool
            Also return the variance of a new observation, noise included. Not for labels.
        exposure : float or array (m,), optional
            Of the new observations, for counts. Default 1: the rate, or the probability of a
            success.

        Returns
        -------
        array (m,) or (m, T), or (mean, variance)
            Labels are NumPy's. With Student's t of ν ≤ 1, which has no mean, it is the median; of
            ν ≤ 2 the variance is infinite.

        Raises
        ------
        ValueError
            If ``return_var`` or ``exposure`` does not fit the likelihood.
        """
        check_is_fitted(self)
        self._refuse_exposure(exposure)
        if self.classes_ is not None:
            if return_var:
                raise ValueError(
                    "return_var=True was given to a classifier; use predict_proba, or latent for "
                    "the variance of the latent function"
                )
            # A NumPy result also for device data: labels may be text.
            logs = self._log_probabilities(X)
            return self.classes_[(logs[:, 1] > logs[:, 0]).astype(int)]
        m, v = self._moments(X)
        b = self._backend
        mean, variance = self.likelihood_.predict(
            b.asarray(m), b.asarray(v), exposure=self._put(_wide(exposure, m))
        )
        mean, variance = (b.to_host(a).astype(np.float64) for a in (mean, variance))
        if signed(self.likelihood_):
            # Of a symmetric noise, also where the tails are too heavy for it to have a mean.
            mean, variance = m, np.where(np.isnan(variance), np.inf, variance)
        return (to_like(mean, X), to_like(variance, X)) if return_var else to_like(mean, X)

    @available_if(_classifies)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Array) -> Array:
        """Probability of each class of ``classes_``, (m, 2), averaged over the posterior."""
        p = np.exp(self._log_probabilities(X))
        return to_like(p / np.sum(p, axis=1, keepdims=True), X)

    @available_if(_classifies)  # type: ignore[untyped-decorator]
    def predict_log_proba(self, X: Array) -> Array:
        """Logarithm of :meth:`predict_proba`, without cancellation, (m, 2)."""
        return to_like(self._log_probabilities(X), X)

    @available_if(_classifies)  # type: ignore[untyped-decorator]
    def decision_function(self, X: Array) -> Array:
        """Log odds of the second class, (m,): positive where it is likelier."""
        logs = self._log_probabilities(X)
        return to_like(logs[:, 1] - logs[:, 0], X)

    def log_score(self, X: Array, y: Array, *, exposure: Any = None) -> float:
        """Mean log predictive probability (density) of y at X, nats; larger is better.

        Parameters
        ----------
        X : array (m, q)
        y : array (m,) or (m, T)
            As in ``fit``.
        exposure : float or array (m,), optional
            Of these observations, for counts.

        Raises
        ------
        ValueError
            If y has another shape than the predictions, or is not in the likelihood's support.
        """
        check_is_fitted(self)
        self._refuse_exposure(exposure)
        if self.classes_ is not None:
            second = self._second_class(y)
            logs = self._log_probabilities(X)
            self._same_shape(second, logs[:, 0])
            log = np.where(second, logs[:, 1], logs[:, 0])
            return math.fsum(log) / log.size
        numbers = real_numbers(y)
        m, v = self._moments(X)
        self._same_shape(numbers, m)
        e = _wide(exposure, m)
        self.likelihood_.check(numbers, e)
        b, origin = self._backend, self._centre
        log = self.likelihood_.log_predictive(
            b.asarray(numbers - origin),
            b.asarray(m - origin),
            b.asarray(v),
            exposure=self._put(e),
        )
        return float(b.to_host(b.xp.mean(log)))

    def score(
        self, X: Array, y: Array, sample_weight: Any = None, *, exposure: Any = None
    ) -> float:
        """Accuracy of a classifier, R² of a regressor, as everywhere in scikit-learn."""
        found, sample_weight = host(self.predict(X, exposure=exposure)), host(sample_weight)
        if self.classes_ is not None:
            return float(accuracy_score(host(y), found, sample_weight=sample_weight))
        return float(r2_score(host(y), found, sample_weight=sample_weight))

    def sample(self, X: Array, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Joint draws of the latent function at X from the posterior.

        Parameters
        ----------
        X : array (m, q)
        n_samples : int
        random_state : int, RandomState or None

        Returns
        -------
        ndarray (n_samples, m) or (n_samples, m, T)

        Raises
        ------
        ValueError
            If ``n_samples`` is not a positive integer.
        """
        check_is_fitted(self)
        if isinstance(n_samples, bool) or not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"n_samples={n_samples!r} was given; expected an integer of 1 or more")
        b, q = self._backend, self._post()
        mean, C = q.joint(b.asarray(self._inputs(X)))
        L = self._root(b, C, b.xp.max(b.xp.abs(self.kernel_.diag(q.theta, q.X))))
        *lead, m = mean.shape
        xi = b.asarray(check_random_state(random_state).standard_normal((*lead, n_samples, m)))
        draws = b.to_host(mean[..., None, :] + xi @ b.xp.matrix_transpose(L)).astype(np.float64)
        draws = draws + self._centre[..., None, None]
        return np.moveaxis(draws, 0, -1) if lead else draws

    def save(self, path: str | PathLike[str]) -> None:
        """Write the fitted model to one ``.npz`` file; :func:`gplvm_xp.load` reads it back."""
        from gplvm_xp.io import save

        save(self, path)

    # -- private ---------------------------------------------------------------------------------

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        if _classifies(self):
            tags.estimator_type = "classifier"
            tags.classifier_tags = ClassifierTags(multi_class=False)
        else:
            tags.estimator_type = "regressor"
            tags.regressor_tags = RegressorTags()
            tags.target_tags.multi_output = True
            tags.target_tags.positive_only = self._counts()
        return tags

    def _counts(self) -> bool:
        try:
            return not signed(chosen(self.likelihood))
        except (TypeError, ValueError):
            return False

    def __getstate__(self) -> dict[str, Any]:
        # The n × n matrices are rebuilt from the sites.
        state = dict(super().__getstate__())
        state.pop("_posterior", None)
        return state

    @property
    def _backend(self) -> Backend:
        return backends.of(self._post().X)

    @property
    def _targets(self) -> Targets:
        return Targets(self.X_train_, self.y_train_, self.weights_, self.exposure_, self.classes_)

    @property
    def _centre(self) -> np.ndarray:
        return centre(self.likelihood_, self._targets)

    def _post(self) -> DensePosterior:
        """The posterior: kept from the fit, rebuilt from the sites after loading."""
        if getattr(self, "_posterior", None) is None:
            b = backends.get(self.backend, self.X_train_, self.dtype)
            evidence = evidence_of(
                b, self._targets, self.kernel_, self.likelihood_, self.mean_, self.jitter_,
                fit_mean=self.fit_mean,
            )  # fmt: skip
            sites = b.asarray(self.sites_[0]), b.asarray(self.sites_[1])
            self._posterior = evidence.posterior(evidence.start(), sites)
        return self._posterior

    def _inputs(self, X: Array) -> np.ndarray:
        given = X if on_host(X) else host(X)
        return np.asarray(validate_data(self, given, reset=False, dtype=np.float64, order="C"))

    def _moments(self, X: Array) -> tuple[np.ndarray, np.ndarray]:
        """Latent mean and variance on the host, rows first."""
        check_is_fitted(self)
        A, q, b = self._inputs(X), self._post(), self._backend
        step = max(1, _BATCH_NUMBERS // self.y_train_.size)
        parts = [
            tuple(b.to_host(a).astype(np.float64) for a in q.moments(b.asarray(A[i : i + step])))
            for i in range(0, A.shape[0], step)
        ]
        m, v = (np.concatenate([part[k] for part in parts], axis=-1) for k in (0, 1))
        return (m + self._centre[..., None]).T, np.array(np.broadcast_to(v, m.shape).T)

    def _put(self, a: np.ndarray | None) -> Array | None:
        return None if a is None else self._backend.asarray(a)

    def _refuse_exposure(self, exposure: Any) -> None:
        """Raise ``ValueError`` where the likelihood has no use for one."""
        if exposure is not None and (self.classes_ is not None or signed(self.likelihood_)):
            raise ValueError(
                f"exposure was given and {type(self.likelihood_).__name__} has none; omit it"
            )

    def _log_probabilities(self, X: Array) -> np.ndarray:
        """ln p of both classes, (m, 2), on the host."""
        check_is_fitted(self)
        b = self._backend
        m, v = (b.asarray(a) for a in self._moments(X))
        # The quasi-likelihood is no probability; its mean is that of a probit.
        normalised = self.likelihood_.normalised
        likelihood = self.likelihood_ if normalised else BernoulliProbit()
        logs = [likelihood.log_predictive(b.full(m.shape, c), m, v) for c in (0.0, 1.0)]
        return np.stack([b.to_host(a).astype(np.float64) for a in logs], axis=1)

    def _second_class(self, y: Any) -> np.ndarray:
        labels = np.asarray(host(y))
        strange = ~np.isin(labels, self.classes_)
        if strange.any():
            raise ValueError(
                f"y holds {labels[strange][0]}; expected the labels "
                f"{self.classes_[0]} and {self.classes_[1]}"
            )
        return np.asarray(labels == self.classes_[1])

    @staticmethod
    def _same_shape(y: np.ndarray, predicted: Array) -> None:
        if y.shape != tuple(predicted.shape):
            raise ValueError(
                f"y has shape {y.shape}; expected {tuple(predicted.shape)}, that of the predictions"
            )

    @staticmethod
    def _root(b: Backend, C: Array, scale: Array) -> Array:
        """R with R Rᵀ = C, a posterior covariance (..., m, m) beside a prior of that scale."""
        xp, m = b.xp, C.shape[-1]
        L, ok = b.factor(C + (10.0 * b.eps * m) * scale * b.eye(m))
        if b.to_host(ok).all():
            return L
        # Equal points, or hardly any variance left: rounding made eigenvalues negative.
        w, V = xp.linalg.eigh(0.5 * (C + xp.matrix_transpose(C)))
        return V * xp.sqrt(xp.where(w > 0.0, w, 0.0))[..., None, :]

    def _restored(self) -> None:
        """Refuse parts of a file that don't fit each other."""
        y, q = self.y_train_, self.X_train_.shape[1]
        if y.ndim > 2 or self.n_features_in_ != q:
            raise ValueError(
                f"y_train_ has shape {y.shape} and n_features_in_ is {self.n_features_in_}; "
                f"expected (n,) or (T, n), and {q}, the columns of its X_train_"
            )
        lead = y.shape[:-1]
        for name, need in {
            "sites_": (2, *y.shape), "mean_": lead, "free_energy_": lead,
        }.items():  # fmt: skip
            if getattr(self, name).shape != need:
                raise ValueError(
                    f"{name} has shape {getattr(self, name).shape}; expected {need} to go with "
                    "its y_train_"
                )
        labels = 0 if self.classes_ is None else self.classes_.size
        if labels != (2 if isinstance(self.likelihood_, BINARY) else 0):
            raise ValueError(
                f"classes_ holds {labels} labels; expected two of a classifier and none otherwise"
            )
        e = self.exposure_
        self.likelihood_.check(y, e)
        self.kernel_.check(q)


__all__ = ["FittedGP"]
