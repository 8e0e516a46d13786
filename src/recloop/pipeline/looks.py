"""Answers of candidate and live for the gates of an update, in a few looks.

The first look is a sample of the moments. Most updates change little, so that it already rules out a loss
(`recloop.release.gate.is_clear`). Otherwise the sets whose gates need further moments are doubled until their gates are
clear or all moments are answered, unless a gate refuses in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from recloop.bundle import Bundle
from recloop.evaluation import paired
from recloop.evaluation.paired import QueryResults
from recloop.evaluation.queries import Queries, concatenate
from recloop.pipeline import model_fitting
from recloop.pipeline.update_run import UpdateRun
from recloop.release import gate
from recloop.release.gate_result import FORGETTING, GateResult

FIRST_QUERIES: Final = 500
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


class Looks:
    """Answers of both bundles to growing samples of moments.

    Args:
        new_rows: Queries at the test moments.
        holdout: Queries of the holdout users.
    """

    def __init__(self, run: UpdateRun, candidate: Bundle, new_rows: Queries, holdout: Queries) -> None:
        self._run = run
        self._sides = (candidate, run.live)
        self._rests = (new_rows, holdout)
        self._timeline = run.states_of([*new_rows.users, *holdout.users])
        self._look: Look | None = None

    def first(self) -> Look:
        """Answer a sample of both sets."""
        return self._ask(FIRST_QUERIES, FIRST_QUERIES)

    def further(self, results: Sequence[GateResult]) -> Look | None:
        """Double the sets whose gates need further moments; None if none of them are left."""
        assert self._look is not None
        of_holdout = [result for result in results if result.name == FORGETTING]
        of_new_rows = [result for result in results if result.name != FORGETTING]
        n_new_rows = _n_further(of_new_rows, len(self._look.new_rows), len(self._rests[0]))
        n_holdout = _n_further(of_holdout, len(self._look.holdout), len(self._rests[1]))
        return self._ask(n_new_rows, n_holdout) if n_new_rows or n_holdout else None

    def _ask(self, n_new_rows: int, n_holdout: int) -> Look:
        """Answer further queries of each set in one pass; return all answers so far."""
        new_rows, rest_of_new_rows = paired.split_sample(self._rests[0], n_new_rows)
        holdout, rest_of_holdout = paired.split_sample(self._rests[1], n_holdout)
        self._rests = (rest_of_new_rows, rest_of_holdout)
        queries = concatenate([new_rows, holdout])
        catalog, threads = self._run.catalog, model_fitting.THREADS
        results = paired.answer_each(self._sides, queries, self._timeline, catalog, threads, with_lists=False)
        spans = (slice(0, len(new_rows)), slice(len(new_rows), len(queries)))
        look = Look(*(Answers(*(side.select(span) for side in results)) for span in spans))
        self._look = look if self._look is None else self._look + look
        return self._look


def _n_further(results: Sequence[GateResult], n_answered: int, n_left: int) -> int:
    """Return how many further queries a set of these gates needs."""
    growth = 1 + n_left / max(1, n_answered)
    return min(n_answered, n_left) if gate.unclear(results, growth) else 0


def is_decided(results: Sequence[GateResult]) -> bool:
    """Return whether a look suffices.

    Either no gate points at a loss, or a gate refuses that no further moment changes.
    """
    is_refused = any(result.name in GATES_WITHOUT_MOMENTS and not result.ok for result in results)
    return is_refused or gate.is_clear(results)
