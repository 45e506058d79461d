"""256 rate maps as one batch beside one after the other, on a CPU.

All maps share the grid and the prior; counts and exposure are their own. "Solver" is the fixed
point alone, with everything that the maps share made before. "Fit" is what a user calls,
LogGaussianCoxProcess.fit_counts with the hyperparameters held: validation, spectrum, basis, solver,
rates and variances.

    python -m benchmarks.rate_map_batch            # the whole table
    python -m benchmarks.rate_map_batch --quick    # 32 maps, the smaller grids, nothing written
"""

from __future__ import annotations

import argparse
import json
from statistics import median
from typing import Any

from benchmarks.threads import child, interleaved, limited, median_ratio

# Side of the grid, retained frequencies.
CASES = ((16, 21), (32, 37), (32, 69), (64, 69), (64, 139), (128, 139))
TOLERANCE = 1e-8


def measure(cells: int, side: int, frequencies: int, rounds: int) -> dict[str, Any]:
    """One row, in this process's threads."""
    import numpy as np

    from benchmarks.maps import simulated_cells
    from gplvm_xp import LogGaussianCoxProcess, backend
    from gplvm_xp.kernels import RBF
    from gplvm_xp.variational import fixed_point, fixed_point_by_parts

    b = backend.get("numpy")
    maps = simulated_cells(cells, side, frequencies)
    engine, whole = maps.engine(b), maps.data(b)
    singles = [maps.data(b, i) for i in range(cells)]

    def alone() -> list[Any]:
        return [fixed_point(engine, data, tol=TOLERANCE) for data in singles]

    def batch() -> Any:
        return fixed_point_by_parts(engine, whole, tol=TOLERANCE)

    together = batch()
    assert together.converged.all(), together.message
    f = np.array([float(result.free_energy) for result in alone()])
    difference = float(np.max(np.abs(together.free_energy - f) / np.abs(f)))
    assert difference <= 1e-9, f"free energies differ by {difference:.2e}"
    counts = maps.counts.reshape(cells, side, side)
    exposure = maps.exposure.reshape(cells, side, side)
    waves = maps.variance[np.any(maps.keep != 0, axis=1)]
    model = LogGaussianCoxProcess(
        (side, side),
        periodic=True,
        kernel=RBF(1.0, 0.05 * side),
        optimize=False,
        threshold=0.999 * float(np.min(waves) / np.max(waves)),
    )

    def fit_alone() -> list[Any]:
        return [model.fit_counts(c, e).free_energy_ for c, e in zip(counts, exposure, strict=True)]

    def fit_batch() -> Any:
        return model.fit_counts(counts, exposure).free_energy_

    np.testing.assert_allclose(fit_batch(), fit_alone(), rtol=1e-9)
    works = {"alone": alone, "batch": batch, "fit alone": fit_alone, "fit batch": fit_batch}
    times = interleaved(works, rounds)
    each = 1e3 / cells
    return {
        "solver, one by one (ms a map)": each * median(times["alone"]),
        "solver, batch (ms a map)": each * median(times["batch"]),
        "solver ratio": median_ratio(times, "alone", "batch"),
        "frequencies of the fit": model.n_frequencies_,
        "fit, one by one (ms a map)": each * median(times["fit alone"]),
        "fit, batch (ms a map)": each * median(times["fit batch"]),
        "fit ratio": median_ratio(times, "fit alone", "fit batch"),
        "steps, median": float(np.median(together.steps)),
        "relative difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="32 maps, nothing written")
    parser.add_argument("--cells", type=int, default=256, help="maps (256)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds per case (3)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    cells = 32 if given.quick else given.cells
    if given.one:
        with limited(given.threads[0]):
            print(json.dumps(measure(cells, *given.one, given.rounds)))
        return
    rows = []
    for threads in [1] if given.quick else given.threads:
        for side, frequencies in CASES[:3] if given.quick else CASES:
            arguments = ["--one", str(side), str(frequencies), "--cells", str(cells)]
            arguments += ["--rounds", str(given.rounds), "--threads", str(threads)]
            row = {"bins": f"{side} × {side}", "frequencies": frequencies, "threads": threads}
            rows.append(row | child("benchmarks.rate_map_batch", arguments, threads))
            print(json.dumps(rows[-1]), flush=True)
    if given.quick:
        return
    from benchmarks.report import write

    write(
        "rate_map_batch",
        f"{cells} simulated rate maps, Poisson counts, float64, tolerance 1e-8",
        "python -m benchmarks.rate_map_batch",
        rows,
        "One by one is the same solver on one map at a time, with the same threads at its "
        "disposal. Ratios are medians of interleaved rounds.",
    )


if __name__ == "__main__":
    main()
