"""Projects of the data sets of `quality.py`, with the published rows that each is compared with.

The files are in ``../shared/data`` and stay there: their terms forbid redistribution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import polars as pl

from recloop.demo.grocery_days import DAYS
from recloop.demo.grocery_project import write_project

SHARED: Final = Path(__file__).resolve().parents[2] / "shared" / "data"
COUNTING: Final = ("covisitation", "item_knn", "mf")
NETWORKS: Final = ("gru4rec", "sasrec", "two_tower", "neumf")
VARIANTS: Final = {
    "two_tower-pooled": ("two_tower", ("model.user=pooled",)),
    "two_tower-sequence": ("two_tower", ("model.user=sequence",)),
}
"""Rows of one model apart by settings: name of the row -> model and settings."""
LEAVE_ONE_OUT: Final = """\
# As in the SASRec papers: 5-core, in file order; the last row of a user is the test.
[data]
events = "log.parquet"
[clean]
burst = "off"
[split]
protocol = "leave-one-out"
ties = "row"
filter_seen = true
[features]
max_history = 50
context = []
[train]
lr = 2e-3
[evaluate]
baselines = ["popular", "covisitation"]
"""
GIVEN_CANDIDATES: Final = """\
[evaluate]
baselines = ["popular", "covisitation"]
candidates = "candidates.parquet"
"""
ONLINE_RETAIL: Final = """\
# Invoices of a gift wholesaler; charges are not products, a cancellation undoes its purchase, seen items are hidden.
[data]
events = "log.parquet"
[data.columns]
group_id = "invoice"
quantity = "quantity"
[clean]
exclude_items = ["POST", "D", "DOT", "M", "S", "C2", "CRUK", "PADS", "BANK CHARGES", "AMAZONFEE"]
[split]
filter_seen = true
"""

ML_100K: Final = """\
# Ratings with true stamps. Settings of `recloop init`, genres as several categories.
[data]
events = "log.parquet"
items = "items.parquet"
users = "users.parquet"
[data.columns]
value = "rating"
name = "movie_title"
[events]
positive = ["value >= 4"]
history = ["value < 4"]
[split]
filter_seen = true
[features.item.release_year]
[features.item.class]
kind = "categories"
separator = " "
[features.user.age]
kind = "number"
[features.user.gender]
[features.user.occupation]
"""
MIND: Final = """\
# Clicks on news; clicks before the sample are known by their order alone.
[data]
events = "log.parquet"
items = "items.parquet"
[split]
quantile = {quantile:.5f}
filter_seen = true
[features.item.category]
[features.item.subcategory]
[features.item.abstract]
kind = "text"
"""

LEARNING_CURVES: Final = """\
<img src="img/learning-curves.png" width="640" alt="Validation NDCG@10 by CPU seconds of training">

`python benchmarks/learning_curves.py` draws the committed runs, one thread and one line for each seed; `--run NAME --seed 1` measures
one again. Looks at validation are not counted; ours are at most 20 s apart, those of other libraries 60 s. SASRec falls when its
dropout starts, after four epochs. The programs in [`benchmarks/peers`](../benchmarks/peers) train other libraries on the same rows,
and our scorer judges their lists. Other programs ran on the threads of the core, which lengthens CPU seconds by up to a third; RePlay
and GRU4Rec ran on another day, with fewer of them. Rows are means of seeds.
"""


BEAUTY_SASREC: Final = (
    *("features.dim=256", "train.epochs=20", "train.time_budget=20h", "train.schedule=cosine", "train.patience=100"),
    *("train.loss=ss_logq", "train.negatives=2048", "model.dropout=0.5", "model.dropout_after=0"),
)
"""Settings of SASRec on 54,542 items (docs/decisions/2026-11-30-sasrec-on-beauty-with-54542-items.md)."""


@dataclass(frozen=True)
class Published:
    """A published row: HR@10 and NDCG@10 with its source."""

    model: str
    hit_rate: float
    ndcg: float
    source: str


@dataclass(frozen=True)
class DataSet:
    """A data set of the tables.

    Attributes:
        title: Heading of its table. write: Makes the project folder. models: Models and `VARIANTS`, in order.
        published: Rows of papers and public repositories under the same protocol.
        settings: Settings of recloop.toml by model, chosen on validation.
        note: Sentence below the heading of the table.
    """

    title: str
    write: Callable[[Path], None]
    models: tuple[str, ...]
    published: tuple[Published, ...] = ()
    settings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    note: str = ""


def leave_one_out(name: str, folder: Path, validation_users: int = 0) -> None:
    """Write a file of the papers as a log with its order as seconds.

    Args:
        validation_users: Number of users whose row before the target is validation and does not teach; 0: all users.
    """
    folder.mkdir(parents=True)
    log = pl.read_parquet(SHARED / name)
    log.select("user_id", "item_id", timestamp=1_000_000_000 + pl.col("pos")).write_parquet(folder / "log.parquet")
    sampled = f'[split]\nvalidation_rows = "sampled"\nvalidation_users = {validation_users}\n'
    text = LEAVE_ONE_OUT.replace("[split]\n", sampled) if validation_users else LEAVE_ONE_OUT
    (folder / "recloop.toml").write_text(text, "utf-8")


def ncf(folder: Path) -> None:
    """Write the files of He et al. as a project, each user's rows in the order of MovieLens.

    The models learn all rows of their training file, as in the papers.
    """
    folder.mkdir(parents=True)
    order = pl.read_parquet(SHARED / "ml-1m.parquet").select("user_id", "item_id", "pos")
    train = pl.read_parquet(SHARED / "ncf-ml-1m_train.parquet").join(order, on=["user_id", "item_id"], how="left")
    test = pl.read_parquet(SHARED / "ncf-ml-1m_test.parquet").with_columns(pos=pl.lit(len(order), dtype=pl.Int64))
    rows = pl.concat([part.select("u", "i", "pos") for part in (train, test)]).sort("u", "pos")
    stamps = 1_000_000_000 + pl.int_range(pl.len()).over("u")
    rows.select(user_id=pl.col("u"), item_id=pl.col("i"), timestamp=stamps).write_parquet(folder / "log.parquet")
    given = pl.read_parquet(SHARED / "ncf-ml-1m_negatives.parquet").explode("neg_i")
    given.select(user_id=pl.col("u"), item_id=pl.col("neg_i")).write_parquet(folder / "candidates.parquet")
    head, _, _ = LEAVE_ONE_OUT.partition("[evaluate]")
    head = head.replace("[split]\n", "[split]\nvalidation_users = 0\n")
    (folder / "recloop.toml").write_text(head + GIVEN_CANDIDATES, "utf-8")


def online_retail(folder: Path) -> None:
    """Write Online Retail as a project."""
    folder.mkdir(parents=True)
    log = pl.read_parquet(SHARED / "online-retail.parquet").filter(pl.col("quantity") > 0)
    log.select("user_id", "item_id", "timestamp", "invoice", "quantity").write_parquet(folder / "log.parquet")
    (folder / "recloop.toml").write_text(ONLINE_RETAIL, "utf-8")


def ml_100k(folder: Path) -> None:
    """Write MovieLens-100K as a project."""
    folder.mkdir(parents=True)
    for part, name in (("", "log"), ("_items", "items"), ("_users", "users")):
        pl.read_parquet(SHARED / f"ml-100k{part}.parquet").write_parquet(folder / f"{name}.parquet")
    (folder / "recloop.toml").write_text(ML_100K, "utf-8")


def mind(folder: Path) -> None:
    """Write the clicks of a sample of MIND as a project.

    The clicks before a user's first impression are dated a minute apart, before the first impression of the sample. The
    clicks of the sample are the test.
    """
    folder.mkdir(parents=True)
    clicks = pl.read_parquet(SHARED / "mind-small-5k.parquet").filter(pl.col("click") == 1)
    clicks = clicks.select("user_id", "item_id", "timestamp")
    first = pl.read_parquet(SHARED / "mind-small-5k_history.parquet").sort("timestamp").unique("user_id", keep="first")
    earlier = first.select("user_id", item_id=pl.col("history").str.split(" ").list.reverse()).explode("item_id")
    minutes = pl.duration(minutes=1 + pl.int_range(pl.len()).over("user_id"))
    earlier = earlier.filter(pl.col("item_id") != "").with_columns(timestamp=clicks["timestamp"].min() - minutes)
    log = pl.concat([earlier, clicks])
    log.write_parquet(folder / "log.parquet")
    items = pl.read_parquet(SHARED / "mind-small-5k_items.parquet")
    items.select("item_id", "category", "subcategory", "abstract").write_parquet(folder / "items.parquet")
    (folder / "recloop.toml").write_text(MIND.format(quantile=len(earlier) / len(log)), "utf-8")


def complete_journey(folder: Path) -> None:
    """Write the project of the demo: the year without its last days."""
    write_project(folder, DAYS)


DATA: Final[dict[str, DataSet]] = {
    "complete-journey": DataSet(
        "Complete Journey, a grocery chain's year",
        complete_journey,
        (*COUNTING, *NETWORKS),
        note="The lists of networks and of MF are of commits without the ranker.",
        settings={"covisitation": ("ranker.moments=12000", "ranker.trees=150", "ranker.leaves=31")},
    ),
    "online-retail": DataSet("Online Retail, a gift wholesaler, seen items hidden", online_retail, (*COUNTING, "ease")),
    "ml-100k": DataSet(
        "MovieLens-100K, by time",
        ml_100k,
        (*COUNTING, "ease"),
        note="True stamps; targets are ratings of 4 and 5. Of the 153 users of the test, 76 have no row before the cut.",
    ),
    "mind": DataSet(
        "MIND, a sample of clicks on news",
        mind,
        COUNTING,
        note="Clicks before the sample are known by their order alone; they are dated before its first impression. Of the clicks in the "
        "test, 13 % are on news that were clicked before.",
    ),
    "ml-1m": DataSet(
        "MovieLens-1M, leave-one-out",
        partial(leave_one_out, "sasrec-ml-1m.parquet"),
        (*COUNTING, "ease", "gru4rec", "sasrec", *VARIANTS, "neumf"),
        (
            Published("SASRec, one negative", 0.1993, 0.1078, "asash/bert4rec_repro, the lowest of its rows"),
            Published("SASRec, full cross-entropy", 0.3152, 0.1821, "antklen/sasrec-bert4rec-recsys23"),
            Published("SASRec, best of 108 settings", 0.3207, 0.1858, "monkey0head/time-to-split"),
            Published("gSASRec", 0.3003, 0.1726, "asash/gSASRec-pytorch"),
            Published("GRU4Rec, cross-entropy", 0.2887, 0.1679, "monkey0head/time-to-split"),
        ),
        {
            "sasrec": (
                *("features.dim=96", "features.max_history=200", "model.block=ligr"),
                *("train.epochs=18", "train.schedule=cosine", "train.patience=100", "train.time_budget=20h"),
            ),
            "gru4rec": (
                *("features.dim=96", "features.max_history=200", "model.hidden=256", "model.dropout_after=2"),
                *("train.epochs=5", "train.schedule=cosine", "train.patience=100", "train.time_budget=20h"),
            ),
            "two_tower-pooled": ("train.epochs=1", "train.schedule=cosine", "train.time_budget=2h"),
            "two_tower-sequence": (
                *("features.dim=96", "features.max_history=200"),
                *("train.epochs=2", "train.schedule=cosine", "train.time_budget=2h"),
            ),
        },
        "The row before the target is validation and does not teach. In the published row of bert4rec_repro it teaches, except for 2,048 users.",
    ),
    "ncf-ml-1m": DataSet(
        "MovieLens-1M, the files of NCF, 99 given items",
        ncf,
        ("covisitation", "mf", "ease", "neumf"),
        (
            Published("MF, 192 numbers a vector", 0.7294, 0.4523, "Rendle et al., RecSys 2020"),
            Published("iALS", 0.7111, 0.4383, "google-research/ials"),
            Published("NeuMF", 0.7093, 0.4349, "Rendle et al., RecSys 2020"),
        ),
        {
            "mf": ("model.dim=128", "model.l2=0.007", "model.unseen=0.3", "model.sweeps=12"),
            "neumf": (
                *("train.epochs=10", "train.schedule=cosine", "train.lr=2e-3", "train.ema=0", "train.time_budget=20h"),
                *("features.dim=128", "model.hidden=128", "model.layers=3", "model.pretrain=5"),
            ),
        },
        "The models learn every row but the targets, as in the papers, so no validation chooses the weights of `served`.",
    ),
    "beauty-5core": DataSet(
        "Amazon Beauty, 5-core, leave-one-out",
        partial(leave_one_out, "s3rec-beauty.parquet"),
        (*COUNTING, "ease", "sasrec"),
        (
            Published("SASRec, sampled softmax", 0.0921, 0.0531, "blondered/transformer_benchmark"),
            Published("eSASRec", 0.0928, 0.0523, "blondered/transformer_benchmark"),
        ),
    ),
    "beauty": DataSet(
        "Amazon Beauty, 54,542 items, leave-one-out",
        partial(leave_one_out, "bert4rec-beauty.parquet"),
        (*COUNTING, "sasrec"),
        (
            Published("SASRec, one negative", 0.0246, 0.0126, "antklen/sasrec-bert4rec-recsys23"),
            Published("SASRec, full cross-entropy", 0.0533, 0.0327, "antklen/sasrec-bert4rec-recsys23"),
        ),
        settings={"sasrec": BEAUTY_SASREC},
        note="As in the published rows, the row before the target is validation and does not teach.",
    ),
    "beauty-sampled": DataSet(
        "Amazon Beauty, 54,542 items, validation of 2,048 users",
        partial(leave_one_out, "bert4rec-beauty.parquet", validation_users=2_048),
        ("covisitation", "sasrec"),
        (Published("SASRec of RecTools", 0.0595, 0.0359, "blondered/bert4rec_repro"),),
        {"sasrec": BEAUTY_SASREC},
        "As in the published row, the row before the target teaches, except for 2,048 users.",
    ),
}
