"""An exact model that may have chosen another one, which then answers for it."""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gplvm_xp import backend as backends
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.encoders import Encoder
from gplvm_xp.estimators._auto import Plan
from gplvm_xp.estimators._embedding import FittedEmbedding
from gplvm_xp.estimators._geometry import FittedSurface
from gplvm_xp.estimators._sequences import FittedSequences
from gplvm_xp.geometry import Surface
from gplvm_xp.optim import Certificate
from gplvm_xp.priors import Prior

# What the other models take too, and what they leave as an exact one does.
_GIVEN = (
    "n_components", "kernel", "init", "latent_prior", "priors", "gauge", "scale", "noise_variance",
    "optimizer", "max_iter", "tol", "n_restarts", "time_limit", "callback", "progress", "backend",
    "dtype", "random_state",
)  # fmt: skip
_LEFT = (
    "embedding_", "_host_embedding", "kernel_", "noise_variance_", "mean_", "scale_", "jitter_",
    "loss_curve_", "n_iter_", "status_", "training_data_",
)  # fmt: skip


class Chosen(FittedSequences):
    """Methods that ask ``model_``, where there is one: see :class:`gplvm_xp.GPLVM`."""

    plan_: Plan | None
    model_: FittedEmbedding | None
    encoder_: Encoder | None
    certificate_: Certificate | None

    def transform(self, X: Array, return_cov: bool = False) -> Any:
        """Latents of new rows, see :meth:`FittedLatents.transform`.

        Where another model was chosen, ``return_cov`` gives what that model knows: the variances
        of an inducing model are the diagonal of a covariance without the rest.
        """
        check_is_fitted(self)
        if self.model_ is None:
            return super().transform(X, return_cov)
        if not return_cov:
            return self.model_.transform(X)
        if not hasattr(self.model_, "inducing_inputs_"):
            return self.model_.transform(X, return_cov=True)
        Z, variance = self.model_.transform(X, return_var=True)
        b = backends.of(variance)
        eye = b.xp.eye(variance.shape[1], dtype=variance.dtype, device=b.device)
        return Z, variance[:, :, None] * eye

    def score_samples(self, X: Array) -> Array:
        """See :meth:`FittedLatents.score_samples`, or the chosen model's."""
        check_is_fitted(self)
        if self.model_ is None:
            return super().score_samples(X)
        return self.model_.score_samples(X)

    def leave_one_out(self) -> np.ndarray:
        """See :meth:`FittedLatents.leave_one_out`.

        Raises
        ------
        ValueError
            If another model was chosen: only the exact one has them for nothing.
        """
        check_is_fitted(self)
        if self.model_ is not None:
            raise ValueError(
                f"method='auto' chose a {type(self.model_).__name__}, and only an exact one can "
                "leave rows out without fitting again; use method='exact', or score_samples of "
                "held-out rows"
            )
        return super().leave_one_out()

    def save(self, path: str | PathLike[str]) -> None:
        """Write the fitted model to one ``.npz`` file; :func:`gplvm_xp.load` reads it back.

        Where another model was chosen, the file holds that one, and ``load`` returns it.
        """
        chosen = getattr(self, "model_", None)
        if chosen is None:
            super().save(path)
        else:
            chosen.save(path)

    def _adopt(self, plan: Plan, X: Array) -> None:
        """Fit the model of a plan and answer by it."""
        from gplvm_xp.estimators import BayesianGPLVM, LocalGPLVM, SparseGPLVM

        kinds: dict[str, Any] = {
            "bayesian": BayesianGPLVM,
            "local": LocalGPLVM,
            "sparse": SparseGPLVM,
        }
        kind = kinds[plan.method]
        takes = set(kind._get_param_names()) & set(_GIVEN)
        given = {name: getattr(self, name) for name in sorted(takes)}
        # Of the two it is the faster one, and the better on held-out rows.
        how = {"inference": "neighbourhood"} if plan.method == "local" else {}
        self.model_, self.plan_ = kind(**given, **how).fit(X), plan
        for name in _LEFT:
            setattr(self, name, getattr(self.model_, name))
        self.log_likelihood_ = getattr(
            self.model_, "log_likelihood_", getattr(self.model_, "lower_bound_", np.nan)
        )
        # An exact one that was fitted before.
        self._posterior = None
        self.latent_prior_ = self.encoder_ = self.sequences_ = self.times_ = None
        self.certificate_ = None

    def _outputs(self, X: Array, noise: bool) -> tuple[np.ndarray, np.ndarray]:
        if self.model_ is None:
            return super()._outputs(X, noise)
        return self.model_._outputs(X, noise)

    def _squared_slopes(self) -> np.ndarray:
        return super()._squared_slopes() if self.model_ is None else self.model_._squared_slopes()

    def _condition(self, b: Backend) -> Any:
        return super()._condition(b) if self.model_ is None else self.model_._condition(b)

    def _surface(self, double: bool = False) -> Surface:
        if self.model_ is None:
            return super()._surface(double)
        if not isinstance(self.model_, FittedSurface):
            raise ValueError(
                f"method='auto' chose a {type(self.model_).__name__}, which has no slopes between "
                "its neighbourhoods; use method='exact', SparseGPLVM or BayesianGPLVM"
            )
        return self.model_._surface(double)

    def _prior(self) -> Prior | None:
        return super()._prior() if self.model_ is None else self.model_._prior()

    def _refuse_draws(self) -> None:
        if self.model_ is None:
            super()._refuse_draws()
        else:
            self.model_._refuse_draws()


__all__ = ["Chosen"]
