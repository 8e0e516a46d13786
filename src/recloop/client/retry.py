"""Waits between the attempts of a request."""

from __future__ import annotations

import random
from typing import Final

from recloop.client.errors import ServiceError

FIRST_WAIT_SECONDS: Final = 0.2
MAX_WAIT_SECONDS: Final = 30.0
JITTER: Final = 0.5  # share of a wait that is random, so that clients do not return together


def wait_seconds(error: ServiceError, attempt: int, attempts: int) -> float | None:
    """Seconds to wait before the next attempt; None if there is none.

    The wait doubles with each attempt, and is at least the service's ``Retry-After``.

    Args:
        error: Failure of the last attempt.
        attempt: Number of failed attempts, from 1.
        attempts: Most attempts of a request.
    """
    if not error.can_retry or attempt >= attempts:
        return None
    wait = FIRST_WAIT_SECONDS * 2.0 ** (attempt - 1) * (1 + JITTER * random.random())
    return min(MAX_WAIT_SECONDS, max(wait, error.retry_after or 0.0))
