"""What this machine offers to the library, as lines of text."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform

from gplvm_xp import __version__, why_no_gpu

_PACKAGES = ("numpy", "scipy", "scikit-learn", "array-api-compat", "tqdm", "matplotlib", "torch")
_CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")


def report() -> list[tuple[str, str]]:
    """Versions, backends with the reason where one can't be used, processors and BLAS threads."""
    lines = [
        ("gplvm-xp", __version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
    ]
    lines += [(name, _version(name) or "not installed") for name in _PACKAGES]
    cupy = [f"{version} ({name})" for name in _CUPY if (version := _version(name))]
    lines.append(("cupy", ", ".join(cupy) or "not installed"))
    reason = why_no_gpu()
    torch = importlib.util.find_spec("torch") is not None
    lines += [
        ("backend numpy", "usable"),
        ("backend cupy", "usable" if reason is None else f"not usable: {reason}"),
        ("backend torch", "usable" if torch else "not usable: torch is not installed"),
        ("backend auto", "numpy (no usable GPU)" if reason is not None else "cupy"),
        ("processors", _processors()),
    ]
    return lines + _blas()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processors() -> str:
    count = os.cpu_count()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    return f"{usable} usable of {count}"


def _blas() -> list[tuple[str, str]]:
    # The libraries are listed once they are loaded.
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_info

    return [
        (
            f"{pool['user_api']} threads",
            f"{pool['num_threads']} ({pool['internal_api']} {pool.get('version') or ''}".rstrip()
            + ")",
        )
        for pool in threadpool_info()
    ]


__all__ = ["report"]
