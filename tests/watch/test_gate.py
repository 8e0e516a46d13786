"""Tests of the gate: each decision by hand, each gate at both sides of its threshold, power and false alarms by draw."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from recloop.config import Gates
from recloop.watch import gate
from recloop.watch.gate import Evidence, Gate, Pairs


def pairs(live: list[float] | np.ndarray, candidate: list[float] | np.ndarray) -> Pairs:
    live, candidate = np.asarray(live, dtype=float), np.asarray(candidate, dtype=float)
    return Pairs(np.array([f"u{n}" for n in range(len(live))]), candidate, live)


def shifted(ratio: float, noise: float, users: int, seed: int = 0) -> Pairs:
    """Users with a live number around .2, the candidate's ``ratio`` times that, plus noise of that size."""
    random = np.random.default_rng(seed)
    live = random.uniform(0.1, 0.3, users)
    return pairs(live, live * ratio + random.normal(0, noise, users))


def test_d_by_hand_is_clustered_by_user() -> None:
    # u1: (.2 + .4) / 2 = .3 against .2; u2: .1 against .2; means .2 against .2, so d = 0 whatever the three rows say.
    found = gate.relative_difference(Pairs(np.array(["a", "a", "b"]), np.array([0.2, 0.4, 0.1]), np.array([0.2] * 3)))
    assert found.relative.value == pytest.approx(0.0, abs=1e-12)
    # The bootstrap over two users has the means .3, .2 and .1: d of +50 %, 0 and -50 %.
    assert (found.relative.low, found.relative.high) == pytest.approx((-0.5, 0.5), abs=1e-6)
    constant = gate.relative_difference(pairs([0.2] * 9, [0.19] * 9))
    assert (constant.relative.low, constant.relative.value, constant.relative.high) == pytest.approx(
        [-0.05] * 3, abs=1e-6
    )


def test_both_sides_stand_beside_their_difference() -> None:
    # u1: (.2 + .4) / 2 = .3 against .2; u2: .1 against .1; u3 has no number of its own: (.3 + .1) / 2 and (.2 + .1) / 2.
    found = gate.no_loss(
        Pairs(np.array(["a", "a", "b", "c"]), np.array([0.2, 0.4, 0.1, 0.9]), np.array([0.2, 0.2, 0.1, math.nan])),
        (),
        0.03,
    )
    assert (found.candidate, found.live, found.value) == pytest.approx((0.2, 0.15, 1 / 3))
    assert "(NDCG@10 0.2000, live 0.1500)" in found.line()
    assert gate.at_most("parity", 0, 0).candidate is None


def test_three_answers() -> None:
    passed = gate.no_loss(shifted(1.0, 0.001, 400), (), 0.03)
    assert passed.ok
    assert not passed.weak
    assert passed.low is not None
    assert passed.low > -0.03
    refused = gate.no_loss(shifted(0.9, 0.001, 400), (), 0.03)
    assert not refused.ok
    assert refused.high is not None
    assert refused.high < 0
    small_but_sure = gate.no_loss(shifted(0.985, 0.0005, 400), (), 0.03)  # inside the margin, though surely below 0
    assert small_but_sure.ok
    assert not small_but_sure.weak
    weak = gate.no_loss(shifted(1.0, 0.1, 60), (), 0.03)
    assert weak.ok
    assert weak.weak
    assert weak.low is not None
    assert weak.low < -0.03
    assert weak.detectable is not None
    assert weak.detectable > 0.03


def test_open_and_below_the_margin_is_refused() -> None:
    unclear = pairs([0.2, 0.2, 0.2, 0.2], [0.1, 0.3, 0.1, 0.25])  # d = -6 %, from -50 % to +50 %
    found = gate.no_loss(unclear, (), 0.03)
    assert found.value == pytest.approx(-0.0625)
    assert found.low is not None
    assert found.high is not None
    assert found.low < -0.03 < 0 < found.high
    assert not found.ok
    assert "cannot tell" in found.note


def test_open_is_pooled_with_at_most_six_earlier_windows() -> None:
    open_ = shifted(1.0, 0.05, 60)
    assert gate.no_loss(open_, (), 0.03).weak
    earlier = [shifted(1.0, 0.01, 2_000, seed=n) for n in range(1, 9)]
    pooled = gate.no_loss(open_, earlier, 0.03)
    assert pooled.ok
    assert not pooled.weak
    assert pooled.note == "pooled with 6 earlier windows"
    losing = [shifted(0.8, 0.01, 2_000, seed=n) for n in range(1, 3)]
    assert not gate.no_loss(open_, losing, 0.03).ok
    # Only what the newest six say counts, and a window that is decided is not pooled at all.
    assert gate.no_loss(open_, [*losing, *earlier[:6]], 0.03).ok
    assert gate.no_loss(shifted(1.0, 0.001, 400), losing, 0.03).ok


def test_nothing_to_compare_and_nan() -> None:
    empty = Pairs(np.array([], dtype=object), np.array([]), np.array([]))
    for nothing in (empty, pairs([math.nan], [math.nan]), pairs([0.0, 0.0], [0.0, 0.0])):
        found = gate.no_loss(nothing, (), 0.03)
        assert (found.value, found.ok, found.weak) == (None, True, True)
    assert not gate.no_loss(pairs([0.2, 0.3], [0.2, math.nan]), (), 0.03).ok


def test_detectable_by_hand() -> None:
    """A normal interval of +-1.96 se: the loss seen 80 % of the time is 2.8016 se."""
    found = gate.no_loss(shifted(1.0, 0.02, 500), (), 0.5)
    assert found.low is not None
    assert found.high is not None
    se = (found.high - found.low) / (2 * 1.959964)
    assert found.detectable == pytest.approx(2.801585 * se, rel=1e-4)


@pytest.mark.slow
def test_detectable_keeps_its_word() -> None:
    """A candidate that loses exactly the detectable share is seen to lose in about 80 of 100 draws."""
    loss = gate.detectable(gate.relative_difference(shifted(1.0, 0.04, 300, seed=99)))
    seen = [gate.relative_difference(shifted(1 - loss, 0.04, 300, seed=n)).relative.high < 0 for n in range(150)]
    assert 0.70 <= np.mean(seen) <= 0.90


def test_slices_and_forgetting_are_decided_by_the_upper_end() -> None:
    noisy = pairs([0.2] * 4, [0.02, 0.1, 0.1, 0.4])  # d = -22 %, upper end above 0: too few to say
    assert gate.no_collapse("slice_drop:cold", noisy, 0.1).ok
    sure = pairs([0.2] * 50, [0.17] * 50)
    found = gate.no_collapse("slice_drop:cold", sure, 0.1)
    assert (found.ok, found.value, found.threshold) == (False, pytest.approx(-0.15), -0.1)
    assert gate.no_collapse("slice_drop:cold", pairs([0.2] * 50, [0.185] * 50), 0.1).ok
    nobody = gate.no_collapse("slice_drop:cold", Pairs(np.array([]), np.array([]), np.array([])), 0.1)
    assert nobody.ok
    assert nobody.weak


def test_a_slice_of_few_users_refuses_nothing() -> None:
    """Its bootstrap is too narrow: a single user gives [-1, -1]."""
    lost = gate.no_collapse("slice_drop:cold", pairs([0.5], [0.0]), 0.1)
    assert (lost.ok, lost.weak, lost.value, lost.high) == (True, True, -1.0, -1.0)
    assert lost.note == "weak: something found for 1 users, too few to tell"
    most = pairs([0.2] * (gate.FEWEST_USERS - 1), [0.1] * (gate.FEWEST_USERS - 1))
    assert gate.no_collapse("forgetting", most, 0.03).weak
    enough = pairs([0.2] * gate.FEWEST_USERS, [0.1] * gate.FEWEST_USERS)
    assert not gate.no_collapse("forgetting", enough, 0.03).ok
    rows = Pairs(np.array(["a"] * 60), np.full(60, 0.1), np.full(60, 0.2))
    assert gate.no_collapse("forgetting", rows, 0.03).weak, "users count, not their queries"
    empty = pairs([0.2] * (gate.FEWEST_USERS - 1) + [math.nan] * 99, [0.1] * (gate.FEWEST_USERS + 98))
    assert not gate.no_collapse("forgetting", empty, 0.03).weak, "the candidate found something for them"
    nothing = pairs([0.2] * 3 + [0.0] * 97, [0.0] * 100)
    found = gate.no_collapse("slice_drop:explore", nothing, 0.1)
    assert (found.value, found.high, found.ok, found.weak) == (-1.0, -1.0, True, True), "three finds of 100 users"


def test_so_many_users_are_enough_for_the_interval_to_keep_its_word() -> None:
    """Lists that hold the target of one user in five, the candidate's by chance as often: how often it is refused."""
    random = np.random.default_rng(0)

    def refused(users: int) -> float:
        found = 0
        for seed in range(100):
            live, ours = (random.random((2, users)) < 0.2) * random.uniform(0.3, 1, (2, users))
            found += not gate.relative_difference(pairs(live, ours), seed).relative.high > -0.1
        return found / 100

    assert refused(round(gate.FEWEST_USERS / (1 - 0.8**2))) < 0.06  # who gets something of either


def test_judge_reads_every_threshold() -> None:
    fine = shifted(1.0, 0.001, 200)
    evidence = Evidence(
        new=fine, old=fine, slices={"cold": fine, "explore": fine}, parity=0,
        latency=(np.array([1.0, 1.2, 9.0]), np.array([1.0, 1.0, 1.0])), cold_coverage=(0.70, 0.75),
    )  # fmt: skip
    gates = gate.judge(evidence, Gates())
    names = ["new", "forgetting", "slice_drop:cold", "slice_drop:explore", "parity", "latency", "cold_coverage_drop"]
    assert [one.name for one in gates] == names
    assert [one.ok for one in gates] == [True] * 7  # a median of 1.2 and a drop of .05 are not above
    assert gate.verdict(gates) == "registered"
    worse = Evidence(
        new=fine, parity=1, latency=(np.array([1.3, 1.3]), np.array([1.0, 1.0])), cold_coverage=(0.69, 0.75)
    )
    assert [one.ok for one in gate.judge(worse, Gates())] == [True, False, False, False]
    assert gate.verdict(gate.judge(worse, Gates())) == "refused"
    assert [one.ok for one in gate.judge(worse, Gates(parity=1, latency=1.3, cold_coverage_drop=0.1))] == [True] * 4


def test_settled() -> None:
    lists = [[str(n) for n in range(10)]] * 3
    two_new = [[str(n) for n in range(2, 12)]] * 3
    assert [one.ok for one in gate.settled([0.5, 0.4], 0, lists, two_new)] == [True, True, True]  # overlap .8
    three_new = [[str(n) for n in range(3, 13)]] * 3
    assert [one.ok for one in gate.settled([0.5, math.nan], 1, lists, three_new)] == [False, False, False]


def test_verdict() -> None:
    yes, no, held = Gate("new", 0.0, -0.03, True), Gate("new", -0.1, -0.03, False), Gate("input", 9.0, 3.0, False)
    assert gate.verdict([yes]) == "registered"
    assert gate.verdict([yes, no]) == "refused"
    assert gate.verdict([no, held]) == "held"


def test_what_is_told() -> None:
    found = gate.no_loss(shifted(1.0, 0.001, 400), (), 0.03)
    tree = found.to_json()
    names = {"name", "value", "threshold", "ok", "detectable", "low", "high", "note", "candidate", "live"}
    assert names == set(tree)
    assert "value" in gate.no_loss(pairs([math.nan], [math.nan]), (), 0.03).to_json()
    json.dumps(gate.no_loss(pairs([math.nan], [math.nan]), (), math.inf).to_json(), allow_nan=False)
    assert found.line().startswith("pass new: ")
    assert "could have seen a loss of 0." in found.line()
    assert Gate.of(json.loads(json.dumps(tree))).line() == found.line()
    unbounded = {"threshold": None, **gate.at_most("latency", 1.0, math.inf).to_json()}
    assert Gate.of(unbounded).line() == "pass latency: 1, no threshold"
