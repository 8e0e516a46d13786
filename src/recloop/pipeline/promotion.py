"""Gate at the promotion of a trained bundle, on moments unknown to both bundles.

`train` holds out the moments after its cut (unless it refits), and live may have learned those. So the new rows are those
unknown to both: held out from both, or received after both were fitted. Without such rows, the holdout users' moments
after the candidate's cut replace them. No training loss used these, but live has counted them. Without any of them, the
gate passes weakly and uses only checks without targets: latency, cold coverage, verification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from recloop.bundle import Bundle
from recloop.evaluation import paired
from recloop.evaluation.paired import QueryResults
from recloop.evaluation.queries import Queries, make_queries
from recloop.features.state_history import StateHistory
from recloop.files import JsonTree
from recloop.monitoring import verify
from recloop.pipeline import model_fitting
from recloop.pipeline.evidence import broken_golden, holdout_users, pair_scores
from recloop.pipeline.gate_rows import GateRows
from recloop.progress import NullProgress, Progress
from recloop.project import Project
from recloop.recommend import loading
from recloop.recommend.catalog import Catalog
from recloop.records import STAMP
from recloop.release import gate, gate_result, transitions
from recloop.release.gate import GateInputs
from recloop.release.gate_result import GateResult


def promote(
    project: Project, bundle: str, to: str = "", reason: str = "", progress: Progress | None = None, at: int = 0
) -> JsonTree:
    """Promote a registered bundle; run its gate first if it has not run.

    See `recloop.release.transitions.promote`.

    Raises:
        UserError, BundleError, Refused: see `recloop.release.transitions.promote`; also Refused if the gate fails.
    """
    control = project.open_control()
    transitions.validate(project, control, bundle, to)
    gates = None
    if transitions.needs_gate(control, bundle):
        progress = progress or NullProgress()
        results = run_promotion_gates(project, project.load_bundle(bundle), project.load_bundle())
        for result in results:
            progress.say("gate", result.line())
        gates = gate_result.gates_to_json(results)
    return transitions.promote(project, bundle, to, reason, at=at, gates=gates)


@dataclass(frozen=True)
class BundleUnderTest:
    """Bundle of the comparison, and the states of the users of its queries."""

    bundle: Bundle
    timeline: StateHistory
    catalog: Catalog

    @classmethod
    def of(cls, bundle: Bundle, queries: Queries, rows: GateRows) -> BundleUnderTest:
        """Read the rows of the queries' users."""
        timeline = StateHistory(rows.of_users(queries.users, bundle.spec), rows.versions_of(queries.users))
        return cls(bundle, timeline, rows.catalog)

    def ask(self, queries: Queries) -> QueryResults:
        return paired.answer(self.bundle, queries, self.timeline, self.catalog, model_fitting.THREADS)


@dataclass(frozen=True)
class GateQueries:
    """Queries of the comparison and their source."""

    source: Literal["new", "holdout", "latest"]
    queries: Queries

    @classmethod
    def choose(cls, rows: GateRows, candidate: Bundle, live: Bundle) -> GateQueries:
        """Choose moments new to both bundles, else of holdout users, else the newest."""
        spec, learned = candidate.spec, candidate.learned
        users = rows.users_of(learned.new_candidates & live.learned.new_candidates)
        queries = rows.queries(users, spec, learned.new_moments & live.learned.new_moments)
        if len(queries):
            return cls("new", paired.subsample(queries))
        queries = rows.queries(holdout_users(rows.users_of(learned.new_candidates)), spec, learned.new_moments)
        if len(queries):
            return cls("holdout", paired.subsample(queries))
        newest = rows.of_users(rows.newest_users(paired.MAX_QUERIES), spec).sort(STAMP).tail(paired.MAX_QUERIES)
        return cls("latest", paired.subsample(make_queries(newest, "successive"), paired.TIMED_QUERIES))


def run_promotion_gates(project: Project, candidate: Bundle, live: Bundle) -> list[GateResult]:
    """Return the gates of a bundle against live in display order.

    Golden lists and finite weights are last.
    """
    rows = GateRows.open(project)
    chosen = GateQueries.choose(rows, candidate, live)
    queries = chosen.queries
    candidate_test = BundleUnderTest.of(candidate, queries, rows)
    candidate_results = candidate_test.ask(queries)
    live_results = BundleUnderTest.of(live, queries, rows).ask(queries)
    pairs = pair_scores(candidate_results, live_results)
    no_pairs = pairs.select(candidate_results.cold & ~candidate_results.cold)
    slices = {
        "repeat": pair_scores(candidate_results, live_results, "repeat"),
        "explore": pair_scores(candidate_results, live_results, "explore"),
    }
    evidence = GateInputs(
        new_rows=pairs if chosen.source == "new" else no_pairs,
        holdout_users=pairs if chosen.source == "holdout" else None,
        slices={} if chosen.source == "latest" else {"cold": pairs.select(candidate_results.cold), **slices},
        unexplained=verify.verify(project, loaded=[candidate, live])["unexplained"]
        if loading.has_decisions(project)
        else None,
        latency=paired.latency((candidate, live), queries, candidate_test.timeline, rows.catalog)
        if len(queries)
        else None,
        cold_coverage=(candidate_results.cold_coverage, live_results.cold_coverage),
    )
    return [
        *gate.gates_before_trial(
            gate.evaluate_gates(evidence, project.config.release.gates, project.config.train.seed)
        ),
        gate.at_most("golden", broken_golden(candidate), 0, "golden queries that differ"),
        gate.at_most("finite", _not_finite(candidate), 0, "arrays with a non-finite number"),
    ]


def _not_finite(bundle: Bundle) -> int:
    floats = (array for array in bundle.arrays.values() if np.issubdtype(array.dtype, np.floating))
    return sum(not np.isfinite(array).all() for array in floats)
