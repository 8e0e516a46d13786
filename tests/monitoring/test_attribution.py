"""Attribution of events to lists and user outcomes: each rule by hand."""

from __future__ import annotations

import polars as pl

from recloop.monitoring.attribution import REQUEST_COLUMNS, attribute, joined, request_outcomes, user_outcomes
from recloop.records import DAY, EVENT_SCHEMA, LABEL, SECOND, Decision

HOUR = 3_600 * SECOND
T = 100 * DAY
EVENTS = {name: EVENT_SCHEMA[name] for name in
          ("user_id", "item_id", "timestamp", "event_type", "value", "request_id")} | {LABEL: pl.Int8}  # fmt: skip


def answer(
    request_id: str, user: str, at: int, items: list[str], variant: str = "live", assigned: str = ""
) -> Decision:
    return Decision(
        request_id=request_id, role="answer", user_id=user, served_at=at, as_of_seq=1, bundle="b", generation=1, variant=variant,
        assigned=assigned or variant,
        placement="home", n=2, query={}, items=items, scores=[0.0] * len(items), sources=["popular"] * len(items), latency_us=50,
    )  # fmt: skip


def log(*rows: tuple[object, ...]) -> pl.DataFrame:
    """(user, item, timestamp, type, value, request_id, label)."""
    return pl.DataFrame(rows, schema=EVENTS, orient="row")


def requests(*decisions: Decision) -> pl.DataFrame:
    return pl.DataFrame(
        [(one.request_id, one.user_id, one.served_at, one.items) for one in decisions],
        schema=["request_id", "user_id", "served_at", "items"],
        orient="row",
    )


def credit(decisions: list[Decision], *rows: tuple[object, ...]) -> list[tuple[int, str]]:
    """(timestamp - T, request_id) of each credited event."""
    found = attribute(requests(*decisions), log(*rows)).sort("timestamp")
    return [(stamp - T, list_) for stamp, list_ in found.select("timestamp", "request_id").iter_rows()]


def test_attribute_credits_the_last_exposure_of_the_item_to_the_user() -> None:
    shown = [answer("r1", "u", T, ["a", "b"]), answer("r2", "u", T + HOUR, ["a"]), answer("r3", "v", T + HOUR, ["b"])]
    bought = ("purchase", None, None, 1)
    found = credit(
        shown,
        ("u", "a", T + 2 * HOUR, *bought),  # r2 is the later one
        ("u", "b", T + 3 * HOUR, *bought),  # r3 belongs to another user
        ("u", "c", T + 4 * HOUR, *bought),  # not shown
        ("u", "a", T - HOUR, *bought),  # before it was shown
        ("u", "a", T + HOUR + 7 * DAY, *bought),  # at the end of seven days
        ("u", "a", T + HOUR + 7 * DAY + 1, *bought),  # after seven days
    )
    assert found == [(2 * HOUR, "r2"), (3 * HOUR, "r1"), (HOUR + 7 * DAY, "r2")]


def test_attribute_credits_clicks_within_an_hour() -> None:
    shown = [answer("r1", "u", T, ["a"])]
    assert credit(shown, ("u", "a", T + HOUR, "click", None, None, 1)) == [(HOUR, "r1")]
    assert credit(shown, ("u", "a", T + HOUR + 1, "click", None, None, 1)) == []


def test_attribute_with_a_request_id_credits_that_list() -> None:
    shown = [answer("r1", "u", T, ["a", "b"]), answer("r2", "u", T + HOUR, ["a"]), answer("r3", "v", T, ["a"])]
    late = T + 2 * HOUR
    assert credit(shown, ("u", "a", late, "purchase", None, "r1", 1)) == [(2 * HOUR, "r1")]
    assert credit(shown, ("u", "b", late, "purchase", None, "r2", 1)) == []  # that list does not contain it
    assert credit(shown, ("u", "a", late, "purchase", None, "r3", 1)) == [(2 * HOUR, "r2")]  # the list of another user
    assert credit(shown, ("u", "a", late, "purchase", None, "no-such", 1)) == [(2 * HOUR, "r2")]
    assert credit(shown, ("u", "a", T + 8 * DAY, "purchase", None, "r1", 1)) == []


def test_user_outcomes_have_one_row_per_user() -> None:
    since, now = T, T + 3 * DAY
    decisions = [
        answer("p1", "u", T - DAY, ["a"]),  # before the start: the covariate of CUPED
        answer("r1", "u", T + HOUR, ["a", "b"], "candidate"),
        answer("r2", "u", T + 2 * HOUR, ["c"], "candidate"),
        answer("r3", "u", T + 26 * HOUR, ["a"], "candidate"),  # after the 24 hours: not part of the outcome
        answer("s1", "v", T + HOUR, ["a"]),
        answer("w1", "w", T + 2 * DAY + HOUR, ["a"]),  # its 24 hours end after now
        answer("x1", "x", T + HOUR, ["a"], "candidate"),
        answer(
            "x2", "x", T + 2 * HOUR, ["a"], "live", "candidate"
        ),  # the candidate failed, and the user stays in its arm
        answer("i1", "", T + HOUR, ["a"], "live"),  # a list about an item without a user is not a unit
    ]
    rows = [
        ("u", "a", T - DAY + HOUR, "purchase", 3.0, None, 1),
        ("u", "a", T + 3 * HOUR, "purchase", 5.0, None, 1),
        ("u", "b", T + 3 * HOUR, "purchase", 2.0, None, 1),
        ("u", "z", T + 3 * HOUR, "purchase", 9.0, None, 1),  # no list contained it
        ("u", "c", T + 2 * HOUR + 60 * SECOND, "click", None, None, 0),
        ("u", "q", T + 4 * HOUR, "dislike", None, None, -1),
        ("u", "a", T + 25 * HOUR, "purchase", 7.0, None, 1),  # credited to r1, an hour after its outcome closed
    ]
    found = {row["user_id"]: row for row in user_outcomes(decisions, log(*rows), since, now).iter_rows(named=True)}
    assert list(found) == ["u", "v", "x", "w"]  # in the order of the ends of their 24 hours
    own = found["u"]
    assert (own["arm"], own["start"], own["closes"]) == ("candidate", T + HOUR, T + 25 * HOUR)
    expected = {"requests": 2, "hits": 1, "clicks": 1, "positives": 2, "value": 7.0, "all_positives": 3,
                "dislikes": 1, "latency_us": 100}  # fmt: skip
    assert {name: own[name] for name in expected} == expected
    before = {
        "before_requests": 1,
        "before_hits": 1,
        "before_positives": 1,
        "before_value": 3.0,
        "before_all_positives": 1,
    }
    assert {name: own[name] for name in before} == before
    assert (found["v"]["arm"], found["v"]["requests"], found["v"]["hits"], found["v"]["waiting"]) == (
        "live",
        1,
        0,
        False,
    )
    assert found["w"]["waiting"] is True
    assert (found["x"]["arm"], found["x"]["requests"], found["x"]["unanswered"]) == ("candidate", 2, 1)


def test_requests_before_a_login_are_the_users() -> None:
    shown = [answer("r1", "phone", T, ["a"], "candidate"), answer("r2", "u", T + HOUR, ["b"], "candidate")]
    frame = pl.DataFrame(
        [(one.request_id, one.user_id, one.served_at, "candidate", "candidate", 50, one.items) for one in shown],
        schema=REQUEST_COLUMNS, orient="row",
    )  # fmt: skip
    bought = ("purchase", None, "r1", 1)
    events = log(("phone", "a", T + 10, *bought), ("u", "a", T + 10, *bought))  # the row and the one stored again
    outcomes = request_outcomes(*joined(frame, events, {"phone": "u"}), T - DAY, T + 3 * DAY)
    (row,) = outcomes.iter_rows(named=True)
    assert (row["user_id"], row["arm"], row["requests"], row["hits"], row["positives"]) == ("u", "candidate", 2, 1, 1)
    assert joined(frame, events, {})[1] is events
