"""Methods of the HTTP interface, shared by both clients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from recloop.client.batches import MAX_BATCH_EVENTS, MAX_BATCH_ROWS, Row, to_json, with_event_ids

Reply = TypeVar("Reply")
Sent = TypeVar("Sent")


@dataclass(frozen=True)
class Call:
    """One request; ``body`` may be empty."""

    method: str
    path: str
    parameters: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    content_type: str = "application/json"


class Calls(ABC, Generic[Reply, Sent]):
    """One method per route of the service.

    ``Reply`` is a JSON object and ``Sent`` a `SendResult`, or awaitables of them.

    Each method raises `ServiceError` if the service refuses the request or cannot be reached. Every request may be sent
    again: an event has an id, and items and users are set, not added to.
    """

    @abstractmethod
    def _send(self, call: Call) -> Reply:
        """Send a request until it succeeds or may not be sent again."""

    @abstractmethod
    def _send_rows(self, method: str, path: str, rows: Iterable[Row], max_rows: int) -> Sent:
        """Send rows in batches.

        Raises:
            ServiceError: a batch failed; ``rows`` are its rows, and ``sent`` counts the batches before it.
        """

    def send_events(self, events: Iterable[Mapping[str, Any]]) -> Sent:
        """Send events; each batch is durable when it is counted.

        An event without ``event_id`` gets a random one, so that a retry counts once.
        """
        return self._send_rows("POST", "/v1/events", with_event_ids(events), MAX_BATCH_EVENTS)

    def send_items(self, items: Iterable[Mapping[str, Any]]) -> Sent:
        """Add or replace items: ``item_id``, ``attributes``, ``hidden``."""
        return self._send_rows("POST", "/v1/items", map(dict, items), MAX_BATCH_ROWS)

    def change_items(self, items: Iterable[Mapping[str, Any]]) -> Sent:
        """Change the named attributes of items; None removes one."""
        return self._send_rows("PATCH", "/v1/items", map(dict, items), MAX_BATCH_ROWS)

    def send_users(self, users: Iterable[Mapping[str, Any]]) -> Sent:
        """Add or replace users: ``user_id``, ``attributes``."""
        return self._send_rows("POST", "/v1/users", map(dict, users), MAX_BATCH_ROWS)

    def identify(self, anonymous_id: str, user_id: str) -> Reply:
        """Join the history of an anonymous id with a user's, at a login."""
        body = to_json({"anonymous_id": anonymous_id, "user_id": user_id})
        return self._send(Call("POST", "/v1/identify", body=body))

    def recommend(self, user_id: str, **parameters: Any) -> Reply:
        """Recommend items to a user.

        Args:
            parameters: As in ``GET /v1/recommend/{user_id}``: ``n``, ``placement``, ``filter``, ``filter_seen``,
                ``min_new``, ``item``, ``session_id``, ``anonymous_id``, and lists of names in ``exclude`` and ``properties``.
        """
        return self._send(Call("GET", f"/v1/recommend/{_segment(user_id)}", _query(parameters)))

    def similar(self, item_id: str, **parameters: Any) -> Reply:
        """Recommend items similar to an item.

        Args:
            parameters: As in ``GET /v1/items/{item_id}/similar``; see `recommend`.
        """
        return self._send(Call("GET", f"/v1/items/{_segment(item_id)}/similar", _query(parameters)))

    def item(self, item_id: str) -> Reply:
        """Get the attributes of an item."""
        return self._send(Call("GET", f"/v1/items/{_segment(item_id)}"))

    def user(self, user_id: str) -> Reply:
        """Get the attributes and the last events of a user."""
        return self._send(Call("GET", f"/v1/users/{_segment(user_id)}"))

    def status(self) -> Reply:
        """Get the deployed bundles and their health."""
        return self._send(Call("GET", "/v1/status"))

    def delete_event(self, event_id: str) -> Reply:
        """Retract an event."""
        return self._send(Call("DELETE", f"/v1/events/{_segment(event_id)}"))

    def change_item(self, item_id: str, attributes: Mapping[str, Any], hidden: bool | None = None) -> Reply:
        """Change the named attributes of an item; None removes one."""
        change = {"attributes": dict(attributes), **({} if hidden is None else {"hidden": hidden})}
        return self._send(Call("PATCH", f"/v1/items/{_segment(item_id)}", body=to_json(change)))

    def hide_item(self, item_id: str) -> Reply:
        """Hide an item from all lists."""
        return self._send(Call("DELETE", f"/v1/items/{_segment(item_id)}"))


def _segment(value: str) -> str:
    return quote(value, safe="")


def _query(parameters: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Format query parameters; each value of a list is a parameter of its own."""
    pairs: list[tuple[str, str]] = []
    for name, value in parameters.items():
        if value is None:
            continue
        if isinstance(value, bool):
            pairs.append((name, "true" if value else "false"))
        elif isinstance(value, str) or not isinstance(value, Iterable):
            pairs.append((name, str(value)))
        elif name == "exclude":
            pairs += _repeated(name, list(value))
        else:
            pairs.append((name, ",".join(map(str, value))))
    return pairs


def _repeated(name: str, values: Sequence[str]) -> list[tuple[str, str]]:
    """Build one parameter per value.

    A single value is repeated, so that its commas do not split it.
    """
    return [(name, str(value)) for value in ([*values, *values] if len(values) == 1 else values)]
