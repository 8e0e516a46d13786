"""Answers of candidate and live for the gates of an update, in one or two looks.

The first look is a sample of the moments. Most updates change little, so that it already rules out a loss
(`recloop.release.gate.is_clear`). Otherwise the remaining moments are answered too, unless a gate refuses in any case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from recloop.bundle import Bundle
from recloop.evaluation import paired
from recloop.evaluation.paired import QueryResults
from recloop.evaluation.queries import Queries, concatenate
from recloop.pipeline import training_steps
from recloop.pipeline.update_run import UpdateRun
from recloop.release import gate
from recloop.release.gate_result import GateResult

FIRST_QUERIES: Final = 1_000
"""Most queries of the first look at the test moments, and at those of the holdout users."""

GATES_WITHOUT_MOMENTS: Final = ("verification", "latency")
"""Gates whose result is the same for a sample of the moments and for all."""


@dataclass(frozen=True)
class Answers:
    """Results of both bundles for the same queries."""

    candidate: QueryResults
    live: QueryResults

    def __len__(self) -> int:
        return len(self.candidate.users)

    def __add__(self, other: Answers) -> Answers:
        return Answers(self.candidate + other.candidate, self.live + other.live)


@dataclass(frozen=True)
class Look:
    """Answers to test moments and to moments of holdout users."""

    new_rows: Answers
    holdout: Answers

    def __add__(self, other: Look) -> Look:
        return Look(self.new_rows + other.new_rows, self.holdout + other.holdout)


def looks(run: UpdateRun, candidate: Bundle, new_rows: Queries, holdout: Queries) -> Iterator[Look]:
    """Yield the answers to a sample of both sets of queries, then to all of them.

    The second look answers the remaining queries only.
    """
    samples, rests = zip(*(paired.split_sample(queries, FIRST_QUERIES) for queries in (new_rows, holdout)), strict=True)
    first = _look(run, candidate, *samples)
    yield first
    if any(len(rest) for rest in rests):
        yield first + _look(run, candidate, *rests)


def _look(run: UpdateRun, candidate: Bundle, new_rows: Queries, holdout: Queries) -> Look:
    """Answer both sets of queries in one pass."""
    queries = concatenate([new_rows, holdout])
    timeline = run.states_of(queries.users)
    sides = (candidate, run.live)
    results = paired.answer_each(sides, queries, timeline, run.catalog, training_steps.THREADS, with_lists=False)
    spans = (slice(0, len(new_rows)), slice(len(new_rows), len(queries)))
    return Look(*(Answers(*(side.select(span) for side in results)) for span in spans))


def is_decided(results: Sequence[GateResult]) -> bool:
    """Return whether a first look suffices.

    Either no gate points at a loss, or a gate refuses that no further moment changes.
    """
    is_refused = any(result.name in GATES_WITHOUT_MOMENTS and not result.ok for result in results)
    return is_refused or gate.is_clear(results)
