"""Limits of posted attributes and contexts: levels, whole numbers and bytes."""

from __future__ import annotations

from typing import Any, Final

from recloop.config import Limits
from recloop.data.limits import attribute_excess, excess_bytes
from recloop.storage.event_rows import object_text

DEFAULT_LIMITS: Final = Limits()


def tree_excess(name: str, tree: Any, limits: Limits) -> str:
    """Reason to reject attributes or a context by levels and numbers; or empty.

    Args:
        name: ``attributes`` or ``context``.
    """
    n_levels = levels(tree)
    if n_levels > limits.depth:
        return f"{name}: {n_levels} levels; expected at most {limits.depth}"
    if not has_small_numbers(tree):
        return f"{name}: a whole number of more than 64 bits"
    return ""


def size_excess(name: str, text: str, limits: Limits) -> str:
    """Reason to reject an encoded tree by its bytes, or empty."""
    size = excess_bytes(text, limits.attribute_bytes)
    return f"{name}: {size:,} bytes; expected at most {limits.attribute_bytes:,}" if size else ""


def attributes_excess(attributes: dict[str, Any], limits: Limits) -> str:
    """Reason to reject posted attributes by their names or their bytes; or empty."""
    names = attribute_excess(attributes, limits.attributes, limits.id_bytes)
    return names or size_excess("attributes", object_text(attributes), limits)


def levels(tree: Any) -> int:
    """Return the number of nested objects and arrays."""
    if not isinstance(tree, dict | list):
        return 0
    return 1 + max(map(levels, tree.values() if isinstance(tree, dict) else tree), default=0)


def has_small_numbers(tree: Any) -> bool:
    """Return True if every whole number has at most 64 bits."""
    if isinstance(tree, int):
        return -(2**63) <= tree < 2**64
    if isinstance(tree, dict | list):
        return all(map(has_small_numbers, tree.values() if isinstance(tree, dict) else tree))
    return True
