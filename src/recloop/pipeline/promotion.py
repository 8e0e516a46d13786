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
from recloop.features.state import StateHistory
from recloop.files import JsonTree
from recloop.monitoring import verify
from recloop.pipeline import training_steps
from recloop.pipeline.evidence import broken_golden, holdout_rows, pair_scores
from recloop.progress import NullProgress, Progress
from recloop.project import Project
from recloop.recommend import loading
from recloop.recommend.catalog import Catalog
from recloop.records import EVENT_SCHEMA, RULE, SEQ, STAMP
from recloop.release import gate, transitions
from recloop.release.gate import GateInputs, GateResult
from recloop.storage.event_log import retracted_at


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
        found = run_promotion_gates(project, project.load_bundle(bundle), project.load_bundle())
        for one in found:
            progress.say("gate", one.line())
        gates = gate.gates_to_json(found)
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
            fresh = log.events(after=archive.watermark).filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)
            out = pl.Series(sorted(retracted_at(log.retractions())), dtype=pl.Int64)
            users, items = log.users(after=archive.watermark), [archive.items(), log.items(after=archive.watermark)]
        rows = pl.concat([archive.events(), fresh]).filter(~pl.col(SEQ).is_in(out.implode()))
        if project.config.clean.duplicates == "exact":
            rows = rows.filter(~pl.col(SEQ).is_in(duplicate_rows(rows).implode()))
        known = archive.users()
        return cls(rows, users if known is None else pl.concat([known, users]), Catalog.from_frames(items))

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
    ours, lives = BundleUnderTest(candidate, data), BundleUnderTest(live, data)
    events = data.labelled(candidate.spec)
    new = paired.subsample(make_queries(events.filter(ours.unseen & lives.unseen), "successive"))
    old = paired.subsample(make_queries(events.filter(ours.unseen & holdout_rows(events)), "successive"))
    newest = paired.subsample(
        make_queries(events.sort(STAMP).tail(paired.MAX_QUERIES), "successive"), paired.TIMED_QUERIES
    )
    targets = next((one for one in (new, old) if len(one)), None)
    asked = newest if targets is None else targets
    mine, theirs = ours.ask(asked), lives.ask(asked)
    pairs = pair_scores(mine, theirs)
    none = pairs.select(mine.cold & ~mine.cold)
    slices = {"repeat": pair_scores(mine, theirs, "repeat"), "explore": pair_scores(mine, theirs, "explore")}
    evidence = GateInputs(
        new_rows=pairs if targets is new else none,
        holdout_users=pairs if targets is old else None,
        slices={} if targets is None else {"cold": pairs.select(mine.cold), **slices},
        unexplained=verify.verify(project)["unexplained"] if loading.has_decisions(project) else None,
        latency=paired.latency((candidate, live), asked, ours.timeline, data.catalogue) if len(asked) else None,
        cold_coverage=(mine.cold_coverage, theirs.cold_coverage),
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
