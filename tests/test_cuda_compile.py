"""Every CUDA source that the library can produce, through NVRTC, for real GPUs and without one."""

from __future__ import annotations

import functools
import io
import re

import numpy as np
import pytest
from emulator.trees import TREES, add, linear, matern52, rbf, white

from gplvm_xp.backend.cuda.fused import MAX_Q, Fused
from gplvm_xp.backend.cuda.local import FusedLocal
from gplvm_xp.backend.cuda.psi import FusedPsi
from gplvm_xp.backend.cuda.sparse import SparseTimes

ARCHITECTURES = ("75", "80", "90", "100")


def why_no_nvrtc():
    """Why nothing can be compiled here, or None."""
    try:
        import cupy
        from cupy.cuda import nvrtc

        if nvrtc.getVersion() < (13, 0):
            return f"NVRTC {nvrtc.getVersion()} may not know every architecture of this test"
        if not cupy.__version__.startswith("14."):
            return f"the private names used here are those of CuPy 14, not {cupy.__version__}"
        compile_cubin('extern "C" __global__ void k(double* x) { x[0] = exp(x[0]); }', (), "90")
    except Exception as error:
        return f"no NVRTC here: {type(error).__name__}: {str(error).strip()[:160]}"
    return None


class Recorder:
    """A launcher that keeps what it was asked to compile."""

    def __init__(self):
        self.raws, self.elementwises = [], []

    def raw(self, source, name, options):
        self.raws.append((source, name, options))

    def elementwise(self, *arguments):
        self.elementwises.append(arguments)


def compile_cubin(source, options, architecture):
    """A cubin and the log of ptxas."""
    from cupy._core import core
    from cupy.cuda import compiler

    options = (*core.assemble_cupy_compiler_options(tuple(options)), f"-arch=sm_{architecture}")
    log = io.StringIO()
    program = compiler._NVRTCProgram(source, "kernel.cu", method="cubin")
    return program.compile((*options, "-Xptxas=-v"), log)[0], log.getvalue()


def elementwise_source(in_params, out_params, operation, name, preamble, dtype, index32):
    """What CuPy would compile for a kernel of raw arrays, integers and one raw output."""
    import cupy
    from cupy._core import _carray, _kernel, _scalar, core

    kernel = cupy.ElementwiseKernel(in_params, out_params, operation, name, preamble=preamble)
    own = kernel.params[: kernel.nargs]
    types = [np.dtype(dtype if p.dtype is None else p.dtype) for p in own]
    _, _, type_map = kernel._decide_params_type(
        tuple(types[: kernel.nin]), tuple(types[kernel.nin :])
    )
    infos = [
        _kernel._ArgInfo(1, cupy.ndarray, t, 3 if p.name == "J" else 2, True, index32)
        if p.raw
        else _kernel._ArgInfo(3, _scalar.CScalar, t, 0, True, True)
        for p, t in zip(own, types, strict=True)
    ]
    infos.append(_kernel._ArgInfo(2, _carray.Indexer, None, 1, True, index32))
    text = _kernel._get_elementwise_kernel_code(
        tuple(infos), type_map, kernel.params, operation, name, preamble
    )
    return "".join(f"#include <{h}>\n" for h in core._cupy_header_list) + text


REASON = why_no_nvrtc()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "NVRTC is here")


def sources(tree, q, dtype=np.float64):
    recorder = Recorder()
    Fused(recorder, None, tree.code, q, dtype)
    return recorder


def assert_compiles(recorder, architecture):
    logs = []
    for source, options in dict.fromkeys((s, o) for s, _, o in recorder.raws):
        cubin, log = compile_cubin(source, options, architecture)
        assert cubin[:4] == b"\x7fELF"
        logs.append(log)
    return "".join(logs)


def test_every_type_compiles():
    recorder = sources(functools.reduce(add, TREES.values()), 3)
    log = assert_compiles(recorder, "90")
    for _, kernel, _ in recorder.raws:
        assert f"'{kernel}'" in log, f"the source defines {kernel}"


@pytest.mark.parametrize(
    ("architecture", "dtype"), [(a, np.float64) for a in ARCHITECTURES] + [("90", np.float32)]
)
def test_every_architecture_and_dtype_compiles(architecture, dtype):
    recorder = sources(TREES["nested"], 3, dtype)
    assert_compiles(recorder, architecture)
    for arguments in recorder.elementwises:
        for index32 in (True, False):
            source = elementwise_source(*arguments, dtype, index32)
            assert compile_cubin(source, (), architecture)[0][:4] == b"\x7fELF"


@pytest.mark.parametrize(
    ("architecture", "q", "rows"), [("75", 2, 33), ("80", 4, 40), ("90", 2, 33), ("100", 2, 64)]
)
def test_local_likelihoods_compile(architecture, q, rows):
    recorder = Recorder()
    FusedLocal(recorder, None, rbf(q).code, q, rows, np.float64)
    log = assert_compiles(recorder, architecture)
    names = {name for _, name, _ in recorder.raws}
    assert names == {"gplvm_conditional"} | ({"gplvm_joint"} if rows < 64 else set())
    assert all(int(size) <= 48 * 1024 for size in re.findall(r"(\d+) bytes smem", log))
    assert set(re.findall(r"(\d+) bytes spill stores", log)) == {"0"}


def test_local_likelihoods_of_a_nested_kernel_compile():
    recorder = Recorder()
    FusedLocal(recorder, None, TREES["nested"].code, 3, 33, np.float64)
    assert_compiles(recorder, "90")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sparse_product_compiles(architecture):
    recorder = Recorder()
    for lanes in (1, 2, 4, 8, 16, 32):
        for dtype in (np.float64, np.float32):
            SparseTimes(recorder, None, dtype, lanes)
    assert len({options for _, _, options in recorder.raws}) == 12
    log = assert_compiles(recorder, architecture)
    assert log.count("entry function 'gplvm_sparse'") == 12
    assert set(re.findall(r"(\d+) bytes spill stores", log)) == {"0"}


PSI_KERNELS = ("sums", "columns", "rows")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_psi_statistics_compile(architecture, dtype):
    for q in (1, 10, MAX_Q):
        recorder = Recorder()
        FusedPsi(recorder, None, q, dtype)
        assert [name for _, name, _ in recorder.raws] == [f"gplvm_psi_{k}" for k in PSI_KERNELS]
        log = assert_compiles(recorder, architecture)
        for kernel in PSI_KERNELS:
            assert f"entry function 'gplvm_psi_{kernel}'" in log


@pytest.mark.parametrize("q", [1, 5, 10, 16, 20])
def test_registers_are_enough_for_psi_statistics(q):
    recorder = Recorder()
    FusedPsi(recorder, None, q, np.float64)
    log = assert_compiles(recorder, "90")
    found = dict(re.findall(r"'gplvm_psi_(\w+)'.*?(\d+) bytes spill stores", log, re.S))
    assert found == dict.fromkeys(PSI_KERNELS, "0")


def test_shared_memory_is_enough_for_many_parameters():
    """ptxas refuses more than 48 KiB of static shared memory; 24 is the last q with large tiles."""
    tree = add(add(rbf(24), linear(24)), add(matern52(24), white()))
    assert_compiles(sources(tree, 24), "75")


@pytest.mark.parametrize("q", [33, MAX_Q])
def test_many_dimensions_compile(q):
    assert_compiles(sources(rbf(q), q), "75")


@pytest.mark.parametrize("q", [1, 2, 5, 8, 12])
def test_registers_are_enough(q):
    """Spilled registers go to memory, in the inner loop."""
    log = assert_compiles(sources(add(rbf(q), white()), q), "90")
    found = re.findall(
        r"entry function '(gplvm_\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", log, re.S
    )
    spills = {name: int(spilled) for name, spilled, _ in found}
    assert len(spills) == 7
    assert max(spills.values()) <= 16, spills


def test_float_sources_do_no_double_arithmetic():
    """A forgotten cast in a snippet or a pair type would show as a conversion to double."""
    from cupy._core import core
    from cupy.cuda import compiler

    recorder = sources(TREES["nested"], 3, np.float32)
    SparseTimes(recorder, None, np.float32, 32)
    FusedPsi(recorder, None, 3, np.float32)
    for kernel in ("gplvm_gram", "gplvm_sparse", "gplvm_psi_rows"):
        source, options = next((s, o) for s, name, o in recorder.raws if name == kernel)
        options = core.assemble_cupy_compiler_options(options)
        program = compiler._NVRTCProgram(source, "kernel.cu", method="ptx")
        ptx = program.compile((*options, "-arch=compute_90"))[0]
        text = ptx.decode() if isinstance(ptx, bytes) else ptx
        assert kernel in text
        assert "cvt.f64.f32" not in text
