"""Starts for runs of missing frames: straight lines, and paths bent to end where they must."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np

from gplvm_xp.latents import RowFacts

# A path through a gap may take so much more or less time than the gap has.
STRETCH = 0.3


class Gap(NamedTuple):
    """Rows ``begin`` to ``end`` − 1 are missing behind a frame that is not.

    ``closed`` says whether the sequence goes on at ``end``.
    """

    begin: int
    end: int
    closed: bool


def gaps(rows: RowFacts, empty: np.ndarray) -> list[Gap]:
    """The runs of empty rows that have a frame before them in their sequence."""
    out = []
    for begin, end in itertools.pairwise(rows.edges):
        known = begin + np.flatnonzero(~empty[begin:end])
        for i, j in zip(known, [*known[1:], end], strict=True):
            if j > i + 1:
                out.append(Gap(i + 1, j, j < end))
    return out


def straight(rows: RowFacts, X: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """X (n, q) with its empty rows on straight lines in time between the others of their sequence.

    Before the first and after the last of them the nearest is repeated.
    """
    X, stamps = X.copy(), rows.stamps
    for begin, end in itertools.pairwise(rows.edges):
        t, gone = stamps[begin:end], empty[begin:end]
        for column in X[begin:end].T:
            column[gone] = np.interp(t[gone], t[~gone], column[~gone])
    return X


def longest(found: list[Gap]) -> int:
    """Steps that a path for any of these gaps needs."""
    return math.ceil((1.0 + STRETCH) * max(gap.end - gap.begin + 1 for gap in found))


def bent(path: np.ndarray, gap: Gap, X: np.ndarray) -> np.ndarray:
    """The frames of a gap, (end − begin, q), along a path (steps + 1, q) that begins before it.

    Where the gap is closed, the path is cut where it comes nearest to the frame behind it, spread
    evenly over the time there is, and what it misses is taken away in proportion to time.
    """
    steps = gap.end - gap.begin + 1
    if not gap.closed:
        return path[1:steps]
    low, high = math.floor((1.0 - STRETCH) * steps), math.ceil((1.0 + STRETCH) * steps)
    tried = np.arange(max(low, 1), high + 1)
    last = tried[np.argmin(np.sum((path[tried] - X[gap.end]) ** 2, axis=1))]
    share = np.arange(1, steps) / steps
    frames = np.arange(path.shape[0])
    inside = np.stack([np.interp(share * last, frames, column) for column in path.T], axis=1)
    return np.asarray(inside + share[:, None] * (X[gap.end] - path[last]))


__all__ = ["Gap", "bent", "gaps", "longest", "straight"]
