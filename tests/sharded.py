"""A small table over shards, for the tests of every engine."""

from __future__ import annotations

import numpy as np

from gplvm_xp.kernels import RBF
from gplvm_xp.objectives.sharded import Globals
from gplvm_xp.objectives.sharded_fit import ShardedSettings, fit_sharded
from gplvm_xp.optim import Limits

N, D, Q, M = 63, 5, 2, 8
KERNEL = RBF(1.0, (0.5, 0.7))


def table(n=N, missing=False, seed=0):
    """Y (n, D) with an offset, and starting latents (n, q)."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, Q))
    Y = 3.0 + np.sin(X @ rng.normal(size=(Q, D))) + 0.1 * rng.normal(size=(n, D))
    if missing:
        Y[rng.random(Y.shape) < 0.1] = np.nan
        Y[:, 1] = np.where(np.isnan(Y[:, 0]), np.nan, 0.5 * Y[:, 0])
    return Y, X + 0.3 * rng.normal(size=X.shape)


def start(mu):
    """Starting values of what all rows share."""
    return Globals(KERNEL, 0.05, mu[:: mu.shape[0] // M][:M].copy())


def fit(Y, mu, n_shards=4, steps=25, callback=None, **options):
    """A short fit; without ``n_shards`` for a Dask array."""
    settings = ShardedSettings(
        limits=Limits(max_steps=steps, gtol=0.0, ftol=None, callback=callback), jitter=1e-6
    )
    first = options.pop("first", None) or start(mu)
    return fit_sharded(
        Y, first, kernel=KERNEL, mu=mu, n_shards=n_shards, settings=settings, **options
    )


def same_bits(a, b):
    """Whether two fits are equal to the last bit."""
    pairs = [
        (a.mu, b.mu), (a.S, b.S), (a.end.Z, b.end.Z), (a.end.kernel.theta(), b.end.kernel.theta()),
        (a.end.noise, b.end.noise), (a.mean, b.mean), (a.factor, b.factor), (a.curve, b.curve),
        (a.table.mean, b.table.mean), (a.result.grad_norms, b.result.grad_norms),
    ]  # fmt: skip
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)
