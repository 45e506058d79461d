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
    """A scrambled Sobol set through the normal quantile, moved to mean 0 and covariance I.

    Equal weights; exact for polynomials up to degree 2. ``count`` is a power of 2, larger than d;
    the nodes depend on the arguments only (Sobol 1967; Owen 1998 for scrambling).
    """
    from scipy.special import ndtri
    from scipy.stats import qmc

    generator = np.random.default_rng(seed)
    x = ndtri(np.clip(qmc.Sobol(d, seed=generator).random(count), 1e-12, 1.0 - 1e-12))
    x -= np.mean(x, axis=0)
    nodes = np.linalg.solve(np.linalg.cholesky(x.T @ x / count), x.T).T
    return Rule(nodes, np.full(count, 1.0 / count))


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
