"""Errors and counts of the limits of the HTTP service."""

from __future__ import annotations

import random
import resource
from typing import Final

from recloop.config import Limits
from recloop.serve.schemas import HttpError

FREE_BODY_BYTES: Final = 64 * 1024
"""Bytes of each incomplete body that ``body_bytes_in_flight`` does not count."""
RETRY_SECONDS: Final = (1, 4)  # range of Retry-After, so that refused clients do not return together


def max_connections(limits: Limits) -> int:
    """Return the largest number of open connections of this process."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limits.connections if descriptors < 0 else min(limits.connections, descriptors // 2)


def busy(limit: str) -> HttpError:
    """Build the 503 error of a request above a limit of the whole process."""
    error = HttpError(503, "busy", f"the server is busy ({limit}); this request was not processed. Send it again")
    error.headers["Retry-After"] = str(random.randint(*RETRY_SECONDS))
    return error


class ByteBudget:
    """Bytes in use by all requests; used on the event loop only."""

    def __init__(self) -> None:
        self.used = 0

    def take(self, size: int, limit: int) -> None:
        """Add bytes.

        Raises:
            HttpError: 503, the sum would exceed the limit.
        """
        if self.used + size > limit:
            raise busy(f"at most {limit} bytes of bodies in flight, found {self.used + size}")
        self.used += size

    def give_back(self, size: int) -> None:
        """Subtract bytes that `take` added."""
        self.used -= size
