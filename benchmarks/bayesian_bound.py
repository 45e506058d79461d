"""The collapsed Bayesian bound with all its gradients, beside the floor and the peers, in one run.

The floor is the sum over rows of psi2 and of its gradients alone: for each chunk of rows one
product, one exponential and two products over the folded M (M + 1)/2 pairs, nothing else. Rounds
are interleaved; GPflow, which needs other versions of NumPy, answers from a process of its own
that sleeps while others are measured. Values and gradients are compared before anything is timed.

    python -m benchmarks.bayesian_bound                        # beside GPy, where it is installed
    python -m benchmarks.bayesian_bound --gpflow PYTHON        # and GPflow of another environment
    python -m benchmarks.bayesian_bound --quick                # 1000 rows, nothing written
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CASES = [
    (1000, 10, 50, 2), (1000, 10, 100, 2), (10000, 10, 50, 2), (10000, 10, 100, 2),
    (10000, 10, 100, 1),
]  # fmt: skip
D = 12
CHUNK = 250


def problem(n: int, q: int, M: int) -> dict[str, Any]:
    """Latents, data and parameters of one evaluation."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, q))
    Y = np.sin(X @ rng.standard_normal((q, D)) / np.sqrt(q)) + 0.1 * rng.standard_normal((n, D))
    return {
        "mu": X + 0.1 * rng.standard_normal(X.shape),
        "S": rng.uniform(0.05, 0.5, X.shape),
        "Z": rng.standard_normal((M, q)),
        "Y": Y - Y.mean(axis=0),
        "variance": 1.3,
        "ell": 1.0 + 0.2 * np.arange(q),
        "noise": 0.05,
    }


# -- the works -------------------------------------------------------------------------------------


def ours(case: dict[str, Any], jitter: float) -> Any:
    """The objective; ``jitter`` is absolute, as in the peers."""
    from gplvm_xp import backend
    from gplvm_xp.kernels import RBF
    from gplvm_xp.objectives.bayesian import BayesianObjective, Observed

    return BayesianObjective(
        RBF(case["variance"], tuple(case["ell"])),
        Observed.of(backend.get("numpy"), case["Y"]),
        case["mu"],
        case["S"],
        case["Z"],
        case["noise"],
        jitter=jitter / case["variance"],
    )


def floor(case: dict[str, Any]) -> Callable[[], Any]:
    """One product, one exponential, two products for each chunk of rows."""
    n, q = case["mu"].shape
    first, second = np.tril_indices(case["Z"].shape[0])
    a = 1.0 / case["ell"] ** 2
    c = a / (2.0 * a * case["S"] + 1.0)
    middle = 0.5 * (case["Z"][first] + case["Z"][second])
    gap = -0.25 * ((case["Z"][first] - case["Z"][second]) ** 2) @ a
    ones, one = np.ones((n, 1)), np.ones((middle.shape[0], 1))
    level = -(c * case["mu"] ** 2).sum(1, keepdims=True)
    rows = np.concatenate([2.0 * c * case["mu"], -c, level, ones], axis=1)
    columns = np.concatenate([middle, middle**2, one, gap[:, None]], axis=1)

    def run() -> Any:
        total, left = np.zeros((middle.shape[0], 2 * q + 1)), np.empty((n, 2 * q + 1))
        for i in range(0, n, CHUNK):
            E = rows[i : i + CHUNK] @ columns.T
            np.exp(E, out=E)
            left[i : i + CHUNK] = E @ columns[:, : 2 * q + 1]
            total += E.T @ rows[i : i + CHUNK, : 2 * q + 1]
        return total, left

    return run


def gpy(case: dict[str, Any]) -> Any | None:
    """GPy's model at the same point."""
    try:
        import GPy
    except ImportError:
        return None
    q = case["mu"].shape[1]
    kernel = GPy.kern.RBF(q, variance=case["variance"], lengthscale=case["ell"], ARD=True)
    return GPy.models.BayesianGPLVM(
        case["Y"], q, X=case["mu"], X_variance=case["S"], Z=case["Z"], kernel=kernel,
        likelihood=GPy.likelihoods.Gaussian(variance=case["noise"]), num_inducing=len(case["Z"]),
    )  # fmt: skip


class GPflow:
    """GPflow's model in another interpreter: evaluations on demand, over a pipe."""

    def __init__(self, python: str, case: dict[str, Any]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "case.npz"
        np.savez(path, **case)
        command = [python, "-m", "benchmarks.bayesian_bound", "--serve", str(path)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip

    def ask(self, what: str) -> Any:
        """``"run"``: its seconds; ``"peak"``: its peak memory; or the name of a result."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError("GPflow's process ended; try its interpreter by hand")
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


def serve(path: str) -> None:
    """The other end of :class:`GPflow`."""
    import os
    import time

    import gpflow
    import tensorflow as tf

    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    case = np.load(path)
    model = gpflow.models.BayesianGPLVM(
        case["Y"], X_data_mean=case["mu"], X_data_var=case["S"],
        kernel=gpflow.kernels.SquaredExponential(float(case["variance"]), case["ell"]),
        inducing_variable=case["Z"],
    )  # fmt: skip
    model.likelihood.variance.assign(float(case["noise"]))
    variables = model.trainable_variables

    @tf.function
    def evaluate() -> Any:
        with tf.GradientTape() as tape:
            value = model.training_loss()
        return value, tape.gradient(value, variables)

    resident = 0
    for line in sys.stdin:
        what = line.strip()
        begin = time.perf_counter()
        if what == "base":
            reset_peak()
            resident = status("VmRSS")
            answer: Any = resident
        else:
            value, gradients = evaluate()
            value = float(value)
            answer = time.perf_counter() - begin
            if what == "value":
                answer = value
            elif what == "mu":
                place = [v.ref() for v in variables].index(
                    model.X_data_mean.unconstrained_variable.ref()
                )
                answer = gradients[place].numpy().ravel().tolist()
            elif what == "peak":
                answer = status("VmHWM") - resident
        print("answer", json.dumps(answer), flush=True)


# -- measurements ----------------------------------------------------------------------------------


def reset_peak() -> None:
    """Forget the process's peak so far."""
    Path("/proc/self/clear_refs").write_text("5")


def status(field: str) -> int:
    """A line of the process's status, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(s.split()[1]) for s in lines if s.startswith(field + ":"))


def agreement(case: dict[str, Any], flow: GPflow | None) -> dict[str, float]:
    """Relative differences of values and of the gradient in the means to each peer."""
    n, q = case["mu"].shape
    out = {}

    def compare(name: str, value: float, gradient: np.ndarray, jitter: float) -> None:
        objective = ours(case, jitter)
        f, g = objective.value_and_grad(objective.start())
        mine = g[objective.layout.slices()["mu"]].reshape(n, q)
        out[f"value vs {name}"] = abs(float(f) - value) / abs(value)
        out[f"gradient vs {name}"] = float(np.max(abs(mine - gradient)) / np.max(abs(gradient)))

    model = gpy(case)
    if model is not None:
        gradient = -np.asarray(model.X.mean.gradient)
        compare("GPy", -float(np.squeeze(model.log_likelihood())), gradient, 1e-8)
    if flow is not None:
        compare("GPflow", flow.ask("value"), np.reshape(flow.ask("mu"), (n, q)), 1e-6)
    return out


def measure(n: int, q: int, M: int, rounds: int, python: str | None) -> dict[str, Any]:
    """Interleaved medians of one case, in this process's threads."""
    from statistics import median

    from benchmarks.threads import interleaved, median_ratio

    case = problem(n, q, M)
    flow = None if python is None else GPflow(python, case)
    check = agreement(case, flow)
    bad = {k: v for k, v in check.items() if not v <= (1e-10 if k.startswith("value") else 1e-6)}
    assert not bad, f"the peers disagree: {bad}"
    objective = ours(case, 1e-6)
    x = objective.start()
    works: dict[str, Callable[[], Any]] = {
        "floor": floor(case),
        "gplvm_xp": lambda: objective.value_and_grad(x),
    }
    model = gpy(case)
    if model is not None:
        base, count = model.optimizer_array.copy(), itertools.count(1)

        def move() -> None:
            # GPy remembers its last statistics: the parameters must differ from them.
            model.optimizer_array = base * (1.0 + 1e-12 * next(count))

        works["GPy"] = move
    if flow is not None:
        works["GPflow"] = lambda: flow.ask("run")
    times = interleaved(works, rounds, pause=0.1)
    out: dict[str, Any] = {name + " (s)": median(times[name]) for name in times}
    for name in works:
        if name != "floor":
            out[name + " / floor"] = median_ratio(times, name, "floor")
    for name in works:
        if name not in ("floor", "gplvm_xp"):
            out[name + " / gplvm_xp"] = median_ratio(times, name, "gplvm_xp")
    if flow is not None:
        flow.close()
    return out | check


def peak(n: int, q: int, M: int, which: str, python: str | None) -> dict[str, float]:
    """Peak memory above the data in one evaluation, GiB, and its seconds."""
    import time

    case = problem(n, q, M)
    if which == "GPflow":
        assert python is not None
        flow = GPflow(python, case)
        flow.ask("base")
        out = {"GiB above the data": flow.ask("peak") / 2**30}
        flow.close()
        return out
    small = problem(200, q, M)
    if which == "GPy":
        gpy(small)
    else:
        warm = ours(small, 1e-6)
        warm.value_and_grad(warm.start())
        objective = ours(case, 1e-6)
        x = objective.start()
    reset_peak()
    before = status("VmRSS")
    begin = time.perf_counter()
    if which == "GPy":
        gpy(case)
    else:
        objective.value_and_grad(x)
    seconds = time.perf_counter() - begin
    return {"GiB above the data": (status("VmHWM") - before) / 2**30, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1000 rows only, nothing written")
    parser.add_argument("--gpflow", metavar="PYTHON", help="interpreter that has GPflow")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--one", nargs=4, type=int, metavar=("N", "Q", "M", "ROUNDS"))
    parser.add_argument("--peak", nargs=4, metavar=("N", "Q", "M", "WHICH"))
    parser.add_argument("--serve", metavar="CASE")
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
        return
    from benchmarks.threads import child

    if given.one:
        print(json.dumps(measure(*given.one, given.gpflow)))
        return
    if given.peak:
        *size, which = given.peak
        n, q, M = map(int, size)
        print(json.dumps(peak(n, q, M, which, given.gpflow)))
        return
    more = ["--gpflow", given.gpflow] if given.gpflow else []
    module = "benchmarks.bayesian_bound"
    rows, memory = [], []
    for n, q, M, threads in CASES:
        if given.quick and n > 1000:
            continue
        rounds = given.rounds or (21 if n == 1000 else 7)
        row = {"N": n, "Q": q, "M": M, "threads": threads}
        one = ["--one", *map(str, (n, q, M, rounds)), *more]
        rows.append(row | child(module, one, threads))
        print(json.dumps(rows[-1]), flush=True)
    peers = ["gplvm_xp", "GPy", *(["GPflow"] if given.gpflow else [])]
    for n, M, names in ((10000, 100, peers), (1_000_000, 100, ["gplvm_xp"])):
        if given.quick:
            break
        for which in names:
            one = ["--peak", str(n), "10", str(M), which, *more]
            memory.append({"N": n, "Q": 10, "M": M, "which": which} | child(module, one, 2))
            print(json.dumps(memory[-1]), flush=True)
    if given.quick:
        return
    from benchmarks.report import write

    command = "python -m benchmarks.bayesian_bound --gpflow PYTHON"
    write(
        "bayesian_bound",
        "One collapsed Bayesian bound with all gradients, float64, D = 12",
        command,
        rows,
        "floor = psi2 and its gradients by one product, one exponential and two products for each "
        "250 rows. Ratios are medians over interleaved rounds. The last columns are relative "
        "differences to the peers at the peer's own jitter (GPy 1e-8, GPflow 1e-6).",
    )
    write(
        "bayesian_memory",
        "Peak process memory of one bound and gradient above its inputs, two threads",
        command,
        memory,
    )


if __name__ == "__main__":
    main()
