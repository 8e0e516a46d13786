"""Fit the closed-form models of a bundle and choose half-lives and weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recloop.bundle import Bundle, ItemTable, UserTable
from recloop.config import Config
from recloop.features.state_history import StateHistory
from recloop.files import JsonTree
from recloop.manifest import Manifest, ModelSpec
from recloop.models.base import SOURCE_OF, TrainData, ValidationQueries, load_model, model_class
from recloop.policy import (
    AGAIN,
    AGAIN_SOURCE,
    FADING,
    FALLBACK,
    CatalogRules,
    NewItems,
    Placement,
    Policy,
    ScorerSpec,
    sources_of_new_items,
)
from recloop.recommend import similar_items
from recloop.records import source_names
from recloop.training.attribute_affinity import choose_strengths, refit_affinity, strengths_of
from recloop.training.baseline_settings import choose_half_life, choose_same, own_ndcg, refitted, with_options
from recloop.training.closed_form import checked_source, closed_form, fit_model, recent_weights
from recloop.training.dataset import ItemUserTables
from recloop.training.fusion_weights import FIT_MOMENTS, FusionChoice, fusion_or_single
from recloop.training.kept_models import with_fit, with_fits
from recloop.training.segments import segment_arrays
from recloop.training.unused_models import without_unused
from recloop.training.validation_recall import ValidationRecall


@dataclass(frozen=True)
class Chosen:
    """Settings chosen on the validation moments.

    Attributes:
        half_life: Days by source; None: no decay.
        same: Weight of two items of one moment in co-visitation.
        attributes: Sentence about the attribute lists of cold users.
        fusion: The fusion weights; None without validation moments.
        discovery: Those of the placements with the other ``filter_seen`` than the first one; None without such.
        ranker: Outcome of `recloop.training.ranker.choose_ranker`.
    """

    validation_moments: int
    half_life: Mapping[str, float | None]
    same: float = 0.0
    attributes: str = ""
    fusion: FusionChoice | None = None
    ranker: JsonTree | None = None
    discovery: FusionChoice | None = None

    def to_json(self) -> JsonTree:
        """Return the ``chosen`` section of a run's metrics.json."""
        tree: JsonTree = {"validation_moments": self.validation_moments, "half_life": dict(self.half_life)}
        tree["same"] = self.same
        if self.attributes:
            tree["attributes"] = self.attributes
        if self.ranker is not None:
            tree["ranker"] = self.ranker
        if self.discovery is not None:
            tree["discovery"] = {"mix": self.discovery.weights, "validation_ndcg": self.discovery.ndcg}
        if self.fusion is not None:
            tree |= {
                "validation_ndcg": {**self.fusion.alone, "mix": self.fusion.ndcg},
                "mix": self.fusion.weights,
                "rrf": self.fusion.constant,
                "best_mix": self.fusion.best,
                "gain": None if self.fusion.gain is None else self.fusion.gain.to_json(),
            }
        return tree


def fit_counts(
    data: TrainData,
    tables: ItemUserTables,
    custom: Mapping[str, Mapping[str, Any]] | None = None,
    chosen: Mapping[str, ScorerSpec] | None = None,
    strengths: Sequence[float] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, ScorerSpec]]:
    """Fit the closed-form models and return their arrays and scorers.

    Args:
        custom: Options of closed-form models, by name or dotted path. A model that is not a baseline replaces the built-in
            one of its source, or adds a source of its own name.
        chosen: Scorers whose half-lives and weights the baselines have; None: no decay and the defaults.
        strengths: Strengths of the attribute affinities (`strengths_of`); None: none.
    """
    custom = custom or {}
    baselines = {
        source: with_options((chosen or {}).get(source) or ScorerSpec(source, name, ""), custom.get(name, {}))
        for name, source in SOURCE_OF.items()
    }
    models: dict[str, tuple[str, Any]] = {
        source: (name, load_model(name, baselines[source].fit_options)) for name, source in SOURCE_OF.items()
    }
    for name, options in custom.items():
        if name not in SOURCE_OF:
            model = load_model(name, options)
            models[checked_source(name, model)] = (name, model)
    arrays = {name: array for key, model in models.values() for name, array in fit_model(key, model, data).items()}
    half_life = baselines["popular"].half_life
    arrays |= segment_arrays(data, tables, half_life)
    arrays |= refit_affinity(data, strengths, half_life)
    scorers = {
        source: with_fit(_scorer(name, model, baselines.get(source)), data)
        for source, (name, model) in sorted(models.items())
    }
    return arrays, scorers


def _scorer(name: str, model: Any, chosen: ScorerSpec | None = None) -> ScorerSpec:
    """Return the scorer of a fitted model; ``chosen``: settings of a baseline."""
    baseline = chosen or ScorerSpec(model.source, name, model.kind)
    return ScorerSpec(
        source=model.source,
        model=name,
        kind=model.kind,
        config=baseline.config if name in SOURCE_OF else model.config.model_dump(mode="json"),
        half_life=baseline.half_life,
        same=baseline.same,
        recent=recent_weights(model),
    )


def draft_bundle(
    config: Config,
    tables: ItemUserTables,
    data: TrainData,
    arrays: dict[str, np.ndarray],
    scorers: Mapping[str, ScorerSpec],
    manifest: Manifest,
) -> Bundle:
    """Build a bundle in memory with weight 1 for every source of ``auto`` weights."""
    placements = {
        name: Placement(
            list=section.list,
            weights=_start(section.list, section.weights, scorers),
            filter=section.filter,
            n=section.n,
            filter_seen=None if section.filter_seen == "auto" else section.filter_seen,
            cold_share=section.cold_share,
            cold_own=section.cold_own if section.list == "for_you" else 0,
            new=NewItems(section.min_new, sources_of_new_items(scorers)) if section.min_new > 0 else None,
        )
        for name, section in config.placement.items()
    }
    model_scorer = scorers.get("model")
    if model_scorer is not None and model_scorer.config is not None:
        manifest = replace(manifest, model=ModelSpec(model_scorer.model, model_scorer.config))
    return Bundle(
        manifest=replace(manifest, scorers=dict(scorers)),
        spec=tables.spec,
        fields=tables.fields,
        policy=Policy(placements, config.split.filter_seen, FALLBACK, catalog=_catalog_rules(config)),
        items=ItemTable(
            ids=tables.items,
            count=data.counts[1:],
            tail=tables.tail,
            first_seq=tables.first_seq,
            attributes=[row or {} for row in tables.item_attributes],
        ),
        users=_user_table(tables, data, arrays),
        arrays=arrays,
    )


def _catalog_rules(config: Config) -> CatalogRules:
    """Rules of the catalog as lists apply them."""
    section = config.catalog
    return CatalogRules(section.availability, section.published, section.expires, section.group, config.data.timezone)


def choose_half_life_and_weights(
    bundle: Bundle,
    config: Config,
    data: TrainData,
    tables: ItemUserTables,
    past: StateHistory,
    threads: int = 1,
    keep: Collection[str] = (),
) -> tuple[Bundle, Chosen]:
    """Choose half-lives and fusion weights by NDCG@10 on the validation moments.

    Args:
        data: The rows that the bundle's models were fitted on (`recloop.training.dataset.validation_data`).
        past: Timeline of the rows before the cut, including validation moments; each query sees earlier rows only.
        keep: Models that stay in the bundle if no list uses them.
    """
    validation = data.held
    sampled = np.zeros(0, np.int64)
    recall: ValidationRecall | None = None
    if validation is not None:
        sampled = validation.sample_indices(data.user_ids, config.split.validation_users)
        judged = validation.at(sampled) if len(sampled) else validation
        data = replace(data, held=judged)
        if config.baselines.half_life == "auto":
            recall = ValidationRecall(bundle, judged, data, past, threads=threads).keep()
    for source in FADING:
        bundle = choose_half_life(bundle, source, config, data, tables, recall)
    if recall is not None:
        bundle = choose_same(bundle, data, tables, recall)
    half_lives = half_lives_of(bundle.scorers)
    attributes = choose_strengths(bundle, config, data)
    arrays = refit_affinity(data, attributes.strengths, half_lives["popular"])
    bundle = replace(bundle, arrays={**bundle.arrays, **arrays})
    same = bundle.scorers["neighbours"].same or 0.0
    chosen = Chosen(len(sampled), half_lives, same, attributes.sentence)
    if validation is None:
        return bundle, chosen
    fusions = _Fusions(bundle, config, validation, data, past, threads)
    policy = replace(bundle.policy, placements=_with_weights(bundle.policy, config, fusions))
    named = keep if config.baselines.extra == "auto" else {*keep, *config.baselines.extra}
    bundle = without_unused(replace(bundle, policy=policy), named)
    return bundle, replace(chosen, fusion=fusions.main, discovery=fusions.discovery)


class _Fusions:
    """Fusions chosen on validation, for lists with and without seen items.

    Args:
        data: As in `choose_half_life_and_weights`. validation: All validation moments.
    """

    def __init__(
        self,
        bundle: Bundle,
        config: Config,
        validation: ValidationQueries,
        data: TrainData,
        past: StateHistory,
        threads: int,
    ) -> None:
        self._bundle, self._data, self._past, self._threads = bundle, data, past, threads
        self._validation, self._seed = validation, config.train.seed
        self._fitting = validation.sample_indices(data.user_ids, FIT_MOMENTS)
        self._fusions: dict[bool, FusionChoice] = {}  # by whether seen items are left out
        placement = bundle.policy.placements[bundle.default_placement]
        self._is_main_filtered = bundle.policy.filters_seen(placement)
        self.main = self.of(bundle.default_placement, self._is_main_filtered)

    @property
    def discovery(self) -> FusionChoice | None:
        """Fusion with the other ``filter_seen`` than the default placement, if used."""
        return self._fusions.get(not self._is_main_filtered)

    def of(self, name: str, filters_seen: bool) -> FusionChoice:
        """Return the fusion for lists of a placement with or without seen items."""
        if filters_seen not in self._fusions:
            policy = self._bundle.policy
            policy = policy.with_placement(name, replace(policy.placements[name], filter_seen=filters_seen))
            bundle = replace(self._bundle, policy=policy)
            moments = ValidationRecall(bundle, self._validation, self._data, self._past, name, self._threads)
            lists = moments.recall(self._bundle, [*self._bundle.scorers])
            only_new = filters_seen and not self._is_main_filtered
            targets = moments.new_targets() if only_new else (self._validation.items, self._validation.offsets)
            self._fusions[filters_seen] = fusion_or_single(lists, *targets, self._seed, self._fitting)
        return self._fusions[filters_seen]


def _with_weights(policy: Policy, config: Config, fusions: _Fusions) -> dict[str, Placement]:
    """Return the placements with the chosen weights."""
    placements = dict(policy.placements)
    for name, placement in policy.placements.items():
        if _choose_weights(config, name):
            fusion = fusions.of(name, policy.filters_seen(placement))
            placements[name] = replace(placements[name], weights=fusion.weights, rrf=fusion.constant)
        if (new := policy.new_items(placement)) is not None:
            fusion = fusions.of(name, True)
            new = replace(new, weights=fusion.weights, rrf=fusion.constant)
            placements[name] = replace(placements[name], new=new)
    return placements


def refit_baselines(bundle: Bundle, data: TrainData, tables: ItemUserTables, config: Config) -> Bundle:
    """Refit the closed-form models of a bundle with the half-lives of the bundle.

    Args:
        data: All rows before the cut, including validation moments.
    """
    models = closed_form(bundle.scorers, config)
    arrays, fitted = fit_counts(data, tables, models, bundle.scorers, strengths_of(bundle))
    manifest = replace(bundle.manifest, scorers=with_fits(bundle.scorers, fitted))
    items = replace(bundle.items, count=data.counts[1:])
    return replace(
        bundle, manifest=manifest, arrays={**bundle.arrays, **arrays}, items=items,
        users=_user_table(tables, data, arrays),
    )  # fmt: skip


def half_lives_of(scorers: Mapping[str, ScorerSpec]) -> dict[str, float | None]:
    """Return the half-life in days of each source of a bundle."""
    return {source: scorers[source].half_life for source in FADING if source in scorers}


def _user_table(tables: ItemUserTables, data: TrainData, arrays: Mapping[str, np.ndarray]) -> UserTable | None:
    if not any(name.endswith("user_vectors") for name in arrays):
        return None
    return UserTable(tables.users, np.diff(data.moment_offsets[data.user_offsets]))


class ModelValidation:
    """NDCG@10 of single closed-form models on the validation moments.

    Args:
        bundle: Draft with the counting models. data: Arrays with validation moments.
        past: As in `choose_half_life_and_weights`.
    """

    def __init__(
        self, bundle: Bundle, config: Config, data: TrainData, tables: ItemUserTables, past: StateHistory
    ) -> None:
        assert data.held is not None
        self._held = data.held.sample(data.user_ids, config.split.validation_users)
        self._bundle, self._config, self._tables = bundle, config, tables
        self._data = replace(data, held=self._held)
        self._recall = ValidationRecall(bundle, self._held, data, past).keep()

    def ndcg(self, name: str, options: Mapping[str, Any]) -> float:
        """Fit a model and return NDCG@10 of its own list.

        Half-lives of a baseline are chosen as in training.
        """
        source = SOURCE_OF.get(name)
        bundle = self._with_model(name, options) if source is None else self._with_baseline(source, options)
        return own_ndcg(bundle, source or model_class(name).source, self._held, self._recall)

    def _with_model(self, name: str, options: Mapping[str, Any]) -> Bundle:
        model = load_model(name, options)
        arrays = fit_model(name, model, self._data)
        scorers = {**self._bundle.scorers, model.source: _scorer(name, model)}
        return replace(
            self._bundle,
            manifest=replace(self._bundle.manifest, scorers=scorers),
            arrays={**self._bundle.arrays, **arrays},
            users=_user_table(self._tables, self._data, arrays),
        )

    def _with_baseline(self, source: str, options: Mapping[str, Any]) -> Bundle:
        scorer = with_options(self._bundle.scorers[source], options)
        bundle = refitted(self._bundle, scorer, self._data, self._tables)
        bundle = choose_half_life(bundle, source, self._config, self._data, self._tables, self._recall)
        return choose_same(bundle, self._data, self._tables, self._recall) if source == "neighbours" else bundle


def _choose_weights(config: Config, name: str) -> bool:
    return config.placement[name].list == "for_you" and config.placement[name].weights == "auto"


def _start(kind: str, weights: Any, scorers: Mapping[str, ScorerSpec]) -> dict[str, float]:
    if kind == "popular":
        return {"popular": 1.0}
    if kind == "latest":
        return {}
    if kind == AGAIN:
        return {AGAIN_SOURCE: 1.0}
    if kind == similar_items.LIST_KIND and weights == "auto":
        return dict(similar_items.PLACEMENT.weights)
    if weights == "auto":
        return {source: 1.0 for source in source_names(scorers) if source in scorers}
    # The network is trained after the closed-form models, so its weight is kept.
    available = {*scorers, "model"}
    return {
        source: float(weights[source])
        for source in source_names(weights)
        if weights.get(source) and source in available
    }
