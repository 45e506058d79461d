"""The variational half on a GPU: batches of rate maps, gather and scatter, Hessian products.

Nothing here needs CuPy itself: with a NumPy backend the same code runs on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu.machine import Machine, Row, guarded, row
from benchmarks.maps import Maps, retained, simulated_cells
from benchmarks.newton import free_energy
from gplvm_xp import backend
from gplvm_xp.operators import Dense, Hartley
from gplvm_xp.variational import fixed_point

CELLS, FEW = 256, 8
# Bytes a second of the memory that the other floors assume.
BANDWIDTH = 4.3e12


def rate_maps(m: Machine, max_n: int) -> Iterator[Row]:
    """256 maps as one batch: time, and the ratio to one after the other on the same device."""
    for side, frequencies in ((64, 139), (128, 139)):
        if side * side <= max_n and m.fits(side * side, 0.1):
            yield from _maps_at(m, simulated_cells(CELLS, side, frequencies))


def _maps_at(m: Machine, maps: Maps) -> Iterator[Row]:
    n, what = maps.basis.rows, f"{maps.shape[0]} × {maps.shape[1]}, R = {maps.basis.cols}"

    def batch() -> Row:
        engine, data = maps.engine(m.b), maps.data(m.b)
        seconds = m.median(lambda: fixed_point(engine, data), 3)
        singles = [maps.data(m.b, i) for i in range(FEW)]
        alone = m.median(lambda: [fixed_point(engine, one) for one in singles], 3) / FEW
        each = seconds / CELLS
        result = fixed_point(engine, data)
        # The same maps by the reference backend.
        host = backend.get("numpy")
        check = fixed_point(maps.engine(host), maps.data(host, slice(FEW)))
        f = check.free_energy
        apart = float(np.max(np.abs(result.free_energy[:FEW] - f) / np.abs(f)))
        return row(
            f"{CELLS} maps, {what}", n, seconds, ms_per_map=1e3 * each, ratio=alone / each,
            error_norm=apart, note=result.status,
        )  # fmt: skip

    yield guarded(f"{CELLS} maps, {what}", n, batch)


def gather_scatter(m: Machine, max_n: int) -> Iterator[Row]:
    """``Hartley.gram`` and ``quad`` against their memory traffic, and explicit products."""
    side = 128
    if side * side > max_n:
        return
    rng = np.random.default_rng(0)
    k = side * np.fft.fftfreq(side)
    decay = np.exp(-0.01 * (k[:, None] ** 2 + 1.1 * k[None, :] ** 2))
    for frequencies in (139, 511):
        basis = Hartley((side, side), retained(decay, frequencies))
        for fields in (1, 64, CELLS):
            if m.fits(frequencies, 6.0 * fields):
                yield from _products(m, basis, fields, rng)
        dense = Dense(m.b.asarray(np.ascontiguousarray(basis.basis().T)))
        if m.fits(side * side, 0.2):
            yield from _products(m, dense, 1, rng)


def _products(
    m: Machine, B: Hartley | Dense, fields: int, rng: np.random.Generator
) -> Iterator[Row]:
    N, R = B.rows, B.cols
    lead = (fields,) if fields > 1 else ()
    p = m.b.asarray(rng.uniform(0.1, 2.0, (*lead, N)))
    C = m.b.asarray(rng.standard_normal((*lead, R, R)))
    # Fields and spectra go through memory once, C + Cᵀ once more.
    traffic = {"gram": 3.0 * N + R * R, "quad": 3.0 * N + 3.0 * R * R}
    kind = "" if isinstance(B, Hartley) else "explicit "
    works: dict[str, Callable[[], Any]] = {"gram": lambda: B.gram(p), "quad": lambda: B.quad(C)}
    for name, work in works.items():
        what = f"{kind}{name}, R = {R}, {fields} at once"
        floor = None if kind else 8.0 * fields * traffic[name] / BANDWIDTH
        flops = 2.0 * N * R * R if kind else None
        yield guarded(what, N, partial(_timed, m, what, N, work, floor, flops))


def _timed(
    m: Machine,
    what: str,
    n: int,
    work: Callable[[], Any],
    floor: float | None = None,
    flops: float | None = None,
) -> Row:
    seconds = m.median(work)
    more = {} if floor is None else {"floor": floor, "ratio": seconds / floor}
    return row(what, n, seconds, flops, **more)


def hessian_products(m: Machine, max_n: int) -> Iterator[Row]:
    """One joint Hessian-vector product of the free energy, for one map and for 64 at once."""
    if max_n < 128 * 128:
        return
    for fields in (0, 64):
        for name, size, flops, work in free_energy(m.b, 1.0, fields):
            what = f"{name}, {size}" + (f", {fields} maps" if fields else "")
            yield guarded(what, 128 * 128, partial(_timed, m, what, 128 * 128, work, None, flops))


def every_sparse_product(m: Machine) -> None:
    """The sparse kernel on small inputs of all four kinds; for the sanitizer."""
    basis = Hartley((6, 5), np.array([[0, 0], [0, 1], [0, 4], [2, 3], [4, 2]]))
    rng = np.random.default_rng(0)
    p = m.b.asarray(rng.uniform(0.1, 2.0, (3, basis.rows)))
    A = basis.gram(p)
    m.b.to_host(basis.quad(A) + basis.apply(basis.adjoint(p)))


__all__ = ["every_sparse_product", "gather_scatter", "hessian_products", "rate_maps"]
