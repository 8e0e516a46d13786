"""Write routes: events, items and users, checked per row, durable when answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any, ParamSpec, TypeVar

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from recloop.client.batches import STATUSES
from recloop.config import Limits
from recloop.features.id_form import form_id, id_text
from recloop.ingest import parse
from recloop.ingest.body import Rejected, parse_rows
from recloop.ingest.rejected import check_again, rejected_rows, settle
from recloop.recommend.attribute_columns import mistyped
from recloop.records import ITEM_ID, USER_ID, Event, Item, User
from recloop.serve import request as request_parts
from recloop.serve.middleware import Reply, json_reply, json_response
from recloop.serve.page_token import PageAccess
from recloop.serve.request import request_time
from recloop.serve.schemas import (
    EventResult,
    EventsResponse,
    HttpError,
    ItemResult,
    ItemsResponse,
    ReplayRequest,
    RetractionResponse,
    UserResult,
    UsersResponse,
)
from recloop.serve.service import Service
from recloop.serve.stored_ids import event_seq, item_exists
from recloop.storage.event_rows import Receipt
from recloop.storage.retractions import DELETED, Retraction

P = ParamSpec("P")
T = TypeVar("T")
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
MAX_BYTES_ON_LOOP = 256 * 1024
"""Size of a body from which its rows are checked in a thread, so that lists do not wait for them."""


class WriteRoutes:
    """Handlers of ``POST /v1/events``, ``items`` and ``users``; one method per route."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._changing_items = asyncio.Lock()  # a patch reads the version that it changes

    @property
    def limits(self) -> Limits:
        """Limits in force."""
        return self._service.live.limits

    async def post_events(self, request: Request) -> Response:
        body = await request_parts.read_body(request)
        headers = request.headers
        reply = await self.events_reply(body, headers.get("content-type", ""), headers.get("x-recloop-now"))
        return Response(reply.body, reply.status, media_type="application/json")

    async def events_reply(
        self, body: bytes, content_type: str, time_header: str | None, page: PageAccess | None = None
    ) -> Reply:
        """Store the events of a body and build the reply.

        Args:
            page: Access of a page token, whose limits hold for every event.

        Raises:
            BadRequest, HttpError: the body or the time is refused.
            LogBusyError, LogUnavailableError, LogUncertainError: see `Writer.write`.
        """
        project = self._service.project
        now = request_time(time_header, project, self._service.clock)
        checked = await _checked(body, parse.parse_events, body, content_type, now, project.config.data, self.limits)
        events = [event for event in checked if not isinstance(event, Rejected)]
        if page is not None:
            page.check_events(events, project.config.data.id_form)
        receipts = (await self._service.write(events=events)).receipts if events else []
        await self._keep("event", "POST /v1/events", now, checked)
        results = event_results(checked, receipts)
        self._service.rows.events.update(result.status for result in results)
        return events_reply(results)

    async def replay(self, request: Request) -> Response:
        """Check rejected events again; those that are stored leave the rejected rows.

        Raises:
            HttpError: 422 for an invalid body or too many numbers.
        """
        body = await request_parts.read_body(request)
        try:
            ids = msgspec.json.decode(body, type=ReplayRequest).ids
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HttpError(422, "bad_body", f"the body is invalid: {error}", "body", '{"ids": [NUMBER]}') from None
        if not 0 < len(ids) <= self.limits.rows:
            raise HttpError(422, "bad_body", f"{len(ids)} numbers; expected 1 to {self.limits.rows}", "ids")
        service = self._service
        rows = await run_in_threadpool(service.rejected.rows, ids, "event")
        now = request_time(request.headers.get("x-recloop-now"), service.project, service.clock)
        checked = check_again(rows, now, service.project.config.data, self.limits)
        events = [event for event in checked if not isinstance(event, Rejected)]
        receipts = (await service.write(events=events)).receipts if events else []
        results = event_results(checked, receipts)
        statuses, reasons = [result.status for result in results], [result.reason or "" for result in results]
        await run_in_threadpool(settle, service.rejected, rows, statuses, reasons)
        service.rows.events.update(statuses)
        reply = events_reply(results)
        return Response(reply.body, reply.status, media_type="application/json")

    async def _keep(self, kind: str, route: str, at: int, checked: Sequence[Any]) -> None:
        """Keep the rejected rows of a request."""
        id_form = self._service.project.config.data.id_form
        await self._service.rows.keep(list(rejected_rows(kind, route, at, checked, id_form)))

    async def delete_event(self, request: Request) -> Response:
        """Retract an event from states and training; its row stays in the log.

        Raises:
            HttpError: 404 for an unknown event_id.
        """
        event_id = request.path_params["event_id"]
        seq = await run_in_threadpool(event_seq, self._service.log, self._service.archive, event_id)
        if seq is None:
            raise HttpError(404, "not_found", "unknown event: expected the event_id of a stored event", "event_id")
        written = await self._service.write(retractions=[Retraction(seq, DELETED)])
        return json_response(RetractionResponse(event_id, "retracted" if written.kept_retractions else "unchanged"))

    async def post_items(self, request: Request) -> Response:
        now, body, content_type = await self._body(request)
        config = self._service.project.config

        def check(row: Any) -> Item | Rejected:
            return parse.check_item(row, now, config.data, config.features.item, self.limits)

        checked = await _checked(body, parse.parse_checked, body, content_type, check, self.limits)
        await self._keep("item", "POST /v1/items", now, checked)
        async with self._changing_items:
            return await self._store_items(checked)

    async def patch_items(self, request: Request) -> Response:
        """Change the named attributes of items; the rest stays."""
        now, rows = await self._rows(request)
        async with self._changing_items:
            checked = await self._patched(rows, now)
            await self._keep("item", "PATCH /v1/items", now, parse.with_raw(checked, rows))
            return await self._store_items(checked)

    async def patch_item(self, request: Request) -> Response:
        """Change the named attributes of one item."""
        now, rows = await self._rows(request)
        if len(rows) != 1 or not isinstance(rows[0], dict):
            raise HttpError(422, "bad_body", "the body is not one object", "body", "{attributes, hidden}")
        return await self._change_one({**rows[0], ITEM_ID: request.path_params["item_id"]}, now)

    async def delete_item(self, request: Request) -> Response:
        """Hide an item from all lists; its history stays."""
        now = request_time(request.headers.get("x-recloop-now"), self._service.project, self._service.clock)
        return await self._change_one({ITEM_ID: request.path_params["item_id"], "hidden": True}, now)

    async def _change_one(self, row: dict[str, Any], now: int) -> Response:
        """Change one item.

        Raises:
            HttpError: 404 for an unknown item, 422 for an invalid change.
        """
        async with self._changing_items:
            (item,) = await self._patched([row], now)
            if isinstance(item, Rejected):
                is_unknown = item.reason == parse.UNKNOWN_ITEM
                raise HttpError(
                    404 if is_unknown else 422, "not_found" if is_unknown else "bad_body", item.reason, ITEM_ID
                )
            return await self._store_items([item])

    async def _patched(self, rows: Sequence[Any], now: int) -> list[Item | Rejected]:
        """Build the next versions of items; later rows change earlier ones."""
        service = self._service
        config = service.project.config
        texts = [id_text(row.get(ITEM_ID)) for row in rows if isinstance(row, dict)]
        named = {form_id(text, config.data.id_form) for text in texts if isinstance(text, str)}
        outside = [name for name in named if service.catalog.get(name) is None]
        present = {
            name: Item(item_id=name)
            for name in outside
            if await run_in_threadpool(item_exists, service.log, service.archive, name)
        }

        def current(item_id: str) -> Item | None:
            return present.get(item_id) or service.catalog.get(item_id)

        checked = []
        for row in rows:
            item = parse.check_item_patch(row, current, now, config.data, config.features.item, self.limits)
            if not isinstance(item, Rejected):
                present[item.item_id] = item
            checked.append(item)
        return checked

    async def _store_items(self, checked: Sequence[Item | Rejected]) -> Response:
        if items := [item for item in checked if not isinstance(item, Rejected)]:
            await self._service.write(items=items)
        types = self._service.recommender.field_types
        notes = ["" if isinstance(item, Rejected) else mistyped(item.attributes, types) for item in checked]
        self._service.counts.mistyped_items += sum(map(bool, notes))
        return _upserted(ItemsResponse, ItemResult, checked, ITEM_ID, notes)

    async def post_users(self, request: Request) -> Response:
        now, body, content_type = await self._body(request)
        config = self._service.project.config

        def check(row: Any) -> User | Rejected:
            return parse.check_user(row, now, config.data, config.features.user, self.limits)

        checked = await _checked(body, parse.parse_checked, body, content_type, check, self.limits)
        await self._keep("user", "POST /v1/users", now, checked)
        if users := [user for user in checked if not isinstance(user, Rejected)]:
            await self._service.write(users=users)
        return _upserted(UsersResponse, UserResult, checked, USER_ID)

    async def _rows(self, request: Request) -> tuple[int, list[Any]]:
        now, body, content_type = await self._body(request)
        return now, parse_rows(body, content_type, self.limits)

    async def _body(self, request: Request) -> tuple[int, bytes, str]:
        """Time, body and content type of a request."""
        body = await request_parts.read_body(request)
        now = request_time(request.headers.get("x-recloop-now"), self._service.project, self._service.clock)
        return now, body, request.headers.get("content-type", "")


async def _checked(body: bytes, check: Callable[P, list[T]], *arguments: P.args, **names: P.kwargs) -> list[T]:
    """Call a parser of a body; the rows of a large one are checked in a thread."""
    if len(body) <= MAX_BYTES_ON_LOOP:
        return check(*arguments, **names)
    return await run_in_threadpool(check, *arguments, **names)


def event_results(checked: Sequence[Event | Rejected], receipts: Sequence[Receipt]) -> list[EventResult]:
    """Return the status of each event.

    Args:
        receipts: Receipts of the events in ``checked``, in order.
    """
    stored = iter(receipts)
    return [
        EventResult(event.ids.get("event_id"), "rejected", event.reason)
        if isinstance(event, Rejected)
        else _result(event, next(stored))
        for event in checked
    ]


def events_reply(results: list[EventResult]) -> Reply:
    """Build the reply to events; 207 if a row is not stored as a valid one."""
    statuses: list[str] = [result.status for result in results]
    counts = {name: statuses.count(name) for name in STATUSES}
    partial = counts["conflict"] + counts["quarantined"] + counts["rejected"] > 0
    return json_reply(msgspec.json.encode(EventsResponse(**counts, rows=results)), 207 if partial else 200)


def _upserted(
    response_type: type[Any], result_type: type[Any], checked: Sequence[Any], key: str, notes: Iterable[str] = ()
) -> Response:
    """Build the response to item or user rows; 207 if a row was rejected.

    Args:
        notes: Reason for each row that was accepted; may be empty.
    """
    results = [
        result_type(row.ids.get(key), "rejected", row.reason)
        if isinstance(row, Rejected)
        else result_type(getattr(row, key), "accepted", note or None)
        for row, note in zip_longest(checked, notes, fillvalue="")
    ]
    rejected = sum(isinstance(row, Rejected) for row in checked)
    return json_response(response_type(len(checked) - rejected, rejected, results), 207 if rejected else 200)


def _result(event: Event, receipt: Receipt) -> EventResult:
    reason = None if receipt.status == "accepted" else _reason(receipt)
    return EventResult(event.event_id, receipt.status, reason)


def _reason(receipt: Receipt) -> str | None:
    if receipt.status == "quarantined":
        return QUARANTINE_REASONS.get(receipt.rule or "", f"rule {receipt.rule}")
    return REPEAT_REASONS.get(receipt.status)
