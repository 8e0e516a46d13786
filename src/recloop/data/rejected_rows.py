"""Rejected rows: the record, the limit ``clean.max_rejected``, reasons and fixes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from recloop.data.guests import GUEST_REFUSED
from recloop.errors import UserError

GUEST_REASON: Final = "no user_id"
"""Reject reason of an anonymous row, which is not an error."""


@dataclass(frozen=True)
class RejectedRow:
    """Unreadable row of an input file, as in ``rejects.jsonl``."""

    file: str
    line: int
    reason: str
    raw: str

    @property
    def place(self) -> str:
        """File and line as ``FILE:LINE`` text."""
        return f"{self.file}:{self.line}"


def reasons(rejects: Sequence[RejectedRow], max_reasons: int = 3) -> str:
    """Most common reasons with counts.

    Example: ``no user_id (336), timestamp: not a stamp (2)``.
    """
    counted = Counter(row.reason for row in rejects).most_common(max_reasons)
    return ", ".join(f"{reason} ({count:,})" for reason, count in counted)


def excess(rejects: Sequence[RejectedRow], read: int, max_share: float) -> UserError | None:
    """Error if more than ``clean.max_rejected`` of the rows are rejected, else None.

    Guests that ``data.guests = "reject"`` refuses do not count.
    """
    rejects = [row for row in rejects if row.reason != GUEST_REFUSED]
    if not rejects or len(rejects) <= max_share * read:
        return None
    share = len(rejects) / read
    setting = f"--set clean.max_rejected={rounded_up(share)}"
    return UserError(
        "rejected",
        f"{share:.1%} of the rows ({len(rejects):,} of {read:,}): {reasons(rejects)}",
        f"at most {max_share:.1%} (clean.max_rejected)",
        f"recloop update {setting} to ignore these rows; {fix_for(rejects)}",
        tuple(f"{row.place}: {row.raw}"[:300] for row in rejects[:3]),
    )


def fix_for(rejects: Sequence[RejectedRow]) -> str:
    """Fix for the most common reason."""
    reason = Counter(row.reason for row in rejects).most_common(1)[0][0]
    if reason == GUEST_REASON:
        guests = "if they are orders of guests, set data.columns.group_id"
        return f"{guests}; otherwise set data.columns.user_id to a column with fewer gaps"
    if reason.startswith("no "):
        return f"otherwise set data.columns.{reason[3:]} to a column with fewer gaps"
    name = reason.partition(":")[0]
    if name == "timestamp" or reason.startswith("timestamp"):
        return "otherwise set data.columns.timestamp or data.time_unit"
    if name in {"value", "quantity"}:
        return f'otherwise set data.columns.{name}=""'
    return "otherwise correct these lines of the file"


def rounded_up(share: float) -> float:
    """Round a share up to the next whole percent."""
    return min(1.0, (int(share * 100) + 1) / 100)
