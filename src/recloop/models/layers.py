"""Shared layers of the built-in networks: item tables and field embeddings."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloop.models.base import ModelConfig, TrainData


class FieldEmbedding(nn.Module):
    """Sum of the projected (D) embeddings of several fields' codes; code 0 = missing."""

    def __init__(self, sizes: list[tuple[int, int]], dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.tables = nn.ModuleList(embedding(size, width, std=0.1) for size, width in sizes)
        self.projections = nn.ModuleList(nn.Linear(width, dim, bias=False) for _, width in sizes)
        first = torch.tensor([0, *(size for size, _ in sizes)]).cumsum(0)[:-1]
        self.first: Tensor  # (C,) row of a field's code 0 among the rows of all
        self.register_buffer("first", first, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """(..., C) codes -> (..., D)."""
        if not len(self.tables):
            return torch.zeros(*codes.shape[:-1], self.dim, device=codes.device)
        rows = torch.cat([project(table.weight) for table, project in zip(self.tables, self.projections, strict=True)])
        bags = (codes + self.first).reshape(-1, len(self.tables))  # a bag a row: the sum without its parts in memory
        if torch.onnx.is_in_onnx_export():  # a bag becomes a loop there, whose outputs stand in another order each time
            return rows[bags].sum(1).view(*codes.shape[:-1], self.dim)
        return F.embedding_bag(bags, rows, mode="sum").view(*codes.shape[:-1], self.dim)


class SequenceModel(nn.Module):
    """Base of the built-in networks: Config, item table with fields, context fields.

    Shapes: N items, D = ``features.dim``, Ci fields of an item.
    """

    class Config(ModelConfig):
        """``start`` of the item table: from co-visitation (`recloop.training.item_init`) or random."""

        start: Literal["counts", "random"] = "counts"

    inputs: ClassVar[str] = "sequence"

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config: Any = config or self.Config()

    def make_tables(self, data: TrainData, dim: int) -> None:
        """Build the tables for the items and fields of the training rows."""
        self.table = embedding(data.n_items + 1, dim, std=0.1)  # (N+1, D); row 0 pads
        self.item_fields = FieldEmbedding([(size, width) for _, size, width in data.item_fields], dim)
        self.context = FieldEmbedding([(size, width) for _, size, width in data.user_fields + data.request_fields], dim)

    def start(self, vectors: Tensor) -> None:
        """Initialize the item table with these rows (N+1, D)."""
        with torch.no_grad():
            self.table.weight.copy_(vectors)

    def items(self, codes: Tensor) -> Tensor:
        """Item vectors (N+1, D) of the fields' codes (N+1, Ci): own row + the sum of the projected fields."""
        vectors: Tensor = self.table.weight + self.item_fields(codes)
        return vectors


def embedding(rows: int, dim: int, std: float) -> nn.Embedding:
    """Create an embedding table initialized from a normal distribution."""
    table = nn.Embedding(rows, dim)
    nn.init.normal_(table.weight, std=std)
    return table
