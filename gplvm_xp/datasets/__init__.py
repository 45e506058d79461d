"""Real tables for examples, tests and benchmarks, none of them part of this package; made ones too.

======================= ================================= =========================================
loader                  table                             where it comes from
======================= ================================= =========================================
``load_digits``         1797 × 64, ten classes            bundled with scikit-learn
``fetch_oil_flow``      1000 × 12, three classes          public archive, 131 kB
``fetch_pbmc``          700 × 765, also as counts          installed scanpy, or public file, 1.8 MB
``fetch_frey_faces``    1965 × 560                        public file, 1.1 MB
``fetch_vowels``        2700 × 24, nine classes           public file, 4.1 MB
``fetch_shuttle``       49 097 × 9, two classes           installed river, or public file, 0.3 MB
``fetch_swiss_roll``    1000 × 3                          public file, 0.8 MB
``load_coal_mining``    191 dates                         public file, 3 kB
``load_pines``          127 places                        public file, 6 kB
``load_grid_cell``      90 050 positions, 2119 spikes     two public files, 0.6 MB
``load_grid_simulated`` 128 × 128 bins, rate known        public file, 0.5 MB
``load_grid_reference`` 88 × 128 bins, answer known       ``GPLVM_XP_DATA`` only
``load_congress109``    529 × 1000 counts, three parties  two public files, 1.1 MB
``load_binary``         six tables of two classes         public files, under 0.1 MB each
``make_latent``         any size, latents known           made here
``make_cox_1d``         events on a line                  made here
``make_grid_cells``     rate maps, any number             made here
``make_walk``           52 joint angles, any sequences    made here
======================= ================================= =========================================

A loader of files looks in the folder named by the environment variable ``GPLVM_XP_DATA`` first,
then in an installed package that ships the file, in the download cache, and last at the public
address, with pooch (``pip install pooch``). Whatever is read is compared with a sha256 checksum.
"Not to be had here" is an ``OSError`` or an ``ImportError``; a damaged file is a ``ValueError``.
"""

from __future__ import annotations

from ._binary import load_binary
from ._bundled import load_digits
from ._counts import load_congress109
from ._dataset import Dataset
from ._events import (
    load_coal_mining,
    load_grid_cell,
    load_grid_reference,
    load_grid_simulated,
    load_pines,
)
from ._large import fetch_shuttle
from ._latent import make_latent
from ._public import (
    fetch_frey_faces,
    fetch_oil_flow,
    fetch_pbmc,
    fetch_swiss_roll,
    fetch_vowels,
)
from ._synthetic import make_cox_1d, make_grid_cells
from ._walk import make_walk

__all__ = [
    "Dataset",
    "fetch_frey_faces",
    "fetch_oil_flow",
    "fetch_pbmc",
    "fetch_shuttle",
    "fetch_swiss_roll",
    "fetch_vowels",
    "load_binary",
    "load_coal_mining",
    "load_congress109",
    "load_digits",
    "load_grid_cell",
    "load_grid_reference",
    "load_grid_simulated",
    "load_pines",
    "make_cox_1d",
    "make_grid_cells",
    "make_latent",
    "make_walk",
]
