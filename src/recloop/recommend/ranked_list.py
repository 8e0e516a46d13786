"""Ranked list: the slots of one query, and what they were made from."""

from __future__ import annotations

import msgspec

from recloop.records import Slot


class RankedList(msgspec.Struct, frozen=True):
    """Ranked list; ``inputs`` holds 8 hex per named input, in the order of comparison."""

    slots: list[Slot]
    inputs: dict[str, str]
    positives: int
    n: int = 0  # maximum length, from the query or the placement
    empty_reason: str = ""  # cause of a list without slots
    degraded: tuple[str, ...] = ()  # parts that failed: ``filter`` and those of `recloop.recommend.partial`

    @property
    def items(self) -> list[str]:
        return [slot.item_id for slot in self.slots]

    @property
    def scores(self) -> list[float]:
        return [slot.score for slot in self.slots]

    @property
    def sources(self) -> list[str]:
        return [slot.source for slot in self.slots]
