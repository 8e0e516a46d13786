"""The server process: its first line, locks, shutdown, and acknowledged rows after a kill."""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import PATIENCE, WITHOUT_CONSOLE, command

from recloop import bundle as bundles
from recloop.cli import run
from recloop.monitoring.verify import verify
from recloop.project import Project
from recloop.records import RULE, USER_ID
from recloop.serve.service import Service
from recloop.storage import releases

Serving = Callable[..., Any]
Captured = pytest.CaptureFixture[str]


def refused(words: list[str]) -> tuple[int, str, str]:
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return done.returncode, done.stdout, done.stderr


def refused_here(capsys: Captured, project: Project, *words: str) -> tuple[int, str, str]:
    """Run `recloop serve` in this process and return exit code, stdout and stderr."""
    code = run(["-C", str(project.root), "serve", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_serve_with_json_prints_the_ready_line(project: Project) -> None:
    with subprocess.Popen(
        command(project.root, "--port", "0", "--json", program=WITHOUT_CONSOLE), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        assert set(line) == {"ready", "bundle"}
        assert httpx.get(line["ready"] + "/v1/health/ready").status_code == 200
        assert line["bundle"] == releases.live(project.open_control()).bundle
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stdout.read() == ""


@pytest.mark.slow
def test_serve_with_a_running_server_exits_3_and_names_it(project: Project, serving: Serving) -> None:
    first = serving(project.root)
    code, out, err = refused(command(project.root, "--port", "0"))
    assert (code, out) == (3, "")
    assert f"store/writer.lock is held by `recloop serve` (process {first.process.pid}, since 20" in err
    assert first.client.get("/v1/health/ready").status_code == 200


def test_serve_with_a_used_port_exits_2_and_names_the_fix(project: Project, capsys: Captured) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        code, out, err = refused_here(capsys, project, "--port", str(port))
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == (
        f"error: port={port}: expected a free port (already in use); try: recloop serve --port 0"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.org"])
def test_serve_on_a_public_host_exits_2(project: Project, host: str, capsys: Captured) -> None:
    code, _, err = refused_here(capsys, project, "--host", host, "--port", "0")
    assert code == 2
    assert f"error: serve.host={host}: expected a loopback address" in err


def test_serve_without_a_live_bundle_exits_2_and_names_update(project: Project, capsys: Captured) -> None:
    (project.store / "control.db").unlink()
    code, _, err = refused_here(capsys, project, "--port", "0")
    assert code == 2
    assert err.splitlines()[-1] == "error: bundle=none live yet: expected a live bundle; try: recloop update"


def damage(project: Project, name: str) -> Path:
    file = project.bundles / name / "serve.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file


def second_bundle(project: Project) -> str:
    """Write and promote a copy of the live bundle."""
    control = project.open_control()
    first = bundles.load(project.bundles / releases.live(control).bundle)
    made = bundles.write(replace(first, metrics={"again": 1}), project.bundles, datetime(2026, 1, 1, tzinfo=UTC))
    who = {"by": "test", "reason": "newer", "at": 5}
    releases.register(control, made.id, bundles.manifest_hash(project.bundles / made.id), **who)
    releases.checked(control, made.id, **who)
    releases.promote(control, made.id, **who)
    return made.id


def test_serve_with_a_damaged_live_bundle_falls_back_to_the_previous(project: Project, serving: Serving) -> None:
    first = releases.live(project.open_control())
    second = second_bundle(project)
    file = damage(project, second)
    server = serving(project.root)
    assert server.bundle == first.bundle
    answer = server.client.get("/v1/recommend/u14", headers={"X-Request-Id": "d"}).json()
    assert (answer["model_version"], answer["degraded"]) == (first.bundle, ["bundle"])
    assert server.client.get("/v1/status").json()["degraded"] == ["bundle"]
    assert str(file) in server.errors.read_text()
    server.stop()
    (row,) = project.open_decisions().rows()
    assert (row.bundle, row.generation, row.degraded) == (first.bundle, first.generation, ["bundle"])


@pytest.mark.parametrize("how", ["flip", "missing", "extra", "link"])
def test_serve_without_a_loadable_bundle_exits_2_and_names_the_file(
    project: Project, how: str, capsys: Captured
) -> None:
    name = releases.live(project.open_control()).bundle
    file = project.bundles / name / "serve.safetensors"
    if how == "flip":
        damage(project, name)
    elif how == "missing":
        file.unlink()
    elif how == "extra":
        file = file.with_name("more.bin")
        file.write_text("x")
    else:
        shutil.move(file, project.root / "elsewhere")
        file.symlink_to(project.root / "elsewhere")
    code, out, err = refused_here(capsys, project, "--port", "0")
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: bundle file=")
    assert file.name in last
    assert ("SHA-256" in last) == (how == "flip")
    assert "Traceback" not in err


@pytest.mark.slow
def test_server_with_lost_or_broken_states_rebuilds_them(project: Project, serving: Serving) -> None:
    (folder,) = project.store.glob("states-*")
    facts = folder / "facts.json"
    server = serving(project.root)
    known = server.client.get("/v1/users/u14").json()
    assert known["events"] > 0
    assert server.stop() == 0
    shutil.rmtree(folder)
    server = serving(project.root)
    assert server.client.get("/v1/users/u14").json() == known
    assert server.stop() == 0
    text = facts.read_text("utf-8")
    for file, broken in (
        ("seq.bin", b"123"), ("facts.json", b"{"), ("facts.json", text.replace('"format": 1', '"format": 2').encode()),
        ("facts.json", text.replace('"key": "', '"key": "x').encode()),
    ):  # fmt: skip
        (folder / file).write_bytes(broken)
        service = Service(project)
        try:
            state = service.user_state("u14")
        finally:
            service.close()
        assert (int(state.positives[0]), state.attributes[0]) == (known["events"], known["attributes"])
        assert (folder / file).read_bytes() != broken


def test_server_output_contains_no_user_id(project: Project, serving: Serving) -> None:
    server = serving(project.root)
    secret = "secret-user-7391"
    server.client.get(f"/v1/recommend/{secret}")
    server.client.get(f"/v1/users/{secret}")
    server.client.post("/v1/events", json={"user_id": secret, "item_id": "i01", "event_type": "purchase"})
    server.client.post("/v1/events", content=secret, headers={"Content-Type": "application/json"})
    server.client.get(f"/v1/recommend/{secret}", params={"filter": f"x = '{secret}'"})
    with socket.create_connection((httpx.URL(server.url).host, httpx.URL(server.url).port or 80)) as raw:
        raw.sendall(f"nonsense {secret}\r\n\r\n".encode())
        raw.recv(100)
    assert server.stop() == 0
    assert server.process.stdout.read() == ""
    assert secret not in server.errors.read_text()


def test_rows_and_decisions_survive_a_restart(project: Project, serving: Serving) -> None:
    server = serving(project.root)
    rows = [{"user_id": "v", "item_id": f"i{n:02}", "event_type": "purchase", "group_id": "g"} for n in range(1, 6)]
    assert server.client.post("/v1/events", json=rows).status_code == 200
    server.client.post("/v1/items", json={"item_id": "made", "attributes": {"price": 3}})
    server.client.post("/v1/users", json={"user_id": "v", "attributes": {"age": "60+"}})
    before = server.client.get("/v1/recommend/v").json()
    assert server.stop() == 0
    decisions = project.open_decisions()
    assert [row.user_id for row in decisions.rows()] == ["v"]  # the buffer is written at shutdown
    assert decisions.lost == 0
    decisions.close()
    server = serving(project.root)
    after = server.client.get("/v1/recommend/v").json()
    assert after["items"] == before["items"]
    assert server.client.get("/v1/users/v").json()["attributes"] == {"age": "60+"}
    assert server.client.get("/v1/items/made").json()["attributes"] == {"price": 3}


def test_server_stop_answers_every_accepted_request(project: Project, serving: Serving) -> None:
    """Every request on an accepted connection is answered; the last answer closes it."""
    server = serving(project.root)
    failed: list[str] = []
    answered = [0] * 4

    def ask_on(number: int) -> None:
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            while True:
                try:
                    answer = client.get("/v1/recommend/u14", params={"n": 3})
                except httpx.HTTPError as error:
                    failed.append(repr(error))
                    return
                if answer.status_code != 200:
                    failed.append(answer.text)
                answered[number] += 1
                if answer.headers.get("connection") == "close":
                    return

    threads = [threading.Thread(target=ask_on, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    while min(answered) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.stop() == 0
    for thread in threads:
        thread.join(PATIENCE)
    assert failed == []
    assert min(answered) > 3
    decisions = project.open_decisions()
    assert len(decisions.rows()) == sum(answered)
    decisions.close()


def test_server_that_ends_is_not_ready_and_closes_its_connections(project: Project, serving: Serving) -> None:
    """A load balancer that asks on an open connection learns it, and lists are answered to the end."""
    server = serving(project.root)
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as probe, httpx.Client(base_url=server.url) as shop:
        for client in (probe, shop):
            assert client.get("/v1/health/ready").json() == {"status": "ready"}
        server.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + PATIENCE
        while (answer := probe.get("/v1/health/ready")).status_code == 200:
            assert time.monotonic() < end
        assert (answer.status_code, answer.json()["status"]) == (503, "draining")
        assert answer.headers["connection"] == "close"
        listed = shop.get("/v1/recommend/u14", params={"n": 3})
        assert (listed.status_code, listed.headers["connection"]) == (200, "close")
    assert server.stop() == 0


def test_decisions_under_concurrent_writes_are_verified(project: Project, serving: Serving) -> None:
    """Each decision's ``as_of`` is the state of its list under concurrent writes."""
    server = serving(project.root)
    failed: list[str] = []

    def shop_on(number: int) -> None:
        draw = random.Random(number)
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            for step in range(60):
                user = draw.choice(["u14", "u20", "fresh"])
                if draw.random() < 0.5:
                    answer = client.get(f"/v1/recommend/{user}", params={"n": 8})
                elif draw.random() < 0.8:
                    rows = [
                        {"user_id": user, "item_id": f"i{draw.randint(1, 79):02}", "event_type": "purchase",
                         "group_id": f"{number}-{step}", "event_id": f"{number}-{step}-{n}"}
                        for n in range(draw.randint(1, 3))
                    ]  # fmt: skip
                    answer = client.post("/v1/events", json=rows)
                elif draw.random() < 0.5:
                    answer = client.post("/v1/users", json={"user_id": user, "attributes": {"age": f"{step}"}})
                else:
                    item = {"item_id": f"i{draw.randint(1, 79):02}", "attributes": {"price": step}}
                    answer = client.post("/v1/items", json=item)
                if answer.status_code not in {200, 207}:  # 207: ten events of a user within a second are a burst
                    failed.append(answer.text)

    threads = [threading.Thread(target=shop_on, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
    assert failed == []
    assert server.stop() == 0
    found = verify(project)
    assert found["checked"] > 100
    assert (found["unexplained"], found["late"], found["differences"]) == (0, 0, [])


class Poster(threading.Thread):
    """A client that posts events until a kill and records acknowledged ones."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__()
        self.url, self.user = url, name
        self.sent: list[str] = []
        self.acknowledged: list[str] = []

    def run(self) -> None:
        generator = random.Random(self.user)
        with httpx.Client(base_url=self.url, timeout=PATIENCE) as client:
            while True:
                rows = [
                    {"event_id": f"{self.user}-{len(self.sent) + n}", "user_id": self.user, "item_id": f"i{n:02}",
                     "event_type": "purchase", "group_id": f"g{len(self.sent)}"}
                    for n in range(generator.randint(1, 4))
                ]  # fmt: skip
                self.sent += [row["event_id"] for row in rows]
                try:
                    answer = client.post("/v1/events", json=rows)
                except httpx.HTTPError:
                    return
                assert answer.status_code in {200, 207}, answer.text  # 207: ten events within a second are a burst
                self.acknowledged += [row["event_id"] for row in answer.json()["rows"]]


def kill_again_and_again(project: Project, serving: Serving, times: int) -> None:
    generator = random.Random(0)
    posters: list[Poster] = []
    for start in range(times):
        server = serving(project.root)
        now = [Poster(server.url, f"k{start}-{n}") for n in range(3)]
        for poster in now:
            poster.start()
        deadline = time.monotonic() + PATIENCE
        while not all(poster.acknowledged for poster in now) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(generator.uniform(0.0, 0.3))
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        for poster in now:
            poster.join(PATIENCE)
        posters += now
    log = project.open_log()
    kept = log.events()
    assert kept["seq"].n_unique() == len(kept)
    assert kept["seq"].max() == log.last_seq()
    log.close()
    counts = dict(kept.group_by("event_id").len().iter_rows())
    acknowledged = [event_id for poster in posters for event_id in poster.acknowledged]
    assert len(acknowledged) > 3 * times
    assert {event_id: counts.get(event_id, 0) for event_id in acknowledged if counts.get(event_id, 0) != 1} == {}
    sent = {event_id for poster in posters for event_id in poster.sent}
    assert set(counts) <= sent
    server = serving(project.root)  # a client that sends its last rows again gets `duplicate`
    last = posters[-1]
    names = ("event_id", "user_id", "item_id", "event_type", "group_id")
    rows = kept.filter(kept[USER_ID] == last.user).select(names).to_dicts()
    answer = server.client.post("/v1/events", json=rows[-1000:])
    assert answer.json()["duplicate"] == len(rows[-1000:])
    valid = kept.filter((kept[USER_ID] == last.user) & kept[RULE].is_null())
    assert server.client.get(f"/v1/users/{last.user}").json()["events"] == len(valid)


def test_acknowledged_events_survive_a_kill(project: Project, serving: Serving) -> None:
    kill_again_and_again(project, serving, 2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_acknowledged_events_survive_fifty_kills(project: Project, serving: Serving) -> None:
    kill_again_and_again(project, serving, 50)
