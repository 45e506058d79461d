"""The commands ``embed`` and ``transform``: a table to latents."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gplvm_xp._arguments import DATASETS
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

    from gplvm_xp.cli._models import estimator

    model = estimator(args, table.values)
    begin = time.perf_counter()
    with shared.notes():
        model.fit(table.values)
    seconds = time.perf_counter() - begin
    if table.named:
        model.feature_names_in_ = np.asarray(table.columns, dtype=object)
    written = [shared.with_suffix(prefix, ".npz"), shared.with_suffix(prefix, ".csv")]
    model.save(written[0])
    _write_csv(written[1], table, _latents(model))
    if not args.no_plot:
        picture = shared.with_suffix(prefix, ".png")
        if _draw(model, table, picture):
            written.append(picture)
    if not args.quiet:
        _summary(model, table, name, seconds, written)
    return shared.ended(model)


def transform(args: argparse.Namespace) -> int:
    """Latents of more rows under a saved model."""
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
        latents, sd = _placed(model, rows)
    path = shared.with_suffix(prefix, ".csv")
    _write_csv(path, table, {"latent": latents, "latent_sd": sd})
    if not args.quiet:
        print(f"rows       {rows.shape[0]} x {rows.shape[1]} columns, from {name}")
        print(f"model      {args.model}: {model.embedding_.shape[0]} training rows")
        print(f"time       {time.perf_counter() - begin:.1f} s")
        print(f"written    {path}")
    return DONE


def _latents(model: Any) -> dict[str, np.ndarray]:
    """The columns of a fit: latents, and their standard deviations where they have any."""
    import numpy as np

    variance = getattr(model, "embedding_variance_", None)
    spread = {} if variance is None else {"latent_sd": np.sqrt(variance)}
    return {"latent": model.embedding_, **spread}


def _placed(model: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latents of new rows and their standard deviations."""
    import numpy as np

    if hasattr(model, "inducing_inputs_"):
        latents, variance = model.transform(rows, return_var=True)
        return latents, np.sqrt(variance)
    latents, covariance = model.transform(rows, return_cov=True)
    return latents, np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))


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

    loader, options = DATASETS[name]
    data = getattr(datasets, loader)(**options)
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
    # Without uncertainty no dimension is switched off, and with one there is nothing to compare.
    uncertain = getattr(model, "embedding_variance_", None) is not None
    draw = plot.overview if uncertain and model.embedding_.shape[1] > 1 else plot.latent
    return shared.picture(path, lambda: draw(model, labels).figure)


def _summary(model: Any, table: Table, name: str, seconds: float, written: list[Path]) -> None:
    import numpy as np

    n, D = table.values.shape
    q = model.embedding_.shape[1]
    gaps = int(np.isnan(table.values).sum())
    learned = getattr(model, "relevance_", None)
    values = model.relevance() if learned is None else learned
    relevance = ", ".join(f"{r:.2g}" for r in values)
    lines = [
        ("data", f"{name}: {n} rows x {D} columns" + (f", {gaps} values missing" * bool(gaps))),
        ("latents", f"q = {q}, relevance {relevance}"),
    ]
    if hasattr(model, "inducing_inputs_"):
        lines += [
            ("active", f"{model.n_active_} of {q} latent dimensions"),
            ("inducing", f"{model.inducing_inputs_.shape[0]} inputs"),
        ]
        value = ("lower bound", f"{model.lower_bound_:.6g} nats")
    else:
        value = ("log-likelihood", f"{model.log_likelihood_:.6g} nats")
    likelihood = getattr(model, "likelihood_", None)
    if likelihood is None:
        noise = ("noise", f"standard deviation {model.noise_variance_**0.5:.4g}")
    else:
        noise = ("likelihood", f"{likelihood.name} {_numbers(likelihood)}".rstrip())
    lines += [
        ("kernel", _numbers(model.kernel_)),
        ("fit", f"{model.status_}, {model.n_iter_} steps in {seconds:.1f} s"),
        value,
        noise,
    ]
    lines += [("input", note) for note in table.notes]
    if table.labels is not None:
        lines.append(("1-NN errors", _neighbours(model, table)))
    lines.append(("written", ", ".join(map(str, written))))
    for title, text in lines:
        print(f"{title:<16}{text}")


def _numbers(part: Any) -> str:
    """The learned numbers of a kernel or a likelihood."""
    return ", ".join(
        f"{block.name} " + " ".join(f"{v:.4g}" for v in block.value.ravel())
        for block in part.blocks()
    )


def _neighbours(model: Any, table: Table) -> str:
    """Label errors of the latents, beside those of as many principal components."""
    import numpy as np

    from gplvm_xp import init
    from gplvm_xp.metrics import nearest_neighbour_errors

    labels = np.asarray(table.labels)
    seen = labels != ""
    if np.unique(labels[seen]).size < 2 or np.unique(labels[seen]).size > labels.size // 2:
        return f"not counted: {np.unique(labels[seen]).size} classes in {labels.size} rows"
    counts = getattr(model, "likelihood_", None) is not None
    values = np.log1p(table.values) if counts else table.values / model.scale_
    centred = values - np.nanmean(values, axis=0)
    latents, q, text = model.embedding_, model.embedding_.shape[1], ""
    if getattr(model, "embedding_variance_", None) is not None:
        # As far as the data moves along each dimension.
        width = np.where(model.relevance_ > 0.0, np.std(latents, axis=0), 1.0)
        latents = latents / width * np.sqrt(model.relevance_)
        q, text = max(model.n_active_, 1), ", latents scaled by relevance"
    pca = init.latents("pca", centred, q, np.random.default_rng(0))
    before = nearest_neighbour_errors(pca[seen], labels[seen])
    after = nearest_neighbour_errors(latents[seen], labels[seen])
    of = " of log(1 + count)" if counts else ""
    return f"{after} of {int(seen.sum())}{text} (PCA{of} in {q} dimensions: {before})"


__all__ = ["embed", "transform"]
