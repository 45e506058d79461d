"""What every fitted model of latents can do, whoever fitted it."""

from __future__ import annotations

from numbers import Integral
from os import PathLike
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from gplvm_xp import backend as backends
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.estimators._data import table, to_like
from gplvm_xp.estimators._fit import latent_prior
from gplvm_xp.estimators._rows import covariances, modes
from gplvm_xp.predict import Posterior
from gplvm_xp.priors import Gaussian


class FittedLatents(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Methods on the fitted state that a subclass's ``fit`` leaves: see :class:`gplvm_xp.GPLVM`."""

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
        Z = self._embed(Y)
        if not return_cov:
            return to_like(Z, X)
        prior = latent_prior(self.latent_prior)
        C, _ = covariances(self._post(), prior, self._centred(Y), Z)
        return to_like(Z, X), to_like(C, X)

    def predict(self, X: Array, return_var: bool = False, noise: bool = True) -> Any:
        """Mean (and variance) of the data at latents, or the reconstruction of data rows.

        Parameters
        ----------
        X : array (N, q) or (N, D)
            Latents; or data rows, which are embedded first: missing entries come out filled. With q
            columns it is latents, also where D = q.
        return_var : bool
            Also return the variance of each entry, (N, D).
        noise : bool
            Whether the variance holds the noise and the jitter (that of a new observation) or not
            (that of the function).

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
        # The jitter is noise of the model, as in transform, score and leave_one_out.
        own = self.noise_variance_ + self.jitter_ if noise else 0.0
        variance = (variance + own) * self.scale_**2
        return to_like(mean, X), to_like(variance, X)

    def inverse_transform(self, X: Array, return_var: bool = False) -> Any:
        """Mean (and variance, noise included) of the data at latents X (N, q).

        Raises
        ------
        ValueError
            If X has not q columns; ``predict`` takes data rows too.
        """
        check_is_fitted(self)
        q = self._host_embedding.shape[1]
        if len(np.shape(X)) != 2 or np.shape(X)[1] != q:
            raise ValueError(
                f"X has shape {np.shape(X)}; expected latents (N, {q}): use transform to embed "
                "data rows first, or predict to reconstruct them"
            )
        return self.predict(X, return_var=return_var)

    def score_samples(self, X: Array) -> Array:
        """ln p(row | training data) of each row, nats, in the data's own units, (N,).

        The latents are integrated out by Laplace's method at their mode ẑ:
        ln p(y | ẑ) + ln p(ẑ) + ½ q ln 2π − ½ ln|H|. Without a latent prior there is no such
        integral, and ln p(y | ẑ) is returned. Rows of the training data are treated as new ones.
        """
        check_is_fitted(self)
        Y = table(self, X, reset=False)
        p, prior, centred = self._post(), latent_prior(self.latent_prior), self._centred(Y)
        Z, f = modes(p, prior, centred)
        density = -f if prior is None else covariances(p, prior, centred, Z)[1]
        density = density - np.sum(~np.isnan(Y) * np.log(self.scale_), axis=1)
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
        z = (self._centred(self.training_data_) - mean) ** 2 / variance
        return np.asarray(-0.5 * (z + np.log(2.0 * np.pi * variance)) - np.log(self.scale_))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Draw latents from their prior and rows from the model at them.

        Returns
        -------
        rows : ndarray (n_samples, D)
            Independent draws of each entry, noise included.
        latents : ndarray (n_samples, q)

        Raises
        ------
        ValueError
            If the model has no Gaussian latent prior to draw from, or ``n_samples`` is not a
            positive integer.
        """
        check_is_fitted(self)
        if isinstance(n_samples, bool) or not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"n_samples={n_samples!r} was given; expected an integer of 1 or more")
        prior = latent_prior(self.latent_prior)
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

    def _condition(self, b: Backend) -> Posterior:
        noise = self.noise_variance_ + self.jitter_
        Y = self._centred(self.training_data_)
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
            return self._embed(Y)
        latents = np.asarray(host, dtype=np.float64)
        if not np.all(np.isfinite(latents)):
            raise ValueError("latents contain NaN or infinity; give finite positions")
        return latents

    def _centred(self, Y: np.ndarray) -> np.ndarray:
        return np.asarray((Y - self.mean_) / self.scale_)

    def _embed(self, Y: np.ndarray) -> np.ndarray:
        """Latents of rows; those of the training data are known already."""
        Z = np.empty((Y.shape[0], self._host_embedding.shape[1]))
        known = {row.tobytes(): i for i, row in reversed(list(enumerate(self.training_data_)))}
        place = np.array([known.get(row.tobytes(), -1) for row in Y], dtype=np.int64)
        Z[place >= 0] = self._host_embedding[place[place >= 0]]
        new = place < 0
        if new.any():
            prior = latent_prior(self.latent_prior)
            Z[new] = modes(self._post(), prior, self._centred(Y[new]))[0]
        return Z


__all__ = ["FittedLatents"]
