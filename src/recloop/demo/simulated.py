"""Simulated-shop demo: a harmful candidate is stopped, a better one promoted.

The demo needs no download and no torch. World, seed and plan are fixed, so the true effects are fixed. Request ids and
bundle names differ between runs and determine a user's random response and arm. So each run is another sample. Run: ``recloop demo --world``.
"""

from __future__ import annotations

import json
import time
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import rich.console

from recloop import loop
from recloop.data.doctor.label_report import count_by_rule
from recloop.demo.grocery_days import release_rows
from recloop.demo.grocery_updates import gate_lines, rule_lines
from recloop.demo.narrator import DemoNarrator, end_demo, fresh_folder, write_config
from recloop.demo.simulated_users import SimulatedUsers, SimulationTotals
from recloop.demo.true_effect import compared
from recloop.features.labels import EventLabeler
from recloop.files import JsonTree
from recloop.ingest.client import Client, serving
from recloop.monitoring import verify
from recloop.monitoring.experiment_verdict import Verdict
from recloop.pipeline import promotion
from recloop.progress import NullProgress, Progress
from recloop.project import Project, open_project
from recloop.records import DAY
from recloop.simulation.browsing import BrowsingSimulator
from recloop.simulation.shop import START
from recloop.storage import locks

WORLD: Final = {"seed": 0, "users": 1000, "items": 300, "days": 60, "demand": 3.0}
LOG: Final = 30
"""Days in the log when the demo starts."""
FIRST, TRIED, AFTER = 2, 6, 1
"""Days before the update, of each experiment, and after the last one.

The last users of an experiment need one day until their outcome is complete.
"""
RULE: Final = "price >= 6"
CAMPAIGN: Final = "category = 'garden'"
WANTED: Final = "requested garden week"

TOML: Final = """\
{mark} {words}; written by `recloop demo --world`.
{project}allow_time_header = true       # requests name their time
[model]
name = "covisitation"          # baselines only: no torch, trained in seconds
[placement.home]
filter = "{rule}"         # rule of the shop
weights = {{ history = 0.25, neighbours = 1.0 }}
[release]
shadow_share = 0.4             # 1 % by default; the demo has few days
refresh = "manual"             # the demo moves each bundle itself
plan = {{ users = 400, looks = 2 }}   # 4,000 users by default
"""


@dataclass
class SimulationContext:
    """State of the demo's chapters."""

    world: BrowsingSimulator
    project: Project
    client: Client
    people: SimulatedUsers
    shown: DemoNarrator
    day: float = LOG

    def say(self, chapter: str, line: str) -> None:
        self.shown.say(chapter, line)

    def live(self, days: float, chapter: str) -> SimulationTotals:
        """Simulate some days and log them; later transitions use their end as time."""
        done = self.people.live(self.day, self.day + days)
        self.say(
            chapter,
            f"days {self.day + 1:g}-{self.day + days:g}: {done.visits:,} visits, {sum(done.rows.values()):,} rows posted"
            f" ({counts(done.rows)}), {done.new_users} new users, {done.new_items} new items, {done.seconds:.0f} s",
        )
        self.day += days
        self.client.now = START + int(self.day * DAY)
        return done

    def compared(self, chapter: str, bundle: str) -> Verdict:
        """Report both arms of a bundle's experiment and the true effect in ``reports/``."""
        time.sleep(0.3)  # decisions are written after the answers
        found, known, lines = compared(self.world, self.project, bundle)
        for line in lines:
            self.say(chapter, line)
        file = self.project.reports / f"experiment-{bundle}.json"
        tree = found.to_json()
        for name, one in known.items():
            tree["metrics"][name]["truth"] = vars(one)
        file.write_text(json.dumps(tree, indent=1) + "\n", "utf-8")
        return found

    def move(self, bundle: str, to: str = "") -> JsonTree:
        """Call ``POST /v1/admin/promote`` without a reason, so all requirements apply.

        Raises:
            RuntimeError: the promotion was refused; status and message.
        """
        try:
            return self.client.post("/v1/admin/promote", {"bundle": bundle, "to": to})
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{error.code} {json.load(error)['error']['message']}") from None


def run(folder: Path, progress: Progress, out: rich.console.Console) -> JsonTree:
    """Run the whole demo in ``folder``; return each step's lines and the files.

    Raises:
        UserError: the folder contains other files.
        AssertionError: a result differs from the expected one.
    """
    shown = DemoNarrator(progress, out)
    world = BrowsingSimulator(**WORLD)  # type: ignore[arg-type]
    project = write_project(folder, world, shown)
    loop.first_run(project, shown, "demo")
    signal = EventLabeler.from_spec(project.load_bundle().spec)
    for count in count_by_rule(signal, project.open_archive().events()):
        shown.say("signals", str(count))
    campaign, free = candidates(project, shown)
    shown.say("browse", f"recloop serve: all users get lists of items from 6 up ({RULE})")
    with serving(project.root) as client:
        client.now = START + LOG * DAY
        people = SimulatedUsers(world, client.url)
        try:
            stage = SimulationContext(world, project, client, people, shown)
            first = stage.live(FIRST, "browse")
            stage.say("browse", f"slots of new users' first lists, by source: {counts(first.newcomers)}")
            keep_learning(stage)
            whole = [first, harmful(stage, campaign), better(stage, free), released(stage, first)]
        finally:
            people.close()
    prove(project, whole, shown)
    return end_demo(shown, folder, ("status", "doctor --signals", "report", "serve"))


def write_project(folder: Path, world: BrowsingSimulator, shown: DemoNarrator) -> Project:
    """Write the first days of the simulation as a project into a new folder.

    Raises:
        UserError: the folder contains something other than an earlier demo.
    """
    world.write(fresh_folder(folder), LOG)
    words = f"simulated shop: {', '.join(f'{name} {value:g}' for name, value in WORLD.items())}"
    write_config(folder, TOML, words, rule=RULE)
    now = START + LOG * DAY
    then, today = (np.array([world.utility(user, at) for user in world.user_ids]) for at in (START, now))
    alike = np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(then, today, strict=True)])
    on_sale = world.on_sale(now)
    shown.say("the world", words)
    shown.say("the world", f"{LOG} days as a log: {len(world.users(now))} users, {on_sale.sum()} items; others arrive")
    shown.say("the world", f"tastes drift: correlation of today's with those of the first day {alike:.2f}")
    shown.say("the world", f"bait: {np.mean(world.bait[on_sale]):.0%} of the items draw clicks beyond their utility")
    return open_project(folder)


def trained(project: Project, rule: str) -> str:
    """Train a bundle on ``data/`` with another filter (``placement.home.filter``)."""
    here = open_project(project.root, [f"placement.home.filter={json.dumps(rule)}"])
    with locks.run_lock(project.root, "train"):
        return loop.train(here, NullProgress()).bundle.id


def candidates(project: Project, shown: DemoNarrator) -> list[str]:
    """Build two bundles with other rules, run their gates and move both to shadow."""
    made = []
    shown.say("candidates", "two more bundles with the arrays of live and another rule each")
    for rule, words, reason in ((CAMPAIGN, "a garden week", WANTED), ("", "no price rule", "")):
        bundle = trained(project, rule)
        shown.say("candidates", f"recloop train --set placement.home.filter={json.dumps(rule)}: {bundle}, {words}")
        evidence = promotion.promote(project, bundle, "shadow", reason, at=START + LOG * DAY)["evidence"]
        for line in gate_lines(evidence["gates"]):
            shown.say("candidates", f"  {line}")
        said = "recloop promote --to shadow"
        if "waived_requirements" in evidence:  # the row records the skipped requirements
            said += f" --reason {reason!r}, overriding {'; '.join(evidence['waived_requirements'])}"
        shown.say("candidates", said)
        made.append(bundle)
    return made


def keep_learning(stage: SimulationContext) -> None:
    """Run one update on the new rows; log the candidate and its gates."""
    stage.say("keep learning", "recloop update: train a child of live on the new rows, under the same rule")
    made = loop.update(stage.project, NullProgress())
    stage.say(
        "keep learning",
        f"{made.read:,} rows since seq {made.from_seq:,}, {made.kept:,} kept, {made.new_users} new users, "
        f"{made.new_items} new items, {made.seconds:.0f} s: {made.verdict} {made.bundle or ''}",
    )
    for line in rule_lines(made.signals):
        stage.say("keep learning", line)
    for line in gate_lines(made.gates):
        stage.say("gate", line)


def harmful(stage: SimulationContext, campaign: str) -> SimulationTotals:
    """Test the campaign on half of the users; it is harmful, so it is refused."""
    chapter = "a harmful candidate"
    stage.move(campaign, "experiment")
    stage.say(chapter, f"{campaign} has earned its experiment; half of the users see only garden items")
    done = stage.live(TRIED, chapter)
    found = stage.compared(chapter, campaign)
    try:
        stage.move(campaign)
    except RuntimeError as error:
        stage.say(chapter, f"POST /v1/admin/promote: {error}")
    else:
        raise AssertionError(f"{campaign} became live: {found.verdict}")
    if found.verdict != "worse":
        raise AssertionError(f"the harm was not detected: {found.why}")
    stage.client.post("/v1/admin/reject", {"bundle": campaign, "reason": found.why})
    stage.say(chapter, f"{campaign} is refused")
    return done


def better(stage: SimulationContext, free: str) -> SimulationTotals:
    """Test the bundle without a rule on half of the users; it is better and promoted."""
    chapter = "a better candidate"
    stage.move(free, "experiment")
    stage.say(
        chapter,
        f"{free} has earned its experiment; half of the users see lists without a rule",
    )
    done = stage.live(TRIED, chapter)
    found = stage.compared(chapter, free)
    if found.verdict != "better":
        raise AssertionError(f"the gain was not detected: {found.why}")
    moved = stage.move(free)
    stage.say(chapter, f"POST /v1/admin/promote without a reason: {moved['from']} -> {moved['to']}, earned by")
    earned = moved["evidence"]
    stage.say(
        chapter,
        f"{earned['shadow_requests']} requests in shadow ({earned['replica_mismatches']} replicas differ), users "
        f"{earned['users']}, verdict {earned['verdict']}",
    )
    return done


def released(stage: SimulationContext, first: SimulationTotals) -> SimulationTotals:
    """Simulate a day with the better bundle and list every transition."""
    chapter = "released"
    stage.say(chapter, "a day with the better bundle")
    after = stage.live(AFTER, chapter)
    for name, one in (("before", first), ("after", after)):
        stage.say(
            chapter,
            f"{name}: {one.clicks / one.visits:.2f} clicks per list and a click probability of "
            f"{one.hits / one.visits:.1%}, by the true effect of {one.visits} lists",
        )
    stage.say(chapter, f"slots of new users' first lists, by source: {counts(after.newcomers) or 'none'}")
    for row in release_rows(stage.project):
        stage.say(chapter, row)
    return after


def prove(project: Project, whole: list[SimulationTotals], shown: DemoNarrator) -> None:
    """Verify every decision and that no disliked item was shown again."""
    lists, again = sum(one.after_dislike for one in whole), sum(one.shown_again for one in whole)
    shown.say("verify", f"{lists:,} lists for users with dislikes: {again} disliked items in them")
    begin = time.monotonic()
    found = verify.verify(project, 1_000_000)
    shown.say(
        "verify",
        "{checked:,} decisions: {equal:,} equal, {late} late, {unexplained} unexplained".format(**found)
        + f", largest score difference {found['max_score_diff']:.1g}, in {time.monotonic() - begin:.0f} s",
    )
    if found["unexplained"]:
        raise AssertionError(f"verify found {found['differences'][0]}")
    if again:
        raise AssertionError(f"{again} disliked items were shown again")


def counts(found: Mapping[str, int]) -> str:
    """Format names with their counts, largest first."""
    return ", ".join(f"{value:,} {name}" for name, value in sorted(found.items(), key=lambda one: (-one[1], one[0])))
