"""Reading logs: bad inputs, accounting for every row, and values kept exactly."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from recloop.data.entities import read_items, read_users
from recloop.data.read import read_events
from recloop.data.rejected_rows import RejectedRow
from recloop.errors import UserError
from recloop.project import Project

HEAD = "user_id,item_id,timestamp\n"
ProjectFactory = Callable[..., Project]


def test_read_events_keeps_ids_exactly(project_factory: ProjectFactory) -> None:
    raw = read_events(
        project_factory(HEAD + " 1,01,2025-01-01\n1,1e5,2025-01-01\nnull,NA,2025-01-01\n1.0,İ,2025-01-01\n")
    )
    assert raw.frame["user_id"].to_list() == [" 1", "1", "null", "1.0"]
    assert raw.frame["item_id"].to_list() == ["01", "1e5", "NA", "İ"]
    assert (raw.read, raw.rejects) == (4, [])


def test_read_events_rejects_rows_with_line_and_reason(project_factory: ProjectFactory) -> None:
    log = (
        "user_id,item_id,timestamp,quantity\n"
        "u1,i1,2025-01-01,1\n"
        ",i1,2025-01-01,1\n"
        "u1,  ,2025-01-01,1\n"
        "u1,i1,soon,1\n"
        '"u\n1",i1,2025-01-01,many\n'
        "u1,i1,0000-12-31,1\n"
        "u1,i1\n"
        "u1,i1,,\n"
        "u1,i2,2025-01-02,\n"
    )
    raw = read_events(project_factory(log, 'data.columns.quantity="quantity"'))
    assert raw.rejects == [
        RejectedRow("log.csv", 3, "no user_id", ",i1,2025-01-01,1"),
        RejectedRow("log.csv", 4, "no item_id", "u1,  ,2025-01-01,1"),
        RejectedRow("log.csv", 5, "timestamp: not a stamp", "u1,i1,soon,1"),
        RejectedRow("log.csv", 6, "quantity: not a number", '"u\n1",i1,2025-01-01,many'),
        RejectedRow("log.csv", 8, "timestamp outside the years 1970 to 2100", "u1,i1,0000-12-31,1"),
        RejectedRow("log.csv", 9, "expected 4 fields, found 2", "u1,i1"),
        RejectedRow("log.csv", 10, "no timestamp", "u1,i1,,"),
    ]
    assert raw.read == 9 == len(raw.frame) + len(raw.rejects)
    assert raw.frame["quantity"].to_list() == [1.0, None]


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (None, "an existing file, glob or folder"),
        ("", "the file is empty"),
        ("\n\n", "a header"),
        (HEAD, "rows under the header, found none"),
        ("user_id,itemid,timestamp\nu,i,2025-01-01\n", "nearest: itemid"),
        ("u1,i1,2025-01-01\nu2,i1,2025-01-02\n", "the first line holds values, not names (u1,i1,2025-01-01)"),
        (HEAD + ",i,2025-01-01\n,j,2025-01-01\n", "all 2 were rejected, the first one because of: no user_id"),
        (HEAD + "u,i,2025-01-01,x\n", "all 1 are broken: expected 3 fields, found 4"),
        (HEAD + "u,i,01/02/2025\n", "2025-02-01 (day first) and 2025-01-02 (month first)"),
        (HEAD + "u,i,46027\nu,i,46028\n", "can be days of a spreadsheet (2026-01-05 .. 2026-01-06)"),
        ("PK\x03\x04", "a complete zip archive"),
        ('[{"user_id": 1}', "record 1 (line 1) is not closed"),
    ],
)
def test_read_events_of_an_unusable_log_raises_with_a_fix(
    project_factory: ProjectFactory, log: str | None, said: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_events(project_factory(log))
    assert said in str(caught.value)
    assert caught.value.fix


def test_read_events_of_a_value_column_without_numbers_raises(project_factory: ProjectFactory) -> None:
    project = project_factory("user_id,item_id,timestamp,price\nu,i,2025-01-01,€ 3\n", 'data.columns.value="price"')
    with pytest.raises(UserError, match=r"data.columns.value \(price\)=€ 3: expected numbers"):
        read_events(project)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "gb18030", "utf-16"])
def test_read_events_recodes_encodings_and_reports_them(project_factory: ProjectFactory, encoding: str) -> None:
    log = "用户,商品,时间\n张伟,绿茶,2025-01-01 10:00:00\n,绿茶,2025-01-01\n"
    columns = ('data.columns.user_id="用户"', 'data.columns.item_id="商品"', 'data.columns.timestamp="时间"')
    raw = read_events(project_factory(log.encode(encoding), *columns))
    assert raw.frame.row(0)[1:4] == ("张伟", None, "绿茶")
    assert raw.rejects[0].raw == ",绿茶,2025-01-01"
    said = {"utf-8-sig": "utf-8;", "gb18030": "gb18030, re-coded to utf-8", "utf-16": "utf-16, re-coded to utf-8"}
    assert said[encoding] in raw.info


def test_read_events_of_cp1252_parses_semicolons_and_decimal_commas(project_factory: ProjectFactory) -> None:
    log = "Kunde;Artikel;Datum;Preis\nMüller;Käse;31.12.2025 08:05;3,50\nWeiß;Brötchen;01.12.2025 9:00;1.234,00\n"
    columns = ('data.columns.user_id="Kunde"', 'data.columns.item_id="Artikel"', 'data.columns.timestamp="Datum"')
    raw = read_events(
        project_factory(log.encode("cp1252"), *columns, 'data.columns.value="Preis"', 'data.timezone="Europe/Berlin"')
    )
    assert raw.frame["user_id"].to_list() == ["Müller", "Weiß"]
    assert raw.frame["value"].to_list() == [3.5, 1234.0]
    assert raw.frame["timestamp"][0] == 1_767_164_700_000_000  # 2025-12-31T07:05:00Z
    assert raw.info == (
        "log.csv: csv (semicolons), cp1252, re-coded to utf-8; stamps: day first, Europe/Berlin; decimal comma"
    )


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_read_events_of_each_file_format_gives_equal_events(
    project_factory: ProjectFactory, tmp_path: Path, kind: str, packing: str
) -> None:
    rows = pl.DataFrame({"user_id": [1, 2], "item_id": ["01", "x"], "timestamp": [1735732800, 1735732801]})
    path = tmp_path / "plain"
    {"csv": rows.write_csv, "jsonl": rows.write_ndjson, "parquet": rows.write_parquet}[kind](path)
    content = path.read_bytes()
    packed = gzip.compress(content) if packing == "gzip" else pa.compress(content, codec="zstd", asbytes=True)
    raw = read_events(project_factory(packed, name=f"log.{kind}.{'gz' if packing == 'gzip' else 'zst'}"))
    assert raw.frame.select("user_id", "item_id", "timestamp", "event_type").rows() == [
        ("1", "01", 1_735_732_800_000_000, "interaction"),
        ("2", "x", 1_735_732_801_000_000, "interaction"),
    ]


def test_read_events_of_parquet_keeps_types(project_factory: ProjectFactory, tmp_path: Path) -> None:
    big = 2**62 + 1
    frame = pl.DataFrame(
        {
            "user_id": pl.Series([17850.0, None, 3.0]),  # integers with nulls as pandas writes them
            "item_id": pl.Series([big, 2, 3], dtype=pl.UInt64),
            "timestamp": pl.Series([datetime(2025, 1, 1, 12, 0, 0, 1)] * 3, dtype=pl.Datetime("ns")),  # noqa: DTZ001
            "value": pl.Series(["1.10", "2", "3"]).cast(pl.Decimal(10, 2)),
            "event_type": pl.Series(["view", "buy", "buy"], dtype=pl.Categorical),
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    columns = ('data.columns.value="value"', 'data.columns.event_type="event_type"')
    raw = read_events(project_factory(None, *columns, name="log.parquet"))
    row = raw.frame.row(0, named=True)
    assert (row["user_id"], row["item_id"], row["value"], row["event_type"]) == ("17850", str(big), 1.1, "view")
    assert row["timestamp"] == 1_735_732_800_000_001
    assert [(row.line, row.reason) for row in raw.rejects] == [(2, "no user_id")]
    assert json.loads(raw.rejects[0].raw)["item_id"] == 2


def test_read_events_with_fractions_or_lists_as_ids_raises(project_factory: ProjectFactory, tmp_path: Path) -> None:
    for ids in ([1.5, 2.0], [[1], [2]]):
        pl.DataFrame({"user_id": ids, "item_id": [1, 2], "timestamp": [1, 2]}).write_parquet(tmp_path / "log.parquet")
        with pytest.raises(UserError, match=r"data.columns.user_id \(user_id\)"):
            read_events(project_factory(None, name="log.parquet"))


def test_read_events_of_json_lines_rejects_invalid_lines(project_factory: ProjectFactory) -> None:
    lines = [
        '{"user_id": 1, "item_id": "a", "timestamp": "2025-01-01T00:00:00Z"}',
        "not json",
        '{"user_id": null, "item_id": "a", "timestamp": "2025-01-01T00:00:00Z"}',
        '{"item_id": "a", "user_id": "2", "timestamp": "2025-01-01T00:00:00Z"}',
    ]
    raw = read_events(project_factory("\n".join(lines), name="log.jsonl"))
    assert raw.frame["user_id"].to_list() == ["1", "2"]
    assert [(row.line, row.reason.split(":")[0]) for row in raw.rejects] == [(2, "not JSON"), (3, "no user_id")]


def test_read_events_of_a_folder_reads_files_by_name(project_factory: ProjectFactory, tmp_path: Path) -> None:
    for day, stamp in (("1", "31/12/2025"), ("2", "01/02/2025"), ("3", "")):
        (tmp_path / "days").mkdir(exist_ok=True)
        (tmp_path / "days" / f"{day}.csv").write_text(HEAD + (f"u{day},i,{stamp}\n" if stamp else ""))
    raw = read_events(project_factory(None, name="days"))
    assert raw.frame["user_id"].to_list() == ["u1", "u2"]
    assert raw.info.startswith("days/1.csv, days/2.csv")


def test_read_events_without_an_event_type_uses_interaction(project_factory: ProjectFactory) -> None:
    raw = read_events(
        project_factory(
            "user_id,item_id,timestamp,kind\nu,i,2025-01-01,\nu,i,2025-01-01,buy\n", 'data.columns.event_type="kind"'
        )
    )
    assert raw.frame["event_type"].to_list() == ["interaction", "buy"]


def test_read_items_rejects_invalid_ids_and_attributes(project_factory: ProjectFactory, tmp_path: Path) -> None:
    many = {f"a{n}": 1 for n in range(65)}
    rows = [
        {"item_id": "i", "a": 1}, {"item_id": "i" * 513}, {"item_id": "j", **many}, {"item_id": "k", "b" * 513: 1},
        {"item_id": "l\0m"}, {"item_id": "l", "\0": 1},
    ]  # fmt: skip
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    read = read_items(project_factory(HEAD + "u,i,2025-01-01\n", 'data.items="items.jsonl"'))
    assert read is not None
    assert read.frame["item_id"].to_list() == ["i"]
    assert [reject.reason for reject in read.rejects] == [
        "item_id: expected at most 512 bytes without the character NUL",
        "attributes: 65 names; expected at most 64",
        "attributes: a name of 513 bytes; expected at most 512 bytes",
        "item_id: expected at most 512 bytes without the character NUL",
        "attributes: expected names without the character NUL",
    ]


def test_read_items_gives_json_attributes_with_typed_numbers(project_factory: ProjectFactory, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(
        "item_id,name,price,size,zip,new,empty\n01,Tee,3.50,10,01234,true,\n02,,2,,99999,FALSE,\n,x,1,1,1,true,\n"
    )
    found = read_items(project_factory(HEAD + "u,i,2025-01-01\n", 'data.items="items.csv"'))
    assert found is not None
    assert found.frame["item_id"].to_list() == ["01", "02"]
    assert found.frame["attributes"].to_list() == [
        '{"name":"Tee","new":true,"price":3.5,"size":10,"zip":"01234"}',
        '{"new":false,"price":2.0,"zip":"99999"}',
    ]
    assert [row.reason for row in found.rejects] == ["no item_id"]


def test_read_users_from_json_keeps_types(project_factory: ProjectFactory, tmp_path: Path) -> None:
    (tmp_path / "users.jsonl").write_text('{"user_id": 1, "age": "30", "tags": ["a"], "x": null}\n')
    found = read_users(project_factory(HEAD + "u,i,2025-01-01\n", 'data.users="users.jsonl"'))
    assert found is not None
    assert found.frame.row(0, named=True)["attributes"] == '{"age":"30","tags":["a"]}'


def test_read_items_without_the_id_column_raises(project_factory: ProjectFactory, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("itm_id,name\n1,Tee\n")
    with pytest.raises(UserError, match=r"data.columns.item_id=item_id: .* nearest: itm_id"):
        read_items(project_factory(HEAD, 'data.items="items.csv"'))


def test_read_items_without_a_configured_file_is_none(project_factory: ProjectFactory) -> None:
    assert read_items(project_factory(HEAD)) is None


def folder_of(tmp_path: Path, second_file: str) -> str:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "1.csv").write_text("timestamp,user_id,item_id,price\n2025-01-01,u,i,5\n")
    (tmp_path / "log" / "2.csv").write_text(second_file)
    return 'data.events="log"'


def test_read_events_of_a_file_without_an_optional_column_fills_nulls(
    project_factory: ProjectFactory, tmp_path: Path
) -> None:
    events = folder_of(tmp_path, "item_id,user_id,timestamp\nj,v,2025-01-02\n")
    raw = read_events(project_factory(None, events, 'data.columns.value="price"'))
    assert raw.frame.select("user_id", "item_id", "value").rows() == [("u", "i", 5.0), ("v", "j", None)]


def test_read_events_of_a_file_without_a_required_column_raises(
    project_factory: ProjectFactory, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"data.columns.item_id=item_id: expected a column of log/2.csv"):
        read_events(project_factory(None, folder_of(tmp_path, "user_id,timestamp\nv,2025-01-02\n")))


def test_read_events_without_a_similar_column_names_none(project_factory: ProjectFactory) -> None:
    with pytest.raises(UserError) as caught:
        read_events(project_factory("user_id,item_id,zzz\nu,i,5\n"))
    assert "nearest" not in str(caught.value)
    assert "it has user_id, item_id, zzz" in str(caught.value)
