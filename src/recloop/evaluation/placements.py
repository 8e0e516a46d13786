"""Evaluation of the placements, each by its own protocol.

The main placement has the rows of the table. A further personal placement is judged on what it may show: if it leaves out
seen items, on the targets that are new to the user; a list `again`, on those that the user had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from recloop.bundle import Bundle
from recloop.evaluation import bootstrap, metrics
from recloop.evaluation.bootstrap import Estimate
from recloop.evaluation.lists import ListRecommender
from recloop.evaluation.queries import Queries
from recloop.features.state import StateBatch
from recloop.files import JsonTree
from recloop.policy import AGAIN, PERSONAL
from recloop.recommend.catalog import Catalog
from recloop.recommend.new_items import seen_items

MEASURES: Final = ("Recall", "NDCG", "HR")

Targets = Literal["all", "new", "had"]
REFERENCES: Final[Mapping[Targets, str]] = {"all": "popular", "new": "popular", "had": "history"}
"""Source that lists are compared with, by the targets of the protocol."""


@dataclass(frozen=True)
class PlacementResult:
    """Lists of one placement.

    Attributes:
        targets: Targets that count: all, those new to the user, or those that the user had. moments: Queries with such a target.
        estimates: Mean over users of each measure at the first k; of ``popular`` or ``history`` (Bought-before), the NDCG of
            that source under the same filters; ``gain``: NDCG of the lists minus that of the source, paired.
        new_share: Share of the slots that are new to the user.
    """

    bundle: str
    placement: str
    targets: Targets
    moments: int
    estimates: Mapping[str, Estimate]
    new_share: float

    def to_json(self) -> JsonTree:
        estimates = {name: estimate.to_json() for name, estimate in self.estimates.items()}
        return {**vars(self), "estimates": estimates, "new_share": bootstrap.plain(self.new_share)}


class PlacementEvaluation:
    """Lists of one placement of a bundle while they are collected."""

    def __init__(self, bundle: Bundle, catalog: Catalog, placement: str, queries: Queries, k: int) -> None:
        self._lists = ListRecommender(bundle, catalog, placement, k)
        self._bundle, self._placement, self._queries, self._k = bundle, placement, queries, k
        self._items = np.zeros((len(queries), k), dtype=np.int64)
        self._reference = np.zeros((len(queries), k), dtype=np.int64)
        self._n_slots = self._n_new = 0
        settings = self._lists.settings
        is_new_only = bundle.policy.filters_seen(settings)
        self.targets: Targets = "had" if settings.list == AGAIN else "new" if is_new_only else "all"

    def ask(self, states: StateBatch, span: slice) -> None:
        """Answer these queries."""
        encoded, allowed = self._lists.encode(states, self._queries.now[span])
        recommender, settings = self._lists.recommender, self._lists.settings
        queries = [self._lists.query] * len(encoded)
        fused = recommender.fuse_sources(encoded, allowed, queries, settings, self._k)
        items = self._lists.lists(encoded, allowed, fused).items
        reference = recommender.scorers[REFERENCES[self.targets]].best(encoded, allowed, self._k).items
        self._items[span], self._reference[span] = items, reference
        self._n_slots += int(np.count_nonzero(items))
        self._n_new += int(np.count_nonzero((items > 0) & ~seen_items(encoded, items)))

    def result(self, repeat: NDArray[np.bool_], seed: int) -> PlacementResult:
        """Return the estimates over the targets of the protocol."""
        numbers = self._lists.numbers(self._queries.targets)
        keep = {"all": np.ones(len(repeat), dtype=bool), "new": ~repeat, "had": repeat}[self.targets]
        targets, offsets = metrics.keep_targets(numbers, self._queries.offsets, keep)
        values = metrics.ranking(self._items, targets, offsets, self._k)
        reference = metrics.ranking(self._reference, targets, offsets, self._k)["NDCG"]
        columns = {name: values[name] for name in MEASURES}
        columns |= {REFERENCES[self.targets]: reference, "gain": values["NDCG"] - reference}
        estimates = bootstrap.estimates_of(columns, self._queries.users, seed)
        new_share = self._n_new / self._n_slots if self._n_slots else float("nan")
        moments = int(np.count_nonzero(np.diff(offsets)))
        return PlacementResult(self._bundle.id, self._placement, self.targets, moments, estimates, new_share)


def further_placements(bundle: Bundle, main: str) -> Sequence[str]:
    """Return the personal placements of a bundle beside the main one."""
    return [name for name, one in bundle.policy.placements.items() if name != main and one.list in PERSONAL]


def lines(results: Sequence[PlacementResult], k: int) -> list[str]:
    """Describe each placement in one line."""
    return [_line(result, k) for result in results]


def _line(result: PlacementResult, k: int) -> str:
    targets = {"all": "all targets", "new": "targets new to the user", "had": "targets that the user had"}
    if not result.moments:
        return f"placement {result.placement}: the test has no {targets[result.targets].removeprefix('all ')}"
    source = REFERENCES[result.targets]
    name = {"popular": "Popular", "history": "Bought-before"}[source]
    ndcg = result.estimates["NDCG"]
    return (
        f"placement {result.placement}, {targets[result.targets]} ({result.moments:,} moments): "
        f"NDCG@{k} {ndcg.value:.4f} (95 % CI {ndcg.low:.4f}-{ndcg.high:.4f}), "
        f"Recall@{k} {result.estimates['Recall'].value:.4f}, HR@{k} {result.estimates['HR'].value:.4f}; "
        f"{name} NDCG@{k} {result.estimates[source].value:.4f} ({result.estimates['gain'].signed_text()}); "
        + _share_text(result.new_share)
    )


def _share_text(new_share: float) -> str:
    return "no slot was filled" if isnan(new_share) else f"{new_share:.0%} of the slots are new to the user"
