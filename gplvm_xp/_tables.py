"""Tables from files: csv, tsv, other delimited text, npy and npz, with index and label columns."""

from __future__ import annotations

import csv
import gzip
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MISSING = ("", "NA", "N/A", "NaN", "nan", "NAN", "null", "NULL", "None")
_DELIMITERS = (",", "\t", ";")
_SPACES = " "
_COMMA = re.compile(r"[-+]?\d+,\d+(e[-+]?\d+)?", re.IGNORECASE)
_DETECT_ROWS = 50


class TableError(ValueError):
    """The input can't be read as a table of numbers; the text says where and what to do."""


@dataclass(frozen=True)
class Options:
    """How to read a table.

    Attributes
    ----------
    header : bool or None
        Whether the first line holds names; None is to find out.
    delimiter : str or None
        One character; a space stands for any run of blanks; None is to find out.
    index, labels : str or None
        A column's name, or its number from 0 (negative: from the last); in an .npz also the name of
        a 1-d array.
    drop : tuple of str
        Further columns to leave out.
    key : str or None
        The array of an .npz.
    missing : tuple of str
        Words for missing values besides the usual ones.
    rows : int or None
        Only so many first rows.
    """

    header: bool | None = None
    delimiter: str | None = None
    index: str | None = None
    labels: str | None = None
    drop: tuple[str, ...] = ()
    key: str | None = None
    missing: tuple[str, ...] = ()
    rows: int | None = None


@dataclass(frozen=True)
class Table:
    """A table of numbers.

    Attributes
    ----------
    values : ndarray (n, D), float64
        NaN is missing.
    columns : tuple of str
        D names.
    named : bool
        Whether the names come from the file.
    index, labels : ndarray (n,) of str, or None
    index_name, labels_name : str
    """

    values: np.ndarray
    columns: tuple[str, ...]
    named: bool = False
    index: np.ndarray | None = None
    labels: np.ndarray | None = None
    index_name: str = "row"
    labels_name: str = "label"
    notes: tuple[str, ...] = field(default=())


def read(path: Path, options: Options) -> Table:
    """Read a file by its suffix: .npy, .npz, or text (.csv, .tsv, .txt, also .gz).

    Raises
    ------
    TableError
        If it is not a table of numbers; the text names the line, the column and an example.
    OSError
        If it can't be opened.
    """
    suffixes = [s.lower() for s in path.suffixes]
    kind = suffixes[-1] if suffixes else ""
    if kind in (".npy", ".npz"):
        table = _from_numpy(path, options)
    elif kind in (".xlsx", ".xls", ".parquet", ".h5", ".h5ad", ".mat", ".rds", ".zip"):
        raise TableError(
            f"{path} is a {kind} file; expected .csv, .tsv, .txt, .npy or .npz: export it to one "
            "of those first"
        )
    else:
        table = _from_text(path, options, tabs=kind == ".tsv" or suffixes[-2:-1] == [".tsv"])
    infinite = np.argwhere(np.isinf(table.values))
    if infinite.size:
        i, j = infinite[0]
        raise TableError(
            f"column {table.columns[j]!r} of {path} is infinite in data row {i} ({len(infinite)} "
            "such entries); expected numbers: correct it, or leave the cell empty if the value is "
            "missing"
        )
    return table


# -- text ----------------------------------------------------------------------------------------


def _from_text(path: Path, options: Options, tabs: bool) -> Table:
    lines = list(_lines(path, options, tabs))
    if not lines:
        raise TableError(f"{path} is empty; expected a table with a row for each observation")
    missing = {*MISSING, *options.missing}
    has_header = _has_header(lines, missing) if options.header is None else options.header
    names = [c.strip() for c in lines[0][1]] if has_header else []
    body = lines[1:] if has_header else lines
    if not body:
        raise TableError(f"{path} has a header and no rows; expected rows of numbers below it")
    # R's write.table leaves the name of the index out.
    width = len(body[0][1])
    if names and len(names) == width - 1:
        names = ["", *names]
    for number, cells in body:
        if len(cells) != (len(names) or width):
            raise TableError(
                f"line {number} of {path} has {len(cells)} columns; expected {len(names) or width} "
                f"as in {'the header' if names else 'the first row'}: correct that line, or give "
                "the right --delimiter"
            )
    if options.rows is not None:
        body = body[: options.rows]
    if not names:
        names = [f"column_{j}" for j in range(width)]
    cells_of = list(zip(*(cells for _, cells in body), strict=True))
    index = None if options.index is None else _place(options.index, names, path)
    if index is None and has_header and names[0] == "" and width > 1:
        index = 0
    labels = None if options.labels is None else _place(options.labels, names, path)
    out = {_place(d, names, path) for d in options.drop} | {index, labels}
    keep = [j for j in range(width) if j not in out]
    if not keep:
        raise TableError(
            f"{path} has no column of numbers left besides --index, --labels and --drop (its "
            f"delimiter was taken to be {_name_of(options.delimiter)}); give the right --delimiter"
        )
    values = np.empty((len(body), len(keep)))
    for k, j in enumerate(keep):
        values[:, k] = _numbers(cells_of[j], missing, names[j], j, body, path)
    return Table(
        values,
        tuple(names[j] for j in keep),
        has_header,
        None if index is None else np.asarray([c.strip() for c in cells_of[index]]),
        None if labels is None else _label_words(cells_of[labels], missing),
        "row" if index is None else names[index] or "row",
        "label" if labels is None else names[labels] or "label",
        () if options.header is not None or not has_header else ("first line read as a header",),
    )


def _lines(path: Path, options: Options, tabs: bool) -> Iterator[tuple[int, list[str]]]:
    """Cells of each line that is not blank, with its number in the file."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = options.delimiter or ("\t" if tabs else _delimiter(first))
            file.seek(0)
            if delimiter == _SPACES:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield number, line.split()
                return
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            for cells in reader:
                if any(c.strip() for c in cells) or len(cells) > 1:
                    yield reader.line_num, cells
    except UnicodeDecodeError as error:
        raise TableError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); expected csv or tsv "
            "text, or .npy/.npz: save it as UTF-8"
        ) from error
    except (csv.Error, EOFError, gzip.BadGzipFile) as error:
        raise TableError(
            f"{path} can't be read as delimited text ({error}); expected one row a line: check "
            "quotes and --delimiter"
        ) from error


def _delimiter(line: str) -> str:
    counts = {d: line.count(d) for d in _DELIMITERS}
    best = max(counts, key=lambda d: counts[d])
    if counts[best]:
        return best
    return _SPACES if len(line.split()) > 1 else ","


def _name_of(delimiter: str | None) -> str:
    return "found by itself" if delimiter is None else repr(delimiter)


def _has_header(lines: Sequence[tuple[int, list[str]]], missing: set[str]) -> bool:
    """Whether the first line holds names.

    It does where a column of numbers has a word at its top (for the first column an empty cell will
    do), where it is one cell shorter than the rest, or where it counts 0, 1, 2, … or 1, 2, 3, ….
    """
    first = [c.strip() for c in lines[0][1]]
    body = [cells for _, cells in lines[1 : 1 + _DETECT_ROWS]]
    if not body:
        return all(_number(c) is None for c in first)
    if len(first) == len(body[0]) - 1:
        return True
    counted = [_number(c) for c in (first[1:] if first[0] == "" else first)]
    if len(counted) > 2 and counted in ([*range(len(counted))], [*range(1, len(counted) + 1)]):
        return True
    for j, top in enumerate(first):
        if _number(top) is not None or (top in missing and not (j == 0 and top == "")):
            continue
        below = [cells[j].strip() for cells in body if j < len(cells)]
        numbers = [
            _number(c) is not None or _COMMA.fullmatch(c) is not None
            for c in below
            if c not in missing
        ]
        if numbers and all(numbers):
            return True
    return False


def _number(cell: str) -> float | None:
    # Python reads 1_0 as ten; in a table it is a name.
    if "_" in cell:
        return None
    try:
        return float(cell)
    except ValueError:
        return None


def _numbers(
    cells: Sequence[str],
    missing: set[str],
    name: str,
    place: int,
    body: Sequence[tuple[int, list[str]]],
    path: Path,
) -> list[float]:
    out = []
    for (line, _), cell in zip(body, cells, strict=True):
        text = cell.strip()
        value = float("nan") if text in missing else _number(text)
        if value is None:
            raise TableError(
                f"column {name!r} (number {place}) of {path} is not numeric: line {line} has "
                f"{text!r}; " + _advice(text, name, place)
            )
        out.append(value)
    return out


def _advice(text: str, name: str, place: int) -> str:
    if _COMMA.fullmatch(text):
        return "expected a decimal point: replace the decimal commas"
    shown = name if name and not name.startswith("column_") else str(place)
    return (
        f"expected numbers. Use --labels {shown} if it holds classes, --index {shown} if it names "
        f"the rows, --drop {shown} to leave it out, or --missing {text!r} if that word means "
        "missing; rate-map takes the columns that --columns names"
    )


def _place(wanted: str, names: Sequence[str], path: Path) -> int:
    if wanted in names:
        if names.count(wanted) > 1:
            raise TableError(
                f"{path} has {names.count(wanted)} columns named {wanted!r}; give its number"
            )
        return names.index(wanted)
    width = len(names)
    if re.fullmatch(r"-?\d+", wanted) and -width <= int(wanted) < width:
        return int(wanted) % width
    shown = ", ".join(map(repr, names[:10])) + (", …" if width > 10 else "")
    raise TableError(
        f"{path} has no column {wanted!r}; expected one of {shown} or a number from 0 to "
        f"{width - 1} (-1 is the last)"
    )


def _label_words(cells: Sequence[str], missing: set[str]) -> np.ndarray:
    words = [c.strip() for c in cells]
    return np.asarray(["" if w in missing else w for w in words])


# -- NumPy files ---------------------------------------------------------------------------------


def _from_numpy(path: Path, options: Options) -> Table:
    try:
        held = np.load(path, allow_pickle=False)
        arrays = {"": held} if isinstance(held, np.ndarray) else {k: held[k] for k in held.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise TableError(
            f"{path} can't be read as a NumPy file ({error}); expected plain arrays of numbers, "
            "without pickled objects: save them again with numpy.save or numpy.savez"
        ) from error
    array = np.asarray(arrays[_key(arrays, options.key, path)])
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise TableError(
            f"{path} holds an array of {array.dtype} and shape {array.shape}; expected numbers of "
            "shape (rows, columns): reshape or convert it, or choose another with --key"
        )
    n, width = array.shape
    beside: dict[str, np.ndarray | None] = {"index": None, "labels": None}
    names = [f"column_{j}" for j in range(width)]
    out = {_place(d, names, path) for d in options.drop}
    titles = {"index": "row", "labels": "label"}
    for what, wanted in (("index", options.index), ("labels", options.labels)):
        if wanted is None:
            continue
        if wanted in arrays and wanted != "":
            column = np.asarray(arrays[wanted])
            if column.shape != (n,):
                raise TableError(
                    f"array {wanted!r} of {path} has shape {column.shape}; expected ({n},) as "
                    f"--{what}: one entry a row"
                )
            titles[what] = wanted
        else:
            j = _place(wanted, names, path)
            column = array[:, j]
            out.add(j)
        if column.dtype.kind == "f" and np.all(column == np.round(column)):
            column = column.astype(np.int64)
        beside[what] = column.astype(str)[: options.rows]
    keep = [j for j in range(width) if j not in out]
    values = np.ascontiguousarray(array[: options.rows, keep], dtype=np.float64)
    return Table(
        values,
        tuple(names[j] for j in keep),
        False,
        beside["index"],
        beside["labels"],
        titles["index"],
        titles["labels"],
    )


def _key(arrays: dict[str, Any], key: str | None, path: Path) -> str:
    shown = ", ".join(f"{k} {np.shape(a)}" for k, a in arrays.items()) or "nothing"
    if "" in arrays:
        return ""
    if key is not None:
        if key not in arrays:
            raise TableError(f"{path} has no array {key!r}; it holds {shown}: choose one of them")
        return key
    tables = [k for k, a in arrays.items() if np.ndim(a) == 2 and a.dtype.kind in "biuf"]
    if len(tables) != 1:
        raise TableError(
            f"{path} holds {shown}; expected one array of numbers with rows and columns: choose "
            "with --key NAME"
        )
    return tables[0]


__all__ = ["MISSING", "Options", "Table", "TableError", "read"]
