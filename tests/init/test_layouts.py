"""Layouts that shops export: what `init` understands of each, without an edit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recloop import loop
from recloop.data.read import read_events
from recloop.errors import UserError
from recloop.init.detect import InitResult, init
from recloop.project import open_project
from recloop.serve import offline


def write(folder: Path, text: str, name: str = "log.csv") -> str:
    (folder / name).write_text(text, "utf-8")
    return name


def value_of(made: InitResult, key: str) -> Any:
    return next(guess.value for guess in made.guesses if guess.key == key)


def order_rows(n: int = 40) -> list[tuple[int, int]]:
    """Order number and item number of each line; an order has two lines, and items repeat."""
    return [(order, (order * 3 + line * 5) % 11) for order in range(n) for line in range(2)]


def test_order_lines_and_orders_are_joined_by_the_order_id(tmp_path: Path) -> None:
    write(tmp_path, "order_id,product_id\n" + "".join(f"{order},p{item}\n" for order, item in reversed(order_rows())))
    orders = "".join(f"{order},c{order % 9},2026-01-{order % 28 + 1:02} 10:00:00\n" for order in range(40))
    write(tmp_path, "id,customer_id,created_at\n" + orders, "orders.csv")
    made = init("log.csv", orders="orders.csv", root=tmp_path, yes=True)
    assert value_of(made, "data.on") == "order_id = id"
    assert (made.columns["user_id"], made.columns["item_id"], made.columns["group_id"]) == (
        "customer_id",
        "product_id",
        "order_id",
    )
    events = read_events(open_project(tmp_path))
    assert (events.frame["user_id"].n_unique(), len(events.frame), events.rejects) == (9, 80, [])


def test_orders_that_share_no_id_with_the_lines_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "order_id,product_id\n1,p1\n1,p2\n2,p1\n")
    write(tmp_path, "id,customer_id,created_at\n7,c1,2026-01-01\n8,c2,2026-01-02\n", "orders.csv")
    with pytest.raises(UserError, match=r"--orders=orders\.csv: expected a column that joins log\.csv and orders\.csv"):
        init("log.csv", orders="orders.csv", root=tmp_path, yes=True)
    assert not (tmp_path / "recloop.toml").exists()


def test_order_lines_alone_name_the_file_that_is_missing(tmp_path: Path) -> None:
    write(tmp_path, "order_id,product_id,created_at\n" + "".join(f"{o},p{i},2026-01-01\n" for o, i in order_rows()))
    with pytest.raises(UserError, match=r"recloop init log\.csv --orders FILE, with the file that has the customer"):
        init("log.csv", root=tmp_path, yes=True)


def test_orders_without_products_name_the_export_to_make(tmp_path: Path) -> None:
    rows = "".join(f"{order},c{order % 9},2026-01-01,9.90\n" for order in range(60))
    write(tmp_path, "order_id,customer_id,created_at,grand_total\n" + rows)
    with pytest.raises(UserError, match="export the order items: one row per product of an order"):
        init("log.csv", root=tmp_path, yes=True)


def test_fields_of_the_first_order_line_are_carried_down(tmp_path: Path) -> None:
    lines = []
    for order in range(30):
        lines.append(f"#10{order:02},a{order % 7}@x.org,2026-01-{order % 28 + 1:02} 09:00:00,,SKU-{order % 5}")
        lines.append(f"#10{order:02},,,,SKU-{(order + 2) % 5}")
    write(tmp_path, "Name,Email,Created at,Device ID,Lineitem sku\n" + "\n".join(lines) + "\n")
    made = init("log.csv", root=tmp_path, yes=True)
    assert value_of(made, "data.carry") == ["Email", "Created at"]
    assert {field: made.columns[field] for field in ("user_id", "item_id", "timestamp", "group_id")} == {
        "user_id": "Email",
        "item_id": "Lineitem sku",
        "timestamp": "Created at",
        "group_id": "Name",
    }
    assert (made.rows.kept, made.rows.rejected) == (60, 0)


def test_cells_of_counted_products_become_one_row_each(tmp_path: Path) -> None:
    lines = [
        f'2026-01-{k % 28 + 1:02} 09:00:00,{k},Customer {k % 8},"{k % 3 + 1}× Cup, large, 1× Pot {k % 4}"'
        for k in range(40)
    ]
    lines.append("2026-01-20 09:00:00,99,Customer 1,")
    write(tmp_path, "Date,Order #,Customer,Product(s)\n" + "\n".join(lines) + "\n")
    made = init("log.csv", root=tmp_path, yes=True)
    assert value_of(made, "data.cell")["form"] == "count name"
    events = read_events(open_project(tmp_path))
    assert events.frame["item_id"].unique().sort().to_list() == ["Cup, large", "Pot 0", "Pot 1", "Pot 2", "Pot 3"]
    assert (events.left_out, events.rejects, events.frame["quantity"].max()) == (1, [], 3)


def test_ids_separated_by_blanks_are_expanded_and_product_names_are_not(tmp_path: Path) -> None:
    rows = "".join(f"u{k % 9},i{k % 7} i{k % 5} i{k % 3},2026-01-{k % 28 + 1:02}T10:00:00Z\n" for k in range(80))
    write(tmp_path, "user_id,items,at\n" + rows)
    made = init("log.csv", root=tmp_path, yes=True)
    assert (value_of(made, "data.cell")["separator"], made.rows.read) == (" ", 240)
    names = "".join(f"u{k % 9},Thing {k % 7} of {k % 5},2026-01-{k % 28 + 1:02}T10:00:00Z\n" for k in range(80))
    write(tmp_path, "user_id,product,at\n" + names, "names.csv")
    made = init("names.csv", root=tmp_path, yes=True, force=True)
    assert (made.columns["item_id"], made.rows.read) == ("product", 80)


def test_row_number_with_the_best_name_is_not_the_item(tmp_path: Path) -> None:
    rows = "".join(f"{k},u{k % 9},SKU-{k % 13},2026-01-{k % 28 + 1:02}T10:00:00Z\n" for k in range(90))
    write(tmp_path, "item_id,customer_id,sku,created_at\n" + rows)
    made = init("log.csv", root=tmp_path, yes=True)
    reason = next(guess.why for guess in made.guesses if guess.key == "data.columns.item_id")
    assert made.columns["item_id"] == "sku"
    assert "item_id never repeats in 90 rows; sku has 13 values" in reason.replace("rows, sku", "rows; sku")


def test_fuller_column_of_users_wins_over_the_better_name(tmp_path: Path) -> None:
    rows = "".join(
        f"{'' if k % 2 else f'a{k % 9}'},player {k % 9},g{k % 13},2026-01-{k % 28 + 1:02}\n" for k in range(90)
    )
    write(tmp_path, "user_id,username,product_id,date\n" + rows)
    assert init("log.csv", root=tmp_path, yes=True).columns["user_id"] == "username"


def test_login_and_device_columns_are_both_kept(tmp_path: Path) -> None:
    rows = "".join(f"{'' if k % 3 else f'a{k % 9}'},d{k % 9},g{k % 13},2026-01-{k % 28 + 1:02}\n" for k in range(90))
    write(tmp_path, "userId,anonymousId,product_id,date\n" + rows)
    made = init("log.csv", root=tmp_path, yes=True)
    assert (made.columns["user_id"], made.columns["anonymous_id"]) == ("userId", "anonymousId")
    assert made.rows.rejected == 0


def test_equally_likely_columns_stop_a_script_and_name_both(tmp_path: Path) -> None:
    rows = "".join(f"u{k % 9},v{k % 7},g{k % 13},2026-01-{k % 28 + 1:02}\n" for k in range(90))
    write(tmp_path, "customer,customerid,product_id,date\n" + rows)
    with pytest.raises(UserError, match=r"one clear column for the user id: its name; customer is as likely"):
        init("log.csv", root=tmp_path)
    assert init("log.csv", root=tmp_path, sets=['data.columns.user_id="customer"']).columns["user_id"] == "customer"


def test_rows_of_variants_that_repeat_their_parent_are_left_out(tmp_path: Path) -> None:
    lines = []
    for k in range(2, 122, 2):
        lines.append(f"{k},NULL,u{k % 9},SKU-{k % 13},2026-01-{k % 28 + 1:02}T10:00:00Z,9.9")
        lines.append(f"{k + 1},{k},u{k % 9},SKU-{k % 13}-M,2026-01-{k % 28 + 1:02}T10:00:00Z,0")
    write(tmp_path, "line_id,parent_item_id,customer_id,sku,created_at,price\n" + "\n".join(lines) + "\n")
    made = init("log.csv", root=tmp_path, yes=True)
    assert "parent_item_id IS NULL" in value_of(made, "data.where")
    assert made.rows.removed["where"] == 60


def test_events_about_no_item_are_left_out_by_their_types(tmp_path: Path) -> None:
    lines = []
    for k in range(120):
        kind = ("page_view", "view_item", "purchase")[k % 3]
        lines.append(
            f"u{k % 9},{'' if kind == 'page_view' else f'i{k % 13}'},{kind},2026-01-{k % 28 + 1:02}T10:00:{k % 60:02}Z"
        )
    write(tmp_path, "user_id,item_id,event_name,event_time\n" + "\n".join(lines) + "\n")
    made = init("log.csv", root=tmp_path, yes=True)
    assert value_of(made, "data.where") == "item_id IS NOT NULL"
    assert (made.rows.removed["where"], made.rows.rejected) == (40, 0)


def test_attributes_in_the_log_become_the_catalog(tmp_path: Path) -> None:
    lines = [
        f"u{k % 11},i{k % 7},2026-01-{k % 28 + 1:02}T10:00:{k % 60:02}Z,brand {k % 7 % 3},Thing {k % 7},land {k % 11 % 4},{k % 5}"
        for k in range(150)
    ]
    write(tmp_path, "user_id,item_id,time,brand,title,country,units_sold\n" + "\n".join(lines) + "\n")
    made = init("log.csv", root=tmp_path, yes=True)
    assert value_of(made, "data.item_columns") == ["title", "brand"]
    assert value_of(made, "data.user_columns") == ["country"]
    assert made.columns["name"] == "title"
    assert ["units_sold"] in [guess.value for guess in made.guesses if guess.key == "not used"]


def test_ids_that_a_spreadsheet_cut_are_refused_with_examples(tmp_path: Path) -> None:
    rows = "".join(
        f"u{k % 9},{'1.23457E+12' if k % 3 else f'400638133003{k % 7}'},2026-01-{k % 28 + 1:02}\n" for k in range(90)
    )
    write(tmp_path, "user_id,item_id,date\n" + rows)
    with pytest.raises(UserError, match=r"60 of 90 rows.*1\.23457E\+12; whole ids: 4006381330030"):
        init("log.csv", root=tmp_path, yes=True)


def test_lost_zeros_give_one_form_of_ids(tmp_path: Path) -> None:
    rows = "".join(f"u{k % 9},{10 + k % 7},2026-01-{k % 28 + 1:02}\n" for k in range(90))
    write(tmp_path, "user_id,item_id,date\n" + rows)
    write(tmp_path, "item_id,name\n" + "".join(f"{10 + k:06},Thing {k}\n" for k in range(7)), "items.csv")
    made = init("log.csv", "items.csv", root=tmp_path, yes=True)
    assert value_of(made, "data.id_form") == "zeros:6"
    assert read_events(open_project(tmp_path)).frame["item_id"][0] == "000010"


def test_words_for_missing_users_are_named_and_catalog_words_stay_items(tmp_path: Path) -> None:
    users = ["guest", *(f"u{k}" for k in range(9))]
    rows = "".join(f"{users[k % 10]},{['null', 'i1', 'i2'][k % 3]},2026-01-{k % 28 + 1:02}\n" for k in range(90))
    write(tmp_path, "user_id,item_id,date\n" + rows)
    write(tmp_path, "item_id,name\nnull,A\ni1,B\ni2,C\n", "items.csv")
    made = init("log.csv", "items.csv", root=tmp_path, yes=True)
    assert value_of(made, "data.missing_users") == ["guest"]
    assert not [guess for guess in made.guesses if guess.key == "not a product"]
    assert (made.rows.rejected, made.rows.reasons) == (9, "no user_id (9)")


def test_every_decision_is_in_the_file_with_its_reason(tmp_path: Path) -> None:
    write(tmp_path, "order_id,product_id\n" + "".join(f"{order},p{item}\n" for order, item in order_rows()))
    orders = "".join(f"{order},c{order % 9},2026-01-{order % 28 + 1:02} 10:00:00\n" for order in range(40))
    write(tmp_path, "id,customer_id,created_at\n" + orders, "orders.csv")
    made = init("log.csv", orders="orders.csv", root=tmp_path, yes=True)
    assert '# 100.0% of the rows find their order\non = "order_id = id"\n' in made.toml
    assert all(0 <= guess.confidence <= 1 for guess in made.guesses)


def test_orders_that_were_cancelled_are_left_out_by_their_status(tmp_path: Path) -> None:
    status = ["complete", "processing", "refunded", "complete", "canceled"]
    rows = "".join(
        f"{k},u{k % 9},p{k % 13},2026-01-{k % 28 + 1:02}T10:00:00Z,{status[k % 5]},shipped\n" for k in range(100)
    )
    write(tmp_path, "order_id,customer_id,product_id,created_at,status,shipping_status\n" + rows)
    made = init("log.csv", root=tmp_path, yes=True)
    assert value_of(made, "data.where") == "(status IS NULL OR status NOT IN ('canceled', 'refunded'))"
    assert made.rows.removed["where"] == 40


def test_a_time_of_cancellation_on_the_first_line_undoes_the_whole_order(tmp_path: Path) -> None:
    lines = []
    for order in range(40):
        gone = f"2026-02-{order % 28 + 1:02} 09:00:00" if order % 10 == 0 else ""
        lines.append(f"#10{order:02},a{order % 7}@x.org,2026-01-{order % 28 + 1:02} 09:00:00,{gone},SKU-{order % 5}")
        lines.append(f"#10{order:02},,,,SKU-{(order + 2) % 5}")
    write(tmp_path, "Name,Email,Created at,Cancelled at,Lineitem sku\n" + "\n".join(lines) + "\n")
    made = init("log.csv", root=tmp_path, yes=True)
    assert value_of(made, "data.carry") == ["Email", "Created at", "Cancelled at"]
    assert (made.rows.removed["where"], made.rows.kept) == (8, 72)


def test_short_uses_are_skips(tmp_path: Path) -> None:
    rows = "".join(f"u{k % 9},t{k % 13},{1_760_000_000 + k * 977},listen,{k % 100}\n" for k in range(200))
    write(tmp_path, "uid,track_id,timestamp,event_type,played_ratio_pct\n" + rows)
    made = init("log.csv", root=tmp_path, yes=True)
    assert made.columns["value"] == "played_ratio_pct"
    assert value_of(made, "events.neutral") == ["value < 10"]


def test_devices_and_lists_of_a_tracker_are_read(tmp_path: Path) -> None:
    lines = []
    for k in range(120):
        items = (
            []
            if k % 4 == 0
            else [{"item_id": f"i{(k + j) % 9}", "item_name": f"Thing {(k + j) % 9}"} for j in range(2)]
        )
        event = {
            "event_timestamp": str(1_769_400_000_000_000 + k * 91_000_000),
            "event_name": "page_view" if k % 4 == 0 else ("view_item", "add_to_cart", "purchase")[k % 3],
            "user_id": f"a{k % 11}" if k % 11 < 3 else None,
            "user_pseudo_id": f"1234{k % 11}.17000000{k % 11}",
            "items": items,
        }
        lines.append(json.dumps(event))
    write(tmp_path, "\n".join(lines) + "\n", "events.json")
    made = init("events.json", root=tmp_path, yes=True)
    assert {field: made.columns[field] for field in ("user_id", "anonymous_id", "item_id", "timestamp", "name")} == {
        "user_id": "user_id",
        "anonymous_id": "user_pseudo_id",
        "item_id": "items[].item_id",
        "timestamp": "event_timestamp",
        "name": "items[].item_name",
    }
    events = read_events(open_project(tmp_path))
    assert (events.left_out, len(events.frame), events.rejects) == (30, 180, [])
    assert events.frame["user_id"].n_unique() == 11


def test_values_of_a_file_without_a_header_tell_its_columns(tmp_path: Path) -> None:
    rows = "".join(f"{k % 9 + 1}::{k % 13 + 1}::{k % 5 + 1}::{978_300_000 + k * 5_000}\n" for k in range(120))
    write(tmp_path, rows, "ratings.dat")
    write(tmp_path, "".join(f"{k + 1}::Film {k} of the year::Drama|Comedy\n" for k in range(13)), "movies.dat")
    made = init("ratings.dat", "movies.dat", root=tmp_path, yes=True)
    assert {field: made.columns[field] for field in ("user_id", "item_id", "value", "timestamp")} == {
        "user_id": "c1",
        "item_id": "c2",
        "value": "c3",
        "timestamp": "c4",
    }
    assert value_of(made, "data.item_key") == "c1"
    assert (made.rows.kept, made.rows.rejected) == (120, 0)


def test_long_table_of_properties_is_refused_with_a_command_that_works(tmp_path: Path) -> None:
    rows = "".join(f"{1_430_000_000_000 + k},u{k % 9},i{k % 7}\n" for k in range(60))
    write(tmp_path, "timestamp,visitorid,itemid\n" + rows)
    properties = "".join(f"{k},i{k % 7},{('color', 'size')[k % 2]},{k}\n" for k in range(42))
    write(tmp_path, "timestamp,itemid,property,value\n" + properties, "items.csv")
    with pytest.raises(UserError, match="itemid is in up to 6 rows, each with one property: a long table") as refused:
        init("log.csv", "items.csv", root=tmp_path, yes=True)
    command = refused.value.fix.removeprefix('python -c "').partition('", then')[0]
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
    made = init("log.csv", "wide.csv", root=tmp_path, yes=True)
    assert made.rows.kept == 60


@pytest.mark.slow
def test_chinese_export_with_semicolons_and_orders_in_a_second_file_gives_a_list(tmp_path: Path) -> None:
    lines = "订单号;商品编号;商品名称;数量;单价\n" + "".join(
        f"D{order};P{item};红茶 {item} 号;{item % 3 + 1};{item},50\n" for order, item in order_rows(60)
    )
    orders = "订单号;会员ID;下单时间\n" + "".join(
        f"D{order};M{order % 9};2026-01-{order % 28 + 1:02} 10:{order % 60:02}:00\n" for order in range(60)
    )
    (tmp_path / "lines.csv").write_bytes(lines.encode("gb18030"))
    (tmp_path / "orders.csv").write_bytes(orders.encode("gb18030"))
    made = init("lines.csv", orders="orders.csv", root=tmp_path, yes=True)
    assert {
        field: made.columns[field] for field in ("user_id", "item_id", "timestamp", "quantity", "value", "name")
    } == {
        "user_id": "会员ID",
        "item_id": "商品编号",
        "timestamp": "下单时间",
        "quantity": "数量",
        "value": "单价",
        "name": "商品名称",
    }
    loop.first_run(open_project(tmp_path, ["model.name=popular"]))
    answer = offline.recommend(open_project(tmp_path), "M1", n=3)
    assert len(answer["items"]) == 3
    assert all(item["item_id"] in {f"P{number}" for number in range(11)} for item in answer["items"])


def test_two_times_that_disagree_stop_a_script_and_name_both(tmp_path: Path) -> None:
    rows = "".join(
        f"u{k % 9},i{k % 7},2026-01-{k % 28 + 1:02}T10:00:00Z,2025-03-{k % 28 + 1:02}T10:00:00Z\n" for k in range(90)
    )
    write(tmp_path, "user_id,item_id,created_at,ordered_at\n" + rows)
    with pytest.raises(
        UserError, match=r"one clear column for the time: .*ordered_at is as likely and has other times"
    ):
        init("log.csv", root=tmp_path)
    assert (
        init("log.csv", root=tmp_path, sets=["data.columns.timestamp=ordered_at"]).columns["timestamp"] == "ordered_at"
    )


def test_file_of_broken_rows_alone_names_the_reason(tmp_path: Path) -> None:
    write(tmp_path, '{"user_id": "u", "item_id": "i", "x": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "deep.jsonl")
    with pytest.raises(UserError, match="readable rows; all 1 are broken: ") as refused:
        init("deep.jsonl", root=tmp_path, yes=True)
    assert len(str(refused.value)) < 400
    assert not (tmp_path / "recloop.toml").exists()
