"""Limits of ids, names and attributes; the same for files and posted rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from recloop.records import MAX_ATTRIBUTES, MAX_ID_BYTES

INVALID_ID = f"expected at most {MAX_ID_BYTES} bytes without the character NUL"
NUL = "\0"
"""Character at which the JSON functions of SQLite end a text."""


def text_excess(texts: Iterable[tuple[str, object]], max_bytes: int = MAX_ID_BYTES) -> str:
    """Reason to reject a row by its ids and names; empty if all are valid.

    Args:
        texts: Column and value; a value that is not a text is ignored.
    """
    for name, text in texts:
        if isinstance(text, str):
            if size := excess_bytes(text, max_bytes):
                return f"{name}: {size:,} bytes; expected at most {max_bytes} bytes"
            if NUL in text:
                return f"{name}: expected a text without the character NUL"
    return ""


def attribute_excess(
    attributes: Mapping[str, Any], max_names: int = MAX_ATTRIBUTES, max_bytes: int = MAX_ID_BYTES
) -> str:
    """Reason to reject attributes by their number and names; empty if all are valid."""
    if len(attributes) > max_names:
        return f"attributes: {len(attributes):,} names; expected at most {max_names}"
    if any(NUL in name for name in attributes):
        return "attributes: expected names without the character NUL"
    size = max((excess_bytes(name, max_bytes) for name in attributes), default=0)
    return f"attributes: a name of {size:,} bytes; expected at most {max_bytes} bytes" if size else ""


def excess_bytes(text: str, max_bytes: int = MAX_ID_BYTES) -> int:
    """Return the bytes (UTF-8) of a text that is too long; 0 for any other."""
    if 4 * len(text) <= max_bytes:
        return 0
    size = len(text.encode("utf-8", "surrogatepass"))
    return size if size > max_bytes else 0


def is_invalid_id(texts: pl.Series) -> pl.Series:
    """(n,) Boolean: the text has too many bytes or a NUL; False for null."""
    return ((texts.str.len_bytes() > MAX_ID_BYTES) | texts.str.contains(NUL, literal=True)).fill_null(False)
