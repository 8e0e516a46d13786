"""Causal rule ``clock``: remove rows with an implausible client stamp."""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from recloop.config import Clean
from recloop.features.log_end import end_of
from recloop.features.timestamp_text import MAX_IMPORT_SECONDS
from recloop.records import RECEIVED_AT, SECOND, TIMESTAMP

CLOCK: Final = "clock"


def wrong_clock(frame: pl.DataFrame, clean: Clean) -> pl.Series:
    """(n,) Boolean: stamps before 1970 or more than ``clean.future`` after arrival.

    Args:
        frame: Rows with ``timestamp`` and ``received_at``; rows without the latter may have any later stamp.
    """
    max_delay_seconds = clean.future_seconds
    if max_delay_seconds is None:
        return pl.Series(np.zeros(len(frame), dtype=bool))
    max_delay = round(max_delay_seconds * SECOND)
    if RECEIVED_AT in frame.columns and not frame[TIMESTAMP].null_count() and not frame[RECEIVED_AT].null_count():
        return pl.Series(wrong_clocks(frame[TIMESTAMP].to_numpy(), frame[RECEIVED_AT].to_numpy(), clean))
    is_wrong = frame[TIMESTAMP] < 0
    if RECEIVED_AT in frame.columns:
        is_late = frame[TIMESTAMP] - frame[RECEIVED_AT] > max_delay
        is_wrong |= is_late.fill_null(False) if is_late.null_count() else is_late
    return is_wrong


def wrong_clocks(stamps: np.ndarray, received: np.ndarray, clean: Clean) -> np.ndarray:
    """(n,) bool: stamps (n,) int64 that the rule removes, by their times of receipt."""
    max_delay_seconds = clean.future_seconds
    if max_delay_seconds is None:
        return np.zeros(len(stamps), dtype=bool)
    is_wrong: np.ndarray = (stamps < 0) | (stamps - received > round(max_delay_seconds * SECOND))
    return is_wrong


def received_by(frame: pl.DataFrame, max_stamp: int) -> pl.DataFrame:
    """Fill a missing ``received_at`` with the row's stamp, at most ``max_stamp``."""
    return frame.with_columns(pl.min_horizontal(TIMESTAMP, pl.lit(max_stamp)).alias(RECEIVED_AT))


def received_by_end(frame: pl.DataFrame) -> pl.DataFrame:
    """Fill ``received_at`` of an import with the row's stamp.

    It is at the latest the end of the log, within 1970 to 2100.
    """
    possible = pl.col(TIMESTAMP).is_between(0, MAX_IMPORT_SECONDS * SECOND, closed="left")
    return received_by(frame, end_of(frame.filter(possible)))
