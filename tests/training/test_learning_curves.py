"""Learning curves: sequences for other libraries, the score of their lists, clock, table and picture."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recloop.config import Config
from recloop.models.base import TrainData, load_model
from recloop.settings import build
from recloop.training import trainer
from recloop.training.validation import ValidationSet

N = 30
HISTORY = 6
Arrays = Callable[..., TrainData]


@pytest.fixture(autouse=True)
def benchmarks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tests import the programs of ``benchmarks`` and of its ``peers``."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    monkeypatch.syspath_prepend(str(root / "benchmarks" / "peers"))


@pytest.fixture
def data(arrays: Arrays) -> TrainData:
    """Walks of 8 items on a circle, longer than the history of a network; every second user holds out the next item."""
    walks = [[[(start * 7 + step) % N + 1] for step in range(9)] for start in range(20)]
    held = {user: walks[user][-1] for user in range(0, 20, 2)}
    return arrays([walk[:-1] if user in held else walk for user, walk in enumerate(walks)], N, held=held)


@pytest.fixture
def moments(data: TrainData) -> ValidationSet:
    assert data.held is not None
    return ValidationSet(data, data.held, HISTORY, filter_seen=True)


def config() -> Config:
    return build({"features": {"dim": 16, "context": []}}, environment={})


def sequences(data: TrainData, moments: ValidationSet, folder: Path) -> Any:
    file = folder / "sequences.npz"
    importlib.import_module("validation_moments").write_sequences(data, moments, file)
    return importlib.import_module("looks").Sequences(file)


def test_write_sequences_holds_training_rows_and_whole_histories_without_targets(
    data: TrainData, moments: ValidationSet, tmp_path: Path
) -> None:
    written = sequences(data, moments, tmp_path)
    assert written.n_items == N
    assert [len(items) for items in written.train] == [8, 9] * 10
    assert [items.tolist() for items in written.queries] == [items.tolist() for items in written.train[::2]]
    assert written.queries[1].tolist() == [15, 16, 17, 18, 19, 20, 21, 22]
    assert sorted(np.load(tmp_path / "sequences.npz").files) == [
        "n_items",
        "query_items",
        "query_offsets",
        "train_items",
        "train_offsets",
    ]


def test_ndcg_of_exported_histories_equals_the_look_of_the_network(
    data: TrainData, moments: ValidationSet, tmp_path: Path
) -> None:
    """One network: its look inside a run, and lists made from the file alone."""
    torch.manual_seed(3)
    network = load_model("sasrec", {})
    network.build(data, 16, HISTORY)
    learner = trainer.Learner(network, data, config().train).eval()
    written = sequences(data, moments, tmp_path)
    table = learner.vectors()
    with torch.no_grad():
        history = torch.from_numpy(np.stack([items[-HISTORY:] for items in written.queries]).astype(np.int64))
        steps = torch.arange(HISTORY).flip(0).expand_as(history)
        context = torch.zeros(len(history), 0, dtype=torch.int64)
        users = network.forward_user(table[history], steps, torch.ones_like(history, dtype=torch.bool), context)
        lists = written.best((users @ table[1:].T).numpy())
    value = importlib.import_module("validation_moments").ndcg(np.array(lists), moments, N)
    assert 0 < value < 1
    assert value == pytest.approx(moments.score(learner), abs=1e-12)


def test_ndcg_of_known_lists_is_that_of_their_ranks(data: TrainData, moments: ValidationSet) -> None:
    ndcg = importlib.import_module("validation_moments").ndcg
    unseen = [(np.arange(8, 20) + user * 7) % N + 1 for user in range(0, 20, 2)]  # the target is the first
    first = np.stack([items[:10] for items in unseen])
    third = np.stack([np.r_[items[1:3], items[0], items[3:10]] for items in unseen])
    absent = np.stack([items[1:11] for items in unseen])
    assert [ndcg(lists, moments, N) for lists in (first, third, absent)] == [1.0, 0.5, 0.0]


def test_ndcg_refuses_seen_unknown_and_missing_items(data: TrainData, moments: ValidationSet) -> None:
    ndcg = importlib.import_module("validation_moments").ndcg
    lists = np.stack([(np.arange(8, 18) + user * 7) % N + 1 for user in range(0, 20, 2)])
    seen = lists.copy()
    seen[3, 9] = moments.seen[1][moments.seen[0] == 3][0]  # type: ignore[index]
    with pytest.raises(ValueError, match="1 seen items; expected none"):
        ndcg(seen, moments, N)
    for wrong in (np.where(lists == lists[0, 0], 0, lists), np.where(lists == lists[0, 0], N + 1, lists), lists[1:]):
        with pytest.raises(ValueError, match=r"expected \(10, 10\) item numbers from 1 to 30"):
            ndcg(wrong, moments, N)


def test_looks_are_at_fixed_seconds_and_outside_the_clock(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = importlib.import_module("looks")
    clock = [5.0]
    monkeypatch.setattr(looks.time, "process_time", lambda: clock[0])
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # restored after the test
    watch = looks.Looks(seconds=40, every=10, packages=("numpy",))
    watch.start()

    def lists() -> list[list[int]]:
        clock[0] += 100.0
        return [[1, 2]]

    steps = 0
    done = False
    while not done:
        clock[0] += 6.0
        steps += 1
        done = watch.after_step(3, lists)
    print("noise of a library")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == {"numpy": np.__version__}
    assert [(look["seconds"], look["tokens"], look["start_seconds"]) for look in lines[1:]] == [
        (12.0, 6, 5.0),
        (24.0, 12, 5.0),
        (30.0, 15, 5.0),
        (42.0, 21, 5.0),
    ]
    assert (steps, lines[1]["step"], lines[1]["lists"]) == (7, 2, [[1, 2]])


def test_train_peer_scores_each_look_and_says_if_the_run_was_cut(
    data: TrainData, moments: ValidationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that ranks by item number, judged while it runs; a later one fails after its look."""
    learning_curves = importlib.import_module("learning_curves")
    ready = learning_curves.Prepared(config(), None, None, data)
    monkeypatch.setattr(learning_curves.Prepared, "from_settings", lambda *_: ready)
    monkeypatch.setattr(learning_curves.Prepared, "moments", lambda _: moments)
    monkeypatch.setattr(learning_curves.Prepared, "covisitation", lambda _: 0.25)
    monkeypatch.setattr(learning_curves, "prepared", lambda _: tmp_path)
    program = tmp_path / "ranks_by_number.py"
    program.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(learning_curves.PEERS))!r})\n"
        "from looks import Looks, Sequences, arguments\n"
        "import numpy as np\n"
        "options = arguments()\n"
        "looks = Looks(options.seconds, 0.0001, ('numpy',))\n"
        "sequences = Sequences(options.file)\n"
        "looks.start()\n"
        "scores = -np.arange(sequences.n_items, dtype=float)\n"
        "lists = lambda: sequences.best(np.tile(scores, (len(sequences.queries), 1)))\n"
        "while not looks.step: sum(range(100000)); looks.after_step(5, lists)\n"
        "sys.exit('full' if 'fail' in sys.argv[0] else 0)\n"
    )
    file = tmp_path / "learning.json"
    learning_curves.train_peer([sys.executable, str(program)], 4, {"model": "by number", "seed": 0}, file)
    result = json.loads(file.read_text())
    expected = []
    for user in range(0, 20, 2):
        walk = [(user * 7 + step) % N + 1 for step in range(9)]
        ranked = [item for item in range(1, N + 1) if item not in walk[:8]][:10]
        expected.append(1 / np.log2(ranked.index(walk[8]) + 2) if walk[8] in ranked else 0.0)
    assert [look["NDCG@10"] for look in result["looks"]] == pytest.approx([np.mean(expected)])
    assert {"model": "by number", "stopped": "time_budget", "tokens": 5, "covisitation": 0.25}.items() <= result.items()
    assert result["versions"] == {"numpy": np.__version__}
    failing = program.rename(tmp_path / "fail.py")
    with pytest.raises(SystemExit, match="exit 1; expected 0"):
        learning_curves.train_peer([sys.executable, str(failing)], 4, {"seed": 0}, file)
    assert json.loads(file.read_text())["stopped"] == "interrupted"


def test_learning_curves_draws_and_tabulates_the_runs_that_exist(root: Path, tmp_path: Path) -> None:
    learning_curves = importlib.import_module("learning_curves")
    curves = importlib.import_module("curves")
    looks = [{"seconds": 1.5, "step": 3, "NDCG@10": 0.1}, {"seconds": 3.0, "step": 6, "NDCG@10": 0.16}]
    result = {"looks": looks, "covisitation": 0.15, "tokens": 3_000, "stopped": "time_budget", "commit": "0123456789"}
    (tmp_path / "learning-ml-1m-gru4rec-seed0.json").write_text(json.dumps(result))
    curve, flat = learning_curves.picture(tmp_path).axes[0].lines
    assert (curve.get_xdata().tolist(), curve.get_ydata().tolist()) == ([1.5, 3.0], [0.1, 0.16])
    assert set(flat.get_ydata()) == {0.15}
    assert [curves.seconds_to([result], quality) for quality in (0.1, 0.15, 0.17)] == [1.5, 3.0, None]
    row = [*curves.table(tmp_path)][2]
    assert row.endswith("| 1 | 3 | 1,000 | 0.1600 | 3 | 3 | not reached | not reached | time_budget | 0123456 |")
    slow = [{"seconds": 9.0, "step": 3, "NDCG@10": 0.14}, {"seconds": 12.0, "step": 6, "NDCG@10": 0.149}]
    (sentence,) = curves.ratios({"sasrec": [result], "replay": [{**result, "looks": slow}]})
    assert sentence.endswith(": 3.0 to 0.12; more than 4.0 to 0.15, which it did not reach.")
    assert not [*curves.ratios({"gru4rec": [result], "sasrec": [result]})]


def test_rows_of_learning_curves_are_means_of_seeds(root: Path, tmp_path: Path) -> None:
    """A quality that one seed does not reach is not reached."""
    learning_curves = importlib.import_module("learning_curves")
    curves = importlib.import_module("curves")
    for seed, (first, second) in enumerate(((0.13, 0.18), (0.11, 0.16))):
        looks = [{"seconds": 2.0, "step": 3, "NDCG@10": first}, {"seconds": 4.0, "step": 6, "NDCG@10": second}]
        result = {
            "looks": looks,
            "covisitation": 0.15,
            "tokens": 4_000,
            "stopped": "time_budget",
            "commit": f"{seed}" * 9,
        }
        curves.file_of(tmp_path, "sasrec", seed).write_text(json.dumps(result))
    row = [*curves.table(tmp_path)][2]
    assert row.endswith(
        "| 2 | 4 | 1,000 | 0.1700 | 3 | 4 | not reached | not reached | time_budget | 0000000, 1111111 |"
    )
    first, second, _ = learning_curves.picture(tmp_path).axes[0].lines
    assert (first.get_label(), second.get_ydata().tolist()) == (curves.CURVES["sasrec"].label, [0.11, 0.16])
    committed = curves.runs(root / "benchmarks" / "results")
    assert {"sasrec", "gru4rec", "replay"} <= set(committed)
    assert len({result["covisitation"] for seeds in committed.values() for result in seeds}) == 1
