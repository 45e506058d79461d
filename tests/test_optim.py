"""Optimisers: the right end, an honest status, one read per evaluation, no hidden waits."""

from __future__ import annotations

import importlib
import itertools
import math
import time

import numpy as np
import pytest

from gplvm_xp import backend
from gplvm_xp.optim import (
    LBFGS,
    Adam,
    OptResult,
    Progress,
    ScipyLBFGSB,
    minimise,
    minimise_batch,
)

LIBRARIES = ("numpy", "strict", "strict-device1", "torch")
METHODS = ("scipy", "lbfgs", "adam")
NEWTONIAN = ("scipy", "lbfgs")


@pytest.fixture(params=LIBRARIES)
def make(request):
    """Host numbers to an array of one library."""
    return maker(request.param)


def maker(library):
    if library == "numpy":
        return lambda a, dtype="float64": np.asarray(a, dtype=dtype)
    if library == "torch":
        torch = pytest.importorskip("torch", reason="torch is not installed")
        return lambda a, dtype="float64": torch.asarray(np.array(a), dtype=getattr(torch, dtype))
    xp = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    device = xp.Device("device1" if library.endswith("device1") else "CPU_DEVICE")
    return lambda a, dtype="float64": xp.asarray(a, dtype=getattr(xp, dtype), device=device)


def host(a):
    return np.asarray(backend.of(a).to_host(a))


# -- problems --------------------------------------------------------------------------------------


def rosenbrock(x):
    """In array-API functions, on any device."""
    xp = backend.of(x).xp
    a, c = x[1:] - x[:-1] ** 2, 1.0 - x[:-1]
    zero = xp.zeros_like(x[:1])
    left = xp.concat([-400.0 * a * x[:-1] - 2.0 * c, zero])
    return xp.sum(100.0 * a * a + c * c), left + xp.concat([zero, 200.0 * a])


def bowl(weights, centre, offset=0.0):
    def fun(x):
        xp = backend.of(x).xp
        r = x - centre
        return 0.5 * xp.sum(weights * r * r) + offset, weights * r

    return fun


def log_problem(weights, centre):
    """Convex with its minimum at the centre; nothing exists where a coordinate is not positive."""

    def fun(x):
        xp = backend.of(x).xp
        inside = xp.all(x > 0.0)
        z = xp.where(inside, x, 1.0)
        f = xp.sum(weights * (z - centre - centre * xp.log(z / centre)))
        return xp.where(inside, f, math.inf), xp.where(inside, weights * (1.0 - centre / z), 0.0)

    return fun


class Bent:
    """An ill-conditioned quartic with the minimum inside a half-space; f is not finite outside."""

    def __init__(self, rng, near, condition):
        d = int(rng.integers(2, 9))
        rotation, _ = np.linalg.qr(rng.normal(size=(d, d)))
        self.A = (rotation * np.logspace(0.0, rng.uniform(0.0, condition), d)) @ rotation.T
        self.centre, self.offset = rng.normal(size=d), rng.uniform(-100.0, 100.0)
        self.normal = rng.normal(size=d)
        self.normal /= np.linalg.norm(self.normal)
        self.edge = 10.0 ** rng.uniform(*near)
        self.failure = [(np.inf, 0.0), (np.nan, np.nan), (1.0, np.inf)][int(rng.integers(3))]
        self.failures = 0
        self.evaluated = set()
        x0 = self.centre + 3.0 * rng.normal(size=d)
        beyond = self.normal @ (x0 - self.centre)
        self.x0 = x0 - 2.0 * beyond * self.normal if beyond > self.edge else x0

    def __call__(self, x):
        self.evaluated.add(x.tobytes())
        r = x - self.centre
        if self.normal @ r > self.edge:
            self.failures += 1
            return np.asarray(self.failure[0]), np.full_like(x, self.failure[1])
        q = r @ self.A @ r
        return np.asarray(self.offset + 0.5 * q + 0.25 * q * q), self.A @ r * (1.0 + q)


# -- the right end ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", NEWTONIAN)
def test_rosenbrock_everywhere(make, method):
    x0 = make([-1.2, 1.0, -0.5, 0.8])
    r = minimise(rosenbrock, x0, method=method, gtol=1e-9, ftol=None)
    assert r.status == "converged"
    assert r.grad_norm <= 1e-9
    assert type(r.x) is type(x0)
    assert backend.of(r.x) == backend.of(x0)
    np.testing.assert_allclose(host(r.x), 1.0, atol=1e-8)
    assert len(r.values) == len(r.grad_norms) == r.steps + 1
    assert r.values[0] == pytest.approx(host(rosenbrock(x0)[0]).item())
    assert r.values[-1] == r.value
    assert r.evaluations < 90


def test_adam_everywhere(make):
    fun = bowl(make([1.0, 4.0, 9.0]), make([1.0, -2.0, 0.5]), 3.0)
    x0 = make([0.0, 0.0, 0.0])
    r = minimise(fun, x0, method="adam", learning_rate=0.1, max_steps=400, gtol=1e-4)
    assert r.status == "converged"
    assert backend.of(r.x) == backend.of(x0)
    np.testing.assert_allclose(host(r.x), [1.0, -2.0, 0.5], atol=1e-3)


def test_adam_cosine_settles_and_returns_the_best():
    fun = bowl(np.asarray([1.0, 100.0]), np.zeros(2))
    x0 = np.asarray([3.0, 2.0])
    constant, cosine = (
        minimise(fun, x0, method=Adam(learning_rate=0.3, cosine=c), max_steps=150, gtol=0.0)
        for c in (False, True)
    )
    assert constant.status == cosine.status == "max_steps"
    assert constant.value == min(constant.values) < constant.values[-1]
    assert abs(cosine.values[-1] - cosine.values[-2]) < 1e-6


@pytest.mark.parametrize("method", NEWTONIAN)
def test_gradient_below_the_rounding_of_the_value(method):
    """The last decreases are lost in the offset's rounding; the slopes still lead to gtol."""
    weights = np.logspace(0.0, 1.0, 20)
    fun = bowl(weights, np.linspace(-1.0, 1.0, 20), 1e6)
    r = minimise(fun, np.zeros(20), method=method, gtol=1e-5, ftol=None)
    assert r.status == "converged"
    assert r.grad_norm <= 1e-5
    assert r.evaluations < 90


@pytest.mark.parametrize("method", NEWTONIAN)
def test_float32_stays_float32(make, method):
    x0 = make([0.0, 0.0, 0.0], "float32")
    fun = bowl(make([1.0, 10.0, 30.0], "float32"), make([1.0, -1.0, 2.0], "float32"))
    r = minimise(fun, x0, method=method, gtol=1e-4)
    assert r.status == "converged"
    assert r.x.dtype == x0.dtype
    np.testing.assert_allclose(host(r.x), [1.0, -1.0, 2.0], atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_start_at_the_minimum(method):
    r = minimise(bowl(np.ones(3), np.zeros(3)), np.zeros(3), method=method)
    assert (r.status, r.steps, r.evaluations, r.values) == ("converged", 0, 1, (0.0,))


@pytest.mark.parametrize("method", NEWTONIAN)
def test_ftol(method):
    x0 = np.asarray([-1.2, 1.0])
    loose = minimise(rosenbrock, x0, method=method, gtol=0.0, ftol=1e-2)
    tight = minimise(rosenbrock, x0, method=method, gtol=0.0, ftol=1e-12)
    assert loose.status == tight.status == "converged"
    assert "ftol" in loose.message
    assert loose.steps < tight.steps
    assert tight.value < 1e-10


# -- failed evaluations ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", NEWTONIAN)
@pytest.mark.parametrize("ftol", [None, 1e-9])
def test_failures_never_pass_for_convergence(method, ftol):
    """Walls around the minimum: reach it or admit failure (60 problems, most meet a wall)."""
    met = reached = 0
    for seed in range(60):
        near, condition = ((-0.5, 0.3), 1.0) if seed < 30 else ((-3.0, -1.0), 4.0)
        problem = Bent(np.random.default_rng(seed), near, condition)
        r = minimise(problem, problem.x0, method=method, gtol=1e-6, ftol=ftol)
        at_minimum = r.value - problem.offset < 1e-7 * (1.0 + abs(problem.offset))
        assert (r.status == "converged") == at_minimum, (seed, r)
        assert r.status in ("converged", "failed")
        assert r.x.tobytes() in problem.evaluated
        assert r.value == float(problem(r.x)[0])
        assert r.value <= min(r.values) + 1e-12
        met += problem.failures > 0
        reached += at_minimum
    assert met > 20
    assert reached >= 45


@pytest.mark.parametrize("method", NEWTONIAN)
def test_log_domain(make, method):
    rng = np.random.default_rng(0)
    for _ in range(3):
        weights, centre, start = (10.0 ** rng.uniform(-1.0, 1.0, size=4) for _ in range(3))
        fun = log_problem(make(weights), make(centre))
        r = minimise(fun, make(10.0 * start), method=method, gtol=1e-7, ftol=None)
        assert r.status == "converged"
        np.testing.assert_allclose(host(r.x), centre, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [(math.inf, 0.0), (math.nan, 0.0), (1.0, math.nan)])
def test_start_that_fails(make, method, bad):
    def fun(x):
        xp = backend.of(x).xp
        return xp.sum(x) * 0.0 + bad[0], x * 0.0 + bad[1]

    x0 = make([1.0, 2.0])
    r = minimise(fun, x0, method=method)
    assert r.status == "failed"
    assert "start" in r.message
    assert ("gradient" if bad[0] == 1.0 else "value") in r.message
    assert (r.steps, r.evaluations, r.value) == (0, 1, math.inf)
    np.testing.assert_array_equal(host(r.x), [1.0, 2.0])


@pytest.mark.parametrize("method", METHODS)
def test_minimum_on_the_edge_is_admitted(method):
    """A slope down to a wall: there is no minimum to converge to."""

    def fun(x):
        outside = x[0] > 1.0
        return np.asarray(math.inf if outside else -x[0] + 0.5 * x[1] ** 2), np.asarray(
            [-1.0, x[1]]
        )

    options = {"learning_rate": 0.1} if method == "adam" else {}
    r = minimise(fun, np.asarray([0.0, 1.0]), method=method, max_steps=3000, **options)
    assert r.status == "failed"
    assert r.value < -0.9
    assert math.isfinite(r.grad_norm)


def test_adam_steps_back_and_slows_down():
    fun = log_problem(np.asarray([1.0, 2.0]), np.asarray([0.05, 0.01]))
    r = minimise(fun, np.asarray([1.0, 1.0]), method=Adam(learning_rate=0.5), max_steps=600)
    assert r.evaluations > r.steps + 1
    np.testing.assert_allclose(r.x, [0.05, 0.01], rtol=0.2)


@pytest.mark.parametrize("method", NEWTONIAN)
def test_wrong_gradient_is_not_convergence(method):
    def fun(x):
        return np.asarray(np.sum(x * x)), -2.0 * x

    r = minimise(fun, np.asarray([1.0, 2.0]), method=method)
    assert r.status == "failed"
    assert r.value == 5.0


# -- ends from outside -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_interrupt_in_the_objective(make, method):
    seen = []

    def fun(x):
        if len(seen) == 7:
            raise KeyboardInterrupt
        f, g = rosenbrock(x)
        seen.append((host(f).item(), host(x)))
        return f, g

    r = minimise(fun, make([-1.2, 1.0]), method=method)
    assert r.status == "interrupted"
    assert r.evaluations == 7
    best = min(seen, key=lambda pair: pair[0])
    assert r.value == best[0]
    np.testing.assert_array_equal(host(r.x), best[1])


def test_interrupt_before_anything_was_evaluated():
    def fun(x):
        raise KeyboardInterrupt

    r = minimise(fun, np.asarray([1.0, 2.0]))
    assert (r.status, r.value, r.evaluations, r.values) == ("interrupted", math.inf, 0, ())
    np.testing.assert_array_equal(r.x, [1.0, 2.0])


@pytest.mark.parametrize("method", METHODS)
def test_interrupt_in_the_callback_and_a_second_one(method, monkeypatch):
    def callback(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    x0 = np.asarray([-1.2, 1.0])
    r = minimise(rosenbrock, x0, method=method, callback=callback)
    assert (r.status, r.steps) == ("interrupted", 3)
    assert r.value == min(r.values)

    def impatient(self, status, message):
        raise KeyboardInterrupt

    monkeypatch.setattr("gplvm_xp.optim.base.Run.result", impatient)
    with pytest.raises(KeyboardInterrupt):
        minimise(rosenbrock, x0, method=method, callback=callback)


@pytest.mark.parametrize("method", METHODS)
def test_time_limit(method):
    def slow(x):
        time.sleep(0.02)
        return rosenbrock(x)

    began = time.perf_counter()
    r = minimise(slow, np.asarray([-1.2, 1.0]), method=method, time_limit=0.1, gtol=0.0)
    assert r.status == "time_limit"
    assert time.perf_counter() - began < 1.0
    assert 2 <= r.evaluations <= 6
    assert r.value <= r.values[0]
    once = minimise(slow, np.asarray([-1.2, 1.0]), method=method, time_limit=0.0)
    assert (once.status, once.evaluations) == ("time_limit", 1)


@pytest.mark.parametrize("method", METHODS)
def test_callback_is_told_and_stops(make, method):
    calls = 0
    told: list[Progress] = []

    def fun(x):
        nonlocal calls
        calls += 1
        return rosenbrock(x)

    def callback(progress):
        told.append(progress)
        assert progress.evaluations == calls
        return progress.step == 4

    r = (
        minimise(fun, make([-1.2, 1.0]), method=method, callback=callback, learning_rate=0.01)
        if (method == "adam")
        else minimise(fun, make([-1.2, 1.0]), method=method, callback=callback)
    )
    assert (r.status, r.steps) == ("stopped", 4)
    assert [p.step for p in told] == [0, 1, 2, 3, 4]
    assert tuple(p.value for p in told) == r.values
    assert tuple(p.grad_norm for p in told) == r.grad_norms
    assert r.evaluations == calls
    assert backend.of(told[-1].x) == backend.of(r.x)
    assert all(a.elapsed <= b.elapsed for a, b in itertools.pairwise(told))


@pytest.mark.parametrize("method", METHODS)
def test_max_steps(method):
    r = minimise(rosenbrock, np.asarray([-1.2, 1.0]), method=method, max_steps=5)
    assert (r.status, r.steps, len(r.values)) == ("max_steps", 5, 6)
    zero = minimise(rosenbrock, np.asarray([-1.2, 1.0]), method=method, max_steps=0)
    assert (zero.status, zero.evaluations) == ("max_steps", 1)


# -- reads and waits -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_one_copy_each_way_per_evaluation(make, method, monkeypatch):
    x0 = make([-1.2, 1.0, 0.3])
    kind = type(backend.of(x0))
    counts = {"to_host": 0, "asarray": 0}
    for name in counts:
        door = getattr(kind, name)

        def counting(self, *args, _door=door, _name=name, **kwargs):
            counts[_name] += 1
            return _door(self, *args, **kwargs)

        monkeypatch.setattr(kind, name, counting)
    r = minimise(rosenbrock, x0, method=method, max_steps=30, gtol=1e-9, ftol=None)
    assert r.evaluations > 10
    if method == "scipy":
        # The start is read once and needs no copy back.
        assert counts == {"to_host": r.evaluations + 1, "asarray": r.evaluations - 1}
    else:
        assert counts == {"to_host": r.evaluations, "asarray": 0}


@pytest.fixture
def no_waits(monkeypatch):
    xp = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    kind = type(xp.asarray(1.0))

    def wait(self, *args):
        raise AssertionError("a device array was turned into a host number")

    for name in ("__float__", "__bool__", "__int__", "__index__", "__complex__"):
        monkeypatch.setattr(kind, name, wait)


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize("library", ["strict", "strict-device1"])
@pytest.mark.parametrize("method", METHODS)
def test_no_hidden_waits(library, method):
    make = maker(library)
    r = minimise(rosenbrock, make([-1.2, 1.0, 0.3]), method=method, max_steps=60)
    assert r.value < r.values[0]
    fun = log_problem(make([1.0, 3.0]), make([0.01, 2.0]))
    assert minimise(fun, make([9.0, 9.0]), method=method).value < 40.0


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize("library", ["strict", "strict-device1"])
def test_no_hidden_waits_in_batches(library):
    make = maker(library)
    problem = Batch(make, 20, 3)
    assert np.all(host(minimise_batch(problem, make(problem.start)).converged))


# -- batches ---------------------------------------------------------------------------------------


class Batch:
    """N smooth problems of q variables: a bent least-squares fit with a Gaussian prior."""

    def __init__(self, make, n, q, seed=0):
        rng = np.random.default_rng(seed)
        self.start = rng.normal(size=(n, q))
        self.W, self.Y = make(rng.normal(size=(q, 6))), make(rng.normal(size=(n, 6)))
        self.sizes = []

    def __call__(self, x, index):
        xp = backend.of(x).xp
        self.sizes.append(x.shape[0])
        assert index.shape == x.shape[:1]
        u = x @ self.W
        r = xp.sin(u) - 0.5 * xp.take(self.Y, index, axis=0)
        f = 4.0 * xp.sum(r * r, axis=1) + 0.5 * xp.sum(x * x, axis=1)
        return f, 8.0 * (r * xp.cos(u)) @ xp.matrix_transpose(self.W) + x


def rosenbrock_rows(x, index):
    xp = backend.of(x).xp
    a, c = x[:, 1:] - x[:, :-1] ** 2, 1.0 - x[:, :-1]
    zero = xp.zeros_like(x[:, :1])
    g = xp.concat([-400.0 * a * x[:, :-1] - 2.0 * c, zero], axis=1)
    return xp.sum(100.0 * a * a + c * c, axis=1), g + xp.concat([zero, 200.0 * a], axis=1)


@pytest.mark.parametrize("q", [1, 2, 6])
def test_batch_everywhere(make, q):
    problem = Batch(make, 40, q)
    x0 = make(problem.start)
    r = minimise_batch(problem, x0, gtol=1e-8)
    assert backend.of(r.x) == backend.of(r.value) == backend.of(r.grad_norm) == backend.of(x0)
    assert host(r.converged).all()
    f, g = problem(r.x, backend.of(x0).xp.arange(40, device=backend.of(x0).device))
    assert np.abs(host(g)).max() <= 1.01e-8
    np.testing.assert_allclose(host(r.value), host(f), rtol=1e-12)
    # Finished rows leave: sizes only fall, and most rows take few evaluations.
    sizes = problem.sizes[:-1]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == r.evaluations
    assert r.evaluations / 40 < 35


def test_batch_reads_once_per_iteration(make, monkeypatch):
    problem = Batch(make, 30, 3)
    x0 = make(problem.start)
    kind = type(backend.of(x0))
    door, reads = kind.to_host, []

    def counting(self, a):
        reads.append(a.shape)
        return door(self, a)

    monkeypatch.setattr(kind, "to_host", counting)
    r = minimise_batch(problem, x0)
    assert len(reads) == r.steps + 1
    assert max(len(shape) for shape in reads) == 1


def test_batch_rows_do_not_depend_on_the_batch():
    x0 = np.random.default_rng(3).normal(size=(12, 4))
    together = minimise_batch(rosenbrock_rows, x0, max_steps=400)
    assert together.converged.all()
    np.testing.assert_allclose(together.x[together.value < 1.0], 1.0, atol=1e-6)
    for i in range(12):
        alone = minimise_batch(rosenbrock_rows, x0[i : i + 1], max_steps=400)
        np.testing.assert_allclose(alone.x[0], together.x[i], rtol=0, atol=1e-9)
        np.testing.assert_allclose(alone.value[0], together.value[i], rtol=0, atol=1e-14)


def test_batch_agrees_with_the_single_optimiser():
    problem = Batch(maker("numpy"), 15, 3)
    x0 = problem.start
    r = minimise_batch(problem, x0)
    for i in range(15):
        # From the end of the row: the same minimum, whichever one a line search led to.
        one = minimise(
            lambda x, i=i: tuple(a[0] for a in problem(x[None, :], np.asarray([i]))),
            r.x[i] + 1e-3,
            gtol=1e-8,
            ftol=None,
        )
        assert one.status == "converged"
        np.testing.assert_allclose(one.x, r.x[i], atol=1e-7)


def test_batch_rows_that_fail_spoil_no_other(make):
    """Half of the rows live on a logarithmic domain; some starts lie outside of it."""
    rng = np.random.default_rng(5)
    centre = 10.0 ** rng.uniform(-1.5, 0.5, size=(30, 3))
    start = 10.0 ** rng.uniform(-1.5, 1.0, size=(30, 3))
    start[4, 1], start[17, 0] = -1.0, 0.0
    c = make(centre)

    def fun(x, index):
        xp = backend.of(x).xp
        ci = xp.take(c, index, axis=0)
        inside = xp.all(x > 0.0, axis=1)
        z = xp.where(inside[:, None], x, 1.0)
        f = xp.sum(z - ci - ci * xp.log(z / ci), axis=1)
        return xp.where(inside, f, math.nan), xp.where(inside[:, None], 1.0 - ci / z, math.inf)

    r = minimise_batch(fun, make(start))
    good = np.ones(30, dtype=bool)
    good[[4, 17]] = False
    np.testing.assert_array_equal(host(r.converged), good)
    np.testing.assert_allclose(host(r.x)[good], centre[good], rtol=1e-6)
    np.testing.assert_array_equal(host(r.x)[~good], start[~good])
    assert np.isinf(host(r.value)[~good]).all()
    assert np.isinf(host(r.grad_norm)[~good]).all()


def test_batch_walls_never_pass_for_convergence():
    problems = [Bent(np.random.default_rng(seed), (-3.0, -1.0), 3.0) for seed in range(250)]
    problems = [p for p in problems if p.x0.shape == (4,)]

    def fun(x, index):
        pairs = [problems[i](row) for i, row in zip(index, x, strict=True)]
        return np.asarray([f for f, _ in pairs]), np.asarray([g for _, g in pairs])

    r = minimise_batch(fun, np.asarray([p.x0 for p in problems]), gtol=1e-7)
    offsets = np.asarray([p.offset for p in problems])
    met = np.asarray([p.failures > 0 for p in problems])
    np.testing.assert_array_equal(r.converged, r.value - offsets < 1e-9)
    assert met.sum() > 10
    assert r.converged[~met].all()
    assert r.converged[met].mean() > 0.4


def test_batch_wrong_gradient_max_steps_and_nothing_to_do():
    x0 = np.asarray([[1.0, 2.0], [0.0, 0.0]])
    wrong = minimise_batch(lambda x, index: (np.sum(x * x, axis=1), -2.0 * x), x0)
    np.testing.assert_array_equal(wrong.converged, [False, True])
    np.testing.assert_array_equal(wrong.x, x0)
    few = minimise_batch(rosenbrock_rows, x0, max_steps=3)
    assert few.steps == 3
    assert not few.converged.any()
    assert (few.value <= rosenbrock_rows(x0, None)[0]).all()
    none = minimise_batch(rosenbrock_rows, np.zeros((0, 2)))
    assert (none.x.shape, none.converged.shape, none.evaluations) == ((0, 2), (0,), 0)


def test_batch_float32(make):
    problem = Batch(lambda a: make(a, "float32"), 10, 2)
    x0 = make(problem.start, "float32")
    r = minimise_batch(problem, x0, gtol=1e-3)
    assert r.x.dtype == r.value.dtype == x0.dtype
    assert host(r.converged).all()


# -- wrong use -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x0", "options", "error", "says"),
    [
        (np.zeros((2, 2)), {}, ValueError, "expected a vector"),
        (np.zeros(0), {}, ValueError, "at least one entry"),
        (np.zeros(2, dtype=int), {}, TypeError, "real floating"),
        (np.ones(2), {"method": "newton"}, ValueError, "'scipy', 'lbfgs', 'adam'"),
        (np.ones(2), {"memroy": 3}, TypeError, "'memory'"),
        (np.ones(2), {"method": LBFGS(), "memory": 3}, TypeError, "inside it"),
        (np.ones(2), {"max_steps": -1}, ValueError, "max_steps=-1"),
        (np.ones(2), {"gtol": math.nan}, ValueError, "gtol=nan"),
        (np.ones(2), {"time_limit": -1.0}, ValueError, "time_limit"),
    ],
)
def test_errors(x0, options, error, says):
    with pytest.raises(error, match=says):
        minimise(rosenbrock, x0, **options)


@pytest.mark.parametrize(
    ("x0", "options", "error", "says"),
    [
        (np.zeros(3), {}, ValueError, r"\(N, q\)"),
        (np.zeros((3, 0)), {}, ValueError, r"\(N, q\)"),
        (np.zeros((3, 2), dtype=int), {}, TypeError, "real floating"),
        (np.zeros((3, 2)), {"gtol": -1.0}, ValueError, "gtol"),
        (np.zeros((3, 2)), {"first_step": 0.0}, ValueError, "first_step"),
    ],
)
def test_batch_errors(x0, options, error, says):
    with pytest.raises(error, match=says):
        minimise_batch(rosenbrock_rows, x0, **options)


def test_wrong_shapes_of_the_objective():
    with pytest.raises(ValueError, match="0-d value"):
        minimise(lambda x: (x, x), np.ones(2))
    with pytest.raises(ValueError, match="one gradient per row"):
        minimise_batch(lambda x, index: (x, x), np.ones((2, 2)))


def test_settings_by_name_and_by_object_agree():
    x0 = np.asarray([-1.2, 1.0])
    for name, kind in (("scipy", ScipyLBFGSB), ("lbfgs", LBFGS)):
        a = minimise(rosenbrock, x0, method=name, memory=3)
        b = minimise(rosenbrock, x0, method=kind(memory=3))
        assert isinstance(a, OptResult)
        assert a.values == b.values


def test_scipy_is_imported_when_it_is_needed():
    source = importlib.import_module("gplvm_xp.optim.scipy").__dict__
    assert "optimize" not in source
