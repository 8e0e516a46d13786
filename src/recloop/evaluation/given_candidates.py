"""Given candidates: a target is ranked among the items that a file gives.

Papers on collaborative filtering rank the target among 99 drawn items (docs/definitions/ranking-metrics.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recloop.errors import UserError
from recloop.evaluation.queries import Queries
from recloop.features.vocabulary import Vocabulary
from recloop.recommend.filters import CandidateMask
from recloop.records import ITEM_ID, USER_ID

KEY = "evaluate.candidates"


@dataclass(frozen=True)
class GivenCandidates:
    """Items of each query: ``items[q]`` ascending item_ix, the targets included."""

    items: list[NDArray[np.int64]]

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, queries: Queries, vocabulary: Vocabulary) -> GivenCandidates:
        """Look up the items of a file for each query.

        Raises:
            UserError: a user of the test has no items.
        """
        by_user = dict(frame.group_by(USER_ID).agg(ITEM_ID).iter_rows())
        items = []
        for q, user in enumerate(queries.users):
            if user not in by_user:
                raise UserError(KEY, f"no row of user {user}", "items for each user of the test", "complete the file")
            targets = queries.targets[queries.offsets[q] : queries.offsets[q + 1]]
            rows = np.unique(vocabulary.lookup([*by_user[user], *targets]).astype(np.int64))
            items.append(rows[rows > 0])
        return cls(items)

    def restrict(self, allowed: CandidateMask, span: slice) -> CandidateMask:
        """Ban all other items of the table in the queries of ``span``."""
        banned = []
        for b, kept in enumerate(self.items[span]):
            is_banned = np.ones(len(allowed.mask), dtype=bool)
            is_banned[kept] = False
            is_banned[allowed.banned[b]] = True
            banned.append(1 + np.flatnonzero(is_banned[1:]).astype(np.int32))
        return replace(allowed, banned=banned)


def read_candidates(path: Path) -> pl.DataFrame:
    """Read the file of ``evaluate.candidates``: user_id and item_id as text.

    Raises:
        UserError: the file does not exist or has other columns.
    """
    try:
        return pl.read_parquet(path, columns=[USER_ID, ITEM_ID]).cast(pl.String)
    except (OSError, pl.exceptions.PolarsError) as error:
        expected = f"a Parquet file with the columns {USER_ID} and {ITEM_ID} ({error})"
        raise UserError(KEY, path, expected, f'--set {KEY}=""') from None
