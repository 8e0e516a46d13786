"""Bad input during serving: exit code, one message, unchanged folder, lists still answered."""

from __future__ import annotations

import gzip
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import servers

from recloop import bundle as bundles
from recloop.project import Project, open_project
from recloop.recommend import loading
from recloop.simulation.shop import SimulatedShop
from recloop.storage import releases

RECLOOP = [sys.executable, "-m", "recloop"]
Said = tuple[int, str, str]


@pytest.fixture(scope="module")
def busy(
    trained_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[servers.Server, Project, str]]:
    """A server with a pending row and a refused child of live: server, project, child."""
    project = open_project(shutil.copytree(trained_folder, tmp_path_factory.mktemp("busy") / "shop"))
    control = project.open_control()
    live = bundles.load(project.bundles / (project.live_bundle_id() or ""))
    child = bundles.write(replace(live, metrics={"n": 1}), project.bundles, datetime(2026, 1, 1, tzinfo=UTC)).id
    who = {"by": "a test", "reason": "worse", "at": 5}
    releases.register(control, child, bundles.manifest_hash(project.bundles / child), **who)
    releases.reject(control, child, **who)
    server = servers.start(project.root)
    try:
        row = {"user_id": "u05", "item_id": "i05", "event_type": "purchase", "event_id": "new"}
        assert server.client.post("/v1/events", json=row).json()["accepted"] == 1
        yield server, project, child
        assert server.stop() == 0
    finally:
        server.close()


def written(root: Path) -> dict[str, bytes]:
    """Contents of all files outside the stores."""
    files = [path for path in root.rglob("*") if path.is_file() and path.parent.name != "store"]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def listed(server: servers.Server) -> list[Any]:
    answer = server.client.get("/v1/recommend/u05").json()
    return [answer["model_version"], answer["degraded"], answer["items"]]


UNKNOWN_WORD = "events.weights={\"event_type = 'rating' AND valeu >= 4\" = 2}"
LINES = [
    (["doctor", "--set", UNKNOWN_WORD], 2, "nearest to valeu: value"),
    (["update", "--full", "--set", UNKNOWN_WORD], 2, "nearest to valeu: value"),
    (["update", "--set", 'events.weights={purchase = "many"}'], 2, "events.weights.purchase=many: expected a number"),
    (["update", "--set", "events.weights={purchase = nan}"], 2, "events.weights.purchase=nan: expected a number"),
    (["promote", "nothing", "--to", "live", "--reason", "x"], 2, "bundle=nothing: expected a registered bundle"),
    (["promote", "CHILD", "--to", "live", "--reason", "x"], 1, "refused: state=refused"),
    (["rollback", "--reason", "x"], 1, "earlier live bundles=0, threshold 1: no earlier live bundle to restore"),
    (["promote", "CHILD", "--to", "experiment", "--set", "release.experiment_share=1.0"], 2, "each arm has users"),
    (["evaluate", "nothing"], 2, "bundle=nothing: expected one of"),
    (["serve", "--port", "70000"], 2, "--port"),
    (["serve", "--port", "-5"], 2, "--port"),
    (["serve", "--port", "0"], 3, "store/writer.lock is held by `recloop serve`"),
    (["recommend", ""], 2, "USER=: expected a user id"),
]


@pytest.mark.parametrize(("words", "code", "said"), LINES, ids=[" ".join(words) for words, _, _ in LINES])
def test_cli_with_a_bad_argument_prints_one_error_and_changes_nothing(
    busy: tuple[servers.Server, Project, str], cli: Callable[..., Said], words: list[str], code: int, said: str
) -> None:
    server, project, child = busy
    control = project.open_control()
    before = written(project.root), control.releases(), listed(server)
    done, out, err = cli("-C", project.root, *(child if word == "CHILD" else word for word in words))
    assert (done, out) == (code, ""), err
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert (": expected " in last and "; try: " in last) if code == 2 else True
    assert "Traceback" not in err
    assert (written(project.root), control.releases(), listed(server)) == before


def test_post_events_with_an_unknown_request_id_is_accepted(
    busy: tuple[servers.Server, Project, str],
) -> None:
    server, _, _ = busy
    row = {"user_id": "new", "item_id": "i07", "event_type": "purchase", "event_id": "new-1", "request_id": "never"}
    answer = server.client.post("/v1/events", json=row)
    assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
    first = server.client.get("/v1/recommend/new").json()["items"][0]
    assert (first["item_id"], first["source"]) == ("i07", "history")
    assert server.client.get("/v1/users/new").json()["events"] == 1


def test_cli_with_an_unusable_path_exits_2_and_names_it(
    project: Project, cli: Callable[..., Said], tmp_path: Path
) -> None:
    (tmp_path / "odd" / "recloop.toml").mkdir(parents=True)
    for root, said in (
        (tmp_path / "odd", "a file, not a folder"),
        (project.file, "parents that are folders, not files"),
    ):
        code, out, err = cli("-C", root, "status")
        assert (code, out) == (2, "")
        assert f"error: file={root}/recloop.toml: expected {said}" in err
    for target in (project.file / "page.html", project.root, Path("/proc/page.html")):
        before = sorted(path.name for path in project.root.parent.iterdir()), written(project.root)
        code, out, err = cli("-C", project.root, "report", "--out", target)
        assert (code, out) == (2, ""), err
        assert "error: file=" in err.splitlines()[-1]
        assert (sorted(path.name for path in project.root.parent.iterdir()), written(project.root)) == before


@pytest.mark.parametrize("file", ["data/manifest.json", "data/items.parquet", "store/log.db", "store/control.db"])
def test_cli_with_a_corrupt_file_exits_2_and_names_it(project: Project, cli: Callable[..., Said], file: str) -> None:
    (project.root / file).write_bytes(b"junk" * 100)
    before = written(project.root)
    for words in (["recommend", "u05"], ["report"], ["evaluate"]):
        code, out, err = cli("-C", project.root, *words)
        if code == 0:
            continue  # this command does not read the file
        assert (code, out) == (2, ""), (words, err)
        assert Path(file).name in err.splitlines()[-1]
    assert cli("-C", project.root, "recommend", "u05")[0] == 2
    shutil.rmtree(project.root / "reports", ignore_errors=True)
    assert written(project.root) == {name: data for name, data in before.items() if not name.startswith("reports/")}


def test_train_on_a_full_disk_leaves_no_partial_bundle(project: Project) -> None:
    names = sorted(path.name for path in project.bundles.iterdir())
    full = subprocess.run(
        [*RECLOOP, "-C", str(project.root), "train", "popular"], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY)),
    )  # fmt: skip
    assert (full.returncode, full.stdout) == (2, ""), full.stderr
    assert "free space on its disk (File too large)" in full.stderr.splitlines()[-1]
    assert sorted(path.name for path in project.bundles.iterdir()) == names


@pytest.mark.parametrize("words", [["status"], ["status", "--json"], ["--help"]])
def test_cli_with_a_closed_pipe_exits_0(project: Project, words: list[str]) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run(
            [*RECLOOP, "-C", str(project.root), *words], stdout=writes, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_update_interrupted_exits_130_and_the_next_succeeds(tmp_path: Path) -> None:
    folder = SimulatedShop(seed=0, users=60, items=80).write(tmp_path / "shop")
    words = [*RECLOOP, "-C", str(folder), "update", "--set", "model.name=popular"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as update:
        assert update.stderr is not None
        first = update.stderr.readline()
        update.send_signal(signal.SIGINT)
        out, err = update.communicate(timeout=servers.PATIENCE)
    assert "collect" in first
    assert (update.returncode, out, err.splitlines()[-1]) == (130, "", "interrupted")
    assert "Traceback" not in err
    assert subprocess.run(words, capture_output=True).returncode == 0


def test_cli_internal_error_writes_the_traceback_to_a_file(
    project: Project, cli: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "status", lambda _: 1 / 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = cli("-C", project.root, "status", "--json")
    assert (code, out) == (70, "")
    (saved,) = tmp_path.glob("recloop-*.log")
    assert err == f"error: a bug in recloop, with its traceback in {saved}; try: report it with this file\n"
    assert "ZeroDivisionError" in saved.read_text()


FILE_HEAD = b"user_id,item_id,timestamp\n"
FILE_ROWS = b"".join(b"u%d,i%d,%d\n" % (n % 7, n % 5, 1_767_636_639 + n * 60) for n in range(60))
BAD_FILES = {
    "nothing*.csv": (None, "expected an existing file, glob or folder"),
    "half.csv.gz": (gzip.compress(FILE_HEAD + FILE_ROWS)[:-20], "expected a complete gzip file"),
    "nul.csv": (FILE_HEAD + FILE_ROWS + b"u\0,i,1767636639\n", "expected text without NUL bytes; line 62 has one"),
    "quote.csv": (FILE_HEAD + b'"u1,i1,1767636639\n' + FILE_ROWS, "the one in line 2 is never closed"),
    "fields.csv": (FILE_HEAD + FILE_ROWS.replace(b"\n", b",1\n"), "60 of 60 rows have another number: line 2 has 4"),
    "page.csv": (b"<!doctype html><p>please log in</p>", "this is an HTML or XML page"),
    "cyrillic.csv": (FILE_HEAD + "чай,хлеб,1767636639\n".encode("cp1251") * 9, "none of them decodes all of"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_init_and_prepare_of_a_bad_file_exit_2_and_write_nothing(
    tmp_path: Path, cli: Callable[..., Said], name: str
) -> None:
    content, said = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    settings = f'[data]\nevents = "{name}"\n'
    for words, toml in ((["init", name, "--yes"], ""), (["prepare"], settings)):
        if toml:
            (tmp_path / "recloop.toml").write_text(toml)
        before = written(tmp_path)
        code, out, err = cli("-C", tmp_path, *words)
        assert (code, out) == (2, ""), err
        assert said in err.splitlines()[-1]
        assert "; try: " in err.splitlines()[-1]
        assert written(tmp_path) == before


def test_init_and_prepare_of_a_column_named_twice_exit_2(tmp_path: Path, cli: Callable[..., Said]) -> None:
    (tmp_path / "log.csv").write_bytes(FILE_HEAD.replace(b"\n", b",item_id\n") + FILE_ROWS.replace(b"\n", b",x\n"))
    (tmp_path / "recloop.toml").write_text("")
    for words in (["prepare"], ["init", "log.csv", "--yes", "--force"]):
        code, out, err = cli("-C", tmp_path, *words)
        assert (code, out) == (2, "")
        assert "column=item_id: expected one column with this name in log.csv, found several" in err
        assert (tmp_path / "recloop.toml").read_text() == ""
