"""Where a figure was measured, and how it is written down: a JSON file and a table a benchmark."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "scipy", "scikit-learn", "array-api-compat", "GPy", "torch")


def machine() -> dict[str, Any]:
    """Processor, cores, Python and the versions that matter."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), cpu)
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "date": date.today().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def write(name: str, title: str, command: str, rows: list[dict[str, Any]], notes: str = "") -> None:
    """Write ``results/<name>.json`` and ``results/<name>.md``."""
    RESULTS.mkdir(exist_ok=True)
    where = machine()
    (RESULTS / f"{name}.json").write_text(
        json.dumps({"machine": where, "command": command, "rows": rows}, indent=1) + "\n"
    )
    columns = list(dict.fromkeys(key for row in rows for key in row))
    versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items() if v)
    lines = [
        f"# {title}",
        "",
        f"{where['date']}, {where['cpu']}, {where['cores']} cores, Python {where['python']}, "
        f"{versions}. Command: `{command}`.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    lines += ["| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in rows]
    lines += ["", notes.strip()] if notes else []
    (RESULTS / f"{name}.md").write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
