"""The store of rejected rows: bound, repeats, search for a person, permissions."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from recloop.storage.rejected import FILE_NAME, RejectedRow, RejectedStore

EVENT = RejectedRow("event", "POST /v1/events", 1_000, "item_id: missing", '{"user_id": "u1"}', "u1")


def at(stamp: int, raw: str = EVENT.raw) -> RejectedRow:
    return EVENT._replace(at=stamp, raw=raw)


@pytest.fixture
def store(tmp_path: Path) -> RejectedStore:
    return RejectedStore(tmp_path / "store" / FILE_NAME, 1 << 20)


def test_rows_are_kept_in_a_private_file(store: RejectedStore) -> None:
    assert store.rows() == []
    assert not store.file.exists(), "a read creates no file"
    assert store.put([EVENT, EVENT]) == 0
    assert store.rows() == [EVENT._replace(id=1), EVENT._replace(id=2)], "an event without an id may occur twice"
    assert stat.S_IMODE(store.file.stat().st_mode) == 0o600
    assert store.delete([1]) == 1
    assert [row.id for row in store.rows()] == [2]
    store.put([EVENT])
    assert [row.id for row in store.rows()] == [2, 3], "a number is not used again"


def test_a_row_that_is_sent_again_is_kept_once(store: RejectedStore) -> None:
    row = at(1, '{"user_id": "u1", "event_id": "e1"}')
    store.put([row])
    store.put([row._replace(at=2, reason="other"), at(3, '{"user_id": "u1", "event_id": "e2"}')])
    assert [(kept.at, kept.reason) for kept in store.rows()] == [(2, "other"), (3, EVENT.reason)]
    assert store.size().rows == 2


def test_the_oldest_rows_are_dropped_above_the_bound(tmp_path: Path) -> None:
    store = RejectedStore(tmp_path / FILE_NAME, 10_000)
    dropped = sum(store.put([at(stamp, "x" * 800)]) for stamp in range(50))
    rows, n_bytes = store.size()
    assert rows + dropped == 50
    assert n_bytes <= 10_000
    assert [row.at for row in store.rows()] == list(range(50 - rows, 50))
    assert rows >= 8
    assert store.put([at(99, "x" * 20_000)]) == rows + 1, "a row above the bound is not kept"
    assert store.size() == (0, 0)


def test_old_rows_are_deleted_by_time(store: RejectedStore) -> None:
    store.put([at(1), at(2), at(3)])
    assert store.delete_before(3, dry_run=True).rows == 2
    assert len(store.rows()) == 3
    assert store.delete_before(3).rows == 2
    assert [row.at for row in store.rows()] == [3]


@pytest.mark.parametrize(
    ("raw", "user_id", "anonymous_id", "is_named"),
    [
        ('{"user_id": 7}', "7", "", True),
        ('{"item_id": "7", "quantity": 7, "user_id": "u2"}', "u2", "", False),
        ('{"user": 7}', "", "", True),
        ('{"context": {"seen": ["7"]}}', "", "", True),
        ('{"anonymous_id": "7"}', "", "7", True),
        ('{"user_id": "7", "item_id', "", "", True),
        ('{"user_id": "77", "item_id', "", "", False),
        ('{"user_id": "x-7", "item_id', "", "", False),
    ],
)
def test_rows_of_a_user_are_found(
    store: RejectedStore, raw: str, user_id: str, anonymous_id: str, is_named: bool
) -> None:
    store.put([EVENT._replace(raw=raw, user_id=user_id, anonymous_id=anonymous_id)])
    assert len(store.of_user("7")) == store.forget(["7"]) == is_named
    assert len(store.rows()) == (not is_named)
