"""Kernels, priors, likelihoods, encoders and constructor parameters as JSON values, and back.

What JSON has no word for is an object with one ``$`` key: ``$float`` (inf, nan), ``$tuple``,
``$dict``, ``$array`` (the name of an array of the file), and ``$class`` for a kernel or a prior,
``$likelihood`` for a likelihood, ``$encoder`` for an encoder or ``$row_prior`` for a prior that
ties rows together (a frozen dataclass by its name and fields; a key for each kind, because a prior
and a likelihood may have one name). Classes come from an explicit table, so reading a file can't
name any other code.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from inspect import isabstract
from typing import Any

import numpy as np

from gplvm_xp import backend, encoders, kernels, likelihoods, optim, priors, row_priors
from gplvm_xp.errors import ModelFileError

# A class by the key that it is written under, and its name.
Classes = Mapping[tuple[str, str], type]
_HOMES: tuple[tuple[Any, type, str], ...] = (
    (kernels, kernels.Kernel, "$class"),
    (priors, priors.Prior, "$class"),
    (likelihoods, likelihoods.Likelihood, "$likelihood"),
    (encoders, encoders.Encoder, "$encoder"),
    (row_priors, row_priors.StructuredPrior, "$row_prior"),
    (optim, optim.Certificate, "$certificate"),
)


def classes(strangers: Iterable[type] = ()) -> dict[tuple[str, str], type]:
    """The table of classes: those of the library of every kind, and a user's own.

    Raises
    ------
    TypeError
        If one of ``strangers`` is not a dataclass of one of the kinds.
    ValueError
        If its name is taken by another class.
    """
    table: dict[tuple[str, str], type] = {}
    for module, _, _ in _HOMES:
        for name in module.__all__:
            key = _key(getattr(module, name))
            if key is not None and not isabstract(getattr(module, name)):
                table[key] = getattr(module, name)
    for kind in strangers:
        key = _key(kind)
        if key is None:
            raise TypeError(
                f"kernels holds {kind!r}; expected classes (not instances): frozen dataclasses "
                f"that extend one of {', '.join(_bases())}"
            )
        if table.setdefault(key, kind) is not kind:
            raise ValueError(
                f"kernels holds a second class of the name {kind.__name__!r}; expected names that "
                "differ from each other and from the library's: rename the class and save again"
            )
    return table


def _key(kind: object) -> tuple[str, str] | None:
    """What a class is written under; None if it is no dataclass of one of the kinds."""
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        return None
    return next(((key, kind.__name__) for _, base, key in _HOMES if issubclass(kind, base)), None)


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
    if isinstance(value, tuple(base for _, base, _ in _HOMES)):
        return _encode_dataclass(value, store, where)
    if backend.is_array(value):
        array = np.asarray(backend.of(value).to_host(value))
        if array.dtype.kind in "biuf":
            return {"$array": store(array)}
    raise TypeError(
        f"{where} is {value!r} of type {type(value).__name__}; a model file takes numbers, text, "
        "tuples, lists, dictionaries by text, numeric arrays, kernels, priors, likelihoods and "
        "encoders. Set it to one of those before saving"
    )


def _encode_dataclass(value: Any, store: Callable[[np.ndarray], str], where: str) -> dict[str, Any]:
    kind = type(value)
    home = f"{kind.__module__}.{kind.__qualname__}"
    key = _key(kind)
    if key is None:
        raise TypeError(
            f"{where} is of class {home}, which is not a dataclass; decorate it with "
            "@dataclass(frozen=True), so that its fields can be saved"
        )
    if classes().get(key, kind) is not kind:
        raise TypeError(
            f"{where} is of class {home}, whose name is that of one of the library's classes; "
            "rename it, so that the file says which one is meant"
        )
    fields = {
        f.name: encode(getattr(value, f.name), store, f"{where}.{f.name}")
        for f in dataclasses.fields(kind)
        if f.init
    }
    return {key[0]: key[1], "module": kind.__module__, "fields": fields}


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
        case {"fields": dict(fields)} if form := _form(value):
            decoded = {k: decode(v, fetch, table, f"{where}.{k}") for k, v in fields.items()}
            return _build((form, value[form]), value.get("module"), decoded, table, where)
    raise ModelFileError(
        f"{where} of the header is {str(value)[:80]}; expected a plain value or an object with one "
        f"of the keys $float, $tuple, $dict, $array, {', '.join(_forms())}. The file was damaged "
        "or written by another program: save the model again"
    )


def _forms() -> list[str]:
    """The keys under which classes are written."""
    return list(dict.fromkeys(form for _, _, form in _HOMES))


def _form(value: Mapping[str, Any]) -> str:
    """The one under which a class is written here; empty where none is."""
    return next((form for form in _forms() if isinstance(value.get(form), str)), "")


def _bases() -> list[str]:
    return [f"{module.__name__}.{base.__name__}" for module, base, _ in _HOMES]


def _build(
    key: tuple[str, str], module: Any, fields: dict[str, Any], table: Classes, where: str
) -> Any:
    form, name = key
    if key not in table:
        held = sorted(known for there, known in table if there == form)
        raise ModelFileError(
            f"{where} is of class {name!r} (module {module}); expected one of "
            f"{', '.join(held)}. Import your class and call "
            f"gplvm_xp.load(path, kernels=({name},))"
        )
    known = {f.name for f in dataclasses.fields(table[key]) if f.init}
    if set(fields) - known:
        raise ModelFileError(
            f"{where} has the fields {sorted(fields)}; {name} takes {sorted(known)}. The class has "
            "changed since the file was written: load it with the version it was written with"
        )
    try:
        return table[key](**fields)
    except (TypeError, ValueError) as error:
        raise ModelFileError(
            f"{where} can't be rebuilt: {name} says {error}. The file was damaged, or the class "
            "has changed since: save the model again"
        ) from error


__all__ = ["classes", "decode", "encode"]
