"""Requirements of release moves, and clocks and client ids that change meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import servers
from msgspec import structs

from recloop import bundle as bundles
from recloop.errors import Refused
from recloop.monitoring import experiment
from recloop.monitoring.experiment_verdict import Arms
from recloop.monitoring.verify import verify
from recloop.project import Project, open_project
from recloop.records import DAY, SECOND
from recloop.release import transitions
from recloop.serve.app import create
from recloop.storage import ControlStore, releases
from recloop.storage.control import ReleaseConflict

WHO = {"by": "test", "reason": "a test", "at": 5}
START = 1_752_000_000 * SECOND  # a few days after the shop's last row


def control_of(project: Project) -> ControlStore:
    return project.open_control()


def child(project: Project, number: int = 1) -> str:
    """Register a copy of the live bundle with other metrics."""
    live = bundles.load(project.bundles / releases.live(control_of(project)).bundle)
    made = bundles.write(replace(live, metrics={"n": number}), project.bundles, datetime(2026, 1, number, tzinfo=UTC))
    passed: dict[str, Any] = {"gates": []}  # as `update` registers a bundle that passed
    releases.register(
        control_of(project), made.id, bundles.manifest_hash(project.bundles / made.id), evidence=passed, **WHO
    )
    return made.id


def play(project: Project, work: Callable[..., Any], clock: Callable[[], int], *settings: str) -> None:
    app = create(open_project(project.root, settings), clock=clock)

    async def whole() -> None:
        async with servers.local(app) as client:
            await app.state.service.reload()
            await work(client, app.state.service)

    try:
        asyncio.run(whole())
    finally:
        app.state.service.close()


def ticking(step: int = SECOND) -> Callable[[], int]:
    stamps: Iterator[int] = iter(START + n * step for n in range(100_000))
    return lambda: next(stamps)


async def ask_all(client: httpx.AsyncClient, _: Any) -> None:
    for n in range(12):
        assert (await client.get(f"/v1/recommend/u{n:02}", headers={"X-Request-Id": f"r{n}"})).status_code == 200


def test_promote_requires_shadow_requests_and_an_experiment_result(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = child(project)
    moved = transitions.promote(project, bundle, "shadow")
    assert (moved["from"], moved["to"], moved["evidence"]["golden"]) == ("checked", "shadow", "equal")
    assert moved["evidence"]["shadow_requirement"]["needed"] == 100
    with pytest.raises(
        Refused, match=r"shadow requests=0, threshold 100: the shadow step is not earned: .*; to override"
    ):
        transitions.promote(project, bundle, "experiment")
    play(project, ask_all, ticking(), "release.shadow_share=1.0")
    with pytest.raises(Refused, match="shadow requests=12, threshold 100"):
        transitions.promote(project, bundle)
    monkeypatch.setattr(transitions, "MIN_SHADOW_REQUESTS", 12)
    with pytest.raises(Refused, match="users in the arm live=0, threshold 200: the experiment step is not earned"):
        transitions.promote(project, bundle)
    moved = transitions.promote(project, bundle, "experiment")
    plan = moved["evidence"].pop("experiment")
    assert plan == {
        "share": 0.5, "metric": "hit_rate", "users": 4_000, "looks": 4, "margin": 0.01, "alpha": 0.05, "salt": bundle,
        "since": releases.read_state(control_of(project)).since(bundle).at,
    }  # fmt: skip
    assert moved["evidence"] == {"golden": "equal", "shadow_requests": 12, "replica_mismatches": 0}
    monkeypatch.setattr(transitions, "MIN_USERS_PER_ARM", 1)
    with pytest.raises(Refused, match="users in the arm live=0"):  # an arm is empty until 24 hours of a user are over
        transitions.promote(project, bundle)
    seen = experiment.analyze(project, bundle)
    found = structs.replace(seen, users=Arms(3, 2), verdict="worse", why="harm")
    monkeypatch.setattr(transitions.experiment, "analyze", lambda *_: found)
    with pytest.raises(Refused, match=r"experiment=worse, threshold a loss above 0\.01 of hit_rate ruled out: harm"):
        transitions.promote(project, bundle)
    found = structs.replace(found, verdict="inconclusive", why="no evidence")
    with pytest.raises(Refused, match=r"experiment=inconclusive, .*: no evidence; to override"):
        transitions.promote(project, bundle)
    found = structs.replace(found, no_harm=True)
    moved = transitions.promote(project, bundle)
    assert (moved["from"], moved["to"]) == ("experiment", "live")
    assert moved["evidence"]["users"] == {"live": 3, "candidate": 2}
    assert "waived_requirements" not in moved["evidence"]
    first = next(row.bundle for row in control_of(project).releases() if row.to == "live")
    transitions.rollback(project, "to see")
    with pytest.raises(Refused, match="state=rolled_back"):  # a reason overrides the requirement
        transitions.promote(project, bundle)
    assert transitions.promote(project, bundle, "live", "it was the network")["evidence"]["waived_requirements"]
    assert transitions.promote(project, first)["from"] == "retired"  # a bundle that was live needs no requirements


def test_promote_with_a_replica_mismatch_is_refused(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = child(project)
    transitions.promote(project, bundle, "shadow")
    monkeypatch.setattr(transitions, "MIN_SHADOW_REQUESTS", 1)

    async def skewed(client: httpx.AsyncClient, service: Any) -> None:
        right = service.recommender.recommend  # the replica has a recommender of its own
        service.recommender.recommend = lambda *words, **options: [
            structs.replace(answer, slots=answer.slots[::-1]) for answer in right(*words, **options)
        ]
        await ask_all(client, service)

    play(project, skewed, ticking(), "release.shadow_share=1.0")
    with pytest.raises(Refused, match="replicas that differ=12, threshold 0: live's lists are not reproducible"):
        transitions.promote(project, bundle, "experiment")


def test_concurrent_promotions_one_wins_and_the_other_names_it(project: Project) -> None:
    names = [child(project, n) for n in (1, 2)]
    for name in names:
        transitions.promote(project, name, "shadow")
    before = control_of(project).generation()
    gate, outcomes = threading.Barrier(2), []

    def move(name: str) -> None:
        control = control_of(project)
        looked = control.releases()
        control.releases = lambda: looked  # type: ignore[method-assign]
        gate.wait()
        try:
            outcomes.append(releases.promote(control, name, **{**WHO, "by": f"mover of {name}"}))
        except ReleaseConflict as error:
            outcomes.append(error)

    threads = [threading.Thread(target=move, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    (won,) = [one for one in outcomes if not isinstance(one, ReleaseConflict)]
    (lost,) = [one for one in outcomes if isinstance(one, ReleaseConflict)]
    assert releases.live(control_of(project)) == won
    assert won.generation == control_of(project).generation() == before + 1
    assert f"mover of {won.bundle} moved {won.bundle} to live" in str(lost)


def test_event_of_tomorrow_is_quarantined_and_of_next_minute_is_seen_when_due(project: Project) -> None:
    """A state excludes events beyond clean.future and sees nearer ones when due."""

    async def work(client: httpx.AsyncClient, _: Any) -> None:
        row = {"user_id": "early", "event_type": "purchase", "item_id": "i05", "event_id": "t"}
        for stamp, status, reason in (
            ((START + DAY) / SECOND, "quarantined", "rule clock"),
            (-1, "rejected", "timestamp=-1"),
            ("0005-01-01T00:00:00Z", "rejected", "timestamp=0005"),
            ("9999-12-31T00:00:00Z", "rejected", "timestamp=9999"),
        ):
            wrong = await client.post("/v1/events", json={**row, "timestamp": stamp, "event_id": str(stamp)})
            assert (wrong.status_code, wrong.json()[status]) == (207, 1), stamp
            assert wrong.json()["rows"][0]["reason"].startswith(reason)
        listed = (await client.get("/v1/recommend/early")).json()
        assert not any(item["source"] == "history" for item in listed["items"])
        ahead = {**row, "item_id": "i06", "event_id": "u", "timestamp": (START + 60 * SECOND) / SECOND}
        assert (await client.post("/v1/events", json=ahead)).json()["accepted"] == 1
        listed = (await client.get("/v1/recommend/early")).json()
        assert not any(item["source"] == "history" for item in listed["items"]), "its time is in the future"
        offset[0] = 60 * SECOND
        listed = (await client.get("/v1/recommend/early")).json()
        assert any(item["source"] == "history" and item["item_id"] == "i06" for item in listed["items"])

    tick, offset = ticking(), [0]
    play(project, work, lambda: tick() + offset[0])
    found = verify(project)
    assert (found["checked"], found["unexplained"]) == (3, 0)


def test_service_clock_set_back_keeps_all_rows_and_answers(project: Project) -> None:
    """Rows are ordered by seq: a repeated hour changes no state and loses no row."""
    stamps = iter([*(START + n * SECOND for n in range(6)), *(START - DAY + n * SECOND for n in range(100))])

    async def work(client: httpx.AsyncClient, service: Any) -> None:
        for n in range(6):
            row = {"user_id": "back", "event_type": "purchase", "item_id": f"i{n:02}", "event_id": f"b{n}"}
            assert (await client.post("/v1/events", json=row)).json()["accepted"] == 1
            answer = await client.get("/v1/recommend/back")
            assert (answer.status_code, len(answer.json()["items"])) == (200, 10)
        assert (await client.get("/v1/users/back")).json()["events"] == 6
        moved = await client.post("/v1/admin/rollback", json={})
        assert moved.status_code == 409
        assert service.as_of == service.log.last_seq()

    play(project, work, lambda: next(stamps))
    found = verify(project)
    assert (found["checked"], found["unexplained"]) == (6, 0)


def test_decisions_with_one_client_request_id_are_all_stored(project: Project) -> None:
    bundle = child(project)
    transitions.promote(project, bundle, "shadow")

    async def work(client: httpx.AsyncClient, _: Any) -> None:
        await ask_all(client, None)
        await ask_all(client, None)

    play(project, work, ticking(), "release.shadow_share=1.0")
    store = project.open_decisions()
    rows = store.rows()
    assert store.lost == store.dropped == 0
    store.close()
    assert len(rows) == len({(row.request_id, row.role, row.bundle) for row in rows}) == 2 * 12 * 3
    assert {row.client_request_id for row in rows} == {f"r{n}" for n in range(12)}
