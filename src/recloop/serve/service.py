"""Service of one project: deployments, user states, catalog, writer and decisions.

All data that a response reads changes on the event loop only, between two requests: ``as_of``, caches, deployments and
the archive with its watermark.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec
from starlette.concurrency import run_in_threadpool

from recloop.bundle import Bundle
from recloop.config import Serve
from recloop.features.labels import EventLabeler
from recloop.features.state import StateBatch
from recloop.ingest.writer import LogFullError, LogUnavailableError, Writer, WriteRequest, kept_items
from recloop.privacy import erasure
from recloop.project import Project
from recloop.recommend import loading
from recloop.recommend.catalog import Catalog
from recloop.recommend.ranked_list import RankedList
from recloop.recommend.recommender import Recommender
from recloop.recommend.user_states import LabelledRows, StateRegistry, StateSource
from recloop.records import Decision, Event, Item, Query, User, now
from recloop.release import assignment
from recloop.serve.answer_counts import AnswerCounts
from recloop.serve.deployments import DeploymentLoader, Deployments
from recloop.serve.disk import DiskWatch
from recloop.serve.list_builder import ListBuilder
from recloop.serve.live_config import LiveConfig
from recloop.serve.reload import Reloader
from recloop.serve.response import build_decision, build_response
from recloop.serve.row_counts import RowCounts
from recloop.serve.schemas import RecommendResponse
from recloop.serve.service_status import ServiceStatus
from recloop.serve.shadow import ShadowScorer
from recloop.serve.shadow_choice import ShadowChoice
from recloop.storage import admin_token, inbox, locks
from recloop.storage.archive import Archive
from recloop.storage.identities import Identity
from recloop.storage.retractions import Retraction

if TYPE_CHECKING:
    from recloop.serve.worker_pool import WorkerPool

LOGGER = logging.getLogger(__name__)

FOLLOW_SECONDS = 120.0
"""Time without a finished poll of the releases after which answers say so; loading a large bundle takes a part of it."""
Clock = Callable[[], int]
"""Clock of the process; returns int64 microseconds UTC."""


class Service:
    """Service of one project folder.

    Args:
        locked: True if the caller holds the writer lock; otherwise the service holds it until it is closed.
        force: Serve a log that ends before rows that decisions or retractions name.

    Attributes:
        as_of: Newest seq that responses include.
        deployments: Current deployments.
        uncommitted_since: Seq after which committed rows may be missing from the caches; None if none are.
        moved: Stores whose files were moved away, replaced or emptied while this process serves.
        is_release_followed: False if the last poll of the releases failed.
        disk: Free space of the stores' disks.
        rejected: Rejected rows of requests. rows: Counts of posted rows.
        lists: Computes lists.
        followed_at: Monotonic time of the last poll that did not fail; None before the first one.
        token: Admin token of admin routes and console. live: Settings in force.
        workers: Further processes that answer; None if this is the only one.

    Raises:
        Locked: another server or writer uses this folder.
        UserError: the data are not prepared, or no bundle is live yet.
        BundleError: neither the live bundle nor an earlier one can be loaded.
    """

    def __init__(self, project: Project, clock: Clock = now, locked: bool = False, force: bool = False) -> None:
        self.project = project
        self._force = force
        self.moved: frozenset[str] = frozenset()
        self.is_release_followed = True
        self.followed_at: float | None = None
        self.clock = clock
        self.counts = AnswerCounts()
        self.disk = DiskWatch(project.config.serve.disk, [file.parent for file in project.store_files().values()])
        self.rejected = project.open_rejected()
        self.rows = RowCounts(self.rejected)
        self.lists = ListBuilder(self)
        self.shadow_choice = ShadowChoice(self)
        self._stack = ExitStack()
        if not locked:
            self._stack.enter_context(locks.writer_lock(project.root))
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise

    def _open(self) -> None:
        project = self.project
        self.live = LiveConfig(project.config.serve)
        loading.check_complete(project)
        loading.check_stores(project)
        self.archive = project.open_archive()
        self.archive.load_ids()
        self.control = project.open_control()
        self.log = self._stack.enter_context(project.open_log(write=True))
        self.token = admin_token.ensure(project.root)
        self.log.start_at(self.archive.watermark)
        loading.check_log_end(project, self.log, self._force)
        inbox.apply_inbox(self.control, self.log)
        if erasure.resume(project, self.log):
            self.archive = project.open_archive()
            self.archive.load_ids()
        self.as_of = self.log.last_seq()
        self.uncommitted_since: int | None = None
        self.workers: WorkerPool | None = None
        self.catalog = Catalog.from_frames([self.archive.items(), self.log.items()])
        self.catalog.warm_up()
        loader = DeploymentLoader(project, self.control, self.catalog, self.clock)
        self.deployments = loader.load_initial()
        self.user_states = StateRegistry(project, self.archive, self.log, self.as_of)
        self._stack.callback(lambda: self.user_states.close())  # noqa: PLW0108 the one in use by then
        self.user_states.activate(self.user_states.open(deployment.bundle.spec for deployment in self.deployments.all))
        self.decisions = self._stack.enter_context(project.open_decisions(write=True))
        self._reloader = Reloader(self, loader)
        self.summaries = ServiceStatus(self)
        self.shadow = ShadowScorer(self.decisions)
        self._stack.callback(self.shadow.close)
        self.shadow.use(self.deployments, self.catalog)
        self.writer = Writer(
            self.log,
            self.archive,
            EventLabeler.from_spec(self.bundle.spec),
            self._after_commit,
            lambda rows: self.user_states.label(rows),  # noqa: PLW0108 the states in use by then
            self.live.limits.queued_rows,
        )
        self._stack.callback(self.writer.close)

    def close(self) -> None:
        """Write queued rows and decisions, close the stores and release the lock."""
        self._stack.close()

    @property
    def recommender(self) -> Recommender:
        return self.deployments.live.recommender

    @property
    def bundle(self) -> Bundle:
        return self.deployments.live.bundle

    @property
    def arm(self) -> assignment.Arm:
        return self.deployments.live.arm

    @property
    def degraded(self) -> list[str]:
        """Sorted names of the parts that are missing from responses."""
        missing = set(self.moved) | ({"bundle"} if self.deployments.failed else set())
        is_late = self.followed_at is not None and time.monotonic() - self.followed_at > FOLLOW_SECONDS
        if is_late or not self.is_release_followed:
            missing.add("release")
        if self.writer.failing or self.uncommitted_since is not None:
            missing.add("log")
        if self.decisions.failing or self.decisions.full or self.disk.stops_decisions:
            missing.add("decisions")
        return sorted(missing)

    def recommend(
        self,
        query: Query,
        *,
        started: float,
        session_id: str | None = None,
        anonymous_id: str | None = None,
        client_request_id: str | None = None,
        waited: float = 0.0,
    ) -> tuple[RankedList, Decision]:
        """Answer a query from the newest state and record the decision.

        Args:
            query: Query with ``now``, ``n`` (0 for the placement's) and ``request_id``; the user of an identified id
                replaces it, and the decision has the id as ``anonymous_id``.
            started: Time of receipt, by `time.perf_counter`.
            client_request_id: The client's id of the request; recorded in addition to ``request_id``.
            waited: Seconds that the request waited for its answer.

        Raises:
            UserError: unknown placement, or invalid filter.
        """
        person = self.person(query.user_id)
        if person != query.user_id:
            query, anonymous_id = msgspec.structs.replace(query, user_id=person), query.user_id
        assigned = self.lists.assign(query.user_id)
        self.recommender.placement(query.placement)
        self.live.check_filter(query.filter)
        assigned.recommender.check_filter(query.filter)
        degraded = set(self.degraded)
        shed = self.live.shed(waited)
        deployment, ranked, as_of_seq = self.lists.build(assigned, query, degraded, shed.without)
        decision = build_decision(
            query,
            ranked,
            deployment.arm,
            as_of_seq=as_of_seq,
            degraded=sorted(degraded),
            assigned=assigned.arm.variant,
            latency_us=round((time.perf_counter() - started) * 1e6),
            session_id=session_id,
            anonymous_id=anonymous_id,
            client_request_id=client_request_id,
        )
        decision = self._record(decision)
        self.counts.add(decision.degraded)
        if not degraded and self.shadow_choice.is_shadowed(query.user_id, deployment.arm):
            if shed.shadow:
                self.shadow.skip()
            else:
                self.shadow_choice.add(query, decision)
        return ranked, decision

    def _record(self, decision: Decision) -> Decision:
        """Store a decision; if that fails, return one that says so."""
        if self.disk.stops_decisions:
            self.disk.unrecorded += 1
            return decision  # `degraded` names it
        try:
            self.decisions.put(decision)
        except Exception as error:  # noqa: BLE001 - the list is made, so it is answered
            LOGGER.error("a decision was not recorded: %s", type(error).__name__)  # noqa: TRY400 - its text may name a user
            return msgspec.structs.replace(decision, degraded=sorted({*decision.degraded, "decisions"}))
        return decision

    def preview(self, query: Query) -> tuple[RankedList, assignment.Arm]:
        """Compute the list and arm of a query without recording a decision."""
        query = msgspec.structs.replace(query, user_id=self.person(query.user_id))
        deployment = self.lists.assign(query.user_id)
        return self.lists.list_of(deployment, query, set())[0], deployment.arm

    def record(self, decisions: Sequence[Decision], last_item_seq: int) -> None:
        """Store decisions of a worker and score them in shadow.

        One is skipped in shadow if items have changed since, or if another bundle is live.

        Args:
            last_item_seq: Seq of the last commit with items.
        """
        if self.disk.stops_decisions:
            self.disk.unrecorded += len(decisions)
        else:
            self.decisions.put_many(decisions, of_worker=True)
        for decision in decisions:
            self.counts.add(decision.degraded)
        for decision in decisions if self.deployments.shadows else ():
            self.shadow_choice.add_of_worker(decision, last_item_seq)

    async def write(
        self,
        events: Sequence[Event] = (),
        items: Sequence[Item] = (),
        users: Sequence[User] = (),
        retractions: Sequence[Retraction] = (),
        identities: Sequence[Identity] = (),
    ) -> WriteRequest:
        """Store rows; return when they are durable and every worker includes them.

        Raises:
            LogBusyError, LogUnavailableError, LogUncertainError: see `Writer.write`.
            LogFullError: too little of the disk is free.
        """
        if "log" in self.moved:
            raise LogUnavailableError
        if self.disk.stops_events:
            raise LogFullError(self.disk.settings.events)
        if retractions:
            await run_in_threadpool(self.user_states.retractions.preload, retractions)
        written = await self.writer.write(events, items, users, retractions, identities=identities)
        if self.workers is not None:
            await self.workers.confirm_commits()
        return written

    async def forget(self, users: Sequence[str], who: str) -> None:
        """Erase users from ``store/`` and from all states; see `recloop.privacy.erasure`."""
        if self.moved:
            raise LogUnavailableError
        await self._reloader.forget(users, who)

    def reply(self, query: Query, ranked: RankedList, decision: Decision) -> RecommendResponse:
        """Build the response from a list and its decision."""
        aliases = self.project.config.catalog.aliases
        return build_response(
            query, ranked, self.catalog, decision.bundle, decision.variant, decision.degraded, aliases
        )

    def user_state(self, user_id: str) -> StateBatch:
        """Read a user's newest state, a batch of one."""
        return self.user_states.state(self.bundle.spec, self.person(user_id), self.as_of, set())[0]

    def person(self, user_id: str) -> str:
        """Return the user who was identified last by an id, or the id itself."""
        return self.user_states.identities.person(user_id)

    def ready(self) -> str:
        """Answer a golden query with the live bundle; return the failure, or empty."""
        return "" if self.deployments.live.is_ready() else "the live bundle returned no list for the golden query"

    async def reload(self) -> bool:
        """Apply changes of other processes; return True if the deployments changed.

        See `recloop.serve.reload`.
        """
        return await self._reloader.apply_changes()

    async def configure(self, serve: Serve) -> None:
        """Use other settings from the next request on, in every process."""
        self.live.use(serve)
        self.disk.settings = serve.disk
        self.writer.max_pending_rows = serve.limits.queued_rows
        if self.workers is not None:
            await self.workers.configure(serve)

    def activate(self, deployments: Deployments, user_states: Mapping[str, StateSource]) -> None:
        """Use these deployments from the next request on; on the event loop."""
        deployments.prepare(self.deployments)
        self.user_states.activate(user_states, self.as_of)
        self.deployments = deployments
        self.shadow.use(deployments, self.catalog)
        self.writer.set_labeler(EventLabeler.from_spec(self.bundle.spec))

    def use_archive(self, archive: Archive, user_states: StateRegistry) -> None:
        """Use a new archive and the states at its watermark; on the event loop."""
        user_states.catch_up(self.as_of)
        self.user_states = user_states
        self.archive = self.writer.archive = archive

    def _after_commit(self, jobs: list[WriteRequest], seq: int, labelled: object) -> None:
        """Apply a commit to caches and catalog, then advance ``as_of``; on the event loop.

        The rows are already durable. After an error, every cached state is dropped and the reloader reads the rows again
        (`repair`).
        """
        rows = labelled if isinstance(labelled, LabelledRows) else None  # None: repeated events, or the labels failed
        if not any(job.events or any(result.moved for result in job.identified) for job in jobs):
            rows = LabelledRows()
        users = sorted((user for job in jobs for user in job.kept_users), key=lambda user: user.seq)
        items = kept_items(jobs)
        retractions = [row for job in jobs for row in job.kept_retractions]
        self.user_states.identities.add(identities := [row for job in jobs for row in job.kept_identities])
        try:
            self._apply_commit(seq, rows, users, items, retractions)
        except Exception as error:  # noqa: BLE001 - the rows are durable, so responses must include them
            LOGGER.error("a commit was not applied to the caches: %s", type(error).__name__)  # noqa: TRY400 - its text may name a user
            self.user_states.clear()
            self.uncommitted_since = self.as_of if self.uncommitted_since is None else self.uncommitted_since
        self.as_of = seq
        if self.workers is not None:
            self.workers.commit(seq, rows, users, items, retractions, identities)

    def repair(self, user_states: StateRegistry, items: Sequence[Item]) -> None:
        """Apply the rows that a failed `_after_commit` left out; on the event loop.

        Args:
            user_states: States rebuilt from files and log.
            items: Item versions after `uncommitted_since`, by ascending seq.
        """
        self.use_archive(self.archive, user_states)
        for item in items:
            present = self.catalog.get(item.item_id)
            if present is None or present.seq < item.seq:
                self._upsert([item])
        self.uncommitted_since = None

    def _apply_commit(
        self,
        seq: int,
        rows: LabelledRows | None,
        users: Sequence[User],
        items: Sequence[Item],
        retractions: Sequence[Retraction],
    ) -> None:
        self.user_states.retract(retractions)
        if rows is None:
            self.user_states.catch_up(seq)
        else:
            self.user_states.apply(rows or None, users, seq)
        self._upsert(items)

    def _upsert(self, items: Sequence[Item]) -> None:
        for item in items:
            self.catalog.upsert(item)
        self.shadow.upsert(items)
