"""Updates of the grocery demo: child process, another seed, a poisoned copy."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from recloop import bundle
from recloop.data.doctor.label_report import RuleCount
from recloop.files import JsonTree
from recloop.project import Project
from recloop.records import now
from recloop.release.gate_result import GateResult
from recloop.storage import releases
from recloop.storage.data_manifest import DataManifest

SHORT = ("--set", "train.time_budget=3s")
"""Training limit of a demo update, once before its gate and once after."""
NO_CHECK = ("--set", "update.input_check=false")
"""Leaves out the input check; the rows of the other seed are those that the first update has checked."""
SHORTEST = ("--set", "train.time_budget=2s")
"""Training limit of the poisoned update; the gates refuse it for its rows, not for its training."""

Tell = Callable[[str], None]


def update(root: Path, *words: str) -> tuple[JsonTree, str]:
    """Run ``recloop update`` as a child; return its JSON and its last line of stderr."""
    done = subprocess.run(_command(root, *words), capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    return json.loads(done.stdout) if done.stdout else {}, lines[-1] if lines else ""


def _command(root: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "recloop", "-C", str(root), "update", *words, "--json"]


def gate_lines(gates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format each gate of an update's JSON for display."""
    return [GateResult.from_json(one).line() for one in gates]


def rule_lines(signals: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format the effect of each rule of ``[events]`` (`data.doctor.label_report`)."""
    return [str(RuleCount(**count)) for count in signals]


@contextmanager
def copied(root: Path, name: str) -> Iterator[Path]:
    """Copy the folder; databases by SQLite's backup, since the server keeps writing."""
    copy = root / name
    shutil.rmtree(copy, ignore_errors=True)
    left = shutil.ignore_patterns(
        "poisoned*", "reseeded", "reports", "runs", "*.lock", "*.db", "*-wal", "*-shm", "decisions.taken"
    )
    try:
        shutil.copytree(root, copy, ignore=left)
        for file in (root / "store").glob("*.db"):
            with (
                closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as source,
                closing(sqlite3.connect(copy / "store" / file.name)) as target,
            ):
                source.backup(target)
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)


@contextmanager
def another_seed(copy: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the same update with another seed on a copy, in the background."""
    words = _command(copy, *SHORT, *NO_CHECK, "--set", "train.seed=1")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def take_in(project: Project, copy: Path, begun: subprocess.Popen[str], tell: Tell) -> str | None:
    """Register the other seed's bundle with its gates; None if a gate failed."""
    text, _ = begun.communicate()
    done = json.loads(text) if text else {}
    if done.get("verdict") != "registered":
        tell(f"same update with another seed: {done.get('verdict', 'failed')}, so the shadow has no noise floor")
        return None
    name = str(done["bundle"])
    target = project.bundles / name
    shutil.move(copy / "bundles" / name, target)
    control = project.open_control()
    releases.register(
        control, name, bundle.manifest_hash(target), by="recloop demo", reason="same update with another seed",
        at=now(), evidence={"gates": done["gates"]},
    )  # fmt: skip
    tell(f"same update with another seed, for the shadow's noise floor: {name}")
    return name


def poison(checked: Path, unchecked: Path, tell: Tell) -> None:
    """Run the update on copies with shuffled items, which input check and gate block.

    Both updates run at the same time; each has one core.
    """
    copies = {checked: (), unchecked: (*NO_CHECK, *SHORTEST)}
    for copy in copies:
        _shuffle_items(copy / "store" / "log.db", _watermark(copy))
    before = [_bytes_of(copy) for copy in copies]
    with ThreadPoolExecutor(len(copies)) as pool:
        updates = list(pool.map(lambda copy: update(copy, *copies[copy]), copies))
    for (done, last), what in zip(updates, ("with", "without"), strict=True):
        tell(f"poisoned copy, {what} the input check: {done.get('verdict', last)}")
        for line in gate_lines(done.get("gates", [])):
            tell(f"  {line}")
    same = [_bytes_of(copy) for copy in copies] == before
    tell(f"live, vocabulary, state and watermark are unchanged, byte for byte: {'yes' if same else 'NO'}")


def _watermark(root: Path) -> int:
    return DataManifest.read(root / "data").watermark


def _shuffle_items(log: Path, watermark: int) -> None:
    with closing(sqlite3.connect(log)) as store, store:
        rows = store.execute("SELECT seq, item_id FROM events WHERE seq > ? ORDER BY seq", (watermark,)).fetchall()
        items = np.random.default_rng(0).permutation([item for _, item in rows])
        store.executemany(
            "UPDATE events SET item_id = ? WHERE seq = ?", [(str(i), s) for (s, _), i in zip(rows, items, strict=True)]
        )


def _bytes_of(root: Path) -> dict[str, bytes]:
    files = [root / "data" / "manifest.json", root / "store" / "control.db", *sorted(root.glob("bundles/*/*.json"))]
    return {str(file.relative_to(root)): file.read_bytes() for file in files}
