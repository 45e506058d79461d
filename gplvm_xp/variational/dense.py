"""Variational inference with a dense covariance: evidence, hyperparameter gradients, predictions.

The latent function at n inputs has the prior N(μ₀, K(θ)). The posterior is found by
:func:`gplvm_xp.variational.fixed_point`; at the optimum (and only there) the free energy's gradient
in the hyperparameters is its explicit derivative (the envelope theorem):

    ∂𝓕/∂K = ½ (W − WΣW − rrᵀ),  W = diag(p), p = s,

where W − WΣW = W^½ B_W⁻¹ W^½ for p ≥ 0, and −r = ν = Λ(μ − μ₀). Source: derivations/inference.md;
compare Rasmussen & Williams (2006), section 5.5.1, for Laplace's method.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.kernels import Kernel
from gplvm_xp.params import Block
from gplvm_xp.variational.engines import Covariance, Engine, Information
from gplvm_xp.variational.evidence import Evidence, by_name
from gplvm_xp.variational.observations import Observations
from gplvm_xp.variational.sites import SiteProgress, SiteResult


@dataclass(frozen=True, eq=False)
class DensePosterior:
    """The posterior of a function with a dense prior, at any inputs.

    Attributes
    ----------
    kernel : Kernel
    theta : array (p,)
        Its parameters.
    X : array (n, q)
        Training inputs.
    mean : array (...)
        μ₀.
    nu : array (..., n)
        Weights of the mean: μ* = μ₀ + k*ᵀν.
    inner : array (..., n, n)
        W − WΣW: the variance is k** − k*ᵀ(W − WΣW)k*.
    root : array (..., n, n) or None
        A with AᵀA = ``inner``, where no site is negative: |A k*|² cancels less.
    sites : pair of arrays (..., n)
        p and y̌: all that has to be kept to rebuild the rest.
    """

    kernel: Kernel
    theta: Array
    X: Array
    mean: Array
    nu: Array
    inner: Array
    root: Array | None
    sites: tuple[Array, Array]

    def moments(self, Z: Array) -> tuple[Array, Array]:
        """Mean and variance of the function at Z (m, q), (..., m) each; O(n² m)."""
        xp = backend.of(Z).xp
        cross = self.kernel.gram(self.theta, self.X, Z)
        if self.root is None:
            known = xp.sum(cross * (self.inner @ cross), axis=-2)
        else:
            A = self.root @ cross
            known = xp.sum(A * A, axis=-2)
        v = self.kernel.diag(self.theta, Z) - known
        return self._mean(cross), xp.where(v < 0.0, 0.0, v)

    def joint(self, Z: Array) -> tuple[Array, Array]:
        """Mean (..., m) and covariance (..., m, m) of the function at Z."""
        xp = backend.of(Z).xp
        cross = self.kernel.gram(self.theta, self.X, Z)
        if self.root is None:
            known = xp.matrix_transpose(cross) @ (self.inner @ cross)
        else:
            A = self.root @ cross
            known = xp.matrix_transpose(A) @ A
        return self._mean(cross), self.kernel.gram(self.theta, Z) - known

    def _mean(self, cross: Array) -> Array:
        xp = backend.of(cross).xp
        return self.mean[..., None] + xp.squeeze(self.nu[..., None, :] @ cross, axis=-2)


class DenseEvidence(Evidence):
    """The optimal free energy of a function at n inputs; see :class:`Evidence`.

    Parameters
    ----------
    kernel : Kernel
        Structure and starting values.
    X : array (n, q)
        Inputs, on the device.
    data : Observations
        With y (..., n): leading axes are independent functions that share the hyperparameters.
    mean : float or ndarray (...)
        μ₀, a constant, or one for each function.
    fit_mean : bool
        Whether μ₀ is a parameter.
    jitter : float
        Added to K's diagonal, in the model.
    tol, max_steps, callback
        Of the inner search, see :func:`fixed_point`.

    Raises
    ------
    NotEnoughMemoryError
        If the n × n matrices do not fit, before they are allocated.
    """

    def __init__(
        self,
        kernel: Kernel,
        X: Array,
        data: Observations,
        *,
        mean: float | np.ndarray = 0.0,
        fit_mean: bool = False,
        jitter: float = 1e-8,
        tol: float = 1e-8,
        max_steps: int = 500,
        callback: Callable[[SiteProgress], bool | None] | None = None,
    ) -> None:
        kernel.check(X.shape[1])
        self.X, self.jitter = X, jitter
        b, n, functions = backend.of(X), X.shape[0], math.prod(data.y.shape[:-1])
        several = f" and {functions} functions" if functions > 1 else ""
        b.require_memory(
            (1 + 5 * functions) * b.itemsize * n * n,
            f"variational inference with a dense covariance of {n} points{several}",
            "use fewer points, or a grid model (LogGaussianCoxProcess)",
        )
        block = Block("mean", mean, "identity", fixed=not fit_mean)
        super().__init__(kernel, data, block, tol, max_steps, callback)

    def solve(self, x: Array) -> tuple[DensePosterior, SiteResult]:
        """The optimal posterior at hyperparameters x, starting from the last one."""
        values = self.named(x)
        engine, data = self._problem(values)
        result = self._search(engine, data)
        return self._posterior(values, engine, data, (result.p, result.y)), result

    def posterior(self, x: Array, sites: tuple[Array, Array]) -> DensePosterior:
        """The posterior of given sites at hyperparameters x, without a search: a fitted model from
        its file."""
        values = self.named(x)
        engine, data = self._problem(values)
        return self._posterior(values, engine, data, sites)

    def _problem(self, values: dict[str, Array]) -> tuple[Engine, Observations]:
        b = self.backend
        theta = self._flat(values, self.kernel.blocks())
        K = b.add_diagonal(self.kernel.gram(theta, self.X), b.scalar(self.jitter))
        data = self._likelihood(values)
        mean = values["mean"][..., None]
        if data.likelihood.log_concave:
            return Covariance(K, mean), data
        # Sites may be negative here. In whitened coordinates, f = μ₀ + L_K u, the precision
        # I + L_Kᵀ W L_K needs no inverse of K and shows where it stops being positive definite.
        shift = mean if data.offset is None else mean + data.offset
        return Covariance(K).whitened(), replace(data, offset=shift)

    def _gradients(
        self, values: dict[str, Array], engine: Engine, data: Observations, result: SiteResult
    ) -> dict[str, Array]:
        xp = self.backend.xp
        q = self._posterior(values, engine, data, (result.p, result.y))
        n = self.X.shape[0]
        G = 0.5 * (q.inner - q.nu[..., :, None] * q.nu[..., None, :])
        G = xp.sum(xp.reshape(G, (-1, n, n)), axis=0)
        gtheta = self.kernel.gram_pullback(q.theta, self.X)[1](G)[0]
        return by_name(self.kernel.blocks(), gtheta) | {
            "mean": -xp.sum(q.nu, axis=-1 if self.mean.value.ndim else None)
        }

    def _posterior(
        self,
        values: dict[str, Array],
        engine: Engine,
        data: Observations,
        sites: tuple[Array, Array],
    ) -> DensePosterior:
        b = self.backend
        xp = b.xp
        theta = self._flat(values, self.kernel.blocks())
        mean = values["mean"]
        eye = b.eye(self.X.shape[0])
        if isinstance(engine, Covariance):
            p, scale, L, _ = engine.factor(sites[0])
            root = b.solve_factor(L, scale[..., :, None] * eye)
            nu = engine.weights(p, sites[1], scale, L)
            inner = xp.matrix_transpose(root) @ root
        else:
            assert isinstance(engine, Information)
            p, root = sites[0], None
            q = engine.condition(p, sites[1])
            B = engine.B.matrix(self.X)
            # Λ B = B⁻ᵀ: as −r it would multiply what is left of the residuals by p K.
            nu = xp.squeeze(b.solve_factor(B, q.mu[..., None], trans=True), axis=-1)
            Sigma = B @ engine.covariance(p)[0] @ xp.matrix_transpose(B)
            inner = p[..., :, None] * eye - p[..., :, None] * Sigma * p[..., None, :]
        return DensePosterior(self.kernel, theta, self.X, mean, nu, inner, root, sites)


__all__ = ["DenseEvidence", "DensePosterior"]
