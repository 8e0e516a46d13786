"""New first run of a project from changed data: it is staged, then swapped in.

    stage    build data, log, bundle and evaluation in a folder inside ``runs/``; the project is unchanged
    commit   name the stage in ``store/restart.json``; from here on `finish` completes the swap, also after a kill
    finish   rename bundle, log, data and states into the project, write the release rows, remove the stage

The posted log is kept. Every row gets a new seq, so earlier decisions belong to an earlier generation of the data, and
`verify` counts them as ``earlier``. Bundles of the earlier data are refused, because their items and events no longer
exist.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from recloop import bundle as bundles
from recloop import storage
from recloop.config import Stores
from recloop.data import new_files
from recloop.data.posted_rows import PostedRows
from recloop.data.prepare import PrepareResult
from recloop.errors import BundleError, Locked, Refused, UserError
from recloop.features import state_store
from recloop.files import JsonTree, move, private_folder, recover_folder, replace_json, swap_folder, sync_folder
from recloop.pipeline import config_changes, served_slots
from recloop.pipeline.config_changes import Change, Effect
from recloop.pipeline.update_run import UpdateResult
from recloop.progress import Progress
from recloop.project import Project
from recloop.recommend import loading
from recloop.records import now
from recloop.storage import ControlStore, inbox, locks, releases

MARKER_FILE: Final = loading.RESTART_FILE
STAGE_FOLDER: Final = ".restart"
REQUESTED: Final = "asked for with --restart"
EVIDENCE_KEY: Final = releases.RESTARTED
RELEASE_ORIGIN: Final = "recloop update"


@dataclass(frozen=True)
class Staged:
    """Staged project; its data include ``posted`` rows, ``changed`` is the reason."""

    project: Project
    posted: PostedRows
    changed: list[Change]


def differing(project: Project) -> list[Change]:
    """Return the keys of recloop.toml that differ from the live bundle's settings."""
    return config_changes.changed_keys(project.config, project.load_manifest().config)


def reason(project: Project, requested: bool = False) -> str:
    """Return the reason for a new first run; empty if none is needed.

    Args:
        requested: The user requested one; the live bundle may then be damaged or lost.
    """
    try:
        manifest = project.load_manifest()
    except BundleError:
        if requested:
            return REQUESTED
        raise
    changed = config_changes.with_effect(config_changes.changed_keys(project.config, manifest.config), Effect.RESTART)
    if changed:
        return f"recloop.toml changed since {manifest.bundle}: {config_changes.list_changes(changed)}"
    if loading.manifest(project).fingerprint != manifest.data.fingerprint:
        return f"data/ was prepared from other files or settings than {manifest.bundle}"
    return REQUESTED if requested else ""


def check_files_complete(project: Project, requested: bool) -> None:
    """Check that every imported file exists, because a new first run reads all again.

    Args:
        requested: The user requested the new first run; rows of missing files are dropped.

    Raises:
        UserError: files are missing that the unchanged ``data.events`` named before.
    """
    if requested or any(change.key == "data.events" for change in differing(project)):
        return
    missing = new_files.missing_files(project, loading.manifest(project))
    if missing:
        raise UserError(
            "data.events", ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else ""),
            "every imported file, because a new first run reads all of them",
            "restore the files, or recloop update --restart (drops their rows)",
        )  # fmt: skip


def changed_files(project: Project) -> bool:
    """Return whether an imported file has changed, which requires ``--restart``."""
    try:
        new_files.find_new_files(project, loading.manifest(project))
    except UserError:
        return True
    return False


def consequences(project: Project) -> list[str]:
    """Describe how the next update will apply a newly written recloop.toml."""
    live = project.load_manifest()
    why = reason(project)
    if not why and changed_files(project):
        why = "an imported file has changed; start it with --restart"
    if not why:
        return [f"{live.bundle} stays live; it was trained on the same data"]
    with project.open_log() as log:
        posted = len(PostedRows.collect(project.open_archive(), log))
    earlier_files = str((live.config or {}).get("data.events", "its files"))
    return [
        f"{live.bundle} was trained from {earlier_files}; the next recloop update is a new first run ({why})",
        f"it keeps {posted:,} posted rows and drops the rows of files that data.events no longer names",
        "it refuses every bundle of the earlier data; use a new folder for another shop",
    ]


@contextmanager
def exclusive(project: Project, reason: str) -> Iterator[None]:
    """Hold the writer lock while a new first run replaces the log.

    Raises:
        Locked: a server is running; the message names the change.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.writer_lock(project.root, "update"))
        except Locked as error:
            fix = f"stop it, run recloop update, start it again (a new first run replaces the log: {reason})"
            raise Locked(error.lock, error.holder, fix) from None
        yield


@contextmanager
def staged(project: Project) -> Iterator[Staged]:
    """Create a stage that is removed unless it is committed."""
    try:
        yield stage(project)
    finally:
        if not (project.store / MARKER_FILE).exists():
            shutil.rmtree(project.root / STAGE_FOLDER, ignore_errors=True)


def stage(project: Project) -> Staged:
    """Create an empty stage and collect the posted rows; the caller holds both locks."""
    target = project.root / STAGE_FOLDER
    shutil.rmtree(target, ignore_errors=True)
    private_folder(target / "store")
    recover_folder(project.data)
    decisions = project.store_files()["decisions"]
    if decisions.exists():  # shown lists are training data
        (target / "store" / "decisions.db").symlink_to(decisions.resolve())
    with project.open_log(write=True) as log:
        inbox.apply_inbox(project.open_control(), log)
        posted = PostedRows.collect(project.open_archive(), log)
    config = project.config.model_copy(update={"stores": Stores()})  # files of the stage, whatever the project has
    try:
        changed = differing(project)
    except BundleError:  # a requested new first run replaces a damaged live bundle
        changed = []
    return Staged(Project(target, config, base=project.sources), posted, changed)


def commit(project: Project, staged: Staged, bundle: str, reason: str) -> None:
    """Commit the finished stage and complete the swap."""
    tree = {"bundle": bundle, "reason": reason, "posted": len(staged.posted)}
    tree["states"] = state_store.folders(staged.project.store)
    replace_json(project.store / MARKER_FILE, tree)
    finish(project)


def result(staged: Staged, prepared: PrepareResult, bundle: str, progress: Progress, seconds: float) -> UpdateResult:
    """Report and return the result of a committed new first run."""
    report = prepared.report
    progress.say(
        "update", f"live: {bundle}; kept {len(staged.posted):,} posted rows; refused the bundles of the earlier data"
    )
    return UpdateResult(
        1, prepared.watermark, report.read, report.kept, report.users, report.items, bundle, "restarted", [], seconds,
        report.removed, [], [change.key for change in staged.changed],
    )  # fmt: skip


def finish_interrupted(project: Project, progress: Progress) -> None:
    """Complete and report a committed new first run that was interrupted."""
    if finish(project):
        progress.say("update", "completed an interrupted new first run")


def finish(project: Project) -> bool:
    """Complete a committed restart; return whether there was one.

    Every step can be repeated after a kill.
    """
    marker = project.store / MARKER_FILE
    if not marker.exists():
        return False
    tree: JsonTree = json.loads(marker.read_text("utf-8"))
    staged = project.root / STAGE_FOLDER
    move(staged / "bundles" / tree["bundle"], project.bundles / tree["bundle"])
    _replace_log(project, staged)
    served_slots.forget(project)
    recover_folder(project.data)
    if (staged / "data").exists():
        swap_folder(staged / "data", project.data)
    names = tree.get("states", [])  # a restart that an earlier version began has none; serving builds them again
    for name in names:
        move(staged / "store" / name, project.store / name)
    state_store.keep_only(project.store, names)
    _release(project.open_control(), project, tree)
    move(staged / "reports" / "evaluation.json", project.reports / "evaluation.json")
    for run in sorted((staged / "runs").glob("*")):
        move(run, project.runs / run.name)
    shutil.rmtree(staged, ignore_errors=True)
    marker.unlink()
    sync_folder(marker.parent)
    return True


def _replace_log(project: Project, staged: Path) -> None:
    """Number the log's rows from the new data on, which have all rows of the old one."""
    address = Stores().log
    if not (staged / "store" / "log.db").exists():
        return
    with storage.open_log(address, staged) as new, project.open_log(write=True) as log:
        log.start_again(new.last_seq(), new.identities())
        log.release_space()


def _release(control: ControlStore, project: Project, tree: JsonTree) -> None:
    """Make the new bundle live and refuse every bundle of the earlier data."""
    name = str(tree["bundle"])
    reason = f"new first run: {tree['reason']}"
    state_table = releases.read_state(control)
    at = now()
    if name not in state_table.states:
        sha256 = bundles.manifest_hash(project.bundles / name)
        releases.register(control, name, sha256, by=RELEASE_ORIGIN, reason=reason, at=at)
        state_table = releases.read_state(control)
    if state_table.states[name][0] == "registered":
        releases.checked(control, name, by=RELEASE_ORIGIN, reason=reason, at=at)
    if (releases.read_state(control).lives or [""])[-1] != name:
        releases.promote(
            control,
            name,
            to="live",
            by=RELEASE_ORIGIN,
            reason=reason,
            at=at,
            evidence={EVIDENCE_KEY: {"posted": tree["posted"]}},
        )
    for bundle, (state, _) in releases.read_state(control).states.items():
        if bundle != name and state != "refused":
            try:
                releases.reject(control, bundle, by=RELEASE_ORIGIN, reason=f"made from earlier data; {reason}", at=at)
            except Refused:  # another process refused it meanwhile
                continue
