"""Stored states: refused if they are of another key or format, mapped while replaced, bounded for a long history."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recloop.config import Clean, Events
from recloop.errors import UserError
from recloop.features import state_store
from recloop.features.labels import EventLabeler
from recloop.features.moments import moment_stamps
from recloop.features.state import MAX_ROWS
from recloop.features.state_history import StateHistory
from recloop.records import EVENT_SCHEMA, SECOND
from recloop.storage import array_folder
from recloop.testing.states import digests

KEY = "0123abcd"
LABELER = EventLabeler(Events(positive=("purchase",)), Clean())
READER = """
import sys
from pathlib import Path
from recloop.features import state_store
from recloop.testing.states import digests
stored = state_store.read(Path(sys.argv[1]), sys.argv[2])
print("mapped", flush=True)
sys.stdin.readline()
print(sorted(digests(stored).items()), flush=True)
"""


def labelled(n_rows: int, users: int = 1) -> pl.DataFrame:
    """Purchases of 1,000 items in turn, one a second and user."""
    number = np.arange(n_rows)
    columns = {
        "seq": number + 1, "user_id": pl.Series(number % users).cast(pl.String),
        "item_id": pl.Series(number % 1_000).cast(pl.String), "timestamp": number // users * SECOND,
        "event_type": ["purchase"] * n_rows, "received_at": number,
    }  # fmt: skip
    empty = {name: [None] * n_rows for name in EVENT_SCHEMA if name not in columns}
    frame = pl.DataFrame({**columns, **empty}, schema_overrides=EVENT_SCHEMA).select(*EVENT_SCHEMA)
    return moment_stamps(LABELER.label(frame))


@pytest.mark.parametrize("change", ["schema", "key"])
def test_states_of_another_key_or_newer_format_are_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / state_store.name(20, KEY)
    state_store.write_frame(path, labelled(20, users=3), None, 20, KEY)
    assert len(digests(state_store.read(path, KEY))) == 3
    facts = path / array_folder.FACTS
    stored = json.loads(facts.read_text())
    found = {"schema": state_store.SCHEMA + 1} if change == "schema" else {"key": "fedc9876"}
    facts.write_text(json.dumps(stored | found))
    with pytest.raises(UserError, match=f"{change} {found[change]}.*expected schema {state_store.SCHEMA}, key {KEY}"):
        state_store.read(path, KEY)
    assert state_store.current(path, KEY) is None


@pytest.mark.slow
def test_two_processes_that_map_states_keep_them_while_they_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / state_store.name(20, KEY)
    state_store.write_frame(path, labelled(20, users=3), None, 20, KEY)
    expected = sorted(digests(state_store.read(path, KEY)).items())
    command = [sys.executable, "-c", READER, str(path), KEY]
    readers = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in range(2)]
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "mapped\n"
        state_store.write_frame(path, labelled(5_000, users=3), None, 5_000, KEY)
        outputs = [reader.communicate("\n", timeout=60)[0] for reader in readers]
    finally:
        for reader in readers:
            reader.kill()
    assert outputs == [f"{expected}\n"] * 2
    assert sorted(digests(state_store.read(path, KEY)).items()) != expected


@pytest.mark.parametrize("n_rows", [3 * MAX_ROWS, pytest.param(5_000_000, marks=pytest.mark.slow)])
def test_state_of_a_user_with_many_rows_equals_that_of_the_newest_rows(tmp_path: Path, n_rows: int) -> None:
    frame = labelled(n_rows)
    path = tmp_path / state_store.name(n_rows, KEY)
    state_store.write_frame(path, frame, None, n_rows, KEY)
    history = state_store.read(path, KEY).history
    rows = history.newest_rows(0)
    assert isinstance(rows, slice)
    assert rows.stop - rows.start <= 2 * MAX_ROWS
    state = history.states(["0"], [n_rows])
    newest = StateHistory(frame.tail(2 * MAX_ROWS)).states(["0"], [n_rows])
    assert len(state.items) == MAX_ROWS
    assert state.names[state.items].tolist() == newest.names[newest.items].tolist()
    assert state.stamps.tolist() == newest.stamps.tolist()
    assert state.positives.tolist() == [n_rows]
