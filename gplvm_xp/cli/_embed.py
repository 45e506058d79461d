"""The commands ``embed`` and ``transform``: a table to latents."""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gplvm_xp._arguments import DATASETS, KERNELS
from gplvm_xp.cli import _shared as shared
from gplvm_xp.cli._shared import DONE, UsageError

if TYPE_CHECKING:
    import numpy as np

    from gplvm_xp._tables import Table

_FEW_CLASSES = 50


def embed(args: argparse.Namespace) -> int:
    """Fit a latent space to a table."""
    table, name = _input(args)
    prefix = Path(args.out if args.out is not None else f"{name}_gplvm")
    suffixes = (".npz", ".csv") if args.no_plot else (".npz", ".csv", ".png")
    shared.check_output(prefix, suffixes, args.input)
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
    with shared.notes():
        model.fit(table.values)
    seconds = time.perf_counter() - begin
    if table.named:
        model.feature_names_in_ = np.asarray(table.columns, dtype=object)
    written = [shared.with_suffix(prefix, ".npz"), shared.with_suffix(prefix, ".csv")]
    model.save(written[0])
    _write_csv(written[1], table, {"latent": model.embedding_})
    if not args.no_plot:
        picture = shared.with_suffix(prefix, ".png")
        if _draw(model, table, picture):
            written.append(picture)
    if not args.quiet:
        _summary(model, table, name, seconds, written)
    return shared.ended(model)


def transform(args: argparse.Namespace) -> int:
    """Latents of more rows under a saved model."""
    import numpy as np

    from gplvm_xp.io import load

    try:
        model = load(args.model)
    except OSError as error:
        raise UsageError(f"the model {args.model} can't be read: {shared.line(error)}") from error
    if args.backend is not None:
        model.set_params(backend=args.backend)
    table, name = _input(args)
    prefix = Path(args.out if args.out is not None else f"{name}_latents")
    shared.check_output(prefix, (".csv",), args.input)
    rows = _matched(table, model, args.input)
    begin = time.perf_counter()
    with shared.notes():
        latents, covariance = model.transform(rows, return_cov=True)
    sd = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    path = shared.with_suffix(prefix, ".csv")
    _write_csv(path, table, {"latent": latents, "sd": sd})
    if not args.quiet:
        print(f"rows       {rows.shape[0]} x {rows.shape[1]} columns, from {name}")
        print(f"model      {args.model}: {model.embedding_.shape[0]} training rows")
        print(f"time       {time.perf_counter() - begin:.1f} s")
        print(f"written    {path}")
    return DONE


# -- input ---------------------------------------------------------------------------------------


def _input(args: argparse.Namespace) -> tuple[Table, str]:
    """The table, and a short name for titles and files."""
    from gplvm_xp._tables import Options

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
        delimiter=shared.delimiter(args.delimiter),
        index=args.index,
        labels=args.labels,
        drop=tuple(args.drop),
        key=args.key,
        missing=tuple(args.missing),
        rows=args.rows,
    )
    return shared.table(path, options), shared.stem(path)


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

    labels = table.labels
    if labels is not None and np.unique(labels).size > _FEW_CLASSES:
        try:
            labels = labels.astype(np.float64)
        except ValueError:
            shared.say(f"note: more than {_FEW_CLASSES} classes: the picture is not coloured")
            labels = None
    dims = (0, 1)
    if model.embedding_.shape[1] > 2:
        dims = tuple(sorted(np.argsort(-model.relevance(), kind="stable")[:2].tolist()))
    return shared.picture(path, lambda: plot.latent(model, labels, dims=dims).figure)


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


__all__ = ["embed", "transform"]
