"""Input check: holds a window on which live's loss is unusually high.

Shuffled items, bots or a lost hour raise live's loss; then nothing is trained (definitions, section 7). The functions
are pure: the same windows give the same gate.
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
    """Live's own loss on the incoming window against its last 20 windows; above their band holds the window.

    Band = mean +- t(n - 1; 1 - .0005) * sqrt(s^2 (1 + 1/n) + c^2 max(0, 1/q - mean of 1/q_i)) over the n earlier losses:
    s their standard deviation, at least 1 % of their mean; c^2 the mean of their squared ``spread``, q and q_i the
    queries of this window and of theirs. So the next usual window of their size lies in it 999 times of 1,000, and a
    smaller one has the room that its own size asks for. Fewer than 3 earlier windows: no band yet; fewer than 30
    queries: no verdict. A loss that is not finite is out of every band. A loss below the band is a warning: live finds
    more than it used to, which harms nobody.
    """
    past = [window for window in earlier if math.isfinite(window.loss)][-WINDOWS:]
    if not math.isfinite(came.loss):
        return GateResult(INPUT, None, math.inf, False, note="live's loss on the incoming window is not finite")
    if came.queries < QUERIES:
        return GateResult(INPUT, came.loss, math.inf, True, note=f"weak: {came.queries} queries, too few to tell")
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
