"""Train and evaluate the models of each data set and write docs/benchmarks.md.

    .venv/bin/python benchmarks/quality.py                                   # all without a result file
    .venv/bin/python benchmarks/quality.py --data ml-1m --model sasrec       # one model
    .venv/bin/python benchmarks/quality.py --model gru4rec --epochs 3 --budget 1h --again  # bounded by epochs, repeated
    .venv/bin/python benchmarks/quality.py --seed 1 --data ml-1m             # another seed; rows become means of seeds
    .venv/bin/python benchmarks/quality.py --page                            # only the page of existing results

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
from pathlib import Path
from typing import Final

from provenance import revision
from quality_data import DATA, VARIANTS
from quality_page import write_page

HERE: Final = Path(__file__).resolve().parent
RESULTS: Final = HERE / "results"
PROJECTS: Final = HERE / "projects"
TRAIN: Final = ("epochs", "step", "steps_per_epoch", "stopped", "seconds", "look_seconds", "NDCG@10")


def main() -> None:
    """Run what is missing, then print the table."""
    wanted = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    wanted.add_argument("--data", choices=DATA, action="append")
    wanted.add_argument("--model", action="append", help="models or their variants (default: those of the data set)")
    wanted.add_argument("--budget", default="5m", help="train.time_budget of each model")
    wanted.add_argument("--epochs", type=int, default=0, help="train.epochs of each model; 0: as configured")
    wanted.add_argument("--seed", type=int, default=0)
    wanted.add_argument("--again", action="store_true", help="repeat existing results")
    wanted.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of recloop.toml")
    wanted.add_argument("--page", action="store_true", help="write the page only")
    asked = wanted.parse_args()
    for data in () if asked.page else asked.data or DATA:
        for model in asked.model or DATA[data].models:
            file = RESULTS / f"quality-{data}-{model}-seed{asked.seed}.json"
            if asked.again or not file.exists():
                settings = [*DATA[data].settings.get(model, ()), *asked.set]
                make(data, model, asked.budget, asked.epochs, asked.seed, settings, file)
    write_page(RESULTS)


def make(data: str, name: str, budget: str, epochs: int, seed: int, settings: list[str], file: Path) -> None:
    """Run one model or variant on one data set.

    Each command runs in a separate process; the result file is written atomically.
    """
    folder = prepared(data)
    model, variant = VARIANTS.get(name, (name, ()))
    sets = [f"model.name={model}", f"train.time_budget={budget}", f"train.seed={seed}"]
    sets += [*([f"train.epochs={epochs}"] if epochs else []), *variant, *settings]
    words = ["train", model, "--json", *(word for one in sets for word in ("--set", one))]
    commit = revision()
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
        "name": name,
        "data": data,
        "seconds": round(seconds, 1),
        "train": {key: network.get(key) for key in TRAIN},
        "chosen": run["chosen"],
        "protocol": table["protocol"],
        "rows": table["rows"],
        "lengths": table["lengths"],
    }
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", "utf-8")
    beside.replace(file)


def prepared(data: str) -> Path:
    """Return the folder of a data set's project; write and prepare it unless it exists."""
    folder = PROJECTS / data
    if not (folder / "recloop.toml").exists():
        DATA[data].write(folder)
    if not (folder / "data" / "manifest.json").exists():
        recloop(folder, "prepare")
    return folder


def recloop(folder: Path, *words: str) -> str:
    """Run a command and return its stdout; its stderr is passed through."""
    done = subprocess.run(
        [sys.executable, "-m", "recloop", "-C", str(folder), *words], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


if __name__ == "__main__":
    main()
