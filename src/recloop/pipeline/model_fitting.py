"""Fit the models of a bundle: baselines, network, fusion weights and ranker."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from recloop import __version__
from recloop.bundle import Bundle
from recloop.config import LEAVE_ONE_OUT, Config
from recloop.data.prepare import PreparedData
from recloop.errors import UserError
from recloop.features.learned_range import nothing_held
from recloop.features.log_end import end_of
from recloop.features.spec import FeatureSpec
from recloop.features.state_history import StateHistory
from recloop.manifest import Manifest, ModelSpec, Training, TrainingRows
from recloop.models.base import TrainData, is_closed_form
from recloop.pipeline import config_changes, step_reports
from recloop.pipeline.recipe import recipe_of
from recloop.pipeline.served_slots import served_slots
from recloop.policy import ScorerSpec
from recloop.progress import Progress
from recloop.project import Project
from recloop.records import SEQ, STAMP, max_int
from recloop.training import baselines, ranker
from recloop.training.attribute_affinity import strengths_of
from recloop.training.closed_form import closed_form, further_models, memory_line
from recloop.training.dataset import ItemUserTables, make_tables, train_data, validation_data
from recloop.training.fit import TrainedNetwork, fit_network, has_sequences
from recloop.training.kept_models import with_fits
from recloop.training.packages import missing_packages
from recloop.training.warm_start import LEARNING_RATE_SHARE, WarmStartState, with_replay

COUNTS_BUNDLE = "counts"
"""Name of a bundle without a network."""
THREADS = 2
REFIT_SECONDS = 7 * 86_400.0
"""Time limit of a refit; normally its epochs bound it."""


@dataclass(frozen=True)
class FittedBundle:
    """Bundle in memory before evaluation; ``network`` is None without a network."""

    bundle: Bundle
    arrays: TrainData
    network: TrainedNetwork | None
    chosen: baselines.Chosen


def validation_arrays(project: Project, tables: ItemUserTables, data: PreparedData) -> TrainData:
    """Build the arrays on which half-lives, epochs and fusion weights are chosen."""
    temporal = project.config.split.protocol != LEAVE_ONE_OUT
    return validation_data(tables, data.train, data.valid, served_slots(project, data.train), temporal)


def build_tables(project: Project, data: PreparedData) -> ItemUserTables:
    """Build the tables over the rows before the cut."""
    rows = pl.concat([data.train, data.valid]) if len(data.valid) else data.train
    return make_tables(
        FeatureSpec.from_config(project.config, data.dwell), rows, data.manifest.cut, data.items, data.users
    )


def rows_before_cut(data: PreparedData) -> pl.DataFrame:
    """Return the training and validation rows by seq."""
    return pl.concat([data.train, data.valid]).sort(SEQ) if len(data.valid) else data.train


def fit_models(
    project: Project,
    tables: ItemUserTables,
    arrays: TrainData,
    data: PreparedData,
    run: Path,
    progress: Progress,
    model: str | None,
) -> FittedBundle:
    """Fit the baselines, train the network, choose fusion weights.

    The network is trained within ``train.time_budget``. Under a temporal protocol, all models are first fitted on the
    rows before the validation moments. With the chosen half-lives and weights, the counts are then refitted on all
    rows before the cut, and the network learns the remaining rows in one pass.
    """
    config, plan = project.config, _plan(project.config, model)
    with_network_of = (
        f", then {plan.name} for at most {config.train.time_budget} of training" if plan.is_network else ""
    )
    progress.say("learn", f"baselines{with_network_of}")
    before_cut = rows_before_cut(data)
    draft = _fit_baselines(config, plan, tables, arrays, data, progress)
    network = _fit_network(config, plan, arrays, run, progress)
    if network is not None:
        draft = with_network(draft, network)
    past = StateHistory(before_cut, data.users)
    bundle, chosen = _choose_settings(draft, config, plan.name, arrays, tables, past, progress)
    if arrays.history is None:
        return FittedBundle(bundle, arrays, network, chosen)
    all_arrays = train_data(tables, before_cut, None, served_slots(project, before_cut))
    bundle = baselines.refit_baselines(bundle, all_arrays, tables, config)
    bundle = ranker.refit_statistics(bundle, all_arrays, tables)
    if network is not None:
        network = train_window(config, network, all_arrays, arrays.cut, bundle, run)
        bundle = replace(bundle, arrays={**bundle.arrays, **network.arrays})
        bundle = with_network(bundle, network)
    return FittedBundle(bundle, all_arrays, network, chosen)


class _Plan(NamedTuple):
    """Model to fit, whether it is a network, and packages that it lacks."""

    name: str
    options: Mapping[str, Any]
    is_network: bool
    missing: Sequence[str]


def _plan(config: Config, model: str | None) -> _Plan:
    name = model or config.model.name
    missing = missing_packages() if model is None else []
    options = config.model.options if model in {None, config.model.name} else {}
    return _Plan(name, options, not _is_baseline(name, bool(missing)), missing)


def _fit_baselines(
    config: Config, plan: _Plan, tables: ItemUserTables, arrays: TrainData, data: PreparedData, progress: Progress
) -> Bundle:
    """Fit the closed-form models; return a bundle without a network."""
    started = time.monotonic()
    custom = further_models(config, arrays.n_items, {} if plan.is_network else {plan.name: plan.options})
    if memory := memory_line(custom, arrays.n_items):
        progress.say("learn", memory)
    counts, scorers = baselines.fit_counts(arrays, tables, custom)
    model_config = config.model.model_validate({"name": plan.name, **plan.options})
    manifest = replace(
        base_manifest(config, tables, data.manifest.fingerprint, rows_before_cut(data), data.manifest.held_seq or 0),
        recipe=recipe_of(config.model_copy(update={"model": model_config})),
    )
    model_names = ", ".join(scorer.model for scorer in scorers.values())
    progress.say("learn", f"{model_names} in {time.monotonic() - started:.1f} s")
    return baselines.draft_bundle(config, tables, arrays, counts, scorers, manifest)


def _fit_network(
    config: Config, plan: _Plan, arrays: TrainData, run: Path, progress: Progress
) -> TrainedNetwork | None:
    """Train the network of a plan; None if there is none or it cannot learn."""
    if not plan.is_network:
        return None
    if plan.missing:
        package = plan.missing[0]
        progress.say("learn", f'skipping {plan.name}: {package} is not installed; pip install "recloop[train]"')
        return None
    if not has_sequences(arrays):
        progress.say("learn", f"skipping {plan.name}: no user has two moments, so it has no next item to predict")
        return None
    budget = config.train.time_budget_seconds
    network = fit_network(plan.name, plan.options, arrays, config, run, budget, quiet=not sys.stderr.isatty())
    trained = f"{network.epochs} epochs, {network.steps:,} steps in {network.seconds:.0f} s"
    progress.say("learn", f"{plan.name}: {trained}, stopped by {network.stopped}")
    return network


def _choose_settings(
    draft: Bundle, config: Config, model: str, arrays: TrainData, tables: ItemUserTables, past: StateHistory,
    progress: Progress,
) -> tuple[Bundle, baselines.Chosen]:  # fmt: skip
    """Choose half-lives, fusion weights and the ranker on the validation moments."""
    bundle, chosen = baselines.choose_half_life_and_weights(draft, config, arrays, tables, past, THREADS, {model})
    progress.say("learn", step_reports.fusion_line(config, chosen))
    if chosen.discovery is not None:
        progress.say("learn", step_reports.discovery_line(chosen.discovery))
    progress.say("learn", chosen.attributes)
    choice = ranker.choose_ranker(bundle, config, arrays, tables, past, THREADS)
    progress.say("learn", choice.sentence)
    return choice.bundle, replace(chosen, ranker=choice.to_json())


def train_window(
    config: Config, network: TrainedNetwork, arrays: TrainData, window_start: int, bundle: Bundle, run: Path
) -> TrainedNetwork:
    """Train the network one pass over the moments from the validation start on.

    An update learns a window in the same way.

    Args:
        network: Network trained on the rows before ``window_start``; its metadata and measured NDCG are kept.
        arrays: All rows before the cut.
        bundle: The bundle with the counts over them.
    """
    in_window = arrays.stamps >= window_start
    chosen = with_replay(arrays, in_window, config.update.replay_ratio, config.train.seed)
    train = config.train.model_copy(update={"epochs": 1})
    window_network = fit_network(
        network.name, network.config, arrays, config.model_copy(update={"train": train}), run / "window",
        config.train.time_budget_seconds, not sys.stderr.isatty(), WarmStartState(network.train_state, chosen, LEARNING_RATE_SHARE, bundle.arrays, users=arrays.user_ids),
    )  # fmt: skip
    metrics = replace(
        network.metrics, window_steps=window_network.steps, window_seconds=round(window_network.seconds, 2)
    )
    return replace(
        window_network, epochs=network.epochs, steps=network.steps, steps_per_epoch=network.steps_per_epoch,
        stopped=network.stopped, seconds=network.seconds + window_network.seconds, metrics=metrics,
    )  # fmt: skip


def _is_baseline(name: str, extra_missing: bool) -> bool:
    """Return whether a model is closed-form; False if torch is missing for its import."""
    try:
        return is_closed_form(name)
    except UserError:
        if extra_missing:
            return False
        raise


def with_network(bundle: Bundle, network: TrainedNetwork) -> Bundle:
    """Add a network's vectors and graph to the bundle as the source ``model``."""
    other_sources = tuple(sorted(set(bundle.scorers) - {"model"}))
    scorer = ScorerSpec("model", network.name, network.kind, of=other_sources if network.kind == "rank" else None)
    placements = {
        name: replace(placement, weights={"model": 1.0, **placement.weights})
        if placement.list == "for_you" and set(placement.weights) == set(bundle.scorers)
        else placement
        for name, placement in bundle.policy.placements.items()
    }
    manifest = replace(
        bundle.manifest,
        scorers={**bundle.scorers, "model": scorer},
        model=ModelSpec(network.name, network.config),
        train=network.training(bundle.manifest.train),
    )
    return replace(
        bundle,
        manifest=manifest,
        policy=replace(bundle.policy, placements=placements),
        arrays={**bundle.arrays, **network.arrays},
        users=network.users or bundle.users,
        graphs={
            **bundle.graphs,
            "rank.onnx" if network.kind == "rank" else "user.onnx": network.graph,
            **({"item.onnx": network.item_graph} if network.item_graph else {}),
        },
        train=network.train_state,
    )


def refit(config: Config, learned: FittedBundle, data: PreparedData, run: Path, progress: Progress) -> FittedBundle:
    """Refit on all rows with the chosen epochs, half-lives and weights."""
    cut = end_of(data.events, STAMP) + 1
    tables = make_tables(learned.bundle.spec, data.events, cut, data.items, data.users)
    arrays = train_data(tables, data.events, None)
    scorers = learned.bundle.scorers
    models, strengths = closed_form(scorers, config), strengths_of(learned.bundle)
    counts, fitted = baselines.fit_counts(arrays, tables, models, scorers, strengths)
    scorers = with_fits(scorers, fitted)
    manifest = base_manifest(config, tables, data.manifest.fingerprint, data.events, nothing_held(data.events))
    manifest = replace(manifest, recipe=learned.bundle.manifest.recipe, train=replace(manifest.train, refit=True))
    bundle = baselines.draft_bundle(config, tables, arrays, counts, scorers, manifest)
    network = None
    if learned.network is not None:
        train = config.train.model_copy(update={"epochs": learned.bundle.manifest.train.repeated_epochs})
        network = fit_network(
            learned.network.name, learned.network.config, arrays, config.model_copy(update={"train": train}),
            run / "refit", REFIT_SECONDS,
        )  # fmt: skip
        bundle = with_network(bundle, network)
    progress.say("learn", f"refit on all {len(data.events):,} rows; the metrics are those of the fit before the cut")
    bundle = replace(bundle, policy=replace(learned.bundle.policy, ranker=None))
    bundle = ranker.inherit_ranker(bundle, learned.bundle, config, arrays, tables)
    return FittedBundle(bundle, arrays, network, learned.chosen)


def base_manifest(
    config: Config, tables: ItemUserTables, fingerprint: str, rows: pl.DataFrame, held_seq: int
) -> Manifest:
    """Build the manifest of a bundle over these tables, without a network.

    Args:
        fingerprint: Hash of the imported files (`DataManifest`).
        rows: The rows that it is fitted on.
        held_seq: The first seq of their held-out moments, see `recloop.features.learned_range.LearnedRange`.
    """
    until_seq = max_int(rows[SEQ])
    return Manifest(
        recloop=__version__,
        model=ModelSpec(COUNTS_BUNDLE, {}),
        data=TrainingRows(
            fingerprint=fingerprint,
            cut=tables.cut,
            until_seq=until_seq,
            held_seq=held_seq,
            protocol=config.split.protocol,
        ),
        config=config_changes.recorded(config),
        train=Training(seed=config.train.seed, epochs=0, stopped="epochs"),
        recipe=recipe_of(config),
    )
