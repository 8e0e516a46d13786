"""Compare an update with a full retrain and with a frozen model on later days.

    .venv/bin/python benchmarks/update.py                            # Complete Journey: every row without a result file
    .venv/bin/python benchmarks/update.py --row warm --again --seed 1
    .venv/bin/python benchmarks/update.py --data world --set train.epochs=2 --results /tmp/results
    .venv/bin/python benchmarks/update.py --project DIR --future FILE.parquet --name mine
    .venv/bin/python benchmarks/update.py --table                    # only the table of existing results

The last 2 x ``--days`` days of a log are held back. A project runs its first run without them. (With ``--project`` this
has been done in your folder without posted rows, and ``--future`` holds rows with the columns of an event.) Each row is a
copy of the project. The first half of the future is posted, and one ``recloop update`` runs. Its bundle then answers every
query of the second half with growing states:

    frozen           the bundle of the first run, no update
    warm             recloop update
    fresh-optimizer  recloop update --reset-optimizer
    no-replay        recloop update --set update.replay_ratio=0
    full             recloop update --full

The gates accept everything here, so that each row is measured; the result holds their findings. A result file has command,
commit, fingerprint of the data, seed, gates, seconds and memory of the command, NDCG@10 with its interval over users and
its paired difference from ``frozen``, and the new items in the lists. An interrupted benchmark can be resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from provenance import revision
from quality import PROJECTS, RESULTS

from recloop import bundle as bundles
from recloop.bundle import Bundle
from recloop.data.prepare import load
from recloop.demo.grocery_days import as_rows
from recloop.demo.grocery_project import write_project
from recloop.evaluation import bootstrap, paired
from recloop.evaluation.queries import Queries, make_queries
from recloop.features.labels import EventLabeler
from recloop.features.moments import moment_stamps
from recloop.features.state_history import StateHistory
from recloop.project import Project, open_project
from recloop.recommend import loading
from recloop.recommend.catalog import Catalog
from recloop.records import DAY, EVENT_SCHEMA, RECEIVED_AT, SEQ, TIMESTAMP, Event
from recloop.simulation.shop import SimulatedShop

ROWS: Final[dict[str, tuple[str, ...] | None]] = {
    "frozen": None,
    "warm": (),
    "fresh-optimizer": ("--reset-optimizer",),
    "no-replay": ("--set", "update.replay_ratio=0"),
    "full": ("--full",),
}
WIDE: Final = (
    "release.gates.max_ndcg_loss=99", "release.gates.max_slice_loss=99", "release.gates.max_unexplained=1000000",
    "release.gates.max_latency_ratio=1e9", "release.gates.max_cold_coverage_loss=1", "update.input_check=false",
)  # fmt: skip
THREADS: Final = 2


@dataclass(frozen=True)
class Asked:
    """Arguments of the command line, and the working folder."""

    name: str
    project: Path
    future: Path
    days: int
    seed: int
    sets: tuple[str, ...]
    results: Path
    projects: Path

    @property
    def words(self) -> list[str]:
        """Settings of every command."""
        return [word for one in (*self.sets, f"train.seed={self.seed}") for word in ("--set", one)]

    def file(self, row: str) -> Path:
        return self.results / f"update-{self.name}-{row}-seed{self.seed}.json"

    def values(self, row: str) -> Path:
        """File with NDCG@10 of each user in a row, for paired differences."""
        return self.projects / f"{row}-seed{self.seed}.parquet"


def complete_journey(folder: Path, days: int) -> None:
    """Write the project of the demo, and the future next to it."""
    write_project(folder, 2 * days)
    as_rows(pl.read_parquet(folder / "future.parquet")).write_parquet(folder / "later.parquet")


def world(folder: Path, days: int) -> None:
    """Write the seeded world, for a trial of this file in seconds."""
    SimulatedShop(seed=0).write(folder)
    events = SimulatedShop(seed=0).events()
    late = events[TIMESTAMP] >= events[TIMESTAMP].max() - 2 * days * DAY  # type: ignore[operator]
    whole = pl.read_csv(folder / "events.csv", infer_schema=False)
    whole.filter(~late).write_csv(folder / "events.csv")
    events.filter(late).write_parquet(folder / "later.parquet")


DATA: Final[dict[str, Callable[[Path, int], None]]] = {"complete-journey": complete_journey, "world": world}


def main() -> None:
    """Run what is missing, then print the table."""
    wanted = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    wanted.add_argument("--data", choices=DATA, default="complete-journey")
    wanted.add_argument("--project", type=Path, help="a folder after its first run, instead of --data")
    wanted.add_argument("--future", type=Path, help="Parquet file with later rows")
    wanted.add_argument("--name", help="name of the result files with --project")
    wanted.add_argument("--row", choices=ROWS, action="append")
    wanted.add_argument("--days", type=int, default=7)
    wanted.add_argument("--seed", type=int, default=0)
    wanted.add_argument("--set", action="append", default=[], dest="sets", help="a setting of every command")
    wanted.add_argument("--results", type=Path, default=RESULTS)
    wanted.add_argument("--projects", type=Path, default=PROJECTS, help="folder for the copies")
    wanted.add_argument("--again", action="store_true", help="repeat existing results")
    wanted.add_argument("--table", action="store_true", help="print the table only")
    read = wanted.parse_args()
    name = (read.name or read.project.resolve().name) if read.project else read.data
    projects = read.projects / f"update-{name}"
    folder = read.project or projects / f"first-seed{read.seed}"
    future = read.future or folder / "later.parquet"
    asked = Asked(name, folder, future, read.days, read.seed, tuple(read.sets), read.results, projects)
    rows = [row for row in read.row or ROWS if read.again or not asked.file(row).exists()]
    if rows and not read.table:
        if not read.project and not (folder / "bundles").exists():
            begin(asked, DATA[read.data])
        for made in (asked.results, asked.projects):
            made.mkdir(parents=True, exist_ok=True)
        if not asked.values("frozen").exists() and "frozen" not in rows:
            rows = ["frozen", *rows]  # the reference of the other rows
        for row in rows:
            make(asked, row)
    sys.stdout.write("\n".join(table(asked)) + "\n")


def begin(asked: Asked, write: Callable[[Path, int], None]) -> None:
    """Write the project without its future and run its first run."""
    shutil.rmtree(asked.project, ignore_errors=True)
    asked.project.parent.mkdir(parents=True, exist_ok=True)
    write(asked.project, asked.days)
    recloop(asked.project, "update", *asked.words)


def make(asked: Asked, row: str) -> None:
    """Run one row and write its result file atomically."""
    words = ROWS[row]
    commit = revision()
    source = open_project(asked.project, asked.sets)
    first = source.load_bundle()
    posted, after = halves(source, pl.read_parquet(asked.future), asked.days)
    told: dict[str, Any] = {}
    bundle: Bundle | None = first
    command = ["update", *(words or ()), *asked.words]
    if words is not None:
        copy = open_project(shutil.copytree(asked.project, fresh(asked.projects / row)), asked.sets)
        try:
            post(copy, posted)
            wide = [word for one in WIDE for word in ("--set", one)]
            clock = time.monotonic()
            made, peak = recloop(copy.root, *command, *wide, "--json")
            told = {"seconds": round(time.monotonic() - clock, 1), "peak_mib": peak}
            told |= {key: made[key] for key in ("read", "kept", "new_users", "new_items", "verdict", "gates")}
            bundle = bundles.load(copy.bundles / made["bundle"]) if made["bundle"] else None
        finally:
            shutil.rmtree(copy.root)
    if bundle is not None:
        told |= measure(asked, row, bundle, first, pl.concat([posted, after]), after, load(source).users)
    result = {
        "command": "-" if words is None else " ".join(["recloop", *command]),
        "row": row,
        "data": asked.name,
        "days": asked.days,
        "commit": commit,
        "fingerprint": loading.manifest(source).fingerprint,
        "seed": asked.seed,
        "model": first.manifest.model.to_json(),
        **told,
    }
    beside = asked.file(row).with_suffix(".part")
    beside.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", "utf-8")
    beside.replace(asked.file(row))


def fresh(folder: Path) -> Path:
    """Return a path without a folder; the rest of a killed row is deleted."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def halves(project: Project, future: pl.DataFrame, days: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split the future into the first ``days`` and the following ``days``: EVENT_SCHEMA.

    The rows are numbered after the import.
    """
    columns = {TIMESTAMP: pl.col(TIMESTAMP), RECEIVED_AT: pl.col(TIMESTAMP), "event_type": pl.lit("interaction")}
    missing = [expr.alias(name) for name, expr in columns.items() if name == RECEIVED_AT or name not in future.columns]
    rows = future.with_columns(missing).sort(TIMESTAMP, maintain_order=True)
    empty = [pl.lit(None, kind).alias(name) for name, kind in EVENT_SCHEMA.items() if name not in rows.columns]
    start = project.open_archive().watermark + 1
    rows = rows.with_columns(*empty).with_columns(pl.int_range(start, start + pl.len(), dtype=pl.Int64).alias(SEQ))
    rows = rows.select(pl.col(name).cast(kind) for name, kind in EVENT_SCHEMA.items())
    rows = rows.filter(EventLabeler(project.config.events, project.config.clean).causal_rule(rows).is_null())
    begin = int(rows[TIMESTAMP].min())  # type: ignore[arg-type]
    middle, end = begin + days * DAY, begin + 2 * days * DAY
    return rows.filter(pl.col(TIMESTAMP) < middle), rows.filter(pl.col(TIMESTAMP).is_between(middle, end, "left"))


def post(project: Project, rows: pl.DataFrame) -> None:
    """Append valid rows to the log as the server does."""
    log = project.open_log(write=True)
    for part in rows.iter_slices(10_000):
        log.append_events(
            [
                Event(**{k: v for k, v in row.items() if v is not None and k != SEQ})
                for row in part.iter_rows(named=True)
            ]
        )
    log.close()


def measure(
    asked: Asked, row: str, bundle: Bundle, first: Bundle, future: pl.DataFrame, after: pl.DataFrame,
    users: pl.DataFrame | None,
) -> dict[str, Any]:  # fmt: skip
    """Recommend lists for every moment of ``after``, from the states just before."""
    source = open_project(asked.project, asked.sets)
    rows = moment_stamps(EventLabeler.from_spec(bundle.spec).label(pl.concat([source.open_archive().events(), future])))
    queries = paired.subsample(make_queries(rows.filter(pl.col(SEQ).is_in(after[SEQ].implode())), "successive"))
    timeline, catalogue = StateHistory(rows, users), Catalog.from_frames([source.open_archive().items()])
    found = paired.answer(bundle, queries, timeline, catalogue, THREADS)
    names, codes = np.unique(found.users, return_inverse=True)
    means = bootstrap.user_means(found.ndcg[:, None], codes, len(names))[:, 0]
    pl.DataFrame({"user": names.tolist(), "ndcg": means}).write_parquet(asked.values(row))
    frozen = pl.read_parquet(asked.values("frozen"))
    if frozen["user"].to_list() != names.tolist():
        raise SystemExit(f"{asked.values('frozen')} is of other queries; run --row frozen --again first")
    against = bootstrap.difference(means, frozen["ndcg"].to_numpy(), asked.seed)
    samples = bootstrap.resample(means[:, None], asked.seed)
    estimate = bootstrap.estimate(float(bootstrap.mean_over_users(means[:, None])[0]), samples[:, 0])
    return {
        "NDCG@10": estimate.to_json(),
        "against_frozen": against.to_json(),
        "queries": len(queries),
        "users": len(names),
        **new_items(found.lists, queries, set(first.items.ids.ids), len(bundle.items)),
    }


def new_items(lists: Sequence[Sequence[str]], queries: Queries, known: set[str], size: int) -> dict[str, int]:
    """Count items that the first run did not know.

    The counts are those in the table, wanted, shown, and shown and then taken.
    """
    offsets = queries.offsets
    wanted = [set(queries.targets[offsets[q] : offsets[q + 1]]) - known for q in range(len(queries))]
    shown = [set(one) - known for one in lists]
    return {
        "new_items_in_table": size - len(known),
        "new_items_wanted": len(set().union(*wanted)),
        "new_items_shown": len(set().union(*shown)),
        "slots_of_new_items": sum(map(len, shown)),
        "new_items_hit": sum(len(one & other) for one, other in zip(shown, wanted, strict=True)),
    }


def recloop(folder: Path, *words: str) -> tuple[dict[str, Any], int]:
    """Run a command and return its JSON ({} without) and peak memory in MiB.

    Its stderr is passed through.

    Raises:
        SystemExit: the command failed; exit code 1 is a valid result.
    """
    child = subprocess.Popen([sys.executable, "-m", "recloop", "-C", str(folder), *words], stdout=subprocess.PIPE)
    assert child.stdout is not None
    said = child.stdout.read()
    child.stdout.close()
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in {0, 1}:
        raise SystemExit(f"recloop {' '.join(words)}: exit {child.returncode}")
    return (json.loads(said) if "--json" in words else {}), used.ru_maxrss // 1024


def table(asked: Asked) -> Iterator[str]:
    """Yield one Markdown table from the result files of this name and seed."""
    files = [asked.file(row) for row in ROWS if asked.file(row).exists()]
    found = [json.loads(file.read_text("utf-8")) for file in files]
    if not found:
        yield "no result yet"
        return
    yield f"\n{asked.name}: {found[0]['model']['name']}, seed {asked.seed}, {asked.days} days learned, the {asked.days} after evaluated\n"
    yield "| row | NDCG@10 | against frozen | new items shown (slots, hits) of wanted | update s | MiB | verdict |"
    yield "|---|---|---|---|---|---|---|"
    for one in found:
        cells = ["-"] * 3
        if "NDCG@10" in one:
            d = one["against_frozen"]
            cells = [
                "{value:.4f} [{low:.4f}, {high:.4f}]".format(**one["NDCG@10"]),
                "{value:+.4f} [{low:+.4f}, {high:+.4f}]".format(**d) if one["row"] != "frozen" else "-",
                f"{one['new_items_shown']} ({one['slots_of_new_items']}, {one['new_items_hit']}) of {one['new_items_wanted']}",
            ]
        cells += [str(one.get(key, "-")) for key in ("seconds", "peak_mib", "verdict")]
        yield f"| {one['row']} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
