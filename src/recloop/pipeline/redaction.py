"""Removal of forgotten users from ``data/`` and ``bundles/`` before an update.

Files keep their names and are replaced one by one, so that a running service reads the old or the new one. The manifest of
``data/`` is written last. Every step can be repeated after a kill.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow.parquet

from recloop.bundle import redaction as bundle_redaction
from recloop.data.append import split_hash_of
from recloop.data.atomic_folder import GROUP_ROWS, PARQUET_OPTIONS
from recloop.data.labelled_log import DROPPED_PREFIX, SPLIT
from recloop.data.staging import SPLITS, split_hash
from recloop.evaluation.table import FILE_NAME as EVALUATION_FILE
from recloop.files import file_sha256, replace_file, replace_json, replacing
from recloop.pipeline import served_slots
from recloop.pipeline.journal import Journal
from recloop.pipeline.restart import MARKER_FILE, STAGE_FOLDER
from recloop.privacy import erasure
from recloop.progress import Progress
from recloop.project import Project
from recloop.records import RULE, SEQ, USER_ID, FileFacts, now
from recloop.storage import audit, forgotten
from recloop.storage.archived_ids import FOLDER as IDS_FOLDER
from recloop.storage.data_manifest import MANIFEST, DataManifest, RowCounts
from recloop.storage.forgotten import ForgottenUsers

ANONYMOUS_ID = "anonymous_id"
REJECTS_FILE = "rejects.jsonl"


def redact(project: Project, progress: Progress) -> bool:
    """Remove forgotten users; False if none waits or an update must finish first.

    The caller holds the run lock.
    """
    n_lost = erasure.restore_list(project)
    if n_lost:
        progress.say(
            "forget", f"{forgotten.FILE_NAME} lacked {n_lost:,} erasures of the audit log; they are in it again"
        )
    erasures = ForgottenUsers.read(project.root)
    pending = [one for one in erasures.pending if one.stores is not None]
    if not pending or not (project.data / MANIFEST).exists():
        return False
    run = Journal.unfinished(project.runs)
    if run is not None:
        if run.is_done("publish"):
            return False  # its files are being published
        run.close("left")
    if not (project.store / MARKER_FILE).exists():
        shutil.rmtree(project.root / STAGE_FOLDER, ignore_errors=True)
    forgotten.record(project.root, pending)  # a backup under way begins again
    bundle_redaction.recover(project.bundles, _set_hash(project))
    data = _Data(project, erasures)
    data.redact()
    served_slots.drop(project, data.requests)
    n_bundles = _redact_bundles(project, erasures, data.users)
    _redact_reports(project, erasures)
    data.publish()
    forgotten.finish_data(project.root, pending, now())
    progress.say(
        "forget",
        f"{len(pending):,} users: removed {data.n_rows:,} rows from data/, changed {n_bundles:,} bundles",
    )
    return True


class _Data:
    """Files of ``data/`` without forgotten users.

    Attributes:
        users: Ids that were found.
        requests: Request ids of removed rows.
        n_rows: Removed valid and quarantined rows.
    """

    def __init__(self, project: Project, erasures: ForgottenUsers) -> None:
        self._project = project
        self._erasures = erasures
        self._manifest = DataManifest.read(project.data)
        self._facts = dict(self._manifest.files)
        self._removed: Counter[str] = Counter()
        self._rules: Counter[str] = Counter()
        self.users: set[str] = set()
        self.requests: set[str] = set()

    @property
    def n_rows(self) -> int:
        return self._removed["archive"] + self._removed["quarantine.parquet"]

    def redact(self) -> None:
        """Replace each file that names one of the users."""
        for name in self._names():
            self._redact_table(name)
        if (self._project.data / REJECTS_FILE).exists():
            self._blank_rejects()

    def publish(self) -> None:
        """Write the manifest, and the ids of the remaining rows."""
        manifest = self._manifest
        removed = {rule: count - self._rules[rule] for rule, count in manifest.counts.removed.items()}
        splits = {name: self._removed[f"{SPLIT}/{name}.parquet"] for name in SPLITS}
        n_parts = sum(rows for name, rows in self._removed.items() if name.startswith(f"{SPLIT}/") and "/rows-" in name)
        counts = manifest.counts
        counts = RowCounts(
            read=counts.read - self.n_rows,
            kept=counts.kept - self._removed["archive"],
            removed=removed,
            rejected=counts.rejected,
            train=counts.train - splits["train"] - n_parts,
            valid=counts.valid - splits["valid"],
            test=counts.test - splits["test"],
        )
        manifest = replace(manifest, counts=counts, files=self._facts)
        is_updated = any("/rows-" in name for name in manifest.files_in(SPLIT))
        hashed = split_hash_of(manifest) if is_updated else split_hash(manifest.files)
        replace_json(self._project.data / MANIFEST, replace(manifest, split_hash=hashed).to_json())
        shutil.rmtree(self._project.data / IDS_FOLDER, ignore_errors=True)
        self._project.open_archive().open_ids()

    def _names(self) -> Iterator[str]:
        """Yield the tables with users: those of the manifest and superseded ones."""
        data = self._project.data
        for file in sorted(data.rglob("*.parquet")):
            name = file.relative_to(data).as_posix()
            if not name.startswith((DROPPED_PREFIX, "items.parquet")):
                yield name

    def _redact_table(self, name: str) -> None:
        path = self._project.data / name
        ids = pl.read_parquet(path, columns=[USER_ID, SEQ])
        former = self._erasures.former_rows(ids)
        others = self._anonymous(path)
        if not former.any() and not others:
            return
        table = pyarrow.parquet.read_table(path)
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        rows = frame.filter(former)
        self.users |= set(rows[USER_ID])
        kind = "archive" if name.startswith("archive/") else name
        if name in self._manifest.files or not self._manifest.files_in("archive"):
            self._removed[kind] += len(rows)
            if RULE in rows.columns:
                self._rules.update(rows[RULE].drop_nulls().to_list())
        if "request_id" in rows.columns:
            self.requests |= set(rows["request_id"].drop_nulls())
        frame = frame.filter(~former)
        if others:
            is_other = pl.col(ANONYMOUS_ID).is_in(pl.Series(sorted(others)).implode())
            frame = frame.with_columns(pl.when(~is_other).then(ANONYMOUS_ID).alias(ANONYMOUS_ID))
        with replacing(path) as beside:
            pyarrow.parquet.write_table(frame.to_arrow(), beside, row_group_size=GROUP_ROWS, **PARQUET_OPTIONS)
        if name in self._facts:
            self._facts[name] = FileFacts(file_sha256(path), path.stat().st_size)

    def _anonymous(self, path: Path) -> set[str]:
        """Return the anonymous ids in a table that are forgotten."""
        if ANONYMOUS_ID not in pyarrow.parquet.read_schema(path).names:
            return set()
        ids = pl.read_parquet(path, columns=[ANONYMOUS_ID])[ANONYMOUS_ID].drop_nulls().unique()
        return {name for name in ids if self._erasures.former_until(name)}

    def _blank_rejects(self) -> None:
        """Empty the text of unreadable rows, which may name a user."""
        path = self._project.data / REJECTS_FILE
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        if any(row["raw"] for row in rows):
            lines = [json.dumps({**row, "raw": ""}, ensure_ascii=False) + "\n" for row in rows]
            replace_file(path, "".join(lines))
            if REJECTS_FILE in self._facts:
                content = path.read_bytes()
                self._facts[REJECTS_FILE] = FileFacts(hashlib.sha256(content).hexdigest(), len(content))


def _redact_bundles(project: Project, erasures: ForgottenUsers, users: set[str]) -> int:
    """Remove users from every bundle; return how many changed."""
    set_hash = _set_hash(project)
    folders = [path for path in sorted(project.bundles.glob("[!.]*")) if (path / MANIFEST).exists()]
    is_former = erasures.former_until
    return sum(bundle_redaction.redact(folder, lambda user: is_former(user) > 0, users, set_hash) for folder in folders)


def _redact_reports(project: Project, erasures: ForgottenUsers) -> None:
    """Remove users from the examples of the evaluation, and pages that show these."""
    file = project.reports / EVALUATION_FILE
    if not file.exists():
        return
    tree = json.loads(file.read_text("utf-8"))
    examples = [example for example in tree["examples"] if not erasures.former_until(example[USER_ID])]
    if len(examples) < len(tree["examples"]):
        for page in project.reports.glob("*.html"):
            page.unlink()
        replace_json(file, {**tree, "examples": examples})


def _set_hash(project: Project) -> bundle_redaction.SetHash:
    return partial(project.open_control().redact, by=audit.command("update"), at=now())
