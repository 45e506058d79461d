"""Refusals of host data, in one voice: what was seen, what was expected, what to do."""

from __future__ import annotations

import numpy as np


def numbers(name: str, values: np.ndarray) -> np.ndarray:
    """``values`` as float64; NaN passes, infinity does not.

    Raises
    ------
    ValueError
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} has the dtype {array.dtype}; expected numbers: convert it first")
    array = array.astype(np.float64)
    refuse(name, array, np.isinf(array), "finite numbers (NaN where missing)", "remove it")
    return array


def refuse(name: str, values: np.ndarray, bad: np.ndarray, expected: str, advice: str) -> None:
    """Raise ``ValueError`` with the first offending value if any entry of ``bad`` is true."""
    places = np.argwhere(bad)
    if len(places):
        place = tuple(places[0])
        shown = ", ".join(str(i) for i in place)
        others = f" ({len(places)} such values)" if len(places) > 1 else ""
        raise ValueError(
            f"{name}[{shown}] = {values[place]:g}{others}; expected {expected}; {advice}"
        )


def counts(y: np.ndarray, instead: str) -> np.ndarray:
    """y as float64, refused unless it holds 0, 1, 2, … (and NaN)."""
    array = numbers("y", y)
    bad = (array < 0.0) | (np.isfinite(array) & (array != np.floor(array)))
    refuse("y", array, bad, "counts: whole numbers that are not negative", instead)
    return array


def labels(y: np.ndarray) -> None:
    """Refuse y unless it holds 0 and 1 (and NaN)."""
    array = numbers("y", y)
    bad = ~np.isnan(array) & (array != 0.0) & (array != 1.0)
    refuse("y", array, bad, "labels 0 and 1", "recode the classes, for example y == positive")


def exposures(exposure: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Exposure as float64 in y's shape, refused unless ≥ 0, somewhere positive, and so wherever y
    is."""
    array = numbers("exposure", exposure)
    try:
        array = np.broadcast_to(array, y.shape)
    except ValueError as error:
        raise ValueError(
            f"exposure has the shape {array.shape} and y has {y.shape}; expected one exposure for "
            "each observation, or one for all"
        ) from error
    bad = np.isnan(array) & ~np.isnan(y) | (array < 0.0)
    refuse("exposure", array, bad, "numbers that are not negative", "give 0 where there is none")
    if y.size and not np.any(array > 0.0):
        raise ValueError(
            "exposure is 0 everywhere; expected some observations with a positive exposure: leave "
            "it out for an exposure of 1"
        )
    refuse(
        "y", y, (y > 0.0) & (array == 0.0), "0 where the exposure is 0",
        "correct the exposure there, or leave the entry out (weight 0)",
    )  # fmt: skip
    return array


def no_exposure(kind: str, exposure: np.ndarray | None, instead: str) -> None:
    """Refuse an exposure where the likelihood has no use for it."""
    if exposure is not None:
        raise ValueError(f"exposure was given and {kind} has none; {instead}")


__all__ = ["counts", "exposures", "labels", "no_exposure", "numbers", "refuse"]
