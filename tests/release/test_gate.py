"""The gate: decisions by hand, gates on both sides of their thresholds, power and false alarms."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from recloop.config import Gates
from recloop.release import gate, gate_result
from recloop.release.gate import GateInputs, PairedScores
from recloop.release.gate_result import GateResult


def pairs(live: list[float] | np.ndarray, candidate: list[float] | np.ndarray) -> PairedScores:
    live, candidate = np.asarray(live, dtype=float), np.asarray(candidate, dtype=float)
    return PairedScores(np.array([f"u{n}" for n in range(len(live))]), candidate, live)


def shifted(ratio: float, noise: float, users: int, seed: int = 0) -> PairedScores:
    """Pairs of live values around 0.2 and ``ratio`` times live plus noise."""
    random = np.random.default_rng(seed)
    live = random.uniform(0.1, 0.3, users)
    return pairs(live, live * ratio + random.normal(0, noise, users))


def test_relative_difference_is_clustered_by_user() -> None:
    # a: (0.2 + 0.4) / 2 = 0.3 against 0.2; b: 0.1 against 0.2; the means are 0.2 and 0.2, so d = 0.
    found = gate.relative_difference(
        PairedScores(np.array(["a", "a", "b"]), np.array([0.2, 0.4, 0.1]), np.array([0.2] * 3))
    )
    assert found.relative.value == pytest.approx(0.0, abs=1e-12)
    # The bootstrap over two users has the means 0.3, 0.2 and 0.1: d of +50 %, 0 and -50 %.
    assert (found.relative.low, found.relative.high) == pytest.approx((-0.5, 0.5), abs=1e-6)
    constant = gate.relative_difference(pairs([0.2] * 9, [0.19] * 9))
    assert (constant.relative.low, constant.relative.value, constant.relative.high) == pytest.approx(
        [-0.05] * 3, abs=1e-6
    )


def test_non_inferiority_reports_both_values_and_their_difference() -> None:
    # a: (0.2 + 0.4) / 2 = 0.3 against 0.2; b: 0.1 against 0.1; c has no live value. Ten such groups of users.
    users = np.array([f"{name}{n}" for n in range(10) for name in "aabc"])
    ours, lives = [0.2, 0.4, 0.1, 0.9] * 10, [0.2, 0.2, 0.1, math.nan] * 10
    found = gate.non_inferiority(PairedScores(users, np.array(ours), np.array(lives)), (), Gates())
    assert (found.candidate, found.live, found.value) == pytest.approx((0.2, 0.15, 1 / 3))
    assert "(NDCG@10 0.2000, live 0.1500)" in found.line()
    assert gate.at_most("verification", 0, 0).candidate is None


def test_non_inferiority_of_equal_scores_passes() -> None:
    passed = gate.non_inferiority(shifted(1.0, 0.001, 400), (), Gates())
    assert passed.ok
    assert not passed.weak
    assert passed.low is not None
    assert passed.low > -0.03


def test_non_inferiority_of_a_clear_loss_refuses() -> None:
    refused = gate.non_inferiority(shifted(0.9, 0.001, 400), (), Gates())
    assert not refused.ok
    assert refused.high is not None
    assert refused.high < 0


def test_non_inferiority_of_a_sure_loss_inside_the_margin_passes() -> None:
    passed = gate.non_inferiority(shifted(0.985, 0.0005, 400), (), Gates())
    assert passed.ok
    assert not passed.weak


def test_non_inferiority_with_a_wide_interval_is_weak() -> None:
    weak = gate.non_inferiority(shifted(1.0, 0.04, 60, seed=3), (), Gates())
    assert weak.ok
    assert weak.weak
    assert weak.low is not None
    assert weak.low < -0.03
    assert weak.detectable is not None
    assert 0.03 < weak.detectable <= gate.WIDTH_FACTOR * 0.03


def test_non_inferiority_with_a_wide_interval_is_inconclusive_and_waits() -> None:
    """An interval of -0.35 % [-17.5, +17.4] cannot detect a loss of 25 %."""
    wide = gate.non_inferiority(shifted(1.0, 0.1, 60), (), Gates())
    assert wide.detectable is not None
    assert wide.detectable > gate.WIDTH_FACTOR * 0.03
    assert (wide.ok, wide.waits, wide.weak) == (False, True, False)
    assert "inconclusive" in wide.note
    assert gate_result.verdict([wide]) == "waiting"
    assert wide.line().startswith("wait new_rows: ")
    assert GateResult.from_json(json.loads(json.dumps(wide.to_json()))).waits


def test_non_inferiority_with_a_certain_loss_inside_the_margin_passes() -> None:
    """The margin allows a loss of -2.3 % [-5.0, -0.4]."""
    found = gate.non_inferiority(shifted(0.977, 0.02, 100, seed=1), (), Gates())
    assert found.high is not None
    assert found.high < 0
    assert found.ok


def test_non_inferiority_below_the_margin_waits_until_the_loss_is_certain() -> None:
    unsure = gate.non_inferiority(shifted(0.96, 0.045, 80, seed=2), (), Gates())
    assert unsure.value is not None
    assert unsure.value < -0.03
    assert unsure.waits
    certain = gate.non_inferiority(shifted(0.9, 0.045, 160, seed=2), (), Gates())
    assert (certain.ok, certain.waits) == (False, False)
    assert "certainly worse" in certain.note
    assert certain.reason.startswith("new_rows=-0.1")
    assert certain.reason.endswith("certainly worse, this window")


def test_non_inferiority_with_few_queries_or_users_waits() -> None:
    rows = PairedScores(np.array(["a"] * 60), np.full(60, 0.1), np.full(60, 0.2))
    for few in (pairs([0.2], [0.0]), rows, shifted(0.5, 0.001, gate.MIN_QUERIES - 1)):
        found = gate.non_inferiority(few, (), Gates())
        assert (found.ok, found.waits, found.value) == (False, True, None)
        assert "too few to judge" in found.reason
    assert not gate.non_inferiority(shifted(0.5, 0.001, gate.MIN_QUERIES), (), Gates()).waits


def test_before_a_trial_turns_waiting_gates_into_weak_passes() -> None:
    wide = gate.non_inferiority(shifted(1.0, 0.1, 60), (), Gates())
    few = gate.non_inferiority(pairs([0.2], [0.0]), (), Gates())
    lost = gate.non_inferiority(shifted(0.8, 0.1, 60), (), Gates())
    assert wide.waits
    assert few.waits
    assert lost.waits
    assert [(one.ok, one.weak, one.waits) for one in gate.gates_before_trial([wide, few, lost])] == [
        (True, True, False), (True, True, False), (False, False, False),
    ]  # fmt: skip


def test_enough_with_few_queries_or_no_growth_waits() -> None:
    users = np.array([f"u{n}" for n in range(100)])
    few = gate.check_window_size(users[:10], 0, Gates())
    assert few is not None
    assert few.waits
    assert few.reason == "new_rows: too few to judge: 10 queries of 10 users, 30 of 20 needed"
    assert gate.check_window_size(users, 0, Gates()) is None
    assert gate.check_window_size(users, 80, Gates()) is None
    same = gate.check_window_size(users, 81, Gates())
    assert same is not None
    assert same.reason == "new_rows: inconclusive at 81 queries; judged again from 102 queries on, now 100"


def test_non_inferiority_inconclusive_is_pooled_with_six_earlier_windows() -> None:
    open_ = shifted(1.0, 0.04, 60, seed=3)
    assert gate.non_inferiority(open_, (), Gates()).weak
    earlier = [shifted(1.0, 0.01, 2_000, seed=n) for n in range(1, 9)]
    pooled = gate.non_inferiority(open_, earlier, Gates())
    assert pooled.ok
    assert not pooled.weak
    assert pooled.note.startswith("pooled with 6 earlier windows of the same recipe")
    losing = [shifted(0.8, 0.01, 2_000, seed=n) for n in range(1, 3)]
    assert not gate.non_inferiority(open_, losing, Gates()).ok
    # Only the newest six windows count, and a decided window is not pooled.
    assert gate.non_inferiority(open_, [*losing, *earlier[:6]], Gates()).ok
    assert gate.non_inferiority(shifted(1.0, 0.001, 400), losing, Gates()).ok


def test_non_inferiority_with_a_lost_window_fails_despite_good_earlier_ones() -> None:
    earlier = [shifted(1.0, 0.01, 2_000, seed=n) for n in range(1, 7)]
    for lost in (shifted(0.9, 0.1, 60), shifted(0.95, 0.05, 60)):
        assert not gate.non_inferiority(lost, earlier, Gates()).ok


def test_evaluate_gates_with_few_queries_refuses_nothing() -> None:
    slow = np.full(gate.MIN_QUERIES - 1, 2.0)
    few = GateInputs(
        new_rows=shifted(1.0, 0.001, 200), latency=(slow, slow / 2), cold_coverage=(0.5, 0.9), cold_users=10
    )
    assert [(one.name, one.ok, one.weak) for one in gate.evaluate_gates(few, Gates())][1:] == [
        ("latency", True, True), ("cold_coverage", True, True),
    ]  # fmt: skip
    slow = np.full(gate.MIN_QUERIES, 2.0)
    many = GateInputs(
        new_rows=shifted(1.0, 0.001, 200), latency=(slow, slow / 2), cold_coverage=(0.5, 0.9), cold_users=20
    )
    assert [one.ok for one in gate.evaluate_gates(many, Gates())][1:] == [False, False]


@pytest.mark.parametrize(("seconds", "ok"), [(0.0099, True), (0.0101, False)])
def test_evaluate_gates_latency_is_refused_above_the_absolute_limit_only(seconds: float, ok: bool) -> None:
    own = np.full(gate.MIN_QUERIES, seconds)
    found = gate.evaluate_gates(GateInputs(new_rows=shifted(1.0, 0.001, 200), latency=(own, own / 3)), Gates())[-1]
    assert (found.name, found.ok, found.weak) == ("latency", ok, ok)


def test_non_inferiority_without_pairs_is_a_weak_pass() -> None:
    empty = PairedScores(np.array([], dtype=object), np.array([]), np.array([]))
    for nothing in (empty, pairs([math.nan], [math.nan]), pairs([0.0, 0.0], [0.0, 0.0])):
        found = gate.non_inferiority(nothing, (), Gates())
        assert (found.value, found.ok, found.weak) == (None, True, True)
    assert not gate.non_inferiority(pairs([0.2, 0.3], [0.2, math.nan]), (), Gates()).ok


def test_minimum_detectable_by_hand_is_2_8_standard_errors() -> None:
    """With an interval of +-1.96 se, 80 % power detects a loss of 2.8016 se."""
    found = gate.non_inferiority(shifted(1.0, 0.02, 500), (), Gates(max_ndcg_loss=0.5))
    assert found.low is not None
    assert found.high is not None
    se = (found.high - found.low) / (2 * 1.959964)
    assert found.detectable == pytest.approx(2.801585 * se, rel=1e-4)


@pytest.mark.slow
def test_minimum_detectable_loss_is_detected_in_80_percent_of_draws() -> None:
    """A loss of the detectable size is detected in about 80 of 100 draws."""
    loss = gate.minimum_detectable(gate.relative_difference(shifted(1.0, 0.04, 300, seed=99)))
    seen = [gate.relative_difference(shifted(1 - loss, 0.04, 300, seed=n)).relative.high < 0 for n in range(150)]
    assert 0.70 <= np.mean(seen) <= 0.90


def test_no_slice_collapse_is_decided_by_the_upper_bound() -> None:
    noisy = pairs([0.2] * 4, [0.02, 0.1, 0.1, 0.4])  # d = -22 % with an upper bound above 0: inconclusive
    assert gate.no_slice_collapse("slice:cold", noisy, 0.1).ok
    sure = pairs([0.2] * 50, [0.17] * 50)
    found = gate.no_slice_collapse("slice:cold", sure, 0.1)
    assert (found.ok, found.value, found.threshold) == (False, pytest.approx(-0.15), -0.1)
    assert gate.no_slice_collapse("slice:cold", pairs([0.2] * 50, [0.185] * 50), 0.1).ok
    no_users = gate.no_slice_collapse("slice:cold", PairedScores(np.array([]), np.array([]), np.array([])), 0.1)
    assert no_users.ok
    assert no_users.weak


def test_no_slice_collapse_with_few_users_is_a_weak_pass() -> None:
    """The bootstrap of few users is too narrow: a single user gives [-1, -1]."""
    lost = gate.no_slice_collapse("slice:cold", pairs([0.5], [0.0]), 0.1)
    assert (lost.ok, lost.weak, lost.value, lost.high) == (True, True, -1.0, -1.0)
    assert lost.note == "weak: targets found for 1 users, too few to judge"
    most = pairs([0.2] * (gate.MIN_USERS - 1), [0.1] * (gate.MIN_USERS - 1))
    assert gate.no_slice_collapse("forgetting", most, 0.03).weak
    enough = pairs([0.2] * gate.MIN_USERS, [0.1] * gate.MIN_USERS)
    assert not gate.no_slice_collapse("forgetting", enough, 0.03).ok
    rows = PairedScores(np.array(["a"] * 60), np.full(60, 0.1), np.full(60, 0.2))
    assert gate.no_slice_collapse("forgetting", rows, 0.03).weak, "users are counted, not their queries"
    empty = pairs([0.2] * (gate.MIN_USERS - 1) + [math.nan] * 99, [0.1] * (gate.MIN_USERS + 98))
    assert not gate.no_slice_collapse("forgetting", empty, 0.03).weak, "the candidate has hits for them"
    nothing = pairs([0.2] * 3 + [0.0] * 97, [0.0] * 100)
    found = gate.no_slice_collapse("slice:explore", nothing, 0.1)
    assert (found.value, found.high, found.ok, found.weak) == (-1.0, -1.0, True, True), "hits for three of 100 users"


@pytest.mark.slow
def test_no_slice_collapse_at_min_users_has_the_nominal_error() -> None:
    """Lists of both bundles hit one user in five by chance; the gate seldom refuses."""
    random = np.random.default_rng(0)

    def refused(users: int) -> float:
        found = 0
        for seed in range(100):
            live, ours = (random.random((2, users)) < 0.2) * random.uniform(0.3, 1, (2, users))
            found += not gate.relative_difference(pairs(live, ours), seed).relative.high > -0.1
        return found / 100

    assert refused(round(gate.MIN_USERS / (1 - 0.8**2))) < 0.06  # users with a hit of either bundle


def test_evaluate_gates_applies_every_threshold() -> None:
    fine = shifted(1.0, 0.001, 200)
    evidence = GateInputs(
        new_rows=fine, holdout_users=fine, slices={"cold": fine, "explore": fine}, unexplained=0,
        latency=(np.repeat([1.0, 1.2, 9.0], 10), np.ones(30)), cold_coverage=(0.70, 0.75),
    )  # fmt: skip
    gates = gate.evaluate_gates(evidence, Gates())
    names = ["new_rows", "forgetting", "slice:cold", "slice:explore", "verification", "latency", "cold_coverage"]
    assert [one.name for one in gates] == names
    assert [one.ok for one in gates] == [True] * 7  # a median of 1.2 and a drop of 0.05 are not above
    assert gate_result.verdict(gates) == "registered"
    worse = GateInputs(
        new_rows=fine, unexplained=1, latency=(np.full(30, 1.3), np.ones(30)), cold_coverage=(0.69, 0.75)
    )
    assert [one.ok for one in gate.evaluate_gates(worse, Gates())] == [True, False, False, False]
    assert gate_result.verdict(gate.evaluate_gates(worse, Gates())) == "refused"
    assert [
        one.ok
        for one in gate.evaluate_gates(
            worse, Gates(max_unexplained=1, max_latency_ratio=1.3, max_cold_coverage_loss=0.1)
        )
    ] == [True] * 4


def test_final_gates_check_scores_parity_and_overlap() -> None:
    lists = [[str(n) for n in range(10)]] * gate.MIN_QUERIES
    two_new = [[str(n) for n in range(2, 12)]] * gate.MIN_QUERIES
    assert [one.ok for one in gate.final_gates([0.5, 0.4], 0, lists, two_new)] == [True, True, True]  # overlap 0.8
    three_new = [[str(n) for n in range(3, 13)]] * gate.MIN_QUERIES
    assert [one.ok for one in gate.final_gates([0.5, math.nan], 1, lists, three_new)] == [False, False, False]
    assert gate.final_gates([], 0, lists[:1], three_new[:1])[-1].weak, "one query is a weak pass"


def test_verdict_follows_from_the_failed_gates() -> None:
    yes, no, blocked = (
        GateResult("new_rows", 0.0, -0.03, True),
        GateResult("new_rows", -0.1, -0.03, False),
        GateResult("input", 9.0, 3.0, False),
    )
    assert gate_result.verdict([yes]) == "registered"
    assert gate_result.verdict([yes, no]) == "refused"
    assert gate_result.verdict([no, blocked]) == "blocked"


def test_gate_result_json_and_line_contain_the_interval() -> None:
    found = gate.non_inferiority(shifted(1.0, 0.001, 400), (), Gates())
    tree = found.to_json()
    names = {"name", "value", "threshold", "ok", "detectable", "low", "high", "note", "candidate", "live"}
    assert names == set(tree)
    assert "value" in gate.non_inferiority(pairs([math.nan], [math.nan]), (), Gates()).to_json()
    json.dumps(gate.non_inferiority(pairs([math.nan], [math.nan]), (), Gates()).to_json(), allow_nan=False)
    assert found.line().startswith("pass new_rows: ")
    assert "detectable loss 0." in found.line()
    assert GateResult.from_json(json.loads(json.dumps(tree))).line() == found.line()
    unbounded = {"threshold": None, **gate.at_most("latency", 1.0, math.inf).to_json()}
    assert GateResult.from_json(unbounded).line() == "pass latency: 1, no threshold"


@pytest.mark.parametrize(
    ("earlier", "name"),
    [
        ("new", "new_rows"), ("parity", "verification"), ("cold_coverage_drop", "cold_coverage"),
        ("slice_drop:cold", "slice:cold"), ("latency", "latency"), ("slice:cold", "slice:cold"),
    ],
)  # fmt: skip
def test_gate_result_of_an_earlier_version_is_read_with_its_present_name(earlier: str, name: str) -> None:
    assert GateResult.from_json({"name": earlier, "value": 1.0, "threshold": 0.0, "ok": True}).name == name


@pytest.mark.parametrize(
    ("result", "clear"),
    [
        (gate.non_inferiority(shifted(1.0, 0.0001, 400), (), Gates()), True),
        (gate.non_inferiority(shifted(0.99, 0.05, 400), (), Gates()), False),  # passes, within 3.5 standard errors
        (gate.non_inferiority(shifted(0.9, 0.0001, 400), (), Gates()), False),
        (gate.no_slice_collapse("slice:cold", shifted(1.0, 0.0001, 400), 0.1), True),
        (gate.no_slice_collapse("slice:cold", shifted(0.99, 0.0001, 10), 0.1), False),  # few users, with a loss
        (gate.no_slice_collapse("slice:cold", shifted(1.01, 0.0001, 10), 0.1), True),
        (gate.no_slice_collapse("slice:cold", pairs([], []), 0.1), True),
        (gate.at_most("cold_coverage", 0.01, 0.05), True),
        (gate.at_most("cold_coverage", 0.06, 0.05), False),
    ],
)
def test_is_clear_needs_every_gate_far_above_its_threshold(result: GateResult, clear: bool) -> None:
    assert gate.is_clear([result]) is clear
    assert gate.is_clear([gate.at_most("verification", 0, 0), result]) is clear


@pytest.mark.parametrize(
    ("users", "growth", "names"), [(1, 8, []), (2, 8, ["slice:cold"]), (7, 2, []), (7, 3, ["slice:cold"])]
)
def test_unclear_leaves_out_slices_that_stay_too_small(users: int, growth: float, names: list[str]) -> None:
    result = gate.no_slice_collapse("slice:cold", shifted(0.9, 0.0001, users), 0.1)
    assert result.users == users
    assert gate.unclear([result], growth) == names
    assert gate.unclear([result]) == ["slice:cold"]


def test_is_clear_rarely_misses_a_loss_at_the_margin() -> None:
    """A first look at a loss of 3 % stops in fewer than 1 % of the draws."""
    looks = [gate.non_inferiority(shifted(0.97, 0.02, 200, seed), (), Gates()) for seed in range(60)]
    assert not any(gate.is_clear([look]) for look in looks)
