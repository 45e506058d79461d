"""How exact gradients and Hessian-vector products of the Gaussian KL divergence are, in float64.

Every parameterisation at a random point, with a prior that is not diagonal, factors that are not
square and directions that are not symmetric, against two references: Richardson differences of the
library's own value and gradient in float64, and differences of the written-out divergence in
60-digit arithmetic, whose own error is below 1e-18.

    python -m benchmarks.kl_accuracy            # the table
    python -m benchmarks.kl_accuracy --quick    # three parameterisations, nothing written
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpmath import mp

from gplvm_xp.operators import Dense, DensePrecision, Hartley, Identity, LinearMap
from gplvm_xp.posteriors import (
    BasisDiagonal,
    Cholesky,
    Convolutional,
    Covariance,
    Full,
    InverseDiagonal,
    LowRank,
    Subspace,
)
from gplvm_xp.testing._gradients import richardson

DIGITS, STEP = 60, 1e-20
L, GRID = 6, (2, 3)


@dataclass(frozen=True)
class Case:
    """A parameterisation, and its divergence as a function of θ in many digits.

    Attributes
    ----------
    covariance : Covariance
    exact : callable
        (θ, Λ) as mpmath matrices → the divergence from N(0, Λ⁻¹), nats; for a singular Σ the limit
        that the class documents.
    """

    name: str
    covariance: Covariance
    exact: Callable[[Any, Any], Any]


def cases() -> Iterator[Case]:
    """All parameterisations, with the structure that each needs."""
    rng = np.random.default_rng(0)
    spectrum = np.array([[1.0, 0.7, 0.7], [0.5, 0.6, 0.6]])
    wide, tall = rng.standard_normal((4, L)), rng.standard_normal((9, L))
    B = rng.standard_normal((8, L))
    grid = (3, 4)
    keep = np.array([[0, 0], [0, 1], [0, 3], [1, 2], [2, 2], [1, 0]])
    frame = np.linalg.qr(rng.standard_normal((L, 4)))[0]
    waves = Hartley(GRID, np.array([[0, 0], [0, 1], [0, 2], [1, 0]]))
    yield Case("Full", Full(), lambda t, P: _full((t + t.T) / 2, P))
    yield Case("Cholesky", Cholesky(), lambda t, P: _full(t * t.T, P))
    yield Case("LowRank, R = 3", LowRank(3), _degenerate)
    yield Case("LowRank, R = L", LowRank(L), lambda t, P: _full(t * t.T, P))
    yield Case("BasisDiagonal, N < L", BasisDiagonal(wide), lambda t, P: _rows(t, P, _mp(wide)))
    yield Case(
        "BasisDiagonal, N > L",
        BasisDiagonal(tall),
        lambda t, P: _full(_mp(tall).T * mp.diag(list(t)) * _mp(tall), P),
    )
    blur = _circulant(spectrum)
    yield Case(
        "Convolutional",
        Convolutional(GRID, spectrum),
        lambda t, P: _full(blur * mp.diag(list(t)) * blur, P),
    )
    for name, rows, compute, matrix in (
        ("dense, B = I", Identity(L), "dense", mp.eye(L)),
        ("factored", Dense(B), "factored", _mp(B)),
        ("Hartley", Hartley(grid, keep), "auto", _waves(grid, keep)),
    ):
        yield _inverse(name, rows, compute, matrix)
    for name, basis, matrix in (
        ("dense basis", Dense(frame), _mp(frame)),
        ("Hartley", waves, _waves(GRID, waves.keep)),
    ):
        yield _subspace(f"{name}, triangular", Subspace(basis), matrix)
        yield _subspace(f"{name}, general", Subspace(basis, triangular=False), matrix)


def _inverse(name: str, B: LinearMap, compute: Any, matrix: Any) -> Case:
    def exact(t: Any, P: Any) -> Any:
        return _full((P + matrix.T * mp.diag(list(t)) * matrix) ** -1, P)

    return Case(f"InverseDiagonal, {name}", InverseDiagonal(B, compute=compute), exact)


def _subspace(name: str, covariance: Subspace, matrix: Any) -> Case:
    def exact(t: Any, P: Any) -> Any:
        return _full(t * t.T, matrix.T * P * matrix)

    return Case(f"Subspace, {name}", covariance, exact)


# -- the divergence in many digits -----------------------------------------------------------------


def _mp(a: np.ndarray) -> Any:
    return mp.matrix(a.tolist())


def _full(Sigma: Any, P: Any) -> Any:
    """½{tr PΣ − ln|Σ| − ln|P| − n}."""
    return (_trace(P * Sigma) - mp.log(mp.det(Sigma)) - mp.log(mp.det(P)) - P.rows) / 2


def _degenerate(X: Any, P: Any) -> Any:
    """The limit for Σ = XXᵀ of few columns: ln|XᵀX| in the place of ln|Σ|."""
    return (_trace(X.T * P * X) - mp.log(mp.det(X.T * X)) - mp.log(mp.det(P)) - P.rows) / 2


def _rows(v: Any, P: Any, A: Any) -> Any:
    """The same for Σ = Aᵀ diag(v) A with few rows."""
    logs = mp.fsum(mp.log(x) for x in v) + mp.log(mp.det(A * A.T))
    Sigma = A.T * mp.diag(list(v)) * A
    return (_trace(P * Sigma) - logs - mp.log(mp.det(P)) - P.rows) / 2


def _trace(A: Any) -> Any:
    return mp.fsum(A[i, i] for i in range(A.rows))


def _angles(shape: tuple[int, ...], k: np.ndarray) -> Any:
    """2π k·x/N for the frequencies k (R, ndim), cells in rows."""
    cells = np.indices(shape).reshape(len(shape), -1).T
    turns = [
        [sum(mp.mpf(int(i * j)) / n for i, j, n in zip(x, f, shape, strict=True)) for f in k]
        for x in cells
    ]
    return 2 * mp.pi * mp.matrix(turns)


def _waves(shape: tuple[int, ...], keep: np.ndarray) -> Any:
    """Hartley waves (cells, R)."""
    angle = _angles(shape, keep)
    return angle.apply(lambda a: (mp.cos(a) + mp.sin(a)) / mp.sqrt(int(np.prod(shape))))


def _circulant(spectrum: np.ndarray) -> Any:
    """The symmetric circulant with these eigenvalues: in Hartley waves it is diagonal."""
    F = _waves(spectrum.shape, np.argwhere(np.ones(spectrum.shape, dtype=bool)))
    return F * mp.diag(spectrum.ravel().tolist()) * F.T


# -- one row ---------------------------------------------------------------------------------------


def measure(case: Case) -> dict[str, Any]:
    """Relative errors, in the Frobenius norm, of value, gradient and HVP."""
    rng = np.random.default_rng(1)
    half = rng.standard_normal((L, L + 2))
    Lambda = half @ half.T / L + 0.5 * np.eye(L)
    prior, P = DensePrecision(Lambda), _mp(Lambda)
    shape = case.covariance.shape(L)
    theta, M = _point(case.covariance.form, shape, rng)
    state = case.covariance.at(theta, prior)
    gradient, hvp = state.gradient(), state.hvp(M)

    def at(h: float) -> Any:
        return case.covariance.at(theta + h * M, prior)

    slope = richardson(lambda h: (at(h).part() - at(-h).part()) / (2.0 * h), 4e-3)
    change = richardson(lambda h: (at(h).gradient() - at(-h).gradient()) / (2.0 * h), 4e-3)
    size = np.linalg.norm(gradient) * np.linalg.norm(M) / np.sqrt(M.size)
    value, exact_gradient, exact_hvp = _exact(case, theta, M, P)
    return {
        "covariance": case.name,
        "θ": " × ".join(map(str, shape)),
        "value": abs(float(state.kl()) - value) / abs(value),
        "gradient to differences": abs(float(np.sum(gradient * M) - slope)) / size,
        "HVP to differences": _apart(hvp, change),
        "gradient to 60 digits": _apart(gradient, exact_gradient),
        "HVP to 60 digits": _apart(hvp, exact_hvp),
    }


def _apart(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def _point(
    form: str, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """θ, and a direction that moves it by a quarter."""
    M = rng.standard_normal(shape)
    if len(shape) == 1:
        theta = rng.uniform(0.5, 2.0, shape)
    else:
        noise = rng.standard_normal(shape) / 2.0
        theta = noise + np.eye(*shape)
        if form == "symmetric":
            theta, M = noise @ noise.T + np.eye(*shape), 0.5 * (M + M.T)
        elif form == "lower":
            theta, M = np.tril(noise, -1) + np.diag(rng.uniform(0.5, 1.5, shape[0])), np.tril(M)
    return theta, M * (np.linalg.norm(theta) / np.linalg.norm(M) / 4.0)


def _exact(
    case: Case, theta: np.ndarray, M: np.ndarray, P: Any
) -> tuple[float, np.ndarray, np.ndarray]:
    """Value, gradient and HVP by central differences in 60 digits, over the free entries."""
    h = mp.mpf(STEP)
    base, move = _column(theta), _column(M)

    def f(t: Any) -> Any:
        return case.exact(t, P)

    gradient, hvp = np.zeros(theta.shape), np.zeros(theta.shape)
    for where in np.ndindex(theta.shape):
        if case.covariance.form == "lower" and where[1] > where[0]:
            continue
        unit = mp.zeros(base.rows, base.cols)
        unit[where if len(where) == 2 else where[0]] = h
        gradient[where] = float((f(base + unit) - f(base - unit)) / (2 * h))
        up, down = base + h * move, base - h * move
        mixed = f(up + unit) - f(up - unit) - f(down + unit) + f(down - unit)
        hvp[where] = float(mixed / (4 * h * h))
    return float(f(base)), gradient, hvp


def _column(a: np.ndarray) -> Any:
    return _mp(a) if a.ndim == 2 else mp.matrix(a.tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three of them, nothing written")
    given = parser.parse_args()
    rows = []
    with mp.workdps(DIGITS):
        for number, case in enumerate(cases()):
            if given.quick and number >= 3:
                break
            rows.append(measure(case))
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    if given.quick:
        return
    from benchmarks.report import write

    write(
        "kl_accuracy",
        "Relative errors of the Gaussian KL divergence and its derivatives, float64",
        "python -m benchmarks.kl_accuracy",
        rows,
        f"A latent vector of length {L} with a dense prior of condition number "
        "8. Differences are central ones in float64, extrapolated twice; 60 digits are "
        "central differences of the written-out divergence in that arithmetic.",
    )


if __name__ == "__main__":
    main()
