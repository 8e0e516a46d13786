"""Sync of the catalog with a feed, a snapshot of all items.

Items that the feed leaves out are hidden; hidden items that it has are shown again. An attribute that no row of the feed has
is kept, so that a feed without stock does not remove stock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Final

from recloop.client.batches import batches
from recloop.errors import Locked, Refused, UserError
from recloop.files import JsonTree
from recloop.ingest import parse
from recloop.ingest.body import Rejected
from recloop.ingest.bulk import call_service
from recloop.ingest.client import Client
from recloop.ingest.item_feed import ItemFeed, read_feed
from recloop.project import Project
from recloop.recommend import loading
from recloop.recommend.catalog import Catalog
from recloop.records import Item, now
from recloop.storage import admin_token, locks

MAX_HIDDEN_SHARE: Final = 0.2
"""Largest share of visible items that a sync hides without ``force``."""


@dataclass(frozen=True)
class Changes:
    """Rows that bring the catalog to the feed.

    Attributes:
        new: Rows of ``POST /v1/items``. changed: Rows of ``PATCH /v1/items``.
    """

    new: list[JsonTree]
    changed: list[JsonTree]


@dataclass(frozen=True)
class SyncResult:
    """Item counts, with the keys of ``recloop items sync --json``.

    Attributes:
        read: Rows of the feed. rejected: Rows that cannot be stored.
        new, changed, shown, hidden, unchanged: Items. An item that is shown may be changed too and counts once.
        hidden_share: ``hidden`` / visible items before.
        dry_run: True if nothing was stored.
    """

    read: int
    rejected: int
    new: int
    changed: int
    shown: int
    hidden: int
    unchanged: int
    hidden_share: float
    dry_run: bool

    def to_json(self) -> JsonTree:
        return asdict(self)


def sync(
    project: Project, file: str, id_name: str = "", force: bool = False, dry_run: bool = False
) -> tuple[SyncResult, list[tuple[str, str]]]:
    """Bring the catalog to a feed.

    The running service of this folder applies the changes. Without one, they are one commit of the log.

    Args:
        file, id_name: As `recloop.ingest.item_feed.read_feed`.
        force: Hide more than `MAX_HIDDEN_SHARE` of the visible items.
        dry_run: Count the changes only.

    Returns:
        The counts, and the place and reason of each rejected row.

    Raises:
        UserError: the feed or the data cannot be read; nothing has changed.
        Refused: the feed leaves out too many items; nothing has changed.
        Locked: another writer than a service uses this folder.
    """
    feed = read_feed(project, file, id_name)
    with ExitStack() as stack:
        url = "" if dry_run else _lock_or_url(project, stack)
        known = _known_items(project)
        changes, result = _changes(known, feed, dry_run)
        if result.hidden_share > MAX_HIDDEN_SHARE and not force:
            raise Refused(
                "share of visible items that the feed leaves out",
                f"{result.hidden_share:.4f}",
                MAX_HIDDEN_SHARE,
                f"{result.hidden:,} items would be hidden; to hide them: --force",
            )
        items = _checked(project, known, changes)
        if url and not dry_run:
            _post(project, url, changes)
        elif not dry_run:
            _store(project, items)
    return result, feed.rejected


def _lock_or_url(project: Project, stack: ExitStack) -> str:
    """Hold the writer lock, or find the URL of the service that holds it.

    Returns:
        The URL; empty if this process holds the lock.
    """
    try:
        stack.enter_context(locks.writer_lock(project.root, "items sync"))
    except Locked:
        if url := locks.server_url(project.root):
            return url
        raise
    return ""


def _known_items(project: Project) -> dict[str, Item]:
    """Present versions of the items of catalog and live bundle."""
    loading.check_complete(project)
    known = {item_id: Item(item_id=item_id) for item_id in project.load_bundle().items.ids.ids}
    with project.open_log() as log:
        catalog = Catalog.from_frames([project.open_archive().items(), log.items()])
    return known | {item.item_id: item for item in catalog}


def _changes(known: Mapping[str, Item], feed: ItemFeed, dry_run: bool) -> tuple[Changes, SyncResult]:
    """Compare the known items with a feed."""
    owned = {name for attributes in feed.items.values() for name in attributes}
    new, changed, shown = [], [], 0
    for item_id, attributes in feed.items.items():
        item = known.get(item_id)
        if item is None or item.deleted:
            new.append({"item_id": item_id, "attributes": attributes})
        elif row := _patch(item, attributes, owned):
            changed.append({"item_id": item_id, **row})
            shown += item.hidden
    visible = [item_id for item_id, item in known.items() if not item.hidden and not item.deleted]
    missing = [item_id for item_id in visible if item_id not in feed.items]
    result = SyncResult(
        read=feed.read,
        rejected=len(feed.rejected),
        new=len(new),
        changed=len(changed) - shown,
        shown=shown,
        hidden=len(missing),
        unchanged=len(feed.items) - len(new) - len(changed),
        hidden_share=len(missing) / max(1, len(visible)),
        dry_run=dry_run,
    )
    changed += [{"item_id": item_id, "hidden": True} for item_id in missing]
    return Changes(new, changed), result


def _patch(item: Item, attributes: Mapping[str, object], owned: Collection[str]) -> JsonTree:
    """Changes of an item that bring it to the feed; empty if there are none."""
    changes = {name: value for name, value in attributes.items() if item.attributes.get(name) != value}
    changes |= {name: None for name in item.attributes if name in owned and name not in attributes}
    return {"attributes": changes, **({"hidden": False} if item.hidden else {})} if changes or item.hidden else {}


def _checked(project: Project, known: Mapping[str, Item], changes: Changes) -> list[Item]:
    """Build the next versions of the items.

    Raises:
        UserError: a row cannot be stored.
    """
    received_at, config = now(), project.config
    items = [parse.check_item(row, received_at, config.data, config.features.item) for row in changes.new]
    items += [
        parse.check_item_patch(row, known.get, received_at, config.data, config.features.item)
        for row in changes.changed
    ]
    for item in items:
        if isinstance(item, Rejected):
            raise UserError("FILE", item.ids, f"items that can be stored ({item.reason})", "correct the feed")
    return [item for item in items if isinstance(item, Item)]


def _post(project: Project, url: str, changes: Changes) -> None:
    """Send the changes to the service of this folder.

    Raises:
        UserError: the service refuses a row; rows of earlier batches are stored.
    """
    with closing(Client(url, token=admin_token.read(project.root))) as client:
        for method, rows in (("POST", changes.new), ("PATCH", changes.changed)):
            for batch in batches(rows):
                answer = call_service(client, method, "/v1/items", batch.body, "serve")
                for row in answer["rows"]:
                    if row["status"] == "rejected":
                        expected = f"an item that the service stores ({row['reason']})"
                        raise UserError("FILE", row["item_id"], expected, "correct the feed")


def _store(project: Project, items: Sequence[Item]) -> None:
    """Write item versions in one commit; the caller holds the writer lock."""
    with project.open_log(write=True) as log:
        log.start_at(loading.manifest(project).watermark)
        log.append_items(items)
