"""Where the search for new rows' latents begins, and what it ends with."""

from __future__ import annotations

import math
from typing import NamedTuple

from gplvm_xp._typing import Array
from gplvm_xp.inducing.base import InducingPosterior

# A row's latents are searched from so many places, as its posterior may have several modes.
STARTS = 3


class Placed(NamedTuple):
    """The latents of new rows.

    Attributes
    ----------
    mean : array (N, q)
    variance : array (N, q) or None
        None where latents are points.
    value : array (N,)
        What was maximised, nats: the row's bound, or ln p(y, x).
    settled : bool array (N,)
        Whether less than about 1e-6 nats (1e-2 in float32) are left to gain there.
    """

    mean: Array
    variance: Array | None
    value: Array
    settled: Array


def explained(
    p: InducingPosterior, anchors: Array, Y: Array, seen: Array, exposure: Array | None = None
) -> Array:
    """How well latents ``anchors`` (A, q) explain rows (N, D): ln p(row | anchor), (N, A).

    Gaussian noise: exact, three products. Another likelihood: at the mean outputs.
    """
    xp = p.backend.xp
    mean, var = p.moments(anchors)
    if p.noise is not None:
        s = var + p.noise
        constant = mean * mean / s + xp.log(s) + math.log(2.0 * math.pi)
        total = (seen * Y * Y) @ xp.matrix_transpose(1.0 / s)
        total = total - 2.0 * (seen * Y) @ xp.matrix_transpose(mean / s)
        return -0.5 * (total + seen @ xp.matrix_transpose(constant))
    columns = []
    for a in range(anchors.shape[0]):
        f = xp.broadcast_to(mean[a, :], Y.shape)
        terms = p.likelihood.varying(Y, f, None, exposure)
        columns.append(xp.sum(xp.where(seen > 0.0, terms, 0.0), axis=1))
    return xp.stack(columns, axis=1)


def starts(
    p: InducingPosterior,
    anchors: Array,
    near: Array,
    Y: Array,
    seen: Array,
    exposure: Array | None = None,
) -> list[Array]:
    """For every row the anchors that explain it best, :data:`STARTS` arrays (N, q).

    Each is farther than 1 from those before it, in units of ``near`` (q,): neighbours of the best
    would lead to the same mode.
    """
    b, xp = p.backend, p.backend.xp
    score = explained(p, anchors, Y, seen, exposure)
    score = xp.where(xp.isfinite(score), score, -xp.inf)
    out: list[Array] = []
    for _ in range(min(STARTS, anchors.shape[0])):
        best = xp.take(anchors, xp.argmax(score, axis=1), axis=0)
        out.append(best)
        apart = b.squared_distances(best / near, anchors / near)
        score = xp.where(apart < 1.0, -xp.inf, score)
    return out


__all__ = ["STARTS", "Placed", "explained", "starts"]
