"""Adam on the objective's own device."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.optim.base import Method, Run


def averaged(
    m: Array,
    v: Array,
    g: Array,
    age: Array | int,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> tuple[Array, Array, Array]:
    """One step of Adam's averages, and the direction that they give.

    m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², direction m̂/(√v̂ + ε) with m̂ = m/(1−β₁^age) and v̂ alike
    (Kingma & Ba 2015, algorithm 1).

    Parameters
    ----------
    m, v, g : arrays of one shape
        Averages of the gradient and of its square, and a new gradient.
    age : int, or array that broadcasts
        Gradients in the averages, the new one included, at least 1.
    """
    first, second = betas
    m = first * m + (1.0 - first) * g
    v = second * v + (1.0 - second) * g * g
    root = backend.of(g).xp.sqrt(v / (1.0 - second**age)) + epsilon
    return m, v, m / ((1.0 - first**age) * root)


@dataclass(frozen=True)
class Adam(Method):
    """Adam (Kingma & Ba, 2015) with an optional cosine decay; one host read per step.

    An evaluation that is not finite takes the iteration back to the best point with half the
    learning rate and empty averages. The result is the best point met, not the last. ``ftol`` is
    not used: in a method that is not monotone one small change says nothing.

    Attributes
    ----------
    learning_rate : float
        Length of a step in one coordinate, about.
    betas : tuple of float
        Decay of the averages of the gradient and of its square.
    epsilon : float
        Added to the root of the second average.
    cosine : bool
        Whether the rate falls to zero along half a cosine over ``max_steps``.
    max_failures : int
        Failed evaluations after which the search gives up.
    """

    learning_rate: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    cosine: bool = False
    max_failures: int = 30

    def search(self, run: Run, x0: Array) -> str:
        b, xp = run.backend, run.backend.xp
        x = x0
        value, g = run.evaluate(x)
        f, norm = b.to_host(xp.stack([value, xp.max(xp.abs(g))])).tolist()
        run.start(x, f, norm)
        best, best_g, best_f = x, g, f
        m = v = xp.zeros_like(x)
        rate, age, failures = self.learning_rate, 0, 0
        while failures <= self.max_failures:
            age += 1
            m, v, along = averaged(m, v, g, age, self.betas, self.epsilon)
            x = x - rate * self._decay(run) * along
            value, g = run.evaluate(x)
            f, norm = b.to_host(xp.stack([value, xp.max(xp.abs(g))])).tolist()
            if run.seen(x, f, norm):
                if f < best_f:
                    best, best_g, best_f = x, g, f
                run.accept(x, f, norm, ends=False)
            else:
                failures += 1
                x, g, rate, age = best, best_g, 0.5 * rate, 0
                m = v = xp.zeros_like(x)
        return (
            f"{failures} evaluations were not finite, the last at a learning rate of {rate:.3g}; "
            "start with a smaller one"
        )

    def _decay(self, run: Run) -> float:
        if not self.cosine:
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * run.steps / max(run.limits.max_steps, 1)))


__all__ = ["Adam", "averaged"]
