"""Checks of the parameters of a model of several views, and what they mean for each view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from types import SimpleNamespace
from typing import Any

import numpy as np

from gplvm_xp.estimators._checks import check_parameters
from gplvm_xp.kernels import Kernel


def check_shared(model: Any, views: Sequence[np.ndarray]) -> list[int]:
    """The private dimensions of each view; all parameters fit the tables (n, D_v).

    Raises
    ------
    ValueError, TypeError
        Where a parameter doesn't fit.
    """
    names = model.view_names_
    private = _private(model.n_private, names)
    if not _whole(model.n_shared) or model.n_shared < 1:
        raise ValueError(f"n_shared={model.n_shared!r} was given; expected an integer of 1 or more")
    columns = sum(Y.shape[1] for Y in views)
    if model.n_shared >= columns:
        raise ValueError(
            f"n_shared={model.n_shared} and the views have {columns} columns in all; expected "
            "fewer latent dimensions than columns"
        )
    for name, own, Y in zip(names, private, views, strict=True):
        if own >= Y.shape[1]:
            raise ValueError(
                f"the view {name!r} has {Y.shape[1]} column(s) and would have {own} private "
                "dimension(s); expected fewer dimensions than columns: lower its n_private"
            )
    q, n = model.n_shared + sum(private), views[0].shape[0]
    if n > 1 and q >= n:
        raise ValueError(
            f"{q} latent dimensions ({model.n_shared} shared, {sum(private)} private) and {n} rows "
            "were given; expected fewer dimensions than rows"
        )
    if not _whole(model.warm_up) or model.warm_up < 0:
        raise ValueError(f"warm_up={model.warm_up!r} was given; expected an integer of 0 or more")
    each = {"n_components": q, "kernel": None, "noise_variance": None}
    check_parameters(SimpleNamespace(**model.get_params(deep=False) | each), np.hstack(views))
    return private


def kernels_of(given: Any, count: int) -> list[Kernel | None]:
    """A kernel or None for each of ``count`` views.

    Raises
    ------
    TypeError, ValueError
        If it is neither a kernel nor a sequence with an entry for each view.
    """
    if given is None or isinstance(given, Kernel):
        return [given] * count
    if isinstance(given, list | tuple) and all(isinstance(k, Kernel | None) for k in given):
        _require_count("kernel", given, count)
        return list(given)
    raise TypeError(
        f"kernel={given!r} was given; expected a kernel of gplvm_xp.kernels for all views, or a "
        "list with a kernel or None for each"
    )


def noises_of(given: Any, variances: Sequence[float]) -> list[float]:
    """The starting noise variance of each view: half of the view's variance unless given.

    Raises
    ------
    ValueError
        If one is no positive number, or there is not one for each view.
    """
    values = (
        list(given) if isinstance(given, list | tuple | np.ndarray) else [given] * len(variances)
    )
    _require_count("noise_variance", values, len(variances))
    for value in values:
        real = isinstance(value, Real) and not isinstance(value, bool)
        if value is not None and not (real and 0.0 < value < math.inf):
            raise ValueError(
                f"noise_variance={given!r} was given; expected a positive finite number for all "
                "views, or a list with a number or None for each"
            )
    pairs = zip(values, variances, strict=True)
    return [0.5 * variance if value is None else value for value, variance in pairs]


def _private(given: Any, names: Sequence[str]) -> list[int]:
    if given is None:
        return [0] * len(names)
    values = list(given) if isinstance(given, list | tuple | np.ndarray) else [given] * len(names)
    if not all(_whole(value) and value >= 0 for value in values):
        raise ValueError(
            f"n_private={given!r} was given; expected an integer of 0 or more for all views, a "
            "list of one for each, or None for views that all see all dimensions"
        )
    _require_count("n_private", values, len(names))
    return values


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _require_count(name: str, values: Sequence[Any], count: int) -> None:
    if len(values) != count:
        raise ValueError(
            f"{name} has {len(values)} entries and there are {count} views; expected one for each"
        )


__all__ = ["check_shared", "kernels_of", "noises_of"]
