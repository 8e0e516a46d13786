"""Verdicts of the jobs that a log is enough for."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from recloop.config import Config
from recloop.data.doctor.sufficiency import LogSize, jobs, log_size
from recloop.records import DAY

LARGE = LogSize(
    rows=400_000, users=4_000, users_with_two=2_500, items=3_000, shared_items=2_900, repeat_share=0.3,
    test_moments=2_000, test_users=900, monthly_users=5_000, weekly_moments=600, weekly_buyers=500, described_items=3_000,
)  # fmt: skip
FEATURES = {"features": {"item": {"category": {}}, "user": {"age": {}}}}


def verdicts(size: LogSize, **config: object) -> dict[str, str]:
    return {job.name: job.verdict for job in jobs(size, Config.model_validate(config))}


def test_jobs_of_a_large_log_are_enough() -> None:
    assert set(verdicts(LARGE, **FEATURES).values()) == {"enough"}


@pytest.mark.parametrize(
    ("change", "job", "verdict"),
    [
        ({"rows": 500}, "popular list", "little"),
        ({"users_with_two": 299}, "Co-visitation", "little"),
        ({"users_with_two": 99}, "Co-visitation", "not enough"),
        ({"shared_items": 0}, "Co-visitation", "not enough"),
        ({"repeat_share": 0.0}, "Bought-before", "not enough"),
        ({"rows": 90_000}, "SASRec, GRU4Rec, Two-Tower", "little"),
        ({"users_with_two": 500}, "SASRec, GRU4Rec, Two-Tower", "not enough"),
        ({"described_items": 0}, "new items", "not enough"),
        ({"test_users": 29}, "offline test", "not enough"),
        ({"weekly_moments": 100}, "gate of a weekly update", "little"),
        ({"monthly_users": 700}, "A/B test in four weeks", "not enough"),
    ],
)
def test_jobs_below_a_threshold_say_so(change: dict[str, float], job: str, verdict: str) -> None:
    assert verdicts(replace(LARGE, **change), **FEATURES)[job] == verdict


def test_jobs_without_features_or_repeats_name_the_setting() -> None:
    assert verdicts(LARGE)["new users"] == "little"
    found = {job.name: job for job in jobs(LARGE, Config.model_validate({"split": {"filter_seen": True}}))}
    assert found["Bought-before"].needs == "split.filter_seen = false"


def test_log_size_counts_positive_rows_of_known_users() -> None:
    rows = pl.DataFrame(
        {
            "seq": range(6),
            "user_id": ["a", "a", "a", "b", "guest:1", "c"],
            "item_id": ["x", "x", "y", "x", "z", "x"],
            "event_type": ["buy"] * 6,
            "timestamp": [n * 10 * DAY for n in range(6)],
            "stamp": [n * 10 * DAY for n in range(6)],
            "label": [1, 1, 1, 1, 1, 0],
        }
    )
    items = pl.DataFrame({"item_id": ["x", "y"], "attributes": ['{"category":"a"}', "{}"]})
    size = log_size(rows, items, Config())
    assert (size.rows, size.users, size.users_with_two, size.items, size.shared_items) == (5, 2, 1, 3, 1)
    assert (size.repeat_share, size.test_users, size.monthly_users, size.weekly_buyers) == (0.25, 0, 2, 0)
    assert size.described_items == 1
