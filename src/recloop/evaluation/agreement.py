"""Agreement of two bundles on one request: overlap, RBO, tau-b, percentile.

Source: docs/definitions/shadow-agreement.md. Each function's docstring has its formula and source. A ranking is a
bundle's order before filters.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recloop.features.state import StateBatch
from recloop.features.vocabulary import Vocabulary
from recloop.recommend.filters import candidate_mask
from recloop.recommend.recommender import Recommender
from recloop.recommend.top_k import DEPTH
from recloop.records import Decision, Query

LIST_LENGTH: Final = 10
TOP_LENGTH: Final = 100
PERSISTENCE: Final = 0.9
MIN_SLOTS: Final = 5
"""Minimum slots of a list for a comparison of order."""
MEASURES: Final = ("overlap@10", "rbo", "tau_b", "percentile")


@dataclass(frozen=True)
class Ranking:
    """Unfiltered ranking of one request: top 100 ids and all fused scores."""

    top: list[str]
    scores: NDArray[np.float64]  # (N+1,); 0 if no source recalled the item; row 0: items outside the table
    vocabulary: Vocabulary

    def scores_of(self, items: Sequence[str]) -> NDArray[np.float64]:
        """Return the scores of these items; items outside the table rank last."""
        scores: NDArray[np.float64] = self.scores[self.vocabulary.lookup(items)]
        return scores


def ranking_of(recommender: Recommender, states: StateBatch, decision: Decision) -> Ranking:
    """Rank a decision's request with a bundle: its fused list over all recalled items.

    Conditions, exclusions and the filter of seen items are ignored. Hidden and disliked items stay excluded.
    """
    query = Query(
        user_id=decision.user_id,
        now=decision.served_at,
        placement=decision.placement,
        item_id=decision.query.get("item", ""),
    )
    encoded = recommender.encode(states, [decision.served_at])
    table = recommender.bundle.items.ids
    allowed = candidate_mask(recommender.catalog, table, encoded, [query], ("", ""), False)
    placement = replace(recommender.placement(decision.placement), new=None)
    fused = recommender.fuse_sources(
        encoded, allowed, [query], placement, min(len(table), DEPTH * len(recommender.scorers))
    )
    items = fused.items[0]
    n_ranked = int(np.count_nonzero(items))
    scores = np.zeros(len(table) + 1)
    scores[0] = -np.inf
    scores[items[:n_ranked]] = fused.scores[0, :n_ranked]
    return Ranking([table.ids[item_ix - 1] for item_ix in items[: min(n_ranked, TOP_LENGTH)]], scores, table)


def agreement(
    live_decision: Decision, other_decision: Decision, other_ranking: Ranking, live_ranking: Ranking
) -> dict[str, float]:
    """Compute every number of `MEASURES` for one request; NaN if a list is too short.

    Args:
        live_decision: Decision of live. other_decision: Decision of the other bundle.
        other_ranking: Ranking of the other bundle. live_ranking: Ranking of live.
    """
    live_items = live_decision.items[:LIST_LENGTH]
    scores = other_ranking.scores_of(live_items)
    return {
        "overlap@10": overlap(live_items, other_decision.items[:LIST_LENGTH]),
        "rbo": rbo(live_ranking.top, other_ranking.top),
        "tau_b": tau_b(scores) if len(live_items) >= MIN_SLOTS else math.nan,
        "percentile": mean_percentile(other_ranking.scores[1:], scores) if live_items else math.nan,
    }


def overlap(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Return |A and B| / the longer length; two empty lists give 1."""
    longest = max(len(first), len(second))
    return len(set(first) & set(second)) / longest if longest else 1.0


def rbo(first: Sequence[Hashable], second: Sequence[Hashable], p: float = PERSISTENCE) -> float:
    """Return the rank-biased overlap RBO_ext of two rankings of s <= l items.

    Source: Webber, Moffat, Zobel, "A similarity measure for indefinite rankings", 2010, equation 32.
    With X_d the overlap of the first d ranks: (1-p)/p * (sum over d = 1..l of X_d / d * p^d
    + sum over d = s+1..l of X_s (d - s) / (s d) * p^d) + ((X_l - X_s) / l + X_s / s) * p^l.
    Two empty rankings give 1; one empty ranking gives 0.
    """
    shorter, longer = sorted((first, second), key=len)
    s, l = len(shorter), len(longer)  # noqa: E741 the names of the equation
    if not s:
        return 1.0 if not l else 0.0
    prefixes: tuple[set[Any], set[Any]] = set(), set()
    common = 0
    at_s = 0
    total = 0.0
    for d in range(1, l + 1):
        a, b = longer[d - 1], shorter[d - 1] if d <= s else None
        common += (a in prefixes[1]) + (d <= s and b in prefixes[0]) + (d <= s and a == b)
        prefixes[0].add(a)
        if d <= s:
            prefixes[1].add(b)
            at_s = common
        total += common / d * p**d
        if d > s:
            total += at_s * (d - s) / (s * d) * p**d
    return (1 - p) / p * total + ((common - at_s) / l + at_s / s) * p**l


def tau_b(scores: NDArray[np.float64]) -> float:
    """Return Kendall's tau-b of a list's order and another's scores; NaN if all tie.

    It is (with - against) / sqrt(pairs * (pairs that do not tie)), in numpy because scipy.stats takes a second to import.
    """
    if len(scores) < 2 or (scores == scores[0]).all():
        return math.nan
    first, second = np.triu_indices(len(scores), 1)
    concordant = int((scores[first] > scores[second]).sum())
    discordant = int((scores[first] < scores[second]).sum())
    return (concordant - discordant) / math.sqrt(len(first) * (concordant + discordant))  # a list's order has no ties


def mean_percentile(catalog_scores: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """Return the mean percentile of items in the catalog: 1 is first, 0.5 is chance.

    It is the mean over items of 1 - (g + (t-1)/2) / (N-1), with g catalog items scored strictly higher and t tied items,
    including the item. An item outside the catalog (-inf) has percentile 0.
    """
    ascending = np.sort(catalog_scores)
    below, up_to = np.searchsorted(ascending, scores, "left"), np.searchsorted(ascending, scores, "right")
    above, tied = len(ascending) - up_to, np.maximum(1, up_to - below)
    value = 1.0 - (above + (tied - 1) / 2) / max(1, len(ascending) - 1)
    return float(np.clip(value, 0.0, 1.0).mean())
