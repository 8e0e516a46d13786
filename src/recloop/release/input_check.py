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
from recloop.release.gate_result import INPUT_GATE, GateResult

MAX_WINDOWS: Final = 20
"""Most earlier windows of the comparison."""
MIN_WINDOWS: Final = 3
"""Fewest earlier windows of a band."""
MIN_QUERIES: Final = 30
"""Fewest queries of a window; with fewer, all of them may miss by chance."""
FALSE_ALARM_RATE: Final = 0.001
"""Share of usual windows that are out of band."""
MIN_RELATIVE_SPREAD: Final = 0.01
"""Smallest spread of earlier losses relative to their mean, so that the band has a width."""


def input_check(incoming: LossEstimate, earlier: Sequence[LossEstimate]) -> GateResult:
    """Compare live's loss on the incoming window with the band of its last 20 windows.

    A loss above the band blocks the window, and so does a loss that is not finite. A loss below the band is a warning.
    The gate passes weakly with fewer than 3 earlier windows or fewer than 30 queries.

    Band = mean +- t(n - 1; 1 - 0.0005) * sqrt(s^2 (1 + 1/n) + c^2 max(0, 1/q - mean of 1/q_i)) over n earlier losses.
    s is their standard deviation, at least 1 % of their mean; c^2 is the mean of their squared ``spread``; q and q_i are
    the queries of this window and of theirs. A usual window of their size is in the band with a probability of 99.9 %.
    The band of a smaller window is wider.
    """
    past = [window for window in earlier if math.isfinite(window.loss)][-MAX_WINDOWS:]
    if not math.isfinite(incoming.loss):
        return GateResult(INPUT_GATE, None, math.inf, False, note="live's loss on the incoming window is not finite")
    if incoming.queries < MIN_QUERIES:
        return GateResult(
            INPUT_GATE, incoming.loss, math.inf, True, note=f"weak: {incoming.queries} queries, too few to judge"
        )
    if len(past) < MIN_WINDOWS:
        return GateResult(
            INPUT_GATE, incoming.loss, math.inf, True, note=f"weak: {len(past)} earlier windows, no band yet"
        )
    losses, sizes, spreads = (np.array(column, dtype=np.float64) for column in zip(*past, strict=True))
    n = len(past)
    mean = float(losses.mean())
    spread = max(float(losses.std(ddof=1)), MIN_RELATIVE_SPREAD * abs(mean))
    smaller = max(0.0, 1 / incoming.queries - float((1 / sizes).mean()))
    known_spreads = spreads[np.isfinite(spreads)]
    size_variance = float((known_spreads**2).mean()) * smaller if len(known_spreads) else 0.0
    reach = float(stdtrit(n - 1, 1 - FALSE_ALARM_RATE / 2)) * math.sqrt(spread**2 * (1 + 1 / n) + size_variance)
    low, high = mean - reach, mean + reach
    ok = incoming.loss <= high
    note = f"live's loss on {incoming.queries} queries of the incoming window, {n} earlier windows"
    warning = "" if ok and incoming.loss >= low else "warning, below the band: " if ok else "out of band: "
    return GateResult(INPUT_GATE, incoming.loss, high, ok, low=low, high=high, note=warning + note)
