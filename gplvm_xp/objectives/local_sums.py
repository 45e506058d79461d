"""Sums of local likelihoods over any number of blocks, stack by stack, with their gradients.

Stacks run in threads where cores are free. What they add, and the gradients in the latents that go
back to the rows of the table, are added in the order of the stacks: the bits depend on the
arguments only. Memory is that of a few stacks, whatever the number of blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.kernels import Kernel
from gplvm_xp.objectives.local import (
    Term,
    check_index,
    conditional,
    gathered,
    joint,
    split_index,
)

# Rows of a square patch of latents that about one stack of blocks covers.
_PATCH = 128


@dataclass(frozen=True)
class Part:
    """Blocks that are worked on together.

    Attributes
    ----------
    rows : integer array (B R,)
        Row numbers; of a filler any.
    mask : array (B, R) or None
        0 for fillers; None where there are none.
    plan : Array
        For the backend's ``scatter_add``.
    """

    rows: Array
    mask: Array | None
    plan: Array


@dataclass(frozen=True)
class Blocks:
    """Which rows each block has: structure, put where the table is and prepared once.

    Attributes
    ----------
    shape : tuple of int
        Blocks and rows of a block, (B, R).
    parts : tuple of Part
    """

    shape: tuple[int, int]
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, b: Backend, index: np.ndarray, n: int, columns: int) -> Blocks:
        """Prepare blocks.

        Parameters
        ----------
        b : Backend
        index : integer ndarray (B, R)
            Rows of each block, on the host; negative for a filler, which may not be last. On NumPy
            it is not copied.
        n, columns : int
            Shape of the table of outputs; its columns have a say in what fits in a stack.

        Raises
        ------
        ValueError
            If there is no block, a row number is not below n, or a block ends with a filler.
        """
        check_index(index, n)
        B, R = index.shape

        def part(where: slice) -> Part:
            rows, mask = split_index(index[where])
            here = rows
            if b.name != "numpy":
                here = b.xp.asarray(rows, dtype=b.xp.int64, device=b.device)
            return Part(here, None if mask is None else b.asarray(mask), b.scatter_plan(rows, n))

        return cls((B, R), tuple(map(part, stacks(b, B, R, columns))))


def stacks(b: Backend, B: int, R: int, columns: int) -> list[slice]:
    """How many blocks go together: by their outputs where those are more than their covariances."""
    return b.stacks(B, R * min(max(R, columns), 2 * R))


def nearby(X: np.ndarray) -> np.ndarray:
    """An order (n,) of positions (n, q) in which those near each other come together.

    Blocks of one stack then share most of their rows, which are read once from a large table.
    Strips across the first dimension, each in the order of the second.
    """
    n = X.shape[0]
    strips = max(1, math.isqrt(n // _PATCH))
    rank = np.empty(n, dtype=np.int64)
    rank[np.argsort(X[:, 0], kind="stable")] = np.arange(n)
    return np.lexsort((X[:, min(1, X.shape[1] - 1)], rank * strips // n))


class Summed(NamedTuple):
    """A sum over blocks, and its gradients.

    Attributes
    ----------
    value : array, 0-d
        Nats; −inf where a block could not be factorised.
    theta, noise, X : array (p,), 0-d and (n, q)
    """

    value: Array
    theta: Array
    noise: Array
    X: Array


def summed(
    kernel: Kernel,
    theta: Array,
    noise: Array,
    X: Array,
    Y: Array,
    blocks: Blocks,
    term: Term,
    outputs: int | None = None,
) -> Summed:
    """The terms of all blocks together, and the gradients.

    Parameters
    ----------
    kernel : Kernel
    theta : array (p,)
    noise : array, 0-d
        What is added to the diagonal: σ² and any jitter.
    X : array (n, q)
    Y : array (n, D)
        Centred.
    blocks : Blocks
    term : callable
        :func:`~gplvm_xp.objectives.local.joint` or ``conditional``.
    outputs : int, optional
        The number of outputs where Y is a smaller matrix with the same Y Yᵀ.

    Returns
    -------
    Summed
    """
    b = backend.of(X)
    xp = b.xp
    code = b.fused(kernel.cuda(X.shape[1]), X.shape[1])
    fused = None if code is None else code.local(blocks.shape[1])
    if fused is not None and term is not conditional and not fused.has_joint:
        fused = None

    @np.errstate(all="ignore")
    def one(which: slice) -> tuple[Part, tuple[Array, Array, Array], Array]:
        (part,) = blocks.parts[which]
        if fused is not None:
            rows = xp.reshape(part.rows, (-1, blocks.shape[1]))
            D = Y.shape[1] if outputs is None else outputs
            values, gtheta, gnoise, gX = fused.terms(
                theta, noise, X, Y, rows, part.mask, D, joint=term is joint
            )
            return part, (xp.sum(values), gtheta, gnoise), xp.reshape(gX, (-1, X.shape[1]))
        x, y = gathered(X, Y, part.rows, blocks.shape[1])
        values, _, pull = term(kernel, theta, noise, x, y, part.mask, outputs)
        gtheta, gnoise, gX = pull(xp.ones_like(values))
        return part, (xp.sum(values), gtheta, gnoise), xp.reshape(gX, (-1, X.shape[1]))

    value, gtheta, gnoise = b.scalar(0.0), xp.zeros_like(theta), b.scalar(0.0)
    points = xp.zeros_like(X)
    with b.calm(1):
        singles = [slice(i, i + 1) for i in range(len(blocks.parts))]
        for part, added, gX in b.map_parts(one, singles):
            value, gtheta, gnoise = value + added[0], gtheta + added[1], gnoise + added[2]
            points = b.scatter_add(points, part.plan, gX)
    return Summed(value, gtheta, gnoise, points)


__all__ = ["Blocks", "Part", "Summed", "nearby", "stacks", "summed"]
