"""What a turn tells on its way: who is told, and the lines of its chapters."""

from __future__ import annotations

from typing import Any, Protocol

from recloop.bundle import Bundle
from recloop.collect.doctor import render
from recloop.collect.prepare import Prepared
from recloop.learn.arrays import Tables
from recloop.models.base import TrainData
from recloop.records import utc_minute


class Voice(Protocol):
    """Who is told what came out of each step, and how far a long one is."""

    def say(self, chapter: str, line: str) -> None: ...
    def show(self, chapter: str, drawn: Any) -> None: ...
    def bar(self, chapter: str, done: int, total: int) -> None: ...


class Silent:
    """Tells nobody."""

    def say(self, chapter: str, line: str) -> None: ...
    def show(self, chapter: str, drawn: Any) -> None: ...
    def bar(self, chapter: str, done: int, total: int) -> None: ...


def tell_collected(voice: Voice, prepared: Prepared) -> None:
    """The doctor's first line, and where the cut fell."""
    report = prepared.report
    removed = ", ".join(f"{rule} {count:,}" for rule, count in report.removed.items() if count) or "none"
    voice.say(
        "collect",
        f"{report.read:,} rows read = {report.kept:,} kept + {removed} removed + {report.rejected:,} rejected",
    )
    voice.show("collect", render(report))
    voice.say(
        "collect",
        f"cut at {utc_minute(prepared.cut)}: {prepared.train:,} train, {prepared.valid:,} valid, {prepared.test:,} test",
    )


def tell_features(voice: Voice, tables: Tables, arrays: TrainData) -> None:
    """What the model sees, in one line."""
    names = ", ".join(tables.fields.codes) or "ids alone"
    voice.say(
        "features",
        f"{arrays.n_users:,} users, {arrays.n_items:,} items, {len(arrays.stamps):,} moments, {len(arrays.items):,} rows; {names}",
    )


def tell_bundle(voice: Voice, bundle: Bundle) -> None:
    """The bundle's name and size."""
    size = sum(facts.bytes for facts in bundle.manifest.files.values())
    voice.say("bundle", f"{bundle.id}: {len(bundle.manifest.files)} files, {size / 2**20:.0f} MiB")
