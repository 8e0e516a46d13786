"""User state: the fold of valid events up to a seq, incremental and columnar.

A user's rows of one moment stamp (`recloop.features.moments`) are one moment, a set of items in the order of their ids'
bytes. A state at ``s`` holds every moment with an input, a target flag for each item, the active dislikes, and the
attributes (docs/definitions/terms.md). Undone acts (`recloop.features.undo`) are excluded. A state holds raw ids, so
all bundles with the same event classes can read it.

A property-based test compares the two implementations, `UserState.add` and `StateHistory.states`.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import polars as pl

from recloop.features.labels import with_uses
from recloop.features.moments import is_closed, moment_of_row
from recloop.features.undo import INPUTS, Act, ActColumns, Kind, undone_acts
from recloop.files import AttributeValues
from recloop.records import ITEM_ID, PAIR, SEQ, STAMP, UNITS, USE, USER_ID, WEIGHT, Use, guest_rows

MAX_GROUPS: Final = 64
"""Number of groups in a state above which ended groups are removed."""


class View(NamedTuple):
    """State as read by encoders.

    ``moments``: (stamp, item ids ascending, target flag of each), oldest first; ``disliked``: ids ascending;
    ``positives``: number of valid inputs, targets included, without undone acts.
    """

    moments: list[tuple[int, list[str], list[bool]]]
    disliked: list[str]
    positives: int


class UserState(msgspec.Struct):
    """State of one user, updated event by event and stored in snapshots.

    Attributes:
        moments: (stamp, item ids ascending by bytes, an index into ``kinds`` for each) of every act, oldest first.
        kinds: The kinds of acts, in the order of their first event.
        groups: The newest moment stamp of every group_id, for late rows; ended groups may be missing.
        newest: The newest timestamp of a valid row; None without rows.
        positives: Number of valid input rows, targets included; undone rows still count.
        attributes: The newest attributes; None before the first version.
    """

    moments: list[tuple[int, list[str], list[int]]] = []
    kinds: list[Kind] = []
    groups: dict[str, int] = {}
    positives: int = 0
    newest: int | None = None
    attributes: AttributeValues | None = None

    def add(
        self,
        item_id: str,
        timestamp: int,
        group_id: str | None,
        use: int,
        weight: float = 1.0,
        pair: str = "",
        units: float = 1.0,
    ) -> None:
        """Add one valid event; events must be added in seq order."""
        stamp = timestamp
        if group_id is not None:
            stamp = moment_of_row(self.groups.get(group_id), timestamp, self.newest)
            if group_id not in self.groups and len(self.groups) >= MAX_GROUPS:
                self.groups = {
                    name: moment for name, moment in self.groups.items() if not is_closed(moment, self.newest)
                }
            self.groups[group_id] = stamp
        self.newest = timestamp if self.newest is None else max(self.newest, timestamp)
        if use == Use.NONE:
            return
        self.positives += use in INPUTS
        moment_index = bisect.bisect_left(self.moments, stamp, key=lambda moment: moment[0])
        if moment_index == len(self.moments) or self.moments[moment_index][0] != stamp:
            self.moments.insert(moment_index, (stamp, [], []))
        _, items, codes = self.moments[moment_index]
        item_index = bisect.bisect_left(items, item_id)
        while item_index < len(items) and items[item_index] == item_id:
            existing = self.kinds[codes[item_index]]
            if (existing.use, existing.pair, existing.weight) == (use, pair, weight):
                codes[item_index] = self._code(Kind(use, pair, weight, existing.units + units))
                return
            item_index += 1
        items.insert(item_index, item_id)
        codes.insert(item_index, self._code(Kind(use, pair, weight, units)))

    def _code(self, kind: Kind) -> int:
        if kind not in self.kinds:
            self.kinds.append(kind)
        return self.kinds.index(kind)

    def view(self) -> View:
        """Moments without undone acts, and active dislikes."""
        undone = self._undone_acts()
        moments = []
        disliked: dict[str, int] = {}
        for stamp, items, codes in self.moments:
            input_items: dict[str, bool] = {}
            disliked_items = []
            for item_id, code in zip(items, codes, strict=True):
                kind = self.kinds[code]
                if (stamp, item_id, code) in undone:
                    continue
                if kind.use in INPUTS:
                    input_items[item_id] = input_items.get(item_id, False) or kind.use == Use.TARGET
                elif kind.use == Use.NEGATIVE:
                    disliked_items.append(item_id)
            if input_items:
                moments.append((stamp, list(input_items), list(input_items.values())))
            for item_id in disliked.keys() & input_items.keys():  # a later target undoes an earlier dislike
                if input_items[item_id]:
                    del disliked[item_id]
            disliked |= dict.fromkeys(disliked_items, stamp)
        n_undone = sum(self.kinds[code].use in INPUTS for _, _, code in undone)
        return View(moments, sorted(disliked), self.positives - n_undone)

    def disliked(self) -> list[str]:
        """Ascending items with an active dislike; inside one moment the dislike wins."""
        return self.view().disliked

    def _undone_acts(self) -> set[tuple[int, str, int]]:
        """(moment stamp, item, index into ``kinds``) of undone acts."""
        undo = {code for code, kind in enumerate(self.kinds) if kind.use == Use.UNDO}
        if not undo:
            return set()
        undone_items = {
            item for _, items, codes in self.moments for item, code in zip(items, codes, strict=True) if code in undo
        }
        acts: dict[str, list[tuple[int, int]]] = {}
        for stamp, items, codes in self.moments:
            for item, code in zip(items, codes, strict=True):
                if item in undone_items:
                    acts.setdefault(item, []).append((stamp, code))
        return {
            (item_acts[n][0], item, item_acts[n][1])
            for item, item_acts in acts.items()
            for n in undone_acts([Act(stamp, self.kinds[code]) for stamp, code in item_acts])
        }


@dataclass(frozen=True)
class StateBatch:
    """States of B users as flat arrays.

    State b owns the moments ``moment_offsets[b]:moment_offsets[b+1]``. Moment m has ``stamps[m]`` and owns the items
    ``item_offsets[m]:item_offsets[m+1]``. Items and ``negatives`` are codes into ``names`` (raw ids, ascending by bytes),
    so codes ascend inside a moment. ``targets`` marks targets; other items are only inputs. ``positives`` (B,) counts valid
    inputs, targets included (`View`).
    """

    users: list[str]
    names: np.ndarray  # (n,) object
    moment_offsets: np.ndarray  # (B+1,) int64
    stamps: np.ndarray  # (M,) int64
    item_offsets: np.ndarray  # (M+1,) int64
    items: np.ndarray  # (E,) int32
    targets: np.ndarray  # (E,) bool
    negative_offsets: np.ndarray  # (B+1,) int64
    negatives: np.ndarray  # int32
    positives: np.ndarray  # (B,) int64
    attributes: list[Mapping[str, Any] | None]

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def from_states(cls, users: Sequence[str], states: Sequence[UserState]) -> StateBatch:
        """Batch of incremental states."""
        views = [state.view() for state in states]
        input_items = {item for view in views for _, items, _ in view.moments for item in items}
        names = np.array(sorted(input_items.union(*(view.disliked for view in views))), dtype=object)
        code = {name: index for index, name in enumerate(names)}
        moments = [moment for view in views for moment in view.moments]
        return cls(
            users=list(users),
            names=names,
            moment_offsets=offsets_of([len(view.moments) for view in views]),
            stamps=np.array([stamp for stamp, _, _ in moments], dtype=np.int64),
            item_offsets=offsets_of([len(moment_items) for _, moment_items, _ in moments]),
            items=np.array([code[item] for _, moment_items, _ in moments for item in moment_items], dtype=np.int32),
            targets=np.array([target for _, _, targets in moments for target in targets], dtype=bool),
            negative_offsets=offsets_of([len(view.disliked) for view in views]),
            negatives=np.array([code[item] for view in views for item in view.disliked], dtype=np.int32),
            positives=np.array([view.positives for view in views], dtype=np.int64),
            attributes=[state.attributes for state in states],
        )

    def until(self, nows: np.ndarray) -> StateBatch:
        """Remove the moments later than each query's ``now``.

        ``positives`` excludes their items. Dislikes apply regardless of their stamp.

        Args:
            nows: (B,) int64 microseconds.
        """
        moment_query = np.repeat(np.arange(len(self)), np.diff(self.moment_offsets))
        is_visible = self.stamps <= nows[moment_query]
        if is_visible.all():
            return self
        sizes = np.diff(self.item_offsets)
        n_hidden = np.bincount(moment_query[~is_visible], weights=sizes[~is_visible], minlength=len(self))
        return replace(
            self,
            moment_offsets=offsets_of(np.bincount(moment_query[is_visible], minlength=len(self))),
            stamps=self.stamps[is_visible],
            item_offsets=offsets_of(sizes[is_visible]),
            items=self.items[np.repeat(is_visible, sizes)],
            targets=self.targets[np.repeat(is_visible, sizes)],
            positives=np.maximum(self.positives - n_hidden.astype(np.int64), 0),
        )

    def digest(self, b: int) -> str:
        """Digest (8 hex) of state b; equal states have equal digests in every process."""
        moments = []
        for m in range(self.moment_offsets[b], self.moment_offsets[b + 1]):
            rows = slice(self.item_offsets[m], self.item_offsets[m + 1])
            input_only = np.flatnonzero(~self.targets[rows]).tolist()
            items = self.names[self.items[rows]].tolist()
            moments.append([int(self.stamps[m]), items, *([input_only] if input_only else [])])
        disliked = self.names[self.negatives[self.negative_offsets[b] : self.negative_offsets[b + 1]]].tolist()
        content = [moments, disliked, int(self.positives[b]), self.attributes[b]]
        return hashlib.blake2b(msgspec.json.encode(content, order="sorted"), digest_size=4).hexdigest()


class StateHistory:
    """Columnar log that computes the states of many users at many seqs at once."""

    def __init__(self, frame: pl.DataFrame, users: pl.DataFrame | None = None) -> None:
        """Sort the rows once; guest baskets have no state.

        Args:
            frame: Valid events with ``stamp`` and uses (`moment_stamps`, `EventLabeler.label`).
            users: Versions of users: user_id, seq, attributes (JSON object text).
        """
        rows = with_uses(frame).select(USER_ID, ITEM_ID, STAMP, SEQ, USE, PAIR, WEIGHT, UNITS)
        rows = rows.filter((pl.col(USE) != Use.NONE) & ~guest_rows())
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
        self._use = rows[USE].to_numpy()
        self._acts = ActColumns.from_frame(rows)
        self._undone = bool((self._use == Use.UNDO).any())
        self._attributes = attribute_versions(users)

    def states(self, users: Sequence[str], seqs: Sequence[int], before: Sequence[int] | None = None) -> StateBatch:
        """Compute states from rows with ``seq <= seqs[b]`` and ``stamp < before[b]``."""
        row_lists = []
        lengths = []
        for b, user_id in enumerate(users):
            low, high = self._span.get(user_id, (0, 0))
            is_visible = self._seq[low:high] <= seqs[b]
            if before is not None:
                is_visible &= self._stamp[low:high] < before[b]
            row_lists.append(low + np.flatnonzero(is_visible))
            lengths.append(len(row_lists[-1]))
        rows = np.concatenate(row_lists) if row_lists else np.zeros(0, dtype=np.int64)
        query = np.repeat(np.arange(len(users)), lengths)
        use = self._use[rows]
        positives = np.zeros(len(users), dtype=np.int64)
        inputs = np.isin(use, list(INPUTS))
        positives += np.bincount(query[inputs], minlength=len(users))
        if self._undone:
            undone = self._acts.undone_rows(rows, query * len(self.names) + self._code[rows])
            positives -= np.bincount(query[undone.acts & inputs], minlength=len(users))
            rows, query, use, inputs = (column[~undone.rows] for column in (rows, query, use, inputs))
        input_rows, owner = rows[inputs], query[inputs]
        stamp, code = self._stamp[input_rows], self._code[input_rows]
        new_moment = _changes(owner, stamp)
        new_item = _changes(owner, stamp, code)
        moment_owner = owner[new_moment]
        item_moment = (np.cumsum(new_moment) - 1)[new_item]
        disliked = use == Use.NEGATIVE
        target = self._use[input_rows] == Use.TARGET
        negative_offsets, negatives = self._active_dislikes(
            rows[disliked], query[disliked], input_rows[target], owner[target], len(users)
        )
        return StateBatch(
            users=list(users),
            names=self.names,
            moment_offsets=offsets_of(np.bincount(moment_owner, minlength=len(users))),
            stamps=stamp[new_moment],
            item_offsets=offsets_of(np.bincount(item_moment, minlength=len(moment_owner))),
            items=code[new_item],
            targets=np.logical_or.reduceat(target, np.flatnonzero(new_item)) if len(input_rows) else target,
            negative_offsets=negative_offsets,
            negatives=negatives,
            positives=positives,
            attributes=[self._as_of(user_id, seq) for user_id, seq in zip(users, seqs, strict=True)],
        )

    def _active_dislikes(
        self, rows: np.ndarray, query: np.ndarray, target_rows: np.ndarray, owner: np.ndarray, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Active dislikes: ascending codes per query, and their offsets."""
        newest: dict[tuple[int, int], int] = {}
        for row, b in zip(rows.tolist(), query.tolist(), strict=True):
            key = (b, int(self._code[row]))
            newest[key] = max(newest.get(key, self._stamp[row]), self._stamp[row])
        if newest:
            touched = np.isin(owner, query)
            for row, b in zip(target_rows[touched].tolist(), owner[touched].tolist(), strict=True):
                key = (b, int(self._code[row]))
                if newest.get(key, self._stamp[row]) < self._stamp[row]:
                    del newest[key]
        active = sorted(newest)
        counts = np.bincount([b for b, _ in active], minlength=size) if active else np.zeros(size, dtype=np.int64)
        return offsets_of(counts), np.array([code for _, code in active], dtype=np.int32)

    def _as_of(self, user_id: str, seq: int) -> Mapping[str, Any] | None:
        versions = self._attributes.get(user_id, [])
        n_versions = bisect.bisect_right(versions, seq, key=lambda version: version[0])
        return versions[n_versions - 1][1] if n_versions else None


def attribute_versions(frame: pl.DataFrame | None, key: str = USER_ID) -> dict[str, list[tuple[int, AttributeValues]]]:
    """Attribute versions of each id, oldest first, as (seq, attributes)."""
    versions: dict[str, list[tuple[int, AttributeValues]]] = {}
    if frame is not None:
        for raw_id, seq, text in frame.sort(SEQ).select(key, SEQ, "attributes").iter_rows():
            versions.setdefault(raw_id, []).append((seq, json.loads(text)))
    return versions


def offsets_of(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """(n+1,) int64 offsets of n runs of these lengths."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])


def _changes(*columns: np.ndarray) -> np.ndarray:
    """(n,) bool mask of rows that differ from the row before."""
    is_changed = np.ones(len(columns[0]), dtype=bool)
    if len(is_changed):
        is_changed[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return is_changed
