"""Retractions of events, and the events that are retracted at a seq."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

RESTORED = "restored"
"""Rule of a row of ``retractions`` that restores an event."""
DELETED = "deleted"
"""Rule of a row of ``retractions`` whose event a client deleted."""


class Retraction(msgspec.Struct, frozen=True):
    """Retraction of event ``retracted_seq``: states exclude it from ``seq`` on.

    ``seq`` is 0 until the log has numbered the row. With rule `RESTORED`, states include the event again from ``seq`` on.
    """

    retracted_seq: int
    rule: str
    seq: int = 0


def retracted_at(rows: Iterable[Retraction], seq: int | None = None) -> set[int]:
    """Find the events that are retracted at ``seq``; None for after all rows.

    The newest row of an event decides, so retractions and restorations may alternate.

    Args:
        rows: Retractions and restorations, by ascending seq.
    """
    retracted: set[int] = set()
    for row in rows:
        if seq is None or row.seq <= seq:
            (retracted.discard if row.rule == RESTORED else retracted.add)(row.retracted_seq)
    return retracted
