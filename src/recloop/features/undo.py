"""Undo rules: acts that a return or an unlike reverses.

Definitions: docs/definitions/terms.md.

`undone_acts` is the definition for one user and item. States and the columns of a split both call it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
import polars as pl

from recloop.features.labels import with_uses
from recloop.records import ANY_TARGET, ITEM_ID, LABEL, PAIR, STAMP, UNITS, USE, USER_ID, WEIGHT, Use


class Kind(msgspec.Struct, frozen=True, array_like=True):
    """Kind of an act on an item: its use (`records.Use`), pair, weight and units."""

    use: int
    pair: str = ""
    weight: float = 1.0
    units: float = 1.0


class Act(NamedTuple):
    """Act of a user on an item in one moment.

    Its rows with equal use, pair and weight are one act.
    """

    stamp: int
    kind: Kind


INPUTS: Final = frozenset({int(Use.TARGET), int(Use.INPUT)})
"""Uses of events that are model inputs."""
MIN_UNITS: Final = 1e-9
"""Remaining units below this count as zero, because sums of fractions are not exact."""


def undone_acts(acts: Sequence[Act]) -> set[int]:
    """Indices of the undone acts of one user on one item.

    The order of ``acts`` does not matter. Undos are applied by stamp. Each one undoes as many units as it has, newest act
    first. It matches the acts of its event type at or before its stamp, or for ``*`` the heaviest targets. A dislike is
    undone completely, with all earlier ones of its type. An undone target also removes the lighter targets (the cart
    before a purchase) since the newest remaining target of its weight or more.
    """
    remaining = {n: act.kind.units for n, act in enumerate(acts) if act.kind.use != Use.UNDO}
    undos = sorted((act for act in acts if act.kind.use == Use.UNDO), key=lambda act: (act.stamp, act.kind.pair))
    for undo in undos:
        candidates = [
            n for n in remaining if acts[n].stamp <= undo.stamp and remaining[n] > 0 and _names(undo.kind, acts[n].kind)
        ]
        heaviest = max((acts[n].kind.weight for n in candidates), default=0.0)
        units = undo.kind.units
        for n in sorted(
            candidates, key=lambda n: (acts[n].stamp, acts[n].kind.weight, acts[n].kind.pair), reverse=True
        ):
            kind = acts[n].kind
            if kind.use == Use.NEGATIVE:
                remaining[n] = 0
            elif units > MIN_UNITS and (undo.kind.pair != ANY_TARGET or kind.weight == heaviest):
                units, remaining[n] = max(0.0, units - remaining[n]), max(0.0, remaining[n] - units)
                if remaining[n] <= MIN_UNITS:
                    remaining[n] = 0
                    if kind.use == Use.TARGET:
                        _drop_lighter(acts, remaining, kind.weight, undo.stamp)
    return {n for n, units in remaining.items() if units == 0}


def _names(undo: Kind, kind: Kind) -> bool:
    return kind.use == Use.TARGET if undo.pair == ANY_TARGET else kind.pair == undo.pair


def _drop_lighter(acts: Sequence[Act], remaining: dict[int, float], weight: float, max_stamp: int) -> None:
    """Remove lighter targets up to ``max_stamp``.

    It starts after the newest remaining target of ``weight`` or more.
    """
    targets = [
        n for n in remaining if remaining[n] > 0 and acts[n].kind.use == Use.TARGET and acts[n].stamp <= max_stamp
    ]
    heavier_stamp = max((acts[n].stamp for n in targets if acts[n].kind.weight >= weight), default=None)
    for n in targets:
        if acts[n].kind.weight < weight and (heavier_stamp is None or acts[n].stamp > heavier_stamp):
            remaining[n] = 0


class Kinds:
    """Numbered kinds of acts; a kind keeps its number.

    Attributes:
        use: (n,) int8 use of each kind.
    """

    def __init__(self, kinds: Iterable[Kind] = ()) -> None:
        self._kinds = list(kinds)
        self._number = {kind: number for number, kind in enumerate(self._kinds)}
        self.use = np.array([kind.use for kind in self._kinds], dtype=np.int8)

    def __len__(self) -> int:
        return len(self._kinds)

    def __getitem__(self, number: int) -> Kind:
        return self._kinds[number]

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._kinds)

    def number(self, kind: Kind) -> int:
        """Number of a kind, which is added if it is unknown."""
        number = self._number.get(kind)
        if number is None:
            number = self._number[kind] = len(self._kinds)
            self._kinds.append(kind)
            self.use = np.append(self.use, np.int8(kind.use))
        return number

    @classmethod
    def of_rows(cls, frame: pl.DataFrame) -> tuple[Kinds, np.ndarray]:
        """Kinds of rows with uses, and the number (n,) int32 of each row's kind."""
        columns = [USE, PAIR, WEIGHT, UNITS]
        distinct = frame.select(columns).unique().sort(columns)
        numbers = frame.select(columns).join(
            distinct.with_row_index("kind"), on=columns, how="left", maintain_order="left"
        )
        return cls(Kind(*row) for row in distinct.iter_rows()), numbers["kind"].cast(pl.Int32).to_numpy()


class UndoneRows(NamedTuple):
    """Masks of undone rows: ``rows`` (n,) bool; ``acts`` has one row per undone act."""

    rows: np.ndarray
    acts: np.ndarray


def undone_rows(key: np.ndarray, stamps: np.ndarray, kind: np.ndarray, kinds: Kinds) -> UndoneRows:
    """Find the rows that other rows undo.

    Args:
        key: (n,) int, numbers (user, item) of the rows.
        stamps: (n,) int64 stamps of their moments.
        kind: (n,) int numbers in ``kinds``.
    """
    undone = UndoneRows(np.zeros(len(key), dtype=bool), np.zeros(len(key), dtype=bool))
    touched = np.flatnonzero(np.isin(key, np.unique(key[kinds.use[kind] == Use.UNDO])))
    by_key: dict[int, list[int]] = {}
    for position in touched.tolist():
        by_key.setdefault(int(key[position]), []).append(position)
    for positions in by_key.values():
        rows_of_act: dict[tuple[int, int, str, float], list[int]] = {}
        for position in positions:
            own = kinds[int(kind[position])]
            rows_of_act.setdefault((int(stamps[position]), own.use, own.pair, own.weight), []).append(position)
        acts = [
            Act(stamp, Kind(use, pair, weight, sum(kinds[int(kind[position])].units for position in rows)))
            for (stamp, use, pair, weight), rows in rows_of_act.items()
        ]
        rows_by_act = list(rows_of_act.values())
        for n in undone_acts(acts):
            undone.rows[rows_by_act[n]] = True
            undone.acts[rows_by_act[n][0]] = True
    return undone


def without_undone(frame: pl.DataFrame) -> pl.DataFrame:
    """Neutralize undone rows: use NONE, label and weight 0.

    Every split is handled separately: a purchase before the cut with a return after it stays a training target.
    """
    frame = with_uses(frame)
    if not (frame[USE] == Use.UNDO).any():
        return frame
    pairs = frame.filter(pl.col(USE) == Use.UNDO).select(USER_ID, ITEM_ID).unique().with_row_index("key")
    positions = frame.with_row_index("row").join(pairs, on=[USER_ID, ITEM_ID]).select("row", "key").sort("row")
    rows = positions["row"].to_numpy().astype(np.int64)
    kinds, kind = Kinds.of_rows(frame)
    undone = np.zeros(len(frame), dtype=bool)
    key, stamps = positions["key"].to_numpy().astype(np.int64), frame[STAMP].to_numpy()
    undone[rows] = undone_rows(key, stamps[rows], kind[rows], kinds).rows
    is_undone = pl.Series(undone)
    return frame.with_columns(
        pl.when(is_undone).then(pl.lit(0, frame.schema[name])).otherwise(pl.col(name)).alias(name)
        for name in (USE, LABEL, WEIGHT)
    )
