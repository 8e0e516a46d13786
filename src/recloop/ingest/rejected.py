"""Rejected rows of requests: the kept record, and the replay of events.

A replayed event is checked like a posted one and leaves the store once it is in the log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from recloop.config import Data, Limits
from recloop.data.guests import is_present
from recloop.features.id_form import form_id, id_text
from recloop.ingest import parse
from recloop.ingest.body import Rejected
from recloop.records import Event, iso
from recloop.storage.rejected import RejectedRow, RejectedStore

SETTLED = ("accepted", "duplicate", "quarantined")
"""Statuses of a replayed row that is in the log and leaves the store."""
CONFLICT_REASON = "another row with this event_id is in the log"


def rejected_rows(kind: str, route: str, at: int, checked: Sequence[Any], id_form: str) -> Iterator[RejectedRow]:
    """Yield what is kept of the rejected rows of a request.

    Args:
        kind: ``event``, ``item`` or ``user``.
        route: Method and path of the request.
        checked: Valid rows and `Rejected` ones.
    """
    for row in checked:
        if isinstance(row, Rejected):
            tree = _tree(row.raw)
            ids = [id_text(tree.get(name)) if isinstance(tree, dict) else "" for name in ("user_id", "anonymous_id")]
            user_id, anonymous_id = (value if isinstance(value, str) else "" for value in ids)
            raw = tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False)
            yield RejectedRow(kind, route, at, row.reason, raw, form_id(user_id, id_form), anonymous_id)


def _tree(raw: Any) -> Any:
    """The row as JSON values; a typed row without the fields that were not sent."""
    if not isinstance(raw, msgspec.Struct):
        return raw
    return {name: value for name, value in msgspec.structs.asdict(raw).items() if value is not None}


def check_again(rows: Sequence[RejectedRow], received_at: int, data: Data, limits: Limits) -> list[Event | Rejected]:
    """Check rejected events again.

    A row without a timestamp gets the time at which it was first received. One without an event_id gets an id of its own,
    so that a second replay is a duplicate.
    """
    return [parse.check_event(_as_posted(row), received_at, data, limits) for row in rows]


def settle(store: RejectedStore, rows: Sequence[RejectedRow], statuses: Sequence[str], reasons: Sequence[str]) -> None:
    """Delete replayed rows that are in the log; give the others their new reasons."""
    store.delete([row.id for row, status in zip(rows, statuses, strict=True) if status in SETTLED])
    store.set_reasons(
        {
            row.id: CONFLICT_REASON if status == "conflict" else reason
            for row, status, reason in zip(rows, statuses, reasons, strict=True)
            if status not in SETTLED
        }
    )


def _as_posted(row: RejectedRow) -> object:
    tree = row.tree
    if not isinstance(tree, dict):
        return Rejected({}, row.reason) if tree is None else tree
    if not is_present(tree.get("timestamp")):
        tree["timestamp"] = iso(row.at)
    if not is_present(tree.get("event_id")):
        tree["event_id"] = f"rejected-{row.id}-{row.at}"
    return tree
