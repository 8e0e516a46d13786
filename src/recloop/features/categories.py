"""Several categories in one attribute, as a list of texts."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import msgspec

from recloop.config import Field
from recloop.features.value_text import as_text


def as_categories(raw: Any, separator: str = "") -> list[str] | None:
    """Categories of a value in their order, each once; None without one.

    The value is a list, the text of a JSON or Python list, or a text split at ``separator``.
    """
    if raw is None:
        return None
    values = raw if isinstance(raw, list | tuple) else [raw] if not isinstance(raw, str) else _parts(raw, separator)
    texts = [as_text(value).strip() for value in values if value is not None]
    return list(dict.fromkeys(text for text in texts if text)) or None


def with_categories(attributes: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """Replace attributes of kind ``categories`` by lists.

    An empty list is left out.
    """
    row = dict(attributes)
    for name, field in fields.items():
        source = field.source or name
        if field.kind == "categories" and source in row:
            categories = as_categories(row.pop(source), field.separator)
            if categories is not None:
                row[source] = categories
    return row


def _parts(text: str, separator: str) -> list[Any]:
    stripped = text.strip()
    if stripped.startswith("[") and stripped.endswith("]"):
        listed = _listed(stripped)
        if listed is not None:
            return listed
    return text.split(separator) if separator else [text]


def _listed(text: str) -> list[Any] | None:
    """Elements of the text of a JSON or Python list; None for another text."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return list(value) if isinstance(value, list) else None
