"""Contract of the stores of ``[stores]``, for any URL."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from recloop.files import JsonTree
from recloop.storage import (
    Retraction,
)
from recloop.storage.audit import AuditAction, AuditCheck, AuditEntry
from recloop.storage.control import ReleaseConflict
from recloop.storage.retractions import RESTORED
from recloop.testing.event_log import EventLogContract
from recloop.testing.stores import Stores, some_decision, some_event


class StoreContract(EventLogContract):
    """Contract of the stores of ``[stores]``, for any URL.

    Attributes:
        urls: URLs of log, decisions and control.
    """

    urls: ClassVar[tuple[str, str, str]] = (
        "sqlite:///store/log.db",
        "sqlite:///store/decisions.db",
        "sqlite:///store/control.db",
    )

    @pytest.fixture
    def stores(self, tmp_path: Path) -> Iterator[Stores]:
        stores = Stores(tmp_path, self.urls)
        yield stores
        stores.close()

    def test_decisions_round_trip(self, stores: Stores) -> None:
        decisions = stores.decisions()
        put = [some_decision(f"r{n}", served_at=n) for n in range(5)] + [
            some_decision("r0", role="shadow", bundle="c", served_at=9)
        ]
        for decision in put:
            assert decisions.put(decision)
        assert decisions.flush()
        assert decisions.rows() == put
        assert decisions.rows(last=2) == put[-2:]
        assert decisions.rows(since=2, until=4) == put[2:4]

    def test_first_decision_of_a_request_is_kept(self, stores: Stores) -> None:
        decisions = stores.decisions()
        decisions.put(some_decision("r", n=2))
        decisions.put(some_decision("r", n=3))
        decisions.flush()
        assert [row.n for row in decisions.rows()] == [2]

    def test_close_writes_buffered_decisions(self, stores: Stores) -> None:
        decisions = stores.decisions()
        for n in range(1500):
            decisions.put(some_decision(f"r{n}"))
        stores.close()
        again = stores.decisions(write=False)
        assert len(again.rows()) == 1500
        assert (again.dropped, again.lost) == (0, 0)

    def test_move_is_a_compare_and_set(self, stores: Stores) -> None:
        control = stores.control()
        first = control.move("b", "00", "", "registered", **_move(0, {"gate": [1, 0.5]}))
        assert first.generation == 1
        with pytest.raises(ReleaseConflict):
            control.move("c", "11", "", "registered", **_move(0))
        assert stores.control().releases() == [first]
        assert first.evidence == {"gate": [1, 0.5]}

    def test_concurrent_moves_succeed_once(self, stores: Stores) -> None:
        stores.control().move("b", "00", "", "registered", **_move(0))
        moved: list[str] = []

        def mover(name: str) -> None:
            try:
                stores.control().move(name, "00", "", "registered", **_move(1))
            except ReleaseConflict:
                return
            moved.append(name)

        threads = [threading.Thread(target=mover, args=(f"m{n}",)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [row.bundle for row in stores.control().releases()] == ["b", *moved]
        assert len(moved) == 1

    def test_audit_rows_of_a_move_and_of_an_entry_form_a_chain(self, stores: Stores) -> None:
        control = stores.control()
        control.move("b", "00", "", "live", action=AuditAction.PROMOTE, **_move(0))
        control.record([AuditEntry("test", AuditAction.FORGET, "person", {"n": 1}, 6)])
        rows = stores.control().audit_rows()
        assert [(row.id, row.who, row.action, row.subject) for row in rows] == [
            (1, "test", "promote", "b"),
            (2, "test", "forget", "person"),
        ]
        assert stores.control().audit_rows("person") == rows[1:]
        assert stores.control().check_audit() == AuditCheck(2, rows[-1].hash, "")

    def test_refused_move_has_no_audit_row(self, stores: Stores) -> None:
        with pytest.raises(ReleaseConflict):
            stores.control().move("b", "00", "", "live", action=AuditAction.PROMOTE, **_move(7))
        assert stores.control().audit_rows() == []

    def test_inbox_keeps_retractions_until_they_are_applied(self, stores: Stores) -> None:
        control = stores.control()
        assert (
            control.submit([Retraction(5, "burst"), Retraction(3, "burst"), Retraction(5, "other")], "update", 11) == 2
        )
        assert stores.control().submit([Retraction(5, RESTORED)], "update", 12, "a reason") == 1
        waiting = control.pending()
        assert [(row.id, row.retracted_seq, row.rule) for row in waiting] == [
            (1, 5, "burst"),
            (2, 3, "burst"),
            (3, 5, RESTORED),
        ]
        control.mark_applied([1, 3])
        assert [row.retracted_seq for row in control.pending()] == [3]

    def test_redacted_bundle_has_a_new_hash_and_an_audit_row(self, stores: Stores) -> None:
        control = stores.control()
        control.move("b", "00", "", "registered", **_move(0))
        for _ in range(2):
            control.redact("b", "11", by="test", at=9)
        assert [row.sha256 for row in control.releases()] == ["11"]
        assert [row.action for row in control.audit_rows()] == ["redaction"]
        assert control.generation() == 1

    def test_store_that_does_not_exist_reads_as_empty(self, stores: Stores) -> None:
        log, control = stores.log(write=False), stores.control()
        assert (log.last_seq(), log.is_empty(), log.events().height) == (0, True, 0)
        assert (control.releases(), control.pending(), control.generation()) == ([], [], 0)
        assert control.check_audit() == AuditCheck(0, "", "")
        with pytest.raises(RuntimeError, match="open for reading"):
            log.append_events([some_event()])


def _move(expected: int, evidence: Mapping[str, Any] | None = None) -> JsonTree:
    return {"by": "test", "reason": "", "evidence": evidence or {}, "expected_generation": expected, "at": 5}
