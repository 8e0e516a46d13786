"""Text of an attribute's value, by which categories, clusters and reports name it."""

from __future__ import annotations

import json
from typing import Any


def as_text(raw: Any) -> str:
    """Value as text.

    Other types become JSON, so 1 and "1" are the same value.
    """
    if isinstance(raw, str):
        return raw
    return str(raw) if type(raw) is int else json.dumps(raw, sort_keys=True, default=str)
