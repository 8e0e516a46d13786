"""The report page: complete, self-contained, escaped, deterministic, with health metrics."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from recloop import loop
from recloop.bundle import load
from recloop.errors import UserError
from recloop.features.state import StateBatch
from recloop.monitoring import report
from recloop.monitoring.experiment_plan import EVIDENCE, Plan
from recloop.project import Project, open_project
from recloop.recommend.catalog import Catalog
from recloop.recommend.recommender import Recommender
from recloop.records import DAY, SECOND, SOURCES, Decision, Item, Query, utc_minute
from recloop.simulation.shop import START, SimulatedShop
from recloop.storage import locks, releases

VOID = {"meta", "br", "path", "use", "rect"}
HOSTILE = '<script>alert("x")</script> & \u8336'
NOW = START + 200 * DAY


class Tags(HTMLParser):
    """Collect open tags and every attribute that could load another resource."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.urls: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.urls += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "data", "action"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()


@pytest.fixture(scope="module")
def project_with_decisions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A shop with a live bundle, a hostile item name, and 40 decisions an hour apart."""
    folder = SimulatedShop(seed=0, users=120, items=80).write(tmp_path_factory.mktemp("shop"))
    project = open_project(folder, ['model.name="popular"'])
    made = loop.first_run(project)
    shown = made.table.examples[0].slots[0][0]
    with locks.writer_lock(project.root, "test"):
        log = project.open_log(write=True)
        log.append_items([Item(item_id=shown, attributes={"name": HOSTILE, "category": "tea"}, received_at=NOW)])
        log.close()
        recommender = Recommender(
            made.bundle, Catalog.from_table(made.bundle.items.ids.ids, made.bundle.items.attributes)
        )
        decisions = project.open_decisions(write=True)
        for number in range(40):
            query = Query(user_id=f"new{number}", now=NOW)
            answer = recommender.recommend(StateBatch.empty([query.user_id]), [query])[0]
            at = NOW + number * 3600 * SECOND
            decisions.put(
                Decision(
                    request_id=f"r{number}", role="answer", user_id=query.user_id, served_at=at, as_of_seq=1, bundle=made.bundle.id,
                    generation=1, variant="live", placement="home", n=10, query={}, items=answer.items,
                    scores=answer.scores, sources=answer.sources, positives=answer.positives, inputs=answer.inputs,
                )
            )  # fmt: skip
        decisions.close()
    return project


@pytest.fixture(scope="module")
def report_page(project_with_decisions: Project) -> str:
    done = report.write(project_with_decisions)
    return Path(done["path"]).read_text("utf-8")


def test_write_returns_the_path_and_health_metrics(project_with_decisions: Project, tmp_path: Path) -> None:
    done = report.write(project_with_decisions)
    assert set(done) == {"path", *report.RESULT_KEYS, "verify"}
    assert done["path"] == str(project_with_decisions.reports / "report.html")
    assert [file.name for file in project_with_decisions.reports.iterdir() if file.name.startswith(".")] == []
    # Forty unknown users got the popular list: ten items, without a personal source.
    bundle = load(next(project_with_decisions.bundles.iterdir()))
    assert done["requests"] == 40
    assert done["coverage"] == pytest.approx(10 / len(bundle.items), abs=1e-6)
    assert done["cold_coverage"] == 0.0
    elsewhere = tmp_path / "deep" / "page.html"
    assert report.write(project_with_decisions, file=str(elsewhere))["path"] == str(elsewhere)
    assert elsewhere.exists()


def test_write_with_from_and_to_limits_the_window(project_with_decisions: Project, tmp_path: Path) -> None:
    file = str(tmp_path / "page.html")
    stamps = [(NOW + number * 3600 * SECOND) / SECOND for number in (0, 3, 7)]
    texts = [utc_minute(int(stamp * SECOND)).replace(" ", "T") + ":00Z" for stamp in stamps]
    assert report.write(project_with_decisions, start=texts[1], end=texts[2], file=file)["requests"] == 5
    assert report.write(project_with_decisions, end=texts[0].removesuffix("Z"), file=file)["requests"] == 1
    none = report.write(project_with_decisions, start="2031-01-01", file=file)
    assert (none["requests"], none["entropy"], none["cold_coverage"]) == (0, None, None)
    assert "No request was answered in this period" in Path(file).read_text("utf-8")
    with pytest.raises(UserError, match="--from=yesterday: expected ISO 8601"):
        report.write(project_with_decisions, start="yesterday", file=file)


def test_page_is_complete_and_loads_no_external_resources(report_page: str) -> None:
    tags = Tags()
    tags.feed(report_page)
    assert tags.open == []
    assert all(urls.startswith("#") for urls in tags.urls)
    assert tags.count["svg"] == 1
    assert tags.count["article"] == 5
    assert "script" not in tags.count
    links = set(re.findall(r"https?://[^\s\"'<)]+", report_page))
    assert links <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # XML namespaces, not addresses
    assert "url(http" not in report_page
    assert "@import" not in report_page


def test_page_escapes_names(report_page: str) -> None:
    assert HOSTILE not in report_page
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &amp; \u8336" in report_page


def test_page_contains_the_evaluation_and_protocol(report_page: str, project_with_decisions: Project) -> None:
    table = json.loads((project_with_decisions.reports / "evaluation.json").read_text("utf-8"))
    for text in (
        "<html lang=\"en\">", table["rows"][0]["bundle"], table["protocol"]["split_hash"][:8], "filter_seen false",
        "bought_before", "served", "Recall@10", "NDCG@10 by length of history", "cold-start coverage", "Miller-Madow",
        "prefers-color-scheme: dark", "@media print", "Five lists", "popular 100.0 %",
    ):  # fmt: skip
        assert text in report_page, text
    assert table["sentence"].split("(")[0] in report_page
    for row in table["rows"]:
        assert report.share(row["NDCG@10"]["value"]) in report_page
    best = max(row["NDCG@10"]["value"] for row in table["rows"])
    assert f'class="best">{report.share(best)}' in report_page


def test_write_during_an_experiment_shows_its_verdict_and_plan(project_with_decisions: Project, tmp_path: Path) -> None:
    shutil.copytree(project_with_decisions.root, tmp_path / "shop")
    here = open_project(tmp_path / "shop")
    control = here.open_control()
    live = releases.live(control)
    assert live is not None
    plan = Plan.from_config(here.config.release, live.bundle, NOW).to_evidence()
    control.move(live.bundle, live.sha256, "live", "experiment", by="t", reason="", evidence={EVIDENCE: plan},
                 expected_generation=live.generation, at=NOW)  # fmt: skip
    html = Path(report.write(here)["path"]).read_text("utf-8")
    assert f"Experiment of {live.bundle}" in html
    assert "<b>invalid</b>: the arms differ from their planned shares of users" in html  # live answered all 40 users
    assert "hit_rate over 4,000 users, 4 looks, margin 0.01" in html


def test_write_repeated_gives_equal_bytes(report_page: str, project_with_decisions: Project, tmp_path: Path) -> None:
    file = tmp_path / "again.html"
    report.write(project_with_decisions, file=str(file))
    assert file.read_text("utf-8") == report_page


def test_write_without_an_evaluation_states_it(project_with_decisions: Project, tmp_path: Path) -> None:
    held = project_with_decisions.reports / "evaluation.json"
    aside = held.rename(tmp_path / "aside.json")
    try:
        report.write(project_with_decisions, file=str(tmp_path / "page.html"))
    finally:
        aside.rename(held)
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "No evaluation yet" in page
    assert "<svg" not in page


def test_write_without_a_live_bundle_raises_and_names_update(tmp_path: Path) -> None:
    empty = open_project(SimulatedShop(seed=0, users=20, items=20).write(tmp_path / "empty"))
    with pytest.raises(UserError, match="bundle=none live yet: expected a live bundle; try: recloop update"):
        report.write(empty)
    assert not (tmp_path / "empty" / "reports").exists()


def test_page_names_the_live_bundle(project_with_decisions: Project, report_page: str) -> None:
    row = releases.live(project_with_decisions.open_control())
    assert row is not None
    assert f"Live bundle <code>{row.bundle}</code>" in report_page


def test_render_names_the_bundles_of_table_and_lists(report_page: str, project_with_decisions: Project) -> None:
    """A table of another bundle is not shown under the name of the live one."""
    live = report.summarize(project_with_decisions).bundle.id
    assert f"Table, chart and lists: <code>{live}</code> (live)." in report_page
    assert f"by <code>{live}</code> (live): 40." in report_page
    seen = report.summarize(project_with_decisions)
    found = json.loads((project_with_decisions.reports / "evaluation.json").read_text("utf-8"))
    for row in found["rows"]:
        row["bundle"] = "counts-other"
    other = report.render(found, seen.numbers, replace(seen.bundle.manifest, bundle="now-live"), str, "today")
    assert "Table, chart and lists: <code>counts-other</code>. The live bundle is not evaluated" in other
    assert f"by <code>{live}</code>: 40." in other


def test_plot_is_deterministic_and_uses_css_variables() -> None:
    rows = {"popular": {"value": 0.1, "low": 0.05, "high": 0.2}, "sasrec": {"value": None, "low": None, "high": None}}
    lengths = [
        {"from": 0, "to": 0, "moments": 3, "users": 2, "rows": rows},
        {"from": 1000, "to": None, "moments": 1500, "users": 9, "rows": {**rows, "sasrec": rows["popular"]}},
    ]
    svg = str(report.plot(lengths))
    assert svg == str(report.plot(lengths))
    assert svg.startswith('<svg viewBox="')
    assert "aria-labelledby" in svg
    for text in ("currentColor", "var(--popular)", "var(--network)", "1,000+", "1,500"):
        assert text in svg
    for text in ("<metadata", "#010203", "#0000", "matplotlib.org", "<?xml"):
        assert text not in svg


def test_plot_gives_each_row_a_look_of_its_own() -> None:
    rows = ["popular", "bought_before", "buy_again", "ease", "item_knn", "mf", "sasrec", "gru4rec", "served"]
    value = {"value": 0.1, "low": 0.05, "high": 0.2}
    bucket = {"from": 0, "to": 9, "moments": 3, "users": 2, "rows": dict.fromkeys(rows, value)}
    svg = str(report.plot([bucket, bucket]))
    lines = re.findall(r'<path d="[^"]*" clip-path="[^"]*" style="(fill: none; [^"]*stroke: var[^"]*)"', svg)
    looks = {line for line in lines if "stroke-width: 1.4" in line}
    assert len(looks) == len(rows), looks


def test_page_has_a_color_for_each_kind_of_row_and_each_source(report_page: str) -> None:
    """Once for the light and once for the dark mode."""
    for name in (*report.COLORS, *SOURCES):
        assert len(re.findall(rf"--{name}: #[0-9a-f]{{6}};", report_page)) == 2, name
