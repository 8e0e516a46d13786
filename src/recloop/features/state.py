"""What is known of a user: the fold over believed events up to a seq, by one more event and from columns.

A *moment* is what one user did at once: its stamp is that of the first row (smallest seq) of its (user, group_id), a
row's own without a group. A row of a group that lies more than `GROUP_SPAN` from its moment starts the group anew: a
receipt number is used again; so does a row of a group that is older than `GROUP_LIFE`. A user's rows of one moment stamp are one moment, a set of items in the order of their ids'
bytes. A state at ``s`` holds every moment with a positive, the dislikes not yet taken back, and the attributes
(definitions, section 1). It speaks of raw ids, so every bundle with the same event classes reads it.

The two forms, `UserState.add` and `Timeline.states`, are held equal by a property-based test.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import numpy as np
import polars as pl

from recloop.features.signal import STANDING
from recloop.records import DAY, GROUP_ID, ITEM_ID, LABEL, MOMENT, SEQ, STAMP, TIMESTAMP, USER_ID

GROUP_SPAN: Final = DAY
"""A row further than this from the first row of its group is of another moment."""
GROUP_LIFE: Final = 30 * DAY
"""A group ends when its user has a row that is dated this much later than it: a state does not hold it for ever."""
GROUPS: Final = 64
"""Groups in a state above which those that ended are removed."""
FIRST_OF_GROUP: Final = pl.col(TIMESTAMP).first().over(USER_ID, GROUP_ID)


def moment_stamps(frame: pl.DataFrame) -> pl.DataFrame:
    """The believed rows, in the order of their seq, with the column ``stamp`` of their moment."""
    frame = frame.sort(SEQ)
    stamp = pl.when(pl.col(GROUP_ID).is_null()).then(pl.col(TIMESTAMP)).otherwise(FIRST_OF_GROUP)
    newest = pl.col(TIMESTAMP).cum_max().shift(1).over(USER_ID).alias("newest")
    frame = frame.with_columns(stamp.alias(STAMP), newest)
    later = pl.col(SEQ) != pl.col(SEQ).first().over(USER_ID, GROUP_ID)
    over = pl.col(GROUP_ID).is_not_null() & later & (pl.col("newest") - FIRST_OF_GROUP > GROUP_LIFE)
    anew = pl.concat([reused_groups(frame), frame.filter(over).select(USER_ID, GROUP_ID)]).unique()
    return (_regrouped(frame, anew) if len(anew) else frame).drop("newest")


def reused_groups(frame: pl.DataFrame) -> pl.DataFrame:
    """user_id and group_id of the groups with rows more than `GROUP_SPAN` from their first; rows in the order of seq."""
    far = pl.col(GROUP_ID).is_not_null() & ((pl.col(TIMESTAMP) - FIRST_OF_GROUP).abs() > GROUP_SPAN)
    return frame.filter(far).select(USER_ID, GROUP_ID).unique(maintain_order=True)


def _regrouped(frame: pl.DataFrame, groups: pl.DataFrame) -> pl.DataFrame:
    """The stamps of groups with several moments, row by row in the order of seq, as `UserState.add` gives them."""
    rows = frame.join(groups, on=[USER_ID, GROUP_ID], how="semi", maintain_order="left")
    state: dict[tuple[str, str], int] = {}
    seqs, stamps = [], []
    columns = SEQ, USER_ID, GROUP_ID, TIMESTAMP, "newest"
    for seq, user_id, group_id, timestamp, newest in rows.select(columns).iter_rows():
        state[user_id, group_id] = joined(state.get((user_id, group_id)), timestamp, newest)
        seqs.append(seq)
        stamps.append(state[user_id, group_id])
    anew = pl.DataFrame({SEQ: seqs, "anew": stamps}, schema={SEQ: pl.Int64, "anew": pl.Int64})
    found = frame.join(anew, on=SEQ, how="left", maintain_order="left")
    return found.with_columns(pl.coalesce("anew", STAMP).alias(STAMP)).drop("anew")


def joined(moment: int | None, timestamp: int, newest: int | None) -> int:
    """The moment stamp of a row of a group.

    Args:
        moment: The newest moment stamp of the group; None: the group is new.
        newest: The newest timestamp of the user's earlier rows; None: there are none.
    """
    if moment is None or abs(timestamp - moment) > GROUP_SPAN or ended(moment, newest):
        return timestamp
    return moment


def ended(moment: int, newest: int | None) -> bool:
    """Whether no further row joins a group of this moment stamp."""
    return newest is not None and newest - moment > GROUP_LIFE


def number_moments(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows with the column ``moment``: the number of the user's moment, from 0, oldest first."""
    number = pl.col(STAMP).rank("dense").over(USER_ID) - 1
    return frame.with_columns(number.cast(pl.Int32).alias(MOMENT))


class UserState(msgspec.Struct):
    """One user's state, grown by one more event; what a snapshot holds.

    Attributes:
        moments: (stamp, item ids ascending by bytes) of every moment with a positive, oldest first.
        groups: The newest moment stamp of every group_id seen, whatever its rows meant: late rows join it; those that
            ended may be missing.
        newest: The newest timestamp of a believed row; None: there was none.
        negatives: Newest moment stamp of a dislike, by item; whether it still counts is asked of `States`.
        positives: Believed positive rows.
        attributes: The newest attributes, None where none were ever given.
    """

    moments: list[tuple[int, list[str]]] = []
    groups: dict[str, int] = {}
    negatives: dict[str, int] = {}
    positives: int = 0
    newest: int | None = None
    attributes: dict[str, Any] | None = None

    def add(self, item_id: str, timestamp: int, group_id: str | None, label: int) -> None:
        """Fold in one believed event; events come in the order of their seq."""
        stamp = timestamp
        if group_id is not None:
            stamp = joined(self.groups.get(group_id), timestamp, self.newest)
            if group_id not in self.groups and len(self.groups) >= GROUPS:
                self.groups = {name: moment for name, moment in self.groups.items() if not ended(moment, self.newest)}
            self.groups[group_id] = stamp
        self.newest = timestamp if self.newest is None else max(self.newest, timestamp)
        if label > 0:
            self.positives += 1
            place = bisect.bisect_left(self.moments, stamp, key=lambda moment: moment[0])
            if place == len(self.moments) or self.moments[place][0] != stamp:
                self.moments.insert(place, (stamp, []))
            items = self.moments[place][1]
            spot = bisect.bisect_left(items, item_id)
            if spot == len(items) or items[spot] != item_id:
                items.insert(spot, item_id)
        elif label < 0:
            self.negatives[item_id] = max(stamp, self.negatives.get(item_id, stamp))

    def disliked(self) -> list[str]:
        """Items whose newest dislike no later moment took back, ascending; in one moment the dislike stands."""
        standing = dict(self.negatives)
        for stamp, items in reversed(self.moments if standing else []):
            for item_id in items:
                if standing.get(item_id, stamp) < stamp:
                    del standing[item_id]
        return sorted(standing)


@dataclass(frozen=True)
class States:
    """B users' states, flat.

    State b owns the moments ``moment_offsets[b]:moment_offsets[b+1]``; moment m has ``stamps[m]`` and owns the items
    ``item_offsets[m]:item_offsets[m+1]``, codes into ``names`` (raw ids, ascending by bytes, so codes ascend inside
    a moment). ``negatives`` are codes too. ``positives`` (B,) counts believed positive rows.
    """

    users: list[str]
    names: np.ndarray  # (n,) object
    moment_offsets: np.ndarray  # (B+1,) int64
    stamps: np.ndarray  # (M,) int64
    item_offsets: np.ndarray  # (M+1,) int64
    items: np.ndarray  # (E,) int32
    negative_offsets: np.ndarray  # (B+1,) int64
    negatives: np.ndarray  # int32
    positives: np.ndarray  # (B,) int64
    attributes: list[Mapping[str, Any] | None]

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def of(cls, users: Sequence[str], states: Sequence[UserState]) -> States:
        """A batch of states grown event by event."""
        disliked = [state.disliked() for state in states]
        known = {item for state in states for _, items in state.moments for item in items}
        names = np.array(sorted(known.union(*disliked)), dtype=object)
        code = {name: number for number, name in enumerate(names)}
        moments = [moment for state in states for moment in state.moments]
        items = [code[item] for _, held in moments for item in held]
        return cls(
            users=list(users),
            names=names,
            moment_offsets=offsets_of([len(state.moments) for state in states]),
            stamps=np.array([stamp for stamp, _ in moments], dtype=np.int64),
            item_offsets=offsets_of([len(held) for _, held in moments]),
            items=np.array(items, dtype=np.int32),
            negative_offsets=offsets_of([len(ids) for ids in disliked]),
            negatives=np.array([code[item] for ids in disliked for item in ids], dtype=np.int32),
            positives=np.array([state.positives for state in states], dtype=np.int64),
            attributes=[state.attributes for state in states],
        )

    def until(self, nows: np.ndarray) -> States:
        """The states without the moments that are dated later than each query's now; ``positives`` without their items.

        A dislike counts whatever its stamp: what a user wants out of the list stays out.

        Args:
            nows: (B,) int64 microseconds.
        """
        moment_query = np.repeat(np.arange(len(self)), np.diff(self.moment_offsets))
        seen = self.stamps <= nows[moment_query]
        if seen.all():
            return self
        sizes = np.diff(self.item_offsets)
        hidden = np.bincount(moment_query[~seen], weights=sizes[~seen], minlength=len(self)).astype(np.int64)
        return replace(
            self,
            moment_offsets=offsets_of(np.bincount(moment_query[seen], minlength=len(self))),
            stamps=self.stamps[seen],
            item_offsets=offsets_of(sizes[seen]),
            items=self.items[np.repeat(seen, sizes)],
            positives=np.maximum(self.positives - hidden, 0),
        )

    def digest(self, b: int) -> str:
        """8 hex of everything that state b holds: equal states, equal digests, in every process."""
        moments = []
        for m in range(self.moment_offsets[b], self.moment_offsets[b + 1]):
            held = self.names[self.items[self.item_offsets[m] : self.item_offsets[m + 1]]]
            moments.append([int(self.stamps[m]), held.tolist()])
        disliked = self.names[self.negatives[self.negative_offsets[b] : self.negative_offsets[b + 1]]].tolist()
        whole = [moments, disliked, int(self.positives[b]), self.attributes[b]]
        return hashlib.blake2b(msgspec.json.encode(whole, order="sorted"), digest_size=4).hexdigest()


class Timeline:
    """A log as columns, from which the states of many users at many seqs are read at once: the other path to state."""

    def __init__(self, frame: pl.DataFrame, users: pl.DataFrame | None = None) -> None:
        """Sort the rows once.

        Args:
            frame: Believed events with ``stamp``, ``label`` and ``weight`` (`moment_stamps`, `Signal.label`).
            users: Versions of users: user_id, seq, attributes (JSON object text).
        """
        rows = frame.select(USER_ID, ITEM_ID, STAMP, SEQ, STANDING).filter(pl.col(LABEL) != 0)
        self.names = rows[ITEM_ID].unique().sort().to_numpy().astype(object)
        codes = pl.DataFrame({ITEM_ID: self.names.tolist(), "code": np.arange(len(self.names), dtype=np.int32)},
                             schema={ITEM_ID: pl.String, "code": pl.Int32})  # fmt: skip
        rows = rows.join(codes, on=ITEM_ID, how="left").sort(USER_ID, STAMP, "code", SEQ)
        counts = rows.group_by(USER_ID, maintain_order=True).len()
        self._span: dict[str, tuple[int, int]] = {}
        start = 0
        for user_id, length in counts.iter_rows():
            self._span[user_id] = (start, start + length)
            start += length
        self._stamp = rows[STAMP].to_numpy()
        self._seq = rows[SEQ].to_numpy()
        self._code = rows["code"].to_numpy()
        self._label = rows[LABEL].to_numpy()
        self._attributes = attribute_versions(users)

    def states(self, users: Sequence[str], seqs: Sequence[int], before: Sequence[int] | None = None) -> States:
        """The state of user b at ``seqs[b]``: rows with ``seq <= seqs[b]`` and, where given, ``stamp < before[b]``."""
        spots, lengths = [], []
        for b, user_id in enumerate(users):
            low, high = self._span.get(user_id, (0, 0))
            known = self._seq[low:high] <= seqs[b]
            if before is not None:
                known &= self._stamp[low:high] < before[b]
            spots.append(low + np.flatnonzero(known))
            lengths.append(len(spots[-1]))
        rows = np.concatenate(spots) if spots else np.zeros(0, dtype=np.int64)
        query = np.repeat(np.arange(len(users)), lengths)
        positive = self._label[rows] > 0
        held, owner = rows[positive], query[positive]
        stamp, code = self._stamp[held], self._code[held]
        new_moment = _changes(owner, stamp)
        new_item = _changes(owner, stamp, code)
        moment_owner = owner[new_moment]
        item_moment = (np.cumsum(new_moment) - 1)[new_item]
        negative_offsets, negatives = self._standing(rows[~positive], query[~positive], held, owner, len(users))
        return States(
            users=list(users),
            names=self.names,
            moment_offsets=offsets_of(np.bincount(moment_owner, minlength=len(users))),
            stamps=stamp[new_moment],
            item_offsets=offsets_of(np.bincount(item_moment, minlength=len(moment_owner))),
            items=code[new_item],
            negative_offsets=negative_offsets,
            negatives=negatives,
            positives=np.bincount(owner, minlength=len(users)).astype(np.int64),
            attributes=[self._as_of(user_id, seq) for user_id, seq in zip(users, seqs, strict=True)],
        )

    def _standing(
        self, rows: np.ndarray, query: np.ndarray, held: np.ndarray, owner: np.ndarray, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Dislikes that no later moment took back: codes ascending by query, and their offsets."""
        newest: dict[tuple[int, int], int] = {}
        for row, b in zip(rows.tolist(), query.tolist(), strict=True):
            key = (b, int(self._code[row]))
            newest[key] = max(newest.get(key, self._stamp[row]), self._stamp[row])
        if newest:
            touched = np.isin(owner, query)
            for row, b in zip(held[touched].tolist(), owner[touched].tolist(), strict=True):
                key = (b, int(self._code[row]))
                if newest.get(key, self._stamp[row]) < self._stamp[row]:
                    del newest[key]
        standing = sorted(newest)
        counts = np.bincount([b for b, _ in standing], minlength=size) if standing else np.zeros(size, dtype=np.int64)
        return offsets_of(counts), np.array([code for _, code in standing], dtype=np.int32)

    def _as_of(self, user_id: str, seq: int) -> Mapping[str, Any] | None:
        versions = self._attributes.get(user_id, [])
        place = bisect.bisect_right(versions, seq, key=lambda version: version[0])
        return versions[place - 1][1] if place else None


def attribute_versions(frame: pl.DataFrame | None, key: str = USER_ID) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """The versions of each id, oldest first, as (seq, attributes)."""
    versions: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    if frame is not None:
        for raw_id, seq, text in frame.sort(SEQ).select(key, SEQ, "attributes").iter_rows():
            versions.setdefault(raw_id, []).append((seq, json.loads(text)))
    return versions


def offsets_of(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """(n+1,) int64 offsets of n runs of these lengths."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])


def _changes(*columns: np.ndarray) -> np.ndarray:
    """(n,) bool: the row differs from the one before it in some column."""
    new = np.ones(len(columns[0]), dtype=bool)
    if len(new):
        new[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return new
