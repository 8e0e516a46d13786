"""The gate of a candidate: every number that decides whether it may be registered, as pure functions (definitions, 7).

    before training    `recloop.release.input_check`                       out of band: the window is held, nothing is trained
    after training     judge(evidence, settings)                  candidate' beside live, on rows that neither learned
    after the rest     settled(losses, golden, final, before)     what the last quarter may not have broken
    at last            verdict(gates)                             registered, waiting, refused or held

Nothing is read and nothing is written here; the same numbers give the same gates. ``new`` is decided by the first row of
this table that applies (d: relative difference candidate' - live, se: its standard error, margin: ``release.gates.margin``):

    1  the candidate's number is NaN where live has one                         refused
    2  no query that both can be compared on, or live finds nothing in any      pass, weak
    3  fewer queries or users than `min_queries` (30), `min_users` (20)         waits: too few to judge
    4  lower end of d > -margin                                                 pass
    5  d < -margin and d + 3.5 se < 0                                           refused: certainly worse
    6  detectable loss > 3 margin                                               waits: inconclusive
    7  pooled with up to 6 earlier windows of the same recipe, row 5 applies    refused: certainly worse
    8  d > -margin and the pooled lower end > -margin                           pass
    9  d > -margin and the pooled d > -margin                                   pass, weak
   10  anything else                                                            waits: inconclusive

A gate that waits moves nothing and stops nothing: the rows are judged again together with those that arrive later. Only a
refresh waits; a bundle of another recipe passes weakly there, because shadow and experiment judge it next. The
constants are those of the simulation in `benchmarks/gate.py`.
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
from recloop.json_object import JsonTree

POOLED: Final = 6
"""Earlier windows that an open verdict is pooled with."""
MIN_USERS: Final = 20
"""A comparison over fewer users refuses nothing and proves nothing: the bootstrap over so few is too narrow."""
MIN_QUERIES: Final = 30
"""The same for queries."""
WIDTH_FACTOR: Final = 3.0
"""``new`` is inconclusive while its detectable loss exceeds so many margins (`benchmarks/gate.py`: a lasting loss of 10 % then passes in
at most 4.5 % of the simulated weeks)."""
CERTAIN_ERRORS: Final = 3.5
"""A loss of so many standard errors is certain: of hourly updates without a loss, 1 % of weeks see a false refusal."""
REPEAT_GROWTH: Final = 1.25
"""An inconclusive window is judged again once it has so many times the queries: fewer looks, fewer chance verdicts."""
FAST_SECONDS: Final = 0.01
"""A candidate with a median below this is not refused for its ratio: a network beside counts is slower, and still fast."""
OVERLAP: Final = 0.8
DETECTS: Final = float(ndtri(0.975) + ndtri(0.8))
"""A loss of so many standard errors is seen 80 % of the time at 95 %."""
INPUT: Final = "input"


@dataclass(frozen=True)
class GateResult:
    """One number beside its threshold.

    Attributes:
        name: ``new``, ``forgetting``, ``slice_drop:cold``, ``parity``, ...
        value: What was measured; None: it could not be (nothing to compare), and the gate says so in ``note``.
        threshold: What it was compared with.
        ok: Whether the candidate passes.
        detectable: The smallest loss that this gate could have seen (80 % power at 95 %); None: not a comparison.
        low, high: The 95 % interval of ``value`` where it is an estimate, the band where it is `input_check`.
        note: A short phrase for a person: ``weak`` first where the pass is one.
        candidate, live: NDCG@10 of each, where ``value`` is their relative difference.
        waits: Not passed and not refused: more rows are needed.
    """

    name: str
    value: float | None
    threshold: float
    ok: bool
    detectable: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""
    candidate: float | None = None
    live: float | None = None
    waits: bool = False

    @property
    def weak(self) -> bool:
        """Passed without having been shown to be good enough."""
        return self.ok and self.note.startswith("weak")

    def to_json(self) -> JsonTree:
        """As ``recloop update --json`` and the evidence of a release row have it; numbers rounded to six decimals."""
        tree = {name: _plain(value) for name, value in vars(self).items() if name != "waits" or value}
        return {name: value for name, value in tree.items() if value is not None or name == "value"}

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> GateResult:
        """Back from `to_json`; a threshold that was no number is none."""
        threshold = tree.get("threshold")
        return cls(**{**tree, "threshold": math.nan if threshold is None else threshold})

    def line(self) -> str:
        """One line for a person: the number, its threshold, its interval (or band), the smallest loss it could have seen."""
        compared = self.detectable is not None
        said = "-" if self.value is None else f"{self.value:+.4f}" if compared else f"{self.value:.4g}"
        if self.candidate is not None:
            said += f" (NDCG@10 {self.candidate:.4f}, live {self.live:.4f})"
        said += ", no threshold" if math.isnan(self.threshold) else f", threshold {self.threshold:.4g}"
        if self.low is not None and self.high is not None:
            said += f", {'interval' if compared else 'band'} [{self.low:+.4f}, {self.high:+.4f}]"
        if compared:
            said += f", could have seen a loss of {self.detectable:.4f}"
        note = f" ({self.note})" if self.note else ""
        return f"{'pass' if self.ok else 'wait' if self.waits else 'NO':4} {self.name}: {said}{note}"

    @property
    def reason(self) -> str:
        """Name, number and why it did not pass: ``new=-0.140 [-0.190, -0.090]: certainly worse``."""
        if self.value is None:
            return f"{self.name}: {self.note or 'not measured'}"
        if self.detectable is None:
            limit = "" if math.isnan(self.threshold) else f", threshold {self.threshold:.4g}"
            return f"{self.name}={self.value:.4g}{limit}{f': {self.note}' if self.note else ''}"
        bounds = "" if self.low is None or self.high is None else f" [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.name}={self.value:+.3f}{bounds}: {self.note}"


@dataclass(frozen=True)
class PairedScores:
    """A number of both bundles over the same Q queries; NaN where a query has no target.

    Attributes:
        users: (Q,) whose query it was; any ids, the same user's the same.
        candidate, live: (Q,) NDCG@10 of each.
    """

    users: NDArray[Any]
    candidate: NDArray[np.float64]
    live: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.users)

    def where(self, mask: NDArray[np.bool_]) -> PairedScores:
        """The queries under a mask: a slice."""
        return PairedScores(self.users[mask], self.candidate[mask], self.live[mask])


@dataclass(frozen=True)
class GateInputs:
    """What `judge` looks at; what is None or empty was not measured and makes no gate.

    Attributes:
        new: On the last quarter of the new window, candidate' (live + the rest of the window) beside live.
        earlier: The `new` of earlier windows of the same lineage, oldest first; read only while ``new`` is open.
        old: On the users of hash("old") < 2 %.
        slices: ``cold``, ``repeat``, ``explore`` -> that part of ``new`` (`repeat` and `explore` count other targets).
        parity: ``unexplained`` of ``verify --last 1000``.
        latency: (candidate, live) seconds of the same 200 queries, in the same order.
        cold_coverage: (candidate, live) over the same requests; NaN: nobody was cold.
        cold_users: How many users that is a share of; None: not counted.
    """

    new: PairedScores
    earlier: Sequence[PairedScores] = ()
    old: PairedScores | None = None
    slices: Mapping[str, PairedScores] = field(default_factory=dict)
    parity: int | None = None
    latency: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    cold_coverage: tuple[float, float] | None = None
    cold_users: int | None = None


def relative_difference(pairs: PairedScores, seed: int = 0) -> Difference:
    """d: paired relative difference candidate - live, each user's mean first, 95 % bootstrap over users."""
    means = _user_means(pairs)
    return bootstrap.difference(means[:, 0], means[:, 1], seed)


def _user_means(pairs: PairedScores) -> NDArray[np.float64]:
    """(users, 2) the candidate's and live's number of each user."""
    users, numbers = np.unique(pairs.users, return_inverse=True)
    return bootstrap.user_means(np.column_stack([pairs.candidate, pairs.live]), numbers, len(users))


def _sides(pairs: PairedScores) -> tuple[float, float]:
    """The mean over users of each side, over the users that have both."""
    means = _user_means(pairs)
    candidate, live = means[~np.isnan(means).any(axis=1)].mean(axis=0).tolist()
    return candidate, live


def minimum_detectable(difference: Difference) -> float:
    """The smallest relative loss seen 80 % of the time: (1.96 + .84) * the interval's half width / 1.96."""
    reach = (difference.relative.high - difference.relative.low) / 2
    return float(reach / ndtri(0.975) * DETECTS)


def non_inferiority(new: PairedScores, earlier: Sequence[PairedScores], settings: Gates, seed: int = 0) -> GateResult:
    """Decide ``new`` by the table at the head of this module.

    Args:
        earlier: Windows of earlier updates by the same recipe, oldest first; the newest 6 count. Pooled, they tell what
            the recipe does; so they never pass a window whose own d lies below -margin.
    """
    margin = settings.margin
    if np.isnan(new.candidate[~np.isnan(new.live)]).any():
        return GateResult("new", None, -margin, False, note="the candidate's number is NaN")
    compared = new.where(~np.isnan(new.candidate) & ~np.isnan(new.live))
    if not len(compared) or not (compared.live > 0).any():
        return GateResult("new", None, -margin, True, note="weak: nothing to compare")
    few = too_few(compared.users, settings)
    if few:
        return GateResult("new", None, -margin, False, note=few, waits=True)
    own = relative_difference(new, seed)
    outcome, note = _decide(own, margin), "this window"
    if outcome == "open" and minimum_detectable(own) <= WIDTH_FACTOR * margin:
        outcome, note = _pooled(own, [*earlier[-POOLED:], new] if earlier else [], margin, seed)
    said = {
        "pass": note,
        "weak": f"weak: inconclusive, {note}",
        "refused": f"certainly worse, {note}",
        "open": f"inconclusive, {note}",
    }
    low, high = own.relative.low, own.relative.high
    candidate, live = _sides(new)
    ok, waits = outcome in {"pass", "weak"}, outcome == "open"
    return GateResult(
        "new", own.relative.value, -margin, ok, minimum_detectable(own), low, high, said[outcome], candidate, live, waits
    )  # fmt: skip


def too_few(users: NDArray[Any], settings: Gates) -> str:
    """Why queries of these users, (Q,), are too few to judge; empty: they are enough."""
    known = len(np.unique(users))
    if len(users) >= settings.min_queries and known >= settings.min_users:
        return ""
    needed = f"{settings.min_queries} of {settings.min_users}"
    return f"too few to judge: {len(users)} queries of {known} users, {needed} needed"


def enough(users: NDArray[Any], judged: int, settings: Gates) -> GateResult | None:
    """The gate ``new`` of a window that cannot be judged yet, known before anything is trained; None: it can be.

    Args:
        users: (Q,) of the window's queries.
        judged: Queries at the last look at this window, which was inconclusive; 0: there was none.
    """
    few = too_few(users, settings)
    again = math.ceil(REPEAT_GROWTH * judged)
    if not few and len(users) < again:
        few = f"inconclusive at {judged} queries: judged again at {again}, now {len(users)}"
    return GateResult("new", None, -settings.margin, False, note=few, waits=True) if few else None


def before_a_trial(gates: Sequence[GateResult]) -> list[GateResult]:
    """The gates of a bundle that is tried in shadow and experiment before it serves: it waits for nothing.

    What waits is refused where the upper end is below 0 and the point below the margin (it is looked at once, so 95 %
    are enough); else it is a weak pass.
    """
    return [_tried(one) if one.waits else one for one in gates]


def _tried(gate: GateResult) -> GateResult:
    if gate.value is not None and gate.high is not None and gate.high < 0 and gate.value < gate.threshold:
        return replace(gate, waits=False, note="worse, this window")
    return replace(gate, ok=True, waits=False, note=f"weak: {gate.note}; shadow and experiment decide")


def _decide(d: Difference, margin: float) -> str:
    """``pass``, ``refused`` or ``open`` by one window, or by several pooled."""
    if d.relative.low > -margin:
        return "pass"
    error = (d.relative.high - d.relative.low) / (2 * float(ndtri(0.975)))
    certain = d.relative.value < -margin and d.relative.value + CERTAIN_ERRORS * error < 0
    return "refused" if certain else "open"


def _pooled(own: Difference, windows: Sequence[PairedScores], margin: float, seed: int) -> tuple[str, str]:
    """The outcome of an open window that is narrow enough, and what decided: rows 7 to 10 of the table."""
    pooled, note = own, "this window"
    if windows:
        columns = (np.concatenate([getattr(one, name) for one in windows]) for name in ("users", "candidate", "live"))
        pooled = relative_difference(PairedScores(*columns), seed)
        note = f"pooled with {len(windows) - 1} earlier windows of the same recipe ({pooled.relative.value:+.3f})"
    outcome = _decide(pooled, margin)
    if outcome == "refused":
        return outcome, note
    if own.relative.value <= -margin or pooled.relative.value <= -margin:
        return "open", note
    return ("pass" if outcome == "pass" else "weak"), note


def no_slice_collapse(name: str, pairs: PairedScores, drop: float, seed: int = 0) -> GateResult:
    """The upper end of d lies above -drop: a slice that surely lost more refuses.

    An empty slice is no evidence, and one in which either bundle finds something for fewer than 20 users is too little
    of it: a weak pass. The others say nothing of a relative difference, however many they are.
    """
    d = relative_difference(pairs, seed)
    if math.isnan(d.relative.high):
        return GateResult(name, None, -drop, True, note="weak: nothing to compare")
    users = len(np.unique(pairs.users[(pairs.candidate > 0) | (pairs.live > 0)]))
    few = users < MIN_USERS
    ok = few or d.relative.high > -drop
    note = f"weak: something found for {users} users, too few to judge" if few else "the upper end decides"
    low, high = d.relative.low, d.relative.high
    return GateResult(name, d.relative.value, -drop, ok, minimum_detectable(d), low, high, note, *_sides(pairs))


def at_most(name: str, value: float, threshold: float, note: str = "", queries: int | None = None) -> GateResult:
    """A plain number that may not exceed its threshold; one that is not a number refuses nothing and is weak.

    Args:
        queries: How many the number was measured over, where few could exceed it by chance; None: it is exact.
    """
    if math.isnan(value):
        return GateResult(name, None, threshold, True, note="weak: nothing to compare")
    ok = value <= threshold + 1e-12
    if not ok and queries is not None and queries < MIN_QUERIES:
        return GateResult(name, float(value), threshold, True, note=f"weak: {queries} queries, too few to judge")
    return GateResult(name, float(value), threshold, ok, note=note)


def evaluate_gates(evidence: GateInputs, settings: Gates, seed: int = 0) -> list[GateResult]:
    """The gates of a candidate before its last quarter is learned, in the order in which they are read.

    ``new`` (`non_inferiority`), ``forgetting`` (on *old*) and ``slice_drop:SLICE`` (`no_slice_collapse`, by ``margin`` and by
    ``slice_drop``), ``parity``, ``latency`` (median of candidate / live over the same queries; refuses from `FAST_SECONDS` on), ``cold_coverage_drop``
    (live's minus the candidate's).
    """
    gates = [non_inferiority(evidence.new, evidence.earlier, settings, seed)]
    if evidence.old is not None:
        gates.append(no_slice_collapse("forgetting", evidence.old, settings.margin, seed))
    gates += [
        no_slice_collapse(f"slice_drop:{name}", pairs, settings.slice_drop, seed)
        for name, pairs in evidence.slices.items()
    ]
    if evidence.parity is not None:
        gates.append(at_most("parity", evidence.parity, settings.parity, "unexplained decisions"))
    if evidence.latency is not None:
        candidate, live = evidence.latency
        ratio = float(np.median(candidate / live)) if len(live) else math.nan
        found = at_most("latency", ratio, settings.latency, "median of candidate / live", len(live))
        if not found.ok and (middle := float(np.median(candidate))) < FAST_SECONDS:
            found = replace(found, ok=True, note=f"weak: {1000 * middle:.1f} ms, fast enough whatever live takes")
        gates.append(found)
    if evidence.cold_coverage is not None:
        candidate_covers, live_covers = evidence.cold_coverage
        drop, users = live_covers - candidate_covers, evidence.cold_users
        found = at_most("cold_coverage_drop", drop, settings.cold_coverage_drop)
        if not found.ok and users is not None and users < MIN_USERS:
            found = replace(found, ok=True, note=f"weak: {users} cold users, too few to judge")
        gates.append(found)
    return gates


def final_gates(
    losses: Sequence[float], golden: int, final: Sequence[Sequence[str]], before: Sequence[Sequence[str]]
) -> list[GateResult]:
    """The gates after the held quarter was learned by the same recipe.

    Args:
        losses: Of every step of the run; counting models: empty.
        golden: Golden queries that the written bundle answers otherwise than recorded.
        final, before: Lists of the candidate and of candidate' for the same queries, at most 10 of each compared.
    """
    broken = int((~np.isfinite(np.asarray(losses, dtype=np.float64))).sum())
    shares = [overlap(one[:10], other[:10]) for one, other in zip(final, before, strict=True)]
    middle = float(np.median(shares)) if shares else math.nan
    same = (
        GateResult("overlap", None, OVERLAP, True, note="weak: nothing to compare")
        if math.isnan(middle)
        else GateResult("overlap", middle, OVERLAP, middle >= OVERLAP - 1e-12, note="median overlap@10 with candidate'")
    )
    if not same.ok and len(shares) < MIN_QUERIES:
        same = replace(same, ok=True, note=f"weak: {len(shares)} queries, too few to judge")
    return [
        at_most("finite_loss", broken, 0, "steps whose loss is not finite"),
        at_most("golden", golden, 0, "golden queries that differ"),
        same,
    ]


def verdict(gates: Sequence[GateResult]) -> str:
    """``held`` when the input is out of band, ``refused`` when any other gate says no, else ``registered``.

    ``waiting``: no gate says no, and one needs more rows.
    """
    failed = {gate.name for gate in gates if not gate.ok and not gate.waits}
    if INPUT in failed:
        return "held"
    if failed:
        return "refused"
    return "waiting" if any(gate.waits for gate in gates) else "registered"


def trees(gates: Sequence[GateResult]) -> list[JsonTree]:
    """Gates as ``recloop update --json`` and release rows have them."""
    return [{"threshold": None, **gate.to_json()} for gate in gates]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
