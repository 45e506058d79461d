"""The command ``rate-map``: tables of events and positions to a map of their rate."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gplvm_xp.cli import _shared as shared
from gplvm_xp.cli._shared import UsageError

if TYPE_CHECKING:
    import numpy as np

    from gplvm_xp._tables import Table

_SUFFIXES = (".npz", "-model.npz", ".png")


def rate_map(args: argparse.Namespace) -> int:
    """Fit a log-Gaussian Cox process and write rate, interval, model and picture."""
    import numpy as np

    from gplvm_xp.estimators import LogGaussianCoxProcess

    if (args.positions is None) != (args.time_step is None):
        raise UsageError(
            "--positions and --time-step belong together: give the seconds from one row of the "
            "positions to the next"
        )
    if not 0.0 < args.level < 1.0:
        raise UsageError(f"--level {args.level} was given; expected a number between 0 and 1")
    events, names = _places(args.events, args, None)
    positions = None
    if args.positions is not None:
        positions, names = _places(args.positions, args, names)
        if positions.shape[1] != events.shape[1]:
            raise UsageError(
                f"{args.events} has {events.shape[1]} columns and {args.positions} has "
                f"{positions.shape[1]}; expected the same coordinates: choose them by --columns"
            )
    name = shared.stem(Path(args.events))
    prefix = Path(args.out if args.out is not None else f"{name}_rate")
    suffixes = _SUFFIXES[: 2 if args.no_plot else 3]
    shared.check_output(prefix, suffixes, args.events, args.positions)
    d = events.shape[1]
    extent = _pairs(args.extent, d)
    model = LogGaussianCoxProcess(
        shape=args.shape[0] if len(args.shape) == 1 else tuple(args.shape),
        extent=extent,
        periodic=_flags(args.periodic, d),
        kernel=_kernel(args, events, positions, extent),
        likelihood=args.likelihood.replace("-", "_"),
        optimize=not args.no_optimize,
        threshold=args.threshold,
        max_frequencies=args.max_frequencies,
        max_iter=args.max_iter,
        tol=args.tol,
        time_limit=args.time_limit,
        progress=not args.quiet,
        backend=args.backend,
        dtype=args.dtype,
    )
    begin = time.perf_counter()
    with shared.notes():
        model.fit(events, positions=positions, time_step=args.time_step)
    seconds = time.perf_counter() - begin
    if names is not None:
        model.feature_names_in_ = np.asarray(names, dtype=object)
    lower, upper = model.interval(args.level)
    written = [shared.with_suffix(prefix, suffix) for suffix in suffixes]
    _write_arrays(written[0], model, lower, upper, args.level)
    model.save(written[1])
    if not args.no_plot:
        from gplvm_xp import plot

        figure = lambda: plot.rate_map(model, level=args.level).figure  # noqa: E731
        if not shared.picture(written[2], figure):
            written.pop()
    if not args.quiet:
        _summary(model, name, seconds, written)
    return shared.ended(model)


def _places(
    path: str, args: argparse.Namespace, like: tuple[str, ...] | None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Coordinates of a table, and their names where the file has them.

    Without ``--columns`` all of them; or those that are named as in the table before.
    """
    from gplvm_xp._tables import Options

    options = Options(
        header=args.header,
        delimiter=shared.delimiter(args.delimiter),
        key=args.key,
        missing=tuple(args.missing),
    )
    table = shared.table(Path(path), options)
    chosen = list(range(len(table.columns)))
    if args.columns is not None:
        chosen = [_column(word, table, path) for word in args.columns]
    elif like is not None and table.named and set(like) <= set(table.columns):
        chosen = [table.columns.index(name) for name in like]
    names = tuple(table.columns[j] for j in chosen) if table.named else like
    return table.values[:, chosen], names


def _column(word: str, table: Table, path: str) -> int:
    width = len(table.columns)
    if word in table.columns:
        return table.columns.index(word)
    if word.isdecimal() and int(word) < width:
        return int(word)
    shown = ", ".join(map(repr, table.columns[:10]))
    raise UsageError(
        f"--columns {word}: {path} has no such column; expected some of {shown}, or numbers from 0 "
        f"to {width - 1}"
    )


def _pairs(numbers: list[float] | None, d: int) -> tuple[tuple[float, float], ...] | None:
    if numbers is None:
        return None
    if len(numbers) != 2 * d:
        raise UsageError(
            f"--extent has {len(numbers)} numbers and there are {d} coordinates; expected a low "
            f"and a high end for each, {2 * d} numbers"
        )
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _flags(axes: list[int] | None, d: int) -> bool | tuple[bool, ...]:
    """What --periodic says: not given, for all axes, or for some."""
    if axes is None or not axes:
        return axes is not None
    wrong = [axis for axis in axes if not 0 <= axis < d]
    if wrong:
        raise UsageError(f"--periodic {wrong[0]} was given; expected axes from 0 to {d - 1}")
    return tuple(axis in axes for axis in range(d))


def _kernel(
    args: argparse.Namespace,
    events: np.ndarray,
    positions: np.ndarray | None,
    extent: tuple[tuple[float, float], ...] | None,
) -> Any:
    """The kernel by its word and starting values; None is the model's own choice."""
    import numpy as np

    from gplvm_xp import kernels

    if (args.period is None) == (args.kernel == "hexagonal"):
        raise UsageError(
            "--kernel hexagonal and --period belong together: give the distance of neighbouring "
            "fields, about right, to start from"
        )
    if args.kernel == "hexagonal":
        ell = 1.5 * args.period if args.lengthscale is None else args.lengthscale
        return kernels.Hexagonal(1.0, args.period, np.deg2rad(args.orientation), ell)
    if args.kernel == "rbf" and args.lengthscale is None:
        return None
    kind: dict[str, Any] = {
        "rbf": kernels.RBF,
        "matern32": kernels.Matern32,
        "matern52": kernels.Matern52,
    }
    ell = args.lengthscale
    if ell is None:
        both = events if positions is None else np.concatenate([events, positions])
        ends = np.array(extent).T if extent is not None else _span(both)
        ell = tuple(0.1 * (ends[1] - ends[0]))
    return kind[args.kernel](1.0, ell)


def _span(places: np.ndarray) -> np.ndarray:
    """Lower and upper ends of each column, (2, d); anything that is wrong the model will say."""
    import numpy as np

    known = places[np.all(np.isfinite(places), axis=1)]
    ends = np.stack([known.min(axis=0), known.max(axis=0)]) if known.size else np.zeros((2, 1))
    return np.where(ends[1] > ends[0], ends, np.array([[0.0], [1.0]]))


def _write_arrays(path: Path, model: Any, lower: Any, upper: Any, level: float) -> None:
    import numpy as np

    from gplvm_xp.io import replacing

    edges = {f"edges_{axis}": ends for axis, ends in enumerate(model.edges_)}
    with replacing(path) as file:
        np.savez(
            file,
            rate=model.rate_,
            lower=lower,
            upper=upper,
            level=level,
            log_rate_mean=model.log_rate_mean_,
            log_rate_var=model.log_rate_var_,
            counts=model.counts_,
            exposure=model.exposure_,
            **edges,
        )


def _summary(model: Any, name: str, seconds: float, written: list[Path]) -> None:
    import numpy as np

    cells = " x ".join(map(str, model.counts_.shape))
    seen = int(np.count_nonzero(model.exposure_ > 0.0))
    kernel = ", ".join(
        f"{block.name} " + " ".join(f"{v:.4g}" for v in block.value.ravel())
        for block in (*model.kernel_.blocks(), *model.likelihood_.blocks())
    )
    lines = [
        ("events", f"{name}: {model.counts_.sum():g} on {cells} cells, {seen} of them observed"),
        ("exposure", f"{model.exposure_.sum():.6g}, overall rate "
         f"{model.counts_.sum() / model.exposure_.sum():.4g}"),
        ("kernel", kernel),
        ("fit", f"{model.status_}, {model.n_iter_} steps in {seconds:.1f} s, "
         f"{model.n_frequencies_} frequencies"),
        ("evidence bound", f"{model.elbo_:.6g} nats"),
        ("rate", f"{np.min(model.rate_):.4g} to {np.max(model.rate_):.4g} per unit of exposure"),
        ("written", ", ".join(map(str, written))),
    ]  # fmt: skip
    for title, text in lines:
        print(f"{title:<16}{text}")


__all__ = ["rate_map"]
