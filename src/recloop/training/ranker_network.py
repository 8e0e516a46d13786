"""Network of the ranker: field embeddings, crosses and an MLP.

A feature enters twice: as the embedding of its quantile, and as a standardized number. Quantiles, means and deviations are
part of the graph. The crosses are those of DCN-V2 with matrices of low rank (Wang et al., WWW 2021, arXiv 2008.13535,
section 3.2), followed by the MLP ("stacked"); the paper has no embeddings of quantiles.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from recloop.errors import UserError
from recloop.recommend.count_batches import spread
from recloop.training.export import score_graph
from recloop.training.ranker_examples import Examples
from recloop.training.trainer import deterministic, interruptible, make_trainer, quiet_lightning
from recloop.training.validation import TrainingCallback

BINS: Final = 32
"""Quantiles of a feature; each has an embedding."""
EMBEDDING_SIZE: Final = 4
CROSSES: Final = 2
CROSS_RANK: Final = 32
HIDDEN_SIZES: Final = (64, 32)
DROPOUT: Final = 0.1
MAX_DEVIATIONS: Final = 4.0
"""Standardized values are clipped, so that a feature beyond those of training cannot decide alone."""
QUANTILE_ROWS: Final = 200_000
"""Rows from which quantiles are taken, spread evenly."""
CHUNK_ROWS: Final = 4_096
"""Rows that are encoded at once."""
EPOCHS: Final = 3
LEARNING_RATE: Final = 3e-3
WEIGHT_DECAY: Final = 1e-4
AVERAGE_SHARE: Final = 0.99
"""Share of the averaged weights that a step keeps."""
MOMENTS_PER_STEP: Final = 128


class RankerNetwork(nn.Module):
    """Scores of candidates from their features.

    Shapes: C candidates, F features, D = `EMBEDDING_SIZE`, W = F D + F.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        width = n_features * (EMBEDDING_SIZE + 1)
        self.edges: Tensor  # (F, BINS - 1) ascending; the bin of a value is the number of edges below it
        self.register_buffer("edges", torch.zeros(n_features, BINS - 1))
        self.means: Tensor  # (F,) of the values on a log scale
        self.register_buffer("means", torch.zeros(n_features))
        self.deviations: Tensor  # (F,)
        self.register_buffer("deviations", torch.ones(n_features))
        self.first_rows: Tensor  # (F,) first row of each feature in the table
        self.register_buffer("first_rows", torch.arange(n_features) * BINS, persistent=False)
        self.table = nn.Embedding(n_features * BINS, EMBEDDING_SIZE)
        nn.init.normal_(self.table.weight, std=0.1)
        self.narrow = nn.ModuleList(nn.Linear(width, CROSS_RANK, bias=False) for _ in range(CROSSES))
        self.wide = nn.ModuleList(nn.Linear(CROSS_RANK, width) for _ in range(CROSSES))
        sizes = (width, *HIDDEN_SIZES)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(DROPOUT)]
        self.deep = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def fit_scales(self, features: np.ndarray) -> None:
        """Take quantiles, means and deviations from features (R, F)."""
        rows = np.linspace(0, len(features) - 1, min(len(features), QUANTILE_ROWS)).astype(np.int64)
        values = features[rows]
        self.edges.copy_(torch.from_numpy(_edges(values)))
        logs = np.sign(values) * np.log1p(np.abs(values))
        self.means.copy_(torch.from_numpy(logs.mean(axis=0)))
        self.deviations.copy_(torch.from_numpy(np.maximum(logs.std(axis=0), 1e-6)))

    def forward(self, features: Tensor) -> Tensor:
        """(C, F) float32 -> (C, 1) scores."""
        return self.score(*self.encode(features))

    def encode(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(C, F) float32 -> their quantiles (C, F) int64, and standardized values (C, F)."""
        bins = (features[:, :, None] > self.edges).sum(dim=2)
        logs = torch.sign(features) * torch.log1p(features.abs())
        return bins, ((logs - self.means) / self.deviations).clamp(-MAX_DEVIATIONS, MAX_DEVIATIONS)

    def score(self, bins: Tensor, scaled: Tensor) -> Tensor:
        """Encoded features (C, F) -> (C, 1) scores."""
        embedded = self.table(bins + self.first_rows).flatten(1)  # (C, F D)
        first = torch.cat([embedded, scaled], dim=1)  # (C, W)
        crossed = first
        for narrow, wide in zip(self.narrow, self.wide, strict=True):
            crossed = first * wide(narrow(crossed)) + crossed
        scores: Tensor = self.deep(crossed)
        return scores


def _edges(values: np.ndarray) -> np.ndarray:
    """(F, BINS - 1) distinct quantiles of values (R, F), then the largest float32."""
    edges = np.full((values.shape[1], BINS - 1), np.finfo(np.float32).max, dtype=np.float32)
    shares = np.arange(BINS - 1) / (BINS - 1)
    for feature, quantiles in enumerate(np.quantile(values, shares, axis=0, method="lower").T):
        distinct = np.unique(quantiles)
        edges[feature, : len(distinct)] = distinct
    return edges


class MomentBatch(NamedTuple):
    """Rows of moments: encoded features (R, F), labels (R,), moment (R,) from 0."""

    bins: Tensor
    scaled: Tensor
    labels: Tensor
    moments: Tensor

    @property
    def n_tokens(self) -> int:
        """Number of rows."""
        return len(self.labels)


class MomentDataset(Dataset[MomentBatch]):
    """Moments of examples, several at a time; their features are encoded once."""

    def __init__(self, examples: Examples, network: RankerNetwork) -> None:
        self._sizes = examples.sizes
        self._starts = np.cumsum(examples.sizes) - examples.sizes
        self._labels = torch.from_numpy(examples.labels.astype(np.float32))
        chunks = [network.encode(chunk) for chunk in torch.split(torch.from_numpy(examples.features), CHUNK_ROWS)]
        self._bins = torch.cat([bins.to(torch.uint8) for bins, _ in chunks])
        self._scaled = torch.cat([scaled for _, scaled in chunks])

    def __getitem__(self, chosen: np.ndarray) -> MomentBatch:
        sizes = self._sizes[chosen]
        rows = torch.from_numpy(spread(self._starts[chosen], sizes))
        moments = torch.from_numpy(np.repeat(np.arange(len(chosen)), sizes))
        return MomentBatch(self._bins[rows].long(), self._scaled[rows], self._labels[rows], moments)


class MomentSampler(Sampler[np.ndarray]):
    """`MOMENTS_PER_STEP` of n moments at a time, in a new random order each epoch."""

    def __init__(self, n_moments: int, seed: int) -> None:
        self._n_moments = n_moments
        self._random = np.random.default_rng(seed)

    def __len__(self) -> int:
        return math.ceil(self._n_moments / MOMENTS_PER_STEP)

    def __iter__(self) -> Iterator[np.ndarray]:
        order = self._random.permutation(self._n_moments)
        yield from np.split(order, range(MOMENTS_PER_STEP, len(order), MOMENTS_PER_STEP))


class RankerLearner(lightning.LightningModule):
    """Listwise softmax: the targets of a moment against its other recalled items."""

    def __init__(self, network: RankerNetwork) -> None:
        super().__init__()
        self.network = network
        self.lr = LEARNING_RATE

    def training_step(self, batch: MomentBatch, _: int) -> Tensor:
        """Return the mean cross-entropy over moments; their targets share the probability."""
        return listwise_loss(self.network.score(batch.bins, batch.scaled)[:, 0], batch.labels, batch.moments)

    def configure_optimizers(self) -> Any:
        """Build AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=WEIGHT_DECAY, fused=True)


def listwise_loss(scores: Tensor, labels: Tensor, moments: Tensor) -> Tensor:
    """Return the mean cross-entropy of moments with at least one target.

    Cao et al., "Learning to Rank: From Pairwise Approach to Listwise Approach", ICML 2007, for the top one.

    Args:
        scores, labels: (R,) of the candidates. moments: (R,) int64 moment of each, ascending from 0.
    """
    sizes = torch.bincount(moments)
    columns = torch.arange(len(moments)) - (sizes.cumsum(0) - sizes)[moments]
    padded = scores.new_full((len(sizes), int(sizes.max())), -torch.inf)
    logs = torch.log_softmax(padded.index_put((moments, columns), scores), dim=1)[moments, columns]  # (R,)
    shares = labels / torch.bincount(moments, weights=labels)[moments]
    return -(logs * shares).sum() / len(sizes)


class _RankerCallback(TrainingCallback):
    """Callback of a run without validation, which its epochs end."""

    def diverged(self, step: int, loss: float, rate: float) -> UserError:
        expected = f"a finite loss; it is {loss} at step {step} with rate {rate:g}"
        return UserError("ranker.model", "mlp", expected, '--set ranker.model="gbdt"')


def fit_network(examples: Examples, seed: int) -> bytes:
    """Fit the network and return its graph.

    The result is the same for the same examples, seed and number of threads.

    Raises:
        UserError: the examples cannot teach it (`Examples.check`), or the loss is not finite.
    """
    examples.check()
    with tempfile.TemporaryDirectory() as folder, deterministic(seed), quiet_lightning():
        network = RankerNetwork(examples.features.shape[1])
        network.fit_scales(examples.features)
        callback = _RankerCallback(
            None, Path(folder), EPOCHS, float("inf"), bar=False, decay_rate=True, ema=AVERAGE_SHARE
        )
        sampler = MomentSampler(len(examples.sizes), seed)
        loader = DataLoader(MomentDataset(examples, network), sampler=sampler, batch_size=None)
        trainer = make_trainer(EPOCHS, [callback], Path(folder))
        try:
            interruptible(lambda: trainer.fit(RankerLearner(network), loader))
        finally:
            callback.close()
        if not callback.kept.weights:  # the last step made a weight infinite
            raise callback.diverged(trainer.global_step, math.nan, LEARNING_RATE)
    network.load_state_dict(callback.kept.weights)
    return score_graph(network, examples.features.shape[1])
