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
    "rectools": Curve(
        "sasrec",
        ("length=50", "width=64", "blocks=2", "heads=2", "dropout=0.2", "batch=128", "loss=softmax"),
        "RecTools SASRec, 50 items, width 64",
        "#b08a2e",
        "D",
        seconds=2_400,
        script="rectools_sasrec.py",
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


def ratios(found: dict[str, Result]) -> Iterator[str]:
    """Yield the CPU seconds of each other library as a multiple of those of our SASRec.

    A quality that the library did not reach gives a lower bound, from its last look.
    """
    if "sasrec" not in found:
        return
    ours = found["sasrec"]
    for name, result in found.items():
        if not CURVES[name].script:
            continue
        parts = []
        for quality in QUALITIES:
            own, other = seconds_to(ours, quality), seconds_to(result, quality)
            if own is not None and other is not None:
                parts.append(f"{other / own:.1f} to {quality}")
            elif own is not None:
                parts.append(
                    f"more than {result['looks'][-1]['seconds'] / own:.1f} to {quality}, which it did not reach"
                )
        yield f"CPU seconds of {CURVES[name].label} divided by those of {CURVES['sasrec'].label}: {'; '.join(parts)}.\n"


def table(results: Path) -> Iterator[str]:
    """Yield a row of speed for each measured network, and the ratios."""
    found = runs(results)
    if not found:
        return
    yield f"| network | CPU s | tokens/s | best | {' | '.join(f's to {quality}' for quality in QUALITIES)} | stopped | source |"
    yield "|---" * (len(QUALITIES) + 6) + "|"
    for name, result in found.items():
        last = result["looks"][-1]["seconds"]
        best = max(look["NDCG@10"] for look in result["looks"])
        reached = [seconds_to(result, quality) for quality in QUALITIES]
        cells = [f"{last:,.0f}", f"{result['tokens'] / last:,.0f}", f"{best:.4f}"]
        cells += ["not reached" if seconds is None else f"{seconds:,.0f}" for seconds in reached]
        yield f"| {CURVES[name].label} | {' | '.join(cells)} | {result['stopped']} | {result['commit'][:7]} |"
    yield ""
    yield from ratios(found)
