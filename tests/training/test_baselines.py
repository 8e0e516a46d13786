"""Further models of a bundle that nothing uses are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from recloop.bundle import Bundle
from recloop.policy import ScorerSpec
from recloop.project import Project
from recloop.training.unused_models import without_unused

EASE = ScorerSpec("ease", "ease", "neighbours")
RANKING = ScorerSpec("model", "neumf", "rank", of=("ease", "popular"))


def with_ease(bundle: Bundle, weight: float, more: Mapping[str, ScorerSpec]) -> Bundle:
    scorers = {**bundle.scorers, "ease": EASE, **more}
    home = bundle.policy.placements["home"]
    policy = bundle.policy.with_placement("home", replace(home, weights={**home.weights, "ease": weight}))
    arrays = {**bundle.arrays, "ease.weights": np.zeros(1, dtype=np.float32)}
    return replace(bundle, manifest=replace(bundle.manifest, scorers=scorers), policy=policy, arrays=arrays)


@pytest.mark.parametrize(
    ("weight", "more", "named", "is_kept"),
    [
        (0.0, {}, set(), False),
        (0.5, {}, set(), True),
        (0.0, {}, {"ease"}, True),
        (0.0, {"model": RANKING}, set(), True),  # it orders the items of EASE
    ],
)
def test_model_without_a_use_is_left_out(
    project: Project, weight: float, more: dict[str, ScorerSpec], named: set[str], is_kept: bool
) -> None:
    bundle = without_unused(with_ease(project.load_bundle(), weight, more), named)
    assert ("ease" in bundle.scorers) == is_kept
    assert ("ease.weights" in bundle.arrays) == is_kept
    assert ("ease" in bundle.policy.placements["home"].weights) == is_kept
