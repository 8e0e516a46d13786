"""State by single events equals state from columns for any events, order and seq."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recloop.config import Burst, Clean, Events
from recloop.features import state as state_module
from recloop.features import state_history as history_module
from recloop.features.labels import EventLabeler, burst_mask
from recloop.features.moments import moment_stamps
from recloop.features.state import StateBatch, StoredState
from recloop.features.state_advance import advance
from recloop.features.state_delta import StateDelta, rows_of, state_of_user, stored_rows, with_delta
from recloop.features.state_history import StateHistory, open_groups
from recloop.features.state_store import StoredStates
from recloop.records import EVENT_SCHEMA, RULE, SECOND, SEQ, USER_ID

USERS = ("u", "ü", "unknown")
ITEMS = (" 1", "01", "1e5", "null", "é", "\U0001f375")
GROUPS = (None, None, "basket", "invoice")
TYPES = (
    *("purchase", "purchase", "click", "like", "unlike", "view"),
    *("dislike", "dislike", "undislike", "skip", "impression", "unheard_of"),
)
SIGNAL = EventLabeler(
    Events(
        neutral=("impression",),
        positive=("click", "like"),
        negative=("dislike",),
        weights={"skip": -0.5, "purchase": 5.0},
        history=("view",),
        undo={"quantity < 0": "*", "undislike": "dislike", "unlike": "like"},
    ),
    Clean(burst=Burst(events=3, seconds=1.0), future="off"),
)

event = st.fixed_dictionaries(
    {
        # Few users and items, so that rows interact: late dislikes, newer ones, likes between them.
        "user_id": st.sampled_from(("u", "u", "ü")),
        "item_id": st.sampled_from((*ITEMS[:2] * 3, *ITEMS)),
        # Quarters of a second within five: many equal stamps, many within a burst's second, many late.
        # A day and more apart: a group id is reused.
        "timestamp": (
            st.integers(0, 20) | st.sampled_from((4 * 86_400, 4 * 86_400 + 1, 8 * 86_400 + 2, 160 * 86_400))
        ).map(lambda quarter: quarter * SECOND // 4),
        "event_type": st.sampled_from(TYPES),
        "group_id": st.sampled_from(GROUPS),
        "quantity": st.sampled_from((None, None, 1.0, 2.0, 0.0, -1.0, -1.0, -2.0)),
        "doubled": st.booleans(),
        "gap": st.integers(1, 3),  # items, users and retractions take a seq too
    }
)
version = st.tuples(
    st.sampled_from(USERS), st.integers(0, 40), st.dictionaries(st.sampled_from("ab"), st.integers(0, 3))
)


def log_of(events: list[dict[str, Any]]) -> pl.DataFrame:
    """Log rows of the events in order of arrival, some repeated."""
    rows, seq = [], 0
    for drawn in events:
        fields = {name: drawn[name] for name in drawn if name not in ("doubled", "gap")}
        for _ in range(2 if drawn["doubled"] else 1):
            seq += drawn["gap"]
            rows.append({**fields, SEQ: seq, "received_at": seq})
    return pl.DataFrame(rows, schema=EVENT_SCHEMA)


def users_of(versions: list[tuple[str, int, dict[str, int]]]) -> pl.DataFrame:
    rows = [(user, seq, json.dumps(attributes)) for user, seq, attributes in versions]
    return pl.DataFrame(rows, schema={USER_ID: pl.String, SEQ: pl.Int64, "attributes": pl.String}, orient="row").unique(
        [USER_ID, SEQ], keep="first", maintain_order=True
    )


def stored(valid: pl.DataFrame, users: pl.DataFrame, seq: int) -> StoredStates:
    """States at a seq from columns, as files hold them."""
    rows = moment_stamps(valid.filter(pl.col(SEQ) <= seq))
    history = StateHistory(rows, users.filter(pl.col(SEQ) <= seq))
    return StoredStates(history, open_groups(rows, history), seq, "key")


def later(states: StoredStates, valid: pl.DataFrame, users: pl.DataFrame, until: int) -> StateDelta:
    """Rows and attributes after stored states, added one by one."""
    delta = StateDelta(states.history, states.groups)
    delta.add_rows(rows_of(valid.filter((pl.col(SEQ) > states.seq) & (pl.col(SEQ) <= until))))
    for user, seq, text in users.filter((pl.col(SEQ) > states.seq) & (pl.col(SEQ) <= until)).sort(SEQ).iter_rows():
        delta.describe(user, seq, json.loads(text))
    return delta


def newest(states: StoredStates, delta: StateDelta, user: str) -> StateBatch:
    """Newest state of a user as in serving: stored rows and later ones."""
    rows, added = stored_rows(states.history, user), delta.get(user)
    if added is not None:
        rows = with_delta(rows, added, delta.codes, delta.kinds)
    return state_of_user(user, rows, delta.codes, delta.kinds)


def state_by_events(valid: pl.DataFrame, users: pl.DataFrame, user: str, seq: int, since: int = 0) -> StateBatch:
    """The state as in serving, by single events after the seq ``since``."""
    states = stored(valid, users, min(since, seq))
    return newest(states, later(states, valid, users, seq), user)


def named_state(states: StateBatch, b: int) -> tuple[Any, ...]:
    """State b with names instead of codes."""
    moments = []
    for m in range(states.moment_offsets[b], states.moment_offsets[b + 1]):
        codes = states.items[states.item_offsets[m] : states.item_offsets[m + 1]]
        targets = states.targets[states.item_offsets[m] : states.item_offsets[m + 1]]
        moments.append((int(states.stamps[m]), states.names[codes].tolist(), targets.tolist()))
    negatives = states.names[states.negatives[states.negative_offsets[b] : states.negative_offsets[b + 1]]].tolist()
    return states.users[b], moments, negatives, int(states.positives[b]), states.attributes[b]


WEIGHTS = {"purchase": 5, "click": 1, "like": 1}


def by_definition(valid: pl.DataFrame, user: str, seq: int) -> tuple[list[Any], list[str], int]:
    """Moments, dislikes and inputs of a state by the definition, without optimization."""
    rows = [r for r in valid.sort(SEQ).iter_rows(named=True) if r[USER_ID] == user and r[SEQ] <= seq]
    first: dict[str, int] = {}
    last = 0
    units: dict[tuple[str, int, str], float] = {}  # by (item, stamp, type): amounts that are not undone
    undos: dict[tuple[str, int, str], float] = {}  # by (item, stamp, undone type)
    for row in rows:
        group, kind, quantity = row["group_id"], row["event_type"], row["quantity"]
        row["stamp"] = row["timestamp"]
        if group is not None:
            over = group in first and last - first[group] > 30 * 86_400 * SECOND
            if group not in first or over or abs(row["timestamp"] - first[group]) > 86_400 * SECOND:
                first[group] = row["timestamp"]
            row["stamp"] = first[group]
        last = max(last, row["timestamp"])
        back = "*" if (quantity or 0) < 0 else {"undislike": "dislike", "unlike": "like"}.get(kind)
        counted = back or kind in (*WEIGHTS, "dislike")
        key, amount = (row["item_id"], row["stamp"], back or kind), abs(quantity) if counted and quantity else 1.0
        where = undos if back else units
        if back or kind in (*WEIGHTS, "view", "dislike"):
            where[key] = where.get(key, 0.0) + amount
    done = dict(units)
    for item, stamp, back in sorted(undos, key=lambda key: key[1:]):
        undo(done, item, stamp, back, undos[item, stamp, back])
    moments: dict[int, dict[str, bool]] = {}
    newest: dict[str, int] = {}
    for (item, stamp, kind), amount in done.items():
        if amount and kind == "dislike":
            newest[item] = max(stamp, newest.get(item, stamp))
        elif amount:
            held = moments.setdefault(stamp, {})
            held[item] = held.get(item, False) or kind in WEIGHTS
    disliked = [i for i, stamp in newest.items() if not any(held.get(i) and at > stamp for at, held in moments.items())]
    ordered = []
    for stamp in sorted(moments):
        items = sorted(moments[stamp], key=str.encode)
        ordered.append((stamp, items, [moments[stamp][item] for item in items]))
    inputs = sum(r["event_type"] in (*WEIGHTS, "view") and (r["quantity"] or 0) >= 0 for r in rows)
    gone = sum(not amount and kind != "dislike" for (_, _, kind), amount in done.items())
    return ordered, sorted(disliked, key=str.encode), inputs - gone


def undo(done: dict[tuple[str, int, str], float], item: str, until: int, back: str, amount: float) -> None:
    """Undo in halves: the newest of the type; "*" the newest of the heaviest."""

    def open_(kinds: Any) -> list[tuple[str, int, str]]:
        return [k for k, left in done.items() if left and k[0] == item and k[1] <= until and k[2] in kinds]

    if back == "dislike":
        done.update(dict.fromkeys(open_(("dislike",)), 0.0))
        return
    kinds = (back,)
    if back == "*":
        heaviest = max((WEIGHTS[kind] for _, _, kind in open_(WEIGHTS)), default=0)
        kinds = tuple(kind for kind, weight in WEIGHTS.items() if weight == heaviest)
    while amount > 0 and open_(kinds):
        stamp = max(key[1] for key in open_(kinds))
        key = max((key for key in open_(kinds) if key[1] == stamp), key=lambda key: key[2] == "like")
        done[key] -= 0.5
        amount -= 0.5
        if not done[key]:
            weight = WEIGHTS[key[2]]
            heavy = [k[1] for k in open_(WEIGHTS) if WEIGHTS[k[2]] >= weight]
            lighter = [k for k in open_(WEIGHTS) if WEIGHTS[k[2]] < weight and k[1] > max(heavy, default=-1)]
            done.update(dict.fromkeys(lighter, 0.0))


@given(
    events=st.lists(event, max_size=6) | st.lists(event, min_size=12, max_size=30),
    versions=st.lists(version, max_size=6),
    data=st.data(),
)
def test_state_added_event_by_event_equals_state_from_columns(events: Any, versions: Any, data: st.DataObject) -> None:
    log = log_of(data.draw(st.permutations(events)))
    users = users_of(versions)
    valid = SIGNAL.label(log.filter(SIGNAL.causal_rule(log).is_null()))
    timeline = StateHistory(moment_stamps(valid), users)
    last = max(log[SEQ].max() or 0, 40)
    seqs = [0, *data.draw(st.lists(st.integers(0, last), max_size=4)), last + 1]
    queries = [(user, seq) for user in USERS for seq in seqs]
    columns = timeline.states([user for user, _ in queries], [seq for _, seq in queries])
    since = data.draw(st.integers(0, last))
    files = {seq: stored(valid, users, min(seq, since)) for seq in seqs}
    deltas = {seq: later(files[seq], valid, users, seq) for seq in seqs}
    for b, (user, seq) in enumerate(queries):
        single = newest(files[seq], deltas[seq], user)
        assert named_state(single, 0) == named_state(columns, b)
        assert single.digest(0) == columns.digest(b)
        assert named_state(single, 0)[1:4] == by_definition(valid, user, seq)
        alone = timeline.states([user], [seq])  # batch == single
        assert alone.digest(0) == columns.digest(b)


@given(events=st.lists(event, max_size=25), split=st.integers(0, 25))
def test_causal_rule_on_arrival_equals_that_of_the_log(events: Any, split: int) -> None:
    """Rows one by one, in two halves or at once give equal rules."""
    log = log_of(events)
    whole = SIGNAL.causal_rule(log).to_list()
    arrived = [SIGNAL.causal_rule(log[n : n + 1], log[:n])[0] for n in range(log.height)]
    assert arrived == whole
    halves = [*SIGNAL.causal_rule(log[:split]), *SIGNAL.causal_rule(log[split:], log[:split])]
    assert halves == whole


@given(events=st.lists(event, max_size=25), limit=st.integers(2, 5))
def test_burst_mask_equals_its_definition(events: Any, limit: int) -> None:
    log = log_of(events)
    rows = log.rows(named=True)
    expected = []
    for n, row in enumerate(rows):
        units = {
            ("group", other["group_id"]) if other["group_id"] else ("stamp", other["timestamp"])
            for other in rows[: n + 1]
            if other[USER_ID] == row[USER_ID]
            and other["event_type"] != "purchase"
            and row["timestamp"] - SECOND < other["timestamp"] <= row["timestamp"]
        }
        expected.append(row["event_type"] != "purchase" and len(units) >= limit)
    strong = log.with_columns(strong=pl.col("event_type") == "purchase")
    assert burst_mask(strong, Burst(events=limit, seconds=1.0)).tolist() == expected


def test_burst_quarantines_clicks_and_keeps_a_basket() -> None:
    click = {"user_id": "u", "event_type": "click", "group_id": None, "quantity": None, "doubled": False, "gap": 1}
    clicks = [{**click, "item_id": f"i{n}", "timestamp": n * SECOND // 20} for n in range(12)]
    basket = [{**click, "item_id": f"b{n}", "timestamp": 60 * SECOND, "group_id": "basket"} for n in range(40)]
    signal = EventLabeler(Events(), Clean())
    log = log_of(clicks + basket)
    rules = log.with_columns(signal.causal_rule(log).alias(RULE)).get_column(RULE).to_list()
    assert rules == [None] * 9 + ["burst"] * 3 + [None] * 40


def acts(rows: list[tuple[str, int, str | None, int]]) -> StateDelta:
    """Acts of user u added to an empty history: (item, timestamp, group, use)."""
    delta = StateDelta(StateHistory(moment_stamps(SIGNAL.label(log_of([])))))
    for seq, (item, stamp, group, use) in enumerate(rows, 1):
        delta.add("u", item, stamp, group, use, seq=seq)
    return delta


def state_of(delta: StateDelta) -> StateBatch:
    return newest(StoredStates(delta.history, None, 0, ""), delta, "u")  # type: ignore[arg-type]


def test_state_with_a_reused_group_id_starts_a_new_moment() -> None:
    """A group id reused after two years starts a new moment with its own stamp."""
    day = 86_400 * SECOND
    rows = [("old", 0), ("with it", day), ("today", 730 * day), ("too", 730 * day + SECOND), ("late", 730 * day - day)]
    delta = acts([(item, stamp, "17", 1) for item, stamp in rows])
    moments = [(stamp, items) for stamp, items, _ in state_of(delta).moments()]
    assert moments == [(0, ["old", "with it"]), (730 * day, ["late", "today", "too"])]
    user = delta.get("u")
    assert user is not None
    assert list(user.groups.values()) == [730 * day]
    frame = pl.DataFrame(
        [{"user_id": "u", "item_id": item, "timestamp": stamp, "group_id": "17", SEQ: n} for n, (item, stamp) in enumerate(rows)],
        schema=EVENT_SCHEMA,
    )  # fmt: skip
    assert moment_stamps(frame)["stamp"].to_list() == [0, 0, 730 * day, 730 * day, 730 * day]


def test_delta_removes_ended_groups() -> None:
    """A delta with a basket per day keeps only groups that a late row may still join."""
    day = 86_400 * SECOND
    delta = acts([])
    for n in range(1_000):
        delta.add("u", "i", n * day, f"g{n}", 1)
        user = delta.get("u")
        assert user is not None
        assert len(user.groups) <= 64
    assert set(user.groups.values()) >= {n * day for n in range(970, 1_000)}
    delta.add("u", "late", 985 * day + SECOND, "g985", 1)
    assert (985 * day, ["i", "late"], [True, True]) in state_of(delta).moments()
    delta.add("u", "too late", 900 * day + SECOND, "g900", 1)
    assert (900 * day + SECOND, ["too late"], [True]) in state_of(delta).moments()


@given(events=st.lists(event, max_size=12), now=st.integers(-1, 10 * SECOND))
def test_states_until_now_exclude_later_moments(events: Any, now: int) -> None:
    """A moment dated later than now is excluded in lists and in evaluation."""
    valid = SIGNAL.label(log_of(events))
    users = sorted(set(valid[USER_ID]))
    at = np.full(len(users), now)
    columns = StateHistory(moment_stamps(valid)).states(users, [10**6] * len(users)).until(at)
    for b, user in enumerate(users):
        state = state_by_events(valid, users_of([]), user, 10**6)
        seen = state.until(np.array([now]))
        assert seen.moments() == [moment for moment in state.moments() if moment[0] <= now]
        assert seen.digest(0) == columns.digest(b)


def test_state_with_a_late_row_joins_its_basket() -> None:
    """A dislike counts unless its basket's moment is older than the positive one."""
    rows = [("other", 1, "basket", 0), ("item", 5, None, 1), ("item", 9, "basket", -1)]  # the last has stamp 1
    assert state_of(acts(rows)).disliked() == []
    rows.append(("item", 5, None, -1))
    assert state_of(acts(rows)).disliked() == ["item"]
    rows.append(("item", 6, None, 1))
    assert state_of(acts(rows)).disliked() == []


def test_state_with_a_late_older_dislike_keeps_the_newer_one() -> None:
    rows = [("item", 9, None, -1), ("item", 5, None, 1), ("item", 1, None, -1)]
    assert state_of(acts(rows)).disliked() == ["item"]


@settings(max_examples=25)
@given(
    events=st.lists(event, max_size=25),
    versions=st.lists(version, max_size=6),
    cuts=st.tuples(st.integers(0, 60), st.integers(0, 60)),
    affected=st.booleans(),
)
def test_advanced_states_equal_states_from_columns(
    events: Any, versions: Any, cuts: tuple[int, int], affected: bool
) -> None:
    """Stored states, merged with later rows twice, equal those of the whole log, and so does a later delta."""
    log, users = log_of(events), users_of(versions)
    valid = SIGNAL.label(log)
    first, second = sorted(cuts)
    states = stored(valid, users, first)
    delta = later(states, valid, users, second)
    again = moment_stamps(valid.filter((pl.col(USER_ID) == "u") & (pl.col(SEQ) <= second)))
    states = advance(states, delta, second, ["u"], again) if affected else advance(states, delta, second)
    last = 100
    columns = StateHistory(moment_stamps(valid), users).states(USERS, [last] * len(USERS))
    at_second = StateHistory(moment_stamps(valid), users).states(USERS, [second] * len(USERS))
    advanced = states.history.states(USERS, [second] * len(USERS))
    delta = later(states, valid, users, last)
    for b, user in enumerate(USERS):
        assert named_state(advanced, b) == named_state(at_second, b)
        assert named_state(newest(states, delta, user), 0) == named_state(columns, b)


@settings(max_examples=25)
@given(events=st.lists(event, max_size=25))
def test_stored_golden_states_equal_the_states(events: Any) -> None:
    states = StateHistory(moment_stamps(SIGNAL.label(log_of(events)))).states(USERS, [10**6] * len(USERS))
    for b, user in enumerate(USERS):
        assert named_state(StoredState.from_batch(states, b).to_batch(user), 0) == named_state(states, b)


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    cap=st.integers(1, 12),
    since=st.integers(0, 60),
    order=st.randoms(use_true_random=False),
)
def test_state_keeps_the_newest_moments_on_every_path(sizes: list[int], cap: int, since: int, order: Any) -> None:
    """The cap on rows gives the same state from columns, from files and by single events, in any order of arrival."""
    rows = [(f"i{n}", moment) for moment, size in enumerate(sizes) for n in range(size)]
    order.shuffle(rows)
    events = [
        {"user_id": "u", "item_id": item, "timestamp": moment, "event_type": "click", "group_id": None, "quantity": None,
         "doubled": False, "gap": 1} for item, moment in rows
    ]  # fmt: skip
    valid, users = SIGNAL.label(log_of(events)), users_of([])
    with pytest.MonkeyPatch.context() as patch:
        for module in (state_module, history_module):
            patch.setattr(module, "MAX_ROWS", cap)
        columns = StateHistory(moment_stamps(valid)).states(["u"], [10**6])
        single = state_by_events(valid, users, "u", 10**6, since)
    assert named_state(single, 0) == named_state(columns, 0)
    expected, later_rows = [], 0
    for moment, size in reversed(list(enumerate(sizes))):
        if later_rows < cap:
            expected.append((moment, sorted(f"i{n}" for n in range(size))[:cap]))
        later_rows += size
    assert [(stamp, items) for stamp, items, _ in single.moments()] == expected[::-1]
    assert single.positives[0] == len(rows)
