"""Text tables: quotes, broken records, headers that do not fit, long fields."""

from __future__ import annotations

from pathlib import Path

import pytest

from recloop.config import Data
from recloop.data.sources import InputFile, find
from recloop.data.tables import Table, read_table
from recloop.errors import UserError

HEADER = "user\titem\ttitle\n"


def table(path: Path, text: str, names: list[str] | None = None) -> Table:
    path.write_text(text, "utf-8", newline="")
    return read_table(InputFile("data.events", path, path.name), Data(), names)


@pytest.mark.parametrize("title", ['12" pipe', 'pipe 12"', '"Heroes', '"Beauty" and the beast'])
def test_read_table_keeps_stray_quotes_of_tab_files(tmp_path: Path, title: str) -> None:
    read = table(tmp_path / "a.tsv", HEADER + f"u1\ti1\t{title}\nu2\ti2\tother\nu3\ti3\t{title}\n")
    assert read.frame["title"].to_list() == [title, "other", title]
    assert read.locate([1]) == [(3, "u2\ti2\tother")]


def test_read_table_of_a_quoted_tab_file_removes_quotes(tmp_path: Path) -> None:
    read = table(tmp_path / "a.tsv", '"user"\t"item"\n"u1"\t"a\tb"\n"u2"\t"say ""hi"""\n')
    assert read.frame.rows() == [("u1", "a\tb"), ("u2", 'say "hi"')]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_read_table_accepts_each_line_end(tmp_path: Path, end: str) -> None:
    read = table(tmp_path / "a.csv", end.join(["sep=;", "a;b", "1;2", "", "3;4", "5", ""]))
    assert read.how == "csv (semicolons), utf-8, without 1 line above the header"
    assert read.frame.rows() == [("1", "2"), ("3", "4")]
    assert read.locate(read.broken) == [(6, "5")]


def test_read_table_with_a_header_of_other_length_shows_both_lines(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        table(tmp_path / "a.csv", "user,item,price\n" + "u,i,3,50\n" * 9)
    assert "rows of 3 fields as in line 1" in str(caught.value)
    assert "9 of 9 rows have another number: line 2 has 4" in str(caught.value)
    assert caught.value.samples == ("user,item,price", "u,i,3,50")


def test_read_table_with_a_few_broken_rows_rejects_them(tmp_path: Path) -> None:
    read = table(tmp_path / "a.csv", "a,b\n" + "1,2\n" * 9 + "Total\n")
    assert (len(read.frame), read.broken) == (9, {9: "expected 2 fields, found 1"})


def test_read_table_without_names_raises_with_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with pytest.raises(UserError, match=r"values, not names \(7,8,view\); try: header = false under \[data\]"):
        table(path, "7,8,view\n9,3,view\n")
    read = read_table(InputFile("data.events", path, path.name), Data(header=False), ["c1", "c3"])
    assert read.frame.rows() == [("7", "view"), ("9", "view")]
    assert read.columns == ("c1", "c2", "c3")
    assert read.line_of(1) == 2


def test_read_table_with_a_field_of_10_mb_reads_the_rows_beside_it(tmp_path: Path) -> None:
    read = table(tmp_path / "a.csv", f'a,b\n1,2\n3,"{"x" * 10_000_000}"\n5,6\n', ["a"])
    assert read.frame["a"].to_list() == ["1", "3", "5"]


def test_read_table_with_an_open_quote_in_a_long_file_names_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recloop.data.csv.table.BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr("recloop.data.csv.dialect.MAX_FIELD_BYTES", 1 << 12)
    with pytest.raises(UserError, match="look for an unclosed quote in line 3"):
        table(tmp_path / "a.csv", "a,b\n1,2\n" + '3,"x\n' + "456789,0123456789\n" * 1_000)


def test_read_table_of_files_with_other_columns_orders_them_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / "1.csv").write_text("user,item,price\nu,i,1\n")
    (folder / "2.csv").write_text("item;user\nj;v\n")
    tables = [read_table(source, Data(), ["user", "item", "price"]) for source in find(tmp_path, "log", "data.events")]
    assert [table.frame.select("user", "item").row(0) for table in tables] == [("u", "i"), ("v", "j")]
    assert tables[1].columns == ("item", "user")
