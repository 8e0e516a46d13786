"""Verification: recompute logged decisions offline and report differences.

Serving reads a user's state from stored states, later rows and a cache. Verification computes it from the columns of
archive and log, without stored states and cache. It then uses the same `encode` and the recommender of the decision's
bundle, over the catalog at the decision's ``as_of_seq``, one query at a time. The ``inputs``, ids and scores must be equal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from recloop.bundle import Bundle
from recloop.errors import RecloopError
from recloop.features.labels import EventLabeler
from recloop.features.moments import moment_stamps
from recloop.features.state import StateBatch, StoredState
from recloop.features.state_history import StateHistory
from recloop.files import JsonTree, replace_json
from recloop.project import Project
from recloop.recommend import loading
from recloop.recommend.catalog import Catalog
from recloop.recommend.partial import STATE
from recloop.recommend.ranked_list import RankedList
from recloop.recommend.recommender import SCORE_TOLERANCE, Recommender
from recloop.records import EVENT_SCHEMA, RECEIVED_AT, RULE, SEQ, USER_ID, Decision, Item, Query
from recloop.storage import EventLog, Retraction, releases
from recloop.storage.identities import Identity
from recloop.storage.retractions import retracted_at

RESULT_FILE = "verify.json"
MAX_LISTED_DIFFERENCES = 100
"""Most listed differences; all are counted."""


class Mismatch(NamedTuple):
    """First difference between a decision and its recomputation."""

    name: str
    expected: str
    """As served."""
    actual: str
    """As recomputed."""


@dataclass
class VerificationResult:
    """Counts of one verification, with the keys of ``recloop verify --json``."""

    checked: int = 0
    equal: int = 0
    late: int = 0
    unexplained: int = 0
    earlier: int = 0
    removed: int = 0
    max_score_diff: float = 0.0
    differences: list[dict[str, str]] = field(default_factory=list)


def verify(project: Project, last: int = 1000, loaded: Sequence[Bundle] = ()) -> JsonTree:
    """Recompute the newest decisions and count equal, late and unexplained ones.

    ``earlier``: answered before a new first run; their data no longer exist, so they cannot be recomputed.

    ``removed``: answered by a bundle that ``[retention]`` has removed since, or emptied because its user was forgotten.

    ``late``: equal if rows received after the decision are ignored. A swap of items with scores closer than 1e-5 counts
    as equal. ``inputs`` must be equal even if the fusion gives them weight 0.

    Args:
        last: Number of decisions.
        loaded: Bundles of the project that are in memory; others are loaded.
    """
    with project.open_decisions() as store:
        decisions = store.rows(last=last)
        forgotten = store.count_forgotten(last)
    first_generation = releases.data_since(project.open_control())
    result = VerificationResult(checked=len(decisions))
    decisions = [decision for decision in decisions if decision.generation >= first_generation]
    result.earlier = result.checked - len(decisions)
    removed = loading.removal_times(project)
    result.removed = sum(decision.bundle in removed for decision in decisions)
    decisions = [decision for decision in decisions if decision.bundle not in removed]
    result.checked, result.removed = result.checked + forgotten, result.removed + forgotten
    if decisions:
        with project.open_log() as log:
            _compare_all(result, decisions, DecisionReplayer(project, log, decisions, loaded))
    return vars(result)


def save_result(project: Project, result: Mapping[str, Any], at: int) -> None:
    """Write a result to ``reports/verify.json`` atomically; health shows the last one.

    Args:
        at: Time of the verification, int64 microseconds.
    """
    tree = {"at": at, **{name: value for name, value in result.items() if name != "differences"}}
    replace_json(project.reports / RESULT_FILE, tree)


def last_result(project: Project) -> dict[str, int] | None:
    """Read the last result: ``at``, ``checked`` and ``unexplained``; None without one."""
    try:
        tree = json.loads((project.reports / RESULT_FILE).read_text("utf-8"))
        return {name: int(tree[name]) for name in ("at", "checked", "unexplained")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _compare_all(result: VerificationResult, decisions: Sequence[Decision], replayer: DecisionReplayer) -> None:
    for decision in sorted(decisions, key=lambda row: row.as_of_seq):
        try:
            ranked = replayer.answer(decision)
            difference = replayer.compare_person(decision) or compare(decision, ranked)
            if len(ranked.scores) == len(decision.scores) and ranked.scores:
                gap = float(np.abs(np.subtract(decision.scores, ranked.scores)).max())
                result.max_score_diff = max(result.max_score_diff, gap)
            if (
                difference is not None
                and replayer.has_late(decision)
                and compare(decision, replayer.answer_without_late(decision)) is None
            ):
                result.late += 1
                continue
        except RecloopError as error:  # its bundle is missing, or its files changed
            difference = Mismatch("bundle", decision.bundle, str(error))
        if difference is None:
            result.equal += 1
            continue
        result.unexplained += 1
        if len(result.differences) < MAX_LISTED_DIFFERENCES:
            result.differences.append({"request_id": decision.request_id, **difference._asdict()})


def compare(decision: Decision, ranked: RankedList) -> Mismatch | None:
    """Find the first difference: inputs in computed order, then ids, then scores."""
    for name in [*ranked.inputs, *(name for name in decision.inputs if name not in ranked.inputs)]:
        expected, actual = decision.inputs.get(name, "missing"), ranked.inputs.get(name, "missing")
        if expected != actual:
            return Mismatch(name, expected, actual)
    if len(decision.items) != len(ranked.items):
        return Mismatch("ids", f"{len(decision.items)} ids", f"{len(ranked.items)} ids")
    scores = dict(zip(ranked.items, ranked.scores, strict=True))
    last_score = ranked.scores[-1] if ranked.scores else 0.0
    for rank, (expected, actual) in enumerate(zip(decision.items, ranked.items, strict=True)):
        # Items with scores closer than `SCORE_TOLERANCE` may swap ranks, also across the end of the list.
        if expected != actual and abs(scores.get(expected, last_score) - decision.scores[rank]) >= SCORE_TOLERANCE:
            return Mismatch("ids", expected, actual)
    for expected_score, actual_score in zip(decision.scores, ranked.scores, strict=True):
        if abs(expected_score - actual_score) >= SCORE_TOLERANCE:
            return Mismatch("scores", repr(expected_score), repr(actual_score))
    return None


class DecisionReplayer:
    """Recomputes decisions from columns; call in order of ``as_of_seq``."""

    def __init__(
        self, project: Project, log: EventLog, decisions: Sequence[Decision], loaded: Sequence[Bundle] = ()
    ) -> None:
        self._project = project
        self._bundles = {bundle.id: bundle for bundle in loaded}
        archive = project.open_archive()
        # Rows that an update archived were in the log, so each counts from its seq on.
        first_seq, last_seq = (extreme(decision.as_of_seq for decision in decisions) for extreme in (min, max))
        first_seq = min(first_seq, archive.watermark)
        users = pl.Series([decision.user_id for decision in decisions], dtype=pl.String).unique()
        of_users = pl.col(USER_ID).is_in(users.implode())
        log_rows = (
            log.events(after=archive.watermark, until=last_seq)
            .filter(of_users & pl.col(RULE).is_null())
            .select(*EVENT_SCHEMA)
        )
        self._old_events, self._new_events = _cut(archive.for_users(users), log_rows, first_seq)
        old_users = archive.users()
        log_rows = log.users(archive.watermark, last_seq).filter(of_users)
        self._old_users, self._new_users = _cut(
            None if old_users is None else old_users.filter(of_users), log_rows, first_seq
        )
        self._old_items, self._new_items = _cut(archive.items(), log.items(archive.watermark, last_seq), first_seq)
        self._retracted = self._retractions_by_user(log, last_seq)
        self._persons: dict[str, Identity] = {}  # first identity of each anonymous id
        for identity in log.identities(until=last_seq):
            self._persons.setdefault(identity.anonymous_id, identity)
        self._catalog = Catalog.from_frames([self._old_items])
        self._items_seen = 0
        self._recommenders: dict[str, Recommender] = {}
        self._timelines: dict[tuple[str, str, frozenset[int]], StateHistory] = {}

    def answer(self, decision: Decision) -> RankedList:
        """Recompute a decision from state and catalog at its ``as_of_seq``."""
        recommender, states = self.context_for(decision)
        return _recommend(recommender, states, decision)

    def context_for(self, decision: Decision, bundle: str = "") -> tuple[Recommender, StateBatch]:
        """Rebuild the recommender and user state of a decision at its ``as_of_seq``.

        Args:
            bundle: Bundle of the recommender and the event labels; empty for the decision's own.
        """
        recommender = self._recommender(bundle or decision.bundle)
        retracted = self._out(decision)
        # A user with retracted rows needs a separate timeline per set of retractions; all others share one.
        key = recommender.bundle.spec.state_key, decision.user_id if retracted else "", retracted
        if key not in self._timelines:
            owner = decision.user_id if retracted else None
            self._timelines[key] = self._timeline(recommender, self._new_events, self._new_users, retracted, owner)
        while self._items_seen < len(self._new_items) and self._new_items[SEQ][self._items_seen] <= decision.as_of_seq:
            self._catalog.upsert(_item(self._new_items.row(self._items_seen, named=True)))
            self._items_seen += 1
        return recommender, self._timelines[key].states([decision.user_id], [decision.as_of_seq])

    def compare_person(self, decision: Decision) -> Mismatch | None:
        """Find a decision for an id that was identified as a user before it."""
        user = self._persons.get(decision.user_id)
        if user is None or user.seq > decision.as_of_seq:
            return None
        return Mismatch(USER_ID, decision.user_id, user.user_id)

    def has_late(self, decision: Decision) -> bool:
        """Return True if the state or catalog includes a row received after the decision."""
        is_late = (pl.col(RECEIVED_AT) > decision.served_at) & (pl.col(SEQ) <= decision.as_of_seq)
        is_late_of_user = is_late & (pl.col(USER_ID) == decision.user_id)
        rows = (
            self._new_items.filter(is_late),
            self._new_events.filter(is_late_of_user),
            self._new_users.filter(is_late_of_user),
        )
        return any(map(len, rows))

    def answer_without_late(self, decision: Decision) -> RankedList:
        """Recompute a decision without rows that were received after it."""
        in_time = pl.col(RECEIVED_AT) <= decision.served_at
        served = self._recommender(decision.bundle)
        items = self._new_items.filter(in_time)
        recommender = Recommender(
            served.bundle, Catalog.from_frames([self._old_items, items], decision.as_of_seq), with_availability=True
        )
        events, users = self._new_events.filter(in_time), self._new_users.filter(in_time)
        timeline = self._timeline(recommender, events, users, self._out(decision), decision.user_id)
        states = timeline.states([decision.user_id], [decision.as_of_seq])
        return _recommend(recommender, states, decision)

    def _recommender(self, name: str) -> Recommender:
        if name not in self._recommenders:
            bundle = self._bundles.get(name) or self._project.load_bundle(name)
            self._recommenders[name] = Recommender(bundle, self._catalog, with_availability=True)
        return self._recommenders[name]

    def _retractions_by_user(self, log: EventLog, until: int) -> dict[str, list[Retraction]]:
        """Retractions up to a seq, by user."""
        rows = pl.concat([self._old_events, self._new_events])
        by_seq: dict[int, list[Retraction]] = {}
        for row in log.retractions(until=until):
            by_seq.setdefault(row.retracted_seq, []).append(row)
        seqs = pl.Series(list(by_seq), dtype=pl.Int64).implode()
        by_user: dict[str, list[Retraction]] = {}
        for user_id, seq in rows.filter(pl.col(SEQ).is_in(seqs)).select(USER_ID, SEQ).iter_rows():
            by_user.setdefault(user_id, []).extend(by_seq[seq])
        return by_user

    def _out(self, decision: Decision) -> frozenset[int]:
        """Seqs of the user's events that were retracted when the decision was made."""
        return frozenset(retracted_at(self._retracted.get(decision.user_id, ()), decision.as_of_seq))

    def _timeline(
        self,
        recommender: Recommender,
        new_events: pl.DataFrame,
        new_users: pl.DataFrame,
        retracted: frozenset[int],
        owner: str | None,
    ) -> StateHistory:
        """Return the states of one user, ``owner``; None: all users of the decisions."""
        spec = recommender.bundle.spec
        rows = pl.concat([self._old_events, new_events])
        if owner is not None:
            rows = rows.filter(pl.col(USER_ID) == owner)
        rows = rows.filter(~pl.col(SEQ).is_in(pl.Series(sorted(retracted), dtype=pl.Int64).implode()))
        users = pl.concat([self._old_users, new_users])
        return StateHistory(moment_stamps(EventLabeler.from_spec(spec).label(rows)), users)


def _recommend(recommender: Recommender, states: StateBatch, decision: Decision) -> RankedList:
    """Answer a decision's query again, without the parts that it missed."""
    if STATE in decision.degraded:
        states = StoredState().to_batch(decision.user_id)
    return recommender.recommend(states, [query_of(decision)], without=frozenset(decision.degraded))[0]


def _cut(archived: pl.DataFrame | None, log_rows: pl.DataFrame, seq: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split the rows of archive and log into those up to a seq and those after it."""
    rows = log_rows if archived is None else pl.concat([archived, log_rows])
    return rows.filter(pl.col(SEQ) <= seq), rows.filter(pl.col(SEQ) > seq).sort(SEQ)


def query_of(decision: Decision) -> Query:
    """Return the query of a stored decision, without the requested properties."""
    return Query(
        user_id=decision.user_id,
        now=decision.served_at,
        n=decision.n,
        placement=decision.placement,
        exclude=tuple(decision.query.get("exclude", ())),
        filter=decision.query.get("filter", ""),
        request_id=decision.request_id,
        item_id=decision.query.get("item", ""),
        filter_seen=decision.query.get("filter_seen"),
        min_new=decision.query.get("min_new"),
    )


def _item(row: JsonTree) -> Item:
    return Item(**{**row, "attributes": json.loads(row["attributes"])})
