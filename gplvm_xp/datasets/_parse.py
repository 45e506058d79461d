"""Original file formats -> arrays. Every function takes the contents of one file."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._dataset import Table

OIL_SUBSETS = {"train": "Trn", "valid": "Vdn", "test": "Tst"}
VOWELS = ("a", "ae", "ao", "e", "i", "ibar", "o", "schwa", "u")
SWISS_ROLL_ROWS = 3000


def parse_oil_flow(content: bytes) -> dict[str, Table]:
    """The nine text tables of ``3PhData.tar.gz``: readings, one-hot labels and phase fractions.

    Returns
    -------
    dict
        ``Y_*`` (n, 12), ``label_*`` (n,) and ``frac_*`` (n, 2) for train, valid and test.

    Raises
    ------
    ValueError
        The archive lacks a table, or a table does not have the shape or values expected.
    """
    arrays: dict[str, Table] = {}
    with tarfile.open(fileobj=BytesIO(content), mode="r:gz") as archive:
        # Matched by base name: nothing is unpacked, so no member can choose where it goes.
        members = {name.rpartition("/")[2]: name for name in archive.getnames()}

        def table(name: str, columns: int) -> NDArray[np.float64]:
            stream = archive.extractfile(members[name]) if name in members else None
            if stream is None:
                raise ValueError(
                    f"The oil-flow archive has no table {name}; seen: {sorted(members)}. "
                    "Download 3PhData.tar.gz again."
                )
            values = np.loadtxt(stream, dtype=np.float64, ndmin=2)
            expect_columns(name, values, columns)
            return values

        for subset, code in OIL_SUBSETS.items():
            one_hot = table(f"Data{code}Lbls.txt", 3)
            if not (np.isin(one_hot, (0.0, 1.0)).all() and (one_hot.sum(axis=1) == 1).all()):
                raise ValueError(
                    f"Data{code}Lbls.txt is not one-hot: expected one 1 and two 0 in each row. "
                    "Download 3PhData.tar.gz again."
                )
            arrays[f"Y_{subset}"] = table(f"Data{code}.txt", 12)
            arrays[f"label_{subset}"] = one_hot.argmax(axis=1)
            arrays[f"frac_{subset}"] = table(f"Data{code}Frctns.txt", 2)
            rows = {len(arrays[f"{part}_{subset}"]) for part in ("Y", "label", "frac")}
            if len(rows) != 1:
                raise ValueError(
                    f"The three {subset} tables of the oil-flow archive have {sorted(rows)} rows, "
                    "expected equal numbers. Download 3PhData.tar.gz again."
                )
    return arrays


def parse_frey_faces(content: bytes) -> dict[str, Table]:
    """The one matrix ``ff`` (560, n) of ``frey_rawface.mat``, a frame in each column."""
    frames = matrix(content, "ff")
    expect_columns("ff (transposed)", frames.T, 560)
    return {"Y": np.ascontiguousarray(frames.T)}


def parse_shuttle(content: bytes) -> dict[str, Table]:
    """``shuttle.csv.gz``: nine readings and whether they are anomalous, integers with a header.

    Returns
    -------
    dict
        ``X`` (n, 9) and ``anomaly`` (n,).

    Raises
    ------
    ValueError
        The header is not the one expected, or an entry is no integer.
    """
    text = gzip.decompress(content).decode("ascii")
    head = ",".join([*(f"f{k}" for k in range(1, 10)), "anomaly"])
    first, _, rest = text.partition("\n")
    if first.strip() != head:
        raise ValueError(
            f"shuttle.csv.gz begins with {first.strip()!r}, expected {head!r}. Download it again."
        )
    values = np.loadtxt(rest.splitlines(), dtype=np.int64, delimiter=",", ndmin=2)
    expect_columns("shuttle.csv.gz", values, 10)
    return {"X": values[:, :9], "anomaly": values[:, 9]}


def parse_vowels(content: bytes) -> dict[str, Table]:
    """The nine ``*_raw`` matrices (300, 26) of ``jon_vowel_data.mat``.

    Columns 13 and 26 are dropped and the vowels stacked in alphabetical order, as the GPmat
    function ``lvmLoadData`` does; values are rounded to float32.
    """
    blocks = [matrix(content, f"{vowel}_raw") for vowel in VOWELS]
    for vowel, block in zip(VOWELS, blocks, strict=True):
        expect_columns(f"{vowel}_raw", block, 26)
    return {
        "Y": np.delete(np.concatenate(blocks), [12, 25], axis=1).astype(np.float32),
        "label": np.repeat(np.arange(len(VOWELS)), [len(block) for block in blocks]),
    }


def parse_swiss_roll(content: bytes) -> dict[str, Table]:
    """The first 3000 columns of ``X_data`` (3, n) and ``Y_data`` (2, n) of the .mat file."""
    space, sheet = matrix(content, "X_data").T, matrix(content, "Y_data").T
    expect_columns("X_data (transposed)", space, 3)
    expect_columns("Y_data (transposed)", sheet, 2)
    return {
        "Y": np.ascontiguousarray(space[:SWISS_ROLL_ROWS]),
        "sheet": np.ascontiguousarray(sheet[:SWISS_ROLL_ROWS]),
    }


def parse_pbmc(content: bytes) -> dict[str, Table]:
    """The ``.h5ad`` (HDF5) file that scanpy ships, in its old or its present layout.

    Raises
    ------
    ImportError
        h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "The PBMC table is stored as HDF5 and h5py, which reads it, is not installed: "
            "run `pip install h5py`."
        ) from error
    with h5py.File(BytesIO(content), "r") as file:
        return parse_pbmc_tables(lambda name: np.asarray(file[name]), old="raw.X" in file)


def parse_pbmc_tables(read: Callable[[str], NDArray[Any]], *, old: bool) -> dict[str, Table]:
    """The arrays of the PBMC file, given a reader of its tables by path.

    Parameters
    ----------
    read : callable
        ``read("raw/X/data")`` is that table.
    old : bool
        The layout of 2018 (one structured table for all cells), not the one of 2025.
    """
    from scipy.sparse import csr_matrix

    raw = "raw.X" if old else "raw/X"
    indptr = read(f"{raw}/indptr")
    genes = _text(read("raw.var")["index"] if old else read("raw/var/index"))
    dense = csr_matrix(
        (read(f"{raw}/data"), read(f"{raw}/indices"), indptr), shape=(len(indptr) - 1, len(genes))
    ).toarray()
    if old:
        cells = read("obs")
        columns = {key: cells[key] for key in ("bulk_labels", "louvain", "n_counts")}
        pca = read("obsm")["X_pca"]
        names = read("uns/bulk_labels_categories")
    else:
        columns = {key: read(f"obs/{key}/codes") for key in ("bulk_labels", "louvain")}
        columns["n_counts"] = read("obs/n_counts")
        pca = read("obsm/X_pca")
        names = read("obs/bulk_labels/categories")
    return {
        "Y_lognorm": dense,
        "pca50": np.ascontiguousarray(pca),
        "label": np.ascontiguousarray(columns["bulk_labels"]),
        "label_names": _text(names),
        "n_counts": np.ascontiguousarray(columns["n_counts"]),
        "louvain": np.ascontiguousarray(columns["louvain"]),
        "gene": genes,
    }


def matrix(content: bytes, name: str) -> NDArray[Any]:
    """One matrix of a MATLAB file.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    from scipy.io import loadmat

    held = loadmat(BytesIO(content), variable_names=[name])
    if name not in held:
        raise ValueError(
            f"The MATLAB file has no matrix {name!r}: it is another file than the one expected. "
            "Download it again."
        )
    return np.asarray(held[name])


def expect_columns(name: str, values: NDArray[Any], columns: int) -> None:
    """Raise ``ValueError`` unless ``values`` is (n, columns)."""
    if values.ndim != 2 or values.shape[1] != columns:
        raise ValueError(
            f"{name} has shape {values.shape}, expected (n, {columns}): it is another file than "
            "the one expected. Download it again."
        )


def _text(values: NDArray[Any]) -> NDArray[np.str_]:
    return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values], dtype=np.str_)


__all__ = [
    "OIL_SUBSETS",
    "SWISS_ROLL_ROWS",
    "VOWELS",
    "expect_columns",
    "matrix",
    "parse_frey_faces",
    "parse_oil_flow",
    "parse_pbmc",
    "parse_pbmc_tables",
    "parse_swiss_roll",
    "parse_vowels",
]
