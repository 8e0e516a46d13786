"""Update run: inputs, progress, and resumption after a kill."""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from safetensors import SafetensorError

from recloop import bundle as bundles
from recloop.bundle import Bundle
from recloop.config import Config
from recloop.data.labelled_log import LabelledLog
from recloop.errors import BundleError, StoreError, UserError
from recloop.evaluation.queries import Queries, make_queries
from recloop.features.labels import EventLabeler
from recloop.features.learned_range import LearnedRange, NewWindow
from recloop.features.spec import FeatureSpec
from recloop.features.state_history import StateHistory
from recloop.files import JsonTree
from recloop.pipeline import config_changes, training_steps
from recloop.pipeline.config_changes import Change, Effect
from recloop.pipeline.journal import Journal
from recloop.pipeline.recipe import child_recipe, recipe_of
from recloop.progress import Progress
from recloop.project import Project
from recloop.recommend import loading
from recloop.recommend.catalog import Catalog
from recloop.records import USER_ID
from recloop.release import gate_result
from recloop.release.gate_result import GateResult
from recloop.settings import dump
from recloop.storage import releases
from recloop.storage.forgotten import ForgottenUsers
from recloop.storage.identities import IDENTIFIED

RETROSPECTIVE_RULES = frozenset({"duplicates", "burst"})
"""Rules by which an update itself retracts rows."""
COLLECT_FACTS = ("read", "kept", "removed", "signals", "new_users", "new_items")
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@dataclass(frozen=True)
class UpdateResult:
    """Result of an update.

    Attributes:
        verdict: registered, waiting, refused, blocked, restarted or nothing.
        bundle: None if none was registered.
        state: State of the registered bundle: ``live`` (a refresh replaced its parent), ``shadow``, ``registered``.
        changed: Keys of recloop.toml that differ from live's settings.
        removed: {rule: rows}.
        signals: Effect of each rule of ``[events]`` on the rows (rule, means, weight, events).
    """

    from_seq: int
    to_seq: int
    read: int
    kept: int
    new_users: int
    new_items: int
    bundle: str | None
    verdict: str
    gates: list[JsonTree]
    seconds: float
    removed: dict[str, int]
    signals: list[JsonTree]
    changed: list[str] = field(default_factory=list)
    state: str | None = None

    @property
    def failed(self) -> list[JsonTree]:
        """Return the failed gates."""
        return [tree for tree in self.gates if not tree["ok"] and not tree.get("waits")]

    @property
    def reason(self) -> str:
        """Return the reasons of each gate that failed or waits for more rows."""
        gates = [GateResult.from_json(result) for result in self.gates]
        stopping = [result for result in gates if not result.ok and not result.waits] or [
            result for result in gates if result.waits
        ]
        return "; ".join(result.reason for result in stopping)


@dataclass(frozen=True)
class LoadedStates:
    """States of some users of a run."""

    users: frozenset[str]
    timeline: StateHistory


@dataclass
class UpdateRun:
    """An update in progress.

    Attributes:
        full: Train from scratch instead of from live's weights.
        reset: Start from live's weights with a fresh optimizer.
        spec: The candidate's feature spec.
        candidate: The written candidate; None if an earlier process trained it.
        states: The states that `states_of` computed last.
    """

    project: Project
    journal: Journal
    live: Bundle
    spec: FeatureSpec
    full: bool
    reset: bool
    progress: Progress
    seed: int
    changed: list[Change] = field(default_factory=list)
    loaded: LabelledLog | None = field(default=None, repr=False)
    candidate: Bundle | None = field(default=None, repr=False)
    states: LoadedStates | None = field(default=None, repr=False)

    @property
    def config(self) -> Config:
        return self.project.config

    @property
    def folder(self) -> Path:
        return self.journal.folder

    @property
    def until(self) -> int:
        return int(self.journal.head["to_seq"])

    @property
    def watermark(self) -> int:
        return int(self.journal.head["from_seq"]) - 1

    @property
    def live_range(self) -> LearnedRange:
        """Return the range of rows that live has learned."""
        return self.live.learned

    @property
    def window(self) -> NewWindow:
        """Return the moments that this update tests, as `collect` chose them."""
        facts = self.journal.facts("collect")
        return NewWindow(*(int(facts[name]) for name in ("cut", "held_seq", "late", "fresh")))

    @property
    def recipe(self) -> str:
        """Return the recipe of the child."""
        return recipe_of(self.config) if self.full else child_recipe(self.config, self.live.manifest)

    @property
    def refreshes(self) -> bool:
        """Return whether the child has live's recipe.

        Then only its gate decides its release; otherwise shadow and experiment do.
        """
        return self.recipe == self.live.manifest.recipe

    @property
    def data(self) -> LabelledLog:
        """Return ``data/`` as `collect` wrote it."""
        if self.loaded is None:
            self.loaded = LabelledLog(self.folder / "data", self.project.data)
        return self.loaded

    @cached_property
    def test_queries(self) -> Queries:
        """Return every query of the test moments."""
        return make_queries(self.data.test, "successive")

    @cached_property
    def catalog(self) -> Catalog:
        """Return the catalog of this run's queries."""
        return Catalog.from_frames([self.data.items])

    def events_of(self, users: Sequence[str]) -> pl.DataFrame:
        """Return the labelled rows of these users."""
        return self.data.events.filter(pl.col(USER_ID).is_in(pl.Series(users, dtype=pl.String).unique().implode()))

    def states_of(self, users: Sequence[str]) -> StateHistory:
        """Return the states of these users, and maybe of users of an earlier call."""
        asked = frozenset(users)
        if self.states is None or not asked <= self.states.users:
            self.states = LoadedStates(asked, StateHistory(self.events_of(users), self.data.users))
        return self.states.timeline

    @property
    def gates(self) -> list[GateResult]:
        """Return every gate so far, in order."""
        steps = [
            self.journal.facts(step) for step in ("check", "enough", "judge", "finish") if self.journal.is_done(step)
        ]
        return [GateResult.from_json(tree) for facts in steps for tree in facts["gates"]]

    @property
    def verdict(self) -> str:
        """Return the verdict of the gates so far."""
        return gate_result.verdict(self.gates)

    def result(self, registered: tuple[str, str] | None, seconds: float) -> UpdateResult:
        """Return the result; ``registered`` is the registered bundle and its state."""
        bundle, state = registered or (None, None)
        facts = {name: self.journal.facts("collect")[name] for name in COLLECT_FACTS}
        return UpdateResult(
            self.watermark + 1,
            self.until,
            **facts,
            bundle=bundle,
            verdict=self.verdict,
            gates=gate_result.gates_to_json(self.gates),
            seconds=seconds,
            changed=[change.key for change in self.changed],
            state=state,
        )


def nothing_new(project: Project, changed: Sequence[Change], seconds: float) -> UpdateResult:
    """Return the result of an update without new rows, after which live is unchanged."""
    seq, _ = loading.log_range(project)
    keys = [change.key for change in changed]
    return UpdateResult(seq, seq, 0, 0, 0, 0, project.live_bundle_id(), "nothing", [], seconds, {}, [], keys)


def start_or_resume(project: Project, full: bool, reset: bool, progress: Progress) -> UpdateRun | None:
    """Resume the interrupted run if its inputs are unchanged, else start one.

    Returns None if there is nothing new.

    Raises:
        UserError: features or events changed since live was trained, or the protocol does not support updates.
    """
    config = project.config
    _check_settings(config)
    live = project.load_bundle()
    changed = config_changes.changed_keys(config, live.manifest.config)
    retrain = config_changes.with_effect(changed, Effect.RETRAIN)
    trains_full = full or config.update.mode == "full" or bool(retrain)
    if trains_full and reset:
        expected = "a warm start, because a full retrain has no parent optimizer"
        raise UserError("--reset-optimizer", "with a full retrain", expected, "recloop update --full")
    watermark, last_seq = loading.log_range(project)
    inputs = {
        "from_seq": watermark + 1,
        "live": live.id,
        "mode": "full" if trains_full else "reset" if reset else "warm",
        "settings": hashlib.sha256(dump(config).encode()).hexdigest(),
        "out": _quarantined(project),
    }
    journal = _interrupted(project, inputs)
    if journal is not None:
        until = int(journal.head["to_seq"])
        progress.say("update", f"resuming run {journal.folder.name}: {inputs['mode']}, up to seq {until:,}")
    else:
        has_new_rows = last_seq > watermark + _by_updates(project, watermark) + _erasures(project, watermark)
        if not has_new_rows and not retrain and not (full and changed):
            return None
        if not has_new_rows and waiting_reason(project, config, live.id):
            return None
        started = datetime.now(UTC)
        journal = Journal.begin(training_steps.open_run(project, started), started, {**inputs, "to_seq": last_seq})
    spec = FeatureSpec.from_config(config, live.spec.dwell)
    if not trains_full:
        _check_features(spec, live, journal)
    if retrain:
        reasons = config_changes.list_changes(retrain)
        progress.say("update", f"full retrain, because recloop.toml changed since {live.id} ({reasons})")
    return UpdateRun(project, journal, live, spec, trains_full, reset, progress, config.train.seed, changed)


def _check_settings(config: Config) -> None:
    """Check that a project can be updated with these settings.

    Raises:
        UserError: the protocol does not support updates, or a rule has unknown words.
    """
    if config.split.protocol != "temporal":
        expected = "temporal, for a growing log"
        raise UserError("split.protocol", config.split.protocol, expected, "recloop train, then recloop evaluate")
    EventLabeler(config.events, config.clean)  # raises for unknown words


def _interrupted(project: Project, inputs: Mapping[str, Any]) -> Journal | None:
    """Return the journal of an interrupted run with these inputs.

    A run with other inputs is closed.
    """
    journal = Journal.unfinished(project.runs)
    if journal is None or journal.is_done("publish"):
        return journal
    if {key: value for key, value in journal.head.items() if key != "to_seq"} == inputs:
        return journal
    journal.close("left")
    return None


def _check_features(spec: FeatureSpec, live: Bundle, journal: Journal) -> None:
    """Check that a warm child has the features of live, whose settings may be unknown.

    Raises:
        UserError: they differ; the run is closed.
    """
    child, parent = spec.to_json(), live.spec.to_json()
    if child != parent:
        journal.close("left")
        differ = ", ".join(key for key, value in child.items() if value != parent[key])
        expected = f"the settings of {live.id} (changed: {differ})"
        raise UserError("recloop.toml", "changed", expected, "recloop update --full")


def waiting_reason(project: Project, config: Config, live: str) -> str:
    """Return a promotable child of live with these settings and all rows, or ""."""
    machine = releases.read_state(project.open_control())
    for bundle, (state, _) in reversed(machine.states.items()):
        if state not in {"registered", "checked", "shadow", "experiment"}:
            continue
        try:
            manifest = bundles.check(project.bundles / bundle, machine.hashes[bundle])
        except BundleError:
            continue
        if (
            manifest.parent == live
            and manifest.config is not None
            and not config_changes.changed_keys(config, manifest.config)
        ):
            return bundle
    return ""


def _by_updates(project: Project, watermark: int) -> int:
    """Count rows after the watermark that updates retracted; they need no new update."""
    with project.open_log() as log:
        return sum(row.rule in RETROSPECTIVE_RULES for row in log.retractions(after=watermark))


def _erasures(project: Project, watermark: int) -> int:
    """Count the seqs after the watermark that erasures of users took."""
    return len({one.seq for one in ForgottenUsers.read(project.root) if (one.seq or 0) > watermark})


def _quarantined(project: Project) -> int:
    """Count quarantines and restores; a run started before the last cannot resume."""
    with project.open_log() as log:
        rows = [
            *log.retractions(),
            *(entry.retraction for entry in project.open_control().pending()),
        ]
    return sum(row.rule not in RETROSPECTIVE_RULES and row.rule != IDENTIFIED for row in rows)


@contextmanager
def explain_disk_full(project: Project) -> Iterator[None]:
    """Turn a full disk into one error; the run resumes from its folder next time.

    Raises:
        UserError: a write failed because the disk is full.
    """
    try:
        yield
    except (OSError, sqlite3.OperationalError, SafetensorError) as error:
        if isinstance(error, StoreError):  # of the disk of a server
            raise
        text = str(error)
        disk_full_texts = (
            "disk",
            *(os.strerror(code) for code in DISK_FULL_ERRNOS),
        )  # SQLite's: "database or disk is full"
        if getattr(error, "errno", None) not in DISK_FULL_ERRNOS and not any(
            phrase in text for phrase in disk_full_texts
        ):
            raise
        expected = f"free space for the run ({text.splitlines()[0]})"
        raise UserError("disk", project.root, expected, "free some space, then recloop update") from None
