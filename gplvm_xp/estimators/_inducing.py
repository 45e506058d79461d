"""What every fitted inducing-point model can do: new rows, reconstruction, imputation, scores.

``class BayesianGPLVM(FittedInducing)`` and ``class SparseGPLVM(FittedInducing)`` write
``__init__``, ``fit``, ``fit_transform``, ``_restored`` and the ``_saved_*`` tables; everything else
is here. See :class:`FittedInducing` for the attributes that ``fit`` leaves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gplvm_xp import likelihoods
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.estimators._checks import latent_prior
from gplvm_xp.estimators._data import table, to_like
from gplvm_xp.estimators._geometry import FittedSurface
from gplvm_xp.estimators._rows import placed, spreads
from gplvm_xp.estimators._scales import linear_view
from gplvm_xp.geometry import Surface
from gplvm_xp.inducing import InducingPosterior
from gplvm_xp.priors import Gaussian, Prior

# Training latents at which the search for a new row's may begin: they cost a table of rows by them.
ANCHORS, COUNT_ANCHORS = 1000, 250


class FittedInducing(FittedSurface):
    """Methods on the fitted state that a subclass's ``fit`` leaves.

    n rows, D outputs, q latent dimensions, M inducing inputs, r groups of outputs; host arrays
    unless said:

    - parameters of the constructor: ``backend``, ``dtype``, and where latents are points
      ``latent_prior``, as the exact model's;
    - ``embedding_`` in the data's own library, and ``_host_embedding`` (n, q), its host copy;
    - ``_host_variance`` (n, q), variances of the latents, or None where they are points: then new
      rows get points too, the modes of their predictive density times ``latent_prior``;
    - ``inducing_inputs_`` (M, q), ``inducing_mean_`` (M, D), ``inducing_factor_`` (r, M, M), both
      whitened (E u_d = L m_d, cov u_d = L T T' L'), ``inducing_groups_`` (D,) integers;
    - ``kernel_`` with the learned values, and ``jitter_``, on the diagonal of k(Z, Z) beside it;
    - ``likelihood_``: None or a Gaussian for Gaussian noise of ``noise_variance_``, and rows are
      centred and scaled by ``mean_`` and ``scale_`` (D,). Or another Likelihood: rows go in as
      they are, ``mean_`` is the offset of the latent functions (zeros for none) and ``scale_`` is
      ones;
    - ``training_data_`` (n, D), NaN for missing; ``n_features_in_``.

    The posterior on a backend is kept in ``_posterior``, built when first asked for and never
    saved: a ``fit`` sets it to None, or to its own.
    """

    # -- using it --------------------------------------------------------------------------------

    def transform(self, X: Array, return_var: bool = False) -> Any:
        """Latents of new rows, all rows at once.

        Uncertain latents: the mean of the q(z) = N(mean, variance) that maximises the row's own
        lower bound of ln p(row | training data), with what was learned held. Points: the mode of
        the true predictive density and the latent prior. With an encoder, complete rows get the
        mean and the variance that it gives, in a small part of the time. A row that equals a
        training row gets that row's fitted latents. One that is only near it need not come near
        them: they maximise a density with the row itself among the training data, and a new row's
        latents do not. A model that was fitted to a Dask array does not keep its rows, so all are
        new to it. New rows in a Dask array are computed, and the answer is NumPy's.

        Parameters
        ----------
        X : array (N, D)
            NaN is missing; a row with nothing observed gets the prior.
        return_var : bool
            Also return the variance of each latent, (N, q): that of q(z), or for points the
            diagonal of Laplace's covariance.

        Returns
        -------
        Z : array (N, q), or (Z, variance)

        Raises
        ------
        ValueError
            If X has other columns than the training data, or is not what the likelihood takes.
        """
        check_is_fitted(self)
        Y = self._rows(X)
        if not return_var:
            return to_like(self._embed(Y)[0], X)
        Z, variance = self._spread(Y)
        return to_like(Z, X), to_like(variance, X)

    def impute(self, X: Array, return_var: bool = False) -> Any:
        """The rows with their missing entries filled by their means; observed ones are kept.

        The row's other entries place it among the latents, and the mean is over what is then
        uncertain: the latents (points have the variance of Laplace's method), the functions and the
        noise.

        Parameters
        ----------
        X : array (N, D)
            NaN is missing.
        return_var : bool
            Also return the variance of each filled entry as a new observation, 0 for those kept.

        Returns
        -------
        filled : array (N, D), or (filled, variance)
            In the data's own units.
        """
        check_is_fitted(self)
        Y = self._rows(X)
        mean, variance = self._at(*self._spread(Y), noise=True, exposure=self._exposures(Y))
        gone = np.isnan(Y)
        filled = to_like(np.where(gone, mean, Y), X)
        return (filled, to_like(np.where(gone, variance, 0.0), X)) if return_var else filled

    def score_samples(self, X: Array) -> Array:
        """ln p(row | training data) of each row, nats, in the data's own units, (N,).

        Uncertain latents: an average of p(row | z) p(z)/q(z) over nodes of the row's q(z), which
        is above the row's bound and below the true value in expectation (Burda, Grosse &
        Salakhutdinov 2016): the bound alone would count against a model that its q(z) is a
        factorised Gaussian. Points: latents are integrated out by Laplace's method at their mode;
        without a latent prior ln p(row | mode) is returned. Rows of the training data are treated
        as new ones.
        """
        check_is_fitted(self)
        Y = self._rows(X)
        density = self._placed(Y, density=True)[2]
        density = density - np.sum(~np.isnan(Y) * np.log(self.scale_), axis=1)
        return to_like(density, X)

    # -- for this family -------------------------------------------------------------------------

    def _exposures(self, Y: np.ndarray) -> np.ndarray | None:
        """Of rows of counts (N, D), (N,), or None where all rows are alike."""
        return None

    @property
    def _gaussian(self) -> bool:
        return self.likelihood_ is None or isinstance(self.likelihood_, likelihoods.Gaussian)

    def _condition(self, b: Backend) -> InducingPosterior:
        gaussian = self._gaussian
        return InducingPosterior.of(
            b,
            self.kernel_,
            self.inducing_inputs_,
            self.jitter_,
            self.inducing_mean_,
            self.inducing_factor_,
            self.inducing_groups_,
            self.noise_variance_ if gaussian else self.likelihood_,
            None if gaussian else self.mean_,
        )

    def _surface_of(self, posterior: InducingPosterior) -> Surface:
        return Surface.inducing(posterior)

    def _prior(self) -> Prior | None:
        return latent_prior(self.latent_prior) if self._host_variance is None else Gaussian()

    def _refuse_draws(self) -> None:
        if not self._gaussian:
            raise ValueError(
                f"rows with the likelihood {self.likelihood_!r} can't be drawn, only those with "
                "Gaussian noise; draw latents, and use predict for the means and variances there"
            )

    def _rows(self, X: Array) -> np.ndarray:
        """Rows of the user's table, checked."""
        Y = table(self, X, reset=False)
        if not self._gaussian:
            self.likelihood_.check(Y)
        return Y

    def _outputs(self, X: Array, noise: bool) -> tuple[np.ndarray, np.ndarray]:
        # Noise apart: for a likelihood that is the latent function itself, such as a log rate.
        latents = self._given(X)
        if latents is None:
            Y = self._rows(X)
            return self._at(*self._spread(Y), noise=noise, exposure=self._exposures(Y))
        return self._at(latents, None, noise=noise)

    def _at(
        self,
        Z: np.ndarray,
        variance: np.ndarray | None,
        *,
        noise: bool,
        exposure: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance (N, D) at latents, certain or not, in the data's own units."""
        p = self._post()
        b = p.backend
        mean, var = np.empty((2, Z.shape[0], self.mean_.size))
        for part in p.batches(Z.shape[0]):
            S = None if variance is None else b.asarray(variance[part])
            m, v = p.moments(b.asarray(Z[part]), S)
            if noise:
                own = None if exposure is None else b.asarray(exposure[part, None])
                m, v = p.observed(m, v, own)
            mean[part], var[part] = b.to_host(m), b.to_host(v)
        if not self._gaussian:
            return mean, var
        return mean * self.scale_ + self.mean_, var * self.scale_**2

    def _inputs(self, Y: np.ndarray) -> np.ndarray:
        """Rows in the data's own units, as an encoder takes them."""
        if self._gaussian:
            return self._centred(Y)
        return linear_view(self.likelihood_, Y, self._exposures(Y))

    def _embed(self, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Latents of rows and their variances; those of the training data are known already."""
        place = self._known(Y)
        Z = self._host_embedding[place]
        variance = None if self._host_variance is None else self._host_variance[place]
        new = place < 0
        whole = new & ~np.isnan(Y).any(axis=1)
        if self.encoder_ is not None and variance is not None and whole.any():
            both = self._encoded(self._inputs(Y[whole]))
            Z[whole], variance[whole] = both[:, : Z.shape[1]], np.exp(both[:, Z.shape[1] :])
            new = new & ~whole
        if new.any():
            Z[new], found, _ = self._placed(Y[new])
            if variance is not None:
                variance[new] = found
        return Z, variance

    def _spread(self, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`_embed`; points have the diagonal of Laplace's covariance."""
        Z, variance = self._embed(Y)
        if variance is None:
            variance = spreads(self._post(), self._prior(), self._centred(Y), Z)
        return Z, variance

    def _placed(
        self, Y: np.ndarray, *, density: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Latents of rows in the data's own units, their variances, and their densities."""
        gaussian = self._gaussian
        n = self._host_embedding.shape[0]
        most = min(n, ANCHORS if gaussian else COUNT_ANCHORS)
        anchors = self._host_embedding[np.linspace(0, n - 1, most).round().astype(np.int64)]
        begin = None if self._host_variance is None else self._host_variance.mean(axis=0)
        rows = self._centred(Y) if gaussian else Y
        return placed(
            self._post(), self._prior(), rows, anchors, begin,
            density=density, exposure=self._exposures(Y),
        )  # fmt: skip


__all__ = ["FittedInducing"]
