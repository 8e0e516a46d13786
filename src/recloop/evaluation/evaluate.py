"""Evaluate bundles on every test moment: each source alone and the served list.

A query is just before a test moment. Its state holds the rows that had arrived and happened before. ``now`` is the
moment's stamp, and the targets are its distinct positive items. Bundles stay fixed while states grow. All rows of the
table share one recall; the lists are those of serving. Threads answer batches of queries; the table does not depend on them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recloop.bundle import Bundle
from recloop.config import LEAVE_ONE_OUT, Config
from recloop.errors import UserError
from recloop.evaluation.bundle_evaluation import BundleEvaluation
from recloop.evaluation.examples import examples_of
from recloop.evaluation.parallel import each_span
from recloop.evaluation.placements import PlacementEvaluation, further_placements
from recloop.evaluation.queries import Queries, codes_of_targets, is_repeat, make_queries, states_of
from recloop.evaluation.table import EvaluationTable, make_table
from recloop.evaluation.table_rows import EvaluationProtocol
from recloop.features.state import StateBatch
from recloop.features.state_history import StateHistory
from recloop.recommend.catalog import Catalog
from recloop.records import USER_ID

Progress = Callable[[int, int], None]


class Split(Protocol):
    """Labelled frames with ``stamp`` for an evaluation; `recloop.data` loads one."""

    @property
    def test(self) -> pl.DataFrame: ...
    @property
    def events(self) -> pl.DataFrame: ...
    @property
    def users(self) -> pl.DataFrame | None: ...


def evaluate(
    bundles: Sequence[Bundle],
    data: Split,
    catalog: Catalog,
    config: Config,
    facts: Mapping[str, Any],
    threads: int = 1,
    progress: Progress | None = None,
    timeline: StateHistory | None = None,
    candidates: pl.DataFrame | None = None,
) -> EvaluationTable:
    """Evaluate bundles: baseline rows of the first, each network, each served list.

    Args:
        bundles: The first one supplies the baseline rows. No bundle may be fitted on a test moment.
        data: The split; states are read from all its events.
        catalog: The catalog for the placements' filters.
        config: ``split``, ``evaluate`` and ``train.seed`` are read.
        facts: Entries of the table's protocol: ``split_hash``, ``fingerprint``.
        threads: Threads that answer queries; each needs the memory of a batch and of the sources' buffers.
        progress: Callback with (finished queries, all queries).
        timeline: States of all events of ``data``; None: computed from them.
        candidates: user_id and item_id of the items that each target is ranked among; None: all items.

    Raises:
        UserError: the test is empty, a bundle was fitted on it (``train.refit``), or scores are not finite.
    """
    queries = make_queries(data.test, config.split.targets)
    if not len(queries):
        raise UserError("test moments", 0, "a moment with a positive after the cut", "a longer log")
    for bundle in bundles:
        _unseen(bundle, queries, config.split.protocol)
    timeline = StateHistory(data.events, data.users) if timeline is None else timeline
    evaluations = [
        BundleEvaluation(bundle, catalog, config, queries, number == 0, candidates)
        for number, bundle in enumerate(bundles)
    ]
    moments = _Moments.unanswered(queries, timeline)
    placements = _further_placements(evaluations, catalog, config)
    placement_lock = threading.Lock()

    def answer(evaluations: Sequence[BundleEvaluation], span: slice) -> None:
        states = moments.states(span)
        for evaluation in evaluations:
            evaluation.ask(states, span)
        with placement_lock:
            for placement in placements:
                placement.ask(states, span)

    workers = [evaluations, *([one.for_thread() for one in evaluations] for _ in range(threads - 1))]
    for span in each_span(workers, len(queries), answer):
        if progress is not None:
            progress(span.stop, len(queries))
    return _table(evaluations, placements, moments, _protocol(bundles[0], queries, config, facts, candidates))


@dataclass(frozen=True)
class _Moments:
    """Queries, and what their states say of them; threads fill it.

    Attributes:
        codes: Codes of the targets in the states.
        repeat: True for a target that the user had before. Each array has one value for each target.
        positives: (Q,) positives in the state.
    """

    queries: Queries
    timeline: StateHistory
    codes: NDArray[np.int64]
    repeat: NDArray[np.bool_]
    positives: NDArray[np.int64]

    @classmethod
    def unanswered(cls, queries: Queries, timeline: StateHistory) -> _Moments:
        """Return the moments with arrays of 0."""
        codes = codes_of_targets(timeline, queries)
        return cls(queries, timeline, codes, np.zeros(len(codes), bool), np.zeros(len(queries), np.int64))

    def states(self, span: slice) -> StateBatch:
        """Return the states of some queries, and fill the arrays from them."""
        states = states_of(self.timeline, self.queries, span)
        offsets = self.queries.offsets[span.start : span.stop + 1]
        flat = slice(offsets[0], offsets[-1])
        self.repeat[flat] = is_repeat(states, self.codes[flat], offsets - flat.start)
        self.positives[span] = states.positives
        return states


def _further_placements(
    evaluations: Sequence[BundleEvaluation], catalog: Catalog, config: Config
) -> list[PlacementEvaluation]:
    """Return the placements beside the default one; none under leave-one-out."""
    if config.split.protocol == LEAVE_ONE_OUT:
        return []
    return [
        PlacementEvaluation(evaluation.bundle, catalog.copy(), name, evaluation.queries, config.evaluate.k[0])
        for evaluation in evaluations
        for name in further_placements(evaluation.bundle, evaluation.placement)
    ]


def _table(
    evaluations: Sequence[BundleEvaluation],
    placements: Sequence[PlacementEvaluation],
    moments: _Moments,
    protocol: EvaluationProtocol,
) -> EvaluationTable:
    """Make the table of answered moments."""
    queries, repeat, positives = moments.queries, moments.repeat, moments.positives
    main = evaluations[0]
    examples = examples_of(main.recommender, main.placement, queries, positives, moments.timeline)
    rows = [row for evaluation in evaluations for row in evaluation.rows(repeat)]
    table = make_table(protocol, rows, queries.users, positives, examples)
    costs = [evaluation.new_items_result(repeat, protocol.seed) for evaluation in evaluations]
    cold = [evaluation.cold_items_result(protocol.seed) for evaluation in evaluations]
    return replace(
        table,
        placements=[placement.result(repeat, protocol.seed) for placement in placements],
        new_items=[cost for cost in costs if cost is not None],
        cold_items=[result for result in cold if result is not None],
    )


def _protocol(
    bundle: Bundle, queries: Queries, config: Config, facts: Mapping[str, Any], candidates: pl.DataFrame | None
) -> EvaluationProtocol:
    """Describe the table of a bundle; the arguments are those of `evaluate`."""
    return EvaluationProtocol(
        name=config.split.protocol,
        split_hash=facts.get("split_hash", ""),
        fingerprint=facts.get("fingerprint", ""),
        targets=config.split.targets,
        filter_seen=bundle.policy.filter_seen,
        ties=config.split.ties,
        k=config.evaluate.k,
        seed=config.train.seed,
        moments=len(queries),
        users=len(set(queries.users)),
        items=len(bundle.items),
        wanted=len(queries.targets),
        unknown=len(queries.targets) - sum(map(set(bundle.items.ids.ids).__contains__, queries.targets)),
        candidates=None if candidates is None else round(len(candidates) / candidates[USER_ID].n_unique()),
    )


def _unseen(bundle: Bundle, queries: Queries, protocol: str) -> None:
    """Reject a bundle that was fitted on test moments."""
    learned = bundle.manifest.data.protocol or "temporal"
    if LEAVE_ONE_OUT in {learned, protocol}:
        saw_test = learned != protocol
    else:
        saw_test = not bundle.learned.is_new(queries.as_of + 1, queries.now).all()
    if saw_test or bundle.manifest.train.refit:
        raise UserError(
            "bundle", bundle.id or "refit", "a bundle with a cut before the test (this one was fitted on the test)",
            "recloop evaluate BUNDLE, with the bundle from before the refit",
        )  # fmt: skip
