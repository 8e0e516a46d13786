"""A child of a bundle: its table begins with the parent's, its codes and mix are the parent's, its weights go on."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from recloop import bundle as bundles
from recloop import turn
from recloop.bundle import Bundle
from recloop.config import Config
from recloop.errors import UserError
from recloop.features.learned import Learned
from recloop.later.run import Run
from recloop.learn import counts
from recloop.learn.arrays import make_tables, train_data
from recloop.learn.fit import fit_network, repeated_epochs
from recloop.learn.warm import RATE, Warm, positions
from recloop.models.base import is_counting
from recloop.records import STAMP


@dataclass(frozen=True)
class Start:
    """A warm start: the weights to begin with, and what their bundle has learned: every other position is new."""

    state: dict[str, Any]
    learned: Learned


def grow(
    run: Run, parent: Bundle, rows: pl.DataFrame, cut: int, held_seq: int, start: Start | None, folder: Path
) -> Bundle:
    """A child over these rows: its table begins with the parent's, its codes and its mix are the parent's.

    Args:
        cut: Where its windows end (tail, replay), int64 microseconds.
        held_seq: The first seq of the moments that are held back of it.
        start: Weights of the parent; None: a network is trained from scratch with the epochs that the parent found.
    """
    config, data = run.config, run.data
    begin = time.monotonic()
    tables = make_tables(run.spec, rows, cut, data.items, data.users, parent.items.ids.ids, parent.fields)
    arrays = train_data(tables, rows, None, turn.shown(run.project, rows))
    trained = has_network(parent)
    scorers = {source: one for source, one in parent.scorers.items() if source != "model" or not trained}
    other: dict[str, Any] = next(
        (one for source, one in scorers.items() if ":" in one["model"] or source == "model"), {"model": ""}
    )
    options = other.get("config", config.model.options if other["model"] == config.model.name else {})
    made, _ = counts.fit_counts(arrays, tables, other["model"], options, counts.half_lives_of(scorers))
    manifest = {**turn.manifest_of(config, tables, data, rows, held_seq)}
    bundle = counts.draft(config, tables, arrays, made, scorers, manifest)
    if trained:
        warm = None
        if start is not None:
            chosen = positions(arrays, start.learned, config.update.replay, run.seed)
            warm = Warm(start.state, chosen, RATE, made)
        epochs = 1 if warm is not None else repeated_epochs(parent.manifest["train"])
        settings = config.model_copy(update={"train": config.train.model_copy(update={"epochs": epochs})})
        budget = config.train.budget_seconds if warm is not None else turn.REFIT_SECONDS
        model = parent.manifest["model"]
        network = fit_network(
            model["name"], model["config"], arrays, settings, folder, budget, not sys.stderr.isatty(), warm
        )
        bundle = turn.with_network(bundle, network)
        run.voice.say(
            "learn", f"{network.name}: {network.metrics['step']} steps, {int(warm.chosen.sum()) if warm else 'all'} "
            f"positions in {time.monotonic() - begin:.0f} s",
        )  # fmt: skip
    return named(run, replace(bundle, policy=_policy(config, parent, bundle)), "full" if run.full else "warm")


def has_network(bundle: Bundle) -> bool:
    """Whether the source ``model`` is a trained network, not one in closed form."""
    return "model" in bundle.scorers and not is_counting(bundle.scorers["model"]["model"])


def named(run: Run, bundle: Bundle, mode: str) -> Bundle:
    """The bundle as a child of live, trained ``warm`` or ``full``."""
    train = {**bundle.manifest["train"], "mode": mode, **({"optimizer": "reset"} if run.reset else {})}
    manifest = {**bundle.manifest, "parent": run.live.id, "train": train}
    manifest["recipe"] = run.recipe
    return replace(bundle, manifest=manifest)


def _policy(config: Config, parent: Bundle, drafted: Bundle) -> dict[str, Any]:
    """The configuration's placements; a mix that was found by validation stays the parent's."""
    placements = dict(drafted.policy["placements"])
    for name, one in placements.items():
        before = parent.policy["placements"].get(name)
        if before is not None and before["list"] == one["list"] and config.placement[name].mix == "auto":
            placements[name] = {**one, **{key: before[key] for key in ("weights", "rrf") if key in before}}
    return {**drafted.policy, "placements": placements}


def write(run: Run, bundle: Bundle, folder: Path) -> Bundle:
    """Golden lists, and the bundle in a folder of the run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = run.data.events.filter(pl.col(STAMP) < bundle.cut)
    return bundles.write(turn.with_golden(bundle, rows), folder, run.journal.started)


def candidate_of(run: Run) -> Bundle:
    """candidate', as `learn` wrote it."""
    return bundles.load(run.folder / "candidate" / run.journal.facts("learn")["bundle"])


def train(bundle: Bundle, folder: Path, reset: bool = False) -> dict[str, Any]:
    """Weights and optimizer state of a bundle with a network, for a warm start.

    Args:
        reset: The weights alone: the optimizer begins anew.

    Raises:
        UserError: it has none.
    """
    if not has_network(bundle):
        return {}
    if "train.safetensors" not in bundle.manifest["files"]:
        raise UserError("bundle", bundle.id, "one with train.safetensors, to start from", "recloop update --full")
    state = bundles.load_train(folder / bundle.id)
    return {name: array for name, array in state.items() if not reset or name.startswith("network.")}
