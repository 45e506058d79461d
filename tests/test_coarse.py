"""Coarse to fine: parts of the rows first, each the start of the next."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from gplvm_xp import GPLVM, datasets
from gplvm_xp.estimators._coarse import levels
from gplvm_xp.metrics import nearest_neighbour_errors
from gplvm_xp.predict import NewRows
from gplvm_xp.row_priors import OverTime


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    return datasets.make_latent(640, D=8, q=2, seed=1, noise=0.3).Y


def quiet(model: GPLVM, Y: np.ndarray) -> GPLVM:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(Y)


@pytest.mark.parametrize(
    ("given", "n", "expected"),
    [
        (False, 4000, ()),
        (True, 4000, (500, 1000, 2000)),
        (True, 1000, (250, 500)),
        (True, 499, ()),
        ((100, 300), 640, (100, 300)),
        ([50], 640, (50,)),
    ],
)
def test_levels(given, n, expected):
    assert levels(given, n) == expected


@pytest.mark.parametrize(
    "given",
    [
        (),
        (300, 200),
        (200, 200),
        (640,),
        (0, 100),
        (1.5,),
        "yes",
        3,
        None,
        (True, 100),
        np.array(3),
    ],
)
def test_levels_that_are_none(given):
    with pytest.raises(ValueError, match=r"coarse_to_fine=.* expected True, False, or increasing"):
        levels(given, 640)


def test_far_fewer_full_evaluations_for_a_better_end(table):
    sizes: list[int] = []
    plain = quiet(GPLVM(2, max_iter=60), table)
    fine = quiet(
        GPLVM(
            2,
            max_iter=60,
            coarse_to_fine=(80, 160, 320),
            random_state=0,
            callback=lambda p: sizes.append(p.x.shape[0]),
        ),
        table,
    )
    # Ten of all rows are worth more than sixty of the plain fit.
    assert fine.loss_curve_[10] < plain.loss_curve_[-1]
    assert len(set(sizes)) == 4
    assert sizes == sorted(sizes)
    assert fine.embedding_.shape == (640, 2)
    assert np.isfinite(fine.log_likelihood_)
    # The rows are in their own order: what was fitted explains each of them.
    assert np.mean((fine.predict(fine.embedding_) - table) ** 2) < 0.5 * np.var(table)


def test_the_same_seed_gives_the_same_bits(table):
    options = {"max_iter": 5, "coarse_to_fine": (80, 160), "random_state": 3}
    one, two = (quiet(GPLVM(2, **options), table) for _ in range(2))
    assert np.array_equal(one.embedding_, two.embedding_)
    other = quiet(GPLVM(2, **(options | {"random_state": 4})), table)
    assert not np.array_equal(one.embedding_, other.embedding_)


def test_missing_entries_and_a_column_that_few_rows_have(table):
    rng = np.random.default_rng(0)
    Y = table[:300].copy()
    Y[rng.random(300) < 0.4, 1] = np.nan
    Y[3:, 0] = np.nan
    fit = quiet(GPLVM(2, max_iter=5, coarse_to_fine=(40, 120), random_state=0), Y)
    assert np.all(np.isfinite(fit.embedding_))
    assert np.all(np.isfinite(fit.predict(fit.embedding_)))


def test_a_part_that_is_interrupted_keeps_what_it_found(table):
    def stop(progress):
        if progress.x.shape[0] > 200 and progress.step == 2:
            raise KeyboardInterrupt

    model = GPLVM(2, coarse_to_fine=(80, 160), random_state=0, callback=stop)
    with pytest.warns(ConvergenceWarning, match="interrupted by the keyboard"):
        model.fit(table)
    assert model.status_ == "interrupted"
    assert model.n_iter_ == 0
    assert model.embedding_.shape == (640, 2)
    assert np.all(np.isfinite(model.embedding_))
    plain = quiet(GPLVM(2, max_iter=0), table)
    assert model.loss_curve_[-1] < plain.loss_curve_[0]


def test_an_interruption_while_rows_are_placed_keeps_the_part(table, monkeypatch):
    def pressed(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(NewRows, "rough", pressed)
    sizes = []
    model = GPLVM(2, coarse_to_fine=(80, 160), random_state=0, max_iter=3)
    model.set_params(callback=lambda p: sizes.append(p.x.shape[0]))
    with pytest.warns(ConvergenceWarning, match="interrupted by the keyboard"):
        model.fit(table)
    assert model.status_ == "interrupted"
    # Nothing between the first part and all rows.
    assert sorted(set(sizes)) == [min(sizes), max(sizes)]
    assert min(sizes) < 200
    assert max(sizes) > 1200
    assert model.n_iter_ == 0
    assert np.all(np.isfinite(model.embedding_))


def test_time_that_is_up_in_a_part(table):
    model = GPLVM(2, coarse_to_fine=(80, 160), random_state=0, time_limit=0.0)
    with pytest.warns(ConvergenceWarning, match="time_limit=0 s reached"):
        model.fit(table)
    assert model.status_ == "time_limit"


def test_tied_latents_are_refused(table):
    with pytest.raises(ValueError, match="ties the latents together; expected free latents"):
        GPLVM(2, coarse_to_fine=True, latent_prior=OverTime()).fit(table, times=np.arange(640.0))


def test_labels_of_digits():
    data = datasets.load_digits()
    Y, labels = data.Y[:800], data.labels[:800]
    fine = quiet(GPLVM(2, max_iter=40, coarse_to_fine=(200, 400), random_state=0), Y)
    plain = quiet(GPLVM(2, max_iter=40), Y)
    errors = [nearest_neighbour_errors(m.embedding_, labels) for m in (fine, plain)]
    assert errors[0] < errors[1]
