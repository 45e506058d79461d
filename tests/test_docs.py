"""The documentation holds: its examples run, its commands parse, its links lead somewhere.

Python blocks of one page run from top to bottom in one namespace, in an empty folder, with warnings
as errors. A block is left out only behind a comment ``<!-- no-run: the reason -->`` above it. The
matrices are small, so BLAS gets one thread: on a busy machine two wait for each other.
"""

from __future__ import annotations

import argparse
import contextlib
import doctest
import importlib
import io
import itertools
import pkgutil
import re
import shlex
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import gplvm_xp
from gplvm_xp import cli
from gplvm_xp.kernels import Kernel

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
MOST_LEFT_OUT = 4
# Modules that need a package which is not always installed.
OPTIONAL = {"gplvm_xp.engine.dask": "distributed", "gplvm_xp.engine.mpi": "mpi4py"}

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_NO_RUN = re.compile(r"<!-- no-run: \S.{9,} -->")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, the line where that begins, whether it runs."""

    language: str
    text: str
    line: int
    runs: bool


def blocks_of(page: Path) -> Iterator[Block]:
    before, language, start, text = "", None, 0, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            if language is None:
                language, start, text = line[3:].strip(), number + 1, []
                continue
            runs = not before.startswith("<!-- no-run")
            assert runs or _NO_RUN.fullmatch(before), f"{page}:{start - 2}: give the reason"
            yield Block(language, "\n".join(text) + "\n", start, runs)
            language, before = None, ""
        elif language is not None:
            text.append(line)
        elif line.strip():
            before = line.strip()
    assert language is None, f"{page}:{start - 1}: the block is not closed"


def prose_of(page: Path) -> str:
    """The page without its blocks and code spans."""
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]*`", "", text)


def run_page(page: Path) -> dict[str, Any]:
    """Execute the Python blocks of a page; returns the names that it defines."""
    # A module of its own, because dataclasses and pickle look their class's module up.
    module = types.ModuleType(f"page_{page.stem}")
    sys.modules[module.__name__] = module
    try:
        for block in blocks_of(page):
            if block.language == "python" and block.runs:
                code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
                with (
                    threadpool_limits(1, user_api="blas"),
                    contextlib.redirect_stdout(io.StringIO()),
                    warnings.catch_warnings(),
                ):
                    warnings.simplefilter("error")
                    exec(code, module.__dict__)
        return dict(module.__dict__)
    finally:
        del sys.modules[module.__name__]


# -- examples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, p in zip(NAMES, PAGES, strict=True) if any(
    b.language == "python" and b.runs for b in blocks_of(p)
)])  # fmt: skip
def test_the_examples_of_a_page_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "matplotlib" in (ROOT / name).read_text(encoding="utf-8"):
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    run_page(ROOT / name)


def test_few_examples_are_left_out_and_each_says_why() -> None:
    left_out = [b for p in PAGES for b in blocks_of(p) if b.language == "python" and not b.runs]
    assert len(left_out) <= MOST_LEFT_OUT


def test_every_block_names_its_language() -> None:
    known = {"python", "console", "text", "cpp", "toml"}
    for page in PAGES:
        for block in blocks_of(page):
            assert block.language in known, f"{page}:{block.line - 1}: {block.language!r}"


def test_the_readme_example_is_short() -> None:
    first = next(b for b in blocks_of(ROOT / "README.md") if b.language == "python")
    assert len(first.text.splitlines()) <= 12


def test_the_kernel_of_the_guide_agrees_with_its_cuda_snippet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emulator import why_no_emulator

    reason = why_no_emulator()
    if reason is not None:
        pytest.skip(f"emulated: {reason}")
    from emulated import emulated_arrays

    from gplvm_xp.testing import check_kernel

    monkeypatch.chdir(tmp_path)
    page = run_page(DOCS / "guide" / "add_a_kernel.md")
    kinds = [k for k in page.values() if isinstance(k, type) and issubclass(k, Kernel)]
    own = [k for k in kinds if k.__module__.startswith("page_")]
    assert own, "the page defines no kernel"
    for kind in own:
        assert kind().cuda(2) is not None
        with emulated_arrays() as b:
            check_kernel(kind(), 2, make=b.asarray)


# -- docstrings ------------------------------------------------------------------------------------


def _modules() -> list[str]:
    found = pkgutil.walk_packages(gplvm_xp.__path__, "gplvm_xp.")
    return ["gplvm_xp", *(m.name for m in found if not m.name.endswith("__main__"))]


@pytest.mark.parametrize("name", _modules())
def test_the_examples_of_docstrings_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    with np.printoptions(legacy=False), threadpool_limits(1, user_api="blas"):
        failed, _ = doctest.testmod(module, optionflags=flags)
    assert failed == 0, "see the report above"


def test_every_public_name_is_documented() -> None:
    for name in gplvm_xp.__all__:
        assert (getattr(gplvm_xp, name).__doc__ or "").strip(), name


# -- commands --------------------------------------------------------------------------------------


def _commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    """Simple commands of the console blocks: their line and their words."""
    for block in blocks_of(page):
        if block.language != "console":
            continue
        text = block.text.replace("\\\n", " ")
        for offset, line in enumerate(text.splitlines()):
            words: list[str] = []
            for word in [*shlex.split(line.removeprefix("$ "), comments=True), "&&"]:
                if word in ("&&", "|", ";"):
                    if words:
                        yield block.line + offset, words
                    words = []
                else:
                    words.append(word)


@pytest.mark.parametrize("name", NAMES)
def test_command_lines_parse(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_only(*args: Any, **kwargs: Any) -> Any:
        parse(*args, **kwargs)
        raise SystemExit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    for line, words in _commands(ROOT / name):
        if Path(words[0]).name == "gplvm-xp":
            assert cli.main(words[1:]) == 0, f"{name}:{line}: {capsys.readouterr().err}"


def test_files_that_commands_name_are_there() -> None:
    for page in PAGES:
        for line, words in _commands(page):
            for option, target in itertools.pairwise(words):
                if option == "-m" and target.startswith("benchmarks"):
                    path = ROOT / target.replace(".", "/")
                    there = path.is_dir() or path.with_suffix(".py").is_file()
                    assert there, f"{page}:{line}: no module {target}"


def _setup_lines() -> list[str]:
    blocks = [b for b in blocks_of(ROOT / "README.md") if b.language == "console"]
    lines = [line for b in blocks for line in b.text.splitlines()]
    return [line for line in lines if "-m venv" in line]


def test_the_readme_has_exactly_two_set_up_command_lines() -> None:
    lines = _setup_lines()
    assert len(lines) == 2, lines
    for line in lines:
        assert line.startswith("python3 -m venv .venv && ")
        assert "activate" not in line
        for command in line.split(" && ")[1:]:
            assert command.startswith(".venv/bin/"), f"{command!r} needs an activated environment"
    assert ".venv/bin/gplvm-xp embed --dataset digits" in lines[0]
    assert lines[1].endswith(" -m pytest -n auto")


def test_the_ci_takes_the_test_command_from_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    if not script.is_file():
        pytest.skip("not a checkout: .ci/run is not part of an sdist")
    shown = subprocess.run(
        ["bash", str(script), "--show-test-command"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert shown == _setup_lines()[1]
    assert "-m pytest" not in script.read_text(encoding="utf-8").replace("-m pytest -n auto$", "")


# -- links -----------------------------------------------------------------------------------------


def _anchors(page: Path) -> set[str]:
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))
    headings = re.findall(r"(?m)^#+ +(.*)$", text)
    clean = [re.sub(r"[^\w\s-]", "", h.encode("ascii", "ignore").decode()) for h in headings]
    return {re.sub(r"[\s-]+", "-", c.strip().lower()) for c in clean}


@pytest.mark.parametrize("name", NAMES)
def test_links_inside_the_repository_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in _LINK.findall(prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name}: {target} does not exist"
        if page.is_relative_to(DOCS):
            assert file.is_relative_to(DOCS), f"{name}: {target} is not part of the site"
        if anchor:
            assert anchor in _anchors(file), f"{name}: {target} has no such heading"


def test_every_page_is_in_the_contents_once() -> None:
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"(\S+\.md)\s*$", contents, flags=re.MULTILINE)
    there = [str(page.relative_to(DOCS)) for page in PAGES[1:]]
    assert sorted(listed) == sorted(there)


def test_math_and_code_names_in_the_architecture_exist() -> None:
    """Source paths that the pages name in code spans are files of the repository."""
    pattern = re.compile(r"`((?:gplvm_xp|tests|benchmarks)/[\w./*]+)`")
    for page in PAGES:
        for path in pattern.findall(page.read_text(encoding="utf-8")):
            if path.startswith("benchmarks/results"):
                continue
            assert list(ROOT.glob(path.rstrip("/"))), f"{page.name} names {path}"
