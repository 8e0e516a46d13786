"""The contract of docs/stability.md and docs/reference: defaults, keys, exit codes, files, routes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import sqlite3
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
import servers

from recloop import records
from recloop.cli import run
from recloop.config import Config
from recloop.settings import build
from recloop.simulation.shop import SimulatedShop

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def rows_of(text: str) -> list[list[str]]:
    """Cells of the table rows of a text, without headers."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def keys_in(listed: str) -> set[str]:
    """Names in a list of keys: ``a b{c:n} d[]`` gives a, b, d."""
    flat = listed
    while re.search(r"[{\[(][^{}\[\]()]*[}\])]", flat):
        flat = re.sub(r"[{\[(][^{}\[\]()]*[}\])]", " ", flat)
    return set(re.findall(r"[a-z_]+", flat))


# ---- the configuration


def test_config_page_defaults_equal_the_defaults() -> None:
    """The keys and defaults of the page build the default configuration."""
    lines: list[str] = []
    for part in (DOCS / "reference" / "config.md").read_text("utf-8").split("\n## `[")[1:]:
        path = part.partition("]`")[0]
        if not path.endswith(".NAME"):
            lines += [f"[{path}]", *(f"{row[0].strip('`')} = {row[2].strip('`')}" for row in rows_of(part))]
    assert len(lines) > 80
    assert build(tomllib.loads("\n".join(lines)), environment={}) == Config()


# ---- the command line


class Ran(NamedTuple):
    """Result of a command: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        tree: dict[str, Any] = json.loads(self.out)
        return tree


def recloop(folder: Path, *arguments: str) -> Ran:
    """Run one command in a project folder, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(["-C", str(folder), *arguments])
    return Ran(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def updated_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with baselines after its first run."""
    folder = SimulatedShop(seed=0).write(tmp_path_factory.mktemp("interface") / "shop")
    with (folder / "recloop.toml").open("a", encoding="utf-8") as file:
        file.write('[model]\nname = "covisitation"\n')
    done = recloop(folder, "update", "--json")
    assert done.code == 0, done.err
    (folder / "update.json").write_text(done.out, "utf-8")
    return folder


@pytest.mark.parametrize("arguments", [("status", "--json"), ("promote", "nothing"), ("promote",)])
def test_cli_in_a_process_equals_run(updated_folder: Path, arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "recloop", "-C", str(updated_folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert Ran(done.returncode, done.stdout, done.stderr) == recloop(updated_folder, *arguments)


def test_cli_help_shows_panels_and_verbs(tmp_path: Path) -> None:
    """The help shows its panels and a page for each verb."""
    shown = recloop(tmp_path, "--help")
    assert shown.code == 0
    for panel in ("Get started", "Inspect", "Data", "Release", "Access", "Operation", "Pipeline steps"):
        assert panel in shown.out
    verbs = ("init", "update", "serve", "demo", "doctor", "evaluate", "recommend", "status", "report", "verify")
    for verb in (*verbs, "promote", "rollback", "reject", "prepare", "train", "ingest", "export", "quarantine", "gc"):
        assert recloop(tmp_path, verb, "--help").code == 0, verb


UPDATE = "from_seq to_seq read kept new_users new_items bundle verdict gates[{name,value,threshold,ok}] seconds"
DOCTOR = "read kept removed{rule:n} rejected users items moments span repeats warnings[]"
STATUS = "live shadow experiment generation bundles[{bundle,state,at,reason,removed}] last_seq watermark"
REPORT = "path entropy long_tail_share cold_coverage coverage requests"
VERIFY = "checked equal late unexplained earlier removed max_score_diff differences[{request_id,name,expected,actual}]"
INIT = "columns time_unit scenario (collaborative, content, sequential) guesses[{key,value,why}]"
INGEST = "accepted duplicate conflict quarantined rejected"
REPLY = "request_id model_version variant placement degraded items"


def test_stability_page_documents_the_json_keys() -> None:
    rows = dict(row[:2] for row in rows_of((DOCS / "stability.md").read_text("utf-8")) if len(row) == 2)
    verbs = {"update": UPDATE, "doctor": DOCTOR, "status": STATUS, "report": REPORT, "verify": VERIFY, "init": INIT}
    for verb, listed in {**verbs, "ingest": INGEST, "recommend": REPLY}.items():
        assert keys_in(listed) <= keys_in(rows[f"`{verb}`"]), verb


def test_update_json_has_the_documented_keys(updated_folder: Path) -> None:
    first = json.loads((updated_folder / "update.json").read_text("utf-8"))
    assert set(first) >= keys_in(UPDATE)
    assert first["verdict"] == "first"
    again = recloop(updated_folder, "update", "--json")
    assert again.code == 0, again.err
    assert again.json["verdict"] == "nothing"
    assert set(again.json) >= keys_in(UPDATE)


def test_doctor_json_counts_add_up(updated_folder: Path) -> None:
    tree = recloop(updated_folder, "doctor", "--json").json
    assert set(tree) >= keys_in(DOCTOR)
    assert tree["read"] == tree["kept"] + sum(tree["removed"].values()) + tree["rejected"]
    assert tree["read"] == SimulatedShop(seed=0).events().height


def test_init_json_contains_columns_and_guesses(tmp_path: Path) -> None:
    SimulatedShop(seed=0).events().write_csv(tmp_path / "orders.csv")
    done = recloop(tmp_path, "init", str(tmp_path / "orders.csv"), "--yes", "--json")
    assert done.code == 0, done.err
    assert set(done.json) >= {"columns", "time_unit", "scenario", "guesses"}
    assert done.json["columns"]["user_id"] == "user_id"
    assert done.json["time_unit"] == "us"
    assert all(set(guess) == {"key", "value", "why", "confidence"} for guess in done.json["guesses"])
    assert (tmp_path / "recloop.toml").is_file()


def test_evaluate_json_contains_the_table(updated_folder: Path) -> None:
    done = recloop(updated_folder, "evaluate", "--json")
    assert done.code == 0, done.err
    assert set(done.json["protocol"]) >= {"name", "split_hash", "targets", "filter_seen", "ties", "k", "seed"}
    assert [row["model"] for row in done.json["rows"]][-1] == "served"
    four = {"HR@10", "Recall@10", "NDCG@10", "MRR@10"}
    for row in done.json["rows"]:
        assert set(row) >= {"model", "bundle", "coverage", "entropy", "long_tail_share", "seconds"} | four
        assert set(row) >= {"warm", "repeat", "explore"}
        assert set(row["NDCG@10"]) == {"value", "low", "high"}
        assert row["NDCG@10"]["low"] <= row["NDCG@10"]["value"] <= row["NDCG@10"]["high"]
    files = b"".join(
        (updated_folder / "data" / "split" / f"{part}.parquet").read_bytes() for part in ("train", "valid", "test")
    )
    digests = [
        hashlib.sha256((updated_folder / "data" / "split" / f"{part}.parquet").read_bytes()).hexdigest()
        for part in ("train", "valid", "test")
    ]
    over = {hashlib.sha256(files).hexdigest(), hashlib.sha256("".join(digests).encode()).hexdigest()}
    assert done.json["protocol"]["split_hash"] in over


def test_recommend_status_and_report_json_have_the_documented_keys(updated_folder: Path) -> None:
    answer = recloop(updated_folder, "recommend", "u001", "-n", "3", "--json")
    assert answer.code == 0, answer.err
    assert set(answer.json) >= keys_in(REPLY)
    assert len(answer.json["items"]) == 3
    status = recloop(updated_folder, "status", "--json").json
    assert set(status) >= keys_in(STATUS)
    assert status["live"] == answer.json["model_version"]
    report = recloop(updated_folder, "report", "--json")
    assert report.code == 0, report.err
    assert set(report.json) >= keys_in(REPORT)
    assert (updated_folder / report.json["path"]).is_file()


MOVE_KEYS = "bundle from to generation evidence"


def json_of(folder: Path, *arguments: str) -> dict[str, Any]:
    """Run one command with ``--json``; check exit 0."""
    done = recloop(folder, *arguments, "--json")
    assert done.code == 0, done.err
    return done.json


def test_prepare_json_has_the_documented_keys(updated_folder: Path) -> None:
    before = (updated_folder / "data" / "manifest.json").read_bytes()
    prepared = json_of(updated_folder, "prepare")
    assert set(prepared) >= keys_in(DOCTOR) | keys_in("fingerprint cut train valid test")
    assert (updated_folder / "data" / "manifest.json").read_bytes() == before


def test_train_and_release_json_have_the_documented_keys(updated_folder: Path) -> None:
    """A registered bundle becomes live by one move; rollback and reject undo it."""
    trained = json_of(updated_folder, "train", "popular")
    assert set(trained) >= keys_in("bundle run epochs seconds metrics")
    bundle = trained["bundle"]
    assert recloop(updated_folder, "promote", bundle).code == 1
    moved = json_of(updated_folder, "promote", bundle, "--to", "live", "--reason", "by hand")
    assert set(moved) >= keys_in(MOVE_KEYS)
    assert json_of(updated_folder, "status")["live"] == bundle
    assert set(json_of(updated_folder, "rollback")) >= keys_in(MOVE_KEYS)
    assert set(json_of(updated_folder, "reject", bundle, "--reason", "an example")) >= keys_in(MOVE_KEYS)


@pytest.mark.parametrize(
    "arguments",
    [
        ("unheard-of",),
        ("doctor", "--unheard-of"),
        ("doctor", "--set", "split.quantil=0.5"),
        ("doctor", "--set", "data.events=nowhere.csv"),
        ("evaluate", "--protocol", "leave-one-out"),
        ("evaluate", "no-such-bundle"),
        ("promote", "no-such-bundle"),
        ("train", "no-such-model"),
        ("recommend", "u001", "--placement", "nowhere"),
    ],
)
def test_cli_with_a_bad_argument_exits_2_and_names_a_fix(updated_folder: Path, arguments: tuple[str, ...]) -> None:
    """Exit 2, empty stdout, no traceback, last line `error: NAME=VALUE: ...`."""
    done = recloop(updated_folder, *arguments)
    assert (done.code, done.out) == (2, ""), done.err
    assert re.fullmatch(r"error: .+=.*: expected .+; try: .+", done.err.rstrip().splitlines()[-1]), done.err
    assert "Traceback" not in done.err


# ---- files


def test_ingest_json_counts_duplicates(updated_folder: Path) -> None:
    """Imported rows sent again are duplicates."""
    (updated_folder / "again.csv").write_text(
        "".join((updated_folder / "events.csv").read_text("utf-8").splitlines(True)[:4]), "utf-8"
    )
    done = recloop(updated_folder, "ingest", str(updated_folder / "again.csv"), "--json")
    assert done.code == 0, done.err
    assert done.json == {**dict.fromkeys(keys_in(INGEST), 0), "duplicate": 3}
    (updated_folder / "again.csv").unlink()


def test_project_folder_contains_the_documented_files(updated_folder: Path) -> None:
    for name in ("items.parquet", "users.parquet", "quarantine.parquet", "rejects.jsonl", "manifest.json"):
        assert (updated_folder / "data" / name).is_file(), name
    archive = pl.read_parquet(
        next((updated_folder / "data" / "archive").glob("date=*/*.parquet")), hive_partitioning=False
    )
    assert set(archive.columns) >= set(records.EVENT_SCHEMA)
    for part in ("train", "valid", "test"):
        split = pl.read_parquet(updated_folder / "data" / "split" / f"{part}.parquet")
        types = {"moment": pl.Int32, "label": pl.Int8, "weight": pl.Float32, "use": pl.Int8, "pair": pl.String}
        types |= {"units": pl.Float64}
        assert {name: split.schema[name] for name in types} == types
        assert set(split.columns) >= set(records.EVENT_SCHEMA)
    manifest = json.loads((updated_folder / "data" / "manifest.json").read_text("utf-8"))
    assert set(manifest) >= {"fingerprint", "cut", "watermark", "config"}
    runs = sorted((updated_folder / "runs").iterdir())
    assert (runs[0] / "config.toml").is_file()
    assert (runs[0] / "metrics.json").is_file()
    assert json.loads((updated_folder / "reports" / "evaluation.json").read_text("utf-8"))["rows"]


def test_import_numbers_items_users_then_events(updated_folder: Path) -> None:
    """1..n: items and users in file order, then events by (timestamp, row)."""
    world = SimulatedShop(seed=0)
    items = pl.read_parquet(updated_folder / "data" / "items.parquet").sort("seq")
    assert items["item_id"].to_list() == world.item_ids
    assert items["seq"].to_list() == list(range(1, 201))
    users = pl.read_parquet(updated_folder / "data" / "users.parquet").sort("seq")
    assert users["user_id"].to_list() == world.user_ids
    events = pl.read_parquet(updated_folder / "data" / "archive" / "**" / "*.parquet", hive_partitioning=False).sort(
        "seq"
    )
    assert events["seq"][0] >= 501
    assert events["timestamp"].is_sorted()


def columns(file: Path, table: str) -> set[str]:
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    try:
        return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    finally:
        connection.close()


def test_store_tables_have_the_documented_columns(service: str, updated_folder: Path) -> None:
    """Store tables have the columns of docs/reference/stores.md after a service run."""
    log = updated_folder / "store" / "log.db"
    assert columns(log, "events") == {*records.EVENT_SCHEMA, records.RULE}
    assert columns(log, "items") >= {"seq", "item_id", "received_at", "attributes", "hidden", "deleted"}
    assert columns(log, "users") >= {"seq", "user_id", "received_at", "attributes", "deleted"}
    assert columns(log, "retractions") == {"seq", "retracted_seq", "rule"}
    decision = keys_in(
        "request_id role user_id served_at as_of_seq bundle generation variant placement n query items scores sources "
        "degraded session_id anonymous_id client_request_id assigned positives inputs latency_us"
    )
    assert columns(updated_folder / "store" / "decisions.db", "decisions") >= decision
    releases = keys_in("generation at bundle from to by reason evidence") | {"sha256"}
    assert columns(updated_folder / "store" / "control.db", "releases") >= releases


def test_bundle_files_and_manifest_are_as_documented(updated_folder: Path) -> None:
    """The name ends in the manifest's hash, and the manifest lists each file's hash."""
    bundle = json.loads((updated_folder / "update.json").read_text("utf-8"))["bundle"]
    folder = updated_folder / "bundles" / bundle
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    listed = {
        "format", "bundle", "parent", "recloop", "encode_version", "model", "scorers", "data", "train", "files",
    }  # fmt: skip
    assert set(manifest) >= listed
    page = (DOCS / "reference" / "bundle.md").read_text("utf-8")
    assert [name for name in (*listed, *manifest["files"]) if f"`{name}`" not in page] == []
    plain = {key: value for key, value in manifest.items() if key != "bundle"}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert re.fullmatch(r"counts-\d{8}T\d{6}Z-[0-9a-f]{8}", bundle)
    assert bundle.endswith(hashlib.sha256(text.encode()).hexdigest()[:8])
    assert set(manifest["files"]) == {file.name for file in folder.iterdir()} - {"manifest.json"}
    for name, facts in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (facts["sha256"], facts["bytes"]), name
    golden = json.loads((folder / "golden.json").read_text("utf-8"))
    assert len(golden) == 5
    assert all(set(case) >= {"state", "now", "placement", "n", "ids", "scores"} for case in golden)
    table = pl.read_parquet(folder / "items.parquet")
    assert set(table.columns) >= {"item_ix", "item_id", "count", "tail", "fields", "first_seq"}


# ---- REST


@pytest.fixture(scope="module")
def service(updated_folder: Path) -> Iterator[str]:
    """The address of a running service."""
    server = servers.start(updated_folder)
    try:
        yield server.url
        assert server.stop() == 0
    finally:
        server.close()


def ask(url: str, body: object = None) -> tuple[int, dict[str, Any]]:
    """Status and JSON of a GET, or of a POST if a body is given."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def answered(url: str, body: object = None) -> dict[str, Any]:
    """JSON of a request; check status 200."""
    code, answer = ask(url, body)
    assert code == 200, answer
    return answer


def test_recommend_routes_answer_with_the_documented_keys(service: str) -> None:
    answer = answered(f"{service}/v1/recommend/u001?n=4&properties=name")
    assert set(answer) == keys_in(REPLY)
    assert len(answer["items"]) == 4
    assert set(answer["items"][0]) == {"item_id", "score", "source", "reason", "name"}
    assert set(answered(f"{service}/v1/recommend?user_id=u001")) == keys_in(REPLY)
    similar = answered(f"{service}/v1/items/i007/similar?n=3")
    assert set(similar) == keys_in(REPLY)
    assert len(similar["items"]) == 3


def test_events_route_answers_with_the_documented_keys(service: str) -> None:
    event = {"user_id": "u001", "item_id": "i007", "event_type": "purchase", "event_id": "x1"}
    posted = answered(f"{service}/v1/events", [event, event])
    assert posted["accepted"] == 1
    assert posted["duplicate"] == 1
    assert set(posted) == {"accepted", "duplicate", "conflict", "quarantined", "rejected", "rows"}
    assert set(posted["rows"][0]) == {"event_id", "status", "reason"}


def test_item_and_user_routes_answer_with_the_documented_keys(service: str) -> None:
    posted = answered(f"{service}/v1/items", {"item_id": "new", "attributes": {"name": "new"}})
    assert set(posted) == {"accepted", "rejected", "rows"}
    item = answered(f"{service}/v1/items/new")
    assert item["state"] == "warm"
    assert set(item) == {"item_id", "attributes", "hidden", "state"}
    assert answered(f"{service}/v1/users", {"user_id": "v", "attributes": {}})["accepted"] == 1
    user = answered(f"{service}/v1/users/u001")
    assert set(user) == {"user_id", "attributes", "state", "events", "last_events"}
    assert ask(f"{service}/v1/users/unknown")[0] == 404


def test_health_and_status_routes_answer_with_the_documented_keys(service: str) -> None:
    assert answered(f"{service}/v1/health/live")["status"]
    assert answered(f"{service}/v1/health/ready")
    assert set(answered(f"{service}/v1/status")) >= keys_in(STATUS) | {"degraded"}


def test_metrics_page_names_every_metric(service: str) -> None:
    assert ask(f"{service}/v1/recommend/u001")[0] == 200
    with urllib.request.urlopen(f"{service}/metrics", timeout=60) as answer:
        names = set(re.findall(r"^# TYPE (\w+)", answer.read().decode(), re.MULTILINE))
    page = (DOCS / "reference" / "metrics.md").read_text("utf-8")
    assert len(names) > 15
    assert [name for name in names if f"`{name}`" not in page] == []


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/recommend/u001?n=0", None, 422),
        ("/v1/recommend/u001?n=1001", None, 422),
        ("/v1/recommend/u001?placement=nowhere", None, 422),
        ("/v1/recommend/u001?filter=price%20%3E", None, 422),
        ("/v1/nothing", None, 404),
        ("/v1/items/unheard-of", None, 404),
        ("/v1/items/unheard-of/similar", None, 404),
        ("/v1/recommend/u001?placement=similar", None, 422),
        ("/v1/events", [{"user_id": "u"}] * 1001, 422),
        ("/v1/events", [{"user_id": "u", "item_id": "i", "event_type": "view", "value": "much"}], 207),
    ],
)
def test_error_responses_share_one_schema(service: str, path: str, body: object, code: int) -> None:
    found, answer = ask(service + path, body)
    assert found == code, answer
    if code != 207:
        assert set(answer["error"]) == {"code", "message", "field", "expected"}


def test_verify_checks_served_decisions(service: str, updated_folder: Path) -> None:
    for n in range(1, 6):
        assert ask(f"{service}/v1/recommend/u00{n}")[0] == 200
    assert ask(f"{service}/v1/status")[0] == 200
    found: Ran | None = None
    for _ in range(20):  # decisions are written at most 200 ms after the answer
        found = recloop(updated_folder, "verify", "--last", "50", "--json")
        if found.json["checked"] >= 5:
            break
    assert found is not None
    assert found.code == 0, found.err
    assert set(found.json) >= keys_in(VERIFY)
    assert found.json["unexplained"] == 0
    assert found.json["checked"] == found.json["equal"] + found.json["late"] >= 5
