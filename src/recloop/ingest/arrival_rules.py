"""Causal rules on arrival: judge new events by the earlier rows of their users.

Equal to `EventLabeler.causal_rule` over the whole log (a property test). Only rule burst reads earlier rows, and of them
only those in the windows of the new rows.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import polars as pl

from recloop.config import Burst
from recloop.features.burst import STRONG, ActWindow, width_of
from recloop.features.labels import EventLabeler
from recloop.records import GROUP_ID, SEQ, TIMESTAMP, USER_ID
from recloop.storage.event_log import EventLog
from recloop.storage.event_lookup import UserWindow
from recloop.storage.event_rows import RULED_SCHEMA

HOT_ROWS: Final = 256  # rows of a user near one moment from which its acts are kept in memory
NO_ROWS: Final = pl.DataFrame(schema=RULED_SCHEMA)
MAX_HOT_USERS: Final = 1_000
MAX_HOT_ACTS: Final = 10_000  # acts per user from which early ones are dropped


class EarlierRows(Protocol):
    """Rows of the archive; see `recloop.storage.archive.Archive.between`."""

    def between(self, users: Sequence[str], after: int, until: int) -> pl.DataFrame:
        """Rows of these users with ``after`` < timestamp <= ``until``, by seq."""
        ...


@dataclass
class HotUser:
    """Acts of a user with many rows near one moment.

    They are all with ``after`` < stamp <= ``until``.
    """

    after: int
    until: int
    acts: ActWindow


class ArrivalRules:
    """Judge of new events, used by the writer's thread only.

    Args:
        labeler: Labeler with the causal rules.
        log: Log with the open transaction.
    """

    def __init__(self, labeler: EventLabeler, log: EventLog) -> None:
        self._labeler = labeler
        self._log = log
        self._hot: OrderedDict[str, HotUser] = OrderedDict()

    def judge(self, frame: pl.DataFrame, archive: EarlierRows) -> pl.Series:
        """Causal rule that removes each new row; null for valid rows.

        Args:
            frame: New rows in seq order: EVENT_SCHEMA.
        """
        burst = self._labeler.burst
        in_burst = np.zeros(len(frame), dtype=bool) if burst is None else self._in_burst(frame, archive, burst)
        return self._labeler.first_rule(frame, in_burst)

    def forget(self) -> None:
        """Drop what was remembered of rows that may not be stored."""
        self._hot.clear()

    def _in_burst(self, frame: pl.DataFrame, archive: EarlierRows, burst: Burst) -> np.ndarray:
        """(n,) bool mask of the rows in a burst."""
        windows = self._windows(frame, width_of(burst))
        unread = self._unread(windows)
        archived = self._archived(unread, archive)
        stored = self._log.count_recent(unread) + Counter(archived[USER_ID].to_list())
        counts = Counter(frame[USER_ID].to_list())
        suspects = {
            user: self._acts_of(user, burst)
            for user, count in counts.items()
            if count + stored[user] >= burst.events or user in self._hot
        }
        in_burst = np.zeros(len(frame), dtype=bool)
        if not suspects:
            return in_burst
        logged = self._log.recent([window for window in unread if window.user_id in suspects])
        earlier = pl.concat([archived, logged]).unique(SEQ).sort(SEQ) if len(archived) else logged
        for user, stamp, group_id, _ in self._act_rows(earlier, suspects):
            suspects[user].put(stamp, group_id)
        for user, stamp, group_id, at in self._act_rows(frame, suspects):
            in_burst[at] = suspects[user].add(stamp, group_id)
        self._remember(unread, suspects, stored)
        return in_burst

    def _windows(self, frame: pl.DataFrame, width: int) -> list[UserWindow]:
        """Disjoint windows of the rows with a plausible clock, by user and time."""
        is_wrong = self._labeler.wrong_clock(frame).to_list()
        rows = zip(frame[USER_ID].to_list(), frame[TIMESTAMP].to_list(), is_wrong, strict=True)
        windows: list[UserWindow] = []
        for user, stamp in sorted((user, stamp) for user, stamp, wrong in rows if not wrong):
            last = windows[-1] if windows else None
            if last is not None and last.user_id == user and stamp - width <= last.until:
                windows[-1] = UserWindow(user, last.after, stamp)
            else:
                windows.append(UserWindow(user, stamp - width, stamp))
        return windows

    def _unread(self, windows: list[UserWindow]) -> list[UserWindow]:
        """Parts of the windows that the remembered acts do not cover.

        Extends the acts of a hot user whose only window begins inside them, and forgets those of other windows.
        """
        if not self._hot:
            return windows
        window_counts = Counter(window.user_id for window in windows)
        unread = []
        for window in windows:
            hot = self._hot.get(window.user_id)
            if hot is not None and (window_counts[window.user_id] > 1 or not hot.after <= window.after <= hot.until):
                del self._hot[window.user_id]
                hot = None
            if hot is None:
                unread.append(window)
            elif window.until > hot.until:
                unread.append(UserWindow(window.user_id, hot.until, window.until))
                hot.until = window.until
        return unread

    def _archived(self, windows: Sequence[UserWindow], archive: EarlierRows) -> pl.DataFrame:
        """Archived rows near these windows, by seq; they may be in the log as well."""
        if not windows:
            return NO_ROWS
        after = min(window.after for window in windows)
        until = max(window.until for window in windows)
        return archive.between(list(dict.fromkeys(window.user_id for window in windows)), after, until)

    def _acts_of(self, user: str, burst: Burst) -> ActWindow:
        """Remembered acts of a user, or none."""
        hot = self._hot.get(user)
        return ActWindow(burst) if hot is None else hot.acts

    def _act_rows(self, frame: pl.DataFrame, users: Collection[str]) -> Iterator[tuple[str, int, str | None, int]]:
        """User, stamp, group_id and position of these users' rows that count as acts."""
        of_users = frame.with_row_index("at").filter(
            pl.col(USER_ID).is_in(pl.Series(list(users), dtype=pl.String).implode())
        )
        acts = self._labeler.acts(of_users.drop("at")).with_columns(of_users["at"]).filter(~pl.col(STRONG))
        yield from acts.select(USER_ID, TIMESTAMP, GROUP_ID, "at").iter_rows()

    def _remember(self, windows: Sequence[UserWindow], suspects: dict[str, ActWindow], stored: Counter[str]) -> None:
        """Keep the acts of users with many stored rows near one moment."""
        window_counts = Counter(window.user_id for window in windows)
        for user, after, until in windows:
            if user not in self._hot and stored[user] >= HOT_ROWS and window_counts[user] == 1:
                self._hot[user] = HotUser(after, until, suspects[user])
        for user in suspects:
            if user in self._hot:
                self._hot.move_to_end(user)
                hot = self._hot[user]
                if len(hot.acts) > MAX_HOT_ACTS:
                    hot.after = max(hot.after, hot.acts.forget_before(hot.until))
        while len(self._hot) > MAX_HOT_USERS:
            self._hot.popitem(last=False)
