"""Failing syncs under a service: each post is answered as stored, lists go on, and no restart is needed."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable

from fault_runs import Facts, size
from posts import NOT_STORED, STORED, UNKNOWN, post
from servers import Server

from recloop.project import Project


def failing_syncs(first: int, step: int) -> list[str]:
    """Command under which each step-th sync of a thread fails with EIO, from its first-th on."""
    fault = f"inject=fsync,fdatasync:error=EIO:when={first}+{step}"
    return ["strace", "-D", "-f", "--seccomp-bpf", "-e", "trace=fsync,fdatasync", "-e", fault, "-o", "/dev/null"]


def test_service_with_failing_syncs_answers_as_stored_and_goes_on(
    serving: Callable[..., Server], project: Project, facts: Facts
) -> None:
    faults = size(12, 500)
    server = serving(project.root, under=failing_syncs(first=20, step=5))
    by_answer: dict[str, set[str]] = {STORED: set(), NOT_STORED: set(), UNKNOWN: set()}
    with server.client as client:
        for number in itertools.count():
            by_answer[post(client, number)].add(f"e{number}")
            assert client.get("/v1/recommend/u14", params={"n": 3}).status_code == 200
            if number - len(by_answer[STORED]) >= faults:
                break
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    with project.open_log(write=True) as log:
        stored = log.events()["event_id"].to_list()
    facts["failing syncs"] = {
        "posts": sum(map(len, by_answer.values())),
        "failed": len(by_answer[NOT_STORED]) + len(by_answer[UNKNOWN]),
        "acknowledged_but_lost": len(by_answer[STORED] - set(stored)),
        "refused_but_stored": len(by_answer[NOT_STORED] & set(stored)),
    }
    assert by_answer[STORED] <= set(stored)
    assert by_answer[NOT_STORED].isdisjoint(stored)
    assert len(stored) == len(set(stored))
