"""The nearest-neighbour likelihood: exact where it must be, its terms, gradient and structure."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats
from test_kernels import torch_gram
from test_objective import KERNELS, PRIORS, holes

from gplvm_xp import backend
from gplvm_xp.backend import _numpy
from gplvm_xp.backend._numpy import NumpyBackend
from gplvm_xp.errors import NotEnoughMemoryError
from gplvm_xp.kernels import RBF, Linear
from gplvm_xp.latents import RowPrior
from gplvm_xp.neighbours import maxmin, predecessors
from gplvm_xp.objectives import ExactObjective, groups_of
from gplvm_xp.objectives.vecchia import VecchiaObjective
from gplvm_xp.optim import minimise
from gplvm_xp.params import Block
from gplvm_xp.priors import Gaussian, LogNormal
from gplvm_xp.testing import check_gradient

NOISE, JITTER = 0.3, 1e-3


def data(n=12, D=4, q=2, seed=0):
    rng = np.random.default_rng(seed)
    X, Y = rng.standard_normal((n, q)), rng.standard_normal((n, D))
    return X, Y - Y.mean(0)


def everything_before(order):
    """All rows before each, in some order of no meaning, −1 after them."""
    n = order.size
    out = np.full((n, n - 1), -1)
    for i, row in enumerate(order):
        out[row, :i] = order[:i][::-1]
    return out


def objective(b, kernel, X, Y, k=3, **options):
    order = maxmin(X)
    options = {"order": order, "neighbours": predecessors(X, order, k), **options}
    return VecchiaObjective(kernel, groups_of(b, Y), X, NOISE, jitter=JITTER, **options)


# -- value -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("name", KERNELS)
def test_given_everything_before_it_is_exact(case, name, missing):
    X, Y = data()
    Y = holes(Y) if missing else Y
    b, kernel = case.backend, KERNELS[name]
    options = {"latent_prior": Gaussian(0.2, 1.5), "priors": PRIORS[name]}
    exact = ExactObjective(kernel, groups_of(b, Y), X, NOISE, jitter=JITTER, **options)
    order = np.random.default_rng(1).permutation(12)
    near = objective(b, kernel, X, Y, order=order, neighbours=everything_before(order), **options)
    assert [k.name for k in near.layout.blocks] == [k.name for k in exact.layout.blocks]
    x = exact.start()
    np.testing.assert_array_equal(case.to_numpy(near.start()), case.to_numpy(x))
    f, g = (case.to_numpy(a) for a in exact.value_and_grad(x))
    got_f, got_g = near.value_and_grad(x)
    assert got_f.dtype == b.dtype
    assert got_g.dtype == b.dtype
    tight = case.tolerance(1e-12, 3e-4)
    np.testing.assert_allclose(case.to_numpy(got_f), f, rtol=tight)
    np.testing.assert_allclose(case.to_numpy(got_g), g, rtol=tight, atol=tight * np.abs(g).max())


def test_more_outputs_than_rows_are_exact_too(case):
    X, Y = data(n=6, D=25)
    order = np.arange(6)
    kernel, b = RBF(1.3, 0.8), case.backend
    exact = ExactObjective(kernel, groups_of(b, Y), X, NOISE, jitter=JITTER)
    near = objective(b, kernel, X, Y, order=order, neighbours=everything_before(order))
    for got, want in zip(
        near.value_and_grad(near.start()), exact.value_and_grad(exact.start()), strict=True
    ):
        host, tight = case.to_numpy(want), case.tolerance(1e-11, 1e-3)
        np.testing.assert_allclose(
            case.to_numpy(got), host, rtol=tight, atol=tight * np.abs(host).max()
        )


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_value_term_by_term(case, missing):
    """Σ ln p(y_id | the observed of the neighbours), by SciPy, output by output."""
    X, Y = data(n=20)
    Y = holes(Y) if missing else Y
    kernel = RBF(1.3, (0.8, 1.3)) + Linear(0.4)
    fun = objective(case.backend, kernel, X, Y, k=4)
    K = np.asarray(kernel.gram(kernel.theta(), X)) + (NOISE + JITTER) * np.eye(20)

    def log_density(rows, d):
        if not len(rows):
            return 0.0
        return stats.multivariate_normal(cov=K[np.ix_(rows, rows)]).logpdf(Y[rows, d])

    want = 0.0
    for d in range(Y.shape[1]):
        for i in np.flatnonzero(~np.isnan(Y[:, d])):
            given = [j for j in fun.neighbours[i] if j >= 0 and not np.isnan(Y[j, d])]
            want += log_density([*given, i], d) - log_density(given, d)
    f, _ = fun.value_and_grad(fun.start())
    assert f.shape == ()
    np.testing.assert_allclose(case.to_numpy(f), -want, rtol=case.tolerance(1e-12, 2e-5))


def test_no_neighbours_are_independent_rows(case):
    X, Y = data()
    fun = objective(case.backend, RBF(1.3), X, Y, neighbours=np.empty((12, 0), dtype=int))
    f, g = fun.value_and_grad(fun.start())
    want = -np.sum(stats.norm(0.0, np.sqrt(1.3 + NOISE + JITTER)).logpdf(Y))
    np.testing.assert_allclose(case.to_numpy(f), want, rtol=case.tolerance(1e-13, 1e-5))
    assert np.all(case.to_numpy(g)[3:] == 0.0)


def test_more_neighbours_come_closer():
    rng = np.random.default_rng(2)
    X = rng.standard_normal((150, 2))
    kernel, b = RBF(1.0, 0.8), backend.get("numpy")
    K = kernel.gram(kernel.theta(), X) + (NOISE + JITTER) * np.eye(150)
    Y = np.linalg.cholesky(K) @ rng.standard_normal((150, 3))
    exact = ExactObjective(kernel, groups_of(b, Y), X, NOISE, jitter=JITTER)
    value = exact.value_and_grad(exact.start())[0]
    gaps = []
    for k in (2, 8, 32):
        fun = objective(b, kernel, X, Y, k=k)
        gaps.append(abs(fun.value_and_grad(fun.start())[0] - value) / Y.size)
    assert gaps[2] < 0.1 * gaps[1]
    assert gaps[1] < 0.5 * gaps[0]


def test_names_of_the_rows_do_not_matter():
    X, Y = data(n=20)
    b, kernel = backend.get("numpy"), RBF(1.3, 0.8)
    fun = objective(b, kernel, X, Y)
    f, g = fun.value_and_grad(fun.start())
    new = np.random.default_rng(4).permutation(20)
    back = np.argsort(new)
    named = np.where(fun.neighbours >= 0, back[fun.neighbours], -1)[new]
    other = objective(b, kernel, X[new], Y[new], order=back[fun.order], neighbours=named)
    f2, g2 = other.value_and_grad(other.start())
    np.testing.assert_allclose(f2, f, rtol=1e-13)
    np.testing.assert_allclose(g2[3:].reshape(20, 2), g[3:].reshape(20, 2)[new], rtol=1e-9)


# -- gradient --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "missing"), [*((name, False) for name in KERNELS), ("rbf-ard", True), ("tree", True)]
)
def test_gradient_against_differences(case, name, missing):
    X, Y = data(n=14, D=4)
    fun = objective(
        case.backend, KERNELS[name], X, holes(Y) if missing else Y, latent_prior=Gaussian(),
        priors=PRIORS[name], k=5,
    )  # fmt: skip
    loose = {"rtol": 3e-3, "step": 1e-1} if case.single else {"rtol": 1e-7, "step": 4e-3}
    check_gradient(fun.value_and_grad, fun.start(), **loose)


@pytest.mark.parametrize("coincident", [False, True], ids=["apart", "coincident"])
@pytest.mark.parametrize("name", KERNELS)
def test_gradient_against_autograd(name, coincident):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    X, Y = data(n=16, D=3)
    if coincident:
        X[5] = X[2]
        X[7] = X[2]
    kernel = KERNELS[name]
    fun = objective(backend.get("numpy"), kernel, X, Y, k=5)
    f, g = fun.value_and_grad(fun.start())
    x = torch.tensor(fun.start(), requires_grad=True)
    p = kernel.size
    theta, noise, Z = torch.exp(x[:p]), torch.exp(x[p]), x[p + 1 :].reshape(X.shape)
    total = 0.0
    for i, near in enumerate(fun.neighbours):
        rows = np.append(near[near >= 0], i)
        K = torch_gram(torch, kernel, theta, Z[rows], None)
        K = K + (noise + JITTER) * torch.eye(rows.size).double()
        k, y = K[-1, :-1], torch.tensor(Y[rows])
        weights = torch.linalg.solve(K[:-1, :-1], k)
        law = torch.distributions.Normal(weights @ y[:-1], torch.sqrt(K[-1, -1] - weights @ k))
        total = total - law.log_prob(y[-1]).sum()
    total.backward()
    want = x.grad.numpy()
    np.testing.assert_allclose(f, total.detach().numpy(), rtol=1e-11)
    np.testing.assert_allclose(g, want, rtol=1e-8, atol=1e-10 * np.abs(want).max())


def test_held_blocks_and_a_prior_of_rows(case):
    """The frame around the likelihood is that of the exact objective."""

    class Chain(RowPrior):
        """x_{t+1} − x_t ~ N(0, s)."""

        def blocks(self):
            return (Block("chain.variance", 0.7),)

        def require_memory(self, b):
            """A few numbers."""

        def log_density(self, values, X):
            xp = backend.of(X).xp
            s, step = values["chain.variance"], X[1:, :] - X[:-1, :]
            zero = xp.zeros_like(X[:1, :])
            gX = (xp.concat([step, zero]) - xp.concat([zero, step])) / s
            square = xp.sum(step * step)
            size = step.shape[0] * step.shape[1]
            value = -0.5 * (square / s + size * xp.log(s))
            return value, gX, {"chain.variance": 0.5 * (square / s - size) / s}

    X, Y = data()
    order = np.arange(12)
    options = {
        "held": frozenset({"noise", "rbf.variance"}),
        "latent_prior": Chain(),
        "priors": {
            "rbf.lengthscale": LogNormal(0.1, 0.6),
            "chain.variance": LogNormal(-0.2, 0.5),
        },
    }
    b = case.backend
    exact = ExactObjective(RBF(1.3, 0.8), groups_of(b, Y), X, NOISE, jitter=JITTER, **options)
    near = objective(
        b, RBF(1.3, 0.8), X, Y, order=order, neighbours=everything_before(order), **options
    )
    assert [k.name for k in near.layout.blocks] == ["rbf.lengthscale", "chain.variance", "X"]
    x = exact.start() + 0.1
    f, g = (case.to_numpy(a) for a in exact.value_and_grad(x))
    got_f, got_g = (case.to_numpy(a) for a in near.value_and_grad(x))
    tight = case.tolerance(1e-12, 3e-4)
    np.testing.assert_allclose(got_f, f, rtol=tight)
    np.testing.assert_allclose(got_g, g, rtol=tight, atol=tight * np.abs(g).max())
    for one, other in zip(near.values(x), exact.values(x), strict=True):
        np.testing.assert_array_equal(case.to_numpy(one), case.to_numpy(other))


def test_a_search_ends_with_a_small_gradient():
    rng = np.random.default_rng(5)
    X = rng.standard_normal((60, 2))
    Y = np.sin(X @ rng.standard_normal((2, 5))) + 0.1 * rng.standard_normal((60, 5))
    fun = objective(
        backend.get("numpy"), RBF(1.0, 1.0), X, Y - Y.mean(0), k=8, latent_prior=Gaussian(),
        held=frozenset({"rbf.lengthscale"}),
    )  # fmt: skip
    result = minimise(fun.value_and_grad, fun.start(), max_steps=1000)
    assert result.status == "converged"
    assert result.value < result.values[0] - 50.0
    assert result.grad_norm < 1e-3 * result.grad_norms[0]


# -- where it is not defined -----------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["singular", "overflow", "nan"])
def test_no_factor_is_a_value_and_not_an_exception(case, trouble):
    X, Y = data(n=12, D=3)
    X[4] = X[1]
    fun = VecchiaObjective(
        RBF(1.0, 1.0), groups_of(case.backend, Y), X, NOISE, np.arange(12),
        everything_before(np.arange(12)),
    )  # fmt: skip
    x = np.asarray(fun.layout.start())
    where = fun.layout.slices()
    if trouble == "singular":
        x[where["noise"]] = -200.0
    elif trouble == "overflow":
        x[where["rbf.variance"]] = 2000.0
    else:
        x[where["X"].start] = np.nan
    f, g = fun.value_and_grad(case.asarray(x))
    assert case.to_numpy(f) == np.inf
    assert g.shape == x.shape


def test_bad_structure_is_refused():
    X, Y = data()
    b, order = backend.get("numpy"), np.arange(12)
    good = predecessors(X, order, 3)
    late = good.copy()
    late[4, 1] = 4
    too_large = good.copy()
    too_large[7, 0] = 12
    for neighbours, message in (
        (late, r"row 4 is given row 4, which is not before it in the order"),
        (too_large, r"neighbours names row 12 of 12; expected 0 to 11"),
        (good[:5], r"neighbours has shape \(5, 3\); expected \(12, k\)"),
    ):
        with pytest.raises(ValueError, match=message):
            objective(b, RBF(), X, Y, order=order, neighbours=neighbours)
    for wrong in (order[:-1], np.zeros(12, dtype=int)):
        with pytest.raises(ValueError, match="expected each of the 12 rows"):
            objective(b, RBF(), X, Y, order=wrong, neighbours=good)
    with pytest.raises(ValueError, match=r"priors names \['variance'\]"):
        objective(b, RBF(), X, Y, priors={"variance": Gaussian()})
    with pytest.raises(ValueError, match=r"held names \['rbf'\]"):
        objective(b, RBF(), X, Y, held=frozenset({"rbf"}))


def test_memory_is_asked_for_first(monkeypatch):
    X, Y = data()
    monkeypatch.setattr(NumpyBackend, "memory_available", lambda self: 1000)
    with pytest.raises(NotEnoughMemoryError, match="12 rows with 3 neighbours each"):
        objective(backend.get("numpy"), RBF(), X, Y)


# -- its cost --------------------------------------------------------------------------------------


def test_memory_is_that_of_a_few_stacks(monkeypatch):
    monkeypatch.setattr(_numpy, "_free_cores", lambda least=4: 1)
    rng = np.random.default_rng(3)
    n, k = 30_000, 15
    X, Y = rng.uniform(size=(n, 2)), rng.standard_normal((n, 4))
    # Any earlier rows will do here.
    neighbours = np.arange(n)[:, None] - np.arange(1, k + 1)
    neighbours = np.maximum(neighbours, -1)
    fun = objective(
        backend.get("numpy"), RBF(1.0, 0.1), X, Y, order=np.arange(n), neighbours=neighbours
    )
    x = fun.start()
    tracemalloc.start()
    fun.value_and_grad(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one_array_of_blocks = 8 * n * (k + 1) ** 2
    assert peak < 0.75 * one_array_of_blocks


def test_bits_do_not_depend_on_threads(monkeypatch):
    rng = np.random.default_rng(6)
    X, Y = rng.standard_normal((3000, 2)), rng.standard_normal((3000, 3))
    fun = objective(backend.get("numpy"), RBF(1.0, 0.5), X, Y, k=20)
    assert len(fun.blocks[0].parts) > 4
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(_numpy, "_free_cores", lambda least=4, threads=threads: threads)
        results.append(fun.value_and_grad(fun.start()))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])
