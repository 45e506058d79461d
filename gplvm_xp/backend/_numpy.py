"""NumPy: LAPACK in place through SciPy's BLAS, and blocks spread over threads."""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import array_api_compat.numpy as xp
import numpy as np

from gplvm_xp._typing import Array, DType
from gplvm_xp.backend._triangles import inverses, many, substitute
from gplvm_xp.backend.base import Backend, Special, Tile
from gplvm_xp.backend.parts import chunks

Result = TypeVar("Result")


@functools.cache
def _blas(name: str, kind: str) -> Callable[..., Any]:
    """A BLAS or LAPACK routine of SciPy's own library for a dtype's letter.

    NumPy's and SciPy's wheels each carry a BLAS with its own thread pool, and the two pools fight:
    every heavy product of an evaluation goes through SciPy's.
    """
    from scipy.linalg import blas, lapack

    module = lapack if name in ("potrf", "potri", "potrs", "trtri") else blas
    return getattr(module, {"d": "d", "f": "s"}[kind] + name)  # type: ignore[no-any-return]


@functools.cache
def _pools() -> Any:
    import scipy.linalg.blas  # noqa: F401  the controller sees only libraries that are loaded
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _threads() -> int:
    """As many threads as the BLAS uses, so that OMP_NUM_THREADS and its like govern both."""
    counts = [p["num_threads"] for p in _pools().info() if p.get("user_api") == "blas"]
    return max(counts, default=1)


@functools.cache
def _keep_freed_memory() -> None:
    """Let the C library keep freed blocks of a few MiB instead of handing them back each time.

    glibc raises its thresholds to the size of the largest mapping freed so far. Without this,
    every temporary of a block is mapped and faulted in anew, which costs more than the arithmetic.
    """
    del_me = np.empty(2**25 - 2**16, dtype=np.uint8)
    del del_me


def _free_cores(least: int = 4) -> int:
    """How many of the BLAS's threads would find a core free at this moment.

    Threads that share the interpreter's lock hand it over at every array operation. Where another
    program wants the core, each hand-over waits for the scheduler, and two threads are slower than
    one by an order of magnitude.
    """
    threads = _threads()
    if threads < least:
        return 1
    try:
        running = int(Path("/proc/loadavg").read_text().split()[3].split("/")[0])
    except (OSError, ValueError, IndexError):
        return 1
    # This thread runs, and the BLAS's may still be spinning.
    others = max(running - threads, 0)
    return max(1, min(threads, (os.cpu_count() or 1) - others))


def _in_order(function: Callable[[Any], Result], work: list[Any], workers: int) -> Iterator[Result]:
    """``function`` of every piece, in order, by threads that find the BLAS without its own.

    The small products inside a piece must not start those, and the bits must not depend on them.
    """
    with _pools().limit(limits=1, user_api="blas"):
        if workers < 2:
            yield from map(function, work)
            return
        with ThreadPoolExecutor(workers) as pool:
            # A short queue: results that wait for their turn are memory too.
            first, rest = work[: 2 * workers], work[2 * workers :]
            queue = collections.deque(pool.submit(function, piece) for piece in first)
            for piece in rest:
                yield queue.popleft().result()
                queue.append(pool.submit(function, piece))
            while queue:
                yield queue.popleft().result()


def _calm(n: int) -> AbstractContextManager[Any]:
    """One BLAS thread for a small matrix: a second gains little, and on a busy machine the threads
    wait for each other a hundred times longer than they work."""
    return _pools().limit(limits=1, user_api="blas") if n < 512 else nullcontext()


def _columns(shape: tuple[int, ...], dtype: DType) -> Array:
    """A new array (..., n, r): of many blocks with their few columns each in one piece."""
    if len(shape) == 2:
        return np.empty(shape, dtype=dtype)
    return np.swapaxes(np.empty((*shape[:-2], shape[-1], shape[-2]), dtype=dtype), -1, -2)


def _limit_of_cgroup() -> int | None:
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
        return None if limit == "max" else int(limit) - int(used)
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class NumpyBackend(Backend):
    """Overrides for NumPy arrays; see :class:`~gplvm_xp.backend.base.Backend` for the contract."""

    @property
    def name(self) -> str:
        return "numpy"

    def to_host(self, a: Array) -> np.ndarray:
        return np.asarray(a)

    def memory_available(self) -> int | None:
        try:
            lines = Path("/proc/meminfo").read_text().splitlines()
            free = next(int(s.split()[1]) * 1024 for s in lines if s.startswith("MemAvailable"))
        except (OSError, StopIteration, ValueError):
            return None
        group = _limit_of_cgroup()
        return free if group is None else min(free, group)

    def tile_shape(self, n: int) -> tuple[int, int]:
        # Large enough that the interpreter's share is small, and two percent of n × n at n = 4000.
        return min(n, 256), min(n, 768 if n < 6000 else 1024)

    def batches(self, count: int, size: int) -> list[slice]:
        # Arrays of a quarter of a MiB: a few of them are in the cache together.
        step = max(1, 2**15 // max(size, 1))
        return [slice(i, min(i + step, count)) for i in range(0, count, step)] or [slice(0, 0)]

    def stacks(self, count: int, size: int) -> list[slice]:
        # Two MiB an array: the interpreter's share is small, and a core's cache still helps.
        return chunks(count, max(1, 2**18 // size))

    def calm(self, order: int) -> AbstractContextManager[object]:
        return _calm(order)

    def map_parts(
        self, function: Callable[[slice], Result], parts: list[slice]
    ) -> Iterator[Result]:
        _keep_freed_memory()
        if len(parts) < 2:
            yield from map(function, parts)
            return
        yield from _in_order(function, parts, min(_free_cores(least=2), len(parts)))

    def map_tiles(
        self, function: Callable[[Tile], Result], tiles: Iterable[Tile]
    ) -> Iterator[Result]:
        _keep_freed_memory()
        work = list(tiles)
        # Many blocks in flight cost memory; two threads gain less than the BLAS's own take from
        # them while they spin down.
        workers = min(_free_cores(), len(work) // 25)
        yield from _in_order(function, work, workers)

    def cholesky(self, K: Array) -> tuple[Array, Array]:
        K = np.ascontiguousarray(K)
        # The transposed view of a C-ordered buffer is what LAPACK calls column order: in place.
        with _calm(K.shape[0]):
            c, info = _blas("potrf", self._kind)(K.T, lower=0, clean=0, overwrite_a=1)
        # LAPACK's test of a pivot lets NaN through.
        return c.T, np.asarray(info == 0 and np.all(np.isfinite(c.diagonal())))

    def inverse_from_cholesky(self, L: Array) -> Array:
        L = np.ascontiguousarray(L)
        with _calm(L.shape[0]):
            c, _ = _blas("potri", self._kind)(L.T, lower=0, overwrite_c=1)
        return c.T

    def solve_triangular(self, L: Array, B: Array, trans: bool = False) -> Array:
        # L is lower in C order, hence upper in column order: transposing twice cancels.
        L = np.ascontiguousarray(L)
        with _calm(L.shape[0]):
            return _blas("trsm", self._kind)(
                1.0, L.T, np.asfortranarray(B), lower=0, trans_a=0 if trans else 1, overwrite_b=0
            )

    def cho_solve(self, L: Array, B: Array) -> Array:
        L = np.ascontiguousarray(L)
        with _calm(L.shape[0]):
            z, _ = _blas("potrs", self._kind)(L.T, np.asfortranarray(B), lower=0, overwrite_b=0)
        return z

    def rank_update(self, C: Array, A: Array, alpha: float, beta: float) -> Array:
        C = np.ascontiguousarray(C)
        A = np.ascontiguousarray(A)
        with _calm(C.shape[0]):
            out = _blas("syrk", self._kind)(alpha, A.T, beta, C.T, trans=1, lower=0, overwrite_c=1)
        return out.T

    def product(self, A: Array, B: Array) -> Array:
        # (A B)ᵀ = Bᵀ Aᵀ in column order; a factor that is a transposed view needs no copy.
        a, turn_a = (A.T, 0) if A.flags.c_contiguous else (A, 1)
        b, turn_b = (B.T, 0) if B.flags.c_contiguous else (B, 1)
        with _calm(max(A.shape)):
            return _blas("gemm", self._kind)(1.0, b, a, trans_a=turn_b, trans_b=turn_a).T

    def complete(self, C: Array) -> Array:
        for i0, i1, j0, j1 in self.lower_tiles(C.shape[0]):
            if i0 == j0:
                block = C[i0:i1, j0:j1]
                block[...] = np.tril(block) + np.tril(block, -1).T
            else:
                C[j0:j1, i0:i1] = C[i0:i1, j0:j1].T
        return C

    def add_diagonal(self, C: Array, value: Array) -> Array:
        C[np.arange(C.shape[0]), np.arange(C.shape[0])] += value
        return C

    def squared_distances(self, A: Array, B: Array | None = None, factor: float = 1.0) -> Array:
        # One product gives |a|² + |b|² − 2 a·b by two extra columns: a single pass over the block.
        *lead, n, q = A.shape
        other = A if B is None else B
        left, right = (_columns((*lead, a.shape[-2], q + 2), A.dtype) for a in (A, other))
        left[..., :q], left[..., q] = (-2.0 * factor) * A, factor
        left[..., q + 1] = factor * np.einsum("...j,...j->...", A, A)
        right[..., :q], right[..., q + 1] = other, 1.0
        right[..., q] = np.einsum("...j,...j->...", other, other)
        r2 = left @ np.swapaxes(right, -1, -2)
        if factor > 0.0:
            # Only rounding makes an entry negative; its magnitude is as near the truth as 0.
            np.abs(r2, out=r2)
        if B is None:
            r2.reshape(*lead, n * n)[..., :: n + 1] = 0.0
        return r2

    def thin_products(self, W: Array, A: Array, B: Array) -> tuple[Array, Array]:
        if W.ndim > 2:
            t = np.matrix_transpose
            return t(t(B) @ t(W)), t(t(A) @ W)
        (n, m), r = W.shape, A.shape[1]
        # OpenBLAS takes products of up to a million multiplications in one piece, without packing:
        # twice as fast where one factor is thin.
        step = min(n, max(32, 10**6 // max(m * r, 1)))
        WB = np.empty((n, r), dtype=W.dtype)
        AW = np.zeros((r, m), dtype=W.dtype)
        for i in range(0, n, step):
            part = W[i : i + step]
            np.matmul(part, B, out=WB[i : i + step])
            AW += A[i : i + step].T @ part
        return WB, AW.T

    def exp(self, a: Array) -> Array:
        return np.exp(a, out=a)

    def factor(self, P: Array) -> tuple[Array, Array]:
        _keep_freed_memory()
        n = P.shape[-1]
        if n < 512:
            # One call for all of them, and other threads may run meanwhile.
            try:
                L = np.linalg.cholesky(P)
                return L, np.all(np.isfinite(np.linalg.diagonal(L)), axis=-1)
            except np.linalg.LinAlgError:
                pass
        flat = P.reshape(-1, n, n)
        out = np.empty((n, n) if P.ndim == 2 else flat.shape, dtype=P.dtype)
        ok = np.empty(flat.shape[0], dtype=bool)
        potrf = _blas("potrf", self._kind)
        with _calm(n):
            for i, one in enumerate(flat):
                # Upper in column order is lower in row order, and LAPACK clears the other half.
                c, info = potrf(one.T, lower=0, clean=1)
                ok[i] = info == 0 and bool(np.all(np.isfinite(c.diagonal())))
                out.reshape(-1, n, n)[i] = c.T
        return out.reshape(P.shape), ok.reshape(P.shape[:-2])

    def solve_factor(self, L: Array, B: Array, trans: bool = False) -> Array:
        if L.ndim == 2 and B.ndim == 2:
            return self.solve_triangular(L, B, trans)
        if B.shape[-1] == 1 and L.shape[:-2] == B.shape[:-2] and many(L):
            return substitute(L.reshape(-1, *L.shape[-2:]), B, trans)
        lead = np.broadcast_shapes(L.shape[:-2], B.shape[:-2])
        L = np.broadcast_to(L, (*lead, *L.shape[-2:])).reshape(-1, *L.shape[-2:])
        B = np.broadcast_to(B, (*lead, *B.shape[-2:])).reshape(-1, *B.shape[-2:])
        out = np.empty(B.shape, dtype=B.dtype)
        for i in range(out.shape[0]):
            out[i] = self.solve_triangular(L[i], B[i], trans)
        return out.reshape(*lead, *B.shape[-2:])

    def inverse_factor(self, L: Array) -> Array:
        n = L.shape[-1]
        if many(L):
            return inverses(L.reshape(-1, n, n)).reshape(L.shape)
        flat = L.reshape(-1, n, n)
        out = np.empty(flat.shape, dtype=L.dtype)
        trtri = _blas("trtri", self._kind)
        with _calm(n):
            for i, one in enumerate(flat):
                out[i] = trtri(one.T, lower=0)[0].T
        return out.reshape(L.shape)

    def special(self, name: Special, a: Array) -> Array:
        import scipy.special

        return np.asarray(getattr(scipy.special, name)(a))

    def half_spectrum(self, u: Array, ndim: int) -> Array:
        _keep_freed_memory()
        out = np.fft.rfftn(u, axes=tuple(range(-ndim, 0)))
        # A complex number is a pair of real ones in memory.
        return np.ascontiguousarray(out).view(u.dtype).reshape(*u.shape[: u.ndim - ndim], -1)

    def from_half_spectrum(self, h: Array, shape: tuple[int, ...]) -> Array:
        kind = np.result_type(h.dtype, np.complex64)
        half = np.ascontiguousarray(h).view(kind)
        half = half.reshape(*h.shape[:-1], *shape[:-1], shape[-1] // 2 + 1)
        return np.fft.irfftn(half, s=shape, axes=tuple(range(-len(shape), 0)))

    def sparse_matrix(
        self, rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, shape: tuple[int, int]
    ) -> Array:
        from scipy.sparse import coo_array

        return coo_array((weights.astype(self.dtype), (rows, columns)), shape=shape).tocsr()

    def sparse_times(self, S: Array, values: Array) -> Array:
        if values.ndim == 1:
            return S @ values
        flat = values.reshape(-1, values.shape[-1])
        out = np.empty((flat.shape[0], S.shape[0]), dtype=values.dtype)
        for i, row in enumerate(flat):
            out[i] = S @ row
        return out.reshape(*values.shape[:-1], S.shape[0])

    def scatter_plan(self, index: np.ndarray, n: int) -> Array:
        return index

    def scatter_add(self, total: Array, plan: Array, values: Array) -> Array:
        # One axis at a time takes the fast path of add.at, several times that of rows.
        r = total.shape[1]
        flat = np.ascontiguousarray(total).reshape(-1)
        for a in range(r):
            np.add.at(flat, plan * r + a, np.ascontiguousarray(values[:, a]))
        return flat.reshape(total.shape)

    @property
    def _kind(self) -> str:
        return np.dtype(self.dtype).char


def numpy_backend(dtype: DType = np.float64) -> NumpyBackend:
    """The NumPy backend of a floating dtype."""
    return NumpyBackend(xp, "cpu", np.dtype(dtype))


__all__ = ["NumpyBackend", "numpy_backend"]
