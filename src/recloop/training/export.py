"""Export a trained network: item vectors as an array, user side as an ONNX graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

INPUT_NAMES = ("history", "moments", "mask", "context")
OUTPUT_NAME = "vectors"


class _UserVectors(nn.Module):
    """Expose a network's ``forward_user`` as ``forward``."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, history: Tensor, moments: Tensor, mask: Tensor, context: Tensor) -> Tensor:
        vectors: Tensor = self.network.forward_user(history, moments, mask, context)
        return vectors


def item_vectors(network: Any, codes: Tensor) -> np.ndarray:
    """Return the item vectors, (N+1, D) float32, row 0 = 0."""
    with torch.no_grad():
        vectors: np.ndarray = network.item_vectors(codes).cpu().numpy().astype(np.float32)
    vectors[0] = 0
    return vectors


def user_graph(network: Any, dim: int, n_context: int) -> bytes:
    """Export ``user.onnx``, the graph from a history to user vectors.

    Inputs: history (B, T, D) f32, moments (B, T) i64, mask (B, T) bool, context (B, C) i64. Output: vectors (B, D).
    B and T are dynamic. The file contains all weights except the item table.
    """
    example, shapes = _example(dim, n_context)
    return _export(_UserVectors(network), example, shapes, list(INPUT_NAMES))


def _example(dim: int, n_context: int) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    example = (
        torch.zeros(2, 3, dim),
        torch.tensor([[1, 0, 0], [0, 0, 0]]),
        torch.tensor([[True, True, False], [True, False, False]]),
        torch.zeros(2, n_context, dtype=torch.int64),
    )
    batch, time = torch.export.Dim("B"), torch.export.Dim("T")
    return example, ({0: batch, 1: time}, {0: batch, 1: time}, {0: batch, 1: time}, {0: batch})


class _CandidateScores(nn.Module):
    """Expose a network's candidate scores as ``forward``."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, history: Tensor, moments: Tensor, mask: Tensor, context: Tensor, candidates: Tensor) -> Tensor:
        users = self.network.forward_user(history, moments, mask, context)
        scores: Tensor = self.network.score_candidates(users, candidates)
        return scores


def rank_graph(network: Any, dim: int, n_context: int) -> bytes:
    """Export ``rank.onnx``: user.onnx inputs, candidates (B, K, D) -> scores (B, K)."""
    example, shapes = _example(dim, n_context)
    candidates = {0: torch.export.Dim("B"), 1: torch.export.Dim("K")}
    return _export(
        _CandidateScores(network),
        (*example, torch.zeros(2, 4, dim)),
        (*shapes, candidates),
        [*INPUT_NAMES, "candidates"],
    )


class _ColdItems(nn.Module):
    """Expose a network's ``cold_item_vectors`` as ``forward``."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, codes: Tensor) -> Tensor:
        vectors: Tensor = self.network.cold_item_vectors(codes)
        return vectors


def item_graph(network: Any, n_fields: int) -> bytes:
    """Export ``item.onnx``: codes (n, Ci) -> vectors (n, D) of items without a row."""
    return _export(
        _ColdItems(network), (torch.zeros(2, n_fields, dtype=torch.int64),), ({0: torch.export.Dim("n")},), ["codes"]
    )


def _export(module: nn.Module, example: tuple[Any, ...], shapes: tuple[Any, ...], inputs: list[str]) -> bytes:
    with _quiet():
        program = torch.onnx.export(
            module.eval().cpu(),
            example,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=inputs,
            output_names=[OUTPUT_NAME],
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _forget_origin(model)
    graph: bytes = model.SerializeToString()
    return graph


def _forget_origin(message: Any) -> None:
    """Remove the call traces of all nodes of a protobuf.

    They contain the installation folder, so that the bundle's hash would differ between machines.
    """
    for field, value in message.ListFields():
        if field.name in {"doc_string", "metadata_props"}:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for child in [value] if hasattr(value, "ListFields") else value:
                _forget_origin(child)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's internal warnings off stderr."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Several inputs share a size; the exporter drops its second name, as intended.
            warnings.filterwarnings("ignore", message=".*The axis name: . will not be used.*")
            # raised inside torch.export
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
