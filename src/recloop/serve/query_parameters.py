"""Query parameters of each operation: what a route reads, what OpenAPI says, what is refused as unknown."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from recloop.json_object import JsonTree
from recloop.serve.schemas import HttpError

MOST_ITEMS = 1_000  # of a list
SHOWN = 100  # characters of an unknown name
NEAR = 0.7  # similarity, by difflib, from which on a name is taken for a misspelt one
Handler = Callable[[Request], Awaitable[Response]]


class Parameter(NamedTuple):
    """A query parameter; ``schema`` as in OpenAPI."""

    name: str
    schema: JsonTree
    text: str
    required: bool = False


TEXT: Final = {"type": "string"}
FILTERS: Final = (
    Parameter("exclude", TEXT, "item ids that must not be shown, with commas between them"),
    Parameter("filter", TEXT, "a condition over item fields, such as category = 'tea' AND price < 5"),
    Parameter("properties", TEXT, "item attributes to add to each slot, with commas between them"),
)
CALLER: Final = (
    Parameter("session_id", TEXT, "recorded with the decision"),
    Parameter("anonymous_id", TEXT, "recorded with the decision"),
)
LENGTH: Final = Parameter(
    "n", {"type": "integer", "minimum": 1, "maximum": MOST_ITEMS}, "length of the list; default: the placement's k"
)
RECOMMEND: Final = (
    LENGTH,
    Parameter("placement", {**TEXT, "default": "home"}, "a placement of the live bundle"),
    *FILTERS,
    Parameter("item", TEXT, "the item that the list is about, for a placement whose list is similar"),
    *CALLER,
)
RECOMMEND_BY_QUERY: Final = (Parameter("user_id", {**TEXT, "minLength": 1}, "the user", required=True), *RECOMMEND)
SIMILAR: Final = (
    Parameter("user_id", TEXT, "the user whose dislikes are left out"),
    LENGTH,
    Parameter("placement", {**TEXT, "default": "similar"}, "a placement of the live bundle whose list is similar"),
    *FILTERS,
    *CALLER,
)
NONE: Final[tuple[Parameter, ...]] = ()


def only(handler: Handler, parameters: tuple[Parameter, ...] = NONE) -> Handler:
    """The same handler for requests that name these query parameters alone; others are 422."""
    known = frozenset(parameter.name for parameter in parameters)

    async def checked(request: Request) -> Response:
        if request.scope["query_string"]:
            for name in request.query_params:
                if name not in known:
                    raise _unknown(name, known)
        return await handler(request)

    return checked


def _unknown(name: str, known: frozenset[str]) -> HttpError:
    near = difflib.get_close_matches(name[:SHOWN], known, n=1, cutoff=NEAR)
    if near:
        expected = f"a known parameter; nearest: {near[0]}"
    else:
        expected = f"one of {', '.join(sorted(known))}" if known else "no query parameters"
    shown = name[:SHOWN]
    return HttpError(422, "unknown_parameter", f"unknown query parameter {shown}: expected {expected}", shown, expected)
