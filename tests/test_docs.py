"""Documentation: marked blocks run, links resolve, both READMEs agree, all verbs and keys exist."""

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
import typer

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README, README_ZH = ROOT / "README.md", ROOT / "README.zh.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
QUICKSTART = DOCS / "quickstart.md"
GUIDE = ["data", "events", "models", "serving", "release", "monitoring", "python", "export"]
MAX_README_LINES = 120
FENCE = re.compile(r"^```(\w+) run[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, code) of each block of a page that is marked to run."""
    return FENCE.findall(page.read_text("utf-8"))


def free_port() -> int:
    """A free port below the ephemeral range, which other tests do not use."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port below 32,000 is free")


def run_blocks(page: Path, folder: Path) -> None:
    """Run the marked blocks of a page in order in a folder."""
    port = str(free_port())
    tools = folder / ".tools"
    tools.mkdir(exist_ok=True)
    if shutil.which("curl") is None:
        script = f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "tests" / "support" / "curl.py"}" "$@"\n'
        (tools / "curl").write_text(script, "utf-8")
        (tools / "curl").chmod(0o755)
    path = os.pathsep.join([str(Path(sys.executable).parent), str(tools), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "RECLOOP_SERVE__PORT": port}
    for number, (language, written) in enumerate(blocks(page), 1):
        code = written.replace(":8088", f":{port}")
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, f"{page.name}, block {number}\n{code}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def project_after_quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder after all blocks of the quickstart."""
    folder = tmp_path_factory.mktemp("quickstart")
    run_blocks(QUICKSTART, folder)
    return folder


def test_quickstart_blocks_run(project_after_quickstart: Path) -> None:
    assert len(blocks(QUICKSTART)) >= 6
    assert (project_after_quickstart / "recloop.toml").is_file()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page) and page != QUICKSTART], ids=lambda page: page.stem
)
def test_marked_blocks_run(page: Path, tmp_path: Path, project_after_quickstart: Path) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(project_after_quickstart, folder)
    run_blocks(page, folder)


@pytest.mark.parametrize("name", GUIDE)
def test_guide_page_has_executed_blocks(name: str) -> None:
    assert blocks(DOCS / "guide" / f"{name}.md")


@pytest.mark.parametrize("readme", [README, README_ZH], ids=["en", "zh"])
def test_readme_is_short_and_names_every_folder(readme: Path) -> None:
    text = readme.read_text("utf-8")
    assert len(text.splitlines()) <= MAX_README_LINES
    listed = re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)
    package = ROOT / "src" / "recloop"
    assert sorted(listed) == sorted(file.parent.name for file in package.glob("*/__init__.py"))


def test_readme_translations_have_equal_code_and_headings() -> None:
    english, chinese = README.read_text("utf-8"), README_ZH.read_text("utf-8")
    fenced = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
    assert fenced.findall(chinese) == fenced.findall(english)
    headings = [re.findall(r"^#+", fenced.sub("", text), re.MULTILINE) for text in (english, chinese)]
    assert headings[0] == headings[1]
    assert "](README.zh.md)" in english
    assert "](README.md)" in chinese


def sentence(file: Path) -> str:
    """Return the first sentence of a file's docstring on one line."""
    text = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    match = re.match(r".*?[.](?=\s|$)", paragraph)
    return match[0].removesuffix(".") if match else ""


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
def test_source_files_have_a_module_docstring(file: Path) -> None:
    first = sentence(file)
    assert 10 < len(first) < 160, first
    assert "TODO" not in file.read_text("utf-8") or file.name == "test_docs.py"
    assert ast.get_docstring(ast.parse(file.read_text("utf-8")))


def test_stability_page_names_every_verb() -> None:
    app = importlib.import_module("recloop.cli").app  # imported here so that a broken command line fails only this test
    text = (ROOT / "docs" / "stability.md").read_text("utf-8").split("## A project folder")[0]
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert [verb for verb in verbs if f"`{verb}`" not in text] == []


def test_doc_links_resolve() -> None:
    for page in PAGES:
        text = page.read_text("utf-8")
        for target in [*re.findall(r"\]\(([^)#:]+)\)", text), *re.findall(r'<img src="([^":]+)"', text)]:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub forms them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    titles = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def test_anchor_links_lead_to_headings() -> None:
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text("utf-8")):
            linked = page.parent / target if target else page
            assert anchor in anchors(linked), f"{page.name}: {target}#{anchor}"


def test_definitions_index_links_every_heading() -> None:
    index = (DOCS / "definitions.md").read_text("utf-8")
    for page in (DOCS / "definitions").glob("*.md"):
        headings = re.findall(r"^## (.*)$", page.read_text("utf-8"), re.MULTILINE)
        assert re.findall(rf"^- \[(.*)\]\(definitions/{page.name}#", index, re.MULTILINE) == headings


def test_definitions_links_to_code_exist() -> None:
    pattern = re.compile(r"`([a-z_/]+\.py): ([A-Za-z_]+)(?:\.([a-z_]+))?`")
    for page in (DOCS / "definitions").glob("*.md"):
        for name, top, method in pattern.findall(page.read_text("utf-8")):
            source = (ROOT / "src" / "recloop" / name).read_text("utf-8")
            assert re.search(rf"^(?:class |def )?{top}\b", source, re.MULTILINE), f"{page.name}: {name}: {top}"
            assert not method or f"    def {method}(" in source, f"{page.name}: {name}: {top}.{method}"


def test_docstring_links_to_definitions_exist() -> None:
    for file in sources():
        for name in re.findall(r"docs/[a-z/-]+\.md", file.read_text("utf-8")):
            assert (ROOT / name).is_file(), f"{file.name}: {name}"


def test_decisions_index_links_every_file() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text("utf-8")
    assert [file.name for file in folder.glob("2*.md") if f"]({file.name})" not in index] == []


def test_docs_contain_no_local_paths() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![\w.~-])/(?:work|farm|tmp|home|root|opt)/", page.read_text("utf-8")), page
