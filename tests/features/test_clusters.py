"""Codes of texts and vectors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from recloop.config import Field
from recloop.features.clusters import Clusters, TextCodes, VectorCodes, as_vector, hashed
from recloop.features.vocabulary import CategoriesCodes, FieldCodes, values_of

FRUIT = [f"ripe {colour} apples and pears number {n}" for n in range(20) for colour in ("red", "green")]
TOOLS = [f"steel hammer with wooden handle size {n}" for n in range(40)]


def same_codes(codes: Any, raws: list[Any]) -> None:
    """A row does not depend on its batch, and codes survive the JSON of a bundle."""
    together = codes.codes(raws)
    assert together.shape == (len(raws), codes.columns)
    assert together.min() >= 0
    assert together.max() < codes.size
    for row, raw in enumerate(raws):
        assert np.array_equal(codes.codes([raw])[0], together[row])
    stored = FieldCodes.from_json(json.loads(json.dumps(FieldCodes({"item.f": codes}).to_json())))
    assert np.array_equal(stored.codes["item.f"].codes(raws), together)
    assert (stored.columns("item.f"), stored.size("item.f")) == (codes.columns, codes.size)


def test_texts_of_one_topic_share_clusters_that_others_lack() -> None:
    codes = TextCodes.fit([*FRUIT, *TOOLS])
    fruit, tools = (set(codes.codes(texts)[:, 0].tolist()) for texts in (FRUIT, TOOLS))
    assert 0 not in fruit | tools
    assert not fruit & tools
    assert codes.codes(["a big RED apple"])[0, 0] in fruit
    assert codes.codes(["hammers"])[0, 0] in tools  # by n-grams of its characters
    same_codes(codes, ["a big RED apple", None, "hammers", ""])


@pytest.mark.parametrize("raws", [[], [None, None], [""], ["!!!", " "]])
def test_text_without_any_word_has_no_cluster(raws: list[Any]) -> None:
    codes = TextCodes.fit(raws)
    assert codes.codes(["apple", None, ""]).tolist() == [[0], [0], [0]]
    same_codes(codes, ["apple", None])


def test_text_of_ten_megabytes_reads_its_first_characters() -> None:
    codes = TextCodes.fit([*FRUIT, *TOOLS, "word " * 2_000_000])
    start = "steel hammer " * 400
    assert np.array_equal(codes.codes([start + "apple " * 1_700_000]), codes.codes([start]))
    assert sum(hashed("ab " * 5_000_000).values()) < 10_000


def test_text_of_other_types_is_read_as_its_json() -> None:
    codes = TextCodes.fit([12345, True, {"a": "apple"}, ["pear"], "apple"])
    assert codes.codes([12345]).any()
    same_codes(codes, [12345, 1.5, True, {"a": "apple"}, "\ud800 lone surrogate"])


def test_one_text_has_one_cluster() -> None:
    codes = TextCodes.fit(["green tea"] * 5)
    assert (codes.size, codes.columns) == (2, 1)
    assert codes.codes(["green tea", "xylophone"]).tolist()[0] == [1]
    same_codes(codes, ["green tea"])


def test_vectors_of_one_direction_share_a_cluster() -> None:
    random = np.random.default_rng(0)
    ends = np.eye(3)
    vectors = [(end + random.normal(scale=0.01, size=3)).tolist() for end in ends for _ in range(30)]
    codes = VectorCodes.fit(vectors)
    assert codes.length == 3
    groups = [set(codes.codes(vectors[start : start + 30])[:, 0].tolist()) for start in (0, 30, 60)]
    assert not groups[0] & groups[1]
    assert not groups[1] & groups[2]
    assert codes.codes([[100.0, 0, 0]])[0, 0] in groups[0]
    same_codes(codes, [vectors[0], None, [0, 5, 0]])


@pytest.mark.parametrize(
    "raw",
    [
        None, "", "[]", [], [1.0], [1.0, 2.0, 3.0], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], ["x", 1], [True, 1],
        [[1.0], [2.0]], {"a": 1}, 5, "not numbers", "1;2", "[" * 100_000,
    ],
)  # fmt: skip
def test_vector_that_cannot_be_used_is_missing(raw: Any) -> None:
    codes = VectorCodes.fit([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 2.0, 3.0], raw])
    assert codes.length == 2
    assert not codes.codes([raw]).any()
    assert codes.codes([[3.0, 0.0]]).any()
    assert codes.codes([[1e308, 1e308], [1e-320, 0.0]]).all()


def test_bundle_without_a_usable_vector_codes_all_as_missing() -> None:
    codes = VectorCodes.fit([None, [0.0, 0.0], [float("nan")]])
    assert not codes.codes([[0.0, 0.0], [1.0], None, [1.0, 2.0]]).any()
    same_codes(codes, [None, [0.0, 0.0]])


def test_vectors_are_read_from_lists_and_texts() -> None:
    assert as_vector([1, 2.5, "3"]) == [1.0, 2.5, 3.0]
    assert as_vector("[1, 2.5]") == as_vector("1;2.5", ";") == as_vector("1 2.5") == [1.0, 2.5]
    field = Field(kind="vector", source="embedding", separator="|")
    assert values_of("f", field, [{"embedding": "1|2"}, {}, None]) == [[1.0, 2.0], None, None]


def test_clusters_of_equal_points_are_one() -> None:
    points = np.tile(np.array([[0.6, 0.8]], dtype=np.float32), (50, 1))
    clusters = Clusters.fit(points)
    assert (len(clusters.centres), clusters.columns) == (1, 1)
    assert clusters.nearest([points[0], None]).tolist() == [[1], [0]]


def test_category_list_of_ten_thousand_keeps_the_known_ones() -> None:
    values = [f"c{n}" for n in range(10_000)]
    codes = CategoriesCodes(("c1", "c9999"), 2)
    assert codes.codes([values, [*values, *values]]).tolist() == [[1, 2], [1, 2]]
