"""Attribution of events to lists, and user outcomes of an experiment.

See docs/definitions/experiments.md. The unit is the user in the assigned arm (intention to treat): a request that the
candidate could not answer is an outcome of the candidate's arm. An outcome covers the 24 hours after the first
exposure, and a user enters when they are over; later events do not exclude a user. An event is credited to the last
exposure of its item to its user (a click within 1 h, any other event within 7 days). An event with the ``request_id``
of a list is credited to that list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import polars as pl
from polars.dataframe.group_by import GroupBy

from recloop.records import DAY, EVENT_TYPE, ITEM_ID, LABEL, SECOND, TIMESTAMP, USER_ID, VALUE, Decision

LIVE, CANDIDATE = "live", "candidate"
ARMS: Final = (LIVE, CANDIDATE)
OUTCOME: Final = DAY
BEFORE: Final = 14 * DAY
"""Period before the first exposure for the CUPED covariate."""
WITHIN: Final = {"click": 3_600 * SECOND}
WITHIN_OTHERWISE: Final = 7 * DAY
REQUEST_ID: Final = "request_id"


def user_outcomes(decisions: Sequence[Decision], events: pl.DataFrame, since: int, now: int) -> pl.DataFrame:
    """Compute one row of outcomes per user, in order of entry, with the values before.

    Args:
        decisions: Responses, including the 14 days before ``since``; requests without a user id are ignored.
        events: Labelled rows of the log.
        since: Start of the experiment.
        now: Users whose 24 hours are not over by then are marked ``waiting``.

    Returns:
        user_id, arm, closes, waiting, the columns of `_sums`, and the same columns with prefix ``before_``.
    """
    requests = pl.DataFrame(
        [
            (one.request_id, one.user_id, one.served_at, one.assigned, one.variant != one.assigned, one.latency_us, one.items)
            for one in decisions
        ],
        schema={
            REQUEST_ID: pl.String, USER_ID: pl.String, "served_at": pl.Int64, "arm": pl.String, "unanswered": pl.Boolean,
            "latency_us": pl.Int64, "items": pl.List(pl.String),
        },
        orient="row",
    )  # fmt: skip
    credited = attribute(requests, events)
    inside = requests.filter((pl.col("served_at") >= since) & pl.col("arm").is_in(ARMS) & (pl.col(USER_ID) != ""))
    users = (
        inside.sort("served_at", REQUEST_ID)
        .group_by(USER_ID, maintain_order=True)
        .agg(
            # Until the server has reloaded (at most a second), it assigns every user to live.
            pl.when((pl.col("arm") == CANDIDATE).any()).then(pl.lit(CANDIDATE)).otherwise(pl.lit(LIVE)).alias("arm"),
            pl.col("served_at").first().alias("start"),
        )
        .with_columns((pl.col("start") + OUTCOME).alias("closes"))
        .with_columns((pl.col("closes") > now).alias("waiting"))
        .sort("closes", USER_ID)
    )
    own = users.select(USER_ID, pl.col("start"), pl.col("closes").alias("stop"))
    past = users.select(USER_ID, (pl.col("start") - BEFORE).alias("start"), pl.col("start").alias("stop"))
    earlier = _sums(past, requests, credited, events)
    earlier = earlier.rename({name: f"before_{name}" for name in earlier.columns if name != USER_ID})
    return users.join(_sums(own, requests, credited, events), on=USER_ID, how="left", maintain_order="left").join(
        earlier, on=USER_ID, how="left", maintain_order="left"
    )


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
        USER_ID, ITEM_ID, TIMESTAMP, EVENT_TYPE, VALUE, LABEL, pl.col(REQUEST_ID).alias("sent"),
        pl.col(EVENT_TYPE).replace_strict(WITHIN, default=WITHIN_OTHERWISE, return_dtype=pl.Int64).alias("within"),
    )  # fmt: skip
    # A request_id is used only if it belongs to this user.
    known = requests.select(USER_ID, pl.col(REQUEST_ID).alias("sent"))
    told = rows.join(known, on=[USER_ID, "sent"], how="semi").join(
        exposures.with_columns(pl.col(REQUEST_ID).alias("sent")), on=[USER_ID, ITEM_ID, "sent"], how="inner"
    )
    guessed = (
        rows.join(known, on=[USER_ID, "sent"], how="anti")
        .sort(TIMESTAMP)
        .join_asof(
            exposures.sort("served_at"), left_on=TIMESTAMP, right_on="served_at", by=[USER_ID, ITEM_ID], strategy="backward",
            check_sortedness=False,
        )
        .drop_nulls("served_at")
    )  # fmt: skip
    found = pl.concat([told, guessed], how="diagonal")
    return found.filter(pl.col(TIMESTAMP) - pl.col("served_at") <= pl.col("within"))


def _sums(windows: pl.DataFrame, requests: pl.DataFrame, credited: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """Sum each user's requests and events between ``start`` and ``stop``; 0 if none."""

    def within(frame: pl.DataFrame, *stamps: str) -> GroupBy:
        joined = frame.join(windows, on=USER_ID, how="inner")
        for stamp in stamps:
            joined = joined.filter((pl.col(stamp) >= pl.col("start")) & (pl.col(stamp) < pl.col("stop")))
        return joined.group_by(USER_ID)

    positive, click = pl.col(LABEL) > 0, pl.col(EVENT_TYPE) == "click"
    asked = within(requests, "served_at").agg(
        pl.len().alias("requests"), pl.col("latency_us").sum(), pl.col("unanswered").sum()
    )
    done = within(credited, "served_at", TIMESTAMP).agg(
        pl.col(REQUEST_ID).filter(positive).n_unique().alias("hits"),
        click.sum().alias("clicks"),
        positive.sum().alias("positives"),
        pl.col(VALUE).filter(positive).sum().alias("value"),
    )
    whole = within(events.select(USER_ID, TIMESTAMP, LABEL), TIMESTAMP).agg(
        positive.sum().alias("all_positives"), (pl.col(LABEL) < 0).sum().alias("dislikes")
    )
    out = windows.select(USER_ID)
    for part in (asked, done, whole):
        out = out.join(part, on=USER_ID, how="left", maintain_order="left")
    return out.fill_null(0)
