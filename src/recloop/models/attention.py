"""Self-attention over the moments of a history: blocks and their masks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloop.errors import UserError
from recloop.models.layers import Dropout, embedding

HIDDEN_BIAS = 1e9
"""Bias of a token that is newer by one moment: its weight exp(-1e9) is 0 in float32."""


class AttentionEncoder(nn.Module):
    """Blocks of self-attention that give one vector per moment.

    Position and mask of a token are defined in docs/definitions/sequence-models.md. Its parameters are attributes of the
    network that inherits it.

    Shapes: B windows, T tokens, M moments, D = ``features.dim``.
    """

    def make_blocks(
        self, kind: str, blocks: int, heads: int, dim: int, history: int, dropout: float, attention_dropout: float = 0.0
    ) -> None:
        """Build ``history`` positions and the blocks, ``vanilla`` or ``ligr``.

        Raises:
            UserError: the number of heads does not divide the width.
        """
        if dim % heads:
            raise UserError("model.heads", heads, f"a divisor of features.dim={dim}", "--set model.heads=1")
        self.dim = dim
        self.history = history
        self.positions = embedding(history, dim, std=0.1)
        self.dropout = Dropout(dropout)
        block = LigrBlock if kind == "ligr" else Block
        self.blocks = nn.ModuleList(block(dim, heads, dropout, attention_dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)

    def newest(self, history: Tensor, moments: Tensor, mask: Tensor) -> Tensor:
        """(B, D) vector of the newest moment; 0 for a window without tokens."""
        x = self.tokens(history, moments)
        bias = attention_bias(moments, mask)  # one bias for all blocks
        for block in self.blocks[:-1]:
            x = block(x, bias)
        rows, is_newest = newest_tokens(moments, mask)  # (B, K)
        newest = torch.gather(x, 1, rows[:, :, None].expand(-1, -1, self.dim))  # (B, K, D)
        is_key = mask | ~mask.any(1, keepdim=True)  # (B, T): a window without tokens sees its padding
        hidden = self.norm(self.blocks[-1](x, torch.where(is_key[:, None, None], 0.0, -torch.inf), newest))
        weights = is_newest.to(hidden.dtype)
        mean: Tensor = (hidden * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)
        return mean

    def ends(self, history: Tensor, moments: Tensor, mask: Tensor, size: int, arrived: Tensor | None = None) -> Tensor:
        """(B, size, D) mean vectors of all moments, counted from the newest."""
        hidden = self.hidden(history, moments, mask, arrived)
        batch = len(hidden)
        moment_index = (torch.arange(batch, device=moments.device)[:, None] * size + moments)[mask]  # (tokens,)
        sums = hidden.new_zeros(batch * size, self.dim).index_add(0, moment_index, hidden[mask])
        counts = torch.bincount(moment_index, minlength=batch * size).clamp(min=1)
        means: Tensor = (sums / counts[:, None]).view(batch, size, self.dim)
        return means

    def tokens(self, history: Tensor, moments: Tensor) -> Tensor:
        """(B, T, D) tokens before the blocks."""
        number = moments.clamp(max=self.history - 1)
        tokens: Tensor = self.dropout(history * math.sqrt(self.dim) + self.positions(number))
        return tokens

    def hidden(self, history: Tensor, moments: Tensor, mask: Tensor, arrived: Tensor | None = None) -> Tensor:
        """(B, T, D) tokens after all blocks."""
        x, sees = self.embed(history, moments, mask, arrived)
        for block in self.blocks:
            x = block(x, sees)
        hidden: Tensor = self.norm(x)
        return hidden

    def embed(
        self, history: Tensor, moments: Tensor, mask: Tensor, arrived: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, T, D) tokens before the blocks, and (B, 1, T, T) their attention mask.

        The mask is True where token i attends to token j.
        """
        x = self.tokens(history, moments)
        sees = (moments[:, :, None] <= moments[:, None, :]) & mask[:, None, :]  # (B, T, T): j is not newer than i
        if arrived is not None:
            sees = sees & arrived
        self_mask = torch.eye(moments.shape[1], dtype=torch.bool, device=moments.device)
        return x, (sees | self_mask)[:, None]  # a padded token sees itself, so that no row is empty


def attention_bias(moments: Tensor, mask: Tensor) -> Tensor:
    """(B, 1, T, T) bias of the attention of a user graph.

    It is 0 where token i attends to token j, else so low that the weight is 0. A padded token attends to all tokens; its
    output is not used. In onnxruntime this arithmetic is faster than a mask.
    """
    age = torch.where(mask, moments, -1).to(torch.float32)  # (B, T)
    return (torch.clamp(age[:, None, :] - age[:, :, None], max=0) * HIDDEN_BIAS)[:, None]


def newest_tokens(moments: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K) rows of each window's newest moment, and True where they exist.

    They are the last tokens of a window, because the oldest is first. K is the size of the largest newest moment.
    """
    sizes = (mask & (moments == 0)).sum(1)  # (B,)
    size = sizes.max().clamp(min=1).item()
    torch._check(size >= 1)  # type: ignore[no-untyped-call]
    age = torch.arange(size, device=moments.device)  # (K,)
    rows = (mask.sum(1, keepdim=True) - 1 - age).clamp(min=0)
    return rows, age < sizes[:, None]


class Block(nn.Module):
    """Pre-norm transformer block: attention and a point-wise network with residuals."""

    def __init__(self, dim: int, heads: int, dropout: float, attention_dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.attention_dropout = attention_dropout
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.linear1, self.linear2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, sees: Tensor, queries: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); with ``queries`` (B, K, D) of its tokens -> (B, K, D).

        ``sees`` (B, 1, T or K or 1, T): True where token i attends to token j, or 0 there and -inf elsewhere.
        """
        batch, length, dim = x.shape
        shape = (self.heads, dim // self.heads)
        normed = self.norm1(x)
        if queries is None:
            queries = x
            query, key, value = self.qkv(normed).view(batch, length, 3, *shape).permute(2, 0, 3, 1, 4)
        else:
            key_value = F.linear(normed, self.qkv.weight[dim:], self.qkv.bias[dim:])
            key, value = key_value.view(batch, length, 2, *shape).permute(2, 0, 3, 1, 4)
            query = F.linear(self.norm1(queries), self.qkv.weight[:dim], self.qkv.bias[:dim])
            query = query.view(batch, -1, *shape).transpose(1, 2)
        if sees.dtype == torch.bool:  # in training
            drop = self.attention_dropout if self.training else 0.0
            mixed = F.scaled_dot_product_attention(query, key, value, sees, drop)  # (B, heads, T, D / heads)
        else:  # the fused form cannot be exported for a number of queries that depends on the data
            scores = (query / math.sqrt(shape[1])) @ key.transpose(-1, -2) + sees  # (B, heads, T or K, T)
            mixed = torch.softmax(scores, dim=-1) @ value
        attended = self.out(mixed.transpose(1, 2).reshape(batch, -1, dim))
        return self.add_feed_forward(self.add_attended(queries, attended))

    def add_attended(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual of attention, (B, K, D)."""
        out: Tensor = x + self.dropout(attended)
        return out

    def add_feed_forward(self, x: Tensor) -> Tensor:
        """Residual of the point-wise network, (B, K, D)."""
        wide = self.dropout(F.relu(self.linear1(self.norm2(x))))
        out: Tensor = x + self.dropout(self.linear2(wide))
        return out


class LigrBlock(Block):
    """Pre-norm block with gated residuals and a SwiGLU network of width 4 D.

    Borisyuk et al., "From Features to Transformers: LiGR", 2025 (arXiv 2502.03417), as eSASRec uses it (arXiv 2508.06450).
    Each residual is multiplied by sigmoid(W x) of its input.
    """

    def __init__(self, dim: int, heads: int, dropout: float, attention_dropout: float = 0.0) -> None:
        super().__init__(dim, heads, dropout, attention_dropout)
        width = 4 * dim
        self.linear1, self.linear2 = nn.Linear(dim, width, bias=False), nn.Linear(width, dim, bias=False)
        self.linear3 = nn.Linear(dim, width, bias=False)
        self.gate1, self.gate2 = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def add_attended(self, x: Tensor, attended: Tensor) -> Tensor:
        """Gated residual of attention, (B, K, D)."""
        out: Tensor = x + self.dropout(attended * torch.sigmoid(self.gate1(x)))
        return out

    def add_feed_forward(self, x: Tensor) -> Tensor:
        """Gated residual of SwiGLU, (B, K, D)."""
        normed = self.norm2(x)
        wide = self.dropout(F.silu(self.linear1(normed)) * self.linear3(normed))  # (B, K, 4 D)
        out: Tensor = x + self.dropout(self.linear2(wide) * torch.sigmoid(self.gate2(x)))
        return out
