"""Project folder: its configuration, paths and stores.

A store is a context manager: ``with project.open_log() as log``. A long-lived object keeps the store and calls ``close()``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from recloop import bundle as bundles
from recloop import storage
from recloop.bundle import Bundle
from recloop.config import FILE, Config
from recloop.config.store_address import is_postgres
from recloop.errors import BundleError, UserError
from recloop.features import state_store
from recloop.manifest import Manifest
from recloop.settings import build
from recloop.storage import ControlStore, DecisionLog, EventLog, rejected, releases
from recloop.storage.archive import Archive
from recloop.storage.rejected import RejectedStore
from recloop.storage.sqlite import locate

RELEARN: Final = "recloop update --restart, or copy bundles/ from a backup"
"""Fix where no live bundle can be loaded; every other update starts with the live one."""


@dataclass(frozen=True)
class Project:
    """Project folder and its configuration (docs/stability.md, "A project folder").

    Attributes:
        root: The folder with ``recloop.toml``.
        base: Start of the paths of ``[data]`` while a new first run is staged in another ``root``.
        sets: Settings of the command line, ``a.b=c``, which a reload of the file keeps.
    """

    root: Path
    config: Config
    base: Path | None = None
    sets: tuple[str, ...] = ()

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
    def tuning(self) -> Path:
        return self.root / "tuning"

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
        """Open the control store.

        It keeps no file open between calls and does not have to be closed.
        """
        return storage.open_control(self.config.stores.control, self.root)

    def open_rejected(self) -> RejectedStore:
        """Open the rejected rows of requests; it keeps no file open between calls."""
        return RejectedStore(self.store / rejected.FILE_NAME, self.config.retention.rejected_bytes)

    def store_files(self) -> dict[str, Path]:
        """Files of the stores by name; a store on a server has none."""
        return {
            name: locate(f"stores.{name}", address, self.root)
            for name, address in self.config.stores
            if name == "decisions" or not is_postgres(address)
        }

    def open_archive(self) -> Archive:
        """Open the archived events, items and users of ``data/``.

        The archive keeps no file open between calls.

        Raises:
            UserError: the log is not prepared yet.
        """
        return Archive(self.data)

    def states_folder(self, seq: int, state_key: str) -> Path:
        """Folder of the user states as of ``seq``, for the event classes of ``state_key``."""
        return self.store / state_store.name(seq, state_key)

    def live_bundle_id(self) -> str | None:
        """Id of the live bundle; None before the first promotion."""
        row = releases.live(self.open_control())
        return None if row is None else row.bundle

    def load_bundle(self, bundle_id: str = "") -> Bundle:
        """Load a registered bundle and check it against its registered hash.

        Without an id, the live bundle is loaded.

        Raises:
            UserError: the bundle is not registered, or no bundle is live yet.
            BundleError: its files differ from the registered ones; for the live bundle, its fix replaces this one.
        """
        with self._explained(bundle_id):
            return bundles.load(*self._registered(bundle_id))

    def load_manifest(self, bundle_id: str = "") -> Manifest:
        """Read the manifest of a registered bundle; its other files are not checked.

        Without an id, the manifest of the live bundle is read; errors as in `load_bundle`.
        """
        with self._explained(bundle_id):
            return bundles.read_manifest(*self._registered(bundle_id))

    @contextmanager
    def _explained(self, bundle_id: str) -> Iterator[None]:
        """Name another fix for an invalid live bundle, which an update reads first."""
        try:
            yield
        except BundleError as error:
            if bundle_id:
                raise
            has_earlier = len(releases.lives(self.open_control())) > 1
            raise error.with_fix("recloop rollback" if has_earlier else RELEARN) from None

    def _registered(self, bundle_id: str) -> tuple[Path, str]:
        """Return the folder of a registered bundle and the hash of its manifest."""
        bundle_id = bundle_id or self.live_bundle_id() or ""
        if not bundle_id:
            raise UserError("bundle", "none live yet", "a live bundle", "recloop update")
        hashes = {row.bundle: row.sha256 for row in self.open_control().releases()}
        if bundle_id not in hashes:
            raise UserError("bundle", bundle_id, f"one of {', '.join(hashes) or 'none yet'}", "recloop status")
        return self.bundles / bundle_id, hashes[bundle_id]


def open_project(root: Path | str = ".", sets: Iterable[str] = ()) -> Project:
    """Open a project folder with its settings.

    They are read from ``recloop.toml``, then the environment, then ``a.b=c`` settings; later ones win.

    Raises:
        UserError: the file is missing or not TOML, a key is unknown (the nearest known one is named), or a value is
            invalid.
    """
    folder = Path(root)
    file = folder / FILE
    try:
        tree = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError("file", file, "a project folder with recloop.toml", "recloop init FILE") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(FILE, error, "a TOML file in UTF-8", f"correct that line of {file}") from None
    sets = tuple(sets)
    return Project(folder, build(tree, sets), sets=sets)
