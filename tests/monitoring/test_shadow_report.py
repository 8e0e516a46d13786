"""The shadow report: candidate, live's replica and a retrain with another seed on equal requests."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from recloop import bundle as bundles
from recloop import loop
from recloop.bundle import Bundle
from recloop.errors import UserError
from recloop.features.labels import EventLabeler
from recloop.features.moments import moment_stamps
from recloop.features.state_history import StateHistory
from recloop.monitoring import shadow_plot, shadow_report
from recloop.monitoring.verify import verify
from recloop.project import Project, open_project
from recloop.recommend.catalog import Catalog
from recloop.recommend.recommender import Recommender
from recloop.records import SECOND, Decision, Query
from recloop.simulation.shop import SimulatedShop
from recloop.storage import releases

CONFIG = """
[model]
name = "covisitation"
[placement.home]
weights = { history = 1.0, neighbours = 0.5, popular = 0.25 }
"""
START = 1_752_000_000 * SECOND
MIXES = {
    "candidate": {"history": 0.0, "neighbours": 0.25, "popular": 1.0},
    "seed": {"history": 1.0, "neighbours": 0.5, "popular": 0.5},
}
PLANTED = 3  # a request with a replica mismatch


@pytest.fixture(scope="module")
def compared_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A project with two children of its live bundle and 40 requests answered by each."""
    folder = SimulatedShop(seed=0, users=60, items=80).write(tmp_path_factory.mktemp("shadow") / "shop")
    with (folder / "recloop.toml").open("a", encoding="utf-8") as file:
        file.write(CONFIG)
    project = open_project(folder)
    live = loop.first_run(project).bundle
    control = project.open_control()
    children = {}
    for number, (name, weights) in enumerate(MIXES.items()):
        home = replace(live.policy.placements["home"], weights=weights)
        policy = live.policy.with_placement("home", home)
        child = bundles.write(replace(live, policy=policy), project.bundles, datetime(2025, 7, 1 + number, tzinfo=UTC))
        sha256 = bundles.manifest_hash(project.bundles / child.id)
        releases.register(control, child.id, sha256, by="test", reason="a child", at=START)
        children[name] = child
    write_decisions(project, live, children)
    return folder, {name: child.id for name, child in children.items()} | {"live": live.id}


def write_decisions(project: Project, live: Bundle, children: dict[str, Bundle]) -> None:
    """Store 40 requests with live's answer, its replica, shadow and retrain."""
    archive = project.open_archive()
    catalogue = Catalog.from_frames([archive.items()])
    labelled = EventLabeler(live.spec.events, live.spec.clean).label(archive.events())
    history = StateHistory(moment_stamps(labelled), archive.users())
    store = project.open_decisions(write=True)
    for number in range(40):
        user = f"u{1 + number % 30:02}"
        for role, bundle in (
            ("answer", live), ("replica", live), ("shadow", children["candidate"]), ("replica", children["seed"])
        ):  # fmt: skip
            query = Query(user_id=user, now=START + number * SECOND, n=10)
            got = Recommender(bundle, catalogue).recommend(history.states([user], [archive.watermark]), [query])[0]
            store.put(
                Decision(
                    request_id=f"r{number}",
                    role=role,
                    user_id=user,
                    served_at=query.now,
                    as_of_seq=archive.watermark,
                    bundle=bundle.id,
                    generation=2,
                    variant="live",
                    placement="home",
                    n=10,
                    query={},
                    items=got.items,
                    scores=got.scores,
                    sources=got.sources,
                    positives=got.positives,
                    inputs=got.inputs,
                    latency_us=100 if bundle is live else 200,
                )
            )
    assert store.flush()
    store.close()


@pytest.fixture
def compared_project(compared_folder: tuple[Path, dict[str, str]], tmp_path: Path) -> tuple[Project, dict[str, str]]:
    shutil.copytree(compared_folder[0], tmp_path / "shop")
    return open_project(tmp_path / "shop"), compared_folder[1]


@pytest.fixture(scope="module")
def shadow_result(compared_folder: tuple[Path, dict[str, str]]) -> dict[str, Any]:
    """The report over all requests of the compared project."""
    return shadow_report.shadow_report(open_project(compared_folder[0]))


def test_shadow_report_names_its_bundles_and_requests(
    shadow_result: dict[str, Any], compared_folder: tuple[Path, dict[str, str]]
) -> None:
    ids = compared_folder[1]
    expected = {
        "live": ids["live"], "candidate": ids["candidate"], "requests": 40, "users": 30,
        "from": START, "to": START + 39 * SECOND,
        "replica": {"requests": 40, "different": 0, "first": None},
    }  # fmt: skip
    assert {name: shadow_result[name] for name in expected} == expected


def test_shadow_report_agreement_with_other_weights_is_below_the_noise(shadow_result: dict[str, Any]) -> None:
    """The candidate's weights change lists more than another seed does."""
    for measure in ("overlap@10", "rbo", "tau_b"):
        assert shadow_result["agreement"][measure]["high"] < shadow_result["noise"][measure]["low"], measure
    assert shadow_result["noise"]["tau_b"]["value"] > 0.5


def test_shadow_report_compares_latency_and_health(shadow_result: dict[str, Any]) -> None:
    assert shadow_result["latency"]["ratio"] == pytest.approx(2.0)
    shown = shadow_result["shown"]
    assert shown["live"]["requests"] == shown["candidate"]["requests"] == 40
    assert shown["candidate"]["entropy"] < shown["live"]["entropy"]  # popular lists are all equal


def test_shadow_report_covers_segments_and_largest_differences(shadow_result: dict[str, Any]) -> None:
    segments = shadow_result["segments"]
    assert set(segments) == {"history", "placement", "age"}
    assert segments["placement"]["home"]["requests"] == 40
    assert sum(segment["requests"] for segment in segments["age"].values()) == 40
    overlaps = [request["overlap@10"] for request in shadow_result["disagree"]]
    assert len(overlaps) == 5
    assert overlaps == sorted(overlaps)


@pytest.mark.parametrize("name", ["shadow.svg", "shadow.png"])
def test_shadow_report_plot_writes_a_picture(shadow_result: dict[str, Any], tmp_path: Path, name: str) -> None:
    shadow_plot.plot(shadow_result, tmp_path / name)
    assert (tmp_path / name).stat().st_size > 4_000


def test_verify_of_shadow_and_replica_decisions_finds_no_difference(
    compared_project: tuple[Project, dict[str, str]],
) -> None:
    assert verify(compared_project[0])["unexplained"] == 0


def test_shadow_report_of_one_request_names_its_items(compared_project: tuple[Project, dict[str, str]]) -> None:
    project, ids = compared_project
    found = shadow_report.shadow_report(
        project, ids["candidate"], START + 7 * SECOND, START + 8 * SECOND, lambda item: f"<{item}>"
    )
    assert found["requests"] == 1
    store = project.open_decisions()
    rows = {(row.role, row.bundle): row for row in store.rows() if row.request_id == "r7"}
    store.close()
    live, other = rows["answer", ids["live"]], rows["shadow", ids["candidate"]]
    one = found["disagree"][0]
    assert one["live"] == [f"<{item}>" for item in live.items]
    assert one["overlap@10"] == pytest.approx(len(set(live.items) & set(other.items)) / 10)
    assert found["agreement"]["overlap@10"]["value"] == one["overlap@10"]


def test_self_check_names_the_request_with_a_replica_mismatch(compared_project: tuple[Project, dict[str, str]]) -> None:
    project, _ = compared_project
    store = project.open_decisions()
    rows = store.rows()
    store.close()
    pairs = [(row, row) for row in rows if row.role == "answer"]
    planted = msgspec.structs.replace(pairs[PLANTED][0], scores=[s + 1e-7 for s in pairs[PLANTED][0].scores])
    pairs[PLANTED] = (pairs[PLANTED][0], planted)
    assert shadow_report.self_check(pairs) == {"requests": 40, "different": 1, "first": pairs[PLANTED][0].request_id}


def test_shadow_report_without_shadow_requests_raises(compared_project: tuple[Project, dict[str, str]]) -> None:
    project, ids = compared_project
    with pytest.raises(UserError, match="a bundle that was shadowed"):
        shadow_report.shadow_report(project, ids["live"])
    with pytest.raises(UserError, match="none"):
        shadow_report.shadow_report(project, until=START)


def test_estimates_are_clustered_by_user() -> None:
    """A thousand requests of one user count as one: the interval is that of two users."""
    numbers = np.vstack([np.tile([1.0] * 4, (1_000, 1)), [[0.0] * 4]])
    found = shadow_report.estimates(numbers, ["loud"] * 1_000 + ["quiet"])["rbo"]
    assert found == {"value": 0.5, "low": 0.0, "high": 1.0}
