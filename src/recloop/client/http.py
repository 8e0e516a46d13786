"""Clients over httpx: `Client` blocks, `AsyncClient` awaits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self

from recloop.client.batches import NDJSON, Batch, Row, SendResult, batches
from recloop.client.calls import Call, Calls
from recloop.client.errors import ServiceError
from recloop.client.retry import wait_seconds
from recloop.errors import UserError

try:
    import httpx
except ModuleNotFoundError as error:
    if error.name != "httpx":
        raise
    raise UserError("recloop.Client", "", "httpx, in the extra client", 'pip install "recloop[client]"') from None

DEFAULT_TIMEOUT_SECONDS: Final = 10.0
DEFAULT_ATTEMPTS: Final = 6


class Client(Calls[Row, SendResult]):
    """Client of a service; one pool of connections, safe for several threads.

    Args:
        url: URL of the service.
        key: API key; empty for a service without keys.
        timeout: Seconds for a connection and for each answer.
        attempts: Most attempts of a request that may succeed later.
    """

    def __init__(
        self, url: str, key: str = "", timeout: float = DEFAULT_TIMEOUT_SECONDS, attempts: int = DEFAULT_ATTEMPTS
    ) -> None:
        self._http = httpx.Client(base_url=url, headers=_headers(key), timeout=timeout)
        self._attempts = attempts

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send_rows(self, method: str, path: str, rows: Iterable[Row], max_rows: int) -> SendResult:
        result = SendResult()
        for batch in batches(rows, max_rows):
            try:
                result.add(batch, self._send(Call(method, path, body=batch.body, content_type=NDJSON)))
            except ServiceError as error:
                raise _with_rows(error, batch, result) from None
        return result

    def _send(self, call: Call) -> Row:
        attempt = 0
        while True:
            try:
                return _reply(self._http.request(**_request(call)))
            except httpx.TransportError as error:
                failure = _unreachable(error)
            except ServiceError as error:
                failure = error
            attempt += 1
            wait = wait_seconds(failure, attempt, self._attempts)
            if wait is None:
                raise failure from None
            time.sleep(wait)


class AsyncClient(Calls[Awaitable[Row], Awaitable[SendResult]]):
    """`Client` for asyncio: the same arguments and methods, each awaited."""

    def __init__(
        self, url: str, key: str = "", timeout: float = DEFAULT_TIMEOUT_SECONDS, attempts: int = DEFAULT_ATTEMPTS
    ) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(key), timeout=timeout)
        self._attempts = attempts

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _send_rows(self, method: str, path: str, rows: Iterable[Row], max_rows: int) -> SendResult:
        result = SendResult()
        for batch in batches(rows, max_rows):
            try:
                result.add(batch, await self._send(Call(method, path, body=batch.body, content_type=NDJSON)))
            except ServiceError as error:
                raise _with_rows(error, batch, result) from None
        return result

    async def _send(self, call: Call) -> Row:
        attempt = 0
        while True:
            try:
                return _reply(await self._http.request(**_request(call)))
            except httpx.TransportError as error:
                failure = _unreachable(error)
            except ServiceError as error:
                failure = error
            attempt += 1
            wait = wait_seconds(failure, attempt, self._attempts)
            if wait is None:
                raise failure from None
            await asyncio.sleep(wait)


def _headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _request(call: Call) -> dict[str, Any]:
    """Arguments of ``httpx.Client.request``."""
    body = {"content": call.body, "headers": {"Content-Type": call.content_type}} if call.body else {}
    return {"method": call.method, "url": call.path, "params": call.parameters or None, **body}


def _reply(response: httpx.Response) -> Row:
    """Read a JSON answer.

    Raises:
        ServiceError: the status is 400 or more, or the answer is not a JSON object.
    """
    try:
        tree = response.json()
    except ValueError:
        tree = None
    if response.status_code < HTTPStatus.BAD_REQUEST and isinstance(tree, dict):
        return tree
    error = tree.get("error", {}) if isinstance(tree, dict) else {}
    wait = response.headers.get("retry-after", "")
    raise ServiceError(
        response.status_code,
        error.get("code", "no_json"),
        error.get("message", response.text[:200]),
        response.headers.get("x-request-id", ""),
        float(wait) if wait.isdigit() else None,
    )


def _unreachable(error: httpx.TransportError) -> ServiceError:
    return ServiceError(0, "unreachable", f"{type(error).__name__}: {error}")


def _with_rows(error: ServiceError, batch: Batch, result: SendResult) -> ServiceError:
    error.rows = batch.rows
    error.sent = dict(result.counts)
    return error
