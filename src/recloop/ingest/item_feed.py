"""Item feeds: a file or URL read to its last row before anything changes."""

from __future__ import annotations

import json
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.error import URLError
from urllib.parse import urlsplit

from recloop.data.entities import read_sources
from recloop.data.merchant_feed import is_html, is_xml, read_products, with_numeric_prices
from recloop.data.sources import InputFile, find
from recloop.data.tables import read_table
from recloop.errors import UserError
from recloop.files import JsonTree
from recloop.project import Project
from recloop.records import ITEM_ID

DOWNLOAD_SECONDS: Final = 60.0  # without a byte
MERCHANT_ID: Final = "id"


@dataclass(frozen=True)
class ItemFeed:
    """Items of a feed.

    Attributes:
        items: Attributes by item id, in file order; of a repeated id the last row.
        read: Rows. rejected: Rows that cannot be stored, as (place, reason).
    """

    items: dict[str, JsonTree]
    read: int
    rejected: list[tuple[str, str]]


def read_feed(project: Project, file: str, id_name: str = "") -> ItemFeed:
    """Read CSV, TSV, JSON lines, Parquet or a Google Merchant XML feed.

    Args:
        file: Path, or URL with http or https.
        id_name: Column of the id; empty: that of the project's items, otherwise ``id``.

    Raises:
        UserError: the feed cannot be read whole.
    """
    with _local(file) as path, _as_table(path) as table:
        sources = find(Path(), str(table), "FILE")
        name = _id_name(project, sources)
        rows = read_sources(project, sources, "FILE", ITEM_ID, id_name or name, "--id" if id_name else "")
    texts = rows.frame.select(ITEM_ID, "attributes").iter_rows()
    items = {item_id: with_numeric_prices(json.loads(attributes)) for item_id, attributes in texts}
    rejected = [(row.place, row.reason) for row in rows.rejects]
    return ItemFeed(items, len(rows.frame) + len(rejected), rejected)


@contextmanager
def _local(file: str) -> Iterator[Path]:
    """Download a URL to a temporary file; a path stays as it is."""
    if urlsplit(file).scheme not in {"http", "https"}:
        if "://" in file:
            raise UserError("FILE", file, "a path, or a URL with http or https", "download it and pass the file")
        yield Path(file)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (Path(urlsplit(file).path).name or "feed")
        try:
            with urllib.request.urlopen(file, timeout=DOWNLOAD_SECONDS) as answer, path.open("wb") as target:  # noqa: S310 - http or https
                shutil.copyfileobj(answer, target)
                length = answer.headers.get("content-length", "")
        except (URLError, OSError) as error:
            raise UserError("FILE", file, f"a feed that can be downloaded ({error})", "check the address") from None
        if length.isdigit() and int(length) != path.stat().st_size:
            raise UserError("FILE", file, f"{length} bytes, but {path.stat().st_size} arrived", "run the command again")
        yield path


@contextmanager
def _as_table(path: Path) -> Iterator[Path]:
    """Convert the products of an XML feed to JSON lines; other files stay."""
    if not path.is_file() or not is_xml(path):
        yield path
        return
    if is_html(path):
        expected = "a feed; the file is an HTML page, such as one of an error or a login"
        raise UserError("FILE", path.name, expected, "open the address of the feed in a browser")
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / f"{path.stem}.jsonl"
        texts = (json.dumps(product, ensure_ascii=False) for product in read_products(path))
        lines.write_text("".join(f"{text}\n" for text in texts), "utf-8")
        yield lines


def _id_name(project: Project, sources: Sequence[InputFile]) -> str:
    """Name of the id column: that of the project's items if the feed has it.

    Raises:
        UserError: a record is broken, so the feed may be cut.
    """
    data = project.config.data
    name = data.item_key or data.columns.item_id
    tables = [read_table(source, data, [name, MERCHANT_ID]) for source in sources]
    for table in tables:
        for record, reason in sorted(table.broken.items())[:1]:
            expected = f"complete records, but record {record + 1} is not one ({reason})"
            raise UserError("FILE", table.source.name, expected, "write or download the feed again")
    columns = tables[0].columns
    return MERCHANT_ID if name not in columns and MERCHANT_ID in columns else name
