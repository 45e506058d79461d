"""potrf and potri at sizes up to 60 000: the libraries' routines against the blocked recursion."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.gpu.machine import Machine, Row, guarded, row

FACTOR_SIZES = (10_000, 30_000, 47_000, 60_000)
INVERSE_SIZES = (10_000, 47_000, 60_000)
LOWER, UPPER = 0, 1


def _repeats(n: int) -> int:
    return 3 if n < 40_000 else 1


def _sizes(m: Machine, sizes: tuple[int, ...], max_n: int) -> list[int]:
    return [n for n in sizes if n <= max_n and m.fits(n, 1.5)]


def _native_factor(m: Machine, K: Any, what: str, routine: str, uplo: int) -> Row:
    from benchmarks.gpu.native import Native

    n, native, info = K.shape[0], Native(), m.b.xp.zeros((1,), dtype=m.b.xp.int32)
    call = getattr(native, routine)
    seconds = m.median(lambda: call(uplo, K, info), _repeats(n), lambda: m.fill(K))
    return row(
        what, n, seconds, n**3 / 3.0,
        # Column order's lower triangle is row order's upper one.
        error_norm=m.factor_error(K, upper=uplo == LOWER),
        info=int(m.b.to_host(info)[0]), workspace_MiB=native.workspace_bytes / 2**20,
    )  # fmt: skip


def _blocked_factor(m: Machine, K: Any, what: str, leaf: int) -> Row:
    n, b = K.shape[0], dataclasses.replace(m.b, factor_leaf=leaf)
    seconds = m.median(lambda: b.cholesky(K), _repeats(n), lambda: m.fill(K))
    return row(what, n, seconds, n**3 / 3.0, error_norm=m.factor_error(K))


def _native_inverse(m: Machine, K: Any, what: str, routines: tuple[str, ...]) -> Row:
    from benchmarks.gpu.native import Native

    n, native, info = K.shape[0], Native(), m.b.xp.zeros((1,), dtype=m.b.xp.int32)

    def inverse() -> None:
        # The factor is row order's lower triangle, hence column order's upper one.
        for routine in routines:
            getattr(native, routine)(UPPER, K, info)

    seconds = m.median(inverse, _repeats(n), partial(_fresh_factor, m, K))
    return row(
        what, n, seconds, 2.0 / 3.0 * n**3, error_norm=m.inverse_error(K),
        info=int(m.b.to_host(info)[0]), workspace_MiB=native.workspace_bytes / 2**20,
    )  # fmt: skip


def _blocked_inverse(m: Machine, K: Any, what: str, leaf: int) -> Row:
    n, b = K.shape[0], dataclasses.replace(m.b, inverse_leaf=leaf)
    seconds = m.median(
        lambda: b.inverse_from_cholesky(K), _repeats(n), partial(_fresh_factor, m, K)
    )
    error = m.inverse_error(K, full=True)
    return row(what, n, seconds, 2.0 / 3.0 * n**3, error_norm=error)


def _fresh_factor(m: Machine, K: Any) -> None:
    m.fill(K)
    m.b.cholesky(K)


def factors(m: Machine, max_n: int) -> Iterator[Row]:
    """Legacy and 64-bit potrf in both triangles, and the blocked recursion, with residuals."""
    for n in _sizes(m, FACTOR_SIZES, max_n):
        K = m.b.empty((n, n))
        work: dict[str, Callable[..., Row]] = {}
        for routine, label in (("potrf_legacy", "Dpotrf"), ("potrf", "Xpotrf")):
            for uplo, side in ((LOWER, "lower"), (UPPER, "upper")):
                work[f"{label} {side}"] = partial(_native_factor, routine=routine, uplo=uplo)
        for leaf in (512, 1024, 2048, 4096, 8192):
            work[f"blocked potrf, leaf {leaf}"] = partial(_blocked_factor, leaf=leaf)
        for what, measure in work.items():
            yield guarded(what, n, partial(measure, m, K, what))


def inverses(m: Machine, max_n: int) -> Iterator[Row]:
    """Dpotri, Xtrtri with Dlauum, and the blocked recursion, from the same factor."""
    for n in _sizes(m, INVERSE_SIZES, max_n):
        K = m.b.empty((n, n))
        work: dict[str, Callable[..., Row]] = {
            "Dpotri": partial(_native_inverse, routines=("potri",)),
            "Xtrtri + Dlauum": partial(_native_inverse, routines=("trtri", "lauum")),
        }
        for leaf in (256, 512, 1024, 2048, 4096):
            work[f"blocked potri, leaf {leaf}"] = partial(_blocked_inverse, leaf=leaf)
        for what, measure in work.items():
            yield guarded(what, n, partial(measure, m, K, what))


__all__ = ["factors", "inverses"]
