"""Geometry of a fitted model of latents whose posterior has slopes."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gplvm_xp import backend as backends
from gplvm_xp import geometry
from gplvm_xp._typing import Array
from gplvm_xp.estimators._data import to_like
from gplvm_xp.estimators._embedding import FittedEmbedding
from gplvm_xp.geometry import Geodesic, Surface, log_volume


class FittedSurface(FittedEmbedding):
    """Slopes, metric and shortest curves of the noiseless outputs over the latents.

    Slopes are in each column's own units. Metric and lengths add columns up, and are in the units
    in which the fit saw them: the data's, or standard deviations of each column with
    ``scale=True``. With a likelihood other than Gaussian noise the outputs are the latent
    functions, such as log rates. Latents are taken as certain.
    """

    @abstractmethod
    def _surface_of(self, posterior: Any) -> Surface:
        """The surface of what :meth:`_condition` gives."""

    def jacobian(self, Z: Array, return_cov: bool = False) -> Any:
        """Slopes of the outputs over the latents: their mean (and covariance) at Z.

        Parameters
        ----------
        Z : array (N, q)
            Latents.
        return_cov : bool
            Also return the covariance of the q slopes of each output, (N, D, q, q).

        Returns
        -------
        mean : array (N, D, q), or (mean, covariance)
            Units of each column per unit of the latents.

        Raises
        ------
        ValueError
            If Z has not q columns, or is not finite.
        NotImplementedError
            If a covariance is asked of a kernel without second derivatives.
        """
        latents, surface = self._latents(Z), self._surface()
        b = surface.backend
        at = b.asarray(latents)
        mean = to_like(b.to_host(surface.jacobian(at)) * self.scale_[:, None], Z)
        if not return_cov:
            return mean
        groups = b.to_host(surface.jacobian_covariance(at))
        covariance = groups[:, surface.which] * self.scale_[:, None, None] ** 2
        return mean, to_like(covariance, Z)

    def metric_tensor(self, Z: Array) -> Array:
        """The expected metric G = E[JᵀJ] at latents Z (N, q), (N, q, q), J slopes of all outputs.

        A step dz of the latents moves the outputs by √(dzᵀ G dz), root mean square: by the mean
        slopes, and by what is uncertain of them, so that places without data are far from
        everything (Tosi, Hauberg, Vellido & Lawrence, UAI 2014). O(N n² q) for n training rows, or
        inducing inputs.

        Raises
        ------
        ValueError
            If Z has not q columns, or is not finite.
        NotImplementedError
            If the kernel has no second derivatives.
        """
        return to_like(self._metric(Z), Z)

    def magnification(self, Z: Array, log: bool = False) -> Array:
        """The magnification factor √|G| at latents Z (N, q), (N,), or its natural logarithm.

        How much volume of the data a unit of volume of the latents is mapped to, with the
        uncertainty of the slopes: large where the data change fast, or where nothing is known.

        Raises
        ------
        ValueError
            If Z has not q columns, or is not finite.
        NotImplementedError
            If the kernel has no second derivatives.
        """
        volume = log_volume(self._metric(Z))
        return to_like(volume if log else np.exp(volume), Z)

    def geodesic(
        self,
        start: Array,
        end: Array,
        n_points: int = 50,
        *,
        tol: float = 1e-3,
        max_nodes: int = 500,
    ) -> Geodesic:
        """The shortest curve between two latents under the metric, that is found.

        Equal steps of it move the data equally. A boundary value problem is solved from the
        straight line, or from the shortest path through neighbouring training latents. That takes
        small differences, so it is done in float64 whatever the model's dtype. Where the solver
        does not converge the best curve so far is returned, with ``converged`` false.

        Parameters
        ----------
        start, end : array (q,)
            Latents, such as rows of ``embedding_``.
        n_points : int
            Points of the path, ends included.
        tol, max_nodes : float, int
            Of SciPy's ``solve_bvp``.

        Returns
        -------
        Geodesic
            ``path`` (n_points, q) in the container of ``start``, ``length``, ``energy``,
            ``converged`` and ``message``.

        Raises
        ------
        ValueError
            If an end is not (q,) and finite, or ``n_points`` is below 2.
        NotImplementedError
            If the kernel has no second derivatives.
        """
        check_is_fitted(self)
        found = geometry.geodesic(
            self._surface(double=True),
            self._end("start", start),
            self._end("end", end),
            self._host_embedding,
            n_points=n_points,
            tol=tol,
            max_nodes=max_nodes,
        )
        return dataclasses.replace(found, path=to_like(found.path, start))

    def curve_length(self, path: Array) -> float:
        """Length of the broken line through latents (T, q).

        Raises
        ------
        ValueError
            If the path has not q columns, or is not finite.
        """
        return geometry.curve_length(self._surface(), self._latents(path))

    def _latents(self, Z: Array) -> np.ndarray:
        check_is_fitted(self)
        latents = self._given(Z)
        if latents is None:
            q = self._host_embedding.shape[1]
            raise ValueError(f"Z has shape {np.shape(Z)}; expected latents (N, {q})")
        return latents

    def _end(self, name: str, z: Array) -> np.ndarray:
        q = self._host_embedding.shape[1]
        if np.shape(z) != (q,):
            raise ValueError(
                f"{name} has shape {np.shape(z)}; expected one latent ({q},), such as a row of "
                "embedding_"
            )
        return np.asarray(self._latents(z[None, :] if backends.is_array(z) else [z])[0])

    def _metric(self, Z: Array) -> np.ndarray:
        latents, surface = self._latents(Z), self._surface()
        b = surface.backend
        return b.to_host(surface.metric(b.asarray(latents)))

    def _surface(self, double: bool = False) -> Surface:
        """The surface of the kept posterior; ``double`` asks for one in float64."""
        posterior = self._post()
        if double and posterior.backend.itemsize < 8:
            b = backends.get(self.backend, self.embedding_, "float64")
            posterior = self._condition(b)
        return self._surface_of(posterior)


__all__ = ["FittedSurface"]
