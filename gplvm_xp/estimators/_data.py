"""Tables in and out: validation in scikit-learn's manner, and the data's own container."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data

from gplvm_xp import backend
from gplvm_xp._typing import Array

_TEXT = (
    "X holds text ({}); expected numbers, or NaN where a value is missing: drop such columns or "
    "turn them into numbers"
)


def table(estimator: Any, X: Array, *, reset: bool, empty_rows: bool = False) -> np.ndarray:
    """A float64 host table (n, D), NaN for missing; a Dask array of new rows is computed.

    Raises
    ------
    ValueError
        In scikit-learn's words for shapes and types; in ours for text, infinities, a constant
        table, rows (unless ``empty_rows``) or columns with nothing observed in the training data,
        and a Dask array as training data.
    """
    if is_lazy(X):
        check_lazy(X)
        if reset:
            raise ValueError(
                f"X is a Dask array of shape {X.shape}, and this fit needs all rows in memory; "
                "call X.compute() and give the result, or fit BayesianGPLVM with engine=client and "
                "collapsed inference, which leaves the rows with the workers"
            )
        X = X.compute()
    if not on_host(X):
        X = backend.of(X).to_host(X)
    try:
        Y = validate_data(
            estimator, X, reset=reset, dtype=np.float64, ensure_all_finite=False, order="C"
        )
    except ValueError as error:
        if not str(error).startswith("could not convert string"):
            raise
        raise ValueError(_TEXT.format(error)) from error
    Y = np.array(Y, dtype=np.float64, order="C")
    infinite = np.argwhere(np.isinf(Y))
    if infinite.size:
        i, j = infinite[0]
        raise ValueError(
            f"X contains infinity in row {i}, column {j} ({len(infinite)} such entries); expected "
            "finite numbers, or NaN where a value is missing"
        )
    # One bit pattern for zero and for missing, so that equal rows have equal bytes.
    Y += 0.0
    Y[np.isnan(Y)] = np.nan
    if not reset:
        return Y
    seen = ~np.isnan(Y)
    for axis, what in ((1, "row"), (0, "column")):
        empty = np.flatnonzero(~seen.any(axis=axis))
        if empty.size and not (empty_rows and axis == 1):
            raise ValueError(
                f"{what} {empty[0]} of X has no observed entry ({empty.size} such {what}s); remove "
                f"it before fitting"
            )
    if Y.shape[0] > 1 and not np.any(np.nanmax(Y, axis=0) > np.nanmin(Y, axis=0)):
        raise ValueError(
            "every column of X is constant, so there is nothing to embed; check that rows are "
            "observations and columns are variables"
        )
    return Y


def is_lazy(X: Any) -> bool:
    """Whether X is a Dask array: rows that are elsewhere, or nowhere yet."""
    return any(k.__module__.startswith("dask.array") for k in type(X).__mro__)


def check_lazy(X: Any) -> None:
    """Refuse a Dask array by what is known of it without its rows.

    Raises
    ------
    ValueError
        If it has not two axes or no columns, or its entries are no real numbers.
    """
    if X.ndim != 2 or X.shape[1] == 0:
        raise ValueError(
            f"X is a Dask array of shape {X.shape}; expected two axes, rows and columns, and at "
            "least one column"
        )
    if X.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: X is a Dask array of {X.dtype}")
    if X.dtype.kind not in "biuf":
        raise ValueError(_TEXT.format(f"a Dask array of {X.dtype}"))


@dataclass(frozen=True)
class Scaling:
    """Centre (and scale) of each column."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, Y: np.ndarray, scale: bool) -> Scaling:
        """Observed means, and standard deviations where asked for (1 for a constant column)."""
        mean = np.nanmean(Y, axis=0)
        if not scale:
            return cls(mean, np.ones_like(mean))
        # Rounding of the mean gives a constant column a width of a few units in the last place.
        varies, width = np.nanmax(Y, axis=0) > np.nanmin(Y, axis=0), np.nanstd(Y, axis=0)
        return cls(mean, np.where(varies & (width > 0), width, 1.0))

    def forward(self, Y: np.ndarray) -> np.ndarray:
        """The centred, scaled table."""
        return np.asarray((Y - self.mean) / self.scale)


def on_host(X: Any) -> bool:
    """Whether results for X are NumPy's: it is NumPy's, Dask's, or no array (a data frame)."""
    return is_lazy(X) or not backend.is_array(X) or backend.of(X).name == "numpy"


def to_like(a: np.ndarray, like: Any) -> Array:
    """A host result in the container of the user's data: its library and device, or NumPy."""
    if on_host(like):
        return a
    b = backend.of(like)
    kind = like.dtype if b.xp.isdtype(like.dtype, "real floating") else b.xp.float64
    return b.asarray(a, dtype=kind)


__all__ = ["Scaling", "check_lazy", "is_lazy", "on_host", "table", "to_like"]
