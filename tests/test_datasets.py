"""Loaders: the numbers that identify each table, every place they look in, every way to fail."""

from __future__ import annotations

import dataclasses
import functools
import gc
import gzip
import hashlib
import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from gplvm_xp import datasets
from gplvm_xp.datasets import _fetch, _parse, _parse_events, _sources
from gplvm_xp.metrics import nearest_neighbour_errors

FETCHERS: dict[str, tuple[str, Callable[..., datasets.Dataset]]] = {
    "OIL_FLOW": ("oil_flow", datasets.fetch_oil_flow),
    "PBMC": ("single_cell", datasets.fetch_pbmc),
    "FREY_FACES": ("frey_faces", datasets.fetch_frey_faces),
    "VOWELS": ("vowels", datasets.fetch_vowels),
    "SWISS_ROLL": ("swiss_roll", datasets.fetch_swiss_roll),
    "SHUTTLE": ("large", datasets.fetch_shuttle),
}

# Loaders of events and of two classes, with the public files that each may come from.
PUBLIC: dict[str, tuple[Callable[..., datasets.Dataset], tuple[_fetch.Source, ...]]] = {
    "coal_mining": (datasets.load_coal_mining, (_sources.COAL,)),
    "pines": (datasets.load_pines, (_sources.PINES,)),
    "grid_cell": (datasets.load_grid_cell, (_sources.GRID_RECORDING, _sources.GRID_BINNED)),
    "grid_simulated": (datasets.load_grid_simulated, (_sources.GRID_SIMULATED,)),
    "congress109": (datasets.load_congress109, _sources.CONGRESS),
    **{
        name: (functools.partial(datasets.load_binary, name), files)
        for name, files in _sources.BINARY.items()
    },
}


@pytest.fixture
def data_folder() -> Path:
    """The folder of real tables, where there is one."""
    named = os.environ.get(_fetch.ENVIRONMENT)
    if not named:
        pytest.skip(f"{_fetch.ENVIRONMENT} is not set: it names the folder of real tables")
    return Path(named)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No folder of tables, no package that ships any; returns an empty cache folder."""
    monkeypatch.delenv(_fetch.ENVIRONMENT, raising=False)
    monkeypatch.setattr(_sources, "PBMC", dataclasses.replace(_sources.PBMC, bundled=None))
    monkeypatch.setattr(_sources, "SHUTTLE", dataclasses.replace(_sources.SHUTTLE, bundled=None))
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A web server on the loopback: its address and the folder that it serves."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(_QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", folder
        running.shutdown()
        thread.join()
    gc.collect()


# pooch leaves the connection of a refused download to the garbage collector.
over_loopback = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def pca(Y: np.ndarray, *, standardise: bool = False) -> np.ndarray:
    centred = Y - Y.mean(axis=0)
    if standardise:
        scale = centred.std(axis=0)
        centred = centred / np.where(scale == 0, 1, scale)
    U, S, _ = np.linalg.svd(centred, full_matrices=False)
    return U[:, :2] * S[:2]


def npz_of(data_folder: Path, source: _fetch.Source) -> dict[str, np.ndarray]:
    path = data_folder / source.folder / source.archive
    if not path.is_file():
        pytest.skip(f"{source.folder} does not hold {source.archive}")
    with np.load(path, allow_pickle=False) as held:
        return {key: held[key] for key in held}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tar_of(tables: dict[str, np.ndarray]) -> bytes:
    """A gzipped tar of text tables in the number format of the oil-flow archive."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, values in tables.items():
            text = io.BytesIO()
            np.savetxt(text, values, fmt="%16.7e", delimiter="")
            member = tarfile.TarInfo(name)
            member.size = text.tell()
            archive.addfile(member, io.BytesIO(text.getvalue()))
    return stream.getvalue()


def oil_tables(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tables = {}
    for subset, code in _parse.OIL_SUBSETS.items():
        tables[f"Data{code}.txt"] = arrays[f"Y_{subset}"]
        tables[f"Data{code}Lbls.txt"] = np.eye(3)[arrays[f"label_{subset}"]]
        tables[f"Data{code}Frctns.txt"] = arrays[f"frac_{subset}"]
    return tables


def synthetic_oil(rows: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for subset in _parse.OIL_SUBSETS:
        arrays[f"Y_{subset}"] = rng.normal(size=(rows, 12)).round(4)
        arrays[f"label_{subset}"] = np.arange(rows) % 3
        arrays[f"frac_{subset}"] = rng.uniform(size=(rows, 2)).round(4)
    return arrays


def mat_of(**matrices: np.ndarray) -> bytes:
    from scipy.io import savemat

    stream = io.BytesIO()
    savemat(stream, matrices)
    return stream.getvalue()


def same(seen: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for key, values in seen.items():
        np.testing.assert_array_equal(values, expected[key], err_msg=key)


def at(monkeypatch: pytest.MonkeyPatch, url: str, content: bytes, cited: str | None = None) -> None:
    """Let the oil-flow table come from ``url``; ``cited`` is the checksum claimed for it."""
    remote = _fetch.Remote(f"{url}/3PhData.tar.gz", "3PhData.tar.gz", cited or sha256(content))
    monkeypatch.setattr(_sources, "OIL_FLOW", dataclasses.replace(_sources.OIL_FLOW, remote=remote))


# --- what identifies each table ------------------------------------------------------------------


def test_digits_come_with_scikit_learn() -> None:
    digits = datasets.load_digits()
    assert digits.Y.shape == (1797, 64)
    assert digits.Y.dtype == np.float64
    assert (digits.Y.min(), digits.Y.max()) == (0, 16)
    assert digits.label_names == tuple("0123456789")
    assert digits.labels is not None
    assert nearest_neighbour_errors(pca(digits.Y), digits.labels) == 742
    assert nearest_neighbour_errors(digits.Y, digits.labels) == 21


@pytest.mark.usefixtures("data_folder")
def test_oil_flow_is_the_published_table() -> None:
    oil = datasets.fetch_oil_flow()
    assert oil.Y.shape == (1000, 12)
    assert oil.labels is not None
    np.testing.assert_array_equal(np.bincount(oil.labels), [343, 316, 341])
    assert oil.label_names == ("homogeneous", "annular", "stratified")
    assert oil.extra["fractions"].shape == (1000, 2)
    assert nearest_neighbour_errors(oil.Y, oil.labels) == 2
    assert nearest_neighbour_errors(pca(oil.Y), oil.labels) == 162
    assert nearest_neighbour_errors(pca(oil.Y, standardise=True), oil.labels) == 264


@pytest.mark.usefixtures("data_folder")
@pytest.mark.parametrize(("subset", "rows", "errors"), [("valid", 1000, 158), ("test", 1000, 196)])
def test_other_oil_sets_are_told_apart(subset: str, rows: int, errors: int) -> None:
    oil = datasets.fetch_oil_flow(subset)
    assert oil.Y.shape == (rows, 12)
    assert oil.name == f"oil_flow_{subset}"
    assert nearest_neighbour_errors(pca(oil.Y), oil.labels) == errors


def test_oil100_is_the_published_subset(data_folder: Path) -> None:
    oil = datasets.fetch_oil_flow("oil100")
    train = datasets.fetch_oil_flow("train")
    rows = oil.extra["rows"]
    np.testing.assert_array_equal(rows, npz_of(data_folder, _sources.OIL_FLOW)["oil100_index"])
    np.testing.assert_array_equal(oil.Y, train.Y[rows])
    np.testing.assert_array_equal(oil.extra["fractions"], train.extra["fractions"][rows])
    assert nearest_neighbour_errors(pca(oil.Y), oil.labels) == 20


@pytest.mark.usefixtures("data_folder")
def test_pbmc_is_the_published_table() -> None:
    pbmc = datasets.fetch_pbmc()
    assert pbmc.Y.shape == (700, 765)
    assert len(pbmc.label_names) == 10
    assert pbmc.feature_names[0] == "HES4"
    assert {key: value.shape for key, value in pbmc.extra.items()} == {
        "pca50": (700, 50),
        "n_counts": (700,),
        "louvain": (700,),
    }
    assert nearest_neighbour_errors(pca(pbmc.Y), pbmc.labels) == 252
    assert nearest_neighbour_errors(pca(pbmc.Y, standardise=True), pbmc.labels) == 225
    assert nearest_neighbour_errors(pbmc.Y, pbmc.labels) == 192


@pytest.mark.usefixtures("data_folder")
def test_pbmc_counts_are_those_behind_the_table() -> None:
    logs, counts = datasets.fetch_pbmc(), datasets.fetch_pbmc("counts")
    total = counts.extra["n_counts"].astype(np.float64)[:, None]
    np.testing.assert_array_equal(counts.Y, np.round(counts.Y))
    assert (counts.Y.min(), counts.Y.max()) == (0.0, 259.0)
    assert np.all(counts.Y.sum(axis=1) <= total[:, 0])
    # The table again: three decimals, of numbers in single precision.
    np.testing.assert_allclose(np.log1p(counts.Y / total * 1e4), logs.Y, atol=6e-4)
    np.testing.assert_array_equal(counts.labels, logs.labels)
    assert counts.name == "pbmc68k_reduced_counts"


@pytest.mark.usefixtures("data_folder")
def test_congress_is_the_published_table() -> None:
    table = datasets.load_congress109()
    assert table.Y.shape == (529, 1000)
    assert (table.Y.min(), table.Y.max(), table.Y.sum()) == (0.0, 631.0, 176160.0)
    assert table.labels is not None
    np.testing.assert_array_equal(np.bincount(table.labels), [242, 2, 285])
    assert table.label_names == ("Democrat", "independent", "Republican")
    extra = table.extra
    assert (np.sort(extra["name"]) == extra["name"]).all()
    (sanders,) = np.flatnonzero(extra["name"] == "Bernard Sanders")
    assert table.label_names[table.labels[sanders]] == "independent"
    assert (extra["state"][sanders], extra["chamber"][sanders]) == ("VT", "H")
    np.testing.assert_array_equal(np.unique(extra["chamber"], return_counts=True)[1], [429, 100])
    np.testing.assert_array_equal(extra["exposure"], table.Y.sum(axis=1))
    assert np.corrcoef(extra["repshare"], table.labels)[0, 1] > 0.6
    logs = np.log1p(table.Y)
    assert nearest_neighbour_errors(logs, table.labels) == 147
    assert nearest_neighbour_errors(pca(logs), table.labels) == 142


@pytest.mark.usefixtures("data_folder")
def test_shuttle_is_the_published_table() -> None:
    shuttle = datasets.fetch_shuttle()
    assert shuttle.Y.shape == (49_097, 9)
    assert shuttle.labels.sum() == 3511
    means = [46.93, -0.06, 85.12, 0.21, 36.87, 2.16, 38.20, 48.29, 10.26]
    np.testing.assert_allclose(shuttle.Y.mean(axis=0), means, atol=0.005)


def test_shuttle_is_read_from_its_text() -> None:
    head = "f1,f2,f3,f4,f5,f6,f7,f8,f9,anomaly"
    text = f"{head}\n50,21,77,0,28,0,27,48,22,1\n53,0,82,0,52,-5,29,30,2,0\n"
    parsed = _parse.parse_shuttle(gzip.compress(text.encode()))
    np.testing.assert_array_equal(parsed["X"][1], [53, 0, 82, 0, 52, -5, 29, 30, 2])
    np.testing.assert_array_equal(parsed["anomaly"], [1, 0])
    with pytest.raises(ValueError, match="begins with 'a,b', expected 'f1,f2"):
        _parse.parse_shuttle(gzip.compress(b"a,b\n1,2\n"))


def test_vowels_are_the_published_table() -> None:
    vowels = datasets.fetch_vowels()
    assert vowels.Y.shape == (2700, 24)
    assert nearest_neighbour_errors(pca(vowels.Y), vowels.labels) == 1610
    assert nearest_neighbour_errors(vowels.Y, vowels.labels) == 24


@pytest.mark.usefixtures("data_folder")
def test_frey_faces_are_images_in_time_order() -> None:
    faces = datasets.fetch_frey_faces()
    assert faces.Y.shape == (1965, 560)
    assert faces.labels is None
    assert (faces.Y.min(), faces.Y.max()) == (8, 238)
    # Neighbouring frames and neighbouring rows of a frame differ by 12 and 19 grey levels; in the
    # wrong order or shape by 27 and 46.
    assert np.abs(np.diff(faces.Y, axis=0)).mean() < 15
    images = faces.Y.reshape(-1, *faces.extra["image_shape"])
    assert np.abs(np.diff(images, axis=1)).mean() < 20


@pytest.mark.usefixtures("data_folder")
def test_swiss_roll_rows() -> None:
    roll = datasets.fetch_swiss_roll(n_samples=250)
    assert roll.Y.shape == (250, 3)
    assert roll.extra["sheet"].shape == (250, 2)


@pytest.mark.usefixtures("data_folder")
@pytest.mark.parametrize("key", FETCHERS)
def test_every_call_gives_fresh_writable_float64(key: str) -> None:
    _, fetch = FETCHERS[key]
    first, second = fetch(), fetch()
    assert first.Y.dtype == np.float64
    assert first.Y.flags.c_contiguous
    first.Y[:] = np.nan
    assert np.isfinite(second.Y).all()
    source = getattr(_sources, key)
    assert source.archive_sha256 in first.source or source.remote.sha256 in first.source


@pytest.mark.parametrize("key", FETCHERS)
def test_checksums_and_addresses_are_in_the_docstring(key: str) -> None:
    _, fetch = FETCHERS[key]
    source = getattr(_sources, key)
    assert fetch.__doc__ is not None
    for fact in (source.archive_sha256, source.remote.sha256, source.remote.filename, "Licence:"):
        assert fact in fetch.__doc__
    owner, name, commit = source.remote.url.split("/")[3:6]
    assert f"{owner}/{name}" in fetch.__doc__
    assert commit in fetch.__doc__


@pytest.mark.parametrize("key", FETCHERS)
def test_checksums_agree_with_the_notes_in_the_folder(key: str, data_folder: Path) -> None:
    folder, _ = FETCHERS[key]
    notes = data_folder / folder / "README.md"
    if not notes.is_file():
        pytest.skip(f"{folder} has no README.md to compare with")
    source = getattr(_sources, key)
    assert source.archive_sha256 in notes.read_text(encoding="utf-8")
    # The notes on shuttle name a release of the package that brings the file, not the file's sum.
    if key != "SHUTTLE":
        assert source.remote.sha256 in notes.read_text(encoding="utf-8")


# --- events, rate maps, two classes ---------------------------------------------------------------


@pytest.mark.usefixtures("data_folder")
def test_coal_mining_is_the_published_table() -> None:
    coal = datasets.load_coal_mining()
    assert coal.Y.shape == (191, 1)
    assert (np.diff(coal.Y[:, 0]) >= 0).all()
    year, count = coal.extra["year"], coal.extra["annual_count"]
    assert (year[0], year[-1], count.sum(), count.max()) == (1851, 1962, 191, 6)
    # Jarrett 1979: 15 March 1851 to 22 March 1962, and 4, 5, 4, 1, 0 in the first five years.
    np.testing.assert_allclose(coal.Y[[0, -1], 0], [1851 + 74 / 365, 1962 + 80 / 365], atol=1e-3)
    np.testing.assert_array_equal(count[:5], [4, 5, 4, 1, 0])


def test_annual_counts_are_those_of_the_notes(data_folder: Path) -> None:
    arrays = npz_of(data_folder, _sources.COAL)
    coal = datasets.load_coal_mining()
    np.testing.assert_array_equal(coal.extra["year"], arrays["coal_year"])
    np.testing.assert_array_equal(coal.extra["annual_count"], arrays["coal_annual_count"])


@pytest.mark.usefixtures("data_folder")
def test_pines_are_in_the_unit_square() -> None:
    pines = datasets.load_pines()
    assert pines.Y.shape == (127, 2)
    assert (pines.Y.min(), pines.Y.max()) == (0.0, 1.0)
    assert len(np.unique(pines.Y, axis=0)) == 126


@pytest.mark.usefixtures("data_folder")
def test_grid_cell_fires_where_the_authors_found_it_to() -> None:
    cell = datasets.load_grid_cell()
    assert cell.Y.shape == (90050, 2)
    lost = np.isnan(cell.Y)
    assert (lost[:, 0] == lost[:, 1]).all()
    assert lost[:, 0].sum() == 20613
    np.testing.assert_allclose(np.nanmin(cell.Y, axis=0), [27.5 / 305, 34 / 305])
    extra = cell.extra
    assert extra["time_step"] == 0.02
    assert extra["spike_time"].shape == (2119,)
    assert extra["spike_time"].min() >= 0.0
    assert extra["spike_time"].max() <= extra["time_step"] * 90049
    # The first spike is 1.46 s in: sample 73 exactly.
    np.testing.assert_allclose(extra["spike_position"][0], cell.Y[73], rtol=1e-12)
    np.testing.assert_allclose(extra["visits"].sum(), 100020, rtol=1e-6)
    np.testing.assert_allclose(extra["counts"].sum(), 2119, rtol=1e-6)
    # Spikes in bins of the authors' size, both blurred and shifted onto each other: one picture.
    seen = extra["spike_position"][~np.isnan(extra["spike_position"]).any(axis=1)]
    column, row = ((seen - np.nanmin(cell.Y, axis=0)) / 0.0169).astype(int).T
    ours = np.zeros((128, 128))
    np.add.at(ours, (row, column), 1.0)
    f = np.fft.fftfreq(128)
    blur = np.exp(-0.5 * (2.0 * np.pi * 2.0) ** 2 * (f[:, None] ** 2 + f**2))
    a, b = np.fft.fft2(extra["counts"]) * blur, np.fft.fft2(ours) * blur
    match = np.fft.ifft2(a * b.conj()).real.max() * 128**2
    assert match > 0.97 * np.linalg.norm(a) * np.linalg.norm(b)


@pytest.mark.usefixtures("data_folder")
def test_simulated_grid_cell_has_its_known_rate() -> None:
    cell = datasets.load_grid_simulated()
    extra = cell.extra
    assert cell.Y.shape == (128 * 128, 2)
    np.testing.assert_array_equal(cell.Y[:, 0].reshape(128, 128), extra["visits"])
    np.testing.assert_array_equal(cell.Y[:, 1].reshape(128, 128), extra["counts"])
    assert extra["period"] == 12.8
    assert not extra["visits"][~extra["mask"]].any()
    visits, counts, rate = extra["visits"], extra["counts"], extra["rate_with_background"]
    expected = np.sum(visits * rate)
    assert abs(counts.sum() - expected) < 4.0 * np.sqrt(expected)


@pytest.mark.usefixtures("data_folder")
def test_grid_reference_is_consistent_with_itself() -> None:
    """The stated model gives the stated bound at the stated posterior: every array is in place."""
    extra = datasets.load_grid_reference().extra
    shape = extra["prior_mean"].shape
    units = np.zeros((79, *shape))
    units[np.arange(79), extra["basis_index"][:, 0], extra["basis_index"][:, 1]] = 1.0
    transformed = np.fft.fft2(units, norm="ortho")
    H = (transformed.real + transformed.imag).reshape(79, -1)
    u, C, prior = extra["post_u"], extra["post_cov_u"], extra["prior_variance"]
    z = extra["prior_mean"].ravel() + u @ H
    v = np.einsum("rl,rs,sl->l", H, C, H, optimize=True)
    np.testing.assert_allclose((u @ H).reshape(shape), extra["post_dz"], atol=2e-6)
    np.testing.assert_allclose(v.reshape(shape), extra["post_var"], atol=2e-6)
    visits, counts = extra["visits"].ravel(), extra["counts"].ravel()
    likelihood = np.sum(counts * z - visits * np.exp(z + 0.5 * v))
    kl = 0.5 * (np.sum((np.diag(C) + u**2) / prior) - 79 + np.sum(np.log(prior)))
    kl -= 0.5 * np.linalg.slogdet(C)[1]
    np.testing.assert_allclose(likelihood - kl, extra["elbo"], rtol=1e-9)


SIZES = {
    "ripley": (250, 2, 125), "pima": (200, 7, 68), "crabs_sex": (200, 5, 100),
    "wisconsin": (683, 9, 239), "ionosphere": (351, 34, 225), "banana400": (400, 2, 217),
}  # fmt: skip


@pytest.mark.usefixtures("data_folder")
@pytest.mark.parametrize("name", SIZES)
def test_two_class_tables_are_the_published_ones(name: str) -> None:
    table = datasets.load_binary(name)
    n, D, ones = SIZES[name]
    assert table.labels is not None
    assert (table.Y.shape, table.labels.sum(), table.name) == ((n, D), ones, name)
    assert len(table.label_names) == 2
    rows = {"ripley": (1000, 500), "pima": (332, 109)}.get(name)
    if rows is not None:
        assert table.extra["Y_test"].shape == (rows[0], D)
        assert table.extra["labels_test"].sum() == rows[1]
        both = np.concatenate([table.Y, table.extra["Y_test"]])
        labels = np.concatenate([table.labels, table.extra["labels_test"]])
        assert nearest_neighbour_errors(both, labels) < 0.35 * labels.size


@pytest.mark.usefixtures("data_folder")
@pytest.mark.parametrize("name", PUBLIC)
def test_every_call_is_fresh_and_says_what_was_read(name: str) -> None:
    load, files = PUBLIC[name]
    first, second = load(), load()
    assert first.Y.dtype == np.float64
    assert first.Y.flags.c_contiguous
    kept = second.Y.copy()
    first.Y[:] = 7.0
    np.testing.assert_array_equal(second.Y, kept)
    assert files[0].archive_sha256 in first.source


@pytest.mark.parametrize("name", PUBLIC)
def test_public_files_are_in_the_docstring(name: str) -> None:
    load, files = PUBLIC[name]
    text = getattr(load, "func", load).__doc__
    assert text is not None
    for source in files:
        owner, repository, commit = source.remote.url.split("/")[3:6]
        for fact in (
            source.archive_sha256, source.remote.sha256, source.remote.filename, "Licence:",
            f"{owner}/{repository}", commit,
        ):  # fmt: skip
            assert fact in text, fact


@pytest.mark.parametrize("name", PUBLIC)
def test_archive_checksums_agree_with_the_notes(name: str, data_folder: Path) -> None:
    source = PUBLIC[name][1][0]
    notes = data_folder / source.folder / "README.md"
    if not notes.is_file():
        pytest.skip(f"{source.folder} has no README.md to compare with")
    assert source.archive_sha256 in notes.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PUBLIC)
def test_the_original_files_give_the_same_arrays(name: str, data_folder: Path) -> None:
    for source in PUBLIC[name][1]:
        original = data_folder / source.folder / source.remote.filename
        if not original.is_file():
            pytest.skip(f"{source.folder} does not hold the original {source.remote.filename}")
        content = original.read_bytes()
        assert sha256(content) == source.remote.sha256
        same(dict(source.parse(content)), npz_of(data_folder, source))


def test_reference_is_in_the_folder_or_nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = _sources.GRID_REFERENCE
    assert datasets.load_grid_reference.__doc__ is not None
    assert source.archive_sha256 in datasets.load_grid_reference.__doc__
    monkeypatch.delenv(_fetch.ENVIRONMENT, raising=False)
    with pytest.raises(FileNotFoundError, match=r"no public address.*load_grid_simulated") as error:
        datasets.load_grid_reference()
    assert source.archive_sha256 in str(error.value)
    monkeypatch.setenv(_fetch.ENVIRONMENT, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"grid_lgcp_reference.npz: no such file"):
        datasets.load_grid_reference()
    (tmp_path / "grid_cells").mkdir()
    (tmp_path / "grid_cells" / source.archive).write_bytes(b"not it")
    with pytest.raises(ValueError, match=r"damaged or another version.*Replace the file\.$"):
        datasets.load_grid_reference()


def test_parts_of_a_data_set_come_from_their_own_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The folder holds the two original files, not the archive: both are read and named."""
    (tmp_path / "binary_classification").mkdir()
    tables = {
        "synth.tr.csv": b"rownames,xs,ys,yc\n1,0.5,1.5,0\n2,-0.5,2.5,1\n",
        "synth.te.csv": b"rownames,xs,ys,yc\n1,3.5,1.25,1\n",
    }
    files = []
    for source, (filename, content) in zip(_sources.BINARY["ripley"], tables.items(), strict=True):
        assert source.remote.filename == filename
        (tmp_path / "binary_classification" / filename).write_bytes(content)
        remote = dataclasses.replace(source.remote, sha256=sha256(content))
        files.append(dataclasses.replace(source, remote=remote))
    monkeypatch.setitem(_sources.BINARY, "ripley", tuple(files))
    monkeypatch.setenv(_fetch.ENVIRONMENT, str(tmp_path))
    table = datasets.load_binary("ripley")
    np.testing.assert_array_equal(table.Y, [[0.5, 1.5], [-0.5, 2.5]])
    np.testing.assert_array_equal(table.labels, [0, 1])
    np.testing.assert_array_equal(table.extra["Y_test"], [[3.5, 1.25]])
    assert all(filename in table.source for filename in tables)


def test_unknown_two_class_table() -> None:
    with pytest.raises(ValueError, match="name='iris' is unknown; choose one of ripley, pima"):
        datasets.load_binary("iris")  # type: ignore[arg-type]


# --- made here ------------------------------------------------------------------------------------


def test_cox_events_have_the_stated_rate() -> None:
    """Over many draws the histogram is that of the formula, and a factor multiplies it."""
    edges = np.linspace(0.0, 50.0, 11)
    middle = np.linspace(0.0, 50.0, 5001)
    formula = 2.0 * np.exp(-middle / 15.0) + np.exp(-(((middle - 25.0) / 10.0) ** 2))
    expected = [np.trapezoid(formula[i : i + 501], dx=0.01) for i in range(0, 5000, 500)]
    seen = np.zeros(10)
    for seed in range(40):
        cox = datasets.make_cox_1d(seed, scale=5.0)
        assert (np.diff(cox.Y[:, 0]) >= 0).all()
        seen += np.histogram(cox.Y[:, 0], edges)[0]
    assert (
        np.abs((seen - 200.0 * np.array(expected)) / np.sqrt(200.0 * np.array(expected))).max() < 4
    )
    np.testing.assert_allclose(cox.extra["rate"], 5.0 * formula[::10], rtol=1e-12)
    np.testing.assert_allclose(cox.extra["x"], middle[::10], rtol=1e-15)
    np.testing.assert_array_equal(datasets.make_cox_1d(3).Y, datasets.make_cox_1d(3).Y)
    assert datasets.make_cox_1d(3).Y.shape != datasets.make_cox_1d(4).Y.shape


def test_grid_cells_are_hexagonal_and_poisson() -> None:
    cells = datasets.make_grid_cells(6, shape=(64, 80), seed=2, minutes=20.0)
    visits, counts, rate = (cells.extra[key] for key in ("visits", "counts", "rate"))
    assert visits.shape == counts.shape == rate.shape == (6, 64, 80)
    np.testing.assert_array_equal(cells.Y, counts.reshape(6, -1))
    np.testing.assert_array_equal(visits.sum(axis=(1, 2)), 60000)
    assert not counts[visits == 0].any()
    z = (counts - visits * rate)[visits > 0] / np.sqrt((visits * rate)[visits > 0])
    assert abs(np.mean(z**2) - 1.0) < 0.15
    # Walls: the outer 8 % of the arena is never visited, the corners of the rest are.
    assert not visits[:, :5, :].any()
    assert not visits[:, :, 74:].any()
    assert (visits > 0).mean() > 0.5
    for period, orientation, map_ in zip(
        cells.extra["period"], cells.extra["orientation"], np.log(rate), strict=True
    ):
        assert 8.0 <= period <= 16.0
        assert 0.0 <= orientation < np.pi / 3.0
        # The log rate is three waves: shifted by a lattice vector it is the same. The lattice of
        # waves along the angles a has its nearest fields at the angles a + 30 degrees.
        assert map_.max() - map_.min() > 0.9 * 3.2 * 1.5
        y, x = np.meshgrid(np.arange(64) + 0.5, np.arange(80) + 0.5, indexing="ij")
        waves = []
        for a in orientation + np.pi / 3.0 * np.arange(3):
            phase = 4.0 * np.pi / (np.sqrt(3.0) * period) * (x * np.cos(a) + y * np.sin(a))
            waves += [np.cos(phase).ravel(), np.sin(phase).ravel()]
        design = np.stack([np.ones(map_.size), *waves], axis=1)
        fit, *_ = np.linalg.lstsq(design, map_.ravel(), rcond=None)
        np.testing.assert_allclose(design @ fit, map_.ravel(), atol=1e-10)
        np.testing.assert_allclose(np.hypot(fit[1::2], fit[2::2]), 3.2 / 3.0, rtol=1e-10)


def test_the_first_cells_do_not_depend_on_how_many() -> None:
    few = datasets.make_grid_cells(1, shape=(16, 16), seed=5, minutes=1.0)
    more = datasets.make_grid_cells(3, shape=(16, 16), seed=5, minutes=1.0)
    np.testing.assert_array_equal(few.Y[0], more.Y[0])
    assert not np.array_equal(more.Y[0], more.Y[1])


@pytest.mark.parametrize("likelihood", ["gaussian", "poisson", "probit"])
def test_a_slice_of_a_latent_table_is_that_of_the_whole(likelihood: Any) -> None:
    """Whatever the slice, over the edges of blocks: rows depend on their number alone."""
    make = functools.partial(datasets.make_latent, D=3, q=2, seed=4, n_features=16)
    whole = make(9000, likelihood=likelihood, missing=0.2)
    for start, n in ((0, 10), (0, 4096), (4000, 200), (4096, 1), (4095, 4098), (8999, 1)):
        part = make(n, start=start, likelihood=likelihood, missing=0.2)
        np.testing.assert_array_equal(part.Y, whole.Y[start : start + n])
        for key in ("latents", "function"):
            np.testing.assert_array_equal(part.extra[key], whole.extra[key][start : start + n])
    full = make(9000, likelihood=likelihood)
    there = ~np.isnan(whole.Y)
    np.testing.assert_array_equal(whole.Y[there], full.Y[there])
    assert there.any(axis=1).all()
    # A row that would be empty keeps one entry: 0.2 - 0.2^3 / 3 are missing.
    assert abs((~there).mean() - (0.2 - 0.2**3 / 3)) < 4.0 * 0.4 / 27000**0.5
    other = datasets.make_latent(50, 3, 2, 5, n_features=16, likelihood=likelihood)
    assert not np.array_equal(other.extra["function"], full.extra["function"][:50])


def test_latent_tables_have_the_stated_distribution() -> None:
    n, D = 4000, 3
    make = functools.partial(datasets.make_latent, n, D, 2, 1, variance=0.5, offset=0.7)
    table = make(noise=0.3)
    x, f = table.extra["latents"], table.extra["function"]
    assert np.abs(x.mean(axis=0)).max() < 4.0 / n**0.5
    np.testing.assert_allclose(np.cov(x.T), np.eye(2), atol=0.1)
    e = (table.Y - f) / 0.3
    assert abs(e.mean()) < 4.0 / (n * D) ** 0.5
    assert abs(np.mean(e**2) - 1.0) < 4.0 * (2.0 / (n * D)) ** 0.5
    counts = make(likelihood="poisson")
    np.testing.assert_array_equal(counts.extra["function"], f)
    z = (counts.Y - np.exp(f)) / np.exp(0.5 * f)
    assert abs(z.mean()) < 4.0 / (n * D) ** 0.5
    assert abs(np.mean(z**2) - 1.0) < 0.1
    bits = make(likelihood="probit").Y
    assert set(np.unique(bits)) == {0.0, 1.0}
    p = norm.cdf(f)
    assert abs((bits - p).mean()) < 4.0 * np.sqrt((p * (1.0 - p)).mean() / (n * D))


def test_latent_functions_have_the_covariance_of_the_kernel() -> None:
    """Over 500 outputs and 300 waves, at pairs of rows; a long lengthscale has no effect."""
    table = datasets.make_latent(
        40, 500, 3, 2, variance=2.0, lengthscale=[0.8, 2.0, 1e6], n_features=3000
    )
    x, f = table.extra["latents"], table.extra["function"]
    gap = (x[:, None] - x) / [0.8, 2.0, 1e6]
    want = 2.0 * np.exp(-0.5 * np.sum(gap**2, axis=-1))
    seen = f @ f.T / 500
    assert np.abs(seen - want).max() < 5.0 * 2.0 * (2.0 / 500) ** 0.5
    assert np.sqrt(np.mean((seen - want) ** 2)) < 1.3 * 2.0 / 500**0.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "n=0, D=12"),
        ({"D": 0}, "expected 1 or more of each"),
        ({"start": -1}, "start=-1"),
        ({"likelihood": "logit"}, "'logit' was given; expected one of gaussian, poisson, probit"),
        ({"noise": -0.1}, "noise=-0.1"),
        ({"offset": np.inf}, "offset=inf"),
        ({"lengthscale": [1.0, 1.0, 1.0]}, "expected one positive number, or 2"),
        ({"lengthscale": 0.0}, "lengthscale=0.0"),
        ({"missing": 1.0}, "missing=1.0 was given"),
    ],
)
def test_a_latent_table_refuses(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        datasets.make_latent(**{"n": 5, **wrong})


def test_makers_refuse() -> None:
    for scale in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="expected a positive finite number"):
            datasets.make_cox_1d(scale=scale)
    for wrong in ({"n_cells": 0}, {"shape": (4, 64)}, {"shape": (64,)}, {"minutes": 0.0}):
        with pytest.raises(ValueError, match="expected 1 or more cells"):
            datasets.make_grid_cells(**wrong)  # type: ignore[arg-type]


# --- original formats ----------------------------------------------------------------------------


def test_oil_archive_is_read() -> None:
    arrays = synthetic_oil()
    parsed = _parse.parse_oil_flow(tar_of(oil_tables(arrays)))
    assert parsed.keys() == arrays.keys()
    same(parsed, arrays)


def test_oil_archive_made_from_the_table_gives_it_back(data_folder: Path) -> None:
    arrays = npz_of(data_folder, _sources.OIL_FLOW)
    parsed = _parse.parse_oil_flow(tar_of(oil_tables(arrays)))
    assert {*parsed, "oil100_index"} == arrays.keys()
    same(parsed, arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"DataTst.txt": None}, "no table DataTst.txt"),
        (
            {"DataTrn.txt": np.zeros((7, 11))},
            r"DataTrn.txt has shape \(7, 11\), expected \(n, 12\)",
        ),
        ({"DataVdnLbls.txt": np.zeros((7, 3))}, "DataVdnLbls.txt is not one-hot"),
        ({"DataVdnFrctns.txt": np.zeros((6, 2))}, r"valid tables .* have \[6, 7\] rows"),
    ],
)
def test_unexpected_oil_archives_are_refused(
    change: dict[str, np.ndarray | None], message: str
) -> None:
    tables = oil_tables(synthetic_oil()) | change
    content = tar_of({name: values for name, values in tables.items() if values is not None})
    with pytest.raises(ValueError, match=message):
        _parse.parse_oil_flow(content)


def test_frey_matrix_is_transposed() -> None:
    frames = np.arange(560 * 4, dtype=np.uint8).reshape(560, 4)
    parsed = _parse.parse_frey_faces(mat_of(ff=frames))
    same(parsed, {"Y": frames.T})


def test_vowel_matrices_are_stacked_without_two_columns() -> None:
    rng = np.random.default_rng(1)
    blocks = {f"{vowel}_raw": rng.normal(size=(3, 26)) for vowel in _parse.VOWELS}
    parsed = _parse.parse_vowels(mat_of(**blocks))
    assert parsed["Y"].shape == (27, 24)
    np.testing.assert_array_equal(parsed["label"], np.repeat(np.arange(9), 3))
    kept = [*range(12), *range(13, 25)]
    np.testing.assert_array_equal(parsed["Y"][3:6], np.float32(blocks["ae_raw"][:, kept]))


def test_swiss_roll_keeps_the_first_columns() -> None:
    rng = np.random.default_rng(2)
    space, sheet = rng.normal(size=(3, 3010)), rng.normal(size=(2, 3010))
    parsed = _parse.parse_swiss_roll(mat_of(X_data=space, Y_data=sheet))
    same(parsed, {"Y": space.T[:3000], "sheet": sheet.T[:3000]})


@pytest.mark.parametrize(
    ("parse", "matrices", "message"),
    [
        (_parse.parse_frey_faces, {"gg": np.zeros((560, 2))}, "no matrix 'ff'"),
        (_parse.parse_frey_faces, {"ff": np.zeros((2, 560))}, r"shape \(560, 2\), expected"),
        (
            _parse.parse_vowels,
            {f"{vowel}_raw": np.zeros((2, 25)) for vowel in _parse.VOWELS},
            r"a_raw has shape \(2, 25\), expected \(n, 26\)",
        ),
        (_parse.parse_swiss_roll, {"X_data": np.zeros((3, 5))}, "no matrix 'Y_data'"),
    ],
)
def test_unexpected_matlab_files_are_refused(
    parse: Callable[[bytes], object], matrices: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse(mat_of(**matrices))


def test_a_recording_is_read() -> None:
    content = mat_of(
        xy=np.array([[1.5, 2.0], [np.nan, np.nan]]),
        dir=np.array([[90.0], [np.nan]]),
        spikes_times=np.array([[300], [450]], dtype=np.uint64),
        pos_sample_rate=np.array([[50]], dtype=np.uint8),
        spk_sample_rate=np.array([[30000]], dtype=np.uint16),
        pixels_per_m=np.array([[305]], dtype=np.uint16),
    )
    seen = _parse_events.parse_recording(content)
    np.testing.assert_array_equal(seen["xy_half_px"], [[3, 4], [-32768, -32768]])
    np.testing.assert_array_equal(seen["spike_sample"], [300, 450])
    assert (seen["pos_rate"], seen["spk_rate"], seen["pixels_per_m"]) == (50, 30000, 305)
    with pytest.raises(ValueError, match="no matrix 'n'"):
        _parse_events.parse_binned(content)


def test_text_tables_are_read() -> None:
    biopsy = b"rownames,ID,V1,V2,V3,V4,V5,V6,V7,V8,V9,class\n"
    biopsy += b"1,10,5,1,1,1,2,1,3,1,1,benign\n2,11,8,4,5,1,2,,7,3,1,malignant\n"
    biopsy += b"3,12,8,4,5,1,2,NA,7,3,1,malignant\n4,13,10,4,5,1,2,9,7,3,1,malignant\n"
    seen = _sources.BINARY["wisconsin"][0].parse(biopsy)
    np.testing.assert_array_equal(seen["wisconsin_X"][:, 0], [5, 10])
    np.testing.assert_array_equal(seen["wisconsin_y"], [0, 1])
    crabs = b"rownames,sp,sex,index,FL,RW,CL,CW,BD\n1,B,M,1,8.1,6.7,16.1,19,7\n2,O,F,1,9,8,7,6,5\n"
    seen = _parse_events.parse_crabs(crabs)
    np.testing.assert_array_equal(seen["crabs_X"], [[8.1, 6.7, 16.1, 19, 7], [9, 8, 7, 6, 5]])
    np.testing.assert_array_equal(seen["crabs_sex"], [1, 0])
    np.testing.assert_array_equal(seen["crabs_species"], [0, 1])
    line = ",".join(["0.5"] * 34)
    seen = _parse_events.parse_ionosphere(f"{line},g\n{line},b\n".encode())
    np.testing.assert_array_equal(seen["ionosphere_y"], [1, 0])
    assert seen["ionosphere_X"].shape == (2, 34)
    with pytest.raises(ValueError, match=r"columns \['a', 'b'\], expected \['FL', 'RW'"):
        _parse_events.parse_crabs(b"a,b\n1,2\n")
    names = ",".join(["name", *(f"p.{i}" for i in range(1000))])
    lines = [",".join([who, *[str(k)] * 1000]) for who, k in (("Zoe B", 3), ("Ann A", 0))]
    seen = _parse_events.parse_congress_counts("\n".join([names, *lines, ""]).encode())
    assert (seen["name"].tolist(), seen["phrase"][7]) == (["Ann A", "Zoe B"], "p.7")
    np.testing.assert_array_equal(seen["Y"], np.repeat([[0], [3]], 1000, axis=1))
    members = b"name,party,state,chamber,repshare,cs1\nZoe B,R,UT,H,0.75,1\nAnn A,D,VT,S,0.25,2\n"
    seen = _parse_events.parse_congress_members(members)
    assert [seen[k].tolist() for k in ("party", "state", "chamber", "repshare")] == [
        ["D", "R"], ["VT", "UT"], ["S", "H"], [0.25, 0.75]
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"shape \(2, 2\), expected \(n, 1000\)"):
        _parse_events.parse_congress_counts(b"name,a,b\nx,1,2\ny,3,4\n")
    with pytest.raises(ValueError, match=r"coal.csv has shape \(1, 2\), expected \(n, 1\)"):
        _parse_events.parse_coal(b"1851,1852\n")


def synthetic_pbmc() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "Y_lognorm": (rng.uniform(size=(5, 4)) * (rng.uniform(size=(5, 4)) > 0.5)).astype("f4"),
        "pca50": rng.normal(size=(5, 50)).astype("f4"),
        "label": np.array([0, 1, 1, 0, 1], dtype="i1"),
        "label_names": np.array(["CD34+", "Dendritic"]),
        "n_counts": rng.uniform(100, 200, size=5).astype("f4"),
        "louvain": np.array([2, 0, 1, 0, 1], dtype="i1"),
        "gene": np.array(["HES4", "SSU72", "PARK7", "RBP7"]),
    }


def pbmc_tables(arrays: dict[str, np.ndarray], *, old: bool) -> dict[str, np.ndarray]:
    """The arrays as the tables of the file, in its layout of 2018 or of 2025."""
    from scipy.sparse import csr_matrix

    packed = csr_matrix(arrays["Y_lognorm"])
    raw = "raw.X" if old else "raw/X"
    tables = {f"{raw}/{part}": getattr(packed, part) for part in ("data", "indices", "indptr")}
    genes = np.array([gene.encode() for gene in arrays["gene"]])
    names = np.array([name.encode() for name in arrays["label_names"]])
    if old:
        fields = [("bulk_labels", "i1"), ("n_counts", "f4"), ("louvain", "i1")]
        cells = np.zeros(len(arrays["label"]), dtype=fields)
        cells["bulk_labels"], cells["louvain"] = arrays["label"], arrays["louvain"]
        cells["n_counts"] = arrays["n_counts"]
        pca_table = np.zeros(len(cells), dtype=[("X_pca", "f4", (50,))])
        pca_table["X_pca"] = arrays["pca50"]
        gene_table = np.zeros(len(genes), dtype=[("index", genes.dtype)])
        gene_table["index"] = genes
        return tables | {
            "raw.var": gene_table,
            "obs": cells,
            "obsm": pca_table,
            "uns/bulk_labels_categories": names,
        }
    return tables | {
        "raw/var/index": genes.astype(object),
        "obs/bulk_labels/codes": arrays["label"],
        "obs/bulk_labels/categories": names.astype(object),
        "obs/louvain/codes": arrays["louvain"],
        "obs/n_counts": arrays["n_counts"],
        "obsm/X_pca": arrays["pca50"],
    }


@pytest.mark.parametrize("old", [True, False])
def test_pbmc_layouts_are_read(old: bool) -> None:
    arrays = synthetic_pbmc()
    parsed = _parse.parse_pbmc_tables(pbmc_tables(arrays, old=old).__getitem__, old=old)
    assert parsed.keys() == arrays.keys()
    same(parsed, arrays)


@pytest.mark.parametrize("old", [True, False])
def test_pbmc_file_is_read(old: bool) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py, which reads the PBMC file, is not installed")
    arrays = synthetic_pbmc()
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for name, values in pbmc_tables(arrays, old=old).items():
            kind = h5py.string_dtype() if values.dtype == object else values.dtype
            file.create_dataset(name, data=values, dtype=kind)
    same(_parse.parse_pbmc(stream.getvalue()), arrays)


def test_pbmc_file_without_h5py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="pip install h5py"):
        _parse.parse_pbmc(b"")


@pytest.mark.parametrize("key", FETCHERS)
def test_original_file_gives_the_table(key: str, data_folder: Path) -> None:
    source = getattr(_sources, key)
    original = data_folder / source.folder / source.remote.filename
    if not original.is_file():
        pytest.skip(f"{source.folder} holds the .npz form only, not {original.name}")
    if key == "PBMC":
        pytest.importorskip("h5py", reason="h5py, which reads the PBMC file, is not installed")
    parsed = source.parse(_fetch.checked(original, (source.remote.sha256,), source))
    same(dict(parsed), npz_of(data_folder, source))


# --- where a table is looked for -----------------------------------------------------------------


@over_loopback
def test_download_is_checked_parsed_and_kept(
    bare: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pooch")
    url, served = server
    arrays = synthetic_oil()
    content = tar_of(oil_tables(arrays))
    (served / "3PhData.tar.gz").write_bytes(content)
    at(monkeypatch, url, content)
    valid = datasets.fetch_oil_flow("valid", data_home=bare)
    np.testing.assert_array_equal(valid.Y, arrays["Y_valid"])
    np.testing.assert_array_equal(valid.labels, arrays["label_valid"])
    assert sha256(content) in valid.source

    (served / "3PhData.tar.gz").unlink()
    monkeypatch.setitem(sys.modules, "pooch", None)
    again = datasets.fetch_oil_flow("valid", data_home=bare, download=False)
    np.testing.assert_array_equal(again.Y, valid.Y)


@over_loopback
def test_damaged_cache_is_downloaded_again(
    bare: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pooch")
    url, served = server
    content = tar_of(oil_tables(synthetic_oil()))
    (served / "3PhData.tar.gz").write_bytes(content)
    at(monkeypatch, url, content)
    bare.mkdir()
    (bare / "3PhData.tar.gz").write_bytes(content[:-1])
    with pytest.raises(FileNotFoundError, match=r"damaged \(sha256 seen"):
        datasets.fetch_oil_flow(data_home=bare, download=False)
    assert datasets.fetch_oil_flow(data_home=bare).Y.shape == (7, 12)
    assert (bare / "3PhData.tar.gz").read_bytes() == content


@over_loopback
def test_download_of_another_file_is_refused(
    bare: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pooch")
    url, served = server
    content = tar_of(oil_tables(synthetic_oil()))
    (served / "3PhData.tar.gz").write_bytes(content)
    at(monkeypatch, url, content, cited="0" * 64)
    with pytest.raises(ValueError, match="is not the oil_flow file expected") as refusal:
        datasets.fetch_oil_flow(data_home=bare)
    assert "0" * 64 in str(refusal.value)
    assert sha256(content) in str(refusal.value)
    assert not list(bare.iterdir())


@over_loopback
@pytest.mark.parametrize("failure", ["refused", "not found"])
def test_failed_download_says_what_to_do(
    failure: str, bare: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pooch")
    url = "http://127.0.0.1:9" if failure == "refused" else server[0]
    at(monkeypatch, url, b"never sent")
    with pytest.raises(ConnectionError) as error:
        datasets.fetch_oil_flow(data_home=bare)
    for part in (
        "'oil_flow' was not found",
        "GPLVM_XP_DATA: it is not set",
        str(bare / "3PhData.tar.gz"),
        f"{url}/3PhData.tar.gz: ",
        "by hand",
        "set GPLVM_XP_DATA=<folder>",
    ):
        assert part in str(error.value)


def test_without_pooch(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    for arguments in ({}, {"data_home": bare}):
        with pytest.raises(ImportError, match="pip install pooch`, or set GPLVM_XP_DATA"):
            datasets.fetch_vowels(**arguments)


def test_cache_folder_that_is_a_file(bare: Path) -> None:
    pytest.importorskip("pooch")
    bare.write_text("in the way")
    with pytest.raises(OSError, match=r"can't be made .*Pass data_home="):
        datasets.fetch_frey_faces(data_home=bare)


@pytest.mark.parametrize("key", FETCHERS)
def test_without_network_allowed(key: str, bare: Path) -> None:
    _, fetch = FETCHERS[key]
    with pytest.raises(FileNotFoundError, match="not asked, because download=False") as error:
        fetch(data_home=bare, download=False)
    assert getattr(_sources, key).remote.url in str(error.value)


def test_folder_that_does_not_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(_fetch.ENVIRONMENT, str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match=r"absent.*not a folder; expected .*oil_flow\.npz"):
        datasets.fetch_oil_flow()


def test_folder_without_the_table(
    bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(_fetch.ENVIRONMENT, str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        datasets.fetch_oil_flow(data_home=bare, download=False)
    for name in ("oil_flow.npz", "3PhData.tar.gz"):
        assert f"{tmp_path / 'oil_flow' / name}: no such file" in str(error.value)


@pytest.mark.parametrize("filename", ["oil_flow.npz", "3PhData.tar.gz"])
def test_corrupted_file_is_never_skipped(
    filename: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(_fetch.ENVIRONMENT, str(tmp_path))
    path = tmp_path / "oil_flow" / filename
    path.parent.mkdir()
    path.write_bytes(b"not the table")
    source = _sources.OIL_FLOW
    expected = source.archive_sha256 if filename == source.archive else source.remote.sha256
    with pytest.raises(ValueError, match="damaged or another version") as error:
        datasets.fetch_oil_flow()
    assert f"seen {sha256(b'not the table')}, expected {expected}" in str(error.value)
    assert str(path) in str(error.value)


def test_folder_may_hold_the_original_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = tar_of(oil_tables(synthetic_oil()))
    at(monkeypatch, "http://127.0.0.1:9", content)
    (tmp_path / "oil_flow").mkdir()
    (tmp_path / "oil_flow" / "3PhData.tar.gz").write_bytes(content)
    monkeypatch.setenv(_fetch.ENVIRONMENT, str(tmp_path))
    assert datasets.fetch_oil_flow("test").Y.shape == (7, 12)


@pytest.mark.parametrize("state", ["known", "other release", "not shipped", "not installed"])
def test_file_of_an_installed_package(
    state: str, bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arrays = synthetic_pbmc()
    content = b"stands for the HDF5 file"
    package = tmp_path / "site" / "stand_in_for_scanpy"
    if state != "not installed":
        (package / "datasets").mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    if state in ("known", "other release"):
        (package / "datasets" / "table.h5ad").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path / "site")
    known = sha256(content) if state == "known" else "0" * 64
    source = dataclasses.replace(
        _sources.PBMC,
        bundled=_fetch.Bundled("stand_in_for_scanpy", "datasets/table.h5ad", (known,)),
        parse=lambda held: arrays if held == content else {},
    )
    monkeypatch.setattr(_sources, "PBMC", source)
    if state == "known":
        pbmc = datasets.fetch_pbmc(data_home=bare, download=False)
        np.testing.assert_array_equal(pbmc.Y, arrays["Y_lognorm"])
        assert pbmc.label_names == ("CD34+", "Dendritic")
        return
    reason = {
        "other release": r"another version \(sha256 seen",
        "not shipped": "this release does not ship datasets/table.h5ad",
        "not installed": "the package stand_in_for_scanpy: not installed",
    }[state]
    with pytest.raises(FileNotFoundError, match=reason):
        datasets.fetch_pbmc(data_home=bare, download=False)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="'all' is unknown; choose one of train, valid, test"):
        datasets.fetch_oil_flow("all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="table='raw' is unknown; choose log or counts"):
        datasets.fetch_pbmc("raw")  # type: ignore[arg-type]
    for rows in (0, 3001):
        with pytest.raises(ValueError, match=f"n_samples={rows}, expected 1 to 3000"):
            datasets.fetch_swiss_roll(rows)


def test_import_is_light() -> None:
    heavy = "{'sklearn', 'pooch', 'scanpy', 'h5py'}"
    code = f"import sys, gplvm_xp.datasets, gplvm_xp.metrics; print({heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# --- the value and the measure -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Y": np.zeros(3)}, r"Y has shape \(3,\), expected \(n, D\)"),
        ({"feature_names": ("a",)}, "1 feature names were given for 2 columns"),
        ({"labels": np.array([0, 1])}, r"labels have shape \(2,\), expected \(3,\)"),
        ({"labels": np.array([0, 1, 2])}, r"labels range over 0\.\.2, expected .* 2 label names"),
        ({"labels": np.array([0, 1, -1])}, r"labels range over -1\.\.1"),
    ],
)
def test_inconsistent_datasets_are_refused(change: dict[str, object], message: str) -> None:
    good = datasets.Dataset(
        Y=np.zeros((3, 2)),
        labels=np.array([0, 1, 0]),
        label_names=("a", "b"),
        feature_names=("x", "y"),
        name="tiny",
        source="made here",
    )
    assert repr(good) == "Dataset(name='tiny', Y=(3, 2), classes=2, extra=[])"
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(good, **change)


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 50, 1000])
def test_errors_do_not_depend_on_chunks(chunk_size: int | None) -> None:
    rng = np.random.default_rng(4)
    X, labels = rng.normal(size=(50, 3)), rng.integers(3, size=50)
    by_hand = 0
    for i, point in enumerate(X):
        others = np.delete(np.arange(50), i)
        nearest = others[np.argmin(((X[others] - point) ** 2).sum(axis=1))]
        by_hand += int(labels[nearest] != labels[i])
    assert nearest_neighbour_errors(X, labels, chunk_size=chunk_size) == by_hand


def test_errors_with_duplicates_names_and_far_points() -> None:
    assert nearest_neighbour_errors([[1.0], [1.0], [9.0], [9.5]], ["a", "b", "c", "c"]) == 2
    far = 1e8 + np.array([[0.0], [0.25], [1.0], [1.25]])
    assert nearest_neighbour_errors(far, [0, 0, 1, 1]) == 0


@pytest.mark.parametrize(
    ("X", "labels", "chunk_size", "message"),
    [
        ([1.0, 2.0], [0, 1], None, r"X has shape \(2,\)"),
        ([[1.0]], [0], None, "at least two rows"),
        ([[1.0], [2.0]], [0], None, r"labels have shape \(1,\), expected \(2,\)"),
        ([[1.0], [np.nan]], [0, 1], None, "1 values that are NaN or infinite"),
        ([[1.0], [2.0]], [0, 1], 0, "chunk_size=0, expected at least 1"),
    ],
)
def test_measure_refuses(X: object, labels: object, chunk_size: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_neighbour_errors(X, labels, chunk_size=chunk_size)  # type: ignore[arg-type]
