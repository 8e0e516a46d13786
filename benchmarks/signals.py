"""Measure the value of skips, dwells and dislikes on a simulated world.

    .venv/bin/python benchmarks/signals.py          # about five minutes on 2 cores; writes benchmarks/results/signals.json

Fixed before the first run: the world is ``BrowsingSimulator(seed=0)`` with its defaults (400 users, 300 items, 90 days),
the seed of training is 0, and the network is SASRec with the settings of the world's recloop.toml and no effective time
budget. The rows differ only in ``[events]``: clicks and purchases; then with skips, with long dwells, with dislikes; then
with all three. Models learn rows before the cut and are judged at the cut by the truth, over all users with a click or a
purchase before it:

- true NDCG@10 of the network's list and of the served one: an item's gain is `BrowsingSimulator.enjoyment`, ideal over
  the items on sale;
- the median rank, in the network's unfiltered order of all items, of the items that a user disliked explicitly, and of the
  tenth of the items on sale with the lowest truth;
- the share of such items in the served top 10.

Intervals are by 2,000 resamples of users; differences to the first row are paired.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from recloop import loop
from recloop.bundle import Bundle
from recloop.data.prepare import load
from recloop.features.state_history import StateHistory
from recloop.project import open_project
from recloop.recommend.catalog import Catalog
from recloop.recommend.recommender import Recommender
from recloop.records import EVENT_TYPE, ITEM_ID, SEQ, STAMP, USER_ID, Query
from recloop.simulation.browsing import BrowsingSimulator

RESULT: Final = Path(__file__).resolve().parent / "results" / "signals.json"
SEED: Final = 0
K: Final = 10
WORST: Final = 0.1  # share of the items on sale that a user likes least by the truth
BASE: Final = {"purchase": 5.0, "click": 1.0}
SKIP: Final = {"skip": -0.5}
DISLIKE: Final = {"dislike": -1.0}
SILENT: Final = ["impression", "skip", "dislike", "dwell"]
ROWS: Final[dict[str, tuple[dict[str, float], set[str]]]] = {
    "clicks, purchases": (BASE, set()),
    "+ skips": (BASE | SKIP, {"skip"}),
    "+ dwells": (BASE, {"dwell"}),
    "+ dislikes": (BASE | DISLIKE, {"dislike"}),
    "+ all three": (BASE | SKIP | DISLIKE, {"skip", "dwell", "dislike"}),
}


def main() -> None:
    """Run every row, write the result file and print the table."""
    world = BrowsingSimulator(seed=SEED)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (weights, heard)) in enumerate(ROWS.items()):
            started = time.monotonic()
            root = world.write(Path(folder) / str(number))
            neutral = [kind for kind in SILENT if kind not in heard]
            sets = [
                f"events.weights={_toml(weights)}", f"events.neutral={json.dumps(neutral)}",
                f"train.seed={SEED}", 'train.time_budget="2h"',
            ]  # fmt: skip
            rows[name] = learned(world, root, sets)
            rows[name]["seconds"] = round(time.monotonic() - started, 1)
            sys.stderr.write(f"{name}: {rows[name]['seconds']} s\n")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    base = next(iter(rows))
    people = {name: row.pop("people") for name, row in rows.items()}
    for name, row in rows.items():
        for measure, own in people[name].items():
            row[measure] = interval(own)
            if name != base:
                row[f"{measure}, difference"] = interval(own - people[base][measure])
    tree = {
        "command": ".venv/bin/python benchmarks/signals.py", "commit": commit, "world": "Browsing(seed=0)",
        "seed": SEED, "rows": rows,
    }  # fmt: skip
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(tree, indent=1) + "\n")
    sys.stdout.write(table(rows) + "\n")


def learned(world: BrowsingSimulator, root: Path, sets: list[str]) -> dict[str, Any]:
    """Run one row: a first run without its release, then the evaluation by user."""
    project = open_project(root, sets)
    loop.collect(project)
    trained = loop.train(project)
    data = load(project)
    before = pl.concat([data.train, data.valid])
    cut = data.manifest.cut
    acted = before.filter(pl.col(EVENT_TYPE).is_in(["click", "purchase"]))
    users = acted[USER_ID].unique().sort().to_list()
    recommender = Recommender(trained.bundle, Catalog.from_frames([data.items]))
    states = StateHistory(before, data.users).states(
        users, [int(before[SEQ].max() or 0)] * len(users), [cut] * len(users)
    )
    queries = [Query(user_id=user, now=cut, n=K) for user in users]
    served = [answer.items for answer in recommender.recommend(states, queries, with_inputs=False)]
    encoded = recommender.encode(states, [cut] * len(users))
    owners, vectors = recommender.scorers["model"].users(encoded)  # type: ignore[attr-defined]
    assert len(owners) == len(users)
    scores = vectors @ trained.bundle.arrays["item_vectors"][1:].T  # (U, N)
    told = before.filter(pl.col(EVENT_TYPE) == "dislike").filter(pl.col(STAMP) < cut)
    disliked = dict(told.group_by(USER_ID).agg(pl.col(ITEM_ID).unique()).iter_rows())
    found = judged(world, trained.bundle, users, served, scores, disliked, cut)
    training = trained.bundle.manifest.train
    return {**found, "epochs": training.epochs, "stopped": training.stopped}


def judged(
    world: BrowsingSimulator, bundle: Bundle, users: list[str], served: list[list[str]], scores: np.ndarray,
    disliked: dict[str, list[str]], cut: int,
) -> dict[str, Any]:  # fmt: skip
    """Return numbers per user under ``people``, and two medians over all (user, item)."""
    table = bundle.items.ids.ids
    place = {item: ix for ix, item in enumerate(world.item_ids)}
    on_sale = world.on_sale(cut)
    own: dict[str, list[float]] = {name: [] for name in MEASURES}
    told_ranks: list[int] = []
    worst_ranks: list[int] = []
    for u, user in enumerate(users):
        joy = world.enjoyment(user, cut)
        ideal = np.sort(np.where(on_sale, joy, 0.0))[::-1][:K]
        order = np.argsort(-scores[u], kind="stable")
        top = [table[ix] for ix in order[:K]]
        least = np.flatnonzero(on_sale)[np.argsort(world.utility(user, cut)[on_sale])]
        worst = {world.item_ids[ix] for ix in least[: round(WORST * len(least))]}
        told = set(disliked.get(user, ()))
        rank = {table[ix]: n for n, ix in enumerate(order.tolist(), 1)}
        told_ranks += [rank[item] for item in told if item in rank]
        worst_ranks += [rank[item] for item in worst if item in rank]
        own["true NDCG@10, network"].append(_gain(joy, place, top) / _gain_of(ideal))
        own["true NDCG@10, served"].append(_gain(joy, place, served[u]) / _gain_of(ideal))
        own["disliked in network's top 10"].append(sum(item in told for item in top) / K if told else np.nan)
        own["disliked in served top 10"].append(sum(item in told for item in served[u]) / K if told else np.nan)
        own["worst tenth in network's top 10"].append(sum(item in worst for item in top) / K)
        own["worst tenth in served top 10"].append(sum(item in worst for item in served[u]) / K)
    return {
        "people": {name: np.array(values) for name, values in own.items()},
        "users": len(users), "items": len(table), "disliked pairs": len(told_ranks),
        "median rank of disliked": float(np.median(told_ranks)),
        "median rank of worst tenth": float(np.median(worst_ranks)),
    }  # fmt: skip


MEASURES: Final = (
    "true NDCG@10, network", "true NDCG@10, served", "disliked in network's top 10", "disliked in served top 10",
    "worst tenth in network's top 10", "worst tenth in served top 10",
)  # fmt: skip


def _gain(joy: np.ndarray, place: dict[str, int], items: list[str]) -> float:
    return _gain_of(np.array([joy[place[item]] for item in items]))


def _gain_of(gains: np.ndarray) -> float:
    return float((gains / np.log2(np.arange(len(gains)) + 2)).sum())


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean over users and its 95 % CI."""
    known = values[~np.isnan(values)]
    draws = np.random.default_rng(0).integers(0, len(known), (2000, len(known)))
    low, high = np.quantile(known[draws].mean(axis=1), [0.025, 0.975])
    return {"value": round(float(known.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Format the result as Markdown."""
    names = [*MEASURES, "median rank of disliked", "median rank of worst tenth"]
    lines = ["| learned from | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for name, row in rows.items():
        cells = [f"{row[m]['value']:.4f}" if isinstance(row[m], dict) else f"{row[m]:.0f}" for m in names]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _toml(weights: dict[str, float]) -> str:
    return "{" + ", ".join(f"{name} = {weight}" for name, weight in weights.items()) + "}"


if __name__ == "__main__":
    main()
