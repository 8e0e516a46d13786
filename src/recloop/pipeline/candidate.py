"""Training of a child bundle, which inherits item rows, codes and weights."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from recloop import bundle as bundles
from recloop.bundle import Bundle
from recloop.config import Config
from recloop.errors import UserError
from recloop.features.learned_range import LearnedRange
from recloop.features.state_history import StateHistory
from recloop.models.base import TrainData
from recloop.pipeline import model_fitting, training_steps
from recloop.pipeline.served_slots import kept_slots
from recloop.pipeline.update_run import RETROSPECTIVE_RULES, UpdateRun
from recloop.policy import Placement, Policy, ScorerSpec
from recloop.records import STAMP
from recloop.training import baselines, ranker
from recloop.training.attribute_affinity import strengths_of
from recloop.training.closed_form import closed_form
from recloop.training.dataset import ItemUserTables, make_tables, train_data
from recloop.training.fit import TrainedNetwork, fit_network
from recloop.training.kept_models import changed_share, has_network, keepable, kept_arrays, refit_reason, with_fits
from recloop.training.warm_start import LEARNING_RATE_SHARE, WarmStartState, select_targets


@dataclass(frozen=True)
class WarmStart:
    """Initial weights of a warm start, and the range that their bundle has learned."""

    state: Mapping[str, np.ndarray]
    learned: LearnedRange


def warm_candidate(run: UpdateRun) -> Bundle:
    """Train a candidate from live, on all rows except the test moments."""
    window = run.window
    warm = WarmStart(load_train_state(run.live, run.project.bundles, run.reset), run.live_range)
    return build_child(run, run.live, run.data.past, window.cut, window.held_seq, warm, run.folder)


def build_child(
    run: UpdateRun,
    parent: Bundle,
    rows: pl.DataFrame,
    cut: int,
    held_seq: int,
    warm_start: WarmStart | None,
    folder: Path,
) -> Bundle:
    """Train a child over these rows with the parent's item rows, codes and weights.

    Args:
        cut: End of its windows (tail, replay), int64 microseconds.
        held_seq: First seq of its held-out moments.
        warm_start: Weights of the parent; None to train from scratch with the parent's number of epochs.
    """
    started = time.monotonic()
    data = run.data
    tables = make_tables(run.spec, rows, cut, data.items, data.users, parent.items.ids.ids, parent.fields)
    arrays = train_data(tables, rows, None, kept_slots(run.project, data.events, run.until))
    kept = _kept_models(run, parent, arrays)
    counts, scorers = _fit_counts(run.config, arrays, tables, parent, kept)
    manifest = model_fitting.base_manifest(run.config, tables, data.manifest.fingerprint, rows, held_seq)
    child = baselines.draft_bundle(run.config, tables, arrays, counts, scorers, manifest)
    if kept:
        child = replace(child, users=parent.users)
    if has_network(parent):
        plan = _TrainPlan.for_child(run, parent, arrays, counts, warm_start)
        child = model_fitting.with_network(child, _fit_network(run, parent, arrays, plan, folder, started))
    child = replace(child, policy=_policy(run.config, parent, child))
    child = ranker.inherit_ranker(child, parent, run.config, arrays, tables)
    child = _with_new_trees(run, child, arrays, tables, rows)
    return tag_child(run, child, "full" if run.full else "warm")


def _with_new_trees(
    run: UpdateRun, child: Bundle, arrays: TrainData, tables: ItemUserTables, rows: pl.DataFrame
) -> Bundle:
    """Fit the ranker's trees again if enough new moments happened since.

    A ranker over a network keeps its trees, because the network has learned the period that would teach them.
    """
    spec = child.policy.ranker
    if spec is None or not (run.full or ranker.is_due(spec, arrays)) or has_network(child):
        return child
    start = ranker.period_start(arrays)
    data = train_data(tables, rows.filter(pl.col(STAMP) < start), None)
    data = replace(data, cut=start, history=arrays)
    recalled = replace(child.manifest, scorers={name: child.scorers[name] for name in spec.depths})
    child_of_recalled = replace(child, manifest=recalled)
    counts, scorers = _fit_counts(run.config, data, tables, child_of_recalled)
    early = baselines.draft_bundle(run.config, tables, data, counts, scorers, recalled)
    past = StateHistory(rows, run.data.users)
    return ranker.refit_trees(child, early, run.config, data, tables, past, model_fitting.THREADS)


@dataclass(frozen=True)
class _TrainPlan:
    """Time budget, epochs and initial weights of a child's network.

    Attributes:
        seconds: Time budget.
        warm: Start of a warm child; None to train the network from scratch.
    """

    epochs: int
    seconds: float
    warm: WarmStartState | None

    @classmethod
    def for_child(
        cls,
        run: UpdateRun,
        parent: Bundle,
        arrays: TrainData,
        counts: Mapping[str, np.ndarray],
        warm_start: WarmStart | None,
    ) -> _TrainPlan:
        """Plan one epoch from given weights, or the parent's epochs from scratch.

        Training from scratch has no tight time budget.
        """
        if warm_start is None:
            return cls(parent.manifest.train.repeated_epochs, model_fitting.REFIT_SECONDS, None)
        chosen = select_targets(arrays, warm_start.learned, run.config.update.replay_ratio, run.seed)
        parent_users = parent.users.ids.ids if parent.users else ()
        warm = WarmStartState(warm_start.state, chosen, LEARNING_RATE_SHARE, counts, parent.graphs, users=parent_users)
        return cls(1, run.config.train.time_budget_seconds, warm)


def _closed_form_scorers(parent: Bundle) -> dict[str, ScorerSpec]:
    """Return the parent's scorers without its network."""
    network = has_network(parent)
    return {source: spec for source, spec in parent.scorers.items() if source != "model" or not network}


def _kept_models(run: UpdateRun, parent: Bundle, arrays: TrainData) -> dict[str, ScorerSpec]:
    """Return the parent's models whose arrays the child keeps; report why."""
    models = keepable(_closed_form_scorers(parent))
    if not models:
        return {}
    share = run.config.update.refit_share
    reason = "a full retrain" if run.full else refit_reason(models, arrays, share)
    if not reason and has_network(parent) and "user_vectors" in parent.arrays:
        reason = f"{parent.manifest.model.name} learns this update's users"
    if not reason and _has_quarantine(run):
        reason = "rows were quarantined or restored"
    names = ", ".join(spec.model for spec in models.values())
    if reason:
        run.progress.say("learn", f"{names} fitted on {len(arrays.items):,} rows: {reason}")
        return {}
    if parent is run.live:
        changed = max(changed_share(spec, arrays) for spec in models.values())
        run.progress.say(
            "learn", f"{names} kept: {changed:.1%} new rows since the fit (update.refit_share {share:.1%})"
        )
    return models


def _has_quarantine(run: UpdateRun) -> bool:
    """Return whether rows were quarantined or restored since live's rows.

    A kept model would still contain a quarantined row.
    """
    with run.project.open_log() as log:
        retractions = log.retractions(after=run.watermark)
    pending = [entry.retraction for entry in run.project.open_control().pending()]
    return any(row.rule not in RETROSPECTIVE_RULES for row in (*retractions, *pending))


def _fit_counts(
    config: Config,
    arrays: TrainData,
    tables: ItemUserTables,
    parent: Bundle,
    kept: Mapping[str, ScorerSpec] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, ScorerSpec]]:
    """Fit the closed-form models with the parent's half-lives, strengths and options.

    Args:
        kept: Models whose arrays are those of the parent.

    Returns:
        Arrays, and scorers with the records of the fits.
    """
    scorers = _closed_form_scorers(parent)
    kept = kept or {}
    options = closed_form({source: spec for source, spec in scorers.items() if source not in kept}, config)
    counts, fitted = baselines.fit_counts(arrays, tables, options, scorers, strengths_of(parent))
    return {**counts, **kept_arrays(parent, kept, arrays.n_items)}, with_fits(scorers, fitted)


def _fit_network(
    run: UpdateRun, parent: Bundle, arrays: TrainData, plan: _TrainPlan, folder: Path, started: float
) -> TrainedNetwork:
    """Train the parent's network by the plan; report steps and time since ``started``."""
    config = run.config
    model = parent.manifest.model
    settings = config.model_copy(update={"train": config.train.model_copy(update={"epochs": plan.epochs})})
    quiet = not sys.stderr.isatty()
    network = fit_network(model.name, model.config, arrays, settings, folder, plan.seconds, quiet, plan.warm)
    positions = "all" if plan.warm is None else int(plan.warm.chosen.sum())
    seconds = time.monotonic() - started
    message = f"{network.name}: {network.metrics.step} steps, {positions} positions in {seconds:.0f} s"
    run.progress.say("learn", message)
    return network


def tag_child(run: UpdateRun, bundle: Bundle, mode: str) -> Bundle:
    """Return the bundle as a child of live, trained ``warm`` or ``full``."""
    training = replace(bundle.manifest.train, mode=mode, optimizer="reset" if run.reset else None)
    manifest = replace(bundle.manifest, parent=run.live.id, train=training, recipe=run.recipe)
    return replace(bundle, manifest=manifest)


def _policy(config: Config, parent: Bundle, drafted: Bundle) -> Policy:
    """Return the configuration's placements with the parent's validated weights."""
    placements = {
        name: _inherited(placement, parent.policy.placements.get(name), config.placement[name].weights == "auto")
        for name, placement in drafted.policy.placements.items()
    }
    return replace(drafted.policy, placements=placements)


def _inherited(placement: Placement, parent: Placement | None, chosen: bool) -> Placement:
    """Return a placement with the parent's weights.

    Those of the list are inherited if training chooses them (``chosen``).
    """
    if parent is None:
        return placement
    if placement.new is not None and parent.new is not None:
        placement = replace(placement, new=replace(parent.new, share=placement.new.share))
    if chosen and parent.list == placement.list:
        return replace(placement, weights=parent.weights, rrf=parent.rrf)
    return placement


def write(run: UpdateRun, bundle: Bundle, folder: Path) -> Bundle:
    """Write a bundle into a folder of the run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return bundles.write(bundle, folder, run.journal.started)


def with_golden(run: UpdateRun, bundle: Bundle) -> Bundle:
    """Add golden lists over the rows before the bundle's cut."""
    return training_steps.with_golden(bundle, run.data.events.filter(pl.col(STAMP) < bundle.cut))


def load_candidate(run: UpdateRun) -> Bundle:
    """Return the candidate of `train_candidate`.

    A resumed run loads it, or fits it again if it was not written. The rows and settings are those of the run's journal.
    """
    if run.candidate is None:
        name = str(run.journal.facts("learn")["bundle"])
        run.candidate = bundles.load(run.folder / "candidate" / name) if name else warm_candidate(run)
    return run.candidate


def load_train_state(bundle: Bundle, folder: Path, reset: bool = False) -> dict[str, np.ndarray]:
    """Load the weights and optimizer state of a bundle with a network.

    Args:
        reset: Load only the weights; the optimizer starts fresh.

    Raises:
        UserError: the bundle has no train.safetensors.
    """
    if not has_network(bundle):
        return {}
    if "train.safetensors" not in bundle.manifest.files:
        raise UserError("bundle", bundle.id, "a bundle with train.safetensors", "recloop update --full")
    state = bundles.load_train(folder / bundle.id)
    return {name: array for name, array in state.items() if not reset or name.startswith("network.")}
