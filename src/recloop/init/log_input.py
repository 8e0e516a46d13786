"""Input of `init`: the files with all their columns, and the guesses about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recloop.config import Data
from recloop.data.tables import Table
from recloop.init.features import Side


@dataclass(frozen=True)
class GuessedSetting:
    """Guessed setting, the reason and the confidence from 0 to 1."""

    key: str
    value: Any
    why: str
    confidence: float = 1.0


@dataclass
class Guesses:
    """Guesses in the order in which they were made, and notes on what is left out."""

    settings: list[GuessedSetting] = field(default_factory=list)

    def say(self, key: str, value: Any, why: str, confidence: float = 1.0) -> None:
        self.settings.append(GuessedSetting(key, value, why, confidence))


@dataclass(frozen=True)
class LogInput:
    """Files as read for `init`: tables with all columns, orders, and the sides.

    Attributes:
        read_settings: Settings of ``[data]`` that the files were read with.
        ask: True if a terminal answers questions.
        accept: True if guesses below the least confidence are accepted.
        chosen: Columns by field that are not guessed.
        sampled: True if the tables hold a part of the rows.
    """

    tables: list[Table]
    orders: list[Table]
    items: Side | None
    users: Side | None
    read_settings: Data
    ask: bool
    accept: bool = True
    chosen: Mapping[str, str] = field(default_factory=dict)
    sampled: bool = False

    @property
    def name(self) -> str:
        return self.tables[0].source.name
