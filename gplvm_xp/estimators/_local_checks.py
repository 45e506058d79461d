"""Checks of a local model's parameters, and what they come to."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np

from gplvm_xp.estimators._bayes_checks import _changed, whole_number
from gplvm_xp.estimators._checks import check_parameters
from gplvm_xp.objectives.neighbourhood_fit import Pace

INFERENCES = ("vecchia", "neighbourhood")
# R where it is not said, and the most blocks of a step.
NEIGHBOURS, MOST_BLOCKS = 32, 1024
# Steps over which the rates of a stochastic search that goes on rise, a quarter of all at most.
_RAMP = 100


def check_local(model: Any, Y: np.ndarray) -> int:
    """R for a table (n, D).

    Raises
    ------
    ValueError, TypeError
        Where a parameter does not fit the table.
    """
    if model.inference not in INFERENCES:
        raise ValueError(
            f"inference={model.inference!r} was given; expected one of "
            f"{', '.join(map(repr, INFERENCES))}"
        )
    for name in ("n_epochs", "batch_size"):
        value = getattr(model, name)
        if value is None and name == "batch_size":
            continue
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}={value!r} was given; expected an integer of 1 or more")
    for name in ("learning_rate", "kernel_learning_rate", "momentum"):
        value = getattr(model, name)
        real = isinstance(value, Real) and not isinstance(value, bool)
        number = float(value) if real else math.nan
        right = 0.0 <= number < 1.0 if name == "momentum" else 0.0 < number < math.inf
        if not right:
            need = "a number from 0 to below 1" if name == "momentum" else "a positive number"
            raise ValueError(f"{name}={value!r} was given; expected {need}")
    if not isinstance(model.adaptive, bool | np.bool_):
        raise ValueError(f"adaptive={model.adaptive!r} was given; expected True or False")
    check_parameters(model, Y)
    return whole_number(model, "n_neighbors", Y.shape[0], NEIGHBOURS, "rows")


def pace_of(model: Any, n: int, size: int, seed: int, drawn: np.ndarray | None) -> Pace:
    """How the stochastic search of a model over n rows goes.

    Parameters
    ----------
    size : int
        R.
    drawn : ndarray of int or None
        The rows that are drawn by a search that goes on: its rates are half of the usual ones and
        rise slowly, as averages know nothing yet and rows are near where they belong. Kernel and
        noise are all rows', and those drawn move them by their share of these.
    """
    # About as many blocks as cover the table once.
    usual = min(max(n // size, 1), MOST_BLOCKS)
    batch = usual if model.batch_size is None else model.batch_size
    rate, kernel_rate, momentum = (
        _plain(a) for a in (model.learning_rate, model.kernel_learning_rate, model.momentum)
    )
    ramp = 0
    if drawn is not None:
        rate, kernel_rate = 0.5 * rate, 0.5 * kernel_rate * drawn.size / n
        ramp = min(_RAMP, model.n_epochs * -(-drawn.size // batch) // 4)
    return Pace(
        n_neighbors=size,
        batch_size=batch,
        epochs=model.n_epochs,
        learning_rate=rate,
        kernel_learning_rate=kernel_rate,
        momentum=momentum,
        adaptive=model.adaptive,
        ramp=ramp,
        centres=drawn,
        seed=seed,
    )


def _plain(value: Any) -> float:
    """A number of Python's own, as strict array libraries take no other."""
    return float(value)


def check_goes_on(model: Any, Y: np.ndarray) -> None:
    """Refuse further rows (N, D) without entries, and another number of latent dimensions.

    Raises
    ------
    ValueError
        With what was seen and what is expected.
    """
    empty = np.flatnonzero(np.isnan(Y).all(axis=1))
    if empty.size:
        raise ValueError(
            f"row {empty[0]} of X has no observed entry ({empty.size} such rows); remove it before "
            "fitting"
        )
    q = model._host_embedding.shape[1]
    if model.n_components != q:
        raise _changed("n_components", model.n_components, q)


def restored_local(model: Any) -> None:
    """Raise ``ValueError`` where parts of a file don't fit each other."""
    (n, q), D = model._host_embedding.shape, model.mean_.size
    if model.n_features_in_ != D:
        raise ValueError(
            f"n_features_in_ is {model.n_features_in_}; expected {D}, the columns of its "
            "training_data_"
        )
    if not 1 <= model.n_neighbors_ <= n:
        raise ValueError(f"n_neighbors_ is {model.n_neighbors_}; expected 1 to {n}, its rows")
    try:
        model.kernel_.check(q)
    except ValueError as error:
        raise ValueError(
            f"its kernel does not fit the {q} latent dimensions of its embedding_: {error}"
        ) from error


__all__ = ["check_goes_on", "check_local", "pace_of", "restored_local"]
