"""Retrospective rules: an update retracts valid rows from states, and verify explains it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
from arriving import die_after, post
from servers import PATIENCE, Server

from recloop import loop
from recloop.data.prepare import load
from recloop.features.labels import EventLabeler
from recloop.monitoring import verify
from recloop.project import Project, open_project
from recloop.recommend import loading
from recloop.recommend.user_states import full_snapshot
from recloop.storage import Retraction, snapshots

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


def states(project: Project) -> dict[str, bytes]:
    """The states of the only snapshot."""
    (file,) = project.store.glob("snapshots-*.db")
    stored = snapshots.Snapshot(file)
    try:
        return dict(stored)
    finally:
        stored.close()


def folded(project: Project, until: int) -> dict[str, bytes]:
    """All states, computed from archive and retractions."""
    archive = project.open_archive()
    out = [row.retracted_seq for row in retractions_of(project) if row.seq <= until]
    rows = archive.events().filter(~pl.col("seq").is_in(out))
    return dict(full_snapshot(EventLabeler.from_spec(project.load_bundle().spec).label(rows), archive.users()))


def test_update_during_serving_retracts_a_burst_and_a_repeat_from_states(
    project: Project, serving: Callable[..., Server]
) -> None:
    server = serving(project.root)
    project = open_project(project.root, LOOSE)

    def recommended(user: str) -> list[str]:
        answer = server.client.get(f"/v1/recommend/{user}").json()
        return [slot["item_id"] for slot in answer["items"]]

    before = recommended("u01")
    burst = [
        {"user_id": "u01", "item_id": item, "event_type": "dislike", "timestamp": MORNING.format(n)}
        for n, item in enumerate(before)
    ]
    again = {"user_id": "u02", "item_id": before[0], "event_type": "purchase", "timestamp": MORNING.format(0)}
    answer = server.client.post("/v1/events", json=[*burst, again, again]).json()
    assert (answer["accepted"], answer["quarantined"]) == (11, 1), "the tenth event within a second is a burst"
    assert not set(recommended("u01")) & set(before[:9]), "nine dislikes are valid until the update"
    recommended("u02")
    first = loading.log_range(project)[0] + 1
    done = loop.update(project)
    assert done.verdict == "registered", done.reason
    assert (done.read, done.kept) == (12, 1)
    expected = [(seq, "burst") for seq in range(first, first + 9)] + [(first + 11, "duplicates")]
    deadline = time.monotonic() + PATIENCE
    while len(retractions_of(project)) < len(expected) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert sorted((row.retracted_seq, row.rule) for row in retractions_of(project)) == expected
    assert project.open_control().pending() == []
    assert set(recommended("u01")) == set(before), "the retracted dislikes no longer hide items"
    recommended("u02")
    server.decided()
    learned = load(project).events["seq"].to_list()
    assert not set(learned) & {seq for seq, _ in expected}
    assert first + 10 in learned
    assert set(project.open_archive().events()["seq"]) >= {seq for seq, _ in expected}, (
        "retracted rows stay in the archive"
    )
    assert loop.update(project).verdict == "nothing", "retractions alone start no update"
    purchase = {**again, "timestamp": MORNING.format(50), "item_id": before[1]}
    assert server.client.post("/v1/events", json=purchase).json()["accepted"] == 1
    later = loop.update(project)
    assert later.verdict == "registered", later.failed
    assert (later.read, later.kept) == (1, 1)
    assert len(retractions_of(project)) == len(expected), "each retraction is written once"
    recommended("u01")
    recommended("u02")
    server.decided()
    assert server.stop() == 0
    found = verify.verify(project)
    assert found["unexplained"] == 0, found["differences"]
    snapshots.forget(project.store, later.to_seq)
    assert states(project) == folded(project, later.to_seq)


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
    assert states(other) == states(project) == folded(project, done.to_seq), (
        "the retractions have seqs after this watermark"
    )
