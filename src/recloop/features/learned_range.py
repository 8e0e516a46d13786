"""Which rows a bundle has learned, and which moments of a window are tested: by order of arrival, never by stamp alone.

``seq`` is the order of arrival, ``stamp`` is what a client says; rows arrive late. So neither decides alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recloop.features.log_end import end_of
from recloop.records import LABEL, SEQ, STAMP, USER_ID, max_int

TESTED_SHARE: Final = 0.25
"""The newest share of a window's new moments: tested before it is learned (definitions, section 7)."""

LAST_SEQ: Final = 2**63 - 1
FIRST_SEQ: Final = pl.col(SEQ).min().over(USER_ID, STAMP)
"""The seq of the first row of a row's moment; the frame must hold all rows of its moments."""


@dataclass(frozen=True)
class LearnedRange:
    """The rows that a bundle was fitted on: all up to ``until_seq`` but the moments that were held back for its test.

    Attributes:
        until_seq: The last seq of its rows.
        cut: int64 microseconds; held back were moments at or after this stamp ...
        held_seq: ... whose first row has this seq or a later one.
    """

    until_seq: int
    cut: int
    held_seq: int = 0

    @property
    def held(self) -> pl.Expr:
        """Rows of the moments that were held back, and of later ones that arrived since."""
        return (pl.col(STAMP) >= self.cut) & (self.held_seq <= FIRST_SEQ)

    @property
    def rows(self) -> pl.Expr:
        """Rows that it has learned."""
        return (pl.col(SEQ) <= self.until_seq) & ~self.held

    @property
    def new_moments(self) -> pl.Expr:
        """Rows of moments of which it has learned nothing: a moment is new when its first row is new."""
        return (self.until_seq < FIRST_SEQ) | self.held

    def is_new(self, first_seqs: NDArray[np.int64], stamps: NDArray[np.int64]) -> NDArray[np.bool_]:
        """`new_moments` for moments as arrays: the seq of the first row, the stamp."""
        new: NDArray[np.bool_] = (first_seqs > self.until_seq) | ((stamps >= self.cut) & (first_seqs >= self.held_seq))
        return new


@dataclass(frozen=True)
class NewWindow:
    """What an update tests: moments at or after ``cut`` whose first row has ``held_seq`` or a later seq.

    ``late``: new moments before ``cut``, which are learned and never tested; ``fresh``: those at or after it.
    """

    cut: int
    held_seq: int
    late: int
    fresh: int

    @property
    def tested(self) -> pl.Expr:
        """Rows of the moments that are tested; the candidate learns all others."""
        return (pl.col(STAMP) >= self.cut) & (self.held_seq <= FIRST_SEQ)


def window_of(labelled: pl.DataFrame, learned: LearnedRange) -> NewWindow:
    """The test of an update: the last quarter, in order of arrival, of the new moments with a positive that are fresh.

    Fresh = at or after the cut of the bundle that serves: nothing that it has learned is newer, so neither it nor the
    candidate knows what came next. A moment dated before that is late: what followed it is known to both, so it tests
    nothing. A cut beyond the end of the log (a bundle of before `robust_end`) is replaced by the end of what was learned.

    Args:
        labelled: All believed rows with ``stamp`` and ``label``.
        learned: Of the live bundle.
    """
    cut, after = learned.cut, 0
    if cut > end_of(labelled, STAMP) + 1:
        cut, after = end_of(labelled.filter(learned.rows), STAMP) + 1, learned.until_seq
    moments = (
        labelled.filter(learned.new_moments)
        .group_by(USER_ID, STAMP)
        .agg(pl.col(SEQ).min(), (pl.col(LABEL) > 0).any().alias("positive"))
        .filter("positive")
    )
    fresh = moments.filter((pl.col(STAMP) >= cut) & (pl.col(SEQ) > after))[SEQ].sort()
    held_seq = int(fresh[int((1 - TESTED_SHARE) * len(fresh))]) if len(fresh) else nothing_held(labelled)
    return NewWindow(cut, held_seq, len(moments) - len(fresh), len(fresh))


def nothing_held(rows: pl.DataFrame) -> int:
    """A ``held_seq`` behind all these rows."""
    return max_int(rows[SEQ]) + 1
