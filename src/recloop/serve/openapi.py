"""OpenAPI document, built from the response structs and query parameters."""

from __future__ import annotations

import msgspec

from recloop import __version__
from recloop.files import JsonTree
from recloop.ingest import parse
from recloop.ingest.body import NDJSON
from recloop.serve import request as request_parts
from recloop.serve import schemas as messages
from recloop.serve.openapi_headers import header_components, with_headers
from recloop.serve.request import Parameter
from recloop.storage.api_keys import KeyScope

ID_SCHEMA = {"type": "string", "minLength": 1}
ERROR_DESCRIPTIONS = {
    "400": "the body is not JSON, or the request does not have exactly one Host header",
    "401": "the key is missing, unknown, revoked or expired",
    "403": "the key does not have the scope, or the request is from a page of another origin",
    "404": "not found",
    "405": "the route does not have this method",
    "408": "the head or the body did not arrive in time",
    "409": "refused; the message names the gate and its threshold",
    "413": "the body is too large",
    "415": "the content type is not JSON",
    "421": "the Host is not allowed",
    "422": "a parameter or the body is invalid",
    "429": "the key is above its rate; send the request again after Retry-After seconds",
    "431": "the request line and headers are larger than 64 KiB",
    "500": "internal error",
    "503": "busy or temporarily unavailable; send the request again after Retry-After seconds",
}
COMMON_STATUSES = ("400", "403", "405", "408", "421", "422", "431", "500", "503")
"""Error statuses of every operation."""
KEY_STATUSES = ("401", "429")
"""Error statuses of every operation that needs a key."""
KEY_SCHEME = "api_key"
KEY_DESCRIPTION = (
    "A key of `recloop keys add`, or the admin token. Without any key in the project, only admin routes need one."
)
MOVE_BODIES = {"reject": "RejectRequest"}
"""Schemas of the bodies of moves that differ from `ReleaseRequest`."""
VERB_SUMMARIES = {
    "promote": "Promote a bundle to a step, or to live if both steps are earned",
    "rollback": "Restore the previous live bundle",
    "reject": "Exclude a bundle permanently",
}


def document() -> JsonTree:
    """Build the OpenAPI 3.1 document."""
    _, schemas = msgspec.json.schema_components(
        [
            shape
            for shape in (*vars(parse).values(), *vars(messages).values())
            if isinstance(shape, type) and issubclass(shape, msgspec.Struct)
        ],
        ref_template="#/components/schemas/{name}",
    )
    schemas["RecommendResponse"]["properties"]["items"]["items"] = {"$ref": "#/components/schemas/SlotResponse"}
    schemas["SlotResponse"]["additionalProperties"] = True  # attributes of ?properties=
    _name_values(schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "recloop",
            "version": __version__,
            "description": "Recommendations, interaction log and releases of one project.",
        },
        "paths": with_headers(_paths()),
        "components": {
            "schemas": schemas,
            "headers": header_components(),
            "securitySchemes": {KEY_SCHEME: {"type": "http", "scheme": "bearer", "description": KEY_DESCRIPTION}},
        },
    }


def _name_values(schemas: dict[str, JsonTree]) -> None:
    """Add the values and lengths that a struct leaves to its handler."""
    release = schemas["ReleaseRequest"]["properties"]
    release["to"]["enum"] = ["", "shadow", "experiment", "live"]
    text = {"type": "string", "minLength": 1}
    schemas["RejectRequest"] = {
        "title": "RejectRequest", "type": "object", "description": "Body of ``POST /v1/admin/reject``.",
        "properties": {"bundle": text, "reason": text}, "required": ["bundle", "reason"], "additionalProperties": False,
    }  # fmt: skip
    schemas["HealthResponse"]["properties"]["status"]["enum"] = ["live", "ready", "not ready", "draining"]
    schemas["RecommendResponse"]["properties"]["variant"]["enum"] = ["live", "candidate"]


def _paths() -> dict[str, JsonTree]:
    recommend_summary = "Recommend items to a known or unknown user"
    return {
        "/v1/recommend/{user_id}": _get(
            "recommend", recommend_summary, "RecommendResponse", request_parts.RECOMMEND_PARAMETERS, path="user_id"
        ),
        "/v1/recommend": _get(
            "recommend_by_query", recommend_summary, "RecommendResponse", request_parts.RECOMMEND_BY_QUERY_PARAMETERS
        ),
        "/v1/events": _rows("post_events", "Add events; durable when answered", "EventIn", "EventsResponse"),
        "/v1/events/{event_id}": {
            "delete": _change(
                "delete_event",
                "Retract an event; lists exclude it from the next request",
                "",
                "event_id",
                "RetractionResponse",
            )
        },
        "/v1/items": {
            **_rows("post_items", "Add or replace items; used from the next request", "ItemIn", "ItemsResponse"),
            **_rows("patch_items", "Change named attributes of items", "ItemPatch", "ItemsResponse", "patch"),
        },
        "/v1/users": _rows("post_users", "Add or update users; used from the next request", "UserIn", "UsersResponse"),
        "/v1/identify": _identify(),
        "/v1/items/{item_id}": {
            **_get("get_item", "Get an item's current attributes", "ItemResponse", path="item_id", errors=("404",)),
            "patch": _change("patch_item", "Change named attributes of an item", "ItemChange"),
            "delete": _change("delete_item", "Hide an item from all lists", ""),
        },
        "/v1/items/{item_id}/similar": _get(
            "similar",
            "Recommend items similar to an item",
            "RecommendResponse",
            request_parts.SIMILAR_PARAMETERS,
            path="item_id",
            errors=("404",),
        ),
        "/v1/users/{user_id}": {
            **_get("get_user", "Get a user's current state", "UserResponse", path="user_id", errors=("404",)),
            "delete": _delete_user(),
        },
        "/v1/health/live": _get("health_live", "Check that the process runs", "HealthResponse", scope=KeyScope.PUBLIC),
        "/v1/health/ready": _ready(),
        "/v1/status": _get("status", "Get the deployed bundles and list health", "StatusResponse"),
        "/metrics": _metrics(),
        **{f"/v1/admin/{verb}": _move(verb, summary) for verb, summary in VERB_SUMMARIES.items()},
        "/v1/admin/reload": _reload(),
        "/v1/admin/replay": _replay(),
        "/v1/admin/forget": _forget(),
    }


def _get(
    name: str,
    summary: str,
    response: str,
    query: tuple[Parameter, ...] = request_parts.NO_PARAMETERS,
    path: str = "",
    errors: tuple[str, ...] = (),
    scope: KeyScope = KeyScope.READ,
) -> JsonTree:
    in_path = [{"name": path, "in": "path", "required": True, "schema": ID_SCHEMA}] if path else []
    in_query = [
        {
            "name": parameter.name, "in": "query", "required": parameter.required, "schema": parameter.schema,
            "description": parameter.text,
        }
        for parameter in query
    ]  # fmt: skip
    responses = {"200": _response(summary, response), **_errors(*errors, *_key_statuses(scope))}
    return {
        "get": {
            "operationId": name,
            "summary": summary,
            "security": _security(scope),
            "parameters": [*in_path, *in_query],
            "responses": responses,
        }
    }


def _ready() -> JsonTree:
    path = _get("health_ready", "Check that the service can answer", "HealthResponse", scope=KeyScope.PUBLIC)
    path["get"]["responses"]["503"] = _response("not ready, with the reason", "HealthResponse")
    return path


def _metrics() -> JsonTree:
    path = _get("metrics", "Get list health by window, variant and placement for Prometheus", "")
    path["get"]["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return path


def _rows(name: str, summary: str, row: str, response: str, method: str = "post") -> JsonTree:
    row_schema = {"$ref": f"#/components/schemas/{row}"}
    content = {
        "application/json": {
            "schema": {"oneOf": [row_schema, {"type": "array", "items": row_schema, "maxItems": 1000}]}
        },
        NDJSON[0]: {"schema": {"type": "string", "description": "one object per line, at most 10,000 lines"}},
    }
    return {
        method: {
            "operationId": name,
            "summary": summary,
            "security": _security(KeyScope.INGEST),
            "requestBody": {"required": True, "content": content},
            "responses": {
                "200": _response(summary, response),
                "207": _response("as 200, with at least one row not accepted", response),
                **_errors("413", "415", *KEY_STATUSES),
            },
        }
    }


def _change(name: str, summary: str, body: str, path: str = "item_id", response: str = "ItemsResponse") -> JsonTree:
    """Operation on one item or event; ``body`` is the schema of its body, or empty."""
    operation = {
        "operationId": name,
        "summary": summary,
        "security": _security(KeyScope.INGEST),
        "parameters": [{"name": path, "in": "path", "required": True, "schema": ID_SCHEMA}],
        "responses": {
            "200": _response(summary, response),
            **_errors("404", "413", "415", *KEY_STATUSES),
        },
    }
    return {**operation, "requestBody": {"required": True, "content": _content(body)}} if body else operation


def _post(operation: str, summary: str, scope: KeyScope, body: str, answer: str, *statuses: str) -> JsonTree:
    """Path whose POST takes one body.

    Args:
        statuses: Errors besides those of every body and key.
    """
    return {
        "post": {
            "operationId": operation,
            "summary": summary,
            "security": _security(scope),
            "requestBody": {"required": True, "content": _content(body)},
            "responses": {"200": _response(summary, answer), **_errors(*statuses, "413", "415", *KEY_STATUSES)},
        }
    }


def _move(verb: str, summary: str) -> JsonTree:
    body = MOVE_BODIES.get(verb, "ReleaseRequest")
    return _post(verb, summary, KeyScope.ADMIN, body, "ReleaseResponse", "404", "409")


def _identify() -> JsonTree:
    summary = "Join an anonymous id with a user; used from the next request"
    return _post("identify", summary, KeyScope.INGEST, "IdentifyRequest", "IdentifyResponse", "409")


def _reload() -> JsonTree:
    summary = "Apply changed limits, hosts, proxies and API keys from the next request on"
    return _post("reload", summary, KeyScope.ADMIN, "ReloadRequest", "ReloadResponse")


def _delete_user() -> JsonTree:
    summary = "Forget a user; archive and bundles follow with the next update"
    return {
        "operationId": "delete_user",
        "summary": summary,
        "security": _security(KeyScope.ADMIN),
        "parameters": [{"name": "user_id", "in": "path", "required": True, "schema": ID_SCHEMA}],
        "responses": {"200": _response(summary, "ForgetResponse"), **_errors("404", "409", *KEY_STATUSES)},
    }


def _replay() -> JsonTree:
    summary = "Check rejected events again; those that are stored leave the rejected rows"
    path = _rows("replay", summary, "ReplayRequest", "EventsResponse")
    path["post"]["security"] = _security(KeyScope.ADMIN)
    path["post"]["requestBody"]["content"] = _content("ReplayRequest")
    return path


def _forget() -> JsonTree:
    summary = "Forget users; archive and bundles follow with the next update"
    return _post("forget", summary, KeyScope.ADMIN, "ForgetRequest", "ForgetResponse", "404", "409")


def _security(scope: KeyScope) -> list[JsonTree]:
    """Build the requirement of a scope; an empty list: no key."""
    return [] if scope is KeyScope.PUBLIC else [{KEY_SCHEME: [scope.value]}]


def _key_statuses(scope: KeyScope) -> tuple[str, ...]:
    return () if scope is KeyScope.PUBLIC else KEY_STATUSES


def _errors(*statuses: str) -> JsonTree:
    return {
        status: _response(ERROR_DESCRIPTIONS[status], "ErrorResponse")
        for status in sorted({*COMMON_STATUSES, *statuses})
    }


def _response(text: str, shape: str) -> JsonTree:
    return {"description": text, "content": _content(shape)}


def _content(shape: str) -> JsonTree:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}
