"""Differences between recloop.toml and a bundle's settings, and their effects.

    [data], [clean], the cuts of [split]                  a new first run, because the rows change
    [events], [features], [model], [baselines], [train], ..  a full retrain on the same rows, judged by the gate
    [placement], train.seed                               used by the next bundle; does not start a training

Limits (``clean.max_removed``, ``clean.max_rejected``) and ``train.time_budget`` do not change a bundle and are not compared.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from recloop.config import Config
from recloop.files import JsonTree
from recloop.settings import translate_recorded

COMPARED: Final = (
    "data", "events", "clean", "split", "features", "model", "baselines", "train", "placement",
)  # fmt: skip
"""Sections of recloop.toml that a bundle records."""
IGNORED: Final = ("clean.max_removed", "clean.max_rejected", "clean.future", "train.time_budget", "data.columns.name")
ROWS: Final = ("data.", "clean.", "split.protocol", "split.quantile", "split.ties", "split.k_core")
"""Keys (or prefixes of keys) that decide the rows and their split."""
LATER: Final = ("placement.", "train.seed")
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
        if self.key.startswith(ROWS):
            return Effect.RESTART
        return Effect.NEXT if self.key.startswith(LATER) else Effect.RETRAIN

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.was)} -> {_shown(self.now)}"


def recorded(config: Config) -> JsonTree:
    """Return the compared settings by dotted key, as a bundle's manifest stores them."""
    tree = config.model_dump(mode="json", by_alias=True, include={*COMPARED})
    tree["events"]["weights"] = [list(pair) for pair in config.events.weights.items()]  # their order matters
    found = dict(_leaves(tree, ""))
    found["serve.segment"] = config.serve.segment
    return {key: value for key, value in sorted(found.items()) if key not in IGNORED}


def changed_keys(config: Config, before: Mapping[str, Any] | None) -> list[Change]:
    """Return every compared key whose setting differs from a bundle's manifest.

    Args:
        before: ``config`` of the manifest; None (a bundle without recorded settings) gives no changes.
    """
    if before is None:
        return []
    before, now = translate_recorded(before), recorded(config)
    defaults = recorded(Config())  # a key added after the bundle was made had its default value
    keys = sorted({*before, *now})
    pairs = [(key, before.get(key, defaults.get(key)), now.get(key)) for key in keys if key not in IGNORED]
    return [Change(key, was, new) for key, was, new in pairs if was != new]


def with_effect(changes: Sequence[Change], *effects: Effect) -> list[Change]:
    """Keep the changes with one of these effects."""
    return [change for change in changes if change.effect in effects]


def list_changes(changes: Sequence[Change]) -> str:
    """Format the changes in one line."""
    return "; ".join(map(str, changes))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    return "absent" if value is None else '""' if value == "" else str(value)
