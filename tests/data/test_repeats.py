"""Share of repeats by hand."""

from __future__ import annotations

import polars as pl
import pytest

from recloop.data.repeats import repeat_share


@pytest.mark.parametrize(
    ("rows", "share"),
    [
        ([], 0.0),
        ([("u", "i", "cart"), ("u", "i", "purchase")], 0.0),  # one act
        ([("u", "i", "cart"), ("u", "i", "purchase"), ("u", "i", "cart"), ("u", "i", "purchase")], 0.5),
        ([("u", "i", "cart"), ("u", "i", "cart"), ("u", "i", "purchase")], 0.5),
        ([("u", "i", "buy"), ("u", "j", "buy"), ("v", "i", "buy"), ("v", "i", "buy")], 0.25),
        ([("u", "i", "buy"), ("guest:b", "i", "buy"), ("guest:b", "i", "buy")], 0.0),
    ],
)
def test_repeat_share_counts_a_cart_and_its_purchase_once(rows: list[tuple[str, str, str]], share: float) -> None:
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "event_type"], orient="row", schema_overrides={
        "user_id": pl.String, "item_id": pl.String, "event_type": pl.String,
    }).with_columns(label=1)  # fmt: skip
    assert repeat_share(frame) == pytest.approx(share)
    assert repeat_share(frame.with_columns(label=0)) == 0.0
