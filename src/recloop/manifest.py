"""Typed record of manifest.json: model, rows, settings, training, hashes.

It is parsed once, when a bundle is checked. Unknown keys are kept in ``other_keys`` and written back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from recloop.features.learned_range import LAST_SEQ, LearnedRange
from recloop.files import JsonObject, JsonTree, without_none
from recloop.policy import ScorerSpec
from recloop.records import FileFacts


@dataclass(frozen=True)
class ModelSpec:
    """Model of a bundle: a network or closed-form model, with its options.

    The name is ``counts`` if the bundle has neither.
    """

    name: str
    config: Mapping[str, Any]
    other_keys: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, tree: JsonObject) -> ModelSpec:
        return cls(tree.required("name", str), tree.required("config", JsonTree), tree.unread)

    def to_json(self) -> JsonTree:
        return {**self.other_keys, "name": self.name, "config": dict(self.config)}


@dataclass(frozen=True)
class TrainingRows:
    """The rows that a bundle was fitted on.

    Attributes:
        cut: End of the rows, int64 microseconds UTC.
        fingerprint: Hash of ``data/``; empty if the rows were given in memory.
        until_seq, held_seq: See `recloop.features.learned_range.LearnedRange`; None if the bundle does not record them.
        protocol: Protocol that split the log.
    """

    cut: int
    fingerprint: str = ""
    until_seq: int | None = None
    held_seq: int | None = None
    protocol: str | None = None
    other_keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def learned(self) -> LearnedRange:
        until = LAST_SEQ if self.until_seq is None else self.until_seq
        return LearnedRange(until, self.cut, self.held_seq or 0)

    @classmethod
    def read(cls, tree: JsonObject) -> TrainingRows:
        return cls(**tree.fields(cls), other_keys=tree.unread)

    def to_json(self) -> JsonTree:
        return _fields(self)


@dataclass(frozen=True)
class Training:
    """Training record of a bundle; a value that is not recorded is None.

    Attributes:
        epochs, steps: Whole epochs and steps behind the weights. steps_per_epoch: Steps of a whole epoch.
        stopped: ``patience``, ``epochs`` or ``time_budget`` (``budget`` in earlier bundles).
        mode: Mode of an update, ``warm`` or ``full``. optimizer: ``reset`` if the optimizer state started fresh.
        refit: True if the bundle was fitted on the test moments too.
    """

    seed: int | None = None
    epochs: int | None = None
    steps: int | None = None
    steps_per_epoch: int | None = None
    stopped: str | None = None
    mode: str | None = None
    optimizer: str | None = None
    refit: bool | None = None
    other_keys: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, tree: JsonObject) -> Training:
        return cls(**tree.fields(cls), other_keys=tree.unread)

    def to_json(self) -> JsonTree:
        return _fields(self)

    @property
    def repeated_epochs(self) -> int:
        """Epochs that a fit from scratch repeats: rounded, at least one."""
        if self.steps_per_epoch:
            return max(1, round((self.steps or 0) / self.steps_per_epoch))
        return max(1, self.epochs or 0)


@dataclass(frozen=True)
class Manifest:
    """Manifest of a bundle.

    Attributes:
        parent: Bundle that this one was updated from; None: trained from scratch.
        config: Recorded settings by dotted key (`recloop.pipeline.config_changes`); None if not recorded.
        recipe: See `recloop.pipeline.recipe`.
        recloop: Version of recloop that wrote the bundle.
        bundle, format, encode_version, files: Empty until the bundle is written.
        redacted: Files as they are since users were removed from them (`recloop.bundle.redaction`).
    """

    model: ModelSpec
    data: TrainingRows
    train: Training = field(default_factory=Training)
    scorers: Mapping[str, ScorerSpec] = field(default_factory=dict)
    parent: str | None = None
    config: Mapping[str, Any] | None = None
    recipe: str | None = None
    recloop: str | None = None
    bundle: str = ""
    format: int | None = None
    encode_version: int | None = None
    files: Mapping[str, FileFacts] = field(default_factory=dict)
    redacted: Mapping[str, FileFacts] = field(default_factory=dict)
    other_keys: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, tree: Any) -> Manifest:
        """Parse ``manifest.json``.

        Raises:
            BundleError: a key is missing or has another type.
        """
        manifest = JsonObject(tree, "manifest.json")
        return cls(
            model=ModelSpec.read(manifest.child("model")),
            data=TrainingRows.read(manifest.child("data")),
            train=Training.read(manifest.child("train")),
            scorers={source: ScorerSpec.read(source, one) for source, one in manifest.children("scorers").items()},
            parent=manifest.nullable("parent", str),
            config=manifest.optional("config", JsonTree),
            recipe=manifest.optional("recipe", str),
            recloop=manifest.optional("recloop", str),
            bundle=manifest.required("bundle", str),
            format=manifest.required("format", int),
            encode_version=manifest.required("encode_version", int),
            files=manifest.required("files", dict[str, FileFacts]),
            redacted=manifest.optional("redacted", dict[str, FileFacts]) or {},
            other_keys=manifest.unread,
        )

    def to_json(self) -> JsonTree:
        """JSON object of ``manifest.json``.

        ``bundle``, ``format`` and ``files`` are absent until the bundle is written.
        """
        return {
            **self.other_keys,
            "model": self.model.to_json(),
            "data": self.data.to_json(),
            "train": self.train.to_json(),
            "scorers": {source: scorer.to_json() for source, scorer in self.scorers.items()},
            "parent": self.parent,
            **without_none(
                config=None if self.config is None else dict(self.config),
                recipe=self.recipe,
                recloop=self.recloop,
                bundle=self.bundle or None,
                format=self.format,
                encode_version=self.encode_version,
                files={name: asdict(facts) for name, facts in self.files.items()} or None,
                redacted={name: asdict(facts) for name, facts in self.redacted.items()} or None,
            ),
        }


def _fields(record: TrainingRows | Training) -> JsonTree:
    """Fields that have a value, after the unknown keys."""
    fields = {name: value for name, value in vars(record).items() if name != "other_keys"}
    return {**record.other_keys, **without_none(**fields)}
