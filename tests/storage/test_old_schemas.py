"""Stores and a bundle of an earlier version are read completely."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from recloop import bundle as bundles
from recloop.recommend.golden import check_golden
from recloop.storage.control import ControlStore
from recloop.storage.decisions import DecisionLog
from recloop.storage.event_log import EventLog

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(params=["read only", "written"])
def write(request: pytest.FixtureRequest) -> bool:
    """Open the store for writing, which migrates it, or only for reading."""
    return request.param == "written"


@pytest.fixture
def old_folder(tmp_path: Path) -> Path:
    """A copy of the project folder of schema 3."""
    return shutil.copytree(FIXTURES / "schema-3", tmp_path / "shop")


def test_decisions_of_schema_3_keep_their_rows(old_folder: Path, write: bool) -> None:
    with DecisionLog(old_folder / "store" / "decisions.db", write) as decisions:
        rows = sorted(decisions.rows(), key=lambda row: row.user_id or "")
    assert [row.user_id for row in rows] == ["new", "u01", "u02"]
    assert [row.request_id for row in rows] == ["c-new", "c-u01", "c-u02"]
    assert {(row.role, row.variant, row.placement) for row in rows} == {("answer", "live", "home")}
    assert [(row.n, len(row.items)) for row in rows] == [(3, 3)] * 3
    assert all({"context.hour", "context.weekday", "context.days_since_last"} <= set(row.inputs) for row in rows)


def test_log_of_schema_1_keeps_its_events_and_retractions(old_folder: Path, write: bool) -> None:
    with EventLog(old_folder / "store" / "log.db", write) as log:
        events = log.events()
        retractions = log.retractions()
        assert log.identities() == []
    assert events.select("seq", "user_id", "item_id", "event_id", "group_id").rows() == [
        (659, "u01", "i01", "e1", None),
        (660, "u02", "i02", "e2", "g"),
    ]
    assert [row.rule for row in retractions] == ["burst"]


def test_log_of_schema_1_gets_the_index_of_user_and_time(old_folder: Path) -> None:
    with EventLog(old_folder / "store" / "log.db", True) as log:
        indexes = {row[1] for row in log._writing().execute("PRAGMA index_list(events)")}
    assert "events_user_time" in indexes
    assert "events_user" not in indexes
    assert "events_item" not in indexes


def test_control_of_schema_3_keeps_its_releases_and_inbox(old_folder: Path) -> None:
    control = ControlStore(old_folder / "store" / "control.db")
    assert [row.to for row in control.releases()] == ["registered", "live"]
    assert [row.rule for row in control.pending()] == ["keep"]


def test_bundle_with_earlier_names_loads_with_its_hash(old_folder: Path) -> None:
    release = ControlStore(old_folder / "store" / "control.db").releases()[-1]
    bundle = bundles.load(old_folder / "bundles" / release.bundle, release.sha256)
    assert len(bundle.items) == 15
    assert {name: placement.n for name, placement in bundle.policy.placements.items()} == {"home": 10}
    assert [case.n for case in bundle.golden] == [10] * 5
    assert bundle.spec.context == ("hour", "weekday", "days_since_last")
    assert {f"context.{name}" for name in bundle.spec.context} <= set(bundle.fields.codes)
    check_golden(bundle)
