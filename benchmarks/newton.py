"""Newton-Krylov: what the preconditioners save, and what a Hessian-vector product (HVP) costs.

The first table counts conjugate-gradient steps, one HVP each, with and without the natural metric
on an ill-conditioned problem: counts on 48 cells, 15 frequencies, the constant nearly free (prior
variance 1e3), 40-fold exposure. The second times an HVP of each covariance against its flop count
and the rate of a matrix product in the same run. One core.

    python -m benchmarks.newton            # both tables
    python -m benchmarks.newton --quick    # one draw, few repeats, nothing written
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from benchmarks.threads import child, interleaved, limited, seconds

CELLS, KEPT = 48, 15
COMMAND = "python -m benchmarks.newton"


# -- conjugate-gradient steps ----------------------------------------------------------------------


def spectrum() -> Any:
    """Prior variances of the 48 frequencies; the constant is nearly free."""
    import numpy as np

    k = np.rint(CELLS * np.fft.fftfreq(CELLS))
    s = 6.0 * np.exp(-0.5 * (k / 3.0) ** 2) + 1e-3
    s[0] = 1e3
    return k, s


def families() -> dict[str, tuple[Any, Any, Any]]:
    """Prior, map and covariance of each parameterisation of the problem.

    Some live in the 15 coefficients, the others on the 48 cells.
    """
    import numpy as np

    from gplvm_xp.operators import Circulant, DiagonalPrecision, Hartley, Identity
    from gplvm_xp.posteriors import (
        BasisDiagonal,
        Cholesky,
        Convolutional,
        Full,
        InverseDiagonal,
        LowRank,
        Subspace,
    )

    k, s = spectrum()
    keep = np.argsort(np.abs(k), kind="stable")[:KEPT]
    B = Hartley((CELLS,), keep[:, None])
    few, grid = DiagonalPrecision(1.0 / s[keep]), Circulant((CELLS,), s)
    blur = np.exp(-0.25 * (k / 6.0) ** 2)
    here, there = (few, B), (grid, Identity(CELLS))
    return {
        "Cholesky": (*here, Cholesky()),
        "Full": (*here, Full()),
        f"LowRank({KEPT})": (*here, LowRank(KEPT)),
        "LowRank(5)": (*here, LowRank(5)),
        "BasisDiagonal": (*here, BasisDiagonal(np.eye(KEPT))),
        "InverseDiagonal, dense": (*there, InverseDiagonal(Identity(CELLS))),
        "InverseDiagonal, Hartley": (*here, InverseDiagonal(B)),
        "Subspace, triangular": (*there, Subspace(B)),
        "Subspace, general": (*there, Subspace(B, triangular=False)),
        "Convolutional": (*there, Convolutional((CELLS,), blur)),
    }


def counts(seed: int) -> Any:
    """Observations of one draw from the prior (with variance 6 for the constant)."""
    import numpy as np

    from gplvm_xp.likelihoods import Poisson
    from gplvm_xp.operators import Hartley
    from gplvm_xp.variational import Observations

    rng = np.random.default_rng(seed)
    k, s = spectrum()
    keep = np.argsort(np.abs(k), kind="stable")[:KEPT]
    truth = rng.standard_normal(KEPT) * np.sqrt(np.where(keep == 0, 6.0, s[keep]))
    f = Hartley((CELLS,), keep[:, None]).apply(truth)
    exposure = 40.0 * rng.integers(0, 6, CELLS) * (rng.random(CELLS) < 0.7)
    y = rng.poisson(exposure * np.exp(0.3 * f + 0.2)).astype(float)
    seen = np.where(exposure > 0.0, 1.0, 0.0)
    offset = np.full(CELLS, 0.2)
    return Observations(Poisson(), y, weights=seen, exposure=exposure, offset=offset)


def steps(draws: int) -> Iterator[dict[str, Any]]:
    """One row a parameterisation: sums over the draws."""
    from gplvm_xp.optim import newton_krylov
    from gplvm_xp.variational import FreeEnergy

    for name, (prior, B, covariance) in families().items():
        total = {True: 0, False: 0}
        outer = {True: 0, False: 0}
        unfinished, apart = 0, 0.0
        for seed in range(draws):
            F = FreeEnergy(prior, B, covariance, counts(seed))
            values = []
            for preconditioned in (True, False):
                found = newton_krylov(
                    F.at, F.start(), max_steps=300, max_cg=2000, preconditioned=preconditioned
                )
                total[preconditioned] += int(found.hvps)
                outer[preconditioned] += int(found.steps)
                unfinished += not bool(found.converged)
                values.append(float(found.value))
            apart = max(apart, abs(values[0] - values[1]) / abs(values[1]))
        yield {
            "covariance": name,
            "Newton steps": outer[True],
            "CG steps": total[True],
            "Newton steps without": outer[False],
            "CG steps without": total[False],
            "with / without": total[True] / total[False],
            "not converged": unfinished,
            "minima apart, relative": apart,
        }


# -- the cost of a Hessian-vector product ----------------------------------------------------------


def fft(cells: int) -> float:
    """Flops of one real transform."""
    return 2.5 * cells * math.log2(cells)


Work = tuple[str, str, float, Callable[[], Any]]


def divergence(scale: float) -> Iterator[Work]:
    """The KL divergence's HVP of each parameterisation with its count (docs: derivations/kl.md)."""
    import numpy as np

    from gplvm_xp.operators import Circulant, Dense, DensePrecision, Hartley, Identity
    from gplvm_xp.operators import DiagonalPrecision as Diagonal
    from gplvm_xp.posteriors import (
        BasisDiagonal,
        Cholesky,
        Convolutional,
        Full,
        InverseDiagonal,
        LowRank,
        Subspace,
    )

    rng = np.random.default_rng(0)
    L, many, K = int(600 * scale), int(2400 * scale), int(100 * scale)
    half = rng.standard_normal((L, L + 10))
    prior = DensePrecision(half @ half.T / L + 0.5 * np.eye(L))
    tall = rng.standard_normal((many, L)) / math.sqrt(L)
    side, R = 128, int(139 * scale) // 2 * 2 + 1
    # Any distinct frequencies do for a time.
    keep = np.stack([np.arange(R) // 16, np.arange(R) % 16], axis=1)
    basis = Hartley((side, side), keep)
    N = side * side
    smooth = np.fft.fftfreq(side) * side
    s = 0.01 + np.exp(-0.01 * (smooth[:, None] ** 2 + smooth[None, :] ** 2))
    grid = Circulant((side, side), s)
    few = Diagonal(np.linspace(0.5, 2.0, R))
    cases: list[tuple[str, str, Any, Any, float]] = [
        ("Full", f"L = {L}, dense Λ", Full(), prior, 4.0 * L**3),
        ("Cholesky", f"L = {L}, dense Λ", Cholesky(), prior, 2.0 * L**3),
        ("LowRank", f"L = {L}, R = {K}, dense Λ", LowRank(K), prior,
         2.0 * L * L * K + 6.0 * L * K * K + 4.0 * K**3),
        ("BasisDiagonal", f"N = L = {L}", BasisDiagonal(tall[:L, :]), prior, 3.0 * L),
        ("BasisDiagonal", f"N = {many}, L = {L}", BasisDiagonal(tall), prior,
         4.0 * many * L * L),
        ("Convolutional", f"{side} × {side}", Convolutional((side, side), np.sqrt(s)), grid,
         3.0 * N),
        ("InverseDiagonal, dense", f"N = L = {L}",
         InverseDiagonal(Identity(L), compute="dense"), prior, 2.0 * L * L),
        ("InverseDiagonal, factored", f"N = {many}, L = {L}",
         InverseDiagonal(Dense(tall), compute="factored"), prior,
         4.0 * many * L * L + 4.0 * L**3),
        ("InverseDiagonal, Hartley", f"{side} × {side}, R = {R}", InverseDiagonal(basis), few,
         4.0 * R**3 + 2.0 * fft(N)),
        ("Subspace", f"{side} × {side}, R = {R}, diagonal Λ̃", Subspace(basis), grid,
         1.0 * R * R),
        ("Subspace", f"L = {many}, R = {L}, dense Λ̃", Subspace(Dense(np.linalg.qr(tall)[0])),
         DensePrecision(np.eye(many) + 0.5 / many), 2.0 * L**3),
    ]  # fmt: skip
    for name, size, covariance, Lambda, flops in cases:
        theta = _some(covariance, Lambda, rng)
        state = covariance.at(theta, Lambda)
        u = _direction(covariance, theta, rng)
        yield name, size, flops, lambda state=state, u=u: state.hvp(u)


def free_energy(b: Any, scale: float, fields: int = 0) -> Iterator[Work]:
    """The free energy's joint HVP on a 128 × 128 grid, Poisson counts, R frequencies.

    For ``fields`` maps at once, or one without a leading axis (0), on any backend; for one also the
    dense form, on n counts of its own.
    """
    import numpy as np

    from benchmarks.maps import simulated_cells
    from gplvm_xp.operators import Circulant, DiagonalPrecision, Identity
    from gplvm_xp.posteriors import (
        BasisDiagonal,
        Cholesky,
        Convolutional,
        Full,
        InverseDiagonal,
        LowRank,
        Subspace,
    )
    from gplvm_xp.variational import FreeEnergy

    rng = np.random.default_rng(1)
    maps = simulated_cells(max(fields, 1), 128, int(139 * scale) // 2 * 2 + 1)
    basis, data = maps.basis, maps.data(b, ... if fields else 0)
    R, N, K, n = basis.cols, basis.rows, 32, int(600 * scale)
    few = DiagonalPrecision(b.asarray(1.0 / maps.variance))
    k = np.fft.fftfreq(128) * 128
    s = 0.01 + 100.0 * np.exp(-0.01 * (k[:, None] ** 2 + k[None, :] ** 2))
    grid, F = Circulant((128, 128), b.asarray(s)), fft(N)
    blur = Convolutional((128, 128), b.asarray(np.sqrt(s)))
    frame = BasisDiagonal(b.asarray(np.linalg.qr(rng.standard_normal((R, R)))[0]))
    there, every = Identity(N), f"128 × 128, R = {R}"
    cases: list[tuple[str, str, Any, Any, Any, Any, float]] = [
        ("Full", every, Full(), few, basis, data, 4.0 * R**3 + 4.0 * F),
        ("Cholesky", every, Cholesky(), few, basis, data, 6.0 * R**3 + 5.0 * F),
        ("LowRank", f"128 × 128, R = {K} of {R}", LowRank(K), few, basis, data,
         6.0 * R * R * K + 6.0 * R * K * K + 5.0 * F),
        ("BasisDiagonal", every, frame, few, basis, data, 4.0 * R**3 + 4.0 * F),
        ("InverseDiagonal, Hartley", every, InverseDiagonal(basis), few, basis, data,
         10.0 * R**3 + 7.0 * F),
        ("Convolutional", "128 × 128", blur, grid, there, data, 6.0 * F),
        ("Subspace", every, Subspace(basis), grid, there, data, 6.0 * R**3 + 5.0 * F),
    ]  # fmt: skip
    if not fields:
        Lambda, other = _dense_problem(b, n, rng)
        # Λδ, two products with squares, and the matrix of H.
        cases.append(
            ("InverseDiagonal, dense", f"N = L = {n}", InverseDiagonal(Identity(n)), Lambda,
             Identity(n), other, 8.0 * n * n)
        )  # fmt: skip
    for name, size, covariance, prior, B, seen, flops in cases:
        free = FreeEnergy(prior, B, covariance, seen)
        x = free.start()
        point = free.at(x)
        point.gradient()
        u = b.asarray(rng.standard_normal(x.shape))
        many = flops * (x.shape[0] if x.ndim > 1 else 1)
        yield name, size, many, lambda point=point, u=u: point.hvp(u)


def _dense_problem(b: Any, n: int, rng: Any) -> tuple[Any, Any]:
    import numpy as np

    from gplvm_xp.likelihoods import Poisson
    from gplvm_xp.operators import DensePrecision
    from gplvm_xp.variational import Observations

    half = rng.standard_normal((n, n + 10))
    y = rng.poisson(np.full(n, 2.0)).astype(float)
    Lambda = b.asarray(half @ half.T / n + 0.5 * np.eye(n))
    return DensePrecision(Lambda), Observations(Poisson(), b.asarray(y))


def _some(covariance: Any, prior: Any, rng: Any) -> Any:
    """A sound θ that is not special."""
    import numpy as np

    shape = covariance.shape(prior.size)
    if covariance.form == "positive" or len(shape) == 1:
        return rng.uniform(0.5, 2.0, shape)
    n = shape[-1]
    noise = rng.standard_normal(shape) / math.sqrt(shape[0])
    if covariance.form == "symmetric":
        return np.eye(n) + noise @ noise.T
    return np.tril(noise) + np.eye(n) if covariance.form == "lower" else np.eye(*shape) + noise


def _direction(covariance: Any, theta: Any, rng: Any) -> Any:
    import numpy as np

    u = rng.standard_normal(theta.shape)
    if covariance.form == "lower":
        return np.tril(u)
    return 0.5 * (u + u.T) if covariance.form == "symmetric" else u


def costs(which: str, rounds: int, scale: float) -> list[dict[str, Any]]:
    """Rows of one half of the second table."""
    import numpy as np

    from gplvm_xp import backend

    A = np.random.default_rng(0).standard_normal((600, 600))
    out = np.empty_like(A)
    cases = divergence(scale) if which == "KL" else free_energy(backend.get("numpy"), scale)
    rows = []
    for name, size, flops, work in cases:
        work()
        # As in a search, many times in a row: 5 ms at least.
        calls = math.ceil(5e-3 / seconds(work))
        times = interleaved(
            {
                "hvp": lambda work=work, calls=calls: [work() for _ in range(calls)],
                "dgemm": lambda: np.matmul(A, A, out=out),
            },
            rounds,
        )
        time = median(times["hvp"]) / calls
        ours = flops / time / 1e9
        rate = 2.0 * 600**3 / median(times["dgemm"]) / 1e9
        rows.append(
            {
                "HVP of": which,
                "covariance": name,
                "size": size,
                "flops (millions)": flops / 1e6,
                "time (ms)": 1e3 * time,
                "GFLOP/s": ours,
                "of dgemm's rate": ours / rate,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one draw, nothing written")
    parser.add_argument("--draws", type=int, default=9, help="draws of the problem (9)")
    parser.add_argument("--rounds", type=int, default=21, help="rounds per HVP (21)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the HVPs' sizes")
    parser.add_argument("--one", choices=("steps", "KL", "free energy"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        with limited(1):
            if given.one == "steps":
                print(json.dumps(list(steps(given.draws))))
            else:
                print(json.dumps(costs(given.one, given.rounds, given.scale)))
        return
    draws, rounds = (1, 3) if given.quick else (given.draws, given.rounds)
    more = ["--draws", str(draws), "--rounds", str(rounds), "--scale", str(given.scale)]
    tables = {}
    for one in ("steps", "KL", "free energy"):
        tables[one] = child("benchmarks.newton", ["--one", one, *more], 1)
        for row in tables[one]:
            print(json.dumps(row, ensure_ascii=False), flush=True)
    if given.quick:
        return
    from benchmarks.report import write

    write(
        "newton_steps",
        f"Newton-Krylov on the ill-conditioned problem, sums over {draws} draws, gradient 1e-8",
        COMMAND,
        tables["steps"],
        "A CG step is one Hessian-vector product. Both searches start at the same point. "
        "A low-rank factor has a limit instead of a free energy, and the restricted families other "
        "minima.",
    )
    write(
        "newton_hvp",
        "One Hessian-vector product, float64, one core",
        COMMAND,
        tables["KL"] + tables["free energy"],
        "Flops are those that the formulas need (a real transform counts 2.5 N log₂ N), so that a "
        "low rate is arithmetic done twice or, for the products of order N or N², time spent on "
        "memory and calls. dgemm is a 600 × 600 product in the same rounds.",
    )


if __name__ == "__main__":
    main()
