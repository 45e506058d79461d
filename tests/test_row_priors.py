"""Priors that tie rows together: densities, gradients, and what follows from them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from gplvm_xp import backend
from gplvm_xp.errors import NotEnoughMemoryError, NotPositiveDefiniteError
from gplvm_xp.kernels import RBF, Constant, Linear, Matern52
from gplvm_xp.latents import RowFacts, complete
from gplvm_xp.objectives import ExactObjective, groups_of
from gplvm_xp.params import Block, Layout
from gplvm_xp.priors import LogNormal
from gplvm_xp.row_priors import Discriminative, Dynamics, OverTime
from gplvm_xp.row_priors._gaps import Gap, bent, longest
from gplvm_xp.row_priors._process import Process
from gplvm_xp.testing import check_gradient

LENGTHS = np.array([5, 1, 5, 4])
# The third sequence has the time stamps of the first, later.
FIRST = np.array([0.0, 0.25, 0.75, 1.5, 1.625])
TIMES = np.concatenate([FIRST, [0.0], 8.0 + FIRST, [2.0, 2.2, 3.1, 3.2]])
LABELS = np.array([0, 0, 1, 1, 2, -1, 0, 1, 3, -1, 0, 1, 3, 0, -1])
ROWS = RowFacts(15, LENGTHS, TIMES, LABELS, outputs=6)
ONE = RowFacts(15, labels=LABELS, outputs=6)
CASES = {
    "dynamics": (Dynamics(noise_variance=0.1, fixed=()), ROWS),
    "dynamics, steps": (
        Dynamics(Matern52(0.7, (0.5, 1.5)) + Linear(0.3) + Constant(0.2), 0.05, residual=True,
                 weight=2.5, fixed=()), ROWS,
    ),
    "dynamics, one sequence": (Dynamics(noise_variance=0.1, weight=1.0), ONE),
    "time": (OverTime(noise_variance=0.2, fixed=()), ROWS),
    "time, matern": (OverTime(Matern52(1.3, 0.6) + Constant(0.4), 0.1, fixed=()), ROWS),
    "time, frames": (OverTime(noise_variance=0.2), ONE),
    "labels": (Discriminative(0.05), ROWS),
}  # fmt: skip
each_prior = pytest.mark.parametrize("name", CASES)


def latents(seed=0, n=15, q=2):
    return np.random.default_rng(seed).standard_normal((n, q))


def bound(name, X=None, b=None):
    prior, rows = CASES[name]
    X = latents() if X is None else X
    return prior.bind(backend.of(X) if b is None else b, rows, X)


def as_function(prior, X) -> tuple[Layout, Callable]:
    """The density of parameters and latents as one vector, in any library."""
    layout = Layout((*prior.blocks(), Block("X", X, "identity")))

    def fun(x):
        natural, to_gradient = layout.unpack(x)
        values = complete(backend.of(x), prior.blocks(), natural)
        value, gX, own = prior.log_density(values, natural["X"])
        return value, to_gradient({**own, "X": gX})

    return layout, fun


# -- gradients -------------------------------------------------------------------------------------


@each_prior
def test_gradients_against_differences(name):
    X = latents(1)
    layout, fun = as_function(bound(name, X), X)
    check_gradient(fun, layout.start(), directions=4)


def torch_gram(torch, kernel, p, A, B):
    """k(A, B) of a sum of kernels, written from its formula; p holds the parameters by name."""
    total = 0.0
    for part in kernel.parts if hasattr(kernel, "parts") else (kernel,):
        word = type(part).__name__.lower()
        variance = p[f"{word}.variance"]
        if word == "linear":
            total = total + variance * (A[:, None, :] * B[None, :, :]).sum(-1)
        elif word == "constant":
            total = total + variance * torch.ones(len(A), len(B), dtype=A.dtype)
        else:
            d = (A[:, None, :] - B[None, :, :]) / p[f"{word}.lengthscale"]
            u = (d**2).sum(-1)
            # At 0 the root has no slope, and autograd would multiply it by 0.
            r = torch.sqrt(5.0 * torch.where(u > 0, u, torch.ones_like(u))) * (u > 0)
            shape = torch.exp(-0.5 * u) if word == "rbf" else (1 + r + r**2 / 3) * torch.exp(-r)
            total = total + variance * shape
    return total


def torch_dynamics(torch, prior, kernel, p, X, edges, weight):
    """By the chain rule: every frame given the steps before it, in whatever order they come."""
    pairs = [(i, i + 1) for a, z in itertools.pairwise(edges) for i in range(a, z - 1)]
    total = sum(-0.5 * (X[a] ** 2 + math.log(2 * math.pi)).sum() for a in edges[:-1])
    targets = [X[j] - X[i] if prior.residual else X[j] for i, j in pairs]
    for k, (i, _) in enumerate(pairs):
        x = X[i][None, :]
        mean, variance = 0.0, torch_gram(torch, kernel, p, x, x)[0, 0] + p["noise"]
        if k:
            A, T = torch.stack([X[a] for a, _ in pairs[:k]]), torch.stack(targets[:k])
            K = torch_gram(torch, kernel, p, A, A) + p["noise"] * torch.eye(k, dtype=X.dtype)
            c = torch_gram(torch, kernel, p, A, x)
            weights = torch.linalg.solve(K, c)[:, 0]
            mean, variance = weights @ T, variance - weights @ c[:, 0]
        z = (targets[k] - mean) ** 2 / variance
        total = total - 0.5 * (z + torch.log(2 * math.pi * variance)).sum()
    return weight * total


def torch_over_time(torch, kernel, p, X, rows):
    total = 0.0
    for a, z in itertools.pairwise(rows.edges):
        t = torch.asarray(rows.stamps[a:z, None] - rows.stamps[a])
        K = torch_gram(torch, kernel, p, t, t) + p["noise"] * torch.eye(z - a, dtype=X.dtype)
        normal = torch.distributions.MultivariateNormal(torch.zeros(z - a, dtype=X.dtype), K)
        total = total + normal.log_prob(X[a:z].T).sum()
    return total


def torch_labels(torch, variance, X, labels):
    seen = X[torch.asarray(labels >= 0)]
    known = labels[labels >= 0]
    mean = seen.mean(0)
    within = between = 0.0
    for c in np.unique(known):
        mine = seen[torch.asarray(known == c)]
        d = mine - mine.mean(0)
        within = within + d.T @ d / len(known)
        e = (mine.mean(0) - mean)[:, None]
        between = between + len(mine) * e @ e.T / len(known)
    J = torch.trace(torch.linalg.inv(within + 1e-6 * torch.eye(X.shape[1])) @ between)
    return -1 / (variance * J) - 0.5 * (X**2 + math.log(2 * math.pi)).sum()


@each_prior
def test_value_and_gradients_against_torch(name):
    torch = pytest.importorskip("torch")
    prior, rows = CASES[name]
    X = latents(2)
    own = bound(name, X)
    values = {k.name: k.value for k in own.blocks()}
    got, gX, gown = own.log_density(values, X)
    x = torch.tensor(X, requires_grad=True)
    p = {k: torch.tensor(v, requires_grad=True) for k, v in values.items()}
    short = {k.partition(".")[2]: v for k, v in p.items()}
    if isinstance(prior, Dynamics):
        weight = math.sqrt(3.0) if prior.weight is None else prior.weight
        want = torch_dynamics(torch, prior, prior.kernel, short, x, rows.edges, weight)
    elif isinstance(prior, OverTime):
        want = torch_over_time(torch, own.prior.kernel, short, x, rows)
    else:
        want = torch_labels(torch, prior.variance, x, rows.labels)
    want.backward()
    np.testing.assert_allclose(got, want.item(), rtol=1e-11)
    scale = np.abs(x.grad.numpy()).max()
    np.testing.assert_allclose(gX, x.grad.numpy(), rtol=1e-9, atol=1e-10 * scale)
    assert set(gown) == set(p)
    for key, v in p.items():
        np.testing.assert_allclose(gown[key], v.grad.numpy(), rtol=1e-9, err_msg=key)


@each_prior
def test_every_library_gives_the_same(name, case):
    X = latents(3)
    layout, fun = as_function(bound(name, X), X)
    want, slope = fun(layout.start())
    own = bound(name, X, case.backend)
    layout, fun = as_function(own, X)
    x = case.asarray(layout.start())
    got, g = fun(x)
    assert got.dtype == g.dtype == x.dtype
    np.testing.assert_allclose(case.to_numpy(got), want, rtol=case.tolerance(1e-11, 2e-4))
    scale = np.abs(slope).max()
    np.testing.assert_allclose(case.to_numpy(g), slope, atol=case.tolerance(1e-10, 2e-3) * scale)


# -- what the densities say ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dynamics", "time, matern"])
def test_the_order_of_sequences_does_not_matter(name):
    prior, _ = CASES[name]
    X, edges = latents(4), ROWS.edges
    order = [2, 0, 3, 1]
    take = np.concatenate([np.arange(edges[k], edges[k + 1]) for k in order])
    other = RowFacts(15, LENGTHS[order], TIMES[take], outputs=6)
    values = {k.name: k.value for k in bound(name, X).blocks()}
    one, gX, _ = bound(name, X).log_density(values, X)
    two, gother, _ = prior.bind(backend.of(X), other, X[take]).log_density(values, X[take])
    np.testing.assert_allclose(two, one, rtol=1e-12)
    np.testing.assert_allclose(gother, gX[take], rtol=1e-9, atol=1e-10)


def test_no_step_crosses_the_border_of_two_sequences():
    # What one sequence ends with is nothing to the first frame of the next.
    X = latents(5, 4, 1)
    prior = Dynamics(RBF(0.8, 1.1), 0.1, weight=1.0)
    rows = RowFacts(4, np.array([2, 2]))
    own = prior.bind(backend.of(X), rows, X)
    value = own.log_density({k.name: k.value for k in own.blocks()}, X)[0]
    K = 0.8 * np.exp(-0.5 * ((X[[0, 2]] - X[[0, 2]].T) / 1.1) ** 2) + 0.1 * np.eye(2)
    want = stats.multivariate_normal(np.zeros(2), K).logpdf(X[[1, 3], 0])
    want += stats.norm.logpdf(X[[0, 2], 0]).sum()
    np.testing.assert_allclose(value, want, rtol=1e-12)


def test_weight_is_the_root_of_outputs_over_dimensions_by_default():
    X = latents(6)
    values = None
    found = []
    for weight in (None, 1.0):
        own = Dynamics(noise_variance=0.1, weight=weight).bind(backend.of(X), ROWS, X)
        values = {k.name: k.value for k in own.blocks()}
        found.append(own.log_density(values, X)[0])
    np.testing.assert_allclose(found[0], math.sqrt(6 / 2) * found[1], rtol=1e-13)


def test_latents_that_follow_exactly_have_a_density_without_bound():
    # Why the noise is held: a rotation is what a linear kernel can follow without error.
    angle = 0.3 * np.arange(30)
    X = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    b, rows = backend.of(X), RowFacts(30)
    own = Dynamics(Linear(1.0), 1e-2, weight=1.0).bind(b, rows, X)
    (block,) = [k for k in own.blocks() if k.name == "dynamics.noise"]
    assert block.fixed
    assert not [k for k in Dynamics(fixed=()).blocks() if k.fixed]
    values = {k.name: k.value for k in own.blocks()}
    found = [
        float(own.log_density({**values, "dynamics.noise": np.asarray(s)}, X)[0])
        for s in (1e-2, 1e-4, 1e-6)
    ]
    # 29 frames of two dimensions, less the four numbers of the map: 54/2 ln 100 a step.
    np.testing.assert_allclose(np.diff(found), 27 * math.log(100), rtol=1e-2)


def test_time_stamps_count_from_the_beginning_of_a_sequence():
    X = latents(7)
    values = {k.name: k.value for k in bound("time", X).blocks()}
    want = bound("time", X).log_density(values, X)[0]
    moved = RowFacts(15, LENGTHS, TIMES + np.repeat([1e6, 0.0, -40.0, 2.0], LENGTHS), outputs=6)
    prior = CASES["time"][0]
    got = prior.bind(backend.of(X), moved, X).log_density(values, X)[0]
    np.testing.assert_allclose(got, want, rtol=1e-8)


def test_sequences_with_the_same_time_stamps_share_a_factor():
    assert [len(where.T) for _, where in bound("time").groups] == [2, 1, 1]


def test_the_default_lengthscale_is_five_median_steps():
    X = latents(8)
    for rows, step in ((RowFacts(15, times=3.0 * np.arange(15)), 3.0), (ROWS, 0.25), (ONE, 1.0)):
        kernel = OverTime().bind(backend.of(X), rows, X).prior.kernel
        assert kernel.lengthscale == pytest.approx(5.0 * step)
        assert kernel.fixed == ("variance",)


def test_scatters_know_neither_scale_nor_rotation_nor_origin():
    X, A = latents(9), np.array([[2.0, 0.7], [-0.4, 1.1]])
    values = []
    for Z in (X, X @ A + 3.0):
        value = bound("labels", Z).log_density({}, Z)[0]
        values.append(value - stats.norm.logpdf(Z).sum())
    # Up to what is added to the diagonal.
    np.testing.assert_allclose(values[1], values[0], rtol=1e-5)


def test_rows_without_a_label_feel_the_gaussian_only():
    X = latents(10)
    gX = bound("labels", X).log_density({}, X)[1]
    without = LABELS < 0
    np.testing.assert_allclose(gX[without], -X[without], rtol=1e-12)
    assert np.all(np.abs(gX[~without] + X[~without]) > 1e-8)


def test_apart_is_more_probable_than_mixed():
    labels = np.repeat([0, 1], 10)
    rng = np.random.default_rng(11)
    near = 0.1 * rng.standard_normal((20, 2)) + np.where(labels, 1.0, -1.0)[:, None]
    mixed = near[rng.permutation(20)]
    own = Discriminative(0.01).bind(backend.of(near), RowFacts(20, labels=labels), near)
    assert own.log_density({}, near)[0] > own.log_density({}, mixed)[0] + 10


# -- failures and refusals -------------------------------------------------------------------------


@each_prior
def test_failure_is_a_value(name):
    X = latents(12)
    X[3, 1] = np.nan
    own = bound(name, latents(12))
    value, _, _ = own.log_density({k.name: k.value for k in own.blocks()}, X)
    assert not np.isfinite(value)


def test_a_covariance_without_a_factor_is_a_value_too(case):
    X = np.ones((6, 2))
    own = Dynamics(Linear(1.0), 1e-2).bind(case.backend, RowFacts(6), X)
    values = {k.name: case.asarray(k.value) for k in own.blocks()}
    values["dynamics.noise"] = case.asarray(-1e-3)
    assert np.isnan(case.to_numpy(own.log_density(values, case.asarray(X))[0]))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Dynamics(weight=0.0), "weight=0.0 was given; expected a positive finite number"),
        (lambda: Dynamics(weight=math.inf), "weight=inf was given"),
        (lambda: Dynamics(noise_variance=0.0), "dynamics.noise starts at 0.0; positive finite"),
        (lambda: Dynamics("rbf"), "kernel is a str; expected one of gplvm_xp.kernels"),
        (lambda: Dynamics(fixed="noise"), r"fixed='noise' was given; expected \('noise',\)"),
        (lambda: Dynamics(fixed=("rbf.variance",)), "parameters of the kernel are held by its own"),
        (lambda: OverTime("rbf"), "kernel is a str; expected one of gplvm_xp.kernels"),
        (lambda: OverTime(noise_variance=-1.0), "over_time.noise starts at -1.0"),
        (lambda: OverTime(fixed=("variance",)), r"fixed=\('variance',\) was given"),
        (lambda: Discriminative(0.0), "variance=0.0 was given; expected a positive finite number"),
        (lambda: Discriminative(math.nan), "variance=nan was given"),
    ],
)
def test_settings_that_do_not_work(make, text):
    with pytest.raises((ValueError, TypeError), match=text):
        make()


@pytest.mark.parametrize(
    ("prior", "rows", "text"),
    [
        (Dynamics(), RowFacts(3, np.ones(3, int)), "all 3 sequences have one frame, so that there"),
        (OverTime(), RowFacts(3, np.ones(3, int)), "all 3 sequences have one frame, so that time"),
        (Dynamics(RBF(1.0, (1.0,) * 3)), RowFacts(3), "3 values of lengthscale"),
        (OverTime(RBF(1.0, (1.0,) * 3)), RowFacts(3), "3 values of lengthscale"),
        (Discriminative(), RowFacts(3), r"needs labels; call fit\(X, y\)"),
        (Discriminative(), RowFacts(3, labels=np.array([0, 0, -1])), "1 class.* among 2 labelled"),
        (
            Discriminative(),
            RowFacts(3, labels=np.arange(3)),
            r"3 class.*the largest of 1; expected",
        ),
        (Discriminative(), RowFacts(3, labels=np.full(3, -1)), "0 class.* among 0 labelled rows"),
    ],
)
def test_rows_that_do_not_fit(prior, rows, text):
    X = latents(0, 3)
    with pytest.raises(ValueError, match=text):
        prior.bind(backend.of(X), rows, X)


@pytest.mark.parametrize("name", ["dynamics", "time", "labels"])
def test_what_does_not_fit_in_memory_is_refused_first(name, monkeypatch):
    X = latents()
    # The largest sequence is 5 frames; 15 rows are the likelihood's.
    need = {"dynamics": 8 * (11 * 11 + 15 * 15), "time": 8 * (5 * 5 + 15 * 15)}.get(name, 16 * 48)
    kind = type(backend.of(X))
    for have, fits in ((need, True), (need - 1, False)):
        monkeypatch.setattr(kind, "memory_available", lambda self, have=have: have)
        if fits:
            bound(name, X).require_memory(backend.of(X))
            continue
        with pytest.raises(NotEnoughMemoryError, match="use fewer"):
            bound(name, X).require_memory(backend.of(X))


# -- learned values --------------------------------------------------------------------------------


@each_prior
def test_what_was_learned_comes_back_as_settings(name):
    prior, rows = CASES[name]
    X = latents(13)
    own = bound(name, X)
    rng = np.random.default_rng(0)
    values = {k.name: k.value * np.exp(rng.standard_normal(k.value.shape)) for k in own.blocks()}
    learned = prior.with_values(values)
    assert type(learned) is type(prior)
    again = learned.bind(backend.of(X), rows, X)
    for block in again.blocks():
        np.testing.assert_array_equal(block.value, values[block.name])
    np.testing.assert_allclose(again.log_density(values, X)[0], own.log_density(values, X)[0])
    assert learned == learned.with_values(values)
    assert hash(learned) is not None


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing frame"])
def test_the_objective_with_a_prior_of_its_parameters(missing):
    rng = np.random.default_rng(14)
    Y = rng.standard_normal((15, 6))
    if missing:
        Y[[2, 14]] = np.nan
    X, b = latents(14), backend.of(Y)
    rows = RowFacts(15, LENGTHS, outputs=6)
    prior = Dynamics(noise_variance=0.1, fixed=()).bind(b, rows, X)
    extra = LogNormal(-2.0, 0.1)
    make = [
        ExactObjective(
            RBF(), groups_of(b, Y), X, 0.2, prior, {"dynamics.noise": extra} if on else {}
        )
        for on in (False, True)
    ]
    x = make[0].start()
    check_gradient(make[1].value_and_grad, x)
    free, tied = (objective.value_and_grad(x)[0] for objective in make)
    np.testing.assert_allclose(free - tied, extra.log_density(np.asarray(0.1))[0], rtol=1e-9)
    held = make[0].all_values(x)
    assert set(held) == {"X", *(k.name for k in prior.blocks())}
    with pytest.raises(ValueError, match=r"priors names \['dynamics.length'\]; the parameters are"):
        ExactObjective(RBF(), groups_of(b, Y), X, 0.2, prior, {"dynamics.length": extra})


# -- predictions -----------------------------------------------------------------------------------


def test_predictions_against_scikit_learn(case):
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process import kernels as theirs

    rng = np.random.default_rng(15)
    A, T, Z = rng.standard_normal((9, 2)), rng.standard_normal((9, 3)), rng.standard_normal((4, 2))
    kernel = 0.7 * theirs.Matern((0.8, 1.3), nu=2.5)
    oracle = GaussianProcessRegressor(kernel, alpha=0.1, optimizer=None).fit(A, T)
    mean, covariance = oracle.predict(Z, return_cov=True)
    f = Process.of(case.backend, Matern52(0.7, (0.8, 1.3)), 0.1, A, T)
    m, v = f.moments(case.asarray(Z))
    tolerance = {"rtol": case.tolerance(1e-10, 1e-3), "atol": case.tolerance(1e-12, 1e-4)}
    np.testing.assert_allclose(case.to_numpy(m), mean, **tolerance)
    np.testing.assert_allclose(
        case.to_numpy(f.covariance(case.asarray(Z))), covariance[..., 0], **tolerance
    )
    np.testing.assert_allclose(case.to_numpy(v), np.diag(covariance[..., 0]), **tolerance)
    h = case.tolerance(1e-6, 1e-2)
    for a in range(2):
        move = h * np.eye(2)[a]
        up, down = (oracle.predict(Z + s * move) for s in (1, -1))
        slopes = case.to_numpy(f.slopes(case.asarray(Z)))[:, :, a]
        np.testing.assert_allclose(slopes, (up - down) / (2 * h), atol=case.tolerance(1e-8, 2e-3))


def test_a_prediction_without_a_factor_says_so():
    with pytest.raises(NotPositiveDefiniteError, match=r"4 frames .* use a larger noise_variance"):
        Process.of(backend.of(np.zeros(1)), Linear(1.0), -1.0, np.ones((4, 1)), np.ones((4, 1)))


def circle(n, step=0.35):
    angle = step * np.arange(n)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


@pytest.mark.parametrize("residual", [False, True], ids=["positions", "steps"])
def test_a_trajectory_goes_on(residual, case):
    X = circle(60)
    rows = RowFacts(50, np.array([20, 30]))
    prior = Dynamics(RBF(1.0, 1.0) + Linear(1.0), 1e-4, residual=residual)
    b = case.backend
    for sequence, end in ((0, 20), (1, 50)):
        path = prior.ahead(b, rows, X[:50], sequence, 10)
        mean, C = case.to_numpy(path.mean), case.to_numpy(path.covariance)
        np.testing.assert_allclose(mean, X[end : end + 10], atol=case.tolerance(0.05, 0.1))
        np.testing.assert_allclose(C, np.swapaxes(C, 1, 2), atol=1e-7)
        assert np.all(np.linalg.eigvalsh(C)[:, 0] > 0.9e-4)
        assert np.all(np.diff(np.trace(C, axis1=1, axis2=2)) > 0)


@pytest.mark.parametrize("prior", [
    Dynamics(Linear(1.0), 1e-4), Dynamics(Linear(1.0), 1e-4, residual=True),
    OverTime(RBF(1.0, 6.0), 1e-3),
], ids=["positions", "steps", "time"])  # fmt: skip
def test_draws_have_the_moments_of_the_path(prior):
    X, rows = circle(40), RowFacts(40)
    b = backend.of(X)
    path = prior.ahead(b, rows, X, 0, 5)
    normals = np.random.default_rng(16).standard_normal((4000, 5, 2))
    draws = prior.draws_ahead(b, rows, X, 0, normals)
    assert draws.shape == (4000, 5, 2)
    sd = np.sqrt(np.einsum("tqq->tq", path.covariance))
    assert np.all(np.abs(draws.mean(0) - path.mean) < 5 * sd / math.sqrt(4000) + 0.05 * sd)
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.08)
    if isinstance(prior, OverTime):
        # Frames of one draw belong together.
        f = prior._process(b, rows, X, 0, 40.0 + np.arange(5))
        C = f[0].covariance(f[1]) + 1e-3 * np.eye(5)
        np.testing.assert_allclose(np.cov(draws[:, :, 0].T), C, atol=0.1 * C.max())


@pytest.mark.parametrize("prior", [Dynamics(), OverTime(RBF(1.0, 6.0))], ids=["dynamics", "time"])
def test_every_library_draws_the_same(prior, case):
    X, rows = circle(12), RowFacts(12, np.array([5, 7]))
    normals = np.random.default_rng(18).standard_normal((3, 4, 2))
    want = prior.draws_ahead(backend.of(X), rows, X, 0, normals)
    got = case.to_numpy(prior.draws_ahead(case.backend, rows, X, 0, normals))
    np.testing.assert_allclose(got, want, rtol=case.tolerance(1e-8, 1e-2), atol=1e-3 * case.single)


def test_latents_between_time_stamps():
    t = np.concatenate([np.sort(np.random.default_rng(17).uniform(0, 9, 40)), np.arange(5)])
    rows = RowFacts(45, np.array([40, 5]), t)
    X = np.stack([np.sin(t), np.cos(0.5 * t)], axis=1)
    prior, b = OverTime(RBF(1.0, 2.0), 1e-6), backend.of(X)
    new = np.array([8.5, 1.0, 4.2])
    mean, variance = prior.at(b, rows, X, 0, new)
    np.testing.assert_allclose(mean, np.stack([np.sin(new), np.cos(0.5 * new)], axis=1), atol=0.01)
    assert np.all(variance < 1e-3)
    far = prior.at(b, rows, X, 0, np.array([100.0]))
    np.testing.assert_allclose(far[0], 0.0, atol=1e-12)
    np.testing.assert_allclose(far[1], 1.0)
    # Extrapolation is by the median step of the sequence.
    np.testing.assert_allclose(
        prior.ahead(b, rows, X, 1, 2).mean, prior.at(b, rows, X, 1, np.array([5.0, 6.0]))[0]
    )


# -- missing frames --------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [False, True], ids=["positions", "steps"])
def test_a_gap_of_more_than_a_turn_is_started_along_the_circle(residual, case):
    X, rows = circle(200, 0.2), RowFacts(200, np.array([90, 110]))
    empty = np.zeros(200, dtype=bool)
    empty[30:70] = empty[150:153] = empty[195:] = True
    given = np.where(empty[:, None], 0.0, X)
    prior = Dynamics(noise_variance=1e-3, residual=residual)
    out = prior.fill(case.backend, rows, given, empty)
    np.testing.assert_array_equal(out[~empty], X[~empty])
    assert np.abs(out - X).max() < 0.15
    straight = OverTime().fill(case.backend, rows, given, empty)
    assert np.abs(straight - X).max() > 1.0
    np.testing.assert_allclose(
        straight[150:153], X[149] + np.arange(1, 4)[:, None] / 4 * (X[153] - X[149])
    )


def test_a_path_that_is_too_fast_is_slowed_down():
    # In eight of its ten steps it comes nearest to where it must be; 0.3 are missing there.
    path, X = np.arange(14.0)[:, None], np.full((20, 1), 8.3)
    inside = bent(path, Gap(3, 12, True), X)
    np.testing.assert_allclose(inside[:, 0], 0.83 * np.arange(1, 10))
    np.testing.assert_array_equal(bent(path, Gap(3, 12, False), X), path[1:10])
    assert longest([Gap(3, 12, True), Gap(15, 16, False)]) == 13


def test_frames_before_the_first_repeat_it():
    X, empty = circle(20), np.arange(20) < 3
    for prior in (Dynamics(), OverTime()):
        out = prior.fill(backend.of(X), RowFacts(20), X, empty)
        np.testing.assert_array_equal(out[:3], np.repeat(X[3:4], 3, axis=0))


def test_gaps_without_an_observed_step_are_straight():
    X, empty = circle(21), np.arange(21) % 2 == 1
    out = Dynamics().fill(backend.of(X), RowFacts(21), X, empty)
    np.testing.assert_allclose(out[1], 0.5 * (X[0] + X[2]))


def test_a_path_that_leads_away_is_not_taken():
    # Growth by a half at every step: what follows is beyond everything seen.
    X = 1.5 ** np.arange(12.0)[:, None] / 50.0
    empty = np.arange(12) >= 6
    rows = RowFacts(12)
    out = Dynamics(Linear(100.0), 1e-6).fill(backend.of(X), rows, X, empty)
    np.testing.assert_array_equal(out[6:], np.repeat(X[5:6], 6, axis=0))


def test_labels_place_no_row():
    X = latents()
    assert not Discriminative().fills_rows
    assert Discriminative().fill(backend.of(X), ROWS, X, LABELS < 0) is X
