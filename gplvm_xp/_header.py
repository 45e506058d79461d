"""Kernels, priors and constructor parameters as JSON values, and back.

What JSON has no word for is an object with one ``$`` key: ``$float`` (inf, nan), ``$tuple``,
``$dict``, ``$array`` (the name of an array of the file) and ``$class`` (a frozen dataclass by its
name and fields). Classes come from an explicit table, so reading a file can't name any other code.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from inspect import isabstract
from typing import Any

import numpy as np

from gplvm_xp import backend, kernels, priors
from gplvm_xp.errors import ModelFileError

Classes = Mapping[str, type]


def classes(strangers: Iterable[type] = ()) -> dict[str, type]:
    """The table of classes by name: the library's kernels and priors, and a user's own.

    Raises
    ------
    TypeError
        If one of ``strangers`` is not a dataclass that extends Kernel or Prior.
    ValueError
        If its name is taken by another class.
    """
    table: dict[str, type] = {}
    bases: tuple[tuple[Any, type], ...] = ((kernels, kernels.Kernel), (priors, priors.Prior))
    for module, base in bases:
        for name in module.__all__:
            kind = getattr(module, name)
            usable = issubclass(kind, base) and dataclasses.is_dataclass(kind)
            if usable and not isabstract(kind):
                table[name] = kind
    for kind in strangers:
        if not (
            isinstance(kind, type)
            and issubclass(kind, kernels.Kernel | priors.Prior)
            and dataclasses.is_dataclass(kind)
        ):
            raise TypeError(
                f"kernels holds {kind!r}; expected classes (not instances): frozen dataclasses "
                "that extend gplvm_xp.kernels.Kernel or gplvm_xp.priors.Prior"
            )
        if table.setdefault(kind.__name__, kind) is not kind:
            raise ValueError(
                f"kernels holds a second class of the name {kind.__name__!r}; expected names that "
                "differ from each other and from the library's: rename the class and save again"
            )
    return table


def encode(value: Any, store: Callable[[np.ndarray], str], where: str) -> Any:
    """A JSON value; arrays are given to ``store``, which answers with their names.

    Raises
    ------
    TypeError
        If the value, or something in it, has no form in a model file.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, list | tuple):
        items = [encode(v, store, f"{where}[{i}]") for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {"$dict": {k: encode(v, store, f"{where}[{k!r}]") for k, v in value.items()}}
    if isinstance(value, kernels.Kernel | priors.Prior):
        return _encode_dataclass(value, store, where)
    if backend.is_array(value):
        array = np.asarray(backend.of(value).to_host(value))
        if array.dtype.kind in "biuf":
            return {"$array": store(array)}
    raise TypeError(
        f"{where} is {value!r} of type {type(value).__name__}; a model file takes numbers, text, "
        "tuples, lists, dictionaries by text, numeric arrays, kernels and priors. Set it to one of "
        "those before saving"
    )


def _encode_dataclass(value: Any, store: Callable[[np.ndarray], str], where: str) -> dict[str, Any]:
    kind = type(value)
    home = f"{kind.__module__}.{kind.__qualname__}"
    if not dataclasses.is_dataclass(kind):
        raise TypeError(
            f"{where} is of class {home}, which is not a dataclass; decorate it with "
            "@dataclass(frozen=True), so that its fields can be saved"
        )
    if classes().get(kind.__name__, kind) is not kind:
        raise TypeError(
            f"{where} is of class {home}, whose name is that of one of the library's classes; "
            "rename it, so that the file says which one is meant"
        )
    fields = {
        f.name: encode(getattr(value, f.name), store, f"{where}.{f.name}")
        for f in dataclasses.fields(kind)
        if f.init
    }
    return {"$class": kind.__name__, "module": kind.__module__, "fields": fields}


def decode(value: Any, fetch: Callable[[str], np.ndarray], table: Classes, where: str) -> Any:
    """What :func:`encode` was given; ``fetch`` gives an array by its name.

    Raises
    ------
    ModelFileError
        If the value is none of the forms above, or names a class or a field that is not known.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [decode(v, fetch, table, f"{where}[{i}]") for i, v in enumerate(value)]
    match value:
        case {"$float": "inf" | "-inf" | "nan" as word}:
            return float(word)
        case {"$tuple": list(items)}:
            return tuple(decode(v, fetch, table, f"{where}[{i}]") for i, v in enumerate(items))
        case {"$dict": dict(items)}:
            return {k: decode(v, fetch, table, f"{where}[{k!r}]") for k, v in items.items()}
        case {"$array": str(name)}:
            return fetch(name)
        case {"$class": str(name), "fields": dict(fields)}:
            decoded = {k: decode(v, fetch, table, f"{where}.{k}") for k, v in fields.items()}
            return _build(name, value.get("module"), decoded, table, where)
    raise ModelFileError(
        f"{where} of the header is {str(value)[:80]}; expected a plain value or an object with one "
        "of the keys $float, $tuple, $dict, $array, $class. The file was damaged or written by "
        "another program: save the model again"
    )


def _build(name: str, module: Any, fields: dict[str, Any], table: Classes, where: str) -> Any:
    if name not in table:
        raise ModelFileError(
            f"{where} is of class {name!r} (module {module}); expected one of "
            f"{', '.join(sorted(table))}. Import your class and call "
            f"gplvm_xp.load(path, kernels=({name},))"
        )
    known = {f.name for f in dataclasses.fields(table[name]) if f.init}
    if set(fields) - known:
        raise ModelFileError(
            f"{where} has the fields {sorted(fields)}; {name} takes {sorted(known)}. The class has "
            "changed since the file was written: load it with the version it was written with"
        )
    try:
        return table[name](**fields)
    except (TypeError, ValueError) as error:
        raise ModelFileError(
            f"{where} can't be rebuilt: {name} says {error}. The file was damaged, or the class "
            "has changed since: save the model again"
        ) from error


__all__ = ["classes", "decode", "encode"]
