"""E[ln p(y_n | f)] of rows with uncertain latents, under q(x_n) and q(u), and its gradients.

Two forms of one contract. Gaussian noise, β = 1/σ², over the observed outputs d of row n, in
c_n outputs, with v_d and Q_k as in :mod:`gplvm_xp.inducing.base`, is linear in the psi statistics:

    ½ c_n ln(β/2π) − ½ β Σ_d [y_d² − 2 y_d Ψ1 v_d + ψ0 + ⟨v_d v_dᵀ + Q_k(d), Ψ2⟩],

so the cotangents g0 = −½ β c_n, G1 = β Σ_d y_d v_dᵀ, G2 = −½ β Σ_d (v_d v_dᵀ + Q_k(d)) are made
once, and :meth:`gplvm_xp.kernels.psi.Psi.contract` gives values and gradients of all rows. Any
other likelihood: the average of its expected log-likelihood ℓ(m_d(x), v_d(x)) over fixed nodes
x = μ + √S ε, ∂/∂μ = E[g], ∂/∂S = E[g ε]/2√S with g = ∂ℓ/∂x.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.inducing.base import InducingPosterior
from gplvm_xp.inducing.nodes import nodes

# Nodes of one row's average where the likelihood is not Gaussian.
NODES = 32


class Expected(ABC):
    """The expected log-likelihood of N rows, each a function of its own μ and S."""

    @abstractmethod
    def value_and_grads(self, mu: Array, S: Array, index: Array) -> tuple[Array, Array, Array]:
        """Values (c,) and gradients in μ and S, (c, q) each, of the rows ``index`` (c,)."""


@dataclass(frozen=True)
class GaussianExpected(Expected):
    """Closed form.

    Attributes
    ----------
    posterior : InducingPosterior
    constant : array (N,)
        What depends on no latent.
    g0 : array (N,)
    G1 : array (N, M)
    G2 : array (R, M, M)
        One for each pattern of observed outputs, or for each output where there are fewer.
    W : array (N, R) or None
        Which of them a row has; None where all have the one.
    """

    posterior: InducingPosterior
    constant: Array
    g0: Array
    G1: Array
    G2: Array
    W: Array | None

    @classmethod
    def of(cls, p: InducingPosterior, Y: np.ndarray) -> GaussianExpected:
        """The cotangents of host rows (N, D), NaN for missing. Memory O(min(D, patterns) M²)."""
        b, xp = p.backend, p.backend.xp
        assert p.noise is not None
        beta = 1.0 / p.noise
        host = ~np.isnan(Y)
        seen = b.asarray(host.astype(np.float64))
        y = seen * (b.asarray(np.where(host, Y, 0.0)) - p.offset)
        count = xp.sum(seen, axis=1)
        constant = 0.5 * count * math.log(beta / (2.0 * math.pi))
        constant = constant - 0.5 * beta * xp.sum(y * y, axis=1)
        G1 = beta * (y @ xp.matrix_transpose(p.weights))
        patterns, which = _patterns(host)
        terms = [
            _term(p, host_row, beta) for host_row in (patterns if patterns is not None else ())
        ]
        if patterns is None:
            eye = np.eye(host.shape[1])
            terms = [_term(p, e, beta) for e in eye]
        W = seen if patterns is None else _one_hot(b, which, len(terms))
        return cls(p, constant, -0.5 * beta * count, G1, xp.stack(terms), W)

    def value_and_grads(self, mu: Array, S: Array, index: Array) -> tuple[Array, Array, Array]:
        p, b, xp = self.posterior, self.posterior.backend, self.posterior.backend.xp
        psi, M = p.kernel.psi(), p.Z.shape[0]

        def one(where: slice) -> tuple[Array, Array, Array]:
            rows = index[where]
            W = None if self.W is None else xp.take(self.W, rows, axis=0)
            c = psi.contract(
                p.theta,
                mu[where, :],
                S[where, :],
                p.Z,
                xp.take(self.g0, rows),
                xp.take(self.G1, rows, axis=0),
                self.G2,
                W,
            )
            return c.value + xp.take(self.constant, rows), c.mu, c.S

        return _joined(b, one, p.chunks(mu.shape[0], M * (M + 1) // 2))


@dataclass(frozen=True)
class AveragedExpected(Expected):
    """By fixed nodes, for any likelihood.

    Attributes
    ----------
    posterior : InducingPosterior
    Y : array (N, D)
        Something the likelihood takes where missing.
    seen : array (N, D)
        1 where observed, else 0.
    exposure : array (N, D) or None
    """

    posterior: InducingPosterior
    Y: Array
    seen: Array
    exposure: Array | None

    # A trial may lie anywhere, and one that fails is a value: NumPy need not warn of it.
    @np.errstate(all="ignore")
    def value_and_grads(self, mu: Array, S: Array, index: Array) -> tuple[Array, Array, Array]:
        p, b, xp = self.posterior, self.posterior.backend, self.posterior.backend.xp
        places, weights = nodes(mu.shape[1], NODES)
        eps, w = b.asarray(places.copy()), b.asarray(weights.copy())[None, :, None]
        J, q = places.shape

        def one(where: slice) -> tuple[Array, Array, Array]:
            rows, root = index[where], xp.sqrt(S[where, :])[:, None, :]
            n = rows.shape[0]
            x = xp.reshape(mu[where, :][:, None, :] + root * eps, (n * J, q))
            mean, var, pull = p.moments_pullback(x)
            shape = (n, J, mean.shape[1])
            y = xp.take(self.Y, rows, axis=0)[:, None, :]
            there = xp.take(self.seen, rows, axis=0)[:, None, :] > 0.0
            exposure = self.exposure
            if exposure is not None:
                exposure = xp.take(exposure, rows, axis=0)[:, None, :]
            e = p.likelihood.expected(
                y, xp.reshape(mean, shape), xp.reshape(var, shape), None, exposure
            )
            value, gm, gv = (xp.where(there, w * a, 0.0) for a in (e.value, e.m, e.v))
            gx = pull(*(xp.reshape(a, mean.shape) for a in (gm, gv)))
            gx = xp.reshape(gx, (n, J, q))
            gS = 0.5 * xp.sum(gx * eps, axis=1) / root[:, 0, :]
            return xp.sum(value, axis=(1, 2)), xp.sum(gx, axis=1), gS

        width = J * max(p.Z.shape[0], p.mean.shape[1])
        return _joined(b, one, p.chunks(mu.shape[0], width))


def expected(p: InducingPosterior, Y: np.ndarray, exposure: np.ndarray | None = None) -> Expected:
    """The form that the posterior's likelihood has, for host rows (N, D), NaN for missing."""
    if p.noise is not None:
        return GaussianExpected.of(p, Y)
    b = p.backend
    seen = ~np.isnan(Y)
    # A value of the support that some row has: likelihoods need not take any other.
    stand_in = Y[seen][0] if seen.any() else 1.0
    wide = None if exposure is None else b.asarray(np.broadcast_to(exposure, Y.shape).copy())
    values = b.asarray(np.where(seen, Y, stand_in))
    return AveragedExpected(p, values, b.asarray(seen.astype(np.float64)), wide)


def _patterns(seen: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Distinct rows of a mask as numbers (R, D), and which each row has; None for more than D."""
    _, first, which = np.unique(
        np.packbits(seen, axis=1), axis=0, return_index=True, return_inverse=True
    )
    which = np.ravel(which)
    return (seen[first].astype(np.float64) if first.size <= seen.shape[1] else None), which


def _one_hot(b: Backend, which: np.ndarray, count: int) -> Array | None:
    return (
        None if count == 1 else b.asarray((which[:, None] == np.arange(count)).astype(np.float64))
    )


def _term(p: InducingPosterior, outputs: np.ndarray, beta: float) -> Array:
    """−½ β Σ_d (v_d v_dᵀ + Q_k(d)) over the outputs with 1 in a host row (D,)."""
    b, xp = p.backend, p.backend.xp
    mask = b.asarray(outputs)
    square = (p.weights * mask) @ xp.matrix_transpose(p.weights)
    M, groups = p.Z.shape[0], mask @ p.member
    return -0.5 * beta * (square + xp.reshape(groups @ xp.reshape(p.excess, (-1, M * M)), (M, M)))


def _joined(
    b: Backend, one: Callable[[slice], tuple[Array, Array, Array]], parts: list[slice]
) -> tuple[Array, Array, Array]:
    done = list(b.map_parts(one, parts))
    values, gmu, gS = (b.xp.concat(list(a)) for a in zip(*done, strict=True))
    return values, gmu, gS


__all__ = ["AveragedExpected", "Expected", "GaussianExpected", "expected"]
