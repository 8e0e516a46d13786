"""SIGKILL of a service at random instants: what it acknowledged is stored, once."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
from fault_runs import Facts, size
from senders import BATCH, Sender
from servers import PATIENCE, Server

from recloop.project import Project


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_service_keeps_what_it_acknowledged_once(
    serving: Callable[..., Server], project: Project, facts: Facts
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    kills, draw, until = size(5, 1_000), random.Random(0), threading.Event()
    server = serving(project.root, "--port", port)
    senders = [Sender(number, server.url, server.token, until) for number in range(8)]
    for sender in senders:
        sender.start()
    for _ in range(kills):
        time.sleep(draw.random())
        server.close()
        server = serving(project.root, "--port", port)
    until.set()
    for sender in senders:
        sender.join(PATIENCE)
        assert not sender.is_alive()
    assert server.stop() == 0
    with project.open_log() as log:
        stored = Counter(log.events()["event_id"].to_list())
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
