"""Quarantine and restore by condition: matched rows, states and verification."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from servers import inside

from recloop.cli import run
from recloop.errors import Refused, UserError
from recloop.features import state_store
from recloop.features.labels import EventLabeler
from recloop.monitoring import verify
from recloop.pipeline.quarantine import quarantine
from recloop.project import Project
from recloop.recommend import loading
from recloop.recommend.user_states import RetractionIndex, StateSource, write_states
from recloop.records import SEQ
from recloop.serve.app import create
from recloop.serve.reload import poll_forever
from recloop.serve.service import Service
from recloop.testing.states import digests, digests_of_frame


def test_quarantine_of_all_rows_without_force_is_refused(project: Project) -> None:
    with pytest.raises(Refused, match=r"share of all rows=1\.0000, threshold 0\.05"):
        quarantine(project, "user_id IS NOT NULL", "all of it")
    assert project.open_control().pending() == []
    done = quarantine(project, "user_id IS NOT NULL", "all of it", force=True)
    assert (done.new, done.share, done.user_share) == (done.rows, 1.0, 1.0)


def test_quarantine_without_a_match_exits_0_and_reports_0_rows(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-C", str(project.root), "quarantine", "--where", "user_id = 'unknown'", "--reason", "none"]
    assert run(words) == 0
    assert capsys.readouterr().out == "0 rows quarantined of 0 matching rows (0 already quarantined)\n"


def test_quarantine_repeated_reports_0_new_rows(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-C", str(project.root), "quarantine", "--where", "user_id = 'u01'", "--reason", "a bot"]
    assert run(words) == 0
    first = capsys.readouterr().out
    assert "users (" in first
    assert "purchase" in first
    assert run(words) == 0
    assert capsys.readouterr().out.startswith("0 rows quarantined of ")
    log = project.open_log()
    rules = {row.rule for row in log.retractions()}
    log.close()
    assert rules == {"quarantine"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"where": "users = 'u01'"}, "nearest to users: user_id"),
        ({"where": "user_id = 'u01'; DROP TABLE events"}, "one condition"),
        ({"start": "yesterday"}, "--from=yesterday: expected ISO 8601.*recloop quarantine --from"),
        ({"reason": " "}, "--reason"),
    ],
)
def test_quarantine_with_a_bad_argument_names_it(project: Project, more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        quarantine(project, **{"where": "user_id = 'u01'", "reason": "a bot", **more})


def test_quarantine_from_and_to_limit_the_time_range(project: Project) -> None:
    stamps = project.open_archive().events()["timestamp"].sort()
    middle = stamps[len(stamps) // 2]
    start = datetime.fromtimestamp(middle / 1e6, UTC).isoformat()
    late = quarantine(project, "TRUE", "late", start=start, force=True)
    early = quarantine(project, "TRUE", "early", end=start, force=True)
    assert late.new + early.new == len(stamps)
    assert late.new == int((stamps >= middle).sum())


def test_quarantine_and_restore_keep_the_states_of_earlier_seqs(project: Project) -> None:
    """Cache, full snapshot and advanced snapshot agree at every seq."""
    user = "u01"
    item = project.open_archive().for_users([user])["item_id"][0]
    where = f"user_id = '{user}' AND item_id = '{item}'"
    seqs = [loading.log_range(project)[1]]
    for restore in (False, True, False, True):
        quarantine(project, where, "again", restore=restore)
        seqs.append(loading.log_range(project)[1])
    assert len(set(seqs)) == 5
    archive, log = project.open_archive(), project.open_log()
    signal = EventLabeler.from_spec(project.load_bundle().spec)
    (folder,) = project.store.glob("states-*")
    key = folder.name.split("-")[2]
    stored = state_store.read(folder, key)
    source = StateSource(stored, signal, log, RetractionIndex(archive, log))
    source.catch_up(seqs[-1])
    whole = digests_of_frame(signal.label(archive.events()), archive.users())
    rows = archive.events()
    part = rows.filter((rows["user_id"] != user) | (rows["item_id"] != item))
    without = digests_of_frame(signal.label(part), archive.users())
    for n, seq in enumerate(seqs):
        expected = whole if n % 2 == 0 else without
        assert source.read(user, seq).digest(0) == expected[user], n
        for name, earlier in (("advanced", stored), ("whole", None)):
            write_states(project.store / name, seq, archive, log, signal, key, earlier)
            assert digests(state_store.read(project.store / name, key)) == expected
        source.clear()
    log.close()


def test_quarantine_during_serving_is_applied_and_verified(project: Project) -> None:
    app = create(project, clock=lambda: 1_800_000_000_000_000)

    async def work(client: Any, service: Service) -> None:
        following = asyncio.create_task(poll_forever(service))

        async def events_and_list() -> tuple[int, list[str]]:
            answer = (await client.get("/v1/recommend/u01", params={"n": 5})).json()
            known = (await client.get("/v1/users/u01")).json()["events"]
            return known, [slot["item_id"] for slot in answer["items"]]

        before = await events_and_list()
        done = await asyncio.to_thread(quarantine, project, "user_id = 'u01'", "a bot")
        assert (done.new > 0, done.waiting) == (True, 0)
        assert (await events_and_list())[0] == 0
        assert (await asyncio.to_thread(quarantine, project, "user_id = 'u01'", "a bot")).new == 0
        back = await asyncio.to_thread(quarantine, project, "user_id = 'u01'", "not a bot", restore=True)
        assert back.new == done.new
        assert await events_and_list() == before
        following.cancel()

    inside(app, work)
    found = verify.verify(project)
    assert (found["unexplained"], found["late"], found["checked"]) == (0, 0, 3), found["differences"]
    log = project.open_log()
    assert set(project.open_archive().events()[SEQ]) >= {row.retracted_seq for row in log.retractions()}
    log.close()
