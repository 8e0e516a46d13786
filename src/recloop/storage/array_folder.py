"""Folder of raw arrays that processes map into memory, with facts about them.

``facts.json`` holds type and length of each ``NAME.bin`` and any other facts. A folder is written once, renamed into place
and never changed, so a process may read one that another process has replaced or removed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recloop.errors import UserError
from recloop.files import JsonTree, swap_folder, sync_folder, write_file

FORMAT = 1
"""Version of the folder format; other versions are rejected."""
FACTS = "facts.json"
FIX = "recloop update, or recloop serve, which builds it again"


def write(folder: Path, arrays: Mapping[str, np.ndarray], facts: JsonTree) -> None:
    """Write arrays and facts durably; the folder appears complete or not at all.

    Args:
        arrays: One-dimensional arrays by name.
    """
    staged = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        for name, array in arrays.items():
            write_file(staged / f"{name}.bin", np.ascontiguousarray(array))
        shapes = {name: [array.dtype.str, len(array)] for name, array in arrays.items()}
        text = json.dumps({**facts, "format": FORMAT, "arrays": shapes}, ensure_ascii=False)
        write_file(staged / FACTS, text.encode())
        sync_folder(staged)
        swap_folder(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def read(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Map the arrays of a folder, read-only, and read its facts.

    Raises:
        UserError: the folder is missing, incomplete or of another format.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text("utf-8"))
        if facts["format"] != FORMAT:
            raise UserError("states", f"{folder} of format {facts['format']}", f"format {FORMAT}", FIX)
        return {name: _mapped(folder / f"{name}.bin", *shape) for name, shape in facts["arrays"].items()}, facts
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError("states", folder, f"a complete folder ({type(error).__name__})", FIX) from None


def _mapped(file: Path, dtype: str, length: int) -> np.ndarray:
    expected = np.dtype(dtype).itemsize * length
    size = file.stat().st_size
    if size != expected:
        raise UserError("states", f"{file} of {size:,} bytes", f"{expected:,} bytes", FIX)
    if not length:
        return np.zeros(0, dtype=dtype)
    return np.asarray(np.memmap(file, dtype=dtype, mode="r", shape=(length,)))  # slices of a memmap are slow
