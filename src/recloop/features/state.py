"""User states: valid events up to a seq, as flat arrays.

A user's rows of one moment stamp (`recloop.features.moments`) are one moment, a set of items in the order of their ids'
bytes. A state at ``s`` holds the newest moments with an input, a target flag for each item, the active dislikes, and the
attributes (docs/definitions/terms.md). Undone acts (`recloop.features.undo`) are excluded. A state refers to raw ids, so
all bundles with the same event classes can read it.

`recloop.features.state_history` computes the states of many users from columns, and `recloop.features.state_delta` adds
single events. A property-based test compares the two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np

from recloop.features.id_index import ItemCodes
from recloop.features.undo import Kind, Kinds, undone_rows
from recloop.files import AttributeValues
from recloop.records import Use

Value = TypeVar("Value")

MAX_ROWS: Final = 4_096
"""A state holds the newest moments that together have at least this many rows; older moments are left out.

A larger moment keeps its first rows in the order of its items. So the cost of a state does not depend on a user's past.
"""


@dataclass(frozen=True)
class StateBatch:
    """States of B users as flat arrays.

    State b owns the moments ``moment_offsets[b]:moment_offsets[b+1]``. Moment m has ``stamps[m]`` and owns the items
    ``item_offsets[m]:item_offsets[m+1]``, ascending by the bytes of their ids. Items and ``negatives`` are numbers in
    ``codes``. ``targets`` marks targets; other items are only inputs. ``positives`` (B,) counts valid inputs, targets
    included, without undone acts; it also counts those of moments that the state leaves out (`MAX_ROWS`).

    ``derived`` keeps what readers compute from a batch of one, by a key of their own; the arrays never change.
    """

    users: list[str]
    codes: ItemCodes
    moment_offsets: np.ndarray  # (B+1,) int64
    stamps: np.ndarray  # (M,) int64
    item_offsets: np.ndarray  # (M+1,) int64
    items: np.ndarray  # (E,) int32
    targets: np.ndarray  # (E,) bool
    negative_offsets: np.ndarray  # (B+1,) int64
    negatives: np.ndarray  # int32
    positives: np.ndarray  # (B,) int64
    attributes: Sequence[Mapping[str, Any] | None]
    derived: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.users)

    @property
    def names(self) -> np.ndarray:
        """(n,) object array of raw item ids by code."""
        return self.codes.names

    @property
    def nbytes(self) -> int:
        """Memory of the arrays in bytes, without ``derived``."""
        arrays = (self.stamps, self.item_offsets, self.items, self.targets, self.negatives)
        return 24 * (3 * len(self) + 2) + sum(array.nbytes for array in arrays)

    def kept(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """Return what a reader computes from the states; a batch of one keeps it.

        Args:
            key: Key of the reader.
        """
        value: Value | None = self.derived.get(key)
        if value is None:
            value = compute()
            if len(self.users) == 1:
                self.derived[key] = value
        return value

    @classmethod
    def empty(cls, users: Sequence[str], attributes: Sequence[Mapping[str, Any] | None] | None = None) -> StateBatch:
        """States without events."""
        return states_of_rows(users, ItemCodes(), Kinds(), no_rows(), np.zeros(len(users), dtype=np.int64), attributes)

    def until(self, nows: np.ndarray) -> StateBatch:
        """Remove the moments later than each query's ``now``.

        ``positives`` excludes their items. Dislikes apply regardless of their stamp.

        Args:
            nows: (B,) int64 microseconds.
        """
        if len(self) == 1 and (not len(self.stamps) or self.stamps[-1] <= nows[0]):
            return self
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
            derived={},
        )

    def select(self, b: int) -> StateBatch:
        """State b as a batch of one."""
        if len(self) == 1:
            return self
        moments = slice(self.moment_offsets[b], self.moment_offsets[b + 1])
        low, high = self.item_offsets[moments.start], self.item_offsets[moments.stop]
        negatives = slice(self.negative_offsets[b], self.negative_offsets[b + 1])
        return StateBatch(
            users=[self.users[b]],
            codes=self.codes,
            moment_offsets=self.moment_offsets[b : b + 2] - moments.start,
            stamps=self.stamps[moments],
            item_offsets=self.item_offsets[moments.start : moments.stop + 1] - low,
            items=self.items[low:high],
            targets=self.targets[low:high],
            negative_offsets=self.negative_offsets[b : b + 2] - negatives.start,
            negatives=self.negatives[negatives],
            positives=self.positives[b : b + 1],
            attributes=[self.attributes[b]],
        )

    def digest(self, b: int) -> str:
        """Digest (8 hex) of state b; equal states have equal digests in every process."""
        if len(self) > 1:
            return self.select(b).digest(0)
        return self.kept("digest", self._digest)

    def _digest(self) -> str:
        counts = (len(self.stamps), len(self.items), len(self.negatives), int(self.positives[0]))
        hashed = hashlib.blake2b(np.array(counts, dtype="<i8").tobytes(), digest_size=4)
        for array in (self.stamps.astype("<i8"), self.item_offsets.astype("<i8"), self.targets.astype("u1")):
            hashed.update(array.tobytes())
        for codes in (self.items, self.negatives):
            hashed.update(self.codes.hashes(codes).astype("<u8").tobytes())
        hashed.update(msgspec.json.encode(self.attributes[0], order="sorted"))
        return hashed.hexdigest()

    def moments(self, b: int = 0) -> list[tuple[int, list[str], list[bool]]]:
        """Moments of state b with raw ids: (stamp, items, target flags), oldest first."""
        moments = []
        for m in range(self.moment_offsets[b], self.moment_offsets[b + 1]):
            rows = slice(self.item_offsets[m], self.item_offsets[m + 1])
            moments.append((int(self.stamps[m]), self.names[self.items[rows]].tolist(), self.targets[rows].tolist()))
        return moments

    def disliked(self, b: int = 0) -> list[str]:
        """Raw ids with an active dislike, ascending; inside one moment the dislike wins."""
        ids: list[str] = self.names[self.negatives[self.negative_offsets[b] : self.negative_offsets[b + 1]]].tolist()
        return ids


class StoredState(msgspec.Struct):
    """State of one user as JSON, in the golden cases of a bundle.

    Attributes:
        moments: (stamp, item ids, an index into ``kinds`` for each), oldest first.
        positives: As in `StateBatch`.
    """

    moments: list[tuple[int, list[str], list[int]]] = []
    kinds: list[Kind] = []
    positives: int = 0
    attributes: AttributeValues | None = None

    @classmethod
    def from_batch(cls, states: StateBatch, b: int = 0) -> StoredState:
        """Store state b; undone acts are not stored."""
        moments = [(stamp, items, [int(not flag) for flag in flags]) for stamp, items, flags in states.moments(b)]
        disliked = states.disliked(b)
        if disliked:  # at the newest moment, so that no target is newer
            stamp = moments[-1][0] if moments else 0
            moments.append((stamp, disliked, [2] * len(disliked)))
        attributes = states.attributes[b]
        return cls(
            moments,
            [Kind(int(Use.TARGET)), Kind(int(Use.INPUT)), Kind(int(Use.NEGATIVE))],
            int(states.positives[b]),
            None if attributes is None else dict(attributes),
        )

    def to_batch(self, user: str) -> StateBatch:
        """Batch of one."""
        acts = [
            (stamp, item, kind) for stamp, items, kinds in self.moments for item, kind in zip(items, kinds, strict=True)
        ]
        acts.sort(key=lambda act: act[:2])
        codes = ItemCodes(sorted({item for _, item, _ in acts}))
        stamps = np.array([stamp for stamp, _, _ in acts], dtype=np.int64)
        items = np.array([codes.code(item) for _, item, _ in acts], dtype=np.int32)
        kind = np.array([kind for _, _, kind in acts], dtype=np.int32)
        rows = StateRows(np.zeros(len(acts), dtype=np.int64), stamps, items, kind)
        kinds = Kinds(self.kinds)
        return states_of_rows([user], codes, kinds, rows, np.array([self.positives]), [self.attributes])


class StateRows(NamedTuple):
    """Rows of states, sorted by (query, stamp, bytes of the item id)."""

    query: np.ndarray  # (n,) int64
    stamp: np.ndarray  # (n,) int64
    item: np.ndarray  # (n,) int32 code
    kind: np.ndarray  # (n,) int32 number of the kind

    def take(self, keep: np.ndarray) -> StateRows:
        """Rows of a mask or of positions."""
        return StateRows(*(column[keep] for column in self))


def no_rows() -> StateRows:
    """Return no rows."""
    return StateRows(*(np.zeros(0, dtype=dtype) for dtype in (np.int64, np.int64, np.int32, np.int32)))


def states_of_rows(
    users: Sequence[str],
    codes: ItemCodes,
    kinds: Kinds,
    rows: StateRows,
    positives: np.ndarray,
    attributes: Sequence[Mapping[str, Any] | None] | None = None,
) -> StateBatch:
    """Compute the states of rows, the one definition of a state.

    Args:
        positives: (B,) int64, number of all valid inputs of each user, undone ones included.
    """
    n = len(users)
    rows = rows.take(kept) if (kept := newest_rows(rows)) is not None else rows
    use = kinds.use[rows.kind]
    is_input = (use == Use.TARGET) | (use == Use.INPUT)
    if (use == Use.UNDO).any():
        undone = undone_rows(rows.query * len(codes) + rows.item, rows.stamp, rows.kind, kinds)
        positives = positives - np.bincount(rows.query[undone.acts & is_input], minlength=n)
        rows, use, is_input = rows.take(~undone.rows), use[~undone.rows], is_input[~undone.rows]
    inputs = rows if is_input.all() else rows.take(is_input)
    targets = (use if inputs is rows else use[is_input]) == Use.TARGET
    new_moment = _changes(inputs.query, inputs.stamp)
    new_item = new_moment | _changes(inputs.item)
    negative_offsets, negatives = _active_dislikes(rows.take(use == Use.NEGATIVE), inputs.take(targets), codes, n)
    return StateBatch(
        users=list(users),
        codes=codes,
        moment_offsets=offsets_of(np.bincount(inputs.query[new_moment], minlength=n)),
        stamps=inputs.stamp[new_moment],
        item_offsets=np.append(np.cumsum(new_item)[new_moment] - 1, np.count_nonzero(new_item)).astype(np.int64),
        items=inputs.item[new_item],
        targets=np.logical_or.reduceat(targets, np.flatnonzero(new_item)) if len(targets) else targets,
        negative_offsets=negative_offsets,
        negatives=negatives,
        positives=positives,
        attributes=[None] * n if attributes is None else attributes,
    )


def newest_rows(rows: StateRows) -> np.ndarray | None:
    """(n,) bool mask of the rows that states keep (`MAX_ROWS`); None if all are kept.

    Adding a row never brings a left-out row back, so the mask of a kept part equals that of the whole.
    """
    if len(rows.query) <= MAX_ROWS:
        return None
    new_query = np.flatnonzero(_changes(rows.query))
    lengths = np.diff(np.append(new_query, len(rows.query)))
    if lengths.max() <= MAX_ROWS:
        return None
    starts = np.flatnonzero(_changes(rows.query, rows.stamp))
    sizes = np.diff(np.append(starts, len(rows.query)))
    query_end = np.repeat(new_query + lengths, lengths)
    n_later = query_end - np.repeat(starts + sizes, sizes)
    in_moment = np.arange(len(rows.query)) - np.repeat(starts, sizes)
    mask: np.ndarray = (n_later < MAX_ROWS) & (in_moment < MAX_ROWS)
    return mask


def _active_dislikes(
    disliked: StateRows, targets: StateRows, codes: ItemCodes, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (n+1,) and codes of active dislikes; a later target ends a dislike."""
    if not len(disliked.query):
        return np.zeros(n + 1, dtype=np.int64), np.zeros(0, dtype=np.int32)
    newest: dict[tuple[int, int], int] = {}
    for query, stamp, item, _ in zip(*(column.tolist() for column in disliked), strict=True):
        newest[query, item] = max(newest.get((query, item), stamp), stamp)
    touched = targets.take(np.isin(targets.item, disliked.item))
    for query, stamp, item, _ in zip(*(column.tolist() for column in touched), strict=True):
        if newest.get((query, item), stamp) < stamp:
            del newest[query, item]
    active = sorted(newest, key=lambda key: (key[0], codes.ids[key[1]]))
    counts = np.bincount(np.array([query for query, _ in active], dtype=np.int64), minlength=n)
    return offsets_of(counts), np.array([item for _, item in active], dtype=np.int32)


def offsets_of(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """(n+1,) int64 offsets of n runs of these lengths."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _changes(*columns: np.ndarray) -> np.ndarray:
    """(n,) bool mask of rows that differ from the row before."""
    is_changed = np.ones(len(columns[0]), dtype=bool)
    if len(is_changed):
        is_changed[1:] = columns[0][1:] != columns[0][:-1]
        for column in columns[1:]:
            is_changed[1:] |= column[1:] != column[:-1]
    return is_changed
