"""Lean path of ``POST /v1/events``: no router, one reply.

The checks, errors and headers equal those of the routes, whose middleware costs more than a small body.
"""

from __future__ import annotations

from typing import Final

from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from recloop.ingest.body import BadRequest
from recloop.serve.access import AccessRules, Head
from recloop.serve.event_routes import WriteRoutes
from recloop.serve.middleware import REQUEST_IDS, Reply, client_id, error_reply
from recloop.serve.request import check_names, read_messages, unpack
from recloop.serve.schemas import HttpError
from recloop.storage.api_keys import KeyScope

EVENTS_PATH: Final = "/v1/events"


class EventEndpoint:
    """Answers posted events on the event loop."""

    def __init__(self, routes: WriteRoutes, rules: AccessRules) -> None:
        self._routes = routes
        self._rules = rules

    async def reply(self, scope: Scope, receive: Receive) -> Reply:
        """Answer a request of this path.

        Raises:
            ClientDisconnect: the client left before its body was complete.
        """
        head = Head(scope["headers"])
        request_id = REQUEST_IDS.next()
        try:
            self._rules.check_write(head, for_page=True)
            page = self._rules.authorize(head, KeyScope.INGEST, for_page=True)
            if scope["query_string"]:
                check_names(QueryParams(scope["query_string"]), ())
            limits = self._routes.limits
            body = unpack(await read_messages(receive, head.content_length, limits), head.content_encoding, limits)
            time_header = None if head.time is None else head.time.decode("latin-1")
            reply = await self._routes.events_reply(body, head.content_type.decode("latin-1"), time_header, page)
        except ClientDisconnect:
            raise
        except BadRequest as error:
            reply = error_reply(HttpError(error.status, error.code, error.message, error.field, error.expected))
        except Exception as error:  # noqa: BLE001 - the client gets a JSON error for every failure
            reply = error_reply(error)
        reply.headers.append((b"x-request-id", (client_id(head.request_id) or request_id).encode()))
        reply.headers.extend(self._rules.cors_headers(head))
        return reply
