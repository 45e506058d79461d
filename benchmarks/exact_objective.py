"""One exact objective with all its gradients, beside the floor and the peers, in one run.

The floor is LAPACK's potrf + potri, in place, on the same matrix: no exact gradient needs less.
Every figure is a median over interleaved rounds, so that a noisy machine disturbs all alike;
compare ratios. Gradients are compared with the peers' before anything is timed.

    python -m benchmarks.exact_objective            # the whole table
    python -m benchmarks.exact_objective --quick    # n = 1000 only
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CASES = [(1000, 2, 1), (2000, 5, 1), (4000, 2, 1), (1000, 2, 2), (2000, 5, 2), (4000, 2, 2),
         (4000, 5, 2), (8000, 2, 2)]  # fmt: skip
D = 12


def problem(n: int, q: int) -> Any:
    """Latents, data and parameters: a draw of the model, standardised by nobody."""
    import numpy as np

    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, q))
    W = rng.standard_normal((q, D))
    Y = np.sin(X @ W) + 0.1 * rng.standard_normal((n, D))
    ell = 0.8 + 0.1 * np.arange(q)
    return X, Y - Y.mean(axis=0), 1.3, ell, 0.05


def ours(n: int, q: int, jitter: float = 0.0) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The evaluation, and the floor on the matrix of the same problem."""
    import numpy as np
    from scipy.linalg import lapack

    from gplvm_xp import backend
    from gplvm_xp.kernels import RBF
    from gplvm_xp.objectives import ExactObjective, groups_of

    X, Y, variance, ell, noise = problem(n, q)
    b = backend.get("numpy")
    objective = ExactObjective(RBF(variance, ell), groups_of(b, Y), X, noise, jitter=jitter)
    x, theta = objective.start(), np.concatenate([[variance], ell])
    matrix = np.zeros((n, n))

    def floor() -> float:
        K = objective.kernel.fill_lower(theta, X, matrix)
        K[np.arange(n), np.arange(n)] += noise
        begin = time.perf_counter()
        c, _ = lapack.dpotrf(K.T, lower=0, clean=0, overwrite_a=1)
        _, info = lapack.dpotri(c, lower=0, overwrite_c=1)
        seconds = time.perf_counter() - begin
        assert info == 0
        return seconds

    return lambda: objective.value_and_grad(x), floor


def gpy(n: int, q: int) -> Callable[[], Any] | None:
    """GPy's GPLVM at the same point: gradients in natural space of (X, variance, ell, noise)."""
    try:
        import GPy
    except ImportError:
        return None
    X, Y, variance, ell, noise = problem(n, q)
    kernel = GPy.kern.RBF(q, variance=variance, lengthscale=ell, ARD=True)
    model = GPy.models.GPLVM(Y, q, X=X, kernel=kernel)
    model.likelihood.variance = noise

    def run() -> Any:
        model.parameters_changed()
        return model

    return run


def torch_autograd(n: int, q: int) -> Callable[[], Any] | None:
    """The textbook objective by torch's autograd, float64."""
    try:
        import torch
    except ImportError:
        return None
    X, Y, variance, ell, noise = problem(n, q)
    y = torch.tensor(Y)
    values = (X, variance, ell, noise)
    leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]

    def run() -> Any:
        x, v, scale, s = leaves
        for leaf in leaves:
            leaf.grad = None
        a = x / scale
        square = (a * a).sum(1)
        r2 = (square[:, None] + square[None, :] - 2.0 * a @ a.T).clamp_min(0.0)
        K = v * torch.exp(-0.5 * r2) + s * torch.eye(n, dtype=torch.float64)
        L = torch.linalg.cholesky(K)
        A = torch.linalg.solve_triangular(L, y, upper=False)
        f = D * torch.log(torch.diagonal(L)).sum() + 0.5 * (A * A).sum()
        f.backward()
        return [leaf.grad.numpy() for leaf in leaves]

    return run


def agreement(n: int, q: int) -> dict[str, float]:
    """Largest relative difference of our gradients to each peer's."""
    import numpy as np

    _, _, variance, ell, noise = problem(n, q)

    def worst(theirs: list[Any], jitter: float) -> float:
        _, g = ours(n, q, jitter)[0]()
        # Ours is in logarithms of the positive parameters: divide the chain rule out.
        mine = [g[q + 2 :].reshape(n, q), g[0] / variance, g[1 : q + 1] / ell, g[q + 1] / noise]
        pairs = zip(mine, theirs, strict=True)
        return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)

    out = {}
    run = torch_autograd(n, q)
    if run is not None:
        out["torch"] = worst(run(), 0.0)
    run = gpy(n, q)
    if run is not None:
        m = run()
        k = m.kern
        theirs = [m.X.gradient, k.variance.gradient[0], k.lengthscale.gradient]
        theirs = [-np.asarray(t) for t in [*theirs, m.likelihood.variance.gradient[0]]]
        # GPy adds 1e-8 to the diagonal, always.
        out["GPy"] = worst(theirs, 1e-8)
    return out


def dgemm(n: int = 2000) -> float:
    """Rate of a matrix product, GFLOP/s."""
    import numpy as np
    from scipy.linalg import blas

    a = np.asfortranarray(np.random.default_rng(0).standard_normal((n, n)))
    c = np.empty_like(a)
    best = min(_seconds(lambda: blas.dgemm(1.0, a, a, c=c, overwrite_c=1)) for _ in range(5))
    return 2e-9 * n**3 / best


def _seconds(f: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    f()
    return time.perf_counter() - begin


def measure(n: int, q: int, rounds: int) -> dict[str, Any]:
    """Interleaved medians of one case, in this process's threads."""
    from statistics import median

    check = agreement(min(n, 1000), q)
    bad = {k: v for k, v in check.items() if not v <= 1e-8}
    assert not bad, f"gradients disagree: {bad}"
    evaluate, floor = ours(n, q)
    peers = {"GPy": gpy(n, q), "torch": torch_autograd(n, q)} if n <= 4000 else {}
    runs = {k: r for k, r in peers.items() if r is not None}
    times: dict[str, list[float]] = {k: [] for k in ("floor", "gplvm_xp", *runs)}
    floor(), evaluate()
    for k in range(rounds):
        times["floor"].append(floor())
        times["gplvm_xp"].append(_seconds(evaluate))
        if k < max(2, rounds // 3):
            for name, run in runs.items():
                times[name].append(_seconds(run))
    out: dict[str, Any] = {"floor (s)": median(times["floor"])}
    pairs = zip(times["gplvm_xp"], times["floor"], strict=True)
    out["gplvm_xp / floor"] = median(a / b for a, b in pairs)
    for name in runs:
        out[f"{name} / floor"] = median(times[name]) / out["floor (s)"]
    out["n³ rate / DGEMM"] = 1e-9 * n**3 / median(times["gplvm_xp"]) / dgemm()
    for name, value in check.items():
        out[f"gradient vs {name}"] = value
    return out


def peak(n: int, q: int, which: str) -> float:
    """Peak of the process's memory in one evaluation, above its inputs, in units of 8 n² bytes.

    The inputs (latents, data) are O(n); the n × n buffer is made during the measurement.
    """
    ours(200, q)[0]()
    if which != "gplvm_xp":
        warm = (gpy if which == "GPy" else torch_autograd)(200, q)
        if warm is None:
            return float("nan")
        warm()
    _reset_peak()
    before = _status("VmRSS")
    if which == "gplvm_xp":
        ours_only(n, q)()
    else:
        run = (gpy if which == "GPy" else torch_autograd)(n, q)
        assert run is not None
        run()
    return (_status("VmHWM") - before) / (8.0 * n * n)


def ours_only(n: int, q: int) -> Callable[[], Any]:
    """The evaluation alone, without the floor's second matrix."""
    from gplvm_xp import backend
    from gplvm_xp.kernels import RBF
    from gplvm_xp.objectives import ExactObjective, groups_of

    X, Y, variance, ell, noise = problem(n, q)
    b = backend.get("numpy")
    objective = ExactObjective(RBF(variance, ell), groups_of(b, Y), X, noise)
    return lambda: objective.value_and_grad(objective.start())


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(s.split()[1]) for s in lines if s.startswith(field + ":"))


def child(arguments: list[str], threads: int) -> Any:
    """Run one measurement in a process of its own with a fixed number of threads."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = dict(os.environ) | {name: str(threads) for name in names}
    command = [sys.executable, "-m", "benchmarks.exact_objective", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="n = 1000 only, nothing written")
    parser.add_argument("--rounds", type=int, default=0, help="rounds per case")
    parser.add_argument("--one", nargs=3, type=int, metavar=("N", "Q", "ROUNDS"))
    parser.add_argument("--peak", nargs=3, metavar=("N", "Q", "WHICH"))
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(*given.one)))
        return
    if given.peak:
        n, q, which = given.peak
        print(json.dumps(peak(int(n), int(q), which)))
        return
    rows = []
    for n, q, threads in CASES:
        if given.quick and n > 1000:
            continue
        rounds = given.rounds or {1000: 41, 2000: 15, 4000: 9, 8000: 3}[n]
        row = {"n": n, "q": q, "threads": threads}
        rows.append(row | child(["--one", str(n), str(q), str(rounds)], threads))
        print(json.dumps(rows[-1]), flush=True)
    memory = []
    for n in (1000,) if given.quick else (4000, 6000):
        for which in ("gplvm_xp", "GPy", "torch") if n <= 4000 else ("gplvm_xp",):
            value = child(["--peak", str(n), "2", which], 2)
            memory.append({"n": n, "q": 2, "which": which, "peak above inputs / 8n²": value})
            print(json.dumps(memory[-1]), flush=True)
    if given.quick:
        return
    from benchmarks.report import write

    write(
        "exact_objective",
        "One exact objective with all gradients (latents, kernel, noise), float64, D = 12",
        "python -m benchmarks.exact_objective",
        rows,
        "floor = LAPACK potrf + potri in place on the same matrix, same run. Ratios are medians of "
        "interleaved rounds; the last columns are the largest relative gradient differences.",
    )
    write(
        "exact_memory",
        "Peak process memory of one exact objective and gradient, above its inputs",
        "python -m benchmarks.exact_objective",
        memory,
    )


if __name__ == "__main__":
    main()
