"""Labels of repeated rows equal those of the labeler."""

from __future__ import annotations

import random

import polars as pl
import pytest

from recloop.config import Clean, Events
from recloop.features import row_cache
from recloop.features.label_cache import LabelCache
from recloop.features.labels import EventLabeler
from recloop.features.state_delta import rows_of
from recloop.records import EVENT_SCHEMA
from recloop.storage.event_rows import EventColumns

SETTINGS = (
    Events(),
    Events(weights={"buy": 5.0, "value >= 3": 2.0, "skip": -0.5}, history=("view",), undo={"return": "buy"}),
    Events(positive=("buy", "placement = 'home'"), negative=("quantity < 0",), undo={}),
)


def drawn_rows(seed: int, n: int = 200) -> pl.DataFrame:
    """Rows with few values per column, some of them null."""
    draw = random.Random(seed)
    names = ["view", "buy", "return", "skip", "dislike", "impression", "other"]
    rows = [
        {
            "seq": seq,
            "user_id": draw.choice(["u", "v", "guest:g"]),
            "item_id": draw.choice("ab"),
            "timestamp": draw.randrange(100),
            "event_type": draw.choice(names),
            "value": draw.choice([None, 0.0, 3.5]),
            "quantity": draw.choice([None, -2.0, -0.0, 0.0, 1.0, 4.0]),
            "group_id": draw.choice([None, "g"]),
            "placement": draw.choice([None, "home"]),
        }
        for seq in range(1, n + 1)
    ]
    return pl.DataFrame(rows, schema=EVENT_SCHEMA)


@pytest.mark.parametrize("events", SETTINGS)
def test_label_cache_of_drawn_rows_equals_the_labeler(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_cache, "MAX_KEYS", 40)  # it is emptied on the way
    labeler = EventLabeler(events, Clean())
    cache = LabelCache(labeler)
    frame = drawn_rows(0)
    for start in range(0, len(frame), 7):
        rows = frame[start : start + 7]
        assert cache.rows(EventColumns.of_frame(rows)) == rows_of(labeler.label(rows))


def test_label_cache_leaves_dwells_and_other_columns_to_the_labeler() -> None:
    rows = drawn_rows(1, 5)
    dwells = rows.with_columns(pl.lit("dwell").alias("event_type"))
    assert LabelCache(EventLabeler(Events(), Clean())).rows(EventColumns.of_frame(dwells)) is None
    by_item = Events(positive=("item_id = 'a'",))
    assert LabelCache(EventLabeler(by_item, Clean())).rows(EventColumns.of_frame(rows)) is None
