"""The feature spec of a bundle: all that state and encode need to know, as JSON."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from recloop.config import Clean, Config, Events, Field
from recloop.features.dwell import DwellPercentiles
from recloop.json_object import JsonTree

ENCODE_VERSION = 2
"""Raised by hand when a golden test of `recloop.features.encode` changes."""


@dataclass(frozen=True)
class FeatureSpec:
    """Event classes, cleaning rules and features; equal specs encode equally.

    Attributes:
        events: What an event means (`recloop.features.labels`).
        clean: The rules by which a row is believed on arrival.
        item, user: Features by name; ``source`` is the attribute they read.
        request: Features of the query's now, in order.
        dim: Width of a vector. history: newest items of a state that a sequence model is fed.
        timezone: Of the stamps that carry none, and of hour and weekday.
        segment: User attribute whose values have popular lists of their own; empty: none.
        dwell: What a dwell is long compared with, frozen at training; None: the log had none.
    """

    events: Events
    clean: Clean
    item: dict[str, Field]
    user: dict[str, Field]
    request: tuple[str, ...]
    dim: int
    history: int
    timezone: str
    segment: str
    dwell: DwellPercentiles | None = None

    @classmethod
    def of(cls, config: Config, dwell: DwellPercentiles | None = None) -> FeatureSpec:
        """The spec of a configuration; ``dwell`` as `recloop.data` found it (the manifest of ``data/``)."""
        features = config.features
        return cls(
            events=config.events,
            clean=config.clean,
            item=dict(sorted(features.item.items())),
            user=dict(sorted(features.user.items())),
            request=tuple(features.request),
            dim=features.dim,
            history=features.history,
            timezone=config.data.timezone,
            segment=config.serve.segment,
            dwell=dwell,
        )

    @property
    def context(self) -> list[str]:
        """Names of the columns of a query's context: user fields, then request fields."""
        return [f"user.{name}" for name in self.user] + [f"request.{name}" for name in self.request]

    @cached_property
    def state_key(self) -> str:
        """8 hex of the event classes: bundles of one key share states and snapshots."""
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
            "request": list(self.request),
            "dim": self.dim,
            "history": self.history,
            "timezone": self.timezone,
            "segment": self.segment,
        } | ({} if self.dwell is None else {"dwell": self.dwell.to_json()})

    def _events(self) -> JsonTree:
        """The event classes as JSON; weights and undo as pairs, in their order, which decides."""
        tree: JsonTree = self.events.model_dump(mode="json")
        for name in ("weights", "undo"):
            if tree[name]:
                tree[name] = [list(pair) for pair in tree[name].items()]
        return tree

    @classmethod
    def from_json(cls, tree: JsonTree) -> FeatureSpec:
        return cls(
            events=Events.model_validate(tree["events"]),
            clean=Clean.model_validate(tree["clean"]),
            item={name: Field.model_validate(field) for name, field in tree["item"].items()},
            user={name: Field.model_validate(field) for name, field in tree["user"].items()},
            request=tuple(tree["request"]),
            dim=tree["dim"],
            history=tree["history"],
            timezone=tree["timezone"],
            segment=tree["segment"],
            dwell=DwellPercentiles.from_json(tree["dwell"]) if tree.get("dwell") else None,
        )
