"""SASRec over moments: the paper's network for single items, a set within a moment."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from recloop.errors import UserError
from recloop.models.base import TrainData, load_model
from recloop.models.sasrec import SASRec

D, HISTORY, N = 16, 12, 20
SHIFT = torch.linspace(-1, 1, D) ** 3  # not constant: a layer norm removes a constant shift


def bare(n_items: int = N, fields: int = 0, context: int = 0) -> TrainData:
    """Training arrays with only the sizes that build a network."""
    none = np.zeros(0, np.int64)
    return TrainData(
        item_ids=[str(n) for n in range(n_items)],
        user_ids=[],
        user_offsets=np.zeros(1, np.int64),
        moment_offsets=np.zeros(1, np.int64),
        stamps=none,
        items=none,
        seqs=none,
        weights=none,
        old=none,
        user_codes=none,
        item_codes=none,
        user_fields=[(f"user.{n}", 4, 3) for n in range(context)],
        item_fields=[(f"item.{n}", 5, 3) for n in range(fields)],
        context_fields=[],
        cut=0,
        counts=none,
    )


def made(fields: int = 0, context: int = 0, **options: object) -> SASRec:
    torch.manual_seed(0)
    network: SASRec = load_model("sasrec", options)
    network.build(bare(fields=fields, context=context), D, HISTORY)
    return network.eval()


def window(*sizes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Oldest first: vectors (1, T, D), moments, mask (1, T), context (1, M, 0)."""
    total = sum(sizes)
    number = np.repeat(np.arange(len(sizes))[::-1], sizes)
    generator = torch.Generator().manual_seed(total)
    history = torch.randn(1, total, D, generator=generator) * 0.1
    moments = torch.from_numpy(number.copy())[None]
    return history, moments, torch.ones(1, total, dtype=torch.bool), torch.zeros(1, len(sizes), 0, dtype=torch.int64)


def test_sasrec_with_single_item_moments_equals_a_causal_transformer() -> None:
    """Compare with torch's pre-norm encoder with a triangular mask and copied weights."""
    ours = made(blocks=2, heads=2)
    length = 9
    history, moments, mask, context = window(*[1] * length)
    x = history * math.sqrt(D) + ours.positions(torch.arange(length - 1, -1, -1))[None]
    forbidden = torch.triu(torch.ones(length, length, dtype=torch.bool), diagonal=1)
    for block in ours.blocks:
        theirs = nn.TransformerEncoderLayer(D, 2, D, 0.0, "relu", batch_first=True, norm_first=True)
        theirs.load_state_dict(
            {
                "self_attn.in_proj_weight": block.qkv.weight,
                "self_attn.in_proj_bias": block.qkv.bias,
                "self_attn.out_proj.weight": block.out.weight,
                "self_attn.out_proj.bias": block.out.bias,
                **{
                    f"{name}.{kind}": getattr(getattr(block, name), kind)
                    for name in ("norm1", "norm2", "linear1", "linear2")
                    for kind in ("weight", "bias")
                },
            }
        )
        x = theirs.train()(x, src_mask=forbidden)  # eval mode uses another implementation
    plain = ours.norm(x)  # (1, T, D), oldest first
    ends = ours.forward_moments(history, moments, mask, context)  # (1, M, D), newest first
    torch.testing.assert_close(ends.flip(1), plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        ours.forward_user(history, moments, mask, context[:, 0]), plain[:, -1], rtol=0, atol=1e-5
    )


def test_sasrec_is_independent_of_padding_and_batch() -> None:
    network = made()
    short, long = window(2, 1, 3), window(1, 4, 2, 2)
    batch, time, size = 2, 14, 6
    history = torch.randn(batch, time, D) * 100  # values at padded positions must not matter
    moments, mask = torch.zeros(batch, time, dtype=torch.int64), torch.zeros(batch, time, dtype=torch.bool)
    for row, (h, m, k, _) in enumerate((short, long)):
        history[row, : h.shape[1]], moments[row, : m.shape[1]], mask[row, : k.shape[1]] = h[0], m[0], k[0]
    context = torch.zeros(batch, size, 0, dtype=torch.int64)
    ends, users = (
        network.forward_moments(history, moments, mask, context),
        network.forward_user(history, moments, mask, context[:, 0]),
    )
    for row, (h, m, k, c) in enumerate((short, long)):
        alone = network.forward_moments(h, m, k, c)[0]
        torch.testing.assert_close(ends[row, : len(alone)], alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(users[row], alone[0], rtol=0, atol=1e-5)


def test_sasrec_masked_positions_have_no_gradient() -> None:
    network = made().train()
    history, moments, mask, context = window(2, 1, 3)
    mask[0, -1] = False
    history.requires_grad_()
    network.forward_moments(history, moments, mask, context).square().sum().backward()
    assert history.grad is not None
    assert torch.all(history.grad[0, -1] == 0)
    assert torch.all(history.grad[0, :-1].abs().sum(-1) > 0)


def test_sasrec_is_independent_of_the_order_within_a_moment() -> None:
    network = made()
    history, moments, mask, context = window(3, 2, 4)
    shuffled = history[:, [2, 0, 1, 4, 3, 8, 5, 7, 6]]
    torch.testing.assert_close(
        network.forward_moments(shuffled, moments, mask, context),
        network.forward_moments(history, moments, mask, context),
        rtol=0,
        atol=1e-6,
    )
    torch.testing.assert_close(
        network.forward_user(shuffled, moments, mask, context[:, 0]),
        network.forward_user(history, moments, mask, context[:, 0]),
        rtol=0,
        atol=1e-6,
    )


def test_sasrec_moment_depends_on_itself_and_earlier_ones() -> None:
    """Moments of 2, 3, 1 items; outputs are numbered from the newest."""
    network = made()
    history, moments, mask, context = window(2, 3, 1)
    before = network.forward_moments(history, moments, mask, context)[0]
    for token, moved in ((0, [0, 1, 2]), (3, [0, 1]), (5, [0])):
        other = history.clone()
        other[0, token] += SHIFT
        after = network.forward_moments(other, moments, mask, context)[0]
        changed = ((after - before).abs().amax(1) > 1e-6).nonzero().ravel().tolist()
        assert changed == moved


def test_sasrec_tokens_of_a_moment_depend_on_each_other() -> None:
    """The hidden state of a token depends on the other token of its moment."""
    network = made(blocks=1)
    history, moments, mask, _ = window(2)
    before = network.hidden(history, moments, mask)
    other = history.clone()
    other[0, 1] += SHIFT
    assert (network.hidden(other, moments, mask) - before)[0, 0].abs().max() > 1e-6


def test_sasrec_late_row_does_not_change_earlier_outputs() -> None:
    """Token 0 of the oldest moment arrived after the second moment."""
    network = made()
    history, moments, mask, context = window(1, 1, 1)
    arrived = torch.ones(1, 3, 3, dtype=torch.bool)
    arrived[0, 1, 0] = False  # token 1 does not see token 0
    before = network.forward_moments(history, moments, mask, context, arrived)[0]
    other = history.clone()
    other[0, 0] += SHIFT
    after = network.forward_moments(other, moments, mask, context, arrived)[0]
    assert ((after - before).abs().amax(1) > 1e-6).tolist() == [True, False, True]


def test_sasrec_adds_the_context_after_the_mean() -> None:
    network = made(context=2)
    history, moments, mask, _ = window(2, 1, 3)
    codes = torch.tensor([[1, 3], [0, 2]])
    two = [tensor.expand(2, *tensor.shape[1:]) for tensor in (history, moments, mask)]
    users = network.forward_user(*two, codes)
    expected = network.context(codes)
    torch.testing.assert_close(users[0] - users[1], expected[0] - expected[1], rtol=0, atol=1e-6)
    by_hand = sum(
        project.weight @ table.weight[code]
        for table, project, code in zip(network.context.tables, network.context.projections, (1, 3), strict=True)
    )
    torch.testing.assert_close(expected[0], by_hand, rtol=0, atol=1e-6)
    ends = network.forward_moments(*two, torch.stack([codes, codes, codes], 1))
    torch.testing.assert_close(ends[:, 0], users, rtol=0, atol=1e-6)


def test_sasrec_item_vector_is_embedding_plus_fields() -> None:
    network = made(fields=2)
    codes = torch.randint(0, 5, (N + 1, 2), generator=torch.Generator().manual_seed(1))
    vectors = network.item_vectors(codes)
    fields = network.item_fields
    by_hand = network.table.weight[7] + sum(
        project.weight @ table.weight[codes[7, c]]
        for c, (table, project) in enumerate(zip(fields.tables, fields.projections, strict=True))
    )
    assert vectors.shape == (N + 1, D)
    torch.testing.assert_close(vectors[7], by_hand, rtol=0, atol=1e-6)


def test_sasrec_options_invalid_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.heads=3: expected a divisor of features\.dim=16"):
        made(heads=3)
    with pytest.raises(UserError, match=r"model\.layers=2"):
        load_model("sasrec", {"layers": 2})
    with pytest.raises(UserError, match=r"model\.dropout"):
        load_model("sasrec", {"dropout": 1.5})


def test_ligr_block_with_closed_gates_returns_its_tokens() -> None:
    network = made(block="ligr", blocks=1)
    block = network.blocks[0]
    history, moments, mask, _ = window(2, 1, 3)
    x, sees = network.embed(history, moments, mask)
    assert (block(x, sees) - x).abs().max() > 1e-3
    for gate in (block.gate1, block.gate2):
        nn.init.constant_(gate.bias, -100.0)
    torch.testing.assert_close(block(x, sees), x, rtol=0, atol=1e-6)


def test_ligr_newest_moment_equals_that_of_training() -> None:
    """Serving computes the last block for the newest moment alone."""
    network = made(block="ligr", blocks=2)
    history, moments, mask, context = window(2, 1, 3)
    ends = network.forward_moments(history, moments, mask, context)
    users = network.forward_user(history, moments, mask, context[:, 0])
    torch.testing.assert_close(users, ends[:, 0], rtol=0, atol=1e-5)
