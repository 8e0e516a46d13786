"""Shared layers of the built-in networks: item tables and field embeddings."""

from __future__ import annotations

from itertools import groupby
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloop.models.base import ModelConfig, TrainData


class FieldEmbedding(nn.Module):
    """Sum of the embeddings (D) of several fields' codes; code 0 = missing.

    Consecutive columns of one name are the categories of one field: they share a table, and the field is their mean.

    Args:
        fields: Name, number of codes and width of each column.
    """

    def __init__(self, fields: list[tuple[str, int, int]], dim: int) -> None:
        super().__init__()
        self.dim = dim
        columns = [(next(iter(same)), 1 + sum(1 for _ in same)) for _, same in groupby(fields, lambda field: field[0])]
        sizes = [(size, width) for (_, size, width), _ in columns]
        self.tables = nn.ModuleList(embedding(size, width, std=0.1) for size, width in sizes)
        self.projections = nn.ModuleList(nn.Linear(width, dim, bias=False) for _, width in sizes)
        first = torch.tensor([0, *(size for size, _ in sizes)]).cumsum(0)[:-1]
        self.counts = [count for _, count in columns]
        self.first: Tensor  # (C,) row of each column's code 0 in the joined table
        self.register_buffer(
            "first", first.repeat_interleave(torch.tensor(self.counts, dtype=torch.int64)), persistent=False
        )

    def forward(self, codes: Tensor) -> Tensor:
        """(..., C) codes -> (..., D)."""
        if not len(self.tables):
            return torch.zeros(*codes.shape[:-1], self.dim, device=codes.device)
        rows = torch.cat([project(table.weight) for table, project in zip(self.tables, self.projections, strict=True)])
        bags = (codes + self.first).reshape(-1, len(self.first))  # one bag per row sums without storing the parts
        if max(self.counts) > 1:
            weights = self._weights(codes.reshape(bags.shape))
            if torch.onnx.is_in_onnx_export():
                return (rows[bags] * weights[:, :, None]).sum(1).view(*codes.shape[:-1], self.dim)
            bag = F.embedding_bag(bags, rows, mode="sum", per_sample_weights=weights.to(rows.dtype))
            return bag.view(*codes.shape[:-1], self.dim)
        if torch.onnx.is_in_onnx_export():  # an exported bag is a loop with outputs in random order
            return rows[bags].sum(1).view(*codes.shape[:-1], self.dim)
        return F.embedding_bag(bags, rows, mode="sum").view(*codes.shape[:-1], self.dim)

    def _weights(self, codes: Tensor) -> Tensor:
        """(n, C) weight of each column: 1, or 1 / number of known categories of its field."""
        parts = []
        for group in torch.split(codes, self.counts, dim=1):
            is_known = (group > 0).float()
            is_missing = (is_known.sum(1, keepdim=True) == 0).float()
            first = torch.eye(1, group.shape[1], device=codes.device)
            parts.append((is_known + is_missing * first) / (is_known.sum(1, keepdim=True) + is_missing))
        return torch.cat(parts, dim=1)


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
        self.item_fields = FieldEmbedding(data.item_fields, dim)
        self.context = FieldEmbedding(data.user_fields + data.context_fields, dim)

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


class Dropout(nn.Module):
    """Dropout with one random byte per value.

    On a CPU it takes half the time of `torch.nn.Dropout`. The rate is rounded to 1/256; kept values are divided by their
    exact share, so the expectation is the input's.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.n_dropped = min(255, round(256 * rate))  # of 256 byte values
        self.active = True

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...); the input itself outside training and while not ``active``."""
        if not (self.training and self.active and self.n_dropped):
            return x
        words = torch.empty(x.numel() // 8 + 1, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        is_kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.n_dropped
        return x * (is_kept * (256 / (256 - self.n_dropped)))


def embedding(rows: int, dim: int, std: float) -> nn.Embedding:
    """Create an embedding table initialized from a normal distribution."""
    table = nn.Embedding(rows, dim)
    nn.init.normal_(table.weight, std=std)
    return table
