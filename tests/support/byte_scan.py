"""Search of a folder for texts: raw bytes of every file, and the content of Parquet files."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import polars as pl


def files_naming(folder: Path, texts: Collection[str], leave_out: Collection[str] = ()) -> list[str]:
    """Paths in a folder whose bytes or rows have one of the texts, ascending.

    Args:
        leave_out: Names of files that are not searched.
    """
    wanted = {text.encode() for text in texts}
    found = []
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name not in leave_out:
            content = file.read_bytes()
            if file.suffix == ".parquet":
                content += pl.read_parquet(file).write_json().encode()
            if _has_any(content, wanted):
                found.append(str(file.relative_to(folder)))
    return found


def _has_any(content: bytes, wanted: Collection[bytes]) -> bool:
    """Look for the common beginning of the texts once, not for each of them."""
    first, last = min(wanted), max(wanted)
    different = (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    beginning = first[: next(different, len(first))]
    if not beginning:
        return any(text in content for text in wanted)
    lengths = {len(text) for text in wanted}
    place = content.find(beginning)
    while place >= 0:
        if any(content[place : place + length] in wanted for length in lengths):
            return True
        place = content.find(beginning, place + 1)
    return False
