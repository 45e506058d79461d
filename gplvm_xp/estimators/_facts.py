"""What a fit is told of its rows beside their entries: labels, sequences, time stamps."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from gplvm_xp import backend
from gplvm_xp import init as starts
from gplvm_xp.backend import Backend
from gplvm_xp.latents import RowFacts, StructuredPrior

_USERS = {
    "sequences": "Dynamics() or OverTime() of gplvm_xp.row_priors",
    "times": "OverTime() of gplvm_xp.row_priors",
}
# How objects that are no label read.
_NONE = ("None", "nan", "<NA>", "NaT", "-1", "-1.0")


def row_facts(
    prior: StructuredPrior | None, Y: np.ndarray, labels: Any, sequences: Any, times: Any
) -> RowFacts:
    """The facts that a prior uses, checked; labels that it does not use are ignored.

    Parameters
    ----------
    prior : StructuredPrior or None
    Y : ndarray (n, D)
        NaN is missing.
    labels : array (n,) or None
        Text, integers or whole floats; None, NaN, −1 and empty text are rows without a label.
    sequences : sequence of int or None
        Lengths.
    times : array (n,) or None

    Raises
    ------
    ValueError
        If sequences or times were given and the prior does not use them, if they don't fit the rows
        or each other, or a sequence has no observed row.
    """
    n, uses = Y.shape[0], frozenset() if prior is None else prior.uses
    for name, given in (("sequences", sequences), ("times", times)):
        if given is not None and name not in uses:
            holder = "ties no rows together" if prior is None else f"is {prior!r}"
            raise ValueError(
                f"{name} was given and latent_prior {holder}, which does not use it; expected "
                f"latent_prior={_USERS[name]}: set it, or drop {name}"
            )
    lengths = None if sequences is None else _lengths(sequences, n)
    facts = RowFacts(
        n,
        lengths,
        None if times is None else _times(times, RowFacts(n, lengths)),
        _labels(labels, n) if "labels" in uses and labels is not None else None,
        Y.shape[1],
    )
    empty = np.isnan(Y).all(axis=1)
    for k, (begin, end) in enumerate(itertools.pairwise(facts.edges)):
        if empty[begin:end].all():
            raise ValueError(
                f"sequence {k} (rows {begin} to {end - 1}) has no observed entry; expected at "
                "least one frame to place the others by: drop the sequence"
            )
    return facts


def starting_latents(
    b: Backend,
    init: Any,
    Y: np.ndarray,
    q: int,
    rng: np.random.Generator,
    prior: StructuredPrior | None,
    rows: RowFacts,
) -> np.ndarray:
    """Starting latents (n, q), from the rows of Y (n, D) that have observed entries.

    The prior places the others among them, unless ``init`` is an array: that is taken as it is.
    """
    empty = np.isnan(Y).all(axis=1)
    if prior is None or not (empty.any() and isinstance(init, str)):
        return starts.latents(init, Y, q, rng)
    X = np.zeros((rows.count, q))
    X[~empty] = starts.latents(init, Y[~empty], q, rng)
    return prior.fill(b, rows, X, empty)


# -- checks ----------------------------------------------------------------------------------------


def _host(given: Any) -> np.ndarray:
    return np.asarray(backend.of(given).to_host(given) if backend.is_array(given) else given)


def _lengths(given: Any, n: int) -> np.ndarray:
    array = _host(given)
    whole = array.ndim == 1 and array.size > 0 and array.dtype.kind in "iu"
    total = array.sum() if whole else None
    if not whole or np.any(array < 1) or total != n:
        seen = f"of the sum {total}" if whole else f"of shape {array.shape} and type {array.dtype}"
        hint = ""
        if array.shape == (n,) and n > 1:
            hint = "; numbers of the sequence that each row belongs to are not lengths: count them"
        raise ValueError(
            f"sequences={_short(array)} {seen} was given; expected the lengths of the sequences in "
            f"the order of the rows, positive integers that sum to the {n} rows of X{hint}"
        )
    return array.astype(np.int64)


def _times(given: Any, rows: RowFacts) -> np.ndarray:
    array, n = _host(given), rows.count
    if array.shape != (n,) or array.dtype.kind not in "iuf":
        raise ValueError(
            f"times has shape {array.shape} and type {array.dtype}; expected a number for each of "
            f"the {n} rows of X (dates: seconds or days since one of them)"
        )
    stamps = array.astype(np.float64)
    for i in np.flatnonzero(~np.isfinite(stamps))[:1]:
        raise ValueError(
            f"times[{i}] is {stamps[i]}; expected finite time stamps, also of frames that are "
            "missing: give their times, or drop these rows"
        )
    inside = np.setdiff1d(np.arange(1, n), rows.edges)
    for i in inside[stamps[inside] <= stamps[inside - 1]][:1]:
        k = np.searchsorted(rows.edges, i, side="right") - 1
        what = "the time" if stamps[i] == stamps[i - 1] else "before that"
        raise ValueError(
            f"times[{i}] = {stamps[i]:.12g} is {what} of the row above it ({stamps[i - 1]:.12g}) "
            f"in sequence {k}; expected increasing time stamps within each sequence: sort its "
            "rows by time, join rows of one time, or give sequences=lengths where a new one begins"
        )
    return stamps


def _labels(given: Any, n: int) -> np.ndarray:
    """Integers from 0 in the order of the sorted labels, −1 where there is none."""
    array = _host(given)
    if array.shape != (n,):
        raise ValueError(
            f"y has shape {array.shape}; expected a label for each of the {n} rows of X, or None, "
            "NaN or −1 where there is none"
        )
    if array.dtype.kind in "OU":
        gone = np.array([str(v) in (("",) if isinstance(v, str) else _NONE) for v in array])
        array = array.astype(np.str_)
    elif array.dtype.kind == "f":
        gone = np.isnan(array) | (array == -1)
        if np.any(array[~gone] != np.round(array[~gone])):
            raise ValueError(
                "y holds numbers that are not whole; Discriminative takes labels of classes: "
                "divide a continuous quantity into classes first"
            )
    else:
        gone = array == -1 if array.dtype.kind == "i" else np.zeros(n, dtype=bool)
    codes = np.full(n, -1)
    codes[~gone] = np.ravel(np.unique(array[~gone], return_inverse=True)[1])
    return codes


def _short(array: np.ndarray) -> str:
    return np.array2string(array, threshold=6, edgeitems=3)


__all__ = ["row_facts", "starting_latents"]
