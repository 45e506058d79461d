"""A hundred thousand rows fitted on one machine, and a million: one evaluation and one pass.

Rows are made (``datasets.make_latent``): two latent dimensions, twelve smooth functions of them,
noise of deviation 0.1. At 10⁵ rows both inferences start from five PCA dimensions. Recovery is the
share of a row's ten nearest of 2000 rows in the true latents that are among its ten nearest in
the fitted ones. A thousand further rows are held out. At 10⁶ rows one collapsed bound with all
gradients is timed, M = 100 and q = 10, in a process of its own with its peak of memory above the
data (the table, the latents' means and variances); then one pass of minibatches.

    python -m benchmarks.large             # some ten minutes; two threads for the 10⁶ rows
    python -m benchmarks.large --quick     # 10⁴ and 2 · 10⁴ rows, few steps, nothing written
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.threads import child
from gplvm_xp import BayesianGPLVM, backend
from gplvm_xp.datasets import make_latent
from gplvm_xp.estimators import _bayes
from gplvm_xp.init import latents
from gplvm_xp.kernels import RBF
from gplvm_xp.metrics import root_mean_squared_error
from gplvm_xp.objectives.bayesian import BayesianObjective, Observed

D, TRUE, HELD, PART, NEAR = 12, 2, 1000, 2000, 10
LENGTHSCALE, NOISE = 2.0, 0.1


def table(n: int, start: int = 0) -> Any:
    """Rows of the endless table."""
    return make_latent(n, D, TRUE, 0, start=start, noise=NOISE, lengthscale=LENGTHSCALE)


def recovery(X: np.ndarray, truth: np.ndarray) -> float:
    """Mean share of the nearest rows that two spaces have in common, among the first PART rows."""
    from scipy.spatial import cKDTree

    def nearest(places: np.ndarray) -> np.ndarray:
        return cKDTree(places).query(places, k=NEAR + 1)[1][:, 1:]

    pairs = zip(nearest(X[:PART]), nearest(truth[:PART]), strict=True)
    common = [np.intersect1d(a, b).size for a, b in pairs]
    return float(np.mean(common)) / NEAR


def fit(n: int, name: str, **settings: Any) -> dict[str, Any]:
    """One fit from the defaults, and how it does on further rows."""
    data, further = table(n), table(HELD, start=n)
    truth = data.extra["latents"]
    model = BayesianGPLVM(5, random_state=0, **settings)
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(data.Y)
        seconds = time.perf_counter() - begin
        begin = time.perf_counter()
        rebuilt = model.inverse_transform(model.transform(further.Y))
    after = time.perf_counter() - begin
    start = latents("pca", data.Y - data.Y.mean(axis=0), TRUE, np.random.default_rng(0))
    return {
        "inference": name,
        "rows": n,
        "q, M": f"5, {model.inducing_inputs_.shape[0]}",
        "seconds": seconds,
        "steps": model.n_iter_,
        "n_active_": model.n_active_,
        "recovery, PCA of 2": recovery(start, truth),
        "recovery, all columns": recovery(data.Y, truth),
        "recovery": recovery(model.embedding_ / np.asarray(model.kernel_.lengthscale), truth),
        "held-out ln p a row": model.score(further.Y),
        "RMSE to the noiseless rows": root_mean_squared_error(further.extra["function"], rebuilt),
        "noise sd": model.noise_variance_**0.5,
        "bound a row": model.lower_bound_ / n,
        "embedding 1000 further rows (s)": after,
    }


def evaluation(n: int, rounds: int) -> dict[str, Any]:
    """One collapsed bound with gradients, q = 10, M = 100: seconds and memory above the data."""
    q, M = 10, 100

    def objective(rows: int) -> tuple[BayesianObjective, np.ndarray]:
        Y = table(rows).Y
        Y -= Y.mean(axis=0)
        rng = np.random.default_rng(0)
        mu = rng.standard_normal((rows, q))
        Z = _bayes.inducing_inputs(mu[:20_000], M, rng)
        data = Observed.of(backend.get("numpy"), Y)
        kernel = RBF(1.0, (3.0,) * q)
        made = BayesianObjective(kernel, data, mu, np.full((rows, q), 0.1), Z, 0.01, jitter=1e-6)
        return made, made.start()

    small, x = objective(2000)
    small.value_and_grad(x)
    large, x = objective(n)
    _reset_peak()
    before, seconds = _status("VmRSS"), []
    for _ in range(rounds):
        begin = time.perf_counter()
        value, _ = large.value_and_grad(x)
        seconds.append(time.perf_counter() - begin)
    assert np.isfinite(value)
    return {
        "what": "one collapsed bound with all gradients",
        "rows": n,
        "q, M": f"{q}, {M}",
        "seconds": float(np.median(seconds)),
        "peak above the data (GiB)": (_status("VmHWM") - before) / 2**30,
        "data (GiB)": (large.data.Y.nbytes + x.nbytes) / 2**30,
    }


def one_pass(n: int) -> dict[str, Any]:
    """One epoch of minibatches of 1000 rows over n rows, q = 5, M = 50, start included."""
    Y = table(n).Y
    model = BayesianGPLVM(
        5, n_inducing=50, inference="minibatch", batch_size=1000, n_epochs=1, random_state=0
    )
    _reset_peak()
    before, begin = _status("VmRSS"), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(Y)
    return {
        "what": "one pass of minibatches of 1000 rows, start included",
        "rows": n,
        "q, M": "5, 50",
        "seconds": time.perf_counter() - begin,
        "peak above the data (GiB)": (_status("VmHWM") - before) / 2**30,
        "data (GiB)": Y.nbytes / 2**30,
        "bound a row, last batches": model.lower_bound_ / n,
    }


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(s.split()[1]) for s in lines if s.startswith(field + ":"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="fewer rows and steps, nothing written"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", choices=("fit", "million", "both"), default="both")
    parser.add_argument("--evaluation", nargs=2, type=int, metavar=("N", "ROUNDS"))
    parser.add_argument("--pass-over", type=int, metavar="N")
    given = parser.parse_args()
    if given.evaluation:
        print(json.dumps(evaluation(*given.evaluation)))
        return
    if given.pass_over:
        print(json.dumps(one_pass(given.pass_over)))
        return
    from benchmarks.report import write

    command = "python -m benchmarks.large"
    if given.part != "million":
        n, rows = (10_000 if given.quick else 100_000), []
        for name, settings in {
            "collapsed": {"n_inducing": 50, "max_iter": 40 if given.quick else 200, "warm_up": 20},
            "minibatch": {"n_inducing": 50, "inference": "minibatch", "batch_size": 500,
                          "n_epochs": 3 if given.quick else 60},
        }.items():  # fmt: skip
            rows.append(fit(n, name, **settings))
            print(rows[-1], flush=True)
        if not given.quick:
            write(
                "large_fit",
                "10⁵ made rows × 12, two true latent dimensions, fitted from five",
                command,
                rows,
                "Recovery: share of the ten nearest of 2000 rows in the true latents that are "
                "among the ten nearest in μ/ℓ. 1000 further rows held out; the noise has the "
                "deviation 0.1, in which twelve columns of known latents would have ln p = "
                f"{-D * (0.5 * np.log(2 * np.pi * NOISE**2) + 0.5):.2f}.",
            )
    if given.part != "fit":
        n = 20_000 if given.quick else 1_000_000
        rows = []
        for arguments in (["--evaluation", str(n), "3"], ["--pass-over", str(n)]):
            row = child("benchmarks.large", arguments, given.threads)
            rows.append({"threads": given.threads} | row)
            print(rows[-1], flush=True)
        if not given.quick:
            write(
                "large_million",
                "10⁶ made rows × 12: one collapsed evaluation, and one pass of minibatches",
                command,
                rows,
                "Peak: most memory of the process during the work, above what it held before, "
                "which is the table, means and variances of the latents. Seconds of the "
                "evaluation: the median of three.",
            )


if __name__ == "__main__":
    main()
