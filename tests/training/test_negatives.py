"""Negative feedback: rows that count, their moments, and the effect of weights and dislikes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recloop.config import Clean, Events
from recloop.features.labels import EventLabeler
from recloop.features.moments import moment_stamps
from recloop.features.vocabulary import Vocabulary
from recloop.models.base import Negatives, TrainData, load_model
from recloop.records import EVENT_SCHEMA, Decision
from recloop.settings import build
from recloop.training import trainer
from recloop.training.batches import SequenceDataset
from recloop.training.negatives import SKIPPED_WEIGHT, NegativesByMoment, negatives, skipped_above_click, slots_of

Arrays = Callable[..., TrainData]
DAY = 86_400_000_000
SIGNAL = EventLabeler(
    Events(weights={"click": 1, "skip": -0.5, "dislike": -1}, positive=("purchase",), negative=()), Clean()
)


def log(*rows: tuple[Any, ...]) -> pl.DataFrame:
    """Labelled rows of (user, item, day, type, request)."""
    plain = [
        {"seq": n, "user_id": user, "item_id": item, "timestamp": day * DAY, "event_type": kind, "request_id": request}
        for n, (user, item, day, kind, *rest) in enumerate(rows, 1)
        for request in [rest[0] if rest else None]
    ]
    return moment_stamps(SIGNAL.label(pl.DataFrame(plain, schema=EVENT_SCHEMA)))


def rows_of(found: Negatives | None) -> list[tuple[int, int, int, float]]:
    if found is None:
        return []
    days = (found.stamps // DAY).tolist()
    return list(zip(found.user_ix.tolist(), found.items.tolist(), days, found.weights.tolist(), strict=True))


def test_negatives_keep_the_largest_weight_per_item_and_moment() -> None:
    rows = log(
        ("u", "a", 1, "skip"), ("u", "a", 1, "dislike"), ("u", "a", 2, "skip"), ("v", "b", 1, "skip"),
        ("u", "unheard", 1, "dislike"), ("unheard", "a", 1, "dislike"),
    )  # fmt: skip
    found = negatives(Vocabulary(["a", "b"]), Vocabulary(["u", "v"]), rows)
    assert rows_of(found) == [(0, 1, 1, 1.0), (0, 1, 2, 0.5), (1, 2, 1, 0.5)]


def test_negatives_exclude_items_with_a_later_positive() -> None:
    rows = log(("u", "a", 1, "dislike"), ("u", "a", 2, "purchase"), ("u", "b", 2, "purchase"), ("u", "b", 3, "skip"))
    assert rows_of(negatives(Vocabulary(["a", "b"]), Vocabulary(["u"]), rows)) == [(0, 2, 3, 0.5)]
    assert negatives(Vocabulary(["a"]), Vocabulary(["u"]), log(("u", "a", 1, "purchase"))) is None


def test_skipped_above_click_are_items_above_the_last_click_of_the_request() -> None:
    shown = [("u", item, 1, "impression", "r") for item in "abcdef"]
    other = [("u", item, 2, "impression", "s") for item in "abc"]  # without a click there are no negatives
    rows = log(*shown, ("u", "b", 1, "click", "r"), ("u", "d", 1, "click", "r"), ("u", "c", 1, "dislike", "r"), *other)
    found = skipped_above_click(rows)
    assert found.select("user_id", "item_id", "weight").rows() == [("u", "a", pytest.approx(SKIPPED_WEIGHT))]
    # The order of an answered list overrides the order of its impressions.
    lists = slots_of([decided("r", "u", "fdabce"), decided("r", "u", "b", role="shadow"), decided("x", "u", "ab")])
    assert skipped_above_click(rows, lists)["item_id"].to_list() == ["a", "f"]  # b at slot 3 is the last click
    assert not len(skipped_above_click(rows, slots_of([decided("r", "another user", "fdabce")])))


def test_skipped_above_click_with_a_decision_needs_no_impressions() -> None:
    rows = log(("u", "b", 1, "click", "r"), ("u", "a", 3, "purchase"), ("v", "b", 1, "click", "r"))
    found = skipped_above_click(rows, slots_of([decided("r", "u", "cbad")]))
    assert found.select("user_id", "item_id", "seq").rows() == [("u", "c", 1)]
    found_negatives = negatives(
        Vocabulary(["a", "b", "c"]), Vocabulary(["u"]), rows, slots_of([decided("r", "u", "cbad")])
    )
    assert rows_of(found_negatives) == [(0, 3, 1, pytest.approx(SKIPPED_WEIGHT))]


def decided(request: str, user: str, items: str, role: str = "answer") -> Decision:
    return Decision(
        request_id=request, role=role, user_id=user, served_at=0, as_of_seq=0, bundle="b", generation=1, variant="live",
        placement="home", n=10, query={}, items=list(items), scores=[], sources=[],
    )  # fmt: skip


def with_negatives(data: TrainData, *rows: tuple[int, int, float, int, float]) -> TrainData:
    """The data with negatives (user_ix, item_ix, day, seq, weight)."""
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    user, item, day, seq, weight = columns
    stamps = (day * DAY).astype(np.int64)
    return replace(data, negatives=Negatives(user, item.astype(np.int32), stamps, seq, weight.astype(np.float32)))


def test_negatives_by_moment_use_the_last_earlier_input_moment(arrays: Arrays) -> None:
    data = arrays([[[1], [2], [3], [4]], [[1]], [[2], [3]]], 5, seqs=[1, 2, 3, 40, 4, 5, 6])
    data = with_negatives(
        data,
        (0, 5, 0.0, 100, 1.0),  # at the stamp of the first moment: no earlier moment
        (0, 5, 1.0, 101, 2.0),  # at the stamp of the second: used at the first
        (0, 5, 1.5, 102, 3.0),  # between second and third: used at the second
        (0, 5, 9.0, 103, 4.0),  # after the newest, which is only a target: used at the third
        (0, 5, 2.5, 2, 5.0),  # arrived before the third moment
        (1, 5, 9.0, 104, 6.0),  # a user with one moment has no input
        (2, 5, 9.0, 105, 7.0),
    )
    found = NegativesByMoment(data)
    assert dict(zip(found.moment.tolist(), found.weights.tolist(), strict=True)) == {0: 2.0, 1: 3.0, 2: 4.0, 5: 7.0}
    sequences = SequenceDataset(data, 2)
    windows = sequences.training()
    batch = sequences.batch(windows, sequences.draw(0, 0))
    assert batch.rejected is not None
    assert batch.rejected_weights is not None
    seen = {}
    for (window, moment, item), weight in zip(batch.rejected.tolist(), batch.rejected_weights.tolist(), strict=True):
        seen[weight] = int(windows.stops[window] - 1 - moment)
        assert item == 5
    assert seen == {2.0: 0, 3.0: 1, 4.0: 2, 7.0: 5}


NETWORKS: dict[str, dict[str, object]] = {
    "sasrec": {"dropout": 0.0, "blocks": 1, "heads": 1, "start": "random"},
    "gru4rec": {"dropout": 0.0, "hidden": 8, "start": "random"},
    "two_tower": {"dropout": 0.0, "alone": 0.0, "hidden": 8, "uniform": 16, "start": "random"},
    "neumf": {"dropout": 0.0, "hidden": 8, "pairs": 32, "start": "random"},
}


CASES = [("sasrec", 3), *((name, 2) for name in NETWORKS)]


def after_one(data: TrainData, folder: Path, name: str) -> torch.Tensor:
    """Scores (N,) of the items after item 1, by a network trained on these rows."""
    config = build(
        {"features": {"dim": 8, "max_history": 5, "context": []}, "train": {"lr": 0.02, "epochs": 20}}, environment={}
    )
    folder.mkdir(exist_ok=True)
    network = load_model(name, NETWORKS[name])
    learner, _ = trainer.train(network, data, config, folder, 600, quiet=True)
    with torch.no_grad():
        table = learner.vectors()
        one = torch.zeros(1, 1, dtype=torch.long)
        if name == "neumf":  # it has no order: the mean over all users, who took item 1
            users = network.user_vectors()[1:]
            means: torch.Tensor = network.score_candidates(users, table[None, 1:]).mean(0)
            return means
        users = network.forward_user(table[one + 1], one, one == 0, torch.zeros(1, 0, dtype=torch.long))
        scores: torch.Tensor = (users @ table[1:].T)[0]
    return scores


def forked(arrays: Arrays) -> TrainData:
    """Items 2 and 3 follow item 1 equally often; no user is held out."""
    return arrays([[[1], [2 + n % 2]] for n in range(60)], 8)


@pytest.mark.parametrize(("name", "heavy"), CASES)
def test_train_with_weight_5_ranks_the_heavier_item_first(
    arrays: Arrays, tmp_path: Path, name: str, heavy: int
) -> None:
    data = forked(arrays)
    weights = np.where(data.items == heavy, 5.0, 1.0).astype(np.float32)
    scores = after_one(replace(data, weights=weights), tmp_path, name)
    odds = float(scores[heavy - 1] - scores[4 - heavy])
    if name in ("sasrec", "gru4rec"):
        assert odds == pytest.approx(np.log(5), abs=0.3)  # five times as likely
    assert odds > 0.5


@pytest.mark.parametrize(("name", "disliked"), CASES)
def test_train_with_dislikes_lowers_the_score(arrays: Arrays, tmp_path: Path, name: str, disliked: int) -> None:
    """The disliked item falls behind the other one."""
    data = forked(arrays)
    rows = [(user, disliked, 0.5, 1000 + user, 1.0) for user in range(60)]
    before, after = (
        float(scores[disliked - 1] - scores[4 - disliked])
        for scores in (
            after_one(data, tmp_path / "a", name),
            after_one(with_negatives(data, *rows), tmp_path / "b", name),
        )
    )
    assert abs(before) < 0.5
    assert after < before - 0.3
