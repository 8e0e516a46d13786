"""Power cut under the event log: an acknowledged row survives, whatever of the unsynced writes does.

A process commits rows under strace, with checkpoints. At a random call the power goes: writes after the last sync of
their file are dropped, torn at sectors and reordered, and new names may be lost. The log that is left must open, be
whole, and hold each acknowledged row and nothing but what was sent.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest
from fault_runs import Facts, size
from power_cut import Call, Disk, calls_in, trace

from recloop.records import SEQ, USER_ID
from recloop.storage import open_log

WRITER = """
import sys
from pathlib import Path
from recloop.records import Event
from recloop.storage import open_log
folder, synchronous, commits = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
log = open_log("sqlite:///store/log.db", folder, write=True)
log._writer.execute(f"PRAGMA synchronous = {synchronous}")
log._writer.execute("PRAGMA wal_autocheckpoint = 24")
for number in range(commits):
    seq = log.last_seq()
    rows = range(seq + 1, seq + 2 + number * 7 % 40)
    log.append_events([Event(user_id=f"u{row}", item_id="i", timestamp=row, received_at=row) for row in rows])
    sys.stdout.write(f"{log.last_seq()}\\n")
    sys.stdout.flush()
log.close()
"""


def survivors(calls: list[Call], source: Path, target: Path, cuts: int, seed: int) -> Iterator[tuple[int, int]]:
    """Yield (acknowledged seq, seq found after the cut) of power cuts at random calls."""
    draw = random.Random(seed)
    instants = sorted(draw.randrange(1, len(calls) + 1) for _ in range(cuts))
    seqs = (int(call.data) if call.name == "write" else 0 for call in calls)
    acknowledged = list(accumulate(seqs, max))
    disk, applied = Disk(), 0
    for instant in instants:
        for call in calls[applied:instant]:
            disk.apply(call)
        applied = instant
        disk.lose_power(source, target, draw)
        yield acknowledged[instant - 1], newest_whole(target)
        shutil.rmtree(target)


def newest_whole(folder: Path) -> int:
    """Open the log as a restarted service does, check every row, and return the newest seq."""
    with open_log("sqlite:///store/log.db", folder, write=True) as log:
        connection = log._writing()
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = log.events()
        assert found[SEQ].to_list() == list(range(1, log.last_seq() + 1))
        assert found[USER_ID].to_list() == [f"u{seq}" for seq in found[SEQ]]
        assert found["timestamp"].to_list() == found[SEQ].to_list()
        return log.last_seq()


def calls_of(folder: Path, synchronous: str, commits: int) -> list[Call]:
    shop = folder / "shop"
    shop.mkdir()
    words = [sys.executable, "-c", WRITER, str(shop), synchronous, str(commits)]
    calls = trace(words, shop, folder / "trace")
    assert sum(call.name == "write" for call in calls) == commits
    assert sum(call.name == "pwrite64" and call.path.endswith("log.db") for call in calls) > 3 * 24, "no checkpoint"
    return calls


@pytest.mark.parametrize("process", ["7    ", "4321 ", "54321", "4194304"])
def test_calls_are_read_whatever_the_width_of_the_process_id(tmp_path: Path, process: str) -> None:
    """The trace pads the process id to five columns."""
    (tmp_path / "trace").write_text(f'{process} write(1<\\x70\\x69>, "\\x37\\x0a", 2) = 2\n')
    assert list(calls_in(tmp_path / "trace", tmp_path)) == [Call("write", "pi", b"7\n")]


def test_log_after_a_power_cut_holds_the_acknowledged_rows(tmp_path: Path, facts: Facts) -> None:
    calls = calls_of(tmp_path, "FULL", commits := size(60, 400))
    cuts = size(150, 10_000)
    found = list(survivors(calls, tmp_path / "shop", tmp_path / "after", cuts, seed=0))
    lost = [(sent, kept) for sent, kept in found if kept < sent]
    facts["power cut"] = {"states": cuts, "commits": commits, "calls": len(calls), "acknowledged_rows_lost": len(lost)}
    assert lost == []
    assert found[-1][0] > 100, "the cuts came before the commits"


def test_log_without_full_syncs_loses_acknowledged_rows(tmp_path: Path) -> None:
    """The simulation finds what it looks for: with ``synchronous = NORMAL`` a power cut loses acknowledged rows."""
    calls = calls_of(tmp_path, "NORMAL", 60)
    found = list(survivors(calls, tmp_path / "shop", tmp_path / "after", 40, seed=0))
    assert any(kept < sent for sent, kept in found)
