"""New files of ``data.events``: each is read once, appended rows are read, changed rows refused."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from servers import Server

from recloop import loop
from recloop.bundle import Bundle
from recloop.cli import run
from recloop.errors import UserError
from recloop.features import state_store
from recloop.project import Project, open_project
from recloop.recommend import loading
from recloop.records import EVENT_ID, FILE_ROW, RECEIVED_AT, SEQ
from recloop.testing.states import digests

TOML = """
[data]
events = "days"
[data.columns]
user_id = "customer"
item_id = "sku"
timestamp = "at"
group_id = "bon"
[clean]
max_rejected = 0.3
max_removed = 0.6
[model]
name = "popular"
[baselines]
half_life = 30
[train]
refit = true
[placement.home]
weights = { history = 1.0, neighbours = 0.5, popular = 0.25 }
[release.gates]
max_ndcg_loss = 9
min_users = 1
min_queries = 1
max_slice_loss = 9
max_latency_ratio = 99
max_cold_coverage_loss = 9
[update]
input_check = false
"""
SIZE = 480
"""Rows of a daily file; each eighth basket is a guest's."""
DAYS = 8
"""Daily files of the first run."""


def write_days(folder: Path, first: int, last: int) -> None:
    """Write daily files with baskets of four, guests, repeats and returning customers."""
    (folder / "days").mkdir(parents=True, exist_ok=True)
    for day in range(first, last):
        draw = np.random.default_rng(day)
        lines = ["customer,sku,at,bon"]
        for row in range(SIZE):
            bon, rank = divmod(row, 4)
            customer = "" if bon % 8 == 3 else f"c{(day * 7 + bon * 3) % 131}"
            sku = f"s{int(draw.zipf(1.5)) % 31}" if rank < 3 else lines[-1].split(",")[1]  # the last one repeats
            clock = f"{8 + bon // 10:02d}:{bon % 10 * 6:02d}:00"
            lines.append(f"{customer},{sku},2026-{day // 28 + 1:02d}-{day % 28 + 1:02d}T{clock},b{day}-{bon}")
        (folder / "days" / f"{day:03d}.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after its first run over the first daily files."""
    folder = tmp_path_factory.mktemp("begun") / "shop"
    write_days(folder, 0, DAYS)
    (folder / "recloop.toml").write_text(TOML)
    loop.first_run(open_project(folder))
    return folder


@pytest.fixture
def begun_project(begun: Path, tmp_path: Path) -> Project:
    return open_project(shutil.copytree(begun, tmp_path / "shop"))


def recorded(project: Project) -> dict[str, dict[str, Any]]:
    return {record.name: asdict(record) for record in loading.manifest(project).sources}


def logged(project: Project) -> pl.DataFrame:
    log = project.open_log()
    rows = log.events()
    log.close()
    return rows


def valid_rows(project: Project) -> pl.DataFrame:
    """All valid rows by seq, without seq, arrival and event id."""
    archive = project.open_archive()
    log = project.open_log()
    out = [row.retracted_seq for row in log.retractions()]
    log.close()
    rows = archive.events().filter(~pl.col(SEQ).is_in(out))
    return rows.drop(SEQ, RECEIVED_AT, EVENT_ID)


def lists(bundle: Bundle, project: Project) -> dict[str, list[tuple[str, float]]]:
    from recloop.data.prepare import load
    from recloop.features.state_history import StateHistory
    from recloop.recommend.catalog import Catalog
    from recloop.recommend.recommender import Recommender
    from recloop.records import Query

    data = load(project)
    now = int(data.events["timestamp"].max()) + 1  # type: ignore[arg-type]
    users = sorted(data.events["user_id"].unique())[:300]
    timeline, recommender = (
        StateHistory(data.events, data.users),
        Recommender(bundle, Catalog.from_frames([data.items])),
    )
    states = timeline.states(users, [10**9] * len(users), [now] * len(users))
    answers = recommender.recommend(states, [Query(user_id=user, now=now, n=10) for user in users])
    found = {}
    for user, answer in zip(users, answers, strict=True):
        pairs = zip(answer.items, answer.scores, strict=True)
        found[user] = sorted(((item, round(score, 5)) for item, score in pairs), key=lambda pair: (-pair[1], pair[0]))
    return found


def counts_of(bundle: Bundle) -> dict[str, int]:
    return dict(zip(bundle.items.ids.ids, bundle.items.count.tolist(), strict=True))


def assert_equal_to_one_run(project: Project, once: Project) -> None:
    """Check that rows, counts and lists equal those of a first run over all files."""
    assert valid_rows(project).equals(valid_rows(once))
    child = project.load_bundle()
    whole = once.load_bundle()
    assert counts_of(child) == counts_of(whole)
    assert lists(child, project) == lists(whole, once)
    key = child.spec.state_key
    assert _stored(project, key).keys() == _stored(once, key).keys()  # retractions follow in the log


def _stored(project: Project, key: str) -> dict[str, str]:
    return digests(state_store.read(project.states_folder(project.open_archive().watermark, key), key))


@pytest.mark.slow
def test_update_per_daily_file_equals_one_run_over_all_files(begun_project: Project, tmp_path: Path) -> None:
    for day in range(DAYS, DAYS + 3):
        write_days(begun_project.root, day, day + 1)
        done = loop.update(begun_project)
        assert done.verdict == "registered", [(one["name"], one["note"]) for one in done.gates]
        assert done.read == SIZE, "rows of guests are baskets"
        assert begun_project.live_bundle_id() == done.bundle, "a refresh"
    once = tmp_path / "once"
    write_days(once, 0, DAYS + 3)
    (once / "recloop.toml").write_text(TOML)
    loop.first_run(open_project(once))
    assert_equal_to_one_run(begun_project, open_project(once))
    assert {name: row["sha256"] for name, row in recorded(begun_project).items()} == {
        name: row["sha256"] for name, row in recorded(open_project(once)).items()
    }
    manifest = loading.manifest(begun_project).counts
    assert manifest.read == loading.manifest(open_project(once)).counts.read == (DAYS + 3) * SIZE
    assert loop.update(begun_project).verdict == "nothing"


@pytest.mark.data
@pytest.mark.timeout(1800)
def test_update_of_5_daily_files_after_300_equals_one_run_over_305(shared_data: Path, tmp_path: Path) -> None:
    """UCI Online Retail in daily files: guests, cancellations, repeats."""
    files = sorted((shared_data / "online-retail-by-day").glob("*.csv"))
    assert len(files) == 305
    toml = TOML.replace('"customer"', '"CustomerID"').replace('"sku"', '"StockCode"').replace('"at"', '"InvoiceDate"')
    toml = toml.replace('group_id = "bon"', 'group_id = "InvoiceNo"\nquantity = "Quantity"\nvalue = "UnitPrice"')
    toml = toml.replace("max_removed = 0.6", 'burst = "off"')
    for name, first in (("shop", 300), ("once", 305)):
        (tmp_path / name / "days").mkdir(parents=True)
        (tmp_path / name / "recloop.toml").write_text(toml)
        for file in files[:first]:
            shutil.copy(file, tmp_path / name / "days")
        loop.first_run(open_project(tmp_path / name))
    project = open_project(tmp_path / "shop")
    for file in files[300:]:
        shutil.copy(file, tmp_path / "shop" / "days")
        done = loop.update(project)
        assert done.verdict == "registered", [(one["name"], one["note"]) for one in done.gates]
        assert project.live_bundle_id() == done.bundle, "a refresh"
    assert_equal_to_one_run(project, open_project(tmp_path / "once"))


def test_update_with_an_appended_file_reads_the_new_rows_only(begun_project: Project) -> None:
    file = begun_project.root / "days" / "007.csv"
    with file.open("a") as lines:
        lines.write("c1,s1,2026-01-08T20:00:00,late-1\n,s2,2026-01-08T20:01:00,\n")
    assert loop.update(begun_project).read == 1
    rows = logged(begun_project)
    assert rows["group_id"].to_list() == ["late-1"]
    assert rows[EVENT_ID].to_list() == [f"{FILE_ROW}days/007.csv:{SIZE + 1}"]
    assert (recorded(begun_project)["days/007.csv"]["rows"], recorded(begun_project)["days/007.csv"]["rejected"]) == (
        SIZE + 2,
        1,
    )
    reject = json.loads((begun_project.data / "rejects.jsonl").read_text().splitlines()[-1])
    assert (reject["file"], reject["line"], reject["reason"]) == ("days/007.csv", SIZE + 3, "no user_id")
    loop.update(begun_project)
    assert len(logged(begun_project)) == 1


def test_update_with_a_file_read_twice_stores_its_rows_once(
    begun_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recloop.data import new_files

    write_days(begun_project.root, DAYS, DAYS + 1)
    with monkeypatch.context() as patch:  # killed after the rows, before the record
        patch.setattr(new_files, "record_files", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loop.update(begun_project)
    rows = len(logged(begun_project))
    assert rows == SIZE
    loop.update(begun_project)
    assert len(logged(begun_project)) == rows
    shutil.copy(begun_project.root / "days" / "008.csv", begun_project.root / "days" / "again.csv")
    loop.update(begun_project)
    assert len(logged(begun_project)) == rows, "the same content under another name is ignored"
    assert "days/again.csv" in recorded(begun_project)


@pytest.mark.parametrize(
    "how",
    [
        "a row changed",
        pytest.param("shorter", marks=pytest.mark.slow),
        pytest.param("its last line continued", marks=pytest.mark.slow),
    ],
)
def test_update_with_a_changed_old_file_is_refused_and_names_it(begun_project: Project, how: str) -> None:
    file = begun_project.root / "days" / "005.csv"
    text = file.read_text()
    if how == "its last line continued":
        file.write_text(text.rstrip("\n"))
        begun_project = open_project(begun_project.root)
        loop.update(begun_project, restart=True)
        file.write_text(text.rstrip("\n") + "9\n")
    else:
        file.write_text(text.replace("T09", "T08", 1) if how == "a row changed" else text[: len(text) // 2])
    before = (begun_project.data / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=r"005\.csv") as refused:
        loop.update(begun_project)
    assert "recloop update --restart" in refused.value.fix
    assert (begun_project.data / "manifest.json").read_bytes() == before
    assert loop.update(begun_project, restart=True).verdict == "restarted"


def test_update_with_a_changed_catalog_warns_and_ignores_a_stale_lock(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_days(tmp_path, 0, DAYS)
    (tmp_path / "items.csv").write_text("sku,color\n" + "".join(f"s{n},red\n" for n in range(31)))
    (tmp_path / "recloop.toml").write_text(TOML.replace('"days"', '"days"\nitems = "items.csv"'))
    project = open_project(tmp_path)
    loop.first_run(project)
    (tmp_path / "store" / "writer.lock").write_text('{"verb": "serve", "pid": 1, "url": "http://127.0.0.1:9"}')
    write_days(tmp_path, DAYS, DAYS + 1)
    with (tmp_path / "items.csv").open("a") as lines:
        lines.write("s99,blue\n")
    assert run(["-C", str(tmp_path), "update"]) == 0
    assert "items.csv has changed since its import" in " ".join(capsys.readouterr().err.split())
    assert len(logged(project)) == SIZE


def test_restart_with_a_deleted_file_is_refused_and_names_it(begun_project: Project) -> None:
    (begun_project.root / "days" / "003.csv").unlink()
    assert loop.update(begun_project).verdict == "nothing", "its rows are in data/"
    changed = open_project(begun_project.root, ["split.quantile=0.8"])
    with pytest.raises(UserError, match=r"003\.csv"):
        loop.update(changed)
    assert loop.update(changed, restart=True).verdict == "restarted"
    assert "days/003.csv" not in recorded(begun_project)


def test_restart_reads_files_again_without_duplicating_rows(begun_project: Project) -> None:
    write_days(begun_project.root, DAYS, DAYS + 1)
    loop.update(begun_project)
    assert loop.update(begun_project, restart=True).verdict == "restarted"
    archive = begun_project.open_archive()
    assert archive.watermark == archive.manifest.imported
    assert not archive.events()[EVENT_ID].drop_nulls().len()
    assert archive.manifest.counts.read == (DAYS + 1) * SIZE


def test_max_rejected_applies_to_new_files(begun_project: Project) -> None:
    lines = ["customer,sku,at,bon", *(f",s1,2026-01-09T{n % 24:02d}:00:00," for n in range(3000))]
    (begun_project.root / "days" / "zz.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="max_rejected") as refused:
        loop.update(begun_project)
    assert refused.value.samples[0].startswith("days/zz.csv:2: ")
    assert len(logged(begun_project)) == 0
    assert loop.update(open_project(begun_project.root, ["clean.max_rejected=0.9"])).verdict == "nothing", (
        "rows without user and basket alone"
    )


@pytest.mark.slow
def test_update_during_serving_posts_new_files_to_the_server(
    begun_project: Project, serving: Callable[..., Server]
) -> None:
    server = serving(begun_project.root)
    write_days(begun_project.root, DAYS, DAYS + 1)
    assert loop.update(begun_project).read == SIZE
    rows = logged(begun_project)
    assert rows[EVENT_ID].str.starts_with(FILE_ROW).all()
    assert server.client.get("/v1/status").json()["last_seq"] >= rows[SEQ].max()
    assert server.stop() == 0


def test_update_reads_day_and_month_of_new_files_as_the_import_did(tmp_path: Path) -> None:
    def write(name: str, dates: list[str]) -> None:
        rows = [f"u{n % 5},i{n % 7},{date} 10:{n % 60:02d}" for date in dates for n in range(30)]
        (tmp_path / name).write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")

    write("a.csv", ["11/20/2025", "12/30/2025"])
    (tmp_path / "recloop.toml").write_text(
        '[data]\nevents = "*.csv"\n[model]\nname = "popular"\n[update]\ninput_check = false\n'
    )
    project = open_project(tmp_path)
    loop.first_run(project)
    write("b.csv", ["01/02/2026"])
    loop.update(project)
    days = pl.from_epoch(logged(project)["timestamp"], time_unit="us").dt.strftime("%Y-%m-%d").unique().to_list()
    assert days == ["2026-01-02"]


def test_ingest_with_guest_rows_exits_0(begun_project: Project, tmp_path: Path) -> None:
    def ingest(text: str) -> tuple[int, dict[str, int]]:
        (tmp_path / "more.csv").write_text("customer,sku,at,bon\n" + text)
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(io.StringIO()):
            code = run(["-C", str(begun_project.root), "ingest", str(tmp_path / "more.csv"), "--json"])
        return code, json.loads(out.getvalue())

    good, guest = "c1,s1,2026-01-08T20:00:00,x\n", ",s1,2026-01-08T20:00:00,y\n"
    unknown = ",s1,2026-01-08T20:00:00,\n"
    code, counts = ingest(good + guest + unknown)
    assert (code, counts["accepted"], counts["rejected"]) == (0, 2, 1)
    assert ingest(good + "c1,s1,soon,z\n")[0] == 1
