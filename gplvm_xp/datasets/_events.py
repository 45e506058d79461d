"""Events in time and space: accidents, saplings, spikes of a grid cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from . import _sources
from ._dataset import Dataset
from ._fetch import load, load_all
from ._parse_events import LOST


def load_coal_mining(*, data_home: str | Path | None = None, download: bool = True) -> Dataset:
    """Coal-mining disasters in Britain: 191 dates, 15 March 1851 to 22 March 1962.

    ``Y`` is (191, 1): the dates of explosions with ten or more deaths, decimal years, in order.

    ``extra``: ``year`` (112,), 1851 to 1962; ``annual_count`` (112,), disasters in each year.

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
    Places, in order: ``$GPLVM_XP_DATA/point_processes/point_processes.npz`` (sha256
    ``1d389c5654b84867bf337461cc0fbe95ba256d307f6332c930932bf305b80fde``) or ``coal.csv`` in that
    folder; the download cache; GitHub ``GPflow/GPflow``, ``doc/source/notebooks/data/coal.csv`` at
    commit 39e0fc3c3d8f19deeafc60c4c7461a5ed5f1e168, 3 kB (sha256
    ``49d365137313f6f3edcb72f38ec0db0cf2761b9df95901faa872dd433a52684f``).

    Publication: R. G. Jarrett, A note on the intervals between coal-mining disasters, Biometrika
    66, 191–193, 1979 (corrects Maguire, Pearson and Wynn 1952).

    Licence: none is stated for the data; GPflow, which redistributes the file, is Apache-2.0.
    """
    found = load(_sources.COAL, data_home=data_home, download=download)
    dates = np.array(found.arrays["coal_date"], dtype=np.float64)
    year = np.arange(1851, 1963)
    return Dataset(
        Y=dates[:, None],
        labels=None,
        label_names=(),
        feature_names=("date",),
        name="coal_mining",
        source=found.origin,
        extra={
            "year": year,
            "annual_count": np.bincount(dates.astype(np.int64) - year[0], minlength=year.size),
        },
    )


def load_pines(*, data_home: str | Path | None = None, download: bool = True) -> Dataset:
    """Finnish pine saplings: 127 places in the unit square (the first is there twice).

    ``Y`` is (127, 2): x and y, rescaled to [0, 1].

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
    Places, in order: ``$GPLVM_XP_DATA/point_processes/point_processes.npz`` (sha256
    ``1d389c5654b84867bf337461cc0fbe95ba256d307f6332c930932bf305b80fde``) or ``pines.csv`` in that
    folder; the download cache; GitHub ``GPflow/GPflow``, ``doc/source/notebooks/data/pines.csv`` at
    commit 8ecf64fa1a193be1eacd6bc022267e663aa9e797, 6 kB (sha256
    ``5ad41bb1bf4313f72e2d1c44c5b3fd909382902bf5088fc35d39526de73e95dd``).

    Publication: J. Møller, A. R. Syversveen and R. P. Waagepetersen, Log Gaussian Cox processes,
    Scandinavian Journal of Statistics 25, 451–482, 1998; ``finpines`` of the R package spatstat,
    without the repeated point.

    Licence: none is stated for the data; GPflow, which redistributes the file, is Apache-2.0.
    """
    found = load(_sources.PINES, data_home=data_home, download=download)
    return Dataset(
        Y=np.array(found.arrays["pines_xy"], dtype=np.float64, order="C"),
        labels=None,
        label_names=(),
        feature_names=("x", "y"),
        name="pines",
        source=found.origin,
    )


def load_grid_cell(*, data_home: str | Path | None = None, download: bool = True) -> Dataset:
    """A grid cell recorded in a large arena: 30 minutes of positions, 2119 spikes.

    ``Y`` is (90050, 2): x and y in metres, a row each 0.02 s, NaN where the tracking lost the
    animal (20 613 rows). Sample i is taken at i · ``time_step``.

    ``extra``: ``time_step`` (), seconds; ``spike_time`` (2119,), seconds; ``spike_position``
    (2119, 2), metres, linear between the two samples around the spike, NaN where one of them was
    lost; ``head_direction`` (90050,), degrees, NaN where lost; ``visits`` and ``counts``
    (128, 128), samples and spikes of each bin as the authors prepared them: rows are y, columns x,
    about 1.7 cm a bin, the arena in the middle; neither holds integers (a spike is spread over
    neighbouring bins), and visits are smoothed and nowhere zero.

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
    Places, in order: ``$GPLVM_XP_DATA/grid_cells/grid_cell_r2405_051216b_1816.npz`` (sha256
    ``c48d4c0d18649cb833d704992092cc6af8d9272b9b0d4d0fccca167d68ded29b``) or the two original files
    in that folder; the download cache; GitHub ``michaelerule/lgcpspatial``, ``example data/`` at
    commit 23d362ec300fae7e1b944d765183d3327528a053: ``r2405_051216b_cell1816.mat``, 467 kB (sha256
    ``d2e9c90bb28be29fb8ca0e8067cc83a6beeff65a8d7a611247e25653fe1f2734``), and
    ``binned_data_krupic_bauza_2018_r2405_051216b_cell1816.mat``, 131 kB (sha256
    ``275c22996065fea71195adabd2149364f0e966897f645a05bc885ebdbe33b373``).

    Publication: J. Krupic, M. Bauza, S. Burton and J. O'Keefe, Local transformations of the
    hippocampal cognitive map, Science 359, 1143–1146, 2018; methods in M. E. Rule et al.,
    Variational log-Gaussian point-process methods for grid cells, Hippocampus 33, 2023.

    Licence: none is stated for the recording, which was "kindly shared ... to evaluate these GP
    methods. Please cite"; the repository is GPL-3.0. It is not part of this package: don't
    redistribute it.
    """
    sources = (_sources.GRID_RECORDING, _sources.GRID_BINNED)
    found = load_all(sources, data_home=data_home, download=download)
    arrays = found.arrays
    pixels = np.asarray(arrays["xy_half_px"])
    xy = np.where(pixels == LOST, np.nan, pixels / (2.0 * arrays["pixels_per_m"]))
    step = 1.0 / np.asarray(arrays["pos_rate"], dtype=np.float64)
    times = arrays["spike_sample"] / np.asarray(arrays["spk_rate"], dtype=np.float64)
    before = np.minimum((times / step).astype(np.int64), xy.shape[0] - 2)
    along = (times / step - before)[:, None]
    return Dataset(
        Y=np.ascontiguousarray(xy),
        labels=None,
        label_names=(),
        feature_names=("x", "y"),
        name="grid_cell_r2405_051216b_1816",
        source=found.origin,
        extra={
            "time_step": np.asarray(step),
            "spike_time": times,
            "spike_position": (1.0 - along) * xy[before] + along * xy[before + 1],
            "head_direction": np.array(arrays["dir_deg"], dtype=np.float64),
            "visits": np.array(arrays["binned_n"], dtype=np.float64),
            "counts": np.array(arrays["binned_k"], dtype=np.float64),
        },
    )


def load_grid_simulated(*, data_home: str | Path | None = None, download: bool = True) -> Dataset:
    """A simulated grid cell whose rate is known, 128 × 128 bins.

    ``Y`` is (16384, 2): visits and spikes of each bin, row by row.

    ``extra``: ``visits`` and ``counts`` (128, 128), the same as maps; ``rate`` (128, 128), the true
    expected spikes of one visit; ``rate_with_background`` (128, 128), with slow variations of
    excitability; ``mask`` (128, 128), True inside the arena; ``period`` (), bins between firing
    fields; ``mean_rate`` (), spikes a visit.

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
    Places, in order: ``$GPLVM_XP_DATA/grid_cells/grid_simulated.npz`` (sha256
    ``e9446cc25fad08639ecc935b3e1d7a4cfffa97ccc4358fe326bdce598971f8ac``) or
    ``simulated_data_L128_P12.mat`` in that folder (the original file under a name without Greek
    letters); the download cache; GitHub ``michaelerule/lgcpspatial``, ``example data/`` at commit
    23d362ec300fae7e1b944d765183d3327528a053, 541 kB (sha256
    ``e1a94b1a1b9deaf30c2ae5562b8ba152101e564fd8bf276b95e0db097573e469``).

    Publication: M. E. Rule et al., Variational log-Gaussian point-process methods for grid cells,
    Hippocampus 33, 2023.

    Licence: none is stated for the data; the repository is GPL-3.0. :func:`make_grid_cells` makes
    similar maps without a file.
    """
    found = load(_sources.GRID_SIMULATED, data_home=data_home, download=download)
    arrays = found.arrays
    maps = {
        "visits": "visits_per_bin",
        "counts": "spikes_per_bin",
        "rate": "firing_rate",
        "rate_with_background": "firing_rate_with_background_variations",
        "period": "period_bins",
        "mean_rate": "mean_rate",
    }
    extra = {key: np.array(arrays[name], dtype=np.float64) for key, name in maps.items()}
    return Dataset(
        Y=np.stack([extra["visits"].ravel(), extra["counts"].ravel()], axis=1),
        labels=None,
        label_names=(),
        feature_names=("visits", "spikes"),
        name="grid_simulated",
        source=found.origin,
        extra={**extra, "mask": np.asarray(arrays["arena_mask"]) > 0},
    )


def load_grid_reference() -> Dataset:
    """A worked rate map with its exact answer, 88 × 128 bins and 79 retained components.

    The model is z = ``prior_mean`` + Σ_r u_r h_r with u_r ~ N(0, ``prior_variance[r]``) and h_r the
    sum of real and imaginary part of the orthonormal 2-d Fourier transform of the unit image at
    ``basis_index[r]`` (cos − sin); ``counts`` are Poisson with mean ``visits`` · exp(z) where there
    are visits. The posterior is the Gaussian that maximises the evidence bound, in float64.

    ``Y`` is (11264, 2): visits and spikes of each bin, row by row.

    ``extra``, inputs: ``visits``, ``counts``, ``prior_mean``, ``kernel_ft`` (the prior's spectrum)
    and ``arena_mask`` (88, 128), ``basis_index`` (79, 2), ``prior_variance`` (79,),
    ``period_bins``, ``kernel_height``, ``angle`` (radians) and ``cm_per_bin`` (). Answers:
    ``post_u`` (79,), ``post_cov_u`` (79, 79), ``post_dz`` (88, 128), the posterior mean of z
    without the prior's, ``post_var`` (88, 128), its variance, and ``elbo`` (), nats, without
    Σ (counts ln visits − ln counts!); ``elbo_rule_float32`` is what the reference implementation
    gives, whose variances are not to be matched (its factor is transposed).

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        A file with another checksum than the one expected.
    FileNotFoundError
        The folder that ``GPLVM_XP_DATA`` names does not have it. There is no public address.

    Notes
    -----
    Place: ``$GPLVM_XP_DATA/grid_cells/grid_lgcp_reference.npz`` (sha256
    ``861621c164172cecc612c561432b106fa99ce8ca0f380a7cbf25994e792f824c``), and no other.

    The inputs are those of the notebook "Test 1 inference" of GitHub ``michaelerule/lgcpspatial``
    for the recording of :func:`load_grid_cell`; the answers were computed for this library.

    Licence: as for :func:`load_grid_cell`; it is not part of this package.
    """
    found = load(_sources.GRID_REFERENCE, data_home=None, download=False)
    extra = {
        key: np.array(value, dtype=np.float64 if value.dtype.kind == "f" else value.dtype)
        for key, value in found.arrays.items()
    }
    visits, counts = extra.pop("n"), extra.pop("k")
    return Dataset(
        Y=np.stack([visits.ravel(), counts.ravel()], axis=1),
        labels=None,
        label_names=(),
        feature_names=("visits", "spikes"),
        name="grid_reference",
        source=found.origin,
        extra={"visits": visits, "counts": counts, **extra},
    )


__all__ = [
    "load_coal_mining",
    "load_grid_cell",
    "load_grid_reference",
    "load_grid_simulated",
    "load_pines",
]
