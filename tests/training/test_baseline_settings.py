"""Settings of the baselines that validation chooses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from recloop.features.labels import Use
from recloop.features.spec import FeatureSpec
from recloop.features.state_history import StateHistory
from recloop.manifest import Manifest, ModelSpec, TrainingRows
from recloop.models.covisitation import CoVisitation
from recloop.policy import ScorerSpec
from recloop.records import DAY, ITEM_ID, LABEL, SEQ, STAMP, USE, USER_ID, WEIGHT
from recloop.settings import build
from recloop.training.baselines import choose_half_life_and_weights, draft_bundle, fit_counts, refit_baselines
from recloop.training.dataset import make_tables, train_data

N_PAIRS = 6


@pytest.mark.parametrize("with_baskets", [True, False])
def test_covisitation_of_one_moment_is_chosen_if_baskets_predict(with_baskets: bool) -> None:
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
    counts, scorers = fit_counts(data, tables)
    manifest = Manifest(model=ModelSpec("counts", {}), data=TrainingRows(cut=9 * DAY, until_seq=len(rows)))
    draft = draft_bundle(config, tables, data, counts, scorers, manifest)
    bundle, chosen = choose_half_life_and_weights(draft, config, data, tables, StateHistory(rows, None))
    scorer = bundle.scorers["neighbours"]
    assert scorer.same == (1.0 if with_baskets else None)
    assert chosen.to_json()["same"] == (1.0 if with_baskets else 0.0)
    again = refit_baselines(bundle, data, tables, config)
    options = CoVisitation.Config(half_life=scorer.half_life, same=scorer.same or 0.0)
    for name, array in CoVisitation(options).fit(data).items():
        assert np.array_equal(again.arrays[name], array)
        assert np.array_equal(bundle.arrays[name], array)
    assert again.scorers["neighbours"].same == scorer.same


def test_scorer_keeps_the_weight_of_one_moment_as_json() -> None:
    scorer = ScorerSpec("neighbours", "covisitation", "neighbours", half_life=30.0, same=4.0)
    assert scorer.to_json()["same"] == 4.0
    assert scorer.fit_options == {"half_life": 30.0, "same": 4.0}
    assert "same" not in replace(scorer, same=None).to_json()
