"""Console and pages in a browser: reports, moves, refusals, origins; `make test-demo` runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import servers
from access import control_of
from playwright.sync_api import Browser, Page, expect, sync_playwright

import recloop
from recloop import bundle as bundles
from recloop.bundle import Bundle
from recloop.monitoring import experiment, shadow_report
from recloop.project import Project, open_project
from recloop.recommend.catalog import Catalog
from recloop.recommend.golden import make_golden
from recloop.recommend.recommender import Recommender
from recloop.records import SECOND
from recloop.release import assignment
from recloop.storage import api_keys, releases

pytestmark = pytest.mark.slow

CHROMIUM = Path("/usr/bin/chromium")
WAIT = 60_000
HOUR = 3_600
UNKNOWN_USERS = 20
MIXES = {
    "tried": {"history": 1.0, "neighbours": 1.0, "popular": 0.5},
    "shadowed": {"history": 0.0, "neighbours": 0.25, "popular": 1.0},
    "seed": {"history": 1.0, "neighbours": 0.5, "popular": 0.5},
}
ENGINE_CLOSE = "1"
"""Packet of engine.io that ends a session."""
PICTURE = "RECLOOP_PICTURES"
"""Environment variable that names the folder for the screenshots of `make pictures`."""


@dataclass
class ServedProject:
    """A server with one bundle live, one in the experiment, two in the shadow."""

    server: servers.Server
    project: Project
    live: str
    tried: str
    shadowed: str
    seed: str


def child(project: Project, live: Bundle, number: int, weights: dict[str, float]) -> str:
    """Register a copy of the live bundle with other source weights."""
    home = replace(live.policy.placements["home"], weights=weights)
    policy = live.policy.with_placement("home", home)
    made = replace(live, policy=policy)
    own = Recommender(made, Catalog.from_table(made.items.ids.ids, made.items.attributes))
    states = [case.state.to_batch("golden") for case in live.golden]
    golden = [case for state in states for case in make_golden(own, state, made.cut, "home", 10)]
    made = bundles.write(replace(made, golden=golden), project.bundles, datetime(2025, 7, number, tzinfo=UTC))
    control = project.open_control()
    sha256 = bundles.manifest_hash(project.bundles / made.id)
    who: dict[str, Any] = {"by": "a test", "reason": "other weights", "at": 1_751_328_000_000_000}
    releases.register(control, made.id, sha256, evidence={"gates": []}, **who)  # as a bundle that passed its gate
    return made.id


def simulate_two_days(server: servers.Server, tried: str, begin: int) -> None:
    """Simulate two days: users of the candidate arm buy from their lists more often."""
    for hour in (1, 3):
        for number in range(1, 61):
            user = f"u{number:02}"
            time_header = {"X-Recloop-Now": datetime.fromtimestamp(begin + hour * HOUR + number, UTC).isoformat()}
            answer = server.client.get(f"/v1/recommend/{user}", headers=time_header)
            assert answer.status_code == 200, answer.text
            often = 2 if assignment.in_experiment(tried, user, 0.5) else 4
            if (number + hour) % often == 0:
                row = {
                    "user_id": user, "item_id": answer.json()["items"][0]["item_id"], "event_type": "purchase",
                    "event_id": f"{user}-{hour}", "request_id": answer.json()["request_id"],
                }  # fmt: skip
                posted = server.client.post("/v1/events", json=row, headers=time_header)
                assert posted.json()["accepted"] == 1, posted.text
    time_header = {"X-Recloop-Now": datetime.fromtimestamp(begin + 30 * HOUR, UTC).isoformat()}
    for number in range(UNKNOWN_USERS):
        assert server.client.get(f"/v1/recommend/unknown-{number}", headers=time_header).status_code == 200
    server.decided(**time_header)


@pytest.fixture(scope="module")
def served_project(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProject]:
    """The shop with written decisions of the shadow and the experiment."""
    folder = shutil.copytree(trained_folder, tmp_path_factory.mktemp("console") / "shop")
    project = open_project(folder)
    control = project.open_control()
    live = bundles.load(project.bundles / releases.live(control).bundle)  # type: ignore[union-attr]
    names = {name: child(project, live, number, weights) for number, (name, weights) in enumerate(MIXES.items(), 1)}
    words = ("--set", "serve.allow_time_header=true", "--set", "release.shadow_share=1.0")
    server = servers.start(folder, *words, program=("-m", "recloop"))
    try:
        for name, to in (("tried", "experiment"), ("shadowed", "shadow"), ("seed", "shadow")):
            body = {"bundle": names[name], "to": to, "reason": f"a try of {name}"}
            moved = server.client.post("/v1/admin/promote", json=body)
            assert moved.status_code == 200, moved.text
        since = releases.read_state(control).since(names["tried"]).at
        simulate_two_days(server, names["tried"], since // SECOND)
        yield ServedProject(server, project, live.id, **names)
        assert server.stop() == 0
    finally:
        server.close()
    assert server.errors.read_text() == f"console={server.url}/\n"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip("needs /usr/bin/chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(browser: Browser, served_project: ServedProject) -> Callable[..., Any]:
    """Open the page in a new context; requests to other hosts fail."""
    own = (served_project.server.url, served_project.server.url.replace("http", "ws"), "data:", "blob:")

    @contextmanager
    def page(width: int = 1180, height: int = 1300, **options: Any) -> Iterator[Page]:
        requested: list[str] = []
        page_errors: list[str] = []
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        made = context.new_page()
        made.set_default_timeout(WAIT)
        made.on("request", lambda one: requested.append(one.url))
        made.on("websocket", lambda one: requested.append(one.url))
        made.on("pageerror", lambda error: page_errors.append(str(error)))
        made.goto(f"{served_project.server.url}/?token={served_project.server.token}")
        expect(made.get_by_test_id("live")).to_be_visible(timeout=WAIT)
        yield made
        context.close()
        assert requested
        assert [url for url in requested if not url.startswith(own)] == []
        assert page_errors == []

    return page


def text(page: Page, name: str) -> str:
    return " ".join(page.get_by_test_id(name).inner_text().split())


@dataclass
class ShownConsole:
    """Texts of the console after the simulated days, with the status and reports of the same moment."""

    texts: dict[str, str]
    week: str
    """The row of the candidate in the health table."""
    moves: list[str]
    """Rows of the release table, newest first."""
    content: str
    """HTML of the page."""
    status: dict[str, Any]
    compared: dict[str, Any]
    measured: experiment.Verdict


@pytest.fixture(scope="module")
def shown_console(served_project: ServedProject, opened: Any) -> ShownConsole:
    with opened() as page:
        expect(page.get_by_test_id("ratio")).to_be_visible(timeout=WAIT)
        expect(page.get_by_test_id("replica")).to_be_visible(timeout=WAIT)
        texts = {name: text(page, name) for name in ("live", "well", "verify", "tried-shadow", "tried-experiment")}
        week = page.locator("tr", has_text="week").filter(has_text="candidate").inner_text()
        moves = page.get_by_test_id("releases").locator("tbody tr").all_inner_texts()
        content = page.content()
    return ShownConsole(
        texts,
        " ".join(week.split()),
        [" ".join(move.split()) for move in moves],
        content,
        served_project.server.client.get("/v1/status").json(),
        shadow_report.shadow_report(served_project.project),
        experiment.analyze(served_project.project),
    )


def test_console_shows_health_as_in_status(shown_console: ShownConsole, served_project: ServedProject) -> None:
    assert shown_console.texts["live"] == f"live: {served_project.live}"
    assert shown_console.texts["well"] == "healthy"
    assert shown_console.texts["verify"] == "verify: not run yet"
    health = shown_console.status["health"]["week"]["candidate"]["home"]
    shares = [f"{100 * health[name]:.1f} %" for name in ("long_tail_share", "cold_coverage", "coverage")]
    counts = f"{health['requests']} {health['events']} {health['entropy']:.3f}"
    assert shown_console.week == f"week candidate home {counts} {' '.join(shares)} {served_project.tried}"


def test_console_names_no_person_and_no_token(shown_console: ShownConsole, served_project: ServedProject) -> None:
    assert served_project.live in shown_console.content
    assert re.findall(r"unknown-\d|\bu\d\d\b", shown_console.content) == []
    assert served_project.server.token not in shown_console.content


def test_console_shows_the_shadow_as_reported(shown_console: ShownConsole, served_project: ServedProject) -> None:
    compared, panel = shown_console.compared, shown_console.texts["tried-shadow"]
    assert compared["candidate"] == served_project.shadowed
    assert f"Bundle in shadow: {served_project.shadowed}" in panel
    requested = compared["requests"]
    assert f"{requested} requests of {compared['users']} users" in panel
    assert f"Live, scored again {requested} times, gave equal lists each time" in panel
    for measure in ("overlap@10", "tau_b"):
        for side in ("agreement", "noise"):
            estimate = compared[side][measure]
            interval = f"{estimate['value']:.3f} {estimate['low']:.3f} to {estimate['high']:.3f}"
            assert interval in panel, (measure, side)


def test_console_shows_the_experiment_as_analyzed(shown_console: ShownConsole, served_project: ServedProject) -> None:
    measured, panel = shown_console.measured, shown_console.texts["tried-experiment"]
    assert f"Bundle in experiment: {served_project.tried}" in panel
    assert f"{measured.verdict}: {measured.why}" in panel
    plan = "hit_rate over 4,000 users, 4 interim analyses, 50% of users, margin 0.01."
    assert f"Plan, fixed at the start: {plan}" in panel
    assert "No harm above the margin: not shown." in panel
    rate = measured.metrics["hit_rate"]
    assert rate.delta > 0
    # fewer than 200 users an arm: no confidence sequence yet
    assert f"hit rate primary {rate.live:.3f} {rate.candidate:.3f} {rate.delta:+.3f} -" in panel


def test_console_shows_the_sample_ratio(shown_console: ShownConsole) -> None:
    counts, panel = shown_console.measured.sample_ratio.counts, shown_console.texts["tried-experiment"]
    assert counts["live"] + counts["candidate"] == 60 + UNKNOWN_USERS + 1
    assert f"Sample ratio: {counts['live']} to {counts['candidate']}, planned 50% to 50%" in panel
    assert "alarm above 1,000: none" in panel


def test_console_shows_every_release_row_newest_first(
    shown_console: ShownConsole, served_project: ServedProject
) -> None:
    generation = shown_console.status["generation"]
    assert len(shown_console.moves) == generation
    assert shown_console.moves[0].startswith(f"{generation} 20")
    assert (
        f"{served_project.seed} checked shadow POST /v1/admin/promote (admin token) a try of seed"
        in shown_console.moves[0]
    )


@pytest.mark.parametrize(("width", "scheme"), [(1180, "light"), (390, "dark")])
def test_console_fits_desktop_and_phone_in_light_and_dark(
    served_project: ServedProject, opened: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    with opened(width, 900, color_scheme=scheme) as page:
        expect(page.get_by_test_id("ratio")).to_be_visible(timeout=WAIT)
        expect(page.get_by_test_id("replica")).to_be_visible(timeout=WAIT)
        page.get_by_test_id("user").fill("u05")
        page.get_by_test_id("show").click()
        expect(page.get_by_test_id("history")).to_be_visible(timeout=WAIT)
        assert page.evaluate("document.documentElement.scrollWidth") <= width  # wide tables scroll inside their boxes
        assert page.evaluate("document.body.classList.contains('body--dark')") == (scheme == "dark")
        file = tmp_path / "console.png"
        page.screenshot(path=str(file), full_page=True)
        assert file.stat().st_size > 20_000
        wanted = os.environ.get(PICTURE)
        if wanted and scheme == "light":
            shutil.copy(file, Path(wanted) / "console.png")
            top = {"x": 0, "y": 0, "width": width, "height": 740}
            page.screenshot(path=str(Path(wanted) / "console-top.png"), full_page=True, clip=top)
            page.evaluate("window.scrollTo(0, 0)")
            card = page.locator(".q-card").last.bounding_box()
            assert card
            person = {"x": card["x"], "y": card["y"], "width": 680, "height": 560}
            page.screenshot(path=str(Path(wanted) / "list.png"), full_page=True, clip=person)


def test_console_shows_a_users_list_with_sources_as_served(served_project: ServedProject, opened: Any) -> None:
    """The page lists what the service answers for the user's arm."""
    with opened() as page:
        for user in ("u05", "u06", "u07", "u08", "unknown"):
            arm = "candidate" if assignment.in_experiment(served_project.tried, user, 0.5) else "live"
            page.get_by_test_id("user").fill(user)
            page.get_by_test_id("user").press("Enter")
            known = served_project.server.client.get(f"/v1/users/{user}")
            events = known.json()["events"] if known.status_code == 200 else 0
            facts = page.get_by_test_id("facts")
            bundle = served_project.tried if arm == "candidate" else served_project.live
            expect(facts).to_contain_text(f"{user}: {events} events in the history", timeout=WAIT)
            assert f"answered by {arm} ({bundle})" in facts.inner_text()
            answer = served_project.server.client.get(f"/v1/recommend/{user}", params={"properties": "name"}).json()
            assert answer["variant"] == arm
            rows = [row.split("\t")[:3] for row in page.get_by_test_id("list").locator("tbody tr").all_inner_texts()]
            assert rows == [[str(rank), item["name"], item["source"]] for rank, item in enumerate(answer["items"], 1)]
            history = page.get_by_test_id("history").locator("tbody tr")
            assert history.count() == min(20, events)


def test_console_buttons_move_bundles_and_show_refusals(served_project: ServedProject, opened: Any) -> None:
    status = lambda: served_project.server.client.get("/v1/status").json()  # noqa: E731

    def choose(page: Page, name: str, option: str) -> None:
        page.get_by_test_id(name).click()
        page.get_by_role("option", name=option, exact=True).click()

    with opened() as page:
        before = status()
        page.get_by_test_id("promote").click()
        expect(page.get_by_text("reason is empty: enter a reason for this move")).to_be_visible(timeout=WAIT)
        page.get_by_test_id("reason").fill("it looks good")
        choose(page, "bundle", served_project.tried)
        choose(page, "to", "live, if both steps are earned")
        page.get_by_test_id("promote").click()
        expect(page.get_by_test_id("refused")).to_be_visible(timeout=WAIT)
        said = text(page, "refused")
        assert "shadow requests 0 100 the shadow step is not earned" in said
        page.get_by_test_id("rollback").click()
        expect(page.get_by_test_id("refused")).to_contain_text("earlier live bundles", timeout=WAIT)
        assert "earlier live bundles 0 1 no earlier live bundle to restore" in text(page, "refused")
        choose(page, "to", "live (skip requirements)")
        choose(page, "bundle", served_project.live)
        page.get_by_test_id("promote").click()
        expect(page.get_by_test_id("refused")).to_contain_text("state", timeout=WAIT)
        assert f"{served_project.live} is live" in text(page, "refused")
        assert {key: status()[key] for key in ("live", "generation")} == {
            key: before[key] for key in ("live", "generation")
        }
        choose(page, "bundle", served_project.tried)
        page.get_by_test_id("promote").click()
        expect(page.get_by_test_id("live")).to_have_text(f"live: {served_project.tried}", timeout=WAIT)
        assert status()["live"] == served_project.tried
        assert served_project.server.client.get("/v1/recommend/u05").json()["model_version"] == served_project.tried
        page.get_by_test_id("reason").fill("it was better before")
        page.get_by_test_id("rollback").click()
        expect(page.get_by_test_id("live")).to_have_text(f"live: {served_project.live}", timeout=WAIT)
        assert served_project.server.client.get("/v1/recommend/u05").json()["model_version"] == served_project.live
        rows = [one for one in status()["bundles"] if one["bundle"] in {served_project.live, served_project.tried}]
        assert {one["state"]: one["reason"] for one in rows} == {
            "live": "it was better before", "rolled_back": "it was better before",
        }  # fmt: skip
        page.get_by_test_id("reason").fill("worse than live")
        choose(page, "bundle", served_project.tried)
        page.get_by_test_id("reject").click()
        moves = page.get_by_test_id("releases")
        expect(moves).to_contain_text("worse than live", timeout=WAIT)
        assert {one["bundle"]: one["state"] for one in status()["bundles"]}[served_project.tried] == "refused"
        expect(moves).to_contain_text("it looks good", timeout=WAIT)
        expect(moves).to_contain_text("console")


def test_socket_of_the_console_names_no_origin_and_refuses_foreign_ones(served_project: ServedProject) -> None:
    client = served_project.server.client
    socket = "/_nicegui_ws/socket.io/?EIO=4&transport=polling"
    own = client.get(socket, headers={"Origin": served_project.server.url})
    foreign = client.get(socket, headers={"Origin": "https://evil.example"})
    assert (own.status_code, foreign.status_code) == (200, 403)
    for answer in (own, foreign):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_service_with_console_keeps_its_own_routes(served_project: ServedProject) -> None:
    client = served_project.server.client
    assert client.post("/v1/status", json={}).status_code == 405
    assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert "\n# HELP recloop_" in client.get("/metrics").text


def test_console_login_with_the_token_opens_the_page(served_project: ServedProject, browser: Browser) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(WAIT)
    assert page.goto(served_project.server.url).status == 401  # type: ignore[union-attr]
    page.get_by_label("admin token").fill("wrong")
    page.get_by_role("button").click()
    expect(page.get_by_text("This is not the admin token.")).to_be_visible(timeout=WAIT)
    page.get_by_label("admin token").fill(served_project.server.token)
    page.get_by_role("button").click()
    expect(page.get_by_test_id("live")).to_be_visible(timeout=WAIT)
    assert page.url == f"{served_project.server.url}/"
    context.close()


def test_open_console_does_not_hold_up_a_stop(trained_folder: Path, tmp_path: Path) -> None:
    """An open page waits in a request of up to 8 s for news of the server."""
    server = servers.start(shutil.copytree(trained_folder, tmp_path / "shop"), program=("-m", "recloop"))
    socket = "/_nicegui_ws/socket.io/?EIO=4&transport=polling"
    answers: list[httpx.Response] = []
    try:
        opened = json.loads(server.client.get(socket).text[1:])
        with httpx.Client(base_url=server.url, timeout=60, headers=server.client.headers) as page:
            waiting = threading.Thread(target=lambda: answers.append(page.get(f"{socket}&sid={opened['sid']}")))
            waiting.start()
            waiting.join(1)
            assert waiting.is_alive()
            assert server.stop() == 0
            waiting.join(10)
        assert [(answer.status_code, answer.text) for answer in answers] == [(200, ENGINE_CLOSE)]
    finally:
        server.close()
    assert server.errors.read_text().count("\n") == 1


class QuietFiles(SimpleHTTPRequestHandler):
    """Files of a folder, without a line per request."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def site(folder: Path) -> Iterator[int]:
    """Serve a folder on a free port of all loopback names."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietFiles, directory=str(folder))) as files:
        thread = threading.Thread(target=files.serve_forever)
        thread.start()
        try:
            yield files.server_port
        finally:
            files.shutdown()
            thread.join()


ASK = """async ([url, token]) => {
    try {
        const answer = await fetch(url, {headers: {Authorization: `Bearer ${token}`}})
        return answer.ok ? (await answer.json()).items.length : answer.status
    } catch { return "blocked" }
}"""


def test_page_of_another_origin_reads_its_list_and_other_origins_do_not(
    trained_folder: Path, tmp_path: Path, browser: Browser
) -> None:
    folder = shutil.copytree(trained_folder, tmp_path / "shop")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<!doctype html><title>shop</title>")
    (tmp_path / "site" / "framed.html").write_text('<iframe sandbox="allow-scripts" src="/index.html"></iframe>')
    with site(tmp_path / "site") as port:
        known = f"http://127.0.0.1:{port}"
        secret = api_keys.add(folder, control_of(folder), "web", ["page"], page=api_keys.PageLimits((known,)))[1]
        server = servers.start(folder)
        question = [f"{server.url}/v1/recommend/u05?n=3", recloop.sign("u05", "web", secret)]
        context = browser.new_context()
        try:
            page = context.new_page()
            page.goto(known)
            assert page.evaluate(ASK, question) == 3
            assert page.evaluate(ASK, [question[0].replace("u05", "u06"), question[1]]) == 403  # the page sees why
            assert page.evaluate(ASK, [f"{server.url}/v1/status", question[1]]) == "blocked"
            page.goto(f"http://localhost:{port}")  # the same site under another origin
            assert page.evaluate(ASK, question) == "blocked"
            page.goto(f"{known}/framed.html")  # a sandboxed frame has the origin null
            assert page.frames[1].evaluate(ASK, question) == "blocked"
        finally:
            context.close()
            server.close()
