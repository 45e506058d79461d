"""Device memory of the emulator: arrays that touch memory which can't be accessed."""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections.abc import Sequence

import numpy as np

_PAGE = mmap.PAGESIZE
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
# Wide, so that a wrong row index does not jump over it; addresses cost nothing.
GUARD = 1 << 24
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
_PROT_NONE = 0
_POISON = 0xFF  # a NaN in float32 and float64, -1 in the integers


class GuardedBytes:
    """Memory between two inaccessible ranges.

    ``side="after"`` puts the last byte next to the range behind, so that the first byte beyond the
    end faults; ``side="before"`` does the same for the byte before the start. The rest of the last
    (first) page holds a pattern: reads there give NaN, and writes are seen by `untouched`.
    Pages are only backed by memory once they are written.
    """

    def __init__(self, size: int, side: str) -> None:
        whole = -(-size // _PAGE) * _PAGE
        self.size, self.slack, self.side = size, whole - size, side
        length = whole + 2 * GUARD
        base = _LIBC.mmap(None, length, _PROT_NONE, _FLAGS, -1, 0)
        if base in (None, ctypes.c_void_p(-1).value):
            raise MemoryError(f"mmap of {length} bytes: errno {ctypes.get_errno()}")
        weakref.finalize(self, _LIBC.munmap, base, length)
        start = base + GUARD
        if whole and _LIBC.mprotect(start, whole, mmap.PROT_READ | mmap.PROT_WRITE):
            raise MemoryError(f"mprotect: errno {ctypes.get_errno()}")
        self.low, self.high = base, base + length
        self.address = start + (self.slack if side == "after" else 0)
        self._slack_at = start if side == "after" else start + size
        ctypes.memset(self._slack_at, _POISON, self.slack)

    def untouched(self) -> bool:
        """Whether nothing was written next to the array."""
        return ctypes.string_at(self._slack_at, self.slack) == bytes([_POISON]) * self.slack

    def array(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """A C-contiguous view of the whole."""
        kind = ctypes.c_char * self.size
        raw = kind.from_address(self.address)
        raw.owner = self  # keeps the pages mapped as long as the view lives
        if self.size == 0:
            return np.empty(shape, dtype)
        return np.frombuffer(raw, dtype=dtype).reshape(shape)

    def describe(self, address: int) -> str:
        """Where an address lies relative to the array."""
        if address >= self.address + self.size:
            return f"{address - self.address - self.size} bytes after its end"
        return f"{self.address - address} bytes before its start"
