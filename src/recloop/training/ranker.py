"""Train the ranker: trees or a network over the features of recalled items.

Statistics and sources are fitted up to the start of validation, T1. The ranker learns from the moments between T1 and the
cut, each with the state just before it. Statistics and sources are then fitted up to the cut under the same ranker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from recloop.bundle import Bundle
from recloop.bundle.checks import RANKER_GRAPH
from recloop.config import Config
from recloop.errors import UserError
from recloop.evaluation import bootstrap
from recloop.evaluation.bootstrap import Estimate
from recloop.features import rhythm
from recloop.features.state_history import StateHistory
from recloop.files import JsonTree
from recloop.models.base import TrainData, ValidationQueries
from recloop.policy import RANKERS, RankerSpec
from recloop.recommend.ranker import feature_space
from recloop.records import DAY
from recloop.training.dataset import ItemUserTables
from recloop.training.item_statistics import fit_statistics
from recloop.training.kept_models import has_network
from recloop.training.packages import missing_packages
from recloop.training.ranker_examples import ExampleMaker, Examples, QueryBatches, depths_of, ndcg
from recloop.training.ranker_trees import fit_trees, load_lightgbm

MIN_MOMENTS: Final = 200
"""Moments with a recalled target that the trees need."""
MIN_JUDGED: Final = 30
"""Validation moments that a comparison needs."""
MIN_NETWORK_MOMENTS: Final = 6_000
"""Moments that teach from which `auto` also tries a network, if the bundle has one.

A trial takes half a minute (docs/decisions/2026-11-29-a-network-as-ranker.md).
"""
PERIOD_DAYS: Final = 28
"""Days before the cut whose moments teach when an update fits the trees again."""
LEARNING_SHARE: Final = 0.7
"""Share of the period whose moments teach while the ranker is judged on later validation moments."""


@dataclass(frozen=True)
class RankerChoice:
    """Outcome of the choice: the bundle, with a ranker if it was kept, and a sentence."""

    bundle: Bundle
    sentence: str
    gain: Estimate | None = None
    recall: float | None = None

    def to_json(self) -> JsonTree:
        """Return the ``ranker`` section of a run's metrics.json."""
        gain = None if self.gain is None else self.gain.to_json()
        spec = self.bundle.policy.ranker
        model = None if spec is None else spec.model
        return {"kept": spec is not None, "model": model, "gain": gain, "candidate_recall": self.recall}


def choose_ranker(
    bundle: Bundle, config: Config, data: TrainData, tables: ItemUserTables, past: StateHistory, threads: int = 1
) -> RankerChoice:
    """Train a ranker and keep it if its lists are better than those of the fusion.

    With ``ranker.model = "auto"`` better means that the lower end of the paired 95 % CI of NDCG@10 over the validation users
    is above 0, and a network must be better than trees in the same way; ``"gbdt"`` and ``"mlp"`` are kept in any case.

    Args:
        bundle: Bundle with chosen half-lives and weights, fitted on ``data``.
        data: Rows before the first validation moment (`recloop.training.dataset.validation_data`).
        past: Timeline of all rows before the cut.

    Raises:
        UserError: the model is ``"gbdt"`` or ``"mlp"``, and the log has too few moments or its package cannot be loaded.
    """
    asked = config.ranker.model
    if asked == "off":
        return RankerChoice(bundle, "no ranker, as configured")
    if data.held is None or not len(data.held):
        return _skipped(bundle, asked, "the split has no validation moment")
    models, problem = _usable([*RANKERS] if asked == "auto" else [asked])
    if not models:
        return _skipped(bundle, asked, problem)
    learner = _Learner(bundle, config, data, tables, past, threads)
    split = _period_split(data, data.held, config) if data.history is not None else _user_split(data.held, config)
    early, judged = learner.examples(split.early), split.judged
    problem = _problem(early) or ("" if len(judged) >= MIN_JUDGED else f"{len(judged)} moments to judge it")
    if problem:
        return _skipped(bundle, asked, problem)

    def judge(one: Bundle) -> np.ndarray:
        return ndcg(one, judged, data.user_ids, past, threads)

    if asked == "auto" and "gbdt" in models and not (has_network(bundle) and len(early.sizes) >= MIN_NETWORK_MOMENTS):
        models = ["gbdt"]
    trials = [_Trial(model, judge(learner.bundle_of(early, model))) for model in models]
    without = judge(bundle)
    best, gain, compared = _compare(trials, without, config.train.seed)
    means = f"NDCG@10 {best.values.mean():.4f} against {without.mean():.4f} without it on {len(judged):,} moments"
    means += f" ({gain.signed_text()}){compared}"
    if gain.low <= 0 and asked == "auto":
        return RankerChoice(bundle, f"no ranker: {means}", gain, early.recall)
    examples = Examples.join([early, learner.examples(split.late), learner.examples(split.held)])
    sentence = f"ranker {best.model} over {examples.recall:.1%} of the targets that sources recall: {means}"
    return RankerChoice(learner.bundle_of(examples, best.model), sentence, gain, examples.recall)


def trees_and_later_moments(
    bundle: Bundle, config: Config, data: TrainData, tables: ItemUserTables, past: StateHistory
) -> tuple[Bundle, ValidationQueries]:
    """Return trees over early validation moments, and the later moments.

    The arguments are those of `choose_ranker`, under a temporal protocol.

    Raises:
        UserError: the early moments cannot teach trees.
    """
    assert data.held is not None
    split = _period_split(data, data.held, config)
    learner = _Learner(bundle, config, data, tables, past, 1)
    return learner.bundle_of(learner.examples(split.early), "gbdt"), split.late


class _Trial(NamedTuple):
    """Model that learned the early moments, and NDCG@10 (Q,) of its lists."""

    model: str
    values: np.ndarray


def _usable(models: Sequence[str]) -> tuple[list[str], str]:
    """Return the models with installed packages, and why others are left out."""
    problems: dict[str, str] = {}
    try:
        load_lightgbm()
    except (ImportError, OSError) as error:  # OSError: a system without the OpenMP library
        problems["gbdt"] = f"lightgbm cannot be loaded ({error})"
    missing = missing_packages()
    if missing:
        problems["mlp"] = f'{missing[0]} is not installed; pip install "recloop[train]"'
    return [model for model in models if model not in problems], "; ".join(
        problems[model] for model in models if model in problems
    )


def _compare(trials: Sequence[_Trial], without: np.ndarray, seed: int) -> tuple[_Trial, Estimate, str]:
    """Return the best trial, its gain over no ranker, and a sentence on the others.

    A later trial replaces an earlier one if the lower end of the 95 % CI of their paired difference is above 0.
    """
    best, sentences = trials[0], []
    for trial in trials[1:]:
        gain = bootstrap.difference(trial.values, best.values, seed).absolute
        sentences.append(f"; {trial.model} has {trial.values.mean():.4f} ({gain.signed_text()} over {best.model})")
        best = trial if gain.low > 0 else best
    return best, bootstrap.difference(best.values, without, seed).absolute, "".join(sentences)


class _Split(NamedTuple):
    """Moments that teach and judge.

    ``early`` teaches the trees that ``judged`` judges; ``late`` and ``held`` then teach the final trees too.
    """

    early: ValidationQueries
    judged: ValidationQueries
    late: ValidationQueries
    held: ValidationQueries


def _period_split(data: TrainData, held: ValidationQueries, config: Config) -> _Split:
    """Split the validation period in time; later moments judge."""
    assert data.history is not None
    taught = _spread(moments_between(data.history, data.cut, data.history.cut), config.ranker.moments)
    border = int(np.quantile(taught.now, LEARNING_SHARE)) if len(taught) else data.cut
    is_early = taught.now < border
    judged = held.at(np.flatnonzero(held.now >= border))
    return _Split(taught.at(np.flatnonzero(is_early)), judged, taught.at(np.flatnonzero(~is_early)), held)


def _user_split(held: ValidationQueries, config: Config) -> _Split:
    """Split the users of a protocol without a period: every second one judges."""
    held = _spread(held, config.ranker.moments)
    is_judged = np.arange(len(held)) % 2 == 1
    early, judged = held.at(np.flatnonzero(~is_judged)), held.at(np.flatnonzero(is_judged))
    return _Split(early, judged, judged, held.at(np.zeros(0, dtype=np.int64)))


def _skipped(bundle: Bundle, asked: str, problem: str) -> RankerChoice:
    """Return the choice of no ranker.

    Raises:
        UserError: the configuration requires one.
    """
    if asked != "auto":
        expected = f"a log that can teach a ranker; {problem}"
        raise UserError("ranker.model", asked, expected, '--set ranker.model="auto"')
    return RankerChoice(bundle, f"no ranker: {problem}")


def refit_trees(
    bundle: Bundle,
    early: Bundle,
    config: Config,
    data: TrainData,
    tables: ItemUserTables,
    past: StateHistory,
    threads: int = 1,
) -> Bundle:
    """Fit the trees of a bundle's ranker again on the moments after ``data``.

    Too few moments, or a source that ``early`` lacks, leave the trees as they are.

    Args:
        bundle: Bundle over all rows before the cut.
        early: Bundle with the same sources over ``data``.
        data: Rows before the period that teaches; its ``history`` holds all rows before the cut.
        past: Timeline of all rows before the cut.
    """
    spec = bundle.policy.ranker
    if spec is None or data.history is None or any(source not in early.scorers for source in spec.depths):
        return bundle
    learner = _Learner(early, config, data, tables, past, threads, _has_rhythm(spec))
    examples = learner.examples(moments_between(data.history, data.cut, data.history.cut))
    if _problem(examples):
        return bundle
    fitted = learner.bundle_of(examples, spec.model)
    policy = replace(bundle.policy, ranker=fitted.policy.ranker)
    return replace(bundle, policy=policy, graphs={**bundle.graphs, RANKER_GRAPH: fitted.graphs[RANKER_GRAPH]})


def is_due(spec: RankerSpec, data: TrainData) -> bool:
    """Return whether a period that teaches trees has passed since they learned.

    Then none of the moments that teach next is known to the trees, and they are at least as many as those were.
    """
    n_new = int(np.count_nonzero(data.has_target & (data.stamps >= spec.until)))
    return n_new >= max(spec.moments, MIN_MOMENTS) and period_start(data) >= spec.until


def period_start(data: TrainData) -> int:
    """Return the start of the period that teaches trees: `PERIOD_DAYS` before the cut.

    In a log of less than four such periods it is the stamp of three quarters of the moments.
    """
    first = int(data.stamps.min()) if len(data.stamps) else data.cut
    start = data.cut - PERIOD_DAYS * DAY
    if data.cut - first >= 4 * PERIOD_DAYS * DAY or not len(data.stamps):
        return start
    return max(first + 1, int(np.quantile(data.stamps, 0.75)))


def refit_statistics(bundle: Bundle, data: TrainData, tables: ItemUserTables) -> Bundle:
    """Fit the statistics of a bundle's ranker on other rows; the trees are kept."""
    spec = bundle.policy.ranker
    if spec is None:
        return bundle
    statistics = fit_statistics(data, tables, _has_rhythm(spec))
    return replace(bundle, arrays={**bundle.arrays, **statistics.to_arrays()})


def _has_rhythm(spec: RankerSpec) -> bool:
    """Return whether a ranker has the features of `recloop.features.rhythm`."""
    return rhythm.OWN[0] in spec.features


def inherit_ranker(bundle: Bundle, parent: Bundle, config: Config, data: TrainData, tables: ItemUserTables) -> Bundle:
    """Add the trees of the parent to a bundle, over the bundle's own statistics."""
    spec = parent.policy.ranker
    if spec is None or config.ranker.model == "off" or any(source not in bundle.scorers for source in spec.depths):
        return bundle
    return refit_statistics(with_ranker(bundle, spec, parent.graphs[RANKER_GRAPH], config), data, tables)


def with_ranker(bundle: Bundle, spec: RankerSpec, graph: bytes, config: Config) -> Bundle:
    """Add a ranker to a bundle; it orders personal lists with ``weights = "auto"``."""
    filter_seen = bundle.policy.placements[bundle.default_placement].filter_seen  # of the lists that were judged
    placements = {
        name: replace(
            placement,
            ranked=_is_ranked(config, name, placement.list) and placement.filter_seen == filter_seen,
        )
        for name, placement in bundle.policy.placements.items()
    }
    policy = replace(bundle.policy, placements=placements, ranker=spec)
    return replace(bundle, policy=policy, graphs={**bundle.graphs, RANKER_GRAPH: graph})


def moments_between(data: TrainData, start: int, end: int) -> ValidationQueries:
    """Return the moments with a target in a period, without holdout users.

    Raises:
        UserError: ``start`` is not after the first moment, so that no row could be counted before it.
    """
    if len(data.stamps) and start <= int(data.stamps.min()):
        raise UserError(
            "ranker", start, f"a start after the first moment ({int(data.stamps.min())})", 'set ranker.model="off"'
        )
    is_inside = (data.stamps >= start) & (data.stamps < end) & data.has_target & ~data.old[data.moment_user]
    moments = np.flatnonzero(is_inside)
    rows = np.flatnonzero(is_inside[data.row_moment] & data.target_rows)
    sizes = np.bincount(data.row_moment[rows], minlength=len(data.stamps))[moments]
    first_seq = np.minimum.reduceat(data.seqs, data.moment_offsets[:-1]) if len(data.seqs) else data.seqs
    return ValidationQueries(
        user_ix=data.moment_user[moments],
        now=data.stamps[moments],
        as_of=first_seq[moments] - 1,
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        items=data.items[rows],
    )


class _Learner:
    """Examples and trees over one bundle's sources and statistics."""

    def __init__(
        self,
        bundle: Bundle,
        config: Config,
        data: TrainData,
        tables: ItemUserTables,
        past: StateHistory,
        threads: int,
        with_rhythm: bool = True,
    ) -> None:
        statistics = fit_statistics(data, tables, with_rhythm)
        depths = depths_of(bundle)
        self._bundle = replace(bundle, arrays={**bundle.arrays, **statistics.to_arrays()})
        names = RankerSpec("gbdt", depths, (), statistics.fields, statistics.numbers, 0, 0)
        self._space = feature_space(self._bundle, names, check=False)
        self._spec = replace(names, features=self._space.names)
        batches = QueryBatches(bundle, data.user_ids, past, threads)
        self._maker = ExampleMaker(batches, self._space, depths)
        self._config = config
        self._until = data.cut if data.history is None else data.history.cut

    def examples(self, queries: ValidationQueries) -> Examples:
        """Describe at most ``ranker.moments`` of these moments, spread evenly."""
        return self._maker.examples(_spread(queries, self._config.ranker.moments))

    def bundle_of(self, examples: Examples, model: str) -> Bundle:
        """Return the bundle with a model that learned from these examples."""
        spec = replace(self._spec, model=model, moments=len(examples.sizes), until=self._until)
        if model == "gbdt":
            graph = fit_trees(examples, self._config)
        else:
            from recloop.training.ranker_network import fit_network  # torch takes seconds to import

            graph = fit_network(examples, self._config.train.seed)
        return with_ranker(self._bundle, spec, graph, self._config)


def _is_ranked(config: Config, name: str, kind: str) -> bool:
    """Personal lists are ranked unless the configuration weighs the sources itself."""
    return kind == "for_you" and (name not in config.placement or config.placement[name].weights == "auto")


def _problem(examples: Examples) -> str:
    """Return why these examples cannot teach a ranker; empty if they can."""
    if len(examples.sizes) >= MIN_MOMENTS:
        return ""
    return f"{len(examples.sizes)} moments have recalled items with and without a target; {MIN_MOMENTS} are needed"


def _spread(queries: ValidationQueries, max_moments: int) -> ValidationQueries:
    """Return at most ``max_moments`` of these moments, spread evenly."""
    if len(queries) <= max_moments:
        return queries
    return queries.at(np.linspace(0, len(queries) - 1, max_moments).astype(np.int64))
