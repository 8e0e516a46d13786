"""Detection of long texts and vectors among the columns of items and users files."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recloop import loop
from recloop.data.frames import frame_as_table
from recloop.files import JsonTree
from recloop.init.detect import init
from recloop.init.features import choose_fields
from recloop.project import open_project
from recloop.simulation.shop import SimulatedShop

RANDOM = np.random.default_rng(0)
WORDS = ["green", "tea", "from", "the", "hills", "with", "a", "soft", "lamp", "of", "paper", "for", "small", "rooms"]
TEXTS = [" ".join(RANDOM.choice(WORDS, int(RANDOM.integers(6, 12)))) for _ in range(60)]
VECTORS = RANDOM.normal(size=(60, 12)).round(4).tolist()
IDEOGRAMS = [f"{''.join(RANDOM.choice([*'来自山间的绿茶适合小房间纸灯柔光'], 24))}" for _ in range(60)]


def proposed(values: list[Any], with_texts: bool = True) -> JsonTree | None:
    rows = [{"id": f"i{n}", "about": value} for n, value in enumerate(values)]
    table = frame_as_table(pl.DataFrame({"id": [row["id"] for row in rows], "about": [""] * len(rows)}), "items.csv")
    return choose_fields((table, rows), "id", set(), with_texts).get("about")


@pytest.mark.parametrize("texts", [TEXTS, [*TEXTS[:30], *[None] * 30], [*TEXTS[:30], *TEXTS[:30]], IDEOGRAMS])
def test_long_texts_are_proposed_as_text(texts: list[Any]) -> None:
    field = proposed(texts)
    assert field is not None
    assert (field["kind"], field["dim"]) == ("text", 16)
    assert "words on average" in field["why"]


@pytest.mark.parametrize(
    "values",
    [
        [f"https://shop.example/item/{n}/a-lamp-of-paper-for-small-rooms" for n in range(60)],
        [f"lamp {n}" for n in range(60)],  # names
        [json.dumps([{"Label": text, "Confidence": 1.0, "Offsets": [n, 4, 5]}]) for n, text in enumerate(TEXTS)],
        [" ".join(f"{number:05d}" for number in RANDOM.integers(0, 99_999, 6)) for _ in range(60)],
        [None] * 58 + TEXTS[:2],
        [*TEXTS[:59], 7],
    ],
    ids=["links", "names", "json", "codes", "missing", "mixed"],
)
def test_links_names_codes_and_rare_values_are_not_texts(values: list[Any]) -> None:
    field = proposed(values)
    assert field is None or field["kind"] != "text"


def test_few_repeated_texts_are_a_category() -> None:
    field = proposed([TEXTS[n % 5] for n in range(60)])
    assert field is not None
    assert field["kind"] == "category"


def test_texts_of_users_are_not_proposed() -> None:
    assert proposed(TEXTS, with_texts=False) is None


@pytest.mark.parametrize(
    ("write", "separator"),
    [
        (lambda vector: vector, ""),
        (json.dumps, ""),
        (lambda vector: " ".join(map(str, vector)), ""),
        (lambda vector: ";".join(map(str, vector)), ";"),
        (lambda vector: ", ".join(map(str, vector)), ","),
        (lambda vector: "|".join(map(str, vector)), "|"),
    ],
    ids=["list", "json", "spaces", "semicolons", "commas", "bars"],
)
def test_vectors_are_proposed_with_their_separator(write: Any, separator: str) -> None:
    field = proposed([*map(write, VECTORS[:57]), write([0.1, 0.2]), None, None])
    assert field is not None
    assert (field["kind"], field["separator"]) == ("vector", separator)
    assert field["why"].startswith("12 numbers")


@pytest.mark.parametrize(
    "values",
    [
        [vector[:3] for vector in VECTORS],  # coordinates
        [vector[: 2 + n % 11] for n, vector in enumerate(VECTORS)],  # lists of any length
        [RANDOM.integers(0, 9, 12).tolist() for _ in range(60)],  # ids
        [text.replace(" ", ";") for text in TEXTS],
    ],
    ids=["short", "lengths", "ids", "words"],
)
def test_other_lists_are_not_vectors(values: list[Any]) -> None:
    field = proposed(values)
    assert field is None or field["kind"] != "vector"


def test_init_writes_text_and_vector_features_that_a_first_run_learns(tmp_path: Path) -> None:
    folder = SimulatedShop(seed=0, users=30, items=60).write(tmp_path / "shop")
    items = pl.read_csv(folder / "items.csv")
    extra = pl.DataFrame({"description": TEXTS, "embedding": [";".join(map(str, vector)) for vector in VECTORS]})
    pl.concat([items, extra[: len(items)]], how="horizontal").write_csv(folder / "items.csv")
    (folder / "recloop.toml").unlink()
    init("events.csv", "items.csv", "users.csv", root=folder, yes=True)
    features = tomllib.loads((folder / "recloop.toml").read_text("utf-8"))["features"]["item"]
    assert features["description"] == {"kind": "text", "from": "description", "dim": 16}
    assert features["embedding"] == {"kind": "vector", "from": "embedding", "dim": 16, "separator": ";"}
    project = open_project(folder, ["model.name=popular", "ranker.model=off"])
    loop.first_run(project)
    sizes = {name: project.load_bundle().fields.size(f"item.{name}") for name in ("description", "embedding")}
    assert min(sizes.values()) > 2  # clusters of the 60 values
