"""Contract of every model, tested through `recommend` on the simulated shop."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import pytest

from recloop import bundle as bundles
from recloop import loop
from recloop.bundle import Bundle
from recloop.data.prepare import load
from recloop.features.state import StateBatch, StoredState
from recloop.features.state_history import StateHistory
from recloop.features.undo import Kind
from recloop.models.base import MODELS
from recloop.project import Project, open_project
from recloop.recommend.catalog import Catalog
from recloop.recommend.fusion import fuse
from recloop.recommend.ranked_list import RankedList
from recloop.recommend.recommender import SCORE_TOLERANCE, Recommender
from recloop.records import DAY, ITEM_ID, LABEL, SEQ, STAMP, USER_ID, Query, Use
from recloop.simulation.shop import SimulatedShop

ALONE = ("popular",)
"""Fallback order of a single source: its own list, then Popular."""


@functools.cache
def _world() -> SimulatedShop:
    return SimulatedShop(seed=0)


@dataclass(frozen=True)
class Fitted:
    """A fitted model with its test queries: each user's first moment after the cut.

    Query q is of ``users[q]`` at ``now[q]`` with the log up to ``as_of[q]``; ``targets[q]`` are the items of the
    moment.
    """

    project: Project
    bundle: Bundle
    source: str
    timeline: StateHistory
    catalogue: Catalog
    users: list[str]
    now: list[int]
    as_of: list[int]
    targets: list[set[str]]

    def states(self, questions: Sequence[int]) -> StateBatch:
        """Return the states of these queries, from columns."""
        chosen = [(self.users[q], self.as_of[q], self.now[q]) for q in questions]
        users, seqs, now = (list(column) for column in zip(*chosen, strict=True))
        return self.timeline.states(users, seqs, now)

    def ask(self, questions: Sequence[int], n: int = 10, exclude: tuple[str, ...] = ()) -> list[RankedList]:
        """Return the lists of these queries as one batch."""
        return self.answers(self.states(questions), [self.now[q] for q in questions], n, exclude)

    def answers(
        self,
        states: StateBatch,
        now: Sequence[int],
        n: int = 10,
        exclude: tuple[str, ...] = (),
        bundle: Bundle | None = None,
    ) -> list[RankedList]:
        """Return lists of only the model's source, then Popular, like `recommend`."""
        recommender = Recommender(bundle or self.bundle, self.catalogue)
        queries = [
            Query(user_id=user_id, now=stamp, n=n, exclude=exclude)
            for user_id, stamp in zip(states.users, now, strict=True)
        ]
        encoded = recommender.encode(states, now)
        placement = recommender.placement("home")
        allowed = recommender.candidate_mask(encoded, queries, placement)
        fused = fuse(recommender.recall(encoded, allowed, [self.source]), {self.source: 1.0}, n)
        return recommender.slots.assemble(encoded, allowed, fused, queries, placement, ALONE)


def fit_on_world(folder: Path, model: str, settings: Sequence[str] = (), shuffle: int | None = None) -> Fitted:
    """Write the world as a project, run it with one model, and build the test queries.

    Args:
        folder: The project folder.
        model: A built-in name or ``package.module:Class``.
        settings: Settings in the form of ``--set``.
        shuffle: Seed that shuffles the rows of each moment in the file; None: original order.
    """
    _world().write(folder)
    if shuffle is not None:
        file = folder / "events.csv"
        rows = pl.read_csv(file, infer_schema=False)
        order = pl.Series("order", np.random.default_rng(shuffle).permutation(rows.height))
        rows.with_columns(order).sort("timestamp", "order").drop("order").write_csv(file)
    project = open_project(folder, [f'model.name="{model}"', *settings])
    loop.collect(project)
    bundle = loop.train(project, model=model).bundle
    data = load(project)
    first = (
        data.test.group_by(USER_ID, STAMP)
        .agg(pl.col(SEQ).min() - 1, pl.col(ITEM_ID).filter(pl.col(LABEL) > 0))
        .filter(pl.col(ITEM_ID).list.len() > 0)
        .sort(USER_ID, STAMP)
        .unique(USER_ID, keep="first", maintain_order=True)
    )
    return Fitted(
        project=project,
        bundle=bundle,
        source=_source(bundle, model),
        timeline=StateHistory(data.events, data.users),
        catalogue=Catalog.from_frames([data.items]),
        users=first[USER_ID].to_list(),
        now=first[STAMP].to_list(),
        as_of=first[SEQ].to_list(),
        targets=[set(items) for items in first[ITEM_ID].to_list()],
    )


def _source(bundle: Bundle, model: str) -> str:
    names = {model, *(name for name, path in MODELS.items() if path == model)}
    found = [source for source, settings in bundle.scorers.items() if settings.model in names]
    assert found, f"the bundle has no scorer of {model}: {bundle.scorers}"
    return found[0]


def assert_same(one: RankedList, other: RankedList) -> None:
    """Assert equal lists: scores within 1e-5; ids may swap only within this tolerance."""
    assert len(one.items) == len(other.items)
    np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=SCORE_TOLERANCE)
    scores = np.asarray(one.scores)
    for place in np.flatnonzero([a != b for a, b in zip(one.items, other.items, strict=True)]):
        near = np.flatnonzero(np.abs(scores - scores[place]) <= SCORE_TOLERANCE)
        last = near[-1] == len(scores) - 1  # an item just below the list may swap with the last slot
        assert last or other.items[place] in {one.items[n] for n in near}, (place, one.items, other.items)


class ModelContract:
    """Contract of every model.

    Attributes:
        model: A built-in name or ``package.module:Class``.
        settings: Settings in the form of ``--set``; a network gets epochs instead of seconds, for equal results on
            all machines.
        better: Minimum ratio of the model's recall of the next basket to that of a constant scorer.
        liked: Mean percentile of listed items by true utility; 0.5 is chance.
    """

    model: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ("train.epochs=4", "train.time_budget=1h")
    better: ClassVar[float] = 2.0
    liked: ClassVar[float] = 0.65

    @pytest.fixture(scope="class")
    @classmethod
    def fitted(cls, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
        return fit_on_world(tmp_path_factory.mktemp("contract") / "shop", cls.model, cls.settings)

    @pytest.fixture(scope="class")
    @classmethod
    def answers(cls, fitted: Fitted) -> list[RankedList]:
        return fitted.ask(range(len(fitted.users)))

    def test_recall_is_above_that_of_a_constant_scorer(self, fitted: Fitted, answers: list[RankedList]) -> None:
        """Check Recall@10 of the next basket against 10/N of a constant or random scorer."""
        hits = [len(set(a.items) & held) / len(held) for a, held in zip(answers, fitted.targets, strict=True)]
        assert np.mean(hits) > self.better * 10 / len(fitted.bundle.items)

    def test_listed_items_have_high_true_utility(self, fitted: Fitted, answers: list[RankedList]) -> None:
        world = _world()
        place = {item_id: ix for ix, item_id in enumerate(world.item_ids)}
        shares = []
        for user_id, answer in zip(fitted.users, answers, strict=True):
            share = world.utility(user_id).argsort().argsort() / (len(place) - 1)
            shares.append(np.mean([share[place[item]] for item in answer.items]))
        assert np.mean(shares) > self.liked

    def test_batch_equals_single_requests(self, fitted: Fitted, answers: list[RankedList]) -> None:
        for q in range(0, len(answers), max(1, len(answers) // 12)):
            assert_same(answers[q], fitted.ask([q])[0])

    def test_list_is_independent_of_the_batch(self, fitted: Fitted, answers: list[RankedList]) -> None:
        """Repeat the queries in another order, together with users without history."""
        order = np.random.default_rng(0).permutation(len(answers)).tolist()
        users = [fitted.users[q] for q in order] + ["unknown", "unknown too"]
        now = [fitted.now[q] for q in order] + fitted.now[:1] * 2
        states = fitted.timeline.states(users, [fitted.as_of[q] for q in order] + [0, 0], now)
        mixed = fitted.answers(states, now)
        for place, q in enumerate(order):
            assert_same(answers[q], mixed[place])

    def test_list_after_save_and_load_is_equal(self, fitted: Fitted, answers: list[RankedList], tmp_path: Path) -> None:
        folder = tmp_path / fitted.bundle.id
        shutil.copytree(fitted.project.bundles / fitted.bundle.id, folder)
        again = fitted.answers(fitted.states(range(len(answers))), fitted.now, bundle=bundles.load(folder))
        assert [answer.slots for answer in again] == [answer.slots for answer in answers]

    def test_unseen_user_gets_a_list(self, fitted: Fitted) -> None:
        attributes = [None, {}, {"age": "30-44"}, {"age": "unheard of"}, {"something": [1, None]}]
        states = StateBatch.empty([f"new {n}" for n in range(5)], attributes)
        for answer in fitted.answers(states, fitted.now[:1] * 5):
            assert len(answer.slots) == 10
            assert np.isfinite(answer.scores).all()

    def test_user_with_only_unknown_items_gets_a_list(self, fitted: Fitted) -> None:
        moment = (fitted.now[0] - DAY, ["an item of another shop"], [0])
        state = StoredState([moment], [Kind(Use.TARGET)], 1).to_batch("u")
        answer = fitted.answers(state, fitted.now[:1])[0]
        assert len(answer.slots) == 10

    @pytest.mark.parametrize("n", [1, 10, 100])
    def test_list_has_n_distinct_items_of_the_catalog(self, fitted: Fitted, n: int) -> None:
        catalogue = set(_world().item_ids)
        for answer in fitted.ask(range(len(fitted.users)), n):
            assert len(answer.items) == n
            assert len(set(answer.items)) == n
            assert set(answer.items) <= catalogue
            assert (np.diff(answer.scores) <= 0).all()

    def test_list_with_n_above_the_catalog_has_all_items(self, fitted: Fitted) -> None:
        states = fitted.states([0])
        disliked = set(states.names[states.negatives].tolist())
        items = fitted.answers(states, fitted.now[:1], 1000)[0].items
        assert len(set(items)) == len(items)
        assert set(fitted.bundle.items.ids.ids) - set(items) == disliked & set(fitted.bundle.items.ids.ids)

    def test_list_without_excluded_items_keeps_the_order(self, fitted: Fitted, answers: list[RankedList]) -> None:
        out = tuple(answers[0].items[:3])
        again = fitted.ask(range(20), exclude=out)
        assert all(not set(out) & set(answer.items) for answer in again)
        assert again[0].items[:7] == answers[0].items[3:]

    def test_list_is_independent_of_the_order_within_moments(
        self, fitted: Fitted, answers: list[RankedList], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Shuffle the rows of each basket: lists after a new training are the same."""
        other = fit_on_world(tmp_path_factory.mktemp("shuffled") / "shop", self.model, self.settings, shuffle=7)
        assert (other.users, other.now) == (fitted.users, fitted.now)
        for one, two in zip(answers, other.ask(range(len(answers))), strict=True):
            assert_same(one, two)
