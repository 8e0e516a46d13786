"""How a project stands: what is live and tried, which bundle has which bytes, and the move to live."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from recloop import bundle as bundles
from recloop import release
from recloop.backends import open_control, open_log
from recloop.backends.archive import Archive
from recloop.bundle import Bundle
from recloop.config import Project
from recloop.errors import UserError
from recloop.models.base import model_class
from recloop.recommend.recommender import check_golden
from recloop.records import SECOND


def live_bundle(project: Project) -> str | None:
    """The id of the live bundle; None: nothing is live yet."""
    row = release.live(open_control(project.config.stores.control, project.root))
    return None if row is None else row.bundle


def new_rows(project: Project) -> tuple[int, int]:
    """The watermark of what was imported, and the last seq of the log."""
    watermark = int(manifest(project)["watermark"])
    log = open_log(project.config.stores.log, project.root)
    try:
        return watermark, max(watermark, log.last_seq())
    finally:
        log.close()


def manifest(project: Project) -> dict[str, Any]:
    """``data/manifest.json``.

    Raises:
        UserError: nothing was prepared yet.
    """
    return Archive(project.data).manifest


def status(project: Project) -> dict[str, Any]:
    """What is live, what is tried, since when: the keys of ``recloop status``."""
    found = release.table(open_control(project.config.stores.control, project.root))
    if not (project.data / "manifest.json").exists():
        return {**found, "last_seq": 0, "watermark": 0}
    watermark, last = new_rows(project)
    return {**found, "last_seq": last, "watermark": watermark}


def load_bundle(project: Project, name: str = "") -> Bundle:
    """A bundle of the project by id, the live one without; checked against the hash it was registered with.

    Raises:
        UserError: no such bundle, or none live yet. BundleError: its bytes are not what was registered.
    """
    control = open_control(project.config.stores.control, project.root)
    name = name or live_bundle(project) or ""
    if not name:
        raise UserError("bundle", "none live yet", "a live bundle", "recloop update")
    hashes = {row.bundle: row.sha256 for row in control.releases()}
    if name not in hashes:
        raise UserError("bundle", name, f"one of {', '.join(hashes) or 'none yet'}", "recloop status")
    return bundles.load(project.bundles / name, hashes[name])


def promote(project: Project, name: str, to: str, reason: str) -> dict[str, Any]:
    """Load and check a registered bundle, answer its golden lists, then make it live.

    Raises:
        UserError: no such bundle, or a state that comes with a later version. BundleError: it may not be served.
        Refused: it was refused, or is live already.
    """
    if to != "live":
        raise UserError("--to", to, "live (shadow and experiment come with a later version)", f"recloop promote {name}")
    check_golden(load_bundle(project, name))
    control = open_control(project.config.stores.control, project.root)
    row = release.promote(control, name, by="recloop promote", reason=reason, at=now(), evidence={"golden": "equal"})
    return {
        "bundle": row.bundle, "from": row.from_, "to": row.to, "generation": row.generation, "evidence": row.evidence,
    }  # fmt: skip


def named_model(project: Project, name: str) -> str:
    """The model that ``recloop train`` was asked for; a network needs its extra.

    Raises:
        UserError: no such model, or its extra is missing.
    """
    wanted = name or project.config.model.name
    model_class(wanted)
    return wanted


def now() -> int:
    """The clock of the command line: int64 microseconds UTC."""
    return int(datetime.now(UTC).timestamp() * SECOND)
