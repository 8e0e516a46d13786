"""Lines that the steps of a first run report: data, features, fusion and bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recloop.bundle import Bundle
from recloop.config import Config
from recloop.data.doctor.text import render
from recloop.data.prepare import PrepareResult
from recloop.models.base import TrainData
from recloop.progress import Progress
from recloop.records import utc_minute
from recloop.training import baselines
from recloop.training.dataset import ItemUserTables
from recloop.training.fusion_weights import FusionChoice


def fusion_line(config: Config, chosen: baselines.Chosen) -> str:
    """Describe the source weights of placement ``home`` in one line."""
    configured = config.placement["home"].weights
    moments = chosen.validation_moments
    weights = None if chosen.fusion is None else chosen.fusion.weights
    if configured != "auto":
        alternative = f" (validation would have chosen {_weights(weights)})" if weights else ""
        return f"fusion weights as configured: {_weights(configured)}{alternative}"
    if weights is None:
        return "no validation moments; all sources have weight 1" if not moments else "all sources have weight 1"
    return f"fusion weights chosen on {moments:,} validation moments: {_weights(weights)}"


def discovery_line(fusion: FusionChoice) -> str:
    """Describe the source weights of lists and slots without seen items."""
    return f"fusion weights of items new to the user: {_weights(fusion.weights)}"


def _weights(weights: Mapping[Any, float]) -> str:
    return ", ".join(f"{source} {weight:g}" for source, weight in weights.items() if weight > 0)


def report_data(progress: Progress, prepared: PrepareResult) -> None:
    """Report the row counts and the cut."""
    report = prepared.report
    removed = ", ".join(f"{rule} {count:,}" for rule, count in report.removed.items() if count) or "none"
    progress.say(
        "collect",
        f"{report.read:,} rows read = {report.kept:,} kept + {removed} removed + {report.rejected:,} rejected",
    )
    progress.show("collect", render(report))
    progress.say(
        "collect",
        f"cut at {utc_minute(prepared.cut)}: {prepared.train:,} train, {prepared.valid:,} valid, {prepared.test:,} test",
    )


def report_features(progress: Progress, tables: ItemUserTables, arrays: TrainData) -> None:
    """Report the training data in one line."""
    names = ", ".join(tables.fields.codes) or "ids only"
    progress.say(
        "features",
        f"{arrays.n_users:,} users, {arrays.n_items:,} items, {len(arrays.stamps):,} moments, {len(arrays.items):,} rows; {names}",
    )


def report_bundle(progress: Progress, bundle: Bundle) -> None:
    """Report the bundle's name and size."""
    size = sum(facts.bytes for facts in bundle.manifest.files.values())
    progress.say("bundle", f"{bundle.id}: {len(bundle.manifest.files)} files, {size / 2**20:.0f} MiB")
