"""method="auto": the choice by cost, and the chosen model answering for the exact one."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from gplvm_xp import GPLVM, BayesianGPLVM, LocalGPLVM, SparseGPLVM, backend, datasets, load
from gplvm_xp.backend import Backend
from gplvm_xp.errors import NotEnoughMemoryError
from gplvm_xp.estimators import _auto
from gplvm_xp.estimators._auto import Rates, planned, rates, refuse_lost_gradient
from gplvm_xp.predict import Posterior
from gplvm_xp.priors import Gaussian
from gplvm_xp.row_priors import Discriminative

NUMPY = backend.get("numpy")


@pytest.fixture
def machine(monkeypatch):
    """A machine of given rates and memory."""

    def make(product=1e11, element=1e9, memory=2**34):
        monkeypatch.setattr(_auto, "rates", lambda b: Rates(product, element))
        monkeypatch.setattr(type(NUMPY), "memory_available", lambda self: memory)

    make()
    return make


def plan(n, D=12, q=2, gaps=0.0, **options):
    Y = np.zeros((n, D))
    if gaps:
        Y[:, 0] = np.where(np.arange(n) < gaps * n * D, np.nan, 0.0)
    settings = {"max_iter": 500, "budget": None} | options
    return planned(NUMPY, Y, q, **settings)


def test_exact_while_it_fits(machine):
    assert plan(1000).method == "exact"
    assert plan(1000, q=8).method == "exact"


def test_local_where_the_exact_one_takes_too_long(machine):
    found = plan(10_000)
    assert found.method == "local"
    seconds = {c.method: c.seconds for c in found.choices}
    assert seconds["exact"] > _auto.BUDGET > seconds["local"]


def test_bayesian_for_many_dimensions_or_gaps(machine):
    assert plan(10_000, q=8).method == "bayesian"
    assert plan(20_000, gaps=0.07).method == "sparse"
    # A twelfth of the entries is the whole first column: more than that are gaps in earnest.
    assert plan(20_000, D=4, gaps=0.2).method == "bayesian"


def test_the_budget_and_the_fastest(machine):
    assert plan(10_000, budget=1e9).method == "exact"
    found = plan(100_000, budget=1.0)
    assert found.method == min(found.choices, key=lambda c: c.seconds).method
    assert "none is within 1.0 s" in found.why


def test_memory_rules_a_model_out(machine):
    machine(memory=2**28)
    found = plan(6000, budget=1e9)
    exact = next(c for c in found.choices if c.method == "exact")
    assert exact.bytes > 6000**2 * 8
    assert "free memory" in exact.reason
    assert found.method == "local"


def test_nothing_else_will_do(machine):
    machine(memory=2**28)
    barred = dict.fromkeys(("local", "sparse", "bayesian"), "is tied")
    assert plan(1000, barred=barred).method == "exact"
    with pytest.raises(ValueError, match=r"no model for 6000 rows: exact: more than .*is tied"):
        plan(6000, barred=barred)


def test_missing_entries_cost_the_exact_model_a_matrix_for_each_pattern(machine):
    Y = np.zeros((3000, 5))
    whole = planned(NUMPY, Y, 2, max_iter=10, budget=1e9).choices[0].bytes
    for column in range(4):
        Y[column, column] = np.nan
    holed = planned(NUMPY, Y, 2, max_iter=10, budget=1e9)
    assert holed.choices[0].bytes - whole > 3.9 * 3000**2 * 8
    # A fit refuses what predictions would not have room for, so that the plan must not choose it.
    machine(memory=4 * 3000**2 * 8)
    with pytest.raises(NotEnoughMemoryError):
        Posterior.require_memory(NUMPY, Y)
    assert planned(NUMPY, Y, 2, max_iter=10, budget=1e9).method != "exact"


def test_costs_grow_as_counted(machine):
    machine(element=1e30)

    def seconds(**kind):
        return {c.method: c.seconds for c in plan(**kind).choices}

    one, two = seconds(n=20_000, D=1), seconds(n=40_000, D=1)
    assert two["exact"] / one["exact"] == pytest.approx(8.0, rel=1e-3)
    for name in ("local", "bayesian"):
        assert two[name] / one[name] == pytest.approx(2.0, rel=0.02)
    assert seconds(n=20_000, max_iter=50)["local"] == seconds(n=20_000)["local"]
    parts = plan(4000, parts=(500, 1000, 2000)).choices[0].seconds
    assert parts / plan(4000).choices[0].seconds == pytest.approx(
        1 + 1 / 8 + 1 / 64 + 1 / 512, rel=5e-3
    )


def test_patterns_of_missing_entries_cost_the_exact_model_a_factor_each(machine):
    machine(element=1e30)
    Y = np.zeros((2000, 3))
    whole = planned(NUMPY, Y, 2, max_iter=10, budget=None).choices[0].seconds
    for column in range(3):
        Y[column, column] = np.nan
    holed = planned(NUMPY, Y, 2, max_iter=10, budget=None).choices[0].seconds
    assert holed / whole == pytest.approx(3.0, rel=0.02)


def test_the_plan_reads_well(machine):
    text = str(plan(1000))
    assert text.startswith("1000 rows, 12 columns, 2 latent dimensions: exact (within 10 min")
    assert len(text.splitlines()) == 5
    assert " > exact " in text
    assert "GiB" in text


def test_rates_are_measured_once():
    found = rates(NUMPY)
    assert 1e8 < found.product < 1e14
    assert 1e6 < found.element < 1e12
    assert rates(NUMPY) is found


def quiet(model, Y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(Y)


def table(n=150, D=6):
    return datasets.make_latent(n, D=D, q=2, seed=0, noise=0.1).Y


def test_a_fit_that_stays_exact_says_so(machine, capsys):
    Y = table(60)
    fit = quiet(GPLVM(2, method="auto", max_iter=20), Y)
    assert fit.plan_.method == "exact"
    assert fit.model_ is None
    assert "latent dimensions: exact" in capsys.readouterr().err
    assert np.array_equal(fit.embedding_, quiet(GPLVM(2, max_iter=20), Y).embedding_)


def favour(monkeypatch, name):
    """Only the model of this name is within the budget."""
    real = _auto._costs

    def costs(*given):
        return {k: (1.0 if k == name else 1e9, size) for k, (_, size) in real(*given).items()}

    monkeypatch.setattr(_auto, "_costs", costs)


@pytest.mark.parametrize(
    ("kind", "options", "q"),
    [(LocalGPLVM, {}, 2), (BayesianGPLVM, {}, 6), (SparseGPLVM, {"time_limit": None}, 2)],
)
def test_the_chosen_model_answers(monkeypatch, tmp_path, kind, options, q):
    name = {LocalGPLVM: "local", BayesianGPLVM: "bayesian", SparseGPLVM: "sparse"}[kind]
    favour(monkeypatch, name)
    Y = table(D=8)
    shared = {"max_iter": 10, "random_state": 0}
    fit = quiet(GPLVM(q, method="auto", **shared, **options), Y)
    how = {"inference": "neighbourhood"} if kind is LocalGPLVM else {}
    alone = quiet(kind(q, **shared, **how), Y)
    assert type(fit.model_) is kind
    assert fit.plan_.method == name
    assert np.array_equal(fit.embedding_, alone.embedding_)
    new = table(160, D=8)[150:]
    for method in ("transform", "score_samples", "predict"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            assert np.array_equal(getattr(fit, method)(new), getattr(alone, method)(new))
    Z = fit.embedding_[:3]
    assert np.array_equal(fit.inverse_transform(Z), alone.inverse_transform(Z))
    assert fit.transform(Y[:2], return_cov=True)[1].shape == (2, q, q)
    assert np.array_equal(fit.relevance(), alone.relevance())
    assert np.isfinite(fit.log_likelihood_)
    assert fit.n_iter_ == alone.n_iter_
    assert fit.sample(2, random_state=0)[0].shape == (2, 8)
    if kind is LocalGPLVM:
        with pytest.raises(ValueError, match="chose a LocalGPLVM, which has no slopes"):
            fit.metric_tensor(Z)
    else:
        assert np.array_equal(fit.metric_tensor(Z), alone.metric_tensor(Z))
    with pytest.raises(ValueError, match=rf"chose a {kind.__name__}, and only an exact one"):
        fit.leave_one_out()
    fit.save(tmp_path / "chosen.npz")
    again = load(tmp_path / "chosen.npz")
    assert type(again) is kind
    assert np.array_equal(again.embedding_, fit.embedding_)


def test_geometry_is_that_of_the_chosen_model(monkeypatch, machine):
    Y = table(80)
    fit = quiet(GPLVM(2, method="auto", max_iter=3, random_state=0), Y)
    Z = fit.embedding_[:2]
    exact = fit.metric_tensor(Z)
    favour(monkeypatch, "sparse")
    # What the exact fit has kept must not answer for the new one.
    quiet(fit, Y)
    alone = quiet(SparseGPLVM(2, max_iter=3, tol=1e-5, random_state=0), Y)
    for name in ("jacobian", "metric_tensor", "magnification"):
        assert np.array_equal(getattr(fit, name)(Z), getattr(alone, name)(Z))
    assert not np.allclose(fit.metric_tensor(Z), exact)
    fit.model_ = LocalGPLVM(2)
    with pytest.raises(ValueError, match="chose a LocalGPLVM, which has no slopes"):
        fit.jacobian(Z)


def test_what_is_given_goes_over_or_rules_a_model_out(monkeypatch, machine):
    Y = table(80, D=8)
    favour(monkeypatch, "bayesian")
    wide = GPLVM(6, method="auto", max_iter=2, latent_prior=Gaussian(0.0, 2.0))
    found = quiet(wide, Y).plan_
    bayesian = next(c for c in found.choices if c.method == "bayesian")
    assert found.method != "bayesian"
    assert "latent_prior='gaussian' only" in bayesian.reason
    favour(monkeypatch, "sparse")
    fit = quiet(GPLVM(2, method="auto", max_iter=2, optimizer="adam"), Y)
    assert fit.model_.optimizer == "adam"


def test_other_array_libraries_get_their_own_covariances(monkeypatch, machine):
    strict = pytest.importorskip("array_api_strict")
    favour(monkeypatch, "sparse")
    Y = strict.asarray(table(60))
    fit = quiet(GPLVM(2, method="auto", max_iter=2, random_state=0), Y)
    Z, C = fit.transform(Y[:3, :], return_cov=True)
    assert type(C) is type(Z) is type(Y)
    assert C.shape == (3, 2, 2)


def test_single_precision_is_refused_where_the_gradient_would_be_lost(machine):
    Y = datasets.make_latent(400, D=6, q=2, seed=0, noise=1e-3).Y
    with pytest.raises(ValueError, match=r"condition number .* use dtype='float64'"):
        GPLVM(2, method="auto", dtype="float32").fit(Y)
    quiet(GPLVM(2, method="auto", max_iter=2), Y)


def test_the_bound_on_the_precision_knows_noise_from_signal():
    single: Backend = backend.get("numpy", dtype="float32")
    model = GPLVM(2, dtype="float32", random_state=0)
    noisy = np.random.default_rng(0).standard_normal((200, 6))
    refuse_lost_gradient(model, single, noisy)
    smooth = datasets.make_latent(300, D=6, q=1, seed=0, noise=1e-3).Y
    smooth -= smooth.mean(axis=0)
    refuse_lost_gradient(model, NUMPY, smooth)
    with pytest.raises(ValueError, match="would be rounding"):
        refuse_lost_gradient(model, single, smooth)


def smooth_table():
    Y = datasets.make_latent(300, D=6, q=1, seed=0, noise=1e-3).Y
    return Y - Y.mean(axis=0)


def test_the_bound_on_the_precision_sees_tables_without_a_complete_row():
    single, Y = backend.get("numpy", dtype="float32"), smooth_table()
    Y[np.arange(300), np.arange(300) % 6] = np.nan
    with pytest.raises(ValueError, match="would be rounding"):
        refuse_lost_gradient(GPLVM(2, dtype="float32"), single, Y)


def test_the_bound_on_the_precision_needs_no_labels():
    noisy = np.random.default_rng(0).standard_normal((60, 6))
    labelled = GPLVM(2, dtype="float32", latent_prior=Discriminative())
    refuse_lost_gradient(labelled, backend.get("numpy", dtype="float32"), noisy)


def test_blocks_keep_the_gradient_longer_than_the_whole_table():
    single = backend.get("numpy", dtype="float32")
    Y = np.tile(datasets.make_latent(200, D=6, q=2, seed=0, noise=0.0).Y, (100, 1))
    Y += 0.3 * np.random.default_rng(0).standard_normal(Y.shape)
    with pytest.raises(ValueError, match="would be rounding"):
        refuse_lost_gradient(GPLVM(2, random_state=0), single, Y)
    refuse_lost_gradient(GPLVM(2, random_state=0), single, Y, local=True)


def test_a_key_pressed_in_the_small_fit_ends_the_whole(monkeypatch):
    def pressed(self, *given):
        raise KeyboardInterrupt

    monkeypatch.setattr("gplvm_xp.objectives.exact.ExactObjective.value_and_grad", pressed)
    with pytest.raises(KeyboardInterrupt):
        refuse_lost_gradient(GPLVM(2), backend.get("numpy", dtype="float32"), smooth_table())


def test_methods_that_are_none():
    with pytest.raises(ValueError, match=r"method='quick' was given; expected 'exact' or 'auto'"):
        GPLVM(2, method="quick").fit(table())
