"""Serving composed: control store -> live bundle, catalogue, states, recommender, the way in, decisions behind answers.

Everything that an answer reads is touched on the event loop's one thread: the number ``as_of`` moves on, and the
caches are dropped, between two requests, never inside one.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import msgspec
import polars as pl

from recloop import bundle as bundles
from recloop import release
from recloop.backends import Control, Decisions, Log, locks, open_control, open_decisions, open_log, snapshots
from recloop.backends.archive import Archive
from recloop.bundle import Bundle
from recloop.config import Project
from recloop.errors import BundleError, UserError
from recloop.features.signal import Signal
from recloop.features.state import States, UserState
from recloop.recommend.catalogue import Catalogue
from recloop.recommend.recommender import Answer, Recommender, check_golden
from recloop.recommend.states import StateReader, fold_all, state_of_tree
from recloop.records import ITEM_ID, USER_ID, Decision, Query
from recloop.serve import arms
from recloop.serve.shapes import RecommendAnswer
from recloop.serve.write import Job, Writer

LOGGER = logging.getLogger(__name__)

Clock = Callable[[], int]
"""The one clock of a process: int64 microseconds UTC."""

REASONS: Mapping[str, str] = {
    "model": "fits what you chose lately",
    "history": "you chose it before",
    "neighbours": "often chosen after what you chose lately",
    "attributes": "like what you chose lately",
    "segment": "popular with people like you",
    "popular": "popular with everybody",
    "latest": "new here",
    "pin": "chosen by the shop",
    "explore": "something to try",
}
"""A short sentence for each source of a slot."""


def system_clock() -> int:
    """The machine's clock."""
    return time.time_ns() // 1_000


class Service:
    """One server over one project folder.

    Args:
        locked: The caller holds the writer's lock; else the service takes it until it is closed.

    Attributes:
        as_of: The newest seq that every answer from now on knows.
        arm: What is live.

    Raises:
        Locked: another server (or writer) has this folder.
        UserError: nothing was prepared, or nothing is live yet.
        BundleError: no live bundle, present or earlier, can be loaded.
    """

    def __init__(self, project: Project, clock: Clock = system_clock, locked: bool = False) -> None:
        self.project, self.clock = project, clock
        self._stack = ExitStack()
        if not locked:
            self._stack.enter_context(locks.writer_lock(project.root))
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise

    def _open(self) -> None:
        project, stores = self.project, self.project.config.stores
        self._degraded: set[str] = set()
        self.archive = Archive(project.data)
        self.control: Control = open_control(stores.control, project.root)
        bundle, self.arm = self._live_bundle()
        self.log: Log = open_log(stores.log, project.root, write=True)
        self._stack.callback(self.log.close)
        self.log.start_at(self.archive.watermark)
        self.as_of = self.log.last_seq()
        signal = Signal.of(bundle.spec)
        self.catalogue = Catalogue.of([self.archive.items(), self.log.items()])
        self._stored = self._snapshot(bundle, signal)
        self._stack.callback(self._stored.close)
        self.states = StateReader(self.log, self._stored, signal)
        self.recommender = Recommender(bundle, self.catalogue)
        self.decisions: Decisions = open_decisions(stores.decisions, project.root, write=True)
        self._stack.callback(self.decisions.close)
        burst = bundle.spec.clean.burst
        width = 0.0 if burst == "off" else burst.seconds
        self.writer = Writer(self.log, self.archive, signal, width, self._settle)
        self._stack.callback(self.writer.close)

    def close(self) -> None:
        """Write what waits and let the folder go."""
        self._stack.close()

    @property
    def bundle(self) -> Bundle:
        return self.recommender.bundle

    @property
    def degraded(self) -> list[str]:
        """What is missing now, by name."""
        missing = set(self._degraded)
        if self.writer.failing:
            missing.add("log")
        if self.decisions.failing or self.decisions.full:
            missing.add("decisions")
        return sorted(missing)

    def recommend(
        self, query: Query, *, started: float, session_id: str | None = None, anonymous_id: str | None = None
    ) -> tuple[Answer, Decision]:
        """Answer a query from the newest state, and put the decision down behind the answer.

        Args:
            query: With its ``now``, ``k`` (0: the placement's) and request_id.
            started: When the request came, by `time.perf_counter`.

        Raises:
            UserError: no such placement, or a filter that does not parse.
        """
        arm = arms.choose(query.user_id, self.arm)
        placement = self.recommender.placement(query.placement)
        if query.filter:
            self.catalogue.check(query.filter, "filter")
        degraded = set(self.degraded)
        state, as_of = self._state(query.user_id, degraded)
        try:
            answer = self.recommender.recommend(States.of([query.user_id], [state]), [query])[0]
        except pl.exceptions.PolarsError as error:  # it parses, but compares a text with a number
            reason = str(error).partition("\n")[0]
            raise UserError("filter", query.filter, f"a condition that fits the fields ({reason})") from None
        decision = Decision(
            request_id=query.request_id,
            role="answer",
            user_id=query.user_id,
            at=query.now,
            as_of=as_of,
            bundle=arm.bundle,
            generation=arm.generation,
            variant=arm.variant,
            placement=query.placement,
            k=query.k or placement["k"],
            query={
                "exclude": list(query.exclude),
                "filter": query.filter,
                "properties": list(query.properties),
                "context": {},
            },
            items=answer.items,
            scores=answer.scores,
            sources=answer.sources,
            degraded=sorted(degraded),
            session_id=session_id,
            anonymous_id=anonymous_id,
            positives=answer.positives,
            inputs=answer.inputs,
            micros=round((time.perf_counter() - started) * 1e6),
        )
        self.decisions.put(decision)
        return answer, decision

    def reply(self, query: Query, answer: Answer, decision: Decision) -> RecommendAnswer:
        """An answer as the client gets it."""
        return reply(query, answer, self.catalogue, decision.bundle, decision.variant, decision.degraded)

    def user_state(self, user_id: str) -> UserState:
        """What is known of a user now."""
        return self._state(user_id, set())[0]

    def heard_of_item(self, item_id: str) -> bool:
        """Whether any event names this item; reads files, so never on the event loop."""
        return self.log.heard_of_item(item_id) or self.archive.heard_of(ITEM_ID, item_id)

    def heard_of_user(self, user_id: str) -> bool:
        """Whether any event names this user; reads files, so never on the event loop."""
        return self.log.heard_of_user(user_id) or self.archive.heard_of(USER_ID, user_id)

    def table(self) -> dict[str, Any]:
        """``GET /v1/status``; opens the control store, so never on the event loop."""
        watermark, last_seq = self.archive.watermark, self.as_of
        degraded = set(self.degraded)
        return {
            **release.table(self.control),
            "last_seq": last_seq,
            "watermark": watermark,
            "degraded": sorted(degraded),
        }

    def ready(self) -> str:
        """Answer a golden query with what serves now; empty, or why it could not."""
        golden = self.bundle.golden[0] if self.bundle.golden else None
        state = UserState() if golden is None else state_of_tree(golden["state"])
        placement = next(iter(self.bundle.policy["placements"])) if golden is None else golden["placement"]
        now = self.bundle.cut if golden is None else golden["now"]
        query = Query(user_id="golden", now=now, placement=placement, k=5)
        answer = self.recommender.recommend(States.of(["golden"], [state]), [query], with_inputs=False)[0]
        return "" if answer.slots else "the golden query got no list"

    def _state(self, user_id: str, degraded: set[str]) -> tuple[UserState, int]:
        """A user's state and the seq it knows: the newest, else the snapshot's, else nothing; never an error."""
        try:
            return self.states.read(user_id, self.as_of), self.as_of
        except sqlite3.Error:
            degraded.add("log")
        try:
            stored = self._stored.get(user_id)
        except sqlite3.Error:
            degraded.add("snapshot")
            return UserState(), 0
        return UserState() if stored is None else msgspec.msgpack.decode(stored, type=UserState), self._stored.seq

    def _settle(self, jobs: list[Job], seq: int) -> None:
        """After a commit, on the loop: what it changed is dropped or put in place, then ``as_of`` moves on."""
        touched: set[str] = set()
        for job in jobs:
            touched.update(event.user_id for event in job.events)
            touched.update(user.user_id for user in job.kept_users)
        self.states.drop(touched, seq)
        for item in sorted((item for job in jobs for item in job.kept_items), key=lambda item: item.seq):
            self.catalogue.upsert(item)
        self.as_of = seq

    def _live_bundle(self) -> tuple[Bundle, arms.Arm]:
        """The live bundle; the newest earlier live one that loads, where it does not."""
        rows = release.lives(self.control)
        if not rows:
            raise UserError("bundle", "none live yet", "a live bundle", "recloop update")
        first: BundleError | None = None
        for row in rows:
            try:
                bundle = bundles.load(self.project.bundles / row.bundle, row.sha256)
                check_golden(bundle)
            except BundleError as error:
                first = first or error
                LOGGER.warning("bundle %s is not served: %s", row.bundle, error)
                continue
            if first is not None:
                self._degraded.add("bundle")
            return bundle, arms.Arm(row.bundle, row.generation, arms.LIVE)
        assert first is not None
        raise first

    def _snapshot(self, bundle: Bundle, signal: Signal) -> snapshots.Snapshot:
        """The states as of the import's last row; made anew where the file is missing or broken."""
        key, watermark = bundle.spec.state_key, self.archive.watermark
        path = self.project.store / snapshots.name(watermark, key)
        try:
            return snapshots.Snapshot(path)
        except (UserError, sqlite3.Error):
            labelled = signal.label(self.archive.events())
            snapshots.write(path, fold_all(labelled, self.archive.users()), watermark, key)
            return snapshots.Snapshot(path)


def reply(
    query: Query, answer: Answer, catalogue: Catalogue, bundle: str, variant: str, degraded: list[str]
) -> RecommendAnswer:
    """An answer as ``GET /v1/recommend`` gives it: each slot with its reason and the properties asked for."""
    items = []
    for slot in answer.slots:
        item = catalogue.get(slot.item_id)
        attributes = {} if item is None else item.attributes
        own = {"item_id": slot.item_id, "score": slot.score, "source": slot.source, "reason": REASONS[slot.source]}
        items.append({**own, **{name: attributes.get(name) for name in query.properties if name not in own}})
    return RecommendAnswer(query.request_id, bundle, variant, query.placement, degraded, items)
