"""Gates of a candidate: pure functions that decide its registration.

    before training    `recloop.release.input_check`                   out of band: the window is blocked, no training
    after training     evaluate_gates(evidence, settings)              candidate' against live, on rows new to both
    after the rest     final_gates(losses, golden, final, before)      checks after the last quarter was learned
    finally            gate_result.verdict(gates)                      registered, waiting, refused or blocked

See docs/definitions/gate.md. This module reads and writes no files; the same numbers give the same gates. The first row
of this table that applies decides ``new_rows`` (d: relative difference candidate' - live, se: its standard error, margin: ``release.gates.max_ndcg_loss``):

    1  the candidate's number is NaN where live has one                         refused
    2  no comparable query, or live finds nothing in any query                  pass, weak
    3  fewer queries or users than `min_queries` (30), `min_users` (20)         waits: too few to judge
    4  lower end of d > -margin                                                 pass
    5  d < -margin and d + 3.5 se < 0                                           refused: certainly worse
    6  detectable loss > 3 margin                                               waits: inconclusive
    7  pooled with up to 6 earlier windows of the same recipe, row 5 applies    refused: certainly worse
    8  d > -margin and the pooled lower end > -margin                           pass
    9  d > -margin and the pooled d > -margin                                   pass, weak
   10  anything else                                                            waits: inconclusive

A waiting gate changes nothing: its rows are judged again together with later ones. Only a refresh waits. A bundle of
another recipe passes weakly instead, because shadow and experiment judge it next. The constants are those of the
simulation in `benchmarks/gate.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri  # importing scipy.stats takes a second

from recloop.config import Gates
from recloop.evaluation import bootstrap
from recloop.evaluation.agreement import overlap
from recloop.evaluation.bootstrap import Difference
from recloop.release.gate_result import FORGETTING, NEW_ROWS, GateResult

MAX_POOLED_WINDOWS: Final = 6
"""Most earlier windows that are pooled with an open verdict."""
MIN_USERS: Final = 20
"""Fewest users of a comparison; with fewer, the bootstrap interval is too narrow."""
MIN_QUERIES: Final = 30
"""Fewest queries of a comparison."""
WIDTH_FACTOR: Final = 3.0
"""``new_rows`` is inconclusive while its detectable loss exceeds this number of margins.

In `benchmarks/gate.py`, a lasting loss of 10 % then passes in at most 4.5 % of the simulated weeks.
"""
CERTAIN_ERRORS: Final = 3.5
"""Standard errors from which a loss is certain.

With hourly updates without a loss, 1 % of weeks have a false refusal.
"""
REPEAT_GROWTH: Final = 1.25
"""Growth in queries after which an inconclusive window is judged again; limits chance verdicts."""
FAST_SECONDS: Final = 0.01
"""Median latency below which the latency ratio does not refuse a candidate.

A network is slower than baselines, but still fast.
"""
MIN_OVERLAP: Final = 0.8
DETECTION_STANDARD_ERRORS: Final = float(ndtri(0.975) + ndtri(0.8))
"""Standard errors of a loss that is detected with 80 % power at 95 % confidence."""


@dataclass(frozen=True)
class PairedScores:
    """Scores of both bundles for the same Q queries; NaN for a query without a target.

    Attributes:
        users: (Q,) id of each query's user, of any type.
        candidate, live: (Q,) NDCG@10 of each.
    """

    users: NDArray[Any]
    candidate: NDArray[np.float64]
    live: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.users)

    def select(self, mask: NDArray[np.bool_]) -> PairedScores:
        """Select the queries of a mask."""
        return PairedScores(self.users[mask], self.candidate[mask], self.live[mask])


@dataclass(frozen=True)
class GateInputs:
    """Inputs of `evaluate_gates`; a value that is None or empty has no gate.

    Attributes:
        new_rows: Scores of candidate' (live + the rest of the window) and live on the last quarter of the new window.
        earlier: ``new_rows`` of earlier windows of the same lineage, oldest first; used only while it is open.
        holdout_users: Scores on the holdout users (`recloop.records.is_holdout_user`).
        slices: Parts of ``new_rows`` by name: ``cold``, ``repeat``, ``explore`` (the last two count other targets).
        unexplained: ``unexplained`` of ``verify --last 1000``.
        latency: (candidate, live) seconds for the same 200 queries, in the same order.
        cold_coverage: (candidate, live) for the same requests; NaN without cold users.
        cold_users: Number of cold users in ``cold_coverage``; None if unknown.
    """

    new_rows: PairedScores
    earlier: Sequence[PairedScores] = ()
    holdout_users: PairedScores | None = None
    slices: Mapping[str, PairedScores] = field(default_factory=dict)
    unexplained: int | None = None
    latency: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    cold_coverage: tuple[float, float] | None = None
    cold_users: int | None = None


def relative_difference(pairs: PairedScores, seed: int = 0) -> Difference:
    """Paired relative difference d of user means, candidate - live, with a 95 % CI.

    The interval is a bootstrap over users.
    """
    means = _user_means(pairs)
    return bootstrap.difference(means[:, 0], means[:, 1], seed)


def _user_means(pairs: PairedScores) -> NDArray[np.float64]:
    """Mean scores of candidate and live per user: (users, 2)."""
    users, numbers = np.unique(pairs.users, return_inverse=True)
    return bootstrap.user_means(np.column_stack([pairs.candidate, pairs.live]), numbers, len(users))


def _sides(pairs: PairedScores) -> tuple[float, float]:
    """Mean of candidate and of live over the users that have both."""
    means = _user_means(pairs)
    candidate, live = means[~np.isnan(means).any(axis=1)].mean(axis=0).tolist()
    return candidate, live


def minimum_detectable(difference: Difference) -> float:
    """Smallest relative loss detected with 80 % power: 2.8 standard errors.

    2.8 = 1.96 + 0.84; the standard error is the half width / 1.96.
    """
    reach = (difference.relative.high - difference.relative.low) / 2
    return float(reach / ndtri(0.975) * DETECTION_STANDARD_ERRORS)


def non_inferiority(new: PairedScores, earlier: Sequence[PairedScores], settings: Gates, seed: int = 0) -> GateResult:
    """Decide ``new_rows`` by the table in the module docstring.

    Args:
        earlier: Windows of earlier updates with the same recipe, oldest first; the newest 6 are used. Pooled, they
            describe the recipe, so they never pass a window whose own d is below -margin.
    """
    margin = settings.max_ndcg_loss
    if np.isnan(new.candidate[~np.isnan(new.live)]).any():
        return GateResult(NEW_ROWS, None, -margin, False, note="the candidate's number is NaN")
    compared = new.select(~np.isnan(new.candidate) & ~np.isnan(new.live))
    if not len(compared) or not (compared.live > 0).any():
        return GateResult(NEW_ROWS, None, -margin, True, note="weak: nothing to compare")
    shortage = too_few(compared.users, settings)
    if shortage:
        return GateResult(NEW_ROWS, None, -margin, False, note=shortage, waits=True)
    difference = relative_difference(new, seed)
    outcome = _decide(difference, margin)
    note = "this window"
    if outcome == "open" and minimum_detectable(difference) <= WIDTH_FACTOR * margin:
        outcome, note = _pooled(difference, [*earlier[-MAX_POOLED_WINDOWS:], new] if earlier else [], margin, seed)
    notes = {
        "pass": note,
        "weak": f"weak: inconclusive, {note}",
        "refused": f"certainly worse, {note}",
        "open": f"inconclusive, {note}",
    }
    low, high = difference.relative.low, difference.relative.high
    candidate, live = _sides(new)
    ok = outcome in {"pass", "weak"}
    waits = outcome == "open"
    return GateResult(
        NEW_ROWS, difference.relative.value, -margin, ok, minimum_detectable(difference), low, high, notes[outcome], candidate, live, waits
    )  # fmt: skip


def too_few(users: NDArray[Any], settings: Gates) -> str:
    """Explain why queries of these users, (Q,), are too few; empty if they suffice."""
    user_count = len(np.unique(users))
    if len(users) >= settings.min_queries and user_count >= settings.min_users:
        return ""
    minimum = f"{settings.min_queries} of {settings.min_users}"
    return f"too few to judge: {len(users)} queries of {user_count} users, {minimum} needed"


def check_window_size(users: NDArray[Any], judged: int, settings: Gates) -> GateResult | None:
    """Return gate ``new_rows`` of a window too small to judge; None if it suffices.

    It is called before training.

    Args:
        users: (Q,) user of each query of the window.
        judged: Queries at the last inconclusive judgement of this window; 0 without one.
    """
    shortage = too_few(users, settings)
    next_queries = math.ceil(REPEAT_GROWTH * judged)
    if not shortage and len(users) < next_queries:
        shortage = f"inconclusive at {judged} queries; judged again from {next_queries} queries on, now {len(users)}"
    return GateResult(NEW_ROWS, None, -settings.max_ndcg_loss, False, note=shortage, waits=True) if shortage else None


def gates_before_trial(gates: Sequence[GateResult]) -> list[GateResult]:
    """Decide the waiting gates of a bundle that shadow and experiment judge next.

    A waiting gate is refused if the upper end is below 0 and the estimate below -margin. It is evaluated once, so a
    95 % CI suffices. Otherwise it passes weakly.
    """
    return [_tried(gate) if gate.waits else gate for gate in gates]


def _tried(gate: GateResult) -> GateResult:
    if gate.value is not None and gate.high is not None and gate.high < 0 and gate.value < gate.threshold:
        return replace(gate, waits=False, note="worse, this window")
    return replace(gate, ok=True, waits=False, note=f"weak: {gate.note}; shadow and experiment decide")


def _decide(difference: Difference, margin: float) -> str:
    """Decide ``pass``, ``refused`` or ``open`` by one window or a pooled difference."""
    if difference.relative.low > -margin:
        return "pass"
    error = (difference.relative.high - difference.relative.low) / (2 * float(ndtri(0.975)))
    certain = difference.relative.value < -margin and difference.relative.value + CERTAIN_ERRORS * error < 0
    return "refused" if certain else "open"


def _pooled(difference: Difference, windows: Sequence[PairedScores], margin: float, seed: int) -> tuple[str, str]:
    """Decide an open window that is narrow enough by rows 7 to 10; return also a note."""
    pooled = difference
    note = "this window"
    if windows:
        columns = (
            np.concatenate([getattr(window, name) for window in windows]) for name in ("users", "candidate", "live")
        )
        pooled = relative_difference(PairedScores(*columns), seed)
        note = f"pooled with {len(windows) - 1} earlier windows of the same recipe ({pooled.relative.value:+.3f})"
    outcome = _decide(pooled, margin)
    if outcome == "refused":
        return outcome, note
    if difference.relative.value <= -margin or pooled.relative.value <= -margin:
        return "open", note
    return ("pass" if outcome == "pass" else "weak"), note


def no_slice_collapse(name: str, pairs: PairedScores, drop: float, seed: int = 0) -> GateResult:
    """Refuse a slice whose d is surely below -drop (upper end of the interval).

    A slice passes weakly if it is empty, or if the bundles find targets for fewer than 20 users. Users without a found
    target do not contribute to a relative difference.
    """
    difference = relative_difference(pairs, seed)
    if math.isnan(difference.relative.high):
        return GateResult(name, None, -drop, True, note="weak: nothing to compare")
    users = len(np.unique(pairs.users[(pairs.candidate > 0) | (pairs.live > 0)]))
    too_few_users = users < MIN_USERS
    ok = too_few_users or difference.relative.high > -drop
    note = f"weak: targets found for {users} users, too few to judge" if too_few_users else "the upper end decides"
    low, high = difference.relative.low, difference.relative.high
    return GateResult(
        name, difference.relative.value, -drop, ok, minimum_detectable(difference), low, high, note, *_sides(pairs),
        users=users,
    )  # fmt: skip


def at_most(name: str, value: float, threshold: float, note: str = "", queries: int | None = None) -> GateResult:
    """Refuse a number above its threshold; NaN passes weakly.

    Args:
        queries: Number of queries measured, if few could exceed the threshold by chance; None for an exact number.
    """
    if math.isnan(value):
        return GateResult(name, None, threshold, True, note="weak: nothing to compare")
    ok = value <= threshold + 1e-12
    if not ok and queries is not None and queries < MIN_QUERIES:
        return GateResult(name, float(value), threshold, True, note=f"weak: {queries} queries, too few to judge")
    return GateResult(name, float(value), threshold, ok, note=note)


def evaluate_gates(evidence: GateInputs, settings: Gates, seed: int = 0) -> list[GateResult]:
    """Evaluate the gates before the last quarter is learned, in display order.

    ``new_rows``: `non_inferiority`. ``forgetting`` (holdout users, ``max_ndcg_loss``) and ``slice:SLICE``
    (``max_slice_loss``): `no_slice_collapse`. ``verification``: unexplained decisions. ``latency``: median of
    candidate / live over the same queries; it refuses only from `FAST_SECONDS`. ``cold_coverage``: live minus candidate.
    """
    gates = [non_inferiority(evidence.new_rows, evidence.earlier, settings, seed)]
    if evidence.holdout_users is not None:
        gates.append(no_slice_collapse(FORGETTING, evidence.holdout_users, settings.max_ndcg_loss, seed))
    gates += [
        no_slice_collapse(f"slice:{name}", pairs, settings.max_slice_loss, seed)
        for name, pairs in evidence.slices.items()
    ]
    if evidence.unexplained is not None:
        gates.append(at_most("verification", evidence.unexplained, settings.max_unexplained, "unexplained decisions"))
    if evidence.latency is not None:
        candidate, live = evidence.latency
        ratio = float(np.median(candidate / live)) if len(live) else math.nan
        gate = at_most("latency", ratio, settings.max_latency_ratio, "median of candidate / live", len(live))
        if not gate.ok and (median := float(np.median(candidate))) < FAST_SECONDS:
            gate = replace(gate, ok=True, note=f"weak: {1000 * median:.1f} ms, fast enough at any ratio")
        gates.append(gate)
    if evidence.cold_coverage is not None:
        candidate_covers, live_covers = evidence.cold_coverage
        drop = live_covers - candidate_covers
        users = evidence.cold_users
        gate = at_most("cold_coverage", drop, settings.max_cold_coverage_loss)
        if not gate.ok and users is not None and users < MIN_USERS:
            gate = replace(gate, ok=True, note=f"weak: {users} cold users, too few to judge")
        gates.append(gate)
    return gates


def is_clear(gates: Sequence[GateResult]) -> bool:
    """Return whether a sample of moments suffices: no gate points at a loss."""
    return not unclear(gates)


def unclear(gates: Sequence[GateResult], growth: float = math.inf) -> list[str]:
    """Return the gates that need further moments.

    Each compared number of the others is `CERTAIN_ERRORS` standard errors above its threshold; a weak pass with a number has
    no loss in the sample at all. A loss that reaches a threshold is missed in fewer than 1 of 4,000 looks.

    Args:
        growth: Number of all moments divided by that of the answered ones.
    """
    return [gate.name for gate in gates if not _has_margin(gate) and not _stays_weak(gate, growth)]


def _stays_weak(gate: GateResult, growth: float) -> bool:
    """Return whether all moments would find targets for too few users of a slice.

    Their number is expected to be at most one standard error above that of the sample.
    """
    return gate.weak and gate.users is not None and growth * (gate.users + math.sqrt(gate.users)) < MIN_USERS


def _has_margin(gate: GateResult) -> bool:
    if not gate.ok:
        return False
    if gate.value is None or gate.detectable is None:
        return True
    if gate.weak:
        return gate.value >= 0
    return gate.value - CERTAIN_ERRORS * gate.detectable / DETECTION_STANDARD_ERRORS > gate.threshold


def final_gates(
    losses: Sequence[float], golden: int, final: Sequence[Sequence[str]], earlier: Sequence[Sequence[str]]
) -> list[GateResult]:
    """Evaluate the gates after the last quarter was learned with the same recipe.

    Args:
        losses: Loss of every training step; empty for baselines.
        golden: Number of golden queries that the written bundle answers differently.
        final, earlier: Lists of the candidate and of candidate' for the same queries; the first 10 items are compared.
    """
    non_finite_steps = int((~np.isfinite(np.asarray(losses, dtype=np.float64))).sum())
    shares = [
        overlap(final_list[:10], earlier_list[:10]) for final_list, earlier_list in zip(final, earlier, strict=True)
    ]
    median = float(np.median(shares)) if shares else math.nan
    overlap_gate = (
        GateResult("overlap", None, MIN_OVERLAP, True, note="weak: nothing to compare")
        if math.isnan(median)
        else GateResult(
            "overlap", median, MIN_OVERLAP, median >= MIN_OVERLAP - 1e-12, note="median overlap@10 with candidate'"
        )
    )
    if not overlap_gate.ok and len(shares) < MIN_QUERIES:
        overlap_gate = replace(overlap_gate, ok=True, note=f"weak: {len(shares)} queries, too few to judge")
    return [
        at_most("finite_loss", non_finite_steps, 0, "steps whose loss is not finite"),
        at_most("golden", golden, 0, "golden queries that differ"),
        overlap_gate,
    ]
