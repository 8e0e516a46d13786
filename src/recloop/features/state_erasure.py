"""Removal of users from stored states."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from recloop.errors import UserError
from recloop.features import state_store
from recloop.features.id_index import UserIndex
from recloop.features.state import offsets_of
from recloop.features.state_history import OpenGroups, StateHistory, Versions, ranges
from recloop.features.state_store import StoredStates


def remove_users(store: Path, users: Collection[str]) -> int:
    """Write all stored states again without users; return how many had one.

    States that cannot be read are deleted; the service builds them again.
    """
    changed = 0
    for name in state_store.folders(store):
        path = store / name
        try:
            stored = state_store.read(path, name.rpartition("-")[2])
        except UserError:
            state_store.keep_only(store, [other for other in state_store.folders(store) if other != name])
            continue
        positions = [position for user in users if (position := stored.history.users.find(user)) >= 0]
        if positions:
            state_store.write(path, without_positions(stored, positions))
            changed += 1
    return changed


def without_positions(stored: StoredStates, positions: Collection[int]) -> StoredStates:
    """States without the users at these positions of their index."""
    history, groups = stored.history, stored.groups
    users, versions = history.users, history.versions
    kept = np.setdiff1d(np.arange(len(users)), np.array(sorted(positions), dtype=np.int64))
    text_offsets, text = _taken(users.offsets, kept)
    row_offsets, rows = _taken(history.row_offsets, kept)
    version_offsets, numbers = _taken(versions.offsets, kept)
    version_text_offsets, version_text = _taken(versions.text_offsets, numbers)
    group_offsets, group_rows = _taken(groups.offsets, kept)
    remaining = StateHistory.from_columns(
        users=UserIndex(users.hashes[kept], text_offsets, users.text[text]),
        codes=history.codes,
        kinds=history.kinds,
        row_offsets=row_offsets,
        **{name: getattr(history, name)[rows] for name in ("stamp", "seq", "item", "kind")},
        positives=history.positives[kept],
        versions=Versions(version_offsets, versions.seq[numbers], version_text_offsets, versions.text[version_text]),
        last_seq=history.last_seq,
    )
    open_groups = OpenGroups(group_offsets, groups.hash[group_rows], groups.stamp[group_rows], groups.newest[kept])
    return StoredStates(remaining, open_groups, stored.seq, stored.key)


def _taken(offsets: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of the kept owners, and the rows that they own."""
    low, high = offsets[kept], offsets[kept + 1]
    return offsets_of(high - low), ranges(low, high)[0]
