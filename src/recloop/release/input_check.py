"""Input check: blocks a window on which live's loss is unusually high.

Shuffled items, bots or a lost hour raise live's loss. Such a window is not trained on (docs/definitions/gate.md). The
functions are pure: the same windows give the same gate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.special import stdtrit  # importing scipy.stats takes a second

from recloop.evaluation.paired import LossEstimate
from recloop.release.gate import INPUT, GateResult

WINDOWS: Final = 20
"""Most earlier windows of the comparison."""
FEWEST: Final = 3
"""Fewest earlier windows of a band."""
QUERIES: Final = 30
"""Fewest queries of a window; with fewer, all of them may miss by chance."""
ALARM: Final = 0.001
"""Share of usual windows that are out of band."""
STILL: Final = 0.01
"""Smallest spread of earlier losses relative to their mean, so that the band has a width."""


def input_check(came: LossEstimate, earlier: Sequence[LossEstimate]) -> GateResult:
    """Compare live's loss on the incoming window with the band of its last 20 windows.

    A loss above the band blocks the window, and so does a loss that is not finite. A loss below the band is a warning.
    The gate passes weakly with fewer than 3 earlier windows or fewer than 30 queries.

    Band = mean +- t(n - 1; 1 - 0.0005) * sqrt(s^2 (1 + 1/n) + c^2 max(0, 1/q - mean of 1/q_i)) over n earlier losses.
    s is their standard deviation, at least 1 % of their mean; c^2 is the mean of their squared ``spread``; q and q_i are
    the queries of this window and of theirs. A usual window of their size is in the band with a probability of 99.9 %.
    The band of a smaller window is wider.
    """
    past = [window for window in earlier if math.isfinite(window.loss)][-WINDOWS:]
    if not math.isfinite(came.loss):
        return GateResult(INPUT, None, math.inf, False, note="live's loss on the incoming window is not finite")
    if came.queries < QUERIES:
        return GateResult(INPUT, came.loss, math.inf, True, note=f"weak: {came.queries} queries, too few to judge")
    if len(past) < FEWEST:
        return GateResult(INPUT, came.loss, math.inf, True, note=f"weak: {len(past)} earlier windows, no band yet")
    losses, sizes, spreads = (np.array(column, dtype=np.float64) for column in zip(*past, strict=True))
    n, mean = len(past), float(losses.mean())
    spread = max(float(losses.std(ddof=1)), STILL * abs(mean))
    smaller = max(0.0, 1 / came.queries - float((1 / sizes).mean()))
    known = spreads[np.isfinite(spreads)]
    room = float((known**2).mean()) * smaller if len(known) else 0.0
    reach = float(stdtrit(n - 1, 1 - ALARM / 2)) * math.sqrt(spread**2 * (1 + 1 / n) + room)
    low, high = mean - reach, mean + reach
    ok = came.loss <= high
    said = f"live's loss on {came.queries} queries of the incoming window, {n} earlier windows"
    warned = "" if ok and came.loss >= low else "warning, below the band: " if ok else "out of band: "
    return GateResult(INPUT, came.loss, high, ok, low=low, high=high, note=warned + said)
