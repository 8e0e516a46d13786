"""Export a trained network: item vectors as an array, user side as an ONNX graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from recloop.bundle.checks import RANKER_GRAPH
from recloop.models.layers import FieldEmbedding
from recloop.training.graph_template import GraphTemplate
from recloop.training.network import OptionalMembers

INPUT_NAMES = ("history", "moments", "mask", "context")
OUTPUT_NAME = "vectors"
USER_GRAPH, RANK_GRAPH, ITEM_GRAPH = "user.onnx", "rank.onnx", "item.onnx"
TEMPLATES: dict[str, GraphTemplate] = {}
"""Graphs that this process has exported, by the structure of their module."""


@dataclass(frozen=True)
class EarlierGraphs:
    """Graphs of a parent by file name, and the weights with which they were exported."""

    graphs: Mapping[str, bytes]
    weights: Mapping[str, np.ndarray]  # by ``network.NAME``

    def template(self, name: str, module: nn.Module) -> GraphTemplate | None:
        """Return the template of a graph; None without it or if a tensor is ambiguous."""
        import onnx

        if name not in self.graphs:
            return None
        weights = _with_projections(module, self.weights)
        return None if weights is None else GraphTemplate.of(onnx.load_model_from_string(self.graphs[name]), weights)


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


def user_graph(network: Any, dim: int, n_context: int, earlier: EarlierGraphs | None = None) -> bytes:
    """Export ``user.onnx``, the graph from a history to user vectors.

    Inputs: history (B, T, D) f32, moments (B, T) i64, mask (B, T) bool, context (B, C) i64. Output: vectors (B, D).
    B and T are dynamic. The file contains all weights except the item table.

    Args:
        earlier: Graphs of the parent; if its structure is the same, its graph gets the new weights.
    """
    example, shapes = _example(dim, n_context)
    return _export(USER_GRAPH, _UserVectors(network), example, shapes, list(INPUT_NAMES), earlier)


def _example(dim: int, n_context: int) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    example = (
        torch.zeros(2, 3, dim),
        torch.tensor([[1, 0, 0], [0, 0, 0]]),
        torch.tensor([[True, True, False], [True, False, False]]),
        torch.zeros(2, n_context, dtype=torch.int64),
    )
    batch, time = torch.export.Dim("B"), torch.export.Dim("T")
    return example, ({0: batch, 1: time}, {0: batch, 1: time}, {0: batch, 1: time}, {0: batch})


class _KnownUserScores(nn.Module):
    """Expose the candidate scores of a network with user rows as ``forward``.

    A user whose row is 0 is folded in.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, history: Tensor, moments: Tensor, mask: Tensor, context: Tensor, candidates: Tensor, user: Tensor
    ) -> Tensor:
        folded = self.network.forward_user(history, moments, mask, context)
        users = torch.where((user != 0).any(1, keepdim=True), user, folded)
        scores: Tensor = self.network.score_candidates(users, candidates)
        return scores


class _CandidateScores(nn.Module):
    """Expose a network's candidate scores as ``forward``."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, history: Tensor, moments: Tensor, mask: Tensor, context: Tensor, candidates: Tensor) -> Tensor:
        users = self.network.forward_user(history, moments, mask, context)
        scores: Tensor = self.network.score_candidates(users, candidates)
        return scores


def rank_graph(network: Any, dim: int, n_context: int, earlier: EarlierGraphs | None = None) -> bytes:
    """Export ``rank.onnx``: user.onnx inputs, candidates (B, K, D) -> scores (B, K).

    The graph of a network with user rows has the further input user (B, D), 0 for a user without a row.
    """
    example, shapes = _example(dim, n_context)
    batch = torch.export.Dim("B")
    example, shapes = (*example, torch.zeros(2, 4, dim)), (*shapes, {0: batch, 1: torch.export.Dim("K")})
    names = [*INPUT_NAMES, "candidates"]
    if OptionalMembers.from_network(network).user_vectors is None:
        return _export(RANK_GRAPH, _CandidateScores(network), example, shapes, names, earlier)
    example, shapes = (*example, torch.zeros(2, dim)), (*shapes, {0: batch})
    return _export(RANK_GRAPH, _KnownUserScores(network), example, shapes, [*names, "user"], earlier)


class _Scores(nn.Module):
    """Hold a ranker's network under the name that the structure of a graph needs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.network(features)
        return scores


def score_graph(network: nn.Module, n_features: int) -> bytes:
    """Export ``ranker.onnx`` of a network: features (C, F) f32 -> scores (C, 1)."""
    example = (torch.zeros(2, n_features),)
    return _export(RANKER_GRAPH, _Scores(network), example, ({0: torch.export.Dim("C")},), ["features"], None)


class _ColdItems(nn.Module):
    """Expose a network's ``cold_item_vectors`` as ``forward``."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, codes: Tensor) -> Tensor:
        vectors: Tensor = self.network.cold_item_vectors(codes)
        return vectors


def item_graph(network: Any, n_fields: int, earlier: EarlierGraphs | None = None) -> bytes:
    """Export ``item.onnx``: codes (n, Ci) -> vectors (n, D) of items without a row."""
    example = (torch.zeros(2, n_fields, dtype=torch.int64),)
    return _export(ITEM_GRAPH, _ColdItems(network), example, ({0: torch.export.Dim("n")},), ["codes"], earlier)


def _export(
    name: str,
    module: nn.Module,
    example: tuple[Any, ...],
    shapes: tuple[Any, ...],
    inputs: list[str],
    earlier: EarlierGraphs | None,
) -> bytes:
    """Export a module, or fill the template of an earlier one with the same structure."""
    module = module.eval().cpu()
    weights = _with_projections(module, {name: tensor.numpy() for name, tensor in module.state_dict().items()})
    assert weights is not None
    key = _structure(module, weights, example)
    template = TEMPLATES.get(key)
    if template is None and earlier is not None:
        template = earlier.template(name, module)
    if template is not None and template.fits(weights):
        graph = template.filled(weights)
        if _answers_alike(graph, module, example, inputs):
            return graph
    with _quiet():
        program = torch.onnx.export(
            module,
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
    template = GraphTemplate.of(model, weights)
    if template is not None:
        TEMPLATES[key] = template
    exported: bytes = model.SerializeToString()
    return exported


def _with_projections(module: nn.Module, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """Return weights with the projected tables of fields; None if a table is missing.

    The exporter computes these products with numpy, so that the bytes are equal.
    """
    projections = {}
    for name, part in module.named_modules():
        if isinstance(part, FieldEmbedding) and len(part.tables):
            tables = [f"{name}.tables.{n}.weight" for n in range(len(part.tables))]
            projectors = [f"{name}.projections.{n}.weight" for n in range(len(part.tables))]
            if not weights.keys() >= {*tables, *projectors}:
                return None
            pairs = zip(tables, projectors, strict=True)
            projections[f"{name}.rows"] = np.concatenate([weights[table] @ weights[other].T for table, other in pairs])
    return {**weights, **projections}


def _structure(module: nn.Module, weights: Mapping[str, np.ndarray], example: tuple[Any, ...]) -> str:
    """Return a text that is equal for modules of the same structure."""
    shapes = [(name, values.shape) for name, values in weights.items()]
    config = getattr(module.network, "config", None)
    return repr((module, config, shapes, [tuple(tensor.shape) for tensor in example]))


def _answers_alike(graph: bytes, module: nn.Module, example: tuple[Any, ...], inputs: list[str]) -> bool:
    """Return whether a graph and its module give the same output for random vectors."""
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor for tensor in example
    ]
    with torch.no_grad():
        expected = module(*tensors).numpy()
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feeds = {name: tensor.numpy() for name, tensor in zip(inputs, tensors, strict=True)}
    return np.allclose(session.run(None, feeds)[0], expected, rtol=1e-4, atol=1e-4)


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
