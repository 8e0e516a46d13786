"""The shapes that go in and come out over HTTP; the OpenAPI document is made from these same structs."""

from __future__ import annotations

from typing import Literal

import msgspec

from recloop.json_object import AttributeValues, JsonTree

Temperature = Literal["hot", "warm", "cold"]
"""Of an id: in the table (with a positive), attributes only, neither."""


class EventResult(msgspec.Struct):
    event_id: str | None
    status: Literal["accepted", "duplicate", "conflict", "quarantined", "rejected"]
    reason: str | None = None


class EventsResponse(msgspec.Struct):
    """What became of each event, in the order sent."""

    accepted: int
    duplicate: int
    conflict: int
    quarantined: int
    rejected: int
    rows: list[EventResult]


class ItemResult(msgspec.Struct):
    item_id: str | None
    status: Literal["accepted", "rejected"]
    reason: str | None = None


class ItemsResponse(msgspec.Struct):
    accepted: int
    rejected: int
    rows: list[ItemResult]


class UserResult(msgspec.Struct):
    user_id: str | None
    status: Literal["accepted", "rejected"]
    reason: str | None = None


class UsersResponse(msgspec.Struct):
    accepted: int
    rejected: int
    rows: list[UserResult]


class SlotResponse(msgspec.Struct):
    """One slot of the list; beside these the item attributes that ``?properties=`` asked for."""

    item_id: str
    score: float
    source: str
    reason: str


class RecommendResponse(msgspec.Struct):
    """The reply of ``GET /v1/recommend``: scores falling, ties by the item's index."""

    request_id: str
    model_version: str
    variant: str
    placement: str
    degraded: list[str]
    items: list[JsonTree]


class ItemResponse(msgspec.Struct):
    item_id: str
    attributes: AttributeValues
    hidden: bool
    state: Temperature


class PastEvent(msgspec.Struct):
    item_id: str
    timestamp: str


class UserResponse(msgspec.Struct):
    """``events``: positives of the state; ``last_events``: the newest 20 of them, newest first."""

    user_id: str
    attributes: AttributeValues
    state: Temperature
    events: int
    last_events: list[PastEvent]


class HealthResponse(msgspec.Struct, omit_defaults=True):
    status: str
    reason: str = ""


class BundleResponse(msgspec.Struct):
    bundle: str
    state: str
    at: int
    reason: str


class VerificationSummary(msgspec.Struct):
    """The last `recloop verify`: int64 microseconds, decisions rebuilt, those that differ unexplained."""

    at: int
    checked: int
    unexplained: int


class StatusResponse(msgspec.Struct):
    live: str | None
    shadow: str | None
    experiment: str | None
    generation: int
    bundles: list[BundleResponse]
    last_seq: int
    watermark: int
    degraded: list[str]
    health: dict[str, dict[str, dict[str, JsonTree]]]
    events: dict[str, int]
    verify: VerificationSummary | None


class ReleaseRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A move of ``POST /v1/admin/...``; ``to``: shadow, experiment or live, and without it live where it is earned."""

    bundle: str = ""
    to: str = ""
    reason: str = ""


class ReleaseResponse(msgspec.Struct):
    """One move of the release machine, as the verbs print it."""

    bundle: str
    from_: str = msgspec.field(name="from")
    to: str
    generation: int
    evidence: JsonTree


class ErrorBody(msgspec.Struct):
    code: str
    message: str
    field: str | None = None
    expected: str | None = None


class ErrorResponse(msgspec.Struct):
    """Every answer that is no success."""

    error: ErrorBody


class HttpError(Exception):
    """A request that gets an error answer; ``status`` is HTTP's."""

    def __init__(
        self, status: int, code: str, message: str, field: str | None = None, expected: str | None = None
    ) -> None:
        super().__init__(code)
        self.status = status
        self.answer = ErrorResponse(ErrorBody(code, message, field, expected))
        self.headers: dict[str, str] = {}


def unprocessable(field: str, value: str, expected: str) -> HttpError:
    """422 for a parameter of this value."""
    shown = value if len(value) <= 100 else value[:97] + "..."
    return HttpError(
        422, f"bad_{field.lower().replace('-', '_')}", f"{field}={shown}: expected {expected}", field, expected
    )
