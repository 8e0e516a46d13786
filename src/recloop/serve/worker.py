"""Worker process of ``recloop serve --workers N``; forwards all but lists.

A worker opens the project read-only and follows the writer process, which sends every commit, deployment and archive.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, cast

from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from recloop.config import Serve
from recloop.project import Project
from recloop.recommend import loading
from recloop.recommend.catalog import Catalog
from recloop.recommend.recommender import Recommender
from recloop.recommend.user_states import LabelledRows, StateRegistry
from recloop.records import Decision
from recloop.release.assignment import Arm
from recloop.serve import request as request_parts
from recloop.serve.access import Head
from recloop.serve.channel import (
    TO_WORKER,
    Committed,
    Configured,
    Confirmed,
    Decided,
    Degraded,
    Deployed,
    ForwardedReply,
    ForwardedRequest,
    Measured,
    Published,
    Started,
    ToWriter,
    frame,
    read_frame,
    receive,
)
from recloop.serve.deployments import Deployment, Deployments
from recloop.serve.http_protocol import refusal_reply
from recloop.serve.list_endpoint import ListApplication
from recloop.serve.live_config import LiveConfig
from recloop.serve.reload import gc_paused
from recloop.serve.schemas import HttpError
from recloop.serve.service import Service
from recloop.serve.shadow import ShadowScorer
from recloop.storage import admin_token
from recloop.storage.accepted_count import AcceptedCounter, accepted_file
from recloop.storage.archive import Archive

if TYPE_CHECKING:
    from recloop.storage import DecisionLog

LOGGER = logging.getLogger(__name__)
DECISION_SECONDS = 0.02
"""Time for which decisions are collected before they are sent to the writer process."""
MEASURE_SECONDS = 1.0
"""Time between two messages about answered requests."""
MAX_UNSENT_BYTES = 64 * 2**20
LOCAL_PATHS = ("/v1/recommend", "/v1/health/live")


class ForwardedDecisions:
    """Decisions to send to the writer process, as a `DecisionLog`.

    Args:
        accepted: Number of decisions so far, in a file. The writer process counts the missing ones as lost if this
            process ends, and the next one if both end.
    """

    failing = full = False
    dropped = lost = repeated = 0

    def __init__(self, accepted: AcceptedCounter) -> None:
        self._accepted = accepted
        self.waiting: list[Decision] = []

    def put(self, decision: Decision) -> bool:
        self._accepted.add(1)
        self.waiting.append(decision)
        return True


class WorkerService(Service):
    """Service of a worker: reads the project and follows the writer process.

    Args:
        slot: Slot of this worker in the file of accepted decisions.
    """

    def __init__(self, project: Project, deployed: Deployed, slot: int) -> None:
        self._deployed = deployed
        accepted = AcceptedCounter(accepted_file(project.store_files()["decisions"]), slot)
        self.forwarded = ForwardedDecisions(accepted)
        self.writer_degraded: list[str] = []
        super().__init__(project, locked=True)

    def _open(self) -> None:
        project = self.project
        self.live = LiveConfig(project.config.serve)
        self.archive = project.open_archive()
        self.token = admin_token.ensure(project.root)
        self.control = project.open_control()
        self.log = self._stack.enter_context(project.open_log())
        self.as_of = self.log.last_seq()
        self.uncommitted_since = None
        self.catalog = Catalog.from_frames([self.archive.items(), self.log.items()], max_seq=self.as_of)
        self.catalog.warm_up()
        self.deployments = self.load(self._deployed, [])
        self.user_states = StateRegistry(project, self.archive, self.log, self.as_of)
        self._stack.callback(lambda: self.user_states.close())  # noqa: PLW0108 the one in use by then
        self.user_states.activate(self.user_states.open(deployment.bundle.spec for deployment in self.deployments.all))
        self.decisions = cast("DecisionLog", self.forwarded)
        self.shadow = ShadowScorer(self.decisions)  # the writer process scores; this one has no shadow bundles

    @property
    def degraded(self) -> list[str]:
        return self.writer_degraded

    def load(self, deployed: Deployed, loaded: Sequence[Deployment]) -> Deployments:
        """Load the bundles of these arms that are not ``loaded``; not on the event loop.

        Raises:
            BundleError: a bundle cannot be loaded.
        """
        candidate = None if deployed.candidate is None else self._open_arm(deployed.candidate, loaded)
        live = self._open_arm(deployed.live, loaded)
        return Deployments(live, candidate, (), deployed.generation, deployed.failed)

    def _open_arm(self, arm: Arm, loaded: Sequence[Deployment]) -> Deployment:
        for deployment in loaded:
            if deployment.arm.bundle == arm.bundle:
                return Deployment(deployment.recommender, arm)
        row = next(row for row in self.control.releases() if row.bundle == arm.bundle)
        recommender = Recommender(loading.open_bundle(self.project, row), self.catalog, with_availability=True)
        recommender.slots.warm_up()
        return Deployment(recommender, arm)

    def apply(self, committed: Committed) -> None:
        """Apply a commit; on the event loop."""
        self.user_states.identities.add(committed.identities)
        self.user_states.retract(committed.retractions)
        if committed.rows is None:
            self.user_states.catch_up(committed.seq)
        else:
            rows = LabelledRows(committed.rows) if committed.rows else None
            self.user_states.apply(rows, committed.users, committed.seq)
        for item in committed.items:
            present = self.catalog.get(item.item_id)
            if present is None or present.seq < item.seq:
                self.catalog.upsert(item)
        self.as_of = max(self.as_of, committed.seq)

    async def follow(self, deployed: Deployed) -> None:
        """Load the bundles of a deployment and answer with them."""
        with gc_paused():
            deployments = await run_in_threadpool(self.load, deployed, self.deployments.all)
            specs = [deployment.bundle.spec for deployment in deployments.all]
            user_states = await run_in_threadpool(self.user_states.open, specs)
            snapshot = self.catalog.snapshot()
            await run_in_threadpool(deployments.warm_up, self.deployments, snapshot)
        self.catalog.adopt(snapshot)
        deployments.prepare(self.deployments)
        self.user_states.activate(user_states, self.as_of)
        self.deployments = deployments

    async def follow_archive(self) -> None:
        """Use the newest archive and its states."""
        archive = await run_in_threadpool(Archive, self.project.data)
        specs = [deployment.bundle.spec for deployment in self.deployments.all]
        user_states = await run_in_threadpool(self.user_states.over_archive, archive, specs, self.as_of)
        user_states.catch_up(self.as_of)
        self.user_states = user_states
        self.archive = archive


class WriterLink:
    """Channel to the writer process; used on the event loop.

    Attributes:
        application: Application whose requests are counted; None before it exists.
    """

    application: ListApplication | None = None

    def __init__(self, service: WorkerService, channel: socket.socket) -> None:
        self._service = service
        self._channel = channel
        self._stream: asyncio.StreamWriter | None = None
        self._ids = itertools.count()
        self._replies: dict[int, asyncio.Future[ForwardedReply]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_current = asyncio.Event()

    async def connect(self) -> None:
        """Follow the writer process; return when all earlier commits are applied."""
        reader, self._stream = await asyncio.open_connection(sock=self._channel)
        for work in (self._read(reader), self._send_decisions(), self._send_requests()):
            task = asyncio.get_running_loop().create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._send(Started())
        await self._is_current.wait()

    async def close(self) -> None:
        """Send the last decisions and counts, and close the channel."""
        self._flush()
        self._send_measured()
        assert self._stream is not None
        await self._stream.drain()
        for task in list(self._tasks):
            task.cancel()
        self._stream.close()
        with contextlib.suppress(ConnectionError):
            await self._stream.wait_closed()

    async def forward(self, request: ForwardedRequest) -> ForwardedReply:
        """Let the writer process answer a request."""
        future: asyncio.Future[ForwardedReply] = asyncio.get_running_loop().create_future()
        self._replies[request.id] = future
        self._send(request)
        try:
            return await future
        finally:
            del self._replies[request.id]

    def next_id(self) -> int:
        return next(self._ids)

    def _send(self, message: ToWriter) -> None:
        assert self._stream is not None
        self._stream.write(frame(message))

    def _flush(self) -> None:
        waiting = self._service.forwarded.waiting
        if waiting:
            self._service.forwarded.waiting = []
            self._send(Decided(waiting))

    async def _send_decisions(self) -> None:
        while True:
            await asyncio.sleep(DECISION_SECONDS)
            self._flush()

    async def _send_requests(self) -> None:
        while True:
            await asyncio.sleep(MEASURE_SECONDS)
            self._send_measured()

    def _send_measured(self) -> None:
        app = self.application
        if app is not None:
            self._send(Measured(app.requests.take(len(app.waiting))))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Apply the messages in order; deployments load beside later commits."""
        try:
            while (content := await read_frame(reader)) is not None:
                await self._handle(content)
        except Exception as error:  # noqa: BLE001 - a worker that lags behind must not answer
            LOGGER.error("a worker cannot follow the writer process: %s", type(error).__name__)  # noqa: TRY400 - its text may name a user
        os._exit(1)  # the writer process ended, or replaces this one

    async def _handle(self, content: bytes) -> None:
        message = TO_WORKER.decode(content)
        service = self._service
        if isinstance(message, Committed):
            if message.retractions:
                await run_in_threadpool(service.user_states.retractions.preload, message.retractions)
            service.apply(message)
            self._send(Confirmed(message.number))
        elif isinstance(message, ForwardedReply):
            future = self._replies.get(message.id)
            if future is not None and not future.done():
                future.set_result(message)
        elif isinstance(message, Configured):
            service.live.use(Serve.model_validate_json(message.serve))
            self._send(Confirmed(message.number))
        elif isinstance(message, Degraded):
            service.writer_degraded = message.parts
            self._is_current.set()  # the first one follows the commits before this worker started
        else:
            task = asyncio.get_running_loop().create_task(self._load(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _load(self, message: Deployed | Published) -> None:
        try:
            if isinstance(message, Deployed):
                await self._service.follow(message)
            else:
                await self._service.follow_archive()
        except Exception as error:  # noqa: BLE001 - a worker that lags behind must not answer
            LOGGER.error("a worker cannot load a change: %s", error)  # noqa: TRY400
            os._exit(1)
        self._send(Confirmed(message.number))


class WorkerApplication(ListApplication):
    """Application of a worker: answers lists, forwards every other request."""

    link: WriterLink

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        is_local = path.startswith(LOCAL_PATHS) or (path.startswith("/v1/items/") and path.endswith("/similar"))
        if scope["type"] != "http" or (scope["method"] in {"GET", "HEAD"} and is_local):
            await super().__call__(scope, receive, send)
            return
        try:
            content_length = Head(scope["headers"]).content_length
            body = await request_parts.read_messages(receive, content_length, self.live.limits)
        except HttpError as error:
            refusal = refusal_reply(error)
            await send({"type": "http.response.start", "status": refusal.status, "headers": refusal.headers})
            await send({"type": "http.response.body", "body": refusal.body})
            return
        reply = await self.link.forward(
            ForwardedRequest(
                self.link.next_id(), scope["method"], path, scope.get("raw_path", path.encode()),
                scope["query_string"], [(bytes(name), bytes(value)) for name, value in scope["headers"]], body,
            )
        )  # fmt: skip
        headers = [(name, value) for name, value in reply.headers if name != b"connection"]
        if self.state.draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else reply.body})


def run(project: Project, listening: socket.socket, channel: socket.socket, slot: int, host: str) -> None:
    """Run a worker until SIGTERM, or until the writer process ends."""
    from recloop.serve import app, server

    try:
        first = TO_WORKER.decode(receive(channel))
    except EOFError:
        return
    assert isinstance(first, Deployed)
    with gc_paused():
        service = WorkerService(project, first, slot)
    link = WriterLink(service, channel)

    @contextlib.asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        await link.connect()
        try:
            yield
        finally:
            await link.close()
            await run_in_threadpool(service.close)

    WorkerApplication.link = link
    link.application = app.build(service, host, WorkerApplication, lifespan)
    service.lists.timer.start()
    server.serve(link.application, listening, "")
