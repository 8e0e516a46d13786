"""Input files: found files, encodings and formats, and fingerprints of imports."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest

from recloop.config import Data
from recloop.data.encoding import encoding_of
from recloop.data.sources import InputFile, find, fingerprint
from recloop.errors import UserError

HANZI = "用户,商品\n张伟,绿茶和红茶\n李娜,面包\n"
UMLAUTS = "user_id,item_id\nZürich,Gemüsebrühe\nMüller,Käse größer\n"


def source(path: Path, content: bytes) -> InputFile:
    path.write_bytes(content)
    return InputFile("data.events", path, path.name)


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (HANZI.encode(), "utf-8"),
        (b"\xef\xbb\xbf" + HANZI.encode(), "utf-8"),
        (HANZI.encode("gb18030"), "gb18030"),
        (("plain,text\n" * 300_000 + "用户,茶\n").encode("gb18030"), "gb18030"),  # visible only in a later block
        (UMLAUTS.encode("cp1252"), "cp1252"),
        (UMLAUTS.encode("utf-16"), "utf-16"),
        (UMLAUTS.encode("utf-16-le"), "utf-16-le"),
        (UMLAUTS.encode("utf-16-be"), "utf-16-be"),
        (b"plain,ascii\n1,2\n", "utf-8"),
    ],
)
def test_encoding_of_a_file_is_detected_from_its_bytes(tmp_path: Path, content: bytes, encoding: str) -> None:
    assert encoding_of(source(tmp_path / "log.csv", content)) == encoding


def test_encoding_configured_but_wrong_raises_with_the_byte(tmp_path: Path) -> None:
    broken = source(tmp_path / "log.csv", b"a,b\n\xff,1\n")
    with pytest.raises(UserError, match=r"data\.encoding=utf-8: .*decoding fails at byte 4"):
        encoding_of(broken, "utf-8")


def test_encoding_of_invalid_bytes_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of them"):
        encoding_of(source(tmp_path / "log.csv", b"a,b\n\x81\x20\xff\x20\n"))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"a,b\n1,2\n", "csv"),
        (b'\n  {"a": 1}\n', "jsonl"),
        (b"[\n  {}]", "jsonl"),
        (b"[a],b\n1,2", "csv"),
        ('{"a": "ü"}'.encode("utf-16"), "jsonl"),
        (b"PAR1....", "parquet"),
    ],
)
def test_file_kind_is_detected_from_the_bytes(tmp_path: Path, content: bytes, kind: str) -> None:
    assert source(tmp_path / "log.txt", content).kind == kind


def test_compressed_files_are_unpacked_independent_of_their_name(tmp_path: Path) -> None:
    assert source(tmp_path / "a", gzip.compress(b"a,b\n")).head() == b"a,b\n"
    assert source(tmp_path / "b", pa.compress(b"a,b\n", codec="zstd", asbytes=True)).head() == b"a,b\n"


def test_gzip_truncated_raises(tmp_path: Path) -> None:
    cut = source(tmp_path / "log.csv.gz", gzip.compress(b"a,b\n" * 1000)[:-9])
    with pytest.raises(UserError, match="complete gzip file"):
        list(cut.blocks())


@pytest.mark.parametrize(("content", "said"), [(b"PK\x03\x04xx", "complete zip"), (b"SQLite format 3", "SQLite")])
def test_unsupported_files_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _ = source(tmp_path / "log.xlsx", content).kind


def test_find_accepts_a_file_a_glob_and_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "days"
    (folder / "b").mkdir(parents=True)
    for name in ("2.csv", "10.csv", "b/1.jsonl.gz", ".hidden.csv", "_SUCCESS", "notes.md"):
        (folder / name).write_text("x")
    assert [s.name for s in find(tmp_path, "days", "data.events")] == ["days/10.csv", "days/2.csv", "days/b/1.jsonl.gz"]
    assert [s.name for s in find(tmp_path, "days/*.csv", "data.events")] == ["days/10.csv", "days/2.csv"]
    assert [s.name for s in find(tmp_path, str(folder / "2.csv"), "data.events")] == [(folder / "2.csv").as_posix()]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lgo.csv", "nearest: log.csv"),
        ("no/log.csv", "does not exist"),
        ("*.parquet", "an existing file"),
        ("empty", "a folder with"),
    ],
)
def test_find_without_a_match_names_the_nearest(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "log.csv").write_text("a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=said) as caught:
        find(tmp_path, text, "data.events")
    assert caught.value.name == "data.events"


@pytest.mark.parametrize(
    ("key", "fix"), [("data.events", "set data.events to another file"), ("FILE", "pass another file as FILE")]
)
def test_find_of_an_empty_file_names_how_to_use_another(tmp_path: Path, key: str, fix: str) -> None:
    (tmp_path / "log.csv").touch()
    with pytest.raises(UserError, match="0 bytes") as caught:
        find(tmp_path, "log.csv", key)
    assert caught.value.fix == fix


def test_fingerprint_depends_on_settings_bytes_and_paths(tmp_path: Path) -> None:
    log = source(tmp_path / "log.csv", b"a,b\n")
    same = fingerprint(Data(), [log])
    assert fingerprint(Data(), [log]) == same
    assert fingerprint(Data(timezone="Europe/Berlin"), [log]) != same
    assert fingerprint(Data(), [InputFile("data.events", log.path, "other.csv")]) != same
    assert fingerprint(Data(), [source(tmp_path / "log.csv", b"a,c\n")]) != same
