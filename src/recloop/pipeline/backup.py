"""Backup of a project folder that is served and updated, and its restore.

    copy     each store as of one commit, decisions before the log; then data/, bundles/, reports/, finished runs
    again    from the start if data/ was published meanwhile, because the log drops rows that data/ holds
    list     backup.json with size and SHA-256 of each file, then rename the folder into place
    restore  copy each file, compare its hash, check the stores, verify the last decisions, rename

The rows of a store in a PostgreSQL database are copied into a SQLite file, as of one commit. A backup has files only, so
it can be restored into files and into databases, whatever the project had.

Locks, states and caches are not copied; the service makes them again. Files of ``[data]`` stay where they are.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from recloop import __version__
from recloop.config import FILE
from recloop.config.store_address import without_password
from recloop.errors import Refused, UserError
from recloop.files import JsonTree, file_sha256, private_folder, replace_file, sync_folder
from recloop.monitoring.verify import verify
from recloop.pipeline import restored_stores
from recloop.pipeline.retention import is_finished
from recloop.progress import NullProgress, Progress
from recloop.project import Project, open_project
from recloop.recommend.loading import RESTART_FILE
from recloop.records import FileFacts, iso, now
from recloop.storage import admin_token, api_keys, audit, control_database, forgotten, log_database, rejected
from recloop.storage.audit import AuditAction, AuditEntry
from recloop.storage.data_manifest import MANIFEST, DataManifest
from recloop.storage.sqlite import check_pages, copy_database

FORMAT: Final = 1
LIST_FILE: Final = "backup.json"
FOLDERS: Final = ("data", "bundles", "reports", "tuning")
STORES: Final = (rejected.FILE_NAME, "control.db", "decisions.db", "log.db")
"""Stores of a backup."""
SECRETS: Final = (admin_token.FILE_NAME, api_keys.FILE_NAME, forgotten.FILE_NAME, forgotten.KEY_FILE)
MAX_ATTEMPTS: Final = 5
WAIT_SECONDS: Final = 1.0
VERIFIED_DECISIONS: Final = 100
CHUNK_BYTES: Final = 1 << 20
LIST_FIX: Final = "recloop backup DIR"


class BackupList(msgspec.Struct, kw_only=True):
    """Content of ``backup.json``.

    Attributes:
        created: Microseconds since 1970 UTC, before the first store was copied.
        last_seq: Last row of the copied log.
    """

    format: int
    recloop: str
    created: int
    last_seq: int
    files: dict[str, FileFacts]


@dataclass(frozen=True)
class BackupResult:
    """A backup or a restored project.

    Attributes:
        verified: Counts of the verification of a restored project.
    """

    path: Path
    files: int
    bytes: int
    created: int
    last_seq: int
    seconds: float
    verified: JsonTree | None = None

    def to_json(self) -> JsonTree:
        tree = {**vars(self), "path": str(self.path), "created": iso(self.created), "seconds": round(self.seconds, 2)}
        return tree if self.verified is not None else {key: value for key, value in tree.items() if key != "verified"}


def backup(project: Project, to: Path, progress: Progress | None = None) -> BackupResult:
    """Copy a project into a new folder; a running service and a running update go on.

    Every event that was acknowledged before the call is in the copy.

    Raises:
        UserError: ``to`` exists, lies in a copied folder, or a new first run of the project is incomplete.
        Refused: ``data/`` was published during each attempt.
    """
    started, progress = time.monotonic(), progress or NullProgress()
    check_stores(project)
    _check_target(project, to)
    created = now()
    staged = _staging(to)
    for attempt in range(MAX_ATTEMPTS):
        shutil.rmtree(staged, ignore_errors=True)
        published, erasures = _published(project), _erasures(project)
        try:
            _copy_project(project, staged, progress)
            last_seq = _last_seq(staged)
            _remove_side_files(staged / "store")
            files = {str(file.relative_to(staged)): _facts(file) for file in staged.rglob("*") if file.is_file()}
            if _is_consistent(staged, files, published) and _erasures(project) == erasures:
                break
        except FileNotFoundError:  # removed by an update; the next attempt reads the new data
            pass
        progress.say("backup", f"data/ changed during attempt {attempt + 1}; copying again")
        time.sleep(WAIT_SECONDS)
    else:
        shutil.rmtree(staged, ignore_errors=True)
        raise Refused(
            "backup", MAX_ATTEMPTS, MAX_ATTEMPTS, "data/ changed during each attempt; run recloop update first"
        )
    listed = BackupList(format=FORMAT, recloop=__version__, created=created, last_seq=last_seq, files=files)
    replace_file(staged / LIST_FILE, msgspec.json.format(msgspec.json.encode(listed), indent=1))
    _put_in_place(staged, to)
    return _result(listed, to, started)


def restore(source: Path, to: Path, progress: Progress | None = None, stores: str = "") -> BackupResult:
    """Copy a backup into a new project folder and verify its last decisions.

    Args:
        stores: Address of a PostgreSQL database for log and control store, `restored_stores.FILES` for files of the
            project folder, or empty for the addresses in the backup's recloop.toml.

    Raises:
        UserError: ``to`` exists or lies in ``source``, ``source`` is not a backup of a known format, a file is missing or differs, or a
            database has rows of recloop.
        Refused: a decision cannot be rebuilt from the backup.
    """
    started, progress = time.monotonic(), progress or NullProgress()
    if to.exists() and any(to.iterdir()):
        raise UserError("--to", to, "a new folder", f"recloop restore {source} --to {to}-restored")
    if source.resolve() in to.resolve().parents:
        raise UserError("--to", to, "a folder outside the backup", f"recloop restore {source} --to {source}-restored")
    listed = _read_list(source)
    staged = _staging(to)
    shutil.rmtree(staged, ignore_errors=True)
    try:
        private_folder(staged / "store")
        for number, (name, facts) in enumerate(sorted(listed.files.items()), 1):
            _restore_file(source, staged, name, facts)
            progress.bar("restore", number, len(listed.files))
        restored_stores.choose(staged, stores)
        check_stores(open_project(staged))
        for name in STORES:
            check_pages(staged / "store" / name)
        in_files = open_project(staged, restored_stores.AS_FILES)
        if (last_seq := _last_seq(staged)) != listed.last_seq:
            raise UserError("FROM", source, f"a log that ends at {listed.last_seq}, not {last_seq}", LIST_FIX)
        verified = _verify(in_files)
        details = {"created": iso(listed.created), "last_seq": listed.last_seq}
        entry = AuditEntry(audit.command("restore"), AuditAction.RESTORE, source.resolve().name, details, now())
        in_files.open_control().record([entry])
        finish_stores = restored_stores.fill(open_project(staged), progress)
        _put_in_place(staged, to)
        finish_stores()
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return _result(listed, to, started, verified)


def check_stores(project: Project) -> None:
    """Check that every store is in a database or a file in ``store/``.

    Raises:
        UserError: a store is another file.
    """
    files = project.store_files()
    for name, address in project.config.stores:
        if files.get(name, project.store / f"{name}.db") != project.store / f"{name}.db":
            expected = f"sqlite:///store/{name}.db, because a backup copies only files in store/"
            fix = "a copy of data/, bundles/ and store/ while serve is stopped"
            raise UserError(f"stores.{name}", without_password(address), expected, fix)


def _check_target(project: Project, to: Path) -> None:
    if to.exists():
        raise UserError("TO", to, "a folder that does not exist yet", f"recloop backup {to}-2")
    inside = [project.root / name for name in (*FOLDERS, "store", "runs")]
    if any(folder.resolve() in to.resolve().parents for folder in inside):
        raise UserError("TO", to, "a folder outside data/, bundles/, runs/, reports/, tuning/ and store/", LIST_FIX)
    if (project.store / RESTART_FILE).exists():
        raise UserError("store", project.store / RESTART_FILE, "a complete first run", "recloop update")


def _published(project: Project) -> bytes:
    """Return the manifest of ``data/``; empty before the first run."""
    try:
        return (project.data / MANIFEST).read_bytes()
    except FileNotFoundError:
        return b""


def _erasures(project: Project) -> tuple[int, int]:
    """Identity of the list of erasures, which changes before bundles are redacted."""
    try:
        status = (project.store / forgotten.FILE_NAME).stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns


def _is_consistent(staged: Path, files: Mapping[str, FileFacts], published: bytes) -> bool:
    """Return True if the copied ``data/`` is whole and published before the log."""
    if not published:
        return f"data/{MANIFEST}" not in files
    if (staged / "data" / MANIFEST).read_bytes() != published:
        return False
    listed = DataManifest.read(staged / "data").files
    return all(files.get(f"data/{name}") == facts for name, facts in listed.items())


def _copy_project(project: Project, staged: Path, progress: Progress) -> None:
    """Copy stores, then files."""
    private_folder(staged)
    private_folder(staged / "store")
    _copy_stores(project, staged / "store", progress)
    names = list(_files(project))
    for number, name in enumerate(names, 1):
        _copy(project.root / name, staged / name)
        progress.bar("backup", number, len(names))


def _copy_stores(project: Project, target: Path, progress: Progress) -> None:
    """Copy the stores; a later one knows every row that an earlier one names."""
    addresses = project.config.stores
    if (project.store / rejected.FILE_NAME).exists():
        copy_database(project.store / rejected.FILE_NAME, target / rejected.FILE_NAME)
    progress.say("backup", "control")
    control_database(addresses.control, project.root).copy_to(target / "control.db")
    if project.store_files()["decisions"].exists():
        copy_database(project.store_files()["decisions"], target / "decisions.db")
    progress.say("backup", "log")
    log_database(addresses.log, project.root).copy_to(target / "log.db")


def _files(project: Project) -> Iterator[str]:
    """Yield the paths of the files to copy.

    Names of unfinished files and folders begin with a dot.
    """
    yield FILE
    yield from (f"store/{name}" for name in SECRETS if (project.store / name).exists())
    runs = [f"runs/{run.name}" for run in sorted(project.runs.glob("[!.]*")) if is_finished(run)]
    for folder in (*FOLDERS, *runs):
        for file in sorted((project.root / folder).rglob("*")):
            path = file.relative_to(project.root)
            if file.is_file() and not any(part.startswith(".") for part in path.parts):
                yield str(path)


def _copy(source: Path, target: Path) -> None:
    """Copy a file with its mode and flush it to disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target, follow_symlinks=True)
    with target.open("rb") as written:
        os.fsync(written.fileno())


def _facts(file: Path) -> FileFacts:
    return FileFacts(file_sha256(file), file.stat().st_size)


def _last_seq(staged: Path) -> int:
    project = open_project(staged, restored_stores.AS_FILES)
    with closing(project.open_log()) as log:
        return log.last_seq()


def _remove_side_files(stores: Path) -> None:
    """Remove empty side files of SQLite, which a later reader of a store removes too."""
    for file in stores.glob("*.db-*"):
        if file.name.endswith("-shm") or file.stat().st_size == 0:
            file.unlink()


def _read_list(source: Path) -> BackupList:
    file = source / LIST_FILE
    try:
        listed = msgspec.json.decode(file.read_bytes(), type=BackupList)
    except FileNotFoundError:
        raise UserError("FROM", source, f"a folder with {LIST_FILE}", LIST_FIX) from None
    except (msgspec.MsgspecError, OSError) as error:
        raise UserError("FROM", file, f"the list of a backup ({error})", LIST_FIX) from None
    if listed.format > FORMAT:
        expected = f"format {FORMAT} or older, not {listed.format} of recloop {listed.recloop}"
        raise UserError("FROM", file, expected, "pip install --upgrade recloop")
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in listed.files):
        raise UserError("FROM", file, "paths inside the backup", LIST_FIX)
    return listed


def _restore_file(source: Path, staged: Path, name: str, facts: FileFacts) -> None:
    """Copy one file of a backup and compare it with its facts.

    Raises:
        UserError: the file is missing or differs.
    """
    file = source / name
    if not file.is_file() or file.is_symlink():
        raise UserError("FROM", file, "a file, as listed in backup.json", LIST_FIX)
    _copy(file, staged / name)
    if _facts(staged / name) != facts:
        raise UserError("FROM", file, f"{facts.bytes} bytes with the hash in {LIST_FILE}", LIST_FIX)


def _verify(project: Project) -> JsonTree:
    """Rebuild the last decisions of a restored project.

    Raises:
        Refused: at least one differs.
    """
    if not (project.data / MANIFEST).exists():
        return {"checked": 0, "equal": 0}
    counts = verify(project, VERIFIED_DECISIONS)
    if counts["unexplained"]:
        raise Refused("unexplained", counts["unexplained"], 0, "decisions of the backup cannot be rebuilt")
    return {name: counts[name] for name in ("checked", "equal", "late", "earlier", "removed")}


def _staging(to: Path) -> Path:
    return to.with_name(f".{to.name}.part")


def _put_in_place(staged: Path, to: Path) -> None:
    for folder in [staged, *(path for path in staged.rglob("*") if path.is_dir())]:
        sync_folder(folder)
    if to.exists():
        to.rmdir()  # empty
    staged.rename(to)
    sync_folder(to.parent)


def _result(listed: BackupList, path: Path, started: float, verified: JsonTree | None = None) -> BackupResult:
    size = sum(facts.bytes for facts in listed.files.values())
    seconds = time.monotonic() - started
    return BackupResult(path, len(listed.files), size, listed.created, listed.last_seq, seconds, verified)
