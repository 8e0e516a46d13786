"""Size and facts of the tests of faults: small in the test suite, full in `make faults`."""

from __future__ import annotations

import os
from typing import Any

FULL = os.environ.get("RECLOOP_FAULTS") == "full"
"""Whether `make faults` runs, which also keeps the facts as benchmarks/results/faults.json."""
Facts = dict[str, dict[str, Any]]
"""Facts of each run by its name, such as ``{"power cut": {"states": 10_000, "acknowledged_rows_lost": 0}}``."""


def size(small: int, full: int) -> int:
    """Return the size of a run."""
    return full if FULL else small
