"""Listening socket that accepts many connections in one turn of the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable, Sized
from typing import Final

from recloop.serve import limits
from recloop.serve.http_protocol import encode
from recloop.serve.middleware import error_reply

LOGGER = logging.getLogger(__name__)
ACCEPTS_PER_TURN: Final = 64
SHARED_ACCEPTS_PER_TURN: Final = 4
"""As `ACCEPTS_PER_TURN` if several processes share the socket; a larger number loads one of them."""
EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
READ_BYTES: Final = 65_536


class Listener:
    """Accepts the connections of a listening socket.

    uvloop accepts one connection per turn, and a turn answers all busy clients, so new clients would wait for as long
    as the others ask. Connections above a limit are answered 503 and closed. A spare file descriptor lets the process
    refuse a connection when it has no other one left.

    Args:
        connections: Open connections of the process.
        max_connections: Returns the number of connections from which new ones are refused.
        is_shared: Other processes accept from the same socket.
    """

    def __init__(
        self,
        listening: socket.socket,
        create_protocol: Callable[[], asyncio.BaseProtocol],
        connections: Sized,
        max_connections: Callable[[], int],
        is_shared: bool,
    ) -> None:
        self._listening = listening
        self._create_protocol = create_protocol
        self._connections = connections
        self._max_connections = max_connections
        self._n_accepts = SHARED_ACCEPTS_PER_TURN if is_shared else ACCEPTS_PER_TURN
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[object]] = set()
        self._spare: int | None = None
        self._is_closed = False

    def start(self) -> None:
        """Accept from now on."""
        self._listening.setblocking(False)
        self._spare = os.open(os.devnull, os.O_RDONLY)
        self._loop.add_reader(self._listening.fileno(), self._accept, self._n_accepts)

    def close(self) -> None:
        """Accept the connections that wait, then stop listening."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._listening.fileno())
        self._accept(self._max_connections())
        self._listening.close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    async def wait_closed(self) -> None:
        """Wait until the accepted connections are open."""
        await asyncio.gather(*self._opening, return_exceptions=True)

    def _accept(self, n_accepts: int) -> None:
        for _ in range(n_accepts):
            try:
                connection, _address = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in EXHAUSTED or not self._refuse_with_spare():
                    return
                continue
            limit = self._max_connections()
            if len(self._connections) + len(self._opening) >= limit:
                _refuse(connection, f"at most {limit} connections")
            else:
                self._open(connection)

    def _open(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task: asyncio.Task[object] = self._loop.create_task(
            self._loop.connect_accepted_socket(self._create_protocol, connection)
        )
        self._opening.add(task)
        task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[object]) -> None:
        self._opening.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOGGER.warning("a connection failed to open: %s", type(error).__name__)

    def _refuse_with_spare(self) -> bool:
        """Refuse one connection with the spare descriptor; return False if none is left."""
        if self._spare is None:
            return False
        os.close(self._spare)
        self._spare = None
        try:
            connection, _address = self._listening.accept()
        except OSError:
            return False
        else:
            _refuse(connection, "no file descriptor is left")
            return True
        finally:
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY)


def _refuse(connection: socket.socket, limit: str) -> None:
    """Answer 503 and close.

    A request that has arrived is read, because the system would discard the answer beside unread data.
    """
    with connection, contextlib.suppress(OSError):
        connection.setblocking(False)
        connection.send(encode(error_reply(limits.busy(limit)), is_last=True))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(READ_BYTES)
