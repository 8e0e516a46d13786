"""Learning rate over a run: cosine decay by the share of the run that is done."""

from __future__ import annotations

import math

FINAL_RATE_SHARE = 0.01
"""Share of the learning rate at the end of a run."""
BUDGET_PARTS = 100
"""The clock counts in whole parts of the budget, so that a run that its epochs end is repeatable."""


def share_done(step: int, max_steps: int, seconds: float, budget: float) -> float:
    """Return the share of a run that is done, at most 1.

    It is the share of its steps or of its budget, the larger one.

    Args:
        step: Steps so far. max_steps: Steps of ``train.epochs``.
        seconds: Training seconds so far. budget: Training seconds of the whole run.
    """
    budget_share = math.floor(BUDGET_PARTS * min(1.0, seconds / budget)) / BUDGET_PARTS
    return min(1.0, max(step / max(1, max_steps), budget_share))


def cosine_rate(share: float) -> float:
    """Return the factor of the learning rate at a share of the run.

    It falls from 1 at share 0 to `FINAL_RATE_SHARE` at share 1.
    Loshchilov & Hutter, "SGDR", ICLR 2017 (arXiv 1608.03983), equation 5 without restarts.
    """
    return FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * (1 + math.cos(math.pi * share)) / 2
