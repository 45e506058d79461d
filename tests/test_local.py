"""Local likelihoods: each block by itself, autograd, differences, and what is not defined."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats
from test_kernels import torch_gram
from test_local_kernels import Plain

from gplvm_xp import backend
from gplvm_xp.backend import _numpy
from gplvm_xp.kernels import (
    RBF,
    ActiveDims,
    Constant,
    Linear,
    Matern52,
    Periodic,
    Polynomial,
    White,
)
from gplvm_xp.objectives import ExactObjective, groups_of
from gplvm_xp.objectives.local import conditional, joint, local_likelihoods
from gplvm_xp.objectives.local_sums import Blocks, nearby, summed
from gplvm_xp.testing import check_gradient

KERNELS = {
    "rbf-ard": RBF(1.3, (0.8, 1.3)),
    "matern52": Matern52(0.9, (1.2, 0.7)),
    "polynomial": Polynomial(0.5, 0.7, degree=3),
    "tree": ActiveDims(RBF(), (1,)) * Periodic(1.0, 1.1, 2.4) + Constant(0.3) + White(0.2),
    "stranger": Plain(1.1, 0.9) + Linear((0.4, 0.7)),
}
TERMS = pytest.mark.parametrize("term", [joint, conditional], ids=lambda term: term.__name__)
NOISE = 0.3


def data(n=14, D=4, B=5, R=6, q=2, seed=0):
    """Latents, outputs, and blocks with and without fillers; one row is in many of them."""
    rng = np.random.default_rng(seed)
    X, Y = rng.standard_normal((n, q)), rng.standard_normal((n, D))
    index = np.stack([rng.permutation(n)[:R] for _ in range(B)])
    index[:, 2] = 3
    index[:, -1] = [i for i in range(n) if i != 3][:B]
    index[0, :3] = -1
    index[2, [1, 3]] = -1
    return X, Y, index


def members(row):
    return row[row >= 0]


def by_hand(kernel, theta, noise, X, Y, index, term):
    """Value, gtheta, gnoise and gX of each block, on the host, by inverses."""
    out = []
    for row in index:
        sets = [members(row)] + ([members(row)[:-1]] if term is conditional else [])
        value, gtheta, gnoise = 0.0, np.zeros_like(theta), 0.0
        gX = np.zeros((row.size, X.shape[1]))
        for sign, rows in zip((1.0, -1.0), sets, strict=False):
            if not rows.size:
                continue
            K, pull = kernel.gram_pullback(theta, X[rows])
            C = K + noise * np.eye(rows.size)
            law = stats.multivariate_normal(np.zeros(rows.size), C)
            value += sign * np.sum(law.logpdf(Y[rows].T))
            S = np.linalg.inv(C)
            G = 0.5 * sign * (S @ Y[rows] @ Y[rows].T @ S - Y.shape[1] * S)
            gt, gx, _ = pull(G)
            places = np.flatnonzero(row >= 0)[: rows.size]
            gX[places] += gx
            gtheta, gnoise = gtheta + gt, gnoise + np.trace(G)
        out.append((value, gtheta, gnoise, gX))
    return [np.array(part) for part in zip(*out, strict=True)]


def spread(X, index, gX):
    out = np.zeros_like(X)
    np.add.at(out, np.maximum(index, 0).ravel(), gX.reshape(-1, X.shape[1]))
    return out


# -- values and gradients --------------------------------------------------------------------------


@TERMS
@pytest.mark.parametrize("name", KERNELS)
def test_against_each_block_by_itself(case, name, term):
    X, Y, index = data()
    kernel, theta = KERNELS[name], KERNELS[name].theta()
    weights = np.random.default_rng(1).standard_normal(index.shape[0])
    noise = case.backend.scalar(NOISE)
    got = local_likelihoods(
        kernel, case.asarray(theta), noise, case.asarray(X), case.asarray(Y), index, term
    )
    gtheta, gnoise, gX = got.pullback(case.asarray(weights))
    values, gts, gns, gxs = by_hand(kernel, theta, NOISE, X, Y, index, term)
    tight = case.tolerance(1e-12, 1e-4)
    for result, want in (
        (got.values, values),
        (gtheta, weights @ gts),
        (gnoise, weights @ gns),
        (gX, weights[:, None, None] * gxs),
    ):
        assert result.dtype == case.backend.dtype
        host = case.to_numpy(result)
        assert host.shape == np.shape(want)
        np.testing.assert_allclose(host, want, rtol=tight, atol=tight * np.abs(want).max())
    assert np.all(case.backend.to_host(got.ok))


@TERMS
@pytest.mark.parametrize("name", [name for name in KERNELS if name != "stranger"])
def test_gradient_against_autograd(name, term):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    X, Y, index = data(n=16, D=3, B=6, R=7)
    X[5] = X[3]
    kernel = KERNELS[name]
    weights = np.random.default_rng(2).standard_normal(index.shape[0])
    b = backend.get("numpy")
    got = local_likelihoods(kernel, kernel.theta(), b.scalar(NOISE), X, Y, index, term)
    gtheta, gnoise, gX = got.pullback(weights)
    start = (X, kernel.theta(), np.asarray(NOISE))
    x, theta, noise = (torch.tensor(a, requires_grad=True) for a in start)
    total = 0.0
    for row, weight in zip(index, weights, strict=True):
        sets = [members(row)] + ([members(row)[:-1]] if term is conditional else [])
        for sign, rows in zip((1.0, -1.0), sets, strict=False):
            K = torch_gram(torch, kernel, theta, x[rows], None)
            C = K + noise * torch.eye(rows.size).double()
            law = torch.distributions.MultivariateNormal(torch.zeros(rows.size).double(), C)
            total = total + sign * weight * law.log_prob(torch.tensor(Y[rows]).mT).sum()
    total.backward()
    np.testing.assert_allclose(weights @ got.values, total.detach().numpy(), rtol=1e-11)
    pairs = ((gtheta, theta), (gnoise, noise), (spread(X, index, gX), x))
    for mine, theirs in pairs:
        want = theirs.grad.numpy()
        np.testing.assert_allclose(mine, want, rtol=1e-9, atol=1e-10 * np.abs(want).max())


@TERMS
@pytest.mark.parametrize("name", KERNELS)
def test_gradient_against_differences(case, name, term):
    """In θ, σ² and the latents together, for a sum with weights of either sign."""
    X, Y, index = data()
    kernel = KERNELS[name]
    p, b = kernel.size, case.backend
    weights = case.asarray(np.random.default_rng(3).uniform(-1.0, 2.0, index.shape[0]))
    y = case.asarray(Y)
    plan = b.scatter_plan(np.maximum(index, 0).ravel(), X.shape[0])

    def fun(x):
        latents = b.xp.reshape(x[p + 1 :], X.shape)
        got = local_likelihoods(kernel, x[:p], x[p], latents, y, index, term)
        gtheta, gnoise, gX = got.pullback(weights)
        back = b.scatter_add(b.zeros(X.shape), plan, b.xp.reshape(gX, (-1, X.shape[1])))
        parts = [gtheta, b.xp.reshape(gnoise, (1,)), b.xp.reshape(back, (-1,))]
        return b.xp.sum(weights * got.values), b.xp.concat(parts)

    start = np.concatenate([kernel.theta(), [NOISE], X.ravel()])
    loose = {"rtol": 5e-3, "step": 1e-1} if case.single else {"rtol": 1e-7, "step": 4e-3}
    check_gradient(fun, case.asarray(start), **loose)


def test_one_block_of_everything_is_the_exact_likelihood(case):
    X, Y, _ = data()
    kernel = KERNELS["tree"]
    exact = ExactObjective(kernel, groups_of(case.backend, Y), X, NOISE)
    f, g = (case.to_numpy(a) for a in exact.value_and_grad(exact.start()))
    theta, noise, latents = exact.values(exact.start())
    whole = np.arange(X.shape[0])[None, ::-1]
    got = local_likelihoods(kernel, theta, noise, latents, case.asarray(Y), whole, joint)
    gtheta, gnoise, gX = (case.to_numpy(a) for a in got.pullback(case.backend.full((1,), 1.0)))
    flat = np.concatenate([gtheta * kernel.theta(), [gnoise * NOISE], gX[0, ::-1].ravel()])
    tight = case.tolerance(1e-12, 1e-4)
    np.testing.assert_allclose(-case.to_numpy(got.values), [f], rtol=tight)
    np.testing.assert_allclose(-flat, g, rtol=tight, atol=tight * np.abs(g).max())


def test_conditionals_multiply_to_the_joint(case):
    """p(y_1, …, y_R) = Π p(y_r | y_1, …, y_{r−1}): values and gradients."""
    X, Y, _ = data()
    kernel = KERNELS["rbf-ard"]
    rows = np.array([4, 1, 9, 3, 12, 0])
    chain = np.full((6, 6), -1)
    for r in range(6):
        chain[r, 5 - r :] = rows[: r + 1]
    theta, noise = case.asarray(kernel.theta()), case.backend.scalar(NOISE)
    x, y = case.asarray(X), case.asarray(Y)
    results = []
    for index, term in ((rows[None, :], joint), (chain, conditional)):
        got = local_likelihoods(kernel, theta, noise, x, y, index, term)
        gtheta, gnoise, gX = got.pullback(case.backend.full((index.shape[0],), 1.0))
        back = spread(X, index, case.to_numpy(gX))
        value = np.sum(case.to_numpy(got.values))
        results.append((value, case.to_numpy(gtheta), case.to_numpy(gnoise), back))
    tight = case.tolerance(1e-12, 1e-4)
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=tight, atol=tight * np.abs(other).max())


@TERMS
def test_fillers_are_not_seen(term):
    """A short block is the same block without them, and rows that it lacks do not matter."""
    X, Y, index = data()
    kernel, b = KERNELS["rbf-ard"], backend.get("numpy")
    args = (kernel, kernel.theta(), b.scalar(NOISE))
    got = local_likelihoods(*args, X, Y, index, term)
    gX = got.pullback(b.full((index.shape[0],), 1.0))[2]
    assert np.all(gX[index < 0] == 0.0)
    for i in (0, 2):
        rows = members(index[i])
        alone = local_likelihoods(*args, X, Y, rows[None, :], term)
        np.testing.assert_allclose(alone.values, got.values[i : i + 1], rtol=1e-13)
        np.testing.assert_allclose(alone.pullback(b.full((1,), 1.0))[2][0], gX[i][index[i] >= 0])
        strangers = np.setdiff1d(np.arange(X.shape[0]), rows)
        far, off = X.copy(), Y.copy()
        far[strangers], off[strangers] = 1e6, np.nan
        moved = local_likelihoods(*args, far, off, index[i : i + 1], term)
        np.testing.assert_array_equal(
            moved.values, local_likelihoods(*args, X, Y, index[i : i + 1], term).values
        )


@TERMS
def test_outputs_in_place_of_a_smaller_matrix(case, term):
    """D > R through a matrix with the same Y Yᵀ."""
    X, Y, index = data(n=8, D=30, B=3, R=5)
    kernel, b = KERNELS["rbf-ard"], case.backend
    x = case.asarray(X)
    small = case.asarray(np.linalg.qr(Y.T)[1].T)
    index = np.abs(index) % 8
    rows = b.xp.asarray(index.ravel(), device=b.device)
    shape = (*index.shape, -1)
    args = (kernel, case.asarray(kernel.theta()), b.scalar(NOISE))
    blocks = b.xp.reshape(b.xp.take(x, rows, axis=0), shape)
    whole = local_likelihoods(*args, x, case.asarray(Y), index, term)
    part = term(*args, blocks, b.xp.reshape(b.xp.take(small, rows, axis=0), shape), None, 30)
    tight = case.tolerance(1e-11, 1e-3)
    np.testing.assert_allclose(case.to_numpy(part.values), case.to_numpy(whole.values), rtol=tight)
    weights = b.full((3,), 1.0)
    for one, other in zip(part.pullback(weights), whole.pullback(weights), strict=True):
        want = case.to_numpy(other)
        np.testing.assert_allclose(
            case.to_numpy(one), want, rtol=tight, atol=tight * np.abs(want).max()
        )


# -- where it is not defined -----------------------------------------------------------------------


@TERMS
@pytest.mark.parametrize("trouble", ["singular", "nan"])
def test_a_block_that_fails_does_so_alone(case, trouble, term):
    X, Y, index = data()
    index = np.where(index < 0, 13, index)
    index[1] = [5, 6, 5, 7, 8, 9]
    bad = X.copy()
    if trouble == "nan":
        bad[6] = np.nan
    hurt = np.any(index == 6, axis=1) if trouble == "nan" else np.arange(5) == 1
    index[~hurt] = np.where(index[~hurt] == 6, 0, index[~hurt])
    noise = -1e-3 if trouble == "singular" else NOISE
    kernel = RBF(1.0, 1e-3)
    if trouble == "singular":
        # Rows far apart are independent: only two that coincide make a bad matrix.
        index = np.array([[1, 2, 4, 0, 10, 11], index[1], [1, 2, 3, 4, 0, 12]])
        hurt = np.array([False, True, False])
    args = (kernel, case.asarray(kernel.theta()), case.backend.scalar(noise))
    with np.errstate(all="ignore"):
        got = local_likelihoods(*args, case.asarray(bad), case.asarray(Y), index, term)
        gtheta, gnoise, gX = got.pullback(case.backend.full((index.shape[0],), 1.0))
    np.testing.assert_array_equal(case.backend.to_host(got.ok), ~hurt)
    values = case.to_numpy(got.values)
    assert np.all(values[hurt] == -np.inf)
    assert np.all(np.isfinite(values[~hurt]))
    if trouble == "singular":
        for a in (gtheta, gnoise, gX):
            assert np.all(np.isfinite(case.to_numpy(a)))
        assert np.all(case.to_numpy(gX)[hurt] == 0.0)


def test_blocks_are_checked():
    X, Y, index = data()
    args = (RBF(), RBF().theta(), np.asarray(NOISE), X, Y)
    for wrong in (index[0], index[:0], index[:, :0], index.astype(float)):
        with pytest.raises(ValueError, match="expected row numbers"):
            local_likelihoods(*args, wrong)
        with pytest.raises(ValueError, match="expected row numbers"):
            Blocks.of(backend.get("numpy"), wrong, 14, 4)
    with pytest.raises(ValueError, match=r"names row 14 and the table has 14; expected 0 to 13"):
        local_likelihoods(*args, np.full((2, 2), 14))
    with pytest.raises(ValueError, match="block 1 ends with a filler; put the −1"):
        local_likelihoods(*args, np.array([[-1, 3], [3, -1]]))


# -- sums over many blocks -------------------------------------------------------------------------


@TERMS
def test_sums_over_stacks(case, monkeypatch, term):
    X, Y, index = data(n=40, B=23, R=5)
    kernel, b = KERNELS["tree"], case.backend
    args = (kernel, case.asarray(kernel.theta()), b.scalar(NOISE), case.asarray(X), case.asarray(Y))
    held = local_likelihoods(*args, index, term)
    gtheta, gnoise, gX = (case.to_numpy(a) for a in held.pullback(b.full((23,), 1.0)))
    want = (np.sum(case.to_numpy(held.values)), gtheta, gnoise, spread(X, index, gX))
    monkeypatch.setattr(
        type(b), "stacks", lambda self, count, size: [slice(i, i + 4) for i in range(0, count, 4)]
    )
    blocks = Blocks.of(b, index, *Y.shape)
    assert blocks.shape == (23, 5)
    assert [part.mask is None for part in blocks.parts] == [False, True, True, True, True, True]
    tight = case.tolerance(1e-12, 1e-4)
    results = summed(*args, blocks, term)
    for got, expected in zip(results, want, strict=True):
        host = case.to_numpy(got)
        np.testing.assert_allclose(host, expected, rtol=tight, atol=tight * np.abs(expected).max())
    for got, again in zip(results, summed(*args, blocks, term), strict=True):
        np.testing.assert_array_equal(case.to_numpy(got), case.to_numpy(again))


@TERMS
def test_threads_leave_no_trace(monkeypatch, term):
    X, Y, index = data(n=60, B=50, R=7)
    b = backend.get("numpy")
    monkeypatch.setattr(
        type(b), "stacks", lambda self, count, size: [slice(i, i + 3) for i in range(0, count, 3)]
    )
    blocks = Blocks.of(b, index, *Y.shape)
    kernel = KERNELS["matern52"]
    results = []
    for threads in (1, 4):
        monkeypatch.setattr(_numpy, "_free_cores", lambda least=4, threads=threads: threads)
        results.append(summed(kernel, kernel.theta(), b.scalar(NOISE), X, Y, blocks, term))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_failure_anywhere_is_minus_infinity():
    X, Y, index = data(n=40, B=23, R=5)
    b = backend.get("numpy")
    X[17] = np.nan
    got = summed(RBF(), RBF().theta(), b.scalar(NOISE), X, Y, Blocks.of(b, index, *Y.shape), joint)
    assert got.value == -np.inf


@pytest.mark.parametrize("q", [1, 2, 4])
def test_blocks_near_each_other_come_together(q):
    X = np.random.default_rng(7).standard_normal((5000, q))
    X[100:200] = X[0]
    order = nearby(X)
    np.testing.assert_array_equal(np.sort(order), np.arange(5000))
    np.testing.assert_array_equal(order, nearby(X))
    step = np.linalg.norm(np.diff(X[order][:, :2], axis=0), axis=1).mean()
    assert step < 0.25 * np.linalg.norm(np.diff(X[:, :2], axis=0), axis=1).mean()
    assert nearby(X[:1]) == [0]


# -- what it is made of ----------------------------------------------------------------------------


def test_scatter_add(case):
    rng = np.random.default_rng(5)
    b, n = case.backend, 50
    index = rng.integers(0, 9, 700)
    index[:3] = 49
    total, values = rng.standard_normal((n, 3)), rng.standard_normal((700, 3))
    want = total.copy()
    np.add.at(want, index, values)
    plan = b.scatter_plan(index, n)
    first, second = (
        b.scatter_add(case.asarray(total) + 0.0, plan, case.asarray(values)) for _ in range(2)
    )
    assert first.dtype == b.dtype
    np.testing.assert_allclose(
        case.to_numpy(first), want, rtol=case.tolerance(1e-13, 1e-5), atol=case.tolerance(0, 1e-5)
    )
    np.testing.assert_array_equal(case.to_numpy(first), case.to_numpy(second))


def test_stacks_cover_all_blocks(case):
    for count, size in ((1, 1), (1000, 1024), (70_000, 1024), (5, 2**40)):
        stacks = case.backend.stacks(count, size)
        assert stacks[0].start == 0
        assert stacks[-1].stop == count
        assert all(a.stop == c.start for a, c in itertools.pairwise(stacks))


@pytest.mark.parametrize("n", [1, 3, 8, 9, 16, 21, 32, 50])
def test_many_small_triangles(case, n):
    """More of them than NumPy takes one by one."""
    rng = np.random.default_rng(n)
    A = rng.standard_normal((2, 2 * n + 3, n, n))
    L = np.linalg.cholesky(A @ np.swapaxes(A, -1, -2) + n * np.eye(n))
    right = rng.standard_normal((2, 2 * n + 3, n, 1))
    lower, given = case.asarray(L), case.asarray(right)
    inverse = case.to_numpy(case.backend.inverse_factor(lower))
    assert np.all(np.triu(inverse, 1) == 0.0)
    tight = case.tolerance(1e-13, 1e-5)
    np.testing.assert_allclose(inverse @ L, np.broadcast_to(np.eye(n), L.shape), atol=tight)
    for trans in (False, True):
        z = case.to_numpy(case.backend.solve_factor(lower, given, trans))
        back = (np.swapaxes(L, -1, -2) if trans else L) @ z
        np.testing.assert_allclose(back, right, atol=10 * tight)
    np.testing.assert_array_equal(case.to_numpy(given), case.to_numpy(case.asarray(right)))
