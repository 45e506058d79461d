"""Bad input: each kind gets an error of its own, that says what was seen and what to do."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
from conftest import open_case, why_not
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from gplvm_xp import GPLVM, backend
from gplvm_xp.errors import (
    BackendUnavailableError,
    BackendWarning,
    NotEnoughMemoryError,
    NotPositiveDefiniteError,
)
from gplvm_xp.kernels import (
    RBF,
    ActiveDims,
    Constant,
    Kernel,
    Linear,
    Matern52,
    Periodic,
    Polynomial,
    RationalQuadratic,
    Scale,
    Sum,
    White,
)
from gplvm_xp.objectives import ExactObjective, groups_of
from gplvm_xp.params import Block, Layout
from gplvm_xp.priors import Gamma, Gaussian, LogNormal


def good(n=12, D=5):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, 2)) @ rng.standard_normal((2, D)) + 0.1 * rng.random((n, D))


def spoilt(value, *places):
    Y = good()
    for place in places:
        Y[place] = value
    return Y


def quick(**options):
    return GPLVM(**{"max_iter": 2, **options})


@pytest.fixture(scope="module")
def fitted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return quick().fit(good())


def says(words):
    """A pattern that wants all the words, in any order."""
    return "".join(rf"(?=[\s\S]*{re.escape(word)})" for word in words)


# -- tables ----------------------------------------------------------------------------------------

TABLES = {
    "infinity": (
        lambda: spoilt(-np.inf, (3, 1), (4, 0)), ValueError,
        ["infinity", "row 3", "column 1", "2 such", "NaN"],
    ),
    "one axis": (lambda: good()[:, 0], ValueError, ["2D array", "1D array", "reshape"]),
    "three axes": (lambda: good()[None], ValueError, ["dim 3"]),
    "a number": (lambda: 3.0, ValueError, ["2D array", "scalar"]),
    "words": (
        lambda: np.array([["a", "b", "c"]] * 5), ValueError, ["text", "'a'", "numbers", "drop"],
    ),
    "complex": (lambda: good() + 1j, ValueError, ["Complex data not supported"]),
    "None inside": (lambda: np.full((5, 4), object()), TypeError, ["float()"]),
    "no rows": (lambda: np.empty((0, 4)), ValueError, ["0 sample(s)", "minimum of 1"]),
    "no columns": (lambda: np.empty((5, 0)), ValueError, ["0 feature(s)", "minimum of 1"]),
    "one row": (lambda: good()[:1], ValueError, ["1 sample(s)", "at least 2"]),
    "constant": (lambda: np.full((6, 4), 2.5), ValueError, ["every column", "constant", "check"]),
    "an empty row": (
        lambda: spoilt(np.nan, 3), ValueError, ["row 3", "no observed entry", "remove"],
    ),
    "an empty column": (
        lambda: spoilt(np.nan, (slice(None), 2)), ValueError, ["column 2", "no observed", "remove"],
    ),
    "only NaN": (lambda: np.full((5, 4), np.nan), ValueError, ["row 0", "5 such rows"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables(name):
    make, error, words = TABLES[name]
    with pytest.raises(error, match=says(words)):
        quick().fit(make())


def test_a_sparse_table():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=says(["Sparse data", "dense"])):
        quick().fit(sparse.csr_matrix(good()))


# -- tables that are unusual but fine --------------------------------------------------------------

FINE = {
    "integers": lambda: np.arange(40).reshape(10, 4) ** 2 % 17,
    "booleans": lambda: good() > 0,
    "float32": lambda: good().astype(np.float32),
    "lists": lambda: good().tolist(),
    "numbers as objects": lambda: good().astype(object),
    "Fortran order": lambda: np.asfortranarray(good()),
    "a view": lambda: np.repeat(good(), 2, axis=1)[:, ::2],
    "duplicate rows": lambda: np.repeat(good(6), 2, axis=0),
    "a constant column": lambda: np.c_[good(), np.full(12, 7.0)],
    "huge numbers": lambda: 1e150 * good(),
    "tiny numbers": lambda: 1e-150 * good(),
    "a far offset": lambda: good() + 1e9,
    "more columns than rows": lambda: np.random.default_rng(0).random((6, 40)),
    "gaps": lambda: spoilt(np.nan, (1, 1), (4, 0)),
}


@pytest.mark.parametrize("name", FINE)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_unusual_tables_are_fitted(name):
    model = quick().fit(FINE[name]())
    assert np.all(np.isfinite(model.embedding_))
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    assert np.isfinite(model.log_likelihood_)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("value", [7.0, 0.1])
def test_a_constant_column_is_predicted_as_it_is(scale, value):
    """The mean of 150 times 0.1 is not 0.1: rounding must not be taken for a width."""
    model = quick(scale=scale).fit(np.c_[good(150), np.full(150, value)])
    np.testing.assert_allclose(model.predict(np.zeros((1, 2)))[0, -1], value, rtol=1e-12)
    assert model.scale_[-1] == 1.0


# -- parameters ------------------------------------------------------------------------------------

PARAMETERS = {
    "no component": ({"n_components": 0}, ValueError, ["n_components=0", "1 or more"]),
    "half a component": ({"n_components": 1.5}, ValueError, ["n_components=1.5", "integer"]),
    "True components": ({"n_components": True}, ValueError, ["n_components=True", "integer"]),
    "as many as columns": (
        {"n_components": 5}, ValueError, ["n_components=5", "5 feature(s)", "below 5"],
    ),
    "unknown backend": (
        {"backend": "jax"}, ValueError, ["'jax'", "'numpy'", "'cupy'", "'torch'", "'auto'"],
    ),
    "unknown dtype": ({"dtype": "float16"}, ValueError, ["'float16'", "'float64'", "'float32'"]),
    "unknown optimizer": ({"optimizer": "sgd"}, ValueError, ["'sgd'", "scipy", "lbfgs", "adam"]),
    "unknown gauge": ({"gauge": "loose"}, ValueError, ["'loose'", "'fixed'", "'free'"]),
    "unknown init": ({"init": "tsne"}, ValueError, ["'tsne'", "'pca'", "'isomap'", "(12, 2)"]),
    "init of a wrong shape": (
        {"init": np.zeros((3, 2))}, ValueError, ["(3, 2)", "(12, 2)", "n_components"],
    ),
    "init with NaN": ({"init": np.full((12, 2), np.nan)}, ValueError, ["NaN", "finite"]),
    "init of words": ({"init": [["a", "b"]] * 12}, ValueError, ["could not convert"]),
    "unknown latent prior": (
        {"latent_prior": "flat"}, ValueError, ["'flat'", "'gaussian'", "None", "Prior"],
    ),
    "a latent prior on positive numbers only": (
        {"latent_prior": Gamma()}, ValueError, ["Gamma", "positive", "Gaussian"],
    ),
    "unknown prior name": (
        {"priors": {"rbf.scale": Gamma()}}, ValueError, ["rbf.scale", "rbf.variance", "noise"],
    ),
    "no prior at all": ({"priors": {"noise": 3.0}}, TypeError, ["noise", "float", "Prior"]),
    "a class for a kernel": ({"kernel": RBF}, TypeError, ["kernel", "RBF()"]),
    "words for a kernel": ({"kernel": "rbf"}, TypeError, ["str", "gplvm_xp.kernels"]),
    "active dimension too large": (
        {"kernel": ActiveDims(RBF(), (0, 2))}, ValueError, ["dimension 2", "n_components"],
    ),
    "too many lengthscales": (
        {"kernel": RBF(1.0, (1.0, 1.0, 1.0))}, ValueError, ["3 values", "lengthscale", "2", "give"],
    ),
    "negative noise": (
        {"noise_variance": -1.0}, ValueError, ["noise_variance=-1.0", "positive"],
    ),
    "no noise": ({"noise_variance": 0.0}, ValueError, ["noise_variance=0.0", "positive"]),
    "noise in words": ({"noise_variance": "low"}, ValueError, ["'low'", "positive finite"]),
    "negative jitter": ({"jitter": -1e-6}, ValueError, ["jitter=-1e-06", "0 or more"]),
    "infinite jitter": ({"jitter": np.inf}, ValueError, ["jitter=inf"]),
    "negative restarts": ({"n_restarts": -1}, ValueError, ["n_restarts=-1", "0 or more"]),
    "negative steps": ({"max_iter": -1}, ValueError, ["max_iter=-1", "0 or more"]),
    "negative tolerance": ({"tol": -1.0}, ValueError, ["tol=-1.0", "0 or more"]),
    "half a restart": ({"n_restarts": 0.5}, ValueError, ["n_restarts=0.5", "integer"]),
    "steps in words": ({"max_iter": "many"}, ValueError, ["max_iter='many'", "integer"]),
    "no jitter at all": ({"jitter": None}, ValueError, ["jitter=None", "0 or more"]),
    "a list of priors": ({"priors": [Gamma()]}, TypeError, ["list", "mapping", "noise"]),
    "a prior that the gauge would ignore": (
        {"priors": {"rbf.lengthscale": Gamma()}}, ValueError, ["rbf.lengthscale", "gauge='free'"],
    ),
    "negative time": ({"time_limit": -1.0}, ValueError, ["time_limit=-1.0", "0 or more"]),
    "no seed": ({"random_state": "x"}, ValueError, ["'x'", "seed"]),
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    options, error, words = PARAMETERS[name]
    with pytest.raises(error, match=says(words)):
        quick(**options).fit(good())


def test_more_components_than_rows():
    with pytest.raises(ValueError, match=says(["n_components=3", "3 sample(s)", "below 3"])):
        quick(n_components=3).fit(good(3, 8))


def test_two_components_of_two_columns_are_allowed_with_a_warning():
    with (
        pytest.warns(UserWarning, match="nothing is reduced; use n_components=1"),
        pytest.warns(ConvergenceWarning),
    ):
        quick(n_components=2).fit(good()[:, :2])


# -- fitted models ---------------------------------------------------------------------------------

CALLS = {
    "transform of other columns": (
        lambda m: m.transform(good()[:, :4]), ValueError, ["4 features", "5 features"],
    ),
    "transform of infinity": (lambda m: m.transform(spoilt(np.inf, 0)), ValueError, ["infinity"]),
    "transform of one row": (lambda m: m.transform(good()[0]), ValueError, ["1D array"]),
    "latents with NaN": (
        lambda m: m.predict(np.array([[0.0, np.nan]])), ValueError, ["NaN", "finite"],
    ),
    "latents of other width": (
        lambda m: m.predict(np.zeros((3, 3))), ValueError, ["3 features", "5 features"],
    ),
    "one latent": (lambda m: m.predict(np.zeros(2)), ValueError, ["1D array"]),
    "score of other columns": (lambda m: m.score(good()[:, :4]), ValueError, ["4 features"]),
    "negative number of samples": (lambda m: m.sample(-1), ValueError, ["n_samples=-1"]),
    "data in inverse_transform": (
        lambda m: m.inverse_transform(good()), ValueError, ["expected latents (N, 2)", "transform"],
    ),
    "half a sample": (lambda m: m.sample(1.5), ValueError, ["n_samples=1.5", "integer"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls_on_a_fitted_model(fitted, name):
    call, error, words = CALLS[name]
    with pytest.raises(error, match=says(words)):
        call(fitted)


@pytest.mark.parametrize(
    "method",
    ["transform", "predict", "inverse_transform", "score", "score_samples"],
)
def test_not_fitted(method):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(GPLVM(), method)(good())
    for call in (GPLVM().leave_one_out, GPLVM().sample, GPLVM().relevance):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            call()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_no_samples_without_a_prior():
    model = quick(latent_prior=None).fit(good())
    with pytest.raises(ValueError, match=says(["latent_prior=None", "'gaussian'", "predict"])):
        model.sample()


# -- kernels, priors and parameters ----------------------------------------------------------------

PIECES = {
    "negative variance": (lambda: RBF(-1.0), ["rbf.variance", "-1.0", "positive finite"]),
    "no lengthscale": (lambda: RBF(1.0, 0.0), ["rbf.lengthscale", "0.0", "positive finite"]),
    "one bad lengthscale": (lambda: Matern52(1.0, (1.0, -2.0)), ["lengthscale", "-2.0"]),
    "NaN": (lambda: Linear(np.nan), ["linear.variance", "nan", "positive finite"]),
    "infinite period": (lambda: Periodic(period=np.inf), ["periodic.period", "inf"]),
    "negative alpha": (lambda: RationalQuadratic(alpha=-1.0), ["alpha", "-1.0", "positive"]),
    "negative factor": (lambda: -2.0 * RBF(), ["scale.factor", "-2.0", "positive"]),
    "degree zero": (lambda: Polynomial(degree=0), ["degree=0", "1 or more"]),
    "half a degree": (lambda: Polynomial(degree=1.5), ["degree=1.5", "integer"]),
    "negative white noise": (lambda: White(-0.1), ["white.variance", "-0.1"]),
    "two variances": (lambda: RBF((1.0, 2.0)), ["variance=(1.0, 2.0)", "one number"]),
    "two periods": (lambda: Periodic(period=(1.0, 2.0)), ["period=(1.0, 2.0)", "one number"]),
    "fixed in words": (lambda: RBF(fixed="variance"), ["'variance'", "tuple"]),
    "unknown fixed": (lambda: RBF(fixed=("scale",)), ["'scale'", "'variance'", "'lengthscale'"]),
    "unknown fixed of Linear": (lambda: Linear(fixed=("bias",)), ["'bias'", "'variance'"]),
    "unknown fixed of Polynomial": (lambda: Polynomial(fixed=("x",)), ["'x'", "'bias'"]),
    "unknown fixed of Periodic": (lambda: Periodic(fixed=("x",)), ["'x'", "'period'"]),
    "unknown fixed of Constant": (lambda: Constant(fixed=("x",)), ["'x'", "Constant"]),
    "unknown fixed of Scale": (lambda: Scale(RBF(), 1.0, ("x",)), ["'x'", "'factor'"]),
    "repeated dimensions": (lambda: ActiveDims(RBF(), (0, 0)), ["(0, 0)", "different"]),
    "negative dimension": (lambda: ActiveDims(RBF(), (-1,)), ["(-1,)", "non-negative"]),
    "no dimension": (lambda: ActiveDims(RBF(), ()), ["()", "one or more"]),
    "lengthscales and dimensions": (
        lambda: ActiveDims(RBF(1.0, (1.0, 1.0)), (0,)), ["2 values", "1 dimension"],
    ),
    "a sum of one": (lambda: Sum((RBF(),)), ["Sum", "two or more"]),
    "a sum of numbers": (lambda: Sum((RBF(), 1.0)), ["Sum", "kernels", "1.0"]),
    "negative sd": (lambda: Gaussian(0.0, -1.0), ["Gaussian", "'sd': -1.0", "positive"]),
    "negative sigma": (lambda: LogNormal(0.0, 0.0), ["LogNormal", "'sigma': 0.0"]),
    "negative rate": (lambda: Gamma(2.0, -1.0), ["Gamma", "'rate': -1.0"]),
    "infinite shape": (lambda: Gamma(np.inf), ["Gamma", "'shape': inf"]),
    "equal names": (lambda: Layout((Block("a", 1.0), Block("a", 2.0))), ["differ", "'a'"]),
}  # fmt: skip


@pytest.mark.parametrize("name", PIECES)
def test_pieces(name):
    make, words = PIECES[name]
    with pytest.raises(ValueError, match=says(words)):
        make()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Scale("rbf"), ["Scale", "'rbf'", "RBF()"]),
        (lambda: ActiveDims(RBF, (0,)), ["ActiveDims", "RBF()"]),
        (lambda: ActiveDims(RBF(), 1), ["dims=1", "(0,)"]),
        (lambda: ActiveDims(RBF(), (0.5,)), ["dims=(0.5,)", "indices"]),
    ],
    ids=["no kernel to scale", "a class to restrict", "one dimension", "half a dimension"],
)
def test_pieces_of_a_wrong_type(make, words):
    with pytest.raises(TypeError, match=says(words)):
        make()


SHAPES = {
    "X with one axis": (lambda k, X: k.gram(k.theta(), X[:, 0]), ["(6,)", "two axes"]),
    "Z of other width": (lambda k, X: k.gram(k.theta(), X, X[:, :1]), ["(6, 1)", "(m, 2)"]),
    "theta too short": (lambda k, X: k.gram(np.ones(2), X), ["(2,)", "(3,)", "rbf.lengthscale[2]"]),
    "too few columns": (lambda k, X: k.gram(k.theta(), X[:, :1]), ["2 values", "1 dimension"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_given_to_kernels(name):
    call, words = SHAPES[name]
    with pytest.raises(ValueError, match=says(words)):
        call(RBF(1.0, (1.0, 2.0)), np.zeros((6, 2)))


def test_names_given_to_the_objective():
    groups = groups_of(backend.get("numpy"), good())
    for options in ({"held": frozenset({"rbf.scale"})}, {"priors": {"rbf.scale": Gamma()}}):
        with pytest.raises(ValueError, match=says(["rbf.scale", "rbf.variance", "noise"])):
            ExactObjective(RBF(), groups, good()[:, :2], 0.1, **options)


@pytest.mark.parametrize("method", ["gram", "gram_pullback", "input_jacobian"])
def test_arrays_of_two_libraries(method):
    xp = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    kernel = RBF()
    with pytest.raises(TypeError, match=says(["numpy.ndarray", "array_api_strict", "convert"])):
        getattr(kernel, method)(kernel.theta(), xp.asarray(good()))


def test_what_is_no_array_at_all():
    with pytest.raises(TypeError, match=says(["builtins.list", "numpy.asarray"])):
        backend.of([1.0, 2.0])
    with pytest.raises(TypeError):
        RBF().gram([1.0, 1.0], [[0.0, 1.0]])


def test_a_kernel_without_its_methods_can_not_be_made():
    class Empty(Kernel):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Empty()


# -- machines --------------------------------------------------------------------------------------


def test_not_enough_memory_is_refused_before_anything_is_allocated(monkeypatch):
    kind = type(backend.get("numpy"))
    monkeypatch.setattr(kind, "memory_available", lambda self: 1000)

    def refuse(self, shape):
        raise AssertionError("allocated")

    monkeypatch.setattr(kind, "empty", refuse)
    n_bytes = str(8 * 12 * 12)
    words = [n_bytes, "GiB", "12 rows", "fewer rows", "float32", "numpy"]
    with pytest.raises(NotEnoughMemoryError, match=says(words)):
        quick().fit(good())
    assert issubclass(NotEnoughMemoryError, MemoryError)


def test_memory_for_predictions_is_asked_for_before_the_search(monkeypatch):
    """With gaps, predictions need a matrix a pattern, where the search needs one."""
    kind = type(backend.get("numpy"))
    monkeypatch.setattr(kind, "memory_available", lambda self: 8 * 12 * 12 + 1)
    steps = []
    with pytest.raises(NotEnoughMemoryError, match=says(["3 missing-data pattern(s)", "bytes"])):
        quick(callback=lambda p: steps.append(p.step)).fit(spoilt(np.nan, (1, 1), (4, 0)))
    assert steps == []


def test_cupy_without_a_gpu(monkeypatch):
    if backend.why_no_gpu() is None:
        pytest.skip("there is a GPU")
    words = ["backend='cupy'", backend.why_no_gpu(), "pip install 'gplvm-xp[cuda13]'", "'auto'"]
    with pytest.raises(BackendUnavailableError, match=says(words)):
        quick(backend="cupy").fit(good())


def test_auto_falls_back_and_says_so_once():
    if backend.why_no_gpu() is None:
        pytest.skip("there is a GPU")
    backend._say_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            model = quick(backend="auto").fit(good())
    said = [w for w in caught if issubclass(w.category, BackendWarning)]
    assert len(said) == 1
    assert backend.why_no_gpu() in str(said[0].message)
    assert isinstance(model.embedding_, np.ndarray)


def test_torch_that_is_missing(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [m for m in sys.modules if m.startswith("array_api_compat.torch")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        BackendUnavailableError, match=says(["torch", "pip install torch", "numpy"])
    ):
        backend.get("torch")


def test_singular_after_the_whole_schedule():
    words = ["Cholesky", "jitter of up to", "noise_variance", "duplicate rows"]
    with pytest.raises(NotPositiveDefiniteError, match=says(words)):
        quick(kernel=Constant(1e40), noise_variance=1e-12).fit(good())


def test_mixed_libraries_given_to_a_fitted_model(fitted):
    """The answer comes back in the library of the question, whatever the model was fitted on."""
    if why_not("strict-device1-f64"):
        pytest.skip(why_not("strict-device1-f64"))
    with open_case("strict-device1-f64") as case:
        rows = case.asarray(good()[:3] + 0.01)
        out = fitted.transform(rows)
        assert type(out) is type(rows)
        np.testing.assert_allclose(case.to_numpy(out), fitted.transform(good()[:3] + 0.01))
