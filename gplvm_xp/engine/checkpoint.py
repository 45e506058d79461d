"""Where a computation over shards was, as a file: named arrays, without pickle."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gplvm_xp.errors import ModelFileError


@dataclass(frozen=True)
class Checkpoint:
    """A file that is written again and again during a fit.

    Attributes
    ----------
    path : str or path
        An ``.npz`` file. It is replaced at once, when the next one is whole.
    every : int
        Accepted steps from one to the next.
    """

    path: str | os.PathLike[str]
    every: int = 10

    def check(self) -> None:
        """Find out before a fit whether the file can be written.

        Raises
        ------
        OSError
            If it can't; the text says why.
        """
        path = os.fspath(self.path)
        try:
            if os.path.isdir(path):
                raise IsADirectoryError("it is a folder")
            with open(self._beside(), "wb"):
                pass
            os.remove(self._beside())
        except OSError as error:
            raise OSError(
                f"the checkpoint {path!r} can't be written ({error}); expected the path of a file "
                "in a folder that is there and may be written to"
            ) from error

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the file."""
        path = os.fspath(self.path)
        beside = self._beside()
        try:
            with open(beside, "wb") as file:
                np.savez(file, allow_pickle=False, **dict(arrays))
            os.replace(beside, path)
        finally:
            if os.path.exists(beside):
                os.remove(beside)

    def _beside(self) -> str:
        return f"{os.fspath(self.path)}.{os.getpid()}.part"

    def read(self) -> dict[str, np.ndarray]:
        """The arrays of the file.

        Raises
        ------
        FileNotFoundError
            If there is none.
        ModelFileError
            If it is damaged or not a checkpoint.
        """
        try:
            with open(self.path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except FileNotFoundError:
            raise
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, TypeError) as e:
            raise ModelFileError(
                f"{os.fspath(self.path)!r} can't be read as a checkpoint ({e}); expected an .npz "
                "that a fit over shards wrote: give another file, or start again without"
            ) from e


__all__ = ["Checkpoint"]
