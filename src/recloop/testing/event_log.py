"""Contract of the event log, for any URL."""

from __future__ import annotations

import threading

import msgspec
import polars as pl
import pytest

from recloop.errors import UserError
from recloop.records import Event, Item, User
from recloop.storage import Retraction, logged_items, sliced_rows
from recloop.storage.erasure import forget_in_log
from recloop.storage.event_lookup import UserWindow
from recloop.storage.identify import identify
from recloop.storage.identities import Identity
from recloop.storage.retractions import RESTORED
from recloop.testing.stores import Stores, some_event


class EventLogContract:
    """Contract of the event log."""

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

    def test_start_at_after_new_rows_is_refused(self, stores: Stores) -> None:
        log = stores.log()
        log.start_at(100)
        log.start_at(40)
        assert log.last_seq() == 40
        log.append_events([some_event()])
        log.start_at(40)  # as a server does at each start
        with pytest.raises(UserError, match="watermark=90: expected at most 41"):
            log.start_at(90)
        assert log.last_seq() == 41

    def test_repeat_without_a_timestamp_is_a_duplicate(self, stores: Stores) -> None:
        log = stores.log()
        log.append_events([some_event(event_id="e", timestamp=5, received_at=5)])
        repeats = [some_event(event_id="e", timestamp=9, received_at=9), some_event(event_id="e", timestamp=8)]
        assert [receipt.status for receipt in log.append_events(repeats)] == ["duplicate", "conflict"]

    def test_repeat_of_an_imported_event_id_is_a_duplicate(self, stores: Stores) -> None:
        log = stores.log()
        log.start_at(10)
        arrived = [some_event(event_id="old"), some_event("other", event_id="old"), some_event(event_id="new")]
        with log.commit():
            arrivals = log.find_duplicates(arrived, {"old": some_event(event_id="old", seq=7)})
            receipts = arrivals.receipts(log.insert_events(arrivals.rows, ["burst"]))
        assert [(row.status, row.seq) for row in receipts] == [("duplicate", 7), ("conflict", 7), ("quarantined", 11)]

    def test_insert_after_other_rows_were_appended_raises(self, stores: Stores) -> None:
        log = stores.log()
        with log.commit():
            arrivals = log.find_duplicates([some_event()], {})
        log.append_users([User(user_id="u")])
        with pytest.raises(RuntimeError, match="not the newest seq 1 plus 1"):
            log.insert_events(arrivals.rows, [None])
        assert log.last_seq() == 1
        assert log.events().is_empty()

    def test_open_transaction_is_visible_to_its_writer_only(self, stores: Stores) -> None:
        log = stores.log()
        with log.commit():
            log.append_events([some_event()])
            assert log.last_seq() == 0
            assert log.recent([UserWindow("u", 0, 1)])["seq"].to_list() == [1]
        assert log.last_seq() == 1

    def test_seqs_are_assigned_in_commit_order(self, stores: Stores) -> None:
        first, second, reader = stores.log(), stores.log(), stores.log(write=False)
        is_open, may_end = threading.Event(), threading.Event()
        order: list[str] = []

        def stalled() -> None:
            with first.commit():
                first.append_events([some_event("stalled")])
                is_open.set()
                may_end.wait(10)
                order.append("stalled")

        def later() -> None:
            second.append_events([some_event("later")])
            order.append("later")

        threads = [threading.Thread(target=stalled), threading.Thread(target=later)]
        threads[0].start()
        assert is_open.wait(10)
        threads[1].start()
        threads[1].join(0.5)
        assert threads[1].is_alive()  # it waits, although it could write its own rows
        assert reader.last_seq() == 0
        may_end.set()
        for thread in threads:
            thread.join()
        assert order == ["stalled", "later"]
        assert reader.events()["item_id"].to_list() == order

    def test_events_are_read_by_user_seq_and_window(self, stores: Stores) -> None:
        log = stores.log()
        log.append_events(
            [some_event("a"), some_event("b", user_id="v"), some_event("c"), some_event("d", timestamp=50)]
        )
        assert log.events("u")["item_id"].to_list() == ["a", "c", "d"]
        assert log.events("u", after=1, until=3)["item_id"].to_list() == ["c"]
        assert log.events(until=2)["item_id"].to_list() == ["a", "b"]
        assert log.events("unknown").schema == log.events().schema
        windows = [UserWindow("u", 1, 50), UserWindow("v", 0, 0), UserWindow("u", 49, 60)]
        assert log.recent(windows)["item_id"].to_list() == ["d"]
        assert log.recent([]).schema == log.events().schema
        assert log.count_recent(windows[:2]) == {"u": 1}
        assert (log.has_user("v"), log.has_user("w")) == (True, False)
        assert (log.event_seq("e"), log.owners([1, 2, 9])) == (None, {1: "u", 2: "v"})

    def test_long_reads_use_slices(self, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sliced_rows, "MAX_SLICE_ROWS", 7)
        monkeypatch.setattr(logged_items, "SLICE_ROWS", 2)
        log = stores.log()
        log.append_events([some_event(str(n)) for n in range(21)])
        assert log.events()["item_id"].to_list() == [str(n) for n in range(21)]
        assert len(log.events(after=3, until=20)) == 17
        assert [log.has_item(name) for name in ("0", "20", "21")] == [True, True, False]
        log.append_events([some_event("21")])
        assert log.has_item("21")  # rows after the last call are read

    def test_large_batch_is_stored_and_its_repeats_are_found(self, stores: Stores) -> None:
        log = stores.log()
        events = [some_event(str(n), event_id=f"e{n}", user_id=f"u{n % 700}", value=n / 7) for n in range(1_500)]
        assert {receipt.status for receipt in log.append_events(events)} == {"accepted"}
        assert {receipt.status for receipt in log.append_events(events)} == {"duplicate"}
        assert log.events()["value"].to_list() == [n / 7 for n in range(1_500)]
        assert log.count_recent([UserWindow(f"u{n}", 0, 1) for n in range(700)]).total() == 1_500

    def test_retraction_is_stored_once_until_it_is_restored(self, stores: Stores) -> None:
        log = stores.log()
        log.append_events([some_event("a"), some_event("b")])
        rows = [Retraction(1, "burst"), Retraction(1, "other"), Retraction(2, RESTORED), Retraction(1, RESTORED)]
        kept = log.append_retractions(rows)
        assert kept == [Retraction(1, "burst", 3), Retraction(1, RESTORED, 4)]
        assert log.append_retractions([Retraction(1, RESTORED)]) == []
        assert log.retractions() == kept

    def test_identify_moves_earlier_rows_and_names_later_ones(self, stores: Stores) -> None:
        log = stores.log()
        log.append_events([some_event("a", user_id="device", event_id="e"), some_event("b", user_id="other")])
        with log.commit():
            result, moved = identify(log, _NoArchive(), Identity("device", "person", 5))
        assert (result.status, result.seq, result.moved) == ("accepted", 3, 1)
        assert moved["user_id"].to_list() == ["person"]
        log.append_events([some_event("c", user_id="device")])
        assert log.events("person")["item_id"].to_list() == ["a", "c"]
        assert log.events("person")["anonymous_id"].to_list() == ["device", "device"]
        assert log.identities() == [Identity("device", "person", 5, 3)]
        with log.commit():
            assert identify(log, _NoArchive(), Identity("device", "person"))[0].status == "duplicate"

    def test_forgotten_user_has_no_row_left(self, stores: Stores) -> None:
        log = stores.log()
        log.append_events([some_event("a", user_id="gone", anonymous_id="kept"), some_event("b", anonymous_id="gone")])
        log.append_users([User(user_id="gone")])
        assert log.user_ids() == {"gone", "kept", "u"}
        assert forget_in_log(log, ["gone", "unknown"]) == (4, 2)
        log.rewrite()
        assert log.user_ids() == {"u"}
        assert log.append_events([some_event("c", user_id="gone")])[0].seq == 5

    def test_archived_rows_are_deleted_and_seqs_not_used_again(self, stores: Stores) -> None:
        log = stores.log()
        log.append_events([some_event(str(n), received_at=n) for n in range(9)])
        old = log.old_events(0, 9, before=5, limit=3)["seq"].to_list()
        assert old == [1, 2, 3]
        assert log.size_bytes() > 0
        log.delete_events(old)
        log.release_space()
        assert log.events()["seq"].to_list() == [4, 5, 6, 7, 8, 9]
        assert log.newest_received() == 8
        assert log.append_events([some_event()])[0].seq == 10

    def test_numbering_continues_after_a_seq(self, stores: Stores) -> None:
        log = stores.log()
        log.append_events([some_event()])
        assert log.continue_after(7) == 1
        assert log.continue_after(3) == 7
        assert log.append_events([some_event()])[0].seq == 8

    def test_log_that_starts_again_has_only_the_known_identities(self, stores: Stores) -> None:
        log = stores.log()
        log.append_events([some_event("a"), some_event("b")])
        log.start_again(50, [Identity("device", "person", 5, 49)])
        assert log.events().is_empty()
        assert log.identities() == [Identity("device", "person", 5, 49)]
        assert log.append_events([some_event()])[0].seq == 51


class _NoArchive:
    """Archive without rows."""

    watermark = 0

    def has_id(self, column: str, raw_id: str) -> bool:  # noqa: ARG002
        return False

    def for_users(self, users: list[str]) -> pl.DataFrame:
        raise AssertionError(users)
