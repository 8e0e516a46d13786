"""Progress of a fit as plain lines, for notebooks."""

from __future__ import annotations

import sys
from typing import Any


class TextProgress:
    """Write step results to stderr; a long step rewrites its line."""

    def say(self, chapter: str, line: str) -> None:
        sys.stderr.write(f"{chapter:>9}  {line}\n")

    def show(self, chapter: str, drawn: Any) -> None:
        """Ignore tables, because the notebook shows the result of the call."""

    def bar(self, chapter: str, done: int, total: int) -> None:
        sys.stderr.write(f"\r{chapter:>9}  {done:,} of {total:,}" + ("\n" if done >= total else ""))
