"""Rows that cannot be read: how many a first run accepts, why they were rejected, and what would help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from recloop.errors import UserError

GUESTS: Final = "no user_id"
"""The reason of a row without a user: a guest's, which teaches nothing and is nobody's mistake."""


@dataclass(frozen=True)
class RejectedRow:
    """A row of an input file that cannot be read, as ``rejects.jsonl`` keeps it."""

    file: str
    line: int
    reason: str
    raw: str

    @property
    def place(self) -> str:
        """File and line."""
        return f"{self.file}:{self.line}"


def reasons(rejects: Sequence[RejectedRow], most: int = 3) -> str:
    """The commonest reasons with their counts: ``no user_id (336), timestamp: not a stamp (2)``."""
    counted = Counter(row.reason for row in rejects).most_common(most)
    return ", ".join(f"{reason} ({count:,})" for reason, count in counted)


def excess(rejects: Sequence[RejectedRow], read: int, allowed: float) -> UserError | None:
    """The error of a log of which more than ``clean.max_rejected`` cannot be read; None: it is within the limit."""
    if not rejects or len(rejects) <= allowed * read:
        return None
    share = len(rejects) / read
    limit = f"--set clean.max_rejected={rounded_up(share)}"
    return UserError(
        "rejected",
        f"{share:.1%} of the rows ({len(rejects):,} of {read:,}): {reasons(rejects)}",
        f"at most {allowed:.1%} (clean.max_rejected)",
        f"recloop update {limit}, where these rows may be left out; {helps(rejects)}",
        tuple(f"{row.place}: {row.raw}"[:300] for row in rejects[:3]),
    )


def helps(rejects: Sequence[RejectedRow]) -> str:
    """What else helps against the commonest reason."""
    reason = Counter(row.reason for row in rejects).most_common(1)[0][0]
    if reason == GUESTS:
        return "rows without a user are guests, else set data.columns.user_id to a fuller column"
    if reason.startswith("no "):
        return f"else set data.columns.{reason[3:]} to a fuller column"
    name = reason.partition(":")[0]
    if name == "timestamp" or reason.startswith("timestamp"):
        return "else set data.columns.timestamp or data.time_unit"
    if name in {"value", "quantity"}:
        return f'else set data.columns.{name}=""'
    return "else correct these lines of the file"


def rounded_up(share: float) -> float:
    """The share as the next whole per cent above it."""
    return min(1.0, (int(share * 100) + 1) / 100)
