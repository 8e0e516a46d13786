"""Verify: stored decisions equal lists rebuilt from the log, and each skew is named."""

from __future__ import annotations

import random
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from servers import inside

from recloop import loop
from recloop.features.vocabulary import CategoryCodes
from recloop.monitoring.verify import compare, verify
from recloop.project import Project, open_project
from recloop.recommend.ranked_list import RankedList
from recloop.records import SECOND, Decision, Slot
from recloop.serve.app import create
from recloop.serve.service import Service
from recloop.simulation.shop import SimulatedShop
from recloop.training import ranker

START = 1_752_000_000 * SECOND  # a few days after the shop's last row

Work = Callable[[httpx.AsyncClient, Service], Awaitable[None]]


class Clock:
    """A clock that advances a minute per reading."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        self.now += 60 * SECOND
        return self.now


@pytest.fixture
def play(project: Project) -> Callable[[Work], None]:
    """Run requests against a service of this process; decisions are stored on return."""

    def run(work: Work) -> None:
        inside(create(project, clock=Clock()), work)

    return run


async def ask(client: httpx.AsyncClient, user: str, **query: Any) -> list[str]:
    answer = await client.get(f"/v1/recommend/{user}", params=query)
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


async def post(client: httpx.AsyncClient, path: str, body: Any) -> None:
    assert (await client.post(path, json=body)).status_code in {200, 207}


async def random_day(client: httpx.AsyncClient, service: Service, actions: int = 250) -> None:
    """A random day of a shop: late rows, dislikes, new items, filters, unknown users."""
    draw = random.Random(7)
    users = [f"u{n:02}" for n in range(0, 60, 4)] + ["unknown", "a/b", "名"]
    items = [f"i{n:02}" for n in range(1, 80)] + ["new-1", "new-2"]
    for number in range(actions):
        user = draw.choice(users)
        kind = draw.random()
        if kind < 0.35:
            group = draw.choice([None, f"g{draw.randrange(8)}"])
            stamp = draw.choice([None, START / SECOND - draw.randrange(200 * 86_400)])
            rows = [
                {"user_id": user, "item_id": item, "event_type": draw.choice(["purchase", "purchase", "dislike", "click"]),
                 "group_id": group, "timestamp": stamp, "event_id": f"e{number}-{item}"}
                for item in draw.sample(items, draw.randint(1, 4))
            ]  # fmt: skip
            await post(client, "/v1/events", rows)
        elif kind < 0.42:
            attributes = {"category": draw.choice(["tea", "pets"]), "price": draw.randint(1, 9)}
            await post(
                client,
                "/v1/items",
                {"item_id": draw.choice(items), "attributes": attributes, "hidden": draw.random() < 0.3},
            )
        elif kind < 0.5:
            await post(client, "/v1/users", {"user_id": user, "attributes": {"age": draw.choice(["18-29", "60+"])}})
        else:
            query = {
                "n": draw.choice([1, 5, 10, 60]),
                "placement": draw.choice(["home", "home", "cart"]),
                "exclude": ",".join(draw.sample(items, draw.randint(0, 3))),
                "filter": draw.choice(["", "", "price < 6", "category = 'tea' OR price > 7"]),
            }
            if query["placement"] == "home" and draw.random() < 0.5:
                query["min_new"] = draw.choice([0, 0.4, 1])
            await ask(client, user.replace("/", "%2F"), **query)
    assert service.decisions.flush()


def test_verify_rebuilds_decisions_of_a_day_exactly(project: Project, play: Any) -> None:
    play(random_day)
    with project.open_decisions() as store:
        assert {row.query.get("min_new") for row in store.rows(last=1000)} == {None, 0, 0.4, 1}
    found = verify(project)
    assert list(found) == [
        "checked",
        "equal",
        "late",
        "unexplained",
        "earlier",
        "removed",
        "max_score_diff",
        "differences",
    ]
    assert found["checked"] > 100
    assert found["differences"] == []
    assert (found["equal"], found["late"], found["unexplained"]) == (found["checked"], 0, 0)
    assert found["max_score_diff"] == 0.0
    assert verify(project, last=7)["checked"] == 7


@pytest.fixture
def ranked_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A small shop whose lists a ranker orders."""
    monkeypatch.setattr(ranker, "MIN_MOMENTS", 2)
    monkeypatch.setattr(ranker, "MIN_JUDGED", 1)
    folder = SimulatedShop(seed=0, users=60, items=80).write(tmp_path / "ranked")
    with (folder / "recloop.toml").open("a", encoding="utf-8") as file:
        file.write('[model]\nname = "covisitation"\n[ranker]\nmodel = "gbdt"\ntrees = 5\n')
        file.write('[placement.cart]\nlist = "popular"\n')
    project = open_project(folder)
    loop.first_run(project)
    return project


@pytest.mark.slow
def test_verify_rebuilds_ranked_lists_and_those_of_a_failed_ranker(ranked_project: Project) -> None:
    async def day(client: httpx.AsyncClient, service: Service) -> None:
        await random_day(client, service, 80)
        assert service.recommender.ranker is not None
        service.recommender.ranker._score = None  # type: ignore[assignment]
        answer = await client.get("/v1/recommend/u04")
        assert answer.json()["degraded"] == ["ranker"]
        assert len(answer.json()["items"]) == 10
        assert service.decisions.flush()

    inside(create(ranked_project, clock=Clock()), day)
    with ranked_project.open_decisions() as store:
        decisions = store.rows(last=1000)
    assert sum("ranker" in decision.inputs for decision in decisions) > 10
    found = verify(ranked_project)
    assert found["differences"] == []
    assert (found["equal"], found["max_score_diff"]) == (found["checked"], 0.0)


def test_verify_without_decisions_checks_0(project: Project) -> None:
    found = verify(project)
    assert (found["checked"], found["unexplained"], found["differences"]) == (0, 0, [])


def move_an_edge(service: Service) -> None:
    codes = service.bundle.fields.codes["context.days_since_last"]
    object.__setattr__(codes, "edges", tuple(edge * 50 for edge in codes.edges))


def change(service: Service, name: str, **settings: Any) -> None:
    placements = service.bundle.policy.placements
    assert isinstance(placements, dict)
    placements[name] = replace(placements[name], **settings)


def drop_a_filter(service: Service) -> None:
    change(service, "cart", filter="")


def shift_an_hour(service: Service) -> None:
    right = service.recommender.recommend

    def late(states: Any, queries: Any, **options: Any) -> Any:
        moved = [msgspec.structs.replace(query, now=query.now + 3600 * SECOND) for query in queries]
        return right(states, moved, **options)

    service.recommender.recommend = late  # type: ignore[method-assign]


def keep_old_states(service: Service) -> None:
    source = service.user_states.get(service.bundle.spec)
    source.apply = lambda _rows, _users, seq: setattr(source, "seq", seq)  # type: ignore[method-assign]


def change_an_attribute(service: Service) -> None:
    item = service.catalog.get("i01")
    assert item is not None
    service.catalog.upsert(msgspec.structs.replace(item, attributes={**item.attributes, "price": 99.0}))


def swap_two_ages(service: Service) -> None:
    ages = service.bundle.fields.codes["user.age"]
    assert isinstance(ages, CategoryCodes)
    service.bundle.fields.codes["user.age"] = CategoryCodes(ages.values[1:] + ages.values[:1])


def forget_an_item(service: Service) -> None:
    index = service.bundle.items.ids._index
    service.bundle.items.ids._index = {name: ix for name, ix in index.items() if ix != 1}  # type: ignore[misc]


def weigh_otherwise(service: Service) -> None:
    weights = service.bundle.policy.placements["home"].weights
    change(service, "home", weights={**weights, "popular": 0.5})


SKEWS: list[tuple[Callable[[Service], None], set[str]]] = [
    (move_an_edge, {"context.days_since_last"}),
    (drop_a_filter, {"filters"}),
    (shift_an_hour, {"now", "state"}),  # events of that hour are visible too early
    (keep_old_states, {"state"}),
    (change_an_attribute, {"catalogue"}),
    (swap_two_ages, {"user.age"}),
    (forget_an_item, {"history", "filters"}),
    (weigh_otherwise, {"ids", "scores"}),
]


@pytest.fixture(scope="module")
def answered_folder(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A project with verified decisions, and their request ids."""
    project = open_project(shutil.copytree(trained_folder, tmp_path_factory.mktemp("answered") / "shop"))
    answered: list[str] = []

    async def honest(client: httpx.AsyncClient, service: Service) -> None:
        await random_day(client, service, 40)
        answered.extend(row.request_id for row in service.decisions.rows())

    inside(create(project, clock=Clock()), honest)
    assert verify(project)["unexplained"] == 0
    return project.root, answered


@pytest.mark.parametrize(("skew", "names"), SKEWS, ids=[skew.__name__ for skew, _ in SKEWS])
def test_verify_names_the_skewed_input_of_the_service(
    answered_folder: tuple[Path, list[str]], tmp_path: Path, skew: Callable[[Service], None], names: set[str]
) -> None:
    folder, before = answered_folder
    project = open_project(shutil.copytree(folder, tmp_path / "shop"))

    async def skewed(client: httpx.AsyncClient, service: Service) -> None:
        skew(service)
        await random_day(client, service, 80)

    inside(create(project, clock=Clock()), skewed)
    found = verify(project)
    assert found["unexplained"] == len(found["differences"]) > 0
    assert {difference["name"] for difference in found["differences"]} <= names
    assert not {difference["request_id"] for difference in found["differences"]} & set(before)
    assert all(difference["expected"] != difference["actual"] for difference in found["differences"])


def test_verify_counts_differences_by_late_rows_as_late(project: Project, play: Any) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        await ask(client, "u14")
        late = {"user_id": "u14", "item_id": "i05", "event_type": "purchase", "timestamp": "2025-01-01"}
        await post(client, "/v1/events", late)  # dated before the answer, so it counts at that time
        service.decisions.flush()
        (row,) = service.decisions.rows()
        # As in a store that commits numbers out of order.
        service.decisions.put(msgspec.structs.replace(row, request_id="late", as_of_seq=service.as_of))
        service.decisions.put(
            msgspec.structs.replace(row, request_id="wrong", as_of_seq=service.as_of, items=row.items[::-1])
        )

    play(work)
    found = verify(project)
    assert (found["checked"], found["equal"], found["late"], found["unexplained"]) == (3, 1, 1, 1)
    assert found["differences"][0]["request_id"] == "wrong"


def test_verify_with_a_changed_or_removed_bundle_is_unexplained(project: Project, play: Any) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        await ask(client, "u14")

    play(work)
    (bundle,) = project.bundles.iterdir()
    (bundle / "policy.json").write_text("{}")
    found = verify(project)
    assert (found["unexplained"], found["differences"][0]["name"]) == (1, "bundle")
    shutil.rmtree(bundle)
    assert verify(project)["differences"][0]["expected"] == bundle.name


def test_verify_with_a_loaded_bundle_does_not_read_its_files(project: Project, play: Any) -> None:
    async def work(client: httpx.AsyncClient, _: Service) -> None:
        await ask(client, "u00")

    play(work)
    live = project.load_bundle("")
    shutil.rmtree(project.bundles / live.id)
    assert verify(project)["unexplained"] == 1
    assert verify(project, loaded=[live])["equal"] == 1


def decision(items: str, scores: list[float], **inputs: str) -> Decision:
    return Decision(
        request_id="r", role="answer", user_id="u", served_at=0, as_of_seq=0, bundle="b", generation=1, variant="live",
        placement="home", n=len(items), query={}, items=list(items), scores=scores, sources=["model"] * len(items),
        inputs=inputs,
    )  # fmt: skip


def answer(items: str, scores: list[float], **inputs: str) -> RankedList:
    return RankedList([Slot(item, score, "model") for item, score in zip(items, scores, strict=True)], inputs, 0)


@pytest.mark.parametrize(
    ("was", "now", "name"),
    [
        (decision("abc", [3, 2, 1]), answer("abc", [3, 2, 1]), None),
        (decision("abc", [3, 2, 2 - 5e-6]), answer("acb", [3, 2, 2 - 5e-6]), None),  # a swap between close scores
        (decision("abc", [3, 2, 1]), answer("acb", [3, 2, 1]), "ids"),
        (
            decision("abc", [3, 2, 1]),
            answer("abd", [3, 2, 1 + 5e-6]),
            None,
        ),  # an item with a close score is outside the list
        (decision("abc", [3, 2, 1]), answer("dbc", [3, 2, 1]), "ids"),
        (decision("abc", [3, 2, 1]), answer("abc", [3, 2 + 2e-5, 1]), "scores"),
        (decision("abc", [3, 2, 1]), answer("ab", [3, 2]), "ids"),
        (decision("", []), answer("", []), None),
        (decision("a", [1], state="x", now="y"), answer("b", [2], state="x", now="z"), "now"),
        (decision("a", [1], state="x", now="y"), answer("a", [1], state="z", now="z"), "state"),
        (decision("a", [1], state="x"), answer("a", [1], state="x", more="y"), "more"),
        (decision("a", [1], state="x", more="y"), answer("a", [1], state="x"), "more"),
    ],
)
def test_compare_accepts_swaps_of_close_scores_only(was: Decision, now: RankedList, name: str | None) -> None:
    found = compare(was, now)
    assert (found and found.name) == name


def test_verify_changes_no_file(project: Project, play: Any) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        await ask(client, "u14")

    play(work)
    before = {
        path: path.stat().st_mtime_ns for path in project.root.rglob("*") if path.is_file() and "-" not in path.name
    }
    verify(project)
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before
    assert len(project.open_decisions().rows()) == 1
