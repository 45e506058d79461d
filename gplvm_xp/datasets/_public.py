"""Tables with a public address."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np

from . import _sources
from ._dataset import Dataset
from ._fetch import load
from ._parse import OIL_SUBSETS, SWISS_ROLL_ROWS, VOWELS

OilSubset: TypeAlias = Literal["train", "valid", "test", "oil100"]
PbmcTable: TypeAlias = Literal["log", "counts"]

# Each cell of the PBMC table was scaled to this many molecules before the logarithm.
_PBMC_TOTAL = 1e4


def fetch_oil_flow(
    subset: OilSubset = "train", *, data_home: str | Path | None = None, download: bool = True
) -> Dataset:
    """Three-phase oil flow, the standard table of the GP-LVM literature: 1000 × 12, three classes.

    Twelve simulated readings of a dual-energy gamma densitometer (no unit stated) on a pipe that
    carries oil, water and gas; the flow is homogeneous, annular or stratified (the
    labels). The two phase fractions are in ``extra["fractions"]`` (n, 2). The papers use the
    training set.

    Parameters
    ----------
    subset : {"train", "valid", "test", "oil100"}
        One of three independent sets of 1000 rows, or the 100 training rows of GPflow's
        ``three_phase_oil_flow.npz``, whose row numbers are then in ``extra["rows"]``. Its PCA
        error count (20) is the one published for the ``oil100`` of Lawrence 2005.
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
        Unknown subset, or a file with another checksum than the one expected.
    FileNotFoundError, ConnectionError, ImportError
        The data are nowhere, the download failed, or pooch is missing; the text says what to do.

    Notes
    -----
    Places, in order: ``$GPLVM_XP_DATA/oil_flow/oil_flow.npz`` (sha256
    ``6fbdec3949eb18da57ea567b465613156427528d107215b5c70019092c12d12f``) or ``3PhData.tar.gz`` in
    that folder; the download cache; GitHub ``cornellius-gp/gpytorch``,
    ``examples/045_GPLVM/3PhData.tar.gz`` at commit 7c4ec80f0f05cf530348a8a8972d67a11dd26ed2, 131 kB
    (sha256 ``f30941a9307ca9c8e7fcc99d27d9d3db6234dc089149478688cff2c0cda3ccf8``).

    Publication: C. M. Bishop and G. D. James, Analysis of multiphase flows using dual-energy gamma
    densitometry and neural networks, Nucl. Instrum. Methods Phys. Res. A 327, 580–593, 1993.

    Licence: none is stated for the data; redistributed in GPyTorch (MIT), GPflow (Apache-2.0) and
    GPmat (BSD-3-Clause).

    Identity check (``train``): leave-one-out 1-nearest-neighbour label errors are 162 after PCA to
    two dimensions (centred, unscaled), 264 after standardised PCA, 2 in the twelve dimensions.
    """
    allowed = (*OIL_SUBSETS, "oil100")
    if subset not in allowed:
        raise ValueError(f"subset={subset!r} is unknown; choose one of {', '.join(allowed)}.")
    found = load(_sources.OIL_FLOW, data_home=data_home, download=download)
    held = "train" if subset == "oil100" else subset
    Y, labels, fractions = (found.arrays[f"{part}_{held}"] for part in ("Y", "label", "frac"))
    extra = {"fractions": np.array(fractions)}
    if subset == "oil100":
        rows = np.array(_sources.OIL100_ROWS)
        Y, labels = Y[rows], labels[rows]
        extra = {"fractions": fractions[rows], "rows": rows}
    return Dataset(
        Y=np.array(Y, dtype=np.float64, order="C"),
        labels=np.array(labels, dtype=np.int64),
        label_names=("homogeneous", "annular", "stratified"),
        feature_names=_numbered("reading", 12),
        name="oil100" if subset == "oil100" else f"oil_flow_{subset}",
        source=found.origin,
        extra=extra,
    )


def fetch_pbmc(
    table: PbmcTable = "log", *, data_home: str | Path | None = None, download: bool = True
) -> Dataset:
    """Peripheral blood cells, 10x PBMC 68k reduced: 700 cells × 765 genes, ten cell types.

    ``Y`` is log(1 + normalised expression) (``adata.raw.X``), neither centred nor scaled, or the
    numbers of molecules behind it; the columns are highly variable genes. Labels are cell types
    assigned from bulk-sorted references.

    ``extra``: ``n_counts`` (700,), molecules counted in each cell over all genes, these 765 and the
    others (2141 to 9497): the exposure for models of counts; ``pca50`` (700, 50), principal
    components made by the distributors from scaled data; ``louvain`` (700,), cluster numbers.

    Parameters
    ----------
    table : {"log", "counts"}
        What ``Y`` is.
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
        Unknown table, or a file with another checksum than the one expected.
    FileNotFoundError, ConnectionError, ImportError
        The data are nowhere, the download failed, or pooch or h5py (needed for the original
        format only) is missing; the text says what to do.

    Notes
    -----
    Places, in order: ``$GPLVM_XP_DATA/single_cell/pbmc68k_reduced.npz`` (sha256
    ``23bab3fa33955b803c923078d180b199da1ecfe37843a9000ff6118fa9922ca2``) or
    ``10x_pbmc68k_reduced.h5ad`` in that folder; an installed scanpy that ships this file (up to
    1.12; it is not imported); the download cache; GitHub ``scverse/scanpy``,
    ``src/scanpy/datasets/10x_pbmc68k_reduced.h5ad`` at commit
    cf8b46dea735c35a629abfaa2e1bab9047281e34, 1.8 MB (sha256
    ``e71d41e737c941559b7c57c9243bdb3d2c889c2adfdf00e3422ac6b46783676f``).

    Publication: G. X. Y. Zheng et al., Massively parallel digital transcriptional profiling of
    single cells, Nature Communications 8:14049, 2017.

    Licence: scanpy, which redistributes the file, is BSD-3-Clause; see 10x Genomics for the
    licence of the original data.

    Identity check: leave-one-out 1-nearest-neighbour label errors are 252 after PCA to two
    dimensions (centred, unscaled), 225 after standardised PCA, 192 in the full space.

    The file holds no counts, but they can be had back: expression is the counts scaled to a total
    of 10⁴ in each cell, kept to three decimals after the logarithm, so that
    (e^y − 1) · ``n_counts`` / 10⁴ is within 0.09 of an integer everywhere (0 to 259, 33 % above 0).
    """
    if table not in get_args(PbmcTable):
        raise ValueError(f"table={table!r} is unknown; choose {' or '.join(get_args(PbmcTable))}.")
    found = load(_sources.PBMC, data_home=data_home, download=download)
    arrays = found.arrays
    Y = np.array(arrays["Y_lognorm"], dtype=np.float64, order="C")
    if table == "counts":
        Y = np.round(np.expm1(Y) * (arrays["n_counts"].astype(np.float64)[:, None] / _PBMC_TOTAL))
    return Dataset(
        Y=Y,
        labels=np.array(arrays["label"], dtype=np.int64),
        label_names=tuple(str(name) for name in arrays["label_names"]),
        feature_names=tuple(str(name) for name in arrays["gene"]),
        name="pbmc68k_reduced" if table == "log" else "pbmc68k_reduced_counts",
        source=found.origin,
        extra={key: np.array(arrays[key]) for key in ("pca50", "n_counts", "louvain")},
    )


def fetch_frey_faces(*, data_home: str | Path | None = None, download: bool = True) -> Dataset:
    """Brendan Frey's face, a video of 1965 frames of 28 × 20 pixels, in time order; no labels.

    ``Y`` is (1965, 560): grey levels 0 to 255, row by row: ``Y[i].reshape(28, 20)``.
    ``extra["image_shape"]`` is (28, 20).

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
    Places, in order: ``$GPLVM_XP_DATA/frey_faces/frey_faces.npz`` (sha256
    ``cf4ea5d51a680ee7c1da19a9965f96b171c29dd4e9c1af8e2d841fc59d834f65``) or ``frey_rawface.mat`` in
    that folder; the download cache; GitHub ``SheffieldML/GPmat``,
    ``datasets/data/frey_rawface.mat`` at commit 4b5914a38ecbad9fb7a13a3392970bfc28c9d911, 1.1 MB
    (sha256 ``265a83a23adb081755cd3de375509828e690324d1d60f076b8ecebc840d59c64``).

    Publication: B. J. Frey, A. Colmenarez and T. S. Huang, Mixtures of local linear subspaces for
    face recognition, CVPR 1998; file from S. Roweis's page.

    Licence: none is stated for the data; the repository GPmat is BSD-3-Clause.
    """
    found = load(_sources.FREY_FACES, data_home=data_home, download=download)
    return Dataset(
        Y=np.array(found.arrays["Y"], dtype=np.float64, order="C"),
        labels=None,
        label_names=(),
        feature_names=tuple(f"pixel_{row}_{column}" for row in range(28) for column in range(20)),
        name="frey_faces",
        source=found.origin,
        extra={"image_shape": np.array([28, 20])},
    )


def fetch_vowels(*, data_home: str | Path | None = None, download: bool = True) -> Dataset:
    """Vocal-joystick vowels: 2700 frames × 24 features of speech, 300 of each of nine vowels.

    Twelve cepstral coefficients and their twelve deltas (no unit); columns 13 and 26 of the
    file are dropped, as GPmat's ``lvmLoadData('vowels')`` does, and values carry float32 precision.
    Rows are sorted by vowel and, within one, in the order of the file.

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
    Places, in order: ``$GPLVM_XP_DATA/vowels/vowels.npz`` (sha256
    ``082497fb8fbd0830bab32135d74c707293b5d4b10b504333f4f6db59dc64f349``) or ``jon_vowel_data.mat``
    in that folder; the download cache; GitHub ``SheffieldML/GPmat``,
    ``datasets/data/jon_vowel_data.mat`` at commit 4b5914a38ecbad9fb7a13a3392970bfc28c9d911, 4.1 MB
    (sha256 ``ac5ea8f50614b2b8c74f3ab809dc9ce6dc9f11040a6a0094c9740c6d59f23572``).

    Recorded by J. Malkin, University of Washington (Vocal Joystick project).

    Licence: none is stated for the data; the repository GPmat is BSD-3-Clause.

    Identity check: leave-one-out 1-nearest-neighbour label errors are 1610 after PCA to two
    dimensions (centred, unscaled) and 24 in the full space.
    """
    found = load(_sources.VOWELS, data_home=data_home, download=download)
    return Dataset(
        Y=np.array(found.arrays["Y"], dtype=np.float64, order="C"),
        labels=np.array(found.arrays["label"], dtype=np.int64),
        label_names=VOWELS,
        feature_names=(*_numbered("cepstrum", 12), *_numbered("delta", 12)),
        name="vowels",
        source=found.origin,
    )


def fetch_swiss_roll(
    n_samples: int = 1000, *, data_home: str | Path | None = None, download: bool = True
) -> Dataset:
    """The Swiss roll of the Isomap paper: points of a rolled sheet in space, (n_samples, 3).

    ``extra["sheet"]`` (n_samples, 2) holds the true coordinates on the sheet; no unit, no labels.

    Parameters
    ----------
    n_samples : int
        First rows to take, 1 to 3000. GP-LVM papers use 1000 or 3000 of the 20 000.
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
        ``n_samples`` out of range, or a file with another checksum than the one expected.
    FileNotFoundError, ConnectionError, ImportError
        The data are nowhere, the download failed, or pooch is missing; the text says what to do.

    Notes
    -----
    Places, in order: ``$GPLVM_XP_DATA/swiss_roll/swiss_roll.npz`` (sha256
    ``7f24481882881ce1f30ac4e17c58e1a84715302d75855ab5750efce849ad7981``) or
    ``swiss_roll_data.mat`` in that folder; the download cache; GitHub ``SheffieldML/GPmat``,
    ``datasets/data/swiss_roll_data.mat`` at commit 4b5914a38ecbad9fb7a13a3392970bfc28c9d911, 0.8 MB
    (sha256 ``cba9de7548f8d7c23cfdeacd23587a8825c06366da8817e030abe3666063a849``).

    Publication: J. B. Tenenbaum, V. de Silva and J. C. Langford, A global geometric framework for
    nonlinear dimensionality reduction, Science 290, 2319–2323, 2000.

    Licence: none is stated for the data. ``sklearn.datasets.make_swiss_roll`` makes a similar table
    of any size without a file.
    """
    if not 1 <= n_samples <= SWISS_ROLL_ROWS:
        raise ValueError(
            f"n_samples={n_samples}, expected 1 to {SWISS_ROLL_ROWS}. For more rows use "
            "sklearn.datasets.make_swiss_roll."
        )
    found = load(_sources.SWISS_ROLL, data_home=data_home, download=download)
    return Dataset(
        Y=np.array(found.arrays["Y"][:n_samples], dtype=np.float64, order="C"),
        labels=None,
        label_names=(),
        feature_names=("x", "y", "z"),
        name="swiss_roll",
        source=found.origin,
        extra={"sheet": np.array(found.arrays["sheet"][:n_samples])},
    )


def _numbered(stem: str, count: int) -> tuple[str, ...]:
    return tuple(f"{stem}_{number}" for number in range(1, count + 1))


__all__ = [
    "OilSubset",
    "PbmcTable",
    "fetch_frey_faces",
    "fetch_oil_flow",
    "fetch_pbmc",
    "fetch_swiss_roll",
    "fetch_vowels",
]
