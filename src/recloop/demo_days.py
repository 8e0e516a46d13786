"""The demo's later days: lived through over HTTP, learned from, gated, shadowed, compared, promoted and rolled back."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from recloop.backends import open_control
from recloop.client import Client, iso
from recloop.config import Project
from recloop.records import DAY
from recloop.replay import Replayed, replay
from recloop.watch import experiment, parity, shadow
from recloop.watch.report import readable

DAYS = 14
"""Days at the end of the log that are held back as the future."""
WALL = {"first": 30.0, "shadow": 20.0, "experiment": 30.0}
"""Seconds of wall time that each stretch of days may take; what does not fit is posted unasked."""
SHORT = ("--set", "train.budget=15s")
"""An update of the demo trains so long at most, once before its gate and once after."""
SHADOW = 0.25
"""Share of users in the demo's shadow (0.01 by default)."""


class Told(Protocol):
    """Where the demo's lines go."""

    def say(self, chapter: str, line: str) -> None: ...


@dataclass(frozen=True)
class Stage:
    """What the later days work with: the project, its running service, the rows that were held back."""

    project: Project
    client: Client
    future: pl.DataFrame
    first: int
    told: Told

    def live(self, day: float, days: float, wall: float, chapter: str) -> Replayed:
        """Live through ``days`` from day ``day`` on, and say so."""
        done = replay(self.client, self.future, self.first + int(day * DAY), days, wall)
        left = f", {done.left_out:,} more posted unasked for want of time" if done.left_out else ""
        self.told.say(
            chapter,
            f"days {day + 1:g}-{day + days:g}: {done.baskets:,} baskets asked for and posted in {done.seconds:.0f} s"
            f" ({done.rows:,} rows){left}; {done.hit_rate:.1%} of them hold an item of their list",
        )
        return done

    def verb(self, *words: str, root: Path | None = None) -> tuple[int, dict[str, Any], str]:
        """A verb of the command line as a child: exit code, its JSON, its last line of stderr."""
        command = [sys.executable, "-m", "recloop", "-C", str(root or self.project.root), *words, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stderr.strip().splitlines()
        return done.returncode, json.loads(done.stdout) if done.stdout else {}, lines[-1] if lines else ""

    def move(self, verb: str, **body: str) -> dict[str, Any]:
        """One move of the release machine over HTTP, in the replay's time."""
        return self.client.post(f"/v1/admin/{verb}", body)


def as_rows(purchases: pl.DataFrame) -> pl.DataFrame:
    """Purchases as a replay posts them; what `clean.keep` would take is not posted."""
    return purchases.filter(pl.col("quantity") > 0).select(
        pl.col("household_id").cast(pl.String).alias("user_id"),
        pl.col("product_id").cast(pl.String).alias("item_id"),
        pl.col("transaction_timestamp").dt.timestamp("us").alias("timestamp"),
        pl.col("basket_id").cast(pl.String).alias("group_id"),
        pl.col("quantity").cast(pl.Float64),
        pl.col("sales_value").alias("value"),
    )


def run(stage: Stage) -> None:
    """Days 1-14: update, gate, poison, shadow, experiment, promote, rollback, verify."""
    stage.live(0, 7, WALL["first"], "keep learning")
    copy = stage.project.root / "poisoned"
    _copy(stage.project.root, copy)  # the week waits in it too
    candidate = keep_learning(stage)
    poison(stage, copy)
    if candidate is None:
        stage.told.say("release", "no candidate passed its gate: live stays, and there is nothing to try")
    else:
        in_the_shadow(stage, candidate)
        in_an_experiment(stage, candidate)
        release(stage, candidate)
    prove(stage)


def keep_learning(stage: Stage) -> str | None:
    """One update over the week: what came, the gates, the candidate."""
    _, done, last = stage.verb("update", *SHORT)
    if not done:
        raise RuntimeError(f"recloop update: {last}")
    stage.told.say(
        "keep learning",
        f"recloop update: {done['read']:,} rows since seq {done['from_seq']:,}, {done['kept']:,} kept, "
        f"{done['new_users']} new users, {done['new_items']} new items, {done['seconds']:.0f} s: {done['verdict']}",
    )
    for line in gate_lines(done["gates"]):
        stage.told.say("gate", line)
    return done["bundle"] if done["verdict"] == "registered" else None


def gate_lines(gates: list[Mapping[str, Any]]) -> list[str]:
    """Each gate with its number, its threshold and the smallest loss that it could have seen."""
    lines = []
    for one in gates:
        value = "-" if one["value"] is None else f"{one['value']:.4g}"
        seen = f", could have seen a loss of {one['detectable']:.3f}" if one.get("detectable") is not None else ""
        threshold = one.get("threshold")
        against = "no threshold" if threshold is None else f"threshold {threshold:.4g}"
        note = f" ({one['note']})" if one.get("note") else ""
        lines.append(f"{'pass' if one['ok'] else 'NO':4} {one['name']}: {value}, {against}{seen}{note}")
    return lines


def poison(stage: Stage, copy: Path) -> None:
    """The same update on a copy whose new rows have their items shuffled: held by the input check, then by the gate."""
    try:
        _shuffle_items(copy / "store" / "log.db", _watermark(copy))
        before = _bytes_of(copy)
        for words, what in (
            ((), "with the input check"),
            (("--set", "update.input_check=false", *SHORT), "with that check off"),
        ):
            _, done, last = stage.verb("update", *words, root=copy)
            failed = [one for one in done.get("gates", []) if not one["ok"]]
            stage.told.say("gate", f"poisoned copy, {what}: {done.get('verdict', last)}")
            for line in gate_lines(failed):
                stage.told.say("gate", f"  {line}")
        same = _bytes_of(copy) == before
        stage.told.say(
            "gate", f"live, vocabulary, state and watermark byte for byte what they were: {'yes' if same else 'NO'}"
        )
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def in_the_shadow(stage: Stage, candidate: str) -> None:
    """Days 8-10: the candidate scores a share of requests after the answer."""
    stage.move("promote", bundle=candidate, to="shadow", reason="passed its gate")
    stage.live(7, 3, WALL["shadow"], "shadow")
    items = pl.read_parquet(stage.project.data / "items.parquet").sort("seq").unique("item_id", keep="last")
    names = {
        item: readable(stage.project.config.data.columns.name, json.loads(text), item)
        for item, text in items.select("item_id", "attributes").iter_rows()
    }
    found = shadow.compare(stage.project, candidate, name=lambda item: names.get(item, item))
    stage.told.say(
        "shadow",
        f"{found['requests']} requests of {found['users']} households ({SHADOW:.0%} of them; 1 % by default); "
        f"twin of live itself: {found['twin']['different']} of {found['twin']['requests']} differ",
    )
    for measure, one in found["agreement"].items():
        noise = "" if not found.get("noise") else f", noise floor {found['noise'][measure]['value']:.3f}"
        stage.told.say("shadow", f"{measure}: {one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f}){noise}")
    for side in ("live", "candidate"):
        one = found["shown"][side]
        stage.told.say("shadow", f"{side}: " + ", ".join(f"{name} {_number(one[name])}" for name in HEALTH))
    latency = found["latency"]
    stage.told.say("shadow", f"latency, median: live {latency['live']:.0f} us, candidate {latency['candidate']:.0f} us")
    for one in found["disagree"]:
        stage.told.say("shadow", f"disagree: {_disagreement(one)}")
    reports = stage.project.reports
    shadow.draw(found, reports / "shadow.svg")
    (reports / "shadow.json").write_text(json.dumps(found, indent=1, ensure_ascii=False, default=str) + "\n", "utf-8")


HEALTH = ("entropy", "long_tail_share", "cold_coverage")


def in_an_experiment(stage: Stage, candidate: str) -> None:
    """Days 11-14: half and half by user."""
    stage.move("promote", bundle=candidate, to="experiment", reason="the shadow agrees")
    stage.live(10, 4, WALL["experiment"], "experiment")
    found = experiment.compare(stage.project, candidate)
    users = found["users"]
    stage.told.say(
        "experiment", f"users: {users['live']} live, {users['candidate']} candidate, {users['waiting']} waiting"
    )
    ratio = found["sample_ratio"]
    stage.told.say(
        "experiment", f"sample ratio: {ratio['counts']}, e = {ratio['e']:.3g}, alarm above 1000: {ratio['alarm']}"
    )
    for name, one in found["metrics"].items():
        stage.told.say(
            "experiment",
            f"{one['kind']} {name}: live {one['live']:.4g}, candidate {one['candidate']:.4g}, "
            f"difference {one['delta']:+.4g} ({_number(one.get('low'))} to {_number(one.get('high'))})",
        )
    stage.told.say("experiment", f"verdict: {found['verdict']}: {found['why']}")
    stage.told.say("experiment", "replay: nobody saw these lists; this measures prediction, not effect")


def release(stage: Stage, candidate: str) -> None:
    """Live, one request, back, the same request; the table of every move."""
    user = str(stage.future["user_id"][0])
    stage.client.now = stage.first + DAYS * DAY
    before = stage.client.recommend(user)
    moved = stage.move("promote", bundle=candidate, to="live", reason="the demo goes on whatever the verdict")
    stage.told.say(
        "release",
        f"{moved['bundle']}: {moved['from']} -> {moved['to']}, evidence {json.dumps(moved['evidence'])[:160]}",
    )
    after = stage.client.recommend(user)
    stage.told.say("release", _changed(user, before, after))
    moved = stage.move("rollback", reason="to show the way back")
    stage.told.say("release", f"rollback: {moved['bundle']} is {moved['to']} again")
    stage.told.say("release", _changed(user, after, stage.client.recommend(user)))
    for row in release_rows(stage.project):
        stage.told.say("release", row)


def release_rows(project: Project) -> list[str]:
    """Every move, by whom, why."""
    rows = open_control(project.config.stores.control, project.root).releases()
    return [
        f"{row.generation:>3} {iso(row.at)[:16]} {row.bundle[-8:]} {row.from_ or 'new':>11} -> {row.to:<11} {row.by}: {row.reason}"
        for row in rows
    ]


def prove(stage: Stage) -> None:
    """Every decision of the demo rebuilt, across the update and both swaps."""
    begin = time.monotonic()
    found = parity.verify(stage.project, 1_000_000)
    stage.told.say(
        "verify",
        "{checked} decisions: {equal} equal, {late} late, {unexplained} unexplained".format(**found)
        + f", largest score difference {found['max_score_diff']:.1g}, in {time.monotonic() - begin:.0f} s",
    )
    if found["unexplained"]:
        raise AssertionError(f"verify found {found['differences'][0]}")


def _changed(user: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    one, other = ([slot["item_id"] for slot in answer["items"]] for answer in (before, after))
    stay = len(set(one) & set(other))
    return f"household {user}, now {after['model_version']}: {stay} of {len(one)} items stay, {sum(a == b for a, b in zip(one, other, strict=False))} at their place"


def _disagreement(one: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in one.items() if key != "request_id"}, ensure_ascii=False)[:300]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _watermark(root: Path) -> int:
    return int(json.loads((root / "data" / "manifest.json").read_text("utf-8"))["watermark"])


def _copy(root: Path, copy: Path) -> None:
    """The folder as it stands, its databases by SQLite's own backup: the server goes on writing meanwhile."""
    shutil.rmtree(copy, ignore_errors=True)
    left = shutil.ignore_patterns("poisoned", "reports", "runs", "*.lock", "*.db", "*-wal", "*-shm", "decisions.taken")
    shutil.copytree(root, copy, ignore=left)
    for file in (root / "store").glob("*.db"):
        with (
            closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(copy / "store" / file.name)) as target,
        ):
            source.backup(target)


def _shuffle_items(log: Path, watermark: int) -> None:
    with closing(sqlite3.connect(log)) as store, store:
        rows = store.execute("SELECT seq, item_id FROM events WHERE seq > ? ORDER BY seq", (watermark,)).fetchall()
        items = np.random.default_rng(0).permutation([item for _, item in rows])
        store.executemany(
            "UPDATE events SET item_id = ? WHERE seq = ?", [(str(i), s) for (s, _), i in zip(rows, items, strict=True)]
        )


def _bytes_of(root: Path) -> dict[str, bytes]:
    files = [root / "data" / "manifest.json", root / "store" / "control.db", *sorted(root.glob("bundles/*/*.json"))]
    return {str(file.relative_to(root)): file.read_bytes() for file in files}
