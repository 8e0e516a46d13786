"""READ FIRST: one turn of the loop, chapter by chapter, from a raw log to a live bundle.

    what happened   what the model sees   what it learns   how good it is   what is served
    collect    ->   features         ->   learn       ->   evaluate    ->   bundle, release

Serving and watching go on from there: `recloop.serve.app` and `recloop.watch`. The parts that a chapter needs stand in
`recloop.turn`; this file is the table of contents.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from recloop import turn as parts
from recloop.backends import locks
from recloop.bundle import Bundle
from recloop.collect.posted import Posted
from recloop.collect.prepare import Prepared, load, prepare
from recloop.later import new_files, place, steps
from recloop.later import restart as restarts
from recloop.later import run as runs
from recloop.later.run import Updated
from recloop.learn.table import Table
from recloop.models.base import check_model
from recloop.project import Project
from recloop.retention import tidy
from recloop.standing import logged, new_rows
from recloop.voice import Silent, Voice, tell_bundle, tell_collected, tell_features


@dataclass(frozen=True)
class Trained:
    """A bundle, written and registered; ``table`` is its evaluation on the test, ``run`` the name of its run folder."""

    bundle: Bundle
    table: Table
    run: str
    seconds: float


@dataclass(frozen=True)
class Turn:
    """What one turn did; ``seconds`` is the wall time of all."""

    prepared: Prepared
    bundle: Bundle
    table: Table
    seconds: float


def turn(project: Project, voice: Voice | None = None, verb: str = "update") -> Turn:
    """Prepare, learn, evaluate, bundle, and make it live: the first turn of a project.

    Raises:
        Locked: another turn runs in this folder.
        UserError: the log, the configuration or the model's extra does not allow it.
    """
    check_model(project.config.model.name)
    with locks.turn_lock(project.root, verb):
        begin = time.monotonic()
        prepared = collect(project, voice)
        trained = train(project, voice)
        parts.make_live(project, trained.bundle, by=f"recloop {verb}", reason="first turn")
        return Turn(prepared, trained.bundle, trained.table, time.monotonic() - begin)


def update(
    project: Project, voice: Voice | None = None, full: bool = False, reset: bool = False, restart: bool = False
) -> Updated:
    """Every turn after the first: what came since becomes a candidate, and the gate decides; see `recloop.later`.

    Settings that decide which rows there are make it a new first run, where they differ from those of live.

    Args:
        full: Train from scratch, for comparison; the table still begins with live's rows.
        reset: Start from live's weights, but with a fresh optimizer.
        restart: A new first run, whatever changed: all files are read again, posted rows are kept.

    Raises:
        Locked: another turn runs in this folder.
        UserError: nothing is live yet, the configuration does not allow it, or the disk has no room.
    """
    check_model(project.config.model.name)
    with locks.turn_lock(project.root, "update"), runs.room(project):
        clock, voice = time.monotonic(), voice or Silent()
        if restarts.finish(project):
            voice.say("update", "a new first run that was interrupted is now in place")
        reason = restarts.reason(project) or ("asked for with --restart" if restart else "")
        if reason:
            restarts.whole_files(project, restart)
            return _restart(project, voice, reason, clock)
        new_files.take(project, voice)
        run = runs.begin(project, full, reset, voice)
        if run is None:
            tidy(project, voice)
            live, (seq, _) = project.live_bundle_id(), new_rows(project)
            changed = [one.key for one in restarts.differing(project)]
            return Updated(seq, seq, 0, 0, 0, 0, live, "nothing", [], time.monotonic() - clock, {}, [], changed)
        steps.collect(run)  # 1. what happened
        steps.check(run)  # is it what live knows?
        steps.enough(run)  # can it be judged?
        if run.verdict == "registered":
            steps.learn(run)  # 2-3. features, learn
            steps.judge(run)  # 4. evaluate
        if run.verdict == "registered":
            steps.finish(run)
        placed = place.settle(run)  # 5. bundle, and everything into place
        tidy(project, voice)
        return run.done(placed, time.monotonic() - clock)


def _restart(project: Project, voice: Voice, reason: str, clock: float) -> Updated:
    """A new first run in a living project: staged beside, then put in place whole; see `recloop.later.restart`."""
    voice.say("update", f"a new first run ({reason})")
    with restarts.alone(project, reason), restarts.staged(project) as stage:
        prepared = collect(stage.project, voice, stage.posted)
        trained = train(stage.project, voice)
        restarts.commit(project, stage, trained.bundle.id, reason)
    report, posted = prepared.report, len(stage.posted)
    voice.say("update", f"live: {trained.bundle.id}; {posted:,} posted rows kept; bundles of the earlier data refused")
    return Updated(
        1, prepared.watermark, report.read, report.kept, report.users, report.items, trained.bundle.id, "restarted", [],
        time.monotonic() - clock, report.removed, [], [one.key for one in stage.changed],
    )  # fmt: skip


def collect(project: Project, voice: Voice | None = None, posted: Posted | None = None) -> Prepared:
    """1. What happened: read, clean, split, write ``data/``, and the states as of its last row.

    Args:
        posted: Rows of an earlier generation of the data, which a new first run numbers again.
    """
    voice = voice or Silent()
    prepared = prepare(project, posted is None and logged(project), posted)
    parts.follow_on(project, prepared, load(project))
    tell_collected(voice, prepared)
    return prepared


def train(project: Project, voice: Voice | None = None, model: str | None = None) -> Trained:
    """2-5. What the model sees, what it learns, how good it is: a bundle, written and registered, and its table.

    Args:
        model: A shelf name or dotted path in place of ``[model]`` (its extra must then be there).
    """
    voice = voice or Silent()
    check_model(model or project.config.model.name)
    started, begin = datetime.now(UTC), time.monotonic()
    data = load(project)
    run = parts.open_run(project, started)

    tables = parts.see(project, data)  # 2. features
    arrays = parts.validation_arrays(project, tables, data)
    tell_features(voice, tables, arrays)

    learned = parts.learn(project, tables, arrays, data, run, voice, model)  # 3. learn
    table = parts.judge(project, [learned.bundle], data, voice)  # 4. evaluate
    if project.config.train.refit:
        learned = parts.refit(project.config, learned, data, run, voice)
    bundle = parts.keep(project, learned, table, data, run, started)  # 5. bundle
    tell_bundle(voice, bundle)
    return Trained(bundle, table, run.name, time.monotonic() - begin)
