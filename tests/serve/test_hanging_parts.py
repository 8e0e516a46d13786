"""A part that hangs gives a list within the deadline that names it, and later lists do not wait for it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import servers

from recloop.monitoring import verify
from recloop.project import open_project

DEADLINE = 2.0
PROGRAM = """
import sys, time
from pathlib import Path
sys.modules["nicegui"] = None
from recloop.cli import main
from recloop.serve import part_timeout
part_timeout.PAUSE_SECONDS = 2.0
from recloop.recommend import recommender, sources, user_states

def hangs(part, original):
    def called(*arguments, **options):
        hanging, how = (Path(sys.argv[2]) / "hanging").read_text().split()
        if part in hanging.split(","):
            time.sleep(3600) if how == "waits" else None
            while how == "loops":
                pass
        return original(*arguments, **options)
    return called

make_sources = recommender.make_sources
def patched(*arguments):
    made = make_sources(*arguments)
    for name, source in made.items():
        source.best = hangs(name, source.best)
    return made
recommender.make_sources = patched
Recommender = recommender.Recommender
Recommender.rank_sources = hangs("ranker", lambda self, encoded, allowed, placement, k: self.fuse_sources(
    encoded, allowed, [], placement, k, with_ranker=False))
Recommender.is_ranked = lambda self, placement: placement.list == "for_you"
user_states.StateSource.read = hangs("state", user_states.StateSource.read)
main()
"""


@pytest.fixture(scope="module")
def server(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    folder = shutil.copytree(trained_folder, tmp_path_factory.mktemp("hanging") / "shop")
    (folder / "hanging").write_text("nothing never")
    server = servers.start(folder, "--set", f"serve.limits.list_seconds={DEADLINE}", program=("-c", PROGRAM))
    try:
        assert ask(server)[1]["degraded"] == []
        yield server
    finally:
        server.close()


def ask(server: servers.Server) -> tuple[float, dict[str, Any]]:
    """Ask for a list; return its seconds and its answer."""
    begin = time.monotonic()
    answer = server.client.get("/v1/recommend/u14?n=5")
    assert answer.status_code == 200, answer.text
    return time.monotonic() - begin, answer.json()


@pytest.mark.parametrize("how", ["waits", "loops"])
@pytest.mark.parametrize(
    ("hanging", "degraded"),
    [
        ("neighbours", ["neighbours", "ranker"]),
        ("ranker", ["ranker"]),
        ("state", ["state"]),
        ("neighbours,state", ["neighbours", "ranker", "state"]),
        ("history,model,neighbours,popular", ["history", "neighbours", "popular", "ranker", "sources"]),
    ],
)
def test_list_with_a_part_that_hangs_is_whole_and_in_time(
    server: servers.Server, hanging: str, degraded: list[str], how: str
) -> None:
    (server.root / "hanging").write_text(f"{hanging} {how}")
    seconds, answer = ask(server)
    assert seconds < DEADLINE
    assert (answer["degraded"], len(answer["items"])) == (degraded, 5)
    (server.root / "hanging").write_text("nothing never")
    seconds, answer = ask(server)
    assert answer["degraded"] == degraded, "the part is left out for some time"
    assert seconds < DEADLINE / 4
    end = time.monotonic() + servers.PATIENCE
    while (answer := ask(server)[1])["degraded"]:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert len(answer["items"]) == 5


def test_lists_without_parts_that_hung_are_verified(server: servers.Server) -> None:
    assert server.stop() == 0
    assert "a list took too long" in server.errors.read_text()
    found = verify.verify(open_project(server.root), 1_000)
    assert found["equal"] == found["checked"] >= 12, found["differences"]
