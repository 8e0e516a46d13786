"""`recloop items sync` brings the catalog to a feed, with and without a running service."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from servers import Server

from recloop.errors import Refused, UserError
from recloop.ingest.item_feed import read_feed
from recloop.ingest.item_sync import sync
from recloop.project import Project
from recloop.recommend.catalog import Catalog

MERCHANT = """<?xml version="1.0"?>
<rss version="2.0" xmlns:g="http://base.google.com/ns/1.0"><channel><title>Shop</title>
<item><g:id>i01</g:id><title>Lamp &amp; shade</title><g:price>15.00 USD</g:price><g:availability>in_stock</g:availability>
<g:additional_image_link>a</g:additional_image_link><g:additional_image_link>b</g:additional_image_link>
<g:shipping><g:country>DE</g:country><g:price>5 EUR</g:price></g:shipping></item>
<item><g:id>i02</g:id><title><![CDATA[<b>Cup</b>]]></title><g:price>4 USD</g:price></item>
</channel></rss>"""


def catalog(project: Project) -> Catalog:
    with project.open_log() as log:
        return Catalog.from_frames([project.open_archive().items(), log.items()])


@pytest.fixture
def rows(project: Project) -> list[dict[str, Any]]:
    """The shop's items as rows of a feed."""
    return [{"item_id": item.item_id, **item.attributes} for item in catalog(project)]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[list[dict[str, Any]]], str]:
    """Write rows as a JSON lines feed and return its path."""

    def one(rows: list[dict[str, Any]]) -> str:
        file = tmp_path / "feed.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return str(file)

    return one


def counts(project: Project, file: str, **options: Any) -> dict[str, int]:
    result, _ = sync(project, file, **options)
    return {
        name: value for name, value in result.to_json().items() if name not in {"hidden_share", "dry_run"} and value
    }


def test_feed_hides_missing_items_and_shows_returned_ones(project: Project, rows: list[Any], write: Any) -> None:
    assert counts(project, write(rows)) == {"read": 80, "unchanged": 80}
    first, second, *others = rows
    changed = {**first, "name": "new name"}
    feed = [changed, *others, {"item_id": "new", "name": "new item", "price": 3.5}]
    assert counts(project, write(feed), dry_run=True) == {
        "read": 80,
        "new": 1,
        "changed": 1,
        "hidden": 1,
        "unchanged": 78,
    }
    assert counts(project, write(rows)) == {"read": 80, "unchanged": 80}, "a dry run stores nothing"
    assert counts(project, write(feed)) == {"read": 80, "new": 1, "changed": 1, "hidden": 1, "unchanged": 78}
    present = catalog(project)
    hidden = present.get(second["item_id"])
    assert hidden is not None
    assert (hidden.hidden, hidden.attributes) == (True, {key: second[key] for key in second if key != "item_id"})
    assert present.get("new").attributes == {"name": "new item", "price": 3.5}  # type: ignore[union-attr]
    assert present.get(first["item_id"]).attributes["name"] == "new name"  # type: ignore[union-attr]
    assert counts(project, write(feed)) == {"read": 80, "unchanged": 80}
    assert counts(project, write([*feed, second])) == {"read": 81, "shown": 1, "unchanged": 80}
    assert catalog(project).get(second["item_id"]).hidden is False  # type: ignore[union-attr]


def test_feed_owns_only_the_attributes_that_it_has(project: Project, rows: list[Any], write: Any) -> None:
    with_stock = [{**row, "stock": number} for number, row in enumerate(rows)]
    assert counts(project, write(with_stock)) == {"read": 80, "changed": 80}
    without_price = [{**row, "price": None} if number == 0 else row for number, row in enumerate(rows)]
    assert counts(project, write(without_price)) == {"read": 80, "changed": 1, "unchanged": 79}
    first = catalog(project).get(rows[0]["item_id"])
    assert first is not None
    assert "price" not in first.attributes
    assert first.attributes["stock"] == 0


def test_running_service_applies_the_feed_from_the_next_request(
    project: Project, serving: Callable[..., Server], rows: list[Any], write: Any
) -> None:
    server = serving(project.root)
    listed = server.client.get("/v1/recommend/u01?n=1&filter_seen=false").json()["items"][0]["item_id"]
    server.client.patch(f"/v1/items/{rows[0]['item_id']}", json={"attributes": {"stock": 7}})
    feed = [row for row in rows if row["item_id"] != listed] + [{"item_id": "new", "name": "new item"}]
    assert counts(project, write(feed)) == {"read": 80, "new": 1, "hidden": 1, "unchanged": 79}
    items = server.client.get("/v1/recommend/u01?n=100&filter_seen=false").json()["items"]
    assert listed not in {slot["item_id"] for slot in items}
    assert server.client.get("/v1/items/new").json()["attributes"] == {"name": "new item"}
    assert server.client.get(f"/v1/items/{rows[0]['item_id']}").json()["attributes"]["stock"] == 7


def test_row_that_the_service_rejects_is_an_error(
    project: Project, serving: Callable[..., Server], rows: list[Any], write: Any
) -> None:
    serving(project.root, "--set", "serve.limits.id_bytes=10")
    with pytest.raises(UserError, match="an item that the service stores"):
        sync(project, write([*rows, {"item_id": "longer than 10"}]))


def test_feed_that_leaves_out_many_items_needs_force(project: Project, rows: list[Any], write: Any) -> None:
    with pytest.raises(Refused, match=r"leaves out=0\.5000, threshold 0\.2: 40 items would be hidden"):
        sync(project, write(rows[:40]))
    assert not any(item.hidden for item in catalog(project))
    assert counts(project, write(rows[:40]), force=True) == {"read": 40, "hidden": 40, "unchanged": 40}
    assert sum(item.hidden for item in catalog(project)) == 40


def test_feed_row_that_cannot_be_stored_changes_nothing(project: Project, rows: list[Any], write: Any) -> None:
    result, rejected = sync(project, write([*rows, {"item_id": "x" * 600}, {"name": "no id"}]))
    assert (result.rejected, result.unchanged) == (2, 80)
    assert [reason.partition(":")[0] for _, reason in rejected] == ["item_id", "no item_id"]
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    with pytest.raises(UserError, match="levels"):
        sync(project, write([*rows, {"item_id": "new"}, {"item_id": "deep", "tree": deep}]))
    assert catalog(project).get("new") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("i01,Lamp,15.00\ni02,Cup,4.00\n", "names of columns.*try: write the names in the first line"),
        ("<!doctype html><html><body>502 Bad Gateway</body></html>", "a feed; the file is an HTML page"),
        ("<html><body><p>404</p></body></html>", "a feed; the file is an HTML page"),
        ("<rss><channel></channel></rss>", "found none"),
        (MERCHANT[:-60], "a complete XML feed"),
        ('<!DOCTYPE x [<!ENTITY a "aa">]><rss><item><id>&a;</id></item></rss>', "document type"),
        ('{"item_id": "i01"}\n{"item_id": "i02", "na', "complete records, but record 2"),
        ("name,price\nlamp,3\n", "item_id"),
    ],
    ids=["empty", "no header", "html page", "html", "no product", "cut", "entities", "cut lines", "no id"],
)
def test_unreadable_feed_is_one_error_and_changes_nothing(
    project: Project, tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "feed"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        sync(project, str(file), force=True)
    assert not any(item.hidden for item in catalog(project))


def test_merchant_xml_and_tsv_give_equal_items(project: Project, tmp_path: Path) -> None:
    xml = tmp_path / "feed.xml"
    xml.write_text(MERCHANT)
    items = read_feed(project, str(xml)).items
    assert items == {
        "i01": {
            "title": "Lamp & shade", "price": 15.0, "price_currency": "USD", "availability": "in_stock",
            "additional_image_link": ["a", "b"],
        },
        "i02": {"title": "<b>Cup</b>", "price": 4.0, "price_currency": "USD"},
    }  # fmt: skip
    tsv = tmp_path / "feed.tsv"
    tsv.write_text("id\ttitle\tprice\tavailability\ni01\tLamp & shade\t15.00 USD\tin_stock\ni02\t<b>Cup</b>\t4 USD\t\n")
    lists = {name: {key: row[key] for key in row if key != "additional_image_link"} for name, row in items.items()}
    assert read_feed(project, str(tsv)).items == lists


def test_parquet_feed_with_another_id_column(project: Project, tmp_path: Path) -> None:
    file = tmp_path / "feed.parquet"
    pl.DataFrame({"sku": [1, 2], "price": [1.5, None]}).write_parquet(file)
    assert read_feed(project, str(file), "sku").items == {"1": {"price": 1.5}, "2": {}}
    with pytest.raises(UserError, match="--id=code: expected a column"):
        read_feed(project, str(file), "code")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server of the test's folder."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_feed_of_a_url_is_read_and_a_missing_one_is_an_error(
    project: Project, web: str, rows: list[Any], write: Any
) -> None:
    write(rows)
    assert counts(project, f"{web}/feed.jsonl?token=1") == {"read": 80, "unchanged": 80}
    with pytest.raises(UserError, match="404"):
        sync(project, f"{web}/other.jsonl")
    with pytest.raises(UserError, match="expected a path, or a URL with http or https"):
        sync(project, "ftp://shop.example/feed.csv")
    with pytest.raises(UserError, match="can be downloaded"):
        sync(project, "http://127.0.0.1:9/feed")
