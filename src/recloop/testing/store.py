"""Contract of the stores of ``[stores]``, for any URL."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from recloop.files import JsonTree
from recloop.records import Decision, Event, Item, User
from recloop.storage import ControlStore, DecisionLog, EventLog, open_control, open_decisions, open_log
from recloop.storage.audit import AuditAction, AuditCheck, AuditEntry
from recloop.storage.control import ReleaseConflict


@dataclass(frozen=True)
class Stores:
    """The three stores of a project, open for writing; they can be reopened."""

    root: Path
    urls: tuple[str, str, str]
    opened: list[EventLog | DecisionLog] = field(default_factory=list)

    def log(self, write: bool = True) -> EventLog:
        self.opened.append(open_log(self.urls[0], self.root, write))
        return self.opened[-1]  # type: ignore[return-value]

    def decisions(self, write: bool = True) -> DecisionLog:
        self.opened.append(open_decisions(self.urls[1], self.root, write))
        return self.opened[-1]  # type: ignore[return-value]

    def control(self) -> ControlStore:
        return open_control(self.urls[2], self.root)

    def close(self) -> None:
        while self.opened:
            self.opened.pop().close()


def some_event(item_id: str = "i", **fields: Any) -> Event:
    """Build an event of user ``u`` with the given fields."""
    return Event(**{"user_id": "u", "item_id": item_id, "timestamp": 1, "received_at": 2, **fields})


def some_decision(request_id: str, **fields: Any) -> Decision:
    """Build a decision for user ``u`` with the given fields."""
    plain: JsonTree = {
        "role": "answer", "user_id": "u", "served_at": 10, "as_of_seq": 3, "bundle": "b", "generation": 1, "variant": "live",
        "placement": "home", "n": 2, "query": {"exclude": []}, "items": ["é", "01"], "scores": [0.5, -1.0],
        "sources": ["history", "popular"], "inputs": {"state": "0123abcd"},
    }  # fmt: skip
    return Decision(request_id=request_id, **{**plain, **fields})


class StoreContract:
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

    def test_seq_numbers_rows_of_every_kind_by_one_counter(self, stores: Stores) -> None:
        log = stores.log()
        log.start_at(40)
        seqs = [receipt.seq for receipt in log.append_events([some_event("a"), some_event("b")])]
        seqs += [item.seq for item in log.append_items([Item(item_id="a", attributes={"name": "tea"})])]
        seqs += [user.seq for user in log.append_users([User(user_id="u", attributes={"age": 30})])]
        seqs += [receipt.seq for receipt in log.append_events([some_event("c")])]
        assert seqs == [41, 42, 43, 44, 45]
        assert log.last_seq() == 45

    def test_rows_and_seqs_survive_reopening(self, stores: Stores) -> None:
        log = stores.log()
        assert log.is_empty()
        whole = some_event(
            "\U0001f375", value=1.5, quantity=-2.0, group_id="g", event_id="e1", session_id="s", placement="home",
            anonymous_id="a", request_id="r", context='{"a":[1]}', event_type="purchase",
        )  # fmt: skip
        log.append_events([whole, some_event(" 01 ")])
        stores.close()
        again = stores.log(write=False)
        assert not again.is_empty()
        assert again.last_seq() == 2
        rows = [Event(**row) for row in again.events().iter_rows(named=True)]
        assert rows == [msgspec.structs.replace(whole, seq=1), msgspec.structs.replace(some_event(" 01 "), seq=2)]

    def test_event_sent_twice_is_stored_once(self, stores: Stores) -> None:
        log = stores.log()
        first = some_event("a", event_id="e1", value=1.0)
        assert [receipt.status for receipt in log.append_events([first, first])] == ["accepted", "duplicate"]
        other = some_event("a", event_id="e1", value=2.0)
        again = log.append_events([first, other, some_event("a"), some_event("a")])
        assert [receipt.status for receipt in again] == ["duplicate", "conflict", "accepted", "accepted"]
        assert [receipt.seq for receipt in again] == [1, 1, 2, 3]
        assert log.events().height == log.last_seq() == 3

    def test_quarantined_row_is_numbered_and_kept(self, stores: Stores) -> None:
        log = stores.log()
        got = log.append_events([some_event("a", rule="burst"), some_event("b")])
        assert [(receipt.status, receipt.seq) for receipt in got] == [("quarantined", 1), ("accepted", 2)]
        assert log.events().get_column("rule").to_list() == ["burst", None]

    def test_failed_transaction_stores_nothing_and_uses_no_seq(self, stores: Stores) -> None:
        log = stores.log()

        def half() -> None:
            with log.commit():
                log.append_events([some_event("a")])
                log.append_items([Item(item_id="a")])
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            half()
        assert log.is_empty()
        assert log.append_events([some_event("b")])[0].seq == 1

    def test_readers_see_only_committed_rows(self, stores: Stores) -> None:
        log = stores.log()
        reader = stores.log(write=False)
        log.append_events([some_event(str(n)) for n in range(50)])
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(reader.events(after=10, until=30).height))
        thread.start()
        thread.join()
        assert seen == [20]
        assert reader.events(user_id="unknown").is_empty()

    def test_item_versions_are_ordered_by_seq(self, stores: Stores) -> None:
        log = stores.log()
        log.append_items([Item(item_id="a", attributes={"b": 1, "a": "é"}), Item(item_id="a", hidden=True)])
        rows = log.items()
        assert rows.get_column("seq").to_list() == [1, 2]
        assert rows.get_column("attributes").to_list() == ['{"a":"é","b":1}', "{}"]
        assert rows.get_column("hidden").to_list() == [False, True]

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


def _move(expected: int, evidence: Mapping[str, Any] | None = None) -> JsonTree:
    return {"by": "test", "reason": "", "evidence": evidence or {}, "expected_generation": expected, "at": 5}
