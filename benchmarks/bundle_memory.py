"""Measure the memory of a resident bundle of generated items: 64 numbers a vector, 20 neighbours, four attributes.

    .venv/bin/python benchmarks/bundle_memory.py                  # 1,000,000 items; writes benchmarks/results/bundle-memory.json
    .venv/bin/python benchmarks/bundle_memory.py --items 100000 --result /tmp/memory.json

A bundle is fitted on a small log and gets a table of generated items with vectors (source ``mf``) and neighbours. A new
process loads it, answers one request, and reads its own memory: ``private`` belongs to the process alone, ``mapped`` are
pages of files that other processes share. Its memory after the same steps with a bundle of `FEW_ITEMS` items is subtracted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from provenance import provenance
from quality import RESULTS
from update_cost import shop

from recloop import bundle as bundles
from recloop import loop
from recloop.bundle import Bundle, ItemTable, UserTable
from recloop.features.state import StateBatch
from recloop.features.vocabulary import Vocabulary
from recloop.policy import ScorerSpec
from recloop.project import open_project
from recloop.recommend.catalog import Catalog
from recloop.recommend.recommender import Recommender
from recloop.records import Query

ROWS: Final = 5_000
DIM: Final = 64
NEIGHBOURS: Final = 20
FEW_ITEMS: Final = 100
SETTINGS: Final = ('model.name="covisitation"', 'ranker.model="off"', 'baselines.half_life="none"')
MIB: Final = 1 << 20


def generated(small: Bundle, n_items: int) -> Bundle:
    """Bundle with the settings of a small one and generated items."""
    random = np.random.default_rng(0)
    ids = [f"item-{number:07d}" for number in range(n_items)]
    attributes = [
        {"kind": f"k{n % 20}", "name": f"item {n}", "price": n % 500 / 10, "stock": n % 7} for n in range(n_items)
    ]
    neighbours = random.integers(1, n_items + 1, n_items * NEIGHBOURS).astype(np.int32)
    arrays = {
        "popular": random.permutation(n_items).astype(np.int32) + 1,
        "neighbours.indptr": np.append(0, np.arange(n_items + 1) * NEIGHBOURS).astype(np.int32),
        "neighbours.ids": neighbours,
        "neighbours.weights": random.random(len(neighbours)).astype(np.float32),
        "mf.item_vectors": random.normal(size=(n_items + 1, DIM)).astype(np.float32),
        "mf.user_vectors": random.normal(size=(2, DIM)).astype(np.float32),
    }
    scorers = {source: small.scorers[source] for source in ("popular", "history", "neighbours")}
    scorers["mf"] = ScorerSpec("mf", "mf", "vectors", config={"l2": 1.0, "unseen": 0.1})
    placements = {
        name: replace(one, weights={"mf": 1.0, "neighbours": 0.5, "popular": 0.1})
        for name, one in small.policy.placements.items()
    }
    zeros = np.zeros(n_items, dtype=np.int64)
    return replace(
        small,
        manifest=replace(small.manifest, scorers=scorers),
        policy=replace(small.policy, placements=placements),
        items=ItemTable(Vocabulary(ids), zeros, np.zeros(n_items, dtype=bool), zeros, attributes),
        users=UserTable(Vocabulary(["u1"]), np.ones(1, dtype=np.int64)),
        arrays=arrays,
        golden=[],
    )


def written(folder: Path, sizes: Sequence[int]) -> list[Path]:
    """Write a generated bundle of each number of items; return their folders."""
    shop(folder / "shop", ROWS, 0.0)
    small = loop.first_run(open_project(folder / "shop", SETTINGS)).bundle
    target = folder / "bundles"
    target.mkdir()
    return [target / bundles.write(generated(small, n_items), target, datetime.now(UTC)).id for n_items in sizes]


def resident() -> dict[str, float]:
    """Memory of this process in MiB: private pages, and pages of files."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile"))}
    return {"private": kib["RssAnon"] / 1024, "mapped": kib["RssFile"] / 1024}


def answered(path: Path) -> Recommender:
    """Load a bundle and answer one request."""
    recommender = Recommender(bundles.load(path), Catalog())
    slots = recommender.recommend(StateBatch.empty(["u1"]), [Query(user_id="u1", now=0)])[0].slots
    assert len(slots) == recommender.placement("home").n
    return recommender


def measure(few: Path, path: Path) -> dict[str, float]:
    """Return the memory in MiB of a bundle beside that of one of few items."""
    small = answered(few)  # imports, and the threads of the libraries
    before = resident()
    loaded_bundle = bundles.load(path)
    loaded = resident()
    del loaded_bundle
    large = answered(path)
    after = resident()
    assert small is not large
    file_mib = (path / "serve.safetensors").stat().st_size / MIB
    return {
        **{f"loaded_{name}": round(loaded[name] - before[name], 1) for name in before},
        **{f"answered_{name}": round(after[name] - before[name], 1) for name in before},
        "array_file": round(file_mib, 1),
    }


def main() -> None:
    """Write the bundle, measure it in a new process and write the result file."""
    wanted = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    wanted.add_argument("--items", type=int, default=1_000_000)
    wanted.add_argument("--result", type=Path, default=RESULTS / "bundle-memory.json")
    wanted.add_argument("--measure", type=Path, nargs=2, help="only measure these bundles: few items, all")
    asked = wanted.parse_args()
    if asked.measure:
        sys.stdout.write(json.dumps(measure(*asked.measure)))
        return
    with tempfile.TemporaryDirectory(prefix="bundle-memory-") as name:
        words = [sys.executable, __file__, "--measure", *map(str, written(Path(name), (FEW_ITEMS, asked.items)))]
        mib = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    tree = {
        **provenance(),
        "items": asked.items, "dim": DIM, "neighbours": NEIGHBOURS, "mib": mib,
    }  # fmt: skip
    asked.result.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(tree, indent=1) + "\n")


if __name__ == "__main__":
    main()
