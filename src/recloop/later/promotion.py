"""The gate of a bundle that `train` made, run when it is promoted: beside live, on what neither of the two has learned.

`train` holds back what lies after its cut (unless it refits), live may have learned just that. So *new* are the moments
that both have not: held back from both, or arrived after both were fitted. Where there are none, the *old* users'
moments after the candidate's cut stand in: no loss has seen them, but live has counted them. Where there are none of
these either, the gate says ``weak`` and judges by what needs no targets: latency, cold coverage, parity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from recloop import standing, turn
from recloop.backends.log import out_at
from recloop.bundle import Bundle
from recloop.collect.clean import doubled
from recloop.features.moment import moment_stamps
from recloop.features.signal import Signal
from recloop.features.spec import Spec
from recloop.features.state import Timeline
from recloop.json_object import JsonTree
from recloop.later.evidence import broken_golden, compared, of_old
from recloop.learn import compare
from recloop.learn.compare import Asked
from recloop.learn.moments import Moments, moments
from recloop.project import Project
from recloop.recommend.catalogue import Catalogue
from recloop.records import EVENT_SCHEMA, RULE, SEQ, STAMP
from recloop.serve import moves
from recloop.voice import Silent, Voice
from recloop.watch import gate, parity
from recloop.watch.gate import Evidence, Gate


def promote(
    project: Project, bundle: str, to: str = "", reason: str = "", voice: Voice | None = None, at: int = 0
) -> JsonTree:
    """Move a registered bundle on, after its gate where that has not run; see `recloop.serve.moves.promote`.

    Raises:
        UserError, BundleError, Refused: as `moves.promote` has it, a gate that says no among them.
    """
    control = project.open_control()
    moves.ready(project, control, bundle, to)
    gates = None
    if moves.ungated(control, bundle):
        voice = voice or Silent()
        found = judge(project, project.load_bundle(bundle), project.load_bundle())
        for one in found:
            voice.say("gate", one.line())
        gates = gate.trees(found)
    return moves.promote(project, bundle, to, reason, at=at, gates=gates)


@dataclass(frozen=True)
class Ground:
    """Every believed row there is, archived or not, and what a list is made from besides."""

    rows: pl.DataFrame
    users: pl.DataFrame | None
    catalogue: Catalogue

    @classmethod
    def of(cls, project: Project) -> Ground:
        """Rows that were taken back, and repeats that an update would take back, are left out."""
        archive = project.open_archive()
        with project.open_log() as log:
            fresh = log.events(after=archive.watermark).filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)
            out = pl.Series(sorted(out_at(log.retractions())), dtype=pl.Int64)
            users, items = log.users(after=archive.watermark), [archive.items(), log.items(after=archive.watermark)]
        rows = pl.concat([archive.events(), fresh]).filter(~pl.col(SEQ).is_in(out.implode()))
        if project.config.clean.duplicates == "exact":
            rows = rows.filter(~pl.col(SEQ).is_in(doubled(rows).implode()))
        known = archive.users()
        return cls(rows, users if known is None else pl.concat([known, users]), Catalogue.of(items))

    def labelled(self, spec: Spec) -> pl.DataFrame:
        """The rows as a spec means them, with the stamp of their moment."""
        return moment_stamps(Signal.of(spec).label(self.rows))


@dataclass(frozen=True)
class Side:
    """One of the two bundles over that ground."""

    bundle: Bundle
    ground: Ground

    @cached_property
    def timeline(self) -> Timeline:
        return Timeline(self.ground.labelled(self.bundle.spec), self.ground.users)

    @property
    def unseen(self) -> pl.Expr:
        """Rows of the moments of which this bundle has learned nothing."""
        return self.bundle.learned.new_moments

    def ask(self, queries: Moments) -> Asked:
        return compare.ask(self.bundle, queries, self.timeline, self.ground.catalogue, turn.THREADS)


def judge(project: Project, candidate: Bundle, live: Bundle) -> list[Gate]:
    """The gates of a bundle beside live, in the order in which they are read; golden lists and finite weights at last."""
    ground = Ground.of(project)
    ours, lives = Side(candidate, ground), Side(live, ground)
    events = ground.labelled(candidate.spec)
    new = compare.thin(moments(events.filter(ours.unseen & lives.unseen), "successive"))
    old = compare.thin(moments(events.filter(ours.unseen & of_old(events)), "successive"))
    newest = compare.thin(moments(events.sort(STAMP).tail(compare.MOST), "successive"), compare.TIMED)
    targets = next((one for one in (new, old) if len(one)), None)
    asked = newest if targets is None else targets
    mine, theirs = ours.ask(asked), lives.ask(asked)
    pairs = compared(mine, theirs)
    none = pairs.where(mine.cold & ~mine.cold)
    slices = {"repeat": compared(mine, theirs, "repeat"), "explore": compared(mine, theirs, "explore")}
    evidence = Evidence(
        new=pairs if targets is new else none,
        old=pairs if targets is old else None,
        slices={} if targets is None else {"cold": pairs.where(mine.cold), **slices},
        parity=parity.verify(project)["unexplained"] if standing.decided(project) else None,
        latency=compare.latency((candidate, live), asked, ours.timeline, ground.catalogue) if len(asked) else None,
        cold_coverage=(mine.cold_coverage, theirs.cold_coverage),
    )
    return [
        *gate.before_a_trial(gate.judge(evidence, project.config.release.gates, project.config.train.seed)),
        gate.at_most("golden", broken_golden(candidate), 0, "golden queries that differ"),
        gate.at_most("finite", _not_finite(candidate), 0, "arrays with a number that is not finite"),
    ]


def _not_finite(bundle: Bundle) -> int:
    floats = (array for array in bundle.arrays.values() if np.issubdtype(array.dtype, np.floating))
    return sum(not np.isfinite(array).all() for array in floats)
