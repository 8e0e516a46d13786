"""Rows that a bundle has learned, and the test window of an update.

``seq`` is the order of arrival, ``stamp`` the time set by the client. Rows may arrive late, so both are needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recloop.features.log_end import end_of
from recloop.features.moments import GROUP_SPAN
from recloop.records import LABEL, SEQ, STAMP, TIMESTAMP, USER_ID, max_int

TESTED_SHARE: Final = 0.25
"""Newest share of a window's new moments, tested before it is learned (docs/definitions/gate.md)."""

LAST_SEQ: Final = 2**63 - 1
FIRST_SEQ: Final = pl.col(SEQ).min().over(USER_ID, STAMP)
"""Seq of the first row of a row's moment. The frame must contain all rows of its moments."""


@dataclass(frozen=True)
class LearnedRange:
    """Rows that a bundle was fitted on.

    These are all rows up to ``until_seq`` except the test moments, which were held back.

    Attributes:
        until_seq: The last seq of the rows.
        cut: int64 microseconds; earliest stamp of a test moment.
        held_seq: Smallest seq of the first row of a test moment.
    """

    until_seq: int
    cut: int
    held_seq: int = 0

    @property
    def held(self) -> pl.Expr:
        """Rows of the held-back moments and of later moments that have arrived since."""
        return (pl.col(STAMP) >= self.cut) & (self.held_seq <= FIRST_SEQ)

    @property
    def rows(self) -> pl.Expr:
        """Rows that the bundle has learned."""
        return (pl.col(SEQ) <= self.until_seq) & ~self.held

    @property
    def new_moments(self) -> pl.Expr:
        """Rows of new moments; a moment is new if its first row is new."""
        return (self.until_seq < FIRST_SEQ) | self.held

    @property
    def new_candidates(self) -> pl.Expr:
        """All rows of `new_moments` and some others, by seq and timestamp only."""
        return (pl.col(SEQ) > self.until_seq) | (pl.col(TIMESTAMP) >= self.cut - GROUP_SPAN)

    def is_new(self, first_seqs: NDArray[np.int64], stamps: NDArray[np.int64]) -> NDArray[np.bool_]:
        """`new_moments` for arrays of moments: seqs of their first rows, and stamps."""
        mask: NDArray[np.bool_] = (first_seqs > self.until_seq) | ((stamps >= self.cut) & (first_seqs >= self.held_seq))
        return mask


@dataclass(frozen=True)
class NewWindow:
    """Test window of an update.

    It holds the moments from ``cut`` on with a first seq of at least ``held_seq``. ``late`` is the number of new moments
    before ``cut``, which are learned but never tested; ``fresh`` is the number at or after it.
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
    """Test window of an update: the last quarter of the fresh new moments.

    Only moments with a positive row count; the quarter is counted in order of arrival. A moment at or after the cut of the live bundle is fresh: neither that
    bundle nor the candidate has learned anything newer. An earlier moment is late: both bundles know its future, so it is
    not tested. A cut after the end of the log (in bundles older than `robust_end`) is replaced by the end of the learned
    rows.

    Args:
        labelled: All valid rows with ``stamp`` and ``label``.
        learned: The learned range of the live bundle.
    """
    if learned.cut > end_of(labelled, STAMP) + 1:
        cut = end_of(labelled.filter(learned.rows), STAMP) + 1
        return _window(labelled, learned, cut, learned.until_seq, nothing_held(labelled))
    return _window(labelled, learned, learned.cut, 0, nothing_held(labelled))


def window_of_rows(rows: pl.DataFrame, learned: LearnedRange, end: int, unheld_seq: int) -> NewWindow | None:
    """`window_of` from the rows that it depends on; None if it depends on all rows.

    Args:
        rows: All rows of the users with a row after ``learned.until_seq``, and all rows from ``learned.cut`` on.
        end: `end_of` all rows by ``stamp``.
        unheld_seq: `nothing_held` of all rows.
    """
    return None if learned.cut > end + 1 else _window(rows, learned, learned.cut, 0, unheld_seq)


def _window(labelled: pl.DataFrame, learned: LearnedRange, cut: int, min_seq: int, unheld_seq: int) -> NewWindow:
    """Test window with this cut; moments up to ``min_seq`` are not fresh."""
    moments = (
        labelled.filter(learned.new_moments)
        .group_by(USER_ID, STAMP)
        .agg(pl.col(SEQ).min(), (pl.col(LABEL) > 0).any().alias("positive"))
        .filter("positive")
    )
    fresh = moments.filter((pl.col(STAMP) >= cut) & (pl.col(SEQ) > min_seq))[SEQ].sort()
    held_seq = int(fresh[int((1 - TESTED_SHARE) * len(fresh))]) if len(fresh) else unheld_seq
    return NewWindow(cut, held_seq, len(moments) - len(fresh), len(fresh))


def nothing_held(rows: pl.DataFrame) -> int:
    """``held_seq`` after all rows, so that no row is held back."""
    return max_int(rows[SEQ]) + 1
