"""Neighbourhood steps: the likelihood of blocks on their own, its gradients, and the search."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import Case
from scipy import stats

from gplvm_xp import backend
from gplvm_xp.kernels import RBF, Linear
from gplvm_xp.neighbours import nearest
from gplvm_xp.objectives import groups_of, neighbourhood_fit
from gplvm_xp.objectives.neighbourhood import NeighbourhoodObjective
from gplvm_xp.objectives.neighbourhood_fit import Pace, search_neighbourhoods
from gplvm_xp.priors import Gaussian, LogNormal
from gplvm_xp.testing import check_gradient

KERNEL = RBF(1.3, 0.7) + Linear(0.2)
NOISE, JITTER = 0.15, 0.01
PRIOR = Gaussian(0.1, 1.2)
PRIORS = {"noise": LogNormal(-2.0, 1.0), "rbf.variance": LogNormal(0.0, 0.5)}


def data(n=12, D=4, missing=False, seed=0):
    rng = np.random.default_rng(seed)
    X, Y = rng.standard_normal((n, 2)), rng.standard_normal((n, D))
    if missing:
        Y[[1, 4], 0] = Y[[0, 1, 7], 2] = np.nan
    return X, Y


def objective(case: Case, Y, priors=PRIORS, prior=PRIOR, held=frozenset()):
    b = backend.of(case.asarray(np.zeros(1)))
    return NeighbourhoodObjective.of(
        KERNEL, groups_of(b, Y), (Y.shape[0], 2), NOISE, prior, priors, held, JITTER
    )


def by_hand(X, Y, index, theta, noise):
    """ln N of each block's observed entries, output by output, by SciPy."""
    total = 0.0
    for rows in index:
        for y in Y[rows].T:
            seen = rows[~np.isnan(y)]
            if seen.size:
                K = KERNEL.gram(theta, X[seen]) + (noise + JITTER) * np.eye(seen.size)
                total += stats.multivariate_normal.logpdf(y[~np.isnan(y)], cov=K)
    return total


@pytest.mark.parametrize("missing", [False, True])
def test_value_is_that_of_the_blocks(case, missing):
    X, Y = data(missing=missing)
    o = objective(case, Y)
    rows = np.array([0, 1, 2, 4, 5, 7, 9])
    index = np.array([[0, 1, 2], [3, 1, 6], [5, 4, 1]])
    x = o.unknowns.layout.start() + 0.2
    f, _, _ = o.evaluate(case.asarray(x), case.asarray(X[rows]), rows, index)
    theta, noise, _ = o.unknowns.values(o.backend, case.asarray(x))
    theta, noise = case.to_numpy(theta), float(case.to_numpy(noise))
    value = 12.0 / 9.0 * by_hand(X, Y, rows[index], theta, noise)
    value += stats.lognorm(1.0, scale=np.exp(-2.0)).logpdf(noise)
    value += stats.lognorm(0.5).logpdf(theta[0])
    value += 12.0 / 7.0 * stats.norm(0.1, 1.2).logpdf(X[rows]).sum()
    np.testing.assert_allclose(case.to_numpy(f), -value, rtol=case.tolerance(1e-12, 2e-6))


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.only_backend("numpy-f64", "strict-f64", "torch-cpu", "emulated")
def test_gradients(case, missing):
    """In kernel and noise that of the value; in a row the mean over its blocks, and its prior."""
    X, Y = data(missing=missing)
    o = objective(case, Y)
    rows = np.array([0, 1, 2, 4, 5, 7, 9])
    index = np.array([[0, 1, 2], [3, 1, 6], [5, 4, 1]])
    x, here = case.asarray(o.unknowns.layout.start() + 0.2), case.asarray(X[rows])
    check_gradient(lambda v: o.evaluate(v, here, rows, index)[:2], x)
    gX = case.to_numpy(o.evaluate(x, here, rows, index)[2])
    theta, noise, _ = o.unknowns.values(o.backend, x)
    theta, noise = case.to_numpy(theta), float(case.to_numpy(noise))
    for place, row in enumerate(rows):
        mine = index[np.any(index == place, axis=1)]

        def terms(z, row=row, mine=mine):
            moved = X.copy()
            moved[row] = z
            prior = stats.norm(0.1, 1.2).logpdf(z).sum()
            return -by_hand(moved, Y, rows[mine], theta, noise) / len(mine) - prior

        for a in range(2):
            steps = []
            for h in (1e-3, 5e-4):
                up, down = X[row].copy(), X[row].copy()
                up[a], down[a] = up[a] + h, down[a] - h
                steps.append((terms(up) - terms(down)) / (2.0 * h))
            slope = (4.0 * steps[1] - steps[0]) / 3.0
            np.testing.assert_allclose(gX[place, a], slope, rtol=1e-7, atol=1e-8)


def test_gradients_by_autograd():
    """The mean over a row's blocks, by PyTorch."""
    torch = pytest.importorskip("torch")
    X, Y = data()
    with_numpy = Case("", "float64", np.asarray)
    o = objective(with_numpy, Y, priors={}, prior=None)
    index = nearest(X, 4)[::2]
    rows, local = np.unique(index, return_inverse=True)
    x = o.unknowns.layout.start()
    f, gx, gX = o.evaluate(x, X[rows], rows, local.reshape(index.shape))
    v = torch.tensor(x, requires_grad=True)
    Z = torch.tensor(X, requires_grad=True)
    variance, ell, slope, noise = torch.exp(v)
    blocks = []
    for b in index:
        z, y = Z[b.copy()], torch.tensor(Y[b])
        r2 = ((z[:, None] - z[None]) ** 2).sum(-1) / ell**2
        K = (
            variance * torch.exp(-0.5 * r2)
            + slope * z @ z.T
            + (noise + JITTER) * torch.eye(4).double()
        )
        density = torch.distributions.MultivariateNormal(torch.zeros(4, dtype=torch.float64), K)
        blocks.append(-density.log_prob(y.T).sum())
    total = sum(blocks)
    (each,) = torch.autograd.grad(total, Z, retain_graph=True)
    (shared,) = torch.autograd.grad(total, v)
    visits = np.bincount(local.ravel())
    np.testing.assert_allclose(f, 0.5 * total.item(), rtol=1e-12)
    np.testing.assert_allclose(gx, 0.5 * shared.numpy(), rtol=1e-10)
    np.testing.assert_allclose(gX, each.numpy()[rows] / visits[:, None], rtol=1e-9, atol=1e-12)


# -- the search ------------------------------------------------------------------------------------


def numpy_objective(Y, **options):
    return objective(Case("", "float64", np.asarray), Y, **options)


PLAIN = Pace(
    4, 3, 1, learning_rate=1e-3, kernel_learning_rate=1e-4, momentum=0.8, adaptive=False, seed=5
)


@pytest.mark.parametrize("adaptive", [False, True])
def test_steps_are_those_of_the_paper(adaptive):
    """Centre, neighbours, gradient, momentum: followed by hand over two epochs of batches."""
    X, Y = data()
    o = numpy_objective(Y)
    pace = dataclasses.replace(PLAIN, epochs=2, adaptive=adaptive)
    x, Z = o.unknowns.layout.start(), X.copy()
    m, v, mx, vx = (np.zeros_like(a) for a in (Z, Z, x, x))
    age, step, values = np.zeros(12), 0, []
    for epoch in range(2):
        index, seen = nearest(Z, 4), []
        radius = np.median([np.sum((Z[row[0]] - Z[row[-1]]) ** 2) for row in index]) ** 0.5
        order = np.random.default_rng((5, epoch)).permutation(np.arange(12))
        for part in np.array_split(order, 4):
            rows, local = np.unique(index[part], return_inverse=True)
            f, gx, gX = o.evaluate(x, Z[rows], rows, local.reshape(-1, 4))
            seen.append(f)
            factor = 0.5 * (1.0 + np.cos(np.pi * step / 8))
            step += 1
            age[rows] += 1
            if adaptive:
                m[rows] = 0.8 * m[rows] + 0.2 * gX
                v[rows] = 0.99 * v[rows] + 0.01 * gX**2
                old = age[rows, None]
                root = np.sqrt(v[rows] / (1 - 0.99**old)) + 1e-8
                Z[rows] -= 1e-3 * radius * factor * m[rows] / (1 - 0.8**old) / root
                mx, vx = 0.8 * mx + 0.2 * gx, 0.99 * vx + 0.01 * gx**2
                root = np.sqrt(vx / (1 - 0.99**step)) + 1e-8
                x = x - 1e-4 * factor * mx / (1 - 0.8**step) / root
            else:
                m[rows] = 0.8 * m[rows] - 1e-3 * factor * gX
                Z[rows] += m[rows]
                mx = 0.8 * mx - 1e-4 * factor * gx * 4 / 12
                x = x + mx
        values.append(np.mean(seen))
    found = search_neighbourhoods(o, X, pace)
    assert found.status == "finished"
    assert found.steps == 8
    np.testing.assert_allclose(found.values, values, rtol=1e-12)
    # The end of the other epoch would be kept otherwise.
    assert np.argmin(values) == 1
    np.testing.assert_allclose(found.latents, Z, rtol=1e-10)
    theta, noise, _ = o.unknowns.values(o.backend, x)
    np.testing.assert_allclose(found.kernel.theta(), theta, rtol=1e-12)
    np.testing.assert_allclose(found.noise, noise, rtol=1e-12)


def test_only_rows_of_the_blocks_move():
    X, Y = data(n=40)
    found = search_neighbourhoods(
        numpy_objective(Y), X, dataclasses.replace(PLAIN, centres=np.array([3, 17]))
    )
    touched = np.unique(nearest(X, 4)[[3, 17]])
    still = np.setdiff1d(np.arange(40), touched)
    np.testing.assert_array_equal(found.latents[still], X[still])
    assert np.all(np.any(found.latents[touched] != X[touched], axis=1))


def test_every_library_takes_the_same_steps(case):
    X, Y = data(missing=True)
    pace = Pace(4, 5, 3, seed=1)
    want = search_neighbourhoods(numpy_objective(Y), X, pace)
    found = search_neighbourhoods(objective(case, Y), X, pace)
    np.testing.assert_allclose(found.values, want.values, rtol=case.tolerance(1e-10, 1e-3))
    np.testing.assert_allclose(found.latents, want.latents, atol=case.tolerance(1e-9, 5e-2))
    again = search_neighbourhoods(objective(case, Y), X, pace)
    np.testing.assert_array_equal(found.latents, again.latents)


@pytest.mark.only_backend("strict-device1-f64", "strictest", "emulated")
@pytest.mark.parametrize("missing", [False, True])
def test_a_step_reads_no_number(case, missing, monkeypatch):
    """On a GPU every reading would wait for the device."""
    X, Y = data(missing=missing)
    search = neighbourhood_fit._Search(objective(case, Y), X, Pace(4, 5, 2))
    blocks, kind = nearest(X, 4)[:5], type(case.asarray(np.zeros(1)))

    def refuse(*args, **kwargs):
        raise AssertionError("a number was read")

    names = ["__float__", "__bool__", "__int__", "__index__", "__complex__"]
    for name in names if case.id == "emulated" else [*names, "__array__"]:
        monkeypatch.setattr(kind, name, refuse)
    value = search._step(blocks)
    search._step(blocks)
    monkeypatch.undo()
    assert np.isfinite(case.to_numpy(value))


def test_a_search_goes_on_in_rounds(monkeypatch):
    """Of an epoch with many blocks neighbours are found again in between."""
    X, Y = data(n=20)
    monkeypatch.setattr(neighbourhood_fit, "REFRESH", 8)
    told = []
    found = search_neighbourhoods(
        numpy_objective(Y), X, dataclasses.replace(PLAIN, epochs=2), lambda *a: told.append(a)
    )
    assert PLAIN.rounds(20) == 3
    assert len(found.values) == 6
    assert [a[0] for a in told] == [1, 2, 3, 4, 5, 6]
    assert found.steps == told[-1][1] == 2 * (3 + 3 + 2)
    assert [a[2] for a in told] == list(found.values)


def test_the_rates_rise_over_a_ramp():
    X, Y = data()
    one = dataclasses.replace(PLAIN, batch_size=12)
    full = search_neighbourhoods(numpy_objective(Y), X, one).latents - X
    slow = search_neighbourhoods(numpy_objective(Y), X, dataclasses.replace(one, ramp=3)).latents
    np.testing.assert_allclose(slow - X, full / 4.0, rtol=1e-10)


@pytest.mark.parametrize("how", ["stopped", "interrupted", "time_limit"])
def test_early_ends_keep_the_best_round(how):
    X, Y = data(n=30)
    o, pace = numpy_objective(Y), Pace(5, 6, 20, seed=2)
    whole = search_neighbourhoods(o, X, pace)

    def callback(rounds, steps, value, seconds):
        if rounds < 3 or how == "time_limit":
            return None
        if how == "interrupted":
            raise KeyboardInterrupt
        return True

    if how == "time_limit":
        found = search_neighbourhoods(o, X, dataclasses.replace(pace, time_limit=0.0), callback)
        # One step is taken, of a round that it does not fill.
        assert (found.steps, len(found.values)) == (1, 1)
    else:
        found = search_neighbourhoods(o, X, pace, callback)
        assert found.values == whole.values[:3]
        assert found.value == min(whole.values[:3])
    assert found.status == how
    assert np.all(np.isfinite(found.latents))


def test_an_interrupt_within_a_round_keeps_what_was_reached(monkeypatch):
    X, Y = data(n=30)
    o, pace = numpy_objective(Y), Pace(5, 6, 20, seed=2)
    calls = []
    plain = NeighbourhoodObjective.evaluate

    def broken(self, *args):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, *args)

    monkeypatch.setattr(NeighbourhoodObjective, "evaluate", broken)
    found = search_neighbourhoods(o, X, pace)
    assert (found.status, found.steps, found.values) == ("interrupted", 2, ())
    assert np.any(found.latents != X)


def test_nothing_that_can_be_evaluated_is_a_failure():
    X, Y = data()
    Y = 1e200 * Y
    found = search_neighbourhoods(numpy_objective(Y), X, PLAIN)
    assert found.status == "failed"
    assert np.all(np.isfinite(found.latents))


def test_held_parameters_stay():
    X, Y = data()
    held = frozenset({"rbf.variance", "rbf.lengthscale", "linear.variance", "noise"})
    found = search_neighbourhoods(numpy_objective(Y, priors={}, held=held), X, PLAIN)
    np.testing.assert_array_equal(found.kernel.theta(), KERNEL.theta())
    assert found.noise == NOISE
    assert np.any(found.latents != X)
