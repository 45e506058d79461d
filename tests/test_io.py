"""Model files: exact round trips, and a specific error for every kind of bad file."""

from __future__ import annotations

import io
import json
import math
import os
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from inspect import isabstract
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from gplvm_xp import GPLVM, __version__, estimators, kernels, likelihoods, load, priors
from gplvm_xp.errors import ModelFileError
from gplvm_xp.estimators._saved import SavedArray, SavedValue
from gplvm_xp.io import FORMAT, FORMAT_VERSION, save


@dataclass(frozen=True)
class Stranger(kernels.RBF):
    """A kernel of a user's own."""


@dataclass(frozen=True)
class StrangePrior(priors.Gaussian):
    """A prior of a user's own."""


class SubEstimator(GPLVM):
    """Not an estimator of the library."""


def table(n: int = 24, D: int = 6, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 2))
    return np.sin(z @ rng.normal(size=(2, D))) + 0.1 * rng.normal(size=(n, D))


def fitted(Y: Any = None, **parameters: Any) -> GPLVM:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GPLVM(**{"max_iter": 4, **parameters}).fit(table() if Y is None else Y)


def assert_same(a: GPLVM, b: GPLVM) -> None:
    rng = np.random.default_rng(7)
    Z = rng.normal(size=(5, a.embedding_.shape[1]))
    assert type(a) is type(b)
    assert a.kernel_ == b.kernel_
    for name in (*GPLVM._saved_arrays, *GPLVM._saved_values):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for kept, read in zip(
        a.predict(Z, return_var=True), b.predict(Z, return_var=True), strict=True
    ):
        np.testing.assert_array_equal(kept, read)
    rows = np.asarray(a.training_data_)[:3] + 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        np.testing.assert_array_equal(a.transform(rows), b.transform(rows))
        np.testing.assert_array_equal(a.score_samples(rows), b.score_samples(rows))
    np.testing.assert_array_equal(a.leave_one_out(), b.leave_one_out())


TREES = [
    kernels.RBF(2.0, (1.0, 0.7), fixed=("lengthscale",)),
    kernels.Matern32(1.3, 0.9),
    kernels.Matern52(),
    kernels.RationalQuadratic(1.0, 1.1, alpha=1.7),
    kernels.Linear((1.0, 0.5)),
    kernels.Polynomial(0.5, 1.0, degree=3),
    kernels.Periodic(1.0, 1.2, 3.0) + kernels.RBF(),
    kernels.Hexagonal(1.0, 2.0, -0.3, 1.5, fixed=("orientation",)),
    kernels.RBF() + kernels.Constant(0.3) + kernels.White(0.1, fixed=("variance",)),
    kernels.RBF() * kernels.Linear(),
    2.5 * kernels.RBF() + kernels.ActiveDims(kernels.Matern52(lengthscale=(0.4,)), (1,)),
]


@pytest.mark.parametrize("kernel", TREES, ids=lambda k: type(k).__name__)
def test_every_kernel_comes_back_with_the_same_predictions(
    kernel: kernels.Kernel, tmp_path: Path
) -> None:
    model = fitted(kernel=kernel)
    model.save(tmp_path / "m.npz")
    back = load(tmp_path / "m.npz")
    assert back.kernel == kernel
    assert_same(model, back)


def test_every_kernel_class_is_covered() -> None:
    def names(kernel: Any) -> set[str]:
        inner = [kernel.kernel] if hasattr(kernel, "kernel") else getattr(kernel, "parts", ())
        return {type(kernel).__name__}.union(*map(names, inner))

    public = set(kernels.__all__) - {"Kernel", "Radial"}
    assert set().union(*map(names, TREES)) == public


def test_parameters_come_back(tmp_path: Path) -> None:
    parameters = {
        "n_components": 3,
        "latent_prior": priors.Gaussian(0.1, 2.0),
        "priors": {"rbf.variance": priors.Gamma(2.0, 0.5), "noise": priors.LogNormal(-1.0, 1.5)},
        "init": np.random.default_rng(1).normal(size=(24, 3)),
        "gauge": "free",
        "scale": True,
        "noise_variance": 0.1 + 0.2,
        "time_limit": math.inf,
        "optimizer": "lbfgs",
        "n_restarts": np.int64(1),
        "random_state": 5,
        "dtype": "float64",
        "backend": "numpy",
    }
    model = fitted(**parameters)
    save(model, tmp_path / "m.npz")
    back = load(tmp_path / "m.npz")
    assert_same(model, back)
    seen = back.get_params(deep=False)
    np.testing.assert_array_equal(seen.pop("init"), parameters.pop("init"))
    assert {k: seen[k] for k in parameters} == parameters
    assert (seen["kernel"], seen["callback"], seen["progress"]) == (None, None, False)


def test_missing_values_and_pandas_names_come_back(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    Y = table()
    Y[0, 0] = Y[3, 2] = np.nan
    frame = pandas.DataFrame(Y, columns=[f"größe {j}" for j in range(Y.shape[1])])
    model = fitted(frame)
    model.save(tmp_path / "m.npz")
    back = load(tmp_path / "m.npz")
    assert list(back.feature_names_in_) == list(frame.columns)
    np.testing.assert_array_equal(back.training_data_, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        np.testing.assert_array_equal(back.transform(frame), model.transform(frame))
    np.testing.assert_array_equal(back.leave_one_out(), model.leave_one_out())


def test_a_loaded_model_saves_to_the_same_bytes(tmp_path: Path) -> None:
    fitted().save(tmp_path / "a.npz")
    load(tmp_path / "a.npz").save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_callbacks_and_generators_are_left_out(tmp_path: Path) -> None:
    model = fitted(callback=lambda progress: False, random_state=np.random.RandomState(0))
    model.save(tmp_path / "m.npz")
    back = load(tmp_path / "m.npz")
    assert back.callback is None
    assert back.random_state is None
    assert_same(model, back)
    with np.load(tmp_path / "m.npz", allow_pickle=False) as archive:
        header = json.loads(archive["header"].tobytes())
    assert [note.split()[0] for note in header["notes"]] == ["callback", "random_state"]


def test_latents_of_another_library_come_back_as_numpys(tmp_path: Path) -> None:
    xp = pytest.importorskip("array_api_strict")
    model = fitted(xp.asarray(table()))
    model.save(tmp_path / "m.npz")
    back = load(tmp_path / "m.npz")
    np.testing.assert_array_equal(back.embedding_, model._host_embedding)


def test_a_strangers_classes_are_handed_to_load(tmp_path: Path) -> None:
    model = fitted(kernel=Stranger() + kernels.RBF(), latent_prior=StrangePrior(0.0, 1.5))
    model.save(tmp_path / "m.npz")
    with pytest.raises(ModelFileError, match=r"'Stranger'.*kernels=\(Stranger,\)"):
        load(tmp_path / "m.npz")
    with pytest.raises(ModelFileError, match="latent_prior is of class 'StrangePrior'"):
        load(tmp_path / "m.npz", kernels=(Stranger,))
    back = load(tmp_path / "m.npz", kernels=(Stranger, StrangePrior))
    assert_same(model, back)
    assert isinstance(back.kernel_.parts[0], Stranger)


def test_load_refuses_what_is_no_kernel_class(tmp_path: Path) -> None:
    fitted().save(tmp_path / "m.npz")
    for wrong in (kernels.RBF(), dict, object()):
        with pytest.raises(TypeError, match="expected classes"):
            load(tmp_path / "m.npz", kernels=(wrong,))  # type: ignore[arg-type]
    twin = dataclass(frozen=True)(type("RBF", (kernels.RBF,), {}))
    with pytest.raises(ValueError, match="second class of the name 'RBF'"):
        load(tmp_path / "m.npz", kernels=(twin,))
    with pytest.raises(TypeError, match="one of the library's classes"):
        save(fitted(kernel=twin()), tmp_path / "n.npz")


def test_save_refuses_what_has_no_form_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    with pytest.raises(NotFittedError):
        save(GPLVM(), path)
    with pytest.raises(TypeError, match=r"SubEstimator.*GPLVM"):
        save(SubEstimator(), path)
    model = fitted()
    with pytest.raises(TypeError, match=r"tol is \{1, 2\} of type set"):
        save(model.set_params(tol={1, 2}), path)
    with pytest.raises(TypeError, match=r"init.*object"):
        save(model.set_params(tol=1e-3, init=np.array([object()])), path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    model = fitted()
    model.save(tmp_path / "m.npz")
    before = (tmp_path / "m.npz").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="no space"):
        model.save(tmp_path / "m.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["m.npz"]
    assert (tmp_path / "m.npz").read_bytes() == before
    with pytest.raises(FileNotFoundError):
        model.save(tmp_path / "absent" / "m.npz")


@pytest.mark.skipif(os.name == "nt", reason="POSIX file modes")
def test_a_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    fitted().save(tmp_path / "m.npz")
    (tmp_path / "other").touch()
    assert (tmp_path / "m.npz").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_numpy_reads_the_arrays_without_this_library(tmp_path: Path) -> None:
    model = fitted()
    model.save(tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz", allow_pickle=False) as archive:
        needed = {key for key, array in GPLVM._saved_arrays.items() if not array.optional}
        assert set(archive.files) == {"header", *needed}
        np.testing.assert_array_equal(archive["embedding_"], model.embedding_)
        header = json.loads(archive["header"].tobytes())
    assert (header["format"], header["format_version"]) == (FORMAT, FORMAT_VERSION)
    assert header["library_version"] == __version__
    # The names that files of version 1 have, whoever wrote them.
    assert [*header] == [
        "format", "format_version", "library_version", "class", "parameters", "kernel_",
        "encoder_", "latent_prior_", "certificate_", "values", "feature_names_in_", "notes",
    ]  # fmt: skip
    assert [*header["kernel_"]] == ["$class", "module", "fields"]


# -- what estimators declare ---------------------------------------------------------------------


class Stand(BaseEstimator):
    """An estimator with one of everything that can be declared."""

    _saved_arrays = {  # noqa: RUF012
        "plain_": SavedArray("nD"),
        "positive_": SavedArray("D", holds="positive"),
        "counts_": SavedArray("n", dtype="int64", holds="nonnegative"),
        "gappy_": SavedArray("n", holds="missing"),
        "loose_": SavedArray("k", holds="any"),
        "batch_": SavedArray("*n"),
        "grid_": SavedArray("*"),
        "number_": SavedArray(""),
        "classes_": SavedArray("c", dtype="label", optional=True),
        "weights_": SavedArray("n", optional=True),
        "shown_": SavedArray("n", attribute="_kept"),
    }
    _saved_values = {  # noqa: RUF012
        "step_": SavedValue(int),
        "size_": SavedValue(float, nonnegative=True),
        "energy_": SavedValue(float),
        "status_": SavedValue(str),
        "converged_": SavedValue(bool),
        "n_features_in_": SavedValue(int),
    }
    _saved_objects = {  # noqa: RUF012
        "kernel_": kernels.Kernel, "likelihood_": likelihoods.Likelihood,
    }  # fmt: skip

    def __init__(self, likelihood: Any = "poisson", shape: Any = None) -> None:
        self.likelihood = likelihood
        self.shape = shape

    def fit(self) -> Stand:
        self.plain_ = np.arange(8.0).reshape(4, 2)
        self.positive_ = np.array([1.0, 2.0])
        self.counts_ = np.array([0, 1, 2, 3], dtype=np.int32)
        self.gappy_ = np.array([0.0, np.nan, 2.0, 3.0])
        self.loose_ = np.array([np.inf, np.nan])
        self.batch_ = np.arange(24.0).reshape(2, 3, 4)
        self.grid_ = np.ones((2, 1, 5))
        self.number_ = np.asarray(2.5)
        self.classes_ = np.array(["no", "größer"], dtype=object)
        self.weights_ = None
        self._kept = np.array([1.0, 2.0, 3.0, 4.0])
        self.shown_ = [1, 2, 3, 4]
        self.step_, self.size_, self.energy_, self.status_ = 3, 0.5, -math.inf, "converged"
        self.converged_, self.n_features_in_ = True, 2
        self.kernel_ = kernels.RBF(2.0)
        self.likelihood_ = likelihoods.Gaussian()
        return self

    def _restored(self) -> None:
        if self.grid_.shape[-1] != 5:
            raise ValueError(f"grid_ has {self.grid_.shape[-1]} columns; expected 5")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "Stand", Stand, raising=False)
    monkeypatch.setattr(estimators, "__all__", [*estimators.__all__, "Stand"])


@pytest.mark.usefixtures("registered")
def test_everything_that_can_be_declared_comes_back(tmp_path: Path) -> None:
    model = Stand(likelihood=likelihoods.Poisson(), shape=(4, 5)).fit()
    save(model, tmp_path / "m.npz")
    back = load(tmp_path / "m.npz")
    for name in Stand._saved_arrays:
        kept = getattr(model, name)
        if kept is None:
            assert getattr(back, name) is None
            continue
        np.testing.assert_array_equal(getattr(back, name), kept)
    assert back.plain_.dtype == back.shown_.dtype == np.float64
    assert back.counts_.dtype == np.int64
    assert back.classes_.dtype.kind == "U"
    assert back.number_.shape == ()
    np.testing.assert_array_equal(back._kept, model._kept)
    for name in (*Stand._saved_values, *Stand._saved_objects):
        assert getattr(back, name) == getattr(model, name)
        assert type(getattr(back, name)) is type(getattr(model, name))
    assert back.get_params() == model.get_params()
    save(back, tmp_path / "n.npz")
    assert (tmp_path / "m.npz").read_bytes() == (tmp_path / "n.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "m.npz") as archive:
        assert "weights_.npy" not in archive.namelist()


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("labels", [["a", "b"], [0, 1], [-1.5, 2.0], [False, True]])
def test_labels_keep_their_type(labels: list[Any], tmp_path: Path) -> None:
    model = Stand().fit()
    model.classes_ = np.array(labels)
    save(model, tmp_path / "m.npz")
    seen = load(tmp_path / "m.npz").classes_
    np.testing.assert_array_equal(seen, model.classes_)
    assert seen.dtype == model.classes_.dtype


@pytest.mark.usefixtures("registered")
def test_arrays_of_other_types_than_declared_are_refused(tmp_path: Path) -> None:
    model = Stand().fit()
    model.classes_ = np.array(["a", 1], dtype=object)
    with pytest.raises(TypeError, match=r"classes_ holds object \(\['a' 1\]\).*text, integers"):
        save(model, tmp_path / "m.npz")
    model = Stand().fit()
    model.counts_ = np.array([0.5, 1.0, 2.0, 3.0])
    with pytest.raises(TypeError, match=r"Cannot cast array data from .*float64.* to .*int64"):
        save(model, tmp_path / "m.npz")
    model = Stand().fit()
    model.plain_ = None
    with pytest.raises(TypeError, match="plain_ is None; a model file needs it"):
        save(model, tmp_path / "m.npz")
    assert list(tmp_path.iterdir()) == []


def every_likelihood() -> list[Any]:
    public = [getattr(likelihoods, name) for name in likelihoods.__all__]
    kinds = [k for k in public if isinstance(k, type) and issubclass(k, likelihoods.Likelihood)]
    return [k for k in kinds if not isabstract(k)]


@dataclass(frozen=True)
class StrangeLikelihood(likelihoods.Poisson):
    """A likelihood of a user's own."""


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("kind", every_likelihood(), ids=lambda k: k.__name__)
def test_every_likelihood_comes_back(kind: Any, tmp_path: Path) -> None:
    model = Stand().fit()
    start = kind()
    moved = start.with_theta(
        1.25 * np.concatenate([b.value.ravel() for b in start.blocks()] or [[]])
    )
    model.likelihood, model.likelihood_ = start, moved
    save(model, tmp_path / "m.npz")
    back = load(tmp_path / "m.npz")
    assert (back.likelihood, back.likelihood_) == (start, moved)


def test_every_likelihood_class_is_covered() -> None:
    assert len(every_likelihood()) >= 8


@pytest.mark.usefixtures("registered")
def test_a_prior_and_a_likelihood_of_one_name_are_told_apart(tmp_path: Path) -> None:
    model = Stand(shape={"prior": priors.Gaussian(0.5, 2.0)}).fit()
    save(model, tmp_path / "m.npz")
    back = load(tmp_path / "m.npz")
    assert back.shape == {"prior": priors.Gaussian(0.5, 2.0)}
    assert back.likelihood_ == likelihoods.Gaussian()


@pytest.mark.usefixtures("registered")
def test_a_strangers_likelihood_is_handed_to_load(tmp_path: Path) -> None:
    model = Stand().fit()
    model.likelihood_ = StrangeLikelihood()
    save(model, tmp_path / "m.npz")
    with pytest.raises(ModelFileError, match=r"(?s)'StrangeLikelihood'.*expected one of .*Poisson"):
        load(tmp_path / "m.npz")
    back = load(tmp_path / "m.npz", kernels=(StrangeLikelihood,))
    assert back.likelihood_ == StrangeLikelihood()
    twin = dataclass(frozen=True)(type("Poisson", (likelihoods.Poisson,), {}))
    with pytest.raises(ValueError, match="second class of the name 'Poisson'"):
        load(tmp_path / "m.npz", kernels=(twin,))


# -- bad files -----------------------------------------------------------------------------------

Entries = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "m.npz"
    fitted().save(path)
    return path.read_bytes()


def entries_of(raw: bytes) -> Entries:
    with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def packed(entries: Entries) -> bytes:
    file = io.BytesIO()
    np.savez(file, **entries)
    return file.getvalue()


def with_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def damage(raw: bytes) -> bytes:
        entries = entries_of(raw)
        header = json.loads(entries["header"].tobytes())
        header = change(header) or header
        entries["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        return packed(entries)

    return damage


def with_array(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[bytes], bytes]:
    def damage(raw: bytes) -> bytes:
        entries = entries_of(raw)
        new = change(entries[name])
        if new is None:
            del entries[name]
        else:
            entries[name] = new
        return packed(entries)

    return damage


def bytes_of_array(raw: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def wrong_length(raw: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out, zipfile.ZipFile(io.BytesIO(raw)) as held:
        for name in held.namelist():
            data = held.read(name)
            out.writestr(name, data[:-8] if name == "mean_.npy" else data)
    return file.getvalue()


def flipped(raw: bytes) -> bytes:
    place = raw.index(np.lib.format.MAGIC_PREFIX, raw.index(b"training_data_.npy")) + 200
    return raw[:place] + bytes([raw[place] ^ 0xFF]) + raw[place + 1 :]


BAD = {
    "empty": (lambda raw: b"", "is empty"),
    "text": (lambda raw: b"a,b\n1,2\n", r"begins with b'a,b.*no .npz archive"),
    "one array": (bytes_of_array, r"one NumPy array \(.npy\)"),
    "truncated": (lambda raw: raw[: len(raw) // 2], "truncated"),
    "flipped byte": (flipped, "'training_data_'.*damaged"),
    "short entry": (wrong_length, r"'mean_'.*40 bytes; expected 48"),
    "foreign npz": (
        lambda raw: packed({"x": np.zeros(3), "y": np.zeros(2)}),
        r"another origin: it holds x, y; expected an entry 'header'",
    ),
    "no array": (with_array("mean_", lambda a: None), "incomplete.*expected an entry 'mean_'"),
    "object array": (
        with_array("mean_", lambda a: a.astype(object)),
        "array of Python objects, which could hold code",
    ),
    "float32": (with_array("mean_", lambda a: a.astype(np.float32)), "mean_.*float32.*float64"),
    "too many axes": (with_array("scale_", lambda a: a[None]), r"scale_.*\(1, 6\).*shape \(D\)"),
    "other lengths": (with_array("scale_", lambda a: a[:-1]), r"scale_ .*\(5,\); expected \(6\)"),
    "text array": (with_array("loss_curve_", lambda a: a.astype(str)), "loss_curve_.*<U"),
    "latents of NaN": (with_array("embedding_", lambda a: a * np.nan), "embedding_.*nan.*finite"),
    "no scale": (with_array("scale_", lambda a: 0.0 * a), "scale_.*0.0; expected.*positive"),
    "infinite data": (
        with_array("training_data_", lambda a: a + np.inf),
        "training_data_.*inf.*numbers or NaN",
    ),
    "negative noise": (
        with_header(lambda h: h["values"].update(noise_variance_=-1.0)),
        "noise_variance_.*-1.0; expected a finite",
    ),
    "other columns": (
        with_header(lambda h: h["values"].update(n_features_in_=3)),
        "n_features_in_.*3; expected 6",
    ),
    "header of floats": (with_array("header", lambda a: a.astype(float)), "float64.*uint8"),
    "header no JSON": (with_array("header", lambda a: a[: a.size // 2]), "not JSON"),
    "header no UTF-8": (with_array("header", lambda a: a + np.uint8(128)), "not JSON"),
    "header a list": (with_header(lambda h: [1, 2]), r"has the format '\[1, 2\]'"),
    "other format": (with_header(lambda h: h.update(format="GPy")), "'GPy'; expected 'gplvm_xp"),
    "version text": (with_header(lambda h: h.update(format_version="1")), "version '1'; expected"),
    "newer": (
        with_header(lambda h: h.update(format_version=99, library_version="9.9")),
        r"version 99, written by gplvm_xp 9.9; this is .*pip install --upgrade",
    ),
    "no kernel": (with_header(lambda h: h.pop("kernel_") and None), "lacks kernel_"),
    "class": (with_header(lambda h: h.update({"class": "Other"})), "holds a 'Other'.*reads GPLVM"),
    "parameter": (
        with_header(lambda h: h["parameters"].update(future=1)),
        r"parameters \['future'\].*does not take",
    ),
    "kernel class": (
        with_header(lambda h: h["kernel_"].update({"$class": "os.system"})),
        r"class 'os.system'.*kernels=\(os.system,\)",
    ),
    "abstract kernel": (
        with_header(lambda h: h["kernel_"].update({"$class": "Radial"})),
        "class 'Radial'.*expected one of",
    ),
    "kernel field": (
        with_header(lambda h: h["kernel_"]["fields"].update(colour=1)),
        "colour.*RBF takes",
    ),
    "kernel value": (
        with_header(lambda h: h["kernel_"]["fields"].update(variance=-1.0)),
        "kernel_ can't be rebuilt: RBF says",
    ),
    "kernel type": (
        with_header(lambda h: h["kernel_"]["fields"].update(lengthscale="wide")),
        "kernel_ can't be rebuilt",
    ),
    "kernel size": (
        with_header(
            lambda h: h["kernel_"]["fields"].update(lengthscale={"$tuple": [1.0, 1.0, 1.0]})
        ),
        "does not fit the 2 latent dimensions",
    ),
    "prior for a kernel": (
        with_header(lambda h: h.update(kernel_={"$class": "Gaussian", "fields": {}})),
        r"kernel_ .*Gaussian.*expected a kernel",
    ),
    "unknown form": (
        with_header(lambda h: h["parameters"].update(tol={"$pickle": "x"})),
        r"tol of the header is .*\$pickle.*expected a plain value",
    ),
    "array that is not there": (
        with_header(lambda h: h["parameters"].update(init={"$array": "start"})),
        "expected an entry 'start'",
    ),
    "no value": (with_header(lambda h: h["values"].pop("jitter_") and None), "no value of jitter_"),
    "value type": (
        with_header(lambda h: h["values"].update(noise_variance_="much")),
        "noise_variance_ .*'much'; expected a number",
    ),
    "names": (
        with_header(lambda h: h.update(feature_names_in_=["a"])),
        r"feature_names_in_ .*expected 6 names",
    ),
}


def with_entry(name: str, text: str) -> Callable[[bytes], bytes]:
    """An entry whose NumPy header is this text, with no data behind it."""

    def damage(raw: bytes) -> bytes:
        file, head = io.BytesIO(), (text + "\n").encode()
        with zipfile.ZipFile(file, "w") as out, zipfile.ZipFile(io.BytesIO(raw)) as held:
            for entry in held.namelist():
                data = held.read(entry)
                if entry == f"{name}.npy":
                    data = np.lib.format.magic(1, 0) + len(head).to_bytes(2, "little") + head
                out.writestr(entry, data)
        return file.getvalue()

    return damage


BAD_STAND = {
    "floats for integers": (
        with_array("counts_", lambda a: a.astype(float)),
        r"counts_.*float64 of shape \(4,\); expected int64 of shape \(n\)",
    ),
    "negative counts": (
        with_array("counts_", lambda a: a - 1),
        "counts_.*-1; expected finite numbers of 0 or more",
    ),
    "infinity where NaN may be": (
        with_array("gappy_", lambda a: a / 0.0),
        "gappy_.*expected finite numbers or NaN",
    ),
    "complex labels": (
        with_array("classes_", lambda a: np.ones(2, dtype=complex)),
        r"classes_.*complex128.*expected text, integers, floats or booleans of shape \(c\)",
    ),
    "labels of NaN": (
        with_array("classes_", lambda a: np.array([0.0, np.nan])),
        "classes_.*nan; expected finite",
    ),
    "labels that are objects": (
        with_array("classes_", lambda a: a.astype(object)),
        "classes_.*Python objects, which could hold code",
    ),
    "batch of other length": (
        with_array("batch_", lambda a: a[..., :3]),
        r"batch_.*\(2, 3, 3\); expected \(\*, 4\)",
    ),
    "batch without an axis": (
        with_array("batch_", lambda a: a[0, 0, 0]),
        r"batch_.*shape \(\); expected float64 of shape \(\*, n\)",
    ),
    "a row for a number": (
        with_array("number_", lambda a: a[None]),
        r"number_.*\(1,\); expected float64 of shape \(\)",
    ),
    "optional of other shape": (
        lambda raw: packed({**entries_of(raw), "weights_": np.ones(3)}),
        r"weights_.*\(3,\); expected \(4\)",
    ),
    "no likelihood": (
        with_header(lambda h: h.pop("likelihood_") and None),
        "lacks likelihood_.*expected kernel_, likelihood_",
    ),
    "kernel for a likelihood": (
        with_header(lambda h: h.update(likelihood_=h["kernel_"])),
        "likelihood_.*RBF.*expected a likelihood",
    ),
    "prior as a likelihood": (
        with_header(lambda h: h["likelihood_"].update({"$likelihood": "LogNormal"})),
        "likelihood_ is of class 'LogNormal'.*expected one of .*Poisson",
    ),
    "likelihood as a kernel": (
        with_header(lambda h: h["kernel_"].update({"$class": "Poisson"})),
        "kernel_ is of class 'Poisson'.*expected one of .*RBF",
    ),
    "likelihood field": (
        with_header(lambda h: h["likelihood_"]["fields"].update(colour=1)),
        "colour.*Gaussian takes",
    ),
    "number for a truth value": (
        with_header(lambda h: h["values"].update(converged_=1)),
        "converged_.*1; expected true or false",
    ),
    "truth value for a number": (
        with_header(lambda h: h["values"].update(energy_=True)),
        "energy_.*True; expected a number",
    ),
    "half a step": (
        with_header(lambda h: h["values"].update(step_=0.5)),
        "step_.*0.5; expected an integer",
    ),
    "infinite size": (
        with_header(lambda h: h["values"].update(size_={"$float": "inf"})),
        "size_.*inf; expected a finite number of 0 or more",
    ),
    "the class's own check": (
        with_array("grid_", lambda a: a[..., :4]),
        r"bad.npz: grid_ has 4 columns; expected 5. Save",
    ),
    "text of no length": (
        with_entry("classes_", "{'descr': '<U0', 'fortran_order': False, 'shape': (2,)}"),
        "'classes_'.*can't be read.*damaged",
    ),
    "negative lengths": (
        with_entry("plain_", "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 0)}"),
        "'plain_'.*can't be read.*damaged",
    ),
}


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("kind", BAD_STAND)
def test_what_was_declared_is_checked(kind: str, tmp_path: Path) -> None:
    damage, text = BAD_STAND[kind]
    path = tmp_path / "bad.npz"
    save(Stand().fit(), path)
    with np.errstate(divide="ignore", invalid="ignore"):
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelFileError, match=f"(?s){text}") as caught:
        load(path)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_says_what_is_wrong(kind: str, good: bytes, tmp_path: Path) -> None:
    damage, text = BAD[kind]
    path = tmp_path / "bad.npz"
    path.write_bytes(damage(good))
    with pytest.raises(ModelFileError, match=f"(?s){text}") as caught:
        load(path)
    assert len(str(caught.value)) < 700


def test_no_damage_ends_in_another_error(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(good), 150):
        damaged = bytearray(good)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(damaged) if rng.random() < 0.7 else good[:place])
        try:
            load(path)
        except ModelFileError:
            continue


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.npz")
