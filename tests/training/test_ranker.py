"""The ranker on a small shop: training, bundle, lists, and bad input."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from ranked_shop import Shop, lists, make_shop

from recloop import bundle as bundles
from recloop.bundle import Bundle
from recloop.bundle.checks import RANKER_GRAPH
from recloop.config import Placement, Ranker
from recloop.errors import BundleError, UserError
from recloop.evaluation import parallel
from recloop.evaluation.evaluate import evaluate
from recloop.evaluation.lists import ListRecommender
from recloop.evaluation.table import QueryMetrics
from recloop.features.ranking import rhythm_names
from recloop.policy import NewItems
from recloop.recommend.catalog import Catalog
from recloop.recommend.recommender import RANKER, Recommender
from recloop.recommend.top_k import DEPTH
from recloop.records import DAY, Query
from recloop.training import ranker, ranker_examples, ranker_trees

STARTED = datetime(2025, 1, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def shop() -> Shop:
    return make_shop()


@pytest.fixture(scope="module")
def ranked(shop: Shop) -> Bundle:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranker, "MIN_MOMENTS", 2)
        patch.setattr(ranker, "MIN_JUDGED", 1)
        return shop.choose().bundle


def test_ranker_learns_from_the_candidates_of_a_list(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranker, "MIN_MOMENTS", 2)
    monkeypatch.setattr(ranker, "MIN_JUDGED", 1)
    whole = shop.choose()
    assert whole.bundle.policy.ranker is not None
    depths = dict(whole.bundle.policy.ranker.depths)
    assert depths == {"history": 60, "neighbours": 30, "popular": 30}
    monkeypatch.setattr(ranker_examples, "DEPTH", 1)
    monkeypatch.setattr(ranker_examples, "HISTORY_DEPTH", 1)
    few = shop.choose()
    assert few.bundle.policy.ranker is not None
    assert set(few.bundle.policy.ranker.depths.values()) == {1}
    assert few.recall is not None
    assert whole.recall is not None
    assert few.recall < whole.recall


def test_ranker_reads_a_further_source_that_the_fusion_uses(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source repeats the neighbours, so that its features are known."""
    monkeypatch.setattr(ranker, "MIN_MOMENTS", 2)
    monkeypatch.setattr(ranker, "MIN_JUDGED", 1)
    bundle = shop.bundle
    scorers = {**bundle.scorers, "same_basket": replace(bundle.scorers["neighbours"], source="same_basket")}
    arrays = {f"same_basket.{name}": bundle.arrays[f"neighbours.{name}"] for name in ("indptr", "ids", "weights")}
    home = bundle.policy.placements["home"]

    def with_weight(weight: float) -> Bundle:
        policy = bundle.policy.with_placement("home", replace(home, weights={**home.weights, "same_basket": weight}))
        manifest = replace(bundle.manifest, scorers=scorers)
        return replace(bundle, manifest=manifest, policy=policy, arrays={**bundle.arrays, **arrays})

    assert "same_basket" not in ranker_examples.depths_of(with_weight(0.0))
    chosen = shop.choose(bundle=with_weight(0.5)).bundle
    spec = chosen.policy.ranker
    assert spec is not None
    assert spec.depths["same_basket"] == ranker_examples.DEPTH
    positions = {
        source: [spec.features.index(f"{source}.{name}") for name in ("rank", "score")]
        for source in ("neighbours", "same_basket")
    }
    matrix = shop.learner(chosen).examples(shop.data.held).features
    assert np.array_equal(matrix[:, positions["same_basket"]], matrix[:, positions["neighbours"]])
    assert len(set(matrix[:, positions["neighbours"][0]])) > 1
    assert lists(chosen, shop)


def test_few_targets_teach_small_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranker_trees, "TARGETS_PER_LEAF", 10)
    leaves = Ranker(leaves=20).leaves
    assert [ranker_trees.n_leaves(n, leaves) for n in (0, 39, 79, 150, 1_000)] == [4, 4, 7, 15, 20]
    assert ranker_trees.n_leaves(1_000, 2) == 2


def test_moments_with_one_class_do_not_teach() -> None:
    is_target = np.array([0, 1, 0, 0, 1, 1, 1, 0], bool)
    offsets = np.array([0, 2, 4, 4, 6, 8])  # both classes; none is a target; no candidate; all are targets; both
    assert ranker_examples.columns_of_both_classes(is_target, offsets).tolist() == [0, 1, 6, 7]
    assert ranker_examples.columns_of_both_classes(np.zeros(0, bool), np.zeros(1, np.int64)).tolist() == []


def test_ranker_of_two_threads_equals_that_of_one(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranker, "MIN_MOMENTS", 2)
    monkeypatch.setattr(ranker, "MIN_JUDGED", 1)
    monkeypatch.setattr(parallel, "CHUNK_QUERIES", 3)
    one, two = (shop.choose(threads=threads) for threads in (1, 2))
    assert one.to_json() == two.to_json()
    assert one.bundle.graphs[RANKER_GRAPH] == two.bundle.graphs[RANKER_GRAPH]


def test_ranked_lists_with_new_items_keep_the_order_and_features_of_the_ranker(ranked: Bundle, shop: Shop) -> None:
    home = replace(ranked.policy.placements["home"], new=NewItems(0.5, {"popular": 1.0}))
    mixed = lists(replace(ranked, policy=ranked.policy.with_placement("home", home)), shop)
    changed = 0
    for answer, plain in zip(mixed, lists(ranked, shop), strict=True):
        kept = [item for item in plain.items if item in answer.items]
        assert [item for item in answer.items if item in plain.items] == kept
        assert answer.scores == sorted(answer.scores, reverse=True)
        if answer.items == plain.items:
            assert answer.inputs == plain.inputs
        else:
            changed += 1
            assert answer.inputs["ranker"] != plain.inputs["ranker"]
            assert {**answer.inputs, "ranker": ""} == {**plain.inputs, "ranker": ""}
    assert changed


def test_chosen_ranker_is_in_the_policy_with_its_graph_and_statistics(ranked: Bundle) -> None:
    spec = ranked.policy.ranker
    assert spec is not None
    assert list(spec.depths) == ["history", "neighbours", "popular"]
    assert {"popular.rank", "own.same_weekday"} <= {*spec.features}
    assert ranked.policy.placements["home"].ranked
    assert ranked.arrays["ranking.values"].shape[0] == len(ranked.items) + 1
    assert RANKER_GRAPH in ranked.graphs


def test_ranked_bundle_round_trips_and_its_lists_are_equal(ranked: Bundle, shop: Shop, tmp_path: Path) -> None:
    folder = tmp_path / bundles.write(ranked, tmp_path, STARTED).id
    loaded = bundles.load(folder)
    assert loaded.policy == ranked.policy
    for first, second in zip(lists(ranked, shop), lists(loaded, shop), strict=True):
        assert (first.slots, first.inputs[RANKER]) == (second.slots, second.inputs[RANKER])


def test_lists_of_a_batch_equal_those_of_single_queries_and_of_evaluation(ranked: Bundle, shop: Shop) -> None:
    batch = lists(ranked, shop)
    catalog = Catalog.from_table(ranked.items.ids.ids, ranked.items.attributes)
    recommender = Recommender(ranked, catalog)
    users = shop.data.user_ids[:6]
    for user, expected in zip(users, batch, strict=True):
        states = shop.past.states([user], [10**9])
        for _ in range(2):  # the second answer uses the profile that the state keeps
            assert recommender.recommend(states, [Query(user_id=user, now=ranked.cut)])[0] == expected
    evaluated = ListRecommender(ranked, catalog, "home", 10)
    items = evaluated.recommend(shop.past.states(users, [10**9] * 6), np.full(6, ranked.cut)).items
    assert evaluated.ids(items) == [answer.items for answer in batch]
    assert all(score > 0 for answer in batch for slot, score in zip(answer.slots, answer.scores, strict=True)
               if slot.source != "popular")  # fmt: skip


@pytest.mark.parametrize("new", [None, NewItems(0.3, {"popular": 1.0}, 5)])
def test_source_of_the_ranker_alone_is_read_to_its_depth_with_equal_lists(
    ranked: Bundle, shop: Shop, new: NewItems | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ranked.policy.ranker
    assert spec is not None
    home = replace(ranked.policy.placements["home"], weights={"history": 1.0, "popular": 0.0}, new=new)
    depths = dict.fromkeys(spec.depths, 4)
    policy = replace(ranked.policy, placements={"home": home}, ranker=replace(spec, depths=depths))
    shallow = replace(ranked, policy=policy)
    expected = {"history": DEPTH, "neighbours": 4, "popular": 4 if new is None else DEPTH}
    assert Recommender(shallow, Catalog()).depths_of(home, ranked=True) == expected
    early = replace(shallow.manifest.data, cut=shop.data.cut)
    early_bundle = replace(shallow, manifest=replace(shallow.manifest, data=early))

    def table() -> list[dict[str, float]]:
        rows = evaluate([early_bundle], shop.rows, Catalog.from_frames([shop.rows.items]), shop.config, {}).rows
        return [{key: float(np.nansum(values)) for key, values in row.row.values.items()} for row in rows]

    few, few_rows = lists(shallow, shop), table()
    monkeypatch.setattr(Recommender, "depths_of", lambda *_, **__: dict.fromkeys(depths, DEPTH))
    assert [answer.slots for answer in few] == [answer.slots for answer in lists(shallow, shop)]
    assert few_rows == table()


def test_sources_beside_a_reranking_one_are_read_to_the_full_depth(
    ranked: Bundle, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommender = Recommender(ranked, Catalog.from_table(ranked.items.ids.ids, ranked.items.attributes))
    home, users = ranked.policy.placements["home"], shop.data.user_ids[:2]
    encoded = recommender.encode(shop.past.states(users, [10**9] * 2), [ranked.cut] * 2)
    allowed = recommender.candidate_mask(encoded, [Query(user_id=user, now=ranked.cut) for user in users], home)
    assert recommender.recall(encoded, allowed, ["popular"], {"popular": 4})["popular"].items.shape == (2, 4)
    monkeypatch.setattr(Recommender, "_is_reranking", lambda *_: True)
    assert recommender.recall(encoded, allowed, ["popular"], {"popular": 4})["popular"].items.shape == (2, DEPTH)


def test_evaluation_has_a_row_of_the_fusion_and_one_of_the_ranker(ranked: Bundle, shop: Shop) -> None:
    def rows_of(bundle: Bundle) -> dict[str, QueryMetrics]:
        early = replace(bundle.manifest.data, cut=shop.data.cut)  # as if fitted before validation
        bundle = replace(bundle, manifest=replace(bundle.manifest, data=early))
        table = evaluate([bundle], shop.rows, Catalog.from_frames([shop.rows.items]), shop.config, {})
        return {row.row.model: row.row for row in table.rows}

    rows, plain = rows_of(ranked), rows_of(shop.bundle)["served"]
    assert list(rows)[-2:] == ["fusion", "served"]
    key = ("all", "NDCG@10")
    assert np.array_equal(rows["fusion"].values[key], plain.values[key], equal_nan=True)
    assert not np.array_equal(rows["served"].values[key], plain.values[key], equal_nan=True)


def test_failing_ranker_answers_with_the_fusion_and_says_so(ranked: Bundle, shop: Shop) -> None:
    catalog = Catalog.from_table(ranked.items.ids.ids, ranked.items.attributes)
    recommender = Recommender(ranked, catalog)
    assert recommender.ranker is not None
    recommender.ranker._score = None  # type: ignore[assignment]
    user = shop.data.user_ids[0]
    answer = recommender.recommend(shop.past.states([user], [10**9]), [Query(user_id=user, now=ranked.cut)])[0]
    expected = lists(ranked, shop, without=frozenset({"ranker"}))[0]
    assert answer.degraded == (RANKER,)
    assert (answer.slots, answer.inputs) == (expected.slots, expected.inputs)
    assert RANKER not in answer.inputs


def test_statistics_are_refitted_under_the_same_trees(ranked: Bundle, shop: Shop) -> None:
    assert shop.data.history is not None
    refitted = ranker.refit_statistics(ranked, shop.data.history, shop.tables)
    assert refitted.graphs == ranked.graphs
    assert (refitted.arrays["ranking.values"] != ranked.arrays["ranking.values"]).any()
    child = ranker.inherit_ranker(shop.bundle, ranked, shop.config, shop.data.history, shop.tables)
    assert child.policy.ranker == ranked.policy.ranker
    assert lists(child, shop)[0].items == lists(refitted, shop)[0].items


def test_auto_without_a_gain_adds_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranker, "MIN_MOMENTS", 2)
    monkeypatch.setattr(ranker, "MIN_JUDGED", 1)
    monkeypatch.setattr(ranker, "ndcg", lambda *_: np.ones(3))
    choice = shop.choose("auto")
    assert choice.bundle is shop.bundle
    assert choice.sentence.startswith("no ranker: NDCG@10 1.0000 against 1.0000 without it")


def test_without_a_period_every_second_user_judges(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranker, "MIN_MOMENTS", 2)
    monkeypatch.setattr(ranker, "MIN_JUDGED", 1)
    timeless = replace(shop, data=replace(shop.data, history=None))
    choice = timeless.choose()
    spec = choice.bundle.policy.ranker
    assert spec is not None
    assert shop.data.held is not None
    assert 2 <= spec.moments <= len(shop.data.held)
    assert f"on {len(shop.data.held) // 2} moments" in choice.sentence


@pytest.mark.parametrize(("model", "sentence"), [("off", "no ranker, as configured"), ("auto", "no ranker: ")])
def test_ranker_that_is_off_or_has_too_few_moments_is_left_out(shop: Shop, model: str, sentence: str) -> None:
    choice = shop.choose(model)
    assert choice.bundle is shop.bundle
    assert choice.sentence.startswith(sentence)


def test_required_ranker_with_too_few_moments_raises(shop: Shop) -> None:
    with pytest.raises(UserError, match="moments"):
        shop.choose("gbdt")


def test_child_with_configured_weights_or_without_a_ranker_is_not_ranked(ranked: Bundle, shop: Shop) -> None:
    assert shop.data.history is not None
    weighed = shop.config.model_copy(update={"placement": {"home": Placement(weights={"history": 1.0})}})
    child = ranker.inherit_ranker(shop.bundle, ranked, weighed, shop.data.history, shop.tables)
    assert not child.policy.placements["home"].ranked
    off = shop.config.model_copy(update={"ranker": Ranker(model="off")})
    assert ranker.inherit_ranker(shop.bundle, ranked, off, shop.data.history, shop.tables) is shop.bundle


def test_ranker_without_lightgbm_is_left_out_or_an_error(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("libgomp.so.1")

    monkeypatch.setattr(ranker, "load_lightgbm", fail)
    monkeypatch.setattr(ranker, "missing_packages", lambda: ["torch"])
    assert "cannot be loaded" in shop.choose("auto").sentence
    with pytest.raises(UserError, match="cannot be loaded"):
        shop.choose("gbdt")


def test_one_class_raises(shop: Shop) -> None:
    examples = ranker_examples.Examples(np.zeros((4, 2), np.float32), np.ones(4, np.int8), np.array([4]), 4, 4)
    with pytest.raises(UserError, match="one class"):
        ranker_trees.fit_trees(examples, shop.config)


def test_start_before_the_first_event_raises(shop: Shop) -> None:
    with pytest.raises(UserError, match="a start after the first moment"):
        ranker.moments_between(shop.data, int(shop.data.stamps.min()), shop.data.cut)


def test_moments_between_see_only_earlier_rows_and_no_holdout_user(shop: Shop) -> None:
    data = shop.data.history
    assert data is not None
    moments = ranker.moments_between(data, shop.data.cut, data.cut)
    assert (moments.now >= shop.data.cut).all()
    assert not data.old[moments.user_ix].any()
    for q in range(len(moments)):
        rows = (data.moment_user[data.row_moment] == moments.user_ix[q]) & (
            data.stamps[data.row_moment] == moments.now[q]
        )
        assert moments.as_of[q] == data.seqs[rows].min() - 1


@pytest.mark.parametrize(
    ("graph", "error"),
    [
        (b"\x3a\x06\x0a\x04\x22\x02\x41\x62", "TreeEnsembleRegressor alone"),  # a node with the operator Ab
        (b"", "TreeEnsembleRegressor alone"),
        (b"\xff\xff", "an ONNX graph"),
    ],
)
def test_ranker_with_a_foreign_operator_is_not_loaded(ranked: Bundle, tmp_path: Path, graph: bytes, error: str) -> None:
    written = bundles.write(replace(ranked, graphs={RANKER_GRAPH: graph}), tmp_path, STARTED)
    with pytest.raises(BundleError, match=error):
        bundles.load(tmp_path / written.id)


def test_trees_in_another_graph_are_not_loaded(ranked: Bundle, tmp_path: Path) -> None:
    graphs = {**ranked.graphs, "user.onnx": ranked.graphs[RANKER_GRAPH]}
    written = bundles.write(replace(ranked, graphs=graphs), tmp_path, STARTED)
    with pytest.raises(BundleError, match="standard domain"):
        bundles.load(tmp_path / written.id)


def test_policy_with_a_ranker_and_no_graph_is_not_loaded(ranked: Bundle, tmp_path: Path) -> None:
    written = bundles.write(replace(ranked, graphs={}), tmp_path, STARTED)
    with pytest.raises(BundleError, match="its graph and its settings"):
        bundles.load(tmp_path / written.id)


def test_ranker_with_an_unknown_feature_a_missing_array_or_no_source_raises(ranked: Bundle) -> None:
    spec = ranked.policy.ranker
    assert spec is not None
    catalog = Catalog.from_table(ranked.items.ids.ids, ranked.items.attributes)
    unknown = replace(spec, features=("own.mood", *spec.features[1:]))
    with pytest.raises(BundleError, match=r"own\.mood"):
        Recommender(replace(ranked, policy=replace(ranked.policy, ranker=unknown)), catalog)
    arrays = {name: array for name, array in ranked.arrays.items() if name != "ranking.codes"}
    with pytest.raises(BundleError, match=r"ranking\.codes"):
        Recommender(replace(ranked, arrays=arrays), catalog)
    scorers = {name: scorer for name, scorer in ranked.scorers.items() if name != "neighbours"}
    with pytest.raises(BundleError, match="neighbours"):
        Recommender(replace(ranked, manifest=replace(ranked.manifest, scorers=scorers)), catalog)
    tree = ranked.policy.to_json()
    tree["ranker"]["depths"] = {}
    with pytest.raises(BundleError, match="at least one source"):
        type(ranked.policy).from_json(tree)


def test_trees_are_fitted_again_on_the_moments_after_earlier_rows(
    ranked: Bundle, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ranker.refit_trees(ranked, shop.bundle, shop.config, shop.data, shop.tables, shop.past) is ranked
    monkeypatch.setattr(ranker, "MIN_MOMENTS", 2)
    again = ranker.refit_trees(ranked, shop.bundle, shop.config, shop.data, shop.tables, shop.past)
    spec, earlier = again.policy.ranker, ranked.policy.ranker
    assert spec is not None
    assert earlier is not None
    assert replace(spec, moments=earlier.moments) == earlier
    assert again.graphs[RANKER_GRAPH] != ranked.graphs[RANKER_GRAPH]
    assert again.arrays is ranked.arrays


def test_trees_are_due_after_a_period_of_as_many_moments_as_they_learned(
    ranked: Bundle, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ranked.policy.ranker
    assert spec is not None
    monkeypatch.setattr(ranker, "MIN_MOMENTS", 1)
    newest = int(shop.data.stamps.max())
    start = ranker.period_start(shop.data)
    assert start < newest
    assert ranker.is_due(replace(spec, moments=1, until=start), shop.data)
    assert not ranker.is_due(replace(spec, moments=1, until=start + 1), shop.data)
    assert not ranker.is_due(replace(spec, moments=10_000, until=0), shop.data)


def test_period_of_new_trees_is_28_days_or_the_last_quarter_of_a_short_log(shop: Shop) -> None:
    stamps = np.arange(1, 201) * DAY
    data = replace(shop.data, stamps=stamps, cut=200 * DAY + 1)
    assert ranker.period_start(data) == 172 * DAY + 1
    data = replace(shop.data, stamps=stamps[:40], cut=40 * DAY + 1)
    assert ranker.period_start(data) == int(np.quantile(stamps[:40], 0.75))
    data = replace(shop.data, stamps=np.full(5, DAY), cut=DAY + 1)
    assert ranker.period_start(data) == DAY + 1


def test_trees_without_rhythm_are_fitted_again_without_it(
    ranked: Bundle, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ranked.policy.ranker
    assert spec is not None
    names = tuple(name for name in spec.features if name not in rhythm_names(spec.fields))
    arrays = {name: array for name, array in ranked.arrays.items() if not name.startswith("rhythm.")}
    policy = replace(ranked.policy, ranker=replace(spec, features=names))
    earlier = replace(ranked, policy=policy, arrays=arrays)
    monkeypatch.setattr(ranker, "MIN_MOMENTS", 2)
    again = ranker.refit_trees(earlier, shop.bundle, shop.config, shop.data, shop.tables, shop.past)
    assert again.policy.ranker is not None
    assert again.policy.ranker.features == names
    assert lists(again, shop)[0].inputs[RANKER]
    refitted = ranker.refit_statistics(again, shop.data, shop.tables)
    assert "rhythm.times" not in refitted.arrays
