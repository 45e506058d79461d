"""Nodes and weights for expectations under a standard normal, on the host; all weights positive.

Positive weights make the nodes a distribution: Ψ2 stays positive semi-definite, and statistics of
all kinds are those of one and the same q(x).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

# Nodes a dimension of the tensor rules for 1, 2 and 3 dimensions, at levels 0, 1 and 2.
ORDERS = {1: (64, 128, 256), 2: (28, 56, 112), 3: (12, 19, 30)}
# Nodes of the quasi-Monte-Carlo rule above.
COUNTS = (1024, 4096, 16384)
# An exact tensor rule of a polynomial is taken up to this size.
LARGEST = 4096


class Rule(NamedTuple):
    """E[f(ξ)] ≈ Σ_j w_j f(ξ_j) for ξ ~ N(0, I_d).

    Attributes
    ----------
    nodes : ndarray (J, d)
    weights : ndarray (J,)
        Positive, of sum 1.
    """

    nodes: np.ndarray
    weights: np.ndarray


@functools.lru_cache(maxsize=32)
def gauss_hermite(d: int, order: int) -> Rule:
    """The tensor rule: exact for polynomials up to degree 2 · order − 1 in each dimension."""
    x, w = np.polynomial.hermite_e.hermegauss(order)
    w = w / np.sum(w)
    nodes = np.stack(np.meshgrid(*[x] * d, indexing="ij"), axis=-1).reshape(-1, d)
    weights = functools.reduce(np.multiply.outer, [w] * d, np.ones(())).ravel()
    return Rule(nodes, weights)


@functools.lru_cache(maxsize=32)
def quasi_monte_carlo(d: int, count: int, seed: int) -> Rule:
    """A shifted Sobol set through the normal quantile, with its mirror image, whitened.

    Equal weights; exact for polynomials up to degree 3. ``count`` nodes in all, a power of 2; they
    depend on the arguments only (Sobol 1967; Cranley & Patterson 1976 for the shift).
    """
    from scipy.special import ndtri
    from scipy.stats import qmc

    points = qmc.Sobol(d, scramble=False).random(count // 2)
    points = np.mod(points + np.random.default_rng(seed).random(d), 1.0)
    half = ndtri(np.clip(points, 1e-12, 1.0 - 1e-12))
    if half.shape[0] > d:
        # The mirror image makes the mean 0, this the covariance I.
        factor = np.linalg.cholesky(half.T @ half / half.shape[0])
        half = np.linalg.solve(factor, half.T).T
    return Rule(np.concatenate([half, -half]), np.full(2 * half.shape[0], 0.5 / half.shape[0]))


def rule_for(d: int, degree: int | None, level: int) -> Rule:
    """The rule that quadratures use.

    Parameters
    ----------
    d : int
        Dimensions that the kernel looks at.
    degree : int, optional
        Of a kernel that is a polynomial in each argument: products of two are integrated exactly
        where that takes at most :data:`LARGEST` nodes.
    level : int
        0, 1 or 2: each has about four times the nodes of the one before (twice in one dimension),
        and they are others.
    """
    if d == 0:
        return Rule(np.zeros((1, 0)), np.ones(1))
    if degree is not None and (degree + 1) ** d <= LARGEST:
        return gauss_hermite(d, degree + 1 + level)
    if d in ORDERS:
        return gauss_hermite(d, ORDERS[d][level])
    return quasi_monte_carlo(d, COUNTS[level], level)


__all__ = ["Rule", "gauss_hermite", "quasi_monte_carlo", "rule_for"]
