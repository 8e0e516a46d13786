"""Free space of the stores' disks, and the parts that stop as it ends."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

from recloop.config import Disk

LOGGER = logging.getLogger(__name__)


class DiskLevel(IntEnum):
    """What the free space allows; each level includes the earlier ones."""

    ENOUGH = 0
    ALARM = 1
    NO_DECISIONS = 2
    NO_EVENTS = 3


class DiskWatch:
    """Level of the fullest disk; it returns by itself when space is free again.

    Args:
        folders: One folder of each store.

    Attributes:
        settings: Thresholds in force.
        free_share: Free share of the fullest disk at the last check.
        unrecorded: Decisions that were not recorded since the start.
    """

    def __init__(self, settings: Disk, folders: Sequence[Path]) -> None:
        self.settings = settings
        self.free_share = 1.0
        self.unrecorded = 0
        self._folders = folders
        self._level = DiskLevel.ENOUGH

    @property
    def level(self) -> DiskLevel:
        return self._level

    @property
    def stops_decisions(self) -> bool:
        return self._level >= DiskLevel.NO_DECISIONS

    @property
    def stops_events(self) -> bool:
        return self._level >= DiskLevel.NO_EVENTS

    def check(self) -> None:
        """Read the free space; a change of the level is logged. Not on the event loop."""
        self.free_share = min(map(free_share, self._folders))
        settings = self.settings
        level = DiskLevel(
            sum(self.free_share < threshold for threshold in (settings.alarm, settings.decisions, settings.events))
        )
        if level != self._level:
            LOGGER.warning("disk: %.1f %% free, %s", 100 * self.free_share, LEVEL_TEXTS[level])
        self._level = level


LEVEL_TEXTS = {
    DiskLevel.ENOUGH: "everything is stored",
    DiskLevel.ALARM: "free space soon",
    DiskLevel.NO_DECISIONS: "decisions are not recorded",
    DiskLevel.NO_EVENTS: "events are refused and decisions are not recorded",
}


def free_share(folder: Path) -> float:
    """Share of a disk that this user may still write, as df counts it.

    It is 1 if it cannot be read.
    """
    try:
        facts = os.statvfs(folder)
    except OSError:
        return 1.0
    return facts.f_bavail / max(1, facts.f_blocks - facts.f_bfree + facts.f_bavail)
