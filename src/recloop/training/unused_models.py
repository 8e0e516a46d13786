"""Further models that no list of a bundle uses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from recloop.bundle import Bundle
from recloop.records import FUSED_SOURCES


def without_unused(bundle: Bundle, named: Collection[str]) -> Bundle:
    """Leave out the further models without a use, except those named."""
    placements = bundle.policy.placements
    weights = [one.weights for one in placements.values()]
    weights += [one.new.weights for one in placements.values() if one.new is not None]
    used = {source for of_list in weights for source, weight in of_list.items() if weight > 0}
    used |= {source for spec in bundle.scorers.values() for source in spec.of or ()}
    unused = {
        source
        for source, spec in bundle.scorers.items()
        if source not in FUSED_SOURCES and source not in used and spec.model not in named
    }
    if not unused:
        return bundle
    scorers = {source: spec for source, spec in bundle.scorers.items() if source not in unused}
    arrays = {name: array for name, array in bundle.arrays.items() if name.partition(".")[0] not in unused}

    def without_sources(weights: Mapping[str, float]) -> dict[str, float]:
        return {source: weight for source, weight in weights.items() if source not in unused}

    policy = replace(
        bundle.policy,
        placements={
            name: replace(
                one,
                weights=without_sources(one.weights),
                new=None if one.new is None else replace(one.new, weights=without_sources(one.new.weights)),
            )
            for name, one in placements.items()
        },
    )
    return replace(bundle, manifest=replace(bundle.manifest, scorers=scorers), arrays=arrays, policy=policy)
