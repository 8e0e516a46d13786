"""Items of a table in groups of equal field values, which share one score."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from recloop.features.attribute_affinity import scores_of

MAX_NUMBER: Final = 2**62
"""Bound of the numbers that `group_numbers` makes of the values of a row."""


class GroupedItems(NamedTuple):
    """Items of the table that are scored for a filter.

    Attributes:
        items: (n,) int32 item_ix, group by group, ascending in a group. prior: (n,) float32.
        starts: (G+1,) int64 first item of each group. largest: (G,) float32 largest prior of each group.
        slots, shares: (G, C) of the items of a group.
    """

    items: np.ndarray
    prior: np.ndarray
    starts: np.ndarray
    largest: np.ndarray
    slots: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(
        cls, items: np.ndarray, groups: np.ndarray, prior: np.ndarray, slots: np.ndarray, shares: np.ndarray
    ) -> GroupedItems:
        """Group some items.

        Args:
            items: (n,) ascending item_ix.
            groups, prior, slots, shares: Arrays of the whole table, by item_ix; the result has only rows of ``items``.
        """
        of_items = groups[items]
        order = np.argsort(of_items, kind="stable")
        items, of_items = items[order], of_items[order]
        firsts = np.flatnonzero(np.diff(of_items, prepend=-1))
        priors = prior[items]
        largest = np.maximum.reduceat(priors, firsts) if len(firsts) else priors
        examples = items[firsts]
        return cls(items, priors, np.append(firsts, len(items)), largest, slots[examples], shares[examples])

    def nbytes(self) -> int:
        return sum(array.nbytes for array in self)

    def best(self, profile: np.ndarray, n: int, banned: np.ndarray) -> np.ndarray:
        """Return the ``n`` items with the largest scores, descending, ties by item_ix.

        Only groups whose best item can be among them are scored item by item.

        Args:
            profile: (1+V,) profile of a query. banned: item_ix that are left out.
        """
        scores_of_groups = scores_of(profile, self.slots, self.shares)
        groups = _with_largest(self.largest + scores_of_groups, n + len(banned))
        sizes = self.starts[groups + 1] - self.starts[groups]
        ends = np.cumsum(sizes)
        rows = np.repeat(self.starts[groups] + sizes - ends, sizes) + np.arange(ends[-1] if len(ends) else 0)
        items = self.items[rows]
        scores = self.prior[rows] + np.repeat(scores_of_groups[groups], sizes)
        if len(banned):
            is_kept = ~np.isin(items, banned)
            items, scores = items[is_kept], scores[is_kept]
        kept = _with_largest(scores, n)
        best: np.ndarray = items[kept[np.lexsort((items[kept], -scores[kept]))][:n]]
        return best


def group_numbers(slots: np.ndarray, n_values: int) -> np.ndarray:
    """Return the group (n,) int32 of each row of slots (n, C).

    Equal rows have equal numbers.

    Args:
        n_values: Number above all slots.
    """
    numbers = np.zeros(len(slots), dtype=np.int64)
    bound = 1
    for column in slots.T:
        if bound * n_values > MAX_NUMBER:
            numbers = np.unique(numbers, return_inverse=True)[1]
            bound = len(slots)
        numbers = numbers * n_values + column
        bound *= n_values
    groups: np.ndarray = np.unique(numbers, return_inverse=True)[1].astype(np.int32)
    return groups


def _with_largest(values: np.ndarray, n: int) -> np.ndarray:
    """Return the positions of the ``n`` largest values and of ties with the last."""
    if n >= len(values):
        return np.arange(len(values))
    return np.flatnonzero(values >= np.partition(values, len(values) - n)[len(values) - n])
