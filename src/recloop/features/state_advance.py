"""Merge later rows into stored states.

The rows of other users are copied, not computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np
import polars as pl

from recloop.features.id_index import ItemCodes, UserIndex
from recloop.features.moments import GROUP_LIFE
from recloop.features.state import offsets_of
from recloop.features.state_delta import StateDelta
from recloop.features.state_history import NO_ROW, OpenGroups, StateHistory, Versions, open_groups, ranges
from recloop.features.state_store import StoredStates
from recloop.features.undo import INPUTS

ROW_COLUMNS = ("stamp", "seq", "item", "kind")


def advance(
    stored: StoredStates, delta: StateDelta, seq: int, affected: Sequence[str] = (), rows: pl.DataFrame | None = None
) -> StoredStates:
    """Build the states at ``seq`` from stored ones and the rows after them.

    Args:
        delta: All later valid rows over ``stored.history``, and later attributes.
        affected: Users whose stored rows were retracted; their rows in ``delta`` are ignored.
        rows: All remaining valid rows of ``affected``, labelled and with ``stamp``.
    """
    return _Advance(stored, delta, affected, rows).states(seq)


class _Advance:
    """One merge.

    Attributes:
        again: Remaining rows of the affected users.
        position: (U,) int64, the new position of each stored user.
        changed: Users with later rows or attributes, or with retracted rows, by ascending new position (``places``).
    """

    def __init__(
        self, stored: StoredStates, delta: StateDelta, affected: Sequence[str], rows: pl.DataFrame | None
    ) -> None:
        self.stored, self.delta = stored, delta
        self.again = None if rows is None else StateHistory(rows)
        self._again_groups = None if rows is None or self.again is None else open_groups(rows, self.again)
        self._affected = frozenset(affected)
        users = stored.history.users
        touched = dict.fromkeys([*affected, *(user for user, _ in delta)])
        self.users, self.position = _with_users(users, [user for user in touched if users.find(user) < 0])
        by_position = sorted((self.users.find(user), user) for user in touched)
        self.changed = [user for _, user in by_position]
        self.places = np.array([place for place, _ in by_position], dtype=np.int64)

    def states(self, seq: int) -> StoredStates:
        row_offsets, columns, positives = self._rows()
        history = StateHistory.from_columns(
            users=self.users,
            codes=self.delta.codes,
            kinds=self.delta.kinds,
            row_offsets=row_offsets,
            positives=positives,
            versions=self._versions(),
            last_seq=seq,
            **columns,
        )
        return StoredStates(history, self._groups(), seq, self.stored.key)

    def _rows(self) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        """Row offsets, columns and number of inputs of every user."""
        history, kinds = self.stored.history, self.delta.kinds
        parts: list[dict[str, np.ndarray]] = []
        owners: list[np.ndarray] = []
        positives = np.zeros(len(self.users), dtype=np.int64)
        positives[self.position] = history.positives
        old = np.array([history.users.find(user) for user in self.changed], dtype=np.int64)
        is_again = np.array([user in self._affected for user in self.changed], dtype=bool)
        kept = np.flatnonzero((old >= 0) & ~is_again)
        rows, owner = ranges(history.row_offsets[old[kept]], history.row_offsets[old[kept] + 1])
        parts.append({name: getattr(history, name)[rows] for name in ROW_COLUMNS})
        owners.append(kept[owner])
        positives[self.places[is_again]] = 0
        if self.again is not None:
            own = np.array([self.again.users.find(user) for user in self.changed], dtype=np.int64)
            found = np.flatnonzero(is_again & (own >= 0))
            rows, owner = ranges(self.again.row_offsets[own[found]], self.again.row_offsets[own[found] + 1])
            parts.append(self._recoded(self.again, rows))
            owners.append(found[owner])
            positives[self.places[found]] = self.again.positives[own[found]]
        added = [(n, act) for n, user in enumerate(self.changed) if not is_again[n] for act in self._acts(user)]
        columns = list(zip(*(act for _, act in added), strict=True)) or [(), (), (), ()]
        stamp, item, kind, seq = (
            np.array(column, dtype=dtype) for column, dtype in zip(columns, ["i8", "i4", "i4", "i8"], strict=True)
        )
        parts.append({"stamp": stamp, "seq": seq, "item": item, "kind": kind})
        owners.append(np.array([n for n, _ in added], dtype=np.int64))
        np.add.at(positives, self.places[owners[-1]], np.isin(kinds.use[kind], list(INPUTS)))
        owner = np.concatenate(owners)
        merged = {name: np.concatenate([part[name] for part in parts]) for name in ROW_COLUMNS}
        rank = _ranks(self.delta.codes)
        order = np.lexsort((merged["seq"], rank[merged["item"]], merged["stamp"], owner))
        merged = {name: column[order] for name, column in merged.items()}
        offsets = offsets_of(np.bincount(owner, minlength=len(self.changed)))
        row_offsets, columns_of_all = self._spliced(
            history.row_offsets, {name: getattr(history, name) for name in ROW_COLUMNS}, offsets, merged
        )
        return row_offsets, columns_of_all, positives

    def _acts(self, user: str) -> Sequence[tuple[int, int, int, int]]:
        delta = self.delta.get(user)
        return [] if delta is None else delta.acts

    def _recoded(self, other: StateHistory, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Rows of another history with this history's codes and kinds."""
        codes = np.array([self.delta.codes.add(raw) for raw in other.codes.ids], dtype=np.int32)
        kinds = np.array([self.delta.kinds.number(kind) for kind in other.kinds], dtype=np.int32)
        return {
            "stamp": other.stamp[rows],
            "seq": other.seq[rows],
            "item": codes[other.item[rows]],
            "kind": kinds[other.kind[rows]],
        }

    def _versions(self) -> Versions:
        """Attribute versions of every user."""
        versions, history = self.stored.history.versions, self.stored.history
        seqs, texts, counts = [], [], []
        for user in self.changed:
            old = history.users.find(user)
            own = slice(0, 0) if old < 0 else slice(int(versions.offsets[old]), int(versions.offsets[old + 1]))
            delta = self.delta.get(user)
            later = [] if delta is None else delta.versions
            texts += [
                versions.text[low:high].tobytes()
                for low, high in pairwise(versions.text_offsets[own.start : own.stop + 1])
            ]
            seqs += [*versions.seq[own].tolist(), *(seq for seq, _ in later)]
            texts += [msgspec.json.encode(attributes) for _, attributes in later]
            counts.append(own.stop - own.start + len(later))
        n_old = len(versions.text)
        ends = n_old + np.cumsum([len(text) for text in texts], dtype=np.int64)
        starts = ends - np.array([len(text) for text in texts], dtype=np.int64)
        offsets, columns = self._spliced(
            versions.offsets,
            {"seq": versions.seq, "low": versions.text_offsets[:-1], "high": versions.text_offsets[1:]},
            offsets_of(counts),
            {"seq": np.array(seqs, dtype=np.int64), "low": starts, "high": ends},
        )
        text = np.concatenate([versions.text, np.frombuffer(b"".join(texts), dtype=np.uint8)])
        order, _ = ranges(columns["low"], columns["high"])
        return Versions(offsets, columns["seq"], offsets_of(columns["high"] - columns["low"]), text[order])

    def _groups(self) -> OpenGroups:
        """Open groups and newest timestamp of every user."""
        groups = self.stored.groups
        newest = np.full(len(self.users), NO_ROW, dtype=np.int64)
        newest[self.position] = groups.newest
        hashes: list[int] = []
        stamps: list[int] = []
        counts = []
        for place, user in zip(self.places.tolist(), self.changed, strict=True):
            own_newest, own = self._groups_of(user)
            newest[place] = NO_ROW if own_newest is None else own_newest
            hashes += own
            stamps += own.values()
            counts.append(len(own))
        offsets, columns = self._spliced(
            groups.offsets,
            {"hash": groups.hash, "stamp": groups.stamp},
            offsets_of(counts),
            {"hash": np.array(hashes, dtype=np.uint64), "stamp": np.array(stamps, dtype=np.int64)},
        )
        return OpenGroups(offsets, columns["hash"], columns["stamp"], newest)

    def _groups_of(self, user: str) -> tuple[int | None, dict[int, int]]:
        """Newest timestamp of a changed user and its groups that are still open."""
        if user in self._affected:
            position = -1 if self.again is None else self.again.users.find(user)
            groups = self._again_groups
            newest, own = (None, {}) if position < 0 or groups is None else groups.of_user(position)
        else:
            newest, own = self.delta.groups_of(user)
        if newest is None:
            return None, {}
        return newest, {group: stamp for group, stamp in own.items() if newest - stamp <= GROUP_LIFE}

    def _spliced(
        self,
        old_offsets: np.ndarray,
        old: dict[str, np.ndarray],
        changed_offsets: np.ndarray,
        changed: dict[str, np.ndarray],
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Offsets and columns of all users.

        Those of changed users are given; all others keep the stored ones.
        """
        low = np.zeros(len(self.users), dtype=np.int64)
        high = np.zeros(len(self.users), dtype=np.int64)
        low[self.position], high[self.position] = old_offsets[:-1], old_offsets[1:]
        n_old = int(old_offsets[-1])
        low[self.places], high[self.places] = n_old + changed_offsets[:-1], n_old + changed_offsets[1:]
        order, _ = ranges(low, high)
        return offsets_of(high - low), {
            name: np.concatenate([column, changed[name]])[order] for name, column in old.items()
        }


def _with_users(users: UserIndex, added: Sequence[str]) -> tuple[UserIndex, np.ndarray]:
    """Index with further users, and the new position of each user of the old one."""
    if not added:
        return users, np.arange(len(users))
    more, _ = UserIndex.from_ids(added)
    order = np.argsort(np.concatenate([users.hashes, more.hashes]), kind="stable")
    text = np.concatenate([users.text, more.text])
    low = np.concatenate([users.offsets[:-1], more.offsets[:-1] + len(users.text)])[order]
    high = np.concatenate([users.offsets[1:], more.offsets[1:] + len(users.text)])[order]
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    merged = UserIndex(
        np.concatenate([users.hashes, more.hashes])[order], offsets_of(high - low), text[ranges(low, high)[0]]
    )
    return merged, position[: len(users)]


def _ranks(codes: ItemCodes) -> np.ndarray:
    """(n,) int64 rank of each code in the order of the ids' bytes."""
    order = pl.Series(codes.ids, dtype=pl.String).arg_sort().to_numpy()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank
