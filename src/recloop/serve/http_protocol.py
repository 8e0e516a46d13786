"""HTTP/1.1 connection with limits on heads, bodies, times and requests in flight."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any, Final

import httptools
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from recloop.serve import limits
from recloop.serve.middleware import REQUEST_IDS, Reply, error_reply
from recloop.serve.request_metrics import OTHER_ROUTE
from recloop.serve.schemas import HttpError

LOGGER = logging.getLogger(__name__)
HEALTH_PREFIX: Final = "/v1/health/"
UPGRADE_HEADERS: Final = frozenset((b"connection", b"upgrade", b"http2-settings"))
UNKNOWN_METHOD: Final = "unknown"
"""Method of a request whose head is not complete."""
LOG_SECONDS: Final = 1.0
DRAINING_SECONDS: Final = 1.0  # time for an incomplete request while the process ends


class LimitedLog:
    """Warnings about clients, at most one line in `LOG_SECONDS`."""

    def __init__(self) -> None:
        self._next = 0.0
        self._n_skipped = 0

    def warn(self, message: str) -> None:
        """Log a message with the number of lines left out before it."""
        now = time.monotonic()
        if now < self._next:
            self._n_skipped += 1
            return
        more = f" ({self._n_skipped} more since the last line)" if self._n_skipped else ""
        self._next, self._n_skipped = now + LOG_SECONDS, 0
        LOGGER.warning("%s%s", message, more)


MALFORMED_LOG = LimitedLog()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with the limits of `recloop.serve.limits`.

    A request above a limit gets a JSON error and the connection is closed. An ``Upgrade`` header is ignored: the head
    is read again without it, because the parser would leave out the body. Subclasses override `begin_request` and
    `end_request` in place of the parser's callbacks.
    """

    _n_head_bytes = 0
    _is_in_head = True
    _is_upgrade = False
    _is_reading = False
    """A request has begun and is incomplete."""
    _since: float | None = None
    """Loop time since which the connection or an incomplete request waits for data."""
    _unread_bytes = 0
    _unread_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        self._n_head_bytes += len(data)
        self._feed(data)
        if self._is_in_head and self._n_head_bytes > limits.MAX_HEAD_BYTES:
            expected = f"at most {limits.MAX_HEAD_BYTES} bytes"
            message = f"the request line and headers are larger than {limits.MAX_HEAD_BYTES} bytes"
            self.refuse(HttpError(431, "head_too_large", message, "headers", expected))
        elif self._is_reading and self._since is None:
            self._since = self.loop.time()

    def on_message_begin(self) -> None:
        self._is_reading = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_upgrade = self.parser.should_upgrade()
        if not self._is_upgrade:
            self.begin_request()
        self._is_in_head = False
        self._since = None

    def on_message_complete(self) -> None:
        if self._is_upgrade:
            return
        self._is_in_head, self._is_reading, self._n_head_bytes = True, False, 0
        self._since = None
        self.end_request()

    def begin_request(self) -> None:
        """Handle a complete head."""
        super().on_headers_complete()

    def end_request(self) -> None:
        """Handle a complete request."""
        super().on_message_complete()

    def refuse(self, error: HttpError) -> None:
        """Answer an error if an answer is due, and close the connection."""
        earlier: Any = self.cycle  # None before the first request
        if self._is_in_head or earlier is None:
            is_due = earlier is None or earlier.response_complete
        else:
            is_due = not earlier.response_started and not self.pipeline
        if is_due:
            reply = error_reply(error)
            reply.headers.append((b"x-request-id", REQUEST_IDS.next().encode()))
            self.count(reply.status)
            self.transport.write(encode(reply, self.server_state.default_headers, is_last=True))
        self.transport.close()

    def count(self, status: int, method: str = UNKNOWN_METHOD) -> None:
        """Count a request that is refused before it reaches a route."""
        application: Any = self.app
        application.requests.add(method, OTHER_ROUTE, status, 0.0)

    def expire(self, now: float, is_draining: bool) -> None:
        """Close the connection if its request or the reading of its answer takes too long.

        Args:
            now: Time of the event loop.
            is_draining: The process ends, so an incomplete request has `DRAINING_SECONDS` only.
        """
        if self._expire_unread(now):
            return
        if self._since is None:
            if self._is_idle() and self.timeout_keep_alive_task is None:
                self._since = now
            return
        seconds = limits.HEAD_SECONDS if self._is_in_head else limits.BODY_SECONDS
        if now - self._since <= (DRAINING_SECONDS if is_draining else seconds):
            return
        if not self._is_reading:
            self.transport.close()
            return
        part = "head" if self._is_in_head else "body"
        message = f"the {part} of the request did not arrive within {seconds:.0f} seconds"
        self.refuse(HttpError(408, "timeout", message, part, f"a whole {part} within {seconds:.0f} seconds"))

    def _expire_unread(self, now: float) -> bool:
        """Drop an answer that the client does not read; return True while one is unread."""
        if not self.transport.is_closing() and not self.flow.write_paused:
            self._unread_bytes = 0
            return False
        size = self.transport.get_write_buffer_size() + 1
        if size != self._unread_bytes:
            self._unread_bytes, self._unread_since = size, now
        elif now - self._unread_since > limits.ANSWER_SECONDS:
            self.transport.abort()
        return True

    def _is_idle(self) -> bool:
        """Return True without a request under way."""
        earlier: Any = self.cycle
        return not self._is_reading and (earlier is None or earlier.response_complete)

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._feed_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse_malformed()

    def _feed_without_upgrade(self, rest: bytes) -> None:
        """Read the present head again without its upgrade, then the rest of the data."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse_malformed()
            return
        head = [b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())]
        head += [b"%s: %s" % header for header in self.headers if header[0] not in UPGRADE_HEADERS]
        if any(name == b"connection" and b"close" in value.lower() for name, value in self.headers):
            head.append(b"connection: close")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn
        self._feed(b"\r\n".join(head) + b"\r\n\r\n" + rest)

    def _refuse_malformed(self) -> None:
        MALFORMED_LOG.warn("a malformed HTTP request was refused")
        self.refuse(HttpError(400, "malformed", "the request is not valid HTTP/1.1", None, "HTTP/1.1 (RFC 9112)"))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if len(self.tasks) >= limits.MAX_REQUESTS_IN_FLIGHT and not cycle.scope["path"].startswith(HEALTH_PREFIX):
            app = _Busy(self)
        super()._start_asgi_task(cycle, app)


def encode(reply: Reply, headers: Iterable[tuple[bytes, bytes]] = (), is_last: bool = False) -> bytes:
    """Encode a whole response.

    Args:
        headers: Further headers, such as the date.
        is_last: The connection is closed after it.
    """
    content = [STATUS_LINE[reply.status]]
    for name, value in (*headers, *reply.headers):
        content += (name, b": ", value, b"\r\n")
    content += (b"connection: close\r\n\r\n" if is_last else b"\r\n", reply.body)
    return b"".join(content)


def busy_reply() -> Reply:
    """Build the reply to a request above `MAX_REQUESTS_IN_FLIGHT`."""
    reply = error_reply(limits.busy(f"at most {limits.MAX_REQUESTS_IN_FLIGHT} requests in flight"))
    reply.headers.append((b"x-request-id", REQUEST_IDS.next().encode()))
    return reply


class _Busy:
    """Application that refuses a request before its body is read."""

    def __init__(self, protocol: BoundedProtocol) -> None:
        self._protocol = protocol

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        reply = busy_reply()
        self._protocol.count(reply.status, scope["method"])
        await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
        await send({"type": "http.response.body", "body": reply.body})
