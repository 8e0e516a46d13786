"""Settings that a fit guesses from frames: columns, event meanings, features."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pandas as pd
import polars as pl
import pytest

import recloop
from recloop.api.fit_input import read_input
from recloop.api.text_progress import TextProgress
from recloop.errors import UserError

START = datetime(2025, 3, 1, 8, 1, 7)  # noqa: DTZ001
N_ROWS = 60


def shop_log() -> pl.DataFrame:
    """60 rows with names of a shop's export."""
    rows = range(N_ROWS)
    return pl.DataFrame(
        {
            "Customer": [f"c{row % 7}" for row in rows],
            "SKU": [f"s{row * 5 % 11}" for row in rows],
            "Bought at": [START + timedelta(hours=row, seconds=13 * row) for row in rows],
            "Action": ["view" if row % 3 else "purchase" for row in rows],
        }
    )


def items(key: str = "SKU") -> pl.DataFrame:
    return pl.DataFrame(
        {
            key: [f"s{number}" for number in range(11)],
            "title": [f"thing number {number}" for number in range(11)],
            "brand": ["red" if number % 2 else "blue" for number in range(11)],
        }
    )


def read(frame: Any, **more: Any) -> Any:
    arguments = {"items": None, "users": None, "model": "popular", "config": {}, "columns": {}}
    return read_input(frame, **{**arguments, **more})


def test_columns_and_meanings_are_guessed() -> None:
    source = read(shop_log())
    columns = source.tree["data"]["columns"]
    assert [columns[name] for name in ("user_id", "item_id", "event_type")] == ["Customer", "SKU", "Action"]
    assert source.config(None).events.weights == {"purchase": 5.0, "view": 1.0}
    assert {guess.key for guess in source.guesses} >= {"columns.user_id", "events.weights"}
    assert source.events.frame["timestamp"][0] == 1_740_816_067_000_000


def test_given_columns_and_events_are_not_guessed() -> None:
    frame = shop_log().rename({"Customer": "a", "SKU": "b", "Bought at": "c"})
    source = read(
        frame, columns={"user_id": "a", "item_id": "b", "timestamp": "c"}, config={"events": {"positive": ["*"]}}
    )
    assert not {"columns.user_id", "events.weights"} & {guess.key for guess in source.guesses}
    assert source.events.frame["item_id"][1] == "s5"
    assert source.config(None).events.positive == ("*",)


def test_missing_columns_are_named_in_one_message() -> None:
    frame = pl.DataFrame({"a": [True, False], "b": [0.5, 0.25], "c": [[1], [2]]})
    with pytest.raises(UserError) as refused:
        recloop.fit(frame)
    text = str(refused.value)
    assert text.startswith("columns=no user_id, no item_id, no timestamp: ")
    assert "the frame has a, b; c holds lists or objects; try: one row per event: events.explode" in text
    with pytest.raises(UserError) as refused:
        recloop.fit(frame.drop("c"))
    fix = 'try: columns={"user_id": "NAME", "item_id": "NAME", "timestamp": "NAME"}'
    assert str(refused.value).endswith(fix)


def test_frame_without_names_is_read_by_its_values() -> None:
    log = shop_log()
    numbered = log.rename({name: f"column_{number}" for number, name in enumerate(log.columns, 1)})
    for frame in (numbered, numbered.rename(lambda name: name.removeprefix("column_")).to_pandas()):
        columns = read(frame).tree["data"]["columns"]
        names = list(frame.columns)
        assert [columns[name] for name in ("user_id", "item_id", "timestamp", "event_type")] == names
    assert read(numbered, columns={"item_id": "column_1"}).tree["data"]["columns"]["user_id"] == "column_2"
    headers = pl.DataFrame({"34": [1.5], "1767636639": ["?"]})
    with pytest.raises(UserError, match=r"numbers as names: read a file without a header with has_header=False"):
        recloop.fit(headers.with_columns(pl.lit("a").alias("view")))


def test_order_fields_of_a_typed_frame_are_carried_down() -> None:
    orders = pl.DataFrame(
        {
            "Name": [f"#{row // 3}" for row in range(90)],
            "Email": [f"c{row // 3 % 9}@shop" if row % 3 == 0 else None for row in range(90)],
            "Created at": [
                str(START + timedelta(hours=row, seconds=row)) if row % 3 == 0 else None for row in range(90)
            ],
            "Subtotal": [float(row) if row % 3 == 0 else None for row in range(90)],
            "Lineitem sku": [f"s{row * 7 % 11}" for row in range(90)],
        }
    )
    source = read(orders)
    assert "Subtotal" not in source.tree["data"]["columns"].values() or source.tree["data"]["carry"]
    assert len(source.events.frame) == 90
    assert source.events.frame["user_id"].n_unique() == 9


def test_columns_argument_with_unknown_names_is_refused() -> None:
    with pytest.raises(UserError, match=r'columns=Custommer.*try: columns=\{"user_id": "Customer"\}'):
        recloop.fit(shop_log(), columns={"user_id": "Custommer"})
    with pytest.raises(UserError, match=r'columns=Customer.*try: columns=\{"user_id": "Customer"\}'):
        recloop.fit(shop_log(), columns={"Customer": "user_id"})
    with pytest.raises(UserError, match=r"columns=buyer: expected our name = the frame's name; our names are user_id"):
        recloop.fit(shop_log(), columns={"buyer": "Customer"})


def test_catalog_key_is_found_by_name_of_the_log_or_by_its_ids() -> None:
    for key in ("SKU", "item_id", "product code"):
        catalogue = read(shop_log(), items=items(key)).items
        assert catalogue["item_id"].to_list() == items()["SKU"].to_list()
        assert '"brand":"blue"' in catalogue["attributes"][0]
    with pytest.raises(
        UserError, match=r"items=items: expected a column with ids of SKU of the log, found none among x"
    ):
        recloop.fit(shop_log(), items=pl.DataFrame({"x": ["q1", "q2"], "brand": ["red", "blue"]}))


def test_features_are_guessed_for_a_network_only() -> None:
    assert "item" not in read(shop_log(), items=items()).tree.get("features", {})
    network = read(shop_log(), items=items(), model="sasrec")
    assert network.config(None).features.item["brand"].kind == "category"
    assert "title" not in network.config(None).features.item
    given = {"features": {"item": {}}}
    assert read(shop_log(), items=items(), model="sasrec", config=given).config(None).features.item == {}


def test_stamps_of_days_disable_the_burst_rule() -> None:
    frame = shop_log().with_columns(pl.col("Bought at").dt.date())
    assert read(frame).config(None).clean.burst == "off"
    assert "burst" not in read(shop_log()).tree["clean"]


def test_numbers_such_as_20250131_are_dates() -> None:
    frame = shop_log().with_columns(pl.col("Bought at").dt.strftime("%Y%m%d").cast(pl.Int64))
    assert read(frame, columns={"timestamp": "Bought at"}).events.frame["timestamp"][0] == 1_740_787_200_000_000


def test_leave_one_out_sets_the_split_of_published_tables() -> None:
    settings = read(shop_log()).config("leave-one-out").split
    assert (settings.protocol, settings.ties, settings.filter_seen) == ("leave-one-out", "row", True)


def test_lists_leave_out_seen_items_of_a_log_without_repeats() -> None:
    once = pl.DataFrame(
        {
            "user_id": [f"u{row % 6}" for row in range(60)],
            "item_id": [f"i{row // 6}" for row in range(60)],
            "timestamp": [START + timedelta(hours=row) for row in range(60)],
        }
    )
    assert recloop.fit(once, model="popular").bundle.policy.filter_seen
    assert not recloop.fit(once, model="popular", config={"split": {"filter_seen": False}}).bundle.policy.filter_seen
    assert not recloop.fit(
        pl.concat([once, once.with_columns(pl.col("timestamp").dt.offset_by("9d"))]), model="popular"
    ).bundle.policy.filter_seen


def test_mixed_column_and_repeated_names_are_refused() -> None:
    mixed = shop_log().to_pandas()
    mixed["SKU"] = mixed["SKU"].astype(object)
    mixed.loc[0, "SKU"] = 5
    with pytest.raises(UserError, match=r"events=SKU: expected one type.*astype\(str\)"):
        recloop.fit(mixed)
    twice = pd.DataFrame([["a", "b"]], columns=["user_id", "user_id"])
    with pytest.raises(UserError, match="columns with different names"):
        recloop.fit(twice)
    periods = shop_log().to_pandas()
    periods["Bought at"] = periods["Bought at"].dt.to_period("D")
    with pytest.raises(UserError, match=r"events=Bought at: expected texts, numbers, dates or lists"):
        recloop.fit(periods)
    with pytest.raises(UserError, match=r"events=events: expected rows under the header"):
        recloop.fit(shop_log().clear())
    with pytest.raises(UserError, match=r"events=LazyFrame.*try: events\.collect\(\)"):
        recloop.fit(shop_log().lazy())


def test_dropped_rows_are_reported_and_warned_about_once() -> None:
    frame = pl.concat([shop_log(), shop_log()[:2]])
    with pytest.warns(UserWarning, match="2 removed by duplicates; details: rec.report") as caught:
        rec = recloop.fit(frame, model="popular")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    report = rec.report
    assert report is not None
    assert (report.read, report.kept, report.dropped, report.learned) == (62, 60, 2, 60)
    assert "columns.user_id = Customer" in str(report)
    assert report.to_json()["removed"] == {"duplicates": 2}
    assert "<td>columns.item_id</td><td>SKU</td>" in rec._repr_html_()


def test_guest_baskets_are_counted_apart_from_users() -> None:
    order = pl.int_range(pl.len()) // 2
    customer = pl.when(order % 5 > 0).then(pl.format("c{}", order % 7))
    frame = shop_log().with_columns(customer.alias("Customer"), pl.format("o{}", order).alias("order_id"))
    rec = recloop.fit(frame, model="popular")
    assert rec.report is not None
    assert (rec.report.users, rec.report.guest_baskets, rec.report.guest_rows) == (7, 6, 12)
    assert "7 users, 6 guest baskets of 12 rows, 11 items" in str(rec.report)
    with pytest.raises(UserError, match="users=guest:o0"):
        rec.recommend("guest:o0", on_unknown="error")


def test_progress_prints_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    recloop.fit(shop_log(), model="popular", progress=True)
    printed = capsys.readouterr().err
    recloop.fit(shop_log(), model="popular")
    assert capsys.readouterr().err == ""
    assert ["60 rows read" in printed, "7 users, 11 items" in printed, "popular on 60 rows" in printed] == [True] * 3


def test_text_progress_rewrites_the_line_of_a_long_step(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TextProgress()
    progress.say("collect", "5 rows")
    progress.bar("evaluate", 1, 2)
    progress.bar("evaluate", 2, 2)
    assert capsys.readouterr().err == "  collect  5 rows\n\r evaluate  1 of 2\r evaluate  2 of 2\n"


def test_a_log_of_one_instant_is_learned() -> None:
    frame = pl.DataFrame({"user_id": ["a", "b", "b"], "item_id": ["x", "x", "y"], "timestamp": ["2025-01-01"] * 3})
    assert recloop.fit(frame, model="popular").recommend("c", n=2)["item_id"].to_list() == ["x", "y"]
