"""How well a latent space separates known classes."""

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


__all__ = ["nearest_neighbour_errors"]
