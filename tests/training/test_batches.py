"""Windows of whole moments, drawn targets, length buckets and padded tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recloop.features import encode as encoding
from recloop.features.encode import EncodedBatch, encode
from recloop.features.labels import EventLabeler
from recloop.features.moments import moment_stamps
from recloop.features.spec import FeatureSpec
from recloop.features.state_history import StateHistory
from recloop.models.base import TrainData
from recloop.settings import build
from recloop.simulation.shop import SimulatedShop
from recloop.training.batches import EpochDataset, LengthBucketSampler, SequenceDataset, history_before
from recloop.training.dataset import make_tables, train_data

Arrays = Callable[..., TrainData]


def sized(*sizes: int) -> list[list[int]]:
    """Moments of these sizes, with items numbered from 1."""
    ends = np.cumsum(sizes)
    return [list(range(end - size + 1, end + 1)) for size, end in zip(sizes, ends, strict=True)]


def spans(sequences: SequenceDataset, which: str = "all") -> list[tuple[int, int]]:
    windows = sequences.training(which)
    return sorted(zip(windows.starts.tolist(), windows.stops.tolist(), strict=True))


def test_training_windows_are_cut_from_the_newest_moment(arrays: Arrays) -> None:
    """Sizes 2 3 1 4 | 9 2 5; windows of five items cut the moment of nine."""
    data = arrays([sized(2, 3, 1, 4, 9, 2, 5)], 30)
    sequences = SequenceDataset(data, 5)
    assert spans(sequences) == [(0, 2), (2, 4), (4, 5), (5, 6)]
    assert spans(sequences, "last") == [(5, 6)]
    assert sequences.lengths(sequences.training()).max() == 5
    rows, _, mask = sequences.tokens(sequences.training()[np.array([1])])
    assert sequences.rows.items[rows[mask]].tolist() == [11, 12, 13, 14, 15]  # the first of the nine by id bytes


def test_training_windows_exclude_single_moment_and_holdout_users(arrays: Arrays) -> None:
    data = arrays([sized(1, 1, 1), sized(2), sized(1, 1), []], 5, old=[2])
    assert spans(SequenceDataset(data, 9)) == [(0, 2)]


@given(st.lists(st.lists(st.integers(1, 7), max_size=9), min_size=1, max_size=5), st.integers(1, 9))
def test_training_windows_contain_each_moment_once_except_the_newest(
    arrays: Arrays, sizes: list[list[int]], history: int
) -> None:
    data = arrays([sized(*user) for user in sizes], 70)
    sequences = SequenceDataset(data, history)
    windows = sequences.training()
    inside = np.concatenate([np.arange(a, b) for a, b in zip(windows.starts, windows.stops, strict=True)] or [[]])
    newest = data.user_offsets[1:][np.diff(data.user_offsets) > 0] - 1
    assert sorted(inside) == sorted(set(range(len(data.stamps))) - set(newest.tolist()))
    lengths = sequences.lengths(windows)
    assert lengths.max(initial=0) <= history
    for start, stop in zip(windows.starts, windows.stops, strict=True):  # one more moment does not fit
        first = data.user_offsets[data.moment_user[start]]
        assert start == first or sequences.rows.offsets[stop] - sequences.rows.offsets[start - 1] > history


@given(st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=9), min_size=1, max_size=5), st.integers(1, 9))
def test_query_windows_equal_those_of_serving(arrays: Arrays, sizes: list[list[int]], history: int) -> None:
    data = arrays([sized(*user) for user in sizes], 70)
    none = np.zeros(0, np.int32)
    served = encoding.window(
        EncodedBatch(
            states=None,  # type: ignore[arg-type] - a window reads only the history
            moment_offsets=data.user_offsets,
            stamps=data.stamps,
            item_offsets=data.moment_offsets,
            items=data.items,
            targets=np.ones(len(data.items), dtype=bool),
            negative_offsets=np.zeros(len(sizes) + 1, np.int64),
            negatives=none,
            context=np.zeros((len(sizes), 0), np.int32),
            context_names=[],
            now=np.zeros(len(sizes), np.int64),
        ),
        history,
    )
    ours = SequenceDataset(data, history).queries(np.arange(len(sizes)), np.zeros(len(sizes), np.int64))
    for mine, theirs in zip(ours, served.padded(), strict=False):
        np.testing.assert_array_equal(mine.numpy(), theirs)


def test_batch_by_hand(arrays: Arrays) -> None:
    """Users (1 2) (3) (4 5 6) and (7) (8): moments are numbered from the newest."""
    codes = np.array([[2], [1]], np.int32)
    data = arrays([[[1, 2], [3], [4, 5, 6]], [[7], [8]]], 9, user_codes=codes)
    weights = data.weights.copy()
    weights[7] = 0.25  # of item 8
    sequences = SequenceDataset(dataclasses.replace(data, weights=weights), 10)
    drawn = np.array([1, 2, 5, 6, 7])  # rows: items 2, 3, 6, 7, 8
    batch = sequences.batch(sequences.training(), drawn)
    assert batch.items.tolist() == [[1, 2, 3], [7, 0, 0]]
    assert batch.moments.tolist() == [[1, 1, 0], [0, 0, 0]]
    assert batch.mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.targets.tolist() == [[6, 3], [8, 0]]  # after the newest moment, after the one before it
    assert batch.weights.tolist() == [[1.0, 1.0], [0.25, 0.0]]
    assert batch.context[:, 0].tolist() == [[2], [1]]
    assert batch.arrived is None


def test_batch_hides_late_rows_from_earlier_moments(arrays: Arrays) -> None:
    """Moments (1 2) (3) (4) (5); item 2 arrived after item 3 and before item 4."""
    data = arrays([[[1, 2], [3], [4], [5]]], 5, seqs=[1, 4, 2, 5, 6])
    sequences = SequenceDataset(data, 10)
    arrived = sequences.batch(sequences.training(), np.arange(4)).arrived
    assert arrived is not None
    sees = arrived[0].tolist()
    assert sees[0] == [True, True, True, False]  # its moment's last row is seq 4: items 2 and 3 had arrived
    assert sees[2] == [True, False, True, False]
    assert sees[3] == [True, True, True, True]


def test_history_before_a_validation_moment_excludes_later_rows(arrays: Arrays) -> None:
    """Items 2 and 5 arrived after the validation moments; user 2 has none."""
    data = arrays([[[1, 2], [3]], [[5]], [[4]]], 5, held={0: [4], 1: [4]}, seqs=[1, 9, 2, 10, 3])
    assert data.held is not None
    past = history_before(data, dataclasses.replace(data.held, as_of=np.array([5, 5])))
    assert past.items.tolist() == [1, 3]
    assert past.user_offsets.tolist() == [0, 2, 2, 2]
    assert past.moment_offsets.tolist() == [0, 1, 2]
    assert past.stamps.tolist() == data.stamps[:2].tolist()


def test_draw_of_targets_is_uniform_and_differs_by_epoch(arrays: Arrays) -> None:
    data = arrays([[[1], [2, 3, 4]]], 4)
    sequences = SequenceDataset(data, 10)
    drawn = np.array([sequences.draw(3, epoch) for epoch in range(3_000)])
    assert set(drawn[:, 0]) == {0}
    assert np.bincount(drawn[:, 1], minlength=4)[1:].tolist() == pytest.approx([1_000] * 3, abs=90)
    np.testing.assert_array_equal(drawn[5], sequences.draw(3, 5))
    assert not np.array_equal(drawn[:50, 1], [sequences.draw(4, epoch)[1] for epoch in range(50)])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(20, 120))
def test_length_bucket_sampler_yields_each_window_once_within_the_budget(lengths: list[int], tokens: int) -> None:
    sizes = np.array(lengths)
    steps = LengthBucketSampler(sizes, seed=1, tokens=tokens)
    batches_of_windows = list(steps)
    assert len(batches_of_windows) == len(steps)
    assert sorted(np.concatenate(batches_of_windows)) == list(range(len(sizes)))
    for chosen in batches_of_windows:
        assert len(chosen) == 1 or len(chosen) * sizes[chosen].max() <= tokens


def test_length_bucket_sampler_differs_by_epoch_and_repeats_by_seed() -> None:
    sizes = np.arange(1, 200)
    steps, again = LengthBucketSampler(sizes, 7, 300), LengthBucketSampler(sizes, 7, 300)
    first = [chosen.tolist() for chosen in steps]
    assert first == [chosen.tolist() for chosen in again]
    steps.set_epoch(1)
    assert first != [chosen.tolist() for chosen in steps]


def test_epoch_dataset_draws_targets_once_per_epoch(arrays: Arrays) -> None:
    data = arrays([sized(2, 3, 4, 5), sized(3, 3, 3)], 20)
    sequences = SequenceDataset(data, 4)
    windows = sequences.training()
    steps = LengthBucketSampler(sequences.lengths(windows), 0)
    epoch = EpochDataset(sequences, windows, 0, steps)
    whole = np.arange(len(windows))
    for number in (0, 1):
        steps.set_epoch(number)
        expected = sequences.batch(windows, sequences.draw(0, number)).targets
        np.testing.assert_array_equal(epoch[whole].targets, expected)


@pytest.fixture(scope="module")
def purchase_arrays(simulated_shop: SimulatedShop) -> tuple[FeatureSpec, TrainData, StateHistory, list[str]]:
    """Purchases as arrays with each user's last moment held out, and states."""
    config = build(
        {
            "events": {"positive": ["purchase"], "neutral": ["click"]},
            "features": {"user": {"age": {"dim": 4}}, "item": {"category": {"dim": 4}}, "max_history": 30},
            "data": {"timezone": "Europe/Vienna"},
        },
        environment={},
    )
    spec = FeatureSpec.from_config(config)
    events = simulated_shop.events().sort("timestamp", maintain_order=True).with_row_index("seq", offset=1_000)
    events = moment_stamps(
        EventLabeler(config.events, config.clean).label(events.with_columns(pl.col("seq").cast(pl.Int64)))
    )
    last = events.filter(pl.col("label") > 0).group_by("user_id").agg(pl.col("stamp").max().alias("last"))
    events = events.join(last, on="user_id", maintain_order="left").filter(pl.col("stamp") <= pl.col("last"))
    is_held = (pl.col("stamp") == pl.col("last")) & (pl.col("label") > 0)
    versions = [
        frame.select(
            key,
            pl.lit(1, pl.Int64).alias("seq"),
            pl.struct(pl.all().exclude(key)).struct.json_encode().alias("attributes"),
        )
        for frame, key in ((simulated_shop.items(), "item_id"), (simulated_shop.users(), "user_id"))
    ]
    cut = int(events["stamp"].max()) + 1  # type: ignore[call-overload]
    tables = make_tables(spec, events, cut, *versions)
    data = train_data(tables, events.filter(~is_held), events.filter(is_held))
    timeline = StateHistory(events.select("user_id", "item_id", "stamp", "seq", "label", "weight"), versions[1])
    return spec, data, timeline, tables.users.ids


def test_validation_queries_are_encoded_as_in_serving(
    purchase_arrays: tuple[FeatureSpec, TrainData, StateHistory, list[str]],
) -> None:
    """Tokens, moments and context of validation equal `encode` and `window`."""
    spec, data, timeline, user_ids = purchase_arrays
    held = data.held
    assert held is not None
    known = np.diff(data.user_offsets)[held.user_ix] > 0
    users, now = held.user_ix[known], held.now[known]
    vocabulary = encoding.Vocabulary(data.item_ids)
    states = timeline.states([user_ids[ix] for ix in users], [10**9] * len(users), before=now.tolist())
    encoded = encode(spec, data.extras["fields"], vocabulary, states, now)
    items, moments, mask, context = SequenceDataset(data, 30).queries(users, now)
    for mine, theirs in zip((items, moments, mask), encoding.window(encoded, 30).padded(), strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs)
    np.testing.assert_array_equal(context.numpy(), encoded.context)
    assert len(users) > 200
    assert [len(np.unique(context[:, c])) > 1 for c in range(4)] == [True] * 4  # age, hour, weekday, gap


def test_training_context_is_encoded_as_in_serving(
    purchase_arrays: tuple[FeatureSpec, TrainData, StateHistory, list[str]],
) -> None:
    """The context of a target moment equals that of a request at its stamp."""
    spec, data, timeline, user_ids = purchase_arrays
    moment = np.flatnonzero(np.arange(len(data.stamps)) != data.user_offsets[data.moment_user])[::17]
    users, now = data.moment_user[moment], data.stamps[moment]
    states = timeline.states([user_ids[ix] for ix in users], [10**9] * len(users), before=now.tolist())
    encoded = encode(spec, data.extras["fields"], encoding.Vocabulary(data.item_ids), states, now)
    np.testing.assert_array_equal(SequenceDataset(data, 30).context[moment], encoded.context)
    assert len(moment) > 50
