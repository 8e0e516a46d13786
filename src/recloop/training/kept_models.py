"""Models that an update keeps while little has changed since their fit.

EASE, ItemKNN and MF are fitted on all rows, so one new row costs as much as a thousand. An update keeps their arrays until
the rows have changed by ``update.refit_share`` or `PERIOD_DAYS` have passed. Both its candidate and its final child follow
this rule: a fit is made once, on the candidate's rows, and the gate judges it.

An item that is newer than the fit has no neighbours and the vector 0. Other sources recommend it until the next fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from recloop.bundle import Bundle, array_name
from recloop.models.base import SOURCE_OF, TrainData, is_closed_form
from recloop.policy import ScorerSpec
from recloop.records import DAY

PERIOD_DAYS: Final = 28
"""Days after which a model is fitted again, however few the new rows are."""
BASELINE_SOURCES: Final = frozenset(SOURCE_OF.values())
"""Sources that every update fits; a model that replaces one of them is fitted with it."""
ARRAYS: Final = {
    "neighbours": ("neighbours.indptr", "neighbours.ids", "neighbours.weights"),
    "vectors": ("item_vectors", "user_vectors"),
}
"""Arrays of a model by its kind."""


def with_fit(spec: ScorerSpec, data: TrainData) -> ScorerSpec:
    """Record the rows of a fit; a baseline has no record."""
    if spec.source in BASELINE_SOURCES:
        return spec
    return replace(spec, rows=len(data.items), until=data.cut)


def with_fits(scorers: Mapping[str, ScorerSpec], fitted: Mapping[str, ScorerSpec]) -> dict[str, ScorerSpec]:
    """Return scorers with the records of the fitted ones."""
    return {
        source: replace(spec, rows=fitted[source].rows, until=fitted[source].until) if source in fitted else spec
        for source, spec in scorers.items()
    }


def has_network(bundle: Bundle) -> bool:
    """Return whether the source ``model`` is a trained network."""
    return "model" in bundle.scorers and not is_closed_form(bundle.scorers["model"].model)


def keepable(scorers: Mapping[str, ScorerSpec]) -> dict[str, ScorerSpec]:
    """Return the closed-form models, by source, whose arrays an update may keep."""
    return {
        source: spec
        for source, spec in scorers.items()
        if source not in BASELINE_SOURCES and spec.kind in ARRAYS and is_closed_form(spec.model)
    }


def refit_reason(scorers: Mapping[str, ScorerSpec], data: TrainData, share: float) -> str:
    """Explain why these models are fitted again; empty if they are kept.

    They are fitted together, so that their arrays share one table of users.

    Args:
        scorers: Result of `keepable`.
        data: The rows that a fit would learn.
        share: ``update.refit_share``.
    """
    for spec in scorers.values():
        if spec.rows is None or spec.until is None:
            return f"the bundle does not record the rows of {spec.model}"
        if changed_share(spec, data) >= share:
            return f"{changed_share(spec, data):.1%} new rows, update.refit_share is {share:.1%}"
        if data.cut - spec.until >= PERIOD_DAYS * DAY:
            return f"{PERIOD_DAYS} days have passed"
    return ""


def changed_share(spec: ScorerSpec, data: TrainData) -> float:
    """Return the change in rows since a recorded fit, as a share of its rows."""
    return abs(len(data.items) - (spec.rows or 0)) / max(1, spec.rows or 0)


def kept_arrays(parent: Bundle, scorers: Mapping[str, ScorerSpec], n_items: int) -> dict[str, np.ndarray]:
    """Return the parent's arrays of these models for a table of N items.

    Args:
        scorers: Result of `keepable`.
        n_items: N. The parent's items are the first ones of the table.
    """
    names = [array_name(source, part) for source, spec in scorers.items() for part in ARRAYS[spec.kind]]
    n_new = n_items - len(parent.items)
    return {name: _with_new_items(name, parent.arrays[name], n_new) for name in names}


def _with_new_items(name: str, array: np.ndarray, n_new: int) -> np.ndarray:
    """Append empty rows of new items to the arrays that have a row for each item."""
    if name.endswith("indptr"):
        return np.concatenate([array, np.full(n_new, array[-1], dtype=array.dtype)])
    if name.endswith("item_vectors"):
        return np.concatenate([array, np.zeros((n_new, array.shape[1]), dtype=array.dtype)])
    return array
