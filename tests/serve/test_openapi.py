"""The document is about the service as it is: every route, every answer, no dangling name."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from recloop.serve import shapes
from recloop.serve.app import build


@pytest.fixture
def document(client: httpx.Client) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def test_every_route_is_in_it_and_no_other(document: dict[str, Any]) -> None:
    class Nothing:
        pass

    app = build(Nothing())  # type: ignore[arg-type]
    routes = {
        (re.sub(r":path}", "}", route.path), method.lower())
        for route in app.routes
        for method in route.methods - {"HEAD"}
        if route.path != "/openapi.json"
    }
    documented = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert routes == documented


def test_every_name_is_defined(document: dict[str, Any]) -> None:
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert names <= set(document["components"]["schemas"])
    assert {"EventRow", "EventsAnswer", "RecommendAnswer", "ErrorAnswer"} <= names


def test_rows_say_what_they_need(document: dict[str, Any]) -> None:
    event = document["components"]["schemas"]["EventRow"]
    assert event["required"] == ["user_id", "item_id", "event_type"]
    assert event["additionalProperties"] is False
    assert event["properties"]["user_id"] == {"type": "string", "minLength": 1}


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/recommend/u14", shapes.RecommendAnswer),
        ("/v1/items/i01", shapes.ItemAnswer),
        ("/v1/users/u14", shapes.UserAnswer),
        ("/v1/status", shapes.StatusAnswer),
        ("/v1/nothing", shapes.ErrorAnswer),
    ],
)
def test_an_answer_has_the_keys_of_its_shape(
    client: httpx.Client, document: dict[str, Any], path: str, shape: type
) -> None:
    schema = document["components"]["schemas"][shape.__name__]
    assert set(client.get(path).json()) == set(schema["properties"])
