"""Lightning module and its training run: step, optimizer, determinism."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from recloop.config import Config, Train
from recloop.errors import UserError
from recloop.models.base import TrainData
from recloop.training.batches import Batch, EpochDataset, HistoryWindows, LengthBucketSampler, SequenceDataset
from recloop.training.epoch_start import EpochStart, LateDropout
from recloop.training.fit import Look
from recloop.training.item_init import init_item_embeddings
from recloop.training.losses import Criterion, LossRows
from recloop.training.network import Network, OptionalMembers
from recloop.training.pairs import PairBatch, PairDataset, PairSampler, fit_fold_in, users_with_row
from recloop.training.sampled_losses import OwnedItems
from recloop.training.seen_items import SeenItems
from recloop.training.validation import TrainingCallback, ValidationSet
from recloop.training.warm_start import (
    WARM_UP_STEPS,
    WarmStartState,
    grow_moments,
    grow_parameter,
    grow_user_rows,
    is_table,
    waits_for_row,
)

CUBLAS_SETTING = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""Setting for deterministic cuBLAS; the first CUDA handle reads it."""
MAX_GRADIENT_NORM = 1.0  # largest norm of a step's gradient
WEIGHT_DECAY = 0.01  # weight decay of matrices; tables, biases and norms have none


class Learner(lightning.LightningModule):
    """Lightning module of a built-in or custom network, its loss and its optimizer.

    `recloop.training.network` lists the methods of a network. With ``filter_seen`` the full softmax leaves out what a user
    had, as lists do.
    """

    def __init__(
        self,
        network: Network,
        data: TrainData,
        settings: Train,
        warm: WarmStartState | None = None,
        filter_seen: bool = False,
    ) -> None:
        super().__init__()
        self.network: Any = network
        self.warm = warm
        self.criterion = Criterion(self.network, data, settings)
        self.hides_seen = filter_seen and self.criterion.hides_seen
        self.lr = settings.lr * (1.0 if warm is None else warm.rate)
        self.item_codes: Tensor
        self.register_buffer("item_codes", torch.from_numpy(data.item_codes.astype(np.int64)), persistent=False)
        self.owned: Tensor  # (P,) int64, as `TrainData.owned`
        pairs = data.owned() if self.criterion.masks_owned else np.zeros(0, np.int64)
        self.register_buffer("owned", torch.from_numpy(pairs), persistent=False)

    def vectors(self) -> Tensor:
        """Return the current item vectors, (N+1, D)."""
        vectors: Tensor = self.network.item_vectors(self.item_codes)
        return vectors

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Return the loss over moment ends with a next moment and over rejected items."""
        table = self.vectors()  # (N+1, D)
        history = F.embedding(batch.items, table)  # (B, T, D)
        # (B, M, D) vectors after each moment
        ends = self.network.forward_moments(history, batch.moments, batch.mask, batch.context, batch.arrived)
        has_target = batch.targets > 0  # (B, M)
        targets = LossRows(ends[has_target], batch.targets[has_target] - 1, batch.weights[has_target])
        rejected = None
        if batch.rejected is not None and batch.rejected_weights is not None:
            window, moment, item = batch.rejected.unbind(1)
            rejected = LossRows(ends[window, moment], item - 1, batch.rejected_weights)
        owned = None
        if self.criterion.masks_owned and batch.users is not None:
            owned = OwnedItems(self.owned, batch.users, has_target.nonzero()[:, 0], len(table) - 1)
        seen = SeenItems.from_batch(batch) if self.hides_seen else None
        return self.criterion(table[1:], targets, rejected, owned, seen)

    def configure_optimizers(self) -> Any:
        """Build AdamW with decay for matrices; a warm start restores the parent's state."""
        layers = [m for m in self.network.modules() if isinstance(m, nn.Linear | nn.RNNBase)]
        matrix_ids = {id(p) for layer in layers for p in layer.parameters() if p.ndim > 1}
        decayed = [p for p in self.network.parameters() if id(p) in matrix_ids]
        undecayed = [p for p in self.network.parameters() if id(p) not in matrix_ids]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": undecayed, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=self.lr, fused=True)
        if self.warm is None:
            return optimizer
        restore_moments(optimizer, self.network, self.warm)
        warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP_STEPS))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm_up, "interval": "step"}}


class PairLearner(Learner):
    """Lightning module of a network that learns pairs of user and item."""

    def training_step(self, batch: PairBatch, _: int) -> Tensor:  # type: ignore[override]
        """Return the loss over positive and rejected pairs."""
        table = self.vectors()  # (N+1, D)
        users = F.embedding(batch.users + 1, self.network.users.weight)  # (R, D)
        is_positive = batch.is_positive
        targets = LossRows(users[is_positive], batch.items[is_positive] - 1, batch.weights[is_positive])
        rejected = None
        if not is_positive.all():
            rejected = LossRows(users[~is_positive], batch.items[~is_positive] - 1, batch.weights[~is_positive])
        owners = batch.users[is_positive]
        owned = OwnedItems(self.owned, owners, torch.arange(len(owners), device=owners.device), len(table) - 1)
        return self.criterion(table[1:], targets, rejected, owned)


def restore_weights(network: nn.Module, data: TrainData, warm: WarmStartState) -> None:
    """Load the parent's weights, grown to the new tables.

    Rows of new items with too few events stay 0 without a gradient.

    Raises:
        UserError: the network's shape differs from the parent's.
    """
    user_tables = OptionalMembers.from_network(network).user_tables
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            try:
                parent = warm.state[f"network.{name}"]
                if name in user_tables:
                    grown = grow_user_rows(parent, warm.users, data.user_ids)
                else:
                    grown = grow_parameter(name, parent, parameter.numpy(force=True), data, warm.counted)
            except (KeyError, ValueError) as error:
                expected = f"the parent's network ({error})"
                raise UserError("model", type(network).__name__, expected, "recloop update --full") from None
            parameter.copy_(torch.from_numpy(grown))
            if name not in user_tables and is_table(grown, data) and (locked := waits_for_row(data, parent)).any():
                trainable = torch.from_numpy(~locked)[:, None]
                parameter.register_hook(partial(_only, trainable))  # type: ignore[no-untyped-call]


def _only(trainable: Tensor, gradient: Tensor) -> Tensor:
    """Keep the gradient of trainable rows only."""
    return gradient * trainable.to(gradient.device)


def restore_moments(optimizer: torch.optim.Optimizer, network: nn.Module, warm: WarmStartState) -> None:
    """Load the parent's optimizer state; new rows start at m = 0, v = the column mean.

    Rows of users have no state, because their order changes.
    """
    user_tables = OptionalMembers.from_network(network).user_tables
    for name, parameter in network.named_parameters():
        state = {key: warm.state.get(f"{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
        if name not in user_tables and all(array is not None for array in state.values()):
            optimizer.state[parameter] = {
                key: torch.from_numpy(np.array(grow_moments(key, array, len(parameter)))).to(parameter.device)
                for key, array in state.items()
                if array is not None
            }


def train(
    network: Any,
    data: TrainData,
    config: Config,
    folder: Path,
    budget: float,
    quiet: bool,
    warm: WarmStartState | None = None,
    on_look: Callable[[Look], None] | None = None,
) -> tuple[Learner, TrainingCallback]:
    """Train a network until patience, epochs or budget end; return the best weights.

    Args:
        network: A built-in or custom module, not yet built.
        budget: Training seconds from the first batch on, excluding validation.
        warm: Weights of the parent and the positions to learn; its rate is a share of ``train.lr``.
        on_look: Called after each validation; an exception that it raises ends the training.
    """
    settings = config.train
    chosen = None if warm is None else warm.chosen
    sequences = SequenceDataset(data, config.features.max_history, chosen)
    is_of_pairs = network.inputs == "pairs"
    windows = sequences.training(settings.windows)
    data = replace(data, targeted=sequences.target_moments(windows))
    with deterministic(settings.seed), quiet_lightning():
        _start(network, data, config, warm)
        loader = (
            pair_loader(network, data, settings.seed, warm)
            if is_of_pairs
            else sequence_loader(sequences, windows, settings.seed)
        )
        learner_class = PairLearner if is_of_pairs else Learner
        learner = learner_class(network, data, settings, warm, config.split.filter_seen)
        callback = TrainingCallback(
            _validation_set(data, config),
            folder,
            settings.patience,
            budget,
            bar=not quiet,
            decay_rate=settings.schedule == "cosine" and warm is None,
            ema=settings.ema if warm is None else 0.0,
            on_look=on_look,
        )
        trainer = make_trainer(settings.epochs, [callback, *(epoch_callbacks(network) if warm is None else [])], folder)
        _run(trainer, learner, loader, callback)
    network.load_state_dict(callback.kept.weights)
    learner.eval()
    if is_of_pairs:
        with torch.no_grad():
            fit_fold_in(network, sequences, learner.vectors())
    return learner, callback


def _start(network: Any, data: TrainData, config: Config, warm: WarmStartState | None) -> None:
    """Build the network with the parent's weights, or with items from counts."""
    network.build(data, config.features.dim, config.features.max_history)
    if warm is not None:
        restore_weights(network, data, warm)
    elif getattr(network.config, "start", "") == "counts":
        network.init_items(torch.from_numpy(init_item_embeddings(data, config.features.dim, config.train.seed)))


def _validation_set(data: TrainData, config: Config) -> ValidationSet | None:
    """Return the validation moments; None if there are none."""
    if data.held is None:
        return None
    return ValidationSet(data, data.held, config.features.max_history, config.split.filter_seen) or None


def _run(trainer: lightning.Trainer, learner: Learner, loader: DataLoader[Any], callback: TrainingCallback) -> None:
    """Train; without a batch keep the weights as they are.

    Raises:
        UserError: the last step made a weight infinite.
    """
    try:
        if len(loader):
            interruptible(lambda: trainer.fit(learner, loader))
        else:
            callback.keep(learner, learner.configure_optimizers()["optimizer"], None, 0, 0)
    finally:
        callback.close()
    if not callback.kept.weights:
        raise callback.diverged(trainer.global_step, math.nan, learner.lr)


def pair_loader(network: Any, data: TrainData, seed: int, warm: WarmStartState | None) -> DataLoader[Any]:
    """Batches of (user, item) pairs.

    A warm start also marks the users that have a row by now.
    """
    examples = PairDataset(data, None if warm is None else warm.chosen)
    if warm is not None:
        network.has_row.copy_(users_with_row(data, examples, warm))
    return DataLoader(examples, sampler=PairSampler(len(examples), network.config.pairs, seed), batch_size=None)


def sequence_loader(sequences: SequenceDataset, windows: HistoryWindows, seed: int) -> DataLoader[Any]:
    """Batches of windows of about equal length."""
    steps = LengthBucketSampler(sequences.lengths(windows), seed)
    return DataLoader(EpochDataset(sequences, windows, seed, steps), sampler=steps, batch_size=None)


def make_trainer(epochs: int, callbacks: list[lightning.Callback], folder: Path) -> lightning.Trainer:
    """Make a trainer on one device that writes nothing of its own."""
    return lightning.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=1,
        max_epochs=epochs,
        min_epochs=0,
        gradient_clip_val=MAX_GRADIENT_NORM,
        callbacks=callbacks,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def epoch_callbacks(network: Any) -> list[lightning.Callback]:
    """Callbacks of a full run that change the network between epochs."""
    return [LateDropout(getattr(network.config, "dropout_after", 0)), EpochStart()]


def interruptible(run: Callable[[], None]) -> None:
    """Run and let Ctrl-C raise KeyboardInterrupt, where Lightning would exit with 1."""
    try:
        run()
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Make results reproducible on one machine and thread count.

    The caller's random state is restored. On a GPU, an operation without a deterministic implementation only warns;
    the last digits of numbers may then differ.
    """
    os.environ.setdefault(*CUBLAS_SETTING)
    memory: Any = torch.utils.deterministic
    previous = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
        memory.fill_uninitialized_memory = False  # saves a fifth of a step; uninitialized memory is never read
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(previous[0], warn_only=warn_only)
            memory.fill_uninitialized_memory = previous[1]


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advice about loaders and loggers that recloop does not use."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # batches are arrays in memory
            # raised by Lightning's call into torch
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)
