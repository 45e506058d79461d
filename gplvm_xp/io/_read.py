"""Loading: the header first, then the class, then what that class declares."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gplvm_xp import __version__
from gplvm_xp._header import classes, decode
from gplvm_xp.errors import ModelFileError
from gplvm_xp.io._archive import Archive, opened
from gplvm_xp.io._arrays import checked_arrays
from gplvm_xp.io._format import AGAIN, FORMAT, FORMAT_VERSION, HEADER, estimators

_WORDS: dict[type, str] = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
}


def load(path: str | os.PathLike[str], *, kernels: Iterable[type] = ()) -> Any:
    """Read an estimator that :func:`save` wrote: the same class, the same predictions to the bit.

    Nothing in the file is executed, and no class outside the library is looked up by name.

    Parameters
    ----------
    path : str or path
    kernels : sequence of classes
        Your own kernel (or prior, likelihood or encoder) classes that the model uses.

    Returns
    -------
    model : estimator
        Fitted, with its arrays on the host. A model of ``backend="cupy"`` computes there again;
        ``model.set_params(backend="numpy")`` before its first use keeps it on the CPU.

    Raises
    ------
    ModelFileError
        If the file is damaged, foreign, newer than this library, or needs a class that was not
        given; the text says which.
    OSError
        If there is no such file, or it can't be read.

    Notes
    -----
    The first prediction of a GPLVM rebuilds the factor: O(n³) once. "To the bit" holds on the same
    machine and libraries.
    """
    table = classes(kernels)
    with opened(Path(path)) as archive:
        header = _header(archive.array(HEADER), str(path))
        kind = estimators().get(header["class"])
        if kind is None:
            raise ModelFileError(
                f"{path} holds a {header['class']!r}; this version of gplvm_xp "
                f"({__version__}) reads {', '.join(estimators())}. Load it with gplvm_xp "
                f"{header['library_version']}, which wrote it"
            )
        # What may be absent is, in a file of a version that did not know of it.
        forms = {
            k: dict | None if isinstance(None, base) else dict
            for k, base in kind._saved_objects.items()
            if k in header or not isinstance(None, base)
        }
        _require(header, forms, str(path))
        model = kind(**_parameters(header, kind, archive, table))
        objects = _objects(header, kind, archive, table)
        arrays = checked_arrays(archive, kind._saved_arrays)
    values = _values(header, kind, str(path))
    for key, value in {**arrays, **values, **objects}.items():
        setattr(model, key, value)
    for key, declared in kind._saved_arrays.items():
        if declared.attribute:
            setattr(model, declared.attribute, arrays[key])
    names, columns = header["feature_names_in_"], values["n_features_in_"]
    if names is not None and len(names) != columns:
        raise ModelFileError(
            f"feature_names_in_ of {path} is {str(names)[:80]}; expected {columns} names. {AGAIN}"
        )
    if names is not None:
        model.feature_names_in_ = np.asarray([str(name) for name in names], dtype=object)
    try:
        getattr(model, "_restored", lambda: None)()
    except ValueError as error:
        raise ModelFileError(f"{path}: {error}. {AGAIN}") from error
    return model


def _header(raw: np.ndarray, path: str) -> dict[str, Any]:
    if raw.dtype != np.uint8 or raw.ndim != 1:
        raise ModelFileError(
            f"the entry 'header' of {path} is {raw.dtype} of shape {raw.shape}; expected a row of "
            f"uint8 (JSON text): an .npz of another origin? {AGAIN}"
        )
    try:
        header = json.loads(raw.tobytes().decode())
    except ValueError as error:
        raise ModelFileError(
            f"the header of {path} is not JSON ({error}); expected the text that gplvm_xp writes. "
            f"{AGAIN}"
        ) from error
    seen = header.get("format") if isinstance(header, dict) else header
    if not isinstance(header, dict) or seen != FORMAT:
        raise ModelFileError(
            f"{path} has the format {str(seen)[:80]!r}; expected {FORMAT!r}. It was written by "
            f"another program: use that one to read it, or load another file"
        )
    version = header.get("format_version")
    if type(version) is not int or version < 1:
        raise ModelFileError(
            f"{path} has format version {version!r}; expected a number of 1 to {FORMAT_VERSION}. "
            f"{AGAIN}"
        )
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has format version {version}, written by gplvm_xp "
            f"{header.get('library_version')}; this is gplvm_xp {__version__}, which reads up to "
            f"version {FORMAT_VERSION}. Upgrade it: pip install --upgrade gplvm-xp"
        )
    need: dict[str, Any] = {"library_version": str, "class": str, "parameters": dict}
    _require(header, need | {"values": dict, "feature_names_in_": list | None}, path)
    return header


def _require(header: dict[str, Any], need: dict[str, Any], path: str) -> None:
    """Raise unless the header has these entries in these forms."""
    wrong = [k for k, kind in need.items() if k not in header or not isinstance(header[k], kind)]
    if wrong:
        raise ModelFileError(
            f"the header of {path} lacks {', '.join(wrong)} or has them in another form; expected "
            f"{', '.join(need)}. {AGAIN}"
        )


def _parameters(header: dict[str, Any], kind: Any, archive: Archive, table: Any) -> dict[str, Any]:
    known = set(kind._get_param_names())
    unknown = sorted(set(header["parameters"]) - known)
    if unknown:
        raise ModelFileError(
            f"{archive.path} has the parameters {unknown}, which {header['class']} of gplvm_xp "
            f"{__version__} does not take; expected some of {sorted(known)}. Load it with gplvm_xp "
            f"{header['library_version']}, which wrote it"
        )
    return {k: decode(v, archive.array, table, k) for k, v in header["parameters"].items()}


def _objects(header: dict[str, Any], kind: Any, archive: Archive, table: Any) -> dict[str, Any]:
    out = {}
    for key, base in kind._saved_objects.items():
        out[key] = decode(header.get(key), archive.array, table, key)
        if not isinstance(out[key], base):
            raise ModelFileError(
                f"{key} of {archive.path} is {out[key]!r}; expected a "
                f"{getattr(base, '__name__', str(base)).lower()}. {AGAIN}"
            )
    return out


def _values(header: dict[str, Any], kind: Any, path: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, declared in kind._saved_values.items():
        if key not in header["values"]:
            raise ModelFileError(f"the header of {path} has no value of {key}. {AGAIN}")
        value = decode(header["values"][key], lambda name: np.zeros(0), {}, key)
        need = (int, float) if declared.kind is float else declared.kind
        if not isinstance(value, need) or isinstance(value, bool) != (declared.kind is bool):
            raise ModelFileError(
                f"{key} of {path} is {value!r}; expected {_WORDS[declared.kind]}. {AGAIN}"
            )
        if declared.nonnegative and not 0.0 <= value < math.inf:
            raise ModelFileError(
                f"{key} of {path} is {value!r}; expected a finite number of 0 or more. {AGAIN}"
            )
        out[key] = value
    return out


__all__ = ["load"]
