"""Bounded cache of what a source derives from a table mask."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

from recloop.recommend.filters import CandidateMask

Derived = TypeVar("Derived")


class MaskCache(Generic[Derived]):
    """Results of a function of a mask, of the ``size`` masks that were used last."""

    def __init__(self, derive: Callable[[np.ndarray], Derived], size: int) -> None:
        self._derive = derive
        self._size = size
        self._entries: OrderedDict[int, tuple[np.ndarray, Derived]] = OrderedDict()

    def get(self, allowed: CandidateMask) -> Derived:
        """Return the result for the mask (N+1,) of ``allowed``."""
        key = id(allowed.mask)  # the entry keeps the mask, so its id is not used again
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = (allowed.mask, self._derive(allowed.mask))
            if len(self._entries) > self._size:
                self._entries.popitem(last=False)
        else:
            self._entries.move_to_end(key)
        return entry[1]
