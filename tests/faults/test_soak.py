"""Hours of load in small: lists and events while updates, swaps, reloads, backups and damaged bundles come and go."""

from __future__ import annotations

import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from bundle_copies import damaged_bundle
from fault_runs import SHARE, Facts, size
from senders import Sender
from servers import PATIENCE, Server, run_beside
from shoppers import Shopper

from recloop.project import Project

GROWTH = 1.05
"""Largest ratio of the memory, files and threads of the last third to those of the second one, at full size."""


@dataclass(frozen=True)
class Held:
    """What a process holds: bytes of resident memory, open files and threads."""

    memory: int
    files: int
    threads: int

    @classmethod
    def by(cls, pid: int) -> Held:
        folder = Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        memory = int(status["VmRSS"].split()[0]) * 1024
        return cls(memory, len(list((folder / "fd").iterdir())), int(status["Threads"]))


def disturb(server: Server, project: Project, number: int) -> None:
    """One of everything that happens beside the requests."""
    run_beside(project.root, "update", "--set", "update.input_check=false")
    live = server.client.get("/v1/recommend/u01").json()["model_version"]
    broken = damaged_bundle(project, live, number)
    refused = server.client.post("/v1/admin/promote", json={"bundle": broken, "to": "live", "reason": "damaged"})
    assert refused.status_code != 200, refused.text
    shutil.rmtree(project.bundles / broken)
    server.process.send_signal(signal.SIGHUP)
    assert server.client.post("/v1/admin/reload", json={}).status_code == 200
    copy = project.root.parent / "copy"
    run_beside(project.root, "backup", str(copy))
    shutil.rmtree(copy)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as hostile:
        hostile.sendall(
            b"GET /v1/recommend/u01 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        hostile.recv(1_000)


def growth(held: list[Held]) -> dict[str, float]:
    """Ratio of the means of the last third and the second third."""
    third = len(held) // 3
    means = {
        name: [sum(getattr(one, name) for one in part) / third for part in (held[third : 2 * third], held[-third:])]
        for name in ("memory", "files", "threads")
    }
    return {name: later / earlier for name, (earlier, later) in means.items()}


@pytest.mark.slow
@pytest.mark.timeout(14_400)
def test_hours_of_load_fail_nothing_and_hold_no_more(
    serving: Callable[..., Server], project: Project, facts: Facts
) -> None:
    turns, seconds, until = size(3, 12), size(4, 300), threading.Event()
    server = serving(project.root)
    shoppers = [Shopper(number, server.url, until, keeps=False) for number in range(4)]
    senders = [Sender(number, server.url, server.token, until) for number in range(2)]
    for client in (*shoppers, *senders):
        client.start()
    held: list[Held] = []
    for turn in range(turns):
        end = time.monotonic() + seconds
        disturb(server, project, turn)
        while time.monotonic() < end:
            time.sleep(seconds / 10)
        held.append(Held.by(server.process.pid))
    until.set()
    for client in (*shoppers, *senders):
        client.join(PATIENCE)
        assert not client.is_alive()
    assert server.stop() == 0
    with project.open_log() as log:
        in_log = log.events()["event_id"].to_list()
    archived = project.open_archive().events()["event_id"].drop_nulls().to_list()
    acknowledged = {name for sender in senders for name in sender.acknowledged}
    stored = Counter({*archived, *in_log})
    grown = growth(held)
    facts["hours of load"] = {
        "seconds_of_load": turns * seconds,
        "updates": turns,
        "lists": sum(shopper.answered for shopper in shoppers),
        "acknowledged_events": len(acknowledged),
        "failed": sum(len(shopper.failed) for shopper in shoppers) + sum(len(sender.refused) for sender in senders),
        "lost": len(acknowledged - set(stored)),
        **{f"{name}_ratio": round(ratio, 3) for name, ratio in grown.items()},
    }
    assert [text for shopper in shoppers for text in shopper.failed] == []
    assert [text for sender in senders for text in sender.refused] == []
    assert acknowledged <= set(stored)
    assert max(grown.values()) <= (GROWTH if SHARE == 1 else 1.5)
