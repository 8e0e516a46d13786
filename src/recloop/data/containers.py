"""Compressed files and archives: streams of unpacked bytes, with limits.

gzip, zstd and bzip2 are detected from the first bytes, zip archives by their list of files.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

Packing = Literal["gzip", "zstd", "bz2", "zip"]

PACKING_BY_MAGIC: Final[dict[bytes, Packing]] = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bz2",
    b"PK\x03\x04": "zip",
}
UNPACK_COMMANDS: Final[dict[Packing, str]] = {
    "gzip": "gzip -dc {}",
    "zstd": "zstd -dc {}",
    "bz2": "bzip2 -dc {}",
    "zip": "unzip -p {} {}",
}
OFFICE_MEMBERS: Final = ("[Content_Types].xml", "mimetype")
"""Members that only documents of Excel, Word or LibreOffice have."""
UNPACK_ERRORS: Final = (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile)
MIN_BOMB_BYTES: Final = 1 << 28
"""Unpacked bytes up to which the ratio is not checked."""
MAX_UNPACK_RATIO: Final = 200
MAX_UNPACKED_BYTES: Final = 1 << 36


def packing_of(start: bytes) -> Packing | None:
    """Packing by the first bytes of a file."""
    return next((packing for magic, packing in PACKING_BY_MAGIC.items() if start.startswith(magic)), None)


def members(path: Path) -> list[str] | None:
    """Names of the files in a zip archive.

    None if the file is not an archive or is an office document. Hidden files and folders of the operating system are
    left out.
    """
    with path.open("rb") as file:
        if packing_of(file.read(4)) != "zip":
            return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except UNPACK_ERRORS:
        return None
    if any(name in OFFICE_MEMBERS for name in names):
        return None
    return [name for name in names if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))]


def member_bytes(path: Path, member: str) -> tuple[int, int]:
    """Packed and unpacked size of a member in bytes."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
    return info.compress_size, info.file_size


def open_bytes(path: Path, size: int, member: str = "") -> Any:
    """Arrow stream of the first ``size`` bytes of a file, or of an unpacked member."""
    if member:
        return pa.PythonFile(zipfile.ZipFile(path).open(member), mode="r")
    return pa.OSFile(str(path)).get_stream(0, size)


def unpacked(stream: Any, packing: Packing | None) -> Any:
    """Arrow stream of the unpacked bytes."""
    return stream if packing is None else pa.CompressedInputStream(stream, packing)


def unpack_limit(packed_bytes: int) -> int:
    """Unpacked bytes from which a file is refused."""
    return min(MAX_UNPACKED_BYTES, max(MIN_BOMB_BYTES, MAX_UNPACK_RATIO * packed_bytes))
