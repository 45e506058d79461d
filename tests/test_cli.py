"""The command line, in process and once as a user starts it."""

from __future__ import annotations

import builtins
import csv
import gzip
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from gplvm_xp import __version__, backend, load
from gplvm_xp._tables import Options, TableError, read
from gplvm_xp.cli import DONE, FAILED, INTERRUPTED, USAGE, main
from gplvm_xp.errors import NotEnoughMemoryError, NotPositiveDefiniteError
from gplvm_xp.metrics import nearest_neighbour_errors

QUICK = ["--max-iter", "5", "--no-plot"]


def table(n: int = 30, D: int = 4) -> np.ndarray:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, 2))
    return np.sin(z @ rng.normal(size=(2, D))) + 0.1 * rng.normal(size=(n, D))


Y = table()
SPECIES = np.array(["red", "green", "blue"] * 10)
NAMES = [f"r{i}" for i in range(30)]


def write_text(path: Path, rows: list[list[Any]], delimiter: str = ",") -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def rows_of(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def simple(tmp_path: Path) -> Path:
    return write_text(tmp_path / "y.csv", [["a", "b", "c", "d"], *Y.tolist()])


# -- the whole job, as a user starts it ------------------------------------------------------------


def test_digits_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command = ["embed", "--dataset", "digits", "--rows", "500", "--max-iter", "40"]
    done = subprocess.run(
        [sys.executable, "-m", "gplvm_xp", *command, "--out", "digits"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=_environment(),
    )
    assert done.returncode == DONE, done.stderr
    assert "objective" in done.stderr  # the progress bar
    header, *rows = rows_of(tmp_path / "digits.csv")
    assert header == ["row", "label", "latent_1", "latent_2"]
    latents = np.array([[float(a), float(b)] for _, _, a, b in rows])
    labels = np.array([row[1] for row in rows])
    model = load(tmp_path / "digits.npz")
    np.testing.assert_array_equal(latents, model.embedding_)
    assert model.feature_names_in_[0] == "pixel_0_0"
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    (line,) = [s for s in done.stdout.splitlines() if s.startswith("1-NN errors")]
    words = line.split()
    after, before = int(words[2]), int(words[-1].rstrip(")"))
    assert after == nearest_neighbour_errors(latents, labels)
    assert after < 0.2 * before
    for word in ("500 rows x 64 columns", "q = 2", "nats", "noise", "max_steps, 40 steps"):
        assert word in done.stdout


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or sys.platform == "win32", reason="POSIX only")
def test_ctrl_c_keeps_the_best_state(tmp_path: Path) -> None:
    command = "embed --dataset digits --rows 500 --max-iter 100000 --tol 1e-14 --out d --no-plot"
    process = subprocess.Popen(
        [sys.executable, "-m", "gplvm_xp", *command.split()],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        # A shell's background job, which a test run may be, hands down that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    seen = b""
    end = time.monotonic() + 60
    while b"3/100000" not in seen and time.monotonic() < end:
        seen += process.stderr.read1(4096)  # type: ignore[union-attr]
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, rest
    assert b"best state so far was written" in rest
    model = load(tmp_path / "d.npz")
    assert model.status_ == "interrupted"
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    assert len(rows_of(tmp_path / "d.csv")) == 501


# -- inputs ----------------------------------------------------------------------------------------


def labelled(header: bool) -> list[list[Any]]:
    rows = [[NAMES[i], *Y[i].tolist(), SPECIES[i]] for i in range(30)]
    return [["id", "a", "b", "c", "d", "species"], *rows] if header else rows


@pytest.mark.parametrize(
    ("name", "delimiter"), [("y.csv", ","), ("y.tsv", "\t"), ("y.txt", ";"), ("y.dat", " ")]
)
def test_text_with_index_and_labels(name: str, delimiter: str, capsys: Any) -> None:
    write_text(Path(name), labelled(True), delimiter)
    assert main(["embed", name, "--index", "id", "--labels", "species", "--out", "o", *QUICK]) == 0
    header, *rows = rows_of(Path("o.csv"))
    assert header == ["id", "species", "latent_1", "latent_2"]
    assert [row[0] for row in rows] == NAMES
    assert [row[1] for row in rows] == SPECIES.tolist()
    model = load("o.npz")
    np.testing.assert_array_equal(model.training_data_, Y)
    assert list(model.feature_names_in_) == ["a", "b", "c", "d"]
    out = capsys.readouterr().out
    assert "1-NN errors" in out
    assert "first line read as a header" in out


def test_text_without_a_header_by_numbers() -> None:
    write_text(Path("y.csv"), labelled(False))
    assert main(["embed", "y.csv", "--index", "0", "--labels", "-1", "--out", "o", *QUICK]) == 0
    np.testing.assert_array_equal(load("o.npz").training_data_, Y)
    assert not hasattr(load("o.npz"), "feature_names_in_")
    assert rows_of(Path("o.csv"))[1][:2] == ["r0", "red"]


@pytest.mark.parametrize(
    ("first", "given", "expected"),
    [
        ("a,b,c", None, True),
        ("1.5,2,3", None, False),
        ("0,1,2", None, True),  # what pandas writes for columns without names
        (",1,2", None, False),  # a gap in a table without a header
        ("NA,1,2", None, False),
        ("a,b,c", False, "column '0' .*not numeric|column 'column_0' .*not numeric"),
        ("1.5,2,3", True, True),
    ],
)
def test_the_header_is_found(first: str, given: bool | None, expected: Any) -> None:
    body = "4.5,5,6\n7.5,8,9\n" if first != ",1,2" else "x,5,6\ny,8,9\n"
    Path("y.csv").write_text(f"{first}\n{body}")
    index = "0" if first == ",1,2" else None
    if isinstance(expected, str):
        with pytest.raises(TableError, match=expected):
            read(Path("y.csv"), Options(header=given))
        return
    found = read(Path("y.csv"), Options(header=given, index=index))
    assert found.named is expected
    assert found.values.shape[0] == (2 if expected else 3)


def test_r_and_pandas_tables_have_their_index_found() -> None:
    Path("r.txt").write_text('"a" "b"\n"x" 1.5 2\n"y" 3 4\n'.replace('"', ""))
    held = read(Path("r.txt"), Options())
    assert held.columns == ("a", "b")
    assert held.index is not None
    assert held.index.tolist() == ["x", "y"]
    Path("p.csv").write_text(",a,b\n10,1.5,2\n11,3,4\n")
    held = read(Path("p.csv"), Options())
    assert held.columns == ("a", "b")
    assert held.index is not None
    assert held.index.tolist() == ["10", "11"]


def test_gaps_words_quotes_blank_lines_and_gzip() -> None:
    text = '\ufeffa,"b, c",d\n1,NA,?\n\n,2.5,nan\n"3", 4 ,-inf\n'
    with gzip.open("y.csv.gz", "wt", encoding="utf-8") as file:
        file.write(text.replace("-inf", "1e-3"))
    held = read(Path("y.csv.gz"), Options(missing=("?",)))
    assert held.columns == ("a", "b, c", "d")
    nan = np.nan
    np.testing.assert_array_equal(held.values, [[1, nan, nan], [nan, 2.5, nan], [3, 4, 1e-3]])
    Path("y.csv").write_text(text)
    with pytest.raises(TableError, match=r"column 'd' of y\.csv is infinite in data row 2"):
        read(Path("y.csv"), Options(missing=("?",)))


def test_missing_values_reach_the_fit(capsys: Any) -> None:
    holes = Y.copy()
    holes[2, 1] = np.nan
    np.save("y.npy", holes)
    assert main(["embed", "y.npy", *QUICK]) == DONE
    assert "1 values missing" in capsys.readouterr().out
    np.testing.assert_array_equal(load("y_gplvm.npz").training_data_, holes)


def test_npy_and_npz() -> None:
    np.save("y.npy", np.column_stack([Y, np.arange(30) % 3]))
    assert main(["embed", "y.npy", "--labels", "-1", "--out", "o", *QUICK]) == DONE
    assert rows_of(Path("o.csv"))[2][:2] == ["1", "1"]
    np.savez("y.npz", Y=Y, names=np.array(NAMES), kind=np.arange(30) % 2)
    assert (
        main(["embed", "y.npz", "--labels", "kind", "--index", "names", "--out", "p", *QUICK]) == 0
    )
    header, first, *_ = rows_of(Path("p.csv"))
    assert header[:2] == ["names", "kind"]
    assert first[:2] == ["r0", "0"]
    np.savez("two.npz", A=Y, B=2 * Y)
    assert main(["embed", "two.npz", "--key", "B", "--out", "q", *QUICK]) == DONE
    np.testing.assert_array_equal(load("q.npz").training_data_, 2 * Y)


def test_options_reach_the_model(simple: Path) -> None:
    command = ["embed", str(simple), "-q", "3", "--kernel", "matern52+linear+bias", "--scale"]
    command += ["--rows", "20", "--init", "ppca", "--dtype", "float64", "--backend", "numpy"]
    assert main([*command, "--seed", "3", "--restarts", "1", "--out", "o", "--quiet", *QUICK]) == 0
    model = load("o.npz")
    assert model.embedding_.shape == (20, 3)
    assert [type(part).__name__ for part in model.kernel_.parts] == [
        "Matern52",
        "Linear",
        "Constant",
    ]
    seen = model.get_params(deep=False)
    expected = {
        "scale": True,
        "init": "ppca",
        "random_state": 3,
        "n_restarts": 1,
        "progress": False,
    }
    assert {k: seen[k] for k in expected} == expected


def test_quiet_is_quiet(simple: Path, capsys: Any) -> None:
    assert main(["embed", str(simple), "--quiet", "--tol", "1e9", *QUICK]) == DONE
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_the_picture(simple: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main(["embed", str(simple), "-q", "3", "--max-iter", "5", "--out", "o"]) == DONE
    assert Path("o.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in Path().iterdir()) == ["o.csv", "o.npz", "o.png", "y.csv"]


def test_without_matplotlib_the_rest_is_written(
    simple: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    assert main(["embed", str(simple), "--max-iter", "5", "--out", "o"]) == DONE
    assert "pip install 'gplvm-xp[plot]'" in capsys.readouterr().err
    assert Path("o.csv").exists()
    assert not Path("o.png").exists()


# -- the other models ------------------------------------------------------------------------------

# Of each model: its options, what they are as parameters, and what the summary must say.
MODELS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "bayesian": (
        "-q 3 --inducing 8 --max-iter 12 --tol 0.5 --restarts 1 --kernel rbf+linear",
        {"n_components": 3, "n_inducing": 8, "max_iter": 12, "tol": 0.5, "n_restarts": 1},
        ("q = 3", "of 3 latent dimensions", "8 inputs", "lower bound", "standard deviation"),
    ),
    "sparse": (
        "--inducing 8 --max-iter 12 --approximation fitc",
        {"n_inducing": 8, "max_iter": 12, "approximation": "fitc"},
        ("q = 2", "8 inputs", "lower bound", "standard deviation"),
    ),
    "minibatch": (
        "-q 2 --inducing 6 --epochs 3 --batch-size 10",
        {"n_components": 2, "n_inducing": 6, "n_epochs": 3, "batch_size": 10},
        ("q = 2", "6 inputs", "lower bound", "standard deviation"),
    ),
    "counts": (
        "--model minibatch -q 2 --inducing 6 --epochs 3 --likelihood poisson --exposure total",
        {"n_inducing": 6, "n_epochs": 3, "likelihood": "poisson", "exposure": "total"},
        ("q = 2", "6 inputs", "lower bound", "likelihood      poisson"),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_other_models(name: str, capsys: Any) -> None:
    """Fitted, written, read again, and new rows embedded: with standard deviations throughout."""
    pytest.importorskip("matplotlib")
    options, parameters, words = MODELS[name]
    values = np.random.default_rng(1).poisson(np.exp(Y)) if name == "counts" else Y
    rows = [[f"r{i}", *values[i].tolist(), SPECIES[i]] for i in range(30)]
    write_text(Path("y.csv"), [["id", "a", "b", "c", "d", "species"], *rows])
    command = ["embed", "y.csv", "--index", "id", "--labels", "species", "--out", "o", "--model"]
    if name == "counts":
        command.pop()
    else:
        command.append(name)
    assert main([*command, *options.split()]) == DONE
    captured = capsys.readouterr()
    for word in (*words, "1-NN errors", "kernel", "o.png", "steps in"):
        assert word in captured.out, captured.out
    assert Path("o.png").read_bytes().startswith(b"\x89PNG")
    model = load("o.npz")
    seen = model.get_params(deep=False)
    assert {k: seen[k] for k in parameters} == parameters
    q = model.embedding_.shape[1]
    latents = [f"latent_{a + 1}" for a in range(q)]
    spread = [f"latent_sd_{a + 1}" for a in range(q)]
    header, *body = rows_of(Path("o.csv"))
    uncertain = name != "sparse"
    assert header == ["id", "species", *latents, *(spread if uncertain else [])]
    numbers = np.array([[float(v) for v in row[2:]] for row in body])
    np.testing.assert_array_equal(numbers[:, :q], model.embedding_)
    if uncertain:
        np.testing.assert_array_equal(numbers[:, q:], np.sqrt(model.embedding_variance_))
    new = values[:3] + (1 if name == "counts" else 0.05)
    write_text(Path("new.csv"), [["a", "b", "c", "d"], *new.tolist()])
    assert main(["transform", "o.npz", "new.csv", "--out", "t"]) == DONE
    header, *body = rows_of(Path("t.csv"))
    assert header == ["row", *latents, *spread]
    numbers = np.array([[float(v) for v in row[1:]] for row in body])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mean, variance = load("o.npz").transform(new, return_var=True)
    np.testing.assert_array_equal(numbers, np.column_stack([mean, np.sqrt(variance)]))


def test_a_kernel_of_a_bayesian_model_can_switch_dimensions_off() -> None:
    """Every dimension has a parameter of its own, as many as the model would have."""
    from gplvm_xp._arguments import parser
    from gplvm_xp.cli._models import estimator

    words = ["embed", "--kernel", "rbf+linear+bias", "--model"]
    found = estimator(parser().parse_args([*words, "bayesian"]), Y)
    rbf, linear, bias = found.kernel.parts
    share = Y.var(axis=0).mean() / 3
    assert (len(rbf.lengthscale), len(linear.variance)) == (4, 4)
    np.testing.assert_allclose([rbf.variance, sum(linear.variance), bias.variance], share)
    found = estimator(parser().parse_args([*words, "minibatch", "-q", "3"]), Y)
    assert len(found.kernel.parts[0].lengthscale) == 3
    found = estimator(parser().parse_args([*words, "exact"]), Y)
    assert isinstance(found.kernel.parts[0].lengthscale, float)
    counts = parser().parse_args([*words, "minibatch", "--likelihood", "negative-binomial"])
    found = estimator(counts, Y)
    assert (found.likelihood, found.inference) == ("negative_binomial", "minibatch")
    assert found.kernel.parts[0].variance == 1.0 / 3.0


# -- transform -------------------------------------------------------------------------------------


def test_transform_matches_columns_by_name(simple: Path, capsys: Any) -> None:
    assert main(["embed", str(simple), "--out", "o", *QUICK]) == DONE
    new = Y[:6] + 0.05
    write_text(
        Path("new.csv"),
        [["id", "d", "c", "b", "a"]] + [[f"n{i}", *new[i, ::-1].tolist()] for i in range(6)],
    )
    assert main(["transform", "o.npz", "new.csv", "--index", "id", "--out", "t"]) == DONE
    header, *rows = rows_of(Path("t.csv"))
    assert header == ["id", "latent_1", "latent_2", "latent_sd_1", "latent_sd_2"]
    got = np.array([[float(v) for v in row[1:]] for row in rows])
    model = load("o.npz")
    del model.feature_names_in_
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        latents, covariance = model.transform(new, return_cov=True)
    np.testing.assert_array_equal(got[:, :2], latents)
    np.testing.assert_array_equal(got[:, 2], np.sqrt(covariance[:, 0, 0]))
    assert "6 x 4 columns" in capsys.readouterr().out
    np.save("bare.npy", new)
    assert main(["transform", "o.npz", "bare.npy", "--out", "u", "--quiet"]) == DONE
    assert rows_of(Path("u.csv"))[1][1:] == rows[0][1:]
    np.save("narrow.npy", new[:, :3])
    assert main(["transform", "o.npz", "narrow.npy"]) == USAGE
    assert "3 features" in capsys.readouterr().err


# -- rate-map --------------------------------------------------------------------------------------


@pytest.fixture
def recording(tmp_path: Path) -> dict[str, np.ndarray]:
    """Tables of a walk and of the spikes on it; the columns of the walk in another order."""
    rng = np.random.default_rng(0)
    steps = np.cumsum(0.02 * rng.standard_normal((4000, 2)), axis=0)
    walk = np.round(np.abs(steps % 2.0 - 1.0), 6)
    rate = 40.0 * np.exp(-np.sum((walk - 0.5) ** 2, axis=1) / 0.08)
    spikes = walk[rng.uniform(size=4000) < 0.02 * rate]
    lost = [["NA", "NA"]]
    write_text(tmp_path / "spikes.csv", [["x", "y"], *spikes.tolist()])
    write_text(tmp_path / "track.csv", [["y", "x"], *walk[:, ::-1].tolist(), *lost])
    return {"walk": walk, "spikes": spikes}


TRACK = ["--events", "spikes.csv", "--positions", "track.csv", "--time-step", "0.02"]
SMALL = ["--shape", "10", "12", "--tol", "0.01"]


def test_rate_map_end_to_end(tmp_path: Path, recording: dict[str, np.ndarray]) -> None:
    pytest.importorskip("matplotlib")
    done = subprocess.run(
        [sys.executable, "-m", "gplvm_xp", "rate-map", *TRACK, *SMALL, "--out", "map"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=_environment(),
    )
    assert done.returncode == DONE, done.stderr
    assert "note:" not in done.stderr
    spikes, walk = recording["spikes"], recording["walk"]
    for word in (f"{len(spikes)} on 10 x 12 cells", "converged", "frequencies", "nats", "map.png"):
        assert word in done.stdout
    held = np.load("map.npz")
    names = ["rate", "lower", "upper", "level", "log_rate_mean", "log_rate_var", "counts"]
    assert sorted(held.files) == sorted([*names, "exposure", "edges_0", "edges_1"])
    model = load("map-model.npz")
    np.testing.assert_array_equal(held["rate"], model.rate_)
    np.testing.assert_array_equal(held["upper"], model.interval(0.9)[1])
    edges = [held["edges_0"], held["edges_1"]]
    want, _, _ = np.histogram2d(*spikes.T, bins=edges)
    np.testing.assert_array_equal(held["counts"], want)
    np.testing.assert_allclose(held["exposure"].sum(), 0.02 * len(walk))
    assert model.feature_names_in_.tolist() == ["x", "y"]
    assert model.predict([[0.5, 0.5]])[0] > 4.0 * model.predict([[0.95, 0.5]])[0]
    assert Path("map.png").read_bytes().startswith(b"\x89PNG")


def test_options_reach_the_rate_map(recording: dict[str, np.ndarray], capsys: Any) -> None:
    events = [[i, *row, "ok"] for i, row in enumerate(recording["spikes"].tolist())]
    write_text(Path("t.txt"), [row[:3] for row in events], ";")
    command = ["rate-map", "--events", "t.txt", "--columns", "1", "--delimiter", "semicolon"]
    command += ["--shape", "20", "--extent", "0", "1", "--periodic", "--kernel", "matern52"]
    command += ["--lengthscale", "0.2", "--likelihood", "negative-binomial", "--level", "0.5"]
    command += ["--no-optimize", "--threshold", "0.05", "--dtype", "float64", "--out", "o"]
    assert main([*command, "--no-plot", "--quiet"]) == DONE
    assert capsys.readouterr().out == ""
    model = load("o-model.npz")
    np.testing.assert_allclose(model.counts_.sum(), len(events))
    assert type(model.kernel_).__name__ == "Matern52"
    assert model.kernel_.theta().tolist() == [1.0, 0.2]
    assert model.likelihood_.name == "negative_binomial"
    seen = model.get_params(deep=False)
    assert (seen["periodic"], seen["optimize"], seen["threshold"]) == (True, False, 0.05)
    np.testing.assert_array_equal(model.extent_, [(0.0, 1.0)])
    held = np.load("o.npz")
    assert held["level"] == 0.5
    np.testing.assert_array_equal(held["lower"], model.interval(0.5)[0])
    assert not Path("o.png").exists()


def test_a_hexagonal_rate_map_along_some_periodic_axes(recording: dict[str, np.ndarray]) -> None:
    command = ["rate-map", *TRACK, "--shape", "8", "--kernel", "hexagonal", "--period", "0.6"]
    command += ["--orientation", "30", "--periodic", "1", "--no-optimize", "--no-plot"]
    assert main([*command, "--quiet"]) == DONE
    model = load("spikes_rate-model.npz")
    np.testing.assert_allclose(model.kernel_.theta(), [1.0, 0.6, np.pi / 6, 0.9])
    assert model.get_params(deep=False)["periodic"] == (False, True)


def test_matern_starts_at_a_tenth_of_the_box(recording: dict[str, np.ndarray]) -> None:
    command = ["rate-map", *TRACK, "--shape", "8", "--kernel", "matern32", "--no-optimize"]
    assert main([*command, "--no-plot", "--quiet"]) == DONE
    model = load("spikes_rate-model.npz")
    np.testing.assert_allclose(model.kernel_.lengthscale, 0.1 * np.ptp(recording["walk"], axis=0))


RATE_ERRORS = {
    "no events": ([], "the following arguments are required: --events"),
    "no such file": (["--events", "absent.csv"], "absent.csv can't be read: No such file"),
    "positions alone": (["--events", "spikes.csv", "--positions", "track.csv"], "belong together"),
    "time step alone": (["--events", "spikes.csv", "--time-step", "1"], "belong together"),
    "column": (
        ["--events", "spikes.csv", "--columns", "x", "z"],
        "--columns z: spikes.csv has no such column; expected some of 'x', 'y', or numbers from 0",
    ),
    "other columns": (
        ["--events", "line.csv", "--positions", "track.csv", "--time-step", "1"],
        "line.csv has 1 columns and track.csv has 2",
    ),
    "extent": (["--events", "spikes.csv", "--extent", "0", "1"], "has 2 numbers and there are 2"),
    "extent too small": (
        ["--events", "spikes.csv", "--extent", "0", "1", "0", "0.2"], "is outside the extent"
    ),
    "periodic": (["--events", "spikes.csv", "--periodic", "2"], "expected axes from 0 to 1"),
    "kernel": (["--events", "spikes.csv", "--kernel", "linear"], "invalid choice: 'linear'"),
    "no period": (["--events", "spikes.csv", "--kernel", "hexagonal"], "--period belong together"),
    "a period": (["--events", "spikes.csv", "--period", "3"], "--period belong together"),
    "hexagonal line": (
        ["--events", "line.csv", "--kernel", "hexagonal", "--period", "3"], "2 dimensions"
    ),
    "level": (["--events", "spikes.csv", "--level", "90"], "--level 90.0 was given"),
    "shape": (["--events", "spikes.csv", "--shape", "4", "4", "4"], "has 3 axes and the data"),
    "gap": (["--events", "gap.csv"], "row 1 of X"),
    "never there": (
        ["--events", "spikes.csv", "--positions", "corner.csv", "--time-step", "1"],
        "in a cell of exposure 0",
    ),
    "onto the input": (["--events", "map.npz", "--out", "map"], "map.npz would replace the input"),
    "no folder": (["--events", "spikes.csv", "--out", "absent/o"], "the folder absent of --out"),
}  # fmt: skip


@pytest.mark.parametrize("kind", RATE_ERRORS)
def test_wrong_usage_of_rate_map(kind: str, recording: dict[str, np.ndarray], capsys: Any) -> None:
    write_text(Path("line.csv"), [["t"], [0.1], [0.2], [0.5]])
    write_text(Path("gap.csv"), [["x", "y"], [0.1, 0.2], ["", 0.4]])
    write_text(Path("corner.csv"), [["x", "y"], [0.0, 0.0], [0.01, 0.0]])
    np.savez("map.npz", A=recording["spikes"])
    before = sorted(Path().iterdir())
    argv, text = RATE_ERRORS[kind]
    assert main(["rate-map", *argv]) == USAGE
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.splitlines()[-1].startswith("gplvm-xp: error: ")
    assert captured.out == ""
    assert sorted(Path().iterdir()) == before


def test_an_interrupted_rate_map_is_written(
    recording: dict[str, np.ndarray], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gplvm_xp.variational import GridEvidence

    true, calls = GridEvidence.value_and_grad, 0

    def stop(self: Any, x: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return true(self, x)

    monkeypatch.setattr(GridEvidence, "value_and_grad", stop)
    argv = ["rate-map", *TRACK, "--shape", "8", "--out", "o", "--no-plot", "--quiet"]
    assert main(argv) == INTERRUPTED
    assert "interrupted: the best state so far was written" in capsys.readouterr().err
    assert load("o-model.npz").status_ == "interrupted"


# -- what goes wrong -------------------------------------------------------------------------------

USAGE_ERRORS = {
    "no command": ([], "COMMAND"),
    "unknown command": (["embd"], "invalid choice: 'embd'"),
    "no input": (["embed"], "either an input file or --dataset"),
    "two inputs": (["embed", "y.csv", "--dataset", "digits"], "and not both"),
    "unknown data set": (["embed", "--dataset", "mnist"], "invalid choice: 'mnist'"),
    "no such file": (["embed", "absent.csv"], "absent.csv can't be read: No such file"),
    "a folder": (["embed", "."], "can't be read: Is a directory"),
    "spreadsheet": (["embed", "y.xlsx"], "is a .xlsx file; expected .csv"),
    "empty": (["embed", "empty.csv"], "is empty; expected a table"),
    "header only": (["embed", "header.csv", "--header"], "has a header and no rows"),
    "ragged": (["embed", "ragged.csv"], "line 3 of ragged.csv has 2 columns; expected 3 as in the"),
    "text column": (
        ["embed", "text.csv"],
        "column 'kind' (number 2) of text.csv is not numeric: line 2 has 'x'; expected numbers. "
        "Use --labels kind",
    ),
    "decimal comma": (["embed", "comma.csv"], "'1,5'; expected a decimal point"),
    "no such column": (
        ["embed", "text.csv", "--labels", "sort"],
        "no column 'sort'; expected one of 'a', 'b', 'kind' or a number from 0 to 2",
    ),
    "nothing left": (["embed", "one.csv", "--labels", "0"], "no column of numbers left"),
    "twice the name": (["embed", "twice.csv", "--labels", "a"], "2 columns named 'a'"),
    "not UTF-8": (["embed", "latin.csv"], "not UTF-8 text"),
    "not gzip": (["embed", "not.csv.gz"], "can't be read as delimited text"),
    "objects": (["embed", "objects.npy"], "expected plain arrays of numbers"),
    "one axis": (["embed", "axis.npy"], "shape (3,); expected numbers of shape (rows, columns)"),
    "many arrays": (["embed", "two.npz"], "holds A (3, 2), B (3, 2); expected one array"),
    "no such array": (["embed", "two.npz", "--key", "C"], "has no array 'C'; it holds A (3, 2)"),
    "length of labels": (
        ["embed", "two.npz", "--key", "A", "--labels", "B"],
        "array 'B' of two.npz has shape (3, 2); expected (3,) as --labels",
    ),
    "delimiter": (["embed", "y.csv", "--delimiter", "ab"], "'ab' was given; expected one char"),
    "kernel": (["embed", "y.csv", "--kernel", "rbf+cosine"], "has 'cosine'; expected one of rbf"),
    "inducing": (
        ["embed", "y.csv", "--inducing", "5"],
        "--inducing was given with --model exact; it belongs to --model bayesian or sparse or",
    ),
    "batches": (
        ["embed", "y.csv", "--model", "bayesian", "--batch-size", "5"],
        "--batch-size was given with --model bayesian; it belongs to --model minibatch or local:",
    ),
    "steps of batches": (
        ["embed", "y.csv", "--model", "minibatch", "--max-iter", "5"],
        "--max-iter was given with --model minibatch",
    ),
    "steps of counts": (
        ["embed", "y.csv", "--model", "bayesian", "--likelihood", "poisson", "--max-iter", "5"],
        "--max-iter was given with --model bayesian --likelihood poisson; it belongs to --model "
        "exact or bayesian with Gaussian noise or sparse or local:",
    ),
    "workers for batches": (
        ["embed", "y.csv", "--model", "minibatch", "--engine", "serial"],
        "--engine was given with --model minibatch; it belongs to --model bayesian with Gaussian",
    ),
    "no such model": (["embed", "y.csv", "--model", "deep"], "invalid choice: 'deep'"),
    "not counts": (["embed", "y.csv", "--model", "minibatch", "--likelihood", "poisson"], "counts"),
    "rows": (["embed", "y.csv", "--rows", "1"], "--rows 1 was given; expected 2 or more"),
    "not a number": (["embed", "y.csv", "-q", "two"], "invalid int value: 'two'"),
    "q too large": (["embed", "y.csv", "-q", "4"], "n_components=4 and X has 4 feature(s)"),
    "q zero": (["embed", "y.csv", "-q", "0"], "n_components=0"),
    "constant": (["embed", "constant.csv"], "every column of X is constant"),
    "no folder": (["embed", "y.csv", "--out", "absent/o"], "the folder absent of --out"),
    "onto the input": (["embed", "y.csv", "--out", "y"], "y.csv would replace the input"),
    "no model": (["transform", "absent.npz", "y.csv"], "the model absent.npz can't be read"),
    "foreign model": (["transform", "two.npz", "y.csv"], "an .npz of another origin"),
}


@pytest.mark.parametrize("kind", USAGE_ERRORS)
def test_wrong_usage_is_one_line_and_code_2(kind: str, simple: Path, capsys: Any) -> None:
    for name, text in {
        "empty.csv": "\n\n",
        "header.csv": "a,b\n",
        "ragged.csv": "a,b,c\n1,2,3\n4,5\n",
        "text.csv": "a,b,kind\n1,2,x\n3,4,y\n",
        "comma.csv": "a;b\n1,5;2,5\n3,5;4\n",
        "one.csv": "a\n1\n2\n",
        "twice.csv": "a,a,b\n1,2,3\n4,5,6\n",
        "not.csv.gz": "a,b\n1,2\n",
        "constant.csv": "a,b,c\n" + "1,2,3\n" * 5,
        "y.xlsx": "PK",
    }.items():
        Path(name).write_text(text)
    Path("latin.csv").write_bytes("grö\n1\n".encode("latin-1"))
    np.save("objects.npy", np.array([[None, "x"]]), allow_pickle=True)
    np.save("axis.npy", np.zeros(3))
    np.savez("two.npz", A=np.zeros((3, 2)), B=np.zeros((3, 2)))
    before = sorted(Path().iterdir())
    argv, text = USAGE_ERRORS[kind]
    assert main(argv) == USAGE
    captured = capsys.readouterr()
    assert text in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("gplvm-xp: error: ")
    assert captured.out == ""
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotPositiveDefiniteError("no Cholesky factor"), FAILED),
        (NotEnoughMemoryError("8 TB are needed"), FAILED),
        (MemoryError(), FAILED),
        (ValueError("bad table"), USAGE),
        (RuntimeError("lost the device"), FAILED),
        (KeyboardInterrupt(), INTERRUPTED),
    ],
)
def test_exit_codes_of_a_failed_fit(
    error: BaseException, code: int, simple: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gplvm_xp.estimators

    def fail(self: Any, X: Any) -> None:
        raise error

    monkeypatch.setattr(gplvm_xp.estimators.GPLVM, "fit", fail)
    assert main(["embed", str(simple), *QUICK]) == code
    seen = capsys.readouterr().err
    assert (str(error) or type(error).__name__ or "interrupted") in seen or code == INTERRUPTED
    assert "Traceback" not in seen
    if code != INTERRUPTED:
        assert main(["embed", str(simple), "--debug", *QUICK]) == code
        assert "Traceback" in capsys.readouterr().err


def test_no_gpu_says_why(simple: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "why_no_gpu", lambda: "no driver was found")
    assert main(["embed", str(simple), "--backend", "cupy", *QUICK]) == FAILED
    text = capsys.readouterr().err
    assert "no driver was found" in text
    assert "pip install 'gplvm-xp[cuda13]'" in text


def test_a_time_limit_keeps_the_best_state(simple: Path, capsys: Any) -> None:
    argv = ["embed", str(simple), "--time-limit", "0", "--out", "o", "--no-plot"]
    assert main(argv) == DONE
    assert "note: the fit ended early" in capsys.readouterr().err
    assert load("o.npz").status_ == "time_limit"


# -- the rest --------------------------------------------------------------------------------------


def test_info(capsys: Any) -> None:
    assert main(["info"]) == DONE
    out = capsys.readouterr().out
    for word in (__version__, np.__version__, "scikit-learn", "backend cupy", "processors"):
        assert word in out
    reason = backend.why_no_gpu()
    assert ("usable" if reason is None else f"not usable: {reason}") in out
    assert "threads" in out


@pytest.mark.parametrize("argv", [["--version"], ["--help"], ["embed", "--help"], ["info", "-h"]])
def test_help_and_version_end_with_0(argv: list[str], capsys: Any) -> None:
    assert main(argv) == DONE
    assert "gplvm-xp" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    text = (
        "import sys; from gplvm_xp.cli import main; main(['--help']); "
        "sys.exit(any(m in sys.modules for m in ('numpy', 'scipy', 'sklearn', 'matplotlib')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, timeout=60, env=_environment()
    )
    assert done.returncode == 0, done.stderr
