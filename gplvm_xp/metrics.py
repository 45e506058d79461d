"""How well a latent space separates known classes, and how well entries are predicted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CHUNK_BYTES = 32 * 2**20


def nearest_neighbour_errors(
    X: ArrayLike, labels: ArrayLike, *, chunk_size: int | None = None
) -> int:
    """Number of points whose nearest other point has another label.

    The measure that GP-LVM papers print for an embedding: leave-one-out 1-nearest-neighbour
    classification with Euclidean distance. Among points at the same distance the first counts.

    Parameters
    ----------
    X : array_like of shape (n, q)
        Points, on the host, in any unit common to the columns.
    labels : array_like of shape (n,)
        Classes: integers, booleans or strings.
    chunk_size : int, optional
        Rows of the distance matrix held at a time. By default as many as fit in 32 MiB.

    Returns
    -------
    int
        0 (all neighbours agree) to n.

    Raises
    ------
    ValueError
        Wrong shapes, fewer than two points, NaN or infinity in ``X``, or ``chunk_size`` below 1.

    Notes
    -----
    Time O(n² q), memory ``chunk_size`` × n × 8 bytes. Distances are sums of squared differences,
    not expanded products, so points far from the origin lose no digits.

    Source: N. D. Lawrence, Probabilistic non-linear principal component analysis with Gaussian
    process latent variable models, JMLR 6, 2005.

    Examples
    --------
    >>> nearest_neighbour_errors([[0.0], [0.1], [5.0], [5.2]], ["a", "a", "b", "a"])
    2
    """
    points = np.asarray(X, dtype=np.float64)
    classes = np.asarray(labels)
    _check(points, classes, chunk_size)
    n = points.shape[0]
    rows = chunk_size or max(1, _CHUNK_BYTES // (8 * n))
    return sum(
        _errors_of_rows(points, classes, start, min(start + rows, n)) for start in range(0, n, rows)
    )


def root_mean_squared_error(
    truth: ArrayLike, predicted: ArrayLike, *, mask: ArrayLike | None = None
) -> float:
    """√ of the mean of (predicted − truth)² over the entries that are judged.

    The "test RMSE" of papers on reconstruction: one mean over all entries, not one a column.

    Parameters
    ----------
    truth : array_like
        Table of any shape, on the host. NaN is unknown, and never judged.
    predicted : array_like
        Of the same shape.
    mask : array_like of bool, optional
        Of the same shape: True where an entry is judged, for example those that were hidden from
        the fit. By default all that are known.

    Returns
    -------
    float
        In the unit of the table.

    Raises
    ------
    ValueError
        Different shapes, a mask that is not of booleans, nothing to judge, infinity in the truth,
        or a prediction that is NaN or infinite at an entry that is judged.

    Examples
    --------
    >>> root_mean_squared_error([[1.0, 2.0]], [[1.0, 5.0]])
    2.1213203435596424
    """
    y, mean = _judged(truth, mask, predicted=predicted)
    return float(np.sqrt(np.mean((mean - y) ** 2)))


def mean_absolute_error(
    truth: ArrayLike, predicted: ArrayLike, *, mask: ArrayLike | None = None
) -> float:
    """Mean of |predicted − truth| over the entries that are judged.

    Parameters
    ----------
    truth, predicted, mask : array_like
        As for :func:`root_mean_squared_error`.

    Returns
    -------
    float
        In the unit of the table.

    Raises
    ------
    ValueError
        As for :func:`root_mean_squared_error`.

    Examples
    --------
    >>> mean_absolute_error([[1.0, 2.0, 3.0]], [[1.0, 5.0, 0.0]], mask=[[True, True, False]])
    1.5
    """
    y, mean = _judged(truth, mask, predicted=predicted)
    return float(np.mean(np.abs(mean - y)))


def negative_log_density(
    truth: ArrayLike,
    predicted: ArrayLike,
    variance: ArrayLike,
    *,
    mask: ArrayLike | None = None,
) -> float:
    """Mean of −ln N(truth; predicted, variance) over the entries that are judged, nats an entry.

    Lower is better; unlike the errors it also punishes intervals that are too narrow or too wide.

    Parameters
    ----------
    truth, predicted, mask : array_like
        As for :func:`root_mean_squared_error`.
    variance : array_like
        Of each prediction, of the same shape, the noise of an observation included.

    Returns
    -------
    float
        In nats, of a density per unit of the table: for another unit a constant is added.

    Raises
    ------
    ValueError
        As for :func:`root_mean_squared_error`, or if a variance is not positive and finite at an
        entry that is judged.

    Notes
    -----
    Of normal densities. A model of counts or of classes has its own: ``score_samples`` of the
    fitted model.

    Source: J. Quiñonero-Candela et al., Evaluating predictive uncertainty challenge, Machine
    Learning Challenges, LNCS 3944, 2006.

    Examples
    --------
    >>> round(negative_log_density([0.0, 1.0], [0.0, 0.0], [1.0, 1.0]), 6)
    1.168939
    """
    y, mean, v = _judged(truth, mask, predicted=predicted, variance=variance)
    if not np.all(v > 0.0):
        raise ValueError(
            f"variance has {int(np.sum(v <= 0.0))} entries of 0 or less where it is judged; "
            "expected positive numbers, the noise of an observation included"
        )
    return float(0.5 * np.mean((mean - y) ** 2 / v + np.log(2.0 * np.pi * v)))


def _judged(
    truth: ArrayLike, mask: ArrayLike | None, **others: ArrayLike
) -> tuple[NDArray[np.float64], ...]:
    """The entries of all tables that are judged, as vectors, the truth first."""
    y = np.asarray(truth, dtype=np.float64)
    keep = ~np.isnan(y)
    if mask is not None:
        chosen = np.asarray(mask)
        if chosen.dtype != np.bool_ or chosen.shape != y.shape:
            raise ValueError(
                f"mask is {chosen.dtype} of shape {chosen.shape}, expected booleans of the shape "
                f"{y.shape} of the truth: True where an entry is judged."
            )
        keep &= chosen
    if not keep.any():
        raise ValueError(
            "no entry is judged: the mask and the known entries of the truth have none in common; "
            "give a mask that is True where the truth is known."
        )
    out = [y[keep]]
    for name, values in others.items():
        table = np.asarray(values, dtype=np.float64)
        if table.shape != y.shape:
            raise ValueError(f"{name} has shape {table.shape}, expected {y.shape} as the truth.")
        out.append(table[keep])
    for name, entries in zip(("truth", *others), out, strict=True):
        bad = int(np.count_nonzero(~np.isfinite(entries)))
        if bad:
            raise ValueError(
                f"{name} has {bad} entries that are NaN or infinite among those judged; fill them, "
                "or leave them out by the mask."
            )
    return tuple(out)


def _errors_of_rows(points: NDArray[Any], classes: NDArray[Any], start: int, stop: int) -> int:
    # Imported here: it takes longer than the whole of this package.
    from scipy.spatial.distance import cdist

    distances = cdist(points[start:stop], points, "sqeuclidean")
    distances[np.arange(stop - start), np.arange(start, stop)] = np.inf
    return int(np.count_nonzero(classes[distances.argmin(axis=1)] != classes[start:stop]))


def _check(points: NDArray[Any], classes: NDArray[Any], chunk_size: int | None) -> None:
    if points.ndim != 2 or points.shape[0] < 2:
        raise ValueError(
            f"X has shape {points.shape}, expected (n, q) with at least two rows: "
            "a neighbour is needed."
        )
    if classes.shape != points.shape[:1]:
        raise ValueError(
            f"labels have shape {classes.shape}, expected ({points.shape[0]},): one for each row."
        )
    bad = int(np.count_nonzero(~np.isfinite(points)))
    if bad:
        raise ValueError(f"X has {bad} values that are NaN or infinite; drop those rows first.")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}, expected at least 1, or None for the default.")


__all__ = [
    "mean_absolute_error",
    "nearest_neighbour_errors",
    "negative_log_density",
    "root_mean_squared_error",
]
