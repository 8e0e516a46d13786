"""A server that is away under load: lists go on, posts are refused, and nothing acknowledged is lost."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import httpx
import pytest
from fault_runs import Facts
from postgres_server import PostgresServer
from senders import Sender
from servers import PATIENCE, Server

from recloop.project import Project

Serving = Callable[..., Server]
N_SENDERS = 8
ROW = {"user_id": "during the outage", "item_id": "i14", "event_type": "view"}


@contextmanager
def load(server: Server) -> Iterator[list[Sender]]:
    """Let senders post until the block ends; then each waits for its last acknowledgement."""
    until = threading.Event()
    senders = [Sender(number, server.url, server.token, until) for number in range(N_SENDERS)]
    for sender in senders:
        sender.start()
    try:
        yield senders
    finally:
        until.set()
        for sender in senders:
            sender.join(PATIENCE)
    assert not any(sender.is_alive() for sender in senders)
    assert [text for sender in senders for text in sender.refused] == []


def acknowledged(senders: Sequence[Sender]) -> list[str]:
    return [name for sender in senders for name in list(sender.acknowledged)]


def wait_for_more(senders: Sequence[Sender], rows: int = 200) -> None:
    """Wait until further rows are acknowledged."""
    wanted = len(acknowledged(senders)) + rows
    end = time.monotonic() + PATIENCE
    while len(acknowledged(senders)) < wanted:
        assert time.monotonic() < end, "posts are not acknowledged"
        time.sleep(0.05)


def assert_stored_once(shop: Project, senders: Sequence[Sender]) -> None:
    with shop.open_log() as log:
        events = log.events()
    stored = Counter(events["event_id"].drop_nulls().to_list())
    assert stored == Counter(acknowledged(senders))
    seqs = events["seq"].to_list()
    assert seqs == sorted(set(seqs))


@pytest.mark.parametrize("seconds", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_outage_under_load_refuses_posts_and_loses_no_row(
    postgres: PostgresServer, serving: Serving, shop: Project, facts: Facts, seconds: int
) -> None:
    server = serving(shop.root)
    lists: Counter[int] = Counter()
    posts: Counter[tuple[int, str]] = Counter()
    slowest = 0.0
    with load(server) as senders, httpx.Client(base_url=server.url, headers=server.client.headers) as client:
        wait_for_more(senders)
        postgres.stop(signal.SIGQUIT)
        before = len(acknowledged(senders))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            started = time.monotonic()
            lists[client.get("/v1/recommend/u14", params={"n": 3}).status_code] += 1
            slowest = max(slowest, time.monotonic() - started)
            answer = client.post("/v1/events", json=ROW)
            posts[answer.status_code, answer.headers.get("Retry-After", "")] += 1
            time.sleep(0.02)
        during = len(acknowledged(senders)) - before
        postgres.start()
        wait_for_more(senders)
    facts["database outage"] = {
        "seconds_away": seconds,
        "acknowledged_events": len(acknowledged(senders)),
        "acknowledged_during_the_outage": during,
        "lists_answered": lists[200],
        "posts_refused": sum(posts.values()),
        "slowest_list_ms": round(1000 * slowest),
    }
    assert set(lists) == {200}
    assert set(posts) == {(503, "1")}
    assert slowest < 1.0
    assert_stored_once(shop, senders)
    assert server.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_silent_server_under_load_refuses_posts_in_time_and_loses_no_row(
    postgres: PostgresServer, serving: Serving, shop: Project, facts: Facts, workers: int
) -> None:
    server = serving(shop.root, "--workers", str(workers))
    degraded: set[str] = set()
    lists: list[float] = []
    posts: list[tuple[float, int, str]] = []
    client = httpx.Client(base_url=server.url, headers=server.client.headers, timeout=PATIENCE)
    with load(server) as senders, client:
        wait_for_more(senders)
        postgres.pause()
        try:
            first_post = threading.Thread(target=lambda: posts.append(timed_post(server.client)))
            first_post.start()
            number = 0
            while first_post.is_alive() or number < 50:
                started, number = time.monotonic(), number + 1
                answer = client.get(f"/v1/recommend/u{number % 60:02}", params={"n": 3})
                lists.append(time.monotonic() - started)
                assert (answer.status_code, len(answer.json()["items"])) == (200, 3)
                degraded.update(answer.json()["degraded"])
                time.sleep(0.02)
            posts += [timed_post(client) for _ in range(5)]
            assert client.get("/v1/health/ready").status_code == 200
            wait_for_alarm(client, "release", seconds=1.0)
            answer = client.get("/v1/recommend/u14", params={"n": 3}).json()
            assert "log" in answer["degraded"]
        finally:
            postgres.resume()
        wait_for_more(senders)
        wait_until_whole(client)
    facts["silent database"] = {
        "processes": workers,
        "acknowledged_events": len(acknowledged(senders)),
        "lists_answered": len(lists),
        "slowest_list_ms": round(1000 * max(lists)),
        "seconds_of_first_refusal": round(posts[0][0], 1),
        "slowest_later_refusal_ms": round(1000 * max(seconds for seconds, *_ in posts[1:])),
    }
    assert {post[1:] for post in posts} == {(503, "1")}
    assert posts[0][0] < 8.0
    assert max(seconds for seconds, *_ in posts[1:]) < 1.0
    assert max(lists) < 1.0
    assert_stored_once(shop, senders)
    assert server.stop() == 0


def timed_post(client: httpx.Client) -> tuple[float, int, str]:
    """Post a row; return the seconds, the status and ``Retry-After``."""
    begin = time.monotonic()
    answer = client.post("/v1/events", json=ROW)
    return time.monotonic() - begin, answer.status_code, answer.headers.get("Retry-After", "")


def wait_for_alarm(client: httpx.Client, alarm: str, seconds: float) -> None:
    """Wait until status has the alarm; each status must be answered within ``seconds``."""
    end = time.monotonic() + PATIENCE
    alarms: list[str] = []
    while alarm not in alarms:
        assert time.monotonic() < end, alarms
        started = time.monotonic()
        status = client.get("/v1/status")
        assert (status.status_code, time.monotonic() - started < seconds) == (200, True)
        alarms = status.json()["alarms"]
        time.sleep(0.05)


def wait_until_whole(client: httpx.Client) -> None:
    """Wait until lists and status lack nothing."""
    end = time.monotonic() + PATIENCE
    while client.get("/v1/status").json()["alarms"] or client.get("/v1/recommend/u14").json()["degraded"]:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_sessions_that_are_ended_under_load_lose_no_row(
    postgres: PostgresServer, serving: Serving, shop: Project
) -> None:
    server = serving(shop.root)
    query = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
    )
    ended = 0
    with load(server) as senders, postgres.connect() as session:
        for _ in range(20):
            wait_for_more(senders, 50)
            row = session.execute(query, (shop.config.stores.log.rpartition("/")[2],)).fetchone()
            assert row is not None
            ended += row[0]
        wait_for_more(senders)
    assert ended >= 20
    assert_stored_once(shop, senders)
    assert server.stop() == 0


def test_release_during_an_outage_is_refused_and_works_after_it(
    postgres: PostgresServer, serving: Serving, shop: Project
) -> None:
    server = serving(shop.root)
    postgres.stop()
    try:
        answer = server.client.post("/v1/admin/rollback", json={"reason": "test"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert answer.headers["Retry-After"] == "1"
        assert server.client.get("/v1/health/ready").status_code == 200
        wait_for_alarm(server.client, "release", seconds=1.0)
    finally:
        postgres.start()
    end = time.monotonic() + PATIENCE
    while server.client.post("/v1/admin/rollback", json={"reason": "test"}).status_code == 503:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert server.stop() == 0
