"""Sufficiency of a log for each model and test.

Thresholds are measured in docs/decisions/2026-11-28-sizes-of-a-log.md; those of the gate are in `recloop.release.gate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import polars as pl

from recloop.config import Config
from recloop.data.repeats import repeat_share
from recloop.data.split import cut_of
from recloop.files import JsonTree
from recloop.records import DAY, ITEM_ID, LABEL, STAMP, TIMESTAMP, USER_ID, guest_rows

MIN_POPULAR_ROWS: Final = 1_500
MIN_NEIGHBOUR_USERS: Final = 300  # users with two moments from which Co-visitation always beat the popular list
MIN_REPEAT_SHARE: Final = 0.05
MIN_NETWORK_USERS: Final = 2_000
MIN_NETWORK_ROWS: Final = 100_000
MIN_TEST_USERS: Final = 30  # users of a test that tells a large difference
GOOD_TEST_USERS: Final = 300  # users of a test that tells a difference of 0.03 NDCG@10
MIN_GATE_QUERIES: Final = 30
MIN_GATE_USERS: Final = 20
AB_LOOK_USERS: Final = 100  # users of each arm at a look

Verdict = Literal["enough", "little", "not enough"]


@dataclass(frozen=True)
class LogSize:
    """Numbers of a log that decide what it is enough for; rows are positive rows.

    Attributes:
        users_with_two: Users with at least two moments. shared_items: Items that two users have.
        repeat_share: Share of rows whose user had the item before.
        test_moments, test_users: Moments with a positive row after the cut, and their users.
        monthly_users: Users with an event in the last 28 days.
        weekly_moments: Moments with a positive row in the last seven days, and ``weekly_buyers`` their users.
        described_items: Items of the catalog with attributes.
    """

    rows: int
    users: int
    users_with_two: int
    items: int
    shared_items: int
    repeat_share: float
    test_moments: int
    test_users: int
    monthly_users: int
    weekly_moments: int
    weekly_buyers: int
    described_items: int


@dataclass(frozen=True)
class Job:
    """A model or test with its need, the log's number and the verdict.

    ``meanwhile`` is the list that is served below the need.
    """

    name: str
    needs: str
    has: str
    verdict: Verdict
    meanwhile: str

    def to_json(self) -> JsonTree:
        """JSON object of one job."""
        return {**vars(self)}


def log_size(valid_rows: pl.DataFrame, items: pl.DataFrame | None, config: Config) -> LogSize:
    """Count a log's positive rows, users and test moments.

    Args:
        valid_rows: Labelled rows in seq order; guest baskets count as rows and items only.
        items: The catalog with a column ``attributes`` (JSON), or None.
    """
    positive = valid_rows.filter(pl.col(LABEL) > 0)
    known = positive.filter(~guest_rows())
    moments = known.group_by(USER_ID).agg(pl.col(STAMP).n_unique())[STAMP]
    sharers = known.group_by(ITEM_ID).agg(pl.col(USER_ID).n_unique())[USER_ID]
    cut = cut_of(valid_rows, config.split.quantile) if len(valid_rows) else 0
    tested = known.filter(pl.col(STAMP) >= cut).select(USER_ID, STAMP).unique()
    last = valid_rows[TIMESTAMP].max()
    end = last if isinstance(last, int) else 0
    week, month = (pl.col(TIMESTAMP) > end - days * DAY for days in (7, 28))
    bought = known.filter(week).select(USER_ID, STAMP).unique()
    described = (
        0 if items is None else items.filter(pl.col("attributes").str.len_chars() > len("{}"))[ITEM_ID].n_unique()
    )
    return LogSize(
        rows=len(positive),
        users=len(moments),
        users_with_two=int((moments >= 2).sum()),
        items=positive[ITEM_ID].n_unique(),
        shared_items=int((sharers >= 2).sum()),
        repeat_share=round(repeat_share(valid_rows), 4),
        test_moments=len(tested),
        test_users=tested[USER_ID].n_unique(),
        monthly_users=valid_rows.filter(month & ~guest_rows())[USER_ID].n_unique(),
        weekly_moments=len(bought),
        weekly_buyers=bought[USER_ID].n_unique(),
        described_items=described,
    )


def jobs(size: LogSize, config: Config) -> tuple[Job, ...]:
    """Judge each model and test by the size of the log."""
    return (
        _popular(size), _covisitation(size), _bought_before(size, config), _network(size), *_cold_start(size, config),
        _offline_test(size), _gate(size), _experiment(size, config),
    )  # fmt: skip


def _verdict(value: float, enough: float, little: float) -> Verdict:
    if value >= enough:
        return "enough"
    return "little" if value >= little else "not enough"


def _popular(size: LogSize) -> Job:
    return Job(
        "popular list", f"{MIN_POPULAR_ROWS:,} positive rows",
        f"{size.rows:,} positive rows of {size.items:,} items", _verdict(size.rows, MIN_POPULAR_ROWS, 20),
        "the newest items of the catalog",
    )  # fmt: skip


def _covisitation(size: LogSize) -> Job:
    verdict = _verdict(size.users_with_two, MIN_NEIGHBOUR_USERS, MIN_NEIGHBOUR_USERS / 3)
    return Job(
        "Co-visitation", f"{MIN_NEIGHBOUR_USERS} users with two moments, and items that several users have",
        f"{size.users_with_two:,} users with two moments; {size.shared_items:,} of {size.items:,} items have two users",
        verdict if size.shared_items else "not enough", "the popular list",
    )  # fmt: skip


def _bought_before(size: LogSize, config: Config) -> Job:
    share = f"{size.repeat_share * 100:.1f} % of positive acts repeat an item of their user"
    if config.split.filter_seen:
        return Job("Bought-before", "split.filter_seen = false", f"it is true; {share}", "not enough", "other sources")
    verdict = _verdict(size.repeat_share, MIN_REPEAT_SHARE, 0.01)
    return Job(
        "Bought-before", f"{MIN_REPEAT_SHARE * 100:.0f} % of positive acts that repeat an item", share, verdict,
        "Co-visitation and the popular list",
    )  # fmt: skip


def _network(size: LogSize) -> Job:
    ratio = min(size.users_with_two / MIN_NETWORK_USERS, size.rows / MIN_NETWORK_ROWS)
    return Job(
        "SASRec, GRU4Rec, Two-Tower",
        f"{MIN_NETWORK_USERS:,} users with two moments and {MIN_NETWORK_ROWS:,} positive rows",
        f"{size.users_with_two:,} users with two moments, {size.rows:,} positive rows", _verdict(ratio, 1, 0.5),
        "the fusion of the counting models; a network has weight 0 until it helps",
    )  # fmt: skip


def _cold_start(size: LogSize, config: Config) -> tuple[Job, Job]:
    n_fields = len(config.features.item)
    described = f"{size.described_items:,} described items; item features: {n_fields}"
    new_items = Job(
        "new items", "attributes of items ([data] items, [features.item])", described,
        "enough" if size.described_items and n_fields else "not enough",
        "the list of newest items; no personal list has an item before its first event",
    )  # fmt: skip
    n_user_fields = len(config.features.user)
    new_users = Job(
        "new users", "attributes of users, or their first events", f"user features: {n_user_fields}",
        "enough" if n_user_fields else "little", "the popular list; after the first event a personal one",
    )  # fmt: skip
    return new_items, new_users


def _offline_test(size: LogSize) -> Job:
    return Job(
        "offline test", f"{GOOD_TEST_USERS} users after the cut to tell 0.03 NDCG@10, {MIN_TEST_USERS} to tell 0.1",
        f"{size.test_users:,} users, {size.test_moments:,} test moments",
        _verdict(size.test_users, GOOD_TEST_USERS, MIN_TEST_USERS), "the same list; differences are inconclusive",
    )  # fmt: skip


def _gate(size: LogSize) -> Job:
    ratio = min(size.weekly_moments / MIN_GATE_QUERIES, size.weekly_buyers / MIN_GATE_USERS)
    return Job(
        "gate of a weekly update",
        f"{MIN_GATE_QUERIES} new moments of {MIN_GATE_USERS} users in its test, a quarter of the new moments",
        f"{size.weekly_moments:,} new moments of {size.weekly_buyers:,} users in the last week",
        _verdict(ratio, 4, 1), "the live bundle; the gate pools later windows until it can judge",
    )  # fmt: skip


def _experiment(size: LogSize, config: Config) -> Job:
    plan = config.release.plan
    least = 2 * AB_LOOK_USERS * plan.looks
    return Job(
        "A/B test in four weeks",
        f"{plan.users:,} users (release.plan.users), and {least:,} for {plan.looks} looks",
        f"{size.monthly_users:,} active users in the last 28 days",
        _verdict(size.monthly_users, max(plan.users, least), least),
        "the bundle that passed the gate",
    )
