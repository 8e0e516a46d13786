"""Mixed lists: a share of the slots for items that are new to the user.

If a list holds too few new items, the best further ones replace its lowest seen items (docs/definitions/fusion.md).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from recloop.features.encode import EncodedBatch
from recloop.policy import NewItems
from recloop.recommend.fusion import FusedTopK, fuse
from recloop.recommend.top_k import DEPTH, TopK


def seen_items(encoded: EncodedBatch, items: np.ndarray) -> np.ndarray:
    """(B, W) True for items (B, W) that were targets in the history of their query."""
    if len(encoded) == 1:
        return np.isin(items, encoded.items[encoded.targets])
    width = int(max(items.max(initial=0), encoded.items.max(initial=0))) + 1
    row_query = np.repeat(np.arange(len(encoded)), np.diff(encoded.row_offsets))
    seen = (row_query * width + encoded.items)[encoded.targets]
    is_seen: np.ndarray = np.isin(np.arange(len(encoded))[:, None] * width + items, seen)
    return is_seen


def with_new_items(
    listed: FusedTopK, encoded: EncodedBatch, recalled: Mapping[str, TopK], new: NewItems, k: int
) -> FusedTopK:
    """Return lists of ``k`` items of which enough are new.

    The order of the list is kept. New items of the fusion by ``new.weights`` follow at its end if the list has too few.

    Args:
        listed: Lists of at least ``k`` slots (B, W); slots after the first ``k`` supply further new items.
        recalled: Lists of the sources, whose names are those of ``listed``.
    """
    n_wanted = new.slots(k)
    is_item = listed.items > 0
    is_new = is_item & ~seen_items(encoded, listed.items)  # (B, W)
    n_listed = is_new.sum(axis=1)
    n_kept = np.maximum(is_new[:, :k].sum(axis=1), np.minimum(n_listed, n_wanted))  # (B,)
    further = _further_items(listed, encoded, recalled, new, np.flatnonzero(n_listed < n_wanted), n_wanted - n_listed)
    n_seen = k - n_kept
    for b, fused in further.items():
        n_seen[b] -= np.count_nonzero(fused.items)
    is_kept = np.where(
        is_new,
        is_new.cumsum(axis=1) <= n_kept[:, None],
        is_item & ((is_item & ~is_new).cumsum(axis=1) <= n_seen[:, None]),
    )
    mixed = first_columns(listed, is_kept, k)
    for b, fused in further.items():
        _append(mixed, b, fused)
    return mixed


def _further_items(
    listed: FusedTopK, encoded: EncodedBatch, recalled: Mapping[str, TopK], new: NewItems, rows: np.ndarray,
    n_missing: np.ndarray,
) -> dict[int, FusedTopK]:  # fmt: skip
    """Return the best further new items of the fusion by query of ``rows``."""
    if not len(rows):
        return {}
    of_rows = {source: TopK(top_k.items[rows], top_k.scores[rows]) for source, top_k in recalled.items()}
    fused = fuse(of_rows, new.weights, DEPTH * len(of_rows), new.fusion_constant)
    all_items = np.zeros((len(encoded), fused.items.shape[1]), dtype=fused.items.dtype)
    all_items[rows] = fused.items
    is_further = (fused.items > 0) & ~seen_items(encoded, all_items)[rows]
    further = {}
    for row, b in enumerate(rows.tolist()):
        items = fused.items[row]
        columns = np.flatnonzero(is_further[row] & ~np.isin(items, listed.items[b]))[: n_missing[b]]
        further[b] = FusedTopK(items[columns], fused.scores[row, columns], fused.sources[row, columns])
    return further


def first_columns(listed: FusedTopK, is_kept: np.ndarray, k: int) -> FusedTopK:
    """Return the first ``k`` kept slots of each list, in order."""
    columns = np.argsort(~is_kept, axis=1, kind="stable")[:, :k]
    is_item = np.take_along_axis(is_kept, columns, axis=1)
    features = [known[columns[b][is_item[b] & (columns[b] < len(known))]] for b, known in enumerate(listed.features)]
    return FusedTopK(
        items=np.where(is_item, np.take_along_axis(listed.items, columns, axis=1), 0),
        scores=np.where(is_item, np.take_along_axis(listed.scores, columns, axis=1), np.float32(-np.inf)),
        sources=np.where(is_item, np.take_along_axis(listed.sources, columns, axis=1), np.int8(-1)),
        features=features,
        names=listed.names,
    )


def _append(mixed: FusedTopK, b: int, further: FusedTopK) -> None:
    """Write further items after the last one of list b.

    Their scores are lower and keep the order.
    """
    n_items = int(np.count_nonzero(mixed.items[b]))
    span = slice(n_items, n_items + len(further.items))
    last_score = mixed.scores[b, n_items - 1] if n_items else np.float32(1)
    mixed.items[b, span], mixed.sources[b, span] = further.items, further.sources
    mixed.scores[b, span] = last_score * further.scores / (1 + further.scores[:1])
