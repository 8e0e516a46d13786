"""Checks of a bundle's files: sizes, tables and graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow.parquet as pq

from recloop.errors import BundleError
from recloop.files import readable
from recloop.graphs import TREE_DOMAIN, TREE_OPERATOR, has_external_tensors, operators
from recloop.manifest import Manifest

RANKER_GRAPH = "ranker.onnx"
MAX_JSON_BYTES = 64 * 2**20
MIN_TABLE_ROWS = 10_000
MAX_ROWS_PER_BYTE = 4
"""Rows of a table of distinct ids that a byte of its file can hold; checked above `MIN_TABLE_ROWS`."""
ITEM_COLUMNS: Mapping[str, pl.DataType] = {
    "item_ix": pl.Int32(), "item_id": pl.String(), "count": pl.Int64(), "tail": pl.Boolean(), "fields": pl.String(),
    "first_seq": pl.Int64(),
}  # fmt: skip
USER_COLUMNS: Mapping[str, pl.DataType] = {"user_ix": pl.Int32(), "user_id": pl.String(), "count": pl.Int64()}


def check_sizes(path: Path, manifest: Manifest) -> None:
    """Check the sizes of a bundle's files before they are read.

    Raises:
        BundleError: a JSON file is too large, or a table has too many rows for its bytes.
    """
    for name in manifest.files:
        size = (path / name).stat().st_size
        if name.endswith(".json") and size > MAX_JSON_BYTES:
            raise BundleError(name, f"{size:,} bytes", f"at most {MAX_JSON_BYTES:,}", "recloop update --full")
        if name in ("items.parquet", "users.parquet"):
            with readable(path / name):
                rows = pq.read_metadata(path / name).num_rows
            if rows > max(MIN_TABLE_ROWS, MAX_ROWS_PER_BYTE * size):
                raise BundleError(name, f"{rows:,} rows in {size:,} bytes", "distinct ids", "recloop update --full")


WINDOW_SCHEMA: Final = {
    "to_seq": pl.Int64, "user": pl.Float64, "candidate": pl.Float64, "live": pl.Float64, "recipe": pl.String,
}  # fmt: skip
"""Columns of the queries of a gate's windows.

They are the window's last seq, hash("window") of the user, NDCG@10 of candidate' and of live, and candidate's recipe, which
older bundles lack.
"""


def read_window(file: Path) -> pl.DataFrame:
    """Read window.parquet of a bundle.

    Raises:
        BundleError: a column is missing, has another type or has nulls.
    """
    window = pl.read_parquet(file)
    for name, dtype in WINDOW_SCHEMA.items():
        present = window.schema.get(name)
        if (present is None and name != "recipe") or (present is not None and present != dtype):
            raise BundleError(f"{name} of {file.name}", present, f"{dtype}", "recloop update --full")
        if present is not None and window[name].null_count():
            raise BundleError(f"{name} of {file.name}", "null", "no nulls", "recloop update --full")
    return window


def read_table(file: Path, columns: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Read the item or user table: rows numbered from 1 with distinct ids.

    Raises:
        BundleError: a column is missing, has another type or has nulls, or an id repeats.
    """
    table = pl.read_parquet(file, columns=list(columns))
    number, id_name = list(columns)[:2]
    expected = ""
    if any(table.schema[name] != dtype for name, dtype in columns.items()) or sum(table.null_count().row(0)):
        expected = ", ".join(f"{name} {dtype}" for name, dtype in columns.items()) + " without nulls"
    elif table[number].to_list() != list(range(1, len(table) + 1)) or table[id_name].n_unique() != len(table):
        expected = f"{number} from 1 and distinct {id_name}"
    if expected:
        raise BundleError(file.name, f"{len(table):,} rows", expected, "recloop update --full")
    return table


def check_graph(name: str, data: bytes, path: Path, ranker: str = "") -> None:
    """Check the operators of a graph.

    Args:
        ranker: Model of the bundle's ranker; trees are one operator, and no other graph has a domain of its own.

    Raises:
        BundleError: it has external tensors or no readable nodes, or an operator of a domain that it may not use.
    """
    fix = "recloop update --full"
    try:
        has_external = has_external_tensors(data)
        found = operators(data)
    except ValueError as error:
        raise BundleError(name, path, f"an ONNX graph ({error})", fix) from None
    if has_external:
        raise BundleError(name, path, "a graph without external tensors", fix)
    if name == RANKER_GRAPH and ranker != "mlp" and found != {(TREE_DOMAIN, TREE_OPERATOR)}:
        foreign = ", ".join(sorted(f"{domain}.{operator}" for domain, operator in found))
        raise BundleError(name, foreign or "no operator", f"{TREE_DOMAIN}.{TREE_OPERATOR} alone", fix)
    has_trees = any(domain == TREE_DOMAIN for domain, _ in found)
    if has_trees and (name != RANKER_GRAPH or ranker == "mlp"):
        raise BundleError(name, TREE_DOMAIN, "operators of the standard domain", fix)
