"""Undo rules: acts that a return or an unlike reverses.

Definitions: docs/definitions/terms.md.

`undone_acts` is the definition for one user and item. States and the columns of a split both call it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


class UndoneRows(NamedTuple):
    """Masks of undone rows: ``rows`` (n,) bool; ``acts`` has one row per undone act."""

    rows: np.ndarray
    acts: np.ndarray


@dataclass(frozen=True)
class ActColumns:
    """Columns of n rows as acts, with the stamps of their moments."""

    stamp: np.ndarray  # int64
    use: np.ndarray  # int8
    pair: np.ndarray  # object
    weight: np.ndarray  # float32
    units: np.ndarray  # float64

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> ActColumns:
        """Columns of a frame with ``stamp`` and uses."""
        return cls(
            frame[STAMP].to_numpy(), frame[USE].to_numpy(), frame[PAIR].to_numpy().astype(object),
            frame[WEIGHT].to_numpy(), frame[UNITS].to_numpy(),
        )  # fmt: skip

    def undone_rows(self, rows: np.ndarray, key: np.ndarray) -> UndoneRows:
        """Find rows undone by others of ``rows`` (n,).

        ``key`` (n,) int numbers (query, item).
        """
        undone = UndoneRows(np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool))
        touched = np.flatnonzero(np.isin(key, np.unique(key[self.use[rows] == Use.UNDO])))
        by_key: dict[int, list[int]] = {}
        for position in touched.tolist():
            by_key.setdefault(int(key[position]), []).append(position)
        for positions in by_key.values():
            acts: dict[tuple[int, int, str, float], list[int]] = {}
            for position in positions:
                row = rows[position]
                kind = (int(self.stamp[row]), int(self.use[row]), str(self.pair[row]), float(self.weight[row]))
                acts.setdefault(kind, []).append(position)
            merged = [
                Act(stamp, Kind(use, pair, weight, sum(float(self.units[rows[position]]) for position in members)))
                for (stamp, use, pair, weight), members in acts.items()
            ]
            members = list(acts.values())
            for n in undone_acts(merged):
                undone.rows[members[n]] = True
                undone.acts[members[n][0]] = True
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
    undone = np.zeros(len(frame), dtype=bool)
    undone[rows] = ActColumns.from_frame(frame).undone_rows(rows, positions["key"].to_numpy().astype(np.int64)).rows
    is_undone = pl.Series(undone)
    return frame.with_columns(
        pl.when(is_undone).then(pl.lit(0, frame.schema[name])).otherwise(pl.col(name)).alias(name)
        for name in (USE, LABEL, WEIGHT)
    )
