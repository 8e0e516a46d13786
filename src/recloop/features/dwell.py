"""Dwell percentiles among items of similar duration.

A dwell is the value, in seconds, of an event of type ``dwell``. Ten seconds mean more for a song than for a film, so a
dwell is compared inside its item's *band*: one of ten equal bands of the item attribute ``duration``. An item without a
duration is compared with its own dwells if it has at least 30, else with its ``category``
(docs/definitions/feedback.md). The tables are fitted on the training rows and then frozen, so training, service and
``verify`` agree about each row.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from recloop.files import AttributeValues, JsonTree
from recloop.records import EVENT_TYPE, ITEM_ID, SEQ, VALUE

DWELL: Final = "dwell"
DWELL_PCT: Final = "dwell_pct"
LONG_DWELL_PCT: Final = 0.7
LONG_WEIGHT: Final = 2.0
N_BANDS: Final = 10
MIN_DWELLS: Final = 30  # minimum dwells of a band
MAX_DWELLS: Final = 1000  # maximum dwells stored per band; larger bands store quantiles
CLIP_QUANTILE: Final = 0.99


@dataclass(frozen=True)
class DwellPercentiles:
    """Frozen tables; ``bands`` maps items to bands, ``values`` bands to sorted dwells."""

    bands: dict[str, str]
    values: dict[str, tuple[float, ...]]

    @classmethod
    def fit(cls, events: pl.DataFrame, items: pl.DataFrame | None) -> DwellPercentiles | None:
        """Fit the tables on valid rows before the cut; None without dwells.

        Args:
            events: Rows with item_id, event_type, value.
            items: Versions of items: item_id, seq, attributes (JSON object).
        """
        rows = events.filter((pl.col(EVENT_TYPE) == DWELL) & (pl.col(VALUE) >= 0)).select(ITEM_ID, VALUE)
        if not len(rows):
            return None
        attributes = _attributes(items)
        durations = {item: row["duration"] for item, row in attributes.items() if _is_number(row.get("duration"))}
        known_durations = np.array([durations[item] for item in rows[ITEM_ID] if item in durations], dtype=np.float64)
        edges = np.quantile(known_durations, np.arange(1, N_BANDS) / N_BANDS) if len(known_durations) else np.zeros(0)
        dwell_counts = dict(rows.group_by(ITEM_ID).len().iter_rows())
        bands: dict[str, str] = {}
        for item in sorted({*attributes, *dwell_counts}):
            if item in durations:
                bands[item] = f"duration {int(np.searchsorted(edges, durations[item], side='right'))}"
            elif dwell_counts.get(item, 0) >= MIN_DWELLS:
                bands[item] = f"item {item}"
            elif (category := attributes.get(item, {}).get("category")) is not None:
                bands[item] = f"category {category}"
        band = rows[ITEM_ID].replace_strict(bands, default=None, return_dtype=pl.String)
        grouped = rows.with_columns(band.alias("band")).drop_nulls("band").group_by("band").agg(VALUE)
        values = {
            name: _sample(np.array(dwells)) for name, dwells in sorted(grouped.iter_rows()) if len(dwells) >= MIN_DWELLS
        }
        return cls({item: name for item, name in bands.items() if name in values}, values)

    def share(self, frame: pl.DataFrame) -> pl.Series:
        """(n,) Float64 ``dwell_pct``: mid-rank share in the band.

        It is null without a dwell or a band.
        """
        shares = np.full(len(frame), np.nan)
        values = frame[VALUE].to_numpy()  # null becomes NaN, which is not >= 0
        rows = np.flatnonzero((frame[EVENT_TYPE] == DWELL).fill_null(False).to_numpy() & (values >= 0))
        # one look-up per row: a request has few rows and the table of items is large
        names: dict[str | None, int] = {None: 0}
        row_numbers = [names.setdefault(self.bands.get(item), len(names)) for item in frame[ITEM_ID].gather(rows)]
        order = np.argsort(row_numbers, kind="stable")
        bounds = np.searchsorted(np.array(row_numbers)[order], np.arange(len(names) + 1))
        for name, number in names.items():
            if name is None:
                continue
            band_rows = rows[order[bounds[number] : bounds[number + 1]]]
            band_values = np.array(self.values[name])
            value = np.minimum(values[band_rows], band_values[-1])
            low = np.searchsorted(band_values, value, side="left")
            high = np.searchsorted(band_values, value, side="right")
            shares[band_rows] = (low + high) / (2 * len(band_values))
        return pl.Series(DWELL_PCT, shares).fill_nan(None)

    def to_json(self) -> JsonTree:
        return {"bands": self.bands, "values": {name: list(dwells) for name, dwells in self.values.items()}}

    @classmethod
    def from_json(cls, tree: JsonTree) -> DwellPercentiles:
        return cls(dict(tree["bands"]), {name: tuple(dwells) for name, dwells in tree["values"].items()})


def _sample(values: np.ndarray) -> tuple[float, ...]:
    """At most `MAX_DWELLS` values, ascending, clipped at the 99th percentile."""
    values = np.sort(np.minimum(values, np.quantile(values, CLIP_QUANTILE)))
    if len(values) > MAX_DWELLS:
        values = np.quantile(values, (np.arange(MAX_DWELLS) + 0.5) / MAX_DWELLS)
    return tuple(values.tolist())


def _attributes(items: pl.DataFrame | None) -> dict[str, AttributeValues]:
    if items is None:
        return {}
    newest = items.sort(SEQ).unique(ITEM_ID, keep="last") if SEQ in items.columns else items
    return {item: json.loads(text) for item, text in newest.select(ITEM_ID, "attributes").iter_rows()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
