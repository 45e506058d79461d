"""What the commands share: exit codes, messages, where files may go."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gplvm_xp._tables import Options, Table

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class UsageError(Exception):
    """What was asked for can't be done as asked; the text is the one line that the user sees."""


def line(error: BaseException) -> str:
    """The text of an error in one line."""
    text = " ".join(str(error).split())
    return text or type(error).__name__


def say(text: str) -> None:
    """One line to the user."""
    print(f"gplvm-xp: {text}", file=sys.stderr)


def delimiter(word: str | None) -> str | None:
    """The character that ``--delimiter`` names."""
    known = {"tab": "\t", "\\t": "\t", "space": " ", "comma": ",", "semicolon": ";"}
    character = None if word is None else known.get(word, word)
    if character is not None and len(character) != 1:
        raise UsageError(
            f"--delimiter {word!r} was given; expected one character, or one of comma, semicolon, "
            "tab, space"
        )
    return character


def table(path: Path, options: Options) -> Table:
    """The table of a file."""
    from gplvm_xp._tables import read

    try:
        return read(path, options)
    except OSError as error:
        reason = error.strerror or line(error)
        raise UsageError(f"the input {path} can't be read: {reason}") from error


def stem(path: Path) -> str:
    """A short name of a file for titles and files."""
    return path.name.removesuffix(".gz").rpartition(".")[0] or path.name


def with_suffix(prefix: Path, suffix: str) -> Path:
    """A file name that starts as ``--out`` says."""
    return prefix.with_name(prefix.name + suffix)


def check_output(prefix: Path, suffixes: tuple[str, ...], *inputs: str | None) -> None:
    """Refuse before the fit what could not be written after it."""
    if not prefix.name:
        raise UsageError(f"--out {prefix} was given; expected a path and the start of a file name")
    if not prefix.parent.is_dir() or not os.access(prefix.parent, os.W_OK):
        raise UsageError(
            f"the folder {prefix.parent} of --out does not exist or can't be written; make it, or "
            "give another --out"
        )
    for suffix in suffixes:
        path = with_suffix(prefix, suffix)
        for given in inputs:
            if given is not None and path.exists() and path.samefile(given):
                raise UsageError(
                    f"the output {path} would replace the input; give another --out prefix"
                )


def picture(path: Path, draw: Callable[[], Any]) -> bool:
    """Write what ``draw`` returns, which is a figure; whether that was possible here."""
    from gplvm_xp.io import replacing

    try:
        with notes():
            figure = draw()
    except ImportError as error:
        say(f"note: no picture was written: {line(error)}")
        return False
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)
    return True


def ended(model: Any) -> int:
    """The exit code of a fit whose best state was written."""
    if model.status_ == "interrupted":
        say("interrupted: the best state so far was written")
        return INTERRUPTED
    return FAILED if model.status_ == "failed" else DONE


@contextmanager
def notes() -> Iterator[None]:
    """Warnings as one line each, when the block has ended."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        yield
    for text in dict.fromkeys(str(w.message) for w in caught):
        say(f"note: {' '.join(text.split())}")


__all__ = [
    "DONE",
    "FAILED",
    "INTERRUPTED",
    "USAGE",
    "UsageError",
    "check_output",
    "delimiter",
    "ended",
    "line",
    "notes",
    "picture",
    "say",
    "stem",
    "table",
    "with_suffix",
]
