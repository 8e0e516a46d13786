"""A trained network as what serving reads: the item table as an array, the user side as an ONNX graph beside it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

INPUTS = ("history", "moments", "mask", "context")
OUTPUT = "vectors"


class _Users(nn.Module):
    """The serving face of a network: its ``users`` as ``forward``."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, history: Tensor, moments: Tensor, mask: Tensor, context: Tensor) -> Tensor:
        vectors: Tensor = self.network.users(history, moments, mask, context)
        return vectors


def item_vectors(network: Any, codes: Tensor) -> np.ndarray:
    """(N+1, D) float32, row 0 = 0."""
    with torch.no_grad():
        vectors: np.ndarray = network.items(codes).cpu().numpy().astype(np.float32)
    vectors[0] = 0
    return vectors


def user_graph(network: Any, dim: int, n_context: int) -> bytes:
    """``user.onnx``: history (B, T, D) f32, moments (B, T) i64, mask (B, T) bool, context (B, C) i64 -> vectors (B, D).

    Any B and T; every weight inside the file, the item table outside.
    """
    example, shapes = _example(dim, n_context)
    return _export(_Users(network), example, shapes, list(INPUTS))


def _example(dim: int, n_context: int) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    example = (
        torch.zeros(2, 3, dim),
        torch.tensor([[1, 0, 0], [0, 0, 0]]),
        torch.tensor([[True, True, False], [True, False, False]]),
        torch.zeros(2, n_context, dtype=torch.int64),
    )
    batch, time = torch.export.Dim("B"), torch.export.Dim("T")
    return example, ({0: batch, 1: time}, {0: batch, 1: time}, {0: batch, 1: time}, {0: batch})


class _Ranks(nn.Module):
    """A network that scores candidates, as ``forward``."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, history: Tensor, moments: Tensor, mask: Tensor, context: Tensor, candidates: Tensor) -> Tensor:
        users = self.network.users(history, moments, mask, context)
        scores: Tensor = self.network.rank(users, candidates)
        return scores


def rank_graph(network: Any, dim: int, n_context: int) -> bytes:
    """``rank.onnx``: the inputs of user.onnx and candidates (B, K, D) f32 -> scores (B, K)."""
    example, shapes = _example(dim, n_context)
    candidates = {0: torch.export.Dim("B"), 1: torch.export.Dim("K")}
    return _export(_Ranks(network), (*example, torch.zeros(2, 4, dim)), (*shapes, candidates), [*INPUTS, "candidates"])


class _Described(nn.Module):
    """A network's ``described`` as ``forward``."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, codes: Tensor) -> Tensor:
        vectors: Tensor = self.network.described(codes)
        return vectors


def item_graph(network: Any, n_fields: int) -> bytes:
    """``item.onnx``: codes (n, Ci) i64 -> vectors (n, D) of items without a row, of a network that describes them."""
    return _export(
        _Described(network), (torch.zeros(2, n_fields, dtype=torch.int64),), ({0: torch.export.Dim("n")},), ["codes"]
    )


def _export(face: nn.Module, example: tuple[Any, ...], shapes: tuple[Any, ...], inputs: list[str]) -> bytes:
    with _quiet():
        program = torch.onnx.export(
            face.eval().cpu(),
            example,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=inputs,
            output_names=[OUTPUT],
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _forget_origin(model)
    graph: bytes = model.SerializeToString()
    return graph


def _forget_origin(message: Any) -> None:
    """Take out, at every depth of a protobuf, what tells where it was made: each node carries the trace of its call.

    With it the bytes, and so a bundle's hash, would differ by the folder that recloop is installed in, and name it.
    """
    for field, value in message.ListFields():
        if field.name in {"doc_string", "metadata_props"}:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for one in [value] if hasattr(value, "ListFields") else value:
                _forget_origin(one)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own remarks about its internals, kept off stderr."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # One size stands in several inputs, and its second name is dropped: what we asked for.
            warnings.filterwarnings("ignore", message=".*The axis name: . will not be used.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # torch.export of itself
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
