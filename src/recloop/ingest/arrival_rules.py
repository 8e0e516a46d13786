"""Causal rules on arrival: judge new events by the earlier rows of their users.

Equal to `EventLabeler.causal_rule` over the whole log (a property test). Only rule burst reads earlier rows, and of them
only those in the windows of the new rows.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Final, Protocol

import numpy as np
import polars as pl

from recloop.config import Burst
from recloop.features.burst import STRONG, ActWindow, width_of
from recloop.features.labels import EventLabeler
from recloop.features.row_cache import RowCache
from recloop.records import GROUP_ID, ITEM_ID, RECEIVED_AT, SEQ, TIMESTAMP, USER_ID
from recloop.storage.event_log import EventLog
from recloop.storage.event_lookup import UserWindow
from recloop.storage.event_rows import RULED_SCHEMA, EventColumns

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
        self._excluded = labeler.excluded_items
        self._kept = RowCache(labeler.keep_columns or (), lambda rows: labeler.is_kept(rows).tolist())

    def judge(self, rows: EventColumns, archive: EarlierRows) -> list[str | None]:
        """Causal rule that removes each new row; None for valid rows.

        Args:
            rows: New rows in seq order.
        """
        burst = self._labeler.burst
        stamps, received = (np.array(rows[name], dtype=np.int64) for name in (TIMESTAMP, RECEIVED_AT))  # (n,)
        is_wrong = self._labeler.wrong_clocks(stamps, received)
        in_burst = np.zeros(len(rows), dtype=bool) if burst is None else self._in_burst(rows, is_wrong, archive, burst)
        if not in_burst.any() and not is_wrong.any() and self._keeps_all(rows):
            return [None] * len(rows)
        return self._labeler.first_rule(rows.frame, in_burst).to_list()

    def _keeps_all(self, rows: EventColumns) -> bool:
        """Return True if neither ``exclude_items`` nor ``keep`` removes a row.

        False also if that is unknown.
        """
        if not self._excluded.isdisjoint(rows[ITEM_ID]):
            return False
        return self._labeler.keep_columns is None or (self._kept.is_usable and all(self._kept.results(rows)))

    def forget(self) -> None:
        """Drop what was remembered of rows that may not be stored."""
        self._hot.clear()

    def _in_burst(self, rows: EventColumns, is_wrong: np.ndarray, archive: EarlierRows, burst: Burst) -> np.ndarray:
        """(n,) bool mask of the rows in a burst.

        Args:
            is_wrong: (n,) bool mask of the rows with an implausible clock.
        """
        windows = self._windows(rows, is_wrong, width_of(burst))
        unread = self._unread(windows)
        archived = self._archived(unread, archive)
        stored = self._log.count_recent(unread)
        if len(archived):
            stored.update(archived[USER_ID].to_list())
        suspects = {
            user: self._acts_of(user, burst)
            for user, count in Counter(rows[USER_ID]).items()
            if count + stored.get(user, 0) >= burst.events or user in self._hot
        }
        in_burst = np.zeros(len(rows), dtype=bool)
        if not suspects:
            return in_burst
        logged = self._log.recent([window for window in unread if window.user_id in suspects])
        earlier = pl.concat([archived, logged]).unique(SEQ).sort(SEQ) if len(archived) else logged
        for user, stamp, group_id, _ in self._act_rows(earlier, suspects):
            suspects[user].put(stamp, group_id)
        for user, stamp, group_id, at in self._act_rows(rows.frame, suspects):
            in_burst[at] = suspects[user].add(stamp, group_id)
        self._remember(unread, suspects, stored)
        return in_burst

    @staticmethod
    def _windows(rows: EventColumns, is_wrong: np.ndarray, width: int) -> list[UserWindow]:
        """Disjoint windows of the rows with a plausible clock, by user and time."""
        moments = zip(rows[USER_ID], rows[TIMESTAMP], strict=True)
        windows: list[UserWindow] = []
        last_user, last_stamp = "", 0
        for user, stamp in sorted(compress(moments, (~is_wrong).tolist())):
            if windows and user == last_user and stamp - width <= last_stamp:
                windows[-1] = UserWindow(user, windows[-1].after, stamp)
            else:
                windows.append(UserWindow(user, stamp - width, stamp))
            last_user, last_stamp = user, stamp
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
