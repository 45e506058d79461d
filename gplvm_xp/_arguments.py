"""The options of the command ``gplvm-xp``. Only argparse is imported: ``--help`` is immediate."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from gplvm_xp import __version__

# The loader of each table, and its arguments.
DATASETS: dict[str, tuple[str, dict[str, str]]] = {
    "digits": ("load_digits", {}),
    "oil_flow": ("fetch_oil_flow", {}),
    "pbmc": ("fetch_pbmc", {}),
    "pbmc_counts": ("fetch_pbmc", {"table": "counts"}),
    "congress109": ("load_congress109", {}),
    "frey_faces": ("fetch_frey_faces", {}),
    "vowels": ("fetch_vowels", {}),
    "shuttle": ("fetch_shuttle", {}),
    "swiss_roll": ("fetch_swiss_roll", {}),
}
KERNELS = {
    "rbf": "RBF",
    "matern32": "Matern32",
    "matern52": "Matern52",
    "rq": "RationalQuadratic",
    "linear": "Linear",
    "bias": "Constant",
    "white": "White",
}
MODELS = ("exact", "bayesian", "sparse", "minibatch", "local")
# What they are called here, and by the library.
LIKELIHOODS = {
    "gaussian": None,
    "poisson": "poisson",
    "negative-binomial": "negative_binomial",
    "probit": "probit",
    "logit": "logit",
    "student-t": "student_t",
}


class _Parser(argparse.ArgumentParser):
    """Wrong usage is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"gplvm-xp: error: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The parser; it sets ``command`` to the command's name."""
    top = _Parser(
        prog="gplvm-xp",
        description="Gaussian process latent variable models: a table in, a map of its rows out.",
    )
    top.add_argument("--version", action="version", version=f"gplvm-xp {__version__}")
    commands = top.add_subparsers(
        title="commands", dest="command", required=True, metavar="COMMAND"
    )

    text = "fit a latent space to a table; writes PREFIX.npz, PREFIX.csv and PREFIX.png"
    embed = commands.add_parser(
        "embed",
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog="Example: gplvm-xp embed --dataset digits --max-iter 100 --out digits",
    )
    _input_options(embed)
    embed.add_argument("--dataset", choices=sorted(DATASETS), help="a known table instead of INPUT")
    add = embed.add_argument_group("model and fit").add_argument
    add(
        "--model",
        choices=MODELS,
        default="exact",
        help="exact: every row, points; bayesian: latents with uncertainty, useless dimensions "
        "switched off; sparse: points, by inducing inputs; minibatch: the bayesian model by "
        "batches of rows, also for counts and classes; local: points, by likelihoods of near rows, "
        "for very many (exact)",
    )
    add(
        "-q", "--components", type=int, metavar="N",
        help="latent dimensions (exact, sparse, local: 2; bayesian, minibatch: 10, or fewer "
        "columns)",
    )  # fmt: skip
    add(
        "--kernel",
        default="rbf",
        metavar="K",
        help=f"{', '.join(KERNELS)}, or a sum such as rbf+linear+bias (rbf)",
    )
    starts = ("pca", "ppca", "random", "isomap", "spectral", "kernel_pca")
    add("--init", choices=starts, default="pca", help="starting latents (pca)")
    add("--scale", action="store_true", help="divide each column by its standard deviation")
    add(
        "--max-iter", type=int, metavar="N",
        help="optimiser steps (all but minibatch; 500; local: 1000)",
    )  # fmt: skip
    add(
        "--tol",
        type=float,
        metavar="X",
        help="gradient tolerance (all but minibatch; exact: 1e-5, local: 1e-3, others: 1e-4)",
    )
    add("--time-limit", type=float, metavar="S", help="stop after S seconds, keeping the best")
    add("--dtype", choices=("float64", "float32"), default="float64", help="(float64)")
    add("--seed", type=int, default=0, metavar="N", help="for random starts and batches (0)")
    add("--no-plot", action="store_true", help="write no picture")
    add = embed.add_argument_group("options of some models").add_argument
    add("--restarts", type=int, metavar="N", help="further starts (all but minibatch; 0)")
    add(
        "--inducing", type=int, metavar="M",
        help="inducing inputs: more are slower and closer to the exact model (bayesian, sparse, "
        "minibatch)",
    )  # fmt: skip
    add(
        "--back-constraint", choices=("kernel", "mlp"),
        help="latents as a function of the data, so that near rows stay near and transform is fast "
        "(exact, bayesian, minibatch; none)",
    )  # fmt: skip
    add("--approximation", choices=("vfe", "fitc", "dtc"), help="of the evidence (sparse; vfe)")
    words = tuple(LIKELIHOODS)
    add(
        "--likelihood",
        choices=words,
        help="of the entries; others than gaussian are fitted by minibatches (bayesian, minibatch; "
        "gaussian)",
    )
    add(
        "--exposure", choices=("total",),
        help="of counts: each row's mean counts are in proportion to its total, as those of cells "
        "and documents (bayesian, minibatch; alike)",
    )  # fmt: skip
    add("--batch-size", type=int, metavar="N", help="rows of a step (minibatch, local)")
    add(
        "--epochs", type=int, metavar="N",
        help="passes over the rows (minibatch: enough for most; local: 50)",
    )  # fmt: skip
    add(
        "--inference", choices=("vecchia", "neighbourhood"),
        help="by all rows at once, or by steps that each look at some neighbourhoods, with "
        "--batch-size and --epochs (local; vecchia)",
    )  # fmt: skip
    add(
        "--neighbours", type=int, metavar="R",
        help="rows that a row is looked at with: more are slower and closer to the exact model "
        "(local; 32)",
    )  # fmt: skip
    add(
        "--engine",
        choices=("serial", "dask", "mpi"),
        help="workers for shards of rows (bayesian with Gaussian noise)",
    )
    _output_options(embed, "INPUT_gplvm")

    text = "latents of new rows under a saved model; writes PREFIX.csv"
    transform = commands.add_parser(
        "transform", help=text, description=text[0].upper() + text[1:] + "."
    )
    transform.add_argument("model", metavar="MODEL", help="PREFIX.npz of gplvm-xp embed")
    _input_options(transform)
    _output_options(transform, "INPUT_latents")

    _rate_map(commands)

    text = "versions, backends, why no GPU, threads"
    info = commands.add_parser("info", help=text, description=text[0].upper() + text[1:] + ".")
    info.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return top


def _rate_map(commands: argparse._SubParsersAction[_Parser]) -> None:
    text = "rate of events with its uncertainty; writes PREFIX.npz, PREFIX-model.npz and PREFIX.png"
    command = commands.add_parser(
        "rate-map",
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog="Example: gplvm-xp rate-map --events spikes.csv --positions track.csv "
        "--time-step 0.02 --shape 64 64 --kernel hexagonal --period 0.4 --out map",
    )
    add = command.add_argument_group("data").add_argument
    add("--events", required=True, metavar="FILE", help="a place (or time) in each row")
    add("--positions", metavar="FILE", help="where the observer was; default: everywhere alike")
    add("--time-step", type=float, metavar="S", help="seconds from one position to the next")
    add(
        "--columns", nargs="+", metavar="COL",
        help="the coordinates, by names or numbers from 0 (all columns)",
    )  # fmt: skip
    _reading_options(add)
    add = command.add_argument_group("model and fit").add_argument
    add("--shape", nargs="+", type=int, default=[64], metavar="N", help="cells of each axis (64)")
    add(
        "--extent", nargs="+", type=float, metavar="X",
        help="low and high end of each axis in turn (the box around the data)",
    )  # fmt: skip
    add(
        "--periodic", nargs="*", type=int, metavar="AXIS",
        help="the domain closes on itself, along these axes or along all",
    )  # fmt: skip
    add("--kernel", choices=("rbf", "matern32", "matern52", "hexagonal"), default="rbf",
        help="(rbf)")  # fmt: skip
    add("--lengthscale", type=float, metavar="X", help="to start from (found from the data)")
    add("--period", type=float, metavar="X", help="of the hexagonal kernel, to start from")
    add("--orientation", type=float, default=0.0, metavar="DEG", help="the same, degrees (0)")
    words = ("poisson", "negative-binomial")
    add("--likelihood", choices=words, default="poisson", help="of the counts (poisson)")
    add("--level", type=float, default=0.9, metavar="P", help="of the credible interval (0.9)")
    add("--no-optimize", action="store_true", help="keep the kernel that is started from")
    add("--threshold", type=float, default=0.01, metavar="X",
        help="retain waves of this part of the largest prior variance (0.01)")  # fmt: skip
    add("--max-frequencies", type=int, default=3000, metavar="N", help="refuse more (3000)")
    add("--max-iter", type=int, default=100, metavar="N", help="optimiser steps (100)")
    add("--tol", type=float, default=1e-4, metavar="X", help="gradient tolerance (1e-4)")
    add("--time-limit", type=float, metavar="S", help="stop after S seconds, keeping the best")
    add("--dtype", choices=("float64", "float32"), default="float64", help="(float64)")
    add("--no-plot", action="store_true", help="write no picture")
    _output_options(command, "EVENTS_rate")


def _input_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "input", nargs="?", metavar="INPUT", help=".csv, .tsv, .txt (also .gz), .npy or .npz"
    )
    add = command.add_argument_group("reading INPUT").add_argument
    column = "column, by name or number from 0 (-1: the last)"
    add("--index", metavar="COL", help=f"{column}, that names the rows")
    add("--labels", metavar="COL", help=f"{column}, of classes: to colour by, and to judge")
    add("--drop", metavar="COL", action="append", default=[], help="leave out (repeatable)")
    _reading_options(add)
    add("--rows", type=int, metavar="N", help="only the first N rows")


def _reading_options(add: Callable[..., argparse.Action]) -> None:
    add(
        "--header",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether the first line holds names (default: find out)",
    )
    add("--key", metavar="NAME", help="the array of an .npz")
    add("--delimiter", metavar="C", help="a character, or comma, semicolon, tab, space")
    add(
        "--missing",
        metavar="WORD",
        action="append",
        default=[],
        help="means missing, besides empty cells, NA, NaN, null, None (repeatable)",
    )


def _output_options(command: argparse.ArgumentParser, default: str) -> None:
    add = command.add_argument_group("running").add_argument
    add("--out", metavar="PREFIX", help=f"start of the output files ({default})")
    add("--backend", choices=("auto", "numpy", "cupy", "torch"), help="where to compute (numpy)")
    add("--quiet", action="store_true", help="no progress bar and no summary")
    add("--debug", action="store_true", help="show the traceback of an error")


__all__ = ["DATASETS", "KERNELS", "LIKELIHOODS", "MODELS", "parser"]
