"""Probabilistic PCA with entries missing at random, the linear model that others are measured by.

Maximum likelihood by expectation maximisation over the observed entries alone (Tipping & Bishop
1999; Ilin & Raiko 2010); a gap is filled by its mean given the row's other entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PPCA:
    """y = mean + W x + noise, x ~ N(0, I).

    Attributes
    ----------
    mean : ndarray (D,)
    W : ndarray (D, q)
    noise : float
        Variance.
    """

    mean: np.ndarray
    W: np.ndarray
    noise: float

    @classmethod
    def fit(cls, Y: np.ndarray, q: int, *, rounds: int = 500, tol: float = 1e-6) -> PPCA:
        """Of a table (n, D), NaN for missing; in closed form where it is complete."""
        seen = ~np.isnan(Y)
        mean = np.nanmean(Y, axis=0)
        filled = np.where(seen, Y - mean, 0.0)
        _, s, Vt = np.linalg.svd(filled, full_matrices=False)
        values = s**2 / Y.shape[0]
        noise = float(values[q:].sum() / (Y.shape[1] - q))
        W = Vt[:q].T * np.sqrt(np.maximum(values[:q] - noise, 1e-6 * values[0]))
        model = cls(mean, W, noise)
        for _ in range(0 if seen.all() else rounds):
            before, model = model, model._round(Y, seen)
            if abs(model.noise - before.noise) <= tol * before.noise:
                break
        return model

    def _latents(self, Y: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means (n, q) and covariances (n, q, q) of x given the observed entries."""
        (D, q), W = self.W.shape, self.W
        outer = (W[:, :, None] * W[:, None, :]).reshape(D, q * q)
        precision = (seen @ outer).reshape(-1, q, q) + self.noise * np.eye(q)
        inverse = np.linalg.inv(precision)
        x = np.einsum("nab,nb->na", inverse, np.where(seen, Y - self.mean, 0.0) @ W)
        return x, self.noise * inverse

    def _round(self, Y: np.ndarray, seen: np.ndarray) -> PPCA:
        x, cov = self._latents(Y, seen)
        n, q = x.shape
        # (W, mean) of a column by least squares over the rows that show it, x being uncertain.
        z = np.concatenate([x, np.ones((n, 1))], axis=1)
        second = z[:, :, None] * z[:, None, :]
        second[:, :q, :q] += cov
        A = (seen.T @ second.reshape(n, -1)).reshape(-1, q + 1, q + 1)
        filled = np.where(seen, Y, 0.0)
        B = filled.T @ z
        weights = np.linalg.solve(A, B[:, :, None])[:, :, 0]
        rest = np.sum(filled**2) - np.sum(weights * B)
        return PPCA(weights[:, q], weights[:, :q], float(rest / seen.sum()))

    def impute(self, Y: np.ndarray) -> np.ndarray:
        """The rows (N, D) with their gaps filled."""
        seen = ~np.isnan(Y)
        x, _ = self._latents(Y, seen)
        return np.where(seen, Y, x @ self.W.T + self.mean)


def chosen_rank(Y: np.ndarray, ranks: range, rng: np.random.Generator) -> int:
    """The rank that fills a tenth of the observed entries best, hidden for this purpose."""
    hidden = ~np.isnan(Y) & (rng.random(Y.shape) < 0.1)
    shown = np.where(hidden, np.nan, Y)

    def error(q: int) -> float:
        return float(np.mean((PPCA.fit(shown, q).impute(shown) - Y)[hidden] ** 2))

    return min(ranks, key=error)


__all__ = ["PPCA", "chosen_rank"]
