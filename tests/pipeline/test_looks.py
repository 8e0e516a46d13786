"""Looks at the moments of a gate: a sample that grows until it is clear."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from recloop.bundle import Bundle
from recloop.evaluation import paired
from recloop.evaluation.paired import QueryResults
from recloop.evaluation.queries import Queries
from recloop.features.state import offsets_of
from recloop.pipeline import looks as module
from recloop.pipeline.looks import Looks, is_decided
from recloop.pipeline.update_run import UpdateRun
from recloop.release import gate
from recloop.release.gate_result import FORGETTING, NEW_ROWS, GateResult


def queries(count: int) -> Queries:
    now = np.arange(count, dtype=np.int64)
    return Queries([f"u{n}" for n in range(count)], now, now, offsets_of(np.ones(count, dtype=np.int64)), ["i"] * count)


def results(asked: Queries, value: float) -> QueryResults:
    """Results whose values name their query."""
    values = asked.now * 10 + value
    users = np.array(asked.users, dtype=object)
    return QueryResults(users, [["i"]] * len(asked), values, values, values, values > 5, values)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the answered sets."""
    sizes: list[int] = []

    def answer_each(sides: Any, part: Queries, *_: Any, **__: Any) -> list[QueryResults]:
        sizes.append(len(part))
        return [results(part, number) for number in range(len(sides))]

    monkeypatch.setattr(paired, "answer_each", answer_each)
    monkeypatch.setattr(module, "FIRST_QUERIES", 4)
    return sizes


RUN = cast("UpdateRun", SimpleNamespace(states_of=lambda _: None, live=None, catalog=None))
NONE = cast("Bundle", None)


def gates(new_rows: float = 0.2, forgetting: float = 0.2) -> list[GateResult]:
    """Results of two gates with these values; 0.2 is clear, -0.2 is not."""
    return [
        GateResult(name, value, -0.03, True, detectable=0.1)
        for name, value in ((NEW_ROWS, new_rows), (FORGETTING, forgetting))
    ]


def test_further_look_at_both_sets_answers_as_many_queries_again(asked: list[int]) -> None:
    looks = Looks(RUN, NONE, queries(10), queries(5))
    first = looks.first()
    assert asked == [8]
    assert first.new_rows.candidate.ndcg.tolist() == [0, 30, 60, 90]
    second = looks.further(gates(-0.2, -0.2))
    assert second is not None
    assert asked == [8, 5]
    assert (len(second.new_rows), len(second.holdout)) == (8, 5)
    third = looks.further(gates(-0.2, -0.2))
    assert third is not None
    assert asked == [8, 5, 2]
    assert sorted(third.new_rows.live.ndcg.tolist()) == [n * 10 + 1 for n in range(10)]
    assert looks.further(gates(-0.2, -0.2)) is None


@pytest.mark.parametrize(
    ("results", "sizes"),
    [(gates(new_rows=-0.2), (8, 4)), (gates(forgetting=-0.2), (4, 8)), (gates(), None)],
    ids=["new rows", "holdout users", "none"],
)
def test_further_look_doubles_only_sets_with_an_unclear_gate(
    asked: list[int], results: list[GateResult], sizes: tuple[int, int] | None
) -> None:
    looks = Looks(RUN, NONE, queries(20), queries(20))
    looks.first()
    look = looks.further(results)
    assert (None if look is None else (len(look.new_rows), len(look.holdout))) == sizes


def test_few_queries_have_one_look(asked: list[int]) -> None:
    looks = Looks(RUN, NONE, queries(4), queries(0))
    assert len(looks.first().new_rows) == 4
    assert looks.further(gates(-0.2, -0.2)) is None
    assert asked == [4]


@pytest.mark.parametrize(
    ("unexplained", "low", "is_enough"),
    [(0, 0.2, True), (0, -0.2, False), (3, -0.2, True)],
    ids=["no sign of a loss", "a loss is possible", "refused at any loss"],
)
def test_look_suffices_if_it_is_clear_or_refused_in_any_case(unexplained: int, low: float, is_enough: bool) -> None:
    new_rows = GateResult(NEW_ROWS, low + 0.1, -0.03, True, detectable=0.1, low=low, high=low + 0.2)
    assert is_decided([new_rows, gate.at_most("verification", unexplained, 0)]) is is_enough
