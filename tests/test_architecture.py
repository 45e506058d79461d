"""The house: imports go down the floors, and what belongs to one room stays there."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from pathlib import Path

import pytest

import gplvm_xp

ROOT = Path(gplvm_xp.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FLOORS = {
    "errors": 0, "_typing": 0,
    "backend": 1,
    "params": 2, "optim": 2, "operators": 2, "neighbours": 2,
    "kernels": 3, "priors": 3, "likelihoods": 3, "posteriors": 3, "engine": 3,
    "latents": 3,
    "objectives": 4, "inducing": 4, "init": 4, "predict": 4, "kl": 4, "variational": 4,
    "encoders": 4, "row_priors": 4, "geometry": 4,
    "_header": 5, "estimators": 5,
    "_arguments": 6, "_machine": 6, "_tables": 6, "datasets": 6, "io": 6, "metrics": 6, "plot": 6,
    "testing": 6,
    "cli": 7, "__main__": 8, "__init__": 9,
}  # fmt: skip
# (importing module, imported module): why it may look up. Only imports inside a function count.
UPWARD = {("estimators", "io"): "GPLVM.save is a door to the file format, opened on demand"}
# Where a foreign library may be imported, as a prefix of the module's path.
HOMES = {
    "cupy": ("backend/_cupy.py",),
    "cupyx": ("backend/_cupy.py",),
    "cupy_backends": ("backend/_cupy.py",),
    "scipy.linalg": ("backend/_numpy.py", "_machine.py"),  # the latter only asks which BLAS it has
    "torch": ("_machine.py",),
    "sklearn": ("estimators/", "init.py", "datasets/", "io/", "_machine.py"),
    "matplotlib": ("plot/", "_machine.py"),
    "tqdm": ("estimators/", "datasets/"),
    "dask": ("engine/dask.py",),
    "distributed": ("engine/dask.py",),
    "mpi4py": ("engine/mpi.py",),
}
# Modules that need a package which is not always installed.
OPTIONAL = {"gplvm_xp.engine.dask": "distributed", "gplvm_xp.engine.mpi": "mpi4py"}
MAX_LINES = 400
# Below these floors arrays may live on a device, so that reading a number waits.
DEVICE_FLOORS = range(2, 6)
HOST_ONLY = {
    "init.py": "starts are computed on the host, once",
    "_header.py": "a file's header holds host numbers",
    "estimators/_auto.py": "a choice is made by shapes and clocks, on the host",
    "estimators/_targets.py": "targets are checked and encoded on the host",
}
# module or folder: {call: why the number is the host's}. A call on `to_host(...)` needs none.
HOST_NUMBERS: dict[str, dict[str, str]] = {
    "params.py": {"value.tolist()": "starting values are host numbers"},
    "kernels/base.py": {"float(other)": "2.0 * k"},
    "kernels/_fields.py": {
        "float(v)": "starting values", "float(array)": "starting values",
        "int(number)": "a name's digits",
    },
    "kernels/compose.py": {"float(values[0])": "starting values"},
    "optim/scipy.py": {
        "packed.item(0)": "read by the one bridge", "np.max(np.abs(packed[1:])).item()": "the same",
    },
    "likelihoods/base.py": {"float(v)": "starting values"},
    "optim/newton.py": {"int(lost.sum())": "a host mask"},
    "optim/lbfgs.py": {"bool(self._pairs)": "a list"},
    "optim/slices.py": {
        "a.tolist()": "an order: host numbers on their way", "order[0].tolist()": "the same",
    },
    "optim/sharded.py": {
        "line[:2].tolist()": "parts of what was read", "products[:5].tolist()": "the same",
        "f.item()": "the same", "np.maximum(norm, self._answer.norm).item()": "the same",
        "self._gram[-1, -1].item()": "inner products on the host",
        "state.values.tolist()": "a checkpoint", "state.grad_norms.tolist()": "a checkpoint",
        "resume.values[:-1].tolist()": "a checkpoint",
        "resume.grad_norms[:-1].tolist()": "a checkpoint",
    },
    "engine/": {"int(self._rank.comm.size)": "a number of ranks"},
    "objectives/": {
        "float(Y.shape[0])": "a shape",
        "int(which.max(initial=0))": "groups of outputs, on the host",
        "int(which.max())": "the same",
        "np.flatnonzero(counts == 0).tolist()": "the same",
        "int(step[0])": "an argument of a worker, on the host", "int(memory[0])": "the same",
        "bool(held[0])": "the same", "bool(held[1])": "the same", "int(point[0])": "the same",
        "noise.item()": "read with to_host", "float(read[0])": "the same",
        "arrays['rows'].tolist()": "a checkpoint",
        "arrays['before'].tolist()": "a checkpoint",
    },
    "variational/": {
        "int(given_up.sum())": "a host mask", "basis.keep.tolist()": "frequencies on the host",
    },
    "predict.py": {
        "int(c)": "rows of a missing-data pattern", "int(f.rows.max())": "row indices",
    },
    "estimators/": {
        "float(accuracy_score(host(y), found, sample_weight=sample_weight))": "a host metric",
        "float(r2_score(host(y), found, sample_weight=sample_weight))": "a host metric",
        "bool(self.scale)": "an argument", "bool(model.scale)": "an argument",
        "float(sum((prior.log_density(values[name])[0] for name, prior in priors.items())))":
            "of host values",
        "np.sum((t.entries / t.outputs)[t.which] * np.log(fit.table.scale)).item()":
            "of host values",
        "float(value)": "an argument",
        "bool(flag)": "an argument", "int(n)": "numbers of cells", "int(value)": "an argument",
        "bool(model.inference == 'minibatch')": "an argument", "float('nan')": "no array",
        "int(rng.integers(2 ** 31))": "random numbers are the host's",
        "float(spread.max())": "starting latents, on the host", "float(X.std())": "the same",
        "float(v)": "starting values", "float(np.nanmean(Y ** 2))": "the validated table",
        "float(totals.mean())": "the validated table",
        "diagonal.mean().item()": "kernel and inducing inputs of the driver, on the host",
        "a.item()": "the state of a search, on the host",
        "float(self.noise_variance_)": "a fitted number",
        "int(np.sum(self.relevance_ > ACTIVE))": "slopes of host predictions",
        "int(self._host_embedding.shape[1])": "a shape",
        "float(Z.std())": "the host's copy of the latents",
        "float(np.nanmean(centred ** 2))": "the validated table",
        "float(np.nanvar(Y))": "the validated table",
        "float(np.sum(~np.isnan(Y) * np.log(self.scale_)))": "the validated table",
    },
}  # fmt: skip


def room(path: Path) -> str:
    """The first part of a module's dotted name below the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def imports(tree: ast.Module, here: str):
    """Absolute names that a module imports, and whether that is done inside a function."""
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level < 2, "a relative import that leaves its room hides the floor"
            origin = f"gplvm_xp.{here}.{node.module}" if node.level else node.module
            names = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield name, id(node) in inside


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def each_file(test):
    return pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))(test)


@each_file
def test_imports_go_down(path):
    here = room(path)
    assert here in FLOORS, f"give {here} a floor"
    for name, inside in imports(parsed(path), here):
        package, _, rest = name.partition(".")
        if package != "gplvm_xp" or rest == "__version__":
            continue
        rest = gplvm_xp._HOME.get(rest, name).partition(".")[2]
        there = rest.partition(".")[0]
        assert there in FLOORS, f"{name}: give {there} a floor"
        if there == here or (inside and (here, there) in UPWARD):
            continue
        assert FLOORS[there] < FLOORS[here], f"{here} imports {name}, which is not below it"


@each_file
def test_foreign_libraries_stay_at_home(path):
    here = path.relative_to(ROOT).as_posix()
    for name, _ in imports(parsed(path), room(path)):
        for library, homes in HOMES.items():
            if name == library or name.startswith(f"{library}."):
                assert here.startswith(homes), f"{name} is imported in {here}"


@each_file
def test_size_and_docstring(path):
    tree, lines = parsed(path), path.read_text(encoding="utf-8").count("\n")
    assert ast.get_docstring(tree), "a module begins with what it is for"
    assert lines <= MAX_LINES, f"{lines} lines: divide it"


def readings(tree: ast.Module):
    """Calls that would read a number from an array, as text."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        named = isinstance(called, ast.Name) and called.id in ("float", "int", "bool", "complex")
        method = isinstance(called, ast.Attribute) and called.attr in ("item", "tolist")
        text = ast.unparse(node)
        if (named or method) and "to_host(" not in text:
            yield text


def test_no_number_is_read_from_an_array_unseen():
    unused = {(place, call) for place, calls in HOST_NUMBERS.items() for call in calls}
    for path in FILES:
        here = path.relative_to(ROOT).as_posix()
        if FLOORS[room(path)] not in DEVICE_FLOORS or here in HOST_ONLY:
            continue
        for call in readings(parsed(path)):
            found = {(p, call) for p, known in HOST_NUMBERS.items() if call in known}
            found = {(p, c) for p, c in found if here.startswith(p)}
            assert found, f"{here}: {call} may wait for a device; read it with to_host"
            unused -= found
    assert not unused, f"no longer there: {sorted(unused)}"


def test_the_reader_sees_planted_readings():
    tree = ast.parse("def f(x):\n    return float(x) + x.item() + float(b.to_host(x))")
    assert sorted(readings(tree)) == ["float(x)", "x.item()"]


# -- overrides keep their signature ----------------------------------------------------------------


def overrides():
    from gplvm_xp import kernels, likelihoods, operators, optim, posteriors, priors
    from gplvm_xp.backend import _numpy, _torch
    from gplvm_xp.backend.base import Backend
    from gplvm_xp.backend.cuda import device
    from gplvm_xp.kernels import Kernel, psi
    from gplvm_xp.kernels.psi import Psi
    from gplvm_xp.likelihoods import Likelihood
    from gplvm_xp.operators import LinearMap, Precision
    from gplvm_xp.optim.base import Method
    from gplvm_xp.posteriors import Covariance
    from gplvm_xp.priors import Prior

    modules = {Backend: (_numpy, _torch, device), Kernel: (kernels,), Prior: (priors,)}
    modules |= {Method: (optim,), Likelihood: (likelihoods,), Covariance: (posteriors,)}
    modules |= {LinearMap: (operators,), Precision: (operators,), Psi: (psi,)}
    for base, places in modules.items():
        classes = {
            thing
            for module in places
            for thing in vars(module).values()
            if inspect.isclass(thing) and issubclass(thing, base) and thing is not base
        }
        for kind in sorted(classes, key=lambda k: k.__name__):
            for name, function in vars(kind).items():
                if not name.startswith("__") and callable(getattr(base, name, None)):
                    yield pytest.param(getattr(base, name), function, id=f"{kind.__name__}.{name}")


def _shape(function) -> list[tuple[str, object, object]]:
    function = getattr(function, "__func__", function)
    parameters = list(inspect.signature(function).parameters.values())
    return [(p.name, p.kind, p.default) for p in parameters if p.name not in ("self", "cls")]


@pytest.mark.parametrize(("base", "override"), list(overrides()))
def test_overrides_keep_the_signature(base, override):
    assert _shape(override) == _shape(base)


def test_the_overrides_were_found():
    ids = [p.id for p in overrides()]
    for name in ("NumpyBackend.cholesky", "TorchBackend.cholesky", "CudaBackend.fused", "RBF.cuda"):
        assert (name in ids) == (name != "RBF.cuda"), name


def test_public_modules_import():
    for path in FILES:
        here = path.relative_to(ROOT).with_suffix("")
        if here.as_posix() in ("__main__", "backend/_cupy"):
            continue
        name = ".".join(("gplvm_xp", *(p for p in here.parts if p != "__init__")))
        if name in OPTIONAL and importlib.util.find_spec(OPTIONAL[name]) is None:
            continue
        importlib.import_module(name)
