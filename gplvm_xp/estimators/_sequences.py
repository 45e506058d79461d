"""What a fitted model of sequences can do besides: go on, and say what lies between frames."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.estimators._data import to_like
from gplvm_xp.estimators._facts import row_facts
from gplvm_xp.estimators._fitted import FittedLatents
from gplvm_xp.geometry import Surface
from gplvm_xp.latents import RowFacts, StructuredPrior
from gplvm_xp.row_priors import OverSequences, OverTime


class FittedSequences(FittedLatents):
    """Methods on a fitted state with a latent prior over sequences: see :class:`gplvm_xp.GPLVM`."""

    latent_prior_: StructuredPrior | None
    sequences_: np.ndarray | None
    times_: np.ndarray | None

    def forecast(
        self,
        n_steps: int,
        sequence: int = -1,
        return_var: bool = False,
        n_samples: int | None = None,
        random_state: Any = None,
    ) -> Any:
        """The frames that follow a sequence, in the data's own units.

        Under ``Dynamics`` every latent is the mean of the step from the one before; under
        ``OverTime`` the curves of the sequence are extrapolated by its median time step. The data
        are the mean at these latents.

        Parameters
        ----------
        n_steps : int
            Frames.
        sequence : int
            Which sequence goes on, from 0; negative numbers count from the last.
        return_var : bool
            Also return the variance of each entry, (n_steps, D): noise, uncertainty of the map,
            and that of the latents through the slopes of the map (to first order).
        n_samples : int, optional
            Instead return draws of the frames, (n_samples, n_steps, D), noise of every kind
            included: their latents are trajectories, each step with noise of its own.
        random_state : int, RandomState or None
            Of the draws.

        Returns
        -------
        frames : array (n_steps, D), or (frames, variance), or array (n_samples, n_steps, D)

        Raises
        ------
        ValueError
            If the latent prior has no time in it, or a number is out of range.
        """
        check_is_fitted(self)
        prior, rows = self._over_sequences(), self._facts()
        _check_count("n_steps", n_steps)
        if n_samples is not None:
            _check_count("n_samples", n_samples)
        if return_var and n_samples is not None:
            raise ValueError(
                f"return_var=True and n_samples={n_samples} were given; expected one of them: take "
                "the variance of the draws, or drop n_samples"
            )
        k, X = _which(sequence, rows), self._host_embedding
        b = self._post().backend
        if n_samples is None:
            path = prior.ahead(b, rows, X, k, n_steps)
            return self._through(path.mean, path.covariance, return_var)
        rng = check_random_state(random_state)
        normals = rng.standard_normal((n_samples, n_steps, X.shape[1]))
        latents = b.to_host(prior.draws_ahead(b, rows, X, k, normals)).astype(np.float64)
        mean, variance = self._outputs(latents.reshape(-1, X.shape[1]), True)
        draws = mean + np.sqrt(variance) * rng.standard_normal(mean.shape)
        return to_like(draws.reshape(n_samples, n_steps, -1), self.embedding_)

    def latents_at(self, times: Any, sequence: int = -1, return_var: bool = False) -> Any:
        """Latents of a sequence at any times, by the curves of ``OverTime`` through its latents.

        Parameters
        ----------
        times : array (N,)
            In the units of the ``times`` of the fit, or in frames from 0 if there were none.
        sequence : int
            Which sequence, from 0; negative numbers count from the last.
        return_var : bool
            Also return the variance of the curves, (N,), equal for all latent dimensions.

        Returns
        -------
        Z : array (N, q), or (Z, variance)

        Raises
        ------
        ValueError
            If the latent prior is not ``OverTime``, or times are not finite numbers.
        """
        mean, variance, _ = self._curves(times, sequence)
        b, like = backend.of(mean), self.embedding_
        Z = to_like(b.to_host(mean).astype(np.float64), like)
        return (Z, to_like(b.to_host(variance).astype(np.float64), like)) if return_var else Z

    def predict_at(self, times: Any, sequence: int = -1, return_var: bool = False) -> Any:
        """The data of a sequence at any times: the mean at :meth:`latents_at`.

        Parameters
        ----------
        times, sequence
            As in :meth:`latents_at`.
        return_var : bool
            Also return the variance of each entry, (N, D), as in :meth:`forecast`.

        Returns
        -------
        frames : array (N, D), or (frames, variance)

        Raises
        ------
        ValueError
            As in :meth:`latents_at`.
        """
        mean, variance, prior = self._curves(times, sequence)
        wide = (variance + prior.noise_variance)[:, None, None]
        eye = backend.of(mean).eye(mean.shape[1])
        return self._through(mean, wide * eye[None, :, :], return_var)

    # -- parts -----------------------------------------------------------------------------------

    def _facts(self) -> RowFacts:
        n, D = self.training_data_.shape
        return RowFacts(n, self.sequences_, self.times_, outputs=D)

    def _check_sequences(self) -> None:
        """Refuse facts and a prior of a file that don't fit each other or the rows.

        Raises
        ------
        ValueError
        """
        prior, Y = self.latent_prior_, self.training_data_
        rows = row_facts(prior, Y, None, self.sequences_, self.times_)
        if isinstance(prior, OverSequences):
            prior.bind(backend.of(Y), rows, self._host_embedding)

    def _over_sequences(self) -> OverSequences:
        prior = self.latent_prior_
        if not isinstance(prior, OverSequences):
            raise ValueError(
                f"latent_prior={self.latent_prior!r} has no time in it, so that no frame follows "
                "another; fit with latent_prior=Dynamics() or OverTime() of gplvm_xp.row_priors"
            )
        return prior

    def _curves(self, times: Any, sequence: int) -> tuple[Array, Array, OverTime]:
        """Mean (N, q) and variance (N,) of the latents at times, and the prior."""
        check_is_fitted(self)
        prior = self.latent_prior_
        if not isinstance(prior, OverTime):
            raise ValueError(
                f"latent_prior={self.latent_prior!r} knows no time stamps, so that there is "
                "nothing between two frames; fit with latent_prior=OverTime() of "
                "gplvm_xp.row_priors"
            )
        given = backend.of(times).to_host(times) if backend.is_array(times) else np.asarray(times)
        if given.ndim != 1 or given.dtype.kind not in "iuf" or not np.all(np.isfinite(given)):
            raise ValueError(
                f"times has shape {given.shape} and type {given.dtype}; expected finite numbers in "
                "one row, (N,)"
            )
        rows = self._facts()
        b = self._post().backend
        k = _which(sequence, rows)
        return *prior.at(b, rows, self._host_embedding, k, given), prior

    def _through(self, X: Array, C: Array, return_var: bool) -> Any:
        """The data at uncertain latents X (N, q) of covariance C (N, q, q), by the map's slopes."""
        p = self._post()
        b = p.backend
        mean, variance = self._outputs(X, True)
        if not return_var:
            return to_like(mean, self.embedding_)
        J = Surface.exact(p).jacobian(X)
        moved = b.to_host(b.xp.sum((J @ C) * J, axis=2))
        total = variance + moved * self.scale_**2
        return to_like(mean, self.embedding_), to_like(total, self.embedding_)


def _which(sequence: int, rows: RowFacts) -> int:
    """The number of a sequence, counted from 0."""
    count = len(rows.edges) - 1
    whole = isinstance(sequence, Integral) and not isinstance(sequence, bool)
    if not whole or not -count <= sequence < count:
        raise ValueError(
            f"sequence={sequence!r} was given; expected an integer of {-count} to {count - 1}: the "
            f"model was fitted to {count} sequence(s)"
        )
    return sequence % count


def _check_count(name: str, count: Any) -> None:
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
        raise ValueError(f"{name}={count!r} was given; expected an integer of 1 or more")


__all__ = ["FittedSequences"]
