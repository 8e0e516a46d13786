"""Encodings: strict decoding of whole files, lines of another encoding, NUL bytes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from recloop.config import Data
from recloop.data.encoding import encoding_of, scan_text
from recloop.data.sources import InputFile
from recloop.data.tables import read_table
from recloop.errors import UserError


def source(path: Path, content: bytes) -> InputFile:
    path.write_bytes(content)
    return InputFile("data.events", path, path.name)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("user,item\nKundin 3,Größe 7\nKundin 4,Größe 12\n", "cp1252"),
        ("user,item\nZoë,señor ½\nAndré,crème brûlée\nÁgnes,€ 5\n", "cp1252"),
        ("user,item\n张伟,T恤 L\n李娜,iPhone手机\n王,绿茶(大)\n", "gb18030"),
    ],
)
def test_encoding_of_other_texts_is_decided_over_all_words(tmp_path: Path, text: str, encoding: str) -> None:
    log = source(tmp_path / "a.csv", text.encode(encoding))
    assert encoding_of(log) == encoding
    assert ",".join(read_table(log, Data()).frame.row(0)) == text.splitlines()[1]


@pytest.mark.parametrize("encoding", ["cp1251", "euc_jp", "euc_kr", "iso8859_7"])
def test_encoding_of_texts_without_a_known_encoding_raises(tmp_path: Path, encoding: str) -> None:
    words = {
        "cp1251": "чайник,хлеб", "euc_jp": "おちゃ,パン", "euc_kr": "녹차,사과나무", "iso8859_7": "καφές,ψωμί",
    }[encoding]  # fmt: skip
    with pytest.raises(UserError, match="iconv -f ENCODING -t UTF-8 log"):
        encoding_of(source(tmp_path / "log.csv", ("a,b\n" + f"{words}\n" * 9).encode(encoding)))


@pytest.mark.parametrize("configured", ["auto", "utf-8"])
def test_read_table_rejects_the_line_that_is_not_utf8(tmp_path: Path, configured: str) -> None:
    lines = ["a,b,c"] + [f"{n},Größe,x" for n in range(5)]
    content = "\n".join(lines).encode() + b"\n5,Gr\xf6\xdfe,x\n6,Gr\xc3\xb6\xc3\x9fe,\xff\n7,x,y\n"
    log = source(tmp_path / "a.csv", content)
    read = read_table(log, Data(encoding=configured), ["a", "b"])
    assert read.frame["a"].to_list() == ["0", "1", "2", "3", "4", "6", "7"]
    assert read.broken == {5: "bytes that are not utf-8"}
    assert read.locate(read.broken) == [(7, "5,Gr\ufffd\ufffde,x")]
    assert read.line_of(6) == 9


def test_read_table_with_text_across_blocks_decodes_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recloop.data.sources.BLOCK_BYTES", 7)
    rng = random.Random(0)
    names = [":".join(rng.choices("张伟李娜绿茶a", k=3)) for _ in range(50)]
    text = "who::what\n" + "".join(f"{name}::{name}\n" for name in names)
    for encoding in ("utf-8", "gb18030"):
        log = source(tmp_path / encoding, text.encode(encoding))
        read = read_table(log, Data(encoding=encoding))
        assert read.frame.rows() == [(name, name) for name in names]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gb18030"])
def test_scan_text_with_nul_bytes_raises_with_the_line(tmp_path: Path, encoding: str) -> None:
    text = "who,what\n" + "张伟,绿茶\n" * 9 + "a,b\0\n"
    with pytest.raises(UserError, match="without NUL bytes; line 11 has one") as caught:
        scan_text(source(tmp_path / "log.csv", text.encode(encoding)))
    assert "cat log.csv | tr -d '\\000' > NEW" in str(caught.value)
