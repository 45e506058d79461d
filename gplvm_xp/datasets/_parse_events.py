"""Original files of events, maps, two-class and count tables -> arrays; one file at a time."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from io import BytesIO, StringIO
from typing import TypeAlias

import numpy as np

from ._dataset import Table
from ._parse import expect_columns, matrix

Parser: TypeAlias = Callable[[bytes], Mapping[str, Table]]

PIMA = "npreg glu bp skin bmi ped age"
CRABS = "FL RW CL CW BD"
BIOPSY = "V1 V2 V3 V4 V5 V6 V7 V8 V9"
LOST = -32768


def parse_coal(content: bytes) -> dict[str, Table]:
    """``coal.csv``: one date in each line."""
    dates = np.loadtxt(BytesIO(content), delimiter=",", dtype=np.float64, ndmin=2)
    expect_columns("coal.csv", dates, 1)
    return {"coal_date": dates[:, 0]}


def parse_pines(content: bytes) -> dict[str, Table]:
    """``pines.csv``: x and y in each line."""
    places = np.loadtxt(BytesIO(content), delimiter=",", dtype=np.float64, ndmin=2)
    expect_columns("pines.csv", places, 2)
    return {"pines_xy": places}


def parse_recording(content: bytes) -> dict[str, Table]:
    """One session: tracked pixels (exact in halves), head direction, spike times, sample rates."""
    xy = matrix(content, "xy")
    expect_columns("xy", xy, 2)
    return {
        "xy_half_px": np.where(np.isnan(xy), LOST, 2.0 * xy).astype(np.int16),
        "dir_deg": matrix(content, "dir").ravel().astype(np.float32),
        "spike_sample": matrix(content, "spikes_times").ravel().astype(np.int64),
        "pos_rate": _number(content, "pos_sample_rate"),
        "spk_rate": _number(content, "spk_sample_rate"),
        "pixels_per_m": _number(content, "pixels_per_m"),
    }


def parse_binned(content: bytes) -> dict[str, Table]:
    """The authors' visits ``n`` and spikes ``k`` of each bin."""
    return {f"binned_{key}": matrix(content, key).astype(np.float32) for key in ("n", "k")}


def parse_simulated(content: bytes) -> dict[str, Table]:
    """The simulated map: rates as float32, counts and the mask as integers."""
    kinds = {
        "firing_rate": np.float32,
        "firing_rate_with_background_variations": np.float32,
        "visits_per_bin": np.int64,
        "spikes_per_bin": np.int64,
        "arena_mask": np.uint8,
    }
    arrays: dict[str, Table] = {k: matrix(content, k).astype(kind) for k, kind in kinds.items()}
    for key in ("period_bins", "mean_rate", "sharpness"):
        arrays[key] = matrix(content, key).astype(np.float64).reshape(())
    return arrays


def csv_table(inputs: str, labels: str, columns: str, label: str, one: str) -> Parser:
    """A parser of comma-separated text with a header; rows with a gap are left out.

    Parameters
    ----------
    inputs, labels : str
        Names of the two arrays.
    columns : str
        Names of the columns of the inputs, with blanks between.
    label, one : str
        Name of the column of classes, and the text there that becomes 1 (any other becomes 0).
    """

    def parse(content: bytes) -> dict[str, Table]:
        rows = _rows(content, (*columns.split(), label))
        whole = [row for row in rows if all(row[name] not in ("", "NA") for name in row)]
        return {
            inputs: np.array([[float(row[name]) for name in columns.split()] for row in whole]),
            labels: np.array([row[label] == one for row in whole], dtype=np.int8),
        }

    return parse


def parse_crabs(content: bytes) -> dict[str, Table]:
    """``crabs.csv``: measurements, sex (1 is male) and species (1 is orange)."""
    species = csv_table("crabs_X", "crabs_species", CRABS, "sp", "O")(content)
    return {**species, **csv_table("crabs_X", "crabs_sex", CRABS, "sex", "M")(content)}


def parse_ionosphere(content: bytes) -> dict[str, Table]:
    """``ionosphere.data``: 34 numbers and g (good, 1) or b (bad, 0)."""
    rows = list(csv.reader(StringIO(content.decode())))
    table = np.array([row for row in rows if row])
    expect_columns("ionosphere.data", table, 35)
    return {
        "ionosphere_X": table[:, :-1].astype(np.float64),
        "ionosphere_y": (table[:, -1] == "g").astype(np.int8),
    }


def parse_banana_inputs(content: bytes) -> dict[str, Table]:
    """``banana_X_train``: two numbers in each line."""
    X = np.loadtxt(BytesIO(content), delimiter=",", dtype=np.float64, ndmin=2)
    expect_columns("banana_X_train", X, 2)
    return {"banana400_X": X}


def parse_banana_labels(content: bytes) -> dict[str, Table]:
    """``banana_Y_train``: 0 or 1 in each line."""
    y = np.loadtxt(BytesIO(content), dtype=np.float64, ndmin=1)
    return {"banana400_y": y.astype(np.int8)}


def parse_congress_counts(content: bytes) -> dict[str, Table]:
    """``congress109.csv``: a name and 1000 counts in each line; rows in the order of the names."""
    header, *rows = (row for row in csv.reader(StringIO(content.decode())) if row)
    rows.sort(key=lambda row: row[0])
    counts = np.array([row[1:] for row in rows], dtype=np.int16)
    expect_columns("congress109.csv (without names)", counts, 1000)
    return {"Y": counts, "phrase": np.array(header[1:]), "name": np.array([r[0] for r in rows])}


def parse_congress_members(content: bytes) -> dict[str, Table]:
    """``congress109members.csv``: who the members are; rows in the order of their names."""
    words = ("party", "state", "chamber")
    rows = sorted(_rows(content, ("name", *words, "repshare")), key=lambda row: row["name"])
    return {
        **{key: np.array([row[key] for row in rows]) for key in words},
        "repshare": np.array([float(row["repshare"]) for row in rows]),
    }


def _rows(content: bytes, need: tuple[str, ...]) -> list[dict[str, str]]:
    """The columns ``need`` of comma-separated text with a header."""
    reader = csv.DictReader(StringIO(content.decode()))
    seen = list(reader.fieldnames or ())
    if not set(need) <= set(seen):
        raise ValueError(
            f"The table has the columns {seen}, expected {list(need)} among them: it is another "
            "file than the one expected. Download it again."
        )
    return [{name: row[name] for name in need} for row in reader]


def _number(content: bytes, name: str) -> Table:
    return matrix(content, name).astype(np.int64).reshape(())


__all__ = [
    "BIOPSY",
    "CRABS",
    "LOST",
    "PIMA",
    "Parser",
    "csv_table",
    "parse_banana_inputs",
    "parse_banana_labels",
    "parse_binned",
    "parse_coal",
    "parse_congress_counts",
    "parse_congress_members",
    "parse_crabs",
    "parse_ionosphere",
    "parse_pines",
    "parse_recording",
    "parse_simulated",
]
