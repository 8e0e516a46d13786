"""Rejected rows: the limit, the reasons, and the next command of `init`."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import polars as pl
import pytest

from recloop.cli import run
from recloop.data.doctor.report import build_report
from recloop.data.prepare import prepare
from recloop.data.rejected_rows import RejectedRow, excess, rounded_up
from recloop.errors import UserError
from recloop.init.detect import init
from recloop.project import open_project

Rows = Callable[..., Path]


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """Write a log of 1,000 rows: ``rows(guests=...)`` counts unreadable ones."""

    def write(guests: int = 0, unstamped: int = 0, daily: bool = False) -> Path:
        size = range(1000)
        step = 86_400 if daily else 1_801
        stamps = pl.Series([1_760_000_000 // 86_400 * 86_400 + n // (40 if daily else 1) * step for n in size])
        frame = pl.DataFrame(
            {
                "user_id": ["" if n < guests else f"u{n % 37}" for n in size],
                "item_id": [f"i{(n % 37 if daily else n) ** 2 % 41}" for n in size],
                "timestamp": ["soon" if n >= 1000 - unstamped else str(stamps[n]) for n in size],
            }
        )
        frame.write_csv(tmp_path / "log.csv")
        return tmp_path

    return write


def cli(root: Path, *words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(["-C", str(root), *words])
    return code, out.getvalue(), err.getvalue()


def follow(root: Path, printed: str) -> tuple[int, str, str]:
    """Run the printed command after ``next:`` with the fastest model."""
    found = re.search(r"next: recloop ([^(]+)", printed)
    assert found, printed
    return cli(root, *shlex.split(found[1]), *(["--set", "model.name=popular"] if "update" in found[1] else []))


@pytest.mark.parametrize(("guests", "stops"), [(0, False), (50, False), (51, True), (990, True)])
def test_prepare_above_max_rejected_raises_with_a_fix(rows: Rows, guests: int, stops: bool) -> None:
    folder = rows(guests)
    (folder / "recloop.toml").write_text(
        '[data]\nevents = "log.csv"\n[clean]\nduplicates = "off"\n[split]\nquantile = 0.5\n'
    )
    project = open_project(folder)
    if not stops:
        assert prepare(project).report.rejected == guests
        return
    with pytest.raises(UserError) as refused:
        prepare(project)
    text = str(refused.value)
    assert f"{guests / 1000:.1%} of the rows ({guests} of 1,000): no user_id ({guests})" in text
    assert f"--set clean.max_rejected={rounded_up(guests / 1000)}" in text
    assert refused.value.samples[0].startswith("log.csv:2: ")
    assert not (folder / "data").exists()
    assert any("no user_id" in line and "max_rejected" in line for line in build_report(project).warnings), (
        "doctor warns"
    )
    raised = open_project(folder, [f"clean.max_rejected={rounded_up(guests / 1000)}"])
    if guests < 900:
        assert prepare(raised).report.rejected == guests


def test_excess_names_a_fix_for_each_reason() -> None:
    def said(reason: str) -> str:
        return excess([RejectedRow("f", 2, reason, "x")] * 10, 20, 0.05).fix  # type: ignore[union-attr]

    assert "guests" in said("no user_id")
    assert "data.columns.item_id to a column with fewer gaps" in said("no item_id")
    assert "guests, set data.columns.group_id; otherwise set data.columns.user_id" in said("no user_id")
    assert "data.time_unit" in said("timestamp: not a stamp")
    assert "data.time_unit" in said("timestamp outside 1970..2100")
    assert 'data.columns.quantity=""' in said("quantity: not a number")
    assert "correct these lines" in said("expected 4 fields, found 3")
    assert excess([], 0, 0.05) is None


@pytest.mark.parametrize(
    ("kind", "said", "setting"),
    [
        ({"guests": 250}, "250 rejected (no user_id (250))", "clean.max_rejected=0.26"),
        ({"unstamped": 100}, "100 rejected (timestamp: not a stamp (100))", "clean.max_rejected=0.11"),
        ({"guests": 20}, "20 rejected (no user_id (20))", ""),
        ({"guests": 60, "daily": True}, "60 rejected", "clean.max_rejected=0.07"),
    ],
)
def test_init_reports_row_counts_and_a_working_next_command(
    rows: Rows, kind: dict[str, int], said: str, setting: str
) -> None:
    folder = rows(**kind)
    code, out, err = cli(folder, "init", str(folder / "log.csv"), "--yes")
    assert code == 0, err
    summary = next(line for line in out.splitlines() if line.startswith("rows: "))
    assert summary.startswith("rows: 1,000 read = ")
    assert said in summary
    last = out.splitlines()[-1]
    assert f"next: recloop update --set {setting}" in last if setting else last.endswith("next: recloop update")
    if setting:
        assert cli(folder, "update", "--set", "model.name=popular")[0] == 2, "update fails without the setting"
    code, _, err = follow(folder, last)
    assert code == 0, err


def test_init_json_contains_rows_and_next(rows: Rows) -> None:
    folder = rows(guests=100)
    tree = json.loads(cli(folder, "init", str(folder / "log.csv"), "--yes", "--json")[1])
    assert tree["rows"]["read"] == 1000
    assert (tree["rows"]["rejected"], tree["next"]) == (100, "recloop update --set clean.max_rejected=0.11")


# -- chosen columns


def test_init_does_not_choose_a_blank_column(tmp_path: Path) -> None:
    lines = [f"u{n % 9},,i{n % 7},2026-01-{n % 28 + 1:02d}T10:{n % 60:02d}:07Z" for n in range(200)]
    (tmp_path / "log.csv").write_text("shopper_ref_no,Device ID,Lineitem sku,Created at\n" + "\n".join(lines) + "\n")
    columns = init(str(tmp_path / "log.csv"), root=tmp_path, yes=True).columns
    assert (columns["user_id"], columns["item_id"]) == ("shopper_ref_no", "Lineitem sku")


def test_init_prefers_repeating_items_and_complete_users(tmp_path: Path) -> None:
    lines = [
        f"{n},{'' if n % 5 == 0 else n % 9},a{n % 9}@x.org,S-{n % 7},2026-01-{n % 28 + 1:02d}T10:{n % 60:02d}:07Z"
        for n in range(200)
    ]
    header = "item_id,customer_id,customer_email,sku,created_at\n"
    (tmp_path / "log.csv").write_text(header + "\n".join(lines) + "\n")
    made = init(str(tmp_path / "log.csv"), root=tmp_path, yes=True)
    assert (made.columns["user_id"], made.columns["item_id"]) == ("customer_email", "sku")
    whys = {decision.key: decision.why for decision in made.guesses}
    assert "item_id never repeats" in whys["data.columns.item_id"]
    assert "customer_id is empty in 20.0% of the rows" in whys["data.columns.user_id"]


# -- in a used project


@pytest.fixture
def used_folder(rows: Rows) -> Path:
    """A project folder after its first run over log.csv."""
    folder = rows()
    assert cli(folder, "init", str(folder / "log.csv"), "--yes")[0] == 0
    assert cli(folder, "update", "--set", "model.name=popular")[0] == 0
    return folder


def test_init_force_in_a_used_project_of_a_renamed_log_announces_a_new_first_run(used_folder: Path) -> None:
    log = (used_folder / "log.csv").rename(used_folder / "other.csv")
    code, out, err = cli(used_folder, "init", str(log), "--yes", "--force")
    assert code == 0, err
    text = " ".join(out.split())
    for part in ("a new first run", "it keeps 0 posted rows", "other.csv"):
        assert part in text
    code, out, err = follow(used_folder, out.splitlines()[-1])
    assert code == 0, err
    assert "a new first run" in out


def test_init_force_with_a_changed_imported_file_names_restart(used_folder: Path) -> None:
    log = used_folder / "log.csv"
    header, *lines = log.read_text().splitlines()
    log.write_text("\n".join([header, *reversed(lines)]) + "\n")
    _, out, _ = cli(used_folder, "init", str(log), "--yes", "--force")
    assert "an imported file has changed" in out
    assert "next: recloop update --restart" in out
    assert follow(used_folder, out.splitlines()[-1])[0] == 0
