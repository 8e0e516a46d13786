"""Limits of the HTTP service; each is named in `docs/stability.md`."""

from __future__ import annotations

import random
import resource
from typing import Final

from recloop.serve.schemas import HttpError

MAX_HEAD_BYTES: Final = 64 * 1024  # request line and headers
HEAD_SECONDS: Final = 10.0  # time to send a head
BODY_SECONDS: Final = 30.0  # time to send a body
ANSWER_SECONDS: Final = 30.0  # time without progress after which an unread answer is dropped
MAX_REQUESTS_IN_FLIGHT: Final = 256
"""Waiting lists, and other requests under way, of one process; each kind has its own count."""
MAX_BODY_BYTES_IN_FLIGHT: Final = 64 * 2**20
"""Bytes of incomplete bodies of one process, without the first `FREE_BODY_BYTES` of each."""
FREE_BODY_BYTES: Final = 64 * 1024
MAX_CONNECTIONS: Final = 8_192  # of one process; at most half of its file descriptors
RETRY_SECONDS: Final = (1, 4)  # range of Retry-After, so that refused clients do not return together


def max_connections() -> int:
    """Return the largest number of open connections of this process."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_CONNECTIONS if descriptors < 0 else min(MAX_CONNECTIONS, descriptors // 2)


def busy(limit: str) -> HttpError:
    """Build the 503 error of a request above a limit of the whole process."""
    error = HttpError(503, "busy", f"the server is busy ({limit}); this request was not processed. Send it again")
    error.headers["Retry-After"] = str(random.randint(*RETRY_SECONDS))
    return error


class ByteBudget:
    """Bytes in use by all requests; used on the event loop only."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, size: int) -> None:
        """Add bytes.

        Raises:
            HttpError: 503, the sum would exceed the limit.
        """
        if self.used + size > self.limit:
            raise busy(f"at most {self.limit} bytes of bodies in flight")
        self.used += size

    def give_back(self, size: int) -> None:
        """Subtract bytes that `take` added."""
        self.used -= size
