"""The parts of every turn after the first: what came since, a child of the live bundle, and whether it may be let in.

    begin     a new run, or the one that was killed      collect   the log since the watermark -> runs/RUN/data
    check     live's own loss on what came               learn     candidate' = live + the window but its last quarter
    judge     candidate' beside live on *new* and *old*  finish    the last quarter learned by the same recipe
    publish   snapshot, bundle, data, its row, and the watermark last

Each step writes into the run's folder and is named in its journal when it is whole; until `publish` nothing outside
that folder has moved. A refused or held window moves nothing, and its rows are read again next time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from safetensors import SafetensorError

from recloop import bundle as bundles
from recloop import release, standing, turn
from recloop.backends import locks, open_control, open_log, snapshots
from recloop.backends.archive import Archive
from recloop.backends.journal import Journal
from recloop.bundle import Bundle
from recloop.collect.append import append, publish
from recloop.collect.prepare import Data, read
from recloop.config import Config, Project, dump
from recloop.errors import BundleError, Locked, UserError
from recloop.features.signal import Signal
from recloop.features.spec import Spec
from recloop.features.state import Timeline
from recloop.learn import compare, counts
from recloop.learn.arrays import make_tables, train_data
from recloop.learn.evaluate import Moments, moments
from recloop.learn.fit import fit_network
from recloop.learn.warm import Warm, positions
from recloop.recommend.catalogue import Catalogue
from recloop.recommend.recommender import check_golden
from recloop.recommend.states import fold_all, fold_on
from recloop.records import DAY, EVENT_SCHEMA, RULE, SEQ, STAMP, USER_ID, is_old
from recloop.turn import Voice
from recloop.watch import gate, parity
from recloop.watch.gate import Evidence, Gate, Pairs

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
RATE = 0.2
"""Of the last full run's learning rate."""
OLD_DAYS = 90
CHECKED = 300
"""Queries of a window of the input check at most."""
OVERLAPPED = 200


@dataclass
class Run:
    """One update under way.

    Attributes:
        full: Train from scratch instead of from live's weights.
        spec: Of the candidate.
    """

    project: Project
    journal: Journal
    live: Bundle
    spec: Spec
    full: bool
    voice: Voice
    seed: int
    loaded: Data | None = field(default=None, repr=False)

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
    def learned(self) -> int:
        """The last seq whose rows live has learned."""
        return int(self.live.manifest["data"]["until_seq"])

    @property
    def data(self) -> Data:
        """``data/`` as `collect` wrote it."""
        if self.loaded is None:
            self.loaded = read(self.folder / "data", self.project.data)
        return self.loaded

    @property
    def gates(self) -> list[dict[str, Any]]:
        """Every gate so far, in its order."""
        steps = [self.journal.facts(step) for step in ("check", "judge", "finish") if self.journal.has(step)]
        return [one for facts in steps for one in facts["gates"]]

    @property
    def verdict(self) -> str:
        """By the gates so far."""
        return gate.verdict([Gate(one["name"], one["value"], one["threshold"] or 0, one["ok"]) for one in self.gates])


def begin(project: Project, full: bool, voice: Voice) -> Run | None:
    """The run that was killed, where everything stands as it did, else a new one; None: nothing is new.

    Raises:
        UserError: features or events changed since live was trained, or a protocol that knows no later turn.
    """
    config = project.config
    if config.split.protocol != "temporal":
        raise UserError(
            "split.protocol", config.split.protocol, "temporal: a log that goes on", "recloop train, then evaluate"
        )
    live = standing.load_bundle(project)
    full = full or config.update.mode == "full"
    watermark, last = standing.new_rows(project)
    settings = hashlib.sha256(dump(config).encode()).hexdigest()
    head = {"from_seq": watermark + 1, "live": live.id, "mode": "full" if full else "warm", "settings": settings}
    journal = Journal.unfinished(project.runs)
    if journal is not None and not journal.has("publish"):
        then = {key: value for key, value in journal.head.items() if key != "to_seq"}
        if then != head:
            journal.close("left")
            journal = None
    if journal is None:
        if last <= watermark:
            return None
        started = datetime.now(UTC)
        journal = Journal.begin(turn.open_run(project, started), started, {**head, "to_seq": last})
    else:
        voice.say("update", f"run {journal.folder.name} goes on: {'full' if full else 'warm'}, up to seq {last:,}")
    spec = Spec.of(config, live.spec.dwell)
    if not full and spec.to_json() != live.spec.to_json():
        journal.close("left")
        changed = [key for key, value in spec.to_json().items() if value != live.spec.to_json()[key]]
        expected = f"what {live.id} was trained with (changed: {', '.join(changed)})"
        raise UserError("recloop.toml", "changed", expected, "recloop update --full")
    return Run(project, journal, live, spec, full, voice, config.train.seed)


def collect(run: Run) -> None:
    """1. What happened since: judged rows, archive and split as they will be, in the run's folder."""
    if run.journal.has("collect"):
        return
    log = open_log(run.config.stores.log, run.project.root)
    try:
        made = append(run.project, log, run.until, run.learned, Signal.of(run.spec), run.folder / "data")
    finally:
        log.close()
    run.journal.done("collect", **vars(made))
    removed = ", ".join(f"{rule} {count:,}" for rule, count in made.removed.items()) or "none"
    run.voice.say(
        "collect",
        f"seq {run.watermark + 1:,} to {run.until:,}: {made.read:,} rows = {made.kept:,} kept + {removed} removed; "
        f"{made.new_users:,} new users, {made.new_items:,} new items",
    )


def check(run: Run) -> None:
    """2. Live's own loss on what came, against its earlier windows: out of band holds the window."""
    if run.journal.has("check"):
        return
    events = run.data.events
    came = moments(events.filter(pl.col(SEQ) > run.watermark), "successive")
    if not run.config.update.input_check or not len(came):
        why = "weak: nothing to compare" if run.config.update.input_check else "weak: update.input_check is off"
        run.journal.done("check", loss=None, gates=_trees([Gate(gate.INPUT, None, 0.0, True, note=why)]))
        return
    timeline, catalogue = _world(run)
    before = moments(
        events.filter((pl.col(SEQ) <= run.watermark) & (pl.col(STAMP) >= run.live.cut)), "successive"
    )  # what live has not learned
    came = compare.thin(came, CHECKED)
    earlier = compare.windows(before, gate.WINDOWS, len(came)) if len(before) else []
    losses = [compare.lost(compare.ask(run.live, one, timeline, catalogue).ndcg) for one in earlier]
    if len(losses) < gate.FEWEST:
        losses = [window["loss"] for window in run.data.manifest.get("windows", [])] + losses
    loss = compare.lost(compare.ask(run.live, came, timeline, catalogue).ndcg)
    found = gate.input_check(loss, losses)
    run.journal.done("check", loss=loss, gates=_trees([found]))
    run.voice.say("check", found.line())


def learn(run: Run) -> None:
    """3. candidate': live and the window but its last quarter."""
    if run.journal.has("learn"):
        return
    data, cut = run.data, int(run.journal.facts("collect")["cut"])
    before = data.events.filter(pl.col(STAMP) < cut)
    if run.full:
        tables = make_tables(run.spec, before, cut, data.items, data.users, run.live.items.ids.ids)
        arrays = train_data(tables, data.train, data.valid, turn.shown(run.project, data.train))
        learned = turn.learn(run.config, tables, arrays, data, run.folder, run.voice, None)
        candidate = _named(run, learned.bundle, "full")
    else:
        train = _train(run.live, run.project.bundles)
        candidate = _grow(run, run.live, before, cut, _Start(train, run.learned, 0), run.folder)
    written = _write(run, candidate, run.folder / "candidate")
    run.journal.done("learn", bundle=written.id)


def judge(run: Run) -> None:
    """4. candidate' beside live, by the recommender that serves, on what neither has learned: *new* and *old*."""
    if run.journal.has("judge"):
        return
    candidate, cut = _candidate(run), int(run.journal.facts("collect")["cut"])
    timeline, catalogue = _world(run)
    new = compare.thin(moments(run.data.test, "successive"))
    threads = turn.THREADS
    ours, lives = (compare.ask(bundle, new, timeline, catalogue, threads) for bundle in (candidate, run.live))
    cold = Pairs(ours.users, ours.ndcg, lives.ndcg).where(ours.cold)
    old = _old(run)
    forgotten = None
    if len(old):
        mine, theirs = (compare.ask(bundle, old, timeline, catalogue, threads) for bundle in (candidate, run.live))
        forgotten = Pairs(mine.users, mine.ndcg, theirs.ndcg)
    decided = turn.decided(run.project)
    evidence = Evidence(
        new=Pairs(ours.users, ours.ndcg, lives.ndcg),
        old=forgotten,
        slices={
            "cold": cold,
            "repeat": Pairs(ours.users, ours.repeat, lives.repeat),
            "explore": Pairs(ours.users, ours.explore, lives.explore),
        },
        parity=parity.verify(run.project)["unexplained"] if decided else None,
        latency=compare.latency((candidate, run.live), new, timeline, catalogue) if len(new) else None,
        cold_coverage=(ours.cold_coverage, lives.cold_coverage),
    )
    found = gate.judge(evidence, run.config.release.gates, run.seed)
    facts = {"cut": cut, "new_queries": len(new), "old_queries": len(old)}
    run.journal.done("judge", gates=_trees(found), **facts)
    for one in found:
        run.voice.say("gate", one.line())


def finish(run: Run) -> None:
    """5. The last quarter learned by the same recipe: the bundle that is let in."""
    if run.journal.has("finish"):
        return
    candidate, data = _candidate(run), run.data
    held = int(run.journal.facts("collect")["cut"])
    cut = int(data.events[STAMP].max() or 0) + 1  # type: ignore[arg-type]
    start = None if run.full else _Start(_train(candidate, run.folder / "candidate"), run.learned, held)
    grown = _grow(run, candidate, data.events, cut, start, run.folder / "rest")
    written = _write(run, grown, run.folder / "bundles")
    found = _settled(run, candidate, written)
    run.journal.done("finish", bundle=written.id, gates=_trees(found))
    for one in found:
        run.voice.say("gate", one.line())


def settle(run: Run) -> str | None:
    """6. After a pass everything is renamed into place, the watermark last; else nothing moves. The new bundle's id."""
    verdict = run.verdict
    if verdict != "registered":
        run.journal.close(verdict)
        return None
    name = str(run.journal.facts("finish")["bundle"])
    if not run.journal.has("publish"):
        _snapshots(run)
        run.journal.done("publish")
    made, target = run.folder / "bundles" / name, run.project.bundles / name
    if made.exists():
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    control = open_control(run.config.stores.control, run.project.root)
    if name not in {row.bundle for row in control.releases()}:
        sha256 = bundles.manifest_hash(target)
        release.register(
            control, name, sha256, by="recloop update", reason="passed its gate", at=standing.now(),
            evidence={"gates": run.gates},
        )  # fmt: skip
    facts = run.journal.facts("check")
    before = json.loads((run.project.data / "manifest.json").read_text("utf-8")).get("windows", [])
    window = {"to_seq": run.until, "bundle": run.live.id, "loss": facts["loss"]}
    windows = before if facts["loss"] is None else [*(w for w in before if w["to_seq"] < run.until), window]
    publish(run.folder / "data", run.project.data, {"windows": windows[-gate.WINDOWS :]})
    _forget_snapshots(run)
    run.journal.close(verdict)
    return name


@contextmanager
def room(project: Project) -> Iterator[None]:
    """A disk that is full ends the run with one message; what was done stays in its folder and goes on next time.

    Raises:
        UserError: a write failed for want of room.
    """
    try:
        yield
    except (OSError, sqlite3.OperationalError, SafetensorError) as error:
        text = str(error)
        told = ("disk", *(os.strerror(code) for code in FULL))  # SQLite's: "database or disk is full"
        if getattr(error, "errno", None) not in FULL and not any(one in text for one in told):
            raise
        expected = f"room for the run ({text.splitlines()[0]})"
        raise UserError("disk", project.root, expected, "free some space, then recloop update again") from None


# -- one child


@dataclass(frozen=True)
class _Start:
    """A warm start: the weights to begin with; new positions are those past ``until`` and not before ``since``."""

    state: dict[str, Any]
    until: int
    since: int


def _grow(run: Run, parent: Bundle, rows: pl.DataFrame, cut: int, start: _Start | None, folder: Path) -> Bundle:
    """A child over these rows: its table begins with the parent's, its codes and its mix are the parent's.

    Args:
        start: Weights of the parent; None: a network is trained from scratch with the epochs that the parent found.
    """
    config, data = run.config, run.data
    begin = time.monotonic()
    tables = make_tables(run.spec, rows, cut, data.items, data.users, parent.items.ids.ids, parent.fields)
    arrays = train_data(tables, rows, None, turn.shown(run.project, rows))
    scorers = {source: one for source, one in parent.scorers.items() if source != "model"}
    other = next((one["model"] for one in scorers.values() if ":" in one["model"]), "")
    made, _ = counts.fit_counts(arrays, tables, other, config.model.options if other == config.model.name else {})
    manifest = {**turn.manifest_of(config, tables, data)}
    bundle = counts.draft(config, tables, arrays, made, scorers, manifest)
    if "model" in parent.scorers:
        warm = None
        if start is not None:
            chosen = positions(arrays, start.until, start.since, config.update.replay, run.seed)
            warm = Warm(start.state, chosen, RATE, made)
        epochs = 1 if warm is not None else max(1, int(parent.manifest["train"]["epochs"]))
        settings = config.model_copy(update={"train": config.train.model_copy(update={"epochs": epochs})})
        budget = config.train.budget_seconds if warm is not None else turn.REFIT_SECONDS
        model = parent.manifest["model"]
        network = fit_network(
            model["name"], model["config"], arrays, settings, folder, budget, not sys.stderr.isatty(), warm
        )
        bundle = turn.with_network(bundle, network)
        run.voice.say(
            "learn", f"{network.name}: {network.metrics['step']} steps, {int(warm.chosen.sum()) if warm else 'all'} "
            f"positions in {time.monotonic() - begin:.0f} s",
        )  # fmt: skip
    return _named(run, replace(bundle, policy=_policy(config, parent, bundle)), "full" if run.full else "warm")


def _named(run: Run, bundle: Bundle, mode: str) -> Bundle:
    train = {**bundle.manifest["train"], "mode": mode}
    return replace(bundle, manifest={**bundle.manifest, "parent": run.live.id, "train": train})


def _policy(config: Config, parent: Bundle, drafted: Bundle) -> dict[str, Any]:
    """The configuration's placements; a mix that was found by validation stays the parent's."""
    placements = dict(drafted.policy["placements"])
    for name, one in placements.items():
        before = parent.policy["placements"].get(name)
        if before is not None and before["list"] == one["list"] and config.placement[name].mix == "auto":
            placements[name] = {**one, "weights": before["weights"]}
    return {**drafted.policy, "placements": placements}


def _write(run: Run, bundle: Bundle, folder: Path) -> Bundle:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = run.data.events.filter(pl.col(STAMP) < bundle.cut)
    return bundles.write(turn.with_golden(bundle, rows), folder, run.journal.started)


def _candidate(run: Run) -> Bundle:
    return bundles.load(run.folder / "candidate" / run.journal.facts("learn")["bundle"])


def _train(bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Weights and optimizer state of a bundle with a network, for a warm start.

    Raises:
        UserError: it has none.
    """
    if "model" not in bundle.scorers:
        return {}
    if "train.safetensors" not in bundle.manifest["files"]:
        raise UserError("bundle", bundle.id, "one with train.safetensors, to start from", "recloop update --full")
    return bundles.load_train(folder / bundle.id)


# -- evidence


def _world(run: Run) -> tuple[Timeline, Catalogue]:
    return Timeline(run.data.events, run.data.users), Catalogue.of([run.data.items])


def _old(run: Run) -> Moments:
    """Moments of the *old* users in the 90 days before live's cut: both have counted them, no loss has seen them."""
    events = run.data.events
    users = [user for user in events[USER_ID].unique().sort().to_list() if is_old(user)]
    span = pl.col(STAMP).is_between(run.live.cut - OLD_DAYS * DAY, run.live.cut, closed="left")
    return compare.thin(moments(events.filter(span & pl.col(USER_ID).is_in(users)), "successive"))


def _settled(run: Run, candidate: Bundle, written: Bundle) -> list[Gate]:
    """What the last quarter may not have broken."""
    broken = 0
    try:
        check_golden(bundles.load(run.folder / "bundles" / written.id))
    except BundleError:
        broken = 1
    lists: list[Sequence[Sequence[str]]] = [[], []]
    if not run.full:
        timeline, catalogue = _world(run)
        some = compare.thin(moments(run.data.test, "successive"), OVERLAPPED)
        if len(some):
            lists = [compare.ask(bundle, some, timeline, catalogue).lists for bundle in (written, candidate)]
    logged = run.folder / "rest" / "log.jsonl"
    losses = [json.loads(line)["loss"] for line in logged.read_text("utf-8").splitlines()] if logged.exists() else []
    return gate.settled(losses, broken, lists[0], lists[1])


def _trees(gates: Sequence[Gate]) -> list[dict[str, Any]]:
    return [{"threshold": None, **one.to_json()} for one in gates]


# -- into place


def _snapshots(run: Run) -> None:
    """Every user's state as of the new watermark, for each meaning of events in use, before the manifest names it."""
    log = open_log(run.config.stores.log, run.project.root)
    try:
        fresh = log.events(after=run.watermark, until=run.until).filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)
        users = log.users(run.watermark, run.until)
    finally:
        log.close()
    for spec in {spec.state_key: spec for spec in (run.live.spec, run.spec)}.values():
        path = run.project.store / snapshots.name(run.until, spec.state_key)
        before = run.project.store / snapshots.name(run.watermark, spec.state_key)
        signal = Signal.of(spec)
        if path.exists():
            continue
        if before.exists():
            stored = snapshots.Snapshot(before)
            try:
                snapshots.write(path, fold_on(stored, signal.label(fresh), users), run.until, spec.state_key)
            finally:
                stored.close()
        else:
            rows = pl.concat([Archive(run.project.data).events(), fresh])
            snapshots.write(path, fold_all(signal.label(rows), run.data.users), run.until, spec.state_key)


def _forget_snapshots(run: Run) -> None:
    """The files of earlier watermarks, where no server reads one."""
    try:
        with locks.writer_lock(run.project.root, "update"):
            for old in run.project.store.glob("snapshots-*.db"):
                if not old.name.startswith(f"snapshots-{run.until}-"):
                    old.unlink()
    except Locked:
        return
