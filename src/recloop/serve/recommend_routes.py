"""Read routes: lists for a user or an item, one item, one user."""

from __future__ import annotations

import re
import time

from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from recloop.errors import UserError
from recloop.recommend import similar_items
from recloop.records import Query, iso
from recloop.serve.middleware import json_response
from recloop.serve.request import MAX_LIST_ITEMS, request_time
from recloop.serve.schemas import HttpError, ItemResponse, PastEvent, Temperature, UserResponse, unprocessable
from recloop.serve.service import Service

MAX_LAST_EVENTS = 20
SIMILAR_SUFFIX = b"/similar"


class RecommendRoutes:
    """Handlers of recommendations, items and users; one method per route."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def recommend(self, request: Request) -> Response:
        parameters = request.query_params
        user_id = request.path_params.get("user_id", parameters.get("user_id", ""))
        if not user_id:
            raise unprocessable("user_id", "", "a user id, in the path or as ?user_id=")
        return self._respond(request, self._query(request, user_id, "home", parameters.get("item", "")))

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
        query = self._query(request, request.query_params.get("user_id", ""), similar_items.LIST_KIND, item_id)
        placement = service.bundle.policy.placements.get(query.placement)
        if placement is not None and placement.list != similar_items.LIST_KIND:
            raise unprocessable("placement", query.placement, "a placement with list similar")
        return self._respond(request, query)

    def _respond(self, request: Request, query: Query) -> Response:
        started = time.perf_counter()
        parameters = request.query_params
        try:
            query = self._service.recommender.normalize(query)
            ranked, decision = self._service.recommend(
                query,
                started=started,
                session_id=parameters.get("session_id"),
                anonymous_id=parameters.get("anonymous_id"),
                client_request_id=request.state.client_request_id,
            )
        except UserError as error:
            raise unprocessable(error.name, str(error.value), error.expected) from None
        response = json_response(self._service.reply(query, ranked, decision))
        if self._service.shadow_queue:
            response.background = BackgroundTask(self._score_shadows)
        return response

    async def _score_shadows(self) -> None:
        """Score queued shadow requests after the response, on the event loop."""
        self._service.shadow_queue.drain()

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
        return in_memory or await run_in_threadpool(service.item_exists, item_id)

    async def get_user(self, request: Request) -> Response:
        user_id = request.path_params["user_id"]
        state = self._service.user_state(user_id)
        view = state.view()
        has_state = state.moments or state.groups or state.attributes is not None
        if not has_state and not await run_in_threadpool(self._service.user_exists, user_id):
            raise HttpError(
                404, "not_found", "unknown user: expected an id from the events or the user attributes", "user_id"
            )
        past = [
            PastEvent(item, iso(stamp))
            for stamp, items, _ in reversed(view.moments[-MAX_LAST_EVENTS:])
            for item in items
        ]
        return json_response(
            UserResponse(
                user_id=user_id,
                attributes=state.attributes or {},
                state="hot" if view.moments else "warm" if state.attributes else "cold",
                events=view.positives,
                last_events=past[:MAX_LAST_EVENTS],
            )
        )

    def _query(self, request: Request, user_id: str, placement: str, item_id: str) -> Query:
        """Parse the request; ``placement`` is the default placement."""
        parameters = request.query_params
        n = parameters.get("n")
        if n is not None and not (re.fullmatch(r"[0-9]{1,4}", n) and 1 <= int(n) <= MAX_LIST_ITEMS):
            raise unprocessable("n", n, f"a whole number from 1 to {MAX_LIST_ITEMS}")
        return Query(
            user_id=user_id,
            now=request_time(request, self._service.project, self._service.clock),
            n=int(n) if n else 0,
            placement=parameters.get("placement", placement),
            exclude=_excluded(parameters.getlist("exclude")),
            filter=parameters.get("filter", "").strip(),
            properties=_names(parameters.getlist("properties")),
            request_id=request.state.request_id,
            item_id=item_id,
        )


def _excluded(values: list[str]) -> tuple[str, ...]:
    """Return the parts of a single value, or repeated values as they are."""
    return _names(values) if len(values) < 2 else tuple(dict.fromkeys(value for value in values if value))


def _names(values: list[str]) -> tuple[str, ...]:
    """Split comma-separated and repeated values into distinct names, in order."""
    return tuple(dict.fromkeys(name for value in values for name in value.split(",") if name))
