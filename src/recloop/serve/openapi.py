"""The OpenAPI document of the service, made from the structs that its answers are made of."""

from __future__ import annotations

from typing import Any

import msgspec

from recloop import __version__
from recloop.serve import shapes

QUERY: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("n", {"type": "integer", "minimum": 1, "maximum": 1000}, "length of the list; default: the placement's k"),
    ("placement", {"type": "string", "default": "home"}, "a placement of the live bundle"),
    ("exclude", {"type": "string"}, "item ids that must not be shown, with commas between them"),
    ("filter", {"type": "string"}, "a condition over item fields, such as category = 'tea' AND price < 5"),
    ("properties", {"type": "string"}, "item attributes to add to each place, with commas between them"),
    ("item", {"type": "string"}, "what a list about an item is about (a placement whose list is similar)"),
    ("session_id", {"type": "string"}, "recorded with the decision"),
    ("anonymous_id", {"type": "string"}, "recorded with the decision"),
)
ERRORS = {
    "400": "not JSON",
    "404": "not found",
    "409": "done, and the answer is no",
    "413": "too large",
    "415": "not sent as JSON",
    "422": "a parameter is wrong",
    "503": "not now",
}


def document() -> dict[str, Any]:
    """The whole document, OpenAPI 3.1."""
    _, components = msgspec.json.schema_components(
        [shape for shape in vars(shapes).values() if isinstance(shape, type) and issubclass(shape, msgspec.Struct)],
        ref_template="#/components/schemas/{name}",
    )
    user_id = {"name": "user_id", "required": True, "schema": {"type": "string", "minLength": 1}}
    query = [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": text}
        for name, schema, text in QUERY
    ]
    item_id = {"name": "item_id", "in": "path", "required": True, "schema": user_id["schema"]}
    whom = {**user_id, "in": "query", "required": False, "description": "whose filters and history of dislikes hold"}
    about = [whom, *(one for one in query if one["name"] != "item")]
    recommend = _get("A list for a user, known or not", "RecommendAnswer", "400", "422")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "recloop",
            "version": __version__,
            "description": "Recommendations, and the log they live on.",
        },
        "paths": {
            "/v1/recommend/{user_id}": {"get": {**recommend, "parameters": [{**user_id, "in": "path"}, *query]}},
            "/v1/recommend": {"get": {**recommend, "parameters": [{**user_id, "in": "query"}, *query]}},
            "/v1/events": {"post": _post("Events; durable when answered", "EventRow", "EventsAnswer", lines=True)},
            "/v1/items": {
                "post": _post("Items, new or changed; in force at the next request", "ItemRow", "ItemsAnswer")
            },
            "/v1/users": {
                "post": _post("Users, new or changed; in force at the next request", "UserRow", "UsersAnswer")
            },
            "/v1/items/{item_id}": {"get": _by_id("item_id", "An item as it is now", "ItemAnswer")},
            "/v1/items/{item_id}/similar": {
                "get": {
                    **_get("A list about an item", "RecommendAnswer", "404", "422"),
                    "parameters": [item_id, *about],
                }
            },
            "/v1/users/{user_id}": {"get": _by_id("user_id", "A user as known now", "UserAnswer")},
            "/v1/health/live": {"get": _get("The loop turns", "HealthAnswer")},
            "/v1/health/ready": {"get": _get("This process answers", "HealthAnswer", "503")},
            **{
                f"/v1/admin/{verb}": {"post": _move(summary)}
                for verb, summary in (
                    ("promote", "A bundle one step on, or to live where it is earned"),
                    ("rollback", "The bundle that was live before"),
                    ("refuse", "A bundle out for good"),
                )
            },
            "/v1/status": {"get": _get("What is live, since when, and how its lists are", "StatusAnswer")},
            "/metrics": {"get": _text("Health by window, variant and placement, for Prometheus")},
        },
        "components": {"schemas": components},
    }


def _move(summary: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": _ref("MoveRow")},
        "responses": {
            "200": {"description": summary, "content": _ref("MoveAnswer")},
            **_errors("400", "404", "409", "413", "415", "422"),
        },
    }


def _ref(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _errors(*statuses: str) -> dict[str, Any]:
    return {status: {"description": ERRORS[status], "content": _ref("ErrorAnswer")} for status in statuses}


def _get(summary: str, answer: str, *errors: str) -> dict[str, Any]:
    made = _errors(*errors)
    if answer == "HealthAnswer" and errors:
        made = {"503": {"description": "not ready, with the reason", "content": _ref(answer)}}
    return {"summary": summary, "responses": {"200": {"description": summary, "content": _ref(answer)}, **made}}


def _text(summary: str) -> dict[str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}}}
    return {"summary": summary, "responses": {"200": {"description": summary, "content": content}}}


def _by_id(name: str, summary: str, answer: str) -> dict[str, Any]:
    parameter = {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {**_get(summary, answer, "404"), "parameters": [parameter]}


def _post(summary: str, row: str, answer: str, lines: bool = False) -> dict[str, Any]:
    one = {"$ref": f"#/components/schemas/{row}"}
    rows = {"oneOf": [one, {"type": "array", "items": one, "maxItems": 1000}]}
    content: dict[str, Any] = {"application/json": {"schema": rows}}
    if lines:
        content["application/x-ndjson"] = {"schema": {"type": "string", "description": "one object a line"}}
    mixed = {"description": "as 200, where some row was not accepted", "content": _ref(answer)}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": {"description": summary, "content": _ref(answer)},
            "207": mixed,
            **_errors("400", "413", "422", "503"),
        },
    }
