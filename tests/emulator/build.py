"""Compiles CUDA C++ sources with the host's C++ compiler into shared libraries, cached by hash."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CACHE_VARIABLE = "GPLVM_XP_EMULATOR_CACHE"
# Without -fno-gnu-unique, the static variables of templates, which is where shared arrays end up,
# would be one for the whole process, whatever their size in each library.
FLAGS = (
    "-std=c++17",
    "-fPIC",
    "-w",
    "-fno-gnu-unique",
    "-U_FORTIFY_SOURCE",
    f"-I{HERE}",
)
KERNEL_FLAGS = (
    "-O1",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fsanitize=signed-integer-overflow,integer-divide-by-zero,shift,bounds",
)
# The one construct that is rewritten: an array of unknown size becomes a pointer.
_DYNAMIC = re.compile(r"extern\s+__shared__\s+([\w ]+?)\s+(\w+)\s*\[\s*\]\s*;")
_ENTRY = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^;{]*?\)\s+)?(\w+)\s*\([^;{]*\)\s*\{'
)


def compiler() -> str:
    """The C++ compiler: $CXX, or g++."""
    return os.environ.get("CXX", "g++")


def why_no_emulator() -> str | None:
    """Why kernels can't be emulated here, or None."""
    if platform.system() != "Linux":
        return "the CUDA emulator needs Linux"
    if shutil.which(compiler()) is None:
        return f"the CUDA emulator needs a C++ compiler, and {compiler()} is not on the path"
    return None


def _cache() -> Path:
    default = Path(tempfile.gettempdir()) / f"gplvm_xp_emulator_{os.getuid()}"
    folder = Path(os.environ.get(CACHE_VARIABLE, default))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[:8000]}")


def _library(text: str, flags: tuple[str, ...]) -> Path:
    headers = [(HERE / name).read_text() for name in ("cuda_shim.h", "emulation.h")]
    stamp = "\0".join([compiler(), platform.machine(), *flags, *headers, text])
    key = hashlib.sha256(stamp.encode()).hexdigest()[:24]
    target = _cache() / f"{key}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=_cache()) as folder:
            source, compiled, linked = (str(Path(folder) / n) for n in ("k.cpp", "k.o", "k.so"))
            Path(source).write_text(text)
            _run(compiler(), *flags, "-c", source, "-o", compiled)
            # linked without the sanitizer's flag: its handlers are our own
            _run(compiler(), "-shared", compiled, "-o", linked)
            os.replace(linked, target)
    return target


def load_runtime() -> ctypes.CDLL:
    """Compile and load the fibre scheduler."""
    library = ctypes.CDLL(str(_library((HERE / "runtime.cpp").read_text(), (*FLAGS, "-O2"))))
    library.emu_init.restype = ctypes.c_void_p
    library.emu_fault_address.restype = ctypes.c_void_p
    return library


def load_kernels(source: str, options: tuple[str, ...]) -> ctypes.CDLL:
    """Compile and load every ``extern "C" __global__`` kernel of a source."""
    names = _ENTRY.findall(source)
    body = _DYNAMIC.sub(r"\1* \2 = (\1*)emu_state->dynamic;", source)
    entries = "".join(
        f'extern "C" void emu_run_{name}(void** args) {{ emulation::invoke(&{name}, args); }}\n'
        f'extern "C" void emu_describe_{name}(char* out) {{ emulation::describe(&{name}, out); }}\n'
        for name in names
    )
    # An extern "C" function may sit in a namespace: declare nothing, look it up from the inside.
    spaces = dict.fromkeys(re.findall(r"^namespace (\w+) \{", source, re.MULTILINE))
    using = "".join(f"using namespace {space};\n" for space in spaces)
    # not on the command line, where they would also change the headers
    macros = (option[2:].partition("=") for option in options if option.startswith("-D"))
    defines = "".join(f"#define {name} {value or 1}\n" for name, _, value in macros)
    text = f'#include "cuda_shim.h"\n{defines}#line 1 "kernel.cu"\n{body}\n{using}{entries}'
    return ctypes.CDLL(str(_library(text, (*FLAGS, *KERNEL_FLAGS))))
