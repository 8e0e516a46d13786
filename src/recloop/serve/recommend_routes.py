"""Read routes: lists for a user or an item, one item, one user."""

from __future__ import annotations

import time
from typing import NamedTuple

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from recloop.data.limits import NUL
from recloop.errors import UserError
from recloop.recommend import similar_items
from recloop.records import Query, iso
from recloop.serve.middleware import json_response
from recloop.serve.page_token import PageAccess
from recloop.serve.request import ListParameters, list_parameters, request_time
from recloop.serve.schemas import HttpError, ItemResponse, PastEvent, Temperature, UserResponse, unprocessable
from recloop.serve.service import Service
from recloop.serve.stored_ids import item_exists, user_exists

MAX_LAST_EVENTS = 20
SIMILAR_SUFFIX = b"/similar"
ENCODER = msgspec.json.Encoder()


class RequestKeys(NamedTuple):
    """Ids of a request: the service's own, and the client's ``X-Request-Id`` if valid."""

    request_id: str
    client_request_id: str | None


class RecommendRoutes:
    """Handlers of recommendations, items and users; one method per route."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def recommend(self, request: Request) -> Response:
        parameters = list_parameters(request.scope["query_string"])
        user_id = request.path_params.get("user_id", parameters.user_id)
        body = self.recommend_body(user_id, parameters, _ids(request), request.headers.get("x-recloop-now"))
        return Response(body, media_type="application/json")

    def recommend_body(
        self,
        user_id: str,
        parameters: ListParameters,
        ids: RequestKeys,
        time_header: str | None,
        page: PageAccess | None = None,
        waited: float = 0.0,
    ) -> bytes:
        """Recommend a list to a user; return the JSON body.

        Args:
            page: Access of a page token, whose limits hold for the list.
            waited: Seconds that the request waited for its answer.

        Raises:
            HttpError: 422 for an invalid parameter, 403 for a limit of the page token.
        """
        user_id = user_id or parameters.anonymous_id or ""
        if not user_id:
            raise unprocessable("user_id", "", "a user id in the path or as ?user_id=, or ?anonymous_id=")
        query = self._query(user_id, parameters, ids, time_header, "home", parameters.item)
        if page is not None:
            page.check_list(query.user_id, query.placement)
        return self._body(query, parameters, ids, waited)

    async def similar(self, request: Request) -> Response:
        """Recommend items similar to an item; ``?user_id=`` is optional.

        An encoded slash is part of the id: ``/v1/items/x%2Fsimilar`` is the item ``x/similar``.
        """
        item_id = request.path_params["item_id"]
        if not request.scope.get("raw_path", SIMILAR_SUFFIX).endswith(SIMILAR_SUFFIX):
            request.path_params["item_id"] = f"{item_id}/similar"
            return await self.get_item(request)
        service = self._service
        if not await self._item_exists(item_id):
            raise HttpError(404, "not_found", "unknown item: expected an id from the events or the catalog", "item_id")
        parameters = list_parameters(request.scope["query_string"])
        ids = _ids(request)
        time_header = request.headers.get("x-recloop-now")
        user_id = parameters.user_id or parameters.anonymous_id or ""
        query = self._query(user_id, parameters, ids, time_header, similar_items.LIST_KIND, item_id)
        placement = service.bundle.policy.placements.get(query.placement)
        if placement is not None and placement.list != similar_items.LIST_KIND:
            raise unprocessable("placement", query.placement, "a placement with list similar")
        return Response(self._body(query, parameters, ids), media_type="application/json")

    def _body(self, query: Query, parameters: ListParameters, ids: RequestKeys, waited: float = 0.0) -> bytes:
        started = time.perf_counter()
        service = self._service
        try:
            query = service.recommender.normalize(query)
            ranked, decision = service.recommend(
                query,
                started=started,
                session_id=parameters.session_id,
                anonymous_id=parameters.anonymous_id,
                client_request_id=ids.client_request_id,
                waited=waited,
            )
        except UserError as error:
            raise unprocessable(error.name, str(error.value), error.expected) from None
        return ENCODER.encode(service.reply(query, ranked, decision))

    async def get_item(self, request: Request) -> Response:
        item_id = request.path_params["item_id"]
        service = self._service
        item = service.catalog.get(item_id)
        hot = service.bundle.items.ids.index(item_id) > 0
        if not await self._item_exists(item_id):
            raise HttpError(404, "not_found", "unknown item: expected an id from the events or the catalog", "item_id")
        warm = item is not None and bool(item.attributes)
        state: Temperature = "hot" if hot else "warm" if warm else "cold"
        attributes, hidden = ({}, False) if item is None else (item.attributes, item.hidden)
        return json_response(ItemResponse(item_id, attributes, hidden, state))

    async def _item_exists(self, item_id: str) -> bool:
        service = self._service
        in_memory = service.catalog.get(item_id) is not None or service.bundle.items.ids.index(item_id) > 0
        return in_memory or await run_in_threadpool(item_exists, service.log, service.archive, item_id)

    async def get_user(self, request: Request) -> Response:
        user_id = self._service.person(request.path_params["user_id"])
        state = self._service.user_state(user_id)
        moments, attributes = state.moments(), state.attributes[0]
        has_state = bool(moments) or len(state.negatives) > 0 or attributes is not None
        service = self._service
        if not has_state and not await run_in_threadpool(user_exists, service.log, service.archive, user_id):
            raise HttpError(
                404, "not_found", "unknown user: expected an id from the events or the user attributes", "user_id"
            )
        past = [
            PastEvent(item, iso(stamp)) for stamp, items, _ in reversed(moments[-MAX_LAST_EVENTS:]) for item in items
        ]
        return json_response(
            UserResponse(
                user_id=user_id,
                attributes=dict(attributes or {}),
                state="hot" if moments else "warm" if attributes else "cold",
                events=int(state.positives[0]),
                last_events=past[:MAX_LAST_EVENTS],
            )
        )

    def _query(
        self,
        user_id: str,
        parameters: ListParameters,
        ids: RequestKeys,
        time_header: str | None,
        placement: str,
        item_id: str,
    ) -> Query:
        """Build the query of a request; ``placement`` is the default placement.

        Raises:
            HttpError: 422 for an invalid id, length or time, or too many properties.
        """
        named = (
            ("user_id", user_id), ("item", item_id), ("session_id", parameters.session_id),
            ("anonymous_id", parameters.anonymous_id),
        )  # fmt: skip
        for name, text in named:
            if text and NUL in text:
                raise unprocessable(name, None, "a text without the character NUL")
        limit = self._service.live.limits.properties
        if len(parameters.properties) > limit:
            expected = f"at most {limit} names, found {len(parameters.properties)}"
            raise unprocessable("properties", ",".join(parameters.properties), expected)
        return Query(
            user_id=user_id,
            n=parameters.length(),
            now=request_time(time_header, self._service.project, self._service.clock),
            placement=placement if parameters.placement is None else parameters.placement,
            exclude=parameters.exclude,
            filter=parameters.filter,
            filter_seen=parameters.seen(),
            min_new=parameters.new_share(),
            properties=parameters.properties,
            request_id=ids.request_id,
            item_id=item_id,
        )


def _ids(request: Request) -> RequestKeys:
    return RequestKeys(request.state.request_id, request.state.client_request_id)
