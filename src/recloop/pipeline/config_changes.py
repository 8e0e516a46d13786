"""Differences between recloop.toml and a bundle's settings, and their effects.

    [data], [clean], the cuts of [split]                  a new first run, because the rows change
    [events], [features], [model], [baselines], [ranker], ..  a full retrain on the same rows, judged by the gate
    [placement], [catalog], train.seed                    used by the next bundle; does not start a training

Limits (``clean.max_removed``, ``clean.max_rejected``), ``train.time_budget`` and ``ranker.threads`` do not change a bundle and are not compared.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from recloop.config import Config, Field
from recloop.files import JsonTree
from recloop.settings import translate_recorded

COMPARED_SECTIONS: Final = (
    "data", "events", "clean", "split", "features", "model", "baselines", "ranker", "train", "placement",
    "catalog",
)  # fmt: skip
"""Sections of recloop.toml that a bundle records."""
IGNORED_KEYS: Final = (
    "clean.max_removed",
    "clean.max_rejected",
    "clean.future",
    "train.time_budget",
    "data.columns.name",
    "ranker.threads",
    "catalog.price",
    "catalog.image",
    "catalog.url",
)
RESTART_KEY_PREFIXES: Final = (
    "data.",
    "clean.",
    "split.protocol",
    "split.quantile",
    "split.ties",
    "split.k_core",
    "split.validation_rows",
)
"""Keys (or prefixes of keys) that decide the rows and their split."""
FEATURE_TABLES: Final = ("features.item.", "features.user.")
NEXT_BUNDLE_KEY_PREFIXES: Final = ("placement.", "train.seed", "catalog.")
"""Keys that do not start a training."""


class Effect(enum.Enum):
    """Effect of a changed key on the next update."""

    RESTART = "a new first run"
    RETRAIN = "a full retrain"
    NEXT = "used by the next bundle"


@dataclass(frozen=True)
class Change:
    """A changed key; ``was`` or ``now`` is None if the key is absent."""

    key: str
    was: Any
    now: Any

    @property
    def effect(self) -> Effect:
        if self.key.startswith(RESTART_KEY_PREFIXES):
            return Effect.RESTART
        return Effect.NEXT if self.key.startswith(NEXT_BUNDLE_KEY_PREFIXES) else Effect.RETRAIN

    def __str__(self) -> str:
        return f"{self.key}: {shown(self.was)} -> {shown(self.now)}"


def recorded(config: Config) -> JsonTree:
    """Return the compared settings by dotted key, as a bundle's manifest stores them."""
    tree = config.model_dump(mode="json", by_alias=True, include={*COMPARED_SECTIONS})
    tree["events"]["weights"] = [list(pair) for pair in config.events.weights.items()]  # their order matters
    settings = dict(_leaves(tree, ""))
    settings["serve.segment"] = config.serve.segment
    return {key: value for key, value in sorted(settings.items()) if key not in IGNORED_KEYS}


def changed_keys(config: Config, recorded_settings: Mapping[str, Any] | None) -> list[Change]:
    """Return every compared key whose setting differs from a bundle's manifest.

    Args:
        recorded_settings: ``config`` of the manifest; None (a bundle without recorded settings) gives no changes.
    """
    if recorded_settings is None:
        return []
    recorded_settings = translate_recorded(recorded_settings)
    settings = recorded(config)
    defaults = recorded(Config())  # a key added after the bundle was made had its default value
    keys = sorted({*recorded_settings, *settings})
    pairs = [
        (key, recorded_settings.get(key, _default_of(key, recorded_settings, defaults)), settings.get(key))
        for key in keys
        if key not in IGNORED_KEYS
    ]
    return [Change(key, earlier, current) for key, earlier, current in pairs if earlier != current]


def changed_since_prepare(config: Config, prepared: Mapping[str, Any]) -> list[Change]:
    """Return the keys of rows and split that differ from those of ``data/``.

    Args:
        prepared: ``config`` of the manifest of ``data/``; a key that it lacks is not compared.
    """
    changes = _different(prepared, config.model_dump(mode="json", by_alias=True, include={*COMPARED_SECTIONS}), "")
    return [change for change in with_effect([*changes], Effect.RESTART) if change.key not in IGNORED_KEYS]


def _default_of(key: str, recorded_settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    """Return the earlier value of a key that a bundle did not record."""
    table, _, name = key.rpartition(".")
    is_recorded_feature = table.startswith(FEATURE_TABLES) and f"{table}.kind" in recorded_settings
    if is_recorded_feature and name in Field.model_fields:
        return Field.model_fields[name].default
    return defaults.get(key)


def with_effect(changes: Sequence[Change], *effects: Effect) -> list[Change]:
    """Keep the changes with one of these effects."""
    return [change for change in changes if change.effect in effects]


def list_changes(changes: Sequence[Change]) -> str:
    """Format the changes in one line."""
    return "; ".join(map(str, changes))


def _different(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> Iterator[Change]:
    """Yield the keys of both trees with different values."""
    for key in sorted(now.keys() & was.keys()):
        if isinstance(was[key], Mapping) and isinstance(now[key], Mapping):
            yield from _different(was[key], now[key], f"{prefix}{key}.")
        elif was[key] != now[key]:
            yield Change(f"{prefix}{key}", was[key], now[key])


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shown(value: Any) -> str:
    """Format a value of a key."""
    return "absent" if value is None else '""' if value == "" else str(value)
