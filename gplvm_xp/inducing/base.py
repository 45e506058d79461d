"""The posterior of a model with inducing inputs, and its predictions.

With L Lᵀ = k(Z, Z) + jitter I and u_d = L w_d, every such model ends as w_d ~ N(m_d, T_k T_kᵀ), k
the group of output d, whoever fitted it (Titsias 2009; Titsias & Lawrence 2010). At a certain
input, with a = L⁻¹ k(Z, x), the noiseless output d is Gaussian with

* mean aᵀ m_d, variance k** − |a|² + |T_kᵀ a|².

At x ~ N(μ, diag S) its first two moments are exact by psi statistics, with v_d = L⁻ᵀ m_d and
Q_k = L⁻ᵀ (T_k T_kᵀ − I) L⁻¹ (Titsias & Lawrence 2010, section 4;
derivations/new_rows_inducing.md):

* mean Ψ1 v_d, variance ψ0 + ⟨Q_k, Ψ2⟩ + v_dᵀ Ψ2 v_d − (Ψ1 v_d)².
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.backend.parts import chunks
from gplvm_xp.errors import NotPositiveDefiniteError
from gplvm_xp.kernels import Kernel
from gplvm_xp.likelihoods import Gaussian, Likelihood

# What all arrays of a batch of rows may take, and what the largest temporary of a chunk may.
BATCH_BYTES, CHUNK_BYTES = 2**28, 2**24
# More rows at once make their separate Ψ2 dearer than the exponentials in them.
_SEPARATE = 32

MomentsPullback = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class InducingPosterior:
    """D Gaussian processes given inducing variables; made by :meth:`of`.

    Attributes
    ----------
    kernel : Kernel
    theta : array (p,)
    Z : array (M, q)
        Inducing inputs.
    inverse : array (M, M)
        L⁻¹, lower.
    mean : array (M, D)
        m_d, whitened.
    factor : array (r, M, M)
        T_k.
    weights : array (M, D)
        v_d = L⁻ᵀ m_d.
    excess : array (r, M, M)
        Q_k = L⁻ᵀ (T_k T_kᵀ − I) L⁻¹, symmetric.
    member : array (D, r)
        1 where output d is of group k.
    likelihood : Likelihood
        Of the data given the outputs.
    offset : array (D,)
        Added to the mean of every output.
    """

    kernel: Kernel
    theta: Array
    Z: Array
    inverse: Array
    mean: Array
    factor: Array
    weights: Array
    excess: Array
    member: Array
    likelihood: Likelihood
    offset: Array

    @classmethod
    def of(
        cls,
        b: Backend,
        kernel: Kernel,
        Z: np.ndarray,
        jitter: float,
        mean: np.ndarray,
        factor: np.ndarray,
        which: np.ndarray,
        noise: float | Likelihood,
        offset: np.ndarray | None = None,
    ) -> InducingPosterior:
        """Take host arrays to the backend and factorise k(Z, Z).

        Parameters
        ----------
        b : Backend
        kernel : Kernel
            With the values to use.
        Z : ndarray (M, q)
        jitter : float
            On the diagonal of k(Z, Z).
        mean : ndarray (M, D)
            Whitened.
        factor : ndarray (r, M, M)
            Whitened.
        which : integer ndarray (D,)
            Group of each output, 0 to r − 1.
        noise : float or Likelihood
            Noise variance, or another likelihood.
        offset : ndarray (D,), optional

        Raises
        ------
        NotPositiveDefiniteError
            If k(Z, Z) + jitter I has no Cholesky factor.
        ValueError
            If the noise variance is not positive.
        """
        likelihood = noise if isinstance(noise, Likelihood) else Gaussian(noise)
        xp = b.xp
        theta, place = b.asarray(kernel.theta()), b.asarray(Z)
        K = b.complete(b.add_diagonal(kernel.gram(theta, place), b.scalar(jitter)))
        L, ok = b.factor(K)
        if not b.to_host(ok).item():
            raise NotPositiveDefiniteError(
                f"the covariance of {Z.shape[0]} inducing inputs with a jitter of {jitter:.3g} has "
                "no Cholesky factor; use fewer or more distant inducing inputs, or a larger jitter"
            )
        inverse = b.inverse_factor(L)
        back = xp.matrix_transpose(inverse)
        m, T = b.asarray(mean), b.asarray(factor)
        inner = T @ xp.matrix_transpose(T) - b.eye(Z.shape[0])
        excess = back @ inner @ inverse
        member = np.zeros((mean.shape[1], factor.shape[0]))
        member[np.arange(mean.shape[1]), which] = 1.0
        return cls(
            kernel,
            theta,
            place,
            inverse,
            m,
            T,
            back @ m,
            0.5 * (excess + xp.matrix_transpose(excess)),
            b.asarray(member),
            likelihood,
            b.zeros((mean.shape[1],)) if offset is None else b.asarray(offset),
        )

    @property
    def backend(self) -> Backend:
        """Where the arrays are."""
        return backend.of(self.theta)

    @property
    def noise(self) -> float | None:
        """Variance of Gaussian noise; None for another likelihood."""
        return self.likelihood.variance if isinstance(self.likelihood, Gaussian) else None

    def batches(self, n: int, width: int = 0) -> list[slice]:
        """Ranges of n rows whose arrays, of ``width`` numbers a row or more, fit the budget."""
        (M, q), D = self.Z.shape, self.mean.shape[1]
        most = max(width, 4 * M, 4 * D, 8 * q * q)
        return chunks(n, BATCH_BYTES // (4 * self.backend.itemsize * most))

    def chunks(self, n: int, width: int) -> list[slice]:
        """Ranges of n rows with ``width`` numbers each in the largest temporary."""
        return chunks(n, CHUNK_BYTES // (self.backend.itemsize * width))

    # -- the noiseless outputs -------------------------------------------------------------------

    def moments(self, X: Array, S: Array | None = None) -> tuple[Array, Array]:
        """Mean and variance of the noiseless outputs at X (N, q): two arrays (N, D).

        With S (N, q) the inputs are uncertain, x_n ~ N(X_n, diag S_n), and the moments are over
        both: exact, though the output is no longer Gaussian. O(N M (M + D)), and with S O(N M² q)
        besides.
        """
        if S is None:
            mean, var = self._certain(X)[:2]
        else:
            b = self.backend
            M, D = self.mean.shape
            width = max(M * M, M * D, CHUNK_BYTES // (_SEPARATE * b.itemsize))
            parts = self.chunks(X.shape[0], width)
            done = [self._uncertain(X[part, :], S[part, :]) for part in parts]
            mean, var = (b.xp.concat(list(a)) for a in zip(*done, strict=True))
        xp = self.backend.xp
        return mean + self.offset, xp.where(var > 0.0, var, 0.0)

    def moments_pullback(self, X: Array) -> tuple[Array, Array, MomentsPullback]:
        """:meth:`moments` at certain X, and the map of cotangents (N, D) and (N, D) to gX (N, q).

        With gm, gv of the means and variances (those of a group summed: gv_k),
        gK = gm vᵀ + 2 Σ_k gv_k K Q_k and ∂/∂k** = Σ_k gv_k.
        """
        xp = self.backend.xp
        mean, var, A, pull, diag_pull = self._certain(X)
        inside = xp.astype(var > 0.0, var.dtype)

        def pullback(gm: Array, gv: Array) -> Array:
            groups = (inside * gv) @ self.member
            gA = gm @ xp.matrix_transpose(self.mean)
            for k in range(self.factor.shape[0]):
                T = self.factor[k, ...]
                change = (A @ T) @ xp.matrix_transpose(T) - A
                gA = gA + 2.0 * groups[:, k][:, None] * change
            return pull(gA @ self.inverse)[1] + diag_pull(xp.sum(groups, axis=1))[1]

        return mean + self.offset, inside * var, pullback

    def _certain(self, X: Array) -> tuple[Array, ...]:
        xp = self.backend.xp
        K, pull = self.kernel.gram_pullback(self.theta, X, self.Z)
        own, diag_pull = self.kernel.diag_pullback(self.theta, X)
        A = K @ xp.matrix_transpose(self.inverse)
        rest = own - xp.sum(A * A, axis=1)
        groups = [
            rest + xp.sum((A @ self.factor[k, ...]) ** 2, axis=1)
            for k in range(self.factor.shape[0])
        ]
        var = xp.stack(groups, axis=1) @ xp.matrix_transpose(self.member)
        return A @ self.mean, var, A, pull, diag_pull

    def _uncertain(self, mu: Array, S: Array) -> tuple[Array, Array]:
        """Moments of a chunk, whose Ψ2 are made row by row."""
        b, xp = self.backend, self.backend.xp
        n, M, r = mu.shape[0], self.Z.shape[0], self.factor.shape[0]
        s = self.kernel.psi().forward(self.theta, mu, S, self.Z, b.eye(n))
        mean = s.psi1 @ self.weights
        square = xp.sum(self.weights * (s.psi2 @ self.weights), axis=1)
        flat = xp.reshape(s.psi2, (n, M * M))
        rest = flat @ xp.matrix_transpose(xp.reshape(self.excess, (r, M * M)))
        var = (s.psi0[:, None] + rest) @ xp.matrix_transpose(self.member)
        return mean, var + (square - mean * mean)

    # -- the data --------------------------------------------------------------------------------

    def observed(
        self, mean: Array, var: Array, exposure: Array | None = None
    ) -> tuple[Array, Array]:
        """Mean and variance of the data, given those of the noiseless outputs, each (N, D).

        Exact for Gaussian noise; another likelihood takes the output as Gaussian.
        """
        return self.likelihood.predict(mean, var, None, exposure)

    def log_density(
        self, Y: Array, mean: Array, var: Array, exposure: Array | None = None
    ) -> Array:
        """ln p of every entry of Y (N, D) given the moments of the noiseless outputs, nats."""
        return self.likelihood.log_predictive(Y, mean, var, None, exposure)


__all__ = ["BATCH_BYTES", "CHUNK_BYTES", "InducingPosterior"]
