"""A table whose rows are with workers: centred, scaled and given starting latents where it is."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from gplvm_xp import backend as backends
from gplvm_xp.engine import Session
from gplvm_xp.objectives.collapsed import Totals

# Up to this many columns the matrix of their products is made once, beyond it is iterated with.
_COLUMNS, _SPARE, _ROUNDS = 512, 10, 15
# Data are the same if what is known of them differs by no more than rounding.
_ROUNDING = 1e-11
_MARKS = ("number of observed entries", "sum of squares", "sum that depends on the order")
# Rows of the latents that are shown to what chooses the starting values of shared parameters.
_SAMPLE = 20_000


class Table(NamedTuple):
    """What is known here of a table that is with workers.

    Attributes
    ----------
    rows : tuple of int
        Of each shard.
    mean, scale : ndarray (D,)
        Removed from and divided out of the columns.
    variance : float
        Mean square of what is left, over observed entries.
    totals : Totals
    marks : ndarray (k, 3)
        Of each shard as it came: observed entries, sum of squares and Σ_nd (n + 1)(d + 1) y_nd, by
        which other data are told apart.
    """

    rows: tuple[int, ...]
    mean: np.ndarray
    scale: np.ndarray
    variance: float
    totals: Totals
    marks: np.ndarray

    def check_marks(self, marks: np.ndarray, path: str) -> None:
        """Refuse the marks of other data, which the checkpoint at ``path`` has.

        Raises
        ------
        ValueError
            If they differ by more than rounding; the text says where.
        """
        # The third is a product of the table with numbers of these squares.
        down, across = (
            length * (length + 1.0) * (2.0 * length + 1.0) / 6.0
            for length in (np.asarray(self.rows, dtype=float), self.mean.size)
        )
        entries, squares = self.marks[:, 0], self.marks[:, 1]
        size = np.stack([entries, squares, np.sqrt(down * across * squares)], axis=1)
        other = np.abs(marks - self.marks) > _ROUNDING * size
        shards = np.flatnonzero(other.any(axis=1))
        if shards.size:
            k = shards[0]
            what = [
                f"{name} {was:.12g} there and {now:.12g} here"
                for name, was, now, differs in zip(
                    _MARKS, marks[k], self.marks[k], other[k], strict=True
                )
                if differs
            ]
            raise ValueError(
                f"the checkpoint {path!r} is of other data: {shards.size} of {len(self.rows)} "
                f"shards differ, the first is shard {k} ({'; '.join(what)}); expected the same "
                "rows in the same order, with the same entries missing"
            )


def prepared(session: Session, rows: list[int], D: int, scale: bool) -> Table:
    """Have the workers centre their rows, scale them and find what is missing.

    Parameters
    ----------
    session : Session
        Of :class:`~gplvm_xp.objectives.shard.Shard` workers, new.
    rows : list of int
        Rows of each.
    D : int
        Columns.
    scale : bool
        Whether columns are divided by their standard deviations.

    Raises
    ------
    ValueError
        If an entry is infinite, a row or a column has none that is observed, or every column is
        constant.
    """
    marks, varies = _surveyed(session, rows)
    count, total, _ = map(as_host, session.map_reduce("moments", np.zeros(D)))
    mean = total / count
    # Again about the mean: the squares of numbers with a large offset lose their digits.
    _, rest, squares = map(as_host, session.map_reduce("moments", mean))
    mean = mean + rest / count
    deviation = np.sqrt(np.maximum(squares / count - (rest / count) ** 2, 0.0))
    # Rounding of the mean gives a constant column a width of a few units in the last place.
    wide = varies & (deviation > 0.0)
    divisor = np.where(wide, deviation, 1.0) if scale else np.ones(D)
    labels = np.stack([as_host(pattern) for (pattern,) in session.collect("patterns")])
    which = np.ravel(np.unique(labels, axis=1, return_inverse=True)[1])
    arguments = (mean, divisor, which.astype(float))
    observed, squares = map(as_host, session.map_reduce("prepare", *arguments))
    outputs = np.bincount(which).astype(float)
    totals = Totals(which, observed * outputs, squares, outputs)
    variance = np.sum(squares) / np.sum(totals.entries)
    return Table(tuple(rows), mean, divisor, variance, totals, marks)


def _surveyed(session: Session, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Marks of each shard (k, 3), and whether each column varies (D,); refuses bad tables."""
    found = [tuple(map(as_host, shard)) for shard in session.collect("survey")]
    marks, infinite, empty, low, high = (np.stack(part) for part in zip(*found, strict=True))
    begins = np.cumsum([0, *rows])
    if infinite[:, 0].any():
        k = np.argmax(infinite[:, 0] > 0)
        count, (i, j) = np.sum(infinite[:, 0]), infinite[k, 1:]
        raise ValueError(
            f"X contains infinity in row {begins[k] + i:.0f}, column {j:.0f} ({count:.0f} such "
            "entries); expected finite numbers, or NaN where a value is missing"
        )
    low, high = np.min(low, axis=0), np.max(high, axis=0)
    k = np.argmax(empty[:, 0] > 0)
    columns = np.flatnonzero(low > high)
    for what, count, first in (
        ("row", np.sum(empty[:, 0]), begins[k] + empty[k, 1]),
        ("column", columns.size, columns[:1].sum()),
    ):
        if count:
            raise ValueError(
                f"{what} {first:.0f} of X has no observed entry ({count:.0f} such {what}s); remove "
                "it before fitting"
            )
    if sum(rows) > 1 and not np.any(high > low):
        raise ValueError(
            "every column of X is constant, so there is nothing to embed; check that rows are "
            "observations and columns are variables"
        )
    return marks, high > low


def place_latents(
    session: Session, table: Table, mu: np.ndarray | int, S: np.ndarray | float | None
) -> np.ndarray:
    """Give the workers their starting latents; returns some rows of them.

    Parameters
    ----------
    mu : ndarray (n, q) or int
        Latents, or how many principal components.
    S : ndarray (n, q), float or None
        Their variances; None: points.

    Returns
    -------
    ndarray (k, q)
        Rows at equal distances, at most 20,000 and one for each shard.

    Raises
    ------
    ValueError
        If the shapes do not fit the table, or there are fewer columns than components.
    """
    n = sum(table.rows)
    if isinstance(mu, np.ndarray):
        if mu.shape[0] != n or (isinstance(S, np.ndarray) and S.shape != mu.shape):
            raise ValueError(
                f"mu has shape {mu.shape} and S {getattr(S, 'shape', S)} for {n} rows of "
                "Y; expected one row of each for each"
            )
        variances = mu[:0] if S is None else np.array(np.broadcast_to(S, mu.shape))
        ends = np.cumsum([0, *table.rows])
        pieces = [slice(i, j) for i, j in itertools.pairwise(ends)]
        session.scatter("place", [(mu[p], variances[p]) for p in pieces])
    else:
        _principal(session, table, mu, S)
    step = np.asarray([-(-n // _SAMPLE)], dtype=float)
    return np.concatenate([as_host(rows) for (rows,) in session.collect("sample", step)])


def _principal(session: Session, table: Table, q: int, S: np.ndarray | float | None) -> None:
    """Principal components as latents: signs fixed, centred, the widest of unit deviation.

    The largest entry of a column is positive. Missing entries count as column means.
    """
    if isinstance(S, np.ndarray):
        raise ValueError("S is an array and mu a number; expected one variance, or latents too")
    D, n = table.mean.size, sum(table.rows)
    if not 1 <= q <= D:
        raise ValueError(f"mu={q!r} latents were asked for of {D} columns; expected 1 to {D}")
    if D <= _COLUMNS:
        product = as_host(session.map_reduce("power", np.eye(D))[0])
        V = np.linalg.eigh(product)[1][:, ::-1][:, :q]
    else:
        width = min(q + _SPARE, D)
        V = np.random.default_rng(0).standard_normal((D, width))
        for _ in range(_ROUNDS):
            V = np.linalg.qr(as_host(session.map_reduce("power", V)[0]))[0]
        product = V.T @ as_host(session.map_reduce("power", V)[0])
        V = V @ np.linalg.eigh(0.5 * (product + product.T))[1][:, ::-1][:, :q]
    found = [tuple(map(as_host, shard)) for shard in session.collect("project", V)]
    mean, squares = (sum(shard[i] for shard in found) / n for i in range(2))
    farthest = np.stack([shard[2] for shard in found])
    far = farthest[np.argmax(np.abs(farthest), axis=0), np.arange(q)]
    widest = np.sqrt(np.max(np.maximum(squares - mean**2, 0.0)))
    factor = np.where(far < 0.0, -1.0, 1.0) / (widest if widest > 0.0 else 1.0)
    variance = np.zeros(0) if S is None else np.full(1, S)
    session.map_reduce("adjust", factor, mean * factor, variance)


def as_host(a: Any) -> np.ndarray:
    """An array of any library as float64 numbers on the host."""
    return np.asarray(backends.of(a).to_host(a), dtype=np.float64)


__all__ = ["Table", "as_host", "place_latents", "prepared"]
