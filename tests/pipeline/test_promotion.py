"""The gate of a bundle made by `train`: `promote` runs it on rows that neither bundle learned."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
import servers

from recloop import bundle as bundles
from recloop import loop
from recloop.errors import Refused, UserError
from recloop.evaluation.queries import make_queries
from recloop.pipeline import evidence, gate_rows, promotion
from recloop.project import Project
from recloop.recommend import bundle_check
from recloop.records import DAY, Event
from recloop.release import transitions
from recloop.serve.app import create
from recloop.storage import releases
from recloop.storage.control import ReleaseRow

WHO = {"by": "test", "reason": "a test", "at": 5}


def control_of(project: Project) -> Any:
    return project.open_control()


def gates(evidence: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in evidence["gates"]}


def positives_after(project: Project, cut: int) -> set[tuple[str, int]]:
    """(user, stamp) of the moments with a purchase from a cut on."""
    rows = pl.read_parquet(project.data / "split" / "test.parquet")
    assert rows["stamp"].min() >= cut  # type: ignore[operator]
    return set(rows.filter(pl.col("label") > 0).select("user_id", "stamp").iter_rows())


def test_promote_of_a_trained_bundle_runs_its_gate_and_records_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = loop.train(project, model="covisitation").bundle
    with pytest.raises(Refused, match=rf"gate=not run, threshold passed: .*recloop promote {same.id} --to shadow"):
        transitions.promote(project, same.id, "shadow", "with a reason it is not run either")
    evaluated: list[int] = []
    right = promotion.BundleUnderTest.ask
    monkeypatch.setattr(
        promotion.BundleUnderTest, "ask", lambda self, queries: evaluated.append(len(queries)) or right(self, queries)
    )
    moved = promotion.promote(project, same.id, "shadow")
    assert evaluated == [len(positives_after(project, same.cut))] * 2  # candidate and live, every moment of the test
    found = gates(moved["evidence"])
    assert list(found) == [
        "new_rows", "slice:cold", "slice:repeat", "slice:explore", "latency", "cold_coverage", "golden",
        "finite",
    ]  # fmt: skip
    assert all(one["ok"] for one in found.values())
    assert found["new_rows"]["value"] == 0  # equal lists
    assert releases.read_state(control_of(project)).since(same.id).evidence["gates"] == moved["evidence"]["gates"]
    with pytest.raises(
        Refused, match="shadow requests=0, threshold 100"
    ):  # the gate is recorded in the release table by now
        transitions.promote(project, same.id, "experiment")
    assert len(evaluated) == 2


def test_promote_with_a_failed_gate_is_refused_unless_a_reason_is_given(project: Project) -> None:
    settings = project.config.placement["home"].model_copy(update={"weights": {"popular": 1.0}})
    other = Project(project.root, project.config.model_copy(update={"placement": {"home": settings}}))
    worse = loop.train(other, model="popular").bundle
    before = control_of(project).generation()
    with pytest.raises(Refused, match=r"gate slice:repeat=-0\.\d+, threshold -0\.1: .*to override: recloop promote"):
        promotion.promote(project, worse.id)
    machine = releases.read_state(control_of(project))
    assert (machine.state(worse.id), machine.generation) == ("checked", before + 1)
    moved = promotion.promote(project, worse.id, "shadow", "to see what happens")
    assert moved["to"] == "shadow"
    assert moved["evidence"]["waived_requirements"][0].startswith("gate slice:repeat=-0.")
    assert "shadow and experiment decide" in gates(moved["evidence"])["new_rows"]["note"]
    with pytest.raises(Refused, match="shadow requests=0"):  # after a waived gate only the steps are required
        transitions.promote(project, worse.id, "experiment")
    with pytest.raises(UserError, match="bundle=nothing"):
        promotion.promote(project, "nothing")


def test_promote_over_http_without_a_gate_names_the_command(project: Project) -> None:
    trained = loop.train(project, model="covisitation").bundle.id
    app = create(project)

    async def ask() -> httpx.Response:
        async with servers.local(app) as client:
            await app.state.service.reload()
            body = {"bundle": trained, "to": "live", "reason": "I want it"}
            return await client.post("/v1/admin/promote", json=body)

    try:
        answer = asyncio.run(ask())
    finally:
        app.state.service.close()
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["field"]) == (409, "refused", "gate")
    assert f"run its gate: recloop promote {trained} --to live" in error["message"]


def promote_fully_learned_bundle(project: Project) -> None:
    """Promote a live bundle that has learned every row, as after an update."""
    live = project.load_bundle()
    events = project.open_archive().events()
    data = replace(live.manifest.data, cut=events["timestamp"].max() + 1, until_seq=events["seq"].max())
    made = bundles.write(
        replace(live, manifest=replace(live.manifest, data=data)), project.bundles, datetime(2026, 1, 1, tzinfo=UTC)
    )
    control, sha256 = control_of(project), bundles.manifest_hash(project.bundles / made.id)
    releases.register(control, made.id, sha256, evidence={"gates": []}, **WHO)
    releases.checked(control, made.id, **WHO)
    releases.promote(control, made.id, **WHO)


def test_promotion_gate_evaluates_rows_that_neither_bundle_learned(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = loop.train(project, model="covisitation").bundle
    promote_fully_learned_bundle(project)
    live = project.load_bundle()
    test = positives_after(project, candidate.cut)
    evaluated: list[set[tuple[str, int]]] = []
    right = promotion.BundleUnderTest.ask

    def ask(self: promotion.BundleUnderTest, queries: Any) -> Any:
        evaluated.append(set(zip(queries.users, queries.now.tolist(), strict=True)))
        return right(self, queries)

    monkeypatch.setattr(promotion.BundleUnderTest, "ask", ask)
    monkeypatch.setattr(evidence, "are_holdout_users", lambda users: np.array([user < "u2" for user in users]))
    found = {one.name: one for one in promotion.run_promotion_gates(project, candidate, live)}
    assert evaluated[0] == evaluated[1] == {(user, stamp) for user, stamp in test if user < "u2"}
    assert found["new_rows"].note == "weak: nothing to compare"
    assert found["forgetting"].value is not None
    # without holdout users the gate reports that it compared nothing
    monkeypatch.setattr(evidence, "are_holdout_users", lambda users: np.zeros(len(users), dtype=bool))
    found = {one.name: one for one in promotion.run_promotion_gates(project, candidate, live)}
    assert all(one.ok for one in found.values())
    assert list(found) == ["new_rows", "latency", "cold_coverage", "golden", "finite"]
    assert found["new_rows"].note == "weak: nothing to compare"
    assert found["latency"].value is not None
    archive = project.open_archive()
    log = project.open_log(write=True)
    log.start_at(archive.watermark)
    late = archive.events()["timestamp"].max() + DAY  # type: ignore[operator]
    rows = [("u03", "i01", late), ("u03", "i02", late), ("u05", "i03", late + 1)]
    made = [Event(user_id=u, item_id=i, timestamp=t, event_type="purchase", received_at=t) for u, i, t in rows]
    log.append_events([*made, made[0]])  # a repeat, which an update would retract, is the same moment
    log.close()
    evaluated.clear()
    promotion.run_promotion_gates(project, candidate, live)
    assert evaluated[0] == evaluated[1] == {("u03", late), ("u05", late + 1)}


def test_gate_rows_read_in_blocks_of_users_give_the_queries_of_all_rows(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = project.load_bundle()
    rows, learned = gate_rows.GateRows.open(project), bundle.learned
    everyone = project.open_archive().events()["user_id"].unique().sort()
    all_rows = rows.of_users(everyone, bundle.spec)
    expected = make_queries(all_rows.filter(learned.new_moments), "successive")
    users = rows.users_of(learned.new_candidates)
    monkeypatch.setattr(gate_rows, "BLOCK_USERS", 3)
    queries = rows.queries(users, bundle.spec, learned.new_moments)
    assert len(users) > 3
    assert (queries.users, queries.targets) == (expected.users, expected.targets)
    for name in ("as_of", "now", "offsets"):
        assert getattr(queries, name).tolist() == getattr(expected, name).tolist()
    assert len(rows.queries(users[:0], bundle.spec, learned.new_moments)) == 0
    some = users[:2].to_list()
    assert set(rows.of_users(some, bundle.spec)["user_id"]) == set(some)


def crash(project: Project, row: ReleaseRow) -> None:
    """End the process, as the native code of a faulty graph does."""
    os.kill(os.getpid(), signal.SIGSEGV)


def test_promote_of_a_bundle_that_crashes_its_loader_is_refused_and_the_next_move_works(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command loads a bundle in a child process first, as the service does."""
    bad = loop.train(project, model="covisitation").bundle
    with monkeypatch.context() as patch:
        patch.setattr(
            transitions, "check_in_child", lambda project, row: bundle_check.check_in_child(project, row, crash)
        )
        with pytest.raises(Refused, match=r"check=failed.*the check ended with exit code -11"):
            promotion.promote(project, bad.id, "shadow")
    assert releases.read_state(control_of(project)).state(bad.id) == "refused"
    good = loop.train(project, model="popular").bundle
    assert transitions.validate(project, control_of(project), good.id, "shadow").state(good.id) == "checked"
