"""What a fitted model of several views can do."""

from __future__ import annotations

from numbers import Integral
from os import PathLike
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from gplvm_xp import backend as backends
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.estimators._checks import latent_prior
from gplvm_xp.estimators._data import to_like
from gplvm_xp.estimators._embedding import known_rows
from gplvm_xp.estimators._rows import covariances, mixtures, modes
from gplvm_xp.estimators._views import first_array, given, place, tables
from gplvm_xp.kernels.psi.rules import quasi_monte_carlo
from gplvm_xp.optim.modes import Mixture
from gplvm_xp.predict import Posterior
from gplvm_xp.priors import Gaussian

# A row's latents are a mixture of so many Gaussians; a prediction is averaged at so many places.
ANCHORS, NODES = 16, 64
# At about so many rows, or all where fewer, slopes are averaged.
_SLOPES = 1000


class FittedViews(BaseEstimator):  # type: ignore[misc]
    """Methods on the fitted state that :class:`gplvm_xp.SharedGPLVM` leaves.

    The views stand side by side in ``training_data_`` (n, D), as in ``mean_`` and ``scale_``;
    ``n_columns_`` says how many columns belong to each.
    """

    # -- what was learned ------------------------------------------------------------------------

    @property
    def means_(self) -> list[np.ndarray]:
        """What was removed from the columns of each view, (D_v,)."""
        return self._split(self.mean_)

    @property
    def scales_(self) -> list[np.ndarray]:
        """What was divided out of the columns of each view, (D_v,)."""
        return self._split(self.scale_)

    @property
    def shared_dims_(self) -> np.ndarray:
        """Latent dimensions that two or more views use."""
        return np.flatnonzero(self.uses_.sum(axis=0) > 1)

    @property
    def private_dims_(self) -> list[np.ndarray]:
        """Latent dimensions that each view uses alone."""
        alone = self.uses_.sum(axis=0) == 1
        return [np.flatnonzero(own * alone) for own in self.uses_]

    def relevance(self) -> np.ndarray:
        """How much each latent dimension matters to each view, (V, q), largest 1 in each view.

        Root mean square over the training rows of the latent's deviation times the slope of the
        reconstructed view along it. A dimension that a view does not see is exactly 0 there.
        """
        check_is_fitted(self)
        Z = self._host_embedding
        part = Z[:: max(1, Z.shape[0] // _SLOPES), :]
        h = 1e-4 * Z.std(axis=0).max()
        out = np.zeros((len(self.view_names_), Z.shape[1]))
        for a, move in enumerate(h * np.eye(Z.shape[1])):
            for v, p in enumerate(self._post()):
                slope = (_mean(p, part + move) - _mean(p, part - move)) / (2.0 * h)
                out[v, a] = Z[:, a].std() * np.sqrt(np.mean(slope**2))
        widest = out.max(axis=1, keepdims=True)
        return np.asarray(out / np.where(widest > 0.0, widest, 1.0))

    # -- using it --------------------------------------------------------------------------------

    def transform(self, views: Any, return_cov: bool = False) -> Any:
        """Latents of new rows from any of the views: the mode of p(z | what is given, training).

        Each row is solved on its own with the true predictive density of every view that has it.
        A dimension that only other views see stays at the prior's mode (without a prior, at the
        start of the search). A row whose entries equal a training row's in all views gets that
        row's fitted latents.

        Parameters
        ----------
        views : sequence of (array (N, D_v) or None), or mapping of str to array
            One entry for each fitted view, None where there is none; or those that there are by
            name. NaN is missing; a row with nothing observed gets the prior's mode.
        return_cov : bool
            Also return the Laplace covariance of the latents, (N, q, q).

        Returns
        -------
        Z : array (N, q), or (Z, covariance)
            In the library of the first view given.

        Raises
        ------
        ValueError
            If views have other columns than in the fit or different numbers of rows, or none is
            given.
        """
        check_is_fitted(self)
        Y, like = self._wide(views)
        Z = self._embed(Y)
        if not return_cov:
            return to_like(Z, like)
        return to_like(Z, like), to_like(self._covariance(Y, Z), like)

    def predict(self, latents: Array, return_var: bool = False, noise: bool = True) -> Any:
        """Mean (and variance) of every view at latents.

        Parameters
        ----------
        latents : array (N, q)
        return_var : bool
            Also return the variance of each entry.
        noise : bool
            Whether the variance holds the noise and the jitter of each view (that of a new
            observation) or not (that of the function).

        Returns
        -------
        means : list of arrays (N, D_v), or (means, variances)
            In the order and units of the fitted views.

        Raises
        ------
        ValueError
            If latents are not finite or have not q columns.
        """
        check_is_fitted(self)
        Z = self._latents(latents)
        both = [self._moments(v, Z, noise) for v in range(len(self.view_names_))]
        means = [to_like(mean, latents) for mean, _ in both]
        return (means, [to_like(var, latents) for _, var in both]) if return_var else means

    def predict_view(
        self, views: Any, target: str | int, return_var: bool = False, noise: bool = True
    ) -> Any:
        """One view of new rows from the others: its mean (and variance).

        The mean is over what the given views leave uncertain of the row's latents, several modes
        and the target's private dimensions among it. Their prior here is the density of the
        training latents (Silverman's kernel estimate) instead of ``latent_prior``: a row of real
        data lies where others lie. About a thousand N n² operations for each view that is given, as
        every row is searched around 16 training rows (docs/derivations/shared.md).

        Parameters
        ----------
        views : sequence or mapping
            As in :meth:`transform`. Where the target is among them, its observed entries count too,
            and the missing ones are predicted from all.
        target : str or int
            The view to predict: its name or its place.
        return_var : bool
            Also return the variance of each entry, that of the latents included.
        noise : bool
            Whether the variance holds the noise and the jitter.

        Returns
        -------
        mean : array (N, D_target), or (mean, variance)

        Raises
        ------
        ValueError
            If ``target`` is no view, or as :meth:`transform`.
        """
        check_is_fitted(self)
        v = place(target, self.view_names_)
        Y, like = self._wide(views)
        mean, var = self._averaged(v, self._mixture(Y), noise)
        return (to_like(mean, like), to_like(var, like)) if return_var else to_like(mean, like)

    def score_samples(self, views: Any) -> Array:
        """ln p(row | training data) of each row, nats, in the data's own units, (N,).

        Of the entries of all views that are given, jointly; the latents are integrated out by
        Laplace's method at their mode. Without a latent prior there is no such integral, and the
        density at the mode is returned. Rows of the training data are treated as new ones.
        """
        check_is_fitted(self)
        Y, like = self._wide(views)
        prior = latent_prior(self.latent_prior)
        p, others, rows = self._asked(Y)
        Z, f = modes(p, prior, rows, others)
        density = -f if prior is None else covariances(p, prior, rows, Z, others)[1]
        return to_like(density - np.sum(~np.isnan(Y) * np.log(self.scale_), axis=1), like)

    def score(self, views: Any, y: Any = None) -> float:
        """Mean of :meth:`score_samples`: the held-out log-likelihood of a row, nats."""
        values = self.score_samples(views)
        return float(np.mean(backends.of(values).to_host(values)))

    def sample(
        self, n_samples: int = 1, random_state: Any = None
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Draw latents from their prior and rows of every view at them.

        Returns
        -------
        views : list of ndarray (n_samples, D_v)
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
        pairs = zip(*self.predict(latents, return_var=True), strict=True)
        return [m + np.sqrt(v) * rng.standard_normal(m.shape) for m, v in pairs], latents

    def save(self, path: str | PathLike[str]) -> None:
        """Write the fitted model to one ``.npz`` file; :func:`gplvm_xp.load` reads it back."""
        from gplvm_xp.io import save

        save(self, path)

    # -- inside ----------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        # The factors are rebuilt from the rest, so files don't hold n × n matrices.
        state = dict(super().__getstate__())
        state.pop("_posteriors", None)
        return state

    def _condition(self, b: Backend) -> tuple[Posterior, ...]:
        centred = self._split(self._centred(self.training_data_))
        noise = [a.item() for a in self.noise_variances_ + self.jitters_]
        parts = zip(self.kernels_, noise, centred, strict=True)
        return tuple(Posterior.of(b, k, s, self._host_embedding, Y) for k, s, Y in parts)

    def _post(self) -> tuple[Posterior, ...]:
        """The factors of each view: kept from the fit, rebuilt after loading or unpickling."""
        if getattr(self, "_posteriors", None) is None:
            b = backends.get(self.backend, self.embedding_, self.dtype)
            self._posteriors = self._condition(b)
        return self._posteriors

    def _split(self, wide: np.ndarray) -> list[np.ndarray]:
        """The columns of each view."""
        return np.split(wide, np.cumsum(self.n_columns_)[:-1], axis=-1)

    def _centred(self, Y: np.ndarray) -> np.ndarray:
        return np.asarray((Y - self.mean_) / self.scale_)

    def _wide(self, views: Any) -> tuple[np.ndarray, Array]:
        """All views of new rows side by side, NaN for those not given; and the first of them."""
        names = self.view_names_
        some = given(views, names)
        known = getattr(self, "feature_names_in_", None)
        labels = [None] * len(names) if known is None else self._split(known)
        columns = dict(zip(names, zip(self.n_columns_, labels, strict=True), strict=True))
        found = dict(zip(some, tables(some, reset=False, columns=columns), strict=True))
        rows = next(iter(found.values())).shape[0]
        parts = [found.get(name, np.full((rows, columns[name][0]), np.nan)) for name in names]
        return np.hstack(parts), first_array(some)

    def _asked(self, Y: np.ndarray) -> tuple[Posterior, list[Posterior], np.ndarray]:
        """Of a wide table: the first view with an entry, the others that have one, and their
        columns, centred."""
        parts = zip(self._post(), self._split(Y), self._split(self._centred(Y)), strict=True)
        some = [(p, own) for p, raw, own in parts if not np.isnan(raw).all()]
        if not some:
            some = [(self._post()[0], self._split(Y)[0])]
        first, *others = [p for p, _ in some]
        return first, others, np.hstack([own for _, own in some])

    def _embed(self, Y: np.ndarray) -> np.ndarray:
        """Latents of rows; those of the training data are known already."""
        where = known_rows(self.training_data_, Y)
        Z = np.asarray(self._host_embedding[where])
        new = where < 0
        if new.any():
            p, others, rows = self._asked(Y[new])
            Z[new] = modes(p, latent_prior(self.latent_prior), rows, others)[0]
        return Z

    def _covariance(self, Y: np.ndarray, Z: np.ndarray) -> np.ndarray:
        p, others, rows = self._asked(Y)
        return covariances(p, latent_prior(self.latent_prior), rows, Z, others)[0]

    def _mixture(self, Y: np.ndarray) -> Mixture:
        """Latents of the rows of a wide table, as a mixture around those of training rows."""
        p, others, rows = self._asked(Y)
        X = self._host_embedding
        n, q = X.shape
        width = X.std(axis=0) * (4.0 / (n * (q + 2.0))) ** (1.0 / (q + 4.0))
        return mixtures(p, rows, others, X, width, ANCHORS)

    def _latents(self, X: Array) -> np.ndarray:
        q = self._host_embedding.shape[1]
        host = backends.of(X).to_host(X) if backends.is_array(X) else np.asarray(X)
        if host.ndim != 2 or host.shape[1] != q:
            raise ValueError(
                f"latents have shape {host.shape}; expected (N, {q}): use transform to embed rows "
                "of the views first, or predict_view for one view from others"
            )
        Z = np.asarray(host, dtype=np.float64)
        if not np.all(np.isfinite(Z)):
            raise ValueError("latents contain NaN or infinity; give finite positions")
        return Z

    def _moments(self, v: int, Z: np.ndarray, noise: bool) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance (N, D_v) of view v at latents, in the data's own units."""
        p = self._post()[v]
        b = p.backend
        mean, var = np.empty((2, Z.shape[0], p.outputs))
        for part in p.batches(Z.shape[0]):
            m, s = p.moments(b.asarray(Z[part]))
            mean[part], var[part] = b.to_host(m), b.to_host(s)
        own = self.noise_variances_[v] + self.jitters_[v] if noise else 0.0
        scale = self.scales_[v]
        return mean * scale + self.means_[v], (var + own) * scale**2

    def _averaged(self, v: int, latents: Mixture, noise: bool) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`_moments`, over mixtures of latents: means, and the law of total variance.

        At the same places for all rows: the j-th of a set of normal places belongs to the part of
        the mixture where the cumulated weights pass (j + ½)/J.
        """
        K, N, q = latents.x.shape
        values, vectors = np.linalg.eigh(latents.covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]
        passed, rows = np.cumsum(latents.weight, axis=0), np.arange(N)
        nodes = quasi_monte_carlo(q, NODES, 0).nodes
        mean, var, square = np.zeros((3, N, self.n_columns_[v]))
        about: np.ndarray | None = None
        for j, node in enumerate(nodes):
            part = np.minimum(np.sum(passed < (j + 0.5) / NODES, axis=0), K - 1)
            m, s = self._moments(v, latents.x[part, rows] + root[part, rows] @ node, noise)
            about = m if about is None else about
            mean += (m - about) / NODES
            square += (m - about) ** 2 / NODES
            var += s / NODES
        return about + mean, var + np.maximum(square - mean**2, 0.0)


def _mean(p: Posterior, Z: np.ndarray) -> np.ndarray:
    """The mean of the scaled outputs that were observed, at latents."""
    b = p.backend
    at = b.asarray(Z)
    parts = [p.kernel.gram(p.theta, at, f.X) @ f.alpha for f in p.factors]
    return np.hstack([b.to_host(part) for part in parts]).astype(np.float64)


__all__ = ["FittedViews"]
