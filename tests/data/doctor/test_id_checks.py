"""Items that are not products, words for a missing user, and joins with a table."""

from __future__ import annotations

import polars as pl
import pytest

from recloop.data.doctor.id_checks import JoinShare, join_share, missing_words, non_products, spreadsheet_ids


def orders(*charges: str, n_items: int = 40) -> pl.DataFrame:
    """200 baskets of three goods with five digits; every second one also has each of the charges."""
    rows = []
    for basket in range(200):
        goods = [f"{22000 + (basket * k) % n_items}" for k in (1, 3, 7)]
        rows += [
            {
                "user_id": f"u{basket % 50}",
                "item_id": item,
                "group_id": f"b{basket}",
                "value": int.from_bytes(item.encode()) % 97,
            }
            for item in [*goods, *(charges if basket % 2 else ())]
        ]
    return pl.DataFrame(rows)


@pytest.mark.parametrize("item_id", ["POST", "M", "DOT", "BANK CHARGES", "PADS", "C2", "0", "shipping_10"])
def test_non_products_with_an_id_of_another_form_proposes_it(item_id: str) -> None:
    (found,) = non_products(orders(item_id))
    assert (found.item_id, found.rows, found.share, found.proposed) == (item_id, 100, 0.5, True)


def test_non_products_with_an_id_of_the_catalog_are_empty() -> None:
    assert non_products(orders("NULL"), catalog=["NULL"])[0].proposed is False  # only its baskets speak
    assert non_products(orders("C2"), catalog=["C2"])[0].reasons == ("in far more baskets than the next item",)


def test_non_products_of_article_numbers_alone_are_empty() -> None:
    assert non_products(orders()) == ()
    assert non_products(orders("22001")) != ()  # half of the baskets have it
    assert not non_products(orders("22001"))[0].proposed
    prefixed = orders().with_columns(item_id="SW" + pl.col("item_id"))
    assert non_products(prefixed) == ()


def test_non_products_of_names_and_counted_ids_are_not_proposed() -> None:
    slugs = orders("blue-vase").with_columns(item_id="large-" + pl.col("item_id"))
    assert not any(found.proposed for found in non_products(slugs))
    counted = orders().with_columns((pl.col("item_id").cast(pl.Int64) - 22000).cast(pl.String))
    assert "0" in counted["item_id"]
    assert "1" in counted["item_id"]
    assert non_products(counted) == ()


def test_non_products_with_letters_of_a_family_of_codes_are_empty() -> None:
    assert [found.item_id for found in non_products(orders("DCGSSGIRL"))] == ["DCGSSGIRL"]
    family = pl.concat([orders("DCGSSGIRL"), orders("DCGS0003")])
    assert non_products(family) == ()


def test_non_products_with_a_negative_price_proposes_it() -> None:
    log = orders("22999").with_columns(
        value=pl.when(pl.col("item_id") == "22999").then(-2.0).otherwise(pl.col("value"))
    )
    (found,) = non_products(log)
    assert found.proposed
    assert "its price is below 0" in found.reason


def test_missing_words_counts_each_word_and_keeps_known_ids() -> None:
    ids = pl.Series(["NA"] * 3 + ["guest", None, "u1", "u2", "null"])
    assert missing_words(ids) == {"NA": 3, "guest": 1, "null": 1}
    assert missing_words(ids, known=["null"]) == {"NA": 3, "guest": 1}


def test_missing_words_takes_0_only_if_it_dominates() -> None:
    assert missing_words(pl.Series(["0"] * 9 + ["7"] * 3)) == {"0": 9}
    assert missing_words(pl.Series(["0"] * 5 + ["7"] * 3)) == {}


@pytest.mark.parametrize(
    ("log", "table", "form"),
    [
        (["1001.0", "1002.0"], ["1001", "1002"], "integer"),
        (["1001", "7"], ["01001", "00007"], "zeros:5"),
        ([" a", "b "], ["a", "b"], "strip"),
        (["SKU-A", "SKU-B"], ["sku-a", "sku-b"], "casefold"),
    ],
)
def test_join_share_names_the_form_that_joins(log: list[str], table: list[str], form: str) -> None:
    found = join_share(pl.Series(log), pl.Series(table))
    assert (found.share, found.ids, found.best) == (0.0, 2, form)
    assert found.forms[form] == 1.0


def test_join_share_of_joined_or_foreign_ids_names_no_form() -> None:
    ids = pl.Series(["a", "b", None])
    assert join_share(ids, pl.Series(["b", "a", "c"])) == JoinShare(1.0, 2)
    assert join_share(ids, pl.Series(["a", "x"])).share == 0.5
    assert join_share(ids, pl.Series(["x", "y"])).best == ""
    assert join_share(pl.Series([], dtype=pl.String), ids) == JoinShare(1.0, 0)


def test_spreadsheet_ids_counts_scientific_notation() -> None:
    ids = pl.Series(["1.23457E+12", "1.23457E+12", "4,00638E+12", "4006381330032", "E12"])
    assert spreadsheet_ids(ids) == {"1.23457E+12": 2, "4,00638E+12": 1}
