"""Deployments: the service follows the release table without an interruption."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from servers import PATIENCE, inside

from recloop import bundle as bundles
from recloop.bundle import Bundle, ItemTable
from recloop.cli import run
from recloop.config import Field, Release
from recloop.features.vocabulary import CategoryCodes, FieldCodes, Vocabulary
from recloop.monitoring.experiment_plan import EVIDENCE, Plan
from recloop.monitoring.verify import verify
from recloop.project import Project, open_project
from recloop.recommend.catalog import Catalog
from recloop.recommend.golden import make_golden
from recloop.recommend.recommender import Recommender
from recloop.recommend.table_mask import TableMask
from recloop.recommend.table_view import TableView
from recloop.records import Decision
from recloop.release import assignment
from recloop.serve import deployments
from recloop.serve.app import create
from recloop.serve.deployments import MAX_SPARE_BUNDLES
from recloop.serve.service import Service
from recloop.storage import ControlStore, releases

WHO: dict[str, Any] = {"by": "test", "reason": "a test", "at": 5}
Work = Callable[[httpx.AsyncClient, Service], Awaitable[None]]


def control_of(project: Project) -> ControlStore:
    return project.open_control()


def planned(bundle: str) -> dict[str, Any]:
    """The evidence of a row that starts an experiment, as `promote` writes it."""
    return {EVIDENCE: Plan.from_config(Release(), bundle, WHO["at"]).to_evidence()}


def child(project: Project, number: int = 1, **changed: Any) -> str:
    """Register a copy of the live bundle with changes."""
    live = bundles.load(project.bundles / releases.live(control_of(project)).bundle)
    home = replace(live.policy.placements["home"], weights={"popular": 1.0, "history": 0.25 * number})
    policy = live.policy.with_placement("home", home)
    made: Bundle = replace(live, **{"policy": policy, **changed})
    if "golden" not in changed:
        own = Recommender(made, Catalog.from_table(made.items.ids.ids, made.items.attributes))
        states = [case.state.to_batch(str(n)) for n, case in enumerate(live.golden)]
        golden = [case for state in states for case in make_golden(own, state, made.cut, "home", 10)]
        made = replace(made, golden=golden)
    made = bundles.write(made, project.bundles, datetime(2026, 1, number, tzinfo=UTC))
    passed: dict[str, Any] = {"gates": []}  # as `update` registers a bundle that passed
    releases.register(
        control_of(project), made.id, bundles.manifest_hash(project.bundles / made.id), evidence=passed, **WHO
    )
    return made.id


@pytest.fixture
def within(project: Project) -> Callable[..., None]:
    """Run requests against a service that follows the release table on demand."""

    def run(work: Work, *settings: str) -> None:
        inside(create(open_project(project.root, settings)), work)

    return run


def state(project: Project, bundle: str) -> tuple[str, str]:
    machine = releases.read_state(control_of(project))
    return machine.state(bundle), machine.since(bundle).reason


def test_registered_bundle_is_checked_then_promoted_to_live(project: Project, within: Callable[..., None]) -> None:
    live = releases.live(control_of(project)).bundle

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        candidate = child(project)
        assert await service.reload()
        assert not await service.reload()
        assert state(project, candidate) == ("checked", "loaded")
        row = releases.read_state(control_of(project)).since(candidate)
        assert (row.by, row.evidence["golden"]) == ("recloop serve", "equal")
        assert (await client.get("/v1/recommend/u14")).json()["model_version"] == live
        releases.promote(control_of(project), candidate, to="live", **WHO)
        under_way = service.deployments
        assert await service.reload()
        assert service.deployments is not under_way
        answer = (await client.get("/v1/recommend/u14")).json()
        assert (answer["model_version"], answer["variant"], answer["degraded"]) == (candidate, "live", [])
        assert {item["source"] for item in answer["items"]} <= {"popular", "history"}

    within(work)
    assert (verify(project)["checked"], verify(project)["unexplained"]) == (2, 0)


def references(bundle: Bundle) -> dict[str, weakref.ref[Any]]:
    """Weak references to a bundle and its arrays, which map its files."""
    return {"bundle": weakref.ref(bundle), **{name: weakref.ref(array) for name, array in bundle.arrays.items()}}


def test_replaced_bundles_are_freed(project: Project, within: Callable[..., None]) -> None:
    """A loaded bundle is frozen for the cycle collector, so objects that hold each other would never be freed."""
    users = ("u14", "u02", "unknown")

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        held = [references(service.bundle)]
        for number in range(1, 2 + MAX_SPARE_BUNDLES + 2):
            for user in users:
                assert (await client.get(f"/v1/recommend/{user}")).json()["items"]
                assert (await client.get(f"/v1/recommend/{user}", params={"filter": "price < 5"})).status_code == 200
            assert (await client.get("/v1/items/i01/similar")).status_code == 200
            name = child(project, number)
            await service.reload()
            releases.promote(control_of(project), name, to="live", **WHO)
            await service.reload()
            assert service.bundle.id == name
            held.append(references(service.bundle))
        kept = [sorted(name for name, reference in names.items() if reference() is not None) for names in held]
        assert kept[:2] == [[], []]
        assert kept[-1] == sorted(held[-1])

    within(work)


def test_slow_warm_up_of_a_bundle_delays_no_list(
    project: Project, within: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The live bundle answers while the warm-up of the next one waits for that answer."""
    live = releases.live(control_of(project)).bundle
    begun, answered = threading.Event(), threading.Event()
    warm_up = Recommender.warm_up

    def slow(recommender: Recommender, *query: Any) -> None:
        begun.set()
        assert answered.wait(PATIENCE)
        warm_up(recommender, *query)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        candidate = child(project)
        assert await service.reload()
        releases.promote(control_of(project), candidate, to="live", **WHO)
        monkeypatch.setattr(Recommender, "warm_up", slow)
        reloading = asyncio.create_task(service.reload())
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        assert (await client.get("/v1/recommend/u14")).json()["model_version"] == live
        answered.set()
        assert await reloading
        assert (await client.get("/v1/recommend/u14")).json()["model_version"] == candidate

    within(work)


def test_swap_makes_the_masks_of_the_new_bundle_off_the_event_loop(
    project: Project, within: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    new_mask = TableView.new_mask

    def recorded(view: TableView, *args: Any, **kwargs: Any) -> TableMask:
        threads.append(threading.current_thread())
        return new_mask(view, *args, **kwargs)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        candidate = child(project)
        await service.reload()
        releases.promote(control_of(project), candidate, to="live", **WHO)
        monkeypatch.setattr(TableView, "new_mask", recorded)
        assert await service.reload()
        assert (await client.get("/v1/recommend/u14")).json()["model_version"] == candidate
        assert threads
        assert threading.current_thread() not in threads

    within(work)


def test_rollback_reuses_the_loaded_bundle_and_promote_checks_the_files(
    project: Project, within: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = releases.live(control_of(project)).bundle
    opened: list[str] = []
    right = deployments.open_bundle
    monkeypatch.setattr(
        deployments, "open_bundle", lambda owner, row, *more: opened.append(row.bundle) or right(owner, row, *more)
    )

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        opened.clear()
        candidate = child(project)
        await service.reload()
        releases.promote(control_of(project), candidate, to="live", **WHO)
        await service.reload()
        assert opened == [candidate]  # checked, then live: loaded once
        releases.rollback(control_of(project), **WHO)
        await service.reload()
        assert (await client.get("/v1/recommend/u14")).json()["model_version"] == live
        assert opened == [candidate]
        file = project.bundles / candidate / "policy.json"
        file.write_bytes(file.read_bytes() + b" ")
        releases.promote(control_of(project), candidate, to="live", **WHO)
        await service.reload()
        assert (await client.get("/v1/recommend/u14")).json()["model_version"] == live
        assert "policy.json" in state(project, candidate)[1]

    within(work)


def test_admin_promote_is_served_once_it_is_answered(project: Project, within: Callable[..., None]) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        candidate = child(project)
        moving = asyncio.create_task(client.post("/v1/admin/promote", json={"bundle": candidate, "to": "shadow"}))
        while not moving.done():  # a server follows once a second
            await service.reload()
            await asyncio.sleep(0.01)
        move = moving.result()
        assert move.status_code == 200, move.text
        assert set(move.json()) == {"bundle", "from", "to", "generation", "evidence"}
        assert move.json()["from"] == "checked"
        assert move.json()["to"] == "shadow"
        body = {"bundle": candidate, "to": "live", "reason": "by hand"}
        assert (await client.post("/v1/admin/promote", json=body)).json()["to"] == "live"
        assert (await client.get("/v1/recommend/u14")).json()["model_version"] == candidate
        assert (await client.get("/v1/status")).json()["live"] == candidate

    within(work)
    assert verify(project)["unexplained"] == 0


def test_admin_promote_without_the_shadow_step_answers_409(project: Project, within: Callable[..., None]) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        candidate = child(project)
        await service.reload()
        answer = await client.post("/v1/admin/promote", json={"bundle": candidate})
        assert answer.status_code == 409
        assert answer.json()["error"]["code"] == "refused"
        assert "the shadow step is not earned" in answer.json()["error"]["message"]

    within(work)


def test_admin_rollback_and_reject_are_served_once_they_are_answered(
    project: Project, within: Callable[..., None]
) -> None:
    live = releases.live(control_of(project)).bundle

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        candidate = child(project)
        await service.reload()  # the server checks it
        releases.promote(control_of(project), candidate, to="live", **WHO)
        await service.reload()
        assert (await client.get("/v1/recommend/u14")).json()["model_version"] == candidate
        back = (await client.post("/v1/admin/rollback", json={"reason": "worse"})).json()
        assert back["bundle"] == live
        assert back["evidence"] == {"rolled_back": candidate}
        assert (await client.get("/v1/recommend/u14")).json()["model_version"] == live
        move = (await client.post("/v1/admin/reject", json={"bundle": candidate, "reason": "worse"})).json()
        assert move["from"] == "rolled_back"
        assert move["to"] == "refused"

    within(work)
    assert verify(project)["unexplained"] == 0


@pytest.mark.parametrize(
    ("verb", "body", "status", "said"),
    [
        ("promote", {"bundle": "nothing"}, 404, "bundle=nothing: expected a registered bundle"),
        ("promote", {}, 404, "bundle="),
        ("promote", {"bundle": "nothing", "to": "moon"}, 422, "--to=moon"),
        ("reject", {"bundle": "nothing", "reason": "why"}, 404, "bundle=nothing"),
        ("reject", {"bundle": "nothing"}, 422, "--reason="),
        ("rollback", {}, 409, "earlier live bundles=0, threshold 1: no earlier live bundle to restore"),
        ("rollback", {"why": "x"}, 422, "unknown field `why`"),
        ("rollback", [], 422, "expected `object`"),
    ],
)
def test_admin_move_that_is_impossible_answers_4xx_and_names_the_cause(
    server: Any, verb: str, body: Any, status: int, said: str
) -> None:
    answer = server.client.post(f"/v1/admin/{verb}", json=body)
    assert answer.status_code == status, answer.text
    assert said.lower() in answer.json()["error"]["message"].lower()
    assert server.client.get("/v1/recommend/u14").status_code == 200


def test_admin_refuse_answers_410_and_names_reject(server: Any) -> None:
    answer = server.client.post("/v1/admin/refuse", json={"bundle": "nothing", "reason": "why"})
    assert (answer.status_code, answer.json()["error"]["expected"]) == (410, "/v1/admin/reject")


def test_admin_move_without_json_is_rejected(server: Any) -> None:
    """An HTML form of another site cannot send JSON without a CORS preflight."""
    answer = server.client.post("/v1/admin/rollback", content='{"reason": "x"}', headers={"Content-Type": "text/plain"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "not_json")
    answer = server.client.post("/v1/admin/rollback", content="{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


def shorter(live: Bundle) -> dict[str, Any]:
    """The live item table without its first item, which shifts every index."""
    keep = slice(1, None)
    table = live.items
    items = ItemTable(
        Vocabulary(list(table.ids.ids)[keep]), table.count[keep], table.tail[keep], table.first_seq[keep],
        table.attributes[keep],
    )  # fmt: skip
    ids = np.arange(1, len(items) + 1, dtype=live.arrays["popular"].dtype)
    scorers = {"popular": live.scorers["popular"]}
    home = replace(live.policy.placements["home"], weights={"popular": 1.0})
    return {
        "items": items,
        "arrays": {"popular": ids},
        "manifest": replace(live.manifest, scorers=scorers),
        "policy": replace(live.policy, placements={"home": home}),
    }


def broken_weights(live: Bundle) -> dict[str, Any]:
    weights = live.arrays["neighbours.weights"].astype(np.float32)
    weights[0] = np.nan
    return {"arrays": {**live.arrays, "neighbours.weights": weights}, "golden": live.golden}


def unknown_field(live: Bundle) -> dict[str, Any]:
    fields = FieldCodes({**live.fields.codes, "item.brand": CategoryCodes(("acme",))})
    return {"spec": replace(live.spec, item={"brand": Field(**{"from": "label"})}), "fields": fields}


def field_without_codes(live: Bundle) -> dict[str, Any]:
    return {"spec": replace(live.spec, item={"brand": Field(**{"from": "label"})})}


def unknown_user_field(live: Bundle) -> dict[str, Any]:
    fields = FieldCodes({**live.fields.codes, "user.city": CategoryCodes(("rome",))})
    return {"spec": replace(live.spec, user={**live.spec.user, "city": Field(**{"from": "town"})}), "fields": fields}


def other_golden(live: Bundle) -> dict[str, Any]:
    return {"golden": [replace(case, ids=case.ids[::-1]) for case in live.golden]}


def no_golden(live: Bundle) -> dict[str, Any]:
    return {"golden": []}


def neighbour_outside(live: Bundle) -> dict[str, Any]:
    ids = live.arrays["neighbours.ids"].copy()
    ids[0] = 2**31 - 1
    return {"arrays": {**live.arrays, "neighbours.ids": ids}, "golden": live.golden}


BAD = [
    (no_golden, "golden.json=0 cases"),
    (neighbour_outside, "neighbours.ids of serve.safetensors"),
    (shorter, "item table="),
    (broken_weights, "neighbours.weights of serve.safetensors=NaN or infinite"),
    (unknown_field, "features.item.brand.from=label: expected a field of the catalog (category, name, price)"),
    (field_without_codes, "fields.json="),
    (unknown_user_field, "features.user.city.from=town: expected a field of the users (age)"),
    (other_golden, "golden list="),
]


@pytest.mark.parametrize(("change", "said"), BAD)
def test_service_refuses_a_broken_bundle_and_records_the_reason(
    project: Project, within: Callable[..., None], change: Callable[[Bundle], dict[str, Any]], said: str
) -> None:
    first = releases.live(control_of(project))
    live = bundles.load(project.bundles / first.bundle)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        before = (await client.get("/v1/recommend/u14")).json()
        changed = change(live)
        bad = child(project, **changed)
        await service.reload()
        now, reason = state(project, bad)
        assert now == "refused"
        assert said in reason
        after = (await client.get("/v1/recommend/u14")).json()
        assert (after["items"], after["model_version"]) == (before["items"], before["model_version"])
        answer = await client.post("/v1/admin/promote", json={"bundle": bad, "to": "live", "reason": "I want it"})
        assert (answer.status_code, answer.json()["error"]["field"]) == (409, "state")

    within(work)
    assert releases.live(control_of(project)) == first


@pytest.mark.parametrize(("change", "said"), BAD)
def test_promote_without_a_server_refuses_a_broken_bundle(
    project: Project, capsys: pytest.CaptureFixture[str], change: Callable[[Bundle], dict[str, Any]], said: str
) -> None:
    changed = change(bundles.load(project.bundles / releases.live(control_of(project)).bundle))
    bad = child(project, **changed)
    code = run(["-C", str(project.root), "promote", bad, "--to", "live", "--reason", "now"])
    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert err.startswith("error: refused: check=failed")
    assert said in err
    assert state(project, bad)[0] == "refused"


def test_service_with_an_unloadable_live_bundle_keeps_the_serving_one(
    project: Project, within: Callable[..., None]
) -> None:
    first = releases.live(control_of(project)).bundle

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        second = child(project)
        await service.reload()
        file = project.bundles / second / "serve.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\x00\x00")
        releases.promote(control_of(project), second, **WHO)
        await service.reload()
        answer = (await client.get("/v1/recommend/u14")).json()
        assert (answer["model_version"], answer["degraded"]) == (first, [])
        assert state(project, second)[0] == "refused"
        assert "serve.safetensors" in state(project, second)[1]
        assert releases.live(control_of(project)).bundle == first

    within(work)


@dataclass
class ShadowedRequests:
    """Decisions of 41 requests while half of the users are shadowed."""

    project: Project
    live: str
    candidate: str
    seed: str
    rows: list[Decision]

    def of(self, role: str) -> list[Decision]:
        return [row for row in self.rows if row.role == role]

    @property
    def answers(self) -> dict[str, Decision]:
        return {row.request_id: row for row in self.of("answer")}

    @property
    def expected(self) -> set[str]:
        """Requests of the users in the shadow."""
        share = 0.5
        return {name for name, row in self.answers.items() if assignment.in_shadow(self.candidate, row.user_id, share)}


@pytest.fixture(scope="module")
def shadowed(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ShadowedRequests:
    project = open_project(shutil.copytree(trained_folder, tmp_path_factory.mktemp("shadowed") / "shop"))
    live = releases.live(control_of(project)).bundle
    candidate, seed = child(project, 1), child(project, 2)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        await service.reload()
        for bundle in (candidate, seed):
            releases.promote(control_of(project), bundle, to="shadow", **WHO)
        await service.reload()
        for n in range(40):
            user = f"u{n:02}"
            answer = await client.get(f"/v1/recommend/{user}", headers={"X-Request-Id": f"r{n}"})
            assert answer.json()["variant"] == "live"
            row = {"user_id": user, "item_id": "i05", "event_type": "purchase", "event_id": f"e{n}"}
            assert (await client.post("/v1/events", json=row)).status_code == 200
            item = {"item_id": f"new{n}", "attributes": {"category": "tea"}}
            assert (await client.post("/v1/items", json=item)).status_code == 200
        again = await client.get("/v1/recommend/u00", headers={"X-Request-Id": "r0"})  # sent again: a separate row
        assert again.status_code == 200

    inside(create(open_project(project.root, ["release.shadow_share=0.5"])), work)
    return ShadowedRequests(project, live, candidate, seed, project.open_decisions().rows())


def test_shadow_requests_are_answered_by_live(shadowed: ShadowedRequests) -> None:
    assert len(shadowed.answers) == 41
    assert {row.bundle for row in shadowed.answers.values()} == {shadowed.live}


def test_shadow_scores_the_requests_of_its_share_of_users(shadowed: ShadowedRequests) -> None:
    assert 5 < len(shadowed.expected) < 35
    assert {row.request_id for row in shadowed.of("shadow")} == shadowed.expected
    assert {row.bundle for row in shadowed.of("shadow")} == {shadowed.candidate}
    assert {row.bundle for row in shadowed.of("replica")} == {shadowed.live, shadowed.seed}
    assert any(row.items != shadowed.answers[row.request_id].items for row in shadowed.of("shadow"))


def test_shadow_and_replica_score_as_of_the_seq_of_the_answer(shadowed: ShadowedRequests) -> None:
    def moment(row: Decision) -> dict[str, Any]:
        return {name: getattr(row, name) for name in ("as_of_seq", "served_at", "placement", "n")}

    for row in (*shadowed.of("shadow"), *shadowed.of("replica")):
        assert moment(row) == moment(shadowed.answers[row.request_id])


def test_replica_of_live_gives_the_same_list(shadowed: ShadowedRequests) -> None:
    for row in shadowed.of("replica"):
        if row.bundle == shadowed.live:
            answer = shadowed.answers[row.request_id]
            assert row.items == answer.items
            assert row.scores == answer.scores
            assert row.inputs == answer.inputs


def test_verify_rebuilds_shadow_and_replica_decisions(shadowed: ShadowedRequests) -> None:
    found = verify(shadowed.project)
    assert found["checked"] == len(shadowed.rows) == 41 + 3 * len(shadowed.expected)
    assert found["unexplained"] == 0
    assert found["late"] == 0


def test_experiment_assignment_after_a_restart_is_unchanged(project: Project, within: Callable[..., None]) -> None:
    live = releases.live(control_of(project))
    candidate, shadow = child(project, 1), child(project, 2)
    seen: list[dict[str, str]] = []

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        await service.reload()
        machine = releases.read_state(control_of(project))
        if machine.state(candidate) == "checked":
            releases.promote(control_of(project), candidate, to="experiment", evidence=planned(candidate), **WHO)
            releases.promote(control_of(project), shadow, to="shadow", **WHO)
            await service.reload()
        answered = {}
        for n in range(60):
            answer = (await client.get(f"/v1/recommend/u{n:02}")).json()
            answered[f"u{n:02}"] = answer["model_version"]
            assert answer["variant"] == ("candidate" if answer["model_version"] == candidate else "live")
        seen.append(answered)

    within(work, "release.shadow_share=1.0")
    within(work, "release.shadow_share=1.0")  # after a restart, before the first look at the control store
    assert seen[0] == seen[1]
    assert seen[0] == {u: candidate if assignment.in_experiment(candidate, u, 0.5) else live.bundle for u in seen[0]}
    assert 15 < sum(one == candidate for one in seen[0].values()) < 45
    rows = project.open_decisions().rows()
    tried = {row.generation for row in rows if row.role == "answer" and row.variant == "candidate"}
    assert tried == {releases.read_state(control_of(project)).since(candidate).generation}
    shadowed = {row.user_id for row in rows if row.role == "shadow"}
    assert shadowed == {u for u, one in seen[0].items() if one == live.bundle}  # live answers the users of the shadow
    assert verify(project)["unexplained"] == 0


def test_experiment_with_a_failing_candidate_answers_from_live(project: Project, within: Callable[..., None]) -> None:
    candidate = child(project)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        await service.reload()
        releases.promote(control_of(project), candidate, to="experiment", evidence=planned(candidate), **WHO)
        await service.reload()
        service.deployments.candidate.recommender.recommend = lambda *_, **__: 1 / 0
        for n in range(20):
            answer = (await client.get(f"/v1/recommend/u{n:02}")).json()
            assert (answer["variant"], len(answer["items"])) == ("live", 10)

    within(work)
    rows = project.open_decisions().rows()
    assert {(row.variant, row.bundle == candidate) for row in rows} == {("live", False)}
    drawn = {row.user_id for row in rows if row.assigned == "candidate"}
    assert drawn == {f"u{n:02}" for n in range(20) if assignment.in_experiment(candidate, f"u{n:02}", 0.5)}
    assert 0 < len(drawn) < 20


@pytest.mark.parametrize("edited", [0.0, 0.1, 1.0])
def test_experiment_share_edited_during_the_experiment_moves_no_user(
    project: Project, within: Callable[..., None], edited: float
) -> None:
    candidate = child(project)
    seen: list[list[str]] = []

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        await service.reload()
        if releases.read_state(control_of(project)).state(candidate) == "checked":
            releases.promote(control_of(project), candidate, to="experiment", evidence=planned(candidate), **WHO)
            await service.reload()
        seen.append([(await client.get(f"/v1/recommend/u{n:02}")).json()["variant"] for n in range(30)])

    within(work)
    within(work, f"release.experiment_share={edited}")
    assert seen[0] == seen[1]
    assert set(seen[0]) == {"live", "candidate"}


def test_experiment_without_a_plan_answers_from_live(project: Project, within: Callable[..., None]) -> None:
    candidate = child(project)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        await service.reload()
        releases.promote(control_of(project), candidate, to="experiment", **WHO)
        await service.reload()
        assert service.deployments.candidate is None
        for n in range(20):
            assert (await client.get(f"/v1/recommend/u{n:02}")).json()["variant"] == "live"

    within(work)


@pytest.mark.slow
def test_running_server_follows_a_promotion_by_the_cli(project: Project, serving: Callable[..., Any]) -> None:
    server = serving(project.root)
    candidate = child(project)
    words = ["-m", "recloop", "-C", str(project.root), "promote", candidate, "--to", "live", "--reason", "swap"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert releases.read_state(control_of(project)).states[candidate][0] == "live"
    checked = next(row for row in control_of(project).releases() if row.to == "checked")
    assert (checked.bundle, checked.by) == (candidate, "recloop serve")  # the running server checks it
    end = time.monotonic() + PATIENCE
    while server.client.get("/v1/recommend/u14").json()["model_version"] != candidate:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert server.stop() == 0


ASSIGNED = "427445d8fd696bbc81cb01bfd95edcdee8bec4afa379007aef9a8bab1c04287d"
"""SHA-256 of the arms and shadows of a million users; another value is a changed assignment."""


@pytest.mark.slow
def test_assignment_of_a_million_users_equals_the_recorded_hash() -> None:
    """Each test run has another hash seed and must find the recorded value."""
    digest, inside = hashlib.sha256(), 0
    for number in range(1_000_000):
        user = f"user-{number}"
        shadow = assignment.in_shadow("b", user, 0.01)
        inside += shadow
        digest.update(bytes((assignment.in_experiment("b", user, 0.5), shadow)))
    assert digest.hexdigest() == ASSIGNED
    assert 9_500 < inside < 10_500
