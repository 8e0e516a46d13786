"""Shared layers of the built-in networks: item tables and field embeddings."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloop.models.base import ModelConfig, TrainData


class FieldEmbedding(nn.Module):
    """Sum of the embeddings (D) of several fields' codes; code 0 = missing."""

    def __init__(self, sizes: list[tuple[int, int]], dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.tables = nn.ModuleList(embedding(size, width, std=0.1) for size, width in sizes)
        self.projections = nn.ModuleList(nn.Linear(width, dim, bias=False) for _, width in sizes)
        first = torch.tensor([0, *(size for size, _ in sizes)]).cumsum(0)[:-1]
        self.first: Tensor  # (C,) row of each field's code 0 in the joined table
        self.register_buffer("first", first, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """(..., C) codes -> (..., D)."""
        if not len(self.tables):
            return torch.zeros(*codes.shape[:-1], self.dim, device=codes.device)
        rows = torch.cat([project(table.weight) for table, project in zip(self.tables, self.projections, strict=True)])
        bags = (codes + self.first).reshape(-1, len(self.tables))  # one bag per row sums without storing the parts
        if torch.onnx.is_in_onnx_export():  # an exported bag is a loop with outputs in random order
            return rows[bags].sum(1).view(*codes.shape[:-1], self.dim)
        return F.embedding_bag(bags, rows, mode="sum").view(*codes.shape[:-1], self.dim)


class SequenceModel(nn.Module):
    """Base of the built-in networks: Config, item table with fields, context fields.

    Shapes: N items, D = ``features.dim``, Ci fields of an item.
    """

    class Config(ModelConfig):
        """Options.

        ``start``: initial item table, from co-visitation (`recloop.training.item_init`) or random.
        """

        start: Literal["counts", "random"] = "counts"

    inputs: ClassVar[str] = "sequence"

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config: Any = config or self.Config()

    def make_tables(self, data: TrainData, dim: int) -> None:
        """Build the tables for the items and fields of the training rows."""
        self.table = embedding(data.n_items + 1, dim, std=0.1)  # (N+1, D); row 0 pads
        self.item_fields = FieldEmbedding([(size, width) for _, size, width in data.item_fields], dim)
        self.context = FieldEmbedding([(size, width) for _, size, width in data.user_fields + data.context_fields], dim)

    def init_items(self, vectors: Tensor) -> None:
        """Initialize the item table with these rows (N+1, D)."""
        with torch.no_grad():
            self.table.weight.copy_(vectors)

    def item_vectors(self, codes: Tensor) -> Tensor:
        """Item vectors (N+1, D) from the fields' codes (N+1, Ci).

        Each is the item's row plus the sum of its field embeddings.
        """
        vectors: Tensor = self.table.weight + self.item_fields(codes)
        return vectors


def embedding(rows: int, dim: int, std: float) -> nn.Embedding:
    """Create an embedding table initialized from a normal distribution."""
    table = nn.Embedding(rows, dim)
    nn.init.normal_(table.weight, std=std)
    return table
