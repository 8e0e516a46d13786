"""Stores of every schema, and a bundle of an earlier version, are read completely.

`fixtures/schemas/STORE-VERSION.sql` is what the recloop of that schema wrote into a new store, as statements.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from recloop import bundle as bundles
from recloop.pipeline.migration import SCHEMAS
from recloop.recommend.golden import check_golden
from recloop.storage import open_control, open_log
from recloop.storage.decisions import DecisionLog
from recloop.storage.sqlite import open_writer

LOG = "sqlite:///store/log.db"
CONTROL = "sqlite:///store/control.db"
FIXTURES = Path(__file__).parent / "fixtures"
OLDEST = {"log": 2, "decisions": 4, "control": 4}
"""Oldest schemas in statements; `schema-3` has the stores before."""
VERSIONS = [(name, version) for name, oldest in OLDEST.items() for version in range(oldest, SCHEMAS[name].version + 1)]
NOON = 1_751_000_000_000_000


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
    with open_log(LOG, old_folder, write) as log:
        events = log.events()
        retractions = log.retractions()
        assert log.identities() == []
    assert events.select("seq", "user_id", "item_id", "event_id", "group_id").rows() == [
        (659, "u01", "i01", "e1", None),
        (660, "u02", "i02", "e2", "g"),
    ]
    assert [row.rule for row in retractions] == ["burst"]


def test_log_of_schema_1_gets_the_index_of_user_and_time(old_folder: Path) -> None:
    with open_log(LOG, old_folder, write=True) as log:
        indexes = {row[1] for row in log._writing().execute("PRAGMA index_list(events)")}
    assert "events_user_time" in indexes
    assert "events_user" not in indexes
    assert "events_item" not in indexes


def test_control_of_schema_3_keeps_its_releases_and_inbox(old_folder: Path) -> None:
    control = open_control(CONTROL, old_folder)
    assert [row.to for row in control.releases()] == ["registered", "live"]
    assert [row.rule for row in control.pending()] == ["keep"]


def test_bundle_with_earlier_names_loads_with_its_hash(old_folder: Path) -> None:
    release = open_control(CONTROL, old_folder).releases()[-1]
    bundle = bundles.load(old_folder / "bundles" / release.bundle, release.sha256)
    assert len(bundle.items) == 15
    assert {name: placement.n for name, placement in bundle.policy.placements.items()} == {"home": 10}
    assert [case.n for case in bundle.golden] == [10] * 5
    assert bundle.spec.context == ("hour", "weekday", "days_since_last")
    assert {f"context.{name}" for name in bundle.spec.context} <= set(bundle.fields.codes)
    check_golden(bundle)


# ---- stores of every schema


def written_by(folder: Path, name: str, version: int) -> Path:
    """The store that the recloop of a schema wrote."""
    file = folder / f"{name}.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript((FIXTURES / "schemas" / f"{name}-{version}.sql").read_text("utf-8"))
        assert connection.execute("PRAGMA user_version").fetchone() == (version,)
    return file


def check_log(file: Path, write: bool) -> None:
    with open_log(f"sqlite:///{file}", file.parent, write) as log:
        events, items, users, retractions = log.events(), log.items(), log.users(), log.retractions()
        assert (log.last_seq(), log.identities()) == (7, [])
    rows = events.select("seq", "event_id", "user_id", "item_id", "timestamp", "value", "group_id", "context", "rule")
    assert rows.rows() == [
        (1, "e1", "u01", "i01", NOON + 1, 9.5, None, '{"device":"phone"}', None),
        (2, "e2", "u02", "i02", NOON + 2, None, "g", None, None),
        (3, "e3", "u03", "i00", NOON + 3, None, None, None, "burst"),
        (4, "e4", "u04", "i01", NOON + 4, None, None, None, None),
    ]
    assert items.select("seq", "item_id", "attributes").rows() == [(5, "i01", '{"category":"tea"}')]
    assert users.select("seq", "user_id", "attributes").rows() == [(6, "u01", '{"age":"30+"}')]
    assert [(row.seq, row.retracted_seq, row.rule) for row in retractions] == [(7, 2, "delete")]


def check_decisions(file: Path, write: bool) -> None:
    with DecisionLog(file, write) as decisions:
        rows = sorted(decisions.rows(), key=lambda row: row.request_id)
    assert [(row.request_id, row.user_id, row.items, row.scores, row.degraded) for row in rows] == [
        ("c1", "u01", ["i01", "i02"], [1.0, 0.5], []),
        ("c2", "u02", ["i01", "i02"], [1.0, 0.5], []),
        ("c3", "u03", ["i01", "i02"], [1.0, 0.5], ["state"]),
    ]
    assert {(row.bundle, row.generation, row.latency_us, row.inputs["state"]) for row in rows} == {
        ("counts-1", 2, 900, "0a0a0a0a")
    }


def check_control(file: Path, write: bool) -> None:
    if write:
        schema = SCHEMAS["control"]
        open_writer(file, schema.version, schema.script, schema.pragmas, schema.migrations).close()
    control = open_control(f"sqlite:///{file}", file.parent)
    assert [(row.generation, row.from_, row.to, row.by) for row in control.releases()] == [
        (1, "", "registered", "a person"),
        (2, "registered", "checked", "a person"),
        (3, "checked", "live", "a person"),
    ]
    assert [(row.retracted_seq, row.rule) for row in control.pending()] == [(1, "keep")]
    control.close()


CHECKS = {"log": check_log, "decisions": check_decisions, "control": check_control}


@pytest.mark.parametrize(("name", "version"), VERSIONS)
def test_store_of_each_schema_keeps_its_rows(tmp_path: Path, name: str, version: int, write: bool) -> None:
    file = written_by(tmp_path, name, version)
    CHECKS[name](file, write)
    with closing(sqlite3.connect(file)) as connection:
        found = connection.execute("PRAGMA user_version").fetchone()[0]
    assert found == (SCHEMAS[name].version if write else version)
