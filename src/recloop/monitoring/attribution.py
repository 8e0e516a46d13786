"""Attribution of events to lists, and user outcomes of an experiment.

See docs/definitions/experiments.md. The unit is the user in the assigned arm (intention to treat): a request that the
candidate could not answer is an outcome of the candidate's arm. An outcome covers the 24 hours after the first
exposure, and a user enters when they are over; later events do not exclude a user. An event is credited to the last
exposure of its item to its user (a click within 1 h, any other event within 7 days). An event with the ``request_id``
of a list is credited to that list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import polars as pl
from polars.dataframe.group_by import GroupBy

from recloop.records import DAY, EVENT_TYPE, ITEM_ID, LABEL, SECOND, TIMESTAMP, USER_ID, VALUE, Decision, guest_rows

LIVE, CANDIDATE = "live", "candidate"
ARMS: Final = (LIVE, CANDIDATE)
OUTCOME_PERIOD: Final = DAY
COVARIATE_PERIOD: Final = 14 * DAY
"""Period before the first exposure for the CUPED covariate."""
CREDIT_PERIODS: Final = {"click": 3_600 * SECOND}
DEFAULT_CREDIT_PERIOD: Final = 7 * DAY
REQUEST_ID: Final = "request_id"
REQUEST_COLUMNS: Final[dict[str, Any]] = {
    REQUEST_ID: pl.String, USER_ID: pl.String, "served_at": pl.Int64, "assigned": pl.String, "variant": pl.String,
    "latency_us": pl.Int64, "items": pl.List(pl.String),
}  # fmt: skip
"""Columns of the decision log that outcomes need."""


def joined(
    requests: pl.DataFrame, events: pl.DataFrame, first_users: Mapping[str, str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Give requests before a login to the user; drop the events stored again.

    Args:
        first_users: User of the first identify of each anonymous id.
    """
    if not first_users:
        return requests, events
    is_anonymous = pl.col(USER_ID).is_in(pl.Series(list(first_users), dtype=pl.String).implode())
    return requests.with_columns(pl.col(USER_ID).replace(first_users)), events.filter(~is_anonymous)


def user_outcomes(decisions: Sequence[Decision], events: pl.DataFrame, since: int, now: int) -> pl.DataFrame:
    """Compute `request_outcomes` of decisions."""
    rows = [[getattr(decision, name) for name in REQUEST_COLUMNS] for decision in decisions]
    requests = pl.DataFrame(rows, schema=REQUEST_COLUMNS, orient="row")
    return request_outcomes(requests, events, since, now)


def request_outcomes(requests: pl.DataFrame, events: pl.DataFrame, since: int, now: int) -> pl.DataFrame:
    """Compute one row of outcomes per user, in order of entry, with the values before.

    Args:
        requests: Responses with the columns of `REQUEST_COLUMNS`, including the 14 days before ``since``; requests without
            a user id are ignored.
        events: Labelled rows of the log.
        since: Start of the experiment.
        now: Users whose 24 hours are not over by then are marked ``waiting``.

    Returns:
        user_id, arm, closes, waiting, the columns of `_sums`, and the same columns with prefix ``before_``.
    """
    requests = requests.with_columns(
        pl.col("assigned").alias("arm"), (pl.col("variant") != pl.col("assigned")).alias("unanswered")
    )
    credited = attribute(requests, events)
    in_experiment = requests.filter(
        (pl.col("served_at") >= since) & pl.col("arm").is_in(ARMS) & (pl.col(USER_ID) != "") & ~guest_rows()
    )
    users = (
        in_experiment.sort("served_at", REQUEST_ID)
        .group_by(USER_ID, maintain_order=True)
        .agg(
            # Until the server has reloaded (at most a second), it assigns every user to live.
            pl.when((pl.col("arm") == CANDIDATE).any()).then(pl.lit(CANDIDATE)).otherwise(pl.lit(LIVE)).alias("arm"),
            pl.col("served_at").first().alias("start"),
        )
        .with_columns((pl.col("start") + OUTCOME_PERIOD).alias("closes"))
        .with_columns((pl.col("closes") > now).alias("waiting"))
        .sort("closes", USER_ID)
    )
    after_entry = users.select(USER_ID, pl.col("start"), pl.col("closes").alias("stop"))
    before_entry = users.select(
        USER_ID, (pl.col("start") - COVARIATE_PERIOD).alias("start"), pl.col("start").alias("stop")
    )
    sums_before = _sums(before_entry, requests, credited, events)
    sums_before = sums_before.rename({name: f"before_{name}" for name in sums_before.columns if name != USER_ID})
    return users.join(
        _sums(after_entry, requests, credited, events), on=USER_ID, how="left", maintain_order="left"
    ).join(sums_before, on=USER_ID, how="left", maintain_order="left")


def attribute(requests: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """Credit each event to at most one list; add its ``request_id`` and ``at``.

    Args:
        requests: request_id, user_id, at, items.
        events: user_id, item_id, timestamp, event_type, value, label, request_id.
    """
    exposures = (
        requests.select(USER_ID, pl.col("items").alias(ITEM_ID), "served_at", REQUEST_ID).explode(ITEM_ID).drop_nulls()
    )
    rows = events.select(
        USER_ID,
        ITEM_ID,
        TIMESTAMP,
        EVENT_TYPE,
        VALUE,
        LABEL,
        pl.col(REQUEST_ID).alias("sent"),
        pl.col(EVENT_TYPE)
        .replace_strict(CREDIT_PERIODS, default=DEFAULT_CREDIT_PERIOD, return_dtype=pl.Int64)
        .alias("within"),
    )
    # A request_id is used only if it belongs to this user.
    user_requests = requests.select(USER_ID, pl.col(REQUEST_ID).alias("sent"))
    named = rows.join(user_requests, on=[USER_ID, "sent"], how="semi").join(
        exposures.with_columns(pl.col(REQUEST_ID).alias("sent")), on=[USER_ID, ITEM_ID, "sent"], how="inner"
    )
    inferred = (
        rows.join(user_requests, on=[USER_ID, "sent"], how="anti")
        .sort(TIMESTAMP)
        .join_asof(
            exposures.sort("served_at"),
            left_on=TIMESTAMP,
            right_on="served_at",
            by=[USER_ID, ITEM_ID],
            strategy="backward",
            check_sortedness=False,
        )
        .drop_nulls("served_at")
    )
    credited = pl.concat([named, inferred], how="diagonal")
    return credited.filter(pl.col(TIMESTAMP) - pl.col("served_at") <= pl.col("within"))


def _sums(windows: pl.DataFrame, requests: pl.DataFrame, credited: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """Sum each user's requests and events between ``start`` and ``stop``; 0 if none."""

    def within(frame: pl.DataFrame, *stamps: str) -> GroupBy:
        joined = frame.join(windows, on=USER_ID, how="inner")
        for stamp in stamps:
            joined = joined.filter((pl.col(stamp) >= pl.col("start")) & (pl.col(stamp) < pl.col("stop")))
        return joined.group_by(USER_ID)

    positive = pl.col(LABEL) > 0
    click = pl.col(EVENT_TYPE) == "click"
    request_sums = within(requests, "served_at").agg(
        pl.len().alias("requests"), pl.col("latency_us").sum(), pl.col("unanswered").sum()
    )
    credit_sums = within(credited, "served_at", TIMESTAMP).agg(
        pl.col(REQUEST_ID).filter(positive).n_unique().alias("hits"),
        click.sum().alias("clicks"),
        positive.sum().alias("positives"),
        pl.col(VALUE).filter(positive).sum().alias("value"),
    )
    event_sums = within(events.select(USER_ID, TIMESTAMP, LABEL), TIMESTAMP).agg(
        positive.sum().alias("all_positives"), (pl.col(LABEL) < 0).sum().alias("dislikes")
    )
    totals = windows.select(USER_ID)
    for sums in (request_sums, credit_sums, event_sums):
        totals = totals.join(sums, on=USER_ID, how="left", maintain_order="left")
    return totals.fill_null(0)
