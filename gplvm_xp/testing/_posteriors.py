"""The conformance suite of posterior covariances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array, Device, Namespace
from gplvm_xp.kl import gaussian
from gplvm_xp.operators import Dense, DensePrecision, Hartley, Identity, LinearMap
from gplvm_xp.posteriors import Covariance, State
from gplvm_xp.testing._gradients import richardson


def check_posterior(
    covariance: Covariance,
    L: int,
    *,
    theta: Callable[[np.random.Generator], np.ndarray] | None = None,
    xp: Namespace = np,
    device: Device = None,
    dtype: str = "float64",
    batch: int = 2,
    seed: int = 0,
    make: Callable[[np.ndarray], Array] | None = None,
) -> None:
    """Hold a parameterisation to the contract of :class:`gplvm_xp.posteriors.Covariance`.

    The prior is a random dense one. Checked: the value against the dense KL (for a singular Σ
    against the same with the pseudo-determinant); gradient and HVP against Richardson differences,
    and self-adjointness; what lies outside the form (above a triangle, unsymmetric) is 0; marginal
    variances through the identity, dense maps and Hartley rows, each with its three derivatives;
    Σ z, draws and the dense Σ against each other; that ``natural`` is symmetric positive definite;
    batches, with a prior shared or of each member, against one at a time; the starting point; the
    library, device and dtype of every result, and that inputs are left alone.

    Parameters
    ----------
    covariance : Covariance
        With its own arrays where ``make`` or ``xp`` and ``device`` put them.
    L : int
        Length of the latent vector to try.
    theta : callable, optional
        Draws a host θ without leading axes. By default the parameterisation's starting point,
        moved at random by a fifth.
    xp, device, dtype
        Where to try it: any array-API library.
    batch : int
        Members of the batches.
    make : callable, optional
        Makes a device array from a float64 host array; overrides ``xp`` and ``device``.

    Raises
    ------
    AssertionError
    """
    rng = np.random.default_rng(seed)
    if make is None:
        kind = getattr(xp, dtype)

        def make(a: np.ndarray) -> Array:
            return xp.asarray(a, dtype=kind, device=device)

    run = _PosteriorRun(covariance, L, make, dtype, rng)
    if theta is None:

        def theta(rng: np.random.Generator) -> np.ndarray:
            return run.near_start(rng)

    run.one(theta(rng))
    run.batched([theta(rng) for _ in range(batch)])
    run.restriction(theta(rng))


@dataclass(frozen=True, eq=False)
class _Gathering(Dense):
    """A dense map that asks for the other way: through gram and quad."""

    gathers: ClassVar[bool] = True


class _PosteriorRun:
    """One parameterisation on one library; host arrays in, comparisons on the host."""

    def __init__(
        self,
        covariance: Covariance,
        L: int,
        make: Callable[[np.ndarray], Array],
        dtype: str,
        rng: np.random.Generator,
    ) -> None:
        self.covariance, self.L, self.make, self.rng = covariance, L, make, rng
        single = dtype == "float32"
        self.tight, self.adjoint = (3e-4, 3e-4) if single else (1e-11, 1e-12)
        self.loose = 3e-2 if single else 1e-8
        self.step = 3e-2 if single else 4e-3
        self.shape, self.name = covariance.shape(L), type(covariance).__name__
        self.Lambda = _definite(rng, L)
        self.prior = DensePrecision(make(self.Lambda))
        rows = L + 3
        B = rng.standard_normal((rows, L))
        grid = (2, L)
        frequencies = np.argwhere(np.ones(grid, dtype=bool))[rng.permutation(2 * L)[:L]]
        self.maps: list[LinearMap] = [
            Identity(L),
            Dense(make(B)),
            _Gathering(make(B)),
            Hartley(grid, frequencies),
        ]

    # -- small tools -------------------------------------------------------------------------------

    def get(self, a: Array, shape: tuple[int, ...], what: str) -> np.ndarray:
        like = self.prior.Lambda
        b = backend.of(like)
        what = f"{self.name}: {what}"
        # A reduction to one number leaves NumPy a scalar, which is as good as a 0-d array.
        kind = np.ndarray if isinstance(a, np.generic) else type(a)
        assert kind is type(like), f"{what} is a {type(a)}, the inputs are {type(like)}"
        assert tuple(a.shape) == shape, f"{what} has shape {tuple(a.shape)}, expected {shape}"
        assert a.dtype == like.dtype, f"{what} has dtype {a.dtype}, the inputs have {like.dtype}"
        assert backend.of(a).device == b.device, f"{what} has left the inputs' device"
        return b.to_host(a).astype(np.float64)

    def host(self, a: Array) -> np.ndarray:
        return backend.of(a).to_host(a).astype(np.float64)

    def close(self, got: Any, want: Any, tolerance: float, what: str, floor: float = 0.0) -> None:
        scale = max(float(np.linalg.norm(want)), floor, 1e-300)
        error = float(np.linalg.norm(np.asarray(got) - want)) / scale
        assert error <= tolerance, (
            f"{self.name}: {what} is off by {error:.2e} (allowed {tolerance:.0e})"
        )

    def project(self, M: np.ndarray) -> np.ndarray:
        """An allowed direction, or the part of a gradient that θ's form allows."""
        if self.covariance.form == "lower":
            return np.tril(M)
        if self.covariance.form == "symmetric":
            return np.asarray(0.5 * (M + np.swapaxes(M, -1, -2)))
        return M

    def near_start(self, rng: np.random.Generator) -> np.ndarray:
        curvature = self.make(rng.uniform(0.2, 2.0, self.L))
        start = self.covariance.start(self.prior, self.maps[0], curvature)
        host = self.get(start, self.shape, "start")
        noise = rng.standard_normal(self.shape)
        if self.covariance.form == "positive":
            return np.asarray(host * np.exp(0.2 * noise))
        if self.covariance.form == "symmetric":
            S = np.eye(self.L) + 0.2 * noise / np.sqrt(self.L)
            return np.asarray(S @ host @ S.T)
        size = float(np.sqrt(np.mean(host * host)))
        return np.asarray(host + self.project(0.2 * size * noise))

    def state(self, theta: np.ndarray) -> State:
        return self.covariance.at(self.make(theta), self.prior)

    def direction(self, theta: np.ndarray) -> np.ndarray:
        u = self.project(self.rng.standard_normal(self.shape))
        return np.asarray(u * (np.linalg.norm(theta) / np.linalg.norm(u) / 4))

    def difference(self, function: Callable[[State], Array], theta: np.ndarray, u: Any) -> Any:
        def slope(h: float) -> Any:
            up, down = (self.host(function(self.state(theta + s * h * u))) for s in (1.0, -1.0))
            return (up - down) / (2.0 * h)

        return richardson(slope, self.step)

    # -- the checks --------------------------------------------------------------------------------

    def one(self, theta: np.ndarray) -> None:
        given = self.make(theta)
        before = self.host(given)
        state = self.covariance.at(given, self.prior)
        assert bool(self.host(state.ok)), f"{self.name}: ok is false at a sound θ"
        self.value(state)
        self.derivatives(theta, state)
        for B in self.maps:
            self.variances(theta, state, B)
        self.samples(state)
        self.metric(state)
        self.close(self.host(given), before, 0.0, "θ after the calls (inputs must be left alone)")

    def value(self, state: State) -> None:
        part = self.get(state.part(), (), "part")
        constant = self.host(state.constant())
        got = self.get(state.kl(), (), "kl")
        self.close(part + constant, got, self.tight, "part + constant", 1.0)
        dense = self.get(state.dense(), (self.L, self.L), "dense")
        self.close(dense, dense.T, self.tight, "dense against its transpose")
        eigenvalues = np.linalg.eigvalsh(dense)[self.L - state.rank :]
        trace, logs = np.sum(self.Lambda * dense), np.sum(np.log(eigenvalues))
        if state.rank == self.L:
            zero = np.zeros(self.L)
            want = gaussian(zero, dense, zero, self.Lambda)
            self.close(got, want, self.tight, "kl against the dense KL", 1.0)
        # Whatever the constant stands for, it must not depend on θ.
        other = self.state(self.near_start(self.rng))
        far = self.host(other.dense())
        eigenvalues = np.linalg.eigvalsh(far)[self.L - state.rank :]
        want = 0.5 * (trace - np.sum(self.Lambda * far) - logs + np.sum(np.log(eigenvalues)))
        change = got - self.host(other.kl())
        self.close(change, want, self.tight, "a difference of two KLs", 1.0)

    def derivatives(self, theta: np.ndarray, state: State) -> None:
        g = self.get(state.gradient(), self.shape, "gradient")
        self.close(g, self.project(g), self.tight, "gradient against its allowed part")
        for _ in range(2):
            u, w = self.direction(theta), self.direction(theta)
            want = self.difference(lambda s: s.part(), theta, u)
            floor = float(np.linalg.norm(g) * np.linalg.norm(u)) / np.sqrt(g.size)
            self.close(np.sum(g * u), want, self.loose, "gradient against differences", floor)
            Hu = self.get(state.hvp(self.make(u)), self.shape, "hvp")
            want = self.difference(lambda s: s.gradient(), theta, u)
            self.close(Hu, want, self.loose, "hvp against differences")
            self.close(Hu, self.project(Hu), self.tight, "hvp against its allowed part")
            Hw = self.host(state.hvp(self.make(w)))
            scale = float(np.linalg.norm(Hu) * np.linalg.norm(w))
            self.close(np.sum(w * Hu), np.sum(u * Hw), self.adjoint, "⟨w, H u⟩", scale)

    def variances(self, theta: np.ndarray, state: State, B: LinearMap) -> None:
        name, N = type(B).__name__, B.rows
        v = state.variances(B)
        value = self.get(v.value, (N,), "variances")
        rows = self.host(B.matrix(self.prior.Lambda))
        want = np.sum((rows @ self.host(state.dense())) * rows, axis=1)
        self.close(value, want, self.tight, f"variances ({name}) against dense")
        u, w = self.direction(theta), self.direction(theta)
        s = self.rng.standard_normal(N)
        dv = self.get(v.jvp(self.make(u)), (N,), "jvp")
        want = self.difference(lambda x: x.variances(B).value, theta, u)
        self.close(dv, want, self.loose, f"jvp ({name}) against differences")
        back = self.get(v.pullback(self.make(s)), self.shape, "pullback")
        self.close(back, self.project(back), self.tight, "pullback against its allowed part")
        scale = float(np.linalg.norm(s) * np.linalg.norm(dv))
        self.close(np.sum(back * u), np.sum(s * dv), self.adjoint, f"⟨pullback, u⟩ ({name})", scale)
        second = self.get(v.second(self.make(s))(self.make(u)), self.shape, "second")
        want = self.difference(lambda x: x.variances(B).pullback(self.make(s)), theta, u)
        floor = float(np.linalg.norm(back) * np.linalg.norm(u) / np.linalg.norm(theta))
        self.close(second, want, self.loose, f"second ({name}) against differences", floor)
        other = self.host(v.second(self.make(s))(self.make(w)))
        scale = float(np.linalg.norm(second) * np.linalg.norm(w))
        one, two = np.sum(w * second), np.sum(u * other)
        self.close(one, two, 10 * self.adjoint, f"⟨w, second u⟩ ({name})", scale)

    def samples(self, state: State) -> None:
        dense = self.host(state.dense())
        z = self.rng.standard_normal((3, self.L))
        got = self.get(state.matvec(self.make(z)), z.shape, "matvec")
        self.close(got, z @ dense, self.tight, "matvec against dense")
        noise = np.eye(state.rank)
        S = self.get(state.root(self.make(noise)), (state.rank, self.L), "root")
        self.close(S.T @ S, dense, self.tight, "root times its transpose against dense")

    def metric(self, state: State) -> None:
        directions = np.eye(int(np.prod(self.shape))).reshape(-1, *self.shape)
        keep = [self.project(E) for E in directions]
        _, sizes, rows = np.linalg.svd(np.stack([E.ravel() for E in keep]))
        basis = rows[: int(np.sum(sizes > 1e-9))]
        P = self.prior.plus(self.make(np.eye(self.L)))
        inverse = np.linalg.inv(self.host(P))

        def solve(V: Array) -> Array:
            return self.make(inverse) @ V

        for how in (None, solve):
            images = []
            for row in basis:
                G = self.make(row.reshape(self.shape))
                images.append(self.get(state.natural(G, how), self.shape, "natural").ravel())
            metric = basis @ np.stack(images).T
            self.close(metric, metric.T, self.tight, "natural against its transpose")
            least = float(np.min(np.linalg.eigvalsh(0.5 * (metric + metric.T))))
            assert least > 0.0, f"{self.name}: natural has the eigenvalue {least:.3g}"

    def batched(self, thetas: list[np.ndarray]) -> None:
        stacked, n = self.make(np.stack(thetas)), len(thetas)
        own = [_definite(self.rng, self.L) for _ in thetas]
        direction = self.make(np.stack([self.direction(t) for t in thetas]))
        z = self.make(self.rng.standard_normal((n, self.L)))
        for each in ([self.Lambda] * n, own):
            shared = each[0] is each[-1]
            prior = self.prior if shared else DensePrecision(self.make(np.stack(each)))
            state = self.covariance.at(stacked, prior)
            assert tuple(state.ok.shape) == (n,), f"{self.name}: ok has shape {state.ok.shape}"
            noise = self.make(self.rng.standard_normal((n, state.rank)))
            for i in range(n):
                alone = self.covariance.at(stacked[i, ...], DensePrecision(self.make(each[i])))
                pairs = _results(state, direction, z, noise, stacked, self.maps, self.make)
                single = _results(
                    alone, direction[i, ...], z[i, ...], noise[i, ...], stacked[i, ...],
                    self.maps, self.make,
                )  # fmt: skip
                for what, one in single.items():
                    shape = (n, *one.shape)
                    many = self.get(pairs[what], shape, f"{what} of a batch")
                    self.close(many[i, ...], self.host(one), self.tight, f"{what} of a batch", 1e-9)
        curvature = self.rng.uniform(0.2, 2.0, (n, self.L))
        start = self.covariance.start(self.prior, self.maps[0], self.make(curvature))
        self.get(start, (n, *self.shape), "start of a batch")
        ok = self.covariance.at(start, self.prior).ok
        assert np.all(self.host(ok)), f"{self.name}: ok is false at the start"

    def restriction(self, theta: np.ndarray) -> None:
        """Entries outside the form change nothing: a triangle's upper part, a skew part."""
        if self.covariance.form not in ("lower", "symmetric"):
            return
        noise = self.rng.standard_normal(self.shape)
        outside = noise - self.project(noise)
        u = self.direction(theta)
        a, b = self.state(theta), self.state(theta + outside)
        B = self.maps[1]
        s = self.make(self.rng.standard_normal(B.rows))
        for what, one, two in (
            ("kl", a.kl(), b.kl()),
            ("gradient", a.gradient(), b.gradient()),
            ("hvp", a.hvp(self.make(u)), b.hvp(self.make(u + outside))),
            ("jvp", a.variances(B).jvp(self.make(u)), b.variances(B).jvp(self.make(u + outside))),
            ("second", a.variances(B).second(s)(self.make(u)),
             b.variances(B).second(s)(self.make(u + outside))),
        ):  # fmt: skip
            self.close(self.host(two), self.host(one), self.tight, f"{what} outside the form", 1e-9)


def _results(
    state: State,
    direction: Array,
    z: Array,
    noise: Array,
    gradient: Array,
    maps: list[LinearMap],
    make: Callable[[np.ndarray], Array],
) -> dict[str, Array]:
    """Every result of a state, by name."""
    found = {
        "kl": state.kl(),
        "gradient": state.gradient(),
        "hvp": state.hvp(direction),
        "dense": state.dense(),
        "matvec": state.matvec(z),
        "root": state.root(noise),
        "natural": state.natural(gradient),
    }
    lead = tuple(z.shape[:-1])
    for B in maps:
        weights = np.broadcast_to(np.linspace(-1.0, 2.0, B.rows), (*lead, B.rows))
        s, v, name = make(np.array(weights)), state.variances(B), type(B).__name__
        found[f"variances ({name})"] = v.value
        found[f"jvp ({name})"] = v.jvp(direction)
        found[f"pullback ({name})"] = v.pullback(s)
        found[f"second ({name})"] = v.second(s)(direction)
    return found


def _definite(rng: np.random.Generator, L: int) -> np.ndarray:
    A = rng.standard_normal((L, L + 2))
    return np.asarray(A @ A.T / L + 0.5 * np.eye(L))


__all__ = ["check_posterior"]
