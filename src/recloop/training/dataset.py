"""Build the training arrays and the item and user tables from a split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import scipy.sparse as sp

from recloop.features.encode import attribute_codes
from recloop.features.spec import FeatureSpec
from recloop.features.state import offsets_of
from recloop.features.undo import without_undone
from recloop.features.vocabulary import FieldCodes, Vocabulary
from recloop.files import AttributeValues
from recloop.models.base import GuestBaskets, TrainData, ValidationQueries
from recloop.records import (
    DAY,
    ITEM_ID,
    LABEL,
    PAIR,
    SEQ,
    STAMP,
    UNITS,
    USE,
    USER_ID,
    WEIGHT,
    Use,
    are_holdout_users,
    guest_rows,
    max_int,
)
from recloop.training.negatives import negatives

TAIL_DAYS = 90
HEAD_SHARE = 0.2


@dataclass(frozen=True)
class ItemUserTables:
    """Items that a bundle can rank, users, and field codes, all known before the cut."""

    spec: FeatureSpec
    fields: FieldCodes
    items: Vocabulary
    users: Vocabulary
    item_attributes: list[AttributeValues | None]
    user_attributes: list[AttributeValues | None]
    first_seq: np.ndarray  # (N,) int64
    tail: np.ndarray  # (N,) bool
    cut: int


def make_tables(
    spec: FeatureSpec,
    rows: pl.DataFrame,
    cut: int,
    items: pl.DataFrame | None,
    users: pl.DataFrame | None,
    parent: Sequence[str] = (),
    fields: FieldCodes | None = None,
) -> ItemUserTables:
    """Build the item and user tables over the inputs before the cut.

    Targets are inputs too. Guest baskets count for items and are not users. Items are ordered by (first moment stamp, id bytes). ``tail`` marks the items outside the ceil(0.2 N) with
    most positives in the 90 days before the cut, ties by id bytes (docs/definitions/terms.md).

    Args:
        rows: Labelled rows before the cut, including the held-out moments.
        items, users: Versions of the catalog (id, seq, attributes).
        parent: Items of the parent bundle in their order; the table starts with them.
        fields: Codes of the parent, kept unchanged; None: learn them from these rows.
    """
    inputs = _inputs(rows)
    last_seq = max_int(rows[SEQ])
    table = (
        inputs.group_by(ITEM_ID)
        .agg(
            pl.col(STAMP).min(),
            pl.col(SEQ).min(),
            ((pl.col(STAMP) >= cut - TAIL_DAYS * DAY) & (pl.col(USE) == Use.TARGET)).sum().alias("recent"),
        )
        .sort(STAMP, ITEM_ID)
    )
    if parent:
        table = _parent_items_first(parent, table)
    head = table.sort("recent", ITEM_ID, descending=[True, False]).head(int(np.ceil(HEAD_SHARE * len(table))))
    tail = ~table[ITEM_ID].is_in(head[ITEM_ID].implode()).to_numpy()
    item_ids = table[ITEM_ID].to_list()
    of_users = inputs.filter(~guest_rows())
    user_ids = of_users[USER_ID].unique().sort().to_list()
    item_attributes = _newest(items, ITEM_ID, item_ids, last_seq)
    user_attributes = _newest(users, USER_ID, user_ids, last_seq)
    if fields is None:
        stamps = of_users.select(USER_ID, STAMP).unique().sort(USER_ID, STAMP)
        gaps = stamps.select(pl.col(STAMP).diff().over(USER_ID)).to_series().drop_nulls().to_numpy() / DAY
        fields = FieldCodes.fit(spec, item_attributes, user_attributes, gaps)
    return ItemUserTables(
        spec=spec,
        fields=fields,
        items=Vocabulary(item_ids),
        users=Vocabulary(user_ids),
        item_attributes=item_attributes,
        user_attributes=user_attributes,
        first_seq=table[SEQ].to_numpy(),
        tail=tail,
        cut=cut,
    )


def _parent_items_first(parent: Sequence[str], table: pl.DataFrame) -> pl.DataFrame:
    """Order the parent's items first, then new ones; every parent item keeps its row."""
    parent_rows = pl.DataFrame({ITEM_ID: parent}, schema={ITEM_ID: pl.String}).join(
        table, on=ITEM_ID, how="left", maintain_order="left"
    )
    new_rows = table.join(parent_rows, on=ITEM_ID, how="anti", maintain_order="left")
    return pl.concat([parent_rows, new_rows]).with_columns(pl.col(STAMP, SEQ, "recent").fill_null(0))


def train_data(
    tables: ItemUserTables,
    train: pl.DataFrame,
    validation_rows: pl.DataFrame | None,
    served_slots: pl.DataFrame | None = None,
) -> TrainData:
    """Build the flat arrays that every model learns from.

    Args:
        train: Labelled rows to learn from.
        validation_rows: Labelled rows of the validation moments, one moment per user; excluded from all counts.
        served_slots: Slots of the served lists that the rows refer to (`recloop.training.negatives.slots_of`).
    """
    train, validation_rows = _resolve_undos(train, validation_rows)
    all_train = train
    train = _in_tables(tables, train)
    validation_rows = None if validation_rows is None else _in_tables(tables, validation_rows)
    guests = _guest_baskets(tables, all_train.filter(guest_rows()))
    inputs = train.filter(is_input())
    positive = inputs.filter(pl.col(USE) == Use.TARGET)
    rows, items = _rows_by_user(tables, inputs)
    user_ix = rows["user_ix"].to_numpy() - 1
    stamps = rows[STAMP].to_numpy()
    starts_moment = np.ones(len(rows), dtype=bool)
    starts_moment[1:] = (user_ix[1:] != user_ix[:-1]) | (stamps[1:] != stamps[:-1])
    row_moment = np.cumsum(starts_moment) - 1
    counts = np.bincount(positive["item_ix"].to_numpy(), minlength=len(tables.items) + 1)
    if guests is not None:
        counts += guests.counts
    user_codes, user_fields = attribute_codes("user", tables.spec, tables.fields, tables.user_attributes)
    item_codes, item_fields = attribute_codes("item", tables.spec, tables.fields, [None, *tables.item_attributes])
    return TrainData(
        item_ids=list(tables.items.ids),
        user_ids=list(tables.users.ids),
        user_offsets=offsets_of(np.bincount(user_ix[starts_moment], minlength=len(tables.users))),
        moment_offsets=offsets_of(np.bincount(row_moment)),
        stamps=stamps[starts_moment],
        items=items,
        seqs=rows[SEQ].to_numpy(),
        weights=rows[WEIGHT].to_numpy(),
        old=are_holdout_users(tables.users.ids),
        user_codes=user_codes,
        item_codes=item_codes,
        user_fields=user_fields,
        item_fields=item_fields,
        context_fields=[(f"context.{name}", tables.fields.size(f"context.{name}"), 8) for name in tables.spec.context],
        cut=tables.cut,
        counts=counts,
        held=None if validation_rows is None or not len(validation_rows) else _held(tables, validation_rows),
        guests=guests,
        negatives=negatives(tables.items, tables.users, train, served_slots),
        targets=None if rows[USE].all() else rows[USE].to_numpy(),
        extras={"spec": tables.spec, "fields": tables.fields},
    )


def validation_data(
    tables: ItemUserTables, train: pl.DataFrame, valid: pl.DataFrame, served_slots: pl.DataFrame | None, temporal: bool
) -> TrainData:
    """Build the arrays for model selection on the validation moments.

    Under a temporal protocol, only rows before the first validation moment are training rows.

    Args:
        train, valid: Labelled rows before the cut; ``valid`` holds the validation moments, ``train`` all others.
        temporal: False for leave-one-out, which has no common start of validation.
    """
    all_data = train_data(tables, train, valid, served_slots)
    if not temporal or all_data.held is None:
        return all_data
    start = int(all_data.held.now.min())
    early_data = train_data(tables, train.filter(pl.col(STAMP) < start), valid, served_slots)
    return replace(early_data, cut=start, history=all_data)


def is_input() -> pl.Expr:
    """Select the rows that a model reads: targets and input-only rows."""
    return pl.col(USE).is_in([int(Use.TARGET), int(Use.INPUT)])


def _inputs(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the inputs of labelled rows without undone ones."""
    return without_undone(rows).filter(is_input())


def _resolve_undos(
    train: pl.DataFrame, validation_rows: pl.DataFrame | None
) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    """Resolve undos over both frames; a training row may undo a held-out moment."""
    if validation_rows is None or not len(validation_rows):
        return without_undone(train), validation_rows
    columns = [USER_ID, ITEM_ID, STAMP, SEQ, LABEL, WEIGHT]
    columns += [name for name in (USE, PAIR, UNITS) if name in train.columns and name in validation_rows.columns]
    labels = without_undone(pl.concat([train.select(columns), validation_rows.select(columns)])).select(
        SEQ, LABEL, WEIGHT, USE
    )
    unlabelled = [frame.drop(LABEL, WEIGHT, USE, strict=False) for frame in (train, validation_rows)]
    resolved_train, resolved_validation = (
        frame.join(labels, on=SEQ, how="left", maintain_order="left") for frame in unlabelled
    )
    return resolved_train, resolved_validation


def _in_tables(tables: ItemUserTables, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows whose user and item have an index, with both indices.

    Purchases that are returned later have none. The rows have the columns ``user_ix`` and ``item_ix``.
    """
    numbered = rows.with_columns(
        pl.Series("user_ix", tables.users.lookup(rows[USER_ID], len(rows))),
        pl.Series("item_ix", tables.items.lookup(rows[ITEM_ID], len(rows))),
    )
    return numbered.filter((pl.col("user_ix") > 0) & (pl.col("item_ix") > 0))


def _rows_by_user(tables: ItemUserTables, inputs: pl.DataFrame) -> tuple[pl.DataFrame, np.ndarray]:
    """Return one row per user, stamp and item in order of ids, and (n,) item_ix.

    Users of the tables ascend by id. Numbers are sorted in place of ids.
    """
    by_id = pl.Series(tables.items.ids, dtype=pl.String).arg_sort().to_numpy()  # (N,) rows of the table
    rank = np.empty(len(by_id) + 1, dtype=np.int32)
    rank[by_id + 1] = np.arange(len(by_id))
    numbered = inputs.select(
        "user_ix", pl.Series("rank", rank[inputs["item_ix"].to_numpy()]),
        STAMP, SEQ, WEIGHT, (pl.col(USE) == Use.TARGET).alias(USE),
    )  # fmt: skip
    rows = without_repeats(numbered[order_of_rows(numbered)])
    return rows, (by_id[rows["rank"].to_numpy()] + 1).astype(np.int32)


def order_of_rows(numbered: pl.DataFrame) -> np.ndarray:
    """(n,) indices that order rows by ``user_ix``, stamp and ``rank``.

    A log lists the rows of a user by time, so a count of the users sorts them. Other logs are sorted as a whole.
    """
    user, stamp, rank = (numbered[name].to_numpy() for name in ("user_ix", STAMP, "rank"))
    shape = (len(user), int(user.max(initial=0)) + 1)
    by_user = sp.csr_array((np.ones(len(user), bool), user, np.arange(len(user) + 1)), shape).tocsc().indices  # stable
    moved = user[by_user], stamp[by_user]
    same_user = moved[0][1:] == moved[0][:-1]
    if (same_user & (moved[1][1:] < moved[1][:-1])).any():
        return numbered.select(pl.arg_sort_by("user_ix", STAMP, "rank")).to_series().to_numpy()
    moment = np.cumsum(np.append(True, ~same_user | (moved[1][1:] != moved[1][:-1])))[: len(user)]
    order: np.ndarray = by_user[np.argsort(moment * (int(rank.max(initial=0)) + 1) + rank[by_user])]
    return order


def without_repeats(ordered: pl.DataFrame) -> pl.DataFrame:
    """Join the rows of an item in one moment.

    The joined row has the smallest seq and the largest weight, and is a target if one of them is.

    Args:
        ordered: Rows by ``user_ix``, stamp and ``rank``.
    """
    is_first = ordered.select(
        pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in ("user_ix", STAMP, "rank"))
    ).to_series()
    starts = np.flatnonzero(is_first.to_numpy())
    if len(starts) == len(ordered):
        return ordered
    columns = {SEQ: np.minimum, WEIGHT: np.maximum, USE: np.logical_or}
    joined = {name: join.reduceat(ordered[name].to_numpy(), starts) for name, join in columns.items()}
    return ordered.filter(is_first).with_columns(**{name: pl.Series(values) for name, values in joined.items()})


def _guest_baskets(tables: ItemUserTables, rows: pl.DataFrame) -> GuestBaskets | None:
    """Return the guest baskets of labelled rows without undone ones; None without one."""
    items = pl.Series(tables.items.ids, dtype=pl.String).implode()
    inputs = rows.filter(is_input() & pl.col(ITEM_ID).is_in(items))
    if not len(inputs):
        return None
    baskets = (
        inputs.group_by(USER_ID, STAMP, ITEM_ID)
        .agg(((pl.col(USE) == Use.TARGET).sum()).alias("positives"))
        .sort(STAMP, USER_ID, ITEM_ID)
    )
    starts = baskets.select(pl.struct(USER_ID, STAMP).rle_id()).to_series().to_numpy()
    item_ix = tables.items.lookup(baskets[ITEM_ID], len(baskets))
    n_positives = baskets["positives"].to_numpy()
    return GuestBaskets(
        offsets=offsets_of(np.bincount(starts)),
        stamps=baskets[STAMP].to_numpy()[np.flatnonzero(np.diff(starts, prepend=-1))],
        items=item_ix,
        targets=n_positives > 0,
        counts=np.bincount(item_ix, weights=n_positives, minlength=len(tables.items) + 1).astype(np.int64),
    )


def _held(tables: ItemUserTables, rows: pl.DataFrame) -> ValidationQueries:
    moments = (
        rows.filter(pl.col(LABEL) > 0)
        .group_by(USER_ID, STAMP)
        .agg(pl.col(ITEM_ID).unique().sort(), pl.col(SEQ).min())
        .sort(USER_ID, STAMP)
    )
    sizes = moments[ITEM_ID].list.len().to_numpy()
    target_ids = moments[ITEM_ID].explode()
    return ValidationQueries(
        user_ix=tables.users.lookup(moments[USER_ID], len(moments)) - 1,
        now=moments[STAMP].to_numpy(),
        as_of=moments[SEQ].to_numpy() - 1,
        offsets=offsets_of(sizes),
        items=tables.items.lookup(target_ids, len(target_ids)),
    )


def _newest(frame: pl.DataFrame | None, key: str, ids: list[str], max_seq: int) -> list[AttributeValues | None]:
    """Return the attributes of each id's newest version up to a seq; None without one."""
    if frame is None or not len(frame):
        return [None] * len(ids)
    newest = frame.filter(pl.col(SEQ) <= max_seq).sort(SEQ).unique(key, keep="last")
    texts = dict(newest.select(key, "attributes").iter_rows())
    return [json.loads(texts[raw_id]) if raw_id in texts else None for raw_id in ids]
