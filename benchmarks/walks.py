"""Count the files and calls of an event, a query and an update.

    python benchmarks/walks.py                  # one line per walk; --files lists the files

A profile hook counts the files that a walk enters and the calls from file to file. A back edge is a pair of files that
call one another.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from starlette.testclient import TestClient

import recloop
from recloop.cli import run
from recloop.project import open_project
from recloop.serve import reload
from recloop.serve.app import build
from recloop.serve.service import Service
from recloop.simulation.shop import SimulatedShop

PACKAGE = str(Path(recloop.__file__).parent) + "/"


class Walk:
    """Files of the package and pairs (calling file, called file), recorded while `active`."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.hops: set[tuple[str, str]] = set()
        self.active = False

    def hook(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not self.active or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(PACKAGE):
            caller = caller.f_back
        called = frame.f_code.co_filename.removeprefix(PACKAGE)
        self.files.add(called)
        source = "" if caller is None else caller.f_code.co_filename.removeprefix(PACKAGE)
        if source != called:
            self.hops.add((source, called))

    def measure(self, name: str, work: Callable[[], object], listed: bool) -> None:
        """Run the work and print the files that it entered."""
        self.files, self.hops, self.active = set(), set(), True
        work()
        self.active = False
        back = sorted(hop for hop in self.hops if hop[::-1] in self.hops and hop < hop[::-1])
        sys.stdout.write(f"{name}: {len(self.files)} files, {len(self.hops)} hops, {len(back)} back edges\n")
        if listed:
            sys.stdout.writelines(f"  {first} <-> {second}\n" for first, second in back)
            sys.stdout.writelines(f"  {file}\n" for file in sorted(self.files))


def command(folder: Path, *words: str) -> None:
    """Run a command in a project folder without its output."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = run(["-C", str(folder), *words])
    assert code == 0, words


def main(listed: bool) -> None:
    """Run the first run of a seeded shop with baselines, then the three walks."""
    reload.POLL_SECONDS = 3600.0  # the poll is not part of a walk
    walk = Walk()
    threading.setprofile(walk.hook)
    sys.setprofile(walk.hook)
    with tempfile.TemporaryDirectory() as root:
        folder = SimulatedShop(seed=0).write(Path(root) / "shop")
        with (folder / "recloop.toml").open("a", encoding="utf-8") as file:
            file.write('[model]\nname = "covisitation"\n')
        command(folder, "update", "--json")
        with TestClient(build(Service(open_project(folder))), base_url="http://localhost") as client:

            def post(user: int, item: int, name: str) -> None:
                event = {"user_id": f"u{user:03d}", "item_id": f"i{item:03d}", "event_type": "purchase"}
                client.post("/v1/events", json={**event, "event_id": name}).raise_for_status()

            client.get("/v1/recommend/u002").raise_for_status()
            walk.measure("event", lambda: post(1, 7, "first"), listed)
            walk.measure("query", lambda: client.get("/v1/recommend/u001").raise_for_status(), listed)
            for n in range(1, 120):
                post(n % 50 + 1, n % 90 + 1, f"event-{n}")
        settings = ("--set", "update.input_check=false")
        walk.measure("update", lambda: command(folder, "update", "--json", *settings), listed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", action="store_true", help="list the files")
    main(parser.parse_args().files)
