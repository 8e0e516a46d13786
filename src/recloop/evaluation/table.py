"""Evaluation table: means over users with paired intervals, as JSON and text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from recloop.evaluation import bootstrap, metrics
from recloop.evaluation.bootstrap import Difference, Estimate
from recloop.evaluation.metrics import Floats
from recloop.files import JsonTree, replace_file
from recloop.manifest import Training

SLICES: Final = ("all", "warm", "repeat", "explore")
LENGTHS: Final = (0, 1, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Lower bounds of the history-length buckets, in valid positives of the state."""
FILE: Final = "evaluation.json"

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
        inside: dict[str, JsonTree] = {part: {} for part in SLICES}
        for (part, name), estimate in self.estimates.items():
            inside[part][name] = estimate.to_json()
        out: JsonTree = {"model": self.row.model, "bundle": self.row.bundle, **inside["all"]}
        out["warm"] = inside["warm"]
        out["repeat"] = inside["repeat"] if repeats else None
        out["explore"] = inside["explore"] if repeats else None
        out |= {name: bootstrap.plain(getattr(self.row, name)) for name in ("coverage", "entropy", "long_tail_share")}
        out["seconds"] = round(self.row.seconds, 3)
        trained = self.row.trained
        out |= {"epochs": None, "steps": None, "note": ""}
        if trained is not None:
            out |= {"epochs": trained.epochs, "steps": trained.steps, "note": trained.note}
        return out


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

    def to_json(self) -> JsonTree:
        return {**vars(self), "k": [*self.k]}


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


@dataclass(frozen=True)
class EvaluationTable:
    """Finished evaluation."""

    protocol: EvaluationProtocol
    rows: list[TableRow]
    compared: list[BaselineComparison]
    lengths: list[LengthBucket]
    examples: list[Example]
    repeats: bool

    @property
    def sentence(self) -> str:
        """Summarize the gain of networks and fusion over the best baseline."""
        name = f"NDCG@{self.protocol.k[0]}"
        if not self.compared:
            return f"This table has no baseline row, so it reports no {name} gain over one."
        base = self.compared[0].base
        value = {row.row.model: row.estimates["all", name].value for row in self.rows}[base]
        parts = [_describe_gain(one) for one in sorted(self.compared, key=lambda one: one.kind)]
        lead = "" if any(row.kind == "network" for row in self.compared) else "This table has no network; "
        users = self.protocol.users
        interval = "95 % CI, " if any(_has_interval(one) for one in self.compared) else ""
        over = "one user: no interval" if users == 1 else f"{interval}paired over {users:,} users"
        text = f"{lead}against {base}, the best baseline ({name} {value:.4f}), {'; '.join(parts)} ({over})."
        return f"{text[0].upper()}{text[1:]}{self._zeros()}"

    def _zeros(self) -> str:
        """Explain a table with only zeros; empty for other tables."""
        values = [one.value for row in self.rows for one in row.estimates.values()]
        if any(value > 0 for value in values):
            return ""
        wanted, unknown = self.protocol.wanted, self.protocol.unknown
        if unknown:
            return f" Every row is 0: {unknown:,} of {wanted:,} targets were not in the catalog before the cut."
        return f" Every row is 0: no list holds one of the {wanted:,} targets." if wanted else ""

    def to_json(self) -> JsonTree:
        """Return the keys of the interface and the data of the report."""
        return {
            "protocol": self.protocol.to_json(),
            "rows": [row.to_json(self.repeats) for row in self.rows],
            "sentence": self.sentence,
            "differences": [one.to_json() for one in self.compared],
            "lengths": [bucket.to_json() for bucket in self.lengths],
            "examples": [example.to_json() for example in self.examples],
        }

    def bundle_metrics(self) -> JsonTree:
        """Return the part that a bundle stores: protocol and rows.

        ``bundle`` and ``seconds`` are excluded, because a rerun would change them.
        """
        tree = self.to_json()
        rows = [
            {name: value for name, value in row.items() if name not in {"bundle", "seconds"}} for row in tree["rows"]
        ]
        return {"protocol": self.protocol.to_json(), "rows": rows, "sentence": self.sentence}

    def with_bundle(self, bundle: str) -> EvaluationTable:
        """Return the table with the id of a bundle that was evaluated in memory."""

        def name(old: str) -> str:
            return old or bundle

        return replace(
            self,
            rows=[replace(one, row=replace(one.row, bundle=name(one.row.bundle))) for one in self.rows],
            compared=[replace(one, bundle=name(one.bundle)) for one in self.compared],
        )

    def save(self, folder: Path) -> Path:
        """Replace ``evaluation.json`` atomically and return its path."""
        target = folder / FILE
        replace_file(target, json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        return target

    def render(self) -> Group:
        """Render the table for a terminal: one per k, best values bold, with intervals."""
        parts: list[Any] = [self._render_table(k) for k in self.protocol.k]
        return Group(*parts, Text(protocol_line(self.protocol), style="dim"), Text(self.sentence))

    def _render_table(self, k: int) -> RichTable:
        drawn = RichTable(box=SIMPLE_HEAD, padding=0)
        drawn.add_column("model", no_wrap=True)
        columns = [("all", f"{name}@{k}", f"{name}@{k}") for name in metrics.RANKING]
        headline = f"NDCG@{k}"
        columns += [(part, headline, part) for part in SLICES[1:] if self.repeats or part == "warm"]
        for part, _, title in columns:
            drawn.add_column(title if part == "all" else f"{title}\n{headline}", justify="right")
        for title in ("coverage", "entropy", "tail", "seconds"):
            drawn.add_column(title, justify="right")
        best = {
            (part, name): max(round(row.estimates[part, name].value, 4) for row in self.rows)
            for part, name, _ in columns
        }
        for row in self.rows:
            cells = []
            for part, name, _ in columns:
                estimate = row.estimates[part, name]
                style = "bold" if round(estimate.value, 4) == best[part, name] else ""
                cell = Text(number(estimate.value), style=style)
                if part == "all":
                    cell.append(f"\n{number(estimate.low)}-{number(estimate.high)}", style="dim")
                cells.append(cell)
            own = row.row
            health = [number(value, 3) for value in (own.coverage, own.entropy, own.long_tail_share)]
            head = Text(own.model)
            if own.trained is not None:
                head.append(f"\n{own.trained}", style="bold" if own.trained.note else "dim")
            drawn.add_row(head, *cells, *health, f"{own.seconds:.1f}")
        return drawn


def make_table(
    protocol: EvaluationProtocol,
    rows: Sequence[QueryMetrics],
    users: Sequence[str],
    positives: NDArray[np.int64],
    examples: Sequence[Example],
) -> EvaluationTable:
    """Average per user, then over users, with intervals by resampling users.

    All columns share the resampled users.

    Args:
        users: (Q,) user of each query.
        positives: (Q,) valid positives in the query's state.
    """
    names, code = np.unique(np.array(users, dtype=object), return_inverse=True)
    keys = list(rows[0].values)
    headline = ("all", f"NDCG@{protocol.k[0]}")
    bucket = np.searchsorted(np.array(LENGTHS), positives, side="right") - 1
    held = np.unique(bucket)
    columns = [row.values[key] for row in rows for key in keys]
    columns += [np.where(bucket == one, row.values[headline], np.nan) for row in rows for one in held]
    by_user = bootstrap.user_means(np.column_stack(columns), code, len(names))  # (U, C)
    means, samples = bootstrap.mean_over_users(by_user), bootstrap.resample(by_user, protocol.seed)
    several = (~np.isnan(by_user)).sum(axis=0) > 1  # one user has no interval
    samples = np.where(several, samples, np.nan)
    made = [bootstrap.estimate(float(means[c]), samples[:, c]) for c in range(len(columns))]
    scored = [TableRow(row, dict(zip(keys, made[r * len(keys) :], strict=False))) for r, row in enumerate(rows)]
    start = len(rows) * len(keys)
    models = [row.model for row in rows]
    labels = [row.model if models.count(row.model) == 1 else f"{row.model} of {row.bundle}" for row in rows]
    lengths = [
        LengthBucket(
            first=LENGTHS[one],
            last=LENGTHS[one + 1] - 1 if one + 1 < len(LENGTHS) else None,
            moments=int((bucket == one).sum()),
            users=len(np.unique(code[bucket == one])),
            rows={label: made[start + r * len(held) + h] for r, label in enumerate(labels)},
        )
        for h, one in enumerate(held)
    ]
    place = [r * len(keys) + keys.index(headline) for r in range(len(rows))]
    compared = _compare(rows, labels, by_user[:, place], protocol.seed)
    repeats = not np.isnan(rows[0].values["repeat", headline[1]]).all()
    return EvaluationTable(protocol, scored, compared, lengths, list(examples), repeats)


def _compare(
    rows: Sequence[QueryMetrics], labels: Sequence[str], headline: Floats, seed: int
) -> list[BaselineComparison]:
    """Compare network and served rows with the best baseline by mean ``headline``."""
    baselines = [r for r, row in enumerate(rows) if row.kind == "baseline"]
    if not baselines:
        return []
    means = bootstrap.mean_over_users(headline)
    base = max(baselines, key=lambda r: float(means[r]))
    others = [r for r in range(len(rows)) if r not in baselines]
    found = [bootstrap.difference(headline[:, r], headline[:, base], seed) for r in others]
    adjusted = bootstrap.holm([one.p for one in found])
    return [
        BaselineComparison(labels[r], rows[r].model, rows[r].bundle, rows[r].kind, rows[base].model, one, round(p, 6))
        for r, one, p in zip(others, found, adjusted, strict=True)
    ]


def _has_interval(one: BaselineComparison) -> bool:
    """True if a difference has an interval.

    One user, or users without a difference, have none.
    """
    estimate = one.difference.absolute
    return not np.isnan(estimate.low) and estimate.low != estimate.high


def _describe_gain(one: BaselineComparison) -> str:
    estimate, relative = one.difference.absolute, one.difference.relative
    verb = {"more": "adds", "less": "loses", "inconclusive": "is inconclusive:"}[one.difference.verdict]
    size = estimate.value if one.difference.verdict != "less" else -estimate.value
    share = "" if np.isnan(relative.value) else f", {relative.value:+.1%}"
    who = f"{one.label} alone" if one.kind == "network" else one.label.replace("served", "the list as served", 1)
    if not _has_interval(one):
        return f"{who}: difference {estimate.value:+.4f}{share}"
    return (
        f"{who} {verb} {size:{'+' if one.difference.verdict == 'inconclusive' else ''}.4f} "
        f"({estimate.low:+.4f} to {estimate.high:+.4f}{share}, p = {one.p:.2g})"
    )


def protocol_line(protocol: EvaluationProtocol) -> str:
    """Describe the protocol in one line."""
    return (
        f"{protocol.name}, targets {protocol.targets}, full ranking of {protocol.items:,} items, "
        f"{protocol.moments:,} moments of {protocol.users:,} users, filter_seen {str(protocol.filter_seen).lower()}, "
        f"ties {protocol.ties}, k {', '.join(map(str, protocol.k))}, seed {protocol.seed}, "
        f"split {protocol.split_hash[:8]}, data {protocol.fingerprint[:8]}; "
        f"95 % CI over users, resampled {bootstrap.DRAWS:,} times"
    )


def number(value: float, digits: int = 4) -> str:
    """Format a share for a table: ``0.1234``, or a dash for NaN."""
    return "-" if np.isnan(value) else f"{value:.{digits}f}"
