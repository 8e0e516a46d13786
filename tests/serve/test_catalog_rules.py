"""Availability, expiry and variants in served lists, and their verification."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
import servers

from recloop import loop
from recloop.ingest import item_sync
from recloop.monitoring.verify import verify
from recloop.project import Project, open_project
from recloop.records import SECOND
from recloop.serve import offline
from recloop.serve.app import create
from recloop.serve.service import Service
from recloop.simulation.shop import SimulatedShop

NOON = int(datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp()) * SECOND


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> int:
        self.now += 1
        return self.now


def iso(seconds: int) -> str:
    return datetime.fromtimestamp(NOON / SECOND + seconds, UTC).isoformat()


async def patch(client: httpx.AsyncClient, item_id: str, **attributes: Any) -> None:
    reply = await client.patch(f"/v1/items/{item_id}", json={"attributes": attributes})
    assert reply.json()["accepted"] == 1


@pytest.mark.parametrize("placement", ["home", "cart", "similar"])
def test_sold_out_and_expired_items_leave_lists_and_verify_rebuilds_them(project: Project, placement: str) -> None:
    clock = Clock()

    async def shop(client: httpx.AsyncClient, _: Service) -> None:
        async def listed(user: str = "u14", n: int = 8) -> list[str]:
            parameters = {"n": n, "placement": placement, **({"item": "i01"} if placement == "similar" else {})}
            reply = await client.get(f"/v1/recommend/{user}", params=parameters)
            assert reply.status_code == 200, reply.text
            return [slot["item_id"] for slot in reply.json()["items"]]

        before = await listed()
        first, second, third = before[:3]
        await patch(client, first, availability="out_of_stock")
        await patch(client, second, expiration_date=iso(60))
        await patch(client, third, availability_date=iso(120))
        assert not {first, third} & set(await listed())
        assert second in await listed()
        clock.now = NOON + 59 * SECOND
        assert second in await listed()
        clock.now = NOON + 60 * SECOND
        assert not {first, second, third} & set(await listed(n=200)), "time passes without any event"
        clock.now = NOON + 120 * SECOND
        assert third in await listed()
        await patch(client, first, availability="in_stock")
        await patch(client, second, expiration_date=None)
        assert await listed() == before
        shown_items = await listed("nobody-known")
        await patch(client, shown_items[0], availability=0)
        assert shown_items[0] not in await listed("nobody-known")

    servers.inside(create(project, clock), shop)
    result = verify(project)
    assert (result["checked"], result["equal"], result["unexplained"]) == (9, 9, 0), result["differences"]


def test_items_outside_the_table_follow_the_rules(project: Project) -> None:
    clock = Clock()

    async def shop(client: httpx.AsyncClient, _: Service) -> None:
        rows = [
            {"item_id": "later", "attributes": {"availability_date": iso(60)}},
            {"item_id": "gone", "attributes": {"availability": False}},
            {"item_id": "here", "attributes": {}},
        ]
        await client.post("/v1/items", json=rows)

        async def listed() -> set[str]:
            reply = await client.get("/v1/recommend/u14", params={"n": 1_000})
            return {slot["item_id"] for slot in reply.json()["items"]} & {"later", "gone", "here"}

        assert await listed() == {"here"}
        clock.now = NOON + 60 * SECOND
        assert await listed() == {"here", "later"}

    servers.inside(create(project, clock), shop)
    assert verify(project)["unexplained"] == 0


def test_list_holds_one_item_of_each_group(project: Project) -> None:
    async def shop(client: httpx.AsyncClient, _: Service) -> None:
        async def listed(n: int, **more: Any) -> list[str]:
            reply = await client.get("/v1/recommend/u14", params={"n": n, **more})
            return [slot["item_id"] for slot in reply.json()["items"]]

        before = await listed(10)
        total = len(await listed(1_000))
        for item_id in before[:4]:
            await patch(client, item_id, item_group_id="shirt")
        after = await listed(10)
        assert after[0] == before[0]
        assert not set(before[1:4]) & set(after)
        assert len(after) == 10, "the next items move up"
        assert after[1:7] == before[4:]
        assert len(await listed(1_000)) == total - 3, "the fallback holds none of them either"
        await patch(client, before[0], availability="out_of_stock")
        assert (await listed(10))[0] == before[1], "a variant takes the place"
        for item_id in ("i01", "i02", "i03"):
            await patch(client, item_id, item_group_id="tea")
        similar = await listed(50, placement="similar", item="i05")
        assert len({"i01", "i02", "i03"} & set(similar)) <= 1

    servers.inside(create(project), shop)
    assert verify(project)["unexplained"] == 0


def test_properties_name_the_attributes_of_the_feed(project: Project) -> None:
    async def shop(client: httpx.AsyncClient, _: Service) -> None:
        await patch(client, "i01", image_link="https://shop.example/1.jpg", link="https://shop.example/1", price=2.5)
        reply = await client.get("/v1/recommend/u14", params={"n": 100, "properties": "image,url,price,link"})
        (slot,) = [slot for slot in reply.json()["items"] if slot["item_id"] == "i01"]
        assert (slot["image"], slot["url"]) == ("https://shop.example/1.jpg", "https://shop.example/1")
        assert (slot["price"], slot["link"]) == (2.5, "https://shop.example/1")

    servers.inside(create(project), shop)
    assert offline.recommend(project, "u14")["items"]


def test_init_names_the_columns_of_the_items_file(
    tmp_path: Path, cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = SimulatedShop(seed=0)
    shop.events().write_csv(tmp_path / "orders.csv")
    items = shop.items().with_columns(
        pl.lit("in_stock").alias("Stock Status"),
        pl.lit("2027-01-01").alias("expiration_date"),
        pl.lit("p").alias("parent_id"),
    )
    items.write_csv(tmp_path / "products.csv")
    monkeypatch.chdir(tmp_path)
    code, _, error = cli("init", "orders.csv", "--items", "products.csv", "--yes")
    assert code == 0, error
    section = open_project(tmp_path).config.catalog
    assert (section.availability, section.group, section.expires) == ("Stock Status", "parent_id", "expiration_date")
    text = (tmp_path / "recloop.toml").read_text("utf-8")
    assert "expiration_date" not in text.split("[catalog]")[1].split("[")[0], "a default is not written"


def test_merchant_feed_rules_the_lists_without_a_setting(project: Project, tmp_path: Path) -> None:
    ids = project.load_bundle().items.ids.ids
    before = {slot["item_id"] for slot in offline.recommend(project, "u14", 100)["items"]}
    first, second = [slot["item_id"] for slot in offline.recommend(project, "u14", 2)["items"]]
    texts = {
        first: "<g:availability>out_of_stock</g:availability>",
        second: "<g:expiration_date>2020-01-01</g:expiration_date>",
    }
    products = "".join(f"<item><g:id>{item_id}</g:id>{texts.get(item_id, '')}</item>" for item_id in ids)
    feed = tmp_path / "feed.xml"
    feed.write_text(f'<rss xmlns:g="http://base.google.com/ns/1.0"><channel>{products}</channel></rss>', "utf-8")
    item_sync.sync(project, str(feed))
    listed = {slot["item_id"] for slot in offline.recommend(project, "u14", 100)["items"]}
    assert listed == before & set(ids) - {first, second}, "items that the feed leaves out are hidden"


def test_other_names_hold_from_the_next_bundle_on(project: Project) -> None:
    """The rules are part of a bundle, so that decisions of earlier ones can be rebuilt."""
    file = project.root / "recloop.toml"
    file.write_text(file.read_text("utf-8") + '\n[catalog]\navailability = "stock"\ngroup = ""\n', "utf-8")
    renamed = open_project(project.root)

    async def sell_out(client: httpx.AsyncClient, _: Service) -> None:
        reply = await client.get("/v1/recommend/u14", params={"n": 2})
        for slot in reply.json()["items"]:
            await patch(client, slot["item_id"], stock=0)
        again = await client.get("/v1/recommend/u14", params={"n": 2})
        assert [slot["item_id"] for slot in again.json()["items"]] == [
            slot["item_id"] for slot in reply.json()["items"]
        ]

    servers.inside(create(renamed), sell_out)
    before = offline.recommend(renamed, "u14")["items"]
    result = loop.update(renamed, full=True)
    assert result.bundle, result
    rules = renamed.load_bundle(result.bundle).policy.catalog
    assert (rules.availability, rules.group, rules.expires) == ("stock", "", "expiration_date")
    sold = {slot["item_id"] for slot in before[:2]}
    listed = offline.recommend(renamed, "u14", bundle=result.bundle)["items"]
    assert not sold & {slot["item_id"] for slot in listed}
    assert verify(renamed)["unexplained"] == 0
