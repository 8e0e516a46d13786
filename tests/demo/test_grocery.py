"""The grocery demo: prices, its folder, and (slow) the complete run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recloop.demo.grocery_project import priced, write_project
from recloop.demo.narrator import MARK, written_paths
from recloop.errors import UserError
from recloop.ingest.client import iso
from recloop.project import open_project


def test_priced_is_the_median_before_the_cut() -> None:
    products = pl.DataFrame({"product_id": [2, 1, 3], "brand": ["b", "a", "c"]})
    rows = [(1, 10, 1, 2, 3.0), (2, 20, 1, 1, 4.0), (3, 30, 1, 0, 9.0), (4, 40, 2, 4, 2.0), (5, 50, 1, 1, 100.0)]
    purchases = pl.DataFrame(
        [
            (household, basket, product, quantity, value, datetime(2017, 1, household, tzinfo=UTC).replace(tzinfo=None))
            for household, basket, product, quantity, value in rows
        ],
        schema=["household_id", "basket_id", "product_id", "quantity", "sales_value", "transaction_timestamp"],
        orient="row",
    )
    made = priced(products, purchases, 0.8)
    # The cut is the stamp of the fourth row with a quantity, so 100 is excluded; 3 / 2 and 4 give 2.75.
    assert made["product_id"].to_list() == [2, 1, 3]
    assert made["price"].to_list() == [0.5, 2.75, None]


@pytest.mark.slow
def test_demo_overwrites_only_a_demo_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="--dir"):
        write_project(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"
    project = write_project(tmp_path / "demo")
    assert project.file.read_text("utf-8").startswith(MARK)
    assert open_project(tmp_path / "demo").config.data.columns.group_id == "basket_id"
    (tmp_path / "demo" / "data").mkdir()
    write_project(tmp_path / "demo")
    assert not (tmp_path / "demo" / "data").exists()


def test_written_paths_lists_archive_and_states_as_one_path_each(tmp_path: Path) -> None:
    for name in (
        "data/train.parquet",
        "store/archive/1.parquet",
        "store/states-12/items.npy",
        "store/states-12/a/b.npy",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert written_paths(tmp_path) == [
        str(tmp_path / name) for name in ("data/train.parquet", "store/archive", "store/states-12")
    ]


def test_iso_formats_timestamps_for_requests() -> None:
    assert iso(1_514_764_800_000_001) == "2018-01-01T00:00:00.000001+00:00"


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of a complete run of the demo."""
    folder = tmp_path_factory.mktemp("journey") / "demo"
    command = [sys.executable, "-m", "recloop", "demo", "--dir", str(folder), "--json"]
    shown: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return shown


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_demo_on_complete_journey_has_every_step_and_file(demo_run: dict[str, Any]) -> None:
    assert [step["name"] for step in demo_run["steps"]] == [
        "collect", "features", "learn", "evaluate", "bundle", "serve", "watch",
        "keep learning", "gate", "shadow", "experiment", "release", "verify", "files",
    ]  # fmt: skip
    for name in ("report.html", "evaluation.json", "log.jsonl", "manifest.json", "shadow.svg"):
        assert any(path.endswith(name) for path in demo_run["files"]), name


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("step", "pattern"),
    [
        ("collect", r"1,411,279 rows read = 1,402,756 kept \+ keep 8,523 removed \+ 0 rejected"),
        ("serve", "the disliked item is gone"),
        ("serve", "10 items from attributes"),
        ("serve", "10 items from popular"),
        ("watch", "305 checked, 305 equal, 0 late, 0 unexplained"),
        ("watch", r"verify finds [1-9]\d* of 30 decisions, in context\.days_since_last"),
        ("watch", "exit 2"),
        ("keep learning", r"recloop update: [\d,]+ rows .*: registered"),
        ("gate", "poisoned copy, with the input check: blocked"),
        ("gate", "poisoned copy, without the input check: refused"),
        ("gate", "unchanged, byte for byte: yes"),
        ("shadow", r"replica of live: 0 of [1-9]\d* differ"),
        ("shadow", "overlap@10: .* noise floor"),
        ("experiment", "this measures prediction, not effect"),
        ("release", "-> live .*POST /v1/admin/rollback"),
        ("verify", r"[1-9][\d,]{2,} decisions: .* 0 late, 0 unexplained"),
    ],
)
def test_demo_on_complete_journey_prints(demo_run: dict[str, Any], step: str, pattern: str) -> None:
    (printed,) = [" ".join(shown["out"]) for shown in demo_run["steps"] if shown["name"] == step]
    assert re.search(pattern, printed), printed
