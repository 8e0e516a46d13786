"""Learning curves of the committed results: their names, looks, and seconds to a quality."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

DATA_SET: Final = "ml-1m"
QUALITIES: Final = (0.12, 0.15, 0.17, 0.182)
"""NDCG@10 whose seconds are in the table."""


@dataclass(frozen=True)
class Curve:
    """A network with its settings, and how its curve is drawn.

    Attributes:
        settings: Keys of recloop.toml, or settings of the other library. script: Program in ``peers/`` that trains another library.
        seconds: CPU seconds of training.
    """

    model: str
    settings: tuple[str, ...]
    label: str
    color: str
    marker: str
    seconds: int = 200
    script: str = ""


CURVES: Final = {
    "sasrec": Curve("sasrec", (), "recloop SASRec, 50 items, width 64", "#1f6f54", "o"),
    "gru4rec": Curve(
        "gru4rec",
        ("features.dim=96", "model.hidden=256", "features.max_history=200"),
        "recloop GRU4Rec, 200 items, width 96",
        "#3b6ea5",
        "^",
    ),
    "replay": Curve(
        "sasrec",
        ("length=50", "width=64", "blocks=2", "heads=2", "dropout=0.2", "batch=128", "loss=cross-entropy"),
        "RePlay SASRec, 50 items, width 64",
        "#8a5a9e",
        "s",
        seconds=2_400,
        script="replay_sasrec.py",
    ),
}
Result = dict[str, Any]


def file_of(results: Path, name: str) -> Path:
    """Return the path of a curve's result."""
    return results / f"learning-{DATA_SET}-{name}.json"


def runs(results: Path) -> dict[str, Result]:
    """Result of each measured network."""
    files = {name: file_of(results, name) for name in CURVES}
    return {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.exists()}


def seconds_to(result: Result, quality: float) -> float | None:
    """CPU seconds of training at the first look with this NDCG@10; None if no look has it."""
    return next((look["seconds"] for look in result["looks"] if look["NDCG@10"] >= quality), None)


def table(results: Path) -> Iterator[str]:
    """Yield a row of speed for each measured network."""
    found = runs(results)
    if not found:
        return
    yield "| network | CPU s | tokens/s | best | " + " | ".join(f"s to {quality}" for quality in QUALITIES) + " |"
    yield "|---" * (len(QUALITIES) + 4) + "|"
    for name, result in found.items():
        last = result["looks"][-1]["seconds"]
        best = max(look["NDCG@10"] for look in result["looks"])
        reached = [seconds_to(result, quality) for quality in QUALITIES]
        cells = ["not reached" if seconds is None else f"{seconds:,.0f}" for seconds in reached]
        yield f"| {CURVES[name].label} | {last:,.0f} | {result['tokens'] / last:,.0f} | {best:.4f} | {' | '.join(cells)} |"
    yield ""
