"""Modes of many small densities at once: the best of several starts, Newton steps, curvature.

The densities are those of :func:`gplvm_xp.optim.minimise_batch`: ``fun(x, index) -> (f, g)`` for
some of N independent rows, f = −ln p up to a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.optim.batched import BatchObjective, minimise_batch


class Modes(NamedTuple):
    """The best end of each row.

    Attributes
    ----------
    x : array (N, d)
    value : array (N,)
    grad_norm : array (N,)
        Largest absolute gradient entry.
    """

    x: Array
    value: Array
    grad_norm: Array


def best_of(
    fun: BatchObjective,
    starts: Sequence[Array],
    *,
    max_steps: int,
    gtol: float,
    first_step: float = 1.0,
) -> Modes:
    """Minimise N functions from each of several starts (N, d) and keep every row's best end.

    All starts of all rows are one batch of :func:`minimise_batch`, whose arguments these are.
    """
    b = backend.of(starts[0])
    xp = b.xp
    N = starts[0].shape[0]
    owner = xp.concat([xp.arange(N, dtype=xp.int64, device=b.device)] * len(starts))
    end = minimise_batch(
        lambda x, i: fun(x, xp.take(owner, i, axis=0)),
        xp.concat(list(starts)),
        max_steps=max_steps,
        gtol=gtol,
        first_step=first_step,
    )
    best = Modes(end.x[:N, :], end.value[:N], end.grad_norm[:N])
    for k in range(1, len(starts)):
        part = slice(k * N, (k + 1) * N)
        better = end.value[part] < best.value
        best = Modes(
            xp.where(better[:, None], end.x[part, :], best.x),
            xp.where(better, end.value[part], best.value),
            xp.where(better, end.grad_norm[part], best.grad_norm),
        )
    return best


class Mixture(NamedTuple):
    """Each row's density as a mixture of K Gaussians.

    Attributes
    ----------
    x : array (K, N, d)
    covariance : array (K, N, d, d)
    weight : array (K, N)
        Of sum 1 in each row.
    """

    x: Array
    covariance: Array
    weight: Array


def mixture(
    fun: BatchObjective,
    anchors: Sequence[Array],
    width: Array,
    *,
    max_steps: int,
    gtol: float,
    first_step: float,
) -> Mixture:
    """exp(−fun) times a prior of equal Gaussians around K anchors (N, d), by Laplace's method.

    Each anchor a has its mode x_a of exp(−fun(x)) N(x; a, diag(width²)) and the curvature H_a
    there, and the weight exp(−f_a) |H_a|^(−½). ``fun`` is a likelihood: f without a prior. Modes of
    several anchors may coincide; their weights add up, as those of the prior's parts do.
    """
    b = backend.of(width)
    xp = b.xp
    K, (N, d) = len(anchors), anchors[0].shape
    owner = xp.concat([xp.arange(N, dtype=xp.int64, device=b.device)] * K)
    centre = xp.concat(list(anchors))

    def near(x: Array, index: Array) -> tuple[Array, Array]:
        f, g = fun(x, xp.take(owner, index, axis=0))
        away = (x - xp.take(centre, index, axis=0)) / width
        return f + 0.5 * xp.sum(away * away, axis=1), g + away / width

    end = minimise_batch(near, centre, max_steps=max_steps, gtol=gtol, first_step=first_step)
    # In units of the prior, which no curvature is below.
    H = hessians(near, end.x) * width[:, None] * width
    C, log_det = laplace(H, 1.0)
    log_weight = xp.reshape(-end.value - 0.5 * log_det, (K, N))
    weight = xp.exp(log_weight - xp.max(log_weight, axis=0, keepdims=True))
    return Mixture(
        xp.reshape(end.x, (K, N, d)),
        xp.reshape(C * width[:, None] * width, (K, N, d, d)),
        weight / xp.sum(weight, axis=0, keepdims=True),
    )


# A trial may lie anywhere, and one that fails is a value: NumPy need not warn of it.
@np.errstate(all="ignore")
def newton_step(fun: BatchObjective, x: Array, f: Array) -> tuple[Array, Array, Array]:
    """A Newton step of all rows, where f is convex and falls.

    Returns
    -------
    x : array (N, d)
    f : array (N,)
    promise : array (N,)
        How many nats another step promises; inf where f is not convex.
    """
    b = backend.of(x)
    xp = b.xp
    index = xp.arange(x.shape[0], dtype=xp.int64, device=b.device)
    values, vectors = xp.linalg.eigh(hessians(fun, x))
    convex = xp.all(values > 0.0, axis=1)
    values = xp.where(convex[:, None], values, 1.0)

    def along(g: Array) -> Array:
        return xp.sum(vectors * g[:, :, None], axis=1)

    def promised(g: Array) -> Array:
        decrease = 0.5 * xp.sum(along(g) ** 2 / values, axis=1)
        return xp.where(convex, decrease, xp.inf)

    g = fun(x, index)[1]
    trial = x - xp.sum(vectors * (along(g) / values)[:, None, :], axis=2)
    ft, gt = fun(trial, index)
    size = xp.abs(f)
    slack = 64.0 * b.eps * xp.where(size > 1.0, size, 1.0)
    take = convex & (ft <= f + slack) & (promised(gt) < promised(g))
    x, g = (xp.where(take[:, None], new, old) for new, old in ((trial, x), (gt, g)))
    flat = xp.max(xp.abs(g), axis=1) <= 1e-8
    return x, xp.where(take, ft, f), xp.where(flat, 0.0, promised(g))


def hessians(fun: BatchObjective, x: Array, step: float = 1e-4) -> Array:
    """∂²f/∂x∂xᵀ of all rows (N, d, d), by fourth-order differences of the exact gradient."""
    b = backend.of(x)
    xp = b.xp
    index = xp.arange(x.shape[0], dtype=xp.int64, device=b.device)
    h = step if b.itemsize == 8 else 100.0 * step

    def slope(a: int, h: float) -> Array:
        e = b.asarray(np.eye(x.shape[1])[a])
        up = fun(x + h * e, index)[1]
        return (up - fun(x - h * e, index)[1]) / (2.0 * h)

    columns = [(4.0 * slope(a, h) - slope(a, 2.0 * h)) / 3.0 for a in range(x.shape[1])]
    H = xp.stack(columns, axis=2)
    return 0.5 * (H + xp.matrix_transpose(H))


def laplace(H: Array, least: float) -> tuple[Array, Array]:
    """H⁻¹ (N, d, d) and ln|H| (N,) of Hessians with no eigenvalue below ``least``.

    Eigenvalues below it are raised to it: a saddle has no covariance, and data can't make a latent
    less certain than its prior.
    """
    xp = backend.of(H).xp
    values, vectors = xp.linalg.eigh(H)
    values = xp.where(values > least, values, least)
    covariance = (vectors / values[:, None, :]) @ xp.matrix_transpose(vectors)
    return covariance, xp.sum(xp.log(values), axis=1)


__all__ = ["Mixture", "Modes", "best_of", "hessians", "laplace", "mixture", "newton_step"]
