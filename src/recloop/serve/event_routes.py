"""Write routes: events, items and users, checked per row, durable when answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from recloop.ingest import parse
from recloop.ingest.parse import Rejected
from recloop.records import ITEM_ID, USER_ID
from recloop.serve import request as request_parts
from recloop.serve.middleware import json_response
from recloop.serve.request import request_time
from recloop.serve.schemas import EventResult, EventsResponse, ItemResult, ItemsResponse, UserResult, UsersResponse
from recloop.serve.service import Service
from recloop.storage.event_rows import Receipt

REPEAT_REASONS = {
    "duplicate": "this event_id was received before",
    "conflict": "this event_id was received before with other content",
}
QUARANTINE_REASONS = {
    "burst": "rule burst: too many rows of this user within a moment",
    "clock": "rule clock: the timestamp is before 1970, or more than clean.future after the time of receipt",
    "exclude_items": "rule exclude_items: the item is in clean.exclude_items, so it is not a product",
    "keep": "rule keep: the row does not meet clean.keep",
}


class WriteRoutes:
    """Handlers of ``POST /v1/events``, ``items`` and ``users``; one method per route."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def post_events(self, request: Request) -> Response:
        now, body, content_type = await self._body(request)
        checked = parse.parse_events(body, content_type, now, self._service.project.config.data)
        events = [event for event in checked if not isinstance(event, Rejected)]
        receipts = iter((await self._service.write(events=events)).receipts if events else ())
        results = []
        for event in checked:
            if isinstance(event, Rejected):
                results.append(EventResult(event.ids.get("event_id"), "rejected", event.reason))
            else:
                receipt = next(receipts)
                results.append(EventResult(event.event_id, receipt.status, _reason(receipt)))
        counts = Counter[str](result.status for result in results)
        names = ("accepted", "duplicate", "conflict", "quarantined", "rejected")
        response = EventsResponse(**{name: counts[name] for name in names}, rows=results)
        partial = response.conflict + response.quarantined + response.rejected > 0
        return json_response(response, 207 if partial else 200)

    async def post_items(self, request: Request) -> Response:
        now, rows = await self._rows(request)
        config = self._service.project.config
        checked = [parse.check_item(row, now, config.data, config.features.item) for row in rows]
        if items := [item for item in checked if not isinstance(item, Rejected)]:
            await self._service.write(items=items)
        return _upserted(ItemsResponse, ItemResult, checked, ITEM_ID)

    async def post_users(self, request: Request) -> Response:
        now, rows = await self._rows(request)
        config = self._service.project.config
        checked = [parse.check_user(row, now, config.data, config.features.user) for row in rows]
        if users := [user for user in checked if not isinstance(user, Rejected)]:
            await self._service.write(users=users)
        return _upserted(UsersResponse, UserResult, checked, USER_ID)

    async def _rows(self, request: Request) -> tuple[int, list[Any]]:
        now, body, content_type = await self._body(request)
        return now, parse.parse_rows(body, content_type)

    async def _body(self, request: Request) -> tuple[int, bytes, str]:
        """Time, body and content type of a request."""
        body = await request_parts.read_body(request)
        now = request_time(request.headers.get("x-recloop-now"), self._service.project, self._service.clock)
        return now, body, request.headers.get("content-type", "")


def _upserted(response_type: type[Any], result_type: type[Any], checked: Sequence[Any], key: str) -> Response:
    """Build the response to item or user rows; 207 if a row was rejected."""
    results = [
        result_type(row.ids.get(key), "rejected", row.reason)
        if isinstance(row, Rejected)
        else result_type(getattr(row, key), "accepted")
        for row in checked
    ]
    rejected = sum(isinstance(row, Rejected) for row in checked)
    return json_response(response_type(len(checked) - rejected, rejected, results), 207 if rejected else 200)


def _reason(receipt: Receipt) -> str | None:
    if receipt.status == "quarantined":
        return QUARANTINE_REASONS.get(receipt.rule or "", f"rule {receipt.rule}")
    return REPEAT_REASONS.get(receipt.status)
