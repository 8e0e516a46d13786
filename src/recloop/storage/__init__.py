"""Stores: event log, decisions, releases, archive, mapped arrays and locks."""

from __future__ import annotations

from pathlib import Path

from recloop.storage.control import ControlStore
from recloop.storage.decisions import DecisionLog
from recloop.storage.event_log import EventLog
from recloop.storage.retractions import Retraction
from recloop.storage.sqlite import locate

__all__ = ["ControlStore", "DecisionLog", "EventLog", "Retraction", "open_control", "open_decisions", "open_log"]


def open_log(url: str, root: Path, write: bool = False) -> EventLog:
    """Open the log at ``stores.log``; ``write`` requires `locks.writer_lock`."""
    return EventLog(locate("stores.log", url, root), write)


def open_decisions(url: str, root: Path, write: bool = False) -> DecisionLog:
    """Open ``stores.decisions``; ``write`` requires `locks.writer_lock`."""
    return DecisionLog(locate("stores.decisions", url, root), write)


def open_control(url: str, root: Path) -> ControlStore:
    """Open the control store at ``stores.control``; any process may write to it."""
    return ControlStore(locate("stores.control", url, root))
