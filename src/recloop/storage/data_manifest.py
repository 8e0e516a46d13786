"""Typed record of ``data/manifest.json``: prepared log, files and updates.

Parsed when ``data/`` is opened. Keys that this version does not know are kept in ``other_keys`` and written back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from recloop.errors import UserError
from recloop.files import JsonObject, JsonTree, without_none
from recloop.records import FileFacts

MANIFEST: Final = "manifest.json"
LOST_FIX: Final = "copy from a backup the folder data/"
"""Fix for a lost manifest: without it nothing tells the rows of updates from those of the import."""


@dataclass(frozen=True)
class FileRecord:
    """Input file as read: name in the project folder, hash, size and row counts."""

    name: str
    sha256: str
    bytes: int
    rows: int = 0
    rejected: int = 0


@dataclass(frozen=True)
class RowCounts:
    """Row counts of all rows; ``removed`` by rule.

    After an update ``train`` includes the validation rows, and ``valid`` is 0.
    """

    read: int
    kept: int
    removed: Mapping[str, int]
    rejected: int
    train: int
    valid: int
    test: int


@dataclass(frozen=True)
class UpdateRecord:
    """Rows added by one update."""

    from_seq: int
    to_seq: int
    read: int
    kept: int


@dataclass(frozen=True)
class WindowLoss:
    """Live bundle's loss on one update's window, with the bundle's recipe.

    See `recloop.evaluation.paired.LossEstimate`. Records of earlier versions lack the values that may be None.
    """

    to_seq: int
    loss: float
    bundle: str | None = None
    queries: int | None = None
    spread: float | None = None
    recipe: str | None = None

    def to_json(self) -> JsonTree:
        return without_none(**vars(self))


@dataclass(frozen=True)
class DataManifest:
    """Content of ``data/``.

    Attributes:
        code: Version of recloop that wrote it last.
        fingerprint: Hash of the imported files and the settings that read them.
        cut: Start of the test, int64 microseconds UTC.
        held_seq: First seq of the held-back moments; None if there are none.
        watermark: Last seq in ``data/``.
        imported: Last seq of the import; None in manifests of earlier versions.
        sources: Files of ``data.events`` as read.
        catalogs: Files of ``data.items`` and ``data.users`` as read.
        report: Numbers of the doctor.
        dwell: See `recloop.features.dwell`.
        config: All settings.
        files: Files of ``data/`` by path.
        labels: `FeatureSpec.state_key` of the labels in the split; None before the first update.
        superseded: Files that this version replaced; readers of the version before may still use them.
    """

    fingerprint: str
    cut: int
    watermark: int
    split_hash: str
    counts: RowCounts
    config: Mapping[str, Any]
    files: Mapping[str, FileFacts]
    format: int | None = None
    code: str = ""
    held_seq: int | None = None
    imported: int | None = None
    sources: tuple[FileRecord, ...] = ()
    catalogs: tuple[FileRecord, ...] = ()
    updates: tuple[UpdateRecord, ...] = ()
    windows: tuple[WindowLoss, ...] | None = None
    report: Mapping[str, Any] = field(default_factory=dict)
    dwell: Mapping[str, Any] | None = None
    labels: str | None = None
    superseded: tuple[str, ...] = ()
    other_keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        """``split.protocol`` of the settings."""
        return str(self.config["split"]["protocol"])

    def files_in(self, folder: str) -> list[str]:
        """Paths of the files in a folder of ``data/``, ascending."""
        return sorted(name for name in self.files if name.startswith(f"{folder}/"))

    @property
    def imported_until(self) -> int:
        """Last seq of the import; later rows were posted."""
        if self.imported is not None:
            return self.imported
        return self.updates[0].from_seq - 1 if self.updates else self.watermark

    @classmethod
    def read(cls, folder: Path) -> DataManifest:
        """Read the manifest of a folder.

        Raises:
            UserError: the manifest is missing or damaged.
        """
        file = folder / MANIFEST
        try:
            tree = json.loads(file.read_text("utf-8"))
        except FileNotFoundError:
            raise UserError("data", file, "a prepared log", f"recloop update, or if it was lost, {LOST_FIX}") from None
        except ValueError as error:
            raise UserError("data", file, f"an undamaged manifest ({error})", LOST_FIX) from None
        return cls.from_json(tree)

    @classmethod
    def from_json(cls, tree: Any) -> DataManifest:
        """Parse ``data/manifest.json``.

        Raises:
            UserError: a key is missing or has the wrong type.
        """
        manifest = JsonObject(tree, f"data/{MANIFEST}", UserError, "recloop prepare")
        return cls(
            format=manifest.optional("format", int),
            code=manifest.optional("code", str) or "",
            fingerprint=manifest.required("fingerprint", str),
            cut=manifest.required("cut", int),
            held_seq=manifest.optional("held_seq", int),
            watermark=manifest.required("watermark", int),
            imported=manifest.optional("imported", int),
            sources=manifest.optional("sources", tuple[FileRecord, ...]) or (),
            catalogs=manifest.optional("catalogs", tuple[FileRecord, ...]) or (),
            updates=manifest.optional("updates", tuple[UpdateRecord, ...]) or (),
            windows=manifest.optional("windows", tuple[WindowLoss, ...]),
            split_hash=manifest.required("split_hash", str),
            counts=manifest.required("counts", RowCounts),
            report=manifest.optional("report", JsonTree) or {},
            dwell=manifest.optional("dwell", JsonTree),
            labels=manifest.optional("labels", str),
            superseded=manifest.optional("superseded", tuple[str, ...]) or (),
            files=manifest.required("files", dict[str, FileFacts]),
            config=manifest.required("config", JsonTree),
            other_keys=manifest.unread,
        )

    def to_json(self) -> JsonTree:
        return {
            **self.other_keys,
            "code": self.code,
            "fingerprint": self.fingerprint,
            "cut": self.cut,
            "watermark": self.watermark,
            "sources": [asdict(record) for record in self.sources],
            "catalogs": [asdict(record) for record in self.catalogs],
            "split_hash": self.split_hash,
            "counts": {**vars(self.counts), "removed": dict(self.counts.removed)},
            "report": dict(self.report),
            "files": {name: asdict(facts) for name, facts in self.files.items()},
            "config": dict(self.config),
            **without_none(
                format=self.format,
                held_seq=self.held_seq,
                imported=self.imported,
                dwell=None if self.dwell is None else dict(self.dwell),
                labels=self.labels,
                superseded=list(self.superseded) or None,
                updates=[asdict(update) for update in self.updates] or None,
                windows=None if self.windows is None else [window.to_json() for window in self.windows],
            ),
        }
