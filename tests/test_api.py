"""The Python API: frames of any kind, observed states, similar items, save and load."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import recloop
from recloop.errors import UserError
from recloop.simulation.shop import SimulatedShop
from recloop.training import ranker

CONFIG = {"events": {"positive": ["purchase"], "neutral": ["click"]}}


@pytest.fixture(scope="module")
def tiny_simulated_shop() -> SimulatedShop:
    return SimulatedShop(users=60, items=40)


@pytest.fixture(scope="module")
def rec(tiny_simulated_shop: SimulatedShop) -> recloop.FittedRecommender:
    return recloop.fit(
        tiny_simulated_shop.events(), tiny_simulated_shop.items(), tiny_simulated_shop.users(), config=CONFIG
    )


def test_recommend_returns_the_kind_of_frame_that_fit_got(
    tiny_simulated_shop: SimulatedShop, rec: recloop.FittedRecommender
) -> None:
    expected = rec.recommend(["u01", "new"], n=4)
    assert isinstance(expected, pl.DataFrame)
    assert expected.columns == ["user_id", "item_id", "score", "rank", "source"]
    assert expected["rank"].to_list() == [1, 2, 3, 4] * 2
    for frame, kind in (
        (tiny_simulated_shop.events().to_pandas(), pd.DataFrame),
        (tiny_simulated_shop.events().to_arrow(), pa.Table),
    ):
        found = recloop.fit(frame, config=CONFIG).recommend(["u01", "new"], n=4)
        assert isinstance(found, kind)
        assert pl.DataFrame(found)["item_id"].to_list() == expected["item_id"].to_list()


def test_recommend_applies_filter_viewed_and_items_to_recommend(
    tiny_simulated_shop: SimulatedShop, rec: recloop.FittedRecommender
) -> None:
    had = set(
        tiny_simulated_shop.events().filter((pl.col("user_id") == "u01") & (pl.col("event_type") == "purchase"))[
            "item_id"
        ]
    )
    assert had & set(rec.recommend(["u01"], n=40)["item_id"])
    assert not had & set(rec.recommend(["u01"], n=40, filter_viewed=True)["item_id"])
    assert set(rec.recommend(["u01", "new"], items_to_recommend=["i01", "i02"])["item_id"]) == {"i01", "i02"}


def test_observe_changes_the_state_and_not_the_weights(tiny_simulated_shop: SimulatedShop) -> None:
    rec = recloop.fit(tiny_simulated_shop.events(), config=CONFIG)
    rows = rec.bundle.arrays["neighbours.weights"].copy()
    assert set(rec.recommend(["new"])["source"]) == {"popular"}
    rec.observe(
        pl.DataFrame({"user_id": ["new"], "item_id": ["i01"], "timestamp": ["2025-09-01"], "event_type": ["purchase"]})
    )
    assert rec.recommend(["new"], n=3)["source"].to_list() == ["neighbours"] * 3
    assert (rec.bundle.arrays["neighbours.weights"] == rows).all()


def test_observe_reads_the_columns_of_the_fit(tiny_simulated_shop: SimulatedShop) -> None:
    rows = tiny_simulated_shop.events().rename({"item_id": "sku"})
    rec = recloop.fit(rows, columns={"event_type": ""})
    more = pl.DataFrame({"user_id": ["new"], "sku": ["i01"], "timestamp": ["2025-09-01"], "event_type": ["dislike"]})
    rec.observe(more)
    assert set(rec.recommend("new", n=3)["source"]) == {"neighbours"}
    with pytest.raises(UserError, match=r'columns\["item_id"\]=sku: expected a column of more'):
        rec.observe(more.rename({"sku": "item"}))


def test_loaded_bundle_reads_event_types_of_observed_rows(tiny_simulated_shop: SimulatedShop, tmp_path: Path) -> None:
    rec = recloop.fit(tiny_simulated_shop.events(), config=CONFIG)
    loaded = recloop.load(rec.save(tmp_path / "bundle"))
    rows = pl.DataFrame({"user_id": ["new"], "item_id": ["i01"], "timestamp": ["2025-09-01"], "event_type": ["click"]})
    loaded.observe(rows)
    assert set(loaded.recommend("new", n=3)["source"]) == {"popular"}  # a click is neutral
    loaded.observe(rows.with_columns(event_type=pl.lit("purchase")))
    assert set(loaded.recommend("new", n=3)["source"]) == {"neighbours"}


def test_recommend_refuses_unknown_users_and_items(rec: recloop.FittedRecommender) -> None:
    assert set(rec.recommend("new", n=2)["source"]) == {"popular"}
    with pytest.raises(UserError, match=r'users=new, other: expected users with events; try: on_unknown="popular"'):
        rec.recommend(["u01", "new", "other"], on_unknown="error")
    with pytest.raises(UserError, match="on_unknown=ignore: expected popular or error"):
        rec.recommend("u01", on_unknown="ignore")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="items_to_recommend=nothing: expected items of the catalog"):
        rec.recommend("u01", items_to_recommend=["i01", "nothing"])
    assert rec.recommend([], n=3).is_empty()
    with pytest.raises(UserError, match="now=noon: expected a whole number of microseconds"):
        rec.recommend("u01", now="noon")  # type: ignore[arg-type]


def test_items_without_events_are_recommended_from_the_catalog(tiny_simulated_shop: SimulatedShop) -> None:
    catalog = pl.concat(
        [tiny_simulated_shop.items(), tiny_simulated_shop.items()[:1].with_columns(item_id=pl.lit("c1"))]
    )
    rec = recloop.fit(tiny_simulated_shop.events(), catalog, config=CONFIG)
    assert rec.recommend(["u01", "new"], items_to_recommend=["c1", "i02"])["item_id"].to_list() == ["i02", "c1"] * 2
    assert rec.score("u01", ["c1"])["score"].to_list() == [None]


def test_score_orders_items_as_recommend_does(rec: recloop.FittedRecommender) -> None:
    lists = rec.recommend("u01", n=5, filter_viewed=False)
    fused = lists.filter(pl.col("source") == "neighbours")
    scores = rec.score("u01", lists["item_id"])
    assert scores.columns == ["user_id", "item_id", "score"]
    assert scores.head(len(fused))["score"].to_list() == pytest.approx(fused["score"].to_list())
    both = rec.score(["u01", "u02"], ["i03", "i01"])
    assert both["user_id"].to_list() == ["u01"] * 2 + ["u02"] * 2
    assert both["item_id"].to_list() == ["i03", "i01"] * 2
    with pytest.raises(UserError, match="items=nothing"):
        rec.score("u01", ["nothing"])


def test_similar_items_are_covisitation_rows_filled_by_popular(rec: recloop.FittedRecommender) -> None:
    found = rec.similar_items(["i01", "i02"], n=39)
    assert found["item_id"].to_list() == ["i01"] * 39 + ["i02"] * 39
    assert found["rank"].to_list() == [*range(1, 40)] * 2
    mine = found.filter(pl.col("item_id") == "i01")
    assert mine["score"].is_sorted(descending=True)
    assert "i01" not in mine["similar_id"].to_list()
    arrays, own = rec.bundle.arrays, rec.bundle.items.ids.index("i01")
    span = slice(arrays["neighbours.indptr"][own], arrays["neighbours.indptr"][own + 1])
    row = {rec.bundle.items.ids.ids[ix - 1] for ix in arrays["neighbours.ids"][span].tolist()} - {"i01"}
    assert set(mine.filter(pl.col("source") == "neighbours")["similar_id"]) == row
    assert set(mine["source"]) <= {"neighbours", "popular", "latest"}
    assert rec.similar_items(["i02"], n=39).equals(found.filter(pl.col("item_id") == "i02"))
    with pytest.raises(UserError, match="items=nothing"):
        rec.similar_items(["nothing"])


def test_recommend_after_save_and_load_is_equal(
    tiny_simulated_shop: SimulatedShop, rec: recloop.FittedRecommender, tmp_path: Path
) -> None:
    path = rec.save(tmp_path / "bundle")
    loaded = recloop.load(path, events=tiny_simulated_shop.events())
    users = tiny_simulated_shop.user_ids[:20]
    assert loaded.recommend(users).equals(rec.recommend(users))
    with pytest.raises(UserError, match="does not exist yet"):
        rec.save(path)
    with pytest.raises(UserError, match="loaded bundle"):
        loaded.evaluate()


def test_evaluate_without_a_holdout_says_how_to_get_one(rec: recloop.FittedRecommender) -> None:
    with pytest.raises(UserError, match=r'holdout=None.*all rows were learned.*rec\.evaluate\(split="temporal"\)'):
        rec.evaluate()
    with pytest.raises(UserError, match="split=random: expected temporal or leave-one-out"):
        rec.evaluate(split="random")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected split, the new name of protocol"):
        rec.evaluate(protocol="temporal")  # type: ignore[call-arg]


def test_evaluate_with_a_split_equals_a_fit_with_this_holdout(
    tiny_simulated_shop: SimulatedShop, rec: recloop.FittedRecommender
) -> None:
    learned = rec.bundle.manifest.data.until_seq
    table = rec.evaluate(k=[3, 5], split="temporal")
    assert [row.row.model for row in table.rows] == ["popular", "bought_before", "covisitation", "served"]
    held = recloop.fit(
        tiny_simulated_shop.events(), tiny_simulated_shop.items(), tiny_simulated_shop.users(), config=CONFIG,
        holdout="temporal",
    )  # fmt: skip
    columns = ["model", "NDCG@3", "NDCG@5", "coverage"]
    expected = held.evaluate(k=(3, 5)).to_frame().select(columns)
    assert table.to_frame().select(columns).equals(expected)
    assert held.bundle.manifest.data.until_seq < learned == rec.bundle.manifest.data.until_seq
    assert held.report is not None
    assert held.report.held_out > 0


def test_evaluation_table_as_frame_and_html() -> None:
    pandas_log = SimulatedShop(users=20, items=12).events().to_pandas()
    table = recloop.fit(pandas_log, model="popular", config=CONFIG, holdout="temporal").evaluate(k=5)
    frame = table.to_frame(intervals=True)
    assert isinstance(frame, pd.DataFrame)
    assert {"model", "NDCG@5", "NDCG@5_low", "NDCG@5_high", "coverage"} <= set(frame.columns)
    assert (frame["NDCG@5_low"] <= frame["NDCG@5"]).all()
    assert set(table.to_frame("repeat").columns) == set(table.to_frame().columns)
    html = table._repr_html_()
    assert f"<b>{frame['NDCG@5'].max():.4f}</b>" in html
    assert "95 % CI over users" in html
    with pytest.raises(UserError, match="slice_name=lukewarm"):
        table.to_frame("lukewarm")


def test_fit_with_auto_keeps_a_ranker_and_saves_it(
    tiny_simulated_shop: SimulatedShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranker, "MIN_MOMENTS", 2)  # a small log teaches few
    monkeypatch.setattr(ranker, "MIN_JUDGED", 1)
    events = tiny_simulated_shop.events()
    options = {**CONFIG, "ranker": {"model": "gbdt"}}
    rec = recloop.fit(events, model="auto", config=options, holdout="temporal")
    assert rec.bundle.policy.placements["home"].ranked
    lists = rec.recommend(["u01", "u02", "new"], n=10)
    assert lists["score"].is_between(0, 1).all()
    fused = recloop.fit(events, model="auto", config={**CONFIG, "ranker": {"model": "off"}}, holdout="temporal")
    assert lists["item_id"].to_list() != fused.recommend(["u01", "u02", "new"], n=10)["item_id"].to_list()
    assert "fusion" in rec.evaluate().to_frame()["model"].to_list()
    rec.save(tmp_path / "bundle")
    assert recloop.load(tmp_path / "bundle", events=events).recommend(["u01", "u02", "new"], n=10).equals(lists)


def test_fit_with_auto_fuses_the_baselines(tiny_simulated_shop: SimulatedShop) -> None:
    weights = (
        recloop.fit(tiny_simulated_shop.events(), model="auto", config=CONFIG).bundle.policy.placements["home"].weights
    )
    assert weights["history"] == 1.0


def test_fit_with_bad_arguments_names_them(tiny_simulated_shop: SimulatedShop) -> None:
    with pytest.raises(UserError, match="a frame of pandas, Polars or Arrow"):
        recloop.fit([1, 2, 3])
    with pytest.raises(UserError, match="model=nothing"):
        recloop.fit(tiny_simulated_shop.events(), model="nothing")
    with pytest.raises(UserError, match="holdout=random: expected None, temporal or leave-one-out"):
        recloop.fit(tiny_simulated_shop.events(), holdout="random")  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="fit, load, open"):
        _ = recloop.nothing


def test_project_opened_from_python_updates_and_recommends(tiny_simulated_shop: SimulatedShop, tmp_path: Path) -> None:
    shop = recloop.open(tiny_simulated_shop.write(tmp_path / "shop"), model__name="popular")
    live = shop.update()
    assert shop.update() == live == shop.status()["live"]
    assert len(shop.recommend("u01")["items"]) == 10
    assert shop.evaluate().rows[-1].row.model == "served"
    rows = tiny_simulated_shop.events().head(2).with_columns(event_id=pl.Series(["new-1", "new-2"]))
    assert shop.ingest(rows).to_json()["accepted"] == 2
    rows.write_parquet(tmp_path / "again.parquet")
    assert shop.ingest(tmp_path / "again.parquet").to_json()["duplicate"] == 2


def test_public_names_are_importable() -> None:
    for name in recloop.__all__:
        assert getattr(recloop, name) is not None
