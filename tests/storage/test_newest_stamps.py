"""Bounds of timestamps never hide a row from rule burst."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from recloop.records import DAY, SECOND, Event, now
from recloop.storage import newest_stamps, open_log
from recloop.storage.event_lookup import UserWindow, in_windows
from recloop.storage.newest_stamps import NO_STAMP, NewestStamps

URL = "sqlite:///log.db"


def test_may_have_of_a_row_after_the_time_is_true() -> None:
    stamps = NewestStamps(NO_STAMP, {})
    stamps.add([("u", 5), ("u", 3)])
    assert [stamps.may_have("u", after) for after in (4, 5)] == [True, False]
    assert not stamps.may_have("v", 0)


@pytest.mark.parametrize("seed", range(4))
def test_count_recent_of_the_writer_equals_a_read_of_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Rows of the past, of now and of a wrong clock, over restarts, with bounds that are forgotten."""
    monkeypatch.setattr(newest_stamps, "MAX_USERS", 6)
    draw = random.Random(seed)
    start = now()

    def stamp() -> int:
        return start + draw.choice([0, 0, 0, 9 * DAY]) + draw.randrange(20) * SECOND // 4

    skipped = 0
    for _ in range(4):
        with open_log(URL, tmp_path, write=True) as log:
            assert log._writer is not None
            for _ in range(10):
                users = draw.sample(range(9), draw.randint(1, 4))
                windows = [UserWindow(f"u{user}", end - SECOND, end) for user in users for end in [stamp()]]
                counts = log.count_recent(windows)
                read = [user for (user,) in in_windows(log._writer, windows, ("user_id",))]
                assert sorted(counts.elements()) == sorted(read)
                assert log._newest_stamps is not None
                skipped += sum(not log._newest_stamps.may_have(window.user_id, window.after) for window in windows)
                log.append_events([Event(user_id=f"u{user}", item_id="i", timestamp=stamp()) for user in users])
    assert skipped > 0
