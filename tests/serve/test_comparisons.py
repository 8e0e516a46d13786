"""Comparisons in a child process: equal results and errors, a time limit, and the last result of the console."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from recloop.errors import BundleError, RecloopError, Refused, UserError
from recloop.monitoring import shadow_report
from recloop.project import Project
from recloop.release import transitions
from recloop.serve import comparisons
from recloop.serve.comparisons import Comparison, Comparisons, Failure
from recloop.testing.store import some_decision


@pytest.mark.slow
def test_compare_returns_what_the_child_computes(project: Project) -> None:
    with project.open_decisions(write=True) as store:
        store.put_many([some_decision("r"), some_decision("r", role="shadow", bundle="c")])
    assert comparisons.measure_steps(project, "c", with_experiment=False) == transitions.measure_steps(
        project, "c", with_experiment=False
    )
    assert comparisons.measure_steps(project, "c", with_experiment=True) == transitions.measure_steps(
        project, "c", with_experiment=True
    )
    with pytest.raises(UserError) as here:
        shadow_report.shadow_report(project, "unknown")
    with pytest.raises(UserError) as there:
        comparisons.compare(project, "shadow", "unknown")
    assert str(there.value) == str(here.value)
    with pytest.raises(UserError, match=r"without an error \(TypeError"):
        comparisons.compare(project, "shadow", 1, 2, 3, 4, 5)


def test_compare_stops_at_its_time_limit(project: Project) -> None:
    with pytest.raises(UserError, match="comparison=shadow: expected a result within"):
        comparisons.compare(project, "shadow", "b", seconds=0.01)


@pytest.mark.parametrize(
    "error",
    [
        UserError("bundle", 3, "a bundle", "recloop status", ("row",)),
        BundleError("bundle", "b", "a hash"),
        Refused("gate", 0.5, 1, "too low"),
        RecloopError("any"),
    ],
)
def test_failure_keeps_class_and_message(error: RecloopError) -> None:
    failure = Failure.of(error)
    again = failure.error(*failure.arguments)
    assert (type(again), str(again)) == (type(error), str(error))


def test_comparisons_keep_the_last_result_for_a_minute(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    clock = [1_000_000_000]
    running = threading.Event()

    def compute(_: Project, kind: str, bundle: str) -> str:
        calls.append((kind, bundle))
        running.set()
        if bundle == "bad":
            raise UserError("bundle", bundle, "a bundle that was shadowed")
        return f"result {len(calls)}"

    monkeypatch.setattr(comparisons, "compare", compute)
    monkeypatch.setattr(comparisons, "now", lambda: clock[0])
    cache = Comparisons(project)
    assert cache.last("shadow", "b") is None
    first = Comparison("result 1", "", clock[0])
    threads = [threading.Thread(target=cache.refresh, args=("shadow", "b")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (cache.last("shadow", "b"), calls) == (first, [("shadow", "b")])
    clock[0] += 61_000_000
    assert cache.refresh("shadow", "b").result == "result 2"
    assert cache.refresh("experiment", "bad").problem == "bundle=bad: expected a bundle that was shadowed"
    assert cache.refresh("shadow", "other").result == "result 4"
    assert cache.last("shadow", "b") is None  # only the newest bundle of a kind is kept
