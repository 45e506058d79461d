"""The conformance suite of likelihoods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array, Device, Namespace
from gplvm_xp.likelihoods import Likelihood
from gplvm_xp.testing._gradients import richardson

Support = np.ndarray | Literal["real", "positive"]

# 0, two that only the form for small v can take, both sides of the change of forms, and beyond.
_VARIANCES = (0.0, 1e-12, 1e-3, 0.04, 0.06, 0.4, 1.0)


def check_likelihood(
    likelihood: Likelihood,
    y: np.ndarray,
    *,
    exposure: np.ndarray | None = None,
    support: Support | None = None,
    accuracy: float = 1e-8,
    xp: Namespace = np,
    device: Device = None,
    dtype: str = "float64",
    seed: int = 0,
    make: Callable[[np.ndarray], Array] | None = None,
) -> None:
    """Hold a likelihood to the contract of :class:`gplvm_xp.likelihoods.Likelihood`.

    Checked: each derivative against Richardson differences of the one before; the sum or integral
    over y (1, or not where ``normalised`` is false), the moments and the predictions against sums
    over y; the expected log-likelihood, its five derivatives and the predictive density against
    sums over 4001 nodes on the host; the theorems of Bonnet and Price; the derivatives of the
    expectation and its hyperparameter gradient against differences of its own value; v → 0;
    concavity; exposure 0; the library, device and dtype of every result; that inputs are left
    alone; round trip of the parameters.

    Parameters
    ----------
    likelihood : Likelihood
    y : ndarray (N,)
        Observations to try, some at the ends of the support. Moderate values: errors are taken
        relative to the largest.
    exposure : ndarray (N,), optional
        Exposures to try, for likelihoods that have one.
    support : ndarray, "real" or "positive", optional
        All y that are possible (of an infinite number, those that have weight for |f| ≤ 2). Without
        it sums over y are not checked.
    accuracy : float
        Allowed error of quadrature at v ≤ 1, relative to the largest result.
    xp, device, dtype
        Where to try it: any array-API library.
    make : callable, optional
        Makes a device array from a float64 host array; overrides ``xp`` and ``device``.

    Raises
    ------
    AssertionError
    """
    if make is None:
        kind = getattr(xp, dtype)

        def make(a: np.ndarray) -> Array:
            return xp.asarray(a, dtype=kind, device=device)

    rng = np.random.default_rng(seed)
    run = _LikelihoodRun(likelihood, make, dtype, accuracy, rng)
    y = np.asarray(y, dtype=np.float64)
    n = None if exposure is None else np.asarray(exposure, dtype=np.float64)
    run.structure(y, n)
    run.chain(y, n)
    run.expectations(y, n)
    run.differences(y, n)
    run.hyperparameters(y, n)
    run.prediction(y, n)
    if support is not None:
        run.sums(support)
    if n is not None:
        run.exposures(y)


class _LikelihoodRun:
    """One likelihood on one library; host arrays in, comparisons on the host."""

    def __init__(
        self,
        likelihood: Likelihood,
        make: Callable[[np.ndarray], Array],
        dtype: str,
        accuracy: float,
        rng: Any,
    ) -> None:
        self.likelihood, self.make, self.rng = likelihood, make, rng
        single = dtype == "float32"
        self.tight, self.loose = (1e-4, 2e-2) if single else (1e-11, 1e-8)
        self.accuracy = max(accuracy, self.tight)
        self.step = 0.1 if single else 5e-3
        start = likelihood.theta()
        host = start * np.exp(0.1 * rng.standard_normal(start.shape))
        # What the library can represent, so that both sides see the same numbers.
        self.theta = backend.of(make(host)).to_host(make(host)).astype(np.float64)

    def put(self, a: np.ndarray | None) -> Array:
        return None if a is None else self.make(np.asarray(a, dtype=np.float64))

    def get(self, a: Array, like: Array, shape: tuple[int, ...], what: str) -> np.ndarray:
        b = backend.of(like)
        if type(like) is np.ndarray and isinstance(a, np.generic) and shape == ():
            a = np.asarray(a)
        assert type(a) is type(like), f"{what} is a {type(a)}, the inputs are {type(like)}"
        assert tuple(a.shape) == shape, f"{what} has shape {a.shape}, expected {shape}"
        assert a.dtype == like.dtype, f"{what} has dtype {a.dtype}, the inputs have {like.dtype}"
        assert backend.of(a).device == b.device, f"{what} has left the inputs' device"
        return b.to_host(a).astype(np.float64)

    def close(self, got: np.ndarray, want: np.ndarray, tolerance: float, what: str) -> None:
        assert np.all(np.isfinite(got) == np.isfinite(want)), f"{what}: {got} instead of {want}"
        known = np.isfinite(want)
        got, want = np.where(known, got, 0.0), np.where(known, want, 0.0)
        scale = max(float(np.max(np.abs(want), initial=0.0)), 1e-3)
        error = float(np.max(np.abs(got - want), initial=0.0)) / scale
        assert error <= tolerance, (
            f"{type(self.likelihood).__name__}: {what} is off by {error:.2e} "
            f"(allowed {tolerance:.0e})"
        )

    def grid(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and variances, (number of variances, N) each."""
        v = np.asarray(_VARIANCES)[:, None] * np.ones(y.shape)
        m = self.rng.uniform(-1.5, 1.5, v.shape)
        host = backend.of(self.put(m)).to_host
        return host(self.put(m)).astype(np.float64), host(self.put(v)).astype(np.float64)

    def expected(self, y: Any, m: Any, v: Any, n: Any, theta: Any = None) -> dict[str, np.ndarray]:
        theta = self.theta if theta is None else theta
        like = self.put(m)
        e = self.likelihood.expected(self.put(y), like, self.put(v), self.put(theta), self.put(n))
        return {k: self.get(a, like, m.shape, f"expected.{k}") for k, a in e._asdict().items()}

    # -- the parts -------------------------------------------------------------------------------

    def structure(self, y: np.ndarray, n: np.ndarray | None) -> None:
        kind = self.likelihood
        kind.check(y, n)
        names = [block.name for block in kind.blocks()]
        assert names == [f"{kind.name}.{p}" for p in kind.parameters]
        moved = kind.with_theta(self.theta)
        assert type(moved) is type(kind)
        self.close(moved.theta(), self.theta, 1e-15, "with_theta followed by theta")

    def chain(self, y: np.ndarray, n: np.ndarray | None) -> None:
        """Each derivative against differences of the one before; and as much by itself."""
        f = self.rng.uniform(-3.0, 3.0, (5, y.size))
        f = backend.of(self.put(f)).to_host(self.put(f)).astype(np.float64)
        theta = self.put(self.theta)

        def orders(at: np.ndarray) -> list[np.ndarray]:
            like = self.put(at)
            arguments = (self.put(y), like, theta, self.put(n))
            found = [self.likelihood.log_prob(*arguments), *self.likelihood.derivatives(*arguments)]
            return [self.get(a, like, at.shape, f"derivative {k}") for k, a in enumerate(found)]

        here = orders(f)
        for k in range(4):

            def slope(h: float, k: int = k) -> np.ndarray:
                return np.asarray((orders(f + h)[k] - orders(f - h)[k]) / (2.0 * h))

            want = richardson(slope, self.step)
            self.close(here[k + 1], want, self.loose, f"derivative {k + 1} and differences")
        if self.likelihood.log_concave:
            limit = self.tight * float(np.max(np.abs(here[2])))
            assert np.all(here[2] <= limit), "ln p is not concave in f; set log_concave = False"
        default = self.likelihood.log_prob(self.put(y), self.put(f), None, self.put(n))
        given = self.likelihood.log_prob(
            self.put(y), self.put(f), self.put(self.likelihood.theta()), self.put(n)
        )
        host = backend.of(self.put(f)).to_host
        self.close(host(default), host(given), self.tight, "log_prob without theta")

    def expectations(self, y: np.ndarray, n: np.ndarray | None) -> None:
        m, v = self.grid(y)
        got = self.expected(y, m, v, n)
        want, predictive = self._brute(y, m, v, n)
        for k, name in enumerate(got):
            self.close(got[name], want[k], self.accuracy, f"expected.{name} and 4001 nodes")
        self.close(2.0 * got["v"], got["mm"], 2 * self.accuracy, "2ℓ_v against ℓ_mm (Price)")
        at, mean, variance = self.put(y), self.put(m), self.put(v)
        density = self.likelihood.log_predictive(
            at, mean, variance, self.put(self.theta), self.put(n)
        )
        self.close(
            self.get(density, mean, m.shape, "log_predictive"),
            predictive,
            self.accuracy,
            "log_predictive and 4001 nodes",
        )
        for name, after, given in zip("ymv", (at, mean, variance), (y, m, v), strict=True):
            left = backend.of(after).to_host(after).astype(np.float64)
            self.close(left, given, 1e-6, f"{name} after the calls (inputs must be left alone)")

    def _brute(
        self, y: np.ndarray, m: np.ndarray, v: np.ndarray, n: np.ndarray | None
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Value and derivatives of ℓ, and ln E[p], by NumPy, one mean after the other."""
        x = np.linspace(-12.0, 12.0, 4001)
        w = np.exp(-0.5 * x * x)
        w /= np.sum(w)
        factors = (1.0, 1.0, 0.5, 1.0, 0.5, 0.25)
        out, densities = np.empty((6, *m.shape)), np.empty(m.shape)
        for place in np.ndindex(m.shape):
            f = m[place] + np.sqrt(v[place]) * x
            one = np.full(x.shape, y[place[1]])
            exposure = None if n is None else np.full(x.shape, n[place[1]])
            arguments = (one, f, self.theta, exposure)
            log = self.likelihood.log_prob(*arguments)
            d1, d2, d3, d4 = self.likelihood.derivatives(*arguments)
            terms = (log, d1, d2, d2, d3, d4)
            out[(slice(None), *place)] = [c * (w @ t) for c, t in zip(factors, terms, strict=True)]
            densities[place] = log.max() + np.log(w @ np.exp(log - log.max()))
        return list(out), densities

    def differences(self, y: np.ndarray, n: np.ndarray | None) -> None:
        """Derivatives of the expectation against its own value, where v is not too small."""
        m, v = (a[2:] for a in self.grid(y))
        got = self.expected(y, m, v, n)

        def in_m(name: str) -> np.ndarray:
            def slope(h: float) -> np.ndarray:
                up, down = (self.expected(y, m + s * h, v, n)[name] for s in (1.0, -1.0))
                return np.asarray((up - down) / (2.0 * h))

            return np.asarray(richardson(slope, 4.0 * self.step))

        def in_v(name: str) -> np.ndarray:
            def slope(h: float) -> np.ndarray:
                up, down = (self.expected(y, m, v * (1.0 + s * h), n)[name] for s in (1.0, -1.0))
                return np.asarray((up - down) / (2.0 * h))

            return np.asarray(richardson(slope, 8.0 * self.step))

        loose = self.loose
        self.close(got["m"], in_m("value"), loose, "ℓ_m and differences of ℓ")
        self.close(got["mm"], in_m("m"), loose, "ℓ_mm and differences of ℓ_m")
        self.close(got["mv"], in_m("v"), loose, "ℓ_mv and differences of ℓ_v")
        self.close(v * got["v"], in_v("value"), loose, "v ℓ_v and differences of ℓ")
        self.close(v * got["mv"], in_v("m"), loose, "v ℓ_mv and differences of ℓ_m")
        self.close(v * got["vv"], in_v("v"), loose, "v ℓ_vv and differences of ℓ_v")

    def hyperparameters(self, y: np.ndarray, n: np.ndarray | None) -> None:
        m, v = self.grid(y)
        p = len(self.likelihood.parameters)
        like = self.put(m)
        raw = self.likelihood.expected_theta(
            self.put(y), like, self.put(v), self.put(self.theta), self.put(n)
        )
        got = self.get(raw, like, (p, *m.shape), "expected_theta")
        for k in range(p):
            move = np.zeros(p)
            move[k] = self.theta[k]

            def slope(h: float, move: np.ndarray = move) -> np.ndarray:
                up, down = (
                    self.expected(y, m, v, n, self.theta + s * h * move)["value"]
                    for s in (1.0, -1.0)
                )
                return np.asarray((up - down) / (2.0 * h))

            want = richardson(slope, 4.0 * self.step)
            name = self.likelihood.parameters[k]
            self.close(self.theta[k] * got[k], want, self.loose, f"∂ℓ/∂{name} and differences")

    def prediction(self, y: np.ndarray, n: np.ndarray | None) -> None:
        """Predictions at v = 0 are the moments; those at v > 0 their law of total variance."""
        m, v = self.grid(y)
        like, theta, exposure = self.put(m), self.put(self.theta), self.put(n)
        found = self.likelihood.predict(like, self.put(v), theta, exposure)
        mean, variance = (self.get(a, like, m.shape, "predict") for a in found)
        x = np.linspace(-12.0, 12.0, 4001)[:, None, None]
        w = np.exp(-0.5 * x * x)
        w /= np.sum(w)
        with np.errstate(invalid="ignore"):
            each, spread = self.likelihood.moments(m + np.sqrt(v) * x, self.theta, n)
            want = np.sum(w * each, axis=0)
            total = np.sum(w * (spread + (each - want) ** 2), axis=0)
        self.close(mean, want, self.accuracy, "the predicted mean and E[E[y | f]]")
        self.close(variance, total, self.accuracy, "the predicted variance")

    def sums(self, support: Support) -> None:
        """Sums over y, by NumPy in float64: what the library computes was compared above."""
        f = np.asarray([-1.1, 0.2, 0.9])
        v = np.asarray([0.0, 0.1, 0.3])
        kind, theta = self.likelihood, self.theta
        with np.errstate(invalid="ignore"):
            mean, variance = kind.moments(f, theta)
            predicted = kind.predict(f, v, theta)
        for what, moments in (("p(y | f)", (mean, variance)), ("E[p(y | f)]", predicted)):
            y, weight = _places(support, *moments)
            at, var = np.broadcast_to(f, y.shape), np.broadcast_to(v, y.shape)
            if what == "p(y | f)":
                log = kind.log_prob(y, at, theta)
            else:
                log = kind.log_predictive(y, at, var, theta)
            p = np.exp(log) * weight
            total = np.sum(p, axis=0)
            if not kind.normalised:
                assert np.all(np.abs(total - 1.0) > 1e-3), (
                    f"{what} sums to {total} over y; normalised = False is not true"
                )
                continue
            self.close(total, np.ones(3), 1e-9, f"the sum of {what} over y")
            known = np.isfinite(moments[1])
            first = np.sum(p * y, axis=0)
            second = np.sum(p * (y - first) ** 2, axis=0)
            self.close(first[known], moments[0][known], 1e-8, f"the mean of {what}")
            self.close(second[known], moments[1][known], 1e-8, f"the variance of {what}")

    def exposures(self, y: np.ndarray) -> None:
        """1 is the default, and 0 with y = 0 gives numbers."""
        m, v = self.grid(y)
        nothing, theta = np.zeros(y.shape), self.theta
        one = self.expected(nothing, m, v, np.ones(y.shape))
        for name, value in self.expected(nothing, m, v, None).items():
            self.close(one[name], value, self.tight, f"expected.{name} with exposure 1 and without")
        for name, value in self.expected(nothing, m, v, nothing).items():
            assert np.all(np.isfinite(value)), f"expected.{name} at y = 0, exposure = 0: {value}"
        kind, b = self.likelihood, backend.of(self.put(m))
        arguments = (self.put(nothing), self.put(m), self.put(theta), self.put(nothing))
        slopes = kind.expected_theta(*arguments[:2], self.put(v), *arguments[2:])
        for a in (kind.log_prob(*arguments), *kind.derivatives(*arguments), slopes):
            assert np.all(np.isfinite(b.to_host(a))), "y = 0, exposure = 0 gives NaN or infinity"


def _places(
    support: Support, mean: np.ndarray, variance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values of y (S, 3) around three means, and the weights of a sum over them."""
    if not isinstance(support, str):
        y = np.asarray(support, dtype=np.float64)[:, None] * np.ones(3)
        return y, np.ones(y.shape)
    t = np.linspace(-60.0, 60.0, 6001)[:, None]
    step = t[1, 0] - t[0, 0]
    if support == "positive":
        y = mean * np.exp(t)
        return y, y * step
    known = np.isfinite(variance)
    centre, width = np.where(known, mean, 0.0), np.sqrt(np.where(known, variance, 1.0))
    return centre + width * np.sinh(t), width * np.cosh(t) * step


__all__ = ["check_likelihood"]
