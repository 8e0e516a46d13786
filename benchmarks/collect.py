"""Measure `prepare` against hand-written Polars and DuckDB queries of the same steps.

    .venv/bin/python benchmarks/collect.py                    # 1 M and 10 M rows; benchmarks/results/collect.json
    .venv/bin/python benchmarks/collect.py --full             # 100 M rows too (5 GB of text, 30 GB of free disk)
    .venv/bin/python benchmarks/collect.py --rows 20000 --results DIR --rounds 1

The log is generated with a seed: views, carts and purchases of two years in order of time, 40 rows a user, 0.5 % exact
duplicates. Each side runs in a process of its own, in turn, and the fastest round counts: seconds, CPU seconds, and the
peak of resident memory. The queries read the CSV, parse stamps and numbers, drop rows without a stamp or an id, number the
rows by time, drop duplicates and bursts, label the rows, number moments, split at 90 % with the last moment of 1,024 users
as validation, and write the split and one file a day. They check no encoding, report no reject and sync no file, so they
are a lower bound of what `prepare` has to do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

HERE: Final = Path(__file__).resolve().parent
RESULTS: Final = HERE / "results"
SIZES: Final = (1_000_000, 10_000_000)
FULL_SIZE: Final = 100_000_000
BLOCK_ROWS: Final = 2_000_000
START: Final = 1_672_531_200_000_000  # 2023-01-01
SPAN: Final = 730 * 86_400 * 1_000_000  # two years, microseconds
BURST_ROWS: Final = 10
MAX_VALIDATION_USERS: Final = 1_024
SETTINGS: Final = """[data]
events = "events.csv"
[data.columns]
user_id = "user_id"
item_id = "item_id"
timestamp = "timestamp"
event_type = "event_type"
value = "value"
quantity = "quantity"
"""


def generate(path: Path, n_rows: int, seed: int = 0) -> None:
    """Write a log of ``n_rows`` rows and 0.5 % duplicates."""
    rng = np.random.default_rng(seed)
    n_users, n_items = max(100, n_rows // 40), max(100, min(200_000, n_rows // 20))
    with path.open("wb") as file:
        for first in range(0, n_rows, BLOCK_ROWS):
            size = min(BLOCK_ROWS, n_rows - first)
            stamps = START + ((np.sort(rng.random(size)) * size + first) / n_rows * SPAN).astype(np.int64)
            frame = pl.DataFrame(
                {
                    "user_id": (rng.random(size) ** 1.5 * n_users).astype(np.int64),
                    "item_id": (rng.random(size) ** 2.5 * n_items).astype(np.int64),
                    "timestamp": stamps,
                    "event_type": rng.choice(["view", "cart", "purchase"], size, p=[0.8, 0.12, 0.08]),
                    "value": np.round(rng.random(size) * 100, 2),
                    "quantity": rng.integers(1, 4, size),
                }
            ).with_columns(
                pl.format("u{}", "user_id").alias("user_id"),
                pl.format("i{}", "item_id").alias("item_id"),
                pl.from_epoch("timestamp", time_unit="us").dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
            )
            repeated = frame.sample(fraction=0.005, seed=seed + first)
            pl.concat([frame, repeated]).write_csv(file, include_header=not first)


# -- the sides


def run_prepare(folder: Path, _: Path) -> None:
    """`prepare` of a project."""
    from recloop.data.prepare import prepare
    from recloop.project import open_project

    prepare(open_project(folder))


def run_polars(folder: Path, out: Path) -> None:
    """The steps as one script of Polars, in memory."""
    name = ["user_id", "item_id", "timestamp"]
    log = (
        pl.scan_csv(folder / "events.csv", infer_schema=False)
        .with_columns(
            pl.col("timestamp").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", strict=False).to_physical(),
            pl.col("value").cast(pl.Float64, strict=False),
            pl.col("quantity").cast(pl.Float64, strict=False),
        )
        .drop_nulls(name)
        .sort("timestamp", maintain_order=True)
        .with_row_index("seq", 1)
        .unique([*name, "event_type", "value", "quantity"], keep="first", maintain_order=True)
        .collect()
    )
    ahead = pl.col("timestamp") - pl.col("timestamp").shift(BURST_ROWS - 1).over("user_id")
    moment = (pl.col("timestamp").rank("dense").over("user_id") - 1).cast(pl.Int32)
    log = log.filter((ahead >= 1_000_000).fill_null(value=True)).with_columns(
        pl.when(pl.col("event_type") == "view").then(0).otherwise(1).cast(pl.Int8).alias("label"),
        moment.alias("moment"),
    )
    cut = log["timestamp"].sort()[int(0.9 * len(log))]
    past, test = log.filter(pl.col("timestamp") < cut), log.filter(pl.col("timestamp") >= cut)
    last = past.filter(pl.col("label") > 0).group_by("user_id").agg(pl.col("timestamp").max())
    users = last.sort("timestamp", "user_id", descending=True).head(MAX_VALIDATION_USERS)
    parts = {
        "train": past.join(users, on=["user_id", "timestamp"], how="anti", maintain_order="left"),
        "valid": past.join(users, on=["user_id", "timestamp"], how="semi", maintain_order="left"),
        "test": test,
    }
    for part, rows in parts.items():
        rows.write_parquet(out / f"{part}.parquet", compression="zstd")
    date = pl.from_epoch("timestamp", time_unit="us").dt.date().alias("date")
    days = log.drop("label", "moment").with_columns(date).partition_by("date", as_dict=True, include_key=False)
    for (day,), rows in days.items():
        (out / f"date={day}").mkdir()
        rows.write_parquet(out / f"date={day}" / "events.parquet", compression="zstd")


def run_duckdb(folder: Path, out: Path) -> None:
    """The steps as SQL; DuckDB spills to disk what does not fit."""
    import duckdb

    with duckdb.connect(str(out / "log.duckdb")) as db:
        db.execute(f"SET temp_directory = '{out / 'spill'}'")
        db.execute(f"""CREATE TABLE rows AS SELECT row_number() OVER (ORDER BY stamp, line) AS seq, * FROM (
            SELECT row_number() OVER () AS line, user_id, item_id, event_type,
                epoch_us(try_strptime("timestamp", '%Y-%m-%dT%H:%M:%SZ')) AS stamp,
                try_cast(value AS DOUBLE) AS value, try_cast(quantity AS DOUBLE) AS quantity
            FROM read_csv('{folder / "events.csv"}', all_varchar = true, header = true)
        ) WHERE user_id IS NOT NULL AND item_id IS NOT NULL AND stamp IS NOT NULL""")
        db.execute("""CREATE TABLE firsts AS SELECT min(seq) AS seq, user_id, item_id, event_type, stamp, value, quantity
            FROM rows GROUP BY user_id, item_id, event_type, stamp, value, quantity""")
        db.execute(f"""CREATE TABLE log AS SELECT seq, user_id, item_id, event_type, stamp, value, quantity,
                (event_type <> 'view')::TINYINT AS label,
                dense_rank() OVER (PARTITION BY user_id ORDER BY stamp) - 1 AS moment
            FROM firsts QUALIFY coalesce(
                stamp - lag(stamp, {BURST_ROWS - 1}) OVER (PARTITION BY user_id ORDER BY stamp, seq) >= 1000000, true)""")
        counted = db.execute("SELECT quantile_disc(stamp, 0.9) FROM log").fetchone()
        assert counted is not None
        cut = int(counted[0])
        db.execute(f"""CREATE TABLE held AS SELECT user_id, max(stamp) AS stamp FROM log WHERE stamp < {cut} AND label > 0
            GROUP BY user_id ORDER BY stamp DESC, user_id DESC LIMIT {MAX_VALIDATION_USERS}""")
        wanted = {
            "train": f"log ANTI JOIN held USING (user_id, stamp) WHERE stamp < {cut}",
            "valid": f"log SEMI JOIN held USING (user_id, stamp) WHERE stamp < {cut}",
            "test": f"log WHERE stamp >= {cut}",
        }
        for part, source in wanted.items():
            target = out / f"{part}.parquet"
            db.execute(f"COPY (SELECT * FROM {source} ORDER BY seq) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")
        db.execute(f"""COPY (SELECT * EXCLUDE (label, moment), strftime(make_timestamp(stamp), '%Y-%m-%d') AS date
            FROM log ORDER BY seq) TO '{out / "days"}' (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (date))""")


SIDES: Final[dict[str, Callable[[Path, Path], None]]] = {
    "prepare": run_prepare, "polars": run_polars, "duckdb": run_duckdb
}  # fmt: skip


def measure(side: str, folder: Path) -> dict[str, float]:
    """Seconds, CPU seconds and peak megabytes of one side in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        words = [sys.executable, str(Path(__file__).resolve()), "--side", side, str(folder), out]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    shutil.rmtree(folder / "data", ignore_errors=True)
    if done.returncode:
        return {"failed": done.returncode}
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def run_side(side: str, folder: Path, out: Path) -> None:
    """Run one side and print what it took; the imports before do not count."""
    import recloop.data.prepare  # noqa: F401

    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    SIDES[side](folder, out)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds = time.perf_counter() - started
    tree = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_mb": round(after.ru_maxrss / 1e3)}
    sys.stdout.write(json.dumps(tree) + "\n")


def best(rounds: list[dict[str, float]], n_rows: int) -> dict[str, float]:
    """Smallest value of each measure, and microseconds and CPU microseconds a row."""
    if any("failed" in measured for measured in rounds):
        return {"failed": 1}
    smallest = {name: min(measured[name] for measured in rounds) for name in rounds[0]}
    smallest["us_per_row"] = round(smallest["seconds"] / n_rows * 1e6, 2)
    smallest["cpu_us_per_row"] = round(smallest["cpu_seconds"] / n_rows * 1e6, 2)
    return smallest


def compare(n_rows: int, n_rounds: int, work: Path) -> dict[str, Any]:
    """All sides on one generated log, alternated."""
    folder = work / f"log-{n_rows}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recloop.toml").write_text(SETTINGS)
    generate(folder / "events.csv", n_rows)
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(n_rounds):
        for side in SIDES:
            rounds[side].append(measure(side, folder))
            sys.stdout.write(f"{n_rows:,} rows, {side}: {json.dumps(rounds[side][-1])}\n")
            sys.stdout.flush()
    n_bytes = (folder / "events.csv").stat().st_size
    shutil.rmtree(folder)
    sides = {side: best(measured, n_rows) for side, measured in rounds.items()}
    ratios = {f"{name}_to_fastest_query": ratio(sides, name) for name in ("seconds", "cpu_seconds")}
    return {"rows": n_rows, "bytes": n_bytes, **sides, **ratios}


def ratio(sides: dict[str, dict[str, float]], name: str) -> float | None:
    """One measure of `prepare`, divided by the smallest one of the queries."""
    queries = [sides[side][name] for side in ("polars", "duckdb") if "failed" not in sides[side]]
    return round(sides["prepare"][name] / min(queries), 2) if queries and "failed" not in sides["prepare"] else None


def main() -> None:
    """Measure every size and write the result file."""
    wanted = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    wanted.add_argument("--rows", type=int, nargs="*", help="sizes of the log (default: 1 M and 10 M)")
    wanted.add_argument("--full", action="store_true", help="100 M rows too")
    wanted.add_argument("--rounds", type=int, default=3)
    wanted.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "recloop-collect")
    wanted.add_argument("--results", type=Path, default=RESULTS)
    wanted.add_argument("--side", nargs=3, metavar=("SIDE", "FOLDER", "OUT"), help=argparse.SUPPRESS)
    asked = wanted.parse_args()
    if asked.side:
        run_side(asked.side[0], Path(asked.side[1]), Path(asked.side[2]))
        return
    from provenance import revision

    sizes = asked.rows or [*SIZES, *([FULL_SIZE] if asked.full else [])]
    runs = [compare(size, asked.rounds, asked.work) for size in sizes]
    tree = {
        "command": " ".join(["python benchmarks/collect.py", *sys.argv[1:]]),
        "commit": revision(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "polars": pl.__version__,
        "runs": runs,
    }
    asked.results.mkdir(parents=True, exist_ok=True)
    (asked.results / "collect.json").write_text(json.dumps(tree, indent=1) + "\n")


if __name__ == "__main__":
    main()
