"""How far local likelihoods are from the exact one, and their gradients from its gradient.

At the start (PCA), at the latents that a fit by the exact likelihood finds or that the table was
made from, and at those that a search by nearest neighbours finds, for the same latents, kernel and
noise: the gap of the nearest-neighbour likelihood to the exact log-likelihood for each entry of the
table, and cosine and relative error of its gradient in the latents, for max-min and random orders;
the same of the mean direction of neighbourhoods, each a row with its R nearest (itself among them)
as if there were no others, over all rows. That direction is a sum over blocks that overlap R times,
so its relative error is that of the sum over R.

    python -m benchmarks.local_gap             # oil flow, and 10 000 rows of two tables
    python -m benchmarks.local_gap --quick     # oil flow, few steps, nothing written
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gplvm_xp import GPLVM, backend, datasets
from gplvm_xp.init import latents
from gplvm_xp.kernels import RBF, Kernel
from gplvm_xp.neighbours import maxmin, nearest, predecessors
from gplvm_xp.objectives import ExactObjective, groups_of
from gplvm_xp.objectives.local import joint
from gplvm_xp.objectives.local_sums import Blocks, summed
from gplvm_xp.objectives.vecchia import VecchiaObjective
from gplvm_xp.optim import minimise
from gplvm_xp.priors import Gaussian

GIVEN, NEIGHBOURHOODS, ROWS = (5, 10, 20, 40), (40, 80), 10_000


class State(NamedTuple):
    """Where likelihoods are compared."""

    name: str
    X: np.ndarray
    kernel: Kernel
    noise: float


def start(Y: np.ndarray, noise: float) -> State:
    """PCA, the widest column of unit deviation, and the kernel that a fit starts from."""
    X = latents("pca", Y, 2, np.random.default_rng(0))
    return State("PCA start", X, RBF(float(Y.var()), 0.5), noise)


def trained_exactly(Y: np.ndarray, steps: int) -> State:
    """The end of a fit by the exact likelihood."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = GPLVM(2, max_iter=steps).fit(Y)
    return State("exact fit", model.embedding_, model.kernel_, model.noise_variance_)


def trained_nearby(Y: np.ndarray, first: State, rounds: int) -> State:
    """A search by the nearest-neighbour likelihood, neighbours found again after a few steps.

    With more steps to a round, latents settle where rows overlap that are not given each other.
    """
    b, state = backend.get("numpy"), first
    for _ in range(rounds):
        order = maxmin(state.X)
        objective = VecchiaObjective(
            state.kernel, groups_of(b, Y), state.X, state.noise, order,
            predecessors(state.X, order, 20), latent_prior=Gaussian(),
        )  # fmt: skip
        result = minimise(objective.value_and_grad, objective.start(), max_steps=10)
        theta, noise, X = objective.values(result.x)
        state = State("nearest-neighbour fit", X, state.kernel.with_theta(theta), float(noise))
    return state


def compare(
    table: str, Y: np.ndarray, state: State, first: float | None
) -> Iterator[dict[str, Any]]:
    """One line for each approximation; ``first`` is the norm of the exact gradient at the start."""
    b = backend.get("numpy")
    n, q = state.X.shape
    rng = np.random.default_rng(0)
    groups = groups_of(b, Y)

    def latents_of(g: np.ndarray) -> np.ndarray:
        return g[-n * q :]

    begin = time.perf_counter()
    exact = ExactObjective(state.kernel, groups, state.X, state.noise)
    f, g = exact.value_and_grad(exact.start())
    g = latents_of(g)
    scale = np.linalg.norm(g) if first is None else first
    theta, noise, X = exact.values(exact.start())
    del exact
    head = {"table": table, "n": n, "at": state.name}
    yield head | {
        "likelihood": "exact", "order": "–", "R": n, "gap (nats)": 0.0, "cosine": 1.0,
        "relative error": 0.0, "error / norm at the start": 0.0, "norm": float(np.linalg.norm(g)),
        "seconds": time.perf_counter() - begin,
    }  # fmt: skip

    def line(
        name: str, order: str, R: int, gap: float | None, h: np.ndarray, seconds: float
    ) -> Any:
        return head | {
            "likelihood": name,
            "order": order,
            "R": R,
            "gap (nats)": gap,
            "cosine": float(g @ h / np.linalg.norm(g) / np.linalg.norm(h)),
            "relative error": float(np.linalg.norm(h - g) / np.linalg.norm(g)),
            "error / norm at the start": float(np.linalg.norm(h - g) / scale),
            "norm": float(np.linalg.norm(h)),
            "seconds": seconds,
        }

    for name, order in (("max-min", maxmin(state.X)), ("random", rng.permutation(n))):
        for R in GIVEN:
            objective = VecchiaObjective(
                state.kernel, groups, state.X, state.noise, order, predecessors(state.X, order, R)
            )
            begin = time.perf_counter()
            value, h = objective.value_and_grad(objective.start())
            seconds = time.perf_counter() - begin
            gap = float(f - value) / Y.size
            yield line("nearest neighbours", name, R, gap, latents_of(h), seconds)
    for R in NEIGHBOURHOODS:
        blocks = Blocks.of(b, nearest(state.X, R), *Y.shape)
        begin = time.perf_counter()
        total = summed(state.kernel, theta, noise, X, groups[0].Y, blocks, joint)
        seconds = time.perf_counter() - begin
        yield line("neighbourhoods", "–", R, None, -total.X.ravel() / R, seconds)


def tables(quick: bool) -> Iterator[tuple[str, np.ndarray, list[State]]]:
    """Name, centred table, and states; the PCA start first."""
    rounds = 2 if quick else 30
    oil = datasets.fetch_oil_flow().Y
    oil = oil - oil.mean(axis=0)
    first = start(oil, 0.1 * oil.var())
    fitted = trained_exactly(oil, 30 if quick else 1000)
    yield "oil flow", oil, [first, fitted, trained_nearby(oil, first, rounds)]
    if quick:
        return
    made = datasets.make_latent(ROWS, 12, 2, lengthscale=1.0, noise=0.1)
    Y = made.Y - made.Y.mean(axis=0)
    first = start(Y, 0.1 * Y.var())
    truth = State("latents it was made from", made.extra["latents"], RBF(1.0, 1.0), 0.01)
    yield "made, noise 0.1", Y, [first, truth, trained_nearby(Y, first, rounds)]
    Y = datasets.fetch_shuttle().Y[:ROWS]
    Y = (Y - Y.mean(axis=0)) / Y.std(axis=0)
    first = start(Y, 0.1)
    yield "shuttle", Y, [first, trained_nearby(Y, first, rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="oil flow, few steps, nothing written")
    given = parser.parse_args()
    rows = []
    for name, Y, states in tables(given.quick):
        first = None
        for state in states:
            for row in compare(name, Y, state, first):
                rows.append(row)
                print(row, flush=True)
                if first is None:
                    first = row["norm"]
    if given.quick:
        return
    from benchmarks.report import write

    write(
        "local_gap",
        "Local likelihoods beside the exact one",
        "python -m benchmarks.local_gap",
        rows,
        "Gap: approximate minus exact log-likelihood, over the n · D entries; it is no bound and "
        "has either sign. Gradients are those of the log-likelihood in the latents, with their "
        "norm; cosine and errors are those to the exact one: relative to its norm there, and to "
        "that of the exact one at the PCA start. R: neighbours that a row is given, or rows of a "
        "neighbourhood. Nearest-neighbour fit: R = 20, max-min, from the PCA start, 30 rounds of "
        "10 L-BFGS steps with neighbours found again in each, all parameters free, standard normal "
        "prior of the latents. Where a fit has ended the exact gradient is small, and cosines and "
        "relative errors say little. Seconds: one evaluation with its gradients, one thread, on a "
        "machine in use.",
    )


if __name__ == "__main__":
    main()
