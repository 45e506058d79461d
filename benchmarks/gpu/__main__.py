"""``python -m benchmarks.gpu``: measure this machine's GPU, write a table."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.first_measurements import MEASUREMENTS, every_kernel
from benchmarks.gpu.machine import Row, gpu_machine
from gplvm_xp.backend import why_no_gpu

COLUMNS = (
    "what", "n", "seconds", "tflops", "ms_per_map", "floor", "ratio", "error_norm",
    "workspace_MiB", "GiB", "info", "value", "note", "error",
)  # fmt: skip


def environment() -> dict[str, str]:
    """The device, the versions and the date."""
    import cupy
    import numpy
    from cupy_backends.cuda.libs import cublas

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    name = properties["name"]
    return {
        "device": name.decode() if isinstance(name, bytes) else str(name),
        "memory_GiB": f"{properties['totalGlobalMem'] / 2**30:.1f}",
        "driver": str(cupy.cuda.runtime.driverGetVersion()),
        "runtime": str(cupy.cuda.runtime.runtimeGetVersion()),
        "cublas": str(cublas.getVersion(cupy.cuda.device.get_cublas_handle())),
        "cupy": cupy.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def markdown(about: dict[str, str], results: dict[str, list[Row]]) -> str:
    """One table for each measurement, with the columns that it has."""
    lines = ["# First measurements on a GPU", ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    for name, rows in results.items():
        used = [c for c in COLUMNS if any(c in row for row in rows)]
        lines += ["", f"## {name}", "", f"| {' | '.join(used)} |", f"|{' --- |' * len(used)}"]
        lines += [f"| {' | '.join(_cell(row.get(c)) for c in used)} |" for row in rows]
    return "\n".join(lines) + "\n"


def save(folder: Path, about: dict[str, str], results: dict[str, list[Row]]) -> None:
    """Write ``gpu.json`` and ``gpu.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"environment": about, "results": results}, indent=1)
    (folder / "gpu.json").write_text(text + "\n", encoding="utf-8")
    (folder / "gpu.md").write_text(markdown(about, results), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run the measurements; the exit status is 1 where a GPU was demanded and is not there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--max-n", type=int, default=100_000, help="largest matrix (100000)")
    parser.add_argument("--require-gpu", action="store_true", help="fail where there is no GPU")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parents[1] / "results",
        help="folder for gpu.json and gpu.md",
    )  # fmt: skip
    parser.add_argument("--kernels-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    reason = why_no_gpu()
    if reason is not None:
        demanded = "cupy" in os.environ.get("GPLVM_XP_BACKENDS", "").split(",")
        print(f"no GPU to measure: {reason}")
        return 1 if options.require_gpu or demanded else 0
    machine = gpu_machine()
    if options.kernels_only:
        every_kernel(machine)
        return 0
    about, results = environment(), {}
    for name in options.only:
        started, rows = time.perf_counter(), []
        try:
            for row in MEASUREMENTS[name](machine, options.max_n):
                rows.append(row)
                print(name, " ".join(f"{k}={_cell(v)}" for k, v in row.items()), flush=True)
        except Exception as error:  # the other measurements still run
            rows.append({"what": name, "error": f"{type(error).__name__}: {str(error)[:200]}"})
            print(name, rows[-1]["error"], flush=True)
        results[name] = rows
        # After each one, so that a run cut short keeps what it has.
        save(options.out, about, results)
        print(f"-- {name}: {time.perf_counter() - started:.1f} s", flush=True)
    print(f"\n{markdown(about, results)}\nwritten to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
