"""MPI: a job of two ranks has the bits of one process; errors and lost ranks end, and are told."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from sharded import fit, table

BESIDE = Path(sys.executable).parent / "mpiexec"
MPIEXEC = shutil.which("mpiexec") or (str(BESIDE) if BESIDE.exists() else None)

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("mpi4py") is None, reason="mpi4py is not installed"
    ),
    pytest.mark.skipif(MPIEXEC is None, reason="there is no mpiexec"),
]


def run(tmp_path, body, ranks=2):
    """A script as a job; never longer than half a minute."""
    script = tmp_path / "job.py"
    head = "import os, signal, sys\nimport numpy as np\nfrom sharded import *\n"
    script.write_text(head + textwrap.dedent(body))
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [MPIEXEC, "-n", str(ranks), sys.executable, str(script)],
        capture_output=True, text=True, timeout=30, cwd=tmp_path, env=environment,
    )  # fmt: skip


def test_two_ranks_have_the_bits_of_one_process(tmp_path):
    """Missing entries; two fits, one after the other; rank 0 alone goes on with the engine."""
    done = run(
        tmp_path,
        """
        from gplvm_xp import engine
        chosen = engine.get("mpi")
        assert engine.get("mpi") is chosen
        Y, mu = table(missing=True)
        fit(Y, mu, n_shards=None, steps=1, engine=chosen)
        found = fit(Y, mu, n_shards=5, steps=10, engine=chosen)
        np.savez("found.npz", mu=found.mu, S=found.S, Z=found.end.Z, curve=found.curve)
        t = found.traffic
        print("end", t.calls, t.sent, t.returned, t.apart, chosen.default_shards())
        """,
    )
    assert done.returncode == 0, done.stderr
    Y, mu = table(missing=True)
    here = fit(Y, mu, n_shards=5, steps=10)
    t = here.traffic
    assert done.stdout.split() == ["end", *map(str, (t.calls, t.sent, t.returned, t.apart, 2))]
    with np.load(tmp_path / "found.npz") as there:
        np.testing.assert_array_equal(there["mu"], here.mu)
        np.testing.assert_array_equal(there["S"], here.S)
        np.testing.assert_array_equal(there["Z"], here.end.Z)
        np.testing.assert_array_equal(there["curve"], here.curve)


def test_errors_are_raised_on_rank_0_and_the_engine_goes_on(tmp_path):
    done = run(
        tmp_path,
        """
        from gplvm_xp import engine
        class Worker:
            def __init__(self, index, count, value):
                if value < 0.0:
                    raise ValueError(f"shard {index} has {value}")
                self.index = index
            def where(self):
                from mpi4py import MPI
                return (np.asarray([MPI.COMM_WORLD.rank + 1.0]),)
            def fail(self):
                if self.index == 2:
                    raise KeyError("lost")
                return ()
            def odd(self):
                return (lambda: 0,)
        chosen = engine.get("mpi")
        try:
            chosen.open(Worker, [(1.0,), (1.0,), (-3.0,)])
        except ValueError as error:
            print(error, error.__notes__)
        with chosen.open(Worker, [(1.0,), (1.0,), (1.0,)]) as session:
            for method in ("fail", "odd"):
                try:
                    session.map_reduce(method)
                except (KeyError, RuntimeError) as error:
                    print(type(error).__name__, error.__notes__)
            print(session.map_reduce("where")[0], [int(w[0][0]) for w in session.collect("where")])
        raise SystemExit(3)
        """,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "shard 2 has -3.0 ['while the workers of rank 1 were built']", done.stderr
    assert lines[1] == "KeyError [\"in 'fail' of shard 2, on rank 1\"]"
    assert lines[2].startswith("RuntimeError")
    assert lines[3:] == ["[4.] [1, 1, 2]"], done.stderr
    assert done.returncode == 3


def test_an_uncaught_error_ends_the_job(tmp_path):
    done = run(
        tmp_path,
        """
        from gplvm_xp import engine
        chosen = engine.get("mpi")
        Y, mu = table()
        Y[:, 1] = np.inf
        fit(Y, mu, engine=chosen)
        """,
    )
    assert done.returncode != 0
    assert "X contains infinity in row 0, column 1 (63 such entries)" in done.stderr


def test_a_lost_rank_ends_the_job_and_the_fit_resumes(tmp_path):
    body = """
        from pathlib import Path
        from mpi4py import MPI
        from gplvm_xp import engine
        from gplvm_xp.engine import Checkpoint
        if MPI.COMM_WORLD.rank:
            Path("pid").write_text(str(os.getpid()))
        chosen = engine.get("mpi")
        def kill(progress):
            if progress.step == 10:
                os.kill(int(Path("pid").read_text()), signal.SIGKILL)
        Y, mu = table()
        resume = os.path.exists("fit.npz")
        found = fit(
            Y, mu, engine=chosen, checkpoint=Checkpoint("fit.npz", 4), resume=resume,
            callback=None if resume else kill,
        )
        np.savez("found.npz", mu=found.mu, curve=found.curve)
        """
    done = run(tmp_path, body)
    assert done.returncode != 0
    assert not (tmp_path / "found.npz").exists()
    done = run(tmp_path, body)
    assert done.returncode == 0, done.stderr
    here = fit(*table())
    with np.load(tmp_path / "found.npz") as there:
        np.testing.assert_array_equal(there["mu"], here.mu)
        np.testing.assert_array_equal(there["curve"], here.curve)
