"""Encode user states as model inputs: the shared code of training and serving.

Training, evaluation, serving, shadow and verify call these functions; a request is a batch of one. Arrays are flat with
offsets. `EncodedBatch.inputs` digests every input of a query by name, so that a difference between two processes can be
located.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from recloop.features.spec import FeatureSpec
from recloop.features.state import StateBatch, offsets_of
from recloop.features.vocabulary import FieldCodes, SeveralCodes, Vocabulary, values_of
from recloop.records import DAY, SECOND


@dataclass(frozen=True)
class EncodedBatch:
    """Batch of B encoded queries as flat arrays.

    The history holds dense ``item_ix``. Items outside the table are removed, then the moments that become empty.
    ``context`` (B, C) holds the codes of user and context features, 0 = missing; ``now`` (B,) is int64 microseconds.
    """

    states: StateBatch
    moment_offsets: np.ndarray  # (B+1,) int64
    stamps: np.ndarray  # (M,) int64
    item_offsets: np.ndarray  # (M+1,) int64
    items: np.ndarray  # (E,) int32 item_ix
    targets: np.ndarray  # (E,) bool: a target in its moment; others are only inputs
    negative_offsets: np.ndarray  # (B+1,) int64
    negatives: np.ndarray  # int32 item_ix, in the table
    context: np.ndarray  # (B, C) int32
    context_names: list[str]
    now: np.ndarray  # (B,) int64
    history_digest: str = ""  # of a batch of one

    def __len__(self) -> int:
        return len(self.now)

    @functools.cached_property
    def row_offsets(self) -> np.ndarray:
        """(B+1,) int64 offsets of the queries' rows.

        Query b owns ``items[row_offsets[b]:row_offsets[b+1]]``.
        """
        offsets: np.ndarray = self.item_offsets[self.moment_offsets]
        return offsets

    @property
    def row_query(self) -> np.ndarray:
        """(E,) query index of each row."""
        return np.repeat(np.arange(len(self)), np.diff(self.row_offsets))

    @property
    def row_moment(self) -> np.ndarray:
        """(E,) moment index of each row."""
        return np.repeat(np.arange(len(self.stamps)), np.diff(self.item_offsets))

    def inputs(self, b: int) -> dict[str, str]:
        """Digests (8 hex) of the inputs of query b: history, then each context feature."""
        digests = {"history": self.history_digest or self._history_digest(b)}
        for name, code in zip(self.context_names, self.context[b].tolist(), strict=True):
            digests[name] = code_digest(code)
        return digests

    def _history_digest(self, b: int) -> str:
        return _history_digest(self.items[self.row_offsets[b] : self.row_offsets[b + 1]])


@dataclass(frozen=True)
class HistoryWindow:
    """Newest whole moments of each history as flat arrays, oldest token first.

    All moments of a history together have at most ``history`` items. ``moments`` is the age of a token's moment: 0 is
    the newest. A newest moment larger than ``history`` is cut to its first items by id bytes
    (docs/definitions/sequence-models.md).
    """

    offsets: np.ndarray  # (B+1,) int64
    items: np.ndarray  # (T,) int32
    moments: np.ndarray  # (T,) int64

    def padded(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Right-padded arrays (B, T): items (0 pads), moments, mask."""
        lengths = np.diff(self.offsets)
        mask = np.arange(lengths.max(initial=1)) < lengths[:, None]
        items = np.zeros(mask.shape, dtype=np.int32)
        moments = np.zeros(mask.shape, dtype=np.int64)
        items[mask], moments[mask] = self.items, self.moments
        return items, moments, mask


@dataclass(frozen=True)
class _History:
    """Arrays of an `EncodedBatch` that depend on states and item table only."""

    moment_offsets: np.ndarray
    stamps: np.ndarray
    item_offsets: np.ndarray
    items: np.ndarray
    targets: np.ndarray
    negative_offsets: np.ndarray
    negatives: np.ndarray
    digest: str  # of the items of a batch of one, else empty


def encode(
    spec: FeatureSpec, fields: FieldCodes, vocabulary: Vocabulary, states: StateBatch, now: Sequence[int] | np.ndarray
) -> EncodedBatch:
    """Encode states at their queries' ``now`` (int64 us), without later moments."""
    nows = np.asarray(now, dtype=np.int64)
    states = states.until(nows)
    history, user_codes, names = _encoded_states(spec, fields, vocabulary, states)
    context = user_codes
    if spec.context and len(states) == 1:
        codes = _context_of_one(spec, fields, int(nows[0]), int(states.stamps[-1]) if len(states.stamps) else None)
        context = np.array([[*user_codes[0].tolist(), *codes]], dtype=np.int32)
    elif spec.context:
        last_stamps = np.zeros(len(states), dtype=np.int64)
        has_past = np.diff(states.moment_offsets) > 0
        last_stamps[has_past] = states.stamps[states.moment_offsets[1:][has_past] - 1]
        time_codes = context_codes(spec, fields, nows, last_stamps, has_past)
        context = np.column_stack([user_codes, *time_codes]).astype(np.int32)
    return EncodedBatch(
        states,
        history.moment_offsets,
        history.stamps,
        history.item_offsets,
        history.items,
        history.targets,
        history.negative_offsets,
        history.negatives,
        context,
        names,
        nows,
        history.digest,
    )


def _encoded_states(
    spec: FeatureSpec, fields: FieldCodes, vocabulary: Vocabulary, states: StateBatch
) -> tuple[_History, np.ndarray, list[str]]:
    """Return history, codes of user features and names of context columns."""

    def encoded() -> tuple[_History, np.ndarray, list[str]]:
        codes, described = attribute_codes("user", spec, fields, states.attributes)
        names = _column_names(described) + [f"context.{name}" for name in spec.context]
        return _encoded_history(vocabulary, states), codes.astype(np.int32), names

    return states.kept(("encoded", vocabulary.serial), encoded)


def _encoded_history(vocabulary: Vocabulary, states: StateBatch) -> _History:
    """Replace codes by item_ix.

    Items outside the table are removed, then the moments that become empty.
    """
    table_rows = states.codes.table_rows(vocabulary)
    items = table_rows[states.items]
    in_table = items > 0
    negatives = table_rows[states.negatives]
    negative_query = np.repeat(np.arange(len(states)), np.diff(states.negative_offsets))[negatives > 0]
    if in_table.all():
        moment_offsets, stamps, item_offsets, targets = (
            states.moment_offsets, states.stamps, states.item_offsets, states.targets,
        )  # fmt: skip
    else:
        row_moment = np.repeat(np.arange(len(states.stamps)), np.diff(states.item_offsets))[in_table]
        items_per_moment = np.bincount(row_moment, minlength=len(states.stamps))
        is_left = items_per_moment > 0
        moment_query = np.repeat(np.arange(len(states)), np.diff(states.moment_offsets))[is_left]
        moment_offsets = offsets_of(np.bincount(moment_query, minlength=len(states)))
        stamps, item_offsets = states.stamps[is_left], offsets_of(items_per_moment[is_left])
        items, targets = items[in_table], states.targets[in_table]
    return _History(
        moment_offsets,
        stamps,
        item_offsets,
        items,
        targets,
        offsets_of(np.bincount(negative_query, minlength=len(states))),
        negatives[negatives > 0],
        _history_digest(items) if len(states) == 1 else "",
    )


def _history_digest(items: np.ndarray) -> str:
    return digest(items.astype("<i4").tobytes())


def _column_names(described: Sequence[tuple[str, int, int]]) -> list[str]:
    """Unique names of the columns; further columns of one feature get ``.2``, ``.3``."""
    seen: dict[str, int] = {}
    names = []
    for name, _, _ in described:
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}.{seen[name]}")
    return names


def context_codes(
    spec: FeatureSpec, fields: FieldCodes, now: np.ndarray, last_stamps: np.ndarray, has_past: np.ndarray
) -> list[np.ndarray]:
    """(B,) int32 codes of each context feature.

    Hour and weekday are those of ``now`` in the spec's time zone. ``days_since_last`` counts from ``last_stamps``.

    Args:
        now, last_stamps: (B,) int64 microseconds of the query and of the last moment of its history.
        has_past: (B,) bool: True if the history has a moment; otherwise ``days_since_last`` is missing.
    """
    local = now + utc_offsets(now, spec.timezone)
    values = _context_values(local, np.where(has_past, (now - last_stamps) / DAY, np.nan))
    return [fields.codes[f"context.{name}"].codes(values[name]) for name in spec.context]


def _context_values(local: Any, days_since_last: Any) -> dict[str, Any]:
    """Values of all context features at a local time (us), one or (B,) int64."""
    days = local // DAY
    return {
        "hour": (local - days * DAY) // (3600 * SECOND),
        "weekday": (days + 3) % 7 + 1,  # 1970-01-01 was a Thursday; Monday is 1
        "days_since_last": days_since_last,
    }


def _context_of_one(spec: FeatureSpec, fields: FieldCodes, now: int, last_stamp: int | None) -> list[int]:
    """Return the codes of `context_codes` for one query.

    ``last_stamp`` is None without a past.
    """
    local = now + (0 if spec.timezone == "UTC" else utc_offset(now // (900 * SECOND), spec.timezone))
    values = _context_values(local, math.nan if last_stamp is None else (now - last_stamp) / DAY)
    codes = []
    for name in spec.context:
        codes_of = fields.codes[f"context.{name}"]
        assert not isinstance(codes_of, SeveralCodes)
        codes.append(codes_of.code(values[name]))
    return codes


@functools.lru_cache(10_000)
def utc_offset(quarter: int, timezone: str) -> int:
    """UTC offset in microseconds in a quarter hour since 1970.

    Zones change on quarter hours.
    """
    offset = datetime.fromtimestamp(quarter * 900, ZoneInfo(timezone)).utcoffset()
    return 0 if offset is None else round(offset.total_seconds()) * SECOND


def utc_offsets(now: np.ndarray, timezone: str) -> np.ndarray:
    """(B,) int64 UTC offset in microseconds at each stamp."""
    if timezone == "UTC":
        return np.zeros(len(now), dtype=np.int64)
    quarters, quarter_index = np.unique(now // (900 * SECOND), return_inverse=True)
    micros = [utc_offset(int(quarter), timezone) for quarter in quarters]
    return np.array(micros, dtype=np.int64)[quarter_index]


def attribute_codes(
    side: str, spec: FeatureSpec, fields: FieldCodes, rows: Sequence[Mapping[str, Any] | None]
) -> tuple[np.ndarray, list[tuple[str, int, int]]]:
    """(n, C) int32 codes of item or user features, and (name, codes, dim) per column.

    A feature of several categories, of a text or of a vector has consecutive columns of one name.
    """
    features = spec.item if side == "item" else spec.user
    columns = []
    described = []
    for name, field in features.items():
        key = f"{side}.{name}"
        columns.append(fields.codes[key].codes(values_of(name, field, rows)))
        described += [(key, fields.size(key), field.dim)] * fields.columns(key)
    return (np.column_stack(columns) if columns else np.zeros((len(rows), 0), np.int32)), described


def window(encoded: EncodedBatch, history: int) -> HistoryWindow:
    """Cut each history to its newest whole moments with at most ``history`` items."""
    sizes = np.diff(encoded.item_offsets)
    ends = encoded.row_offsets[1:]  # (B,) one past the last row of each query
    moment_query = np.repeat(np.arange(len(encoded)), np.diff(encoded.moment_offsets))
    reach = ends[moment_query] - encoded.item_offsets[:-1]  # items from this moment to the newest
    is_newest = np.zeros(len(sizes), dtype=bool)
    is_newest[encoded.moment_offsets[1:][np.diff(encoded.moment_offsets) > 0] - 1] = True
    fits = (reach <= history) | is_newest
    row_moment = encoded.row_moment
    rank = np.arange(len(encoded.items)) - encoded.item_offsets[row_moment]
    rows = fits[row_moment] & (rank < history)
    age = encoded.moment_offsets[1:][moment_query] - 1 - np.arange(len(sizes))
    counts = np.bincount(encoded.row_query[rows], minlength=len(encoded))
    return HistoryWindow(offsets_of(counts), encoded.items[rows], age[row_moment[rows]])


@functools.lru_cache(100_000)
def code_digest(code: int) -> str:
    """Digest of a code, 8 hex."""
    return digest(code.to_bytes(4, "little"))


def digest(data: bytes) -> str:
    """Digest of bytes, 8 hex."""
    return hashlib.blake2b(data, digest_size=4).hexdigest()
