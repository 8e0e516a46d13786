"""Several categories in one attribute: reading, codes, means and filters."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pytest

from recloop.config import Config, Field
from recloop.data.attributes import attribute_texts
from recloop.errors import UserError
from recloop.features.categories import as_categories, with_categories
from recloop.features.encode import attribute_codes
from recloop.features.spec import FeatureSpec
from recloop.features.vocabulary import CategoriesCodes, FieldCodes, Vocabulary
from recloop.ingest.parse import check_item
from recloop.init.features import choose_fields
from recloop.recommend.catalog import Catalog
from recloop.records import Item

SPELLINGS: list[tuple[Any, str]] = [
    (["Shoes", "Sale"], ""),
    ('["Shoes", "Sale"]', ""),
    ("['Shoes', 'Sale']", ""),
    ("Shoes|Sale", "|"),
    ("Shoes, Sale", ","),
    ("Shoes > Sale", ">"),
]


@pytest.mark.parametrize(("raw", "separator"), SPELLINGS)
def test_as_categories_reads_each_spelling_alike(raw: Any, separator: str) -> None:
    assert as_categories(raw, separator) == ["Shoes", "Sale"]
    fields = {"kinds": Field(kind="categories", source="c", separator=separator)}
    expected = {"c": ["Shoes", "Sale"], "n": 1}
    assert json.loads(attribute_texts([{"id": "i", "c": raw, "n": 1}], "id", fields)[0]) == expected
    item = check_item({"item_id": "i", "attributes": {"c": raw, "n": 1}}, 0, Config().data, fields)
    assert isinstance(item, Item)
    assert item.attributes == expected


@pytest.mark.parametrize("raw", [None, [], "[]", "", " | ", [None, " "]])
def test_as_categories_of_nothing_is_none(raw: Any) -> None:
    assert as_categories(raw, "|") is None
    assert with_categories({"c": raw}, {"c": Field(kind="categories", separator="|")}) == {}


def test_as_categories_keeps_order_drops_repeats_and_bad_lists() -> None:
    assert as_categories("b|a|b", "|") == ["b", "a"]
    assert as_categories("[not a list", "|") == ["[not a list"]
    assert as_categories("[__import__('os')]", "|") == ["[__import__('os')]"], "only literals are read"
    assert as_categories([1, 2.5]) == ["1", "2.5"]


def spec_of() -> FeatureSpec:
    item = {"kinds": {"kind": "categories", "separator": "|", "dim": 4}, "brand": {"dim": 4}}
    return FeatureSpec.from_config(Config.model_validate({"features": {"item": item, "context": []}}))


def test_attribute_codes_pads_categories_and_survives_json() -> None:
    rows = [{"kinds": "a|b|c", "brand": "x"}, {"kinds": ["b"]}, {"kinds": "unseen|c"}, None]
    fields = FieldCodes.fit(spec_of(), [*rows[:2], None], [], np.zeros(0))
    fields = FieldCodes.from_json(json.loads(json.dumps(fields.to_json())))
    codes, described = attribute_codes("item", spec_of(), fields, rows)
    assert codes.tolist() == [[1, 1, 2, 3], [0, 2, 0, 0], [0, 3, 0, 0], [0, 0, 0, 0]]
    assert described == [("item.brand", 2, 4)] + [("item.kinds", 4, 4)] * 3


def test_categories_codes_encode_the_first_known_values() -> None:
    codes = CategoriesCodes(("a", "b", "c"), 2)
    assert codes.codes([["x", "c", "b", "a"], None]).tolist() == [[3, 2], [0, 0]]
    assert codes.codes([]).shape == (0, 2)


def test_field_embedding_of_categories_is_their_mean() -> None:
    torch = pytest.importorskip("torch")
    from recloop.models.layers import FieldEmbedding

    fields = [("item.brand", 3, 2), ("item.kinds", 4, 2), ("item.kinds", 4, 2)]
    layer = FieldEmbedding(fields, 5)
    assert len(layer.tables) == 2
    brand, kinds = (project(table.weight) for table, project in zip(layer.tables, layer.projections, strict=True))
    out = layer(torch.tensor([[1, 2, 3], [0, 1, 0], [2, 0, 0]]))
    expected = torch.stack([brand[1] + (kinds[2] + kinds[3]) / 2, brand[0] + kinds[1], brand[2] + kinds[0]])
    assert torch.allclose(out, expected, atol=1e-6)
    assert layer(torch.zeros(2, 4, 3, dtype=torch.int64)).shape == (2, 4, 5)


@pytest.mark.parametrize(
    ("condition", "ids"),
    [
        ("kinds = 'a'", ["1", "2"]),
        ("kinds IN ('c', 'b')", ["1", "3"]),
        ("kinds <> 'a'", ["3"]),
        ("NOT kinds = 'a' AND n >= 3", ["3"]),
        ("kinds IS NULL", ["4"]),
        ("kinds LIKE '%b%'", ["1"]),
        ("item_id = '4' OR kinds = '7'", ["3", "4"]),
        ("kinds = 7", ["3"]),
        ("'a' = kinds", ["1", "2"]),
    ],
)
def test_filter_of_categories_matches_any(condition: str, ids: list[str]) -> None:
    values: list[Any] = [["a", "b"], "a", ["c", 7], []]
    attributes = [json.dumps({"kinds": value, "n": n}) for n, value in enumerate(values, 1)]
    frame = pl.DataFrame({"item_id": ["1", "2", "3", "4"], "seq": [1, 2, 3, 4], "attributes": attributes})
    catalog = Catalog.from_frames([frame.with_columns(hidden=pl.lit(False), deleted=pl.lit(False))])
    catalog.check(condition, "filter")
    vocabulary = Vocabulary(frame["item_id"].to_list())
    assert [vocabulary.ids[ix - 1] for ix in np.flatnonzero(catalog.mask(condition, vocabulary).mask)] == ids
    for wrong in ("kinds > 'a'", "kinds BETWEEN 'a' AND 'b'", "kinds = item_id", "kinds + 1 = 2"):
        with pytest.raises(UserError):
            catalog.check(wrong, "filter")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["Shoes|Men", "Shoes|Women|Sale", "Hats"], ("categories", "|")),
        (["Shoes, Men", "Shoes, Women, Sale", "Hats"], ("categories", ",")),
        (["Shoes > Men", "Shoes > Women > Sale", "Hats"], ("categories", " > ")),
        (['["Shoes"]', '["Shoes", "Sale"]', "[]"], ("categories", "")),
        ([["Shoes"], ["Shoes", "Sale"], []], ("categories", "")),
        (["Shoes", "Hats", "Sale"], ("category", None)),
        (["Red, the first of its kind in town", "Blue, that one of our own shop", "Green"], ("category", None)),
    ],
)
def test_choose_fields_proposes_categories_with_their_separator(values: list[Any], expected: tuple[str, Any]) -> None:
    from recloop.data.frames import frame_as_table

    rows = [{"id": f"i{n}", "kinds": values[n % len(values)]} for n in range(30)]
    table = frame_as_table(pl.DataFrame({"id": [row["id"] for row in rows], "kinds": [""] * 30}), "items.csv")
    field = choose_fields((table, rows), "id", set())["kinds"]
    assert (field["kind"], field.get("separator")) == expected
