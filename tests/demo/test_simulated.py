"""`recloop demo --world` in a process: known truth, one rejected and one promoted candidate.

The tests that read the whole run are slow; `make test-demo` runs them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rich.console

from recloop.demo.narrator import DemoNarrator
from recloop.demo.simulated import RULE, write_project
from recloop.demo.simulated_users import SimulationTotals
from recloop.demo.true_effect import TrueEffect, entered, truth_line
from recloop.errors import UserError
from recloop.monitoring.experiment_verdict import Measured
from recloop.progress import NullProgress
from recloop.project import open_project
from recloop.records import DAY, Decision
from recloop.simulation.browsing import BrowsingSimulator

CHAPTERS = [
    "the world", "collect", "features", "learn", "evaluate", "bundle", "signals", "candidates", "browse", "keep learning", "gate",
    "a harmful candidate", "a better candidate", "released", "verify", "files",
]  # fmt: skip

pytestmark = pytest.mark.timeout(1800)


def child(folder: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "recloop", "demo", "--world", "--dir", str(folder), "--json"]
    return subprocess.run(words, capture_output=True, text=True)


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world") / "demo"


@pytest.fixture(scope="module")
def shown(demo_folder: Path) -> dict[str, Any]:
    """Output of the demo, run once per file; it exits 70 if a statement does not hold."""
    done = child(demo_folder)
    assert done.returncode == 0, done.stderr
    tree: dict[str, Any] = json.loads(done.stdout)
    return tree


@pytest.fixture(scope="module")
def said(shown: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: "\n".join(step["out"]) for step in shown["steps"]}


@pytest.fixture(scope="module")
def experiments(shown: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The two experiments by verdict."""
    files = [Path(path) for path in shown["files"] if re.search(r"experiment-counts-.*\.json$", path)]
    found = [json.loads(file.read_text("utf-8")) for file in files]
    return {one["verdict"]: one for one in found}


@pytest.mark.slow
def test_demo_prints_every_chapter_and_writes_its_files(shown: dict[str, Any], said: dict[str, str]) -> None:
    assert list(said) == CHAPTERS
    assert set(shown) == {"steps", "files"}
    assert all(Path(path).exists() for path in shown["files"])
    for kind in ("click", "dwell", "purchase", "skip", "dislike"):
        assert re.search(rf"[1-9]\d* {kind}\b", said["a harmful candidate"])
    assert re.search(r"[1-9]\d* new users, [1-9]\d* new items", said["a harmful candidate"])
    assert "dwell_pct >= 0.7: " in said["keep learning"]
    assert "pass verification: 0" in said["gate"]


@pytest.mark.slow
def test_demo_experiments_cover_the_truth(experiments: dict[str, dict[str, Any]]) -> None:
    """The confidence sequence covers the truth; a 95 % interval may miss it."""
    assert sorted(experiments) == ["better", "worse"]
    for one in experiments.values():
        assert min(one["users"]["live"], one["users"]["candidate"]) >= 200
        assert not one["sample_ratio"]["alarm"]
        assert (one["plan"]["users"], one["plan"]["looks"], one["differs"]) == (400, 2, [])
        for name in ("hit_rate", "clicks_per_request"):
            metric = one["metrics"][name]
            delta = metric["truth"]["candidate"] - metric["truth"]["live"]
            assert metric["sequence_low"] < delta < metric["sequence_high"]
            assert metric["sequence_low"] < metric["low"] < metric["high"] < metric["sequence_high"]
            assert metric["truth"]["requests"] > 400
    assert experiments["worse"]["metrics"]["hit_rate"]["truth"]["candidate"] < 0.5
    assert experiments["better"]["metrics"]["hit_rate"]["truth"]["candidate"] > 0.8


@pytest.mark.slow
def test_demo_rejects_the_harmful_and_promotes_the_better_candidate(
    shown: dict[str, Any], demo_folder: Path, said: dict[str, str], experiments: dict[str, dict[str, Any]]
) -> None:
    worse, better = (experiments[verdict]["bundle"] for verdict in ("worse", "better"))
    assert re.search(r"NO +new_rows: -0\.\d+ \(NDCG@10 [\d.]+, live [\d.]+\), threshold -0\.03", said["candidates"])
    assert re.search(r"--reason 'requested garden week', overriding gate new_rows=-0\.\d+", said["candidates"])
    assert re.search(
        r"409 refused: experiment=worse, threshold a loss above 0\.01 of hit_rate ruled out",
        said["a harmful candidate"],
    )
    assert re.search(r"earned by\n[1-9]\d\d requests in shadow \(0 replicas differ\)", said["a better candidate"])
    project = open_project(demo_folder)
    rows = project.open_control().releases()
    steps = {bundle: [row.to for row in rows if row.bundle == bundle] for bundle in (worse, better)}
    assert steps[worse] == ["registered", "checked", "shadow", "experiment", "refused"]
    assert steps[better] == ["registered", "checked", "shadow", "experiment", "live"]
    ahead = [(row.bundle, row.to) for row in rows if "waived_requirements" in row.evidence]
    assert ahead == [(worse, "shadow")]
    assert [row.reason for row in rows if row.bundle == better][2:] == ["", "", ""]
    assert rows[-1].bundle == better
    before, after = (float(found) for found in re.findall(r"click probability of ([\d.]+)%", said["released"]))
    assert after > before + 10


@pytest.mark.slow
def test_demo_lists_omit_disliked_items_and_verify(said: dict[str, str]) -> None:
    assert re.search(r"[1-9]\d+ lists for users with dislikes: 0 disliked items", said["verify"])
    checked, equal, unexplained = re.findall(r"([\d,]+) (?:decisions|equal|unexplained)", said["verify"])
    assert int(checked.replace(",", "")) > 2000
    assert checked == equal
    assert unexplained == "0"


def test_demo_in_a_foreign_folder_exits_2_and_changes_nothing(tmp_path: Path, cli: Callable[..., Any]) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    code, out, err = cli("demo", "--world", "--dir", tmp_path, "--json")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"error: --dir={tmp_path}: expected an empty folder")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_demo_replaces_an_earlier_demo(tmp_path: Path) -> None:
    world, narrator = (
        BrowsingSimulator(users=20, items=30, days=60),
        DemoNarrator(NullProgress(), rich.console.Console(quiet=True)),
    )
    folder = tmp_path / "demo"
    assert write_project(folder, world, narrator).config.placement["home"].filter == RULE
    (folder / "data").mkdir()
    write_project(folder, world, narrator)
    assert not (folder / "data").exists()
    (folder / "recloop.toml").write_text("# mine", "utf-8")
    with pytest.raises(UserError, match="--dir"):
        write_project(folder, world, narrator)


def test_entered_keeps_the_first_24_hours_of_finished_users() -> None:
    """Keep u1's first two requests: u2's 24 hours are open, u1's third is later."""
    requests = [decision("u1", 0), decision("u1", DAY - 1), decision("u1", DAY), decision("u2", DAY), decision("u3", 1)]
    assert [(one.user_id, one.served_at) for one in entered(requests, DAY + 1)] == [
        ("u1", 0),
        ("u1", DAY - 1),
        ("u3", 1),
    ]
    assert [one.user_id for one in entered(requests, DAY)] == ["u1", "u1"]


def test_truth_line_marks_a_truth_outside_the_interval() -> None:
    metric = Measured(
        kind="primary", better="higher", live=0.5, candidate=0.7, delta=0.2, se=0.05, low=0.1, high=0.3, p=0.0,
        relative=0.4, relative_low=0.2, relative_high=0.6, sequence_low=0.0, sequence_high=0.4, reduction=0.0, worse=False,
    )  # fmt: skip
    assert "+0.2 (0.5 to 0.7, both" in truth_line(TrueEffect(0.5, 0.7, 9), metric)
    assert truth_line(TrueEffect(0.5, 0.7, 9), metric).count("OUTSIDE") == 0
    assert truth_line(TrueEffect(0.5, 0.85, 9), metric).count("OUTSIDE") == 1
    assert truth_line(TrueEffect(0.5, 0.95, 9), metric).count("OUTSIDE") == 2


def test_simulation_totals_add_up() -> None:
    whole, lane = SimulationTotals(visits=1, clicks=0.5), SimulationTotals(visits=2, clicks=1.0)
    whole.rows.update(click=1)
    lane.rows.update(click=2, skip=1)
    whole.add(lane)
    assert (whole.visits, whole.clicks, whole.rows) == (3, 1.5, {"click": 3, "skip": 1})


def decision(user_id: str, at: int) -> Decision:
    return Decision(
        request_id=f"{user_id}-{at}", role="answer", user_id=user_id, served_at=at, as_of_seq=0, bundle="b", generation=1,
        variant="live", placement="home", n=10, query={}, items=[], scores=[], sources=[], positives=0, inputs={}, latency_us=1,
    )  # fmt: skip
