"""A project folder: its configuration, the paths in it and its stores.

A store opens as a context manager, ``with project.open_log() as log``; an object that lives long keeps it and calls
``close()``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from recloop import bundle as bundles
from recloop import storage
from recloop.bundle import Bundle
from recloop.config import FILE, Config
from recloop.errors import UserError
from recloop.settings import build
from recloop.storage import ControlStore, DecisionLog, EventLog, releases, snapshots
from recloop.storage.archive import Archive
from recloop.storage.snapshots import Snapshot


@dataclass(frozen=True)
class Project:
    """A project folder and its configuration (docs/stability.md, a project folder).

    Attributes:
        root: The folder with ``recloop.toml``.
        base: Start of the paths of ``[data]`` while a new first run is staged in another ``root``.
    """

    root: Path
    config: Config
    base: Path | None = None

    @property
    def sources(self) -> Path:
        """The folder that the paths of ``[data]`` start from."""
        return self.base or self.root

    @property
    def file(self) -> Path:
        return self.root / FILE

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def bundles(self) -> Path:
        return self.root / "bundles"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def store(self) -> Path:
        return self.root / "store"

    def open_log(self, write: bool = False) -> EventLog:
        """Open the event log; a writer must hold `locks.writer_lock`."""
        return storage.open_log(self.config.stores.log, self.root, write)

    def open_decisions(self, write: bool = False) -> DecisionLog:
        """Open the decisions; a writer must hold `locks.writer_lock`."""
        return storage.open_decisions(self.config.stores.decisions, self.root, write)

    def open_control(self) -> ControlStore:
        """Open the control store, which keeps no file open between calls and needs no closing."""
        return storage.open_control(self.config.stores.control, self.root)

    def open_archive(self) -> Archive:
        """Open the archived events, items and users of ``data/``, which keep no file open between calls.

        Raises:
            UserError: the log is not prepared yet.
        """
        return Archive(self.data)

    def snapshot_file(self, seq: int, state_key: str) -> Path:
        """The file of the snapshot as of ``seq``, for the states of ``state_key``."""
        return self.store / snapshots.name(seq, state_key)

    def open_snapshot(self, seq: int, state_key: str) -> Snapshot:
        """Open the snapshot as of ``seq``, for the states of ``state_key``.

        Raises:
            UserError: the file is missing, incomplete or of another schema.
        """
        return Snapshot(self.snapshot_file(seq, state_key))

    def live_bundle_id(self) -> str | None:
        """The id of the live bundle; None: no bundle was promoted yet."""
        row = releases.live(self.open_control())
        return None if row is None else row.bundle

    def load_bundle(self, bundle_id: str = "") -> Bundle:
        """Load a registered bundle, the live one without an id, and check it against its registered hash.

        Raises:
            UserError: the bundle is not registered, or none is live yet.
            BundleError: its bytes are not the registered ones.
        """
        bundle_id = bundle_id or self.live_bundle_id() or ""
        if not bundle_id:
            raise UserError("bundle", "none live yet", "a live bundle", "recloop update")
        hashes = {row.bundle: row.sha256 for row in self.open_control().releases()}
        if bundle_id not in hashes:
            raise UserError("bundle", bundle_id, f"one of {', '.join(hashes) or 'none yet'}", "recloop status")
        return bundles.load(self.bundles / bundle_id, hashes[bundle_id])


def open_project(root: Path | str = ".", sets: Iterable[str] = ()) -> Project:
    """Read ``recloop.toml`` of a folder, then the environment, then ``a.b=c`` settings.

    Raises:
        UserError: no such file, not TOML, an unknown key (the nearest known one is named), a wrong value, a key
            that must hold its default until a later chapter.
    """
    folder = Path(root)
    file = folder / FILE
    try:
        tree = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError("file", file, "a project folder with recloop.toml", "recloop init FILE") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(FILE, error, "a TOML file in UTF-8", f"correct that line of {file}") from None
    return Project(folder, build(tree, sets))
