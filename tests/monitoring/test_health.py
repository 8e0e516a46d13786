"""Health metrics of decisions: by hand, windows, groups, excluded replicas, equal sample sizes."""

from __future__ import annotations

import json
from math import log, log2
from typing import Any

import numpy as np
import polars as pl
import pytest

from recloop.bundle import Bundle, ItemTable
from recloop.config import Config
from recloop.features.spec import FeatureSpec
from recloop.features.vocabulary import FieldCodes, Vocabulary
from recloop.manifest import Manifest, ModelSpec, TrainingRows
from recloop.monitoring import health
from recloop.policy import Policy
from recloop.records import DAY, ITEM_ID, LABEL, SECOND, STAMP, Decision

CUT = 1_000 * DAY
NOW = CUT + DAY


def bundle(ids: list[str], tail: list[bool]) -> Bundle:
    """A bundle with only an item table and a cut."""
    table = ItemTable(
        Vocabulary(ids), np.ones(len(ids), np.int64), np.array(tail), np.arange(len(ids)), [{}] * len(ids)
    )
    return Bundle(
        Manifest(ModelSpec("counts", {}), TrainingRows(CUT)),
        FeatureSpec.from_config(Config()),
        FieldCodes({}),
        Policy({}, True, ()),
        table,
        {},
    )


def decision(
    number: int, user: str, items: list[str], sources: list[str], positives: int = 9, **more: object
) -> Decision:
    values: dict[str, object] = {
        "request_id": f"r{number}", "role": "answer", "user_id": user, "served_at": NOW, "as_of_seq": 1, "bundle": "b",
        "generation": 1, "variant": "live", "placement": "home", "n": len(items), "query": {}, "items": items,
        "scores": [0.0] * len(items), "sources": sources, "positives": positives,
    }  # fmt: skip
    return Decision(**{**values, **more})  # type: ignore[arg-type]


@pytest.fixture
def facts() -> health.HealthReference:
    """N = 4 items (two tail, one posted, one hidden); 16 reference events."""
    old = CUT - 91 * DAY
    events = pl.DataFrame(
        {
            ITEM_ID: ["a"] * 11 + ["b", "c", "c", "c", "c", "d", "a", "a"],
            STAMP: [CUT - DAY] * 16 + [CUT - DAY, old, CUT],
            LABEL: pl.Series([1] * 16 + [-1, 1, 1], dtype=pl.Int8),
        }
    )
    made = bundle(["a", "b", "c", "d"], [False, False, True, True])
    return health.reference(made, posted=["new", "a"], hidden=["d"], events=events)


def test_health_reference_counts_items_and_events_before_the_cut(facts: health.HealthReference) -> None:
    assert facts.n_items == 4
    assert facts.reference is not None
    assert facts.reference.tolist() == [0, 11, 1, 4, 0]  # dislikes, old rows and rows at the cut are excluded


@pytest.fixture
def four_decisions(facts: health.HealthReference) -> dict[str, Any]:
    """Health of four answers with eight slots to three users."""
    decisions = [
        decision(1, "u1", ["a", "c"], ["model", "popular"], positives=0),
        decision(2, "u2", ["a", "new"], ["popular", "latest"], positives=2),
        decision(3, "u3", ["a", "b"], ["history", "history"], positives=9),
        decision(4, "u3", ["a", "b"], ["history", "segment"], positives=4),
    ]
    return health.health(decisions, facts)["whole"]


def test_health_counts_by_hand(four_decisions: dict[str, Any]) -> None:
    counts = {name: four_decisions[name] for name in ("requests", "slots", "users", "cold_users")}
    assert counts == {"requests": 4, "slots": 8, "users": 3, "cold_users": 3}


def test_health_concentration_by_hand(four_decisions: dict[str, Any]) -> None:
    bits = -(4 / 8 * log2(4 / 8) + 2 / 8 * log2(2 / 8) + 2 * 1 / 8 * log2(1 / 8)) + 3 / (2 * 8 * log(2))
    assert four_decisions["entropy"] == pytest.approx(min(1.0, bits / 2), abs=1e-6)
    assert four_decisions["effective_items"] == pytest.approx(2**bits, abs=1e-5)
    assert four_decisions["coverage"] == 1.0
    assert four_decisions["gini"] == pytest.approx((-3 * 1 - 1 * 1 + 1 * 2 + 3 * 4) / (4 * 8), abs=1e-6)


def test_health_tail_and_novelty_by_hand(four_decisions: dict[str, Any]) -> None:
    assert four_decisions["long_tail_share"] == pytest.approx(2 / 8)
    assert four_decisions["reference_tail_share"] == pytest.approx(4 / 16)
    assert four_decisions["tail_ratio"] == pytest.approx(1.0)
    assert four_decisions["new_item_share"] == pytest.approx(1 / 8)
    surprise = 4 * log2(20 / 12) + 2 * log2(20 / 2) + log2(20 / 5) + log2(20 / 1)
    assert four_decisions["novelty"] == pytest.approx(surprise / 8, abs=1e-5)


def test_health_sources_by_hand(four_decisions: dict[str, Any]) -> None:
    shares = {"model": 0.125, "history": 0.375, "segment": 0.125, "popular": 0.25, "latest": 0.125}
    assert four_decisions["sources"] == shares
    # Cold: u1 (half model), u2 (no personal source), u3 (with 4 positives, half history).
    assert four_decisions["cold_coverage"] == pytest.approx(2 / 3, abs=1e-6)
    cold = {positives: four_decisions["cold_sources"][positives] for positives in ("0", "1-2", "3-4")}
    assert cold == {
        "0": {"model": 0.5, "popular": 0.5},
        "1-2": {"popular": 0.5, "latest": 0.5},
        "3-4": {"history": 0.5, "segment": 0.5},
    }


def test_health_excludes_replicas_and_shadows(facts: health.HealthReference) -> None:
    answer = decision(1, "u1", ["a"], ["popular"])
    others = [decision(2, "u9", ["b"], ["model"], role=role) for role in ("replica", "shadow")]
    assert health.health([answer, *others], facts) == health.health([answer], facts)


def test_health_groups_by_window_variant_and_placement(facts: health.HealthReference) -> None:
    decisions = [
        decision(1, "u1", ["a"], ["popular"]),
        decision(2, "u1", ["b"], ["popular"], served_at=NOW - 2 * 3600 * SECOND, variant="arm"),
        decision(3, "u1", ["c"], ["popular"], served_at=NOW - 3 * DAY, placement="cart"),
        decision(4, "u1", ["d"], ["popular"], served_at=NOW - 8 * DAY),
        decision(5, "u1", ["d"], ["popular"], served_at=NOW - 7 * DAY),  # the open end of the window
    ]
    got = health.health(decisions, facts, until=NOW)
    assert got["whole"]["requests"] == 5
    assert {v: {p: n["requests"] for p, n in x.items()} for v, x in got["groups"].items()} == {
        "arm": {"home": 1}, "live": {"cart": 1, "home": 3},
    }  # fmt: skip
    assert {v: list(x) for v, x in got["hour"].items()} == {"live": ["home"]}
    assert {v: list(x) for v, x in got["day"].items()} == {"arm": ["home"], "live": ["home"]}
    assert {v: sorted(x) for v, x in got["week"].items()} == {"arm": ["home"], "live": ["cart", "home"]}
    assert got["week"]["live"]["home"]["requests"] == 1
    assert health.health(decisions, facts)["hour"] == got["hour"]  # until: the newest decision


def test_health_without_data_is_null(facts: health.HealthReference) -> None:
    empty = health.health([], facts)
    assert empty["whole"]["requests"] == 0
    assert [empty["whole"][name] for name in ("entropy", "coverage", "long_tail_share", "cold_coverage")] == [None] * 4
    assert empty["hour"] == {}
    json.dumps(empty, allow_nan=False)
    warm = health.health([decision(1, "u1", ["a"], ["model"], positives=5)], facts)["whole"]
    assert (warm["cold_users"], warm["cold_coverage"]) == (0, None)
    without_user = health.health([decision(1, "", ["a"], ["neighbours"], positives=0)], facts)[
        "whole"
    ]  # a list about an item
    assert (without_user["requests"], without_user["cold_users"], without_user["cold_coverage"]) == (1, 0, None)
    hollow = health.health([decision(1, "u1", [], [], positives=0)], facts)["whole"]
    assert (hollow["requests"], hollow["entropy"], hollow["cold_coverage"]) == (1, None, 0.0)


def test_health_without_reference_events_has_null_reference_metrics() -> None:
    against = health.reference(bundle(["a", "b"], [False, True]))
    got = health.health([decision(1, "u1", ["b"], ["model"])], against)["whole"]
    assert (got["long_tail_share"], got["tail_ratio"], got["novelty"], got["reference_tail_share"]) == (
        1.0,
        None,
        None,
        None,
    )


def test_compare_uses_equal_sample_sizes() -> None:
    ids = [f"i{n}" for n in range(200)]
    against = health.reference(bundle(ids, [n >= 40 for n in range(200)]))
    random = np.random.default_rng(0)

    def arm(requests: int) -> health.Exposures:
        lists = [random.choice(ids, 5, replace=False).tolist() for _ in range(requests)]
        made = [decision(n, f"u{n}", one, ["model"] * 5) for n, one in enumerate(lists)]
        return health.Exposures.from_decisions(made, against)

    arms = {"live": arm(400), "tried": arm(12)}
    raw = {name: health.compute(shown, against) for name, shown in arms.items()}
    assert raw["live"]["coverage"] > 3 * raw["tried"]["coverage"]
    equal = health.compare(arms, against, seed=3)
    assert equal["tried"]["coverage"] == raw["tried"]["coverage"]
    for name in ("entropy", "coverage", "gini", "long_tail_share"):
        assert equal["live"][name] == pytest.approx(equal["tried"][name], abs=0.08)
    assert equal == health.compare(arms, against, seed=3)
