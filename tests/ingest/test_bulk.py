"""``recloop ingest``: stored rows of files and stdin, with and without a running service."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import polars as pl
import pytest
from servers import Server

from recloop import loop
from recloop.cli import run
from recloop.project import Project
from recloop.recommend.loading import manifest
from recloop.storage import open_log

ROWS = [
    {"user_id": "u01", "item_id": "i01", "event_type": "purchase", "timestamp": "2026-01-02T10:00:00Z", "event_id": "n1",
     "group_id": "b1", "quantity": 2.0, "value": 9.5},
    {"user_id": "u01", "item_id": "i02", "event_type": "purchase", "timestamp": "2026-01-02T10:00:00Z", "event_id": "n2",
     "group_id": "b1"},
    {"user_id": "fresh", "item_id": "i03", "event_type": "click", "timestamp": "2026-01-01T09:00:00.250000Z",
     "event_id": "n3"},
    {"user_id": "fresh", "item_id": "i04", "event_type": "purchase", "timestamp": "2026-01-03", "event_id": "n4",
     "quantity": 0.0},
]  # fmt: skip
COUNTS = {"accepted": 3, "duplicate": 0, "conflict": 0, "quarantined": 1, "rejected": 0}
"""Counts of ROWS; ``clean.keep`` quarantines the last one for its quantity."""


def ingest(root: Path, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run one command in this process; ``stdin`` is its standard input."""
    arguments = ["-C", str(root), "ingest", *words, "--json"]
    out, err = io.StringIO(), io.StringIO()
    with TemporaryFile("w+") as file, redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        file.write(stdin or "")
        file.seek(0)
        patch.setattr(sys, "stdin", file)
        code = run(arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def counts(done: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, int]:
    assert done.returncode == code, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def logged(root: Path) -> list[dict[str, Any]]:
    """The rows of the log without the time of arrival."""
    log = open_log("sqlite:///store/log.db", root)
    rows = log.events().drop("received_at").to_dicts()
    log.close()
    return rows


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_ingest_of_a_file_equals_posting_its_rows(
    project: Project, trained_folder: Path, tmp_path: Path, serving: Callable[..., Server]
) -> None:
    pl.DataFrame(ROWS).write_csv(tmp_path / "new.csv")
    assert counts(ingest(project.root, str(tmp_path / "new.csv"))) == COUNTS
    copied = shutil.copytree(trained_folder, tmp_path / "copy")
    server = serving(copied)
    by_time = sorted(ROWS, key=lambda row: str(row["timestamp"]))  # ingest sorts rows of a file by time
    assert server.client.post("/v1/events", json=by_time).json()["accepted"] == 3
    assert server.stop() == 0
    mine = logged(project.root)
    assert mine == logged(copied)
    assert [row["event_id"] for row in mine] == ["n3", "n1", "n2", "n4"]
    assert [row["rule"] for row in mine] == [None, None, None, "keep"]
    assert mine[0]["seq"] == manifest(project).watermark + 1


def test_ingest_repeated_counts_duplicates(project: Project, tmp_path: Path) -> None:
    pl.DataFrame(ROWS).write_parquet(tmp_path / "new.parquet")
    assert counts(ingest(project.root, str(tmp_path / "new.parquet"))) == COUNTS
    again = counts(ingest(project.root, str(tmp_path / "new.parquet")))
    assert again == {**COUNTS, "accepted": 0, "quarantined": 0, "duplicate": 4}
    other = ingest(project.root, "-", stdin=lines([{**ROWS[0], "item_id": "i09"}]))
    assert counts(other, 1) == {**dict.fromkeys(COUNTS, 0), "conflict": 1}
    assert "event_id=n1: this event_id was received before with other content" in other.stderr


def test_ingest_lists_unreadable_rows_and_keeps_the_others(project: Project, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(
        "user_id,item_id,event_type,timestamp,event_id,group_id,value,quantity\n"
        "u01,i01,click,2026-01-01T00:00:00Z,a1,,,\n"
        ",i01,click,2026-01-01T00:00:00Z,a2,,,\n"
        "u02,i01,click,soon,a3,,,\n"
        "u02,i01,click\n"
    )
    done = ingest(project.root, str(tmp_path / "new.csv"))
    assert counts(done, 1) == {**dict.fromkeys(COUNTS, 0), "accepted": 1, "rejected": 3}
    messages = " ".join(done.stderr.split())
    assert "new.csv:3: no user_id: ,i01,click" in messages
    assert "new.csv:4: timestamp: not a stamp: u02,i01,click,soon" in messages
    assert "new.csv:5: expected 8 fields, found 3" in messages


def test_ingest_accepts_mapped_and_standard_column_names(project: Project, tmp_path: Path) -> None:
    mapped = ("--set", 'data.columns.user_id="customer"', "--set", 'data.columns.item_id="sku"')
    theirs = [{"customer": "k1", "sku": "i01", "event_type": "click", "timestamp": 1767225600, "event_id": "m1"}]
    (tmp_path / "a.jsonl").write_text(lines(theirs))
    ours = [{**ROWS[0], "session_id": "s1", "request_id": "r1", "placement": "home", "context": {"b": 1, "a": [2]}}]
    (tmp_path / "b.jsonl").write_text(lines(ours))
    rest = ("--set", 'data.columns.value=""', "--set", 'data.columns.quantity=""', "--set", 'data.columns.group_id=""')
    assert counts(ingest(project.root, *mapped, *rest, str(tmp_path / "a.jsonl")))["accepted"] == 1
    assert counts(ingest(project.root, *mapped, str(tmp_path / "b.jsonl")))["accepted"] == 1
    first, second = logged(project.root)
    assert (first["user_id"], first["item_id"], first["timestamp"]) == ("k1", "i01", 1767225600_000000)
    assert (second["user_id"], second["session_id"], second["request_id"], second["placement"]) == (
        "u01",
        "s1",
        "r1",
        "home",
    )
    assert second["context"] == '{"a":[2],"b":1}'
    assert (second["group_id"], second["quantity"]) == ("b1", 2.0)


def test_ingest_with_an_invalid_context_rejects_the_row(project: Project, tmp_path: Path) -> None:
    pl.DataFrame(
        [{**row, "context": text} for row, text in zip(ROWS, ['{"x":1}', "[1]", "{", ""], strict=True)]
    ).write_csv(tmp_path / "new.csv")
    done = ingest(project.root, str(tmp_path / "new.csv"))
    assert counts(done, 1) == {**COUNTS, "accepted": 1, "rejected": 2}
    assert done.stderr.count("context: not a JSON object") == 2


def test_ingest_of_stdin_checks_each_row_as_post_does(project: Project) -> None:
    text = (
        lines(ROWS[:2])
        + "\n{broken\n"
        + lines([{"user_id": "u01", "item_id": 7.5, "event_type": "click"}])
        + lines(ROWS[2:3])
    )
    done = ingest(project.root, "-", stdin=text.rstrip("\n"))
    assert counts(done, 1) == {**dict.fromkeys(COUNTS, 0), "accepted": 3, "rejected": 2}
    messages = " ".join(done.stderr.split())
    assert "stdin:4: not JSON" in messages
    assert "stdin:5: item_id=7.5: expected text or a whole number" in messages
    assert [row["event_id"] for row in logged(project.root)] == ["n1", "n2", "n3"]
    assert counts(ingest(project.root, "-", stdin="")) == dict.fromkeys(COUNTS, 0)


@pytest.mark.slow
def test_ingest_during_serving_posts_or_names_the_lock_holder(
    project: Project, serving: Callable[..., Server], tmp_path: Path
) -> None:
    server = serving(project.root)
    file = tmp_path / "new.csv"
    pl.DataFrame(ROWS).write_csv(file)
    refused = ingest(project.root, str(file))
    assert (refused.returncode, refused.stdout) == (3, "")
    last = refused.stderr.splitlines()[-1]
    assert "store/writer.lock is held by `recloop serve`" in last
    assert f"try: recloop ingest {file} --url http://127.0.0.1:8088" in last
    many = [
        {**ROWS[0], "event_id": f"x{n}", "item_id": f"i{n % 80:02d}", "timestamp": 1767225600 + 60 * n}
        for n in range(1500)
    ]
    assert counts(ingest(project.root, "-", "--url", server.url, stdin=lines(many)))["accepted"] == 1500
    assert counts(ingest(project.root, str(file), "--url", server.url)) == COUNTS
    assert counts(ingest(project.root, str(file), "--url", server.url))["duplicate"] == 4
    known = server.client.get("/v1/users/fresh").json()
    assert known["state"] == "cold"  # a click is not positive there, but the user is known
    unstamped = [{key: value for key, value in ROWS[0].items() if key != "timestamp"} | {"event_id": "late"}]
    for status in ("accepted", "duplicate"):
        assert counts(ingest(project.root, "-", "--url", server.url, stdin=lines(unstamped)))[status] == 1


def test_update_reads_ingested_rows(project: Project, tmp_path: Path) -> None:
    log = pl.read_csv(project.root / "events.csv", schema_overrides={"event_id": pl.String})
    later = log.tail(400).with_columns(
        pl.format("again-{}", "event_id").alias("event_id"), pl.format("b-{}", "group_id").alias("group_id"),
        pl.col("timestamp").str.to_datetime("%Y-%m-%dT%H:%M:%SZ").dt.offset_by("60d").dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )  # fmt: skip
    later.write_csv(tmp_path / "later.csv")
    ingested = counts(ingest(project.root, str(tmp_path / "later.csv")))
    assert ingested["accepted"] + ingested["quarantined"] == 400
    assert loop.update(project).read == 400


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing.csv",), "FILE=nothing.csv: expected an existing file, glob or folder"),
        (("empty.csv",), "FILE=empty.csv: expected CSV, JSON or Parquet"),
        (("other.csv",), "data.columns.user_id=user_id: expected a column of other.csv"),
        (("broken.csv",), "data.columns.timestamp (timestamp)=: expected ISO 8601"),
        (("good.csv", "--url", "http://127.0.0.1:9"), "--url=http://127.0.0.1:9: expected a running service"),
        (("good.csv", "--url", "http://shop:port"), "--url=http://shop:port: expected the address of a service"),
        ((), "Missing argument"),
    ],
)
def test_ingest_with_a_bad_argument_changes_nothing(project: Project, words: tuple[str, ...], said: str) -> None:
    (project.root / "empty.csv").touch()
    (project.root / "other.csv").write_text("who,what\na,b\n")
    (project.root / "broken.csv").write_text(
        "user_id,item_id,event_type,timestamp,value,quantity,group_id,event_id\n,,,,,,,\n"
    )
    pl.DataFrame(ROWS).write_csv(project.root / "good.csv")
    done = ingest(project.root, *words)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    last = done.stderr.splitlines()[-1]
    assert said in last
    assert "; try: " in last
    assert "Traceback" not in done.stderr
    assert logged(project.root) == []


def test_ingest_without_a_live_bundle_exits_2_and_names_update(simulated_shop_folder: Path) -> None:
    done = ingest(simulated_shop_folder, "events.csv")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("try: recloop update")
