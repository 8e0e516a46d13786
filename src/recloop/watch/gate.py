"""The gate of a candidate: every number that decides whether it may be registered, as pure functions (definitions, 7).

    before training    `recloop.watch.band`                       out of band: the window is held, nothing is trained
    after training     judge(evidence, settings)                  candidate' beside live, on rows that neither learned
    after the rest     settled(losses, golden, final, before)     what the last quarter may not have broken
    at last            verdict(gates)                             registered, refused or held

Nothing is read and nothing is written here; the same numbers give the same gates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from recloop import intervals
from recloop.config import Gates
from recloop.intervals import Difference
from recloop.watch.agree import overlap

POOLED: Final = 6
"""Earlier windows that an open verdict is pooled with."""
FEWEST_USERS: Final = 20
"""A slice in which the lists find something for fewer users refuses nothing: the bootstrap over so few is too narrow."""
OVERLAP: Final = 0.8
DETECTS: Final = float(scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(0.8))
"""A loss of so many standard errors is seen 80 % of the time at 95 %."""
INPUT: Final = "input"


@dataclass(frozen=True)
class Gate:
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

    @property
    def weak(self) -> bool:
        """Passed without having been shown to be good enough."""
        return self.ok and self.note.startswith("weak")

    def to_json(self) -> dict[str, Any]:
        """As ``recloop update --json`` and the evidence of a release row have it; numbers rounded to six decimals."""
        tree = {name: _plain(value) for name, value in vars(self).items()}
        return {name: value for name, value in tree.items() if value is not None or name == "value"}

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> Gate:
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
        return f"{'pass' if self.ok else 'NO':4} {self.name}: {said}{note}"


@dataclass(frozen=True)
class Pairs:
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

    def where(self, mask: NDArray[np.bool_]) -> Pairs:
        """The queries under a mask: a slice."""
        return Pairs(self.users[mask], self.candidate[mask], self.live[mask])


@dataclass(frozen=True)
class Evidence:
    """What `judge` looks at; what is None or empty was not measured and makes no gate.

    Attributes:
        new: On the last quarter of the new window, candidate' (live + the rest of the window) beside live.
        earlier: The `new` of earlier windows of the same lineage, oldest first; read only while ``new`` is open.
        old: On the users of hash("old") < 2 %.
        slices: ``cold``, ``repeat``, ``explore`` -> that part of ``new`` (`repeat` and `explore` count other targets).
        parity: ``unexplained`` of ``verify --last 1000``.
        latency: (candidate, live) seconds of the same 200 queries, in the same order.
        cold_coverage: (candidate, live) over the same requests; NaN: nobody was cold.
    """

    new: Pairs
    earlier: Sequence[Pairs] = ()
    old: Pairs | None = None
    slices: Mapping[str, Pairs] = field(default_factory=dict)
    parity: int | None = None
    latency: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    cold_coverage: tuple[float, float] | None = None


def relative_difference(pairs: Pairs, seed: int = 0) -> Difference:
    """d: paired relative difference candidate - live, each user's mean first, 95 % bootstrap over users."""
    means = _user_means(pairs)
    return intervals.difference(means[:, 0], means[:, 1], seed)


def _user_means(pairs: Pairs) -> NDArray[np.float64]:
    """(users, 2) the candidate's and live's number of each user."""
    users, numbers = np.unique(pairs.users, return_inverse=True)
    return intervals.user_means(np.column_stack([pairs.candidate, pairs.live]), numbers, len(users))


def _sides(pairs: Pairs) -> dict[str, float]:
    """The mean over users of each side, over the users that have both."""
    means = _user_means(pairs)
    candidate, live = means[~np.isnan(means).any(axis=1)].mean(axis=0).tolist()
    return {"candidate": candidate, "live": live}


def detectable(difference: Difference) -> float:
    """The smallest relative loss seen 80 % of the time: (1.96 + .84) * the interval's half width / 1.96."""
    reach = (difference.relative.high - difference.relative.low) / 2
    return float(reach / scipy.stats.norm.ppf(0.975) * DETECTS)


def no_loss(new: Pairs, earlier: Sequence[Pairs], margin: float, seed: int = 0) -> Gate:
    """The three-way decision on *new*.

    Lower end of d > -margin: pass. Upper end < 0: refuse. Else cannot tell: the same over this window pooled with up
    to 6 earlier ones; still open: pass, marked weak, when the point lies above -margin, else refuse. A query that live
    could answer and the candidate could not (NaN) refuses. Where nothing can be compared the pass is weak.
    """
    if np.isnan(new.candidate[~np.isnan(new.live)]).any():
        return Gate("new", None, -margin, False, note="the candidate's number is NaN")
    if np.isnan(new.live).all():  # earlier windows alone say nothing of this candidate
        return Gate("new", None, -margin, True, note="weak: nothing to compare")
    pooled = [new]
    note = "this window"
    d = relative_difference(new, seed)
    answer = _decide(d, margin)
    if answer is None and earlier:
        pooled = [*earlier[-POOLED:], new]
        note = f"pooled with {len(pooled) - 1} earlier windows"
        d = relative_difference(
            Pairs(*(np.concatenate([getattr(one, name) for one in pooled]) for name in ("users", "candidate", "live"))),
            seed,
        )
        answer = _decide(d, margin)
    value = d.relative.value
    if math.isnan(value):
        return Gate("new", None, -margin, True, note="weak: nothing to compare")
    if answer is None:
        answer = value > -margin
        note = f"weak: cannot tell, {note}" if answer else f"cannot tell, and the point is too low, {note}"
    return Gate("new", value, -margin, answer, detectable(d), d.relative.low, d.relative.high, note, **_sides(new))


def _decide(d: Difference, margin: float) -> bool | None:
    if d.relative.low > -margin:
        return True
    return False if d.relative.high < 0 else None


def no_collapse(name: str, pairs: Pairs, drop: float, seed: int = 0) -> Gate:
    """The upper end of d lies above -drop: a slice that surely lost more refuses.

    An empty slice is no evidence, and one in which either bundle finds something for fewer than 20 users is too little
    of it: a weak pass. The others say nothing of a relative difference, however many they are.
    """
    d = relative_difference(pairs, seed)
    if math.isnan(d.relative.high):
        return Gate(name, None, -drop, True, note="weak: nothing to compare")
    users = len(np.unique(pairs.users[(pairs.candidate > 0) | (pairs.live > 0)]))
    few = users < FEWEST_USERS
    ok = few or d.relative.high > -drop
    note = f"weak: something found for {users} users, too few to tell" if few else "the upper end decides"
    low, high = d.relative.low, d.relative.high
    return Gate(name, d.relative.value, -drop, ok, detectable(d), low, high, note, **_sides(pairs))


def at_most(name: str, value: float, threshold: float, note: str = "") -> Gate:
    """A plain number that may not exceed its threshold; one that is not a number refuses nothing and is weak."""
    if math.isnan(value):
        return Gate(name, None, threshold, True, note="weak: nothing to compare")
    return Gate(name, float(value), threshold, value <= threshold + 1e-12, note=note)


def judge(evidence: Evidence, settings: Gates, seed: int = 0) -> list[Gate]:
    """The gates of a candidate before its last quarter is learned, in the order in which they are read.

    ``new`` (`no_loss`), ``forgetting`` (on *old*) and ``slice_drop:SLICE`` (`no_collapse`, by ``margin`` and by
    ``slice_drop``), ``parity``, ``latency`` (median of candidate / live over the same queries), ``cold_coverage_drop``
    (live's minus the candidate's).
    """
    gates = [no_loss(evidence.new, evidence.earlier, settings.margin, seed)]
    if evidence.old is not None:
        gates.append(no_collapse("forgetting", evidence.old, settings.margin, seed))
    gates += [
        no_collapse(f"slice_drop:{name}", pairs, settings.slice_drop, seed) for name, pairs in evidence.slices.items()
    ]
    if evidence.parity is not None:
        gates.append(at_most("parity", evidence.parity, settings.parity, "unexplained decisions"))
    if evidence.latency is not None:
        candidate, live = evidence.latency
        ratio = float(np.median(candidate / live)) if len(live) else math.nan
        gates.append(at_most("latency", ratio, settings.latency, "median of candidate / live"))
    if evidence.cold_coverage is not None:
        candidate_covers, live_covers = evidence.cold_coverage
        gates.append(at_most("cold_coverage_drop", live_covers - candidate_covers, settings.cold_coverage_drop))
    return gates


def settled(
    losses: Sequence[float], golden: int, final: Sequence[Sequence[str]], before: Sequence[Sequence[str]]
) -> list[Gate]:
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
        Gate("overlap", None, OVERLAP, True, note="weak: nothing to compare")
        if math.isnan(middle)
        else Gate("overlap", middle, OVERLAP, middle >= OVERLAP - 1e-12, note="median overlap@10 with candidate'")
    )
    return [
        at_most("finite_loss", broken, 0, "steps whose loss is not finite"),
        at_most("golden", golden, 0, "golden queries that differ"),
        same,
    ]


def verdict(gates: Sequence[Gate]) -> str:
    """``held`` when the input is out of band, ``refused`` when any other gate says no, else ``registered``."""
    failed = {gate.name for gate in gates if not gate.ok}
    if INPUT in failed:
        return "held"
    return "refused" if failed else "registered"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
