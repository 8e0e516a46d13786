"""Size and facts of the tests of faults: small in the test suite, full in `make faults`."""

from __future__ import annotations

import os
from typing import Any

SHARE = float(os.environ.get("RECLOOP_FAULTS", "0"))
"""Share of the full size; `make faults` sets 1 and keeps the facts in benchmarks/results/faults.json."""
Facts = dict[str, dict[str, Any]]
"""Facts of each run by its name, such as ``{"power cut": {"states": 10_000, "acknowledged_rows_lost": 0}}``."""


def size(small: int, full: int) -> int:
    """Return the size of a run."""
    return max(small, round(SHARE * full))
