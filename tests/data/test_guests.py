"""Rows without a user: guest baskets at all doors, never users, never queries."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import rich.console

from recloop.config import Config
from recloop.data.clean import clean
from recloop.data.doctor.report import GuestCounts, build_report
from recloop.data.doctor.text import render
from recloop.data.read import read_events
from recloop.data.rejected_rows import excess
from recloop.data.split import holdout_rows, n_users, split
from recloop.evaluation.queries import make_queries
from recloop.features.spec import FeatureSpec
from recloop.features.state_delta import rows_of
from recloop.features.state_history import StateHistory
from recloop.ingest.body import Rejected
from recloop.ingest.parse import check_event
from recloop.project import Project
from recloop.records import Event, guest_rows, is_guest
from recloop.training.dataset import make_tables, train_data

ProjectFactory = Callable[..., Project]
HEAD = "user_id,item_id,timestamp,basket\n"
GROUP = 'data.columns.group_id="basket"'
LOG = HEAD + ",i1,2025-01-01,b1\n  ,i2,2025-01-01,b1\nu1,i1,2025-01-01,b2\n,i1,2025-01-02,\n"


def test_read_events_gives_rows_of_one_group_one_guest(project_factory: ProjectFactory) -> None:
    raw = read_events(project_factory(LOG, GROUP))
    assert raw.frame["user_id"].to_list() == ["guest:b1", "guest:b1", "u1"]
    assert [row.reason for row in raw.rejects] == ["no user_id"], "without user and basket a row has no owner"


def test_read_events_with_guests_reject_rejects_without_exceeding_a_limit(project_factory: ProjectFactory) -> None:
    raw = read_events(project_factory(LOG, GROUP, 'data.guests="reject"'))
    assert [row.reason for row in raw.rejects] == ["guest without user_id"] * 2 + ["no user_id"]
    assert excess(raw.rejects[:2], raw.read, 0.05) is None
    error = excess(raw.rejects, raw.read, 0.05)
    assert error is not None
    assert "(1 of 4)" in str(error)


@pytest.mark.parametrize("user_id", [None, "", " "])
def test_check_event_without_user_is_part_of_the_groups_basket(user_id: str | None) -> None:
    row: dict[str, Any] = {"item_id": "i1", "event_type": "buy", "user_id": user_id}
    baskets, reject = (Config.model_validate({"data": {"guests": mode}}).data for mode in ("baskets", "reject"))
    event = check_event({**row, "group_id": "b1"}, 5, baskets)
    assert isinstance(event, Event)
    assert (event.user_id, event.group_id) == ("guest:b1", "b1")
    for refused, reason in (
        (check_event({**row, "group_id": "b1"}, 5, reject), "guest without user_id"),
        (check_event(row, 5, baskets), "no user_id"),
    ):
        assert isinstance(refused, Rejected)
        assert refused.reason == reason
    anonymous = check_event({**row, "anonymous_id": "a"}, 5, baskets)
    assert isinstance(anonymous, Event)
    assert anonymous.user_id == "a"


def shop(project_factory: ProjectFactory) -> Project:
    """Four users with ten days each; on each day a guest buys ``only`` and ``i1`` together."""
    lines = []
    for day in range(1, 11):
        lines += [f"u{user},i{(day + user) % 5},2025-01-{day:02}T0{user}:00:00,d{day}u{user}" for user in range(1, 5)]
        lines += [f",{item},2025-01-{day:02}T09:00:00,g{day}" for item in ("only", "i1")]
    return project_factory(HEAD + "\n".join(lines) + "\n", GROUP)


def test_split_holds_out_no_guest_and_queries_none(project_factory: ProjectFactory) -> None:
    project = shop(project_factory)
    cleaned = clean(read_events(project).frame, project.config)
    parts = split(cleaned.valid_rows, project.config.split)
    assert parts.test.filter(guest_rows()).height == 2, "guests after the cut wait for the next update"
    queries = make_queries(parts.test, "successive")
    assert len(queries)
    assert not any(map(is_guest, queries.users))
    assert not any(map(is_guest, holdout_rows(parts.train, 99, 99)["user_id"]))
    assert n_users(cleaned.valid_rows) == 4


def test_train_data_counts_guests_for_items_and_not_as_users(project_factory: ProjectFactory) -> None:
    project = shop(project_factory)
    rows = clean(read_events(project).frame, project.config).valid_rows
    tables = make_tables(FeatureSpec.from_config(project.config), rows, 2**60, None, None)
    data = train_data(tables, rows, None)
    assert data.user_ids == ["u1", "u2", "u3", "u4"]
    count = dict(zip(["", *data.item_ids], data.counts.tolist(), strict=True))
    assert (count["only"], count["i1"]) == (10, 18), "8 of users and 10 of guests"
    assert data.guests is not None
    assert np.diff(data.guests.offsets).tolist() == [2] * 10
    assert data.popularity(1.0)[data.item_ids.index("only") + 1] == pytest.approx(0.0, abs=1e-9), "decay at the cut"
    alone = train_data(tables, rows.filter(~guest_rows()), None)
    assert alone.guests is None
    assert (data.items == alone.items).all()


def test_states_leave_guests_out_in_both_implementations(project_factory: ProjectFactory) -> None:
    project = shop(project_factory)
    rows = clean(read_events(project).frame, project.config).valid_rows
    history = StateHistory(rows)
    assert history.states(["guest:g1", "u1"], [10**9] * 2).positives.tolist() == [0, 10]
    assert sorted(history.users.ids()) == ["u1", "u2", "u3", "u4"]
    assert rows_of(rows.filter(guest_rows())) == []


def test_doctor_names_guest_baskets_and_their_rows(project_factory: ProjectFactory) -> None:
    report = build_report(shop(project_factory))
    assert (report.users, report.guests) == (4, GuestCounts(10, 20))
    assert report.to_json()["guests"] == {"baskets": 10, "rows": 20}
    notes = "\n".join(report.notes)
    assert "10 guest baskets (20 rows, 33.3 %) have no user" in notes
    assert "of users have only one moment" not in notes
    console = rich.console.Console(file=io.StringIO(), width=120)
    console.print(render(report))
    assert "baskets without a user (20 rows)" in console.file.getvalue()  # type: ignore[attr-defined]


def test_doctor_of_guests_alone_says_that_lists_cannot_be_personal(project_factory: ProjectFactory) -> None:
    report = build_report(project_factory(HEAD + ",i1,2025-01-01,a\n,i2,2025-01-02,b\n,i1,2025-01-03,c\n", GROUP))
    assert "all rows belong to guests" in "\n".join(report.warnings)
    assert isinstance(report.users, int)
    assert report.users == 0


def test_guest_rows_selects_by_prefix() -> None:
    frame = pl.DataFrame({"user_id": ["guest:1", "guest", "u"]})
    assert frame.filter(guest_rows())["user_id"].to_list() == ["guest:1"]
