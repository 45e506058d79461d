"""What a fitted latent function with a likelihood can do, whoever fitted it."""

from __future__ import annotations

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
from gplvm_xp.errors import NotPositiveDefiniteError
from gplvm_xp.estimators._data import on_host, to_like
from gplvm_xp.estimators._targets import BINARY, chosen, host, signed
from gplvm_xp.kernels import Kernel
from gplvm_xp.likelihoods import Likelihood
from gplvm_xp.variational import DenseEvidence, DensePosterior, Observations

_ROWS = 2048


def _classifies(model: Any) -> bool:
    return isinstance(chosen(model.likelihood), BINARY)


class FittedGP(BaseEstimator):  # type: ignore[misc]
    """Methods on the fitted state that ``fit`` leaves: see :class:`gplvm_xp.VariationalGP`."""

    # -- using it --------------------------------------------------------------------------------

    def latent(self, X: Array, return_var: bool = True) -> Any:
        """Mean (and variance) of the latent function at X (m, q): (m,) or (m, T) each."""
        m, v = self._moments(X)
        return (to_like(m, X), to_like(v, X)) if return_var else to_like(m, X)

    def predict(self, X: Array, return_var: bool = False, *, exposure: float = 1.0) -> Any:
        """Labels of a classifier; else mean (and variance) of new observations at X.

        Parameters
        ----------
        X : array (m, q)
        return_var : bool
            Also return the variance of a new observation, noise included. Not for labels.
        exposure : float
            Of the new observations; for counts, 1 gives the rate.

        Returns
        -------
        array (m,) or (m, T), or (mean, variance)
        """
        check_is_fitted(self)
        if self.classes_ is not None:
            if return_var:
                raise ValueError(
                    "return_var=True was given to a classifier; use predict_proba, or latent for "
                    "the variance of the latent function"
                )
            # A NumPy result also for device data: labels may be text.
            return self.classes_[(self._probability(X) > 0.5).astype(int)]
        b = self._backend
        m, v = self._moments(X)
        e = b.full((), exposure)
        mean, variance = self.likelihood_.predict(b.asarray(m), b.asarray(v), exposure=e)
        mean, variance = (b.to_host(a).astype(np.float64) for a in (mean, variance))
        return (to_like(mean, X), to_like(variance, X)) if return_var else to_like(mean, X)

    @available_if(_classifies)
    def predict_proba(self, X: Array) -> Array:
        """Probability of each class, (m, 2), averaged over the posterior."""
        check_is_fitted(self)
        p = self._probability(X)
        return to_like(np.stack([1.0 - p, p], axis=1), X)

    @available_if(_classifies)
    def predict_log_proba(self, X: Array) -> Array:
        """Logarithm of :meth:`predict_proba`, without cancellation, (m, 2)."""
        check_is_fitted(self)
        b = self._backend
        m, v = (b.asarray(a) for a in self._moments(X))
        logs = [self.likelihood_.log_predictive(b.full(m.shape, c), m, v) for c in (0.0, 1.0)]
        return to_like(np.stack([b.to_host(a).astype(np.float64) for a in logs], axis=1), X)

    @available_if(_classifies)
    def decision_function(self, X: Array) -> Array:
        """Log odds of the second class, (m,): positive where it is likelier."""
        logs = self.predict_log_proba(X)
        return logs[:, 1] - logs[:, 0]

    def log_score(self, X: Array, y: Array, *, exposure: Any = None) -> float:
        """Mean log predictive probability (density) of y at X, nats; larger is better."""
        check_is_fitted(self)
        b = self._backend
        m, v = self._moments(X)
        e = None
        if self.classes_ is not None:
            labels = np.asarray(host(y))
            strange = ~np.isin(labels, self.classes_)
            if strange.any():
                raise ValueError(
                    f"y holds {labels[strange][0]!r}; expected the labels {list(self.classes_)}"
                )
            numbers = (labels == self.classes_[1]).astype(np.float64)
        else:
            numbers = np.asarray(host(y), dtype=np.float64)
            if exposure is not None:
                e = np.broadcast_to(np.asarray(host(exposure), dtype=np.float64), m.shape[:1])
                e = e if numbers.ndim == 1 else e[:, None]
            self.likelihood_.check(numbers, None if e is None else np.broadcast_to(e, m.shape))
        log = self.likelihood_.log_predictive(
            b.asarray(numbers), b.asarray(m), b.asarray(v),
            exposure=None if e is None else b.asarray(e),
        )  # fmt: skip
        return float(b.to_host(b.xp.mean(log)))

    def score(self, X: Array, y: Array, sample_weight: Any = None) -> float:
        """Accuracy of a classifier, R² of a regressor, as everywhere in scikit-learn."""
        found = host(self.predict(X))
        if self.classes_ is not None:
            return float(accuracy_score(host(y), found, sample_weight=sample_weight))
        return float(r2_score(host(y), found, sample_weight=sample_weight))

    def sample(self, X: Array, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Joint draws of the latent function at X from the posterior.

        Returns
        -------
        ndarray (n_samples, m) or (n_samples, m, T)

        Raises
        ------
        NotPositiveDefiniteError
            If the posterior covariance of these points has no Cholesky factor.
        """
        check_is_fitted(self)
        b = self._backend
        q = self._post()
        mean, C = q.joint(b.asarray(self._inputs(X)))
        m = mean.shape[-1]
        # Rounding leaves eigenvalues of about −ε; the jitter is below any width that matters.
        scale = b.xp.max(b.xp.abs(self.kernel_.diag(q.theta, q.X)))
        L, ok = b.factor(C + (100.0 * b.eps * m) * scale * b.eye(m))
        if not b.to_host(ok).all():
            raise NotPositiveDefiniteError(
                f"the posterior covariance of the {m} rows of X has no Cholesky factor; expected "
                "distinct points: leave some out"
            )
        rng = check_random_state(random_state)
        xi = b.asarray(rng.standard_normal((n_samples, *mean.shape)))
        draws = mean + b.xp.squeeze(L @ xi[..., None], axis=-1)
        return np.moveaxis(b.to_host(draws).astype(np.float64), -1, 1)

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
            tags.target_tags.positive_only = not signed(chosen(self.likelihood))
        return tags

    def __getstate__(self) -> dict[str, Any]:
        # The n × n matrices are rebuilt from the sites.
        state = dict(super().__getstate__())
        state.pop("_posterior", None)
        return state

    @property
    def _backend(self) -> Backend:
        return backends.of(self._post().X)

    def _evidence(
        self, b: Backend, kernel: Kernel, likelihood: Likelihood, mean: np.ndarray
    ) -> DenseEvidence:
        def put(a: np.ndarray | None) -> Array:
            return None if a is None else b.asarray(a)

        data = Observations(likelihood, put(self.y_train_), put(self.weights_), put(self.exposure_))
        return DenseEvidence(
            kernel,
            put(self.X_train_),
            data,
            mean=mean,
            fit_mean=self.fit_mean,
            jitter=self.jitter_,
            tol=1e-9 if self.dtype == "float64" else 1e-4,
        )

    def _post(self) -> DensePosterior:
        """The posterior: kept from the fit, rebuilt from the sites after loading."""
        if getattr(self, "_posterior", None) is None:
            b = backends.get(self.backend, self.X_train_, self.dtype)
            evidence = self._evidence(b, self.kernel_, self.likelihood_, self.mean_)
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
        parts = [
            tuple(b.to_host(a).astype(np.float64) for a in q.moments(b.asarray(A[i : i + _ROWS])))
            for i in range(0, A.shape[0], _ROWS)
        ]
        m, v = (np.concatenate([part[k] for part in parts], axis=-1) for k in (0, 1))
        return m.T, np.broadcast_to(v, m.shape).T

    def _probability(self, X: Array) -> np.ndarray:
        m, v = self._moments(X)
        b = self._backend
        mean, _ = self.likelihood_.predict(b.asarray(m), b.asarray(v))
        return np.asarray(b.to_host(mean), dtype=np.float64)


__all__ = ["FittedGP"]
