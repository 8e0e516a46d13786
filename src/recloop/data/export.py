"""Exports of the split for training elsewhere and of the log as a new project.

The exported log keeps the order of arrival and the settings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import polars as pl

from recloop.config import Columns, Config, Data
from recloop.data.clean import file_id
from recloop.data.prepare import PreparedData, load
from recloop.data.staging import SPLITS
from recloop.errors import UserError
from recloop.files import replace_file
from recloop.project import Project
from recloop.records import (
    EVENT_ID,
    EVENT_SCHEMA,
    EVENT_TYPE,
    GROUP_ID,
    ITEM_ID,
    LABEL,
    MOMENT,
    QUANTITY,
    RECEIVED_AT,
    RULE,
    SEQ,
    STAMP,
    TIMESTAMP,
    USE,
    USER_ID,
    VALUE,
    WEIGHT,
    guest_rows,
)
from recloop.settings import dump
from recloop.storage.retractions import retracted_at

SPLIT_COLUMNS: Final = (
    SEQ,
    USER_ID,
    ITEM_ID,
    TIMESTAMP,
    STAMP,
    MOMENT,
    EVENT_TYPE,
    VALUE,
    QUANTITY,
    LABEL,
    WEIGHT,
    USE,
)
LOG_COLUMNS: Final = tuple(name for name in EVENT_SCHEMA if name not in {SEQ, RECEIVED_AT})
MAPPED: Final = (EVENT_TYPE, VALUE, QUANTITY, GROUP_ID, EVENT_ID, "anonymous_id")
"""Optional columns of the log that an import reads."""

SplitFormat = Literal["parquet", "hdf5"]
LogFormat = Literal["jsonl", "parquet"]


@dataclass(frozen=True)
class Exported:
    """Written files, and rows by table, as in ``recloop export --json``."""

    files: tuple[Path, ...]
    rows: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        return {"files": [str(file) for file in self.files], "rows": dict(self.rows)}


def export(project: Project, what: str, form: str, folder: Path) -> Exported:
    """Export the split or the log of a project.

    Args:
        what: ``split`` or ``log``.
        form: ``parquet``, ``hdf5`` (split) or ``jsonl`` (log).
        folder: The new folder to write.

    Raises:
        UserError: as `export_split` and `export_log`, or ``what`` or ``form`` is unknown.
    """
    if what == "split" and form in {"parquet", "hdf5"}:
        return export_split(project, folder, "hdf5" if form == "hdf5" else "parquet")
    if what == "log" and form in {"jsonl", "parquet"}:
        return export_log(project, folder, "jsonl" if form == "jsonl" else "parquet")
    if what not in {"split", "log"}:
        raise UserError("export", what, "split or log", "recloop export split")
    forms = "parquet or hdf5" if what == "split" else "jsonl or parquet"
    raise UserError("--format", form, f"{forms} for the {what}", f"recloop export {what} --format parquet")


def export_split(project: Project, folder: Path, form: SplitFormat) -> Exported:
    """Write train, validation and test with dense indices of users and items.

    ``user_ix`` and ``item_ix`` count from 1 over the ids before the cut, by id; 0: a new id, or a guest basket.

    Raises:
        UserError: ``data/`` does not exist, the folder is not empty, or h5py is missing.
    """
    tables = split_tables(load(project))
    if form == "hdf5":
        write = _hdf5_writer()
        folder = _new_folder(folder)
        files = [folder / "split.h5"]
        write(files[0], tables)
    else:
        folder = _new_folder(folder)
        files = [folder / f"{name}.parquet" for name in tables]
        for file, frame in zip(files, tables.values(), strict=True):
            frame.write_parquet(file)
    return Exported(tuple(files), {name: len(frame) for name, frame in tables.items()})


def split_tables(data: PreparedData) -> dict[str, pl.DataFrame]:
    """Frames of the three splits and of the ids, by name."""
    past = pl.concat([data.train, data.valid])
    users = past.filter(~guest_rows())[USER_ID].unique().sort()
    items = past[ITEM_ID].unique().sort()
    ids = {
        name: pl.DataFrame({key: column, ix: np.arange(1, len(column) + 1, dtype=np.int32)})
        for name, key, ix, column in (("users", USER_ID, "user_ix", users), ("items", ITEM_ID, "item_ix", items))
    }
    splits = {}
    for name, frame in zip(SPLITS, (data.train, data.valid, data.test), strict=True):
        rows = frame.select(SPLIT_COLUMNS)
        for key, table in ((USER_ID, ids["users"]), (ITEM_ID, ids["items"])):
            rows = rows.join(table, on=key, how="left", maintain_order="left")
        splits[name] = rows.with_columns(pl.col("user_ix", "item_ix").fill_null(0))
    return splits | ids


def export_log(project: Project, folder: Path, form: LogFormat) -> Exported:
    """Write the valid rows as a new project: events, items, users and recloop.toml.

    Rows keep their order of arrival; quarantined and retracted rows are left out, as are the flags of hidden items.

    Raises:
        UserError: ``data/`` does not exist, or the folder is not empty.
    """
    data = load(project)
    events = _valid_events(project)
    folder = _new_folder(folder)
    tables = {"events": events}
    for name, key, frame in (("items", ITEM_ID, data.items), ("users", USER_ID, data.users)):
        versions = _newest(project, name, key, frame)
        if len(versions):
            tables[name] = versions
    files = []
    for name, frame in tables.items():
        if name == "events" and form == "parquet":
            files.append(folder / f"{name}.parquet")
            frame.write_parquet(files[-1])
        else:  # attributes differ from row to row, so they are JSON lines in both forms
            files.append(folder / f"{name}.jsonl")
            replace_file(files[-1], _lines(frame))
    settings = folder / "recloop.toml"
    replace_file(settings, dump(_new_config(project, tables, form)).encode())
    return Exported((*files, settings), {name: len(frame) for name, frame in tables.items()})


def _valid_events(project: Project) -> pl.DataFrame:
    """Valid rows of archive and log in order of arrival.

    Empty columns are left out.
    """
    archive = project.open_archive()
    log = project.open_log()
    posted = log.events(after=archive.watermark).filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)
    retracted = sorted(retracted_at(log.retractions()))
    log.close()
    rows = pl.concat([archive.events().select(*EVENT_SCHEMA), posted]).sort(SEQ)
    rows = rows.filter(~pl.col(SEQ).is_in(pl.Series(retracted, dtype=pl.Int64).implode()))
    rows = rows.with_columns(file_id(EVENT_ID)).select(LOG_COLUMNS)
    return rows.select(name for name in LOG_COLUMNS if rows[name].null_count() < len(rows))


def _newest(project: Project, name: str, key: str, archived: pl.DataFrame | None) -> pl.DataFrame:
    """Newest version of each id as columns: the id and ``attributes``, a JSON object."""
    log = project.open_log()
    after = project.open_archive().watermark
    logged = log.items(after) if name == "items" else log.users(after)
    log.close()
    columns = [key, SEQ, "attributes", "deleted"]
    frames = [frame.select(columns) for frame in (archived, logged) if frame is not None]
    rows = pl.concat(frames).sort(SEQ).unique(key, keep="last", maintain_order=True)
    return rows.filter(~pl.col("deleted")).select(key, "attributes")


def _new_config(project: Project, tables: Mapping[str, pl.DataFrame], form: str) -> Config:
    """Configuration of the new project: the same settings, our column names."""
    config = project.config
    present = tables["events"].columns
    data = Data(
        events=f"events.{form}",
        items="items.jsonl" if "items" in tables else "",
        users="users.jsonl" if "users" in tables else "",
        time_unit="us",
        timezone=config.data.timezone,
        guests=config.data.guests,
        columns=Columns(**{name: name for name in MAPPED if name in present}, name=config.data.columns.name),
    )
    return config.model_copy(update={"data": data})


def _lines(frame: pl.DataFrame) -> bytes:
    """JSON lines of a frame; an attributes column becomes fields of the row."""
    if "attributes" not in frame.columns:
        return frame.write_ndjson().encode()
    key = frame.columns[0]
    rows = ({key: raw_id, **json.loads(text)} for raw_id, text in frame.iter_rows())
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def _new_folder(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("--out", folder, "a new or empty folder", "--out another-folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _hdf5_writer() -> Callable[[Path, Mapping[str, pl.DataFrame]], None]:
    try:
        import h5py
    except ImportError:
        raise UserError("--format", "hdf5", "the package h5py", 'pip install "recloop[hdf5]"') from None

    def write(file: Path, tables: Mapping[str, pl.DataFrame]) -> None:
        with h5py.File(file, "w") as store:
            for name, frame in tables.items():
                group = store.create_group(name)
                for column in frame.iter_columns():
                    if column.dtype == pl.String:
                        texts: Sequence[str] = column.fill_null("").to_list()
                        group.create_dataset(column.name, data=texts, dtype=h5py.string_dtype("utf-8"))
                    else:
                        group.create_dataset(column.name, data=column.to_numpy(), compression="gzip")

    return write
