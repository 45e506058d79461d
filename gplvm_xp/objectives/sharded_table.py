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
    """

    rows: tuple[int, ...]
    mean: np.ndarray
    scale: np.ndarray
    variance: float
    totals: Totals


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
        If a column has infinite entries, or none that are observed.
    """
    count, total, _, wrong = map(as_host, session.map_reduce("moments", np.zeros(D)))
    for bad, what in ((wrong > 0, "infinite entries"), (count == 0, "no observed entries")):
        if bad.any():
            columns = np.flatnonzero(bad)[:10].tolist()
            raise ValueError(
                f"columns {columns} of Y have {what}; expected numbers, or NaN where missing"
            )
    mean = total / count
    # Again about the mean: the squares of numbers with a large offset lose their digits.
    _, rest, squares, _ = map(as_host, session.map_reduce("moments", mean))
    mean = mean + rest / count
    deviation = np.sqrt(np.maximum(squares / count - (rest / count) ** 2, 0.0))
    divisor = np.where(deviation > 0.0, deviation, 1.0) if scale else np.ones(D)
    labels = np.stack([as_host(pattern) for (pattern,) in session.collect("patterns")])
    which = np.ravel(np.unique(labels, axis=1, return_inverse=True)[1])
    arguments = (mean, divisor, which.astype(float))
    observed, squares = map(as_host, session.map_reduce("prepare", *arguments))
    outputs = np.bincount(which).astype(float)
    totals = Totals(which, observed * outputs, squares, outputs)
    variance = np.sum(squares) / np.sum(totals.entries)
    return Table(tuple(rows), mean, divisor, variance, totals)


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
