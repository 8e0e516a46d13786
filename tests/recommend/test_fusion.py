"""Fusion against its definition on random lists."""

from __future__ import annotations

import numpy as np
import pytest

from recloop.recommend import fusion
from recloop.recommend.fusion import fuse
from recloop.recommend.top_k import TopK
from recloop.records import FUSED_SOURCES


def random_lists(generator: np.random.Generator, size: int) -> dict[str, TopK]:
    """Lists of distinct items, some shorter than the depth."""
    lists = {}
    for source in FUSED_SOURCES[:3]:
        depth = int(generator.integers(1, 12))
        items = np.array([generator.permutation(20)[:depth] + 1 for _ in range(size)], dtype=np.int32)
        for row in items:
            row[generator.integers(0, depth + 1) :] = 0
        lists[source] = TopK(items, np.zeros(items.shape, dtype=np.float32))
    return lists


def fused_row(
    lists: dict[str, TopK], weights: dict[str, float], b: int, constant: float
) -> list[tuple[int, float, int]]:
    """Return (item, score, source number) of query b, best first."""
    shares: dict[int, list[tuple[float, int]]] = {}
    for source, top in lists.items():
        for rank, item in enumerate(top.items[b].tolist(), start=1):
            if item and weights.get(source, 0) > 0:
                number = FUSED_SOURCES.index(source)
                shares.setdefault(item, []).append((weights[source] / (constant + rank), -number))
    rows = []
    for item, parts in shares.items():
        parts.sort(reverse=True)
        rows.append((item, float(np.float32(sum(share for share, _ in parts))), -parts[0][1]))
    return sorted(rows, key=lambda row: (-row[1], row[0]))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [1, 7])
def test_fuse_equals_its_definition(seed: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "ROWS_PER_STEP", 3)
    generator = np.random.default_rng(seed)
    lists = random_lists(generator, size)
    weights = {source: float(generator.choice([0, 0.25, 0.5, 1.0])) for source in lists}
    found = fuse(lists, weights, 6, 5.0)
    for b in range(size):
        wanted = fused_row(lists, weights, b, 5.0)[:6]
        n = len(wanted)
        kept = zip(
            found.items[b, :n].tolist(), found.scores[b, :n].tolist(), found.sources[b, :n].tolist(), strict=True
        )
        assert list(kept) == wanted
        assert not found.items[b, n:].any()
        assert np.isneginf(found.scores[b, n:]).all()


@pytest.mark.parametrize(("k", "constant"), [(3, 60.0), (8, 1.0), (12, 5.0)])
def test_fuse_of_one_source_equals_fusion_with_an_empty_one(k: int, constant: float) -> None:
    generator = np.random.default_rng(k)
    history = TopK.empty(5, 9)
    for b, size in enumerate((9, 4, 0, 1, 9)):
        history.items[b, :size] = generator.permutation(np.arange(1, 20))[:size]
    weights = {"history": 0.5, "neighbours": 1.0}
    fused = fuse({"history": history, "neighbours": TopK.empty(5, 9)}, weights, k, constant)
    single = fuse({"history": history}, weights, k, constant)
    assert np.array_equal(single.items, fused.items)
    assert np.array_equal(single.scores, fused.scores)
    assert np.array_equal(single.sources, fused.sources)
