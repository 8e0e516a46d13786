"""Form of text tables: separators, headers, lines above them, quotes."""

from __future__ import annotations

from pathlib import Path

import pytest

from recloop.config import Data
from recloop.data.csv.dialect import Dialect, find_dialect, looks_headless
from recloop.data.sources import InputFile
from recloop.data.tables import read_table

HEADER = ("who", "what", "when", "note")


def dialect(path: Path, text: str, **data: str) -> Dialect:
    path.write_text(text, "utf-8")
    return find_dialect(InputFile("data.events", path, path.name), "utf-8", Data.model_validate(data))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", "::", " "])
def test_find_dialect_finds_the_separator_by_rows(tmp_path: Path, separator: str) -> None:
    rows = [separator.join(fields) for fields in (HEADER, ("u1", "i1", "5", "x"), ("u2", "i2", "6", "y"))]
    found = dialect(tmp_path / "a.csv", "\n".join(rows))
    assert (found.separator, found.names, found.n_skipped) == (separator, HEADER, 1)


def test_find_dialect_ignores_other_separators_in_the_header(tmp_path: Path) -> None:
    text = "who;what;when;note (a|b|c|d|e)\n" + "u1;i1;5;a|b\n" * 3
    assert dialect(tmp_path / "a.csv", text).separator == ";"


def test_find_dialect_keeps_decimal_commas_and_clocks_together(tmp_path: Path) -> None:
    assert dialect(tmp_path / "a.csv", "who;what;price\nu;i;3,50\nv;j;4,25\n").separator == ";"
    assert dialect(tmp_path / "c.csv", "id\tname\n1\ta, b, c\n2\td, e, f\n").separator == "\t"
    assert dialect(tmp_path / "b.csv", "7,1,2026-01-01 10:00\n8,2,2026-01-02 11:00\n").separator == ","


def test_find_dialect_with_a_configured_separator_uses_it(tmp_path: Path) -> None:
    assert dialect(tmp_path / "a.csv", "a;b,c;d\n1;2,3;4\n", separator=",").names == ("a;b", "c;d")


@pytest.mark.parametrize(
    ("above", "separator", "n_titles"),
    [
        ("sep=;\n", ";", 1),
        ("Report of May\n\n", ",", 1),
        ("Report of May\nall shops\n", ",", 2),
        ("Shop A,,,\n", ",", 1),
    ],
)
def test_find_dialect_skips_lines_above_the_header(tmp_path: Path, above: str, separator: str, n_titles: int) -> None:
    text = above + separator.join(HEADER) + "\n" + separator.join(("u", "i", "1", "x")) + "\n"
    found = dialect(tmp_path / "a.csv", text)
    assert (found.separator, found.names, found.n_titles) == (separator, HEADER, n_titles)


def test_find_dialect_keeps_a_header_that_is_shorter_than_its_rows(tmp_path: Path) -> None:
    found = dialect(tmp_path / "a.csv", "a,b,c\n1,2,3,4\n5,6,7,8\n")
    assert (found.names, found.n_titles) == (("a", "b", "c"), 0)


@pytest.mark.parametrize("text", ["a,b,\n1,2\n3,4\n", "a,b\n1,2,\n3,4,\n", "a, b\n1, 2\n"])
def test_find_dialect_ignores_a_separator_at_the_end_and_blanks(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    assert dialect(path, text).names[:2] == ("a", "b")
    read = read_table(InputFile("FILE", path, path.name), Data(), ["a", "b"])
    assert read.frame.row(0) == ("1", "2")
    assert read.broken == {}


def test_read_table_with_blanks_before_quotes_keeps_the_quoted_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a, b, c\n1, "x, y", 3\n2, "z\nw", 4\n5\n')
    read = read_table(InputFile("FILE", path, path.name), Data())
    assert read.frame.rows() == [("1", "x, y", "3"), ("2", "z\nw", "4")]
    assert read.locate(read.broken) == [(5, "5")]


def test_find_dialect_without_a_header_numbers_the_columns(tmp_path: Path) -> None:
    found = dialect(tmp_path / "a.csv", "7\t8\t9\n1\t2\t3\n", header="false")
    assert (found.names, found.n_skipped) == (("c1", "c2", "c3"), 0)


def test_find_dialect_without_headers_keeps_the_names_of_a_catalog(tmp_path: Path) -> None:
    found = dialect(tmp_path / "a.csv", "#id,kind,age\nu1,m,20\nu2,f,31\n", header="false")
    assert (found.names, found.n_skipped) == (("#id", "kind", "age"), 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7,8,1767636639,view\n9,3,1767636700,cart\n", True),
        ("5,5,1767636639,pv\n9,3,1767636700,pv\n", True),  # two equal values
        ("1::Lost City (1960)::Drama\n2::Story (1961)::Comedy|Drama\n3::Other (1962)::Drama\n", True),
        ("1\tU7\t11/9/2019 12:27:58 AM\t\tN5-1 N6-0\n2\tU8\t11/9/2019 1:02:03 AM\tN1\tN7-0\n", True),
        ("user,item,time\n7,8,1767636639\n9,3,1767636700\n", False),
        ("user,2024,2025\nu7,8,9\nu8,3,4\n", False),
        ("c1,c2,c3\nu1,i1,5\nu2,i2,6\n", False),
        ("name,brand\nTea,Acme\nBread,Acme\n", False),
        ("user,item\n", False),
    ],
)
def test_looks_headless_compares_the_first_line_with_the_next(tmp_path: Path, text: str, expected: bool) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    assert looks_headless(InputFile("FILE", path, path.name)) is expected
