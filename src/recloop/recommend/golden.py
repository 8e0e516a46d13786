"""Golden cases of a bundle, answered when it is built and before it is used."""

from __future__ import annotations

import numpy as np

from recloop.bundle import Bundle
from recloop.bundle.golden_case import GoldenCase
from recloop.errors import BundleError
from recloop.features.state import StateBatch, StoredState
from recloop.recommend.catalog import Catalog
from recloop.recommend.filters import FILTER
from recloop.recommend.recommender import SCORE_TOLERANCE, Recommender
from recloop.records import Query


def make_golden(recommender: Recommender, states: StateBatch, now: int, placement: str, n: int) -> list[GoldenCase]:
    """Build golden.json cases: states and their lists over the bundle's own catalog.

    Raises:
        BundleError: the ranker or a source fails.
    """
    cases = []
    for b, user_id in enumerate(states.users):
        stored = StoredState.from_batch(states, b)
        query = Query(user_id=user_id, now=now, n=n, placement=placement)
        answer = recommender.recommend(stored.to_batch(user_id), [query], with_inputs=False)[0]
        if missing := set(answer.degraded) - {FILTER}:
            raise BundleError("golden list", ", ".join(sorted(missing)), "parts that answer", "recloop update --full")
        cases.append(GoldenCase(stored, now, placement, n, answer.items, answer.scores))
    return cases


def check_golden(bundle: Bundle) -> None:
    """Answer the golden cases with the bundle over its own catalog.

    Raises:
        BundleError: a case fails, ids differ, or scores differ by more than 1e-5.
    """
    try:
        _check_golden(bundle)
    except BundleError:
        raise
    except Exception as error:  # noqa: BLE001 - tables that disagree may fail anywhere
        cause = f"{type(error).__name__}: {error}"[:300]
        raise BundleError(
            "golden list", bundle.id, f"lists without an error ({cause})", "recloop update --full"
        ) from None


def _check_golden(bundle: Bundle) -> None:
    recommender = Recommender(bundle, Catalog.from_table(bundle.items.ids.ids, bundle.items.attributes))
    for number, case in enumerate(bundle.golden):
        query = Query(user_id="golden", now=case.now, n=case.n, placement=case.placement)
        answer = recommender.recommend(case.state.to_batch("golden"), [query], with_inputs=False)[0]
        same_scores = len(answer.scores) == len(case.scores) and np.allclose(
            answer.scores, case.scores, rtol=0, atol=SCORE_TOLERANCE
        )
        if answer.items != case.ids or not same_scores:
            raise BundleError("golden list", f"{bundle.id} case {number}", "the recorded list", "recloop update --full")
