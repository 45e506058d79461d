"""New rows against a fitted model: their latents, covariances and densities, batch by batch."""

from __future__ import annotations

import math
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from gplvm_xp.inducing import InducingPosterior, NewLatents, NewPoints
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
    _say_unsettled(short, Y.shape[0], 6)
    return Z, f


def _say_unsettled(short: int, rows: int, callers: int) -> None:
    if short:
        warnings.warn(
            f"the latents of {short} of {rows} rows have not settled at a mode of their "
            "density; they may be off",
            ConvergenceWarning,
            stacklevel=callers,
        )


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


def placed(
    p: InducingPosterior,
    prior: Prior | None,
    Y: np.ndarray,
    anchors: np.ndarray,
    variance: np.ndarray | None,
    *,
    density: bool = False,
    exposure: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Latents of rows (N, D), NaN for missing, against a model with inducing inputs.

    Parameters
    ----------
    p : InducingPosterior
    prior : Prior or None
        Of the latents, where they are points.
    Y : ndarray (N, D)
        Centred and scaled, NaN for missing.
    anchors : ndarray (A, q)
        Latents to begin at.
    variance : ndarray (q,) or None
        Variances to begin at; None: the latents are points.
    density : bool
        Whether the density is wanted, not only what was maximised.
    exposure : ndarray (N,), optional
        Of rows of counts with uncertain latents.

    Returns
    -------
    mean : ndarray (N, q)
    variance : ndarray (N, q) or None
        None where the latents are points.
    value : ndarray (N,)
        ln p(row | training data), or what was maximised.
    """
    b = p.backend
    Z, S = np.empty((2, Y.shape[0], anchors.shape[1]))
    values = np.empty(Y.shape[0])
    begin, short = b.asarray(anchors), 0
    for part in p.batches(Y.shape[0], anchors.shape[0]):
        if variance is None:
            points = NewPoints.of(p, prior, Y[part])
            found = points.solve(begin)
            value = points.log_density(found.mean) if density else found.value
        else:
            own = None if exposure is None else exposure[part, None]
            rows = NewLatents.of(p, Y[part], own)
            found = rows.solve(begin, b.asarray(variance))
            S[part] = b.to_host(found.variance)
            value = rows.log_density(found.mean, found.variance) if density else found.value
        Z[part], values[part] = b.to_host(found.mean), b.to_host(value)
        short += int(np.sum(~b.to_host(found.settled)))
    _say_unsettled(short, Y.shape[0], 7)
    return Z, None if variance is None else S, values


def spreads(p: InducingPosterior, prior: Prior | None, Y: np.ndarray, Z: np.ndarray) -> np.ndarray:
    """Laplace's variance of each row's latents, which are the points Z (N, q): (N, q)."""
    b = p.backend
    out = np.empty(Z.shape)
    for part in p.batches(Z.shape[0]):
        C, _ = NewPoints.of(p, prior, Y[part]).laplace(b.asarray(Z[part]))
        out[part] = b.to_host(b.xp.linalg.diagonal(C))
    return out


__all__ = ["covariances", "modes", "placed", "spreads"]
