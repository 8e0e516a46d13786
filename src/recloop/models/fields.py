"""Parts that the networks of the shelf share: tables of embeddings, and codes of fields as one vector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fields(nn.Module):
    """Codes of several fields -> one vector: each field's embedding, projected to D, summed. Code 0 = missing."""

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
        return F.embedding_bag(bags, rows, mode="sum").view(*codes.shape[:-1], self.dim)


def embedding(rows: int, dim: int, std: float) -> nn.Embedding:
    """A table whose rows begin as draws from a normal distribution."""
    table = nn.Embedding(rows, dim)
    nn.init.normal_(table.weight, std=std)
    return table
