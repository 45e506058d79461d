"""Ways to move latents and parameters together that change nothing, found by numbers.

A kernel is what its covariances are: whether a rotation of the latents, a translation, or a scale
that a lengthscale takes back leaves them alone is read off K's directional derivatives at a few
points, for any kernel. The unknowns are the entries of Ẋ = X A + 1 tᵀ and the rates of the learned
parameters; what all equations agree on is a null space.
"""

from __future__ import annotations

import math

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.kernels import Kernel
from gplvm_xp.objectives import ExactObjective
from gplvm_xp.params import Block, Layout
from gplvm_xp.priors import Prior

# Singular values of columns of length one, and lengths of columns, that are rounding.
NULL, ZERO = 1e-9, 1e-12


def invariances(
    kernel: Kernel,
    theta: np.ndarray,
    noise: float,
    X: np.ndarray,
    rates: np.ndarray,
    latent_prior: Prior | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions along which neither K(X, X) + σ² I nor the latents' prior changes, for every X.

    Parameters
    ----------
    kernel : Kernel
    theta : ndarray (p,)
        Natural values.
    noise : float
    X : ndarray (n, q)
        Latents; only their place and width matter.
    rates : ndarray (p + 1, m)
        How (theta, noise) moves along each of m learned numbers.
    latent_prior : Prior or None

    Returns
    -------
    A : ndarray (k, q, q)
    t : ndarray (k, q)
    r : ndarray (k, m)
        k independent directions: Ẋ = X A + 1 tᵀ while the learned numbers move at rates r.
    """
    q, m = X.shape[1], rates.shape[1]
    unknowns = q * q + q + m
    points = _probes(X, 4 + math.isqrt(4 * unknowns))
    fixed = np.zeros(theta.size)
    columns = [_change(kernel, theta, points, move, fixed, 0.0) for move in _moves(points)]
    rest = np.zeros_like(points)
    columns += [_change(kernel, theta, points, rest, r[:-1], r[-1]) for r in rates.T]
    level = np.sqrt(np.diag(kernel.gram(theta, points)) + noise)
    below = np.tril_indices(points.shape[0])
    J = np.stack([(c / np.outer(level, level))[below] for c in columns], axis=1)
    if latent_prior is not None:
        # Tiny latents hardly feel it: it is asked at points of unit width.
        wide = np.random.default_rng(1).standard_normal((len(points), q))
        slope = latent_prior.log_densities(wide)[1]
        felt = [np.sum(slope * move, axis=1) for move in _moves(wide)]
        J = np.vstack([J, np.stack([*felt, *np.zeros((m, len(points)))], axis=1)])
    size = np.linalg.norm(J, axis=0)
    # What a motion of the points leaves is rounding; a parameter that hardly matters is small.
    still = size <= np.where(np.arange(unknowns) < q * q + q, ZERO * size.max(), 0.0)
    size = np.where(still, 1.0, size)
    J = np.where(still, 0.0, J)
    _, values, V = np.linalg.svd(J / size, full_matrices=True)
    values = np.concatenate([values, np.zeros(unknowns - values.size)])
    null = V[values <= NULL * values.max(initial=0.0)] / size
    k = null.shape[0]
    A, t, r = np.split(null, [q * q, q * q + q], axis=1)
    return A.reshape(k, q, q), t, r


def flat_directions(objective: ExactObjective, x: Array) -> np.ndarray:
    """Orthonormal directions (size, k) of the flat vector along which the objective is constant.

    A parameter with a prior of its own is held by it; the latents' prior leaves the symmetries that
    it has.
    """
    b, prior = objective.backend, objective.latent_prior
    theta, noise, X = (b.to_host(a).astype(np.float64) for a in objective.values(x))
    natural = np.append(theta, noise)
    places = Layout((*objective.kernel.blocks(), Block("noise", objective.noise))).slices()
    where = objective.layout.slices()
    flat, rates = [], []
    for block in objective.layout.blocks:
        if block.name == "X" or block.name in objective.priors:
            continue
        for k in range(block.size):
            place = places[block.name].start + k
            step = natural[place] if block.transform == "log" else 1.0
            flat.append(where[block.name].start + k)
            rates.append(step * np.eye(natural.size)[place])
    moves = np.reshape(rates, (len(rates), natural.size)).T
    assert prior is None or isinstance(prior, Prior)
    A, t, r = invariances(objective.kernel, theta, natural[-1], X, moves, prior)
    out = np.zeros((x.shape[0], r.shape[0]))
    out[flat, :] = r.T
    for k in range(r.shape[0]):
        out[where["X"], k] = (X @ A[k] + t[k]).ravel()
    U, size, _ = np.linalg.svd(out, full_matrices=False)
    return np.asarray(U[:, size > NULL * size.max(initial=0.0)])


def _probes(X: np.ndarray, count: int) -> np.ndarray:
    """Points at all distances from a typical latent, near and far by its width."""
    rng = np.random.default_rng(0)
    width = X.std(axis=0).max()
    radii = np.geomspace(1e-2, 3.0, count)[:, None] * (width if width > 0 else 1.0)
    return np.asarray(X.mean(axis=0) + radii * rng.standard_normal((count, X.shape[1])))


def _moves(X: np.ndarray) -> list[np.ndarray]:
    """Ẋ for each entry of A and t."""
    q = X.shape[1]
    turned = [X @ unit.reshape(q, q) for unit in np.eye(q * q)]
    return turned + [np.ones_like(X) * unit for unit in np.eye(q)]


def _change(
    kernel: Kernel,
    theta: np.ndarray,
    X: np.ndarray,
    dX: np.ndarray,
    dtheta: np.ndarray,
    dnoise: float,
) -> np.ndarray:
    dK = kernel.gram_jvp(theta, X, dtheta=dtheta, dX=dX)
    return np.asarray(dK + dnoise * np.eye(X.shape[0]))


__all__ = ["flat_directions", "invariances"]
