"""Files of a state history.

They are written once per watermark, and every reader maps them into memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from recloop.errors import UserError
from recloop.features.id_index import ItemCodes, UserIndex
from recloop.features.state_history import OpenGroups, StateHistory, Versions, open_groups
from recloop.features.undo import Kind, Kinds
from recloop.storage import array_folder

SCHEMA = 2  # 2: hashes of the item ids
"""Version of the arrays; folders of other versions are rejected."""
PREFIX = "states"
ROW_ARRAYS = ("row_offsets", "stamp", "seq", "item", "kind", "positives")
GROUP_ARRAYS = ("offsets", "hash", "stamp", "newest")
VERSION_ARRAYS = ("offsets", "seq", "text_offsets", "text")


class StoredStates(NamedTuple):
    """States of all users at ``seq``, mapped from files."""

    history: StateHistory
    groups: OpenGroups
    seq: int
    key: str


def name(seq: int, key: str) -> str:
    """Folder name of the states at ``seq`` for state key ``key`` (8 hex digits)."""
    return f"{PREFIX}-{seq}-{key}"


def folders(store: Path) -> list[str]:
    """Names of the stored states of a project, ascending."""
    return sorted(folder.name for folder in store.glob(f"{PREFIX}-*"))


def keep_only(store: Path, names: Collection[str]) -> None:
    """Remove all other stored states; mapped ones stay readable."""
    for name in folders(store):
        if name not in names:
            shutil.rmtree(store / name, ignore_errors=True)
    for file in store.glob("snapshots-*.db"):  # of earlier versions
        file.unlink(missing_ok=True)


def forget(store: Path, watermark: int) -> None:
    """Remove the states of earlier watermarks; mapped ones stay readable."""
    keep_only(store, [name for name in folders(store) if int(name.split("-")[1]) >= watermark])


def write_frame(path: Path, frame: pl.DataFrame, users: pl.DataFrame | None, seq: int, key: str) -> None:
    """Write the states of a frame of all valid events, labelled and with ``stamp``."""
    history = StateHistory(frame, users)
    write(path, StoredStates(history, open_groups(frame, history), seq, key))


def write(path: Path, states: StoredStates) -> None:
    """Write states durably and atomically."""
    history, groups, seq, key = states
    item_text = [raw.encode() for raw in history.codes.ids]
    arrays = {
        **{name: getattr(history, name) for name in ROW_ARRAYS},
        **{f"group_{name}": getattr(groups, name) for name in GROUP_ARRAYS},
        **{f"version_{name}": getattr(history.versions, name) for name in VERSION_ARRAYS},
        "user_hashes": history.users.hashes,
        "user_offsets": history.users.offsets,
        "user_text": history.users.text,
        "item_sizes": np.array([len(text) for text in item_text], dtype=np.int64),
        "item_hashes": history.codes.hashes(np.arange(len(item_text))),
        "item_text": np.frombuffer(b"".join(item_text), dtype=np.uint8),
    }
    kinds = [[kind.use, kind.pair, kind.weight, kind.units] for kind in history.kinds]
    array_folder.write(path, arrays, {"schema": SCHEMA, "seq": seq, "key": key, "kinds": kinds})


def read(path: Path, key: str) -> StoredStates:
    """Map stored states.

    Raises:
        UserError: the folder is missing, incomplete, of another format or of another key.
    """
    arrays, facts = array_folder.read(path)
    found = facts.get("schema"), facts.get("key")
    if found != (SCHEMA, key):
        raise UserError("states", f"schema {found[0]}, key {found[1]}", f"schema {SCHEMA}, key {key}", array_folder.FIX)
    text, ends = arrays["item_text"].tobytes(), np.cumsum(arrays["item_sizes"])
    starts = ends - arrays["item_sizes"]
    history = StateHistory.from_columns(
        **{name: arrays[name] for name in ROW_ARRAYS},
        users=UserIndex(arrays["user_hashes"], arrays["user_offsets"], arrays["user_text"]),
        codes=ItemCodes(
            (text[low:high].decode() for low, high in zip(starts.tolist(), ends.tolist(), strict=True)),
            arrays["item_hashes"].copy(),
        ),
        kinds=Kinds(Kind(*kind) for kind in facts["kinds"]),
        versions=Versions(**{name: arrays[f"version_{name}"] for name in VERSION_ARRAYS}),
        last_seq=int(facts["seq"]),
    )
    groups = OpenGroups(**{name: arrays[f"group_{name}"] for name in GROUP_ARRAYS})
    return StoredStates(history, groups, int(facts["seq"]), key)


def current(path: Path, key: str) -> StoredStates | None:
    """Map stored states; None if they are missing or not valid."""
    try:
        return read(path, key)
    except UserError:
        return None
