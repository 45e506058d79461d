"""Model files: one ``.npz`` of plain arrays and a JSON header; no pickle, so no code is run.

The entry ``header`` holds UTF-8 JSON: the format and its version, the version of this library, the
class, its constructor parameters and the learned kernel; the other entries are float64 arrays.
JSON numbers are written by ``repr``, which a float64 survives exactly.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gplvm_xp import __version__, backend
from gplvm_xp._header import classes, decode, encode
from gplvm_xp.errors import ModelFileError
from gplvm_xp.kernels import Kernel

FORMAT = "gplvm_xp model"
FORMAT_VERSION = 1

_AGAIN = "Save the model again with gplvm_xp.io.save, or load another file"
# The axes of what an estimator saves; one letter is one length throughout a file.
_AXES = {
    "embedding_": ("n", "q"),
    "mean_": ("D",),
    "scale_": ("D",),
    "training_data_": ("n", "D"),
    "loss_curve_": ("k",),
}
_TYPES: dict[str, type | tuple[type, ...]] = {"status_": str, "n_iter_": int, "n_features_in_": int}
# Parameters that have no form in a file, with what is read back instead.
_DROPPED = {"callback": "no callback", "random_state": "None"}


def save(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a fitted estimator to one file, which :func:`load` reads.

    The file is complete or not there: it is written beside ``path`` and then renamed.

    Parameters
    ----------
    model : GPLVM
        Fitted. Its ``callback`` is not saved, nor a ``random_state`` that is a generator (an
        integer is): both read back as None. Arrays of any library are saved as NumPy's.
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
    O(n (D + q)) bytes: the n × n factor is not saved but rebuilt at the first use after loading.
    """
    from sklearn.utils.validation import check_is_fitted

    name = type(model).__name__
    if _estimators().get(name) is not type(model):
        raise TypeError(
            f"a {type(model).__module__}.{type(model).__qualname__} was given; model files hold "
            f"these estimators of gplvm_xp: {', '.join(_estimators())}"
        )
    check_is_fitted(model)
    arrays = {key: _host(model, key) for key in model._saved_arrays}

    def store(array: np.ndarray) -> str:
        key = f"array_{len(arrays)}"
        arrays[key] = array
        return key

    parameters, notes = {}, []
    for key, value in model.get_params(deep=False).items():
        if key in _DROPPED and not isinstance(value, int | np.integer | None):
            notes.append(f"{key} was not saved; it reads back as {_DROPPED[key]}")
            value = None
        parameters[key] = encode(value, store, key)
    values = {key: getattr(model, key) for key in model._saved_values}
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "library_version": __version__,
        "class": name,
        "parameters": parameters,
        "kernel_": encode(model.kernel_, store, "kernel_"),
        "values": {key: encode(value, store, key) for key, value in values.items()},
        "feature_names_in_": [str(f) for f in getattr(model, "feature_names_in_", ())] or None,
        "notes": notes,
    }
    text = json.dumps(header, ensure_ascii=False, allow_nan=False, indent=1)
    arrays = {"header": np.frombuffer(text.encode(), dtype=np.uint8), **arrays}
    with replacing(Path(path)) as file, zipfile.ZipFile(file, "w") as archive:
        for key, array in arrays.items():
            little = array.dtype.newbyteorder("<")
            with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(
                    entry, np.asarray(array, dtype=little), allow_pickle=False
                )


def load(path: str | os.PathLike[str], *, kernels: Iterable[type] = ()) -> Any:
    """Read an estimator that :func:`save` wrote: the same class, the same predictions to the bit.

    Nothing in the file is executed, and no class outside the library is looked up by name.

    Parameters
    ----------
    path : str or path
    kernels : sequence of classes
        Your own kernel (or prior) classes that the model uses.

    Returns
    -------
    model : GPLVM
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
    The first prediction rebuilds the factor: O(n³) once. "To the bit" holds on the same machine and
    libraries.
    """
    table = classes(kernels)
    with _opened(Path(path)) as fetch:
        header = _header(fetch(_HEADER), str(path))
        kind = _estimators().get(header["class"])
        if kind is None:
            raise ModelFileError(
                f"{path} holds a {header['class']!r}; this version of gplvm_xp "
                f"({__version__}) reads {', '.join(_estimators())}. Load it with gplvm_xp "
                f"{header['library_version']}, which wrote it"
            )
        model = kind(**_parameters(header, kind, fetch, table, str(path)))
        kernel = decode(header["kernel_"], fetch, table, "kernel_")
        if not isinstance(kernel, Kernel):
            raise ModelFileError(f"kernel_ of {path} is {kernel!r}; expected a kernel. {_AGAIN}")
        arrays = {key: fetch(key) for key in kind._saved_arrays}
    lengths = _check_axes(arrays, str(path))
    values = _values(header, kind, str(path))
    if values["n_features_in_"] != lengths["D"]:
        raise ModelFileError(
            f"n_features_in_ of {path} is {values['n_features_in_']}; expected {lengths['D']}, the "
            f"columns of its training_data_. {_AGAIN}"
        )
    try:
        kernel.check(lengths["q"])
    except ValueError as error:
        raise ModelFileError(
            f"{path}: its kernel does not fit the {lengths['q']} latent dimensions of its "
            f"embedding_: {error}. {_AGAIN}"
        ) from error
    for key, value in {**arrays, **values, "kernel_": kernel}.items():
        setattr(model, key, value)
    model._host_embedding = model.embedding_
    names = header["feature_names_in_"]
    if names is not None:
        if not isinstance(names, list) or len(names) != lengths["D"]:
            raise ModelFileError(
                f"feature_names_in_ of {path} is {str(names)[:80]}; expected {lengths['D']} names. "
                f"{_AGAIN}"
            )
        model.feature_names_in_ = np.asarray([str(name) for name in names], dtype=object)
    return model


_HEADER = "header"


def _estimators() -> dict[str, Any]:
    # Imported here: reading a header needs no estimator, and the estimators import scikit-learn.
    from gplvm_xp.estimators import GPLVM

    return {"GPLVM": GPLVM}


def _host(model: Any, key: str) -> np.ndarray:
    """A fitted array as host float64; the latents as they were learned, not as they were handed."""
    value = model._host_embedding if key == "embedding_" else getattr(model, key)
    return np.asarray(backend.of(value).to_host(value), dtype=np.float64)


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


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Callable[[str], np.ndarray]]:
    """The arrays of a file by name."""
    with open(path, "rb") as file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            file.seek(0)
            raise ModelFileError(_no_archive(path, file.read(8))) from error
        with archive:
            yield lambda name: _array(archive, name, path)


def _no_archive(path: Path, first: bytes) -> str:
    if not first:
        return f"{path} is empty; expected a model file (.npz). {_AGAIN}"
    if first.startswith(b"PK\x03\x04"):
        return (
            f"{path} begins like an .npz archive but its end is missing (truncated: an incomplete "
            f"copy or download?); expected a whole model file. Copy it again. {_AGAIN}"
        )
    if first.startswith(b"\x93NUMPY"):
        return f"{path} is one NumPy array (.npy); expected a model file (.npz). {_AGAIN}"
    return f"{path} begins with {first!r}, so it is no .npz archive; expected a model. {_AGAIN}"


def _array(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    entries = archive.namelist()
    if f"{name}.npy" not in entries:
        seen = ", ".join(e.removesuffix(".npy") for e in entries[:8]) or "nothing"
        foreign = f"{_HEADER}.npy" not in entries
        kind = "an .npz of another origin" if foreign else "an incomplete model file"
        raise ModelFileError(
            f"{path} is {kind}: it holds {seen}; expected an entry {name!r}. {_AGAIN}"
        )
    try:
        with archive.open(f"{name}.npy") as entry:
            version = np.lib.format.read_magic(entry)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(entry)
            if dtype.hasobject:
                raise ModelFileError(
                    f"entry {name!r} of {path} is an array of Python objects, which could hold "
                    f"code; expected numbers. {_AGAIN}"
                )
            data = entry.read()
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, RuntimeError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(
            f"entry {name!r} of {path} can't be read ({error}): the file was damaged; expected a "
            f"whole model file. Copy it again. {_AGAIN}"
        ) from error
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ModelFileError(
            f"entry {name!r} of {path} has {len(data)} bytes; expected "
            f"{math.prod(shape) * dtype.itemsize} for shape {shape} of {dtype}. {_AGAIN}"
        )
    flat = np.frombuffer(data, dtype=dtype).astype(dtype.newbyteorder("="))
    return flat.reshape(shape, order="F" if fortran else "C")


def _header(raw: np.ndarray, path: str) -> dict[str, Any]:
    if raw.dtype != np.uint8 or raw.ndim != 1:
        raise ModelFileError(
            f"the entry 'header' of {path} is {raw.dtype} of shape {raw.shape}; expected a row of "
            f"uint8 (JSON text): an .npz of another origin? {_AGAIN}"
        )
    try:
        header = json.loads(raw.tobytes().decode())
    except ValueError as error:
        raise ModelFileError(
            f"the header of {path} is not JSON ({error}); expected the text that gplvm_xp writes. "
            f"{_AGAIN}"
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
            f"{_AGAIN}"
        )
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has format version {version}, written by gplvm_xp "
            f"{header.get('library_version')}; this is gplvm_xp {__version__}, which reads up to "
            f"version {FORMAT_VERSION}. Upgrade it: pip install --upgrade gplvm-xp"
        )
    need: dict[str, Any] = {"library_version": str, "class": str, "parameters": dict}
    need |= {"kernel_": dict, "values": dict, "feature_names_in_": list | None}
    wrong = [k for k, kind in need.items() if k not in header or not isinstance(header[k], kind)]
    if wrong:
        raise ModelFileError(
            f"the header of {path} lacks {', '.join(wrong)} or has them in another form; expected "
            f"{', '.join(need)}. {_AGAIN}"
        )
    return header


def _parameters(
    header: dict[str, Any], kind: Any, fetch: Callable[[str], np.ndarray], table: Any, path: str
) -> dict[str, Any]:
    known = set(kind._get_param_names())
    unknown = sorted(set(header["parameters"]) - known)
    if unknown:
        raise ModelFileError(
            f"{path} has the parameters {unknown}, which {header['class']} of gplvm_xp "
            f"{__version__} does not take; expected some of {sorted(known)}. Load it with gplvm_xp "
            f"{header['library_version']}, which wrote it"
        )
    return {k: decode(v, fetch, table, k) for k, v in header["parameters"].items()}


def _values(header: dict[str, Any], kind: Any, path: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key in kind._saved_values:
        if key not in header["values"]:
            raise ModelFileError(f"the header of {path} has no value of {key}. {_AGAIN}")
        value = decode(header["values"][key], lambda name: np.zeros(0), {}, key)
        need = _TYPES.get(key, (int, float))
        if not isinstance(value, need) or isinstance(value, bool):
            raise ModelFileError(
                f"{key} of {path} is {value!r}; expected "
                f"{'text' if need is str else 'an integer' if need is int else 'a number'}. "
                f"{_AGAIN}"
            )
        out[key] = value
    for key in ("noise_variance_", "jitter_"):
        if not 0.0 <= out[key] < math.inf:
            raise ModelFileError(
                f"{key} of {path} is {out[key]!r}; expected a finite number of 0 or more. {_AGAIN}"
            )
    return out


def _check_axes(arrays: dict[str, np.ndarray], path: str) -> dict[str, int]:
    lengths: dict[str, int] = {}
    for key, array in arrays.items():
        axes = _AXES[key]
        if array.dtype != np.float64 or array.ndim != len(axes):
            raise ModelFileError(
                f"{key} of {path} is {array.dtype} of shape {array.shape}; expected float64 of "
                f"shape ({', '.join(axes)}). {_AGAIN}"
            )
        bad = np.isinf(array) if key == "training_data_" else ~np.isfinite(array)
        bad = bad | (array <= 0.0) if key == "scale_" else bad
        if key != "loss_curve_" and bad.any():
            kind = {"scale_": "positive numbers", "training_data_": "numbers or NaN"}
            raise ModelFileError(
                f"{key} of {path} holds {array[bad][0]}; expected finite "
                f"{kind.get(key, 'numbers')}. {_AGAIN}"
            )
        for axis, length in zip(axes, array.shape, strict=True):
            if lengths.setdefault(axis, length) != length:
                expected = ", ".join(str(lengths[a]) for a in axes)
                raise ModelFileError(
                    f"{key} of {path} has shape {array.shape}; expected ({expected}) to go with "
                    f"the other arrays of the file. {_AGAIN}"
                )
    return lengths


__all__ = ["FORMAT", "FORMAT_VERSION", "load", "save"]
