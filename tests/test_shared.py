"""Several views of one set of latents: the objective, its gauge, its starts, and new rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gplvm_xp import backend
from gplvm_xp.errors import NotEnoughMemoryError
from gplvm_xp.estimators._shared_start import (
    first_kernels,
    latent_dims,
    scale_sets,
    shared_latents,
)
from gplvm_xp.kernels import RBF, ActiveDims, Linear, Matern52, Periodic, White
from gplvm_xp.objectives import ExactObjective, groups_of
from gplvm_xp.objectives.shared import SharedObjective, UnitWidth, View
from gplvm_xp.optim.modes import mixture
from gplvm_xp.predict import NewRows, Posterior
from gplvm_xp.priors import Gamma, Gaussian, LogNormal
from gplvm_xp.testing import check_gradient

# Of four latents: two shared ones, and one for each of two views.
KERNELS = {
    "private": (
        ActiveDims(RBF(1.3, (0.8, 1.3, 1.1)), (0, 1, 2)),
        ActiveDims(Matern52(0.9, 1.2) + White(0.1), (0, 1, 3)),
    ),
    "all": (RBF(1.3, (0.8, 1.3, 1.1, 2.0)), RBF(0.7, (1.1, 0.6, 2.5, 0.9)) + Linear(0.3)),
}
SETS = ((0,), (1, 3))
NOISES = (0.3, 0.2)
PRIORS = {"a.rbf.variance": Gamma(2.0, 1.5), "b.noise": LogNormal(-2.0, 1.0)}
LOOSE = {"rtol": 3e-3, "step": 1e-1}
TIGHT = {"rtol": 1e-7, "step": 4e-3}


def data(n=10, D=(4, 3), q=4, seed=0, missing=False):
    rng = np.random.default_rng(seed)
    X, views = rng.standard_normal((n, q)), [rng.standard_normal((n, d)) for d in D]
    if missing:
        # Rows that a view lacks, and an entry that is missing beside them.
        views[0][:2] = np.nan
        views[1][7:] = np.nan
        views[1][3, 1] = np.nan
    return X, [Y - np.nanmean(Y, axis=0) for Y in views]


def objective(b, kernels, X, views, noises=NOISES, jitter=1e-3, names="ab", **options):
    parts = zip(names, kernels, views, noises, strict=True)
    tables = tuple(View(name, k, groups_of(b, Y), s, jitter) for name, k, Y, s in parts)
    return SharedObjective(tables, X, **options)


def log_density(kernel, X, Y, noise):
    """Column after column, by SciPy."""
    total = 0.0
    for y in Y.T:
        rows = np.flatnonzero(~np.isnan(y))
        K = kernel.gram(kernel.theta(), X[rows]) + noise * np.eye(rows.size)
        total += stats.multivariate_normal(cov=K).logpdf(y[rows])
    return total


# -- the objective ---------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("name", KERNELS)
def test_value_against_scipy(case, name, missing):
    X, views = data(missing=missing)
    fun = objective(
        case.backend, KERNELS[name], X, views, latent_prior=Gaussian(0.2, 1.5), priors=PRIORS
    )
    f, g = fun.value_and_grad(fun.start())
    parts = zip(KERNELS[name], views, NOISES, strict=True)
    want = sum(log_density(kernel, X, Y, noise + 1e-3) for kernel, Y, noise in parts)
    want += stats.norm(0.2, 1.5).logpdf(X).sum() + stats.gamma(2.0, scale=1 / 1.5).logpdf(1.3)
    want += stats.lognorm(1.0, scale=np.exp(-2.0)).logpdf(0.2)
    np.testing.assert_allclose(case.to_numpy(f), -want, rtol=case.tolerance(1e-12, 2e-5))
    assert f.shape == ()
    assert g.shape == (fun.layout.size,)
    assert f.dtype == g.dtype == case.backend.dtype


@pytest.mark.parametrize("unit", [False, True], ids=["points", "unit-width"])
@pytest.mark.parametrize(("name", "missing"), [("private", True), ("all", False)])
def test_gradient_against_differences(case, name, missing, unit):
    X, views = data(missing=missing)
    fun = objective(
        case.backend, KERNELS[name], UnitWidth(X, SETS) if unit else X, views,
        latent_prior=Gaussian(0.3, 0.8), priors=PRIORS,
    )  # fmt: skip
    check_gradient(fun.value_and_grad, fun.start(), **(LOOSE if case.single else TIGHT))


@pytest.mark.parametrize("name", KERNELS)
def test_gradient_against_autograd(name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from test_kernels import torch_gram

    X, views = data(n=12)
    kernels = (KERNELS[name][0], KERNELS["all"][1])
    fun = objective(
        backend.get("numpy"), kernels, UnitWidth(X, SETS), views, latent_prior=Gaussian(0.0, 1.3)
    )
    f, g = fun.value_and_grad(fun.start())
    x = torch.tensor(fun.start(), requires_grad=True)
    R = x[-X.size :].reshape(X.shape)
    scale = torch.ones(4, dtype=x.dtype)
    for columns in SETS:
        width = torch.sqrt(R[:, list(columns)].var(dim=0, correction=0).mean())
        scale = torch.where(torch.isin(torch.arange(4), torch.tensor(columns)), width, scale)
    Z, total, place = R / scale, 0.0, 0
    for kernel, Y in zip(kernels, views, strict=True):
        theta, noise = torch.exp(x[place : place + kernel.size]), torch.exp(x[place + kernel.size])
        place += kernel.size + 1
        K = torch_gram(torch, kernel, theta, Z, None)
        K = K + (noise + 1e-3) * torch.eye(len(X), dtype=x.dtype)
        law = torch.distributions.MultivariateNormal(torch.zeros(len(X), dtype=x.dtype), K)
        total = total + law.log_prob(torch.tensor(Y).mT).sum()
    number = torch.tensor([0.0, 1.3], dtype=x.dtype)
    total = total + torch.distributions.Normal(*number).log_prob(Z).sum()
    (-total).backward()
    want = x.grad.numpy()
    np.testing.assert_allclose(f, -total.detach().numpy(), rtol=1e-11)
    np.testing.assert_allclose(g, want, rtol=1e-9, atol=1e-9 * np.abs(want).max())


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_one_view_is_the_exact_objective(case, missing):
    X, views = data(missing=missing)
    b, kernel, Y = case.backend, KERNELS["all"][1], views[1]
    shared = objective(b, [kernel], X, [Y], [0.3], names="a", latent_prior=Gaussian())
    exact = ExactObjective(kernel, groups_of(b, Y), X, 0.3, Gaussian(), jitter=1e-3)
    pairs = zip(
        shared.value_and_grad(shared.start()), exact.value_and_grad(exact.start()), strict=True
    )
    for got, want in pairs:
        np.testing.assert_array_equal(case.to_numpy(got), case.to_numpy(want))


def test_identical_kernels_are_one_wide_table(case):
    """Tables with the same parameters: as one of all columns, its gradients divided among them."""
    X, views = data()
    b, kernel = case.backend, KERNELS["all"][0]
    fun = objective(b, [kernel, kernel], X, views, (0.3, 0.3), latent_prior=Gaussian())
    wide = ExactObjective(kernel, groups_of(b, np.hstack(views)), X, 0.3, Gaussian(), jitter=1e-3)
    f, g = (case.to_numpy(a) for a in fun.value_and_grad(fun.start()))
    want_f, want_g = (case.to_numpy(a) for a in wide.value_and_grad(wide.start()))
    tight = case.tolerance(1e-12, 1e-4)
    np.testing.assert_allclose(f, want_f, rtol=tight)
    p = kernel.size + 1
    got = np.concatenate([g[:p] + g[p : 2 * p], g[2 * p :]])
    np.testing.assert_allclose(got, want_g, rtol=10 * tight, atol=10 * tight * np.abs(g).max())


def test_a_private_dimension_has_the_gradient_of_its_own_view():
    X, views = data()
    b = backend.get("numpy")
    fun = objective(b, KERNELS["private"], X, views)
    g = fun.value_and_grad(fun.start())[1][-X.size :].reshape(X.shape)
    alone = objective(b, KERNELS["private"][:1], X, views[:1], NOISES[:1], names="a")
    own = alone.value_and_grad(alone.start())[1][-X.size :].reshape(X.shape)
    np.testing.assert_allclose(g[:, 2], own[:, 2], rtol=1e-12)
    assert np.all(own[:, 3] == 0.0)
    assert np.all(g[:, :2] != own[:, :2])


def test_one_buffer_for_all_views(monkeypatch):
    X, views = data(missing=True)
    b = backend.get("numpy")
    fun = objective(b, KERNELS["private"], X, views)
    assert fun.buffer.shape == (64,)  # eight rows are the most that a group has
    monkeypatch.setattr(type(b), "memory_available", lambda self: 500)
    with pytest.raises(NotEnoughMemoryError, match="the exact likelihood of 8 rows needs"):
        objective(b, KERNELS["private"], X, views)


def test_repeated_calls_are_bitwise_equal(case):
    X, views = data(missing=True)
    fun = objective(case.backend, KERNELS["private"], UnitWidth(X, SETS), views)
    x = fun.start()
    first = [case.to_numpy(a) for a in fun.value_and_grad(x)]
    fun.value_and_grad(x + 0.3)
    again = [case.to_numpy(a) for a in fun.value_and_grad(x)]
    assert first[0] == again[0]
    np.testing.assert_array_equal(first[1], again[1])


def test_held_blocks_leave_the_vector_and_values_has_them(case):
    X, views = data()
    fun = objective(case.backend, KERNELS["private"], X, views, held=frozenset({"a.noise", "X"}))
    names = ["a.rbf.variance", "a.rbf.lengthscale", "b.matern52.variance", "b.matern52.lengthscale",
             "b.white.variance", "b.noise"]  # fmt: skip
    assert [block.name for block in fun.layout.blocks] == names
    learned, Z = fun.values(fun.start())
    close = {"rtol": case.tolerance(1e-14, 1e-6)}
    for kernel, noise, (theta, own) in zip(KERNELS["private"], NOISES, learned, strict=True):
        np.testing.assert_allclose(case.to_numpy(theta), kernel.theta(), **close)
        np.testing.assert_allclose(case.to_numpy(own), noise, **close)
    np.testing.assert_allclose(case.to_numpy(Z), X, **close)
    check_gradient(fun.value_and_grad, fun.start(), **(LOOSE if case.single else TIGHT))


def test_what_does_not_fit_is_an_error():
    X, views = data()
    b = backend.get("numpy")
    for options in ({"priors": {"rbf.variance": Gamma()}}, {"held": frozenset({"c.noise"})}):
        with pytest.raises(ValueError, match=r"names \['.*'\]; the parameters are \['a.rbf"):
            objective(b, KERNELS["private"], X, views, **options)
    with pytest.raises(ValueError, match="names must differ"):
        objective(b, KERNELS["private"], X, views, names="aa")
    with pytest.raises(ValueError, match="ActiveDims uses dimension 3"):
        objective(b, KERNELS["private"], X[:, :3], views)


def test_no_factor_is_a_value_and_not_an_exception(case):
    X, views = data()
    fun = objective(case.backend, KERNELS["private"], X, views)
    x = np.asarray(fun.layout.start())
    x[fun.layout.slices()["b.matern52.variance"]] = 2000.0
    f, g = fun.value_and_grad(case.asarray(x))
    assert case.to_numpy(f) == np.inf
    assert g.shape == x.shape


# -- the gauge -------------------------------------------------------------------------------------


def test_unit_width(case):
    X = data()[0] * np.array([3.0, 0.5, 2.0, 7.0]) + 1.0
    where = UnitWidth(X, SETS)
    Z, pull = where.positions({"X": case.asarray(X)})
    Z = case.to_numpy(Z)
    tight = case.tolerance(1e-13, 1e-5)
    np.testing.assert_allclose(Z[:, 0].std(), 1.0, rtol=tight)
    np.testing.assert_allclose(np.mean(Z[:, [1, 3]].var(axis=0)), 1.0, rtol=tight)
    np.testing.assert_allclose(Z[:, 1].std() / Z[:, 3].std(), X[:, 1].std() / X[:, 3].std(),
                               rtol=tight)  # fmt: skip
    np.testing.assert_allclose(Z[:, 2], X[:, 2], rtol=tight)
    # Along its own scale a set does not move, whatever the cotangent.
    g = case.to_numpy(pull(case.asarray(np.random.default_rng(1).standard_normal(X.shape)))["X"])
    for columns in SETS:
        part = list(columns)
        along = np.sum(g[:, part] * X[:, part])
        assert abs(along) < case.tolerance(1e-12, 1e-3) * np.abs(g * X).sum()
    assert where.shape == X.shape


def test_the_scale_of_the_parameters_does_not_matter():
    X, views = data()
    b = backend.get("numpy")
    values = []
    for stretch in (1.0, np.array([0.1, 30.0, 1.0, 30.0])):
        fun = objective(b, KERNELS["all"], UnitWidth(X * stretch, SETS), views,
                        latent_prior=Gaussian())  # fmt: skip
        values.append(float(fun.value_and_grad(fun.start())[0]))
    np.testing.assert_allclose(values[1], values[0], rtol=1e-12)


def test_which_latents_share_a_scale():
    dims = latent_dims(2, (1, 0, 2))
    assert dims == [(0, 1, 2), (0, 1), (0, 1, 3, 4)]
    ard = [ActiveDims(RBF(1.0, (1.0,) * len(seen)), seen) for seen in dims]
    alone = ((0,), (1,), (2,), (3,), (4,))
    assert scale_sets(ard, dims, 5) == alone
    common = [*ard[:2], ActiveDims(RBF(1.0, 1.0), dims[2])]
    assert scale_sets(common, dims, 5) == ((0, 1, 3, 4), (2,))
    # What is fixed, or has no lengthscale at all, ties the latents to its own units.
    fixed = [*ard[:2], ActiveDims(RBF(1.0, (1.0,) * 4, fixed=("lengthscale",)), dims[2])]
    assert scale_sets(fixed, dims, 5) == ((2,),)
    assert scale_sets([*ard[:2], White()], dims, 5) == ((2,),)
    mixed = [ard[0], ActiveDims(RBF(1.0, (1.0, 1.0)) * Periodic(), (0, 1)), ard[2]]
    assert scale_sets(mixed, dims, 5) == ((0, 1), (2,), (3,), (4,))


@pytest.mark.parametrize("gauge", ["fixed", "free"])
def test_default_kernels(gauge):
    """Two rows at the usual distance have a covariance of e^(−½), whatever d and the gauge."""
    X = np.random.default_rng(0).standard_normal((400, 3)) * np.array([1.0, 0.2, 0.5])
    dims = latent_dims(2, (1, 0))
    given = [None, Matern52(1.0, 0.7)]
    (first, second), sets = first_kernels(given, [4.0, 9.0], dims, X, gauge)
    assert second == ActiveDims(Matern52(1.0, 0.7), (0, 1))
    assert isinstance(first, RBF)
    assert first.variance == 4.0
    assert sets == (((0, 1), (2,)) if gauge == "fixed" else ())
    Z = UnitWidth(X, sets).positions({"X": X})[0]
    u = np.mean(np.sum(((Z[::2] - Z[1::2]) / first.lengthscale) ** 2, axis=1))
    np.testing.assert_allclose(u, 1.0, rtol=0.1)


# -- starting latents ------------------------------------------------------------------------------


def linear_views(n=200, seed=0):
    """Each view is ruled by directions of its own; what is common to both is narrow."""
    rng = np.random.default_rng(seed)
    common, own = rng.standard_normal((n, 1)), [rng.standard_normal((n, 2)) for _ in range(2)]
    views = [
        common @ rng.standard_normal((1, 6)) + 4.0 * P @ rng.standard_normal((2, 6)) for P in own
    ]
    views = [Y + 0.05 * rng.standard_normal(Y.shape) for Y in views]
    return common, own, [u * (Y - Y.mean(0)) for u, Y in zip((1.0, 1e4), views, strict=True)]


def explained(X, T):
    """Share of the variance of T (n, k) that columns X explain linearly."""
    A = X - X.mean(axis=0)
    T = T - T.mean(axis=0)
    rest = T - A @ np.linalg.lstsq(A, T, rcond=None)[0]
    return 1.0 - np.sum(rest**2) / np.sum(T**2)


def test_cca_starts_at_what_the_views_have_in_common():
    common, own, views = linear_views()
    rng = np.random.default_rng(0)
    X = shared_latents("cca", views, 1, (2, 2), rng)
    assert X.shape == (200, 5)
    assert explained(X[:, :1], common) > 0.98
    assert explained(X[:, 1:3], own[0]) > 0.98
    assert explained(X[:, 3:], own[1]) > 0.98
    np.testing.assert_allclose(X.std(axis=0).max(), 1.0)
    assert explained(shared_latents("pca", views, 1, (2, 2), rng)[:, :1], common) < 0.5
    np.testing.assert_array_equal(X, shared_latents("auto", views, 1, (2, 2), rng))


def test_pca_start_with_gaps_and_without_private_dimensions():
    _, _, views = linear_views()
    rng = np.random.default_rng(0)
    whole = shared_latents("auto", views, 5, (0, 0), rng)
    np.testing.assert_array_equal(whole, shared_latents("pca", views, 5, (0, 0), rng))
    views[0][::4] = np.nan
    views[1][1::4, 2] = np.nan
    part = shared_latents("pca", views, 5, (0, 0), rng)
    # Six columns of one view determine the latents of the other's five dimensions roughly.
    kept = [i for i in range(200) if i % 4]
    assert explained(part[kept], whole[kept]) > 0.95


def test_directions_without_data_start_at_random():
    rng = np.random.default_rng(0)
    flat = np.outer(rng.standard_normal(30), [1.0, 2.0])
    X = shared_latents("auto", [flat - flat.mean(0), flat - flat.mean(0)], 1, (1, 1), rng)
    assert np.all(X.std(axis=0) > 0.01)


# -- new rows --------------------------------------------------------------------------------------


def test_mixture_against_its_closed_form(case):
    """Gaussian likelihoods and a prior of Gaussians: everything is known."""
    b, rng = case.backend, np.random.default_rng(0)
    N, K, d = 4, 3, 2
    A = rng.standard_normal((N, d, 3))
    A = A @ A.transpose(0, 2, 1) + 0.5 * np.eye(d)
    y, width = rng.standard_normal((N, d)), np.array([0.4, 1.3])
    anchors = [rng.standard_normal((N, d)) for _ in range(K)]
    At, yt = b.asarray(A), b.asarray(y)

    def fun(x, index):
        away = x - b.xp.take(yt, index, axis=0)
        g = b.xp.sum(b.xp.take(At, index, axis=0) * away[:, None, :], axis=2)
        return 0.5 * b.xp.sum(away * g, axis=1), g

    found = mixture(
        fun, [b.asarray(a) for a in anchors], b.asarray(width),
        max_steps=50, gtol=case.tolerance(1e-9, 1e-4), first_step=0.1,
    )  # fmt: skip
    x, C, weight = (case.to_numpy(a) for a in found)
    assert x.shape == (K, N, d)
    tight = {"rtol": case.tolerance(1e-6, 1e-2), "atol": case.tolerance(1e-7, 2e-3)}
    want = np.empty((K, N))
    for k in range(K):
        for i in range(N):
            own = np.linalg.inv(A[i] + np.diag(width**-2.0))
            np.testing.assert_allclose(C[k, i], own, **tight)
            mode = own @ (A[i] @ y[i] + anchors[k][i] / width**2)
            np.testing.assert_allclose(x[k, i], mode, **tight)
            law = stats.multivariate_normal(anchors[k][i], np.linalg.inv(A[i]) + np.diag(width**2))
            want[k, i] = law.pdf(y[i])
    np.testing.assert_allclose(weight, want / want.sum(axis=0), **tight)


def new_rows(b, missing=False, seed=3, new=5):
    X, views = data(missing=missing)
    rng = np.random.default_rng(seed)
    rows = [rng.standard_normal((new, Y.shape[1])) for Y in views]
    rows[0][1] = np.nan
    rows[1][2] = rows[1][3, 0] = np.nan
    posteriors = [
        Posterior.of(b, kernel, noise, X, Y)
        for kernel, noise, Y in zip(KERNELS["private"], NOISES, views, strict=True)
    ]
    seen = [~np.isnan(Y) for Y in rows]
    parts = [
        NewRows(p, None, b.asarray(np.where(o, Y, 7.0)), b.asarray(o.astype(float)))
        for p, Y, o in zip(posteriors, rows, seen, strict=True)
    ]
    problem = NewRows(posteriors[0], Gaussian(0.1, 1.2), parts[0].Y, parts[0].seen, (parts[1],))
    return problem, posteriors, rows, rng.standard_normal((new, 4))


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_new_rows_of_several_views(case, missing):
    b = case.backend
    problem, posteriors, rows, at = new_rows(b, missing)
    index = b.xp.arange(5, dtype=b.xp.int64, device=b.device)
    f = case.to_numpy(problem.value_and_grad(b.asarray(at), index)[0])
    want = -stats.norm(0.1, 1.2).logpdf(at).sum(axis=1)
    for p, Y, noise in zip(posteriors, rows, NOISES, strict=True):
        m, v = (case.to_numpy(a) for a in p.moments(b.asarray(at)))
        want -= np.nansum(stats.norm(m, np.sqrt(v + noise)).logpdf(Y), axis=1)
    np.testing.assert_allclose(f, want, rtol=case.tolerance(1e-11, 1e-4))

    def total(x):
        f, g = problem.value_and_grad(b.xp.reshape(x, at.shape), index)
        return b.xp.sum(f), b.xp.reshape(g, (-1,))

    loose = {"rtol": 1e-2, "step": 1e-1} if case.single else TIGHT
    check_gradient(total, b.asarray(at.ravel()), **loose)


def test_new_rows_of_two_halves_of_a_table_are_those_of_the_table():
    b = backend.get("numpy")
    rng = np.random.default_rng(1)
    X, kernel = rng.standard_normal((30, 2)), RBF(1.0, 1.0)
    K = kernel.gram(kernel.theta(), X) + 1e-8 * np.eye(30)
    Y = np.linalg.cholesky(K) @ rng.standard_normal((30, 8))
    new = Y[:6] + 0.1 * rng.standard_normal((6, 8))
    whole = NewRows(Posterior.of(b, kernel, 0.01, X, Y), Gaussian(), new, np.ones_like(new))
    left, right = (
        NewRows(Posterior.of(b, kernel, 0.01, X, Y[:, part]), None, new[:, part], np.ones((6, 4)))
        for part in (slice(0, 4), slice(4, 8))
    )
    halves = NewRows(left.posterior, Gaussian(), left.Y, left.seen, (right,))
    for one, two in zip(whole.starts(), halves.starts(), strict=True):
        np.testing.assert_array_equal(one, two)
    (z, f, settled), (z2, f2, settled2) = whole.solve(), halves.solve()
    assert settled.all()
    assert settled2.all()
    np.testing.assert_allclose(f2, f, rtol=1e-9)
    np.testing.assert_allclose(z2, z, atol=1e-6)
    for one, two in zip(whole.laplace(z), halves.laplace(z), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-6)


def test_starts_are_where_training_rows_agree_in_units_of_the_noise():
    """A view of large units and large noise does not outvote a precise one."""
    b = backend.get("numpy")
    X = np.linspace(-2.0, 2.0, 21)[:, None]
    precise, rough = np.sin(X), 1e3 * np.cos(7.0 * X)
    tables = [
        Posterior.of(b, RBF(1.0, 0.5), 1e-6, X, precise),
        Posterior.of(b, RBF(1e6, 0.1), 1e8, X, rough),
    ]
    new = [precise[4:5] + 1e-4, rough[15:16]]
    first, second = (NewRows(p, None, y, np.ones((1, 1))) for p, y in zip(tables, new, strict=True))
    problem = NewRows(first.posterior, Gaussian(), first.Y, first.seen, (second,))
    np.testing.assert_array_equal(problem.starts(1, 1)[0], X[4:5])
