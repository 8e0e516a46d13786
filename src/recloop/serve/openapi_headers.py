"""Headers of requests and responses in the OpenAPI document."""

from __future__ import annotations

from typing import Final

from recloop.files import JsonTree

REQUEST_ID: Final = {
    "name": "X-Request-Id", "in": "header", "required": False,
    "schema": {"type": "string"},
    "description": "id of the client, 1 to 200 visible ASCII characters; echoed, and stored beside a list; another one is ignored",
}  # fmt: skip
REQUEST_TIME: Final = {
    "name": "X-Recloop-Now", "in": "header", "required": False, "schema": {"type": "string"},
    "description": "time of the request, ISO 8601; read only with serve.allow_time_header",
}  # fmt: skip
TIMED: Final = frozenset(
    ("recommend", "recommend_by_query", "similar", "post_events", "post_items", "patch_items", "patch_item", "delete_item", "post_users")
)  # fmt: skip
"""Operations that read the time of a request."""
RESPONSE_HEADERS: Final[JsonTree] = {
    "X-Request-Id": ("the client's X-Request-Id, or the id of this request", {"type": "string"}),
    "Retry-After": ("seconds after which to send the request again", {"type": "integer", "minimum": 1}),
    "WWW-Authenticate": ("Bearer", {"type": "string"}),
    "Allow": ("methods of the route", {"type": "string"}),
}
STATUS_HEADERS: Final = {
    "401": ("WWW-Authenticate",),
    "405": ("Allow",),
    "429": ("Retry-After",),
    "503": ("Retry-After",),
}
"""Headers of an error status, beside ``X-Request-Id``."""


def with_headers(paths: dict[str, JsonTree]) -> dict[str, JsonTree]:
    """Add the headers to each operation and response."""
    for operations in paths.values():
        for operation in operations.values():
            timed = [REQUEST_TIME] if operation["operationId"] in TIMED else []
            operation["parameters"] = [*operation.get("parameters", []), REQUEST_ID, *timed]
            for status, response in operation["responses"].items():
                names = ("X-Request-Id", *STATUS_HEADERS.get(status, ()))
                response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    return paths


def header_components() -> JsonTree:
    """Build the components of the response headers."""
    return {name: {"description": text, "schema": schema} for name, (text, schema) in RESPONSE_HEADERS.items()}
