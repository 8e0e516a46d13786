"""The catalogue: every item's attributes as of a seq, and which items a condition lets through."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import polars as pl

from recloop import rules
from recloop.features.vocab import Vocabulary, as_text
from recloop.records import ITEM_ID, SEQ, Item

REMEMBERED = 1_000
"""Masks and lists kept for conditions that were asked before."""


class Catalogue:
    """Items by raw id. Its ``version`` is the same however the items came in, one by one or from columns."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self._first_seq: dict[str, int] = {}
        self._out: set[str] = set()  # hidden or deleted
        self._sum: int | None = None  # of the weights of all items; None: not worked out yet
        self._frame: pl.DataFrame | None = None
        self._masks: dict[tuple[Vocabulary, str], np.ndarray] = {}
        self._passing: dict[str, set[str]] = {}
        self._latest: dict[tuple[Vocabulary, str], list[str]] = {}

    @classmethod
    def of(cls, frames: Sequence[pl.DataFrame | None], until: int | None = None) -> Catalogue:
        """The catalogue as of a seq, from frames of versions (item_id, seq, attributes, hidden, deleted)."""
        catalogue = cls()
        for frame in frames:
            if frame is None:
                continue
            rows = frame.sort(SEQ)
            if until is not None:
                rows = rows.filter(pl.col(SEQ) <= until)
            for item_id, seq, text, hidden, deleted in rows.select(
                ITEM_ID, SEQ, "attributes", "hidden", "deleted"
            ).iter_rows():
                catalogue.upsert(
                    Item(item_id=item_id, attributes=msgspec.json.decode(text), hidden=hidden, deleted=deleted, seq=seq)
                )
        catalogue._weighed()  # once, here, not at the first request
        return catalogue

    @classmethod
    def of_table(cls, ids: Sequence[str], attributes: Sequence[Mapping[str, Any]]) -> Catalogue:
        """A bundle's own catalogue: the items of its table, none hidden."""
        catalogue = cls()
        rows = zip(ids, attributes, strict=True)
        catalogue._items = {item_id: Item(item_id=item_id, attributes=dict(row)) for item_id, row in rows}
        catalogue._first_seq = dict.fromkeys(catalogue._items, 0)
        return catalogue

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._items

    def get(self, item_id: str) -> Item | None:
        return self._items.get(item_id)

    def first_seq(self, item_id: str) -> int:
        """The seq of an item's first version; 0 for an item without one."""
        return self._first_seq.get(item_id, 0)

    def upsert(self, item: Item) -> None:
        """A new version of an item, in force at once; attributes are replaced whole."""
        old = self._items.get(item.item_id)
        if self._sum is not None:
            self._sum = (self._sum + _weight(item) - (0 if old is None else _weight(old))) % 2**64
        self._items[item.item_id] = item
        self._first_seq.setdefault(item.item_id, item.seq)
        if item.hidden or item.deleted:
            self._out.add(item.item_id)
        else:
            self._out.discard(item.item_id)
        self._forget()

    @property
    def version(self) -> str:
        """8 hex of all items as they are now."""
        return f"{self._weighed():016x}"[:8]

    @property
    def fields(self) -> set[str]:
        """The attributes that some item has."""
        return set().union(*(item.attributes for item in self._items.values()))

    @property
    def columns(self) -> list[str]:
        """Fields that a condition may name: item_id and every attribute that some item has."""
        return self._table().columns

    def check(self, text: str, key: str) -> None:
        """Refuse a condition that does not parse or names a field that no item has (UserError)."""
        if text.strip():
            rules.parse(text, self._table().schema, key)

    def mask(self, text: str, vocabulary: Vocabulary) -> np.ndarray:
        """(N+1,) bool: items of a table that are shown and pass a condition; row 0 is False."""
        key = (vocabulary, text)
        if key not in self._masks:
            allowed = np.ones(len(vocabulary) + 1, dtype=bool)
            if text.strip():
                passing = self.passing(text)
                allowed[1:] = [item_id in passing for item_id in vocabulary.ids]
            for item_id in self._out:
                allowed[vocabulary.index(item_id)] = False
            allowed[0] = False
            self._room()
            self._masks[key] = allowed
        return self._masks[key]

    def passing(self, text: str) -> set[str]:
        """Raw ids of the catalogue that are shown and pass a condition."""
        if text not in self._passing:
            found = set(self._items)
            if text.strip():
                table = self._table()
                rule = rules.parse(text, table.schema, "filter")
                found = set(table.filter(rule.expr.fill_null(False))[ITEM_ID])
            self._room()
            self._passing[text] = found - self._out
        return self._passing[text]

    def latest(self, text: str, vocabulary: Vocabulary) -> list[str]:
        """Shown items that pass a condition and that the table does not know: newest first, ties by id bytes."""
        key = (vocabulary, text)
        if key not in self._latest:
            fresh = [item_id for item_id in self.passing(text) if not vocabulary.index(item_id)]
            self._room()
            self._latest[key] = sorted(fresh, key=lambda item_id: (-self._first_seq[item_id], item_id))
        return self._latest[key]

    def _weighed(self) -> int:
        if self._sum is None:
            self._sum = sum(_weight(item) for item in self._items.values()) % 2**64
        return self._sum

    def _room(self) -> None:
        """Conditions come from clients: what was worked out for them is forgotten before it fills the memory."""
        if len(self._masks) + len(self._passing) + len(self._latest) >= REMEMBERED:
            self._forget(keep_table=True)

    def _forget(self, keep_table: bool = False) -> None:
        self._masks.clear()
        self._passing.clear()
        self._latest.clear()
        if not keep_table:
            self._frame = None

    def _table(self) -> pl.DataFrame:
        """Every item's attributes as columns, for conditions; mixed types become text."""
        if self._frame is None:
            names = sorted({name for item in self._items.values() for name in item.attributes} - {ITEM_ID})
            columns = {ITEM_ID: pl.Series(list(self._items), dtype=pl.String)}
            for name in names:
                columns[name] = _column([item.attributes.get(name) for item in self._items.values()])
            self._frame = pl.DataFrame(columns)
        return self._frame


def _weight(item: Item) -> int:
    text = msgspec.json.encode([item.item_id, item.attributes, item.hidden, item.deleted], order="sorted")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _column(values: list[Any]) -> pl.Series:
    present = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in present):
        return pl.Series(values, dtype=pl.Boolean)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        return pl.Series([None if value is None else float(value) for value in values], dtype=pl.Float64)
    return pl.Series([None if value is None else as_text(value) for value in values], dtype=pl.String)
