"""Tables of two classes, for classification."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from . import _sources
from ._dataset import Dataset
from ._fetch import load_all
from ._parse_events import CRABS, PIMA

BinaryName: TypeAlias = Literal[
    "ripley", "pima", "crabs_sex", "wisconsin", "ionosphere", "banana400"
]


@dataclass(frozen=True)
class _Kept:
    """Where a set lies in the arrays, and what its classes and columns are called."""

    inputs: str
    labels: str
    classes: tuple[str, str]
    columns: tuple[str, ...]
    test: tuple[str, str] | None = None


_CELLS = (
    "clump_thickness", "size_uniformity", "shape_uniformity", "adhesion", "epithelial_size",
    "bare_nuclei", "chromatin", "nucleoli", "mitoses",
)  # fmt: skip
_KEPT = {
    "ripley": _Kept(
        "ripley_X_train",
        "ripley_y_train",
        ("0", "1"),
        ("x", "y"),
        ("ripley_X_test", "ripley_y_test"),
    ),
    "pima": _Kept(
        "pima_X_train",
        "pima_y_train",
        ("healthy", "diabetic"),
        tuple(PIMA.split()),
        ("pima_X_test", "pima_y_test"),
    ),
    "crabs_sex": _Kept("crabs_X", "crabs_sex", ("female", "male"), tuple(CRABS.split())),
    "wisconsin": _Kept("wisconsin_X", "wisconsin_y", ("benign", "malignant"), _CELLS),
    "ionosphere": _Kept(
        "ionosphere_X",
        "ionosphere_y",
        ("bad", "good"),
        tuple(f"return_{number}" for number in range(1, 35)),
    ),
    "banana400": _Kept("banana400_X", "banana400_y", ("0", "1"), ("x1", "x2")),
}


def load_binary(
    name: BinaryName, *, data_home: str | Path | None = None, download: bool = True
) -> Dataset:
    """A small table of two classes, by name; inputs as published, neither centred nor scaled.

    ============ ============= ===========================================================
    name         ``Y``         what
    ============ ============= ===========================================================
    ripley       250 × 2       Ripley's two-class mixture; 1000 test rows; Bayes error 8 %
    pima         200 × 7       diabetes among Pima women, complete cases; 332 test rows
    crabs_sex    200 × 5       Leptograpsus crabs, five lengths in mm; the label is the sex
    wisconsin    683 × 9       breast tumours, nine scores of 1 to 10, complete cases
    ionosphere   351 × 34      radar returns; the second column is constant
    banana400    400 × 2       the banana, as GPflow has it
    ============ ============= ===========================================================

    ``extra``: for ripley and pima ``Y_test`` and ``labels_test``; for crabs_sex ``species`` (200,),
    0 blue and 1 orange; for the others nothing: the literature uses cross-validation.

    Parameters
    ----------
    name : {"ripley", "pima", "crabs_sex", "wisconsin", "ionosphere", "banana400"}
        Which table.
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
        Unknown name, or a file with another checksum than the one expected.
    FileNotFoundError, ConnectionError, ImportError
        The data are nowhere, the download failed, or pooch is missing; the text says what to do.

    Notes
    -----
    Places, in order: ``$GPLVM_XP_DATA/binary_classification/binary_classification.npz`` (sha256
    ``351e554de0af340fd74465ec682cd706b3f14eaf14eff9a93ffeb55172afe498``) or the original files in
    that folder; the download cache; GitHub:

    - ``vincentarelbundock/Rdatasets``, ``csv/MASS/`` at commit
      cc03c29690889dbe83089f5206e2422db8c3f71f: ``synth.tr.csv`` (sha256
      ``a0360161d301dbffab7bfb5d19b4904b1d6dd501c2d1937b0fec3a0bfe1b7c1e``), ``synth.te.csv``
      (``23341cd6a168ae07f3bb7de0ee5dbd085a022b7482f53f2a4dde2691d083b4ed``), ``Pima.tr.csv``
      (``78e6284c75bf81eaae97815f7d0dd2992a119629ec6622de7918258311c32a7a``), ``Pima.te.csv``
      (``b00bf6540cce6b6bc44ea65a149da3142b2039b37980dbcdf18d3750fc9db032``), ``crabs.csv``
      (``d643a70456ee5bd8a10b434416f0941615ea5a0adf208263ca25a49407c24b60``), ``biopsy.csv``
      (``e18081a83c04162001acba628c4be58e7cd9c55052c535d44ac5c7cd5d73ec22``);
    - ``SheffieldML/GPmat``, ``datasets/data/ionosphere.data`` at commit
      4b5914a38ecbad9fb7a13a3392970bfc28c9d911 (sha256
      ``46d52186b84e20be52918adb93e8fb9926b34795ff7504c24350ae0616a04bbd``);
    - ``GPflow/docs``, ``doc/source/notebooks/basics/data/`` at commit
      a988ce072199081b0ceb30512a07cae33eb46c61: ``banana_X_train`` (sha256
      ``f7bde8d325727ead3eff5860d316f635d95cd2d67f160b6dd20d900292d6da4c``) and ``banana_Y_train``
      (``5bbdc9358b6d8fae2e5957a1ace5636e51f3a86ece043567373486d5a8b78c6b``).

    Publications: ripley and pima, B. D. Ripley, Pattern Recognition and Neural Networks, 1996;
    crabs, N. A. Campbell and R. J. Mahon, Australian Journal of Zoology 22, 417–425, 1974;
    wisconsin, W. H. Wolberg and O. L. Mangasarian, PNAS 87, 9193–9196, 1990; ionosphere,
    V. G. Sigillito et al., Johns Hopkins APL Technical Digest 10, 262–266, 1989; banana,
    G. Rätsch, T. Onoda and K.-R. Müller, Machine Learning 42, 287–320, 2001. Results to compare
    with: M. Kuss and C. E. Rasmussen, JMLR 6, 1679–1704, 2005, Table 1.

    Licence: none is stated for ripley, pima, crabs, wisconsin and banana; the R package MASS is
    GPL-2 | GPL-3, GPflow is Apache-2.0; ionosphere is CC BY 4.0 (UCI).
    """
    if name not in _KEPT:
        raise ValueError(f"name={name!r} is unknown; choose one of {', '.join(_KEPT)}.")
    kept = _KEPT[name]
    found = load_all(_sources.BINARY[name], data_home=data_home, download=download)
    arrays = found.arrays
    extra = {}
    if kept.test is not None:
        extra["Y_test"] = np.array(arrays[kept.test[0]], dtype=np.float64, order="C")
        extra["labels_test"] = np.array(arrays[kept.test[1]], dtype=np.int64)
    if name == "crabs_sex":
        extra["species"] = np.array(arrays["crabs_species"], dtype=np.int64)
    return Dataset(
        Y=np.array(arrays[kept.inputs], dtype=np.float64, order="C"),
        labels=np.array(arrays[kept.labels], dtype=np.int64),
        label_names=kept.classes,
        feature_names=kept.columns,
        name=name,
        source=found.origin,
        extra=extra,
    )


__all__ = ["BinaryName", "load_binary"]
