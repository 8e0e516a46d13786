"""The console in a real browser: what it shows, promote and rollback by click, and no request to another host."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect, sync_playwright
from starlette.applications import Starlette

from recloop import bundle as bundles
from recloop import loop, release
from recloop.backends import open_control
from recloop.config import open_project
from recloop.recommend.catalogue import Catalogue
from recloop.recommend.recommender import Recommender, make_golden
from recloop.recommend.states import state_of_tree
from recloop.serve import desk
from recloop.world import World

CHROMIUM = Path("/usr/bin/chromium")
WAIT = 30_000


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """A server over a live bundle and a child of it that is registered: url, live, child."""
    folder = World(seed=0, users=60, items=80).write(tmp_path_factory.mktemp("console") / "shop")
    with (folder / "recloop.toml").open("a", encoding="utf-8") as file:
        file.write('[model]\nname = "covisitation"\n[release]\nshadow = 1.0\n')
    project = open_project(folder)
    live = loop.turn(project).bundle
    placements = live.policy["placements"]
    home = {**placements["home"], "weights": {"history": 1.0, "neighbours": 1.0, "popular": 0.5}}
    policy = {**live.policy, "placements": {**placements, "home": home}}
    child = replace(live, policy=policy)
    own = Recommender(child, Catalogue.of_table(child.items.ids.ids, child.items.attributes))
    states = [state_of_tree(case["state"]) for case in live.golden]
    golden = make_golden(own, ["golden"] * len(states), states, live.cut, "home", 10)
    child = bundles.write(replace(child, golden=golden), project.bundles, datetime(2025, 7, 1, tzinfo=UTC))
    control = open_control(project.config.stores.control, project.root)
    sha256 = bundles.manifest_hash(project.bundles / child.id)
    release.register(control, child.id, sha256, by="a test", reason="other weights", at=1_751_328_000_000_000)
    with (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "recloop", "-C", str(folder), "serve", "--port", "0"], stdout=subprocess.PIPE,
            stderr=errors, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    assert process.stdout is not None
    ready = re.match(r"ready (\S+)", process.stdout.readline())
    assert ready, (folder / "stderr").read_text()
    for number in range(1, 41):
        assert httpx.get(f"{ready[1]}/v1/recommend/u{number:02}", timeout=20).status_code == 200
    yield ready[1], live.id, child.id
    process.terminate()
    try:
        assert process.wait(40) == 0
    finally:
        process.kill()
        process.stdout.close()
    assert "Traceback" not in (folder / "stderr").read_text()


@pytest.fixture
def page(served: tuple[str, str, str]) -> Iterator[Page]:
    """The page in Debian's chromium; a request to another host fails the test."""
    if not CHROMIUM.exists():
        pytest.skip("needs /usr/bin/chromium: apt-get install chromium")
    elsewhere: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1180, "height": 1300})
        opened.on(
            "request",
            lambda one: (
                elsewhere.append(one.url)
                if not one.url.startswith((served[0], "data:", "blob:", served[0].replace("http", "ws")))
                else None
            ),
        )
        opened.goto(served[0], timeout=WAIT)
        yield opened
        browser.close()
    assert elsewhere == []


def test_promote_and_rollback_by_click(served: tuple[str, str, str], page: Page, root: Path) -> None:
    url, live, child = served
    with httpx.Client(base_url=url, timeout=20) as client:
        expect(page.get_by_test_id("live")).to_have_text(f"live: {live}", timeout=WAIT)
        health = client.get("/v1/status").json()["health"]["hour"]["live"]["home"]
        row = page.locator("tr", has_text="hour").inner_text()
        assert health["requests"] == 40
        for name in ("entropy", "long_tail_share", "cold_coverage", "coverage"):
            assert f"{health[name]:.3f}" in row, (name, row)
        page.get_by_test_id("promote").click()
        expect(page.get_by_text("a reason is kept with every move")).to_be_visible(timeout=WAIT)
        page.get_by_test_id("reason").fill("a look at other weights")
        page.get_by_test_id("to").click()
        page.get_by_role("option", name="live").click()
        page.get_by_test_id("promote").click()
        expect(page.get_by_test_id("live")).to_have_text(f"live: {child}", timeout=WAIT)
        assert client.get("/v1/status").json()["live"] == child
        page.get_by_test_id("user").fill("u05")
        page.get_by_test_id("show").click()
        expect(page.get_by_text("List now")).to_be_visible(timeout=WAIT)
        served_now = [slot["item_id"] for slot in client.get("/v1/recommend/u05").json()["items"]]
        assert len(served_now) == 10
        expect(page.locator(".q-notification")).to_have_count(0, timeout=WAIT)
        (root / "docs" / "img").mkdir(exist_ok=True)
        page.screenshot(path=str(root / "docs" / "img" / "console.png"), full_page=True)
        page.get_by_test_id("rollback").click()
        expect(page.get_by_test_id("live")).to_have_text(f"live: {live}", timeout=WAIT)
        assert client.get("/v1/status").json()["live"] == live
        moves = [one for one in client.get("/v1/status").json()["bundles"] if one["bundle"] == live]
        assert moves[0]["reason"] == "a look at other weights"


def test_the_service_keeps_its_own_answers(served: tuple[str, str, str]) -> None:
    with httpx.Client(base_url=served[0], timeout=20) as client:
        assert client.post("/v1/status").status_code == 405
        assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"
        assert client.get("/metrics").text.startswith("# HELP recloop_")


def test_without_the_extra_the_root_says_how() -> None:
    app = Starlette()
    desk.hint(app, None)  # type: ignore[arg-type]

    async def asked() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return (await client.get("/")).text

    assert 'pip install "recloop[console]"' in asyncio.run(asked())
