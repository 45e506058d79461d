"""Newton-Krylov on functions whose Hessian is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gplvm_xp import backend
from gplvm_xp.optim import newton_krylov


class Rosenbrock:
    """Σ 100 (x_{i+1} − x_i²)² + (1 − x_i)², over the last axis."""

    def __init__(self, x):
        self.x, self.xp = x, backend.of(x).xp
        self.head, self.tail = x[..., :-1], x[..., 1:]
        self.a = self.tail - self.head**2
        self.value = self.xp.sum(100.0 * self.a**2 + (1.0 - self.head) ** 2, axis=-1)

    def _join(self, head, tail):
        zero = 0.0 * self.x[..., :1]
        return self.xp.concat([head, zero], axis=-1) + self.xp.concat([zero, tail], axis=-1)

    def gradient(self):
        return self._join(-400.0 * self.head * self.a - 2.0 * (1.0 - self.head), 200.0 * self.a)

    def hvp(self, u):
        head, tail = u[..., :-1], u[..., 1:]
        da = tail - 2.0 * self.head * head
        return self._join(-400.0 * (head * self.a + self.head * da) + 2.0 * head, 200.0 * da)

    def precondition(self, u):
        return u


class Quadratic:
    """½ xᵀ diag(d) x − Σ x, with the exact metric or a useless one."""

    def __init__(self, x, d, metric):
        self.x, self.d, self.metric = x, d, metric
        self.value = np.sum(0.5 * d * x * x - x, axis=-1)

    def gradient(self):
        return self.d * self.x - 1.0

    def hvp(self, u):
        return self.d * u

    def precondition(self, u):
        return u / self.metric


def test_finds_the_minimum_of_a_batch(case):
    x0 = np.array([[-1.2, 1.0, 0.5], [0.3, -0.4, 1.1]])
    found = newton_krylov(
        Rosenbrock, case.asarray(x0), gtol=case.tolerance(1e-8, 1e-3), max_steps=200
    )
    assert found.converged.all(), found.message
    np.testing.assert_allclose(case.to_numpy(found.x), 1.0, atol=case.tolerance(1e-7, 1e-2))
    assert found.hvps.shape == found.steps.shape == (2,)


def test_a_batch_is_its_members_one_by_one():
    x0 = np.array([[-1.2, 1.0, 0.5, 2.0], [0.3, -0.4, 1.1, 0.0], [1.0, 1.0, 1.0, 1.0]])
    together = newton_krylov(Rosenbrock, x0)
    for k in range(3):
        alone = newton_krylov(Rosenbrock, x0[k])
        np.testing.assert_allclose(together.x[k], alone.x, rtol=1e-12)
        assert (together.steps[k], together.hvps[k]) == (alone.steps, alone.hvps)
    assert together.steps[2] == 0


def test_the_decrease_is_monotone_and_convergence_fast():
    found = newton_krylov(Rosenbrock, np.array([-1.2, 1.0, 0.5, 2.0, -0.3]))
    values, norms = np.array(found.values), np.array(found.grad_norms)
    assert np.all(np.diff(values) <= 0.0)
    assert found.status == "converged"
    # Superlinear: the last steps gain orders of magnitude.
    assert norms[-1] < 1e-2 * norms[-2] ** 1.2


def test_an_exact_metric_needs_one_direction():
    rng = np.random.default_rng(0)
    d = 10.0 ** rng.uniform(-3, 3, 60)
    exact = newton_krylov(lambda x: Quadratic(x, d, d), np.zeros(60), radius=1e9)
    plain = newton_krylov(
        lambda x: Quadratic(x, d, d), np.zeros(60), radius=1e9, preconditioned=False
    )
    np.testing.assert_allclose(exact.x, 1.0 / d, rtol=1e-8)
    assert exact.hvps <= 3
    assert plain.hvps > 20 * exact.hvps


def test_follows_negative_curvature_to_the_border():
    class Saddle:
        def __init__(self, x):
            self.x = x
            self.value = np.sum(0.25 * x**4 - 0.5 * x**2, axis=-1)

        def gradient(self):
            return self.x**3 - self.x

        def hvp(self, u):
            return (3.0 * self.x**2 - 1.0) * u

        def precondition(self, u):
            return u

    found = newton_krylov(Saddle, np.array([1e-3, -2e-3]))
    np.testing.assert_allclose(np.abs(found.x), 1.0, atol=1e-8)


def test_overflow_is_a_rejected_step():
    class Steep:
        """exp(x) − 5x + 0.05 x²; far steps overflow."""

        def __init__(self, x):
            self.x = x
            with np.errstate(over="ignore"):
                self.e = np.exp(x)
            self.value = np.sum(self.e - 5.0 * x, axis=-1)

        def gradient(self):
            return self.e - 5.0

        def hvp(self, u):
            return self.e * u

        def precondition(self, u):
            return u

    found = newton_krylov(Steep, np.array([-20.0]), radius=1e6)
    np.testing.assert_allclose(found.x, np.log(5.0), rtol=1e-9)
    assert found.rejected > 0


def test_a_start_that_cannot_be_evaluated_fails():
    found = newton_krylov(Rosenbrock, np.array([np.nan, 1.0]))
    assert found.status == "failed"
    assert "start" in found.message


def test_one_bad_member_does_not_spoil_a_batch():
    x0 = np.array([[-1.2, 1.0], [np.nan, 1.0]])
    found = newton_krylov(Rosenbrock, x0)
    assert found.status == "failed"
    assert found.converged.tolist() == [True, False]
    np.testing.assert_allclose(found.x[0], 1.0, atol=1e-7)


def test_callback_limits_and_interruption():
    told = []
    x0 = np.array([-1.2, 1.0])

    def stop(progress):
        told.append(progress)
        return progress.step == 3

    found = newton_krylov(Rosenbrock, x0, callback=stop)
    assert found.status == "stopped"
    assert [p.step for p in told] == [0, 1, 2, 3]
    assert newton_krylov(Rosenbrock, x0, max_steps=2).status == "max_steps"
    assert newton_krylov(Rosenbrock, x0, time_limit=0.0).status == "time_limit"

    def interrupt(progress):
        if progress.step == 4:
            raise KeyboardInterrupt

    found = newton_krylov(Rosenbrock, x0, callback=interrupt)
    assert found.status == "interrupted"
    assert found.value < Rosenbrock(x0).value


@pytest.mark.parametrize(
    ("x0", "options"),
    [
        (np.zeros(0), {}),
        (np.zeros((0, 3)), {}),
        (np.array(1.0), {}),
        (np.zeros(2), {"gtol": -1.0}),
        (np.zeros(2), {"radius": 0.0}),
        (np.zeros(2), {"gtol": float("nan")}),
    ],
)
def test_bad_settings(x0, options):
    with pytest.raises(ValueError, match="expected"):
        newton_krylov(Rosenbrock, x0, **options)


class Noisy(Quadratic):
    """A value with errors far above its spacing, and a gradient without."""

    def __init__(self, x, d):
        super().__init__(x, d, d)
        self.value = self.value + 1e-7 * np.sin(1e9 * np.sum(x, axis=-1))


def test_below_rounding_the_gradient_decides():
    d = np.array([1.0, 3.0, 7.0])
    settings = {"gtol": 1e-13, "max_steps": 40}
    found = newton_krylov(lambda x: Noisy(x, d), np.full(3, 1e-3), rounding=1e10, **settings)
    assert found.status == "converged", found.message
    np.testing.assert_allclose(found.x, 1.0 / d, rtol=1e-12)
    # Nothing is gained by a step that makes the gradient larger, whatever the value says.
    norms = np.array(found.grad_norms)
    assert np.all(np.diff(norms) <= 0.0)


def test_a_callback_sees_the_point():
    seen = []
    newton_krylov(Rosenbrock, np.array([-1.2, 1.0]), callback=lambda p: seen.append((p.x, p.value)))
    for x, value in seen:
        assert Rosenbrock(x).value == value
    repeated = [one is two for (one, _), (two, _) in itertools.pairwise(seen)]
    same = [one == two for (_, one), (_, two) in itertools.pairwise(seen)]
    assert repeated == same
    assert True in repeated
    assert False in repeated


def test_the_rounding_level_is_checked():
    with pytest.raises(ValueError, match="rounding=0"):
        newton_krylov(Rosenbrock, np.ones(2), rounding=0)
