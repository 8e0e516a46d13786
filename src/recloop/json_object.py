"""Typed reader of JSON objects, key by key; unknown keys are kept."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from recloop.errors import BundleError, UserError

T = TypeVar("T")

JsonTree = dict[str, Any]
"""A JSON object at an edge: a request or response body, a JSON file, a row of a raw file, a JSON column of a store."""
AttributeValues = dict[str, Any]
"""Attributes of an item or a user, by name."""


class JsonObject:
    """Read one JSON object key by key; ``unread`` holds the keys that were not asked for.

    Args:
        tree: The parsed JSON.
        where: File and position, for errors.
        error: The exception type for a missing value or a wrong type.
        fix: The command that recreates the file.
    """

    def __init__(
        self, tree: Any, where: str, error: type[UserError] = BundleError, fix: str = "recloop update --full"
    ) -> None:
        self._where, self._error, self._fix = where, error, fix
        if not isinstance(tree, dict):
            raise error(where, tree, "a JSON object", fix)
        self.unread: JsonTree = dict(tree)

    def required(self, key: str, kind: type[T]) -> T:
        """The value of a key.

        Raises:
            UserError: the key is missing, or its value has another type.
        """
        if key not in self.unread:
            raise self._error(f"{self._where}.{key}", "missing", "this key", self._fix)
        return self._convert(key, self.unread.pop(key), kind)

    def optional(self, key: str, kind: type[T]) -> T | None:
        """The value of a key, None where it is absent or null.

        Raises:
            UserError: its value has another type.
        """
        if self.unread.get(key) is None:
            return None
        return self._convert(key, self.unread.pop(key), kind)

    def nullable(self, key: str, kind: type[T]) -> T | None:
        """As `optional`, of a key that is written even where it is null."""
        value = self.optional(key, kind)
        self.unread.pop(key, None)
        return value

    def number(self, key: str) -> float | None:
        """An optional number as it was written: 60 stays an int."""
        return self.optional(key, int | float)  # type: ignore[arg-type]

    def child(self, key: str) -> JsonObject:
        """The object under a key.

        Raises:
            UserError: the key is missing, or its value is not an object.
        """
        return self._object(self.required(key, dict), key)

    def children(self, key: str) -> dict[str, JsonObject]:
        """The objects in the object under a key, by name, in their order."""
        objects = self.required(key, dict)
        return {name: self._object(tree, f"{key}.{name}") for name, tree in objects.items()}

    def _object(self, tree: Any, place: str) -> JsonObject:
        return JsonObject(tree, f"{self._where}.{place}", self._error, self._fix)

    def _convert(self, key: str, value: Any, kind: type[T]) -> T:
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise self._error(f"{self._where}.{key}", value, str(error), self._fix) from None


def without_none(**values: Any) -> JsonTree:
    """The keys whose value is not None."""
    return {key: value for key, value in values.items() if value is not None}
