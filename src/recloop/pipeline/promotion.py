"""Gate at the promotion of a trained bundle, on moments unknown to both bundles.

`train` holds out the moments after its cut (unless it refits), and live may have learned those. So the new rows are those
unknown to both: held out from both, or received after both were fitted. Without such rows, the holdout users' moments
after the candidate's cut replace them. No training loss used these, but live has counted them. Without any of them, the
gate passes weakly and uses only checks without targets: latency, cold coverage, verification.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from recloop.bundle import Bundle
from recloop.data.clean import duplicate_rows
from recloop.evaluation import paired
from recloop.evaluation.paired import QueryResults
from recloop.evaluation.queries import Queries, make_queries
from recloop.features.labels import EventLabeler
from recloop.features.moments import moment_stamps
from recloop.features.spec import FeatureSpec
from recloop.features.state_history import StateHistory
from recloop.files import JsonTree
from recloop.monitoring import verify
from recloop.pipeline import training_steps
from recloop.pipeline.evidence import broken_golden, holdout_rows, pair_scores
from recloop.progress import NullProgress, Progress
from recloop.project import Project
from recloop.recommend import loading
from recloop.recommend.catalog import Catalog
from recloop.records import EVENT_SCHEMA, RULE, SEQ, STAMP
from recloop.release import gate, gate_result, transitions
from recloop.release.gate import GateInputs
from recloop.release.gate_result import GateResult
from recloop.storage.retractions import retracted_at


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
class EvaluationData:
    """Valid rows of archive and log, and the other inputs of a list."""

    rows: pl.DataFrame
    users: pl.DataFrame | None
    catalogue: Catalog

    @classmethod
    def load(cls, project: Project) -> EvaluationData:
        """Read the valid rows; exclude repeats that an update would retract."""
        archive = project.open_archive()
        with project.open_log() as log:
            log_rows = log.events(after=archive.watermark).filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)
            retracted = pl.Series(sorted(retracted_at(log.retractions())), dtype=pl.Int64)
            users = log.users(after=archive.watermark)
            items = [archive.items(), log.items(after=archive.watermark)]
        rows = pl.concat([archive.events(), log_rows]).filter(~pl.col(SEQ).is_in(retracted.implode()))
        if project.config.clean.duplicates == "exact":
            rows = rows.filter(~pl.col(SEQ).is_in(duplicate_rows(rows).implode()))
        archived_users = archive.users()
        return cls(
            rows, users if archived_users is None else pl.concat([archived_users, users]), Catalog.from_frames(items)
        )

    def labelled(self, spec: FeatureSpec) -> pl.DataFrame:
        """Label the rows by a spec and add the stamp of their moment."""
        return moment_stamps(EventLabeler.from_spec(spec).label(self.rows))


@dataclass(frozen=True)
class BundleUnderTest:
    """Bundle of the comparison with its data."""

    bundle: Bundle
    data: EvaluationData

    @cached_property
    def timeline(self) -> StateHistory:
        return StateHistory(self.data.labelled(self.bundle.spec), self.data.users)

    @property
    def unseen(self) -> pl.Expr:
        """Return the rows of moments that this bundle has not learned."""
        return self.bundle.learned.new_moments

    def ask(self, queries: Queries) -> QueryResults:
        return paired.answer(self.bundle, queries, self.timeline, self.data.catalogue, training_steps.THREADS)


def run_promotion_gates(project: Project, candidate: Bundle, live: Bundle) -> list[GateResult]:
    """Return the gates of a bundle against live in display order.

    Golden lists and finite weights are last.
    """
    data = EvaluationData.load(project)
    candidate_test = BundleUnderTest(candidate, data)
    live_test = BundleUnderTest(live, data)
    events = data.labelled(candidate.spec)
    new_queries = paired.subsample(make_queries(events.filter(candidate_test.unseen & live_test.unseen), "successive"))
    holdout = paired.subsample(make_queries(events.filter(candidate_test.unseen & holdout_rows(events)), "successive"))
    latest = paired.subsample(
        make_queries(events.sort(STAMP).tail(paired.MAX_QUERIES), "successive"), paired.TIMED_QUERIES
    )
    targets = next((queries for queries in (new_queries, holdout) if len(queries)), None)
    queries = latest if targets is None else targets
    candidate_results = candidate_test.ask(queries)
    live_results = live_test.ask(queries)
    pairs = pair_scores(candidate_results, live_results)
    no_pairs = pairs.select(candidate_results.cold & ~candidate_results.cold)
    slices = {
        "repeat": pair_scores(candidate_results, live_results, "repeat"),
        "explore": pair_scores(candidate_results, live_results, "explore"),
    }
    evidence = GateInputs(
        new_rows=pairs if targets is new_queries else no_pairs,
        holdout_users=pairs if targets is holdout else None,
        slices={} if targets is None else {"cold": pairs.select(candidate_results.cold), **slices},
        unexplained=verify.verify(project)["unexplained"] if loading.has_decisions(project) else None,
        latency=paired.latency((candidate, live), queries, candidate_test.timeline, data.catalogue)
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
