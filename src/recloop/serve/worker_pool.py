"""Workers of ``recloop serve --workers N``, seen from the writer process.

The writer process holds the lock, writes the log and the decisions, and answers as well. Each worker is a child process
with the same listening socket, which answers lists from its own states and catalog. It applies every commit before the
write is acknowledged, so a later read on any connection includes the write.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import multiprocessing
import socket
import time
from collections.abc import Coroutine
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.types import Message

from recloop.config import Serve
from recloop.recommend.user_states import LabelledRows
from recloop.records import Item, User
from recloop.serve import worker
from recloop.serve.channel import (
    TO_WRITER,
    Committed,
    Configured,
    Confirmed,
    Decided,
    Degraded,
    Deployed,
    ForwardedReply,
    ForwardedRequest,
    Measured,
    Numbered,
    Published,
    Started,
    ToWorker,
    frame,
    read_frame,
)
from recloop.storage.accepted_count import WRITER_SLOT
from recloop.storage.identities import Identity
from recloop.storage.retractions import Retraction

if TYPE_CHECKING:
    from recloop.serve.list_endpoint import ListApplication
    from recloop.serve.service import Service

LOGGER = logging.getLogger(__name__)
COMMIT_SECONDS = 5.0
"""Time for a worker to apply a commit; a slower worker is replaced, so that writes do not wait for it."""
DEPLOY_SECONDS = 120.0
"""Time for a worker to load bundles or an archive."""
JOIN_SECONDS = 5.0
"""Time for a worker to end after its channel is closed."""
RESTART_SECONDS = 1.0
DEGRADED_SECONDS = 0.5


class Worker:
    """One worker process and its channel; used on the event loop.

    Attributes:
        slot: Slot of the worker in the file of accepted decisions.
        received: Decisions that arrived here.
        in_flight: Requests that it had in flight a moment ago.
        unconfirmed: Future of each numbered message that the worker has not applied yet.
    """

    def __init__(self, process: BaseProcess, slot: int) -> None:
        self.process = process
        self.slot = slot
        self.received = self.in_flight = 0
        self.is_started = False
        self.unconfirmed: dict[int, asyncio.Future[None]] = {}
        self.commits: set[int] = set()
        self.stream: asyncio.StreamWriter | None = None

    def send(self, message: ToWorker) -> None:
        """Send a message without waiting."""
        if self.stream is not None and not self.stream.is_closing():
            self.stream.write(frame(message))

    def kill(self) -> None:
        """End the process at once; its decisions that did not arrive are counted as lost."""
        self.process.kill()


class WorkerPool:
    """Starts, feeds and replaces the workers.

    Args:
        listening: Socket that all processes accept from.
        host: Listening address, for the access checks.
        n_workers: Number of worker processes, without the writer process.
    """

    def __init__(
        self, service: Service, app: ListApplication, listening: socket.socket, host: str, n_workers: int
    ) -> None:
        self._service = service
        self._app = app
        self._listening = listening
        self._host = host
        self._n_workers = n_workers
        self._workers: list[Worker] = []
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: set[asyncio.Task[None]] = set()  # one for each worker
        self._last_item_seq = 0
        self._stopping = False

    @property
    def n_wanted(self) -> int:
        """Number of workers of the setting."""
        return self._n_workers

    @property
    def n_started(self) -> int:
        """Number of workers that accept connections."""
        return sum(one.is_started for one in self._workers)

    @property
    def n_in_flight(self) -> int:
        """Requests that the workers have in flight."""
        return sum(one.in_flight for one in self._workers)

    @property
    def is_stopped(self) -> bool:
        return not self._workers

    def start(self) -> None:
        """Start the workers; on the event loop."""
        for number in range(self._n_workers):
            self._spawn(self._keep_running(WRITER_SLOT + 1 + number), self._running)
        self._spawn(self._send_degraded(), self._tasks)

    def stop(self) -> None:
        """Let the workers drain their connections."""
        self._stopping = True
        for one in self._workers:
            if one.process.pid is not None:
                one.process.terminate()

    async def close(self) -> None:
        """End what is left of the workers."""
        self._stopping = True
        for one in self._workers:
            one.kill()
        for task in self._tasks:
            task.cancel()
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=3 * JOIN_SECONDS)
            for task in late:
                task.cancel()
        await asyncio.gather(*self._tasks, *self._running, return_exceptions=True)

    def commit(
        self,
        seq: int,
        rows: LabelledRows | None,
        users: list[User],
        items: list[Item],
        retractions: list[Retraction],
        identities: list[Identity],
    ) -> None:
        """Send a commit to all workers; see `Committed`."""
        if items:
            self._last_item_seq = seq
        message = Committed(next(self._numbers), seq, rows, users, items, retractions, identities)
        for one in self._publish(message):
            one.commits.add(message.number)

    async def confirm_commits(self) -> None:
        """Wait until every worker has applied all commits; replace slow ones."""
        waiting = [
            (one, one.unconfirmed[number])
            for one in self._workers
            if one.is_started
            for number in one.commits
            if number in one.unconfirmed
        ]
        await self._confirm(waiting, COMMIT_SECONDS)

    async def deploy(self) -> None:
        """Send the present deployments and wait until every worker uses them."""
        await self._publish_and_confirm(self._deployed())

    async def configure(self, serve: Serve) -> None:
        """Send other settings and wait until every worker uses them."""
        await self._publish_and_confirm(Configured(next(self._numbers), serve.model_dump_json()))

    async def publish(self) -> None:
        """Let the workers open the new archive and wait until they use it."""
        await self._publish_and_confirm(Published(next(self._numbers)))

    async def _publish_and_confirm(self, message: Numbered) -> None:
        started = [one for one in self._publish(message) if one.is_started]
        await self._confirm([(one, one.unconfirmed[message.number]) for one in started], DEPLOY_SECONDS)

    def _publish(self, message: Numbered) -> list[Worker]:
        connected = [one for one in self._workers if one.stream is not None]
        for one in connected:
            one.unconfirmed[message.number] = asyncio.get_running_loop().create_future()
            one.send(message)
        return connected

    async def _confirm(self, waiting: list[tuple[Worker, asyncio.Future[None]]], seconds: float) -> None:
        if not waiting:
            return
        await asyncio.wait([future for _, future in waiting], timeout=seconds)
        for one, future in waiting:
            if not future.done():
                LOGGER.warning(
                    "worker %s did not apply a change within %.0f s; it is replaced", one.process.pid, seconds
                )
                one.kill()

    def _deployed(self) -> Deployed:
        deployments = self._service.deployments
        candidate = None if deployments.candidate is None else deployments.candidate.arm
        return Deployed(
            next(self._numbers), deployments.generation, deployments.live.arm, candidate, deployments.failed
        )

    @staticmethod
    def _spawn(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _keep_running(self, slot: int) -> None:
        """Run a worker, and another one whenever it ends."""
        while not self._stopping:
            started = time.monotonic()
            try:
                await self._run_one(slot)
            except Exception as error:  # noqa: BLE001 - the next one may work
                LOGGER.error("a worker failed: %s", type(error).__name__)  # noqa: TRY400 - its text may name a user
            if not self._stopping:
                LOGGER.warning("a worker process ended; another one is started")
                await asyncio.sleep(max(0.0, RESTART_SECONDS - (time.monotonic() - started)))

    async def _run_one(self, slot: int) -> None:
        context = multiprocessing.get_context("spawn")
        channel, other = socket.socketpair()
        arguments = (self._service.project, self._listening, other, slot, self._host)
        process = context.Process(target=worker.run, args=arguments, name="recloop worker", daemon=True)
        one = Worker(process, slot)
        try:
            await run_in_threadpool(process.start)
            other.close()
            reader, one.stream = await asyncio.open_connection(sock=channel)
            self._workers.append(one)
            if self._stopping:  # since it was started
                one.kill()
            one.send(self._deployed())
            while (content := await read_frame(reader)) is not None:
                self._handle(one, content)
        finally:
            self._forget(one)
            await self._end(one)

    def _forget(self, one: Worker) -> None:
        """Stop waiting for a worker."""
        if one in self._workers:
            self._workers.remove(one)
        for future in one.unconfirmed.values():
            if not future.done():
                future.set_result(None)
        if one.stream is not None:
            one.stream.close()

    async def _end(self, one: Worker) -> None:
        """Wait until a worker has ended, then count its decisions that are missing."""
        if one.process.pid is None:
            return
        await run_in_threadpool(one.process.join, JOIN_SECONDS)
        if one.process.is_alive():
            one.kill()
            await run_in_threadpool(one.process.join, JOIN_SECONDS)
        n_lost = self._service.decisions.end_worker(one.slot, one.received)
        if n_lost:
            LOGGER.warning("%d decisions of a worker were lost", n_lost)

    def _handle(self, one: Worker, content: bytes) -> None:
        message = TO_WRITER.decode(content)
        if isinstance(message, Confirmed):
            future = one.unconfirmed.pop(message.number, None)
            one.commits.discard(message.number)
            if future is not None and not future.done():
                future.set_result(None)
        elif isinstance(message, Decided):
            one.received += len(message.decisions)
            self._service.record(message.decisions, self._last_item_seq)
        elif isinstance(message, Measured):
            one.in_flight = message.requests.in_flight
            self._app.requests.merge(message.requests)
        elif isinstance(message, ForwardedRequest):
            self._spawn(self._answer(one, message), self._tasks)
        elif isinstance(message, Started):
            one.is_started = True  # from now on writes wait for it, and it has all earlier commits
            one.send(Degraded(self._service.degraded))

    async def _answer(self, one: Worker, request: ForwardedRequest) -> None:
        """Answer a forwarded request with this process's own application."""
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": request.method,
            "scheme": "http", "path": request.path, "raw_path": request.raw_path, "root_path": "",
            "query_string": request.query_string, "headers": request.headers, "client": None, "server": None,
            "state": {},
        }  # fmt: skip
        status, headers, body = 500, [], b""
        is_read = False

        async def receive() -> Message:
            nonlocal is_read
            if is_read:
                return {"type": "http.disconnect"}
            is_read = True
            return {"type": "http.request", "body": request.body, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status, headers, body
            if message["type"] == "http.response.start":
                status, headers = message["status"], list(message["headers"])
            else:
                body += message.get("body", b"")

        await self._app(scope, receive, send)
        one.send(ForwardedReply(request.id, status, headers, body))

    async def _send_degraded(self) -> None:
        sent: list[str] = []
        while True:
            await asyncio.sleep(DEGRADED_SECONDS)
            parts = self._service.degraded
            if parts != sent:
                sent = parts
                for one in self._workers:
                    if one.is_started:
                        one.send(Degraded(parts))
