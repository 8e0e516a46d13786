"""Fit the attribute affinities from the targets, and choose their strengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.sparse as sp

from recloop.bundle import Bundle
from recloop.config import Config
from recloop.evaluation import bootstrap, metrics
from recloop.features.attribute_affinity import AttributeAffinity, FieldColumns, scores_of
from recloop.models.base import TrainData, ValidationQueries
from recloop.recommend.attribute_lists import MAX_CANDIDATES
from recloop.recommend.top_k import best_rows

MAX_USER_SLOTS: Final = 1_024
"""Values of all user fields that are counted, the most frequent ones."""
MAX_ITEM_SLOTS: Final = 2_048
"""Values of all item fields that are counted, the most frequent ones."""
MAX_USERS: Final = 20_000
"""Users whose values are compared with each other, spread evenly."""
USER_SMOOTHING: Final = 1.0
"""Counts at the base rate that are added to those of a user value, as a share of the mean of all values."""
RECENT_SMOOTHING: Final = 0.2
"""The same for the value of a recent item."""
MAX_QUERIES: Final = 512
"""Validation moments that judge."""
ITEM_GRAPH: Final = "item.onnx"
STRENGTHS: Final = (0.5, 1.0)
"""Strengths to try beside 0."""
MAX_LOSS: Final = 0.02
"""Share of NDCG@10 that the lower end of the interval may lose."""
MIN_QUERIES: Final = 20
"""Queries that a choice needs."""
COLD_ROWS: Final = 2
"""Newest rows that replace the history of a user with few events."""
LIST_LENGTH: Final = 10
PRIOR_COUNT: Final = 0.5
"""Targets that are added to those of each item before the logarithm."""


@dataclass(frozen=True)
class AttributeChoice:
    """Chosen strengths, None without affinities, and a sentence."""

    strengths: tuple[float, float] | None
    sentence: str


def fit_affinity(
    data: TrainData, strengths: Sequence[float], half_life: float | None, users: np.ndarray | None = None
) -> AttributeAffinity:
    """Fit the affinities of all field values.

    Args:
        strengths: Factors of user fields and of recent items.
        half_life: Days until a target counts half; None: all count the same.
        users: (U,) bool users whose rows count; None: all.
    """
    user_columns, item_columns = columns_of(data)
    row_user = data.moment_user[data.row_moment]
    is_counted = data.target_rows if users is None else data.target_rows & users[row_user]
    weights = data.decay(half_life)[data.row_moment][is_counted]
    shape = (data.n_users, data.n_items + 1)
    acts = sp.csr_array((weights, (row_user[is_counted], data.items[is_counted])), shape=shape)
    item_weights = np.asarray(acts.sum(axis=0)).ravel()
    user_slots = _slots(user_columns, data.user_codes, np.asarray(acts.sum(axis=1)).ravel(), MAX_USER_SLOTS)
    item_slots = _slots(item_columns, data.item_codes, item_weights, MAX_ITEM_SLOTS)
    user_values = _values(user_columns, user_slots, data.user_codes)  # (users, 1+U)
    item_values = _values(item_columns, item_slots, data.item_codes)  # (N+1, 1+V)
    taken = sp.csr_array(acts @ item_values)  # (users, 1+V)
    field_of_slot = _fields(item_columns, item_slots)
    by_user = _lift((user_values.T @ taken).toarray(), field_of_slot, USER_SMOOTHING)
    affinity = np.concatenate([by_user, _recent_lift(taken, field_of_slot)[1:]])
    affinity[0], affinity[:, 0] = 0, 0
    prior = np.log(data.popularity(half_life) + PRIOR_COUNT)
    sizes = np.asarray(item_values.sum(axis=0)).ravel()
    value_prior = (item_values.T @ prior) / np.maximum(sizes, 1e-9)
    value_prior[0] = 0
    return AttributeAffinity(
        affinity.astype(np.float32), user_slots, item_slots, prior.astype(np.float32), value_prior.astype(np.float32),
        np.array(strengths, dtype=np.float32),
    )  # fmt: skip


def refit_affinity(
    data: TrainData, strengths: Sequence[float] | None, half_life: float | None
) -> dict[str, np.ndarray]:
    """Return the arrays with chosen strengths; empty without strengths."""
    if strengths is None:
        return {}
    return fit_affinity(data, strengths, half_life).to_arrays()


def strengths_of(bundle: Bundle) -> tuple[float, ...] | None:
    """Return the strengths of a bundle; None without affinities."""
    affinity = AttributeAffinity.from_arrays(bundle.arrays)
    return None if affinity is None else tuple(affinity.strengths.tolist())


def choose_strengths(bundle: Bundle, config: Config, data: TrainData) -> AttributeChoice:
    """Choose the strengths on validation moments, asked as if the users were cold.

    User fields are judged without a history, recent items with the newest `COLD_ROWS` rows. Counts leave out the rows of the
    judged users: half of the users judge what the others teach. A strength is kept if its mean NDCG@10 is above that of
    Popular and the lower end of the paired 95 % CI is above -2 % of it.
    """
    has_fields = data.item_codes.shape[1] > 0
    if not has_fields or data.held is None or ITEM_GRAPH in bundle.graphs:
        reason = "no validation moments" if has_fields else "no fields in features.item"
        if ITEM_GRAPH in bundle.graphs:
            reason = "the towers of the network rank by attributes"
        strengths = (0.0, 0.0) if _ranks_cold_items(bundle, data) else None
        return AttributeChoice(strengths, f"no attribute lists: {reason}")
    judge = _Judge(bundle, config, data, data.held)
    by_user, user_sentence = judge.choose(judge.with_fields, with_recent=False)
    by_recent, recent_sentence = judge.choose(judge.with_recent, with_recent=True)
    head = "attribute lists" if by_user or by_recent else "no attribute lists"
    sentence = f"{head} for cold users: user fields {user_sentence}; recent items {recent_sentence}"
    is_used = by_user > 0 or by_recent > 0 or _ranks_cold_items(bundle, data)
    return AttributeChoice((by_user, by_recent) if is_used else None, sentence)


def _ranks_cold_items(bundle: Bundle, data: TrainData) -> bool:
    """Return True if affinities rank the cold items of a placement.

    Towers rank them where the bundle has some.
    """
    has_share = any(placement.cold_share > 0 for placement in bundle.policy.placements.values())
    return has_share and data.item_codes.shape[1] > 0 and ITEM_GRAPH not in bundle.graphs


class _Judge:
    """NDCG@10 of attribute lists and of Popular for cold queries."""

    def __init__(self, bundle: Bundle, config: Config, data: TrainData, held: ValidationQueries) -> None:
        self._data = data
        self._held = held.sample(data.user_ids, MAX_QUERIES)
        self._seed = config.train.seed
        half_life = bundle.scorers["popular"].half_life
        users = np.arange(data.n_users) % 2
        self._folds = [_Fold(fit_affinity(data, (1.0, 1.0), half_life, users != fold), bundle, data) for fold in (0, 1)]
        self.with_fields = np.flatnonzero((data.user_codes[self._held.user_ix] > 0).any(axis=1))
        n_moments = np.diff(data.user_offsets)
        self.with_recent = np.flatnonzero(n_moments[self._held.user_ix] > 0)

    def choose(self, queries: np.ndarray, with_recent: bool) -> tuple[float, str]:
        """Return the best strength, 0 for none, and its numbers."""
        if len(queries) < MIN_QUERIES:
            return 0.0, f"not used ({len(queries)} moments to judge them, {MIN_QUERIES} needed)"
        values = self._ndcg(queries, with_recent)  # (S+1, Q)
        best = int(values[1:].mean(axis=1).argmax())
        gain = bootstrap.difference(values[best + 1], values[0], self._seed).absolute
        base = float(values[0].mean())
        is_kept = gain.value > 0 and gain.low >= -MAX_LOSS * base
        numbers = f"NDCG@10 {base + gain.value:.4f} against {base:.4f} of Popular, {gain.signed_text()}"
        return (STRENGTHS[best], f"used ({numbers})") if is_kept else (0.0, f"not used ({numbers})")

    def _ndcg(self, queries: np.ndarray, with_recent: bool) -> np.ndarray:
        """(S+1, Q) NDCG@10 of Popular and of each strength, without recent items."""
        data, held = self._data, self._held
        lists = np.zeros((len(STRENGTHS) + 1, len(queries), LIST_LENGTH), dtype=np.int64)
        targets: list[np.ndarray] = []
        ends = data.moment_offsets[data.user_offsets]
        no_user = np.zeros_like(data.user_codes[0])
        for row, q in enumerate(queries.tolist()):
            user = int(held.user_ix[q])
            recent = data.items[max(ends[user], ends[user + 1] - COLD_ROWS) : ends[user + 1]]
            codes = data.user_codes[user]
            recent, codes = (recent, no_user) if with_recent else (recent[:0], codes)
            wanted = held.items[held.offsets[q] : held.offsets[q + 1]]
            targets.append(wanted[~np.isin(wanted, recent)])
            lists[:, row] = self._folds[user % 2].lists(codes, recent)
        offsets = np.concatenate([[0], np.cumsum([len(wanted) for wanted in targets])])
        values = [metrics.ranking(of_kind, np.concatenate(targets), offsets, LIST_LENGTH)["NDCG"] for of_kind in lists]
        return np.nan_to_num(np.array(values))


class _Fold:
    """Lists by the affinities that one half of the users taught."""

    def __init__(self, affinity: AttributeAffinity, bundle: Bundle, data: TrainData) -> None:
        self._affinity = affinity
        self._users, self._columns = columns_of(data)
        self._items = np.sort(bundle.arrays["popular"][:MAX_CANDIDATES])
        self._all_slots = affinity.item_slots[self._columns.numbers(data.item_codes)]  # (N+1, C)
        self._slots = self._all_slots[self._items]
        self._shares = self._columns.shares(self._slots)
        self._known: dict[bytes, np.ndarray] = {}

    def lists(self, codes: np.ndarray, recent: np.ndarray) -> np.ndarray:
        """(S+1, 10) items by strength 0 and `STRENGTHS`.

        The query has field codes (Cu,) or recent items (n,).
        """
        key = codes.tobytes() + b"|" + recent.tobytes()
        if key not in self._known:
            affinity = self._affinity
            user = affinity.user_slots[self._users.numbers(codes[None])]
            slots = self._all_slots[recent]
            profile = affinity.profile(user[0], self._users.shares(user)[0], slots, self._columns.shares(slots))
            gain = scores_of(profile, self._slots, self._shares)
            prior = affinity.prior[self._items]
            is_recent = np.isin(self._items, recent)
            lists = [self._best(np.where(is_recent, -np.inf, prior + s * gain)) for s in (0.0, *STRENGTHS)]
            self._known[key] = np.array(lists)
        return self._known[key]

    def _best(self, scores: np.ndarray) -> np.ndarray:
        """(10,) items with the largest scores above -inf, 0 after the end."""
        rows = best_rows(scores, LIST_LENGTH)
        best = np.zeros(LIST_LENGTH, dtype=np.int64)
        best[: len(rows)] = np.where(scores[rows] > -np.inf, self._items[rows], 0)
        return best


def columns_of(data: TrainData) -> tuple[FieldColumns, FieldColumns]:
    """Return the code columns of users and of items."""
    spec, fields = data.extras["spec"], data.extras["fields"]
    return FieldColumns.of("user", spec, fields), FieldColumns.of("item", spec, fields)


def _slots(columns: FieldColumns, codes: np.ndarray, weights: np.ndarray, limit: int) -> np.ndarray:
    """(numbers,) int32 slots of the most frequent known values; 0 for all others."""
    totals = np.zeros(columns.size)
    for column in range(codes.shape[1]):
        known = codes[:, column] > 0
        totals += np.bincount(codes[known, column] + columns.offsets[column], weights[known], columns.size)
    counted = np.argsort(-totals, kind="stable")[:limit]
    counted = np.sort(counted[totals[counted] > 0])
    slots = np.zeros(columns.size, dtype=np.int32)
    slots[counted] = np.arange(1, len(counted) + 1)
    return slots


def _values(columns: FieldColumns, slots: np.ndarray, codes: np.ndarray) -> sp.csr_array:
    """(n, 1 + slots) shares of the values of each row; column 0 is empty."""
    of_rows = slots[columns.numbers(codes)]  # (n, C)
    shares = columns.shares(of_rows)
    rows, places = np.nonzero(of_rows)
    shape = (len(codes), int(slots.max(initial=0)) + 1)
    return sp.csr_array((shares[rows, places].astype(np.float64), (rows, of_rows[rows, places])), shape=shape)


def _fields(columns: FieldColumns, slots: np.ndarray) -> np.ndarray:
    """(1+V,) field of each slot; -1 for slot 0."""
    fields = np.full(int(slots.max(initial=0)) + 1, -1)
    starts = np.unique(columns.offsets)
    numbers = np.flatnonzero(slots)
    fields[slots[numbers]] = np.searchsorted(starts, numbers, side="right") - 1
    return fields


def _lift(counts: np.ndarray, fields: np.ndarray, smoothing: float) -> np.ndarray:
    """(R, 1+V) smoothed log lift of counts over the base rate of each field."""
    lift = np.zeros_like(counts)
    for field in np.unique(fields[fields >= 0]).tolist():
        columns = np.flatnonzero(fields == field)
        block = counts[:, columns]
        total = block.sum()
        if total <= 0:
            continue
        base = (block.sum(axis=0) + 1e-9) / (total + 1e-9 * len(columns))
        totals = block.sum(axis=1, keepdims=True)
        added = smoothing * total / np.count_nonzero(totals)
        lift[:, columns] = np.log((block + added * base) / ((totals + added) * base))
    return lift


def _recent_lift(taken: sp.csr_array, fields: np.ndarray) -> np.ndarray:
    """(1+V, 1+V) log lift of the values that users take together, field by field."""
    lift = np.zeros((len(fields), len(fields)))
    n_users = taken.shape[0]
    if n_users > MAX_USERS:
        taken = taken[np.linspace(0, n_users - 1, MAX_USERS).astype(np.int64)]
    for field in np.unique(fields[fields >= 0]).tolist():
        columns = np.flatnonzero(fields == field)
        block = sp.csr_array(taken[:, columns])
        block.data = np.log1p(block.data)
        counts = (block.T @ block).toarray()
        lift[np.ix_(columns, columns)] = _lift(counts, np.zeros(len(columns), dtype=np.int64), RECENT_SMOOTHING)
    return lift
