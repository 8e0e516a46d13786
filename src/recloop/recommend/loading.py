"""How a project stands: what is live and tried, which bundle has which bytes, and whether one may be served."""

from __future__ import annotations

import json
from collections.abc import Iterable

import msgspec
import numpy as np
import polars as pl

from recloop import bundle as bundles
from recloop.bundle import Bundle
from recloop.errors import BundleError, UserError
from recloop.files import replace_json
from recloop.json_object import JsonTree
from recloop.models.base import model_class
from recloop.project import Project
from recloop.recommend.recommender import check_golden
from recloop.storage import releases
from recloop.storage.control import ReleaseRow
from recloop.storage.data_manifest import DataManifest

REMOVED = "removed.json"
"""Of ``store/``: when `[retention]` removed which bundle."""
RESTART = "restart.json"
"""Of ``store/``: a new first run that was committed and is not yet whole in place (`recloop.pipeline.restart`)."""


def whole(project: Project) -> None:
    """Refuse a project whose new first run was killed while it was put in place.

    Raises:
        UserError: the swap waits for the next update, which completes it.
    """
    mark = project.store / RESTART
    if mark.exists():
        raise UserError("store", mark, "a new first run that was put in place whole", "recloop update")


def log_range(project: Project) -> tuple[int, int]:
    """The watermark of what was imported, and the last seq of the log."""
    watermark = manifest(project).watermark
    with project.open_log() as log:
        return watermark, max(watermark, log.last_seq())


def has_decisions(project: Project) -> bool:
    """Whether a list was ever answered here."""
    with project.open_decisions() as decisions:
        return bool(decisions.rows(last=1))


def has_log_rows(project: Project) -> bool:
    """Whether log.db or decisions.db holds a row, or ``data/`` a posted one: then the import may not change under them."""
    with project.open_log() as log:
        if not log.is_empty() or has_decisions(project):
            return True
    return (project.data / "manifest.json").exists() and bool(manifest(project).updates)


def removed(project: Project) -> dict[str, int]:
    """When `[retention]` removed the folder of a bundle (us), by bundle."""
    try:
        found: dict[str, int] = json.loads((project.store / REMOVED).read_text("utf-8"))
        return found
    except FileNotFoundError:
        return {}


def write_removed(project: Project, tree: dict[str, int]) -> None:
    """Keep what `removed` gives, by rename."""
    replace_json(project.store / REMOVED, tree)


def marked(project: Project, table: JsonTree) -> JsonTree:
    """A release table whose bundles say whether their folder was removed (``removed``)."""
    gone = removed(project)
    return {**table, "bundles": [{**row, "removed": row["bundle"] in gone} for row in table["bundles"]]}


def manifest(project: Project) -> DataManifest:
    """``data/manifest.json``.

    Raises:
        UserError: nothing was prepared yet.
    """
    return project.open_archive().manifest


def status(project: Project) -> JsonTree:
    """What is live, what is tried, since when: the keys of ``recloop status``."""
    found = marked(project, releases.release_table(project.open_control()))
    if not (project.data / "manifest.json").exists():
        return {**found, "last_seq": 0, "watermark": 0}
    watermark, last = log_range(project)
    return {**found, "last_seq": last, "watermark": watermark}


def lineage(project: Project, bundle: Bundle) -> list[str]:
    """The parents of a bundle, the nearest first, as far as their manifests are there."""
    found: list[str] = []
    parent = bundle.manifest.parent
    while parent and parent not in found:
        found.append(parent)
        parent = bundles.parent_of(project.bundles / parent)
    return found


def verify_hash(project: Project, row: ReleaseRow) -> None:
    """See that a bundle's bytes are those registered, which were checked: so they would be found as they were.

    Raises:
        BundleError: they are not.
    """
    bundles.check(project.bundles / row.bundle, row.sha256)


def open_bundle(project: Project, row: ReleaseRow) -> Bundle:
    """A bundle whose bytes are those registered, whose numbers are finite, and whose golden lists agree.

    Raises:
        BundleError: it may not be served.
    """
    bundle = bundles.load(project.bundles / row.bundle, row.sha256)
    for name, array in bundle.arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise BundleError(f"{name} of serve.safetensors", "NaN or infinite", "finite numbers", "recloop update")
    try:
        check_golden(bundle)
    except BundleError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a stranger's bundle does, it must not end who looks at it
        raise BundleError("golden list", f"{type(error).__name__}: {error}", "an answer", "recloop update") from None
    return bundle


def check_servable(project: Project, bundle: Bundle, live: Bundle | None) -> JsonTree:
    """Check a registered bundle as serving will need it; what was found, for the row of the move to ``checked``.

    Args:
        bundle: As `open_bundle` gave it.
        live: The live bundle, whose item table this one's begins with: a raw id never changes its index.

    Raises:
        BundleError: it may not be served.
    """
    ids = bundle.items.ids.ids
    if live is not None and list(ids[: len(live.items)]) != list(live.items.ids.ids):
        raise BundleError(
            "item table", bundle.id, f"to begin with the {len(live.items)} items of {live.id}", "recloop update"
        )
    _check_fields(project, bundle)
    return {"golden": "equal", "cases": len(bundle.golden), "items": len(ids)}


def _check_fields(project: Project, bundle: Bundle) -> None:
    """Whether some item, or some user, has each field that the bundle's features are made from.

    Raises:
        BundleError: nobody has it.
    """
    archive = project.open_archive()
    with project.open_log() as log:
        asked = (
            ("item", "the catalogue", bundle.spec.item, (archive.items(), log.items())),
            ("user", "the users", bundle.spec.user, (archive.users(), log.users())),
        )
    for side, whose, features, frames in asked:
        wanted = {name: feature.source or name for name, feature in features.items()}
        known = _fields(frames, set(wanted.values()))
        for name, source in wanted.items():
            if source not in known:
                expected = f"a field of {whose} ({', '.join(sorted(known)) or 'none'})"
                raise BundleError(f"features.{side}.{name}.from", source, expected, "recloop update")


def _fields(frames: Iterable[pl.DataFrame | None], wanted: set[str]) -> set[str]:
    """The attributes in these versions of items or users, read until all the wanted ones were found."""
    known: set[str] = set()
    for frame in frames:
        for text in [] if frame is None else frame["attributes"]:
            if wanted <= known:
                return known
            known.update(msgspec.json.decode(text))
    return known


def resolve_model(project: Project, name: str) -> str:
    """The model that ``recloop train`` was asked for; a network needs its extra.

    Raises:
        UserError: no such model, or its extra is missing.
    """
    wanted = name or project.config.model.name
    model_class(wanted)
    return wanted
