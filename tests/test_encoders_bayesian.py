"""q(X) as a function of the data: the collapsed bound, minibatches, and the Bayesian model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Case, open_case
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

from gplvm_xp import BayesianGPLVM, backend, load
from gplvm_xp.encoders import Encoder, KernelEncoder, MLPEncoder
from gplvm_xp.estimators import _inducing
from gplvm_xp.estimators._scales import linear_view
from gplvm_xp.kernels import RBF, Matern52
from gplvm_xp.latents import Latents
from gplvm_xp.likelihoods import Gaussian, Poisson
from gplvm_xp.objectives.bayesian import BayesianObjective, Observed, clouds
from gplvm_xp.objectives.minibatch import Whitened
from gplvm_xp.objectives.minibatch_fit import fit_minibatch, lower_bound
from gplvm_xp.objectives.minibatch_state import MinibatchState
from gplvm_xp.objectives.stochastic import MinibatchObjective
from gplvm_xp.testing import check_gradient

ENCODERS: dict[str, Encoder] = {"kernel": KernelEncoder(tolerance=1e-3), "mlp": MLPEncoder((4,))}
n, D, q, M = 12, 4, 2, 5


def table(rows: int = n, columns: int = D, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    Z = rng.standard_normal((rows, 2))
    Y = np.sin(Z @ rng.standard_normal((2, columns))) + 0.1 * rng.standard_normal((rows, columns))
    return Y - Y.mean(axis=0)


def started(name: str, Y: np.ndarray) -> Encoder:
    rng = np.random.default_rng(1)
    both = np.concatenate([rng.standard_normal((len(Y), q)), np.full((len(Y), q), -1.5)], axis=1)
    return ENCODERS[name].settled(Y).started(Y, both + 0.1 * rng.standard_normal(both.shape))


def collapsed(b: Any, name: str) -> BayesianObjective:
    Y = table()
    latents = started(name, Y).latents(b, Y)
    mu, S = np.zeros((n, q)), np.ones((n, q))
    Z = np.random.default_rng(2).standard_normal((M, q))
    return BayesianObjective(
        RBF(1.2, (0.9, 1.3)), Observed.of(b, Y), mu, S, Z, 0.3, jitter=1e-3, latents=latents
    )


def fitted(Y: Any, encoder: Any, **parameters: Any) -> BayesianGPLVM:
    given = {"n_inducing": 8, "max_iter": 25, "warm_up": 5, "random_state": 0, **parameters}
    if given.get("inference") == "minibatch" or "likelihood" in given:
        given = {"n_epochs": 4, "batch_size": 10, **given}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return BayesianGPLVM(2, encoder=encoder, **given).fit(Y)


# -- objectives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_the_collapsed_bound_in_the_weights(case: Case, name: str) -> None:
    """The value is that at the clouds; gradients on every library, on NumPy by differences."""
    fun = collapsed(case.backend, name)
    x = fun.start()
    f, g = fun.value_and_grad(x)
    v = fun.values(x)
    assert v.S is not None
    free = BayesianObjective(
        fun.kernel, fun.data, case.to_numpy(v.mu), case.to_numpy(v.S), fun.Z, 0.3, jitter=1e-3
    )
    near = case.tolerance(1e-10, 1e-4)
    np.testing.assert_allclose(
        case.to_numpy(f), case.to_numpy(free.value_and_grad(free.start())[0]), rtol=near
    )
    with open_case("numpy-f64") as plain:
        reference = collapsed(plain.backend, name)
    _, want = reference.value_and_grad(reference.start())
    limit = case.tolerance(1e-9, 5e-3) * np.abs(want).max()
    np.testing.assert_allclose(case.to_numpy(g), want, rtol=0, atol=limit)
    assert [block.name for block in fun.layout.blocks][:4] == [
        "rbf.variance", "rbf.lengthscale", "noise", "Z",
    ]  # fmt: skip
    if case.id == "numpy-f64":
        check_gradient(fun.value_and_grad, x, rtol=2e-7)


def test_clouds_are_means_and_logarithms() -> None:
    Y = table()
    latents: Latents = started("mlp", Y).latents(backend.get("numpy"), Y)
    values = {block.name: block.value for block in latents.blocks()}
    both, pull = latents.positions(values)
    mu, S, back = clouds(latents, values)
    np.testing.assert_array_equal(mu, both[:, :q])
    np.testing.assert_allclose(S, np.exp(both[:, q:]))
    gmu, gS = np.random.default_rng(3).standard_normal((2, n, q))
    got, want = back(gmu, gS), pull(np.concatenate([gmu, gS * S], axis=1))
    for key in want:
        np.testing.assert_allclose(got[key], want[key])


def by_batches(b: Any, name: str, likelihood: Any) -> MinibatchObjective:
    rng = np.random.default_rng(4)
    Y = table()
    view = Y
    if isinstance(likelihood, Poisson):
        Y = rng.poisson(np.exp(0.5 + Y)).astype(float)
        view = linear_view(likelihood, Y, None)
    encoder = started(name, view)
    return MinibatchObjective(
        RBF(1.2, (0.9, 1.3)), likelihood, Y, b.asarray(rng.standard_normal((M, q))), jitter=1e-3,
        place=lambda index: encoder.latents(b, view[index]),
    )  # fmt: skip


def posterior(b: Any, objective: MinibatchObjective) -> Whitened:
    rng = np.random.default_rng(5)
    r = objective.totals.outputs.size
    factor = np.triu(0.3 * rng.standard_normal((r, M, M))) + 0.8 * np.eye(M)
    return Whitened(b.asarray(rng.standard_normal((M, D))), b.asarray(factor))


@pytest.mark.parametrize("likelihood", [Gaussian(0.3), Poisson()], ids=lambda k: k.name)
@pytest.mark.parametrize("name", ENCODERS)
def test_a_batch_in_the_weights(case: Case, name: str, likelihood: Any) -> None:
    """Value and gradient of a batch's bound on every library, on NumPy by differences."""
    index = np.array([1, 4, 5, 9])
    eps = np.random.default_rng(6).standard_normal((2, 4, q))

    def answer(b: Any) -> tuple[Any, Any, Any]:
        objective = by_batches(b, name, likelihood)
        own = posterior(b, objective)

        def fun(x: Any) -> tuple[Any, Any]:
            bound, gradient = objective.evaluate(x, own, None, None, index, eps)
            return bound.value, gradient

        return fun, b.asarray(objective.layout.start()), objective

    fun, x, objective = answer(case.backend)
    value, gradient = fun(x)
    with open_case("numpy-f64") as plain:
        other, at, _ = answer(plain.backend)
    want, slope = other(at)
    np.testing.assert_allclose(case.to_numpy(value), want, rtol=case.tolerance(1e-10, 2e-3))
    limit = case.tolerance(1e-9, 1e-2) * np.abs(slope).max()
    np.testing.assert_allclose(case.to_numpy(gradient), slope, rtol=0, atol=limit)
    if case.id == "numpy-f64":
        check_gradient(fun, x, rtol=2e-7)
        mu, S, _ = objective.clouds(x, index)
        bare = MinibatchObjective(
            objective.kernel, likelihood, objective.Y, objective.inducing, jitter=1e-3
        )
        same, _ = bare.evaluate(
            bare.layout.start(), posterior(case.backend, bare), mu, S, index, eps
        )
        np.testing.assert_allclose(same.value, value, rtol=1e-12)


@pytest.mark.parametrize("name", ENCODERS)
def test_batches_are_unbiased_in_the_weights(name: str) -> None:
    b = backend.get("numpy")
    objective = by_batches(b, name, Gaussian(0.3))
    own, x = posterior(b, objective), objective.layout.start()
    _, whole = objective.evaluate(x, own, None, None, np.arange(n), np.zeros((0, n, q)))
    parts = [
        objective.evaluate(x, own, None, None, part, np.zeros((0, 4, q)))[1]
        for part in np.split(np.random.default_rng(0).permutation(n), 3)
    ]
    np.testing.assert_allclose(np.mean(parts, axis=0), whole, rtol=1e-9, atol=1e-9)


def test_rows_have_no_state_of_their_own() -> None:
    b = backend.get("numpy")
    objective = by_batches(b, "mlp", Gaussian(0.3))
    begin = MinibatchState.begin(objective, np.zeros((n, q)), np.ones((n, q)))
    assert begin.rows.shape == (n, 0)
    assert begin.extended(np.zeros((3, q)), np.ones((3, q))).rows.shape == (n + 3, 0)
    result = fit_minibatch(objective, begin, batch_size=5, epochs=20)
    mu, S = objective.placed(b.asarray(result.state.shared[0]))
    np.testing.assert_array_equal(result.mu, mu)
    np.testing.assert_array_equal(result.S, S)
    before = fit_minibatch(objective, begin, batch_size=5, epochs=0)
    bounds = [lower_bound(objective, r, batch_size=5) for r in (before, result)]
    assert bounds[1] > bounds[0] + 5.0
    # A part of a search and the rest are the whole.
    half = fit_minibatch(objective, begin, batch_size=5, epochs=2, decay=False)
    rest = fit_minibatch(objective, half.state, batch_size=5, epochs=2, decay=False)
    both = fit_minibatch(objective, begin, batch_size=5, epochs=4, decay=False)
    np.testing.assert_array_equal(rest.mu, both.mu)
    still = fit_minibatch(objective, begin, batch_size=5, epochs=4, place_learning_rate=0.0)
    np.testing.assert_array_equal(still.mu, before.mu)
    names = frozenset(block.name for block in objective.layout.blocks if "encoder" in block.name)
    held = fit_minibatch(objective, begin, batch_size=5, epochs=4, held=names)
    np.testing.assert_array_equal(held.mu, before.mu)


# -- the model -------------------------------------------------------------------------------------

WAYS: dict[str, dict[str, Any]] = {
    "collapsed": {},
    "minibatch": {"inference": "minibatch"},
    "counts": {"likelihood": "poisson", "exposure": "total"},
}


def data(way: str, rows: int = 40) -> np.ndarray:
    Y = table(rows, 6, seed=7)
    if way != "counts":
        return Y + 2.0
    return np.random.default_rng(8).poisson(3.0 * np.exp(Y)).astype(float)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("way", WAYS)
def test_the_latents_of_all_rows_by_one_function(
    way: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Y = data(way)
    model = fitted(Y[:30], ENCODERS[name], **WAYS[way])
    encoder = model.encoder_
    assert encoder is not None
    np.testing.assert_array_equal(model.transform(Y[:30]), model.embedding_)
    inputs = (Y - model.mean_) / model.scale_
    if way == "counts":
        inputs = np.log1p(Y / model._exposures(Y)[:, None])  # type: ignore[index]
    mu, log = np.split(encoder.encode(backend.get("numpy"), inputs), 2, axis=1)
    np.testing.assert_allclose(model.embedding_, mu[:30], atol=1e-10)
    np.testing.assert_allclose(model.embedding_variance_, np.exp(log[:30]), rtol=1e-10)
    gap = Y[30:].copy()
    gap[2, 1] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        Z, V = model.transform(gap, return_var=True)
        model.encoder_ = None
        searched, _ = model.transform(gap, return_var=True)
        model.encoder_ = encoder
    np.testing.assert_allclose(np.delete(Z, 2, 0), np.delete(mu[30:], 2, 0), atol=1e-10)
    np.testing.assert_allclose(np.delete(V, 2, 0), np.exp(np.delete(log[30:], 2, 0)), rtol=1e-10)
    np.testing.assert_allclose(Z[2], searched[2], atol=1e-3)
    model.save(tmp_path / "m.npz")
    back = load(tmp_path / "m.npz")
    assert back.encoder_ == encoder
    assert back.encoder == ENCODERS[name]
    np.testing.assert_array_equal(back.transform(Y), model.transform(Y))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a search")

    monkeypatch.setattr(_inducing, "placed", refuse)
    model.transform(Y)
    with pytest.raises(AssertionError, match="a search"):
        model.transform(gap)


def slack(way: str) -> float:
    """Of a bound that was taken twice: that of counts is an estimate by other draws."""
    return 0.02 if way == "counts" else 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_going_on_with_more_rows(way: str) -> None:
    """The weights go on; new rows join without parameters of their own."""
    Y = data(way)
    model = fitted(Y[:30], "mlp", **WAYS[way])
    first, before = model.lower_bound_, model.encoder_
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.partial_fit(Y[:30])
        assert model.lower_bound_ >= first - slack(way) * abs(first)
        model.partial_fit(Y)
    assert model.embedding_.shape == (40, 2)
    assert model.encoder_ is not None
    assert model.encoder_ == before
    mu = np.split(model.encoder_.encode(backend.get("numpy"), model._inputs(Y)), 2, axis=1)[0]
    np.testing.assert_allclose(mu, model.embedding_, atol=1e-10)


@pytest.mark.parametrize("way", WAYS)
def test_a_model_from_a_file_goes_on(way: str, tmp_path: Path) -> None:
    Y = data(way)
    fitted(Y[:30], "kernel", **WAYS[way]).save(tmp_path / "m.npz")
    model = load(tmp_path / "m.npz")
    first = model.lower_bound_
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.partial_fit(Y[:30])
    assert model.lower_bound_ >= first - slack(way) * abs(first)


def test_the_bound_is_nearly_that_of_free_clouds() -> None:
    """Amortised latents give up some of the bound, and not much for a smooth table."""
    Y = data("collapsed")
    free = fitted(Y, None, max_iter=100)
    for name in ("kernel", "mlp"):
        tied = fitted(Y, name, max_iter=100)
        assert tied.lower_bound_ > free.lower_bound_ - 2.0


def test_restarts_keep_the_best() -> None:
    Y = data("collapsed")
    one, more = (fitted(Y, "kernel", n_restarts=k) for k in (0, 2))
    assert more.lower_bound_ >= one.lower_bound_
    assert more.encoder_ is not None
    mu = np.split(more.encoder_.encode(backend.get("numpy"), Y - more.mean_), 2, axis=1)[0]
    np.testing.assert_allclose(mu, more.embedding_, atol=1e-10)


def test_a_kernel_without_closed_statistics() -> None:
    model = fitted(data("collapsed", 20), "kernel", kernel=Matern52(1.0, (1.0, 1.0)), max_iter=3)
    assert np.isfinite(model.lower_bound_)


@pytest.mark.parametrize("way", ["collapsed", "minibatch"])
def test_a_fit_on_every_library(case: Case, way: str) -> None:
    Y = data(way, 20)
    given = {"max_iter": 3, "warm_up": 1, "n_epochs": 1, **WAYS[way]}
    model = fitted(case.asarray(Y), "mlp", dtype=case.dtype, **given)
    got = case.to_numpy(model.transform(case.asarray(Y[:4] + 0.01)))
    assert np.all(np.isfinite(got))
    if not case.single:
        plain = fitted(Y, "mlp", **given)
        np.testing.assert_allclose(case.to_numpy(model.embedding_), plain.embedding_, atol=1e-5)
        np.testing.assert_allclose(got, plain.transform(Y[:4] + 0.01), atol=1e-5)


# -- what is refused -------------------------------------------------------------------------------


def test_refusals() -> None:
    Y = data("collapsed")
    for given in ("rbf", 3):
        with pytest.raises(ValueError, match=r"encoder=.* was given; expected None, 'kernel'"):
            BayesianGPLVM(2, encoder=given).fit(Y)
    for way in ({"engine": "serial"}, {"checkpoint": "never.npz"}):
        with pytest.raises(ValueError, match="encoder='mlp' was given with an engine"):
            BayesianGPLVM(2, encoder="mlp", **way).fit(Y)
    gap = Y.copy()
    gap[3, 1] = np.nan
    for way in ({}, {"inference": "minibatch"}):
        with pytest.raises(ValueError, match=r"row 3 has NaN in column 1 \(1 such entries\)"):
            BayesianGPLVM(2, encoder="mlp", **way).fit(gap)
    model = fitted(Y[:30], "mlp", max_iter=2)
    with pytest.raises(ValueError, match="row 3 has NaN"):
        model.partial_fit(gap)
    for other in ("kernel", None):
        with pytest.raises(ValueError, match=r"encoder=.* the model was fitted with MLPEncoder"):
            model.set_params(encoder=other).partial_fit(Y)


# -- scikit-learn ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [
        BayesianGPLVM(2, n_inducing=5, encoder="kernel", max_iter=3),
        BayesianGPLVM(2, n_inducing=5, encoder="mlp", inference="minibatch", n_epochs=2),
    ],
    # fit refuses NaN, but the check wants transform to refuse it too.
    expected_failed_checks=lambda _: {"check_estimators_nan_inf": "transform takes rows with gaps"},
)
def test_conformance(estimator: Any, check: Any) -> None:
    check(estimator)
