"""Learning curves of networks on ML-1M, from runs with a clock of CPU seconds.

    python benchmarks/learning_curves.py --run sasrec gru4rec      # measures, one thread each (minutes)
    python benchmarks/learning_curves.py                           # draws docs/img/learning-curves.png from the results

A curve is NDCG@10 on the validation moments of 1,024 users against CPU seconds of training, looks excluded. Co-visitation on
the same moments is a flat line. The results are ``benchmarks/results/learning-*.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from provenance import revision
from quality import PROJECTS, RESULTS, recloop
from quality_data import DATA

from recloop.data.prepare import load
from recloop.features.state_history import StateHistory
from recloop.models.base import load_model
from recloop.pipeline.model_fitting import base_manifest, build_tables, rows_before_cut, validation_arrays
from recloop.project import open_project
from recloop.training import trainer, validation
from recloop.training.baselines import ModelValidation, draft_bundle, fit_counts

PICTURE: Final = Path(__file__).resolve().parents[1] / "docs" / "img" / "learning-curves.png"
DATA_SET: Final = "ml-1m"
SECONDS: Final = 200


@dataclass(frozen=True)
class Curve:
    """A network with its settings, and how its curve is drawn."""

    model: str
    settings: tuple[str, ...]
    label: str
    color: str
    marker: str


CURVES: Final = {
    "sasrec": Curve("sasrec", (), "SASRec, 50 items, width 64", "#1f6f54", "o"),
    "gru4rec": Curve(
        "gru4rec",
        ("features.dim=96", "model.hidden=256", "features.max_history=200"),
        "GRU4Rec, 200 items, width 96",
        "#3b6ea5",
        "^",
    ),
}


def run(name: str) -> None:
    """Train one network for `SECONDS` of CPU time and write its looks."""
    curve = CURVES[name]
    folder = PROJECTS / DATA_SET
    if not (folder / "recloop.toml").exists():
        DATA[DATA_SET].write(folder)
    if not (folder / "data" / "manifest.json").exists():
        recloop(folder, "prepare")
    settings = ("train.schedule=cosine", "train.patience=100", f"train.time_budget={SECONDS}s", *curve.settings)
    result: dict[str, Any] = {
        "command": f"python benchmarks/learning_curves.py --run {name}",
        "commit": revision(),
        "data": DATA_SET,
        "model": curve.model,
        "settings": [*settings],
        **train(folder, curve.model, settings),
    }
    file = RESULTS / f"learning-{DATA_SET}-{name}.json"
    file.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", "utf-8")


def train(folder: Path, model: str, settings: tuple[str, ...]) -> dict[str, Any]:
    """Return tokens and looks of a training run, whose clock counts CPU seconds, and NDCG@10 of Co-visitation."""
    validation.time = SimpleNamespace(monotonic=time.process_time)  # other programs use the machine
    project = open_project(folder, [f"model.name={model}", *settings])
    config = project.config
    data = load(project)
    tables = build_tables(project, data)
    arrays = validation_arrays(project, tables, data)
    with tempfile.TemporaryDirectory() as run_folder:
        network = load_model(model, config.model.options)
        budget = config.train.time_budget_seconds
        _, callback = trainer.train(network, arrays, config, Path(run_folder), budget, quiet=True)
    looks = [{"seconds": look.seconds, "step": look.step, "NDCG@10": look.ndcg} for look in callback.looks]
    counts, scorers = fit_counts(arrays, tables)
    rows = rows_before_cut(data)
    manifest = base_manifest(config, tables, data.manifest.fingerprint, rows, 0)
    draft = draft_bundle(config, tables, arrays, counts, scorers, manifest)
    past = StateHistory(rows, data.users)
    flat = ModelValidation(draft, config, arrays, tables, past).ndcg("covisitation", {})
    return {"looks": looks, "tokens": callback.tokens, "stopped": callback.stopped, "covisitation": flat}


def runs(results: Path) -> dict[str, dict[str, Any]]:
    """Result of each measured network."""
    files = {name: results / f"learning-{DATA_SET}-{name}.json" for name in CURVES}
    return {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.exists()}


def picture(results: Path) -> Figure:
    """Draw all curves and the flat line of Co-visitation."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes: Axes = figure.subplots()
    found = runs(results)
    for name, result in found.items():
        curve = CURVES[name]
        points = [(look["seconds"], look["NDCG@10"]) for look in result["looks"]]
        axes.plot(*zip(*points, strict=True), marker=curve.marker, color=curve.color, label=curve.label)
    if found:
        flat = next(iter(found.values()))["covisitation"]
        axes.axhline(flat, color="#c0562b", linestyle="--", label="Co-visitation (counts)")
    axes.set_title("MovieLens-1M, leave-one-out: validation NDCG@10 by training time", fontsize=10, loc="left")
    axes.set_xlabel("CPU seconds of training, one thread")
    axes.set_ylabel("NDCG@10, 1,024 validation users")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def main() -> None:
    """Measure the named networks, or draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", choices=CURVES, default=[])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    for name in options.run:
        run(name)
    picture(options.results).savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
