"""Several tables with the same rows: their names, their checks, and the wide table of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.estimators._data import table

_FORM = "expected a list of tables with the same rows, or a dictionary of them by name"


class View(BaseEstimator):  # type: ignore[misc]
    """What scikit-learn's checks know of one table: its columns and their names."""


def named(views: Any) -> dict[str, Any]:
    """The tables of a fit by name; those of a list are view0, view1, …

    Raises
    ------
    TypeError
        If it is one table, or a name is no text.
    ValueError
        If there are fewer than two tables, or one is None.
    """
    out = _by_name(views, None)
    if not out:
        raise ValueError(f"views is empty; {_FORM}, two or more")
    if len(out) == 1:
        raise ValueError(
            f"views has one table; {_FORM}, two or more: use GPLVM(n_components).fit(table) for one"
        )
    missing = [name for name, X in out.items() if X is None]
    if missing:
        raise ValueError(
            f"the view {missing[0]!r} is None; fit needs every table, with NaN in the rows that "
            "it lacks"
        )
    return out


def given(views: Any, names: Sequence[str]) -> dict[str, Any]:
    """Those of the fitted views that new rows have, by name.

    Raises
    ------
    TypeError, ValueError
        If ``views`` is of another form, names a view that was not fitted, or has none.
    """
    out = {name: X for name, X in _by_name(views, names).items() if X is not None}
    if not out:
        raise ValueError(f"no view was given; expected at least one of {', '.join(names)}")
    return out


def place(target: Any, names: Sequence[str]) -> int:
    """Which view a name or a number means.

    Raises
    ------
    ValueError
        If it means none.
    """
    numbers = range(-len(names), len(names))
    if isinstance(target, str) and target in names:
        return names.index(target)
    if isinstance(target, int) and not isinstance(target, bool) and target in numbers:
        return target % len(names)
    raise ValueError(
        f"target={target!r} was given; the views are {', '.join(map(repr, names))}: give a name, "
        f"or a number of 0 to {len(names) - 1}"
    )


def tables(views: Mapping[str, Any], *, reset: bool, columns: Any = None) -> list[np.ndarray]:
    """Float64 host tables with NaN for missing and equal numbers of rows.

    Parameters
    ----------
    views : mapping
        By name.
    reset : bool
        Whether these are training data.
    columns : mapping of str to (int, array of str or None), optional
        How many columns each view has, and their names: needed for new rows.

    Raises
    ------
    ValueError
        As :func:`gplvm_xp.estimators._data.table`, with the view's name; if the numbers of rows
        differ, or a training row has no entry in any view.
    """
    out = []
    for name, X in views.items():
        stand_in = View()
        if columns is not None:
            stand_in.n_features_in_, known = columns[name]
            if known is not None:
                stand_in.feature_names_in_ = known
        try:
            out.append(table(stand_in, X, reset=reset, empty_rows=True))
        except ValueError as error:
            raise ValueError(f"the view {name!r}: {error}") from error
    rows = [Y.shape[0] for Y in out]
    if len(set(rows)) > 1:
        counts = ", ".join(f"{name!r} has {n}" for name, n in zip(views, rows, strict=True))
        raise ValueError(
            f"the views have different numbers of rows: {counts}; expected the same rows in the "
            "same order in every view, with NaN in those that a view lacks"
        )
    if reset:
        empty = np.flatnonzero(np.all([np.isnan(Y).all(axis=1) for Y in out], axis=0))
        if empty.size:
            raise ValueError(
                f"row {empty[0]} has no observed entry in any view ({empty.size} such rows); "
                "remove it before fitting"
            )
    return out


def column_names(views: Mapping[str, Any]) -> np.ndarray | None:
    """The names of all columns, one view after the other, where every view has them."""
    names = []
    for X in views.values():
        own = getattr(X, "columns", None)
        if own is None or not all(isinstance(name, str) for name in own):
            return None
        names += list(own)
    return np.asarray(names, dtype=object)


def _by_name(views: Any, names: Sequence[str] | None) -> dict[str, Any]:
    if isinstance(views, Mapping):
        strangers = [name for name in views if not isinstance(name, str)]
        if strangers:
            raise TypeError(f"a view is named {strangers[0]!r}; expected text")
        unknown = [name for name in views if names is not None and name not in names]
        if unknown:
            raise ValueError(
                f"views names {', '.join(map(repr, unknown))}; the fitted ones are "
                f"{', '.join(map(repr, names or ()))}"
            )
        return dict(views) if names is None else {k: views[k] for k in names if k in views}
    if not isinstance(views, list | tuple):
        kind = type(views).__name__
        one = backend.is_array(views) or hasattr(views, "columns")
        hint = "; for one table use GPLVM(n_components).fit(table)" if one else ""
        raise TypeError(f"views is a {kind}; {_FORM}{hint}")
    if names is None:
        return {f"view{v}": X for v, X in enumerate(views)}
    if len(views) != len(names):
        raise ValueError(
            f"{len(views)} views were given and {len(names)} were fitted ({', '.join(names)}); "
            "expected one for each, None where there is none, or a dictionary of some by name"
        )
    return dict(zip(names, views, strict=True))


def first_array(views: Mapping[str, Any]) -> Array:
    """The table whose library and device results come back in."""
    return next(iter(views.values()))


__all__ = ["column_names", "first_array", "given", "named", "place", "tables"]
