"""Keys of ``[serve.limits]``: each with its status, the limit and the found value."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import httpx
import pytest
import servers

from recloop.config import Limits
from recloop.errors import UserError
from recloop.project import Project
from recloop.serve.app import create
from recloop.settings import build

EVENT = {"user_id": "u", "item_id": "i01", "event_type": "purchase"}
JSON = {"Content-Type": "application/json"}
PACKED = gzip.compress(json.dumps([EVENT] * 30).encode())


def limited(project: Project, **limits: Any) -> Any:
    """Application of a project with these limits."""
    app = create(project)
    app.state.service.live.use(project.config.serve.model_copy(update={"limits": Limits(**limits)}))
    return app


def ask(app: Any, method: str, path: str, **arguments: Any) -> httpx.Response:
    async def whole() -> httpx.Response:
        async with servers.local(app) as client:
            return await client.request(method, path, **arguments)

    try:
        return asyncio.run(whole())
    finally:
        app.state.service.close()


@pytest.mark.parametrize(
    ("limits", "method", "path", "arguments", "status", "messages"),
    [
        ({"body_bytes": 1_024}, "POST", "/v1/events", {"json": [EVENT] * 30}, 413, ["at most 1024 bytes", "bytes or more"]),
        ({"body_bytes": 1_024}, "POST", "/v1/users", {"json": [EVENT] * 30}, 413, ["at most 1024 bytes"]),
        ({"unpacked_bytes": 1_024}, "POST", "/v1/events", {"content": PACKED}, 413, ["unpacked body has 1025", "at most 1024"]),
        ({"unpacked_bytes": 1_024}, "POST", "/v1/items", {"content": PACKED}, 413, ["unpacked body has 1025", "at most 1024"]),
        ({"rows": 2}, "POST", "/v1/events", {"json": [EVENT] * 3}, 422, ["3 rows", "at most 2"]),
        ({"rows": 2}, "POST", "/v1/items", {"json": [{"item_id": "x"}] * 3}, 422, ["3 rows", "at most 2"]),
        ({"id_bytes": 3}, "POST", "/v1/events", {"json": EVENT}, 207, ["event_type: 8 bytes; expected at most 3 bytes"]),
        ({"id_bytes": 3}, "POST", "/v1/users", {"json": {"user_id": "abcd"}}, 207, ["user_id: 4 bytes; expected at most 3"]),
        ({"attributes": 1}, "POST", "/v1/items", {"json": {"item_id": "x", "attributes": {"a": 1, "b": 2}}}, 207, ["2 names; expected at most 1"]),
        ({"attribute_bytes": 10}, "POST", "/v1/items", {"json": {"item_id": "x", "attributes": {"a": "12345"}}}, 207, ["attributes: 13 bytes; expected at most 10"]),
        ({"attribute_bytes": 10}, "PATCH", "/v1/items/i01", {"json": {"attributes": {"a": "1" * 99}}}, 422, ["bytes; expected at most 10"]),
        ({"attribute_bytes": 10}, "POST", "/v1/events", {"json": EVENT | {"context": {"a": "12345"}}}, 207, ["context: 13 bytes; expected at most 10"]),
        ({"depth": 2}, "POST", "/v1/events", {"json": EVENT | {"context": {"a": [[1]]}}}, 207, ["context: 3 levels; expected at most 2"]),
        ({"depth": 2}, "POST", "/v1/items", {"json": {"item_id": "x", "attributes": {"a": [[1]]}}}, 207, ["attributes: 3 levels; expected at most 2"]),
        ({"filter_comparisons": 1}, "GET", "/v1/recommend/u?filter=item_id='a' OR item_id='b'", {}, 422, ["at most 1 comparisons, found 2"]),
        ({"filter_words": 4}, "GET", "/v1/recommend/u?filter=item_id IN ('a','b')", {}, 422, ["at most 4 words, values and signs, found 7"]),
        ({"filter_words": 4}, "GET", "/v1/items/i01/similar?filter=item_id IN ('a','b')", {}, 422, ["at most 4 words"]),
        ({"properties": 1}, "GET", "/v1/recommend/u?properties=a,b", {}, 422, ["at most 1 names, found 2"]),
    ],
)  # fmt: skip
def test_value_above_a_limit_is_refused_with_limit_and_value(
    project: Project,
    limits: dict[str, Any],
    method: str,
    path: str,
    arguments: dict[str, Any],
    status: int,
    messages: list[str],
) -> None:
    if "content" in arguments:
        arguments = {**arguments, "headers": {**JSON, "Content-Encoding": "gzip"}}
    answer = ask(limited(project, **limits), method, path, **arguments)
    assert answer.status_code == status
    for message in messages:
        assert message in answer.text


def test_gzip_body_is_stored_as_an_unpacked_one(project: Project) -> None:
    headers = {**JSON, "Content-Encoding": "gzip"}
    answer = ask(create(project), "POST", "/v1/events", content=PACKED, headers=headers)
    assert (answer.status_code, answer.json()["accepted"]) == (200, 30)


def test_values_at_the_limits_are_accepted(project: Project) -> None:
    limits = {"rows": 1, "id_bytes": 8, "attribute_bytes": 13, "depth": 2, "attributes": 1}
    row = EVENT | {"context": {"a": "12345"}}
    answer = ask(limited(project, **limits), "POST", "/v1/events", json=[row])
    assert (answer.status_code, answer.json()["accepted"]) == (200, 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [("id_bytes", 513), ("attributes", 65), ("rows", 0), ("head_seconds", 0), ("body_bytes", "5 MB"), ("client_rate", -1), ("unheard_of", 1)],
)  # fmt: skip
def test_invalid_limit_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        build({"serve": {"limits": {key: value}}})
    assert caught.value.name == f"serve.limits.{key}"
