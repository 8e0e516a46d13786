"""Settings of the baselines: configured options, and choices on validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from recloop.bundle import Bundle
from recloop.config import Config
from recloop.errors import UserError
from recloop.models.base import SOURCE_OF, TrainData, ValidationQueries, load_model
from recloop.policy import ScorerSpec
from recloop.records import DAY
from recloop.training.closed_form import fit_model
from recloop.training.dataset import ItemUserTables
from recloop.training.fusion_weights import ndcg
from recloop.training.segments import segment_arrays
from recloop.training.validation_recall import ValidationRecall

HALF_LIFE_DAYS: Final[tuple[float | None, ...]] = (None, 7.0, 30.0, 90.0, 365.0)
"""Half-lives in days that ``baselines.half_life = "auto"`` tries; None: no decay."""
SAME_WEIGHTS: Final = (1.0, 4.0)
"""Weights of two items of one moment that co-visitation tries beside 0, as long as they help."""


def with_options(spec: ScorerSpec, options: Mapping[str, Any]) -> ScorerSpec:
    """Set the options of ``[model]`` that name this baseline.

    Raises:
        UserError: an option is unknown, invalid or chosen on validation.
    """
    if "half_life" in options:
        expected = "baselines.half_life, which holds for all baselines"
        raise UserError("model.half_life", options["half_life"], expected, "--set baselines.half_life=30")
    if "same" in options:
        expected = "no value, because validation chooses it"
        raise UserError("model.same", options["same"], expected, "remove model.same from recloop.toml")
    if not options:
        return spec
    config = load_model(spec.model, options).config
    return replace(spec, config=config.model_dump(mode="json", include=set(options)))


def choose_half_life(
    bundle: Bundle,
    source: str,
    config: Config,
    data: TrainData,
    tables: ItemUserTables,
    recall: ValidationRecall | None,
) -> Bundle:
    """Choose the best half-life of one source; on a tie the first of `HALF_LIFE_DAYS`.

    Popular and Co-visitation skip half-lives longer than the log, which change little and cost a fit.
    """
    days = config.baselines.half_life
    if bundle.scorers[source].model not in SOURCE_OF:
        return bundle  # a custom model chooses its own half-life
    if days != "auto":
        return _with_half_life(bundle, source, None if days == "none" else float(days), data, tables)
    if data.held is None or recall is None:
        return bundle
    span = (data.cut - int(data.stamps.min())) / DAY if len(data.stamps) else 0.0
    half_lives = [
        half_life for half_life in HALF_LIFE_DAYS if half_life is None or source == "history" or half_life <= span
    ]
    best: tuple[float, Bundle] | None = None
    for half_life in half_lives if len(half_lives) > 1 else []:
        candidate = _with_half_life(bundle, source, half_life, data, tables)
        value = own_ndcg(candidate, source, data.held, recall)
        if best is None or value > best[0]:
            best = (value, candidate)
    return bundle if best is None else best[1]


def choose_same(bundle: Bundle, data: TrainData, tables: ItemUserTables, recall: ValidationRecall) -> Bundle:
    """Choose the weight of two items of one moment in co-visitation.

    NDCG@10 of its own list decides; a tie keeps the smaller weight.
    """
    source = "neighbours"
    has_baskets = bool((np.diff(data.moment_offsets) > 1).any())
    if bundle.scorers[source].model not in SOURCE_OF or data.held is None or not has_baskets:
        return bundle
    best, best_ndcg = bundle, own_ndcg(bundle, source, data.held, recall)
    for same in SAME_WEIGHTS:
        candidate = refitted(bundle, replace(bundle.scorers[source], same=same), data, tables)
        value = own_ndcg(candidate, source, data.held, recall)
        if value <= best_ndcg:
            break
        best, best_ndcg = candidate, value
    return best


def own_ndcg(bundle: Bundle, source: str, held: ValidationQueries, recall: ValidationRecall) -> float:
    """Return NDCG@10 of the list of one source on validation."""
    top_k = recall.recall(bundle, [source])[source]
    return float(np.nanmean(ndcg(top_k.items, held.items, held.offsets)))


def _with_half_life(
    bundle: Bundle, source: str, half_life: float | None, data: TrainData, tables: ItemUserTables
) -> Bundle:
    """Set the half-life of one source and refit the arrays that depend on it."""
    if bundle.scorers[source].half_life == half_life:
        return bundle
    return refitted(bundle, replace(bundle.scorers[source], half_life=half_life), data, tables)


def refitted(bundle: Bundle, scorer: ScorerSpec, data: TrainData, tables: ItemUserTables) -> Bundle:
    """Set the scorer of a baseline and refit the arrays that depend on it."""
    scorers = {**bundle.scorers, scorer.source: scorer}
    arrays = dict(bundle.arrays)
    if scorer.source != "history":
        arrays |= fit_model(scorer.model, load_model(scorer.model, scorer.fit_options), data)
    if scorer.source == "popular":
        arrays |= segment_arrays(data, tables, scorer.half_life)
    return replace(bundle, manifest=replace(bundle.manifest, scorers=scorers), arrays=arrays)
