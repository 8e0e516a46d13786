"""Initialize item embeddings: truncated SVD of positive PMI of co-visitation."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from recloop.models.base import TrainData
from recloop.models.covisitation import LAG_WEIGHTS

CORE_ITEMS = 2048
"""Number of most frequent items in the SVD; other items are projected on its space."""
PART_MOMENTS = 1 << 20
"""Moments whose pairs are counted together; a user's moments are in one part."""
ITEM_STD = 0.1
"""Standard deviation of the item table."""


def init_item_embeddings(data: TrainData, dim: int, seed: int) -> np.ndarray:
    """Return initial item vectors, (N+1, D) float32: U sqrt(S) of the positive PMI.

    The standard deviation is scaled to `ITEM_STD`. Counts are those of `recloop.models.covisitation`, in both
    directions: c(a, b) + c(b, a). PMI(a, b) = ln(c(a, b) total / (c(a) c(b))), with negative values set to 0. The SVD
    uses the ``CORE_ITEMS`` items with most events; every other row is projected on it. Noise of a tenth of the spread
    separates items that have no neighbour.
    """
    rng = np.random.default_rng(seed)
    vectors = rng.normal(scale=ITEM_STD / 10, size=(data.n_items + 1, dim)).astype(np.float32)
    core = np.sort(np.argsort(-data.counts[1:], kind="stable")[:CORE_ITEMS]) + 1
    pmi = _positive_pmi(data, core)
    rank = min(dim, len(core) - 1)
    if rank < 1 or not pmi.nnz:
        return vectors
    _, s, vt = svds(pmi[core], k=rank, v0=np.ones(len(core), dtype=np.float32))
    significant = s > s.max() * 1e-5
    # (N+1, rank): U sqrt(S) where the row is in the core
    projected = pmi @ (vt[significant].T / np.sqrt(s[significant]))
    vectors[:, : significant.sum()] += projected * (ITEM_STD / projected.std())
    vectors[0] = 0
    return vectors


def _positive_pmi(data: TrainData, core: np.ndarray) -> sp.csr_array:
    """Return the positive PMI of every item with the core items, (N+1, core) float32."""
    counts = _pair_counts(data, core)
    rows, columns = counts.sum(axis=1), counts.sum(axis=0)
    row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    chance = rows[row] / max(rows.sum(), 1) * columns[counts.indices]
    counts.data = np.maximum(np.log(counts.data / chance), 0).astype(np.float32)
    counts.eliminate_zeros()
    return counts


def _pair_counts(data: TrainData, core: np.ndarray) -> sp.csr_array:
    """Return the weighted pairs of each item with the core items, (N+1, core) float32.

    The moments are counted in parts of whole users, because one moment has pairs with up to 16 others.
    """
    counts = sp.csr_array((data.n_items + 1, len(core)), dtype=np.float32)
    ends = np.append(np.flatnonzero(np.diff(data.moment_user)) + 1, len(data.stamps))  # of users
    low = 0
    while low < len(data.stamps):
        high = int(ends[min(int(np.searchsorted(ends, low + PART_MOMENTS)), len(ends) - 1)])
        offsets = data.moment_offsets[low : high + 1]
        items = data.items[offsets[0] : offsets[-1]]
        shape = (high - low, data.n_items + 1)
        moment_items = sp.csr_array((np.ones(len(items), np.float32), items, offsets - offsets[0]), shape=shape)
        near = sp.csr_array(_around(data.moment_user[low:high]) @ moment_items[:, core])
        pairs = sp.csr_array(moment_items.T) @ near
        counts = sp.csr_array(counts + pairs) if counts.nnz else pairs
        low = high
    return counts


def _around(user: np.ndarray) -> sp.csr_array:
    """Return (M, M) weights between moments of one user at most 8 moments apart."""
    lag_matrices = []
    for lag, weight in enumerate(LAG_WEIGHTS, start=1):
        earlier = np.flatnonzero(user[lag:] == user[:-lag])
        lag_matrices.append(
            sp.coo_array((np.full(len(earlier), weight, np.float32), (earlier, earlier + lag)), shape=(len(user),) * 2)
        )
    later_weights = sp.csr_array(sum(lag_matrices[1:], lag_matrices[0]))
    return sp.csr_array(later_weights + later_weights.T)
