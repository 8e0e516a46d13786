"""The training arrays of a log with returns."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from recloop.config import Config
from recloop.features.labels import EventLabeler
from recloop.features.spec import FeatureSpec
from recloop.records import EVENT_SCHEMA, ITEM_ID, SEQ, STAMP, TIMESTAMP, USE, USER_ID, WEIGHT
from recloop.training.dataset import make_tables, order_of_rows, train_data, validation_data, without_repeats

CONFIG = Config.model_validate(
    {"data": {"events": "e.csv"}, "events": {"positive": ["purchase"], "undo": {"refund": "purchase"}}}
)


def labelled(*rows: tuple[str, str, str, int]) -> pl.DataFrame:
    """Labelled rows (user, item, type, stamp), each a separate moment."""
    columns = {
        USER_ID: [row[0] for row in rows],
        ITEM_ID: [row[1] for row in rows],
        "event_type": [row[2] for row in rows],
        TIMESTAMP: [row[3] for row in rows],
        SEQ: range(1, len(rows) + 1),
    }
    frame = pl.DataFrame(columns).with_columns(
        pl.lit(None, kind).alias(name) for name, kind in EVENT_SCHEMA.items() if name not in columns
    )
    return EventLabeler(CONFIG.events, CONFIG.clean).label(frame).with_columns(pl.col(TIMESTAMP).alias(STAMP))


def test_validation_data_excludes_a_purchase_returned_later() -> None:
    rows = labelled(
        ("ann", "returned", "purchase", 10),
        ("bob", "kept", "purchase", 20),
        ("eve", "kept", "purchase", 25),
        ("bob", "other", "purchase", 30),  # bob's validation moment
        ("eve", "other", "purchase", 35),
        ("ann", "returned", "refund", 40),
    )
    valid = rows.filter(pl.col(STAMP) == 30)
    train = rows.filter(pl.col(STAMP) != 30)
    tables = make_tables(FeatureSpec.from_config(CONFIG), rows, 100, None, None)
    assert (tables.users.ids, tables.items.ids) == (["bob", "eve"], ["kept", "other"])
    arrays = validation_data(tables, train, valid, None, temporal=True)
    assert arrays.user_offsets.tolist() == [0, 1, 2]
    assert [tables.items.ids[ix - 1] for ix in arrays.items] == ["kept", "kept"]
    assert arrays.counts.tolist() == [0, 2, 0]


def test_train_data_excludes_a_validation_moment_returned_later() -> None:
    rows = labelled(
        ("ann", "returned", "purchase", 30), ("bob", "kept", "purchase", 20), ("ann", "returned", "refund", 40)
    )  # fmt: skip
    tables = make_tables(FeatureSpec.from_config(CONFIG), rows, 100, None, None)
    arrays = train_data(tables, rows.filter(pl.col(STAMP) == 20), rows.filter(pl.col(STAMP) == 30))
    assert arrays.held is None or not len(arrays.held.user_ix)
    assert arrays.user_offsets.tolist() == [0, 1]


@pytest.mark.parametrize(("rows", "users"), [(0, 1), (1, 1), (60, 3), (60, 1_000)])
def test_without_repeats_equals_the_grouped_rows(rows: int, users: int) -> None:
    random = np.random.default_rng(rows + users)
    numbered = pl.DataFrame(
        {
            "user_ix": random.integers(1, users + 1, rows),
            "rank": random.integers(0, 3, rows),
            STAMP: random.integers(0, 3, rows),
            SEQ: random.permutation(rows),
            WEIGHT: pl.Series(random.random(rows), dtype=pl.Float32),
            USE: random.random(rows) < 0.4,
        }
    )
    key = ["user_ix", STAMP, "rank"]
    grouped = numbered.group_by(key).agg(pl.col(SEQ).min(), pl.col(WEIGHT).max(), pl.col(USE).any()).sort(key)
    joined = without_repeats(numbered.sort(key))
    assert joined.select(grouped.columns).equals(grouped)
    assert joined.schema == numbered.schema


@pytest.mark.parametrize("rows", [0, 1, 400])
@pytest.mark.parametrize("is_by_time", [True, False])
def test_order_of_rows_equals_a_sort_by_user_stamp_and_item(rows: int, is_by_time: bool) -> None:
    random = np.random.default_rng(rows)
    stamps = random.integers(-5, 60, rows)
    numbered = pl.DataFrame(
        {
            "user_ix": pl.Series(random.integers(1, 6, rows), dtype=pl.Int32),
            "rank": pl.Series(random.integers(0, 9, rows), dtype=pl.Int32),
            STAMP: np.sort(stamps) if is_by_time else stamps,
        }
    )
    assert numbered[order_of_rows(numbered)].equals(numbered.sort("user_ix", STAMP, "rank"))
