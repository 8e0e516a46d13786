"""Records of files that were read: members of archives have content and size of their own."""

from __future__ import annotations

import zipfile
from pathlib import Path

from recloop.data.new_files import _grown, records_of
from recloop.data.sources import InputFile, find

FIRST_DAY = b"user_id,item_id\nu1,i1\n"


def members(root: Path, contents: dict[str, bytes], packing: int) -> list[InputFile]:
    with zipfile.ZipFile(root / "log.zip", "w", packing) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return find(root, "log.zip", "data.events")


def test_records_of_members_differ_and_do_not_depend_on_their_compression(tmp_path: Path) -> None:
    contents = {"1.csv": FIRST_DAY, "2.csv": FIRST_DAY + b"u2,i2\n"}
    stored = records_of(members(tmp_path, contents, zipfile.ZIP_STORED))
    assert [(record.name, record.bytes) for record in stored] == [("log.zip/1.csv", 22), ("log.zip/2.csv", 28)]
    assert stored[0].sha256 != stored[1].sha256
    assert records_of(members(tmp_path, contents, zipfile.ZIP_DEFLATED)) == stored


def test_a_member_with_new_lines_at_its_end_has_grown(tmp_path: Path) -> None:
    (old,) = records_of(members(tmp_path, {"1.csv": FIRST_DAY}, zipfile.ZIP_DEFLATED))
    (longer,) = members(tmp_path, {"1.csv": FIRST_DAY + b"u2,i2\n"}, zipfile.ZIP_DEFLATED)
    assert _grown(longer, old)[1]
    (changed,) = members(tmp_path, {"1.csv": FIRST_DAY.replace(b"u1", b"u9") + b"u2,i2\n"}, zipfile.ZIP_DEFLATED)
    assert not _grown(changed, old)[1]
