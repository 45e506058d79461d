"""What dense and grid models share: hyperparameters by name, the inner search, the envelope.

At the optimal posterior the free energy's gradient in the hyperparameters is its explicit
derivative (the envelope theorem); it is first-order wrong in what is left of the inner gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.kernels import Kernel
from gplvm_xp.optim import newton_krylov
from gplvm_xp.params import Block, Layout
from gplvm_xp.posteriors import Cholesky
from gplvm_xp.variational.engines import Covariance, Engine, Information
from gplvm_xp.variational.free_energy import FreeEnergy
from gplvm_xp.variational.observations import Observations
from gplvm_xp.variational.parts import fixed_point_by_parts
from gplvm_xp.variational.sites import SiteProgress, SiteResult, SiteStatus, chosen, fixed_point


class Evidence(ABC):
    """The optimal free energy as a function of kernel, likelihood and mean parameters.

    Mutable in one thing: ``result``, the last posterior that was found, is the next search's start.
    """

    def __init__(
        self,
        kernel: Kernel,
        data: Observations,
        mean: Block,
        tol: float,
        max_steps: int,
        callback: Callable[[SiteProgress], bool | None] | None,
    ) -> None:
        self.data, self.mean = data, mean
        self.tol, self.max_steps, self.callback = tol, max_steps, callback
        self.result: SiteResult | None = None
        self._use(kernel)

    def _use(self, kernel: Kernel) -> None:
        """Take starting values and structure from a kernel."""
        self.kernel = kernel
        self._blocks = (*kernel.blocks(), *self.data.likelihood.blocks(), self.mean)
        self.layout = Layout(tuple(block for block in self._blocks if not block.fixed))

    @property
    def backend(self) -> Backend:
        """Where the data is."""
        return backend.of(self.data.y)

    def start(self) -> Array:
        """The flat vector of the free parameters' starting values, on the device."""
        return self.backend.asarray(self.layout.start())

    def named(self, x: Array) -> dict[str, Array]:
        """Every parameter by name at a flat vector, fixed ones included, natural space."""
        b = self.backend
        values = self.layout.unpack(x)[0] if self.layout.size else {}
        return {
            block.name: values[block.name] if block.name in values else b.asarray(block.value)
            for block in self._blocks
        }

    # A point that fails is a value: NumPy need not warn of the infinities on the way to it.
    @np.errstate(all="ignore")
    def value_and_grad(self, x: Array) -> tuple[Array, Array]:
        """𝓕 (0-d, nats, summed over leading axes) and its gradient in the flat vector; +inf where
        no posterior was found."""
        b, xp = self.backend, self.backend.xp
        values = self.named(x)
        engine, data = self._problem(values)
        result = self._search(engine, data)
        if result.status == "interrupted":
            # Ctrl-C was meant for the search around this one.
            raise KeyboardInterrupt
        gradients = self._gradients(values, engine, data, result)
        own = data.likelihood.blocks()
        if any(not block.fixed for block in own):
            gradients |= by_name(own, data.theta_gradient(result.m, result.v))
        free = {block.name for block in self.layout.blocks}
        to_gradient = self.layout.unpack(x)[1]
        g = to_gradient({name: g for name, g in gradients.items() if name in free})
        f = b.asarray(result.free_energy.sum())
        fine = xp.isfinite(f) & xp.all(xp.isfinite(g))
        return xp.where(fine, f, xp.asarray(xp.inf, dtype=b.dtype, device=b.device)), g

    @abstractmethod
    def _problem(self, values: dict[str, Array]) -> tuple[Engine, Observations]:
        """The engine and the data at named hyperparameters."""

    @abstractmethod
    def _gradients(
        self, values: dict[str, Array], engine: Engine, data: Observations, result: SiteResult
    ) -> dict[str, Array]:
        """Explicit derivatives of 𝓕 in the kernel's parameters and "mean", natural space."""

    def _flat(self, values: dict[str, Array], blocks: tuple[Block, ...]) -> Array:
        b = self.backend
        parts = [b.xp.reshape(values[k.name], (k.size,)) for k in blocks]
        return b.xp.concat(parts) if parts else b.zeros((0,))

    def _likelihood(self, values: dict[str, Array]) -> Observations:
        return replace(self.data, theta=self._flat(values, self.data.likelihood.blocks()))

    def _search(self, engine: Engine, data: Observations) -> SiteResult:
        """Fixed point from the last result; where that fails, from scratch, then Newton-Krylov from
        the better of the two."""
        ends: list[SiteResult] = []
        starts = [None if self.result is None else (self.result.p, self.result.y), None]
        for sites in starts[self.result is None :]:
            result = fixed_point_by_parts(
                engine, data, sites=sites, tol=self.tol, max_steps=self.max_steps,
                callback=self.callback,
            )  # fmt: skip
            if result.status not in ("failed", "max_steps"):
                break
            ends.append(result)
        else:
            warm, cold = ends[0], ends[-1]
            result = chosen(self.backend, cold.free_energy <= warm.free_energy, cold, warm)
            result = polish(engine, data, result, tol=self.tol)
        # A search that failed may have ended anywhere: no place to start the next one.
        if self.result is None or result.converged.all():
            self.result = result
        return result


def polish(
    engine: Engine, data: Observations, result: SiteResult, *, tol: float = 1e-8
) -> SiteResult:
    """Go on with Newton-Krylov in (μ, Cholesky factor) where the fixed point gave up.

    The sites are those that the optimum implies: p = s, y̌ = s∘Bμ − r.
    """
    b = backend.of(data.y)
    own, seen, mu, shift = engine, data, result.mu, b.scalar(0.0)
    if isinstance(engine, Covariance):
        own, shift = engine.whitened(), engine.prior_mean
        seen = replace(data, offset=shift if data.offset is None else shift + data.offset)
        mu = b.xp.squeeze(b.solve_factor(own.B.matrix(mu), (mu - shift)[..., None]), axis=-1)
    assert isinstance(own, Information)
    root = own.covariance(result.p)[1]
    Sigma = root @ b.xp.matrix_transpose(root)
    free = FreeEnergy(own.prior, own.B, Cholesky(), seen, mean=own.mean)
    found = newton_krylov(free.at, free.start(mu, b.factor(Sigma)[0]), gtol=tol)
    t, m = (point := free.at(found.x)).terms, point.m + shift
    implied = fixed_point(engine, data, sites=(t.s, t.s * m - t.r), max_steps=0)
    # Away from an optimum these sites need not be a posterior, nor a better one.
    better = implied.free_energy <= result.free_energy + 1e-9 * (1.0 + np.abs(result.free_energy))
    done = result.converged | (better & found.converged)
    status: SiteStatus = "converged" if done.all() else "failed"
    return replace(
        chosen(b, better, implied, result),
        change=np.where(better, 0.0, result.change),
        steps=result.steps + found.steps,
        rejected=result.rejected + found.rejected,
        converged=done,
        status=status,
        message=f"fixed point, then Newton-Krylov: {found.message}",
        free_energies=(*result.free_energies, *found.values),
    )


def by_name(blocks: tuple[Block, ...], flat: Array) -> dict[str, Array]:
    """A flat vector of some blocks' values as arrays by name, each in its own shape."""
    xp = backend.of(flat).xp
    where = Layout(blocks).slices()
    return {k.name: xp.reshape(flat[where[k.name]], k.value.shape) for k in blocks}


__all__ = ["Evidence", "by_name", "polish"]
