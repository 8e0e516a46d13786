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
    wanted = [text.encode() for text in texts]
    found = []
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name not in leave_out:
            content = file.read_bytes()
            if file.suffix == ".parquet":
                content += pl.read_parquet(file).write_json().encode()
            if any(text in content for text in wanted):
                found.append(str(file.relative_to(folder)))
    return found
