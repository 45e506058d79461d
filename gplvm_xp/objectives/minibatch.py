"""The uncollapsed bound on a batch of rows, Gaussian noise: exact, by psi statistics.

q(u_d) = N(L_u m_d, L_u T_k T_kᵀ L_uᵀ), whitened, the factor T_k shared by the D_k outputs of a
group. With L_u L_uᵀ = K_uu, β = 1/σ², and over the rows B of the batch A = L_u⁻¹ Ψ1ᵀ Y,
C_k = L_u⁻¹ Ψ2_k L_u⁻ᵀ, the estimate (Hensman, Fusi & Lawrence 2013; derivations/minibatch.md)

    F_B = (n/|B|) { ½ Σ_k N_k D_k ln(β/2π) − ½ β e − KL(q(x)‖p(x)) } − KL_U,
    e = ‖Y‖² − 2 ⟨A, m⟩ + Σ_k [Σ_d m_dᵀ C_k m_d + D_k (tr T_kᵀ C_k T_k + ψ0_k − tr C_k)],
    KL_U = ½ ‖m‖² + ½ Σ_k D_k (‖T_k‖² − M − 2 ln |T_k|)

is unbiased: its average over batches is the bound. The gradient in T_k is given by the target Λ̂_k
of Λ_k = (T_k T_kᵀ)⁻¹, ∂T_k = D_k (T_k⁻ᵀ − Λ̂_k T_k); here Λ̂_k = I + (n/|B|) β C_k, and

    Λ_k ← (1−ρ) Λ_k + ρ Λ̂_k,   m_d ← m_d + ρ Λ_k⁻¹ ∂m_d  with the new Λ_k

is a natural-gradient step; with all rows, Gaussian noise and ρ = 1 it ends at the optimum.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.kernels import Kernel
from gplvm_xp.objectives.bayesian import inducing_gram, kl
from gplvm_xp.objectives.collapsed import (
    SLACK,
    Totals,
    back,
    both_sides,
    grouped,
    ungrouped,
)
from gplvm_xp.objectives.rows import Rows, Sums, backward, forward

# How far one step may move an output, in units of its function: a factor e for a log rate.
REACH = 1.0


class Whitened(NamedTuple):
    """q(U): u_d = L_u (mean_d + factor_k ε), ε ~ N(0, I).

    Attributes
    ----------
    mean : array (M, D)
    factor : array (r, M, M)
        Triangular, with a positive diagonal.
    """

    mean: Array
    factor: Array


def natural_step(
    q: Whitened, precision: Array, bound: BatchBound, totals: Totals, rho: float
) -> tuple[Whitened, Array, Array]:
    """A natural-gradient step of length ρ in (0, 1].

    Where latents are sampled, an output whose step would move it by more than :data:`REACH` at one
    of the batch's points moves its mean less far: a rate that is far too small has little
    curvature, and a full step from there would end at one that is far too large.

    Parameters
    ----------
    q : Whitened
        Where ``bound`` was taken.
    precision : array (r, M, M)
        Λ_k of q.
    bound : BatchBound
    totals : Totals
    rho : float

    Returns
    -------
    q : Whitened
    precision : array (r, M, M)
    ok : 0-d bool array
        Whether the new Λ_k have factors. O(r M³).
    """
    b = backend.of(q.mean)
    xp = b.xp
    precision = (1.0 - rho) * precision + rho * bound.precision
    factor, ok = inverse_factor(precision)
    half = xp.matrix_transpose(factor) @ grouped(b, bound.mean, totals)
    move = rho * ungrouped(b, factor @ half, totals)
    if bound.features is not None:
        peak = xp.max(xp.abs(xp.matrix_transpose(bound.features) @ move), axis=0)
        move = move * (REACH / xp.where(peak > REACH, peak, REACH))
    return Whitened(q.mean + move, factor), precision, ok


def inverse_factor(precision: Array) -> tuple[Array, Array]:
    """Upper triangles T_k with T_k T_kᵀ = Λ_k⁻¹, and whether they exist (0-d bool)."""
    b = backend.of(precision)
    lower, ok = b.factor(precision)
    return b.xp.matrix_transpose(b.inverse_factor(lower)), b.xp.all(ok)


class BatchBound(NamedTuple):
    """An unbiased estimate of the bound, its gradients, and where q(U) should go.

    Attributes
    ----------
    value : 0-d array
        Nats.
    ok : 0-d bool array
        Whether K_uu has a factor, and rounding left the prior's variances positive.
    theta : array (p,)
        Gradient in the kernel's parameters.
    likelihood : array (l,)
        Gradient in the likelihood's: for Gaussian noise in σ².
    Z : array (M, q)
    mu, S : array (|B|, q)
        Gradients in the rows' own; a row's part of the whole bound is |B|/n of them.
    mean : array (M, D)
        Gradient in q's mean.
    precision : array (r, M, M)
        Λ̂_k.
    features : array (M, points), or None
        L_u⁻¹ k(Z, x) where latents are sampled.
    """

    value: Array
    ok: Array
    theta: Array
    likelihood: Array
    Z: Array
    mu: Array
    S: Array
    mean: Array
    precision: Array
    features: Array | None = None


def gaussian_bound(
    kernel: Kernel,
    theta: Array,
    noise: Array,
    Z: Array,
    q: Whitened,
    rows: Rows,
    totals: Totals,
    *,
    scale: float = 1.0,
    jitter: float = 0.0,
) -> BatchBound:
    """F_B and its gradients for Gaussian noise.

    Parameters
    ----------
    kernel : Kernel
    theta : array (p,)
    noise : 0-d array
        σ².
    Z : array (M, q)
    q : Whitened
    rows : Rows
        The batch, with variances. Missing entries, per entry exactly: outputs that are not
        observed in the same rows are in different groups.
    totals : Totals
        Of the batch.
    scale : float
        n/|B|.
    jitter : float
        As in :func:`gplvm_xp.objectives.bayesian.inducing_gram`.

    Returns
    -------
    BatchBound

    Notes
    -----
    Cost: the batch's psi statistics twice, O(|B| M²), and O(M² D + r M³).
    """
    b = backend.of(theta)
    xp = b.xp
    S: Array = rows.S
    K, pull = inducing_gram(kernel, theta, Z, jitter)
    lower, ok = b.factor(K)
    sums = forward(kernel, theta, Z, rows)
    A = b.solve_triangular(lower, sums.cross)
    C = both_sides(b, lower, sums.psi2, trans=False)
    beta, weight = 1.0 / noise, scale / noise
    D, N, yy = (b.asarray(a) for a in (totals.outputs, totals.entries, totals.squares))
    mean = grouped(b, q.mean, totals)
    Cm = C @ mean
    trace = xp.sum(xp.linalg.diagonal(C), axis=1)
    rest = q.factor @ xp.matrix_transpose(q.factor) - b.eye(Z.shape[0])
    error = xp.sum(yy + D * (sums.psi0 + xp.sum(C * rest, axis=(1, 2))))
    error = error + xp.sum(mean * Cm) - 2.0 * xp.sum(A * q.mean)
    entries = xp.sum(N)
    value = 0.5 * scale * (entries * xp.log(beta / (2.0 * math.pi)) - beta * error)
    gA = weight * q.mean
    gC = -0.5 * weight * (mean @ xp.matrix_transpose(mean) + D[:, None, None] * rest)
    cotangents = Sums(
        -0.5 * weight * D, b.solve_triangular(lower, gA, trans=True), back(b, lower, gC)
    )
    inner = gA @ xp.matrix_transpose(A) + 2.0 * xp.sum(gC @ C, axis=0)
    gtheta, gZ = pull(gram_cotangent(b, lower, inner))
    g = backward(kernel, theta, Z, rows, cotangents)
    return BatchBound(
        value - inducing_kl(b, q, D) - scale * kl(rows.mu, S),
        ok & xp.all(trace <= (1.0 + SLACK) * sums.psi0),
        g.theta + gtheta,
        xp.reshape(-0.5 * scale * beta * (entries - beta * error), (1,)),
        g.Z + gZ,
        g.mu - scale * rows.mu,
        g.S - 0.5 * scale * (1.0 - 1.0 / S),
        weight * (A - ungrouped(b, Cm, totals)) - q.mean,
        b.eye(Z.shape[0]) + weight * C,
    )


def inducing_kl(b: Backend, q: Whitened, outputs: Array) -> Array:
    """KL_U in nats; ``outputs`` (r,) is D_k."""
    xp = b.xp
    logs = xp.sum(xp.log(xp.linalg.diagonal(q.factor)), axis=1)
    each = xp.sum(q.factor * q.factor, axis=(1, 2)) - q.factor.shape[-1] - 2.0 * logs
    return 0.5 * (xp.sum(q.mean * q.mean) + xp.sum(outputs * each))


def gram_cotangent(b: Backend, lower: Array, inner: Array) -> Array:
    """The gradient in K_uu through its factor alone, −sym(L⁻ᵀ Φ_½(inner) L⁻¹).

    ``inner`` is Ā Aᵀ for whitened A = L⁻¹ …, and 2 C̄ C for C = L⁻¹ … L⁻ᵀ with C̄ symmetric, in sum;
    Φ_½ is the lower triangle with its diagonal halved (Murray 2016).
    """
    xp = b.xp
    both = xp.tril(inner) + xp.matrix_transpose(xp.tril(inner, k=-1))
    return -0.5 * back(b, lower, both[None, ...])[0, ...]


__all__ = [
    "REACH",
    "BatchBound",
    "Whitened",
    "gaussian_bound",
    "gram_cotangent",
    "inducing_kl",
    "inverse_factor",
    "natural_step",
]
