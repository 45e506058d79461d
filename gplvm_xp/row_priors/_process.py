"""Columns that share one Gaussian process: their density with its pullback, and predictions.

With K = k(A, A; θ) + s I, A (m, d) the inputs and T (m, r) the columns,

* ln p = −½ m r ln 2π − ½ r ln|K| − ½ tr(K⁻¹ T Tᵀ), α = K⁻¹ T;
* G = ∂ ln p/∂K = ½ (α αᵀ − r K⁻¹), which the kernel pulls back to θ and A; ∂/∂s = tr G;
* ∂ ln p/∂T = −α.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.errors import NotPositiveDefiniteError
from gplvm_xp.kernels import Kernel
from gplvm_xp.params import Block, Layout


def columns_log_density(
    kernel: Kernel, theta: Array, noise: Array, A: Array, T: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """ln p of the columns T (m, r) at inputs A (m, d), and its gradients.

    Returns
    -------
    value : 0-d array
        Nats, all constants; NaN where K is not positive definite.
    gtheta, gnoise, gA, gT : arrays
        Of the shapes of theta, noise, A and T. O(m³ + m² (d + r)) work, one m × m matrix.
    """
    b = backend.of(A)
    xp = b.xp
    m, r = T.shape
    K = kernel.fill_lower(theta, A, b.empty((m, m)))
    L, ok = b.cholesky(b.add_diagonal(K, noise))
    alpha = b.cho_solve(L, T)
    value = -r * xp.sum(xp.log(b.diagonal(L))) - 0.5 * xp.sum(T * alpha)
    value = xp.where(ok, value - 0.5 * m * r * math.log(2.0 * math.pi), b.scalar(math.nan))
    G = b.rank_update(b.inverse_from_cholesky(L), alpha, 0.5, -0.5 * r)
    del K, L
    gnoise = xp.sum(b.diagonal(G))
    gtheta, gA = kernel.symmetric_pullback(theta, A, G)
    return value, gtheta, gnoise, gA, -alpha


# -- parameters by name ----------------------------------------------------------------------------


def process_blocks(
    name: str, kernel: Kernel, noise: float, fixed: tuple[str, ...]
) -> tuple[Block, ...]:
    """The blocks of a kernel and a noise variance, ``name`` before their own names.

    Raises
    ------
    ValueError
        If ``fixed`` names something else than "noise", or the noise is not positive.
    """
    unknown = sorted(set(fixed) - {"noise"})
    if isinstance(fixed, str) or unknown:
        raise ValueError(
            f"fixed={fixed!r} was given; expected ('noise',) or (): parameters of the kernel are "
            "held by its own fixed"
        )
    return (
        *(replace(block, name=f"{name}.{block.name}") for block in kernel.blocks()),
        Block(f"{name}.noise", noise, fixed="noise" in fixed),
    )


def theta_of(b: Backend, blocks: tuple[Block, ...], values: Mapping[str, Any]) -> Array:
    """theta (p,) from the values of all blocks but the noise, the last."""
    return b.xp.concat([b.xp.reshape(values[k.name], (k.size,)) for k in blocks[:-1]])


def named(blocks: tuple[Block, ...], gtheta: Array, gnoise: Array) -> dict[str, Array]:
    """Gradients by name, in the shapes of the blocks."""
    xp = backend.of(gtheta).xp
    where = Layout(blocks).slices()
    out = {k.name: xp.reshape(gtheta[where[k.name]], k.value.shape) for k in blocks[:-1]}
    return {**out, blocks[-1].name: gnoise}


# -- prediction ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """The posterior of such columns, for any inputs.

    Attributes
    ----------
    kernel : Kernel
        With the values in use.
    theta : array (p,)
    noise : float
        s.
    inputs : array (m, d)
    alpha : array (m, r)
    factor : array (m, m)
        L of K, the lower triangle.
    """

    kernel: Kernel
    theta: Array
    noise: float
    inputs: Array
    alpha: Array
    factor: Array

    @classmethod
    def of(cls, b: Backend, kernel: Kernel, noise: float, A: np.ndarray, T: np.ndarray) -> Process:
        """Condition on columns T (m, r) at inputs A (m, d).

        Raises
        ------
        NotPositiveDefiniteError
            If K has no Cholesky factor.
        """
        theta, inputs = b.asarray(kernel.theta()), b.asarray(A)
        m = A.shape[0]
        K = kernel.fill_lower(theta, inputs, b.empty((m, m)))
        L, ok = b.cholesky(b.add_diagonal(K, b.scalar(noise)))
        if not b.to_host(ok).item():
            raise NotPositiveDefiniteError(
                f"the latent prior's covariance of {m} frames with a noise variance of "
                f"{noise:.3g} has no Cholesky factor; use a larger noise_variance of the prior"
            )
        return cls(kernel, theta, noise, inputs, b.cho_solve(L, b.asarray(T)), L)

    def moments(self, x: Array) -> tuple[Array, Array]:
        """Mean (N, r) and variance (N,) of the noiseless columns at x (N, d)."""
        b = backend.of(x)
        Kx = self.kernel.gram(self.theta, self.inputs, x)
        half = b.solve_triangular(self.factor, Kx)
        variance = self.kernel.diag(self.theta, x) - b.xp.sum(half * half, axis=0)
        positive = b.xp.where(variance > 0.0, variance, 0.0)
        return b.xp.matrix_transpose(Kx) @ self.alpha, positive

    def covariance(self, x: Array) -> Array:
        """Covariance (N, N) of one noiseless column between the inputs x (N, d)."""
        b = backend.of(x)
        half = b.solve_triangular(self.factor, self.kernel.gram(self.theta, self.inputs, x))
        return self.kernel.gram(self.theta, x) - b.xp.matrix_transpose(half) @ half

    def slopes(self, x: Array) -> Array:
        """Derivatives of the mean, (N, r, d): column, then input dimension. O(N m d) memory."""
        xp = backend.of(x).xp
        T = self.kernel.input_jacobian(self.theta, x, self.inputs)
        return xp.matrix_transpose(self.alpha)[None, :, :] @ T


__all__ = ["Process", "columns_log_density", "named", "process_blocks", "theta_of"]
