"""Records of an evaluation table: protocol, rows, comparisons, examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from recloop.evaluation import bootstrap
from recloop.evaluation.bootstrap import Difference, Estimate
from recloop.evaluation.metrics import Floats
from recloop.files import JsonTree, without_none
from recloop.manifest import Training

SLICES: Final = ("all", "warm", "cold", "repeat", "explore")

Kind = Literal["baseline", "network", "served"]


@dataclass(frozen=True)
class TrainingNote:
    """Training of a row: epochs, steps, steps per epoch; ``warm`` means from a parent."""

    epochs: int
    steps: int
    steps_per_epoch: int
    warm: bool = False

    @classmethod
    def from_training(cls, training: Training) -> TrainingNote | None:
        """Read a manifest's ``train``; None without a network or recorded steps."""
        if not training.steps_per_epoch:
            return None
        epochs, steps = training.epochs or 0, training.steps or 0
        return cls(epochs, steps, training.steps_per_epoch, warm=training.mode == "warm")

    @property
    def note(self) -> str:
        """Return ``not trained: N steps`` for less than one epoch from scratch, else ""."""
        return "" if self.warm or self.epochs >= 1 else f"not trained: {self.steps:,} steps"

    def __str__(self) -> str:
        return self.note or f"{self.epochs} epoch{'s' * (self.epochs != 1)}, {self.steps:,} steps"


@dataclass(frozen=True)
class QueryMetrics:
    """Row before averaging: ``values[slice, "NDCG@10"]`` (Q,), NaN without a target."""

    model: str
    bundle: str
    kind: Kind
    values: Mapping[tuple[str, str], Floats]
    coverage: float
    entropy: float
    long_tail_share: float
    seconds: float
    trained: TrainingNote | None = None  # for a network's row and the served list with it


@dataclass(frozen=True)
class Example:
    """User in the report: newest moments, served list, items taken next."""

    user_id: str
    now: int
    positives: int
    history: list[tuple[int, list[str]]]
    slots: list[tuple[str, float, str]]
    took: list[str]

    def to_json(self) -> JsonTree:
        return {
            "user_id": self.user_id,
            "now": self.now,
            "positives": self.positives,
            "history": [{"stamp": stamp, "items": items} for stamp, items in self.history],
            "list": [
                {"item_id": item_id, "score": round(score, 6), "source": source, "taken": item_id in self.took}
                for item_id, score, source in self.slots
            ],
            "took": len(self.took),
        }


@dataclass(frozen=True)
class TableRow:
    """Table row: an estimate for each (slice, metric)."""

    row: QueryMetrics
    estimates: Mapping[tuple[str, str], Estimate]

    def to_json(self, repeats: bool) -> JsonTree:
        by_slice: dict[str, JsonTree] = {slice_name: {} for slice_name in SLICES}
        for (slice_name, name), estimate in self.estimates.items():
            by_slice[slice_name][name] = estimate.to_json()
        tree: JsonTree = {"model": self.row.model, "bundle": self.row.bundle, **by_slice["all"]}
        tree["warm"] = by_slice["warm"]
        tree["cold"] = by_slice["cold"]
        tree["repeat"] = by_slice["repeat"] if repeats else None
        tree["explore"] = by_slice["explore"] if repeats else None
        tree |= {name: bootstrap.plain(getattr(self.row, name)) for name in ("coverage", "entropy", "long_tail_share")}
        tree["seconds"] = round(self.row.seconds, 3)
        trained = self.row.trained
        tree |= {"epochs": None, "steps": None, "note": ""}
        if trained is not None:
            tree |= {"epochs": trained.epochs, "steps": trained.steps, "note": trained.note}
        return tree


@dataclass(frozen=True)
class BaselineComparison:
    """Row against the best baseline: paired NDCG at the first k, ``p`` by Holm."""

    label: str
    model: str
    bundle: str
    kind: Kind
    base: str
    difference: Difference
    p: float

    def to_json(self) -> JsonTree:
        return {
            "model": self.model,
            "bundle": self.bundle,
            "against": self.base,
            **self.difference.to_json(),
            "p_holm": self.p,
        }


@dataclass(frozen=True)
class EvaluationProtocol:
    """Protocol of a table.

    Attributes:
        name, targets, filter_seen, ties: ``split.protocol`` and the other settings of ``[split]``.
        split_hash, fingerprint: Hashes of ``data/``; empty for rows in memory.
        k: Cut-offs of the metrics. seed: Seed of the intervals.
        moments, users, items: Numbers of queries, of their users, and of ranked items.
        wanted, unknown: Numbers of targets, and of targets that were not in the catalog before the cut.
        candidates: Number of items of a user that a target is ranked among; None: all items.
    """

    name: str
    split_hash: str
    fingerprint: str
    targets: str
    filter_seen: bool
    ties: str
    k: tuple[int, ...]
    seed: int
    moments: int
    users: int
    items: int
    wanted: int
    unknown: int
    candidates: int | None = None

    def to_json(self) -> JsonTree:
        return without_none(**vars(self) | {"k": [*self.k]})


@dataclass(frozen=True)
class LengthBucket:
    """NDCG at the first k of each row, for histories of ``first`` to ``last`` items."""

    first: int
    last: int | None
    moments: int
    users: int
    rows: Mapping[str, Estimate]

    def to_json(self) -> JsonTree:
        rows = {label: estimate.to_json() for label, estimate in self.rows.items()}
        return {"from": self.first, "to": self.last, "moments": self.moments, "users": self.users, "rows": rows}
