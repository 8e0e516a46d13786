"""Metrics: ranking quality, diversity and coverage; one formula per function.

Formulas are those of docs/definitions/ranking-metrics.md and diversity-and-coverage.md. Each is in its function's
docstring and has a test computed by hand. Intervals are in `recloop.evaluation.bootstrap`. All functions work on flat
arrays: Q queries, K ranks, U users, N items; an ``item_ix`` of 0 is padding. An undefined value (a query without a
target, a share with denominator 0) is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RANKING: Final = ("Recall", "NDCG", "HR", "MRR")
LN2: Final = float(np.log(2.0))
MAX_TABLED_COUNT: Final = 2**16
"""Above this number of slots of one item, the counts are sorted; below, the items of each count are tabled."""


# ---- ranking quality ------------------------------------------------------------------------------------------------


def ranking(lists: NDArray[Any], targets: NDArray[Any], offsets: NDArray[Any], k: int) -> dict[str, Floats]:
    """Return HR, Recall, MRR and NDCG of each list against its targets.

    With hit(r) = 1 if rank r holds a target, T targets and K = k:
    HR@K = 1 if any hit in r <= K; Recall@K = hits / T; MRR@K = 1 / r of the first hit, 0 without one;
    NDCG@K = sum of hit(r) / log2(r + 1) over r <= K, divided by the sum of 1 / log2(r + 1) over r <= min(K, T).

    Args:
        lists: (Q, at least K) item_ix, 0 after the end of a list.
        targets: flat distinct item_ix; 0 is a target outside the table (it counts in T).
        offsets: (Q+1,) query q owns ``targets[offsets[q]:offsets[q + 1]]``.
        k: Number of evaluated ranks; a shorter list has misses at the missing ranks.

    Returns:
        (Q,) for each name of `RANKING`; NaN for a query without a target.
    """
    hits = _hits(np.asarray(lists)[:, :k], np.asarray(targets), np.asarray(offsets))  # (Q, K)
    width = hits.shape[1]
    gain = 1.0 / np.log2(np.arange(2, k + 2))
    total = np.diff(np.asarray(offsets)).astype(np.float64)
    total[total == 0] = np.nan
    any_hit = hits.any(axis=1)
    first_rank = np.where(any_hit, hits.argmax(axis=1) + 1, 1) if width else np.ones(len(hits))
    zero_or_nan = np.where(np.isnan(total), np.nan, 0.0)
    ideal = ideal_gain(np.diff(np.asarray(offsets)), k)
    return {
        "Recall": hits.sum(axis=1) / total,
        "NDCG": zero_or_nan + (hits @ gain[:width]) / np.where(ideal > 0, ideal, 1.0),
        "HR": zero_or_nan + any_hit,
        "MRR": zero_or_nan + any_hit / first_rank,
    }


def ideal_gain(total: NDArray[Any], k: int) -> Floats:
    """Return the ideal DCG of T targets: sum of 1 / log2(r + 1) over r <= min(K, T)."""
    sums = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])
    ideal: Floats = sums[np.minimum(total, k)]
    return ideal


def _hits(lists: NDArray[Any], targets: NDArray[Any], offsets: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a (Q, K) bool mask of ranks that hold one of the query's targets."""
    width = int(max(lists.max(initial=0), targets.max(initial=0))) + 1
    owner = np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))
    target_keys = (owner * width + targets)[targets > 0]
    list_keys = np.arange(len(lists), dtype=np.int64)[:, None] * width + lists
    is_hit: NDArray[np.bool_] = np.isin(list_keys, target_keys) & (lists > 0)
    return is_hit


def keep_targets(targets: NDArray[Any], offsets: NDArray[Any], mask: NDArray[np.bool_]) -> tuple[Any, NDArray[Any]]:
    """Return the targets of a slice (warm, repeat, explore) and their offsets."""
    kept_before = np.concatenate([[0], np.cumsum(mask)])
    return targets[mask], kept_before[offsets]


def one_target_expectation(g: NDArray[Any], t: NDArray[Any], k: int) -> dict[str, Floats]:
    """Return one target's metrics in expectation over random tie-breaking.

    With g items scored strictly higher than the target and t tied items, including the target:
    HR@K = Recall@K = clip((K - g) / t, 0, 1); NDCG@K = 1/t * sum over r = g+1 .. min(g+t, K) of 1 / log2(r + 1);
    MRR@K is the same with 1 / r; without terms the sums are 0. (McSherry & Najork, "Computing information retrieval performance measures
    efficiently in the presence of tied scores", ECIR 2008.)
    """
    above, tied = np.asarray(g, dtype=np.int64), np.asarray(t, dtype=np.int64)
    if (tied < 1).any() or (above < 0).any():
        raise ValueError("g and t: expected g >= 0 and t >= 1 (a target ties with itself)")
    rank = np.arange(1, k + 1)
    last, before = np.minimum(above + tied, k), np.minimum(above, k)

    def mean_of(terms: Floats) -> Floats:
        sums = np.concatenate([[0.0], np.cumsum(terms)])
        value: Floats = (sums[last] - sums[before]) / tied
        return value

    hit_share = np.clip((k - above) / tied, 0.0, 1.0)
    return {"Recall": hit_share, "NDCG": mean_of(1.0 / np.log2(rank + 1)), "HR": hit_share, "MRR": mean_of(1.0 / rank)}


# ---- health of shown lists ------------------------------------------------------------------------------------------


def entropy_bits(counts: NDArray[Any], repeats: NDArray[Any] | None = None) -> float:
    """Return the entropy of the shown items in bits, with Miller-Madow's correction.

    H = -sum (n_i/n) log2(n_i/n) + (d-1) / (2 n ln 2). The correction matters for few slots.

    Args:
        counts: n_i, slots of each shown item; zeros are allowed. n is their sum, d the number of shown items.
        repeats: Number of items with each count, as of `count_repeats`; None for one.
    """
    slots, n_items = _shown(counts, repeats)
    if not len(slots):
        return float("nan")
    n = float((n_items * slots).sum())
    shares = slots / n
    return float(-(n_items * shares * np.log2(shares)).sum() + (n_items.sum() - 1) / (2.0 * n * LN2))


def entropy(counts: NDArray[Any], n_items: int) -> float:
    """Return the `evenness` of slots over the N showable items."""
    return evenness(entropy_bits(counts), n_items)


def evenness(bits: float, n_items: int) -> float:
    """Return H / log2 N, at most 1, of an entropy H in bits; 0 for N = 1."""
    if np.isnan(bits) or n_items <= 1:
        return bits if np.isnan(bits) else 0.0
    return min(1.0, bits / float(np.log2(n_items)))


def effective_items(bits: float) -> float:
    """Return 2^H, the number of equally shown items with an entropy of H bits."""
    return float(2.0**bits)


def coverage(counts: NDArray[Any], n_items: int, repeats: NDArray[Any] | None = None) -> float:
    """Return the share d / N of showable items that were shown.

    It is capped at 1, because shown items may be hidden later.
    """
    n_shown = int(_shown(counts, repeats)[1].sum())
    return min(1.0, n_shown / n_items) if n_shown and n_items else float("nan")


def gini(counts: NDArray[Any], n_items: int, repeats: NDArray[Any] | None = None) -> float:
    """Return the Gini coefficient of the slots per item; 0 is even.

    It is the sum over i = 1..N of (2i - N - 1) n_(i) / (N n), with ascending n_(i), including items that were never shown.
    """
    slots, n_shown = _shown(counts, repeats)
    if not len(slots):
        return float("nan")
    order = np.argsort(slots)
    slots, n_shown = slots[order], n_shown[order]
    n_ranked = max(n_items, int(n_shown.sum()))
    last = n_ranked - n_shown.sum() + np.cumsum(n_shown)  # rank i of the last item with each count
    mean_rank = last - (n_shown - 1) / 2
    return float(((2 * mean_rank - n_ranked - 1) * n_shown * slots).sum() / (n_ranked * (n_shown * slots).sum()))


def count_repeats(counts: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the distinct counts above 0, ascending, and the items with each.

    Entropy, coverage and Gini depend on these alone. A million items have some hundred distinct counts.
    """
    if counts.max(initial=0) > MAX_TABLED_COUNT:
        distinct, repeats = np.unique(counts[counts > 0], return_counts=True)
        return distinct, repeats
    items = np.bincount(counts, minlength=1)  # items by count
    distinct = 1 + np.flatnonzero(items[1:])
    return distinct, items[distinct]


def _shown(counts: NDArray[Any], repeats: NDArray[Any] | None) -> tuple[Floats, NDArray[Any]]:
    """Return the counts above 0 and the number of items with each."""
    slots = np.asarray(counts, dtype=np.float64)
    is_shown = slots > 0
    return slots[is_shown], np.ones(int(is_shown.sum())) if repeats is None else np.asarray(repeats)[is_shown]


def long_tail_share(counts: NDArray[Any], tail: NDArray[np.bool_], slots: int | None = None) -> float:
    """Return the share of slots (or of a reference window's events) with tail items.

    Args:
        counts: n_i of each item; zeros are allowed.
        tail: True for tail items, those outside the ceil(0.2 N) with most positive events in the 90 days before the
            bundle's cut. An item without events is a tail item.
        slots: Sum of ``counts``, if it is known.
    """
    n = float(np.asarray(counts).sum() if slots is None else slots)
    return float(np.einsum("i,i->", counts, tail)) / n if n else float("nan")


def novelty(counts: NDArray[Any], reference: NDArray[Any], n_items: int) -> float:
    """Return the mean novelty over slots: -log2((c_i + 1) / (C + N)).

    c_i is the number of the item's events in the reference window; C is their sum.

    Args:
        counts: n_i, slots of each item.
        reference: c_i of the same items, 0 for items outside the window; C is the sum of `reference`, so it must
            hold every item of the window.
        n_items: N.
    """
    n, total = float(np.asarray(counts).sum()), float(np.asarray(reference).sum())
    if not n:
        return float("nan")
    surprise = -np.log2((np.asarray(reference, dtype=np.float64) + 1.0) / (total + n_items))
    return float((np.asarray(counts) * surprise).sum() / n)


def cold_coverage(users: NDArray[Any], cold: NDArray[np.bool_], covering: NDArray[Any]) -> float:
    """Return the share of cold users with a decision that got a personal list.

    A decision's list is personal if half or more of its slots have a covering source: any outside `records.IMPERSONAL`
    (``popular``, ``segment``, ``latest``). Without cold users it is NaN.

    Args:
        users: (Q,) number of each decision's user.
        cold: (Q,) True for fewer than 5 valid positives in the state at the request.
        covering: (Q,) share of the decision's slots with a covering source.
    """
    cold_users = np.unique(users[cold])
    if not len(cold_users):
        return float("nan")
    return len(np.unique(users[cold & (covering >= 0.5)])) / len(cold_users)


def equal_n(
    groups: Mapping[str, NDArray[Any]], number: Callable[[NDArray[Any]], float], seed: int = 0, draws: int = 20
) -> dict[str, float]:
    """Compute a number of each group's slots at equal n.

    Diversity grows with n, so n is the number of slots of the smallest group. The result is the mean of ``number`` over 20 seeded draws of n slots
    without replacement from each group. A group without slots is NaN and does not set n.

    Args:
        groups: name -> (slots,) item numbers shown.
        number: Function of the counts by item number, up to the highest number of any group, such as
            ``lambda counts: entropy(counts, N)``.
    """
    sizes = [len(slots) for slots in groups.values() if len(slots)]
    n = min(sizes, default=0)
    width = max((int(slots.max()) + 1 for slots in groups.values() if len(slots)), default=0)
    numbers = {}
    for name, slots in groups.items():
        random = np.random.default_rng(seed)
        samples = (
            [np.bincount(random.choice(slots, n, replace=False), minlength=width) for _ in range(draws)]
            if len(slots)
            else []
        )
        numbers[name] = float(np.mean([number(counts) for counts in samples])) if samples else float("nan")
    return numbers
