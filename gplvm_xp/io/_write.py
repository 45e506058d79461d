"""Saving: a fitted estimator to one file."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from gplvm_xp import __version__, backend
from gplvm_xp._header import encode
from gplvm_xp.io._format import FORMAT, FORMAT_VERSION, HEADER, estimators

if TYPE_CHECKING:
    from gplvm_xp.estimators._saved import SavedArray

# Parameters of which not all values have a form in a file: the types that have one, and what is
# read back instead of others.
_DROPPED: dict[str, tuple[tuple[type, ...], str]] = {
    "callback": ((), "no callback"),
    "random_state": ((int, np.integer), "None"),
    "engine": ((str,), "None"),
}


def save(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a fitted estimator to one file, which :func:`load` reads.

    The file is complete or not there: it is written beside ``path`` and then renamed.

    Parameters
    ----------
    model : estimator
        One of gplvm_xp's, fitted. Its ``callback`` is not saved, nor a ``random_state`` that is a
        generator (an integer is), nor an ``engine`` that is a client or an Engine (text is): all
        read back as None. Arrays of any library are saved as NumPy's, and paths as text.
    path : str or path
        Used as it is given; ``.npz`` is the custom.

    Raises
    ------
    TypeError
        If the model's class or something in its parameters has no form in a model file.
    sklearn.exceptions.NotFittedError
        If the model has not been fitted.
    OSError
        If the file can't be written.

    Notes
    -----
    O(n (D + q)) bytes for a GPLVM: the n × n factor is not saved but rebuilt at the first use after
    loading.
    """
    from sklearn.utils.validation import check_is_fitted

    name = type(model).__name__
    if estimators().get(name) is not type(model):
        raise TypeError(
            f"a {type(model).__module__}.{type(model).__qualname__} was given; model files hold "
            f"these estimators of gplvm_xp: {', '.join(estimators())}"
        )
    check_is_fitted(model)
    arrays = {}
    for key, declared in model._saved_arrays.items():
        array = _host(model, key, declared)
        if array is not None:
            arrays[key] = array

    def store(array: np.ndarray) -> str:
        key = f"array_{len(arrays)}"
        arrays[key] = array
        return key

    parameters, notes = {}, []
    for key, value in model.get_params(deep=False).items():
        kinds, instead = _DROPPED.get(key, ((object,), ""))
        if value is not None and not isinstance(value, kinds):
            notes.append(f"{key} was not saved; it reads back as {instead}")
            value = None
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        parameters[key] = encode(value, store, key)
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "library_version": __version__,
        "class": name,
        "parameters": parameters,
        **{key: encode(getattr(model, key), store, key) for key in model._saved_objects},
        "values": {key: encode(getattr(model, key), store, key) for key in model._saved_values},
        "feature_names_in_": [str(f) for f in getattr(model, "feature_names_in_", ())] or None,
        "notes": notes,
    }
    text = json.dumps(header, ensure_ascii=False, allow_nan=False, indent=1)
    arrays = {HEADER: np.frombuffer(text.encode(), dtype=np.uint8), **arrays}
    with replacing(Path(path)) as file, zipfile.ZipFile(file, "w") as archive:
        for key, array in arrays.items():
            little = array.dtype.newbyteorder("<")
            with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(
                    entry, np.asarray(array, dtype=little), allow_pickle=False
                )


def _host(model: Any, key: str, declared: SavedArray) -> np.ndarray | None:
    """A fitted array on the host, of the type it was declared with."""
    value = getattr(model, declared.attribute or key)
    if value is None:
        if declared.optional:
            return None
        raise TypeError(f"{key} is None; a model file needs it. Fit the model again")
    array = np.asarray(backend.of(value).to_host(value) if backend.is_array(value) else value)
    if declared.dtype == "float64":
        return np.asarray(array, dtype=np.float64)
    if declared.dtype == "int64":
        return array.astype(np.int64, casting="safe")
    if array.dtype.kind == "O" and all(isinstance(entry, str) for entry in array.flat):
        array = array.astype(np.str_)
    if array.dtype.kind not in "biufU":
        raise TypeError(
            f"{key} holds {array.dtype} ({str(array)[:80]}); a model file takes labels that are "
            "text, integers, floats or booleans. Give such labels to fit"
        )
    return array


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write in, which takes the place of ``path`` when the block ends without an error.

    Raises
    ------
    OSError
        If the folder is missing or can't be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


__all__ = ["replacing", "save"]
