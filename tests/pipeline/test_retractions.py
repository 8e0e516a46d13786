"""Retrospective rules: an update retracts valid rows from states, and verify explains it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import servers
from arriving import die_after, post
from servers import PATIENCE, Server

from recloop import loop
from recloop.data.prepare import load
from recloop.features import state_store
from recloop.features.labels import EventLabeler
from recloop.monitoring import verify
from recloop.pipeline.update_run import UpdateResult
from recloop.project import Project, open_project
from recloop.recommend import loading
from recloop.storage import Retraction
from recloop.testing.states import digests, digests_of_frame

MORNING = "2025-07-05T10:00:00.{:02d}Z"
"""After the last row of the shop's log."""
LOOSE = (
    "release.gates.max_ndcg_loss=9",
    "release.gates.min_users=1",
    "release.gates.min_queries=1",
    "release.refresh=manual",
)
"""Gates that do not judge the quality of a child."""


def retractions_of(project: Project) -> list[Retraction]:
    with project.open_log() as log:
        return log.retractions()


def states(project: Project) -> dict[str, str]:
    """The only stored states."""
    (folder,) = project.store.glob("states-*")
    return digests(state_store.read(folder, folder.name.split("-")[2]))


def computed(project: Project, until: int) -> dict[str, str]:
    """All states, computed from archive and retractions."""
    archive = project.open_archive()
    out = [row.retracted_seq for row in retractions_of(project) if row.seq <= until]
    rows = archive.events().filter(~pl.col("seq").is_in(out))
    return digests_of_frame(EventLabeler.from_spec(project.load_bundle().spec).label(rows), archive.users())


@dataclass
class ServedRetractions:
    """A served project before, during and after an update that retracts a burst and a repeat."""

    project: Project
    posted: dict[str, Any]
    """The answer to nine dislikes of a burst, its tenth, a purchase and its repeat."""
    lists: dict[str, list[str]]
    """Lists of u01 before the burst, after it, and after the update."""
    update: UpdateResult
    expected: list[tuple[int, str]]
    """Seq and rule of each row to retract."""
    retracted: list[tuple[int, str]]
    pending: list[Any]
    learned: set[int]
    purchase_seq: int
    without_rows: str
    """Verdict of an update right after the first."""
    next_update: UpdateResult
    """Result of an update after one more purchase."""


@pytest.fixture(scope="module")
def served_retractions(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedRetractions]:
    folder = shutil.copytree(trained_folder, tmp_path_factory.mktemp("retractions") / "shop")
    server = servers.start(folder)
    try:
        yield retract_while_serving(server, open_project(folder, LOOSE))
    finally:
        server.close()


def retract_while_serving(server: Server, project: Project) -> ServedRetractions:
    def recommended(user: str) -> list[str]:
        answer = server.client.get(f"/v1/recommend/{user}").json()
        return [slot["item_id"] for slot in answer["items"]]

    lists = {"before": recommended("u01")}
    burst = [
        {"user_id": "u01", "item_id": item, "event_type": "dislike", "timestamp": MORNING.format(n)}
        for n, item in enumerate(lists["before"])
    ]
    purchase = {"user_id": "u02", "item_id": lists["before"][0], "event_type": "purchase"}
    twice = [{**purchase, "timestamp": MORNING.format(0)}] * 2
    posted = server.client.post("/v1/events", json=[*burst, *twice]).json()
    lists["burst"] = recommended("u01")
    recommended("u02")
    first = loading.log_range(project)[0] + 1
    update = loop.update(project)
    expected = [(seq, "burst") for seq in range(first, first + 9)] + [(first + 11, "duplicates")]
    deadline = time.monotonic() + PATIENCE
    while len(retractions_of(project)) < len(expected) and time.monotonic() < deadline:
        time.sleep(0.1)
    retracted = sorted((row.retracted_seq, row.rule) for row in retractions_of(project))
    pending = project.open_control().pending()
    lists["update"] = recommended("u01")
    recommended("u02")
    server.decided()
    learned = set(load(project).events["seq"].to_list())
    without_rows = loop.update(project).verdict
    later = {**purchase, "timestamp": MORNING.format(50), "item_id": lists["before"][1]}
    assert server.client.post("/v1/events", json=later).json()["accepted"] == 1
    next_update = loop.update(project)
    recommended("u01")
    recommended("u02")
    server.decided()
    assert server.stop() == 0
    return ServedRetractions(
        project, posted, lists, update, expected, retracted, pending, learned, first + 10, without_rows, next_update
    )


def test_burst_is_valid_until_the_update_except_its_tenth_event(served_retractions: ServedRetractions) -> None:
    assert served_retractions.posted["accepted"] == 11
    assert served_retractions.posted["quarantined"] == 1
    lists = served_retractions.lists
    assert not set(lists["burst"]) & set(lists["before"][:9])


def test_update_during_serving_retracts_a_burst_and_a_repeat(served_retractions: ServedRetractions) -> None:
    update = served_retractions.update
    assert update.verdict == "registered", update.reason
    assert update.read == 12
    assert update.kept == 1
    assert served_retractions.retracted == served_retractions.expected
    assert served_retractions.pending == []


def test_retracted_rows_leave_states_and_training_but_not_the_archive(served_retractions: ServedRetractions) -> None:
    lists = served_retractions.lists
    assert set(lists["update"]) == set(lists["before"]), "the retracted dislikes no longer hide items"
    retracted = {seq for seq, _ in served_retractions.expected}
    assert not served_retractions.learned & retracted
    assert served_retractions.purchase_seq in served_retractions.learned
    assert set(served_retractions.project.open_archive().events()["seq"]) >= retracted


def test_update_after_retractions_reads_new_rows_only(served_retractions: ServedRetractions) -> None:
    assert served_retractions.without_rows == "nothing", "retractions alone start no update"
    update = served_retractions.next_update
    assert update.verdict == "registered", update.failed
    assert update.read == 1
    assert update.kept == 1
    written = retractions_of(served_retractions.project)
    assert len(written) == len(served_retractions.expected), "each retraction is written once"


def test_verify_and_snapshot_follow_retractions(served_retractions: ServedRetractions) -> None:
    project, last = served_retractions.project, served_retractions.next_update.to_seq
    found = verify.verify(project)
    assert found["unexplained"] == 0, found["differences"]
    state_store.forget(project.store, last)
    assert states(project) == computed(project, last)


@pytest.mark.slow
def test_update_without_a_server_applies_retractions_once_despite_a_kill(project: Project, tmp_path: Path) -> None:
    row = {"user_id": "u01", "item_id": "i01", "event_type": "purchase", "timestamp": 1_752_000_000_000_000}
    rows = pl.DataFrame([row] * 3, schema_overrides={"timestamp": pl.Int64}).with_columns(
        pl.lit(None, pl.String).alias("group_id"), pl.lit(None, pl.Float64).alias("quantity")
    )
    post(project, rows)
    project = open_project(project.root, LOOSE)
    other = open_project(shutil.copytree(project.root, tmp_path / "other"), LOOSE)
    first = loading.log_range(project)[0] + 1
    done = loop.update(project)
    assert done.verdict == "registered", done.reason
    expected = [
        Retraction(first + 1, "duplicates", done.to_seq + 1),
        Retraction(first + 2, "duplicates", done.to_seq + 2),
    ]
    assert retractions_of(project) == expected
    die_after("publish", other, LOOSE)
    assert loop.update(other).verdict == "registered"
    assert retractions_of(other) == expected
    assert loop.update(other).verdict == "nothing"
    assert states(other) == states(project) == computed(project, done.to_seq), (
        "the retractions have seqs after this watermark"
    )
