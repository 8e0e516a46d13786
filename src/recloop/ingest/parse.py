"""Parser of posted rows, which refuses whole requests or rejects single rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar

import msgspec

from recloop.config import Data, Field, Limits
from recloop.data.guests import GUEST_REFUSED, is_present
from recloop.data.limits import excess_bytes, text_excess
from recloop.data.numbers import read_number
from recloop.data.rejected_rows import GUEST_REASON
from recloop.features.categories import with_categories
from recloop.features.id_form import form_id, id_text
from recloop.features.timestamp_text import EXPECTED_FORMS, parse_timestamp
from recloop.files import AttributeValues, JsonTree
from recloop.ingest.body import Rejected, is_ndjson, parse_rows
from recloop.ingest.row_limits import DEFAULT_LIMITS, attributes_excess, size_excess, tree_excess
from recloop.records import GUEST_PREFIX, MAX_ID_BYTES, Event, Item, User
from recloop.storage import identities
from recloop.storage.event_rows import object_text

ID_NAMES = "user_id", "item_id", "event_id"
TEXT_NAMES = (
    "user_id", "item_id", "event_type", "group_id", "event_id", "session_id", "anonymous_id", "placement", "request_id",
)  # fmt: skip
NUMBER_NAMES = "value", "quantity"
RESERVED_REASON = f"event_id begins with {identities.MOVED}, which is reserved; expected another event_id"
UNKNOWN_ITEM = "unknown item: expected an id from the events or the catalog"

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_BYTES)]
"""An id or a name: a string of 1 to 512 bytes (UTF-8) that is never parsed."""


class EventIn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Event of ``POST /v1/events``.

    A row without ``user_id`` belongs to the person of ``anonymous_id``; with ``group_id`` alone it is part of a guest basket. Whole numbers in ids become text before the
    row is checked. ``timestamp``: see `recloop.features.timestamp_text`; default: the time of receipt.
    """

    item_id: Text
    event_type: Text
    user_id: Text | None = None
    timestamp: str | int | float | None = None
    value: float | None = None
    quantity: float | None = None
    group_id: Text | None = None
    event_id: Text | None = None
    session_id: Text | None = None
    anonymous_id: Text | None = None
    placement: Text | None = None
    request_id: Text | None = None
    context: JsonTree | None = None


EVENT_DECODER: Final = msgspec.json.Decoder(EventIn)
EVENTS_DECODER: Final = msgspec.json.Decoder(list[EventIn])


class ItemIn(msgspec.Struct, forbid_unknown_fields=True):
    """Item of ``POST /v1/items``; replaces all attributes."""

    item_id: Text
    attributes: AttributeValues = {}
    hidden: bool = False


class ItemChange(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of ``PATCH /v1/items/{item_id}``.

    Null removes an attribute; attributes that are not named stay.
    """

    attributes: AttributeValues = {}
    hidden: bool | None = None


class ItemPatch(ItemChange, forbid_unknown_fields=True, kw_only=True):
    """Row of ``PATCH /v1/items``, as `ItemChange`."""

    item_id: Text


class UserIn(msgspec.Struct, forbid_unknown_fields=True):
    """User of ``POST /v1/users``; replaces all attributes."""

    user_id: Text
    attributes: AttributeValues = {}


Row = TypeVar("Row", EventIn, ItemIn, ItemPatch, UserIn)
Checked = TypeVar("Checked")


def parse_events(
    body: bytes, content_type: str, received_at: int, data: Data, limits: Limits = DEFAULT_LIMITS
) -> list[Event | Rejected]:
    """Parse a body into events and rejected rows, in order.

    Equal to `check_event` of each row of `parse_rows`. A body whose rows need no conversion is decoded at once.

    Raises:
        BadRequest: see `parse_rows`.
    """
    rows = _typed_rows(body, content_type, limits)
    if rows is None:
        trees = parse_rows(body, content_type, limits)
        return with_raw([check_event(tree, received_at, data, limits) for tree in trees], trees)
    return with_raw([_event(row, received_at, data, limits) for row in rows], rows)


def with_raw(checked: list[Checked], rows: Sequence[Any]) -> list[Checked]:
    """Return the checked rows; each rejected one has the row as it was sent."""
    for row, raw in zip(checked, rows, strict=True):
        if isinstance(row, Rejected) and row is not raw:  # a line that is not JSON has its text already
            row.raw = raw
    return checked


def parse_checked(
    body: bytes, content_type: str, check: Callable[[Any], Checked], limits: Limits = DEFAULT_LIMITS
) -> list[Checked]:
    """Parse a body and check each row.

    Raises:
        BadRequest: see `parse_rows`.
    """
    rows = parse_rows(body, content_type, limits)
    return with_raw([check(row) for row in rows], rows)


def check_event(raw: Any, received_at: int, data: Data, limits: Limits = DEFAULT_LIMITS) -> Event | Rejected:
    """Convert a row to an event, or reject it.

    Ids, numbers and times become what a file with the same row gives (``data.id_form``, ``data.missing_users``).
    """
    row = _convert_row(_as_in_files(raw), EventIn, limits)
    if isinstance(row, Rejected):
        return row
    event = _event(row, received_at, data, limits)
    return event if isinstance(event, Event) else Rejected(_ids(raw), event.reason)


def _typed_rows(body: bytes, content_type: str, limits: Limits) -> list[EventIn] | None:
    """Rows of a body, if each has the types of `EventIn` and no blank text.

    None for every other body: its rows are converted one by one.
    """
    lines = is_ndjson(content_type)
    try:
        if lines:
            rows = EVENT_DECODER.decode_lines(body)
        elif body.startswith(b"["):
            rows = EVENTS_DECODER.decode(body)
        else:
            rows = [EVENT_DECODER.decode(body)]
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError, RecursionError):
        return None
    if len(rows) > (limits.ndjson_rows if lines else limits.rows) or any(
        _needs_conversion(row, limits) for row in rows
    ):
        return None
    is_ascii = body.isascii() and b"\\u" not in body  # a character is then a byte, and `Text` has checked the length
    has_checked_lengths = is_ascii and limits.id_bytes == MAX_ID_BYTES
    return rows if has_checked_lengths or not any(text_excess(_texts(row), limits.id_bytes) for row in rows) else None


def _needs_conversion(row: EventIn, limits: Limits) -> bool:
    """True if a text is blank or the context is not storable."""
    return (
        row.item_id.isspace()
        or row.event_type.isspace()
        or (row.user_id is not None and row.user_id.isspace())
        or (row.event_id is not None and row.event_id.isspace())
        or (row.group_id is not None and row.group_id.isspace())
        or (row.session_id is not None and row.session_id.isspace())
        or (row.anonymous_id is not None and row.anonymous_id.isspace())
        or (row.placement is not None and row.placement.isspace())
        or (row.request_id is not None and row.request_id.isspace())
        or (row.context is not None and tree_excess("context", row.context, limits) != "")
    )


def _event(row: EventIn, received_at: int, data: Data, limits: Limits) -> Event | Rejected:
    """Event of a typed row, or the reason to reject it."""
    user_id = row.user_id
    item_id = row.item_id
    if data.id_form != "text":
        user_id = None if user_id is None else form_id(user_id, data.id_form)
        item_id = form_id(item_id, data.id_form)
    if user_id is None or user_id in data.missing_users:
        user_id = None if row.anonymous_id is None else form_id(row.anonymous_id, data.id_form)
    if user_id is None:
        if not is_present(row.group_id):
            return Rejected(_text_ids(row), GUEST_REASON)
        if data.guests == "reject":
            return Rejected(_text_ids(row), GUEST_REFUSED)
        user_id = f"{GUEST_PREFIX}{row.group_id}"
    if identities.is_moved(row.event_id):
        return Rejected(_text_ids(row), RESERVED_REASON)
    try:
        stamp = received_at if row.timestamp is None else parse_timestamp(row.timestamp, data)
    except ValueError as error:
        text = str(row.timestamp)[:60]
        return Rejected(_text_ids(row), f"timestamp={text}: expected {EXPECTED_FORMS}; {error}")
    context = None if row.context is None else object_text(row.context)
    if context is not None and (reason := size_excess("context", context, limits)):
        return Rejected(_text_ids(row), reason)
    return Event(
        user_id=user_id,
        item_id=item_id,
        timestamp=stamp,
        received_at=received_at,
        event_type=row.event_type,
        value=row.value,
        quantity=row.quantity,
        group_id=row.group_id,
        event_id=row.event_id,
        anonymous_id=row.anonymous_id,
        session_id=row.session_id,
        placement=row.placement,
        request_id=row.request_id,
        context=context,
    )


def check_item(
    raw: Any, received_at: int, data: Data, fields: Mapping[str, Field], limits: Limits = DEFAULT_LIMITS
) -> Item | Rejected:
    """Convert a row to an item version, or reject it.

    Attributes are read as those of a file.
    """
    row = _convert_row(_with_id(raw, "item_id"), ItemIn, limits)
    if isinstance(row, Rejected):
        return row
    if reason := attributes_excess(row.attributes, limits):
        return Rejected(_ids(raw), reason)
    item_id = form_id(row.item_id, data.id_form)
    attributes = with_categories(row.attributes, fields)
    return Item(item_id=item_id, attributes=attributes, hidden=row.hidden, received_at=received_at)


def check_item_patch(
    raw: Any,
    current: Callable[[str], Item | None],
    received_at: int,
    data: Data,
    fields: Mapping[str, Field],
    limits: Limits = DEFAULT_LIMITS,
) -> Item | Rejected:
    """Convert a row of a patch to the next version of its item, or reject it.

    Args:
        current: Present version of an item; None if the item is unknown.
    """
    row = _convert_row(_with_id(raw, "item_id"), ItemPatch, limits)
    if isinstance(row, Rejected):
        return row
    item_id = form_id(row.item_id, data.id_form)
    item = current(item_id)
    if item is None:
        return Rejected(_ids(raw), UNKNOWN_ITEM)
    kept = {name: value for name, value in item.attributes.items() if name not in row.attributes}
    named = {name: value for name, value in row.attributes.items() if value is not None}
    attributes = kept | with_categories(named, fields)
    if reason := attributes_excess(attributes, limits):
        return Rejected(_ids(raw), reason)
    hidden = item.hidden if row.hidden is None else row.hidden
    return Item(item_id=item_id, attributes=attributes, hidden=hidden, received_at=received_at)


def check_user(
    raw: Any, received_at: int, data: Data, fields: Mapping[str, Field], limits: Limits = DEFAULT_LIMITS
) -> User | Rejected:
    """Convert a row to a user version, or reject it.

    Attributes are read as those of a file.
    """
    row = _convert_row(_with_id(raw, "user_id"), UserIn, limits)
    if isinstance(row, Rejected):
        return row
    if reason := attributes_excess(row.attributes, limits):
        return Rejected(_ids(raw), reason)
    attributes = with_categories(row.attributes, fields)
    return User(user_id=form_id(row.user_id, data.id_form), attributes=attributes, received_at=received_at)


def timestamp_or_none(text: str, data: Data) -> int | None:
    """Parse a timestamp to microseconds; None if it is invalid."""
    try:
        return parse_timestamp(text, data)
    except ValueError:
        return None


def _convert_row(raw: Any, shape: type[Row], limits: Limits) -> Row | Rejected:
    if isinstance(raw, Rejected):
        return raw
    texts = [(name, raw.get(name)) for name in TEXT_NAMES] if isinstance(raw, dict) else []
    if reason := text_excess(texts, limits.id_bytes):
        return Rejected(_ids(raw), reason)
    try:
        row = msgspec.convert(raw, shape)
    except msgspec.ValidationError as error:
        return Rejected(_ids(raw), _reason(str(error)))
    except OverflowError:
        return Rejected(_ids(raw), "a number is too large")
    name = "context" if "context" in shape.__struct_fields__ else "attributes"
    if reason := tree_excess(name, raw.get(name), limits):
        return Rejected(_ids(raw), reason)
    return row


def _as_in_files(raw: Any) -> Any:
    """Row with ids as text and texts of numbers as numbers, as in files.

    Blank optional texts become null.
    """
    if not isinstance(raw, dict):
        return raw
    row = dict(raw)
    for name in TEXT_NAMES:
        if name not in row:
            continue
        row[name] = id_text(row[name])
        if isinstance(row[name], str) and not row[name].strip():
            row[name] = ""
        if name not in ("item_id", "event_type") and not is_present(row[name]):
            row[name] = None
        elif isinstance(row[name], bool | float):
            return Rejected(_ids(raw), f"{name}={_json_value(row[name])}: expected text or a whole number")
    for name in NUMBER_NAMES:
        value = row.get(name)
        if isinstance(value, str):
            number = read_number(value) if value.strip() else None
            row[name] = value if number is None and value.strip() else number
    return row


def _with_id(raw: Any, name: str) -> Any:
    """Row of an item or user with its id as text."""
    return raw | {name: id_text(raw[name])} if isinstance(raw, dict) and name in raw else raw


def _json_value(value: bool | float) -> str:
    """Value as it is written in JSON."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _ids(raw: Any) -> dict[str, str]:
    """Ids of a row for the reply; one that is too long is left out."""
    if not isinstance(raw, dict):
        return {}
    return {name: raw[name] for name in ID_NAMES if isinstance(raw.get(name), str) and not excess_bytes(raw[name])}


def _text_ids(row: EventIn) -> dict[str, str]:
    return {name: value for name in ID_NAMES if (value := getattr(row, name)) is not None}


def _texts(row: EventIn) -> Iterator[tuple[str, object]]:
    return ((name, getattr(row, name)) for name in TEXT_NAMES)


def _reason(message: str) -> str:
    """Put the field first in msgspec's message: ``user_id: expected `str`, ...``."""
    match = re.fullmatch(r"(.*) - at `\$\.?(.*)`", message)
    if match:
        return f"{match[2]}: {match[1][0].lower()}{match[1][1:]}"
    return message[0].lower() + message[1:]
