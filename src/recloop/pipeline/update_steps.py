"""Steps 1 to 5 of an update; each writes to the run's folder and the journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import polars as pl

from recloop.bundle import Bundle
from recloop.data.append import append
from recloop.data.labelled_log import TRAINING_COLUMNS
from recloop.data.prepare import split_log
from recloop.evaluation import paired
from recloop.evaluation.paired import LossEstimate
from recloop.evaluation.queries import Queries, make_queries
from recloop.features.learned_range import FIRST_SEQ, nothing_held
from recloop.features.log_end import end_of
from recloop.monitoring import verify
from recloop.pipeline import model_fitting
from recloop.pipeline.candidate import (
    WarmStart,
    build_child,
    load_candidate,
    load_train_state,
    tag_child,
    warm_candidate,
    with_golden,
    write,
)
from recloop.pipeline.evidence import (
    candidate_table,
    final_evidence,
    holdout_queries,
    inherited_windows,
    load_window,
    pair_scores,
    queries_judged_before,
    save_window,
    window_scores,
)
from recloop.pipeline.looks import Look, Looks, is_decided
from recloop.pipeline.update_run import UpdateRun
from recloop.recommend import loading
from recloop.records import SEQ, STAMP
from recloop.release import gate, gate_result, input_check
from recloop.release.gate import GateInputs, PairedScores
from recloop.release.gate_result import GateResult
from recloop.storage.data_manifest import WindowLoss
from recloop.storage.identities import IDENTIFIED
from recloop.storage.retractions import retracted_at
from recloop.training.dataset import make_tables
from recloop.training.kept_models import has_network

MAX_CHECKED_QUERIES = 300
"""Most queries per window of the input check."""
NO_NEW_MOMENTS_NOTE = (
    "weak: nothing to judge, because no moment with a positive is newer than live's training data; the rows are learned"
)


def collect(run: UpdateRun) -> None:
    """Step 1. Collect new rows: label, archive and split them in the run's folder."""
    if run.journal.is_done("collect"):
        return
    with run.project.open_log() as log:
        pending = run.project.open_control().pending()
        # A row that moves to a user after ``until`` is stored again after it too, so this run keeps it.
        rows = [row for row in log.retractions() if row.rule != IDENTIFIED or row.seq <= run.until]
        retracted = sorted(retracted_at([*rows, *(row.retraction for row in pending)]))
        result = append(
            run.project,
            log,
            run.until,
            run.live_range,
            run.spec,
            run.folder / "data",
            retracted,
        )
    run.journal.record("collect", **msgspec.to_builtins(result))
    removed = ", ".join(f"{rule} {count:,}" for rule, count in result.removed.items()) or "none"
    run.progress.say(
        "collect",
        f"seq {run.watermark + 1:,} to {run.until:,}: {result.read:,} rows = {result.kept:,} kept + {removed} removed; "
        f"{result.new_users:,} new users, {result.new_items:,} new items",
    )
    if result.late:
        run.progress.say(
            "collect",
            f"{result.late:,} of {result.late + result.fresh:,} new moments are older than the end of live's training data; "
            "they are used for training, not for the gate",
        )
    rules = ", ".join(f"{rule.rule} {rule.means} {rule.weight:+g}: {rule.events:,}" for rule in result.signals)
    run.progress.say("collect", f"rows by rule of [events]: {rules or 'none'}")


def check(run: UpdateRun) -> None:
    """Step 2. Check that the new rows resemble earlier ones and suffice for the gates."""
    check_input(run)
    check_size(run)


def check_input(run: UpdateRun) -> None:
    """Compare live's loss on the new rows with earlier windows; block an outlier."""
    if run.journal.is_done("check"):
        return
    live_windows, recipe_windows = known_windows(run)
    # Late rows are excluded: live has learned the rows that follow them.
    events = run.data.where(pl.col(STAMP) >= run.window.cut, TRAINING_COLUMNS)
    events = events.filter(run.live_range.new_moments).with_columns(first=FIRST_SEQ)
    incoming_queries = make_queries(events.filter(pl.col("first") > run.watermark), "successive")
    if not run.config.update.input_check or not len(incoming_queries):
        note = "weak: nothing to compare" if run.config.update.input_check else "weak: update.input_check is off"
        run.journal.record(
            "check",
            windows=_json_of(recipe_windows + live_windows),
            gates=gate_result.gates_to_json([GateResult(gate_result.INPUT_GATE, None, 0.0, True, note=note)]),
        )
        return
    earlier_queries = make_queries(events.filter(pl.col("first") <= run.watermark), "successive")
    incoming_queries = paired.subsample(incoming_queries, MAX_CHECKED_QUERIES)
    earlier_windows = (
        paired.windows(earlier_queries, input_check.MAX_WINDOWS, len(incoming_queries)) if len(earlier_queries) else []
    )
    *windows, incoming = _answered_windows(run, [*earlier_windows, incoming_queries])
    if len(windows) < input_check.MIN_WINDOWS:
        windows = live_windows + windows
    inherited = len(windows) < input_check.MIN_WINDOWS  # a new live bundle has no windows yet
    if inherited:
        windows = recipe_windows + windows
    result = input_check.input_check(
        LossEstimate.from_window(incoming), [LossEstimate.from_window(window) for window in windows]
    )
    if inherited and recipe_windows and not result.weak:
        result = replace(result, note=f"with the windows of its recipe: {result.note}")
    if (incoming.queries or 0) >= input_check.MIN_QUERIES:
        windows = [*windows, incoming]
    kept_windows = _json_of(windows[-input_check.MAX_WINDOWS :])
    run.journal.record("check", windows=kept_windows, gates=gate_result.gates_to_json([result]))
    run.progress.say("check", result.line())


def _json_of(windows: Sequence[WindowLoss]) -> list[Any]:
    return [window.to_json() for window in windows]


def known_windows(run: UpdateRun) -> tuple[list[WindowLoss], list[WindowLoss]]:
    """Return the earlier windows of live, and those of other bundles with its recipe.

    Retention removes old parents, so the recipe decides; records without one count if their bundle is a parent.
    """
    judged_windows = [window for window in run.data.manifest.windows or () if window.queries is not None]
    lineage = loading.lineage(run.project, run.live)
    recipe = run.live.manifest.recipe
    live_windows = [window for window in judged_windows if window.bundle == run.live.id]
    other_windows = [window for window in judged_windows if window.bundle != run.live.id]
    return live_windows, [
        window
        for window in other_windows
        if (window.bundle in lineage if window.recipe is None else window.recipe == recipe)
    ]


def _answered_windows(run: UpdateRun, windows: Sequence[Queries]) -> list[WindowLoss]:
    """Return live's loss on each window as ``data/manifest.json`` stores it.

    The last window has the new rows.
    """
    timeline = run.states_of([user for queries in windows for user in queries.users])
    losses = paired.window_losses(run.live, windows, timeline, run.catalog, model_fitting.THREADS)
    to_seqs = [run.watermark] * (len(windows) - 1) + [run.until]
    recipe = run.live.manifest.recipe
    return [
        WindowLoss(to_seq, one.loss, run.live.id, one.queries, one.spread, recipe)
        for to_seq, one in zip(to_seqs, losses, strict=True)
    ]


def check_size(run: UpdateRun) -> None:
    """Check that the window has enough queries; otherwise wait without training."""
    if run.journal.is_done("enough"):
        return
    users = np.array(run.test_queries.users, dtype=object)
    late_alone = not len(users) and run.window.late > 0
    result = None
    if run.refreshes and not late_alone:
        result = gate.check_window_size(users, queries_judged_before(run), run.config.release.gates)
    run.journal.record("enough", gates=gate_result.gates_to_json([result] if result else []))
    if result is not None:
        run.progress.say("check", result.line())


def train_candidate(run: UpdateRun) -> None:
    """Step 3. Train the candidate: live and all new rows except the test moments."""
    if run.journal.is_done("learn"):
        return
    run.candidate = _full_candidate(run) if run.full else warm_candidate(run)
    folder = run.folder / "candidate"
    if run.full or has_network(run.candidate):
        run.candidate = write(run, run.candidate, folder)
    else:  # a resumed run fits the counts again, which costs less than the files of each update
        folder.mkdir(parents=True, exist_ok=True)
    run.journal.record("learn", bundle=run.candidate.id)


def _full_candidate(run: UpdateRun) -> Bundle:
    """Train a candidate from scratch."""
    data, split = run.data, split_log(run.data)
    rows = pl.concat([split.train, split.valid]).sort(SEQ)
    tables = make_tables(run.spec, rows, run.window.cut, data.items, data.users, run.live.items.ids.ids)
    arrays = model_fitting.validation_arrays(run.project, tables, split)
    learned = model_fitting.fit_models(run.project, tables, arrays, split, run.folder, run.progress, None)
    return tag_child(run, learned.bundle, "full")


def run_gates(run: UpdateRun) -> None:
    """Step 4. Run the gates: compare both bundles on new rows and holdout users."""
    if run.journal.is_done("judge"):
        return
    candidate = load_candidate(run)
    window = run.window
    recipe = str(candidate.manifest.recipe)
    all_queries = run.test_queries
    queries, holdout = paired.subsample(all_queries), holdout_queries(run)
    windows = inherited_windows(run)
    looks = Looks(run, candidate, queries, holdout)
    further: Look | None = looks.first()
    known = replace(_without_answers(run, candidate, queries), earlier=window_scores(windows, recipe))
    while further is not None:
        look, evidence = further, _with_answers(known, further)
        results = gate.evaluate_gates(evidence, run.config.release.gates, run.seed)
        further = None if is_decided(results) else looks.further(results)
    if not run.refreshes:
        results = gate.gates_before_trial(results)
    if not len(queries):
        results = [
            replace(result, note=NO_NEW_MOMENTS_NOTE) if result.name == gate_result.NEW_ROWS else result
            for result in results
        ]
    save_window(run, evidence.new_rows, windows, recipe)
    facts = {
        "cut": window.cut, "window_queries": len(all_queries),
        "new_queries": len(look.new_rows), "holdout_queries": len(look.holdout),
    }  # fmt: skip
    run.journal.record("judge", gates=gate_result.gates_to_json(results), **facts)
    for result in results:
        run.progress.say("gate", result.line())


def _without_answers(run: UpdateRun, candidate: Bundle, queries: Queries) -> GateInputs:
    """Return the evidence that is the same in every look."""
    timed = paired.subsample(queries, paired.TIMED_QUERIES)
    timeline = run.states_of(timed.users)
    no_scores = np.zeros(0)
    return GateInputs(
        new_rows=PairedScores(no_scores, no_scores, no_scores),
        unexplained=_unexplained(run),
        latency=paired.latency((candidate, run.live), timed, timeline, run.catalog, gate.FAST_SECONDS / 2)
        if len(timed)
        else None,
    )


def _unexplained(run: UpdateRun) -> int | None:
    """Return the unexplained decisions of the newest ones; None without decisions."""
    if not loading.has_decisions(run.project):
        return None
    return int(verify.verify(run.project, loaded=[run.live])["unexplained"])


def _with_answers(evidence: GateInputs, look: Look) -> GateInputs:
    """Add the scores of a look."""
    candidate, live = look.new_rows.candidate, look.new_rows.live
    pairs = pair_scores(candidate, live)
    return replace(
        evidence,
        new_rows=pairs,
        holdout_users=pair_scores(look.holdout.candidate, look.holdout.live) if len(look.holdout) else None,
        slices={
            "cold": pairs.select(candidate.cold),
            "repeat": pair_scores(candidate, live, "repeat"),
            "explore": pair_scores(candidate, live, "explore"),
        },
        cold_coverage=(candidate.cold_coverage, live.cold_coverage),
        cold_users=len(np.unique(candidate.users[candidate.cold])),
    )


def train_final(run: UpdateRun) -> None:
    """Step 5. Train the final bundle: add the test moments by the same recipe."""
    if run.journal.is_done("finish"):
        return
    candidate = load_candidate(run)
    data = run.data
    cut = end_of(data.events, STAMP) + 1
    warm_start = (
        None if run.full else WarmStart(load_train_state(candidate, run.folder / "candidate"), candidate.learned)
    )
    child = build_child(run, candidate, data.events, cut, nothing_held(data.events), warm_start, run.folder / "rest")
    child = replace(child, metrics=candidate_table(run, candidate), window=load_window(run))
    final = write(run, with_golden(run, child), run.folder / "bundles")
    results = final_evidence(run, candidate, final)
    run.journal.record("finish", bundle=final.id, gates=gate_result.gates_to_json(results))
    for result in results:
        run.progress.say("gate", result.line())
