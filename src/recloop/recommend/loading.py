"""Project status and bundle loading, with the checks before serving."""

from __future__ import annotations

import json
from collections.abc import Iterable

import msgspec
import polars as pl

from recloop import bundle as bundles
from recloop.bundle import Bundle
from recloop.errors import BundleError, UserError
from recloop.features.labels import EventLabeler, count_unnamed
from recloop.files import JsonTree, replace_json
from recloop.models.base import model_class
from recloop.project import Project
from recloop.recommend.golden import check_golden
from recloop.records import RULE
from recloop.storage import EventLog, releases
from recloop.storage.control import ReleaseRow
from recloop.storage.data_manifest import DataManifest
from recloop.storage.sqlite import check_pages

REMOVED_FILE = "removed.json"
"""File in ``store/`` with the time at which `[retention]` removed each bundle."""
RESTART_FILE = "restart.json"
"""File in ``store/`` that marks a committed but incomplete restart (`recloop.pipeline.restart`)."""
MIN_GOLDEN_CASES = 2
"""Cases of a bundle with the fewest users: one user and the anonymous one."""


def check_complete(project: Project) -> None:
    """Reject a project with a restart that was interrupted while it was published.

    Raises:
        UserError: the next update must complete the restart first.
    """
    mark = project.store / RESTART_FILE
    if mark.exists():
        raise UserError("store", mark, "a completed restart", "recloop update")


def check_stores(project: Project) -> None:
    """Check the pages of the stores.

    Raises:
        UserError: a file is damaged.
    """
    for file in project.store_files().values():
        check_pages(file)


def known_seq(project: Project) -> int:
    """Return the largest seq that the decisions or pending retractions name.

    Decisions answered before a new first run do not count, because its log has numbers of its own.
    """
    control = project.open_control()
    pending = [entry.retracted_seq for entry in control.pending()]
    with project.open_decisions() as decisions:
        newest = decisions.newest_seq(releases.data_since(control))
    return max([newest, *pending])


def check_log_end(project: Project, log: EventLog, force: bool) -> None:
    """Check that the log does not end before rows that were acknowledged.

    Args:
        log: Opened for writing.
        force: Continue after the largest seq that is known instead of raising.

    Raises:
        UserError: decisions or retractions name a later row.
    """
    known, last_seq = known_seq(project), log.last_seq()
    if known <= last_seq:
        return
    if not force:
        expected = f"at least {known}, the seq that decisions or retractions name; rows are missing"
        fix = f"{log.recovery}, or recloop serve --force to continue after {known}"
        raise UserError(log.name, f"ends at {last_seq}", expected, fix)
    log.continue_after(known)


def log_range(project: Project) -> tuple[int, int]:
    """Return the import's watermark and the last seq of the log."""
    watermark = manifest(project).watermark
    with project.open_log() as log:
        return watermark, max(watermark, log.last_seq())


def has_decisions(project: Project) -> bool:
    """Return True if the project has answered a request."""
    with project.open_decisions() as decisions:
        return bool(decisions.rows(last=1))


def has_log_rows(project: Project) -> bool:
    """Return True if served or posted rows exist; the import must then not change."""
    with project.open_log() as log:
        if not log.is_empty() or has_decisions(project):
            return True
    return (project.data / "manifest.json").exists() and bool(manifest(project).updates)


def check_unused(project: Project) -> None:
    """Check before a first run that an empty release table is not a lost one.

    Raises:
        UserError: the project has answered requests or stored rows.
    """
    control = project.open_control()
    if not control.releases() and has_log_rows(project):
        expected = "the release rows of the bundles whose decisions or events are stored"
        fix = f"{control.recovery}, or move store/ away and run recloop update"
        raise UserError(control.name, "no release row", expected, fix)


def removal_times(project: Project) -> dict[str, int]:
    """Return the time (us) at which `[retention]` removed each bundle's folder."""
    try:
        times: dict[str, int] = json.loads((project.store / REMOVED_FILE).read_text("utf-8"))
        return times
    except FileNotFoundError:
        return {}


def write_removal_times(project: Project, tree: dict[str, int]) -> None:
    """Write the result of `removal_times` atomically."""
    replace_json(project.store / REMOVED_FILE, tree)


def with_removed_flags(project: Project, table: JsonTree) -> JsonTree:
    """Return the release table with ``removal_times`` set on bundles without a folder."""
    removed_bundles = removal_times(project)
    return {**table, "bundles": [{**row, "removed": row["bundle"] in removed_bundles} for row in table["bundles"]]}


def manifest(project: Project) -> DataManifest:
    """Read ``data/manifest.json``.

    Raises:
        UserError: the project has no prepared data.
    """
    return project.open_archive().manifest


def status(project: Project) -> JsonTree:
    """Return the keys of ``recloop status``.

    They name the bundles, and the rows after the watermark by type without a rule.
    """
    table = with_removed_flags(project, releases.release_table(project.open_control()))
    if not (project.data / "manifest.json").exists():
        return {**table, "last_seq": 0, "watermark": 0, "unnamed_types": {}}
    watermark, last_seq = log_range(project)
    unnamed = unnamed_types(project, watermark) if last_seq > watermark else {}
    return {**table, "last_seq": last_seq, "watermark": watermark, "unnamed_types": unnamed}


def unnamed_types(project: Project, after: int) -> dict[str, int]:
    """Count rows of log.db after a seq by event type without a rule.

    Rows that a cleaning rule removed do not count.
    """
    log = project.open_log()
    rows = log.events(after=after).filter(pl.col(RULE).is_null())
    log.close()
    return count_unnamed(EventLabeler(project.config.events, project.config.clean), rows)


def lineage(project: Project, bundle: Bundle) -> list[str]:
    """Return a bundle's parents, nearest first, as long as their manifests exist."""
    parents: list[str] = []
    parent = bundle.manifest.parent
    while parent and parent not in parents:
        parents.append(parent)
        parent = bundles.parent_of(project.bundles / parent)
    return parents


def verify_hash(project: Project, row: ReleaseRow) -> None:
    """Check that a bundle's bytes are the registered ones.

    Raises:
        BundleError: the bytes differ.
    """
    bundles.check(project.bundles / row.bundle, row.sha256)


def open_bundle(project: Project, row: ReleaseRow, with_golden: bool = True) -> Bundle:
    """Load a bundle and check its bytes, arrays and golden lists.

    Args:
        with_golden: False if another process has just compared the golden lists.

    Raises:
        BundleError: a check failed; the bundle must not be served.
    """
    bundle = bundles.load(project.bundles / row.bundle, row.sha256)
    if not with_golden:
        return bundle
    try:
        check_golden(bundle)
    except BundleError:
        raise
    except Exception as error:  # noqa: BLE001 - a broken bundle must not end the caller
        raise BundleError(
            "golden list", f"{type(error).__name__}: {error}", "a list for every golden case", "recloop update"
        ) from None
    return bundle


def check_servable(project: Project, bundle: Bundle, live: Bundle | None) -> JsonTree:
    """Check a registered bundle for serving and return the findings.

    The findings are stored with the transition to ``checked``.

    Args:
        bundle: The result of `open_bundle`.
        live: The live bundle; the new item table must start with its items, so that ids keep their index.

    Raises:
        BundleError: a check failed; the bundle must not be served.
    """
    ids = bundle.items.ids.ids
    n_golden = sum(case.placement == bundle.default_placement for case in bundle.golden)
    if n_golden < MIN_GOLDEN_CASES:
        expected = f"at least {MIN_GOLDEN_CASES} cases of the placement {bundle.default_placement}"
        raise BundleError("golden.json", f"{n_golden} cases", expected, "recloop update")
    if live is not None and list(ids[: len(live.items)]) != list(live.items.ids.ids):
        raise BundleError(
            "item table",
            bundle.id,
            f"the {len(live.items)} items of the live bundle {live.id} first; this bundle was trained on other data",
            "recloop update",
        )
    _check_fields(project, bundle)
    return {"golden": "equal", "cases": len(bundle.golden), "items": len(ids)}


def _check_fields(project: Project, bundle: Bundle) -> None:
    """Check that the source field of each feature exists in items or users.

    Raises:
        BundleError: a field is missing.
    """
    archive = project.open_archive()
    with project.open_log() as log:
        sides = (
            ("item", "the catalog", bundle.spec.item, (archive.items(), log.items())),
            ("user", "the users", bundle.spec.user, (archive.users(), log.users())),
        )
    for side, table_name, features, frames in sides:
        source_of = {name: feature.source or name for name, feature in features.items()}
        available = _fields(frames, set(source_of.values()))
        for name, source in source_of.items():
            if source not in available:
                expected = f"a field of {table_name} ({', '.join(sorted(available)) or 'none'})"
                raise BundleError(f"features.{side}.{name}.from", source, expected, "recloop update")


def _fields(frames: Iterable[pl.DataFrame | None], needed: set[str]) -> set[str]:
    """Return the attributes of these versions; stop when all needed ones are found."""
    fields: set[str] = set()
    for frame in frames:
        for text in [] if frame is None else frame["attributes"]:
            if needed <= fields:
                return fields
            fields.update(msgspec.json.decode(text))
    return fields


def resolve_model(project: Project, name: str) -> str:
    """Return the model of ``recloop train``; a network needs its extra.

    Raises:
        UserError: the model is unknown or its extra is missing.
    """
    model = name or project.config.model.name
    model_class(model)
    return model
