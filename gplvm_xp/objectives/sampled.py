"""The uncollapsed bound on a batch of rows for any likelihood: latents sampled, outputs expected.

With x_n = μ_n + √S_n ∘ ε, a = L_u⁻¹ k(Z, x_n) and q(U) whitened (minibatch.py), the function of
output d at a certain x is normal with mean o_d + aᵀ m_d, o a constant offset, and variance
v_k = k(x, x) − ‖a‖² + ‖T_kᵀ a‖². The estimate for fixed draws ε, s of them for each row,

    F_B = (n/|B|) { (1/s) Σ_n,ε,d ℓ(y_nd; o_d + aᵀ m_d, v) − KL(q(x)‖p(x)) } − KL_U,

with ℓ(m, v) = E[ln p(y | f)] of the likelihood, by closed form or quadrature, is unbiased over
batches and draws, and so are its gradients, which pass through x_n (Salimbeni & Deisenroth 2017;
derivations/minibatch.md). The target of Λ_k is Λ̂_k = I + (n/s|B|D_k) Σ_d A diag(−2ℓ_v) Aᵀ with
negative curvatures −2ℓ_v, those of likelihoods that are not log-concave, left out (Khan & Lin
2017). Entries that are missing have no term. Memory O(s |B| D + r M²): one factor an output
(r = D) is the richest q(U), one for all (r = 1) the cheapest; outputs are taken in parts, so that
temporaries stay small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.kernels import Kernel
from gplvm_xp.likelihoods import Likelihood
from gplvm_xp.objectives.bayesian import inducing_gram, kl
from gplvm_xp.objectives.collapsed import Totals
from gplvm_xp.objectives.minibatch import BatchBound, Whitened, gram_cotangent, inducing_kl
from gplvm_xp.objectives.rows import CHUNK_BYTES


@dataclass(frozen=True)
class Entries:
    """What was observed in a batch of rows.

    Attributes
    ----------
    Y : array (n, D)
        0 where missing.
    seen : array (n, D) or None
        1 where observed, else 0; None: complete.
    exposure : array (n, 1) or (n, D), or None
        See :class:`gplvm_xp.likelihoods.Likelihood`.
    offset : array (D,)
        o, the prior means of the functions.
    """

    Y: Array
    seen: Array | None
    exposure: Array | None
    offset: Array


class _Part(NamedTuple):
    """Some outputs of a range of groups, and the place of each one's group in it: on the host."""

    columns: np.ndarray
    local: np.ndarray


def sampled_bound(
    kernel: Kernel,
    theta: Array,
    likelihood: Likelihood,
    phi: Array,
    Z: Array,
    q: Whitened,
    mu: Array,
    S: Array,
    entries: Entries,
    totals: Totals,
    eps: Array,
    *,
    scale: float = 1.0,
    jitter: float = 0.0,
) -> BatchBound:
    """F_B and its gradients for fixed draws.

    Parameters
    ----------
    kernel : Kernel
    theta : array (p,)
    likelihood : Likelihood
    phi : array (l,)
        Its hyperparameters.
    Z : array (M, q)
    q : Whitened
    mu, S : array (n, q)
        Of the batch's rows; S > 0.
    entries : Entries
    totals : Totals
        Only ``which`` and ``outputs`` are read.
    eps : array (s, n, q)
        The draws, from N(0, 1).
    scale : float
        n/|B|.
    jitter : float
        As in :func:`gplvm_xp.objectives.bayesian.inducing_gram`.

    Returns
    -------
    BatchBound
        The gradients are those of the value for these draws; only ``precision`` leaves negative
        curvatures out.

    Notes
    -----
    Cost with R = s |B| points: R M² (1 + 2r) + 4 R M D operations and R D expectations.
    """
    b = backend.of(theta)
    xp = b.xp
    s, n, dims = eps.shape
    root = xp.sqrt(S)
    X = xp.reshape(mu + root * eps, (s * n, dims))
    K, pull = inducing_gram(kernel, theta, Z, jitter)
    Kx, pull_x = kernel.gram_pullback(theta, X, Z)
    diagonal, pull_diagonal = kernel.diag_pullback(theta, X)
    lower, ok = b.factor(K)
    A = b.solve_triangular(lower, xp.matrix_transpose(Kx))
    prior = diagonal - xp.sum(A * A, axis=0)
    # Only rounding makes it negative.
    prior = xp.where(prior > 0.0, prior, 0.0)
    value, gphi = b.scalar(0.0), b.zeros(phi.shape)
    gA, gprior = xp.zeros_like(A), xp.zeros_like(prior)
    gmean: list[Array] = []
    curvatures: list[Array] = []
    # Many products of small matrices: the BLAS's own threads would wait for each other.
    with b.calm(Z.shape[0]):
        for groups, parts in _parts(b, totals, q.factor.shape, s * n):
            TA = xp.matrix_transpose(q.factor[groups, ...]) @ A
            v_all = prior + xp.sum(TA * TA, axis=1)
            gv, curve = xp.zeros_like(v_all), xp.zeros_like(v_all)
            for part in parts:
                mean = xp.take(q.mean, _put(b, part.columns), axis=1)
                v = xp.take(v_all, _put(b, part.local), axis=0)
                t = _terms(likelihood, phi, _columns(b, entries, part.columns), A, mean, v, eps)
                value, gphi = value + t.value, gphi + t.phi
                gmean.append(A @ t.m)
                gA = gA + mean @ xp.matrix_transpose(t.m)
                member = b.asarray(np.equal.outer(np.arange(gv.shape[0]), part.local))
                gv = gv + member @ xp.matrix_transpose(t.v)
                concave = xp.where(t.v < 0.0, -2.0 * t.v, 0.0)
                curve = curve + member @ xp.matrix_transpose(concave)
            gA = gA + 2.0 * xp.sum(q.factor[groups, ...] @ (TA * gv[:, None, :]), axis=0)
            gprior = gprior + xp.sum(gv, axis=0)
            curvatures.append((A * curve[:, None, :]) @ xp.matrix_transpose(A))
    weight = scale / s
    gA = weight * (gA - 2.0 * A * gprior)
    D = b.asarray(totals.outputs)
    theta_K, Z_K = pull(gram_cotangent(b, lower, gA @ xp.matrix_transpose(A)))
    back = b.solve_triangular(lower, gA, trans=True)
    theta_x, gX, Z_x = pull_x(xp.matrix_transpose(back))
    theta_diagonal, gX_diagonal = pull_diagonal(weight * gprior)
    gX = xp.reshape(gX + gX_diagonal, (s, n, dims))
    order = np.argsort(np.argsort(totals.which, kind="stable"), kind="stable")
    return BatchBound(
        weight * value - inducing_kl(b, q, D) - scale * kl(mu, S),
        ok,
        theta_K + theta_x + theta_diagonal,
        weight * gphi,
        Z_K + Z_x,
        xp.sum(gX, axis=0) - scale * mu,
        xp.sum(gX * eps, axis=0) / (2.0 * root) - 0.5 * scale * (1.0 - 1.0 / S),
        weight * xp.take(xp.concat(gmean, axis=1), _put(b, order), axis=1) - q.mean,
        b.eye(Z.shape[0]) + (weight / D)[:, None, None] * xp.concat(curvatures),
        A,
    )


class _Terms(NamedTuple):
    """A part's sum of ℓ, its derivatives in m and v (points, outputs), and in φ."""

    value: Array
    m: Array
    v: Array
    phi: Array


# Overflow at a trial point is a value that the search undoes: NumPy need not warn of it.
@np.errstate(all="ignore")
def _terms(
    likelihood: Likelihood,
    phi: Array,
    entries: Entries,
    A: Array,
    mean: Array,
    v: Array,
    eps: Array,
) -> _Terms:
    xp = backend.of(A).xp
    shape = (*eps.shape[:2], mean.shape[1])
    m = xp.reshape(xp.matrix_transpose(A) @ mean, shape) + entries.offset
    v = xp.reshape(xp.matrix_transpose(v), shape)
    e = likelihood.expected(entries.Y, m, v, phi, entries.exposure)
    slopes = likelihood.expected_theta(entries.Y, m, v, phi, entries.exposure)
    value, gm, gv = e.value, e.m, e.v
    if entries.seen is not None:
        seen = xp.broadcast_to(entries.seen > 0.5, shape)
        value, gm, gv = (xp.where(seen, a, 0.0) for a in (value, gm, gv))
        slopes = xp.where(seen, slopes, 0.0)
    flat = (shape[0] * shape[1], shape[2])
    return _Terms(
        xp.sum(value),
        xp.reshape(gm, flat),
        xp.reshape(gv, flat),
        xp.sum(slopes, axis=(1, 2, 3)),
    )


def _parts(
    b: Backend, totals: Totals, shape: tuple[int, ...], points: int
) -> Iterator[tuple[slice, list[_Part]]]:
    """Ranges of groups, and parts of their outputs, whose temporaries fit the chunk's bytes.

    Outputs come sorted by group, in their order.
    """
    r, M, _ = shape
    order = np.argsort(totals.which, kind="stable")
    groups = max(1, CHUNK_BYTES // (b.itemsize * M * points))
    columns = max(1, CHUNK_BYTES // (4 * b.itemsize * points))
    for g in range(0, r, groups):
        stop = min(g + groups, r)
        inside = order[(totals.which[order] >= g) & (totals.which[order] < stop)]
        pieces = [inside[i : i + columns] for i in range(0, inside.size, columns)]
        yield slice(g, stop), [_Part(piece, totals.which[piece] - g) for piece in pieces]


def _columns(b: Backend, entries: Entries, columns: np.ndarray) -> Entries:
    """Some of the outputs."""
    xp, where = b.xp, _put(b, columns)

    def pick(a: Array | None) -> Array | None:
        return a if a is None or a.shape[1] == 1 < entries.Y.shape[1] else xp.take(a, where, axis=1)

    return Entries(
        xp.take(entries.Y, where, axis=1),
        pick(entries.seen),
        pick(entries.exposure),
        xp.take(entries.offset, where),
    )


def _put(b: Backend, index: np.ndarray) -> Array:
    return b.xp.asarray(np.array(index, dtype=np.int64), device=b.device)


__all__ = ["Entries", "sampled_bound"]
