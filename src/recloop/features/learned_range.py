"""Rows that a bundle has learned, and the test window of an update.

``seq`` is the order of arrival, ``stamp`` the time set by the client; rows may arrive late, so both decide together.
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
"""Newest share of a window's new moments that is tested before it is learned (definitions, section 7)."""

LAST_SEQ: Final = 2**63 - 1
FIRST_SEQ: Final = pl.col(SEQ).min().over(USER_ID, STAMP)
"""Seq of the first row of a row's moment; the frame must contain all rows of its moments."""


@dataclass(frozen=True)
class LearnedRange:
    """Rows that a bundle was fitted on: all up to ``until_seq`` except its test moments.

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
        """Rows of the held-back moments and of later moments that arrived since."""
        return (pl.col(STAMP) >= self.cut) & (self.held_seq <= FIRST_SEQ)

    @property
    def rows(self) -> pl.Expr:
        """Rows that the bundle has learned."""
        return (pl.col(SEQ) <= self.until_seq) & ~self.held

    @property
    def new_moments(self) -> pl.Expr:
        """Rows of new moments; a moment is new if its first row is new."""
        return (self.until_seq < FIRST_SEQ) | self.held

    def is_new(self, first_seqs: NDArray[np.int64], stamps: NDArray[np.int64]) -> NDArray[np.bool_]:
        """`new_moments` for arrays of moments: seq of the first row, stamp."""
        new: NDArray[np.bool_] = (first_seqs > self.until_seq) | ((stamps >= self.cut) & (first_seqs >= self.held_seq))
        return new


@dataclass(frozen=True)
class NewWindow:
    """Test window of an update: moments from ``cut`` whose first seq is ``held_seq`` or later.

    ``late``: number of new moments before ``cut``, which are learned but never tested; ``fresh``: those from it on.
    """

    cut: int
    held_seq: int
    late: int
    fresh: int

    @property
    def tested(self) -> pl.Expr:
        """Rows of the tested moments; the candidate learns all others."""
        return (pl.col(STAMP) >= self.cut) & (self.held_seq <= FIRST_SEQ)


def window_of(labelled: pl.DataFrame, learned: LearnedRange) -> NewWindow:
    """Test window of an update: the last quarter of the fresh new moments with a positive.

    The quarter is counted in order of arrival. A moment is fresh if it lies at or after the cut of the live bundle:
    neither that bundle nor the candidate has learned anything newer. An earlier moment is late: both know its future,
    so it is not tested. A cut beyond the end of the log (bundles older than `robust_end`) is replaced by the end of the
    learned rows.

    Args:
        labelled: All valid rows with ``stamp`` and ``label``.
        learned: The learned range of the live bundle.
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
    """A ``held_seq`` after all rows, so that nothing is held back."""
    return max_int(rows[SEQ]) + 1
