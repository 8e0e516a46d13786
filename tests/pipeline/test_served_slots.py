"""Slots of served lists: each request is read once, and a damaged file is replaced."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from recloop.pipeline import served_slots
from recloop.training.negatives import slots_of


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The requests of each look-up; every request but ``lost`` has one slot."""
    calls: list[list[str]] = []

    def answered(_project: Any, requests: list[str]) -> pl.DataFrame:
        calls.append(list(requests))
        known = [request for request in requests if request != "lost"]
        rows = {"request_id": known, "user_id": known, "item_id": known, "slot": [0] * len(known)}
        return pl.DataFrame(rows, schema=slots_of([]).schema)

    monkeypatch.setattr(served_slots, "_answered", answered)
    return calls


def rows(*requests: str | None) -> pl.DataFrame:
    frame = {"seq": range(1, len(requests) + 1), "request_id": requests}
    return pl.DataFrame(frame, schema={"seq": pl.Int64, "request_id": pl.String})


def test_kept_slots_ask_for_each_request_once(asked: list[list[str]], tmp_path: Path) -> None:
    project: Any = SimpleNamespace(store=tmp_path)
    assert served_slots.kept_slots(project, rows(None, None), 2) is None
    first = served_slots.kept_slots(project, rows("b", None, "a", "lost"), 4)
    assert first is not None
    assert first["request_id"].to_list() == ["a", "b"]
    later = rows("b", None, "a", "lost", "a", "c")
    for _ in range(2):
        slots = served_slots.kept_slots(project, later, 6)
        assert slots is not None
        assert slots["request_id"].to_list() == ["a", "b", "c"]
    assert asked == [["a", "b", "lost"], ["a", "c"], []]
    assert [path.name for path in tmp_path.iterdir()] == ["served-slots-6.parquet"]
    served_slots.forget(project)
    assert not list(tmp_path.iterdir())


def test_kept_slots_replace_a_damaged_file(asked: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "served-slots-2.parquet").write_bytes(b"PAR1 cut short")
    slots = served_slots.kept_slots(SimpleNamespace(store=tmp_path), rows("a", "b", "c"), 3)  # type: ignore[arg-type]
    assert slots is not None
    assert asked == [["a", "b", "c"]]
    assert pl.read_parquet(tmp_path / "served-slots-3.parquet").equals(slots)
    assert not (tmp_path / "served-slots-2.parquet").exists()
