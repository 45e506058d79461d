"""Tables with more rows than an exact model takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from . import _sources
from ._dataset import Dataset
from ._fetch import load


def fetch_shuttle(*, data_home: str | Path | None = None, download: bool = True) -> Dataset:
    """Statlog Shuttle, the form for anomalies: 49 097 rows × 9 integer sensor readings.

    No units are known; columns have heavy tails (-26 739 to 15 164) and widths that differ, so that
    a Gaussian model wants them compressed, ``np.arcsinh(Y)``, and scaled. Labels are 1 for the
    rare classes (3511 rows), 0 for the normal one; class 4 was removed.

    Parameters
    ----------
    data_home : path, optional
        Folder that downloads are kept in. By default pooch's cache folder of this user.
    download : bool
        False forbids the network.

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        A file with another checksum than the one expected.
    FileNotFoundError, ConnectionError, ImportError
        The data are nowhere, the download failed, or pooch is missing; the text says what to do.

    Notes
    -----
    Places, in order: ``$GPLVM_XP_DATA/large/shuttle_49k.npz`` (sha256
    ``be3641dfb5abb1bb79111271cd247fbb1ed6be8519c3888f413f7990f06e63d0``) or ``shuttle.csv.gz`` in
    that folder; an installed river; the download cache; GitHub ``online-ml/river``,
    ``river/datasets/shuttle.csv.gz`` at 0.26.1, 346 kB (sha256
    ``1ed4bfa77233d95bff2c8ab2482725d2d800410daedf5919ad80ec6faf60ff59``).

    UCI Statlog (Shuttle), with thanks to NASA; the form with anomalies is that of the outlier
    detection data sets of S. Rayana, 2016. Licence: CC BY 4.0; river is BSD-3-Clause.

    Identity check: the columns' means are 46.93, -0.06, 85.12, 0.21, 36.87, 2.16, 38.20, 48.29 and
    10.26.
    """
    found = load(_sources.SHUTTLE, data_home=data_home, download=download)
    return Dataset(
        Y=np.array(found.arrays["X"], dtype=np.float64, order="C"),
        labels=np.array(found.arrays["anomaly"], dtype=np.int64),
        label_names=("normal", "anomaly"),
        feature_names=tuple(f"sensor_{k}" for k in range(1, 10)),
        name="shuttle",
        source=found.origin,
    )
