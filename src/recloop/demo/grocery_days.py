"""Held-out days of the grocery demo: replay, update, shadow, experiment, rollback."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl

from recloop.demo import grocery_updates
from recloop.demo.replay import Replayed, replay
from recloop.features.value_text import display_name
from recloop.files import JsonTree
from recloop.ingest.client import Client, iso
from recloop.monitoring import experiment, shadow_plot, shadow_report, verify
from recloop.progress import Progress
from recloop.project import Project
from recloop.records import DAY

DAYS = 14
"""Days at the end of the log that are held out as the future."""
WALL = {"first": 6.0, "shadow": 5.0, "experiment": 6.0}
"""Wall-time limit in seconds of each group of days; later baskets are posted without requests."""
HEALTH = ("entropy", "long_tail_share", "cold_coverage")


@dataclass(frozen=True)
class GroceryContext:
    """State of the replay: the project, its running service, the held-out rows."""

    project: Project
    client: Client
    future: pl.DataFrame
    first: int
    progress: Progress

    def live(self, day: float, days: float, wall: float, chapter: str) -> Replayed:
        """Replay ``days`` from day ``day`` on and log the result."""
        first = self.first + int(day * DAY)
        self.progress.say(
            chapter,
            f"from {iso(first)[:10]} on: each household requests a list before its basket, for at most {wall:.0f} s",
        )
        done = replay(
            self.client, self.future, first, days, wall, lambda part, total: self.progress.bar(chapter, part, total)
        )
        left = f", {done.left_out:,} more posted without a request because of the time limit" if done.left_out else ""
        self.progress.say(
            chapter,
            f"days {day + 1:g}-{day + days:g}: {done.baskets:,} baskets requested and posted in {done.seconds:.0f} s"
            f" ({done.rows:,} rows){left}; {done.hit_rate:.1%} of them have an item of their list",
        )
        return done

    def move(self, verb: str, **body: str) -> JsonTree:
        """Make one release transition over HTTP at the replay's time."""
        return self.client.post(f"/v1/admin/{verb}", body)


def as_rows(purchases: pl.DataFrame) -> pl.DataFrame:
    """Return the purchases to post, without rows that `clean.keep` would remove."""
    return purchases.filter(pl.col("quantity") > 0).select(
        pl.col("household_id").cast(pl.String).alias("user_id"),
        pl.col("product_id").cast(pl.String).alias("item_id"),
        pl.col("transaction_timestamp").dt.timestamp("us").alias("timestamp"),
        pl.col("basket_id").cast(pl.String).alias("group_id"),
        pl.col("quantity").cast(pl.Float64),
        pl.col("sales_value").alias("value"),
    )


def run(stage: GroceryContext) -> None:
    """Run days 1-14: update, gate, poison, shadow, experiment, promote, roll back."""
    stage.live(0, 7, WALL["first"], "keep learning")
    root, tell = stage.project.root, partial(stage.progress.say, "gate")
    with (
        grocery_updates.copied(root, "poisoned") as poisoned,
        grocery_updates.copied(root, "poisoned-unchecked") as unchecked,
        grocery_updates.copied(root, "reseeded") as reseeded,  # the copies include the week
        grocery_updates.another_seed(reseeded) as begun,
    ):
        candidate = keep_learning(stage)
        other_seed = grocery_updates.take_in(stage.project, reseeded, begun, tell)
        grocery_updates.poison(poisoned, unchecked, tell)
    if candidate is None:
        stage.progress.say("release", "no candidate passed its gate; live is unchanged, and nothing is tested")
    else:
        in_the_shadow(stage, candidate, other_seed)
        in_an_experiment(stage, candidate)
        there_and_back(stage, candidate)
    prove(stage)


def keep_learning(stage: GroceryContext) -> str | None:
    """Update on the week's rows; log the rows and gates and return the candidate."""
    done, last = grocery_updates.update(stage.project.root, *grocery_updates.SHORT)
    if not done:
        raise RuntimeError(f"recloop update: {last}")
    stage.progress.say(
        "keep learning",
        f"recloop update: {done['read']:,} rows since seq {done['from_seq']:,}, {done['kept']:,} kept, "
        f"{done['new_users']} new users, {done['new_items']} new items, {done['seconds']:.0f} s: {done['verdict']}",
    )
    removed = ", ".join(f"{rule} {rows:,}" for rule, rows in done["removed"].items()) or "nothing"
    rules = "; ".join(grocery_updates.rule_lines(done["signals"]))
    stage.progress.say("keep learning", f"removed: {removed}; labels by [events]: {rules}")
    for line in grocery_updates.gate_lines(done["gates"]):
        stage.progress.say("gate", line)
    return done["bundle"] if done["verdict"] == "registered" else None


def in_the_shadow(stage: GroceryContext, candidate: str, other_seed: str | None) -> None:
    """Run days 8-10: shadow scoring by candidate, replica of live and other seed."""
    stage.move("promote", bundle=candidate, to="shadow", reason="passed its gate")
    if other_seed is not None:
        stage.move("promote", bundle=other_seed, to="shadow", reason="noise floor")
    stage.live(7, 3, WALL["shadow"], "shadow")
    items = pl.read_parquet(stage.project.data / "items.parquet").sort("seq").unique("item_id", keep="last")
    names = {
        item: display_name(stage.project.config.data.columns.name, json.loads(text), item)
        for item, text in items.select("item_id", "attributes").iter_rows()
    }
    found = shadow_report.shadow_report(stage.project, candidate, name=lambda item: names.get(item, item))
    stage.progress.say(
        "shadow",
        f"{found['requests']} requests of {found['users']} households ({stage.project.config.release.shadow_share:.0%} of all; default 1 %); "
        f"replica of live: {found['replica']['different']} of {found['replica']['requests']} differ",
    )
    for measure, one in found["agreement"].items():
        noise = "" if not found.get("noise") else f", noise floor {found['noise'][measure]['value']:.3f}"
        stage.progress.say("shadow", f"{measure}: {one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f}){noise}")
    if not stage.project.load_bundle(candidate).policy.placements["home"].weights.get("model"):
        stage.progress.say(
            "shadow", "the network has weight 0 in the fusion, so the other seed serves the candidate's lists"
        )
    for side in ("live", "candidate"):
        one = found["shown"][side]
        stage.progress.say("shadow", f"{side}: " + ", ".join(f"{name} {_number(one[name])}" for name in HEALTH))
    latency = found["latency"]
    stage.progress.say(
        "shadow", f"latency, median: live {latency['live']:.0f} us, candidate {latency['candidate']:.0f} us"
    )
    for one in found["disagree"]:
        stage.progress.say("shadow", f"disagreement: {_disagreement(one)}")
    reports = stage.project.reports
    shadow_plot.plot(found, reports / "shadow.svg")
    (reports / "shadow.json").write_text(json.dumps(found, indent=1, ensure_ascii=False, default=str) + "\n", "utf-8")


def in_an_experiment(stage: GroceryContext, candidate: str) -> None:
    """Run days 11-14: a 50/50 experiment by user."""
    stage.move("promote", bundle=candidate, to="experiment", reason="shadow agrees")
    stage.live(10, 4, WALL["experiment"], "experiment")
    found = experiment.analyze(stage.project, candidate)
    users, ratio, plan = found.users, found.sample_ratio, found.plan
    stage.progress.say(
        "experiment", f"plan: {plan.metric} over {plan.users:,} users, {plan.looks} looks, margin {plan.margin:g}"
    )
    stage.progress.say("experiment", f"users: {users.live} live, {users.candidate} candidate, {users.waiting} open")
    stage.progress.say(
        "experiment", f"sample ratio: {ratio.counts}, e = {ratio.e:.3g}, alarm above 1000: {ratio.alarm}"
    )
    for name, one in found.metrics.items():
        stage.progress.say(
            "experiment",
            f"{one.kind} {name}: live {_number(one.live)}, candidate {_number(one.candidate)}, difference "
            f"{_signed(one.delta)} ({_sequence(one.sequence_low, one.sequence_high)})",
        )
    stage.progress.say("experiment", f"verdict: {found.verdict}: {found.why}")
    stage.progress.say("experiment", "no user saw these replayed lists, so this measures prediction, not effect")


def there_and_back(stage: GroceryContext, candidate: str) -> None:
    """Promote and roll back, repeat one request each time, and log every transition."""
    stage.progress.say("release", "promote the candidate and roll back; the same request before, between and after")
    stage.client.now = stage.first + DAYS * DAY
    users = stage.future["user_id"].unique(maintain_order=True).to_list()
    user, before = next((u, a) for u in users if (a := stage.client.recommend(u))["variant"] == "live")
    moved = stage.move("promote", bundle=candidate, to="live", reason="demo: promotion at any verdict")
    stage.progress.say(
        "release",
        f"{moved['bundle']}: {moved['from']} -> {moved['to']}, evidence {json.dumps(moved['evidence'])[:160]}",
    )
    after = stage.client.recommend(user)
    stage.progress.say("release", _changed(user, before, after))
    moved = stage.move("rollback", reason="demo of a rollback")
    stage.progress.say("release", f"rollback: {moved['bundle']} is {moved['to']} again")
    stage.progress.say("release", _changed(user, after, stage.client.recommend(user)))
    for row in release_rows(stage.project):
        stage.progress.say("release", row)


def release_rows(project: Project) -> list[str]:
    """Log every transition with author and reason."""
    rows = project.open_control().releases()
    return [
        f"{row.generation:>3} {iso(row.at)[:16]} {row.bundle[-8:]} {row.from_ or 'new':>11} -> {row.to:<11} {row.by}: {row.reason}"
        for row in rows
    ]


def prove(stage: GroceryContext) -> None:
    """Verify every decision of the demo, across the update and both swaps."""
    stage.progress.say(
        "verify", "recompute every decision of the demo, across the update and both swaps, by the batch path"
    )
    begin = time.monotonic()
    found = verify.verify(stage.project, 1_000_000)
    stage.progress.say(
        "verify",
        "{checked:,} decisions: {equal:,} equal, {late} late, {unexplained} unexplained".format(**found)
        + f", largest score difference {found['max_score_diff']:.1g}, in {time.monotonic() - begin:.0f} s",
    )
    if found["unexplained"]:
        raise AssertionError(f"verify found {found['differences'][0]}")


def _changed(user: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    one, other = ([slot["item_id"] for slot in answer["items"]] for answer in (before, after))
    stay = len(set(one) & set(other))
    return f"household {user}, now {after['model_version']}: {stay} of {len(one)} items stay, {sum(a == b for a, b in zip(one, other, strict=False))} at the same rank"


def _disagreement(one: Mapping[str, Any]) -> str:
    """Describe a request with a large difference and the items of only one side."""
    alone = {
        side: [name for name in one[side] if name not in one[other]][:3]
        for side, other in (("live", "candidate"), ("candidate", "live"))
    }
    said = "; ".join(f"only {side}: {' · '.join(names) or 'nothing'}" for side, names in alone.items())
    return f"household {one['user_id']}, overlap {one['overlap@10']:.1f}, tau-b {_number(one['tau_b'])}: {said}"


def _sequence(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "too few users for a confidence sequence"
    return f"confidence sequence {low:+.3g} to {high:+.3g}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _signed(value: float | None) -> str:
    return "none" if value is None else f"{value:+.3g}"
