"""Archives, compressed files and foreign formats: read, or refused with the conversion."""

from __future__ import annotations

import bz2
import gzip
import sqlite3
import zipfile
from pathlib import Path

import pytest

from recloop.config import Data
from recloop.data import containers
from recloop.data.sources import InputFile, find, fingerprint
from recloop.data.tables import read_table
from recloop.errors import UserError

LOG = b"user_id,item_id\nu1,i1\nu2,i2\n"


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_find_reads_the_tables_of_an_archive_by_name(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "logs.zip",
        {"a/2.csv": LOG, "a/1.csv.json": b"{}", "README.md": b"x", "__MACOSX/a/._2.csv": b"x", "a/3.csv": LOG[:-4]},
    )
    sources = find(tmp_path, "logs.zip", "data.events")
    assert [source.name for source in sources] == ["logs.zip/a/1.csv.json", "logs.zip/a/2.csv", "logs.zip/a/3.csv"]
    assert read_table(sources[1], Data()).frame.rows() == [("u1", "i1"), ("u2", "i2")]
    assert fingerprint(Data(), sources[1:2]) != fingerprint(Data(), [InputFile("data.events", path, sources[1].name)])
    archive(path, {"a/3.csv": b"a,b\n\0\n"})
    with pytest.raises(UserError, match=r"data.events=logs.zip/a/3.csv: expected text without NUL bytes"):
        read_table(find(tmp_path, "logs.zip", "data.events")[0], Data())


def test_find_reads_the_only_member_of_an_archive(tmp_path: Path) -> None:
    archive(tmp_path / "ratings.zip", {"ml/ratings.dat": b"1::2::3\n4::5::6\n"})
    (source,) = find(tmp_path, "*.zip", "data.events")
    assert read_table(source, Data(header=False)).frame.rows() == [("1", "2", "3"), ("4", "5", "6")]


def test_find_of_an_archive_without_a_table_raises(tmp_path: Path) -> None:
    archive(tmp_path / "a.zip", {"a.md": b"", "b.md": b""})
    with pytest.raises(UserError, match=r"it has a\.md, b\.md"):
        find(tmp_path, "a.zip", "data.events")


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.bz2", "a.zip"])
def test_read_table_of_a_file_that_grows_reads_its_old_size(tmp_path: Path, name: str) -> None:
    pack = {"a.csv.gz": gzip.compress, "a.csv.bz2": bz2.compress}.get(name, bytes)
    path = tmp_path / name
    if name == "a.zip":
        archive(path, {"a.csv": LOG})
    else:
        path.write_bytes(pack(LOG))
    (source,) = find(tmp_path, name, "data.events")
    if name != "a.zip":
        with path.open("ab") as file:
            file.write(pack(b"u3,i3\n"))
        assert len(read_table(find(tmp_path, name, "data.events")[0], Data()).frame) == 3
    assert read_table(source, Data()).frame.rows() == [("u1", "i1"), ("u2", "i2")]


@pytest.mark.parametrize(("ratio", "total"), [(5, 1 << 20), (10**6, 30_000)])
def test_read_table_of_a_file_that_unpacks_without_end_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: int, total: int
) -> None:
    monkeypatch.setattr(containers, "MIN_BOMB_BYTES", 10_000)
    monkeypatch.setattr(containers, "MAX_UNPACK_RATIO", ratio)
    monkeypatch.setattr(containers, "MAX_UNPACKED_BYTES", total)
    bomb = b"user,item\n" + b"u,i\n" * 50_000
    archive(tmp_path / "a.zip", {"a.csv": bomb})
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(bomb))
    for name, command in (("a.zip", "unzip -p a.zip a.csv > NEW"), ("a.csv.gz", "gzip -dc a.csv.gz > NEW")):
        with pytest.raises(UserError, match=r"at most [0-9,]+ unpacked bytes for [0-9,]+ packed ones") as caught:
            read_table(find(tmp_path, name, "data.events")[0], Data())
        assert command in str(caught.value)


@pytest.mark.parametrize("cut", ["a.csv.gz", "a.csv.bz2", "a.zip"])
def test_read_table_of_half_a_file_raises(tmp_path: Path, cut: str) -> None:
    path = tmp_path / cut
    if cut == "a.zip":
        archive(path, {"a.csv": LOG})
    else:
        path.write_bytes((gzip if cut == "a.csv.gz" else bz2).compress(LOG))
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(UserError, match=r"a complete (gzip file|bz2 file|zip archive).*try: compress it again"):
        read_table(find(tmp_path, cut, "data.events")[0], Data())


@pytest.mark.parametrize(
    ("name", "content", "description", "fix"),
    [
        ("a.xls", b"\xd0\xcf\x11\xe0....", "an old Excel document", "libreoffice --headless --convert-to csv a.xls"),
        ("a.html", b"<!DOCTYPE html>\n<p>", "an HTML or XML page", "pandas.read_html('a.html')[0].to_csv('a.html.csv'"),
        ("a.pdf", b"%PDF-1.7 ...", "a PDF document", "export the table as CSV"),
    ],
)
def test_foreign_formats_raise_with_the_conversion(
    tmp_path: Path, name: str, content: bytes, description: str, fix: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_table(find(tmp_path, name, "data.events")[0], Data())
    assert f"this is {description}; try: " in str(caught.value)
    assert fix in str(caught.value)


def test_excel_and_sqlite_files_raise_with_the_conversion(tmp_path: Path) -> None:
    archive(tmp_path / "a.xlsx", {"[Content_Types].xml": b"x", "xl/workbook.xml": b"x"})
    database = sqlite3.connect(tmp_path / "shop.db")
    database.execute("CREATE TABLE orders (a)")
    database.close()
    for name, fix in (
        ("a.xlsx", "libreoffice --headless --convert-to csv a.xlsx"),
        ("shop.db", "sqlite3 -header -csv shop.db 'SELECT * FROM TABLE' > shop.db.csv"),
    ):
        with pytest.raises(UserError) as caught:
            read_table(find(tmp_path, name, "data.events")[0], Data())
        assert str(caught.value).endswith(f"try: {fix}")
