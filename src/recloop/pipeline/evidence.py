"""Gate evidence of an update: windows, tables and checks stored with the child.

A child's ``window.parquet`` has the numbers of its window of new rows and of up to five earlier ones, copied from live. Thus
each bundle has the windows of its lineage, and the next update reads them there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from recloop import bundle as bundles
from recloop.bundle import Bundle
from recloop.bundle.checks import WINDOW_SCHEMA
from recloop.errors import BundleError
from recloop.evaluation import paired
from recloop.evaluation.evaluate import evaluate
from recloop.evaluation.paired import QueryResults
from recloop.evaluation.queries import Queries, make_queries
from recloop.files import JsonTree, replacing
from recloop.pipeline import model_fitting
from recloop.pipeline.journal import Journal
from recloop.pipeline.update_run import UpdateRun
from recloop.recommend.golden import check_golden
from recloop.records import DAY, STAMP, USER_ID, are_holdout_users, hash_unit_interval, is_guest
from recloop.release import gate
from recloop.release.gate import PairedScores
from recloop.release.gate_result import GateResult

HOLDOUT_DAYS = 90
MAX_OVERLAP_QUERIES = 100
"""Queries whose lists are compared before and after the last quarter."""
MAX_TABLE_QUERIES = 1_000
"""Test moments of the table of an update; `recloop evaluate` uses all."""


class EvaluationSplit(NamedTuple):
    """Test moments and user states of an evaluation."""

    test: pl.DataFrame
    events: pl.DataFrame
    users: pl.DataFrame | None


def pair_scores(candidate: QueryResults, live: QueryResults, metric: str = "ndcg") -> PairedScores:
    """Pair a metric of both bundles over the same queries; users are hashes, not ids."""
    users = np.array([hash_unit_interval("window", user) for user in candidate.users.tolist()])
    return PairedScores(users, getattr(candidate, metric), getattr(live, metric))


def inherited_windows(run: UpdateRun) -> pl.DataFrame:
    """Return windows of live and its parents, oldest first; none for a full retrain."""
    windows = None if run.full else bundles.load_window(run.project.bundles / run.live.id)
    if windows is None or "recipe" not in windows.columns:  # without a recipe it cannot be pooled
        return pl.DataFrame(schema=WINDOW_SCHEMA)
    return windows


def window_scores(windows: pl.DataFrame, recipe: str) -> list[PairedScores]:
    """Return a lineage's windows that were judged with this recipe, oldest first."""
    partitions = windows.filter(pl.col("recipe") == recipe).partition_by("to_seq", maintain_order=True)
    return [PairedScores(*(window[name].to_numpy() for name in ("user", "candidate", "live"))) for window in partitions]


def save_window(run: UpdateRun, scores: PairedScores, windows: pl.DataFrame, recipe: str) -> None:
    """Append this window to the newest of its lineage in the run's folder."""
    columns = {
        "to_seq": np.full(len(scores), run.until), "user": scores.users,
        "candidate": scores.candidate, "live": scores.live,
        "recipe": [recipe] * len(scores),
    }  # fmt: skip
    seqs = windows["to_seq"].unique().sort().tail(gate.MAX_POOLED_WINDOWS - 1)
    frame = pl.concat(
        [windows.filter(pl.col("to_seq").is_in(seqs.implode())), pl.DataFrame(columns, schema=WINDOW_SCHEMA)]
    )
    with replacing(run.folder / "candidate" / "window.parquet") as file:
        frame.write_parquet(file)


def queries_judged_before(run: UpdateRun) -> int:
    """Return the queries that an earlier, waiting update judged with the same live."""
    for journal in Journal.ended(run.project.runs):
        if any(journal.head.get(key) != run.journal.head[key] for key in ("live", "mode", "settings")):
            return 0
        if journal.verdict == "waiting" and journal.is_done("judge"):
            return int(journal.facts("judge").get("window_queries", 0))
    return 0


def load_window(run: UpdateRun) -> pl.DataFrame:
    """Read the result of `save_window`."""
    return pl.read_parquet(run.folder / "candidate" / "window.parquet")


def candidate_table(run: UpdateRun, candidate: Bundle) -> JsonTree:
    """Evaluate the interim candidate on new rows, for metrics.json.

    The child has learned these rows, so its numbers on them would be training numbers.
    """
    data = run.data
    queries = paired.subsample(run.test_queries, MAX_TABLE_QUERIES)
    if not len(queries):
        return {}
    keys = pl.DataFrame({USER_ID: queries.users, STAMP: queries.now}, schema={USER_ID: pl.String, STAMP: pl.Int64})
    rows = data.test.join(keys, on=[USER_ID, STAMP], how="semi")
    test = EvaluationSplit(rows, rows, data.users)  # the states are given
    facts = {"split_hash": data.manifest.split_hash, "fingerprint": data.manifest.fingerprint}
    timeline = run.states_of(queries.users)
    table = evaluate([candidate], test, run.catalog, run.config, facts, model_fitting.THREADS, timeline=timeline)
    metrics = table.bundle_metrics()
    window = {"from_seq": run.live_range.until_seq + 1, "to_seq": run.until, "from": candidate.cut}
    return {**metrics, "protocol": {**metrics["protocol"], "set": "new_rows", "window": window}}


def holdout_queries(run: UpdateRun) -> Queries:
    """Return the holdout users' moments in the 90 days before live's cut.

    Both bundles have counted them, and no training loss used them. Rows that arrived later are excluded, because only
    the candidate has counted them.
    """
    span = pl.col(STAMP).is_between(run.live.cut - HOLDOUT_DAYS * DAY, run.live.cut, closed="left")
    rows = run.data.events.filter(span)
    rows = rows.filter(holdout_rows(rows))
    return paired.subsample(make_queries(rows.filter(run.live_range.rows), "successive"))


def holdout_rows(events: pl.DataFrame) -> pl.Expr:
    """Return the rows of the holdout users, which no training loss used."""
    return pl.col(USER_ID).is_in(holdout_users(events[USER_ID].unique().sort()).implode())


def holdout_users(users: pl.Series) -> pl.Series:
    """Select the holdout users among distinct ids."""
    selected = users.filter(pl.Series(are_holdout_users(users.to_list())))
    return pl.Series(USER_ID, [user for user in selected.to_list() if not is_guest(user)], dtype=pl.String)


def broken_golden(bundle: Bundle) -> int:
    """Return 1 if a golden list differs from the bundle's answer, else 0."""
    try:
        check_golden(bundle)
    except BundleError:
        return 1
    return 0


def final_evidence(run: UpdateRun, candidate: Bundle, final: Bundle) -> list[GateResult]:
    """Return the gates that check the child after the last quarter."""
    written = bundles.load_written(run.folder / "bundles" / final.id)
    golden_failures = broken_golden(written)
    lists: list[Sequence[Sequence[str]]] = [[], []]
    if not run.full:
        queries = paired.subsample(run.test_queries, MAX_OVERLAP_QUERIES)
        if len(queries):
            timeline = run.states_of(queries.users)
            both = paired.answer_each((final, candidate), queries, timeline, run.catalog)
            lists = [results.lists for results in both]
    loss_log = run.folder / "rest" / "log.jsonl"
    losses = (
        [json.loads(line)["loss"] for line in loss_log.read_text("utf-8").splitlines()] if loss_log.exists() else []
    )
    return gate.final_gates(losses, golden_failures, lists[0], lists[1])
