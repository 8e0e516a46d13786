"""Steps 1 to 5 of an update; each writes to the run's folder and the journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import polars as pl

from recloop.data.append import append
from recloop.evaluation import paired
from recloop.evaluation.paired import LossEstimate
from recloop.evaluation.queries import Queries, make_queries
from recloop.features.labels import EventLabeler
from recloop.features.learned_range import FIRST_SEQ, nothing_held
from recloop.features.log_end import end_of
from recloop.monitoring import verify
from recloop.pipeline import training_steps
from recloop.pipeline.candidate import WarmStart, build_child, load_candidate, load_train_state, tag_child, write
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
from recloop.pipeline.update_run import UpdateRun
from recloop.recommend import loading
from recloop.records import SEQ, STAMP
from recloop.release import gate, input_check
from recloop.release.gate import GateInputs, GateResult
from recloop.storage.data_manifest import WindowLoss
from recloop.storage.event_log import retracted_at
from recloop.training.dataset import make_tables

CHECKED = 300
"""Most queries per window of the input check."""
NOTHING_FRESH = (
    "weak: nothing to judge, because no moment with a positive is newer than live's training data; the rows are learned"
)


def collect(run: UpdateRun) -> None:
    """Step 1. Collect new rows: label, archive and split them in the run's folder."""
    if run.journal.is_done("collect"):
        return
    with run.project.open_log() as log:
        waiting = run.project.open_control().pending()
        out = sorted(retracted_at([*log.retractions(), *(row.retraction for row in waiting)]))
        made = append(
            run.project, log, run.until, run.live_range, EventLabeler.from_spec(run.spec), run.folder / "data", out
        )
    run.journal.record("collect", **msgspec.to_builtins(made))
    removed = ", ".join(f"{rule} {count:,}" for rule, count in made.removed.items()) or "none"
    run.progress.say(
        "collect",
        f"seq {run.watermark + 1:,} to {run.until:,}: {made.read:,} rows = {made.kept:,} kept + {removed} removed; "
        f"{made.new_users:,} new users, {made.new_items:,} new items",
    )
    if made.late:
        run.progress.say(
            "collect",
            f"{made.late:,} of {made.late + made.fresh:,} new moments are older than the end of live's training data; "
            "they are used for training, not for the gate",
        )
    rules = ", ".join(f"{rule.rule} {rule.means} {rule.weight:+g}: {rule.events:,}" for rule in made.signals)
    run.progress.say("collect", f"rows by rule of [events]: {rules or 'none'}")


def check(run: UpdateRun) -> None:
    """Step 2. Check that the new rows resemble earlier ones and suffice for the gates."""
    check_input(run)
    check_size(run)


def check_input(run: UpdateRun) -> None:
    """Compare live's loss on the new rows with earlier windows; block an outlier."""
    if run.journal.is_done("check"):
        return
    events = run.data.events
    own, parents = known_windows(run)
    # Late rows are excluded: live has learned the rows that follow them.
    events = events.filter(run.live_range.new_moments & (pl.col(STAMP) >= run.window.cut)).with_columns(first=FIRST_SEQ)
    came = make_queries(events.filter(pl.col("first") > run.watermark), "successive")
    if not run.config.update.input_check or not len(came):
        why = "weak: nothing to compare" if run.config.update.input_check else "weak: update.input_check is off"
        run.journal.record(
            "check",
            windows=_json_of(parents + own),
            gates=gate.gates_to_json([GateResult(gate.INPUT_GATE, None, 0.0, True, note=why)]),
        )
        return
    before = make_queries(events.filter(pl.col("first") <= run.watermark), "successive")
    came = paired.subsample(came, CHECKED)
    past = paired.windows(before, input_check.MAX_WINDOWS, len(came)) if len(before) else []
    windows = [_window(run, one, run.watermark) for one in past]
    if len(windows) < input_check.MIN_WINDOWS:
        windows = own + windows
    inherited = len(windows) < input_check.MIN_WINDOWS  # a new live bundle has no windows yet
    if inherited:
        windows = parents + windows
    incoming = _window(run, came, run.until)
    found = input_check.input_check(
        LossEstimate.from_window(incoming), [LossEstimate.from_window(one) for one in windows]
    )
    if inherited and parents and not found.weak:
        found = replace(found, note=f"with the windows of its recipe: {found.note}")
    if (incoming.queries or 0) >= input_check.MIN_QUERIES:
        windows = [*windows, incoming]
    kept = _json_of(windows[-input_check.MAX_WINDOWS :])
    run.journal.record("check", windows=kept, gates=gate.gates_to_json([found]))
    run.progress.say("check", found.line())


def _json_of(windows: Sequence[WindowLoss]) -> list[Any]:
    return [window.to_json() for window in windows]


def known_windows(run: UpdateRun) -> tuple[list[WindowLoss], list[WindowLoss]]:
    """Return the earlier windows of live, and those of other bundles with its recipe.

    Retention removes old parents, so the recipe decides; records without one count if their bundle is a parent.
    """
    known = [window for window in run.data.manifest.windows or () if window.queries is not None]
    line, recipe = loading.lineage(run.project, run.live), run.live.manifest.recipe
    own = [window for window in known if window.bundle == run.live.id]
    others = [window for window in known if window.bundle != run.live.id]
    return own, [
        window for window in others if (window.bundle in line if window.recipe is None else window.recipe == recipe)
    ]


def _window(run: UpdateRun, queries: Queries, to_seq: int) -> WindowLoss:
    """Return live's loss over these queries in the form of ``data/manifest.json``."""
    lost = paired.window_loss(paired.answer(run.live, queries, *run.evaluation_context).ndcg)
    return WindowLoss(to_seq, lost.loss, run.live.id, lost.queries, lost.spread, run.live.manifest.recipe)


def check_size(run: UpdateRun) -> None:
    """Check that the window has enough queries; otherwise wait without training."""
    if run.journal.is_done("enough"):
        return
    users = np.array(make_queries(run.data.test, "successive").users)
    late_alone = not len(users) and run.window.late > 0
    found = None
    if run.refreshes and not late_alone:
        found = gate.check_window_size(users, queries_judged_before(run), run.config.release.gates)
    run.journal.record("enough", gates=gate.gates_to_json([found] if found else []))
    if found is not None:
        run.progress.say("check", found.line())


def train_candidate(run: UpdateRun) -> None:
    """Step 3. Train the candidate: live and all new rows except the test moments."""
    if run.journal.is_done("learn"):
        return
    data, window = run.data, run.window
    before = pl.concat([data.train, data.valid]).sort(SEQ)
    if run.full:
        tables = make_tables(run.spec, before, window.cut, data.items, data.users, run.live.items.ids.ids)
        arrays = training_steps.validation_arrays(run.project, tables, data)
        learned = training_steps.fit_models(run.project, tables, arrays, data, run.folder, run.progress, None)
        candidate = tag_child(run, learned.bundle, "full")
    else:
        weights = load_train_state(run.live, run.project.bundles, run.reset)
        candidate = build_child(
            run, run.live, before, window.cut, window.held_seq, WarmStart(weights, run.live_range), run.folder
        )
    written = write(run, candidate, run.folder / "candidate")
    run.journal.record("learn", bundle=written.id)


def run_gates(run: UpdateRun) -> None:
    """Step 4. Run the gates: compare both bundles on new rows and holdout users."""
    if run.journal.is_done("judge"):
        return
    candidate, window = load_candidate(run), run.window
    recipe = str(candidate.manifest.recipe)
    timeline, catalogue = run.evaluation_context
    asked = make_queries(run.data.test, "successive")
    new = paired.subsample(asked)
    ours, lives = (
        paired.answer(bundle, new, timeline, catalogue, training_steps.THREADS) for bundle in (candidate, run.live)
    )
    pairs, old = pair_scores(ours, lives), holdout_queries(run)
    forgotten = None
    if len(old):
        mine, theirs = (
            paired.answer(bundle, old, timeline, catalogue, training_steps.THREADS) for bundle in (candidate, run.live)
        )
        forgotten = pair_scores(mine, theirs)
    windows = inherited_windows(run)
    decided = loading.has_decisions(run.project)
    evidence = GateInputs(
        new_rows=pairs,
        earlier=window_scores(windows, recipe),
        holdout_users=forgotten,
        slices={
            "cold": pairs.select(ours.cold),
            "repeat": pair_scores(ours, lives, "repeat"),
            "explore": pair_scores(ours, lives, "explore"),
        },
        unexplained=verify.verify(run.project)["unexplained"] if decided else None,
        latency=paired.latency((candidate, run.live), new, timeline, catalogue) if len(new) else None,
        cold_coverage=(ours.cold_coverage, lives.cold_coverage),
        cold_users=len(np.unique(ours.users[ours.cold])),
    )
    found = gate.evaluate_gates(evidence, run.config.release.gates, run.seed)
    if not run.refreshes:
        found = gate.gates_before_trial(found)
    if not len(new):
        found = [replace(one, note=NOTHING_FRESH) if one.name == gate.NEW_ROWS else one for one in found]
    save_window(run, pairs, windows, recipe)
    facts = {
        "cut": window.cut, "window_queries": len(asked), "new_queries": len(new), "holdout_queries": len(old),
    }  # fmt: skip
    run.journal.record("judge", gates=gate.gates_to_json(found), **facts)
    for one in found:
        run.progress.say("gate", one.line())


def train_final(run: UpdateRun) -> None:
    """Step 5. Train the final bundle: add the test moments by the same recipe."""
    if run.journal.is_done("finish"):
        return
    candidate, data = load_candidate(run), run.data
    cut = end_of(data.events, STAMP) + 1
    start = None if run.full else WarmStart(load_train_state(candidate, run.folder / "candidate"), candidate.learned)
    grown = build_child(run, candidate, data.events, cut, nothing_held(data.events), start, run.folder / "rest")
    grown = replace(grown, metrics=candidate_table(run, candidate), window=load_window(run))
    written = write(run, grown, run.folder / "bundles")
    found = final_evidence(run, candidate, written)
    run.journal.record("finish", bundle=written.id, gates=gate.gates_to_json(found))
    for one in found:
        run.progress.say("gate", one.line())
