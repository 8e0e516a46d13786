"""Where bytes live: the stores behind their URLs, each opened at the top and passed down."""

from __future__ import annotations

from pathlib import Path

from recloop.backends.control import Control
from recloop.backends.decisions import Decisions
from recloop.backends.log import Log, Retraction
from recloop.backends.sqlite import locate

__all__ = ["Control", "Decisions", "Log", "Retraction", "open_control", "open_decisions", "open_log"]


def open_log(url: str, root: Path, write: bool = False) -> Log:
    """The log behind ``stores.log``; ``write`` wants the caller to hold `locks.writer_lock`."""
    return Log(locate("stores.log", url, root), write)


def open_decisions(url: str, root: Path, write: bool = False) -> Decisions:
    """The decisions behind ``stores.decisions``; ``write`` wants the caller to hold `locks.writer_lock`."""
    return Decisions(locate("stores.decisions", url, root), write)


def open_control(url: str, root: Path) -> Control:
    """The control store behind ``stores.control``; any process may move a release."""
    return Control(locate("stores.control", url, root))
