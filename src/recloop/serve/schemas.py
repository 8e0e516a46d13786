"""Request and response structs of the HTTP interface; also the source of OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from recloop.files import AttributeValues, JsonTree
from recloop.ingest.parse import Text

Temperature = Literal["hot", "warm", "cold"]
"""Hot: id in the table (has a positive). Warm: attributes only. Cold: neither."""


class EventResult(msgspec.Struct):
    event_id: str | None
    status: Literal["accepted", "duplicate", "conflict", "quarantined", "rejected"]
    reason: str | None = None


class EventsResponse(msgspec.Struct):
    """Result per event, in request order."""

    accepted: int
    duplicate: int
    conflict: int
    quarantined: int
    rejected: int
    rows: list[EventResult]


class RetractionResponse(msgspec.Struct):
    """Reply of ``DELETE /v1/events/{event_id}``.

    ``unchanged``: the event was retracted before.
    """

    event_id: str
    status: Literal["retracted", "unchanged"]


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
    """Slot of a list; ``?properties=`` adds item attributes."""

    item_id: str
    score: float
    source: str
    reason: str


class RecommendResponse(msgspec.Struct, omit_defaults=True):
    """Reply of ``GET /v1/recommend``: descending scores, ties by item index.

    ``empty_reason`` is the cause of a list without items; other lists do not have it.
    """

    request_id: str
    model_version: str
    variant: str
    placement: str
    degraded: list[str]
    items: list[Any]  # SlotResponse, or a mapping with its fields and the requested properties
    empty_reason: str = ""


class ItemResponse(msgspec.Struct):
    item_id: str
    attributes: AttributeValues
    hidden: bool
    state: Temperature


class PastEvent(msgspec.Struct):
    item_id: str
    timestamp: str


class UserResponse(msgspec.Struct):
    """User state; ``events`` counts positives, ``last_events`` lists the newest 20."""

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
    """Last `recloop verify`: time (int64 µs), checked and unexplained decisions."""

    at: int
    checked: int
    unexplained: int


class RejectedSummary(msgspec.Struct):
    """Rejected rows that are kept, their bytes, and those dropped since the start."""

    rows: int
    bytes: int
    dropped: int


class DiskSummary(msgspec.Struct):
    """Free share of the fullest disk, and the decisions that it cost since the start."""

    free_share: float
    unrecorded_decisions: int


class StatusResponse(msgspec.Struct):
    """Status of the service.

    ``alarms`` are those of docs/ops.md that hold now. ``event_rows`` counts posted events by status since the start; the sum
    is the number of events in answered requests.
    ``degraded_answers`` counts answers without a part, and ``mistyped_items`` posted items with a value of another type
    than the live bundle has, both since the start. ``shadow_skipped`` counts requests not scored in shadow, and ``workers``
    the processes that answer.
    """

    live: str | None
    shadow: str | None
    experiment: str | None
    generation: int
    bundles: list[BundleResponse]
    last_seq: int
    watermark: int
    alarms: list[str]
    degraded: list[str]
    disk: DiskSummary
    degraded_answers: int
    mistyped_items: int
    event_rows: dict[str, int]
    rejected: RejectedSummary
    shadow_skipped: int
    workers: int
    health: dict[str, dict[str, dict[str, JsonTree]]]
    events: dict[str, int]
    verify: VerificationSummary | None


class ReleaseRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/admin/...``.

    ``to`` is shadow, experiment or live; empty means live, if earned.
    """

    bundle: str = ""
    to: str = ""
    reason: str = ""


class ReleaseResponse(msgspec.Struct):
    """Release move, equal to the verbs' ``--json`` output."""

    bundle: str
    from_: str = msgspec.field(name="from")
    to: str
    generation: int
    evidence: JsonTree


class ReloadRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/admin/reload``, an empty object."""


class RefusedKey(msgspec.Struct):
    """Changed key that a reload does not apply, and the command that does."""

    key: str
    fix: str


class ReloadResponse(msgspec.Struct):
    """Result of a reload: keys now in force, and changed keys that are not."""

    changed: list[str]
    refused: list[RefusedKey]


class ReplayRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/admin/replay``.

    ``ids``: numbers of rejected events, at most ``serve.limits.rows``.
    """

    ids: Annotated[list[int], msgspec.Meta(min_length=1)]


class IdentifyRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/identify``.

    ``anonymous_id``: browser or device. ``user_id``: the user who signed in.
    """

    anonymous_id: Text
    user_id: Text


class IdentifyResponse(msgspec.Struct):
    """Result of an identify.

    ``moved``: earlier rows of the anonymous id that are the user's now. A ``duplicate`` has the seq of the first one.
    """

    anonymous_id: str
    user_id: str
    status: Literal["accepted", "duplicate"]
    seq: int
    moved: int


class ForgetRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/admin/forget``."""

    users: Annotated[list[str], msgspec.Meta(min_length=1)]


class ForgottenUser(msgspec.Struct):
    """Dated lines of one erasure, ISO 8601; null: not done yet.

    ``stores``: log, decisions and states are free of the user. ``data``: also archive and bundles, with the next update.
    ``backups``: the last backup with the user is older than ``retention.backups``.
    """

    user_id: str
    requested: str
    stores: str | None
    data: str | None
    backups: str | None


class ForgetResponse(msgspec.Struct):
    """``files`` are those of ``[data]``, which recloop does not change."""

    users: list[ForgottenUser]
    files: list[str]


class ErrorBody(msgspec.Struct):
    code: str
    message: str
    field: str | None = None
    expected: str | None = None


class ErrorResponse(msgspec.Struct):
    """Body of every error response."""

    error: ErrorBody


class HttpError(Exception):
    """Error response with an HTTP status."""

    def __init__(
        self, status: int, code: str, message: str, field: str | None = None, expected: str | None = None
    ) -> None:
        super().__init__(code)
        self.status = status
        self.answer = ErrorResponse(ErrorBody(code, message, field, expected))
        self.headers: dict[str, str] = {}


def unprocessable(field: str, value: str | None, expected: str) -> HttpError:
    """Build the 422 error of an invalid parameter value.

    Args:
        value: The value found; None if it identifies a person, which no message repeats.
    """
    found = "" if value is None else "=" + (value if len(value) <= 100 else value[:97] + "...")
    return HttpError(
        422, f"bad_{field.lower().replace('-', '_')}", f"{field}{found}: expected {expected}", field, expected
    )
