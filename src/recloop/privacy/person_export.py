"""Export of everything that a project stores of one user, as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import polars as pl

from recloop.features.id_form import form_id
from recloop.features.state import StateBatch
from recloop.files import JsonTree
from recloop.privacy.audit_rows import record_look
from recloop.privacy.erasure import anonymous_ids, unknown
from recloop.project import Project
from recloop.recommend.user_states import StateRegistry
from recloop.records import EVENT_SCHEMA, RECEIVED_AT, RULE, SEQ, TIMESTAMP, USER_ID, iso, now
from recloop.storage import DecisionLog, EventLog, audit
from recloop.storage.archive import Archive
from recloop.storage.audit import AuditAction
from recloop.storage.event_rows import RULED_SCHEMA
from recloop.storage.retractions import retracted_at

FORMAT = 1


def export_person(project: Project, user_id: str) -> JsonTree:
    """Collect all that is stored of a user, and add a row to the audit log.

    Returns:
        Times are ISO 8601. ``events`` (valid rows), ``quarantine`` (rows that a rule removed), ``rejected`` (rows of requests
        that were not stored), ``attributes`` (all versions), ``decisions`` (with shadow lists), ``identities`` (joined
        anonymous ids), ``state`` (what the live bundle sees) and ``bundles`` (those that have a vector of the user).

    Raises:
        UserError: nothing is stored of the user, or no bundle is live yet.
    """
    user_id = form_id(user_id, project.config.data.id_form)
    archive = project.open_archive()
    with project.open_log() as log, project.open_decisions() as decisions:
        joined = [row for row in log.identities() if user_id in (row.user_id, row.anonymous_id)]
        rows = _events(archive, log, user_id)
        attributes = _attributes(archive, log, user_id)
        answered = _decisions(decisions, user_id)
        for name in anonymous_ids(project, [user_id]):  # a device may have decisions of other users too
            answered += [row for row in _decisions(decisions, name) if row[USER_ID] == name]
        state = _state(project, archive, log, user_id)
    rejected = _rejected(project, user_id)
    if not any((rows, attributes, answered, rejected, joined)):
        raise unknown(user_id)
    details = {"rows": len(rows), "decisions": len(answered)}
    record_look(project, user_id, AuditAction.EXPORT_PERSON, audit.command("export person"), details)
    return {
        "format": FORMAT,
        USER_ID: user_id,
        "exported": iso(now()),
        "events": [row for row in rows if row[RULE] is None],
        "quarantine": [row for row in rows if row[RULE] is not None],
        "rejected": rejected,
        "attributes": attributes,
        "decisions": answered,
        "identities": [
            {SEQ: row.seq, "anonymous_id": row.anonymous_id, USER_ID: row.user_id, RECEIVED_AT: iso(row.received_at)}
            for row in joined
        ],
        "state": state,
        "bundles": list(_bundles(project, user_id)),
    }


def _events(archive: Archive, log: EventLog, user_id: str) -> list[JsonTree]:
    """Rows of a user in archive and log by seq, each with ``rule`` and ``retracted``."""
    is_of_user = pl.col(USER_ID) == user_id
    rows = pl.concat(
        [
            archive.matching(is_of_user).with_columns(pl.lit(None, pl.String).alias(RULE)).select(*RULED_SCHEMA),
            archive.quarantined(is_of_user).select(*RULED_SCHEMA),
            log.events(user_id).select(*RULED_SCHEMA),
        ]
    )
    retracted = retracted_at(log.retractions())
    return [
        {
            **{name: row[name] for name in (*EVENT_SCHEMA, RULE)},
            TIMESTAMP: iso(row[TIMESTAMP]),
            RECEIVED_AT: iso(row[RECEIVED_AT]),
            "retracted": row[SEQ] in retracted,
        }
        for row in rows.unique(SEQ).sort(SEQ).iter_rows(named=True)
    ]


def _attributes(archive: Archive, log: EventLog, user_id: str) -> list[JsonTree]:
    """Versions of a user's attributes by seq; those of an import have no time."""
    archived = archive.users()
    frames = [log.users(user_id=user_id)]
    if archived is not None:
        frames.append(archived.filter(pl.col(USER_ID) == user_id).select(frames[0].columns))
    return [
        {
            SEQ: row[SEQ],
            RECEIVED_AT: iso(row[RECEIVED_AT]) if row[RECEIVED_AT] else None,
            "attributes": json.loads(row["attributes"]),
            "deleted": row["deleted"],
        }
        for row in pl.concat(frames).unique(SEQ).sort(SEQ).iter_rows(named=True)
    ]


def _rejected(project: Project, user_id: str) -> list[JsonTree]:
    """Rejected rows of requests that name a user, with their text."""
    return [
        {"route": row.route, "at": iso(row.at), "reason": row.reason, "raw": row.raw}
        for row in project.open_rejected().of_user(user_id)
    ]


def _decisions(decisions: DecisionLog, user_id: str) -> list[JsonTree]:
    trees: list[dict[str, Any]] = [msgspec.to_builtins(row) for row in decisions.of_user(user_id)]
    return [{**tree, "served_at": iso(tree["served_at"])} for tree in trees]


def _state(project: Project, archive: Archive, log: EventLog, user_id: str) -> JsonTree:
    """Build the user's state as the live bundle sees it."""
    live = project.load_bundle()
    registry = StateRegistry(project, archive, log)
    state: StateBatch = registry.open([live.spec])[live.spec.state_key].read(user_id)
    return {
        "bundle": live.id,
        "moments": [
            {"at": iso(stamp), "items": items, "targets": targets} for stamp, items, targets in state.moments()
        ],
        "disliked": state.disliked(),
        "attributes": dict(state.attributes[0] or {}),
    }


def _bundles(project: Project, user_id: str) -> Iterator[str]:
    """Yield the bundles whose table of users names the user."""
    for file in sorted(project.bundles.glob("*/users.parquet")):
        if pl.scan_parquet(file).filter(pl.col(USER_ID) == user_id).select(pl.len()).collect().item():
            yield file.parent.name
