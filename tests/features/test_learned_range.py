"""Tested and learned rows of an update for any order of arrival."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recloop.config import Config
from recloop.data.labelled_log import split_at
from recloop.features.labels import with_uses
from recloop.features.learned_range import LearnedRange, nothing_held, window_of
from recloop.features.log_end import end_of
from recloop.features.moments import moment_stamps
from recloop.records import DAY, EVENT_SCHEMA, LABEL, SEQ, STAMP, USER_ID, WEIGHT

YEAR = 365 * DAY
row = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from((0, 1, 2, 3, YEAR, YEAR + 1, YEAR + DAY, 60 * YEAR)),  # late, fresh, and a wrong clock
    st.sampled_from((None, None, "g", "h")),
    st.sampled_from((1, 1, 1, 0)),
)


def frame(rows: list[Any], after: int = 0) -> pl.DataFrame:
    """Labelled rows in their order of arrival."""
    drawn = [
        {
            USER_ID: user,
            "item_id": "i",
            "timestamp": stamp,
            "group_id": group,
            SEQ: after + n,
            LABEL: label,
            WEIGHT: 1.0,
        }
        for n, (user, stamp, group, label) in enumerate(rows, 1)
    ]
    return with_uses(pl.DataFrame(drawn, schema={**EVENT_SCHEMA, LABEL: pl.Int8, WEIGHT: pl.Float32}))


def seqs(rows: pl.DataFrame) -> set[int]:
    return set(rows[SEQ])


@given(st.lists(st.lists(row, max_size=12), min_size=2, max_size=5), st.integers(0, 6), st.booleans())
def test_window_of_any_arrival_order_tests_no_learned_row_and_learns_all(
    arrivals: list[list[Any]], first_cut: int, refused: bool
) -> None:
    """Each list of rows is a window; live is first cut in time, then each child."""
    log = moment_stamps(frame(arrivals[0] or [("a", 1, None, 1)]))
    stamps = sorted(log[STAMP].to_list())
    cut = stamps[min(first_cut, len(stamps) - 1)]
    known = seqs(log.filter(pl.col(STAMP) < cut))
    live = LearnedRange(max(known, default=0), cut)
    for number, rows in enumerate(arrivals[1:]):
        raw = pl.concat([log.drop(STAMP), frame(rows, log[SEQ].max() or 0)])
        log = moment_stamps(raw)
        assert seqs(log.filter(live.rows)) == known, "the learned range equals the rows of the fit"
        window = window_of(log, live)
        parts = split_at(log, window, Config().split.validation_users)
        train, test = seqs(parts.train) | seqs(parts.valid), seqs(parts.test)
        assert train | test == seqs(log)
        assert not train & test
        assert not test & known, "live has not learned the test"
        assert (parts.test[STAMP] >= window.cut).all()
        keys = [USER_ID, STAMP]
        assert not len(parts.test.select(keys).join(pl.concat([parts.train, parts.valid]).select(keys), on=keys))
        candidate = LearnedRange(max(train, default=0), window.cut, window.held_seq)
        assert seqs(log.filter(candidate.rows)) == train
        positive = parts.test.filter(pl.col(LABEL) > 0)
        assert (positive.select(pl.struct(keys).n_unique()).item() if len(positive) else 0) == last_quarter(
            window.fresh
        )
        if refused and number == 0:
            continue  # the next window contains these rows too
        known = seqs(log)  # the child learns the test as well
        live = LearnedRange(max(known, default=0), end_of(log, STAMP) + 1, nothing_held(log))
    if not (refused and len(arrivals) == 2):
        assert known == seqs(log)


def last_quarter(fresh: int) -> int:
    """Number of moments in the last quarter."""
    return fresh - int(0.75 * fresh) if fresh else 0


def test_window_with_late_and_new_rows_tests_only_new_ones() -> None:
    """An export with 400 rows of earlier years and 130 new rows; the cut stays recent."""
    old = [(f"u{n % 50}", n, None, 1) for n in range(2_000)]
    late = [(f"u{n % 50}", 500 + n, None, 1) for n in range(400)]
    fresh = [(f"u{n % 50}", YEAR + n, None, 1) for n in range(130)]
    for arrived in (late + fresh, fresh + late, [*fresh[:65], *late, *fresh[65:]]):
        log = moment_stamps(frame([*old, *arrived])).unique([USER_ID, STAMP], keep="first", maintain_order=True)
        live = LearnedRange(2_000, 2_000)
        window = window_of(log, live)
        test = split_at(log, window, Config().split.validation_users).test
        assert (window.fresh, len(test)) == (130, 33)
        assert test[STAMP].min() >= YEAR
        assert test[SEQ].min() > 2_000


@pytest.mark.parametrize("rows", [0, 1, 400])
def test_window_of_only_late_rows_has_an_empty_test(rows: int) -> None:
    old = [("a", n, None, 1) for n in range(100)]
    log = moment_stamps(frame([*old, *[("b", n, None, 1) for n in range(min(rows, 90))]]))
    window = window_of(log, LearnedRange(100, 100, 101))
    parts = split_at(log, window, Config().split.validation_users)
    assert (window.cut, window.fresh, len(parts.test)) == (100, 0, 0)
    assert len(parts.train) + len(parts.valid) == len(log)


def test_window_excludes_rows_of_a_learned_moment_from_the_test() -> None:
    log = moment_stamps(frame([("a", 1, "g", 1), ("a", 2, "g", 1), ("a", 3, None, 1)]))
    window = window_of(log, LearnedRange(1, 2))
    assert seqs(split_at(log, window, Config().split.validation_users).test) == {3}


def test_window_after_a_cut_of_a_wrong_clock_tests_rows_since_the_fit() -> None:
    """A bundle with a cut in 2090 is tested on rows that arrived since its fit."""
    log = moment_stamps(frame([*[("a", n * DAY, None, 1) for n in range(50)], ("b", 60 * YEAR, None, 1)]))
    poisoned = LearnedRange(51, 60 * YEAR + 1)
    more = moment_stamps(
        pl.concat([log.drop(STAMP), frame([("a", (50 + n) * DAY, None, 1) for n in range(8)], after=51)])
    )
    window = window_of(more, poisoned)
    assert (window.cut, window.fresh) == (49 * DAY + 1, 8)
    assert seqs(split_at(more, window, Config().split.validation_users).test) == {58, 59}
