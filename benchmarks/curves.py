"""Learning curves of the committed results: their names, looks, and seconds to a quality."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
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
    "two_tower": Curve(
        "two_tower",
        ("model.user=sequence", "features.dim=96", "features.max_history=200"),
        "recloop Two-Tower, 200 items, width 96",
        "#d1478b",
        "v",
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
Runs = Sequence[Result]
"""Results of one network, a seed each."""


def file_of(results: Path, name: str, seed: int | str) -> Path:
    """Return the path of a result; with the seed ``*`` a pattern of all."""
    return results / f"learning-{DATA_SET}-{name}-seed{seed}.json"


def runs(results: Path) -> dict[str, Runs]:
    """Results of each measured network by seed."""
    files = {name: sorted(results.glob(file_of(results, name, "*").name)) for name in CURVES}
    return {name: [json.loads(file.read_text("utf-8")) for file in found] for name, found in files.items() if found}


def seconds_to(seeds: Runs, quality: float) -> float | None:
    """CPU seconds of training at the first look with this NDCG@10, mean of seeds; None unless all reach it."""
    reached = [next((look["seconds"] for look in one["looks"] if look["NDCG@10"] >= quality), None) for one in seeds]
    return None if None in reached else fmean(second for second in reached if second is not None)


def ratios(found: Mapping[str, Runs]) -> Iterator[str]:
    """Yield the CPU seconds of each other library as a multiple of those of our networks.

    A quality that a seed of the library did not reach gives a lower bound, from the earliest last look.
    """
    own = [name for name in found if not CURVES[name].script]
    for name, other in found.items():
        if not CURVES[name].script:
            continue
        for ours in own:
            parts = []
            for quality in QUALITIES:
                first, second = seconds_to(found[ours], quality), seconds_to(other, quality)
                if first is not None and second is not None:
                    parts.append(f"{second / first:.1f} to {quality}")
                elif first is not None:
                    end = min(one["looks"][-1]["seconds"] for one in other)
                    parts.append(f"more than {end / first:.1f} to {quality}, which it did not reach")
            if parts:
                yield f"- {CURVES[name].label}, divided by {CURVES[ours].label}: {'; '.join(parts)}."


def table(results: Path) -> Iterator[str]:
    """Yield a row of speed for each measured network, means of seeds, and the ratios."""
    found = runs(results)
    if not found:
        return
    heads = " | ".join(f"s to {quality}" for quality in QUALITIES)
    yield f"| network | seeds | CPU s | tokens/s | best | {heads} | stopped | source |"
    yield "|---" * (len(QUALITIES) + 7) + "|"
    for name, seeds in found.items():
        last = [one["looks"][-1]["seconds"] for one in seeds]
        tokens = fmean(one["tokens"] / seconds for one, seconds in zip(seeds, last, strict=True))
        best = fmean(max(look["NDCG@10"] for look in one["looks"]) for one in seeds)
        reached = [seconds_to(seeds, quality) for quality in QUALITIES]
        cells = [str(len(seeds)), f"{fmean(last):,.0f}", f"{tokens:,.0f}", f"{best:.4f}"]
        cells += ["not reached" if seconds is None else f"{seconds:,.0f}" for seconds in reached]
        cells += [
            ", ".join(dict.fromkeys(one[key][:length] for one in seeds))
            for key, length in (("stopped", 99), ("commit", 7))
        ]
        yield f"| {CURVES[name].label} | {' | '.join(cells)} |"
    sentences = [*ratios(found)]
    if sentences:
        yield from ("", "CPU seconds of another library to a quality, in multiples of ours:", "", *sentences)
    yield ""
