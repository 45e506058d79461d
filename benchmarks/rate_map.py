"""One rate map: gather and scatter in Hartley space beside explicit matrix products.

The same fixed point with the same code; only the linear map differs: `Hartley` against `Dense`
with the same numbers. One core, float64, tolerance 1e-8. Their free energies are compared before
anything is timed, and a worked example is held to its known bound.

    python -m benchmarks.rate_map            # both tables
    python -m benchmarks.rate_map --quick    # 139 frequencies, three rounds, nothing written
"""

from __future__ import annotations

import argparse
import json
from statistics import median
from typing import Any

from benchmarks.threads import child, interleaved, limited, median_ratio, seconds

FREQUENCIES = (69, 139, 277)
TOLERANCE = 1e-8
AGREEMENT = 1e-9
COMMAND = "python -m benchmarks.rate_map"


def fit(frequencies: int, rounds: int) -> dict[str, Any]:
    """One row: the recorded cell on 128 × 128 bins."""
    import numpy as np

    from benchmarks.maps import recorded_cell
    from gplvm_xp import backend
    from gplvm_xp.operators import Dense
    from gplvm_xp.variational import fixed_point

    b = backend.get("numpy")
    maps = recorded_cell(frequencies)
    data, fast = maps.data(b), maps.engine(b)
    # Rows in order of memory: the faster of the two orders for these products.
    slow = maps.engine(b, Dense(np.ascontiguousarray(maps.basis.basis().T)))
    first = seconds(lambda: fixed_point(fast, data, tol=TOLERANCE))
    one, other = (fixed_point(engine, data, tol=TOLERANCE) for engine in (fast, slow))
    assert one.converged.all(), one.message
    assert other.converged.all(), other.message
    f = float(one.free_energy)
    difference = abs(f - float(other.free_energy)) / abs(f)
    assert difference <= AGREEMENT, f"free energies differ by {difference:.2e}"
    works = {
        "fit": lambda: fixed_point(fast, data, tol=TOLERANCE),
        "explicit": lambda: fixed_point(slow, data, tol=TOLERANCE),
    }
    times = interleaved(works, rounds)
    return {
        "data": maps.name,
        "bins": " × ".join(map(str, maps.shape)),
        "frequencies": frequencies,
        "fit (s)": median(times["fit"]),
        "explicit products (s)": median(times["explicit"]),
        "explicit / fit": median_ratio(times, "explicit", "fit"),
        "first fit, plans made (s)": first,
        "steps": int(one.steps),
        "free energy (nats)": f"{f:.6f}",
        "relative difference": difference,
    }


def reference(rounds: int) -> dict[str, Any] | None:
    """One row: the worked example, whose bound is known; None where its file is missing."""
    import numpy as np
    from scipy.special import gammaln

    from gplvm_xp import backend, datasets
    from gplvm_xp.likelihoods import Poisson
    from gplvm_xp.operators import DiagonalPrecision, Hartley
    from gplvm_xp.variational import Information, Observations, fixed_point

    try:
        e = datasets.load_grid_reference().extra
    except OSError:
        return None
    b = backend.get("numpy")
    n, k = e["visits"].ravel(), e["counts"].ravel()
    # Its waves are cos − sin, those of −k here.
    basis = Hartley(e["visits"].shape, -e["basis_index"].astype(np.int64))
    engine = Information(DiagonalPrecision(1.0 / e["prior_variance"]), basis, b.zeros((1,)))
    weights = np.where(n > 0.0, 1.0, 0.0)
    offset = e["prior_mean"].ravel()
    data = Observations(Poisson(), k, weights=weights, exposure=n, offset=offset)
    result = fixed_point(engine, data, tol=TOLERANCE)
    # The reference leaves out the terms of the likelihood that no parameter enters.
    used = n > 0.0
    constant = np.sum(k[used] * np.log(n[used]) - gammaln(k[used] + 1.0))
    bound, known = -float(result.free_energy) - float(constant), float(e["elbo"])
    difference = abs(bound - known) / abs(known)
    assert difference <= AGREEMENT, f"the bound is {bound!r}, the reference {known!r}"

    def apart(got: Any, want: Any) -> float:
        return float(np.linalg.norm(got - want) / np.linalg.norm(want))

    times = interleaved({"fit": lambda: fixed_point(engine, data, tol=TOLERANCE)}, rounds)
    return {
        "bins": " × ".join(map(str, basis.shape)),
        "frequencies": basis.cols,
        "fit (s)": median(times["fit"]),
        "steps": int(result.steps),
        "bound (nats)": f"{bound:.9f}",
        "reference (nats)": f"{known:.9f}",
        "relative difference": difference,
        "mean, relative": apart(result.mu, e["post_u"]),
        "covariance, relative": apart(engine.covariance(result.p)[0], e["post_cov_u"]),
        "variances (float32), relative": apart(result.v, e["post_var"].ravel()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds, nothing written")
    parser.add_argument("--rounds", type=int, default=21, help="rounds per case (21)")
    parser.add_argument("--one", type=int, metavar="FREQUENCIES", help=argparse.SUPPRESS)
    given = parser.parse_args()
    rounds = 3 if given.quick else given.rounds
    if given.one is not None:
        with limited(1):
            print(json.dumps(fit(given.one, rounds) if given.one else reference(rounds)))
        return
    more = ["--rounds", str(rounds)]
    rows = []
    for frequencies in (139,) if given.quick else FREQUENCIES:
        rows.append(child("benchmarks.rate_map", ["--one", str(frequencies), *more], 1))
        print(json.dumps(rows[-1]), flush=True)
    known = child("benchmarks.rate_map", ["--one", "0", *more], 1)
    print(json.dumps(known), flush=True)
    if given.quick:
        return
    from benchmarks.report import write

    write(
        "rate_map",
        "One rate map, Poisson counts, float64, tolerance 1e-8, one core",
        COMMAND,
        rows,
        "Both columns are the same fixed point; explicit products form Bᵀ diag(p) B and "
        "diag(B C Bᵀ) with the dense N × R matrix B. Times are medians of interleaved rounds, the "
        "ratio is the median of the rounds' own. The first fit also makes the index plans, once "
        "for a choice of frequencies. There is no peer: the published implementation of the method "
        "works in float32 and with other variances.",
    )
    if known is not None:
        write(
            "rate_map_reference",
            "The worked rate map: evidence bound beside its known value",
            COMMAND,
            [known],
            "The bound is without Σ (k log n − log k!), as the reference has it.",
        )


if __name__ == "__main__":
    main()
