"""Doctor: counts that add up, and warnings exactly where they apply."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import rich.console

from recloop.data.doctor.page import page
from recloop.data.doctor.profile import timestamp_resolution
from recloop.data.doctor.report import Report, Span, TypeRows, build_report
from recloop.data.doctor.text import render
from recloop.project import Project, open_project
from recloop.records import SECOND

ProjectFactory = Callable[..., Project]
HEAD = "user_id,item_id,timestamp,kind,qty,basket\n"
KIND, QTY, BASKET = ('data.columns.event_type="kind"', 'data.columns.quantity="qty"', 'data.columns.group_id="basket"')


def said(report: Report) -> str:
    return "\n".join(report.warnings)


def rows(n: int = 100) -> str:
    """Rows of 10 users in baskets of two; one row in ten repeats an item."""
    lines = []
    for k in range(n):
        basket = k // 2
        stamp = f"2025-01-{1 + basket // 12 % 28:02}T{basket % 12 + 8:02}:00:{k // 2 % 60:02}"
        item = 0 if k % 10 == 9 else k
        lines.append(f"u{basket % 10},i{item},{stamp},buy,1,b{basket}")
    return "\n".join(lines) + "\n"


def test_doctor_counts_add_up_to_the_rows_of_the_log(project_factory: ProjectFactory) -> None:
    log = HEAD + rows() + ",i,2025-01-01,buy,1,\nu1,i1,2025-01-02T03:04:05,buy,0,\nu0,i0,2025-01-01T08:00:00,buy,1,b0\n"
    report = build_report(project_factory(log, KIND, QTY, BASKET, "clean.max_removed=0.05"))
    assert (report.read, report.kept, report.rejected) == (103, 100, 1)
    assert report.removed == {"keep": 1, "duplicates": 1}
    assert report.read == report.kept + sum(report.removed.values()) + report.rejected
    assert (report.users, report.moments) == (10, 50)
    assert report.items == 90  # ten of the hundred are i0, which is one of them
    assert report.span == Span("2025-01-01T08:00:00Z", "2025-01-05T09:00:49Z", 4.04)
    assert report.repeats == pytest.approx(0.08)  # u4 and u9 have i0 five times each: four repeats each
    assert set(report.to_json()) >= {
        "read", "kept", "removed", "rejected", "users", "items", "moments", "span", "repeats", "warnings",
    }  # fmt: skip
    assert "1.0 % of rows could not be read: no user_id (1)" in said(report)


def test_doctor_names_the_group_column_or_suspects_baskets(project_factory: ProjectFactory) -> None:
    with_group = build_report(project_factory(HEAD + rows(), BASKET))
    assert "100.0 % of rows share their stamp with others: baskets, grouped by basket" in with_group.notes
    without = said(build_report(project_factory(HEAD + rows())))
    assert "100.0 % of rows share their stamp with others of the same user and count as one moment" in without
    assert "set data.columns.group_id" in without


def test_doctor_warns_of_excess_and_an_impossible_split(project_factory: ProjectFactory) -> None:
    log = HEAD + "".join(f"u{n},i,2025-01-01,buy,{n % 2},\n" for n in range(20))
    report = build_report(project_factory(log, QTY))
    assert (report.kept, report.removed) == (10, {"keep": 10})
    assert "rule keep=50.0% of the rows (10 of 20): expected at most 5.0%" in said(report)
    assert "all have one instant" in said(report)
    assert "only one item" in said(report)
    assert not Path(project_factory(log).data).exists()


@pytest.mark.parametrize(
    ("stamps", "coarse"),
    [
        (["2025-01-01", "2025-01-02"], "day"),
        (["2025-01-01T05:00", "2025-01-01T06:00"], "hour"),
        (["2025-01-01T05:01", "2025-01-01T06:02"], "minute"),
        (["2025-01-01T05:01:01", "2025-01-01T06:02:00"], ""),
        (["2025-01-01T05:01:01", "2025-01-01T06:02:01"], "minute"),  # a constant second carries no information
        (["2025-01-01", "2025-01-01"], ""),
    ],
)
def test_timestamp_resolution_is_the_coarsest_matching_unit(stamps: list[str], coarse: str) -> None:
    micros = pl.Series(stamps).str.to_datetime(time_unit="us", strict=False, format=None)
    assert timestamp_resolution(micros.dt.timestamp("us")) == coarse


def test_doctor_with_coarse_timestamps_warns_of_the_burst_rule(project_factory: ProjectFactory) -> None:
    log = HEAD + "".join(f"u{n % 9},i{n},2025-01-{n % 28 + 1:02},buy,1,\n" for n in range(50))
    assert 'a resolution of one day, too coarse for the burst rule; set clean.burst = "off"' in said(
        build_report(project_factory(log))
    )
    assert "burst" not in said(build_report(project_factory(log, 'clean.burst="off"')))


def test_doctor_reports_event_types_without_a_rule(project_factory: ProjectFactory) -> None:
    log = HEAD + "".join(
        f"u{n % 9},i{n},2025-01-01T00:{n:02}:01,{'buy' if n % 3 else 'look at'},1,\n" for n in range(60)
    )
    events = ('events.positive=["buy"]', "events.negative=[]")
    report = build_report(project_factory(log, KIND, *events))
    assert "event type 'look at' (20 rows) is not in a rule of [events] and is neutral" in report.warnings
    assert report.event_types == {"buy": TypeRows(40, 1), "look at": TypeRows(20, 0)}
    named = build_report(project_factory(log, KIND, *events, "events.neutral=[\"event_type = 'look at'\"]"))
    assert "not in a rule of" not in said(named)


def test_doctor_classifies_history_events_as_input(project_factory: ProjectFactory) -> None:
    kinds = ("view", "buy", "hide")
    log = HEAD + "".join(f"u{n % 9},i{n},2025-01-01T00:{n:02}:01,{kinds[n % 3]},1,\n" for n in range(60))
    events = ('events.positive=["buy"]', 'events.history=["view"]', 'events.negative=["hide"]')
    report = build_report(project_factory(log, KIND, *events))
    assert report.event_classes == {"view": "input", "buy": "positive", "hide": "negative"}
    mixed = build_report(
        project_factory(log, KIND, *events, "events.weights={\"event_type = 'buy' AND item_id = 'i1'\" = -1}")
    )
    assert mixed.event_classes["buy"] == "by condition"


def test_doctor_warns_of_repeats_seen_items_and_unlisted_items(project_factory: ProjectFactory, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,name\n" + "".join(f"i{n},x\n" for n in range(90)) + "i1,y\n")
    log = HEAD + "".join(
        f"u{n % 9},i{n % 18 if n < 90 else n},2025-01-01T0{n // 60}:{n % 60:02}:01,buy,1,\n" for n in range(100)
    )
    found = said(build_report(project_factory(log, 'data.items="items.csv"', "split.filter_seen=true")))
    assert "% of rows are repeats; split.filter_seen = true never recommends them" in found
    assert "10 items of the log (10.0 % of rows) are not in items.csv" in found
    assert "1 rows of items.csv repeat an earlier item_id; the last one is used\n" in f"{found}\n"
    (tmp_path / "items.csv").write_text("item_id,field,value\n" + "".join(f"i{n % 50},x,1\n" for n in range(100)))
    found = said(build_report(project_factory(log, 'data.items="items.csv"')))
    assert "50 rows of items.csv repeat an earlier item_id; the last one is used: one row per attribute?" in found


def test_doctor_warns_of_a_user_with_many_rows(project_factory: ProjectFactory) -> None:
    log = HEAD + "".join(
        f"{'till' if n % 5 == 0 else f'u{n}'},i{n},2025-01-01T0{n // 60}:{n % 60:02}:01,buy,1,\n" for n in range(300)
    )
    assert "user 'till' has 20.0 % of all rows" in said(build_report(project_factory(log)))


def test_doctor_rendered_report_contains_the_counts(simulated_shop_folder: Path) -> None:
    report = build_report(open_project(simulated_shop_folder))
    console = rich.console.Console(width=100, record=True, file=io.StringIO())
    console.print(render(report))
    text = console.export_text()
    assert text.startswith("events.csv: csv (commas), utf-8; stamps: ISO 8601")
    assert f"{report.kept:,}" in text
    assert "purchase: positive" in text


def shop_log() -> str:
    """Twelve weeks of a small shop: 60 users, three visits each week at most, two views and a purchase a visit."""
    lines = []
    for k in range(600):
        day, user, second = k // 8, f"u{k * 7 % 60}", k * 37 % 60
        for row, kind in enumerate(("view", "view", "buy")):
            item = f"i{(k * 5 + k // 60 + (0 if kind == 'buy' else row)) % 40}"
            stamp = f"2025-{1 + day // 28:02}-{1 + day % 28:02}T{8 + k % 8:02}:{row * 9:02}:{second:02}"
            lines.append(f"{user},{item},{stamp},{kind},1,")
    return HEAD + "\n".join(lines) + "\n"


def test_doctor_of_a_log_in_order_has_no_warning(project_factory: ProjectFactory) -> None:
    report = build_report(project_factory(shop_log(), KIND, 'events.positive=["buy"]', 'events.history=["view"]'))
    assert report.warnings == ()
    assert report.checks is not None
    assert (report.checks.non_products, report.checks.crawlers, report.checks.missing_users) == ((), (), {})
    console = rich.console.Console(width=132, record=True, file=io.StringIO())
    console.print(render(report))
    text = console.export_text()
    assert "!" not in text
    assert len(text.splitlines()) < 50


def test_doctor_names_each_fault_with_the_line_to_set(project_factory: ProjectFactory, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,name\n" + "".join(f"i{n}.0,x\n" for n in range(40)))
    (tmp_path / "users.csv").write_text("user_id,age\n" + "".join(f"U{n},30\n" for n in range(60)))
    extra = [f"u{n % 60},POST,2025-01-{1 + n % 28:02}T09:00:{n % 60:02},buy,1,\n" for n in range(100)]
    extra += [f"{word},i1,2025-01-{1 + n:02}T10:00:07,buy,1,\n" for n in range(5) for word in ("NULL", "guest")]
    extra += [f"u1,i2,20{40 + n}-01-01T10:00:08,buy,1,\n" for n in range(3)]
    tables = ('data.items="items.csv"', 'data.users="users.csv"', 'clean.future="off"')
    text = said(build_report(project_factory(shop_log() + "".join(extra), KIND, *tables)))
    assert "probably not products: 'POST' (100 rows); set clean.exclude_items = [\"POST\"]" in text
    assert (
        "user ids that mean no user: 'NULL' (5), 'guest' (5) rows; set data.missing_users = [\"NULL\", \"guest\"]"
        in text
    )
    assert "0 of 62 users of the log are in users.csv, 60 if casefold is applied: the sides differ in upper" in text
    assert "0 of 41 items of the log are in items.csv; check data.columns.item_id" in text
    assert "99.8 % of rows lie in 2025-01-01 .. 2025-03-" in text
    assert "3 rows lie far outside (latest 2042-01-01)" in text


def test_timestamp_resolution_of_one_second_per_minute_is_minute() -> None:
    assert timestamp_resolution(pl.Series([30 * SECOND, 90 * SECOND])) == "minute"


def test_doctor_joins_the_users_of_files_without_guests(project_factory: ProjectFactory, tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("user_id,age\n" + "".join(f"u{n},30\n" for n in range(60)))
    log = shop_log() + "".join(f",i1,2025-01-01T10:00:07,buy,1,g{n}\n" for n in range(30))
    report = build_report(project_factory(log, KIND, BASKET, 'data.users="users.csv"', 'data.user_columns=["qty"]'))
    assert report.checks is not None
    assert {name: (join.share, join.ids) for name, join in report.checks.joins.items()} == {"users": (1.0, 60)}
    without_file = build_report(project_factory(log, KIND, BASKET, 'data.user_columns=["qty"]'))
    assert without_file.checks is not None
    assert without_file.checks.joins == {}


def test_doctor_of_a_log_without_a_valid_row_still_renders(project_factory: ProjectFactory) -> None:
    log = HEAD + "".join(f"u{n},i{n},2025-01-0{n + 1},buy,0,\n" for n in range(5))
    report = build_report(project_factory(log, QTY, "clean.max_removed=1"))
    assert report.kept == 0
    assert "no valid row is left" in report.warnings
    assert report.checks is not None
    assert report.checks.profile is None
    assert {job.verdict for job in report.checks.jobs} <= {"not enough", "little"}
    rich.console.Console(file=io.StringIO()).print(render(report))
    assert "5 rows read" in page(report, "shop")


def test_doctor_of_users_with_one_moment_names_their_test(project_factory: ProjectFactory) -> None:
    log = HEAD + "".join(f"u{n},i{n % 7},2025-01-01T0{n // 60}:{n % 60:02}:01,buy,1,\n" for n in range(100))
    tested = "100.0 % of users have only one moment, which is tested without a history if it is after the cut"
    assert tested in build_report(project_factory(log)).notes
    other = project_factory(log, 'split.protocol="leave-one-out"')
    assert "100.0 % of users have only one moment, which is not tested" in build_report(other).notes
