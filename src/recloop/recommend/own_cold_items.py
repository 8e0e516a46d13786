"""Items that a user had and that have no row in the table of the bundle."""

from __future__ import annotations

from itertools import islice
from typing import Final

import numpy as np

from recloop.features.encode import EncodedBatch
from recloop.features.vocabulary import Vocabulary
from recloop.recommend.catalog import Catalog
from recloop.recommend.filters import CandidateMask

MIN_MOMENTS: Final = 2
"""Moments with an item from which it has a slot; an item taken once is worth less than the slot that it replaces."""


def own_cold_items(
    catalog: Catalog, vocabulary: Vocabulary, encoded: EncodedBatch, allowed: CandidateMask, b: int, n: int
) -> list[str]:
    """Return at most ``n`` items without a row that query b took in several moments.

    Those of most moments are first, then those of the newest row. An item that the catalog lacks or hides is left out.
    """
    ids = encoded.states.kept(("own cold items", vocabulary.serial, b), lambda: _cold_items(vocabulary, encoded, b))
    shown = (item_id for item_id in ids if allowed.allows_id(b, item_id) and catalog.shows(item_id, allowed.text))
    return [*islice(shown, n)] if ids else ids


def _cold_items(vocabulary: Vocabulary, encoded: EncodedBatch, b: int) -> list[str]:
    """Return the items without a row that query b took in several moments, best first."""
    states = encoded.states
    rows = slice(*states.item_offsets[states.moment_offsets[b : b + 2]].tolist())
    if rows.stop - rows.start == encoded.row_offsets[b + 1] - encoded.row_offsets[b]:  # all rows are in the table
        return []
    codes = states.items[rows]
    is_outside = states.targets[rows] & (states.codes.table_rows(vocabulary)[codes] == 0)
    taken, newest, n_moments = _last_and_count(codes[is_outside])
    several = np.flatnonzero(n_moments >= MIN_MOMENTS)
    several = several[np.lexsort((-newest[several], -n_moments[several]))]
    ids: list[str] = states.names[taken[several]].tolist()
    return ids


def _last_and_count(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct codes, the last row of each, and their numbers of rows."""
    taken, first, counts = np.unique(codes[::-1], return_index=True, return_counts=True)
    return taken, len(codes) - 1 - first, counts
