"""The rule clock: stamps of wrong clocks on arrival, in files and in memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import polars as pl
import pytest

import recloop
from recloop.config import Clean, Config, Events
from recloop.data.clean import clean
from recloop.data.doctor.report import build_report
from recloop.data.prepare import load, prepare
from recloop.errors import UserError
from recloop.features.clock_rule import wrong_clock
from recloop.features.labels import EventLabeler
from recloop.ingest.arrival_rules import ArrivalRules
from recloop.project import open_project
from recloop.records import DAY, EVENT_SCHEMA, RULE, SECOND, Event
from recloop.storage.event_lookup import UserWindow
from recloop.storage.event_rows import RULED_SCHEMA, EventColumns, number_new

NOW = 1_795_010_112 * SECOND  # 2026-11-18
YEAR_2090 = 3_786_912_000 * SECOND


def frame(stamps: list[int], received_at: int | None = NOW, users: int = 20) -> pl.DataFrame:
    rows = [
        {"seq": n, "user_id": f"u{n % users}", "item_id": f"i{n % 7}", "timestamp": stamp, "received_at": received_at,
         "event_type": "purchase"}
        for n, stamp in enumerate(stamps, 1)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=EVENT_SCHEMA)


@pytest.mark.parametrize(
    ("stamp", "wrong"),
    [
        (-1, True), (0, False), (NOW, False), (NOW + 300 * SECOND, False), (NOW + 300 * SECOND + 1, True),
        (NOW + DAY, True), (NOW + 3_600 * SECOND, True), (NOW - 3_600 * SECOND, False), (YEAR_2090, True),
        (-62_009_366_400 * SECOND, True),
    ],
)  # fmt: skip
def test_wrong_clock_compares_the_stamp_with_the_arrival(stamp: int, wrong: bool) -> None:
    assert wrong_clock(frame([stamp]), Clean()).to_list() == [wrong]
    assert wrong_clock(frame([stamp]), Clean(future="off")).to_list() == [False]
    assert EventLabeler(Events(), Clean()).causal_rule(frame([stamp])).to_list() == ["clock" if wrong else None]


def test_wrong_clock_with_a_wider_range_accepts_an_hour() -> None:
    """Rows of a clock an hour ahead are valid only with ``clean.future = "2h"``."""
    rows = frame([NOW, NOW + 3_600 * SECOND])
    assert wrong_clock(rows, Clean()).to_list() == [False, True]
    assert wrong_clock(rows, Clean(future="2h")).to_list() == [False, False]


def test_wrong_clock_without_an_arrival_accepts_any_future() -> None:
    assert wrong_clock(frame([NOW, -1], None), Clean()).to_list() == [False, True]


def test_clean_future_invalid_is_refused() -> None:
    with pytest.raises(UserError, match=r"clean\.future=soon"):
        Clean(future="soon")


def test_clean_of_an_import_quarantines_stamps_after_the_end_of_the_log() -> None:
    shop = [NOW - n * 7_200 * SECOND for n in range(400)]
    cleaned = clean(frame([*shop, YEAR_2090, NOW + DAY, -1], None).drop("seq"), Config())
    assert cleaned.removed == {"clock": 3}
    assert cleaned.valid_rows["timestamp"].max() == NOW
    assert cleaned.quarantine[RULE].to_list() == ["clock"] * 3
    assert cleaned.valid_rows.filter(pl.col("received_at") != pl.col("timestamp")).height == 0
    assert clean(frame([*shop, NOW + 3_600 * SECOND], None).drop("seq"), Config()).removed == {}, (
        "an hour is not a jump"
    )


def test_doctor_counts_wrong_clocks_and_names_reused_groups(tmp_path: Path) -> None:
    lines = [f"u{n % 20},i{n % 7},{(NOW - n * 7_200 * SECOND) // SECOND},g{n}" for n in range(400)]
    lines += [f"u1,i1,{YEAR_2090 // SECOND},g", f"u1,i1,{(NOW - 9 * DAY) // SECOND},17", f"u1,i2,{NOW // SECOND},17"]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,group_id\n" + "\n".join(lines) + "\n")
    (tmp_path / "recloop.toml").write_text('[data.columns]\ngroup_id = "group_id"\n')
    project = open_project(tmp_path)
    report = build_report(project)
    assert report.removed == {"clock": 1}
    said = "\n".join(report.warnings)
    assert "1 rows are dated before 1970 or more than 5m after the end of the log (2026-11-18T" in said
    assert "1 groups (group_id) span more than a day, such as '17'" in said
    prepare(project)
    assert load(project).manifest.cut < NOW


def test_observe_of_a_row_of_2090_is_ignored() -> None:
    rows = frame([NOW - n * 7_200 * SECOND for n in range(400)], None).select("user_id", "item_id", "timestamp")
    rec = recloop.fit(rows, model="popular")
    before = rec.recommend(["u1"], n=5, filter_viewed=False)
    more = pl.DataFrame({"user_id": ["u1"], "item_id": ["i9"], "timestamp": [YEAR_2090]})
    rec.observe(pl.concat([more, rows.head(3).with_columns(pl.col("timestamp") + SECOND)]))
    assert rec._rows.events["timestamp"].max() == NOW + SECOND
    assert "i9" not in set(rec._rows.events["item_id"])
    assert rec.recommend(["u1"], n=5, filter_viewed=False)["item_id"].to_list() == before["item_id"].to_list()


def test_arrival_rules_with_a_wrong_clock_do_not_read_back_to_its_stamp() -> None:
    """A row of the year 5 in a batch must not read every row of its users."""
    ranges: list[tuple[int, int]] = []
    read: list[UserWindow] = []

    class Rows:
        def between(self, _: object, after: int, until: int) -> pl.DataFrame:
            ranges.append((after, until))
            return pl.DataFrame(schema=RULED_SCHEMA)

        def count_recent(self, windows: list[UserWindow]) -> Counter[str]:
            read.extend(windows)
            return Counter()

    rows = Rows()
    rules = ArrivalRules(EventLabeler(Events(), Clean()), rows)  # type: ignore[arg-type]
    stamps = (NOW - 5 * SECOND, -62_009_366_400 * SECOND, YEAR_2090)
    events = [Event(user_id="u", item_id="i", timestamp=stamp, received_at=NOW) for stamp in stamps]
    assert rules.judge(EventColumns.of_rows(number_new(events, {}, 0).rows), rows) == [None, "clock", "clock"]
    assert rules.judge(EventColumns.of_rows(number_new(events[1:], {}, 0).rows), rows) == ["clock", "clock"]
    assert read == [("u", NOW - 6 * SECOND, NOW - 5 * SECOND)]
    assert ranges == [(NOW - 6 * SECOND, NOW - 5 * SECOND)]
