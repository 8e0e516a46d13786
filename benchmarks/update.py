"""An update beside a full retrain on the same rows and beside the frozen model, on what follows.

    recloop demo --dir shop && python benchmarks/update.py shop /tmp/update 7

Takes a finished project folder, forgets the last 2 x 7 days of its log, posts the first 7 of them, runs ``recloop update``
and ``recloop update --full`` on copies, and asks the three bundles for every list of the 7 days after.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from pathlib import Path

import polars as pl

from recloop import bundle as bundles
from recloop import loop, metrics, standing
from recloop.backends import open_log, snapshots
from recloop.backends.archive import Archive
from recloop.collect.prepare import load
from recloop.config import Project, open_project
from recloop.features.signal import Signal
from recloop.features.state import Timeline, moment_stamps
from recloop.learn import compare
from recloop.learn.evaluate import moments
from recloop.recommend.catalogue import Catalogue
from recloop.recommend.states import fold_all
from recloop.records import DAY, EVENT_SCHEMA, SEQ, TIMESTAMP, Event
from recloop.shell import Teller


def forget(project: Project, stamp: int) -> None:
    """Make ``data/`` end before a stamp, as if the import had; seqs of an import are in the order of time."""
    data = load(project)
    seq = int(data.events.filter(pl.col(TIMESTAMP) < stamp)[SEQ].max() or 0)  # type: ignore[arg-type]
    for file in [
        *project.data.glob("archive/*/*.parquet"),
        *project.data.glob("split/*"),
        project.data / "quarantine.parquet",
    ]:
        rows = pl.read_parquet(file, hive_partitioning=False)
        kept = rows.filter(pl.col(SEQ) <= seq)
        if len(kept) < len(rows):
            kept.write_parquet(file)
    file = project.data / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "watermark": seq}))
    spec = standing.load_bundle(project).spec
    rows = Signal.of(spec).label(Archive(project.data).events())
    for old in project.store.glob("snapshots-*"):
        old.unlink()
    states = fold_all(rows, Archive(project.data).users())
    snapshots.write(project.store / snapshots.name(seq, spec.state_key), states, seq, spec.state_key)
    for old in [*project.store.glob("log.db*"), *project.store.glob("decisions*")]:
        old.unlink()  # decisions of the demo know seqs that are given anew
    log = open_log(project.config.stores.log, project.root, write=True)
    log.start_at(seq)
    log.close()


def post(project: Project, rows: pl.DataFrame) -> None:
    """Rows into the log as the server would have put them."""
    log = open_log(project.config.stores.log, project.root, write=True)
    for part in rows.iter_slices(10_000):
        log.append_events(
            [Event(**{**{k: v for k, v in row.items() if v is not None}, "received_at": row[TIMESTAMP]})
             for row in part.iter_rows(named=True)]
        )  # fmt: skip
    log.close()


def main(source: Path, target: Path, days: int, *sets: str) -> None:
    """Print one JSON object."""
    shutil.rmtree(target, ignore_errors=True)
    whole = open_project(source, sets)
    archive, data = Archive(whole.data), load(whole)
    events = archive.events()
    end = int(events[TIMESTAMP].max())  # type: ignore[arg-type]
    posted, after = end - 2 * days * DAY, end - days * DAY
    warm = open_project(shutil.copytree(source, target / "warm"), sets)
    shutil.rmtree(warm.runs)
    warm.runs.mkdir()
    forget(warm, posted)
    live = standing.load_bundle(warm)
    assert live.cut <= posted, f"live learned {posted - live.cut} us of what is posted: fewer days"
    post(warm, events.filter(pl.col(TIMESTAMP).is_between(posted, after, closed="left")).select(*EVENT_SCHEMA))
    full = open_project(shutil.copytree(warm.root, target / "full"), sets)
    made = {"frozen": live}
    told: dict[str, object] = {}
    for name, project in (("warm", warm), ("full", full)):
        begin = time.monotonic()
        done = loop.update(project, Teller(), name == "full")
        told[name] = {"seconds": round(time.monotonic() - begin, 1), "verdict": done.verdict, "read": done.read}
        if done.bundle is not None:
            made[name] = bundles.load(project.bundles / done.bundle)
    rows = moment_stamps(Signal.of(live.spec).label(events))
    queries = compare.thin(moments(rows.filter(pl.col(TIMESTAMP) >= after), "successive"))
    timeline, catalogue = Timeline(rows, data.users), Catalogue.of([data.items])
    asked = {name: compare.ask(bundle, queries, timeline, catalogue, 2) for name, bundle in made.items()}
    known = set(live.items.ids.ids)
    for name, one in asked.items():
        users = {user: n for n, user in enumerate(sorted(set(one.users.tolist())))}
        means = metrics.user_means(one.ndcg[:, None], pl.Series(one.users).replace_strict(users).to_numpy(), len(users))
        fresh = [item for items in one.lists for item in items if item not in known]
        told[name] = {
            **told.get(name, {}),  # type: ignore[dict-item]
            "NDCG@10": round(float(means.mean()), 4),
            "items": len(made[name].items),
            "new_items_in_table": len(made[name].items) - len(live.items),
            "new_items_shown": len(set(fresh)),
            "slots_of_new_items": len(fresh),
        }
    told["queries"], told["users"] = len(queries), len(set(queries.users))
    told["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sys.stdout.write(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
