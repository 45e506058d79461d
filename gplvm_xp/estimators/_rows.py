"""New rows against a fitted model: their latents, covariances and densities, batch by batch."""

from __future__ import annotations

import math
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from gplvm_xp.predict import NewRows, Posterior
from gplvm_xp.priors import Prior


def problems(p: Posterior, prior: Prior | None, Y: np.ndarray) -> list[tuple[slice, NewRows]]:
    """Centred rows (N, D), NaN for missing, as batches that fit the memory budget."""
    b = p.backend
    out = []
    for part in p.batches(Y.shape[0]):
        seen = ~np.isnan(Y[part])
        values = np.where(seen, Y[part], 0.0)
        out.append((part, NewRows(p, prior, b.asarray(values), b.asarray(seen.astype(float)))))
    return out


def modes(p: Posterior, prior: Prior | None, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most probable latents (N, q) of centred rows, and the negative log density there (N,)."""
    b = p.backend
    Z, f = np.empty((Y.shape[0], p.factors[0].X.shape[1])), np.empty(Y.shape[0])
    short = 0
    for part, problem in problems(p, prior, Y):
        z, value, settled = problem.solve()
        Z[part], f[part] = b.to_host(z), b.to_host(value)
        short += int(np.sum(~b.to_host(settled)))
    if short:
        warnings.warn(
            f"the latents of {short} of {Y.shape[0]} rows have not settled at a mode of their "
            "density; they may be off",
            ConvergenceWarning,
            stacklevel=4,
        )
    return Z, f


def covariances(
    p: Posterior, prior: Prior | None, Y: np.ndarray, Z: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Laplace covariance of each row's latents (N, q, q), and the log density of the row (N,).

    The density integrates the latents out around Z: ln p(y, z) + ½ q ln 2π − ½ ln|H|.
    """
    b = p.backend
    q = Z.shape[1]
    C, density = np.empty((Z.shape[0], q, q)), np.empty(Z.shape[0])
    for part, problem in problems(p, prior, Y):
        z = b.asarray(Z[part])
        index = b.xp.arange(z.shape[0], dtype=b.xp.int64, device=b.device)
        covariance, log_det = problem.laplace(z)
        f = problem.value_and_grad(z, index)[0]
        C[part] = b.to_host(covariance)
        density[part] = b.to_host(-f - 0.5 * log_det) + 0.5 * q * math.log(2.0 * math.pi)
    return C, density


__all__ = ["covariances", "modes"]
