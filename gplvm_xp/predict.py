"""What a fitted exact model says about other points: prediction, new rows, leaving one out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.errors import NotPositiveDefiniteError
from gplvm_xp.kernels import Kernel
from gplvm_xp.optim.modes import best_of, hessians, laplace, newton_step
from gplvm_xp.priors import Prior

# Rows of a batch times starts times training rows: what each temporary of a batch may have.
_BATCH_BYTES = 2**27
# A row's latents are searched from so many places, as its posterior may have several modes.
STARTS = 3


@dataclass(frozen=True)
class Factor:
    """One group of outputs that share their observed rows: K⁻¹ and α = K⁻¹ Y.

    Attributes
    ----------
    columns : ndarray (c,)
        Host indices of the outputs.
    rows : ndarray (r,)
        Host indices of the observed rows.
    X : array (r, q)
    alpha : array (r, c)
    inverse : array (r, r)
        Both triangles.
    log_det_half : 0-d array
        Σ ln L_ii.
    Y : array (r, c)
    """

    columns: np.ndarray
    rows: np.ndarray
    X: Array
    alpha: Array
    inverse: Array
    log_det_half: Array
    Y: Array


@dataclass(frozen=True)
class Posterior:
    """The Gaussian process of every output given the training rows and their latents.

    Attributes
    ----------
    kernel : Kernel
    theta : array (p,)
    noise : float
        σ² + jitter.
    factors : tuple of Factor
    outputs : int
        D.
    """

    kernel: Kernel
    theta: Array
    noise: float
    factors: tuple[Factor, ...]
    outputs: int

    @classmethod
    def of(
        cls, b: Backend, kernel: Kernel, noise: float, X: np.ndarray, Y: np.ndarray
    ) -> Posterior:
        """Condition on a centred table.

        Parameters
        ----------
        kernel : Kernel
            With the values to use.
        noise : float
            σ² + jitter, squared units of Y.
        X : ndarray (n, q)
        Y : ndarray (n, D)
            NaN is missing; outputs of equal pattern share a factor (n² memory each).

        Raises
        ------
        NotPositiveDefiniteError
            If a covariance has no Cholesky factor.
        """
        theta, device_x = b.asarray(kernel.theta()), b.asarray(X)
        seen = ~np.isnan(Y)
        patterns, which = np.unique(seen, axis=1, return_inverse=True)
        which = np.ravel(which)
        cls.require_memory(b, Y)
        factors = []
        for k in range(patterns.shape[1]):
            rows = np.flatnonzero(patterns[:, k])
            if rows.size == 0:
                continue
            columns = np.flatnonzero(which == k)
            part = device_x if rows.size == X.shape[0] else b.rows(device_x, rows)
            K = kernel.fill_lower(theta, part, b.empty((rows.size, rows.size)))
            L, ok = b.cholesky(b.add_diagonal(K, b.scalar(noise)))
            if not b.to_host(ok).item():
                raise NotPositiveDefiniteError(
                    f"the covariance of {rows.size} rows with a noise variance of {noise:.3g} has "
                    "no Cholesky factor; use a larger jitter or noise_variance"
                )
            values = b.asarray(np.ascontiguousarray(Y[np.ix_(rows, columns)]))
            alpha = b.cho_solve(L, values)
            half = b.xp.sum(b.xp.log(b.diagonal(L)))
            inverse = b.complete(b.inverse_from_cholesky(L))
            factors.append(Factor(columns, rows, part, alpha, inverse, half, values))
        return cls(kernel, theta, noise, tuple(factors), Y.shape[1])

    @staticmethod
    def require_memory(b: Backend, Y: np.ndarray) -> None:
        """Refuse a table (n, D), NaN for missing, whose factors will not fit.

        Raises
        ------
        NotEnoughMemoryError
            If the n² numbers of each missing-data pattern are more than there is memory for.
        """
        patterns = np.unique(~np.isnan(Y), axis=1)
        b.require_memory(
            sum(b.itemsize * int(c) ** 2 for c in patterns.sum(axis=0)),
            f"the posterior of {Y.shape[0]} rows with {patterns.shape[1]} missing-data pattern(s)",
            "use fewer rows or patterns, dtype='float32' (half of it), or a machine with more "
            "memory",
        )

    @property
    def backend(self) -> Backend:
        """Where the factors are."""
        return backend.of(self.theta)

    def log_likelihood(self) -> Array:
        """ln p(Y | X), all constants, 0-d."""
        b = self.backend
        total = b.scalar(0.0)
        for f in self.factors:
            n, c = f.alpha.shape
            total = total - c * f.log_det_half - 0.5 * b.xp.sum(f.Y * f.alpha)
            total = total - 0.5 * n * c * math.log(2.0 * math.pi)
        return total

    def batches(self, n: int) -> list[slice]:
        """Ranges of n new rows whose temporaries stay within the budget."""
        most = max(f.X.shape[0] for f in self.factors)
        step = max(1, _BATCH_BYTES // (STARTS * self.backend.itemsize * most))
        return [slice(i, min(i + step, n)) for i in range(0, n, step)]

    def moments(self, X: Array) -> tuple[Array, Array]:
        """Mean and variance of the noiseless outputs at X (N, q): two arrays (N, D).

        m = k*ᵀ α, v = k** − k*ᵀ K⁻¹ k* (Rasmussen & Williams 2006, eq. 2.25–2.26). O(N r²).
        """
        b, xp = self.backend, self.backend.xp
        means, variances, order = [], [], []
        prior = self.kernel.diag(self.theta, X)
        for f in self.factors:
            Ks = self.kernel.gram(self.theta, X, f.X)
            v = prior - xp.sum((Ks @ f.inverse) * Ks, axis=1)
            v = xp.where(v > 0.0, v, 0.0)
            means.append(Ks @ f.alpha)
            variances.append(v[:, None] + xp.zeros_like(means[-1]))
            order.append(f.columns)
        columns = np.concatenate(order)
        gone = np.setdiff1d(np.arange(self.outputs), columns)
        if gone.size:
            # Outputs never observed keep their prior.
            means.append(b.zeros((X.shape[0], gone.size)))
            variances.append(prior[:, None] + means[-1])
            columns = np.concatenate([columns, gone])
        back = xp.asarray(np.argsort(columns), device=b.device)
        return (
            xp.take(xp.concat(means, axis=1), back, axis=1),
            xp.take(xp.concat(variances, axis=1), back, axis=1),
        )

    def leave_one_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance (noise included) of every training entry given all the others.

        μ_i = y_i − α_i/(K⁻¹)_ii, v_i = 1/(K⁻¹)_ii (Rasmussen & Williams 2006, eq. 5.12): exact,
        at the fitted latents and parameters, without fitting again. Host arrays (n, D), NaN where
        nothing was observed. O(n²).
        """
        b = self.backend
        n = max(int(f.rows.max()) for f in self.factors) + 1
        mean, var = np.full((2, n, self.outputs), np.nan)
        for f in self.factors:
            d = b.diagonal(f.inverse)
            where = np.ix_(f.rows, f.columns)
            mean[where] = b.to_host(f.Y - f.alpha / d[:, None])
            var[where] = b.to_host(1.0 / d)[:, None]
        return mean, var


@dataclass(frozen=True)
class NewRows:
    """The latents of new rows: −ln p(y* | x*, training) − ln p(x*) for each row on its own.

    With m, s = v + σ² the true predictive moments at x*, over the observed outputs of the row,

    f = ½ Σ_d [(y_d − m_d)²/s + ln s + ln 2π] − ln p(x*);

    gradients: ∂f/∂m_d = (m_d − y_d)/s, ∂f/∂s = ½ Σ_d [1/s − (y_d − m_d)²/s²], pulled back by
    ∂f/∂K* = (∂f/∂m) αᵀ − 2 (∂f/∂s) K* K⁻¹ and ∂f/∂k** = ∂f/∂s. O(N r²) an evaluation.

    Attributes
    ----------
    posterior : Posterior
    prior : Prior or None
        Of the latents.
    Y : array (N, D)
        Centred; anything where ``seen`` is 0.
    seen : array (N, D)
        1 where observed, 0 where missing.
    others : tuple of NewRows
        The same rows in other tables, whose training rows have the same latents: their f is added.
        They have no prior and no others.
    """

    posterior: Posterior
    prior: Prior | None
    Y: Array
    seen: Array
    others: tuple[NewRows, ...] = ()

    # A trial may lie anywhere, and one that fails is a value: NumPy need not warn of it.
    @np.errstate(all="ignore")
    def value_and_grad(self, X: Array, index: Array) -> tuple[Array, Array]:
        """f (r,) and its gradient (r, q) of the rows ``index`` (r,) at X (r, q)."""
        p, b, xp = self.posterior, self.posterior.backend, self.posterior.backend.xp
        Y, seen = xp.take(self.Y, index, axis=0), xp.take(self.seen, index, axis=0)
        prior_variance, diag_pull = p.kernel.diag_pullback(p.theta, X)
        f = xp.zeros_like(prior_variance)
        g, gprior = xp.zeros_like(X), xp.zeros_like(prior_variance)
        for k in p.factors:
            columns = xp.asarray(k.columns, device=b.device)
            y, o = xp.take(Y, columns, axis=1), xp.take(seen, columns, axis=1)
            Ks, pull = p.kernel.gram_pullback(p.theta, X, k.X)
            KsP = Ks @ k.inverse
            v = prior_variance - xp.sum(KsP * Ks, axis=1)
            inside = xp.astype(v > 0.0, b.dtype)
            s = (inside * v + p.noise)[:, None]
            residual = o * (Ks @ k.alpha - y)
            count = xp.sum(o, axis=1)
            square = xp.sum(residual * residual, axis=1)
            s1 = s[:, 0]
            f = f + 0.5 * (square / s1 + count * (xp.log(s1) + math.log(2.0 * math.pi)))
            gs = 0.5 * inside * (count / s1 - square / (s1 * s1))
            gK = (residual / s) @ xp.matrix_transpose(k.alpha) - (2.0 * gs)[:, None] * KsP
            g, gprior = g + pull(gK)[1], gprior + gs
        g = g + diag_pull(gprior)[1]
        if self.prior is not None:
            density, slope = self.prior.log_densities(X)
            f, g = f - xp.sum(density, axis=1), g - slope
        for other in self.others:
            value, slope = other.value_and_grad(X, index)
            f, g = f + value, g + slope
        return f, g

    def starts(self, candidates: int = 10, keep: int = STARTS) -> list[Array]:
        """Latents of the training rows that explain each new row best: ``keep`` arrays (N, q).

        Of the training rows nearest in the outputs that both rows have, those of least f. With
        several tables, distances are in units of the noise of each.
        """
        b, xp = self.posterior.backend, self.posterior.backend.xp
        tables = (self, *self.others)
        units = [math.sqrt(t.posterior.noise) or 1.0 for t in tables] if self.others else [1.0]
        T, M, X = _training_table([t.posterior for t in tables], units)
        y = xp.concat([t.seen * t.Y / u for t, u in zip(tables, units, strict=True)], axis=1)
        o = xp.concat([t.seen for t in tables], axis=1)
        squares = (y * y) @ xp.matrix_transpose(M) + o @ xp.matrix_transpose(T * T)
        squares = squares - 2.0 * y @ xp.matrix_transpose(T)
        shared = o @ xp.matrix_transpose(M)
        far = xp.where(shared > 0.0, squares / xp.where(shared > 0.0, shared, 1.0), xp.inf)
        index = xp.arange(self.Y.shape[0], dtype=xp.int64, device=b.device)
        columns = xp.arange(far.shape[1], dtype=xp.int64, device=b.device)
        best_f: list[Array] = []
        best_x: list[Array] = []
        for _ in range(min(candidates, X.shape[0])):
            nearest = xp.argmin(far, axis=1)
            x = xp.take(X, nearest, axis=0)
            f = self.value_and_grad(x, index)[0]
            for k in range(len(best_f)):
                better = f < best_f[k]
                f, best_f[k] = xp.where(better, best_f[k], f), xp.where(better, f, best_f[k])
                better = better[:, None]
                x, best_x[k] = xp.where(better, best_x[k], x), xp.where(better, x, best_x[k])
            if len(best_f) < keep:
                best_f.append(f)
                best_x.append(x)
            far = xp.where(columns[None, :] == nearest[:, None], xp.inf, far)
        return best_x

    def solve(self, *, max_steps: int = 100) -> tuple[Array, Array, Array]:
        """The most probable latents (N, q), f there (N,), and which rows converged (N,) bool.

        BFGS from every start, the best end of each row, then two Newton steps. A row has converged
        where a further one promises less than 1e-6 nats (1e-2 in float32), a thousandth of a
        posterior deviation: f is steep, and rounding leaves its gradient too few digits to go by.
        """
        b = self.posterior.backend
        end = best_of(
            self.value_and_grad,
            self.starts(),
            max_steps=max_steps,
            # Below this rounding may rule; the Newton steps do the rest.
            gtol=1e-3,
            first_step=self._stride(),
        )
        x, f, promise = end.x, end.value, end.value
        for _ in range(2):
            x, f, promise = newton_step(self.value_and_grad, x, f)
        return x, f, promise <= (1e-6 if b.itemsize == 8 else 1e-2)

    def rough(self, *, candidates: int = 3, max_steps: int = 15) -> Array:
        """Latents (N, q) near a mode, for a search that goes on with them: a few steps of BFGS
        from the best of few training rows."""
        start = self.starts(candidates, 1)
        return best_of(
            self.value_and_grad, start, max_steps=max_steps, gtol=1e-2, first_step=self._stride()
        ).x

    def _stride(self) -> float:
        # The start may be steep: a long first step would land where nothing is known, and stay.
        b = self.posterior.backend
        spread = max(float(np.std(b.to_host(k.X), axis=0).max()) for k in self.posterior.factors)
        return 0.1 * spread if spread > 0.0 else 0.1

    def hessian(self, X: Array) -> Array:
        """∂²f/∂x∂xᵀ of every row (N, q, q), by fourth-order differences of the exact gradient."""
        return hessians(self.value_and_grad, X)

    def laplace(self, X: Array) -> tuple[Array, Array]:
        """Covariance of each row's latents (N, q, q) and ln|H| (N,), H the Hessian at X.

        Eigenvalues of H below the prior's precision are raised to it: the data can't make a latent
        less certain than the prior, and a saddle has no covariance.
        """
        sd = getattr(self.prior, "sd", None)
        least = 1.0 / sd**2 if sd else self.posterior.backend.eps**0.5
        return laplace(self.hessian(X), least)


def _training_table(
    posteriors: Sequence[Posterior], units: Sequence[float]
) -> tuple[Array, Array, Array]:
    """Training outputs of all tables in their units, with 0 where missing (n, ΣD), the mask
    (n, ΣD), and the latents (n, q)."""
    b = posteriors[0].backend
    factors = [f for p in posteriors for f in p.factors]
    n, D = max(int(f.rows.max()) for f in factors) + 1, sum(p.outputs for p in posteriors)
    table, mask = np.zeros((n, D)), np.zeros((n, D))
    X = np.zeros((n, factors[0].X.shape[1]))
    first = 0
    for p, unit in zip(posteriors, units, strict=True):
        for f in p.factors:
            where = np.ix_(f.rows, first + f.columns)
            table[where], mask[where] = b.to_host(f.Y) / unit, 1.0
            X[f.rows] = b.to_host(f.X)
        first += p.outputs
    return b.asarray(table), b.asarray(mask), b.asarray(X)


__all__ = ["Factor", "NewRows", "Posterior"]
