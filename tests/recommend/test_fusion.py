"""Fusion: the list of a single source against the general sum."""

from __future__ import annotations

import numpy as np
import pytest

from recloop.recommend.fusion import fuse
from recloop.recommend.top_k import TopK


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
