"""READ FIRST: one turn of the loop, chapter by chapter, from a raw log to a live bundle.

    what happened   what the model sees   what it learns   how good it is   what is served
    collect    ->   features         ->   learn       ->   evaluate    ->   bundle, release

Serving and watching go on from there: `recloop.serve.app` and `recloop.monitoring`. The parts that a chapter needs stand in
`recloop.pipeline.training_steps`; this file is the table of contents.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from recloop.bundle import Bundle
from recloop.data.posted_rows import PostedRows
from recloop.data.prepare import PrepareResult, load, prepare
from recloop.evaluation.table import EvaluationTable
from recloop.models.base import check_model
from recloop.pipeline import new_files, publish, update_steps
from recloop.pipeline import restart as restarts
from recloop.pipeline import training_steps as parts
from recloop.pipeline import update_run as runs
from recloop.pipeline.retention import tidy
from recloop.pipeline.training_steps import report_bundle, report_data, report_features
from recloop.pipeline.update_run import UpdateResult
from recloop.progress import NullProgress, Progress
from recloop.project import Project
from recloop.recommend.loading import has_log_rows, log_range
from recloop.storage import locks


@dataclass(frozen=True)
class TrainResult:
    """A bundle, written and registered; ``table`` is its evaluation on the test, ``run`` the name of its run folder."""

    bundle: Bundle
    table: EvaluationTable
    run: str
    seconds: float


@dataclass(frozen=True)
class FirstRun:
    """What one turn did; ``seconds`` is the wall time of all."""

    prepared: PrepareResult
    bundle: Bundle
    table: EvaluationTable
    seconds: float


def first_run(project: Project, voice: Progress | None = None, verb: str = "update") -> FirstRun:
    """Prepare, learn, evaluate, bundle, and make it live: the first turn of a project.

    Raises:
        Locked: another turn runs in this folder.
        UserError: the log, the configuration or the model's extra does not allow it.
    """
    check_model(project.config.model.name)
    with locks.run_lock(project.root, verb):
        begin = time.monotonic()
        prepared = collect(project, voice)
        trained = train(project, voice)
        parts.make_live(project, trained.bundle, by=f"recloop {verb}", reason="first turn")
        return FirstRun(prepared, trained.bundle, trained.table, time.monotonic() - begin)


def update(
    project: Project, voice: Progress | None = None, full: bool = False, reset: bool = False, restart: bool = False
) -> UpdateResult:
    """Every turn after the first: what came since becomes a candidate, and the gate decides; see `recloop.pipeline`.

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
    with locks.run_lock(project.root, "update"), runs.explain_disk_full(project):
        clock, voice = time.monotonic(), voice or NullProgress()
        if restarts.finish(project):
            voice.say("update", "a new first run that was interrupted is now in place")
        reason = restarts.reason(project) or ("asked for with --restart" if restart else "")
        if reason:
            restarts.check_files_complete(project, restart)
            return _restart(project, voice, reason, clock)
        new_files.take(project, voice)
        run = runs.start_or_resume(project, full, reset, voice)
        if run is None:
            tidy(project, voice)
            live, (seq, _) = project.live_bundle_id(), log_range(project)
            changed = [one.key for one in restarts.differing(project)]
            return UpdateResult(seq, seq, 0, 0, 0, 0, live, "nothing", [], time.monotonic() - clock, {}, [], changed)
        update_steps.collect(run)  # 1. what happened
        update_steps.check_input(run)  # is it what live knows?
        update_steps.check_size(run)  # can it be judged?
        if run.verdict == "registered":
            update_steps.train_candidate(run)  # 2-3. features, learn
            update_steps.run_gates(run)  # 4. evaluate
        if run.verdict == "registered":
            update_steps.train_final(run)
        placed = publish.publish_update(run)  # 5. bundle, and everything into place
        tidy(project, voice)
        return run.done(placed, time.monotonic() - clock)


def _restart(project: Project, voice: Progress, reason: str, clock: float) -> UpdateResult:
    """A new first run in a living project: staged beside, then put in place whole; see `recloop.pipeline.restart`."""
    voice.say("update", f"a new first run ({reason})")
    with restarts.exclusive(project, reason), restarts.staged(project) as stage:
        prepared = collect(stage.project, voice, stage.posted)
        trained = train(stage.project, voice)
        restarts.commit(project, stage, trained.bundle.id, reason)
    report, posted = prepared.report, len(stage.posted)
    voice.say("update", f"live: {trained.bundle.id}; {posted:,} posted rows kept; bundles of the earlier data refused")
    return UpdateResult(
        1, prepared.watermark, report.read, report.kept, report.users, report.items, trained.bundle.id, "restarted", [],
        time.monotonic() - clock, report.removed, [], [one.key for one in stage.changed],
    )  # fmt: skip


def collect(project: Project, voice: Progress | None = None, posted: PostedRows | None = None) -> PrepareResult:
    """1. What happened: read, clean, split, write ``data/``, and the states as of its last row.

    Args:
        posted: Rows of an earlier generation of the data, which a new first run numbers again.
    """
    voice = voice or NullProgress()
    prepared = prepare(project, posted is None and has_log_rows(project), posted)
    parts.init_log_and_snapshot(project, prepared, load(project))
    report_data(voice, prepared)
    return prepared


def train(project: Project, voice: Progress | None = None, model: str | None = None) -> TrainResult:
    """2-5. What the model sees, what it learns, how good it is: a bundle, written and registered, and its table.

    Args:
        model: A shelf name or dotted path in place of ``[model]`` (its extra must then be there).
    """
    voice = voice or NullProgress()
    check_model(model or project.config.model.name)
    started, begin = datetime.now(UTC), time.monotonic()
    data = load(project)
    run = parts.open_run(project, started)

    tables = parts.build_tables(project, data)  # 2. features
    arrays = parts.validation_arrays(project, tables, data)
    report_features(voice, tables, arrays)

    learned = parts.fit_models(project, tables, arrays, data, run, voice, model)  # 3. learn
    table = parts.evaluate_on_test(project, [learned.bundle], data, voice)  # 4. evaluate
    if project.config.train.refit:
        learned = parts.refit(project.config, learned, data, run, voice)
    bundle = parts.save_and_register(project, learned, table, data, run, started)  # 5. bundle
    report_bundle(voice, bundle)
    return TrainResult(bundle, table, run.name, time.monotonic() - begin)
