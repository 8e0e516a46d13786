"""Texts of attributes: of a value, and of an item as people read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from string import Formatter
from typing import Any


def as_text(raw: Any) -> str:
    """Value as text.

    Other types become JSON, so 1 and "1" are the same value.
    """
    if isinstance(raw, str):
        return raw
    return str(raw) if type(raw) is int else json.dumps(raw, sort_keys=True, default=str)


def display_name(template: str, attributes: Mapping[str, Any], item_id: str) -> str:
    """Format an item's display name by ``data.columns.name``; the id if it has none.

    The template is an attribute, or a text such as ``"{product_type}, {package_size}"``. Missing attributes are
    omitted together with the separator before them.
    """
    if "{" not in template:
        found = attributes.get(template) if template else None
        return item_id if found is None or found == "" else as_text(found)
    text = ""
    has_value = False
    for literal, field, _, _ in Formatter().parse(template):
        if field is None:  # text after the last attribute, such as a closing bracket
            text += literal if has_value else ""
            continue
        value = attributes.get(field)
        has_value = value is not None and value != ""
        if has_value:
            text += (literal if text or literal.strip(" ,;/-") else "") + as_text(value)
    return text.strip() or item_id
