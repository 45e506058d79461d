"""Newton's method for the exact GPLVM: its matrices, its flat directions, and what it certifies."""

from __future__ import annotations

import dataclasses
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

import gplvm_xp
from gplvm_xp import GPLVM, SparseGPLVM, backend, kernels, row_priors
from gplvm_xp.estimators._gauge import flat_directions, invariances
from gplvm_xp.estimators._newton import second_order
from gplvm_xp.kernels.curvature import Curvature
from gplvm_xp.kernels.radial import Radial
from gplvm_xp.objectives import ExactObjective, groups_of
from gplvm_xp.objectives.exact_hessian import HessianPoint
from gplvm_xp.objectives.exact_matrices import matrices
from gplvm_xp.objectives.exact_point import ExactPoint
from gplvm_xp.priors import Gamma, Gaussian, LogNormal, Prior


def curve(n=30, D=5, seed=0):
    """A noisy curve in D dimensions."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.uniform(-2.0, 2.0, n))
    basis = np.stack([np.sin(t), np.cos(2 * t), t, t * t / 2, np.tanh(2 * t)], axis=1)
    return basis @ rng.standard_normal((5, D)) + 0.1 * rng.standard_normal((n, D))


def no_directions(objective, x):
    return np.zeros((x.shape[0], 0))


OFF_CENTRE = Gaussian(0.2, 1.3)


def problem(b, kernel, n=13, D=4, missing=False, prior=OFF_CENTRE, priors=None, held=()):
    """An objective, and a point of it away from anything special."""
    rng = np.random.default_rng(0)
    Y = rng.standard_normal((n, D))
    if missing:
        Y[2:5, 0] = Y[1, 2] = np.nan
    Y = Y - np.nanmean(Y, axis=0)
    X = rng.standard_normal((n, 2))
    o = ExactObjective(kernel, groups_of(b, Y), X, 0.3, prior, priors or {}, frozenset(held), 1e-8)
    return o, b.asarray(o.layout.start() + 0.1 * rng.standard_normal(o.layout.size))


def dense(point):
    """Hessian and Fisher information of a HessianPoint in the order of the flat vector."""
    b = backend.of(point.x)
    H, F = matrices(point.exact, point._order)
    eye = b.eye(point.x.shape[0])
    turn = point._order
    return tuple(
        np.stack(
            [b.to_host(turn.back(M @ turn.here(eye[:, i]))) for i in range(eye.shape[0])], axis=1
        ).astype(np.float64)
        for M in (H, F)
    )


# -- the matrices ----------------------------------------------------------------------------------

KERNELS = {
    "rbf": kernels.RBF(1.3, 0.7),
    "ard": kernels.RBF(1.3, (0.7, 1.1)),
    "matern32": kernels.Matern32(1.2, 0.8),
    "rational quadratic": kernels.RationalQuadratic(),
    "linear": kernels.Linear(),
    "polynomial": kernels.Polynomial(),
    "periodic": kernels.Periodic(),
    "hexagonal": kernels.Hexagonal(),
    "product": kernels.RBF() * kernels.Linear() + kernels.White(0.2),
    "some dimensions": kernels.ActiveDims(kernels.RBF(), (0,))
    + kernels.ActiveDims(kernels.Matern52(), (1,)),
}
CASES = {
    "plain": {},
    "missing": {"missing": True, "priors": {"noise": LogNormal(-1.0, 0.7)}},
    "no prior": {"prior": None, "held": ("noise",)},
}


@pytest.mark.parametrize("setting", CASES)
@pytest.mark.parametrize("name", KERNELS)
def test_the_matrix_is_that_of_the_products(name, setting):
    o, x = problem(backend.get("numpy"), KERNELS[name], **CASES[setting])
    H = dense(HessianPoint(o, x, no_directions))[0]
    point = ExactPoint(o, x)
    want = np.stack([point.hvp(e) for e in np.eye(x.size)], axis=1)
    np.testing.assert_allclose(H, want, atol=1e-10 * np.abs(want).max())


@pytest.mark.parametrize("kernel", [KERNELS["ard"], KERNELS["rational quadratic"]])
def test_mixed_derivatives_of_radial_kernels_are_the_general_ones(case, kernel):
    rng = np.random.default_rng(2)
    X, Z, G = (case.asarray(rng.standard_normal(s)) for s in ((4, 2), (5, 2), (4, 5)))
    curvature, theta = kernel.curvature(), case.asarray(kernel.theta())
    for a in range(2):
        got, want = (f(theta, X, Z, G, a) for f in (curvature.mixed, partial(general, curvature)))
        for one, two in zip(got, want, strict=True):
            assert len(one) == len(two) == a + 1
            for x, y in zip(one, two, strict=True):
                np.testing.assert_allclose(
                    case.to_numpy(x), case.to_numpy(y), atol=case.tolerance(1e-13, 1e-5)
                )


def general(curvature, *arguments):
    """The form for every kernel."""
    return Curvature.mixed(curvature, *arguments)


@pytest.mark.parametrize("name", KERNELS)
def test_the_information_is_its_definition(name):
    kernel = KERNELS[name]
    o, x = problem(backend.get("numpy"), kernel, prior=None)
    F = dense(HessianPoint(o, x, no_directions))[1]
    theta, noise, X = o.values(x)
    K = kernel.gram(theta, X) + (noise + o.jitter) * np.eye(X.shape[0])
    moves = []
    for k in range(theta.size):
        scale = theta[k] if kernel_block(kernel, k).transform == "log" else 1.0
        step = scale * np.eye(theta.size)[k]
        moves.append(kernel.gram_jvp(theta, X, dtheta=step))
    moves.append(noise * np.eye(X.shape[0]))
    units = np.eye(X.size).reshape(X.size, *X.shape)
    moves += [kernel.gram_jvp(theta, X, dX=unit) for unit in units]
    solved = [np.linalg.solve(K, move) for move in moves]
    want = np.array([[0.5 * 4 * np.sum(a * c.T) for a in solved] for c in solved])
    np.testing.assert_allclose(F, want, atol=1e-10 * np.abs(want).max())
    assert np.linalg.eigvalsh(F)[0] > -1e-10 * np.abs(want).max()


def kernel_block(kernel, k):
    """The block of theta[k]."""
    return [block for block in kernel.blocks() for _ in range(block.size)][k]


def test_the_matrix_against_autograd():
    torch = pytest.importorskip("torch")
    n, D = 9, 3
    b = backend.get("numpy")
    o, x = problem(b, kernels.RBF(1.3, 0.7), n=n, D=D, priors={"rbf.variance": Gamma(2.0, 1.0)})
    Y = torch.tensor(o.groups[0].Y)
    m, sd = o.latent_prior.mean, o.latent_prior.sd

    def negative_log_posterior(v):
        variance, ell, noise = torch.exp(v[0]), torch.exp(v[1]), torch.exp(v[2])
        Z = v[3:].reshape(n, 2) / ell
        r2 = ((Z[:, None, :] - Z[None, :, :]) ** 2).sum(-1)
        K = variance * torch.exp(-0.5 * r2) + (noise + o.jitter) * torch.eye(n, dtype=v.dtype)
        likelihood = -0.5 * (Y * torch.linalg.solve(K, Y)).sum() - 0.5 * D * torch.logdet(K)
        prior = -0.5 * ((v[3:] - m) ** 2).sum() / sd**2 + torch.log(variance) - variance
        return -(likelihood + prior)

    want = torch.autograd.functional.hessian(negative_log_posterior, torch.tensor(x)).numpy()
    got = dense(HessianPoint(o, x, no_directions))[0]
    np.testing.assert_allclose(got, want, atol=1e-11 * np.abs(want).max())


def test_the_matrices_in_every_library(case):
    kernel = kernels.RBF(1.3, (0.7, 1.1)) + kernels.White(0.2)
    o, x = problem(case.backend, kernel, n=9, missing=True)
    exact, at = problem(backend.get("numpy"), kernel, n=9, missing=True)
    got = dense(HessianPoint(o, x, no_directions))
    want = dense(HessianPoint(exact, at, no_directions))
    for one, two in zip(got, want, strict=True):
        tolerance = case.tolerance(1e-11, 1e-4) * np.abs(two).max()
        np.testing.assert_allclose(one, two, atol=tolerance)


def test_the_metric_is_positive_and_solved_with(case):
    o, x = problem(case.backend, kernels.RBF(1.3, 0.7), n=9, prior=Gaussian())
    point = HessianPoint(o, x, flat_directions)
    u = case.asarray(np.random.default_rng(3).standard_normal(x.shape[0]))
    back = case.to_numpy(point.scale(point.solve(u)))
    np.testing.assert_allclose(back, case.to_numpy(u), atol=case.tolerance(1e-10, 2e-3))
    for v in (point.gradient(), point.hvp(u), point.precondition(u)):
        along = case.to_numpy(point.directions).T @ case.to_numpy(v)
        assert np.abs(along).max() <= case.tolerance(1e-12, 1e-4) * np.abs(case.to_numpy(v)).max()


def test_a_parameter_on_its_way_to_nothing_is_refused(case):
    o, x = problem(case.backend, kernels.RBF(1.3, 0.7), n=9)
    host = case.to_numpy(x)
    for place, value in ((0, -150.0), (2, -150.0), (2, 101.0)):
        far = host.copy()
        far[place] = value
        point = HessianPoint(o, case.asarray(far), no_directions)
        assert np.isposinf(case.to_numpy(point.value))
    # Latents are not logarithms.
    far = host.copy()
    far[3] = 150.0
    assert np.isfinite(case.to_numpy(HessianPoint(o, case.asarray(far), no_directions).value))


# -- flat directions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "q", "learned", "prior", "count"),
    [
        (kernels.RBF(1.0, 0.5), 1, (0,), Gaussian(), 0),
        (kernels.RBF(1.0, 0.5), 2, (0,), Gaussian(), 1),
        (kernels.RBF(1.0, 0.5), 2, (0,), Gaussian(1.0, 2.0), 1),
        (kernels.RBF(1.0, 0.5), 4, (0,), Gaussian(), 6),
        (kernels.RBF(1.0, 0.5), 2, (0,), None, 3),
        (kernels.RBF(1.0, 0.5), 2, (0, 1), None, 4),
        (kernels.RBF(1.0, (0.5, 0.8)), 2, (0,), Gaussian(), 0),
        (kernels.RBF(1.0, (0.5, 0.8)), 2, (0, 1, 2), None, 5),
        (kernels.RBF(1.0, 0.01), 2, (0,), Gaussian(), 1),
        (kernels.RBF(1.0, 50.0), 2, (0,), Gaussian(), 1),
        (kernels.RBF() + kernels.White(0.1), 2, (0, 2), Gaussian(), 2),
        (kernels.Linear(), 2, (), Gaussian(), 1),
        (kernels.Periodic(), 2, (), None, 2),
        (kernels.Hexagonal(), 2, (0, 1, 2, 3), None, 4),
        (
            kernels.ActiveDims(kernels.RBF(), (0, 2)) + kernels.ActiveDims(kernels.RBF(), (1,)),
            3, (), Gaussian(), 1,
        ),
    ],
)  # fmt: skip
def test_invariances_are_found(kernel, q, learned, prior, count):
    X = np.random.default_rng(1).standard_normal((20, q))
    theta = kernel.theta()
    natural = np.append(theta, 0.3)
    scale = [theta[k] if kernel_block(kernel, k).transform == "log" else 1.0 for k in learned]
    rates = np.zeros((natural.size, len(learned) + 1))
    for column, k in enumerate(learned):
        rates[k, column] = scale[column]
    rates[-1, -1] = 0.3
    A, t, r = invariances(kernel, theta, 0.3, X, rates, prior)
    assert A.shape == (count, q, q)
    # At other points than those they were found at.
    for k in range(count):
        moved = rates @ r[k]
        dK = kernel.gram_jvp(theta, X, dtheta=moved[:-1], dX=X @ A[k] + t[k])
        dK = dK + moved[-1] * np.eye(20)
        size = np.abs(A[k]).max() + np.abs(t[k]).max() + np.abs(r[k]).max()
        assert np.abs(dK).max() < 1e-7 * size * np.abs(kernel.gram(theta, X)).max()


def test_a_prior_of_its_own_holds_a_parameter():
    b = backend.get("numpy")
    kernel = kernels.RBF() + kernels.White(0.1)
    free, x = problem(b, kernel, prior=Gaussian())
    tied, y = problem(b, kernel, prior=Gaussian(), priors={"noise": LogNormal(0.0, 1.0)})
    assert flat_directions(free, x).shape[1] == 2
    assert flat_directions(tied, y).shape[1] == 1


# -- the search ------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["newton", "lbfgs+newton"])
def test_it_ends_at_a_certified_minimum(optimizer):
    Y = curve()
    model = GPLVM(optimizer=optimizer, tol=1e-8).fit(Y)
    c = model.certificate_
    assert c.certified, c.message
    assert c.message.startswith("certified local minimum up to rotations")
    assert (model.status_, c.gauge_dimension, c.n_escaped) == ("converged", 1, 0)
    assert c.grad_norm <= 1e-8
    assert c.smallest_ritz_value > 1e3 * c.ritz_residual
    assert np.all(np.diff(model.loss_curve_) <= 1e-9)
    assert len(model.loss_curve_) == model.n_iter_ + 1
    # The raw Hessian, computed anew: singular along the rotation, positive across it.
    o, x = fitted_problem(model, Y)
    H = dense(HessianPoint(o, x, no_directions))[0]
    w, V = np.linalg.eigh(H)
    assert abs(w[0]) < 1e-5
    assert w[1] == pytest.approx(c.smallest_ritz_value, rel=1e-5)
    A = np.array([[0.0, 1.0], [-1.0, 0.0]])
    turn = np.concatenate([np.zeros(2), (model.embedding_ @ A).ravel()])
    assert abs(V[:, 0] @ turn) / np.linalg.norm(turn) > 1 - 1e-6
    assert np.abs(o.value_and_grad(x)[1]).max() < 1e-6


def test_the_search_in_every_library(case):
    if case.single:
        pytest.skip("second order is for float64")
    Y = curve(14) - curve(14).mean(axis=0)
    X = np.random.default_rng(4).standard_normal((14, 2))
    ends = []
    for b in (case.backend, backend.get("numpy")):
        held = frozenset({"rbf.lengthscale"})
        kernel = kernels.RBF(1.0, 0.7)
        o = ExactObjective(kernel, groups_of(b, Y), X, 0.1, Gaussian(), held=held)
        limits = SimpleNamespace(optimizer="lbfgs+newton", tol=1e-7, time_left=lambda: None)
        ends.append(second_order(o, limits, 200, None))
    got, want = ends
    assert got.certificate.certified, got.certificate.message
    assert got.value == pytest.approx(want.value, abs=1e-9)
    assert got.certificate.smallest_ritz_value == pytest.approx(
        want.certificate.smallest_ritz_value, rel=1e-6
    )


def fitted_problem(model, Y):
    """The objective of a model fitted with the default kernel, at its end."""
    b = backend.get("numpy")
    o = ExactObjective(
        model.kernel_, groups_of(b, Y - model.mean_), model.embedding_, model.noise_variance_,
        Gaussian(), {}, frozenset({"rbf.lengthscale"}), model.jitter_,
    )  # fmt: skip
    return o, o.start()


def test_missing_entries_and_a_tree_of_kernels():
    Y = curve()
    Y[3:6, 1] = Y[9, 0] = np.nan
    kernel = kernels.RBF(1.0, (0.5, 0.6)) + kernels.Linear()
    model = GPLVM(kernel=kernel, optimizer="newton", tol=1e-7).fit(Y)
    assert model.certificate_.certified
    assert model.certificate_.gauge_dimension == 0
    assert "rotations" not in model.certificate_.message


def saddle(Y):
    """The minimum with one latent dimension beside a column of zeros: stationary by symmetry."""
    line = GPLVM(1, optimizer="newton", tol=1e-10).fit(Y)
    assert line.certificate_.certified
    start = np.column_stack([line.embedding_, np.zeros(Y.shape[0])])
    return line, {
        "init": start,
        "kernel": line.kernel_,
        "noise_variance": line.noise_variance_,
        "jitter": line.jitter_ / np.mean((Y - line.mean_) ** 2),
    }


def test_it_leaves_a_saddle_point():
    Y = curve(D=6)
    line, start = saddle(Y)
    model = GPLVM(optimizer="newton", tol=1e-7, **start).fit(Y)
    c = model.certificate_
    assert c.n_escaped >= 1
    assert c.certified, c.message
    values = model.loss_curve_
    assert values[0] == pytest.approx(line.loss_curve_[-1] + 0.5 * 30 * np.log(2 * np.pi))
    assert values[-1] < values[0] - 1.0
    assert np.all(np.diff(values) <= 1e-9)


def test_a_saddle_point_is_not_certified():
    Y = curve(D=6)
    _, start = saddle(Y)
    model = GPLVM(optimizer="newton", tol=1e-7, max_iter=0, **start)
    with pytest.warns(UserWarning, match="max_iter=0"):
        model.set_params(tol=1e-14).fit(Y)
    assert not model.certificate_.certified
    assert "ended early" in model.certificate_.message


def test_a_flat_direction_is_not_certified():
    # The kernel does not see the second dimension, and no prior holds it.
    kernel = kernels.ActiveDims(kernels.RBF(1.0, 0.5), (0,))
    model = GPLVM(kernel=kernel, latent_prior=None, optimizer="newton", tol=1e-6).fit(curve())
    c = model.certificate_
    assert not c.certified
    assert "not certified" in c.message
    assert c.smallest_ritz_value < 1e-6


def test_a_tolerance_below_rounding_is_not_certified():
    model = GPLVM(optimizer="newton", tol=0.0).fit(curve(20))
    assert model.status_ == "converged"
    assert model.certificate_.grad_norm < 1e-6
    assert not model.certificate_.certified
    assert "positive definite, but" in model.certificate_.message


def test_directions_that_are_not_flat_spoil_the_certificate(monkeypatch):
    def wrong(objective, x):
        U = np.zeros((x.shape[0], 1))
        U[4, 0] = 1.0
        return U

    monkeypatch.setattr("gplvm_xp.estimators._newton.flat_directions", wrong)
    model = GPLVM(optimizer="newton", tol=1e-5, max_iter=200).fit(curve(20))
    assert not model.certificate_.certified


def test_callback_time_limit_and_keyboard_keep_the_best_state():
    Y = curve()
    seen = []

    def stop(progress):
        seen.append(progress)
        return progress.step == 4

    model = GPLVM(optimizer="lbfgs+newton", tol=1e-8, callback=stop).fit(Y)
    assert model.status_ == "stopped"
    assert [p.step for p in seen] == [0, 1, 2, 3, 4]
    assert model.loss_curve_[-1] == seen[-1].value
    assert not model.certificate_.certified
    seen.clear()
    model = GPLVM(optimizer="newton", tol=1e-8, callback=seen.append).fit(Y)
    assert [p.step for p in seen] == list(range(model.n_iter_ + 1))
    assert [p.value for p in seen] == list(model.loss_curve_)
    assert seen[-1].evaluations >= len(seen)

    def interrupt(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    for optimizer in ("newton", "lbfgs+newton"):
        with pytest.warns(UserWarning, match="interrupted by the keyboard"):
            model = GPLVM(optimizer=optimizer, tol=1e-8, callback=interrupt).fit(Y)
        assert model.status_ == "interrupted"
        assert len(model.loss_curve_) == 4
        assert "ended early" in model.certificate_.message
        with pytest.warns(UserWarning, match="time_limit"):
            model = GPLVM(optimizer=optimizer, time_limit=0.0).fit(Y)
        assert model.status_ == "time_limit"
        assert not model.certificate_.certified
    with pytest.warns(UserWarning, match="max_iter=3"):
        model = GPLVM(optimizer="newton", max_iter=3).fit(Y)
    assert model.n_iter_ <= 3


def test_restarts_keep_the_certificate_of_the_best():
    model = GPLVM(optimizer="newton", tol=1e-7, n_restarts=2, random_state=0).fit(curve(20))
    assert model.certificate_.certified
    assert model.certificate_.grad_norm <= 1e-7


def test_a_start_without_a_factor_gets_more_jitter():
    Y = np.repeat(curve(10), 2, axis=0)
    start = np.repeat(np.random.default_rng(0).standard_normal((10, 2)), 2, axis=0)
    kernel = kernels.RBF(1.0, 5.0)
    model = GPLVM(
        kernel=kernel, init=start, noise_variance=1e-30, jitter=0.0, optimizer="newton", max_iter=5
    )
    with pytest.warns(UserWarning, match="max_iter=5"):
        model.fit(Y)
    assert model.jitter_ > 0.0
    assert np.all(np.isfinite(model.loss_curve_))


def test_the_certificate_is_in_the_file(tmp_path):
    model = GPLVM(optimizer="newton", tol=1e-7).fit(curve(20))
    model.save(tmp_path / "m.npz")
    again = gplvm_xp.load(tmp_path / "m.npz")
    assert again.certificate_ == model.certificate_
    assert dataclasses.asdict(again.certificate_)["certified"] is True
    assert GPLVM(tol=1e-2).fit(curve(20)).certificate_ is None


# -- what it can't do ------------------------------------------------------------------------------


class Laplace(Prior):
    def log_densities(self, value):
        return -abs(value), -np.sign(value)


@dataclasses.dataclass(frozen=True)
class Cauchy(Radial):
    """1/(1 + u), without second derivatives."""

    def profile(self, b, u, e):
        return 1.0 / (1.0 + u)

    def profile_slope(self, b, u, e):
        k = 1.0 / (1.0 + u)
        return k, k * k, -1.0


@pytest.mark.parametrize("optimizer", ["newton", "lbfgs+newton"])
@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"dtype": "float32"}, ValueError, "float64"),
        ({"back_constraint": "kernel"}, ValueError, "optimizer='scipy'"),
        ({"latent_prior": row_priors.Dynamics()}, ValueError, "optimizer='scipy'"),
        ({"latent_prior": Laplace()}, NotImplementedError, "curvatures"),
        ({"kernel": Cauchy(1.0, 0.5)}, NotImplementedError, "no second derivatives"),
    ],
)
def test_what_has_no_second_derivatives_is_refused(optimizer, settings, error, match):
    with pytest.raises(error, match=match):
        GPLVM(optimizer=optimizer, **settings).fit(curve(20))


def test_other_models_do_not_take_it():
    with pytest.raises(ValueError, match="optimizer='newton' was given"):
        SparseGPLVM(optimizer="newton").fit(curve())
    with pytest.raises(ValueError, match="'lbfgs\\+newton'"):
        GPLVM(optimizer="newtonn").fit(curve())


def test_memory_is_asked_for_first(monkeypatch):
    monkeypatch.setattr("gplvm_xp.backend._numpy.NumpyBackend.memory_available", lambda self: 30000)
    match = r"Hessian of 62 .*optimizer='lbfgs'"
    with pytest.raises(gplvm_xp.errors.NotEnoughMemoryError, match=match):
        GPLVM(optimizer="newton").fit(curve())
