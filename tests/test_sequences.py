"""Models of sequences: facts about rows, missing frames, what follows, files; walking figures."""

from __future__ import annotations

import itertools
import json
import pickle
import re
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris

import gplvm_xp
from gplvm_xp import GPLVM, SparseGPLVM, datasets
from gplvm_xp.datasets._walk import _figure
from gplvm_xp.errors import ModelFileError
from gplvm_xp.estimators._facts import row_facts
from gplvm_xp.latents import RowPrior
from gplvm_xp.priors import Gaussian, LogNormal
from gplvm_xp.row_priors import Discriminative, Dynamics, OverTime, StructuredPrior

SETTINGS = {"tol": 1e-1, "max_iter": 300}
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def walk(frames=(60, 55, 60), seed=1, missing=12, held=0, **settings):
    """A walk, and its last frames of each sequence: rows, lengths, times, angles, what follows."""
    data = datasets.make_walk(3, np.array(frames) + held, seed, missing=missing, **settings)
    ends = np.cumsum(data.extra["lengths"])
    keep = np.concatenate(
        [np.arange(e - n - held, e - held) for e, n in zip(ends, frames, strict=True)]
    )
    later = [data.extra["angles"][e - held : e] for e in ends]
    times, angles = data.extra["times"][keep], data.extra["angles"][keep]
    return data.Y[keep], np.array(frames), times, angles, later


@pytest.fixture(scope="module")
def dynamic():
    Y, lengths, _, _, _ = walk(held=10)
    return GPLVM(3, latent_prior=Dynamics(), **SETTINGS).fit(Y, sequences=lengths)


@pytest.fixture(scope="module")
def timed():
    Y, lengths, times, _, _ = walk(held=10)
    return GPLVM(3, latent_prior=OverTime(), **SETTINGS).fit(Y, sequences=lengths, times=times)


@pytest.fixture(scope="module")
def labelled():
    iris = load_iris()
    names = np.array([*iris.target_names], dtype=object)[iris.target]
    names[::5] = None
    return GPLVM(2, latent_prior=Discriminative(), **SETTINGS).fit(iris.data[::3], names[::3])


def gone(Y):
    return np.isnan(Y).all(axis=1)


def error(guess, truth):
    return float(np.sqrt(np.mean((guess - truth) ** 2)))


@dataclass(frozen=True)
class Still(StructuredPrior):
    """A user's own: latents near the origin, all alike."""

    width: float = 1.0

    uses = frozenset()
    fills_rows = False

    def bind(self, b, rows, start):
        return _Still(self.width)

    def fill(self, b, rows, X, empty):
        return X

    def with_values(self, values):
        return self


@dataclass(frozen=True)
class _Still(RowPrior):
    width: float

    def blocks(self):
        return ()

    def require_memory(self, b):
        pass

    def log_density(self, values, X):
        return *Gaussian(0.0, self.width).log_density(X), {}


# -- missing frames --------------------------------------------------------------------------------


def interpolated(Y, lengths):
    out = Y.copy()
    for a, z in itertools.pairwise([0, *np.cumsum(lengths)]):
        t, empty = np.arange(a, z), gone(Y[a:z])
        for column in out[a:z].T:
            column[empty] = np.interp(t[empty], t[~empty], column[~empty])
    return out


@pytest.mark.parametrize(("kind", "share"), [("dynamic", 0.4), ("timed", 0.45)])
def test_missing_frames_are_found_better_than_by_straight_lines(kind, share, request):
    model = request.getfixturevalue(kind)
    Y, lengths, _, angles, _ = walk(held=10)
    empty = gone(Y)
    assert empty.sum() == 36
    rows, variance = model.predict(model.embedding_, return_var=True)
    lines = error(interpolated(Y, lengths)[empty], angles[empty])
    assert error(rows[empty], angles[empty]) < share * lines
    # And the frames that are there are smoothed: nearer to the truth than what was recorded.
    assert error(rows[~empty], angles[~empty]) < 0.8 * error(Y[~empty], angles[~empty])
    assert variance[empty].mean() > variance[~empty].mean()


def test_a_missing_frame_needs_a_prior_that_places_it():
    Y = walk((20, 20, 20), missing=2)[0]
    for prior in ("gaussian", Discriminative()):
        with pytest.raises(ValueError, match="row 9 of X has no observed entry"):
            GPLVM(2, latent_prior=prior).fit(Y, np.arange(60) % 2)


def test_new_rows_are_not_in_time(dynamic):
    Y, _, _, _, _ = walk(held=10)
    empty = gone(Y)
    Z = dynamic.transform(Y)
    np.testing.assert_array_equal(Z[~empty], dynamic.embedding_[~empty])
    # A row with nothing observed has no neighbours any more: the mode of N(0, I).
    np.testing.assert_allclose(Z[empty], 0.0, atol=1e-6)
    assert np.all(np.isfinite(dynamic.score_samples(Y[~empty][:5] + 0.1)))


def test_a_last_frame_that_is_missing_is_left_out_of_leave_one_out():
    Y, lengths, _, _, _ = walk((20, 20, 20), missing=0)
    Y[-3:] = np.nan
    model = GPLVM(2, latent_prior=Dynamics(), max_iter=5).fit(Y, sequences=lengths)
    left = model.leave_one_out()
    np.testing.assert_array_equal(np.isnan(left), np.isnan(Y))


# -- what follows ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "steps", "share"), [("dynamic", 10, 0.3), ("timed", 4, 0.6)])
def test_a_forecast_is_better_than_the_last_frame(kind, steps, share, request):
    model = request.getfixturevalue(kind)
    Y, lengths, _, _, later = walk(held=10)
    ends = np.cumsum(lengths) - 1
    ours = [error(model.forecast(steps, k), later[k][:steps]) for k in range(3)]
    last = [error(Y[ends[k]], later[k][:steps]) for k in range(3)]
    assert np.mean(ours) < share * np.mean(last)


@pytest.mark.parametrize("kind", ["dynamic", "timed"])
def test_what_a_forecast_gives(kind, request):
    model = request.getfixturevalue(kind)
    rows = model.forecast(6)
    again, variance = model.forecast(6, return_var=True)
    assert rows.shape == variance.shape == (6, 52)
    np.testing.assert_array_equal(rows, again)
    np.testing.assert_array_equal(rows, model.forecast(6, 2))
    np.testing.assert_array_equal(model.forecast(6, 0), model.forecast(6, sequence=-3))
    np.testing.assert_allclose(model.forecast(3), rows[:3])
    assert np.all(np.diff(variance.mean(axis=1)) > 0)
    assert np.all(variance > model.noise_variance_)
    draws = model.forecast(6, n_samples=300, random_state=0)
    assert draws.shape == (300, 6, 52)
    np.testing.assert_array_equal(draws, model.forecast(6, n_samples=300, random_state=0))
    # Where the map is nearly linear over the spread of the latents.
    sd = np.sqrt(variance[:2])
    assert np.abs(draws[:, :2].mean(0) - rows[:2]).max() < 0.5 * sd.max()
    np.testing.assert_allclose(draws[:, :2].std(0).mean(), sd.mean(), rtol=0.15)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"n_steps": 0}, "n_steps=0 was given; expected an integer of 1 or more"),
        ({"n_steps": 2.0}, "n_steps=2.0 was given"),
        ({"n_steps": 2, "n_samples": 0}, "n_samples=0 was given"),
        ({"n_steps": 2, "n_samples": 3, "return_var": True}, "expected one of them"),
        ({"n_steps": 2, "sequence": 3}, "sequence=3 was given; expected an integer of -3 to 2"),
        ({"n_steps": 2, "sequence": -4}, r"fitted to 3 sequence\(s\)"),
        ({"n_steps": 2, "sequence": True}, "sequence=True was given"),
    ],
)
def test_forecasts_that_make_no_sense(dynamic, arguments, text):
    with pytest.raises(ValueError, match=text):
        dynamic.forecast(**arguments)


def test_models_without_time_do_not_go_on(labelled, dynamic):
    plain = GPLVM(1, max_iter=2).fit(load_iris().data[::10])
    for model in (plain, labelled):
        with pytest.raises(ValueError, match=r"no time in it.*Dynamics\(\) or OverTime\(\)"):
            model.forecast(3)
    for model in (plain, labelled, dynamic):
        for ask in (model.latents_at, model.predict_at):
            with pytest.raises(ValueError, match=r"knows no time stamps.*OverTime\(\)"):
                ask([0.5])


def test_rows_that_are_tied_together_are_not_drawn_one_by_one(dynamic, timed, labelled):
    for model in (dynamic, timed, labelled):
        with pytest.raises(ValueError, match="ties rows together, so that single rows can't be"):
            model.sample()


# -- between frames --------------------------------------------------------------------------------


def test_latents_and_data_at_other_times(timed):
    _, _, times, angles, _ = walk(held=10)
    seen = np.arange(5, 12)
    Z, variance = timed.latents_at(times[seen], sequence=0, return_var=True)
    # At the time of a frame the curve passes by its latents.
    np.testing.assert_allclose(Z, timed.embedding_[seen], atol=0.05)
    assert np.all(variance < timed.latent_prior_.noise_variance)
    np.testing.assert_array_equal(Z, timed.latents_at(list(times[seen]), sequence=-3))
    rows, wide = timed.predict_at(times[seen], sequence=0, return_var=True)
    np.testing.assert_array_equal(rows, timed.predict_at(times[seen], sequence=0))
    assert error(rows, angles[seen]) < 1.0
    assert np.all(wide > timed.noise_variance_)
    # In the middle between two frames the truth is near the mean of both.
    middle = timed.predict_at(times[seen][:-1] + 0.5 / 30.0, sequence=0)
    assert error(middle, 0.5 * (angles[seen][1:] + angles[seen][:-1])) < 1.5
    # The last sequence is the default, and the next frame is where a forecast begins.
    after = times[-1] + 1.0 / 30.0
    np.testing.assert_allclose(timed.predict_at([after]), timed.forecast(1), rtol=1e-6)


@pytest.mark.parametrize("times", [[[0.1]], ["a"], [np.nan], 0.5, [np.inf]], ids=str)
def test_times_that_are_no_times(timed, times):
    with pytest.raises(ValueError, match="expected finite numbers in one row"):
        timed.latents_at(times)


# -- facts about rows ------------------------------------------------------------------------------

T = np.arange(12.0)


def changed(values, **places):
    out = np.array(values, dtype=float)
    for place, value in places.items():
        out[int(place[1:])] = value
    return out


@pytest.mark.parametrize(
    ("prior", "facts", "text"),
    [
        ("gaussian", {"sequences": [6, 6]}, "sequences was given and latent_prior ties no rows"),
        ("gaussian", {"times": T}, "times was given and latent_prior ties no rows together"),
        (None, {"times": T}, r"use it; expected latent_prior=OverTime\(\)"),
        (Dynamics(), {"times": T}, r"times was given and latent_prior is Dynamics\(.*does not use"),
        (Discriminative(), {"sequences": [6, 6], "y": [0, 1] * 6}, "sequences was given and"),
        (Dynamics(), {"sequences": [6, 5]}, r"sequences=\[6 5\] of the sum 11 .*the 12 rows of X"),
        (Dynamics(), {"sequences": [12, 0]}, r"sequences=\[12  0\] of the sum 12 .* positive"),
        (Dynamics(), {"sequences": [18, -6]}, "positive integers"),
        (Dynamics(), {"sequences": []}, "of shape \\(0,\\)"),
        (Dynamics(), {"sequences": 12}, "of shape \\(\\)"),
        (Dynamics(), {"sequences": [[6, 6]]}, "of shape \\(1, 2\\)"),
        (Dynamics(), {"sequences": [6.0, 6.0]}, "type float64 was given; expected the lengths"),
        (Dynamics(), {"sequences": [0] * 6 + [1] * 6}, "that each row belongs to are not lengths"),
        (Dynamics(), {"sequences": [1] * 12}, "all 12 sequences have one frame, so that there is"),
        (OverTime(), {"sequences": [1] * 12}, "all 12 sequences have one frame, so that time"),
        (OverTime(), {"times": T[:5]}, r"times has shape \(5,\) .*each of the 12 rows"),
        (OverTime(), {"times": T[:, None]}, r"times has shape \(12, 1\)"),
        (OverTime(), {"times": T.astype(str)}, "dates: seconds or days since one of them"),
        (OverTime(), {"times": changed(T, _4=np.nan)}, r"times\[4\] is nan; expected finite"),
        (OverTime(), {"times": changed(T, _4=3.0)}, r"times\[4\] = 3 is the time of the row above"),
        (OverTime(), {"times": changed(T, _7=1.5, _9=0.0)}, r"times\[7\] = 1.5 is before that of"),
        (OverTime(), {"times": np.tile(T[:6], 2)}, r"times\[6\] = 0 .*give sequences=lengths"),
        (
            OverTime(), {"times": changed(np.tile(T[:6], 2), _9=2.0), "sequences": [6, 6]},
            r"times\[9\] = 2 is the time of the row above it \(2\) in sequence 1",
        ),
        (Discriminative(), {}, "needs labels"),
        (Discriminative(), {"y": [0, 1]}, r"y has shape \(2,\); expected a label for each of"),
        (Discriminative(), {"y": T / 7}, "y holds numbers that are not whole"),
        (Discriminative(), {"y": T}, r"12 class\(es\) among 12 labelled rows, the largest of 1"),
        (Discriminative(), {"y": [None] * 11 + ["a"]}, r"1 class\(es\) among 1 labelled"),
    ],
)  # fmt: skip
def test_facts_that_do_not_fit(prior, facts, text):
    X = np.random.default_rng(0).standard_normal((12, 5))
    with pytest.raises(ValueError, match=text):
        GPLVM(2, latent_prior=prior).fit(X, **facts)


def test_a_sequence_without_any_frame():
    Y, lengths, _, _, _ = walk((20, 20, 20), missing=0)
    Y[20:40] = np.nan
    with pytest.raises(ValueError, match=r"sequence 1 \(rows 20 to 39\) has no observed entry"):
        GPLVM(2, latent_prior=Dynamics()).fit(Y, sequences=lengths)


@pytest.mark.parametrize("prior", [Dynamics(), OverTime()], ids=["dynamics", "time"])
def test_a_sequence_of_one_frame_among_others_is_welcome(prior):
    Y = walk((20, 20, 20), missing=0)[0]
    model = GPLVM(2, latent_prior=prior, max_iter=5).fit(Y, sequences=[30, 1, 29])
    np.testing.assert_array_equal(model.sequences_, [30, 1, 29])
    assert model.forecast(2, 1).shape == (2, 52)


@pytest.mark.parametrize(
    "labels",
    [
        ["a", "b", "", "b", "a", "c"], np.array(["a", "b", None, "b", "a", "c"], dtype=object),
        np.array(["a", "b", np.nan, "b", "a", "c"], dtype=object), [4, 5, -1, 5, 4, 9],
        [4.0, 5.0, np.nan, 5.0, 4.0, 9.0], [4.0, 5.0, -1.0, 5.0, 4.0, 9.0],
        np.array([4, 5, -1, 5, 4, 9], dtype=object),
    ],
)  # fmt: skip
def test_labels_of_every_kind(labels):
    facts = row_facts(Discriminative(), np.zeros((6, 3)), labels, None, None)
    np.testing.assert_array_equal(facts.labels, [0, 1, -1, 1, 0, 2])


def test_labels_of_pandas():
    pandas = pytest.importorskip("pandas")
    text = ["a", "b", None, "b"]
    for series in (
        pandas.Series(text),
        pandas.Series(text).astype("category"),
        pandas.Series(["a", "b", pandas.NA, "b"]),
        pandas.Series([1, 2, pandas.NA, 2], dtype="Int64"),
    ):
        facts = row_facts(Discriminative(), np.zeros((4, 3)), series, None, None)
        np.testing.assert_array_equal(facts.labels, [0, 1, -1, 1])


def test_labels_are_ignored_by_priors_that_do_not_use_them():
    Y, lengths, _, _, _ = walk((20, 20, 20), missing=0)
    model = GPLVM(2, latent_prior=Dynamics(), max_iter=3)
    one = model.fit(Y, sequences=lengths).embedding_
    np.testing.assert_array_equal(model.fit(Y, ["any"] * 60, sequences=lengths).embedding_, one)


def test_labels_pull_their_classes_together(labelled):
    iris = load_iris()
    Y, classes = iris.data[::3], iris.target[::3]
    plain = GPLVM(2, **SETTINGS).fit(Y)

    def apart(Z):
        within = sum(((Z[classes == c] - Z[classes == c].mean(0)) ** 2).sum() for c in range(3))
        return within / ((Z - Z.mean(0)) ** 2).sum()

    assert apart(labelled.embedding_) < 0.7 * apart(plain.embedding_)
    assert labelled.latent_prior_ == Discriminative()


def test_models_that_can_not_tie_rows_together_say_so():
    Y = walk((20, 20, 20), missing=0)[0]
    with pytest.raises(ValueError, match="only the exact GPLVM learns"):
        SparseGPLVM(2, n_inducing=10, latent_prior=Dynamics()).fit(Y)


def test_dynamics_of_latents_that_are_encoded():
    Y, lengths, _, _, _ = walk((20, 20, 20), missing=0)
    model = GPLVM(2, back_constraint="kernel", latent_prior=Dynamics(), max_iter=30)
    model.fit(Y, sequences=lengths)
    assert model.loss_curve_[-1] < model.loss_curve_[0] - 500.0
    np.testing.assert_allclose(model.transform(Y), model.embedding_, rtol=1e-6)
    assert model.forecast(3).shape == (3, 52)
    Y[5] = np.nan
    with pytest.raises(ValueError, match=r"row 5 has .* an encoder takes complete rows"):
        model.fit(Y, sequences=lengths)


# -- an estimator as any other ---------------------------------------------------------------------


def test_learned_values_are_a_prior_to_go_on_with(dynamic):
    learned = dynamic.latent_prior_
    assert learned.noise_variance == Dynamics().noise_variance
    assert not np.allclose(learned.kernel.theta(), Dynamics().kernel.theta())
    Y, lengths, _, _, _ = walk(held=10)
    again = GPLVM(
        3, kernel=dynamic.kernel_, init=dynamic.embedding_, latent_prior=learned,
        noise_variance=dynamic.noise_variance_, max_iter=1,
    ).fit(Y, sequences=lengths)  # fmt: skip
    np.testing.assert_allclose(again.loss_curve_[0], dynamic.loss_curve_[-1], rtol=1e-9)


def test_fit_transform_hands_the_facts_on():
    Y, lengths, _, _, _ = walk((20, 20, 20), missing=0)
    model = GPLVM(2, latent_prior=Dynamics(), max_iter=3)
    Z = model.fit_transform(Y, sequences=lengths)
    np.testing.assert_array_equal(Z, model.embedding_)
    np.testing.assert_array_equal(model.sequences_, lengths)
    assert clone(model).latent_prior == Dynamics()


def test_priors_of_its_parameters_by_name():
    Y, lengths, _, _, _ = walk((20, 20, 20), missing=0)
    tied = {"dynamics.noise": LogNormal(-6.0, 1e-3)}
    model = GPLVM(2, latent_prior=Dynamics(fixed=()), priors=tied, **SETTINGS)
    noise = model.fit(Y, sequences=lengths).latent_prior_.noise_variance
    assert noise == pytest.approx(np.exp(-6.0), rel=0.1)


@pytest.mark.parametrize("kind", ["dynamic", "timed", "labelled"])
def test_files_hold_the_prior_and_the_facts(kind, request, tmp_path):
    model = request.getfixturevalue(kind)
    model.save(tmp_path / "m.npz")
    again = gplvm_xp.load(tmp_path / "m.npz")
    assert again.latent_prior == model.latent_prior
    assert again.latent_prior_ == model.latent_prior_
    for name in ("sequences_", "times_"):
        np.testing.assert_array_equal(getattr(again, name), getattr(model, name))
    again.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "m.npz").read_bytes()
    copy = pickle.loads(pickle.dumps(model))
    if kind != "labelled":
        for other in (again, copy):
            np.testing.assert_array_equal(other.forecast(4), model.forecast(4))
    if kind == "timed":
        np.testing.assert_array_equal(again.predict_at([0.11]), model.predict_at([0.11]))


def test_a_prior_of_a_strangers_own_is_handed_to_load(tmp_path):
    Y = walk((20, 20, 20), missing=0)[0]
    GPLVM(2, latent_prior=Still(2.0), max_iter=2).fit(Y).save(tmp_path / "m.npz")
    with pytest.raises(ModelFileError, match=r"of class 'Still'.*expected one of .*Dynamics"):
        gplvm_xp.load(tmp_path / "m.npz")
    assert gplvm_xp.load(tmp_path / "m.npz", kernels=(Still,)).latent_prior_ == Still(2.0)


@pytest.mark.parametrize(
    ("entry", "value", "text"),
    [
        ("sequences_", np.array([60, 55, 59]), "of the sum 174"),
        ("times_", np.zeros(175), r"times\[1\] = 0 is the time of the row above"),
        ("latent_prior_", None, "sequences was given and latent_prior ties no rows together"),
    ],
)
def test_parts_of_a_file_that_do_not_fit_each_other(timed, entry, value, text, tmp_path):
    timed.save(tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz", allow_pickle=False) as held:
        arrays = {key: held[key] for key in held}
    if entry in arrays:
        arrays[entry] = value
    else:
        header = json.loads(arrays["header"].tobytes())
        header[entry] = value
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w") as out:
                np.lib.format.write_array(out, array)
    with pytest.raises(ModelFileError, match=text):
        gplvm_xp.load(tmp_path / "m.npz")


@pytest.mark.only_backend("torch-cpu", "strict-f64")
def test_the_users_arrays_come_back(case):
    Y, lengths, times, _, _ = walk((20, 20, 20), missing=2)
    host = GPLVM(2, latent_prior=OverTime(), max_iter=5).fit(Y, sequences=lengths, times=times)
    model = GPLVM(2, latent_prior=OverTime(), max_iter=5)
    model.fit(case.asarray(Y), sequences=lengths, times=case.asarray(times))
    kind = type(case.asarray(Y))
    rows, variance = model.forecast(2, return_var=True)
    draws = model.forecast(2, n_samples=2, random_state=0)
    Z = model.latents_at(case.asarray([0.05]))
    frames = model.predict_at([0.05])
    assert all(isinstance(a, kind) for a in (rows, variance, draws, Z, frames))
    np.testing.assert_allclose(case.to_numpy(rows), host.forecast(2), rtol=1e-3)
    np.testing.assert_allclose(case.to_numpy(frames), host.predict_at([0.05]), rtol=1e-3)


@pytest.mark.filterwarnings("ignore::gplvm_xp.errors.PrecisionWarning")
def test_single_precision_learns_too():
    Y, lengths, _, _, _ = walk((30, 30, 30), missing=4)
    model = GPLVM(
        2, latent_prior=Dynamics(noise_variance=1e-2), dtype="float32", jitter=1e-3, max_iter=20
    ).fit(Y, sequences=lengths)
    assert np.isfinite(model.log_likelihood_)
    assert model.n_iter_ > 5
    assert model.forecast(3).shape == (3, 52)


def test_restarts_and_other_minimisers():
    Y, lengths, _, _, _ = walk((20, 20, 20), missing=2)
    for settings in ({"optimizer": "lbfgs"}, {"optimizer": "adam"}, {"n_restarts": 1}):
        model = GPLVM(2, latent_prior=Dynamics(), max_iter=60, random_state=0, **settings)
        curve = model.fit(Y, sequences=lengths).loss_curve_
        assert curve[-1] < curve[0] - 500.0


# -- walking figures -------------------------------------------------------------------------------


def test_a_walk_is_what_its_arguments_say():
    data = datasets.make_walk(3, [30, 40, 50], 7, n_subjects=2)
    assert data.Y.shape == (120, 52)
    assert len(set(data.feature_names)) == 52
    np.testing.assert_array_equal(data.extra["lengths"], [30, 40, 50])
    np.testing.assert_array_equal(data.labels, np.repeat([0, 1, 0], [30, 40, 50]))
    np.testing.assert_allclose(data.extra["times"][:3], [0, 1 / 30, 2 / 30])
    assert np.all(np.diff(data.extra["phase"])[:29] > 0.1)
    np.testing.assert_allclose((data.Y - data.extra["angles"]).std(), 0.5, rtol=0.05)
    again = datasets.make_walk(3, [30, 40, 50], 7, n_subjects=2)
    np.testing.assert_array_equal(again.Y, data.Y)
    assert not np.allclose(datasets.make_walk(3, [30, 40, 50], 8).Y, data.Y)
    # Knees bend one way: some fifty degrees, as in people.
    knee = data.extra["angles"][:, data.feature_names.index("right_knee_flexion")]
    assert 35.0 < np.ptp(knee) < 90.0


def test_more_sequences_begin_with_the_fewer():
    few, many = datasets.make_walk(2, 30, 3), datasets.make_walk(5, 30, 3)
    np.testing.assert_array_equal(many.Y[:60], few.Y)


def test_a_steady_walk_is_periodic_and_its_sides_alternate():
    data = datasets.make_walk(1, 400, 1, noise=0.0, wander=0.0, n_subjects=1, rate=200.0)
    phase, angles = data.extra["phase"], data.extra["angles"]
    turn = phase[:, None] - phase[0]
    for name in ("right_hip_flexion", "pelvis_turn", "left_elbow_flexion"):
        column = angles[:, data.feature_names.index(name)]
        waves = np.column_stack([f(k * turn) for k in range(5) for f in (np.cos, np.sin)])
        left = column - waves @ np.linalg.lstsq(waves, column, rcond=None)[0]
        np.testing.assert_allclose(left, 0.0, atol=1e-9)
    # The average person, of whom subjects are variations, is its own mirror image half a stride on.
    names, (mean, size, shift) = _figure()
    for right, left in (
        ("right_hip_flexion", "left_hip_flexion"),
        ("right_hip_rotation", "left_hip_rotation"),
    ):
        a, z = names.index(right), names.index(left)
        t = np.linspace(0.0, 6.0, 9)[:, None]
        k = np.arange(1, 5)
        one = mean[a] + (size[a] * np.cos(k * (t + np.pi) + shift[a])).sum(1)
        two = mean[z] + (size[z] * np.cos(k * t + shift[z])).sum(1)
        np.testing.assert_allclose(two, one if "flexion" in right else -one, atol=1e-9)


def test_a_gap_in_the_middle_of_every_sequence():
    whole, data = datasets.make_walk(2, [20, 31], 5), datasets.make_walk(2, [20, 31], 5, missing=6)
    empty = gone(data.Y)
    np.testing.assert_array_equal(np.flatnonzero(empty), [*range(7, 13), *range(32, 38)])
    np.testing.assert_array_equal(data.Y[~empty], whole.Y[~empty])
    np.testing.assert_array_equal(data.extra["angles"], whole.extra["angles"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_sequences": 0}, {"n_subjects": 0}, {"n_frames": [10, 20]}, {"n_frames": 0},
        {"n_frames": 10.5}, {"missing": 10}, {"missing": -1}, {"rate": 0.0}, {"noise": -1.0},
        {"noise": np.nan}, {"wander": np.inf},
    ],
    ids=str,
)  # fmt: skip
def test_walks_that_can_not_be_made(wrong):
    with pytest.raises(ValueError, match=re.escape(next(iter(wrong)))):
        datasets.make_walk(**{"n_sequences": 3, "n_frames": 10, **wrong})


# -- a picture -------------------------------------------------------------------------------------


def test_a_map_joins_the_frames_of_a_sequence(dynamic, labelled):
    pytest.importorskip("matplotlib").use("Agg")
    from gplvm_xp import plot

    ax = plot.latent(dynamic, dims=(0, 1), resolution=8)
    lines = [line.get_xydata() for line in ax.lines]
    assert [len(line) for line in lines] == [60, 55, 60]
    np.testing.assert_array_equal(np.concatenate(lines), dynamic.embedding_[:, :2])
    assert not plot.latent(labelled, resolution=8).lines
