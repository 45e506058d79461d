"""The command ``gplvm-xp``: embed a table, transform more rows, say what this machine has.

Exit codes: 0 done; 1 the computation failed (no Cholesky factor, memory, no GPU, a file that can't
be written); 2 wrong usage or an input that can't be read; 130 interrupted, with the best state
written if there is one.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

# NumPy and everything above it are imported where they are used, so that --help is immediate.
from gplvm_xp._arguments import DATASETS, KERNELS, parser

if TYPE_CHECKING:
    import numpy as np

    from gplvm_xp._tables import Table

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_FEW_CLASSES = 50


class UsageError(Exception):
    """What was asked for can't be done as asked; the text is the one line that the user sees."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Without the program's name; default ``sys.argv[1:]``.

    Returns
    -------
    int
        The exit code (see the module).
    """
    try:
        args = parser().parse_args(argv)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else USAGE
    try:
        return _COMMANDS[args.command](args)
    except KeyboardInterrupt:
        _say("interrupted before there was anything to write")
        return INTERRUPTED
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        _say(f"error: {_line(error)}")
        return _code_of(error)


def _code_of(error: Exception) -> int:
    from gplvm_xp.errors import NotPositiveDefiniteError

    if isinstance(error, NotPositiveDefiniteError):
        return FAILED
    return USAGE if isinstance(error, UsageError | ValueError | TypeError) else FAILED


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


def _say(text: str) -> None:
    print(f"gplvm-xp: {text}", file=sys.stderr)


# -- the three commands --------------------------------------------------------------------------


def _embed(args: argparse.Namespace) -> int:
    table, name = _input(args)
    prefix = Path(args.out if args.out is not None else f"{name}_gplvm")
    _check_output(
        prefix, args.input, (".npz", ".csv") if args.no_plot else (".npz", ".csv", ".png")
    )
    import numpy as np

    from gplvm_xp.estimators import GPLVM

    model = GPLVM(
        n_components=args.components,
        kernel=_kernel(args.kernel, table.values),
        init=args.init,
        scale=args.scale,
        max_iter=args.max_iter,
        tol=args.tol,
        n_restarts=args.restarts,
        time_limit=args.time_limit,
        progress=not args.quiet,
        backend=args.backend,
        dtype=args.dtype,
        random_state=args.seed,
    )
    begin = time.perf_counter()
    with _notes():
        model.fit(table.values)
    seconds = time.perf_counter() - begin
    if table.named:
        model.feature_names_in_ = np.asarray(table.columns, dtype=object)
    written = [_with_suffix(prefix, ".npz"), _with_suffix(prefix, ".csv")]
    model.save(written[0])
    _write_csv(written[1], table, {"latent": model.embedding_})
    if not args.no_plot:
        picture = _with_suffix(prefix, ".png")
        if _draw(model, table, picture):
            written.append(picture)
    if not args.quiet:
        _summary(model, table, name, seconds, written)
    if model.status_ == "interrupted":
        _say("interrupted: the best state so far was written")
        return INTERRUPTED
    return FAILED if model.status_ == "failed" else DONE


def _transform(args: argparse.Namespace) -> int:
    import numpy as np

    from gplvm_xp.io import load

    try:
        model = load(args.model)
    except OSError as error:
        raise UsageError(f"the model {args.model} can't be read: {_line(error)}") from error
    if args.backend is not None:
        model.set_params(backend=args.backend)
    table, name = _input(args)
    prefix = Path(args.out if args.out is not None else f"{name}_latents")
    _check_output(prefix, args.input, (".csv",))
    rows = _matched(table, model, args.input)
    begin = time.perf_counter()
    with _notes():
        latents, covariance = model.transform(rows, return_cov=True)
    sd = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    path = _with_suffix(prefix, ".csv")
    _write_csv(path, table, {"latent": latents, "sd": sd})
    if not args.quiet:
        print(f"rows       {rows.shape[0]} x {rows.shape[1]} columns, from {name}")
        print(f"model      {args.model}: {model.embedding_.shape[0]} training rows")
        print(f"time       {time.perf_counter() - begin:.1f} s")
        print(f"written    {path}")
    return DONE


def _info(args: argparse.Namespace) -> int:
    from gplvm_xp._machine import report

    for name, value in report():
        print(f"{name:<20} {value}")
    return DONE


_COMMANDS = {"embed": _embed, "transform": _transform, "info": _info}


# -- input ---------------------------------------------------------------------------------------


def _input(args: argparse.Namespace) -> tuple[Table, str]:
    """The table, and a short name for titles and files."""
    from gplvm_xp._tables import Options, read

    dataset = getattr(args, "dataset", None)
    if (args.input is None) == (dataset is None):
        raise UsageError("give either an input file or --dataset NAME, and not both (see --help)")
    if args.rows is not None and args.rows < 2:
        raise UsageError(f"--rows {args.rows} was given; expected 2 or more")
    if dataset is not None:
        return _bundled(dataset, args.rows), dataset
    path = Path(args.input)
    options = Options(
        header=args.header,
        delimiter=_delimiter(args.delimiter),
        index=args.index,
        labels=args.labels,
        drop=tuple(args.drop),
        key=args.key,
        missing=tuple(args.missing),
        rows=args.rows,
    )
    try:
        table = read(path, options)
    except OSError as error:
        reason = error.strerror or _line(error)
        raise UsageError(f"the input {path} can't be read: {reason}") from error
    return table, path.name.removesuffix(".gz").rpartition(".")[0] or path.name


def _delimiter(word: str | None) -> str | None:
    known = {"tab": "\t", "\\t": "\t", "space": " ", "comma": ",", "semicolon": ";"}
    character = None if word is None else known.get(word, word)
    if character is not None and len(character) != 1:
        raise UsageError(
            f"--delimiter {word!r} was given; expected one character, or one of comma, semicolon, "
            "tab, space"
        )
    return character


def _bundled(name: str, rows: int | None) -> Table:
    import numpy as np

    from gplvm_xp import datasets
    from gplvm_xp._tables import Table

    data = getattr(datasets, DATASETS[name])()
    labels = None
    if data.labels is not None:
        labels = np.asarray(data.label_names)[data.labels][:rows]
    return Table(data.Y[:rows], tuple(data.feature_names), True, None, labels)


def _matched(table: Table, model: Any, path: str) -> np.ndarray:
    """The columns that the model was fitted on, in its order, where both have names."""
    import numpy as np

    names = getattr(model, "feature_names_in_", None)
    if names is None or not table.named:
        return table.values
    absent = [str(n) for n in names if n not in table.columns]
    if absent:
        raise UsageError(
            f"{path} lacks {len(absent)} of the {len(names)} columns that the model was fitted on, "
            f"first {absent[0]!r}; expected the same names: rename the columns, or give "
            "--no-header to go by their order"
        )
    return np.ascontiguousarray(table.values[:, [table.columns.index(n) for n in names]])


def _kernel(text: str, values: np.ndarray) -> Any:
    """A sum of kernels by their words, each with an equal share of the data's variance."""
    import numpy as np

    from gplvm_xp import kernels

    words = text.split("+")
    unknown = [word for word in words if word not in KERNELS]
    if unknown:
        raise UsageError(
            f"--kernel {text} has {unknown[0]!r}; expected one of {', '.join(KERNELS)}, or "
            "several joined by + (for example rbf+linear+bias)"
        )
    if words == ["rbf"]:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        variance = float(np.nanmean((values - np.nanmean(values, axis=0)) ** 2))
    share = variance / len(words) if np.isfinite(variance) and variance > 0 else 1.0
    parts = [getattr(kernels, KERNELS[word])(variance=share) for word in words]
    return parts[0] if len(parts) == 1 else kernels.Sum.of(*parts)


# -- output --------------------------------------------------------------------------------------


def _with_suffix(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def _check_output(prefix: Path, given: str | None, suffixes: tuple[str, ...]) -> None:
    """Refuse before the fit what could not be written after it."""
    if not prefix.name:
        raise UsageError(f"--out {prefix} was given; expected a path and the start of a file name")
    if not prefix.parent.is_dir() or not os.access(prefix.parent, os.W_OK):
        raise UsageError(
            f"the folder {prefix.parent} of --out does not exist or can't be written; make it, or "
            "give another --out"
        )
    for suffix in suffixes:
        path = _with_suffix(prefix, suffix)
        if given is not None and path.exists() and path.samefile(given):
            raise UsageError(
                f"the output {path} would replace the input; give another --out prefix"
            )


def _write_csv(path: Path, table: Table, groups: dict[str, np.ndarray]) -> None:
    import csv
    import io

    from gplvm_xp.io import replacing

    n = table.values.shape[0]
    header = [table.index_name] + ([] if table.labels is None else [table.labels_name])
    header += [f"{name}_{a + 1}" for name, part in groups.items() for a in range(part.shape[1])]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for i in range(n):
        row: list[Any] = [i if table.index is None else table.index[i]]
        row += [] if table.labels is None else [table.labels[i]]
        row += [value for part in groups.values() for value in part[i].tolist()]
        writer.writerow(row)
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def _draw(model: Any, table: Table, path: Path) -> bool:
    import numpy as np

    from gplvm_xp import plot
    from gplvm_xp.io import replacing

    labels = table.labels
    if labels is not None and np.unique(labels).size > _FEW_CLASSES:
        try:
            labels = labels.astype(np.float64)
        except ValueError:
            _say(f"note: more than {_FEW_CLASSES} classes: the picture is not coloured")
            labels = None
    dims = (0, 1)
    if model.embedding_.shape[1] > 2:
        dims = tuple(sorted(np.argsort(-model.relevance(), kind="stable")[:2].tolist()))
    try:
        with _notes():
            figure: Any = plot.latent(model, labels, dims=dims).figure
    except ImportError as error:
        _say(f"note: no picture was written: {_line(error)}")
        return False
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)
    return True


@contextmanager
def _notes() -> Iterator[None]:
    """Warnings as one line each, when the block has ended."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        yield
    for text in dict.fromkeys(str(w.message) for w in caught):
        _say(f"note: {' '.join(text.split())}")


def _summary(model: Any, table: Table, name: str, seconds: float, written: list[Path]) -> None:
    import numpy as np

    n, D = table.values.shape
    gaps = int(np.isnan(table.values).sum())
    relevance = ", ".join(f"{r:.2g}" for r in model.relevance())
    kernel = ", ".join(
        f"{block.name} " + " ".join(f"{v:.4g}" for v in block.value.ravel())
        for block in model.kernel_.blocks()
    )
    lines = [
        ("data", f"{name}: {n} rows x {D} columns" + (f", {gaps} values missing" * bool(gaps))),
        ("latents", f"q = {model.embedding_.shape[1]}, relevance {relevance}"),
        ("kernel", kernel),
        ("fit", f"{model.status_}, {model.n_iter_} steps in {seconds:.1f} s"),
        ("log-likelihood", f"{model.log_likelihood_:.6g} nats"),
        ("noise", f"standard deviation {model.noise_variance_**0.5:.4g}"),
    ]
    lines += [("input", note) for note in table.notes]
    if table.labels is not None:
        lines.append(("1-NN errors", _neighbours(model, table)))
    lines.append(("written", ", ".join(map(str, written))))
    for title, text in lines:
        print(f"{title:<16}{text}")


def _neighbours(model: Any, table: Table) -> str:
    import numpy as np

    from gplvm_xp import init
    from gplvm_xp.metrics import nearest_neighbour_errors

    labels = np.asarray(table.labels)
    seen = labels != ""
    if np.unique(labels[seen]).size < 2 or np.unique(labels[seen]).size > labels.size // 2:
        return f"not counted: {np.unique(labels[seen]).size} classes in {labels.size} rows"
    q = model.embedding_.shape[1]
    centred = (table.values - model.mean_) / model.scale_
    pca = init.latents("pca", centred, q, np.random.default_rng(0))
    before = nearest_neighbour_errors(pca[seen], labels[seen])
    after = nearest_neighbour_errors(model.embedding_[seen], labels[seen])
    return f"{after} of {int(seen.sum())} (PCA in as many dimensions: {before})"


__all__ = ["main"]
