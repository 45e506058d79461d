"""What a fitted exact model of latents can do, whoever fitted it."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.estimators._checks import alone
from gplvm_xp.estimators._data import table, to_like
from gplvm_xp.estimators._geometry import FittedSurface
from gplvm_xp.estimators._rows import covariances, modes
from gplvm_xp.geometry import Surface
from gplvm_xp.latents import StructuredPrior
from gplvm_xp.predict import Posterior
from gplvm_xp.priors import Prior


class FittedLatents(FittedSurface):
    """Methods on the fitted state that a subclass's ``fit`` leaves: see :class:`gplvm_xp.GPLVM`."""

    # -- using it --------------------------------------------------------------------------------

    def transform(self, X: Array, return_cov: bool = False) -> Any:
        """Latents of new rows: the mode of p(z | row, training data), all rows at once.

        Each row is solved on its own with the true predictive density (mean and variance move with
        z) and the latent prior, from the best of the nearest training rows. A row that equals a
        training row gets that row's fitted latents. With a back-constraint the latents are those
        of ``encoder_``, which takes a small part of the time; only rows with missing entries, which
        it can't take, are solved for.

        Parameters
        ----------
        X : array (N, D)
            NaN is missing; a row with nothing observed gets the prior's mode.
        return_cov : bool
            Also return the Laplace covariance of the latents, (N, q, q): from the curvature of the
            density at the latents that are returned.

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
        Z = self._embed(Y)
        if not return_cov:
            return to_like(Z, X)
        prior = alone(self.latent_prior)
        C, _ = covariances(self._post(), prior, self._centred(Y), Z)
        return to_like(Z, X), to_like(C, X)

    def score_samples(self, X: Array) -> Array:
        """ln p(row | training data) of each row, nats, in the data's own units, (N,).

        The latents are integrated out by Laplace's method at their mode ẑ:
        ln p(y | ẑ) + ln p(ẑ) + ½ q ln 2π − ½ ln|H|. Without a latent prior there is no such
        integral, and ln p(y | ẑ) is returned. Rows of the training data are treated as new ones.
        """
        check_is_fitted(self)
        Y = table(self, X, reset=False)
        p, prior, centred = self._post(), alone(self.latent_prior), self._centred(Y)
        Z, f = modes(p, prior, centred)
        density = -f if prior is None else covariances(p, prior, centred, Z)[1]
        density = density - np.sum(~np.isnan(Y) * np.log(self.scale_), axis=1)
        return to_like(density, X)

    def leave_one_out(self) -> np.ndarray:
        """ln p(entry | all other rows of its column) of every training entry, (n, D), nats.

        Exact at the fitted latents and parameters, from the diagonal of the inverse (Rasmussen &
        Williams 2006, section 5.4.2); NaN where missing.
        """
        check_is_fitted(self)
        mean, variance = self._post().leave_one_out()
        # Rows behind the last one with an observed entry are not there.
        Y, out = self.training_data_[: len(mean)], np.full(self.training_data_.shape, np.nan)
        z = (self._centred(Y) - mean) ** 2 / variance
        out[: len(mean)] = -0.5 * (z + np.log(2.0 * np.pi * variance)) - np.log(self.scale_)
        return out

    def _condition(self, b: Backend) -> Posterior:
        noise = self.noise_variance_ + self.jitter_
        Y = self._centred(self.training_data_)
        return Posterior.of(b, self.kernel_, noise, self._host_embedding, Y)

    def _surface_of(self, posterior: Posterior) -> Surface:
        return Surface.exact(posterior)

    def _prior(self) -> Prior | None:
        return alone(self.latent_prior)

    def _refuse_draws(self) -> None:
        """Gaussian noise can be drawn; rows that depend on each other not one by one."""
        if isinstance(self.latent_prior, StructuredPrior):
            raise ValueError(
                f"latent_prior={self.latent_prior!r} ties rows together, so that single rows can't "
                "be drawn from it; draw frames that follow a sequence with "
                "forecast(n_steps, n_samples=...), or latents yourself and call predict"
            )

    def _outputs(self, X: Array, noise: bool) -> tuple[np.ndarray, np.ndarray]:
        latents = self._given(X)
        if latents is None:
            latents = self._embed(table(self, X, reset=False))
        p = self._post()
        b = p.backend
        mean = np.empty((latents.shape[0], self.mean_.size))
        variance = np.empty_like(mean)
        for part in p.batches(latents.shape[0]):
            m, v = p.moments(b.asarray(latents[part]))
            mean[part], variance[part] = b.to_host(m), b.to_host(v)
        # The jitter is noise of the model, as in transform, score and leave_one_out.
        own = self.noise_variance_ + self.jitter_ if noise else 0.0
        return mean * self.scale_ + self.mean_, (variance + own) * self.scale_**2

    def _embed(self, Y: np.ndarray) -> np.ndarray:
        """Latents of rows; those of the training data are known already."""
        Z = np.empty((Y.shape[0], self._host_embedding.shape[1]))
        place = self._known(Y)
        # A training row with nothing observed has the latents of its neighbours in time.
        place[np.isnan(Y).all(axis=1)] = -1
        Z[place >= 0] = self._host_embedding[place[place >= 0]]
        new = place < 0
        if self.encoder_ is not None:
            whole = new & ~np.isnan(Y).any(axis=1)
            Z[whole] = self._encoded(self._centred(Y[whole]))
            new = new & ~whole
        if new.any():
            Z[new] = modes(self._post(), self._prior(), self._centred(Y[new]))[0]
        return Z


__all__ = ["FittedLatents"]
