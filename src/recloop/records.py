"""Shared records, column names and the hash of ids.

All stamps are int64 microseconds UTC; ids are text and never parsed; ``seq`` numbers every row of the log in the
order of arrival. ``user_id`` / ``item_id`` are raw ids, ``user_ix`` / ``item_ix`` dense ones (row 0 pads).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Final

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.datatypes import DataTypeClass

from recloop.errors import UserError
from recloop.files import AttributeValues, JsonTree

SEQ: Final = "seq"
EVENT_ID: Final = "event_id"
USER_ID: Final = "user_id"
ITEM_ID: Final = "item_id"
TIMESTAMP: Final = "timestamp"
RECEIVED_AT: Final = "received_at"
EVENT_TYPE: Final = "event_type"
VALUE: Final = "value"
QUANTITY: Final = "quantity"
GROUP_ID: Final = "group_id"
CONTEXT: Final = "context"
RULE: Final = "rule"
STAMP: Final = "stamp"  # of the row's moment: the stamp of the first row (smallest seq) of its (user, group_id)
LABEL: Final = "label"  # -1 negative, 0 neutral (an input included), 1 positive: a target
WEIGHT: Final = "weight"
USE: Final = "use"  # a member of Use
PAIR: Final = (
    "pair"  # for an undo: the event type that it reverses, or "*"; for other rows: the type, if an undo names it
)
UNITS: Final = "units"  # quantity of an undo or of a row that can be undone; 1 if it is missing
MOMENT: Final = "moment"  # number of the user's moment, from 0, oldest first

MAX_ID_BYTES: Final = 512
"""Most bytes (UTF-8) of an id or of a name: event type, placement, attribute."""
MAX_ATTRIBUTES: Final = 64
"""Most attributes of an item or a user."""
DEFAULT_EVENT_TYPE: Final = "interaction"
SECOND: Final = 1_000_000  # microseconds
DAY: Final = 86_400 * SECOND
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

EVENT_SCHEMA: Final[dict[str, DataTypeClass]] = {
    SEQ: pl.Int64,
    EVENT_ID: pl.String,
    USER_ID: pl.String,
    "anonymous_id": pl.String,
    ITEM_ID: pl.String,
    TIMESTAMP: pl.Int64,
    RECEIVED_AT: pl.Int64,
    EVENT_TYPE: pl.String,
    VALUE: pl.Float64,
    QUANTITY: pl.Float64,
    GROUP_ID: pl.String,
    "session_id": pl.String,
    "placement": pl.String,
    "request_id": pl.String,
    CONTEXT: pl.String,
}
"""Columns of an event in the archive and in log.db. In log.db ``rule`` follows; it is set if the row is quarantined."""

CONTENT: Final = (USER_ID, ITEM_ID, TIMESTAMP, EVENT_TYPE, VALUE, QUANTITY, GROUP_ID, EVENT_ID)
"""Columns that identify repeated rows of a file: all columns that an import reads."""
FILE_ROW: Final = "file-row:"
"""Prefix of an event_id that was generated from a file name and a row number."""
GUEST_PREFIX: Final = "guest:"
"""Prefix of the user_id of a guest basket: a row with a group_id and without a user gets the prefix and its group_id."""

ITEM_SCHEMA: Final[dict[str, DataTypeClass]] = {
    ITEM_ID: pl.String,
    SEQ: pl.Int64,
    RECEIVED_AT: pl.Int64,
    "attributes": pl.String,  # a JSON object
    "hidden": pl.Boolean,
    "deleted": pl.Boolean,
}
USER_SCHEMA: Final[dict[str, DataTypeClass]] = {
    USER_ID: pl.String,
    SEQ: pl.Int64,
    RECEIVED_AT: pl.Int64,
    "attributes": pl.String,
    "deleted": pl.Boolean,
}

SOURCES: Final = ("model", "history", "neighbours", "attributes", "segment", "popular", "latest", "other")
"""Sources of a slot in statistics (docs/definitions/terms.md); ``other``: a source of another model."""
FUSED_SOURCES: Final = ("model", "history", "neighbours", "popular")
"""Sources of every bundle that the fusion weighs, in the order that breaks ties between weights."""
IMPERSONAL: Final = frozenset({"segment", "popular", "latest"})
"""Sources that do not count as personal for cold-start coverage."""
COLD_POSITIVES: Final = 5
"""A user with fewer valid inputs (targets included) in state is cold."""


def source_names(sources: Iterable[str]) -> tuple[str, ...]:
    """Return `FUSED_SOURCES`, then the other sources by name."""
    return (*FUSED_SOURCES, *sorted(set(sources) - set(FUSED_SOURCES)))


@dataclass(frozen=True)
class FileFacts:
    """Hash and size of one file of a bundle or of ``data/``."""

    sha256: str
    bytes: int


class Use(IntEnum):
    """Use of a valid event in a state (docs/definitions/terms.md).

    A target is an input too. A light negative (a skip) is used in training but not in states, so its use is NONE.
    """

    NEGATIVE = -1  # suppression: the item leaves the list until a later target or an undo
    NONE = 0
    TARGET = 1  # input that is also predicted and counted as a hit
    INPUT = 2  # history that a model sees, never a hit
    UNDO = 3  # undoes an earlier event of the same user and item


ANY_TARGET: Final = "*"
"""`PAIR` of an undo that reverses the heaviest target of the item."""


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Interaction of a user with an item.

    ``seq`` is 0 until the log has numbered the event.
    """

    user_id: str
    item_id: str
    timestamp: int
    event_type: str = DEFAULT_EVENT_TYPE
    seq: int = 0
    received_at: int = 0
    value: float | None = None
    quantity: float | None = None
    group_id: str | None = None
    event_id: str | None = None
    anonymous_id: str | None = None
    session_id: str | None = None
    placement: str | None = None
    request_id: str | None = None
    context: str | None = None
    rule: str | None = None


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """Version of a catalog item."""

    item_id: str
    attributes: AttributeValues = {}
    hidden: bool = False
    deleted: bool = False
    seq: int = 0
    received_at: int = 0


class User(msgspec.Struct, frozen=True, kw_only=True):
    """Version of a user's attributes."""

    user_id: str
    attributes: AttributeValues = {}
    deleted: bool = False
    seq: int = 0
    received_at: int = 0


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Query to the recommender: user, time, placement, length and exclusions.

    ``now`` is int64 microseconds UTC from the clock of the calling process; ``request_id`` seeds random draws. ``n`` 0
    means the placement's length. ``item_id`` is the query item of a list of similar items. ``filter_seen`` leaves out what
    the user has taken before, and ``min_new`` is the smallest share of items that are new to the user, 0 to 1; None means
    the placement's setting.
    """

    user_id: str
    now: int
    n: int = 0
    placement: str = "home"
    exclude: tuple[str, ...] = ()
    filter: str = ""
    properties: tuple[str, ...] = ()
    request_id: str = ""
    item_id: str = ""
    filter_seen: bool | None = None
    min_new: float | None = None


class Slot(msgspec.Struct, frozen=True):
    """Position of a served list."""

    item_id: str
    score: float
    source: str


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Answered request: one row of decisions.db (docs/reference/stores.md).

    The service generates a ``request_id`` for each answer; it is never the client's. ``variant`` and ``bundle`` name what
    answered. ``assigned`` is the user's arm, so it differs from ``variant`` if a candidate failed.
    """

    request_id: str
    role: str  # answer | shadow | replica
    user_id: str
    served_at: int
    as_of_seq: int
    bundle: str
    generation: int
    variant: str
    placement: str
    n: int
    query: JsonTree
    items: list[str]
    scores: list[float]
    sources: list[str]
    degraded: list[str] = []
    session_id: str | None = None
    anonymous_id: str | None = None
    client_request_id: str | None = None  # the client's X-Request-Id; several answers may share one
    assigned: str = "live"  # live | candidate
    positives: int = 0
    inputs: dict[str, str] = {}
    latency_us: int = 0


HOLDOUT_SHARE: Final = 0.02
"""Share of holdout users."""


def hash_unit_interval(salt: str, raw_id: str) -> float:
    """Hash an id to [0, 1) under a salt.

    BLAKE2b with 8 bytes over the salt, a zero byte and the id. Salts in use: ``old``, ``valid``, ``window``,
    ``shadow:BUNDLE``, ``arm:SALT`` (docs/definitions/terms.md). The hash is the same in every process and on every
    machine, so an assignment never changes.
    """
    digest = hashlib.blake2b(salt.encode() + b"\0" + raw_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def hash_unit_intervals(salt: str, raw_ids: Sequence[str]) -> NDArray[np.float64]:
    """(n,) `hash_unit_interval` of each id."""
    start = hashlib.blake2b(salt.encode() + b"\0", digest_size=8)
    digests = bytearray()
    for raw_id in raw_ids:
        state = start.copy()
        state.update(raw_id.encode())
        digests += state.digest()
    return np.frombuffer(bytes(digests), dtype=">u8").astype(np.float64) / 2**64


def is_holdout_user(user_id: str) -> bool:
    """True for 2 % of users, selected by hash.

    Their events feed states and counts but never a network's loss.
    """
    return hash_unit_interval("old", user_id) < HOLDOUT_SHARE


def are_holdout_users(user_ids: Sequence[str]) -> NDArray[np.bool_]:
    """(n,) `is_holdout_user` of each id."""
    return hash_unit_intervals("old", user_ids) < HOLDOUT_SHARE


def is_guest(user_id: str) -> bool:
    """True for the user_id of a guest basket, which is not a user."""
    return user_id.startswith(GUEST_PREFIX)


def guest_rows() -> pl.Expr:
    """Select the rows of guest baskets."""
    return pl.col(USER_ID).str.starts_with(GUEST_PREFIX)


def now() -> int:
    """Time of the machine's clock: int64 microseconds UTC."""
    return time.time_ns() // 1_000


def iso(stamp: int) -> str:
    """Format a stamp as ISO 8601 in UTC: ``2025-06-01T12:00:00Z``.

    Outside the years 1 to 9999 the result is the number itself.
    """
    try:
        return (EPOCH + timedelta(microseconds=stamp)).isoformat().replace("+00:00", "Z")
    except OverflowError:
        return str(stamp)


def from_iso(option: str, text: str, example: str) -> int | None:
    """Parse ISO 8601 (default zone UTC) to int64 microseconds; None if empty.

    Raises:
        UserError: another form; ``option`` is its name and ``example`` a command with a valid one.
    """
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(option, text, "ISO 8601, such as 2025-06-01T12:00:00Z", example) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp()) * SECOND + moment.microsecond


def utc_minute(stamp: int) -> str:
    """Format a stamp in UTC for tables and pages: ``2025-06-01 12:00``."""
    return f"{EPOCH + timedelta(microseconds=stamp):%Y-%m-%d %H:%M}"


def max_int(column: pl.Series) -> int:
    """Largest value of a whole-number column; 0 for an empty one."""
    largest = column.max()
    assert largest is None or isinstance(largest, int)
    return largest or 0
