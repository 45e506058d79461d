"""Tables of counts, for Poisson and negative-binomial models."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from . import _sources
from ._dataset import Dataset
from ._fetch import load_all

_PARTIES = {"D": "Democrat", "I": "independent", "R": "Republican"}


def load_congress109(*, data_home: str | Path | None = None, download: bool = True) -> Dataset:
    """Phrases in the 109th US Congress (2005-2006): 529 members × 1000 phrases, counts of use.

    ``Y[i, j]`` is how often member i used phrase j (three words, as a rule) on the floor; integers
    from 0 to 631, in floats, 91 % of them 0. Rows are in the alphabetical order of ``name``.
    Labels are the parties: 242 Democrats, 2 independents, 285 Republicans.

    ``extra``: ``exposure`` (529,), the uses of all 1000 phrases by each member (1 to 5163), for
    models in which the mean of a count is exposure · exp(f); ``name`` (529,); ``state`` (529,), two
    letters; ``chamber`` (529,), "H" (429) or "S" (100); ``repshare`` (529,), the Republican share
    of the vote of 2004 in the member's constituency, 0 to 1.

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
    Places, in order: ``$GPLVM_XP_DATA/counts/congress109.npz`` (sha256
    ``75a7a8a741f5e8d1f87ddb345b2a4ca02c4954cf24744624a4ff934ad78bd47a``) or the two original files
    in that folder; the download cache; GitHub ``gwgundersen/rflvm``, ``datasets/`` at commit
    5ac15101f2ab89dcb27eca3357f2454b0bd0146f: ``congress109.csv``, 1.1 MB (sha256
    ``0f82e1f56cf9a5330079e26ee785e7d03def92d79c00069237333a24d09d52a1``), and
    ``congress109members.csv``, 31 kB (sha256
    ``b685cc8a417310783825dbb1b41727dda32981e5229d344877e444f307b3b070``).

    Publication: M. Gentzkow and J. M. Shapiro, What drives media slant? Evidence from U.S. daily
    newspapers, Econometrica 78, 35–71, 2010. Used for latent variable models by G. Gundersen,
    M. Zhang and B. Engelhardt, Latent variable modeling with random features, AISTATS 2021.

    Licence: none is stated in the repository; the R package textir, which ships the same tables, is
    GPL-3.

    Identity check: leave-one-out 1-nearest-neighbour errors of the party are 147 in the full space
    of log(1 + count) and 142 after PCA of that to two dimensions (centred, unscaled).
    """
    found = load_all(_sources.CONGRESS, data_home=data_home, download=download)
    arrays = found.arrays
    Y = np.array(arrays["Y"], dtype=np.float64, order="C")
    codes = list(_PARTIES)
    extra = {key: np.array(arrays[key]) for key in ("name", "state", "chamber", "repshare")}
    return Dataset(
        Y=Y,
        labels=np.array([codes.index(code) for code in arrays["party"]], dtype=np.int64),
        label_names=tuple(_PARTIES.values()),
        feature_names=tuple(str(phrase) for phrase in arrays["phrase"]),
        name="congress109",
        source=found.origin,
        extra={"exposure": Y.sum(axis=1), **extra},
    )


__all__ = ["load_congress109"]
