"""Training batches: windows of moments, drawn targets, length buckets, padding.

A window is a sequence of a user's moments with at most ``history`` items. The vector at the end of moment t predicts
moment t + 1. For the window's newest moment this is outside the window (docs/definitions/sequence-models.md). All data
are flat arrays, without Python work per row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from recloop.features.encode import context_codes
from recloop.features.state import offsets_of
from recloop.models.base import TrainData, ValidationQueries
from recloop.training.negatives import NegativesByMoment

TOKENS_PER_STEP = 2_800
"""Tokens per step, including padding; small steps learn more per second (docs/decisions/)."""


class Batch(NamedTuple):
    """B windows of T tokens in M moments, right-padded.

    Moments are numbered from the newest, 0. ``targets`` (B, M) is the item that the end of moment m predicts, 0 for
    padding.
    """

    items: Tensor  # (B, T) int64 item_ix, 0 pads
    moments: Tensor  # (B, T) int64
    mask: Tensor  # (B, T) bool
    arrived: Tensor | None  # (B, T, T) bool; None: all arrived
    context: Tensor  # (B, M, C) int64
    targets: Tensor  # (B, M) int64
    weights: Tensor  # (B, M) float32
    rejected: Tensor | None = None  # (K, 3) int64: window, moment from the newest, rejected item_ix
    rejected_weights: Tensor | None = None  # (K,) float32: their weights
    users: Tensor | None = None  # (B,) int64 user_ix of each window

    @property
    def n_tokens(self) -> int:
        """Number of tokens without padding."""
        return int(self.mask.sum())


@dataclass(frozen=True)
class HistoryWindows:
    """W windows; window w holds the moments ``starts[w]:stops[w]`` of one user."""

    starts: np.ndarray
    stops: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, selection: np.ndarray) -> HistoryWindows:
        return HistoryWindows(self.starts[selection], self.stops[selection])


@dataclass(frozen=True)
class MomentRows:
    """R rows of M moments: each moment's first ``history`` items by id bytes."""

    items: np.ndarray  # (R,) int64 item_ix
    seqs: np.ndarray  # (R,)
    moment: np.ndarray  # (R,) its moment
    offsets: np.ndarray  # (M+1,) rows of each moment
    newest_seq: np.ndarray  # (M,) the largest seq of each moment, including excluded rows
    user: np.ndarray  # (M,) user_ix

    @classmethod
    def from_data(cls, data: TrainData, history: int) -> MomentRows:
        moment = data.row_moment
        starts = data.moment_offsets[:-1]
        in_history = np.arange(len(moment)) - data.moment_offsets[moment] < history  # (rows of data,)
        return cls(
            items=data.items[in_history].astype(np.int64),
            seqs=data.seqs[in_history],
            moment=moment[in_history],
            offsets=offsets_of(np.minimum(np.diff(data.moment_offsets), history)),
            newest_seq=np.maximum.reduceat(data.seqs, starts) if len(starts) else data.seqs,
            user=data.moment_user,
        )

    @property
    def arrived_late(self) -> bool:
        """True if rows of a moment arrived after rows of the user's next moment."""
        same_user = self.user[1:] == self.user[:-1]
        return bool((np.diff(self.newest_seq) < 0)[same_user].any())


class SequenceDataset:
    """Windows over the rows of moments, and their batches.

    Args:
        chosen: (M,) bool, the moments that are targets; the others are only context. None means all.
    """

    def __init__(self, data: TrainData, history: int, chosen: np.ndarray | None = None) -> None:
        if data.targets is not None:  # a moment with only inputs is never a target
            chosen = data.has_target if chosen is None else chosen & data.has_target
        self.data = data
        self.history = history
        self.chosen = chosen
        self.rows = MomentRows.from_data(data, history)
        self.late = self.rows.arrived_late

    def training(self, which: str = "all") -> HistoryWindows:
        """Cut each user's moments into windows, newest first.

        The newest moment is only a target. ``old`` users have no windows.

        Args:
            which: ``all`` windows or the ``last`` of each user (``train.windows``).
        """
        first, stop = self.data.user_offsets[:-1], self.data.user_offsets[1:] - 1
        active = (stop > first) & ~self.data.old
        first, stop = first[active], stop[active]
        starts, stops = [], []
        while len(stop):
            start = self._window_start(first, stop)
            starts.append(start)
            stops.append(stop)
            if which == "last":
                break
            has_more = start > first
            first, stop = first[has_more], start[has_more]
        if not starts:
            return HistoryWindows(np.zeros(0, np.int64), np.zeros(0, np.int64))
        return self._windows_with_targets(HistoryWindows(np.concatenate(starts), np.concatenate(stops)))

    def _windows_with_targets(self, windows: HistoryWindows) -> HistoryWindows:
        """Keep windows with a target; each ends before its last target."""
        if self.chosen is None:
            return windows
        target_moments = np.flatnonzero(self.chosen)
        if not len(target_moments):
            return windows[np.zeros(len(windows), dtype=bool)]
        rank = np.searchsorted(target_moments, windows.stops, side="right") - 1  # (W,) -1: no target at or before stop
        last_target = target_moments[np.maximum(rank, 0)]
        holds_target = (rank >= 0) & (last_target > windows.starts)  # (W,)
        return HistoryWindows(windows.starts[holds_target], last_target[holds_target])

    def latest_windows(self, users: np.ndarray) -> HistoryWindows:
        """Return the newest window of each user with a moment, as serving builds it."""
        first, stop = self.data.user_offsets[users], self.data.user_offsets[users + 1]
        return HistoryWindows(self._window_start(first, stop), stop)

    def _window_start(self, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Return the first start from ``first`` with at most ``history`` items."""
        earliest = np.searchsorted(self.rows.offsets, self.rows.offsets[stop] - self.history, side="left")
        start: np.ndarray = np.maximum(earliest, first)
        return start

    def lengths(self, windows: HistoryWindows) -> np.ndarray:
        """Return the tokens (W,) of each window."""
        lengths: np.ndarray = self.rows.offsets[windows.stops] - self.rows.offsets[windows.starts]
        return lengths

    def draw(self, seed: int, epoch: int) -> np.ndarray:
        """Draw one target row per moment (M,) for an epoch, or any row of one without."""
        uniform = np.random.default_rng([seed, epoch]).random(len(self.data.stamps))
        offsets = self.data.moment_offsets
        rows: np.ndarray = offsets[:-1] + (uniform * np.diff(offsets)).astype(np.int64)
        if self.data.targets is not None:
            target_rows = np.flatnonzero(self.data.targets)
            # (M+1,) targets before each moment
            targets_before = np.concatenate([[0], np.cumsum(self.data.targets)])[offsets]
            has_target = np.diff(targets_before) > 0
            target = targets_before[:-1] + (uniform * np.diff(targets_before)).astype(np.int64)
            rows[has_target] = target_rows[target[has_target]]
        return rows

    def tokens(self, windows: HistoryWindows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return right-padded (B, T) arrays of the windows.

        They are rows of ``items``, moments from the newest, and the mask; padding is 0.
        """
        lengths = self.lengths(windows)
        step = np.arange(lengths.max(initial=1))
        mask = step < lengths[:, None]
        rows = np.where(mask, self.rows.offsets[windows.starts][:, None] + step, 0)
        moments = np.where(mask, windows.stops[:, None] - 1 - self.rows.moment[rows], 0)
        return rows, moments, mask

    def batch(self, windows: HistoryWindows, target_rows: np.ndarray) -> Batch:
        """Return the windows as tensors, with the targets drawn for this epoch (`draw`)."""
        rows, moments, mask = self.tokens(windows)
        n_moments = windows.stops - windows.starts
        moment_number = np.arange(n_moments.max(initial=1))
        predicted = moment_number < n_moments[:, None]  # (B, M)
        # (B, M) the moment that follows moment m
        target = np.where(predicted, windows.stops[:, None] - moment_number, 0)
        if self.chosen is not None:
            predicted &= self.chosen[target]
        arrived = None
        if self.late:
            newest_seq = self.rows.newest_seq[self.rows.moment[rows]]  # (B, T)
            arrived = torch.from_numpy(self.rows.seqs[rows][:, None, :] <= newest_seq[:, :, None])
        rejected, rejected_weights = self._refused(windows)
        return Batch(
            items=torch.from_numpy(np.where(mask, self.rows.items[rows], 0)),
            moments=torch.from_numpy(moments),
            mask=torch.from_numpy(mask),
            arrived=arrived,
            context=torch.from_numpy(self.context[target]),
            targets=torch.from_numpy(np.where(predicted, self.data.items[target_rows[target]], 0).astype(np.int64)),
            weights=torch.from_numpy(np.where(predicted, self.data.weights[target_rows[target]], 0).astype(np.float32)),
            rejected=rejected,
            rejected_weights=rejected_weights,
            users=torch.from_numpy(self.rows.user[windows.starts].astype(np.int64)),
        )

    def target_moments(self, windows: HistoryWindows) -> np.ndarray:
        """Return a (M,) bool mask of the moments that these windows predict."""
        steps = np.zeros(len(self.data.stamps) + 2, dtype=np.int64)
        np.add.at(steps, windows.starts + 1, 1)
        np.add.at(steps, windows.stops + 1, -1)
        in_window: np.ndarray = np.cumsum(steps)[: len(self.data.stamps)] > 0
        return in_window if self.chosen is None else in_window & self.chosen

    @cached_property
    def negatives_by_moment(self) -> NegativesByMoment | None:
        """Return the rejected items after each moment."""
        return None if self.data.negatives is None else NegativesByMoment(self.data)

    def _refused(self, windows: HistoryWindows) -> tuple[Tensor | None, Tensor | None]:
        if self.negatives_by_moment is None:
            return None, None
        window, row = self.negatives_by_moment.for_windows(windows.starts, windows.stops)
        if self.chosen is not None:  # used only if the following moment is a chosen target
            is_used = self.chosen[self.negatives_by_moment.moment[row] + 1]
            window, row = window[is_used], row[is_used]
        if not len(row):
            return None, None
        moment = windows.stops[window] - 1 - self.negatives_by_moment.moment[row]
        rejected = np.stack([window, moment, self.negatives_by_moment.items[row]], axis=1).astype(np.int64)
        return torch.from_numpy(rejected), torch.from_numpy(self.negatives_by_moment.weights[row])

    def queries(self, users: np.ndarray, now: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the serving inputs of these users at ``now``.

        They are items (B, T), moments, mask and context (B, C).
        """
        windows = self.latest_windows(users)
        rows, moments, mask = self.tokens(windows)
        context = self._context(users, now, self.data.stamps[windows.stops - 1], np.ones(len(users), dtype=bool))
        items = np.where(mask, self.rows.items[rows], 0)
        return torch.from_numpy(items), torch.from_numpy(moments), torch.from_numpy(mask), torch.from_numpy(context)

    @cached_property
    def context(self) -> np.ndarray:
        """Return (M, C) int64 context codes at each moment as a target."""
        stamps = self.data.stamps
        last_stamps = np.concatenate([[0], stamps[:-1]])
        has_past = np.concatenate([[False], self.rows.user[1:] == self.rows.user[:-1]])[: len(stamps)]
        return self._context(self.rows.user, stamps, last_stamps[: len(stamps)], has_past)

    def _context(self, users: np.ndarray, now: np.ndarray, last_stamps: np.ndarray, has_past: np.ndarray) -> np.ndarray:
        """Return (n, C) int64 codes of user and request fields, as serving encodes them."""
        columns = list(self.data.user_codes[users].T)
        if self.data.context_fields:
            spec = self.data.extras["spec"]
            fields = self.data.extras["fields"]
            columns += context_codes(spec, fields, now, last_stamps, has_past)
        return np.stack(columns, axis=1).astype(np.int64) if columns else np.zeros((len(users), 0), dtype=np.int64)


def history_before(data: TrainData, validation: ValidationQueries) -> TrainData:
    """Build the data of held-out users just before their moments, without other users."""
    as_of = np.full(data.n_users, -1, dtype=np.int64)
    as_of[validation.user_ix] = validation.as_of
    moment = data.row_moment
    is_before = data.seqs <= as_of[data.moment_user[moment]]
    sizes = np.bincount(moment[is_before], minlength=len(data.stamps))
    return replace(
        data,
        user_offsets=offsets_of(np.bincount(data.moment_user[sizes > 0], minlength=data.n_users)),
        moment_offsets=offsets_of(sizes[sizes > 0]),
        stamps=data.stamps[sizes > 0],
        items=data.items[is_before],
        seqs=data.seqs[is_before],
        weights=data.weights[is_before],
        targets=None if data.targets is None else data.targets[is_before],
    )


class LengthBucketSampler(Sampler[np.ndarray]):
    """Sampler of each step's windows: similar length, at most ``tokens`` tokens.

    The order changes each epoch.
    """

    def __init__(self, lengths: np.ndarray, seed: int, tokens: int = TOKENS_PER_STEP) -> None:
        self.lengths = lengths
        self.seed = seed
        self.tokens = tokens
        self.epoch = 0
        self.bounds = _bounds(np.sort(lengths), tokens)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[np.ndarray]:
        rng = np.random.default_rng([self.seed, self.epoch, 1])
        order = rng.permutation(len(self.lengths))
        order = order[np.argsort(self.lengths[order], kind="stable")]
        for step in rng.permutation(len(self)):
            yield order[self.bounds[step] : self.bounds[step + 1]]


def _bounds(lengths: np.ndarray, tokens: int) -> np.ndarray:
    """Cut ascending lengths into the fewest runs of at most ``tokens`` padded tokens.

    A run has at least one window, and (windows x longest window) <= tokens.
    """
    bounds = [0]
    while bounds[-1] < len(lengths):
        start = bounds[-1]
        run_lengths = lengths[start : start + max(1, tokens // max(1, int(lengths[start])))]
        padded_tokens = run_lengths * np.arange(1, len(run_lengths) + 1)
        bounds.append(start + max(1, int(np.searchsorted(padded_tokens, tokens, side="right"))))
    return np.array(bounds, dtype=np.int64)


class EpochDataset(Dataset[Batch]):
    """Batches of an epoch, indexed by a step's windows from `LengthBucketSampler`."""

    def __init__(
        self, sequences: SequenceDataset, windows: HistoryWindows, seed: int, steps: LengthBucketSampler
    ) -> None:
        self.sequences = sequences
        self.windows = windows
        self.seed = seed
        self.steps = steps
        self._drawn: tuple[int, np.ndarray] | None = None

    def __getitem__(self, selection: np.ndarray) -> Batch:
        epoch = self.steps.epoch
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = (epoch, self.sequences.draw(self.seed, epoch))
        return self.sequences.batch(self.windows[selection], self._drawn[1])
