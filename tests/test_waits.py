"""No number is read from an array between the door in and the door out.

On a GPU every such reading waits for the device. Here the arrays themselves refuse it: those of
array-api-strict by a patch, those of the emulated GPU by nature.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from conftest import Case, open_case, why_not

from gplvm_xp.kernels import (
    RBF,
    ActiveDims,
    Constant,
    Hexagonal,
    Linear,
    Matern32,
    Matern52,
    Periodic,
    Polynomial,
    RationalQuadratic,
    White,
)
from gplvm_xp.latents import RowFacts
from gplvm_xp.objectives import ExactObjective, groups_of
from gplvm_xp.objectives.bayesian import BayesianObjective, Observed
from gplvm_xp.objectives.exact_point import ExactPoint
from gplvm_xp.predict import NewRows, Posterior
from gplvm_xp.priors import Gamma, Gaussian, LogNormal
from gplvm_xp.row_priors import Discriminative, Dynamics, OverTime

KERNELS = {
    "leaves": RBF(1.0, (0.8, 1.1)) + Matern32() + Matern52() + RationalQuadratic(),
    "products": Linear() * Polynomial() + Periodic() * Constant(0.5) + White(0.1),
    "parts": 0.7 * ActiveDims(RBF(), (1,)) + ActiveDims(Linear(), (0,)) + Hexagonal(),
}
PRIORS = {
    "leaves": {"rbf.lengthscale": LogNormal(), "noise": Gamma()},
    "products": {"linear.variance": Gaussian(1.0, 1.0)},
    "parts": {"scale.factor": Gamma()},
}


class HiddenWaitError(AssertionError):
    """A number was read."""


@pytest.fixture(params=["strict-device1-f64", "strictest", "emulated"])
def guarded(request: pytest.FixtureRequest) -> Iterator[Case]:
    """A case whose arrays can be made to give no numbers away, see ``lock``."""
    if why_not(request.param):
        pytest.skip(f"{request.param}: {why_not(request.param)}")
    with open_case(request.param) as case:
        yield case


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch):
    """Make the arrays of a case refuse from now on."""

    def refuse(*args, **kwargs):
        raise HiddenWaitError("a number was read from an array outside to_host")

    def locked(case: Case) -> None:
        kind = type(case.asarray(np.zeros(1)))
        for name in ("__float__", "__bool__", "__int__", "__index__", "__complex__"):
            monkeypatch.setattr(kind, name, refuse)
        # Reading through NumPy would be another way out.
        if case.id != "emulated":
            monkeypatch.setattr(kind, "__array__", refuse)

    return locked


def problem(seed=0, n=9, D=4, missing=False):
    rng = np.random.default_rng(seed)
    X, Y = rng.standard_normal((n, 2)), rng.standard_normal((n, D))
    if missing:
        Y[2, 1] = Y[5:, 3] = np.nan
    return X, Y - np.nanmean(Y, axis=0)


@pytest.mark.parametrize("reading", [float, bool, int, complex, lambda a: [0, 1][a]])
def test_a_planted_reading_is_caught(guarded, lock, reading):
    x = guarded.asarray(np.zeros(2))
    a = guarded.backend.xp.sum(x)
    lock(guarded)
    with pytest.raises((HiddenWaitError, TypeError), match="was read"):
        reading(a)


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("name", KERNELS)
def test_value_and_grad(guarded, lock, name, missing):
    X, Y = problem(missing=missing)
    fun = ExactObjective(
        KERNELS[name], groups_of(guarded.backend, Y), X, 0.2, latent_prior=Gaussian(),
        priors=PRIORS[name], held=frozenset({"noise"} - set(PRIORS[name])),
    )  # fmt: skip
    x = fun.start()
    lock(guarded)
    f, g = fun.value_and_grad(x)
    assert f.shape == ()
    assert g.shape == x.shape


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("name", KERNELS)
def test_second_derivatives(guarded, lock, name, missing):
    X, Y = problem(missing=missing)
    fun = ExactObjective(
        KERNELS[name], groups_of(guarded.backend, Y), X, 0.2, latent_prior=Gaussian(),
        priors=PRIORS[name], held=frozenset({"noise"} - set(PRIORS[name])),
    )  # fmt: skip
    x = fun.start()
    lock(guarded)
    point = ExactPoint(fun, x)
    u = point.gradient()
    assert point.value.shape == ()
    for product in (point.hvp, point.fisher, point.precondition):
        assert product(u).shape == x.shape


@pytest.mark.parametrize(
    "prior", [Dynamics(fixed=()), Dynamics(residual=True), OverTime(fixed=()), Discriminative()],
    ids=["dynamics", "steps", "time", "labels"],
)  # fmt: skip
def test_priors_of_rows(guarded, lock, prior):
    X, Y = problem(missing=True)
    b = guarded.backend
    rows = RowFacts(9, np.array([4, 1, 4]), labels=np.arange(9) % 3, outputs=4)
    own = prior.bind(b, rows, X)
    fun = ExactObjective(RBF(), groups_of(b, Y), X, 0.2, own)
    x = fun.start()
    lock(guarded)
    f, g = fun.value_and_grad(x)
    assert f.shape == ()
    assert g.shape == x.shape


@pytest.mark.parametrize("kind", ["bayesian", "vfe", "dtc"])
@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("kernel", [RBF(1.0, (0.8, 1.1)), RBF() + Linear() + White(0.1)], ids=repr)
def test_the_collapsed_bound(guarded, lock, kernel, missing, kind):
    X, Y = problem(missing=missing)
    fun = BayesianObjective(
        kernel, Observed.of(guarded.backend, Y), X, 0.1 + X**2 if kind == "bayesian" else None,
        X[:4], 0.2, priors={"noise": Gamma()}, jitter=1e-4, trace=kind != "dtc",
    )  # fmt: skip
    x = fun.start()
    lock(guarded)
    f, g = fun.value_and_grad(x)
    assert f.shape == ()
    assert g.shape == x.shape
    fun.optimal(fun.values(x))


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_methods(guarded, lock, name):
    kernel = KERNELS[name]
    rng = np.random.default_rng(0)
    t, x, z = (guarded.asarray(a) for a in (kernel.theta(), rng.random((6, 2)), rng.random((4, 2))))
    G, S, g = (guarded.asarray(a) for a in (rng.random((6, 4)), np.eye(6), rng.random(6)))
    out = guarded.backend.zeros((6, 6))
    lock(guarded)
    kernel.gram_pullback(t, x, z)[1](G)
    kernel.gram_pullback(t, x)[1](S)
    kernel.gram_jvp(t, x, z, dtheta=t, dX=x, dZ=z)
    kernel.gram_jvp(t, x, dX=x)
    kernel.input_jacobian(t, x, z)
    kernel.theta_jacobian(t, x, z)
    kernel.diag_pullback(t, x)[1](g)
    kernel.fill_lower(t, x, out)
    kernel.symmetric_pullback(t, x, S)


@pytest.mark.parametrize("prior", [Gaussian(0.5, 2.0), LogNormal(0.1, 0.4), Gamma(2.0, 3.0), None])
def test_new_rows(guarded, lock, prior):
    X, Y = problem(missing=True)
    b = guarded.backend
    posterior = Posterior.of(b, RBF() + Linear(0.3), 0.2, X, Y)
    seen = ~np.isnan(Y[:4])
    values = np.where(seen, Y[:4], 0.0)
    latents = None if prior is None else Gaussian()
    rows = NewRows(posterior, latents, guarded.asarray(values), guarded.asarray(seen * 1.0))
    x = guarded.asarray(np.abs(X[:4]))
    index = b.xp.arange(4, dtype=b.xp.int64, device=b.device)
    lock(guarded)
    f, g = rows.value_and_grad(x, index)
    assert f.shape == (4,)
    assert g.shape == (4, 2)
    posterior.moments(x)
    posterior.log_likelihood()
    if prior is not None:
        prior.log_density(x)


def test_an_evaluation_on_the_emulated_gpu_waits_once(monkeypatch):
    """The bridge to SciPy reads value and gradient in one copy, and nothing else is read."""
    if why_not("emulated"):
        pytest.skip(why_not("emulated"))
    from emulated import EmuRuntime, emulated_arrays

    from gplvm_xp.optim import minimise

    X, Y = problem()
    runtime = EmuRuntime()
    with emulated_arrays(runtime) as b:
        fun = ExactObjective(RBF(), groups_of(b, Y), X, 0.2, latent_prior=Gaussian())
        start = fun.start()
        runtime.waits = 0
        result = minimise(fun.value_and_grad, start, max_steps=5)
    # One more: the start itself is read by the bridge.
    assert runtime.waits == result.evaluations + 1
