"""Docs are executed: marked blocks run, the tree's sentences are the files' own, every verb and key is written down."""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import generate
import pytest
import readme_tree
import typer

from recloop.simulation.shop import SimulatedShop

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+) run[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """The (language, code) of each block of a page that is marked to run."""
    return FENCE.findall(page.read_text("utf-8"))


def free_port() -> int:
    """One below those that the system gives away: no server of another test takes it before the page's own does."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port below 32,000 is free")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_marked_blocks_run(page: Path, tmp_path: Path, world: SimulatedShop) -> None:
    """In order, in one folder that holds a shop's three files, with the commands of this environment."""
    world.events().write_csv(tmp_path / "orders.csv")
    world.items().write_csv(tmp_path / "products.csv")
    world.users().write_csv(tmp_path / "customers.csv")
    port = str(free_port())
    tools = tmp_path / ".tools"
    tools.mkdir()
    if shutil.which("curl") is None:
        script = f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "tests" / "curl.py"}" "$@"\n'
        (tools / "curl").write_text(script, "utf-8")
        (tools / "curl").chmod(0o755)
    path = os.pathsep.join([str(Path(sys.executable).parent), str(tools), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "RECLOOP_SERVE__PORT": port}
    for number, (language, written) in enumerate(blocks(page), 1):
        code = written.replace(":8088", f":{port}")
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, f"{page.name}, block {number}\n{code}\n{done.stdout}\n{done.stderr}"


def test_the_guide_is_executed() -> None:
    assert len(blocks(ROOT / "docs" / "guide.md")) >= 4


def test_the_tree_of_the_readme_is_the_tree() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert readme_tree.block() in text, "run: python tests/support/readme_tree.py --write"


def test_reference_tree_is_as_generated() -> None:
    assert generate.stale() == [], f"run: {generate.COMMAND}"


def test_architecture_lists_the_import_layers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    layers = [re.sub(r"[()]", "", layer) for layer in project["tool"]["importlinter"]["contracts"][0]["layers"]]
    assert "\n".join(layers) in (ROOT / "docs" / "architecture.md").read_text("utf-8")


def test_architecture_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8").split("### Files and hops")[0]
    named = re.findall(r"`([a-z_/]+\.py)`", text)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / "src" / "recloop" / name).is_file()] == []


def sources() -> Iterator[Path]:
    for folder in ("src", "tests", "benchmarks"):
        yield from (ROOT / folder).rglob("*.py")


@pytest.mark.parametrize("file", sorted(sources()), ids=lambda file: str(file.relative_to(ROOT)))
def test_every_file_opens_with_what_it_is_for(file: Path) -> None:
    said = readme_tree.sentence(file)
    assert 20 < len(said) < 160, said
    assert "TODO" not in file.read_text("utf-8") or file.name == "test_docs.py"
    assert ast.get_docstring(ast.parse(file.read_text("utf-8")))


def test_every_verb_is_documented() -> None:
    app = importlib.import_module("recloop.cli").app  # here: a broken command line fails this test alone
    text = (ROOT / "docs" / "stability.md").read_text("utf-8").split("## A project folder")[0]
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert [verb for verb in verbs if f"`{verb}`" not in text] == []
    guide = (ROOT / "docs" / "guide.md").read_text("utf-8")
    assert [verb for verb in verbs if f"recloop {verb}" not in guide] == []


def test_links_inside_the_docs_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_decisions_index_links_every_file() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text("utf-8")
    assert [file.name for file in folder.glob("2*.md") if f"]({file.name})" not in index] == []


def test_no_page_names_a_place_of_this_machine() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![\w.~-])/(?:work|farm|tmp|home|root|opt)/", page.read_text("utf-8")), page
