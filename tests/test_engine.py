"""Shards of rows: one fixed sum, L-BFGS in parts, the bound over workers, checkpoints."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest
from sharded import KERNEL, Q, fit, same_bits, start, table
from threadpoolctl import threadpool_info, threadpool_limits

from gplvm_xp import backend, engine
from gplvm_xp import init as starts
from gplvm_xp.engine import Checkpoint, Engine, SerialEngine, one_blas_thread
from gplvm_xp.engine.base import shard_bounds, tree_sum
from gplvm_xp.errors import ModelFileError, NotPositiveDefiniteError, WorkerLostError
from gplvm_xp.kernels import RBF, Matern52
from gplvm_xp.objectives import shard as shard_module
from gplvm_xp.objectives import sharded_table
from gplvm_xp.objectives.bayesian import BayesianObjective, Observed
from gplvm_xp.objectives.shard import Worker
from gplvm_xp.objectives.sharded import Globals, ShardedBound
from gplvm_xp.objectives.sharded_fit import ShardedSettings, fit_sharded
from gplvm_xp.optim import LBFGS, Limits, minimise
from gplvm_xp.optim.lbfgs import _direction, _Pair
from gplvm_xp.optim.sharded import Answer, Parts, minimise_sharded
from gplvm_xp.optim.slices import Slices, coefficients
from gplvm_xp.priors import Gaussian, LogNormal

FIRST = (np.asarray([1.0, 0.0, 0.0, 0.0, 0.0]), np.zeros(0), np.zeros(0))


# -- sums ------------------------------------------------------------------------------------------


class Term:
    """Remembers how it was added."""

    def __init__(self, text):
        self.text = text

    def __add__(self, other):
        return Term(f"({self.text}{other.text})")


@pytest.mark.parametrize(
    ("count", "tree"),
    [(1, "0"), (2, "(01)"), (3, "((01)2)"), (4, "((01)(23))"), (5, "(((01)(23))4)"),
     (7, "(((01)(23))((45)6))")],
)  # fmt: skip
def test_the_tree_depends_on_the_count_only(count, tree):
    (total,) = tree_sum((Term(str(i)),) for i in range(count))
    assert total.text == tree


def test_the_sum_holds_few_terms():
    alive = itertools.count()
    held, most = set(), 0

    class Counted(Term):
        def __init__(self, text):
            super().__init__(text)
            self.number = next(alive)
            held.add(self.number)

        def __add__(self, other):
            return Counted("")

        def __del__(self):
            held.discard(self.number)

    def terms():
        nonlocal most
        for _ in range(64):
            yield (Counted(""),)
            most = max(most, len(held))

    tree_sum(terms())
    assert most <= 10


def test_shards_cover_all_rows():
    for n, count in ((7, 3), (7, 7), (100, 1), (10**6, 13)):
        bounds = shard_bounds(n, count)
        sizes = np.diff(bounds)
        assert (bounds[0], bounds[-1], sizes.size) == (0, n, count)
        assert sizes.max() - sizes.min() <= 1
    for count in (0, 8):
        with pytest.raises(ValueError, match=f"n_shards={count} was given for 7 rows"):
            shard_bounds(7, count)


# -- sessions --------------------------------------------------------------------------------------


class Adder:
    def __init__(self, index, count, values):
        self.index, self.count, self.values = index, count, values

    def add(self, factor):
        return (self.values * factor, self.values[:1] + self.index)

    def threads(self):
        pools = threadpool_info()
        most = max(p["num_threads"] for p in pools if p["user_api"] == "blas")
        return (np.asarray([float(most)]),)

    def fail(self):
        raise ValueError("no such row")


def adders(n=3, make=np.asarray):
    return SerialEngine().open(Adder, [(make([1.0 + i, 2.0]),) for i in range(n)])


def test_a_session_adds_collects_and_counts(case):
    with adders(3, case.asarray) as session:
        total, firsts = session.map_reduce("add", case.asarray([10.0, 1.0]))
        assert backend.of(total) == case.backend
        np.testing.assert_array_equal(case.to_numpy(total), [60.0, 6.0])
        np.testing.assert_array_equal(case.to_numpy(firsts), [9.0])
        assert (session.traffic.calls, session.traffic.sent, session.traffic.returned) == (1, 6, 9)
        parts = session.scatter("add", [(case.asarray([float(i), 0.0]),) for i in range(3)])
        assert [case.to_numpy(p[0])[0] for p in parts] == [0.0, 2.0, 6.0]
        assert session.traffic.apart == 15
        with pytest.raises(ValueError, match="2 tuples of arguments were given for 3 shards"):
            session.scatter("add", [(), ()])


def test_an_error_says_where():
    with adders() as session, pytest.raises(ValueError, match="no such row") as caught:
        session.map_reduce("fail")
    assert caught.value.__notes__ == ["in 'fail' of shard 0"]


def test_a_shard_is_loaded_where_it_lives():
    session = SerialEngine().open(Adder, [(lambda: np.asarray([4.0, 5.0]),)])
    np.testing.assert_array_equal(session.collect("add", np.ones(2))[0][0], [4.0, 5.0])


def test_workers_have_one_blas_thread():
    def threads():
        return max(p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas")

    with threadpool_limits(2, user_api="blas"):
        before = threads()
        assert adders(1).collect("threads")[0][0] == 1.0
        assert threads() == before
        # Another thread waits for its turn, then has the limit too, although this one set it first.
        seen, begun = [], threading.Event()

        def other():
            begun.set()
            with one_blas_thread():
                seen.append(threads())

        thread = threading.Thread(target=other)
        with one_blas_thread():
            thread.start()
            begun.wait(10)
            with one_blas_thread():
                assert threads() == 1
            assert (threads(), seen) == (1, [])
        thread.join(10)
        assert seen == [1]
        assert threads() == before


def test_bits_do_not_depend_on_blas_threads():
    Y, mu = table()
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            found.append(fit(Y, mu, steps=5))
    assert same_bits(*found)


def test_get(monkeypatch):
    one = SerialEngine()
    assert isinstance(engine.get(None), SerialEngine)
    assert isinstance(engine.get("serial"), SerialEngine)
    assert engine.get(one) is one
    with pytest.raises(ValueError, match="engine='spark' was given; expected None, 'serial'"):
        engine.get("spark")
    for name, module, extra in (("dask", "distributed", "distributed"), ("mpi", "mpi4py", "mpi")):
        monkeypatch.delitem(sys.modules, f"gplvm_xp.engine.{name}", raising=False)
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf"pip install 'gplvm-xp\[{extra}\]'"):
            engine.get(name)


def test_importing_engines_imports_no_cluster():
    assert "gplvm_xp.engine" in sys.modules
    code = (
        "import gplvm_xp.engine, sys; print({'distributed', 'dask', 'mpi4py'} & set(sys.modules))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert out.stdout.strip() == "set()"


def test_a_dask_array_needs_dask():
    kind = type("Array", (), {"shape": (4, 2), "__module__": "dask.array.core"})
    with pytest.raises(ValueError, match="Y is a Dask array; expected engine='dask'"):
        SerialEngine().split(kind(), None)


# -- L-BFGS in parts -------------------------------------------------------------------------------


class InPieces(Parts):
    """A function of one vector, cut at places; only the first piece is 'here'."""

    def __init__(self, fun, x0, cuts, memory=10):
        self.fun, self.pieces = fun, np.split(x0, cuts)
        self.slices = [Slices(p, memory) for p in self.pieces[1:]]
        self.evaluations = 0

    def evaluate(self, x, order):
        self.evaluations += 1
        moved = [s.move(order) for s in self.slices]
        f, g = self.fun(np.concatenate([x, *(m[0] for m in moved)]))
        line = sum(m[1] for m in moved)
        if not np.isfinite(f):
            return Answer(np.asarray(f), np.zeros_like(x), line, np.zeros(0), np.inf)
        parts = np.split(g, np.cumsum([p.size for p in self.pieces])[:-1])
        products = sum(s.note(p) for s, p in zip(self.slices, parts[1:], strict=True))
        norm = max(np.max(np.abs(p)) for p in parts[1:])
        return Answer(np.asarray(f), parts[0], line, products, norm)

    def settle(self, order):
        for s in self.slices:
            s.settle(order)
        return [s.state() for s in self.slices]

    def restore(self, states):
        for s, state in zip(self.slices, states, strict=True):
            s.restore(state)

    def whole(self, found):
        return np.concatenate([found.result.x, *(s.point(found.point) for s in self.slices)])


def rosenbrock(x):
    a, c = x[1:] - x[:-1] ** 2, 1.0 - x[:-1]
    left = np.concatenate([-400.0 * a * x[:-1] - 2.0 * c, [0.0]])
    return np.asarray(np.sum(100.0 * a * a + c * c)), left + np.concatenate([[0.0], 200.0 * a])


def walled(x):
    f, g = rosenbrock(x)
    return (np.asarray(np.inf), g) if x[0] > 1.02 else (f, g)


X0 = np.asarray([-1.2, 1.0, -0.5, 0.8, 0.3, -0.1, 0.6, 0.2])


@pytest.mark.parametrize("memory", [1, 3, 10])
@pytest.mark.parametrize("fun", [rosenbrock, walled])
def test_parts_take_the_same_steps_as_the_whole(fun, memory):
    # As long as rounding has not been amplified: the two recursions are equal in exact arithmetic.
    settings, limits = LBFGS(memory=memory), Limits(max_steps=12, gtol=0.0, ftol=None)
    whole = minimise(fun, X0, method=settings, max_steps=12, gtol=0.0, ftol=None)
    parts = InPieces(fun, X0, [2, 5], memory)
    found = minimise_sharded(parts, parts.pieces[0], settings=settings, limits=limits)
    np.testing.assert_allclose(found.result.values, whole.values, rtol=1e-9)
    np.testing.assert_allclose(found.result.grad_norms, whole.grad_norms, rtol=1e-7)
    assert found.result.evaluations == whole.evaluations == parts.evaluations
    np.testing.assert_allclose(parts.whole(found), whole.x, rtol=1e-8)


def test_parts_converge():
    parts = InPieces(rosenbrock, X0, [1, 4, 5])
    found = minimise_sharded(parts, parts.pieces[0], limits=Limits(gtol=1e-9, ftol=None))
    assert found.result.status == "converged"
    np.testing.assert_allclose(parts.whole(found), 1.0, atol=1e-8)


def test_coefficients_are_the_two_loop_recursion():
    rng = np.random.default_rng(3)
    d, k = 7, 4
    A = rng.normal(size=(d, d))
    A = A @ A.T + np.eye(d)
    s, g = rng.normal(size=(k, d)), rng.normal(size=d)
    y = s @ A
    basis = np.concatenate([s, y, g[None]])
    pairs = [
        _Pair(a, c, 1.0 / (a @ c), (a @ c) / (c @ c)) for a, c in zip(s, y, strict=True)
    ]  # fmt: skip
    delta = coefficients(basis @ basis.T)
    np.testing.assert_allclose(delta @ basis, _direction(np, g, pairs), rtol=1e-10)
    np.testing.assert_array_equal(coefficients(np.asarray([[4.0]])), [-1.0])


def test_slices_on_every_library(case):
    """Products and directions of one part, against NumPy's."""
    rng = np.random.default_rng(1)
    x0, g0, g1, g2 = rng.normal(size=(4, 6))
    part = Slices(case.asarray(x0), 2)
    part.move(FIRST)
    part.note(case.asarray(g0))
    # A line from point 1 along -g0, then one from point 2 that remembers the step.
    x, line = part.move((np.asarray([2.0, 0.5, 1.0, 0.0, 2.0]), np.asarray([-1.0]), np.zeros(0)))
    tol = {"rtol": case.tolerance(1e-12, 1e-5)}
    np.testing.assert_allclose(case.to_numpy(x), x0 - 0.5 * g0, **tol)
    np.testing.assert_allclose(case.to_numpy(line), [-g0 @ g0, g0 @ g0], **tol)
    products, y = part.note(case.asarray(g1)), g1 - g0
    expected = [g1 @ g1, -g1 @ g0, g1 @ y, -y @ g0, y @ y]
    np.testing.assert_allclose(case.to_numpy(products), expected, **tol)
    order = np.asarray([3.0, 0.25, 2.0, 0.5, 1.0]), np.asarray([0.3, 0.2, -1.0]), np.zeros(0)
    x, line = part.move(order)
    s = -0.5 * g0
    d = 0.3 * s + 0.2 * y - g1
    np.testing.assert_allclose(case.to_numpy(x), x0 + s + 0.25 * d, **tol)
    np.testing.assert_allclose(case.to_numpy(line), [g1 @ d, d @ d, d @ s, d @ y], **tol)
    products, z = part.note(case.asarray(g2)), g2 - g1
    expected = [g2 @ g2, g2 @ d, g2 @ z, z @ d, z @ z, g2 @ s, g2 @ y, z @ s, z @ y]
    np.testing.assert_allclose(case.to_numpy(products), expected, **tol)
    assert [tuple(a.shape) for a in part.state()] == [(6,), (6,), (1, 6), (1, 6)]


@pytest.mark.parametrize("at", [1, 7, 20])
def test_a_search_goes_on_with_the_same_bits(at):
    limits = Limits(max_steps=30, gtol=1e-12, ftol=None)
    parts = InPieces(rosenbrock, X0, [2, 5], 3)
    states = []
    whole = minimise_sharded(
        parts, parts.pieces[0], settings=LBFGS(memory=3), limits=limits, every=1,
        save=states.append,
    )  # fmt: skip
    again = InPieces(rosenbrock, X0, [2, 5], 3)
    state = states[at - 1]
    assert state.step == at
    found = minimise_sharded(
        again, again.pieces[0], settings=LBFGS(memory=3), limits=limits, resume=state
    )
    assert found.result.values == whole.result.values
    assert found.result.steps == whole.result.steps
    np.testing.assert_array_equal(again.whole(found), parts.whole(whole))


@pytest.mark.parametrize("where", [1, 2, 9, 14])
def test_ctrl_c_keeps_the_best_state_of_every_part(where):
    seen = []

    def fun(x):
        if len(seen) == where:
            raise KeyboardInterrupt
        f, g = rosenbrock(x)
        seen.append(f.item())
        return f, g

    parts = InPieces(fun, X0, [2, 5])
    found = minimise_sharded(parts, parts.pieces[0], limits=Limits(gtol=0.0))
    assert found.result.status == "interrupted"
    assert found.result.value == min(seen)
    assert rosenbrock(parts.whole(found))[0] == min(seen)


def test_an_interrupted_first_evaluation_keeps_the_start():
    def fun(x):
        raise KeyboardInterrupt

    parts = InPieces(fun, X0, [2, 5])
    found = minimise_sharded(parts, parts.pieces[0])
    assert found.result.status == "interrupted"
    np.testing.assert_array_equal(parts.whole(found), X0)


def test_limits_of_a_search_in_parts():
    parts = InPieces(rosenbrock, X0, [2, 5])
    for wrong in ({"every": 0}, {"settings": LBFGS(memory=0)}):
        with pytest.raises(ValueError, match="=0 was given; expected at least 1"):
            minimise_sharded(parts, parts.pieces[0], **wrong)
    told = []
    limits = Limits(callback=lambda p: told.append(p.step) or p.step == 3)
    found = minimise_sharded(parts, parts.pieces[0], limits=limits)
    assert (found.result.status, told) == ("stopped", [0, 1, 2, 3])
    parts = InPieces(rosenbrock, X0, [2, 5])
    found = minimise_sharded(parts, parts.pieces[0], limits=Limits(time_limit=0.0))
    assert (found.result.status, found.result.evaluations) == ("time_limit", 1)
    np.testing.assert_array_equal(parts.whole(found), X0)
    parts = InPieces(lambda x: (np.asarray(np.inf), x), X0, [2, 5])
    found = minimise_sharded(parts, parts.pieces[0])
    assert found.result.status == "failed"
    np.testing.assert_array_equal(parts.whole(found), X0)


# -- the bound over shards -------------------------------------------------------------------------


def opened(Y, mu, S, n_shards, worker, *, session_engine=None, **options):
    chosen = session_engine or SerialEngine()
    parts, rows = chosen.split(Y, n_shards)
    session = chosen.open(worker, [(p,) for p in parts])
    known = sharded_table.prepared(session, rows, Y.shape[1], False)
    sharded_table.place_latents(session, known, mu, S)
    held = options.get("held", frozenset())
    flags = np.asarray([name in held for name in ("mu", "S")], dtype=float)
    session.map_reduce("begin", flags, np.asarray([10.0]))
    b = options.pop("b", None) or backend.get("numpy")
    return session, ShardedBound(session, start(mu), known.totals, b, **options)


def local_gradients(bound, held=()):
    """The workers' gradients, in the order of the whole objective's vector."""
    origin = (np.asarray([1.0, 0.0, 1.0, 0.0, 0.0]), np.zeros(0), np.zeros(0))
    states = [state.g for state in bound.settle(origin)]
    free = 2 - len(set(held) & {"mu", "S"})
    return [a for k in range(free) for g in states for a in np.split(g, free)[k : k + 1]]


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("held", [(), ("noise",), ("mu",), ("S", "Z"), ("mu", "S")])
@pytest.mark.parametrize("n_shards", [1, 3])
def test_value_and_gradient_are_the_whole_objectives(n_shards, held, missing):
    Y, mu = table(missing=missing)
    priors = {} if "noise" in held else {"noise": LogNormal(-2.0, 1.0)}
    options = {"held": frozenset(held), "priors": priors, "jitter": 1e-2}
    b, first = backend.get("numpy"), start(mu)
    S = np.full(mu.shape, 0.1)
    centred = Observed.of(b, Y - np.nanmean(Y, axis=0))
    whole = BayesianObjective(first.kernel, centred, mu, S, first.Z, first.noise, **options)
    f, g = whole.value_and_grad(whole.start())
    _, bound = opened(Y, mu, 0.1, n_shards, Worker(KERNEL), **options)
    answer = bound.evaluate(bound.layout.start(), FIRST)
    found = np.concatenate([answer.gradient, *local_gradients(bound, held)])
    assert answer.value == pytest.approx(f.item(), rel=1e-12)
    np.testing.assert_allclose(found, g, rtol=0, atol=1e-12 * np.abs(g).max())
    if not {"mu", "S"} <= set(held):
        assert answer.norm == np.abs(np.concatenate(local_gradients(bound, held))).max()


@pytest.mark.parametrize("trace", [True, False])
def test_points_over_shards(trace):
    Y, mu = table()
    prior = Gaussian(0.0, 1.0)
    b, first = backend.get("numpy"), start(mu)
    centred = Observed.of(b, Y - Y.mean(axis=0))
    whole = BayesianObjective(
        first.kernel, centred, mu, None, first.Z, first.noise, latent_prior=prior, trace=trace,
        jitter=1e-2,
    )  # fmt: skip
    f, g = whole.value_and_grad(whole.start())
    _, bound = opened(Y, mu, None, 3, Worker(KERNEL, prior), trace=trace, jitter=1e-2)
    answer = bound.evaluate(bound.layout.start(), FIRST)
    states = bound.settle((np.asarray([1.0, 0.0, 1.0, 0.0, 0.0]), np.zeros(0), np.zeros(0)))
    found = np.concatenate([answer.gradient, *(state.g for state in states)])
    assert answer.value == pytest.approx(f.item(), rel=1e-12)
    np.testing.assert_allclose(found, g, rtol=0, atol=1e-12 * np.abs(g).max())


@pytest.mark.parametrize("resident", [True, False])
def test_shards_on_every_library(case, resident, monkeypatch):
    """Workers and algebra where the case's arrays are; not resident: rows wait on the host."""
    known = backend.get

    def get(name, like=None, dtype="float64"):
        return case.backend if name == "case" else known(name, like, dtype)

    monkeypatch.setattr(shard_module.backend, "get", get)
    Y, mu = table(n=20)
    worker = Worker(KERNEL, None, "case", case.dtype, resident)
    session, bound = opened(Y, mu, 0.1, 2, worker, b=case.backend, jitter=1e-2)
    with session:
        x = case.asarray(bound.layout.start())
        answer = bound.evaluate(x, FIRST)
        assert backend.of(answer.value) == case.backend
        _, reference = opened(Y, mu, 0.1, 2, Worker(KERNEL), jitter=1e-2)
        expected = reference.evaluate(reference.layout.start(), FIRST)
        tol = case.tolerance(1e-10, 2e-3)
        f, g = case.to_numpy(answer.value), case.to_numpy(answer.gradient)
        assert f == pytest.approx(expected.value.item(), rel=tol)
        np.testing.assert_allclose(g, expected.gradient, atol=tol * np.abs(g).max())
        assert answer.norm == pytest.approx(expected.norm, rel=tol)


def test_a_failed_point_is_a_value():
    Y, mu = table()
    session, bound = opened(Y, mu, 0.1, 2, Worker(KERNEL))
    x = bound.layout.start()
    x[bound.layout.slices()["noise"]] = 800.0
    before = session.traffic.calls
    answer = bound.evaluate(x, FIRST)
    assert answer.value == np.inf
    assert session.traffic.calls == before + 1


def test_what_travels_does_not_depend_on_the_rows():
    """O(M² + M D) numbers a worker and evaluation, to the number."""
    counts = []
    for n in (60, 600):
        Y, mu = table(n)
        session, bound = opened(Y, mu, 0.1, 2, Worker(KERNEL))
        before = (session.traffic.sent, session.traffic.returned, session.traffic.apart)
        bound.evaluate(bound.layout.start(), FIRST)
        after = (session.traffic.sent, session.traffic.returned, session.traffic.apart)
        counts.append(tuple(np.subtract(after, before)))
    (M, q), D, p = start(mu).Z.shape, Y.shape[1], KERNEL.theta().size
    sums, shared = 1 + M * D + M * M, p + M * q
    assert counts[0] == counts[1]
    assert counts[0] == (2 * (shared + 5 + sums), 2 * (sums + 1 + 2 + shared + 5 + 2), 0)


# -- whole fits ------------------------------------------------------------------------------------


def test_a_fit_is_the_serial_fit():
    Y, mu = table()
    first = start(mu)
    whole = BayesianObjective(
        first.kernel, Observed.of(backend.get("numpy"), Y - Y.mean(axis=0)), mu,
        np.full(mu.shape, 0.1), first.Z, first.noise, jitter=1e-6,
    )  # fmt: skip
    x0 = whole.start()
    r = minimise(whole.value_and_grad, x0, method="lbfgs", max_steps=8, gtol=0.0, ftol=None)
    v = whole.values(r.x)
    for n_shards in (1, 3):
        found = fit(Y, mu, n_shards, steps=8)
        assert found.result.evaluations == r.evaluations
        np.testing.assert_allclose(found.curve, r.values, rtol=1e-7)
        np.testing.assert_allclose(found.mu, v.mu, atol=1e-5)
        np.testing.assert_allclose(found.S, v.S, atol=1e-5)
        np.testing.assert_allclose(found.end.Z, v.Z, atol=1e-5)
        mean, factor, _ = whole.optimal(v)
        np.testing.assert_allclose(found.mean, mean, atol=1e-4)
        np.testing.assert_allclose(found.factor, factor, atol=1e-4)
        # Sums over rows twice an evaluation, and a few calls before and after.
        assert found.traffic.calls == 2 * r.evaluations + 6


def test_missing_entries_and_scale():
    Y, mu = table(missing=True)
    found = fit(Y, mu, steps=2, scale=True)
    np.testing.assert_allclose(found.table.mean, np.nanmean(Y, axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.table.scale, np.nanstd(Y, axis=0), rtol=1e-12)
    which = found.table.totals.which
    assert which[0] == which[1]
    assert len(set(which.tolist())) == 4
    assert found.table.variance == pytest.approx(1.0)
    assert found.factor.shape[0] == 4


@pytest.mark.parametrize("columns", [5, 700])
def test_principal_components_by_the_workers(columns):
    rng = np.random.default_rng(5)
    Y = rng.normal(size=(40, 3)) * [3.0, 2.0, 1.0] @ rng.normal(size=(3, columns))
    Y += 0.01 * rng.normal(size=Y.shape) + 2.0
    chosen = SerialEngine()
    parts, rows = chosen.split(Y, 3)
    with chosen.open(Worker(KERNEL), [(p,) for p in parts]) as session:
        known = sharded_table.prepared(session, rows, columns, False)
        found = sharded_table.place_latents(session, known, 3, 0.1)
    expected = starts.latents("pca", Y - Y.mean(axis=0), 3, rng)
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_a_fit_from_the_table_alone():
    """Starting values chosen from a sample of the latents; a warm-up with the noise held."""
    Y, _ = table(200)
    seen = []

    def begin(sample, variance):
        seen.append((sample.shape, variance))
        return Globals(KERNEL, 0.01 * variance, sample[:8].copy())

    settings = ShardedSettings(warm_up=3, limits=Limits(max_steps=40, gtol=1e-3))
    found = fit_sharded(Y, begin, kernel=KERNEL, mu=Q, n_shards=3, settings=settings)
    assert seen[0][0] == (200, Q)
    assert seen[0][1] == pytest.approx(np.mean((Y - Y.mean(axis=0)) ** 2))
    assert len(found.curve) == 1 + 3 + found.result.steps <= 41
    assert np.all(np.diff(found.curve) <= 0.0)
    assert found.result.value < 0.5 * found.curve[0]


def test_a_resumed_fit_counts_the_warm_up(tmp_path):
    Y, mu = table()
    settings = ShardedSettings(warm_up=3, limits=Limits(max_steps=12, gtol=0.0, ftol=None))
    options = {"kernel": KERNEL, "mu": mu, "n_shards": 2, "settings": settings}
    file = Checkpoint(tmp_path / "fit.npz", every=4)
    whole = fit_sharded(Y, start(mu), checkpoint=file, **options)
    assert len(whole.curve) == 13
    assert file.read()["values"].size == 1 + 8
    assert same_bits(whole, fit_sharded(Y, start(mu), checkpoint=file, resume=True, **options))


def test_what_ends_a_warm_up_ends_the_fit():
    Y, mu = table()
    told = []

    def callback(progress):
        told.append(progress.step)
        return progress.step == stop

    options = {"kernel": KERNEL, "mu": mu, "n_shards": 2}
    for stop, steps in ((2, [0, 1, 2]), (5, [0, 1, 2, 3, 3, 4, 5])):
        told.clear()
        settings = ShardedSettings(warm_up=3, limits=Limits(callback=callback))
        found = fit_sharded(Y, start(mu), settings=settings, **options)
        assert (found.result.status, told) == ("stopped", steps)
        assert len(found.curve) == stop + 1
        assert (found.end.noise == pytest.approx(start(mu).noise, rel=1e-12)) == (stop == 2)
    settings = ShardedSettings(warm_up=3, limits=Limits(time_limit=0.0))
    found = fit_sharded(Y, start(mu), settings=settings, **options)
    assert (found.result.status, len(found.curve)) == ("time_limit", 1)
    np.testing.assert_array_equal(found.mu, mu)


def test_a_start_that_fails():
    """No jitter helps where the squares of the kernel's values are too large for numbers."""
    Y, mu = table()
    first = Globals(RBF(1e200, (0.5, 0.7)), 0.1, mu[:8].copy())
    with pytest.raises(NotPositiveDefiniteError, match=r"jitter of up to 1e\+00 of the kernel's"):
        fit(Y, mu, first=first)


@pytest.mark.parametrize("warm_up", [0, 3])
def test_the_jitter_of_a_start_without_factors_is_raised(tmp_path, warm_up):
    """Inducing inputs in one place; a resumed fit keeps the jitter that was found."""
    Y, mu = table()
    settings = ShardedSettings(
        jitter=0.0, warm_up=warm_up, limits=Limits(max_steps=10, gtol=0.0, ftol=None)
    )
    first = Globals(KERNEL, 0.1, np.zeros((8, Q)))
    file = Checkpoint(tmp_path / "fit.npz", every=3)
    options = {"kernel": KERNEL, "mu": mu, "n_shards": 2, "settings": settings, "checkpoint": file}
    found = fit_sharded(Y, first, **options)
    assert found.jitter in [pytest.approx(10.0**-k) for k in range(9, 3, -1)]
    assert found.result.value < found.curve[0]
    assert file.read()["jitter"].tolist() == [found.jitter]
    resumed = fit_sharded(Y, first, resume=True, **options)
    assert same_bits(found, resumed)
    assert resumed.jitter == found.jitter


def test_points_and_host_rows():
    Y, mu = table()
    points = fit(Y, mu, steps=3, S=None)
    assert points.S is None
    assert points.mu.shape == mu.shape
    assert same_bits(fit(Y, mu, steps=3), fit(Y, mu, steps=3, resident=False))


# -- checkpoints and losses ------------------------------------------------------------------------


class Dies(Engine):
    """An engine whose third worker is lost at a call."""

    def __init__(self, at):
        self.at = at

    def open(self, build, shards):
        session = SerialEngine().open(build, shards)
        carrier, calls = session._carrier, itertools.count()
        call = carrier.call

        def failing(method, arguments):
            if next(calls) >= self.at:
                raise WorkerLostError(2, "killed")
            return call(method, arguments)

        carrier.call = failing
        return session


def test_a_lost_worker_is_named_and_the_fit_resumes_with_the_same_bits(tmp_path):
    Y, mu = table(missing=True)
    whole = fit(Y, mu)
    file = Checkpoint(tmp_path / "fit.npz", every=3)
    with pytest.raises(WorkerLostError, match=r"shard 2 was lost \(killed\).*fit.npz") as caught:
        fit(Y, mu, engine=Dies(30), checkpoint=file)
    assert (caught.value.shard, caught.value.checkpoint) == (2, str(tmp_path / "fit.npz"))
    assert [p.name for p in tmp_path.iterdir()] == ["fit.npz"]
    step = file.read()["values"].size - 1
    assert step % 3 == 0
    assert 0 < step < 25
    again = fit(Y, mu, checkpoint=file, resume=True)
    assert same_bits(whole, again)
    assert again.result.steps == whole.result.steps == 25
    assert again.result.evaluations < whole.result.evaluations


def test_a_loss_before_the_first_checkpoint(tmp_path):
    Y, mu = table()
    with pytest.raises(WorkerLostError, match="no checkpoint was written"):
        fit(Y, mu, engine=Dies(3), checkpoint=Checkpoint(tmp_path / "none.npz"))


def test_checkpoints_that_do_not_fit(tmp_path):
    Y, mu = table()
    file = Checkpoint(tmp_path / "fit.npz", every=2)
    with pytest.raises(ValueError, match="resume=True was given without a checkpoint"):
        fit(Y, mu, resume=True)
    with pytest.raises(FileNotFoundError):
        fit(Y, mu, checkpoint=file, resume=True)
    fit(Y, mu, steps=3, checkpoint=file)
    with pytest.raises(ValueError, match="expected the same data and the same shards"):
        fit(Y, mu, 3, checkpoint=file, resume=True)
    with pytest.raises(ValueError, match="inducing inputs: 8 there and 5 here"):
        fit(Y, mu, checkpoint=file, resume=True, first=Globals(KERNEL, 0.1, mu[:5]))
    arrays = file.read()
    del arrays["facts"]
    file.write(arrays)
    with pytest.raises(ModelFileError, match=r"lacks \['facts'\]"):
        fit(Y, mu, checkpoint=file, resume=True)
    (tmp_path / "fit.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ModelFileError, match="can't be read as a checkpoint"):
        fit(Y, mu, checkpoint=file, resume=True)
    np.savez(tmp_path / "fit.npz", rows=np.asarray([object()]))
    with pytest.raises(ModelFileError, match="can't be read as a checkpoint"):
        fit(Y, mu, checkpoint=file, resume=True)


OTHER = {
    "reversed rows": (lambda Y: Y[::-1], "order"),
    "two rows exchanged": (lambda Y: Y[[1, 0, *range(2, len(Y))]], "order"),
    "reversed columns": (lambda Y: Y[:, ::-1], "order"),
    "other signs": (lambda Y: -Y, "order"),
    "another unit": (lambda Y: 5.0 * Y, "sum of squares"),
    "another offset": (lambda Y: Y + 1.0, "sum of squares"),
    "an entry missing": (lambda Y: np.where(np.arange(Y.size).reshape(Y.shape) == 9, np.nan, Y),
                         "number of observed entries 75 there and 74 here"),
    "fewer columns": (lambda Y: Y[:, :-1], "columns: 5 there and 4 here"),
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The checkpoint of a short fit."""
    file = Checkpoint(tmp_path_factory.mktemp("other") / "fit.npz", every=2)
    fit(*table(), steps=3, checkpoint=file)
    return file


@pytest.mark.parametrize("name", OTHER)
def test_a_checkpoint_of_other_data_is_refused(written, name):
    change, text = OTHER[name]
    Y, mu = table()
    with pytest.raises(ValueError, match=rf"checkpoint .*fit\.npz.* is of [\s\S]*{text}"):
        fit(change(Y).copy(), mu, checkpoint=written, resume=True)


def test_the_same_data_but_for_rounding_are_the_same(written):
    Y, mu = table()
    nearly = Y * (1.0 + 1e-15 * np.cos(np.arange(Y.size).reshape(Y.shape)))
    assert not np.array_equal(nearly, Y)
    assert fit(nearly, mu, steps=3, checkpoint=written, resume=True).result.steps == 3


SETTINGS = {
    "scale": ({"scale": True}, "scale: False there and True here"),
    "points": ({"S": None}, "latents: uncertain there and points here"),
    "dtype": ({"dtype": "float32"}, "dtype: float64 there and float32 here"),
}


def test_values_that_are_held_must_be_the_same(tmp_path):
    Y, mu = table()
    file = Checkpoint(tmp_path / "fit.npz", every=2)
    held = RBF(1.0, (0.5, 0.7), fixed=("lengthscale",))
    first = Globals(held, 0.05, start(mu).Z)
    fit(Y, mu, steps=3, checkpoint=file, first=first)
    learned = Globals(held.with_theta([2.0, 0.5, 0.7]), 0.1, start(mu).Z)
    assert fit(Y, mu, steps=3, checkpoint=file, first=learned, resume=True).result.steps == 3
    other = Globals(held.with_theta([1.0, 0.5, 0.8]), 0.05, start(mu).Z)
    with pytest.raises(ValueError, match=r"values held: .*0\.7\].* there and .*0\.8\].* here"):
        fit(Y, mu, checkpoint=file, first=other, resume=True)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_checkpoint_of_other_settings_is_refused(written, name):
    options, text = SETTINGS[name]
    with pytest.raises(ValueError, match=rf"of another fit \({text}"):
        fit(*table(), checkpoint=written, resume=True, **options)


def test_a_kernel_of_another_form_is_refused(written):
    Y, mu = table()
    first = Globals(Matern52(1.0, (0.5, 0.7)), 0.05, start(mu).Z)
    with pytest.raises(ValueError, match=r"kernel: RBF\([\s\S]*there and Matern52\("):
        fit(Y, mu, checkpoint=written, resume=True, first=first)


def test_a_path_that_can_not_be_written_is_found_before_the_search(tmp_path):
    Y, mu = table()
    calls = []
    for path in (tmp_path / "none" / "fit.npz", tmp_path):
        with pytest.raises(OSError, match=r"the checkpoint .* can't be written"):
            fit(Y, mu, checkpoint=Checkpoint(path), callback=calls.append)
    assert calls == []
    assert list(tmp_path.iterdir()) == []


BAD = {
    "infinity": (
        lambda Y: np.where(np.arange(Y.size).reshape(Y.shape) >= 303, np.inf, Y),
        "infinity in row 60, column 3 .12 such entries",
    ),
    "an empty column": (
        lambda Y: np.where(np.arange(5) == 2, np.nan, Y), "column 2 of X has no observed entry .1",
    ),
    "an empty row": (
        lambda Y: np.where(np.arange(63)[:, None] >= 61, np.nan, Y),
        "row 61 of X has no observed entry .2 such rows",
    ),
    "constant columns": (
        lambda Y: np.zeros_like(Y) + 0.1 * np.arange(5), "every column of X is constant",
    ),
    "only missing": (lambda Y: Y * np.nan, "row 0 of X has no observed entry .63"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_tables_that_can_not_be_fitted(name):
    change, text = BAD[name]
    Y, mu = table()
    with pytest.raises(ValueError, match=text):
        fit(change(Y), mu)


def test_a_constant_column_has_no_scale():
    """The mean of many times 0.1 is not 0.1: rounding must not be taken for a width."""
    Y, mu = table(150)
    Y[:, 3] = 0.1
    assert fit(Y, mu, steps=1, scale=True).table.scale[3] == 1.0


def test_bad_tables():
    Y, mu = table()
    with pytest.raises(ValueError, match="for 63 rows of Y"):
        fit(Y, mu[:-1])
    with pytest.raises(ValueError, match="expected 1 to 5"):
        fit(Y, 6, first=start(mu))
    with pytest.raises(ValueError, match="n_shards=64 was given for 63 rows"):
        fit(Y, mu, 64)
    with pytest.raises(ValueError, match="held names"):
        opened(Y, mu, 0.1, 2, Worker(KERNEL), held=frozenset({"X"}))
