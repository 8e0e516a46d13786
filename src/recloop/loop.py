"""Table of contents of the loop: one `first_run`, then repeated `update` calls.

    first run: 1 collect -> 2 features -> 3 learn -> 4 evaluate -> 5 bundle -> 6 make live
    update:    1 collect -> 2 check -> 3 train candidate -> 4 run gates -> 5 train final -> 6 publish

Serving (`recloop.serve`) and monitoring (`recloop.monitoring`) run between updates. `recloop.pipeline` holds the steps.
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
from recloop.pipeline import model_fitting, new_files, publish, redaction, step_reports, training_steps, update_steps
from recloop.pipeline import restart as restarts
from recloop.pipeline import update_run as runs
from recloop.pipeline.retention import apply_retention
from recloop.pipeline.update_record import recorded
from recloop.pipeline.update_run import UpdateResult
from recloop.progress import NullProgress, Progress
from recloop.project import Project
from recloop.recommend.loading import has_log_rows
from recloop.storage import locks


@dataclass(frozen=True)
class TrainResult:
    """Registered bundle and its evaluation."""

    bundle: Bundle
    table: EvaluationTable  # on the test split
    run: str  # name of the run folder
    seconds: float


@dataclass(frozen=True)
class FirstRun:
    """Data, bundle and evaluation of a first run."""

    prepared: PrepareResult
    bundle: Bundle
    table: EvaluationTable
    seconds: float


@recorded
def first_run(project: Project, progress: Progress | None = None, verb: str = "update") -> FirstRun:
    """Train the first bundle of a project and make it live.

    Raises:
        Locked: another run works in this folder.
        UserError: the log or the configuration is invalid, or the model's extra is not installed.
    """
    check_model(project.config.model.name)
    with locks.run_lock(project.root, verb):
        begin = time.monotonic()
        prepared = collect(project, progress)  # 1. collect
        trained = train(project, progress)  # 2-5. features, learn, evaluate, bundle
        training_steps.make_live(project, trained.bundle, by=f"recloop {verb}", reason="first run")  # 6. make live
        return FirstRun(prepared, trained.bundle, trained.table, time.monotonic() - begin)


@recorded
def update(
    project: Project, progress: Progress | None = None, full: bool = False, reset: bool = False, restart: bool = False
) -> UpdateResult:
    """Train a candidate on the new rows and publish it if it passes the gates.

    Args:
        full: Train from scratch; the item table still starts with the ids of live. reset: Use a fresh optimizer.
        restart: Start a new first run, as changed settings of the data do; posted rows are kept.

    Raises:
        Locked, UserError: as in `first_run`; UserError also without a live bundle or enough free disk space.
    """
    check_model(project.config.model.name)
    with locks.run_lock(project.root, "update"), runs.explain_disk_full(project):
        begin, progress = time.monotonic(), progress or NullProgress()
        restarts.finish_interrupted(project, progress)
        redaction.redact(project, progress)
        reason = restarts.reason(project, restart)
        if reason:
            restarts.check_files_complete(project, restart)
            return _restart(project, progress, reason, begin)
        new_files.import_new_files(project, progress)
        run = runs.start_or_resume(project, full, reset, progress)
        if run is None:
            apply_retention(project, progress)
            return runs.nothing_new(project, restarts.differing(project), time.monotonic() - begin)
        update_steps.collect(run)  # 1. collect: the rows since the last update
        update_steps.check(run)  # 2. check: are they like earlier rows, and enough to judge?
        if run.verdict == "registered":
            update_steps.train_candidate(run)  # 3. train candidate: on all but the newest rows
            update_steps.run_gates(run)  # 4. run gates: candidate and live on the newest rows
        if run.verdict == "registered":
            update_steps.train_final(run)  # 5. train final: the candidate on the newest rows too
        placed = publish.publish_update(run)  # 6. publish: bundle, states and data, or nothing
        apply_retention(project, progress)
        return run.result(placed, time.monotonic() - begin)


def _restart(project: Project, progress: Progress, reason: str, begin: float) -> UpdateResult:
    """Stage a new first run and move it into the project (`recloop.pipeline.restart`)."""
    progress.say("update", f"a new first run ({reason})")
    with restarts.exclusive(project, reason), restarts.staged(project) as stage:
        prepared = collect(stage.project, progress, stage.posted)  # 1. collect
        trained = train(stage.project, progress)  # 2-5. features, learn, evaluate, bundle
        restarts.commit(project, stage, trained.bundle.id, reason)  # 6. make live
    return restarts.result(stage, prepared, trained.bundle.id, progress, time.monotonic() - begin)


def collect(project: Project, progress: Progress | None = None, posted: PostedRows | None = None) -> PrepareResult:
    """1. Read, clean and split the log; write ``data/`` and the states at its end.

    ``posted``: posted rows of the earlier data, which a new first run renumbers.
    """
    prepared = prepare(project, posted is None and has_log_rows(project), posted)
    training_steps.init_log_and_states(project, prepared, load(project))
    step_reports.report_data(progress or NullProgress(), prepared)
    return prepared


def train(project: Project, progress: Progress | None = None, model: str | None = None) -> TrainResult:
    """2-5. Build features, fit the models, evaluate them, and register the bundle.

    ``model``: a model name or dotted path in place of ``[model]``; its extra must be installed.
    """
    progress = progress or NullProgress()
    check_model(model or project.config.model.name)
    started, begin = datetime.now(UTC), time.monotonic()
    data = load(project)
    training_steps.check_prepared(project, data)
    run = training_steps.open_run(project, started)
    tables = model_fitting.build_tables(project, data)  # 2. features
    arrays = model_fitting.validation_arrays(project, tables, data)
    step_reports.report_features(progress, tables, arrays)
    learned = model_fitting.fit_models(project, tables, arrays, data, run, progress, model)  # 3. learn
    table = training_steps.evaluate_on_test(project, [learned.bundle], data, progress)  # 4. evaluate
    if project.config.train.refit:
        learned = model_fitting.refit(project.config, learned, data, run, progress)
    bundle = training_steps.save_and_register(project, learned, table, data, run, started)  # 5. bundle
    step_reports.report_bundle(progress, bundle)
    return TrainResult(bundle, table, run.name, time.monotonic() - begin)
