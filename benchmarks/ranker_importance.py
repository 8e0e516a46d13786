"""Print what each feature of a bundle's ranker is worth: NDCG@10 lost by permuting it.

    .venv/bin/python benchmarks/ranker_importance.py PROJECT BUNDLE [--moments 500]

The values of a feature are permuted over all candidates of moments of the test, which the ranker did not learn from.
Values are means over moments, with one permutation by seed 0.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

import numpy as np

from recloop.bundle.checks import RANKER_GRAPH
from recloop.data.prepare import load
from recloop.evaluation import metrics
from recloop.evaluation.lists import ListRecommender
from recloop.evaluation.queries import make_queries, states_of
from recloop.features.state_history import StateHistory
from recloop.features.user_profile import MAX_QUERIES
from recloop.project import open_project
from recloop.recommend.catalog import Catalog
from recloop.recommend.ranker import candidates_of, feature_space
from recloop.recommend.sources import open_session

LENGTH: Final = 10


def main() -> None:
    """Describe the candidates of some moments, then permute one feature after the other."""
    wanted = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    wanted.add_argument("project", type=Path)
    wanted.add_argument("bundle")
    wanted.add_argument("--moments", type=int, default=500)
    asked = wanted.parse_args()
    project = open_project(asked.project)
    data, bundle = load(project), project.load_bundle(asked.bundle)
    spec = bundle.policy.ranker
    if spec is None:
        raise SystemExit(f"bundle {bundle.id} has no ranker")
    queries = make_queries(data.test, project.config.split.targets)
    timeline = StateHistory(data.events, data.users)
    lists = ListRecommender(bundle, Catalog.from_frames([data.items]), bundle.default_placement, LENGTH)
    space = feature_space(bundle, spec)
    matrices, items, sizes, chosen = [], [], [], []
    step = max(1, len(queries) // asked.moments)
    for start in range(0, len(queries) - MAX_QUERIES + 1, step * MAX_QUERIES):
        span = slice(start, start + MAX_QUERIES)
        encoded, allowed = lists.encode(states_of(timeline, queries, span), queries.now[span])
        recalled = lists.recommender.recall(encoded, allowed, list(spec.depths))
        candidates = candidates_of(recalled, spec.depths, slice(0, MAX_QUERIES))
        matrices.append(space.matrix(encoded, slice(0, MAX_QUERIES), candidates))
        items.append(candidates.items)
        sizes.append(np.diff(candidates.offsets))
        chosen.append(np.arange(span.start, span.stop))
    matrix, owners = np.concatenate(matrices), np.repeat(np.arange(sum(map(len, sizes))), np.concatenate(sizes))
    moments = np.concatenate(chosen)
    rows = np.concatenate([np.arange(queries.offsets[m], queries.offsets[m + 1]) for m in moments])
    targets = bundle.items.ids.lookup([queries.targets[row] for row in rows], len(rows))
    offsets = np.concatenate([[0], np.cumsum(np.diff(queries.offsets)[moments])])
    session, all_items = open_session(bundle.graphs[RANKER_GRAPH]), np.concatenate(items)

    def ndcg(features: np.ndarray) -> float:
        scores = session.run(None, {"features": features})[0][:, 0]
        order = np.lexsort((-scores, owners))
        rank = np.arange(len(order)) - np.searchsorted(owners, owners)
        top = rank < LENGTH
        listed = np.zeros((len(moments), LENGTH), dtype=np.int64)
        listed[owners[top], rank[top]] = all_items[order[top]]
        return float(np.nanmean(metrics.ranking(listed, targets, offsets, LENGTH)["NDCG"]))

    whole, random = ndcg(matrix), np.random.default_rng(0)
    head = f"NDCG@10 {whole:.4f} on {len(moments):,} moments, {len(matrix):,} candidates, {len(space.names)} features"
    sys.stdout.write(head + "\n")
    losses = {}
    for column, name in enumerate(space.names):
        kept = matrix[:, column].copy()
        matrix[:, column] = random.permutation(kept)
        losses[name] = whole - ndcg(matrix)
        matrix[:, column] = kept
    for name, loss in sorted(losses.items(), key=lambda entry: -entry[1]):
        sys.stdout.write(f"{loss:+.4f}  {name}\n")


if __name__ == "__main__":
    main()
