"""Folders of mapped arrays: complete or refused, readable while they are replaced."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from recloop.errors import UserError
from recloop.storage import array_folder

ARRAYS = {"a": np.arange(5), "b": np.zeros(0, dtype=np.int32), "c": np.array([1, 255], dtype=np.uint8)}


def test_arrays_are_read_as_written(tmp_path: Path) -> None:
    array_folder.write(tmp_path / "states", ARRAYS, {"seq": 12})
    arrays, facts = array_folder.read(tmp_path / "states")
    for name, array in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].tolist()) == (array.dtype, array.tolist())
        assert not arrays[name].flags.writeable or not len(array)
    assert facts["seq"] == 12
    assert [path.name for path in tmp_path.iterdir()] == ["states"]


def test_mapped_arrays_stay_readable_after_a_replacement(tmp_path: Path) -> None:
    array_folder.write(tmp_path / "states", ARRAYS, {})
    mapped, _ = array_folder.read(tmp_path / "states")
    array_folder.write(tmp_path / "states", {"a": np.arange(50)}, {})
    assert mapped["a"].tolist() == [0, 1, 2, 3, 4]
    assert len(array_folder.read(tmp_path / "states")[0]["a"]) == 50


def test_write_that_fails_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array_folder.write(tmp_path / "states", ARRAYS, {})

    def full(path: Path, content: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(array_folder, "write_file", full)
    with pytest.raises(OSError, match="No space left"):
        array_folder.write(tmp_path / "states", {"a": np.arange(50)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["states"]
    assert len(array_folder.read(tmp_path / "states")[0]["a"]) == 5


@pytest.mark.parametrize("damage", ["short", "missing", "newer", "no json"])
def test_damaged_folder_is_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "states"
    array_folder.write(folder, ARRAYS, {})
    facts = folder / array_folder.FACTS
    if damage == "short":
        (folder / "a.bin").write_bytes((folder / "a.bin").read_bytes()[:-1])
    elif damage == "missing":
        (folder / "c.bin").unlink()
    elif damage == "newer":
        facts.write_text(json.dumps(json.loads(facts.read_text()) | {"format": 2}))
    else:
        facts.write_text("{")
    with pytest.raises(UserError, match=r"states=.*recloop update"):
        array_folder.read(folder)
