"""Shape of a log: settings of [data] that turn the records of files into rows of one event each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recloop.config import Data
from recloop.data.read import RawEvents, parse_events
from recloop.data.shape import input_columns
from recloop.data.sources import InputFile
from recloop.data.tables import Table, read_table
from recloop.errors import UserError
from recloop.features.id_form import form_id, form_ids

COLUMNS = {"user_id": "user", "item_id": "sku", "timestamp": "at", "group_id": "order"}


def table_of(folder: Path, text: str, name: str = "log.csv", key: str = "data.events") -> Table:
    path = folder / name
    path.write_text(text, "utf-8")
    return read_table(InputFile(key, path, name), Data())


def read(folder: Path, text: str, order_text: str = "", **settings: Any) -> RawEvents:
    data = Data(**{"columns": COLUMNS, **settings})
    order_tables = [table_of(folder, order_text, "orders.csv", "data.orders")] if order_text else []
    return parse_events([table_of(folder, text)], data, orders=order_tables)


def test_order_lines_take_user_and_time_from_the_orders_file(tmp_path: Path) -> None:
    lines = "order,sku\n2,i2\n1,i1\n3,i3\n2,i4\n"
    orders = "id,user,at\n1,u1,2026-01-01\n2,u2,2026-01-02\n"
    raw = read(tmp_path, lines, orders, orders="orders.csv", on="order = id")
    assert raw.frame.select("user_id", "item_id", "group_id").rows() == [
        ("u2", "i2", "2"),
        ("u1", "i1", "1"),
        ("u2", "i4", "2"),
    ]
    assert [(row.line, row.reason) for row in raw.rejects] == [(4, "no row of orders.csv with id 3")]


def test_orders_without_the_join_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"data\.on=order = id: expected a column that joins .* orders\.csv has number, user, at"
    ):
        read(tmp_path, "order,sku\n1,i1\n", "number,user,at\n1,u1,2026-01-01\n", orders="orders.csv", on="order = id")


def test_order_fields_are_carried_down_within_an_order(tmp_path: Path) -> None:
    text = "order,user,sku,at\n1,u1,i1,2026-01-01\n2,,i9,2026-01-05\n1,,i2,\n1,,i3,\n"
    raw = read(tmp_path, text, carry=["user", "at"])
    assert raw.frame.select("user_id", "item_id").rows()[:1] == [("u1", "i1")]
    users = dict(raw.frame.select("item_id", "user_id").rows())
    assert users["i2"] == users["i3"] == "u1"
    assert users.get("i9") != "u1"


def test_blank_cells_are_filled_from_the_fallback_columns(tmp_path: Path) -> None:
    text = "order,user,sku,at,device,name\n1,u1,,2026-01-01,d1,Cup\n2,NA,i2,2026-01-01,d2,Pot\n"
    raw = read(tmp_path, text, fallback={"user_id": ["device"], "item_id": ["name"]}, missing_users=["NA"])
    assert raw.frame.select("user_id", "item_id").rows() == [("u1", "Cup"), ("d2", "i2")]


def test_rows_that_do_not_meet_where_are_left_out_and_counted(tmp_path: Path) -> None:
    text = "order,user,sku,at,mode\n1,u1,i1,2026-01-01,0\n1,u1,POST,2026-01-01,4\n1,u1,i2,2026-01-01,\n"
    raw = read(tmp_path, text, where="mode IS NULL OR mode = '0'")
    assert raw.frame["item_id"].to_list() == ["i1", "i2"]
    assert (raw.read, raw.left_out, raw.rejects) == (3, 1, [])


def test_condition_that_leaves_out_every_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.where=.*all 1 rows are left out"):
        read(tmp_path, "order,user,sku,at\n1,u1,i1,2026-01-01\n", where="sku = 'x'")


@pytest.mark.parametrize(
    ("cell", "text", "items"),
    [
        ({"separator": " "}, "i1  i2 i3", ["i1", "i2", "i3"]),
        ({"separator": "|"}, "i1|i2", ["i1", "i2"]),
        ({"separator": "json"}, '"[""i1"", ""i2""]"', ["i1", "i2"]),
    ],
)
def test_cell_with_several_items_becomes_one_row_each(
    tmp_path: Path, cell: dict[str, str], text: str, items: list[str]
) -> None:
    raw = read(tmp_path, f"order,user,sku,at\n1,u1,{text},2026-01-01\n", cell={"column": "sku", **cell})
    assert raw.frame["item_id"].to_list() == items
    assert raw.read == len(items)


def test_impressions_with_0_and_1_give_the_value(tmp_path: Path) -> None:
    columns = {**COLUMNS, "value": "label"}
    text = "order,user,sku,at\n1,u1,N1-0 N-2-1 N3,2026-01-01\n"
    raw = read(tmp_path, text, columns=columns, cell={"column": "sku", "form": "id-label"})
    assert raw.frame.select("item_id", "value").rows() == [("N1", 0.0), ("N-2", 1.0), ("N3", None)]


def test_counted_names_keep_commas_inside_a_name(tmp_path: Path) -> None:
    columns = {**COLUMNS, "quantity": "count"}
    text = 'order,user,sku,at\n1,u1,"2× Cup, large, 1x Pot",2026-01-01\n'
    raw = read(tmp_path, text, columns=columns, cell={"column": "sku", "form": "count name", "separator": ", "})
    assert raw.frame.select("item_id", "quantity").rows() == [("Cup, large", 2.0), ("Pot", 1.0)]


def test_expanded_rows_have_different_event_ids(tmp_path: Path) -> None:
    columns = {**COLUMNS, "event_id": "id"}
    text = "id,order,user,sku,at\ne1,1,u1,i1 i2,2026-01-01\ne2,2,u1,i3,2026-01-01\n"
    raw = read(tmp_path, text, columns=columns, cell={"column": "sku"})
    assert raw.frame["event_id"].to_list() == ["e1", "e1#1", "e2"]


def test_expanded_rows_of_a_new_file_have_different_row_ids(tmp_path: Path) -> None:
    data = Data(columns=COLUMNS, cell={"column": "sku"})
    table = table_of(tmp_path, "order,user,sku,at\n1,u1,i0,2026-01-01\n1,u1,i1 i2,2026-01-01\n")
    raw = parse_events([table], data, since={"log.csv": 1})
    assert raw.frame.select("item_id", "event_id").rows() == [
        ("i1", "file-row:log.csv:2"),
        ("i2", "file-row:log.csv:2.1"),
    ]


def test_rejected_element_is_counted_as_a_row(tmp_path: Path) -> None:
    raw = read(tmp_path, "order,user,sku,at\n1,u1,i1|| ,2026-01-01\n", cell={"column": "sku", "separator": "|"})
    assert len(raw.frame) == 1
    assert [(row.line, row.reason) for row in raw.rejects] == [(2, "no item_id"), (2, "no item_id")]
    assert raw.read == 3


def test_login_names_the_user_of_earlier_anonymous_rows(tmp_path: Path) -> None:
    columns = {**COLUMNS, "anonymous_id": "device"}
    text = "order,user,sku,at,device\n1,,i1,2026-01-01,d1\n2,u1,i2,2026-01-02,d1\n3,,i3,2026-01-03,d2\n"
    shared = text + "4,u1,i4,2026-01-04,d3\n5,u2,i5,2026-01-05,d3\n6,,i6,2026-01-06,d3\n"
    assert dict(read(tmp_path, text, columns=columns).frame.select("item_id", "user_id").rows()) == {
        "i1": "u1",
        "i2": "u1",
        "i3": "d2",
    }
    assert dict(read(tmp_path, shared, columns=columns).frame.select("item_id", "user_id").rows())["i6"] == "d3"


@pytest.mark.parametrize(
    ("form", "text", "formed"),
    [
        ("text", "1001.0", "1001.0"),
        ("integer", "1001.0", "1001"),
        ("integer", "1001.50", "1001.50"),
        ("zeros:6", "1001", "001001"),
        ("zeros:6", "A1", "A1"),
    ],
)
def test_id_form_is_the_same_for_columns_and_single_ids(form: str, text: str, formed: str) -> None:
    assert form_id(text, form) == formed
    assert pl.select(form_ids(pl.lit(text), form)).item() == formed


def test_columns_of_every_setting_are_read() -> None:
    data = Data(
        columns=COLUMNS, where="mode = '0'", carry=["at"], fallback={"item_id": ["name"]},
        orders="o.csv", on="order = id", cell={"column": "goods", "form": "id-label"},
    )  # fmt: skip
    assert set(input_columns(data)) == {"user", "sku", "at", "order", "mode", "name", "id", "goods"}


def test_records_left_out_at_the_end_count_as_read(tmp_path: Path) -> None:
    text = "order,user,sku,at,mode\n1,u1,i1,2026-01-01,0\n1,u1,x,2026-01-01,4\n1,u1,x,2026-01-01,4\n"
    assert read(tmp_path, text, where="mode = '0'").rows == {"log.csv": 3}


def test_rows_expanded_and_left_out_in_equal_number_keep_their_records(tmp_path: Path) -> None:
    text = "order,user,sku,at,mode\n1,u1,x,2026-01-01,4\n1,u1, ,2026-01-01,0\n1,u1,i1 i2,2026-01-01,0\n"
    raw = read(tmp_path, text, cell={"column": "sku"}, where="mode = '0'")
    assert raw.frame["item_id"].to_list() == ["i1", "i2"]
    assert [row.line for row in raw.rejects] == [3]
