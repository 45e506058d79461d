"""What every fitted model of latents can do, exact or not."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
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
from gplvm_xp.encoders import Encoder
from gplvm_xp.estimators._data import is_lazy, to_like
from gplvm_xp.priors import Gaussian, Prior

# At about so many rows, or all where fewer, slopes are averaged.
_SLOPES = 1000
# A latent that moves the data by less than this share of the noise's deviation does not matter.
_STILL = 1e-3


class FittedEmbedding(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator, ABC):  # type: ignore[misc]
    """Methods on a fitted embedding; a subclass conditions a posterior on it and says the rest."""

    # With the weights that a fit learned, where rows were encoded.
    encoder_: Encoder | None = None

    # -- contract --------------------------------------------------------------------------------

    @abstractmethod
    def score_samples(self, X: Array) -> Array:
        """ln p(row | training data) of each row of X (N, D), nats, in the data's own units."""

    @abstractmethod
    def _outputs(self, X: Array, noise: bool) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance (N, D) at latents or data rows X, in the data's own units."""

    @abstractmethod
    def _condition(self, b: Backend) -> Any:
        """The posterior that :meth:`_post` keeps."""

    @abstractmethod
    def _prior(self) -> Prior | None:
        """Of each latent coordinate."""

    @abstractmethod
    def _refuse_draws(self) -> None:
        """Raise ``ValueError`` where noise can't be drawn."""

    # -- using it --------------------------------------------------------------------------------

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
        mean, variance = self._outputs(X, noise)
        return (to_like(mean, X), to_like(variance, X)) if return_var else to_like(mean, X)

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

    def score(self, X: Array, y: Any = None) -> float:
        """Mean of :meth:`score_samples`: the held-out log-likelihood of a row, nats."""
        values = self.score_samples(X)
        return float(np.mean(backends.of(values).to_host(values)))

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
        prior = self._prior()
        if not isinstance(prior, Gaussian):
            raise ValueError(
                f"latent_prior={self.latent_prior!r} can't be drawn from; fit with "
                "latent_prior='gaussian', or draw latents yourself and call predict"
            )
        self._refuse_draws()
        rng = check_random_state(random_state)
        shape = (n_samples, self._host_embedding.shape[1])
        latents = prior.mean + prior.sd * rng.standard_normal(shape)
        mean, variance = self.predict(latents, return_var=True)
        return mean + np.sqrt(variance) * rng.standard_normal(mean.shape), latents

    def relevance(self) -> np.ndarray:
        """How much each latent dimension matters, (q,), largest 1.

        Root mean square over the training rows of the latent's deviation times the slope of the
        reconstructed data along it: for an RBF, a dimension that is narrow beside its lengthscale
        scores near 0. All are 0 where none moves the data by a thousandth of the noise's deviation
        (other likelihoods: a latent function by a thousandth): the fit found nothing but noise.
        """
        check_is_fitted(self)
        out = self._host_embedding.std(axis=0) * np.sqrt(self._squared_slopes())
        variance = float(self.noise_variance_)
        moves = out.max() > _STILL * (1.0 if math.isnan(variance) else math.sqrt(variance))
        return np.asarray(out / out.max() if moves else np.zeros_like(out))

    def _squared_slopes(self) -> np.ndarray:
        """Mean square over rows and columns of the scaled data's slope along each latent, (q,)."""
        Z = self._host_embedding
        # Of very many rows some are enough for an average.
        part = Z[:: max(1, Z.shape[0] // _SLOPES), :]
        h = 1e-4 * max(float(Z.std()), 1e-300)
        out = np.empty(Z.shape[1])
        for a in range(Z.shape[1]):
            e = np.zeros(Z.shape[1])
            e[a] = h
            up, down = (self._outputs(part + move, False)[0] for move in (e, -e))
            out[a] = np.mean(((up - down) / (2.0 * h) / self.scale_) ** 2)
        return out

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
        # A live client or engine belongs to this process.
        if not isinstance(state.get("engine"), str | None):
            state["engine"] = None
        return state

    def __sklearn_clone__(self) -> Any:
        # A client can be shared and not copied.
        engine = getattr(self, "engine", None)
        if isinstance(engine, str | None):
            return super().__sklearn_clone__()
        self.engine = None
        try:
            copy = super().__sklearn_clone__()
        finally:
            self.engine = engine
        return copy.set_params(engine=engine)

    def _post(self) -> Any:
        """The posterior factor: kept from the fit, rebuilt after loading or unpickling."""
        if getattr(self, "_posterior", None) is None:
            self._posterior = self._condition(
                backends.get(self.backend, self.embedding_, self.dtype)
            )
        return self._posterior

    def _given(self, X: Array) -> np.ndarray | None:
        """X on the host where it is latents (N, q); None where it is not."""
        X = X.compute() if is_lazy(X) else X
        host = backends.of(X).to_host(X) if backends.is_array(X) else np.asarray(X)
        q = self._host_embedding.shape[1]
        if host.ndim != 2 or host.shape[1] != q:
            return None
        latents = np.asarray(host, dtype=np.float64)
        if not np.all(np.isfinite(latents)):
            raise ValueError("latents contain NaN or infinity; give finite positions")
        return latents

    def _encoded(self, rows: np.ndarray) -> np.ndarray:
        """What ``encoder_`` makes of complete rows (N, D), as it wants them: (N, k)."""
        assert self.encoder_ is not None
        b = backends.get(self.backend, self.embedding_, self.dtype)
        return np.asarray(b.to_host(self.encoder_.encode(b, rows)), dtype=np.float64)

    def _centred(self, Y: np.ndarray) -> np.ndarray:
        return np.asarray((Y - self.mean_) / self.scale_)

    def _known(self, Y: np.ndarray) -> np.ndarray:
        return known_rows(self.training_data_, Y)


def known_rows(table: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Which row of a table each row of Y equals, (N,), the first of several; −1: none."""
    # Sums of bits, modulo 2⁶⁴, say which of very many rows need a look.
    weights = np.random.default_rng(0).integers(1, 2**63, Y.shape[1], dtype=np.uint64)
    old, new = (np.ascontiguousarray(a).view(np.uint64) for a in (table, Y))
    near = np.flatnonzero(np.isin(old @ weights, new @ weights))
    known = {table[i].tobytes(): i for i in near[::-1]}
    return np.array([known.get(row.tobytes(), -1) for row in Y], dtype=np.int64)


__all__ = ["FittedEmbedding", "known_rows"]
