"""Rows over HTTP: the status of each row, and bodies that are refused as a whole."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from recloop.features.timestamp_text import EXPECTED_FORMS, NOT_A_STAMP, OUTSIDE
from recloop.storage import open_log


def row(user: str, item: str = "i01", **more: Any) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "event_type": "purchase", **more}


JSON = {"Content-Type": "application/json"}


def send(client: httpx.Client, body: Any, **headers: str) -> httpx.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post("/v1/events", content=data, headers={**JSON, **headers})


def statuses(answer: httpx.Response) -> list[str]:
    return [one["status"] for one in answer.json()["rows"]]


def in_log(server: Any, user: str) -> list[dict[str, Any]]:
    log = open_log("sqlite:///store/log.db", server.errors.parent)
    rows = log.events(user).to_dicts()
    log.close()
    return rows


def test_post_events_order_lines_with_one_timestamp_are_all_accepted(client: httpx.Client, user: str) -> None:
    order = [row(user, f"i{n:02}", event_type="transaction", timestamp=1_716_000_000) for n in range(14)]
    assert send(client, order).json()["accepted"] == 14
    assert statuses(send(client, order[:1])) == ["accepted"], "one line of that order, posted again alone"


def test_post_events_accepts_an_object_an_array_and_json_lines(client: httpx.Client, user: str) -> None:
    answer = send(client, row(user, event_id=f"{user}-1"))
    assert answer.status_code == 200
    assert answer.json() == {
        "accepted": 1, "duplicate": 0, "conflict": 0, "quarantined": 0, "rejected": 0,
        "rows": [{"event_id": f"{user}-1", "status": "accepted", "reason": None}],
    }  # fmt: skip
    assert statuses(send(client, [row(user, "i02"), row(user, "i03")])) == ["accepted"] * 2
    lines = b"\n".join(json.dumps(row(user, f"i{n:02}")).encode() for n in range(4, 7)) + b"\n\n"
    assert statuses(send(client, lines)) == ["accepted"] * 3
    assert statuses(send(client, lines, **{"Content-Type": "application/x-ndjson"})) == ["accepted"] * 3
    assert client.get(f"/v1/users/{user}").json()["events"] == 9
    empty = send(client, [])
    assert (empty.status_code, empty.json()["rows"]) == (200, [])


def test_post_events_stores_the_row_as_sent(client: httpx.Client, server: Any, user: str) -> None:
    sent = row(
        user, "i 1", timestamp="2026-03-01T10:00:00.5+02:00", value=3, quantity=2.5, group_id="01", event_id=f"{user}-x",
        session_id="s", anonymous_id="an", placement="home", request_id="r", context={"b": [1, None], "a": "ü"},
    )  # fmt: skip
    assert send(client, sent).status_code == 200
    (kept,) = in_log(server, user)
    assert kept["timestamp"] == 1_772_352_000_500_000
    assert kept["context"] == '{"a":"ü","b":[1,null]}'
    same = (
        "item_id",
        "value",
        "quantity",
        "group_id",
        "event_id",
        "session_id",
        "anonymous_id",
        "placement",
        "request_id",
    )
    assert {name: kept[name] for name in same} == {name: sent[name] for name in same}
    assert kept["rule"] is None
    assert kept["received_at"] > kept["timestamp"]


def test_post_events_retry_is_duplicate_and_changed_content_is_conflict(client: httpx.Client, user: str) -> None:
    one = row(user, event_id=f"{user}-r", value=2)
    assert statuses(send(client, one)) == ["accepted"]
    again = send(client, one)
    assert (again.status_code, statuses(again)) == (200, ["duplicate"])  # a retry is recognised without a timestamp
    other = send(client, {**one, "value": 3})
    assert (other.status_code, statuses(other)) == (207, ["conflict"])
    assert other.json()["rows"][0]["reason"] == "this event_id was received before with other content"
    both = send(client, [row(user, "i05", event_id=f"{user}-s"), row(user, "i05", event_id=f"{user}-s")])
    assert statuses(both) == ["accepted", "duplicate"]
    assert client.get(f"/v1/users/{user}").json()["events"] == 2


def test_post_events_of_an_imported_row_is_duplicate(client: httpx.Client, server: Any) -> None:
    import_rows = (server.errors.parent / "events.csv").read_text().splitlines()
    names, first = import_rows[0].split(","), import_rows[1].split(",")
    old = {name: value for name, value in zip(names, first, strict=True) if value}
    assert statuses(send(client, old)) == ["duplicate"]
    assert statuses(send(client, {**old, "item_id": "other"})) == ["conflict"]


def test_post_events_rejects_each_bad_row_with_its_reason(client: httpx.Client, server: Any, user: str) -> None:
    bad: list[tuple[Any, str]] = [
        (row(1.5), "user_id=1.5: expected text or a whole number"),
        (row(True), "user_id=true: expected text or a whole number"),
        (row([1]), "user_id: expected `str | null`, got `array`"),
        (row(None), "no user_id"),
        (row(""), "no user_id"),
        (row(user, item_id=7.5), "item_id=7.5: expected text or a whole number"),
        ({"user_id": user, "item_id": "i01"}, "object missing required field `event_type`"),
        (
            row(user, timestamp=2**63),
            f"timestamp=9223372036854775808: expected {EXPECTED_FORMS}; {OUTSIDE}",
        ),
        (
            row(user, timestamp="soon"),
            f"timestamp=soon: expected {EXPECTED_FORMS}; {NOT_A_STAMP}",
        ),
        (row(user, timestamp=True), "timestamp: expected `int | float | str | null`, got `bool`"),
        (row(user, value="many"), "value: expected `float | null`, got `str`"),
        (row(user, event_id=0.5), "event_id=0.5: expected text or a whole number"),
        (row(user, colour="red"), "object contains unknown field `colour`"),
        (row(user, context=[1]), "context: expected `object | null`, got `array`"),
        (row(user, context={"n": 2**70}), "context: a whole number of more than 64 bits"),
        (5, "expected `object`, got `int`"),
        (None, "expected `object`, got `null`"),
        ([], "expected `object`, got `array`"),
    ]
    answer = send(client, [row(user, event_id=f"{user}-ok"), *[one for one, _ in bad], row(user, "i02")])
    assert answer.status_code == 207
    assert statuses(answer) == ["accepted", *["rejected"] * len(bad), "accepted"]
    assert [one["reason"] for one in answer.json()["rows"][1:-1]] == [reason for _, reason in bad]
    assert (answer.json()["accepted"], answer.json()["rejected"]) == (2, len(bad))
    assert len(in_log(server, user)) == 2
    alone = send(client, row(user, value="many", event_id="named"))
    assert (alone.status_code, alone.json()["rows"][0]["event_id"]) == (207, "named")


def test_post_events_keeps_ids_as_text(client: httpx.Client, user: str) -> None:
    ids = [" 1", "01", "1e5", "null", "a\nb", "1", "😀" * 64, "x" * 256]
    assert statuses(send(client, [row(user, one, group_id="g") for one in ids])) == ["accepted"] * len(ids)
    known = {event["item_id"] for event in client.get(f"/v1/users/{user}").json()["last_events"]}
    assert known == set(ids)


def test_post_events_rejects_a_bad_line_and_accepts_the_others(client: httpx.Client, user: str) -> None:
    good = json.dumps(row(user)).encode()
    for broken in (b"{", b'{"user_id": NaN}', b'{"user_id": "\xff"}', b'{"user_id": "\\ud800"}'):
        answer = send(client, b"\n".join([good, broken, good]))
        assert (answer.status_code, statuses(answer)) == (207, ["accepted", "rejected", "accepted"])
        assert answer.json()["rows"][1]["reason"].startswith("not JSON: ")
    alone = send(client, b"{nope\n", **{"Content-Type": "application/x-ndjson"})
    assert (alone.status_code, statuses(alone)) == (207, ["rejected"])


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b"nope", b"NaN", b'{"user_id": NaN}', b'[{"value": Infinity}]', b'[{"value": 1e999}]',
        b'[{"user_id": "\\ud800", "item_id": "i", "event_type": "x"}]', b'[{"user_id": "\\udc00\\ud800"}]',
        b'[{"user_id": "\xff"}]', b'[{"user_id": "\xed\xa0\x80"}]', b"[" * 5000 + b"]" * 5000, b"[1] 2", b"{'a': 1}",
        b"\x1f\x8b\x08\x00",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/events", "/v1/items", "/v1/users"])
def test_post_body_that_is_not_json_is_400_and_stores_nothing(client: httpx.Client, path: str, body: bytes) -> None:
    before = client.get("/v1/status").json()["last_seq"]
    answer = client.post(path, content=body, headers=JSON)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["field"], error["expected"]) == (
        "not_json",
        "body",
        "JSON in UTF-8, without NaN or Infinity",
    )
    assert client.get("/v1/status").json()["last_seq"] == before


@pytest.mark.parametrize("body", [b"5", b'"text"', b"null", b"true"])
def test_post_events_json_without_rows_is_422(client: httpx.Client, body: bytes) -> None:
    assert client.post("/v1/events", content=body, headers=JSON).status_code == 422


def test_post_events_with_1001_rows_is_422(client: httpx.Client, server: Any, user: str) -> None:
    rows = [row(user, f"i{n}", group_id="g") for n in range(1000)]
    assert send(client, rows).json()["accepted"] == 1000
    for body in (
        json.dumps([*rows, rows[0]]).encode(),
        b"\n".join(json.dumps(one).encode() for one in [*rows, rows[0]]),
    ):
        answer = send(client, body)
        assert answer.status_code == 422
        assert answer.json()["error"]["expected"] == "at most 1000 rows"
    assert len(in_log(server, user)) == 1000


def parts_of(size: int) -> Iterator[bytes]:
    for _ in range(size // 65536):
        yield b" " * 65536


def test_post_events_body_over_5_mib_is_413(client: httpx.Client) -> None:
    for content in (b" " * 10_000_000, parts_of(10_000_000)):  # announced, and in chunks
        answer = client.post("/v1/events", content=content, headers=JSON)
        assert answer.status_code == 413
        error = answer.json()["error"]
        assert error.pop("message").endswith("bytes or more; expected at most 5242880 bytes")
        assert error == {"code": "too_large", "field": "body", "expected": "at most 5242880 bytes"}
    just = b"[" + b" " * (5 * 1024 * 1024 - 2) + b"]"
    assert client.post("/v1/events", content=just, headers=JSON).status_code == 200


@pytest.mark.parametrize("framing", ["Content-Length: 10000000", "Transfer-Encoding: chunked"])
def test_post_events_large_body_is_413_before_it_is_read(server: Any, framing: str) -> None:
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80), timeout=60) as raw:
        head = "POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        raw.sendall(f"{head}{framing}\r\n\r\n".encode())
        if "chunked" in framing:  # six of ten megabytes, then silence
            raw.sendall(b"".join(b"100000\r\n" + b" " * 0x100000 + b"\r\n" for _ in range(6)))
        assert raw.recv(100).startswith(b"HTTP/1.1 413 ")


def test_post_events_quarantines_a_burst_and_accepts_a_basket(client: httpx.Client, server: Any, user: str) -> None:
    clicks = [row(user, f"i{n:02}", event_type="click", timestamp=1_767_312_000 + n / 100) for n in range(15)]
    answer = send(client, clicks[:4])
    answers = statuses(answer) + statuses(send(client, clicks[4:]))  # the rule counts rows of earlier requests too
    assert answers == ["accepted"] * 9 + ["quarantined"] * 6
    assert {one["rule"] for one in in_log(server, user)} == {None, "burst"}
    basket = [row(user, f"i{n:02}", group_id="b", timestamp=1_767_312_000) for n in range(15)]
    assert statuses(send(client, basket)) == ["accepted"] * 15
    odd = send(client, row(user, quantity=0))
    assert (odd.status_code, statuses(odd)) == (207, ["quarantined"])
    assert odd.json()["rows"][0]["reason"] == "rule keep: the row does not meet clean.keep"
    assert client.get(f"/v1/users/{user}").json()["events"] == 15


def test_post_events_late_rows_count_with_imported_rows_as_a_burst(
    client: httpx.Client, server: Any, user: str
) -> None:
    text = (server.errors.parent / "events.csv").read_text().splitlines()
    names = text[0].split(",")
    old = [dict(zip(names, line.split(","), strict=True)) for line in text[1:]]
    click = next(one for one in old if one["event_type"] == "click")
    begun = datetime.fromisoformat(click["timestamp"])
    stamps = [(begun + timedelta(milliseconds=n)).isoformat() for n in range(11)]
    late = [row(click["user_id"], f"i{n:02}", event_type="click", timestamp=stamps[n]) for n in range(1, 11)]
    assert statuses(send(client, late)) == ["accepted"] * 8 + ["quarantined"] * 2


def test_post_item_with_a_value_of_another_type_says_so_and_breaks_no_filter(client: httpx.Client, user: str) -> None:
    url = "/v1/recommend/u001"
    before = client.get("/v1/status").json()["mistyped_items"]
    reply = client.post("/v1/items", json={"item_id": f"evil-{user}", "attributes": {"price": "n/a"}})
    assert reply.status_code == 200
    assert reply.json()["rows"][0]["reason"] == "price: text, the live bundle has number; filters read it as missing"
    lists = client.get(url, params={"filter": "price < 5 AND category <> 'tea'"})
    assert (lists.status_code, lists.json()["degraded"]) == (200, [])
    assert client.get("/v1/status").json()["mistyped_items"] == before + 1
    assert f"recloop_mistyped_items_total {before + 1:.1f}" in client.get("/metrics").text


def test_post_items_and_users_replaces_the_attributes(client: httpx.Client, user: str) -> None:
    item = f"item-{user}"
    answer = client.post("/v1/items", json=[{"item_id": item, "attributes": {"a": 1, "b": 2}}, {"item_id": ""}])
    assert answer.status_code == 207
    assert answer.json() == {
        "accepted": 1, "rejected": 1,
        "rows": [
            {"item_id": item, "status": "accepted", "reason": None},
            {"item_id": "", "status": "rejected", "reason": "item_id: expected `str` of length >= 1"},
        ],
    }  # fmt: skip
    assert client.post("/v1/items", json={"item_id": item, "attributes": {"b": 3}}).status_code == 200
    assert client.get(f"/v1/items/{item}").json() == {
        "item_id": item, "attributes": {"b": 3}, "hidden": False, "state": "warm",
    }  # fmt: skip
    for wrong in ({"item_id": item, "hidden": 1}, {"item_id": item, "attributes": []}, {"item_id": item, "name": "x"}):
        assert client.post("/v1/items", json=wrong).json()["rejected"] == 1
    assert client.get(f"/v1/items/{item}").json()["attributes"] == {"b": 3}
    assert client.post("/v1/users", json={"user_id": user, "attributes": {"age": "60+"}}).json()["accepted"] == 1
    assert client.post("/v1/users", json={"user_id": user}).json()["accepted"] == 1
    assert client.get(f"/v1/users/{user}").json()["attributes"] == {}
    assert client.post("/v1/users", json={"user_id": 0.5}).json()["rows"][0]["user_id"] is None


def test_error_responses_share_one_schema(client: httpx.Client) -> None:
    for method, path, status in (
        ("GET", "/v2/recommend/u", 404), ("GET", "/v1/events", 405), ("PUT", "/v1/items/i01", 405),
        ("POST", "/v1/recommend/u", 405), ("GET", "/v1/events/", 405), ("GET", "/v1/items/none", 404),
    ):  # fmt: skip
        answer = client.request(method, path, headers=JSON)
        assert answer.status_code == status, path
        assert set(answer.json()["error"]) == {"code", "message", "field", "expected"}
        assert answer.headers["content-type"] == "application/json"
        if status == 405:
            assert answer.headers["allow"]


def test_project_folder_after_requests_has_no_temporary_files(client: httpx.Client, server: Any) -> None:
    folder: Path = server.errors.parent
    assert not list(folder.rglob("*.tmp")) + list(folder.rglob(".snap*"))
