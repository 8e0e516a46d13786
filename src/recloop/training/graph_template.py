"""Exported graph whose weights are replaced, because an export takes seconds.

The exporter stores a weight as it is, transposed, or as some of its rows. A template records which, so that the graph of
another network with the same structure needs no export.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class _Source:
    """Origin of a stored tensor: rows of a weight, perhaps transposed."""

    weight: str
    rows: slice
    is_transposed: bool

    def of(self, weights: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the tensor for these weights."""
        values = weights[self.weight][self.rows]
        return np.ascontiguousarray(values.T if self.is_transposed else values)


@dataclass(frozen=True)
class GraphTemplate:
    """Exported model (`onnx.ModelProto`), and the sources of its float32 tensors."""

    model: Any
    sources: Mapping[str, _Source]

    @classmethod
    def of(cls, model: Any, weights: Mapping[str, np.ndarray]) -> GraphTemplate | None:
        """Find the sources of all tensors by their values.

        Returns None if a tensor could be one of several weights.

        Args:
            model: Exported with ``weights``. A tensor without a source is a constant of every network.
        """
        from onnx import numpy_helper

        sources: dict[str, _Source] = {}
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype != np.float32 or not values.ndim:
                continue
            if tensor.name in weights and np.array_equal(weights[tensor.name], values):
                found = [_Source(tensor.name, slice(None), is_transposed=False)]
            else:
                found = [source for name, weight in weights.items() for source in _sources(name, weight, values)]
            if len(found) > 1:
                return None
            if found:
                sources[tensor.name] = found[0]
        return cls(model, sources)

    def fits(self, weights: Mapping[str, np.ndarray]) -> bool:
        """Return whether these weights give each tensor its shape."""
        shapes = {tensor.name: tuple(tensor.dims) for tensor in self.model.graph.initializer}
        return all(
            source.weight in weights and source.of(weights).shape == shapes[name]
            for name, source in self.sources.items()
        )

    def filled(self, weights: Mapping[str, np.ndarray]) -> bytes:
        """Return the graph with other weights."""
        model = type(self.model)()
        model.CopyFrom(self.model)
        for tensor in model.graph.initializer:
            if tensor.name in self.sources:
                tensor.raw_data = self.sources[tensor.name].of(weights).tobytes()
        graph: bytes = model.SerializeToString()
        return graph


def _sources(name: str, weight: np.ndarray, values: np.ndarray) -> list[_Source]:
    """Return the ways in which a tensor can be part of a weight."""
    found = []
    for is_transposed in (False, True)[: values.ndim]:
        part = values.T if is_transposed else values
        if part.ndim != weight.ndim or part.shape[1:] != weight.shape[1:]:
            continue
        n_starts = len(weight) - len(part) + 1
        for start in np.flatnonzero(weight.reshape(len(weight), -1)[: max(0, n_starts), 0] == part.flat[0]).tolist():
            rows = slice(start, start + len(part))
            if np.array_equal(weight[rows], part):
                found.append(_Source(name, rows, is_transposed))
    return found
