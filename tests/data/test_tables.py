"""Tables: each row of a file is read or reported as broken with line and raw text."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest

from recloop.config import Data
from recloop.data.sources import InputFile
from recloop.data.tables import read_table, sample_table
from recloop.errors import UserError


def table(path: Path, content: bytes | str):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(InputFile("data.events", path, path.name), Data())


def test_read_table_keeps_texts(tmp_path: Path) -> None:
    read = table(tmp_path / "a.csv", 'a,b\n 1,01\n1e5,null\n"",NA\n"x ""y"" z","a,b"\n')
    assert read.frame.rows() == [(" 1", "01"), ("1e5", "null"), ("", "NA"), ('x "y" z', "a,b")]
    assert read.broken == {}


def test_read_table_reports_rows_of_wrong_length_with_lines(tmp_path: Path) -> None:
    read = table(tmp_path / "a.csv", 'a,b,c\n1,2,3\n1,2\n"x\ny",5,6\n\n1,2,3,4\n7,8,9\n')
    assert read.frame["a"].to_list() == ["1", "x\ny", "7"]
    assert read.broken == {1: "expected 3 fields, found 2", 3: "expected 3 fields, found 4"}
    assert read.locate(read.broken) == [(3, "1,2"), (7, "1,2,3,4")]
    assert [read.line_of(row) for row in range(3)] == [2, 4, 8]
    assert read.locate(read.record_of([1, 2])) == [(4, '"x\ny",5,6'), (8, "7,8,9")]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_read_table_separator_is_that_of_the_header(tmp_path: Path, separator: str) -> None:
    other = "," if separator != "," else ";"
    read = table(tmp_path / "a.csv", separator.join(["a", f"b{other}x", "c"]) + "\n" + separator.join("123") + "\n")
    assert read.separator == separator
    assert read.frame.rows() == [("1", "2", "3")]


def test_read_table_with_an_open_quote_raises_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the one in line 3 is never closed") as caught:
        table(tmp_path / "a.csv", 'a,b\n1,2\n3,"four\n5,6\n7,8\n')
    assert "four" in caught.value.samples[0]


def test_read_table_accepts_crlf_and_a_missing_last_newline(tmp_path: Path) -> None:
    assert table(tmp_path / "a.csv", "a,b\r\n1,2\r\n\r\n3,4").frame.rows() == [("1", "2"), ("3", "4")]


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-8-sig"])
def test_read_table_recodes_other_encodings(tmp_path: Path, encoding: str) -> None:
    read = table(tmp_path / "a.csv", "用户,b\n张伟,绿茶\n李娜\n".encode(encoding))
    assert read.columns == ("用户", "b")
    assert read.frame.rows() == [("张伟", "绿茶")]
    assert read.locate(read.broken) == [(3, "李娜")]


def test_read_table_with_repeated_names_raises_only_if_requested(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b,a\n1,2,3\n")
    source = InputFile("data.events", path, path.name)
    assert read_table(source, Data()).columns == ("a", "b", "a_2")
    assert read_table(source, Data(), names=["b"]).frame.rows() == [("2",)]
    with pytest.raises(UserError, match="one column with this name"):
        read_table(source, Data(), names=["a"])


def test_read_table_of_json_lines_reports_invalid_lines(tmp_path: Path) -> None:
    lines = ['{"a": "01", "b": 1}', "", '{"a": 2, "b": 1.5}', "{oops", "[1]", '{"b": null, "c": [1]}', '{"a": NaN}']
    read = table(tmp_path / "a.jsonl", "\n".join(lines))
    assert read.columns == ("a", "b", "c")
    assert read.frame.rows() == [("01", "1", None), ("2", "1.5", None), (None, None, "[1]")]
    assert sorted(read.broken) == [2, 3, 5]
    assert read.broken[3] == "not a JSON object"
    assert read.locate(read.broken) == [(4, "{oops"), (5, "[1]"), (7, '{"a": NaN}')]


def test_read_table_of_json_handles_lone_surrogates_and_big_numbers(tmp_path: Path) -> None:
    read = table(tmp_path / "a.jsonl", '{"a": "\\ud800"}\n{"a": 9223372036854775808}\n')
    assert list(read.broken) == [0]
    assert read.frame["a"].to_list() == ["9223372036854775808"]


def test_read_table_of_a_damaged_parquet_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"a": list(range(1000))}).write_parquet(path)
    with pytest.raises(UserError, match="complete Parquet file"):
        table(path, path.read_bytes()[:-20])


@pytest.mark.parametrize("packed", [False, True])
def test_sample_table_reads_about_the_rows_in_whole_lines(tmp_path: Path, packed: bool) -> None:
    text = "a,b\n" + "".join(f'{number:07d},"x\n{number:07d}"\n' for number in range(20_000))
    path = tmp_path / "a.csv"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    sample = sample_table(InputFile("FILE", path, path.name), Data(), 5_000)
    assert 2_000 < len(sample.frame) < 10_000
    assert sample.frame.filter(pl.col("b") != "x\n" + pl.col("a")).is_empty()
    assert sample.broken == {}
    assert (sample.frame["a"].max() or "") > "0010000" or packed


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "gb18030"])
def test_sample_table_of_other_encodings_ends_at_a_line(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(("用户,商品\n" + "".join(f"用户{number:06d},绿茶\n" for number in range(9_000))).encode(encoding))
    sample = sample_table(InputFile("FILE", path, path.name), Data(), 3_000)
    assert 2_000 < len(sample.frame) < 8_000
    assert sample.frame["用户"].str.len_chars().unique().to_list() == [8]
    assert sample.broken == {}


def test_sample_table_of_a_small_file_reads_all(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n3,4\n")
    assert len(sample_table(InputFile("FILE", path, path.name), Data(), 5).frame) == 2


def test_sample_table_of_parquet_reads_first_and_middle_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"a": range(4000)}).write_parquet(path, row_group_size=1000)
    sample = sample_table(InputFile("FILE", path, path.name), Data(), 100)
    assert sample.frame["a"].to_list() == [*range(50), *range(2000, 2050)]
