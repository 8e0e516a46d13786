"""SIGKILL of a service at random instants: what it acknowledged is stored, once."""

from __future__ import annotations

import random
import signal
import socket
import threading
import time
from collections import Counter

import pytest
from fault_runs import Facts, size
from forked_server import ForkedServer
from senders import BATCH, Sender
from servers import PATIENCE, run_beside

from recloop.project import Project
from recloop.storage import admin_token

KILLS_BY_UPDATE = 25
"""Kills between two updates, so that a start reads few rows."""
UPDATE = [
    f"--set={key}"
    for key in (
        "update.input_check=false", "release.gates.max_ndcg_loss=99", "release.gates.max_slice_loss=99",
        "release.gates.max_latency_ratio=1e9", "release.gates.max_cold_coverage_loss=1",
    )
]  # fmt: skip
"""Gates accept every candidate: all senders buy one item, so lists cannot be judged."""


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_service_keeps_what_it_acknowledged_once(project: Project, facts: Facts) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kills, draw, until = size(5, 1_000), random.Random(0), threading.Event()
    before = project.open_archive().watermark
    with ForkedServer(project.root, port) as server:
        server.start()
        token = admin_token.read(project.root)
        senders = [Sender(number, server.url, token, until) for number in range(8)]
        for sender in senders:
            sender.start()
        for kill in range(1, kills + 1):
            time.sleep(draw.random())
            server.end(signal.SIGKILL)
            server.start()
            if kill % KILLS_BY_UPDATE == 0:
                run_beside(project.root, "update", *UPDATE)
        until.set()
        for sender in senders:
            sender.join(PATIENCE)
            assert not sender.is_alive()
        server.end(signal.SIGTERM)
    stored = Counter(event_ids_after(project, before))
    acknowledged = {name for sender in senders for name in sender.acknowledged}
    facts["kills"] = {
        "kills": kills,
        "acknowledged_events": len(acknowledged),
        "requests_sent_again": sum(sender.attempts for sender in senders) - len(acknowledged) // BATCH,
        "lost": len(acknowledged - set(stored)),
        "stored_twice": sum(count > 1 for count in stored.values()),
    }
    assert [text for sender in senders for text in sender.refused] == []
    assert facts["kills"]["requests_sent_again"] > 0, "no kill met a request"
    assert stored == Counter(acknowledged)


def event_ids_after(project: Project, seq: int) -> list[str]:
    """Event ids of all stored rows after ``seq``: of the archive, then of the log."""
    archive = project.open_archive()
    with project.open_log() as log:
        recent = log.events(after=archive.watermark)["event_id"]
    archived = [rows.filter(rows["seq"] > seq)["event_id"] for rows in (archive.events(), archive.quarantine())]
    return [name for part in (*archived, recent) for name in part.to_list()]
