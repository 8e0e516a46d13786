"""Replay of held-out days against a service: requests, posts, links, and complete counts."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from recloop import loop
from recloop.demo.replay import baskets, replay
from recloop.ingest.client import serving
from recloop.monitoring.verify import verify
from recloop.project import open_project
from recloop.records import DAY
from recloop.simulation.shop import SimulatedShop


@pytest.fixture
def held(tmp_path: Path) -> tuple[Path, pl.DataFrame]:
    """A simulated project after its first run, without the last 20 days."""
    folder = SimulatedShop(users=60, items=40).write(tmp_path / "shop")
    events = SimulatedShop(users=60, items=40).events()
    border = int(events["timestamp"].max()) - 20 * DAY  # type: ignore[arg-type]
    with (folder / "recloop.toml").open("a", encoding="utf-8") as file:
        file.write('allow_time_header = true\n[model]\nname = "covisitation"\n')
    before = pl.read_csv(folder / "events.csv", infer_schema=False)
    before.filter(pl.Series(events["timestamp"] < border)).write_csv(folder / "events.csv")
    loop.first_run(open_project(folder))
    future = events.filter((pl.col("timestamp") >= border) & (pl.col("event_type") == "purchase"))
    return folder, future


def test_replay_requests_posts_and_links_baskets(held: tuple[Path, pl.DataFrame]) -> None:
    folder, future = held
    first = int(future["timestamp"].min())  # type: ignore[arg-type]
    with serving(folder) as client:
        done = replay(client, future, first, 10, seconds=60)
        late = replay(client, future, first + 10 * DAY, 11, seconds=0)
    assert (done.baskets, done.left_out) == (len(list(baskets(future, first, 10))), 0)
    assert done.baskets > 5
    assert late.baskets == 0
    assert late.left_out > 5
    assert done.rows + late.rows == len(future)
    project = open_project(folder)
    log = project.open_log()
    store = project.open_decisions()
    rows, decisions = log.events(), store.rows()
    log.close()
    store.close()
    decision_of = {decision.request_id: decision for decision in decisions}
    linked = rows.filter(pl.col("request_id").is_not_null())
    assert linked["request_id"].n_unique() == done.baskets == len(decision_of)
    hits = 0
    for (request_id,), basket in linked.group_by("request_id"):
        decision = decision_of[str(request_id)]
        assert decision.user_id == basket["user_id"][0]
        assert decision.served_at < basket["timestamp"][0]
        hits += bool(set(decision.items) & set(basket["item_id"]))
    assert hits == done.hits
    assert verify(project)["unexplained"] == 0
