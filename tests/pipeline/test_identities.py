"""Updates and new first runs know an identity from its seq on, and train on joined histories."""

from __future__ import annotations

import asyncio
from typing import Any

import polars as pl
import pytest
from arriving import die_after

from recloop import loop
from recloop.data.prepare import load
from recloop.features import state_store
from recloop.features.labels import EventLabeler
from recloop.monitoring.verify import verify
from recloop.pipeline import update_steps
from recloop.pipeline.quarantine import quarantine
from recloop.pipeline.update_run import UpdateRun
from recloop.project import Project, open_project
from recloop.records import EVENT_ID, ITEM_ID, SECOND, SEQ, STAMP, USER_ID, Event, Query
from recloop.serve.service import Service
from recloop.storage.identities import Identity
from recloop.storage.retractions import retracted_at
from recloop.testing.states import digests, digests_of_frame

START = 1_752_000_000 * SECOND  # a few days after the shop's last row
LOOSE = (
    "release.gates.max_ndcg_loss=9", "release.gates.min_users=1", "release.gates.min_queries=1",
    "release.refresh=manual", "update.input_check=false",
)  # fmt: skip
Step = tuple[str, str, str]


def serve(project: Project, *steps: Step, start: int = START) -> None:
    """Run a service over steps: (event, id, item), (identify, id, user) or (ask, id, '')."""
    service = Service(project, clock=lambda: start)

    async def work() -> None:
        for number, (kind, name, value) in enumerate(steps):
            at = start + number * 60 * SECOND
            if kind == "event":
                event = Event(
                    user_id=name, item_id=value, timestamp=at, received_at=at, event_type="purchase",
                    event_id=f"{name}-{at}",
                )  # fmt: skip
                await service.write(events=[event])
            elif kind == "identify":
                await service.write(identities=[Identity(name, value, at)])
            else:
                service.recommend(Query(user_id=name, now=at, request_id=f"{name}-{at}"), started=0.0)

    try:
        asyncio.run(work())
    finally:
        service.close()


def update(project: Project) -> Any:
    result = loop.update(open_project(project.root, LOOSE))
    assert result.verdict == "registered"
    return result


def learned(project: Project, *users: str) -> list[tuple[str, str]]:
    """(user, item) of the labelled rows of these users, by time."""
    rows = load(project).events.filter(pl.col(USER_ID).is_in(users)).sort(STAMP, SEQ)
    return list(rows.select(USER_ID, ITEM_ID).iter_rows())


def check_states(project: Project) -> None:
    """Compare the stored states with those of all rows that are not retracted."""
    (folder,) = project.store.glob("states-*")
    archive = project.open_archive()
    with project.open_log() as log:
        retracted = sorted(retracted_at(log.retractions(until=archive.watermark)))
    rows = archive.events().filter(~pl.col(SEQ).is_in(retracted))
    labelled = EventLabeler.from_spec(project.load_bundle().spec).label(rows)
    stored = digests(state_store.read(folder, folder.name.split("-")[2]))
    expected = digests_of_frame(labelled, archive.users())
    empty = digests_of_frame(labelled.clear(), None)
    assert not empty
    assert {user: stored[user] for user in expected} == expected


def test_update_learns_the_rows_of_an_anonymous_id_as_the_users(project: Project) -> None:
    serve(
        project, ("event", "phone", "i01"), ("event", "person", "i02"), ("ask", "phone", ""),
        ("identify", "phone", "person"), ("event", "phone", "i03"), ("ask", "phone", ""),
    )  # fmt: skip
    before = load(project).events.height
    update(project)
    assert learned(project, "phone", "person") == [("person", "i01"), ("person", "i02"), ("person", "i03")]
    assert load(project).events.height == before + 3
    check_states(project)
    serve(project, ("ask", "phone", ""), ("ask", "person", ""), start=START + 3_600 * SECOND)
    assert (verify(project)["unexplained"], verify(project)["checked"]) == (0, 4)


def test_rows_that_an_update_archived_move_with_a_later_identify(project: Project) -> None:
    serve(project, ("event", "phone", "i01"), ("event", "phone", "i02"), ("event", "person", "i03"))
    update(project)
    assert learned(project, "phone", "person") == [("phone", "i01"), ("phone", "i02"), ("person", "i03")]
    n_rows = load(project).events.height
    serve(project, ("identify", "phone", "person"), ("ask", "phone", ""), start=START + 3_600 * SECOND)
    update(project)
    assert learned(project, "phone", "person") == [("person", "i01"), ("person", "i02"), ("person", "i03")]
    assert load(project).events.height == n_rows
    check_states(project)
    serve(project, ("ask", "person", ""), start=START + 7_200 * SECOND)
    assert verify(project)["unexplained"] == 0


def test_interrupted_update_keeps_rows_that_move_after_its_end(project: Project) -> None:
    serve(project, ("event", "phone", "i01"), ("event", "person", "i02"))
    die_after("collect", project, LOOSE)
    (run,) = [folder for folder in project.runs.iterdir() if (folder / "data").exists()]
    serve(project, ("identify", "phone", "person"), start=START + 3_600 * SECOND)
    update(project)
    assert not (run / "data" / "manifest.json").exists()  # the interrupted run was published
    assert learned(project, "phone", "person") == [("phone", "i01"), ("person", "i02")]
    check_states(project)
    update(project)
    assert learned(project, "phone", "person") == [("person", "i01"), ("person", "i02")]
    check_states(project)


def test_update_learns_rows_that_move_during_it_as_the_anonymous_ids(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(project, ("event", "phone", "i01"), ("event", "person", "i02"))
    collect = update_steps.collect

    def identify_and_collect(run: UpdateRun) -> None:
        serve(project, ("identify", "phone", "person"), start=START + 3_600 * SECOND)
        collect(run)

    with monkeypatch.context() as patch:
        patch.setattr(update_steps, "collect", identify_and_collect)
        update(project)
    assert learned(project, "phone", "person") == [("phone", "i01"), ("person", "i02")]
    update(project)
    assert learned(project, "phone", "person") == [("person", "i01"), ("person", "i02")]
    check_states(project)


def test_new_first_run_gives_rows_before_an_identify_to_the_user(project: Project) -> None:
    archived = project.open_archive().for_users(["u15"])
    serve(project, ("event", "phone", "i01"), ("event", "u15", "i02"))
    update(project)
    serve(
        project, ("event", "phone", "i03"), ("identify", "phone", "person"), ("identify", "u15", "person"),
        ("event", "phone", "i04"), ("identify", "phone", "other"), start=START + 3_600 * SECOND,
    )  # fmt: skip
    assert loop.update(open_project(project.root), restart=True).verdict == "restarted"
    expected = [("person", item) for item in [*archived[ITEM_ID], "i01", "i02", "i03", "i04"]]
    assert sorted(learned(project, "phone", "u15", "person", "other")) == sorted(expected)
    ids = project.open_archive().for_users(["person"])[EVENT_ID].drop_nulls()
    assert not ids.str.contains("identified:").any()
    with project.open_log() as log:
        identities = log.identities()
        assert [(row.anonymous_id, row.user_id) for row in identities] == [
            ("phone", "person"), ("u15", "person"), ("phone", "other"),
        ]  # fmt: skip
        assert identities[-1].seq <= log.last_seq()
    check_states(project)
    serve(project, ("event", "phone", "i05"), ("ask", "phone", ""), ("ask", "u15", ""), start=START + 7_200 * SECOND)
    update(project)
    assert learned(project, "phone", "other") == [("other", "i05")]
    assert verify(project)["unexplained"] == 0


def test_withdrawn_row_stays_withdrawn_after_it_moved_and_a_new_first_run(project: Project) -> None:
    serve(project, ("event", "phone", "i01"), ("event", "phone", "i02"), ("identify", "phone", "person"))

    done = quarantine(project, "user_id = 'person' AND item_id = 'i01'", "a test")
    assert done.new == 1
    assert loop.update(open_project(project.root), restart=True).verdict == "restarted"
    assert learned(project, "phone", "person") == [("person", "i02")]
