"""`import gplvm_xp` is fast and brings nothing along that is not needed yet."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import gplvm_xp

HEAVY = ("cupy", "sklearn", "matplotlib", "scipy", "torch", "pandas", "tqdm", "pooch", "h5py")

TIMED = """
import sys, time
import numpy
start = time.process_time()
import gplvm_xp
print(time.process_time() - start)
print(*sorted(m for m in sys.modules if m.partition(".")[0] in {heavy!r}))
"""


def run(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.split("\n")


def test_nothing_heavy_is_imported_and_it_is_fast():
    """Under 0.25 s beyond NumPy's own import; processor time, so that a loaded machine passes."""
    times = []
    for _ in range(3):
        seconds, modules, *_ = run(TIMED.format(heavy=HEAVY))
        assert modules == ""
        times.append(float(seconds))
    assert sorted(times)[1] < 0.25


@pytest.mark.parametrize("name", ["kernels", "priors", "testing", "objectives", "params"])
def test_the_core_needs_numpy_only(name):
    code = f"import sys, gplvm_xp.{name}\nprint(*sorted(m for m in sys.modules if m in {HEAVY!r}))"
    assert run(code)[0] == ""


def test_the_estimator_brings_no_gpu_and_no_pictures():
    code = (
        "import sys\nfrom gplvm_xp import GPLVM\nGPLVM()\n"
        "print(*(m for m in ('cupy', 'torch', 'matplotlib') if m in sys.modules))"
    )
    assert run(code)[0] == ""


def test_every_public_name_resolves():
    for name in gplvm_xp.__all__:
        assert getattr(gplvm_xp, name) is not None
        assert name in dir(gplvm_xp)
    assert gplvm_xp.__version__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = gplvm_xp.nonsense


@pytest.mark.parametrize(
    "module",
    [
        "backend", "backend.base", "datasets", "errors", "estimators", "init", "io", "kernels",
        "kernels.base", "kernels.compose", "metrics", "objectives", "optim", "params", "plot",
        "predict", "priors", "testing",
    ],
)  # fmt: skip
def test_all_lists_names_that_exist(module):
    loaded = importlib.import_module(f"gplvm_xp.{module}")
    assert len(set(loaded.__all__)) == len(loaded.__all__)
    for name in loaded.__all__:
        assert hasattr(loaded, name), name
