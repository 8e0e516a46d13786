"""Train and evaluate every model on Complete Journey and on ML-1M leave-one-out.

    .venv/bin/python benchmarks/quality.py                                   # all without a result file
    .venv/bin/python benchmarks/quality.py --data ml-1m --model sasrec       # one model
    .venv/bin/python benchmarks/quality.py --model gru4rec --epochs 3 --budget 1h --again  # bounded by epochs, repeated
    .venv/bin/python benchmarks/quality.py --table                           # only the table of existing results

Each model runs in one process, and an interrupted benchmark can be resumed. A result file holds the command, the commit,
the fingerprint of the data, the seed, the rows with their intervals, and seconds. An existing one is not repeated.
``make bench-quality`` runs the first line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import polars as pl

from recloop.demo.grocery_days import DAYS
from recloop.demo.grocery_project import write_project

HERE: Final = Path(__file__).resolve().parent
RESULTS: Final = HERE / "results"
PROJECTS: Final = HERE / "projects"
SHARED: Final = HERE.parents[1] / "shared" / "data"
TRAIN: Final = ("epochs", "step", "steps_per_epoch", "stopped", "seconds", "look_seconds", "NDCG@10")
MODELS: Final = ("covisitation", "mf", "gru4rec", "sasrec", "two_tower", "neumf")
ML_1M: Final = """\
# MovieLens-1M as in the SASRec papers: 5-core, in file order; the last row of a user is the test.
[data]
events = "log.parquet"
[clean]
burst = "off"
[split]
protocol = "leave-one-out"
ties = "row"
filter_seen = true
[features]
max_history = 50
context = []
[train]
lr = 2e-3
[evaluate]
baselines = ["popular", "covisitation"]
"""


def ml_1m(folder: Path) -> None:
    """Write the papers' file as a log with its order as seconds."""
    folder.mkdir(parents=True)
    log = pl.read_parquet(SHARED / "sasrec-ml-1m.parquet")
    rows = log.select("user_id", "item_id", timestamp=1_000_000_000 + pl.col("pos"))
    rows.write_parquet(folder / "log.parquet")
    (folder / "recloop.toml").write_text(ML_1M, "utf-8")


def complete_journey(folder: Path) -> None:
    """Write the project of the demo: the year without its last days."""
    write_project(folder, DAYS)


DATA: Final[dict[str, Callable[[Path], None]]] = {"ml-1m": ml_1m, "complete-journey": complete_journey}


def main() -> None:
    """Run what is missing, then print the table."""
    wanted = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    wanted.add_argument("--data", choices=DATA, action="append")
    wanted.add_argument("--model", choices=MODELS, action="append")
    wanted.add_argument("--budget", default="5m", help="train.time_budget of each model")
    wanted.add_argument("--epochs", type=int, default=0, help="train.epochs of each model; 0: as configured")
    wanted.add_argument("--seed", type=int, default=0)
    wanted.add_argument("--again", action="store_true", help="repeat existing results")
    wanted.add_argument("--table", action="store_true", help="print the table only")
    asked = wanted.parse_args()
    for data in asked.data or DATA:
        for model in asked.model or MODELS:
            file = RESULTS / f"quality-{data}-{model}-seed{asked.seed}.json"
            if not asked.table and (asked.again or not file.exists()):
                make(data, model, asked.budget, asked.epochs, asked.seed, file)
    sys.stdout.write("\n".join(table()) + "\n")


def make(data: str, model: str, budget: str, epochs: int, seed: int, file: Path) -> None:
    """Run one model on one data set.

    Each command runs in a separate process; the result file is written atomically.
    """
    folder = PROJECTS / data
    if not (folder / "recloop.toml").exists():
        DATA[data](folder)
    if not (folder / "data" / "manifest.json").exists():
        recloop(folder, "prepare")
    sets = [f"model.name={model}", f"train.time_budget={budget}", f"train.seed={seed}"]
    sets += [f"train.epochs={epochs}"] if epochs else []
    words = ["train", model, "--json", *(word for one in sets for word in ("--set", one))]
    commit = git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "src") else "")
    begin = time.monotonic()
    made = json.loads(recloop(folder, *words))
    seconds = time.monotonic() - begin
    table = json.loads((folder / "reports" / "evaluation.json").read_text("utf-8"))
    run = json.loads((folder / "runs" / made["run"] / "metrics.json").read_text("utf-8"))
    network = run["network"] or {}
    result = {
        "command": " ".join(["recloop", "-C", f"benchmarks/projects/{data}", *words]),
        "commit": commit,
        "fingerprint": table["protocol"]["fingerprint"],
        "seed": seed,
        "model": model,
        "data": data,
        "seconds": round(seconds, 1),
        "train": {key: network.get(key) for key in TRAIN},
        "chosen": run["chosen"],
        "protocol": table["protocol"],
        "rows": table["rows"],
    }
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", "utf-8")
    beside.replace(file)


def recloop(folder: Path, *words: str) -> str:
    """Run a command and return its stdout; its stderr is passed through."""
    done = subprocess.run(
        [sys.executable, "-m", "recloop", "-C", str(folder), *words], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def git(*words: str) -> str:
    """Return the output of git for this checkout."""
    done = subprocess.run(["git", *words], cwd=HERE.parent, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def table() -> Iterator[str]:
    """Yield one Markdown table per data set from all result files.

    Its rows are the model alone and the list as served with it.
    """
    found = [json.loads(file.read_text("utf-8")) for file in sorted(RESULTS.glob("quality-*.json"))]
    for data in dict.fromkeys(one["data"] for one in found):
        mine = [one for one in found if one["data"] == data]
        facts = mine[0]["protocol"]
        yield f"\n{data}: {facts['name']}, {facts['users']:,} users, {facts['items']:,} items, seed {facts['seed']}\n"
        yield "| row | HR@10 | Recall@10 | NDCG@10 | coverage | trained | trained s | all s | stopped |"
        yield "|---|---|---|---|---|---|---|---|---|"
        seen: set[str] = set()
        for one in mine:
            for row in one["rows"]:
                is_list = row["model"] in {"served", "fusion"}
                name = f"{row['model']} with {one['model']}" if is_list else row["model"]
                if name not in seen:
                    seen.add(name)
                    own = one["train"] if row["model"] == one["model"] else {}
                    yield line(name, row, own, one["seconds"] if own else None)


def line(name: str, row: dict[str, Any], train: dict[str, Any], seconds: float | None) -> str:
    """Format one row with intervals in brackets."""
    cells = [
        f"{row[key]['value']:.4f} [{row[key]['low']:.4f}, {row[key]['high']:.4f}]"
        for key in ("HR@10", "Recall@10", "NDCG@10")
    ]
    cells += [
        f"{row['coverage']:.3f}",
        steps_of(train),
        *(str(x or "") for x in (train.get("seconds"), seconds, train.get("stopped"))),
    ]
    return f"| {name} | " + " | ".join(cells) + " |"


def steps_of(train: dict[str, Any]) -> str:
    """Format the epochs and steps of a network's row.

    A result file without ``steps_per_epoch`` has no whole epochs.
    """
    if not train.get("step"):
        return ""
    per_epoch = train.get("steps_per_epoch")
    if not per_epoch:
        return f"{train['step']:,} steps"
    whole = train["step"] // per_epoch
    return (
        f"{train['step'] / per_epoch:.1f} epochs, {train['step']:,} steps"
        if whole
        else f"not trained: {train['step']:,} steps"
    )


if __name__ == "__main__":
    main()
