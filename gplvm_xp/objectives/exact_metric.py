"""A metric for conjugate gradients on the exact objective that costs less than one of its steps.

Row i of Y says of its latent, given the other rows, (K⁻¹)_ii J_i J_iᵀ: the slopes J_i (q, D) of the
predicted mean at x_i, over the variance that the prediction leaves, 1/(K⁻¹)_ii. These blocks and
the expected Hessian of parameters and noise are never indefinite and take first derivatives of the
kernel only (docs/derivations/second_order.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from gplvm_xp._typing import Array

if TYPE_CHECKING:
    from gplvm_xp.objectives.exact_point import ExactPoint


def rows_metric(point: ExactPoint) -> Callable[[Array], Array]:
    """P⁻¹ as a function of a flat vector, P block diagonal: a q × q block for each latent, and one
    for all parameters and the noise.

    O(n² q D), and an expected Hessian-vector product for each parameter. The identity stands where
    a block has no factor.
    """
    b = point._b
    xp = b.xp
    size = point.x.shape[0]
    k = point.objective.layout.slices().get("X", slice(size, size)).start
    parts = []
    if k > 0:
        units = [b.asarray((np.arange(size) == i).astype(np.float64)) for i in range(k)]
        parts.append(xp.stack([point.fisher(e)[:k] for e in units])[None, :, :])
    if k < size:
        parts.append(_blocks(point))
    mean = xp.mean(xp.concat([xp.reshape(xp.linalg.diagonal(part), (-1,)) for part in parts]))
    # Where nothing at all is known, of a rotation say, a little is said.
    more = convex(point) + math.sqrt(b.eps) * mean
    inverses, start = [], 0
    for part in parts:
        g, m, _ = part.shape
        add = xp.reshape(more[start : start + g * m], (g, m, 1)) * b.eye(m)
        L, ok = b.factor(part + add)
        inverse = b.inverse_factor(L)
        inverse = xp.matrix_transpose(inverse) @ inverse
        inverses.append(xp.where(ok[:, None, None], inverse, b.eye(m)))
        start += g * m

    def solve(u: Array) -> Array:
        out, start = [], 0
        for inverse in inverses:
            g, m, _ = inverse.shape
            piece = xp.reshape(u[start : start + g * m], (g, m, 1))
            out.append(xp.reshape(inverse @ piece, (-1,)))
            start += g * m
        return xp.concat(out)

    return solve


def _blocks(point: ExactPoint) -> Array:
    """(K⁻¹)_ii J_i J_iᵀ of all rows, (n, q, q), summed over groups of outputs."""
    b = point._b
    xp = b.xp
    n, q = point._X.shape
    blocks = b.zeros((n, q * q))
    for state in point._with_inverses():
        J = []
        for a in range(q):
            step = b.asarray(np.tile(np.eye(q)[a], (state.X.shape[0], 1)))
            slope = point.objective.kernel.gram_jvp(point._theta, state.X, state.X, dX=step)
            J.append(b.product(slope, state.alpha))
        slopes = xp.stack(J, axis=1)
        own = b.diagonal(state.matrix)[:, None, None] * (slopes @ xp.matrix_transpose(slopes))
        blocks = blocks + point._all_rows(state, xp.reshape(own, (-1, q * q)))
    return xp.reshape(blocks, (n, q, q))


def convex(point: ExactPoint) -> Array:
    """The curvature of the priors' −ln p over the flat vector, (size,), where it is positive."""
    b = point._b
    xp = b.xp
    bends = {block.name: b.zeros((block.size,)) for block in point.objective.layout.blocks}
    logs = {block.name: block.transform == "log" for block in point.objective.layout.blocks}
    for name, prior in point._priors():
        if name in bends:
            value = point._natural[name]
            bend = -prior.curvatures(value)
            if logs[name]:
                bend = value * (value * bend - prior.log_densities(value)[1])
            bends[name] = bends[name] + xp.reshape(xp.where(bend > 0.0, bend, 0.0), (-1,))
    return xp.concat(list(bends.values()))


__all__ = ["convex", "rows_metric"]
