"""Settings of the baselines that validation chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from recloop.bundle import Bundle
from recloop.config import Config
from recloop.errors import UserError
from recloop.features.labels import Use
from recloop.features.spec import FeatureSpec
from recloop.features.state_history import StateHistory
from recloop.manifest import Manifest, ModelSpec, TrainingRows
from recloop.models.base import SOURCE_OF, TrainData
from recloop.models.covisitation import CoVisitation
from recloop.policy import ScorerSpec
from recloop.records import DAY, ITEM_ID, LABEL, SEQ, STAMP, USE, USER_ID, WEIGHT
from recloop.settings import build
from recloop.training.baseline_settings import with_options
from recloop.training.baselines import (
    ModelValidation,
    choose_half_life_and_weights,
    draft_bundle,
    fit_counts,
    refit_baselines,
)
from recloop.training.dataset import ItemUserTables, make_tables, train_data

N_PAIRS = 6


@dataclass(frozen=True)
class Learned:
    """A log of pairs and what is fitted on it."""

    rows: pl.DataFrame
    config: Config
    tables: ItemUserTables
    data: TrainData
    draft: Bundle


def pairs(with_baskets: bool, options: Mapping[str, Any] | None = None) -> Learned:
    """Teachers take a pair of items in one moment; learners take its first, then in the held moment its second."""
    acts = []
    for n in range(60):
        pair, is_teacher = n % N_PAIRS, n < 40
        acts.append((f"u{n:02d}", f"a{pair}", DAY + n))
        if is_teacher:
            acts.append((f"u{n:02d}", f"b{pair}", DAY + n + (0 if with_baskets else 1000 * n)))
        else:
            acts.append((f"u{n:02d}", f"b{pair}", 5 * DAY + n))
    rows = pl.DataFrame(sorted(acts, key=lambda act: act[2]), schema=[USER_ID, ITEM_ID, STAMP], orient="row").with_columns(
        pl.int_range(pl.len()).cast(pl.Int64).alias(SEQ), pl.lit(1, pl.Int8).alias(LABEL),
        pl.lit(1.0, pl.Float32).alias(WEIGHT), pl.lit(int(Use.TARGET), pl.Int8).alias(USE),
    )  # fmt: skip
    config = build({"ranker": {"model": "off"}}, (), {})
    tables = make_tables(FeatureSpec.from_config(config), rows, 9 * DAY, None, None)
    is_held = pl.col(STAMP) >= 5 * DAY
    data = train_data(tables, rows.filter(~is_held), rows.filter(is_held))
    counts, scorers = fit_counts(data, tables, {"covisitation": options or {}})
    manifest = Manifest(model=ModelSpec("counts", {}), data=TrainingRows(cut=9 * DAY, until_seq=len(rows)))
    return Learned(rows, config, tables, data, draft_bundle(config, tables, data, counts, scorers, manifest))


@pytest.mark.parametrize("with_baskets", [True, False])
@pytest.mark.parametrize("options", [{}, {"shrink": 0.5, "width": 3, "recent": [1.0, 0.5]}])
def test_covisitation_of_one_moment_is_chosen_if_baskets_predict(with_baskets: bool, options: dict[str, Any]) -> None:
    """The choice, a refit and an update keep the configured options."""
    learned = pairs(with_baskets, options)
    config, tables, data = learned.config, learned.tables, learned.data
    bundle, chosen = choose_half_life_and_weights(learned.draft, config, data, tables, StateHistory(learned.rows, None))
    scorer = bundle.scorers["neighbours"]
    assert scorer.same == (1.0 if with_baskets else None)
    assert chosen.to_json()["same"] == (1.0 if with_baskets else 0.0)
    again = refit_baselines(bundle, data, tables, config)
    updated, _ = fit_counts(data, tables, {}, bundle.scorers)  # as an update of this bundle
    expected = CoVisitation.Config(half_life=scorer.half_life, same=scorer.same or 0.0, **options)
    for name, array in CoVisitation(expected).fit(data).items():
        assert np.array_equal(again.arrays[name], array)
        assert np.array_equal(bundle.arrays[name], array)
        assert np.array_equal(updated[name], array)
    assert again.scorers["neighbours"].same == scorer.same
    assert scorer.config == (options or None)
    assert scorer.recent == expected.recent


def test_tuned_options_of_covisitation_change_its_list_on_validation() -> None:
    learned = pairs(with_baskets=False)
    past = StateHistory(learned.rows, None)
    validation = ModelValidation(learned.draft, learned.config, learned.data, learned.tables, past)
    assert validation.ndcg("covisitation", {}) == 1.0
    assert validation.ndcg("covisitation", {"lags": [0.0]}) < 1.0  # no item follows another, and Popular fills the list
    assert validation.ndcg("popular", {}) < 1.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("covisitation", {"mood": 3}, r"model\.mood=3: expected .*known: lags, recent, shrink, width"),
        ("covisitation", {"shrink": -1}, r"model\.shrink=-1: expected"),
        ("covisitation", {"lags": []}, r"model\.lags=\[\]: expected"),
        ("covisitation", {"recent": [float("nan")]}, r"model\.recent\.0=nan: expected"),
        ("covisitation", {"half_life": 30}, r"model\.half_life=30: expected baselines\.half_life"),
        ("covisitation", {"same": 1}, r"model\.same=1: expected no value"),
        ("popular", {"half_life": 30}, r"model\.half_life=30: expected baselines\.half_life"),
        ("bought_before", {"width": 3}, r"model\.width=3: expected"),
    ],
)
def test_option_of_a_baseline_that_cannot_be_used_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_options(ScorerSpec(SOURCE_OF[name], name, ""), options)


def test_scorer_keeps_the_weight_of_one_moment_as_json() -> None:
    scorer = ScorerSpec("neighbours", "covisitation", "neighbours", half_life=30.0, same=4.0)
    assert scorer.to_json()["same"] == 4.0
    assert scorer.fit_options == {"half_life": 30.0, "same": 4.0}
    assert "same" not in replace(scorer, same=None).to_json()
    configured = replace(scorer, config={"shrink": 1.0})
    assert configured.to_json()["config"] == {"shrink": 1.0}
    assert configured.fit_options == {"shrink": 1.0, "half_life": 30.0, "same": 4.0}
