"""Real tables for examples, tests and benchmarks; none is part of this package.

======================= ================================= =========================================
loader                  table                             where it comes from
======================= ================================= =========================================
``load_digits``         1797 × 64, ten classes            bundled with scikit-learn
``fetch_oil_flow``      1000 × 12, three classes          public archive, 131 kB
``fetch_pbmc``          700 × 765, ten classes            installed scanpy, or public file, 1.8 MB
``fetch_frey_faces``    1965 × 560                        public file, 1.1 MB
``fetch_vowels``        2700 × 24, nine classes           public file, 4.1 MB
``fetch_swiss_roll``    1000 × 3                          public file, 0.8 MB
======================= ================================= =========================================

A fetcher looks in the folder named by the environment variable ``GPLVM_XP_DATA`` first, then in an
installed package that ships the file, in the download cache, and last at the public address, with
pooch (``pip install pooch``). Whatever is read is compared with a sha256 checksum. "Not to be had
here" is an ``OSError`` or an ``ImportError``; a damaged file is a ``ValueError``.
"""

from __future__ import annotations

from ._bundled import load_digits
from ._dataset import Dataset
from ._public import (
    fetch_frey_faces,
    fetch_oil_flow,
    fetch_pbmc,
    fetch_swiss_roll,
    fetch_vowels,
)

__all__ = [
    "Dataset",
    "fetch_frey_faces",
    "fetch_oil_flow",
    "fetch_pbmc",
    "fetch_swiss_roll",
    "fetch_vowels",
    "load_digits",
]
