"""Features of the ranker: against their plain definition, one query and a batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from recloop.features.encode import EncodedBatch
from recloop.features.item_statistics import NAMES, UNKNOWN, ItemStatistics
from recloop.features.ranking import NO_HAZARD, Candidates, FeatureSpace, rhythm_names
from recloop.features.rhythm import BINS, HAZARD_DAYS, Rhythm
from recloop.features.state import StateBatch
from recloop.features.user_profile import HALF_LIVES, INPUT_WEIGHT, MISSING
from recloop.records import DAY, SECOND

N_ITEMS = 12
NOW = 400 * DAY
HOUR = 3_600 * SECOND

Moment = tuple[int, list[tuple[int, bool]]]
"""Stamp, and (item, is a target) of each row."""


def statistics() -> ItemStatistics:
    random = np.random.default_rng(1)
    values = random.uniform(0, 9, (N_ITEMS + 1, len(NAMES))).astype(np.float32)
    amounts = np.where(random.random(N_ITEMS + 1) < 0.2, UNKNOWN, random.normal(size=N_ITEMS + 1)).astype(np.float32)
    codes = random.integers(0, 4, (2, N_ITEMS + 1)).astype(np.int32)
    rhythm = Rhythm(
        random.normal(size=(2, 4, BINS)).astype(np.float32),
        random.normal(size=(2, 4, len(HAZARD_DAYS) + 1)).astype(np.float32),
    )
    return ItemStatistics(values, ("kind", "shelf"), codes, ("price",), amounts[None], rhythm)


def random_history(seed: int) -> list[Moment]:
    random = np.random.default_rng(seed)
    stamps = np.sort(random.choice(NOW // DAY, int(random.integers(0, 9)), replace=False)) * DAY + 5
    stamps += random.integers(0, 24, len(stamps)) * HOUR
    return [
        (int(stamp), [(int(i), bool(random.random() < 0.7)) for i in sorted(random.choice(N_ITEMS, 4, False) + 1)])
        for stamp in stamps
    ]


def encoded(histories: list[list[Moment]]) -> EncodedBatch:
    moments = [moment for history in histories for moment in history]
    rows = [row for _, row_list in moments for row in row_list]
    moment_offsets = np.cumsum([0, *map(len, histories)])
    none = np.zeros(0, np.int32)
    states = StateBatch.empty([str(b) for b in range(len(histories))])
    return EncodedBatch(
        states, moment_offsets, np.array([stamp for stamp, _ in moments], np.int64),
        np.cumsum([0, *(len(row_list) for _, row_list in moments)]),
        np.array([item for item, _ in rows], np.int32), np.array([target for _, target in rows], bool),
        np.zeros(len(histories) + 1, np.int64), none, np.zeros((len(histories), 0), np.int32), [],
        np.full(len(histories), NOW),
    )  # fmt: skip


def candidates(n_queries: int = 1) -> Candidates:
    """All items for each query."""
    items = np.tile(np.arange(1, N_ITEMS + 1, dtype=np.int32), n_queries)
    n = len(items)
    offsets = np.arange(0, n + 1, N_ITEMS)
    return Candidates(offsets, items, np.full((1, n), 2, np.float32), np.full((1, n), 0.5, np.float32))


def plain_rhythm(history: list[Moment], item: int, stats: ItemStatistics) -> dict[str, float]:
    """Features of rhythm; the query is at midnight of a weekday."""
    assert stats.rhythm is not None
    rows = [
        (stamp, 1.0 if target else INPUT_WEIGHT)
        for stamp, row_list in history
        for row_item, target in row_list
        if row_item == item
    ]
    weekday = (NOW // DAY + 3) % 7
    total = sum(weight for _, weight in rows)
    last = (NOW - rows[-1][0]) / DAY if rows else MISSING
    bins = [0, *(b for b, border in enumerate(HAZARD_DAYS, start=1) if last >= border)]
    expected = {
        "own.same_weekday": sum(w for stamp, w in rows if (stamp // DAY + 3) % 7 == weekday) / total
        if rows
        else MISSING,
        "own.same_hour": sum(w for stamp, w in rows if stamp // HOUR % 24 in {21, 22, 23, 0, 1, 2, 3, 4, 5}) / total
        if rows
        else MISSING,
        "own.week_lag": min(last % 7, 7 - last % 7) if rows else MISSING,
    }
    for field, codes, times, hazard in zip(
        stats.fields, stats.codes, stats.rhythm.times, stats.rhythm.hazard, strict=True
    ):
        expected |= {
            f"{field}.weekday": times[codes[item], weekday],
            f"{field}.hour": times[codes[item], 7],
            f"{field}.hazard": hazard[codes[item], bins[-1]] if rows else NO_HAZARD,
        }
    return expected


def plain(history: list[Moment], item: int, stats: ItemStatistics) -> dict[str, float]:
    """Some features by their definition, one row after the other."""
    n = len(history)
    rows = [
        ((NOW - stamp) / DAY, n - 1 - m, row_item, 1.0 if target else INPUT_WEIGHT)
        for m, (stamp, row_list) in enumerate(history)
        for row_item, target in row_list
    ]
    own = [row for row in rows if row[2] == item]
    expected = {f"own.count_{d:g}d": sum(w * 0.5 ** (age / d) for age, _, _, w in own) for d in HALF_LIVES}
    count = sum(row[3] for row in own)
    expected |= {
        "own.count": count,
        "own.share": count / max(1, n),
        "own.last_3": sum(row[3] for row in own if row[1] < 3),
        "own.days_since_last": own[-1][0] if own else MISSING,
        "own.days_since_first": own[0][0] if own else MISSING,
        "own.moments_since_last": own[-1][1] if own else MISSING,
        "own.gap": (own[0][0] - own[-1][0]) / (len(own) - 1) if len(own) > 1 else MISSING,
        "query.moments": n,
    }
    total = sum(w * 0.5 ** (age / 90) for age, _, _, w in rows)
    for field, codes in zip(stats.fields, stats.codes, strict=True):
        same = [row for row in rows if codes[row[2]] == codes[item]]
        expected |= {
            f"{field}.count": sum(w * 0.5 ** (age / 90) for age, _, _, w in same),
            f"{field}.days_since_last": same[-1][0] if same else MISSING,
            f"{field}.share": sum(w * 0.5 ** (age / 90) for age, _, _, w in same) / total if same else 0.0,
            f"{field}.own_share": count / max(0.1, sum(w for *_, w in same)),
        }
    gap = expected["own.gap"]
    expected["own.due"] = MISSING if gap == MISSING else expected["own.days_since_last"] / (gap + 0.5)
    expected |= plain_rhythm(history, item, stats)
    priced = [row for row in rows if stats.amounts[0, row[2]] > UNKNOWN]
    if priced and stats.amounts[0, item] > UNKNOWN:
        usual = sum(stats.amounts[0, row[2]] * row[3] for row in priced) / sum(row[3] for row in priced)
        expected["price.difference"] = stats.amounts[0, item] - usual
    return expected


def test_features_of_random_histories_equal_their_definition() -> None:
    stats = statistics()
    space = FeatureSpace(stats, ["popular"])
    histories = [random_history(seed) for seed in range(12)]
    batch = encoded(histories)
    of_batch = space.matrix(batch, slice(0, len(histories)), candidates(len(histories)))
    for b, history in enumerate(histories):
        matrix = of_batch[b * N_ITEMS : (b + 1) * N_ITEMS]
        assert matrix.dtype == np.float32
        assert np.isfinite(matrix).all()
        for row, item in enumerate(range(1, N_ITEMS + 1)):
            for name, value in plain(history, item, stats).items():
                assert np.isclose(matrix[row, space.names.index(name)], value, rtol=1e-4, atol=1e-5), (name, b, item)


def test_features_do_not_depend_on_batch_or_kept_profile() -> None:
    space = FeatureSpace(statistics(), ["popular"])
    histories = [random_history(seed) for seed in range(5)]
    batch = encoded(histories)
    of_batch = space.matrix(batch, slice(0, len(histories)), candidates(len(histories)))
    for b, history in enumerate(histories):
        single = encoded([history])
        first = space.matrix(single, slice(0, 1), candidates(), "ranker")
        assert np.array_equal(first, space.matrix(single, slice(0, 1), candidates(), "ranker"))
        assert np.array_equal(first, of_batch[b * N_ITEMS : (b + 1) * N_ITEMS])
        assert np.array_equal(first, space.matrix(batch, slice(b, b + 1), candidates()))


def test_features_of_some_candidates_equal_those_among_all() -> None:
    space = FeatureSpace(statistics(), ["popular"])
    batch = encoded([random_history(seed) for seed in range(3)])
    every = candidates(3)
    columns = np.array([0, 3, 7, 2 * N_ITEMS, 2 * N_ITEMS + 5])  # none of the second query
    some = every.take(columns)
    assert np.diff(some.offsets).tolist() == [3, 0, 2]
    of_some = space.matrix(batch, slice(0, 3), some)
    assert np.array_equal(of_some, space.matrix(batch, slice(0, 3), every)[columns])


def test_weekday_and_hour_are_those_of_the_time_zone() -> None:
    space = FeatureSpace(statistics(), [], "Asia/Tokyo")
    matrix = space.matrix(
        encoded([[]]),
        slice(0, 1),
        Candidates(np.array([0, 1]), np.ones(1, np.int32), np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32)),
    )
    assert matrix[0, space.names.index("query.hour")] == 9
    assert matrix[0, space.names.index("query.weekday")] == (NOW // DAY + 3) % 7


def test_a_bundle_without_fields_has_no_features_of_fields() -> None:
    none = np.zeros((0, N_ITEMS + 1))
    stats = ItemStatistics(statistics().values, (), none.astype(np.int32), (), none.astype(np.float32))
    space = FeatureSpace(stats, ["popular"])
    matrix = space.matrix(encoded([random_history(1)]), slice(0, 1), candidates())
    assert matrix.shape == (N_ITEMS, len(space.names))
    assert np.isfinite(matrix).all()


def test_own_rank_orders_items_by_decayed_count_and_ties_by_item() -> None:
    stats = statistics()
    histories: list[list[Moment]] = [
        [(5 * DAY, [(2, True), (3, True), (7, True)]), (9 * DAY, [(3, True)])],
        [],
        [(8 * DAY, [(4, False), (7, True), (9, True)])],
    ]
    space = FeatureSpace(stats, ["popular"])
    ranks = space.matrix(encoded(histories), slice(0, 3), candidates(3))[:, space.names.index("own.rank")]
    own = ranks.reshape(3, N_ITEMS)
    assert [own[0, item - 1] for item in (3, 2, 7)] == [0, 1, 2]
    assert set(own[1]) == {MISSING}
    assert [own[2, item - 1] for item in (7, 9, 4)] == [0, 1, 2]
    assert own[2, 0] == MISSING


def test_statistics_without_rhythm_have_the_features_of_earlier_bundles() -> None:
    whole = FeatureSpace(statistics(), ["popular"])
    earlier = FeatureSpace(replace(statistics(), rhythm=None), ["popular"])
    n_earlier = len(earlier.names)
    assert whole.names[:n_earlier] == earlier.names
    assert whole.names[n_earlier:] == rhythm_names(("kind", "shelf"))
    batch = encoded([random_history(3)])
    matrices = [space.matrix(batch, slice(0, 1), candidates()) for space in (whole, earlier)]
    assert np.array_equal(matrices[0][:, :n_earlier], matrices[1])
