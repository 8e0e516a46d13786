"""Recommendation lists over HTTP: the contract of requests and responses."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import polars as pl
import pytest
from servers import Server, start

from recloop import bundle as bundles
from recloop.bundle import Bundle
from recloop.project import open_project
from recloop.records import FUSED_SOURCES, Decision
from recloop.serve.request import list_parameters
from recloop.serve.schemas import HttpError
from recloop.storage import releases


def ask(client: httpx.Client, user_id: str = "u14", **query: Any) -> dict[str, Any]:
    answer = client.get(f"/v1/recommend/{user_id}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def post(client: httpx.Client, path: str, body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def buy(client: httpx.Client, user: str, *items: str, **more: Any) -> None:
    rows = [{"user_id": user, "item_id": item, "event_type": "purchase", **more} for item in items]
    assert post(client, "/v1/events", rows)["accepted"] == len(items)


def logged(server: Server, client_request_id: str) -> list[Decision]:
    return [row for row in server.decided() if row.client_request_id == client_request_id]


def test_recommend_response_has_the_documented_keys(client: httpx.Client, server: Server) -> None:
    answer = ask(client, n=5)
    assert list(answer) == ["request_id", "model_version", "variant", "placement", "degraded", "items"]
    assert answer["model_version"] == server.bundle
    assert answer["variant"] == "live"
    assert answer["placement"] == "home"
    assert answer["degraded"] == []


def test_recommend_items_are_distinct_sorted_and_have_the_properties(client: httpx.Client) -> None:
    items = ask(client, n=5, properties="category,price,nothing")["items"]
    assert len({item["item_id"] for item in items}) == len(items) == 5
    for item in items:
        assert list(item) == ["item_id", "score", "source", "reason", "category", "price", "nothing"]
        assert isinstance(item["category"], str)
        assert isinstance(item["price"], float)
        assert item["nothing"] is None
        assert item["source"] in FUSED_SOURCES
        assert item["reason"]
    scores = [item["score"] for item in items]
    assert scores == sorted(scores, reverse=True)


def test_recommend_length_is_that_of_the_placement_unless_n_is_given(client: httpx.Client) -> None:
    assert len(ids(ask(client))) == 10
    assert len(ids(ask(client, placement="cart"))) == 3
    assert len(ids(ask(client, n=1))) == 1
    whole = ask(client, n=1000)
    assert len(ids(whole)) >= 70  # the visible catalog
    scores = [item["score"] for item in whole["items"]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("n", ["0", "1001", "-1", "x", "", "1.5", "1_0", "99999999999999999999"])
def test_recommend_with_a_bad_n_is_422(client: httpx.Client, n: str) -> None:
    answer = client.get("/v1/recommend/u14", params={"n": n})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error == {
        "code": "bad_n", "message": f"n={n}: expected a whole number from 1 to 1000", "field": "n",
        "expected": "a whole number from 1 to 1000",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["user_id", "session_id", "anonymous_id", "item"])
def test_recommend_with_a_nul_in_an_id_is_422(client: httpx.Client, name: str) -> None:
    response = client.get("/v1/recommend", params={"user_id": "u14", name: "a\0b"})
    assert (response.status_code, response.json()["error"]["code"]) == (422, f"bad_{name}")


def test_recommend_with_an_unknown_placement_is_422_and_lists_the_known(client: httpx.Client) -> None:
    answer = client.get("/v1/recommend/u14", params={"placement": "moon"})
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "placement"
    assert answer.json()["error"]["expected"] == "one of cart, home"


@pytest.mark.parametrize(
    "text",
    [
        " OR ".join(["price > 1"] * 51),
        "a.a",
        "category =",
        "category = 'tea' AND",
        "colour = 'red'",
        "1; DROP TABLE items",
        "price > 'cheap'",
        "read('x')",
    ],
)
def test_recommend_with_a_bad_filter_is_422(client: httpx.Client, text: str) -> None:
    answer = client.get("/v1/recommend/u14", params={"filter": text})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["field"] == "filter"


def test_recommend_filter_applies_to_every_source(client: httpx.Client) -> None:
    answer = ask(client, n=50, filter="category IN ('tea', 'pets') AND price < 6", properties="category,price")
    assert answer["items"]
    assert {item["category"] for item in answer["items"]} <= {"tea", "pets"}
    assert all(item["price"] < 6 for item in answer["items"])


def test_recommend_applies_the_filters_of_placement_and_request(client: httpx.Client) -> None:
    assert "tea" not in {i["category"] for i in ask(client, n=80, placement="cart", properties="category")["items"]}
    empty = ask(client, placement="cart", filter="category = 'tea'")
    assert empty["items"] == []
    assert empty["empty_reason"].endswith("AND (category = 'tea')")
    assert ask(client, filter="category = 'tea'")["items"]
    assert ask(client, placement="cart", filter="category = 'tea' OR 1 = 1", n=80)["items"]  # parentheses around both
    answer = ask(client, n=80, placement="cart", filter="category = 'tea' OR price > 0", properties="category")
    assert "tea" not in {item["category"] for item in answer["items"]}


def test_recommend_replaces_excluded_items(client: httpx.Client) -> None:
    before = ids(ask(client, n=10))
    after = ids(ask(client, n=10, exclude=",".join(before[:3])))
    assert not set(before[:3]) & set(after)
    assert len(set(before[3:]) & set(after)) >= 6  # ranks inside a source close up: two items may swap
    assert len(after) == 10


def test_recommend_with_all_items_excluded_is_empty_and_names_the_reason(client: httpx.Client) -> None:
    answer = ask(client, n=1, filter="item_id = 'i01'", exclude="i01")
    assert answer["items"] == []
    assert answer["empty_reason"] == "every remaining item is excluded: seen, disliked or in exclude"
    assert "empty_reason" not in ask(client, n=1)


def test_filter_seen_is_read_and_other_values_are_refused() -> None:
    assert [list_parameters(text).seen() for text in (b"", b"filter_seen=true", b"filter_seen=false")] == [
        None, True, False,
    ]  # fmt: skip
    with pytest.raises(HttpError, match="bad_filter_seen"):
        list_parameters(b"filter_seen=1").seen()


@pytest.mark.parametrize("text", ["0", "1", "0.333", ".5", "1.0", "5e-1"])
def test_min_new_is_read(text: str) -> None:
    assert list_parameters(f"min_new={text}".encode()).new_share() == float(text)
    assert list_parameters(b"").new_share() is None


@pytest.mark.parametrize("text", ["", "-0.1", "1.1", "1e9", "nan", "inf", "half", "0_1", " 0.5", "0,5", "\u0661"])
def test_min_new_outside_0_to_1_is_refused(client: httpx.Client, text: str) -> None:
    answer = client.get("/v1/recommend/u14", params={"min_new": text})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "bad_min_new"
    assert "a number from 0 to 1" in answer.text


def test_min_new_of_a_request_adds_new_items_and_is_recorded(client: httpx.Client) -> None:
    lists = [set(ids(ask(client, n=10, min_new=share))) for share in (0, 0.5, 1)]
    new = set(ids(ask(client, n=80, filter_seen=True)))
    assert [len(items) for items in lists] == [10, 10, 10]
    assert len(lists[1] & new) >= 5
    assert lists[2] <= new
    refused = client.get("/v1/recommend/u14", params={"min_new": 0.5, "placement": "cart"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "bad_min_new")
    assert client.get("/v1/items/i01/similar", params={"min_new": 0.5}).json()["error"]["code"] == "unknown_parameter"


@pytest.mark.parametrize(
    ("values", "excluded"),
    [(["a,b"], ("a", "b")), (["a,b", ""], ("a,b",)), (["a,b", "c", "c"], ("a,b", "c")), ([], ())],
)
def test_exclude_repeated_is_taken_literally(values: list[str], excluded: tuple[str, ...]) -> None:
    query = urlencode([("exclude", value) for value in values]).encode()
    assert list_parameters(query).exclude == excluded


def test_item_id_with_an_encoded_slash_before_similar_is_an_item(client: httpx.Client) -> None:
    assert client.get("/v1/items/i01%2Fsimilar").status_code == 404
    assert client.get("/v1/items/i01/similar").json()["items"]


@pytest.mark.parametrize("user_id", ["unknown", "a/b", "", " ", "名", "%2F", "a?b", "null", "0" * 2000])
def test_recommend_by_path_and_by_query_are_equal_for_any_user_id(client: httpx.Client, user_id: str) -> None:
    answer = client.get("/v1/recommend", params={"user_id": user_id, "n": 4})
    if not user_id:
        assert answer.status_code == 422
        return
    assert answer.status_code == 200
    assert len(ids(answer.json())) == 4
    path = httpx.URL(f"/v1/recommend/{httpx.QueryParams({'': user_id})}".replace("/=", "/").replace("+", "%20"))
    assert ids(client.get(path, params={"n": 4}).json()) == ids(answer.json())


def test_recommend_with_more_than_50_properties_is_422_and_names_the_limit(client: httpx.Client) -> None:
    names = [f"a{number}" for number in range(51)]
    assert client.get("/v1/recommend/u14", params={"properties": ",".join(names[:50])}).status_code == 200
    for path in ("/v1/recommend/u14", "/v1/items/i01/similar"):
        answer = client.get(path, params={"properties": ",".join(names)})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "properties")
        assert answer.json()["error"]["expected"] == "at most 50 names, found 51"


def test_recommend_without_a_user_is_422(client: httpx.Client) -> None:
    for path in ("/v1/recommend", "/v1/recommend/"):
        answer = client.get(path)
        assert answer.status_code == 422
        assert answer.json()["error"]["field"] == "user_id"


def test_recommend_after_purchases_and_a_dislike_reflects_them(client: httpx.Client, user: str) -> None:
    bought = ids(ask(client, user, n=80))[30:33]
    buy(client, user, *bought, group_id="b1")
    known = ask(client, user, n=5)
    assert set(ids(known)[:3]) == set(bought)
    assert {item["source"] for item in known["items"][:3]} <= {"history", "neighbours"}
    post(client, "/v1/events", {"user_id": user, "item_id": bought[0], "event_type": "dislike"})
    after = ids(ask(client, user, n=80))
    assert bought[0] not in after
    assert set(bought[1:]) <= set(after)


def test_user_with_only_attributes_is_warm(client: httpx.Client, user: str) -> None:
    post(client, "/v1/users", {"user_id": user, "attributes": {"age": "18-29"}})
    state = client.get(f"/v1/users/{user}").json()
    assert (state["state"], state["attributes"], state["events"]) == ("warm", {"age": "18-29"}, 0)


@pytest.fixture(scope="module")
def without_popular(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Bundle]]:
    """A server and its bundle that uses the fallback for users without history."""
    folder = shutil.copytree(trained_folder, tmp_path_factory.mktemp("without") / "shop")
    bundle = open_project(folder).load_bundle()
    home = replace(bundle.policy.placements["home"], weights={"history": 1.0})
    policy = replace(bundle.policy, placements={**bundle.policy.placements, "home": home})
    written = bundles.write(replace(bundle, policy=policy, golden=[]), folder / "bundles", datetime.now(UTC))
    control = open_project(folder).open_control()
    sha256 = bundles.manifest_hash(folder / "bundles" / written.id)
    releases.register(control, written.id, sha256, by="test", reason="history alone", at=1)
    releases.checked(control, written.id, by="test", reason="history alone", at=2)
    releases.promote(control, written.id, to="live", by="test", reason="history alone", at=3)
    server = start(folder)
    try:
        yield server, written
    finally:
        server.close()


def test_fallback_for_a_user_with_only_attributes_is_the_segment_list(
    without_popular: tuple[Server, Bundle], user: str
) -> None:
    server, bundle = without_popular
    post(server.client, "/v1/users", {"user_id": user, "attributes": {"age": "18-29"}})
    items = ask(server.client, user, n=5)["items"]
    expected = [bundle.items.ids.ids[ix - 1] for ix in bundle.arrays["segment.18-29"][:5]]
    assert [item["item_id"] for item in items] == expected
    assert {item["source"] for item in items} == {"segment"}
    assert {item["source"] for item in ask(server.client, f"{user}-unknown", n=5)["items"]} == {"popular"}


def test_recommend_lists_a_posted_item_and_omits_hidden_items(client: httpx.Client, user: str) -> None:
    post(client, "/v1/items", {"item_id": "fresh", "attributes": {"category": "tea", "price": 1.0}})
    answer = ask(client, user, n=100, properties="price")
    assert {i["item_id"]: i["source"] for i in answer["items"]}["fresh"] == "latest"
    assert ids(ask(client, user, n=1, filter="price = 1.0 AND category = 'tea' AND item_id = 'fresh'")) == ["fresh"]
    first = ids(answer)[0]
    attributes = client.get(f"/v1/items/{first}").json()["attributes"]
    post(
        client, "/v1/items", [{"item_id": name, "attributes": attributes, "hidden": True} for name in (first, "fresh")]
    )
    assert not {first, "fresh"} & set(ids(ask(client, user, n=100)))
    assert client.get(f"/v1/items/{first}").json()["hidden"] is True
    post(client, "/v1/items", {"item_id": first, "attributes": attributes})
    assert ids(ask(client, user, n=1)) == [first]


def test_request_id_is_generated_and_the_client_header_is_echoed(client: httpx.Client) -> None:
    answer = client.get("/v1/recommend/u14", headers={"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert len(answer.json()["request_id"]) == 32
    plain = client.get("/v1/recommend/u14")
    assert plain.json()["request_id"] == plain.headers["x-request-id"]
    made = {ask(client)["request_id"] for _ in range(3)}
    assert len(made) == 3
    long = client.get("/v1/recommend/u14", headers={"X-Request-Id": "x" * 201})
    assert long.status_code == 200
    assert len(long.json()["request_id"]) == 32
    assert client.get("/nowhere", headers={"X-Request-Id": "mine-2"}).headers["x-request-id"] == "mine-2"


def test_decision_row_equals_the_answer(client: httpx.Client, server: Server, user: str) -> None:
    buy(client, user, "i01", "i02")
    before = time.time_ns() // 1_000
    answer = client.get(
        f"/v1/recommend/{user}",
        params={"n": 7, "exclude": "i03", "filter": "price > 0", "properties": "name", "session_id": "s9"},
        headers={"X-Request-Id": f"whole-{user}"},
    ).json()
    (row,) = logged(server, f"whole-{user}")
    assert (row.items, row.scores) == (ids(answer), [item["score"] for item in answer["items"]])
    assert row.sources == [item["source"] for item in answer["items"]]
    assert (row.user_id, row.role, row.variant, row.placement, row.n) == (user, "answer", "live", "home", 7)
    assert row.query == {"exclude": ["i03"], "filter": "price > 0", "properties": ["name"], "context": {}}
    assert (row.bundle, row.generation, row.positives, row.session_id) == (answer["model_version"], 2, 2, "s9")
    assert list(row.inputs)[:4] == ["state", "catalogue", "now", "filters"]
    assert {"history", "user.age", "context.hour", "context.days_since_last"} <= set(row.inputs)
    assert row.as_of_seq == client.get("/v1/status").json()["last_seq"]
    assert row.latency_us > 0
    assert before <= row.served_at <= time.time_ns() // 1_000


def test_decisions_of_three_lists_with_one_client_id_are_three_rows(
    client: httpx.Client, server: Server, user: str
) -> None:
    header = {"X-Request-Id": f"page-{user}"}
    answers = [
        client.get(f"/v1/recommend/{user}", headers=header, params={"n": 2}).json(),
        client.get(f"/v1/recommend/{user}", headers=header, params={"n": 4}).json(),
        client.get("/v1/recommend/u14", headers=header).json(),
    ]
    rows = logged(server, f"page-{user}")
    assert [row.request_id for row in rows] == [answer["request_id"] for answer in answers]
    assert [row.items for row in rows] == [ids(answer) for answer in answers]
    assert [row.user_id for row in rows] == [user, user, "u14"]
    assert {row.assigned for row in rows} == {"live"}


def test_time_header_when_allowed_sets_the_decision_time(client: httpx.Client, server: Server, user: str) -> None:
    headers = {"X-Recloop-Now": "2025-07-01T12:00:00Z", "X-Request-Id": f"then-{user}"}
    row = {"user_id": user, "item_id": "i05", "event_type": "purchase"}
    assert client.post("/v1/events", json=row, headers=headers).status_code == 200
    assert client.get(f"/v1/recommend/{user}", headers=headers).status_code == 200
    (decision,) = logged(server, f"then-{user}")
    assert decision.served_at == 1_751_371_200_000_000
    assert client.get(f"/v1/users/{user}").json()["last_events"] == [
        {"item_id": "i05", "timestamp": "2025-07-01T12:00:00Z"}
    ]
    wrong = client.get(f"/v1/recommend/{user}", headers={"X-Recloop-Now": "yesterday"})
    assert (wrong.status_code, wrong.json()["error"]["field"]) == (422, "X-Recloop-Now")


def test_time_header_when_not_allowed_is_ignored(project: Any, serving: Any) -> None:
    server = serving(project.root)
    headers = {"X-Recloop-Now": "2001-01-01T00:00:00Z", "X-Request-Id": "now"}
    before = time.time_ns() // 1_000
    server.client.get("/v1/recommend/u14", headers=headers)
    (row,) = logged(server, "now")
    assert before <= row.served_at <= time.time_ns() // 1_000


def test_user_and_item_routes_report_state_and_history(client: httpx.Client, user: str, server: Server) -> None:
    assert client.get(f"/v1/users/{user}").status_code == 404
    assert client.get("/v1/items/never").json()["error"]["code"] == "not_found"
    buy(client, user, "i01", timestamp="2026-01-01T00:00:00Z")
    buy(client, user, *[f"i{n:02}" for n in range(2, 30)], timestamp=1_770_000_000)
    known = client.get(f"/v1/users/{user}").json()
    assert (known["state"], known["events"], len(known["last_events"])) == ("hot", 29, 20)
    assert known["last_events"][0] == {"item_id": "i02", "timestamp": "2026-02-02T02:40:00Z"}
    post(client, "/v1/events", {"user_id": f"{user}-looks", "item_id": "unlisted/1", "event_type": "click"})
    assert client.get(f"/v1/users/{user}-looks").json()["state"] == "cold"
    assert client.get("/v1/items/unlisted/1").json() == {
        "item_id": "unlisted/1", "attributes": {}, "hidden": False, "state": "cold",
    }  # fmt: skip
    hot = client.get("/v1/items/i01").json()
    assert hot["state"] == "hot"
    assert hot["attributes"]["category"]
    post(client, "/v1/items", {"item_id": "warm", "attributes": {"price": 2}})
    assert client.get("/v1/items/warm").json()["state"] == "warm"
    users, events = (pl.read_csv(server.root / f"{name}.csv")["user_id"] for name in ("users", "events"))
    quiet = sorted(set(users) - set(events))
    assert client.get(f"/v1/users/{quiet[0]}").json()["state"] == "warm"


def test_status_and_health_report_the_live_bundle(client: httpx.Client, server: Server) -> None:
    status = client.get("/v1/status").json()
    assert (status["live"], status["generation"], status["degraded"]) == (server.bundle, 2, [])
    assert status["last_seq"] >= status["watermark"] > 0
    assert [row["state"] for row in status["bundles"]] == ["live"]
    assert client.get("/v1/health/live").json() == {"status": "live"}
    assert client.get("/v1/health/ready").json() == {"status": "ready"}
