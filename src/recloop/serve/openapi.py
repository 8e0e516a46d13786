"""The OpenAPI document of the service, made from the structs of its answers and the parameters of its routes."""

from __future__ import annotations

import msgspec

from recloop import __version__
from recloop.ingest import parse
from recloop.ingest.parse import NDJSON
from recloop.json_object import JsonTree
from recloop.serve import query_parameters
from recloop.serve import schemas as messages
from recloop.serve.query_parameters import Parameter

ID = {"type": "string", "minLength": 1}
ERRORS = {
    "400": "not JSON, or not one Host header",
    "401": "the admin token is missing or wrong",
    "403": "from a page of another origin",
    "404": "not found",
    "409": "refused, with the gate and its threshold",
    "413": "too large",
    "415": "not sent as JSON",
    "421": "a Host that is not answered",
    "422": "a parameter or the body is wrong",
    "500": "a mistake of the service",
    "503": "not now; send it again",
}
ALWAYS = ("400", "403", "421", "422", "500")
"""Errors that every operation can answer."""
TOKEN = "admin_token"  # noqa: S105 - the name of a scheme
VERBS = {
    "promote": "Move a bundle one step on, or to live where that is earned",
    "rollback": "Bring back the bundle that was live before",
    "refuse": "Take a bundle out for good",
}


def document() -> JsonTree:
    """The whole document, OpenAPI 3.1."""
    _, schemas = msgspec.json.schema_components(
        [
            shape
            for shape in (*vars(parse).values(), *vars(messages).values())
            if isinstance(shape, type) and issubclass(shape, msgspec.Struct)
        ],
        ref_template="#/components/schemas/{name}",
    )
    schemas["RecommendResponse"]["properties"]["items"]["items"] = {"$ref": "#/components/schemas/SlotResponse"}
    schemas["SlotResponse"]["additionalProperties"] = True  # what ?properties= asked for
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "recloop",
            "version": __version__,
            "description": "Recommendations, and the log they live on.",
        },
        "paths": _paths(),
        "components": {
            "schemas": schemas,
            "securitySchemes": {TOKEN: {"type": "http", "scheme": "bearer", "description": "recloop token shows it"}},
        },
    }


def _paths() -> dict[str, JsonTree]:
    listed = "A list for a user, known or not"
    return {
        "/v1/recommend/{user_id}": _get(
            "recommend", listed, "RecommendResponse", query_parameters.RECOMMEND, path="user_id"
        ),
        "/v1/recommend": _get("recommend_by_query", listed, "RecommendResponse", query_parameters.RECOMMEND_BY_QUERY),
        "/v1/events": _rows("post_events", "Events; durable when answered", "EventIn", "EventsResponse"),
        "/v1/items": _rows("post_items", "Items; in force at the next request", "ItemIn", "ItemsResponse"),
        "/v1/users": _rows("post_users", "Users; in force at the next request", "UserIn", "UsersResponse"),
        "/v1/items/{item_id}": _get(
            "get_item", "An item as it is now", "ItemResponse", path="item_id", errors=("404",)
        ),
        "/v1/items/{item_id}/similar": _get(
            "similar",
            "A list about an item",
            "RecommendResponse",
            query_parameters.SIMILAR,
            path="item_id",
            errors=("404",),
        ),
        "/v1/users/{user_id}": _get("get_user", "A user as known now", "UserResponse", path="user_id", errors=("404",)),
        "/v1/health/live": _get("health_live", "This process runs", "HealthResponse"),
        "/v1/health/ready": _ready(),
        "/v1/status": _get("status", "What is live, since when, and how its lists are", "StatusResponse"),
        "/metrics": _metrics(),
        **{f"/v1/admin/{verb}": _move(verb, summary) for verb, summary in VERBS.items()},
    }


def _get(
    name: str,
    summary: str,
    answer: str,
    query: tuple[Parameter, ...] = query_parameters.NONE,
    path: str = "",
    errors: tuple[str, ...] = (),
) -> JsonTree:
    in_path = [{"name": path, "in": "path", "required": True, "schema": ID}] if path else []
    in_query = [
        {
            "name": one.name, "in": "query", "required": one.required, "schema": one.schema, "description": one.text,
        }
        for one in query
    ]  # fmt: skip
    responses = {"200": _response(summary, answer), **_errors(*errors)}
    return {
        "get": {
            "operationId": name,
            "summary": summary,
            "parameters": [*in_path, *in_query],
            "responses": responses,
        }
    }


def _ready() -> JsonTree:
    made = _get("health_ready", "This process answers", "HealthResponse")
    made["get"]["responses"]["503"] = _response("not ready, with the reason", "HealthResponse")
    return made


def _metrics() -> JsonTree:
    made = _get("metrics", "Health by window, variant and placement, for Prometheus", "")
    made["get"]["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return made


def _rows(name: str, summary: str, row: str, answer: str) -> JsonTree:
    one = {"$ref": f"#/components/schemas/{row}"}
    content = {
        "application/json": {"schema": {"oneOf": [one, {"type": "array", "items": one, "maxItems": 1000}]}},
        NDJSON[0]: {"schema": {"type": "string", "description": "one object a line"}},
    }
    return {
        "post": {
            "operationId": name,
            "summary": summary,
            "requestBody": {"required": True, "content": content},
            "responses": {
                "200": _response(summary, answer),
                "207": _response("as 200, where some row was not accepted", answer),
                **_errors("413", "415", "503"),
            },
        }
    }


def _move(verb: str, summary: str) -> JsonTree:
    return {
        "post": {
            "operationId": verb,
            "summary": summary,
            "security": [{TOKEN: []}],
            "requestBody": {"required": True, "content": _content("ReleaseRequest")},
            "responses": {"200": _response(summary, "ReleaseResponse"), **_errors("401", "404", "409", "413", "415")},
        }
    }


def _errors(*statuses: str) -> JsonTree:
    return {status: _response(ERRORS[status], "ErrorResponse") for status in sorted({*ALWAYS, *statuses})}


def _response(text: str, answer: str) -> JsonTree:
    return {"description": text, "content": _content(answer)}


def _content(shape: str) -> JsonTree:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}
