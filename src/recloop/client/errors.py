"""Error of a request that the service did not accept, or that did not reach it."""

from __future__ import annotations

from typing import Any

from recloop.errors import RecloopError


class ServiceError(RecloopError):
    """Failed request.

    Attributes:
        status: HTTP status; 0 if no answer arrived.
        code: Code of the service's error, such as ``bad_body``; ``unreachable`` if no answer arrived.
        request_id: Id of the request in the service's logs; may be empty.
        retry_after: Seconds that the service asked to wait; None if it did not.
        rows: Rows of the failed batch with their event ids; sending them again is safe.
        sent: Counts by status of the batches before it.
    """

    exit_code = 1

    def __init__(
        self, status: int, code: str, message: str, request_id: str = "", retry_after: float | None = None
    ) -> None:
        self.status, self.code, self.request_id, self.retry_after = status, code, request_id, retry_after
        self.rows: list[dict[str, Any]] = []
        self.sent: dict[str, int] = {}
        super().__init__(f"{status or 'no answer'} {code}: {message}")

    @property
    def can_retry(self) -> bool:
        """True if the same request may succeed later."""
        return self.status in RETRY_STATUSES


RETRY_STATUSES = frozenset({0, 429, 502, 503, 504})
