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
LEAST_UNITS: Final = 1e-9
"""Remaining units below this count as zero, because sums of fractions are not exact."""


def undone_acts(acts: Sequence[Act]) -> set[int]:
    """Indices of the undone acts of one user on one item.

    The order of ``acts`` does not matter. Undos are applied by stamp. Each one undoes as many units as it has, newest act
    first. It matches the acts of its event type at or before its stamp, or for ``*`` the heaviest targets. A dislike is
    undone completely, with all earlier ones of its type. An undone target also removes the lighter targets (the cart
    before a purchase) since the newest remaining target of its weight or more.
    """
    left = {n: act.kind.units for n, act in enumerate(acts) if act.kind.use != Use.UNDO}
    undos = sorted((act for act in acts if act.kind.use == Use.UNDO), key=lambda act: (act.stamp, act.kind.pair))
    for undo in undos:
        pool = [n for n in left if acts[n].stamp <= undo.stamp and left[n] > 0 and _names(undo.kind, acts[n].kind)]
        heaviest = max((acts[n].kind.weight for n in pool), default=0.0)
        units = undo.kind.units
        for n in sorted(pool, key=lambda n: (acts[n].stamp, acts[n].kind.weight, acts[n].kind.pair), reverse=True):
            kind = acts[n].kind
            if kind.use == Use.NEGATIVE:
                left[n] = 0
            elif units > LEAST_UNITS and (undo.kind.pair != ANY_TARGET or kind.weight == heaviest):
                units, left[n] = max(0.0, units - left[n]), max(0.0, left[n] - units)
                if left[n] <= LEAST_UNITS:
                    left[n] = 0
                    if kind.use == Use.TARGET:
                        _drop_lighter(acts, left, kind.weight, undo.stamp)
    return {n for n, units in left.items() if units == 0}


def _names(undo: Kind, kind: Kind) -> bool:
    return kind.use == Use.TARGET if undo.pair == ANY_TARGET else kind.pair == undo.pair


def _drop_lighter(acts: Sequence[Act], left: dict[int, float], weight: float, until: int) -> None:
    """Remove lighter targets up to ``until``.

    It starts after the newest remaining target of ``weight`` or more.
    """
    targets = [n for n in left if left[n] > 0 and acts[n].kind.use == Use.TARGET and acts[n].stamp <= until]
    since = max((acts[n].stamp for n in targets if acts[n].kind.weight >= weight), default=None)
    for n in targets:
        if acts[n].kind.weight < weight and (since is None or acts[n].stamp > since):
            left[n] = 0


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
        lost = UndoneRows(np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool))
        touched = np.flatnonzero(np.isin(key, np.unique(key[self.use[rows] == Use.UNDO])))
        by_key: dict[int, list[int]] = {}
        for place in touched.tolist():
            by_key.setdefault(int(key[place]), []).append(place)
        for places in by_key.values():
            acts: dict[tuple[int, int, str, float], list[int]] = {}
            for place in places:
                row = rows[place]
                kind = (int(self.stamp[row]), int(self.use[row]), str(self.pair[row]), float(self.weight[row]))
                acts.setdefault(kind, []).append(place)
            own = [
                Act(stamp, Kind(use, pair, weight, sum(float(self.units[rows[place]]) for place in members)))
                for (stamp, use, pair, weight), members in acts.items()
            ]
            members = list(acts.values())
            for n in undone_acts(own):
                lost.rows[members[n]] = True
                lost.acts[members[n][0]] = True
        return lost


def without_undone(frame: pl.DataFrame) -> pl.DataFrame:
    """Neutralize undone rows: use NONE, label and weight 0.

    Every split is handled separately: a purchase before the cut with a return after it stays a training target.
    """
    frame = with_uses(frame)
    if not (frame[USE] == Use.UNDO).any():
        return frame
    pairs = frame.filter(pl.col(USE) == Use.UNDO).select(USER_ID, ITEM_ID).unique().with_row_index("key")
    places = frame.with_row_index("row").join(pairs, on=[USER_ID, ITEM_ID]).select("row", "key").sort("row")
    rows = places["row"].to_numpy().astype(np.int64)
    lost = np.zeros(len(frame), dtype=bool)
    lost[rows] = ActColumns.from_frame(frame).undone_rows(rows, places["key"].to_numpy().astype(np.int64)).rows
    gone = pl.Series(lost)
    return frame.with_columns(
        pl.when(gone).then(pl.lit(0, frame.schema[name])).otherwise(pl.col(name)).alias(name)
        for name in (USE, LABEL, WEIGHT)
    )
