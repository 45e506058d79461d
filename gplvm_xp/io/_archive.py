"""The arrays of an ``.npz`` file, read without trust: no pickle, no length that is only claimed."""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gplvm_xp.errors import ModelFileError
from gplvm_xp.io._format import AGAIN, HEADER


@dataclass(frozen=True)
class Archive:
    """An open ``.npz``; ``path`` is for error texts."""

    path: Path
    file: zipfile.ZipFile

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self.file.namelist()

    def array(self, name: str) -> np.ndarray:
        """The array of one entry, in the byte order of this machine.

        Raises
        ------
        ModelFileError
            If there is no such entry, or it is damaged or holds Python objects.
        """
        if name not in self:
            entries = self.file.namelist()
            seen = ", ".join(e.removesuffix(".npy") for e in entries[:8]) or "nothing"
            kind = "an incomplete model file" if HEADER in self else "an .npz of another origin"
            raise ModelFileError(
                f"{self.path} is {kind}: it holds {seen}; expected an entry {name!r}. {AGAIN}"
            )
        try:
            with self.file.open(f"{name}.npy") as entry:
                version = np.lib.format.read_magic(entry)
                read = np.lib.format.read_array_header_1_0
                if version != (1, 0):
                    read = np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(entry)
                if dtype.hasobject:
                    raise ModelFileError(
                        f"entry {name!r} of {self.path} is an array of Python objects, which could "
                        f"hold code; expected numbers or text. {AGAIN}"
                    )
                data = entry.read()
            need = math.prod(shape) * dtype.itemsize
            if len(data) != need:
                raise ModelFileError(
                    f"entry {name!r} of {self.path} has {len(data)} bytes; expected {need} for "
                    f"shape {shape} of {dtype}. {AGAIN}"
                )
            flat = np.frombuffer(data, dtype=dtype).astype(dtype.newbyteorder("="))
            return flat.reshape(shape, order="F" if fortran else "C")
        except ModelFileError:
            raise
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, RuntimeError) as e:
            raise ModelFileError(
                f"entry {name!r} of {self.path} can't be read ({e}): the file was damaged; "
                f"expected a whole model file. Copy it again. {AGAIN}"
            ) from e


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """A file as an archive.

    Raises
    ------
    ModelFileError
        If it is no ``.npz``; the text says what it begins like.
    OSError
        If there is no such file, or it can't be read.
    """
    with open(path, "rb") as file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            file.seek(0)
            raise ModelFileError(_no_archive(path, file.read(8))) from error
        with archive:
            yield Archive(path, archive)


def _no_archive(path: Path, first: bytes) -> str:
    if not first:
        return f"{path} is empty; expected a model file (.npz). {AGAIN}"
    if first.startswith(b"PK\x03\x04"):
        return (
            f"{path} begins like an .npz archive but its end is missing (truncated: an incomplete "
            f"copy or download?); expected a whole model file. Copy it again. {AGAIN}"
        )
    if first.startswith(b"\x93NUMPY"):
        return f"{path} is one NumPy array (.npy); expected a model file (.npz). {AGAIN}"
    return f"{path} begins with {first!r}, so it is no .npz archive; expected a model. {AGAIN}"


__all__ = ["Archive", "opened"]
