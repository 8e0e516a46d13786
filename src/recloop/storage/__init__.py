"""Where bytes live: the stores behind their URLs, each opened at the top and passed down."""

from __future__ import annotations

from pathlib import Path

from recloop.storage.control import ControlStore
from recloop.storage.decisions import DecisionLog
from recloop.storage.event_log import EventLog, Retraction
from recloop.storage.sqlite import locate

__all__ = ["ControlStore", "DecisionLog", "EventLog", "Retraction", "open_control", "open_decisions", "open_log"]


def open_log(url: str, root: Path, write: bool = False) -> EventLog:
    """The log behind ``stores.log``; ``write`` wants the caller to hold `locks.writer_lock`."""
    return EventLog(locate("stores.log", url, root), write)


def open_decisions(url: str, root: Path, write: bool = False) -> DecisionLog:
    """The decisions behind ``stores.decisions``; ``write`` wants the caller to hold `locks.writer_lock`."""
    return DecisionLog(locate("stores.decisions", url, root), write)


def open_control(url: str, root: Path) -> ControlStore:
    """The control store behind ``stores.control``; any process may move a release."""
    return ControlStore(locate("stores.control", url, root))
