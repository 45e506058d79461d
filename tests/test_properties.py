"""Laws that hold for any data, tried on data of hypothesis's choice."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gplvm_xp import backend, init
from gplvm_xp.kernels import (
    RBF,
    ActiveDims,
    Constant,
    Linear,
    Matern32,
    Matern52,
    Periodic,
    Polynomial,
    RationalQuadratic,
    White,
)
from gplvm_xp.objectives import ExactObjective, groups_of
from gplvm_xp.params import Block, Layout
from gplvm_xp.predict import Posterior
from gplvm_xp.priors import Gaussian

quick = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
numbers = st.floats(-3.0, 3.0, allow_subnormal=False)
positive = st.floats(0.2, 5.0)


@st.composite
def kernels(draw, q):
    """A small tree with values of the draw."""
    ell = draw(st.one_of(positive, st.tuples(*[positive] * q)))
    leaves = [
        RBF(draw(positive), ell),
        Matern32(draw(positive), ell),
        Matern52(draw(positive), ell),
        RationalQuadratic(draw(positive), ell, alpha=draw(positive)),
        Linear(ell),
        Polynomial(draw(positive), draw(positive), draw(st.integers(1, 3))),
        Periodic(draw(positive), ell, draw(st.floats(1.0, 5.0))),
        Constant(draw(positive)),
        White(draw(positive)),
        ActiveDims(RBF(draw(positive)), (draw(st.integers(0, q - 1)),)),
    ]
    parts = draw(st.lists(st.sampled_from(leaves), min_size=1, max_size=3))
    kernel = parts[0]
    for part in parts[1:]:
        kernel = kernel * part if draw(st.booleans()) else kernel + part
    return kernel


@st.composite
def problems(draw, missing=False):
    """Latents (n, q), data (n, D) with or without gaps, a kernel, a noise variance."""
    n, D, q = draw(st.integers(2, 9)), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    X = draw(hnp.arrays(np.float64, (n, q), elements=numbers))
    Y = draw(hnp.arrays(np.float64, (n, D), elements=numbers))
    if missing:
        gone = draw(hnp.arrays(np.bool_, (n, D)))
        gone[0] = False
        Y = np.where(gone, np.nan, Y)
    return X, Y, draw(kernels(q)), draw(st.floats(0.1, 2.0))


def objective(kernel, X, Y, noise, **options):
    return ExactObjective(kernel, groups_of(backend.get("numpy"), Y), X, noise, **options)


def value(kernel, X, Y, noise, **options):
    fun = objective(kernel, X, Y, noise, **options)
    f, g = fun.value_and_grad(fun.start())
    return float(f), g, fun


def near(a, b, tight=1e-8):
    scale = max(1.0, float(np.max(np.abs(b), initial=0.0)))
    np.testing.assert_allclose(a, b, rtol=tight, atol=tight * scale)


# -- kernels ---------------------------------------------------------------------------------------


@quick
@given(st.data())
def test_gram_is_symmetric_and_positive_semi_definite(data):
    X, _, kernel, _ = data.draw(problems())
    K = kernel.gram(kernel.theta(), X)
    near(K, K.T, 1e-13)
    assert np.linalg.eigvalsh(K)[0] >= -1e-9 * max(1.0, np.trace(K))
    near(np.diag(K), kernel.diag(kernel.theta(), X), 1e-12)


@quick
@given(st.data())
def test_pullback_is_linear_in_the_cotangent(data):
    X, _, kernel, _ = data.draw(problems())
    n = len(X)
    G, H = data.draw(hnp.arrays(np.float64, (2, n, n), elements=numbers))
    a, b = data.draw(st.tuples(numbers, numbers))
    _, pull = kernel.gram_pullback(kernel.theta(), X)
    left, one, two = pull(a * G + b * H), pull(G), pull(H)
    for got, p, q in zip(left[:2], one[:2], two[:2], strict=True):
        scale = 1.0 + np.abs(p).max() + np.abs(q).max()
        np.testing.assert_allclose(got, a * p + b * q, atol=1e-9 * scale * (1 + abs(a) + abs(b)))


@quick
@given(st.data())
def test_pullback_is_adjoint_to_the_directional_derivative(data):
    X, _, kernel, _ = data.draw(problems())
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    Z = rng.standard_normal((3, X.shape[1]))
    theta = kernel.theta()
    dtheta, dX, dZ = (rng.standard_normal(a.shape) for a in (theta, X, Z))
    G = rng.standard_normal((len(X), 3))
    dK = kernel.gram_jvp(theta, X, Z, dtheta=dtheta, dX=dX, dZ=dZ)
    gtheta, gX, gZ = kernel.gram_pullback(theta, X, Z)[1](G)
    want = gtheta @ dtheta + np.sum(gX * dX) + np.sum(gZ * dZ)
    scale = np.linalg.norm(G) * np.linalg.norm(dK) + 1.0
    assert abs(np.sum(G * dK) - want) <= 1e-10 * scale


@quick
@given(st.data())
def test_a_square_matrix_with_its_own_points_is_the_same_matrix(data):
    """Z = X gives what Z = None gives, but for white noise, which knows the same points."""
    X, _, kernel, _ = data.draw(problems())
    theta = kernel.theta()
    if any(block.name.startswith("white") for block in kernel.blocks()):
        return
    near(kernel.gram(theta, X, X.copy()), kernel.gram(theta, X), 1e-7)


# -- the likelihood --------------------------------------------------------------------------------


@quick
@given(st.data())
def test_order_of_rows_and_columns(data):
    X, Y, kernel, noise = data.draw(problems(missing=True))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    rows, columns = rng.permutation(len(Y)), rng.permutation(Y.shape[1])
    f, g, fun = value(kernel, X, Y, noise)
    f2, g2, fun2 = value(kernel, X[rows], Y[np.ix_(rows, columns)], noise)
    near(f2, f)
    place, place2 = (k.layout.slices()["X"] for k in (fun, fun2))
    near(g2[place2].reshape(X.shape), g[place].reshape(X.shape)[rows], 1e-7)
    near(g2[: place2.start], g[: place.start], 1e-7)


@quick
@given(st.data(), st.floats(0.1, 10.0))
def test_units_of_the_data(data, c):
    """Y → cY with every variance times c²: the density of cY is that of Y over c^(number seen)."""
    X, Y, kernel, noise = data.draw(problems(missing=True))
    f, g, _ = value(1.0 * kernel, X, Y, noise)
    f2, g2, _ = value(c**2 * kernel, X, c * Y, c**2 * noise)
    near(f2, f + np.sum(~np.isnan(Y)) * np.log(c), 1e-7)
    # All positive parameters move by their logarithms, so their gradients are free of units.
    near(g2, g, 1e-6)


@quick
@given(st.data(), st.floats(0.2, 5.0))
def test_gauge(data, c):
    """Stretching latents and lengthscales together changes nothing."""
    X, Y, _, noise = data.draw(problems())
    kind = data.draw(st.sampled_from([RBF, Matern32, Matern52]))
    ell = np.asarray(data.draw(st.tuples(*[positive] * X.shape[1])))
    f, g, fun = value(kind(1.3, tuple(ell)), X, Y, noise)
    f2, _, _ = value(kind(1.3, tuple(c * ell)), c * X, Y, noise)
    near(f2, f, 1e-7)
    # The derivative along the orbit: d ln ℓ = 1 together with dX = X.
    where = fun.layout.slices()
    name = f"{kind.__name__.lower()}.lengthscale"
    along = np.sum(g[where[name]]) + np.sum(g[where["X"]] * X.ravel())
    assert abs(along) <= 1e-8 * (1.0 + np.abs(g).max()) * X.size


@quick
@given(st.data())
def test_shift_and_turn_of_the_latents(data):
    """Isotropic radial kernels see distances only."""
    X, Y, _, noise = data.draw(problems())
    q = X.shape[1]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    turn, _ = np.linalg.qr(rng.standard_normal((q, q)))
    kernel = Matern52(0.8, 1.1) + RBF(0.5, 0.7)
    f, g, fun = value(kernel, X, Y, noise)
    f2, _, _ = value(kernel, X @ turn + rng.standard_normal(q), Y, noise)
    near(f2, f)
    gX = g[fun.layout.slices()["X"]].reshape(X.shape)
    # No force in all, and no torque.
    near(gX.sum(0), np.zeros(q), 1e-8 * (1 + np.abs(gX).max()))
    torque = X.T @ gX
    near(torque, torque.T, 1e-8 * (1 + np.abs(gX).max()))


@quick
@given(st.data())
def test_complete_columns_are_independent(data):
    """The likelihood of a table is the product of its columns', however gaps group them."""
    X, Y, kernel, noise = data.draw(problems(missing=True))
    f, g, _ = value(kernel, X, Y, noise)
    parts = [value(kernel, X, Y[:, [d]], noise)[:2] for d in range(Y.shape[1])]
    near(f, sum(p[0] for p in parts), 1e-8)
    near(g, sum(p[1] for p in parts), 1e-7)


@quick
@given(st.data())
def test_precision_of_the_dtype(data):
    X, Y, kernel, noise = data.draw(problems())
    f, _, _ = value(kernel, X, Y, noise)
    b = backend.get("numpy", dtype="float32")
    fun = ExactObjective(kernel, groups_of(b, Y), X, noise)
    f32, g32 = fun.value_and_grad(fun.start())
    assert f32.dtype == g32.dtype == np.float32
    K = kernel.gram(kernel.theta(), X) + noise * np.eye(len(X))
    allowed = 1e-5 * np.linalg.cond(K) * (1.0 + abs(f) + np.sum(Y * Y) / noise)
    assert abs(float(f32) - f) <= allowed


# -- prediction ------------------------------------------------------------------------------------


@quick
@given(st.data())
def test_data_never_widen_a_prediction(data):
    X, Y, kernel, noise = data.draw(problems(missing=True))
    at = data.draw(hnp.arrays(np.float64, (3, X.shape[1]), elements=numbers))
    b = backend.get("numpy")
    mean, var = Posterior.of(b, kernel, noise, X, Y).moments(at)
    prior = kernel.diag(kernel.theta(), at)
    assert mean.shape == var.shape == (3, Y.shape[1])
    assert np.all(var >= 0.0)
    assert np.all(var <= prior[:, None] * (1 + 1e-9) + 1e-9)
    fewer = Posterior.of(b, kernel, noise, X[:1], Y[:1]).moments(at)[1]
    assert np.all(var <= fewer + 1e-7 * (1.0 + prior[:, None]))


@quick
@given(st.data())
def test_prediction_is_linear_in_the_data(data):
    X, Y, kernel, noise = data.draw(problems())
    W = data.draw(hnp.arrays(np.float64, Y.shape, elements=numbers))
    b = backend.get("numpy")
    means = [Posterior.of(b, kernel, noise, X, T).moments(X)[0] for T in (Y, W, 2.0 * Y - W)]
    near(means[2], 2.0 * means[0] - means[1], 1e-8)


# -- parameters and starts -------------------------------------------------------------------------


@quick
@given(st.data())
def test_layout_round_trip(data):
    shapes = data.draw(st.lists(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3), max_size=4))
    blocks = []
    for i, shape in enumerate(shapes):
        transform = data.draw(st.sampled_from(["log", "identity"]))
        elements = st.floats(0.01, 100.0) if transform == "log" else numbers
        init_value = data.draw(hnp.arrays(np.float64, shape, elements=elements))
        blocks.append(Block(f"b{i}", init_value, transform, fixed=data.draw(st.booleans())))
    layout = Layout(tuple(blocks))
    values, _ = layout.unpack(layout.start())
    assert layout.start().shape == (layout.size,)
    for block in blocks:
        np.testing.assert_allclose(values[block.name], block.value, rtol=1e-14)


@quick
@given(st.data())
def test_starts_have_the_scale_and_signs_that_are_promised(data):
    n, D = data.draw(st.integers(4, 12)), data.draw(st.integers(3, 8))
    Y = data.draw(hnp.arrays(np.float64, (n, D), elements=numbers))
    Y = Y - Y.mean(0)
    X = init.latents("pca", Y, 2, np.random.default_rng(0))
    assert X.shape == (n, 2)
    assert np.all(np.isfinite(X))
    if np.abs(Y).max() > 1e-3:
        assert abs(X.std(0).max() - 1.0) < 1e-9
    for column in X.T:
        assert column.max() >= -column.min() - 1e-9


def test_the_prior_of_the_latents_is_added_once():
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((5, 2)), rng.standard_normal((5, 3))
    bare, _, _ = value(RBF(), X, Y, 0.3)
    full, _, _ = value(RBF(), X, Y, 0.3, latent_prior=Gaussian())
    near(full - bare, 0.5 * np.sum(X * X) + 5 * np.log(2 * np.pi))
