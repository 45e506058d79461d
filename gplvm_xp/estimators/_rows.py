"""New rows against a fitted model: their latents, covariances and densities, batch by batch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from gplvm_xp.inducing import InducingPosterior, NewLatents, NewPoints
from gplvm_xp.optim.modes import Mixture, mixture
from gplvm_xp.predict import NewRows, Posterior
from gplvm_xp.priors import Prior


def problems(
    p: Posterior, prior: Prior | None, Y: np.ndarray, others: Sequence[Posterior] = ()
) -> list[tuple[slice, NewRows]]:
    """Centred rows (N, D), NaN for missing, as batches that fit the memory budget.

    ``others`` are posteriors of more outputs at the same latents, whose columns follow those of p.
    """
    b, tables = p.backend, (p, *others)
    cuts = np.cumsum([t.outputs for t in tables])[:-1]
    out = []
    for part in max((t.batches(Y.shape[0]) for t in tables), key=len):
        rows = []
        for t, values in zip(tables, np.split(Y[part], cuts, axis=1), strict=True):
            seen = ~np.isnan(values)
            filled = b.asarray(np.where(seen, values, 0.0))
            rows.append(NewRows(t, None, filled, b.asarray(seen.astype(float))))
        out.append((part, replace(rows[0], prior=prior, others=tuple(rows[1:]))))
    return out


def modes(
    p: Posterior, prior: Prior | None, Y: np.ndarray, others: Sequence[Posterior] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """The most probable latents (N, q) of centred rows, and the negative log density there (N,)."""
    b = p.backend
    Z, f = np.empty((Y.shape[0], p.factors[0].X.shape[1])), np.empty(Y.shape[0])
    short = 0
    for part, problem in problems(p, prior, Y, others):
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
    p: Posterior,
    prior: Prior | None,
    Y: np.ndarray,
    Z: np.ndarray,
    others: Sequence[Posterior] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Laplace covariance of each row's latents (N, q, q), and the log density of the row (N,).

    The density integrates the latents out around Z: ln p(y, z) + ½ q ln 2π − ½ ln|H|.
    """
    b = p.backend
    q = Z.shape[1]
    C, density = np.empty((Z.shape[0], q, q)), np.empty(Z.shape[0])
    for part, problem in problems(p, prior, Y, others):
        z = b.asarray(Z[part])
        index = b.xp.arange(z.shape[0], dtype=b.xp.int64, device=b.device)
        covariance, log_det = problem.laplace(z)
        f = problem.value_and_grad(z, index)[0]
        C[part] = b.to_host(covariance)
        density[part] = b.to_host(-f - 0.5 * log_det) + 0.5 * q * math.log(2.0 * math.pi)
    return C, density


def mixtures(
    p: Posterior,
    Y: np.ndarray,
    others: Sequence[Posterior],
    X: np.ndarray,
    width: np.ndarray,
    count: int,
) -> Mixture:
    """What is known of the latents of centred rows (N, D): ``count`` Gaussians each, on the host.

    The prior is the density of the training latents X (n, q): equal Gaussians of deviations
    ``width`` (q,) around them. Each row has the ``count`` of these that explain it best; a row with
    nothing observed has some from all over the table.
    """
    b, xp = p.backend, p.backend.xp
    spread = np.linspace(0, X.shape[0] - 1, min(count, X.shape[0])).round().astype(np.int64)
    parts = []
    for part, problem in problems(p, None, Y, others):
        seen = xp.asarray(~np.isnan(Y[part]).all(axis=1)[:, None], device=b.device)
        near = problem.starts(3 * count, count)
        rows = [b.asarray(row)[None, :] for row in X[spread]]
        found = mixture(
            problem.value_and_grad,
            [xp.where(seen, a, row) for a, row in zip(near, rows, strict=True)],
            b.asarray(width),
            # A slope of a tenth of a nat per unit of the latents changes no weight that matters.
            max_steps=30,
            gtol=1e-1,
            first_step=0.1 * float(X.std()),
        )
        parts.append([b.to_host(a).astype(np.float64) for a in found])
    return Mixture(*(np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True)))


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


__all__ = ["covariances", "mixtures", "modes", "placed", "spreads"]
