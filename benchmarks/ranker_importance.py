"""Measure what each feature of a ranker is worth: NDCG@10 lost by permuting it on validation moments.

    .venv/bin/python benchmarks/ranker_importance.py                          # of Complete Journey
    .venv/bin/python benchmarks/ranker_importance.py --data online-retail     # of another data set of `quality.py`

Sources are fitted up to the start of validation. Trees learn from the first part of the period, as when `auto` chooses a
ranker; its later moments judge. The values of a feature are permuted over all candidates of these moments. The test is
not read. The result file holds command, commit, fingerprint of the data and seed; `quality.py --page` writes its table.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from provenance import provenance, revision
from quality import RESULTS, prepared
from quality_data import DATA
from quality_page import Result

from recloop.bundle import Bundle
from recloop.bundle.checks import RANKER_GRAPH
from recloop.config import Config
from recloop.data.prepare import PreparedData, load
from recloop.evaluation import bootstrap, metrics
from recloop.features.encode import EncodedBatch
from recloop.features.ranking import Candidates
from recloop.features.state_history import StateHistory
from recloop.features.user_profile import MAX_QUERIES
from recloop.files import replace_json
from recloop.models.base import TrainData, ValidationQueries
from recloop.pipeline import model_fitting
from recloop.project import Project, open_project
from recloop.recommend.filters import CandidateMask
from recloop.recommend.ranker import Scores, candidates_of, feature_space, tree_scores, write_best
from recloop.recommend.recommender import Recommender
from recloop.training import baselines, ranker
from recloop.training.closed_form import further_models
from recloop.training.dataset import ItemUserTables
from recloop.training.ranker_examples import QueryBatches

LENGTH: Final = 10
PERMUTATIONS: Final = 3


def main() -> None:
    """Write the result file of one data set."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    words.add_argument("--data", choices=DATA, default="complete-journey")
    words.add_argument("--moments", type=int, default=12_000, help="ranker.moments: moments that teach and judge")
    words.add_argument("--seed", type=int, default=0, help="train.seed, also of the permutations")
    words.add_argument("--results", type=Path, default=RESULTS)
    asked = words.parse_args()
    project = open_project(prepared(asked.data))
    result = {
        **provenance(),
        "commit": revision(),
        "data": asked.data,
        "seed": asked.seed,
        "permutations": PERMUTATIONS,
        "ranker.moments": asked.moments,
        **importance(project, load(project), _with_settings(project.config, asked.moments, asked.seed)),
    }
    asked.results.mkdir(parents=True, exist_ok=True)
    replace_json(asked.results / f"importance-{asked.data}-seed{asked.seed}.json", result)
    for feature in result["features"]:
        sys.stdout.write(f"{feature['loss']['value']:+.4f}  {feature['name']}\n")


def _with_settings(config: Config, moments: int, seed: int) -> Config:
    """Return the configuration with these moments and seed, and one thread for the trees."""
    trees = config.ranker.model_copy(update={"moments": moments, "threads": 1})
    return config.model_copy(
        update={"ranker": trees, "train": config.train.model_copy(update={"seed": seed})},
    )


def importance(project: Project, data: PreparedData, config: Config) -> Result:
    """Return what each feature is worth, the largest loss first.

    Raises:
        SystemExit: the protocol of the data has no period of validation.
    """
    tables = model_fitting.build_tables(project, data)
    arrays = model_fitting.validation_arrays(project, tables, data)
    if arrays.history is None or arrays.held is None:
        raise SystemExit(f"ranker_importance.py: {data.manifest.protocol}; expected a temporal protocol")
    past = StateHistory(model_fitting.rows_before_cut(data), data.users)
    bundle = _sources(config, data, arrays, tables, past)
    bundle, judged = ranker.trees_and_later_moments(bundle, config, arrays, tables, past)
    candidates = JudgedCandidates.of(bundle, judged, arrays, past)
    return {"fingerprint": data.manifest.fingerprint, **candidates.losses(bundle, config.train.seed)}


def _sources(
    config: Config, data: PreparedData, arrays: TrainData, tables: ItemUserTables, past: StateHistory
) -> Bundle:
    """Return the counts up to the start of validation, with half-lives and weights as in a first run."""
    counts, scorers = baselines.fit_counts(arrays, tables, further_models(config, arrays.n_items, {}))
    manifest = model_fitting.base_manifest(
        config, tables, data.manifest.fingerprint, model_fitting.rows_before_cut(data), data.manifest.held_seq or 0
    )
    draft = baselines.draft_bundle(config, tables, arrays, counts, scorers, manifest)
    bundle, _ = baselines.choose_half_life_and_weights(draft, config, arrays, tables, past, 1, {"covisitation"})
    return bundle


@dataclass(frozen=True)
class JudgedCandidates:
    """Candidates of moments with their features (C, F)."""

    names: tuple[str, ...]
    matrix: np.ndarray
    items: np.ndarray  # (C,) item_ix
    offsets: np.ndarray  # (Q+1,) of the candidates of each moment
    moments: ValidationQueries

    @classmethod
    def of(cls, bundle: Bundle, moments: ValidationQueries, arrays: TrainData, past: StateHistory) -> JudgedCandidates:
        """Describe the candidates of lists at these moments."""
        spec = bundle.policy.ranker
        assert spec is not None
        space = feature_space(bundle, spec)

        def of_batch(
            recommender: Recommender, encoded: EncodedBatch, allowed: CandidateMask, _span: slice
        ) -> list[tuple[np.ndarray, Candidates]]:
            recalled = recommender.recall(encoded, allowed, list(spec.depths), spec.depths)
            parts = []
            for start in range(0, len(encoded), MAX_QUERIES):
                queries = slice(start, min(start + MAX_QUERIES, len(encoded)))
                candidates = candidates_of(recalled, spec.depths, queries)
                parts.append((space.matrix(encoded, queries, candidates), candidates))
            return parts

        batches = QueryBatches(bundle, arrays.user_ids, past, 1)
        parts = [part for batch in batches.each(moments, of_batch) for part in batch]
        sizes = np.concatenate([np.diff(candidates.offsets) for _, candidates in parts])
        return cls(
            space.names,
            np.concatenate([matrix for matrix, _ in parts]),
            np.concatenate([candidates.items for _, candidates in parts]),
            np.concatenate([[0], np.cumsum(sizes)]),
            moments,
        )

    def losses(self, bundle: Bundle, seed: int) -> Result:
        """Return NDCG@10 by user, and the paired loss of each feature.

        A loss is the mean of `PERMUTATIONS`; its interval is that of a bootstrap over users.
        """
        score = tree_scores(bundle.graphs[RANKER_GRAPH], len(self.names))
        random = np.random.default_rng(seed)
        whole, losses = self._ndcg(score), {}
        for column, name in enumerate(self.names):
            kept = self.matrix[:, column].copy()
            permuted = []
            for _ in range(PERMUTATIONS):
                self.matrix[:, column] = random.permutation(kept)
                permuted.append(self._ndcg(score))
            self.matrix[:, column] = kept
            losses[name] = bootstrap.difference(whole, np.mean(permuted, axis=0), seed).absolute
        largest = sorted(losses, key=lambda name: -losses[name].value)
        return {
            "moments": len(self.moments),
            "users": len(whole),
            "candidates": len(self.matrix),
            "NDCG@10": bootstrap.plain(float(whole.mean())),
            "features": [{"name": name, "loss": losses[name].to_json()} for name in largest],
        }

    def _ndcg(self, score: Scores) -> np.ndarray:
        """(U,) mean NDCG@10 of the lists of each user."""
        lists = np.zeros((len(self.moments), LENGTH), dtype=np.int64)
        best, offsets = np.empty(lists.size, dtype=np.int64), np.empty_like(self.offsets)
        n_best = write_best(best, offsets, score(self.matrix, self.offsets), self.offsets, LENGTH)
        lengths = np.diff(offsets)
        slots = np.arange(n_best) - np.repeat(offsets[:-1], lengths)
        lists[np.repeat(np.arange(len(lists)), lengths), slots] = self.items[best[:n_best]]
        values = metrics.ranking(lists, self.moments.items, self.moments.offsets, LENGTH)["NDCG"]
        _, users = np.unique(self.moments.user_ix, return_inverse=True)
        return bootstrap.user_means(values[:, None], users, int(users.max()) + 1)[:, 0]


if __name__ == "__main__":
    main()
