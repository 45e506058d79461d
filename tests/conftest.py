"""The array libraries that the tests run on.

The fixture ``case`` runs a test once on each; ``GPLVM_XP_BACKENDS`` chooses among them ("all", or
identifiers and families such as "numpy,strict-f32,cupy"). Without it, a library that is not
installed is a skip with the reason; a library that it names must be there.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

# Before NumPy: workers that run side by side would fight for the cores with their BLAS's threads.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

from gplvm_xp import backend

VARIABLE = "GPLVM_XP_BACKENDS"


@dataclass(frozen=True)
class Case:
    """One array library, device and dtype.

    ``asarray`` takes host numbers there as the case's dtype, ``to_numpy`` brings results back as
    float64.
    """

    id: str
    dtype: str
    asarray: Callable[[Any], Any]

    @property
    def single(self) -> bool:
        """Whether the dtype is float32."""
        return self.dtype == "float32"

    @property
    def backend(self) -> Any:
        """The package's backend of the case's arrays."""
        return backend.of(self.asarray(np.zeros(1)))

    def to_numpy(self, a: Any) -> np.ndarray:
        """Host float64."""
        return backend.of(a).to_host(a).astype(np.float64)

    def tolerance(self, double: float, single: float) -> float:
        """The tolerance of the dtype."""
        return single if self.single else double


# -- what each case needs, and how it makes arrays -------------------------------------------------


def _missing(module: str, name: str) -> str | None:
    return None if importlib.util.find_spec(module) else f"{name} is not installed"


@functools.cache
def why_not(name: str) -> str | None:
    """Why a case can't run here, or None."""
    if name.startswith("strict"):
        return _missing("array_api_strict", "array-api-strict")
    if name.startswith("torch"):
        return _missing("torch", "PyTorch")
    if name == "emulated":
        from emulator import why_no_emulator

        return why_no_emulator()
    if name == "cupy":
        reason = backend.why_no_gpu()
        return None if reason is None else f"no GPU: {reason}"
    return None


@contextmanager
def _numpy(dtype: str, readonly: bool) -> Iterator[Callable[[Any], Any]]:
    def make(a: Any) -> np.ndarray:
        out = np.array(a, dtype=dtype)
        out.flags.writeable = not readonly
        return out

    yield make


@contextmanager
def _strict(dtype: str, device: str, flags: bool) -> Iterator[Callable[[Any], Any]]:
    import array_api_strict as xp

    context: AbstractContextManager[Any] = nullcontext()
    if flags:
        context = xp.ArrayAPIStrictFlags(
            boolean_indexing=False,
            data_dependent_shapes=False,
            enabled_extensions=("linalg", "fft"),
        )
    kind, place = getattr(xp, dtype), xp.Device(device)
    with context:
        yield lambda a: xp.asarray(np.asarray(a), dtype=kind, device=place)


@contextmanager
def _torch() -> Iterator[Callable[[Any], Any]]:
    import torch

    yield lambda a: torch.asarray(np.array(a, dtype=np.float64))


@contextmanager
def _emulated() -> Iterator[Callable[[Any], Any]]:
    from emulated import emulated_arrays

    with emulated_arrays() as b:
        yield b.asarray


@contextmanager
def _cupy() -> Iterator[Callable[[Any], Any]]:
    import cupy

    yield lambda a: cupy.asarray(np.asarray(a), dtype=cupy.float64)
    cupy.get_default_memory_pool().free_all_blocks()


CASES: dict[str, tuple[str, Callable[[], AbstractContextManager[Callable[[Any], Any]]]]] = {
    "numpy-f64": ("float64", lambda: _numpy("float64", readonly=False)),
    "numpy-f32": ("float32", lambda: _numpy("float32", readonly=False)),
    "numpy-readonly": ("float64", lambda: _numpy("float64", readonly=True)),
    "strict-f64": ("float64", lambda: _strict("float64", "CPU_DEVICE", flags=False)),
    "strict-device1-f64": ("float64", lambda: _strict("float64", "device1", flags=False)),
    "strict-f32": ("float32", lambda: _strict("float32", "CPU_DEVICE", flags=False)),
    "strictest": ("float64", lambda: _strict("float64", "device1", flags=True)),
    "torch-cpu": ("float64", _torch),
    "emulated": ("float64", _emulated),
    "cupy": ("float64", _cupy),
}


@contextmanager
def open_case(name: str) -> Iterator[Case]:
    """The case of a name, for tests that need more than one of them."""
    dtype, make = CASES[name]
    with make() as asarray:
        yield Case(name, dtype, asarray)


# -- selection -------------------------------------------------------------------------------------


def demanded() -> tuple[str, ...]:
    """Cases that the environment names, in the order of the table; empty where it names none."""
    asked = os.environ.get(VARIABLE, "all").replace(" ", "")
    if asked in ("", "all"):
        return ()
    chosen: set[str] = set()
    for word in filter(None, asked.split(",")):
        found = [name for name in CASES if name == word or name.split("-")[0] == word]
        if not found:
            raise pytest.UsageError(
                f"{VARIABLE} names {word!r}; expected 'all' or some of {', '.join(CASES)} "
                "(numpy, strict and torch name all of theirs)"
            )
        chosen.update(found)
    return tuple(name for name in CASES if name in chosen)


def selected() -> tuple[str, ...]:
    """Cases to run."""
    return demanded() or tuple(CASES)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "skip_backend(*ids, reason): cases of the fixture `case` that a test leaves out"
    )
    config.addinivalue_line("markers", "only_backend(*ids): the only cases that a test runs on")


def pytest_report_header(config: pytest.Config) -> list[str]:
    lines = [f"array libraries: {', '.join(selected())}"]
    left_out = [f"{name} ({why_not(name)})" for name in selected() if why_not(name)]
    if left_out:
        lines.append(f"not here: {'; '.join(left_out)}")
    return lines


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    names = list(selected())
    for mark in metafunc.definition.iter_markers("only_backend"):
        names = [name for name in names if name in mark.args]
    for mark in metafunc.definition.iter_markers("skip_backend"):
        names = [name for name in names if name not in mark.args]
    params = [pytest.param(n, marks=pytest.mark.gpu if n == "cupy" else ()) for n in names]
    metafunc.parametrize("case", params, indirect=True, scope="function")


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """One array library after the other."""
    name = request.param
    reason = why_not(name)
    if reason is not None:
        if name in demanded():
            pytest.fail(f"{VARIABLE} names {name}, but {reason}")
        pytest.skip(f"{name}: {reason}")
    with ExitStack() as stack:
        yield stack.enter_context(open_case(name))
