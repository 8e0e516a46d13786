"""Quick demo: the whole loop once on a small simulated shop, within a minute.

The demo needs no download and no torch. Steps: prepare, train, serve, post, update, verify, report. It omits shadow and
experiment, which `recloop.demo.simulated` shows. Run: ``recloop demo --quick``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import rich.console

from recloop import loop
from recloop.demo.grocery_updates import gate_lines
from recloop.demo.narrator import DemoNarrator, end_demo, fresh_folder, write_config
from recloop.demo.simulated import counts
from recloop.demo.simulated_users import SimulatedUsers
from recloop.files import JsonTree
from recloop.ingest.client import Client, iso, serving
from recloop.monitoring import report, verify
from recloop.progress import NullProgress, Progress
from recloop.project import Project, open_project
from recloop.records import DAY, SECOND
from recloop.simulation.browsing import BrowsingSimulator
from recloop.simulation.shop import START

WORLD: Final = {"seed": 0, "users": 300, "items": 150, "days": 40, "demand": 3.0}
LOG_DAYS: Final = 30
"""Days in the log when the demo starts."""
SERVED_DAYS: Final = 2
"""Days that the simulated users browse over HTTP before the update."""
SWAP_SECONDS: Final = 10.0
"""Longest wait until the service answers with the new bundle."""
TOML: Final = """\
{mark} {words}; written by `recloop demo --quick`.
{project}allow_time_header = true       # requests name their time
[model]
name = "covisitation"          # baselines only: no torch, trained in seconds
[release.gates]
max_ndcg_loss = 0.1            # 0.03 by default; two days of a small shop cannot rule out so small a loss
"""


def run(folder: Path, progress: Progress, out: rich.console.Console) -> JsonTree:
    """Run the loop once in ``folder``; return each step's lines and the files.

    Raises:
        UserError: the folder contains other files.
        AssertionError: a decision cannot be recomputed.
    """
    shown = DemoNarrator(progress, out)
    world = BrowsingSimulator(**WORLD)  # type: ignore[arg-type]
    project = write_project(folder, world, shown)
    loop.first_run(project, shown, "demo")
    with serving(project.root) as client:
        client.now = START + LOG_DAYS * DAY
        ask(client, world, shown)
        log_in(client, world, shown)
        browse(client, world, shown)
        update(client, project, shown)
    prove(project, shown)
    return end_demo(shown, folder, ("status", "report", "serve"))


def write_project(folder: Path, world: BrowsingSimulator, shown: DemoNarrator) -> Project:
    """Write the first days of the simulation as a project into a new folder.

    Raises:
        UserError: the folder contains something other than an earlier demo.
    """
    world.write(fresh_folder(folder), LOG_DAYS)
    words = f"simulated shop: {', '.join(f'{name} {value:g}' for name, value in WORLD.items())}"
    write_config(folder, TOML, words)
    shown.say("the world", f"{words}; {LOG_DAYS} days as a log")
    return open_project(folder)


def ask(client: Client, world: BrowsingSimulator, shown: DemoNarrator) -> None:
    """Request a list, post a purchase and a dislike of its items, and request again."""
    user_id = world.user_ids[0]
    before = [slot["item_id"] for slot in client.recommend(user_id)["items"]]
    rows = [
        {"user_id": user_id, "item_id": item_id, "event_type": event_type, "timestamp": iso(client.now),
         "event_id": f"quick-{event_type}"}
        for item_id, event_type in zip(before, ("dislike", "purchase"), strict=False)
    ]  # fmt: skip
    accepted = client.post("/v1/events", rows)["accepted"]
    client.now += 60 * SECOND
    after = [slot["item_id"] for slot in client.recommend(user_id)["items"]]
    shown.say("serve", f"GET /v1/recommend/{user_id}: {' '.join(before)}")
    shown.say("serve", f"POST /v1/events: a dislike of {before[0]} and a purchase of {before[1]}, {accepted} accepted")
    shown.say("serve", f"the next list, without {before[0]}: {' '.join(after)}")
    if before[0] in after:
        raise AssertionError(f"{before[0]} was disliked and is shown again")


def log_in(client: Client, world: BrowsingSimulator, shown: DemoNarrator) -> None:
    """Dislike an item on an unknown device, identify its user, and request a list."""
    user_id, device = world.user_ids[1], "a phone"
    disliked = client.recommend(user_id)["items"][0]["item_id"]
    row = {"anonymous_id": device, "item_id": disliked, "event_type": "dislike", "event_id": "quick-phone"}
    client.post("/v1/events", [{**row, "timestamp": iso(client.now)}])
    joined = client.post("/v1/identify", {"anonymous_id": device, "user_id": user_id})
    client.now += 60 * SECOND
    after = [slot["item_id"] for slot in client.recommend(user_id)["items"]]
    shown.say(
        "serve",
        f"POST /v1/identify: {device} is {user_id}, {joined['moved']} row moved; the next list, without {disliked}: "
        f"{' '.join(after)}",
    )
    if disliked in after:
        raise AssertionError(f"{disliked} was disliked before the login and is shown after it")


def browse(client: Client, world: BrowsingSimulator, shown: DemoNarrator) -> None:
    """Let all users browse for `SERVED_DAYS` days over HTTP."""
    people = SimulatedUsers(world, client.url)
    try:
        done = people.live(LOG_DAYS, LOG_DAYS + SERVED_DAYS)
    finally:
        people.close()
    shown.say(
        "browse",
        f"{done.visits:,} lists requested, {sum(done.rows.values()):,} rows posted ({counts(done.rows)}), "
        f"{done.new_users} new users, {done.new_items} new items, {done.seconds:.0f} s",
    )
    client.now = START + (LOG_DAYS + SERVED_DAYS) * DAY


def update(client: Client, project: Project, shown: DemoNarrator) -> None:
    """Train a child of live on the posted rows and request a list after its gates."""
    done = loop.update(project, NullProgress())
    shown.say(
        "keep learning",
        f"recloop update: {done.read:,} rows since seq {done.from_seq:,}, {done.kept:,} kept, {done.new_users} new users, "
        f"{done.new_items} new items, {done.seconds:.0f} s: {done.verdict} {done.bundle or ''}",
    )
    for line in gate_lines(done.gates):
        shown.say("gate", line)
    answer = client.recommend("a new user")
    deadline = time.monotonic() + SWAP_SECONDS
    while done.verdict == "registered" and answer["model_version"] != done.bundle and time.monotonic() < deadline:
        time.sleep(0.25)
        answer = client.recommend("a new user")
    shown.say("release", f"the next list for a new user is from bundle {answer['model_version']}")


def prove(project: Project, shown: DemoNarrator) -> None:
    """Recompute every decision from the log and write the report."""
    time.sleep(0.3)  # decisions are written after the answers
    result = verify.verify(project, 1_000_000)
    shown.say(
        "verify", "{checked:,} decisions: {equal:,} equal, {late} late, {unexplained} unexplained".format(**result)
    )
    if result["unexplained"]:
        raise AssertionError(f"verify found {result['differences'][0]}")
    page = report.write(project)
    shown.say("report", f"{page['requests']} requests, coverage {page['coverage']:.3f}: {page['path']}")
