"""Erasure of users in ``store/``, which is done at once.

    begin     record the users' hashes in store/forgotten.json; from here on an interrupted erasure is completed
    log       delete their rows; rows after this commit are of new users
    number    record the seq of the commit
    stores    empty their decisions, remove them from stored states, write every page again

`recloop.pipeline.redaction` removes the users from ``data/`` and ``bundles/``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
import polars as pl

from recloop.config import seconds
from recloop.errors import Refused, UserError
from recloop.features import state_store
from recloop.features.id_form import form_id
from recloop.features.state_erasure import remove_users
from recloop.files import JsonTree
from recloop.project import Project
from recloop.records import SECOND, USER_ID, iso, now
from recloop.storage import EventLog, audit, forgotten
from recloop.storage.audit import AuditAction, AuditEntry
from recloop.storage.erasure import forget_in_decisions, forget_in_log, users_in_decisions
from recloop.storage.forgotten import Erasure, ForgottenUsers
from recloop.storage.identities import Identities
from recloop.storage.sqlite import rewrite


def check(project: Project, users: Sequence[str]) -> list[str]:
    """Return the ids without repeats, with the anonymous ids of these users.

    Raises:
        UserError: no id is given, or nothing is stored of one that was not forgotten before.
        Refused: no other user would be left.
    """
    named = [form_id(user, project.config.data.id_form) for user in users]
    ids = list(dict.fromkeys([*named, *anonymous_ids(project, named)]))
    if not ids or not all(ids):
        raise UserError("USER", "", "one or more user ids", "recloop forget USER")
    archive = project.open_archive()
    stored = _stored_users(project)
    rejected = project.open_rejected()
    for user in ids:
        is_known = user in stored or archive.has_id(USER_ID, user) or archive.forgotten.get(user) is not None
        if not is_known and not rejected.of_user(user):
            raise unknown(user)
    if len(ids) > 1 or len(stored) <= 1:
        left = stored | set(archive.users_of(pl.lit(value=True)))
        if not left - set(ids):
            raise Refused("users left", 0, 1, "to forget everybody, delete the project folder")
    return ids


def unknown(user_id: str) -> UserError:
    """Build the error for an id without anything stored."""
    return UserError("USER", user_id, "a user with stored rows or decisions", "recloop export log, and look for the id")


def anonymous_ids(project: Project, users: Collection[str]) -> list[str]:
    """Return the anonymous ids whose first identify names one of these users."""
    with project.open_log() as log:
        return Identities(log.identities()).anonymous_ids(users)


def begin(project: Project, users: Collection[str], at: int, who: str) -> None:
    """Record that users are to be forgotten, before the first row is deleted.

    ``who``: Origin of the request for the audit log.
    """
    root = project.root
    names = [forgotten.person_hash(root, user) for user in users]
    project.open_control().record([AuditEntry(who, AuditAction.FORGET, name, {}, at) for name in names])
    forgotten.record(root, [Erasure(user=name, requested=at) for name in names])
    project.open_rejected().forget(users)


def erase_stores(project: Project, users: Collection[str], seq: int, at: int) -> int:
    """Erase users from ``store/`` after their rows were deleted from the log.

    Args:
        seq: Seq of the erasure in the log.
        at: Time of the request, as for `begin`.

    Returns:
        The number of emptied decisions.

    Raises:
        Refused: a store is in use, so that its pages cannot be written again; the erasure is completed later.
    """
    root, decisions = project.root, project.store_files()["decisions"]
    names = [forgotten.person_hash(root, user) for user in users]
    forgotten.record(root, [Erasure(user=name, requested=at, seq=seq) for name in names])
    emptied = forget_in_decisions(decisions, users, seq)
    remove_users(project.store, users)
    rejected = project.open_rejected()
    rejected.forget(users)
    rewrite(rejected.file)
    with project.open_log() as log:
        log.rewrite()
    rewrite(decisions)
    done = now()
    forgotten.record(root, [Erasure(user=name, requested=at, seq=seq, stores=done) for name in names])
    return emptied


def erase(project: Project, log: EventLog, users: Collection[str]) -> None:
    """Erase users from ``store/`` without a running service.

    Args:
        log: Opened for writing; the caller holds the writer lock.
    """
    at = now()
    begin(project, users, at, audit.command("forget"))
    seq, _ = forget_in_log(log, users)
    erase_stores(project, users, seq, at)


def resume(project: Project, log: EventLog) -> bool:
    """Complete an interrupted erasure; return True if there was one.

    Args:
        log: Opened for writing; the caller holds the writer lock.
    """
    restore_list(project)
    begun = [erasure for erasure in ForgottenUsers.read(project.root) if erasure.stores is None]
    if not begun:
        return False
    names = {erasure.user for erasure in begun}
    users = [user for user in _stored_users(project) if forgotten.person_hash(project.root, user) in names]
    at = max(erasure.requested for erasure in begun)
    seq, _ = forget_in_log(log, users)
    forgotten.record(project.root, [msgspec.structs.replace(erasure, seq=seq) for erasure in begun])
    erase_stores(project, users, seq, at)
    forgotten.record(project.root, [msgspec.structs.replace(one, seq=seq, stores=now()) for one in begun])
    return True


def restore_list(project: Project) -> int:
    """Add erasures of the audit log that ``forgotten.json`` lacks; return how many.

    The file was lost, or an erasure ended before it was written. `resume` completes them: rows that such a user has had
    since are erased too.

    Raises:
        UserError: the key of their hashes is missing or damaged, or the list is.
    """
    listed = {erasure.user for erasure in ForgottenUsers.read(project.root)}
    rows = [row for row in project.open_control().audit_rows() if row.action == AuditAction.FORGET]
    lost = {row.subject: row.at for row in rows if row.subject not in listed}
    if lost:
        forgotten.check_key(project.root)
        forgotten.record(project.root, [Erasure(user=user, requested=at) for user, at in lost.items()])
    return len(lost)


def receipt(project: Project, users: Sequence[str]) -> JsonTree:
    """Build the dated lines of erasures, as of ``recloop forget --json``.

    ``backups`` is the time at which ``retention.backups`` has removed the last backup with the user; None until ``data/``
    is free of the user. ``files`` are those of ``[data]``, which recloop does not change.
    """
    known = ForgottenUsers.read(project.root)
    kept = round(seconds("retention.backups", project.config.retention.backups) * SECOND)
    rows = []
    for user in users:
        erasure = known.get(user)
        if erasure is not None:
            backups = None if erasure.data is None else erasure.data + kept
            rows.append({USER_ID: user, **_dated(erasure, backups)})
    data = project.config.data
    return {"users": rows, "files": [text for text in (data.events, data.orders, data.users) if text]}


def _dated(erasure: Erasure, backups: int | None) -> JsonTree:
    stamps = {
        "requested": erasure.requested, "stores": erasure.stores, "data": erasure.data, "backups": backups,
    }  # fmt: skip
    return {name: None if stamp is None else iso(stamp) for name, stamp in stamps.items()}


def _stored_users(project: Project) -> set[str]:
    """Return the user ids and anonymous ids in ``store/``."""
    with project.open_log() as log:
        users = log.user_ids() | users_in_decisions(project.store_files()["decisions"])
    for name in state_store.folders(project.store):
        stored = state_store.current(project.store / name, name.rpartition("-")[2])
        if stored is not None:
            users |= set(stored.history.users.ids())
    return users
