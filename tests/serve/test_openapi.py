"""The OpenAPI document: every route, every response schema, no undefined reference."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from servers import Server

from recloop.project import open_project
from recloop.serve import schemas
from recloop.serve.app import build
from recloop.serve.live_config import LiveConfig


def test_openapi_paths_equal_the_routes(openapi_document: dict[str, Any], server: Server) -> None:
    project = open_project(server.root)
    service: Any = SimpleNamespace(project=project, token="", live=LiveConfig(project.config.serve))
    app = build(service)
    routes = {
        (re.sub(r":path}", "}", route.path), method.lower())
        for route in app.routes
        for method in route.methods - {"HEAD"}
        if route.include_in_schema and route.path != "/openapi.json"
    }
    documented = {(path, method) for path, methods in openapi_document["paths"].items() for method in methods}
    assert routes == documented


def test_openapi_operations_document_headers_and_405(openapi_document: dict[str, Any]) -> None:
    headers = openapi_document["components"]["headers"]
    for methods in openapi_document["paths"].values():
        for operation in methods.values():
            assert "X-Request-Id" in {one["name"] for one in operation["parameters"]}
            responses = operation["responses"]
            for status, name in (("405", "Allow"), ("503", "Retry-After"), ("200", "X-Request-Id")):
                assert name in responses[status]["headers"]
            named = {name for response in responses.values() for name in response["headers"]}
            assert named <= set(headers)


BODIES: tuple[dict[str, Any], ...] = (
    {}, {"json": {}}, {"content": b"x", "headers": {"Content-Type": "text/plain"}},
)  # fmt: skip


def paths(document: dict[str, Any]) -> Iterator[tuple[str, set[str]]]:
    """Each path of the document with names in place of its parameters, and its methods."""
    for path, operations in document["paths"].items():
        methods = {method.upper() for method in operations}
        if path.endswith("/similar"):  # also the path of an item whose id ends so
            methods |= {"PATCH", "DELETE"}
        yield re.sub(r"\{\w+\}", "none", path), methods | ({"HEAD"} if "GET" in methods else set())


def test_other_methods_are_405_and_name_those_of_the_path(
    client: httpx.Client, openapi_document: dict[str, Any]
) -> None:
    """Whatever the content type of the body is."""
    n_asked = 0
    for path, methods in paths(openapi_document):
        for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - methods:
            for body in BODIES:
                answer = client.request(method, path, **body)
                n_asked += 1
                assert answer.status_code == 405, (method, path, body)
                assert set(answer.headers["Allow"].split(", ")) == methods, (method, path)
                if method != "HEAD":
                    error = answer.json()["error"]
                    assert error["code"] == "method_not_allowed"
                    assert error["expected"] == f"one of {answer.headers['Allow']}"
    assert n_asked > 100


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/xml", "application/x-www-form-urlencoded", "application/jsonx"]
)
def test_writes_of_other_content_types_are_415(
    client: httpx.Client, openapi_document: dict[str, Any], content_type: str
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    n_asked = 0
    for path, methods in paths(openapi_document):
        for method in methods & {"POST", "PATCH"}:
            answer = client.request(method, path, content=b"{}", headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (415, "not_json"), (method, path)
            n_asked += 1
    assert n_asked >= 10


def test_openapi_reject_requires_a_reason(openapi_document: dict[str, Any], client: httpx.Client) -> None:
    schema = openapi_document["components"]["schemas"]["RejectRequest"]
    assert schema["required"] == ["bundle", "reason"]
    assert schema["properties"]["reason"]["minLength"] == 1
    answer = client.post("/v1/admin/reject", json={"bundle": "none", "reason": ""})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "reason")
    move = openapi_document["components"]["schemas"]["ReleaseRequest"]["properties"]["to"]
    assert move["enum"] == ["", "shadow", "experiment", "live"]


def test_openapi_references_are_defined(openapi_document: dict[str, Any]) -> None:
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(openapi_document)))
    assert names <= set(openapi_document["components"]["schemas"])
    assert {"EventIn", "EventsResponse", "RecommendResponse", "ErrorResponse"} <= names


def test_openapi_event_schema_names_required_fields(openapi_document: dict[str, Any]) -> None:
    event = openapi_document["components"]["schemas"]["EventIn"]
    assert event["required"] == ["item_id", "event_type"], "a guest basket has no user"
    assert event["additionalProperties"] is False
    assert event["properties"]["item_id"] == {"type": "string", "minLength": 1, "maxLength": 512}


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/recommend/u14", schemas.RecommendResponse),
        ("/v1/items/i01", schemas.ItemResponse),
        ("/v1/users/u14", schemas.UserResponse),
        ("/v1/status", schemas.StatusResponse),
        ("/v1/nothing", schemas.ErrorResponse),
    ],
)
def test_response_keys_equal_the_required_ones_of_the_schema(
    client: httpx.Client, openapi_document: dict[str, Any], path: str, shape: type
) -> None:
    schema = openapi_document["components"]["schemas"][shape.__name__]
    assert set(client.get(path).json()) == set(schema["required"])


def test_openapi_operation_ids_are_unique(openapi_document: dict[str, Any]) -> None:
    names = [one["operationId"] for path in openapi_document["paths"].values() for one in path.values()]
    assert len(names) == len(set(names)) == 24
    assert all(re.fullmatch("[a-z_]+", name) for name in names)


def test_openapi_parameters_equal_those_of_the_routes(openapi_document: dict[str, Any]) -> None:
    """The documented parameters and defaults are those that the routes read."""
    similar = {
        one["name"]: one for one in openapi_document["paths"]["/v1/items/{item_id}/similar"]["get"]["parameters"]
    }
    assert similar["placement"]["schema"]["default"] == "similar"
    assert "item" not in similar
    assert openapi_document["components"]["schemas"]["RecommendResponse"]["properties"]["items"]["items"] == {
        "$ref": "#/components/schemas/SlotResponse"
    }


ROUTES = [
    ("GET", "/v1/recommend/u14"), ("GET", "/v1/recommend"), ("GET", "/v1/items/i01/similar"), ("GET", "/v1/items/i01"),
    ("GET", "/v1/users/u14"), ("GET", "/v1/health/live"), ("GET", "/v1/health/ready"), ("GET", "/v1/status"),
    ("GET", "/metrics"), ("GET", "/openapi.json"), ("POST", "/v1/events"), ("POST", "/v1/items"), ("POST", "/v1/users"),
    ("POST", "/v1/admin/reload"), ("POST", "/v1/admin/promote"), ("POST", "/v1/admin/rollback"), ("POST", "/v1/admin/reject"),
    ("POST", "/v1/admin/replay"), ("POST", "/v1/admin/forget"), ("DELETE", "/v1/users/u14"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_query_parameter_unknown_is_422(client: httpx.Client, method: str, path: str) -> None:
    body = {"json": []} if method == "POST" else {}
    answer = client.request(method, path, params={"unheard_of": "1"}, **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["field"]) == (422, "unknown_parameter", "unheard_of")
    lists = "n, placement, properties" in error["expected"]
    assert lists == (path in {"/v1/recommend/u14", "/v1/recommend", "/v1/items/i01/similar"})
    assert lists or error["expected"] == "no query parameters"


@pytest.mark.parametrize(
    ("path", "name", "nearest"),
    [
        ("/v1/recommend/u14", "placment", "placement"), ("/v1/recommend/u14", "N", None),
        ("/v1/recommend/u14", "items", "item"), ("/v1/recommend?user_id=u14", "user", "user_id"),
        ("/v1/recommend/u14", "filters", "filter"), ("/v1/items/i01/similar", "user-id", "user_id"),
        ("/v1/items/i01/similar", "item", None), ("/v1/recommend/u14", "k", None), ("/v1/recommend/u14", "", None),
        ("/v1/recommend/u14", "x" * 5_000, None),
    ],
)  # fmt: skip
def test_query_parameter_misspelt_is_422_and_names_the_nearest(
    client: httpx.Client, path: str, name: str, nearest: str | None
) -> None:
    url = httpx.URL(path).copy_merge_params({name: "1"})
    error = client.get(url).json()["error"]
    assert error["field"] == name[:100]
    assert error["expected"].startswith(f"a known parameter; nearest: {nearest}" if nearest else "one of ")


def test_root_page_without_nicegui_names_the_extra(client: httpx.Client) -> None:
    """The server of these tests cannot import NiceGUI."""
    page = client.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert 'pip install "recloop[console]"' in page.text
