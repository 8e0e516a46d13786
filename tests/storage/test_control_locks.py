"""Control store moves by compare-and-set, and the two locks."""

from __future__ import annotations

import json
import multiprocessing
import os
from multiprocessing.synchronize import Event as Signal
from pathlib import Path

import pytest

from recloop.errors import Locked
from recloop.storage import locks, open_control
from recloop.storage.control import ReleaseConflict

URL = "sqlite:///store/control.db"
MOVE = {"by": "test", "reason": "because", "evidence": {"x": [1, "ü"]}, "at": 7}


def test_control_move_is_a_compare_and_set(tmp_path: Path) -> None:
    control = open_control(URL, tmp_path)
    assert control.releases() == []
    assert not (tmp_path / "store").exists()  # reading creates no file
    row = control.move("b1", "ab" * 32, "", "registered", expected_generation=0, **MOVE)
    assert row.generation == 1
    with pytest.raises(ReleaseConflict, match="generation=1, threshold 0"):
        control.move("b2", "cd" * 32, "", "registered", expected_generation=0, **MOVE)
    open_control(URL, tmp_path).move("b1", "ab" * 32, "registered", "live", expected_generation=1, **MOVE)
    assert [(r.generation, r.from_, r.to) for r in control.releases()] == [
        (1, "", "registered"),
        (2, "registered", "live"),
    ]
    assert control.releases()[0].evidence == {"x": [1, "ü"]}
    assert control.generation() == 2


def _move(root: Path, name: str) -> str:
    try:
        open_control(URL, root).move(name, "", "", "registered", expected_generation=0, **MOVE)
    except ReleaseConflict:
        return "moved"
    return "won"


def test_control_move_of_many_processes_succeeds_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        answers = pool.starmap(_move, [(tmp_path, f"b{n}") for n in range(12)])
    assert answers.count("won") == 1
    assert len(open_control(URL, tmp_path).releases()) == 1


def _hold(root: Path, held: Signal, done: Signal) -> None:
    with locks.writer_lock(root):
        held.set()
        done.wait(60)


def test_lock_names_its_holder_and_ends_with_its_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    child = context.Process(target=_hold, args=(tmp_path, held, done))
    child.start()
    assert held.wait(60)
    with pytest.raises(Locked, match=rf"store/writer.lock is held by `recloop serve` \(process {child.pid}, since 20"):
        locks.writer_lock(tmp_path).__enter__()
    with locks.run_lock(tmp_path, "update"):  # the other lock is free
        holder = json.loads((tmp_path / "store" / "turn.lock").read_text())
        assert (holder["verb"], holder["pid"]) == ("update", os.getpid())
        with pytest.raises(Locked, match="`recloop update`"):
            locks.run_lock(tmp_path, "prepare").__enter__()
    child.kill()
    child.join()
    with locks.writer_lock(tmp_path):  # the lock of a killed process is free
        pass
