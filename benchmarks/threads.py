"""A measurement in a process of its own with a fixed number of threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

NAMES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def child(module: str, arguments: list[str], threads: int) -> Any:
    """``python -m module arguments`` with so many threads; its last line of output, as JSON."""
    environment = dict(os.environ) | {name: str(threads) for name in NAMES}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """The same inside a process, for libraries that do not read the environment."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads):
        yield


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def interleaved(
    works: dict[str, Callable[[], Any]], rounds: int, pause: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of each work in each round, in turn, after one warm-up of each.

    A busy machine disturbs all alike: take ratios within a round, and medians over rounds. A pause
    before each work lets the threads of the one before go to sleep.
    """
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            time.sleep(pause)
            times[name].append(seconds(work))
    return times


def median_ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    """Median over rounds of the ratio of two works."""
    return median(a / b for a, b in zip(times[above], times[below], strict=True))
