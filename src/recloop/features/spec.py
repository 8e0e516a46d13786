"""Feature spec of a bundle: the inputs of state and encoding, as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final
from zoneinfo import ZoneInfo

from recloop.config import Clean, Config, Events, Features, Field
from recloop.errors import printable
from recloop.features.dwell import DwellPercentiles
from recloop.files import JsonTree

EARLIER_NAMES: Final = {
    "request.hour": "context.hour",
    "request.weekday": "context.weekday",
    "request.gap": "context.days_since_last",
}
"""Context features in the bundles of earlier versions -> present names; translated when a bundle is loaded."""
ENCODE_VERSION = 2
"""Version of the encoding; it changes with the golden tests of `recloop.features.encode`."""


@dataclass(frozen=True)
class FeatureSpec:
    """Event classes, cleaning rules and features; equal specs encode equally.

    Attributes:
        events: Event classes (`recloop.features.labels`).
        clean: Causal rules, which decide on arrival whether a row is valid.
        item, user: Features by name; ``source`` is the attribute they read.
        context: Features of the query's time, in order.
        dim: Width of a vector. history: Number of newest items of a state that a sequence model reads.
        timezone: Zone of stamps without one, and of hour and weekday.
        segment: User attribute with a popular list per value; empty: none.
        dwell: Dwell percentiles, frozen at training; None for a log without dwells.
    """

    events: Events
    clean: Clean
    item: dict[str, Field]
    user: dict[str, Field]
    context: tuple[str, ...]
    dim: int
    history: int
    timezone: str
    segment: str
    dwell: DwellPercentiles | None = None

    @classmethod
    def from_config(cls, config: Config, dwell: DwellPercentiles | None = None) -> FeatureSpec:
        """Spec of a configuration; ``dwell`` is from the manifest of ``data/``."""
        features = config.features
        return cls(
            events=config.events,
            clean=config.clean,
            item=dict(sorted(features.item.items())),
            user=dict(sorted(features.user.items())),
            context=features.context,
            dim=features.dim,
            history=features.max_history,
            timezone=config.data.timezone,
            segment=config.serve.segment,
            dwell=dwell,
        )

    @cached_property
    def state_key(self) -> str:
        """Digest (8 hex) of the event classes; bundles with equal keys share states."""
        classes = self._events() | ({} if self.dwell is None else {"dwell": self.dwell.to_json()})
        text = json.dumps(classes, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def to_json(self) -> JsonTree:
        return {
            "key": self.state_key,
            "events": self._events(),
            "clean": self.clean.model_dump(mode="json"),
            "item": {name: field.model_dump(mode="json", by_alias=True) for name, field in self.item.items()},
            "user": {name: field.model_dump(mode="json", by_alias=True) for name, field in self.user.items()},
            "context": list(self.context),
            "dim": self.dim,
            "history": self.history,
            "timezone": self.timezone,
            "segment": self.segment,
        } | ({} if self.dwell is None else {"dwell": self.dwell.to_json()})

    def _events(self) -> JsonTree:
        """Event classes as JSON; weights and undo are pairs, because their order matters."""
        tree: JsonTree = self.events.model_dump(mode="json")
        for name in ("weights", "undo"):
            if tree[name]:
                tree[name] = [list(pair) for pair in tree[name].items()]
        return tree

    @classmethod
    def from_json(cls, tree: JsonTree) -> FeatureSpec:
        """Read a spec.json.

        Raises:
            KeyError, TypeError, ValueError: a value is missing or of another kind.
        """
        stored = {name: tree[name] for name in ("item", "user", "dim")} | {"max_history": tree["history"]}
        context = tree["context"] if "context" in tree else _earlier_context(tree["request"])
        features = Features.model_validate(stored | {"context": context})
        return cls(
            events=Events.model_validate(tree["events"]),
            clean=Clean.model_validate(tree["clean"]),
            item=features.item,
            user=features.user,
            context=features.context,
            dim=features.dim,
            history=features.max_history,
            timezone=_time_zone(tree["timezone"]),
            segment=str(tree["segment"]),
            dwell=DwellPercentiles.from_json(tree["dwell"]) if tree.get("dwell") else None,
        )


def _time_zone(name: str) -> str:
    """Check the name of a time zone, which is that of a file.

    Raises:
        KeyError, TypeError, ValueError: it names none.
    """
    try:
        return ZoneInfo(name).key
    except OSError as error:  # a folder, or a name that is too long for a file
        raise ValueError(f"{printable(name)} is not a time zone ({error.strerror})") from None


def _earlier_context(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(EARLIER_NAMES[f"request.{name}"].removeprefix("context.") for name in names)
