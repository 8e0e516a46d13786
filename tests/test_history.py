"""Views as history: a browsing log from `init` to a list over HTTP; returns; no positive row."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest

from recloop import loop
from recloop.data.prepare import load, prepare
from recloop.errors import UserError
from recloop.evaluation.queries import make_queries
from recloop.features.moments import moment_stamps
from recloop.features.spec import FeatureSpec
from recloop.features.state_history import StateHistory
from recloop.features.undo import without_undone
from recloop.init.detect import init
from recloop.project import open_project
from recloop.records import Use
from recloop.serve import app as apps
from recloop.training.dataset import make_tables, train_data

PERSONAL = {"model", "history", "neighbours"}


def browsing(folder: Path, visitors: int = 200) -> Path:
    """Write a log of views with few carts and purchases; most visitors only view."""
    draw = random.Random(0)
    rows = []
    for visitor in range(visitors):
        at = 1_700_000_000 + draw.randrange(86_400 * 90)
        for _ in range(draw.randrange(1, 20)):
            at += draw.randrange(10, 4_000)
            item = draw.randrange(60) if draw.random() < 0.1 else visitor % 10 * 6 + draw.randrange(6)
            rows.append((f"v{visitor}", f"p{item}", at * 1_000, "view"))
            for kind, share, later in (("addtocart", 0.03, 5), ("transaction", 0.02, 9)):
                if draw.random() < share:
                    rows.append((f"v{visitor}", f"p{item}", (at + later) * 1_000, kind))
    names = ["visitorid", "itemid", "timestamp", "event"]
    pl.DataFrame(sorted(rows, key=lambda row: row[2]), schema=names, orient="row").write_csv(folder / "log.csv")
    init("log.csv", root=folder, yes=True)
    return folder


def test_update_of_a_browsing_log_serves_visitors_without_targets(tmp_path: Path) -> None:
    project = open_project(browsing(tmp_path), ['model.name="covisitation"'])
    bundle = loop.first_run(project).bundle
    data = load(project)
    users = data.events["user_id"].unique().sort().to_list()
    states = StateHistory(data.events).states(users, [10**9] * len(users))
    assert (np.diff(states.moment_offsets) == 0).mean() <= 0.05
    assert 1 - data.events.filter(pl.col("label") > 0)["user_id"].n_unique() / len(users) > 0.4, (
        "most visitors only view"
    )
    assert set(data.test.filter(pl.col("label") > 0)["event_type"]) == {"addtocart", "transaction"}
    assert int(bundle.items.count.sum()) == (pl.concat([data.train, data.valid])["label"] > 0).sum(), (
        "only targets are counted"
    )
    assert bundle.policy.filter_seen == project.config.split.filter_seen

    async def visit() -> set[str]:
        app = apps.create(open_project(tmp_path))
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            looks = [{"user_id": "new", "item_id": f"p{n}", "event_type": "view"} for n in range(12)]
            assert (await client.post("/v1/events", json=looks)).json()["accepted"] == 12
            known = (await client.get("/v1/users/new")).json()
            assert (known["state"], known["events"]) == ("hot", 12)
            answer = (await client.get("/v1/recommend/new?n=10")).json()
        app.state.service.close()
        return {slot["source"] for slot in answer["items"]}

    assert asyncio.run(visit()) & PERSONAL


def log_of(rows: list[tuple[int, str, str, Use, float]]) -> pl.DataFrame:
    """Labelled rows of one user: (day, item, undone type, use, units)."""
    frame = pl.DataFrame(
        [
            {"seq": n, "user_id": "u", "item_id": item, "timestamp": day, "group_id": None, "use": int(use), "pair": pair,
             "units": units, "label": int(use is Use.TARGET), "weight": 5.0 if use is Use.TARGET else 1.0}
            for n, (day, item, pair, use, units) in enumerate(rows, 1)
        ],
        schema_overrides={"group_id": pl.String, "use": pl.Int8, "label": pl.Int8, "weight": pl.Float32},
    )  # fmt: skip
    return moment_stamps(frame)


def test_without_undone_return_removes_units_of_the_newest_purchase() -> None:
    bought = [(1, "a", "", Use.TARGET, 1.0), (2, "a", "", Use.TARGET, 3.0), (3, "b", "", Use.TARGET, 1.0)]
    part = without_undone(log_of([*bought, (4, "a", "*", Use.UNDO, 2.0)]))
    assert part["label"].to_list() == [1, 1, 1, 0], "two of three units were returned: one is left"
    whole = without_undone(log_of([*bought, (4, "a", "*", Use.UNDO, 3.0)]))
    assert whole["label"].to_list() == [1, 0, 1, 0]
    more = without_undone(log_of([*bought, (4, "a", "*", Use.UNDO, 9.0), (5, "a", "", Use.TARGET, 1.0)]))
    assert more["label"].to_list() == [0, 0, 1, 0, 1], "surplus units undo no later purchase"


def test_without_undone_before_the_cut_keeps_purchases_returned_later() -> None:
    rows = log_of([(1, "a", "", Use.TARGET, 1.0), (5, "a", "", Use.TARGET, 1.0), (9, "a", "*", Use.UNDO, 2.0)])
    assert without_undone(rows.filter(pl.col("stamp") < 5))["label"].to_list() == [1]
    test = make_queries(rows.filter(pl.col("stamp") >= 5), "successive")
    assert len(test) == 0, "an item returned in the test is not a target"


def test_train_data_targets_exclude_history_events(tmp_path: Path) -> None:
    project = open_project(browsing(tmp_path, 40))
    prepare(project)
    data = load(project)
    tables = make_tables(
        FeatureSpec.from_config(project.config), pl.concat([data.train, data.valid]), data.manifest.cut, None, None
    )
    train = train_data(tables, data.train, data.valid)
    assert train.targets is not None
    looked = data.train.filter(pl.col("event_type") == "view")
    assert len(train.items) > 5 * train.targets.sum() > 0
    assert set(looked["item_id"]) <= set(train.item_ids)
    assert (train.target_share() > 0).sum() <= (train.counts > 0).sum()
    assert not train.moments_with_past()[~train.has_target].any()


@pytest.mark.parametrize("kind", ["purchase", "return"])
def test_prepare_with_returns_removes_purchases_from_counts(tmp_path: Path, kind: str) -> None:
    """A quarter of the rows are returned; no user keeps item `i0`."""
    rows = []
    for n in range(90):
        basket = ("i0", f"i{1 + n % 7}", f"i{8 + n % 5}")
        rows += [(f"u{n % 30}", item, 1_700_000_000 + n * 90_000, "purchase", 1) for item in basket]
        back = (f"u{n % 30}", "i0", 1_700_000_000 + n * 90_000 + 40_000, kind, 1 if kind == "return" else -1)
        rows.append(back)
    names = ["user_id", "item_id", "timestamp", "event_type", "quantity"]
    pl.DataFrame(rows, schema=names, orient="row").write_csv(tmp_path / "log.csv")
    init("log.csv", root=tmp_path, yes=True)
    project = open_project(tmp_path)
    made = prepare(project)
    assert made.report.removed == {}
    data = load(project)
    tables = make_tables(FeatureSpec.from_config(project.config), data.train, data.manifest.cut, None, None)
    counts = dict(zip(tables.items.ids, train_data(tables, data.train, None).counts[1:].tolist(), strict=True))
    assert counts.get("i0", 0) <= 1, "at most the one that was returned after the cut"
    assert min(count for item, count in counts.items() if item != "i0") >= 8
    whole = StateHistory(data.events).states(["u3"], [10**9])
    assert "i0" not in whole.names[whole.items].tolist()


def test_prepare_without_a_positive_row_raises(tmp_path: Path) -> None:
    names = ["user_id", "item_id", "timestamp", "event_type"]
    rows = [(f"u{n % 5}", f"i{n % 7}", 1_700_000_000 + n * 3_600, "impression") for n in range(60)]
    pl.DataFrame(rows, schema=names, orient="row").write_csv(tmp_path / "log.csv")
    init("log.csv", root=tmp_path, yes=True)
    project = open_project(tmp_path)
    assert project.config.events.neutral == ("impression",)
    with pytest.raises(UserError, match=r"no row is positive: see \[events\]") as caught:
        prepare(project)
    assert caught.value.exit_code == 2
