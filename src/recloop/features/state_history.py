"""Labelled rows of all users as columns, and states of many users at many seqs.

The columns are those of a frame, or arrays mapped from a folder (`recloop.features.state_store`). Rows of a user are sorted
by moment stamp, bytes of the item id and seq.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from recloop.features.id_index import ItemCodes, UserIndex, id_hash
from recloop.features.labels import with_uses
from recloop.features.moments import GROUP_LIFE
from recloop.features.state import MAX_ROWS, StateBatch, StateRows, offsets_of, states_of_rows
from recloop.features.undo import INPUTS, Kinds
from recloop.files import AttributeValues
from recloop.records import GROUP_ID, ITEM_ID, SEQ, STAMP, TIMESTAMP, USE, USER_ID, Use, guest_rows

POSITION = "position"  # of a user in the index


@dataclass(frozen=True)
class Versions:
    """Attribute versions of users, oldest first.

    User u owns ``offsets[u]:offsets[u+1]``.

    ``text_offsets`` (V+1,) int64 point into ``text``, JSON in UTF-8.
    """

    offsets: np.ndarray  # (U+1,) int64
    seq: np.ndarray  # (V,) int64
    text_offsets: np.ndarray  # (V+1,) int64
    text: np.ndarray  # uint8

    @classmethod
    def from_texts(cls, position: np.ndarray, seq: np.ndarray, texts: Sequence[str], n_users: int) -> Versions:
        """Versions of rows sorted by (position, seq)."""
        encoded = [text.encode() for text in texts]
        return cls(
            offsets_of(np.bincount(position, minlength=n_users)),
            seq,
            offsets_of([len(data) for data in encoded]),
            np.frombuffer(b"".join(encoded), dtype=np.uint8),
        )

    def as_of(self, position: int, seq: int) -> Mapping[str, Any] | None:
        """Return the newest attributes of a user at ``seq``; None without a version."""
        if position < 0:
            return None
        low, high = int(self.offsets[position]), int(self.offsets[position + 1])
        n = low + int(np.searchsorted(self.seq[low:high], seq, side="right"))
        if n == low:
            return None
        text = self.text[self.text_offsets[n - 1] : self.text_offsets[n]].tobytes()
        values: AttributeValues = json.loads(text)
        return values


@dataclass(frozen=True)
class OpenGroups:
    """Groups that further rows may join: user u owns ``offsets[u]:offsets[u+1]``.

    ``newest`` (U,) is the newest timestamp of each user's valid rows; `NO_ROW` without rows.
    """

    offsets: np.ndarray  # (U+1,) int64
    hash: np.ndarray  # (G,) uint64, of the group_id
    stamp: np.ndarray  # (G,) int64, newest moment stamp of the group
    newest: np.ndarray  # (U,) int64

    def of_user(self, position: int) -> tuple[int | None, dict[int, int]]:
        """Newest timestamp of a user, and the moment stamp of each of its groups by hash."""
        own = slice(int(self.offsets[position]), int(self.offsets[position + 1]))
        newest = int(self.newest[position])
        groups = dict(zip(self.hash[own].tolist(), self.stamp[own].tolist(), strict=True))
        return None if newest == NO_ROW else newest, groups


NO_ROW = np.iinfo(np.int64).min
"""Newest timestamp of a user without rows."""


class StateHistory:
    """Columns of labelled rows by user; guest baskets have no state.

    Attributes:
        users: Index of the users with a row or attributes.
        row_offsets: (U+1,) int64; user u owns the rows ``row_offsets[u]:row_offsets[u+1]``.
        stamp, seq, item, kind: (n,) columns of the rows; rows without a use are left out.
        positives: (U,) int64, number of each user's inputs.
        last_seq: The newest seq of a row.
        position_of: user_id and position of each user; only if the history was computed from a frame.
    """

    def __init__(self, frame: pl.DataFrame, users: pl.DataFrame | None = None) -> None:
        """Sort the rows once.

        Args:
            frame: Valid events with ``stamp`` and uses (`moment_stamps`, `EventLabeler.label`).
            users: Versions of users: user_id, seq, attributes (JSON object text).
        """
        frame = with_uses(frame)
        frame = frame.filter(~guest_rows())
        rows = frame.filter(pl.col(USE) != Use.NONE)
        ids = frame[USER_ID].unique()
        if users is not None:
            ids = pl.concat([ids, users[USER_ID].unique()]).unique()
        raw_ids = ids.sort().to_list()
        self.users, positions = UserIndex.from_ids(raw_ids)
        position_of = pl.DataFrame({USER_ID: raw_ids, POSITION: positions}, {USER_ID: pl.String, POSITION: pl.Int64})
        self.position_of = position_of
        names = rows[ITEM_ID].unique().sort()
        self.codes = ItemCodes(names.to_list())
        self.kinds, kind = Kinds.of_rows(rows)
        numbers = names.to_frame().with_row_index("code")
        rows = (
            rows.select(USER_ID, ITEM_ID, STAMP, SEQ, pl.Series("kind", kind))
            .join(position_of, on=USER_ID, how="left")
            .join(numbers, on=ITEM_ID, how="left")
            .sort(POSITION, STAMP, "code", SEQ)
        )
        self.stamp, self.seq = rows[STAMP].to_numpy(), rows[SEQ].to_numpy()
        self.item, self.kind = rows["code"].cast(pl.Int32).to_numpy(), rows["kind"].to_numpy()
        position = rows[POSITION].to_numpy()
        self.row_offsets = offsets_of(np.bincount(position, minlength=len(raw_ids)))
        is_input = np.isin(self.kinds.use[self.kind], list(INPUTS))
        self.positives = np.bincount(position[is_input], minlength=len(raw_ids)).astype(np.int64)
        self.versions = _versions(users, position_of, len(raw_ids))
        self.last_seq = int(self.seq.max()) if len(self.seq) else 0

    @classmethod
    def from_columns(cls, **columns: Any) -> StateHistory:
        """History of given attributes (see the class), such as mapped arrays."""
        history = cls.__new__(cls)
        vars(history).update(columns)
        return history

    def __len__(self) -> int:
        return len(self.users)

    @property
    def names(self) -> np.ndarray:
        """(n,) object array of raw item ids by code."""
        return self.codes.names

    def states(self, users: Sequence[str], seqs: Sequence[int], before: Sequence[int] | None = None) -> StateBatch:
        """Compute states from rows with ``seq <= seqs[b]`` and ``stamp < before[b]``."""
        positions = np.array([self.users.find(user) for user in users], dtype=np.int64)
        known, at_seq = np.maximum(positions, 0), np.asarray(seqs, dtype=np.int64)
        low = np.where(positions >= 0, self.row_offsets[known] if len(self) else 0, 0)
        high = np.where(positions >= 0, self.row_offsets[known + 1] if len(self) else 0, 0)
        rows, query = ranges(low, high)
        is_visible = self.seq[rows] <= at_seq[query]
        if before is not None:
            is_visible &= self.stamp[rows] < np.asarray(before, dtype=np.int64)[query]
        rows, query = rows[is_visible], query[is_visible]
        kind = self.kind[rows]
        is_input = np.isin(self.kinds.use[kind], list(INPUTS))
        return states_of_rows(
            users,
            self.codes,
            self.kinds,
            StateRows(query, self.stamp[rows], self.item[rows], kind),
            np.bincount(query[is_input], minlength=len(users)),
            [
                self.versions.as_of(position, seq)
                for position, seq in zip(positions.tolist(), at_seq.tolist(), strict=True)
            ],
        )

    def newest_rows(self, position: int) -> slice | np.ndarray:
        """Rows of a user that its newest state needs, at most twice `MAX_ROWS`."""
        low, high = int(self.row_offsets[position]), int(self.row_offsets[position + 1])
        if high - low <= MAX_ROWS:
            return slice(low, high)
        first = high - MAX_ROWS
        start, end = (
            low + int(np.searchsorted(self.stamp[low:high], self.stamp[first], side=side)) for side in ("left", "right")
        )
        if first - start <= MAX_ROWS:
            return slice(start, high)
        return np.concatenate([np.arange(start, start + MAX_ROWS), np.arange(end, high)])  # a part of a larger moment


def open_groups(frame: pl.DataFrame, history: StateHistory) -> OpenGroups:
    """Groups that further rows may join, and each user's newest timestamp.

    Args:
        frame: The frame of ``history``, with ``group_id`` and ``timestamp``.
    """
    rows = frame.filter(~guest_rows()).select(USER_ID, GROUP_ID, SEQ, STAMP, TIMESTAMP)
    newest_of = (
        rows.group_by(USER_ID).agg(pl.col(TIMESTAMP).max().alias("newest")).join(history.position_of, on=USER_ID)
    )
    groups = (
        rows.filter(pl.col(GROUP_ID).is_not_null())
        .group_by(USER_ID, GROUP_ID)
        .agg(pl.col(STAMP).sort_by(SEQ).last())
        .join(newest_of, on=USER_ID)
        .filter(pl.col("newest") - pl.col(STAMP) <= GROUP_LIFE)
        .sort(POSITION, GROUP_ID)
    )
    newest = np.full(len(history), NO_ROW, dtype=np.int64)
    newest[newest_of[POSITION].to_numpy()] = newest_of["newest"].to_numpy()
    return OpenGroups(
        offsets_of(np.bincount(groups[POSITION].to_numpy(), minlength=len(history))),
        np.fromiter((id_hash(group) for group in groups[GROUP_ID]), dtype=np.uint64, count=len(groups)),
        groups[STAMP].to_numpy(),
        newest,
    )


def _versions(users: pl.DataFrame | None, position_of: pl.DataFrame, n_users: int) -> Versions:
    if users is None:
        return Versions.from_texts(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), [], n_users)
    rows = users.join(position_of, on=USER_ID, how="left").sort(POSITION, SEQ)
    return Versions.from_texts(rows[POSITION].to_numpy(), rows[SEQ].to_numpy(), rows["attributes"].to_list(), n_users)


def ranges(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the ranges ``low[b]:high[b]``, and the number b of each position."""
    lengths = high - low
    query = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum(lengths) - lengths
    return np.arange(len(query)) + np.repeat(low - starts, lengths), query
