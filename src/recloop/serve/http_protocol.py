"""HTTP/1.1 connection with limits on heads, bodies, times and requests in flight."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any, Final, Protocol

import httptools
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from recloop.serve import limits
from recloop.serve.client_address import ClientRates, client_of
from recloop.serve.live_config import LiveConfig
from recloop.serve.middleware import REQUEST_IDS, Reply, error_reply
from recloop.serve.request_metrics import OTHER_ROUTE, RequestMetrics
from recloop.serve.schemas import HttpError

LOGGER = logging.getLogger(__name__)
READ_METHODS: Final = frozenset(("GET", "HEAD", "OPTIONS"))
HEALTH_PREFIX: Final = "/v1/health/"
UPGRADE_HEADERS: Final = frozenset((b"connection", b"upgrade", b"http2-settings"))
UNKNOWN_METHOD: Final = "unknown"
"""Method of a request whose head is not complete."""
LOG_SECONDS: Final = 1.0
LINGER_SECONDS: Final = 1.0  # time for a client to read the answer to a refused request
MAX_DISCARDED_BYTES: Final = 4 * 2**20
DRAINING_SECONDS: Final = 1.0  # time for an incomplete request while the process ends


class BoundedApplication(Protocol):
    """Limits and counts that a `BoundedProtocol` reads.

    Attributes:
        live: Settings in force.
        requests: Counts of requests.
        client_rates: Budgets of clients.
        reads, writes: Requests under way, without lists.
    """

    live: LiveConfig
    requests: RequestMetrics
    client_rates: ClientRates
    reads: set[asyncio.Task[None]]
    writes: set[asyncio.Task[None]]


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
    """uvicorn's protocol with the limits of ``[serve.limits]``.

    A request above a limit gets a JSON error and the connection is closed. An ``Upgrade`` header is ignored: the head
    is read again without it, because the parser would leave out the body. Subclasses override `begin_request` and
    `end_request` in place of the parser's callbacks.
    """

    app: Any  # the application of uvicorn's configuration
    _n_head_bytes = 0
    _is_in_head = True
    _is_upgrade = False
    _is_refused = False
    """The last answer was an error, and what the client still sends is discarded."""
    _n_discarded = 0
    _is_reading = False
    """A request has begun and is incomplete."""
    _since: float | None = None
    """Loop time since which the connection or an incomplete request waits for data."""
    _unread_bytes = 0
    _unread_since = 0.0

    @property
    def application(self) -> BoundedApplication:
        """The application, with its limits and counts."""
        application: BoundedApplication = self.app
        return application

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timeout_keep_alive = self.application.live.limits.keep_alive_seconds  # type: ignore[assignment] # for call_later
        self._since = self.loop.time()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            self._discard(data)
            return
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        self._n_head_bytes += len(data)
        self._feed(data)
        if self._was_refused():
            return
        max_bytes = self.application.live.limits.head_bytes
        if self._is_in_head and self._n_head_bytes > max_bytes:
            expected = f"at most {max_bytes} bytes"
            message = f"the request line and headers have {self._n_head_bytes} bytes so far; expected {expected}"
            self.refuse(HttpError(431, "head_too_large", message, "headers", expected))
        elif self._is_reading and self._since is None:
            self._since = self.loop.time()

    def _was_refused(self) -> bool:
        return self._is_refused or self.transport.is_closing()

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
        """Answer an error if an answer is due, and close the connection.

        What the client still sends is read for a moment and discarded: the system would reset a connection that is closed
        beside unread data, and the client would lose the answer.
        """
        earlier: Any = self.cycle  # None before the first request
        if self._is_in_head or earlier is None:
            is_due = earlier is None or earlier.response_complete
        else:
            is_due = not earlier.response_started and not self.pipeline
        if is_due:
            reply = refusal_reply(error)
            self.count(reply.status)
            self.transport.write(encode(reply, self.server_state.default_headers, is_last=True))
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Send the end of the answer, and close the connection later."""
        self._is_refused = True
        self.parser = httptools.HttpRequestParser(self)  # the rest of the present data is not a request
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()

    def _discard(self, data: bytes) -> None:
        self._n_discarded += len(data)
        if self._n_discarded > MAX_DISCARDED_BYTES:
            self.transport.close()

    def count(self, status: int, method: str = UNKNOWN_METHOD) -> None:
        """Count a request that is refused before it reaches a route."""
        self.application.requests.add(method, OTHER_ROUTE, status, 0.0)

    def expire(self, now: float, is_draining: bool) -> None:
        """Close the connection if its request or the reading of its answer takes too long.

        Args:
            now: Time of the event loop.
            is_draining: The process ends, so an incomplete request has `DRAINING_SECONDS` only.
        """
        if self._is_refused or self._expire_unread(now):
            return
        if self._since is None:
            if self._is_idle() and self.timeout_keep_alive_task is None:
                self._since = now
            return
        present = self.application.live.limits
        seconds = present.head_seconds if self._is_in_head else present.body_seconds
        if now - self._since <= (DRAINING_SECONDS if is_draining else seconds):
            return
        if not self._is_reading:
            self.transport.close()
            return
        part = "head" if self._is_in_head else "body"
        message = f"the {part} of the request did not arrive within {seconds:g} seconds"
        self.refuse(HttpError(408, "timeout", message, part, f"a whole {part} within {seconds:g} seconds"))

    def _expire_unread(self, now: float) -> bool:
        """Drop an answer that the client does not read; return True while one is unread."""
        if not self.transport.is_closing() and not self.flow.write_paused:
            self._unread_bytes = 0
            return False
        size = self.transport.get_write_buffer_size() + 1
        if size != self._unread_bytes:
            self._unread_bytes, self._unread_since = size, now
        elif now - self._unread_since > self.application.live.limits.answer_seconds:
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

    def check_rate(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Take one request of the client.

        Raises:
            HttpError: 429 above ``client_rate``.
        """
        live = self.application.live
        if live.limits.client_rate:
            client = client_of(self.client[0] if self.client else "", headers, live.proxies)
            self.application.client_rates.check(client, live.limits.client_rate, self.loop.time())

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Start a request, or refuse it before its body is read."""
        scope = cycle.scope
        under_way: set[asyncio.Task[None]] = set()
        if not scope["path"].startswith(HEALTH_PREFIX):
            try:
                under_way = self._budget(scope["method"])
                self.check_rate(list(scope["headers"]))
            except HttpError as error:
                app = _Refusal(self, error)
                under_way = set()
        task = self.loop.create_task(cycle.run_asgi(app))
        for tasks in (self.tasks, under_way):
            task.add_done_callback(tasks.discard)
            tasks.add(task)

    def _budget(self, method: str) -> set[asyncio.Task[None]]:
        """Return the requests under way of the same kind.

        Raises:
            HttpError: 503, they are as many as the limit.
        """
        application, present = self.application, self.application.live.limits
        is_read = method in READ_METHODS
        under_way = application.reads if is_read else application.writes
        limit = present.reads if is_read else present.writes
        if len(under_way) >= limit:
            raise limits.busy(f"at most {limit} {'reads' if is_read else 'writes'} under way")
        return under_way


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


def refusal_reply(error: HttpError) -> Reply:
    """Build the reply to a request that is refused before it reaches a route."""
    reply = error_reply(error)
    reply.headers.append((b"x-request-id", REQUEST_IDS.next().encode()))
    return reply


class _Refusal:
    """Application that refuses a request before its body is read."""

    def __init__(self, protocol: BoundedProtocol, error: HttpError) -> None:
        self._protocol = protocol
        self._error = error

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        reply = refusal_reply(self._error)
        self._protocol.count(reply.status, scope["method"])
        await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
        await send({"type": "http.response.body", "body": reply.body})
