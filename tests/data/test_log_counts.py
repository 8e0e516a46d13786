"""Counts of valid rows: those of shards add up to those of the whole log."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from recloop.config import Config
from recloop.data.clean import clean
from recloop.data.doctor.profile import timestamp_resolution
from recloop.data.log_counts import LogCounts
from recloop.data.read import RAW_SCHEMA
from recloop.data.repeats import new_item_share, repeat_share
from recloop.data.split import HoldoutCandidates, holdout_rows, n_users
from recloop.features.log_end import robust_end
from recloop.records import (
    DAY,
    STAMP,
    TIMESTAMP,
    USER_ID,
    are_holdout_users,
    hash_unit_interval,
    hash_unit_intervals,
    is_holdout_user,
)


def random_log(seed: int, size: int = 400) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    group = [None if draw < 0.4 else f"g{int(draw * 30)}" for draw in rng.random(size)]
    users = [f"guest:{name}" if name and name < "g15" else f"u{rng.integers(0, 9)}" for name in group]
    columns = {
        "user_id": users,
        "item_id": [f"i{number}" for number in rng.integers(0, 12, size)],
        "timestamp": rng.integers(0, 60, size) * (DAY // 4) + 1_700_000_000_000_000,
        "event_type": rng.choice(["view", "purchase", "return", "odd"], size),
        "group_id": group,
    }
    frame = pl.DataFrame(columns)
    return frame.select(
        (pl.col(name) if name in columns else pl.lit(None)).cast(kind).alias(name) for name, kind in RAW_SCHEMA.items()
    )


def counted(counts: LogCounts) -> dict[str, object]:
    """Counts without the order of the rows of their tables."""
    tables = {
        name: sorted(map(str, getattr(counts, name).iter_rows())) for name in ("users", "items", "types", "classes")
    }
    return vars(counts) | tables | {"reused": counts.reused.rows()}


@pytest.mark.parametrize("seed", range(4))
def test_log_counts_of_shards_equal_those_of_the_log(seed: int) -> None:
    config = Config.model_validate(
        {
            "events": {"positive": ["purchase"], "neutral": ["view"], "undo": {"return": "purchase"}},
            "clean": {"max_removed": 1},
        }
    )
    rows = clean(random_log(seed), config).valid_rows
    shards = [rows.filter(pl.col(USER_ID).hash() % 3 == shard) for shard in range(3)] + [rows.clear()]
    whole = LogCounts.of(rows, config)
    assert counted(LogCounts.total([LogCounts.of(shard, config) for shard in shards])) == counted(whole)
    assert whole.repeats == pytest.approx(repeat_share(rows))
    assert whole.resolution == timestamp_resolution(rows[TIMESTAMP])
    assert whole.moments == rows.select(USER_ID, STAMP).n_unique()
    assert len(whole.of_users) == n_users(rows)
    parts = HoldoutCandidates.total([HoldoutCandidates.of(shard) for shard in shards])
    assert sorted(parts.chosen(3).rows()) == sorted(holdout_rows(rows, 3, 9).rows())


def test_log_counts_without_rows_are_zero() -> None:
    empty = LogCounts.total([])
    assert (empty.rows, empty.first, empty.repeats, empty.resolution, empty.event_classes()) == (0, None, 0.0, "", {})


def test_hash_unit_intervals_equal_single_hashes() -> None:
    ids = ["u1", "", "ä", *(f"u{number}" for number in range(50))]
    assert hash_unit_intervals("valid", ids).tolist() == [hash_unit_interval("valid", raw_id) for raw_id in ids]


def test_are_holdout_users_equals_single_decisions() -> None:
    ids = [f"user-{n}" for n in range(300)]
    assert are_holdout_users(ids).tolist() == [is_holdout_user(raw_id) for raw_id in ids]
    assert are_holdout_users(ids).any()
    assert are_holdout_users([]).tolist() == []


def test_robust_end_does_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    stamps = np.append(rng.integers(0, 40, 300) * DAY, [500 * DAY, 501 * DAY, 502 * DAY] * 4)
    users = pl.Series([f"u{number}" for number in rng.integers(0, 200, 300)] + ["late"] * 12)
    order = rng.permutation(len(stamps))
    assert robust_end(stamps[order], users.gather(order)) == robust_end(stamps, users) == stamps[:300].max()


def test_new_item_share_counts_first_pairs_of_known_users_in_the_newest_tenth() -> None:
    rows = pl.DataFrame(
        {
            "user_id": ["a"] * 18 + ["a", "b"],
            "item_id": ["x"] * 9 + ["y"] * 9 + ["z", "x"],  # b has no earlier row
            "stamp": [*range(18), 20, 20],
            "label": [1] * 20,
        }
    )
    assert new_item_share(rows) == 0.5  # of y and z, z is new to a
    assert (
        new_item_share(
            rows.with_columns(pl.when(pl.col("item_id") == "z").then(pl.lit("x")).otherwise("item_id").alias("item_id"))
        )
        == 0.0
    )
    assert new_item_share(rows.clear()) == 0.0
