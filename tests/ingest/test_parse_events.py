"""Bodies decoded at once give the events of the rows checked one by one."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recloop.config import Data
from recloop.features import timestamp_text
from recloop.features.timestamp_text import parse_timestamp
from recloop.ingest import parse
from recloop.ingest.body import BadRequest, Rejected, parse_rows
from recloop.records import Event

NOW = 1_795_010_112_000_000
TEXTS = st.one_of(
    st.sampled_from(["a", " a ", "", " ", "\t", "\u00a0", "1.0", "null", "é", '"', "\\", "\x00"]), st.text()
)
VALUES = st.one_of(TEXTS, st.none(), st.integers(), st.floats(), st.booleans(), st.lists(st.integers(), max_size=1))
TIMES = st.one_of(
    VALUES,
    st.datetimes(datetime.fromisoformat("1969-01-01"), datetime.fromisoformat("2102-01-01")).map(
        lambda time: f"{time.isoformat()}Z"
    ),
    st.datetimes().map(lambda time: f"{time.isoformat(' ', 'milliseconds')}+02:00"),
    st.sampled_from([2e9, 1_700_000_000, 1_700_000_000_000, 1_700_000_000_000_000, 20250131, 1e30, -5]),
)
ROWS = st.fixed_dictionaries(
    {"item_id": st.just("i"), "event_type": st.just("view")},
    optional={
        "user_id": TEXTS, "timestamp": TIMES, "value": VALUES, "quantity": st.floats(), "group_id": TEXTS,
        "event_id": VALUES, "session_id": TEXTS, "placement": TEXTS, "request_id": TEXTS, "anonymous_id": TEXTS,
        "context": st.one_of(st.none(), st.dictionaries(st.text(), st.integers(), max_size=2)),
    },
)  # fmt: skip
SETTINGS = (Data(), Data(guests="reject", missing_users=("a",)), Data(id_form="integer", time_unit="order"))


def one_by_one(body: bytes, content_type: str, data: Data) -> list[Event | Rejected] | str:
    try:
        rows = parse_rows(body, content_type)
    except BadRequest as error:
        return error.code
    return [without_text(parse.check_event(row, NOW, data)) for row in rows]


def at_once(body: bytes, content_type: str, data: Data) -> list[Event | Rejected] | str:
    try:
        checked = parse.parse_events(body, content_type, NOW, data)
    except BadRequest as error:
        return error.code
    return [without_text(row) for row in checked]


def without_text(row: Event | Rejected) -> Event | Rejected:
    return Rejected(row.ids, row.reason) if isinstance(row, Rejected) else row


@given(st.lists(ROWS, max_size=3), st.sampled_from(SETTINGS), st.sampled_from(["", "application/x-ndjson"]))
def test_parse_events_equals_the_check_of_each_row(rows: list[dict[str, Any]], data: Data, kind: str) -> None:
    lines = [json.dumps(row) for row in rows]
    body = "\n".join(lines) if kind else f"[{','.join(lines)}]"
    assert repr(at_once(body.encode(), kind, data)) == repr(
        one_by_one(body.encode(), kind, data)
    )  # NaN differs from NaN


@pytest.mark.parametrize(
    "body",
    [
        json.dumps([{"user_id": "\u00e9" * 129, "item_id": "i", "event_type": "x"}]).encode(),
        json.dumps([{"user_id": "\u00e9" * 129, "item_id": "i", "event_type": "x"}], ensure_ascii=False).encode(),
        b"", b"[]", b"[1]", b"{", b"[{}]", b'{"item_id":"i"}', b'{"user_id":"u","item_id":"i","event_type":"x","more":1}',
        b'{"user_id":"u","item_id":"i","event_type":"x"}\n{"user_id":"u","item_id":"j","event_type":"x"}',
        b'[{"user_id":"u","item_id":"i","event_type":"x","value":1e999}]', b'{"item_id":"\xff"}', b'{"item_id":"\\ud800"}',
        b'[{"user_id":"u","item_id":"i","event_type":"x","value":123456789012345678901234567890}]',
        b'{"user_id":"u","item_id":"i","event_type":"x","context":{"n":123456789012345678901234567890}}',
        b'{"user_id":"u","item_id":"i","event_type":"x","context":' + b'{"a":' * 40 + b"1" + b"}" * 41,
        b'{"user_id":"u","item_id":"i","event_type":"x","context":' + b'{"a":' * 9_000 + b"1" + b"}" * 9_001,
        b'[{"user_id":"u","item_id":"i","event_type":"x"}' + b',{"user_id":"u","item_id":"i","event_type":"x"}' * 1_000 + b"]",
        b'{"user_id":"' + b"u" * 1_000_000 + b'","item_id":"i","event_type":"x"}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["application/json", "application/x-ndjson; charset=utf-8"])
def test_parse_events_of_a_broken_body_equals_the_check_of_each_row(body: bytes, kind: str) -> None:
    assert at_once(body, kind, Data()) == one_by_one(body, kind, Data())


@pytest.mark.parametrize(
    "name",
    [
        "user_id",
        "item_id",
        "event_type",
        "group_id",
        "event_id",
        "session_id",
        "anonymous_id",
        "placement",
        "request_id",
    ],
)
def test_parse_events_of_a_long_id_or_name_rejects_its_row(name: str) -> None:
    row = {"user_id": "u", "item_id": "i", "event_type": "x"}
    body = json.dumps([row, row | {name: "\u00e9" * 256}, row | {name: "\u00e9" * 256 + "a"}]).encode()
    first, longest, rejected = parse.parse_events(body, "", NOW, Data())
    assert isinstance(first, Event)
    assert isinstance(longest, Event)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == f"{name}: 513 bytes; expected at most 512 bytes"
    assert name not in rejected.ids
    (with_nul,) = parse.parse_events(json.dumps([row | {name: "a\0b"}]).encode(), "", NOW, Data())
    assert isinstance(with_nul, Rejected)
    assert with_nul.reason == f"{name}: expected a text without the character NUL"


def test_check_item_rejects_too_many_attributes_and_long_names() -> None:
    def reason(**row: Any) -> str:
        checked = parse.check_item({"item_id": "i", **row}, NOW, Data(), {})
        return checked.reason if isinstance(checked, Rejected) else ""

    assert reason(attributes={f"a{n}": n for n in range(64)}) == ""
    assert reason(attributes={f"a{n}": n for n in range(65)}) == "attributes: 65 names; expected at most 64"
    long_name = "attributes: a name of 513 bytes; expected at most 512 bytes"
    assert reason(attributes={"a" * 513: 1}) == long_name
    assert reason(item_id="i" * 513) == "item_id: 513 bytes; expected at most 512 bytes"
    user = parse.check_user({"user_id": "u", "attributes": {"a" * 513: 1}}, NOW, Data(), {})
    assert isinstance(user, Rejected)
    assert user.reason == long_name


def test_parse_events_of_plain_rows_does_not_check_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"user_id": "u", "item_id": "i", "event_type": "x", "value": 1, "timestamp": "2026-11-18T13:15:12Z"}
    body = json.dumps([row, row]).encode()
    expected = one_by_one(body, "", Data())
    monkeypatch.setattr(parse, "check_event", None)
    assert at_once(body, "", Data()) == expected


@given(TIMES, st.sampled_from(["auto", "iso", "s", "ms", "days", "order"]))
def test_parse_timestamp_of_common_forms_equals_the_general_rules(value: Any, unit: str) -> None:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return
    data = Data(time_unit=unit)  # type: ignore[arg-type]
    stamp = timestamp_text._common_form(value, unit)
    if stamp is None:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timestamp_text, "_common_form", lambda *_: None)
        assert parse_timestamp(value, data) == stamp
