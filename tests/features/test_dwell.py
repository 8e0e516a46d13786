"""Dwell percentiles by hand: bands of duration, of the item, of the category, and none."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest

from recloop.config import Clean, Config, Events
from recloop.errors import UserError
from recloop.features.dwell import MAX_DWELLS, DwellPercentiles
from recloop.features.labels import EventLabeler
from recloop.features.spec import FeatureSpec
from recloop.records import EVENT_SCHEMA
from recloop.settings import build


def dwells(item: str, values: list[float | None], kind: str = "dwell") -> list[dict[str, Any]]:
    return [{"user_id": "u", "item_id": item, "timestamp": 0, "event_type": kind, "value": value} for value in values]


def frame(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=EVENT_SCHEMA)


def catalogue(**attributes: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame({"item_id": list(attributes), "attributes": [json.dumps(row) for row in attributes.values()]})


def fitted() -> DwellPercentiles:
    """Bands of duration, of the item (``own``) and of the category (``few``)."""
    found = DwellPercentiles.fit(
        frame(
            *dwells("short", [float(n) for n in range(1, 41)]),
            *dwells("long", [float(10 * n) for n in range(1, 41)]),
            *dwells("own", [5.0] * 15 + [9.0] * 15),
            *dwells("few", [1.0, 2.0]),
            *dwells("peer", [float(n) for n in range(28)]),
        ),
        catalogue(short={"duration": 60}, long={"duration": 600}, few={"category": "tea"}, peer={"category": "tea"}),
    )
    assert found is not None
    return found


def test_dwell_share_is_the_mid_rank_in_its_duration_band() -> None:
    shares = fitted().share(frame(*dwells("short", [20.0, 0.0, 1e9]), *dwells("long", [20.0])))
    # 20 s: 19 below, one equal, of 40. Values above the clip equal the clip.
    assert shares.to_list() == [19.5 / 40, 0.0, 39.5 / 40, 1.5 / 40]


def test_dwell_band_without_duration_is_the_item_from_30_dwells_else_category() -> None:
    found = fitted()
    assert found.bands["own"] == "item own"
    assert found.bands["few"] == found.bands["peer"] == "category tea"
    assert found.share(frame(*dwells("own", [5.0, 7.0, 9.0]))).to_list() == [7.5 / 30, 15 / 30, 22.5 / 30]
    assert found.share(frame(*dwells("few", [27.0]))).to_list() == [pytest.approx(1 - 0.5 / 30)]


def test_dwell_share_without_dwell_or_band_is_null() -> None:
    rows = frame(*dwells("short", [20.0], "click"), *dwells("unheard", [20.0]), *dwells("short", [None, -1.0]))
    assert fitted().share(rows).to_list() == [None] * 4
    assert DwellPercentiles.fit(frame(*dwells("short", [20.0], "click")), None) is None


def test_dwell_label_of_a_long_dwell_is_positive_with_weight_2() -> None:
    labelled = EventLabeler(Events(), Clean(), fitted()).label(frame(*dwells("short", [1.0, 28.0, 29.0, 40.0])))
    assert labelled["label"].to_list() == [0, 0, 1, 1]  # 28 s: 27.5 / 40 = 0.6875; 29 s: 0.7125
    assert labelled["weight"].to_list() == [0.0, 0.0, 2.0, 2.0]
    assert "dwell_pct" not in labelled.columns


def test_dwell_rule_of_the_config_replaces_the_default() -> None:
    events = Events(weights={"dwell_pct >= 0.9": 3.0}, positive=("purchase",))
    labelled = EventLabeler(events, Clean(), fitted()).label(frame(*dwells("short", [30.0, 39.0])))
    assert labelled["weight"].to_list() == [0.0, 3.0]
    assert (
        EventLabeler(Events(neutral=("dwell",)), Clean(), fitted()).label(frame(*dwells("short", [40.0])))["label"][0]
        == 0
    )


def test_dwell_rule_with_a_negative_label_is_refused() -> None:
    for events in (Events(weights={"dwell_pct < 0.1": -1.0}), Events(negative=("dwell",))):
        with pytest.raises(UserError, match="because a dwell is never negative"):
            EventLabeler(events, Clean())
    labelled = EventLabeler(Events(weights={"value < 3": -1.0}), Clean(), fitted()).label(
        frame(*dwells("short", [1.0]), *dwells("short", [1.0], "rating"))
    )
    assert labelled["label"].to_list() == [0, -1]


def test_dwell_percentiles_are_part_of_the_spec() -> None:
    found = fitted()
    spec = FeatureSpec.from_config(Config(), found)
    assert FeatureSpec.from_json(json.loads(json.dumps(spec.to_json(), sort_keys=True))) == spec
    assert spec.state_key != FeatureSpec.from_config(Config()).state_key
    assert FeatureSpec.from_config(build({}, environment={})).to_json().get("dwell") is None


def test_dwell_percentiles_of_many_dwells_are_stored_as_quantiles() -> None:
    found = DwellPercentiles.fit(frame(*dwells("a", [float(n) for n in range(5000)])), None)
    assert found is not None
    assert len(found.values["item a"]) == MAX_DWELLS
    assert found.share(frame(*dwells("a", [2500.0]))).to_list() == [pytest.approx(0.5, abs=0.002)]
