"""Steps of a first run: prepare, train, evaluate, register and promote a bundle."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from recloop import __version__
from recloop import bundle as bundles
from recloop.bundle import Bundle
from recloop.config import Config
from recloop.data.prepare import PreparedData, PrepareResult, load
from recloop.data.split import LEAVE_ONE_OUT
from recloop.errors import UserError
from recloop.evaluation.evaluate import evaluate
from recloop.evaluation.given_candidates import KEY as CANDIDATES_KEY
from recloop.evaluation.given_candidates import read_candidates
from recloop.evaluation.table import EvaluationTable
from recloop.features import state_store
from recloop.features.learned_range import nothing_held
from recloop.features.log_end import end_of
from recloop.features.spec import FeatureSpec
from recloop.features.state_history import StateHistory
from recloop.files import replace_json
from recloop.manifest import Manifest, ModelSpec, Training, TrainingRows
from recloop.models.base import TrainData, is_closed_form
from recloop.pipeline import config_changes, step_reports
from recloop.pipeline.recipe import recipe_of
from recloop.pipeline.served_slots import served_slots
from recloop.policy import PERSONAL, ScorerSpec
from recloop.progress import Progress
from recloop.project import Project
from recloop.recommend.catalog import Catalog
from recloop.recommend.golden import make_golden
from recloop.recommend.recommender import Recommender
from recloop.records import LABEL, SEQ, STAMP, USER_ID, guest_rows, hash_unit_intervals, max_int, now
from recloop.settings import dump
from recloop.storage import locks, releases
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
GOLDEN_CASES = 5
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


def init_log_and_states(project: Project, prepared: PrepareResult, data: PreparedData) -> None:
    """Start log.db after the import and write every user's state as of its last row."""
    with locks.writer_lock(project.root, "prepare"), project.open_log(write=True) as log:
        log.start_at(prepared.watermark)
        if prepared.identities:
            log.restore_identities(prepared.identities)
    project.open_archive().open_ids()  # the service finds them written
    key = FeatureSpec.from_config(project.config, data.dwell).state_key
    path = project.states_folder(prepared.watermark, key)
    state_store.write_frame(path, data.events, data.users, prepared.watermark, key)
    state_store.keep_only(project.store, [path.name])


def open_run(project: Project, started: datetime) -> Path:
    """Create the run's folder with the whole configuration in it."""
    run = project.runs / started.strftime("%Y%m%dT%H%M%S%fZ")
    run.mkdir(parents=True)
    (run / "config.toml").write_text(dump(project.config), "utf-8")
    return run


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
    config = project.config
    started = time.monotonic()
    name = model or config.model.name
    missing = missing_packages() if model is None else []
    needs_network = not _is_baseline(name, bool(missing))
    options = config.model.options if model in {None, config.model.name} else {}
    progress.say(
        "learn",
        f"baselines{f', then {name} for at most {config.train.time_budget} of training' if needs_network else ''}",
    )
    before_cut = rows_before_cut(data)
    custom = further_models(config, arrays.n_items, {} if needs_network else {name: options})
    if memory := memory_line(custom, arrays.n_items):
        progress.say("learn", memory)
    counts, scorers = baselines.fit_counts(arrays, tables, custom)
    model_config = config.model_copy(update={"model": config.model.model_validate({"name": name, **options})})
    held_seq = data.manifest.held_seq or 0
    manifest = replace(
        base_manifest(config, tables, data.manifest.fingerprint, before_cut, held_seq),
        recipe=recipe_of(model_config),
    )
    draft = baselines.draft_bundle(config, tables, arrays, counts, scorers, manifest)
    model_names = ", ".join(scorer.model for scorer in scorers.values())
    progress.say("learn", f"{model_names} in {time.monotonic() - started:.1f} s")
    network = None
    if needs_network and missing:
        progress.say("learn", f'skipping {name}: {missing[0]} is not installed; pip install "recloop[train]"')
    elif needs_network and not has_sequences(arrays):
        progress.say("learn", f"skipping {name}: no user has two moments, so it has no next item to predict")
    elif needs_network:
        budget = config.train.time_budget_seconds
        network = fit_network(name, options, arrays, config, run, budget, quiet=not sys.stderr.isatty())
        draft = with_network(draft, network)
        progress.say(
            "learn",
            f"{name}: {network.epochs} epochs, {network.steps:,} steps in {network.seconds:.0f} s, stopped by {network.stopped}",
        )
    past = StateHistory(before_cut, data.users)
    bundle, chosen = baselines.choose_half_life_and_weights(draft, config, arrays, tables, past, THREADS, {name})
    progress.say("learn", step_reports.fusion_line(config, chosen))
    if chosen.discovery is not None:
        progress.say("learn", step_reports.discovery_line(chosen.discovery))
    progress.say("learn", chosen.attributes)
    choice = ranker.choose_ranker(bundle, config, arrays, tables, past, THREADS)
    progress.say("learn", choice.sentence)
    bundle, chosen = choice.bundle, replace(chosen, ranker=choice.to_json())
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


def evaluate_on_test(
    project: Project, candidates: Sequence[Bundle], data: PreparedData, progress: Progress
) -> EvaluationTable:
    """Evaluate these bundles on the test with the serving recommender."""
    prepared = data.manifest.protocol
    if project.config.split.protocol != prepared:
        expected = f"{prepared}, as data/ was split and the bundle was fitted"
        fix = (
            f"in a new folder with split.protocol={project.config.split.protocol}: recloop prepare, then recloop train"
        )
        raise UserError("split.protocol", project.config.split.protocol, expected, fix)
    given = project.config.evaluate.candidates
    if given and prepared != LEAVE_ONE_OUT:
        expected = f"split.protocol={LEAVE_ONE_OUT}, with one target per user, not {prepared}"
        raise UserError(CANDIDATES_KEY, given, expected, f'--set {CANDIDATES_KEY}=""')
    facts = {"split_hash": data.manifest.split_hash, "fingerprint": data.manifest.fingerprint}
    table = evaluate(
        candidates, data, Catalog.from_frames([data.items]), project.config, facts, THREADS,
        lambda done, total: progress.bar("evaluate", done, total), _stored_history(project, data),
        read_candidates(project.sources / given) if given else None,
    )  # fmt: skip
    progress.show("evaluate", table.render())
    progress.say("evaluate", table.sentence)
    return table


def _stored_history(project: Project, data: PreparedData) -> StateHistory | None:
    """Map the states that `init_log_and_states` wrote.

    None if later updates changed the rows, or if the labels differ.
    """
    if data.manifest.updates:
        return None
    key = FeatureSpec.from_config(project.config, data.dwell).state_key
    stored = state_store.current(project.states_folder(data.manifest.watermark, key), key)
    return None if stored is None else stored.history


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


def save_and_register(
    project: Project, learned: FittedBundle, table: EvaluationTable, data: PreparedData, run: Path, started: datetime
) -> Bundle:
    """Add golden lists, write the folder with its hash, and register the bundle."""
    bundle = replace(learned.bundle, metrics=table.bundle_metrics())
    bundle = with_golden(bundle, data.events.filter(pl.col(STAMP) < bundle.cut))
    project.bundles.mkdir(parents=True, exist_ok=True)
    control = project.open_control()
    registered_names = {row.bundle for row in control.releases()}
    bundle = bundles.write(bundle, project.bundles, started)
    while bundle.id in registered_names:  # same content in the same second: use a name one second later
        started += timedelta(seconds=1)
        bundle = bundles.write(bundle, project.bundles, started)
    network_metrics = None if learned.network is None else learned.network.metrics.to_json()
    replace_json(
        run / "metrics.json",
        {"bundle": bundle.id, "chosen": learned.chosen.to_json(), "network": network_metrics, **bundle.metrics},
    )
    table.with_bundle(bundle.id).save(project.reports)
    sha256 = bundles.manifest_hash(project.bundles / bundle.id)
    releases.register(control, bundle.id, sha256, by="recloop train", reason="trained", at=now())
    return bundle


def with_golden(bundle: Bundle, rows: pl.DataFrame) -> Bundle:
    """Add golden cases: states of four users over these rows, and an anonymous one."""
    active_users = rows.filter((pl.col(LABEL) > 0) & ~guest_rows())[USER_ID].unique()
    order = np.argsort(hash_unit_intervals("golden", active_users.to_list()), kind="stable")
    users = active_users[order[: GOLDEN_CASES - 1]].to_list()
    own_rows = rows.filter(pl.col(USER_ID).is_in(users))
    users = [*users, "unknown"]
    states = StateHistory(own_rows).states(users, [max_int(rows[SEQ])] * len(users))
    recommender = Recommender(bundle, Catalog.from_table(bundle.items.ids.ids, bundle.items.attributes))
    main = bundle.default_placement
    others = [name for name, one in bundle.policy.placements.items() if name != main and one.list in PERSONAL]
    golden = [case for name in (main, *others) for case in make_golden(recommender, states, bundle.cut, name, 10)]
    return replace(bundle, golden=golden)


def make_live(project: Project, bundle: Bundle, by: str, reason: str) -> None:
    """Promote a registered bundle to live."""
    control = project.open_control()
    releases.promote(control, bundle.id, to="live", by=by, reason=reason, at=now())


def evaluate_bundles(project: Project, names: Sequence[str], progress: Progress) -> EvaluationTable:
    """Evaluate these bundles (default: live) and write ``reports/evaluation.json``."""
    candidates = [project.load_bundle(name) for name in names or [""]]
    table = evaluate_on_test(project, candidates, load(project), progress)
    table.save(project.reports)
    return table


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
