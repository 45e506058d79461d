"""What a fitted local model can do: everything from each row's nearest training latents."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gplvm_xp import backend as backends
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.estimators._checks import latent_prior
from gplvm_xp.estimators._data import table, to_like
from gplvm_xp.estimators._embedding import FittedEmbedding
from gplvm_xp.estimators._local import LocalPosterior, NewLocalRows, place
from gplvm_xp.estimators._rows import _say_unsettled
from gplvm_xp.neighbours import maxmin, predecessors
from gplvm_xp.objectives import groups_of
from gplvm_xp.objectives.vecchia import VecchiaObjective
from gplvm_xp.priors import Prior


class FittedLocal(FittedEmbedding):
    """Methods on the fitted state that :class:`gplvm_xp.LocalGPLVM` leaves."""

    # -- using it --------------------------------------------------------------------------------

    def transform(self, X: Array, return_cov: bool = False) -> Any:
        """Latents of new rows: the mode of p(z | row, the R training rows nearest to z).

        Each row is solved on its own with the local predictive density (mean and variance move with
        z) and the latent prior, from the best of the training rows that are nearest in the data;
        neighbours are found again around the solution. A row that equals a training row gets that
        row's fitted latents.

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
        return to_like(Z, X), to_like(self._densities(Y, Z)[0], X)

    def score_samples(self, X: Array) -> Array:
        """ln p(row | its nearest training rows) of each row, nats, in the data's own units, (N,).

        The latents are integrated out by Laplace's method at their mode ẑ:
        ln p(y | ẑ) + ln p(ẑ) + ½ q ln 2π − ½ ln|H|. Without a latent prior there is no such
        integral, and ln p(y | ẑ) is returned. Rows of the training data are treated as new ones,
        beside themselves.
        """
        check_is_fitted(self)
        Y = table(self, X, reset=False)
        Z, f = self._placed(Y)
        density = -f if self._prior() is None else self._densities(Y, Z)[1]
        density = density - np.sum(~np.isnan(Y) * np.log(self.scale_), axis=1)
        return to_like(density, X)

    def log_likelihood(self, n_neighbors: int | None = None) -> float:
        """The nearest-neighbour log-likelihood of the training rows at their latents, nats.

        Rows in max-min order, each given its nearest predecessors (Vecchia 1988), all constants, in
        the data's own units. It is exact where there are as many neighbours as rows; with fewer the
        error has either sign, so that a larger number is not a better model.

        Parameters
        ----------
        n_neighbors : int, optional
            Neighbours of each row, from 1 to n; default the fit's.

        Raises
        ------
        ValueError
            If ``n_neighbors`` is not such a number.
        """
        check_is_fitted(self)
        few = self.n_neighbors_ if n_neighbors is None else n_neighbors
        b = self._post().backend
        order = maxmin(self._host_embedding)
        objective = VecchiaObjective(
            self.kernel_,
            groups_of(b, self._centred(self.training_data_)),
            self._host_embedding,
            self.noise_variance_,
            order,
            predecessors(self._host_embedding, order, few),
            jitter=self.jitter_,
        )
        theta, X = b.asarray(self.kernel_.theta()), b.asarray(self._host_embedding)
        fit = objective.likelihood(theta, b.scalar(self.noise_variance_), X)
        value: float = b.to_host(fit.value).astype(np.float64).item()
        return value - self._units(self.training_data_)

    # -- for the family --------------------------------------------------------------------------

    def _condition(self, b: Backend) -> LocalPosterior:
        noise = self.noise_variance_ + self.jitter_
        Y = self._centred(self.training_data_)
        X = self._host_embedding
        return LocalPosterior.of(b, self.kernel_, noise, X, Y, self.n_neighbors_)

    def _prior(self) -> Prior | None:
        return latent_prior(self.latent_prior)

    def _refuse_draws(self) -> None:
        """Gaussian noise can be drawn."""

    def _units(self, Y: np.ndarray) -> float:
        """What scaling the columns adds to a log-likelihood."""
        return float(np.sum(~np.isnan(Y) * np.log(self.scale_)))

    def _outputs(self, X: Array, noise: bool) -> tuple[np.ndarray, np.ndarray]:
        latents = self._given(X)
        if latents is None:
            latents = self._embed(table(self, X, reset=False))
        mean, variance = self._moments(latents, None)
        # The jitter is noise of the model, as in transform and score.
        own = self.noise_variance_ + self.jitter_ if noise else 0.0
        return mean * self.scale_ + self.mean_, (variance + own) * self.scale_**2

    def _moments(
        self, latents: np.ndarray, index: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of the scaled outputs at latents (N, q), given training rows (N, R) or the nearest."""
        p = self._post()
        b = p.backend
        mean, variance = np.empty((2, latents.shape[0], self.mean_.size))
        for part in p.batches(latents.shape[0], 1):
            given = None if index is None else p.numbers(index[part])
            m, v = p.moments(b.asarray(latents[part]), given)
            mean[part], variance[part] = b.to_host(m), b.to_host(v)
        return mean, variance

    def _embed(self, Y: np.ndarray) -> np.ndarray:
        """Latents of rows; those of the training data are known already."""
        place = self._known(Y)
        Z: np.ndarray = self._host_embedding[place]
        new = place < 0
        if new.any():
            Z[new] = self._placed(Y[new])[0]
        return Z

    def _placed(self, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latents (N, q) of rows in the data's own units, and the negative log density there."""
        p, prior, Y = self._post(), self._prior(), self._centred(Y)
        b = p.backend
        Z, f = np.empty((Y.shape[0], p.X.shape[1])), np.empty(Y.shape[0])
        short = 0
        for part in p.batches(Y.shape[0]):
            found = place(p, prior, Y[part])
            Z[part], f[part] = b.to_host(found.x), b.to_host(found.value)
            short += int(np.sum(~b.to_host(found.settled)))
        _say_unsettled(short, Y.shape[0], 6)
        return Z, f

    def _densities(self, Y: np.ndarray, Z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Laplace covariances (N, q, q) of rows at latents, and the rows' log densities (N,)."""
        p, prior, Y = self._post(), self._prior(), self._centred(Y)
        b, q = p.backend, Z.shape[1]
        C, density = np.empty((Z.shape[0], q, q)), np.empty(Z.shape[0])
        for part in p.batches(Z.shape[0]):
            z = b.asarray(Z[part])
            rows = NewLocalRows.of(p, prior, Y[part], z)
            covariance, log_det = rows.laplace(z)
            f = rows.value_and_grad(z, rows.owner)[0]
            C[part] = b.to_host(covariance)
            density[part] = b.to_host(-f - 0.5 * log_det) + 0.5 * q * math.log(2.0 * math.pi)
        return C, density

    def _squared_slopes(self) -> np.ndarray:
        # With the neighbours held: where they change the mean has small steps, not slopes.
        p, Z = self._post(), self._host_embedding
        part = Z[:: max(1, Z.shape[0] // 1000), :]
        b = backends.of(p.X)
        index = b.to_host(p.near(b.asarray(part)))
        h = (1e-4 if b.itemsize == 8 else 1e-2) * max(float(Z.std()), 1e-300)
        out = np.empty(Z.shape[1])
        for a, e in enumerate(h * np.eye(Z.shape[1])):
            up, down = (self._moments(part + move, index)[0] for move in (e, -e))
            out[a] = np.mean(((up - down) / (2.0 * h)) ** 2)
        return out


__all__ = ["FittedLocal"]
