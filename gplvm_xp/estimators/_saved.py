"""How an estimator says what it consists of, so that model files need to know no estimator.

A class that can be saved has three class attributes and may have a method:

- ``_saved_arrays``: a :class:`SavedArray` by the name of each fitted array;
- ``_saved_values``: a :class:`SavedValue` by the name of each fitted number or text, and among
  them ``n_features_in_``, the number of columns that feature names must have;
- ``_saved_objects``: the base class by the name of each fitted kernel or likelihood, or a union
  with None where it may be absent;
- ``_restored()``: called when a file was read and everything is in place; it raises ``ValueError``
  where the parts do not fit each other, which becomes the error about the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SavedArray:
    """One fitted array.

    Attributes
    ----------
    axes : str
        A letter for each axis; one letter is one length throughout a file. A ``*`` before the
        letters stands for any number of leading axes (batches, or a grid).
    dtype : {"float64", "int64", "label"}
        The type in the file, and after loading. "label" is text, integers, booleans or floats.
    holds : {"finite", "positive", "nonnegative", "missing", "any"}
        What a file may have there: finite numbers of the sign named; "missing" is finite or NaN.
    optional : bool
        Whether None may stand there: then the file has no such entry.
    attribute : str
        The attribute that is saved, if not the one of the array's own name: a copy on the host.
        Both are set by loading.
    """

    axes: str
    dtype: Literal["float64", "int64", "label"] = "float64"
    holds: Literal["finite", "positive", "nonnegative", "missing", "any"] = "finite"
    optional: bool = False
    attribute: str = ""


@dataclass(frozen=True)
class SavedValue:
    """One fitted number, text or truth value.

    Attributes
    ----------
    kind : {float, int, str, bool}
        A float may be written as an integer, and may be infinite or NaN.
    nonnegative : bool
        Whether it must be a finite number of 0 or more.
    """

    kind: type[float] | type[int] | type[str] | type[bool] = float
    nonnegative: bool = False


__all__ = ["SavedArray", "SavedValue"]
