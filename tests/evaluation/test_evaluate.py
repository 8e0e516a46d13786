"""The evaluator: queries, rows against a slow recount, invariances, and refusals."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from threadpoolctl import threadpool_info

from recloop.bundle import Bundle
from recloop.config import Config
from recloop.data.split import split
from recloop.errors import UserError
from recloop.evaluation import paired, parallel
from recloop.evaluation.evaluate import evaluate
from recloop.evaluation.lists import ListRecommender
from recloop.evaluation.metrics import RANKING
from recloop.evaluation.queries import make_queries, states_of
from recloop.evaluation.table import MIN_LENGTHS, EvaluationTable, make_table
from recloop.evaluation.table_rows import EvaluationProtocol, QueryMetrics, TrainingNote
from recloop.features.labels import EventLabeler
from recloop.features.moments import moment_stamps, number_moments
from recloop.features.spec import FeatureSpec
from recloop.features.state_history import StateHistory
from recloop.manifest import Manifest, ModelSpec, Training, TrainingRows
from recloop.recommend.catalog import Catalog
from recloop.recommend.recommender import Recommender
from recloop.recommend.top_k import Workspace
from recloop.records import EVENT_SCHEMA, EVENT_TYPE, GROUP_ID, IMPERSONAL, ITEM_ID, LABEL, SEQ, STAMP, USER_ID, Query
from recloop.settings import build
from recloop.simulation.shop import SimulatedShop
from recloop.training.baselines import draft_bundle, fit_counts
from recloop.training.dataset import make_tables, train_data, validation_data

CONFIG = build(
    {
        "events": {"neutral": ["click"], "positive": ["purchase"], "negative": ["dislike"]},
        "evaluate": {"k": [5, 10]},
        "features": {"context": []},
        "split": {"validation_users": 60},
    },
    (),
    {},
)
FACTS = {"split_hash": "a" * 64, "fingerprint": "b" * 64}


@dataclass(frozen=True)
class Data:
    """A split in the shape of `recloop.data`."""

    train: pl.DataFrame
    valid: pl.DataFrame
    test: pl.DataFrame
    cut: int
    users: None = None

    @property
    def events(self) -> pl.DataFrame:
        return pl.concat([self.train, self.valid, self.test])


def numbered(frame: pl.DataFrame, config: Config = CONFIG) -> pl.DataFrame:
    """Labelled rows with seq and moments."""
    frame = frame.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(SEQ))
    missing = [pl.lit(None, dtype=kind).alias(name) for name, kind in EVENT_SCHEMA.items() if name not in frame.columns]
    frame = frame.with_columns(missing)
    labelled = EventLabeler(config.events, config.clean).label(frame.select(list(EVENT_SCHEMA)))
    return number_moments(moment_stamps(labelled))


def cut(frame: pl.DataFrame, config: Config = CONFIG) -> Data:
    parts = split(numbered(frame, config), config.split)
    return Data(parts.train, parts.valid, parts.test, parts.cut)


def fitted(data: Data, weights: dict[str, float] | None = None, config: Config = CONFIG) -> Bundle:
    """A bundle of baselines with given fusion weights."""
    tables = make_tables(FeatureSpec.from_config(config), pl.concat([data.train, data.valid]), data.cut, None, None)
    arrays = train_data(tables, data.train, data.valid)
    made, scorers = fit_counts(arrays, tables)
    manifest = Manifest(ModelSpec("counts", {}), TrainingRows(data.cut))
    bundle = draft_bundle(config, tables, arrays, made, scorers, manifest)
    home = replace(bundle.policy.placements["home"], weights=weights or {"history": 1.0, "neighbours": 0.5})
    return replace(bundle, policy=replace(bundle.policy, placements={"home": home}))


def tabled(data: Data, bundle: Bundle, config: Config = CONFIG) -> EvaluationTable:
    return evaluate([bundle], data, Catalog.from_table(bundle.items.ids.ids, bundle.items.attributes), config, FACTS)


@pytest.fixture(scope="module")
def data() -> Data:
    return cut(SimulatedShop(seed=0, users=120, items=80).events())


@pytest.fixture(scope="module")
def bundle(data: Data) -> Bundle:
    return fitted(data)


@pytest.fixture(scope="module")
def table(data: Data, bundle: Bundle) -> EvaluationTable:
    return tabled(data, bundle)


def numbers(table: EvaluationTable) -> dict[str, Any]:
    """A table as JSON without the seconds."""
    tree = table.to_json()
    for row in tree["rows"]:
        row.pop("seconds")
    return tree


# ---- queries --------------------------------------------------------------------------------------------------------


def log(*rows: tuple[str, str, int, str, str | None]) -> pl.DataFrame:
    schema = [USER_ID, ITEM_ID, "timestamp", EVENT_TYPE, GROUP_ID]
    return numbered(pl.DataFrame(rows, schema=schema, orient="row"))


def test_make_queries_by_target_kind_gives_their_moments() -> None:
    test = log(
        ("u1", "a", 10, "purchase", "g1"),
        ("u2", "z", 11, "dislike", None),  # a moment without a positive is not a query
        ("u1", "b", 12, "purchase", "g1"),  # a late row of the basket has stamp 10
        ("u1", "a", 20, "purchase", None),
        ("u1", "a", 20, "purchase", None),
        ("u1", "c", 20, "click", None),
        ("u3", "c", 21, "purchase", None),
    )
    found = make_queries(test, "successive")
    assert found.users == ["u1", "u1", "u3"]
    assert found.now.tolist() == [10, 20, 21]
    assert found.as_of.tolist() == [0, 3, 6]  # the newest seq before any row of the moment
    assert found.offsets.tolist() == [0, 2, 3, 4]
    assert found.targets == ["a", "b", "a", "c"]  # distinct, in the order of id bytes
    assert make_queries(test, "next").now.tolist() == [10, 21]
    with pytest.raises(UserError, match=r"split\.targets=last: expected moments of one item"):
        make_queries(test, "last")
    single = test.filter(pl.col(STAMP) > 10)
    assert make_queries(single, "last").now.tolist() == [20, 21]


def test_make_queries_exclude_late_rows_from_the_state() -> None:
    rows = log(
        ("u1", "a", 5, "purchase", None),
        ("u1", "b", 50, "purchase", None),  # the query
        ("u1", "c", 6, "purchase", None),  # dated before the query, arrived after it
    )
    found = make_queries(rows.filter(pl.col(STAMP) == 50), "next")
    states = StateHistory(rows).states(found.users, found.as_of.tolist(), found.now.tolist())
    assert states.names[states.items].tolist() == ["a"]


# ---- metrics --------------------------------------------------------------------------------------------------------


def recount(
    data: Data, bundle: Bundle, ranked: dict[tuple[str, int], list[str]], k: int
) -> dict[str, dict[str, float]]:
    """Recompute every metric of every slice, one query at a time."""
    events = data.events.filter(pl.col(LABEL) > 0)
    known = set(bundle.items.ids.ids)
    items_at: dict[tuple[str, int], set[str]] = {}
    for user, item, stamp in events.select(USER_ID, ITEM_ID, STAMP).iter_rows():
        items_at.setdefault((user, stamp), set()).add(item)
    per_user: dict[tuple[str, str], dict[str, list[float]]] = {}
    for user, stamp in {
        (user, stamp) for user, stamp in data.test.filter(pl.col(LABEL) > 0).select(USER_ID, STAMP).iter_rows()
    }:
        targets = items_at[user, stamp]
        before = set().union(*(items for (u, s), items in items_at.items() if u == user and s < stamp))
        slices = {
            "all": targets, "warm": targets & known, "cold": targets - known, "repeat": targets & before,
            "explore": targets - before,
        }  # fmt: skip
        for part, wanted in slices.items():
            if not wanted:
                continue
            hits = [rank for rank, item in enumerate(ranked[user, stamp][:k], 1) if item in wanted]
            ideal = sum(1 / log2(rank + 1) for rank in range(1, min(k, len(wanted)) + 1))
            values = {
                "HR": float(bool(hits)), "Recall": len(hits) / len(wanted), "MRR": 1 / hits[0] if hits else 0.0,
                "NDCG": sum(1 / log2(rank + 1) for rank in hits) / ideal,
            }  # fmt: skip
            for name, value in values.items():
                per_user.setdefault((part, name), {}).setdefault(user, []).append(value)
    return {
        part: {name: float(np.mean([np.mean(own) for own in per_user[part, name].values()])) for name in RANKING}
        for part in ("all", "warm", "cold", "repeat", "explore")
    }


def slow_lists(data: Data, bundle: Bundle, source: str) -> dict[tuple[str, int], list[str]]:
    """Popular and bought-before lists, computed with dictionaries."""
    order = sorted(
        range(len(bundle.items)), key=lambda ix: (-int(bundle.items.count[ix]), ix)
    )  # the popular list: training positives, ties by index
    popular = [bundle.items.ids.ids[ix] for ix in order]
    baskets: dict[str, dict[int, set[str]]] = {}
    for user, item, stamp in data.events.filter(pl.col(LABEL) > 0).select(USER_ID, ITEM_ID, STAMP).iter_rows():
        baskets.setdefault(user, {}).setdefault(stamp, set()).add(item)
    disliked = [tuple(row) for row in data.events.filter(pl.col(LABEL) < 0).select(USER_ID, ITEM_ID, STAMP).iter_rows()]
    lists = {}
    for user, stamp in data.test.filter(pl.col(LABEL) > 0).select(USER_ID, STAMP).unique().iter_rows():
        past = {when: items for when, items in baskets[user].items() if when < stamp}
        banned = {
            item
            for who, item, when in disliked
            if who == user and when < stamp and not any(item in items for later, items in past.items() if later > when)
        }
        counts: dict[str, int] = {}
        for items in past.values():
            for item in items:
                counts[item] = counts.get(item, 0) + 1
        own = [
            item
            for item in sorted(counts, key=lambda item: (-counts[item], popular.index(item) if item in popular else 0))
            if item in popular
        ]
        made = (own if source == "history" else []) + popular
        lists[user, stamp] = list(dict.fromkeys(item for item in made if item not in banned))
    return lists


@pytest.mark.parametrize(("model", "source"), [("popular", "popular"), ("bought_before", "history")])
def test_evaluate_row_equals_a_slow_recount(
    data: Data, bundle: Bundle, table: EvaluationTable, model: str, source: str
) -> None:
    row = next(row for row in table.rows if row.row.model == model)
    for k in (5, 10):
        slow = recount(data, bundle, slow_lists(data, bundle, source), k)
        for part, values in slow.items():
            for name, value in values.items():
                assert row.estimates[part, f"{name}@{k}"].value == pytest.approx(value, abs=1e-9), (part, name, k)


def test_evaluate_served_row_equals_recommend(data: Data, bundle: Bundle, table: EvaluationTable) -> None:
    queries = make_queries(data.test, "successive")
    recommender = Recommender(bundle, Catalog.from_table(bundle.items.ids.ids, bundle.items.attributes))
    timeline = StateHistory(data.events)
    ranked = {}
    for q, user in enumerate(queries.users):  # one at a time, as in serving
        now = int(queries.now[q])
        states = timeline.states([user], [int(queries.as_of[q])], [now])
        answer = recommender.recommend(states, [Query(user_id=user, now=now, n=10)], with_inputs=False)[0]
        ranked[user, now] = answer.items
    slow = recount(data, bundle, ranked, 10)
    served = next(row for row in table.rows if row.row.model == "served")
    for part, values in slow.items():
        for name, value in values.items():
            assert served.estimates[part, f"{name}@10"].value == pytest.approx(value, abs=1e-9)
    shown = {item for items in ranked.values() for item in items[:5]}  # coverage counts the first k
    assert served.row.coverage == pytest.approx(len(shown) / len(bundle.items))


def test_list_recommender_equals_recommend(data: Data, bundle: Bundle) -> None:
    """Short lists too: the catalog has items outside the table, and unknown users have no history."""
    queries = make_queries(data.test, "successive")
    span = slice(0, 12)
    states = states_of(StateHistory(data.events), queries, span)
    items = [*bundle.items.ids.ids, "new-1", "new-2"]
    catalogue = Catalog.from_table(items, [{}] * len(items))
    fallback = ("latest", "popular")
    changed = replace(bundle, policy=replace(bundle.policy, fallback=fallback))
    batch = [
        Query(user_id=user, now=int(now), n=60) for user, now in zip(queries.users[span], queries.now, strict=False)
    ]
    answers = Recommender(changed, catalogue).recommend(states, batch, with_inputs=False)
    recommender = ListRecommender(changed, catalogue, "home", 60)
    found = recommender.recommend(states, queries.now[span])
    assert recommender.ids(found.items) == [answer.items for answer in answers]
    shares = [np.mean([source not in IMPERSONAL for source in answer.sources]) for answer in answers]
    assert found.covering_share == pytest.approx(shares)
    assert recommender.numbers(["new-1", "unknown"]).tolist() == [len(bundle.items) + 1, 0]


def test_answer_each_equals_single_answers(data: Data, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "CHUNK_QUERIES", 6)
    other = fitted(data, {"popular": 1.0})
    queries = paired.subsample(make_queries(data.test, "successive"), 20)
    timeline, catalogue = StateHistory(data.events), Catalog.from_table(bundle.items.ids.ids, bundle.items.attributes)
    for found, single in zip(
        paired.answer_each([bundle, other], queries, timeline, catalogue, threads=2),
        [paired.answer(one, queries, timeline, catalogue) for one in (bundle, other)],
        strict=True,
    ):
        assert found.lists == single.lists
        assert np.array_equal(found.repeat, single.repeat, equal_nan=True)
        assert np.array_equal(found.covering, single.covering)


def test_window_losses_equal_the_loss_of_each_window_alone(data: Data, bundle: Bundle) -> None:
    windows = paired.windows(make_queries(data.test, "successive"), 4, 7)
    timeline, catalogue = (
        StateHistory(data.events, data.users),
        Catalog.from_table(bundle.items.ids.ids, bundle.items.attributes),
    )
    alone = [paired.window_loss(paired.answer(bundle, one, timeline, catalogue).ndcg) for one in windows]
    assert paired.window_losses(bundle, windows, timeline, catalogue, threads=2) == alone
    assert len({loss.loss for loss in alone}) > 1


def test_each_span_answers_with_one_thread_of_blas() -> None:
    def n_threads() -> list[int]:
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    before, inside = n_threads(), []
    spans = list(parallel.each_span([1, 2], 600, lambda worker, span: inside.append(n_threads())))
    assert [(span.start, span.stop) for span in spans] == [(0, 256), (256, 512), (512, 600)]
    assert {count for counts in inside for count in counts} == {1}
    assert n_threads() == before


def test_results_of_a_sample_and_the_rest_are_those_of_all_queries(data: Data, bundle: Bundle) -> None:
    queries = make_queries(data.test, "successive")
    sample, rest = paired.split_sample(queries, 20)
    assert (len(sample), len(rest)) == (20, len(queries) - 20)
    timeline, catalogue = StateHistory(data.events), Catalog.from_table(bundle.items.ids.ids, bundle.items.attributes)
    first, later, every = (paired.answer(bundle, part, timeline, catalogue) for part in (sample, rest, queries))
    joined = first + later
    moments = [*zip(sample.users, sample.now.tolist(), strict=True), *zip(rest.users, rest.now.tolist(), strict=True)]
    order = [moments.index(moment) for moment in zip(queries.users, queries.now.tolist(), strict=True)]
    assert [joined.lists[n] for n in order] == every.lists
    for name in ("users", "ndcg", "repeat", "explore", "cold", "covering"):
        values, expected = getattr(joined, name)[order], getattr(every, name)
        assert (
            values.tolist() == expected.tolist()
            if name == "users"
            else np.array_equal(values, expected, equal_nan=True)
        )
    assert paired.split_sample(queries, len(queries))[0] is queries


def test_latency_of_a_fast_bundle_stops_at_an_even_part_of_the_queries(
    data: Data, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paired, "FIRST_TIMED_QUERIES", 5)
    queries = make_queries(data.test, "successive")
    timeline, catalogue = StateHistory(data.events), Catalog.from_table(bundle.items.ids.ids, bundle.items.attributes)
    counts = [
        len(paired.latency((bundle, bundle), queries, timeline, catalogue, fast_seconds)[0])
        for fast_seconds in (0.0, 9.0)
    ]
    assert counts == [paired.TIMED_QUERIES, 5]


def test_evaluate_unseen_targets_are_misses_in_all_and_excluded_in_warm(
    data: Data, bundle: Bundle, table: EvaluationTable
) -> None:
    unseen = set(make_queries(data.test, "successive").targets) - set(bundle.items.ids.ids)
    assert unseen  # the simulated shop adds items after the cut
    for row in table.rows:
        assert row.estimates["warm", "Recall@10"].value > row.estimates["all", "Recall@10"].value


def test_evaluate_is_independent_of_the_order_within_moments(data: Data, table: EvaluationTable) -> None:
    events = data.events.sort(SEQ)
    order = np.random.default_rng(5).permutation(len(events))
    shuffled = events.with_columns(pl.Series("order", order)).sort("timestamp", "order")
    assert shuffled[ITEM_ID].to_list() != events[ITEM_ID].to_list()
    again = cut(shuffled.select([name for name in EVENT_SCHEMA if name != SEQ]))
    assert again.cut == data.cut
    assert numbers(tabled(again, fitted(again))) == numbers(table)


def test_evaluate_is_independent_of_the_chunk_size(
    data: Data, bundle: Bundle, table: EvaluationTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "CHUNK_QUERIES", 7)
    assert numbers(tabled(data, bundle)) == numbers(table)


def test_evaluate_is_independent_of_the_number_of_threads(
    data: Data, bundle: Bundle, table: EvaluationTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "CHUNK_QUERIES", 5)
    catalogue = Catalog.from_table(bundle.items.ids.ids, bundle.items.attributes)
    threaded = evaluate([bundle], data, catalogue, CONFIG, FACTS, threads=3)
    assert numbers(threaded) == numbers(table)


def test_evaluate_reports_progress(data: Data, bundle: Bundle) -> None:
    progress_calls: list[tuple[int, int]] = []
    catalogue = Catalog.from_table(bundle.items.ids.ids, bundle.items.attributes)
    evaluate(
        [bundle], data, catalogue, CONFIG, FACTS, progress=lambda done, total: progress_calls.append((done, total))
    )
    assert progress_calls[-1][0] == progress_calls[-1][1] == len(make_queries(data.test, "successive"))


def test_evaluate_without_repeats_has_null_slices() -> None:
    rows = [(f"u{u}", f"i{(u + m) % 12}", 1_000 * m + u, "purchase", None) for m in range(6) for u in range(8)]
    frame = pl.DataFrame(rows, schema=[USER_ID, ITEM_ID, "timestamp", EVENT_TYPE, GROUP_ID], orient="row")
    made = cut(frame)
    tree = tabled(made, fitted(made)).to_json()
    assert [(row["repeat"], row["explore"]) for row in tree["rows"]] == [(None, None)] * 4
    assert tree["rows"][0]["warm"]["NDCG@10"]["value"] is not None


# ---- the table --------------------------------------------------------------------------------------------


def test_evaluation_json_has_the_documented_keys(table: EvaluationTable) -> None:
    tree = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert {"name", "split_hash", "targets", "filter_seen", "ties", "k", "seed"} <= set(tree["protocol"])
    assert [row["model"] for row in tree["rows"]] == ["popular", "bought_before", "covisitation", "served"]
    names = {f"{name}@{k}" for name in ("HR", "Recall", "NDCG", "MRR") for k in (5, 10)}
    health = {"coverage", "entropy", "long_tail_share"}
    shared = {"model", "bundle", "warm", "cold", "repeat", "explore", "seconds", "epochs", "steps", "note"}
    for row in tree["rows"]:
        assert set(row) == shared | names | health
        for part in ("warm", "cold", "repeat", "explore"):
            assert set(row[part]) == names
        for name in names:
            assert set(row[name]) == {"value", "low", "high"}
            assert row[name]["low"] <= row[name]["value"] <= row[name]["high"]
    assert len(tree["examples"]) == 5
    assert sum(part["moments"] for part in tree["lengths"]) == tree["protocol"]["moments"]


def test_evaluation_save_writes_one_json_file(table: EvaluationTable, tmp_path: Path) -> None:
    path = table.save(tmp_path / "reports")
    assert path.name == "evaluation.json"
    assert json.loads(path.read_text("utf-8")) == json.loads(json.dumps(table.to_json()))
    assert [file.name for file in path.parent.iterdir()] == ["evaluation.json"]


def test_bundle_metrics_exclude_the_bundle_name_and_seconds(table: EvaluationTable) -> None:
    kept = table.bundle_metrics()
    assert all("bundle" not in row and "seconds" not in row for row in kept["rows"])
    named = table.with_bundle("counts-20250101T000000Z-00000000")
    assert {row["bundle"] for row in named.to_json()["rows"]} == {"counts-20250101T000000Z-00000000"}
    assert named.bundle_metrics() == kept


def test_evaluation_examples_show_history_and_targets(data: Data, table: EvaluationTable) -> None:
    for one in table.examples:
        took = data.test.filter((pl.col(USER_ID) == one.user_id) & (pl.col(STAMP) == one.now) & (pl.col(LABEL) > 0))
        assert set(one.took) == set(took[ITEM_ID])
        assert len(one.slots) == 10
        assert all(stamp < one.now for stamp, _ in one.history)
        assert one.history == sorted(one.history, reverse=True)
    assert [one.positives for one in table.examples] == sorted(one.positives for one in table.examples)


def simulated_protocol(users: int) -> EvaluationProtocol:
    return EvaluationProtocol(
        name="temporal", split_hash="", fingerprint="", targets="next", filter_seen=False, ties="moment", k=(10,),
        seed=0, moments=users, users=users, items=9, wanted=0, unknown=0,
    )  # fmt: skip


def simulated_table(gain: float, kind: str = "network", base: float = 0.2) -> EvaluationTable:
    """A table of 400 users with a network row ``gain`` above the baseline row."""
    random = np.random.default_rng(1)
    own = random.normal(base, 0.05, 400)
    lists = {"popular": own / 2, "covisitation": own, "sasrec": own + gain + random.normal(0, 0.02, 400)}

    def row(name: str, values: np.ndarray) -> QueryMetrics:
        held = {
            (part, f"{metric}@10"): values
            for part in ("all", "warm", "cold", "repeat", "explore")
            for metric in RANKING
        }
        return QueryMetrics(name, "b", kind if name == "sasrec" else "baseline", held, 0.1, 0.2, 0.3, 1.0)  # type: ignore[arg-type]

    protocol = simulated_protocol(400)
    rows = [row(name, values) for name, values in lists.items()]
    return make_table(protocol, rows, [f"u{n}" for n in range(400)], np.arange(400), [])


def test_evaluation_sentence_states_the_gain_of_the_network() -> None:
    more = simulated_table(0.01).sentence
    assert "against covisitation, the best baseline (NDCG@10 0." in more[0].lower() + more[1:]
    assert "sasrec alone adds 0.0" in more
    assert "paired over 400 users" in more
    assert "sasrec alone loses 0.0" in simulated_table(-0.01).sentence
    assert "sasrec alone is inconclusive: " in simulated_table(0.0).sentence
    assert simulated_table(0.01, kind="served").sentence.startswith("This table has no network; against covisitation")


def test_evaluation_sentence_explains_zeros_and_a_single_user() -> None:
    def row(name: str, values: np.ndarray) -> QueryMetrics:
        held = {
            (part, f"{metric}@10"): values
            for part in ("all", "warm", "cold", "repeat", "explore")
            for metric in RANKING
        }
        kind = "served" if name == "served" else "baseline"
        return QueryMetrics(name, "b", kind, held, 0.1, 0.2, 0.3, 1.0)  # type: ignore[arg-type]

    protocol = replace(simulated_protocol(22), wanted=22, unknown=22)
    zeros = [row("popular", np.zeros(22)), row("served", np.zeros(22))]
    made = make_table(protocol, zeros, [f"u{n}" for n in range(22)], np.zeros(22, dtype=np.int64), [])
    assert made.sentence.endswith("Every row is 0: 22 of 22 targets were not in the catalog before the cut.")
    assert "the list as served: difference +0.0000" in made.sentence
    one = [row("popular", np.full(3, 0.5)), row("served", np.full(3, 0.2))]
    made = make_table(replace(protocol, users=1), one, ["ann"] * 3, np.zeros(3, dtype=np.int64), [])
    assert made.sentence.endswith("(one user: no interval).")
    assert made.to_json()["rows"][0]["NDCG@10"] == {"value": 0.5, "low": None, "high": None}


def test_evaluation_compares_rows_with_the_best_baseline(table: EvaluationTable) -> None:
    best = max(table.rows[:3], key=lambda row: row.estimates["all", "NDCG@5"].value)
    assert [(one.model, one.base) for one in table.compared] == [("served", best.row.model)]
    served = table.rows[-1].estimates["all", "NDCG@5"].value
    gap = served - best.estimates["all", "NDCG@5"].value
    assert table.compared[0].difference.absolute.value == pytest.approx(gap)


def test_evaluation_lengths_are_buckets_of_positives(table: EvaluationTable) -> None:
    for one in table.lengths:
        assert one.first in MIN_LENGTHS
        assert one.last is None or one.last + 1 in MIN_LENGTHS
        assert set(one.rows) == {"popular", "bought_before", "covisitation", "served"}
    first = simulated_table(0.0).lengths
    assert [(one.first, one.last, one.moments) for one in first[:4]] == [(0, 0, 1), (1, 2, 2), (3, 4, 2), (5, 9, 5)]
    assert sum(one.moments for one in first) == 400


def test_evaluate_two_bundles_gives_one_table(data: Data, bundle: Bundle) -> None:
    first = replace(bundle, manifest=replace(bundle.manifest, bundle="counts-a"))
    other = fitted(data, {"popular": 1.0})
    other = replace(other, manifest=replace(other.manifest, bundle="counts-b"))
    catalogue = Catalog.from_table(bundle.items.ids.ids, bundle.items.attributes)
    both = evaluate([first, other], data, catalogue, CONFIG, FACTS)
    assert [(row.row.model, row.row.bundle) for row in both.rows[3:]] == [
        ("served", "counts-a"),
        ("served", "counts-b"),
    ]
    popular, served = both.rows[0], both.rows[4]
    assert served.estimates["all", "NDCG@10"].to_json() == popular.estimates["all", "NDCG@10"].to_json()
    assert set(both.lengths[0].rows) >= {"served of counts-a", "served of counts-b"}
    assert "the list as served of counts-b loses" in both.sentence


def test_evaluation_table_render_contains_its_rows(table: EvaluationTable, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    Console(width=160).print(table.render())
    drawn = capsys.readouterr().out
    for text in (
        "Recall@10",
        "NDCG@5",
        "bought_before",
        "served",
        "temporal",
        "filter_seen false",
        "ties moment",
        "aaaaaaaa",
    ):
        assert text in drawn


# ---- refusals ------------------------------------------------------------------------------------------------


def test_evaluate_of_a_bundle_that_learned_the_test_is_refused(data: Data, bundle: Bundle) -> None:
    first = int(make_queries(data.test, "successive").now.min())
    later = replace(bundle, manifest=replace(bundle.manifest, data=TrainingRows(first + 1)))
    with pytest.raises(UserError, match="a cut before the test"):
        tabled(data, later)
    refitted = replace(bundle, manifest=replace(bundle.manifest, train=Training(refit=True)))
    with pytest.raises(UserError, match="a cut before the test"):
        tabled(data, refitted)


def test_evaluate_with_nan_in_a_bundle_raises(data: Data, bundle: Bundle) -> None:
    weights = bundle.arrays["neighbours.weights"].copy()
    weights[3] = np.nan
    broken = replace(bundle, arrays={**bundle.arrays, "neighbours.weights": weights})
    with pytest.raises(UserError, match="NaN or infinite: expected finite numbers"):
        tabled(data, broken)


def test_evaluate_with_an_empty_model_ranking_raises(
    data: Data, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user vector of NaN gives an empty ranking for a user with history."""
    from recloop.recommend import sources

    class Broken(sources.PopularSource):
        def best(self, encoded: Any, allowed: Any, *depth: int) -> Any:
            found = super().best(encoded, allowed, *depth)
            found.items[::2] = 0
            return found

    def made(bundle: Bundle, threads: int = 1) -> dict[str, Any]:
        return {
            "popular": sources.PopularSource(bundle, Workspace(len(bundle.items) + 1)),
            "model": Broken(bundle, Workspace(len(bundle.items) + 1)),
        }

    monkeypatch.setattr("recloop.recommend.recommender.make_sources", made)
    with pytest.raises(UserError, match="scores=NaN"):
        tabled(data, bundle)


def test_evaluate_without_test_moments_raises(data: Data, bundle: Bundle) -> None:
    with pytest.raises(UserError, match="test moments=0"):
        tabled(replace(data, test=data.test.clear()), bundle)


def test_evaluate_import_loads_no_torch() -> None:
    code = "import sys, recloop.evaluation.evaluate, recloop.training.fusion_weights; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("train", "note", "text"),
    [
        (Training(epochs=0, steps=11, steps_per_epoch=351), "not trained: 11 steps", "not trained: 11 steps"),
        (Training(epochs=3, steps=1367, steps_per_epoch=351), "", "3 epochs, 1,367 steps"),
        (Training(epochs=0, steps=11, steps_per_epoch=351, mode="warm"), "", "0 epochs, 11 steps"),
    ],
)
def test_training_note_of_less_than_an_epoch_is_not_trained(train: Training, note: str, text: str) -> None:
    trained = TrainingNote.from_training(train)
    assert trained is not None
    assert (trained.note, str(trained)) == (note, text)
    assert TrainingNote.from_training(Training(epochs=0)) is None, "no network"


def test_evaluation_row_of_an_untrained_network_has_the_note(table: EvaluationTable) -> None:
    scored = replace(table.rows[-1], row=replace(table.rows[-1].row, trained=TrainingNote(0, 11, 351)))
    row = replace(table, rows=[*table.rows[:-1], scored]).to_json()["rows"][-1]
    assert (row["epochs"], row["steps"], row["note"]) == (0, 11, "not trained: 11 steps")
    first = table.to_json()["rows"][0]
    assert (first["epochs"], first["steps"], first["note"]) == (None, None, "")
    shown = Console(file=io.StringIO(), width=200)
    shown.print(replace(table, rows=[*table.rows[:-1], scored]).render())
    assert "not trained: 11 steps" in shown.file.getvalue()  # type: ignore[attr-defined]


def test_validation_data_trains_on_earlier_rows_only(data: Data) -> None:
    """Training ends before the first validation moment; validation reads all history."""
    tables = make_tables(FeatureSpec.from_config(CONFIG), pl.concat([data.train, data.valid]), data.cut, None, None)
    found = validation_data(tables, data.train, data.valid, None, temporal=True)
    whole = train_data(tables, data.train, data.valid)
    assert found.held is not None
    assert whole.held is not None
    start = int(found.held.now.min())
    assert len(found.stamps) < len(whole.stamps)
    assert found.stamps.max() < start <= whole.stamps.max()
    assert found.cut == start
    assert found.counts.sum() == len(data.train.filter((pl.col(LABEL) > 0) & (pl.col(STAMP) < start)))
    assert found.history is not None
    np.testing.assert_array_equal(found.history.seqs, whole.seqs)
    np.testing.assert_array_equal(found.held.items, whole.held.items)
    alone = validation_data(tables, data.train, data.valid, None, temporal=False)
    assert alone.history is None
    np.testing.assert_array_equal(alone.seqs, whole.seqs)
