"""Learning curves of networks on ML-1M, from runs with a clock of CPU seconds.

    python benchmarks/learning_curves.py --run sasrec gru4rec      # measures, one thread each (minutes)
    python benchmarks/learning_curves.py --run replay --python PEER/bin/python  # another library in its environment
    python benchmarks/learning_curves.py --run sasrec --seed 1     # another seed; the table holds means of seeds
    python benchmarks/learning_curves.py                           # draws docs/img/learning-curves.png from the results

A curve is NDCG@10 on the validation moments of 1,024 users against CPU seconds of training, looks excluded. Co-visitation on
the same moments is a flat line. The results are ``benchmarks/results/learning-*.json``, one per seed. Programs in ``benchmarks/peers`` train
other libraries: they read the same training rows from a file, and our scorer judges the lists of their looks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
from curves import CURVES, DATA_SET, Curve, file_of, runs
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from provenance import revision
from quality import RESULTS, prepared
from validation_moments import ndcg, write_sequences

from recloop.config import Config
from recloop.data.prepare import PreparedData, load
from recloop.features.state_history import StateHistory
from recloop.files import replace_json
from recloop.models.base import TrainData, load_model
from recloop.pipeline.model_fitting import base_manifest, build_tables, rows_before_cut, validation_arrays
from recloop.project import open_project
from recloop.training import trainer, validation
from recloop.training.baselines import ModelValidation, draft_bundle, fit_counts
from recloop.training.dataset import ItemUserTables

PICTURE: Final = Path(__file__).resolve().parents[1] / "docs" / "img" / "learning-curves.png"
PEERS: Final = Path(__file__).resolve().parent / "peers"
LOOK_SECONDS: Final = 60
"""CPU seconds between the looks of another library."""
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Prepared:
    """Prepared data with the training arrays of a configuration."""

    config: Config
    data: PreparedData
    tables: ItemUserTables
    arrays: TrainData

    @classmethod
    def from_settings(cls, folder: Path, settings: tuple[str, ...]) -> Prepared:
        project = open_project(folder, settings)
        data = load(project)
        tables = build_tables(project, data)
        return cls(project.config, data, tables, validation_arrays(project, tables, data))

    def moments(self) -> validation.ValidationSet:
        """Return the validation moments that every look judges."""
        if self.arrays.held is None:
            raise ValueError("prepared data without validation moments; expected those of leave-one-out")
        history = self.config.features.max_history
        return validation.ValidationSet(self.arrays, self.arrays.held, history, self.config.split.filter_seen)

    def covisitation(self) -> float:
        """Return NDCG@10 of Co-visitation on the same moments."""
        counts, scorers = fit_counts(self.arrays, self.tables)
        rows = rows_before_cut(self.data)
        manifest = base_manifest(self.config, self.tables, self.data.manifest.fingerprint, rows, 0)
        draft = draft_bundle(self.config, self.tables, self.arrays, counts, scorers, manifest)
        past = StateHistory(rows, self.data.users)
        return ModelValidation(draft, self.config, self.arrays, self.tables, past).ndcg("covisitation", {})


def run(name: str, seconds: int, seed: int, python: Path | None, results: Path) -> None:
    """Train one network for these CPU seconds and write its looks."""
    curve = CURVES[name]
    result: dict[str, Any] = {
        "command": f"python benchmarks/learning_curves.py --run {name}"
        + (" --python PEER/bin/python" if curve.script else "")
        + (f" --seconds {seconds}" if seconds != curve.seconds else "")
        + (f" --seed {seed}" if seed else ""),
        "commit": revision(),
        "data": DATA_SET,
        "model": curve.model,
        "seed": seed,
    }
    file = file_of(results, name, seed)
    if not curve.script:
        budget = (f"train.time_budget={seconds}s", f"train.seed={seed}")
        settings = ("train.schedule=cosine", "train.patience=100", *budget, *curve.settings)
        replace_json(file, {**result, "settings": [*settings], **train(curve, settings)})
    elif python is None:
        raise SystemExit(f"--python: missing; expected the interpreter with {name}; fix: see {PEERS / curve.script}")
    else:
        result["settings"] = [*curve.settings, f"seconds={seconds}"]
        train_peer([str(python), str(PEERS / curve.script)], seconds, result, file)


def train(curve: Curve, settings: tuple[str, ...]) -> dict[str, Any]:
    """Return tokens and looks of a training run, whose clock counts CPU seconds, and NDCG@10 of Co-visitation."""
    validation.time = SimpleNamespace(monotonic=time.process_time)  # other programs use the machine
    ready = Prepared.from_settings(prepared(DATA_SET), (f"model.name={curve.model}", *settings))
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        network = load_model(curve.model, ready.config.model.options)
        budget = ready.config.train.time_budget_seconds
        _, callback = trainer.train(network, ready.arrays, ready.config, Path(folder), budget, quiet=True)
    return {
        "looks": [{"seconds": look.seconds, "step": look.step, "NDCG@10": look.ndcg} for look in callback.looks],
        "tokens": callback.tokens,
        "stopped": callback.stopped,
        "start_seconds": round(callback.started - began, 2),
        "covisitation": ready.covisitation(),
    }


def train_peer(program: list[str], seconds: int, result: dict[str, Any], file: Path) -> None:
    """Run a program of another library and write the result after each of its looks.

    It prints a JSON line with its versions, then one for each look: CPU seconds, step, tokens and the (Q, 10) lists.
    """
    ready = Prepared.from_settings(prepared(DATA_SET), ())
    moments = ready.moments()
    looks: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        sequences = Path(folder) / "sequences.npz"
        write_sequences(ready.arrays, moments, sequences)
        every = min(LOOK_SECONDS, seconds // 4)
        words = [*program, str(sequences), "--seconds", str(seconds), "--every", str(every)]
        words += ["--seed", str(result["seed"])]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, **ONE_THREAD}) as process:
            assert process.stdout is not None
            result |= {"versions": json.loads(process.stdout.readline()), "covisitation": ready.covisitation()}
            for line in process.stdout:
                look = json.loads(line)
                value = ndcg(np.array(look["lists"]), moments, ready.arrays.n_items)
                looks.append({"seconds": look["seconds"], "step": look["step"], "NDCG@10": value})
                result |= {"looks": looks, "tokens": look["tokens"], "start_seconds": look["start_seconds"]}
                replace_json(file, {**result, "stopped": "interrupted"})
    if process.returncode:
        raise SystemExit(f"{program[-1]}: exit {process.returncode}; expected 0; fix: read its messages above")
    replace_json(file, {**result, "stopped": "time_budget"})


def picture(results: Path) -> Figure:
    """Draw all curves and the flat line of Co-visitation."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes: Axes = figure.subplots()
    found = runs(results)
    for name, seeds in found.items():
        curve = CURVES[name]
        for number, one in enumerate(seeds):
            points = [(look["seconds"], look["NDCG@10"]) for look in one["looks"]]
            label = None if number else curve.label
            axes.plot(*zip(*points, strict=True), marker=curve.marker, markersize=3, color=curve.color, label=label)
    if found:
        flat = next(iter(found.values()))[0]["covisitation"]
        axes.axhline(flat, color="#c0562b", linestyle="--", label="Co-visitation (counts)")
    axes.set_title("MovieLens-1M, leave-one-out: validation NDCG@10 by training time", fontsize=10, loc="left")
    axes.set_xlabel("CPU seconds of training, one thread")
    axes.set_ylabel("NDCG@10, 1,024 validation users")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def main() -> None:
    """Measure the named networks, or draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", choices=CURVES, default=[])
    parser.add_argument("--seconds", type=int, default=0, help="CPU seconds of each run; 0: those of its curve")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--python", type=Path, help="interpreter of the other library's environment")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    for name in options.run:
        run(name, options.seconds or CURVES[name].seconds, options.seed, options.python, options.results)
    picture(options.results).savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
