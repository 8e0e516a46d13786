"""Rejected rows of a project: list, replay and drop.

Rows of requests are in ``store/rejected.db``, unreadable rows of files in ``data/rejects.jsonl``. Rows that a cleaning rule
quarantined are in the log with their rule; a new first run judges them again.
"""

from __future__ import annotations

import json
import urllib.error
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any, Final

import polars as pl

from recloop.client.batches import STATUSES
from recloop.data.new_files import REJECTS_FILE
from recloop.errors import Locked, UserError
from recloop.files import JsonTree
from recloop.ingest import bulk
from recloop.ingest.body import Rejected
from recloop.ingest.client import Client
from recloop.ingest.rejected import check_again, settle
from recloop.project import Project
from recloop.records import EVENT_ID, EVENT_TYPE, ITEM_ID, RECEIVED_AT, RULE, SEQ, USER_ID, iso, now
from recloop.storage import admin_token, locks
from recloop.storage.rejected import RejectedRow

ROUTE: Final = "/v1/admin/replay"
EVENT: Final = "event"


def listing(project: Project, newest: int) -> JsonTree:
    """Return the newest rejected rows, oldest first, and the number of all.

    Returns:
        ``total`` rows of requests; ``rows`` of requests: ``id kind route at reason raw``; ``files``, the unreadable rows of
        files: ``file line reason raw``; ``quarantined``: the rows that a rule removed, by rule.
    """
    rows = project.open_rejected().rows()
    return {
        "total": len(rows),
        "rows": [_shown(row) for row in rows[-newest:]],
        "files": _rows_of_files(project)[-newest:],
        "quarantined": dict(sorted(_quarantined(project)[RULE].value_counts().iter_rows())),
    }


def quarantined(project: Project, newest: int) -> list[JsonTree]:
    """Return the newest rows that a cleaning rule quarantined."""
    names = (SEQ, RULE, RECEIVED_AT, USER_ID, ITEM_ID, EVENT_TYPE, EVENT_ID)
    rows = _quarantined(project).sort(SEQ).tail(newest).select(names).iter_rows(named=True)
    return [{**row, RECEIVED_AT: iso(row[RECEIVED_AT])} for row in rows]


def replay(project: Project, ids: Sequence[int] = ()) -> JsonTree:
    """Check rejected events again and store the valid ones; a running service does it.

    Args:
        ids: Numbers of rows; empty for all events.

    Returns:
        Counts by status and ``problems``, the rows that are not in the log, with their new reasons.

    Raises:
        UserError: a number is not that of a rejected event, or the service refuses.
        Locked: another writer than a service uses the folder.
    """
    rows = project.open_rejected().rows(ids, EVENT)
    _check_known(ids, rows)
    counts = Counter[str]()
    problems: list[JsonTree] = []
    with ExitStack() as stack:
        try:
            sink = bulk.into_log(project, "-", stack)
        except Locked:
            sink = None
            url = locks.server_url(project.root)
            if not url:
                raise
            client = stack.enter_context(closing(Client(url, token=admin_token.read(project.root))))
        size = project.config.serve.limits.rows
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            results = _replayed_by(client, part) if sink is None else _replayed_here(project, sink, part)
            counts.update(status for status, _ in results)
            problems += [
                {**_shown(row), "status": status, "reason": reason}
                for row, (status, reason) in zip(part, results, strict=True)
                if status in {"rejected", "conflict"}
            ]
    return {**{status: counts[status] for status in STATUSES}, "problems": problems}


def drop(project: Project, ids: Sequence[int] = ()) -> int:
    """Delete rejected rows of requests and return how many there were.

    Args:
        ids: Numbers of rows; empty for all.

    Raises:
        UserError: a number is not that of a rejected row.
    """
    store = project.open_rejected()
    rows = store.rows(ids)
    _check_known(ids, rows)
    return store.delete([row.id for row in rows])


def _replayed_here(project: Project, sink: bulk.Sink, rows: Sequence[RejectedRow]) -> list[tuple[str, str]]:
    """Replay rows into the log of this folder; return status and reason of each."""
    checked = check_again(rows, now(), project.config.data, project.config.serve.limits)
    events = [event for event in checked if not isinstance(event, Rejected)]
    outcomes = iter(sink(events) if events else ())
    results = [
        ("rejected", row.reason) if isinstance(row, Rejected) else (next(outcomes).status, "") for row in checked
    ]
    settle(project.open_rejected(), rows, [status for status, _ in results], [reason for _, reason in results])
    return results


def _replayed_by(client: Client, rows: Sequence[RejectedRow]) -> list[tuple[str, str]]:
    """Let the running service replay rows; return status and reason of each.

    Raises:
        UserError: the service refuses or fails.
    """
    try:
        reply: dict[str, Any] = client.post(ROUTE, {"ids": [row.id for row in rows]})
    except (OSError, urllib.error.HTTPError) as error:
        raise UserError("serve", client.url, f"a service that replays ({error})", "recloop rejected replay") from None
    return [(row["status"], row["reason"] or "") for row in reply["rows"]]


def _check_known(ids: Sequence[int], rows: Sequence[RejectedRow]) -> None:
    unknown = sorted(set(ids) - {row.id for row in rows})
    if unknown:
        raise UserError("ID", unknown[0], "the number of a rejected row", "recloop rejected list")


def _shown(row: RejectedRow) -> JsonTree:
    return {"id": row.id, "kind": row.kind, "route": row.route, "at": iso(row.at), "reason": row.reason, "raw": row.raw}


def _rows_of_files(project: Project) -> list[JsonTree]:
    """Unreadable rows of the files that were read."""
    path = project.data / REJECTS_FILE
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def _quarantined(project: Project) -> pl.DataFrame:
    """Quarantined rows of archive and log."""
    archive = project.open_archive()
    with project.open_log() as log:
        logged = log.events(after=archive.watermark).filter(pl.col(RULE).is_not_null())
    names = (SEQ, RULE, RECEIVED_AT, USER_ID, ITEM_ID, EVENT_TYPE, EVENT_ID)
    return pl.concat([archive.quarantine().select(names), logged.select(names)])
