"""Launches CUDA C++ kernels on NumPy arrays with CuPy's calling conventions.

`EmulatedLauncher` follows the launcher protocol of ``gplvm_xp.backend.cuda.launcher``. What it
catches, beyond wrong numbers: reads and writes out of bounds of an argument, of shared memory and
of local arrays; signed integer overflow; barriers that not every thread reaches; a missing barrier
(the results then depend on the thread order); arguments of a wrong number or type; use of memory
that was never written (it holds NaNs).  It does not see races that the fibres' order hides, nor
unsigned overflow, nor speed.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .build import load_kernels, load_runtime, why_no_emulator
from .memory import GUARD, GuardedBytes

ORDERS = ("forward", "reverse", "shuffle")
_SYNCHRONISES = re.compile(r"__sync|__shfl")
_COPY_LIMIT = 1 << 28
_TYPES = {
    "f8": "double", "f4": "float", "i4": "int", "u4": "unsigned int", "i8": "long long",
    "u8": "unsigned long long", "b1": "bool",
}  # fmt: skip
_NAMES = {
    "int32": "i4", "int64": "i8", "uint32": "u4", "uint64": "u8", "float32": "f4", "float64": "f8",
    "bool": "b1",
}  # fmt: skip


class EmulationError(RuntimeError):
    """A fault of a kernel that a GPU would answer with wrong numbers or a dead context."""


def _plain(values: Sequence[Any]) -> list[Any]:
    """The same memory as plain arrays: a test's own array type may refuse NumPy's functions."""
    return [v.view(np.ndarray) if isinstance(v, np.ndarray) else v for v in values]


def _triple(dimensions: Sequence[int]) -> Any:
    return (ctypes.c_uint * 3)(*(*dimensions, 1, 1, 1)[:3])


@dataclass
class _Staged:
    """One array argument, copied to guarded memory."""

    array: np.ndarray
    memory: GuardedBytes
    written: bool


class EmulatedLauncher:
    """Compiles and runs kernels on the CPU.

    Parameters
    ----------
    order : {"forward", "reverse", "shuffle"}
        The order in which blocks, and the threads of a block between two barriers, run.
    guard : {"after", "before"}
        On which side an array argument touches inaccessible memory.  Writes on the other side are
        seen after the launch; reads there give NaN.
    blocks : callable, optional
        Takes the number of blocks of a launch and returns the range (first, last) of blocks to run:
        reaches the far end of a launch that would take hours.
    rewrite : callable, optional
        Applied to every source first: plants faults.

    Attributes
    ----------
    launches : Counter
        Number of launches for each kernel name.
    """

    def __init__(
        self,
        order: str = "forward",
        guard: str = "after",
        blocks: Callable[[int], tuple[int, int]] | None = None,
        rewrite: Callable[[str], str] = str,
    ) -> None:
        reason = why_no_emulator()
        if reason is not None:
            raise RuntimeError(reason)
        self.order, self.guard, self.blocks, self.rewrite = order, guard, blocks, rewrite
        self.launches: Counter[str] = Counter()
        self._libraries: dict[tuple[str, tuple[str, ...]], ctypes.CDLL] = {}
        self._runtime = load_runtime()
        self._state = ctypes.c_void_p(self._runtime.emu_init())
        self._allocated: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    # -- the launcher protocol -------------------------------------------------------------------

    def raw(self, source: str, name: str, options: tuple[str, ...] = ()) -> Callable[..., None]:
        """Counterpart of ``cupy.RawKernel(source, name, options)``."""
        source = self.rewrite(source)

        def kernel(grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
            library = self._library(source, options)
            self._launch(library, source, name, grid, block, _plain(args), shared_mem)

        return kernel

    def elementwise(
        self, in_params: str, out_params: str, operation: str, name: str, preamble: str = ""
    ) -> Callable[..., Any]:
        """Counterpart of ``cupy.ElementwiseKernel``."""
        return _Elementwise(self, in_params, out_params, operation, name, preamble)

    def zeros(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """Guarded zeros, passed to kernels without a copy; not backed by memory until written."""
        kind = np.dtype(dtype)
        memory = GuardedBytes(int(np.prod(shape, dtype=object)) * kind.itemsize, self.guard)
        self._allocated.append((memory.address, memory.address + memory.size))
        return memory.array(shape, kind)

    # -- private ---------------------------------------------------------------------------------

    def _library(self, source: str, options: tuple[str, ...]) -> ctypes.CDLL:
        key = (source, options)
        if key not in self._libraries:
            self._libraries[key] = load_kernels(source, options)
        return self._libraries[key]

    def _launch(
        self,
        library: ctypes.CDLL,
        source: str,
        name: str,
        grid: Any,
        block: Any,
        args: list[Any],
        shared: int = 0,
    ) -> None:
        text = ctypes.create_string_buffer(4096)
        try:
            getattr(library, f"emu_describe_{name}")(text)
        except AttributeError:
            raise EmulationError(f'the source has no extern "C" __global__ void {name}') from None
        letters = text.value.decode().split()
        if len(letters) != len(args):
            raise EmulationError(f"{name} takes {len(letters)} arguments, {len(args)} were given")
        sizes = [*grid, *block]
        if min(sizes) < 1:
            raise EmulationError(f"{name}: empty launch, grid {tuple(grid)}, block {tuple(block)}")
        if np.prod(block) > 1024 or max((*grid, 1)[1:], default=1) > 65535:
            raise EmulationError(f"{name}: grid {tuple(grid)} or block {tuple(block)} too large")
        self.launches[name] += 1
        with self._lock:
            staged: list[_Staged] = []
            keep = [
                self._pack(name, k, letter, arg, staged)
                for k, (letter, arg) in enumerate(zip(letters, args, strict=True))
            ]
            try:
                self._run(library, source, name, grid, block, keep, shared, staged)
            finally:
                for item in staged:
                    if item.written:
                        item.array[...] = item.memory.array(item.array.shape, item.array.dtype)

    def _run(
        self,
        library: ctypes.CDLL,
        source: str,
        name: str,
        grid: Any,
        block: Any,
        keep: list[Any],
        shared: int,
        staged: list[_Staged],
    ) -> None:
        pointers = (ctypes.c_void_p * max(1, len(keep)))(*[ctypes.addressof(k) for k in keep])
        count = int(np.prod([int(g) for g in grid], dtype=object))
        first, last = (0, count) if self.blocks is None else self.blocks(count)
        message = ctypes.create_string_buffer(512)
        library.emu_attach(self._state)
        result = self._runtime.emu_launch(
            getattr(library, f"emu_run_{name}"), library.emu_poison, pointers, _triple(grid),
            _triple(block), ctypes.c_size_t(shared), int(bool(_SYNCHRONISES.search(source))),
            ORDERS.index(self.order), ctypes.c_long(first), ctypes.c_long(last),
            ctypes.c_uint(1234), message, ctypes.c_size_t(512),
        )  # fmt: skip
        if result == 1:
            raise EmulationError(f"{name}: {message.value.decode()}")
        if result == 2:
            address = self._runtime.emu_fault_address() or 0
            raise EmulationError(f"{name}: out of bounds, {self._whose(address, staged)}")
        for k, item in enumerate(staged):
            if not item.memory.untouched():
                raise EmulationError(f"{name}: out of bounds, wrote next to array argument {k}")

    def _whose(self, address: int, staged: list[_Staged]) -> str:
        for k, item in enumerate(staged):
            if item.memory.low <= address < item.memory.high:
                return f"array argument {k}, {item.memory.describe(address)}"
        for low, high in self._allocated:
            if low - GUARD <= address < high + GUARD:
                return f"an array of this launcher, {address - low} bytes from its start"
        return f"address {address:#x} (shared memory, or far from every array)"

    def _pack(self, name: str, k: int, letter: str, arg: Any, staged: list[_Staged]) -> Any:
        if isinstance(arg, ctypes.Array):
            return arg
        what = f"{name}: argument {k}"
        if isinstance(arg, np.ndarray):
            if letter[0] not in "*&":
                raise EmulationError(f"{what} is an array, its parameter is of type {letter}")
            if arg.dtype.str[1:] != letter[1:]:
                raise EmulationError(f"{what} is of type {arg.dtype}, its parameter {letter}")
            if not arg.flags.c_contiguous:
                raise EmulationError(f"{what} is not C-contiguous")
            return ctypes.c_void_p(self.stage(arg, letter[0] == "*", staged, what))
        for seen, kind in ((bool, np.bool_), (int, np.int64), (float, np.float64)):
            if type(arg) is seen:  # as cupy.RawKernel converts them
                arg = kind(arg)
        if not isinstance(arg, np.generic):
            raise EmulationError(f"{what} is a {type(arg).__name__}, expected an array or a number")
        if arg.dtype.str[1:] != letter:
            raise EmulationError(f"{what} is of type {arg.dtype}, its parameter {letter}")
        return (ctypes.c_char * arg.dtype.itemsize).from_buffer_copy(arg.tobytes())

    def stage(self, array: np.ndarray, written: bool, staged: list[_Staged], what: str) -> int:
        """Copy an array between guard pages, and return the address that a kernel is to see."""
        address = array.ctypes.data
        if any(low <= address < high for low, high in self._allocated):
            return address
        if array.nbytes > _COPY_LIMIT:
            raise EmulationError(f"{what} has {array.nbytes} bytes; make it with launcher.zeros")
        if written and not array.flags.writeable:
            raise EmulationError(f"{what} is read-only, its parameter is not a pointer to const")
        for item in staged:
            start, stop = item.array.ctypes.data, item.array.ctypes.data + item.array.nbytes
            if max(start, address) >= min(stop, address + array.nbytes):
                continue
            if start == address and item.array.nbytes == array.nbytes:
                item.written |= written
                return item.memory.address
            if written or item.written:
                raise EmulationError(f"{what} overlaps another argument that is written")
        memory = GuardedBytes(array.nbytes, self.guard)
        memory.array(array.shape, array.dtype)[...] = array
        staged.append(_Staged(array, memory, written))
        return memory.address


@dataclass(frozen=True)
class _Parameter:
    raw: bool
    type: str
    name: str

    @property
    def generic(self) -> bool:
        return len(self.type) == 1


def _parameters(text: str) -> list[_Parameter]:
    words = [part.split() for part in text.split(",") if part.strip()]
    return [_Parameter(w[0] == "raw", w[-2], w[-1]) for w in words]


class _Elementwise:
    """CuPy's elementwise semantics: type letters, raw arrays, broadcasting, ``i``, ``_ind``."""

    def __init__(
        self, launcher: EmulatedLauncher, inputs: str, outputs: str, operation: str, name: str,
        preamble: str,
    ) -> None:  # fmt: skip
        self.launcher, self.name = launcher, name
        self.inputs, self.outputs = _parameters(inputs), _parameters(outputs)
        self.operation, self.preamble = operation, preamble

    def __call__(self, *args: Any, size: int | None = None) -> Any:
        parameters = self.inputs + self.outputs
        values = _plain(args)
        if len(values) not in (len(self.inputs), len(parameters)):
            raise TypeError(f"{self.name}: {len(values)} arguments, expected {len(parameters)}")
        letters = self._letters(values)
        shapes = [np.shape(v) for p, v in zip(parameters, values, strict=False) if not p.raw]
        arrays = [v for p, v in zip(parameters, values, strict=False)
                  if not p.raw and isinstance(v, np.ndarray)]  # fmt: skip
        if size is not None and arrays:
            raise ValueError(f"{self.name}: size is only for kernels whose arrays are all raw")
        if size is None and not arrays:
            raise ValueError(f"{self.name}: every array is raw, so size is needed")
        shape = (size,) if size is not None else np.broadcast_shapes(*shapes)
        if len(values) == len(self.inputs):
            if any(p.raw for p in self.outputs):
                raise ValueError(f"{self.name}: raw outputs must be given")
            values += [np.full(shape, np.nan).astype(letters[p.type]) for p in self.outputs]
        results = list(args[len(self.inputs) :]) or values[len(self.inputs) :]
        total = int(np.prod(shape, dtype=object))
        if total > 0:
            self._run(parameters, values, letters, shape, total)
        return results[0] if len(results) == 1 else tuple(results)

    def _letters(self, values: list[Any]) -> dict[str, np.dtype]:
        found: dict[str, np.dtype] = {}
        for p, v in zip(self.inputs + self.outputs, values, strict=False):
            if not p.generic:
                found[p.type] = np.dtype(_NAMES[p.type])
                continue
            typed = isinstance(v, (np.ndarray, np.generic))
            if typed and found.setdefault(p.type, v.dtype) != v.dtype:
                raise TypeError(f"{self.name}: {p.name} is {v.dtype}, {p.type} is {found[p.type]}")
        for p in self.inputs + self.outputs:
            found.setdefault(p.type, np.dtype("f8"))
        return found

    def _run(
        self, parameters: list[_Parameter], values: list[Any], letters: dict[str, np.dtype],
        shape: tuple[int, ...], total: int,
    ) -> None:  # fmt: skip
        staged: list[_Staged] = []
        packed: list[Any] = []
        declared, loads = [], []
        for k, (p, v) in enumerate(zip(parameters, values, strict=True)):
            ctype = _TYPES[letters[p.type].str[1:]]
            if not isinstance(v, np.ndarray):
                packed.append(letters[p.type].type(v))
                declared.append(f"{ctype} {p.name}")
                continue
            if v.dtype != letters[p.type]:
                raise TypeError(f"{self.name}: {p.name} is {v.dtype}, expected {letters[p.type]}")
            output = k >= len(self.inputs)
            seen = v if p.raw else np.broadcast_to(v, shape)
            address = v.ctypes.data
            if v.flags.c_contiguous:
                what = f"{self.name}: {p.name}"
                address = self.launcher.stage(v, output, staged, what)
            layout = (address, seen.size, *seen.shape, *seen.strides)
            packed.append((ctypes.c_int64 * max(4, len(layout)))(*layout))
            const, prefix = "" if output else "const ", "" if p.raw else "_raw_"
            declared.append(f"{const}CArray<{ctype}, {seen.ndim}> {prefix}{p.name}")
            if not p.raw:
                loads.append(f"{const}{ctype} &{p.name} = _raw_{p.name}[_ind.get()];\n")
        packed.append((ctypes.c_int64 * (1 + 2 * len(shape)))(total, *shape, *[0] * len(shape)))
        declared.append(f"CIndexer<{len(shape)}> _ind")
        typedefs = "".join(
            f"typedef {_TYPES[d.str[1:]]} {letter};\n" for letter, d in letters.items()
            if len(letter) == 1
        )  # fmt: skip
        source = self.launcher.rewrite(
            f'{typedefs}{self.preamble}\nextern "C" __global__ void {self.name}('
            f"{', '.join(declared)}) {{\nCUPY_FOR(i, _ind.size()) {{\n_ind.set(i);\n"
            f"{''.join(loads)}{self.operation};\n}}\n}}\n"
        )
        launcher = self.launcher
        library = launcher._library(source, ())
        try:
            launcher._launch(library, source, self.name, (-(-total // 128),), (128,), packed)
        finally:
            for item in staged:
                if item.written:
                    item.array[...] = item.memory.array(item.array.shape, item.array.dtype)
        for item in staged:
            if not item.memory.untouched():
                raise EmulationError(f"{self.name}: out of bounds, wrote next to an array")


class PoisonedNumpy:
    """The few functions that host code asks of a library; ``empty`` gives NaNs."""

    ascontiguousarray = staticmethod(np.ascontiguousarray)
    zeros = staticmethod(np.zeros)
    sum = staticmethod(np.sum)

    @staticmethod
    def empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
        """An array of NaNs: what a kernel forgets to write shows."""
        return np.full(shape, np.nan, dtype=dtype)
