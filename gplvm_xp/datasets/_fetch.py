"""Where a table comes from: a folder, an installed package, a cache or a download; all checked."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from ._dataset import Table

ENVIRONMENT = "GPLVM_XP_DATA"


@dataclass(frozen=True)
class Remote:
    """A public file in its original format, pinned by its checksum."""

    url: str
    filename: str
    sha256: str


@dataclass(frozen=True)
class Bundled:
    """A file that a package ships; several releases may ship it in different forms."""

    package: str
    path: str
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Everything needed to find one data set and to turn what was found into arrays.

    Attributes
    ----------
    folder, archive, archive_sha256 : str
        ``<GPLVM_XP_DATA>/<folder>/<archive>`` is the ``.npz`` form and its checksum. The original
        file is accepted in the same folder too.
    remote : Remote or None
        The original file; None where there is no public one, so that only the folder can have it.
    parse : callable
        Contents of the original file -> the arrays of the ``.npz`` form.
    bundled : Bundled or None
        The package that ships the original file, if one does.
    otherwise : str
        What else the user can do without a network; ends the error text.
    """

    folder: str
    archive: str
    archive_sha256: str
    remote: Remote | None
    parse: Callable[[bytes], Mapping[str, Table]] = lambda content: {}
    bundled: Bundled | None = None
    otherwise: str = ""


@dataclass(frozen=True)
class Found:
    """The arrays of a data set and a sentence on where they were read."""

    arrays: Mapping[str, Table]
    origin: str


def load(source: Source, *, data_home: str | Path | None, download: bool) -> Found:
    """Read a data set from the first place that has it.

    The places, in order: the folder named by the environment variable ``GPLVM_XP_DATA``, an
    installed package that ships the file, the download cache, the public source.

    Parameters
    ----------
    source : Source
        What to look for.
    data_home : path or None
        Folder that downloads are kept in; None means pooch's cache folder of this user.
    download : bool
        False forbids the network.

    Raises
    ------
    FileNotFoundError
        ``GPLVM_XP_DATA`` names no folder, or the data are nowhere and ``download`` is False.
    ConnectionError
        The data are nowhere on this machine and the download failed.
    OSError
        The cache folder can't be made.
    ImportError
        pooch, or the package that reads the original format, is not installed.
    ValueError
        A file does not have the checksum expected.
    """
    tried: list[str] = []
    for look in (_in_folder, _in_package):
        found = look(source, tried)
        if found is not None:
            return found
    return _in_cache_or_public(source, tried, data_home, download)


def load_all(sources: tuple[Source, ...], *, data_home: str | Path | None, download: bool) -> Found:
    """:func:`load` for a data set that is spread over several files."""
    parts = [load(source, data_home=data_home, download=download) for source in sources]
    arrays = {key: array for part in parts for key, array in part.arrays.items()}
    return Found(arrays, "; ".join(dict.fromkeys(part.origin for part in parts)))


def _in_folder(source: Source, tried: list[str]) -> Found | None:
    named = os.environ.get(ENVIRONMENT)
    if not named:
        tried.append(f"the folder of the environment variable {ENVIRONMENT}: it is not set")
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{ENVIRONMENT} names {str(folder)!r}, which is not a folder; expected one that holds "
            f"{source.folder}/{source.archive}. Correct the variable, or unset it to download."
        )
    archive = folder / source.folder / source.archive
    if archive.is_file():
        content = checked(archive, (source.archive_sha256,), source)
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            return Found({key: arrays[key] for key in arrays}, _origin(archive, content))
    tried.append(f"{archive}: no such file")
    if source.remote is None:
        return None
    original = folder / source.folder / source.remote.filename
    if original.is_file():
        return _parsed(source, original, checked(original, (source.remote.sha256,), source))
    tried.append(f"{original}: no such file")
    return None


def _in_package(source: Source, tried: list[str]) -> Found | None:
    bundled = source.bundled
    if bundled is None:
        return None
    spec = importlib.util.find_spec(bundled.package)
    if spec is None or not spec.submodule_search_locations:
        tried.append(f"the package {bundled.package}: not installed")
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / bundled.path
    if not path.is_file():
        tried.append(f"the package {bundled.package}: this release does not ship {bundled.path}")
        return None
    content = path.read_bytes()
    if sha256(content) not in bundled.sha256:
        # A later release may ship other numbers under the same name: that is not damage.
        tried.append(
            f"{path}: another version (sha256 seen {sha256(content)}, "
            f"expected {' or '.join(bundled.sha256)})"
        )
        return None
    return _parsed(source, path, content)


def _in_cache_or_public(
    source: Source, tried: list[str], data_home: str | Path | None, download: bool
) -> Found:
    remote = source.remote
    if remote is None:
        raise FileNotFoundError(_nowhere(source, tried))
    cache = Path(data_home).expanduser() if data_home is not None else _default_cache(source, tried)
    cached = cache / remote.filename
    if cached.is_file():
        content = cached.read_bytes()
        if sha256(content) == remote.sha256:
            return _parsed(source, cached, content)
        tried.append(f"{cached}: damaged (sha256 seen {sha256(content)}, expected {remote.sha256})")
    else:
        tried.append(f"{cached}: no such file")
    if not download:
        raise FileNotFoundError(
            _nowhere(source, [*tried, f"{remote.url}: not asked, because download=False"])
        )
    try:
        import pooch
    except ImportError as error:
        raise _no_pooch(source, tried) from error
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"The cache folder {cache} can't be made ({type(error).__name__}: {error}). Pass "
            "data_home=<a folder that you may write to>."
        ) from error
    try:
        fetched = pooch.retrieve(
            url=remote.url,
            known_hash=f"sha256:{remote.sha256}",
            fname=remote.filename,
            path=cache,
        )
    except ValueError as error:
        raise ValueError(
            f"What {remote.url} sent is not the {source.folder} file expected (sha256 "
            f"{remote.sha256}); nothing was kept. {error} Try again; if it stays so, "
            f"{_by_hand(source)}"
        ) from error
    except OSError as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConnectionError(_nowhere(source, [*tried, f"{remote.url}: {reason}"])) from error
    return _parsed(source, Path(fetched), checked(Path(fetched), (remote.sha256,), source))


def _default_cache(source: Source, tried: list[str]) -> Path:
    try:
        import pooch
    except ImportError as error:
        raise _no_pooch(source, tried) from error
    return Path(pooch.os_cache("gplvm_xp"))


def _parsed(source: Source, path: Path, content: bytes) -> Found:
    return Found(source.parse(content), _origin(path, content))


def _origin(path: Path, content: bytes) -> str:
    return f"{path} (sha256 {sha256(content)})"


def sha256(content: bytes) -> str:
    """The checksum in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def checked(path: Path, expected: tuple[str, ...], source: Source) -> bytes:
    """Contents of a file, read once, after comparison with its checksum."""
    content = path.read_bytes()
    seen = sha256(content)
    if seen not in expected:
        instead = "Replace the file."
        if source.remote is not None:
            instead = (
                f"Replace the file, or remove it to download the original from {source.remote.url}."
            )
        raise ValueError(
            f"{path} is damaged or another version: sha256 seen {seen}, expected "
            f"{' or '.join(expected)}. {instead}"
        )
    return content


def _by_hand(source: Source) -> str:
    if source.remote is None:
        return (
            f"put {source.archive} (sha256 {source.archive_sha256}) at "
            f"<folder>/{source.folder}/{source.archive} and set {ENVIRONMENT}=<folder>."
        )
    return (
        f"download {source.remote.url} by hand, put it at "
        f"<folder>/{source.folder}/{source.remote.filename} and set {ENVIRONMENT}=<folder>."
    )


def _nowhere(source: Source, tried: list[str]) -> str:
    places = "".join(f"\n  - {place}" for place in tried)
    return (
        f"The data set {source.folder!r} was not found. Looked for it in:{places}\n"
        f"To go on without a network on this machine, {_by_hand(source)}{source.otherwise}"
    )


def _no_pooch(source: Source, tried: list[str]) -> ImportError:
    places = "".join(f"\n  - {place}" for place in tried)
    return ImportError(
        f"The data set {source.folder!r} is not on this machine, and downloading it needs pooch, "
        f"which is not installed. Looked for it in:{places}\nRun `pip install pooch`, or set "
        f"{ENVIRONMENT}: {_by_hand(source)}{source.otherwise}"
    )


__all__ = [
    "ENVIRONMENT",
    "Bundled",
    "Found",
    "Remote",
    "Source",
    "checked",
    "load",
    "load_all",
    "sha256",
]
