"""Ids of the caller: scalars, arrays and types in and out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import recloop
from recloop.api.ids import IdType, checked_n, listed
from recloop.errors import UserError

INT_LOG = {
    "user_id": [1, 1, 2, 2, 3, 3, 1, 2] * 3,
    "item_id": [10, 20, 10, 30, 20, 30, 30, 20] * 3,
    "timestamp": [1_700_000_000 + 3600 * hour for hour in range(24)],
}


def fitted(frame: Any) -> recloop.FittedRecommender:
    return recloop.fit(frame, model="popular", config={"clean": {"burst": "off"}})


@pytest.mark.parametrize(
    "users", ["7", 7, 7.0, np.int32(7), ["7"], (7,), np.array([7]), pd.Series([7]), pl.Series([7]), pa.array([7]), {7}]
)
def test_id_argument_of_any_kind_is_read(users: Any) -> None:
    assert IdType(pl.Int64()).texts(users, "users") == ["7"]


@pytest.mark.parametrize("users", [None, [None], [float("nan")], [""], [1.5], [True]])
def test_id_argument_without_an_id_is_refused(users: Any) -> None:
    with pytest.raises(UserError, match=r"users=.*expected an id: a text or a whole number"):
        IdType(pl.Int64()).texts(users, "users")


def test_frame_in_place_of_ids_is_refused() -> None:
    with pytest.raises(UserError, match=r'expected ids, not a frame; try: users=frame\["user_id"\]'):
        IdType(pl.String()).texts(pd.DataFrame({"user_id": ["a"]}), "users")


def test_texts_that_are_not_numbers_of_the_log_stay_texts() -> None:
    whole = IdType(pl.Int32())
    assert whole.column(pl.Series(["1", "2"])).dtype == pl.Int32
    for texts in (["1", "new"], ["1", "007"]):
        assert whole.column(pl.Series(texts)).to_list() == texts


def test_id_type_of_floats_is_integer_and_of_zero_filled_ids_is_text() -> None:
    assert IdType.of(pl.Series([1.0, None])).dtype == pl.Int64
    assert IdType.of(pl.Series([1, 2]), "zeros:4") == IdType(pl.String(), "zeros:4")
    assert IdType(pl.String(), "zeros:4").texts(12, "items") == ["0012"]


@pytest.mark.parametrize("n", [0, -1, 1001, 2.5, 10.0, "10", True, None])
def test_list_length_that_is_not_a_whole_number_in_range_is_refused(n: Any) -> None:
    with pytest.raises(UserError, match=r"n=.*a whole number from 1 to 1000"):
        checked_n(n)
    assert checked_n(np.int64(3)) == 3


def test_listed_names_five_ids_and_counts_the_rest() -> None:
    assert listed("abcdefg") == "a, b, c, d, e and 2 more"


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow"])
def test_integer_ids_come_back_as_integers(kind: str) -> None:
    frame: Any = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.table}[kind](INT_LOG)
    rec = fitted(frame)
    for table in (
        rec.recommend([1, 2], n=2),
        rec.recommend(1, n=2),
        rec.similar_items(10, n=2),
        rec.score(1, [10, 20]),
    ):
        result = pl.DataFrame(table)
        assert {result.schema[name] for name in result.columns if name.endswith("_id")} == {pl.Int64}
    assert pl.DataFrame(rec.recommend(1, n=2))["user_id"].to_list() == [1, 1]


def test_integer_type_survives_save_and_load(tmp_path: Any) -> None:
    rec = fitted(pl.DataFrame(INT_LOG, schema_overrides={"user_id": pl.UInt32}))
    loaded = recloop.load(rec.save(tmp_path / "bundle"))
    assert loaded.recommend(1, n=2).schema == rec.recommend(1, n=2).schema
    assert loaded.recommend(1, n=2).schema["user_id"] == pl.UInt32


def test_float_ids_of_pandas_with_gaps_are_whole_numbers() -> None:
    frame = pd.DataFrame(INT_LOG).astype({"user_id": float})
    frame.loc[0, "user_id"] = None
    with pytest.warns(UserWarning, match="1 rejected: no user_id"):
        rec = recloop.fit(frame, model="popular")
    assert rec.recommend([1.0, 2], n=1)["user_id"].tolist() == [1, 2]
